"""One rank's work as a few nodes and edges for the replay: what it does between the points where ranks meet.

Nodes: every communication; every stretch of other GPU work on one stream that nothing enters or leaves in between;
every call in which the host waits for the GPU. Edges: the order on a stream; a stream that waits for another; the
host that waits for a stream; the launch.

The reduction is exact for the order seen. A stretch of kernels with durations d_j, each ready at launch l_j, ends at
max(start + Σ d, max_j(l_j + Σ_{k≥j} d_k)): an edge from the host call before with lag l_j − (work before j), of which
the largest, the first and the last are kept. A host time is counted from the end of the host's last wait.

What one stream waits for on another is taken as recorded (join/syncs.py) where the trace tells it. Mostly it does not.
Then it is inferred, and only so far as no instance contradicts:
- a communication waits for the compute launched last before it, unless more than 5 % of its kind (group, operation)
  started before that had ended;
- compute launched next after a communication waits for it, unless more than 5 % of its kind contradict;
- else the first optimizer work launched after it does (gradients are complete before they are used);
- work that starts long after both its stream and its launch were ready waits for what ended last before it, elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from tracetool.join.syncs import Launched, Syncs, between, syncs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracetool.tables import Tables

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

COMPUTE, COMM, HOST, COPY = range(4)
"""Kinds of nodes."""
PHASES: Final = ("forward", "backward", "recompute", "optimizer")
OTHER_PHASE: Final = len(PHASES)
_NOISE_NS: Final = 3_000
"""Starts and ends this close count as one after the other."""
_AFTER_NS: Final = 30_000
"""How long after what it waited for a kernel may start and still be held by it."""
_CONTRADICTED: Final = 0.05
_GAP_NS: Final = 50_000
"""A stretch is cut at longer gaps, so that what is lost in them is not taken for its work."""
_SYNC: Final = (
    r"^(?:cuda|hip|cu|mtia)\w*Synchronize(?:_\w+)?$|^(?:cuda|hip)Memcpy(?:2D|3D|(?:To|From)Symbol)?$"
    r"|^hipMemcpyWithStream$|^cuMemcpy(?:HtoD|DtoH|DtoD)(?:_v2)?$"
)

NODES: Final[dict[str, pl.DataType | type[pl.DataType]]] = {
    "rank": pl.Int32,
    "node": pl.Int64,
    "kind": pl.Int8,
    "step": pl.Int32,
    "phase": pl.Int8,
    "group_id": pl.Int32,
    "instance": pl.Int64,
    "op": pl.String,
    "bytes": pl.Int64,
    "start_ns": pl.Int64,
    "end_ns": pl.Int64,
    "value_ns": pl.Int64,
    "launch_ns": pl.Int64,
    "told": pl.Boolean,
    "sent_ns": pl.Int64,
    "sent_by": pl.Int32,
    "event": pl.Int64,
}
"""Nodes of a rank in its own clock. value_ns: work, transfer, or host time after the GPU was waited for. launch_ns: end
of its first launch call's latency; told: waiting is known; sent_ns, sent_by: when, and on which rank, the slot ended
whose output a receive without recorded peer brings, as the pipeline's slots tell; event: its first activity (−1: the
start of the trace)."""
EDGES: Final[dict[str, pl.DataType | type[pl.DataType]]] = {
    "rank": pl.Int32,
    "pred": pl.Int64,
    "node": pl.Int64,
    "host_ns": pl.Int64,
    "before_ns": pl.Int64,
    "recorded": pl.Boolean,
}
"""Edges of a rank: node starts at the end of pred + host_ns − before_ns. host_ns: time of the host; before_ns: work of
the node that comes before what was launched then; recorded: a stream's wait for another as the tracer recorded it
(true) or inferred (false); null for all else."""


class Rank(Protocol):
    """One rank whose tables can be read, as the registry's contract for analyses has it."""

    @property
    def rank(self) -> int:
        """The rank's number."""
        ...

    def table(self, name: str, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """Return a base or derived table of this rank, only the named columns."""
        ...


def segments(rank: Rank, facts: Tables, instances: pl.DataFrame) -> Tables:
    """Return `nodes` (NODES) and `edges` (EDGES) of one rank.

    `facts` holds `waits`; `instances` has event, group_id, instance, sent_ns, sent_by of its communications.
    """
    gpu = _activities(rank, facts, instances)
    if not gpu.height:
        return {"nodes": pl.DataFrame(schema=NODES), "edges": pl.DataFrame(schema=EDGES)}
    lane = _Lane(gpu)
    told = syncs(rank)
    host = _Host(rank, lane, told)
    waits_for, waiter = _recorded(lane, told.waits) if told.waits is not None else _dependencies(lane, gpu)
    opens = _opens(lane, host.base, np.concatenate([waits_for, host.pred[host.pred >= 0]]), waiter)
    return _tables(
        rank.rank, gpu, lane, host, opens=opens, dependencies=(waits_for, waiter), recorded=told.waits is not None
    )


def _activities(rank: Rank, facts: Tables, instances: pl.DataFrame) -> pl.DataFrame:
    columns = ["event", "track", "start_ns", "dur_ns", "kind", "launch_start_ns", "step", "phase"]
    comms = rank.table("comms", ["event", "op", "bytes", "group"]).with_columns(pl.col("op", "group").cast(pl.String))
    waits = facts.get("waits")
    known = (
        waits.select("event", "wait_end_ns", "basis").unique("event", keep="first", maintain_order=True)
        if waits is not None
        else pl.DataFrame(schema={"event": pl.Int64, "wait_end_ns": pl.Int64, "basis": pl.String})
    )
    return (
        rank.table("gpu", columns)
        .with_columns(pl.col("kind", "phase").cast(pl.String), end_ns=pl.col("start_ns") + pl.col("dur_ns"))
        .join(comms, on="event", how="left", maintain_order="left")
        .join(known, on="event", how="left", maintain_order="left")
        .join(
            instances.select("event", "group_id", "instance", "sent_ns", "sent_by"),
            on="event",
            how="left",
            maintain_order="left",
        )
        .sort("track", "start_ns", "end_ns", "event")
    )


class _Lane:
    """GPU activities as arrays, stream by stream in order of start."""

    def __init__(self, gpu: pl.DataFrame) -> None:
        self.track: Ints = gpu["track"].cast(pl.Int64).to_numpy()
        self.start: Ints = gpu["start_ns"].to_numpy()
        self.end: Ints = gpu["end_ns"].to_numpy()
        self.is_comm: Bools = (gpu["kind"] == "comm").to_numpy()
        self.is_compute: Bools = (gpu["kind"] == "compute").to_numpy()
        self.launched: Bools = gpu["launch_start_ns"].is_not_null().to_numpy()
        self.call: Ints = gpu["launch_start_ns"].fill_null(0).to_numpy()
        self.step: Ints = gpu["step"].fill_null(-1).cast(pl.Int64).to_numpy()
        phase = gpu["phase"].replace_strict({name: n for n, name in enumerate(PHASES)}, default=OTHER_PHASE)
        self.phase: Ints = phase.fill_null(OTHER_PHASE).cast(pl.Int64).to_numpy()
        self.first: Bools = np.append(True, self.track[1:] != self.track[:-1])
        """First of its stream."""
        reach = _reach(self.first, self.end)
        self.before: Ints = np.where(self.first, self.start, np.append(self.start[:1], reach[:-1]))
        """When its stream was free; its own start for the first."""
        usual = self._latency()
        self.ready: Ints = np.where(self.launched, np.minimum(self.start, self.call + usual), self.start.min())
        """When its launch had reached the GPU; never for what has no launch."""
        self.launches = Launched(self.track, self.call, self.launched)

    def _latency(self) -> int:
        """Return the time from a launch call to the start of work that nothing else held up, ns.

        Which work that is cannot be seen; of what was launched onto a free stream, the quickest twentieth is.
        """
        latency = np.maximum(0, self.start - self.call)
        dry = self.launched & ~self.first & (self.call >= self.before)
        if dry.any():
            return round(float(np.quantile(latency[dry], 0.05)))
        return int(latency[self.launched].min()) if self.launched.any() else 0


def _reach(first: Bools, end: Ints) -> Ints:
    """Return the latest end so far on each stream."""
    lane = np.cumsum(first)
    span = int(end.max()) - int(end.min()) + 1
    shifted = end - int(end.min()) + lane * span
    return np.asarray(np.maximum.accumulate(shifted) - lane * span + int(end.min()), dtype=np.int64)


class _Host:
    """The host's waits for the GPU: start and end of each call, and the activity whose end it waited for (−1: none).

    The first stands for the beginning of the trace.
    """

    def __init__(self, rank: Rank, lane: _Lane, told: Syncs) -> None:
        calls = (
            rank.table("events", ["start_ns", "dur_ns", "category", "name"])
            .filter(
                (pl.col("category").cast(pl.String) == "runtime") & pl.col("name").cast(pl.String).str.contains(_SYNC)
            )
            .sort("start_ns", "dur_ns")
        )
        begin = int(lane.call[lane.launched].min()) if lane.launched.any() else int(lane.start.min())
        # what the host did from the first step's beginning to its first launch is its own time
        begin = min([begin, *rank.table("steps", ["range_start_ns"])["range_start_ns"].drop_nulls().to_list()])
        start, end = calls["start_ns"].to_numpy(), (calls["start_ns"] + calls["dur_ns"]).to_numpy()
        later = np.append(True, np.maximum.accumulate(end)[:-1] <= start[1:]) if len(start) else np.zeros(0, bool)
        kept = later & (start > begin)
        self.start: Ints = np.append(begin, start[kept])
        self.end: Ints = np.append(begin, end[kept])
        self.pred: Ints = self._awaited(lane, told)
        self.base: Ints = np.maximum(0, np.searchsorted(self.end, lane.call, side="right") - 1)
        """The host's last wait before each activity was launched."""

    def _awaited(self, lane: _Lane, told: Syncs) -> Ints:
        """Return the activity that each wait ended with: of those launched last on each stream, the latest to end.

        Of the streams only the one that was waited for, and of its work only what the awaited event comes after, where
        the trace tells that.
        """
        best = np.full(len(self.start), -1, np.int64)
        latest = np.full(len(self.start), np.iinfo(np.int64).min)
        asked = pl.DataFrame({"call_ns": self.start}).join(told.host, on="call_ns", how="left", maintain_order="left")
        only = asked["awaited"].fill_null(-1).to_numpy()
        before = asked["recorded_ns"].fill_null(asked["call_ns"]).to_numpy()
        for track in lane.launches.tracks:
            found = lane.launches.last_before(track, before)
            end = lane.end[found]
            better = (found >= 0) & ((only < 0) | (only == track)) & (end <= self.end + _NOISE_NS) & (end > latest)
            best, latest = np.where(better, found, best), np.where(better, end, latest)
        best[0] = -1
        return best


def _recorded(lane: _Lane, waits: pl.DataFrame) -> tuple[Ints, Ints]:
    """Return pairs (activity, activity that waits for it) as recorded, but for those that the times contradict."""
    pred, waiter = between(lane.launches, waits)
    held = lane.start[waiter] >= lane.end[pred] - _NOISE_NS
    pairs = np.unique(np.stack([pred[held], waiter[held]], axis=1), axis=0)
    return pairs[:, 0], pairs[:, 1]


def _dependencies(lane: _Lane, gpu: pl.DataFrame) -> tuple[Ints, Ints]:
    """Return pairs (activity, activity that waits for it) between streams."""
    comms = np.flatnonzero(lane.is_comm & lane.launched)
    compute = np.flatnonzero(lane.is_compute & lane.launched)
    preds, waiters = [], []
    if len(comms) and len(compute):
        by_launch = compute[np.argsort(lane.call[compute], kind="stable")]
        calls = lane.call[by_launch]
        kind = gpu.select(pl.struct("group", "op").rank("dense").cast(pl.Int64) - 1).to_series().to_numpy()[comms]
        at = np.searchsorted(calls, lane.call[comms])
        earlier, later = by_launch[np.maximum(at - 1, 0)], by_launch[np.minimum(at, len(calls) - 1)]
        holds = (at > 0) & (lane.start[comms] >= lane.end[earlier] - _NOISE_NS)
        kept = holds & ~_contradicted(kind, (at > 0) & ~holds)
        preds.append(earlier[kept])
        waiters.append(comms[kept])
        there = at < len(calls)
        holds = there & (lane.start[later] >= lane.end[comms] - _NOISE_NS)
        loose = _contradicted(kind, there & ~holds)
        kept = holds & ~loose
        preds.append(comms[kept])
        waiters.append(later[kept])
        updates = by_launch[lane.phase[by_launch] == PHASES.index("optimizer")]
        if len(updates):
            at = np.searchsorted(lane.call[updates], lane.call[comms])
            update = updates[np.minimum(at, len(updates) - 1)]
            same = (at < len(updates)) & (lane.step[update] == lane.step[comms])
            kept = loose & same & (lane.start[update] >= lane.end[comms] - _NOISE_NS)
            preds.append(comms[kept])
            waiters.append(update[kept])
    held = _held(lane)
    pred = np.concatenate([*preds, held[:, 0]])
    waiter = np.concatenate([*waiters, held[:, 1]])
    apart = lane.track[pred] != lane.track[waiter]
    pairs = np.unique(np.stack([pred[apart], waiter[apart]], axis=1), axis=0)
    return pairs[:, 0], pairs[:, 1]


def _contradicted(kind: Ints, against: Bools) -> Bools:
    """Say of each communication whether more of its kind contradict than may be chance."""
    count = np.bincount(kind)
    share = np.bincount(kind, against) / np.maximum(count, 1)
    return np.asarray(share[kind] > _CONTRADICTED)


def _held(lane: _Lane) -> npt.NDArray[np.int64]:
    """Return (activity, waiter) of work that began after stream and launch were ready, just when the other ended."""
    free = np.where(lane.first, lane.ready, np.maximum(lane.before, lane.ready))
    late = np.flatnonzero(lane.launched & (lane.start > free + _NOISE_NS))
    by_end = np.argsort(lane.end, kind="stable")
    ends = lane.end[by_end]
    at = np.searchsorted(ends, lane.start[late] + _NOISE_NS, side="right") - 1
    pairs = []
    for back in range(4):  # the latest end may be of the same stream, or of something that never ran
        place = at - back
        found = by_end[np.maximum(place, 0)]
        good = (
            (place >= 0)
            & (lane.track[found] != lane.track[late])
            & (lane.end[found] > lane.start[late] - _AFTER_NS)
            & (lane.end[found] > free[late])
            & lane.launched[found]
            & (lane.call[found] < lane.call[late])
        )
        pairs.append(np.stack([found[good], late[good]], axis=1))
        late, at = late[~good], at[~good]
    return np.concatenate(pairs)


def _opens(lane: _Lane, base: Ints, left_after: Ints, entered: Ints) -> Bools:
    """Say which activities open a new node."""
    ends_one = np.zeros(len(lane.start), bool)
    ends_one[left_after] = True
    opens = lane.first.copy()
    opens[entered] = True
    changed = (
        lane.is_comm[1:]
        | lane.is_comm[:-1]
        | ends_one[:-1]
        | (lane.step[1:] != lane.step[:-1])
        | (lane.phase[1:] != lane.phase[:-1])
        | (base[1:] != base[:-1])
        | (lane.is_compute[1:] != lane.is_compute[:-1])
        | (lane.start[1:] > lane.before[1:] + _GAP_NS)
    )
    opens[1:] |= changed
    return opens


def _tables(
    rank: int,
    gpu: pl.DataFrame,
    lane: _Lane,
    host: _Host,
    *,
    opens: Bools,
    dependencies: tuple[Ints, Ints],
    recorded: bool,
) -> Tables:
    """Put nodes and edges together; host nodes come first."""
    hosts = len(host.start)
    heads = np.flatnonzero(opens)
    node_of = np.cumsum(opens) - 1
    lasts = np.append(heads[1:], len(opens)) - 1
    # work of each activity, in the order of its stream: its own time after the one before, and unexplained gaps inside
    own = np.maximum(0, lane.end - np.maximum(lane.start, np.where(lane.first, lane.start, lane.before)))
    gap = np.where(opens, 0, np.maximum(0, lane.start - np.maximum(lane.before, lane.ready)))
    work = own + gap
    total = np.cumsum(work)
    before = total - work - (total - work)[heads][node_of]
    value = np.add.reduceat(work, heads) if len(heads) else work
    first = gpu[heads]
    comm = lane.is_comm[heads]
    wait_end = gpu["wait_end_ns"].to_numpy()[heads].astype(np.float64)
    told = comm & np.isfinite(wait_end) & first["instance"].is_not_null().to_numpy()
    moved = lane.end[heads] - np.clip(np.where(told, wait_end, 0).astype(np.int64), lane.start[heads], lane.end[heads])
    value = np.where(told, moved, value)
    awaited = np.maximum(host.pred, 0)
    gone = np.where(host.pred >= 0, np.maximum(host.start, lane.end[awaited]), host.start)
    kind = np.where(comm, COMM, np.where(lane.is_compute[heads], COMPUTE, COPY))
    nodes = pl.DataFrame(
        {
            "kind": np.concatenate([np.full(hosts, HOST), kind]),
            "step": pl.concat([pl.Series([None] * hosts, dtype=pl.Int32), first["step"].cast(pl.Int32)]),
            "phase": np.concatenate([np.full(hosts, OTHER_PHASE), lane.phase[heads]]),
            "group_id": pl.concat([pl.Series([None] * hosts, dtype=pl.Int32), first["group_id"].cast(pl.Int32)]),
            "instance": pl.concat([pl.Series([None] * hosts, dtype=pl.Int64), first["instance"].cast(pl.Int64)]),
            "op": pl.concat([pl.Series([None] * hosts, dtype=pl.String), first["op"]]),
            "bytes": pl.concat([pl.Series([None] * hosts, dtype=pl.Int64), first["bytes"]]),
            "start_ns": np.concatenate([host.start, lane.start[heads]]),
            "end_ns": np.concatenate([host.end, np.maximum.reduceat(lane.end, heads)]),
            "value_ns": np.concatenate([np.maximum(0, host.end - gone), value]),
            "launch_ns": np.concatenate([host.start, lane.ready[heads]]),
            "sent_ns": pl.concat([pl.Series([None] * hosts, dtype=pl.Int64), first["sent_ns"].cast(pl.Int64)]),
            "sent_by": pl.concat([pl.Series([None] * hosts, dtype=pl.Int32), first["sent_by"].cast(pl.Int32)]),
            "told": np.concatenate([np.ones(hosts, bool), told | ~comm]),
            "event": np.concatenate([np.full(hosts, -1), first["event"].to_numpy()]),
        }
    )
    edges = [
        _edges(np.arange(hosts - 1), np.arange(1, hosts), host_ns=host.start[1:] - host.end[:-1]),
        _edges(node_of[host.pred[host.pred >= 0]] + hosts, np.flatnonzero(host.pred >= 0)),
        _edges(
            *(
                pair[~lane.first[heads[1:]]]
                for pair in (np.arange(len(heads) - 1) + hosts, np.arange(1, len(heads)) + hosts)
            )
        ),
        _edges(node_of[dependencies[0]] + hosts, node_of[dependencies[1]] + hosts, recorded=recorded),
        _launch_edges(lane, host, node_of, (heads, lasts), before),
    ]
    return {
        "nodes": nodes.with_columns(rank=pl.lit(rank, pl.Int32), node=pl.int_range(pl.len(), dtype=pl.Int64)).select(
            pl.col(name).cast(dtype) for name, dtype in NODES.items()
        ),
        "edges": pl.concat(edges)
        .with_columns(rank=pl.lit(rank, pl.Int32))
        .select(pl.col(name).cast(dtype) for name, dtype in EDGES.items())
        .unique(maintain_order=True)
        .sort("node", "pred", "host_ns", "before_ns", "recorded"),
    }


def _edges(
    pred: Ints, node: Ints, host_ns: Ints | None = None, before_ns: Ints | None = None, *, recorded: bool | None = None
) -> pl.DataFrame:
    nothing = np.zeros(len(pred), np.int64)
    return pl.DataFrame(
        {
            "pred": np.asarray(pred, np.int64),
            "node": np.asarray(node, np.int64),
            "host_ns": nothing if host_ns is None else host_ns,
            "before_ns": nothing if before_ns is None else before_ns,
        }
    ).with_columns(recorded=pl.lit(recorded, pl.Boolean))


def _launch_edges(lane: _Lane, host: _Host, node_of: Ints, bounds: tuple[Ints, Ints], before: Ints) -> pl.DataFrame:
    """Return the launches of each node that can hold it: the first, the last, and the one that did most."""
    hosts = len(host.start)
    heads, lasts = bounds
    since = lane.ready - host.end[host.base]
    lag = np.where(lane.launched, since - before, np.iinfo(np.int64).min)
    order = np.lexsort((np.arange(len(lag)), -lag, node_of))
    most = order[heads]
    chosen = np.unique(np.concatenate([heads, lasts, most]))
    chosen = chosen[lane.launched[chosen]]
    return _edges(host.base[chosen], node_of[chosen] + hosts, since[chosen], before[chosen])
