"""Replay at scale: 1,024 ranks × 2,000 communications, and whether it is linear.

    python tests/bench/replay.py [ranks] [communications]

A job of 8-rank tensor groups and data-parallel groups across them: 3 in 4 communications order everything (compute
waits for them), 1 in 4 runs beside the compute that follows. Rows: putting the nodes into levels (once a run), one
replay (once a what-if), the critical path's pointers. Reference for a synchronous chain of the same size on 2 cores,
without order edges or streams: 0.074 s.
"""

from __future__ import annotations

import resource
import sys
import time

import numpy as np

from tracetool.join.replay import Graph, binding, graph

TENSOR = 8


def made(ranks: int, comms: int) -> tuple[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return nodes, edges (pred, node), rendezvous and values: per rank alternately compute and communication."""
    random = np.random.default_rng(3)
    rank, k = np.meshgrid(np.arange(ranks), np.arange(comms), indexing="ij")
    compute = (rank * comms + k) * 2
    comm = compute + 1
    behind = k % 4 == 3
    edges = [(compute, comm)]
    # the next compute waits for the communication, or only for the compute before it
    edges.append((np.where(behind, compute, comm)[:, :-1], compute[:, 1:]))
    # communication that runs beside compute is waited for one piece later
    late = behind[:, :-2]
    edges.append((comm[:, :-2][late], compute[:, 2:][late]))
    edges.append((comm[:, :-1], comm[:, 1:]))
    pred = np.concatenate([a.ravel() for a, _ in edges])
    node = np.concatenate([b.ravel() for _, b in edges])
    group = np.where(behind, ranks + rank % TENSOR, rank // TENSOR)
    meets = np.full(ranks * comms * 2, -1, np.int64)
    meets[comm.ravel()] = (group * comms + k).ravel()
    values = random.integers(10_000, 200_000, ranks * comms * 2).astype(np.float64)
    return ranks * comms * 2, pred, node, meets, values


def main(ranks: int, comms: int) -> None:
    """Run and print the rows."""
    nodes, pred, node, meets, values = made(ranks, comms)
    began = time.perf_counter()
    built: Graph = graph(nodes, pred, node, meets)
    levelled = time.perf_counter()
    replayed = built.replay(values)
    ended = time.perf_counter()
    binding(built, replayed)
    bound = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    sys.stdout.write(
        f"{ranks:,} ranks × {comms:,} communications: {nodes:,} nodes, {len(pred):,} edges, "
        f"{len(built.levels):,} levels; levels {levelled - began:.2f} s, one replay {ended - levelled:.2f} s, "
        f"pointers {bound - ended:.2f} s, "
        f"peak {peak:.2f} GiB\n"
    )


if __name__ == "__main__":
    asked = [int(word) for word in sys.argv[1:]]
    if asked:
        main(asked[0], asked[1] if len(asked) > 1 else 2_000)
    else:
        for size in (256, 512, 1_024):
            main(size, 2_000)
