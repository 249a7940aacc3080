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

import textwrap
from typing import TYPE_CHECKING, Final

import polars as pl

from tracetool.join import disagree, hangtables, rascounts
from tracetool.join.diagnose import Diagnosis, diagnose
from tracetool.join.hangstate import State, by_order, gather, rank_text
from tracetool.join.launches import launch_order
from tracetool.results import Chart, Finding, Headline, Result, Where, no_saving, skipped

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tracetool.registry import RankView, RunView
    from tracetool.settings import Settings
    from tracetool.tables import Tables

TITLE = "Hang post-mortem"
NEEDS = ("in_flight",)

_OLDEST_KEPT: Final = 16
_NEWEST_KEPT: Final = 8
_P2P_KEPT: Final = 64
_LAUNCHES_KEPT: Final = 64
_WIDTH: Final = 80
_STACK_FRAMES: Final = 3
_TABLE_ROWS: Final = 200

_SAYS: Final = {
    "never_launched": "never launched what the others wait for (CPU side)",
    "stuck_in_collective": "launched it and never finished (GPU side)",
    "mismatched_arguments": "called a collective with other arguments than its peers",
    "deadlock": "launched two groups' operations in opposite order",
    "no_dump": "is waited for and left no dump",
}
_NEXT: Final = {
    "never_launched": "py-spy dump on {ranks}: data loader, GIL, checkpoint, exception?",
    "stuck_in_collective": "dmesg, nvidia-smi -q at {ranks}: Xid, ECC, a kernel without end.",
    "mismatched_arguments": "compare the code path of {ranks} with the peers'.",
    "deadlock": "launch the groups' operations in one order on {ranks}.",
    "no_dump": "log and exit code of {ranks}: out of memory, signal, lost node?",
    "all_inside": "check links and NICs: NCCL_DEBUG=INFO, ibstat, nvidia-smi nvlink -e.",
    "none": "if it did hang, dump while it hangs: TORCH_NCCL_DUMP_ON_TIMEOUT=1.",
    "unknown": "dumps of all ranks: TORCH_FR_BUFFER_SIZE, TORCH_NCCL_DUMP_ON_TIMEOUT=1.",
}

_OPS: Final = (
    "rank", "source", "record", "group", "seq", "p2p_seq", "is_p2p", "op", "name", "peer", "in_sizes", "out_sizes",
    "in_elems", "out_elems", "bytes", "dtype", "in_flight", "created_unix_ns", "timeout_ns", "duration_ns", "stack",
    "thread",
)  # fmt: skip


def per_rank(rank: RankView, facts: Tables, settings: Settings) -> Tables:  # noqa: ARG001 - the contract's signature
    """Reduce one rank to what it has in flight, what it finished last and what its counters say."""
    dumps = rank.table("dumps")
    if dumps.is_empty():
        return {}
    dumps = _newest(dumps)
    sources = dumps["source"].cast(pl.String).to_list()
    text = pl.col(pl.Categorical).cast(pl.String)
    records = rank.table("collectives", _OPS).with_columns(text).filter(pl.col("source").is_in(sources))
    records = records.with_columns(
        number=pl.when("is_p2p").then("p2p_seq").otherwise("seq"), finished=~pl.col("in_flight")
    ).sort("record", maintain_order=True)
    records = records.with_columns(
        pl.col("in_flight", "finished").fill_null(False)
    )  # a log: launched, no more is known
    groups = rank.table("process_groups").select("rank", "group", "desc", "ranks")
    # of several sources the one that lists the ranks counts; contradictions are told apart
    groups = groups.sort("group", pl.col("ranks").is_null(), pl.col("desc").is_null(), maintain_order=True)
    groups = groups.unique("group", keep="first", maintain_order=True)
    status = rank.table("group_status").with_columns(text).filter(pl.col("source").is_in(sources))
    return {
        "hangs_ops": _kept(records),
        "hangs_lanes": _lanes(records),
        "hangs_launches": _launches(records),
        "hangs_status": _status(status, groups),
        "hangs_groups": groups.with_columns(
            ranks=pl.Series(
                [rank_text(ranks) if ranks is not None else None for ranks in groups["ranks"].to_list()],
                dtype=pl.String,
            )
        ).sort("group"),
        "hangs_dumps": dumps.with_columns(text),
        "hangs_ras": _ras(rank, text),
        "hangs_told": disagree.told(rank.table),
    }


