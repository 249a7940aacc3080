"""A graph of boxes under each other: what a box leads to stands at the arrow of its line, left of the boxes.

Boxes keep the page's width and their text its size, so the picture reads alike on a wide page and a narrow one. All
lines to one box share a track in the gutter; tracks whose spans do not touch share a place.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

from markupsafe import Markup

from tracetool.drawing.palette import BLUE, CRIMSON, NEUTRAL, TAN, TEAL
from tracetool.units import clean, grouped, short

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import polars as pl

    from tracetool.drawing.svg import Made
    from tracetool.results import Chart

_TRACK: Final = 12
_BOX: Final = 58
_PITCH: Final = 68
_IN: Final = 17
"""Where lines end at a box, below its top."""
_OUT: Final = 41
"""Where they leave it."""
_LETTERS: Final = 150
_ROLES: Final = {
    "culprit": CRIMSON, "waits": BLUE, "inside": TEAL, "no dump": TAN, "free": NEUTRAL, "more": NEUTRAL,
}  # fmt: skip
_WORDS: Final = {
    "culprit": "culprit", "waits": "waits", "inside": "inside an operation", "no dump": "left no dump",
    "free": "nothing in flight", "more": "further sets",
}  # fmt: skip


def graph(chart: Chart, table: pl.DataFrame) -> Made:
    """Draw the boxes of `table` in its order, and the lines between them."""
    ids = [int(number) for number in table[chart.x].to_list()]
    place = {number: at for at, number in enumerate(ids)}
    sources: dict[int, list[int]] = defaultdict(list)
    within = set()
    for at, targets in enumerate(table[chart.y[0]].to_list()):
        for target in targets or ():
            if place.get(target) == at:
                within.add(at)
            elif target in place:
                sources[place[target]].append(at)
    roles = [str(role) for role in table[chart.series].to_list()]
    tracks = _tracks(sources)
    drawn = [_lines(target, at, tracks[target], culprit=roles[target] == "culprit") for target, at in sources.items()]
    text, detail = str(chart.options["text"]), str(chart.options["detail"])
    for at, row in enumerate(table.iter_rows(named=True)):
        state = f"{row[text]}; they wait for each other" if at in within else str(row[text])
        drawn.append(_box(at, roles[at], _who(row, chart), state, str(row[detail])))
    gutter = _TRACK * (max(tracks.values(), default=-1) + 2)
    body = Markup(
        '<table class="plot" role="presentation" width="100%"><tr><td width="{0}"><svg width="{0}" height="1" '
        'aria-hidden="true"></svg></td><td width="100%"><svg width="100%" height="{1}" overflow="visible" role="img" '
        'aria-label="{2}">{3}</svg></td></tr></table>'
    ).format(gutter, _PITCH * len(ids), f"{clean(chart.title)}. {clean(chart.note)}", Markup("").join(drawn))
    legend = [(words, _ROLES[role]) for role, words in _WORDS.items() if role in roles]
    return body, legend, []


def _who(row: Mapping[str, object], chart: Chart) -> str:
    """Return `rank 3`, or how many and then which: a narrow page cuts what stands last."""
    count, named = row[chart.size], short(str(row[chart.label]))
    return f"{grouped(count, 0)} ranks: {named}" if isinstance(count, int) and count > 1 else f"rank {named}"


def _tracks(sources: Mapping[int, Sequence[int]]) -> dict[int, int]:
    """Return the track of each target: short spans inside, no two that touch on one."""
    spans = {target: (min(target, *at), max(target, *at)) for target, at in sources.items()}
    taken: list[list[tuple[int, int]]] = []
    found = {}
    for target, (low, high) in sorted(spans.items(), key=lambda item: (item[1][1] - item[1][0], item[0])):
        free = next(
            (track for track, used in enumerate(taken) if all(high < a or low > b for a, b in used)), len(taken)
        )
        if free == len(taken):
            taken.append([])
        taken[free].append((low, high))
        found[target] = free
    return found


def _lines(target: int, sources: Sequence[int], track: int, *, culprit: bool) -> Markup:
    """Return one track: from every box that leads to the target, along the gutter, to an arrow at the target."""
    x = -_TRACK * (track + 1)
    end = target * _PITCH + _IN
    starts = [at * _PITCH + _OUT for at in sources]
    path = f"M{x} {min(end, *starts)}V{max(end, *starts)}M{x} {end}H-2"
    path += "".join(f"M0 {y}H{x}" for y in starts)
    paint = CRIMSON if culprit else "currentColor"
    dots = Markup("").join(Markup('<circle cx="{}" cy="{}" r="2.5" fill="{}"/>').format(x, y, paint) for y in starts)
    return Markup(
        '<g{0}><path d="{1}" fill="none" stroke="{2}" stroke-width="{3}"/>'
        '<path d="M0 {4}l-8 -4.5v9z" fill="{2}"/>{5}</g>'
    ).format("" if culprit else Markup(' opacity="0.6"'), path, paint, 2 if culprit else 1.5, end, dots)


def _box(at: int, role: str, who: str, state: str, groups: str) -> Markup:
    paint = _ROLES.get(role, NEUTRAL)
    culprit = role == "culprit"
    head = f"Culprit: {who}" if culprit else who[0].upper() + who[1:]
    lines = Markup("").join(
        Markup('<text x="14" y="{}" font-size="{}" font-weight="{}" fill="currentColor">{}</text>').format(
            y, size, weight, short(text, _LETTERS)
        )
        for y, size, weight, text in ((18, 13, 650, head), (35, 12, 400, state), (51, 12, 400, groups))
    )
    shape = Markup(
        '<rect x="0.5" y="0.5" width="99.8%" height="{0}" rx="3" fill="{1}" fill-opacity="{2}" stroke="{1}"{3}/>'
    ).format(_BOX - 1, paint, 0.22 if culprit else 0.09, Markup(' stroke-dasharray="4 3"') if role == "no dump" else "")
    return Markup(
        '<svg y="{}" width="100%" height="{}"><title>{}</title>{}<rect width="5" height="{}" fill="{}"/>{}</svg>'
    ).format(at * _PITCH, _BOX, clean(f"{head}. {state}. {groups}"), shape, _BOX, paint, lines)
