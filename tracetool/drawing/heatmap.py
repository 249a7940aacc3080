"""A heat map as a PNG with a palette, written with the standard library alone."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

SHADES: Final = ("#f0b46c", "#e08a3c", "#c95f1e", "#9f3d12")
"""Light to dark orange for what lies above normal."""
NORMAL_SHARE: Final = 0.15
"""Cells below this share of the way from the median to the largest value are normal and stay transparent."""
FLAT_SHARE: Final = 0.02
"""When the largest value lies less than this above the median, nothing stands out and nothing is coloured."""
_ABSENT_INDEX: Final = len(SHADES) + 1
_ABSENT_COLOUR: Final = "#808080"


def limits(values: npt.NDArray[np.float64], fixed: Sequence[float] = ()) -> list[float]:
    """Return the lower limit of each shade and the largest value; empty when nothing stands out. NaN is absent.

    `fixed`: limits that mean something by themselves, so that a large value does not hide a smaller one.
    """
    finite = values[np.isfinite(values)]
    if not finite.size:
        return []
    if fixed:
        return [*fixed, max(float(finite.max()), *fixed)] if finite.max() >= fixed[0] else []
    median, largest = float(np.median(finite)), float(finite.max())
    if largest - median <= FLAT_SHARE * abs(median):
        return []
    low = median + NORMAL_SHARE * (largest - median)
    return [low + (largest - low) * i / len(SHADES) for i in range(len(SHADES) + 1)]


def shades(values: npt.NDArray[np.float64], fixed: Sequence[float] = ()) -> npt.NDArray[np.uint8]:
    """Return the palette index of each cell: 0 normal, 1.. shades, the last one absent. `fixed`: see limits."""
    edges = limits(values, fixed)
    if edges:
        index = np.minimum(np.searchsorted(edges, values, side="right"), len(SHADES))
    else:
        index = np.zeros(values.shape, dtype=np.int64)
    index[~np.isfinite(values)] = _ABSENT_INDEX
    return index.astype(np.uint8)


def png(indices: npt.NDArray[np.uint8]) -> bytes:
    """Return a PNG (W3C PNG, colour type 3, 8 bit) of palette indices, one pixel a cell."""
    height, width = indices.shape
    palette = ["#000000", *SHADES, _ABSENT_COLOUR]
    colours = b"".join(bytes.fromhex(colour[1:]) for colour in palette)
    alpha = bytes([0, *[255] * len(SHADES), 60])
    raw = np.zeros((height, width + 1), dtype=np.uint8)  # each line begins with filter type 0
    raw[:, 1:] = indices
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        _chunk(kind, body)
        for kind, body in (
            (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
            (b"PLTE", colours),
            (b"tRNS", alpha),
            (b"IDAT", zlib.compress(raw.tobytes(), 9)),
            (b"IEND", b""),
        )
    )


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def data_uri(indices: npt.NDArray[np.uint8]) -> str:
    """Return the PNG as a data: URI."""
    return f"data:image/png;base64,{base64.b64encode(png(indices)).decode()}"
