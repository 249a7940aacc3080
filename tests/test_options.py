"""The options: texts become values, and what is wrong with a text is said."""

from __future__ import annotations

import dataclasses

import pytest

from tracetool.errors import UsageError
from tracetool.options import MfuConvention, RunOptions, parse_bytes, parse_numbers, parse_regex
from tracetool.settings import Settings


@pytest.mark.parametrize(
    ("text", "numbers"),
    [(None, None), ("3", (3,)), ("0-2,64", (0, 1, 2, 64)), ("5,1-2,2", (1, 2, 5)), (" 1 - 2 ", (1, 2))],
)
def test_numbers(text: str | None, numbers: tuple[int, ...] | None) -> None:
    assert parse_numbers("--ranks", text) == numbers


@pytest.mark.parametrize("text", ["", "a", "1-", "3-1", "1,,2", "-1", "0-9999999999"])
def test_no_numbers(text: str) -> None:
    with pytest.raises(UsageError, match="--ranks"):
        parse_numbers("--ranks", text)


@pytest.mark.parametrize(
    ("text", "size"), [(None, None), ("16GB", 16 * 10**9), ("1.5G", 1_500_000_000), ("2MiB", 2 << 20), ("100", 100)]
)
def test_sizes(text: str | None, size: int | None) -> None:
    assert parse_bytes("--memory", text) == size


@pytest.mark.parametrize(
    "options",
    [
        RunOptions(world_size=0), RunOptions(gpus_per_node=-8), RunOptions(nic_gbs=float("nan")),
        RunOptions(tokens_per_step=-1), RunOptions(flops_per_step=float("inf")), RunOptions(peak_tflops=0.0),
    ],
)  # fmt: skip
def test_sizes_and_rates_are_above_0(options: RunOptions) -> None:
    with pytest.raises(UsageError, match="above 0"):
        options.settings()


def test_no_size() -> None:
    with pytest.raises(UsageError, match="16GB"):
        parse_bytes("--memory", "lots")


def test_no_regular_expression() -> None:
    assert parse_regex("--step-range", r"step (\d+)") == r"step (\d+)"
    with pytest.raises(UsageError, match="--step-range"):
        parse_regex("--step-range", "step (")


def test_defaults_are_the_default_settings() -> None:
    assert RunOptions().settings() == Settings()
    assert RunOptions().said() == ""


def test_every_setting_has_an_option_and_steps_none_is_one_window() -> None:
    options = RunOptions(ranks="0-1", steps="none", mfu_convention=MfuConvention.full, quiet=True, anonymize=True)
    settings = options.settings()
    assert (settings.ranks, settings.steps, settings.ignore_steps) == ((0, 1), None, True)
    assert (settings.anonymize, settings.mfu_convention) == (True, "full")
    assert options.said() == "--ranks 0-1 --steps none --mfu-convention full --anonymize"
    options_of = {field.name for field in dataclasses.fields(RunOptions)}
    # ignore_steps is spelled --steps none; the slice budget is a constant of the page
    assert {field.name for field in dataclasses.fields(Settings)} - options_of == {"ignore_steps", "slice_budget"}
