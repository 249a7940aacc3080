"""Why a bandwidth, a line rate or a verdict on a link could not be had: a sentence each, beside the figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from tracetool.hardware import Device


def rate_notes(table: pl.DataFrame, device: Device | None, nic_gbs: float | None) -> list[str]:
    """Return what is missing in bandwidths and line rates; `table` has columns grouprates.COLUMNS."""
    notes = []
    if table["lower_bound"].any():
        notes.append(
            "Rows marked lower_bound hold waiting of ranks that were not traced or not matched: their bandwidths are "
            "lower bounds."
        )
    missing: dict[str, list[str]] = {}
    for (role,), mine in table.sort("role").partition_by("role", as_dict=True, maintain_order=True).items():
        if why := _no_bandwidth(mine):
            missing.setdefault(why, []).append(str(role))
    notes += [f"No bus bandwidth of {', '.join(roles)} as a whole: {why}." for why, roles in missing.items()]
    if table["line_rate_gbs"].is_null().any():
        notes.append(f"Some line rates are null: {'; '.join(_no_line_rate(table, device, nic_gbs))}.")
    if nic_gbs is not None:
        notes.append(f"Across hosts one NIC of {nic_gbs:g} GB/s is assumed for each GPU (--nic-gbs).")
    return notes


def _no_bandwidth(mine: pl.DataFrame) -> str:
    """Return why the rows of one role give no bandwidth; empty where they do."""
    if mine.filter(pl.col("busbw_gbs").is_not_null() & ~pl.col("lower_bound")).height:
        return ""
    sized = mine.filter(pl.col("bytes").fill_null(0) > 0)
    if not sized.height:
        return "how many bytes moved was not recorded"
    if not sized.filter(pl.col("size").is_not_null()).height:
        return "how many ranks its groups have is not known"
    if sized.filter(pl.col("busbw_gbs").is_not_null()).height:
        return "no instance was matched with all its members, so that only lower bounds are known"
    return "its operations are of no kind that has a bus bandwidth, or no time in which data moved is known"


def _no_line_rate(table: pl.DataFrame, device: Device | None, nic_gbs: float | None) -> list[str]:
    lacking = table.filter(pl.col("line_rate_gbs").is_null())
    why = []
    if device is None:
        why.append("the device's link rate is not known")
    elif device.link_gbs is None:
        why.append(f"{device.name} has no links whose rate is known")
    if lacking["size"].is_null().any():
        why.append("how many ranks some groups have is not known")
    if lacking.filter(pl.col("size").is_not_null())["hosts"].is_null().any():
        why.append("which ranks share a host is not known (--gpus-per-node or --hosts)")
    if nic_gbs is None and (lacking["hosts"] > 1).any():
        why.append("the NICs' rate is not known (--nic-gbs)")
    return why or ["some groups have fewer ranks than hosts"]


def link_notes(links: int, judged: int, unclear: int) -> list[str]:
    """Return why links could not be judged.

    Counts of communicators: in table `links`, those of them that have peers, and those left out because the clocks of
    their hosts are not known well enough.
    """
    notes = []
    if not links and not unclear:
        notes.append(
            "No link can be judged: none has a matched communication with all its members, a known size and a time in "
            "which data moved."
        )
    if judged < links:
        notes.append(
            f"{links - judged} of {links} links have no peers, no other that carries the same operation and size for "
            "the same role over as many ranks and hosts, and cannot be judged."
        )
    if unclear:
        notes.append(
            f"{unclear} {'pair' if unclear == 1 else 'pairs'} of ranks left out of the links: their hosts' clocks are "
            "not known to a tenth of a transfer."
        )
    return notes
