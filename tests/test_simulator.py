"""The simulator itself: its truth adds up, its schedules have the published bubbles, its files hold what it did."""

from __future__ import annotations

import ast
import gzip
import json
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulator import BUCKETS, Config, SlowLink, Stall, samples, simulate, whatif
from simulator.record import BASE_UNIX_NS
from simulator.schedule import zb1p
from simulator.timeline import measure

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from simulator import Run

BARE = Config(
    dp=1,
    tp=1,
    zero_transfer=True,
    copies=False,
    grad_norm=False,
    optimizer=False,
    sync_step=False,
    kernel_floor_ns=200_000,
    op_ns=200,
    launch_ns=100,
    latency_ns=200,
)
"""Pipeline alone: equal kernels, free transfers, a host that is always ahead."""


def assert_sums(run: Run, *, joined: bool) -> None:
    truth = run.truth(joined=joined)
    rows = truth.budget()
    assert rows
    for row in rows:
        assert sum(row[f"{bucket}_ns"] for bucket in BUCKETS) == row["window_ns"]
        assert row["overlap_ns"] + row["exposed_total_ns"] == row["comm_total_ns"]
        assert min(row[f"{bucket}_ns"] for bucket in BUCKETS) >= 0
    for trace in run.traces:
        mine = [row for row in rows if row["rank"] == trace.place.rank]
        for window, row in zip(truth.windows[trace.place.rank], mine, strict=True):
            compute = [
                (max(a.start_ns, window.start_ns), min(a.end_ns, window.end_ns))
                for a in trace.activities
                if a.kind == "compute"
            ]
            assert measure(compute) == row["compute_ns"]
        for before, after in pairwise(truth.windows[trace.place.rank]):
            assert before.end_ns == after.start_ns


def share(run: Run) -> Fraction:
    rows = run.truth().pipeline()
    return sum((Fraction(r["bubble_ns"], r["window_ns"]) for r in rows), Fraction()) / len(rows)


@pytest.mark.parametrize(("stages", "microbatches"), [(4, 4), (4, 8), (8, 32), (2, 4)])
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize("p2p", ["async", "batched"])
def test_equal_stages_and_free_transfers_give_the_published_bubble(
    stages: int, microbatches: int, schedule: str, p2p: str
) -> None:
    run = simulate(BARE.replace(pp=stages, microbatches=microbatches, schedule=schedule, p2p=p2p, steps=1))
    assert share(run) == Fraction(stages - 1, microbatches + stages - 1)


@pytest.mark.parametrize(("stages", "microbatches", "chunks"), [(4, 4, 2), (4, 8, 2), (8, 32, 2), (2, 4, 4)])
def test_interleaving_divides_the_bubble_by_the_chunks(stages: int, microbatches: int, chunks: int) -> None:
    run = simulate(
        BARE.replace(pp=stages, microbatches=microbatches, chunks=chunks, schedule="interleaved_1f1b", steps=1)
    )
    assert share(run) == Fraction(stages - 1, chunks * microbatches + stages - 1)


@pytest.mark.parametrize(("stages", "microbatches"), [(2, 4), (4, 4), (4, 8), (8, 32)])
def test_zero_bubble_schedule_has_the_published_bubble(stages: int, microbatches: int) -> None:
    orders = [zb1p(stages, s, microbatches) for s in range(stages)]
    at = [0] * stages
    clock = [0] * stages
    done: dict[tuple[str, int, int], int] = {}
    for _ in range(3 * microbatches * stages):
        for s in range(stages):
            if at[s] == len(orders[s]):
                continue
            kind, i, _chunk = orders[s][at[s]]
            source = {"F": ("F", i, s - 1), "B": ("B", i, s + 1), "W": ("B", i, s)}[kind]
            if source[2] == stages:
                source = ("F", i, s)
            if source[2] >= 0 and source not in done:
                continue
            clock[s] = done[kind, i, s] = max(clock[s], done.get(source, 0)) + 1
            at[s] += 1
    assert at == [len(order) for order in orders]
    assert max(clock) == 3 * microbatches + stages - 1


