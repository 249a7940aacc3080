"""Closed forms of model FLOPs: every convention against the oracle, published figures recomputed, odd configs."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import pytest

from tracetool.errors import UsageError
from tracetool.mfu import model_flops

if TYPE_CHECKING:
    from pathlib import Path

LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}
MIXTRAL = {**LLAMA_8B, "model_type": "mixtral", "vocab_size": 32000, "num_local_experts": 8, "num_experts_per_tok": 2}


def read(path: Path) -> Any:  # noqa: ANN401 - documents of several forms
    return json.loads(path.read_text(encoding="utf-8"))


def flops(config: dict[str, object], tokens: int, convention: str, *, predicting: bool = False) -> int:
    shape = model_flops.from_config(config)
    return model_flops.flops_per_token(shape, tokens, convention, predicting=predicting)


def test_known_figures() -> None:
    assert model_flops.from_config(LLAMA_8B).parameters() == 8_030_261_248
    assert flops(LLAMA_8B, 8192, "matmul_causal") == 51_470_401_536
    assert flops(LLAMA_8B, 8192, "matmul_full") == 57_912_852_480
    mixtral = model_flops.from_config(MIXTRAL)
    assert (mixtral.parameters(), mixtral.parameters(active=True)) == (46_702_792_704, 12_879_925_248)


def test_conventions_in_use_differ_by_more_than_a_third() -> None:
    """MFU without the name of its convention means little."""
    known = ("hf_trainer", "palm", "matmul_full", "matmul_causal", "6n_total", "torchtitan")
    values = [flops(LLAMA_8B, 8192, convention) for convention in known]
    assert max(values) / min(values) == pytest.approx(1.356, abs=0.001)


def test_only_the_chosen_experts_count() -> None:
    """The trap: 6 × all parameters of a model with experts is 3.4 times too much."""
    assert flops(MIXTRAL, 4096, "6n_total") / flops(MIXTRAL, 4096, "matmul_causal") == pytest.approx(3.5, abs=0.1)
    assert flops(MIXTRAL, 4096, "matmul_causal") == 79_712_747_520


def test_grouped_keys_save_weights_but_no_attention() -> None:
    grouped = model_flops.from_config(LLAMA_8B)
    plain = model_flops.from_config({**LLAMA_8B, "num_key_value_heads": 32})
    assert grouped.attention(8192) == plain.attention(8192)
    assert grouped.attention_weights < plain.attention_weights


def test_one_key_head_by_a_flag() -> None:
    falcon: dict[str, object] = {**LLAMA_8B, "model_type": "falcon", "multi_query": True}
    assert model_flops.from_config(falcon).key_heads == 1
    assert model_flops.from_config({**falcon, "new_decoder_architecture": True}).key_heads == 8


def test_a_window_cuts_the_attention_of_its_layers_only() -> None:
    """The trap: the full formula for windowed layers gives more than 100 %."""
    tokens, window = 32_768, 4096
    shape = model_flops.from_config({**LLAMA_8B, "model_type": "mistral", "sliding_window": window})
    pairs = window * tokens - window * (window - 1) // 2
    assert shape.attention(tokens) == round(Fraction(32 * 2 * 2 * pairs * 8192, tokens))
    assert shape.attention(window) == model_flops.from_config(LLAMA_8B).attention(window)
    off = model_flops.from_config({**LLAMA_8B, "sliding_window": window, "use_sliding_window": False})
    assert off.windows == ()
    mixed = {**LLAMA_8B, "sliding_window": window, "layer_types": ["sliding_attention", "full_attention"] * 16}
    half = model_flops.from_config(mixed)
    assert half.attention(tokens) * 2 == pytest.approx(
        shape.attention(tokens) + model_flops.from_config(LLAMA_8B).attention(tokens), abs=2
    )


def test_layers_without_attention_count_none() -> None:
    kinds = ["linear_attention", "linear_attention", "linear_attention", "full_attention"] * 8
    shape = model_flops.from_config({**LLAMA_8B, "layer_types": kinds})
    assert shape.attention(4096) * 4 == model_flops.from_config(LLAMA_8B).attention(4096)


def test_dense_layers_of_a_model_with_experts() -> None:
    experts = {**LLAMA_8B, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 512}
    assert model_flops.from_config({**experts, "first_k_dense_replace": 3}).expert_layers == 29
    assert model_flops.from_config({**experts, "decoder_sparse_step": 2}).expert_layers == 16
    assert model_flops.from_config({**experts, "mlp_only_layers": [0, 5]}).expert_layers == 30
    assert model_flops.from_config({**experts, "moe_layer_freq": [0] * 4 + [1] * 28}).expert_layers == 28


def test_latent_attention_with_and_without_compressed_queries() -> None:
    """Without a rank for queries their two factors are one matrix d × heads·(plain + rotary)."""
    latent: dict[str, object] = {
        **LLAMA_8B, "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
        "v_head_dim": 96,
    }  # fmt: skip
    both = model_flops.from_config(latent)
    plain = model_flops.from_config({**latent, "q_lora_rank": None})
    keys = 4096 * (512 + 64) + 512 * 32 * (128 + 96) + 32 * 96 * 4096
    assert both.attention_weights == 4096 * 1536 + 1536 * 32 * 192 + keys
    assert plain.attention_weights == 4096 * 32 * 192 + keys
    assert both.attention(1000) == plain.attention(1000) == 2 * 32 * 1000 * (32 * 192 + 32 * 96)


def test_the_head_counts_whether_tied_or_not() -> None:
    tied = {**LLAMA_8B, "tie_word_embeddings": True}
    assert flops(tied, 8192, "matmul_full") == flops(LLAMA_8B, 8192, "matmul_full")
    assert flops(tied, 8192, "6n_total") < flops(LLAMA_8B, 8192, "6n_total")
    assert flops(tied, 8192, "hf_trainer") < flops(LLAMA_8B, 8192, "hf_trainer")


def test_recomputation_of_every_block_is_hardware_flops_only() -> None:
    """The trap: the well-known 52 % of Megatron-LM in 2021 count the second forward."""
    plain = {
        "model_type": "gpt2", "n_embd": 1024, "n_layer": 24, "n_head": 16, "n_positions": 1024, "vocab_size": 51200,
    }  # fmt: skip
    useful, executed = flops(plain, 1024, "matmul_causal"), flops(plain, 1024, "full_recompute_hfu_causal")
    shape = model_flops.from_config(plain)
    again = 2 * (shape.matmul_parameters - shape.vocabulary * shape.hidden) + Fraction(1, 2) * shape.attention(1024)
    fifth = Fraction(1, 4) * shape.attention(1024)
    assert executed - useful == again + fifth


def test_layers_that_predict_further_tokens_count_only_when_asked_for() -> None:
    config: dict[str, object] = {**LLAMA_8B, "num_nextn_predict_layers": 1}
    assert flops(config, 4096, "matmul_full") == flops(LLAMA_8B, 4096, "matmul_full")
    assert flops(config, 4096, "matmul_full", predicting=True) > flops(LLAMA_8B, 4096, "matmul_full")
    with pytest.raises(UsageError, match="palm"):
        flops(config, 4096, "palm", predicting=True)


def test_defaults_go_by_the_kind_of_model() -> None:
    gpt2 = model_flops.from_config(
        {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": None, "n_positions": 1024,
         "vocab_size": 50257}
    )  # fmt: skip
    assert (gpt2.gated, gpt2.tied, gpt2.mlp, gpt2.positions) == (False, True, 3072, 1024)
    assert gpt2.parameters() == 124_337_664


def test_text_part_of_a_model_of_several_modes() -> None:
    assert model_flops.from_config({"model_type": "llava", "text_config": LLAMA_8B}).hidden == 4096


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
def test_a_missing_size_is_named(key: str) -> None:
    config = {name: value for name, value in LLAMA_8B.items() if name != key}
    with pytest.raises(UsageError, match=key):
        model_flops.from_config(config)


def test_an_unknown_convention_is_named() -> None:
    with pytest.raises(UsageError, match="folklore"):
        flops(LLAMA_8B, 8192, "folklore")


def test_a_file_that_is_no_config(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("[1, 2]", encoding="utf-8")
    with pytest.raises(UsageError, match="not a JSON object"):
        model_flops.load(path)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(UsageError, match="cannot be read"):
        model_flops.load(path)
    path.write_text(json.dumps(LLAMA_8B), encoding="utf-8")
    assert model_flops.load(path)["hidden_size"] == 4096


def test_oracle_exact(shared: Path) -> None:
    models = read(shared / "mfu" / "flops_oracle.json")["models"]
    compared = 0
    for model in models.values():
        shape = model_flops.from_config(model["config"])
        sizes = {
            "N_total": shape.parameters(),
            "N_active": shape.parameters(active=True),
            "N_matmul": shape.matmul_parameters,
        }
        assert sizes == model["params"]
        for convention, lengths in model["flops_per_token"].items():
            for tokens, expected in lengths.items():
                predicting = shape.predicting_layers > 0
                found = model_flops.flops_per_token(shape, int(tokens), convention, predicting=predicting)
                assert found == expected, (model["name"], convention, tokens)
                compared += 1
    assert len(models) == 10
    assert compared == 384


def shape_of(inputs: dict[str, Any], models: dict[str, Any]) -> model_flops.Shape:
    """Return the model of a published row: by name, or by the symbols it gives."""
    if "model" in inputs:
        return model_flops.from_config(models[inputs["model"]]["config"])
    given = inputs.get("config", inputs)
    return model_flops.Shape(
        layers=given["L"],
        hidden=given.get("d", given.get("h", 0)),
        heads=given.get("H", 0),
        key_heads=given.get("H", 0),
        head_width=given.get("head_dim", given.get("Q", 0)),
        mlp=given.get("ff", 0),
        vocabulary=given.get("V", 0),
        gated=given.get("glu", True),
        tied=given.get("tied", False),
        experts=given.get("experts", 0),
        chosen=given.get("top_k", 0),
        expert_mlp=given.get("moe_ff", 0),
        shared_mlp=given.get("shared_ff", 0),
        dense_layers=given.get("dense_layers", 0),
        query_rank=given.get("q_lora", 0),
        key_rank=given.get("kv_lora", 0),
        plain_width=given.get("qk_nope", 0),
        rotary_width=given.get("qk_rope", 0),
        value_width=given.get("v_head_dim", 0),
    )


def per_token(row: dict[str, Any], models: dict[str, Any], *, predicting: bool = False) -> float:
    """Return the FLOPs a token that a published row's convention counts."""
    inputs, convention = row["inputs"], row["convention"]
    if "n_params" in inputs:
        flops = 6 * inputs["n_params"]
        if convention == "palm":
            flops += 3 * shape_of(inputs, models).attention(inputs["T"])
        return float(flops)
    shape = shape_of(inputs, models)
    tokens = inputs.get("seq_len", inputs.get("s"))
    if convention == "6*N_matmul*tokens":
        return 6 * shape.matmul_parameters
    if convention in {"3*A(T)*tokens", "1.5*A(T)*tokens"}:
        return float(convention.partition("*")[0]) * float(shape.attention(tokens))
    if convention.startswith("72*"):  # selective recompute: one forward of attention more
        core = model_flops.flops_per_token(shape, tokens, "megatron_2021_eq3")
        return float(core + shape.layers * 12 * shape.hidden * tokens)
    if convention.startswith("megatron_2026 with"):
        return model_flops.flops_per_token(shape, tokens, "megatron_2026") + 1.5 * shape.attention(tokens)
    return model_flops.flops_per_token(shape, tokens, convention, predicting=predicting)


