"""Run: what a script holds. Reads a run once, then answers questions, each computed when it is first asked."""

from __future__ import annotations

import contextlib
import hashlib
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from tracetool import bundle, heap, registry, store
from tracetool.anonymize import anonymize, names_of
from tracetool.answers import Answers
from tracetool.discover import legible
from tracetool.engine import SerialExecutor, executor, in_order
from tracetool.errors import StoreFailed, TracetoolError, UsageError
from tracetool.ingest import Ingested, ingest
from tracetool.joined import Joined, facts_of
from tracetool.joinmap import join
from tracetool.needs import NEEDS
from tracetool.read import code_key, settings_key
from tracetool.results import Finding, Result, skipped
from tracetool.settings import Settings
from tracetool.store import Store, StoredRank

if TYPE_CHECKING:
    from concurrent.futures import Executor
    from types import TracebackType

    import polars as pl

    from tracetool.registry import Analysis, RunView
    from tracetool.tables import Tables

Progress = Callable[[str, int, int], None]
"""Called with (phase, done, total); bytes while reading, ranks while analyzing."""


class Answer(NamedTuple):
    """What one analysis' per_rank returned for one rank, or why it failed."""

    tables: Tables | None
    error: str


class RankJob(NamedTuple):
    """One rank to put through the per_rank of some analyses."""

    rank: StoredRank
    names: tuple[str, ...]
    settings: Settings
    facts: str
    """Folder of what the join found; empty when there was none."""
    groups: tuple[int, ...]
    """Groups of that folder which this rank belongs to."""
    keep: bool
    """Keep the answers in the store, for the next report on the same traces."""


def analyze_rank(job: RankJob) -> dict[str, Answer]:
    """Run per_rank of each named analysis on one rank, or find its answer in the store. Runs in a worker.

    A failure is the answer of that one analysis; the others go on.
    """
    facts = facts_of(job.facts, job.groups, job.rank.rank) if job.facts else {}
    rank = store.held(job.rank)
    return {name: _answer(job, name, rank, facts) for name in job.names}


def _answer(job: RankJob, name: str, rank: StoredRank, facts: Tables) -> Answer:
    per_rank = getattr(registry.analyses()[name], "per_rank", None)
    if per_rank is None:
        return Answer({}, "")
    kept = _kept_at(job, name) if job.keep else None
    if kept is not None and (known := bundle.read(kept)) is not None:
        return Answer(known, "")
    try:
        tables = per_rank(rank, facts, job.settings)
    except Exception as error:  # noqa: BLE001 - the contract: an exception is the answer "error", the others still run
        damaged = job.keep and store.drop_unreadable(job.rank)
        why = "its tables in the cache were damaged and have been dropped; run again" if damaged else _sentence(error)
        return Answer(None, f"rank {job.rank.rank}: {why}")
    if kept is not None:
        with contextlib.suppress(OSError):  # a full disk: it is computed again
            bundle.write(kept, tables)
    heap.give_back()
    return Answer(tables, "")


def _kept_at(job: RankJob, name: str) -> Path | None:
    """Return where this answer is kept: beside the rank's derived tables, keyed by all that it depends on."""
    if job.rank.derived is None or len(job.rank.base) > 1:
        return None
    key = hashlib.blake2b(
        f"{code_key('tracetool.analyses', name)} {settings_key(job.settings)} {job.rank} {job.facts}".encode(),
        digest_size=16,
    )
    return Path(job.rank.derived).parent / f"p-{name}-{key.hexdigest()}"


def _sentence(error: Exception) -> str:
    text = str(error).partition("\n")[0]
    return text if isinstance(error, TracetoolError) else f"{type(error).__name__}: {text}"


