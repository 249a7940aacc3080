"""Every parser and analysis keeps its contract: documented, tested, and no two parsers claim one file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest

from tracetool import registry, tables
from tracetool.discover import read_head
from tracetool.errors import TracetoolError
from tracetool.needs import NEEDS

if TYPE_CHECKING:
    from pathlib import Path


def _name(module: object) -> str:
    return str(cast(Any, module).__name__).rpartition(".")[2]


def test_every_plug_in_is_documented_and_has_its_test_file(repository: Path) -> None:
    for folder, modules in (("parsers", registry.parsers()), ("analyses", registry.analyses().values())):
        for module in modules:
            assert (module.__doc__ or "").strip(), module
            tests = list((repository / "tests" / folder).glob(f"test_{_name(module)}*.py"))
            assert tests, f"{folder}/{_name(module)}.py has no tests/{folder}/test_{_name(module)}.py"


def test_formats_and_titles_are_unique() -> None:
    formats = [parser.FORMAT for parser in registry.parsers()]
    titles = [analysis.TITLE for analysis in registry.analyses().values()]
    assert len(set(formats)) == len(formats)
    assert len(set(titles)) == len(titles)
    assert all(titles)


def test_exactly_one_parser_recognises_each_reference_trace(shared: Path) -> None:
    others = {".md", ".png", ".yaml", ".parquet", ".prom"}
    for path in sorted(path for path in shared.rglob("*") if path.is_file() and path.suffix not in others):
        head = read_head(path)
        claims = [parser.FORMAT for parser in registry.parsers() if parser.sniff(path, head)]
        assert len(claims) <= 1, f"{path.relative_to(shared)}: {claims}"
        if path.suffix == ".gz":
            assert claims == ["kineto"], path.relative_to(shared)


def test_nobody_claims_what_is_no_trace(tmp_path: Path) -> None:
    for content in (
        b"",
        b"{}",
        b"[]",
        b"hello\n",
        b"\x80\x04.",
        b"PAR1",
        b"<html>",
        b'{"a": 1}\n{"b": 2}\n',
        b"\x00" * 100,
    ):
        (tmp_path / "file").write_bytes(content)
        assert registry.sniff(tmp_path / "file", content) is None, content


def test_two_claims_are_an_error_that_names_both(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first, second = registry.parsers()[:2]
    for parser in (first, second):
        monkeypatch.setattr(parser, "sniff", lambda *_: True)
    with pytest.raises(TracetoolError, match=f"{first.FORMAT}, {second.FORMAT}"):
        registry.sniff(tmp_path / "file", b"")


def test_an_unknown_need_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.analyses()["budget"], "NEEDS", ("gpus",))
    registry.analyses.cache_clear()
    try:
        with pytest.raises(TracetoolError, match=r"analysis budget: unknown need gpus; known: events"):
            registry.analyses()
    finally:
        registry.analyses.cache_clear()


def test_needs_say_what_to_do() -> None:
    for need in NEEDS.values():
        assert need.missing
        assert need.hint.endswith(".")
        assert need.table in tables.SCHEMAS


def test_needs_look_at_values() -> None:
    events = tables.frame("events", {"event": [0], "category": ["kernel"]})
    assert NEEDS["events"].met({"events": events}.get)
    assert not NEEDS["cpu_ops"].met({"events": events}.get)
    assert not NEEDS["cpu_ops"].met(lambda _: None)
    assert not NEEDS["launches"].met({"gpu": tables.frame("gpu", {"event": [0], "launch": [None]})}.get)
    assert NEEDS["launches"].met({"gpu": tables.frame("gpu", {"event": [0, 1], "launch": [None, 3]})}.get)


def test_columns_and_rows_of_contributing_are_real(repository: Path) -> None:
    text = (repository / "CONTRIBUTING.md").read_text()
    for word in ("from tracetool.registry import ParseOptions", "from tracetool.results import Headline, Result"):
        assert word in text
        exec(word)  # noqa: S102 - a line of our own page
