"""Damaged input through the whole tool: no crash, no hang, nothing lost that stood before the damage, all of it told.

Small real traces take every kind of damage through reading, every question and the page; slices of every real trace
take every kind at the parser's door, where each event that stood before the damage is looked for, and large ones as
they are a few cuts and flips. `tests/bench/damage_draws.py` does that hundreds of times a trace; the parsers' own tests
go deeper, format by format.
"""

from __future__ import annotations

import functools
import gzip
import json
import os
import random
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from damage import BOUNDARY, KINDS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from intact import Intact, judge, slice_of, unpacked_beginning
from simulator import Config, simulate

import tracetool
from tracetool import outline, registry
from tracetool.errors import TracetoolError, UnreadableTrace
from tracetool.raw import jsonstream
from tracetool.report import Report, document, render_page, to_json

if TYPE_CHECKING:
    from tracetool.tables import Tables

TRACES = Path(__file__).resolve().parent.parent.parent / "shared" / "traces"
REAL = sorted(path for path in TRACES.rglob("*.json.gz") if path.parent.name != "nccl")
SMALL_BYTES, LARGE_BYTES = 130_000, 2_000_000
SMALL = [path for path in REAL if path.stat().st_size < SMALL_BYTES and "mfu" not in path.parts]
LARGE = [path for path in REAL if path not in SMALL]
KEYS = ("start_ns", "dur_ns", "category", "name")
FOUND_AGAIN = 0.999
"""Share of the events before a flip that must be there; one event lies across the place where the text is cut for
comparison."""


def _chance(seed: int | str) -> random.Random:
    return random.Random(seed)  # noqa: S311 - a test