class Results(Mapping[str, Result]):
    """The results of a run by the name of the analysis; each is computed when it is first asked for."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._known: dict[str, Result] = {}

    def __getitem__(self, name: str) -> Result:
        """Return one result. Raises KeyError that names the analyses there are."""
        if name not in registry.analyses():
            raise KeyError(f"no analysis {name!r}; there are {', '.join(registry.analyses())}")
        self.compute([name])
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(registry.analyses())

    def __len__(self) -> int:
        return len(registry.analyses())

    def computed(self) -> Mapping[str, Result]:
        """Return the results computed so far."""
        return self._known

    def compute(self, names: Sequence[str]) -> None:
        """Compute several results in one pass over the ranks; those already known are not computed again."""
        missing = [name for name in names if name not in self._known]
        if missing:
            self._known.update(self._run._compute(missing))  # noqa: SLF001 - Results is the lazy face of its Run


class Run:
    """A run of one or many ranks, read and ready for questions. Made by `open_run`."""

    def __init__(
        self,
        ingested: Ingested,
        joined: Joined,
        settings: Settings,
        opened: Store,
        *,
        pool: Executor,
        progress: Progress,
        closing: ExitStack,
        warnings: Sequence[str] = (),
    ) -> None:
        self.settings = settings
        self.warnings = tuple(warnings)
        """What the user should know that changes no number, such as a cache that cannot be written."""
        self.damaged = ingested.damaged
        """Sources that were cut, repaired by leaving events out, or could not be read."""
        self.failed = ingested.failed
        """Sentences about sources on which tracetool itself failed; the others were read."""
        self._joined = joined
        view = ingested.view
        view = replace(
            view, path=legible(view.path), joined={**view.joined, **joined.tables}, notes=(*view.notes, *joined.notes)
        )
        self._stored = ingested.ranks
        if settings.anonymize:
            names = names_of(view)
            view = anonymize(view, names, ingested.ignored)
            self._stored = tuple(replace(rank, names=tuple(names.items())) for rank in ingested.ranks)
        self._view = view
        self._store = opened
        self._answers = Answers(opened, view, self._stored, joined, settings)
        self._pool = pool
        self._progress = progress
        self.results = Results(self)
        self._closing = closing
        self._finalizer = weakref.finalize(self, closing.close)

    def close(self) -> None:
        """Let go of the store; without a cache this removes the tables. Also done when the run is forgotten."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # what went wrong decides whether workers may finish or are ended
        self._finalizer.detach()
        self._closing.__exit__(kind, error, trace)

    @property
    def view(self) -> RunView:
        """The small tables of the run: ranks, sources, steps, quality, and what the join found."""
        return self._view

    @property
    def ranks(self) -> list[int]:
        """The ranks that were read, ascending."""
        return [rank.rank for rank in self._stored]

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """Every finding of every analysis, priced and ranked by what it recovers."""
        self.results.compute(list(self.results))
        return self.priced([self.results[name] for name in self.results])

    def priced(self, results: Sequence[Result]) -> tuple[Finding, ...]:
        """Return the findings of some results, priced and ranked."""
        from tracetool.join.price import price  # noqa: PLC0415 - imports polars

        found = [finding for result in results for finding in result.findings]
        priced = self._answers.priced(found)
        if priced is None:
            priced = price(found, self.view.steps, self.view.joined)
            self._answers.keep_priced(found, priced)
        return priced

    def table(self, name: str, rank: int | None = None) -> pl.LazyFrame:
        """Return a table of the data model as a polars LazyFrame: of one rank, or of all, one after the other.

        Raises UsageError for a name or rank that is not there.
        """
        import polars as pl  # noqa: PLC0415 - a script that only reads results may never need it

        from tracetool.tables import SCHEMAS  # noqa: PLC0415 - same

        small = {"ranks": self.view.ranks, "sources": self.view.sources, **self.view.joined}
        if rank is None and name in small:
            return small[name].lazy()
        if name not in SCHEMAS:
            raise UsageError(f"no table {name!r}; there are {', '.join(SCHEMAS)}")
        chosen = [stored for stored in self._stored if rank is None or stored.rank == rank]
        if not chosen:
            raise UsageError(f"no rank {rank} in {self.view.path}; there are {', '.join(map(str, self.ranks))}")
        return pl.concat([stored.scan(name) for stored in chosen], how="diagonal")

    def _compute(self, names: Sequence[str]) -> dict[str, Result]:
        analyses = {name: registry.analyses()[name] for name in names}
        able = {name: _able_ranks(analysis, self.view, self.ranks) for name, analysis in analyses.items()}
        results = {name: skipped(reason) for name, reason in able.items() if isinstance(reason, str)}
        results |= {
            name: kept for name in names if name not in results and (kept := self._answers.result(name)) is not None
        }
        ready = [name for name in names if name not in results]
        jobs = []
        for stored in self._stored:
            mine = tuple(name for name in ready if stored.rank in able[name])
            if mine:
                groups = self._joined.groups_of.get(stored.rank, ())
                jobs.append(
                    RankJob(stored, mine, self.settings, self._joined.folder, groups, keep=self._store.persistent)
                )
        done = 0

        def finished(_: int) -> None:
            nonlocal done
            done += 1
            self._progress("analyzing", done, len(jobs))

        answers = in_order([self._pool.submit(analyze_rank, job) for job in jobs], finished)
        for name in ready:
            given = [answer[name] for answer in answers if name in answer]
            results[name] = _reduce(analyses[name], given, self.view, self.settings)
            self._answers.keep_result(name, results[name])
        return results


