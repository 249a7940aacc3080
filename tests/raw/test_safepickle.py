"""Plain data loads as pickle loads it; everything else is refused unread; damage is told and salvaged."""

from __future__ import annotations

import pickle
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulator_hangs.torch_pickle import dumps

from tracetool.raw.safepickle import BrokenPickle, UnsafePickle, loads, salvage, scan

if TYPE_CHECKING:
    from pathlib import Path

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 63) - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=25,
)


@given(PLAIN)
def test_plain_data_as_torch_writes_it(value: object) -> None:
    assert loads(dumps(value)) == value


@given(PLAIN, st.integers(2, 5))
def test_plain_data_as_python_writes_it(value: object, protocol: int) -> None:
    assert loads(pickle.dumps(value, protocol)) == value


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("protocol", range(6))
def test_a_global_is_refused_and_nothing_runs(tmp_path: Path, protocol: int) -> None:
    target = tmp_path / "touched"
    with pytest.raises(UnsafePickle, match="opcode"):
        loads(pickle.dumps({"entries": [Touch(target)]}, protocol))
    assert not target.exists()


HOSTILE = {
    "global": b"\x80\x02cos\nsystem\n.",
    "stack_global": b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
    "reduce": b"\x80\x02)R.",
    "build": b"\x80\x02}}b.",
    "inst": b"\x80\x02(ios\nsystem\n.",
    "persistent_id": b"\x80\x02K\x01Q.",
    "extension": b"\x80\x02\x82\x01.",
    "bytes": b"\x80\x03C\x02hi.",
    "protocol_0": b"cos\nsystem\n(S'id'\ntR.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_opcodes_that_are_no_plain_data(name: str) -> None:
    with pytest.raises(UnsafePickle, match="nothing of the file was run"):
        loads(HOSTILE[name])
    with pytest.raises((UnsafePickle, BrokenPickle)):
        salvage(HOSTILE[name])


@pytest.mark.parametrize("index", [1, 255, (1 << 31) - 1, (1 << 32) - 1])
def test_a_huge_memo_is_refused(index: int) -> None:
    with pytest.raises(UnsafePickle, match="memo"):
        loads(b"\x80\x02Nr" + struct.pack("<I", index) + b".")


def test_lengths_beyond_the_file() -> None:
    for head in (b"X\xff\xff\xff\xff", b"\x8d" + b"\xff" * 8, b"\x8a\xff", b"\x8c\xff"):
        with pytest.raises(BrokenPickle, match="ends in the middle"):
            loads(b"\x80\x04" + head + b"abc.")


def test_a_frame_of_any_length_asks_for_nothing() -> None:
    with pytest.raises((BrokenPickle, UnsafePickle)):
        loads(b"\x80\x04\x95" + b"\xff" * 8 + b"N.")


def test_deep_nesting_neither_crashes_nor_recurses() -> None:
    depth = 200_000
    assert isinstance(loads(b"\x80\x02" + b"](" * depth + b"]" + b"e" * depth + b"."), list)
    tuples = b"\x80\x02}(" + b"N" + b"\x85" * depth + b"Nu."
    with pytest.raises((BrokenPickle, UnsafePickle)):
        loads(tuples)  # as a dict key it would be hashed, and hashing tuples recurses


def test_containers_that_would_not_fit_are_counted_first() -> None:
    many = b"\x80\x02(" + b"}" * 200_000 + b"l."
    with pytest.raises(UnsafePickle):
        loads(many, memory_bytes=1 << 20)
    with pytest.raises(UnsafePickle, match="MiB"):
        loads(b"\x80\x02](" + b"}" * 200_000 + b"e.", memory_bytes=1 << 20)


@given(PLAIN, st.data())
def test_a_cut_pickle_is_broken_and_salvage_says_where(value: object, data: st.DataObject) -> None:
    whole = dumps({"version": "2.10", "entries": [value, value]})
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(BrokenPickle):
        loads(whole[:cut])
    try:
        rescued, byte = salvage(whole[:cut])
    except BrokenPickle:
        return
    assert byte <= cut
    assert isinstance(rescued, dict)
    assert rescued.get("version", "2.10") == "2.10"


def test_salvage_keeps_the_whole_records() -> None:
    entries = [{"n": n, "sizes": [[n]]} for n in range(100)]
    whole = dumps({"version": "2.10", "entries": entries})
    rescued, byte = salvage(whole[: len(whole) // 2])
    assert isinstance(rescued, dict)
    kept = rescued["entries"]
    assert kept == entries[: len(kept)]
    assert 40 < len(kept) < 60
    assert byte <= len(whole) // 2


@given(st.binary(max_size=80))
def test_any_bytes_after_the_header(tail: bytes) -> None:
    data = b"\x80\x02" + tail
    try:
        scan(data)
    except (UnsafePickle, BrokenPickle):
        with pytest.raises((UnsafePickle, BrokenPickle)):
            loads(data)
        return
    try:
        loads(data)
    except (UnsafePickle, BrokenPickle):
        return
