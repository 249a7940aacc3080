"""Turn ranks of a simulated run into a capture, as nsys would have recorded it under torch's emit_nvtx."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, Final

import orjson
from simulator.kineto import pid_of, thread_of
from simulator.record import BASE_UNIX_NS

from simulator_nsight.capture import Call, Capture, Copy, Gpu, Kernel, Range

if TYPE_CHECKING:
    from collections.abc import Sequence

    from simulator import Run
    from simulator.record import RankTrace, Seen, SeenRange

NCCL_DOMAIN: Final = 3
_DTYPE_BYTES: Final = {"BFloat16": 2, "Float": 4, "Half": 2, "Long": 8, "Int": 4}
_CALLS: Final = {
    "allreduce": "ncclAllReduce", "all_gather": "ncclAllGather", "_allgather_base": "ncclAllGather",
    "reduce_scatter": "ncclReduceScatter", "_reduce_scatter_base": "ncclReduceScatter", "broadcast": "ncclBroadcast",
    "send": "ncclSend", "recv": "ncclRecv",
}  # fmt: skip
_KINDS: Final = {"HtoD": 1, "DtoH": 2, "DtoD": 8}


def capture_of(run: Run, ranks: Sequence[int] | None = None) -> Capture:
    """Return one capture of all the ranks, as of one nsys around the launcher of a host."""
    config = run.config
    made = Capture(utc_ns=BASE_UNIX_NS, hostname=f"node{run.select(ranks)[0].place.host:02d}", command="torchrun")
    for trace in run.select(ranks):
        _add(made, trace)
        made.gpus.append(Gpu(trace.place.device, trace.place.device, config.device_name, config.device_memory))
    return made


def communicator(name: str, ranks: Sequence[int]) -> int:
    """Return a number that all members of a group share."""
    return zlib.crc32(f"{name}{list(ranks)}".encode()) << 20 | 1


def _add(made: Capture, trace: RankTrace) -> None:
    pid, device = pid_of(trace), trace.place.device
    main = thread_of(trace, 0)
    made.processes[pid] = "python3.11"
    made.threads[pid, main] = "pt_main_thread"
    made.threads[pid, thread_of(trace, 1)] = "pt_autograd_0"
    launches: dict[int, SeenRange] = {r.correlation: r for r in trace.ranges if r.category == "cuda_runtime"}
    first = min((r.start_ns for r in trace.ranges), default=0)
    for group in sorted(trace.groups.values(), key=lambda g: -g.size):
        payload = {
            "communicator": communicator(group.name, group.ranks),
            "ranks": group.size,
            "rank": group.ranks.index(trace.place.rank),
            "device": device,
        }
        span = (first - 1_000, first - 900)
        made.ranges.append(
            Range(pid, main, *span, "ncclCommInitRankConfig", by_id=True, domain=NCCL_DOMAIN, payload=payload)
        )
    for r in trace.ranges:
        thread = thread_of(trace, r.thread)
        if r.category == "cuda_runtime":
            made.calls.append(Call(pid, thread, r.start_ns, r.end_ns, r.correlation, f"{r.name}_v7000"))
        else:
            made.ranges.append(Range(pid, thread, r.start_ns, r.end_ns, _text(r)))
    for a in trace.activities:
        _add_activity(made, trace, a)
        launch = launches.get(a.correlation)
        if a.kind == "comm" and launch is not None and "Collective name" in a.source.args:
            _add_nccl(made, trace, a, launch)


def _text(r: SeenRange) -> str:
    """Return the name of a range as emit_nvtx writes it; annotations keep theirs."""
    if r.category != "cpu_op":
        return r.name
    args = r.args or {}
    text = r.name
    if "Sequence number" in args:
        text += f", seq = {args['Sequence number']}"
    text += f", op_id = {r.number}"
    if "Input Dims" in args:
        text += f", sizes = {orjson.dumps(args['Input Dims']).decode().replace(',', ', ')}"
    return text


def _add_activity(made: Capture, trace: RankTrace, a: Seen) -> None:
    pid, device = pid_of(trace), trace.place.device
    if a.kind in ("compute", "comm"):
        made.kernels.append(Kernel(pid, device, a.stream, a.start_ns, a.end_ns, a.correlation, a.name))
        return
    kind = next((number for word, number in _KINDS.items() if word in a.name), None)
    source, target = {1: (1, 2), 2: (2, 1)}.get(kind or 0, (2, 2))
    size = a.source.args["bytes"]
    made.copies.append(Copy(pid, device, a.stream, a.start_ns, a.end_ns, a.correlation, size, kind, source, target))


def _add_nccl(made: Capture, trace: RankTrace, a: Seen, launch: SeenRange) -> None:
    """Wrap the launch of a communication in NCCL's own ranges."""
    args: dict[str, Any] = a.source.args
    op = str(args["Collective name"])
    call = _CALLS.get(op)
    if call is None:
        return
    pid, tid = pid_of(trace), thread_of(trace, launch.thread)
    ranks = [int(r) for r in str(args["Process Group Ranks"]).strip("[]").split(",")]
    size = _DTYPE_BYTES[args["dtype"]]
    elements = args["Out msg nelems"] if call == "ncclReduceScatter" else args["In msg nelems"]
    payload = {"communicator": communicator(args["Process Group Name"], ranks), "bytes": elements * size}
    begin, end = launch.start_ns, launch.end_ns

    def add(name: str, payload: dict[str, int] | None, until: int) -> None:
        made.ranges.append(Range(pid, tid, begin, until, name, by_id=True, domain=NCCL_DOMAIN, payload=payload))

    if op in ("send", "recv"):
        peer = next((k for k, r in enumerate(ranks) if r != trace.place.rank), 0)
        add("ncclGroupStart", None, begin)
        add(call, payload | {"peer": peer}, begin)
        add("ncclGroupEnd", None, end)
    else:
        add(call, payload | ({"redop": 0} if "educe" in call else {}), end)
