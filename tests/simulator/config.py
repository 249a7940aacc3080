"""What a simulated training run is: every knob of the simulator, with its meaning and unit."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

Slot = tuple[str, int, int]
"""One piece of pipeline work: ("F" | "B" | "W", micro-batch, chunk).

With "W" (weight gradient) in a schedule, "B" is the input gradient alone.
"""


@dataclass(frozen=True)
class Stall:
    """A pause of one rank's host.

    `where`: "dataloader" (inside the loader's range), "gc" (inside the first forward, no range around it) or
    "sync" (a device synchronisation in the middle of the step, `ns` of host work after it). `step` None: every step.
    """

    rank: int
    ns: int
    where: Literal["dataloader", "gc", "sync"] = "gc"
    step: int | None = None


@dataclass(frozen=True)
class SlowLink:
    """Transfers that take `factor` times as long.

    Those of groups of `role` (None: any) that hold every rank of `ranks` and, if `hosts` is given, members on both
    hosts. `step` None: every step.
    """

    factor: float
    role: str | None = None
    ranks: tuple[int, ...] = ()
    hosts: tuple[int, int] | None = None
    step: int | None = None


@dataclass(frozen=True)
class Config:
    """A run. The defaults give a healthy 8-rank run (dp 2 x tp 2 x pp 2) of two steps that simulates in a moment.

    Ranks are laid out tp fastest, then cp, then dp, then pp: rank = ((pp_i * dp + dp_i) * cp + cp_i) * tp + tp_i.
    """

    # ---- grid ----
    dp: int = 2
    tp: int = 2
    pp: int = 2
    cp: int = 1
    ep: int = 1
    """Expert parallel size; must divide dp. Above 1 every MLP is preceded and followed by an all-to-all."""
    gpus_per_node: int = 8
    dp_mode: Literal["ddp", "zero1", "fsdp"] = "ddp"
    """ddp: bucketed all-reduce; zero1: reduce-scatter, then all-gather of parameters; fsdp: per layer."""

    # ---- schedule ----
    steps: int = 2
    first_step: int = 5
    """Number of the first recorded ProfilerStep."""
    microbatches: int = 4
    chunks: int = 1
    """Virtual stages a rank (interleaving)."""
    placement: Literal["loop", "vee"] = "loop"
    """loop: chunk c of stage s is virtual stage c pp + s; vee: odd chunks run from the last stage back (two chunks)."""
    schedule: str | tuple[tuple[Slot, ...], ...] = "1f1b"
    """1f1b, gpipe, interleaved_1f1b, zb1p, zbv, dualpipev (the last two want chunks=2, placement="vee"); or the slots
    of every stage themselves. dualpipev runs a forward and a backward in one range where both are ready."""
    p2p: Literal["async", "batched"] = "async"
    """async: nothing waits for a send; batched: a send and a receive with one neighbour share a kernel, and later work
    waits for both."""
    unrecorded_steps: int = 0
    """Steps run before the profiler records; their late GPU work becomes orphans when `sync_step` is False."""
    recorded_steps: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    """Rank to the first and last step that its profiler recorded; all by default."""
    warmup_work: bool = False
    """Launch some kernels after recording began and before the first step range."""
    between_steps_work: bool = False
    """Launch a kernel between the end of a step range and the start of the next."""
    profiler_steps: bool = True
    """Write ProfilerStep ranges."""
    pp_annotations: Literal["none", "torch", "torch_2_15", "gpipe", "megatron", "dualpipe"] = "none"
    """torch: `PP:{stage}F{microbatch}` ranges, torch_2_15 also around sends and receives; gpipe: `Forward {i}` and
    `Backward {i}`. Without micro-batches: megatron (its NVTX ranges) and dualpipe (`mlp(F)`, `1F1B`)."""

    # ---- model (per rank shapes follow from it) ----
    layers: int = 1
    """Layers a chunk of a stage."""
    hidden: int = 1024
    ffn: int = 4096
    heads: int = 16
    sequence: int = 2048
    batch: int = 1
    """Sequences a micro-batch."""
    vocab: int = 4096
    embedding: bool = False
    """Embedding on the first stage."""
    head: bool = False
    """Logits and loss on the last stage."""
    recompute: Literal[False, True, "early_stop"] = False
    """Every layer's forward runs again before its backward. early_stop: but for what follows its last matrix product,
    which is recorded as an operator and launches nothing, as non-reentrant checkpointing leaves it."""
    bias: bool = False
    """Linear layers launch addmm instead of mm."""
    dtype: Literal["bf16", "fp16", "fp32"] = "bf16"
    fp8_linears: bool = False
    """Linear layers run as scaled products of 8-bit operands; attention keeps `dtype`."""

    # ---- device ----
    device_name: str = "NVIDIA H100 80GB HBM3"
    device_memory: int = 85_017_624_576
    gemm_flops_per_ns: float = 600_000.0
    """Achieved rate of GEMMs (600 TFLOP/s)."""
    attention_flops_per_ns: float = 400_000.0
    memory_bytes_per_ns: float = 2_500.0
    kernel_floor_ns: int = 2_000
    """No kernel is shorter."""
    jitter: float = 0.0
    """Standard deviation of compute durations, as a share."""

    # ---- communication ----
    nvlink_gbs: float = 300.0
    nic_gbs: float = 100.0
    comm_latency_ns: int = 8_000
    zero_transfer: bool = False
    """Every transfer takes no time at all."""
    comm_jitter: float = 0.0
    """Largest excess of a transfer, as a share, drawn uniformly."""
    end_jitter_ns: int = 0
    """Largest delay of one member's end behind the instance's end, drawn uniformly."""
    grad_norm: bool = True
    """All-reduce of the gradient norm over the stages before the optimizer (pp > 1)."""
    custom_all_reduce: bool = False
    """Tensor-parallel all-reduces are custom kernels on the compute stream, without any arguments recorded."""
    bucket_layers: int = 1
    """Layers whose gradients share a bucket (ddp, zero1)."""
    grad_overlap: bool = True
    """Gradient buckets are sent during the backward pass; else all after it."""

    # ---- host ----
    op_ns: int = 2_500
    """Host time of an operator apart from its launches."""
    launch_ns: int = 1_800
    """Duration of a launch call."""
    latency_ns: int = 4_000
    """From the start of a launch call to the earliest start on the GPU."""
    latency_jitter_ns: int = 0
    host_jitter: float = 0.0
    """Standard deviation of host times, as a share."""
    dataloader_ns: int = 40_000
    between_steps_ns: int = 6_000
    copies: bool = True
    """Host-to-device copies of the batch on a side stream, memsets of gradients."""
    optimizer_kernels: int = 2
    optimizer: bool = True
    sync_step: bool = True
    """Each step ends with a copy to the host and cudaStreamSynchronize, as `loss.item()` does."""
    checkpoint_step: int | None = None
    """Step that saves a checkpoint at its end (range `save_checkpoint`, copies to the host)."""

    # ---- perturbations ----
    slow_ranks: Mapping[int, float] = field(default_factory=dict)
    """Rank to factor on its compute durations."""
    slow_steps: tuple[int, ...] | None = None
    """Steps in which the slow ranks are slow; None: all."""
    heavy_stages: Mapping[int, float] = field(default_factory=dict)
    """Pipeline stage to factor on its compute durations."""
    slow_hosts: Mapping[int, float] = field(default_factory=dict)
    """Rank to factor on all its host times."""
    long_sequences: Mapping[int, float] = field(default_factory=dict)
    """Data-parallel index to factor on its sequence length (shapes and durations follow)."""
    length_jitter: float = 0.0
    """Standard deviation of the sequence length over micro-batches, as a share, per data-parallel index."""
    slow_links: tuple[SlowLink, ...] = ()
    stalls: tuple[Stall, ...] = ()

    # ---- clocks and recording ----
    clock_offsets_ns: Mapping[int, int] = field(default_factory=dict)
    """Host number to what its clock shows too much."""
    clock_drifts_ppm: Mapping[int, float] = field(default_factory=dict)
    """Host number to how fast its clock runs, parts per million."""
    resolution_ns: int = 1
    """Clock ticks: 1000 for traces of whole microseconds."""
    group_naming: Literal["mesh", "megatron", "undefined"] = "mesh"
    p2p_peers: Literal[False, True, "names"] = False
    """Source and destination ranks of sends and receives are recorded (never for batched ones), as arguments and in
    the names of ranges, or in those names alone."""
    seed: int = 0

    def replace(self, **changes: Any) -> Config:  # noqa: ANN401 - any field of the config
        """Return this config with some knobs changed."""
        return replace(self, **changes)

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.dp * self.tp * self.pp * self.cp
