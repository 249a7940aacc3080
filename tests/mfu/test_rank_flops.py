"""What one rank ran in its steps, and what it knows of its place."""

from __future__ import annotations

import polars as pl
import pytest
from traced import Call, mm, traced

from tracetool.mfu.rank_flops import by_phase, by_shape, by_step, place, rank_flops, traits
from tracetool.settings import Settings

FLOPS = 2 * 4 * 5 * 6
GEMM = ("sm90_gemm_bf16", "compute", 1000)


def test_calls_outside_the_steps_are_left_out_and_counted() -> None:
    rank = traced([mm(4, 5, 6, 100, step=1), mm(4, 5, 6, 100, step=None)], windows=[(1, 0, 200)])
    data = rank_flops(rank, Settings())
    assert data.calls["full"].to_list() == [FLOPS]
    assert traits(rank, data)["outside_calls"].to_list() == [1]


def test_without_steps_one_window_holds_every_call() -> None:
    rank = traced([mm(4, 5, 6, 100, step=None), mm(4, 5, 6, 100, step=None)], windows=[(None, 0, 200)])
    data = rank_flops(rank, Settings())
    assert by_step(0, data.calls)["full"].to_list() == [2 * FLOPS]


def test_recomputation_and_the_optimizer_are_not_the_models() -> None:
    phases = ("forward", "backward", "recompute", "optimizer")
    rank = traced([mm(4, 5, 6, 100, phase=phase) for phase in phases])
    found = by_step(0, rank_flops(rank, Settings()).calls)
    assert dict(zip(found["phase"], found["full"], strict=True)) == dict.fromkeys(phases, FLOPS)
    model = dict(zip(found["phase"], found["model_full"], strict=True))
    assert model == {"forward": FLOPS, "backward": FLOPS, "recompute": 0, "optimizer": 0}


def test_chosen_steps_choose_the_orphans_that_run_in_them() -> None:
    calls = [mm(4, 5, 6, 100, step=1), mm(4, 5, 6, 100, step=2)]
    rank = traced(calls, windows=[(1, 0, 100)], orphans=[("late", "compute", 50)])
    chosen = rank_flops(rank, Settings(steps=(1,)))
    assert chosen.found.coverage["kernel_ns"].to_list() == [100]
    assert rank_flops(rank, Settings()).found.coverage["kernel_ns"].to_list() == [250]


def test_shapes_are_grouped_with_their_time_and_flags() -> None:
    rank = traced([mm(4, 5, 6, 100), mm(4, 5, 6, 300), mm(9, 5, 6, 100)])
    found = by_shape(0, rank_flops(rank, Settings()).calls)
    assert found.select("shape", "count", "flops", "kernel_ns").rows() == [
        ("9×5×6", 1, 2 * 9 * 5 * 6, 100),
        ("4×5×6", 2, 2 * FLOPS, 400),
    ]


def test_time_of_a_phase_is_a_union() -> None:
    rank = traced([mm(4, 5, 6, 100, 50), mm(4, 5, 6, 30, phase="backward")])
    found = by_phase(0, rank_flops(rank, Settings()))
    assert found.select("phase", "gpu_ns").rows() == [("backward", 30), ("forward", 150)]


def embedding(*index: int, rows: int = 5000) -> Call:
    return Call("aten::embedding", [[rows, 8], list(index)], kernels=[GEMM])


@pytest.mark.parametrize(
    ("calls", "sequence", "tokens"),
    [
        pytest.param([embedding(2, 64)], 64, 128, id="batch and sequence"),
        pytest.param([embedding(2, 64), embedding(2, 64)], 64, 256, id="two micro-batches"),
        pytest.param([embedding(2, 64), embedding(64, rows=64)], 64, 128, id="positions are no tokens"),
        pytest.param([embedding(128)], None, 128, id="packed"),
        pytest.param([mm(4, 5, 6, 10)], None, None, id="no embedding"),
        pytest.param([Call("aten::embedding", [[[5, 8]], [2, 64]], kernels=[GEMM])], None, None, id="odd sizes"),
    ],
)
def test_lengths_seen_by_the_embedding(calls: list[Call], sequence: int | None, tokens: int | None) -> None:
    rank = traced(calls)
    found = traits(rank, rank_flops(rank, Settings()))
    assert (found["sequence"][0], found["tokens"][0]) == (sequence, tokens)


def test_attention_tells_the_length_where_a_sequence_is_spread_over_ranks() -> None:
    attention = Call(
        "aten::_scaled_dot_product_flash_attention",
        [[1, 4, 32, 8], [1, 4, 128, 8], [1, 4, 128, 8]],
        kernels=[GEMM],
        concrete=["", "", "", "0.", "True"],
    )
    rank = traced([embedding(1, 32), attention])
    assert traits(rank, rank_flops(rank, Settings()))["sequence"].to_list() == [128]


def test_softmax_over_square_scores_is_attention_as_plain_products() -> None:
    def softmax(name: str, *sizes: int, step: int | None = 0) -> Call:
        return Call(name, [list(sizes), [], []], kernels=[GEMM], step=step)

    calls = [
        softmax("aten::_softmax", 2, 4, 64, 64),
        softmax("aten::_safe_softmax", 2, 4, 64, 64),
        softmax("ScaledUpperTriangMaskedSoftmax", 8, 64, 64),
        softmax("aten::_softmax", 2, 4, 1, 64),
        softmax("aten::_softmax", 64, 64),
        softmax("aten::_softmax", 64, 5000),
        softmax("aten::_softmax", 2, 4, 64, 64, step=None),
        Call("aten::_softmax", None, kernels=[GEMM]),
    ]
    rank = traced(calls)
    assert traits(rank, rank_flops(rank, Settings()))["square_softmax"].to_list() == [3]


def test_place_in_the_pipeline_and_experts() -> None:
    groups = [("PIPELINE_MODEL_PARALLEL_GROUP", [1, 5]), ("EXPERT_MODEL_PARALLEL_GROUP", [4, 5]), ("mesh_tp", [5, 6])]
    rank = traced([mm(4, 5, 6, 100)], rank=5, groups=groups)
    found = traits(rank, rank_flops(rank, Settings())).row(0, named=True)
    assert (found["stage"], found["stages"], found["experts"]) == (1, 2, True)
    lone = traced([mm(4, 5, 6, 100)], groups=[("mesh_pp", [0]), ("mesh_dp", [0, 1])])
    found = traits(lone, rank_flops(lone, Settings())).row(0, named=True)
    assert (found["stage"], found["stages"], found["experts"]) == (None, 1, False)


def test_stages_are_counted_where_the_rank_is_in_no_pipeline_group() -> None:
    groups = pl.DataFrame({"ranks": [[0, 2], [0, 1, 2, 3]], "role": ["pp", "pp"]})
    assert place(groups, 3) == (3, 4, False)
    assert place(groups, 2) == (1, 2, False)
    assert place(groups, 9) == (None, 2, False)


def test_grouped_products_mean_experts() -> None:
    call = Call("aten::_grouped_mm", [[8, 4], [2, 4, 6], [2]], kernels=[GEMM])
    rank = traced([call])
    assert traits(rank, rank_flops(rank, Settings()))["experts"].to_list() == [True]
