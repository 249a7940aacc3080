"""Anonymous reports name no host and no file."""

from __future__ import annotations

import polars as pl

from tracetool.anonymize import anonymize, names_of
from tracetool.registry import RunView
from tracetool.tables import empty, frame


def test_names_are_replaced_everywhere() -> None:
    sources = frame(
        "sources",
        {
            "path": ["secret/rank0.json", "secret/rank0.json.gz"],
            "format": ["kineto"] * 2,
            "notes": [["secret/rank0.json.gz was cut"], []],
        },
    )
    view = RunView(
        path="secret",
        ranks=frame("ranks", {"rank": [0, 1, 2], "host": ["alpha", "beta", None], "format": ["kineto"] * 3}),
        sources=sources,
        steps=empty("steps"),
        quality=frame("quality", {"rank": [0], "topic": ["t"], "count": [1], "note": ["alpha is late"]}),
        world_size=None,
        features={},
        joined={},
        notes=("secret/rank0.json was taken", "hidden/name.txt: empty"),
    )
    hidden = anonymize(view, names_of(view), ("hidden/name.txt: empty",))
    assert hidden.path == "run"
    assert hidden.ranks["host"].to_list() == ["host-0", "host-1", None]
    assert hidden.sources["path"].to_list() == ["trace-0", "trace-1"]
    assert hidden.sources["notes"].to_list() == [["trace-1 was cut"], []]
    assert hidden.quality["note"].to_list() == ["host-0 is late"]
    assert hidden.notes == ("1 files or iterations were not read", "trace-0 was taken")
    assert isinstance(hidden.ranks, pl.DataFrame)
