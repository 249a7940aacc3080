"""Recorded arguments are parsed, never evaluated; what does not fit counts as not recorded."""

from __future__ import annotations

import pytest

from tracetool.mfu.op_arguments import Arguments, dtype_of, items


def test_sizes_of_tensors_only() -> None:
    args = Arguments(dims=([2, 3], [], 7, [[2, 3], [4]], [2, -1], [True], None))
    assert args.size(0) == (2, 3)
    assert [args.size(n) for n in range(1, 9)] == [None] * 8


def test_scalars_are_parsed_strictly() -> None:
    args = Arguments(concrete=("True", "False", "1", "[2, 2]", "[True, False, True]", "", "1.0", 5, "[a]"))
    assert (args.flag(0), args.flag(1), args.flag(2)) == (True, False, None)
    assert (args.integer(2), args.integer(6), args.integer(5), args.integer(7)) == (1, None, None, None)
    assert (args.integers(3), args.integers(8), args.integers(5)) == ((2, 2), None, None)
    assert args.flags(4) == (True, False, True)
    assert args.flags(5) is None


@pytest.mark.parametrize("text", ["__import__('os').system('false')", "[1].__class__", "9" * 400])
def test_hostile_text_does_nothing(text: str) -> None:
    args = Arguments(concrete=(text,))
    assert (args.flag(0), args.integer(0), args.integers(0)) == (None, None, None)


@pytest.mark.parametrize("text", [None, "", "{", '{"a": 1}', "[" * 5000, "3"])
def test_text_that_is_no_list_is_not_recorded(text: str | None) -> None:
    assert items(text) == ()


@pytest.mark.parametrize(
    ("recorded", "dtype"),
    [
        ("c10::BFloat16", "bf16"),
        ("c10::Half", "fp16"),
        ("float", "fp32"),
        ("double", "fp64"),
        ("c10::Float8_e4m3fn", "fp8"),
        ("c10::Float8_e5m2fnuz", "fp8"),
        ("c10::Float4_e2m1fn_x2", "fp4"),
        ("signed char", "int8"),
        ("Scalar", None),
        ("c10::complex<float>", None),
        ("", None),
    ],
)
def test_number_formats(recorded: str, dtype: str | None) -> None:
    assert dtype_of(recorded) == dtype
