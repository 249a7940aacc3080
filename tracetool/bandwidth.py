"""How fast a communication moved, and how fast it could: algorithm and bus bandwidth, line rates, measured ceilings.

GB = 1e9 bytes. S are the total bytes of an operation as nccl-tests count them (all_gather, reduce_scatter,
all_to_all, gather, scatter: n times what one rank gives or gets from each other; else one rank's buffer), t its time,
n its ranks: algbw = S / t, busbw = algbw × factor, which makes operations and group sizes comparable with the rate of
a link. Factors: NVIDIA/nccl-tests 2.19, doc/PERFORMANCE.md.

Line rate of a group on one host: the links of one device, one direction. Over N hosts with k ranks each and a NIC for
each rank: the NICs of a host together × [(n − 1) / n] / [(N − 1) / N], because what stays on a host does not cross a
NIC (all_to_all: one NIC × (n − 1) / (n − k)), and never more than the links. Bus bandwidth above a line rate is real
where the switch computes (NVLS).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import polars as pl

if TYPE_CHECKING:
    from tracetool.hardware import Device

_HALF: Final = ("all_gather", "reduce_scatter", "all_to_all", "gather", "scatter")

NCCL_GBS: Final = (
    (("a100", "a800"), 300.0, 240.0),
    (("h100", "h200"), 450.0, 370.8),
    (("b200", "gb200"), 900.0, 721.8),
)
"""(device families, their link rate, the bus bandwidth NCCL's own model expects of them), GB/s.

NVIDIA/nccl 2.28, src/graph/topo.h: 20.0, 20.6 and 40.1 GB/s a link (SM80, SM90, SM100) × 12, 18 and 18 links.
"""


def bus_factor(op: str, ranks: int) -> float | None:
    """Return busbw ÷ algbw of an operation over `ranks` ranks; None for an unknown operation or less than 2 ranks."""
    if ranks < 2:  # noqa: PLR2004 - nothing moves
        return None
    if op == "all_reduce":
        return 2 * (ranks - 1) / ranks
    if op in _HALF:
        return (ranks - 1) / ranks
    return 1.0 if op in ("broadcast", "reduce", "send", "recv", "send_recv") else None


def gbs(total_bytes: int, ns: int) -> float | None:
    """Return bytes ÷ time in GB/s (1e9); None without a time."""
    return total_bytes / ns if ns > 0 else None


def line_rate_gbs(op: str, ranks: int, hosts: int, link_gbs: float | None, nic_gbs: float | None) -> float | None:
    """Return the largest bus bandwidth the wires allow a group of `ranks` on `hosts` hosts; None when not known."""
    if hosts <= 1:
        return link_gbs
    if nic_gbs is None or hosts > ranks:
        return None
    on_a_host = ranks / hosts
    if op in ("send", "recv", "send_recv"):
        rate = nic_gbs
    elif op == "all_to_all":
        rate = nic_gbs * (ranks - 1) / (ranks - on_a_host)
    elif op in ("broadcast", "reduce"):
        rate = nic_gbs * on_a_host
    else:
        rate = nic_gbs * on_a_host * ((ranks - 1) / ranks) / ((hosts - 1) / hosts)
    return rate if link_gbs is None or on_a_host == 1 else min(rate, link_gbs)


def nccl_gbs(device: Device | None) -> float | None:
    """Return the bus bandwidth that NCCL expects of a device's links inside a host; None when not known."""
    if device is None:
        return None
    family = device.key.partition("-")[0]
    return next((rate for names, link, rate in NCCL_GBS if family in names and device.link_gbs == link), None)


def ceiling_gbs(curve: pl.DataFrame, op: str, total_bytes: int) -> float | None:
    """Return the bus bandwidth a benchmark reached for this operation and size, linear between sizes on a log scale.

    `curve` is table `bandwidth_curve`; rows that do not say their operation count for all. Of measurements in and out
    of place the faster one counts. None below the smallest size; above the largest, the largest one's.
    """
    mine = curve.filter((pl.col("op") == op) | pl.col("op").is_null(), pl.col("bytes") > 0)
    best = mine.group_by("bytes").agg(pl.col("busbw_gbs").max()).sort("bytes")
    if not best.height or total_bytes < best["bytes"][0]:
        return None
    sizes = np.log(best["bytes"].to_numpy().astype(np.float64))
    return float(np.interp(np.log(float(total_bytes)), sizes, best["busbw_gbs"].to_numpy()))
