"""FLOPs and bytes of matrix products and convolutions."""

from __future__ import annotations

import math

import pytest
from calls import BF16, full, work
from hypothesis import given
from hypothesis import strategies as st

M, K, N, B, E = 6, 8, 10, 3, 4
FP8 = "c10::Float8_e4m3fn"


@pytest.mark.parametrize(
    ("name", "dims", "flops"),
    [
        ("aten::mm", [[M, K], [K, N]], 2 * M * K * N),
        ("aten::_int_mm", [[M, K], [K, N]], 2 * M * K * N),
        ("aten::addmm", [[N], [M, K], [K, N], [], []], 2 * M * K * N),
        ("aten::addmm", [[1, N], [M, K], [K, N], [], []], 2 * M * K * N),
        ("aten::addmm", [[], [M, K], [K, N], [], []], 2 * M * K * N),
        ("aten::addbmm", [[M, N], [B, M, K], [B, K, N]], 2 * B * M * K * N),
        ("aten::mm", [[0, K], [K, N]], 0),
        ("aten::bmm", [[B, M, 0], [B, 0, N]], 0),
        ("aten::_addmm_activation", [[N], [M, K], [K, N]], 2 * M * K * N),
        ("aten::bmm", [[B, M, K], [B, K, N]], 2 * B * M * K * N),
        ("aten::baddbmm", [[B, M, N], [B, M, K], [B, K, N]], 2 * B * M * K * N),
        ("aten::mv", [[M, K], [K]], 2 * M * K),
        ("aten::dot", [[K], [K]], 2 * K),
        ("aten::linear", [[B, M, K], [N, K], [N]], 2 * B * M * K * N),
        ("aten::matmul", [[B, 1, M, K], [E, K, N]], 2 * B * E * M * K * N),
        ("aten::matmul", [[B, M, K], [K, N]], 2 * B * M * K * N),
        ("aten::matmul", [[K], [K, N]], 2 * K * N),
        ("aten::_grouped_mm", [[M, K], [E, K, N], [E]], 2 * M * K * N),
        ("aten::_grouped_mm", [[E, M, K], [K, N], [E]], 2 * M * K * N),
        ("aten::_grouped_mm", [[M, K], [K, N], [E]], 2 * M * K * N),
        ("aten::_grouped_mm", [[E, M, K], [E, K, N]], 2 * E * M * K * N),
        ("aten::_scaled_grouped_mm", [[M, K], [E, K, N], [M], [E], [E]], 2 * M * K * N),
        ("aten::_scaled_grouped_mm_v2", [[M, K], [E, K, N], [[M]], [], [], [[E]], [], [], [E]], 2 * M * K * N),
        ("aiter::gemm_a16w16", [[M, K], [N, K]], 2 * M * K * N),
        ("_C::cutlass_scaled_mm", [[M, N], [M, K], [K, N]], 2 * M * K * N),
        ("_Linear", [[N, K], [B, M, K], [N]], 2 * B * M * K * N),
        ("_Linear", [[N, K], [M, K]], 2 * M * K * N),
        ("_LayerNormLinear", [[B, M, K], [K], [K], [N, K]], 2 * B * M * K * N),
        ("_LayerNormMLP", [[M, K], [K], [K], [2 * N, K], [2 * N], [K, N]], 2 * M * K * 2 * N + 2 * M * N * K),
        ("_GroupedLinear", [[M, K], [N, K], [N, K], [N, K]], 2 * M * K * N),
    ],
)
def test_products(name: str, dims: list[object], flops: int) -> None:
    assert full(name, dims) == flops


def test_transformer_engine_gemm_needs_no_layout() -> None:
    dims: list[object] = [[] for _ in range(11)]
    for a, b in (([M, K], [N, K]), ([K, M], [K, N])):
        dims[0], dims[5], dims[10] = a, b, [N, M]
        assert full("tex_ts::te_gemm_ts", dims) == 2 * M * K * N
    dims[10] = [N + 1, M]
    assert full("tex_ts::te_gemm_ts", dims) is None


