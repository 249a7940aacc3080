"""The Parquet store and cache: where tables lie between the jobs of a run, and between runs.

Layout below the root, which is the cache directory or a temporary one (`--cache off`):

    index/<stat key>             text: the entry that holds this very file (path, size, mtime, inode)
    entries/<entry key>/         one source, keyed by its content and by the code that read it
        manifest                 pickled by no one: plain JSON, written last
        r<rank>/<table>.parquet  base tables of one rank, the rank as the file numbers it; `run` for none
        r<rank>/d-<key>/…        tables derived under the settings that the key stands for
        r<rank>/p-<key>          what an analysis' per_rank returned, one file
        sizes                    of every file that was written with a folder: it is whole when all have theirs
    locks/<entry key>            held shared by whoever reads the entry

Everything is written under a temporary name and renamed: a reader never sees half of it, and of two processes
that make the same thing one wins and the other's copy is dropped. What a crash of the machine cut short all the same
is seen by its size, dropped and made again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import time
import uuid
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

import msgspec

from tracetool.disguise import disguised
from tracetool.errors import StoreFailed
from tracetool.tables import SCHEMAS, empty

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import polars as pl

    from tracetool.tables import Tables

CACHE_BYTES = 20 * 10**9
"""How much the cache may hold; the entries used longest ago go first."""
_HASH_CHUNK = 1 << 20
_SPARED_S = 600
"""An entry used this recently is not evicted: a process that has just found it may not hold it yet."""
_LEFTOVER_S = 86_400
"""A temporary folder older than this belongs to a process that was killed."""
_HELD_BYTES = 16 << 20
"""Stored size of a rank up to which what has been read of it stays in memory: about ten times as much there."""
_SIZES = "sizes"
_KEY = re.compile(r"[\w-]{1,128}")


class Manifest(msgspec.Struct, frozen=True):
    """What an entry holds: the ranks as its file numbers them (None: tables of the run, not of a rank)."""

    ranks: list[int | None]


@dataclass(frozen=True)
class StoredRank:
    """The tables of one rank in the store, read column by column. Travels between processes: it holds paths only."""

    rank: int
    base: tuple[str, ...]
    """Folders of base tables, one a source; the first holds the events, if any does."""
    derived: str | None
    """Folder of derived tables; None when no source of this rank has events."""
    steps: tuple[int, ...] | None = None
    """Steps the user chose; table `steps` then holds only these."""
    names: tuple[tuple[str, str], ...] = ()
    """What hosts and files are called instead, in an anonymous report."""

    def files(self, name: str) -> list[Path]:
        """Return the files that hold the named table: several when several sources tell of this rank.

        Raises StoreFailed when a folder is gone: a table that vanished must not be taken for one nobody recorded.
        """
        folders = [Path(folder) for folder in (*self.base, *filter(None, [self.derived]))]
        found = [folder / f"{name}.parquet" for folder in folders]
        there = [path for path in found if path.exists()]
        if len(there) < len(found) and (gone := [folder for folder in folders if not folder.is_dir()]):
            raise StoreFailed(f"{gone[0]}: the tables of rank {self.rank} vanished from the cache; run again")
        return there

    def scan(self, name: str) -> pl.LazyFrame:
        """Return the named table as a lazy frame; typed and without rows when no source has it."""
        import polars as pl  # noqa: PLC0415 - the store is imported before a command knows whether it needs tables

        files = self.files(name)
        if not files:
            return (empty(name) if name in SCHEMAS else pl.DataFrame()).lazy()
        frame = pl.concat([pl.scan_parquet(path) for path in files], how="diagonal")
        if "rank" in frame.collect_schema().names():
            frame = frame.with_columns(rank=pl.lit(self.rank, dtype=pl.Int32))
        if name == "steps" and self.steps is not None:
            frame = frame.filter(pl.col("step").is_in(self.steps))
        return disguised(frame, dict(self.names)) if self.names else frame

    def table(self, name: str, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """Return the named table, or only `columns` of it, in stored order."""
        import polars as pl  # noqa: PLC0415 - see scan

        files = self.files(name)
        if self.names or len(files) > 1 or (name == "steps" and self.steps is not None):
            frame = self.scan(name)
            return (frame if columns is None else frame.select(columns)).collect()
        # one file, as nearly always: without a lazy frame it takes half the time, which counts with many ranks
        if files:
            found = pl.read_parquet(files[0], columns=None if columns is None else list(columns))
        else:
            found = empty(name) if name in SCHEMAS else pl.DataFrame()
        found = found if columns is None else found.select(columns)
        return found.with_columns(rank=pl.lit(self.rank, dtype=pl.Int32)) if "rank" in found.columns else found


@dataclass(frozen=True)
class HeldRank(StoredRank):
    """A rank whose columns stay in memory once read, while one question after the other asks for the same ones."""

    held: dict[str, pl.DataFrame] = field(default_factory=dict, compare=False, repr=False)

    def table(self, name: str, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """Return the named table, or only `columns` of it, in stored order."""
        known = self.held.get(name)
        wanted = columns if columns is not None else self.scan(name).collect_schema().names()
        missing = [column for column in wanted if known is None or column not in known.columns]
        if known is None or missing:
            more = super().table(name, missing)
            known = self.held[name] = more if known is None else known.hstack(more)
        return known.select(wanted)


def held(rank: StoredRank) -> StoredRank:
    """Return the rank so that it keeps what it reads, unless its tables are large."""
    folders = (*rank.base, *filter(None, [rank.derived]))
    size = sum(entry.stat().st_size for folder in folders for entry in os.scandir(folder))
    return HeldRank(rank.rank, rank.base, rank.derived, rank.steps, rank.names) if size <= _HELD_BYTES else rank


class Store:
    """A root directory and the promise that what is in it is whole. Use as a context manager or call close()."""

    def __init__(self, root: Path | None) -> None:
        """Open the cache below `root`, or a temporary store that goes away on close when `root` is None.

        Raises OSError when nothing can be written there.
        """
        self._temporary = tempfile.TemporaryDirectory(prefix="tracetool-") if root is None else None
        self.root = Path(self._temporary.name) if self._temporary else root or Path()
        self._locks: dict[str, IO[str]] = {}
        for folder in ("index", "entries", "locks"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        probe = self.root / "entries" / f".{uuid.uuid4().hex}"
        probe.write_bytes(b"1")  # a directory that exists may still be read-only, or its disk full
        probe.unlink()

    @property
    def persistent(self) -> bool:
        """Whether the store outlives this object."""
        return self._temporary is None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of every entry and bring the cache back below its limit."""
        for lock in self._locks.values():
            lock.close()
        self._locks.clear()
        if self._temporary:
            self._temporary.cleanup()
        elif self.root.is_dir():
            evict(self.root, CACHE_BYTES, spare_s=_SPARED_S)

    def hold(self, key: str) -> None:
        """Keep an entry from being evicted until close; also marks it as used now."""
        if key not in self._locks:
            with contextlib.suppress(OSError):  # some network file systems have no locks
                self._locks[key] = _lock(self.root, key, fcntl.LOCK_SH)
        touch(self.root, key)