def _able_ranks(analysis: Analysis, view: RunView, ranks: Sequence[int]) -> frozenset[int] | str:
    """Return the ranks that meet every need of an analysis, or the sentence that says what is missing."""
    able = set(ranks)
    for need in analysis.NEEDS:
        able &= set(view.features.get(need, ()))
        if not able:
            other = getattr(analysis, "INSTEAD", None)
            answered = other and isinstance(_able_ranks(registry.analyses()[other], view, ranks), frozenset)
            return NEEDS[need].sentence() + (
                f" What other sources recorded of it is answered by `{other}`." if answered else ""
            )
    return frozenset(able)


def _reduce(analysis: Analysis, answers: Sequence[Answer], view: RunView, settings: Settings) -> Result:
    """Put the answers of all ranks together and let the analysis conclude."""
    import polars as pl  # noqa: PLC0415 - see Run.table

    failed = [answer.error for answer in answers if answer.error]
    if failed:
        return Result(status="error", reason=f"{failed[0]}{f' ({len(failed)} ranks)' if len(failed) > 1 else ''}")
    good = [answer.tables for answer in answers if answer.tables is not None]
    names = sorted({name for tables in good for name in tables})
    parts = {name: pl.concat([tables[name] for tables in good if name in tables], how="diagonal") for name in names}
    try:
        return analysis.analyze(parts, view, settings)
    except Exception as error:  # noqa: BLE001 - the contract: an exception is the answer "error", the others still run
        return Result(status="error", reason=_sentence(error))


def cache_root(cache: str | None) -> Path | None:
    """Return the cache directory: the option, $TRACETOOL_CACHE, $XDG_CACHE_HOME/tracetool; None for `off`."""
    chosen = cache or os.environ.get("TRACETOOL_CACHE")
    if chosen:
        return None if chosen == "off" else Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tracetool"


def _silent(phase: str, done: int, total: int) -> None:
    """Report no progress."""


def open_run(
    path: str | os.PathLike[str],
    settings: Settings | None = None,
    *,
    engine: str = "auto",
    memory_bytes: int | None = None,
    cache: str | None = None,
    progress: Progress = _silent,
) -> Run:
    """Read a directory, file or glob of traces and return the Run.

    `settings` holds every option that changes a number; `engine`, `memory_bytes`, `cache` ("off" or a directory)
    and `progress` never do. A cache that cannot be used is no error: `Run.warnings` tells. Raises NothingReadable when
    nothing could be read, UsageError when the request cannot be carried out.
    """
    root = cache_root(cache)
    request = _Request(os.fspath(path), settings or Settings(), engine, memory_bytes, progress)
    try:
        opened = Store(root)
    except OSError as error:
        trouble = f"the cache {root} cannot be used ({error.strerror or error})"
    else:
        try:
            return _read(request, opened)
        except StoreFailed as error:
            if root is None:
                raise
            trouble = str(error)
    return _read(request, Store(None), f"{trouble}; nothing is kept for the next report")


class _Request(NamedTuple):
    """What `open_run` was asked for, without where to keep tables."""

    path: str
    settings: Settings
    engine: str
    memory_bytes: int | None
    progress: Progress


def _read(request: _Request, opened: Store, *warnings: str) -> Run:
    """Read the run into an open store, which then belongs to the Run."""
    path, settings, engine, memory_bytes, progress = request
    with ExitStack() as stack:
        stack.enter_context(opened)
        pool: Executor = SerialExecutor()

        def start(jobs: int, work_bytes: int) -> Executor:
            nonlocal pool
            pool = stack.enter_context(executor(engine, jobs=jobs, work_bytes=work_bytes, memory_bytes=memory_bytes))
            return pool

        ingested = ingest(path, settings, opened, start, progress)
        joined = join(
            ingested.ranks,
            ingested.uses,
            ingested.view.ranks,
            settings,
            opened,
            sources=ingested.view.sources,
            pool=pool,
            progress=progress,
        )
        closing = stack.pop_all()
    return Run(ingested, joined, settings, opened, pool=pool, progress=progress, closing=closing, warnings=warnings)
