"""The errors tracetool raises on purpose. Each message says what happened, where, and what to do next.

TracetoolError
├── UsageError          the request cannot be carried out as asked (exit 2)
│   └── NotComparable   two runs that must not be set side by side (exit 2)
├── UnreadableTrace     one source of which nothing could be had (exit 4 when it is all there is)
├── StoreFailed         tables could not be written to the store or the cache (exit 1)
└── NothingReadable     no source of the run could be read (exit 4)
"""

from __future__ import annotations


class TracetoolError(Exception):
    """Base of every error raised on purpose; its text is a complete sentence for the user."""

    exit_code = 1


class UsageError(TracetoolError):
    """The request itself is wrong: an unknown name, an impossible option, a rank that is not there."""

    exit_code = 2


class NotComparable(UsageError):
    """Two runs were to be compared that differ in what makes a comparison meaningful."""


class UnreadableTrace(TracetoolError):
    """A source of a known format from which not a single event could be read.

    `path` names the file, `byte` the offset in the decompressed stream where reading stopped (None when
    the format has no meaningful offset), `reason` what stood there.
    """

    exit_code = 4

    def __init__(self, path: str, reason: str, byte: int | None = None) -> None:
        where = path if byte is None else f"{path}, byte {byte}"
        super().__init__(f"{where}: {reason}")
        self.path = path
        self.reason = reason
        self.byte = byte

    def __reduce__(self) -> tuple[type[UnreadableTrace], tuple[str, str, int | None]]:
        # workers are processes: the default pickling would call __init__ with the finished sentence
        return (UnreadableTrace, (self.path, self.reason, self.byte))


class StoreFailed(TracetoolError):
    """Tables could not be written (the disk is full or read-only), or vanished while they were in use."""


class NothingReadable(TracetoolError):
    """No trace was found or none of those found could be read."""

    exit_code = 4
