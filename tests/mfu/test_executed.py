"""Which operators count: the innermost, once, only if it launched a kernel; and how much of the time that explains."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from traced import Call, mm, traced

from tracetool.mfu.executed import PRECISION, Executed, executed
from tracetool.tables import frame

if TYPE_CHECKING:
    from collections.abc import Sequence

GEMM = ("sm90_gemm_bf16", "compute", 1000)
OTHER = ("elementwise", "compute", 500)
DETACH = Call("aten::detach", None, [Call("detach")])


def ran(calls: Sequence[Call], orphans: Sequence[tuple[str, str, int]] = ()) -> Executed:
    rank = traced(calls, orphans=orphans)
    return executed(*(rank.table(name) for name in ("events", "links", "gpu", "op_shapes")))


def flops(found: Executed) -> int:
    return int(found.calls["full"].sum())


def test_the_innermost_operator_counts_once() -> None:
    """The trap: linear holds matmul holds mm, and each would count the same product."""
    nested = Call(
        "aten::linear",
        [[4, 5], [6, 5]],
        [Call("aten::linear", [[4, 5], [6, 5]], [Call("aten::matmul", [[4, 5], [5, 6]], [mm(4, 5, 6, 100)])])],
    )
    found = ran([nested])
    assert found.calls["name"].to_list() == ["aten::mm"]
    assert flops(found) == 2 * 4 * 5 * 6


def test_attention_in_attention_counts_once() -> None:
    """Autocast nests the call in itself, and each layer of dispatch records it again."""
    qkv, scalars = [[2, 4, 8, 16]] * 3, ["", "", "", "0.", "True"]
    fused = Call("aten::_flash_attention_forward", [[2, 8, 4, 16]] * 3, kernels=[GEMM], concrete=[*[""] * 8, "True"])
    middle = Call("aten::_scaled_dot_product_flash_attention", qkv, [fused], concrete=scalars)
    sdpa = Call("aten::scaled_dot_product_attention", qkv, [middle], concrete=["", "", "", "", "0.", "True"])
    found = ran([Call("aten::scaled_dot_product_attention", qkv, [sdpa], concrete=["", "", "", "", "0.", "True"])])
    assert found.calls["name"].to_list() == ["aten::_flash_attention_forward"]
    assert flops(found) == 2 * 2 * 4 * 8 * 8 * 32


def test_a_convolution_in_a_librarys_own_counts_one_level() -> None:
    scalars = ["", "", "", "[1]", "[0]", "[1]", "False", "[0]", "1"]
    dims: list[object] = [[1, 2, 8], [4, 2, 3], *[[]] * 7]
    inner = Call("aten::miopen_convolution", dims, kernels=[GEMM], concrete=["", "", "", "[0]", "[1]", "[1]", "1"])
    outer = Call("aten::_convolution", dims, [inner], concrete=scalars)
    assert flops(ran([outer])) == flops(ran([inner])) == 2 * 6 * 4 * 2 * 3
    assert flops(ran([Call("aten::convolution", dims, [outer], concrete=scalars)])) == 2 * 6 * 4 * 2 * 3


def test_an_operator_with_several_kernels_counts_once() -> None:
    """The trap: FLOPs repeated for each kernel of a split product; its memset belongs to its time."""
    split = Call(
        "aten::mm", [[4, 5], [5, 6]], kernels=[("Memset", "memset", 7), GEMM, ("splitk_reduce", "compute", 50)]
    )
    found = ran([split])
    assert flops(found) == 2 * 4 * 5 * 6
    assert found.calls["kernels"].to_list() == [2]
    assert found.calls["kernel_ns"].to_list() == [1057]


def test_an_operator_that_launched_no_kernel_does_not_count_where_others_did() -> None:
    """Recorded but never run: the last product of a block recomputed with an early stop."""
    found = ran([mm(4, 5, 6, 100), mm(9, 9, 9, phase="recompute"), Call("aten::mm", [[7, 7], [7, 7]], kernels=[])])
    assert flops(found) == 2 * 4 * 5 * 6


def test_a_memset_alone_is_no_product() -> None:
    found = ran([Call("aten::mm", [[4, 5], [5, 6]], kernels=[("Memset", "memset", 7)]), mm(1, 1, 1, 10)])
    assert flops(found) == 2


def test_a_kernel_launched_further_down_belongs_to_the_operator() -> None:
    inner = Call("aten::cudnn_convolution", [[1, 2, 8], [4, 2, 3]], [Call("aten::empty", [[1]], kernels=[GEMM])])
    scalars = ["", "", "", "[1]", "[0]", "[1]", "False", "[0]", "1"]
    outer = Call("aten::convolution", [[1, 2, 8], [4, 2, 3], *[[]] * 7], [inner], concrete=scalars)
    found = ran([outer])
    assert found.calls["name"].to_list() == ["aten::convolution"]
    assert flops(found) == 2 * 6 * 4 * 2 * 3


def test_a_library_convolution_on_its_own_counts() -> None:
    dims: list[object] = [[1, 2, 8], [4, 2, 3], *[[]] * 6]
    found = ran([Call("aten::cudnn_convolution", dims, kernels=[GEMM], concrete=["", "", "[0]", "[1]", "[1]", "1"])])
    assert flops(found) == 2 * 6 * 4 * 2 * 3


def test_without_gpu_activity_every_innermost_operator_counts_but_those_that_never_ran() -> None:
    executed_ones = [
        mm(2, 2, 2),
        Call("aten::addmm", [[2], [2, 2], [2, 2]], [DETACH, Call("aten::expand", [[2]])], phase="recompute"),
        Call("aten::addmm", [[2], [2, 2], [2, 2]], [DETACH]),
        Call("aten::mm", [[2, 2], [2, 2]], phase="recompute"),
    ]
    phantom = Call("aten::addmm", [[8], [8, 8], [8, 8]], [DETACH, DETACH], phase="recompute")
    found = ran([*executed_ones, phantom])
    assert flops(found) == 4 * 16
    assert found.phantom["full"].to_list() == [2 * 8 * 8 * 8]
    assert found.calls["kernel_ns"].null_count() == 4
    assert found.coverage.row(0) == (0, 0, 0, 0, 0)


def test_shapes_that_do_not_fit_are_not_covered() -> None:
    found = ran([Call("aten::mm", [[4, 5], [4, 6]], kernels=[GEMM]), mm(4, 5, 6, 1000)])
    assert flops(found) == 2 * 4 * 5 * 6
    assert found.coverage["covered_ns"].to_list() == [1000]
    assert found.coverage["shaped_ns"].to_list() == [2000]
    assert found.opaque.row(0) == ("aten::mm", 1000, 1)


@pytest.mark.parametrize(
    ("call", "covered"),
    [
        pytest.param(Call("aten::add", [[4]], kernels=[OTHER]), 500, id="PyTorch's own operator"),
        pytest.param(Call("aten::add", None, kernels=[OTHER]), 0, id="no shapes"),
        pytest.param(Call("vllm::moe_forward", [[4, 4]], kernels=[OTHER]), 0, id="opaque operator with shapes"),
        pytest.param(Call("triton_poi_fused_add_0", [[4]], kernels=[OTHER]), 0, id="compiled kernel"),
        pytest.param(Call("CompiledFunction", [[4]], kernels=[("graph", "compute", 500)]), 0, id="captured graph"),
        pytest.param(
            Call("vllm::moe_forward", [[4, 4]], [Call("aten::add", [[4]], kernels=[OTHER])]),
            500,
            id="inside an opaque one",
        ),
        pytest.param(
            Call("aten::add", [[4]], [Call("record_param_comms", None, kernels=[("nccl", "comm", 500)])]),
            500,
            id="communication",
        ),
    ],
)
def test_coverage(call: Call, covered: int) -> None:
    found = ran([call])
    assert found.coverage["kernel_ns"].to_list() == [500]
    assert found.coverage["covered_ns"].to_list() == [covered]


def test_without_any_shapes_nothing_is_covered() -> None:
    found = ran([Call("record_param_comms", None, kernels=[("nccl", "comm", 500)])])
    assert found.coverage["covered_ns"].to_list() == [0]


def test_orphans_get_no_flops_and_are_told() -> None:
    found = ran([mm(4, 5, 6, 100)], orphans=[("gemm", "compute", 300), ("nccl", "comm", 50), ("Memcpy", "memcpy", 9)])
    assert flops(found) == 2 * 4 * 5 * 6
    row = found.coverage.row(0, named=True)
    assert row == {"kernel_ns": 450, "linked_ns": 100, "shaped_ns": 100, "covered_ns": 100, "orphan_ns": 350}


@pytest.mark.parametrize(
    ("kernel", "dtype", "against", "flagged"),
    [
        ("sm80_xmma_gemm_f32f32_tf32f32_f32_nn", "tf32", "tf32", False),
        ("ampere_s1688gemm_128x64", "tf32", "tf32", False),
        ("ampere_sgemm_128x64_tn", "fp32", "fp32", False),
        ("cutlass_simt_gemm", "fp32", "fp32", False),
        ("mystery_kernel", "fp32", "tf32", True),
    ],
)
def test_kernel_names_tell_whether_float32_ran_in_tf32(kernel: str, dtype: str, against: str, *, flagged: bool) -> None:
    found = ran([Call("aten::mm", [[4, 5], [5, 6]], kernels=[(kernel, "compute", 9)], dtype="float")])
    assert found.calls["dtype"].to_list() == [dtype]
    assert found.calls["peak_dtype"].to_list() == [against]
    assert (PRECISION in found.calls["flags"][0]) == flagged


@pytest.mark.parametrize(
    ("kernel", "dtype"),
    [
        ("sm90_xmma_gemm_e4m3bf16_e4m3f32_f32_tn_n_tilesize128x128x128", "fp8"),
        ("nvjet_qqtst_128x256_128x6_2x1_2cta_v_bz_TNT", "fp8"),
        ("nvjet_sm100_qqtst_128x256_128x6_2x1_2cta_v_bz_TNT", "fp8"),
        ("nvjet_ootst_128x256_256x4_2x1_Avec16UE4M3_Bvec16UE4M3_TNT", "fp4"),
        ("nvjet_tst_128x256_64x4_2x1_v_bz_TNT", "bf16"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n", "bf16"),
    ],
)
def test_a_layer_that_quantises_inside_runs_in_the_format_its_kernels_name(kernel: str, dtype: str) -> None:
    """Its operands are recorded before they are quantised: the wide format's peak would double its share."""
    cast = ("void transformer_engine::cast_transpose_kernel<__nv_bfloat16, __nv_fp8_e4m3>", "compute", 5)
    found = ran([Call("_Linear", [[6, 5], [4, 5]], kernels=[cast, (kernel, "compute", 90)])])
    assert found.calls["dtype"].to_list() == found.calls["peak_dtype"].to_list() == [dtype]
    assert flops(found) == 2 * 4 * 5 * 6