def _ras(rank: RankView, text: pl.Expr) -> pl.DataFrame:
    asked = rank.table("dumps", ("source", "kind", "file_unix_ns")).with_columns(text).filter(kind="service")
    times = dict(asked.select("source", "file_unix_ns").drop_nulls().iter_rows())
    return rascounts.counts(rank.table("log_facts").with_columns(text), times)


def _newest(dumps: pl.DataFrame) -> pl.DataFrame:
    """Keep the newest flight-recorder dump of a rank; without any, all logs that tell of it."""
    own = dumps.filter(pl.col("kind") != "service")
    recorders = own.filter(pl.col("kind") == "recorder")
    if recorders.is_empty():
        return (dumps if own.is_empty() else own).sort(pl.col("source").cast(pl.String))
    order = ["newest_unix_ns", "file_unix_ns", pl.col("source").cast(pl.String)]
    return recorders.sort(order, nulls_last=False).tail(1)


def _kept(records: pl.DataFrame) -> pl.DataFrame:
    """Keep the oldest records in flight and the newest finished ones of each group and kind."""
    lane = ["group", "is_p2p"]
    place = pl.col("number").rank("dense").over([*lane, "in_flight"]).cast(pl.Int64) - 1
    back = (-pl.col("number")).rank("dense").over([*lane, "in_flight"]).cast(pl.Int64) - 1
    numbered = records.with_columns(place=place, _back=back, _nth=pl.int_range(pl.len()).over([*lane, "in_flight"]))
    flying = pl.col("in_flight") & (pl.col("place") < _OLDEST_KEPT) & (pl.col("_nth") < _P2P_KEPT)
    finished = ~pl.col("in_flight") & (pl.col("_back") < _NEWEST_KEPT) & (pl.col("place") >= 0)
    last = pl.col("record") == pl.col("record").max()
    return numbered.filter((flying | finished | last).fill_null(False)).drop(
        "_back", "_nth", "seq", "p2p_seq", "finished"
    )


def _launches(records: pl.DataFrame) -> pl.DataFrame:
    """Return when the newest collectives of each group were launched."""
    told = records.filter(~pl.col("is_p2p"), pl.col("group").is_not_null()).drop_nulls(["number", "created_unix_ns"])
    newest = pl.col("number") > pl.col("number").max().over("group") - _LAUNCHES_KEPT
    columns = ("rank", "group", "number", "created_unix_ns")
    return told.filter(newest).select(columns).unique(["group", "number"], keep="first", maintain_order=True)


def _lanes(records: pl.DataFrame) -> pl.DataFrame:
    """Return how far the rank has come in each group, collectives apart from sends and receives."""
    flying = pl.col("in_flight")
    return (
        records.drop_nulls("number")
        .group_by("rank", "group", "is_p2p")
        .agg(
            pl.col("number").filter(flying).min().alias("oldest"),
            pl.col("record")
            .filter(flying & (pl.col("number") == pl.col("number").filter(flying).min()))
            .min()
            .alias("order"),
            pl.col("number").max().alias("newest"),
            pl.col("number").filter("finished").max().alias("done"),
            (pl.col("is_p2p").any() | (pl.col("p2p_seq").fill_null(0) > 0).any()).alias("mixes"),
            flying.sum().cast(pl.Int64).alias("flights"),
        )
        .sort("group", "is_p2p")
    )


def _status(status: pl.DataFrame, groups: pl.DataFrame) -> pl.DataFrame:
    """Return the rank's counters with the group they belong to, told by its records or by the order of creation."""
    known = dict(status.drop_nulls("group").select("local_id", "group").iter_rows())
    # a log beside the dump names communicators by other ids than the dump does its groups
    names_in_order = [name for name in groups["group"].to_list() if name.isdecimal()]
    ordered = by_order(status["local_id"].drop_nulls().to_list(), names_in_order) if status.height else None
    agrees = all(ordered.get(local) == name for local, name in known.items()) if ordered and known else None
    by_place = [ordered.get(local) if ordered and local else None for local in status["local_id"].to_list()]
    told = status["group"].to_list()
    descriptions = dict(groups.select("group", "desc").iter_rows())
    names = [a or b for a, b in zip(told, by_place, strict=True)]
    return status.with_columns(
        group=pl.Series(names, dtype=pl.String),
        basis=pl.Series(
            ["records" if a else "order" if b else None for a, b in zip(told, by_place, strict=True)], dtype=pl.String
        ),
        desc=pl.Series([descriptions.get(name) for name in names], dtype=pl.String),
        order_agrees=pl.lit(agrees, dtype=pl.Boolean),
    ).sort("local_id", "group", "source")


