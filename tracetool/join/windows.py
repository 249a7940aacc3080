"""The pipeline of one replica: its slots on one clock, the window of every step, and who waited for which stage.

W of a step is [first forward start, last backward end) over the stages of one replica, on aligned clocks. Where stages
were not traced it can still be told by the first stage, which begins and ends it in every schedule whose chunks go
round and whose backwards are whole. A slot's input has been *sent* when the slot that makes it has ended. Between two
slots of a rank the stretch [end of the one, min(start of the next, its input sent)) is a bubble. Until when sends and
receives waited for it stands in join.slotwaits.

What does not add up is not measured: a step in which a stage has not as many forwards as backwards, or stages disagree
on micro-batches. Slots found by launches alone are numbered only where their order is that of GPipe or 1F1B on every
stage and the end stages have no more sends and receives than one chunk has.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

import polars as pl

from tracetool.join.bounds import PAIR_SCHEMA
from tracetool.join.schedule import Recognised, recognise
from tracetool.join.slotwaits import slot_waits

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tracetool.join.clocks import Clocks
    from tracetool.join.schedule import Order

Types = dict[str, "pl.DataType | type[pl.DataType]"]

SLOT_SCHEMA: Final[Types] = {
    "replica": pl.Int32,
    "rank": pl.Int32,
    "step": pl.Int32,
    "iteration": pl.Int32,
    "stage": pl.Int32,
    "chunk": pl.Int32,
    "virtual": pl.Int32,
    "piece": pl.Int32,
    "kind": pl.String,
    "microbatch": pl.Int32,
    "start_ns": pl.Int64,
    "end_ns": pl.Int64,
    "sent_ns": pl.Int64,
    "transfer_ns": pl.Int64,
    "serial": pl.Boolean,
}
"""Slots of all replicas on aligned clocks (Unix ns). sent_ns: when the slot's input was made; transfer_ns: how long it
moved; serial: its receive began only after the slot before had ended. chunk, virtual and microbatch are null where they
could not be told."""

WINDOW_SCHEMA: Final[Types] = {
    "rank": pl.Int32,
    "replica": pl.Int32,
    "stage": pl.Int32,
    "step": pl.Int32,
    "iteration": pl.Int32,
    "start_ns": pl.Int64,
    "end_ns": pl.Int64,
    "first_backward_ns": pl.Int64,
    "last_forward_ns": pl.Int64,
}
"""W of each rank and step in the rank's own clock, with the start of its first backward and end of its last forward."""

TRANSFER_SCHEMA: Final[Types] = {
    "rank": pl.Int32,
    "event": pl.Int64,
    "op": pl.String,
    "launch_start_ns": pl.Int64,
    "start_ns": pl.Int64,
    "end_ns": pl.Int64,
    "basis": pl.String,
}
"""Sends and receives of a pipeline: basis is what is known of their waiting so far."""

_CLOCK: Final = ("offset_ns", "drift_ppm", "t0_ns", "base_unix_ns")
_PAIRS_KEPT: Final = 256


class Structure(NamedTuple):
    """What one replica is made of; chunks and microbatches None: could not be told."""

    replica: int
    ranks: tuple[int, ...]
    stages: int
    chunks: int | None
    microbatches: int | None
    schedule: str
    exact: bool
    why: str
    source: str
    complete: bool
    """All of its stages were traced."""


@dataclass(frozen=True)
class Replica:
    """The pipeline of one replica and what it tells of its ranks."""

    structure: Structure | None
    """None: nothing could be measured; notes say why."""
    slots: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=SLOT_SCHEMA))
    windows: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=WINDOW_SCHEMA))
    bubbles: pl.DataFrame = field(
        default_factory=lambda: pl.DataFrame(schema={"rank": pl.Int32, "start_ns": pl.Int64, "end_ns": pl.Int64})
    )
    waits: pl.DataFrame = field(
        default_factory=lambda: pl.DataFrame(schema={"rank": pl.Int32, "event": pl.Int64, "wait_end_ns": pl.Int64})
    )
    notes: tuple[str, ...] = ()


