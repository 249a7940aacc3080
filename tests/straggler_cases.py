"""Drawn jobs with planted faults, and what has to be said of each: by whom it is slowed, why, and by how much.

Every case follows from its number alone. `must`: the ranks to be named, with causes; `may`: ranks of which naming is
true too (a late host whose lateness nobody waits for); nobody else is guilty, so naming anyone else is a defect.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from simulator import Config, SlowLink, Stall, layout, simulate, whatif

if TYPE_CHECKING:
    from collections.abc import Callable

GRIDS: Final = (
    *[(8, 1, 1), (1, 8, 1), (4, 2, 1), (2, 4, 1), (2, 2, 2), (4, 1, 2), (2, 1, 4), (1, 4, 2)] * 3,
    *[(4, 1, 4), (2, 2, 4), (8, 1, 2), (2, 4, 2), (16, 1, 1), (8, 2, 1)],
    *[(4, 2, 4), (4, 4, 2)],
)
"""(dp, tp, pp); small ones come more often."""
KINDS: Final = (
    "healthy", "device", "two devices", "device and host", "some steps", "heavy stage", "heavy stage, device", "host",
    "work", "slow link", "slow NIC",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One job and what has to be said of it."""

    number: int
    kind: str
    config: Config
    must: dict[int, str] = field(default_factory=dict)
    may: frozenset[int] = frozenset()
    links: tuple[tuple[int, ...], ...] = ()
    """Ranks of each slow communicator."""
    stage: int | None = None
    """The heavy stage."""

    @property
    def grid(self) -> str:
        """The grid in words."""
        c = self.config
        return f"dp{c.dp} tp{c.tp} pp{c.pp}"

    @property
    def allowed(self) -> set[int]:
        """Every rank of which naming is true."""
        return {*self.must, *self.may}


def peers(config: Config, rank: int) -> list[int]:
    """Return the ranks of the same pipeline stage, the rank itself too."""
    stage = layout.places(config)[rank].stage
    return [place.rank for place in layout.places(config) if place.stage == stage]


