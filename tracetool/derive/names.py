"""Names of events, looked at once each: a trace has a thousand times fewer names than events."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from tracetool.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from numpy.typing import NDArray


@dataclass(frozen=True)
class Names:
    """A column of names as its distinct texts and, for each row, which of them it holds."""

    texts: pl.Series
    """The distinct names, String."""
    code: NDArray[np.int32]
    """For each row the index of its name in `texts`."""

    @classmethod
    def of(cls, names: pl.Series) -> Names:
        """Take apart a Categorical column without null."""
        distinct = names.unique(maintain_order=True)
        physical = distinct.to_physical().to_numpy()
        index = np.zeros(int(physical.max()) + 1 if len(physical) else 0, np.int32)
        index[physical] = np.arange(len(physical), dtype=np.int32)
        return cls(distinct.cast(pl.String), index[names.to_physical().to_numpy()])

    def has(self, pattern: str) -> NDArray[np.bool_]:
        """Return for each row whether its name contains the regular expression (syntax of the Rust crate)."""
        return np.asarray(self.texts.str.contains(pattern).to_numpy())[self.code]

    def each(self, value: Callable[[str], Any], dtype: type) -> NDArray[Any]:
        """Return for each row value(name), computed once a distinct name."""
        return np.array([value(text) for text in self.texts.to_list()], dtype=dtype)[self.code]


def matcher(option: str, pattern: str) -> Callable[[str], bool]:
    """Return a test whether a name contains the user's regular expression (Python syntax).

    Raises UsageError, naming the option it came from, when it is none.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"{option} {pattern}: not a regular expression: {error}") from error
    return lambda name: compiled.search(name) is not None