def replica(number: int, ranks: Sequence[int], slots: pl.DataFrame, transfers: pl.DataFrame, clocks: Clocks) -> Replica:
    """Put the stages of one replica together.

    `ranks`: all ranks of its group, in the order of the stages; `slots`: table `slots` of those that were traced;
    `transfers`: TRANSFER_SCHEMA of the same.
    """
    here = sorted(set(slots["rank"].to_list()))
    if not here:
        return Replica(None, notes=("no forward or backward slots could be told from the traces of the pipeline",))
    kinds = slots["source"].unique().sort().to_list()
    if len(kinds) > 1:
        return Replica(None, notes=(f"slots of one pipeline come from different signs ({', '.join(kinds)})",))
    placed = _aligned(slots, clocks)
    if placed["component"].n_unique() > 1:
        return Replica(None, notes=("nothing connects the clocks of a pipeline's stages: its bubble is not measured",))
    placed = _placed(placed, ranks)
    good, refused = _consistent(placed)
    notes = (
        [f"{refused} of {refused + len(good)} steps have stages that disagree on slots: not measured"]
        if refused
        else []
    )
    if not good:
        return Replica(None, notes=tuple(notes))
    used = placed.filter(pl.col("iteration").is_in(good))
    found, vee, microbatches, chunks = _recognised(used, ranks, kinds[0], transfers)
    trusted = kinds[0] != "launch" or (found.exact and found.name in ("gpipe", "1f1b"))
    if not trusted and used["step"].null_count():
        why = "without steps or annotations the slots of the pipeline cannot be told apart: its bubble is not measured"
        return Replica(None, notes=(*notes, why))
    linked = _linked(used, trusted=trusted)
    linked = linked.with_columns(own_sent=_own(linked, clocks, "sent"))
    windows = _windows(linked, clocks, number, ranks, vee=vee)
    structure = Structure(
        replica=number,
        ranks=tuple(ranks),
        stages=len(ranks),
        chunks=chunks if trusted else None,
        microbatches=microbatches if trusted else None,
        schedule=found.name,
        exact=found.exact,
        why=found.why,
        source=kinds[0],
        complete=len(here) == len(ranks),
    )
    waits, moved = slot_waits(placed, linked, transfers, trusted=trusted)
    told = linked.join(
        moved, on=["rank", "iteration", "kind", "microbatch", "virtual"], how="left", maintain_order="left"
    ).with_columns(serial=pl.col("received_ns") >= pl.col("end_ns").shift(1).over("rank", "iteration"))
    unknown = pl.lit(None, pl.Int32)
    return Replica(
        structure,
        slots=told.with_columns(
            replica=pl.lit(number, pl.Int32),
            start_ns="aligned_start",
            end_ns="aligned_end",
            sent_ns="sent",
            **({} if trusted else {"chunk": unknown, "virtual": unknown, "microbatch": unknown}),
        )
        .sort("rank", "iteration", "start_ns", "end_ns", "kind")
        .select(pl.col(name).cast(dtype) for name, dtype in SLOT_SCHEMA.items()),
        windows=windows,
        bubbles=_bubbles(linked),
        waits=waits,
        notes=tuple(notes),
    )


def slot_pairs(
    ranks: Sequence[int], slots: pl.DataFrame, transfers: pl.DataFrame, bases: Mapping[int, int]
) -> pl.DataFrame:
    """Return what slots prove about clocks, as bounds.PAIR_SCHEMA: none begins before its input has been made.

    Arguments as for `replica`; `bases`: Unix time of clock value 0 of each rank. Of each pair of ranks and direction
    the tightest are kept. Empty where slots cannot be numbered for certain.
    """
    kinds = slots["source"].unique().to_list()
    none = pl.DataFrame(schema=PAIR_SCHEMA)
    if len(kinds) != 1:
        return none
    base = pl.col("rank").replace_strict(bases, return_dtype=pl.Int64)
    # no common clock yet: stages stand in the order of the group, and ends in each rank's own Unix time
    unix = slots.with_columns(aligned_start=pl.lit(None, pl.Int64), aligned_end=pl.col("end_ns") + base)
    placed = _placed(unix, ranks)
    good, _ = _consistent(placed)
    if not good:
        return none
    used = placed.filter(pl.col("iteration").is_in(good))
    found, *_ = _recognised(used, ranks, kinds[0], transfers)
    if kinds[0] == "launch" and not (found.exact and found.name in ("gpipe", "1f1b")):
        return none
    return (
        _linked(used, trusted=True)
        .filter(pl.col("sent").is_not_null() & (pl.col("source_rank") != pl.col("rank")))
        .select(
            source="source_rank", target="rank", send_start_unix_ns="sent", recv_end_unix_ns=pl.col("start_ns") + base
        )
        .sort("source", "target", pl.col("recv_end_unix_ns") - pl.col("send_start_unix_ns"), "recv_end_unix_ns")
        .group_by("source", "target", maintain_order=True)
        .head(_PAIRS_KEPT)
        .select(pl.col(name).cast(dtype) for name, dtype in PAIR_SCHEMA.items())
    )


def _aligned(slots: pl.DataFrame, clocks: Clocks) -> pl.DataFrame:
    """Return the slots with their ends on the common clock and the columns of their rank's clock."""
    ends = clocks.align(slots, "end_ns")["aligned_ns"]
    return clocks.align(slots, "start_ns").rename({"aligned_ns": "aligned_start"}).with_columns(aligned_end=ends)


