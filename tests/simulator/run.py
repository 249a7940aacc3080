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
        """True time of every recorded step: from the first host's start of it to the first host's start of the next.

        The last step ends when the last GPU activity launched in it ends, on any rank.
        """
        ends: dict[int, int] = {}
        starts: dict[int, int] = {}
        for trace in self.traces:
            for a in trace.activities:
                k = a.tags["run_step"]
                if k is not None and k >= self.config.first_step and a.kind != "memcpy":
                    starts[k] = min(starts.get(k, a.source.start_ns), a.source.start_ns)
                    ends[k] = max(ends.get(k, 0), a.source.end_ns)
        order = sorted(starts)
        return {
            k: (starts[n] if n in starts else ends[k]) - starts[k] for k, n in zip(order, [*order[1:], -1], strict=True)
        }


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
    orders = schedule.orders(config)
    workers = [
        Worker(config, machine, host, place, by_rank[place.rank]) for host, place in zip(hosts, places, strict=True)
    ]
    machine.run({w.place.rank: program.make(config, w, orders).run() for w in workers})
    traces = [record.record(config, w.place, w.groups, w.host, window_ns=_recorded(config, w)) for w in workers]
    return Run(config, groups, traces)
