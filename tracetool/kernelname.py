"""Names of GPU kernels, made short enough to read."""

from __future__ import annotations

import re
from typing import Final

SHORT_NAME_LENGTH: Final = 64
_FUNCTOR: Final = re.compile(r"\b(\w{0,80}(?:Functor|Ops?|_kernel_(?:cuda|impl)\w{0,40}))\b")
_MOST_ARGUMENTS: Final = 2_000
"""Characters of arguments looked at for a functor."""


def short_name(name: str) -> str:
    """Return a kernel's name without return type, namespaces and arguments, at most SHORT_NAME_LENGTH characters.

    The first functor or operation among the template arguments is kept in angle brackets: it tells
    `elementwise_kernel`s apart. Names without arguments, also mangled ones, are only cut.
    """
    plain = name.replace("(anonymous namespace)::", "").removeprefix("void ").replace("->", "→")
    kept: list[str] = []
    arguments: list[str] = []
    depth = 0
    for letter in plain:
        if letter in "<(":
            depth += 1
        (arguments if depth else kept).append(letter)
        if letter in ">)" and depth:
            depth -= 1
    words = "".join(kept).strip().split("::")
    base = next((word for word in reversed(words) if word), plain)
    functor = re.search(
        r"\b(\w{0,80}(?:Functor|Ops?|_kernel_(?:cuda|impl)\w{0,40}))\b", "".join(arguments)[:_MOST_ARGUMENTS]
    )
    full = f"{base}<{functor[1]}>" if functor and functor[1] != base else base
    return full if len(full) <= SHORT_NAME_LENGTH else full[: SHORT_NAME_LENGTH - 1] + "…"
