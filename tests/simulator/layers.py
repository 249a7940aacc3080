"""What a transformer layer launches: operators with shapes, kernels with durations and FLOPs.

A multiply-accumulate is 2 FLOPs. Attention, full: forward 4 B H S_q S_k D; backward executes 2.5 times that (five
matrix products), of which 2 times count as model FLOPs.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from simulator.worker import C10, COMPUTE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from simulator.worker import Worker

GEMM: Final = {
    "bf16": "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1_execute_segment_k_off"
    "_kernel__5x_cublas",
    "fp16": "sm90_xmma_gemm_f16f16_f16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1_execute_segment_k_off"
    "_kernel__5x_cublas",
    "fp8": "sm90_xmma_gemm_e4m3bf16_e4m3f32_f32_tn_n_tilesize128x128x128_warpgroupsize1x1x1_execute_segment_k_off"
    "_kernel__5x_cublas",
    "fp32": "sm80_xmma_gemm_f32f32_f32f32_f32_tn_n_tilesize128x128x8_stage3_warpsize2x2x1_ffma_aligna4_alignc4_execute"
    "_kernel__5x_cublas",
}
FP8: Final = "c10::Float8_e4m3fn"
FLASH_FORWARD: Final = (
    "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 128, 4, false, false, cutlass::bfloat16_t, "
    "Flash_kernel_traits<64, 128, 128, 4, cutlass::bfloat16_t> >, false, true, false, false, true, true, false>"
    "(pytorch_flash::Flash_fwd_params)"
)
FLASH_BACKWARD: Final = (
    "void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<Flash_bwd_kernel_traits<64, 128, 128, 8, 4, 4, "
    "4, false, false, cutlass::bfloat16_t, Flash_kernel_traits<64, 128, 128, 8, cutlass::bfloat16_t> >, false, true, "
    "false, false, true, true>(pytorch_flash::Flash_bwd_params)"
)
NORM: Final = (
    "void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<c10::BFloat16, float>"
    "(int, float, c10::BFloat16 const*, c10::BFloat16*)"
)
NORM_BACKWARD: Final = (
    "void at::native::(anonymous namespace)::layer_norm_grad_input_kernel_vectorized<c10::BFloat16, float>"
    "(c10::BFloat16 const*, c10::BFloat16*, int)"
)
GELU: Final = (
    "void at::native::vectorized_elementwise_kernel<4, at::native::GeluCUDAKernelImpl(at::TensorIteratorBase&, "
    "at::native::GeluType)::{lambda()#2}::operator()() const, at::detail::Array<char*, 2> >(int)"
)
ADD: Final = (
    "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<c10::BFloat16>, "
    "at::detail::Array<char*, 3> >(int, at::native::CUDAFunctor_add<c10::BFloat16>, at::detail::Array<char*, 3>)"
)
EMBEDDING: Final = (
    "void at::native::(anonymous namespace)::indexSelectLargeIndex<c10::BFloat16, long, unsigned int, 2, 2, -2, true>"
    "(at::cuda::detail::TensorInfo<c10::BFloat16, unsigned int>)"
)
EMBEDDING_BACKWARD: Final = (
    "void at::native::(anonymous namespace)::embedding_backward_kernel<c10::BFloat16, float, long>(long const*, int)"
)
SOFTMAX: Final = (
    "void at::native::(anonymous namespace)::cunn_SoftMaxForward<8, c10::BFloat16, float, c10::BFloat16, "
    "at::native::LogSoftMaxForwardEpilogue>(c10::BFloat16*, c10::BFloat16 const*, int)"
)
SOFTMAX_BACKWARD: Final = (
    "void at::native::(anonymous namespace)::cunn_SoftMaxBackward<8, c10::BFloat16, float, c10::BFloat16, "
    "at::native::LogSoftMaxBackwardEpilogue>(c10::BFloat16*, c10::BFloat16 const*, int)"
)
_FUNCTIONS: Final = {
    "tp": ("_ReduceFromModelParallelRegion", "_CopyToModelParallelRegionBackward"),
    "cp": ("_AllGatherKeyValue", "_AllGatherKeyValueBackward"),
    "ep": ("_AllToAll", "_AllToAllBackward"),
}
"""Names of the autograd functions around a layer's collectives, forward and backward (as in Megatron-LM)."""


