"""The store: nothing half-written is ever seen, entries in use stay, files that changed are read again."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tracetool import store
from tracetool.store import Store, StoredRank
from tracetool.tables import check, frame

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl


def _events(rank: int) -> pl.DataFrame:
    return frame(
        "events",
        {
            "event": [0, 1],
            "rank": [rank, rank],
            "track": [0, 0],
            "start_ns": [10, 20],
            "dur_ns": [5, 5],
            "category": ["kernel", "cpu_op"],
            "name": ["b", "a"],
        },
    )


def _entry(root: Path, key: str) -> Path:
    with store.new_folder(store.entry_path(root, key)) as folder:
        store.write_tables(folder / "r-1", {"events": _events(-1)})
        store.write_manifest(folder, [-1])
    return store.entry_path(root, key)


def test_tables_come_back_as_they_were_with_the_rank_that_was_assigned(tmp_path: Path) -> None:
    entry = _entry(tmp_path, "k")
    stored = StoredRank(7, (str(entry / "r-1"),), None)
    back = stored.table("events")
    check("events", back)
    assert back.drop("rank").equals(_events(0).drop("rank"))
    assert back["rank"].to_list() == [7, 7]
    assert stored.table("events", ["name"])["name"].to_list() == ["b", "a"]


def test_a_table_nobody_recorded_is_empty_and_typed(tmp_path: Path) -> None:
    stored = StoredRank(0, (str(_entry(tmp_path, "k") / "r-1"),), None)
    check("counters", stored.table("counters"))
    assert stored.table("counters").height == 0


def test_only_chosen_steps_are_seen(tmp_path: Path) -> None:
    steps = frame(
        "steps",
        {"rank": [0] * 3, "step": [4, 5, 6], "start_ns": [0, 1, 2], "end_ns": [1, 2, 3], "open_end": [False] * 3,
         "basis": ["gpu"] * 3},
    )  # fmt: skip
    store.write_tables(tmp_path / "r0", {"steps": steps})
    stored = StoredRank(0, (str(tmp_path / "r0"),), None, steps=(5, 9))
    assert stored.table("steps")["step"].to_list() == [5]


def test_a_held_rank_reads_each_column_once(tmp_path: Path) -> None:
    entry = _entry(tmp_path, "k")
    stored = StoredRank(7, (str(entry / "r-1"),), None)
    held = store.held(stored)
    assert held.table("events", ["name", "rank"]).equals(stored.table("events", ["name", "rank"]))
    assert held.table("events", ["dur_ns", "name"]).equals(stored.table("events", ["dur_ns", "name"]))
    assert held.table("counters").equals(stored.table("counters"))
    (entry / "r-1" / "events.parquet").unlink()
    assert held.table("events", ["rank", "dur_ns"])["dur_ns"].to_list() == [5, 5]


def test_a_large_rank_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = StoredRank(7, (str(_entry(tmp_path, "k") / "r-1"),), None)
    monkeypatch.setattr(store, "_HELD_BYTES", 10)
    assert store.held(stored) is stored


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with store.new_folder(tmp_path / "entries" / "k") as folder:
            store.write_tables(folder, {"events": _events(0)})
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        fail()
    assert list((tmp_path / "entries").iterdir()) == []


def test_of_two_writers_the_first_wins_and_the_other_is_dropped(tmp_path: Path) -> None:
    with store.new_folder(tmp_path / "k") as second:
        with store.new_folder(tmp_path / "k") as first:
            (first / "who").write_text("first")
        (second / "who").write_text("second")
    assert (tmp_path / "k" / "who").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["k"]


def test_a_changed_file_has_another_key(tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    trace.write_text("one")
    by_stat, by_content = store.stat_key(trace, "code"), store.content_key(trace, "code")
    assert store.stat_key(trace, "other code") != by_stat
    assert store.content_key(trace, "other code") != by_content
    trace.write_text("two")
    os.utime(trace, ns=(1, 1))
    assert store.stat_key(trace, "code") != by_stat
    assert store.content_key(trace, "code") != by_content


def test_the_same_content_elsewhere_has_the_same_content_key(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("same")
    (tmp_path / "b").write_text("same")
    assert store.content_key(tmp_path / "a", "") == store.content_key(tmp_path / "b", "")
    assert store.stat_key(tmp_path / "a", "") != store.stat_key(tmp_path / "b", "")


def test_a_directory_is_keyed_by_all_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "a").write_text("1")
    before = store.content_key(folder, "")
    (folder / "b").write_text("2")
    assert store.content_key(folder, "") != before


def test_the_index_forgets_entries_that_are_gone(tmp_path: Path) -> None:
    with Store(tmp_path) as opened:
        _entry(opened.root, "k")
        store.index(opened.root, "stat", "k")
        assert store.indexed(opened.root, "stat") == "k"
        store.evict(opened.root, 0)
        assert store.indexed(opened.root, "stat") is None
        assert store.indexed(opened.root, "never seen") is None


def test_eviction_takes_the_oldest_first_and_none_in_use(tmp_path: Path) -> None:
    with Store(tmp_path) as opened:
        for age, key in enumerate(["new", "used", "old"]):
            entry = _entry(opened.root, key)
            os.utime(entry / "manifest", ns=(10**9 * (100 - age),) * 2)
        size = sum(f.stat().st_size for f in store.entry_path(opened.root, "new").rglob("*") if f.is_file())
        with Store(tmp_path) as reader:
            reader.hold("used")
            os.utime(store.entry_path(tmp_path, "used") / "manifest", ns=(0, 0))
            store.evict(opened.root, size * 2)
            assert sorted(p.name for p in (tmp_path / "entries").iterdir()) == ["new", "used"]
            store.evict(opened.root, 0)
            assert sorted(p.name for p in (tmp_path / "entries").iterdir()) == ["used"]
        store.evict(opened.root, 0)
        assert list((tmp_path / "entries").iterdir()) == []


def test_a_temporary_store_goes_away() -> None:
    with Store(None) as opened:
        root = opened.root
        assert root.is_dir()
        assert not opened.persistent
    assert not root.exists()


def test_a_manifest_that_is_no_manifest_is_no_entry(tmp_path: Path) -> None:
    entry = _entry(tmp_path, "k")
    (entry / "manifest").write_text("{")
    assert store.manifest(tmp_path, "k") is None