def touch(root: Path, key: str) -> None:
    """Mark an entry as used now."""
    with contextlib.suppress(OSError):
        os.utime(entry_path(root, key) / "manifest")


def _lock(root: Path, key: str, how: int) -> IO[str]:
    handle = (root / "locks" / key).open("a")
    try:
        fcntl.flock(handle, how)
    except OSError:
        handle.close()
        raise
    return handle


def entry_path(root: Path, key: str) -> Path:
    """Return the folder of an entry, whether it is there or not."""
    return root / "entries" / key


def manifest(root: Path, key: str) -> Manifest | None:
    """Return what an entry holds; None when the entry is not there or not whole."""
    entry = entry_path(root, key)
    try:
        found = msgspec.json.decode((entry / "manifest").read_bytes(), type=Manifest)
    except (OSError, ValueError):
        return None
    return found if whole(entry) else None


def whole(folder: Path) -> bool:
    """Say whether every file that was written with a folder is there and as long as it was."""
    try:
        sizes = msgspec.json.decode((folder / _SIZES).read_bytes(), type=dict[str, int])
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def write_table(path: Path, table: pl.DataFrame) -> None:
    """Write one table into a folder that others may be reading: under another name, then renamed."""
    temporary = path.parent / f".{uuid.uuid4().hex}"
    table.write_parquet(temporary, compression="lz4")
    temporary.replace(path)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file into a folder that others may be reading: under another name, then renamed."""
    temporary = path.parent / f".{uuid.uuid4().hex}"
    temporary.write_bytes(content)
    temporary.replace(path)


def tables_key(text: str, tables: Iterable[pl.DataFrame]) -> str:
    """Return a key of a text and of the content of some tables."""
    import polars as pl  # noqa: PLC0415 - see StoredRank.scan

    digest = hashlib.blake2b(text.encode(), digest_size=20)
    for table in tables:
        buffer = BytesIO()
        # categories are numbered as a process comes across them
        table.with_columns(pl.col(pl.Categorical).cast(pl.String)).write_ipc(buffer)
        digest.update(buffer.getbuffer())
    return digest.hexdigest()


def drop(folder: Path) -> None:
    """Remove a damaged folder at once, if it is there: it is renamed first, so that nobody takes it for whole."""
    gone = folder.parent / f".{uuid.uuid4().hex}"
    with contextlib.suppress(OSError):
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def drop_unreadable(rank: StoredRank) -> bool:
    """Drop the entries of a rank of which a table cannot be read any more, and say whether there was one."""
    import polars as pl  # noqa: PLC0415 - see StoredRank.scan

    dropped = False
    for folder in (*rank.base, *filter(None, [rank.derived])):
        for path in sorted(Path(folder).glob("*.parquet")):
            try:
                pl.read_parquet(path)
            except (OSError, pl.exceptions.PolarsError):
                drop(Path(folder) if folder == rank.derived else Path(folder).parent)
                dropped = True
                break
    return dropped


def stat_key(path: Path, code: str) -> str:
    """Return a key of a file or folder as it stands on disk: every file's path, size, mtime and inode, and the code."""
    digest = hashlib.blake2b(code.encode(), digest_size=20)
    for file in _files(path):
        stat = file.stat()
        digest.update(os.fsencode(file.resolve()))
        digest.update(f"\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ino}\0".encode())
    return digest.hexdigest()


