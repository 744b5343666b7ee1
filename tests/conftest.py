"""For all tests: examples of hypothesis have no deadline, and spools leave nothing in memory behind.

How long an example takes says something of the machine, not of the code.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("edgemail", deadline=None)
settings.load_profile("edgemail")

SHARED = Path("/dev/shm")


@pytest.fixture(scope="session", autouse=True)
def reader_slots() -> Iterator[None]:
    """A place for the reader slots of all spools, gone with the run: who is killed does not take its own away."""
    before = os.environ.get("RUNTIME_DIRECTORY")
    where = SHARED if os.access(SHARED, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="edgemail-tests-", dir=where, ignore_cleanup_errors=True) as place:
        Path(place).chmod(0o1777)  # some of them run as another user
        os.environ["RUNTIME_DIRECTORY"] = place
        yield
    if before is None:
        del os.environ["RUNTIME_DIRECTORY"]
    else:
        os.environ["RUNTIME_DIRECTORY"] = before
