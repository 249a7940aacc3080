"""NVIDIA Nsight Systems: exports as SQLite or as a directory of Parquet or Arrow files; reports through nsys.

Format: the tables of `nsys export` (NVIDIA Nsight Systems User Guide, "Exporter", and the schema that ships with each
version, 2021 to 2026: schema none, 3.0 to 3.25). The version is never asked: columns are found by looking, one
that is missing is null. All times are ns. Names are numbers into `StringIds`. RUNTIME holds runtime and driver calls.

A file may hold several processes. The number that ties a launch to its work is unique in a process only, so
everything is keyed by process; a rank is one process on one device. Environment variables, process output, paths and
command lines are never copied: of the environment only the variables that name a rank are looked at.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import polars as pl
from tracetool.parsers import (  # type: ignore[import-not-found]  # mapped at install time
    _nsight_facts,
    _nsight_places,
    _nsight_rows,
)

from tracetool.errors import UnreadableTrace
from tracetool.raw import columnar
from tracetool.raw.columnar import SQLITE_MAGIC
from tracetool.tables import conform, empty, frame

if TYPE_CHECKING:
    from tracetool.raw.columnar import Columnar
    from tracetool.registry import ParseOptions
    from tracetool.tables import Tables

FORMAT = "nsight"
SEVERAL_RANKS = True
CONVERT = ("nsys", "export", "-t", "sqlite", "-f", "true", "-q", "true", "-o", "{target}", "{source}")
"""Makes an export of a report; `--include-blobs=true` is added where nsys knows it."""

_REPORTS: Final = (".nsys-rep", ".qdrep")
_OWN_TABLES: Final = frozenset(
    {
        "StringIds",
        "NVTX_EVENTS",
        "META_DATA_EXPORT",
        "EXPORT_META_DATA",
        "META_DATA_CAPTURE",
        "TARGET_INFO_SYSTEM_ENV",
        "TARGET_INFO_SESSION_START_TIME",
    }
)
_KERNELS: Final = "CUPTI_ACTIVITY_KIND_KERNEL"
_COLUMNS: Final = (b"CUPTI_ACTIVITY_KIND_", b"NVTX_EVENTS", b"StringIds", b"globalTid", b"globalPid")
_MESSAGES: Final = re.compile(rb"""["']?\b(?:CudaEvent|NvtxEvent|TraceProcessEvent|OsRuntimeEvent)\b["']?\s*[:{]""")
_OTHER_EXPORTS: Final = ((b"\x89HDF\r\n\x1a\n", "HDF5"), (b"\xff\xff\xff\xff", "one Arrow stream"))
_NEWER: Final = re.compile(r"version \(([^)]*)\), newer than your current version \(([^)]*)\)")
_EXPORT_SECONDS: Final = 3600


def sniff(path: Path, head: bytes) -> bool:
    """Say whether this is an export or a report of nsys, damaged ones included."""
    if path.is_dir():
        try:
            names = {file.stem for file in path.iterdir() if file.suffix in (".parquet", ".arrow")}
        except OSError:  # a folder that may not be listed holds nothing for anybody
            return False
        return bool(names & _OWN_TABLES) or _KERNELS in names
    if path.name.endswith((*_REPORTS, ".qdstrm")):
        return path.suffix == ".qdstrm" or _export_beside(path) is None
    if head.startswith(SQLITE_MAGIC):
        tables = columnar.sqlite_tables(path)
        if not tables:  # damaged: the text of its tables may still stand in the first pages
            return b"CUPTI_ACTIVITY_KIND_" in head or b"StringIds" in head
        return bool(tables & _OWN_TABLES) or (_KERNELS in tables and "StringTable" not in tables)
    # an interrupted export has a header of zeros, or nothing
    return path.suffix == ".sqlite" and not head[:16].strip(b"\0")


def why_not_read(path: Path, head: bytes) -> str | None:
    """Say of a report whose export stands beside it, and of an export in a form that lacks data, what to read."""
    if path.name.endswith(_REPORTS) and (export := _export_beside(path)):
        return (
            f"its export {export.name} stands beside it: that is what to read; without that file the report is exported"
        )
    form = next((name for magic, name in _OTHER_EXPORTS if head.startswith(magic)), None)
    if form and not any(word in head for word in _COLUMNS):
        return None
    if not form and _MESSAGES.search(head) and b'"traceEvents"' not in head:
        form = "JSON" if head.lstrip()[:1] in (b"{", b"[") else "text"
    if not form:
        return None
    report = f"{path.stem}.nsys-rep"
    return (
        f"an Nsight Systems export as {form}, which is not read; make one that is: "
        f"nsys export -t sqlite -o {path.stem}.sqlite {report}"
    )


def _export_beside(report: Path) -> Path | None:
    """Return the export of a report that nsys left next to it, unless that was interrupted."""
    file = report.with_suffix(".sqlite")
    if file.is_file() and columnar.sqlite_tables(file) & _OWN_TABLES:
        return file
    folders = (report.with_name(f"{report.stem}_{kind}") for kind in ("pqtdir", "arwdir"))
    return next((folder for folder in folders if folder.is_dir() and sniff(folder, b"")), None)


def parse(path: Path, options: ParseOptions) -> Tables:
    """Read one export, or export a report into a temporary folder and read that.

    A cut or damaged export gives what can be read, and `sources` says what could not. Raises UnreadableTrace for
    an export that was interrupted, is no export, lacks a column without which nothing can be placed, or is empty,
    and for a report when nsys is absent or refuses it.
    """
    with ExitStack() as stack:
        readable = path
        if path.is_file() and path.name.endswith((*_REPORTS, ".qdstrm")):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tracetool-nsys-")))
            readable = _export(path, folder / "report.sqlite", options.display_path)
        try:
            source = stack.enter_context(
                columnar.open_directory(readable, options.display_path)
                if readable.is_dir()
                else columnar.open_sqlite(readable, options.display_path)
            )
        except OSError as error:
            raise UnreadableTrace(options.display_path, f"cannot be read ({error.strerror or error})") from None
        return _tables(source, path, options)


def _export(report: Path, target: Path, display: str) -> Path:
    """Run `nsys export` on a report. Raises UnreadableTrace with what to do next when that is not possible."""
    if report.name.endswith(".qdstrm"):
        raise UnreadableTrace(
            display, "is a raw capture: nsys makes a report of it first (QdstrmImporter --input-file FILE)"
        )
    words = [word.format(source=report, target=target) for word in CONVERT]
    by_hand = f"nsys export -t sqlite -o {report.stem}.sqlite {report.name}"
    nsys = shutil.which("nsys")
    if nsys is None:
        raise UnreadableTrace(
            display, f"is a report only nsys can open, and nsys is not on PATH; run where it is: {by_hand}"
        )
    try:
        usage = subprocess.run(  # noqa: S603 - the user's own nsys, no shell
            [nsys, "export", "--help"], capture_output=True, text=True, timeout=60, check=False
        )
        blobs = ["--include-blobs=true"] if "--include-blobs" in usage.stdout + usage.stderr else []
        made = subprocess.run(  # noqa: S603 - same; the path is one argument, whatever it holds
            [nsys, *words[1:-1], *blobs, words[-1]],
            capture_output=True,
            text=True,
            timeout=_EXPORT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnreadableTrace(display, f"nsys could not export it ({error}); run: {by_hand}") from None
    said = made.stderr + made.stdout
    if newer := _NEWER.search(said):
        reason = f"was made by nsys {newer[1]} and the nsys on PATH is {newer[2]}, which cannot open newer reports"
        raise UnreadableTrace(display, f"{reason}; export it with nsys {newer[1]} or later: {by_hand}")
    if "Cannot read from stream" in said:
        raise UnreadableTrace(display, "the report was cut or is empty: nsys cannot read it; copy it again")
    if made.returncode or not target.is_file():
        last = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "no message")
        raise UnreadableTrace(display, f"nsys export failed: {last[:300]}")
    return target


def _tables(source: Columnar, path: Path, options: ParseOptions) -> Tables:
    display = options.display_path
    if not source.tables.keys() & _OWN_TABLES and _KERNELS not in source.tables:
        some = ", ".join(sorted(source.tables)[:5]) or "no table"
        reason = f"holds no table of an Nsight Systems export (it has {some}); make one with nsys export"
        raise UnreadableTrace(display, "; ".join([*source.notes, reason]))
    facts = _nsight_facts.read_facts(source)
    rows = _nsight_rows.read_rows(source)
    if not any(part.height for part in rows.parts()):
        had = ", ".join(sorted(t for t in source.tables if t.startswith(("CUPTI", "NVTX"))))
        reason = "holds neither GPU activity nor API calls nor NVTX ranges"
        hint = f"tables there: {had}" if had else "record with nsys profile --trace=cuda,nvtx"
        raise UnreadableTrace(display, "; ".join([*source.notes, f"{reason} ({hint})"]))
    places, notes = _nsight_places.places(rows, facts, display)
    placed = _nsight_places.place(rows, places)
    notes += placed.notes
    tables = _assemble(placed, rows)
    tables["ranks"] = _ranks(places, facts, tables)
    tables["process_groups"] = conform("process_groups", placed.groups)
    notes = [*source.notes, *rows.notes, *notes, *facts.notes]
    tables["sources"] = frame(
        "sources",
        {
            "path": [display],
            "format": [FORMAT],
            "bytes": [_size(path)],
            "events": [tables["events"].height],
            "dropped": [rows.dropped],
            "repaired": [rows.repaired],
            "complete": [source.complete],
            "notes": [list(dict.fromkeys(notes))],
        },
    )
    return tables


def _assemble(placed: _nsight_places.Placed, rows: _nsight_rows.Rows) -> Tables:
    """Sort every rank's events, number them and its tracks, and let the side tables point at them."""
    events = placed.events
    keys = ["rank", "kind", "device", "stream", "thread", "lane"]
    tracks = (
        events.select(keys)
        .unique()
        .sort(keys, nulls_last=True)
        .with_columns(track=pl.int_range(pl.len(), dtype=pl.Int32).over("rank"))
    )
    events = events.join(tracks, on=keys, how="left", nulls_equal=True, maintain_order="left")
    order = events.select(
        pl.arg_sort_by(["rank", "start_ns", "dur_ns", "uid"], descending=[False, False, True, False])
    ).to_series()
    events = events[order].with_columns(event=pl.int_range(pl.len(), dtype=pl.Int64).over("rank"))
    by_uid = np.zeros(events.height, np.int64)
    by_uid[events["uid"].to_numpy()] = events["event"].to_numpy()

    def side(table: str, given: pl.DataFrame) -> pl.DataFrame:
        numbered = given.with_columns(event=pl.Series(by_uid[given["uid"].to_numpy()], dtype=pl.Int64))
        return conform(table, numbered.sort("rank", "event"))

    return {
        "events": conform("events", events),
        "tracks": conform("tracks", _nsight_places.describe_tracks(tracks, rows)),
        "copies": side("copies", placed.copies),
        "syncs": side("syncs", placed.syncs),
        "op_shapes": side("op_shapes", placed.shapes),
        "comm_args": side("comm_args", placed.comms),
        "counters": empty("counters"),
    }


def _ranks(places: pl.DataFrame, facts: _nsight_facts.Facts, tables: Tables) -> pl.DataFrame:
    """Return table `ranks`: shapes were recorded where operators have any, were not where none has."""
    ops = tables["events"].filter(pl.col("category") == "cpu_op")["rank"].unique()
    shaped = tables["op_shapes"].filter(pl.col("input_dims").is_not_null())["rank"].unique()
    rank = pl.col("rank")
    return conform(
        "ranks",
        places.with_columns(
            host=pl.lit(facts.host, pl.String),
            host_source=pl.lit("metadata" if facts.host else None, pl.String),
            base_unix_ns=pl.lit(facts.base_unix_ns, pl.Int64),
            versions=pl.lit(facts.versions, pl.String),
            format=pl.lit(FORMAT),
            record_shapes=pl.when(rank.is_in(ops.to_list())).then(rank.is_in(shaped.to_list())),
            trace_start_ns=pl.lit(facts.start_ns, pl.Int64),
            trace_end_ns=pl.lit(facts.end_ns, pl.Int64),
        ).sort("rank"),
    )


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir()) if path.is_dir() else path.stat().st_size