def base(draw: random.Random) -> Config:
    """Return a healthy job: any grid, overlap, noise, clocks."""
    dp, tp, pp = draw.choice(GRIDS)
    world = dp * tp * pp
    per_node = draw.choice([4, 8])
    hosts = range(-(-world // per_node))
    size: dict[str, Any] = {"layers": 1, "hidden": 2048, "ffn": 8192, "heads": 16}
    if world <= 8 and draw.random() < 0.5:
        size = {"layers": 2, "hidden": 4096, "ffn": 8192, "heads": 32}
    noise = draw.choice([0.005, 0.01, 0.02, 0.03])
    return Config(
        dp=dp,
        tp=tp,
        pp=pp,
        gpus_per_node=per_node,
        dp_mode=draw.choice(["ddp", "ddp", "zero1", "fsdp"]),
        steps=draw.choice([2, 3, 4]) if world < 32 else 2,
        microbatches=draw.choice([2, 4]) if pp > 1 else draw.choice([1, 2]),
        schedule=draw.choice(["1f1b", "gpipe"]),
        recompute=draw.random() < 0.3,
        grad_overlap=draw.random() < 0.7,
        embedding=pp == 1 and draw.random() < 0.3,
        head=pp == 1 and draw.random() < 0.3,
        p2p_peers=draw.random() < 0.8,
        jitter=noise,
        comm_jitter=draw.choice([0.0, 0.1, 0.2]),
        host_jitter=draw.choice([0.05, 0.1, 0.2]),
        end_jitter_ns=draw.choice([0, 2_000]),
        latency_jitter_ns=draw.choice([0, 1_500]),
        clock_offsets_ns={host: draw.randrange(-2_000_000, 2_000_000) for host in hosts if host},
        clock_drifts_ppm={host: round(draw.uniform(-10, 10), 3) for host in hosts if host},
        seed=draw.randrange(10**6),
        **size,
    )


def step_ns(config: Config) -> float:
    """Return the true mean time of a step."""
    times = simulate(config).step_ns.values()
    return sum(times) / len(times)


def draw(number: int, kind: str | None = None) -> Case:
    """Return the case of this number; `kind`: of KINDS, else by the number."""
    random_ = random.Random(f"straggler {number}")  # noqa: S311 - a simulation
    wanted = kind or KINDS[number % len(KINDS)]
    makers: dict[str, Callable[[random.Random, Config], dict[str, Any] | None]] = {
        "healthy": lambda _, config: {"config": config},
        "device": _device,
        "two devices": _two_devices,
        "device and host": _device_and_host,
        "some steps": _some_steps,
        "heavy stage": _heavy_stage,
        "heavy stage, device": _heavy_stage_and_device,
        "host": _host,
        "work": _work,
        "slow link": _slow_link,
        "slow NIC": _slow_nic,
    }
    while True:  # not every grid can have every fault
        made = makers[wanted](random_, base(random_))
        if made is not None:
            return Case(number, wanted, **made)


def _factor(random_: random.Random) -> float:
    return round(random_.uniform(1.15, 1.5), 3)


def _device(random_: random.Random, config: Config) -> dict[str, Any] | None:
    rank = random_.randrange(config.world_size)
    if len(peers(config, rank)) < 2:
        return None
    return {"config": config.replace(slow_ranks={rank: _factor(random_)}), "must": {rank: "device"}}


def _two_devices(random_: random.Random, config: Config) -> dict[str, Any] | None:
    first, second = random_.sample(range(config.world_size), 2)
    together = second in peers(config, first)
    if len(peers(config, first)) < (4 if together else 2):
        return None
    slow = {first: _factor(random_), second: _factor(random_)}
    return {"config": config.replace(slow_ranks=slow), "must": dict.fromkeys(slow, "device")}


def _stall(random_: random.Random, config: Config, rank: int) -> Stall:
    where = random_.choice(["dataloader", "sync"]) if config.pp > 1 else random_.choice(["dataloader", "gc", "sync"])
    return Stall(rank, round(random_.uniform(0.3, 0.6) * step_ns(config)), where)  # type: ignore[arg-type] # of the choices


def _device_and_host(random_: random.Random, config: Config) -> dict[str, Any] | None:
    device, host = random_.sample(range(config.world_size), 2)
    if len(peers(config, device)) < 4 or len(peers(config, host)) < 4:
        return None
    changed = config.replace(slow_ranks={device: _factor(random_)}, stalls=(_stall(random_, config, host),))
    return {"config": changed, "must": {device: "device", host: "host"}}


def _some_steps(random_: random.Random, config: Config) -> dict[str, Any] | None:
    rank = random_.randrange(config.world_size)
    if len(peers(config, rank)) < 2 or config.world_size > 16:
        return None
    steps = range(config.first_step, config.first_step + 5)
    slow = sorted(random_.sample(steps, random_.choice([1, 2, 3, 4])))
    changed = config.replace(steps=5, slow_ranks={rank: _factor(random_)}, slow_steps=tuple(slow))
    return {"config": changed, "must": {rank: "device"} if len(slow) > 2 else {}}


def _heavy_stage(random_: random.Random, config: Config) -> dict[str, Any] | None:
    if config.pp == 1:
        return None
    stage = random_.randrange(config.pp)
    return {"config": config.replace(heavy_stages={stage: round(random_.uniform(1.2, 1.6), 3)}), "stage": stage}


def _heavy_stage_and_device(random_: random.Random, config: Config) -> dict[str, Any] | None:
    heavy, slow = _heavy_stage(random_, config), _device(random_, config)
    if heavy is None or slow is None:
        return None
    config = heavy["config"].replace(slow_ranks=slow["config"].slow_ranks)
    return {"config": config, "must": slow["must"], "stage": heavy["stage"]}


def _host(random_: random.Random, config: Config) -> dict[str, Any] | None:
    rank = random_.randrange(config.world_size)
    if len(peers(config, rank)) < 2:
        return None
    return {"config": config.replace(stalls=(_stall(random_, config, rank),)), "must": {rank: "host"}}


def _work(random_: random.Random, config: Config) -> dict[str, Any] | None:
    if config.dp == 1:
        return None
    replica = random_.randrange(config.dp)
    changed = config.replace(long_sequences={replica: round(random_.uniform(1.2, 1.5), 2)})
    return {
        "config": changed,
        "must": {place.rank: "work" for place in layout.places(config) if place.dp == replica},
    }


def _slow_link(random_: random.Random, config: Config) -> dict[str, Any] | None:
    groups = [g for g in layout.groups(config)[0] if g.key in ("tp", "dp", "fsdp")]
    if not groups:
        return None
    group = random_.choice(groups)
    hosts = len(set(group.hosts))
    alike = [g for g in groups if g.key == group.key and len(set(g.hosts)) == hosts]
    if len(alike) < 2:
        return None
    link = SlowLink(round(random_.uniform(2.5, 8.0), 2), role=group.key, ranks=group.ranks)
    return {"config": config.replace(slow_links=(link,)), "links": (group.ranks,)}


def _slow_nic(random_: random.Random, config: Config) -> dict[str, Any] | None:
    """One rank's way out of its host: every group of it that crosses hosts, each with healthy ones to compare with."""
    rank = random_.randrange(config.world_size)
    stride = config.dp * config.tp
    # the neighbour in the pipeline is on another host
    if config.pp != 2 or stride % config.gpus_per_node or stride < 4 or not config.p2p_peers:
        return None
    groups, by_rank = layout.groups(config)
    mine = [g for g in by_rank[rank].values() if len(set(g.hosts)) > 1 and g.key not in ("world", "pp")]
    # what it shares with that neighbour alone tells not whose way out is slow
    if not any(m.key in ("dp", "fsdp", "tp") for m in mine):
        return None
    if any(sum(g.key == m.key and len(set(g.hosts)) == len(set(m.hosts)) for g in groups) < 2 for m in mine):
        return None
    pair = tuple(sorted((rank, (rank + stride) % config.world_size)))
    factor = round(random_.uniform(2.5, 8.0), 2)
    slow = (*(SlowLink(factor, role=g.key, ranks=g.ranks) for g in mine), SlowLink(factor, role="pp", ranks=pair))
    return {
        "config": config.replace(slow_links=slow),
        "must": {rank: "link"},
        "links": (*(g.ranks for g in mine), pair),
    }


def without_faults(case: Case) -> Config:
    """Return the job without what slows it: the faults that have to be named."""
    if case.kind == "some steps" and not case.must:
        return case.config
    return whatif.without_stragglers(case.config)


def _steady(config: Config) -> Config:
    """Return the job without noise in compute, all steps of a rank as most of them are."""
    config = whatif.without_device_jitter(config)
    if config.slow_steps is None:
        return config
    mostly = 2 * len(config.slow_steps) > config.steps
    return config.replace(slow_steps=None, slow_ranks=config.slow_ranks if mostly else {})


def changes(case: Case) -> dict[str, Config]:
    """Return by the name of a what-if the job in which that change was really made."""
    config = case.config
    found = {
        "no stragglers": without_faults(case),
        "communication 2 times faster": whatif.faster_communication(config, 2),
        "perfect overlap": config.replace(zero_transfer=True),
        "no host gaps": whatif.without_host_gaps(config),
        "no jitter": _steady(config),
    }
    if config.pp > 1:
        found["balanced stages"] = whatif.balanced_stages(config)
    return found
