"""Post-mortem of a job that hung: which ranks, why, in which operation, and how sure that is.

Sources: flight-recorder dumps and the lines of PyTorch's watchdog; where no rank left either, what NCCL's RAS counted
(tracetool/join/rascounts.py). An operation is *in flight* when a
rank launched it and nothing proves it complete. For each rank, group and kind the oldest one in flight waits for
every member that has not launched it; what the waiting ends in is the cause (tracetool/join/diagnose.py):

* `never_launched`: waited for, with nothing of its own in flight: look at the process (CPU side).
* `stuck_in_collective`: it still has in flight what its peers have completed: look at the GPU.
* `mismatched_arguments`: one operation, called with different arguments; the minority is named.
* `deadlock`: ranks that launched two groups' operations in opposite order.
* `no_dump`: waited for, and nothing is known of it. `all_inside`: everybody launched it: look at the network.
* `none`: nothing in flight, or only for less than a tenth of the timeout. `unknown`: cannot be told.

A rank that waits is no culprit. `confidence` falls where dumps are missing or sides are equally large. The rules
were proposed for incidents labelled by NVIDIA's resiliency extension and by Meta (see the documentation of
`torchfrtrace`); operations are numbered from 1 in each group, sends and receives apart from collectives.

`launch_order` says who launches last by creation times (tracetool/join/launches.py): the straggler's place, as far
as clocks agree.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

from tracetool.join import disagree, hangtables, rascounts
from tracetool.join.diagnose import Diagnosis, beside_older, diagnose, several_jobs
from tracetool.join.dumpsets import choose
from tracetool.join.hangrank import reduce_rank
from tracetool.join.hangstate import gather
from tracetool.join.hangwords import Facts, next_action, ranks_named, sentences, who
from tracetool.join.launches import launch_order
from tracetool.join.waitboxes import boxes
from tracetool.results import Chart, Finding, Headline, Result, Where, no_saving, skipped

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tracetool.registry import RankView, RunView
    from tracetool.settings import Settings
    from tracetool.tables import Tables

TITLE = "Hang post-mortem"
NEEDS = ("in_flight",)

_TABLE_ROWS: Final = 200
_LONGEST_FIGURE: Final = 24


def per_rank(rank: RankView, facts: Tables, settings: Settings) -> Tables:  # noqa: ARG001 - the contract's signature
    """Reduce one rank to what it has in flight, what it finished last and what its counters say."""
    return {f"hangs_{name}": table for name, table in reduce_rank(rank.table).items()}


def analyze(parts: Tables, run: RunView, settings: Settings) -> Result:
    """Diagnose the run and tell it: verdict, waiting, in flight, coverage."""
    if "hangs_dumps" not in parts or parts["hangs_dumps"].is_empty():
        return skipped("no rank left a flight-recorder dump or NCCL log.")
    own = {name.removeprefix("hangs_"): table for name, table in parts.items()}
    ras = rascounts.answers(own["ras"])
    contradictions = disagree.contradictions(own["told"])
    beside = [*disagree.sentences(contradictions), *_silent_to_ras(ras, own["dumps"])]
    every = own["dumps"]
    counted = bool((every["kind"] == "service").all())
    if not counted:
        by_dump = pl.col("rank").is_in(every.filter(pl.col("kind") != "service")["rank"].to_list())
        own = {name: table.filter(by_dump) for name, table in own.items()}
    own, choice = choose(own)
    if counted:
        own = rascounts.as_counters(own, ras)
    incomplete = frozenset(run.sources.filter(~pl.col("complete"))["path"].to_list())
    left = every.filter(choice.left_out())
    size = settings.world_size or (run.world_size if left.is_empty() else None)  # an earlier start may have had another
    state = gather(own, incomplete, size)
    written = dict(own["dumps"].select("rank", "file_unix_ns").drop_nulls().iter_rows())
    verdict = several_jobs(choice.jobs) if choice.jobs else diagnose(state, written)
    verdict = rascounts.judge(verdict, ras) if counted else verdict
    verdict = beside_older(verdict, choice.sentences())
    hosts = dict(run.ranks.select("rank", "host").drop_nulls().iter_rows())
    tables = {
        "culprits": hangtables.culprits(state, verdict, hosts, _TABLE_ROWS),
        "wait_graph": boxes(state, verdict),
        "waiting": hangtables.waiting(state, verdict, _TABLE_ROWS),
        "in_flight": hangtables.in_flight(state, written, _TABLE_ROWS),
        "coverage": hangtables.coverage(state, own["dumps"], left, incomplete),
        "launch_order": launch_order(state, own["launches"]).head(_TABLE_ROWS),
        "disagreements": contradictions.head(_TABLE_ROWS),
    }
    operation = hangtables.call(state, verdict.operation) if verdict.operation else {}
    facts = Facts(state, verdict, operation, tables, hosts, counted, choice)
    told = sentences(facts)
    return Result(
        headline=[_headline(verdict)],
        metrics={
            "culprits": verdict.culprits,
            "cause": verdict.cause,
            "confidence": verdict.confidence,
            "group": _text(operation.get("group")),
            "op": _text(operation.get("op")),
            "seq": verdict.operation[2] if verdict.operation else None,
            "ranks_waiting": len({edge.waiter for edge in verdict.edges}),
            "ranks_expected": len(state.world),
            "dumps_missing": len(set(state.world) - state.known),
            "dumps_left_aside": left.height,
        },
        tables={"verdict": pl.DataFrame(told, schema={"part": pl.String, "line": pl.String}, orient="row"), **tables},
        findings=_findings(facts),
        charts=_charts(tables),
        notes=(*verdict.why, *beside),
    )


def _silent_to_ras(ras: rascounts.Answers, dumps: pl.DataFrame) -> list[str]:
    """Say where RAS misses a rank that left a dump or log: it was alive when it wrote that."""
    left = set(dumps.filter(pl.col("kind") != "service")["rank"].to_list())
    gone = sorted(left & ras.missing.keys())
    if not gone:
        return []
    states = ", ".join(sorted({ras.missing[rank] for rank in gone}))
    return [f"RAS says of {ranks_named(gone)}: {states}; yet {'it' if len(gone) == 1 else 'they'} left a dump or log."]


def _headline(verdict: Diagnosis) -> Headline:
    """Return the key figure: the culprits, shortly."""
    sure = f"{verdict.cause}, confidence {verdict.confidence}"
    if not verdict.culprits:
        return Headline("Hang", verdict.cause, "text", 40, f"confidence {verdict.confidence}")
    named = ranks_named(verdict.culprits)
    short = named if len(named) <= _LONGEST_FIGURE else f"{len(verdict.culprits)} ranks"
    return Headline("Culprit" if len(verdict.culprits) == 1 else "Culprits", short, "text", 40, sure)


def _findings(facts: Facts) -> list[Finding]:
    verdict, tables = facts.verdict, facts.tables
    if verdict.cause == "none":
        return []
    shown = next(name for name in ("waiting", "in_flight", "coverage") if tables[name].height or name == "coverage")
    return [
        Finding(
            id=f"hangs.{verdict.cause}",
            analysis="hangs",
            severity="critical" if verdict.culprits and verdict.confidence != "low" else "warning",
            title=who(facts),
            detail=" ".join(verdict.why),
            advice=next_action(facts),
            confidence=verdict.confidence,
            confidence_why=verdict.why[-1],
            saving=no_saving(),
            evidence=((shown, (0,)),),
            where=Where(ranks=verdict.culprits),
        )
    ]


def _charts(tables: Mapping[str, pl.DataFrame]) -> list[Chart]:
    if not tables["wait_graph"]["waits_for"].list.len().sum():
        return []  # nobody waits
    note = (
        "Each box is the ranks in one state; a line leads from those who wait to those they wait for, "
        "which stand at its arrow. What everything hangs on is on top."
    )
    return [
        Chart("graph", "Who waits for whom", "wait_graph", "ranks", x="box", y=("waits_for",), series="role",
              size="count", unit="count", note=note, options={"text": "state", "detail": "groups"})
    ]  # fmt: skip


def _text(value: object) -> str | None:
    return str(value) if value is not None else None
