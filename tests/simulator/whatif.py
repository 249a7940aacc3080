"""Changes really made: each takes a config and returns the one to simulate again. Noise is drawn alike in both."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulator.config import SlowLink

if TYPE_CHECKING:
    from simulator.config import Config


def without_stragglers(config: Config) -> Config:
    """Every rank, host and link as its peers are; a heavy stage stays."""
    return config.replace(slow_ranks={}, slow_hosts={}, stalls=(), slow_links=(), long_sequences={})


def without_slow_rank(config: Config, rank: int) -> Config:
    """One slow rank as its peers are."""
    return config.replace(slow_ranks={r: factor for r, factor in config.slow_ranks.items() if r != rank})


def balanced_stages(config: Config) -> Config:
    """Every stage with the same share of the work there is."""
    mean = sum(config.heavy_stages.get(s, 1.0) for s in range(config.pp)) / config.pp
    return config.replace(heavy_stages=dict.fromkeys(range(config.pp), mean))


def one_stage_balanced(config: Config, stage: int) -> Config:
    """One stage with the mean of the stages' work; the others as they are."""
    mean = sum(config.heavy_stages.get(s, 1.0) for s in range(config.pp)) / config.pp
    return config.replace(heavy_stages={**config.heavy_stages, stage: mean})


def without_device_jitter(config: Config) -> Config:
    """No noise in compute; links and hosts keep theirs."""
    return config.replace(jitter=0.0)


def twice_microbatches(config: Config) -> Config:
    """Twice as many micro-batches of half the sequences each: the same tokens a step."""
    if config.batch % 2:
        raise ValueError(f"a batch of {config.batch} sequences has no half")
    return config.replace(microbatches=2 * config.microbatches, batch=config.batch // 2)


def interleaved(config: Config) -> Config:
    """Every stage as two chunks of half its layers, in turns (interleaved 1F1B); sends hold nothing up."""
    if config.layers % 2:
        raise ValueError(f"{config.layers} layers have no half")
    return config.replace(layers=config.layers // 2, chunks=2, schedule="interleaved_1f1b", p2p="async")


def zero_bubble(config: Config) -> Config:
    """Weight gradients launched apart and put off (ZB-H1); sends hold nothing up."""
    return config.replace(schedule="zb1p", p2p="async")


def faster_communication(config: Config, times: float) -> Config:
    """Every transfer in 1/times of its time."""
    return config.replace(slow_links=(*config.slow_links, SlowLink(1 / times)))


def without_host_gaps(config: Config) -> Config:
    """Host that costs nothing: work starts on the GPU as soon as the GPU can."""
    return config.replace(
        op_ns=0,
        launch_ns=0,
        latency_ns=0,
        latency_jitter_ns=0,
        dataloader_ns=0,
        between_steps_ns=0,
        slow_hosts={},
        stalls=(),
    )


def without_jitter(config: Config) -> Config:
    """No noise anywhere."""
    return config.replace(jitter=0.0, comm_jitter=0.0, end_jitter_ns=0, host_jitter=0.0, latency_jitter_ns=0)