@pytest.mark.parametrize(
    ("name", "dims"),
    [
        ("aten::mm", [[M, K], [K + 1, N]]),
        ("aten::mm", [[B, M, K], [B, K, N]]),
        ("aten::mm", [[M, K], [[K, N]]]),
        ("aten::mm", [[M, K]]),
        ("aten::mm", [[], []]),
        ("aten::bmm", [[B, M, K], [B + 1, K, N]]),
        ("aten::addmm", [[M, K], [K, N]]),
        ("aten::linear", [[M, K], [K, N]]),
        ("aten::matmul", [[2, M, K], [3, K, N]]),
        ("aten::_grouped_mm", [[E, M, K], [E + 1, K, N]]),
        ("aten::_foreach_mm", [[[M, K], [M, K]], [[K, N], [K, N]]]),
    ],
)
def test_shapes_that_do_not_fit_give_no_flops(name: str, dims: list[object]) -> None:
    assert full(name, dims) is None


def test_a_tensor_without_a_number_format_gives_no_flops() -> None:
    assert full("aten::mm", [[M, K], [K, N]], types="c10::complex<float>") is None


def test_groups_move_every_experts_weights_and_every_result() -> None:
    rows = work("aten::_grouped_mm", [[M, K], [E, K, N], [E]])
    inner = work("aten::_grouped_mm", [[M, K], [K, N], [E]])
    assert rows is not None
    assert inner is not None
    assert rows.moved_bytes == 2 * (M * K + E * K * N + M * N)
    assert inner.moved_bytes == 2 * (M * K + K * N + E * M * N)
    assert inner.shape.endswith("4 groups")


def test_scaled_products_take_the_format_of_their_operands() -> None:
    dims: list[object] = [[M, K], [K, N], [], [], [], [], [], []]
    types = [FP8, FP8, "float", "float", "", "", "Scalar", "Scalar"]
    found = work("aten::_scaled_mm", dims, ["", "", "", "", "", "", "15", "False"], types)
    assert found is not None
    assert (found.dtype, found.full) == ("fp8", 2 * M * K * N)
    assert found.moved_bytes == M * K + K * N + 2 * M * N


@pytest.mark.parametrize(
    ("name", "at", "number", "element"),
    [("aten::_scaled_mm", 6, "15", 2), ("aten::_scaled_mm", 6, "6", 4), ("aten::_scaled_mm_v2", 9, "6", 4)],
)
def test_where_the_format_of_a_scaled_products_result_stands(name: str, at: int, number: str, element: int) -> None:
    concrete = [""] * 12
    concrete[at] = number
    found = work(name, [[M, K], [K, N], *[[]] * 10], concrete, [FP8, FP8, *[""] * 10])
    assert found is not None
    assert found.moved_bytes == M * K + K * N + element * M * N


def test_whole_numbers_of_eight_bits() -> None:
    found = work("aten::_int_mm", [[M, K], [K, N]], types="signed char")
    assert found is not None
    assert (found.dtype, found.full) == ("int8", 2 * M * K * N)


def test_fp4_elements_are_recorded_in_pairs() -> None:
    packed = "c10::Float4_e2m1fn_x2"
    assert full("aten::_scaled_mm", [[M, K], [K, N]], types=packed) == 2 * 2 * M * K * N


@given(st.integers(0, 64), st.integers(0, 64), st.integers(0, 64))
def test_bytes_count_each_operand_and_result_once(m: int, k: int, n: int) -> None:
    """The trap: bytes counted twice."""
    found = work("aten::mm", [[m, k], [k, n]])
    assert found is not None
    assert found.moved_bytes == 2 * (m * k + k * n + m * n)
    assert found.full == sum(2 for _ in range(m * n * k))


CONV = ["", "", "", "[2, 2]", "[1, 1]", "[1, 1]", "False", "[0, 0]", "1"]
CONV_DIMS: list[object] = [[10, 256, 14, 14], [512, 256, 3, 3], [], [], [], [], [], [], []]


def test_convolution() -> None:
    found = work("aten::convolution", CONV_DIMS, CONV)
    assert found is not None
    assert found.full == 2 * 10 * 512 * 7 * 7 * 256 * 9
    assert found.moved_bytes == 2 * (10 * 256 * 14 * 14 + 512 * 256 * 9 + 10 * 512 * 7 * 7)


def test_grouped_and_one_dimensional_convolutions() -> None:
    grouped = [*CONV[:8], "4"]
    assert full("aten::convolution", [[1, 16, 8, 8], [8, 4, 3, 3], *[[]] * 7], grouped) == 2 * 8 * 4 * 4 * 4 * 9
    line = ["", "", "", "[1]", "[0]", "[1]", "False", "[0]", "1"]
    assert full("aten::convolution", [[5, 3, 20], [7, 3, 4], *[[]] * 7], line) == 2 * 5 * 7 * 17 * 3 * 4


