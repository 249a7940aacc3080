"""A job that does not hang, as NCCL Inspector sees it: one file a process, and perhaps one slow NIC.

Hosts of `gpus` ranks; a tensor group is a host, a data group joins the same place of every host and uses that place's
NIC. A kernel's duration is the transfer, which all members share, plus this rank's own waiting for the last one.
Format v4.0: plugins/profiler/inspector/README.md of NVIDIA/nccl.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_RATES_GBS = {"tp": 370.0, "dp": 45.0, "world": 40.0}


@dataclass(frozen=True)
class Cluster:
    """The job, its noise, and the rank whose NIC is slow."""

    hosts: int
    gpus: int
    operations: int = 20
    slow_rank: int | None = None
    slowdown: float = 2.5
    late_rank: int | None = None
    """A rank that arrives late everywhere: the others wait, no link is slow."""
    noise: float = 0.03
    seed: int = 0


def families(cluster: Cluster) -> list[tuple[str, list[int]]]:
    """Return every communicator as (tp, dp or world, ranks)."""
    world = cluster.hosts * cluster.gpus
    return [
        ("world", list(range(world))),
        *(("tp", list(range(host * cluster.gpus, (host + 1) * cluster.gpus))) for host in range(cluster.hosts)),
        *(("dp", list(range(place, world, cluster.gpus))) for place in range(cluster.gpus)),
    ]


def write(cluster: Cluster, folder: Path) -> None:
    """Write `<host>-pid<pid>.log` of every process."""
    draw = random.Random(cluster.seed)  # noqa: S311 - a simulation
    lines: dict[int, list[str]] = {rank: [] for rank in range(cluster.hosts * cluster.gpus)}
    for number, (family, ranks) in enumerate(families(cluster)):
        size = len(ranks)
        if size == 1:
            continue
        for turn in range(cluster.operations):
            for op, per_rank, factor in (
                ("AllReduce", 1 << 26, 2 * (size - 1) / size),
                ("AllGather", (1 << 26) // size, (size - 1) / size),
            ):
                total = per_rank * (size if op == "AllGather" else 1)
                transfer = total * factor / _RATES_GBS[family] * (1 + draw.random() * cluster.noise)
                if family != "tp" and cluster.slow_rank in ranks:
                    transfer *= cluster.slowdown
                # how much earlier than the last one each member came
                early = [0 if rank == cluster.late_rank else draw.expovariate(1 / 200_000) for rank in ranks]
                last = min(early)
                for place, rank in enumerate(ranks):
                    lines[rank].append(
                        _line(rank, cluster, group=f"0x{number:x}", place=place, size=size, op=op, sn=turn + 1,
                              per_rank=per_rank, us=round((transfer + early[place] - last) / 1000))
                    )  # fmt: skip
    for rank, content in lines.items():
        (folder / f"node{rank // cluster.gpus}-pid{4000 + rank}.log").write_text("".join(content))


def _line(
    rank: int, cluster: Cluster, *, group: str, place: int, size: int, op: str, sn: int, per_rank: int, us: int
) -> str:
    record = {
        "header": {"id": group, "rank": place, "n_ranks": size, "nnodes": cluster.hosts},
        "metadata": {
            "inspector_output_format_version": "v4.0",
            "git_rev": "",
            "rec_mechanism": "profiler_plugin",
            "dump_timestamp_us": 1_760_000_000_000_000 + sn,
            "hostname": f"node{rank // cluster.gpus}",
            "pid": 4000 + rank,
        },
        "coll_perf": {
            "coll": op,
            "coll_sn": sn,
            "coll_msg_size_bytes": per_rank,
            "coll_exec_time_us": us,
            "coll_timing_source": "kernel_gpu",
            "coll_algobw_gbs": 0.0,
            "coll_busbw_gbs": 0.0,
        },
    }
    return json.dumps(record) + "\n"
