"""What the profilers saw: every rank's events in its own host's clock, cut to its own recording window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from simulator.config import Config
    from simulator.engine import Activity, Host
    from simulator.layout import Group, Place

BASE_UNIX_NS: Final = 1_743_465_600_000_000_000
"""Unix time that the files count from (the start of a quarter, as the profiler does)."""
START_NS: Final = 4_458_676_000_000_000
"""What a perfect clock shows, after that base, when the run starts."""


@dataclass(frozen=True)
class Clock:
    """A host's clock: what it shows at a true time. Integer arithmetic; drift in parts per billion."""

    offset_ns: int = 0
    drift_ppb: int = 0
    resolution_ns: int = 1

    def shows(self, true_ns: int) -> int:
        """Return what the clock shows at `true_ns` after the start of the run, in the file's ns."""
        shown = START_NS + true_ns + self.offset_ns + self.drift_ppb * true_ns // 1_000_000_000
        return shown // self.resolution_ns * self.resolution_ns


@dataclass(slots=True, eq=False)
class Seen:
    """One GPU activity as recorded, in the rank's clock."""

    rank: int
    start_ns: int
    end_ns: int
    kind: str
    name: str
    stream: int
    correlation: int
    number: int
    """External id: that of the operator around the launch."""
    launch_start_ns: int | None
    """None: the launch was not recorded (an orphan)."""
    launch_end_ns: int | None
    source: Activity

    @property
    def tags(self) -> dict[str, Any]:
        """Facts the simulator knows about it."""
        return self.source.tags


@dataclass(slots=True, eq=False)
class SeenRange:
    """One CPU event as recorded."""

    thread: int
    category: str
    name: str
    start_ns: int
    end_ns: int
    number: int
    op: int
    correlation: int
    args: dict[str, Any] | None


@dataclass(frozen=True)
class RankTrace:
    """Everything recorded on one rank."""

    place: Place
    clock: Clock
    groups: dict[str, Group]
    ranges: list[SeenRange]
    activities: list[Seen]
    """Sorted by start, longer first."""
    step_ranges: list[tuple[int, int, int]]
    """(step, start, end) of the ProfilerStep ranges, by start."""


def clock_of(config: Config, host: int) -> Clock:
    """Return the clock of a host."""
    drift_ppb = round(config.clock_drifts_ppm.get(host, 0.0) * 1000)
    return Clock(config.clock_offsets_ns.get(host, 0), drift_ppb, config.resolution_ns)


def record(
    config: Config, place: Place, groups: dict[str, Group], host: Host, *, window_ns: tuple[int, int]
) -> RankTrace:
    """Record one rank: what starts before `window_ns`, on the host or the GPU, or is launched after it, is lost."""
    from_ns, until_ns = window_ns
    clock = clock_of(config, place.host)
    shows = clock.shows
    kept = [
        SeenRange(
            r.thread, r.category, r.name, shows(r.start_ns), shows(r.end_ns), r.number, r.op, r.correlation, r.args
        )
        for r in host.ranges
        if from_ns <= r.start_ns < until_ns
    ]
    seen = []
    for a in host.activities:
        if a.start_ns < from_ns or a.call.start_ns >= until_ns:
            continue
        launched = a.call.start_ns >= from_ns
        seen.append(
            Seen(
                place.rank,
                shows(a.start_ns),
                shows(a.end_ns),
                a.kind,
                a.name,
                a.stream,
                a.call.correlation,
                a.call.op if launched else 0,
                shows(a.call.start_ns) if launched else None,
                shows(a.call.end_ns) if launched else None,
                a,
            )
        )
    seen.sort(key=lambda a: (a.start_ns, a.start_ns - a.end_ns))
    steps = sorted(
        (int(r.name.partition("#")[2]), r.start_ns, r.end_ns) for r in kept if r.name.startswith("ProfilerStep#")
    )
    return RankTrace(place, clock, groups, kept, seen, steps)
