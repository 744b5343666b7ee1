"""Opens a spool as the daemon does, and does no more: python -m tests.crash.recovery DIRECTORY JOURNAL."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from edgemail.clock import SystemClock
from edgemail.spool.store import open_store
from tests.crash.workload import SPOOL_SIZE


async def main(directory: Path, journal: int) -> None:
    open_store(directory, SPOOL_SIZE, SystemClock(), 0, journal)
    os._exit(0)  # as a power cut ends it


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
