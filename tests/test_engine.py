"""The engine: which executor, how many workers, and the same answers in the same order from each."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import Future
from typing import TYPE_CHECKING

import pytest

from tracetool import engine
from tracetool.errors import TracetoolError, UsageError

if TYPE_CHECKING:
    from pathlib import Path


def test_small_runs_are_read_in_this_process() -> None:
    assert engine.worker_count("auto", jobs=8, work_bytes=1000) == 0
    assert engine.worker_count("auto", jobs=1, work_bytes=10**12) == 0
    assert engine.worker_count("serial", jobs=8, work_bytes=10**12) == 0


def test_large_runs_get_as_many_workers_as_jobs_cores_and_memory_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "available_cores", lambda: 16)
    assert engine.worker_count("auto", jobs=100, work_bytes=10**12, memory_bytes=10**12) == 16
    assert engine.worker_count("auto", jobs=3, work_bytes=10**12, memory_bytes=10**12) == 3
    assert engine.worker_count("auto", jobs=100, work_bytes=10**12, memory_bytes=3_100_000_000) == 2
    assert engine.worker_count("processes", jobs=100, work_bytes=0, memory_bytes=1) == 1
    assert engine.worker_count("processes:5", jobs=2, work_bytes=0) == 5


@pytest.mark.parametrize("name", ["threads", "processes:0", "processes:x", ""])
def test_an_unknown_engine_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="unknown engine"):
        engine.worker_count(name, jobs=1, work_bytes=0)


def test_a_quota_cuts_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(engine, "_first_line", lambda _: "250000 100000")
    assert engine.available_cores() == 2
    monkeypatch.setattr(engine, "_first_line", lambda _: "max 100000")
    assert engine.available_cores() == 64


def test_a_limit_cuts_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_first_line", lambda _: "1000")
    assert engine.available_memory_bytes() == 1000
    monkeypatch.setattr(engine, "_first_line", lambda _: "max")
    assert engine.available_memory_bytes() > 1000


@pytest.mark.parametrize("name", ["serial", "processes:2"])
def test_answers_come_in_the_order_of_the_jobs(name: str) -> None:
    ended: list[int] = []
    with engine.executor(name, jobs=6, work_bytes=0) as pool:
        answers = engine.in_order([pool.submit(abs, n) for n in (-5, -3, -1, -4, -2, 0)], ended.append)
    assert answers == [5, 3, 1, 4, 2, 0]
    assert sorted(ended) == list(range(6))


def test_the_first_failure_stops_the_rest() -> None:
    failed: Future[int] = Future()
    failed.set_exception(UsageError("no"))
    waiting: Future[int] = Future()
    with pytest.raises(UsageError, match="no"):
        engine.in_order([failed, waiting], lambda _: None)
    assert waiting.cancelled()


def test_a_dead_worker_is_named_as_such() -> None:
    with (
        pytest.raises(TracetoolError, match="worker process died"),
        engine.executor("processes:1", jobs=1, work_bytes=0) as pool,
    ):
        engine.in_order([pool.submit(os._exit, 3)], lambda _: None)


def test_workers_do_not_run_the_calling_script_again(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os\n"
        "from tracetool import engine\n"
        "print('script')\n"
        "with engine.executor('processes:1', jobs=1, work_bytes=0) as pool:\n"
        "    print(pool.submit(os.getenv, 'POLARS_MAX_THREADS').result(), os.getenv('POLARS_MAX_THREADS'))\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "POLARS_MAX_THREADS"}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.splitlines() == ["script", "1 None"]
