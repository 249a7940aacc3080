"""FLOPs of attention from the sizes of query, key and value; formulas in `tracetool.flops`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracetool.op_arguments import ALIGNMENT, DTYPE_BYTES, MASK, VARLEN, Arguments, Dims, Work

if TYPE_CHECKING:
    from tracetool.op_arguments import Handler


@dataclass(frozen=True)
class Attention:
    """Positions of an attention's arguments.

    `q`: the query, followed by key and value. `layout`: order of the sizes, bhsd or bshd; a varlen call has
    [tokens, heads, width] and its longest lengths at `longest`. `causal`: the flag, or a list to search for the first
    boolean; `mask_type`: 1 is causal from the first key, 2 from the last. `mask`: a mask or bias tensor.
    """

    q: int
    layout: str
    causal: tuple[int, ...] = ()
    mask: int | None = None
    mask_type: int | None = None
    lengths: int | None = None
    longest: tuple[int, int] | None = None
    backward: bool = False

    def __call__(self, args: Arguments) -> Work | None:
        """Count one call; None when the sizes contradict each other."""
        query, key, value = (args.size(self.q + offset) for offset in range(3))
        dtype = args.dtype(self.q)
        if query is None or key is None or value is None or dtype is None:
            return None
        sizes = self._sizes(args, query, key, value)
        if sizes is None:
            return None
        causal, flags = self._mask(args)
        if sizes.varlen:
            flags = (*flags, VARLEN)
        if causal and sizes.queries != sizes.keys and not sizes.varlen:
            flags = (*flags, ALIGNMENT)
        return _attention_work(sizes, dtype, causal=causal, flags=flags, backward=self.backward)

    def _mask(self, args: Arguments) -> tuple[str, tuple[str, ...]]:
        """Return which causal mask is on (empty: none) and what is not known about it."""
        unknown = (MASK,) if self.mask is not None and args.size(self.mask) is not None else ()
        if self.mask_type is not None:
            kind = args.integer(self.mask_type)
            return {1: "first", 2: "last"}.get(kind or 0, ""), unknown if kind is not None else (MASK,)
        found = next((flag for at in self.causal if (flag := args.flag(at)) is not None), None)
        return ("last" if found else ""), (unknown if found is not None else (MASK,))

    def _sizes(self, args: Arguments, query: Dims, key: Dims, value: Dims) -> _AttentionSizes | None:
        if not len(query) == len(key) == len(value):
            return None
        ragged = self.lengths is not None and args.size(self.lengths) is not None
        if len(query) == 3 and (ragged or self.longest is not None):  # noqa: PLR2004 - [tokens, heads, width]
            return self._ragged(args, query, key, value)
        if ragged and len(query) == 4 and query[0] == 1:  # noqa: PLR2004 - the same with a batch of one before it
            return self._ragged(args, query[1:], key[1:], value[1:])
        if len(query) == 3:  # noqa: PLR2004 - heads folded into the batch, or no batch
            query, key, value = ((1, *size) for size in (query, key, value))
        if len(query) != 4:  # noqa: PLR2004 - batch, heads, tokens, width
            return None
        heads, tokens = (1, 2) if self.layout == "bhsd" else (2, 1)
        if self.layout == "sbhd":
            query, key, value = ((size[1], size[0], *size[2:]) for size in (query, key, value))
        return _checked(
            _AttentionSizes(
                batch=query[0], heads=query[heads], groups=key[heads], queries=query[tokens], keys=key[tokens],
                width=query[3], value_width=value[3],
            ),
            same=query[0] == key[0] == value[0] and key[tokens] == value[tokens] and query[3] == key[3],
        )  # fmt: skip

    def _ragged(self, args: Arguments, query: Dims, key: Dims, value: Dims) -> _AttentionSizes | None:
        longest = [args.integer(at) for at in self.longest or ()]
        keys = longest[1] if len(longest) > 1 and longest[1] else key[0]
        return _checked(
            _AttentionSizes(
                batch=1, heads=query[1], groups=key[1], queries=query[0], keys=min(keys, key[0]),
                width=query[2], value_width=value[2], varlen=True, stored_keys=key[0],
            ),
            same=key[0] == value[0] and query[2] == key[2],
        )  # fmt: skip


@dataclass(frozen=True)
class _AttentionSizes:
    """Sizes of one attention call; with `varlen`, `keys` is the most that any query can see."""

    batch: int
    heads: int
    groups: int
    queries: int
    keys: int
    width: int
    value_width: int
    varlen: bool = False
    stored_keys: int | None = None


def _checked(sizes: _AttentionSizes, *, same: bool) -> _AttentionSizes | None:
    """Return the sizes unless tensors contradict each other: query heads are a multiple of key heads."""
    if not same or sizes.groups < 1 or sizes.heads % sizes.groups:
        return None
    return sizes


def causal_pairs(queries: int, keys: int, *, from_last: bool = True) -> int:
    """Return how many (query, key) pairs a causal mask keeps.

    The diagonal ends at the last key (`from_last`) or begins at the first. Counted pair by pair, the diagonal itself
    included; for the usual half of S² of equal lengths see `Work.causal`.
    """
    if from_last:
        if queries <= keys:
            return queries * keys - queries * (queries - 1) // 2
        return keys * (keys + 1) // 2
    seen = min(queries, keys)
    return seen * (seen + 1) // 2 + (queries - seen) * keys


def _attention_work(sizes: _AttentionSizes, dtype: str, *, causal: str, flags: tuple[str, ...], backward: bool) -> Work:
    """Return the work of one attention call by the formulas of the module."""
    square = sizes.queries * sizes.keys
    if not causal:
        twice_pairs = 2 * square
    elif sizes.varlen or sizes.queries == sizes.keys:
        twice_pairs = square
    else:
        twice_pairs = 2 * causal_pairs(sizes.queries, sizes.keys, from_last=causal == "last")
    copies = sizes.batch * sizes.heads
    forward = copies * (sizes.width + sizes.value_width)
    executed = copies * (3 * sizes.width + 2 * sizes.value_width) if backward else forward
    needed = 2 * forward if backward else forward
    rows = sizes.batch * sizes.heads * sizes.queries
    columns = sizes.batch * sizes.groups * (sizes.stored_keys or sizes.keys)
    once = rows * (sizes.width + sizes.value_width) + columns * (sizes.width + sizes.value_width)
    heads = f"{sizes.heads}" if sizes.heads == sizes.groups else f"{sizes.heads}/{sizes.groups}"
    width = f"{sizes.width}" if sizes.width == sizes.value_width else f"{sizes.width}/{sizes.value_width}"
    return Work(
        family="attention",
        dtype=dtype,
        shape=f"{sizes.batch}×{heads} heads×{sizes.queries}×{sizes.keys}, width {width}"
        + (", causal" if causal else ""),
        full=2 * square * executed,
        causal=twice_pairs * executed,
        model_full=2 * square * needed,
        model_causal=twice_pairs * needed,
        moved_bytes=DTYPE_BYTES[dtype] * once * (2 if backward else 1),
        backward=backward,
        flags=flags,
    )


def attention_function(args: Arguments) -> Work | None:
    """Count an attention called as an opaque autograd function: q, k, v are the first three equal-ranked tensors.

    Layout [B, S, H, D], [S, B, H, D] or [tokens, H, D]; where a tensor of cumulated lengths [B + 1] was passed it
    tells batch from sequence.
    """
    found = args.tensors()
    for (at, query), (second, key), (third, value) in zip(found, found[1:], found[2:], strict=False):
        if (second, third) == (at + 1, at + 2) and len(query) == len(key) == len(value) >= 3:  # noqa: PLR2004
            break
    else:
        return None
    cumulated = [size[0] - 1 for n in range(at) if (size := args.size(n)) is not None and len(size) == 1]
    layout = "bshd"
    if cumulated and len(query) == 4 and query[1] == cumulated[0] != query[0]:  # noqa: PLR2004 - [S, B, H, D]
        layout = "sbhd"
    booleans = tuple(range(at + 3, len(args.concrete)))
    plain = Attention(at, layout, causal=booleans, longest=(len(args.concrete), len(args.concrete)))
    return plain(args)


def flex(*, backward: bool) -> Handler:
    """Handle a compiled flex attention: q, k, v are the first three tensors of four sizes; the mask is code."""

    def handle(args: Arguments) -> Work | None:
        at = next((at for at, size in args.tensors() if len(size) == 4), None)  # noqa: PLR2004 - [B, H, S, D]
        return None if at is None else Attention(at, "bhsd", backward=backward)(args)

    return handle
