"""One long array in a JSON document: found, cut, and kept where the text is damaged."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tracetool.raw import jsonstream
from tracetool.raw.jsonstream import ArrayStream

if TYPE_CHECKING:
    from pathlib import Path

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
objects = st.lists(st.fixed_dictionaries({"name": values, "list": values}), max_size=12)


def read(path: Path, text: str) -> tuple[list[Any], ArrayStream[Any]]:
    path.write_text(text, encoding="utf-8", errors="surrogatepass", newline="")
    stream = ArrayStream[Any](
        path, "list", msgspec.json.decode, first_keys=("name",), wanted=frozenset({"before", "after"})
    )
    return [item for part in stream for item in part], stream


@given(items=objects, others=st.tuples(values, values), indent=st.sampled_from([None, 1]), chunk=st.integers(1, 200))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_document_is_read_whole(
    tmp_path: Path, items: list[Any], others: tuple[object, object], indent: int | None, chunk: int
) -> None:
    before, after = others
    text = json.dumps({"before": before, "list": items, "after": after}, indent=indent, ensure_ascii=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonstream, "CHUNK_BYTES", chunk)
        found, stream = read(tmp_path / "x", text)
    assert found == items
    assert stream.repairs.complete
    assert stream.repairs.dropped == 0
    assert {key: json.loads(value) for key, value in stream.values.items()} == {"before": before, "after": after}


def test_the_place_of_damage_is_told(tmp_path: Path) -> None:
    text = '{"list": [{"name": 1}, {"name": 2 2}, {"name": 3}], "after": 4}'
    found, stream = read(tmp_path / "x", text)
    assert found == [{"name": 1}, {"name": 3}]
    assert (stream.repairs.dropped, stream.repairs.first_damage) == (1, text.index('{"name": 2 2'))
    assert stream.values == {"after": b"4"}


def test_an_end_inside_the_array_is_told(tmp_path: Path) -> None:
    found, stream = read(tmp_path / "x", '{"list": [{"name": 1}, {"name": 2}')
    assert found == [{"name": 1}, {"name": 2}]
    assert not stream.repairs.complete
    assert "the file ends inside its events" in stream.repairs.notes[0]


def test_a_header_without_end_is_searched_and_then_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonstream, "LONGEST_VALUE_BYTES", 1 << 14)
    monkeypatch.setattr(jsonstream, "CHUNK_BYTES", 1 << 12)
    head = '{"before": 7, "other": "' + "x" * (1 << 17)
    items, stream = read(tmp_path / "x", head + ' "list": [{"name": 1}], "after": 2}')
    assert items == [{"name": 1}]
    assert stream.values == {"before": b"7", "after": b"2"}
    assert not stream.repairs.complete
    monkeypatch.setattr(jsonstream, "BARREN_BYTES", 1 << 16)
    items, stream = read(tmp_path / "x", head + ' "list": [{"name": 1}]}')
    assert (items, stream.array_found) == ([], False)
    assert "reading stopped" in " ".join(stream.repairs.notes)
