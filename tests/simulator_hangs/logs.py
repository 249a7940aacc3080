"""Writes the log of a simulated job: NCCL_DEBUG=INFO lines of the start, and what PyTorch's watchdogs print at the end.

Lines as torch 2.6 (ProcessGroupNCCL.cpp) and NCCL 2.27 (init.cc, transport/net.cc) write them, all ranks interleaved in
one file. A watchdog prints its operation when that timed out; every rank then prints how far its default group came.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from simulator_hangs.job import Job, Record

TIMEOUT_MS = 600_000
_NAMES = {"all_reduce": "ALLREDUCE", "_all_gather_base": "_ALLGATHER_BASE", "broadcast": "BROADCAST",
          "_reduce_scatter_base": "_REDUCE_SCATTER_BASE", "send": "SEND", "recv": "RECV"}  # fmt: skip


def write(job: Job, path: Path, *, gpus: int = 8, seed: int = 0) -> None:
    """Write the job's log; a dead rank printed its start and nothing since, a healthy job no watchdog line."""
    draw = random.Random(seed)  # noqa: S311 - a simulation
    world = len(job.groups[0].ranks)
    start = [line for rank in range(world) for line in _start(rank, world, gpus)]
    end = []
    if job.config.fault != "healthy":
        end = [line for rank in sorted(job.alive) for line in _end(job, rank)]
    draw.shuffle(start)
    draw.shuffle(end)
    path.write_text("".join(f"{line}\n" for line in [*start, *end]))


def _start(rank: int, world: int, gpus: int) -> list[str]:
    prefix = f"node{rank // gpus}:{5000 + rank}:{6000 + rank} [{rank % gpus}] NCCL INFO "
    comm = f"comm 0x7f{rank:04x} rank {rank} nRanks {world} nNodes 1 localRanks {gpus} cudaDev {rank % gpus}"
    return [
        f"{prefix}NCCL version 2.27.3+cuda12.9",
        f"{prefix}{comm} busId 1b000 commId 0xfeed - Init COMPLETE",
        f"{prefix}Channel 00/0 : {rank}[{rank % gpus}] -> {(rank + gpus) % world}[0] [send] via NET/IB/0/GDRDMA",
    ]


def _end(job: Job, rank: int) -> list[str]:
    """Return a rank's last lines: of each group in which something timed out, and of the default group."""
    lines = []
    for number, group in enumerate(job.groups):
        mine = [record for record in job.records[rank] if record.op.group == number]
        stuck = [record for record in mine if record.completed is None]
        if rank not in group.ranks or (number and not stuck):
            continue
        enqueued = _number(mine[-1]) if mine else -1
        done = max((_number(record) for record in mine if record.completed is not None), default=-1)
        # the number of a group within the rank; only the default group's is the same everywhere
        place = sum(rank in other.ranks for other in job.groups[:number])
        where = f"[PG ID {place} PG GUID {group.name}({group.desc}) Rank {rank}]"
        prefix = f"[rank{rank}]:[E603 17:48:01.{rank % 1000:03d} ProcessGroupNCCL.cpp:632] "
        if not stuck:
            lines.append(
                f"{prefix}{where} Received a dump signal due to a collective timeout from  rank 0 and we will try our "
                f"best to dump the debug info. Last enqueued NCCL work: {enqueued}, last completed NCCL work: {done}."
            )
            continue
        first = stuck[0]
        count = 1
        for size in first.op.sizes:
            count *= size
        work = f"SeqNum={_number(first)}, OpType={_NAMES[first.op.op]}, NumelIn={count}, NumelOut={count}"
        told = f"Watchdog caught collective operation timeout: WorkNCCL({work}, Timeout(ms)={TIMEOUT_MS})"
        state = f"PG status: last enqueued work: {enqueued}, last completed work: {done}"
        lines.append(f"{prefix}{where} {told} ran for {TIMEOUT_MS + 68} milliseconds before timing out.")
        lines.append(f"{prefix}{where}  failure detected by watchdog at work sequence id: {_number(first)} {state}")
    return lines


def _number(record: Record) -> int:
    return record.p2p_seq if record.op.is_p2p else record.seq
