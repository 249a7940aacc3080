"""Rates of groups: pairs count as two ranks, lower bounds say so, hosts are known of all members or of none."""

from __future__ import annotations

import polars as pl

from tracetool import hardware
from tracetool.grouprates import COLUMNS, host_names, rates

GROUPS = pl.DataFrame(
    {"group_id": [0], "group": ["p"], "ranks": [[0, 1, 2, 3]], "members": [[0, 1, 2, 3]], "role": ["pp"], "size": [4]}
)


def _sums(op: str, size: int | None, *, instances: int, transfer_ns: int, untold: int, untold_ns: int) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "group_id": [0],
            "op": [op],
            "bytes": pl.Series([size], dtype=pl.Int64),
            "instances": [instances],
            "partial": [0],
            "bytes_total": [(size or 0) * instances],
            "wait_ns": [7],
            "transfer_ns": [transfer_ns],
            "transfer_p50_ns": [5],
            "untold": [untold],
            "untold_ns": [untold_ns],
        }
    )


def test_hosts_are_known_of_all_members_or_of_none() -> None:
    assert host_names([0, 1, 2], 3, {0: "b", 1: "a", 2: "b"}) == ("a", "b")
    assert host_names([0, 1], 3, {0: "b", 1: "a"}) == ()
    assert host_names([0, 1], 2, {0: "b"}) == ()
    assert host_names([0, 1], None, {0: "b", 1: "b"}) == ()


def test_a_message_is_between_two_ranks_whatever_the_group() -> None:
    sums = _sums("send_recv", 4000, instances=2, transfer_ns=80, untold=0, untold_ns=0)
    hosts = {0: "a", 1: "b", 2: "c", 3: "d"}
    table = rates(sums, GROUPS, hosts, device=hardware.find("NVIDIA H100 80GB HBM3"), curve=None, nic_gbs=200.0)
    assert table.columns == list(COLUMNS)
    row = table.row(0, named=True)
    assert (row["size"], row["count"], row["busbw_gbs"], row["line_rate_gbs"]) == (2, 2, 100.0, 200.0)
    assert row["share_of_line_rate"] == 0.5
    assert not row["lower_bound"]


def test_what_was_not_matched_is_a_lower_bound_without_transfer() -> None:
    sums = _sums("all_reduce", 4000, instances=0, transfer_ns=0, untold=3, untold_ns=120)
    row = rates(sums, GROUPS, {}, device=None, curve=None, nic_gbs=None).row(0, named=True)
    assert (row["count"], row["transfer_ns"], row["wait_ns"], row["algbw_gbs"]) == (3, None, None, 100.0)
    assert row["busbw_gbs"] == 150.0
    assert row["lower_bound"]
    assert row["line_rate_gbs"] is None


def test_without_bytes_there_is_no_bandwidth() -> None:
    sums = _sums("all_reduce", None, instances=2, transfer_ns=80, untold=0, untold_ns=0)
    row = rates(sums, GROUPS, {}, device=None, curve=None, nic_gbs=None).row(0, named=True)
    assert (row["algbw_gbs"], row["busbw_gbs"]) == (None, None)
