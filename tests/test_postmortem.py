"""`tracetool postmortem` on whole folders: the verdict first and short, whatever lies beside the good dumps."""

from __future__ import annotations

import json
import shutil
import sys
from typing import TYPE_CHECKING

import polars as pl
import pytest

from tracetool import cli
from tracetool.postmortem import lines
from tracetool.results import Finding, Result, no_saving

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Command = tuple[int, str, str]

# NCCL of a helper process that never says which rank it is
NAMELESS = """\
node1:77:77 [0] NCCL INFO Bootstrap : Using eth0:10.0.0.1<0>
node1:88:88 [0] NCCL INFO cudaDriverVersion 12040
node2:99:99 [3] NCCL WARN Call to connect timed out
"""


@pytest.fixture
def postmortem(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Command]:
    """Return a function that runs `tracetool postmortem` and returns (exit code, stdout, stderr)."""
    monkeypatch.setenv("TRACETOOL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str | Path) -> Command:
        monkeypatch.setattr(sys, "argv", ["tracetool", "postmortem", *map(str, arguments)])
        with pytest.raises(SystemExit) as exited:
            cli.main()
        out, err = capfd.readouterr()
        code = exited.value.code
        return (code if isinstance(code, int) else 0 if code is None else 1), out, err

    return call


def _setup_lines(rank: int, host: str, via: str) -> str:
    prefix = f"{host}:{100 + rank}:{100 + rank} [{rank % 2}] NCCL INFO"
    return (
        f"{prefix} comm 0x55{rank:02d} rank {rank} nranks 4 cudaDev {rank % 2} commId 0xabc - Init COMPLETE\n"
        f"{prefix} Channel 00/0 : {rank}[0] -> {(rank + 2) % 4}[0] [send] via {via}\n"
    )


def _gloo(shared: Path, tmp_path: Path, scenario: str = "missing_rank") -> Path:
    return shutil.copytree(shared / "nccl" / "flight_recorder_gloo" / scenario, tmp_path / "job")


def test_a_log_without_a_rank_does_not_stop_the_postmortem(
    postmortem: Callable[..., Command], shared: Path, tmp_path: Path
) -> None:
    job = _gloo(shared, tmp_path)
    (job / "helpers.log").write_text(NAMELESS)
    (job / "one.log").write_text(NAMELESS.splitlines()[0] + "\n")
    code, out, _ = postmortem(job, "-o", "page.html", "--json", "page.json")
    assert code == 0
    assert out.splitlines()[0].startswith("Rank 3 never launched")
    document = json.loads((tmp_path / "page.json").read_text())
    assert document["results"]["hangs"]["metrics"]["culprits"] == [3]
    assert [note for note in document["run"]["notes"] if "one.log" in note and "--rank-regex" in note]
    assert "--rank-regex" in (tmp_path / "page.html").read_text()


def test_findings_on_the_setup_stand_behind_the_verdict(
    postmortem: Callable[..., Command], shared: Path, tmp_path: Path
) -> None:
    job = _gloo(shared, tmp_path)
    text = "".join(
        _setup_lines(rank, f"node{rank // 2}" + "x" * 60, "NET/IB/0/GDRDMA" if rank < 2 else "NET/Socket/0")
        for rank in range(4)
    )
    (job / "train.log").write_text(text)
    code, out, _ = postmortem(job, "-o", "page.html", "--json", "page.json")
    printed = out.splitlines()
    assert code == 0
    assert printed[0].startswith("Rank 3 ")
    assert len(printed) < 10
    assert max(map(len, printed)) <= 80
    assert any(line.startswith("Also: ") for line in printed)
    assert printed[-1].startswith("Next: ")
    document = json.loads((tmp_path / "page.json").read_text())
    assert sorted(document["results"]) == ["hangs", "log_health"]
    assert {finding["analysis"] for finding in document["findings"]} == {"hangs", "log_health"}
    assert "log_health" in (tmp_path / "page.html").read_text()


def _finding(number: int, severity: str = "warning") -> Finding:
    return Finding(
        f"log_health.{number}", "log_health", "info" if severity == "info" else "warning", f"finding {number}", "", "",
        "high", "", no_saving(),
    )  # fmt: skip


def _verdict(parts: list[str]) -> Result:
    return Result(tables={"verdict": pl.DataFrame({"part": parts, "line": parts})})


FULL = ["who", "cause", "why", "operation", "group", "waiting", "stack", "coverage", "next"]


@pytest.mark.parametrize(
    ("parts", "findings", "expected"),
    [
        (FULL, 0, FULL),
        (FULL, 1, [*FULL[:6], "coverage", "Also: finding 0.", "next"]),
        (FULL, 3, [*FULL[:6], "coverage", "Also: 3 findings on the setup; the page (-o) tells.", "next"]),
        (["who", "next"], 2, ["who", "Also: finding 0.", "Also: finding 1.", "next"]),
    ],
)
def test_room_for_the_setup(parts: list[str], findings: int, expected: list[str]) -> None:
    setup = Result(findings=[_finding(number) for number in range(findings)])
    assert lines({"hangs": _verdict(parts), "log_health": setup}) == expected


def test_grave_findings_come_first_and_long_reasons_are_wrapped() -> None:
    setup = Result(findings=[_finding(0, "info"), _finding(1)])
    told = lines({"hangs": Result(status="skipped", reason="word " * 40), "log_health": setup})
    assert told[-2:] == ["Also: finding 1.", "Also: finding 0."]
    assert max(map(len, told)) <= 80
