"""Takes names of hosts, files and directories out of a run before any analysis sees it.

Ranks, devices, kernels, ranges and process groups keep their names: without them a report says nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from tracetool.registry import RunView


def anonymize(view: RunView, ignored: Collection[str]) -> RunView:
    """Return the view with hosts called host-0, host-1, … and files trace-0, trace-1, …, also inside sentences.

    `ignored` are the notes of the view that name files which were not read: only their number stays.
    """
    paths = view.sources["path"].to_list()
    hosts = view.ranks["host"].drop_nulls().unique(maintain_order=True).to_list()
    names = {view.path: "run"}
    names |= {path: f"trace-{number}" for number, path in enumerate(paths)}
    names |= {host: f"host-{number}" for number, host in enumerate(hosts)}
    return replace(
        view,
        path="run",
        ranks=view.ranks.with_columns(pl.col("host").replace(names)),
        sources=view.sources.with_columns(
            pl.col("path").replace(names),
            pl.col("notes").list.eval(pl.element().map_elements(lambda note: told(note, names), pl.String)),
        ),
        quality=view.quality.with_columns(pl.col("note").map_elements(lambda note: told(note, names), pl.String)),
        notes=(
            *([f"{len(ignored)} files or iterations were not read"] if ignored else []),
            *(told(note, names) for note in view.notes if note not in ignored),
        ),
    )


def told(sentence: str, names: Mapping[str, str]) -> str:
    """Return a sentence with every name replaced, longer names first."""
    for name in sorted(names, key=len, reverse=True):
        sentence = sentence.replace(name, names[name])
    return sentence
