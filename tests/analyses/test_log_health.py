"""Setup that differs on one host or rank is told; equal setups give no finding; without logs it is skipped."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, cast

import polars as pl
from hang_harness import Rank, parser

from tracetool.registry import ParseOptions, RunView
from tracetool.settings import Settings
from tracetool.tables import empty

if TYPE_CHECKING:
    from pathlib import Path

    from tracetool.results import Result

health: Any = importlib.import_module("tracetool.analyses.log_health")

RUN = RunView(
    path="run",
    ranks=empty("ranks"),
    sources=empty("sources"),
    steps=empty("steps"),
    quality=empty("quality"),
    world_size=None,
    features={},
    joined={},
)


def lines(rank: int, **changes: object) -> str:
    """Return the log of one rank of 12 on three hosts; `changes` replace what it says."""
    told: dict[str, object] = {
        "version": "2.27.5+cuda12.9", "via": "NET/IB/0/GDRDMA", "local": "P2P/CUMEM", "channels": 16, "nics": 4,
        "speed": 400000, "total": "1.58", "inside": None,
    } | changes  # fmt: skip
    host, device = divmod(rank, 4)
    prefix = f"host{host}:{100 + rank}:{100 + rank} [{device}] NCCL INFO "
    nics = told["nics"]
    assert isinstance(nics, int)
    said = [
        f"NCCL version {told['version']}",
        *(f"NET/IB: [{n}] mlx5_{n}:uverbs2:1/RoCE provider=Mlx5 speed={told['speed']} ar=0" for n in range(nics)),
        f"comm 0x1{rank:02x} rank {rank} nranks 12 cudaDev {device} busId 1 commId 0xfe - Init COMPLETE",
        f"Channel 00/0 : {rank}[{device}] -> {(rank + 4) % 12}[0] [send] via {told['via']}",
        f"Channel 00/0 : {rank}[{device}] -> {host * 4 + (rank + 1) % 4}[1] via {told['inside'] or told['local']}",
        f"{told['channels']} coll channels, 0 nvls channels, 16 p2p channels, 16 p2p channels per peer",
        f"Init timings - ncclCommInitRank: rank {rank} nranks 12 total {told['total']} (kernels 0.26, alloc 0.97)",
    ]
    return "".join(f"{prefix}{message}\n" for message in said)


def judge(folder: Path, changes: dict[int, dict[str, object]]) -> Result:
    path = folder / "job.log"
    path.write_text("".join(lines(rank, **changes.get(rank, {})) for rank in range(12)))
    tables = parser("nccl_log").parse(path, ParseOptions("job.log"))
    parts = [
        health.per_rank(Rank(rank, {"log_facts": tables["log_facts"].filter(rank=rank)}), {}, Settings())
        for rank in range(12)
    ]
    facts = pl.concat([part["log_facts"] for part in parts])
    return cast("Result", health.analyze({"log_facts": facts}, RUN, Settings()))


def host(number: int, **changes: object) -> dict[int, dict[str, object]]:
    return {rank: dict(changes) for rank in range(number * 4, number * 4 + 4)}


def keys(result: Result) -> list[str]:
    return [finding.id for finding in result.findings]


def test_equal_setups_have_no_finding(tmp_path: Path) -> None:
    result = judge(tmp_path, {})
    assert keys(result) == []
    assert result.tables["hosts"].select("host", "nics", "gdr", "shm", "ranks").rows() == [
        ("host0", 4, True, False, "0-3"),
        ("host1", 4, True, False, "4-7"),
        ("host2", 4, True, False, "8-11"),
    ]
    assert result.metrics["init_total_ns_max"] == 1_580_000_000


def test_what_one_host_lacks(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, object], str]] = [
        ({"via": "NET/IB/0"}, "gdr"),
        ({"via": "NET/Socket/0"}, "socket"),
        ({"nics": 3}, "nics"),
        ({"speed": 200000}, "nic_rate"),
        ({"local": "SHM/direct/direct"}, "shm"),
        ({"inside": "NET/IB/1/GDRDMA"}, "net_inside_host"),
    ]
    for changes, key in cases:
        result = judge(tmp_path, host(1, **changes))
        assert f"log_health.{key}" in keys(result), changes
        named = next(f for f in result.findings if f.id == f"log_health.{key}")
        assert "host1" in named.title or named.where.ranks == (4, 5, 6, 7)


def test_one_rank_with_another_version_channels_or_a_slow_start(tmp_path: Path) -> None:
    result = judge(tmp_path, {7: {"version": "2.26.2+cuda12.8", "channels": 8, "total": "31.5"}})
    assert keys(result) == ["log_health.version", "log_health.coll_channels", "log_health.init"]
    assert all(finding.where.ranks == (7,) for finding in result.findings)


def test_what_all_hosts_share_is_no_finding(tmp_path: Path) -> None:
    everywhere: dict[int, dict[str, object]] = {
        rank: {"via": "NET/Socket/0", "local": "SHM/direct"} for rank in range(12)
    }
    assert keys(judge(tmp_path, everywhere)) == []


def test_without_a_log_it_is_skipped() -> None:
    assert health.analyze({}, RUN, Settings()).status == "skipped"
