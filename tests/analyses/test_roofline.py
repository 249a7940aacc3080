"""Roofline: which roof binds, what is lost below it, and the same operators on another device."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import polars as pl
import pytest
from inmemory import ask
from traced import Call, mm, traced

import tracetool
from tracetool.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    from tracetool.results import Result

roofline = importlib.import_module("tracetool.analyses.roofline")

H100 = "NVIDIA H100 80GB HBM3"
PEAK, BANDWIDTH = 989.4e12, 3350e9
STEP_NS = 10_000_000


def one(*calls: Call, settings: Settings | None = None, device: str = H100) -> Result:
    return ask(roofline, [traced(calls, windows=[(0, 0, STEP_NS)])], settings, device_name=device)


def test_a_large_product_is_bound_by_compute() -> None:
    m, k, n, ns = 8192, 4096, 4096, 400_000
    row = one(mm(m, k, n, ns)).tables["ops"].row(0, named=True)
    flops, moved = 2 * m * k * n, 2 * (m * k + k * n + m * n)
    assert (row["flops"], row["moved_bytes"], row["bound"]) == (flops, moved, "compute")
    assert row["intensity"] == pytest.approx(flops / moved)
    assert row["ridge"] == pytest.approx(PEAK / BANDWIDTH)
    assert row["attainable_ns"] == round(flops / PEAK * 1e9)
    assert row["lost_ns"] == ns - row["attainable_ns"]
    assert row["share_of_attainable"] == pytest.approx(row["attainable_ns"] / ns)
    assert row["tflops"] == pytest.approx(flops / ns / 1e3)
    assert row["gbs"] == pytest.approx(moved / ns)
    assert row["share_of_measured_best"] == pytest.approx(row["tflops"] / 794.5)


def test_a_thin_product_is_bound_by_memory() -> None:
    row = one(mm(8, 8192, 8192, 60_000)).tables["ops"].row(0, named=True)
    moved = 2 * (8 * 8192 + 8192 * 8192 + 8 * 8192)
    assert row["bound"] == "memory"
    assert row["attainable_ns"] == round(moved / BANDWIDTH * 1e9)


@pytest.mark.parametrize(("ns", "bound"), [(5_000, "latency"), (20_000, "memory"), (20, "memory")])
def test_a_short_call_far_from_both_roofs_is_bound_by_latency(ns: int, bound: str) -> None:
    assert one(mm(64, 64, 64, ns)).tables["ops"]["bound"].to_list() == [bound]


def test_causal_attention_is_credited_what_it_skips() -> None:
    qkv = [[1, 16, 4096, 128]] * 3
    scalars = ["", "", "", "0.", "True"]
    kernel = [("flash", "compute", 500_000)]
    call = Call("aten::_scaled_dot_product_flash_attention", qkv, kernels=kernel, concrete=scalars)
    row = one(call).tables["ops"].row(0, named=True)
    assert row["flops"] == 2 * 16 * 4096 * 4096 * 256 / 2


def test_attention_of_an_unknown_mask_is_an_upper_bound_and_said() -> None:
    """NVTX ranges hold sizes and no flags: counted in full."""
    qkv = [[1, 16, 4096, 128]] * 3
    kernel = [("flash", "compute", 500_000)]
    silent = Call("aten::_scaled_dot_product_flash_attention", qkv, kernels=kernel)
    result = one(silent, mm(8192, 4096, 4096, 400_000))
    row = result.tables["ops"].filter(pl.col("family") == "attention").row(0, named=True)
    assert row["flops"] == 2 * 16 * 4096 * 4096 * 256
    assert "mask_unknown" in row["flags"]
    assert any("upper bounds" in note and "lower bound" in note for note in result.notes)
    assert result.headline[0].note.endswith("at most")
    told = Call("aten::_scaled_dot_product_flash_attention", qkv, kernels=kernel, concrete=["", "", "", "0.", "True"])
    known = one(told, mm(8192, 4096, 4096, 400_000))
    assert not any("upper bounds" in note for note in known.notes)
    assert not known.headline[0].note.endswith("at most")


def test_operators_faster_than_the_roof_lose_nothing() -> None:
    """Operands that stay in a cache exceed the memory roof."""
    row = one(mm(8, 8192, 8192, 30_000)).tables["ops"].row(0, named=True)
    assert row["lost_ns"] == 0
    assert row["share_of_attainable"] > 1


def test_time_adds_up_by_bound() -> None:
    result = one(mm(8192, 4096, 4096, 400_000), mm(8, 8192, 8192, 60_000), mm(64, 64, 64, 5_000))
    bounds = result.tables["bounds"]
    assert dict(bounds.select("bound", "kernel_ns").rows()) == {"compute": 400_000, "memory": 60_000, "latency": 5_000}
    shares = [result.metrics[f"{bound}_bound_share"] for bound in ("compute", "memory", "latency")]
    assert shares == pytest.approx([400 / 465, 60 / 465, 5 / 465])
    assert result.metrics["lost_ns_per_step"] == bounds["lost_ns"].sum()
    assert result.metrics["kernel_ns_per_step"] == 465_000


def test_findings_are_bounds_that_name_the_shape() -> None:
    slow = mm(8192, 4096, 4096, 2_000_000)
    fast = mm(8192, 8192, 4096, 650_000)
    result = one(slow, fast, mm(64, 64, 64, 5_000))
    (finding,) = result.findings
    assert "8192×4096×4096" in finding.detail
    assert (finding.severity, finding.confidence) == ("info", "low")
    ops = result.tables["ops"]
    rows = list(finding.evidence[0][1])
    assert rows[0] == 0
    assert finding.saving.rows() == [(0, 0, 0, ops["lost_ns"].gather(rows).sum())]
    assert "clocks" in finding.advice


@pytest.mark.parametrize(("sizes", "word"), [((8191, 4096, 4096), "Align"), ((8192, 448, 4096), "larger")])
def test_the_advice_follows_the_dimensions(sizes: tuple[int, int, int], word: str) -> None:
    (finding,) = one(mm(*sizes, 2_000_000)).findings
    assert word in finding.advice


def test_a_run_near_its_roofs_has_no_warning() -> None:
    result = one(mm(8192, 4096, 4096, 350_000), mm(8, 8192, 8192, 50_000))
    assert {finding.severity for finding in result.findings} <= {"info"}


@pytest.mark.parametrize("device", ["", "NVIDIA H100"])
def test_an_unknown_device_has_rates_without_roofs(device: str) -> None:
    result = one(mm(8192, 4096, 4096, 400_000), device=device)
    row = result.tables["ops"].row(0, named=True)
    assert row["tflops"] > 0
    assert [row[name] for name in ("bound", "attainable_ns", "lost_ns", "share_of_attainable")] == [None] * 4
    assert result.metrics["share_of_attainable"] is None
    assert result.findings == []
    assert any("not known" in note for note in result.notes)
    assert "roof_tflops" not in result.charts[0].options


def test_the_chart_names_both_roofs() -> None:
    chart = one(mm(8192, 4096, 4096, 400_000)).charts[0]
    assert (chart.kind, chart.x, chart.y) == ("scatter", "intensity", ("tflops",))
    assert (chart.options["roof_tflops"], chart.options["roof_gbs"]) == (989.4, 3350.0)
    given = one(mm(8192, 4096, 4096, 400_000), settings=Settings(peak_tflops=500.0)).charts[0]
    assert given.options["roof_tflops"] == 500.0


def test_another_device_is_a_bound() -> None:
    calls = (mm(8192, 4096, 4096, 400_000), mm(8, 8192, 8192, 60_000))
    result = one(*calls, settings=Settings(what_if_device="NVIDIA B200"))
    table = result.tables["what_if"]
    floors = dict(table.select("shape", "floor_ns").rows())
    assert floors["8192×4096×4096"] == round(2 * 8192 * 4096 * 4096 / 2250e12 * 1e9)
    assert floors["8×8192×8192"] == round(2 * (8 * 8192 * 2 + 8192 * 8192) / 8000e9 * 1e9)
    saved = 460_000 - sum(floors.values())
    assert result.metrics["what_if_saved_at_most_ns_per_step"] == saved
    assert result.metrics["what_if_saved_at_most_share"] == pytest.approx(saved / STEP_NS)
    assert any("a bound" in note and "NVIDIA B200" in note for note in result.notes)


def test_a_format_the_other_device_lacks_has_no_floor() -> None:
    result = one(mm(8192, 4096, 4096, 400_000), settings=Settings(what_if_device="Tesla T4"))
    assert result.tables["what_if"]["floor_ns"].to_list() == [None]
    assert result.metrics["what_if_saved_at_most_ns_per_step"] is None


def test_an_unknown_other_device_is_left_out_with_similar_names() -> None:
    result = one(mm(64, 64, 64, 100), settings=Settings(what_if_device="H100"))
    assert "what_if" not in result.tables
    assert any('"H100" is not known' in note and "NVIDIA H100 PCIe" in note for note in result.notes)


def test_nothing_to_show() -> None:
    result = one(Call("aten::add", [[4]], kernels=[("add", "compute", 10)]))
    assert result.status == "skipped"
    assert "record_shapes=True" in result.reason


def test_many_shapes_are_capped_and_said() -> None:
    calls = [mm(64, 64, 64 + n, 100 + n) for n in range(roofline.MAX_PER_RANK + 5)]
    result = one(*calls)
    assert result.tables["ops"].height == roofline.MAX_PER_RANK
    assert any("left out" in note for note in result.notes)


def test_a_recorded_run(shared: Path) -> None:
    path = shared / "kineto" / "tracelens" / "h100" / "Qwen_Qwen1.5-0.5B-Chat__1016005.json.gz"
    result = tracetool.open_run(path, engine="serial", cache="off").results["roofline"]
    ops = result.tables["ops"]
    products = ops.filter(pl.col("op").is_in(["aten::mm", "aten::addmm"]) & (pl.col("dtype") == "bf16"))
    assert set(products["bound"].to_list()) == {"compute"}
    assert products["share_of_measured_best"].is_between(0.7, 0.9).all()
    assert result.metrics["ridge_flop_per_byte"] == pytest.approx(295, abs=1)
