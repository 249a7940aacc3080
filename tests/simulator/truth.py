"""The truth about a run, from the simulator's own event list and the words of the definitions.

Plain Python and no interval arithmetic: boundaries are sorted and counted through, so that an error shared with the
thing tested is unlikely. Times are in the clock of the rank a row is about, as its file counts them.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from simulator.config import Config
    from simulator.record import RankTrace, Seen

BUCKETS: Final = ("compute", "exposed_comm", "sync_wait", "pipeline_bubble", "memcpy", "host_bound", "idle")
Row = dict[str, Any]


@dataclass(frozen=True)
class Window:
    """A step of a rank."""

    rank: int
    step: int | None
    start_ns: int
    end_ns: int
    open_end: bool


@dataclass(frozen=True)
class SlotSpan:
    """One slot on one rank, in true time: first compute start, last compute end."""

    rank: int
    step: int
    kind: str
    microbatch: int
    chunk: int
    start_ns: int
    end_ns: int


def windows(trace: RankTrace) -> list[Window]:
    """Return the steps of a rank in GPU time."""
    rank = trace.place.rank
    if not trace.step_ranges:
        if not trace.activities:
            return []
        first = min(a.start_ns for a in trace.activities)
        return [Window(rank, None, first, max(a.end_ns for a in trace.activities), open_end=True)]
    starts = [start for _, start, _ in trace.step_ranges]
    launched: list[list[Seen]] = [[] for _ in starts]
    for activity in trace.activities:
        if activity.launch_start_ns is None or activity.launch_start_ns < starts[0]:
            continue
        at = max(i for i, start in enumerate(starts) if start <= activity.launch_start_ns)
        launched[at].append(activity)
    found: list[tuple[int, int, int]] = []
    reached = None
    for (step, _, _), mine in zip(trace.step_ranges, launched, strict=True):
        kernels = [a for a in mine if a.kind in ("compute", "comm")] or mine
        if kernels:
            begin = min(a.start_ns for a in kernels)
            reached = begin if reached is None else max(reached, begin)
            found.append((step, reached, max(a.end_ns for a in mine)))
    last = len(found) - 1
    return [
        Window(rank, step, begin, end if i == last else found[i + 1][1], open_end=i == last)
        for i, (step, begin, end) in enumerate(found)
    ]


def slots(traces: Iterable[RankTrace]) -> list[SlotSpan]:
    """Return every slot of the recorded steps, in true time, by rank and start."""
    spans: dict[tuple[int, int, tuple[str, int, int]], list[int]] = {}
    for trace in traces:
        for activity in trace.activities:
            tags = activity.tags
            if tags.get("slot") is None or activity.kind != "compute" or activity.launch_start_ns is None:
                continue
            key = (activity.rank, tags["run_step"], tags["slot"])
            source = activity.source
            span = spans.setdefault(key, [source.start_ns, source.end_ns])
            span[0] = min(span[0], source.start_ns)
            span[1] = max(span[1], source.end_ns)
    rows = [SlotSpan(rank, step, *slot, *span) for (rank, step, slot), span in spans.items()]
    return sorted(rows, key=lambda s: (s.rank, s.start_ns, s.end_ns))


class Truth:
    """Truth as seen by someone who has the traces of `traces` and nothing else (`joined`: and joins them)."""

    def __init__(self, config: Config, traces: Sequence[RankTrace], *, joined: bool) -> None:
        self.config = config
        self.traces = list(traces)
        self.joined = joined and len(traces) > 1
        self.windows = {t.place.rank: windows(t) for t in traces}
        self.slots = slots(traces)
        self._clocks = {t.place.rank: t.clock for t in traces}
        self._slot_ends = {(s.rank, s.step, s.kind, s.microbatch, s.chunk): s.end_ns for s in self.slots}
        self._recorded: dict[int, list[Seen]] = defaultdict(list)
        for trace in traces:
            for activity in trace.activities:
                for transfer in activity.source.transfers:
                    self._recorded[id(transfer)].append(activity)

    # ---- waiting ----

    def wait_end(self, activity: Seen) -> int:
        """Return w of a communication: waiting is [start, w), moving [w, end)."""
        start, end = activity.start_ns, activity.end_ns
        if not self.joined:
            return start
        transfers = activity.source.transfers
        members = [m for t in transfers for m in self._recorded[id(t)]]
        if len({m.rank for m in members}) < 2:
            return start
        if transfers[0].symmetric:
            return end - min(m.end_ns - m.start_ns for m in members)
        if self.config.p2p_peers and self.config.p2p == "async":
            reached = max(m.source.start_ns for m in members)
        else:
            ends = [self._produced(message) for message in activity.tags["received"]]
            if not ends or None in ends:
                return end
            reached = max(e for e in ends if e is not None)
        return min(max(self._clocks[activity.rank].shows(reached), start), end)

    def _producer(self, message: tuple[Any, ...]) -> tuple[int, int, str, int, int]:
        """Return (rank, step, kind, micro-batch, chunk) of the slot whose output a message is."""
        step, kind, i, virtual, dp, cp, tp = message
        source = virtual - 1 if kind == "F" else virtual + 1
        c = self.config
        rank = ((source % c.pp * c.dp + dp) * c.cp + cp) * c.tp + tp
        return rank, step, kind, i, source // c.pp

    def _produced(self, message: tuple[Any, ...]) -> int | None:
        return self._slot_ends.get(self._producer(message))

    def bubbles(self, rank: int) -> list[tuple[int, int]]:
        """Return the stretches between two slots of a rank's step in which the next slot's input had not been made."""
        if not self.joined or self.config.pp == 1:
            return []
        c = self.config
        place = next(t.place for t in self.traces if t.place.rank == rank)
        mine = [s for s in self.slots if s.rank == rank]
        shows = self._clocks[rank].shows
        found = []
        for before, after in pairwise(mine):
            virtual = after.chunk * c.pp + place.stage
            source = virtual - 1 if after.kind == "F" else virtual + 1
            if before.step != after.step or after.kind == "W" or not 0 <= source < c.pp * c.chunks:
                continue
            message = (after.step, after.kind, after.microbatch, virtual, place.dp, place.cp, place.tp)
            sent = self._produced(message)
            if sent is not None and sent > before.end_ns:
                found.append((shows(before.end_ns), shows(min(sent, after.start_ns))))
        return found

    def waits(self) -> list[Row]:
        """One row a communication: rank, start_ns, end_ns, wait_end_ns, role, op, group, sequence, step."""
        return [
            {
                "rank": a.rank,
                "start_ns": a.start_ns,
                "end_ns": a.end_ns,
                "wait_end_ns": self.wait_end(a),
                "role": a.tags["role"],
                "op": a.tags["op"],
                "group": a.tags["group"],
                "sequence": a.tags.get("sequence"),
                "step": a.tags["run_step"],
                "bytes": a.tags["bytes"],
            }
            for t in self.traces
            for a in t.activities
            if a.kind == "comm"
        ]

    # ---- the budget ----

    def budget(self) -> list[Row]:
        """One row a rank and step: the window, the seven buckets, comm_total, overlap and exposed_total, all in ns."""
        rows = []
        for trace in self.traces:
            for window, sums in zip(self.windows[trace.place.rank], self._sweep(trace), strict=True):
                row: Row = {
                    "rank": window.rank,
                    "step": window.step,
                    "open_end": window.open_end,
                    "window_ns": window.end_ns - window.start_ns,
                }
                row |= {f"{b}_ns": sums[b] for b in BUCKETS}
                row |= {f"{k}_ns": sums[k] for k in ("comm_total", "overlap", "exposed_total")}
                rows.append(row)
        return rows

    def overlap(self) -> list[Row]:
        """One row a rank, step and role (`all` first): comm_ns, overlap_ns, exposed_ns as unions."""
        rows = []
        for trace in self.traces:
            for window, sums in zip(self.windows[trace.place.rank], self._sweep(trace), strict=True):
                roles = sorted({a.tags["role"] for a in trace.activities if a.kind == "comm"})
                for role in ("all", *roles):
                    comm = sums["comm_total"] if role == "all" else sums["comm", role]
                    overlap = sums["overlap"] if role == "all" else sums["overlap", role]
                    if role == "all" or comm:
                        rows.append(
                            {
                                "rank": window.rank,
                                "step": window.step,
                                "role": role,
                                "comm_ns": comm,
                                "overlap_ns": overlap,
                                "exposed_ns": comm - overlap,
                            }
                        )
        return rows

    def _sweep(self, trace: RankTrace) -> list[dict[Any, int]]:
        """Count through the sorted boundaries of a rank once; return each window's sums."""
        changes: list[tuple[int, int, Any]] = []

        def layer(start: int, end: int, key: Any) -> None:  # noqa: ANN401 - any key
            if end > start:
                changes.append((start, 1, key))
                changes.append((end, -1, key))

        for a in trace.activities:
            layer(a.start_ns, a.end_ns, "busy")
            if a.kind == "comm":
                role = a.tags["role"]
                middle = self.wait_end(a)
                layer(a.start_ns, middle, "waiting pp" if role == "pp" else "waiting")
                layer(middle, a.end_ns, "moving")
                layer(a.start_ns, a.end_ns, ("role", role))
            else:
                layer(a.start_ns, a.end_ns, "compute" if a.kind == "compute" else "copy")
        for start, end in host_bound(trace.activities):
            layer(start, end, "host")
        for start, end in self.bubbles(trace.place.rank):
            layer(start, end, "bubble")
        steps = self.windows[trace.place.rank]
        for number, window in enumerate(steps):
            layer(window.start_ns, window.end_ns, ("window", number))
        changes.sort(key=lambda c: c[0])
        totals: list[dict[Any, int]] = [defaultdict(int) for _ in steps]
        now: dict[Any, int] = defaultdict(int)
        here = changes[0][0] if changes else 0
        for at, change, key in changes:
            if at > here:
                inside = [n for n in range(len(steps)) if now["window", n]]
                for number in inside:
                    _count(totals[number], now, at - here)
                here = at
            now[key] += change
        return totals

    # ---- other truths ----

    def kernel_counts(self) -> dict[tuple[int, str], int]:
        """Return the number of kernels by rank and name."""
        counts: dict[tuple[int, str], int] = defaultdict(int)
        for trace in self.traces:
            for a in trace.activities:
                if a.kind in ("compute", "comm"):
                    counts[a.rank, a.name] += 1
        return dict(counts)

    def flops(self) -> list[Row]:
        """One row a rank and step: model_flops, hardware_flops with full attention, and *_causal with half of it."""
        rows = []
        for trace in self.traces:
            for window in self.windows[trace.place.rank]:
                row: Row = {"rank": window.rank, "step": window.step}
                for which in ("model", "hardware"):
                    done = [
                        a.tags
                        for a in trace.activities
                        if a.tags["run_step"] == window.step and a.launch_start_ns is not None
                    ]
                    full = sum(t.get(f"{which}_flops", 0) for t in done)
                    attention = sum(t.get(f"{which}_flops", 0) for t in done if t.get("attention"))
                    row |= {f"{which}_flops": full, f"{which}_flops_causal": full - attention // 2}
                rows.append(row)
        return rows

    def pipeline(self) -> list[Row]:
        """One row a rank and step of a pipelined run: stage, window_ns (|W|), bubble_ns, in true time.

        W runs from the first forward's start to the last backward's end over the stages of one replica. Busy in it:
        compute, copies, and collectives inside one stage.
        """
        rows = []
        by_rank = {t.place.rank: t for t in self.traces}
        replicas: dict[tuple[int, int, int], list[int]] = defaultdict(list)
        for trace in self.traces:
            replicas[trace.place.dp, trace.place.cp, trace.place.tp].append(trace.place.rank)
        replica_of = {rank: members for members in replicas.values() for rank in members}
        for rank, trace in by_rank.items():
            for step in sorted({s.step for s in self.slots if s.rank == rank}):
                span = [s for s in self.slots if s.rank in replica_of[rank] and s.step == step]
                begin, end = min(s.start_ns for s in span), max(s.end_ns for s in span)
                inside = [
                    (max(a.source.start_ns, begin), min(a.source.end_ns, end))
                    for a in trace.activities
                    if a.kind != "comm" or a.tags["role"] in ("tp", "dp", "fsdp", "ep", "cp")
                ]
                rows.append(
                    {
                        "rank": rank,
                        "step": step,
                        "stage": trace.place.stage,
                        "window_ns": end - begin,
                        "bubble_ns": end - begin - measure(inside),
                    }
                )
        return rows


def host_bound(activities: Sequence[Seen]) -> list[tuple[int, int]]:
    """Return the dry stretches up to the end of the next activity's launch call, if that call began when it was dry."""
    found = []
    dry = None
    for a in activities:
        if dry is not None and a.start_ns > dry and a.launch_start_ns is not None and a.launch_start_ns > dry:
            assert a.launch_end_ns is not None
            found.append((dry, min(a.start_ns, a.launch_end_ns)))
        dry = a.end_ns if dry is None else max(dry, a.end_ns)
    return found


def measure(spans: Iterable[tuple[int, int]]) -> int:
    """Return the ns covered by at least one span."""
    total, reached = 0, None
    for start, end in sorted(spans):
        if end <= start:
            continue
        begin = start if reached is None else max(start, reached)
        if end > begin:
            total += end - begin
            reached = end
    return total


def _count(total: dict[Any, int], now: dict[Any, int], ns: int) -> None:
    """Give an elementary interval of `ns` to its bucket and to the sums it belongs to."""
    comm = now["moving"] or now["waiting"] or now["waiting pp"]
    if now["compute"]:
        bucket = "compute"
    elif now["moving"]:
        bucket = "exposed_comm"
    elif now["waiting pp"]:
        bucket = "pipeline_bubble"
    elif now["waiting"]:
        bucket = "sync_wait"
    elif now["copy"]:
        bucket = "memcpy"
    elif now["bubble"]:
        bucket = "pipeline_bubble"
    elif now["host"]:
        bucket = "host_bound"
    else:
        bucket = "idle"
    total[bucket] += ns
    if comm:
        total["comm_total"] += ns
        total["overlap" if now["compute"] else "exposed_total"] += ns
    for key in [k for k, active in now.items() if active and isinstance(k, tuple) and k[0] == "role"]:
        total["comm", key[1]] += ns
        if now["compute"]:
            total["overlap", key[1]] += ns
