"""The truth about a run, from the simulator's own event list and the words of the definitions."""

from __future__ import annotations

from collections import defaultdict

from simulator.budget import BudgetTruth, Row
from simulator.timeline import measure


class Truth(BudgetTruth):
    """Truth as seen by someone who has these traces and nothing else; `joined`: and joins them.

    Every method returns plain rows. Times are those of the rank's own file unless the name says `true`.
    """

    def kernel_counts(self) -> dict[tuple[int, str], int]:
        """Return the number of kernels by rank and name."""
        counts: dict[tuple[int, str], int] = defaultdict(int)
        for trace in self.traces:
            for a in trace.activities:
                if a.kind in ("compute", "comm"):
                    counts[a.rank, a.name] += 1
        return dict(counts)

    def flops(self) -> list[Row]:
        """One row a rank and step: model_flops, hardware_flops with full attention, and *_causal with half of it.

        `by_dtype` holds the same four figures by number format.
        """
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
                    row.setdefault("by_dtype", {}).update(_by_dtype(done, which))
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

    def instances(self) -> list[Row]:
        """One row a rendezvous: group, op, sequence, role, size of the group, bytes, ranks present, transfer_ns.

        Transfer: the least duration over the members (symmetric), else the end minus the last arrival, in true time.
        """
        rows = []
        for transfer, members in self._rendezvous():
            first = members[0].tags
            if transfer.symmetric:
                ns = min(m.end_ns - m.start_ns for m in members)
            else:
                ns = max(m.source.end_ns for m in members) - max(m.source.start_ns for m in members)
            rows.append(
                {
                    "group": first["group"],
                    "role": first["role"],
                    "op": first["op"],
                    "sequence": first.get("sequence"),
                    "size": transfer.expected,
                    "bytes": first["bytes"],
                    "ranks": sorted(m.rank for m in members),
                    "step": first["run_step"],
                    "transfer_ns": ns,
                    "nominal_ns": transfer.ns,
                }
            )
        return rows

    def slot_rows(self) -> list[Row]:
        """One row a slot: rank, step, stage, kind, microbatch, chunk, start_ns, end_ns, true_start_ns, true_end_ns."""
        places = {t.place.rank: t.place for t in self.traces}
        clocks = {t.place.rank: t.clock for t in self.traces}
        return [
            {
                "rank": s.rank,
                "step": s.step,
                "stage": places[s.rank].stage,
                "kind": s.kind,
                "microbatch": s.microbatch,
                "chunk": s.chunk,
                "start_ns": clocks[s.rank].shows(s.start_ns),
                "end_ns": clocks[s.rank].shows(s.end_ns),
                "true_start_ns": s.start_ns,
                "true_end_ns": s.end_ns,
            }
            for s in self.slots
        ]

    def phase_ns(self) -> dict[tuple[int, int, str], int]:
        """Return the ns covered by GPU activity launched in a step, by rank, step and phase."""
        spans: dict[tuple[int, int, str], list[tuple[int, int]]] = defaultdict(list)
        for trace in self.traces:
            for a in trace.activities:
                if a.launch_start_ns is not None and a.tags["run_step"] is not None:
                    key = (a.rank, a.tags["run_step"], a.tags.get("phase", "other"))
                    spans[key].append((a.start_ns, a.end_ns))
        return {key: measure(mine) for key, mine in sorted(spans.items())}


def _by_dtype(done: list[Row], which: str) -> Row:
    """FLOPs with full and with causal attention of these activities, by number format."""
    found: Row = {f"{which}_flops": defaultdict(int), f"{which}_flops_causal": defaultdict(int)}
    for tags in done:
        flops = tags.get(f"{which}_flops", 0)
        if flops:
            found[f"{which}_flops"][tags["dtype"]] += flops
            found[f"{which}_flops_causal"][tags["dtype"]] += flops // 2 if tags.get("attention") else flops
    return found
