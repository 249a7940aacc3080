"""Takes names of hosts, files and folders out of a run before any analysis sees it.

Ranks, devices, kernels, ranges and process groups keep their names: without them a report says nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tracetool.disguise import disguised, told

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import polars as pl

    from tracetool.registry import RunView


def names_of(view: RunView) -> dict[str, str]:
    """Return what each host, file and the run itself are called instead; hosts also by what the join found."""
    tables = [view.ranks, *(view.joined[name] for name in ("hosts", "clocks") if name in view.joined)]
    # a rank without a host is one by its number: nothing to hide
    hosts = [host for table in tables for host in table["host"].drop_nulls() if not host.startswith("rank-")]
    names = {view.path: "run"}
    names |= {path: f"trace-{number}" for number, path in enumerate(view.sources["path"].to_list())}
    names |= {host: f"host-{number}" for number, host in enumerate(dict.fromkeys(hosts))}
    names |= {host: host for table in tables for host in table["host"].drop_nulls() if host.startswith("rank-")}
    return names


def anonymize(view: RunView, names: Mapping[str, str], ignored: Collection[str]) -> RunView:
    """Return the view with other names in its tables and inside its sentences.

    `ignored` are the notes of the view that name files which were not read: only their number stays.
    """
    return replace(
        view,
        path="run",
        ranks=_eager(view.ranks, names),
        sources=_eager(view.sources, names),
        quality=_eager(view.quality, names),
        joined={name: _eager(table, names) for name, table in view.joined.items()},
        notes=(
            *([f"{len(ignored)} files or iterations were not read"] if ignored else []),
            *(told(note, names) for note in view.notes if note not in ignored),
        ),
    )


def _eager(table: pl.DataFrame, names: Mapping[str, str]) -> pl.DataFrame:
    return disguised(table.lazy(), names).collect()
