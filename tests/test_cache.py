"""The cache through the whole tool: never stale, never half-written, shared, and never in the way of an answer."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from simulator import Config, simulate

import tracetool
from tracetool import registry, store
from tracetool.errors import StoreFailed

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracetool.registry import ParseOptions
    from tracetool.tables import Tables

NAMES = ("budget", "kernels", "host")


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a small simulated run of one rank."""
    folder = tmp_path_factory.mktemp("traces")
    simulate(Config(dp=1, tp=1, pp=1)).write_kineto(folder)
    return folder


@pytest.fixture(scope="module")
def expected(traces: Path) -> dict[str, Any]:
    """Return the answers without a cache."""
    return _answers(traces, "off")


def _answers(path: Path, cache: Path | str) -> dict[str, Any]:
    with tracetool.open_run(path, engine="serial", cache=str(cache)) as run:
        run.results.compute(NAMES)
        return {
            name: (run.results[name].reason, dict(run.results[name].metrics), run.results[name].tables.keys())
            for name in NAMES
        }


def _command(traces: Path, cache: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tracetool", "analyze", str(traces), *NAMES, "--format", "json"]
    return subprocess.Popen(
        [*command, "--cache", str(cache), "--engine", "serial"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def _files(cache: Path) -> list[Path]:
    return sorted(path for path in cache.rglob("*") if path.is_file() and path.parent.name != "locks")


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _emptied(path: Path) -> None:
    os.truncate(path, 0)


def _garbled(path: Path) -> None:
    path.write_bytes(bytes(255 - byte for byte in path.read_bytes()))


def _forget_results(cache: Path) -> None:
    """Remove what is kept of whole results (tests/test_answers.py), so that the tables below them are read."""
    for entry in cache.glob("entries/results-*"):
        shutil.rmtree(entry)


KINDS_OF_FILES = (
    "manifest", "sizes", "events.parquet", "sources.parquet", "summary.json", "p-*", "*",
)  # fmt: skip


@pytest.mark.parametrize(
    ("which", "harm"),
    [
        *((which, _cut) for which in KINDS_OF_FILES),
        *((which, _garbled) for which in KINDS_OF_FILES[2:]),
        ("*", _emptied),
        ("*", Path.unlink),
    ],
)
def test_damage_in_the_cache_is_found_and_mended(
    traces: Path, expected: dict[str, Any], tmp_path: Path, which: str, harm: Callable[[Path], None]
) -> None:
    assert _answers(traces, tmp_path) == expected
    harmed = [path for path in _files(tmp_path) if path.match(which)]
    assert harmed
    for path in harmed:
        harm(path)
    if which != "*":
        _forget_results(tmp_path)
    assert _answers(traces, tmp_path) == expected
    _forget_results(tmp_path)
    assert _answers(traces, tmp_path) == expected


def test_tables_that_cannot_be_read_are_told_once_and_made_again(traces: Path, tmp_path: Path) -> None:
    expected = _answers(traces, tmp_path)
    for path in _files(tmp_path):
        if path.name == "gpu.parquet":
            _garbled(path)
        elif path.name.startswith("p-"):
            path.unlink()
    _forget_results(tmp_path)
    told = _answers(traces, tmp_path)
    assert "dropped; run again" in told["budget"][0]
    assert "vanished from the cache" in told["kernels"][0]
    assert _answers(traces, tmp_path) == expected


def test_a_killed_process_leaves_nothing_half_written(repository: Path, tmp_path: Path) -> None:
    sample = repository / "sample_traces" / "troubled"
    cache = tmp_path / "cache"
    for wait_s in (0.7, 1.1):
        process = _command(sample, cache)
        time.sleep(wait_s)
        process.kill()
        process.communicate()
    whole = _command(sample, cache).communicate()[0]
    assert json.loads(whole)["run"]["ranks"] == list(range(8))
    assert _command(sample, tmp_path / "other").communicate()[0] == whole


def test_two_processes_may_fill_one_cache_at_once(traces: Path, tmp_path: Path) -> None:
    both = [_command(traces, tmp_path) for _ in range(2)]
    answers = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert answers[0] == answers[1]
    assert [path for path in (tmp_path / "entries").iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("where", ["file/cache", "file"])
def test_a_cache_that_cannot_be_used_costs_no_answer(traces: Path, tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("in the way")
    process = _command(traces, tmp_path / where)
    out, err = process.communicate()
    assert process.returncode == 0
    assert json.loads(out)["results"]["budget"]["status"] == "ok"
    assert b"cannot be used" in err
    assert b"Traceback" not in err


def test_a_full_cache_costs_no_answer(
    traces: Path, expected: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = store.write_tables

    def full(folder: Path, tables: Tables) -> None:
        if folder.is_relative_to(tmp_path):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(folder, tables)

    monkeypatch.setattr(store, "write_tables", full)
    assert _answers(traces, tmp_path) == expected
    with tracetool.open_run(traces, engine="serial", cache=str(tmp_path)) as run:
        assert "No space left on device" in run.warnings[0]


def test_without_any_room_the_error_says_so(traces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "write_tables", full)
    with pytest.raises(StoreFailed, match="TMPDIR"):
        tracetool.open_run(traces, engine="serial", cache="off")


def test_a_file_that_grows_while_it_is_read_leaves_no_stale_entry(
    traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, copy, cache = (tmp_path / name for name in ("run", "copy", "cache"))
    for folder in (run, copy):
        folder.mkdir()
        shutil.copy(min(traces.iterdir()), folder)
    grown = next(run.iterdir())
    kineto = next(parser for parser in registry.parsers() if parser.FORMAT == "kineto")
    parse = kineto.parse

    def growing(path: Path, options: ParseOptions) -> Tables:
        path.write_bytes(path.read_bytes()[:-2000])
        monkeypatch.setattr(kineto, "parse", parse)
        return parse(path, options)

    expected = _answers(copy, "off")
    monkeypatch.setattr(kineto, "parse", growing)
    short = _answers(run, cache)
    assert short != expected
    assert _answers(copy, cache) == expected
    assert _answers(run, cache) == short
    assert grown.exists()


def test_what_was_just_used_is_not_evicted_and_leftovers_are(traces: Path, tmp_path: Path) -> None:
    _answers(traces, tmp_path)
    entries = tmp_path / "entries"
    before = sorted(entries.iterdir())
    for name in (".old", ".new"):
        (entries / name).mkdir()
        (entries / name / "part").write_text("half")
    os.utime(entries / ".old", (0, 0))
    store.evict(tmp_path, 0, spare_s=60)
    assert sorted(entries.iterdir()) == sorted([*before, entries / ".new"])
    store.evict(tmp_path, 0)
    assert sorted(entries.iterdir()) == [entries / ".new"]
    assert list((tmp_path / "index").iterdir()) == []


def test_an_index_that_names_no_entry_is_not_followed(tmp_path: Path) -> None:
    with store.Store(tmp_path) as opened:
        for text in (b"../entries", b"", b"\xff\xfe"):
            (opened.root / "index" / "key").write_bytes(text)
            assert store.indexed(opened.root, "key") is None


def test_equal_dumps_of_two_ranks_stay_two(tmp_path: Path) -> None:
    """The rank of a dump stands in its name alone, and its source in its tables: equal bytes are not one entry."""
    nothing = {"version": "2.10", "pg_config": {"0": {"name": "0", "desc": "default_pg", "ranks": "[0, 1]"}},
               "pg_status": {}, "entries": []}  # fmt: skip
    job = tmp_path / "outer" / "job"
    job.mkdir(parents=True)
    for rank in (0, 1):
        (job / f"nccl_trace_rank_{rank}.json").write_text(json.dumps(nothing))
    cache = str(tmp_path / "cache")
    for place, prefix in ((job, ""), (job.parent, "job/")):
        with tracetool.open_run(place, engine="serial", cache=cache) as run:
            assert run.ranks == [0, 1]
            sources = run.table("dumps").select("source").collect()["source"].to_list()
            assert sources == [f"{prefix}nccl_trace_rank_{rank}.json" for rank in (0, 1)]
