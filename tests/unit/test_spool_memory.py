"""What the spool costs in memory while mail streams through it, measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

MEGABYTE = 1 << 20
CHILD = """
import asyncio, json, os, sys
from pathlib import Path
from edgemail.clock import SystemClock
from edgemail.envelope import Address, Envelope
from edgemail.spool.store import open_store

MAIL = Envelope(0, Address("a", "example.com"), ())
senders, size = int(sys.argv[2]), int(sys.argv[3])
piece = os.urandom(65536)

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))

async def send(store):
    global peak
    intake = store.intake()
    while intake.size < size:
        intake.write(piece)
        peak = max(peak, anonymous())
        await intake.drain()
    kept = await intake.commit(MAIL)
    peak = max(peak, anonymous())
    return kept

async def read(store, id):
    global peak
    got = 0
    for chunk in store.body(id):
        got += len(chunk)
        peak = max(peak, anonymous())
        await asyncio.sleep(0)
    assert got == size

async def main():
    global peak
    store = open_store(Path(sys.argv[1]), 512 << 20, SystemClock(), 0)
    intake = store.intake()
    intake.write(piece * 2)
    await intake.commit(MAIL)
    before = peak = anonymous()
    kept = await asyncio.gather(*(send(store) for _ in range(senders)))
    taken, peak = peak - before, 0
    await asyncio.gather(*(read(store, envelope.id) for envelope in kept))
    print(json.dumps({"taken": taken, "read": peak - before}))
    await store.close()

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("senders", "size", "limit"), [(1, 25 * MEGABYTE, 4 * MEGABYTE), (50, 2 * MEGABYTE, 20 * MEGABYTE)]
)
def test_a_long_message_is_never_in_memory_whole(tmp_path: Path, senders: int, size: int, limit: int) -> None:
    command = [sys.executable, "-c", CHILD, str(tmp_path), str(senders), str(size)]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    figures = json.loads(said.stdout)
    assert figures["taken"] < limit, figures
    assert figures["read"] < limit, figures
