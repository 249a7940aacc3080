"""A join is kept for the next report: the same tables and facts, never stale, never damaged."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from simulator import Config, simulate

import tracetool
from tracetool import joinmap
from tracetool.joined import facts_of
from tracetool.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a small simulated pipeline of two stages and two replicas."""
    folder = tmp_path_factory.mktemp("traces")
    simulate(Config(dp=2, tp=1, pp=2, layers=2, microbatches=2)).write_kineto(folder, host_names=True)
    return folder


@pytest.fixture
def matched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the groups matched so far, to see whether the ranks were joined again."""
    numbers: list[int] = []
    match = joinmap.match_group

    def counted(job: joinmap.GroupJob) -> joinmap.GroupReport:
        numbers.append(job.group_id)
        return match(job)

    monkeypatch.setattr(joinmap, "match_group", counted)
    return numbers


def _joined(path: Path, cache: Path | str, settings: Settings | None = None) -> dict[str, Any]:
    """Return all that the join tells, as plain values."""
    with tracetool.open_run(path, settings, engine="serial", cache=str(cache)) as run:
        found = run._joined  # noqa: SLF001 - what is kept is no part of the public face
        facts = {rank: facts_of(found.folder, groups, rank) for rank, groups in sorted(found.groups_of.items())}
        return {
            "tables": {name: (table.schema, table.rows()) for name, table in found.tables.items()},
            "facts": {rank: {name: t.rows() for name, t in tables.items()} for rank, tables in facts.items()},
            "groups": dict(found.groups_of),
            "notes": found.notes,
        }


def _harmed(folder: Path, pattern: str, harm: Callable[[Path], None]) -> None:
    files = [path for path in folder.rglob("*") if path.is_file() and path.match(pattern)]
    assert files
    for path in files:
        harm(path)


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _garbled(path: Path) -> None:
    path.write_bytes(bytes(255 - byte for byte in path.read_bytes()))


def test_a_second_report_joins_nothing_and_finds_the_same(traces: Path, tmp_path: Path, matched: list[int]) -> None:
    first = _joined(traces, tmp_path)
    assert matched
    assert {"waits", "clock", "windows", "bubbles"} <= first["facts"][0].keys()
    assert first["tables"]["nodes"][1]
    matched.clear()
    assert _joined(traces, tmp_path) == first
    assert not matched


@pytest.mark.parametrize(
    ("which", "harm"),
    [
        ("kept/tables", _cut),
        ("kept/tables", _garbled),
        ("kept/told.json", _garbled),
        ("kept/told.json", Path.unlink),
        ("clock.parquet", _garbled),
        ("g*/r*.arrow", _garbled),
        ("g*/r*.arrow", _cut),
        ("p*/r*-windows.parquet", Path.unlink),
    ],
)
def test_a_damaged_join_is_made_again(
    traces: Path, tmp_path: Path, matched: list[int], which: str, harm: Callable[[Path], None]
) -> None:
    first = _joined(traces, tmp_path)
    _harmed(next((tmp_path / "entries").glob("join-*")), which, harm)
    matched.clear()
    assert _joined(traces, tmp_path) == first
    assert matched
    matched.clear()
    assert _joined(traces, tmp_path) == first
    assert not matched


def test_other_hosts_or_other_code_are_another_join(
    traces: Path, tmp_path: Path, matched: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = tmp_path / "hosts"
    told = []
    for name in ("a", "b", "b"):
        hosts.write_text("".join(f"{rank} {name}{rank // 2}\n" for rank in range(4)))
        told.append(_joined(traces, tmp_path / "cache", Settings(hosts=str(hosts)))["tables"]["hosts"])
    assert told[0] != told[1] == told[2]
    matched.clear()
    monkeypatch.setattr(joinmap, "core_key", lambda: "another")
    _joined(traces, tmp_path / "cache", Settings(hosts=str(hosts)))
    assert matched


def test_chosen_steps_are_another_join(traces: Path, tmp_path: Path) -> None:
    whole = _joined(traces, tmp_path)
    part = _joined(traces, tmp_path, Settings(steps=(5,)))
    assert part == _joined(traces, "off", Settings(steps=(5,)))
    assert part["tables"]["pipeline_windows"] != whole["tables"]["pipeline_windows"]


def test_without_a_cache_nothing_is_kept(traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _joined(traces, tmp_path)
    monkeypatch.setattr(joinmap, "keep", lambda *_: pytest.fail("kept"))
    monkeypatch.setattr(joinmap, "kept", lambda *_: pytest.fail("looked for"))
    assert _joined(traces, "off") == first


def test_what_cannot_be_kept_costs_no_answer(traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def full(self: Path, target: Path) -> Path:
        if Path(target).name == "kept":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", full)
    assert _joined(traces, tmp_path) == _joined(traces, "off")
    assert not list(tmp_path.glob("entries/*/kept"))


def test_two_processes_may_join_at_once(traces: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tracetool", "analyze", str(traces), "collectives", "--format", "json"]
    command += ["--engine", "serial", "--cache", str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    answers = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert answers[0] == answers[1]
    assert len(list(tmp_path.glob("entries/join-*/kept"))) == 1
    assert list(tmp_path.glob("entries/join-*/.*")) == []
