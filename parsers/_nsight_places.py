"""Which rank every row of an Nsight Systems export belongs to, and what becomes an event of which track.

A rank is one process on one device. A device on which a process runs no kernel beside one on which it does (a stray
context, a peer's memory) is no rank of its own. What a process with several devices did on the CPU stands in each of
its ranks, except a call whose GPU work tells which one it was for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import polars as pl
from tracetool.parsers import _nsight_facts as facts_of  # type: ignore[import-not-found]  # mapped at install time
from tracetool.parsers import _nsight_nccl as nccl
from tracetool.parsers import _nsight_rows as rows_of

from tracetool.discover import rank_of
from tracetool.tables import Category, Text, empty

_BACKWARD_NODE: Final = r"^autograd::engine::|Backward\d*$|AccumulateGrad$"
_LAUNCH_KEY: Final = ["process", "correlation"]


@dataclass
class Placed:
    """Events of all ranks in one frame, and side tables whose `uid` is the row number in it."""

    events: pl.DataFrame
    """uid, rank, kind, device, stream, thread, lane, start_ns, dur_ns, category, name, correlation"""
    copies: pl.DataFrame
    syncs: pl.DataFrame
    shapes: pl.DataFrame
    comms: pl.DataFrame
    groups: pl.DataFrame
    notes: list[str] = field(default_factory=list)


def places(rows: rows_of.Rows, facts: facts_of.Facts, display: str) -> tuple[pl.DataFrame, list[str]]:
    """Return one row a rank (columns of table `ranks` that depend on the rank, and `process`), and notes.

    Order of trust for a file of one rank: the recorded environment, else the file's name (left to whoever reads the
    run: -1), else the rank in NCCL's own creation ranges. For several: those ranges, else numbered by device and
    process, which is an assumption.
    """
    busy = pl.col("category").is_in(["kernel", "graph"])
    work = rows.gpu.group_by("process", "device").agg(kernels=busy.sum())
    work = work.filter((pl.col("kernels") > 0) | (pl.col("kernels").sum().over("process") == 0))
    if not work.height:
        processes = pl.concat([rows.api.select("process"), rows.ranges.select("process")]).unique()
        work = processes.with_columns(device=pl.lit(None, pl.Int64), kernels=pl.lit(0, pl.UInt32))
    work = work.sort("device", "process")
    notes: list[str] = []
    ranks, source = _numbers(work, rows, facts, display, notes)
    world = facts.env_world if work.height == 1 else None  # above several ranks stands a launcher's environment
    found = []
    for rank, (process, device, _) in zip(ranks, work.rows(), strict=True):
        pid = process % rows_of.TID_BITS
        name, memory = facts_of.device_of(facts.devices, pid, device)
        found.append((rank, source, world, pid, device, name, memory, process))
    schema = {
        "rank": pl.Int32,
        "rank_source": pl.String,
        "world_size": pl.Int32,
        "pid": pl.Int64,
        "device": pl.Int32,
        "device_name": pl.String,
        "device_memory_bytes": pl.Int64,
        "process": pl.Int64,
    }
    return pl.DataFrame(found, schema=schema, orient="row"), notes


def _numbers(
    work: pl.DataFrame, rows: rows_of.Rows, facts: facts_of.Facts, display: str, notes: list[str]
) -> tuple[list[int], str | None]:
    """Return a number for each row of `work` and where it comes from."""
    by_process = _world_ranks(rows.ranges)
    told = [by_process.get(process) for process in work["process"]]
    if work.height == 1:
        if facts.env_rank is not None:
            return [facts.env_rank], "metadata"
        if told[0] is not None and rank_of(display, None)[0] is None:
            notes.append("the rank is the one in the largest NCCL communicator that the trace saw being created")
            return [told[0]], "metadata"
        return [-1], None
    known = [rank for rank in told if rank is not None]
    if len(set(known)) == work.height:
        notes.append("ranks are those in the largest NCCL communicator that the trace saw being created")
        return known, "metadata"
    pids = ", ".join(
        f"rank {rank}: process {process % rows_of.TID_BITS}" + (f" on device {device}" if device is not None else "")
        for rank, (process, device, _) in list(enumerate(work.rows()))[:16]
    )
    notes.append(f"the export does not name ranks: they are numbered by device and process ({pids})")
    return list(range(work.height)), "assumed"


def _world_ranks(ranges: pl.DataFrame) -> dict[int, int]:
    """Return each process' rank in the largest communicator that it created, the first of equals."""
    made = ranges.filter(pl.col("comm_rank").is_not_null() & pl.col("comm_ranks").is_not_null())
    first = (
        made.sort(["process", "comm_ranks", "start_ns"], descending=[False, True, False])
        .group_by("process", maintain_order=True)
        .first()
    )
    return dict(first.filter(pl.col("comm_ranks") == pl.col("comm_ranks").max()).select("process", "comm_rank").rows())


