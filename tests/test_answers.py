"""Results are kept for the next report: the same to the last value, never stale, never damaged, and no error."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from simulator import Config, simulate

import tracetool
from tracetool import answers, registry, run
from tracetool.results import Result
from tracetool.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracetool.results import Finding

NAMES = ("budget", "mfu", "stragglers")


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a small simulated run of four ranks, one of them slow."""
    folder = tmp_path_factory.mktemp("traces")
    simulate(Config(dp=4, tp=1, pp=1, layers=2, slow_ranks={2: 1.4})).write_kineto(folder, host_names=True)
    return folder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the questions asked of ranks so far, `price` for pricing: what was kept is not asked again."""
    found: list[str] = []
    analyze_rank = run.analyze_rank

    def counted(job: run.RankJob) -> dict[str, run.Answer]:
        found.extend(job.names)
        return analyze_rank(job)

    monkeypatch.setattr(run, "analyze_rank", counted)
    from tracetool.join import price as pricing  # noqa: PLC0415 - patched where it is looked up

    price = pricing.price

    def priced(*given: Any) -> tuple[Finding, ...]:  # noqa: ANN401 - handed on
        found.append("price")
        return price(*given)

    monkeypatch.setattr(pricing, "price", priced)
    return found


def _plain(value: Any) -> Any:  # noqa: ANN401 - whatever a result holds
    """Return a value in a form that can be compared: tables as schema and rows, sequences as lists."""
    if isinstance(value, pl.DataFrame):
        return value.schema, value.rows()
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return [(name, _plain(one)) for name, one in value.items()]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(one) for one in value]
    return value


def _report(path: Path, cache: Path | str, settings: Settings | None = None, names: Sequence[str] = NAMES) -> Any:  # noqa: ANN401
    with tracetool.open_run(path, settings, engine="serial", cache=str(cache)) as opened:
        opened.results.compute(names)
        results = {name: opened.results[name] for name in names}
        return _plain(results), _plain(opened.priced(list(results.values())))


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _garbled(path: Path) -> None:
    path.write_bytes(bytes(255 - byte for byte in path.read_bytes()))


@pytest.mark.parametrize("sample", ["troubled", "ddp_gloo"])
def test_every_result_comes_back_as_it_was(sample: str, repository: Path, tmp_path: Path, asked: list[str]) -> None:
    path = repository / "sample_traces" / sample
    names = list(registry.analyses())
    first = _report(path, tmp_path, names=names)
    assert asked
    asked.clear()
    assert _report(path, tmp_path, names=names) == first
    assert not asked


@pytest.mark.parametrize("harm", [_cut, _garbled, Path.unlink, lambda path: os.truncate(path, 0)])
def test_a_damaged_answer_is_computed_again(
    traces: Path, tmp_path: Path, asked: list[str], harm: Callable[[Path], None]
) -> None:
    first = _report(traces, tmp_path)
    for path in tmp_path.glob("entries/results-*/*"):
        harm(path)
    asked.clear()
    assert _report(traces, tmp_path) == first
    assert {*NAMES, "price"} <= set(asked)
    asked.clear()
    assert _report(traces, tmp_path) == first
    assert not asked


def test_other_code_settings_or_files_have_other_answers(
    traces: Path, tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("0 a\n")
    cache = tmp_path / "cache"
    for settings in (Settings(), Settings(peak_tflops=500.0), Settings(hosts=str(hosts))):
        asked.clear()
        _report(traces, cache, settings)
        assert {*NAMES, "price"} <= set(asked)
    hosts.write_text("0 b\n")
    asked.clear()
    _report(traces, cache, Settings(hosts=str(hosts)))
    assert set(NAMES) <= set(asked)
    asked.clear()
    monkeypatch.setattr(answers, "code_key", lambda _, name: f"another {name}")
    _report(traces, cache)
    assert set(asked) == set(NAMES)
    asked.clear()
    monkeypatch.setattr(answers, "core_key", lambda: "another")
    _report(traces, cache)
    assert asked == ["price"]


def test_an_error_is_not_kept(traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise ValueError("once")

    with monkeypatch.context() as patch:
        patch.setattr(registry.analyses()["budget"], "analyze", failing)
        broken = _report(traces, tmp_path, names=["budget"])[0]
    assert dict(dict(broken)["budget"])["status"] == "error"
    assert _report(traces, tmp_path, names=["budget"]) == _report(traces, "off", names=["budget"])


def test_what_cannot_be_packed_is_computed_again(traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huge = Result(metrics={"flops": 10**30})
    monkeypatch.setattr(registry.analyses()["budget"], "analyze", lambda *_: huge)
    for _ in range(2):
        assert _report(traces, tmp_path, names=["budget"])[0] == _plain({"budget": huge})


def test_without_a_cache_nothing_is_kept(traces: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "pack", lambda _: pytest.fail("kept"))
    _report(traces, "off")
    assert {*NAMES, "price"} <= set(asked)


def test_two_runs_of_the_same_files_elsewhere_share_no_answer_that_names_the_place(
    traces: Path, tmp_path: Path, asked: list[str]
) -> None:
    first = _report(traces, tmp_path)
    asked.clear()
    (tmp_path / "elsewhere").symlink_to(traces)
    assert _report(tmp_path / "elsewhere", tmp_path) == first
    assert set(NAMES) <= set(asked)