@dataclass(frozen=True)
class Sizes:
    """Shapes of one micro-batch on one rank."""

    batch: int
    sequence: int
    """Tokens of a sequence on this rank (shared out over cp)."""
    whole_sequence: int
    hidden: int
    ffn: int
    heads: int
    """Heads on this rank (shared out over tp)."""
    head_dim: int
    vocab: int

    @property
    def tokens(self) -> int:
        """Tokens of the micro-batch on this rank."""
        return self.batch * self.sequence


class Layers:
    """Launches forward and backward of layers, embedding and head on one worker."""

    def __init__(self, worker: Worker) -> None:
        self.w = worker
        self.c = worker.config
        self.type = C10[worker.dtype]
        self._sequence = 0

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer on this rank."""
        c = self.c
        return (4 * c.hidden * c.hidden + 2 * c.hidden * c.ffn) // c.tp

    # ---- forward ----

    def forward(self, s: Sizes, *, recomputed: bool = False) -> None:
        """Launch one layer: attention and MLP, with the collectives of tp, cp and ep."""
        c, inner = self.c, s.heads * s.head_dim
        self._pointwise("aten::native_layer_norm", NORM, s.tokens * s.hidden)
        self._linear(s.tokens, s.hidden, 3 * inner, model=not recomputed)
        self._collective("cp", "all_gather", 2 * s.tokens * inner, 2 * s.tokens * inner * c.cp)
        self._attention(s, model=not recomputed)
        self._linear(s.tokens, inner, s.hidden, model=not recomputed)
        self._collective("tp", "all_reduce", s.tokens * s.hidden, s.tokens * s.hidden)
        self._pointwise("aten::add", ADD, s.tokens * s.hidden)
        self._collective("ep", "all_to_all", s.tokens * s.hidden, s.tokens * s.hidden)
        self._linear(s.tokens, s.hidden, s.ffn // c.tp, model=not recomputed)
        self._pointwise("aten::gelu", GELU, s.tokens * s.ffn // c.tp)
        if recomputed and c.recompute == "early_stop":
            shapes = [[s.tokens, s.ffn // c.tp], [s.ffn // c.tp, s.hidden]]
            with self.w.op("aten::mm", shapes, [self.type, self.type], sequence=self._forward_sequence()):
                return
        self._linear(s.tokens, s.ffn // c.tp, s.hidden, model=not recomputed)
        self._collective("ep", "all_to_all", s.tokens * s.hidden, s.tokens * s.hidden)
        self._collective("tp", "all_reduce", s.tokens * s.hidden, s.tokens * s.hidden)
        self._pointwise("aten::add", ADD, s.tokens * s.hidden)

    def embed(self, s: Sizes) -> None:
        """Launch the embedding look-up."""
        dims: list[object] = [[s.vocab, s.hidden], [s.batch, s.sequence], [], [], []]
        with self.w.op(
            "aten::embedding",
            dims,
            [self.type, "long int", "Scalar", "Scalar", "Scalar"],
            ["", "", "-1", "False", "False"],
        ):
            self.w.launch(EMBEDDING, self._bytes_ns(2 * s.tokens * s.hidden), tags={"op_name": "aten::embedding"})

    def loss(self, s: Sizes) -> None:
        """Launch the logits and the loss."""
        self._linear(s.tokens, s.hidden, s.vocab // self.c.tp, model=True)
        self._pointwise("aten::_log_softmax", SOFTMAX, s.tokens * s.vocab // self.c.tp)

    # ---- backward ----

    def backward(self, s: Sizes, part: str) -> None:
        """Launch one layer's gradients. `part`: "B" of the input, "W" of the weights, "BW" both."""
        if self.c.recompute and "B" in part:
            with self._node("CheckpointFunctionBackward"):
                with self.w.tagged(phase="recompute"):
                    self.forward(s, recomputed=True)
                self._gradients(s, part)
        else:
            self._gradients(s, part)

    def _gradients(self, s: Sizes, part: str) -> None:
        c, inner = self.c, s.heads * s.head_dim
        full = s.tokens * s.hidden
        if "B" in part:
            self._pointwise_backward("AddBackward0", "aten::add", ADD, full)
            self._collective_backward("ep", "all_to_all", full, full)
        self._linear_backward(s.tokens, s.ffn // c.tp, s.hidden, part)
        if "B" in part:
            self._pointwise_backward("GeluBackward0", "aten::gelu_backward", GELU, s.tokens * s.ffn // c.tp)
        self._linear_backward(s.tokens, s.hidden, s.ffn // c.tp, part)
        if "B" in part:
            self._collective_backward("tp", "all_reduce", full, full)
            self._collective_backward("ep", "all_to_all", full, full)
        self._linear_backward(s.tokens, inner, s.hidden, part)
        if "B" in part:
            self._attention_backward(s)
            self._collective_backward("cp", "reduce_scatter", 2 * s.tokens * inner * c.cp, 2 * s.tokens * inner)
        self._linear_backward(s.tokens, s.hidden, 3 * inner, part)
        if "B" in part:
            self._collective_backward("tp", "all_reduce", full, full)
            self._pointwise_backward(
                "NativeLayerNormBackward0", "aten::native_layer_norm_backward", NORM_BACKWARD, full
            )

    def embed_backward(self, s: Sizes) -> None:
        """Launch the gradient of the embedding."""
        self._pointwise_backward(
            "EmbeddingBackward0", "aten::embedding_dense_backward", EMBEDDING_BACKWARD, s.tokens * s.hidden
        )

    def loss_backward(self, s: Sizes, part: str) -> None:
        """Launch the gradients of the loss and the logits."""
        if "B" in part:
            self._pointwise_backward(
                "LogSoftmaxBackward0",
                "aten::_log_softmax_backward_data",
                SOFTMAX_BACKWARD,
                s.tokens * s.vocab // self.c.tp,
            )
        self._linear_backward(s.tokens, s.hidden, s.vocab // self.c.tp, part)

    # ---- pieces ----

    def _bytes_ns(self, elements: int) -> float:
        return elements * self.w.element / self.c.memory_bytes_per_ns

    def _collective(self, key: str, op: str, elements_in: int, elements_out: int) -> None:
        """Communicate in a forward: an autograd function of the framework around the collective."""
        if key in self.w.groups:
            with self.w.op(_FUNCTIONS[key][0], sequence=self._forward_sequence()):
                self._communicate(key, op, elements_in, elements_out)

    def _collective_backward(self, key: str, op: str, elements_in: int, elements_out: int) -> None:
        """Communicate in a backward."""
        if key in self.w.groups:
            with self._node(_FUNCTIONS[key][1]):
                self._communicate(key, op, elements_in, elements_out)

    def _communicate(self, key: str, op: str, elements_in: int, elements_out: int) -> None:
        self.w.stream_waits(COMPUTE, self.w.collective(key, op, elements_in, elements_out))

    def _forward_sequence(self) -> tuple[int, int]:
        self._sequence += 1
        return self._sequence, 0

    @contextmanager
    def _node(self, name: str) -> Iterator[None]:
        sequence = (self._sequence, 1)
        with (
            self.w.op(f"autograd::engine::evaluate_function: {name}", sequence=sequence),
            self.w.op(name, sequence=sequence),
        ):
            yield

    def _pointwise(self, op: str, kernel: str, elements: int) -> None:
        with self.w.op(op, [[elements]], sequence=self._forward_sequence()):
            self.w.launch(kernel, self._bytes_ns(3 * elements), tags={"op_name": op})

    def _pointwise_backward(self, node: str, op: str, kernel: str, elements: int) -> None:
        with self._node(node), self.w.op(op, [[elements]]):
            self.w.launch(kernel, self._bytes_ns(3 * elements), tags={"op_name": op})

    def _gemm(self, m: int, k: int, n: int, op: str, *, model: bool) -> None:
        flops = 2 * m * k * n
        dtype = "fp8" if self.c.fp8_linears else self.w.dtype
        tags = {"op_name": op, "model_flops": flops if model else 0, "hardware_flops": flops, "dtype": dtype}
        self.w.launch(GEMM[dtype], flops / self.c.gemm_flops_per_ns, tags=tags)

    def _scaled(self, m: int, k: int, n: int, *, model: bool, sequence: tuple[int, int] | None = None) -> None:
        scalars = ["", "", "", "", "", "", "15", "True"]
        types = [FP8, FP8, "float", "float", "", "", "Scalar", "Scalar"]
        dims: list[object] = [[m, k], [k, n], [1], [1], [], [], [], []]
        with self.w.op("aten::_scaled_mm", dims, types, scalars, sequence):
            self._gemm(m, k, n, "aten::_scaled_mm", model=model)

    def _product(self, m: int, k: int, n: int) -> None:
        """Launch one product of a backward."""
        if self.c.fp8_linears:
            self._scaled(m, k, n, model=True)
            return
        with self.w.op("aten::mm", [[m, k], [k, n]], [self.type, self.type]):
            self._gemm(m, k, n, "aten::mm", model=True)

    def _linear(self, m: int, k: int, n: int, *, model: bool) -> None:
        t = self.type
        if self.c.fp8_linears:
            with self.w.op("aten::linear", [[m, k], [n, k], []], [t, t, ""]):
                self._scaled(m, k, n, model=model, sequence=self._forward_sequence())
            return
        if self.c.bias:
            with (
                self.w.op("aten::linear", [[m, k], [n, k], [n]], [t, t, t]),
                self.w.op(
                    "aten::addmm",
                    [[n], [m, k], [k, n], [], []],
                    [t, t, t, "Scalar", "Scalar"],
                    ["", "", "", "1", "1"],
                    self._forward_sequence(),
                ),
            ):
                self._gemm(m, k, n, "aten::addmm", model=model)
            return
        with (
            self.w.op("aten::linear", [[m, k], [n, k], []], [t, t, ""]),
            self.w.op("aten::matmul", [[m, k], [k, n]], [t, t]),
            self.w.op("aten::mm", [[m, k], [k, n]], [t, t], sequence=self._forward_sequence()),
        ):
            self._gemm(m, k, n, "aten::mm", model=model)

    def _linear_backward(self, m: int, k: int, n: int, part: str) -> None:
        with self._node("AddmmBackward0" if self.c.bias else "MmBackward0"):
            if "B" in part:
                self._product(m, n, k)
            if "W" in part:
                self._product(n, m, k)

    def _attention_flops(self, s: Sizes) -> int:
        return 4 * s.batch * s.heads * s.sequence * s.whole_sequence * s.head_dim

    def _attention(self, s: Sizes, *, model: bool) -> None:
        flops = self._attention_flops(s)
        t = self.type
        q = [s.batch, s.heads, s.sequence, s.head_dim]
        k = [s.batch, s.heads, s.whole_sequence, s.head_dim]
        op = "aten::_scaled_dot_product_flash_attention"
        tags = {"op_name": op, "model_flops": flops if model else 0, "hardware_flops": flops, "attention": True,
                "dtype": self.w.dtype}  # fmt: skip
        with (
            self.w.op(
                "aten::scaled_dot_product_attention",
                [q, k, k, [], [], [], [], []],
                [t, t, t, "", "Scalar", "Scalar", "", "Scalar"],
                ["", "", "", "", "0.", "True", "", "False"],
            ),
            self.w.op(
                op,
                [q, k, k, [], [], [], []],
                [t, t, t, "Scalar", "Scalar", "Scalar", ""],
                ["", "", "", "0.", "True", "False", ""],
                self._forward_sequence(),
            ),
        ):
            self.w.launch(FLASH_FORWARD, flops / 2 / self.c.attention_flops_per_ns, tags=tags)

    def _attention_backward(self, s: Sizes) -> None:
        flops = self._attention_flops(s)
        t = self.type
        q = [s.batch, s.heads, s.sequence, s.head_dim]
        k = [s.batch, s.heads, s.whole_sequence, s.head_dim]
        op = "aten::_scaled_dot_product_flash_attention_backward"
        tags = {"op_name": op, "model_flops": 2 * flops, "hardware_flops": 5 * flops // 2, "attention": True,
                "dtype": self.w.dtype}  # fmt: skip
        dims = [q, q, k, k, q, [s.batch, s.heads, s.sequence], [], [], [], [], [], [], [], [], []]
        types = [t, t, t, t, t, "float", "", "", "Scalar", "Scalar", "Scalar", "Scalar", "", "", ""]
        with (
            self._node("ScaledDotProductFlashAttentionBackward0"),
            self.w.op(op, dims, types, [*[""] * 8, str(s.sequence), str(s.whole_sequence), "0.", "True", "", "", ""]),
        ):
            self.w.launch(FLASH_BACKWARD, 5 * flops / 4 / self.c.attention_flops_per_ns, tags=tags)