def place(rows: rows_of.Rows, known: pl.DataFrame) -> Placed:
    """Give every row its rank and put all of them into one frame of events."""
    places = known.select("process", "device", "rank").with_columns(pl.col("device").cast(pl.Int64))
    first = places.sort("rank").unique("process", keep="first", maintain_order=True).select("process", main="rank")
    several = places["process"].n_unique() < places.height
    gpu = (
        rows.gpu.join(places, on=["process", "device"], how="left", maintain_order="left")
        .join(first, on="process", how="left", maintain_order="left")
        .with_columns(rank=pl.coalesce("rank", "main"))
        .with_row_index("key")
    )
    api = _home(rows.api, places, gpu if several else None)
    ranges, syncs, overhead = (_home(part, places, None) for part in (rows.ranges, rows.syncs, rows.overhead))
    if not several:  # synchronisations name device 0 whatever the process uses
        own = known.select("rank", own=pl.col("device").cast(pl.Int64))
        syncs = syncs.join(own, on="rank", how="left", maintain_order="left").with_columns(
            device=pl.coalesce("own", "device")
        )
    cpu, stream = pl.lit("cpu"), pl.lit("gpu")
    parts = [
        gpu.select("rank", "device", "stream", "start_ns", "end_ns", "category", "name", "correlation", kind=stream),
        api.select("rank", "thread", "start_ns", "end_ns", "name", "correlation", kind=cpu, category=pl.lit("runtime")),
        ranges.select("rank", "thread", "lane", "start_ns", "end_ns", "category", "name", kind=cpu),
        syncs.select(
            "rank",
            "start_ns",
            "end_ns",
            "name",
            "correlation",
            device=pl.when(pl.col("stream").is_not_null()).then("device"),
            stream="stream",
            lane=pl.when(pl.col("stream").is_null()).then(pl.lit("synchronisation")),
            kind=pl.when(pl.col("stream").is_not_null()).then(stream).otherwise(pl.lit("other")),
            category=pl.lit("sync"),
        ),
        overhead.select(
            "rank",
            "start_ns",
            "end_ns",
            "name",
            kind=pl.lit("other"),
            lane=pl.lit("profiler overhead"),
            category=pl.lit("overhead"),
        ),
    ]
    starts = [0]
    for part in parts:
        starts.append(starts[-1] + part.height)
    number = {name: starts[at] for at, name in enumerate(("gpu", "api", "ranges", "syncs", "overhead"))}
    schema: dict[str, pl.DataType | type[pl.DataType]] = {
        "rank": pl.Int32,
        "kind": pl.String,
        "device": pl.Int64,
        "stream": pl.Int64,
        "thread": pl.Int64,
        "lane": pl.String,
        "start_ns": pl.Int64,
        "end_ns": pl.Int64,
        "category": Category,
        "name": Text,
        "correlation": pl.Int64,
    }
    events = pl.concat(
        part.select(
            pl.col(name).cast(dtype) if name in part.columns else pl.lit(None, dtype).alias(name)
            for name, dtype in schema.items()
        )
        for part in parts
    )
    events = events.with_columns(
        uid=pl.int_range(pl.len(), dtype=pl.Int64), dur_ns=pl.col("end_ns") - pl.col("start_ns")
    )
    groups, comms, notes = _communication(rows, gpu, known)
    elsewhere = [
        (name, part.filter(~pl.col("process").is_in(places["process"].unique().to_list())).height)
        for name, part in (("API calls", rows.api), ("NVTX ranges", rows.ranges))
    ]
    notes += [f"{count} {name} of processes without GPU work were left out" for name, count in elsewhere if count]
    uid = pl.int_range(pl.len(), dtype=pl.Int64)
    no_thread = pl.lit(0, pl.Int64)
    copied = pl.col("category").is_in(["memcpy", "memset"])
    shaped = pl.col("sequence").is_not_null() | pl.col("input_dims").is_not_null()
    is_op = pl.col("category") == "cpu_op"
    # of operators with a sequence number, all but the nodes of the backward graph belong to a forward
    is_forward = pl.col("sequence").is_not_null() & ~pl.col("name").str.contains(_BACKWARD_NODE)
    return Placed(
        events=events.drop("end_ns"),
        copies=gpu.with_columns(uid=uid + number["gpu"]).filter(copied).select("uid", "rank", "bytes", "direction"),
        syncs=syncs.with_columns(uid=uid + number["syncs"], sync_kind="name").select(
            "uid", "rank", "sync_kind", "stream", "wait_on_stream", "wait_on_correlation"
        ),
        shapes=ranges.with_columns(uid=uid + number["ranges"])
        .filter(shaped & is_op)
        .select(
            "uid",
            "rank",
            "sequence",
            "input_dims",
            "input_types",
            fwd_thread=pl.when(is_forward).then(no_thread),
        ),
        comms=comms.with_columns(uid=pl.col("key").cast(pl.Int64) + number["gpu"]).drop("key"),
        groups=groups,
        notes=notes,
    )


