"""What a device can do at most: dense compute peaks, memory bandwidth and link rate, by device name.

The facts stand in hardware.json beside this file, each with its sources. A name is matched token by token and
every token must be explained, so that "H200" is never taken for "H20", "L40S" never for "L4", and a MIG slice or a
laptop part never for the whole card. A device that is not known has no peak; no other device stands in for it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

DTYPES: Final = ("bf16", "fp16", "tf32", "fp32", "fp8", "fp4", "int8")
"""Number formats that a peak may be known for, by the names used everywhere in this package."""

_NOISE: Final = frozenset({"NVIDIA", "AMD", "TESLA", "GEFORCE", "INSTINCT", "GENERATION"})
_DECIMAL_GB: Final = 1_000_000_000


@dataclass(frozen=True)
class Device:
    """One device and its ceilings.

    `tflops`: dense peak in TFLOP/s by number format; a format that is left out is unknown or not supported.
    `measured_tflops`: the best a GEMM was measured to reach, where known.
    `memory_gbs`, `link_gbs`: 1e9 byte/s; links in one direction, all links of the device together.
    """

    key: str
    name: str
    """The name that was looked up."""
    tflops: Mapping[str, float]
    measured_tflops: Mapping[str, float]
    memory_gbs: float | None
    link_gbs: float | None
    sources: tuple[str, ...]
    confidence: str
    """high: several independent tables agree; medium: one table, or small disagreement; low: from memory."""
    note: str

    def peak_flops(self, dtype: str) -> float | None:
        """Return the dense peak in FLOP/s for a number format of `DTYPES`; None when it is not known.

        A part without tf32 runs such products in full float32.
        """
        tflops = self.tflops.get("fp32" if dtype == "tf32" and dtype not in self.tflops else dtype)
        return None if tflops is None else tflops * 1e12


@dataclass(frozen=True)
class _Entry:
    """One device of the table with the rule that recognises its names."""

    require: frozenset[str]
    allow: tuple[re.Pattern[str], ...]
    forbid: frozenset[str]
    device: Device
    memory_gbs_by_gb: Mapping[str, float]
    memory_gbs_by_token: Mapping[str, float]

    def accepts(self, words: frozenset[str]) -> bool:
        """Say whether these tokens name this device and nothing is left unexplained."""
        if not self.require <= words or self.forbid & words:
            return False
        return all(any(rule.fullmatch(word) for rule in self.allow) for word in words - self.require)


def tokens(name: str) -> frozenset[str]:
    """Split a device name into the upper-case tokens that tell devices apart; vendor and brand words are dropped."""
    plain = name.upper().replace("(R)", " ").replace("(TM)", " ")
    return frozenset(re.split(r"[^A-Z0-9]+", plain)) - _NOISE - {""}


@cache
def _table() -> tuple[_Entry, ...]:
    document = json.loads(files("tracetool").joinpath("hardware.json").read_text(encoding="utf-8"))
    sources: dict[str, str] = document["sources"]
    return tuple(
        _Entry(
            require=frozenset(row["require"]),
            allow=tuple(re.compile(rule) for rule in row["allow"]),
            forbid=frozenset(row["forbid"]),
            device=Device(
                key=row["key"],
                name=row["example"],
                tflops=row["tflops"],
                measured_tflops=row.get("measured_tflops", {}),
                memory_gbs=row["memory_gbs"],
                link_gbs=row["link_gbs"],
                sources=tuple(sources[letter] for letter in row["sources"]),
                confidence=row["confidence"],
                note=row["note"],
            ),
            memory_gbs_by_gb=row.get("memory_gbs_by_gb", {}),
            memory_gbs_by_token=row.get("memory_gbs_by_token", {}),
        )
        for row in document["devices"]
    )


def known() -> tuple[Device, ...]:
    """Return every device of the table, in its order, under an example of its names."""
    return tuple(entry.device for entry in _table())


def find(name: str | None, memory_bytes: int | None = None) -> Device | None:
    """Return the device of this name; None when it is not known or two entries match equally well.

    The entry that needs the most tokens wins. `memory_bytes`, the size the driver reports, chooses the memory
    bandwidth of parts that are sold with several sizes under one name.
    """
    words = tokens(name or "")
    matches = [entry for entry in _table() if entry.accepts(words)]
    if not matches:
        return None
    longest = max(len(entry.require) for entry in matches)
    best = [entry for entry in matches if len(entry.require) == longest]
    if len(best) > 1:
        return None
    entry = best[0]
    memory_gbs = entry.device.memory_gbs
    for token in sorted(words & entry.memory_gbs_by_token.keys()):
        memory_gbs = entry.memory_gbs_by_token[token]
    if memory_bytes and entry.memory_gbs_by_gb:
        gigabytes = memory_bytes / _DECIMAL_GB
        nearest = min(entry.memory_gbs_by_gb, key=lambda size: (abs(float(size) - gigabytes), size))
        memory_gbs = entry.memory_gbs_by_gb[nearest]
    return replace(entry.device, name=name or "", memory_gbs=memory_gbs)


def similar(name: str) -> tuple[str, ...]:
    """Return names of known devices that share a token with an unknown one, for a helpful message."""
    words = tokens(name)
    return tuple(entry.device.name for entry in _table() if words & (entry.require | tokens(entry.device.name)))
