"""The Parquet store and cache: where tables lie between the jobs of a run, and between runs.

Layout below the root, which is the cache directory or a temporary one (`--cache off`):

    index/<stat key>             text: the entry that holds this very file (path, size, mtime, inode)
    entries/<entry key>/         one source, keyed by its content and by the code that read it
        manifest                 pickled by no one: plain JSON, written last
        r<rank>/<table>.parquet  base tables of one rank, the rank as the file numbers it; `run` for none
        r<rank>/d-<key>/…        tables derived under the settings that the key stands for
        r<rank>/p-<key>/…        what an analysis' per_rank returned
    locks/<entry key>            held shared by whoever reads the entry

Everything is written under a temporary name and renamed: a reader never sees half of it, and of two processes
that make the same thing one wins and the other's copy is dropped.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

import msgspec

from tracetool.tables import SCHEMAS, empty

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import polars as pl

    from tracetool.tables import Tables

CACHE_BYTES = 20 * 10**9
"""How much the cache may hold; the entries used longest ago go first."""
_HASH_CHUNK = 1 << 20


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

    def files(self, name: str) -> list[Path]:
        """Return the files that hold the named table: several when several sources tell of this rank."""
        folders = [self.derived] if self.derived else []
        found = [Path(folder, f"{name}.parquet") for folder in (*self.base, *folders)]
        return [path for path in found if path.exists()]

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
        return frame

    def table(self, name: str, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """Return the named table, or only `columns` of it, in stored order."""
        frame = self.scan(name)
        return (frame if columns is None else frame.select(columns)).collect()


class Store:
    """A root directory and the promise that what is in it is whole. Use as a context manager or call close()."""

    def __init__(self, root: Path | None) -> None:
        """Open the cache below `root`, or a temporary store that goes away on close when `root` is None."""
        self._temporary = tempfile.TemporaryDirectory(prefix="tracetool-") if root is None else None
        self.root = Path(self._temporary.name) if self._temporary else root or Path()
        self._locks: dict[str, IO[str]] = {}
        for folder in ("index", "entries", "locks"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)

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
            evict(self.root, CACHE_BYTES)

    def hold(self, key: str) -> None:
        """Keep an entry from being evicted until close; also marks it as used now."""
        if key not in self._locks:
            self._locks[key] = _lock(self.root, key, fcntl.LOCK_SH)
        with contextlib.suppress(FileNotFoundError):
            os.utime(entry_path(self.root, key) / "manifest")


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
    """Return what an entry holds; None when the entry is not there."""
    try:
        return msgspec.json.decode((entry_path(root, key) / "manifest").read_bytes(), type=Manifest)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


def stat_key(path: Path, code: str) -> str:
    """Return a key of a file or folder as it stands on disk: every file's path, size, mtime and inode, and the code."""
    digest = hashlib.blake2b(code.encode(), digest_size=20)
    for file in _files(path):
        stat = file.stat()
        digest.update(f"{file.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ino}\0".encode())
    return digest.hexdigest()


def content_key(path: Path, code: str) -> str:
    """Return a key of a file's or folder's content and of the code that is to read it."""
    digest = hashlib.blake2b(code.encode(), digest_size=20)
    for file in _files(path):
        digest.update(f"{file.name}\0".encode() if file != path else b"\0")
        with file.open("rb") as stream:
            while chunk := stream.read(_HASH_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def indexed(root: Path, key: str) -> str | None:
    """Return the entry that holds the file with this stat key, if the cache knows it and still has it."""
    try:
        entry = (root / "index" / key).read_text()
    except FileNotFoundError:
        return None
    return entry if manifest(root, entry) else None


def index(root: Path, key: str, entry: str) -> None:
    """Remember that the file with this stat key is held by `entry`."""
    temporary = root / "index" / f".{uuid.uuid4().hex}"
    temporary.write_text(entry)
    temporary.replace(root / "index" / key)


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `target` when the block ends well, unless another process was first."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{uuid.uuid4().hex}"
    temporary.mkdir()
    try:
        yield temporary
        try:
            temporary.rename(target)
        except OSError:
            if not target.is_dir():
                raise
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


def evict(root: Path, limit_bytes: int) -> None:
    """Remove the entries used longest ago until the rest fits; an entry that some process reads stays."""
    entries = []
    for entry in (root / "entries").iterdir():
        size = sum(file.stat().st_size for file in entry.rglob("*") if file.is_file())
        used = entry / "manifest"
        entries.append((used.stat().st_mtime_ns if used.exists() else 0, entry.name, size))
    total = sum(size for _, _, size in entries)
    for _, key, size in sorted(entries):
        if total <= limit_bytes:
            return
        try:
            lock = _lock(root, key, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        with lock:
            shutil.rmtree(entry_path(root, key), ignore_errors=True)
        total -= size
