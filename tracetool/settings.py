"""What a user may decide about the numbers: every option that changes a result, declared once.

How jobs run, where the cache lies and what is printed are not settings: they never change a number.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Options that change results. The command line and `open_run` fill it; analyses only read it."""

    ranks: tuple[int, ...] | None = None
    """Ranks to look at; None means all that are found."""
    rank_regex: str | None = None
    """Regular expression whose first group is the rank, searched in the path of each source."""
    world_size: int | None = None
    """Number of ranks of the job, where the traces do not say."""
    iteration: int | None = None
    """Which iteration to take when one rank has files of several."""
    steps: tuple[int, ...] | None = None
    """Step numbers to keep; None means all."""
    ignore_steps: bool = False
    """Take one window from first to last GPU activity (`--steps none`)."""
    step_range: str | None = None
    """Regular expression of the annotations that are steps, instead of `ProfilerStep#N`."""
    gpus_per_node: int | None = None
    """Ranks a host holds, where the traces do not name hosts."""
    hosts: str | None = None
    """File with lines `rank host` that names the host of each rank."""
    nic_gbs: float | None = None
    """Line rate of one NIC in one direction, GB/s."""
    model: str | None = None
    """Path of a Hugging Face config.json: FLOPs from the model instead of from shapes."""
    tokens_per_step: int | None = None
    """Tokens of the whole job in one optimizer step."""
    mtp: bool = False
    """Count the layers that predict further tokens (MTP) which the model's config names."""
    flops_per_step: float | None = None
    """Model FLOPs of the whole job in one optimizer step."""
    peak_tflops: float | None = None
    """Dense peak of one device in TFLOP/s; wins over the table of devices."""
    mfu_convention: str = "causal"
    """`causal` (half of causal attention) or `full`: which one headlines and gates use."""
    what_if_device: str | None = None
    """Name of another device under whose roofs the same operators are shown."""
    nccl_tests: str | None = None
    """Output file of nccl-tests: the cluster's own bandwidth ceiling."""
    comm_pattern: str | None = None
    """Regular expression of further kernel names that are communication."""
    anonymize: bool = False
    """Take the names of hosts, files and directories out of every result."""
    slice_budget: int = 100_000
    """Slices the timeline may hold over all ranks."""
