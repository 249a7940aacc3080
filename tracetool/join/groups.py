"""Which communicators are the same one, seen from several ranks, and what each is for.

A group is known by its name *and* its ranks: names are counted per process in some programs and say nothing alone.
Its role comes from its description or name where a framework gives one; else from what is sent over it, and only
where that leaves no doubt; else it is `other`: a wrong role is worse than none.

Names: Megatron-LM `megatron/core/parallel_state.py` (core 0.12: TENSOR_MODEL_PARALLEL_GROUP, …), PyTorch DeviceMesh
(`torch/distributed/device_mesh.py`, 2.9: `mesh_<dimension>`), torchtitan dimensions (`torchtitan/distributed/
parallel_dims.py`: dp_replicate, dp_shard, dp_shard_cp, cp, tp, pp, ep, …), DeepSpeed (`deepspeed/utils/groups.py`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

import polars as pl

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROLES: Final = ("dp", "fsdp", "tp", "sp", "pp", "ep", "cp", "other")
P2P_OPS: Final = ("send", "recv", "send_recv")

SEEN_SCHEMA: Final[dict[str, pl.DataType | type[pl.DataType]]] = {
    "rank": pl.Int32,
    "group": pl.String,
    "desc": pl.String,
    "ranks": pl.List(pl.Int32),
    "size": pl.Int32,
    "op": pl.String,
    "phase": pl.String,
    "count": pl.Int64,
}
"""What every rank tells of its groups: how many communications of each op and phase it took part in."""

_WORDS: Final[tuple[tuple[str, str], ...]] = (
    # groups that span two dimensions or single out some ranks: their traffic is none of the plain roles
    (
        r"(tensor|model).*(and|x).*(data|context|expert)|embedding|intra_distributed_optimizer|model_parallel_group",
        "other",
    ),
    (r"dp_cp|loss|tensor_model_pipeline|replicate.*shard", "other"),
    (r"sequence_data", "dp"),
    (r"expert_tensor", "tp"),
    (r"expert_data|data_modulo_expert|expert_dp|edp", "dp"),
    (r"fsdp|dp_shard|shard|zero", "fsdp"),
    (r"expert|(^|_)ep(_|$)|moe", "ep"),
    (r"context|(^|_)cp(_|$)|ring_attn", "cp"),
    (r"sequence|ulysses|(^|_)sp(_|$)", "sp"),
    (r"pipeline|pipe|(^|_)pp(_|$)", "pp"),
    (r"data|replicate|ddp|(^|_)dp(_|$)", "dp"),
    (r"tensor|(^|_)e?tp(_|$)|model_parallel|(^|_)mp(_|$)", "tp"),
)
_MODEL_PARALLEL: Final = re.compile(r"(tensor|pipeline|expert)_model_parallel")


def role_by_name(text: str | None) -> str | None:
    """Return the role that a group's description or name states; None when it states none."""
    words = re.sub(r"[^a-z0-9]+", "_", (text or "").lower()).removeprefix("mesh_").removesuffix("_with_cp").strip("_")
    if not re.search(r"[a-z]", words) or words in {"undefined", "default_pg", "default", "world"}:
        return None
    megatron = _MODEL_PARALLEL.search(words)
    if megatron and not re.search(r"_and_|embedding|tensor_model_pipeline", words):
        return {"tensor": "tp", "pipeline": "pp", "expert": "ep"}[megatron[1]]
    dimensions = {word for word in words.split("_") if word in {"dp", "tp", "pp", "cp", "ep", "sp"}}
    if len(dimensions) > 1 and "shard" not in words:
        return "other"
    for pattern, role in _WORDS:
        if re.search(pattern, words):
            return role
    return None