@functools.cache
def _text(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes())


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the text of a small simulated trace."""
    run = simulate(Config(dp=1, tp=1, pp=1))
    return run.write_kineto(tmp_path_factory.mktemp("one"), names="rank{rank}.json")[0].read_bytes()


def _parse(path: Path, content: bytes) -> Tables:
    path.write_bytes(content)
    kineto = next(parser for parser in registry.parsers() if parser.FORMAT == "kineto")
    return kineto.parse(path, registry.ParseOptions(display_path=path.name))


def _reported(path: Path) -> str:
    """Put a file through the whole tool; return what an error on purpose says, or nothing."""
    said = ""
    try:
        with tracetool.open_run(path, cache="off", engine="serial") as run:
            results = {name: run.results[name] for name in run.results}
            failed = {name: result.reason for name, result in results.items() if result.status == "error"}
            assert failed == {}
            made = Report(run.view, results, run.findings, {}, {}, command="tracetool report", version="0")
            assert render_page(made).html.startswith("<!doctype html>")
            assert json.loads(to_json(document(made)))["sources"]
    except TracetoolError as error:
        said = str(error)
    assert "report this" not in said
    return said


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_damage_to_a_simulated_trace(simulated: bytes, tmp_path: Path, kind: str) -> None:
    for seed in range(2):
        path = tmp_path / f"rank{seed}.json"
        path.write_bytes(KINDS[kind](simulated, _chance(seed)))
        said = _reported(path)
        assert said == "" or path.name in said


@pytest.mark.skipif(not SMALL, reason="no ../shared/traces here: reference traces are not part of the project")
@given(path=st.sampled_from(SMALL or [Path()]), kind=st.sampled_from(sorted(KINDS)), seed=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_kind_of_damage_to_real_traces(tmp_path: Path, path: Path, kind: str, seed: int) -> None:
    damaged = tmp_path / "rank0.json"
    damaged.write_bytes(KINDS[kind](_text(path), _chance(seed)))
    said = _reported(damaged)
    assert said == "" or damaged.name in said


@pytest.fixture(scope="session")
def slices() -> list[Intact]:
    """Return two slices of every real trace, each read event by event without tracetool."""
    found = []
    for path in TRACES.rglob("*.json*"):
        text = unpacked_beginning(path, 4 << 20) if path.suffix in (".gz", ".json") else b""
        if b'"traceEvents"' in text:
            ends = [match.start() for match in BOUNDARY.finditer(text)]
            found += [slice_of(text, ends, _chance(f"{path.name} {number}"), 250) for number in range(2)]
    if not found:
        pytest.skip("no ../shared/traces here: reference traces are not part of the project")
    return found


@pytest.mark.parametrize("kind", KINDS)
@given(chance=st.randoms(use_true_random=False), data=st.data())
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_stood_before_the_damage_is_read(
    slices: list[Intact], tmp_path: Path, kind: str, chance: random.Random, data: st.DataObject
) -> None:
    intact = data.draw(st.sampled_from(slices), label="slice")
    chunk = data.draw(st.sampled_from([1 << 12, 1 << 15, 1 << 20]), label="chunk")
    content = KINDS[kind](intact.text, chance)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonstream, "CHUNK_BYTES", chunk)  # the seams of a large file, in a small one
        found = judge(intact, kind, content, lambda damaged: _parse(tmp_path / "rank0.json", damaged))
    assert found.wrong == ""


@pytest.mark.parametrize("path", LARGE, ids=lambda path: path.name)
def test_large_real_traces_keep_what_stood_before_a_cut_or_a_flip(tmp_path: Path, path: Path) -> None:
    text = _text(path) if path.stat().st_size < LARGE_BYTES else gzip.decompress(path.read_bytes())
    first = text.find(b'"traceEvents"')
    at = _chance(path.name).randrange(first + (len(text) - first) // 4, len(text) - (len(text) - first) // 4)
    bounds = [match.start() for match in BOUNDARY.finditer(text, max(0, at - 200_000), at)]
    whole = _parse(tmp_path / "whole.json", text[: bounds[-1] + 1] + b"]}")["events"].select(KEYS)
    for damaged in (text[:at], text[:at] + bytes([text[at] ^ 4]) + text[at + 1 :]):
        try:
            tables = _parse(tmp_path / "damaged.json", damaged)
        except UnreadableTrace as error:
            pytest.fail(str(error))
        events = tables["events"].select(KEYS)
        lost = whole.join(events, on=KEYS, how="anti", nulls_equal=True).height
        assert lost <= whole.height * (1 - FOUND_AGAIN)
    source = _parse(tmp_path / "damaged.json", text[:at])["sources"]
    assert source["complete"].to_list() == [False]
    assert any("ends inside its events" in note for note in source["notes"][0])


def test_a_gzip_bomb_is_read_in_bounded_memory(tmp_path: Path) -> None:
    bomb = tmp_path / "rank0.json.gz"
    block = gzip.compress(b" " * (64 << 20), 9)
    bomb.write_bytes(gzip.compress(b'{"schemaVersion": 1, "traceEvents": [') + block * 18)
    done = subprocess.run(
        [sys.executable, "-m", "tracetool", "summary", str(bomb), "--cache", "off"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, 1 << 30)),
    )
    assert done.returncode == 4
    assert "rank0.json.gz" in done.stderr
    assert "Traceback" not in done.stderr


def test_odd_files_in_a_directory_neither_hang_nor_crash(simulated: bytes, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "rank0.json").write_bytes(simulated)
    (run / "empty.json").write_bytes(b"")
    (run / "notes.md").write_text("# traces")
    (run / "broken.json.gz").write_bytes(b"\x1f\x8b" + bytes(100))
    (run / "packed.json.zst").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(100))
    (run / "nothing.json").write_bytes(b"{}")
    os.mkfifo(run / "pipe.json")
    (run / "circle").symlink_to(run)
    (run / "self").symlink_to("self")
    (run / "gone.json").symlink_to("absent")
    Path(os.fsdecode(os.fsencode(run) + b"/caf\xe9.txt")).write_text("what a name")
    with tracetool.open_run(run, cache="off", engine="serial") as opened:
        assert opened.ranks == [0]
        told = "\n".join(opened.view.notes)
    for words in (
        "empty.json: empty",
        "broken.json.gz: nothing in it can be unpacked",
        "packed with zstd",
        "caf\ufffd",
    ):
        assert words in told
    assert "pipe" not in told


def test_a_name_that_is_not_utf8_is_no_obstacle(simulated: bytes, tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/run\xff"))
    folder.mkdir()
    (folder / os.fsdecode(b"rank0-\xe9.json")).write_bytes(simulated)
    for cache in ("off", str(tmp_path / "cache"), str(tmp_path / "cache")):
        with tracetool.open_run(folder, cache=cache, engine="serial") as run:
            made = Report(run.view, {"budget": run.results["budget"]}, (), {}, {}, command="", version="0")
            assert json.loads(to_json(document(made)))["sources"][0]["path"] == "rank0-\ufffd.json"
            assert run.view.path.endswith("run\ufffd")


def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(TracetoolError, match="no trace found"):
        tracetool.open_run(tmp_path / "pipe.json", cache="off")


def test_files_and_folders_that_cannot_be_opened_are_named(
    simulated: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rank0.json").write_bytes(simulated)
    (tmp_path / "rank1.json").write_bytes(simulated)
    (tmp_path / "closed").mkdir()
    open_file, scan = os.open, os.scandir

    def refuse(name: str, flags: int, *more: int, **named: int) -> int:
        if str(name).endswith("rank1.json"):
            raise PermissionError(13, "Permission denied", name)
        return open_file(name, flags, *more, **named)

    def refuse_folder(path: str = ".") -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "open", refuse)  # tests may run as root, whom permissions do not stop
    monkeypatch.setattr(os, "scandir", refuse_folder)
    with tracetool.open_run(tmp_path, cache="off", engine="serial") as run:
        assert run.ranks == [0]
        told = "\n".join(run.view.notes)
    assert "rank1.json: cannot be opened (Permission denied)" in told
    assert "closed: cannot be looked into (Permission denied)" in told


def _exit(arguments: list[str], folder: Path) -> int:
    command = [sys.executable, "-m", "tracetool", *arguments, "--cache", "off", "--quiet"]
    return subprocess.run(command, capture_output=True, check=False, cwd=folder).returncode


def test_exit_codes_and_which_wins(simulated: bytes, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "rank0.json").write_bytes(simulated)
    (run / "rank1.json").write_bytes(b'{"schemaVersion": 1, "traceEvents": [{"ph": "X", "ts"')
    assert _exit(["summary", "run"], tmp_path) == 0
    assert _exit(["summary", "run", "--strict"], tmp_path) == 5
    (run / "rank0.json").unlink()
    assert _exit(["summary", "run", "--strict"], tmp_path) == 4
    shutil.rmtree(run)
    assert _exit(["summary", "run"], tmp_path) == 2


def test_a_trace_cut_before_its_gpu_events_is_not_taken_for_one_without(simulated: bytes, tmp_path: Path) -> None:
    path = tmp_path / "rank0.json"
    first = min(
        simulated.index(category)
        for category in (b'"kernel"', b'"gpu_memcpy"', b'"gpu_memset"')
        if category in simulated
    )
    path.write_bytes(simulated[: first - 200])
    with tracetool.open_run(path, cache="off", engine="serial") as run:
        made = Report(run.view, dict(run.results), run.findings, {}, {}, command="tracetool report", version="0")
    said = "".join(piece.text for piece in outline.verdict(made))
    assert said.startswith("There is no GPU activity in what could be read (1 of 1 files read in part), so")
