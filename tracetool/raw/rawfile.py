"""Reads whole small sources and long text sources, packed or not, within a bound of memory."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final

from tracetool.errors import UnreadableTrace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_GZIP: Final = b"\x1f\x8b"
_CHUNK: Final = 1 << 20
_LONGEST_LINE: Final = 1 << 20
"""Bytes of one line that are kept: what follows in it is dropped."""


def chunks(path: Path) -> Iterator[bytes]:
    """Yield the content of a file, unpacked when it is gzip, piece by piece.

    A damaged or cut gzip stream ends early without an error: compare with what the content promises.
    """
    with path.open("rb") as stream:
        first = stream.read(_CHUNK)
        if not first.startswith(_GZIP):
            while first:
                yield first
                first = stream.read(_CHUNK)
            return
        unpacker = zlib.decompressobj(wbits=31)
        while first:
            try:
                piece = unpacker.decompress(first, _CHUNK)
            except zlib.error:
                return
            if piece:
                yield piece
            first = unpacker.unconsumed_tail
            if not first and unpacker.eof:  # several members may follow one another
                first = unpacker.unused_data or stream.read(_CHUNK)
                unpacker = zlib.decompressobj(wbits=31)
            elif not first:
                first = stream.read(_CHUNK)


def read_all(path: Path, display_path: str, limit_bytes: int) -> bytes:
    """Return the whole content, unpacked. Raises UnreadableTrace above `limit_bytes` or when it cannot be opened."""
    parts: list[bytes] = []
    size = 0
    try:
        for piece in chunks(path):
            size += len(piece)
            if size > limit_bytes:
                reason = f"holds more than the {limit_bytes >> 20} MiB that may be read at once"
                raise UnreadableTrace(display_path, reason, limit_bytes)
            parts.append(piece)
    except OSError as error:
        raise UnreadableTrace(display_path, f"cannot be read ({error.strerror or error})") from None
    return b"".join(parts)


def json_memory_bytes(data: bytes) -> int:
    """Return about how much memory CPython takes for what this JSON holds, counted before anything is built.

    An empty list costs 88 bytes and its place in another list for 3 bytes of text: files grow fiftyfold.
    """
    values, lists, objects = data.count(b","), data.count(b"["), data.count(b"{")
    return len(data) * 2 + values * 64 + lists * 88 + objects * 400


def text_lines(path: Path, display_path: str) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line without its end), decoded as UTF-8 with bad bytes replaced.

    Carriage returns end a line too (progress bars); lines beyond 1 MiB are cut. Raises UnreadableTrace when the
    file cannot be opened.
    """
    number = 0
    rest = b""
    try:
        for piece in chunks(path):
            whole = (rest + piece).replace(b"\r", b"\n")
            *lines, rest = whole.split(b"\n")
            rest = rest[:_LONGEST_LINE]
            for line in lines:
                number += 1
                yield number, line[:_LONGEST_LINE].decode("utf-8", "replace")
    except OSError as error:
        raise UnreadableTrace(display_path, f"cannot be read ({error.strerror or error})") from None
    if rest:
        yield number + 1, rest.decode("utf-8", "replace")
