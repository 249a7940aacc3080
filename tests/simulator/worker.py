"""One rank's process: opens ranges, launches kernels and copies, joins communications, waits."""

from __future__ import annotations

import random
import zlib
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from simulator.engine import UNKNOWN, Activity, Engine, Host, Range, Transfer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from simulator.config import Config
    from simulator.layout import Group, Place

MAIN: Final = 0
AUTOGRAD: Final = 1
COMPUTE: Final = 7
COPY: Final = 20
SCATTER: Final = 32
P2P: Final = 40
Message = tuple[int, tuple[Any, ...], int]
"""(peer rank, what it is, elements) of a send or receive."""
STREAMS: Final = {"tp": 24, "cp": 26, "dp": 28, "fsdp": 30, "ep": 34, "mp": 36, "pp": 38, "world": 60}
BYTES: Final = {"bf16": 2, "fp16": 2, "fp32": 4}
C10: Final = {"bf16": "c10::BFloat16", "fp16": "c10::Half", "fp32": "float"}
NCCL_DTYPE: Final = {"bf16": "BFloat16", "fp16": "Half", "fp32": "Float"}
_KERNELS: Final = {
    "all_reduce": "ncclDevKernel_AllReduce_Sum_{}_RING_LL(ncclDevKernelArgsStorage<4096ul>)",
    "reduce_scatter": "ncclDevKernel_ReduceScatter_Sum_{}_RING_LL(ncclDevKernelArgsStorage<4096ul>)",
    "all_gather": "ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)",
    "all_to_all": "ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)",
    "p2p": "ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)",
}
_CUSTOM: Final = (
    "void vllm::cross_device_reduce_1stage<__nv_bfloat16, 2>(vllm::RankData*, vllm::RankSignals, vllm::Signal*, "
    "__nv_bfloat16*, int, int)"
)
_OPS: Final = {
    "all_reduce": ("c10d::allreduce_", "nccl:all_reduce", "allreduce"),
    "reduce_scatter": ("c10d::_reduce_scatter_base_", "nccl:_reduce_scatter_base", "_reduce_scatter_base"),
    "all_gather": ("c10d::_allgather_base_", "nccl:_all_gather_base", "_allgather_base"),
    "all_to_all": ("c10d::alltoall_base_", "nccl:all_to_all", "all_to_all"),
}


def _share(*key: object) -> float:
    """Return a number in [0, 1) that depends on the key alone."""
    return zlib.crc32(repr(key).encode()) / 2**32


