"""What a trace knows of people, hosts, folders and secrets reaches no output where it must not.

Two promises: environments, command lines, users and unknown metadata never leave a trace; with `--anonymize` no host,
file, folder or network address does. Every way out is searched: HTML, JSON, Markdown, terminal, each format of
`analyze`, every table of `sql`, `postmortem`.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest
from simulator import Config, simulate

import tracetool
from tracetool import cli
from tracetool.settings import Settings
from tracetool.tables import SCHEMAS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECRETS = ("hf_0123456789abcdefXYZ", "alice-the-user", "s3cr3t-job", "/home/alice")
"""In environments, arguments and unknown keys of the metadata: never shown."""
NAMES = ("acme-gpu-17", "acme-gpu-18", "acmelogs", "acmecluster", "acme-folder", "10.128.7.33", "acmehosts")
"""Hosts, files, folders, addresses: shown, but not with --anonymize."""
HOSTS = NAMES[:2]
DUMP = "nccl_trace_acmecluster_rank_"


def _plant(folder: Path) -> None:
    """Write a run of two ranks on two hosts with dumps and a log beside, all with names and secrets in them."""
    folder.mkdir(parents=True)
    run = simulate(Config(dp=2, tp=1, pp=1))
    run.write_kineto(folder, names="acme-gpu_rank{rank}.json", host_names=True)
    for rank, path in enumerate(sorted(folder.glob("*.json"))):
        trace = json.loads(path.read_text())
        trace |= {
            "host_name": HOSTS[rank], "username": SECRETS[1], "traceName": f"{SECRETS[3]}/acme-folder/x.json",
            "INFO": [f"started by {SECRETS[1]}"], "ERROR": [SECRETS[0]], "tw_job": SECRETS[2],
            "metadata": {"env": {"HF_TOKEN": SECRETS[0], "HOME": SECRETS[3]}, "argv": [f"--token={SECRETS[0]}"]},
        }  # fmt: skip
        trace["distributedInfo"] |= {"env": {"WANDB_API_KEY": SECRETS[0]}, "user": SECRETS[1]}
        trace["deviceProperties"][0] |= {"owner": SECRETS[1]}
        path.write_text(json.dumps(trace))
        frame = {"name": "forward", "filename": "/data/acme-folder/acmecluster/train.py", "line": 7}
        entry = {
            "record_id": 0, "pg_id": 0, "process_group": ["0", "default_pg"], "collective_seq_id": 1, "p2p_seq_id": 0,
            "op_id": 1, "profiling_name": "nccl:all_reduce", "time_created_ns": 1_700_000_000_000_000_000,
            "input_sizes": [[4]], "output_sizes": [[4]], "input_dtypes": ["Float"], "output_dtypes": ["Float"],
            "state": "scheduled", "is_p2p": False, "frames": [frame], "timeout_ms": 600_000, "retired": False,
            "time_discovered_started_ns": None, "time_discovered_completed_ns": None,
        }  # fmt: skip
        dump = {
            "version": "2.4", "entries": [entry] if rank == 0 else [],
            "pg_config": {"0": {"name": "0", "desc": "default_pg", "ranks": "[0, 1]"}},
        }  # fmt: skip
        (folder / f"{DUMP}{rank}.json").write_text(json.dumps(dump))
        log = folder / f"acmelogs_rank{rank}.log"
        prefix = f"{HOSTS[rank]}:500{rank}:600{rank} [{rank}] NCCL INFO"
        log.write_text(
            f"export HF_TOKEN={SECRETS[0]}\n"
            f"{prefix} Bootstrap : Using eth0:10.128.7.33<0>\n"
            f"{prefix} NCCL_TOPO_FILE set by environment to {SECRETS[3]}/topo.xml\n"
            f"{prefix} NET/Plugin: Could not find: libnccl-net.so. Using {SECRETS[3]}/lib/libnccl.so\n"
            f"{prefix} NET/IB : Using [0]mlx5_0:1/RoCE [RO]; OOB eth0:10.128.7.33<0>\n"
            f"{prefix} NCCL version 2.27.3+cuda12.9\n"
            f"{prefix} comm 0x7f rank {rank} nRanks 2 nNodes 2 localRanks 1 cudaDev 0 busId 1b000 commId 0xfeed - Init "
            "COMPLETE\n"
        )
    (folder / "acme-folder.txt").write_text("not a trace")
    (folder / "hosts").write_text("0 acmehosts-0\n1 acmehosts-1\n")


def _outputs(folder: Path, capfd: pytest.CaptureFixture[str], *options: str) -> Iterator[tuple[str, str]]:
    """Return every way out of a run: what it is called, what it holds."""
    work = folder.parent
    shared = [*options, "--quiet", "--cache", str(work / "cache")]

    def call(*arguments: str) -> str:
        sys.argv = ["tracetool", *arguments, *shared]
        with pytest.raises(SystemExit) as exited:
            cli.main()
        assert exited.value.code in (0, None)
        return capfd.readouterr().out

    run = str(folder)
    files = {suffix: work / f"page.{suffix}" for suffix in ("html", "json", "md")}
    call("report", run, "--force", "-o", *(str(files["html"]), "--json", str(files["json"]), "--md", str(files["md"])))
    yield from ((suffix, path.read_text()) for suffix, path in files.items())
    yield "terminal", call("summary", run)
    for form in ("table", "csv", "md"):
        yield f"analyze {form}", call("analyze", run, "--format", form)
    yield "postmortem", call("postmortem", run, "-o", str(work / "hang.html"), "--json", "-", "--force")
    yield "postmortem page", (work / "hang.html").read_text()
    for form in ("table", "csv", "json", "md"):
        yield f"sql {form}", call("sql", run, "select * from ranks", "--format", form)


def _tables(folder: Path, **settings: object) -> Iterator[tuple[str, str]]:
    """Return every table of the data model as a script or `sql` sees it, of each rank and of all."""
    with tracetool.open_run(folder, Settings(**settings), cache=str(folder.parent / "cache")) as run:  # type: ignore[arg-type]  # options by name
        for table in (*SCHEMAS, *run.view.joined):
            for rank in (None, 0, 1) if table in SCHEMAS else (None,):
                yield f"{table} of {rank}", run.table(table, rank).collect().write_json()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "argv", [])
    folder = tmp_path / "acme-folder" / "traces"
    _plant(folder)
    return folder


def test_no_secret_leaves_a_trace(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    seen = ""
    for name, text in (*_outputs(run, capfd), *_tables(run)):
        assert [secret for secret in SECRETS if secret in text] == [], name
        seen += text
    assert [host for host in HOSTS if host not in seen] == []  # or the next test could not fail


def test_no_name_of_host_file_or_folder_is_in_an_anonymous_report(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    hosts = str(run / "hosts")
    texts = [
        *_outputs(run, capfd, "--anonymize", "--hosts", hosts),
        *_tables(run, anonymize=True, hosts=hosts),
        *_tables(run, anonymize=True),
    ]
    for name, text in texts:
        found = [secret for secret in (*SECRETS, *NAMES, "acme") if secret in text]
        assert found == [], f"{name}: {text[max(0, text.find(found[0]) - 80) :][:160] if found else ''}"


def test_an_anonymous_report_says_the_same(run: Path) -> None:
    cache = str(run.parent / "cache")
    with (
        tracetool.open_run(run, cache=cache) as plain,
        tracetool.open_run(run, Settings(anonymize=True), cache=cache) as hidden,
    ):
        for name, result in plain.results.items():
            assert result.metrics == hidden.results[name].metrics, name
            heights = {table: frame.height for table, frame in result.tables.items()}
            assert heights == {table: frame.height for table, frame in hidden.results[name].tables.items()}, name
        assert set(hidden.results["clocks"].tables["ranks"]["host"]) == {"host-0", "host-1"}
