"""What runs under the recorder: clients that hand mail to a real spool, and deliveries that finish it.

python -m tests.crash.workload DIRECTORY SEED CLIENTS ROUNDS [JOURNAL]; it tells what it did in DIRECTORY/marks.ledger.
It waits less for company than the daemon does, and keeps less in the journal.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import sys
import time
from dataclasses import replace
from pathlib import Path

from edgemail.clock import SystemClock
from edgemail.envelope import Address, Envelope, Recipient
from edgemail.errors import Kind
from edgemail.spool import journal, writer
from edgemail.spool.store import Store, open_store
from edgemail.spool.verbs import Change

SPOOL_SIZE = 64 * 1024 * 1024
SIZES = (300, 2_000, 4_000, 20_000, 70_000, 200_000)
NOTICES = (500, 500, 30_000, 65_000)  # the last one is too long for the journal, whatever it is about
SOONER = ((writer, "LAZY_SECONDS", 0.02), (writer, "IDLE_SECONDS", 0.01), (journal, "WAITING_BYTES", 65_536))
SENDER = Address("printer", "site7.example")
RECIPIENT = Recipient(Address("you", "example.com"))


def letter(rng: random.Random, head: bytes, size: int) -> bytes:
    """About so many octets that nobody changes on their way, each time others."""
    lines = (b"%072x\r\n" % rng.getrandbits(288) for _ in range(size // 74))
    return b"\r\n".join((head, b"Message-ID: <%x@site7.example>" % rng.getrandbits(64), b"", b"".join(lines)))


async def client(store: Store, rng: random.Random, rounds: int, ledger: int) -> None:
    """Accept, defer some, finish some; every step is marked before or after it as the ledger's words say."""

    def mark(kind: str, id: int, more: str = "") -> None:
        os.write(ledger, f"{kind} {id} {more}\n".encode())

    for number in range(rounds):
        content = letter(rng, b"Subject: a scan", rng.choice(SIZES) + rng.randrange(100))
        intake = store.intake()
        mark("I", intake.id, hashlib.sha256(content).hexdigest())
        for at in range(0, len(content), 9_000):
            intake.write(content[at : at + 9_000])
            await intake.drain()
        if number % 7 == 6:
            await intake.abort()
            continue
        kept = await intake.commit(Envelope(0, SENDER, (RECIPIENT,), received_at=time.time()))
        mark("A", kept.id)
        if rng.random() < 0.5:
            deferred = replace(RECIPIENT, reason="connection refused", status="4.4.1", kind=Kind.ROUTE)
            kept = replace(kept, attempts=1, next_attempt=1e9, recipients=(deferred,))
            await store.apply(Change(update=(kept,)), lazy=rng.random() < 0.5)
        if rng.random() < 0.1:
            await asyncio.sleep(2 * writer.IDLE_SECONDS)
        if rng.random() < 0.6:
            if b"".join(store.body(kept.id)) != content:
                raise AssertionError(f"{kept.id}: a delivery reads something else")
            mark("G", kept.id)
            if rng.random() < 0.3:  # with its bounce, in one transaction
                notice = store.intake()
                text = letter(rng, b"Subject: Undelivered Mail Returned to Sender", rng.choice(NOTICES))
                mark("I", notice.id, hashlib.sha256(text).hexdigest())
                notice.write(text)
                bounce = Envelope(0, Address(""), (Recipient(SENDER),), received_at=time.time(), bounce=True)
                await notice.commit(bounce, Change(remove=(kept.id,)))
                mark("A", notice.id)
            else:
                await store.apply(Change(remove=(kept.id,)), lazy=rng.random() < 0.5)
            mark("F", kept.id)


async def main(directory: Path, seed: int, clients: int, rounds: int, size: int = 0) -> None:
    for module, name, value in SOONER:
        setattr(module, name, value)
    ledger = os.open(directory / "marks.ledger", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    store = open_store(directory / "spool", SPOOL_SIZE, SystemClock(), 0, size)
    await asyncio.gather(*(client(store, random.Random(seed * 1000 + n), rounds, ledger) for n in range(clients)))
    if seed % 2:
        await store.close()
    os._exit(0)  # an even seed ends as a power cut does, with nothing tidied


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), *(int(word) for word in sys.argv[2:])))
