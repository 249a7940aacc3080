"""Write recorded ranks as PyTorch profiler (Kineto) JSON, event by event as the profiler lays it out.

Modelled on files of torch 2.4 to 2.9 (pytorch/kineto libkineto/src/output_json.cpp) and their older variants.
"""

from __future__ import annotations

import gzip
import io
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Final, Literal

import orjson

from simulator.record import BASE_UNIX_NS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from simulator.record import RankTrace, Seen, SeenRange
    from simulator.run import Run

_CATEGORY: Final = {"compute": "kernel", "comm": "kernel", "memcpy": "gpu_memcpy", "memset": "gpu_memset"}
_CBID: Final = {
    "cudaLaunchKernel": 211, "cudaLaunchKernelExC": 430, "cudaMemcpyAsync": 41, "cudaMemsetAsync": 51,
    "cudaEventRecord": 135, "cudaStreamWaitEvent": 147, "cudaStreamSynchronize": 131, "cudaDeviceSynchronize": 165,
}  # fmt: skip
_LAUNCHES: Final = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cudaMemcpyAsync", "cudaMemsetAsync")


@dataclass(frozen=True)
class Options:
    """How the files look. The defaults are those of a current profiler with shapes recorded."""

    names: str = "rank{rank}_trace.json.gz"
    """File name pattern below the directory: {rank}, {host}, {pid}, {step} (first recorded step). `.gz` compresses."""
    pretty: bool = True
    """Line breaks as the profiler writes them; else one line."""
    times: Literal["base", "epoch_decimal", "epoch_integer"] = "base"
    """base: decimal µs with baseTimeNanoseconds; epoch_*: since 1970 (integer wants Config.resolution_ns=1000)."""
    keys_after: bool = True
    """Some top-level keys stand after the events."""
    distributed_info: bool = True
    pg_config: bool = True
    device_properties: bool = True
    shapes: bool = True
    comm_args: bool = True
    sequence: bool = False
    """Write `Seq` on communications (torch 2.12 and later)."""
    external_ids: Literal["valid", "dangling", "none"] = "valid"
    flows: bool = True
    gpu_annotations: bool = True
    sync_events: bool = False
    """Write cuda_sync events (profiler option enable_cuda_sync_events)."""
    host_names: bool = False
    """Write the host's name as a top-level key."""
    memory: bool = False
    """Write allocations and releases as `[memory]` instants."""
    python_functions: bool = False
    """Write Python frames: a module call around every operator of the main thread."""
    rename: Mapping[str, str] = field(default_factory=dict)
    """Other names for events."""
    repeat: int = 1
    """Write the recorded steps so many times, one after the other (large files for benchmarks)."""
    compression: int = 6


