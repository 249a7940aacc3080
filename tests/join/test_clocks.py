"""Clocks: offsets and drifts recovered from the ends of collectives, robustly, and never across what is unconnected."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from tracetool.join.clocks import PAIR_SCHEMA, SAMPLE_SCHEMA, Clocks, solve

RANKS, PER_HOST = 16, 4
HOSTS = RANKS // PER_HOST
BASE = 1_700_000_000_000_000_000


def _hosts() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "rank": range(RANKS),
            "host": [f"h{rank // PER_HOST}" for rank in range(RANKS)],
            "base_unix_ns": [BASE + rank // PER_HOST * 10**9 for rank in range(RANKS)],
        },
        schema_overrides={"rank": pl.Int32},
    )


def _simulated(span_ns: int, *, outliers: float, seed: int) -> tuple[pl.DataFrame, list[int], list[float]]:
    """Return samples of collectives over one rank of each host, with true offsets and drifts of the hosts."""
    rng = np.random.default_rng(seed)
    offset = [0, *rng.integers(-2_000_000, 2_000_000, HOSTS - 1).tolist()]
    drift = [0.0, *rng.uniform(-20e-6, 20e-6, HOSTS - 1).tolist()]
    rows = []
    for number in range(300):
        end = span_ns * number // 300
        for host in range(HOSTS):
            noise = rng.exponential(3000) + (rng.exponential(300_000) if rng.random() < outliers else 0)
            ahead = offset[host] + drift[host] * end + noise
            rank = host * PER_HOST + number % PER_HOST
            shown = round(end + ahead) - host * 10**9
            rows.append((rank, number, "all_reduce", HOSTS, shown - 50_000, shown))
    return pl.DataFrame(rows, schema=SAMPLE_SCHEMA, orient="row"), offset, drift


def _error_ns(clocks: Clocks, offset: list[int], drift: list[float], span_ns: int) -> float:
    """Return the largest error of aligned time between host 0 and any other, at both ends of the span."""
    worst = 0.0
    for host in range(1, HOSTS):
        rank = host * PER_HOST
        for at in (0, span_ns):
            shown = round(at + offset[host] + drift[host] * at) - host * 10**9
            rows = pl.DataFrame({"rank": [0, rank], "t": [at, shown]}, schema={"rank": pl.Int32, "t": pl.Int64})
            reference, other = clocks.align(rows, "t")["aligned_ns"].to_list()
            worst = max(worst, abs(other - reference))
    return worst


@pytest.mark.parametrize("seed", range(3))
def test_offsets_of_2_ms_and_drifts_of_20_ppm_are_recovered(seed: int) -> None:
    span = 3_000_000_000
    samples, offset, drift = _simulated(span, outliers=0.02, seed=seed)
    clocks = solve(samples, _hosts())
    assert _error_ns(clocks, offset, drift, span) < 5_000
    assert clocks.notes == ()
    assert clocks.ranks["component"].unique().to_list() == [0]


def test_a_short_trace_gets_offsets_only_and_it_is_said() -> None:
    samples, offset, _ = _simulated(100_000_000, outliers=0.0, seed=1)
    clocks = solve(samples, _hosts())
    assert clocks.ranks["drift_ppm"].abs().max() == 0
    assert "too little time" in clocks.notes[0]
    assert _error_ns(clocks, offset, [0.0] * HOSTS, 0) < 5_000


def test_ranks_of_a_host_share_its_clock_and_the_lowest_is_the_reference() -> None:
    samples, _, _ = _simulated(3_000_000_000, outliers=0.0, seed=2)
    ranks = solve(samples, _hosts()).ranks
    assert ranks["offset_ns"].head(PER_HOST).to_list() == [0] * PER_HOST
    assert ranks.group_by("host").agg(pl.col("offset_ns").n_unique())["offset_ns"].to_list() == [1] * HOSTS


def test_own_time_undoes_align() -> None:
    samples, _, _ = _simulated(3_000_000_000, outliers=0.0, seed=3)
    clocks = solve(samples, _hosts())
    rows = pl.DataFrame(
        {"rank": [0, 5, 15] * 3, "t": np.linspace(0, 3e9, 9).astype(np.int64)}, schema_overrides={"rank": pl.Int32}
    )
    aligned = clocks.align(rows, "t")
    back = aligned.select(clocks.own_time(aligned, "aligned_ns").alias("t"))["t"]
    assert (back - rows["t"]).abs().max() <= 1  # type: ignore[operator] # not empty


def test_hosts_nothing_connects_are_components_of_their_own() -> None:
    samples, _, _ = _simulated(3_000_000_000, outliers=0.0, seed=4)
    ranks = solve(samples.filter(pl.col("rank") < 2 * PER_HOST), _hosts()).ranks
    assert ranks["component"].to_list() == [0] * 8 + [1] * 4 + [2] * 4
    assert ranks["samples"].tail(8).to_list() == [0] * 8


def test_an_operation_whose_ends_mean_nothing_is_refused() -> None:
    samples, offset, drift = _simulated(3_000_000_000, outliers=0.0, seed=5)
    rng = np.random.default_rng(0)
    nonsense = samples.with_columns(
        op=pl.lit("all_gather"),
        instance=pl.col("instance") + 10_000,
        end_ns=pl.col("end_ns") + pl.Series(rng.integers(-(10**9), 10**9, samples.height)),
    )
    clocks = solve(pl.concat([samples, nonsense]), _hosts())
    assert "all_gather of 4 ranks" in clocks.notes[0]
    assert _error_ns(clocks, offset, drift, 3_000_000_000) < 5_000


def test_no_samples_leave_every_host_alone() -> None:
    ranks = solve(pl.DataFrame(schema=SAMPLE_SCHEMA), _hosts()).ranks
    assert ranks["offset_ns"].abs().max() == 0
    assert ranks["component"].n_unique() == HOSTS


def test_hosts_that_only_messages_join_get_the_middle_and_its_half_width() -> None:
    pairs = pl.DataFrame(
        [(0, 4, BASE + 5_000, BASE + 2_000), (4, 0, BASE + 2_500, BASE + 5_900)], schema=PAIR_SCHEMA, orient="row"
    )
    clocks = solve(pl.DataFrame(schema=SAMPLE_SCHEMA), _hosts().with_columns(base_unix_ns=pl.lit(BASE)), pairs)
    first = clocks.ranks.unique("host", keep="first", maintain_order=True)
    assert first["component"].to_list() == [0, 0, 1, 2]
    assert first["basis"].to_list() == ["reference", "p2p", "alone", "alone"]
    assert first["offset_ns"].to_list() == [0, 3200, 0, 0]
    assert first["half_width_ns"].to_list() == [0, 200, 0, 0]
    assert (clocks.checked, clocks.violated_before, clocks.violated_after) == (2, 1, 0)


def test_a_host_with_few_collectives_gets_no_drift() -> None:
    samples, offset, _ = _simulated(3_000_000_000, outliers=0.0, seed=6)
    last = (HOSTS - 1) * PER_HOST
    thin = samples.filter((pl.col("rank") < last) | (pl.col("instance") < 30))
    clocks = solve(thin, _hosts())
    tail = clocks.ranks.filter(pl.col("rank") >= last)
    assert tail["basis"].unique().to_list() == ["offset"]
    assert tail["drift_ppm"].abs().max() == 0
    assert abs(tail["offset_ns"][0] + offset[-1]) < 20_000
    assert "too few collectives" in clocks.notes[0]


def test_standard_errors_shrink_with_the_number_of_ends() -> None:
    samples, _, _ = _simulated(3_000_000_000, outliers=0.0, seed=7)
    many = solve(samples, _hosts()).ranks["error_ns"].max()
    few = solve(samples.filter(pl.col("instance") % 4 == 0), _hosts()).ranks["error_ns"].max()
    assert isinstance(many, int)
    assert isinstance(few, int)
    assert 0 < many < few < 4 * many


def test_a_drift_that_the_noise_hides_is_not_used() -> None:
    samples, _, _ = _simulated(3_000_000_000, outliers=0.0, seed=8)
    rng = np.random.default_rng(8)
    few = samples.filter(pl.col("instance") % 15 == 0)
    noisy = few.with_columns(end_ns=pl.col("end_ns") + pl.Series(rng.integers(-(10**6), 10**6, few.height)))
    ranks = solve(noisy, _hosts()).ranks
    assert ranks["drift_ppm"].abs().max() == 0
    assert ranks["basis"].unique(maintain_order=True).to_list() == ["reference", "offset"]
    # the same few ends without the noise do tell it
    assert solve(few, _hosts()).ranks["basis"].unique(maintain_order=True).to_list() == ["reference", "collectives"]
