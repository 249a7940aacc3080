"""Environments, command lines, output and paths in an export reach no table, store or report."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import sys
from typing import TYPE_CHECKING

import polars as pl
import pytest
from simulator import Config, simulate
from simulator_nsight import Warned, write
from simulator_nsight.bridge import capture_of

from tracetool import cli

if TYPE_CHECKING:
    from pathlib import Path

WHERE = (
    "environment", "device environment", "command", "argument", "output", "diagnostic", "setting", "login", "path",
    "user", "analysis", "process", "string", "system",
)  # fmt: skip
SECRETS = {where: f"hf_{where.replace(' ', '')}0123456789abcdefXYZ" for where in WHERE}


def planted(path: Path) -> Path:
    """Write an export with a secret in every place that holds free text beside the names of events."""
    capture = capture_of(simulate(Config(dp=2)))
    capture.diagnostics.extend(
        [
            Warned(1, 2, f"the token {SECRETS['diagnostic']} was refused"),
            Warned(2, 2, f"HF_TOKEN={SECRETS['setting']};B=1 is set"),
            Warned(3, 3, f"cannot reach https://me:{SECRETS['login']}@host/x"),
            Warned(4, 3, f"cannot write /home/{SECRETS['path']}/r.nsys-rep\nWANDB_API_KEY={SECRETS['setting']}"),
        ]
    )
    write(path, capture)
    pairs = [
        ("PROCESS_0:COMMAND", f"/home/{SECRETS['command']}/torchrun"),
        ("PROCESS_0:ENVIRONMENT_VARIABLE", f"RANK=0;HF_TOKEN={SECRETS['environment']};A=b"),
        ("PROCESS_0:ARGUMENT_1", f"--token={SECRETS['argument']}"),
        ("PROCESS_0:WORKING_DIRECTORY", SECRETS["path"]),
        ("USER", SECRETS["user"]),
    ]
    with contextlib.closing(sqlite3.connect(path)) as file, file:
        file.executemany("insert into META_DATA_CAPTURE values (?, ?)", pairs)
        system = """
            insert into TARGET_INFO_SYSTEM_ENV (name, value, globalVid, devStateName, nameEnum) values (?, ?, 1, 'x', 9)
        """
        file.execute(system, ("DeviceEnvironment", f"HF_TOKEN={SECRETS['device environment']};RANK=0"))
        file.execute(system, ("SystemUser", SECRETS["system"]))
        file.execute("update PROCESSES set name = ?", (SECRETS["process"],))
        file.executemany(
            "insert into StringIds values (?, ?)", [(900_001, SECRETS["output"]), (900_002, SECRETS["string"])]
        )
        file.execute("create table ProcessStreams (globalPid, filenameId, contentId)")
        file.execute("insert into ProcessStreams values (1, 900002, 900001)")
        file.execute("create table ANALYSIS_FILE (id, filename, content)")
        file.execute("insert into ANALYSIS_FILE values (1, ?, ?)", (SECRETS["analysis"], SECRETS["analysis"]))
    return path


def test_secrets_reach_neither_store_nor_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    export = planted(tmp_path / "report.sqlite")
    raw = export.read_bytes()
    assert all(secret.encode() in raw for secret in SECRETS.values())
    cache, out = tmp_path / "cache", tmp_path / "out"
    out.mkdir()
    monkeypatch.setenv("TRACETOOL_CACHE", str(cache))
    texts: dict[str, str] = {}
    for name, arguments in {
        "report": [
            "report",
            str(export),
            "-o",
            str(out / "r.html"),
            "--json",
            str(out / "r.json"),
            "--md",
            str(out / "r.md"),
        ],
        "summary": ["summary", str(export)],
        "table": ["analyze", str(export), "--format", "table"],
        "csv": ["analyze", str(export), "budget", "--format", "csv"],
        "sql": ["sql", str(export), "select * from sources"],
    }.items():
        monkeypatch.setattr(sys, "argv", ["tracetool", *arguments])
        with pytest.raises(SystemExit) as exited:
            cli.main()
        assert exited.value.code in (0, None), name
        texts[name] = "\n".join(capfd.readouterr())
    stored = sorted(path for path in cache.rglob("*") if path.is_file())
    tables = [path for path in stored if path.suffix == ".parquet"]
    assert len(tables) > 20
    for path in tables:
        table = pl.read_parquet(path)
        texts[str(path)] = table.with_columns(pl.col(pl.Categorical, pl.Enum).cast(pl.String)).write_ndjson()
    texts |= {f"raw {path}": path.read_bytes().decode("latin-1") for path in (*stored, *out.iterdir())}
    assert json.loads((out / "r.json").read_text())["results"]["budget"]["status"] == "ok"
    found = [(where, secret) for where, text in texts.items() for secret in SECRETS.values() if secret in text]
    assert found == []
    # what remains of nsys' own warnings still says something
    notes = json.loads((out / "r.json").read_text())["sources"][0]["notes"]
    assert "nsys warning: the token <word> was refused" in notes
    assert "nsys warning: HF_TOKEN=<value>;B=<value> is set" in notes
    assert "nsys error: cannot reach <https address>" in notes
    assert "nsys error: cannot write <path>" in notes
