"""The whole job as one graph: every rank's nodes on aligned clocks, joined where communications meet.

T is the mean time of a step: step k begins when the first rank starts its first kernel of it, and the last ends with
the last activity. The replay's error is T replayed ÷ T measured − 1.

Peers of a rank: the ranks that do the same work, joined to it by data, tensor, context or expert parallel groups (same
pipeline stage). *Idealised*: compute of each phase and step, the host's time between launches of communications, and
transfers of slow links at the median of the peers.
"""

from __future__ import annotations

import itertools
import weakref
from functools import cached_property
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from tracetool.join.messages import messages
from tracetool.join.replay import Graph, Replayed, graph
from tracetool.join.segments import COMM, COMPUTE, EDGES, HOST, NODES, PHASES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tracetool.join.replay import Floats, Ints

Bools = npt.NDArray[np.bool_]

PEER_ROLES: Final = ("dp", "fsdp", "tp", "sp", "cp", "ep")
SYNC_OPTION: Final = "_ExperimentalConfig(enable_cuda_sync_events=True)"
"""What has PyTorch's profiler record waits between streams, given as experimental_config."""
ERROR_LIMIT: Final = 0.05
"""Above this error of the replay nothing that it says about changes is shown."""
UNTOLD_LIMIT: Final = 0.05
"""Above this share of communication time without known partners a replay says nothing either."""
_MANY_PEERS: Final = 64
_SAME_LOAD: Final = 0.02
"""Communications that carry so little more carry the same."""


class Values(NamedTuple):
    """What a replay is made of, and a what-if changes: value of every node, lag of every edge, ns."""

    value: Floats
    host: Floats
    """Host's part of each edge's lag."""
    before: Floats
    """Work of the node before what the edge launches, part of the lag."""


