"""Fixtures every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# machines are noisy, so no example has a time limit; where tests decide, they draw the same examples every time
settings.register_profile("everywhere", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("everywhere")

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED_TRACES = REPOSITORY.parent / "shared" / "traces"


@pytest.fixture(scope="session")
def repository() -> Path:
    """Return the root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of reference traces that stands beside the checkout; skip the test where it does not."""
    if not SHARED_TRACES.is_dir():
        pytest.skip("no ../shared/traces here: reference traces are not part of the project")
    return SHARED_TRACES
