"""Freed memory goes back to the system, and the user's own choice for polars stands."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tracetool import heap


def test_what_was_freed_below_the_last_block_in_use_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("the C library is not glibc")
    monkeypatch.setattr(heap, "_WORTH_BYTES", 0)
    blocks = [bytearray(b"x" * 10_000) for _ in range(6_000)]
    last = blocks[-1]
    blocks.clear()
    before = heap.resident_bytes()
    heap.give_back()
    assert heap.resident_bytes() < before - 40_000_000
    assert len(last) == 10_000


def test_a_small_process_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(heap, "_malloc_trim", lambda: calls.append)
    monkeypatch.setattr(heap, "_WORTH_BYTES", 1 << 60)
    heap.give_back()
    assert calls == []
    monkeypatch.setattr(heap, "_WORTH_BYTES", 0)
    heap.give_back()
    assert calls == [0]


@pytest.mark.parametrize(("own", "expected"), [("", "muzzy_decay_ms:0"), ("narenas:1", "narenas:1")])
def test_polars_is_told_before_it_is_loaded(own: str, expected: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "_RJEM_MALLOC_CONF"}
    script = "import tracetool, os; print(os.environ['_RJEM_MALLOC_CONF']); import polars"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env=environment | ({"_RJEM_MALLOC_CONF": own} if own else {}), capture_output=True, text=True, check=True,
        cwd=Path(__file__).parent,
    )  # fmt: skip
    assert done.stdout.strip().endswith(expected)
    assert done.stderr == ""
