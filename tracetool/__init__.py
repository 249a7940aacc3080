"""Where did the step time go? Traces of distributed LLM training, analyzed.

run = tracetool.open_run("traces/")
run.results["mfu"].metrics["mfu_causal"]
run.findings
run.table("events", rank=3)          # a polars LazyFrame
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from tracetool import heap
from tracetool.errors import NotComparable, NothingReadable, TracetoolError, UnreadableTrace, UsageError

if TYPE_CHECKING:
    from tracetool.results import Finding, Result
    from tracetool.run import Run, open_run
    from tracetool.settings import Settings

__version__ = version("llm-tracetool")
__all__ = [
    "Finding",
    "NotComparable",
    "NothingReadable",
    "Result",
    "Run",
    "Settings",
    "TracetoolError",
    "UnreadableTrace",
    "UsageError",
    "open_run",
]

heap.keep_little()  # before anything here loads polars

_HOMES = {"Finding": "results", "Result": "results", "Run": "run", "Settings": "settings", "open_run": "run"}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any public name
    """Import a public name when it is first used: `tracetool --help` must not wait for polars."""
    if name not in _HOMES:
        raise AttributeError(f"module 'tracetool' has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415 - see above

    return getattr(import_module(f"tracetool.{_HOMES[name]}"), name)