# ---- reduce ----


def analyze(parts: Tables, run: RunView, settings: Settings) -> Result:
    """Diagnose the run and tell it: verdict, waiting, in flight, coverage."""
    if "hangs_dumps" not in parts or parts["hangs_dumps"].is_empty():
        return skipped("no rank left a flight-recorder dump or NCCL log.")
    own = {name.removeprefix("hangs_"): table for name, table in parts.items()}
    ras = rascounts.answers(own["ras"])
    contradictions = disagree.contradictions(own["told"])
    beside = [*disagree.sentences(contradictions), *_silent_to_ras(ras, own["dumps"])]
    counted = bool((own["dumps"]["kind"] == "service").all())
    if counted:
        own = rascounts.as_counters(own, ras)
    else:
        by_dump = pl.col("rank").is_in(own["dumps"].filter(pl.col("kind") != "service")["rank"].to_list())
        own = {name: table.filter(by_dump) for name, table in own.items()}
    incomplete = frozenset(run.sources.filter(~pl.col("complete"))["path"].to_list())
    state = gather(own, incomplete, settings.world_size or run.world_size)
    written = dict(own["dumps"].select("rank", "file_unix_ns").drop_nulls().iter_rows())
    verdict = diagnose(state, written)
    verdict = rascounts.judge(verdict, ras) if counted else verdict
    hosts = dict(run.ranks.select("rank", "host").drop_nulls().iter_rows())
    tables = {
        "culprits": hangtables.culprits(state, verdict, hosts, _TABLE_ROWS),
        "waiting": hangtables.waiting(state, verdict, _TABLE_ROWS),
        "in_flight": hangtables.in_flight(state, written, _TABLE_ROWS),
        "coverage": hangtables.coverage(state, own["dumps"], incomplete),
        "launch_order": launch_order(state, own["launches"]).head(_TABLE_ROWS),
        "disagreements": contradictions.head(_TABLE_ROWS),
    }
    operation = hangtables.call(state, verdict.operation) if verdict.operation else {}
    told = _verdict(state, verdict, tables, operation, hosts, counted=counted)
    lines = [line for _, line in told]
    return Result(
        headline=[Headline("Hang", lines[0], "text", 40, f"confidence {verdict.confidence}")],
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
        },
        tables={"verdict": pl.DataFrame(told, schema={"part": pl.String, "line": pl.String}, orient="row"), **tables},
        findings=_findings(verdict, lines, tables),
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
    return [f"RAS says of {_ranks(gone)}: {states}; yet {'it' if len(gone) == 1 else 'they'} left a dump or log."]


# ---- words ----


def _verdict(
    state: State,
    verdict: Diagnosis,
    tables: Mapping[str, pl.DataFrame],
    operation: Mapping[str, object],
    hosts: Mapping[int, str],
    *,
    counted: bool,
) -> list[tuple[str, str]]:
    """Return the verdict as (what a line tells, line): at most nine lines of 80 columns, the culprits first."""
    lines = [
        ("who", _who(verdict, hosts, counted=counted)),
        ("cause", f"Cause: {verdict.cause}, confidence {verdict.confidence}."),
        ("why", f"Why: {verdict.why[0]}"),
    ]
    if operation:
        group = " ".join(str(operation[key]) for key in ("group", "group_desc") if operation[key])
        sizes = " ".join(str(operation[key]) for key in ("in_sizes", "dtype") if operation[key])
        called = f"{operation['op'] or 'unknown'} seq {operation['seq']} {sizes}"
        lines.append(("operation", f"Operation: {called}".rstrip()))
        lines.append(("group", f"  of group {group}, ranks {operation['group_ranks']}"))
    for row in tables["waiting"].head(1).iter_rows(named=True):
        verb = "waits" if row["count"] == 1 else "wait"
        told = f"{row['op'] or 'unknown'} seq {row['seq']}"
        lines.append(("waiting", f"{row['ranks']} {verb} for {row['waits_for']} ({told})"))
    stacks = tables["waiting"].drop_nulls("stack")
    if stacks.height:
        lines.append(("stack", f"Waiting in {_short_stack(stacks['stack'][0])}"))
    lines.append(("coverage", _covered(state, tables["coverage"])))
    lines.append(("next", "Next: " + _NEXT[verdict.cause].format(ranks=_ranks(verdict.culprits))))
    long = {line for _, line in lines if len(line) > _WIDTH}
    return [(part, textwrap.shorten(line, _WIDTH, placeholder=" …") if line in long else line) for part, line in lines]