class Worker:
    """What the program of one rank talks to. Host time passes as it is used."""

    def __init__(self, config: Config, engine: Engine, host: Host, place: Place, groups: dict[str, Group]) -> None:
        self.config = config
        self.engine = engine
        self.host = host
        self.place = place
        self.groups = groups
        self.step: int | None = None
        self.tags: dict[str, Any] = {}
        """Written onto every activity launched while they hold: phase, slot, ..."""
        self._slow = config.slow_ranks.get(place.rank, 1.0)
        self._heavy = config.heavy_stages.get(place.stage, 1.0)
        self.host_slowness = config.slow_hosts.get(place.rank, 1.0)
        self._device_noise = random.Random(f"{config.seed} device {place.rank}")  # noqa: S311 - a simulation
        self._host_noise = random.Random(f"{config.seed} host {place.rank}")  # noqa: S311 - a simulation
        self._counts: dict[tuple[str, str], int] = {}
        self.sequences: dict[str, int] = {}
        self.records_from_ns = 0
        self.step_starts: dict[int, int] = {}
        self.dtype = config.dtype
        self.element = BYTES[config.dtype]

    @contextmanager
    def tagged(self, **tags: Any) -> Iterator[None]:  # noqa: ANN401
        """Write these tags onto everything launched in the block."""
        before = self.tags
        self.tags = {**before, **tags}
        yield
        self.tags = before

    def step_starts_now(self, step: int) -> None:
        """Note that the host begins a step now."""
        self.step = step
        self.step_starts[step] = self.host.now_ns

    def recording_starts(self) -> None:
        """Note that the profiler records host events from now on."""
        self.records_from_ns = self.host.now_ns

    # ---- host ----

    def work(self, ns: int) -> None:
        """Let host time pass."""
        scaled = ns * self.host_slowness
        if self.config.host_jitter:
            scaled *= max(0.2, self._host_noise.gauss(1.0, self.config.host_jitter))
        self.host.now_ns += round(scaled)

    @contextmanager
    def range(self, name: str, category: str = "user_annotation", **args: Any) -> Iterator[Range]:  # noqa: ANN401
        """Open a range on the current thread for the block. Host time passes at both of its ends."""
        host = self.host
        host.numbers += 1
        opened = Range(host.thread, category, name, host.now_ns, number=host.numbers, args=args or None)
        host.ranges.append(opened)
        host.open.append(opened)
        self.work(self.config.op_ns // 2)
        yield opened
        self.work(self.config.op_ns - self.config.op_ns // 2)
        host.open.pop()
        opened.end_ns = host.now_ns

    def op(
        self,
        name: str,
        dims: Sequence[object] = (),
        types: Sequence[str] = (),
        concrete: Sequence[str] = (),
        sequence: tuple[int, int] | None = None,
    ) -> Any:  # noqa: ANN401 - a context manager of Range
        """Open an operator: input shapes, types, scalar values, and (sequence number, forward thread)."""
        args: dict[str, Any] = {}
        if sequence is not None:
            args |= {"Sequence number": sequence[0], "Fwd thread id": sequence[1]}
        if dims:
            args |= {
                "Input Dims": list(dims),
                "Input type": list(types) or [C10[self.dtype] if d else "Scalar" for d in dims],
                "Concrete Inputs": list(concrete) or ["" for _ in dims],
            }
        return self.range(name, "cpu_op", **args)

    def call(self, name: str, ns: int, **args: Any) -> Range:  # noqa: ANN401
        """Make a runtime call that takes `ns` of host time."""
        host = self.host
        host.correlation += 1
        start = host.now_ns
        self.work(ns)
        made = Range(
            host.thread,
            "cuda_runtime",
            name,
            start,
            host.now_ns,
            op=host.open[-1].number if host.open else 0,
            correlation=host.correlation,
            args=args or None,
        )
        host.ranges.append(made)
        return made

    # ---- device ----

    def _is_slow(self) -> bool:
        return self.config.slow_steps is None or self.step in self.config.slow_steps

    def launch(
        self,
        name: str,
        ns: float,
        *,
        kind: str = "compute",
        stream: int = COMPUTE,
        tags: dict[str, Any] | None = None,
        args: dict[str, Any] | None = None,
        transfers: tuple[Transfer, ...] = (),
    ) -> Activity:
        """Launch one GPU activity of `ns` onto a stream and return it; its times are not known yet."""
        api = {"memcpy": "cudaMemcpyAsync", "memset": "cudaMemsetAsync"}.get(kind)
        call = self.call(api or ("cudaLaunchKernelExC" if transfers else "cudaLaunchKernel"), self.config.launch_ns)
        if kind == "compute":
            ns *= self._heavy * (self._slow if self._is_slow() else 1.0)
            if self.config.jitter:
                ns *= max(0.2, self._device_noise.gauss(1.0, self.config.jitter))
            ns = max(self.config.kernel_floor_ns, round(ns))
        latency = self.config.latency_ns
        if self.config.latency_jitter_ns:
            latency += self._host_noise.randrange(self.config.latency_jitter_ns)
        activity = Activity(
            self.place.rank,
            stream,
            name,
            kind,
            round(ns),
            call,
            {"run_step": self.step, **self.tags, **(tags or {})},
            args or {},
            transfers,
        )
        host = self.host
        after = host.waits.pop(stream, [])
        if stream in host.last:
            after.append(host.last[stream])
        host.last[stream] = activity
        host.activities.append(activity)
        for transfer in transfers:
            transfer.members.append(activity)
            jitter = self.config.end_jitter_ns
            delay = int(_share(self.config.seed, transfer.key, self.place.rank) * (jitter + 1)) if jitter else 0
            transfer.end_delays.append(delay)
        self.engine.add(activity, call.start_ns + latency, after)
        return activity

    def stream_waits(self, stream: int, *others: Activity | None) -> None:
        """Make all later work of `stream` wait for these activities (cudaEventRecord and cudaStreamWaitEvent).

        Communications have recorded their event at once; of other streams it must be the latest activity.
        """
        short = self.config.launch_ns // 4
        for other in others:
            if other is None:
                continue
            event = other.tags.get("end_event") or self.call("cudaEventRecord", short).correlation
            sync = {
                "cuda_sync_kind": "Stream Wait Event",
                "wait_on_stream": other.stream,
                "wait_on_cuda_event_record_corr_id": event,
                "wait_on_cuda_event_id": event % 97,
                "stream": stream,
            }
            self.call("cudaStreamWaitEvent", short, sync=sync)
            self.host.waits.setdefault(stream, []).append(other)

    def last(self, stream: int) -> Activity | None:
        """Return the latest activity of a stream."""
        return self.host.last.get(stream)

    def synchronize(self, stream: int = COMPUTE) -> Iterator[Activity]:
        """Wait on the host for the work of a stream. To be used with `yield from`."""
        sync = {"cuda_sync_kind": "Stream Sync", "stream": stream}
        call = self.call("cudaStreamSynchronize", self.config.launch_ns, sync=sync)
        last = self.last(stream)
        if last is not None:
            yield last
        call.end_ns = self.host.now_ns

    # ---- communication ----

    def _slow_link(self, group: Group) -> float:
        factor = 1.0
        for link in self.config.slow_links:
            hosts_in = link.hosts is None or set(link.hosts) <= set(group.hosts)
            step_in = link.step is None or link.step == self.step
            if (link.role in (None, group.key)) and set(link.ranks) <= set(group.ranks) and hosts_in and step_in:
                factor *= link.factor
        return factor

    def _transfer_ns(self, group: Group, traffic: float, key: tuple[Any, ...]) -> int:
        config = self.config
        if config.zero_transfer:
            return 0
        gbs = config.nvlink_gbs if len(set(group.hosts)) == 1 else config.nic_gbs
        ns = config.comm_latency_ns + traffic / gbs
        if config.comm_jitter:
            ns *= 1.0 + config.comm_jitter * _share(config.seed, key)
        return round(ns * self._slow_link(group))

    def _transfer(
        self, key: tuple[Any, ...], group: Group, traffic: float, expected: int, *, symmetric: bool
    ) -> Transfer:
        found = self.engine.transfers.get(key)
        if found is None:
            found = Transfer(key, self._transfer_ns(group, traffic, key), expected, group.role, symmetric)
            self.engine.transfers[key] = found
        return found

    def collective(
        self,
        key: str,
        op: str,
        elements_in: int,
        elements_out: int,
        *,
        stream: int | None = None,
        dtype: str | None = None,
        after_compute: bool = True,
    ) -> Activity | None:
        """Launch this rank's part of a collective on the group's stream, by default after all compute so far.

        `elements_in`, `elements_out`: what this rank puts in and gets out. Returns None for a group of one.
        """
        group = self.groups.get(key)
        if group is None:
            return None
        dtype = dtype or self.dtype
        element = BYTES[dtype]
        n = group.size
        factor = 2 * (n - 1) / n if op == "all_reduce" else (n - 1) / n
        traffic = max(elements_in, elements_out) * element * factor
        self.sequences[group.name] = sequence = self.sequences.get(group.name, 0) + 1
        transfer = self._transfer((group.name, sequence), group, traffic, n, symmetric=True)
        where = STREAMS[key] if stream is None else stream
        torch_op, nccl_op, collective = _OPS[op]
        tags = {
            "role": group.role, "key": key, "group": group.name, "op": op, "sequence": sequence,
            "bytes": max(elements_in, elements_out) * element,
        }  # fmt: skip
        if key == "tp" and op == "all_reduce" and self.config.custom_all_reduce:
            with self.op("_C_custom_ar::all_reduce", [[elements_in]]):
                return self.launch(_CUSTOM, 0, kind="comm", tags=tags, transfers=(transfer,))
        args = self.comm_args(group, collective, elements_in, elements_out, dtype=dtype, sequence=sequence)
        with (
            self.op(torch_op, [[[elements_in]], [], [], []]),
            self.range("record_param_comms", "cpu_op", **self._host_args(group, args)),
            self.range(nccl_op),
        ):
            if after_compute:
                self.stream_waits(where, self.last(COMPUTE))
            return self._communicate(
                _KERNELS[op].format({"bf16": "bf16", "fp16": "f16", "fp32": "f32"}[dtype]),
                where,
                tags=tags,
                args=args,
                transfers=(transfer,),
            )

    def _communicate(
        self, name: str, stream: int, *, tags: dict[str, Any], args: dict[str, Any], transfers: tuple[Transfer, ...]
    ) -> Activity:
        """Launch a communication and record the event of its end."""
        done = self.launch(name, 0, kind="comm", stream=stream, tags=tags, args=args, transfers=transfers)
        done.tags["end_event"] = self.call("cudaEventRecord", self.config.launch_ns // 4).correlation
        return done

    def comm_args(
        self, group: Group, collective: str, elements_in: int, elements_out: int, *, dtype: str, sequence: int
    ) -> dict[str, Any]:
        """Return what torch writes about a communication."""
        return {
            "Collective name": collective,
            "In msg nelems": elements_in,
            "Out msg nelems": elements_out,
            "Group size": group.size,
            "dtype": NCCL_DTYPE[dtype],
            "In split size": "[]",
            "Out split size": "[]",
            "Process Group Name": group.name,
            "Process Group Description": group.desc,
            "Process Group Ranks": str(list(group.ranks)),
            "Seq": sequence,
        }

    def _host_args(self, group: Group, args: dict[str, Any]) -> dict[str, Any]:
        """Return what torch writes on a communication's operator: the kernel's arguments and where the ranks lie."""
        stride = group.ranks[1] - group.ranks[0] if group.size > 1 else 0
        even = all(b - a == stride for a, b in pairwise(group.ranks))
        return args | {
            "Rank": self.place.rank,
            "Global rank start": group.ranks[0],
            "Global rank stride": stride if even else 0,
        }

    def exchange(
        self,
        stream: int,
        sends: Sequence[Message],
        receives: Sequence[Message],
    ) -> Activity:
        """Launch one SendRecv kernel."""
        group = self.groups["pp"]
        me = self.place.rank
        pairs = [(me, peer, name) for peer, name, _ in sends] + [(peer, me, name) for peer, name, _ in receives]
        sizes = [elements for *_, elements in [*sends, *receives]]
        transfers = tuple(
            self._transfer(
                ("p2p", *pair), self._pair(group, pair[0], pair[1]), elements * self.element, 2, symmetric=False
            )
            for pair, elements in zip(pairs, sizes, strict=True)
        )
        single = len(pairs) == 1 and self.config.p2p == "async"
        collective = ("send" if sends else "recv") if single else "coalesced"
        args: dict[str, Any] = {}
        if single:
            self.sequences["p2p"] = sequence = self.sequences.get("p2p", 0) + 1
            args = self.comm_args(group, collective, sizes[0], sizes[0], dtype=self.dtype, sequence=sequence)
            if self.config.p2p_peers is True:
                args |= {"Src Rank": pairs[0][0], "Dst Rank": pairs[0][1]}
            index = group.ranks.index
            name = f"nccl:{collective}"
            if self.config.p2p_peers:
                arrow, peer = ("->", pairs[0][1]) if sends else ("<-", pairs[0][0])
                name += f" {index(me)}{arrow}{index(peer)}"
        else:
            name = "nccl:coalesced"
        with self.range("record_param_comms", "cpu_op", **self._host_args(group, args)), self.range(name):
            self.stream_waits(stream, self.last(COMPUTE))
            return self._communicate(
                _KERNELS["p2p"],
                stream,
                tags={
                    "role": "pp", "key": "pp", "group": group.name, "bytes": max(sizes) * self.element,
                    "op": {"send": "send", "recv": "recv"}.get(collective, "send_recv"),
                    "received": [name for _, name, _ in receives], "sent": [name for _, name, _ in sends],
                },
                args=args,
                transfers=transfers,
            )  # fmt: skip

    def _pair(self, group: Group, source: int, destination: int) -> Group:
        hosts = (source // self.config.gpus_per_node, destination // self.config.gpus_per_node)
        return type(group)(group.name, group.desc, group.key, (source, destination), hosts)


__all__ = ["AUTOGRAD", "BYTES", "COMPUTE", "COPY", "MAIN", "UNKNOWN", "Worker"]
