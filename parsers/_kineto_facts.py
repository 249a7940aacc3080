"""What a Kineto trace says about its process: rank, host, device, settings, groups, and how well it could be read."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl
from msgspec import Raw
from tracetool.parsers._kineto_format import (  # type: ignore[import-not-found]  # mapped at install time
    CATEGORY_CODE,
    ON_CPU,
)

from tracetool import tables
from tracetool.raw.brokenjson import beginning
from tracetool.raw.rawcolumns import compact_json, json_value, one_int

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tracetool.parsers._kineto_reader import Reader  # type: ignore[import-not-found]  # mapped at install time

    from tracetool.raw.jsonstream import ArrayStream

FORMAT: Final = "kineto"
_VERSIONS: Final = (
    "cupti_version", "cuda_runtime_version", "cuda_driver_version",
    "roctracer_version", "hip_runtime_version", "hip_driver_version",
)  # fmt: skip
TOP_KEYS: Final = frozenset(
    {"deviceProperties", "distributedInfo", "baseTimeNanoseconds", "host_name", "record_shapes", "with_stack",
     "profile_memory", *_VERSIONS}
)  # fmt: skip
"""The only top-level keys that are looked at: the others may hold environments and tokens."""
_LARGEST_BASE_NS: Final = 1 << 62
_EPOCH_US: Final = 3e14
"""Times above this (the year 1979) count from 1970; base-relative ones stay within a quarter of a year."""


class Facts:
    """Makes tables `ranks`, `process_groups` and `sources` of one trace; `rows` are the columns of its events."""

    def __init__(
        self,
        reader: Reader,
        stream: ArrayStream[Any],
        rows: dict[str, NDArray[Any]],
        window: tuple[int, int] | None,
        notes: list[str],
    ) -> None:
        self._reader = reader
        self._stream = stream
        self._rows = rows
        self._window = window
        self._notes = notes
        self._top: dict[str, object] = {}
        self._damaged_values = 0
        for key, text in stream.values.items():
            self._top[key], whole = beginning(text)
            if not whole:
                self._damaged_values += 1
                notes.append(f'the value of "{key}" is damaged: what stands whole in it was read')
        self._process_texts = reader.pids.texts()

    def process_groups(self) -> pl.DataFrame:
        """Return table `process_groups`."""
        info = self._top.get("distributedInfo")
        groups = info.get("pg_config") if isinstance(info, dict) else None
        found: dict[str, dict[str, object]] = {}
        for group in groups if isinstance(groups, list) else ():
            if not isinstance(group, dict) or group.get("pg_name") is None:
                continue
            ranks = group.get("ranks")
            good = isinstance(ranks, list) and all(_small_int(rank) is not None for rank in ranks)
            found[str(group["pg_name"])] = {
                "group": str(group["pg_name"]),
                "desc": text_of(group.get("pg_desc")),
                "ranks": ranks if good else None,
                "size": _small_int(group.get("pg_size")),
            }
        schema: pl._typing.SchemaDict = {
            "group": pl.String,
            "desc": pl.String,
            "ranks": pl.List(pl.Int32),
            "size": pl.Int32,
        }
        return pl.DataFrame(list(found.values()), schema=schema)

    # ---- one row ----

    def _distributed(self, key: str) -> object:
        info = self._top.get("distributedInfo")
        return info.get(key) if isinstance(info, dict) else None

    def rank(self) -> pl.Expr:
        """Return the rank as a column: -1 when the trace does not say."""
        rank = _small_int(self._distributed("rank"))
        return pl.lit(-1 if rank is None or rank < 0 else rank, dtype=pl.Int32)

    def ranks(self) -> pl.DataFrame:
        """Return table `ranks`: one row."""
        rank = _small_int(self._distributed("rank"))
        device = self._device()
        name, memory = self._device_properties(device)
        world = _small_int(self._distributed("world_size"))
        host = text_of(self._top.get("host_name"))
        versions = [(key.removesuffix("_version"), self._top.get(key)) for key in _VERSIONS]
        versions.append(("nccl", self._distributed("nccl_version")))
        window = self._window or self._instant_window()
        return tables.frame(
            "ranks",
            {
                "rank": [-1],
                "rank_source": ["metadata" if rank is not None and rank >= 0 else None],
                "world_size": [world if world and world > 0 else None],
                "host": [host or None],
                "host_source": ["metadata" if host else None],
                "pid": [self._pid()],
                "device": [device],
                "device_name": [name],
                "device_memory_bytes": [memory],
                "base_unix_ns": [self._base()],
                "versions": [
                    ", ".join(f"{key} {value}" for key, value in versions if isinstance(value, (int, float, str)))
                    or None
                ],
                "backend": [text_of(self._distributed("backend"))],
                "format": [FORMAT],
                "record_shapes": [self._flag("record_shapes")],
                "with_stack": [self._with_stack()],
                "profile_memory": [self._flag("profile_memory")],
                "trace_start_ns": [window[0] if window else None],
                "trace_end_ns": [window[1] if window else None],
            },
        )

    def _with_stack(self) -> bool | None:
        return True if self._reader.left_out["python_function"] else self._flag("with_stack")

    def _flag(self, key: str) -> bool | None:
        value = self._top.get(key)
        return bool(value) if isinstance(value, (bool, int)) else None

    def _base(self) -> int | None:
        """Return the Unix time of clock value 0, ns; null when neither the file nor its times tell."""
        base = self._top.get("baseTimeNanoseconds")
        starts = self._rows["start"]
        if len(starts) and int(np.median(starts)) > _EPOCH_US * 1000:
            if isinstance(base, int) and base:
                self._notes.append("baseTimeNanoseconds was not added: the times themselves count from 1970")
            return 0
        if isinstance(base, int) and abs(base) > _LARGEST_BASE_NS:
            self._notes.append("baseTimeNanoseconds is no time and was not used")
            return None
        return base if isinstance(base, int) else None

    def _pid(self) -> int | None:
        """Return the process that most CPU events name."""
        cpu = np.isin(self._rows["kind"], [CATEGORY_CODE[name] for name in ON_CPU])
        found = np.bincount(self._rows["pid"][cpu])
        return _small_int(one_int(self._process_texts[int(found.argmax())])) if found.size else None

    def _device(self) -> int | None:
        """Return the device on which most GPU activities ran."""
        on_gpu = np.isin(self._rows["kind"], [CATEGORY_CODE[name] for name in tables.GPU_ACTIVITY])
        found = np.bincount(self._rows["pid"][on_gpu])
        return small(self._process_texts[int(found.argmax())]) if found.size else None

    def _device_properties(self, device: int | None) -> tuple[str | None, int | None]:
        """Return name and memory of the device; on ROCm ids count CPUs too, so equal devices stand for each other."""
        given = self._top.get("deviceProperties")
        devices = [item for item in given if isinstance(item, dict)] if isinstance(given, list) else []
        told = {(text_of(item.get("name")) or None, _positive(item.get("totalGlobalMem"))) for item in devices}
        if len(told) == 1:
            return next(iter(told))
        for item in devices:
            if device is not None and item.get("id") == device:
                return text_of(item.get("name")) or None, _positive(item.get("totalGlobalMem"))
        return None, None

    def _instant_window(self) -> tuple[int, int] | None:
        names = self._reader.names
        instant = self._rows["instant"]
        begins = [code for name, code in names.items() if isinstance(name, str) and name.startswith("Iteration Start:")]
        start = self._rows["start"][instant & np.isin(self._rows["name"], begins)]
        end = self._rows["start"][instant & (self._rows["name"] == names.get("Record Window End", -1))]
        return (int(start.min()), int(end.max())) if start.size and end.size else None

    def sources(self, path: str, size_bytes: int, events: int) -> pl.DataFrame:
        """Return table `sources`: one row, with all that was lost or mended; call it last."""
        reader, repairs = self._reader, self._stream.repairs
        lost = {what: number for what, number in reader.lost.items() if number}
        dropped = repairs.dropped + sum(lost.values())
        repaired = (
            repairs.replaced_bytes
            + repairs.not_numbers
            + repairs.trailing_commas
            + reader.replaced_args
            + reader.odd_args
            + self._damaged_values
        )
        texts = {
            "time": "without a readable time",
            "duration": "without a duration",
            "negative": "with a negative duration",
            "long": "with a duration of more than 11 days",
            "odd": "that are no events of the format",
        }
        told = [f"{number:,} dropped {texts[what]}" for what, number in sorted(lost.items())]
        if repairs.dropped:
            told.append(
                f"{repairs.dropped:,} dropped whose text is damaged, the first near byte {repairs.first_damage:,}"
            )
        if repairs.not_numbers:
            told.append(f"{repairs.not_numbers:,} values NaN or Infinity read as null")
        if repairs.replaced_bytes + reader.replaced_args:
            told.append(f"{repairs.replaced_bytes + reader.replaced_args:,} texts that are not UTF-8: bytes replaced")
        if reader.odd_args:
            told.append(f"{reader.odd_args:,} arguments that are no object were ignored")
        if repairs.trailing_commas:
            told.append("a comma before the end of the events was ignored")
        for what, number in sorted(reader.left_out.items()):
            if what == "python_function" and number:
                told.append(f"{number:,} python frames left out")
            elif number:
                told.append(f'{number:,} events of phase "{what}" left out')
        notes = [*repairs.notes, *told, *self._notes]
        if not events:
            notes.append("the list of events is empty")
        return tables.frame(
            "sources",
            {
                "path": [path],
                "format": [FORMAT],
                "bytes": [size_bytes],
                "events": [events],
                "dropped": [dropped],
                "repaired": [repaired],
                "complete": [repairs.complete],
                "notes": [notes],
            },
        )


def small(text: str) -> int | None:
    """Return a short number written as text; None for other texts."""
    return int(text) if re.fullmatch(r"\d{1,9}", text) else None


def _small_int(value: object) -> int | None:
    number = one_int(value)
    return number if abs(number) < 1 << 31 else None


def _positive(value: object) -> int | None:
    number = one_int(value)
    return number if number > 0 else None


def text_of(value: object) -> str | None:
    """Return a text as it is, the raw JSON of anything else, None for nothing."""
    if isinstance(value, Raw):
        raw = bytes(value)
        plain = json_value(raw) if raw.startswith(b'"') else None
        return plain if isinstance(plain, str) else compact_json(raw)
    return None if value is None else str(value)
