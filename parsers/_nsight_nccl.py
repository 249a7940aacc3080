"""What NCCL's own NVTX ranges say about its kernels: operation, size, peer, communicator.

NCCL launches the kernels of a group inside `ncclGroupEnd`, so a kernel is told by the calls between that end and
its `ncclGroupStart` on the thread; outside a group by the call it was launched in. Sizes and communicators stand in
payloads (NVIDIA/nccl src/include/nvtx_payload_schemas.h, v2.27): decoded by the names of their fields, because
schema numbers change between versions. A message size is of one call: count × size of an element of the argument.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import polars as pl

from tracetool.nvtx import innermost

if TYPE_CHECKING:
    from collections.abc import Sequence

NCCL_NAME: Final = r"^(?:p|t)?nccl[A-Z]"
NCCL_KERNEL: Final = r"(?i)^ncclK|^ncclDevK|^ncclSymkDevK|^ncclKernel|^ncclDevKernel"
CALLS: Final = {
    "ncclAllReduce": "all_reduce",
    "ncclAllGather": "all_gather",
    "ncclReduceScatter": "reduce_scatter",
    "ncclBroadcast": "broadcast",
    "ncclBcast": "broadcast",
    "ncclReduce": "reduce",
    "ncclAlltoAll": "all_to_all",
    "ncclAllToAll": "all_to_all",
    "ncclGather": "gather",
    "ncclScatter": "scatter",
    "ncclSend": "send",
    "ncclRecv": "recv",
}
_FIELDS: Final = {
    "nccl communicator id": "communicator",
    "message size [bytes]": "message_bytes",
    "peer rank": "peer",
    "root": "root",
    "no. of ranks": "comm_ranks",
    "rank": "comm_rank",
    "cuda device": "comm_device",
}
PAYLOAD: Final = ("communicator", "message_bytes", "peer", "root", "comm_ranks", "comm_rank", "comm_device")
_WIDTH: Final = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 8, 8: 8, 18: 8, 22: 8}
_HEADER: Final = 32
_CLASS_OF_KERNEL: Final = (
    ("allreduce", "all_reduce"), ("allgather", "all_gather"), ("reducescatter", "reduce_scatter"),
    ("alltoall", "all_to_all"), ("sendrecv", "p2p"), ("broadcast", "broadcast"), ("reduce", "reduce"),
)  # fmt: skip


def decode_payloads(blobs: pl.Series, schemas: pl.DataFrame) -> pl.DataFrame:
    """Return columns PAYLOAD (int64, null where not said) and `undecoded`, one row a blob, in row order.

    `schemas` has one row a field: `schema, size, field, type, offset`. A blob is a header of 32 bytes (domain u32,
    u32, schema u32, u32, payload size u64, total size u64, little-endian) and the payload; one whose header does not
    fit its length or names an unknown schema is not decoded.
    """
    count = len(blobs)
    values = {name: np.zeros(count, np.int64) for name in PAYLOAD}
    said = {name: np.zeros(count, bool) for name in PAYLOAD}
    decoded = np.zeros(count, bool)
    lengths = blobs.bin.size().fill_null(0).to_numpy()
    fields = [row for row in schemas.unique(maintain_order=True).iter_rows(named=True) if row["field"]]
    by_schema: dict[int, list[dict[str, object]]] = {}
    for row in fields:
        by_schema.setdefault(int(row["schema"]), []).append(row)
    for length in sorted({int(x) for x in lengths if x > _HEADER}):
        at = np.flatnonzero(lengths == length)
        table = np.frombuffer(b"".join(blobs.gather(at).to_list()), np.uint8).reshape(len(at), length)
        schema = _column(table, 8, 4)
        sizes = _column(table, 16, 8)
        for number, members in sorted(by_schema.items()):
            mine = (schema == number) & (sizes == length - _HEADER)
            for member in members:
                name = _FIELDS.get(str(member["field"]).casefold())
                width = _WIDTH.get(_int(member["type"]), 0)
                start = _HEADER + _int(member["offset"])
                if name is None or not width or start + width > length:
                    continue
                values[name][at[mine]] = _column(table[mine], start, width)
                said[name][at[mine]] = True
            decoded[at[mine]] = True
    made = pl.DataFrame({name: pl.Series(values[name]) for name in PAYLOAD})
    masks = pl.DataFrame({name: pl.Series(said[name]) for name in PAYLOAD})
    return pl.DataFrame(
        {
            name: made[name].zip_with(masks[name], pl.Series([None], dtype=pl.Int64).new_from_index(0, count))
            for name in PAYLOAD
        }
        | {"undecoded": pl.Series((lengths > 0) & ~decoded)}
    )


def label(kernels: pl.DataFrame, ranges: pl.DataFrame, frameworks: pl.DataFrame) -> pl.DataFrame:
    """Return what is known of each NCCL kernel, one row a kernel that anything is known of, sorted by `key`.

    `kernels`: `key, thread, at_ns` (of its launch call), `name`. `ranges`: NCCL's own, `thread, start_ns, end_ns,
    name` and the columns PAYLOAD. `frameworks`: PyTorch's `nccl:…` ranges, `thread, start_ns, end_ns, name`: they
    tell an all-to-all from sends and receives. Returned: `key, op, communicator, in_bytes, out_bytes, peer`
    (position in the communicator) and `comm_ranks`; sizes only where one kernel answers for the calls.
    """
    calls = ranges.sort("thread", "start_ns", "end_ns", maintain_order=True).with_columns(
        group=pl.lit(None, pl.Int64), call=pl.lit(None, pl.String)
    )
    calls = _grouped(calls)
    where = innermost(calls, kernels)
    outer = innermost(frameworks, kernels)
    known = kernels.with_columns(
        group=calls["group"].gather(where),
        framework=frameworks["name"].gather(outer),
        wanted=_class_of(pl.col("name")),
    )
    made = calls.filter(pl.col("call").is_not_null()).with_columns(
        wanted=pl.when(pl.col("call").is_in(["send", "recv"])).then(pl.lit("p2p")).otherwise(pl.col("call"))
    )
    sizes = _sizes_of_communicators(ranges)
    made = made.join(sizes, on="communicator", how="left", nulls_equal=False)
    sends, receives = pl.col("call") == "send", pl.col("call") == "recv"
    size = pl.col("message_bytes")
    by_group = made.group_by("group", "wanted").agg(
        calls=pl.len(),
        sends=sends.sum(),
        receives=receives.sum(),
        unsized=size.is_null().any() | (pl.col("communicator").n_unique() > 1),
        needs_ranks=(pl.col("call").is_in(["all_gather", "reduce_scatter"]) & pl.col("size").is_null()).any(),
        communicator=pl.col("communicator").first(),
        comm_ranks=pl.col("size").first(),
        peer=pl.when(pl.len() == 1).then(pl.col("peer").first()),
        in_bytes=pl.when(receives)
        .then(0)
        .when(pl.col("call") == "reduce_scatter")
        .then(size * pl.col("size"))
        .otherwise(size)
        .sum(),
        out_bytes=pl.when(sends)
        .then(0)
        .when(pl.col("call") == "all_gather")
        .then(size * pl.col("size"))
        .otherwise(size)
        .sum(),
    )
    # a kernel whose name tells nothing (ncclDevKernel_Generic) is told by the only kind of call of its group
    only = by_group.group_by("group").agg(only=pl.col("wanted").first(), kinds=pl.len())
    known = known.join(only, on="group", how="left").with_columns(
        wanted=pl.coalesce("wanted", pl.when(pl.col("kinds") == 1).then(pl.col("only")))
    )
    known = known.join(by_group, on=["group", "wanted"], how="left").with_columns(
        alone=pl.len().over("group", "wanted") == 1
    )
    told = pl.col("framework").str.extract(r"^nccl:_?(\w+)")
    plain = (
        pl.when(pl.col("wanted") != "p2p")
        .then(pl.col("wanted"))
        .when(told.str.contains("^all_?to_?all"))
        .then(pl.lit("all_to_all"))
        .when(pl.col("receives") == 0)
        .then(pl.lit("send"))
        .when(pl.col("sends") == 0)
        .then(pl.lit("recv"))
        .otherwise(pl.lit("send_recv"))
    )
    sized = pl.col("alone") & ~pl.col("unsized") & ~pl.col("needs_ranks")
    return (
        known.filter(pl.col("calls").is_not_null())
        .select(
            "key",
            op=plain,
            communicator=pl.when("alone").then("communicator"),
            comm_ranks=pl.when("alone").then("comm_ranks"),
            in_bytes=pl.when(sized & (plain != "recv")).then("in_bytes"),
            out_bytes=pl.when(sized & (plain != "send")).then("out_bytes"),
            peer=pl.when("alone").then("peer"),
        )
        .sort("key")
    )


def _grouped(calls: pl.DataFrame) -> pl.DataFrame:
    """Give groups of calls numbers: those between a GroupStart and its end on a thread, others each alone.

    A file that begins or ends inside a group has an end without start: the level never falls below the lowest.
    """
    step = (
        pl.when(pl.col("name") == "ncclGroupStart").then(1).when(pl.col("name") == "ncclGroupEnd").then(-1).otherwise(0)
    )
    levelled = calls.with_columns(step=step.cast(pl.Int32)).with_columns(raw=pl.col("step").cum_sum().over("thread"))
    levelled = levelled.with_columns(
        level=pl.col("raw") - pl.min_horizontal(pl.col("raw").cum_min().over("thread"), pl.lit(0, pl.Int32))
    )
    before = pl.col("level").shift(1).over("thread").fill_null(0)
    in_group = (pl.col("level") > 0) | ((pl.col("step") == -1) & (before > 0))
    opens = ~in_group | ((pl.col("step") == 1) & (pl.col("level") == 1))
    return levelled.with_columns(
        group=opens.cast(pl.Int64).cum_sum(),
        call=pl.col("name").replace_strict(CALLS, default=None, return_dtype=pl.String),
    )


def _sizes_of_communicators(ranges: pl.DataFrame) -> pl.DataFrame:
    """Return how many ranks each communicator has, from the payloads of its creation."""
    return (
        ranges.filter(pl.col("comm_ranks").is_not_null() & pl.col("communicator").is_not_null())
        .group_by("communicator")
        .agg(size=pl.col("comm_ranks").max())
        .sort("communicator")
    )


def _class_of(name: pl.Expr) -> pl.Expr:
    plain = name.cast(pl.String).str.to_lowercase().str.replace_all("_", "")
    found = pl.lit(None, pl.String)
    for text, word in reversed(_CLASS_OF_KERNEL):
        found = pl.when(plain.str.contains(r"^nccl(?:dev|symkdev)?kernel" + text)).then(pl.lit(word)).otherwise(found)
    return found


def _column(table: np.ndarray, start: int, width: int) -> np.ndarray:
    """Read a little-endian integer of every row; 8 bytes keep their bits (a communicator id is unsigned)."""
    raw = np.ascontiguousarray(table[:, start : start + width])
    return raw.view(f"<i{width}").reshape(len(table)).astype(np.int64)


def _int(value: object) -> int:
    return value if isinstance(value, int) else 0


def communicator_name(values: Sequence[int | None]) -> list[str | None]:
    """Return communicator ids as NCCL's log prints them: 0x and 16 hex digits without leading zeros."""
    return [None if value is None else f"0x{value & 0xFFFF_FFFF_FFFF_FFFF:x}" for value in values]