def test_zero_bubble_is_smaller_than_1f1b() -> None:
    base = BARE.replace(pp=4, microbatches=8, steps=1)
    assert share(simulate(base.replace(schedule="zb1p"))) < share(simulate(base))


def test_an_unknown_schedule_is_named() -> None:
    with pytest.raises(ValueError, match="no schedule 'magic'"):
        simulate(Config(schedule="magic"))


def test_a_schedule_may_be_given_as_slots() -> None:
    order = (("F", 0, 0), ("F", 1, 0), ("B", 1, 0), ("B", 0, 0))
    run = simulate(BARE.replace(pp=2, microbatches=2, schedule=(order, order), steps=1))
    assert [(s.kind, s.microbatch) for s in run.truth().slots if s.rank == 0] == [(k, i) for k, i, _ in order]


def test_a_schedule_that_cannot_run_is_a_deadlock_not_a_hang() -> None:
    swapped = (("F", 1, 0), ("F", 0, 0), ("B", 0, 0), ("B", 1, 0))
    straight = (("F", 0, 0), ("B", 0, 0), ("F", 1, 0), ("B", 1, 0))
    with pytest.raises(RuntimeError, match="deadlock"):
        simulate(BARE.replace(pp=2, microbatches=2, schedule=(swapped, straight), p2p="batched"))


@settings(max_examples=40, deadline=None)
@given(
    st.builds(
        Config,
        dp=st.sampled_from([1, 2]),
        tp=st.sampled_from([1, 2]),
        pp=st.sampled_from([1, 2, 3]),
        cp=st.sampled_from([1, 1, 2]),
        ep=st.just(1),
        gpus_per_node=st.sampled_from([1, 2, 8]),
        dp_mode=st.sampled_from(["ddp", "zero1", "fsdp"]),
        schedule=st.sampled_from(["1f1b", "gpipe", "zb1p"]),
        microbatches=st.integers(1, 4),
        p2p=st.sampled_from(["async", "batched"]),
        p2p_peers=st.booleans(),
        layers=st.sampled_from([1, 2]),
        recompute=st.booleans(),
        jitter=st.sampled_from([0.0, 0.05]),
        comm_jitter=st.sampled_from([0.0, 0.3]),
        end_jitter_ns=st.sampled_from([0, 3000]),
        latency_ns=st.sampled_from([1000, 6000]),
        latency_jitter_ns=st.sampled_from([0, 9000]),
        op_ns=st.sampled_from([1500, 30_000]),
        sync_step=st.booleans(),
        unrecorded_steps=st.sampled_from([0, 1]),
        warmup_work=st.booleans(),
        between_steps_work=st.booleans(),
        profiler_steps=st.booleans(),
        clock_offsets_ns=st.sampled_from([{}, {0: 1_000_000, 1: -700_001}]),
        clock_drifts_ppm=st.sampled_from([{}, {0: 15.0}]),
        resolution_ns=st.sampled_from([1, 1000]),
        seed=st.integers(0, 3),
    )
)
def test_truth_adds_up_whatever_is_simulated(config: Config) -> None:
    run = simulate(config)
    assert_sums(run, joined=False)
    assert_sums(run, joined=True)
    for row in run.truth(joined=True).waits():
        assert row["start_ns"] <= row["wait_end_ns"] <= row["end_ns"]


def test_the_same_config_gives_the_same_bytes(tmp_path: Path) -> None:
    config = Config(jitter=0.05, host_jitter=0.1, comm_jitter=0.2, latency_jitter_ns=2000, seed=4)
    one, two = (simulate(config).write_kineto(tmp_path / name) for name in ("one", "two"))
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in two]
    other = simulate(config.replace(seed=5)).write_kineto(tmp_path / "three")
    assert one[0].read_bytes() != other[0].read_bytes()


def test_members_of_a_collective_end_together_after_the_last_arrival() -> None:
    run = simulate(Config(jitter=0.1, slow_ranks={3: 1.3}, seed=1))
    transfers = {id(t): t for trace in run.traces for a in trace.activities for t in a.source.transfers}
    assert transfers
    for t in transfers.values():
        assert t.arrived == t.expected == len(t.members)
        if t.symmetric:
            assert {m.end_ns for m in t.members} == {max(m.start_ns for m in t.members) + t.ns}


