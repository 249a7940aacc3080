"""A job of dp × tp × pp ranks that runs until a planted fault stops it, rank by rank and operation by operation.

Each rank's CPU launches its program in order and runs ahead of its GPU by a bounded number of operations; the GPU
takes them in order. A collective is done when all members have it at the head of their queues, a send when the
peer has the matching receive there. What is left when nothing moves any more is the hang.
"""

from __future__ import annotations

import random
from collections import defaultdict, deque
from dataclasses import dataclass, field, replace

FAULTS = ("healthy", "dead", "late", "stuck", "size", "type", "dtype", "order", "crossed")


@dataclass(frozen=True)
class Group:
    """A process group; `ranks` in its own order."""

    name: str
    desc: str
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class Op:
    """One operation in a rank's program; `peer` (a global rank) only of sends and receives."""

    group: int
    op: str
    sizes: tuple[int, ...]
    dtype: str = "BFloat16"
    peer: int | None = None

    @property
    def is_p2p(self) -> bool:
        """Whether it is a send or receive."""
        return self.peer is not None


@dataclass
class Record:
    """What a flight recorder keeps of one launch."""

    op: Op
    seq: int
    p2p_seq: int
    created: int
    completed: int | None = None


@dataclass(frozen=True)
class Config:
    """Shape of the job and its fault."""

    dp: int
    tp: int
    pp: int
    steps: int = 3
    microbatches: int = 2
    ahead: int = 6
    """Operations a CPU may have launched that its GPU has not finished."""
    fault: str = "healthy"
    seed: int = 0


@dataclass
class Job:
    """The job after its end: what each rank launched, and the truth."""

    config: Config
    groups: tuple[Group, ...]
    records: list[list[Record]]
    culprits: tuple[int, ...]
    cause: str
    """In the words of the verdict."""
    alive: set[int] = field(default_factory=set)
    ticks: int = 0


_CAUSES = {
    "healthy": "none", "dead": "no_dump", "late": "never_launched", "stuck": "stuck_in_collective",
    "size": "mismatched_arguments", "type": "mismatched_arguments", "dtype": "mismatched_arguments",
    "order": "mismatched_arguments", "crossed": "deadlock",
}  # fmt: skip


def layout(config: Config) -> tuple[Group, ...]:
    """Return the groups: the world, then tp, dp and pp; tp runs fastest, pp slowest."""
    dp, tp, pp = config.dp, config.tp, config.pp
    world = dp * tp * pp
    groups = [Group("0", "default_pg", tuple(range(world)))]
    families = [
        ("TENSOR_MODEL_PARALLEL_GROUP", tp, [(stage * dp + d) * tp for stage in range(pp) for d in range(dp)], 1),
        ("DATA_PARALLEL_GROUP", dp, [stage * dp * tp + t for stage in range(pp) for t in range(tp)], tp),
        ("PIPELINE_MODEL_PARALLEL_GROUP", pp, list(range(dp * tp)), dp * tp),
    ]
    for desc, size, firsts, step in families:
        if size > 1:
            for first in firsts:
                groups.append(Group(str(len(groups)), desc, tuple(range(first, first + size * step, step))))
    return tuple(groups)


def programs(config: Config, groups: tuple[Group, ...]) -> list[list[Op]]:
    """Return each rank's program: GPipe over the stages, all-reduces over tp, gradients over dp, a norm over all."""
    world = len(groups[0].ranks)
    mine: list[dict[str, int]] = [{} for _ in range(world)]
    for number, group in enumerate(groups):
        for rank in group.ranks:
            mine[rank][group.desc[:2]] = number
    per_stage = config.dp * config.tp
    result = []
    for rank in range(world):
        own, stage = mine[rank], rank // per_stage
        up, down = rank - per_stage, rank + per_stage
        ops: list[Op] = []
        for step in range(config.steps):
            for backward in (False, True):
                source, target = (down, up) if backward else (up, down)
                for micro in range(config.microbatches):
                    if "PI" in own and 0 <= source < world:
                        ops.append(Op(own["PI"], "recv", (2048, 512), peer=source))
                    if "TE" in own:
                        ops.append(Op(own["TE"], "_all_gather_base", (1024, 512 + micro)))
                        ops.append(Op(own["TE"], "all_reduce", (2048, 512)))
                        ops.append(Op(own["TE"], "_reduce_scatter_base", (1024, 256 + micro)))
                    if "PI" in own and 0 <= target < world:
                        ops.append(Op(own["PI"], "send", (2048, 512), peer=target))
            if "DA" in own:
                ops.append(Op(own["DA"], "all_reduce", (1 << 20, 1 + stage), "Float"))
                ops.append(Op(own["DA"], "_all_gather_base", (1 << 18, 1 + stage)))
            ops.append(Op(0, "all_reduce", (1,), "Float"))
            ops.append(Op(0, "broadcast", (3, 1 + step), "Long"))
        result.append(ops)
    return result


def simulate(config: Config) -> Job:
    """Run the job to its end. Deterministic for a config."""
    draw = random.Random(config.seed)  # noqa: S311 - a simulation
    groups = layout(config)
    plan = programs(config, groups)
    world = len(groups[0].ranks)
    job = Job(config, groups, [[] for _ in range(world)], (), _CAUSES[config.fault], set(range(world)))
    victim, place = _plant(job, plan, draw)
    _run(job, plan, draw, victim, place)
    return job


