"""Numbers and names as text: ns become ms, shares become percent. The only arithmetic the report does."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

NARROW_SPACE: Final = "\u202f"
NO_BREAK: Final = "\u00a0"
ABSENT: Final = "–"
"""What stands where a value cannot be had; never 0."""
LONGEST_NAME: Final = 64
LONGEST_LIST: Final = 12

_CONTROL: Final = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_FOUR_DIGITS: Final = 10_000
_TIME: Final = ((1e3, 1.0, "ns"), (1e6, 1e3, "µs"), (1e10, 1e6, "ms"), (math.inf, 1e9, "s"))
_BYTES: Final = ((1e3, 1.0, "B"), (1e6, 1e3, "kB"), (1e9, 1e6, "MB"), (1e12, 1e9, "GB"), (math.inf, 1e12, "TB"))
_FLOPS: Final = (
    (1e6, 1.0, "FLOP"),
    (1e9, 1e6, "MFLOP"),
    (1e12, 1e9, "GFLOP"),
    (1e15, 1e12, "TFLOP"),
    (math.inf, 1e15, "PFLOP"),
)
_TFLOPS: Final = ((1e-3, 1e-6, "MFLOP/s"), (1.0, 1e-3, "GFLOP/s"), (math.inf, 1.0, "TFLOP/s"))
_GBS: Final = ((1.0, 1e-3, "MB/s"), (math.inf, 1.0, "GB/s"))
_LADDERS: Final = {"ns": _TIME, "bytes": _BYTES, "flops": _FLOPS, "tflops": _TFLOPS, "gbs": _GBS}
_PLAIN: Final = {"share": (0.01, "%"), "ratio": (1.0, "×")}
_BARE: Final = {"ns": "time", "bytes": "size", "gbs": "rate", "tflops": "rate", "flops": "work"}
"""Words for columns named by nothing but their unit."""
_UNIT: Final = re.compile(r"(?:^|_)(ns|bytes|gbs|tflops|flops|ratio)((?:_causal|_per_step|_per_gpu|_p\d+)*)$")
"""The unit that ends a name, and what qualifies it."""
_SHARES: Final = ("mfu", "hfu", "mfu_causal", "hfu_causal", "mfu_by_convention", "shape_coverage")


@dataclass(frozen=True)
class Scale:
    """How the numbers of one column or axis are written: value ÷ divisor with `digits` decimals, then the unit."""

    divisor: float
    digits: int
    unit: str

    def number(self, value: float) -> str:
        """Return the scaled number without its unit."""
        return grouped(value / self.divisor, self.digits)

    def text(self, value: float) -> str:
        """Return the scaled number with its unit, held together by a no-break space."""
        return f"{self.number(value)}{NO_BREAK}{self.unit}" if self.unit else self.number(value)


def clean(text: str) -> str:
    """Return a name from a trace without control characters and direction overrides, which act on the screen."""
    return _CONTROL.sub("\ufffd", text.replace("\n", " ").replace("\t", " "))


def grouped(value: float, digits: int) -> str:
    """Return a number with thousands set apart by narrow spaces and a true minus sign."""
    text = f"{abs(value):,.{digits}f}"
    text = text.replace(",", NARROW_SPACE) if abs(value) >= _FOUR_DIGITS else text.replace(",", "")
    return f"−{text}" if value < 0 and text.strip("0.") else text


def _digits(value: float) -> int:
    """Return how many decimals show three significant digits."""
    size = abs(value)
    if size == 0 or size >= 99.95:  # noqa: PLR2004 - 99.95 already rounds to 100
        return 0
    return max(0, min(6, 2 - math.floor(math.log10(size * 1.0005))))


def _ladder(unit: str, size: float) -> tuple[float, str] | None:
    ladder = _LADDERS.get(unit)
    return None if ladder is None else next((divisor, name) for limit, divisor, name in ladder if size < limit)


def figure(value: float | str | bool | tuple[int, ...] | None, unit: str) -> str:  # noqa: FBT001 - a value, not a switch
    """Return one value with its unit: three significant digits, `–` for None.

    `unit` is one of those of Headline and Chart: share, ns, bytes, count, tflops, gbs, ratio, text.
    """
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ABSENT
    if isinstance(value, bool | str):
        return clean(str(value))
    if isinstance(value, tuple):
        return ", ".join(ranges(value)) or "none"
    if unit in {"count", "text"}:
        whole = isinstance(value, int) or (unit == "count" and value.is_integer())
        return grouped(value, 0 if whole else _digits(value))
    if unit == "share":
        return Scale(0.01, 1, "%").text(value)
    divisor, name = _ladder(unit, abs(value)) or _PLAIN.get(unit, (1.0, ""))
    digits = 0 if divisor == 1.0 and name and float(value).is_integer() else _digits(value / divisor)
    return Scale(divisor, digits, name).text(value)


def unit_of(column: str) -> str:
    """Return the unit that a column's or metric's name ends with; "" when it says none."""
    if column in _SHARES or re.search(r"(^|_)share($|_)", column):
        return "share"
    found = _UNIT.search(column)
    return found[1] if found else ""


def heading(column: str) -> str:
    """Return a column's name in words, without its unit."""
    if column.startswith("share_"):
        return clean(column.replace("_", " "))
    found = _UNIT.search(column)
    if found and found[1] == "ratio":
        return clean(column.replace("_", " "))
    if found and not found.start():  # nothing before the unit says what it is
        return clean(_BARE.get(found[1], found[1]) + found[2].replace("_", " "))
    words = re.sub(r"_share$", "", _UNIT.sub(r"\2", column)).replace("_", " ")
    return clean(words or column)


