"""Writes exports of Nsight Systems as several generations of nsys lay them out, from plain lists of what happened.

    capture = Capture(kernels=[Kernel(pid=144, device=0, stream=7, start=100, end=200, correlation=5, name="gemm")])
    path = write(tmp_path / "report.sqlite", capture, generation="V325")

It imports nothing of tracetool. Column names, order and types are those of the exports; the SQL is our own.
"""

from simulator_nsight.capture import (
    Call,
    Capture,
    Copy,
    Gpu,
    Graph,
    Kernel,
    Range,
    Record,
    Sync,
    Warned,
)
from simulator_nsight.schema import GENERATIONS
from simulator_nsight.writer import tables, write

__all__ = [
    "GENERATIONS", "Call", "Capture", "Copy", "Gpu", "Graph", "Kernel", "Range", "Record", "Sync", "Warned", "tables",
    "write",
]  # fmt: skip
