"""The heat map's PNG."""

from __future__ import annotations

import struct
import zlib

import numpy as np

from tracetool.drawing.heatmap import SHADES, limits, png, shades


def test_only_what_stands_out_is_coloured() -> None:
    values = np.full((8, 20), 100.0) + np.random.default_rng(1).normal(0, 0.5, (8, 20))
    values[3] = 140.0
    values[0, 0] = np.nan
    index = shades(values)
    assert index[0, 0] == len(SHADES) + 1
    assert (index[3] == len(SHADES)).all()
    assert not index[4:].any()


def test_noise_alone_has_no_limits() -> None:
    assert limits(np.random.default_rng(1).normal(100, 0.3, (8, 20))) == []
    assert limits(np.full((2, 2), np.nan)) == []


def test_fixed_limits_keep_a_small_excess_beside_a_large_one() -> None:
    values = np.zeros((4, 3))
    values[1], values[2] = 2.3, 0.3
    assert shades(values, (0.05, 0.1, 0.25, 0.5))[:, 0].tolist() == [0, 4, 3, 0]
    assert limits(values * 0.01, (0.05, 0.1, 0.25, 0.5)) == []


def test_the_png_decodes_to_the_indices() -> None:
    index = np.arange(15, dtype=np.uint8).reshape(3, 5) % 6
    data = png(index)
    chunks, at = {}, 8
    while at < len(data):
        (length,), kind = struct.unpack(">I", data[at : at + 4]), data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + body)
        chunks[kind] = body
        at += 12 + length
    assert struct.unpack(">II", chunks[b"IHDR"][:8]) == (5, 3)
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), dtype=np.uint8).reshape(3, 6)
    assert not lines[:, 0].any()
    assert (lines[:, 1:] == index).all()
