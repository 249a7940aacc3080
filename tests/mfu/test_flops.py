"""The table of counted operators, and counting whole columns of calls."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import polars as pl
import pytest
from calls import full

from tracetool.mfu import flops

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    "name",
    ["aten::add", "triton_poi_fused_add_0", "vllm::moe_forward", "te_general_grouped_gemm", "aten::einsum", "mm"],
)
def test_operators_without_known_flops(name: str) -> None:
    assert flops.operator(name) is None
    assert full(name, [[2, 2], [2, 2]]) is None


def test_sizes_that_no_device_could_hold_are_not_counted() -> None:
    assert full("aten::mm", [[1 << 20, 1 << 15], [1 << 15, 1 << 20]]) == 1 << 56
    assert full("aten::mm", [[1 << 20, 1 << 16], [1 << 16, 1 << 20]]) is None
    assert full("aten::mm", [[1 << 62, 1 << 62], [1 << 62, 1 << 62]]) is None


@pytest.mark.parametrize(
    ("name", "transparent"),
    [
        ("aten::native_layer_norm", True),
        ("aten::_fused_adamw_", True),
        ("c10d::allreduce_", True),
        ("fsdp::all_gather_copy_in", True),
        ("GeluBackward0", True),
        ("sgl_kernel::silu_and_mul", True),
        ("_C::rms_norm", True),
        ("vllm::moe_forward", False),
        ("triton_poi_fused_add_0", False),
        ("triton_red_fused_native_layer_norm_1", False),
        ("_Linear", False),
        ("aiter::mha_batch_prefill", False),
        ("my::rms_norm_gemm", False),
        ("CompiledFunction", False),
        ("CompiledFunctionBackward", False),
        ("aten::_cudnn_rnn", False),
        ("aten::_cudnn_rnn_backward", False),
        ("aten::_thnn_fused_lstm_cell", True),
        ("aten::cudnn_convolution_relu", False),
        ("aten::cudnn_convolution_backward", False),
        ("aten::_weight_int4pack_mm", False),
        ("aten::_sparse_semi_structured_linear", False),
        ("aten::_foreach_mm", False),
        ("aten::_triton_scaled_dot_attention", False),
        ("aten::linalg_qr", False),
        ("aten::linalg_vector_norm", True),
        ("aten::upsample_bilinear2d", True),
        ("torchvision::deform_conv2d", False),
        ("torchvision::nms", True),
        ("symm_mem::_async_input_mm", False),
        ("symm_mem::one_shot_all_reduce", True),
        ("te_general_grouped_gemm", False),
        ("flashinfer::batch_prefill_with_kv_cache", False),
        ("fbgemm::f8f8bf16_rowwise_grouped", False),
        ("LinearWithGradAccumulationAndAsyncCommunicationBackward", False),
    ],
)
def test_only_operators_sure_to_hold_no_product_are_transparent(name: str, *, transparent: bool) -> None:
    """The trap: a compiled or custom operator has sizes, but nobody counted what it multiplies."""
    assert flops.is_transparent(name) is transparent


def test_columns_keep_their_order_and_nulls() -> None:
    types = json.dumps(["c10::BFloat16", "c10::BFloat16"])
    calls = pl.DataFrame(
        {
            "event": [3, 1, 2, 0],
            "name": ["aten::mm", "aten::add", "aten::mm", "aten::mm"],
            "input_dims": ["[[2,3],[3,4]]", "[[2],[2]]", None, "[[2,3],[3,4]]"],
            "input_types": [types, types, types, types],
            "concrete_inputs": pl.Series([None] * 4, dtype=pl.String),
        }
    )
    found = flops.add_work(calls)
    assert found["event"].to_list() == [3, 1, 2, 0]
    assert found["full"].to_list() == [48, None, None, 48]
    assert found["dtype"].to_list() == ["bf16", None, None, "bf16"]
    assert flops.add_work(calls.clear()).columns == found.columns


def test_attention_of_the_recorded_tiny_model(shared: Path) -> None:
    model = json.loads((shared / "mfu" / "expected_cpu_traces.json").read_text(encoding="utf-8"))["model"]
    scalars = ["", "", "", "0.", "True", "", ""]
    layer = full("aten::_scaled_dot_product_flash_attention_for_cpu", [[2, 4, 64, 32]] * 3, scalars, "float")
    assert layer is not None
    assert layer * model["layers"] == model["A_per_token"] * model["tokens_per_step"]