def role_by_use(counts: dict[tuple[str, str], int]) -> str:
    """Return the role that (op, phase) → count leaves no doubt of, else `other`.

    Sends and receives that backward never launches: a pipeline (ring attention also sends inside backward).
    Parameters gathered in forward and again in backward, gradients scattered in backward only: fsdp (sequence
    parallelism scatters in forward too; context parallelism gathers keys and values in forward alone, and so does fsdp
    that keeps its parameters: `other`). Gradients scattered and parameters gathered by the optimizer: dp.
    All-reduce in forward and backward alike: tp; in backward alone: dp.
    """
    ops = {op for op, _ in counts}

    def used(op: str, phase: str) -> bool:
        return counts.get((op, phase), 0) > 0

    backward_phases = ("backward", "recompute")
    if ops <= set(P2P_OPS):
        return "other" if any(used(op, phase) for op in P2P_OPS for phase in backward_phases) else "pp"
    if {"all_gather", "reduce_scatter"} <= ops <= {"all_gather", "reduce_scatter", "all_reduce", "broadcast"}:
        scattered_forward = used("reduce_scatter", "forward")
        gathered = {phase for op, phase in counts if op == "all_gather" and used(op, phase)}
        if gathered == {"optimizer"} and not scattered_forward:
            return "dp"
        again = used("all_gather", "backward") and not used("all_gather", "recompute")
        return "fsdp" if used("all_gather", "forward") and again and not scattered_forward else "other"
    if "all_reduce" in ops <= {"all_reduce", "broadcast", "barrier"}:
        forward, backward = used("all_reduce", "forward"), used("all_reduce", "backward")
        if forward and backward:
            return "tp"
        return "dp" if backward else "other"
    return "other"


class Adopted(NamedTuple):
    """Communications that no group was recorded of, given to one by what they do."""

    seen: pl.DataFrame
    """SEEN_SCHEMA, group filled in where it could be told."""
    given: Mapping[str, Mapping[int, tuple[str, ...]]]
    """Group → rank → the operations without a recorded group that are taken for this group's."""
    notes: tuple[str, ...]


_USUAL_ROLE: Final = {"all_reduce": "tp", "send_recv": "pp", "send": "pp", "recv": "pp"}
"""Whose communication it is when a kernel carries no arguments: custom all-reduce kernels belong to tensor
parallelism, coalesced sends and receives to the pipeline."""


WORLD: Final = "world"
WORLD_P2P: Final = "world p2p"
"""Names of the group of all ranks where no trace names any group; sends and receives stand apart, for their role."""


def adopt(seen: pl.DataFrame, listed: pl.DataFrame, world: int | None = None) -> Adopted:
    """Give communications without a recorded group to one of the rank's listed groups, where only one can be meant.

    That is the one listed group of the usual role by its name; where no listed group's name tells a role, the one
    listed group that no communication of the rank names. Where no trace names or lists any group it is that of all
    ranks (`world`, the ranks of the job), if it must be. Otherwise they stay without a group, and it is said.
    """
    nameless = seen.filter(pl.col("group").is_null())
    if not nameless.height:
        return Adopted(seen, {}, ())
    several = listed.filter(pl.max_horizontal("size", pl.col("ranks").list.len()) > 1)
    if world is not None and nameless.height == seen.height and not several.height:
        return _adopt_by_world(seen, world)
    groups_of: dict[int, dict[str, str | None]] = {}
    whole: dict[int, set[str]] = {}
    for rank, group, desc, ranks, size in listed.select("rank", "group", "desc", "ranks", "size").iter_rows():
        if (size or len(ranks or ())) > 1:
            groups_of.setdefault(rank, {})[group] = role_by_name(desc) or role_by_name(group)
            if desc == "default_pg":
                whole.setdefault(rank, set()).add(group)
    named: dict[int, set[str]] = {}
    for rank, group in seen.filter(pl.col("group").is_not_null()).select("rank", "group").iter_rows():
        named.setdefault(rank, set()).add(group)
    given: dict[str, dict[int, tuple[str, ...]]] = {}
    chosen: dict[tuple[int, str], str] = {}
    for rank, op in nameless.select("rank", "op").unique().sort("rank", "op").iter_rows():
        mine = groups_of.get(rank, {})
        if any(mine.values()):
            able = [group for group, role in mine.items() if role is not None and role == _USUAL_ROLE.get(op)]
        else:
            free = [group for group in mine if group not in named.get(rank, ())] if op in _USUAL_ROLE else []
            # the group of all ranks is always listed: it is meant only where there is no other
            able = [group for group in free if len(free) == 1 or group not in whole.get(rank, ())]
        if len(able) == 1:
            chosen[rank, op] = able[0]
            here = given.setdefault(able[0], {})
            here[rank] = (*here.get(rank, ()), op)
    filled = [group or chosen.get((rank, op)) for rank, group, op in seen.select("rank", "group", "op").iter_rows()]
    answer = seen.with_columns(group=pl.Series(filled, dtype=pl.String))
    taken = int(nameless["count"].sum()) - int(answer.filter(pl.col("group").is_null())["count"].sum())
    notes = []
    if taken:
        ops = ", ".join(sorted({op for _, op in chosen}))
        notes.append(
            f"{taken} communications carry no arguments ({ops}): by what they do they are taken for groups "
            f"{_few(sorted(given))}; collectives among them are matched by order and kernel name"
        )
    return Adopted(answer, given, (*notes, *_left_over(answer)))


