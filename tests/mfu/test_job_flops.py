"""FLOPs of the whole job by the user's word, and what is assumed on the way."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tracetool.errors import UsageError
from tracetool.mfu.job_flops import job_flops
from tracetool.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

LLAMA_8B = {
    "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256, "tie_word_embeddings": False,
}  # fmt: skip
TOKENS = 4_000_000


def settings(folder: Path, config: dict[str, object], tokens: int | None = TOKENS) -> Settings:
    path = folder / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return Settings(model=str(path), tokens_per_step=tokens)


def test_config_times_tokens(tmp_path: Path) -> None:
    found, missing = job_flops(settings(tmp_path, LLAMA_8B), sequence=8192, tokens=None)
    assert found is not None
    assert (found.source, found.notes, missing, found.without_attention) == ("config", (), (), False)
    assert found.full == TOKENS * 57_912_852_480
    assert found.causal == TOKENS * 51_470_401_536


def test_without_a_sequence_length_attention_is_left_out_and_said(tmp_path: Path) -> None:
    found, _ = job_flops(settings(tmp_path, LLAMA_8B), sequence=None, tokens=None)
    assert found is not None
    assert found.full == found.causal == TOKENS * 6 * 7_504_658_432
    assert "lower bound" in found.notes[0]
    assert found.without_attention


def test_a_learned_table_of_positions_tells_the_length(tmp_path: Path) -> None:
    gpt2: dict[str, object] = {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024}
    found, _ = job_flops(settings(tmp_path, {**gpt2, "vocab_size": 50257}), sequence=None, tokens=None)
    assert found is not None
    assert found.full == TOKENS * 854_438_400
    assert "1024 positions" in found.notes[0]


def test_predicting_layers_are_named_and_not_counted(tmp_path: Path) -> None:
    plain, _ = job_flops(settings(tmp_path, LLAMA_8B), sequence=8192, tokens=None)
    found, _ = job_flops(settings(tmp_path, {**LLAMA_8B, "num_nextn_predict_layers": 1}), sequence=8192, tokens=None)
    assert plain is not None
    assert found is not None
    assert found.full == plain.full
    assert "--mtp" in found.notes[0]
    asked = replace(settings(tmp_path, {**LLAMA_8B, "num_nextn_predict_layers": 1}), mtp=True)
    counted, _ = job_flops(asked, sequence=8192, tokens=None)
    assert counted is not None
    assert counted.full > plain.full
    assert counted.notes == ()


def test_tokens_come_from_the_user_else_from_the_trace_else_not_at_all(tmp_path: Path) -> None:
    without = settings(tmp_path, LLAMA_8B, tokens=None)
    seen, _ = job_flops(without, sequence=8192, tokens=16384)
    assert seen is not None
    assert seen.tokens == 16384
    assert "aten::embedding" in seen.notes[0]
    nothing, missing = job_flops(without, sequence=8192, tokens=None)
    assert nothing is None
    assert "--tokens-per-step" in missing[0]


def test_given_flops_win() -> None:
    found, _ = job_flops(Settings(flops_per_step=1e18, model="absent.json"), sequence=None, tokens=None)
    assert found is not None
    assert (found.source, found.full, found.causal) == ("given", 1e18, 1e18)


def test_nothing_stated() -> None:
    assert job_flops(Settings(), sequence=8192, tokens=1) == (None, ())


def test_experts_are_said(tmp_path: Path) -> None:
    mixtral = {**LLAMA_8B, "num_local_experts": 8, "num_experts_per_tok": 2}
    found, _ = job_flops(settings(tmp_path, mixtral), sequence=8192, tokens=None)
    assert found is not None
    assert found.experts


def test_an_absent_config_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"absent\.json"):
        job_flops(Settings(model="absent.json", tokens_per_step=1), sequence=None, tokens=None)
