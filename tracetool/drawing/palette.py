"""The colours of the pictures, and which part gets which.

Every pair lies at least 20 apart (CIE76) in normal, protan and deutan sight (Machado, Oliveira, Fernandes 2009), and
every colour has a contrast of at least 3 against both backgrounds: one palette serves both themes, so that colours can
be SVG attributes and survive a viewer that blocks styles. A test recomputes both figures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tracetool.units import heading

if TYPE_CHECKING:
    from collections.abc import Iterable

LIGHT_BACKGROUND: Final = "#ffffff"
DARK_BACKGROUND: Final = "#11151c"

BLUE, ORANGE, CRIMSON, VIOLET, TEAL, TAN, STEEL = (
    "#3366aa",
    "#dd7722",
    "#bb3355",
    "#8877ee",
    "#009988",
    "#bb8855",
    "#5588aa",
)
SERIES: Final = (BLUE, ORANGE, TEAL, VIOLET, CRIMSON, TAN, STEEL)
"""Colours in the order in which unnamed series take them."""
NEUTRAL: Final = "#808080"
"""For series beyond the palette: said to be `other` in legends."""
HATCH: Final = "hatch"
"""Id of the SVG pattern that fills pipeline bubbles."""
_BY_NAME: Final = {
    "compute": BLUE,
    "exposed comm": ORANGE,
    "comm": ORANGE,
    "sync wait": CRIMSON,
    "pipeline bubble": VIOLET,
    "bubble": VIOLET,
    "memcpy": TEAL,
    "memset": TAN,
    "host bound": TAN,
    "idle": STEEL,
    "forward": BLUE,
    "backward": STEEL,
    "optimizer": TEAL,
    "weight gradient": TEAL,
    "transfer": ORANGE,
    "across stages": NEUTRAL,
}
_LINEAR_UP_TO: Final = 0.04045
_READS_WHITE_BELOW: Final = 0.179
"""Luminance at which black and white have the same contrast."""
_HATCHED: Final = ("pipeline bubble", "bubble")


def colours(names: Iterable[str]) -> dict[str, str]:
    """Return a colour for each name: known parts keep theirs everywhere, others take unused ones in order."""
    names = list(dict.fromkeys(names))
    found = {name: _BY_NAME[heading(name)] for name in names if heading(name) in _BY_NAME}
    free = iter([colour for colour in SERIES if colour not in found.values()])
    for name in names:
        if name not in found:
            found[name] = next(free, NEUTRAL)
    return {name: found[name] for name in names}


def fill(name: str, colour: str) -> str:
    """Return the SVG fill of a part: the hatch for a pipeline bubble, else its colour."""
    return f"url(#{HATCH})" if heading(name) in _HATCHED else colour


def luminance(colour: str) -> float:
    """Return the relative luminance of `#rrggbb` as WCAG 2.1 defines it, 0..1."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= _LINEAR_UP_TO else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def ink(colour: str) -> str:
    """Return black or white: whichever reads better on a colour."""
    return "#ffffff" if luminance(colour) < _READS_WHITE_BELOW else "#000000"
