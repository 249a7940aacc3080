"""What an Nsight Systems export says about the capture: clock, host, devices, versions, ranks by environment.

Only named keys are read. Environments, command lines and process output hold secrets: of an environment only the
variables that name a rank are looked at, and nothing else of it is kept.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import polars as pl

if TYPE_CHECKING:
    from tracetool.raw.columnar import Columnar

_EXPORT_KEYS: Final = (
    "EXPORT_PRODUCT_VERSION", "EXPORT_SCHEMA_VERSION", "EXPORT_PARAM_TIME_SHIFT", "EXPORT_PARAM_TIME_NORMALIZE",
)  # fmt: skip
_SYSTEM_KEYS: Final = ("Hostname", "NvDriverVersion", "CudaDriverVersion")
_RANK_VARIABLES: Final = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
_WORLD_VARIABLES: Final = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS")
_VARIABLE: Final = re.compile(
    r"(?:^|[;\n\0])\s*(" + "|".join((*_RANK_VARIABLES, *_WORLD_VARIABLES)) + r")=(\d{1,7})(?=[;\n\0]|\s*$)"
)
_LAUNCHERS: Final = re.compile(r"(?:^|/)(?:torchrun|mpirun|mpiexec|srun|deepspeed|accelerate|torch\.distributed\.\w+)$")
_SEVERITIES: Final = {2: "warning", 3: "error"}
_DIAGNOSTICS: Final = 8
_SETTING: Final = re.compile(r"\b(\w+)=(\"[^\"]*\"|'[^']*'|[^\s;,]+)")
_LOGIN: Final = re.compile(r"\b(\w+)://\S+")
_TOKEN: Final = re.compile(r"(?<![\w.])(?=\w*[0-9_])[\w+-]{20,}")
_PATHS: Final = re.compile(r"(?<![\w.])/[^\s'\"]+")
_GIB: Final = 1 << 30


@dataclass
class Facts:
    """Facts about the whole export; None where it does not say."""

    base_unix_ns: int | None
    start_ns: int | None
    end_ns: int | None
    host: str | None
    versions: str | None
    env_rank: int | None
    env_world: int | None
    devices: pl.DataFrame
    """pid, device, device_name, device_memory_bytes; null pid or device: any."""
    notes: list[str] = field(default_factory=list)


def read_facts(source: Columnar) -> Facts:
    """Read the small tables."""
    notes: list[str] = []
    export = _pairs(source, "META_DATA_EXPORT", _EXPORT_KEYS) or _pairs(source, "EXPORT_META_DATA", _EXPORT_KEYS)
    system = _pairs(source, "TARGET_INFO_SYSTEM_ENV", _SYSTEM_KEYS)
    span = _first(source, "ANALYSIS_DETAILS", ("startTime", "stopTime"))
    rank, world = _environment(source, notes)
    named = {
        "driver": system.get("NvDriverVersion"),
        "CUDA": _cuda(system.get("CudaDriverVersion")),
        "nsys": export.get("EXPORT_PRODUCT_VERSION"),
        "schema": export.get("EXPORT_SCHEMA_VERSION"),
    }
    notes += _diagnostics(source)
    return Facts(
        base_unix_ns=_base(source, export, notes),
        start_ns=span.get("startTime"),
        end_ns=span.get("stopTime"),
        host=system.get("Hostname"),
        versions=", ".join(f"{name} {value}" for name, value in named.items() if value) or None,
        env_rank=rank,
        env_world=world,
        devices=_devices(source),
        notes=notes,
    )


def _pairs(source: Columnar, table: str, keys: tuple[str, ...]) -> dict[str, str]:
    found = source.read(table, {"name": "text", "value": "text"}, keep=("name", keys)).drop_nulls()
    return {str(name): str(value) for name, value in reversed(found.rows())}


def _first(source: Columnar, table: str, columns: tuple[str, ...]) -> dict[str, int]:
    found = source.read(table, dict.fromkeys(columns, "int")).head(1)
    return {name: found[name][0] for name in columns if found.height and found[name][0] is not None}


def _base(source: Columnar, export: dict[str, str], notes: list[str]) -> int | None:
    """Return the Unix time of clock value 0.

    The session's start is given in UTC; where `systemClockNs` stands beside it, that is the same moment in the
    file's own clock, else the file's clock counts from it. Exports may have been shifted when they were made.
    """
    text = export.get("EXPORT_PARAM_TIME_SHIFT", "")
    shift = int(text) if re.fullmatch(r"-?\d{1,18}", text) else 0
    if export.get("EXPORT_PARAM_TIME_NORMALIZE", "").casefold() == "true":
        return -shift
    session = _first(source, "TARGET_INFO_SESSION_START_TIME", ("utcEpochNs", "systemClockNs"))
    if "utcEpochNs" not in session:
        notes.append("no wall clock in the export: this rank can be aligned with others by communication only")
        return None
    base = session["utcEpochNs"] - session.get("systemClockNs", 0) - shift
    return base if abs(base) < 1 << 63 else None


def _environment(source: Columnar, notes: list[str]) -> tuple[int | None, int | None]:
    """Return rank and world size of the process that nsys started; None when that is a launcher of several."""
    command = _pairs(source, "META_DATA_CAPTURE", ("PROCESS_0:COMMAND",)).get("PROCESS_0:COMMAND", "")
    arguments = source.read(
        "META_DATA_CAPTURE",
        {"value": "text"},
        keep=("name", tuple(f"PROCESS_0:ARGUMENT_{k}" for k in range(4))),
    )["value"]
    words = [command, *(str(word) for word in arguments.drop_nulls())]
    captured = source.read("META_DATA_CAPTURE", {"value": "text"}, keep=("name", ("PROCESS_0:ENVIRONMENT_VARIABLE",)))[
        "value"
    ]
    device = source.read("TARGET_INFO_SYSTEM_ENV", {"value": "text"}, keep=("name", ("DeviceEnvironment",)))["value"]
    said: dict[str, int] = {}
    for text in (*captured.drop_nulls(), *device.drop_nulls()):
        for name, value in _VARIABLE.findall(str(text)):
            said.setdefault(name, int(value))
    if any(_LAUNCHERS.search(word) for word in words):
        return None, None
    ranks = {name: said[name] for name in _RANK_VARIABLES if name in said}
    worlds = [said[name] for name in _WORLD_VARIABLES if name in said]
    if len(set(ranks.values())) > 1:
        notes.append(
            "the recorded environment names several ranks ("
            + ", ".join(f"{name} {value}" for name, value in ranks.items())
            + "): the first was taken"
        )
    return next(iter(ranks.values()), None), next(iter(worlds), None)


def _devices(source: Columnar) -> pl.DataFrame:
    """Return name and memory of each device, by CUDA's number and process where the export says."""
    old = source.read(
        "TARGET_INFO_CUDA_GPU", {"deviceId": "int", "pid": "int", "name": "text", "globalMemorySize": "int"}
    ).select(
        pid="pid", device="deviceId", device_name="name", device_memory_bytes=pl.col("globalMemorySize") * (1 << 20)
    )
    if old.height:
        return old
    gpus = source.read("TARGET_INFO_GPU", {"id": "int", "cuDevice": "int", "name": "text", "totalMemory": "int"})
    cuda = source.read("TARGET_INFO_CUDA_DEVICE", {"gpuId": "int", "cudaId": "int", "pid": "int"})
    by_process = cuda.join(gpus, left_on="gpuId", right_on="id", how="inner", maintain_order="left").select(
        pid="pid", device="cudaId", device_name="name", device_memory_bytes="totalMemory"
    )
    plain = gpus.select(
        pid=pl.lit(None, pl.Int64), device="cuDevice", device_name="name", device_memory_bytes="totalMemory"
    )
    return pl.concat([by_process, plain])


