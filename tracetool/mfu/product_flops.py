"""FLOPs of matrix products and convolutions from the sizes of their operands; formulas in `tracetool.mfu.flops`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tracetool.mfu.op_arguments import DTYPE_BYTES, SCALAR_TYPE_BYTES, Arguments, Dims, Work

if TYPE_CHECKING:
    from tracetool.mfu.op_arguments import Handler


def matmul(
    args: Arguments, a: Dims | None, b: Dims | None, at: int, *, out_bytes: int | None = None, family: str = "matmul"
) -> Work | None:
    """2·batch·M·K·N for [..., M, K] × [..., K, N] whose leading sizes are equal."""
    dtype = args.dtype(at)
    if a is None or b is None or dtype is None or len(a) != len(b) or a[:-2] != b[:-2] or a[-1] != b[-2]:
        return None
    batch, m, k, n = math.prod(a[:-2]), a[-2], a[-1], b[-1]
    return product(dtype, batch, m, k, n, out_bytes=out_bytes, family=family)


def product(
    dtype: str, batch: int, m: int, k: int, n: int, *, out_bytes: int | None = None, family: str = "matmul"
) -> Work:
    """Return the work of `batch` products [M,K] × [K,N]; `k` counts recorded elements (pairs for fp4)."""
    size = DTYPE_BYTES[dtype]
    flops = 2 * batch * m * n * k * (2 if dtype == "fp4" else 1)
    result = out_bytes or (size if size > 1 else 2)
    moved = batch * (size * (m * k + k * n) + result * m * n)
    shape = f"{m}×{k}×{n}" if batch == 1 else f"{batch}×[{m}×{k}×{n}]"
    return Work(family, dtype, shape, flops, flops, flops, flops, moved)


def matrices(a: int, b: int, rank: int) -> Handler:
    """Handle a product of the two tensors at these positions, each of `rank` dimensions."""

    def handle(args: Arguments) -> Work | None:
        left, right = args.size(a), args.size(b)
        if left is None or right is None or len(left) != rank or len(right) != rank:
            return None
        return matmul(args, left, right, a)

    return handle


def scaled(out_dtype: int) -> Handler:
    """Handle a scaled product; the number format is that of the first operand, the result has its own."""

    def handle(args: Arguments) -> Work | None:
        left, right = args.size(0), args.size(1)
        if left is None or right is None or len(left) != 2 or len(right) != 2:  # noqa: PLR2004 - matrices
            return None
        return matmul(args, left, right, 0, out_bytes=SCALAR_TYPE_BYTES.get(args.integer(out_dtype) or -1))

    return handle


def vector(a: int, b: int) -> Handler:
    """Handle a product with a vector: [M,K]·[K] or [K]·[K]."""

    def handle(args: Arguments) -> Work | None:
        left, right = args.size(a), args.size(b)
        if left is None or right is None or len(right) != 1:
            return None
        return matmul(args, (1, *left)[-2:], (*right, 1), a)

    return handle


def linear(args: Arguments) -> Work | None:
    """[..., K] × [N, K] transposed."""
    given, weight, dtype = args.size(0), args.size(1), args.dtype(0)
    if given is None or weight is None or dtype is None or len(weight) != 2 or given[-1] != weight[1]:  # noqa: PLR2004
        return None
    return product(dtype, 1, math.prod(given[:-1]), given[-1], weight[0])


def broadcast_matmul(args: Arguments) -> Work | None:
    """torch.matmul: vectors become matrices, leading sizes broadcast."""
    left, right, dtype = args.size(0), args.size(1), args.dtype(0)
    if left is None or right is None or dtype is None:
        return None
    a = (1, *left) if len(left) == 1 else left
    b = (*right, 1) if len(right) == 1 else right
    if a[-1] != b[-2]:
        return None
    if len(b) == 2:  # noqa: PLR2004 - one matrix for all rows: the batch folds into the rows
        return product(dtype, 1, math.prod(a[:-1]), a[-1], b[-1])
    width = max(len(a), len(b)) - 2
    lead_a, lead_b = ((1,) * (width - len(d) + 2) + d[:-2] for d in (a, b))
    if any(x != y and 1 not in (x, y) for x, y in zip(lead_a, lead_b, strict=True)):
        return None
    batch = math.prod(max(x, y) if 0 not in (x, y) else 0 for x, y in zip(lead_a, lead_b, strict=True))
    return product(dtype, batch, a[-2], a[-1], b[-1])


def grouped(offsets: int) -> Handler:
    """Handle products of groups of rows or columns: the sum does not depend on how the groups are balanced.

    [M,K] × [E,K,N]: rows are split; [E,M,K] × [K,N]: columns are split; [M,K] × [K,N]: the inner size is split
    (gradients of the experts' weights, a result for each of the [E] offsets); [E,M,K] × [E,K,N]: plain batches.
    """

    def handle(args: Arguments) -> Work | None:
        return _grouped(args, args.size(offsets))

    return handle


def _grouped(args: Arguments, offsets: Dims | None) -> Work | None:
    a, b, dtype = args.size(0), args.size(1), args.dtype(0)
    if a is None or b is None or dtype is None or not {len(a), len(b)} <= {2, 3} or a[-1] != b[-2]:
        return None
    if len(a) == len(b) == 3 and a[0] != b[0]:  # noqa: PLR2004 - two batches of matrices
        return None
    batch = a[0] if len(a) == len(b) == 3 else 1  # noqa: PLR2004 - same
    work = product(dtype, batch, a[-2], a[-1], b[-1], family="grouped_matmul")
    experts = a[0] if len(a) == 3 else b[0] if len(b) == 3 else offsets[0] if offsets else 1  # noqa: PLR2004 - same
    if batch == 1 and experts > 1:
        if len(a) == len(b):  # the inner size is split: a result each, of 16 bits or more
            extra = (experts - 1) * a[-2] * b[-1] * max(2, DTYPE_BYTES[dtype])
        else:
            stacked = a if len(a) == 3 else b  # noqa: PLR2004 - same
            extra = (experts - 1) * stacked[-2] * stacked[-1] * DTYPE_BYTES[dtype]
        return replace(work, moved_bytes=work.moved_bytes + extra, shape=f"{work.shape}, {experts} groups")
    return work


def transposed(a: int, b: int) -> Handler:
    """Handle a product with a weight kept as [N, K]."""

    def handle(args: Arguments) -> Work | None:
        left, right, dtype = args.size(a), args.size(b), args.dtype(a)
        if left is None or right is None or dtype is None or len(right) != 2 or left[-1] != right[1]:  # noqa: PLR2004
            return None
        return product(dtype, 1, math.prod(left[:-1]), left[-1], right[0])

    return handle


def by_sizes(a: int, b: int, out: int) -> Handler:
    """Handle a product of unknown layout: |A|·|B|·|D| = (M·N·K)², whatever is transposed."""

    def handle(args: Arguments) -> Work | None:
        left, right, result, dtype = args.size(a), args.size(b), args.size(out), args.dtype(a)
        if left is None or right is None or result is None or dtype is None:
            return None
        sizes = [math.prod(d) for d in (left, right, result)]
        volume = math.isqrt(math.prod(sizes))
        if volume == 0 or volume * volume != math.prod(sizes) or any(volume % size for size in sizes):
            return None
        n, m, k = (volume // size for size in sizes)
        return product(dtype, 1, m, k, n)

    return handle


def linear_layer(weights: int) -> Handler:
    """Handle a fused linear layer: rows × as many weights [N, K] as it has, each fed by the one before.

    Biases and norms are vectors, so the tensors of two sizes and more are the input and the weights; where the weight
    stands before a matrix of inputs, the product is the same. A gated layer halves its width between its weights.
    """

    def handle(args: Arguments) -> Work | None:
        found = args.tensors()
        if len(found) < 1 + weights:
            return None
        (at, given), *rest = found
        dtype = args.dtype(at)
        if dtype is None:
            return None
        if len(rest[0][1]) > 2:  # noqa: PLR2004 - a weight, then inputs [..., K]
            rest[0], given = (at, given), rest[0][1]
        rows, width = math.prod(given[:-1]), given[-1]
        total: Work | None = None
        for _, weight in rest[:weights]:
            if len(weight) != 2 or weight[1] not in (width, width // 2):  # noqa: PLR2004 - a matrix
                return None
            work = product(dtype, 1, rows, weight[1], weight[0])
            total = work if total is None else _sum(total, work)
            width = weight[0]
        return total

    return handle


def grouped_layer(args: Arguments) -> Work | None:
    """Rows split over many equal weights [N, K]: 2·rows·N·K in all."""
    found = args.tensors()
    if len(found) < 2:  # noqa: PLR2004 - an input and a weight
        return None
    (at, rows), (_, weight), *more = found
    dtype = args.dtype(at)
    if dtype is None or len(weight) != 2 or rows[-1] != weight[1]:  # noqa: PLR2004 - a matrix
        return None
    work = product(dtype, 1, math.prod(rows[:-1]), rows[-1], weight[0], family="grouped_matmul")
    extra = sum(math.prod(other) for _, other in more if other == weight) * DTYPE_BYTES[dtype]
    return replace(work, moved_bytes=work.moved_bytes + extra)


def _sum(a: Work, b: Work) -> Work:
    """Return the work of doing both, named after the first."""
    return replace(
        a,
        shape=f"{a.shape} + {b.shape}",
        full=a.full + b.full,
        causal=a.causal + b.causal,
        model_full=a.model_full + b.model_full,
        model_causal=a.model_causal + b.model_causal,
        moved_bytes=a.moved_bytes + b.moved_bytes,
    )


# ---- convolutions ----


@dataclass(frozen=True)
class Convolution:
    """Positions of a forward convolution's arguments; None where the operator has none."""

    stride: int
    padding: int
    dilation: int
    groups: int
    transposed: int | None = None
    output_padding: int | None = None

    def __call__(self, args: Arguments) -> Work | None:
        """Count one call; None when a stride or padding was not recorded or channels do not fit."""
        given, weight, dtype = args.size(0), args.size(1), args.dtype(0)
        groups = args.integer(self.groups)
        transposed = False if self.transposed is None else args.flag(self.transposed)
        if given is None or weight is None or dtype is None or groups is None or groups < 1 or transposed is None:
            return None
        if len(given) == len(weight) - 1:  # without a batch
            given = (1, *given)
        if len(given) != len(weight) or given[1] != (weight[0] if transposed else weight[1] * groups):
            return None
        out = self._out(args, given[2:], weight[2:], transposed=transposed)
        if not out or any(size < 1 for size in out):
            return None
        flops = 2 * given[0] * math.prod(given[2:] if transposed else out) * math.prod(weight)
        result = given[0] * (weight[1] * groups if transposed else weight[0]) * math.prod(out)
        moved = DTYPE_BYTES[dtype] * (math.prod(given) + math.prod(weight) + result)
        return Work("convolution", dtype, _conv_shape(given, weight, out), flops, flops, flops, flops, moved)

    def _out(self, args: Arguments, given: Dims, kernel: Dims, *, transposed: bool) -> Dims | None:
        """Return the spatial sizes of the result."""
        rules = [_spread(args.integers(at), len(kernel)) for at in (self.stride, self.padding, self.dilation)]
        strides, paddings, dilations = rules
        if strides is None or paddings is None or dilations is None or min(strides, default=0) < 1:
            return None
        if not transposed:
            return tuple(
                (size + 2 * padding - dilation * (width - 1) - 1) // stride + 1
                for size, width, stride, padding, dilation in zip(
                    given, kernel, strides, paddings, dilations, strict=True
                )
            )
        recorded = None if self.output_padding is None else args.integers(self.output_padding)
        more = _spread(recorded or (0,), len(kernel)) or (0,) * len(kernel)
        return tuple(
            (size - 1) * stride - 2 * padding + dilation * (width - 1) + extra + 1
            for size, width, stride, padding, dilation, extra in zip(
                given, kernel, strides, paddings, dilations, more, strict=True
            )
        )


def _spread(values: Dims | None, space: int) -> Dims | None:
    """Return one value for each spatial size; a single value holds for all."""
    if values is None or len(values) not in (1, space):
        return None
    return values * space if len(values) == 1 else values


def _conv_shape(given: Dims, weight: Dims, out: Dims) -> str:
    """Return `input * kernel → output` for readers."""
    spelled = ["×".join(map(str, size)) for size in (given, weight, out)]
    return f"{spelled[0]} * {spelled[1]} → {spelled[2]}"


def convolution_backward(args: Arguments) -> Work | None:
    """Count one forward for each requested gradient of input and weight; the bias' costs nothing."""
    grad, given, weight, dtype = args.size(0), args.size(1), args.size(2), args.dtype(0)
    transposed, wanted = args.flag(7), args.flags(10)
    if grad is None or given is None or weight is None or dtype is None or transposed is None or wanted is None:
        return None
    if len(weight) < 3 or not len(grad) == len(given) == len(weight) or grad[0] != given[0]:  # noqa: PLR2004
        return None
    places = math.prod((given if transposed else grad)[2:])
    once = 2 * given[0] * places * math.prod(weight)
    gradients = sum(wanted[:2])
    sizes = math.prod(grad) + math.prod(given) + math.prod(weight)
    moved = DTYPE_BYTES[dtype] * sizes * gradients
    flops = once * gradients
    return Work(
        "convolution", dtype, _conv_shape(given, weight, grad[2:]), flops, flops, flops, flops, moved, backward=True
    )