class Job:
    """The graph of a job and its times. `of` makes it from the tables of the join."""

    def __init__(self, nodes: pl.DataFrame, edges: pl.DataFrame, places: pl.DataFrame, groups: pl.DataFrame) -> None:
        self.places = places
        """Table `places` of its ranks."""
        self.groups = groups
        """group_id, role, size, ranks; as the join found them."""
        self.ranks: list[int] = places["rank"].to_list()
        self.nodes = nodes
        """NODES plus aligned_ns and sent_aligned_ns, sorted by (rank, node)."""
        self.rank: Ints = np.searchsorted(np.array(self.ranks), nodes["rank"].to_numpy()).astype(np.int64)
        """Place of each node's rank in `ranks`."""
        self.kind: Ints = nodes["kind"].to_numpy().astype(np.int64)
        self.phase: Ints = nodes["phase"].to_numpy().astype(np.int64)
        self.told: Bools = nodes["told"].to_numpy()
        numbers = nodes["step"].drop_nulls().unique().sort().to_list()
        self.steps: list[int | None] = list(numbers) or [None]
        step = nodes["step"].replace_strict({k: n for n, k in enumerate(numbers)}, default=-1) if numbers else None
        on_gpu = self.kind != HOST
        self.step: Ints = (
            np.where(on_gpu, 0, -1) if step is None else step.fill_null(-1).cast(pl.Int64).to_numpy()
        ).astype(np.int64)
        """Place of each node's step in `steps`; −1 outside steps."""
        first = np.searchsorted(self.rank, np.arange(len(self.ranks)))
        edge_rank = np.searchsorted(np.array(self.ranks), edges["rank"].to_numpy())
        self.pred: Ints = edges["pred"].to_numpy() + first[edge_rank]
        self.node: Ints = edges["node"].to_numpy() + first[edge_rank]
        self.aligned: Floats = nodes["aligned_ns"].to_numpy().astype(np.float64)
        self.aligned_end: Floats = self.aligned + (nodes["end_ns"] - nodes["start_ns"]).to_numpy()
        self.values = Values(
            nodes["value_ns"].to_numpy().astype(np.float64),
            edges["host_ns"].to_numpy().astype(np.float64),
            edges["before_ns"].to_numpy().astype(np.float64),
        )
        told = edges.group_by("rank").agg(pl.col("recorded").any(ignore_nulls=True), of=pl.col("recorded").count())
        waiting = told.filter(pl.col("of") > 0)
        self.recorded: tuple[int, int] = (int(waiting["recorded"].sum()), waiting.height)
        """Ranks whose waits between streams are as the tracer recorded them, and ranks that have any."""
        meets = nodes.select(
            pl.when(pl.col("instance").is_not_null() & pl.col("told"))
            .then(pl.struct("group_id", "instance").rank("dense").cast(pl.Int64))
            .otherwise(-1)
        )
        self._make_graph(meets.to_series().to_numpy())

    def _make_graph(self, meets: Ints) -> None:
        """Make the graph; bring sends and receives without a recorded peer together first."""
        nodes, value = self.nodes, self.values.value
        found = messages(nodes, self.aligned_end, (self.pred, self.node))
        if len(found.receive):
            told, meets = self.told.copy(), np.where(found.meeting >= 0, found.meeting + meets.max() + 1, meets)
            told[found.receive] = True
            told[found.meeting >= 0] = True
            came = self.aligned.copy()
            np.maximum.at(came, found.receive, self.aligned_end[found.source])
            together = np.flatnonzero(found.meeting >= 0)
            last = np.full(len(value), -np.inf)
            np.maximum.at(last, found.meeting[together], came[together])
            came[together] = last[found.meeting[together]]
            brought = np.union1d(found.receive, together)
            value = value.copy()
            value[brought] = np.maximum(0.0, self.aligned_end[brought] - came[brought])
            nothing = np.zeros(len(found.receive))
            self.told = told
            self.values = Values(value, np.append(self.values.host, nothing), np.append(self.values.before, nothing))
            self.pred = np.append(self.pred, found.source)
            self.node = np.append(self.node, found.receive)
        self.graph: Graph = graph(nodes.height, self.pred, self.node, meets)

    @classmethod
    def of(cls, joined: Mapping[str, pl.DataFrame], fewest: int = 2) -> Job | None:
        """Return the job of the tables `nodes`, `edges`, `clocks` and `groups`; None with fewer than `fewest` ranks.

        The same tables give the same job, made once: several questions ask for it. Raises TracetoolError when the
        communications contradict each other.
        """
        nodes, edges = joined.get("nodes"), joined.get("edges")
        if nodes is None or edges is None or "clocks" not in joined or nodes["rank"].n_unique() < fewest:
            return None
        tables = (nodes, edges, joined["clocks"], joined["groups"])
        key = tuple(map(id, tables))
        if key not in _MADE:
            _MADE[key] = cls._made(*tables)
            for table in tables:  # the job goes when its run does
                weakref.finalize(table, _MADE.pop, key, None).atexit = False
        return _MADE[key]

    @classmethod
    def _made(cls, nodes: pl.DataFrame, edges: pl.DataFrame, clocks: pl.DataFrame, groups: pl.DataFrame) -> Job:
        clock = clocks.select("rank", "offset_ns", "drift_ppm", "t0_ns", "base_unix_ns")
        drift = (pl.col("drift_ppm") * 1e-6 * (pl.col("start_ns") - pl.col("t0_ns"))).round().cast(pl.Int64)
        placed = (
            nodes.sort("rank", "node")
            .join(clock, on="rank", how="left", maintain_order="left")
            .with_columns(aligned_ns=pl.col("start_ns") + pl.col("base_unix_ns") + pl.col("offset_ns") + drift)
        )
        origin = placed["aligned_ns"].min()
        placed = placed.with_columns(
            pl.col("aligned_ns") - origin,
            # a slot's end is near enough to its receive for the drift between them not to matter
            sent_aligned_ns=pl.col("sent_ns") - pl.col("start_ns") + pl.col("aligned_ns") - origin,
        ).select(*NODES, "aligned_ns", "sent_aligned_ns")
        ranks = placed["rank"].unique().sort().to_list()
        return cls(placed, edges.select(*EDGES), places(ranks, groups), groups)

    # ---- times ----

    def replay(self, values: Values | None = None) -> Replayed:
        """Return the times of all nodes under some values, the measured ones by default."""
        v = self.values if values is None else values
        return self.graph.replay(v.value, v.host - v.before, self.aligned)

    @cached_property
    def base(self) -> Replayed:
        """The replay of what was measured."""
        return self.replay()

    @cached_property
    def _firsts(self) -> tuple[Ints, Ints]:
        """Nodes that may begin a step (compute and communication inside steps), and their step."""
        mine = np.flatnonzero((self.step >= 0) & ((self.kind == COMPUTE) | (self.kind == COMM)))
        return mine, self.step[mine]

    def step_ns(self, start: Floats, end: Floats) -> Floats:
        """Return the time of each step, given start and end of every node."""
        mine, step = self._firsts
        begin = np.full(len(self.steps), np.inf)
        np.minimum.at(begin, step, start[mine])
        on_gpu = self.kind != HOST
        return np.diff(np.append(begin, end[on_gpu].max()))

    @cached_property
    def measured_ns(self) -> Floats:
        """Time of each step as measured, on aligned clocks."""
        return self.step_ns(self.aligned, self.aligned_end)

    def time_ns(self, values: Values | None = None) -> float:
        """Return T, the mean replayed time of a step."""
        replayed = self.base if values is None else self.replay(values)
        return float(self.step_ns(replayed.start, replayed.end).mean())

    @cached_property
    def error(self) -> float:
        """Error of the replay: T replayed ÷ T measured − 1."""
        measured = float(self.measured_ns.mean())
        return self.time_ns() / measured - 1 if measured > 0 else 0.0

    @cached_property
    def untold(self) -> float:
        """Share of communication time whose partners are not known."""
        comm = self.kind == COMM
        ns = np.where(comm, self.aligned_end - self.aligned, 0.0)
        total = float(ns.sum())
        return float(ns[~self.told].sum()) / total if total else 0.0

    @property
    def trusted(self) -> bool:
        """What-ifs may be shown."""
        return abs(self.error) <= ERROR_LIMIT and self.untold <= UNTOLD_LIMIT

    @property
    def stream_waits(self) -> str:
        """How it is known what one stream waits for on another, as the end of a sentence."""
        recorded, ranks = self.recorded
        if recorded == ranks:
            return "what one stream waits for on another is as the tracer recorded it" if ranks else "no stream waits"
        where = f" on {ranks - recorded} of {ranks} ranks" if recorded else ""
        return f"what one stream waits for on another is inferred{where}, which {SYNC_OPTION} would tell"

    # ---- work of ranks and their peers ----

    @cached_property
    def compute_ns(self) -> Floats:
        """Compute by (rank, step, phase), ns."""
        answer = np.zeros((len(self.ranks), len(self.steps), len(PHASES) + 1))
        mine = (self.kind == COMPUTE) & (self.step >= 0)
        np.add.at(answer, (self.rank[mine], self.step[mine], self.phase[mine]), self.values.value[mine])
        return answer

    def of_peers(self, measure: Floats) -> Floats:
        """Return for each rank (first axis) the median of its peers, itself left out; NaN where it has none."""
        answer = np.full(measure.shape, np.nan)
        peers = self.places["peers"].to_numpy()
        for number in np.unique(peers):
            members = np.flatnonzero(peers == number)
            if len(members) > _MANY_PEERS:  # one rank no longer moves the median
                answer[members] = np.median(measure[members], axis=0)
            elif len(members) > 1:
                for at, member in enumerate(members):
                    answer[member] = np.median(measure[np.delete(members, at)], axis=0)
        return answer

    @cached_property
    def compute_factor(self) -> Floats:
        """Factor that brings compute to the peers' median, by (rank, step, phase); 1 where that is not known."""
        return _ratio(self.of_peers(self.compute_ns), self.compute_ns)

    @cached_property
    def host_clock(self) -> tuple[Floats, Floats]:
        """Own time of the host, its waits for the GPU cut out: at the end of every host node, and at every edge."""
        hosts = self.kind == HOST
        chain = hosts[self.node] & hosts[self.pred]
        own = np.zeros(len(self.kind))
        own[self.node[chain]] = self.values.host[chain]
        own = np.where(hosts, own + self.values.value, 0.0)
        total = np.cumsum(own)
        first = np.searchsorted(self.rank, np.arange(len(self.ranks)))
        at_end = total - (total - own)[first][self.rank]
        return at_end, np.where(hosts[self.pred], at_end[self.pred] + self.values.host, np.nan)

    @cached_property
    def anchors(self) -> list[tuple[Ints, Floats]]:
        """Per rank: its communications in the order of launch, and the host's own time when each was launched."""
        _, at_edge = self.host_clock
        launches = np.flatnonzero(np.isfinite(at_edge) & (self.kind[self.node] == COMM))
        order = launches[np.lexsort((self.node[launches], at_edge[launches], self.rank[self.node[launches]]))]
        edges = np.searchsorted(self.rank[self.node[order]], np.arange(len(self.ranks) + 1))
        return [(self.node[order[a:b]], at_edge[order[a:b]]) for a, b in itertools.pairwise(edges.tolist())]

    @cached_property
    def _alike(self) -> list[list[int]]:
        """Per rank: itself and the peers that launch as many communications; alone where it cannot be compared."""
        peers = self.places["peers"].to_numpy()
        sizes = [len(nodes) for nodes, _ in self.anchors]
        same: dict[tuple[int, int], list[int]] = {}
        for place, size in enumerate(sizes):
            same.setdefault((int(peers[place]), size), []).append(place)
        return [same[int(peers[at]), size] if size else [at] for at, size in enumerate(sizes)]

    def _of_alike(self, measure: Mapping[int, Floats], place: int) -> Floats:
        """Return the median of a measure over the ranks like one, itself left out unless they are many."""
        alike = self._alike[place]
        return np.median([measure[m] for m in alike if m != place or len(alike) > _MANY_PEERS], axis=0)

    @cached_property
    def host_ideal(self) -> list[Floats | None]:
        """Per rank: the host's own time at each anchor if all stretches took the peers' median; None: not comparable.

        Comparable are peers that launch equally many communications.
        """
        stretches = {at: np.diff(own, prepend=0.0) for at, (_, own) in enumerate(self.anchors)}
        return [
            np.cumsum(self._of_alike(stretches, place)) if len(alike) > 1 else None
            for place, alike in enumerate(self._alike)
        ]

    @cached_property
    def extra_waits(self) -> list[Ints]:
        """Per rank: the host's waits for the GPU, as nodes, that its peers do not make between the same anchors."""
        at_end, _ = self.host_clock
        waits = np.flatnonzero(self.kind == HOST)
        between: list[Ints] = []
        for place, (_, own) in enumerate(self.anchors):
            mine = waits[self.rank[waits] == place]
            between.append(np.searchsorted(own, at_end[mine] - self.values.value[mine]))
        counts = {
            at: np.bincount(found, minlength=len(self.anchors[at][0]) + 1).astype(np.float64)
            for at, found in enumerate(between)
        }
        answer = []
        for place, alike in enumerate(self._alike):
            mine = waits[self.rank[waits] == place]
            if len(alike) < 2:  # noqa: PLR2004 - nobody to compare with
                answer.append(mine[:0])
                continue
            # of several in one stretch the first are those that the peers make too
            ordinal = np.arange(len(mine)) - np.searchsorted(between[place], between[place])
            answer.append(mine[ordinal >= self._of_alike(counts, place)[between[place]]])
        return answer

    # ---- what-ifs ----

    def with_compute(self, factor: Floats, values: Values | None = None) -> Values:
        """Return values with the work of each node times `factor` (nodes,)."""
        v = self.values if values is None else values
        return Values(v.value * factor, v.host, v.before * factor[self.node])

    def with_ranks_idealised(self, ranks: Sequence[int], values: Values | None = None) -> Values:
        """Return values with compute and host of these places in `ranks` as their peers'."""
        chosen = np.zeros(len(self.ranks), bool)
        chosen[list(ranks)] = True
        mine = chosen[self.rank] & (self.kind == COMPUTE) & (self.step >= 0)
        factor = np.ones(len(self.kind))
        factor[mine] = self.compute_factor[self.rank[mine], self.step[mine], self.phase[mine]]
        v = self.with_compute(factor, values)
        return self.with_hosts_idealised(ranks, v)

    def with_hosts_idealised(self, ranks: Sequence[int], values: Values | None = None) -> Values:
        """Return values with the own time of the hosts of these places in `ranks` as their peers'."""
        v = self.values if values is None else values
        value, host = v.value.copy(), v.host.copy()
        at_end, at_edge = self.host_clock
        for place in ranks:
            ideal = self.host_ideal[place]
            if ideal is None:
                continue
            known = np.append(0.0, self.anchors[place][1])
            wanted = np.append(0.0, ideal)
            edges = np.flatnonzero(np.isfinite(at_edge) & (self.rank[self.node] == place))
            ends_at = self.pred[edges]
            now = _warp(known, wanted, at_edge[edges])
            host[edges] = np.maximum(0.0, now - _warp(known, wanted, at_end[ends_at]))
            # what only this host waits for the GPU to end, it no longer waits for
            extra = np.zeros(len(self.kind), bool)
            extra[self.extra_waits[place]] = True
            host[extra[self.node] & (self.kind[self.pred] != HOST)] = -np.inf
            nodes = np.flatnonzero((self.rank == place) & (self.kind == HOST))
            value[nodes] = np.maximum(
                0.0,
                _warp(known, wanted, at_end[nodes]) - _warp(known, wanted, at_end[nodes] - self.values.value[nodes]),
            )
        return Values(value, host, v.before)

    def with_loads_idealised(self, ranks: Sequence[int], values: Values | None = None) -> Values:
        """Return values with the transfers of these places in `ranks` as their peers', where theirs carry more."""
        comms = self.nodes.join(
            self.groups.select("group_id", "role"), on="group_id", how="left", maintain_order="left"
        ).select(
            kind=pl.struct("role", "op").rank("dense").cast(pl.Int64) - 1,
            bytes=pl.col("bytes").fill_null(0).cast(pl.Float64),
        )
        kind, carried = comms["kind"].to_numpy(), comms["bytes"].to_numpy()
        mine = (self.kind == COMM) & self.told & (self.step >= 0)
        shape = (len(self.ranks), len(self.steps), int(kind.max()) + 1)
        moved, loads = np.zeros(shape), np.zeros(shape)
        at = self.rank[mine], self.step[mine], kind[mine]
        np.add.at(moved, at, self.values.value[mine])
        np.add.at(loads, at, carried[mine])
        more = loads > (1 + _SAME_LOAD) * self.of_peers(loads)
        by_kind = np.where(more, _ratio(self.of_peers(moved), moved), 1.0)
        chosen = mine.copy()
        chosen[mine] = np.isin(self.rank[mine], list(ranks))
        factor = np.ones(len(self.kind))
        factor[chosen] = by_kind[self.rank[chosen], self.step[chosen], kind[chosen]]
        return self.with_transfers(factor, values)

    def with_transfers(self, factor: Floats | float, values: Values | None = None) -> Values:
        """Return values with the transfer of each matched communication times `factor`."""
        v = self.values if values is None else values
        moved = (self.kind == COMM) & self.told
        return Values(np.where(moved, v.value * factor, v.value), v.host, v.before)

    def without_host(self) -> Values:
        """Return values of a host that costs nothing: everything is launched as soon as the host may go on."""
        v = self.values
        return Values(np.where(self.kind == HOST, 0.0, v.value), np.zeros_like(v.host), v.before)

    def with_stages_balanced(self) -> Values:
        """Return values with compute of each phase and step of every stage at the mean over the stages."""
        stage = self.places["stage"].to_numpy()
        numbers = np.unique(stage)
        # of two ranks the faster one is the measure: a slow rank is no heavy stage
        medians = np.stack([np.quantile(self.compute_ns[stage == s], 0.5, axis=0, method="lower") for s in numbers])
        factor = _ratio(medians.mean(axis=0)[None], medians)
        place = np.searchsorted(numbers, stage)
        mine = (self.kind == COMPUTE) & (self.step >= 0)
        by_node = np.ones(len(self.kind))
        by_node[mine] = factor[place[self.rank[mine]], self.step[mine], self.phase[mine]]
        return self.with_compute(by_node)


