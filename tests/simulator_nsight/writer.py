"""Lays a capture out in the tables of a generation and writes them as SQLite, Parquet or Arrow."""

from __future__ import annotations

import contextlib
import sqlite3
import struct
from typing import TYPE_CHECKING, Any, Final, Literal

import polars as pl

from simulator_nsight.schema import PAYLOAD_BYTES, PAYLOADS, SCHEMAS, columns

if TYPE_CHECKING:
    from pathlib import Path

    from simulator_nsight.capture import Capture, Range, Rows

NO_NUMBER: Final = 0xFFFF_FFFF
_VERSION: Final = {"V37": ("2023.4.4.54", "3.7.2"), "V325": ("2026.2.1.210", "3.25.0")}
_FIELD_NAMES: Final = {
    "communicator": "NCCL communicator ID", "bytes": "Message size [bytes]", "peer": "Peer rank", "root": "Root",
    "ranks": "No. of ranks", "rank": "Rank", "device": "CUDA device",
}  # fmt: skip


class _Strings:
    """Numbers for texts; not dense, as in real files."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        return self.ids.setdefault(text, 16 + 27 * len(self.ids))


def write(
    path: Path,
    capture: Capture,
    generation: str = "V325",
    *,
    lazy: bool = True,
    blobs: bool = False,
    schema_base: int = 1 << 24,
    form: Literal["sqlite", "parquetdir", "arrowdir"] = "sqlite",
) -> Path:
    """Write an export and return its path. `lazy` leaves out empty tables; `schema_base` renumbers payload schemas."""
    rows = tables(capture, generation, blobs=blobs, schema_base=schema_base)
    known = SCHEMAS[generation]
    chosen = [name for name in known if rows.get(name) or not lazy]
    if form == "sqlite":
        with contextlib.closing(sqlite3.connect(path)) as made, made:
            for name in chosen:
                specification = columns(generation, name)
                text = ", ".join(f'"{c}" {kind}{" NOT NULL" if must else ""}' for c, kind, must in specification)
                made.execute(f'CREATE TABLE "{name}" ({text})')
                marks = ", ".join("?" * len(specification))
                made.executemany(
                    f'INSERT INTO "{name}" VALUES ({marks})',  # noqa: S608 - names are this module's own
                    [tuple(row.get(c) for c, _, _ in specification) for row in rows.get(name, [])],
                )
        return path
    path.mkdir()
    for name in chosen:
        frame = pl.DataFrame(
            {
                c: pl.Series(
                    [row.get(c) for row in rows.get(name, [])],
                    dtype=pl.Binary
                    if c == "binaryData"
                    else {"INTEGER": pl.Int64, "TEXT": pl.String, "REAL": pl.Float64}[kind],
                )
                for c, kind, _ in columns(generation, name)
            }
        )
        if form == "parquetdir":
            frame.write_parquet(path / f"{name}.parquet")
        else:
            frame.write_ipc(path / f"{name}.arrow", compat_level=pl.CompatLevel.oldest())
    return path


def tables(capture: Capture, generation: str, *, blobs: bool = False, schema_base: int = 1 << 24) -> Rows:
    """Return the rows of every table; columns a generation does not have are ignored when it is written."""
    strings = _Strings()
    made: Rows = {}
    gpu = ("CUPTI_ACTIVITY_KIND_KERNEL", "CUPTI_ACTIVITY_KIND_MEMCPY", "CUPTI_ACTIVITY_KIND_MEMSET")
    for table in gpu:
        made[table] = []

    def placed(event: Any) -> dict[str, Any]:  # noqa: ANN401 - any record of GPU work
        return {
            "start": event.start, "end": event.end, "deviceId": event.device, "contextId": 1,
            "streamId": event.stream, "correlationId": event.correlation, "globalPid": capture.global_id(event.pid),
        }  # fmt: skip

    for kernel in capture.kernels:
        sizes = dict.fromkeys(
            (
                "registersPerThread", "gridX", "gridY", "gridZ", "blockX", "blockY", "blockZ", "staticSharedMemory",
                "dynamicSharedMemory", "localMemoryPerThread", "localMemoryTotal", "gridId",
            ),
            1,
        )  # fmt: skip
        made[gpu[0]].append(
            placed(kernel)
            | sizes
            | {
                "demangledName": strings(kernel.name),
                "shortName": strings(kernel.short or kernel.name.partition("<")[0].partition("(")[0]),
                "mangledName": strings(f"_Z{len(kernel.name)}{kernel.name[:20]}"),
                "launchType": 1,
                "graphNodeId": kernel.graph_node,
                "tensorSizeMinusOneElements": "[]",
            }
        )
    for copy in capture.copies:
        row = placed(copy) | {"bytes": copy.bytes, "value": 0, "memKind": copy.target}
        row |= {"copyKind": copy.kind, "srcKind": copy.source, "dstKind": copy.target, "copyCount": 1}
        made[gpu[2] if copy.kind is None else gpu[1]].append(row)
    made["CUPTI_ACTIVITY_KIND_GRAPH_TRACE"] = [
        placed(graph) | {"graphId": graph.graph, "graphExecId": graph.graph + 1} for graph in capture.graphs
    ]
    made["CUPTI_ACTIVITY_KIND_RUNTIME"] = [
        {
            "start": c.start, "end": c.end, "eventClass": c.event_class, "globalTid": capture.global_id(c.pid, c.tid),
            "correlationId": c.correlation, "nameId": strings(c.name), "returnValue": 0,
        }
        for c in capture.calls
    ]  # fmt: skip
    made["CUPTI_ACTIVITY_KIND_SYNCHRONIZATION"] = [
        {
            "start": s.start, "end": s.end, "deviceId": s.device, "contextId": 1, "correlationId": s.correlation,
            "streamId": NO_NUMBER if s.stream is None else s.stream, "globalPid": capture.global_id(s.pid),
            "syncType": s.type, "eventId": NO_NUMBER if s.event is None else s.event,
        }
        for s in capture.syncs
    ]  # fmt: skip
    made["CUPTI_ACTIVITY_KIND_CUDA_EVENT"] = [
        {
            "deviceId": r.device, "contextId": 1, "streamId": r.stream, "correlationId": r.correlation,
            "globalPid": capture.global_id(r.pid), "eventId": r.event,
        }
        for r in capture.records
    ]  # fmt: skip
    made["NVTX_EVENTS"] = [_nvtx(capture, r, strings, blobs=blobs, schema_base=schema_base) for r in capture.ranges]
    if any(r.payload for r in capture.ranges):
        made |= _payload_schemas(schema_base)
    made["PROFILER_OVERHEAD"] = [
        {
            "start": start, "end": end, "globalTid": capture.global_id(pid, pid), "nameId": strings("CUPTI overhead"),
            "returnValue": 0, "overheadType": kind,
        }
        for pid, start, end, kind in capture.overheads
    ]  # fmt: skip
    _about(capture, generation, strings, made, blobs=blobs)
    made["StringIds"] = [{"id": number, "value": text} for text, number in strings.ids.items()]
    return made


def _nvtx(capture: Capture, r: Range, strings: _Strings, *, blobs: bool, schema_base: int) -> dict[str, Any]:
    return {
        "start": r.start,
        "end": r.end,
        "eventType": r.type,
        "text": None if r.by_id else r.text,
        "textId": strings(r.text) if r.by_id else None,
        "globalTid": capture.global_id(r.pid, r.tid),
        "endGlobalTid": capture.global_id(r.pid, r.end_tid) if r.end_tid is not None else None,
        "domainId": r.domain,
        "binaryData": _blob(r, schema_base) if blobs and r.payload else None,
    }


def _kind(payload: dict[str, int]) -> str:
    for field, kind in (
        ("rank", "init"),
        ("peer", "peer"),
        ("root", "rooted"),
        ("redop", "reduction"),
        ("bytes", "size"),
    ):
        if field in payload:
            return kind
    return "communicator"


def _blob(r: Range, schema_base: int) -> bytes:
    """Return header and payload, little-endian."""
    values = {_FIELD_NAMES[name]: value for name, value in (r.payload or {}).items() if name in _FIELD_NAMES}
    kind = _kind(r.payload or {})
    size = PAYLOAD_BYTES[kind]
    body = bytearray(size)
    for name, code, offset in PAYLOADS[kind]:
        form = {18: "<Q", 22: "<Q", 5: "<i"}.get(code)
        if form and name in values:
            struct.pack_into(form, body, offset, values[name])
    number = schema_base + 2 + list(PAYLOADS).index(kind)
    return struct.pack("<IIIIQQ", r.domain, 0, number, 0, size, 32 + size) + bytes(body)


def _payload_schemas(schema_base: int) -> Rows:
    schemas, entries = [], []
    for position, (kind, fields) in enumerate(PAYLOADS.items()):
        number = schema_base + 2 + position
        for _ in range(2):  # once a process
            schemas.append(
                {
                    "domainId": 1,
                    "schemaId": number,
                    "type": 1,
                    "numEntries": len(fields),
                    "payloadSize": PAYLOAD_BYTES[kind],
                }
            )
            entries += [
                {"domainId": 1, "schemaId": number, "idx": idx, "type": code, "name": name, "offset": offset or None}
                for idx, (name, code, offset) in enumerate(fields)
            ]
    return {"NVTX_PAYLOAD_SCHEMAS": schemas, "NVTX_PAYLOAD_SCHEMA_ENTRIES": entries}


def _about(capture: Capture, generation: str, strings: _Strings, made: Rows, *, blobs: bool) -> None:
    """Add what the export says about capture, host, processes and devices."""
    made["PROCESSES"] = [
        {"globalPid": capture.global_id(pid), "pid": pid, "name": name} for pid, name in capture.processes.items()
    ]
    made["ThreadNames"] = [
        {"nameId": strings(name), "priority": 20, "globalTid": capture.global_id(pid, tid)}
        for (pid, tid), name in capture.threads.items()
    ]
    made["ProcessStreams"] = [
        {"globalPid": capture.global_id(1), "filenameId": strings("stdout"), "contentId": strings(capture.output)}
        for _ in range(bool(capture.output))
    ]
    if generation in _VERSION:
        product, schema = _VERSION[generation]
        pairs = {"EXPORT_PRODUCT_VERSION": product, "EXPORT_SCHEMA_VERSION": schema}
        pairs |= {"EXPORT_PARAM_INCLUDE_BLOBS": str(blobs).lower(), **capture.metadata}
        made["META_DATA_EXPORT"] = [{"name": name, "value": value} for name, value in pairs.items()]
        captured = {"PROCESS_0:COMMAND": capture.command, "PROCESS_0:ENVIRONMENT_VARIABLE": capture.environment}
        made["META_DATA_CAPTURE"] = [{"name": name, "value": value} for name, value in captured.items() if value]
        system = {"Hostname": capture.hostname, "NvDriverVersion": "580.95.05", "CudaDriverVersion": "12040"}
        system["DeviceEnvironment"] = capture.environment
        made["TARGET_INFO_SYSTEM_ENV"] = [
            {"globalVid": 1 << 48, "devStateName": "Local (CLI)", "name": name, "nameEnum": at, "value": value}
            for at, (name, value) in enumerate(system.items())
        ]
    if capture.utc_ns is not None:
        made["TARGET_INFO_SESSION_START_TIME"] = [
            {"utcEpochNs": capture.utc_ns, "systemClockNs": capture.system_clock_ns}
        ]
    made["TARGET_INFO_GPU"] = [
        {"vmId": 1, "id": g.id, "name": g.name, "totalMemory": g.memory_bytes, "cuDevice": g.device}
        for g in capture.gpus
    ]
    made["TARGET_INFO_CUDA_GPU"] = [
        {
            "vmId": 1, "name": g.name, "globalMemoryBandwidth": 0, "globalMemorySize": g.memory_bytes >> 20,
            "coreClockRate": 1_380_000, "numMultiprocessors": 80, "deviceId": g.device,
        }
        for g in capture.gpus
    ]  # fmt: skip
    made["DIAGNOSTIC_EVENT"] = [
        {"timestamp": d.at, "timestampType": 1, "source": 1, "severity": d.severity, "text": d.text}
        for d in capture.diagnostics
    ]