def _own(frame: pl.DataFrame, clocks: Clocks, column: str) -> pl.Series:
    """Bring aligned times of a table with the columns of a clock into each row's own clock."""
    return frame.select(own=clocks.own_time(frame, column))["own"]


def _placed(slots: pl.DataFrame, ranks: Sequence[int]) -> pl.DataFrame:
    """Add stage (of the rank), virtual and chunk to each slot.

    Ranges that name virtual stages place their ranks; else the order in which ranks begin their first forward, where
    it is the same in every step, and else the order of the group.
    """
    if slots["stage"].null_count() == 0:
        firsts = slots.group_by("rank").agg(first=pl.col("stage").min()).sort("first", "rank")
        complete = firsts.height == len(ranks)
        stage_of = {r: n if complete else f % len(ranks) for n, (r, f) in enumerate(firsts.iter_rows())}
        chunk = pl.col("stage").rank("dense").over("rank") - 1
        named = slots.with_columns(virtual="stage", chunk=chunk.cast(pl.Int32))
        return named.with_columns(stage=pl.col("rank").replace_strict(stage_of, return_dtype=pl.Int32))
    order = list(ranks)
    begun = (
        slots.filter(pl.col("kind") == "F")
        .group_by("iteration", "rank")
        .agg(first=pl.col("aligned_start").min())
        .sort("iteration", "first", "rank")
    )
    orders = {tuple(part["rank"].to_list()) for part in begun.partition_by("iteration", maintain_order=True)}
    if len(orders) == 1 and len(next(iter(orders))) == len(ranks):
        order = list(next(iter(orders)))
    stage_of = {rank: stage for stage, rank in enumerate(order)}
    stage = pl.col("rank").replace_strict(stage_of, return_dtype=pl.Int32)
    return slots.with_columns(stage=stage, virtual=stage, chunk=pl.lit(0, pl.Int32))


def _consistent(slots: pl.DataFrame) -> tuple[list[int], int]:
    """Return the iterations in which all stages have the same slots, and how many others there are."""
    ranks = slots["rank"].n_unique()
    kind = pl.col("kind")
    cells = slots.group_by("iteration", "rank", "virtual").agg(
        forwards=(kind == "F").sum(),
        bad=(pl.struct("kind", "microbatch").n_unique() < pl.len())
        | ((kind == "F").sum() != (kind == "B").sum())
        | ((kind == "F").sum() != pl.col("microbatch").filter(kind != "W").n_unique()),
    )
    judged = (
        cells.group_by("iteration")
        .agg(
            bad=pl.col("bad").any() | (pl.col("forwards").n_unique() > 1),
            ranks=pl.col("rank").n_unique(),
            stages=pl.col("virtual").n_unique(),
        )
        .sort("iteration")
    )
    good = judged.filter(~pl.col("bad") & (pl.col("ranks") == ranks) & (pl.col("stages") == pl.col("stages").max()))
    return good["iteration"].to_list(), judged.height - good.height


def _recognised(
    slots: pl.DataFrame, ranks: Sequence[int], source: str, transfers: pl.DataFrame
) -> tuple[Recognised, bool, int, int]:
    """Return the schedule, whether chunks stand in a V, the micro-batches and the chunks of a rank."""
    stages = len(ranks)
    held = slots.group_by("stage").agg(virtual=pl.col("virtual").unique().sort()).sort("stage")
    by_stage = {stage: list(virtual) for stage, virtual in held.iter_rows()}
    chunks = max(len(virtual) for virtual in by_stage.values())
    vee = chunks == 2 and all(v == [s, 2 * stages - 1 - s] for s, v in by_stage.items())  # noqa: PLR2004 - a V has two
    loop = all(v == [s + c * stages for c in range(chunks)] for s, v in by_stage.items())
    microbatches = int(slots.filter(pl.col("kind") == "F")["microbatch"].n_unique())
    if not (vee or loop):
        unknown = Recognised("unknown", exact=False, why="chunks stand neither in rounds nor in a V")
        return unknown, vee, microbatches, chunks
    orders = {stage: sorted(_orders(part)) for (stage,), part in slots.partition_by("stage", as_dict=True).items()}
    pieces = slots.group_by("rank", "iteration", "piece").len()
    paired = bool((pieces["len"] > 1).any())
    hints = slots["schedule_hint"].drop_nulls().unique().sort().to_list()
    hint = hints[0] if len(hints) == 1 else None
    found = recognise(orders, stages, microbatches, chunks, vee=vee, paired=paired, hint=hint)
    if source == "launch" and found.name in ("gpipe", "1f1b") and not _one_chunk(slots, transfers, stages, found.name):
        why = "sends and receives of the first and last stage do not show how many chunks there are"
        return Recognised("unknown", exact=False, why=why), vee, microbatches, chunks
    return found, vee, microbatches, chunks


