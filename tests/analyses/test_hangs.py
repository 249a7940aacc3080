"""Labelled incidents and gloo scenarios: culprits and class exact."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hang_harness import diagnose, read

from tracetool import postmortem

if TYPE_CHECKING:
    from pathlib import Path

INCIDENTS = [
    ("flight_recorder/gpu_error_2nd", (9, 14), "stuck_in_collective", ("72", "all_to_all", 44788)),
    ("flight_recorder/lock_gil_1st", (9, 14), "never_launched", ("72", "all_to_all", 45265)),
    *(
        (f"flight_recorder_gloo/{scenario}{suffix}", culprits, cause, operation)
        for suffix in ("", "_json")
        for scenario, culprits, cause, operation in [
            ("missing_rank", (3,), "never_launched", ("0", "all_reduce", 5)),
            ("size_mismatch", (1,), "no_dump", ("0", "all_reduce", 5)),
            ("type_mismatch", (2,), "mismatched_arguments", ("0", "all_reduce", 5)),
            ("ok", (), "none", (None, None, None)),
            ("straggler", (), "none", (None, None, None)),
            ("subgroups_p2p", (), "none", (None, None, None)),
            ("wrap", (), "none", (None, None, None)),
        ]
    ),
]


@pytest.mark.parametrize(("folder", "culprits", "cause", "operation"), INCIDENTS, ids=[i[0] for i in INCIDENTS])
def test_incident(
    shared: Path,
    folder: str,
    culprits: tuple[int, ...],
    cause: str,
    operation: tuple[str | None, str | None, int | None],
) -> None:
    result = diagnose(read(shared / "nccl" / folder))
    metrics = result.metrics
    assert (metrics["culprits"], metrics["cause"]) == (culprits, cause)
    assert (metrics["group"], metrics["op"], metrics["seq"]) == operation
    lines = postmortem.lines({"hangs": result})
    assert len(lines) < 10
    assert max(map(len, lines)) <= 80


def test_the_straggler_launches_last_though_nothing_hangs(shared: Path) -> None:
    order = diagnose(read(shared / "nccl" / "flight_recorder_gloo" / "straggler")).tables["launch_order"]
    assert order.select("rank", "operations", "last").row(0) == (2, 21, 20)
    assert order["median_lateness_ns"][0] == pytest.approx(50.5e6, rel=0.01)
