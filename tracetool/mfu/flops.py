"""FLOPs and compulsory bytes of one operator from its recorded arguments.

1 multiply-accumulate = 2 FLOPs. Only matrix products count: matmuls, convolutions and attention; everything else is
taken as 0. Four figures an operator, because a backward of attention runs more than the model needs and because a
causal mask may or may not be credited:

* matmul [M,K] × [K,N]: 2·M·K·N. Batched: times the batch. Grouped, rows split over the groups: 2·rows·K·N whatever
  the balance.
* convolution: 2·N·C_out·prod(out)·(C_in/groups)·prod(kernel); its backward costs that once for each requested
  gradient of input and weight.
* attention: forward 2·B·H·P·(d_qk + d_v) with P = S_q·S_k pairs of query and key; H counts query heads, also with
  grouped keys. A fused backward runs five products, 2·B·H·P·(3·d_qk + 2·d_v), of which the model needs four:
  2 × forward. `causal` figures take P = S_q·S_k/2 where S_q = S_k, else the pairs below the diagonal. Where a window
  was recorded P are the pairs it keeps; without causal credit a causal window counts twice those.

Argument positions are those of the operators' schemas (PyTorch 2.13 aten/src/ATen/native/native_functions.yaml;
flash-attention 2.7 flash_attn/flash_attn_interface.py; TransformerEngine 1.x and 2.x transformer_engine/pytorch).
The product formulas agree with torch/utils/flop_counter.py of PyTorch 2.13 on what both count.

Arguments are text from a file made elsewhere: they are parsed as JSON, never evaluated. Arguments that do not fit the
operator (a wrong number of dimensions, inner sizes that differ) give no FLOPs at all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import polars as pl

from tracetool.mfu.attention_flops import Attention, attention_function, flex
from tracetool.mfu.op_arguments import Arguments, items
from tracetool.mfu.product_flops import (
    Convolution,
    broadcast_matmul,
    by_sizes,
    convolution_backward,
    grouped,
    grouped_layer,
    linear,
    linear_layer,
    matrices,
    scaled,
    transposed,
    vector,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tracetool.mfu.op_arguments import Handler, Work


@dataclass(frozen=True)
class Operator:
    """How one operator is counted.

    `inside`: skip it below any of these, which count the same work one level up. `pair`: a forward whose backward
    runs without recorded sizes under its own name + "Backward" and costs `pair` × the forward for the model, and
    `pair_executed` × as executed.
    """

    count: Handler
    inside: frozenset[str] = field(default_factory=frozenset)
    pair: float | None = None
    pair_executed: float | None = None


_ABOVE: Final = frozenset({"aten::convolution", "aten::_convolution"})

OPERATORS: Final[Mapping[str, Operator]] = {
    "aten::mm": Operator(matrices(0, 1, 2)),
    "aten::_int_mm": Operator(matrices(0, 1, 2)),
    "aten::addmm": Operator(matrices(1, 2, 2)),
    "aten::addmm_": Operator(matrices(1, 2, 2)),
    "aten::_addmm_activation": Operator(matrices(1, 2, 2)),
    "aten::bmm": Operator(matrices(0, 1, 3)),
    "aten::baddbmm": Operator(matrices(1, 2, 3)),
    "aten::baddbmm_": Operator(matrices(1, 2, 3)),
    "aten::addbmm": Operator(matrices(1, 2, 3)),
    "aten::addbmm_": Operator(matrices(1, 2, 3)),
    "aten::mv": Operator(vector(0, 1)),
    "aten::addmv": Operator(vector(1, 2)),
    "aten::addmv_": Operator(vector(1, 2)),
    "aten::dot": Operator(vector(0, 1)),
    "aten::vdot": Operator(vector(0, 1)),
    "aten::linear": Operator(linear),
    "aten::matmul": Operator(broadcast_matmul),
    "aten::_scaled_mm": Operator(scaled(6)),
    "aten::_scaled_mm_v2": Operator(scaled(9)),
    "aten::_grouped_mm": Operator(grouped(2)),
    "aten::_scaled_grouped_mm": Operator(grouped(4)),
    "aten::_scaled_grouped_mm_v2": Operator(grouped(8)),
    "aiter::gemm_a16w16": Operator(transposed(0, 1)),
    "sgl_kernel::fp8_scaled_mm": Operator(matrices(0, 1, 2)),
    "_C::cutlass_scaled_mm": Operator(matrices(1, 2, 2)),
    "tex_ts::te_gemm_ts": Operator(by_sizes(0, 5, 10)),
    "_Linear": Operator(linear_layer(1), pair=2, pair_executed=2),
    "_LayerNormLinear": Operator(linear_layer(1), pair=2, pair_executed=2),
    "_LayerNormMLP": Operator(linear_layer(2), pair=2, pair_executed=2),
    "_GroupedLinear": Operator(grouped_layer, pair=2, pair_executed=2),
    "aten::convolution": Operator(Convolution(3, 4, 5, 8, transposed=6, output_padding=7)),
    "aten::_convolution": Operator(
        Convolution(3, 4, 5, 8, transposed=6, output_padding=7), inside=frozenset({"aten::convolution"})
    ),
    "aten::cudnn_convolution": Operator(Convolution(3, 2, 4, 5), inside=_ABOVE),
    "aten::miopen_convolution": Operator(Convolution(4, 3, 5, 6), inside=_ABOVE),
    "aten::mkldnn_convolution": Operator(Convolution(4, 3, 5, 6), inside=_ABOVE),
    "aten::convolution_backward": Operator(convolution_backward),
    "aten::scaled_dot_product_attention": Operator(Attention(0, "bhsd", (5,), mask=3)),
    "aten::_scaled_dot_product_flash_attention": Operator(Attention(0, "bhsd", (4, 7))),
    "aten::_scaled_dot_product_flash_attention_backward": Operator(Attention(1, "bhsd", (11,), backward=True)),
    "aten::_scaled_dot_product_efficient_attention": Operator(Attention(0, "bhsd", (6,), mask=3)),
    "aten::_scaled_dot_product_efficient_attention_backward": Operator(
        Attention(1, "bhsd", (11,), mask=4, backward=True)
    ),
    "aten::_scaled_dot_product_cudnn_attention": Operator(Attention(0, "bhsd", (6,), mask=3)),
    "aten::_scaled_dot_product_cudnn_attention_backward": Operator(Attention(1, "bhsd", (14,), mask=8, backward=True)),
    "aten::_scaled_dot_product_fused_attention_overrideable": Operator(Attention(0, "bhsd", (5,), mask=3)),
    "aten::_scaled_dot_product_fused_attention_overrideable_backward": Operator(
        Attention(1, "bhsd", (13,), mask=4, backward=True)
    ),
    "aten::_scaled_dot_product_flash_attention_for_cpu": Operator(Attention(0, "bhsd", (4,), mask=5)),
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": Operator(
        Attention(1, "bhsd", (7,), mask=8, backward=True)
    ),
    "aten::_flash_attention_forward": Operator(Attention(0, "bshd", (8,), lengths=3, longest=(5, 6), window=(3, 6))),
    "aten::_flash_attention_backward": Operator(
        Attention(1, "bshd", (11,), lengths=6, longest=(8, 9), window=(4,), backward=True)
    ),
    "aten::_efficient_attention_forward": Operator(
        Attention(0, "bshd", mask=3, mask_type=9, lengths=4, longest=(6, 7))
    ),
    "aten::_efficient_attention_backward": Operator(
        Attention(1, "bshd", mask=4, mask_type=14, lengths=6, longest=(8, 9), backward=True)
    ),
    "aten::_cudnn_attention_forward": Operator(Attention(0, "bhsd", (10,), mask=3, lengths=4, longest=(6, 7))),
    "aten::_cudnn_attention_backward": Operator(
        Attention(1, "bhsd", (14,), mask=8, lengths=9, longest=(11, 12), backward=True)
    ),
    "flash_attn::_flash_attn_forward": Operator(Attention(0, "bshd", (5,), window=(1,))),
    "flash_attn::_flash_attn_backward": Operator(Attention(1, "bshd", (10, 11), window=(1,), backward=True)),
    "flash_attn::_flash_attn_varlen_forward": Operator(
        Attention(0, "bshd", (9,), lengths=3, longest=(5, 6), window=(1,))
    ),
    "flash_attn::_flash_attn_varlen_backward": Operator(
        Attention(1, "bshd", (14, 15), lengths=9, longest=(11, 12), window=(1,), backward=True)
    ),
    "flash_attn_3::fwd": Operator(Attention(0, "bshd", (24,), lengths=7, longest=(12, 13), window=(1,))),
    "flash_attn_3::bwd": Operator(Attention(1, "bshd", (16,), lengths=9, longest=(13, 14), window=(1,), backward=True)),
    "FlashAttnFunc": Operator(attention_function, pair=2, pair_executed=2.5),
    "FlashAttnVarlenFunc": Operator(attention_function, pair=2, pair_executed=2.5),
    "FusedAttnFunc": Operator(attention_function, pair=2, pair_executed=2.5),
}
"""Every operator whose FLOPs are known, by name. The innermost one of nested calls is the one that counts."""

_FLEX: Final = re.compile(r"triton_tem_fused_.*flex_attention")
_WITHOUT_PRODUCTS: Final = (
    "aten::", "c10d::", "_c10d_functional", "fsdp::", "symm_mem::", "autograd::", "record_param_comms", "nccl:",
    "torchvision::", "torch::autograd::", "detach",
)  # fmt: skip
_PLAIN: Final = re.compile(
    r"rms_?norm|layer_?norm|silu_and_mul|gelu_and_mul|rotary_embedding|(store|reshape_and)_cache"
)
_PRODUCT: Final = re.compile(
    r"gemm|mm(?![a-z])|matmul|linear|attn|attention|mha|moe|conv|rnn|lstm|gru|cdist|transformer|linalg|cholesky"
    r"|triangular_solve"
)
"""Parts of names of operators that multiply matrices, or may."""
_NO_PRODUCT: Final = re.compile(r"upsample_|_thnn_|convert|linalg_(vector_|matrix_)?(norm|cross|diagonal)")
"""Parts of names that only look so: interpolation, the element-wise part of recurrent cells, conversions, norms."""


def operator(name: str) -> Operator | None:
    """Return how an operator of this name is counted; None when its FLOPs are not known or it has none."""
    found = OPERATORS.get(name)
    if found is None and _FLEX.match(name):
        return Operator(flex(backward="backward" in name))
    return found


def is_transparent(name: str) -> bool:
    """Say whether an operator that `operator` does not know is sure to hold no matrix product.

    True for PyTorch's own element-wise, copying and communicating operators and for well-known norms, activations and
    cache writes of other libraries; false for those of PyTorch that multiply without a formula here (recurrent and
    sparse layers, decompositions, weights packed to a few bits) and for all other custom, compiled and fused ones:
    their kernels may multiply matrices that nobody counted.
    """
    if re.fullmatch(r"\w+Backward\d+", name):
        return True
    own = name.rpartition("::")[2]
    if name.startswith("triton") or (_PRODUCT.search(own) and not _NO_PRODUCT.search(own)):
        return False
    return name.startswith(_WITHOUT_PRODUCTS) or bool(_PLAIN.search(name))


def count(name: str, dims: str | None, types: str | None, concrete: str | None) -> Work | None:
    """Return the work of one call from its recorded arguments as JSON text.

    None when the operator is not counted or the arguments do not fit it, or no device could do the work.
    """
    how = operator(name)
    if how is None:
        return None
    args = Arguments(items(dims), items(types), items(concrete))
    work = how.count(args)
    # half a minute of the fastest device: sizes that give more are damaged, and their sums leave int64
    return None if work is None or max(work.full, work.moved_bytes) > _MOST_OF_A_CALL else work


_MOST_OF_A_CALL: Final = 1 << 56
ARGUMENTS: Final = ("name", "input_dims", "input_types", "concrete_inputs")
WORK_SCHEMA: Final[Mapping[str, pl.DataType | type[pl.DataType]]] = {
    "family": pl.String,
    "dtype": pl.String,
    "shape": pl.String,
    "full": pl.Int64,
    "causal": pl.Int64,
    "model_full": pl.Int64,
    "model_causal": pl.Int64,
    "moved_bytes": pl.Int64,
    "backward": pl.Boolean,
    "flags": pl.List(pl.String),
}


def add_work(calls: pl.DataFrame) -> pl.DataFrame:
    """Return `calls` (columns of `ARGUMENTS`, and more) with the columns of `WORK_SCHEMA`, in the same order.

    Each distinct call is counted once. Calls that are not counted or whose arguments do not fit get nulls.
    """
    keys = calls.select(pl.col(ARGUMENTS).cast(pl.String))
    distinct = keys.unique().sort(ARGUMENTS)
    works = [count(*row) for row in distinct.iter_rows()]
    columns = {
        name: pl.Series(
            name,
            [None if work is None else _plain(getattr(work, name)) for work in works],
            dtype=dtype,
        )
        for name, dtype in WORK_SCHEMA.items()
    }
    found = keys.join(
        distinct.with_columns(**columns), on=ARGUMENTS, how="left", nulls_equal=True, maintain_order="left"
    )
    return calls.with_columns(found.get_column(name) for name in WORK_SCHEMA)


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
