"""Which host each rank ran on: ranks of one host share a clock and its links.

The user's file wins, then what the traces record, then the name of the file, then `--gpus-per-node`; else every rank is
taken for a host of its own. The name tells the host where it is that of PyTorch's tensorboard_trace_handler,
`<host>_<pid>.<time in ns>.pt.trace.json` (torch/profiler/profiler.py, 2.9), and `<host>` is no word that numbers ranks.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Final

from tracetool.errors import UsageError

if TYPE_CHECKING:
    import polars as pl

    from tracetool.settings import Settings

_HANDLER: Final = re.compile(r"([A-Za-z][\w.-]*)_\d+\.\d{13,19}\.pt\.trace\.json(\.gz)?")
_NO_HOST: Final = re.compile(
    r"((global|local)?[-_.]?(rank|worker|trace|gpu|device|process|proc|profile[rd]?|pytorch|torch|run|step|dp|tp|pp)"
    r"[-_.]?\d*[-_.]?)+",
    re.IGNORECASE,
)


def hosts_of(identities: pl.DataFrame, sources: pl.DataFrame, settings: Settings) -> tuple[pl.DataFrame, list[str]]:
    """Return (rank, base_unix_ns, host, assumed) of every rank, and how the hosts were found, as notes.

    `identities` is table `ranks`; `sources` is table `sources` with its column `ranks`.
    """
    import polars as pl  # noqa: PLC0415 - keeps `--help` fast

    given = _hosts_file(settings.hosts) if settings.hosts else {}
    named = {
        rank: host
        for path, ranks in sources.select("path", "ranks").iter_rows()
        if (host := host_of_file(path))
        for rank in ranks
    }
    names: list[str] = []
    guessed: list[bool] = []
    by_name = 0
    for rank, recorded in identities.select("rank", "host").iter_rows():
        known = given.get(rank) or recorded or named.get(rank)
        by_name += bool(known) and not (given.get(rank) or recorded)
        if not known and settings.gpus_per_node:
            known = f"node-{rank // settings.gpus_per_node}"
        names.append(known or f"rank-{rank}")
        guessed.append(not known)
    notes = []
    if by_name and len(names) > 1:
        notes.append(f"the hosts of {by_name} ranks are those in the names of their files")
    if any(guessed) and len(names) > 1:
        notes.append(
            f"the traces of {sum(guessed)} ranks do not name their host: each is taken for a host with a clock of its "
            "own; --gpus-per-node or --hosts tells which share one"
        )
    hosts = identities.select("rank", "base_unix_ns").with_columns(
        host=pl.Series(names, dtype=pl.String), assumed=pl.Series(guessed, dtype=pl.Boolean)
    )
    return hosts, notes


def host_of_file(path: str) -> str | None:
    """Return the host in a file name as PyTorch's trace handler makes it; None where the name tells none."""
    found = _HANDLER.fullmatch(PurePath(path).name)
    return None if found is None or _NO_HOST.fullmatch(found[1]) else found[1]


def _hosts_file(path: str) -> dict[int, str]:
    found = {}
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UsageError(f"--hosts {path}: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2 or not words[0].isdigit():  # noqa: PLR2004 - "rank host"
            raise UsageError(f"--hosts {path}, line {number}: {line.strip()!r} is not `rank host`")
        found[int(words[0])] = words[1]
    return found
