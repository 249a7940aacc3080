"""Rows of an Nsight Systems export as frames with plain names: GPU work, API calls, synchronisations, ranges.

Every frame has `process` (host, virtual machine and process id: the upper bits of a globalTid) and times in ns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import polars as pl
from tracetool.parsers import _nsight_nccl as nccl  # type: ignore[import-not-found]  # mapped at install time
from tracetool.parsers import _nsight_types as types

from tracetool.errors import UnreadableTrace
from tracetool.nvtx import torch_names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tracetool.raw.columnar import Columnar, Wanted

ACTIVITY: Final = "CUPTI_ACTIVITY_KIND_"
TID_BITS: Final = 1 << 24
NO_NUMBER: Final = 0xFFFF_FFFF
"""What CUPTI writes for a stream or event that there is none of."""
_REQUIRED: Final = ("start", "end", "deviceId", "streamId")
_KERNEL_NAMES: Final = ("demangledName", "shortName", "mangledName")
_UNNAMED_KERNEL: Final = "unnamed kernel"
_COPY: Final = {
    0: "unknown", 1: "HtoD", 2: "DtoH", 3: "HtoA", 4: "AtoH", 5: "AtoA", 6: "AtoD", 7: "DtoA", 8: "DtoD", 9: "HtoH",
    10: "PtoP", 11: "HtoD", 12: "DtoH", 13: "DtoD",
}  # fmt: skip
_UNIFIED_COPY: Final = 11
_MEMORY: Final = {
    0: "Pageable", 1: "Pinned", 2: "Device", 3: "Array", 4: "Managed", 5: "Device Static", 6: "Managed Static",
    7: "Unknown",
}  # fmt: skip
_SYNC: Final = {1: "Event Sync", 2: "Stream Wait Event", 3: "Stream Sync", 4: "Context Sync"}
_OVERHEAD: Final = {
    2: "JIT compile", 3: "CUPTI buffer flush", 4: "instrumentation", 5: "resource", 6: "module loading",
    7: "lazy function loading", 8: "command buffer full",
}  # fmt: skip
_LARGEST_DEVICE: Final = (1 << 31) - 1
_MARK, _PUSH_POP, _START_END, _DOMAIN, _THREAD_NAME = 34, 59, 60, 75, 39


@dataclass
class Rows:
    """Everything of interest in one export, rows in file order."""

    gpu: pl.DataFrame
    """process, device, stream, start_ns, end_ns, correlation, category, name, bytes, direction"""
    api: pl.DataFrame
    """process, thread, start_ns, end_ns, correlation, name"""
    syncs: pl.DataFrame
    """process, device, stream, start_ns, end_ns, correlation, name, wait_on_stream, wait_on_correlation"""
    ranges: pl.DataFrame
    """process, thread, start_ns, end_ns, category, name, lane, sequence, input_dims, input_types, domain, …"""
    overhead: pl.DataFrame
    """process, thread, start_ns, end_ns, name"""
    thread_names: pl.DataFrame
    """thread, name"""
    notes: list[str] = field(default_factory=list)
    dropped: int = 0
    repaired: int = 0
    has_sizes: bool = False
    """NCCL's payloads were exported and decoded."""

    def parts(self) -> tuple[pl.DataFrame, ...]:
        """Return the frames that hold events, without the profiler's own."""
        return (self.gpu, self.api, self.ranges)


def read_rows(source: Columnar) -> Rows:
    """Read every table that is there, only the wanted columns, and join names to their numbers."""
    strings = source.read("StringIds", {"id": "int", "value": "text"}).unique("id", keep="first", maintain_order=True)
    notes: list[str] = []
    api = _api(source, strings)
    gpu = _gpu(source, strings, api, notes)
    ranges, domains = _nvtx(source, strings, notes)
    rows = Rows(
        gpu,
        api,
        _syncs(source),
        ranges,
        _overhead(source, strings),
        _thread_names(source, strings, domains),
        notes,
    )
    _repair(rows)
    rows.has_sizes = bool(ranges["message_bytes"].count())
    kinds = types.input_types(rows.gpu, rows.api, rows.ranges)
    rows.ranges = rows.ranges.with_columns(input_types=kinds)
    if told := kinds.count():
        notes.append(f"number formats of {told} operators were read from the names of their kernels, NVTX has none")
    return rows


