"""Table `comms`: the communication kernels of a rank, in one vocabulary.

What the tracer recorded on the kernel counts first; what is missing there is taken from the innermost CPU range around
the launch that has arguments (PyTorch's `record_param_comms`), unless the two name different operations. The operation
comes from the recorded name, else from the kernel's name; where that tells only SendRecv or nothing, from the range
around the launch that is named after an operation it can be (`nccl:all_to_all`). That range also tells the peer of a
send or receive (`nccl:send 0->3`) where no argument does and the ranks of the group are known.

Spellings: torch/csrc/distributed/c10d (2021-2026), kernel names of NCCL 2.8-2.28 (`ncclKernel_*`, `ncclDevKernel_*`,
`ncclSymkDevKernel_*`) and RCCL (`ncclDevKernel_Generic*`, which does not tell the operation).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from tracetool import commwords
from tracetool.derive import tree
from tracetool.derive.columns import masked
from tracetool.derive.names import Names
from tracetool.tables import conform, empty

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tracetool.derive.columns import Events
    from tracetool.derive.links import Links

    Ints = NDArray[np.int64]

WORDS = (
    "all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "reduce", "gather", "scatter", "send",
    "recv", "send_recv", "barrier",
)  # fmt: skip
UNKNOWN = "unknown"
BY_SEND_RECV = ("all_to_all", "gather", "scatter", "send", "recv")
"""Operations that NCCL carries out as sends and receives, under that kernel name."""
P2P_RANGE = r"^\w+:(?:send|recv) (\d+)(?:->|<-)(\d+)$"
"""Own place and the peer's in the group (torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp)."""
RANGE_NAMES = "^(?:nccl|rccl|xccl|hccl|ucc|mpi|gloo):"

_KERNEL_WORDS = (
    ("notifydispatch|notifycombine|cachednotify|dispatchlayout", UNKNOWN),
    ("allreduce|crossdevicereduce|quickreduce", "all_reduce"),
    ("reducescatter", "reduce_scatter"),
    ("allgather", "all_gather"),
    ("alltoall|(deepep|dpskep).*(dispatch|combine)", "all_to_all"),
    ("sendrecv", "send_recv"),
    ("broadcast|bcast", "broadcast"),
    ("barrier", "barrier"),
    ("kernelreduce", "reduce"),
    ("kernelgather", "gather"),
    ("kernelscatter", "scatter"),
    ("kernelsend", "send"),
    ("kernelrecv", "recv"),
)
"""What the kernel's name without punctuation and case contains, first that fits. DeepEP's dispatch and combine are
all-to-all; its notify and layout kernels move no payload."""

LARGEST_GROUP = 1 << 20
"""More ranks than any job has: a range form beyond it is not believed."""

_ARGS = (
    "op", "group", "group_desc", "group_ranks", "group_size", "in_elems", "out_elems", "in_bytes", "out_bytes", "dtype",
    "seq", "peer",
)  # fmt: skip


def comms(
    gpu: pl.DataFrame, events: Events, links: Links, comm_args: pl.DataFrame, process_groups: pl.DataFrame
) -> pl.DataFrame:
    """Return table `comms` of a rank, in the order of `gpu`.

    `gpu`, `comm_args`, `process_groups` are the tables of those names. Ranks of a group that its kernels do not tell
    are taken from `process_groups`.
    """
    kernels = gpu.filter(pl.col("kind") == "comm").drop("op")
    if not kernels.height:
        return empty("comms")
    args = comm_args.select("event", *_ARGS).unique("event", keep="first", maintain_order=True)
    with_args = np.zeros(len(links.parent), np.bool_)
    with_args[args["event"].to_numpy()] = True
    ranges = np.flatnonzero(links.nested & events.are("annotation", "cpu_op"))
    named = np.zeros(len(links.parent), np.bool_)
    named[ranges] = Names.of(events.names(ranges)).has(RANGE_NAMES)
    around = _innermost(kernels["launch"], with_args, links.parent)
    within = _innermost(kernels["launch"], named, links.parent)
    both = (
        kernels.with_columns(around=around, range_name=events.frame["name"].gather(within))
        .join(args, on="event", how="left", maintain_order="left")
        .join(args, left_on="around", right_on="event", how="left", suffix="_around", maintain_order="left")
        .with_columns(_word("op").alias("word"), _word("op_around").alias("word_around"))
        .with_columns(_word("range_name").alias("range_word"), _kernel_word())
    )
    disagree = (pl.col("word") != pl.col("word_around")).fill_null(False)
    told = both.with_columns(
        pl.when(disagree).then(pl.col(name)).otherwise(pl.coalesce(name, f"{name}_around")).alias(name)
        for name in (*_ARGS[1:], "word")
    )
    listed = told.select("group_ranks", "group_size").unique(maintain_order=True)
    parsed = [group_ranks(text, size) for text, size in listed.rows()]
    by_name = process_groups.filter(pl.col("ranks").is_not_null()).unique("group", keep="first", maintain_order=True)
    full = (
        told.join(
            listed.with_columns(pl.Series("parsed", parsed, dtype=pl.List(pl.Int32))),
            on=["group_ranks", "group_size"],
            how="left",
            nulls_equal=True,
            maintain_order="left",
        )
        .with_columns(pl.col("group").cast(pl.String).alias("group_name"))
        .join(
            by_name.select(pl.col("group").alias("group_name"), pl.col("ranks").alias("ranks_by_name")),
            on="group_name",
            how="left",
            maintain_order="left",
        )
    )
    fits = pl.col("group_size").is_null() | (pl.col("ranks_by_name").list.len() == pl.col("group_size"))
    fits_kernel = (pl.col("kernel_word") == UNKNOWN) | (
        (pl.col("kernel_word") == "send_recv") & pl.col("range_word").is_in(BY_SEND_RECV)
    )
    known = full.with_columns(
        pl.coalesce("word", pl.when(fits_kernel).then("range_word"), "kernel_word").alias("op"),
        pl.coalesce("parsed", pl.when(fits).then("ranks_by_name")).alias("group_ranks"),
        pl.max_horizontal("in_bytes", "out_bytes").alias("bytes"),
    )
    return conform("comms", known.with_columns(peer=pl.coalesce("peer", _peer_in_name())))


