"""What `tracetool postmortem` prints: the verdict on the hang, then what else the logs say, in under ten lines."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tracetool.results import Result

QUESTIONS: Final = ("hangs", "log_health")
"""The analyses of a post-mortem, the verdict's first."""
_LINES: Final = 9
_WIDTH: Final = 80
_FIRST_TO_GO: Final = ("own stack", "stack", "doubt", "waiting", "coverage", "operation")
"""What gives way, in this order, when there are more than nine lines; the page and the JSON document have all."""


def lines(results: Mapping[str, Result]) -> list[str]:
    """Return at most nine lines of 80 columns: the verdict first, its next action last; no sentence is cut.

    Findings on the setup take the room that is left, at least one line of it: then other sentences give way.
    """
    hangs = results["hangs"]
    told = (
        list(hangs.tables["verdict"].select("part", "line").iter_rows())
        if hangs.status == "ok"
        else [("who", hangs.reason)]
    )
    setup = [finding for name, result in results.items() if name != "hangs" for finding in result.findings]
    titles = [f"Also: {finding.title}." for finding in sorted(setup, key=lambda finding: finding.severity == "info")]
    parts = [(part, _wrapped(line)) for part, line in told]
    for going in _FIRST_TO_GO:
        if _height(parts) <= _LINES - bool(titles):
            break
        parts = [(part, wrapped) for part, wrapped in parts if part != going]
    also = _also([_wrapped(title) for title in titles], _LINES - _height(parts))
    first = [line for part, wrapped in parts if part != "next" for line in wrapped]
    last = [line for part, wrapped in parts if part == "next" for line in wrapped]
    return [*first, *also, *last][:_LINES]


def _also(titles: Sequence[list[str]], room: int) -> list[str]:
    """Return the titles that fit, whole, and how many do not."""
    if sum(map(len, titles)) <= room:
        return [line for title in titles for line in title]
    shown: list[str] = []
    left = len(titles)
    for title in titles:
        if len(shown) + len(title) > room - 1:
            break
        shown += title
        left -= 1
    return [*shown, f"Also: {left} finding{'s' if left > 1 else ''} on the setup; the page (-o) tells."]


def _height(parts: Sequence[tuple[str, list[str]]]) -> int:
    return sum(len(wrapped) for _, wrapped in parts)


def _wrapped(sentence: str) -> list[str]:
    return textwrap.wrap(sentence, _WIDTH, subsequent_indent="  ", break_on_hyphens=False)