def _adopt_by_world(seen: pl.DataFrame, world: int) -> Adopted:
    """Give communications to the group of all ranks where no other can be meant.

    They say how many ranks take part, and that is all of the job; or they do not, and the job has but two. That ranks
    send alike in the same order proves nothing: so they do in each of several smaller groups.
    """
    fits = (pl.col("size") == world) | (pl.col("size").is_null() & pl.lit(world == 2))  # noqa: PLR2004 - two ranks
    inside = pl.col("rank") < world
    meant = (fits & inside & (pl.col("op") != "unknown")).fill_null(value=False).all().over("rank", "op")
    judged = seen.with_columns(meant=meant if world > 1 else pl.lit(value=False))
    answer = judged.with_columns(
        group=pl.when("meant").then(
            pl.when(pl.col("op").is_in(P2P_OPS)).then(pl.lit(WORLD_P2P)).otherwise(pl.lit(WORLD))
        ),
        ranks=pl.when("meant").then(pl.lit(list(range(world)), dtype=pl.List(pl.Int32))).otherwise("ranks"),
        size=pl.when("meant").then(pl.lit(world, pl.Int32)).otherwise("size"),
    ).drop("meant")
    taken = answer.filter(pl.col("group").is_not_null())
    given: dict[str, dict[int, tuple[str, ...]]] = {}
    for group, rank, op in taken.select("group", "rank", "op").unique().sort("group", "rank", "op").iter_rows():
        here = given.setdefault(group, {})
        here[rank] = (*here.get(rank, ()), op)
    notes = []
    if taken.height:
        notes.append(
            f"no trace names a process group; {int(taken['count'].sum())} communications can only be those of all "
            f"{world} ranks and are taken for one group, {WORLD}, matched by order, operation, size and kernel name"
        )
    return Adopted(answer, given, (*notes, *_left_over(answer)))


def _left_over(seen: pl.DataFrame) -> tuple[str, ...]:
    """Say what stays without a group."""
    left = seen.filter(pl.col("group").is_null())
    if not left.height:
        return ()
    count, ranks = int(left["count"].sum()), left["rank"].n_unique()
    return (f"{count} communications on {ranks} ranks carry no group and could not be given one: not matched",)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")  # noqa: PLR2004 - five