def _peer_in_name() -> pl.Expr:
    """Return the peer that the range around a launch names: `nccl:send 0->3`, `nccl:recv 3<-0`.

    Both numbers are places in the group, the own one first: they become ranks only by the group's list of ranks, and
    only where the own place in it is this rank.
    """
    text = pl.when(pl.col("op") == pl.col("range_word")).then(pl.col("range_name").cast(pl.String))
    own, peer = (text.str.extract(P2P_RANGE, group).cast(pl.Int32, strict=False) for group in (1, 2))
    ranks = pl.col("group_ranks")
    return pl.when(ranks.list.get(own, null_on_oob=True) == pl.col("rank")).then(ranks.list.get(peer, null_on_oob=True))


def group_ranks(text: str | None, size: int | None) -> list[int] | None:
    """Read the global ranks of a group from text: `[0, 1]`, `0,1`, `[0-7]`, `0:8:2` (start:end:stride, end left out).

    Returns None when the text is cut (`...`), is something else, repeats a rank, or does not hold `size` ranks.
    """
    if text is None:
        return None
    ranks: list[int] = []
    for part in text.strip().strip("[](){}").split(","):
        form = re.fullmatch(r"\s*(\d{1,7})(?:\s*(-|:)\s*(\d{1,7})(?:\s*:\s*(\d{1,7}))?)?\s*", part, re.ASCII)
        if form is None or (form[2] == "-" and form[4]):
            return None
        first, sign, last, stride = int(form[1]), form[2], form[3], int(form[4] or 1)
        if sign is None:
            ranks.append(first)
            continue
        members = range(first, int(last) + (sign == "-"), stride) if stride else range(0)
        if len(members) + len(ranks) > (LARGEST_GROUP if size is None else size):
            return None
        ranks += members
    if len(set(ranks)) < len(ranks) or not ranks or (size is not None and len(ranks) != size):
        return None
    return ranks


def operation(name: str) -> str | None:
    """Return the word of the vocabulary for an operation as a tracer recorded it, or None for any other word."""
    word = commwords.operation(name)
    return word if word in WORDS else None


def kernel_operation(name: str) -> str:
    """Return the operation that a communication kernel's name tells, or `unknown`."""
    squeezed = re.sub(r"[^a-z0-9]", "", name.casefold())
    return next((word for pattern, word in _KERNEL_WORDS if re.search(pattern, squeezed)), UNKNOWN)


def _innermost(launch: pl.Series, marked: NDArray[np.bool_], parent: Ints) -> pl.Series:
    """Return for each launch the innermost marked event around it, itself included; null for none."""
    found = tree.nearest(marked, parent)[launch.fill_null(0).to_numpy()]
    return masked(found, (found >= 0) & launch.is_not_null().to_numpy())


def _word(column: str) -> pl.Expr:
    """Return an expression: the vocabulary's word for a column of recorded operations, null where it has none."""
    return pl.col(column).cast(pl.String).map_batches(_words, return_dtype=pl.String)


def _words(texts: pl.Series) -> pl.Series:
    known = {text: operation(text) for text in texts.unique().drop_nulls().to_list()}
    return texts.replace_strict(known, default=None, return_dtype=pl.String)


def _kernel_word() -> pl.Expr:
    return pl.col("name").cast(pl.String).map_batches(_kernel_words, return_dtype=pl.String).alias("kernel_word")


def _kernel_words(texts: pl.Series) -> pl.Series:
    known = {text: kernel_operation(text) for text in texts.unique().to_list()}
    return texts.replace_strict(known, return_dtype=pl.String)
