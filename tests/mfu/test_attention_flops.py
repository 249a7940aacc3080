"""FLOPs of attention: layouts, grouped keys, causal pairs, backward, packed sequences."""

from __future__ import annotations

import pytest
from calls import full, work
from hypothesis import given
from hypothesis import strategies as st

from tracetool.mfu.attention_flops import causal_pairs, seen_pairs
from tracetool.mfu.op_arguments import ALIGNMENT, MASK, VARLEN

B, H, G, S, D, V = 2, 8, 2, 64, 16, 16
ONCE = 2 * B * H * S * S * (D + V)
BHSD, GROUPED = [B, H, S, D], [B, G, S, D]
BSHD, BSGD = [B, S, H, D], [B, S, G, D]


def arguments(count: int, **at: str) -> list[str]:
    """Return recorded scalars: `a5="True"` stands at position 5."""
    return [at.get(f"a{n}", "") for n in range(count)]


FORWARDS = [
    ("aten::scaled_dot_product_attention", 5, BHSD, GROUPED),
    ("aten::_scaled_dot_product_flash_attention", 4, BHSD, GROUPED),
    ("aten::_scaled_dot_product_efficient_attention", 6, BHSD, GROUPED),
    ("aten::_scaled_dot_product_cudnn_attention", 6, BHSD, GROUPED),
    ("aten::_scaled_dot_product_fused_attention_overrideable", 5, BHSD, GROUPED),
    ("aten::_scaled_dot_product_flash_attention_for_cpu", 4, BHSD, GROUPED),
    ("aten::_flash_attention_forward", 8, BSHD, BSGD),
    ("flash_attn::_flash_attn_forward", 5, BSHD, BSGD),
    ("flash_attn_3::fwd", 24, BSHD, BSGD),
]
BACKWARDS = [
    ("aten::_scaled_dot_product_flash_attention_backward", 11, BHSD, GROUPED),
    ("aten::_scaled_dot_product_efficient_attention_backward", 11, BHSD, GROUPED),
    ("aten::_scaled_dot_product_cudnn_attention_backward", 14, BHSD, GROUPED),
    ("aten::_scaled_dot_product_fused_attention_overrideable_backward", 13, BHSD, GROUPED),
    ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", 7, BHSD, GROUPED),
    ("aten::_flash_attention_backward", 11, BSHD, BSGD),
    ("flash_attn::_flash_attn_backward", 10, BSHD, BSGD),
    ("flash_attn::_flash_attn_backward", 11, BSHD, BSGD),
    ("flash_attn_3::bwd", 16, BSHD, BSGD),
]


