"""The time budget's truth: waiting told apart, and every instant of a step given to one bucket.

Plain Python and no interval arithmetic: boundaries are sorted and counted through, so that an error shared with the
thing tested is unlikely. Times are in the clock of the rank a row is about, as its file counts them.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from simulator.layout import owner, rank_of, source_of, virtual_stage
from simulator.timeline import host_bound, slots, windows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from simulator.config import Config
    from simulator.engine import Transfer
    from simulator.record import RankTrace, Seen

BUCKETS: Final = ("compute", "exposed_comm", "sync_wait", "pipeline_bubble", "memcpy", "host_bound", "idle")
Row = dict[str, Any]


class BudgetTruth:
    """Truth as seen by someone who has the traces of `traces` and nothing else (`joined`: and joins them)."""

    def __init__(self, config: Config, traces: Sequence[RankTrace], *, joined: bool) -> None:
        self.config = config
        self.traces = list(traces)
        self.joined = joined and len(traces) > 1
        self.windows = {t.place.rank: windows(t) for t in traces}
        self.slots = slots(traces)
        self._clocks = {t.place.rank: t.clock for t in traces}
        self._slot_ends = {(s.rank, s.step, s.kind, s.microbatch, s.chunk): s.end_ns for s in self.slots}
        self._numbers: dict[int, int] = {}
        self._recorded: dict[int, list[Seen]] = defaultdict(list)
        for trace in traces:
            for activity in trace.activities:
                if activity.launch_start_ns is None:
                    continue  # an orphan: nothing says what it was
                for transfer in activity.source.transfers:
                    self._recorded[id(transfer)].append(activity)
                    self._numbers.setdefault(id(transfer), len(self._numbers))

    # ---- waiting ----

    def wait_end(self, activity: Seen) -> int:
        """Return w of a communication: waiting is [start, w), moving [w, end)."""
        start, end = activity.start_ns, activity.end_ns
        if not self.joined or activity.launch_start_ns is None:
            return start
        transfers = activity.source.transfers
        members = [m for t in transfers for m in self._recorded[id(t)]]
        if len({m.rank for m in members}) < 2:
            return start
        if transfers[0].symmetric:
            return end - min(m.end_ns - m.start_ns for m in members)
        # between two stages nobody has to record the peer
        if (self.config.p2p_peers or self.config.pp == 2) and self.config.p2p == "async":
            reached = max(m.source.start_ns for m in members)
        else:
            ends = [self._produced(message) for message in activity.tags["received"]]
            if not ends or None in ends:
                return end
            reached = max(e for e in ends if e is not None)
        return min(max(self._clocks[activity.rank].shows(reached), start), end)

    def _producer(self, message: tuple[Any, ...]) -> tuple[int, int, str, int, int] | None:
        """Return (rank, step, kind, micro-batch, chunk) of the slot whose output a message is."""
        step, kind, i, virtual, dp, cp, tp = message
        source = source_of(self.config, kind, virtual)
        if source is None:
            return None
        stage, chunk = owner(self.config, source)
        return rank_of(self.config, stage, dp, cp, tp), step, kind, i, chunk

    def _produced(self, message: tuple[Any, ...]) -> int | None:
        producer = self._producer(message)
        return None if producer is None else self._slot_ends.get(producer)

    def _rendezvous(self) -> list[tuple[Transfer, list[Seen]]]:
        """Return every transfer that some rank recorded, with the kernels recorded for it."""
        found: dict[int, Transfer] = {}
        for trace in self.traces:
            for activity in trace.activities:
                for transfer in activity.source.transfers:
                    found.setdefault(id(transfer), transfer)
        return [(transfer, self._recorded[key]) for key, transfer in found.items() if key in self._recorded]

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
            if before.step != after.step:
                continue
            virtual = virtual_stage(c, place.stage, after.chunk)
            message = (after.step, after.kind, after.microbatch, virtual, place.dp, place.cp, place.tp)
            sent = self._produced(message)
            if sent is not None and sent > before.end_ns:
                found.append((shows(before.end_ns), shows(min(sent, after.start_ns))))
        return found

    def waits(self) -> list[Row]:
        """One row a communication that is no orphan: what it was, where waiting ends, and when it was in truth.

        `instance` numbers the rendezvous (the first one's, of a kernel with several): members share it. `correlation`
        finds the kernel in the rank's file. `true_start_ns`, `true_end_ns`: on the one true clock.
        """
        return [
            {
                "rank": a.rank,
                "correlation": a.correlation,
                "instance": self._numbers[id(a.source.transfers[0])],
                "start_ns": a.start_ns,
                "end_ns": a.end_ns,
                "wait_end_ns": self.wait_end(a),
                "role": a.tags["role"],
                "op": a.tags["op"],
                "group": a.tags["group"],
                "sequence": a.tags.get("sequence"),
                "step": a.tags["run_step"],
                "bytes": a.tags["bytes"],
                "true_start_ns": a.source.start_ns,
                "true_end_ns": a.source.end_ns,
            }
            for t in self.traces
            for a in t.activities
            if a.kind == "comm" and a.launch_start_ns is not None
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
                role = a.tags["role"] if a.launch_start_ns is not None else "unknown"
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
