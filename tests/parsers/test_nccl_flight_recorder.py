"""Flight-recorder dumps: every version, both encodings, damage, and what cannot be trusted."""

from __future__ import annotations

import gzip
import json
import pickle
import tracemalloc
from typing import TYPE_CHECKING

import pytest
from hang_harness import diagnose, parser
from simulator_hangs.torch_pickle import dumps

from tracetool.errors import UnreadableTrace
from tracetool.registry import ParseOptions
from tracetool.tables import check

if TYPE_CHECKING:
    from pathlib import Path

    from tracetool.tables import Tables

recorder = parser("nccl_flight_recorder")


def parse(path: Path) -> Tables:
    assert recorder.sniff(path, path.read_bytes()[:65_536])
    tables: Tables = recorder.parse(path, ParseOptions(path.name))
    for name, table in tables.items():
        check(name, table)
    return tables


def entry(**changes: object) -> dict[str, object]:
    told: dict[str, object] = {
        "record_id": 7, "pg_id": 3, "process_group": ("12", "DATA"), "collective_seq_id": 5, "p2p_seq_id": 0,
        "profiling_name": "nccl:all_reduce", "time_created_ns": 1_760_000_000_000_000_000, "op_id": 5,
        "input_sizes": [[4, 8]],
        "input_dtypes": ["BFloat16"], "output_sizes": [[4, 8]], "output_dtypes": ["BFloat16"], "state": "scheduled",
        "time_discovered_started_ns": None, "time_discovered_completed_ns": None, "retired": False,
        "timeout_ms": 600_000, "is_p2p": False,
    }  # fmt: skip
    return {**told, **changes}


def whole(*entries: dict[str, object]) -> dict[str, object]:
    return {
        "version": "2.10",
        "pg_config": {"12": {"name": "12", "desc": "DATA", "ranks": "[1, 3, 5]"}},
        "comm_lib_version": "2.27.3",
        "pg_status": {
            "3": {"last_enqueued_collective": 5, "last_started_collective": -1, "last_completed_collective": 4}
        },
        "entries": list(entries),
    }


def written(folder: Path, content: object, name: str = "x_dump_3") -> Path:
    path = folder / name
    path.write_bytes(dumps(content))
    return path


def test_every_reference_dump_is_recognised_and_read(shared: Path) -> None:
    files = [p for p in (shared / "nccl").rglob("*") if p.is_file()]
    read = [path for path in files if recorder.sniff(path, path.read_bytes()[:65_536])]
    assert sorted(read) == sorted(p for p in files if "flight_recorder" in str(p) and p.suffix != ".log")
    for path in read:
        tables = parse(path)
        assert tables["ranks"]["rank"].item() == int(path.name.removesuffix(".json").rpartition("_")[2])
        assert tables["sources"]["complete"].item()


def test_pickle_and_json_of_the_same_dump_agree(tmp_path: Path) -> None:
    path = tmp_path / "fr_trace_3.json"
    content = whole(entry())
    content["pg_status"] = {
        "3": {"last_enqueued_collective": "5", "last_started_collective": "-1", "last_completed_collective": "4"}
    }
    path.write_text(json.dumps(content))
    one, other = parse(written(tmp_path, whole(entry()))), parse(path)
    for name in ("collectives", "group_status", "process_groups"):
        assert one[name].drop("source", strict=False).equals(other[name].drop("source", strict=False)), name


def test_python_pickles_and_gzip_are_read_too(tmp_path: Path) -> None:
    path = tmp_path / "host-a_dump_3.gz"
    path.write_bytes(gzip.compress(pickle.dumps(whole(entry()))))
    head = gzip.decompress(path.read_bytes())
    assert recorder.sniff(path, head)
    assert recorder.parse(path, ParseOptions(path.name))["collectives"].height == 1


def test_columns(tmp_path: Path) -> None:
    frames = [{"name": "f", "filename": "/a.py", "line": 3}, {"name": "g", "filename": "/b.py", "line": 4}]
    row = parse(written(tmp_path, whole(entry(frames=frames, duration_ms=1.5))))["collectives"].row(0, named=True)
    assert {key: row[key] for key in ("rank", "record", "group", "seq", "op", "bytes", "dtype", "in_flight")} == {
        "rank": 3, "record": 7, "group": "12", "seq": 5, "op": "all_reduce", "bytes": 64, "dtype": "BFloat16",
        "in_flight": True,
    }  # fmt: skip
    assert (row["duration_ns"], row["timeout_ns"]) == (1_500_000, 600_000_000_000)
    assert row["stack"] == "f /a.py:3\ng /b.py:4"


def test_torch_2_2_writes_a_bare_list(tmp_path: Path) -> None:
    old = {
        "pg_id": 0, "seq_id": 9, "profiling_name": "nccl:all_gather", "input_sizes": [[2]], "output_sizes": [[2], [2]],
        "time_created_us": 1_760_000_000_000_000, "frames": [], "state": "completed", "retired": True,
    }  # fmt: skip
    tables = parse(written(tmp_path, [old, {**old, "pg_id": 3}]))
    # a number other than that of the default group is this rank's own
    assert tables["collectives"]["group"].to_list() == ["0", "local 3"]
    row = tables["collectives"].row(0, named=True)
    assert (row["group"], row["seq"], row["out_elems"], row["in_flight"]) == ("0", 9, 4, False)
    assert row["created_unix_ns"] == 1_760_000_000_000_000_000
    assert tables["dumps"]["version"].item() == "none"
    assert any("own numbers" in note for note in tables["sources"]["notes"].item())
    assert tables["sources"]["complete"].item()


