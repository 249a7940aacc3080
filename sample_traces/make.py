"""Make the simulated sample traces again: `python sample_traces/make.py [DIRECTORY]` (default: beside this file)."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

from simulator import samples  # noqa: E402 - the simulator lives beside the tests

if __name__ == "__main__":
    for path in samples.write(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE):
        sys.stdout.write(f"{path}\n")
