"""MFU and HFU: simulated runs against their truth, recorded runs against reference figures, every known trap."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from inmemory import ask, run_view
from simulator import Config, simulate
from traced import Call, mm, traced

import tracetool
from tracetool.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from inmemory import MemoryRank

    from tracetool.results import Result

mfu = importlib.import_module("tracetool.analyses.mfu")

H100 = "NVIDIA H100 80GB HBM3"
PEAK = 989.4e12
STEP_NS = 1_000_000
BIG = (1024, 4096, 4096)
BIG_FLOPS = 2 * 1024 * 4096 * 4096


def one(
    *calls: Call,
    settings: Settings | None = None,
    device: str = H100,
    orphans: Sequence[tuple[str, str, int]] = (),
) -> Result:
    rank = traced(calls, windows=[(0, 0, STEP_NS)], orphans=orphans)
    return ask(mfu, [rank], settings, device_name=device)


def big(ns: int = 50_000, **about: Any) -> Call:  # noqa: ANN401 - fields of Call
    return mm(*BIG, ns, **about)


def view(ranks: list[MemoryRank], world: int, settings: Settings | None = None, **joined: pl.DataFrame) -> Result:
    """Ask a run whose job has more ranks than were read."""
    settings = settings or Settings()
    answers = [mfu.per_rank(rank, {}, settings) for rank in ranks]
    parts = {name: pl.concat([answer[name] for answer in answers]) for name in answers[0]}
    shown = replace(run_view(ranks, device_name=H100), world_size=world, joined=joined)
    result: Result = mfu.analyze(parts, shown, settings)
    return result


# ---- definitions ----


def test_mfu_is_flops_by_time_and_peak() -> None:
    result = one(big(), big(phase="backward"))
    assert result.metrics["mfu"] == pytest.approx(2 * BIG_FLOPS / (STEP_NS / 1e9) / PEAK, rel=1e-12)
    assert result.metrics["hfu"] == result.metrics["mfu"] == result.metrics["mfu_causal"]
    assert result.metrics["model_flops_per_step"] == 2 * BIG_FLOPS
    assert result.metrics["tflops_per_gpu"] == pytest.approx(2 * BIG_FLOPS / (STEP_NS / 1e9) / 1e12)
    assert (result.metrics["peak_flops"], result.metrics["flops_source"]) == (PEAK, "shapes")
    assert result.metrics["shape_coverage"] == 1.0


def test_recomputation_is_hardware_flops_only() -> None:
    result = one(big(), big(phase="recompute"), big(phase="backward"))
    row = result.tables["per_rank_step"].row(0, named=True)
    assert (row["model_flops"], row["hardware_flops"]) == (2 * BIG_FLOPS, 3 * BIG_FLOPS)
    assert row["hfu"] / row["mfu"] == pytest.approx(1.5)
    phases = dict(result.tables["phases"].select("phase", "hardware_flops").rows())
    assert phases == dict.fromkeys(("forward", "recompute", "backward"), float(BIG_FLOPS))
    (finding,) = result.findings
    assert finding.id == "mfu.recomputation"
    assert finding.saving["ns"].to_list() == [50_000]


QKV = [[2, 16, 2048, 64]] * 3
ATTENTION = 2 * 2 * 16 * 2048 * 2048 * 128


def attention(causal: str) -> list[Call]:
    kernel = [("flash", "compute", 100_000)]
    forward = Call(
        "aten::_scaled_dot_product_flash_attention", QKV, kernels=kernel, concrete=["", "", "", "0.", causal]
    )
    backward = Call(
        "aten::_scaled_dot_product_flash_attention_backward",
        [QKV[0], *QKV],
        kernels=kernel,
        concrete=[*[""] * 11, causal],
        phase="backward",
    )
    return [forward, backward]


def test_both_conventions_and_the_fifth_product_of_the_backward() -> None:
    row = one(*attention("True")).metrics
    scale = STEP_NS / 1e9 * PEAK
    assert row["mfu"] == pytest.approx(3 * ATTENTION / scale)
    assert row["hfu"] == pytest.approx(3.5 * ATTENTION / scale)
    assert row["mfu_causal"] == pytest.approx(1.5 * ATTENTION / scale)
    assert row["hfu_causal"] == pytest.approx(1.75 * ATTENTION / scale)
    full = one(*attention("False")).metrics
    assert full["mfu_causal"] == full["mfu"] == row["mfu"]


@pytest.mark.parametrize(("convention", "metric"), [("causal", "mfu_causal"), ("full", "mfu")])
def test_the_convention_chooses_headline_gate_and_published_range(convention: str, metric: str) -> None:
    result = one(*attention("True"), settings=Settings(mfu_convention=convention))
    assert result.headline[0].value == result.metrics[metric] == result.metrics[mfu.GATES["min-mfu"][0]]
    beside = result.tables["beside_published"].row(0, named=True)
    shown = result.tables["published"]
    assert beside["published_low"] == shown["low_share"].min()
    assert beside["published_high"] == shown["high_share"].max()
    assert 0.2 < beside["published_low"] < beside["published_high"] < 0.6
    assert result.headline[0].order == 0
    assert ("causal attention" in result.headline[0].note) == (convention == "causal")
    assert ("full attention" in result.headline[0].note) == (convention == "full")
    assert result.charts[0].kind == "bullet"


@pytest.mark.parametrize(
    ("phases", "training"),
    [
        (["forward"], False),
        (["forward", "other"], False),
        (["forward", "backward"], True),
        (["forward", "optimizer"], True),
        (["forward", "recompute"], True),
    ],
)
def test_published_figures_of_training_stand_beside_no_inference(phases: list[str], *, training: bool) -> None:
    result = one(*(big(phase=phase) for phase in phases))
    assert result.metrics["mfu"] is not None
    assert ("beside_published" in result.tables) == training
    assert ("bullet" in {chart.kind for chart in result.charts}) == training


def test_attention_as_plain_products_is_said() -> None:
    softmax = Call("aten::_softmax", [[2, 16, 2048, 2048], [], []], kernels=[("softmax", "compute", 10)])
    assert any("softmax over as many queries as keys" in note for note in one(big(), softmax).notes)
    assert not any("softmax" in note for note in one(big()).notes)


def test_several_formats_are_held_against_their_own_peaks() -> None:
    scalars = ["", "", "", "", "", "", "15", "False"]
    eight = Call(
        "aten::_scaled_mm",
        [[1024, 4096], [4096, 4096], *[[]] * 6],
        kernels=[("fp8_gemm", "compute", 40_000)],
        concrete=scalars,
        dtype="c10::Float8_e4m3fn",
    )
    result = one(big(), eight)
    assert result.metrics["mfu"] == pytest.approx(BIG_FLOPS * (1 / PEAK + 1 / 1979e12) / (STEP_NS / 1e9))
    assert result.tables["formats"]["dtype"].to_list() == ["bf16", "fp8"]
    assert any("Several number formats" in note for note in result.notes)


# ---- coverage ----


@pytest.mark.parametrize(
    ("opaque_ns", "coverage", "shown", "word"),
    [(0, 1.0, True, ""), (20_000, 50 / 70, True, "lower bound"), (60_000, 50 / 110, False, "--model")],
)
def test_coverage_decides_what_is_shown(opaque_ns: int, coverage: float, word: str, *, shown: bool) -> None:
    """A compiled kernel: its sizes are recorded, but nobody counted what it multiplies."""
    compiled = Call("triton_tem_fused_mm_1", [[4, 4]], kernels=[("triton", "compute", opaque_ns)])
    result = one(big(), *([compiled] if opaque_ns else []))
    assert result.metrics["shape_coverage"] == pytest.approx(coverage)
    assert (result.metrics["mfu"] is not None) == shown
    assert result.tables["per_rank_step"]["mfu"].null_count() == (0 if shown else 1)
    assert result.metrics["flops_source"] == ("shapes" if shown else None)
    assert word in result.headline[0].note
    if opaque_ns:
        assert "--model config.json --tokens-per-step" in result.headline[0].note
        assert result.tables["opaque"]["name"].to_list() == ["triton_tem_fused_mm_1"]


def test_orphans_lower_coverage_and_get_no_flops() -> None:
    result = one(big(90_000), orphans=[("gemm", "compute", 10_000)])
    assert result.metrics["shape_coverage"] == pytest.approx(0.9)
    assert result.metrics["orphan_share"] == pytest.approx(0.1)
    assert result.metrics["model_flops_per_step"] == BIG_FLOPS


def test_without_shapes_and_model_it_is_skipped_with_both_ways_out() -> None:
    result = one(Call("aten::mm", None, kernels=[("gemm", "compute", 10)]))
    assert result.status == "skipped"
    assert "record_shapes=True" in result.reason
    assert "--model config.json" in result.reason


# ---- devices and peaks ----


@pytest.mark.parametrize("device", ["", "NVIDIA H100", "AMD Radeon Graphics"])
def test_an_unknown_device_has_tflops_but_no_mfu(device: str) -> None:
    result = one(big(), device=device)
    assert [result.metrics[name] for name in ("mfu", "hfu", "mfu_causal", "peak_flops")] == [None] * 4
    assert result.metrics["tflops_per_gpu"] == pytest.approx(BIG_FLOPS / (STEP_NS / 1e9) / 1e12)
    assert "--peak-tflops" in result.headline[0].note
    assert "beside_published" not in result.tables


def test_the_users_peak_wins() -> None:
    result = one(big(), settings=Settings(peak_tflops=100.0))
    assert result.metrics["mfu"] == pytest.approx(BIG_FLOPS / (STEP_NS / 1e9) / 100e12)
    assert result.metrics["peak_flops"] == 100e12
    assert any("Peak given: 100 TFLOP/s" in note for note in result.notes)


@pytest.mark.parametrize(
    ("device", "peak"),
    [("NVIDIA H20", 148e12), ("NVIDIA H200", 989e12), ("NVIDIA L40S", 362e12), ("NVIDIA L4", 121e12)],
)
def test_names_that_contain_other_names(device: str, peak: float) -> None:
    assert one(big(), device=device).metrics["peak_flops"] == peak


def test_arithmetic_above_the_peak_is_a_finding_with_likely_causes() -> None:
    result = one(big(1_000))
    (finding,) = result.findings
    assert (finding.id, finding.severity) == ("mfu.above_peak", "warning")
    assert "device name" in finding.advice
    assert one(big()).findings == []


# ---- FLOPs the user states ----


def test_given_flops_are_of_the_whole_job() -> None:
    """The trap: one GPU's peak for all GPUs' work."""
    ranks = [traced([big()], rank=rank, windows=[(0, 0, STEP_NS)]) for rank in range(2)]
    result = view(ranks, 4, Settings(flops_per_step=2e12))
    assert result.metrics["mfu"] == pytest.approx(2e12 / (4 * PEAK * STEP_NS / 1e9))
    assert result.metrics["model_flops_per_step"] == 2e12
    assert result.metrics["flops_source"] == "given"
    assert result.metrics["hfu"] == pytest.approx(BIG_FLOPS / (PEAK * STEP_NS / 1e9))
    row = result.tables["per_rank_step"].row(0, named=True)
    assert (row["model_flops"], row["hardware_flops"]) == (5 * 10**11, BIG_FLOPS)
    assert row["mfu"] == pytest.approx(result.metrics["mfu"])


@pytest.mark.parametrize(("stated", "apart"), [(1.0, False), (1.09, False), (1.2, True), (0.8, True)])
def test_two_sources_that_differ_by_a_tenth_are_a_finding(stated: float, *, apart: bool) -> None:
    result = one(big(), settings=Settings(flops_per_step=BIG_FLOPS * stated))
    assert ("mfu.sources_differ" in {finding.id for finding in result.findings}) == apart
    assert result.metrics["shapes_to_job_ratio"] == pytest.approx(1 / stated)


def test_a_config_helps_where_shapes_do_not(tmp_path: Path) -> None:
    config = {
        "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 256, "vocab_size": 1000, "tie_word_embeddings": False,
    }  # fmt: skip
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    graph = Call("CompiledFunction", [[4]], kernels=[("graph", "compute", 500_000)])
    seen = Call("aten::embedding", [[1000, 64], [2, 32]], kernels=[("index", "compute", 10)])
    result = one(seen, graph, settings=Settings(model=str(path), tokens_per_step=64))
    weights = 2 * (4 * 64 * 64 + 3 * 64 * 256) + 1000 * 64
    causal = 64 * (6 * weights + 3 * 2 * 32 * 128)
    assert result.metrics["flops_source"] == "config"
    assert result.metrics["model_flops_per_step_causal"] == causal
    assert result.metrics["mfu_causal"] == pytest.approx(causal / (PEAK * STEP_NS / 1e9))
    assert result.metrics["tokens_per_second_per_gpu"] == pytest.approx(64 / (STEP_NS / 1e9))
    assert result.metrics["hfu"] is None
    assert any("HFU" in note for note in result.notes)
    assert any("--world-size" in note for note in result.notes)


def test_a_config_without_a_sequence_length_is_a_lower_bound_in_the_headline(tmp_path: Path) -> None:
    config = {
        "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 256, "vocab_size": 1000,
    }  # fmt: skip
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    settings = Settings(model=str(path), tokens_per_step=64)
    result = one(Call("graph", [[4]], kernels=[("graph", "compute", 500_000)]), settings=settings)
    weights = 2 * (4 * 64 * 64 + 3 * 64 * 256) + 1000 * 64
    assert result.metrics["mfu"] == pytest.approx(64 * 6 * weights / PEAK * 1e9 / STEP_NS)
    assert result.metrics["mfu_causal"] == result.metrics["mfu"]
    assert "without attention, a lower bound" in result.headline[0].note
    shaped = one(*attention("True"), settings=settings)
    assert "lower bound" not in shaped.headline[0].note
    whole = 64 * (6 * weights + 3 * 2 * 2 * 2048 * 128)
    assert shaped.metrics["mfu"] == pytest.approx(whole / PEAK * 1e9 / STEP_NS)


def test_shapes_without_a_known_product_say_why_there_is_no_figure() -> None:
    layer = Call("aten::_cudnn_rnn", [[8, 8]], kernels=[("rnn", "compute", 90)])
    result = one(layer, Call("aten::mm", [[4, 4], [4, 4]], kernels=[("g", "compute", 9)], dtype="c10::complex<float>"))
    assert result.metrics["mfu"] is None
    assert "no matrix product" in result.headline[0].note or "not shown" in result.headline[0].note
    assert result.metrics["shape_coverage"] == 0


def test_a_config_that_cannot_be_read_is_named() -> None:
    result = one(big(), settings=Settings(model="absent.json", tokens_per_step=64))
    assert result.status == "skipped"
    assert "absent.json" in result.reason


# ---- some ranks of a job ----


def test_rank_0_of_a_data_parallel_job_stands_for_the_others() -> None:
    result = view([traced([big()], windows=[(0, 0, STEP_NS)])], 8)
    assert result.metrics["model_flops_per_step"] == 8 * BIG_FLOPS
    assert any("1 of 8 ranks" in note for note in result.notes)


def test_rank_0_of_a_pipeline_has_figures_but_the_run_has_none() -> None:
    rank = traced([big()], windows=[(0, 0, STEP_NS)], groups=[("mesh_pp", [0, 1])])
    result = view([rank], 8)
    assert result.metrics["mfu"] is None
    assert "pipeline stages" in result.headline[0].note
    assert result.tables["per_rank_step"]["mfu"].to_list() == [pytest.approx(BIG_FLOPS / (STEP_NS / 1e9) / PEAK)]


def test_groups_without_names_are_placed_by_the_join() -> None:
    groups = pl.DataFrame({"ranks": [[0, 4]], "role": ["pp"]})
    ranks = [traced([big()], windows=[(0, 0, STEP_NS)]), traced([big(), big()], rank=4, windows=[(0, 0, STEP_NS)])]
    assert view(ranks[:1], 8, groups=groups).metrics["mfu"] is None
    both = view(ranks, 8, groups=groups)
    assert both.metrics["model_flops_per_step"] == 8 * 3 * BIG_FLOPS // 2


def test_rank_0_of_a_model_with_experts() -> None:
    grouped = Call("aten::_grouped_mm", [[64, 64], [4, 64, 64], [4]], kernels=[("gmm", "compute", 9000)])
    rank = traced([grouped], windows=[(0, 0, STEP_NS)])
    result = view([rank], 8)
    assert result.metrics["mfu"] is None
    assert "experts" in result.headline[0].note
    assert view([rank], 1).metrics["mfu"] is not None


# ---- simulated runs ----


def answers(config: Config, folder: Path, ranks: list[int] | None = None, **about: Any) -> tuple[Result, list[Any]]:  # noqa: ANN401 - settings
    """Return the result for a simulated run, and the truth about its FLOPs."""
    run = simulate(config)
    run.write_kineto(folder, ranks)
    found = tracetool.open_run(folder, Settings(**about), engine="serial", cache="off")
    return found.results["mfu"], run.truth(ranks).flops()


PEAKS = {"bf16": 989.4e12, "fp16": 989.4e12, "fp8": 1979e12}


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(Config(pp=1, dp=1, tp=1, layers=2, embedding=True, head=True), id="one GPU"),
        pytest.param(Config(pp=1, dp=1, tp=2, bias=True, dtype="fp16"), id="sharded, fp16, addmm"),
        pytest.param(Config(pp=1, dp=1, tp=2, fp8_linears=True), id="sharded, fp8 linears, bf16 attention"),
        pytest.param(Config(pp=1, dp=1, tp=2, fp8_linears=True, recompute=True), id="the same recomputed"),
        pytest.param(Config(pp=1, dp=2, tp=1, recompute=True), id="recomputed"),
        pytest.param(Config(pp=1, dp=1, tp=2, recompute="early_stop"), id="sharded, recomputed with an early stop"),
        pytest.param(Config(pp=2, dp=1, tp=1, head=True, embedding=True, recompute=True), id="pipeline, recomputed"),
    ],
)
def test_simulated_runs(config: Config, tmp_path: Path) -> None:
    result, truth = answers(config, tmp_path)
    rows = result.tables["per_rank_step"].sort("rank", "step")
    truth = sorted(truth, key=lambda row: (row["rank"], row["step"]))
    for name in ("model_flops", "hardware_flops"):
        assert rows[name].to_list() == [row[name] for row in truth]
    seconds = (rows["window_ns"] / 1e9).to_list()
    for metric, name in (
        ("mfu", "model_flops"), ("hfu", "hardware_flops"),
        ("mfu_causal", "model_flops_causal"), ("hfu_causal", "hardware_flops_causal"),
    ):  # fmt: skip
        at_peak = [sum(n / PEAKS[dtype] for dtype, n in row["by_dtype"][name].items()) for row in truth]
        expected = [ideal / taken for ideal, taken in zip(at_peak, seconds, strict=True)]
        assert rows[metric].to_list() == pytest.approx(expected, rel=1e-3)
        assert result.metrics[metric] == pytest.approx(sum(at_peak) / sum(seconds), rel=1e-3)
    assert result.metrics["shape_coverage"] == 1.0
    steps = len({row["step"] for row in truth})
    assert result.metrics["model_flops_per_step"] == sum(row["model_flops"] for row in truth) // steps
    linears = "fp8" if config.fp8_linears else config.dtype
    assert set(result.tables["formats"]["dtype"].to_list()) == {linears, config.dtype}


def test_one_rank_of_each_stage_of_a_simulated_pipeline(tmp_path: Path) -> None:
    config = Config(dp=2, tp=1, pp=2, head=True, embedding=True)
    whole, _ = answers(config, tmp_path / "all")
    alone, _ = answers(config, tmp_path / "alone", [0])
    stages, _ = answers(config, tmp_path / "stages", [0, 2])
    assert alone.metrics["mfu"] is None
    assert alone.tables["per_rank_step"]["mfu"].null_count() == 0
    assert stages.metrics["model_flops_per_step"] == whole.metrics["model_flops_per_step"]


# ---- recorded runs ----


@pytest.mark.parametrize("name", ["gpt2tiny_cpu", "gpt2tiny_cpu_ckpt", "gpt2tiny_cpu_bf16"])
def test_recorded_cpu_runs(name: str, shared: Path) -> None:
    reference = json.loads((shared / "mfu" / "expected_cpu_traces.json").read_text(encoding="utf-8"))
    step = reference["traces"][f"{name}.json.gz"]["per_step"]
    run = tracetool.open_run(shared / "mfu" / f"{name}.json.gz", engine="serial", cache="off")
    result = run.results["mfu"]
    rows = result.tables["per_rank_step"]
    assert rows["step"].to_list() == [2, 3, 4]
    assert rows["hardware_flops"].to_list() == [step["executed"]["total"]] * 3
    assert rows["model_flops"].to_list() == [reference["model_flops_per_step"]["matmul_full"]] * 3
    assert result.metrics["model_flops_per_step_causal"] == reference["model_flops_per_step"]["matmul_causal"]
    phases = dict(result.tables["phases"].select("phase", "hardware_flops").rows())
    assert phases == {phase: 3 * value for phase, value in step["executed"].items() if phase != "total"}
    ops = dict(result.tables["ops"].group_by("op").agg(pl.col("flops").sum()).rows())
    phantom = step["phantom"]["flops"]
    for op, flops in step["recorded_by_op"].items():
        assert ops[op] == 3 * (flops - (phantom if op == "aten::addmm" else 0))
    formats = result.tables["formats"]["dtype"].to_list()
    assert formats == (["bf16"] if name.endswith("bf16") else ["fp32"])
    told = [note for note in result.notes if "never ran" in note]
    assert len(told) == bool(phantom)
    if phantom:
        assert told[0].startswith(f"{3 * step['phantom']['events']} recorded operators")
    assert (result.metrics["mfu"], result.metrics["shape_coverage"]) == (None, None)


COVERAGE = [
    ("tracelens/h100/Qwen_Qwen1.5-0.5B-Chat__1016005.json.gz", 0.70),
    ("tracelens/mi300/Qwen_Qwen1.5-0.5B-Chat__1016005.json.gz", 0.69),
    ("tracelens/mi300/resnet_act_checkpoint.json.gz", 0.68),
]


@pytest.mark.parametrize(("path", "coverage"), COVERAGE)
def test_coverage_of_recorded_gpu_runs(path: str, coverage: float, shared: Path) -> None:
    run = tracetool.open_run(shared / "kineto" / path, engine="serial", cache="off")
    result = run.results["mfu"]
    assert result.metrics["shape_coverage"] == pytest.approx(coverage, abs=0.005)
    assert "lower bound" in result.headline[0].note


GEMMS = [
    ("h100", {"8944×1024×2816": 610.67, "8944×1024×1024": 580.18, "8944×2816×1024": 674.55}),
    ("mi300", {"8944×1024×2816": 466.82, "8944×1024×1024": 457.61, "8944×2816×1024": 521.87}),
]


@pytest.mark.parametrize(("device", "expected"), GEMMS)
def test_rates_of_recorded_products(device: str, expected: dict[str, float], shared: Path) -> None:
    """The reference is a mean over calls, ours FLOPs by time: they differ in the fourth digit."""
    path = shared / "kineto" / "tracelens" / device / "Qwen_Qwen1.5-0.5B-Chat__1016005.json.gz"
    ops = tracetool.open_run(path, engine="serial", cache="off").results["mfu"].tables["ops"]
    products = ops.filter(pl.col("op").is_in(["aten::mm", "aten::addmm"])).unique(
        "shape", keep="first", maintain_order=True
    )
    found = dict(products.select("shape", "tflops").rows())
    assert {shape: found[shape] for shape in expected} == pytest.approx(expected, rel=2e-3)
    counts = dict(products.select("shape", "count").rows())
    assert [counts[shape] for shape in expected] == [48, 72, 24]


def test_a_recorded_run_with_checkpointed_convolutions(shared: Path) -> None:
    """57 of its 117 convolutions are recomputed: they are executed, but not the model's."""
    path = shared / "kineto" / "tracelens" / "mi300" / "resnet_act_checkpoint.json.gz"
    result = tracetool.open_run(path, engine="serial", cache="off").results["mfu"]
    rows = result.tables["per_rank_step"]
    assert rows["model_flops"].to_list() == [106_484_121_600] * 3
    assert rows["hardware_flops"].to_list() == [140_395_069_440] * 3
    assert dict(result.tables["phases"].select("phase", "model_flops").rows())["recompute"] == 0


