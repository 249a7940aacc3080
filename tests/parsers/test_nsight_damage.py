"""Damaged, foreign, locked and packed files: a clear error or a partial result, and the input untouched."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import sqlite3
import stat
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from simulator_nsight import Call, Capture, Kernel, Range, write

from tracetool import open_run, registry
from tracetool.errors import NothingReadable, UnreadableTrace
from tracetool.registry import ParseOptions
from tracetool.tables import check

if TYPE_CHECKING:
    from tracetool.tables import Tables

nsight = import_module("tracetool.parsers.nsight")
PID = 144


def large() -> Capture:
    """Return some pages of every table."""
    return Capture(
        kernels=[Kernel(PID, 0, 7, 1_000 * k, 1_000 * k + 500, k, f"kernel_{k % 7}") for k in range(1, 4_000)],
        calls=[Call(PID, PID, 1_000 * k - 100, 1_000 * k - 50, k) for k in range(1, 4_000)],
        ranges=[Range(PID, PID, 1_000 * k - 150, 1_000 * k, f"range {k}") for k in range(1, 4_000)],
    )


def read(path: Path) -> Tables:
    found: Tables = nsight.parse(path, ParseOptions(display_path=path.name))
    for name, table in found.items():
        check(name, table)
    return found


def sniffed(path: Path) -> bool:
    answer: bool = nsight.sniff(path, path.read_bytes()[:65_536])
    return answer


def refused(path: Path) -> str:
    before = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""
    with pytest.raises(UnreadableTrace) as caught:
        nsight.parse(path, ParseOptions(display_path=path.name))
    assert not before or hashlib.sha256(path.read_bytes()).hexdigest() == before
    assert str(caught.value).startswith(path.name)
    return str(caught.value)


def test_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    path.touch()
    assert sniffed(path)
    assert "the file is empty" in refused(path)


def test_an_interrupted_export(tmp_path: Path) -> None:
    path = write(tmp_path / "r.sqlite", large())
    path.write_bytes(bytes(100) + path.read_bytes()[100:])
    assert sniffed(path)
    assert "interrupted" in refused(path)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
def test_a_cut_export_gives_what_stands_before_the_cut_or_says_why_not(tmp_path: Path, share: float) -> None:
    path = write(tmp_path / "r.sqlite", large())
    whole = read(path)["events"].height
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert sniffed(path)
    try:
        tables = read(path)
    except UnreadableTrace as error:
        assert "the file was cut" in str(error)  # noqa: PT017 - either outcome is right
        return
    source = tables["sources"].row(0, named=True)
    assert source["events"] < whole
    assert not source["complete"]
    assert any("the file was cut" in note for note in source["notes"])
    assert any("damaged" in note for note in source["notes"])


def test_some_cut_exports_are_partly_read(tmp_path: Path) -> None:
    content = write(tmp_path / "r.sqlite", large()).read_bytes()
    kept = []
    for share in (0.5, 0.8, 0.95):
        path = tmp_path / f"{share}.sqlite"
        path.write_bytes(content[: int(len(content) * share)])
        with contextlib.suppress(UnreadableTrace):
            kept.append(read(path)["events"].height)
    assert kept
    assert min(kept) > 0


def test_a_page_overwritten_in_the_middle(tmp_path: Path) -> None:
    path = write(tmp_path / "r.sqlite", large())
    content = bytearray(path.read_bytes())
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 4096] = b"\xff" * 4096
    path.write_bytes(content)
    tables = read(path)
    assert not tables["sources"]["complete"].item()
    assert tables["events"].height > 0


def test_a_foreign_database(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as made, made:
        made.execute("create table songs (id integer, title text)")
    assert not sniffed(path)
    assert "holds no table of an Nsight Systems export (it has songs)" in refused(path)


def test_text_with_the_right_suffix(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    path.write_text("not a database at all", encoding="utf-8")
    assert not sniffed(path)
    assert "is no SQLite file" in refused(path)


def test_a_packed_export(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite.gz"
    path.write_bytes(gzip.compress(write(tmp_path / "r.sqlite", large()).read_bytes()))
    assert "unpack it first" in refused(path)


def test_a_missing_file_is_not_created(tmp_path: Path) -> None:
    path = tmp_path / "none.sqlite"
    assert "cannot be read" in refused(path)
    assert not path.exists()


def test_a_locked_and_read_only_file_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "with space #1?.sqlite", large())
    whole = read(path)["events"].height
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("begin exclusive")
        assert read(path)["events"].height == whole
        other.execute("rollback")
    path.chmod(stat.S_IRUSR)
    assert read(path)["events"].height == whole
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_writer_that_has_not_finished_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "r.sqlite", large())
    path.with_name("r.sqlite-wal").write_bytes(b"x" * 100)
    source = read(path)["sources"].row(0, named=True)
    assert not source["complete"]
    assert "r.sqlite-wal stands beside it" in source["notes"][0]


def drop(path: Path, *statements: str) -> Path:
    with contextlib.closing(sqlite3.connect(path)) as made, made:
        for statement in statements:
            made.execute(statement)
    return path


@pytest.mark.parametrize("table", ["CUPTI_ACTIVITY_KIND_KERNEL", "CUPTI_ACTIVITY_KIND_RUNTIME", "NVTX_EVENTS"])
def test_any_table_may_be_missing(tmp_path: Path, table: str) -> None:
    tables = read(drop(write(tmp_path / "r.sqlite", large()), f'drop table "{table}"'))
    assert tables["events"].height > 0
    assert tables["sources"]["complete"].item()


def test_without_names_work_is_still_counted(tmp_path: Path) -> None:
    tables = read(drop(write(tmp_path / "r.sqlite", large()), "drop table StringIds"))
    kernels = tables["events"].filter(pl.col("category") == "kernel")
    assert kernels.height == 3_999
    assert "3999 kernels have no name" in "\n".join(tables["sources"]["notes"][0].to_list())


def test_nothing_of_interest(tmp_path: Path) -> None:
    path = write(tmp_path / "r.sqlite", Capture())
    assert sniffed(path)
    assert "neither GPU activity nor API calls nor NVTX ranges" in refused(path)


def test_a_column_without_which_nothing_can_be_placed(tmp_path: Path) -> None:
    path = drop(write(tmp_path / "r.sqlite", large()), "alter table CUPTI_ACTIVITY_KIND_KERNEL drop column deviceId")
    assert "table CUPTI_ACTIVITY_KIND_KERNEL has no column deviceId" in refused(path)


def test_columns_that_may_be_missing_and_columns_nobody_knows(tmp_path: Path) -> None:
    path = drop(
        write(tmp_path / "r.sqlite", large()),
        "alter table CUPTI_ACTIVITY_KIND_KERNEL drop column globalPid",
        "alter table CUPTI_ACTIVITY_KIND_KERNEL drop column demangledName",
        "alter table CUPTI_ACTIVITY_KIND_KERNEL add column fromTheFuture TEXT",
        "update META_DATA_EXPORT set value = '3.99.0' where name = 'EXPORT_SCHEMA_VERSION'",
    )
    tables = read(path)
    assert tables["ranks"]["pid"].to_list() == [PID]
    assert "one process is assumed" in "\n".join(tables["sources"]["notes"][0].to_list())
    assert tables["ranks"]["versions"].item().endswith("schema 3.99.0")


def test_text_that_is_null_first_and_late_and_no_utf8(tmp_path: Path) -> None:
    ranges = [Range(PID, PID, k, k + 1, f"by id {k % 3}", by_id=True) for k in range(3_000)]
    path = write(tmp_path / "r.sqlite", Capture(ranges=[*ranges, Range(PID, PID, 9_000, 9_001, "late")]))
    drop(path, "update NVTX_EVENTS set text = cast(x'6c61ff7465' as text) where text = 'late'")
    names = read(path)["events"]["name"].cast(pl.String).to_list()
    assert names[-1] == "la\ufffdte"
    assert names[:3] == ["by id 0", "by id 1", "by id 2"]


def test_rows_that_cannot_be_are_left_out_and_counted(tmp_path: Path) -> None:
    capture = Capture(kernels=[Kernel(PID, 0, 7, 100, 200, 1, "good"), Kernel(PID, 0, 7, 300, 250, 2, "backwards")])
    capture.kernels.append(Kernel(PID, 1 << 40, 7, 300, 350, 3, "on no device"))
    source = read(write(tmp_path / "r.sqlite", capture))["sources"].row(0, named=True)
    assert (source["events"], source["dropped"]) == (1, 2)


def test_a_damaged_file_of_a_directory(tmp_path: Path) -> None:
    path = write(tmp_path / "r_pqtdir", large(), form="parquetdir")
    (path / "CUPTI_ACTIVITY_KIND_RUNTIME.parquet").write_bytes(b"PAR1 nothing more")
    assert nsight.sniff(path, b"")
    tables = read(path)
    assert not tables["sources"]["complete"].item()
    assert tables["events"].filter(pl.col("category") == "kernel").height == 3_999
    assert not nsight.sniff(tmp_path, b"")


# ---- reports ----


def fake_nsys(folder: Path, script: str) -> str:
    folder.mkdir()
    program = folder / "nsys"
    program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    program.chmod(0o755)
    return str(folder)


@pytest.fixture
def report(tmp_path: Path) -> Path:
    path = tmp_path / "r.nsys-rep"
    path.write_bytes(b"opaque")
    return path


def test_a_report_without_nsys_names_the_command(report: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert sniffed(report)
    assert "nsys export -t sqlite -o r.sqlite r.nsys-rep" in refused(report)


def test_a_report_is_exported_and_read(report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export = write(tmp_path / "made.sqlite", large())
    told = tmp_path / "told"
    script = f'''[ "$2" = --help ] && {{ echo "--include-blobs=<true|false>"; exit 0; }}
echo "$@" >> "{told}"
while [ $# -gt 0 ]; do [ "$1" = -o ] && target="$2"; shift; done
/bin/cp "{export}" "$target"'''
    monkeypatch.setenv("PATH", fake_nsys(tmp_path / "bin", script))
    before = sorted(p.name for p in tmp_path.iterdir())
    tables = read(report)
    assert tables["events"].height == 3 * 3_999
    assert tables["sources"].select("path", "bytes").row(0) == ("r.nsys-rep", 6)
    assert "--include-blobs=true" in told.read_text(encoding="utf-8")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*before, "told"])


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (
            "Report was created in Nsight version (2026.1.2.63-1), newer than your current version (2023.4.4.54-2)",
            "made by nsys 2026.1.2.63-1 and the nsys on PATH is 2023.4.4.54-2",
        ),
        ("Exportation error: Cannot read from stream.", "was cut or is empty"),
        ("Something else went wrong.", "nsys export failed: Something else went wrong."),
    ],
)
def test_refusals_of_nsys(
    report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, expected: str
) -> None:
    monkeypatch.setenv("PATH", fake_nsys(tmp_path / "bin", f'echo "{said}" >&2; exit 1'))
    assert expected in refused(report)


def test_a_raw_capture_is_refused_with_a_hint(tmp_path: Path) -> None:
    path = tmp_path / "r.qdstrm"
    path.write_bytes(b"raw")
    assert "raw capture" in refused(path)


# ---- exports in forms that lack data, and reports beside their export ----


@pytest.mark.parametrize(
    ("name", "content", "form"),
    [
        ("r.arrows", b"\xff\xff\xff\xff\x10\0\0\0 correlationId globalPid", "one Arrow stream"),
        ("r.h5", b"\x89HDF\r\n\x1a\n\0\0CUPTI_ACTIVITY_KIND_KERNEL", "HDF5"),
        ("r.json", b'{"data":["a"]}\n{"Type":80,"CudaEvent":{"startNs":"1","endNs":"2"}}\n', "JSON"),
        ("r.jsonl", b'{"NvtxEvent":{"Type":59,"Timestamp":"7"}}\n', "JSON"),
        ("r.txt", b"Type: 80\nCudaEvent {\n  startNs: 1\n}\n", "text"),
    ],
)
def test_exports_in_other_forms_are_refused_with_the_command(
    tmp_path: Path, name: str, content: bytes, form: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert registry.sniff(tmp_path / name, content) is None
    command = "nsys export -t sqlite -o r.sqlite r.nsys-rep"
    with pytest.raises(NothingReadable, match=rf"{name}: an Nsight Systems export as {form}, .*{command}"):
        open_run(tmp_path / name, cache="off", engine="serial")


def test_other_files_of_these_forms_are_nobodys() -> None:
    kineto = b'{"traceEvents": [{"name": "CudaEvent: x"}]}'
    for head in (b"\x89HDF\r\n\x1a\n weights", b"\xff\xff\xff\xff rows", kineto, b"a CudaEvent was seen", b""):
        assert nsight.why_not_read(Path("x.json"), head) is None


@pytest.mark.parametrize("form", ["sqlite", "parquetdir"])
def test_a_report_beside_its_export_is_not_read_twice(report: Path, tmp_path: Path, form: Any) -> None:  # noqa: ANN401 - parametrized
    export = write(tmp_path / {"sqlite": "r.sqlite", "parquetdir": "r_pqtdir"}[form], large(), form=form)
    run = open_run(tmp_path, cache="off", engine="serial")
    assert run.ranks == [0]
    (said,) = [note for note in run.view.notes if report.name in note]
    assert said.startswith(f"r.nsys-rep: its export {export.name} stands beside it: that is what to read")


def test_a_report_beside_an_interrupted_export_is_read(report: Path, tmp_path: Path) -> None:
    (tmp_path / "r.sqlite").write_bytes(bytes(4096))
    assert sniffed(report)
