"""The options of every command that reads a run, declared once, and how their texts become values."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import re
import shlex
from collections.abc import Callable
from enum import Enum, StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar, get_type_hints

import typer

from tracetool.errors import UsageError
from tracetool.settings import Settings

_Number = TypeVar("_Number", int, float)
_MOST_NUMBERS: Final = 1 << 20
"""A range such as 0-7 may mean this many numbers."""


class MfuConvention(StrEnum):
    """How causal attention is counted."""

    causal = "causal"
    full = "full"


def _option(help_text: str, *names: str, metavar: str | None = None) -> Any:  # noqa: ANN401 - typer's own type
    return typer.Option(*names, help=help_text, metavar=metavar)


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """The options of every command that reads a run, declared once."""

    ranks: Annotated[str | None, _option("Ranks to look at.", "--ranks", metavar="0-7,64")] = None
    rank_regex: Annotated[str | None, _option("Pattern whose group is the rank, in each path.", metavar="REGEX")] = None
    world_size: Annotated[int | None, _option("Ranks of the job, where the traces do not say.", metavar="N")] = None
    iteration: Annotated[int | None, _option("Iteration to take when ranks have several files.", metavar="N")] = None
    steps: Annotated[str | None, _option("Steps to look at; none takes one window.", metavar="3-5|none")] = None
    step_range: Annotated[str | None, _option("Annotations that are steps.", metavar="REGEX")] = None
    gpus_per_node: Annotated[int | None, _option("Ranks a host holds, where not recorded.", metavar="N")] = None
    hosts: Annotated[Path | None, _option("File with lines `rank host`.", metavar="FILE")] = None
    nic_gbs: Annotated[float | None, _option("Line rate of a NIC, one direction, GB/s.", metavar="X")] = None
    model: Annotated[Path | None, _option("Hugging Face config.json: FLOPs from the model.", metavar="FILE")] = None
    tokens_per_step: Annotated[int | None, _option("Tokens of the whole job in a step.", metavar="N")] = None
    mtp: Annotated[bool, _option("Count the model's layers that predict further tokens.", "--mtp")] = False
    flops_per_step: Annotated[float | None, _option("Model FLOPs of the whole job in a step.", metavar="X")] = None
    peak_tflops: Annotated[float | None, _option("Dense peak of one device, TFLOP/s.", metavar="X")] = None
    mfu_convention: Annotated[MfuConvention, _option("How causal attention is counted.")] = MfuConvention.causal
    what_if_device: Annotated[str | None, _option("Show operators under this device's roofs.", metavar="NAME")] = None
    nccl_tests: Annotated[Path | None, _option("nccl-tests output: the cluster's own ceiling.", metavar="FILE")] = None
    comm_pattern: Annotated[str | None, _option("Further kernels that are communication.", metavar="REGEX")] = None
    engine: Annotated[str, _option("Where jobs run.", metavar="auto|serial|processes[:N]|dask://HOST:PORT")] = "auto"
    memory: Annotated[str | None, _option("Memory that workers may use together.", metavar="16GB")] = None
    cache: Annotated[str | None, _option("Cache directory, or off.", metavar="DIR|off")] = None
    anonymize: Annotated[bool, _option("Leave out names of hosts, files and folders.", "--anonymize")] = False
    quiet: Annotated[bool, _option("Print errors only, besides the result.", "--quiet", "-q")] = False
    no_progress: Annotated[bool, _option("No progress on stderr.", "--no-progress")] = False
    no_color: Annotated[bool, _option("No colour.", "--no-color")] = False
    strict: Annotated[bool, _option("Exit 5 when a trace was read only in part.", "--strict")] = False

    def settings(self) -> Settings:
        """Return the options that change a number."""
        return Settings(
            ranks=parse_numbers("--ranks", self.ranks),
            rank_regex=self.rank_regex,
            world_size=positive("--world-size", self.world_size),
            iteration=self.iteration,
            steps=None if self.steps == "none" else parse_numbers("--steps", self.steps),
            ignore_steps=self.steps == "none",
            step_range=parse_regex("--step-range", self.step_range),
            gpus_per_node=positive("--gpus-per-node", self.gpus_per_node),
            hosts=_text(self.hosts),
            nic_gbs=positive("--nic-gbs", self.nic_gbs),
            model=_text(self.model),
            tokens_per_step=positive("--tokens-per-step", self.tokens_per_step),
            mtp=self.mtp,
            flops_per_step=positive("--flops-per-step", self.flops_per_step),
            peak_tflops=positive("--peak-tflops", self.peak_tflops),
            mfu_convention=self.mfu_convention.value,
            what_if_device=self.what_if_device,
            nccl_tests=_text(self.nccl_tests),
            comm_pattern=parse_regex("--comm-pattern", self.comm_pattern),
            anonymize=self.anonymize,
        )

    def said(self) -> str:
        """Return the options that change a number as they would be typed, for the report's provenance.

        With `--anonymize` without what may name a file or a host.
        """
        neutral = {"engine", "memory", "cache", "quiet", "no_progress", "no_color", "strict"}
        words: list[str] = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in neutral and value != field.default:
                shown = value.value if isinstance(value, Enum) else str(value)
                if self.anonymize and (isinstance(value, Path) or field.name == "rank_regex"):
                    shown = "FILE" if isinstance(value, Path) else "REGEX"
                option = f"--{field.name.replace('_', '-')}"
                words += [option] if value is True else [option, shown]
        return shlex.join(words)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def positive(option: str, value: _Number | None) -> _Number | None:
    """Return the number unchanged. Raises UsageError when it is not above 0."""
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise UsageError(f"{option} {value} must be a number above 0")
    return value


def parse_numbers(option: str, text: str | None) -> tuple[int, ...] | None:
    """Return the numbers that a text like `0-7,64` means. Raises UsageError when it means none."""
    if text is None:
        return None
    numbers: set[int] = set()
    for part in text.split(","):
        span = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        if not span:
            raise UsageError(f"{option} {text}: {part.strip()!r} is no number and no range such as 0-7")
        first, last = int(span[1]), int(span[2] or span[1])
        if last < first:
            raise UsageError(f"{option} {text}: {part.strip()} runs backwards")
        if last - first >= _MOST_NUMBERS:
            raise UsageError(f"{option} {text}: {part.strip()} are more than {_MOST_NUMBERS:,} numbers")
        numbers.update(range(first, last + 1))
    return tuple(sorted(numbers))


def parse_regex(option: str, text: str | None) -> str | None:
    """Return the pattern unchanged. Raises UsageError when it is no regular expression."""
    try:
        re.compile(text or "")
    except re.error as error:
        raise UsageError(f"{option} {text!r} is no regular expression: {error}") from None
    return text


def parse_bytes(option: str, text: str | None) -> int | None:
    """Return the bytes that a text like `16GB` or `900MiB` means. Raises UsageError when it means none."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kMGT]?)(i?)B?\s*", text)
    if not match:
        raise UsageError(f"{option} {text!r} is no size such as 16GB")
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** " kMGT".index(match[2] or " "))


def run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command whose last parameter is `options: RunOptions` every run option as an option of its own."""
    hints = get_type_hints(RunOptions, include_extras=True)
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "options"]
    shared = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in dataclasses.fields(RunOptions)
    ]

    @functools.wraps(command)
    def wrapper(**given: Any) -> None:  # noqa: ANN401 - typer hands over whatever the options are
        options = RunOptions(**{field.name: given.pop(field.name) for field in dataclasses.fields(RunOptions)})
        command(**given, options=options)

    keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    wrapper.__signature__ = inspect.Signature([*keyword, *shared])  # type: ignore[attr-defined] # inspect honours it
    wrapper.__annotations__ = {p.name: p.annotation for p in [*keyword, *shared]}
    return wrapper