def test_sends_name_their_peer_within_the_group(tmp_path: Path) -> None:
    told = entry(profiling_name="nccl:recv 1<-2", p2p_seq_id=4, is_p2p=True)
    row = parse(written(tmp_path, whole(told)))["collectives"].row(0, named=True)
    assert (row["op"], row["peer"], row["is_p2p"], row["p2p_seq"]) == ("recv", 2, True, 4)


DONE = {"state": "completed", "time_discovered_completed_ns": 1, "retired": True}


@pytest.mark.parametrize(
    ("entries", "in_flight"),
    [
        pytest.param([entry(), entry(collective_seq_id=6, **DONE)], [False, False], id="a later one is complete"),
        pytest.param([entry(**DONE), entry(collective_seq_id=6)], [False, True], id="an earlier one is complete"),
        pytest.param(
            [
                entry(profiling_name="nccl:send 0->1", p2p_seq_id=2, is_p2p=True),
                entry(profiling_name="nccl:coalesced", p2p_seq_id=2, is_p2p=True, **DONE),
            ],
            [False, False],
            id="its batch is complete",
        ),
        pytest.param(
            [
                entry(profiling_name="nccl:send 0->1", p2p_seq_id=2, is_p2p=True),
                entry(profiling_name="nccl:send 0->2", p2p_seq_id=3, is_p2p=True, **DONE),
            ],
            [True, False],
            id="a send to somebody else proves nothing",
        ),
        pytest.param([entry(profiling_name="gloo:all_reduce", retired=True)], [False], id="gloo is done when retired"),
        pytest.param([entry(retired=True)], [True], id="nccl retires what timed out"),
    ],
)
def test_in_flight(tmp_path: Path, entries: list[dict[str, object]], in_flight: list[bool]) -> None:
    numbered = [{**one, "record_id": number} for number, one in enumerate(entries)]
    assert parse(written(tmp_path, whole(*numbered)))["collectives"]["in_flight"].to_list() == in_flight


@pytest.mark.parametrize("as_json", [False, True])
def test_a_cut_dump_gives_what_stands_before_the_cut(tmp_path: Path, as_json: bool) -> None:  # noqa: FBT001 - a parameter
    content = whole(*(entry(record_id=n, collective_seq_id=n) for n in range(1, 51)))
    data = json.dumps(content).encode() if as_json else dumps(content)
    path = tmp_path / "nccl_trace_rank_3"
    path.write_bytes(data[: len(data) * 2 // 3])
    tables = parse(path)
    assert 20 < tables["collectives"].height < 40
    assert not tables["sources"]["complete"].item()
    assert "ut or damaged" in tables["sources"]["notes"].item()[0]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"\x80\x02cos\nsystem\n(X\x02\x00\x00\x00idtR.", "refused"),
        (b"\x80\x02Nr\xff\xff\xff\xff.", "refused"),
        (b"\x80\x02K\x01.", "holds a int"),
        (b"\x80\x02", "before the first record"),
        (b"{", "no whole record"),
    ],
)
def test_what_is_no_dump_is_refused_by_name(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "nccl_trace_rank_3"
    path.write_bytes(data)
    with pytest.raises(UnreadableTrace, match=reason) as caught:
        recorder.parse(path, ParseOptions("nccl_trace_rank_3"))
    assert "nccl_trace_rank_3" in str(caught.value)


@pytest.mark.parametrize(
    "filling",
    ["[]", "{}", "[[0,0],[0,0]]", '{"a":{}}', "0,0,0"],
    ids=["lists", "dicts", "nested", "keys", "ints"],
)
def test_a_json_dump_that_asks_for_far_more_memory_than_its_size_is_refused(tmp_path: Path, filling: str) -> None:
    path = tmp_path / "nccl_trace_rank_0.json"
    path.write_text('{"profiling_name": 0, "entries": [' + ",".join([filling] * 400_000) + "]}")
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableTrace, match="MiB of memory"):
            recorder.parse(path, ParseOptions(path.name, memory_bytes=1 << 20))
        assert tracemalloc.get_traced_memory()[1] < 4 * path.stat().st_size + (1 << 20)
    finally:
        tracemalloc.stop()


def test_a_deeply_nested_json_dump_is_named(tmp_path: Path) -> None:
    path = tmp_path / "nccl_trace_rank_0.json"
    path.write_text('{"profiling_name": ' + "[" * 100_000)
    with pytest.raises(UnreadableTrace, match="before the damage"):
        recorder.parse(path, ParseOptions(path.name))


def test_values_of_any_type_never_crash(tmp_path: Path) -> None:
    odd: list[object] = [None, True, -1, 1 << 62, 1.5, "", "x", [], [[]], [["x"]], [[1 << 62, 9]], {}, {"a": []}]
    keys = list(entry(frames=[], duration_ms=1))
    other = parse(written(tmp_path, whole(entry()), "x_dump_5"))
    for value in odd:
        for key in keys:
            told = entry(**{key: value})
            if key == "process_group" and isinstance(value, list):
                told[key] = value
            tables = parse(written(tmp_path, whole(entry(), told)))
            assert tables["collectives"].height + tables["sources"]["dropped"].item() == 2
            if key in {"process_group", "profiling_name", "collective_seq_id", "time_created_ns", "input_sizes"}:
                assert diagnose([tables, other]).status == "ok"
        for key in ("version", "pg_config", "pg_status", "entries", "comm_lib_version"):
            tables = parse(written(tmp_path, {**whole(entry()), key: value}))
            assert diagnose([tables]).status == "ok"