def _who(verdict: Diagnosis, hosts: Mapping[int, str], *, counted: bool) -> str:
    if verdict.cause == "none":
        return "No hang was found."
    if verdict.cause == "all_inside":
        return "No rank is to blame: every member is inside the same operation."
    if not verdict.culprits:
        return "It cannot be told which rank is to blame."
    places = sorted({hosts[rank] for rank in verdict.culprits if rank in hosts})
    where = f" on {', '.join(places[:3])}{', …' if len(places) > 3 else ''}" if places else ""  # noqa: PLR2004 - as shown
    says = _SAYS[verdict.cause]
    if counted and verdict.cause == "no_dump":
        says = "does not answer RAS" if len(verdict.culprits) == 1 else "do not answer RAS"
    if len(verdict.culprits) > 1:
        says = says.replace("is waited for and left", "are waited for and left").replace(" its peers", " their peers")
    sentence = f"{_ranks(verdict.culprits)}{where} {says}."
    return sentence[0].upper() + sentence[1:]


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {rank_text(ranks)}"


def _short_stack(stack: str) -> str:
    """Return the innermost frames outside torch, as `function file:line < …`."""
    frames = [line.split(" ", 1) for line in stack.split("\n") if " " in line]
    own = [frame for frame in frames if "/torch/" not in frame[1]] or frames
    return " < ".join(f"{function} {place.rpartition('/')[2]}" for function, place in own[:_STACK_FRAMES])


def _covered(state: State, coverage: pl.DataFrame) -> str:
    """Return what the verdict rests on: how many dumps of how many ranks, and what they lack."""
    read = coverage.filter(pl.col("state") == "read")
    versions = sorted({version for version in read["version"].to_list() if version})
    libraries = sorted({library for library in read["library"].to_list() if library})
    text = f"Coverage: {len(state.known)} of {len(state.world)} ranks told"
    missing = sorted(set(state.world) - state.known)
    text += f", none from {rank_text(missing)}" if missing else ""
    text += f", format {'/'.join(versions)}" if versions else ""
    text += f", library {'/'.join(libraries)}" if libraries else ""
    text += ", only active records" if bool(read["only_active"].fill_null(False).any()) else ""
    return text + "."


def _findings(verdict: Diagnosis, lines: Sequence[str], tables: Mapping[str, pl.DataFrame]) -> list[Finding]:
    if verdict.cause == "none":
        return []
    shown = next(name for name in ("waiting", "in_flight", "coverage") if tables[name].height or name == "coverage")
    return [
        Finding(
            id=f"hangs.{verdict.cause}",
            analysis="hangs",
            severity="critical" if verdict.culprits and verdict.confidence != "low" else "warning",
            title=lines[0],
            detail=" ".join(verdict.why),
            advice=_NEXT[verdict.cause].format(ranks=_ranks(verdict.culprits)),
            confidence=verdict.confidence,
            confidence_why=verdict.why[-1],
            saving=no_saving(),
            evidence=((shown, (0,)),),
            where=Where(ranks=verdict.culprits),
        )
    ]


def _charts(tables: Mapping[str, pl.DataFrame]) -> list[Chart]:
    charts = []
    if tables["waiting"].height:
        note = "Ranks that wait in one operation, and for whom: the length is how many wait."
        charts.append(Chart("bars", "Who waits for whom", "waiting", "edge", y=("count",), unit="count", note=note))
    if tables["in_flight"].height:
        note = "The oldest operation in flight of each group: the length is how many ranks are in it."
        charts.append(Chart("bars", "Operations in flight", "in_flight", "call", y=("count",), unit="count", note=note))
    return charts


def _text(value: object) -> str | None:
    return str(value) if value is not None else None
