"""Number formats of operators, from the names of the matrix kernels they launched.

emit_nvtx records sizes and no types, and without a type no FLOP can be set against a peak. Matrix and attention
kernels carry the format of their operands in their names: `sm90_xmma_gemm_bf16bf16_bf16f32_f32_…` and
`cutlass_80_tensorop_s16816gemm_f16_…` (cuBLAS), `nvjet_tst_…` (cuBLAS on Hopper and later: t bfloat16, h half,
s float, q float8), `ampere_sgemm_…`, `flash_fwd_kernel<…cutlass::bfloat16_t…>`. Names that tell nothing give nothing.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

import polars as pl

from tracetool.nvtx import innermost

if TYPE_CHECKING:
    from collections.abc import Sequence

_MATRIX: Final = r"(?i)gemm|gemv|nvjet|flash|fmha|attention|attn|conv|xmma|cutlass|wgrad|dgrad|implicit"
_FORMATS: Final = (
    ("c10::Float8_e4m3fn", r"(?i)e4m3|float8|nvjet_qq"),
    ("c10::Float8_e5m2", r"(?i)e5m2"),
    ("c10::BFloat16", r"(?i)bf16|bfloat16|nvjet_tst|nvjet_tss"),
    ("c10::Half", r"(?i)fp16|f16f16|_f16_|gemm_f16|hgemm|h1688|h884|half_t|__half|c10::half|nvjet_hs[hs]"),
    ("signed char", r"(?i)gemm_s8|i8i8|int8|imma"),
    ("double", r"(?i)dgemm|d884|f64f64"),
    ("float", r"(?i)sgemm|tf32|f32f32|s1688gemm|nvjet_sss|gemv.*float|conv.*float"),
)
"""Type as PyTorch writes it, and what in a name tells it; the first that fits counts."""


def recorded_type(kernel: pl.Expr) -> pl.Expr:
    """Return the type of a matrix kernel's operands as PyTorch writes it, null where the name does not tell."""
    found = pl.lit(None, pl.String)
    for name, pattern in reversed(_FORMATS):
        found = pl.when(kernel.str.contains(pattern)).then(pl.lit(name)).otherwise(found)
    return pl.when(kernel.str.contains(_MATRIX)).then(found)


def input_types(gpu: pl.DataFrame, api: pl.DataFrame, ranges: pl.DataFrame) -> pl.Series:
    """Return JSON text of the argument types of each range, in row order; null where no kernel's name tells.

    `gpu`, `api` and `ranges` are those of one export. An operator counts as the launcher of what was launched in it
    and in no operator inside it.
    """
    if not ranges["input_dims"].count():
        return pl.Series("text", [None] * ranges.height, dtype=pl.String)
    ops = ranges.with_row_index("row").filter((pl.col("category") == "cpu_op") & pl.col("lane").is_null())
    names = gpu.filter(pl.col("category") == "kernel").select("name").unique()
    told = names.with_columns(type=recorded_type(pl.col("name"))).drop_nulls("type")
    keys = ["process", "correlation"]
    launched = (
        gpu.join(told, on="name", how="inner")
        .join(api.select(*keys, "thread", at_ns="start_ns").unique(keys, keep="first"), on=keys, how="inner")
        .sort("start_ns", "end_ns", *keys, "name")
    )
    by_op = (
        launched.with_columns(row=ops["row"].gather(innermost(ops, launched)))
        .drop_nulls("row")
        .unique("row", keep="first", maintain_order=True)
        .select("row", "type")
    )
    typed = ranges.with_row_index("row").join(by_op, on="row", how="left", maintain_order="left")
    pairs = typed.select("input_dims", "type").drop_nulls().unique(maintain_order=True)
    texts = pairs.with_columns(text=pl.Series([_types(*pair) for pair in pairs.rows()], dtype=pl.String))
    return typed.join(texts, on=["input_dims", "type"], how="left", maintain_order="left")["text"]


def _types(dims: str, kind: str) -> str | None:
    """Return the type for every argument that has sizes, and an empty text for the others."""
    try:
        sizes: Sequence[object] = json.loads(dims)
    except (ValueError, RecursionError):
        return None
    return json.dumps([kind if size else "" for size in sizes]) if isinstance(sizes, list) else None