def scale(values: Iterable[float | None], unit: str) -> Scale:
    """Return one Scale for all values of a column, chosen by the largest, so that they line up."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    size = max(map(abs, finite), default=0.0)
    whole = all(float(value).is_integer() for value in finite)
    rung = _ladder(unit, size)
    if rung is None and unit in _PLAIN:
        rung = _PLAIN[unit]
    if rung is None:
        return Scale(1.0, 0 if whole else max(_digits(size), 2), "")
    divisor, name = rung
    if divisor == 1.0 and whole:
        return Scale(1.0, 0, name)
    return Scale(divisor, 1 if unit == "share" else max(_digits(size / divisor), 1), name)


def ranges(numbers: Sequence[int]) -> list[str]:
    """Return ascending numbers as `0-7`, `12`: the spelling `--ranks` takes. Other orders stay single numbers."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return [f"{low}-{high}" if high > low else f"{low}" for low, high in found]


def absent(present: Sequence[int], size: int) -> list[str]:
    """Return the numbers below `size` that are not among `present`, as `ranges` spells them; `size` may be huge."""
    found, after = [], 0
    for number in [*sorted({number for number in present if 0 <= number < size}), size]:
        if number > after:
            found.append(f"{after}-{number - 1}" if number - 1 > after else f"{after}")
        after = number + 1
    return found


def short(text: str, longest: int = LONGEST_NAME) -> str:
    """Return a name cut in its middle: the head says which kernel, the tail which variant."""
    text = clean(text)
    if len(text) <= longest:
        return text
    tail = (longest - 1) // 3
    return f"{text[: longest - 1 - tail]}…{text[len(text) - tail :]}"


def cell(value: object) -> str:
    """Return any value of a table that is no plain number as text."""
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        items = ranges(value) if all(type(item) is int for item in value) else [cell(item) for item in value]
        more = f", … {len(items)} in all" if len(items) > LONGEST_LIST else ""
        return ", ".join(items[:LONGEST_LIST]) + more
    if isinstance(value, dict):
        return ", ".join(f"{clean(str(key))} {cell(item)}" for key, item in value.items())
    return clean(str(value))