def content_key(path: Path, code: str) -> str:
    """Return a key of a file's or folder's content and of the code that is to read it."""
    digest = hashlib.sha256(code.encode())  # processors have instructions for it: half the time of BLAKE2
    for file in _files(path):
        digest.update((os.fsencode(file.name) if file != path else b"") + b"\0")
        with file.open("rb") as stream:
            while chunk := stream.read(_HASH_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()[:40]


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def indexed(root: Path, key: str) -> str | None:
    """Return the entry that holds the file with this stat key, if the cache knows it and still has it."""
    try:
        entry = (root / "index" / key).read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    return entry if _KEY.fullmatch(entry) and manifest(root, entry) else None


def index(root: Path, key: str, entry: str) -> None:
    """Remember that the file with this stat key is held by `entry`."""
    temporary = root / "index" / f".{uuid.uuid4().hex}"
    with contextlib.suppress(OSError):  # a full disk: the content's hash will find the entry
        temporary.write_text(entry, encoding="ascii")
        temporary.replace(root / "index" / key)


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `target` when the block ends well, unless another process was first.

    Raises StoreFailed when the folder, or what the block writes into it, cannot be written.
    """
    temporary = target.parent / f".{uuid.uuid4().hex}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        sizes = {str(path.relative_to(temporary)): path.stat().st_size for path in files}
        (temporary / _SIZES).write_bytes(msgspec.json.encode(sizes))
        if target.is_dir() and not whole(target):
            drop(target)
        try:
            temporary.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    except OSError as error:
        reason = f"tables cannot be written below {target.parent} ({error.strerror or error})"
        raise StoreFailed(f"{reason}; make room there, or set TMPDIR and --cache to places that have it") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_tables(folder: Path, tables: Mapping[str, pl.DataFrame]) -> None:
    """Write each table that has rows as `<table>.parquet`; row order is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        if table.height:
            table.write_parquet(folder / f"{name}.parquet", compression="lz4", statistics=False)


def read_tables(folder: Path) -> Tables:
    """Read every table of a folder."""
    import polars as pl  # noqa: PLC0415 - see StoredRank.scan

    return {path.stem: pl.read_parquet(path) for path in sorted(folder.glob("*.parquet"))}


def write_manifest(folder: Path, ranks: Sequence[int | None]) -> None:
    """Write what an entry holds: the last thing written, so an entry with a manifest is whole."""
    (folder / "manifest").write_bytes(msgspec.json.encode(Manifest(ranks=list(ranks))))


def evict(root: Path, limit_bytes: int, *, spare_s: float = 0) -> None:
    """Remove the entries used longest ago until the rest fits; an entry that some process reads stays.

    So does one used in the last `spare_s` seconds. What killed processes left behind goes too.
    """
    now = time.time()
    for left in (*(root / "entries").glob(".*"), *(root / "entries").glob("*/r*/.*"), *(root / "index").glob(".*")):
        with contextlib.suppress(OSError):
            if now - left.stat().st_mtime > _LEFTOVER_S:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
    entries = [
        (_mtime(entry / "manifest"), entry.name, _bytes_below(entry))
        for entry in (root / "entries").iterdir()
        if not entry.name.startswith(".")
    ]
    total = sum(size for _, _, size in entries)
    gone = set()
    for used, key, size in sorted(entries):
        if total <= limit_bytes:
            break
        if now - used < spare_s:
            continue
        try:
            lock = _lock(root, key, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # held by a reader, or a file system without locks
            continue
        with lock:
            drop(entry_path(root, key))
        gone.add(key)
        total -= size
    for known in (root / "index").iterdir() if gone else ():
        with contextlib.suppress(OSError, ValueError):
            if known.read_text(encoding="ascii") in gone:
                known.unlink()


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _bytes_below(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # another process may be evicting, too
            total += path.stat().st_size if path.is_file() else 0
    return total
