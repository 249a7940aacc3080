"""MFU figures that others published, to set a run's own beside; only figures of the same convention compare.

The facts stand in published.json beside this file, each with its source. `converted` rows were printed with full
attention and recomputed from their tokens a second with causal credit.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True)
class Published:
    """What was trained where, and the lowest and highest MFU that was printed for it (shares of dense peak)."""

    what: str
    attention: str
    """full: all pairs of causal attention counted; causal: half of them."""
    low: float
    high: float
    source: str
    converted: bool


@cache
def _rows() -> tuple[Published, ...]:
    document = json.loads(files("tracetool.mfu").joinpath("published.json").read_text(encoding="utf-8"))
    return tuple(
        Published(
            row["what"], row["attention"], row["mfu"][0], row["mfu"][1], row["source"], row.get("converted", False)
        )
        for row in document["rows"]
    )


def published(attention: str) -> tuple[Published, ...]:
    """Return the published figures that count attention this way (full or causal)."""
    return tuple(row for row in _rows() if row.attention == attention)
