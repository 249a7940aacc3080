"""Where jobs run: in this process, in workers on this machine, or on a Dask cluster.

The engine only hands out a `concurrent.futures.Executor`; nothing else knows which one it is, and results are
always taken in the order the jobs were given, so the answer does not depend on it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import sys
import types
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from tracetool.errors import TracetoolError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_Args = ParamSpec("_Args")
_Answer = TypeVar("_Answer")

SERIAL_BELOW_BYTES = 50_000_000
"""Runs smaller than this are read in this process: starting workers would cost more than it saves."""
_JOB_BYTES = 1_500_000_000
"""Memory one worker is counted with when workers are limited by memory."""


class SerialExecutor(Executor):
    """Runs every job at once in the calling process."""

    def submit(self, fn: Callable[_Args, _Answer], /, *args: _Args.args, **kwargs: _Args.kwargs) -> Future[_Answer]:
        """Run the job now and return its finished future."""
        future: Future[_Answer] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - whatever a job raises belongs to its future
            future.set_exception(error)
        return future


class SpawnExecutor(ProcessPoolExecutor):
    """Worker processes that start clean: by spawn (polars hangs after fork), with one polars thread each.

    They do not import the calling script again, so a post-mortem script needs no `if __name__ == "__main__"`.
    """

    def __init__(self, workers: int) -> None:
        super().__init__(workers, mp_context=multiprocessing.get_context("spawn"))

    def submit(self, fn: Callable[_Args, _Answer], /, *args: _Args.args, **kwargs: _Args.kwargs) -> Future[_Answer]:
        """Queue the job; workers start here, on demand."""
        with _clean_start():
            return super().submit(fn, *args, **kwargs)

    def stop(self) -> None:
        """End the workers at once: nobody wants their answers any more."""
        workers = list((self._processes or {}).values())
        self.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.join()


@contextlib.contextmanager
def _clean_start() -> Iterator[None]:
    """Let processes started inside see one polars thread, no main module to import again, and no Ctrl-C.

    Ctrl-C reaches every process of the terminal; this one answers it and ends the workers.
    """
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    main, threads = sys.modules["__main__"], os.environ.get("POLARS_MAX_THREADS")
    sys.modules["__main__"] = types.ModuleType("__main__")
    os.environ["POLARS_MAX_THREADS"] = "1"
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        if threads is None:
            del os.environ["POLARS_MAX_THREADS"]
        else:
            os.environ["POLARS_MAX_THREADS"] = threads
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


@contextlib.contextmanager
def executor(engine: str, *, jobs: int, work_bytes: int, memory_bytes: int | None = None) -> Iterator[Executor]:
    """Yield an executor for `jobs` jobs that read about `work_bytes` in all.

    `engine` is auto, serial, processes, processes:N or dask://HOST:PORT. Raises UsageError for any other.
    """
    if engine.startswith("dask://"):
        with _dask(engine.removeprefix("dask://")) as remote:
            yield remote
        return
    workers = worker_count(engine, jobs=jobs, work_bytes=work_bytes, memory_bytes=memory_bytes)
    if workers == 0:
        yield SerialExecutor()
        return
    pool = SpawnExecutor(workers)
    try:
        yield pool
    except BaseException:
        pool.stop()
        raise
    pool.shutdown()


def worker_count(engine: str, *, jobs: int, work_bytes: int, memory_bytes: int | None = None) -> int:
    """Return how many worker processes to start; 0 means to work in this process."""
    wanted = re.fullmatch(r"auto|serial|processes(?::([1-9]\d*))?", engine)
    if not wanted:
        raise UsageError(f"unknown engine {engine!r}; say auto, serial, processes, processes:N or dask://HOST:PORT")
    if engine == "serial" or (engine == "auto" and (work_bytes < SERIAL_BELOW_BYTES or jobs < 2)):  # noqa: PLR2004 - two jobs
        return 0
    if wanted[1]:
        return int(wanted[1])
    memory = memory_bytes or available_memory_bytes()
    return max(1, min(jobs, available_cores(), memory // _JOB_BYTES))


def available_cores() -> int:
    """Return the cores this process may really use: its affinity, cut by its cgroup's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _first_line("/sys/fs/cgroup/cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit():  # noqa: PLR2004 - "quota period"
        cores = min(cores, max(1, int(quota[0]) // int(quota[1])))
    return cores


def available_memory_bytes() -> int:
    """Return the memory this process may really use: the machine's, cut by its cgroup's limit."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _first_line("/sys/fs/cgroup/memory.max")
    return min(machine, int(limit)) if limit.isdigit() else machine


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").partition("\n")[0]
    except OSError:  # not Linux, or no cgroup v2
        return ""


@contextlib.contextmanager
def _dask(address: str) -> Iterator[Executor]:
    try:
        from distributed import Client  # noqa: PLC0415 - an optional extra
    except ImportError:
        raise UsageError("the engine dask:// needs the extra: pip install 'llm-tracetool[dask]'") from None
    with Client(address) as client:
        yield client.get_executor()


def in_order(futures: Sequence[Future[_Answer]], finished: Callable[[int], Any]) -> list[_Answer]:
    """Return the answers in the order the jobs were given; call `finished` with a job's position as each ends.

    The first job that fails stops the rest. A worker that died (most often: out of memory) becomes a
    TracetoolError that says so.
    """
    from concurrent.futures import as_completed  # noqa: PLC0415 - keeps the module's names few
    from concurrent.futures.process import BrokenProcessPool  # noqa: PLC0415 - same

    positions = {future: position for position, future in enumerate(futures)}
    try:
        for future in as_completed(futures):
            future.result()
            finished(positions[future])
    except BrokenProcessPool:
        raise TracetoolError(
            "a worker process died, most likely for want of memory; try --engine processes:1 or fewer --ranks"
        ) from None
    except BaseException:
        for future in futures:
            future.cancel()
        raise
    return [future.result() for future in futures]
