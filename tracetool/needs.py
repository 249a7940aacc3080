"""What an analysis may need from a rank's tables, and what to tell a user whose traces lack it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    import polars as pl


@dataclass(frozen=True)
class Need:
    """One need: the table that meets it, what is missing when it does not, and the option that records it.

    It is met by a rank whose `table` has a row in which `column` is not null, or equals `value` if one is given;
    without a column, by any row.
    """

    table: str
    column: str | None
    value: str | None
    missing: str
    hint: str

    def sentence(self) -> str:
        """Return the reason shown where an analysis was skipped."""
        return f"{self.missing}. {self.hint}"

    def met(self, read: Callable[[str], pl.DataFrame | None]) -> bool:
        """Say whether the tables that `read` returns by name (None: not there) meet the need."""
        table = read(self.table)
        if table is None or not table.height:
            return False
        if self.column is None:
            return True
        if self.value is None:
            return table[self.column].null_count() < table.height
        return bool((table[self.column] == self.value).any())


_BOTH: Final = "Record with torch.profiler.profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])."

NEEDS: Final[dict[str, Need]] = {
    "events": Need(
        "events", None, None, "no events in the traces", "Record some training steps with torch.profiler.profile()."
    ),
    "gpu": Need("gpu", None, None, "no GPU activity in the traces", _BOTH),
    "launches": Need("gpu", "launch", None, "no launch calls of GPU activity in the traces", _BOTH),
    "cpu_ops": Need("events", "category", "cpu_op", "no CPU operators in the traces", _BOTH),
    "comm": Need(
        "comms",
        None,
        None,
        "no communication kernels in the traces",
        "The run has one GPU, or communicates on the CPU, or its kernels have names tracetool does not know: "
        "--comm-pattern REGEX names them.",
    ),
    "shapes": Need(
        "op_shapes",
        "input_dims",
        None,
        "no operator shapes in the traces",
        "Record with torch.profiler.profile(record_shapes=True); under nsys run the steps inside "
        "torch.autograd.profiler.emit_nvtx(record_shapes=True).",
    ),
    "memory": Need(
        "counters",
        None,
        None,
        "no memory events in the traces",
        "Record with torch.profiler.profile(profile_memory=True).",
    ),
    "in_flight": Need(
        "dumps",
        None,
        None,
        "no flight-recorder dumps or NCCL logs among the files",
        "Set TORCH_FR_BUFFER_SIZE=2000 (TORCH_NCCL_TRACE_BUFFER_SIZE before torch 2.8) and "
        "TORCH_NCCL_DUMP_ON_TIMEOUT=1.",
    ),
    "recorded": Need(
        "collectives",
        None,
        None,
        "no records of NCCL Inspector, a flight recorder or NCCL_DEBUG=INFO among the files",
        "Set NCCL_PROFILER_PLUGIN to the Inspector's library and NCCL_INSPECTOR_ENABLE=1 (NCCL 2.28 and later), or "
        "TORCH_FR_BUFFER_SIZE=2000.",
    ),
    "log_facts": Need(
        "log_facts",
        None,
        None,
        "no NCCL_DEBUG lines among the files",
        "Set NCCL_DEBUG=INFO and NCCL_DEBUG_SUBSYS=INIT,NET,TUNING, and keep the logs.",
    ),
}
"""Every need by name. `ingest` finds out which are met; the registry refuses an analysis that names another."""
