"""A JSON value that may be damaged: what of it stands whole before the damage.

Only whole members count, never a part of one: half a list of ranks would be another list of ranks.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

import msgspec

_TOKEN: Final = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{},]', re.DOTALL)
_CLOSING: Final = {"{": "}", "[": "]"}
_LENIENT: Final = json.JSONDecoder(strict=False, parse_constant=lambda _: None)


def beginning(text: bytes) -> tuple[Any, bool]:
    """Return the value and whether its text was in order.

    Bytes that are not UTF-8 become U+FFFD, half characters `?`, NaN and Infinity null; a damaged object or list keeps
    the members that stand whole before the damage. None when nothing can be had.
    """
    try:
        return msgspec.json.decode(text), True
    except (ValueError, RecursionError):
        plain = text.decode("utf-8", "replace").lstrip()
    try:
        return _encodable(_LENIENT.raw_decode(plain)[0]), False
    except json.JSONDecodeError as error:
        return _members(plain, error.pos), False
    except (ValueError, RecursionError):  # too many digits, or nested too deeply
        return None, False


def _members(text: str, damage: int) -> Any:  # noqa: ANN401 - an object or a list, or None
    """Return the object or list without the member in which the damage stands and all that follows."""
    depth, comma = 0, None
    for token in _TOKEN.finditer(text, 0, damage):
        mark = token[0]
        if mark in _CLOSING:
            depth += 1
        elif mark in ("}", "]"):
            depth -= 1
        elif mark == "," and depth == 1:
            comma = token.start()
    if comma is None:
        return None
    try:
        return _encodable(_LENIENT.decode(text[:comma] + _CLOSING[text[0]]))
    except (ValueError, RecursionError):
        return None


def _encodable(value: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
    """Return the value with half characters (lone surrogates, which no encoder takes) replaced."""
    return _LENIENT.decode(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace").decode())
