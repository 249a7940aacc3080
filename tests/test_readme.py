"""What the README shows is true: its commands exist, its script runs, its tables list what there is."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

import pytest
from typer.main import get_command

from tracetool import registry
from tracetool.cli import app

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def text(repository: Path) -> str:
    """Return the README."""
    return (repository / "README.md").read_text()


def _blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_two_commands_are_one_line_each(text: str) -> None:
    (block,) = _blocks(text, "bash")
    assert len(block.splitlines()) == 2
    for line in block.splitlines():
        assert line.startswith("python3 -m venv ")
    assert "tracetool report sample_traces/troubled" in block.splitlines()[0]
    assert "pytest" in block.splitlines()[1]


def test_every_command_shown_exists_with_its_options(text: str) -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined] # a group of commands
    shown = [line for block in _blocks(text, "") for line in block.splitlines() if line.startswith("tracetool ")]
    shown += re.findall(r"`(tracetool [^`]*)`", text)
    assert shown
    for line in shown:
        words = shlex.split(re.split(r"\s{2,}", line)[0])
        options = {name for option in commands[words[1]].params for name in option.opts}
        assert {word for word in words[2:] if word.startswith("-")} <= options, line


def test_no_question_and_no_format_is_missing_and_none_is_invented(text: str) -> None:
    answers, formats = (
        set(
            re.findall(
                r"^\| `(\w+)` \|",
                re.split(rf"^## {title}$", text, flags=re.MULTILINE)[1].split("\n## ")[0],
                re.MULTILINE,
            )
        )
        for title in ("What it answers", "What it reads")
    )
    assert answers == set(registry.analyses())
    assert formats == {parser.FORMAT for parser in registry.parsers()}


def test_the_script_runs(text: str, repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(repository)
    monkeypatch.setenv("TRACETOOL_CACHE", str(tmp_path))
    recording, script = _blocks(text, "python")
    compile(recording, "README.md", "exec")
    names: dict[str, object] = {}
    exec(compile(script, "README.md", "exec"), names)  # noqa: S102 - our own page
    assert 0 < names["run"].results["budget"].metrics["compute_share"] < 1  # type: ignore[attr-defined] # a Run


def test_every_file_named_exists(text: str, repository: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", text) + re.findall(r"\]\(([^)#]+)#", text):
        assert (repository / target).exists(), target