def _orders(slots: pl.DataFrame) -> set[Order]:
    """Return the distinct orders of slots of a stage, in order of their launch."""
    return {
        tuple(part.select("kind", "microbatch", "chunk").iter_rows())
        for part in slots.sort("launch_start_ns", "kind").partition_by("rank", "iteration", maintain_order=True)
    }


def _one_chunk(slots: pl.DataFrame, transfers: pl.DataFrame, stages: int, name: str) -> bool:
    """Say whether the sends and receives of the end stages are as few as those of a single chunk.

    With one chunk the first stage sends each forward and receives each backward, twice as many as forwards; with
    several every chunk but the first also receives and sends. An order that only 1F1B has needs no end stage.
    """
    forwards = slots.filter(pl.col("kind") == "F").group_by("rank", "stage").agg(forwards=pl.len())
    ends = forwards.filter(pl.col("stage").is_in([0, stages - 1]))
    if not ends.height:
        return name == "1f1b"
    steps = slots.select("rank", pl.col("iteration")).unique().group_by("rank").agg(steps=pl.len())
    windows = slots.group_by("rank").agg(first=pl.col("launch_start_ns").min(), last=pl.col("launch_end_ns").max())
    sent = (
        transfers.join(windows, on="rank", how="inner")
        .filter((pl.col("launch_start_ns") >= pl.col("first")) & (pl.col("launch_start_ns") <= pl.col("last")))
        .group_by("rank")
        .agg(sent=pl.len())
    )
    counted = ends.join(sent, on="rank", how="left").join(steps, on="rank").with_columns(pl.col("sent").fill_null(0))
    return bool((counted["sent"] <= 2 * counted["forwards"] + counted["steps"]).all())


def _linked(slots: pl.DataFrame, *, trusted: bool) -> pl.DataFrame:
    """Add to each slot `sent` (aligned and, as own_sent, in its own clock), and `source_rank`; null: nothing comes."""
    last = int(slots["virtual"].to_numpy().max())
    wanted = (
        pl.when(pl.col("kind") == "F")
        .then(pl.col("virtual") - 1)
        .when((pl.col("kind") == "B") & (pl.col("virtual") < last))
        .then(pl.col("virtual") + 1)
    )
    makers = slots.select("iteration", "kind", "microbatch", wanted="virtual", source_rank="rank", sent="aligned_end")
    found = slots.with_columns(wanted=wanted if trusted else pl.lit(None, pl.Int32)).join(
        makers, on=["iteration", "kind", "microbatch", "wanted"], how="left", maintain_order="left"
    )
    return found.sort("rank", "start_ns", "end_ns", "kind")


def _windows(slots: pl.DataFrame, clocks: Clocks, number: int, ranks: Sequence[int], *, vee: bool) -> pl.DataFrame:
    """Return W of each rank and iteration, WINDOW_SCHEMA; none where the stages that begin or end it are missing."""
    here = slots["rank"].n_unique()
    whole = here == len(ranks)
    told_by_first = not vee and not (slots["kind"] == "W").any() and (slots["stage"] == 0).any()
    if not whole and not told_by_first:
        return pl.DataFrame(schema=WINDOW_SCHEMA)
    bounding = slots if whole else slots.filter(pl.col("stage") == 0)
    ends = bounding.group_by("iteration").agg(
        opens=pl.col("aligned_start").filter(pl.col("kind") == "F").min(), closes=pl.col("aligned_end").max()
    )
    mine = slots.group_by("rank", "iteration").agg(
        pl.col("stage", "step", *_CLOCK).first(),
        first_backward_ns=pl.col("start_ns").filter(pl.col("kind") == "B").min(),
        last_forward_ns=pl.col("end_ns").filter(pl.col("kind") == "F").max(),
    )
    both = mine.join(ends, on="iteration", how="inner").sort("rank", "iteration")
    return both.with_columns(
        replica=pl.lit(number, pl.Int32),
        start_ns=_own(both, clocks, "opens"),
        end_ns=_own(both, clocks, "closes"),
    ).select(pl.col(name).cast(dtype) for name, dtype in WINDOW_SCHEMA.items())


def _bubbles(slots: pl.DataFrame) -> pl.DataFrame:
    """Return the stretches between two slots of a rank's step in which the input of the next had not been sent."""
    before = pl.col("end_ns").shift(1).over("rank", "iteration")
    return (
        slots.with_columns(dry=before)
        .select("rank", start_ns="dry", end_ns=pl.min_horizontal("own_sent", "start_ns"), own_sent="own_sent")
        .filter((pl.col("own_sent") > pl.col("start_ns")) & (pl.col("end_ns") > pl.col("start_ns")))
        .select("rank", "start_ns", "end_ns")
        .sort("rank", "start_ns", "end_ns")
    )
