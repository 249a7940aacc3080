"""FLOPs of attention from the sizes of query, key and value; formulas in `tracetool.mfu.flops`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tracetool.mfu.op_arguments import ALIGNMENT, DTYPE_BYTES, MASK, VARLEN, Arguments, Dims, Work

if TYPE_CHECKING:
    from tracetool.mfu.op_arguments import Handler


@dataclass(frozen=True)
class Attention:
    """Positions of an attention's arguments.

    `q`: the query, followed by key and value. `layout`: order of the sizes, bhsd or bshd; a varlen call has
    [tokens, heads, width] and its longest lengths at `longest`. `causal`: the flag, or a list to search for the first
    boolean; `mask_type`: 1 is causal from the first key, 2 from the last. `mask`: a mask or bias tensor. `window`:
    how far behind the causal flag stands how many keys before its own a query sees, followed by how many after
    (−1 or absent: all); the first of them that was recorded.
    """

    q: int
    layout: str
    causal: tuple[int, ...] = ()
    mask: int | None = None
    mask_type: int | None = None
    lengths: int | None = None
    longest: tuple[int, int] | None = None
    window: tuple[int, ...] = ()
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
        before, after = self._window(args)
        if after == 0:  # no key after its own: the kernels take that for causal
            causal = causal or "last"
        sizes = replace(sizes, before=before, after=None if causal else after)
        if sizes.varlen:
            flags = (*flags, VARLEN)
        if causal and sizes.queries != sizes.keys and not sizes.varlen:
            flags = (*flags, ALIGNMENT)
        return _attention_work(sizes, dtype, causal, flags, backward=self.backward)

    def _flag(self, args: Arguments) -> tuple[int, bool] | None:
        """Return where the causal flag stands, and the flag; None when none was recorded."""
        return next(((at, flag) for at in self.causal if (flag := args.flag(at)) is not None), None)

    def _mask(self, args: Arguments) -> tuple[str, tuple[str, ...]]:
        """Return which causal mask is on (empty: none) and what is not known about it."""
        unknown = (MASK,) if self.mask is not None and args.size(self.mask) is not None else ()
        if self.mask_type is not None:
            kind = args.integer(self.mask_type)
            return {1: "first", 2: "last"}.get(kind or 0, ""), unknown if kind is not None else (MASK,)
        found = self._flag(args)
        return ("last" if found and found[1] else ""), (unknown if found is not None else (MASK,))

    def _window(self, args: Arguments) -> tuple[int | None, int | None]:
        """Return how many keys before and after its own a query sees; None: all of them."""
        found = self._flag(args)
        if found is None:
            return None, None
        for offset in self.window:
            pair = [args.integer(found[0] + offset + side) for side in (0, 1)]
            if pair != [None, None]:
                before, after = (n if n is not None and n >= 0 else None for n in pair)
                return before, after
        return None, None

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
        alike = query[0] == key[0] and len(set(longest)) <= 1
        return _checked(
            _AttentionSizes(
                batch=1, heads=query[1], groups=key[1], queries=query[0], keys=min(keys, key[0]),
                width=query[2], value_width=value[2], varlen=True, stored_keys=key[0], alike=alike,
            ),
            same=key[0] == value[0] and query[2] == key[2],
        )  # fmt: skip


@dataclass(frozen=True)
class _AttentionSizes:
    """Sizes of one attention call; `before` and `after` are the window, None where it is open.

    With `varlen`, `keys` is the most that any query can see, and `alike` says that each sequence has as many queries
    as keys as far as can be told.
    """

    batch: int
    heads: int
    groups: int
    queries: int
    keys: int
    width: int
    value_width: int
    varlen: bool = False
    alike: bool = True
    stored_keys: int | None = None
    before: int | None = None
    after: int | None = None

    @property
    def windowed(self) -> bool:
        """Whether a window cuts what some query sees."""
        return any(n is not None and n < self.keys - 1 for n in (self.before, self.after))

    def twice_pairs(self, causal: str) -> tuple[int, int]:
        """Return twice the pairs counted without and with credit for a causal mask ("", "first" or "last").

        Without credit a causal window counts double, as the whole square is double its half. Of packed sequences
        both are upper bounds: each query sees the longest sequence, half of it where causal, at most its window.
        """
        square = self.queries * self.keys
        if not self.varlen and not self.windowed:
            if not causal:
                return 2 * square, 2 * square
            if self.queries == self.keys:
                return 2 * square, square
            return 2 * square, 2 * causal_pairs(self.queries, self.keys, from_last=causal == "last")
        if self.varlen:
            seen = self.keys if self.before is None else self.before + 1
            if not causal:
                seen = self.keys if None in (self.before, self.after) else seen + (self.after or 0)
            kept = self.queries * min(seen, self.keys)
            half = square if causal and self.alike else 2 * square
            return (min(2 * square, 4 * kept) if causal else 2 * kept), min(2 * kept, half)
        after = 0 if causal else self.after
        kept = seen_pairs(self.queries, self.keys, self.before, after, from_last=causal != "first")
        return (min(2 * square, 4 * kept) if causal else 2 * kept), 2 * kept


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
    return seen_pairs(queries, keys, None, 0, from_last=from_last)


def seen_pairs(queries: int, keys: int, before: int | None, after: int | None, *, from_last: bool = True) -> int:
    """Return how many (query, key) pairs a window keeps.

    A query sees `before` keys to the left of its own and `after` to its right, None for all of them. Where a query's
    own key is, see `causal_pairs`.
    """
    own = keys - queries if from_last else 0
    right = queries * keys if after is None else _ramp(queries, own + after + 1, keys)
    return right - (0 if before is None else _ramp(queries, own - before, keys))


def _ramp(count: int, first: int, top: int) -> int:
    """Return the sum of first, first + 1, … over `count` terms, each cut to 0..top."""
    rising = max(0, min(count, top - first))  # terms below the top
    below = max(0, min(rising, -first))  # of which these are not above 0
    low, terms = first + below, rising - below
    return terms * low + terms * (terms - 1) // 2 + (count - rising) * top


def _attention_work(sizes: _AttentionSizes, dtype: str, causal: str, flags: tuple[str, ...], *, backward: bool) -> Work:
    """Return the work of one attention call by the formulas of the module."""
    twice_full, twice_causal = sizes.twice_pairs(causal)
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
        + (", causal" if causal else "")
        + (f", window {_window_words(sizes, causal)}" if sizes.windowed else ""),
        full=twice_full * executed,
        causal=twice_causal * executed,
        model_full=twice_full * needed,
        model_causal=twice_causal * needed,
        moved_bytes=DTYPE_BYTES[dtype] * once * (2 if backward else 1),
        backward=backward,
        flags=flags,
    )


def _window_words(sizes: _AttentionSizes, causal: str) -> str:
    """Return how many keys a query sees, or where they lie: those before its own, itself, those after it."""
    if causal and sizes.before is not None:
        return str(sizes.before + 1)
    return "+1+".join("all" if n is None else str(n) for n in (sizes.before, sizes.after))


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
