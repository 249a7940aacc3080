"""Where ranks stand in the grid, and the process groups that follow from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from simulator.config import Config

_MEGATRON = {
    "tp": "TENSOR_MODEL_PARALLEL_GROUP",
    "cp": "CONTEXT_PARALLEL_GROUP",
    "dp": "DATA_PARALLEL_GROUP",
    "fsdp": "DATA_PARALLEL_GROUP_WITH_CP",
    "ep": "EXPERT_MODEL_PARALLEL_GROUP",
    "pp": "PIPELINE_MODEL_PARALLEL_GROUP",
    "mp": "MODEL_PARALLEL_GROUP",
}
_MESH = {
    "tp": "mesh_tp",
    "cp": "mesh_cp",
    "dp": "mesh_dp",
    "fsdp": "mesh_dp_shard",
    "ep": "mesh_ep",
    "pp": "mesh_pp",
    "mp": "mesh_pp_tp",
}


@dataclass(frozen=True)
class Place:
    """Coordinates of a rank, the number of its host, and of its device there."""

    rank: int
    stage: int
    dp: int
    cp: int
    tp: int
    host: int
    device: int


@dataclass(frozen=True)
class Group:
    """A process group. `key`: what it is for (tp, cp, dp, fsdp, ep, pp, mp, world); `role`: the data model's word."""

    name: str
    desc: str
    key: str
    ranks: tuple[int, ...]
    hosts: tuple[int, ...]

    @property
    def role(self) -> str:
        """Role in the data model's words."""
        return "other" if self.key in ("mp", "world") else self.key

    @property
    def size(self) -> int:
        """Number of members."""
        return len(self.ranks)


def rank_of(config: Config, stage: int, dp: int, cp: int, tp: int) -> int:
    """Return the rank at these coordinates."""
    return ((stage * config.dp + dp) * config.cp + cp) * config.tp + tp


def virtual_stage(config: Config, stage: int, chunk: int) -> int:
    """Return the place in the model of a stage's chunk. Placement "vee" runs odd chunks from the last stage back."""
    if config.placement == "vee" and chunk % 2:
        stage = config.pp - 1 - stage
    return chunk * config.pp + stage


def owner(config: Config, virtual: int) -> tuple[int, int]:
    """Return (stage, chunk) of a virtual stage; the inverse of `virtual_stage`."""
    chunk, stage = divmod(virtual, config.pp)
    return (config.pp - 1 - stage if config.placement == "vee" and chunk % 2 else stage), chunk


def source_of(config: Config, kind: str, virtual: int) -> int | None:
    """Return the virtual stage whose slot makes the input of slot `kind` at `virtual`; None: nothing comes in."""
    source = {"F": virtual - 1, "B": virtual + 1}.get(kind, -1)
    return source if 0 <= source < config.pp * config.chunks else None


def target_of(config: Config, kind: str, virtual: int) -> int | None:
    """Return the virtual stage that takes the output of slot `kind` at `virtual`; None: nothing goes out."""
    target = {"F": virtual + 1, "B": virtual - 1}.get(kind, -1)
    return target if 0 <= target < config.pp * config.chunks else None


def places(config: Config) -> list[Place]:
    """Return every rank's place, in rank order."""
    n = config.gpus_per_node
    return [
        Place(rank, s, d, c, t, rank // n, rank % n)
        for s in range(config.pp)
        for d in range(config.dp)
        for c in range(config.cp)
        for t in range(config.tp)
        for rank in [rank_of(config, s, d, c, t)]
    ]


def groups(config: Config) -> tuple[list[Group], list[dict[str, Group]]]:
    """Return all groups, and for every rank its group by key. Groups of one member are left out."""
    every = places(config)
    data = "fsdp" if config.dp_mode == "fsdp" else "dp"
    keys: dict[str, Callable[[Place], tuple[int, ...]]] = {
        "tp": lambda p: (p.stage, p.dp, p.cp),
        "cp": lambda p: (p.stage, p.dp, p.tp),
        data: lambda p: (p.stage, p.cp, p.tp),
        "ep": lambda p: (p.stage, p.dp // config.ep, p.cp, p.tp),
        "pp": lambda p: (p.dp, p.cp, p.tp),
        "mp": lambda p: (p.dp, p.cp),
    }
    names = _MEGATRON if config.group_naming == "megatron" else _MESH
    world = Group("0", "default_pg", "world", tuple(p.rank for p in every), tuple(p.host for p in every))
    found = [world]
    by_rank: list[dict[str, Group]] = [{"world": world} for _ in every]
    for key, of in keys.items():
        if key == "ep" and config.ep == 1:
            continue
        if key == "mp" and (config.pp == 1 or not config.grad_norm):
            continue
        members: dict[tuple[int, ...], list[Place]] = {}
        for place in every:
            members.setdefault(of(place), []).append(place)
        for part in members.values():
            if len(part) == 1:
                continue
            desc = "undefined" if config.group_naming == "undefined" else names[key]
            group = Group(str(len(found)), desc, key, tuple(p.rank for p in part), tuple(p.host for p in part))
            found.append(group)
            for place in part:
                by_rank[place.rank][key] = group
    return found, by_rank
