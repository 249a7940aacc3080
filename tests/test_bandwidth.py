"""Bandwidth: the conventions of nccl-tests, line rates across hosts, ceilings between measured sizes."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import polars as pl
import pytest

from tracetool import hardware
from tracetool.bandwidth import NCCL_GBS, bus_factor, ceiling_gbs, gbs, line_rate_gbs, nccl_gbs
from tracetool.registry import ParseOptions
from tracetool.tables import frame

if TYPE_CHECKING:
    from pathlib import Path


def _busbw(op: str, ranks: int, total_bytes: int, ns: int) -> float:
    algbw, factor = gbs(total_bytes, ns), bus_factor(op, ranks)
    assert algbw is not None
    assert factor is not None
    return algbw * factor


@pytest.mark.parametrize(
    ("op", "factor"),
    [
        ("all_reduce", 1.75),
        ("all_gather", 0.875),
        ("reduce_scatter", 0.875),
        ("all_to_all", 0.875),
        ("gather", 0.875),
        ("scatter", 0.875),
        ("broadcast", 1.0),
        ("reduce", 1.0),
        ("send_recv", 1.0),
        ("barrier", None),
        ("unknown", None),
    ],
)
def test_factors_of_eight_ranks(op: str, factor: float | None) -> None:
    assert bus_factor(op, 8) == factor
    assert bus_factor(op, 1) is None


def test_without_time_there_is_no_bandwidth() -> None:
    assert gbs(8, 0) is None


def test_the_documentation_samples_of_inspector_recompute_to_the_digit() -> None:
    # plugins/profiler/inspector/README.md of NVIDIA/nccl: sizes are per rank
    assert round(17179869184 / 61974e3, 2) == 277.21
    assert round(_busbw("all_reduce", 8, 17179869184, 61_974_000), 2) == 485.12
    assert round(_busbw("reduce_scatter", 8, 8 * 2147483648, 41_057_000), 2) == 366.13
    assert round(_busbw("reduce_scatter", 32, 32 * 65536, 110_000), 3) == 18.469


def test_inspector_files_carry_the_totals_that_the_formulas_want(shared: Path) -> None:
    path = shared / "nccl" / "inspector" / "nccl-docs-examples.jsonl"
    tables = import_module("tracetool.parsers.nccl_inspector").parse(path, ParseOptions(display_path="x"))
    sizes = dict(tables["process_groups"].select("group", "size").iter_rows())
    found = [
        round(_busbw(op, sizes[group], size, ns), 2)
        for op, group, size, ns in tables["collectives"]
        .select(pl.col("op").cast(pl.String), pl.col("group").cast(pl.String), "bytes", "duration_ns")
        .iter_rows()
    ]
    assert sorted(found) == [18.47, 366.13, 485.12]


def test_every_row_of_nccl_tests_recomputes(shared: Path) -> None:
    path = shared / "nccl" / "nccl_tests" / "all_reduce_perf_2x8_H100_a3mega.txt"
    curve = import_module("tracetool.parsers.nccl_tests").parse(path, ParseOptions(display_path="x"))["bandwidth_curve"]
    large = curve.filter(pl.col("time_ns") >= 100_000)
    assert large.height > 20
    for size, ns, algbw, busbw in large.select("bytes", "time_ns", "algbw_gbs", "busbw_gbs").iter_rows():
        # times are printed with four digits
        assert gbs(size, ns) == pytest.approx(algbw, rel=1e-3, abs=0.006)
        assert _busbw("all_reduce", 16, size, ns) == pytest.approx(busbw, rel=1e-3, abs=0.006)
    assert ceiling_gbs(curve, "all_reduce", 8 << 30) == 338.82
    assert ceiling_gbs(curve, "all_reduce", 64 << 30) == 338.82
    assert ceiling_gbs(curve, "all_reduce", 4) is None


def test_the_ceiling_lies_between_its_neighbours_and_belongs_to_its_operation() -> None:
    curve = frame(
        "bandwidth_curve",
        {
            "source": ["x"] * 3,
            "op": ["all_reduce"] * 3,
            "bytes": [100, 10_000, 10_000],
            "in_place": [False, False, True],
            "time_ns": [1, 1, 1],
            "algbw_gbs": [1.0, 1.0, 1.0],
            "busbw_gbs": [10.0, 29.0, 30.0],
        },
    )
    assert ceiling_gbs(curve, "all_reduce", 1000) == pytest.approx(20.0)
    assert ceiling_gbs(curve, "all_gather", 1000) is None


@pytest.mark.parametrize(
    ("op", "ranks", "hosts", "rate"),
    [
        ("all_reduce", 8, 1, 450.0),
        ("all_reduce", 16, 2, 375.0),  # 8 NICs of 25 GB/s × (15/16) / (1/2)
        ("all_gather", 16, 2, 375.0),
        ("all_reduce", 2, 2, 25.0),
        ("all_reduce", 32, 2, 450.0),  # the links are the limit
        ("all_to_all", 16, 2, 25 * 15 / 8),
        ("send_recv", 2, 2, 25.0),
        ("broadcast", 16, 2, 200.0),
    ],
)
def test_line_rates(op: str, ranks: int, hosts: int, rate: float) -> None:
    assert line_rate_gbs(op, ranks, hosts, 450.0, 25.0) == pytest.approx(rate)


def test_unknown_rates_stay_unknown() -> None:
    assert line_rate_gbs("all_reduce", 16, 2, 450.0, None) is None
    assert line_rate_gbs("all_reduce", 8, 1, None, 25.0) is None
    assert nccl_gbs(None) is None


def test_what_nccl_expects_of_a_device() -> None:
    assert nccl_gbs(hardware.find("NVIDIA H100 80GB HBM3")) == 370.8
    assert nccl_gbs(hardware.find("NVIDIA A100-SXM4-80GB")) == 240.0
    assert nccl_gbs(hardware.find("Tesla T4")) is None
    assert {rate for _, _, rate in NCCL_GBS} == {240.0, 370.8, 721.8}
