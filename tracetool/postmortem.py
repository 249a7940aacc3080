"""What `tracetool postmortem` prints: the verdict on the hang, then what else the logs say, in under ten lines."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tracetool.results import Result

QUESTIONS: Final = ("hangs", "log_health")
"""The analyses of a post-mortem, the verdict's first."""
_LINES: Final = 9
_WIDTH: Final = 80


def lines(results: Mapping[str, Result]) -> list[str]:
    """Return at most nine lines of 80 columns: the verdict first, its next action last.

    Findings on the setup take the room that is left, at least one line of it: then the stack gives way.
    """
    hangs = results["hangs"]
    if hangs.status == "ok":
        told = list(hangs.tables["verdict"].select("part", "line").iter_rows())
    else:
        told = [("who", line) for line in textwrap.wrap(hangs.reason, _WIDTH)[: _LINES - 1]]
    setup = [finding for name, result in results.items() if name != "hangs" for finding in result.findings]
    titles = [finding.title for finding in sorted(setup, key=lambda finding: finding.severity == "info")]
    if titles and len(told) >= _LINES:
        told = [(part, line) for part, line in told if part != "stack"][: _LINES - 1]
    room = _LINES - len(told)
    shown = titles if len(titles) <= room else titles[: room - 1]
    also = [f"Also: {title}." for title in shown]
    if rest := len(titles) - len(shown):
        also.append(f"Also: {rest} finding{'s' if rest > 1 else ''} on the setup; the page (-o) tells.")
    last = [line for part, line in told if part == "next"]
    first = [line for part, line in told if part != "next"]
    return [_short(line) for line in (*first, *also, *last)]


def _short(line: str) -> str:
    return textwrap.shorten(line, _WIDTH, placeholder=" \u2026") if len(line) > _WIDTH else line
