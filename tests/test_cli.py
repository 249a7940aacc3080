"""The command line: what goes where, which exit code, what a user reads when something is wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tracetool import cli, registry
from tracetool.errors import TracetoolError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Command = tuple[int, str, str]


@pytest.fixture
def tracetool(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Command]:
    """Return a function that runs the command line in this process and returns (exit code, stdout, stderr)."""
    monkeypatch.setenv("TRACETOOL_CACHE", str(tmp_path / "cache"))
    # a slow call may outlast the ten seconds after which progress speaks up; test_progress.py tests that
    monkeypatch.setattr(cli, "_PROGRESS_LINE_EVERY_S", 3600)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str | Path) -> Command:
        monkeypatch.setattr(sys, "argv", ["tracetool", *map(str, arguments)])
        with pytest.raises(SystemExit) as exited:
            cli.main()
        code = exited.value.code
        out, err = capfd.readouterr()
        return (code if isinstance(code, int) else 0 if code is None else 1), out, err

    return call


@pytest.fixture
def sample(repository: Path) -> Path:
    """Return the troubled sample run."""
    return repository / "sample_traces" / "troubled"


def test_report_writes_the_page_and_prints_the_summary_with_the_path_last(
    tracetool: Callable[..., Command], sample: Path, tmp_path: Path
) -> None:
    code, out, err = tracetool("report", sample, "--json", "run.json", "--md", "run.md")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "tracetool-report.html"
    assert "Where a step goes" in out
    assert (tmp_path / "tracetool-report.html").read_text().startswith("<!doctype html>")
    assert json.loads((tmp_path / "run.json").read_text())["schema_version"] == 1
    assert (tmp_path / "run.md").read_text().startswith("# ")


def test_report_overwrites_only_when_told_and_says_so_before_reading(
    tracetool: Callable[..., Command], sample: Path, tmp_path: Path
) -> None:
    (tmp_path / "tracetool-report.html").write_text("mine")
    code, out, err = tracetool("report", sample)
    assert (code, out) == (2, "")
    assert "--force" in err
    assert (tmp_path / "tracetool-report.html").read_text() == "mine"
    assert tracetool("report", sample, "--force", "--quiet")[0] == 0
    assert (tmp_path / "tracetool-report.html").read_text() != "mine"


def test_json_on_stdout_is_one_document_and_nothing_else(tracetool: Callable[..., Command], sample: Path) -> None:
    code, out, err = tracetool("report", sample, "--json", "-")
    assert code == 0
    document = json.loads(out)
    assert document["run"]["ranks"] == list(range(8))
    assert err.strip() == "tracetool-report.html"


def test_the_same_input_gives_the_same_bytes(tracetool: Callable[..., Command], sample: Path, tmp_path: Path) -> None:
    for number, options in enumerate((["--cache", "off"], ["--engine", "processes:2"], [])):
        code, *_ = tracetool("report", sample, "-o", f"{number}.html", "--json", f"{number}.json", *options)
        assert code == 0
    for suffix in ("html", "json"):
        assert len({(tmp_path / f"{number}.{suffix}").read_bytes() for number in range(3)}) == 1


def test_analyze_in_every_format(tracetool: Callable[..., Command], sample: Path) -> None:
    code, out, _ = tracetool("analyze", sample, "budget", "overlap", "--format", "json")
    assert code == 0
    assert sorted(json.loads(out)["results"]) == ["budget", "overlap"]
    for form in ("table", "csv", "md"):
        code, out, _ = tracetool("analyze", sample, "budget", "--format", form)
        assert code == 0
        assert "sync_wait" in out or "sync wait" in out
    code, _, err = tracetool("analyze", sample, "nonsense")
    assert code == 2
    assert "there are budget" in err


def test_summary(tracetool: Callable[..., Command], sample: Path) -> None:
    code, out, err = tracetool("summary", sample, "--ranks", "0-1", "--steps", "5")
    assert (code, err) == (0, "")
    assert "2 of 8 ranks traced" in out


def test_a_pattern_that_matches_nothing_is_refused(tracetool: Callable[..., Command], sample: Path) -> None:
    code, _, err = tracetool("summary", sample, "--step-range", "nosuch")
    assert (code, "matches no range" in err) == (2, True)
    code, _, err = tracetool("summary", sample, "--rank-regex", "nosuch([0-9]+)")
    assert (code, "matches no path" in err) == (2, True)


def test_sql(tracetool: Callable[..., Command], sample: Path) -> None:
    query = "select rank, count(*) as n from gpu where kind = 'memset' group by rank order by rank limit 2"
    code, out, _ = tracetool("sql", sample, query, "--format", "csv")
    assert (code, out) == (0, "rank,n\n0,3\n1,3\n")
    code, out, _ = tracetool("sql", sample, query, "--format", "json")
    assert json.loads(out)[0] == {"rank": 0, "n": 3}
    assert "rank" in tracetool("sql", sample, query)[1]
    code, _, err = tracetool("sql", sample, "select nothing from gpu")
    assert code == 2
    assert "tracetool schema" in err


def test_anonymize_leaves_no_name_of_host_or_file(tracetool: Callable[..., Command], repository: Path) -> None:
    code, out, _ = tracetool("report", repository / "sample_traces" / "ddp_gloo", "--json", "-", "--anonymize")
    assert code == 0
    assert "host.example" not in out
    assert "rank0_trace" not in out
    assert "ddp_gloo" not in out


def test_lists_of_what_there_is(tracetool: Callable[..., Command]) -> None:
    assert "dur_ns" in tracetool("schema")[1]
    assert all(parser.FORMAT in tracetool("formats")[1] for parser in registry.parsers())
    listed = tracetool("analyses")[1]
    assert all(name in listed for name in registry.analyses())
    assert tracetool("--version")[1].strip()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["report", "absent"], 2, "no such file"),
        (["report", "empty"], 4, "no trace found"),
        (["report", "notes.txt"], 4, "no trace found"),
        (["report", "empty", "--ranks", "x"], 2, "--ranks"),
        (["report", "empty", "--engine", "threads"], 4, "no trace"),
        (["report", "empty", "--step-range", "("], 2, "--step-range"),
        (["report", "empty", "-o", "absent/x.html"], 2, "no directory"),
        (["report", "empty", "--md", "-", "--json", "-"], 2, "both want stdout"),
        (["report", "cut.json"], 4, "cut.json"),
        (["nonsense"], 2, ""),
        (["report"], 2, ""),
    ],
)
def test_what_is_wrong_is_said_with_its_exit_code(
    tracetool: Callable[..., Command], tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "cut.json").write_text('{"schemaVersion": 1, "traceEvents": [')
    given, out, err = tracetool(*arguments)
    assert given == code
    assert words in err
    assert "Traceback" not in err
    assert out == ""


def test_a_part_that_could_not_be_read_matters_only_under_strict(
    tracetool: Callable[..., Command], sample: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    first, second = sorted(sample.iterdir())[:2]
    shutil.copy(first, run)
    (run / second.name).write_bytes(second.read_bytes()[:20_000])
    code, _, err = tracetool("report", run)
    assert code == 0
    assert f"{second.name} was read only in part or not at all" in err
    assert tracetool("report", run, "--force", "--strict", "-q")[0] == 5


def test_a_defect_is_exit_code_1_without_a_traceback(
    tracetool: Callable[..., Command], sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise ZeroDivisionError("by design")

    monkeypatch.setattr(registry.analyses()["kernels"], "analyze", crash)
    code, out, err = tracetool("summary", sample, "--ranks", "0", "--cache", "off")
    assert code == 1
    assert "kernels failed" in err
    assert "Where a step goes" in out
    monkeypatch.setattr(cli, "_opened", crash)
    code, _, err = tracetool("summary", sample)
    assert code == 1
    assert "a defect of tracetool" in err
    monkeypatch.setenv("TRACETOOL_DEBUG", "1")
    monkeypatch.setattr(sys, "argv", ["tracetool", "summary", str(sample)])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_every_error_raised_on_purpose_has_its_exit_code(
    tracetool: Callable[..., Command], sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    def failed(*_: object) -> None:
        raise TracetoolError("a sentence")

    monkeypatch.setattr(cli, "_opened", interrupted)
    assert tracetool("summary", sample)[::2] == (130, "tracetool: interrupted\n")
    monkeypatch.setattr(cli, "_opened", failed)
    assert tracetool("summary", sample)[::2] == (1, "tracetool: a sentence\n")


def test_postmortem_puts_the_verdict_first(tracetool: Callable[..., Command], shared: Path, tmp_path: Path) -> None:
    dumps = shared / "nccl" / "flight_recorder" / "lock_gil_1st"
    code, out, _ = tracetool("postmortem", dumps, "-o", "page.html", "--json", "page.json")
    assert code == 0
    assert "9,14" in out.splitlines()[0]
    assert len(out.splitlines()) < 10
    assert max(map(len, out.splitlines())) <= 80
    assert json.loads((tmp_path / "page.json").read_text())["results"]["hangs"]["metrics"]["culprits"] == [9, 14]
    assert (tmp_path / "page.html").exists()


def test_postmortem_without_dumps_says_what_to_set(tracetool: Callable[..., Command], sample: Path) -> None:
    code, out, _ = tracetool("postmortem", sample)
    assert code == 0
    assert "TORCH_FR_BUFFER_SIZE" in out


def test_a_closed_pipe_is_no_error(repository: Path) -> None:
    command = f"{sys.executable} -m tracetool schema | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    del repository


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys, tracetool.cli; print([m for m in ('polars', 'pyarrow', 'numpy', 'jinja2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_interrupt_leaves_no_half_file_and_exits_130(sample: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for number in range(40):
        for path in sample.iterdir():
            shutil.copy(path, run / f"rank{number * 8 + int(path.name[4])}_trace.json.gz")
    process = subprocess.Popen(
        [sys.executable, "-m", "tracetool", "report", str(run), "--rank-regex", "rank([0-9]+)", "--cache", "off"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    time.sleep(2)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


CUT = '{"schemaVersion": 1, "distributedInfo": {"rank": 1}, "traceEvents": [{"ph": "X", "ts"'


@pytest.fixture
def partly(sample: Path, tmp_path: Path) -> Path:
    """Return a run of one whole rank and one of which nothing can be had."""
    run = tmp_path / "partly"
    run.mkdir()
    shutil.copy(min(sample.iterdir()), run)
    (run / "rank1_trace.json").write_text(CUT)
    return run


def test_a_run_that_was_read_in_part_exits_5_only_under_strict(tracetool: Callable[..., Command], partly: Path) -> None:
    code, _, err = tracetool("summary", partly)
    assert (code, "rank1_trace.json was read only in part" in err) == (0, True)
    assert tracetool("summary", partly, "--strict")[0] == 5


def test_a_thousand_damaged_files_are_not_a_thousand_lines(tracetool: Callable[..., Command], partly: Path) -> None:
    for rank in range(1, 21):
        (partly / f"rank{rank}_trace.json").write_text(CUT)
    _, _, err = tracetool("summary", partly)
    assert len(err.splitlines()) == 9
    assert "so were 12 more" in err


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b" + bytes(100)])
def test_a_rank_of_which_nothing_is_left_counts_as_damaged(
    tracetool: Callable[..., Command], partly: Path, content: bytes
) -> None:
    (partly / "rank1_trace.json").write_bytes(content)
    assert tracetool("summary", partly)[0] == 0
    assert tracetool("summary", partly, "--strict")[0] == 5
    (partly / "rank1_trace.json").rename(partly / "notes.txt")
    assert tracetool("summary", partly, "--strict")[0] == (5 if content else 0)


def test_nothing_readable_wins_over_partly_read(tracetool: Callable[..., Command], partly: Path) -> None:
    code, _, err = tracetool("summary", partly / "rank1_trace.json", "--strict")
    assert code == 4
    assert "rank1_trace.json: byte" in err


@pytest.mark.parametrize("text", ['{"traceEvents": []}', '{"schemaVersion": 1, "traceEvents": [], "traceName": "x"}'])
def test_a_trace_without_events_is_nothing_readable(
    tracetool: Callable[..., Command], tmp_path: Path, partly: Path, text: str
) -> None:
    (tmp_path / "alone.json").write_text(text)
    code, out, err = tracetool("report", tmp_path / "alone.json")
    assert (code, out) == (4, "")
    assert "holds no events" in err
    (partly / "rank1_trace.json").write_text(text)
    code, out, _ = tracetool("report", partly, "--json", "-", "--strict")
    assert code == 0
    assert "the list of events is empty" in out


def test_a_defect_wins_over_nothing_readable_and_over_partly_read(
    tracetool: Callable[..., Command], partly: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise ZeroDivisionError("by design")

    kineto = next(parser for parser in registry.parsers() if parser.FORMAT == "kineto")
    whole = kineto.parse

    def crash_on_one(path: Path, options: registry.ParseOptions) -> object:
        if path.name == "rank1_trace.json":
            crash()
        return whole(path, options)

    with monkeypatch.context() as patch:
        patch.setattr(registry.analyses()["kernels"], "analyze", crash)
        code, _, err = tracetool("summary", partly, "--strict")
        assert (code, "kernels failed" in err, "read only in part" in err) == (1, True, True)
    monkeypatch.setattr(kineto, "parse", crash_on_one)
    for arguments in ([partly, "--cache", "off", "--strict"], [partly / "rank1_trace.json", "--cache", "off"]):
        code, _, err = tracetool("summary", *arguments)
        assert (code, "rank1_trace.json: tracetool failed on it" in err) == (1, True)


def test_an_interrupt_wins_over_a_defect_and_over_partly_read(
    tracetool: Callable[..., Command], partly: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    def crash(*_: object) -> None:
        raise ZeroDivisionError("by design")

    monkeypatch.setattr(registry.analyses()["kernels"], "analyze", crash)
    monkeypatch.setattr(registry.analyses()["timeline"], "analyze", interrupted)
    assert tracetool("summary", partly, "--strict")[0] == 130


def test_a_file_that_two_parsers_want_costs_only_itself(
    tracetool: Callable[..., Command], partly: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    greedy = next(parser for parser in registry.parsers() if parser.FORMAT == "nccl_tests")
    monkeypatch.setattr(greedy, "sniff", lambda path, _: path.name == "rank1_trace.json")
    code, out, err = tracetool("summary", partly)
    assert (code, "recognised by several parsers (kineto, nccl_tests)" in err) == (1, True)
    assert "Where a step goes" in out
    code, _, err = tracetool("summary", partly / "rank1_trace.json")
    assert (code, "recognised by several parsers" in err) == (1, True)
