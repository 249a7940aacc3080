"""The runs that stand in sample_traces/."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from simulator.config import Config, SlowLink, Stall
from simulator.run import simulate

if TYPE_CHECKING:
    from pathlib import Path

HEALTHY: Final = Config(
    dp=2,
    tp=2,
    pp=2,
    gpus_per_node=4,
    steps=3,
    microbatches=8,
    layers=2,
    hidden=4096,
    ffn=16384,
    heads=32,
    vocab=4096,
    embedding=True,
    head=True,
    nvlink_gbs=400.0,
    nic_gbs=200.0,
    jitter=0.01,
    comm_jitter=0.1,
    end_jitter_ns=3_000,
    host_jitter=0.1,
    latency_jitter_ns=1_500,
    clock_offsets_ns={1: 1_350_000},
    clock_drifts_ppm={1: 8.0},
    p2p_peers=True,
    seed=20,
)
"""A two-host run without trouble: 1F1B over two stages, tensor parallel pairs, gradients sent in the backward pass."""

TROUBLED: Final = HEALTHY.replace(
    slow_ranks={5: 1.25},
    grad_overlap=False,
    slow_links=(SlowLink(6.0, role="dp"),),
    stalls=(Stall(2, 6_000_000, "dataloader"), Stall(2, 3_000_000, "sync")),
    seed=21,
)
"""The same run with three faults: a slow rank, gradients sent late over a slow link, a host that stalls."""

SAMPLES: Final = {"healthy": HEALTHY, "troubled": TROUBLED}


def write(directory: Path) -> list[Path]:
    """Write every sample below `directory` and return the paths."""
    return [
        path
        for name, config in SAMPLES.items()
        for path in simulate(config).write_kineto(directory / name, compression=9)
    ]
