"""What every rank runs: steps of loading, pipelined forwards and backwards, gradient sync, optimizer, and a sync."""

from __future__ import annotations

import random
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import TYPE_CHECKING, Final

from simulator.layers import ADD, Layers, Sizes
from simulator.layout import owner, rank_of, source_of, target_of, virtual_stage
from simulator.worker import AUTOGRAD, COMPUTE, COPY, MAIN, P2P, SCATTER, STREAMS, Worker

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from simulator.config import Config, Slot
    from simulator.engine import Activity
    from simulator.worker import Message

ADAM: Final = (
    "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<at::native::(anonymous namespace)::"
    "FusedOptimizerTensorListMetadata<4>, at::native::(anonymous namespace)::FusedAdamMathFunctor<float, 4, "
    "(at::native::ADAM_MODE)1, false>, float const*, double, double, double, double, double, bool, float*, float*, "
    "at::native::ADAM_MODE>(at::native::(anonymous namespace)::FusedOptimizerTensorListMetadata<4>)"
)
NORM_REDUCE: Final = (
    "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, at::native::NormTwoOps<float, float, float, "
    "float>, unsigned int, float, 4> >(at::native::ReduceOp<float, at::native::NormTwoOps<float, float, float, float>, "
    "unsigned int, float, 4>)"
)


