"""Drawn pipeline runs, and what is wrong with what tracetool says of one; also for tests/bench/pipelines.py."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any, Final, NamedTuple

import polars as pl
from simulator import Config, Stall, simulate

from tracetool.join.idling import BUBBLE, BUSY, PHASES
from tracetool.run import open_run

BUCKETS: Final = ("compute", "exposed_comm", "sync_wait", "pipeline_bubble", "memcpy", "host_bound", "idle")
NAMES: Final = {"dualpipev": "dualpipe"}
"""Schedules of the simulator that have another name in an answer."""
NAMING: Final = {
    "1f1b": ("none", "none", "torch", "torch_2_15", "megatron"),
    "gpipe": ("none", "gpipe", "torch", "torch_2_15"),
    "interleaved_1f1b": ("none", "torch", "torch_2_15", "torch", "megatron"),
    "zb1p": ("none", "torch", "torch_2_15"),
    "zbv": ("none", "torch", "torch_2_15"),
    "dualpipev": ("dualpipe", "torch", "torch_2_15"),
}
"""What frameworks write around the slots of each schedule."""
NUMBERED: Final = ("torch", "torch_2_15", "gpipe")
"""Annotations that name the micro-batch."""


class Case(NamedTuple):
    """A run and how its files look."""

    config: Config
    files: dict[str, Any]

    @property
    def words(self) -> str:
        """The case in one line."""
        c = self.config
        beside = " ".join(f"{name}{getattr(c, name)}" for name in ("dp", "tp", "cp") if getattr(c, name) > 1)
        faults = [word for word, there in (("slow", c.slow_ranks), ("heavy", c.heavy_stages), ("stall", c.stalls),
                                           ("skew", c.clock_offsets_ns), ("jitter", c.jitter)) if there]  # fmt: skip
        said = "" if self.files["comm_args"] else "no arguments"
        return " ".join(
            word
            for word in (
                f"{c.schedule} p{c.pp} m{c.microbatches} v{c.chunks}", c.pp_annotations, c.p2p, beside, *faults, said
            )
            if word
        )  # fmt: skip


class Judged(NamedTuple):
    """What was found of a case."""

    schedule: str
    """The name given; `-` where the bubble was not measured."""
    slots: str
    """exact, unknown or wrong."""
    error: float
    """Error of the mean bubble share."""
    budget: float
    """Largest error of a part of any rank-step's budget, as a share of its step; NaN where truth needs what is lost."""
    wrong: tuple[str, ...]
    """What must not be; empty: all well."""


