"""The timeline's data block: slices of many lanes, packed for the canvas.

Layout of the block, little endian, raw deflate (RFC 1951), base64: all slices lane after lane, sorted by start; first
every uint32 gap to the previous end, µs, then every uint32 duration, µs, then every uint8 index of a name.
"""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl

from tracetool.drawing.palette import colours
from tracetool.units import clean, short

if TYPE_CHECKING:
    from tracetool.results import Chart

NAMES: Final = 256
"""What a uint8 can tell apart; names beyond it are folded, longest total time first."""
_NAME_CHARACTERS: Final = 160


@dataclass(frozen=True)
class Packed:
    """The block as JSON-able data, how many slices it holds, and what had to be left out, in sentences."""

    data: dict[str, Any]
    slices: int
    notes: tuple[str, ...]


_LEVEL = 6
"""Of deflate: 9 takes four times as long for one part in a hundred."""


def pack(chart: Chart, table: pl.DataFrame, shortest_ns: int = 0) -> Packed:
    """Pack the slices of a timeline chart, without those shorter than `shortest_ns`."""
    text = str(chart.options.get("text", "") or chart.series)
    key = chart.series or text
    slices = table.select(
        lane=pl.col(chart.label).cast(pl.String).fill_null("not recorded"),
        start=pl.col(chart.x).cast(pl.Int64),
        dur=pl.col(chart.y[0]).cast(pl.Int64),
        name=(pl.col(text) if text else pl.lit("slice")).cast(pl.String).fill_null("not recorded"),
        key=(pl.col(key) if key else pl.lit("slice")).cast(pl.String).fill_null("not recorded"),
        row=pl.int_range(pl.len()),
    ).drop_nulls(["start", "dur"])
    notes = []
    origin = slices["start"].min()
    origin_ns = origin if isinstance(origin, int) else 0
    lanes = slices["lane"].unique(maintain_order=True).to_list()
    whole = slices.height
    if shortest_ns:
        slices = slices.filter(pl.col("dur") >= shortest_ns)
        notes.append(
            f"{whole - slices.height} of {whole} slices, those shorter than {shortest_ns / 1000:g} µs, were left out "
            "to keep the page small; the JSON document has all."
        )
    tints = colours(sorted(slices["key"].unique().to_list()))
    slices = slices.join(pl.DataFrame({"lane": lanes, "number": range(len(lanes))},
                                      schema={"lane": pl.String, "number": pl.Int64}), on="lane")  # fmt: skip
    slices, names = _indexed(slices)
    if len(names) == NAMES:
        notes.append("Rare names share the entry `other names`.")
    start_us = (pl.col("start") - origin_ns + 500) // 1000
    end_us = (pl.col("start") - origin_ns + pl.col("dur") + 500) // 1000
    slices = slices.sort("number", "start", "row").with_columns(start_us=start_us, end_us=end_us)
    before = pl.col("end_us").cum_max().shift(1).over("number").fill_null(0)
    slices = slices.with_columns(before=before)
    overlapping = slices.filter(pl.col("before") > pl.col("start_us") + 1).height
    if overlapping:
        notes.append(f"{overlapping} slices overlap an earlier one of their row and are drawn from its end on.")
    slices = slices.with_columns(begin=pl.max_horizontal("start_us", "before")).with_columns(
        gap=pl.col("begin") - pl.col("before"),
        length=pl.max_horizontal(pl.col("end_us") - pl.col("begin"), 0),
    )
    block = b"".join(
        slices[column].to_numpy().clip(0, 2**32 - 1).astype(kind).tobytes()
        for column, kind in (("gap", "<u4"), ("length", "<u4"), ("name_index", np.uint8))
    )
    counts = np.bincount(slices["number"].to_numpy(), minlength=len(lanes)) if lanes else np.zeros(0, dtype=np.int64)
    largest = slices["end_us"].max()
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, -15)
    data = {
        "lanes": [[short(lane, 28), int(count)] for lane, count in zip(lanes, counts, strict=True)],
        "names": [[short(name, _NAME_CHARACTERS), tints[key], clean(key)] for name, key in names],
        "span_us": largest if isinstance(largest, int) else 0,
        "block": base64.b64encode(packer.compress(block) + packer.flush()).decode(),
    }
    return Packed(data, slices.height, tuple(notes))


def _indexed(slices: pl.DataFrame) -> tuple[pl.DataFrame, list[tuple[str, str]]]:
    """Give each (name, key) an index below NAMES; what takes least time is folded into one entry a key."""
    totals = (
        slices.group_by("name", "key")
        .agg(pl.col("dur").sum())
        .sort("dur", "name", "key", descending=[True, False, False])
    )
    if totals.height > NAMES:
        keys = sorted(totals["key"].unique().to_list())[: NAMES // 2]
        kept = totals.head(NAMES - len(keys)).select("name", "key")
        rest = totals.slice(NAMES - len(keys)).select("name", "key")
        folded = [("other names", key) for key in keys]
        index = pl.concat(
            [
                kept.with_columns(name_index=pl.int_range(pl.len(), dtype=pl.Int64)),
                rest.join(
                    pl.DataFrame({"key": keys, "name_index": range(kept.height, kept.height + len(keys))}),
                    on="key",
                    how="left",
                ).with_columns(pl.col("name_index").fill_null(NAMES - 1).cast(pl.Int64)),
            ]
        )
        return slices.join(index, on=["name", "key"]), [*kept.rows(), *folded]
    index = totals.select("name", "key", name_index=pl.int_range(pl.len(), dtype=pl.Int64))
    return slices.join(index, on=["name", "key"]), totals.select("name", "key").rows()
