"""Simulate a run and hand out its traces and its truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from simulator import engine, layout, program, record, schedule
from simulator.truth import Truth
from simulator.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from simulator.config import Config


@dataclass(frozen=True)
class Run:
    """A simulated run."""

    config: Config
    groups: list[layout.Group]
    traces: list[record.RankTrace]

    def select(self, ranks: Iterable[int] | None = None) -> list[record.RankTrace]:
        """Return the traces of some ranks, all by default."""
        wanted = None if ranks is None else set(ranks)
        return [t for t in self.traces if wanted is None or t.place.rank in wanted]

    def truth(self, ranks: Iterable[int] | None = None, *, joined: bool = False) -> Truth:
        """Return the truth for someone who has the traces of `ranks` alone; `joined`: waiting told apart."""
        return Truth(self.config, self.select(ranks), joined=joined)

    def write_kineto(self, directory: Path, ranks: Iterable[int] | None = None, **options: Any) -> list[Path]:  # noqa: ANN401
        """Write PyTorch profiler files and return their paths; the options are those of kineto.Options."""
        from simulator import kineto  # noqa: PLC0415 - not every test writes

        return kineto.write(self, directory, self.select(ranks), kineto.Options(**options))

    @property
    def step_ns(self) -> dict[int, int]:
        """True time of every step over all ranks: from its first kernel's start to the next step's first kernel's.

        The last step ends with the last activity of any rank.
        """
        starts: dict[int, int] = {}
        end = 0
        for a in (a for trace in self.traces for a in trace.activities):
            step = a.tags["run_step"]
            end = max(end, a.source.end_ns)
            if step is not None and step >= self.config.first_step and a.kind in ("compute", "comm"):
                starts[step] = min(starts.get(step, a.source.start_ns), a.source.start_ns)
        order = sorted(starts)
        edges = [*(starts[k] for k in order), end]
        return {k: edges[n + 1] - edges[n] for n, k in enumerate(order)}

    @property
    def elapsed_ns(self) -> int:
        """True time from the start of the run to the end of the last recorded activity: what a change really saves."""
        return max(a.source.end_ns for trace in self.traces for a in trace.activities)

    def clock(self, rank: int, t0_ns: int) -> tuple[float, float]:
        """Return (offset_ns, drift_ppm) that bring a rank's clock onto that of rank 0's host; t0_ns: drift's origin.

        aligned = t + offset_ns + drift_ppm 1e-6 (t - t0_ns), t in the rank's clock.
        """
        mine, reference = self._clock(rank), self._clock(0)
        true_ns = (t0_ns - record.START_NS - mine.offset_ns) / (1 + mine.drift_ppb * 1e-9)
        shown = record.START_NS + reference.offset_ns + true_ns * (1 + reference.drift_ppb * 1e-9)
        drift = (1 + reference.drift_ppb * 1e-9) / (1 + mine.drift_ppb * 1e-9) - 1
        return shown - t0_ns, drift * 1e6

    def reference_ns(self, true_ns: int) -> int:
        """Return what the clock of rank 0's host shows at a true time."""
        return self._clock(0).shows(true_ns)

    def _clock(self, rank: int) -> record.Clock:
        return record.clock_of(self.config, rank // self.config.gpus_per_node)


def _recorded(config: Config, worker: Worker) -> tuple[int, int]:
    """Return the true time in which the rank's profiler recorded."""
    steps = config.recorded_steps.get(worker.place.rank)
    if steps is None:
        return worker.records_from_ns, worker.host.now_ns + 1
    starts = worker.step_starts
    return starts[steps[0]], starts.get(steps[1] + 1, worker.host.now_ns + 1)


def simulate(config: Config) -> Run:
    """Simulate a run. The same config gives the same run, to the ns."""
    groups, by_rank = layout.groups(config)
    places = layout.places(config)
    hosts = [engine.Host(place.rank) for place in places]
    machine = engine.Engine(hosts)
    plan = schedule.plan(config)
    workers = [
        Worker(config, machine, host, place, by_rank[place.rank]) for host, place in zip(hosts, places, strict=True)
    ]
    machine.run({w.place.rank: program.make(config, w, plan).run() for w in workers})
    traces = [record.record(config, w.place, w.groups, w.host, window_ns=_recorded(config, w)) for w in workers]
    return Run(config, groups, traces)