def _home(part: pl.DataFrame, places: pl.DataFrame, gpu: pl.DataFrame | None) -> pl.DataFrame:
    """Join CPU rows to their ranks: a call whose work is known to that work's rank, others to all of the process."""
    homes = places.select("process", "rank")
    if gpu is None:
        return part.join(homes, on="process", how="inner", maintain_order="left_right")
    owner = gpu.drop_nulls(_LAUNCH_KEY).select(*_LAUNCH_KEY, owner="rank").unique(_LAUNCH_KEY, keep="any")
    owned = part.with_row_index("row").join(owner, on=_LAUNCH_KEY, how="left", maintain_order="left")
    everywhere = owned.join(homes, on="process", how="inner", maintain_order="left_right")
    return everywhere.filter(pl.col("owner").is_null() | (pl.col("owner") == pl.col("rank"))).drop("owner", "row")


def _communication(
    rows: rows_of.Rows, gpu: pl.DataFrame, known: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame, list[str]]:
    """Return process groups, arguments of NCCL kernels keyed by the row of `gpu`, and notes."""
    ours = rows.ranges.filter("is_nccl")
    kernels = gpu.filter((pl.col("category") == "kernel") & pl.col("name").str.contains(nccl.NCCL_KERNEL))
    if not ours.height or not kernels.height:
        return empty("process_groups"), pl.DataFrame(schema={"key": pl.UInt32, "rank": pl.Int32}), []
    calls = rows.api.select(*_LAUNCH_KEY, "thread", at_ns="start_ns").unique(
        _LAUNCH_KEY, keep="first", maintain_order=True
    )
    launched = kernels.join(calls, on=_LAUNCH_KEY, how="inner", maintain_order="left").select(
        "key", "thread", "at_ns", "name"
    )
    frameworks = rows.ranges.filter(pl.col("name").str.starts_with("nccl:") & (pl.col("category") == "annotation"))
    told = nccl.label(launched, ours, frameworks).join(gpu.select("key", "rank"), on="key", how="left")
    groups, members = _groups(ours, known)
    world = known["world_size"][0]
    told = told.with_columns(group=pl.Series(nccl.communicator_name(told["communicator"].to_list()), dtype=pl.String))
    peers = told.filter(pl.col("peer").is_not_null()).select("group", "peer").unique()
    looked_up = []
    sizes = dict(zip(groups["group"], groups["size"], strict=True))
    for group, peer in peers.sort("group", "peer").rows():
        ranks = members.get(group)
        if ranks is None and world is not None and sizes.get(group) == world:
            ranks = list(range(world))
        looked_up.append((group, peer, ranks[peer] if ranks and 0 <= peer < len(ranks) else None))
    mapping = pl.DataFrame(looked_up, schema={"group": pl.String, "peer": pl.Int64, "to": pl.Int32}, orient="row")
    texts = pl.DataFrame(
        [(group, str(ranks)) for group, ranks in sorted(members.items())],
        schema={"group": pl.String, "group_ranks": pl.String},
        orient="row",
    )
    args = (
        told.join(mapping, on=["group", "peer"], how="left")
        .join(texts, on="group", how="left")
        .sort("key")
        .select(
            "key", "rank", "op", "group", "group_ranks", "in_bytes", "out_bytes", peer="to", group_size="comm_ranks"
        )
    )
    notes = []
    if rows.has_sizes and (unsized := args.filter(pl.col("in_bytes").is_null() & pl.col("out_bytes").is_null()).height):
        notes.append(f"{unsized} of {kernels.height} NCCL kernels share their group of calls: their sizes are null")
    return groups, args, notes