def test_transposed_convolution_costs_its_input_places() -> None:
    up = ["", "", "", "[2, 2]", "[0, 0]", "[1, 1]", "True", "[0, 0]", "1"]
    found = work("aten::convolution", [[1, 16, 5, 5], [16, 8, 2, 2], *[[]] * 7], up)
    assert found is not None
    assert found.full == 2 * 5 * 5 * 16 * 8 * 4
    assert found.shape.endswith("10×10")


@pytest.mark.parametrize("mask", ["[True, True, False]", "[False, True, True]", "[True, False, False]"])
def test_convolution_backward_costs_one_forward_a_requested_gradient(mask: str) -> None:
    """The first convolution of a network asks for no gradient of its input."""
    concrete = ["", "", "", "[0]", "[2, 2]", "[1, 1]", "[1, 1]", "False", "[0, 0]", "1", mask]
    dims: list[object] = [[10, 512, 7, 7], [10, 256, 14, 14], [512, 256, 3, 3], *[[]] * 8]
    forward = full("aten::convolution", CONV_DIMS, CONV)
    assert forward is not None
    assert full("aten::convolution_backward", dims, concrete) == forward * mask[:13].count("True")


def test_backward_of_a_transposed_and_of_a_depthwise_convolution() -> None:
    up = ["", "", "", "[2, 2]", "[0, 0]", "[1, 1]", "True", "[0, 0]", "1"]
    forward = full("aten::convolution", [[1, 16, 5, 5], [16, 8, 2, 2], *[[]] * 7], up)
    assert forward is not None
    back = ["", "", "", "[0]", "[2, 2]", "[0, 0]", "[1, 1]", "True", "[0, 0]", "1", "[True, True, False]"]
    dims: list[object] = [[1, 8, 10, 10], [1, 16, 5, 5], [16, 8, 2, 2], *[[]] * 8]
    assert full("aten::convolution_backward", dims, back) == 2 * forward
    each = ["", "", "", "[1, 1]", "[1, 1]", "[1, 1]", "False", "[0, 0]", "16"]
    deep = full("aten::convolution", [[2, 16, 5, 5], [16, 1, 3, 3], *[[]] * 7], each)
    assert deep == 2 * 2 * 16 * 25 * 9
    back = ["", "", "", "[0]", "[1, 1]", "[1, 1]", "[1, 1]", "False", "[0, 0]", "16", "[True, True, False]"]
    dims = [[2, 16, 5, 5], [2, 16, 5, 5], [16, 1, 3, 3], *[[]] * 8]
    assert full("aten::convolution_backward", dims, back) == 2 * deep


@pytest.mark.parametrize(
    "concrete",
    [
        ["", "", "", "", "[1, 1]", "[1, 1]", "False", "[0, 0]", "1"],
        ["", "", "", "[0, 0]", "[1, 1]", "[1, 1]", "False", "[0, 0]", "1"],
        ["", "", "", "[2, 2]", "[1, 1]", "[9, 9]", "False", "[0, 0]", "1"],
        ["", "", "", "[2, 2]", "[1, 1]", "[1, 1]", "False", "[0, 0]", "2"],
        [],
    ],
)
def test_convolutions_with_unknown_or_impossible_arguments(concrete: list[str]) -> None:
    assert full("aten::convolution", CONV_DIMS, concrete) is None


@given(st.lists(st.integers(1, 4), min_size=3, max_size=3), st.integers(1, 3), st.integers(0, 2), st.integers(1, 2))
def test_convolution_equals_counting_places(sizes: list[int], stride: int, padding: int, dilation: int) -> None:
    batch, channels, kernel = sizes
    width = 9
    out = len(range(0, width + 2 * padding - dilation * (kernel - 1), stride))
    concrete = ["", "", "", f"[{stride}]", f"[{padding}]", f"[{dilation}]", "False", "[0]", "1"]
    found = full("aten::convolution", [[batch, channels, width], [5, channels, kernel], *[[]] * 7], concrete, BF16)
    assert found == 2 * math.prod([batch, 5, out, channels, kernel])
