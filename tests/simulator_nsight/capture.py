"""What happened in a capture: one small record an event, times in ns of the file's clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Kernel:
    pid: int
    device: int
    stream: int
    start: int
    end: int
    correlation: int | None
    name: str
    short: str | None = None
    graph_node: int | None = None


@dataclass(frozen=True)
class Copy:
    """A copy, or with `kind` None a memset."""

    pid: int
    device: int
    stream: int
    start: int
    end: int
    correlation: int | None
    bytes: int
    kind: int | None = 8
    source: int = 2
    target: int = 2


@dataclass(frozen=True)
class Graph:
    """One replay of a CUDA graph recorded as a whole."""

    pid: int
    device: int
    stream: int
    start: int
    end: int
    correlation: int
    graph: int


@dataclass(frozen=True)
class Call:
    pid: int
    tid: int
    start: int
    end: int
    correlation: int
    name: str = "cudaLaunchKernel_v7000"
    event_class: int = 0


@dataclass(frozen=True)
class Range:
    """An NVTX event: 59 push/pop, 60 start/end, 34 mark, 75 domain, 39 thread name."""

    pid: int
    tid: int
    start: int
    end: int | None
    text: str
    by_id: bool = False
    domain: int = 0
    type: int = 59
    end_tid: int | None = None
    payload: dict[str, int] | None = None


@dataclass(frozen=True)
class Sync:
    pid: int
    start: int
    end: int
    correlation: int
    type: int
    stream: int | None = None
    event: int | None = None
    device: int = 0


@dataclass(frozen=True)
class Record:
    """cudaEventRecord on a stream."""

    pid: int
    device: int
    stream: int
    correlation: int
    event: int


@dataclass(frozen=True)
class Gpu:
    id: int
    device: int
    name: str
    memory_bytes: int


@dataclass(frozen=True)
class Warned:
    at: int
    severity: int
    text: str


@dataclass(frozen=True)
class Capture:
    """Everything in one report."""

    kernels: list[Kernel] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)
    graphs: list[Graph] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    ranges: list[Range] = field(default_factory=list)
    syncs: list[Sync] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    gpus: list[Gpu] = field(default_factory=list)
    processes: dict[int, str] = field(default_factory=dict)
    threads: dict[tuple[int, int], str] = field(default_factory=dict)
    diagnostics: list[Warned] = field(default_factory=list)
    overheads: list[tuple[int, int, int, int]] = field(default_factory=list)
    """(pid, start, end, kind) of the profiler's own work."""
    utc_ns: int | None = 1_700_000_000_000_000_000
    system_clock_ns: int = 0
    host: int = 1
    """Number of the host in the upper bits of process ids."""
    hostname: str = "node07"
    environment: str = ""
    command: str = "python"
    output: str = ""
    """What the process printed."""
    metadata: dict[str, str] = field(default_factory=dict)
    """Further rows of META_DATA_EXPORT."""

    def global_id(self, pid: int, tid: int = 0) -> int:
        """Return globalPid, or with a thread globalTid."""
        return self.host << 48 | pid << 24 | tid


Rows = dict[str, list[dict[str, Any]]]
