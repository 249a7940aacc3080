"""The command line: parses arguments, calls the library, prints. The only place that prints or exits.

stdout carries results; progress, warnings and errors go to stderr. Heavy imports stand inside the commands, so
that `tracetool --help` does not wait for polars.
"""

from __future__ import annotations

import inspect
import os
import shlex
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from tracetool import __version__
from tracetool.errors import TracetoolError, UsageError
from tracetool.options import RunOptions, parse_bytes, run_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracetool.report import Report
    from tracetool.run import Run

app = typer.Typer(
    name="tracetool",
    help="Where did the step time go? Analyze PyTorch, NCCL and Nsight traces of distributed LLM training.",
    rich_markup_mode=None,  # rich help alone costs 0.3 s
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

EXIT_DEFECT, EXIT_PARTLY_READ, EXIT_INTERRUPTED = 1, 5, 130
_ESTIMATE_BYTES_PER_S = 25_000_000
_ESTIMATE_WORTH_S = 60
_PROGRESS_LINE_EVERY_S = 10
_MOST_NAMED = 8


class TableFormat(StrEnum):
    """How `analyze` writes its answer."""

    table = "table"
    json = "json"
    csv = "csv"
    md = "md"


RunArgument = Annotated[str, typer.Argument(help="Directory (searched recursively), file or glob.", metavar="RUN")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")]


@app.callback(invoke_without_command=True)
def _top(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
@run_options
def report(
    run: RunArgument,
    output: Annotated[Path, typer.Option("-o", "--output", help="The HTML file.", metavar="FILE")] = Path(
        "tracetool-report.html"
    ),
    json: Annotated[str | None, typer.Option(help="Also the JSON document; - for stdout.", metavar="FILE")] = None,
    md: Annotated[str | None, typer.Option(help="Also as Markdown; - for stdout.", metavar="FILE")] = None,
    force: Force = False,
    *,
    options: RunOptions,
) -> None:
    """Analyze a run and write the HTML report: the main job."""
    from tracetool import report as reports

    if json == "-" and md == "-":
        raise UsageError("--json - and --md - both want stdout; give one of them a file")
    files = [str(output), *(name for name in (json, md) if name and name != "-")]
    for name in files:
        reports.refuse_overwrite(Path(name), force=force)
    with _opened(run, options) as opened:
        made = _report(opened, options, "report")
        _write_page(output, made, options, force=force)
        if json:
            _put(json, reports.to_json(reports.document(made)), force=force)
        if md:
            _put(md, reports.render_markdown(made).encode(), force=force)
        if "-" in (json, md):
            _say(str(output), options)
        else:
            if not options.quiet:
                print(_terminal(made, options))
            print(output)
        _finish(opened, options)


@app.command()
@run_options
def summary(run: RunArgument, *, options: RunOptions) -> None:
    """Analyze a run and print the summary in the terminal."""
    with _opened(run, options) as opened:
        print(_terminal(_report(opened, options, "summary"), options))
        _finish(opened, options)


@app.command()
@run_options
def analyze(
    run: RunArgument,
    names: Annotated[list[str] | None, typer.Argument(help="Questions; all by default.", metavar="[NAME]...")] = None,
    form: Annotated[TableFormat, typer.Option("--format", help="How to write the answer.")] = TableFormat.table,
    *,
    options: RunOptions,
) -> None:
    """Ask one or more questions and print the answers."""
    from tracetool import registry
    from tracetool import report as reports

    unknown = [name for name in names or [] if name not in registry.analyses()]
    if unknown:
        raise UsageError(f"no analysis {', '.join(unknown)}; there are {', '.join(registry.analyses())}")
    with _opened(run, options) as opened:
        made = _report(opened, options, "analyze", names or None)
        if form is TableFormat.json:
            _put("-", reports.to_json(reports.document(made)))
        else:
            print(reports.render_results(made, form.value, width=_width()))
        _finish(opened, options)


@app.command()
@run_options
def postmortem(
    run: Annotated[str, typer.Argument(help="Directory of dumps, logs or traces of the job.", metavar="DIR")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Also as HTML.", metavar="FILE")] = None,
    json: Annotated[str | None, typer.Option(help="Also the JSON document; - for stdout.", metavar="FILE")] = None,
    force: Force = False,
    *,
    options: RunOptions,
) -> None:
    """Say who hung a job, where, why, and how sure that is. Exits 0 whatever the verdict."""
    from tracetool import report as reports
    from tracetool.postmortem import QUESTIONS, lines

    for name in (output, Path(json) if json and json != "-" else None):
        if name:
            reports.refuse_overwrite(name, force=force)
    with _opened(run, options) as opened:
        made = _report(opened, options, "postmortem", QUESTIONS)
        if json != "-":
            print("\n".join(lines(made.results)))
        if json:
            _put(json, reports.to_json(reports.document(made)), force=force)
        if output:
            _write_page(output, made, options, force=force)
            _say(str(output), options)
        _finish(opened, options)


@app.command()
@run_options
def sql(
    run: RunArgument,
    query: Annotated[str, typer.Argument(help="A select over the tables of `tracetool schema`.", metavar="QUERY")],
    form: Annotated[TableFormat, typer.Option("--format", help="How to write the answer.")] = TableFormat.table,
    *,
    options: RunOptions,
) -> None:
    """Run a polars SQL query over the tables of a run."""
    from tracetool.query import query_run, render_frame

    with _opened(run, options) as opened:
        print(render_frame(query_run(opened, query), form.value), end="")
        _finish(opened, options)


@app.command()
def schema() -> None:
    """Print every table of the data model with what each column means."""
    from tracetool.tables import SCHEMAS

    for name, table in SCHEMAS.items():
        print(f"{name}: {table.doc}")
        for column, described in table.columns.items():
            null = ", null where not said" if described.nullable else ""
            print(f"  {column}  {described.dtype}{null}\n      {described.doc}")
        print()


@app.command()
def formats() -> None:
    """Print the trace formats that can be read."""
    from tracetool import registry

    for parser in registry.parsers():
        print(f"{parser.FORMAT:<22} {_first_line(parser.__doc__)}")


@app.command()
def analyses() -> None:
    """Print the questions that can be asked."""
    from tracetool import registry

    for name, analysis in registry.analyses().items():
        print(f"{name:<16} {analysis.TITLE}")
        print(f"{'':<16} {_first_line(analysis.__doc__)}")


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]


def _opened(run: str, options: RunOptions) -> Run:
    from tracetool.run import open_run

    opened = open_run(
        run,
        options.settings(),
        engine=options.engine,
        memory_bytes=parse_bytes("--memory", options.memory),
        cache=options.cache,
        progress=_Progress(shown=not (options.quiet or options.no_progress), color=not options.no_color),
    )
    for warning in opened.warnings:
        _say(f"tracetool: {warning}", options)
    return opened


def _report(run: Run, options: RunOptions, command: str, names: Sequence[str] | None = None) -> Report:
    from tracetool import registry
    from tracetool.report import Report

    chosen = list(names or run.results)
    run.results.compute(chosen)
    results = {name: run.results[name] for name in chosen}
    modules = {name: registry.analyses()[name] for name in chosen}
    return Report(
        run=run.view,
        results=results,
        findings=run.priced(list(results.values())),
        titles={name: module.TITLE for name, module in modules.items()},
        definitions={name: inspect.cleandoc(module.__doc__) for name, module in modules.items()},
        command=f"tracetool {command} {shlex.quote(run.view.path)} {options.said()}".strip(),
        version=__version__,
    )


def _write_page(path: Path, made: Report, options: RunOptions, *, force: bool) -> None:
    """Write the HTML page, and say on stderr what had to be left out of it."""
    from tracetool.report import render_page, write

    page = render_page(made)
    write(path, page.html, force=force)
    for note in page.notes:
        _say(f"{path}: {note}", options)


def _terminal(made: Report, options: RunOptions) -> str:
    from tracetool.report import render_terminal

    color = sys.stdout.isatty() and not options.no_color and not os.environ.get("NO_COLOR")
    text: str = render_terminal(made, color=color, width=_width())
    return text


def _width() -> int:
    import shutil

    return min(120, shutil.get_terminal_size((100, 24)).columns)


def _put(name: str, content: bytes, *, force: bool = False) -> None:
    """Write a result to a file, or to stdout for `-`."""
    from tracetool.report import write

    if name == "-":
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    else:
        write(Path(name), content.decode(), force=force)


def _say(line: str, options: RunOptions) -> None:
    if not options.quiet:
        print(line, file=sys.stderr)


def _finish(run: Run, options: RunOptions) -> None:
    """Exit with what has to be said of the run as a whole; nothing to say is success."""
    failed = [name for name, result in run.results.computed().items() if result.status == "error"]
    for name in failed:
        reason = run.results[name].reason
        print(f"tracetool: {name} failed, please report this: {reason}", file=sys.stderr)
    for sentence in run.failed:
        print(f"tracetool: {sentence}", file=sys.stderr)
    for source in run.damaged[:_MOST_NAMED]:
        _say(f"tracetool: {source} was read only in part or not at all; the report says what is missing", options)
    if len(run.damaged) > _MOST_NAMED:
        _say(f"tracetool: so were {len(run.damaged) - _MOST_NAMED} more", options)
    if failed or run.failed:
        raise typer.Exit(EXIT_DEFECT)
    if run.damaged and options.strict:
        raise typer.Exit(EXIT_PARTLY_READ)


class _Progress:
    """Progress on stderr: a bar by bytes on a terminal, elsewhere a line every ten seconds."""

    def __init__(self, *, shown: bool, color: bool) -> None:
        self._shown = shown
        self._color = color
        self._bar: Any = None
        self._task: Any = None
        self._phase = ""
        self._said_at = time.monotonic()

    def __call__(self, phase: str, done: int, total: int) -> None:
        if not self._shown:
            return
        if phase == "found":
            self._estimate(done, total)
        elif sys.stderr.isatty():
            self._draw(phase, done, total)
        elif time.monotonic() - self._said_at > _PROGRESS_LINE_EVERY_S:
            self._said_at = time.monotonic()
            print(f"{phase}: {100 * done // max(1, total)} %", file=sys.stderr)

    def _estimate(self, sources: int, work_bytes: int) -> None:
        from tracetool.engine import available_cores

        seconds = work_bytes / _ESTIMATE_BYTES_PER_S / min(sources, available_cores())
        if seconds > _ESTIMATE_WORTH_S:
            print(f"{sources} traces, about {seconds / 60:.0f} min; --ranks looks at some", file=sys.stderr)

    def _draw(self, phase: str, done: int, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        if phase != self._phase:
            self._stop()
            console = Console(stderr=True, no_color=not self._color)
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(phase, total=max(1, total))
            self._phase = phase
        self._bar.update(self._task, completed=done)
        if done >= total:
            self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar, self._phase = None, ""


def main() -> NoReturn:
    """Run the command line; every error becomes one sentence on stderr and an exit code (130 when interrupted)."""
    try:
        code = app(standalone_mode=False)
    except typer.Abort:
        code = EXIT_INTERRUPTED
    except TracetoolError as error:
        print(f"tracetool: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        _leave_closed_pipe()
    except SystemExit as exited:
        # typer makes 1 of a pipe that was closed inside a command
        if isinstance(exited.__context__, BrokenPipeError):
            _leave_closed_pipe()
        raise
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):
            error.show()  # wrong usage: typer's own class for it is private
            sys.exit(error.exit_code)
        if os.environ.get("TRACETOOL_DEBUG"):
            raise
        print(
            f"tracetool: a defect of tracetool, please report it: {type(error).__name__}: {error} "
            "(TRACETOOL_DEBUG=1 shows where)",
            file=sys.stderr,
        )
        sys.exit(EXIT_DEFECT)
    if code == EXIT_INTERRUPTED:
        print("tracetool: interrupted", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


def _leave_closed_pipe() -> NoReturn:
    """Exit well: the reader of our output has seen enough. Keeps the interpreter from complaining at exit."""
    sys.stdout = sys.__stdout__
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno() if sys.stdout else 1)
    sys.exit(0)