def _plant(job: Job, plan: list[list[Op]], draw: random.Random) -> tuple[int, int]:
    """Choose the fault's rank and place in its program, change the program if need be, and note the truth."""
    config, groups = job.config, job.groups
    victim = draw.randrange(len(plan))
    ops = plan[victim]
    middle = range(len(ops) // 4, len(ops))
    if config.fault == "healthy":
        return -1, -1
    if config.fault in {"dead", "late"}:
        place = draw.choice(middle)
    elif config.fault == "crossed":
        # two neighbours of different groups that share more than this rank
        places = [
            i for i in middle[:-1]
            if ops[i].group != ops[i + 1].group and not ops[i].is_p2p and not ops[i + 1].is_p2p
            and len(set(groups[ops[i].group].ranks) & set(groups[ops[i + 1].group].ranks)) > 1
        ]  # fmt: skip
        place = draw.choice(places)
        both = sorted(set(groups[ops[place].group].ranks) & set(groups[ops[place + 1].group].ranks))
        ops[place], ops[place + 1] = ops[place + 1], ops[place]
        job.culprits = tuple(both) if len(both) == 2 else (victim,)
        return victim, place
    else:
        # a group of two cannot show who is wrong: the truth is then both, unless the GPU is stuck
        least = 2 if config.fault == "stuck" else 3
        places = [
            i for i in middle
            if not ops[i].is_p2p and len(groups[ops[i].group].ranks) >= least and ops[i].op != "broadcast"
        ]  # fmt: skip
        if config.fault == "order":
            places = [
                i for i in places[:-1]
                if ops[i + 1].group == ops[i].group and (ops[i].op, ops[i].sizes) != (ops[i + 1].op, ops[i + 1].sizes)
            ]  # fmt: skip
        place = draw.choice(places)
        op = ops[place]
        if config.fault == "size":
            ops[place] = replace(op, sizes=(op.sizes[0] * 2, *op.sizes[1:]))
        elif config.fault == "dtype":
            ops[place] = replace(op, dtype="Half")
        elif config.fault == "type":
            ops[place] = replace(op, op="broadcast")
        elif config.fault == "order":
            ops[place], ops[place + 1] = ops[place + 1], ops[place]
    job.culprits = (victim,)
    return victim, place


def _run(job: Job, plan: list[list[Op]], draw: random.Random, victim: int, place: int) -> None:
    """Let CPUs launch and GPUs work until nothing moves, or until a healthy job is looked at."""
    world = len(plan)
    fault = job.config.fault
    queues: list[deque[Record]] = [deque() for _ in range(world)]
    next_op = [0] * world
    seqs: list[dict[tuple[int, bool], int]] = [defaultdict(int) for _ in range(world)]
    arrived: dict[object, list[int]] = defaultdict(list)
    wait_p2p: dict[tuple[int, int, int, str], int] = {}
    stop_at = draw.randrange(world * len(plan[0]) // 3, world * len(plan[0])) if fault == "healthy" else -1
    todo = list(range(world))
    draw.shuffle(todo)
    pending = deque(todo)
    queued = set(todo)

    def wake(rank: int) -> None:
        if rank not in queued:
            queued.add(rank)
            pending.append(rank)

    def finish(rank: int) -> None:
        queues[rank].popleft().completed = job.ticks
        wake(rank)

    while pending:
        rank = pending.popleft()
        queued.discard(rank)
        job.ticks += 1
        if job.ticks == stop_at:
            break
        ops = plan[rank]
        stopped = fault in {"dead", "late"} and rank == victim
        while next_op[rank] < len(ops) and len(queues[rank]) < job.config.ahead:
            if stopped and next_op[rank] == place:
                break
            op = ops[next_op[rank]]
            next_op[rank] += 1
            key = (op.group, op.is_p2p)
            seqs[rank][key] += 1
            record = Record(op, seqs[rank][op.group, False], seqs[rank][op.group, True], job.ticks)
            job.records[rank].append(record)
            queues[rank].append(record)
        if not queues[rank]:
            continue
        head = queues[rank][0]
        op = head.op
        mark = (id(head),)
        if arrived[mark]:
            continue  # it has been at the head before
        arrived[mark].append(rank)
        if op.peer is not None:
            other = (op.peer, rank, op.group, "recv" if op.op == "send" else "send")
            if other in wait_p2p:
                del wait_p2p[other]
                finish(rank)
                finish(op.peer)
            else:
                wait_p2p[rank, op.peer, op.group, op.op] = 1
            continue
        if fault in {"size", "type", "dtype", "order"} and rank == victim and op is ops[place]:
            continue  # never ends for anybody: its peers wait for the call they know
        instance = (op.group, head.seq)
        arrived[instance].append(rank)
        members = job.groups[op.group].ranks
        if len(arrived[instance]) == len(members):
            for member in members:
                if fault == "stuck" and member == victim and queues[member][0].op is plan[victim][place]:
                    continue  # everybody has what it needs, but this GPU does not end its kernel
                finish(member)
    if fault == "dead":
        job.alive.discard(victim)