def test_an_opaque_backward_takes_the_sizes_of_its_forward() -> None:
    qkv = [[2, 8, 4, 16]] * 3
    forward = Call("FlashAttnFunc", qkv, kernels=[GEMM], sequence=7)
    backward = Call("FlashAttnFuncBackward", [[2, 8, 4, 16]], kernels=[GEMM], sequence=7, phase="backward")
    lone = Call("FlashAttnFuncBackward", [[2, 8, 4, 16]], kernels=[GEMM], sequence=8, phase="backward")
    found = ran([forward, backward, lone])
    once = 2 * 2 * 4 * 8 * 8 * 32
    assert found.calls["full"].to_list() == [once, once * 5 // 2]
    assert found.calls["model_full"].to_list() == [once, 2 * once]
    assert found.calls["backward"].to_list() == [False, True]
    assert found.coverage["covered_ns"].to_list() == [2000]


def test_a_function_whose_backward_records_products_is_not_counted_twice() -> None:
    forward = Call("_Linear", [[6, 5], [4, 5]], kernels=[GEMM], sequence=1)
    backward = Call("_LinearBackward", [[4, 6]], [mm(4, 6, 5, 10), mm(6, 4, 5, 10)], sequence=1, phase="backward")
    assert flops(ran([forward, backward])) == 3 * 2 * 4 * 5 * 6


def test_nothing_recorded_gives_nothing() -> None:
    found = ran([])
    assert found.calls.is_empty()
    assert found.opaque.is_empty()
    assert ran([], orphans=[("gemm", "compute", 300)]).coverage["orphan_ns"].to_list() == [300]


@st.composite
def forests(draw: st.DrawFn) -> tuple[list[int | None], list[bool], list[int]]:
    """Return the parent of each event, which are products, and the events that launched a kernel each."""
    count = draw(st.integers(1, 14))
    parents = [draw(st.none() | st.integers(0, n - 1)) if n else None for n in range(count)]
    products = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    return parents, products, draw(st.lists(st.integers(0, count - 1), max_size=8))


@given(forests())
def test_nesting_equals_walking_the_tree(forest: tuple[list[int | None], list[bool], list[int]]) -> None:
    parents, products, launching = forest

    def above(event: int) -> list[int]:
        parent = parents[event]
        return [] if parent is None else [parent, *above(parent)]

    count = len(parents)
    outer = {ancestor for event in range(count) if products[event] for ancestor in above(event)}
    innermost = [event for event in range(count) if products[event] and event not in outer]
    expected: dict[int, int] = {}
    for event in launching:
        owner = next((e for e in (event, *above(event)) if e in innermost), None)
        if owner is not None:
            expected[owner] = expected.get(owner, 0) + 1
    ids, zeros = list(range(count)), [0] * count
    names = ["aten::mm" if product else "aten::add" for product in products]
    kernels = len(launching)
    gpu: dict[str, object] = {"rank": [0] * kernels, "event": range(count, count + kernels), "dur_ns": [1] * kernels}
    gpu |= {"kind": ["compute"] * kernels, "name": ["k"] * kernels, "launch": launching, "op": launching}
    shapes = {"input_dims": ["[[2,2],[2,2]]"] * count, "input_types": ['["float","float"]'] * count}
    found = executed(
        frame("events", {"rank": zeros, "event": ids, "name": names}),
        frame("links", {"rank": zeros, "event": ids, "parent": parents}),
        frame("gpu", gpu),
        frame("op_shapes", {"rank": zeros, "event": ids, **shapes}),
    )
    if launching:
        assert dict(found.calls.select("event", "kernels").rows()) == expected
        assert found.calls["full"].to_list() == [16] * len(expected)
    else:
        assert found.calls["event"].to_list() == innermost
    assert found.calls.schema["event"] == pl.Int64
