"""Content of a flight-recorder dump as plain data: pickle or JSON, whole or cut, in bounded memory."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final

import orjson

from tracetool.errors import UnreadableTrace
from tracetool.raw import safepickle
from tracetool.raw.rawfile import json_memory_bytes

if TYPE_CHECKING:
    from tracetool.registry import ParseOptions

_MEMORY_PER_BYTE: Final = 24
"""Memory a dump may take beside the usual bound, per byte of its own size."""

Entry = dict[str, object]


def plain_content(data: bytes, options: ParseOptions) -> tuple[object, list[str]]:
    """Return the plain data of a dump, a dict or a list, and notes about its damage.

    Raises UnreadableTrace for what is no dump, what asks for more than plain data or for too much memory, and where
    nothing stands before the damage.
    """
    if not data.strip():
        raise UnreadableTrace(options.display_path, "empty: the process ended before it wrote its dump", 0)
    if data.lstrip()[:1] in (b"{", b"["):
        content, notes = _json(data, options)
    else:
        content, notes = _pickle(data, options)
    if not isinstance(content, dict | list):
        raise UnreadableTrace(options.display_path, f"holds a {type(content).__name__}, no dump", 0)
    return content, notes


def _pickle(data: bytes, options: ParseOptions) -> tuple[object, list[str]]:
    allowed = max(options.memory_bytes, len(data) * _MEMORY_PER_BYTE)
    try:
        try:
            return safepickle.loads(data, allowed), []
        except safepickle.BrokenPickle as broken:
            content, byte = safepickle.salvage(data, allowed)
            note = f"Cut or damaged at byte {byte} of {len(data)} ({broken.reason}); what stands before it was read."
            return content, [note]
    except safepickle.UnsafePickle as unsafe:
        reason = f"refused: {unsafe.reason}. This is no dump of the flight recorder; do not unpickle it"
        raise UnreadableTrace(options.display_path, reason, unsafe.byte) from None
    except safepickle.BrokenPickle as broken:
        raise UnreadableTrace(options.display_path, f"{broken.reason} before the first record", broken.byte) from None


def _json(data: bytes, options: ParseOptions) -> tuple[object, list[str]]:
    allowed = max(options.memory_bytes, len(data) * _MEMORY_PER_BYTE)
    asked = json_memory_bytes(data)
    if asked > allowed:
        reason = f"its JSON would take about {asked >> 20} MiB of memory, of which a dump may take {allowed >> 20}"
        raise UnreadableTrace(options.display_path, reason, 0)
    try:
        return orjson.loads(data), []
    except orjson.JSONDecodeError as error:
        damage = error.pos
    content, entries = _json_pieces(data.decode("utf-8", "replace"))
    if not content and not entries:
        raise UnreadableTrace(options.display_path, "no whole record before the damage", damage)
    note = f"Cut or damaged near byte {damage} of {len(data)}; the {len(entries)} whole records before it were read."
    return {**content, "entries": entries}, [note]


def _json_pieces(text: str) -> tuple[Entry, list[object]]:
    """Read the top level of a cut JSON object member by member, and its records one by one."""
    decoder = json.JSONDecoder()
    blank = re.compile(r"[\s,:]*")
    content: Entry = {}
    entries: list[object] = []
    place = text.find("{") + 1

    def skip(at: int) -> int:
        found = blank.match(text, at)
        return found.end() if found else at

    try:
        while True:
            key, place = decoder.raw_decode(text, skip(place))
            place = skip(place)
            if key == "entries" and text[place] == "[":
                place = skip(place + 1)
                while text[place] != "]":
                    entry, place = decoder.raw_decode(text, place)
                    entries.append(entry)
                    place = skip(place)
                place += 1
            else:
                content[str(key)], place = decoder.raw_decode(text, place)
    except (ValueError, IndexError, RecursionError):
        return content, entries  # the damage: everything whole before it is kept