def device_of(devices: pl.DataFrame, pid: int, device: int | None) -> tuple[str | None, int | None]:
    """Return (name, memory) of a process' device; None where the export leaves a choice between different ones."""
    if device is None:
        return None, None
    for rows in (
        devices.filter((pl.col("pid") == pid) & (pl.col("device") == device)),
        devices.filter(pl.col("pid").is_null() & (pl.col("device") == device)),
        devices,
    ):
        kinds = rows.select("device_name", "device_memory_bytes").unique()
        if kinds.height == 1:
            name, memory = kinds.row(0)
            return name, memory
        if kinds.height > 1 and kinds["device_name"].n_unique() == 1:
            return kinds["device_name"][0], None
    return None, None


def _diagnostics(source: Columnar) -> list[str]:
    """Return what nsys itself warned about, each sentence once, without what may be private.

    Left out: paths, addresses, values of settings, long words with digits (tokens, host and session names).
    """
    found = source.read("DIAGNOSTIC_EVENT", {"severity": "int", "text": "text"}, keep=("severity", (2, 3))).drop_nulls()
    texts: list[str] = []
    for severity, text in found.unique(maintain_order=True).rows():
        line = str(text).strip().partition("\n")[0]
        for pattern, instead in ((_LOGIN, r"<\1 address>"), (_SETTING, r"\1=<value>"), (_PATHS, "<path>")):
            line = pattern.sub(instead, line)
        line = _TOKEN.sub("<word>", line)[:300]
        texts.append(f"nsys {_SEVERITIES[severity]}: {line}")
    texts = list(dict.fromkeys(texts))
    more = len(texts) - _DIAGNOSTICS
    return [*texts[:_DIAGNOSTICS], *([f"nsys says {more} more warnings"] if more > 0 else [])]


def _cuda(number: str | None) -> str | None:
    """Write CUDA's version number 12040 as 12.4."""
    if number is None or not number.isdigit():
        return number
    return f"{int(number) // 1000}.{int(number) % 1000 // 10}"