@pytest.mark.parametrize(("name", "causal_at", "q", "k"), FORWARDS)
@pytest.mark.parametrize("causal", [True, False])
def test_forward(name: str, causal_at: int, q: list[int], k: list[int], *, causal: bool) -> None:
    dims: list[object] = [q, k, k, *[[]] * 25]
    found = work(name, dims, arguments(28, **{f"a{causal_at}": str(causal)}))
    assert found is not None
    assert found.full == found.model_full == ONCE
    assert found.causal == found.model_causal == (ONCE // 2 if causal else ONCE)
    assert found.flags == ()
    assert "8/2 heads" in found.shape


@pytest.mark.parametrize(("name", "causal_at", "q", "k"), BACKWARDS)
def test_backward_runs_five_products_of_which_the_model_needs_four(
    name: str, causal_at: int, q: list[int], k: list[int]
) -> None:
    dims: list[object] = [q, q, k, k, *[[]] * 20]
    found = work(name, dims, arguments(24, **{f"a{causal_at}": "True"}))
    assert found is not None
    assert found.full == ONCE * 5 // 2
    assert found.model_full == 2 * ONCE
    assert (found.causal, found.model_causal) == (ONCE * 5 // 4, ONCE)
    assert found.backward


def test_widths_of_keys_and_values_may_differ() -> None:
    wide = [B, H, S, 3 * D]
    forward = work("aten::_scaled_dot_product_flash_attention", [wide, wide, BHSD, *[[]] * 4], arguments(7, a4="False"))
    dims: list[object] = [BHSD, wide, wide, BHSD, *[[]] * 11]
    backward = work("aten::_scaled_dot_product_flash_attention_backward", dims, arguments(15, a11="False"))
    assert forward is not None
    assert backward is not None
    assert forward.full == 2 * B * H * S * S * (3 * D + V)
    assert backward.full == 2 * B * H * S * S * (3 * 3 * D + 2 * V)
    assert backward.model_full == 2 * forward.full


@given(st.integers(1, 12), st.integers(1, 12))
def test_causal_pairs_equal_counting_them(queries: int, keys: int) -> None:
    last = sum(k <= q + keys - queries for q in range(queries) for k in range(keys))
    first = sum(k <= q for q in range(queries) for k in range(keys))
    assert causal_pairs(queries, keys) == last
    assert causal_pairs(queries, keys, from_last=False) == first


SIDE = st.none() | st.integers(0, 10)


@pytest.mark.parametrize("from_last", [True, False])
@given(queries=st.integers(1, 9), keys=st.integers(1, 9), before=SIDE, after=SIDE)
def test_pairs_of_a_window_equal_counting_them(
    queries: int, keys: int, before: int | None, after: int | None, *, from_last: bool
) -> None:
    own = keys - queries if from_last else 0
    counted = sum(
        (before is None or k >= q + own - before) and (after is None or k <= q + own + after)
        for q in range(queries)
        for k in range(keys)
    )
    assert seen_pairs(queries, keys, before, after, from_last=from_last) == counted


WINDOWED = [
    ("aten::_flash_attention_forward", False, "a8", "a11", "a12"),
    ("aten::_flash_attention_forward", False, "a8", "a14", "a15"),
    ("flash_attn::_flash_attn_forward", False, "a5", "a6", "a7"),
    ("flash_attn_3::fwd", False, "a24", "a25", "a26"),
    ("aten::_flash_attention_backward", True, "a11", "a15", "a16"),
    ("flash_attn::_flash_attn_backward", True, "a11", "a12", "a13"),
    ("flash_attn_3::bwd", True, "a16", "a17", "a18"),
]


@pytest.mark.parametrize(("name", "backward", "causal", "left", "right"), WINDOWED)
def test_a_recorded_window_cuts_the_pairs(name: str, causal: str, left: str, right: str, *, backward: bool) -> None:
    """The trap: sliding windows counted in full give more than 100 %."""
    dims: list[object] = [*([BSHD] if backward else []), BSHD, BSGD, BSGD, *[[]] * 25]
    scale = 2 * B * H * ((3 * D + 2 * V) if backward else (D + V))
    window = 16
    pairs = window * S - window * (window - 1) // 2
    found = work(name, dims, arguments(29, **{causal: "True", left: str(window - 1), right: "0"}))
    assert found is not None
    assert found.causal == scale * pairs
    assert found.full == 2 * found.causal
    assert found.shape.endswith("causal, window 16")
    open_ = work(name, dims, arguments(29, **{causal: "True", left: "-1", right: "-1"}))
    assert open_ is not None
    assert (open_.full, open_.causal) == (scale * S * S, scale * S * S // 2)
    both = work(name, dims, arguments(29, **{causal: "False", left: "7", right: "3"}))
    assert both is not None
    assert both.full == both.causal == scale * seen_pairs(S, S, 7, 3)
    assert both.shape.endswith("window 7+1+3")
    spelled = work(name, dims, arguments(29, **{causal: "False", left: "-1", right: "0"}))
    assert spelled is not None
    assert (spelled.full, spelled.causal) == (open_.full, open_.causal)
    wide = work(name, dims, arguments(29, **{causal: "True", left: str(S), right: "0"}))
    assert wide is not None
    assert (wide.full, wide.causal) == (open_.full, open_.causal)


def test_the_position_of_the_flag_differs_between_overloads() -> None:
    """Operands of 8 bits bring their scales, which move what follows them."""
    dims: list[object] = [BHSD, BHSD, BHSD, [], [1], [1], *[[]] * 4]
    found = work("aten::_scaled_dot_product_flash_attention", dims, arguments(10, a7="True"))
    assert found is not None
    assert (found.causal, found.flags) == (ONCE // 2, ())


def test_causal_with_fewer_queries_than_keys_is_flagged() -> None:
    short = [B, H, S // 2, D]
    found = work("aten::_scaled_dot_product_flash_attention", [short, BHSD, BHSD, *[[]] * 4], arguments(7, a4="True"))
    assert found is not None
    queries = S // 2
    assert found.causal == 2 * B * H * (queries * S - queries * (queries - 1) // 2) * (D + V)
    assert found.flags == (ALIGNMENT,)
    decode = work("aten::_scaled_dot_product_flash_attention", [[B, H, 1, D], BHSD, BHSD], arguments(7, a4="True"))
    assert decode is not None
    assert decode.causal == decode.full


def test_efficient_attention_knows_two_causal_masks() -> None:
    dims: list[object] = [[B, S // 2, H, D], BSHD, BSHD, *[[]] * 12]
    kinds = [work("aten::_efficient_attention_forward", dims, arguments(15, a9=kind)) for kind in "012"]
    none, first, last = (found.causal for found in kinds if found is not None)
    assert first < last < none


def test_a_mask_that_is_not_known_counts_in_full_and_is_flagged() -> None:
    masked = work("aten::scaled_dot_product_attention", [BHSD, BHSD, BHSD, [S, S]], arguments(8, a5="False"))
    silent = work("aten::_scaled_dot_product_flash_attention", [BHSD, BHSD, BHSD], arguments(7))
    assert masked is not None
    assert silent is not None
    assert masked.causal == masked.full == ONCE
    assert masked.flags == silent.flags == (MASK,)


def test_packed_sequences_are_an_upper_bound() -> None:
    """Lengths are not in the trace: every query is taken to see the longest sequence."""
    total, longest = 100, 40
    dims: list[object] = [[total, H, D], [total, G, D], [total, G, D], [5], [5], *[[]] * 10]
    scalars = arguments(15, a5=str(longest), a6=str(longest), a8="True", a9="True")
    for name in ("aten::_flash_attention_forward", "flash_attn::_flash_attn_varlen_forward"):
        found = work(name, dims, scalars)
        assert found is not None, name
        assert found.full == 2 * H * total * longest * (D + V)
        assert found.causal == found.full // 2
        assert VARLEN in found.flags
    real = sum(2 * H * length * length * (D + V) for length in (40, 30, 20, 10))
    assert real <= 2 * H * total * longest * (D + V)


def test_packed_queries_that_are_fewer_than_their_keys_get_no_half() -> None:
    """One new token a sequence sees every key before it: half would be no upper bound."""
    name = "flash_attn::_flash_attn_varlen_forward"
    dims: list[object] = [[4, H, D], [100, G, D], [100, G, D], [5], [5], *[[]] * 10]
    found = work(name, dims, arguments(15, a5="1", a6="40", a9="True"))
    assert found is not None
    assert found.causal == found.full == 2 * H * 4 * 40 * (D + V)
    real = sum(2 * H * length * (D + V) for length in (40, 30, 20, 10))
    assert real <= found.causal


@pytest.mark.parametrize(("causal", "window", "seen"), [("True", 8, 8), ("True", 30, 20), ("False", 8, 15)])
def test_packed_sequences_under_a_window(causal: str, window: int, seen: int) -> None:
    name = "flash_attn::_flash_attn_varlen_forward"
    dims: list[object] = [*[[100, H, D]] * 3, [5], [5], *[[]] * 10]
    edge = str(window - 1)
    scalars = arguments(15, a5="40", a6="40", a9=causal, a10=edge, a11="0" if causal == "True" else edge)
    found = work(name, dims, scalars)
    assert found is not None
    assert found.causal == 2 * H * 100 * seen * (D + V)
    assert found.full >= found.causal


def test_packed_backward() -> None:
    dims: list[object] = [*[[100, H, D]] * 4, [], [], [], [], [], [5], [5], *[[]] * 8]
    found = work("flash_attn::_flash_attn_varlen_backward", dims, arguments(18, a11="40", a12="40", a15="True"))
    assert found is not None
    assert found.full == 2 * H * 100 * 40 * (3 * D + 2 * V)
    assert found.flags == (VARLEN,)


@pytest.mark.parametrize(
    ("name", "backward", "lengths_at", "longest_at", "about"),
    [
        ("aten::_flash_attention_forward", False, 3, 5, {"a8": "True"}),
        ("aten::_flash_attention_backward", True, 6, 8, {"a11": "True"}),
        ("aten::_efficient_attention_forward", False, 4, 6, {"a9": "1"}),
        ("aten::_efficient_attention_backward", True, 6, 8, {"a14": "1"}),
        ("aten::_cudnn_attention_forward", False, 4, 6, {"a10": "True"}),
        ("aten::_cudnn_attention_backward", True, 9, 11, {"a14": "True"}),
        ("flash_attn_3::fwd", False, 7, 12, {"a24": "True"}),
        ("flash_attn_3::bwd", True, 9, 13, {"a16": "True"}),
    ],
)
def test_where_packed_lengths_stand(
    name: str, lengths_at: int, longest_at: int, about: dict[str, str], *, backward: bool
) -> None:
    dims: list[object] = [*[[100, H, D]] * (4 if backward else 3), *[[]] * 25]
    dims[lengths_at] = dims[lengths_at + 1] = [5]
    found = work(name, dims, arguments(29, **{f"a{longest_at}": "40", f"a{longest_at + 1}": "40"}, **about))
    assert found is not None
    assert found.full == 2 * H * 100 * 40 * ((3 * D + 2 * V) if backward else (D + V))
    assert found.causal == found.full // 2
    assert found.flags == (VARLEN,)


@pytest.mark.parametrize(("kind", "share"), [("0", 1), ("1", 2), ("2", 2)])
def test_efficient_attention_backward_names_its_mask_by_number(kind: str, share: int) -> None:
    dims: list[object] = [BSHD, BSHD, BSHD, BSHD, *[[]] * 16]
    found = work("aten::_efficient_attention_backward", dims, arguments(20, a14=kind))
    assert found is not None
    assert found.causal * share == found.full == ONCE * 5 // 2


@pytest.mark.parametrize(
    ("name", "backward", "mask_at", "causal_at"),
    [
        ("aten::scaled_dot_product_attention", False, 3, 5),
        ("aten::_scaled_dot_product_efficient_attention", False, 3, 6),
        ("aten::_scaled_dot_product_cudnn_attention", False, 3, 6),
        ("aten::_scaled_dot_product_fused_attention_overrideable", False, 3, 5),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", False, 5, 4),
        ("aten::_scaled_dot_product_efficient_attention_backward", True, 4, 11),
        ("aten::_scaled_dot_product_cudnn_attention_backward", True, 8, 14),
        ("aten::_scaled_dot_product_fused_attention_overrideable_backward", True, 4, 13),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", True, 8, 7),
    ],
)
def test_where_a_mask_stands(name: str, mask_at: int, causal_at: int, *, backward: bool) -> None:
    dims: list[object] = [*[BHSD] * (4 if backward else 3), *[[]] * 16]
    scalars = arguments(20, **{f"a{causal_at}": "False"})
    plain = work(name, dims, scalars)
    dims[mask_at] = [B, 1, S, S]
    masked = work(name, dims, scalars)
    assert plain is not None
    assert masked is not None
    assert plain.flags == ()
    assert masked.flags == (MASK,)
    assert masked.causal == plain.full


@pytest.mark.parametrize(
    "dims",
    [
        [BHSD, [B, H, S, D + 1], BHSD],
        [BHSD, [B, H, S + 1, D], BHSD],
        [BHSD, [B + 1, H, S, D], BHSD],
        [BHSD, [B, 3, S, D], [B, 3, S, D]],
        [BHSD, [H, S, D], BHSD],
        [[BHSD], BHSD, BHSD],
        [BHSD, BHSD],
    ],
)
def test_tensors_that_contradict_each_other_give_no_flops(dims: list[object]) -> None:
    assert full("aten::_scaled_dot_product_flash_attention", dims, arguments(7, a4="True")) is None


def test_keys_shared_by_all_heads_or_repeated_for_them_cost_the_same() -> None:
    name, scalars = "aten::scaled_dot_product_attention", arguments(8, a5="False", a7="True")
    one = [B, 1, S, D]
    assert full(name, [BHSD, one, one], scalars) == full(name, [BHSD, BHSD, BHSD], scalars) == ONCE


def test_cross_attention_and_empty_batches() -> None:
    other = [B, H, 3 * S, D]
    assert full("aten::_scaled_dot_product_flash_attention", [BHSD, other, other], arguments(7, a4="False")) == 3 * ONCE
    nobody = [0, H, S, D]
    assert full("aten::_scaled_dot_product_flash_attention", [nobody] * 3, arguments(7, a4="True")) == 0


def test_nested_tensors_without_sizes_give_no_flops() -> None:
    assert full("aten::scaled_dot_product_attention", [[], [], []], arguments(8, a5="True"), ["", "", ""]) is None


def test_heads_folded_into_the_batch() -> None:
    found = work("aten::_scaled_dot_product_efficient_attention", [[B * H, S, D]] * 3, arguments(8, a6="False"))
    assert found is not None
    assert found.full == ONCE


def test_transformer_engine_and_flash_functions_find_their_tensors() -> None:
    sbhd = [S, B, H, D]
    dims: list[object] = [[], [], [], [B + 1], [B + 1], [B + 1], [B + 1], [], [], sbhd, sbhd, sbhd]
    assert full("FusedAttnFunc", dims) == ONCE
    bshd = [*dims[:9], BSHD, BSHD, BSHD]
    assert full("FusedAttnFunc", bshd) == ONCE
    assert full("FlashAttnFunc", [BSHD, BSGD, BSGD]) == ONCE
    assert full("FlashAttnFunc", [[B, S], [], BSHD]) is None


def test_compiled_flex_attention_counts_in_full() -> None:
    name = "triton_tem_fused_flex_attention_3"
    found = work(name, [BHSD, GROUPED, GROUPED, [B, H, S]])
    assert found is not None
    assert (found.full, found.flags) == (ONCE, (MASK,))
    assert full("triton_tem_fused_flex_attention_backward_4", [BHSD, BHSD, BHSD]) == ONCE * 5 // 2


def test_attention_moves_each_tensor_once() -> None:
    found = work("aten::_scaled_dot_product_flash_attention", [BHSD, GROUPED, GROUPED], arguments(7, a4="True"))
    assert found is not None
    assert found.moved_bytes == 2 * (2 * B * H * S * D + 2 * B * G * S * D)
