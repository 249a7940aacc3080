"""Finds the sources of a run: which files and directories are traces, of which format, and of which rank by name.

A source is one file, or one directory that a parser recognises as a whole. Formats are told by content, so a
trace called `unknown` is found and a text file called `rank0.json` is not taken for one.
"""

from __future__ import annotations

import glob
import os
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tracetool.errors import NothingReadable, TracetoolError, UsageError
from tracetool.registry import HEAD_BYTES, sniff, why_not_read

if TYPE_CHECKING:
    from tracetool.settings import Settings

GZIP_MAGIC: Final = b"\x1f\x8b"
_PIECE_BYTES: Final = 512
_GZIP_RATIO: Final = 12  # JSON traces: 10 to 20
_OTHER_PACKING: Final = {b"PK\x03\x04": "zip", b"\xfd7zXZ\x00": "xz", b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "zstd"}
_RANK_IN_NAME: Final = re.compile(r"(?:^|[^a-z])(?:global[_-]?)?ranks?[_=.-]?(\d+)", re.IGNORECASE)
_TRAILING_RANK: Final = re.compile(r"(?:^|[^a-z])worker[_-]?(\d+)(?=[._]|$)", re.IGNORECASE)
_ITERATION_IN_PATH: Final = re.compile(r"(?:^|[^a-z])iter(?:ation)?[_=-]?(\d+)(?:[^\d]|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """One source as found, before it is read."""

    path: Path
    display: str
    """Path below what the user typed; how tables, messages and the report name the source."""
    parser: str
    """Name of the parser's module."""
    format: str
    bytes: int
    work_bytes: int
    """About how much there is to read once it is decompressed."""
    rank: int | None
    """Rank by `--rank-regex` or by name; None when neither tells."""
    rank_source: str | None
    """`option` or `file name`; None with an unknown rank."""
    iteration: int | None
    """Iteration that the path names, if it names one."""


@dataclass(frozen=True)
class Discovery:
    """What was found: sources in the order of their paths, and the rest with the reason it is not read."""

    sources: tuple[Source, ...]
    ignored: tuple[str, ...]
    """Sentences that name the files of no known format."""
    damaged: tuple[str, ...] = ()
    """Those of them that could not be looked into, or are empty although their name tells a rank."""
    failed: tuple[str, ...] = ()
    """Sentences about files on which tracetool itself failed."""


def discover(run: str, settings: Settings) -> Discovery:
    """Find the sources of RUN: a file, a directory (searched recursively) or a glob.

    Raises UsageError when RUN does not exist or `--rank-regex` is no regular expression with a group, and
    NothingReadable when no parser recognises anything.
    """
    pattern = _rank_pattern(settings.rank_regex)
    sources: list[Source] = []
    ignored: list[str] = []
    candidates, closed = _candidates(run)
    candidates, links = _once(candidates)
    ignored += links
    ignored += closed
    damaged = [sentence.rpartition(": ")[0] for sentence in closed]
    failed: list[str] = []
    for path, display in candidates:
        try:
            raw = b"" if path.is_dir() else _first_bytes(path)
            packed = raw.startswith(GZIP_MAGIC)
            head = _unpacked(raw) if packed else raw
            parser = sniff(path, head)
            size = _size(path)
        except OSError as error:
            ignored.append(f"{display}: cannot be opened ({error.strerror or error})")
            damaged.append(display)
            continue
        except TracetoolError as error:  # a defect of a parser must not cost the other files
            ignored.append(f"{display}: {error}")
            failed.append(f"{display}: {error}")
            continue
        if parser is None:
            if not path.is_dir():
                why = why_not_read(path, head) or _why_ignored(head, packed=packed)
                ignored.append(f"{display}: {why}")
                if not head and (packed or rank_of(display, pattern)[0] is not None):
                    damaged.append(display)
            continue
        rank, rank_source = rank_of(display, pattern)
        iteration = _ITERATION_IN_PATH.search(display)
        sources.append(
            Source(
                path=path,
                display=display,
                parser=parser.__name__.rpartition(".")[2],
                format=parser.FORMAT,
                bytes=size,
                work_bytes=size * (_GZIP_RATIO if packed else 1),
                rank=rank,
                rank_source=rank_source,
                iteration=int(iteration[1]) if iteration else None,
            )
        )
    if not sources and failed:
        raise TracetoolError(failed[0])
    if not sources:
        seen = f"; not read: {'; '.join(ignored[:3])}" if ignored else ""
        raise NothingReadable(f"{legible(run)}: no trace found{seen}. `tracetool formats` lists what can be read.")
    if pattern and not any(source.rank_source == "option" for source in sources):
        raise UsageError(f"--rank-regex {settings.rank_regex!r} matches no path, such as {sources[0].display}")
    kept = _one_iteration(sources, settings)
    left = sorted({source.iteration for source in sources if source not in kept} - {None}, key=str)
    if left:
        chosen = kept[0].iteration if kept else settings.iteration
        ignored.append(
            f"iterations {', '.join(map(str, left))}: iteration {chosen} was taken; --iteration chooses another"
        )
    return Discovery(tuple(kept), tuple(ignored), tuple(damaged), tuple(failed))


def _candidates(run: str) -> tuple[list[tuple[Path, str]], list[str]]:
    """Return files, and directories that are one source, as (path, display path), sorted by display path.

    Beside them sentences that name the directories that could not be looked into. Only regular files count: reading a
    pipe or a device might never end.
    """
    top = Path(run)
    if top.is_file():
        return [(top, legible(top.name))], []
    if top.is_dir():
        return _below(top)
    matches = sorted(glob.glob(run, recursive=True))  # noqa: PTH207 - RUN may be absolute, Path.glob refuses that
    if not matches:
        raise UsageError(f"{legible(run)}: no such file or directory, and no match as a glob")
    found: list[tuple[Path, str]] = []
    closed: list[str] = []
    for match in map(Path, matches):
        below, shut = _below(match) if match.is_dir() else ([(match, "")] if match.is_file() else [], [])
        shown = legible(str(match))
        found += [(path, f"{shown}/{display}" if display else shown) for path, display in below]
        closed += shut
    return sorted(set(found), key=lambda item: _natural(item[1])), closed


def _once(candidates: list[tuple[Path, str]]) -> tuple[list[tuple[Path, str]], list[str]]:
    """Return each file once, under its own name where links name it too, and sentences about the links."""
    own = {os.path.realpath(path): display for path, display in candidates if not path.is_symlink()}
    kept, links = [], []
    for path, display in candidates:
        known = own.setdefault(os.path.realpath(path), display)
        if known == display:
            kept.append((path, display))
        else:
            links.append(f"{display}: the same file as {known}")
    return kept, links


def _below(top: Path) -> tuple[list[tuple[Path, str]], list[str]]:
    closed: list[str] = []

    def shut(error: OSError) -> None:
        name = os.path.relpath(error.filename, top) if error.filename else "."
        closed.append(f"{legible(name)}: cannot be looked into ({error.strerror or error})")

    if _is_source(top):
        return [(top, legible(top.name))], []
    found: list[tuple[Path, str]] = []
    for folder, folders, files in os.walk(top, onerror=shut):
        for name in list(folders):
            path = Path(folder, name)
            if name.startswith("."):
                folders.remove(name)
            elif _is_source(path):
                folders.remove(name)
                found.append((path, legible(str(path.relative_to(top)))))
        for name in files:
            path = Path(folder, name)
            if not name.startswith(".") and path.is_file():
                found.append((path, legible(str(path.relative_to(top)))))
    return sorted(found, key=lambda item: _natural(item[1])), closed


def _is_source(folder: Path) -> bool:
    """Say whether a directory is one source; one that cannot be opened is none."""
    try:
        return sniff(folder, b"") is not None
    except OSError:
        return False


def legible(name: str) -> str:
    """Return a name of a file as text that can be written everywhere: bytes that are not UTF-8 are replaced."""
    return os.fsencode(name).decode("utf-8", "replace")


def _natural(text: str) -> list[tuple[int, str]]:
    """Sort key by which rank2 stands before rank10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]


def read_head(path: Path) -> bytes:
    """Return the first 64 KiB of a file, decompressed when it is gzip, whatever its name; less if it is damaged."""
    raw = _first_bytes(path)
    return _unpacked(raw) if raw.startswith(GZIP_MAGIC) else raw


def _first_bytes(path: Path) -> bytes:
    # a file of the kernel may look regular and never answer: opened like this it does not keep us waiting
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as stream:
        return stream.read(HEAD_BYTES) or b""


def _unpacked(raw: bytes) -> bytes:
    unpacker, head = zlib.decompressobj(wbits=31), b""
    try:
        # piece by piece: what stands before damage counts
        for at in range(0, len(raw), _PIECE_BYTES):
            head += unpacker.decompress(unpacker.unconsumed_tail + raw[at : at + _PIECE_BYTES], HEAD_BYTES - len(head))
            if len(head) >= HEAD_BYTES or unpacker.eof:
                break
    except zlib.error:
        pass  # the parser says more when it comes to the damage
    return head


def _why_ignored(head: bytes, *, packed: bool) -> str:
    for magic, name in _OTHER_PACKING.items():
        if head.startswith(magic):
            return f"packed with {name}; unpack it first"
    if not head:
        return "nothing in it can be unpacked: the gzip stream is damaged" if packed else "empty"
    return "no known trace format"


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size


def _rank_pattern(rank_regex: str | None) -> re.Pattern[str] | None:
    if rank_regex is None:
        return None
    try:
        pattern = re.compile(rank_regex)
    except re.error as error:
        raise UsageError(f"--rank-regex {rank_regex!r} is no regular expression: {error}") from None
    if pattern.groups < 1:
        raise UsageError(f"--rank-regex {rank_regex!r} has no group; put the rank in parentheses, as in 'node(\\d+)'")
    return pattern


def rank_of(display: str, pattern: re.Pattern[str] | None) -> tuple[int | None, str | None]:
    """Return the rank that a path tells and how: by the user's pattern, else by the usual names.

    Usual names are those of torch.profiler and the frameworks: rank3_trace.json.gz, rank-3.json, rank_3/x.json,
    worker3.1719846514912.pt.trace.json. Host names hold digits too and are not guessed from.
    """
    if pattern and (match := pattern.search(display)):
        digits = match[1]
        if digits is None or not digits.isdigit():
            raise UsageError(f"--rank-regex: its first group found {digits!r} in {display}, which is no rank")
        return int(digits), "option"
    for part in reversed(Path(display).parts):
        if matches := _RANK_IN_NAME.findall(part) or _TRAILING_RANK.findall(part):
            return int(matches[-1]), "file name"
    return None, None


def _one_iteration(sources: list[Source], settings: Settings) -> list[Source]:
    """Keep the sources of one iteration, where paths name several: the one asked for, else the last."""
    iterations = {source.iteration for source in sources if source.iteration is not None}
    if settings.iteration is not None and settings.iteration in iterations:
        return [source for source in sources if source.iteration in (None, settings.iteration)]
    if len(iterations) > 1 and settings.iteration is None:
        return [source for source in sources if source.iteration in (None, max(iterations))]
    return sources