def recompute(row: dict[str, Any], models: dict[str, Any], *, predicting: bool = False) -> float:
    """Return the figure of a published row in its own unit."""
    inputs, quantity = row["inputs"], row["quantity"]
    if quantity == "days":
        seconds = 8 * inputs["tokens"] * inputs["n_params"] / (inputs["gpus"] * inputs["achieved_tflops"] * 1e12)
        return float(seconds / 86_400)
    if row["convention"].startswith("achieved"):
        return float(100 * inputs["achieved_tflops_per_gpu"] / inputs["peak_tflops"])
    length = inputs.get("seq_len", inputs.get("s", 1))
    batch = inputs.get("batch", inputs.get("B", inputs.get("sequences", inputs.get("batch_per_device", 1))))
    seconds = inputs.get("seconds_per_iteration", inputs.get("seconds", 1))
    devices = inputs.get("gpus", inputs.get("chips", 1))
    if "tokens_per_s_per_gpu" in inputs:
        rate = inputs["tokens_per_s_per_gpu"]
    elif "tokens_per_s" in inputs:
        rate = inputs["tokens_per_s"] / devices
    else:
        rate = batch * length / seconds / devices
    if quantity == "1e9 tokens per day":
        return float(rate * devices * 86_400 / 1e9)
    flops = rate * per_token(row, models, predicting=predicting)
    return float(100 * flops / inputs["peak_tflops"] / 1e12 if "%" in quantity else flops / 1e12)


