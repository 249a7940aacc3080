"""FLOPs a token of training, in closed form from a Hugging Face config.json.

Every figure carries the name of its convention, because those in use differ by more than a third. Symbols: L layers,
d hidden size, H query heads, G key heads, h head width, V vocabulary, T sequence length, E experts of which k are
chosen, f width of a dense MLP, f_e of one expert, f_s of the shared experts together; m = 3 matrices in a gated MLP,
2 in a plain one.

Weights that meet every token in a matrix product, N_matmul: for each layer
* attention d·H·h + 2·d·G·h + H·h·d; latent attention d·q + q·H·(n + r) + d·(c + r) + c·H·(n + v) + H·v·d with ranks
  q of queries and c of keys, widths n (without position), r (rotary), v (values); without q: d·H·(n + r) in place of
  its first two terms;
* MLP m·d·f, or of experts k·m·d·f_e + m·d·f_s + d·E (the router);
and the head V·d, counted also where it is tied. N_total are all parameters (without biases and norms of queries and
keys), N_active those with k experts in place of E.

Attention forward a token, without credit for the mask: A(T) = 2·L·T·(a + b), a = H·h and b = H·h, in latent attention
H·(n + r) and H·v. Layers with a window W < T keep W·T − W·(W−1)/2 pairs instead of T²/2, and twice that in full.

Conventions (FLOPs a token, forward and backward):
* matmul_full 6·N_matmul + 3·A(T): what torch.utils.flop_counter counts with unfused attention.
* matmul_causal 6·N_matmul + 1.5·A(T): the same with half of attention; the default.
* matmul_causal_exact 6·N_matmul + 1.5·A(T+1): pairs on the diagonal counted.
* megatron_2026: matmul_causal without router, with 6·L·(q + c) in latent attention (Megatron-LM,
  megatron/training/training.py; Megatron-Bridge).
* 6n_total 6·N_total and 6n_active 6·N_active (Kaplan et al., arXiv 2001.08361).
* palm 6·(N_active − positions·d) + 3·A(T) (arXiv 2204.02311, appendix B; nanoGPT, model.py).
* torchtitan 6·(N_active − V·d where untied) + 3·A(T) (torchtitan, models/utils.py).
* llm_foundry 3·(2·(N_active − V·d where untied) + 4·L·d·T) (llm-foundry, scripts/train/benchmarking).
* hf_trainer 6·(N_total − V·d − positions·d) (transformers, modeling_utils.py, floating_point_ops).
* verl 6·(N_matmul + V·d) + 1.5·A(T) (verl, utils/flops_counter.py).
* chinchilla 3·(2·V·d + 2·N_matmul + A(T) + 3·L·H·T) (arXiv 2203.15556, appendix F).
* megatron_2021_eq3 72·L·d²·(1 + T/6d + V/12Ld) (arXiv 2104.04473, equation 3 without recomputation): plain attention
  and f = 4d only.
* flash_hfu_full 6·N_matmul + 3.5·A(T): executed, a fused backward of attention has five products.
* full_recompute_hfu_causal 8·N_matmul − 2·V·d + 2.25·A(T): executed with every block computed twice.

Layers that predict several tokens (MTP) count only when asked for: a config that names them does not say that they
were trained. Each adds 6·P + 6·T·(a+b) in full, half of the last term with causal credit, where
P = attention + MLP + 2·d² + V·d.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Final

from tracetool.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

PLAIN_MLP: Final = frozenset({
    "bert", "bloom", "codegen", "falcon", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj", "mpt", "nemotron",
    "opt", "persimmon", "phi", "roberta", "starcoder2",
})  # fmt: skip
"""model_type values whose MLP has two matrices; all others are taken to be gated, with three."""
TIED_BY_DEFAULT: Final = frozenset({
    "bloom", "codegen", "cohere", "falcon", "gemma", "gemma2", "gemma3", "gemma3_text", "gpt2", "gpt_bigcode",
    "gpt_neo", "mpt", "opt", "starcoder2",
})  # fmt: skip
"""model_type values that tie head and embedding when config.json does not say."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that its FLOPs depend on, by the symbols of the module."""

    layers: int
    hidden: int
    heads: int
    key_heads: int
    head_width: int
    mlp: int
    vocabulary: int
    gated: bool = True
    tied: bool = False
    positions: int = 0
    """Rows of a learned table of positions; 0 without one."""
    experts: int = 0
    chosen: int = 0
    expert_mlp: int = 0
    shared_mlp: int = 0
    dense_layers: int = 0
    """Layers with a dense MLP in a model with experts."""
    query_rank: int = 0
    key_rank: int = 0
    """Rank of compressed keys and values; more than 0 means latent attention."""
    plain_width: int = 0
    rotary_width: int = 0
    value_width: int = 0
    predicting_layers: int = 0
    """Layers that predict further tokens (MTP), as the config names them."""
    windows: tuple[int | None, ...] = ()
    """Attention of each layer: the window, None for all keys, 0 for none at all; empty when all see everything."""

    @property
    def score_width(self) -> int:
        """a: width of all query heads."""
        return self.heads * (self.plain_width + self.rotary_width) if self.key_rank else self.heads * self.head_width

    @property
    def mixed_width(self) -> int:
        """b: width of all heads' values."""
        return self.heads * self.value_width if self.key_rank else self.heads * self.head_width

    @property
    def attention_weights(self) -> int:
        """Weights of one layer's attention that meet every token."""
        d, heads = self.hidden, self.heads
        if not self.key_rank:
            return 2 * d * heads * self.head_width + 2 * d * self.key_heads * self.head_width
        width = self.plain_width + self.rotary_width
        query = d * self.query_rank + self.query_rank * heads * width if self.query_rank else d * heads * width
        keys = d * (self.key_rank + self.rotary_width) + self.key_rank * heads * (self.plain_width + self.value_width)
        return query + keys + heads * self.value_width * d

    @property
    def matrices(self) -> int:
        """m: matrices of one MLP."""
        return 3 if self.gated else 2

    @property
    def router(self) -> int:
        """Weights of one layer's router."""
        return self.hidden * self.experts

    @property
    def expert_layers(self) -> int:
        """Layers whose MLP is experts."""
        return self.layers - self.dense_layers if self.experts else 0

    def experts_weights(self, experts: int) -> int:
        """Weights of one layer's MLP with this many experts, the shared ones and the router."""
        return self.matrices * self.hidden * (experts * self.expert_mlp + self.shared_mlp) + self.router

    def blocks_weights(self, experts: int) -> int:
        """Weights of all layers with this many experts each, without norms."""
        dense = (self.layers - self.expert_layers) * self.matrices * self.hidden * self.mlp
        return self.layers * self.attention_weights + dense + self.expert_layers * self.experts_weights(experts)

    @property
    def matmul_parameters(self) -> int:
        """N_matmul."""
        return self.blocks_weights(self.chosen) + self.vocabulary * self.hidden

    def parameters(self, *, active: bool = False) -> int:
        """N_total, or N_active: embeddings, head, learned positions, blocks and norms."""
        d = self.hidden
        embeddings = self.vocabulary * d * (1 if self.tied else 2) + self.positions * d
        norms = self.layers * (2 * d + (self.query_rank + self.key_rank if self.key_rank else 0)) + d
        return embeddings + self.blocks_weights(self.chosen if active else self.experts) + norms

    def attention(self, tokens: int) -> int:
        """A(T): forward attention a token over all layers, twice the pairs of a causal mask counted."""
        width = self.score_width + self.mixed_width
        if not self.windows:
            return 2 * self.layers * tokens * width
        return sum((_layer_attention(window, tokens, width) for window in self.windows), start=0)