class _Times:
    """Text of times as the variant wants it."""

    def __init__(self, options: Options) -> None:
        self.shift_ns = 0 if options.times == "base" else BASE_UNIX_NS
        self.integer = options.times == "epoch_integer"

    def at(self, ns: int) -> str:
        return self.span(ns + self.shift_ns)

    def span(self, ns: int) -> str:
        return str(ns // 1000) if self.integer else f"{ns // 1000}.{ns % 1000:03d}"


def write(run: Run, directory: Path, traces: list[RankTrace], options: Options) -> list[Path]:
    """Write one file a rank and return the paths in rank order. Same run and options: same JSON bytes."""
    if options.times == "epoch_integer" and run.config.resolution_ns % 1000:
        raise ValueError("whole microseconds want Config(resolution_ns=1000), else the truth would not be the file's")
    paths = []
    for trace in traces:
        name = options.names.format(
            rank=trace.place.rank, host=f"node{trace.place.host:02d}", pid=pid_of(trace), step=run.config.first_step
        )
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as raw:
            if path.suffix == ".gz":
                with gzip.GzipFile("", "wb", options.compression, raw, mtime=0) as packed:
                    buffered = io.BufferedWriter(packed, 1 << 20)
                    _write_rank(run, trace, options, buffered, path.name)
                    buffered.flush()
                    buffered.detach()
            else:
                _write_rank(run, trace, options, raw, path.name)
        paths.append(path)
    return paths


def pid_of(trace: RankTrace) -> int:
    """Return the process id of a rank."""
    return 41_000 + 113 * trace.place.rank


def thread_of(trace: RankTrace, thread: int) -> int:
    """Return the thread id of a rank's main (0) or autograd (1) thread."""
    return pid_of(trace) + 71 * thread


def _write_rank(run: Run, trace: RankTrace, options: Options, out: IO[bytes], name: str) -> None:
    before, after = _top_level(run, trace, options, name)
    line, indent = (b"\n", b"  ") if options.pretty else (b"", b"")
    out.write(b"{" + line)
    for key, value in before.items():
        out.write(indent + orjson.dumps(key) + b": " + orjson.dumps(value) + b"," + line)
    out.write(indent + b'"traceEvents": [' + line)
    separator = b""
    for event in _events(trace, options):
        out.write(separator)
        out.write(event.encode())
        separator = b"," + line
    out.write(line + indent + b"]")
    for key, value in after.items():
        out.write(b"," + line + indent + orjson.dumps(key) + b": " + orjson.dumps(value))
    out.write(line + b"}")


def _top_level(run: Run, trace: RankTrace, options: Options, name: str) -> tuple[dict[str, object], dict[str, object]]:
    c = run.config
    before: dict[str, object] = {"schemaVersion": 1}
    if options.device_properties:
        before["deviceProperties"] = [
            {
                "id": i, "name": c.device_name, "totalGlobalMem": c.device_memory,
                "computeMajor": 9, "computeMinor": 0, "maxThreadsPerBlock": 1024, "maxThreadsPerMultiprocessor": 2048,
                "regsPerBlock": 65536, "warpSize": 32, "sharedMemPerBlock": 49152, "numSms": 132,
                "regsPerMultiprocessor": 65536, "sharedMemPerBlockOptin": 232448, "sharedMemPerMultiprocessor": 233472,
            }
            for i in range(min(c.gpus_per_node, c.world_size))
        ]  # fmt: skip
    before |= {"cupti_version": 22, "cuda_runtime_version": 12040, "cuda_driver_version": 12040}
    if options.shapes:
        before["record_shapes"] = 1
    if options.python_functions:
        before["with_stack"] = 1
    if options.memory:
        before["profile_memory"] = 1
    if options.distributed_info:
        info: dict[str, object] = {"backend": "nccl", "rank": trace.place.rank, "world_size": c.world_size}
        if options.pg_config:
            mine = list(trace.groups.values())
            info |= {
                "pg_count": len(mine),
                "pg_config": [
                    {
                        "pg_name": g.name, "pg_desc": g.desc, "backend_config": "cuda:nccl",
                        "pg_size": g.size, "ranks": list(g.ranks),
                    }
                    for g in mine
                ],
                "nccl_version": "2.21.5",
            }  # fmt: skip
        before["distributedInfo"] = info
    if options.host_names:
        before["host_name"] = f"node{trace.place.host:02d}"
    after: dict[str, object] = {"traceName": f"traces/{name.removesuffix('.gz')}", "displayTimeUnit": "ms"}
    if options.times == "base":
        after["baseTimeNanoseconds"] = BASE_UNIX_NS
    if not options.keys_after:
        return before | after, {}
    return before, after


def _events(trace: RankTrace, options: Options) -> Iterator[str]:
    """Yield the JSON text of every event."""
    times = _Times(options)
    # An operator without launch cut off by the window can be missing: then external ids of GPU work dangle.
    starts = [a.start_ns for a in trace.activities] + [r.start_ns for r in trace.ranges]
    ends = [a.end_ns for a in trace.activities] + [r.end_ns for r in trace.ranges]
    if starts:
        period = max(ends) - min(starts) + 1_000_000
        steps = len(trace.step_ranges)
        correlations = max([r.correlation for r in trace.ranges] + [a.correlation for a in trace.activities])
        numbers = max((r.number for r in trace.ranges), default=0)
        for round_ in range(options.repeat):
            writer = _Round(
                trace,
                options,
                times,
                ns=round_ * period,
                steps=round_ * steps,
                correlations=round_ * correlations,
                numbers=round_ * numbers,
            )
            yield from writer.cpu()
            yield from writer.gpu()
            if options.gpu_annotations:
                yield from writer.gpu_annotations()
        yield from _metadata(trace, options, times, min(starts))
        yield from _window(options, times, min(starts), max(ends) + (options.repeat - 1) * period)


class _Round:
    """Writes the recorded events once, shifted in time and in all their numbers."""

    def __init__(
        self, trace: RankTrace, options: Options, times: _Times, *, ns: int, steps: int, correlations: int, numbers: int
    ) -> None:
        self.trace = trace
        self.options = options
        self.times = times
        self.ns = ns
        self.steps = steps
        self.correlations = correlations
        self.numbers = numbers
        self.pid = pid_of(trace)
        self.device = trace.place.device
        self.names: dict[str, str] = {}
        # Dangling ids are numbers that no operator carries.
        self.gpu_shift = numbers if options.external_ids == "valid" else numbers + 5_000_000

    def _name(self, name: str) -> str:
        known = self.names.get(name)
        if known is None:
            text = self.options.rename.get(name, name)
            if name.startswith("ProfilerStep#"):
                text = f"ProfilerStep#{int(name.partition('#')[2]) + self.steps}"
            known = self.names[name] = orjson.dumps(text).decode()
        return known

    def _complete(
        self, category: str, name: str, track: tuple[int, int], span_ns: tuple[int, int], args: dict[str, Any]
    ) -> str:
        (pid, tid), (start, end) = track, span_ns
        at, span = self.times.at(start + self.ns), self.times.span(end - start)
        text = orjson.dumps(args).decode()
        if self.options.pretty:
            return (
                f'  {{\n    "ph": "X", "cat": "{category}", "name": {self._name(name)}, "pid": {pid}, "tid": {tid},\n'
                f'    "ts": {at}, "dur": {span},\n    "args": {text}\n  }}'
            )
        return (
            f'{{"ph":"X","cat":"{category}","name":{self._name(name)},"pid":{pid},"tid":{tid},"ts":{at},"dur":{span},'
            f'"args":{text}}}'
        )

    def _flow(self, way: str, number: int, track: tuple[int, int], at: int) -> str:
        end = ', "bp": "e"' if way == "f" else ""
        text = (
            f'{{"ph": "{way}", "id": {number}, "pid": {track[0]}, "tid": {track[1]}, '
            f'"ts": {self.times.at(at + self.ns)}, "cat": "ac2g", "name": "ac2g"{end}}}'
        )
        return f"  {text}" if self.options.pretty else text

    def cpu(self) -> Iterator[str]:
        """Yield operators, annotations and runtime calls."""
        for index, r in enumerate(self.trace.ranges):
            tid = thread_of(self.trace, r.thread)
            if r.category == "cuda_runtime":
                yield from self._runtime(r, tid)
                continue
            if self.options.python_functions and r.thread == 0 and r.category == "cpu_op":
                frame = {"Python parent id": None, "Python id": index + 1 + self.numbers, "Ev Idx": index}
                name = f"model.py({100 + index % 50}): forward"
                yield self._complete("python_function", name, (self.pid, tid), (r.start_ns, r.end_ns), frame)
            args: dict[str, Any] = {}
            if self.options.external_ids != "none":
                args["External id"] = r.number + self.numbers
            args |= {"Record function id": r.number + self.numbers, "Ev Idx": index}
            yield self._complete(
                r.category, r.name, (self.pid, tid), (r.start_ns, r.end_ns), args | self._range_args(r.args)
            )
        if self.options.memory:
            yield from self._memory()

    def _range_args(self, args: dict[str, Any] | None) -> dict[str, Any]:
        if not args:
            return {}
        if "Collective name" in args:
            return self._comm_args(args)
        if not self.options.shapes:
            return {k: v for k, v in args.items() if k in ("Sequence number", "Fwd thread id")}
        return args

    def _comm_args(self, args: dict[str, Any]) -> dict[str, Any]:
        if not self.options.comm_args:
            return {}
        return args if self.options.sequence else {k: v for k, v in args.items() if k != "Seq"}

    def _runtime(self, r: SeenRange, tid: int) -> Iterator[str]:
        correlation = r.correlation + self.correlations
        args: dict[str, Any] = {"cbid": _CBID.get(r.name, 0), "correlation": correlation}
        if self.options.external_ids != "none" and r.op:
            args = {"External id": r.op + self.gpu_shift, **args}
        yield self._complete("cuda_runtime", r.name, (self.pid, tid), (r.start_ns, r.end_ns), args)
        if self.options.flows and r.name in _LAUNCHES:
            yield self._flow("s", correlation, (self.pid, tid), r.start_ns)
        if self.options.sync_events and r.args and "sync" in r.args:
            sync = {**r.args["sync"], "correlation": correlation, "device": self.device, "context": 1}
            if "wait_on_cuda_event_record_corr_id" in sync:
                sync["wait_on_cuda_event_record_corr_id"] += self.correlations
            track = (self.device, sync["stream"])
            yield self._complete("cuda_sync", sync["cuda_sync_kind"], track, (r.start_ns, r.end_ns), sync)

    def _memory(self) -> Iterator[str]:
        """Allocate an output for every operator with shapes; give back at the end of the step."""
        total = 4 << 30
        held: list[int] = []
        for r in self.trace.ranges:
            closing = r.name.startswith("Optimizer.step#")
            if not closing and (r.category != "cpu_op" or not r.args or "Input Dims" not in r.args):
                continue
            if not closing:
                held.append(1 << 20)
            size = -sum(held) if closing else held[-1]
            held = [] if closing else held
            total += size
            args = {
                "Total Reserved": 24 << 30, "Total Allocated": total, "Bytes": size, "Addr": (140 << 40) + total,
                "Device Id": self.device, "Device Type": 1, "Ev Idx": 0,
            }  # fmt: skip
            yield (
                f'  {{"ph": "i", "cat": "cpu_instant_event", "s": "t", "name": "[memory]", "pid": {self.pid}, '
                f'"tid": {thread_of(self.trace, r.thread)}, "ts": {self.times.at(r.start_ns + self.ns)}, '
                f'"args": {orjson.dumps(args).decode()}}}'
            )

    def gpu(self) -> Iterator[str]:
        """Yield kernels, copies and memsets."""
        for a in self.trace.activities:
            correlation = a.correlation + self.correlations
            args: dict[str, Any] = {}
            if self.options.external_ids != "none" and a.number:
                args["External id"] = a.number + self.gpu_shift
            args |= {"device": self.device, "context": 1, "stream": a.stream, "correlation": correlation}
            if a.kind in ("compute", "comm"):
                wide = a.kind == "compute"
                args |= {
                    "queued": 0, "registers per thread": 168 if wide else 96, "shared memory": 0 if wide else 82240,
                    "blocks per SM": 7.757576 if wide else 0.181818, "warps per SM": 62.060606 if wide else 2.909091,
                    "grid": [1024 if wide else 24, 1, 1], "block": [256 if wide else 512, 1, 1],
                    "est. achieved occupancy %": 38 if wide else 0,
                }  # fmt: skip
                if a.launch_start_ns is not None:  # what a communication was is known from its operator
                    args |= self._comm_args(a.source.args)
            else:
                size = a.source.args["bytes"]
                args |= {"bytes": size, "memory bandwidth (GB/s)": size / max(1, a.end_ns - a.start_ns)}
            yield self._complete(_CATEGORY[a.kind], a.name, (self.device, a.stream), (a.start_ns, a.end_ns), args)
            if self.options.flows:
                yield self._flow("f", correlation, (self.device, a.stream), a.start_ns)

    def gpu_annotations(self) -> Iterator[str]:
        """Yield the mirrors of annotations on the streams: first to last activity launched in the range."""
        launched: dict[int, Seen] = {a.correlation: a for a in self.trace.activities}
        calls: dict[int, list[SeenRange]] = {0: [], 1: []}
        for r in self.trace.ranges:
            if r.correlation in launched and r.category == "cuda_runtime":
                calls[r.thread].append(r)
        starts = {thread: [r.start_ns for r in made] for thread, made in calls.items()}
        for r in self.trace.ranges:
            if r.category != "user_annotation":
                continue
            begin, end = bisect_left(starts[r.thread], r.start_ns), bisect_left(starts[r.thread], r.end_ns)
            by_stream: dict[int, list[Seen]] = {}
            for call in calls[r.thread][begin:end]:
                activity = launched[call.correlation]
                by_stream.setdefault(activity.stream, []).append(activity)
            args = {"External id": r.number + self.gpu_shift} if self.options.external_ids != "none" else {}
            for stream, inside in sorted(by_stream.items()):
                first, last = min(a.start_ns for a in inside), max(a.end_ns for a in inside)
                yield self._complete("gpu_user_annotation", r.name, (self.device, stream), (first, last), args)


def _metadata(trace: RankTrace, options: Options, times: _Times, at: int) -> Iterator[str]:
    pid, device = pid_of(trace), trace.place.device
    rows: list[tuple[str, int, int, str, object]] = [
        ("process_name", pid, 0, "name", "python3.11"),
        ("process_labels", pid, 0, "labels", "CPU"),
        ("process_sort_index", pid, 0, "sort_index", pid),
        ("process_name", device, 0, "name", "python3.11"),
        ("process_labels", device, 0, "labels", f"GPU {device}"),
        ("process_sort_index", device, 0, "sort_index", 16777216 + device),
    ]
    for stream in sorted({a.stream for a in trace.activities}):
        rows.append(("thread_name", device, stream, "name", f"stream {stream} "))
        rows.append(("thread_sort_index", device, stream, "sort_index", stream))
    for thread, label in ((0, "pt_main_thread"), (1, "pt_autograd_0")):
        tid = thread_of(trace, thread)
        rows.append(("thread_name", pid, tid, "name", f"thread {tid} ({label})"))
        rows.append(("thread_sort_index", pid, tid, "sort_index", tid))
    for name, process, thread, key, value in rows:
        text = (
            f'{{"name": "{name}", "ph": "M", "ts": {times.at(at)}, "pid": {process}, "tid": {thread}, '
            f'"args": {{"{key}": {orjson.dumps(value).decode()}}}}}'
        )
        yield f"  {text}" if options.pretty else text


def _window(options: Options, times: _Times, start: int, end: int) -> Iterator[str]:
    start -= 20_000
    indent = "  " if options.pretty else ""
    yield (
        f'{indent}{{"ph": "X", "cat": "Trace", "ts": {times.at(start)}, "dur": {times.span(end - start)}, '
        '"pid": "Spans", "tid": "PyTorch Profiler", "name": "PyTorch Profiler (0)", "args": {"Op count": 0}}'
    )
    yield (
        f'{indent}{{"name": "process_sort_index", "ph": "M", "ts": {times.at(start)}, "pid": "Spans", "tid": 0, '
        '"args": {"sort_index": 536870912}}'
    )
    yield (
        f'{indent}{{"name": "Iteration Start: PyTorch Profiler", "ph": "i", "s": "g", "pid": "Traces", '
        f'"tid": "Trace PyTorch Profiler", "ts": {times.at(start)}}}'
    )
    yield f'{indent}{{"name": "Record Window End", "ph": "i", "s": "g", "pid": "", "tid": "", "ts": {times.at(end)}}}'