def unify(seen: pl.DataFrame, listed: pl.DataFrame) -> pl.DataFrame:
    """Return the groups of the run, one row each, sorted by (ranks, name).

    `seen` is SEEN_SCHEMA; `listed` is table `process_groups` of all ranks: it fills in members that communications
    do not carry. Columns: group_id, group, desc, ranks (empty when unknown), size, members (ranks that were traced and
    used it), role, role_source (description, operations or none), count.

    A group whose ranks nobody tells is put together from the ranks that use its name only if they are as many as
    its size says; else each rank's use of it stands alone.
    """
    if not seen.height:
        return pl.DataFrame(schema=_GROUP_SCHEMA)
    listing = listed.select("rank", "group", listed_ranks="ranks", listed_desc="desc").unique(
        ["rank", "group"], keep="first", maintain_order=True
    )
    filled = (
        seen.filter(pl.col("group").is_not_null())
        .join(listing, on=["rank", "group"], how="left", maintain_order="left")
        .with_columns(ranks=pl.coalesce("ranks", "listed_ranks").list.sort(), desc=pl.coalesce("desc", "listed_desc"))
        .with_columns(size=pl.coalesce("size", pl.col("ranks").list.len().cast(pl.Int32)))
    )
    uses_of: dict[tuple[tuple[int, ...], str], list[_Use]] = {}
    for row in filled.sort("group", "rank", "op", "phase").iter_rows(named=True):
        use = _Use(row["rank"], row["desc"], row["size"], row["op"] or "unknown", row["phase"] or "other", row["count"])
        uses_of.setdefault((tuple(row["ranks"] or ()), row["group"]), []).append(use)
    rows = []
    for (ranks, name), uses in sorted(uses_of.items()):
        for members, known in _members(ranks, uses):
            rows.append(_group(name, known, [use for use in uses if use.rank in members]))
    return pl.DataFrame([{"group_id": number, **row} for number, row in enumerate(rows)], schema=_GROUP_SCHEMA)


class _Use(NamedTuple):
    """One rank's communications of one operation and phase over one group."""

    rank: int
    desc: str | None
    size: int | None
    op: str
    phase: str
    times: int


_GROUP_SCHEMA: Final[dict[str, pl.DataType | type[pl.DataType]]] = {
    "group_id": pl.Int32,
    "group": pl.String,
    "desc": pl.String,
    "ranks": pl.List(pl.Int32),
    "size": pl.Int32,
    "members": pl.List(pl.Int32),
    "role": pl.String,
    "role_source": pl.String,
    "count": pl.Int64,
}


def _members(ranks: tuple[int, ...], uses: list[_Use]) -> list[tuple[set[int], tuple[int, ...]]]:
    """Return the sets of ranks that use one communicator together, each with the ranks it is known to have."""
    users = {use.rank for use in uses}
    if ranks:
        # a rank that is no member by its own list used another communicator of the same name
        return [(users & set(ranks), ranks)] if users & set(ranks) else []
    if {use.size for use in uses} == {len(users)}:
        return [(users, tuple(sorted(users)))]
    return [({user}, ()) for user in sorted(users)]


def _group(name: str, ranks: tuple[int, ...], uses: list[_Use]) -> dict[str, object]:
    desc = next((use.desc for use in uses if use.desc), None)
    counts: dict[tuple[str, str], int] = {}
    for use in uses:
        counts[use.op, use.phase] = counts.get((use.op, use.phase), 0) + use.times
    named, used = role_by_name(desc) or role_by_name(name), role_by_use(counts)
    # a data-parallel group may carry sharded parameters: its name does not say, what is sent over it does
    sharded = named == "dp" and used == "fsdp"
    role = used if sharded else named or used
    return {
        "group": name,
        "desc": desc,
        "ranks": list(ranks),
        "size": next((use.size for use in uses if use.size is not None), len(ranks) or None),
        "members": sorted({use.rank for use in uses}),
        "role": role,
        "role_source": "operations"
        if sharded or (role != "other" and not named)
        else "description"
        if named
        else "none",
        "count": sum(counts.values()),
    }


def grid(groups: pl.DataFrame) -> dict[str, int]:
    """Return the size of each parallel dimension that the groups show: the commonest size of its role, roles sorted."""
    sizes: dict[str, list[int]] = {}
    for role, size in groups.select("role", "size").iter_rows():
        if role != "other" and size:
            sizes.setdefault(role, []).append(size)
    return {role: max(sorted(set(found)), key=found.count) for role, found in sorted(sizes.items())}
