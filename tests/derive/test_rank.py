"""Derivation of public traces against the reference figures that stand beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from tracetool import intervals, registry, tables
from tracetool.derive import derive
from tracetool.registry import ParseOptions
from tracetool.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

# file: GPU activity, kernels that are comm, copies and memsets, without launch, steps;
# then span, |compute|, |comm|, |copy|, |comm ∩ compute|, |comm \ compute|, |copy \ others|, all in ns
REFERENCE: dict[str, tuple[tuple[int, int, int, int, list[int]], tuple[int, ...]]] = {
    "hta/nccl_data.json.gz": (
        (3774, 21, 1074, 0, [4, 5, 6]),
        (660551005, 115655847, 46876493, 2653498, 7317025, 39559468, 2284699),
    ),
    "hta/df_index_resolver.json.gz": (
        (22290, 2020, 2920, 0, [2, 3, 4, 5, 6]),
        (1732965000, 620516000, 357343000, 22754000, 0, 357343000, 22754000),
    ),
    "hta/trace_filter/sampled_rank-0.json.gz": (
        (1204, 10, 50, 0, [551, 552]),
        (1222847000, 210320000, 396199000, 1325000, 59216000, 336983000, 353000),
    ),
    "hta/trace_filter/sampled_rank-1.json.gz": (
        (1154, 10, 50, 0, [551, 552]),
        (1231186000, 271973000, 379053000, 16504000, 75530000, 303523000, 4554000),
    ),
    # the range of step 2 launched nothing
    "hta/mi250_minitoy_train_ROCm6_2_kineto.json.gz": (
        (16, 0, 2, 0, [1]),
        (8911887, 110881, 0, 38161, 0, 0, 38161),
    ),
    "hta/backward_thread.json": ((1, 0, 0, 0, [552]), (45000, 45000, 0, 0, 0, 0, 0)),
    "hta/event_sync_trace.json.gz": ((5, 0, 1, 0, [100]), (263000, 49000, 0, 2000, 0, 0, 2000)),
    "tracelens/mi300/resnet_act_checkpoint.json.gz": (
        (3653, 17, 658, 968, [15, 16, 17]),
        (86567708, 25739303, 71516523, 2974246, 15891299, 55625224, 2637529),
    ),
    "tracelens/h100/Qwen_Qwen1.5-0.5B-Chat__1016005.json.gz": (
        (1707, 0, 242, 509, [6]),
        (49652832, 45432698, 0, 214602, 0, 0, 214602),
    ),
    "tracelens/mi300/Qwen_Qwen1.5-0.5B-Chat__1016005.json.gz": (
        (1517, 0, 1, 463, [6]),
        (47085800, 43062042, 0, 760, 0, 0, 760),
    ),
    "tracelens/inference/sglang_Qwen3-8B_prefilldecode.json.gz": (
        (534, 0, 7, 0, []),
        (987288887, 492768906, 0, 37971, 0, 0, 37971),
    ),
}


def read(path: Path, settings: Settings | None = None) -> tuple[tables.Tables, tables.Tables]:
    kineto = next(parser for parser in registry.parsers() if parser.FORMAT == "kineto")
    base = kineto.parse(path, ParseOptions(display_path=path.name))
    made = derive(base, settings or Settings())
    for name, table in made.items():
        tables.check(name, table)
    return base, made


@pytest.mark.parametrize("name", REFERENCE)
def test_public_traces_give_the_reference_figures(shared: Path, name: str) -> None:
    (activity, comm_kernels, copies, orphans, steps), figures = REFERENCE[name]
    _, made = read(shared / "kineto" / name)
    gpu = made["gpu"]
    kind = gpu["kind"].cast(pl.String)
    assert gpu.height == activity
    assert (kind == "comm").sum() == comm_kernels
    assert kind.is_in(["memcpy", "memset"]).sum() == copies
    assert gpu["launch"].null_count() == orphans
    assert gpu.filter(pl.col("launch").is_null())["op"].null_count() == orphans
    assert made["steps"]["step"].drop_nulls().to_list() == steps
    spans = intervals.spans(gpu.with_columns(kind=kind), "kind")
    compute, comm = (spans.filter(pl.col("kind") == which) for which in ("compute", "comm"))
    copy = spans.filter(pl.col("kind").is_in(["memcpy", "memset"]))
    assert figures == (
        int(spans["end_ns"].max()) - int(spans["start_ns"].min()),  # type: ignore[arg-type]  # Int64 columns
        intervals.length(compute),
        intervals.length(comm),
        intervals.length(copy),
        intervals.length(intervals.intersect(comm, compute)),
        intervals.length(intervals.subtract(comm, compute)),
        intervals.length(intervals.subtract(copy, pl.concat([compute, comm]))),
    )
    told = {topic for topic in made["quality"]["topic"] if topic in ("clipped", "dropped", "negative_latency")}
    assert told == set()
    _, whole = read(shared / "kineto" / name, Settings(ignore_steps=True))
    window = whole["steps"].row(0, named=True)
    assert (window["step"], window["end_ns"] - window["start_ns"]) == (None, figures[0])


def test_mtia_requests_without_correlation_are_orphans(shared: Path) -> None:
    _, made = read(shared / "kineto/hta/mtia_rank_0.json.gz")
    assert made["gpu"].height == 25_814
    assert made["gpu"]["launch"].null_count() == 22_361
    assert intervals.length(intervals.spans(made["gpu"])) == 7_701_827_312


def test_external_ids_and_nesting_agree(shared: Path) -> None:
    base, made = read(shared / "kineto/hta/nccl_data.json.gz")
    without = {**base, "events": base["events"].with_columns(external_id=pl.lit(None, pl.Int64))}
    assert made["gpu"]["op"].equals(derive(without, Settings())["gpu"]["op"])
    assert made["gpu"]["op"].null_count() == 0


def test_communications_carry_what_the_tracer_recorded(shared: Path) -> None:
    comms = read(shared / "kineto/hta/nccl_data.json.gz")[1]["comms"]
    counts = comms.group_by("op").len().sort("op").rows()
    assert counts == [("all_reduce", 15), ("broadcast", 6)]
    assert comms["group_ranks"].to_list() == [[0, 1]] * 21
    assert comms["bytes"].null_count() == 0


def test_checkpointed_convolutions_are_recomputed(shared: Path) -> None:
    base, made = read(shared / "kineto/tracelens/mi300/resnet_act_checkpoint.json.gz")
    named = base["events"].select(pl.col("name").cast(pl.String)).with_columns(made["links"]["phase"])
    found = dict(named.filter(pl.col("name") == "aten::convolution").group_by("phase").len().rows())
    # 57 by the Python stacks of the trace
    assert found["recompute"] == 57
    assert set(found) == {"forward", "recompute"}


def test_recomputed_matmuls_of_a_small_model(shared: Path) -> None:
    def addmm(file: str) -> dict[Any, int]:
        base, made = read(shared / "mfu" / file)
        named = base["events"].select(pl.col("name").cast(pl.String)).with_columns(made["links"]["phase"])
        return dict(named.filter(pl.col("name") == "aten::addmm").group_by("phase").len().rows())

    # 2 layers × 4 linears × 3 steps; the checkpointed run records each once more while it goes backward
    assert addmm("gpt2tiny_cpu.json.gz") == {"forward": 24}
    assert addmm("gpt2tiny_cpu_ckpt.json.gz") == {"forward": 24, "recompute": 24}
