"""One measurement in a process of its own: `python measure.py WHAT TRACE FOLDER` prints one line of JSON.

CPU seconds are of this process and its children, all threads, kernel time included; what is imported first, and the
memory that takes, is told apart. Memory `above` is the peak of resident memory since then without the pages of program
files, which are read only and shared (polars alone maps some 50 MB of them when first used).
Nothing but the standard library is imported at the top: the same file runs under the interpreter of another tool.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

NAMED = ("budget", "overlap", "kernels", "host")
"""The analyses that answer what HolisticTraceAnalysis is asked: temporal breakdown, idle, overlap, kernels, queue."""
_REPORT_MODULES = (
    "tracetool.cli", "numpy.ma", "polars", "tracetool.run", "tracetool.report", "tracetool.derive",
    "tracetool.join.clocks", "tracetool.join.groups", "tracetool.join.match", "tracetool.join.price",
    "tracetool.join.summary", "tracetool.join.waits",
)  # fmt: skip


def _load_tracetool() -> None:
    for name in _REPORT_MODULES:
        importlib.import_module(name)
    from tracetool import registry  # noqa: PLC0415 - only where tracetool is what is measured

    registry.parsers()
    registry.analyses()


def loads(trace: Path, _: Path) -> str:
    """Decode the whole text with orjson, garbage collector off."""
    import orjson  # noqa: PLC0415 - not there under every interpreter

    text = trace.read_bytes()
    gc.disable()
    mark = _Mark(before_bytes=len(text))
    document = orjson.loads(text)
    told = mark.told()
    del document
    return told


def ingest(trace: Path, folder: Path) -> str:
    """Parse, sort and write Parquet."""
    _load_tracetool()
    from tracetool import registry, store  # noqa: PLC0415 - see _load_tracetool

    parser = next(parser for parser in registry.parsers() if parser.FORMAT == "kineto")
    mark = _Mark()
    store.write_tables(folder, parser.parse(trace, registry.ParseOptions(display_path=trace.name)))
    return mark.told()


def report(trace: Path, folder: Path) -> str:
    """Answer every question and write the HTML page; the cache is in `folder`, empty or from the last time."""
    _load_tracetool()
    return _command(
        ["report", str(trace), "-o", str(folder / "page.html"), "--force", "--cache", str(folder / "cache")]
    )


def named(trace: Path, _: Path) -> str:
    """Answer the questions that HolisticTraceAnalysis is asked, without a cache."""
    _load_tracetool()
    return _command(["analyze", str(trace), *NAMED, "--format", "json", "--cache", "off"])


def _command(arguments: list[str]) -> str:
    _run(["formats"])  # what typer imports for any command is start-up
    mark = _Mark()
    _run([*arguments, "--engine", "serial", "--quiet"])
    return mark.told()


def _run(arguments: list[str]) -> None:
    from tracetool import cli  # noqa: PLC0415 - see _load_tracetool

    sys.argv = ["tracetool", *arguments]
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO())):
        try:
            cli.main()
        except SystemExit as exited:
            if exited.code:
                raise RuntimeError(f"exit code {exited.code}") from None


def hta(trace: Path, _: Path) -> str:
    """Ask HolisticTraceAnalysis: load, temporal breakdown, overlap, kernel breakdown, idle time, queue length."""
    analysis = importlib.import_module("hta.trace_analysis").TraceAnalysis
    mark = _Mark()
    with contextlib.redirect_stdout(io.StringIO()):
        opened = analysis(trace_files={0: str(trace)})
        opened.get_temporal_breakdown(visualize=False)
        opened.get_comm_comp_overlap(visualize=False)
        opened.get_gpu_kernel_breakdown(visualize=False)
        opened.get_idle_time_breakdown(ranks=[0], visualize=False)
        opened.get_queue_length_summary(ranks=[0])
    return mark.told()


def start(_: Path, __: Path) -> str:
    """Print the help, in a process of its own: the price of starting."""
    mark = _Mark()
    script = "import sys; sys.argv = ['tracetool', '--help']; import tracetool.cli; tracetool.cli.main()"
    subprocess.run([sys.executable, "-c", script], stdout=subprocess.DEVNULL, check=True)
    return mark.told()


class _Mark:
    """Where the measurement begins: everything before it is start-up."""

    def __init__(self, before_bytes: int = 0) -> None:
        gc.collect()
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak counts from here
        self._held = _status("RssAnon") - before_bytes
        self._cpu = _cpu_s()
        self._wall = time.perf_counter()

    def told(self) -> str:
        """Return what it took, as JSON."""
        cpu, wall, peak = _cpu_s() - self._cpu, time.perf_counter() - self._wall, _status("VmHWM")
        return json.dumps(
            {
                "cpu_s": cpu,
                "wall_s": wall,
                "start_cpu_s": self._cpu,
                "peak": peak,
                "above": peak - _status("RssFile") - self._held,
            }
        )


def _cpu_s() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _status(key: str) -> int:
    """Return a figure of /proc/self/status in bytes: unlike ru_maxrss it knows nothing of the parent process."""
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


WHAT: dict[str, Callable[[Path, Path], str]] = {
    "loads": loads, "ingest": ingest, "report": report, "second": report, "named": named, "hta": hta, "start": start,
}  # fmt: skip


def main() -> None:
    """Measure one thing and print it."""
    what, trace, folder = sys.argv[1:]
    own = Path(tempfile.mkdtemp()) if what not in ("report", "second") else Path(folder)
    try:
        if what == "report":
            shutil.rmtree(own / "cache", ignore_errors=True)
        sys.stdout.write(WHAT[what](Path(trace), own) + "\n")
    finally:
        if what not in ("report", "second"):
            shutil.rmtree(own)


if __name__ == "__main__":
    main()
