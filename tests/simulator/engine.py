"""The event simulation: GPU activities, streams, rendezvous of communications, and hosts that launch and wait.

Times are integer ns of one true clock that starts at 0. An activity starts at the latest of: its launch plus latency,
the end of its predecessor on the stream, the ends of what its stream was told to wait for. A communication kernel
starts on each member at that member's own time (its arrival) and ends when its transfer has ended, which takes
`ns` from the arrival of the last member.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

UNKNOWN = -1


@dataclass(slots=True, eq=False)
class Range:
    """One event of a CPU thread: an operator, an annotation or a runtime call."""

    thread: int
    category: str
    name: str
    start_ns: int
    end_ns: int = UNKNOWN
    number: int = 0
    """External id, for operators and annotations."""
    op: int = 0
    """External id of the operator around a runtime call."""
    correlation: int = 0
    args: dict[str, Any] | None = None


@dataclass(slots=True, eq=False)
class Activity:
    """One GPU activity."""

    rank: int
    stream: int
    name: str
    kind: str
    dur_ns: int
    call: Range
    tags: dict[str, Any]
    """Facts for the truth: phase, slot, flops, role, ..."""
    args: dict[str, Any]
    """What the tracer writes beside it."""
    transfers: tuple[Transfer, ...] = ()
    start_ns: int = UNKNOWN
    end_ns: int = UNKNOWN
    pending: int = 0
    ready_ns: int = 0
    waiters: list[Activity | Host] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Transfer:
    """One rendezvous: a collective on all members of a group, or one send with its receive."""

    key: tuple[Any, ...]
    ns: int
    expected: int
    role: str
    symmetric: bool
    members: list[Activity] = field(default_factory=list)
    end_delays: list[int] = field(default_factory=list)
    last_arrival_ns: int = 0
    arrived: int = 0


@dataclass(slots=True, eq=False)
class Host:
    """The host side of one rank: its clock, its open ranges and its streams."""

    rank: int
    now_ns: int = 0
    thread: int = 0
    ranges: list[Range] = field(default_factory=list)
    open: list[Range] = field(default_factory=list)
    activities: list[Activity] = field(default_factory=list)
    last: dict[int, Activity] = field(default_factory=dict)
    waits: dict[int, list[Activity]] = field(default_factory=dict)
    correlation: int = 0
    numbers: int = 0
    blocked: bool = False


class Engine:
    """Runs the programs of all ranks until everything has ended."""

    def __init__(self, hosts: list[Host]) -> None:
        self.hosts = hosts
        self.transfers: dict[tuple[Any, ...], Transfer] = {}
        self._ready: deque[Activity] = deque()
        self._runnable: deque[Host] = deque()

    def add(self, activity: Activity, earliest_ns: int, after: Iterable[Activity]) -> None:
        """Take up a launched activity that may start at `earliest_ns` and once all of `after` have ended."""
        activity.ready_ns = earliest_ns
        for other in after:
            if other.end_ns == UNKNOWN:
                activity.pending += 1
                other.waiters.append(activity)
            elif other.end_ns > activity.ready_ns:
                activity.ready_ns = other.end_ns
        if not activity.pending:
            self._ready.append(activity)

    def run(self, programs: dict[int, Iterator[Activity]]) -> None:
        """Drive all programs (rank to generator; it yields the activity it waits for) to their end.

        Raises RuntimeError naming what still waits when nothing can go on: a deadlock of the simulated program.
        """
        self._runnable.extend(self.hosts)
        while self._runnable or self._ready:
            while self._ready:
                self._start(self._ready.popleft())
            if self._runnable:
                self._advance(self._runnable.popleft(), programs)
        stuck = [(a.rank, a.name, a.tags) for h in self.hosts for a in h.activities if a.end_ns == UNKNOWN]
        if stuck:
            raise RuntimeError(f"deadlock: {len(stuck)} activities never end, first {stuck[:3]}")

    def _advance(self, host: Host, programs: dict[int, Iterator[Activity]]) -> None:
        for awaited in programs[host.rank]:
            if awaited.end_ns == UNKNOWN:
                awaited.waiters.append(host)
                host.blocked = True
                return
            host.now_ns = max(host.now_ns, awaited.end_ns)

    def _start(self, activity: Activity) -> None:
        activity.start_ns = activity.ready_ns
        if not activity.transfers:
            self._finish(activity, activity.start_ns + activity.dur_ns)
            return
        activity.pending = len(activity.transfers)
        for transfer in activity.transfers:
            transfer.arrived += 1
            transfer.last_arrival_ns = max(transfer.last_arrival_ns, activity.start_ns)
            if transfer.arrived == transfer.expected:
                self._transferred(transfer)

    def _transferred(self, transfer: Transfer) -> None:
        end = transfer.last_arrival_ns + transfer.ns
        for member, delay in zip(transfer.members, transfer.end_delays, strict=True):
            member.pending -= 1
            member.ready_ns = max(member.ready_ns, end + delay)
            if not member.pending:
                self._finish(member, member.ready_ns)

    def _finish(self, activity: Activity, end_ns: int) -> None:
        activity.end_ns = end_ns
        for waiter in activity.waiters:
            if isinstance(waiter, Host):
                waiter.now_ns = max(waiter.now_ns, end_ns)
                waiter.blocked = False
                self._runnable.append(waiter)
            else:
                waiter.pending -= 1
                waiter.ready_ns = max(waiter.ready_ns, end_ns)
                if not waiter.pending:
                    self._ready.append(waiter)
        activity.waiters.clear()
