"""Where did the step time go? Traces of distributed LLM training, analyzed."""

from __future__ import annotations

from importlib.metadata import version

__version__ = version("llm-tracetool")
