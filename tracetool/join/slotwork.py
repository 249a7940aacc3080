"""What a rank did inside each of its slots: computed, multiplied matrices, waited for the other ranks of its stage.

A slot lasts from the start of its first kernel to the end of its last. With tensor parallelism a part of that is
waiting in collectives inside the stage, and one slow rank makes the slots of all its peers as long as its own: only
without the waiting do the slots tell who is slow. The matrix products of a forward tell how long its weight gradients
take: they multiply matrices of the same sizes.
"""

from __future__ import annotations

from typing import Final

import polars as pl

from tracetool import intervals

SCHEMA: Final[dict[str, pl.DataType | type[pl.DataType]]] = {
    "rank": pl.Int32,
    "iteration": pl.Int32,
    "piece": pl.Int32,
    "kind": pl.String,
    "at_ns": pl.Int64,
    "work_ns": pl.Int64,
    "wait_ns": pl.Int64,
    "products_ns": pl.Int64,
}
"""at_ns: start of the slot in the rank's own clock; work_ns: compute runs; wait_ns: nothing computes and a collective
inside the stage waits for its last member; products_ns: matrix products run."""
_KEY: Final = ["rank", "iteration", "piece", "kind"]
_PRODUCTS: Final = r"(?i)gemm|nvjet|cublas|Cijk_|matmul|(?:^|_)mm(?:_|$)"
"""Names of kernels that multiply matrices: cuBLAS and CUTLASS, cuBLAS since 12.9, rocBLAS, Triton and Inductor."""
_ATTENTION: Final = r"(?i)flash|fmha|attention|attn|softmax"


def inside(slots: pl.DataFrame, compute: pl.DataFrame, waiting: pl.DataFrame) -> pl.DataFrame:
    """Return one row a slot, SCHEMA, sorted by its key.

    `slots`: table of that name of one rank; `compute`: start_ns, end_ns, name of its compute kernels; `waiting`:
    start_ns, end_ns of the waiting of collectives inside its stage.
    """
    name = pl.col("name").cast(pl.String)
    products = compute.filter(name.str.contains(_PRODUCTS) & ~name.str.contains(_ATTENTION))
    windows, runs = slots.select(*intervals.ENDS), compute.select(*intervals.ENDS)
    found = slots.with_columns(
        at_ns="start_ns",
        work_ns=intervals.covered(windows, runs),
        wait_ns=intervals.covered(windows, intervals.subtract(waiting.select(*intervals.ENDS), runs)),
        products_ns=intervals.covered(windows, products.select(*intervals.ENDS)),
    )
    return found.select(pl.col(column).cast(dtype) for column, dtype in SCHEMA.items()).sort(_KEY)


def added(slots: pl.DataFrame, known: pl.DataFrame | None) -> pl.DataFrame:
    """Return the slots of a run (join.windows.SLOT_SCHEMA) with the columns of SCHEMA; null: not known."""
    rows = pl.DataFrame(schema=SCHEMA) if known is None else known
    return slots.join(rows, on=_KEY, how="left", maintain_order="left")
