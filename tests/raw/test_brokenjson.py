"""What can be had of a damaged JSON value."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracetool.raw.brokenjson import beginning


@pytest.mark.parametrize(
    ("text", "value", "whole"),
    [
        (b'{"rank": 3, "groups": [1, 2]}', {"rank": 3, "groups": [1, 2]}, True),
        (b'{"rank": 3, "groups": [1, 2', {"rank": 3}, False),
        (b'{"rank": 3, "groups": [1, \x00\x00], "world": 4}', {"rank": 3}, False),
        (b'{"rank": NaN, "world": 4}', {"rank": None, "world": 4}, False),
        (b'[{"name": "A\xff"}, {"name": "B"}]', [{"name": "A\ufffd"}, {"name": "B"}], False),
        (b'[{"name": "A,}"}, {"name": ', [{"name": "A,}"}], False),
        (b'{"name": "a\nb"}', {"name": "a\nb"}, False),
        (b'{"name": "\\ud800x\n"}', {"name": "?x\n"}, False),
        (b'{"size": 1e999}', {"size": None}, False),
        (b'{"rank": 34', None, False),
        (b'{"rank"', None, False),
        (b'"text', None, False),
        (b"", None, False),
        (b"[" * 100_000, None, False),
        (b"1" * 5_000, None, False),
    ],
)
def test_members_before_the_damage_are_kept_whole(text: bytes, value: object, whole: bool) -> None:  # noqa: FBT001
    assert beginning(text) == (value, whole)


@given(
    value=st.dictionaries(st.text(max_size=3), st.lists(st.integers(0, 99), max_size=3) | st.text(max_size=5)),
    share=st.floats(0, 1),
)
def test_no_member_is_ever_changed(value: dict[str, Any], share: float) -> None:
    text = json.dumps(value).encode()
    found, whole = beginning(text[: int(len(text) * share)])
    assert whole is (found == value and share == 1.0) or not whole
    assert all(value[key] == kept for key, kept in (found or {}).items())