def _layer_attention(window: int | None, tokens: int, width: int) -> int:
    """Return 2·T·width for a layer that sees all, 2·(2W − W·(W−1)/T)·width where a window W < T cuts it."""
    if window is None or window >= tokens:
        return 2 * tokens * width
    return round(Fraction(2 * width * (2 * window * tokens - window * (window - 1)), tokens))


def _first(config: Mapping[str, object], *names: str) -> int | None:
    """Return the first of these keys that holds a whole number."""
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def _needed(config: Mapping[str, object], *names: str) -> int:
    value = _first(config, *names)
    if value is None or value <= 0:
        raise UsageError(
            f"model config: no {' or '.join(names)}; give the model's own config.json as Hugging Face writes it"
        )
    return value


def from_config(config: Mapping[str, object]) -> Shape:
    """Return the sizes that a Hugging Face config names.

    Knows dense models, grouped keys, experts (mixtral, qwen, deepseek and kin), latent attention and windows. Raises
    UsageError when a size that cannot be assumed is missing.
    """
    text = config.get("text_config")
    if isinstance(text, dict):  # a model of several modes: the language part
        config = {**config, **text}
    kind = str(config.get("model_type", ""))
    hidden = _needed(config, "hidden_size", "n_embd", "d_model")
    layers = _needed(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    heads = _needed(config, "num_attention_heads", "n_head", "n_heads")
    mlp = _first(config, "intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size") or 4 * hidden
    experts = _first(config, "n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts") or 0
    expert_mlp = (_first(config, "moe_intermediate_size", "expert_ffn_hidden_size") or mlp) if experts else 0
    key_rank = _first(config, "kv_lora_rank") or 0
    tied = config.get("tie_word_embeddings")
    return Shape(
        layers=layers,
        hidden=hidden,
        heads=heads,
        key_heads=_key_heads(config, heads),
        head_width=_first(config, "head_dim", "kv_channels") or hidden // heads,
        mlp=mlp,
        vocabulary=_needed(config, "vocab_size"),
        gated=kind not in PLAIN_MLP,
        tied=tied if isinstance(tied, bool) else kind in TIED_BY_DEFAULT,
        positions=_learned_positions(config, kind),
        experts=experts,
        chosen=(_first(config, "num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_topk") or 1)
        if experts
        else 0,
        expert_mlp=expert_mlp,
        shared_mlp=_shared(config, expert_mlp) if experts else 0,
        dense_layers=_dense_layers(config, layers) if experts else 0,
        query_rank=(_first(config, "q_lora_rank") or 0) if key_rank else 0,
        key_rank=key_rank,
        plain_width=(_first(config, "qk_nope_head_dim") or 0) if key_rank else 0,
        rotary_width=(_first(config, "qk_rope_head_dim") or 0) if key_rank else 0,
        value_width=(_first(config, "v_head_dim") or 0) if key_rank else 0,
        predicting_layers=_first(config, "num_nextn_predict_layers", "mtp_num_layers") or 0,
        windows=_windows(config, kind, layers),
    )


def _key_heads(config: Mapping[str, object], heads: int) -> int:
    """Return G; falcon and bigcode say with a flag that all query heads share one key head."""
    stated = _first(config, "num_key_value_heads", "num_kv_heads")
    if config.get("multi_query") is True and not config.get("new_decoder_architecture"):
        return 1
    return stated or heads


def _learned_positions(config: Mapping[str, object], kind: str) -> int:
    if kind in {"gpt2", "gpt_neo", "gpt_bigcode", "opt", "bert", "roberta"}:
        return _first(config, "n_positions", "max_position_embeddings") or 0
    return _first(config, "n_positions") or 0


def _shared(config: Mapping[str, object], expert_mlp: int) -> int:
    width = _first(config, "shared_expert_intermediate_size", "moe_shared_expert_intermediate_size")
    if width is not None:
        return width
    return (_first(config, "n_shared_experts", "num_shared_experts") or 0) * expert_mlp


def _dense_layers(config: Mapping[str, object], layers: int) -> int:
    """Return how many layers of a model with experts have a dense MLP."""
    leading = min(_first(config, "first_k_dense_replace", "moe_layer_start_index") or 0, layers)
    listed = config.get("mlp_only_layers")
    only = {n for n in listed if isinstance(n, int) and 0 <= n < layers} if isinstance(listed, list) else set()
    every = max(_first(config, "decoder_sparse_step", "moe_layer_freq", "interleave_moe_layer_step") or 1, 1)
    pattern = config.get("moe_layer_freq")
    if isinstance(pattern, list) and len(pattern) == layers:
        return sum(1 for entry in pattern if entry == 0)
    offset = 0 if "moe_layer_freq" in config else 1  # qwen and llama4 count layers from 1, deepseek from 0
    sparse = [
        layer for layer in range(layers) if layer >= leading and layer not in only and (layer + offset) % every == 0
    ]
    return layers - len(sparse)


def _windows(config: Mapping[str, object], kind: str, layers: int) -> tuple[int | None, ...]:
    """Return the window of each layer; empty when all layers see all keys."""
    window = _first(config, "sliding_window", "window_size")
    if config.get("use_sliding_window") is False:
        window = None
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and len(kinds) == layers:
        named = {"sliding_attention": window, "chunked_attention": window, "linear_attention": 0}
        found = tuple(named.get(str(entry)) for entry in kinds)
        return found if any(entry is not None for entry in found) else ()
    if window is None or window <= 0:
        return ()
    pattern = _first(config, "sliding_window_pattern") or {"gemma2": 2, "gemma3": 6, "gemma3_text": 6}.get(kind)
    if pattern:  # every pattern-th layer sees all
        return tuple(None if (layer + 1) % pattern == 0 else window for layer in range(layers))
    first = _first(config, "max_window_layers") if "use_sliding_window" in config else 0
    return tuple(window if layer >= (first or 0) else None for layer in range(layers))


def load(path: Path) -> dict[str, object]:
    """Read a config.json. Raises UsageError, naming the file, when it is not a JSON object."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise UsageError(f"--model {path}: cannot be read as JSON ({problem}); give the model's config.json") from None
    if not isinstance(config, dict):
        raise UsageError(f"--model {path}: not a JSON object; give the model's config.json")
    return config


def _untied(shape: Shape) -> int:
    return 0 if shape.tied else shape.vocabulary * shape.hidden


def _matmul(shape: Shape, tokens: int, share: Fraction) -> Fraction:
    return 6 * shape.matmul_parameters + 3 * share * shape.attention(tokens)


def _megatron(shape: Shape, tokens: int) -> Fraction:
    norms = shape.layers * (shape.query_rank + shape.key_rank) if shape.key_rank else 0
    weights = shape.matmul_parameters - shape.expert_layers * shape.router + norms
    return 6 * weights + Fraction(3, 2) * shape.attention(tokens)


def _megatron_2021(shape: Shape, tokens: int) -> Fraction:
    inner = 1 + Fraction(tokens, 6 * shape.hidden)
    inner += Fraction(shape.vocabulary, 12 * shape.layers * shape.hidden)
    return 72 * shape.layers * shape.hidden**2 * inner


def _chinchilla(shape: Shape, tokens: int) -> Fraction:
    softmax = 3 * shape.layers * shape.heads * tokens
    weights = 2 * shape.vocabulary * shape.hidden + 2 * shape.matmul_parameters
    return Fraction(3 * (weights + shape.attention(tokens) + softmax))


_HALF: Final = Fraction(1, 2)
CONVENTIONS: Final[Mapping[str, Callable[[Shape, int], Fraction | int]]] = {
    "matmul_full": lambda s, t: _matmul(s, t, Fraction(1)),
    "matmul_causal": lambda s, t: _matmul(s, t, _HALF),
    "matmul_causal_exact": lambda s, t: _matmul(s, t, _HALF) + Fraction(3, 2) * (s.attention(t + 1) - s.attention(t)),
    "megatron_2026": _megatron,
    "6n_total": lambda s, _: 6 * s.parameters(),
    "6n_active": lambda s, _: 6 * s.parameters(active=True),
    "palm": lambda s, t: 6 * (s.parameters(active=True) - s.positions * s.hidden) + 3 * s.attention(t),
    "torchtitan": lambda s, t: 6 * (s.parameters(active=True) - _untied(s)) + 3 * s.attention(t),
    "llm_foundry": lambda s, t: 3 * (2 * (s.parameters(active=True) - _untied(s)) + 4 * s.layers * s.hidden * t),
    "hf_trainer": lambda s, _: 6 * (s.parameters() - (s.vocabulary + s.positions) * s.hidden),
    "verl": lambda s, t: _matmul(s, t, _HALF) + 6 * s.vocabulary * s.hidden,
    "chinchilla": _chinchilla,
    "megatron_2021_eq3": _megatron_2021,
    "flash_hfu_full": lambda s, t: 6 * s.matmul_parameters + Fraction(7, 2) * s.attention(t),
    "full_recompute_hfu_causal": lambda s, t: (
        8 * s.matmul_parameters - 2 * s.vocabulary * s.hidden + Fraction(9, 4) * s.attention(t)
    ),
}
"""FLOPs a token of training by convention; formulas and sources in the module's docstring."""

_PREDICTING: Final[Mapping[str, Fraction]] = {
    "matmul_full": Fraction(1),
    "matmul_causal": _HALF,
    "matmul_causal_exact": _HALF,
    "megatron_2026": _HALF,
}
"""Conventions that say what a predicting layer (MTP) costs, with the share of attention they credit."""


def _predicting(shape: Shape, tokens: int, convention: str) -> Fraction:
    """Return what one layer that predicts a further token adds."""
    d = shape.hidden
    mlp = shape.experts_weights(shape.chosen) if shape.experts else shape.matrices * d * shape.mlp
    weights = shape.attention_weights + mlp + 2 * d * d + shape.vocabulary * d
    if convention == "megatron_2026":
        weights += shape.query_rank + shape.key_rank + 3 * d - (shape.router if shape.experts else 0)
    return 6 * weights + 6 * _PREDICTING[convention] * tokens * (shape.score_width + shape.mixed_width)


def flops_per_token(shape: Shape, tokens: int, convention: str = "matmul_causal", *, predicting: bool = False) -> int:
    """Return the FLOPs of forward and backward of one token in a sequence of `tokens`.

    `predicting` adds the shape's MTP layers. Raises UsageError for an unknown convention, or for one that does not
    say what an MTP layer costs.
    """
    if convention not in CONVENTIONS:
        raise UsageError(f"convention {convention}: not known; known are {', '.join(CONVENTIONS)}")
    total = Fraction(CONVENTIONS[convention](shape, tokens))
    if predicting and shape.predicting_layers:
        if convention not in _PREDICTING:
            raise UsageError(f"convention {convention}: does not say what layers that predict further tokens cost")
        total += shape.predicting_layers * _predicting(shape, tokens, convention)
    return round(total)