def _groups(ranges: pl.DataFrame, known: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, list[int]]]:
    """Return table `process_groups` from creation ranges, and the members of groups that are all in this file."""
    made = (
        ranges.filter(pl.col("comm_rank").is_not_null() & pl.col("comm_ranks").is_not_null())
        .join(known.select("process", "rank"), on="process", how="inner")
        .select("communicator", "comm_rank", "comm_ranks", "rank")
        .unique()
        .sort("communicator", "comm_rank", "rank")
    )
    made = made.with_columns(group=pl.Series(nccl.communicator_name(made["communicator"].to_list()), dtype=pl.String))
    members: dict[str, list[int]] = {}
    # numbers that are assumed here may be others in the run: members are then told by who uses the communicator
    named = made.clear() if "assumed" in known["rank_source"].to_list() else made
    for (group,), part in named.group_by("group", maintain_order=True):
        whole = part.height == part["comm_ranks"][0]  # asked first: the number comes from the file
        complete = whole and part["comm_rank"].to_list() == list(range(part.height))
        if complete and not (part["rank"] < 0).any():
            members[str(group)] = part["rank"].to_list()
    ranks = [members.get(group) for group in made["group"]]
    table = made.select(
        "rank",
        "group",
        desc=pl.lit(None, pl.String),
        ranks=pl.Series(ranks, dtype=pl.List(pl.Int32)),
        size=pl.col("comm_ranks").cast(pl.Int32),
    )
    return table.unique(["rank", "group"], keep="first", maintain_order=True).sort("rank", "group"), members


def describe_tracks(tracks: pl.DataFrame, rows: rows_of.Rows) -> pl.DataFrame:
    """Return table `tracks` from the keys that tell tracks apart."""
    named = tracks.join(rows.thread_names, on="thread", how="left", maintain_order="left")
    gpu = pl.col("kind") == "gpu"
    pid = (pl.col("thread") // rows_of.TID_BITS % rows_of.TID_BITS).cast(pl.String)
    tid = (pl.col("thread") % rows_of.TID_BITS).cast(pl.String)
    label = pl.when(gpu).then(pl.format("stream {}", pl.col("stream"))).otherwise(pl.coalesce("name", "lane"))
    return named.with_columns(
        process=pl.when(gpu).then(pl.col("device").cast(pl.String)).otherwise(pid),
        thread=pl.when(gpu).then(pl.col("stream").cast(pl.String)).otherwise(tid),
        name=pl.when(pl.col("lane").is_not_null() & pl.col("name").is_not_null())
        .then(pl.format("{} {}", pl.col("name"), pl.col("lane")))
        .otherwise(label),
    )
