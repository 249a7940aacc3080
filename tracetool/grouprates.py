"""How fast each operation of each group went, beside what the wires, NCCL and a benchmark allow.

Transfer, not duration, makes a bandwidth: waiting for other ranks is left out. Where nothing was matched or members are
missing the duration still holds waiting, and the bandwidth is a lower bound, marked so. Formulas: tracetool.bandwidth.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

from tracetool import bandwidth

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tracetool.hardware import Device

COLUMNS: Final = (
    "group", "ranks", "role", "op", "size", "hosts", "bytes", "count", "wait_ns", "transfer_ns", "transfer_p50_ns",
    "algbw_gbs", "busbw_gbs", "line_rate_gbs", "share_of_line_rate", "nccl_gbs", "share_of_nccl", "ceiling_gbs",
    "share_of_ceiling", "lower_bound", "untold", "untold_ns",
)  # fmt: skip
_KEY: Final = ("group_id", "op", "bytes")


def host_names(ranks: Sequence[int], size: int | None, host_of: Mapping[int, str]) -> tuple[str, ...]:
    """Return the hosts of a group, sorted; none when that of some member is not known."""
    if size is None or len(ranks) < size or any(rank not in host_of for rank in ranks):
        return ()
    return tuple(sorted({host_of[rank] for rank in ranks}))


def rates(
    sums: pl.DataFrame,
    groups: pl.DataFrame,
    host_of: Mapping[int, str],
    *,
    device: Device | None,
    curve: pl.DataFrame | None,
    nic_gbs: float | None,
) -> pl.DataFrame:
    """Return one row an operation of one size over one group, with columns COLUMNS, the longest transfer first.

    `sums` and `groups` are the tables `collective_sums` and `groups` of the join; `host_of` names the host of each
    rank whose host is known; `curve` is table `bandwidth_curve`; `nic_gbs` is the rate of a NIC, GB/s.
    """
    of_group = {row["group_id"]: row for row in groups.iter_rows(named=True)}
    link = device.link_gbs if device else None
    whole = (
        sums.group_by(_KEY)
        .agg(
            pl.col("instances", "partial", "bytes_total", "wait_ns", "transfer_ns", "untold", "untold_ns").sum(),
            transfer_p50_ns=pl.col("transfer_p50_ns").median().round().cast(pl.Int64),
        )
        .sort(_KEY)
    )
    rows = []
    for row in whole.iter_rows(named=True):
        group = of_group[row["group_id"]]
        size = 2 if row["op"] in ("send", "recv", "send_recv") else group["size"]
        matched = row["instances"] > 0
        total = row["bytes_total"] if matched else (row["bytes"] or 0) * row["untold"]
        ns = row["transfer_ns"] if matched else row["untold_ns"]
        algbw = bandwidth.gbs(total, ns) if row["bytes"] else None
        factor = bandwidth.bus_factor(row["op"], size) if size else None
        busbw = algbw * factor if algbw is not None and factor is not None else None
        hosts = len(host_names(group["ranks"], group["size"], host_of)) or None
        line = nccl = measured = None
        if size and hosts:
            line = bandwidth.line_rate_gbs(row["op"], size, min(hosts, size), link, nic_gbs)
            nccl = bandwidth.nccl_gbs(device) if hosts == 1 else None
        if curve is not None and row["bytes"]:
            measured = bandwidth.ceiling_gbs(curve, row["op"], row["bytes"])
        rows.append(
            {
                "group": group["group"], "ranks": group["ranks"] or group["members"], "role": group["role"],
                "op": row["op"], "size": size, "hosts": hosts, "bytes": row["bytes"],
                "count": row["instances"] if matched else row["untold"],
                "wait_ns": row["wait_ns"] if matched else None, "transfer_ns": row["transfer_ns"] if matched else None,
                "transfer_p50_ns": row["transfer_p50_ns"],
                "algbw_gbs": algbw, "busbw_gbs": busbw,
                "line_rate_gbs": line, "share_of_line_rate": _ratio(busbw, line),
                "nccl_gbs": nccl, "share_of_nccl": _ratio(busbw, nccl),
                "ceiling_gbs": measured, "share_of_ceiling": _ratio(busbw, measured),
                "lower_bound": not matched or row["partial"] > 0,
                "untold": row["untold"], "untold_ns": row["untold_ns"],
            }
        )  # fmt: skip
    found = pl.DataFrame(rows, schema=_SCHEMA)
    order = pl.coalesce("transfer_ns", "untold_ns")
    return found.sort(order, "group", "ranks", "op", "bytes", descending=[True, False, False, False, False])


_NOT_INTEGERS: Final[dict[str, pl.DataType | type[pl.DataType]]] = {
    "group": pl.String, "role": pl.String, "op": pl.String, "ranks": pl.List(pl.Int32), "lower_bound": pl.Boolean,
}  # fmt: skip
_SCHEMA: Final = {
    name: pl.Float64 if name.endswith("_gbs") or name.startswith("share_") else _NOT_INTEGERS.get(name, pl.Int64)
    for name in COLUMNS
}


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None