def draw(seed: int, most_slots: int = 300) -> Case:
    """Return a drawn case of at most so many slots a kind and step, ranks beside the pipeline counted."""
    r = random.Random(seed)  # noqa: S311 - a simulation
    schedule = r.choice(["gpipe", "1f1b", "1f1b", "interleaved_1f1b", "interleaved_1f1b", "zb1p", "zbv", "dualpipev"])
    while True:
        p, m = r.choice([2, 2, 3, 4, 4, 5, 6, 8, 12, 16]), r.choice([4, 5, 6, 8, 12, 16, 24, 32, 64])
        v = {"interleaved_1f1b": r.choice([2, 3]), "gpipe": r.choice([1, 1, 2]), "zbv": 2, "dualpipev": 2}.get(
            schedule, 1
        )
        m = max(1, m // p) * p if schedule == "interleaved_1f1b" else m
        dp, tp, cp = r.choice([1, 1, 2, 3]), r.choice([1, 1, 2]), r.choice([1, 1, 1, 2])
        if p * m * v * dp * tp * cp <= most_slots and m <= 64:
            break
    naming: Any = r.choice([word for word in NAMING[schedule] if v == 1 or word != "gpipe"])
    world = p * dp * tp * cp
    large: dict[str, Any] = {"hidden": 2048, "sequence": 4096}
    small: dict[str, Any] = {"hidden": 256, "ffn": 512, "sequence": 256, "heads": 4}
    size = r.choice([large, small])
    per_node = r.choice([1, 2, 4, 8, 8])
    around: dict[str, Any] = {
        "warmup_work": True, "between_steps_work": True, "unrecorded_steps": 1, "sync_step": False
    }  # fmt: skip
    hosts = range(-(-world // per_node))
    config = Config(
        **size, pp=p, microbatches=m, chunks=v, schedule=schedule, dp=dp, tp=tp, cp=cp, pp_annotations=naming,
        placement="vee" if schedule in ("zbv", "dualpipev") else "loop",
        p2p=r.choice(["async", "batched"]) if v == 1 else "async",
        p2p_peers=v == 1 and r.random() < 0.2,
        steps=r.choice([1, 1, 2]), seed=seed, gpus_per_node=per_node,
        jitter=r.choice([0.0, 0.01, 0.03, 0.06]), comm_jitter=r.choice([0.0, 0.1]), host_jitter=r.choice([0.0, 0.1]),
        end_jitter_ns=r.choice([0, 2_000]), grad_norm=r.random() < 0.7, copies=r.random() < 0.8,
        dp_mode=r.choice(["ddp", "zero1", "fsdp"]), recompute=r.random() < 0.3, layers=r.choice([1, 1, 2]),
        group_naming=r.choice(["mesh", "megatron", "undefined"]), length_jitter=r.choice([0.0, 0.0, 0.1]),
        embedding=r.random() < 0.3, head=r.random() < 0.3,
        slow_ranks={r.randrange(world): r.choice([1.1, 1.3, 1.8])} if r.random() < 0.3 else {},
        heavy_stages={r.choice([0, p - 1, r.randrange(p)]): r.choice([1.2, 1.5])} if r.random() < 0.3 else {},
        clock_offsets_ns={h: r.randrange(-5_000_000, 5_000_000) for h in hosts} if r.random() < 0.5 else {},
        clock_drifts_ppm={h: r.uniform(-10, 10) for h in hosts} if r.random() < 0.3 else {},
        stalls=(Stall(r.randrange(world), 2_000_000, r.choice(["dataloader", "gc", "sync"])),)
        if r.random() < 0.15 else (),
        **(around if r.random() < 0.15 else {}),
    )  # fmt: skip
    return Case(config, {"comm_args": r.random() < 0.85, "host_names": True, "gpu_annotations": r.random() < 0.8})


def judge(case: Case) -> Judged:
    """Simulate a case, ask for its pipeline and budget, and hold them to the truth."""
    run = simulate(case.config)
    with tempfile.TemporaryDirectory() as directory:
        run.write_kineto(Path(directory), compression=1, **case.files)
        with open_run(directory, engine="serial", cache="off") as opened:
            pipeline, budget = opened.results["pipeline"], opened.results["budget"]
            slots = opened.view.joined.get("pipeline_slots", pl.DataFrame())
    truth = run.truth(joined=True)
    wrong: list[str] = []
    off = 0.0
    wanted = {(row["rank"], row["step"]): row for row in truth.budget()}
    for row in budget.tables["per_rank_step"].iter_rows(named=True):
        if sum(row[f"{bucket}_ns"] for bucket in BUCKETS) != row["window_ns"]:
            wrong.append("budget does not sum")
        true = wanted[row["rank"], row["step"]]
        parts = [abs(row[f"{bucket}_ns"] - true[f"{bucket}_ns"]) for bucket in BUCKETS]
        off = max(off, max(parts) / true["window_ns"])
    config = case.config
    if pipeline.status != "ok":
        # what neither ranges nor launches tell, or no arguments, may be left unmeasured, with the reason
        told_by_launches = config.pp_annotations in NUMBERED or config.schedule in ("1f1b", "gpipe")
        may = not told_by_launches or not case.files["comm_args"]
        wrong += [] if may and pipeline.reason else [f"not measured: {pipeline.reason}"]
        return Judged("-", "unknown", 0.0, float("nan"), tuple(wrong))
    metrics = pipeline.metrics
    name = str(metrics["schedule"])
    known = NAMES.get(str(config.schedule), str(config.schedule))
    told = _slots(slots, truth.slot_rows())
    if name not in (known, "unknown"):
        wrong.append(f"called {name}")
    elif name == "unknown" and config.pp_annotations in NUMBERED:
        wrong.append("annotated, not recognised")
    elif name == "unknown" and config.chunks == 1 and config.schedule in ("1f1b", "gpipe"):
        wrong.append("not recognised")
    if told == "wrong" or (told == "unknown" and config.pp_annotations in NUMBERED):
        wrong.append(f"slots {told}")
    shape = {"stages": config.pp, "chunks": config.chunks, "microbatches": config.microbatches}
    wrong += [f"{word} {metrics[word]}" for word, number in shape.items() if metrics[word] not in (None, number)]
    error, found = _bubbles(pipeline.tables, truth.pipeline())
    wrong += found
    if error > (0.002 if config.pp_annotations in NUMBERED else 0.01):
        wrong.append(f"bubble share off by {error:.4f}")
    # sends of two chunks between two stages may overtake each other here, which NCCL does not do
    lost = told == "unknown" or not case.files["comm_args"] or (config.pp == 2 and config.chunks > 1)
    one_clock = config.world_size <= config.gpus_per_node
    # hosts that only sends join are aligned to within what sends and receives bound: microseconds of a short step
    if not lost and off > (0.0 if one_clock else 0.01):
        wrong.append(f"budget off by {off:.4f}")
    return Judged(name, told, error, float("nan") if lost else off, tuple(wrong))


def _slots(slots: pl.DataFrame, wanted: list[dict[str, Any]]) -> str:
    columns = ("rank", "step", "stage", "kind", "microbatch", "chunk")
    if slots["microbatch"].null_count():
        return "unknown"
    found = slots.sort("rank", "start_ns", "end_ns").select(columns).rows()
    return "exact" if found == [tuple(row[name] for name in columns) for row in wanted] else "wrong"


def _bubbles(tables: Any, wanted: list[dict[str, Any]]) -> tuple[float, list[str]]:  # noqa: ANN401 - tables of a Result
    """Return the error of the mean share of the window, and what does not add up."""
    rows = tables["per_rank_step"]
    truth = {(row["rank"], row["step"]): row for row in wanted}
    wrong = []
    if set(rows.select("rank", "step").iter_rows()) != set(truth):
        wrong.append(f"{rows.height} of {len(truth)} rank-steps")
    for row in rows.iter_rows(named=True):
        bubble = row["bubble_ns"]
        if row["stage"] != truth[row["rank"], row["step"]]["stage"]:
            wrong.append(f"rank {row['rank']} on stage {row['stage']}")
        sums = [sum(row[f"{part}_ns"] for part in BUBBLE), sum(row[f"{phase}_bubble_ns"] for phase in PHASES)]
        if sums != [bubble, bubble] or sum(row[f"{part}_ns"] for part in BUSY) + bubble != row["window_ns"]:
            wrong.append("parts do not sum")
    if "ladder" in tables:
        ns = tables["ladder"]["ns"]
        if not ns[:-1].sum() == ns[-1] == rows["bubble_ns"].sum():
            wrong.append("ladder does not sum")
    shares = [row["bubble_ns"] / row["window_ns"] for row in wanted]
    mean = float((rows["bubble_ns"] / rows["window_ns"]).mean() or 0.0)
    return abs(mean - sum(shares) / len(shares)), wrong
