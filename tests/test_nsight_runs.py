"""Whole runs of Nsight reports: the numbers of the same run as Kineto, nodes, wall clocks, steps, mixed directories."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from simulator import Config, simulate
from simulator.record import BASE_UNIX_NS
from simulator_nsight import Call, Capture, Graph, Kernel, Range, write
from simulator_nsight.bridge import capture_of

from tracetool import open_run
from tracetool.errors import UsageError
from tracetool.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    from simulator import Run as Simulated

    from tracetool.results import Result
    from tracetool.run import Run

CONFIG = Config(
    dp=2, tp=2, pp=2, gpus_per_node=4, steps=3, recompute=True, jitter=0.05, comm_jitter=0.3, slow_ranks={1: 1.3},
    clock_offsets_ns={1: 1_350_000},
)  # fmt: skip
NODES = Settings(gpus_per_node=4)
NAMES_DIFFER = {"group", "group_id", "group_name", "group_desc", "host", "hosts", "host_names", "event", "nccl_gbs"}
"""Columns that name what the two tracers name differently, or need a name of NCCL's algorithm."""


def opened(path: Path, settings: Settings = NODES) -> Run:
    return open_run(path, settings, cache="off", engine="serial")


@pytest.fixture(scope="module")
def simulated() -> Simulated:
    return simulate(CONFIG)