class Program:
    """The training loop of one rank. `run` is a generator that yields the activities its host waits for."""

    def __init__(self, worker: Worker, pieces: tuple[tuple[Slot, ...], ...]) -> None:
        self.w = worker
        self.c = worker.config
        self.pieces = pieces
        self.layers = Layers(worker)
        self._bucket = 0
        self._gathered: list[Activity] = []
        self._split = any(slot[0] == "W" for piece in pieces for slot in piece)
        self._lengths = random.Random(f"{self.c.seed} length {worker.place.dp}")  # noqa: S311 - a simulation
        self._sizes: dict[int, Sizes] = {}

    def run(self) -> Iterator[Activity]:
        """Run all steps."""
        c, w = self.c, self.w
        for k in range(c.unrecorded_steps):
            w.step = k - c.unrecorded_steps
            yield from self._step()
            w.work(c.between_steps_ns)
        w.recording_starts()
        if c.warmup_work:
            with w.op("aten::add", [[4096]]):
                w.launch(ADD, 4_000, tags={"op_name": "aten::add"})
                w.launch(ADD, 4_000, tags={"op_name": "aten::add"})
            w.step = None
        for k in range(c.first_step, c.first_step + c.steps):
            w.step_starts_now(k)
            with ExitStack() as stack:
                if c.profiler_steps:
                    stack.enter_context(w.range(f"ProfilerStep#{k}"))
                yield from self._step()
            w.work(c.between_steps_ns)
            if c.between_steps_work:
                with w.op("aten::add", [[4096]]):
                    w.launch(ADD, 4_000, tags={"op_name": "aten::add"})
            w.work(c.between_steps_ns)

    # ---- one step ----

    def _step(self) -> Iterator[Activity]:
        c, w = self.c, self.w
        self._draw_sizes()
        yield from self._load()
        if c.dp_mode == "zero1" and self._gathered:
            w.stream_waits(COMPUTE, *self._gathered)
            self._gathered = []
        self._bucket = 0
        for at, slots in enumerate(self.pieces):
            for slot in slots:
                self._receive(slot, self.pieces[at - 1][-1] if at else None)
            self._work(slots)
            for slot in slots:
                self._send(slot, self.pieces[at + 1][0] if at + 1 < len(self.pieces) else None)
            if at == 0:
                yield from self._stalled("sync")
        self._gradients_left()
        self._update()
        if c.checkpoint_step is not None and w.step == c.checkpoint_step:
            with w.tagged(phase="checkpoint"), w.range("save_checkpoint"), w.op("aten::copy_", [[4096]]):
                w.launch("Memcpy DtoH (Device -> Pageable)", 200_000, kind="memcpy", args={"bytes": 16 << 20})
        if c.sync_step:
            with (
                w.tagged(phase="other"),
                w.op("aten::item", [[]]),
                w.op("aten::_local_scalar_dense", [[]]),
            ):
                w.launch("Memcpy DtoH (Device -> Pinned)", 1_500, kind="memcpy", args={"bytes": 4})
                yield from w.synchronize()

    def _draw_sizes(self) -> None:
        c = self.c
        for i in range(c.microbatches):
            factor = c.long_sequences.get(self.w.place.dp, 1.0)
            if c.length_jitter:
                factor *= max(0.3, self._lengths.gauss(1.0, c.length_jitter))
            whole = max(c.cp, round(c.sequence * factor) // c.cp * c.cp)
            self._sizes[i] = Sizes(
                c.batch, whole // c.cp, whole, c.hidden, c.ffn, max(1, c.heads // c.tp), c.hidden // c.heads, c.vocab
            )

    def _stall_ns(self, where: str) -> int:
        return sum(
            s.ns
            for s in self.c.stalls
            if s.rank == self.w.place.rank and s.where == where and s.step in (None, self.w.step)
        )

    def _stalled(self, where: str) -> Iterator[Activity]:
        ns = self._stall_ns(where)
        if ns:
            yield from self.w.synchronize()
            self.w.host.now_ns += ns

    def _load(self) -> Iterator[Activity]:
        c, w = self.c, self.w
        with w.tagged(phase="dataloader"), w.range("enumerate(DataLoader)#_MultiProcessingDataLoaderIter.__next__"):
            w.work(c.dataloader_ns)
            w.host.now_ns += self._stall_ns("dataloader")
        if c.copies:
            size = 8 * sum(s.tokens for s in self._sizes.values())
            with (
                w.tagged(phase="other"),
                w.op("aten::to", [[size // 8]], ["long int"]),
                w.op("aten::_to_copy", [[size // 8]], ["long int"]),
                w.op("aten::copy_", [[size // 8], [size // 8]], ["long int", "long int"]),
            ):
                copied = w.launch(
                    "Memcpy HtoD (Pinned -> Device)",
                    1_000 + size / 20,
                    kind="memcpy",
                    stream=COPY,
                    args={"bytes": size},
                )
            w.stream_waits(COMPUTE, copied)
            with (
                w.tagged(phase="optimizer"),
                w.range("Optimizer.zero_grad#AdamW.zero_grad"),
                w.op("aten::zero_", [[self.layers.layer_parameters]]),
            ):
                size = self.layers.layer_parameters * w.element
                w.launch("Memset (Device)", 1_000 + size / 2_000, kind="memset", args={"bytes": size})
        yield from ()

    # ---- one slot ----

    def _virtual(self, chunk: int) -> int:
        return virtual_stage(self.c, self.w.place.stage, chunk)

    def _messages(self, slot: Slot | None, *, incoming: bool) -> list[Message]:
        """Return what a slot needs from, or makes for, another rank: one message or none."""
        if slot is None:
            return []
        kind, i, chunk = slot
        here = self._virtual(chunk)
        there = (source_of if incoming else target_of)(self.c, kind, here)
        if there is None:
            return []
        place = self.w.place
        peer = rank_of(self.c, owner(self.c, there)[0], place.dp, place.cp, place.tp)
        if peer == place.rank:
            return []
        name = (self.w.step, kind, i, here if incoming else there, place.dp, place.cp, place.tp)
        return [(peer, name, self._sizes[i].tokens * self.c.hidden)]

    def _receive(self, slot: Slot, before: Slot | None) -> None:
        """Make compute wait for the slot's input."""
        w = self.w
        with w.tagged(phase="other"):
            for message in self._messages(slot, incoming=True):
                if self.c.p2p != "async" and before is not None and self._shares_kernel(before, slot):
                    continue
                with self._transfer_range("recv", slot):
                    stream = self._stream(message[0], slot[0], "recv") if self.c.p2p == "async" else P2P
                    done = w.exchange(stream, [], [message])
                w.stream_waits(COMPUTE, done)

    def _send(self, slot: Slot, after: Slot | None) -> None:
        """Send the slot's output; batched, together with the receive of the next slot's input."""
        w = self.w
        sends = self._messages(slot, incoming=False)
        with w.tagged(phase="other"):
            if self.c.p2p == "async":
                for message in sends:
                    with self._transfer_range("send", slot):
                        w.exchange(self._stream(message[0], slot[0], "send"), [message], [])
            elif sends:
                shared = self._messages(after, incoming=True) if after and self._shares_kernel(slot, after) else []
                w.stream_waits(COMPUTE, w.exchange(P2P, sends, shared))

    def _shares_kernel(self, slot: Slot, after: Slot) -> bool:
        """Tell whether the send of `slot` and the receive of `after` go to one neighbour, and so into one kernel."""
        sends, receives = self._messages(slot, incoming=False), self._messages(after, incoming=True)
        return slot[0] != after[0] and bool(sends) and bool(receives) and sends[0][0] == receives[0][0]

    def _stream(self, peer: int, kind: str, way: str) -> int:
        later = peer > self.w.place.rank
        return P2P + 2 * (4 * later + 2 * (kind == "B") + (way == "recv"))

    def _transfer_range(self, way: str, slot: Slot) -> AbstractContextManager[object]:
        """Open the range that a framework puts around a send or receive of a slot; none for most."""
        kind, i, chunk = slot
        if self.c.pp_annotations == "torch_2_15":
            return self.w.range(f"PP:{self._virtual(chunk)}{way.upper()}_{kind}{i}")
        if self.c.pp_annotations == "megatron":
            direction = "forward" if kind == "F" else "backward"
            return self.w.range(f"megatron.core.pipeline_parallel.p2p_communication.{way}_{direction}")
        return nullcontext()

    def _annotation(self, slots: Sequence[Slot]) -> str | None:
        """Return the name of the range around one slot or two overlapped ones, as the framework has it."""
        letters = {"F": "F", "B": "I" if self._split else "B", "W": "W"}
        if self.c.pp_annotations == "dualpipe":
            return "1F1B" if len(slots) > 1 else f"mlp({slots[0][0]})"
        if self.c.pp_annotations == "megatron":
            schedules = "megatron.core.pipeline_parallel.schedules"
            interleaving = f"{schedules}.forward_backward_pipelining_with_interleaving.steady"
            return interleaving if self.c.chunks > 1 else None
        if self.c.pp_annotations == "gpipe":
            return f"{'Forward' if slots[0][0] == 'F' else 'Backward'} {slots[0][1]}"
        if self.c.pp_annotations == "none":
            return None
        names = [f"{self._virtual(chunk)}{letters[kind]}{i}" for kind, i, chunk in slots]
        return f"PP:{names[0]}" if len(names) == 1 else f"PP:({';'.join(names)})OVERLAP_F_B"

    def _work(self, slots: Sequence[Slot]) -> None:
        """Run one slot, or two in one range."""
        name = self._annotation(slots)
        with self.w.range(name) if name else nullcontext():
            for slot in slots:
                self._run_slot(slot)

    def _run_slot(self, slot: Slot) -> None:
        w, c = self.w, self.c
        kind, i, chunk = slot
        s = self._sizes[i]
        virtual = self._virtual(chunk)
        first, last = virtual == 0, virtual == c.pp * c.chunks - 1
        with w.tagged(phase="forward" if kind == "F" else "backward", slot=(kind, i, chunk)):
            if kind == "F":
                if first and c.embedding:
                    self.layers.embed(s)
                for layer in self._prefetch(range(c.layers)):
                    self.layers.forward(s)
                    if layer == 0 and i == 0 and chunk == 0:
                        w.host.now_ns += self._stall_ns("gc")
                if last and c.head:
                    self.layers.loss(s)
                return
            w.work(c.op_ns)
            w.host.thread = AUTOGRAD
            part = kind if self._split else "BW"
            if last and c.head:
                self.layers.loss_backward(s, part)
            for _ in self._prefetch(range(c.layers)[::-1]) if "B" in part else range(c.layers):
                self.layers.backward(s, part)
                if "W" in part:
                    self._gradient_ready(i)
            if first and c.embedding and "B" in part:
                self.layers.embed_backward(s)
            w.host.thread = MAIN
            w.work(c.op_ns)

    # ---- data parallel ----

    def _prefetch(self, layers: Sequence[int]) -> Iterator[int]:
        """Yield the layers in order; with fsdp each one's parameters are there, and the next one's on their way."""
        if self.c.dp_mode != "fsdp":
            yield from layers
            return
        coming: list[Activity | None] = [self._gather(layers[0])]
        for at, layer in enumerate(layers):
            if at + 1 < len(layers):
                coming.append(self._gather(layers[at + 1]))
            self.w.stream_waits(COMPUTE, coming[at])
            yield layer

    def _gather(self, layer: int) -> Activity | None:
        group = self.w.groups.get("fsdp")
        if group is None:
            return None
        share = self.layers.layer_parameters // group.size
        with self.w.tagged(slot=None), self.w.range(f"FSDP::all_gather (layers.{layer})"):
            return self.w.collective("fsdp", "all_gather", share, share * group.size, after_compute=False)

    def _gradient_ready(self, microbatch: int) -> None:
        """Send a full bucket of gradients: fsdp after every layer, else in the last micro-batch's backward."""
        c = self.c
        if c.dp_mode == "fsdp":
            self._sync_gradients(self.layers.layer_parameters)
        elif microbatch == c.microbatches - 1:
            self._bucket += 1
            if c.grad_overlap and self._bucket >= c.bucket_layers:
                self._sync_gradients(self._bucket * self.layers.layer_parameters)
                self._bucket = 0

    def _gradients_left(self) -> None:
        with self.w.tagged(phase="other", slot=None):
            if self._bucket:
                self._sync_gradients(self._bucket * self.layers.layer_parameters)
                self._bucket = 0
            for stream in (STREAMS["dp"], SCATTER):
                self.w.stream_waits(COMPUTE, self.w.last(stream))

    def _sync_gradients(self, elements: int) -> None:
        key = "fsdp" if self.c.dp_mode == "fsdp" else "dp"
        group = self.w.groups.get(key)
        if group is None:
            return
        share = elements // group.size
        with self.w.tagged(slot=None):
            if self.c.dp_mode == "ddp":
                self.w.collective(key, "all_reduce", elements, elements)
            else:
                stream = SCATTER if self.c.dp_mode == "fsdp" else None
                self.w.collective(key, "reduce_scatter", share * group.size, share, stream=stream)

    # ---- the end of a step ----

    def _update(self) -> None:
        c, w = self.c, self.w
        elements = self.layers.layer_parameters * c.layers * c.chunks
        with w.tagged(phase="optimizer", slot=None), w.range("Optimizer.step#AdamW.step"):
            if c.grad_norm and "mp" in w.groups:
                with w.tagged(phase="optimizer"), w.op("aten::linalg_vector_norm", [[elements], []]):
                    w.launch(NORM_REDUCE, elements * w.element / c.memory_bytes_per_ns)
                done = w.collective("mp", "all_reduce", 1, 1, dtype="fp32")
                w.stream_waits(COMPUTE, done)
            if c.optimizer:
                for _ in range(c.optimizer_kernels):
                    with w.op("aten::_fused_adamw_", [[], [elements // c.optimizer_kernels]]):
                        w.launch(ADAM, 14 * elements / c.optimizer_kernels / c.memory_bytes_per_ns)
            group = w.groups.get("dp")
            if c.dp_mode == "zero1" and group is not None:
                share = elements // group.size
                gathered = w.collective("dp", "all_gather", share, share * group.size)
                self._gathered = [] if gathered is None else [gathered]


def make(config: Config, worker: Worker, plan: tuple[tuple[tuple[Slot, ...], ...], ...]) -> Program:
    """Return the program of the worker's stage."""
    if config.ep > 1 and config.dp % config.ep:
        raise ValueError(f"ep {config.ep} does not divide dp {config.dp}")
    return Program(worker, plan[worker.place.stage])