def test_nothing_starts_before_its_launch_or_its_predecessor() -> None:
    run = simulate(Config(jitter=0.1, latency_jitter_ns=5000, host_jitter=0.2))
    for trace in run.traces:
        reached: dict[int, int] = {}
        for a in trace.activities:
            assert a.launch_start_ns is not None
            assert a.start_ns > a.launch_start_ns
            assert a.start_ns >= reached.get(a.stream, 0)
            reached[a.stream] = a.end_ns


def bucket(run: Run, rank: int, name: str, *, joined: bool = True) -> int:
    return sum(int(r[f"{name}_ns"]) for r in run.truth(joined=joined).budget() if r["rank"] == rank)


HEALTHY = Config()


@pytest.mark.parametrize(
    "change",
    [
        {"slow_ranks": {3: 1.5}},
        {"heavy_stages": {1: 1.5}},
        {"slow_links": (SlowLink(5.0, role="dp"),)},
        {"stalls": (Stall(2, 3_000_000, "dataloader"),)},
        {"stalls": (Stall(2, 3_000_000, "gc"),)},
        {"stalls": (Stall(2, 3_000_000, "sync"),)},
        {"slow_hosts": {1: 6.0}},
        {"long_sequences": {1: 2.0}},
        {"recompute": True},
        {"op_ns": 40_000},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_perturbation_makes_the_run_longer(change: dict[str, Any]) -> None:
    assert simulate(HEALTHY.replace(**change)).elapsed_ns > simulate(HEALTHY).elapsed_ns * 1.05


def test_a_slow_rank_computes_longer_and_its_peers_wait() -> None:
    healthy, slow = simulate(HEALTHY), simulate(HEALTHY.replace(slow_ranks={3: 1.5}))
    assert bucket(slow, 3, "compute") > 1.4 * bucket(healthy, 3, "compute")
    assert bucket(slow, 2, "compute") == bucket(healthy, 2, "compute")
    assert bucket(slow, 2, "sync_wait") > bucket(slow, 3, "sync_wait")


def test_a_stalled_host_is_host_bound_or_idle_and_its_peers_wait() -> None:
    run = simulate(HEALTHY.replace(stalls=(Stall(2, 3_000_000, "sync"),)))
    assert bucket(run, 2, "host_bound") > 5_000_000
    assert bucket(run, 3, "sync_wait") > 5_000_000


def test_without_the_join_waiting_counts_as_moving() -> None:
    run = simulate(HEALTHY.replace(slow_ranks={3: 1.5}))
    for row, joined in zip(run.truth().budget(), run.truth(joined=True).budget(), strict=True):
        assert row["sync_wait_ns"] == row["pipeline_bubble_ns"] == 0
        assert row["exposed_comm_ns"] == row["exposed_total_ns"] - 0 >= joined["exposed_comm_ns"]
        assert row["compute_ns"] == joined["compute_ns"]


def test_one_rank_alone_knows_no_waiting() -> None:
    run = simulate(HEALTHY)
    alone = run.truth(ranks=[0], joined=True).budget()
    assert alone == [r for r in run.truth().budget() if r["rank"] == 0]


def test_unrecorded_steps_leave_orphans() -> None:
    run = simulate(Config(unrecorded_steps=1, sync_step=False, dp=2, tp=1, pp=1))
    orphans = [a for t in run.traces for a in t.activities if a.launch_start_ns is None]
    assert orphans
    assert_sums(run, joined=True)
    assert all(a.number == 0 for a in orphans)


def test_clocks_shift_and_drift() -> None:
    plain = simulate(Config(gpus_per_node=4))
    skewed = simulate(Config(gpus_per_node=4, clock_offsets_ns={1: 2_000_000}, clock_drifts_ppm={1: 20.0}))
    for one, two in zip(plain.traces, skewed.traces, strict=True):
        for a, b in zip(one.activities, two.activities, strict=True):
            moved = 0 if one.place.host == 0 else 2_000_000 + 20_000 * a.source.start_ns // 1_000_000_000
            assert b.start_ns - a.start_ns == moved


def test_flops_of_a_layer_are_the_textbook_ones() -> None:
    config = Config(dp=1, tp=1, pp=1, microbatches=3, layers=2)
    d, f, s = config.hidden, config.ffn, config.sequence
    matmul = 2 * s * (4 * d * d + 2 * d * f)
    attention = 4 * s * s * d
    layers = config.layers * config.microbatches
    for row in simulate(config).truth().flops():
        assert row["model_flops"] == 3 * layers * (matmul + attention)
        assert row["model_flops_causal"] == 3 * layers * (matmul + attention // 2)
        assert row["hardware_flops"] == layers * (3 * matmul + 7 * attention // 2)
    again = simulate(config.replace(recompute=True)).truth().flops()[0]
    assert again["model_flops"] == 3 * layers * (matmul + attention)
    assert again["hardware_flops"] == layers * (4 * matmul + 9 * attention // 2)
    stopped = simulate(config.replace(recompute="early_stop")).truth().flops()[0]
    assert again["hardware_flops"] - stopped["hardware_flops"] == layers * 2 * s * d * f


def test_sharding_shares_the_flops_out() -> None:
    whole = simulate(Config(dp=1, tp=1, pp=1)).truth().flops()[0]["model_flops"]
    for grid in ({"tp": 2}, {"cp": 2}):
        run = simulate(Config(dp=1, tp=1, pp=1).replace(**grid))
        assert sum(r["model_flops"] for r in run.truth().flops() if r["step"] == run.config.first_step) == whole


def test_the_simulator_shares_no_code_with_what_it_tests(repository: Path) -> None:
    for path in (repository / "tests" / "simulator").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [n for n in names if n.split(".")[0] == "tracetool" and n != "tracetool.tables"], path.name


def test_sequence_lengths_vary_by_replica_and_alike_within_one() -> None:
    run = simulate(Config(dp=2, tp=2, pp=1, length_jitter=0.3))

    def forwards(rank: int) -> list[int]:
        return [s.end_ns - s.start_ns for s in run.truth().slots if s.rank == rank and s.kind == "F"]

    assert forwards(0) == forwards(1) != forwards(2) == forwards(3)
    assert max(forwards(0)) > 1.1 * min(forwards(0))


def test_experts_exchange_tokens_within_their_group() -> None:
    run = simulate(Config(dp=4, tp=1, pp=1, ep=2))
    rows = [r for r in run.truth(joined=True).instances() if r["role"] == "ep"]
    assert {tuple(r["ranks"]) for r in rows} == {(0, 1), (2, 3)}
    assert_sums(run, joined=True)
    with pytest.raises(ValueError, match="does not divide"):
        simulate(Config(dp=2, ep=4))


# ---- files ----


def load(path: Path) -> dict[str, Any]:
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    loaded: dict[str, Any] = json.loads(text, parse_float=lambda t: t)
    return loaded


def ns(text: object) -> int:
    whole, _, part = str(text).partition(".")
    return int(whole) * 1000 + int((part + "000")[:3])


GPU = ("kernel", "gpu_memcpy", "gpu_memset")


@pytest.mark.parametrize("times", ["base", "epoch_decimal"])
@pytest.mark.parametrize("pretty", [True, False])
def test_files_hold_every_activity_to_the_ns(tmp_path: Path, times: str, pretty: bool) -> None:  # noqa: FBT001
    run = simulate(Config(jitter=0.1, clock_offsets_ns={0: 123_457}))
    for trace, path in zip(run.traces, run.write_kineto(tmp_path, times=times, pretty=pretty), strict=True):
        document = load(path)
        shift = 0 if times == "base" else BASE_UNIX_NS
        assert ("baseTimeNanoseconds" in document) == (times == "base")
        written = [
            (ns(e["ts"]), ns(e["dur"]), e["name"], e["args"]["correlation"])
            for e in document["traceEvents"]
            if e.get("cat") in GPU
        ]
        seen = [(a.start_ns + shift, a.end_ns - a.start_ns, a.name, a.correlation) for a in trace.activities]
        assert written == seen


def test_files_link_launches_and_operators(tmp_path: Path) -> None:
    run = simulate(Config())
    document = load(run.write_kineto(tmp_path, ranks=[5])[0])
    assert document["distributedInfo"]["rank"] == 5
    events = document["traceEvents"]
    calls = {e["args"]["correlation"] for e in events if e.get("cat") == "cuda_runtime"}
    ids = {e["args"]["External id"] for e in events if e.get("cat") in ("cpu_op", "user_annotation")}
    activities = [e for e in events if e.get("cat") in GPU]
    assert all(e["args"]["correlation"] in calls and e["args"]["External id"] in ids for e in activities)
    dangling = load(run.write_kineto(tmp_path, ranks=[5], external_ids="dangling", names="other.json")[0])
    ids = {e["args"]["External id"] for e in dangling["traceEvents"] if e.get("cat") in ("cpu_op", "user_annotation")}
    assert not any(e["args"]["External id"] in ids for e in dangling["traceEvents"] if e.get("cat") in GPU)


def test_ranges_of_a_thread_nest(tmp_path: Path) -> None:
    run = simulate(Config(recompute=True, host_jitter=0.1))
    for document in map(load, run.write_kineto(tmp_path, python_functions=True, memory=True)):
        open_until: dict[int, list[int]] = {}
        events = [
            e for e in document["traceEvents"] if e.get("ph") == "X" and e["cat"] in ("cpu_op", "user_annotation")
        ]
        for e in events:
            start, end = ns(e["ts"]), ns(e["ts"]) + ns(e["dur"])
            around = open_until.setdefault(e["tid"], [])
            while around and around[-1] <= start:
                around.pop()
            assert not around or end <= around[-1]
            around.append(end)


def test_options_leave_out_what_they_say(tmp_path: Path) -> None:
    run = simulate(Config(resolution_ns=1000))
    path = run.write_kineto(
        tmp_path,
        ranks=[0],
        names="{host}_{pid}.pt.trace.json",
        times="epoch_integer",
        pretty=False,
        keys_after=False,
        distributed_info=False,
        device_properties=False,
        comm_args=False,
        external_ids="none",
        flows=False,
        gpu_annotations=False,
    )[0]
    assert path.name == "node00_41000.pt.trace.json"
    assert b"\n" not in path.read_bytes()
    document = load(path)
    assert list(document)[-1] == "traceEvents"
    assert not {"distributedInfo", "deviceProperties", "baseTimeNanoseconds"} & set(document)
    events = document["traceEvents"]
    assert all(isinstance(e["ts"], int) for e in events)
    assert not any("External id" in e.get("args", {}) or "Collective name" in e.get("args", {}) for e in events)
    assert not any(e["ph"] in ("s", "f") or e.get("cat") == "gpu_user_annotation" for e in events)


def test_whole_microseconds_want_a_coarse_clock(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="resolution_ns=1000"):
        simulate(Config(steps=1)).write_kineto(tmp_path, times="epoch_integer")


def test_repeating_makes_longer_files_of_further_steps(tmp_path: Path) -> None:
    run = simulate(Config(dp=1, tp=1, pp=1))
    document = load(run.write_kineto(tmp_path, repeat=3)[0])
    events = document["traceEvents"]
    steps = [e["name"] for e in events if e.get("cat") == "user_annotation" and e["name"].startswith("ProfilerStep")]
    assert steps == [f"ProfilerStep#{k}" for k in range(5, 11)]
    correlations = [e["args"]["correlation"] for e in events if e.get("cat") in GPU]
    assert len(correlations) == len(set(correlations)) == 3 * len(run.traces[0].activities)


@pytest.mark.parametrize("name", sorted(samples.SAMPLES))
def test_sample_traces_are_what_the_simulator_makes(name: str, repository: Path, tmp_path: Path) -> None:
    fresh = simulate(samples.SAMPLES[name]).write_kineto(tmp_path, compression=1)
    kept = sorted((repository / "sample_traces" / name).iterdir())
    assert [p.name for p in kept] == [p.name for p in fresh]
    for one, two in zip(kept, fresh, strict=True):
        assert gzip.decompress(one.read_bytes()) == gzip.decompress(two.read_bytes())


def test_sample_traces_stay_small(repository: Path) -> None:
    files = [p for name in samples.SAMPLES for p in (repository / "sample_traces" / name).iterdir()]
    assert sum(p.stat().st_size for p in files) < 5_000_000


def test_a_rank_may_record_fewer_steps_than_its_peers() -> None:
    run = simulate(Config(steps=3, recorded_steps={1: (6, 6)}))
    assert [s for s, _, _ in run.traces[1].step_ranges] == [6]
    assert [s for s, _, _ in run.traces[0].step_ranges] == [5, 6, 7]
    assert_sums(run, joined=True)


def test_next_layers_parameters_are_gathered_while_this_one_computes() -> None:
    run = simulate(Config(dp=4, tp=1, pp=1, layers=4, dp_mode="fsdp"))
    rows = [r for r in run.truth(joined=True).overlap() if r["role"] == "fsdp"]
    assert rows
    assert all(r["overlap_ns"] > r["comm_ns"] // 2 for r in rows)


def test_synchronisations_are_written_on_demand(tmp_path: Path) -> None:
    run = simulate(Config(dp=1, tp=2, pp=1))
    events = load(run.write_kineto(tmp_path, ranks=[0], sync_events=True)[0])["traceEvents"]
    records = {e["args"]["correlation"]: e["ts"] for e in events if e["name"] == "cudaEventRecord"}
    waits = [e for e in events if e.get("cat") == "cuda_sync" and e["name"] == "Stream Wait Event"]
    assert waits
    assert all(e["args"]["wait_on_cuda_event_record_corr_id"] in records for e in waits)
    assert any(e["name"] == "Stream Sync" for e in events if e.get("cat") == "cuda_sync")


@pytest.mark.parametrize(("stages", "microbatches"), [(2, 4), (4, 8)])
@pytest.mark.parametrize("schedule", ["zbv", "dualpipev"])
def test_v_shaped_schedules_run_every_slot_once(stages: int, microbatches: int, schedule: str) -> None:
    config = BARE.replace(
        pp=stages,
        microbatches=microbatches,
        chunks=2,
        placement="vee",
        schedule=schedule,
        pp_annotations="torch",
        steps=1,
    )
    run = simulate(config)
    kinds = ("F", "B", "W") if schedule == "zbv" else ("F", "B")
    wanted = {(k, i, c) for k in kinds for i in range(microbatches) for c in (0, 1)}
    found = run.truth().slots
    for rank in range(stages):
        mine = [(s.kind, s.microbatch, s.chunk) for s in found if s.rank == rank]
        assert len(mine) == len(wanted)
        assert set(mine) == wanted
    names = [r.name for t in run.traces for r in t.ranges if r.name.startswith("PP:")]
    assert any(name.endswith("OVERLAP_F_B") for name in names) == (schedule == "dualpipev")
    one_f_one_b = BARE.replace(pp=stages, microbatches=microbatches, layers=2, steps=1)
    assert share(run) < share(simulate(one_f_one_b))


def test_custom_all_reduces_run_on_the_compute_stream_without_arguments(tmp_path: Path) -> None:
    run = simulate(Config(pp=1, custom_all_reduce=True))
    events = load(run.write_kineto(tmp_path, ranks=[0])[0])["traceEvents"]
    custom = [e for e in events if e.get("cat") == "kernel" and "cross_device_reduce" in e["name"]]
    assert custom
    assert all(e["tid"] == 7 and "Collective name" not in e["args"] for e in custom)
    assert_sums(run, joined=True)


def test_the_sweep_agrees_with_looking_at_every_stretch_by_itself() -> None:
    run = simulate(Config(jitter=0.1, seed=3, op_ns=20_000, latency_ns=1_000, latency_jitter_ns=8_000))
    truth = run.truth(joined=True)
    trace = run.traces[4]
    window = truth.windows[4][0]
    bubbles = truth.bubbles(4)
    acts = [(a.start_ns, truth.wait_end(a) if a.kind == "comm" else a.start_ns, a.end_ns, a) for a in trace.activities]
    edges = {window.start_ns, window.end_ns, *(t for b in bubbles for t in b)}
    edges |= {t for s, w, e, a in acts for t in (s, w, e, a.launch_end_ns or s)}
    inside = sorted(t for t in edges if window.start_ns <= t <= window.end_ns)
    sums = dict.fromkeys(BUCKETS, 0)
    for begin, end in pairwise(inside):
        running = [x for x in acts if x[0] <= begin < x[2]]
        kinds = {x[3].kind for x in running}
        comms = [x for x in running if x[3].kind == "comm"]
        if "compute" in kinds:
            found = "compute"
        elif any(begin >= w for _, w, _, _ in comms):
            found = "exposed_comm"
        elif comms:
            found = "pipeline_bubble" if any(x[3].tags["role"] == "pp" for x in comms) else "sync_wait"
        elif running:
            found = "memcpy"
        elif any(b <= begin < e for b, e in bubbles):
            found = "pipeline_bubble"
        else:
            dry = max(e for _, _, e, _ in acts if e <= begin)
            following = min((x for x in acts if x[0] >= end), key=lambda x: (x[0], x[0] - x[2]))[3]
            called, returned = following.launch_start_ns, following.launch_end_ns
            assert called is not None
            assert returned is not None
            late = called > dry and begin < returned
            found = "host_bound" if late else "idle"
        sums[found] += end - begin
    row = next(r for r in truth.budget() if r["rank"] == 4)
    assert sums == {b: row[f"{b}_ns"] for b in BUCKETS}
    assert min(sums.values()) > 0


def test_clock_truth_aligns_every_end() -> None:
    config = Config(gpus_per_node=2, clock_offsets_ns={0: 500, 2: -1_900_000}, clock_drifts_ppm={0: 3.0, 2: -17.0})
    run = simulate(config)
    t0 = run.traces[5].activities[0].start_ns
    offset, drift = run.clock(5, t0)
    for a in run.traces[5].activities:
        aligned = a.end_ns + offset + drift * 1e-6 * (a.end_ns - t0)
        assert abs(aligned - run.reference_ns(a.source.end_ns)) <= 3


def test_instances_hold_every_member_and_its_transfer() -> None:
    run = simulate(Config(comm_jitter=0.2))
    rows = run.truth(joined=True).instances()
    assert {r["role"] for r in rows} == {"tp", "dp", "pp", "other"}
    for row in rows:
        assert len(row["ranks"]) == row["size"]
        assert row["transfer_ns"] == row["nominal_ns"] > 0


@pytest.mark.parametrize(
    ("config", "change"),
    [
        (HEALTHY.replace(slow_ranks={3: 1.3}, jitter=0.02), whatif.without_stragglers),
        (HEALTHY.replace(slow_ranks={3: 1.3}, jitter=0.02), lambda c: whatif.without_slow_rank(c, 3)),
        (HEALTHY.replace(heavy_stages={1: 1.4}), whatif.balanced_stages),
        (HEALTHY, lambda c: whatif.faster_communication(c, 2.0)),
        (HEALTHY.replace(op_ns=20_000), whatif.without_host_gaps),
        (HEALTHY.replace(comm_jitter=0.5), whatif.without_jitter),
    ],
)
def test_a_change_really_made_saves_time(config: Config, change: Callable[[Config], Config]) -> None:
    assert simulate(change(config)).elapsed_ns < simulate(config).elapsed_ns


def test_removing_a_slow_rank_gives_the_run_without_it() -> None:
    config = HEALTHY.replace(slow_ranks={3: 1.3}, jitter=0.05, comm_jitter=0.1, host_jitter=0.1)
    healed = simulate(whatif.without_slow_rank(config, 3))
    never = simulate(config.replace(slow_ranks={}))
    assert [a.end_ns for t in healed.traces for a in t.activities] == [
        a.end_ns for t in never.traces for a in t.activities
    ]


def test_a_free_host_leaves_no_host_bound_time() -> None:
    rows = simulate(whatif.without_host_gaps(HEALTHY)).truth().budget()
    assert sum(row["host_bound_ns"] for row in rows) == 0
