"""Reads a file as a sequence of large blocks, unpacking gzip in a thread beside the reader.

Formats: gzip members as in RFC 1952, one or several in a row; recognised by their magic bytes, never by the
suffix. zlib releases the interpreter's lock, so unpacking and decoding run at the same time.
"""

from __future__ import annotations

import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, BinaryIO, Final, Self

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_GZIP: Final = b"\x1f\x8b"
_INPUT_BYTES: Final = 1 << 16
"""Packed bytes given to zlib at once; also how far back a damaged stream is read again, byte by byte."""


class Blocks:
    """The unpacked content of a file, block by block; holds at most two blocks.

    `block_bytes` is the size of a block, the last one may be shorter. After the last block `damage` says what was
    wrong with the packing, None when nothing was. Use as a context manager: it owns the file and the thread.
    Raises OSError when the file cannot be opened.
    """

    def __init__(self, path: Path, block_bytes: int) -> None:
        self.damage: str | None = None
        self._file: BinaryIO = path.open("rb")
        head = self._file.read(len(_GZIP))
        self._file.seek(0)
        self._pieces = self._inflate(block_bytes) if head == _GZIP else None
        self._block_bytes = block_bytes
        # a plain file needs no thread: the page cache is faster than the hand-over
        self._pool = ThreadPoolExecutor(1, "gunzip") if self._pieces else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown(wait=True)
        self._file.close()

    def __iter__(self) -> Iterator[bytes]:
        """Yield the blocks in order; OSError while reading ends them and is told in `damage`."""
        if self._pool is None:
            while block := self._read():
                yield block
            return
        coming = self._pool.submit(self._gather)
        while block := coming.result():
            coming = self._pool.submit(self._gather)
            yield block

    def _read(self) -> bytes:
        try:
            return self._file.read(self._block_bytes)
        except OSError as error:
            self.damage = f"reading failed: {error.strerror or error}"
            return b""

    def _gather(self) -> bytes:
        if self._pieces is None:
            return b""
        parts: list[bytes] = []
        missing = self._block_bytes
        for piece in self._pieces:
            parts.append(piece)
            missing -= len(piece)
            if missing <= 0:
                break
        return b"".join(parts)

    def _inflate(self, limit: int) -> Iterator[bytes]:
        """Yield unpacked pieces of at most `limit` bytes; what stands before damage is never lost."""
        unpacker = zlib.decompressobj(wbits=31)
        try:
            while packed := self._file.read(_INPUT_BYTES):
                while packed:
                    if unpacker.eof:
                        packed = packed.lstrip(b"\0")  # writers may pad members with zeros
                        if not packed:
                            break
                        unpacker = zlib.decompressobj(wbits=31)
                    before = unpacker.copy()
                    try:
                        piece = unpacker.decompress(packed, limit)
                    except zlib.error as error:
                        yield from _until_error(before, packed, limit)
                        self.damage = f"the gzip stream is damaged ({str(error).rpartition(': ')[2]})"
                        return
                    if piece:
                        yield piece
                    packed = unpacker.unused_data if unpacker.eof else unpacker.unconsumed_tail
            if not unpacker.eof:
                if rest := unpacker.flush():
                    yield rest
                self.damage = "the gzip stream ends early"
        except OSError as error:
            self.damage = f"reading failed: {error.strerror or error}"


def _until_error(unpacker: zlib._Decompress, packed: bytes, limit: int) -> Iterator[bytes]:
    """Yield what can be unpacked from `packed` before the byte where zlib gives up: a failing call returns nothing."""
    tail = b""  # not the unpacker's own at first: that is the beginning of `packed`
    for position in range(len(packed)):
        try:
            piece = unpacker.decompress(tail + packed[position : position + 1], limit)
        except zlib.error:
            return
        tail = unpacker.unconsumed_tail
        if piece:
            yield piece