@pytest.mark.parametrize("path", ["hta/nccl_data.json.gz", "hta/df_index_resolver.json.gz"])
def test_recorded_runs_without_shapes_are_skipped(path: str, shared: Path) -> None:
    result = tracetool.open_run(shared / "kineto" / path, engine="serial", cache="off").results["mfu"]
    assert result.status == "skipped"
    assert "record_shapes=True" in result.reason


def test_a_window_without_steps_or_shapes_says_what_it_assumes() -> None:
    rank = traced([Call("graph", None, kernels=[("gemm", "compute", 90)], step=None)], windows=[(None, 0, STEP_NS)])
    result = ask(mfu, [rank], Settings(flops_per_step=1e9), device_name=H100)
    assert result.metrics["mfu"] == pytest.approx(1e9 / (PEAK * STEP_NS / 1e9))
    for words in ("one optimizer step", "held against the bf16 peak", "--world-size"):
        assert any(words in note for note in result.notes), words


def test_given_flops_need_no_shapes(shared: Path) -> None:
    path = shared / "kineto" / "hta" / "nccl_data.json.gz"
    run = tracetool.open_run(path, Settings(flops_per_step=1e12), engine="serial", cache="off")
    result = run.results["mfu"]
    seconds = int(result.tables["per_rank_step"]["window_ns"].sum()) / 1e9
    assert result.metrics["mfu"] == pytest.approx(3 * 1e12 / (2 * 312e12 * seconds))
    assert result.metrics["hfu"] is None


def test_a_fast_causal_kernel_is_not_above_the_peak() -> None:
    """Counted in full, a fused kernel that skips half of the pairs may pass the peak: no reason to doubt anything."""
    forward_call, backward_call = attention("True")
    result = one(replace(forward_call, kernels=[("flash", "compute", 25_000)]), backward_call)
    rates = dict(result.tables["ops"].select("op", "share_of_peak").rows())
    forward = rates["aten::_scaled_dot_product_flash_attention"]
    assert forward == pytest.approx(ATTENTION / 2 / (25_000 / 1e9) / PEAK)
    assert 2 * forward > 1 > forward
    assert result.findings == []
