"""What an analysis may need from a run, and what to tell a user whose traces lack it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Need:
    """One need: what is missing when it is not met, and the exact option that records it next time."""

    missing: str
    hint: str

    def sentence(self) -> str:
        """Return the reason shown where an analysis was skipped."""
        return f"{self.missing}. {self.hint}"


NEEDS: Final[dict[str, Need]] = {
    "events": Need("no events in the traces", "Record with torch.profiler.profile() around some training steps."),
    "gpu": Need(
        "no GPU activity in the traces",
        "Record with torch.profiler.profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]).",
    ),
    "cpu_ops": Need(
        "no CPU operators in the traces",
        "Record with torch.profiler.profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]).",
    ),
    "launches": Need(
        "no launch calls in the traces",
        "Record with ProfilerActivity.CPU and ProfilerActivity.CUDA together.",
    ),
    "comm": Need(
        "no communication kernels in the traces",
        "This run has one GPU, or its collectives run on the CPU or under names tracetool does not know: "
        "--comm-pattern REGEX names them.",
    ),
    "shapes": Need("no operator shapes in the traces", "Record with torch.profiler.profile(record_shapes=True)."),
    "memory": Need("no memory events in the traces", "Record with torch.profiler.profile(profile_memory=True)."),
    "several_ranks": Need(
        "only one rank was traced", "Record every rank: call the profiler on all of them and collect the files."
    ),
    "in_flight": Need(
        "no flight-recorder or NCCL log entries in the traces",
        "Set TORCH_FR_BUFFER_SIZE=2000 (TORCH_NCCL_TRACE_BUFFER_SIZE before torch 2.8) and TORCH_NCCL_DUMP_ON_TIMEOUT=1.",
    ),
}
"""Every need by name. `ingest` finds out which are met; the registry refuses an analysis that names another."""
