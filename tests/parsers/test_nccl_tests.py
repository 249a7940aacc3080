"""nccl-tests: text of both generations and JSON give one curve."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hang_harness import parser

from tracetool.errors import UnreadableTrace
from tracetool.registry import ParseOptions
from tracetool.tables import check

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl

tests = parser("nccl_tests")


def curve(path: Path) -> pl.DataFrame:
    assert tests.sniff(path, path.read_bytes()[:65_536])
    found = tests.parse(path, ParseOptions(path.name))
    for name, table in found.items():
        check(name, table)
    rows: pl.DataFrame = found["bandwidth_curve"]
    return rows


def test_reference_curve(shared: Path) -> None:
    table = curve(shared / "nccl" / "nccl_tests" / "all_reduce_perf_2x8_H100_a3mega.txt")
    assert table.height == 62
    last = table.filter(bytes=8 << 30).select("op", "ranks", "hosts", "in_place", "busbw_gbs", "wrong").rows()
    assert last == [("all_reduce", 16, 2, False, 338.82, 0), ("all_reduce", 16, 2, True, 337.35, 0)]
    # the average of the output is the plain mean over all rows
    assert abs(float(table["busbw_gbs"].mean()) - 70.742) < 0.01  # type: ignore[arg-type] # polars types mean() widely


def test_unchecked_results_and_one_measurement_only(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    path.write_text(
        "# Collective test starting: all_gather_perf\n"
        "#  size  count  type  redop  root  time  algbw  busbw #wrong  time  algbw  busbw\n"
        "   1024    256 float   none    -1 10.00   0.10   0.09    N/A 11.00   0.09   0.08    N/A\n"
        "   2048    512 float   none    -1 10.00   0.20   0.18  1e-07\n"
        "# Avg bus bandwidth    : 0.1\n"
    )
    table = curve(path)
    assert table.select("op", "bytes", "in_place", "time_ns", "busbw_gbs", "wrong").rows() == [
        ("all_gather", 1024, False, 10_000, 0.09, None),
        ("all_gather", 1024, True, 11_000, 0.08, None),
        ("all_gather", 2048, False, 10_000, 0.18, None),
    ]


def test_a_trace_that_holds_an_environment_is_no_report(tmp_path: Path) -> None:
    trace = {
        "distributedInfo": {"nccl_version": "2.27.3"}, "metadata": {"env": {"A": "b"}},
        "traceEvents": [{"ph": "X", "name": "x", "pid": 1, "tid": 1, "ts": 1, "dur": 1, "args": {"stream": 7}}],
    }  # fmt: skip
    assert not tests.sniff(tmp_path / "rank0.json", json.dumps(trace).encode())


def test_json_report_without_its_environment(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    report = {
        "version": 2,
        "args": ["./build/reduce_scatter_perf", "-J", "x"],
        "env": ["SECRET=hush"],
        "nccl_version": 22703,
        "devices": [{"rank": r, "hostname": f"h{r // 2}"} for r in range(4)],
        "results": [
            {
                "size": 4096, "count": 1024, "type": "float", "redop": "sum", "root": "-1",
                "out_of_place": {"time": 12.5, "alg_bw": 0.3, "bus_bw": 0.25, "nwrong": 0.0},
                "in_place": {"time": 12.0, "alg_bw": 0.31, "bus_bw": 0.26, "nwrong": None},
            }
        ],
    }  # fmt: skip
    path.write_text(json.dumps(report))
    table = curve(path)
    assert table.select("op", "ranks", "hosts", "bytes", "time_ns", "wrong").rows() == [
        ("reduce_scatter", 4, 2, 4096, 12_500, 0),
        ("reduce_scatter", 4, 2, 4096, 12_000, None),
    ]
    assert "hush" not in str(table.to_dicts())


def test_nothing_measured_is_named(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    path.write_text("# size count type redop root time algbw busbw #wrong\n")
    with pytest.raises(UnreadableTrace, match="no row"):
        tests.parse(path, ParseOptions("out.txt"))
