"""Results kept for the next report: what `analyze` and the pricing of findings gave, under a key of all they saw.

One file an answer in a cache entry of its own (`results-<key>`): a SHA-256 of the rest, then MessagePack
(https://msgpack.org) with tables as Arrow IPC. A file whose digest does not match counts as none. The entry's key holds
the settings and the files they name, the ranks' stored tables, the join and the view of the run; the file's name holds
the code.
"""

from __future__ import annotations

import contextlib
import hashlib
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tracetool import store
from tracetool.read import code_key, core_key
from tracetool.results import Chart, Finding, Headline, Result, Where

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl

    from tracetool.joined import Joined
    from tracetool.registry import RunView
    from tracetool.settings import Settings
    from tracetool.store import Store, StoredRank

_TABLE: Final = 1
"""Number of the MessagePack extension that holds a table."""
_DIGEST_BYTES: Final = 32


class Answers:
    """The kept answers of one run under one set of settings; keeps nothing in a store that goes away."""

    def __init__(
        self, opened: Store, view: RunView, ranks: Sequence[StoredRank], joined: Joined, settings: Settings
    ) -> None:
        self._folder: Path | None = None
        if opened.persistent:
            key = _key(view, ranks, joined, settings)
            opened.hold(key)
            self._folder = store.entry_path(opened.root, key)

    def result(self, name: str) -> Result | None:
        """Return the kept result of an analysis; None when there is none."""
        found = self._read(_of_analysis(name))
        return None if found is None else _result(found)

    def keep_result(self, name: str, result: Result) -> None:
        """Keep the result of an analysis; not an error, which is to be seen again."""
        if result.status != "error":
            self._write(_of_analysis(name), result)

    def priced(self, findings: Sequence[Finding]) -> tuple[Finding, ...] | None:
        """Return these findings priced, if they have been before."""
        found = None if self._folder is None else self._read(_of_findings(findings))
        return None if found is None else tuple(_finding(one) for one in found)

    def keep_priced(self, findings: Sequence[Finding], priced: Sequence[Finding]) -> None:
        """Keep what came of pricing these findings."""
        if self._folder is not None:
            self._write(_of_findings(findings), list(priced))

    def _read(self, name: str) -> Any:  # noqa: ANN401 - whatever `pack` was given, as plain values
        if self._folder is None:
            return None
        try:
            content = (self._folder / name).read_bytes()
        except OSError:
            return None
        digest, body = content[:_DIGEST_BYTES], memoryview(content)[_DIGEST_BYTES:]
        return unpack(body) if hashlib.sha256(body).digest() == digest else None

    def _write(self, name: str, answer: Result | list[Finding]) -> None:
        if self._folder is None:
            return
        # a full disk, or an integer beyond 64 bits: it is computed again next time
        with contextlib.suppress(OSError, OverflowError):
            body = pack(answer)
            self._folder.mkdir(parents=True, exist_ok=True)
            if not (self._folder / "manifest").exists():
                store.write_manifest(self._folder, [])
            store.write_whole(self._folder / name, hashlib.sha256(body).digest() + body)


def pack(value: Result | list[Finding]) -> bytes:
    """Return a result or findings as MessagePack."""
    return msgspec.msgpack.encode(value, enc_hook=_packed_table)


def unpack(body: bytes | memoryview) -> Any:  # noqa: ANN401 - plain values and tables
    """Return what `pack` was given as mappings, lists and tables."""
    return msgspec.msgpack.decode(body, ext_hook=_table)


def _packed_table(table: Any) -> msgspec.msgpack.Ext:  # noqa: ANN401 - msgspec hands over whatever it does not know
    buffer = BytesIO()
    table.write_ipc(buffer, compression="lz4")
    return msgspec.msgpack.Ext(_TABLE, buffer.getvalue())


def _table(_: int, data: memoryview) -> pl.DataFrame:
    import polars as pl  # noqa: PLC0415 - keeps `--help` fast

    return pl.read_ipc(BytesIO(data))


def _result(found: dict[str, Any]) -> Result:
    metrics = {name: tuple(v) if isinstance(v, list) else v for name, v in found["metrics"].items()}
    return Result(
        **{
            **found,
            "metrics": metrics,
            "headline": [Headline(**one) for one in found["headline"]],
            "findings": [_finding(one) for one in found["findings"]],
            "charts": [Chart(**{**one, "y": tuple(one["y"])}) for one in found["charts"]],
        }
    )


def _finding(found: dict[str, Any]) -> Finding:
    where: dict[str, Any] = {name: None if value is None else tuple(value) for name, value in found["where"].items()}
    evidence = tuple((table, tuple(rows)) for table, rows in found["evidence"])
    return Finding(**{**found, "where": Where(**where), "evidence": evidence})


def _of_analysis(name: str) -> str:
    return f"{name}-{hashlib.blake2b(code_key('tracetool.analyses', name).encode(), digest_size=16).hexdigest()}"


def _of_findings(findings: Sequence[Finding]) -> str:
    digest = hashlib.blake2b(core_key().encode(), digest_size=16)
    digest.update(pack(list(findings)))
    return f"priced-{digest.hexdigest()}"


def _key(view: RunView, ranks: Sequence[StoredRank], joined: Joined, settings: Settings) -> str:
    """Return a key of all that `analyze` may look at.

    The tables of the join follow from its folder, the ranks and the view.
    """
    files = [
        hashlib.sha256(Path(name).read_bytes()).hexdigest()
        for name in (settings.hosts, settings.model, settings.nccl_tests)
        if name is not None and Path(name).is_file()
    ]
    told = (view.path, view.world_size, sorted(view.features.items()), list(view.notes))
    text = f"{settings} {files} {list(ranks)} {joined.folder} {sorted(joined.groups_of.items())} {told}"
    more = (table for _, table in sorted(view.joined.items()))
    return f"results-{store.tables_key(text, [view.ranks, view.sources, view.steps, view.quality, *more])}"
