"""Kernel names made short."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracetool.kernelname import SHORT_NAME_LENGTH, short_name


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("ampere_bf16_s16816gemm_bf16_128x64_ldg8_f2f_stages_64x4_tn", None),
        ("ncclDevKernel_AllReduce_Sum_bf16(ncclDevKernelArgsStorage<4096ul>)", "ncclDevKernel_AllReduce_Sum_bf16"),
        (
            "void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<int>, char*>(int, char*)",
            "vectorized_elementwise_kernel<FillFunctor>",
        ),
        ("void at::native::(anonymous namespace)::cunn_SoftMaxForward<8, float>(float*, int)", "cunn_SoftMaxForward"),
        ("Memcpy HtoD (Pageable -> Device)", "Memcpy HtoD"),
        ("x" * 100, "x" * 63 + "…"),
        ("<<<>>>", "<<<>>>"),
        ("", ""),
    ],
)  # fmt: skip
def test_long_names_get_short(name: str, short: str | None) -> None:
    assert short_name(name) == (name if short is None else short)


@settings(deadline=None)
@given(st.text(alphabet="ab<>():_ ", max_size=200))
def test_no_name_breaks_shortening(name: str) -> None:
    assert len(short_name(name)) <= SHORT_NAME_LENGTH
