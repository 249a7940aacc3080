"""nccl-tests: bus bandwidth by size, the cluster's own ceiling. Belongs to the run, not to a rank.

Format: text of `src/common.cu` and JSON (`-J`) of `src/util.cu` in NVIDIA/nccl-tests, 2.0 to 2.19. Text rows end in
`time algbw busbw #wrong`, out of place and then in place (us, GB/s of 1e9); #wrong may be N/A or, before 2.13, an
error. The environment that JSON files hold is not read.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Final

import orjson

from tracetool.commwords import operation
from tracetool.errors import UnreadableTrace
from tracetool.raw.rawfile import read_all
from tracetool.tables import empty, frame

if TYPE_CHECKING:
    from pathlib import Path

    from tracetool.registry import ParseOptions
    from tracetool.tables import Tables

FORMAT = "nccl_tests"
READS_PLACE = True

_HEADER: Final = re.compile(rb"size\s+count\s+(?:\(elements\)\s+)?type\b.*\balgbw\s+busbw", re.DOTALL)
_JSON_KEYS: Final = (b'"nccl_version"', b'"env"')
_ARGUMENTS: Final = re.compile(rb'"args"\s*:\s*\[')
"""The command line, a list: the arguments of a trace's events are objects."""
_PROGRAM: Final = re.compile(r"([A-Za-z][A-Za-z_]*?)_perf(?![A-Za-z])")
_DEVICE: Final = re.compile(r"Rank\s+(\d{1,7})\s+Group\s+\d+\s+Pid\s+\d+ on (\S+)")
_LIMIT: Final = 64 << 20
_GROUP: Final = 4
_LEADING: Final = 3

Row = tuple[int, int | None, str | None, str | None, bool, int, float, float, int | None]


def sniff(path: Path, head: bytes) -> bool:
    """Say whether this is output of nccl-tests, text or JSON."""
    if path.is_dir():
        return False
    if head.lstrip()[:1] == b"{":
        told = all(key in head for key in _JSON_KEYS) and bool(_ARGUMENTS.search(head))
        return told or (b'"out_of_place"' in head and b'"bus_bw"' in head)
    return bool(_HEADER.search(head))


def parse(path: Path, options: ParseOptions) -> Tables:
    """Read the curve. Raises UnreadableTrace when no row can be read."""
    data = read_all(path, options.display_path, _LIMIT)
    text = data.decode("utf-8", "replace")
    notes: list[str] = []
    if text.lstrip()[:1] == "{":
        rows, program, devices = _json(data, options)
    else:
        rows = [row for line in text.splitlines() for row in _line(line)]
        program = _PROGRAM.search(text)
        devices = {int(rank): host for rank, host in _DEVICE.findall(text)}
    if not rows:
        raise UnreadableTrace(options.display_path, "holds no row of sizes and bandwidths", len(data))
    program = program or _PROGRAM.search(path.name)
    if program is None:
        notes.append("The output does not say which operation was measured.")
    wrong = sum(row[8] or 0 for row in rows)
    if wrong:
        notes.append(f"{wrong} wrong elements: the hardware or driver returned wrong results.")
    names = ("bytes", "elems", "dtype", "redop", "in_place", "time_ns", "algbw_gbs", "busbw_gbs", "wrong")
    count = len(rows)
    return {
        "bandwidth_curve": frame(
            "bandwidth_curve",
            {
                **{name: [row[place] for row in rows] for place, name in enumerate(names)},
                "source": [options.display_path] * count,
                "op": [operation(program[1]) if program else None] * count,
                "ranks": [len(devices) or None] * count,
                "hosts": [len(set(devices.values())) or None] * count,
            },
        ).sort("bytes", "in_place", "time_ns"),
        "ranks": empty("ranks"),
        "sources": frame(
            "sources",
            {
                "path": [options.display_path],
                "format": [FORMAT],
                "bytes": [path.stat().st_size],
                "events": [count],
                "dropped": [0],
                "repaired": [0],
                "complete": [True],
                "notes": [notes],
            },
        ),
    }


def _line(line: str) -> list[Row]:
    """Read one row of text: one or two measurements, or none when it is no row."""
    words = line.split()
    if len(words) < _LEADING + _GROUP or not (words[0].isdecimal() and words[1].isdecimal()):
        return []
    places = 2 if len(words) >= _LEADING + 2 * _GROUP and all(_number(word) is not None for word in words[-8:-5]) else 1
    tail = words[-places * _GROUP :]
    middle = words[_LEADING : len(words) - places * _GROUP]
    redop = middle[0] if middle and middle[0].isalpha() else None
    return [
        row
        for place in range(places)
        if (
            row := _row(
                int(words[0]), int(words[1]), (words[2], redop), tail[place * _GROUP :][:_GROUP], in_place=place == 1
            )
        )
    ]


def _row(
    size: int, count: int | None, words: tuple[str | None, str | None], told: list[str], *, in_place: bool
) -> Row | None:
    time_us, algbw, busbw = (_number(word) for word in told[:3])
    if time_us is None or algbw is None or busbw is None or size >= 1 << 62:
        return None
    wrong = int(told[3]) if told[3].isdecimal() and len(told[3]) < 18 else None  # noqa: PLR2004 - 64 bits
    return (size, count, *words, in_place, round(time_us * 1000), algbw, busbw, wrong)


def _number(word: str) -> float | None:
    try:
        value = float(word)
    except ValueError:
        return None
    return value if math.isfinite(value) and 0 <= value < 1e15 else None  # noqa: PLR2004 - us of 30 years


def _json(data: bytes, options: ParseOptions) -> tuple[list[Row], re.Match[str] | None, dict[int, str]]:
    """Read the rows of a JSON report, the program's name, and the host of each rank."""
    try:
        report = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise UnreadableTrace(options.display_path, f"no JSON ({error.msg})", error.pos) from None
    rows: list[Row] = []
    devices: dict[int, str] = {}
    for value in report.values() if isinstance(report, dict) else ():
        for item in value if isinstance(value, list) else ():
            if isinstance(item, dict) and isinstance(item.get("size"), int):
                rows += _measurements(item)
            elif isinstance(item, dict) and isinstance(item.get("rank"), int):
                devices[item["rank"]] = str(item.get("hostname"))
    args = report.get("args") if isinstance(report, dict) else None
    program = _PROGRAM.search(str(args[0])) if isinstance(args, list) and args else None
    return rows, program, devices


def _measurements(item: dict[str, object]) -> list[Row]:
    found = []
    words = tuple(str(item[key]) if item.get(key) is not None else None for key in ("type", "redop"))
    count = item.get("count")
    for key in ("out_of_place", "in_place"):
        told = item.get(key)
        if isinstance(told, dict):
            wrong = told.get("nwrong")
            values = [str(told.get(name, "")) for name in ("alg_bw", "bus_bw")]
            text = [str(told.get("time", told.get("cpu_time", ""))), *values]
            text.append(str(int(wrong)) if isinstance(wrong, int | float) and 0 <= wrong < 1e17 else "N/A")  # noqa: PLR2004 - 64 bits
            size = item["size"]
            row = _row(
                size if isinstance(size, int) else 0,
                count if isinstance(count, int) else None,
                (words[0], words[1]),
                text,
                in_place=key == "in_place",
            )
            found += [row] if row else []
    return found
