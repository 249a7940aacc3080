"""The worked post-mortem script runs, and finds in the troubled sample what was put there."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def test_the_post_mortem_script_finds_the_slow_rank_and_the_late_host(repository: Path, tmp_path: Path) -> None:
    samples = repository / "sample_traces"
    done = subprocess.run(
        [sys.executable, samples / "postmortem.py", samples / "troubled"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TRACETOOL_CACHE": str(tmp_path)},
    )
    assert done.stderr == ""
    assert "Rank 5 computes 1.2" in done.stdout
    assert "Rank 2's GPU waits most for its host" in done.stdout
    assert done.stdout.startswith("# ")
    assert "What to fix" in done.stdout