_MADE: Final[dict[tuple[int, ...], Job]] = {}
"""Jobs by the identity of the tables they were made from, as long as those live."""


def _ratio(wanted: Floats, own: Floats) -> Floats:
    """Return wanted ÷ own; 1 where either is not known or nothing was done."""
    known = np.isfinite(wanted) & (own > 0)
    return np.where(known, wanted, 1.0) / np.where(known, own, 1.0)


def _warp(known: Floats, wanted: Floats, at: Floats) -> Floats:
    """Return `at` moved as the known times move to the wanted ones: linear between, shifted outside."""
    inside = np.interp(at, known, wanted)
    return np.where(at > known[-1], wanted[-1] + at - known[-1], np.where(at < known[0], at, inside))


def places(ranks: Sequence[int], groups: pl.DataFrame) -> pl.DataFrame:
    """Return rank, stage, peers of each rank.

    `peers`: the lowest rank of those joined by groups of PEER_ROLES; where no group is a pipeline's, groups of unknown
    role join too. `stage`: position in the pipeline groups, else the order of the peers' lowest ranks; null where no
    group tells that there is a pipeline and not all are peers: what divides them is not known then.
    """
    pipeline = [list(row) for row in groups.filter(pl.col("role") == "pp")["ranks"].to_list() if len(row) > 1]
    roles = PEER_ROLES if pipeline else (*PEER_ROLES, "other")
    lowest = {rank: rank for rank in ranks}

    def root(rank: int) -> int:
        while lowest[rank] != rank:
            lowest[rank] = lowest[lowest[rank]]
            rank = lowest[rank]
        return rank

    for row in groups.filter(pl.col("role").is_in(roles))["ranks"].to_list():
        here = [rank for rank in row if rank in lowest]
        for rank in here[1:]:
            a, b = sorted((root(here[0]), root(rank)))
            lowest[b] = a
    peers = {rank: root(rank) for rank in ranks}
    position: dict[int, set[int]] = {}
    for row in pipeline:
        for at, rank in enumerate(row):
            if rank in peers:
                position.setdefault(peers[rank], set()).add(at)
    clear = len(position) == len(set(peers.values())) and all(len(found) == 1 for found in position.values())
    order = {number: at for at, number in enumerate(sorted(set(peers.values())))}
    told = bool(pipeline) or len(order) == 1
    stage = {n: (next(iter(position[n])) if clear else order[n]) if told else None for n in order}
    return pl.DataFrame(
        {"rank": list(ranks), "stage": [stage[peers[r]] for r in ranks], "peers": [peers[r] for r in ranks]},
        schema={"rank": pl.Int32, "stage": pl.Int32, "peers": pl.Int32},
    )
