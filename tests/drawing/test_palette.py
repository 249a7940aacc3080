"""The palette, measured: colour difference in three kinds of sight, contrast on both backgrounds."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest

from tracetool.drawing.palette import (
    DARK_BACKGROUND,
    LIGHT_BACKGROUND,
    SERIES,
    colours,
    fill,
    ink,
    luminance,
)

# Machado, Oliveira, Fernandes 2009, severity 1.0, on linear RGB
SIGHT = {
    "normal": np.eye(3),
    "protan": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deutan": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def lab(colour: str, sight: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return CIELAB (D65) of `#rrggbb` as one kind of sight has it."""
    srgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    xyz = TO_XYZ @ np.clip(sight @ linear, 0, 1) / np.array([0.95047, 1.0, 1.08883])
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("sight", SIGHT)
def test_every_pair_can_be_told_apart(sight: str) -> None:
    for one, other in combinations(SERIES, 2):
        assert np.linalg.norm(lab(one, SIGHT[sight]) - lab(other, SIGHT[sight])) >= 20, (one, other)


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of WCAG 2.1."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("background", [LIGHT_BACKGROUND, DARK_BACKGROUND])
def test_fills_stand_out_from_both_backgrounds(background: str) -> None:
    assert min(contrast(colour, background) for colour in SERIES) >= 3


def test_text_on_a_fill_can_be_read() -> None:
    assert min(contrast(colour, ink(colour)) for colour in SERIES) >= 4.5


def test_known_parts_keep_their_colour_and_the_bubble_its_hatch() -> None:
    alone, among = colours(["idle_ns"]), colours(["something", "idle_ns", "compute_ns"])
    assert alone["idle_ns"] == among["idle_ns"]
    assert len(set(among.values())) == 3
    assert fill("pipeline_bubble_ns", "#123456") == "url(#hatch)"
    assert fill("idle_ns", "#123456") == "#123456"