def test_published_figures(shared: Path) -> None:
    models = read(shared / "mfu" / "flops_oracle.json")["models"]
    rows = read(shared / "mfu" / "published.json")["rows"]
    verdicts: dict[str, list[str]] = {"match": [], "differs": [], "informative": []}
    for row in rows:
        value = recompute(row, models)
        assert value == pytest.approx(row["recomputed"], rel=2e-4, abs=0.006), row["id"]
        low, high = row["printed"] if isinstance(row["printed"], list) else (row["printed"], row["printed"])
        if row["tolerance"] is None:
            verdict = "informative"
        else:
            verdict = "match" if low - row["tolerance"] <= value <= high + row["tolerance"] else "differs"
        verdicts[verdict].append(row["id"])
        print(f"{row['id']:44} {row['printed']!s:>12} {value:12.3f}  {row['quantity']:20} {verdict}")  # noqa: T201 - the table is what this test shows
    assert len(rows) == 58
    assert len(verdicts["match"]) == 55
    assert verdicts["differs"] == ["megatron-bridge/B200/deepseek-v3/2139"]
    assert len(verdicts["informative"]) == 2


def test_the_published_row_that_differs_counts_one_predicting_layer(shared: Path) -> None:
    models = read(shared / "mfu" / "flops_oracle.json")["models"]
    rows = read(shared / "mfu" / "published.json")["rows"]
    row = next(row for row in rows if "recomputed_with_mtp" in row)
    with_layer = {**row, "inputs": {**row["inputs"], "model": "deepseek-v3+mtp"}}
    found = recompute(with_layer, models, predicting=True)
    assert found == pytest.approx(row["recomputed_with_mtp"], abs=0.005)
    assert abs(found - row["printed"]) <= row["tolerance_with_mtp"]
