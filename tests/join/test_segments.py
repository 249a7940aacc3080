"""One rank's work as nodes and edges: small timelines in, the reduction out; exact in what it keeps."""

from __future__ import annotations

from typing import Any

import polars as pl
from inmemory import MemoryRank, gpu, rows, steps

from tracetool.join.segments import COMM, COMPUTE, COPY, HOST, segments

NONE = pl.DataFrame(
    schema={"event": pl.Int64, "group_id": pl.Int32, "instance": pl.Int64, "sent_ns": pl.Int64, "sent_by": pl.Int32}
)


def rank(
    activities: list[tuple[Any, ...]], tracks: list[int], syncs: list[tuple[int, int]] | None = None
) -> MemoryRank:
    """Return a rank; activities as for inmemory.gpu in order of their start, `tracks` their streams."""
    table = gpu(*activities).with_columns(
        track=pl.Series(tracks, dtype=pl.Int32), step=pl.lit(1, pl.Int32), phase=pl.lit("forward").cast(_PHASE)
    )
    comms = table.filter(pl.col("kind") == "comm")
    calls = [(900 + i, 0, start, end - start) for i, (start, end) in enumerate(syncs or [])]
    tables = {
        "gpu": table,
        "comms": rows(
            "comms", 0, ("event", "start_ns", "dur_ns"), *comms.select("event", "start_ns", "dur_ns").rows(),
            op="all_reduce", group="g", track=1, name="nccl", bytes=8,
        ),
        "steps": steps((1, 0, 1000)),
        "events": rows(
            "events", 0, ("event", "track", "start_ns", "dur_ns"), *calls, category="runtime",
            name="cudaStreamSynchronize",
        ),
    }  # fmt: skip
    return MemoryRank(0, tables)


_PHASE = gpu((0, 1, "compute")).schema["phase"]


def edges_of(found: dict[str, pl.DataFrame]) -> list[tuple[Any, ...]]:
    return found["edges"].select("pred", "node", "host_ns", "before_ns").rows()


def test_compute_between_communications_is_one_node_and_they_order_each_other() -> None:
    made = rank(
        [
            (100, 50, "compute", 90, 92),
            (150, 50, "compute", 93, 95),
            (200, 100, "comm", 96, 98),
            (300, 40, "compute", 99, 101),
            (340, 10, "compute", 102, 104),
        ],
        [7, 7, 9, 7, 7],
    )
    waits = rows("waits", 0, ("event", "wait_end_ns"), (2, 230), role="dp", basis="symmetric")
    instances = pl.DataFrame([(2, 4, 11, None, None)], schema=NONE.schema, orient="row")
    found = segments(made, {"waits": waits}, instances)
    columns = ("kind", "start_ns", "end_ns", "value_ns", "group_id", "instance", "told", "event")
    assert found["nodes"].select(columns).rows() == [
        (HOST, 90, 90, 0, None, None, True, -1),
        (COMPUTE, 100, 200, 100, None, None, True, 0),
        (COMPUTE, 300, 350, 50, None, None, True, 3),
        (COMM, 200, 300, 70, 4, 11, True, 2),
    ]
    links = [(p, n) for p, n, host, _ in edges_of(found) if host == 0]
    assert {(1, 2), (1, 3), (3, 2)} <= set(links)


def test_a_stretch_that_the_host_holds_up_keeps_the_launch_that_did() -> None:
    # the third kernel is launched late: it starts when its launch comes, 10 ns after the stream is free
    made = rank(
        [(10, 10, "compute", 4, 5), (20, 10, "compute", 6, 7), (40, 10, "compute", 34, 35), (50, 5, "compute", 36, 37)],
        [7] * 4,
    )
    found = segments(made, {}, NONE)
    assert found["nodes"].filter(pl.col("kind") == COMPUTE).select("start_ns", "value_ns").rows() == [(10, 35)]
    # host at 4; the third launch reaches the GPU at 40, 20 ns of work come before it
    assert (0, 1, 36, 20) in edges_of(found)
    lag, value = max(host - before for _, node, host, before in edges_of(found) if node == 1), 35
    assert 4 + lag + value == 55


def test_a_host_that_waits_is_a_node_and_later_launches_count_from_its_end() -> None:
    made = rank([(10, 50, "compute", 4, 5), (90, 10, "compute", 84, 85)], [7, 7], syncs=[(8, 64)])
    found = segments(made, {}, NONE)
    hosts = found["nodes"].filter(pl.col("kind") == HOST)
    assert hosts.select("start_ns", "end_ns", "value_ns").rows() == [(4, 4, 0), (8, 64, 4)]
    first, second = found["nodes"].filter(pl.col("kind") == COMPUTE)["node"].to_list()
    assert (first, 1, 0, 0) in edges_of(found)
    assert (0, 1, 4, 0) in edges_of(found)
    assert [edge for edge in edges_of(found) if edge[:2] == (1, second)] == [(1, second, 26, 0)]


def test_an_unmatched_communication_keeps_its_length_and_is_not_told() -> None:
    made = rank([(10, 50, "compute", 4, 5), (60, 30, "comm", 6, 7), (90, 5, "memcpy", 8, 9)], [7, 9, 11])
    nodes = segments(made, {}, NONE)["nodes"]
    assert nodes.select("kind", "value_ns", "told").rows() == [
        (HOST, 0, True), (COMPUTE, 50, True), (COMM, 30, False), (COPY, 5, True),
    ]  # fmt: skip


def test_without_gpu_activity_there_is_nothing() -> None:
    found = segments(MemoryRank(0, {}), {}, NONE)
    assert (found["nodes"].height, found["edges"].height) == (0, 0)