def _process(column: str) -> pl.Expr:
    return (pl.col(column) // TID_BITS).alias("process")


def _named(given: pl.DataFrame, strings: pl.DataFrame, column: str, alias: str = "name") -> pl.DataFrame:
    """Replace a number into StringIds by its text."""
    names = strings.select(pl.col("id").alias(column), pl.col("value").alias(alias))
    return given.join(names, on=column, how="left", maintain_order="left").drop(column)


def _api(source: Columnar, strings: pl.DataFrame) -> pl.DataFrame:
    columns: Mapping[str, Wanted] = dict.fromkeys(("start", "end", "globalTid", "correlationId", "nameId"), "int")
    found = source.read(f"{ACTIVITY}RUNTIME", columns)
    plain = strings.with_columns(pl.col("value").str.replace(r"_v\d+$", ""))
    return _named(found, plain, "nameId").select(
        _process("globalTid"),
        thread="globalTid",
        start_ns="start",
        end_ns="end",
        correlation="correlationId",
        name=pl.col("name").fill_null("unnamed call"),
    )


def _gpu(source: Columnar, strings: pl.DataFrame, api: pl.DataFrame, notes: list[str]) -> pl.DataFrame:
    shared = ("start", "end", "deviceId", "streamId", "correlationId", "globalPid")
    parts = []
    for table, category in (("KERNEL", "kernel"), ("MEMCPY", "memcpy"), ("MEMSET", "memset"), ("GRAPH_TRACE", "graph")):
        full = ACTIVITY + table
        there = source.tables.get(full, ())
        if not there:
            continue
        missing = [name for name in _REQUIRED if name not in there]
        if table == "KERNEL" and not set(there) & set(_KERNEL_NAMES):
            missing.append(" or ".join(_KERNEL_NAMES))
        if missing:
            reason = f"table {full} has no column {', '.join(missing)}; export the report again with a current nsys"
            raise UnreadableTrace(source.display, reason)
        names = {
            "KERNEL": _KERNEL_NAMES,
            "MEMCPY": ("bytes", "copyKind", "srcKind", "dstKind"),
            "MEMSET": ("bytes", "memKind"),
            "GRAPH_TRACE": ("graphId",),
        }[table]
        rows = source.read(full, dict.fromkeys((*shared, *names), "int"))
        if rows.height and "globalPid" not in there:
            rows = rows.with_columns(globalPid=pl.lit(_only_process(api, full, notes), pl.Int64))
        described = _describe(rows, table, strings)
        if unnamed := described.filter(pl.col("name") == _UNNAMED_KERNEL).height:
            notes.append(f"{unnamed} kernels have no name: communication among them counts as compute")
        parts.append(described.with_columns(category=pl.lit(category)))
        if table == "GRAPH_TRACE" and rows.height:
            notes.append(
                f"{rows.height} CUDA graph replays were recorded as one row each: their kernels, and communication "
                "among them, cannot be told apart; record with nsys profile --cuda-graph-trace=node"
            )
    made = [
        part.select(
            _process("globalPid"),
            device=pl.col("deviceId"),
            stream=pl.col("streamId"),
            start_ns="start",
            end_ns="end",
            correlation=pl.when(pl.col("correlationId") != 0).then("correlationId"),
            category="category",
            name="name",
            bytes="bytes",
            direction="direction",
        )
        for part in parts
    ]
    nothing = dict.fromkeys(("process", "device", "stream", "start_ns", "end_ns", "correlation"), pl.Int64)
    schema = {**nothing, "category": pl.String, "name": pl.String, "bytes": pl.Int64, "direction": pl.String}
    found = pl.concat([pl.DataFrame(schema=schema), *made])
    unknown = found["process"].null_count()
    if unknown:
        only = _only_process(api, "GPU activity", notes) // TID_BITS
        found = found.with_columns(pl.col("process").fill_null(only))
    return found


def _only_process(api: pl.DataFrame, table: str, notes: list[str]) -> int:
    """Return the process of an export that does not name it (as a globalPid): the one that made API calls, or 0."""
    processes = api["process"].drop_nulls().unique().sort().to_list()
    notes.append(f"{table} does not say of which process: one process is assumed")
    return int(processes[0]) * TID_BITS if len(processes) == 1 else 0


def _describe(rows: pl.DataFrame, table: str, strings: pl.DataFrame) -> pl.DataFrame:
    """Add name, bytes and direction to GPU rows."""
    none = pl.lit(None, pl.String)
    if table == "KERNEL":
        for column in _KERNEL_NAMES:
            rows = _named(rows, strings, column, f"{column}_text")
        text = pl.coalesce(*(f"{column}_text" for column in _KERNEL_NAMES), pl.lit(_UNNAMED_KERNEL))
        return rows.with_columns(name=text, bytes=pl.lit(None, pl.Int64), direction=none)
    if table == "GRAPH_TRACE":
        text = pl.format("CUDA graph {}", pl.col("graphId").cast(pl.String).fill_null("?"))
        return rows.with_columns(name=text, bytes=pl.lit(None, pl.Int64), direction=none)

    def word(column: str, table: Mapping[int, str]) -> pl.Expr:
        return pl.col(column).replace_strict(table, default="Unknown", return_dtype=pl.String)

    if table == "MEMSET":
        return rows.with_columns(name=pl.format("Memset ({})", word("memKind", _MEMORY)), direction=none)
    direction = word("copyKind", _COPY)
    unified = pl.when(pl.col("copyKind") >= _UNIFIED_COPY).then(pl.lit("Unified ")).otherwise(pl.lit(""))
    text = pl.format("Memcpy {}{} ({} -> {})", unified, direction, word("srcKind", _MEMORY), word("dstKind", _MEMORY))
    return rows.with_columns(name=text, direction=direction)


def _syncs(source: Columnar) -> pl.DataFrame:
    """Read synchronisations; a stream's wait is joined to the latest record of its event before it."""
    names = ("start", "end", "deviceId", "streamId", "correlationId", "globalPid", "syncType", "eventId")
    found = source.read(f"{ACTIVITY}SYNCHRONIZATION", dict.fromkeys(names, "int")).with_row_index("row")
    events = source.read(
        f"{ACTIVITY}CUDA_EVENT", dict.fromkeys(("streamId", "correlationId", "globalPid", "eventId"), "int")
    )
    records = (
        events.drop_nulls(["correlationId", "globalPid", "eventId"])
        .select("globalPid", "eventId", "correlationId", wait_on_stream="streamId", wait_on_correlation="correlationId")
        .sort("correlationId", "wait_on_stream")
    )
    waits = (
        found.filter((pl.col("syncType") == 2) & pl.col("correlationId").is_not_null())  # noqa: PLR2004 - stream waits
        .select("row", "globalPid", "eventId", "correlationId")
        .sort("correlationId", "row")
        .join_asof(
            records, on="correlationId", by=["globalPid", "eventId"], strategy="backward", check_sortedness=False
        )
        .select("row", "wait_on_stream", "wait_on_correlation")
    )
    return found.join(waits, on="row", how="left", maintain_order="left").select(
        _process("globalPid"),
        device="deviceId",
        stream=pl.when(pl.col("streamId") != NO_NUMBER).then("streamId"),
        start_ns="start",
        end_ns="end",
        correlation="correlationId",
        name=pl.col("syncType").replace_strict(_SYNC, default="Unknown Sync", return_dtype=pl.String),
        wait_on_stream="wait_on_stream",
        wait_on_correlation="wait_on_correlation",
    )


def _nvtx(source: Columnar, strings: pl.DataFrame, notes: list[str]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Read ranges and marks, and apart from them the rows that name threads."""
    names: dict[str, Wanted] = dict.fromkeys(
        ("start", "end", "eventType", "globalTid", "endGlobalTid", "textId", "domainId"), "int"
    )
    names |= {"text": "text", "binaryData": "bytes"}
    found = source.read("NVTX_EVENTS", names, keep=("eventType", (_MARK, _PUSH_POP, _START_END, _DOMAIN, _THREAD_NAME)))
    found = (
        _named(found, strings, "textId", "by_id").with_columns(full=pl.coalesce("text", "by_id")).drop("text", "by_id")
    )
    titles = found.filter(pl.col("eventType") == _THREAD_NAME).select(thread="globalTid", name="full").drop_nulls()
    domains = found.filter(pl.col("eventType") == _DOMAIN).select("domainId", domain_name="full")
    kind = pl.col("eventType")
    ranges = found.filter(kind.is_in([_MARK, _PUSH_POP, _START_END]) & pl.col("globalTid").is_not_null())
    ranges = ranges.with_columns(pl.col("full").fill_null("unnamed range"), domain=pl.col("domainId").fill_null(0))
    # a domain is NCCL's when it says so, or when all its names are (the rows that name domains may be missing)
    named = domains.filter(pl.col("domain_name") == "NCCL")["domainId"].to_list()
    alike = (
        ranges.group_by("domain")
        .agg(pl.col("full").str.contains(nccl.NCCL_NAME).all())
        .filter(pl.col("full") & (pl.col("domain") != 0))["domain"]
        .to_list()
    )
    ours = sorted({*named, *alike})
    ranges = ranges.with_columns(is_nccl=pl.col("domain").is_in(ours))
    payload = _payloads(source, ranges, notes)
    torch = torch_names(ranges["full"])
    is_op = torch["is_op"] & ~ranges["is_nccl"]
    category = (
        pl.when(pl.col("eventType") == _MARK)
        .then(pl.lit("instant"))
        .when(pl.Series(is_op))
        .then(pl.lit("cpu_op"))
        .when("is_nccl")  # a library's own ranges are no part of the program's structure
        .then(pl.lit("other"))
        .otherwise(pl.lit("annotation"))
    )
    made = ranges.select(
        _process("globalTid"),
        thread="globalTid",
        start_ns="start",
        end_ns=pl.when(pl.col("eventType") == _MARK).then("start").otherwise("end"),
        category=category,
        name=torch["name"],
        # a range that starts and ends anywhere may cross others: it must not enter the stack of its thread
        lane=pl.when(pl.col("eventType") == _START_END).then(pl.lit("start/end ranges")),
        sequence=torch["sequence"],
        input_dims=torch["input_dims"],
        domain="domain",
        is_nccl="is_nccl",
    )
    return made.hstack(payload), titles


def _payloads(source: Columnar, ranges: pl.DataFrame, notes: list[str]) -> pl.DataFrame:
    """Decode NCCL's payloads, or say why there are none and how to get them."""
    nothing = pl.DataFrame({name: pl.Series([None] * ranges.height, dtype=pl.Int64) for name in nccl.PAYLOAD})
    if not ranges["is_nccl"].any():
        return nothing
    blobs = pl.select(pl.when(ranges["is_nccl"]).then(ranges["binaryData"])).to_series()
    if not blobs.count():
        notes.append(
            "sizes, peers and communicators of NCCL calls were not exported, so bandwidth cannot be computed and "
            "communications are matched by order; export again with nsys export --include-blobs=true"
        )
        return nothing
    schemas = source.read(
        "NVTX_PAYLOAD_SCHEMA_ENTRIES",
        {"schemaId": "int", "name": "text", "type": "int", "offset": "int"},
    ).select(schema="schemaId", field="name", type="type", offset="offset")
    made: pl.DataFrame = nccl.decode_payloads(blobs, schemas)
    bad = int(made["undecoded"].sum())
    if bad:
        notes.append(f"{bad} of {blobs.count()} NCCL payloads have a layout that is not known: their sizes are null")
    return made.drop("undecoded")


def _overhead(source: Columnar, strings: pl.DataFrame) -> pl.DataFrame:
    parts = []
    for table in ("PROFILER_OVERHEAD", f"{ACTIVITY}OVERHEAD"):
        names = ("start", "end", "globalTid", "nameId", "overheadType")
        found = _named(source.read(table, dict.fromkeys(names, "int")), strings, "nameId")
        kind = pl.col("overheadType").replace_strict(_OVERHEAD, default=None, return_dtype=pl.String)
        parts.append(
            found.filter(pl.col("globalTid").is_not_null()).select(
                _process("globalTid"),
                thread="globalTid",
                start_ns="start",
                end_ns="end",
                name=pl.coalesce("name", kind, pl.lit("profiler overhead")),
            )
        )
    return pl.concat(parts)


def _thread_names(source: Columnar, strings: pl.DataFrame, titles: pl.DataFrame) -> pl.DataFrame:
    """Return each thread's name: what the program said in NVTX, else what the system calls it."""
    found = _named(source.read("ThreadNames", {"nameId": "int", "globalTid": "int"}), strings, "nameId")
    system = found.select(thread="globalTid", name="name").drop_nulls()
    return pl.concat([titles, system]).unique("thread", keep="first", maintain_order=True)


def _repair(rows: Rows) -> None:
    """Drop rows without times or with a negative duration; close ranges that were open when recording ended."""
    last = max((v for part in (*rows.parts(), rows.syncs) if isinstance(v := part["end_ns"].max(), int)), default=0)
    # a file that is cut may hold starts later than any end
    last = max([last, *(v for part in rows.parts() if isinstance(v := part["start_ns"].max(), int))])
    for name in ("gpu", "api", "syncs", "ranges", "overhead"):
        part: pl.DataFrame = getattr(rows, name)
        start, end = pl.col("start_ns"), pl.col("end_ns")
        if name == "ranges":
            still_open = int(part["end_ns"].null_count())
            part = part.with_columns(end.fill_null(last))
            rows.repaired += still_open
            if still_open:
                rows.notes.append(f"{still_open} NVTX ranges were still open at the end: they end with the recording")
        device = pl.col("device") if "device" in part.columns else pl.lit(0)
        possible = device.is_between(0, _LARGEST_DEVICE).fill_null(True) & pl.col("process").is_not_null()
        good = part.filter(start.is_not_null() & (end >= start) & possible)
        bad = part.height - good.height
        rows.dropped += bad
        if bad:
            rows.notes.append(f"{bad} rows ({name}) have no time, device or process, or end too early: left out")
        setattr(rows, name, good)
