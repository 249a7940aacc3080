"""The report in all its forms, and how it gets into a file. Every form prints the same results and computes nothing."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from tracetool.document import Report, document, to_json
from tracetool.errors import UsageError
from tracetool.page import Page, render_html, render_page
from tracetool.plain import render_markdown, render_result, render_results, render_table, render_terminal

__all__ = [
    "Page",
    "Report",
    "document",
    "refuse_overwrite",
    "render_html",
    "render_markdown",
    "render_page",
    "render_result",
    "render_results",
    "render_table",
    "render_terminal",
    "to_json",
    "write",
]


def refuse_overwrite(path: Path, *, force: bool) -> None:
    """Raise UsageError when `path` exists and may not be overwritten, or its folder does not exist."""
    if path.is_dir():
        raise UsageError(f"{path} is a directory; name a file")
    if path.exists() and not force:
        raise UsageError(f"{path} exists; --force overwrites it")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no directory {path.parent}; make it first")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"{path}: {path.parent} is not writable; name another file with -o")


def write(path: Path, text: str, *, force: bool = False) -> None:
    """Write `text` as UTF-8: to a temporary name in the same folder, then renamed, so that no half file is ever seen.

    Raises UsageError when the file exists and `force` is not given.
    """
    refuse_overwrite(path, force=force)
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}; name another file with -o") from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode())
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise
