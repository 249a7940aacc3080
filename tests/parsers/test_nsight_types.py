"""Number formats out of kernel names."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import polars as pl
import pytest
from simulator_nsight import Call, Capture, Kernel, Range, write

from tracetool.registry import ParseOptions

if TYPE_CHECKING:
    from pathlib import Path

nsight = import_module("tracetool.parsers.nsight")
types = import_module("tracetool.parsers._nsight_types")


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "c10::BFloat16"),
        ("sm80_xmma_gemm_f16f16_f16f32_f32_nn_n_tilesize128x128x32", "c10::Half"),
        ("sm90_xmma_gemm_e4m3bf16_e4m3f32_f32_tn_n_tilesize128x128x128", "c10::Float8_e4m3fn"),
        ("ampere_bf16_s16816gemm_bf16_128x128_ldg8_f2f_stages_32x5_nn", "c10::BFloat16"),
        ("volta_h884gemm_128x128_ldg8_nn", "c10::Half"),
        ("ampere_sgemm_128x64_tn", "float"),
        ("sm80_xmma_gemm_f32f32_tf32f32_f32_tn_n_tilesize128x128x16", "float"),
        ("ampere_dgemm_64x64_nn", "double"),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, cutlass::bfloat16_t> >", "c10::BFloat16"),
        ("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_TNT", "c10::BFloat16"),
        ("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_TNT", "c10::Half"),
        ("triton_mm_12", None),
        ("void at::native::vectorized_elementwise_kernel<4, CUDAFunctor_add<c10::BFloat16> >", None),
    ],
)
def test_type_of_a_matrix_kernel(kernel: str, expected: str | None) -> None:
    found = pl.DataFrame({"name": [kernel]}).select(types.recorded_type(pl.col("name")))
    assert found.item() == expected


def test_an_operator_has_the_type_of_the_kernel_it_launched_itself(tmp_path: Path) -> None:
    capture = Capture(
        kernels=[
            Kernel(1, 0, 7, 100, 200, 1, "sm90_xmma_gemm_bf16bf16_bf16f32_f32"),
            Kernel(1, 0, 7, 300, 400, 2, "elementwise<c10::BFloat16>"),
        ],
        calls=[Call(1, 1, 20, 22, 1), Call(1, 1, 60, 62, 2)],
        ranges=[
            Range(1, 1, 10, 40, "aten::linear, seq = 1, op_id = 1, sizes = [[2, 3], [4, 3], []]"),
            Range(1, 1, 15, 30, "aten::mm, op_id = 2, sizes = [[2, 3], [3, 4], []]"),
            Range(1, 1, 50, 70, "aten::add, op_id = 3, sizes = [[2, 4], []]"),
        ],
    )
    tables = nsight.parse(write(tmp_path / "r.sqlite", capture), ParseOptions("r.sqlite"))
    found = tables["op_shapes"].with_columns(pl.col(pl.Categorical).cast(pl.String)).select("input_dims", "input_types")
    assert found.rows() == [
        ("[[2, 3], [4, 3], []]", None),
        ("[[2, 3], [3, 4], []]", '["c10::BFloat16", "c10::BFloat16", ""]'),
        ("[[2, 4], []]", None),
    ]
    assert "formats of 1 operators were read from the names of their kernels" in tables["sources"]["notes"][0][0]