@pytest.fixture(scope="module")
def kineto(simulated: Simulated, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("kineto")
    simulated.write_kineto(folder)
    return opened(folder)


def by_node(simulated: Simulated, folder: Path, *, blobs: bool) -> Path:
    """Write one report a node, of all its ranks."""
    folder.mkdir()
    for node in range(2):
        ranks = list(range(4 * node, 4 * node + 4))
        write(folder / f"node{node}.sqlite", capture_of(simulated, ranks), blobs=blobs)
    return folder


def by_rank(simulated: Simulated, folder: Path, *, blobs: bool) -> Path:
    """Write one report a rank."""
    folder.mkdir()
    for rank in range(8):
        write(folder / f"report_rank{rank}.sqlite", capture_of(simulated, [rank]), blobs=blobs)
    return folder


def comparable(result: Result, table: str) -> list[Any]:
    found = result.tables[table]
    columns = sorted(set(found.columns) - NAMES_DIFFER)
    return sorted(found.select(columns).rows(), key=repr)


@pytest.mark.parametrize("layout", [by_rank, by_node])
def test_with_blobs_every_question_has_kinetos_answer_to_the_ns(
    simulated: Simulated, kineto: Run, tmp_path: Path, layout: Any  # noqa: ANN401 - parametrized
) -> None:  # fmt: skip
    mine = opened(layout(simulated, tmp_path / "nsight", blobs=True))
    assert mine.ranks == kineto.ranks == list(range(8))
    for name, tables in {
        "budget": ["per_rank_step", "ranks"],
        "overlap": ["per_rank_step", "roles"],
        "pipeline": ["per_rank_step", "ladder", "slots"],
        "stragglers": ["ranks", "stages", "op_types", "per_rank_step", "what_ifs"],
        "critical_path": ["path"],
        "phases": ["phases"],
        "host": [],
        "collectives": ["groups", "links"],
    }.items():
        ours, theirs = mine.results[name], kineto.results[name]
        assert (ours.status, theirs.status) == ("ok", "ok"), (name, ours.reason, theirs.reason)
        assert ours.metrics == theirs.metrics, name
        for table in tables:
            assert comparable(ours, table) == comparable(theirs, table), (name, table)
        assert [f.id for f in ours.findings] == [f.id for f in theirs.findings], name
    assert mine.results["stragglers"].metrics["worst_rank"] == 1


def test_whether_attention_was_causal_is_not_known_so_null(simulated: Simulated, kineto: Run, tmp_path: Path) -> None:
    folder = by_node(simulated, tmp_path / "nsight", blobs=True)
    mine, theirs = opened(folder).results["mfu"], kineto.results["mfu"]
    same = ("mfu", "hfu", "model_flops_per_step", "hardware_flops_per_step", "shape_coverage", "peak_flops")
    assert {name: mine.metrics[name] for name in same} == {name: theirs.metrics[name] for name in same}
    for name in ("mfu_causal", "hfu_causal", "mfu_by_convention", "model_flops_per_step_causal", "tflops_per_gpu"):
        assert (mine.metrics[name], theirs.metrics[name] is None) == (None, False), name
    kept = ["rank", "step", "model_flops", "hardware_flops", "mfu", "hfu"]
    ours, others = (r.tables["per_rank_step"].sort("rank", "step") for r in (mine, theirs))
    assert ours.select(kept).rows() == others.select(kept).rows()
    assert ours["mfu_causal"].null_count() == ours["hfu_causal"].null_count() == ours.height
    masked = mine.tables["ops"]["flags"].fill_null("").str.contains("mask_unknown")
    assert masked.any()
    assert (mine.tables["ops"]["flops_causal"].is_null() == masked).all()
    assert any("whether attention was causal" in note for note in mine.notes)
    assert "no MFU" in mine.headline[0].note
    full = opened(folder, Settings(gpus_per_node=4, mfu_convention="full")).results["mfu"]
    assert full.metrics["mfu_by_convention"] == theirs.metrics["mfu"]
    assert full.metrics["tflops_per_gpu"] is not None


@pytest.mark.parametrize("layout", [by_rank, by_node])
def test_without_blobs_the_unsplit_budget_and_overlap_are_kinetos(
    simulated: Simulated, kineto: Run, tmp_path: Path, layout: Any  # noqa: ANN401 - parametrized
) -> None:  # fmt: skip
    mine = opened(layout(simulated, tmp_path / "nsight", blobs=False))
    comm = pl.col("exposed_comm_ns") + pl.col("sync_wait_ns").fill_null(0) + pl.col("pipeline_bubble_ns").fill_null(0)
    kept = [
        "rank", "step", "window_ns", "compute_ns", "memcpy_ns", "host_bound_ns", "idle_ns", "comm_total_ns",
        "overlap_ns", "exposed_total_ns",
    ]  # fmt: skip
    unsplit = [
        run.results["budget"].tables["per_rank_step"].sort("rank", "step").select(*kept, comm=comm).rows()
        for run in (mine, kineto)
    ]
    assert unsplit[0] == unsplit[1]
    everything = [
        run.results["overlap"].tables["per_rank_step"].filter(pl.col("role") == "all").sort("rank", "step").rows()
        for run in (mine, kineto)
    ]
    assert everything[0] == everything[1]
    assert mine.results["overlap"].metrics["overlap_share"] == kineto.results["overlap"].metrics["overlap_share"]
    # what cannot be told apart is null, with the command that tells it
    assert mine.results["budget"].metrics["sync_wait_share"] is None
    assert any("--include-blobs=true" in note for notes in mine.view.sources["notes"] for note in notes)


def test_nodes_that_name_no_ranks_are_counted_on_and_it_is_said(simulated: Simulated, tmp_path: Path) -> None:
    folder = by_node(simulated, tmp_path / "nsight", blobs=False)
    run = opened(folder)
    assert run.view.ranks.select("rank", "rank_source", "host").rows() == [
        (rank, "assumed", f"node{rank // 4:02d}") for rank in range(8)
    ]
    notes = run.view.sources["notes"].to_list()
    assert any("its ranks are assumed to be 4-7 of the run: counted on" in note for note in notes[1])
    (folder / "node0.sqlite").rename(folder / "z0.sqlite")
    (folder / "node1.sqlite").rename(folder / "y1.sqlite")
    chosen = opened(folder, Settings(rank_regex=r"([01])\.sqlite", ranks=(5, 6)))
    assert chosen.view.ranks.select("rank", "host").rows() == [(5, "node01"), (6, "node01")]


def shifted(path: Path, ns: int) -> None:
    """Let the file's clock begin `ns` later, as that of a host that booted later."""
    with contextlib.closing(sqlite3.connect(path)) as file, file:
        tables = [name for (name,) in file.execute("select name from sqlite_master where type = 'table'")]
        for table in tables:
            names = {row[1] for row in file.execute(f"pragma table_info({table})")}
            for column in names & {"start", "end"}:
                file.execute(f'update {table} set "{column}" = "{column}" - ?', (ns,))  # noqa: S608 - our own names
        file.execute("update TARGET_INFO_SESSION_START_TIME set utcEpochNs = utcEpochNs + ?", (ns,))


def test_hosts_are_aligned_by_wall_clock_and_communication(simulated: Simulated, kineto: Run, tmp_path: Path) -> None:
    folder = by_node(simulated, tmp_path / "nsight", blobs=True)
    shifted(folder / "node1.sqlite", 4_000_000_000_000)
    run = opened(folder)
    assert run.view.ranks["base_unix_ns"].to_list() == [BASE_UNIX_NS] * 4 + [BASE_UNIX_NS + 4_000_000_000_000] * 4
    columns = ["rank", "offset_ns", "residual_p95_ns", "component"]
    ours, theirs = (r.results["clocks"].tables["ranks"].sort("rank").select(columns).rows() for r in (run, kineto))
    assert ours == theirs
    assert {offset for _, offset, _, _ in ours[:4]} == {0}
    assert abs(ours[4][1] + 1_350_000) < 20_000
    assert run.results["budget"].metrics == kineto.results["budget"].metrics


def test_kineto_and_nsight_of_different_ranks_are_one_run(simulated: Simulated, kineto: Run, tmp_path: Path) -> None:
    simulated.write_kineto(tmp_path, [0, 1, 2, 3])
    for rank in range(4, 8):
        write(tmp_path / f"report_rank{rank}.sqlite", capture_of(simulated, [rank]), blobs=True)
    run = opened(tmp_path)
    assert run.view.ranks["format"].cast(pl.String).to_list() == ["kineto"] * 4 + ["nsight"] * 4
    ours, theirs = (r.results["budget"].tables["per_rank_step"].sort("rank", "step") for r in (run, kineto))
    kept = ["rank", "step", "window_ns", "compute_ns", "memcpy_ns", "comm_total_ns", "overlap_ns", "exposed_total_ns"]
    assert ours.select(kept).rows() == theirs.select(kept).rows()


def test_kineto_and_nsight_of_one_rank_are_refused(simulated: Simulated, tmp_path: Path) -> None:
    simulated.write_kineto(tmp_path, [2])
    write(tmp_path / "report_rank2.sqlite", capture_of(simulated, [2]))
    with pytest.raises(UsageError, match="are both of rank 2 and of the same steps"):
        opened(tmp_path)


@pytest.fixture(scope="module")
def renamed(simulated: Simulated, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an export of rank 0 whose steps are called `iteration …`, with two ranges around each half."""
    capture = capture_of(simulated, [0])
    ranges = [
        Range(r.pid, r.tid, r.start, r.end, r.text.replace("ProfilerStep#", "iteration ")) for r in capture.ranges
    ]
    steps = [r for r in ranges if r.text.startswith("iteration ") and r.end is not None]
    for k, step in enumerate(steps):
        middle = (step.start + (step.end or 0)) // 2
        ranges.append(Range(step.pid, step.tid + 9, step.start, middle, f"half {2 * k}"))
        ranges.append(Range(step.pid, step.tid + 9, middle, step.end, f"half {2 * k + 1}"))
    capture.ranges[:] = ranges
    return write(tmp_path_factory.mktemp("renamed") / "rank0.sqlite", capture)


def test_steps_by_the_programs_own_names(renamed: Path, simulated: Simulated, tmp_path: Path) -> None:
    run = opened(renamed)
    alone = opened(write(tmp_path / "rank0.sqlite", capture_of(simulated, [0])))
    assert run.view.steps.rows() == alone.view.steps.rows()
    assert run.results["budget"].metrics == alone.results["budget"].metrics
    (note,) = run.view.quality.filter(pl.col("topic") == "assumed_steps")["note"]
    assert "`iteration 5`" in note


def test_the_users_step_range_and_no_steps(renamed: Path) -> None:
    run = opened(renamed, Settings(step_range=r"^half \d+$"))
    halves = run.view.steps
    assert halves["step"].to_list() == [0, 2, 4]  # the host is ahead: it launches all in the first half
    assert "empty_ranges" in run.view.quality["topic"].to_list()
    whole = opened(renamed, Settings(ignore_steps=True)).view.steps
    assert whole["step"].to_list() == [None]
    assert halves["end_ns"].max() == whole["end_ns"].item()
    with pytest.raises(UsageError, match=r"--step-range .* matches no range"):
        opened(renamed, Settings(step_range="^no such$"))


def test_layers_by_path_and_graphs_of_a_program_with_its_own_ranges(tmp_path: Path) -> None:
    pid, ms = 144, 1_000_000
    capture = Capture(processes={pid: "python3"})
    for k in range(2):
        at = 100 * ms * k
        for text, start, end in (
            ("iteration {}", 0, 99), ("forward", 1, 60), ("layer 0", 2, 20), ("layer 1", 21, 40), ("mlp", 22, 30),
        ):  # fmt: skip
            capture.ranges.append(Range(pid, pid, at + start * ms, at + end * ms, text.format(k + 7)))
        for number, (launch, start, end) in enumerate(((3, 10, 14), (23, 30, 35), (35, 50, 51))):
            correlation = 10 * k + number + 1
            capture.calls.append(Call(pid, pid, at + launch * ms, at + launch * ms + 1000, correlation))
            capture.kernels.append(Kernel(pid, 0, 7, at + start * ms, at + end * ms, correlation, "gemm"))
        capture.calls.append(Call(pid, pid, at + 50 * ms, at + 51 * ms, 10 * k + 9, "cudaGraphLaunch_v10000"))
        capture.graphs.append(Graph(pid, 0, 7, at + 60 * ms, at + 90 * ms, 10 * k + 9, 5))
    run = opened(write(tmp_path / "r.sqlite", capture))
    assert run.view.steps["step"].to_list() == [7, 8]
    found = run.results["phases"].tables["paths"]
    assert found.select("path", "calls", "gpu_ns", "projected_ns").rows() == [
        ("forward", 2, 2 * 40 * ms, 2 * 80 * ms),
        ("forward / layer 1", 2, 2 * 6 * ms, 2 * 21 * ms),
        ("forward / layer 1 / mlp", 2, 2 * 5 * ms, 2 * 5 * ms),
        ("forward / layer 0", 2, 2 * 4 * ms, 2 * 4 * ms),
    ]
    (finding,) = [f for f in run.findings if f.id == "kernels.graph_replays"]
    assert finding.severity == "warning"
    assert "--cuda-graph-trace=node" in finding.advice
    assert finding.recoverable_ns_per_step is None
    assert run.results["kernels"].metrics["graph_share"] == 0.75
