"""Discovery: files, folders and globs; formats by content; ranks by name; the rest named."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from tracetool.discover import discover, rank_of, read_head
from tracetool.errors import NothingReadable, UsageError
from tracetool.registry import HEAD_BYTES
from tracetool.settings import Settings

TRACE = b'{"schemaVersion": 1, "traceEvents": [{"ph":"X","cat":"kernel","name":"k","pid":0,"tid":7,"ts":1,"dur":2}]}'


def _write(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(TRACE) if name.endswith(".gz") else TRACE)


def _names(run: Path | str, **settings: object) -> list[str]:
    return [source.display for source in discover(str(run), Settings(**settings)).sources]  # type: ignore[arg-type] # test keywords


def test_a_directory_is_searched_recursively_and_sorted_by_number(tmp_path: Path) -> None:
    _write(tmp_path, "rank10.json", "rank2.json", "deep/er/rank3.json.gz", ".hidden/rank4.json", ".rank5.json")
    assert _names(tmp_path) == ["deep/er/rank3.json.gz", "rank2.json", "rank10.json"]


def test_a_trace_is_known_by_content_whatever_its_name(tmp_path: Path) -> None:
    _write(tmp_path, "unknown", "packed")
    (tmp_path / "packed").write_bytes(gzip.compress(TRACE))
    (tmp_path / "rank0.json").write_text('{"not": "a trace"}')
    (tmp_path / "empty.json").write_bytes(b"")
    (tmp_path / "archive.zip").write_bytes(b"PK\x03\x04....")
    found = discover(str(tmp_path), Settings())
    assert [source.display for source in found.sources] == ["packed", "unknown"]
    assert found.ignored == (
        "archive.zip: packed with zip; unpack it first",
        "empty.json: empty",
        "rank0.json: no known trace format",
    )


def test_a_file_and_a_glob(tmp_path: Path) -> None:
    _write(tmp_path, "a/rank0.json", "a/rank1.json", "b/rank2.json")
    assert _names(tmp_path / "a" / "rank0.json") == ["rank0.json"]
    assert [Path(name).name for name in _names(f"{tmp_path}/*/rank[12].json")] == ["rank1.json", "rank2.json"]
    assert [Path(name).name for name in _names(f"{tmp_path}/?")] == ["rank0.json", "rank1.json", "rank2.json"]


def test_nothing_there_is_a_usage_error_and_nothing_known_is_nothing_readable(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        discover(str(tmp_path / "absent"), Settings())
    with pytest.raises(NothingReadable, match="no trace found"):
        discover(str(tmp_path), Settings())
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(NothingReadable, match=r"not read: notes.txt: no known trace format"):
        discover(str(tmp_path), Settings())


@pytest.mark.parametrize(
    ("path", "rank"),
    [
        ("rank-34.Jul_15_10_52_41.1074.pt.trace.json.gz", 34),
        ("rank3_trace.json.gz", 3),
        ("iteration_5/rank3_trace.json.gz", 3),
        ("rank_12/trace.json", 12),
        ("run_rank0007.json", 7),
        ("RANK=9.json", 9),
        ("worker3.1719846514912.pt.trace.json", 3),
        ("nccl_trace_rank_5", 5),
        ("node12_4711.1719846514912.pt.trace.json", None),
        ("frank3.json", None),
        ("trace.json", None),
    ],
)
def test_ranks_by_the_usual_names(path: str, rank: int | None) -> None:
    assert rank_of(path, None) == (rank, None if rank is None else "file name")


def test_a_pattern_wins_over_the_name(tmp_path: Path) -> None:
    _write(tmp_path, "rank0_gpu7.json")
    (source,) = discover(str(tmp_path), Settings(rank_regex=r"gpu(\d+)")).sources
    assert (source.rank, source.rank_source) == (7, "option")
    with pytest.raises(UsageError, match=r"matches no path, such as rank0_gpu7\.json"):
        discover(str(tmp_path), Settings(rank_regex=r"device(\d+)"))


@pytest.mark.parametrize(
    ("pattern", "why"), [("gpu(", "no regular expression"), ("gpu", "no group"), ("(gpu)", "'gpu'")]
)
def test_a_pattern_that_cannot_work_is_refused(tmp_path: Path, pattern: str, why: str) -> None:
    _write(tmp_path, "gpu7.json")
    with pytest.raises(UsageError, match=why):
        discover(str(tmp_path), Settings(rank_regex=pattern))


def test_of_several_iterations_the_last_is_read_and_the_others_are_named(tmp_path: Path) -> None:
    _write(tmp_path, "iteration_100/rank0.json", "iteration_200/rank0.json", "iteration_200/rank1.json")
    found = discover(str(tmp_path), Settings())
    assert [source.display for source in found.sources] == ["iteration_200/rank0.json", "iteration_200/rank1.json"]
    assert found.ignored == ("iterations 100: iteration 200 was taken; --iteration chooses another",)
    assert _names(tmp_path, iteration=100) == ["iteration_100/rank0.json"]


def test_the_head_is_decompressed_and_bounded(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb"
    bomb.write_bytes(gzip.compress(b" " * 50_000_000))
    assert len(read_head(bomb)) == HEAD_BYTES
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x1f\x8bnot gzip at all")
    assert read_head(broken) == b""


@pytest.mark.skipif(not os.access("/proc/kmsg", os.R_OK), reason="no file of the kernel that waits for its writer")
def test_a_file_of_the_kernel_keeps_nobody_waiting(tmp_path: Path) -> None:
    _write(tmp_path, "rank0.json")
    (tmp_path / "rank1.json").symlink_to("/proc/kmsg")
    assert _names(tmp_path) == ["rank0.json"]


def test_a_link_beside_its_file_is_not_a_second_trace(tmp_path: Path) -> None:
    _write(tmp_path, "rank0.json", "run/rank1.json")
    (tmp_path / "latest.json").symlink_to("rank0.json")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "rank1.json").symlink_to("../run/rank1.json")
    found = discover(str(tmp_path), Settings())
    assert [source.display for source in found.sources] == ["rank0.json", "run/rank1.json"]
    assert found.ignored == (
        "elsewhere/rank1.json: the same file as run/rank1.json", "latest.json: the same file as rank0.json",
    )  # fmt: skip
    assert _names(tmp_path / "latest.json") == ["latest.json"]
