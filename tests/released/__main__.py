"""Writes the spools that a release is remembered by: python -m tests.released (HACKING.md says when).

Three, as VERSION.tar.xz: one closed in order, one of a process that was killed, and one of such a one with a journal.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from edgemail import __version__
from edgemail.clock import ManualClock
from edgemail.envelope import Address, Body, Envelope, Notify, Origin, Recipient, Ret
from edgemail.errors import Kind
from edgemail.spool.journal_layout import MIN_SIZE
from edgemail.spool.store import Store, open_store
from edgemail.spool.verbs import Change

PLACE: Final = Path(__file__).parent
SPOOLS: Final = {"closed": None, "killed": 0, "journal": MIN_SIZE}  # by name: the size of the journal
SIZE: Final = 1 << 20


def messages() -> Iterator[tuple[Envelope, bytes]]:
    """One of everything that an envelope can say."""
    plain = Envelope(0, Address("a", "example.com"), (Recipient(Address("b", "example.net")),), received_at=1e9)
    yield plain, b"Subject: plain\r\n\r\nhello\r\n"
    yield plain, b""
    yield plain, b"Subject: large\r\n\r\n" + b"0123456789abcde\r\n" * 9000
    waiting = (
        Recipient(
            Address("ü", "example.net"),
            Notify.FAILURE | Notify.DELAY,
            "utf-8;x",
            "busy",
            "4.3.2",
            Kind.ROUTE,
            "mx.example",
        ),
        Recipient(Address("postmaster"), Notify.NEVER, kind=Kind.MESSAGE_TEMPORARY),
    )
    yield (
        replace(
            plain,
            sender=Address("ä", "example.com"),
            recipients=waiting,
            origin=Origin("client.example", "192.0.2.7", "me", "ESMTPSA", "user", "lan"),
            body=Body.EIGHT_BIT,
            eight_bit=True,
            smtputf8=True,
            ret=Ret.HDRS,
            envid="x+2By",
            message_id="<1@example.com>",
            long_lines=True,
            attempts=7,
            last_attempt=1e9 + 5,
            next_attempt=1e9 + 99,
            backoff=300.0,
            waited=12.5,
            delay_warned=True,
        ),
        "Subject: grüße\r\n\r\nhallo\r\n".encode(),
    )
    yield replace(plain, hold=True, hold_reason="by hand"), b"Subject: held\r\n\r\n"
    yield replace(plain, sender=Address(""), bounce=True), b"Subject: Undelivered Mail Returned to Sender\r\n\r\n"


async def _fill(store: Store) -> None:
    for envelope, body in messages():
        intake = store.intake()
        for at in range(0, len(body), 16_384):
            intake.write(body[at : at + 16_384])
            await intake.drain()
        await intake.commit(envelope)
    gone = store.intake()
    kept = await gone.commit(next(messages())[0])
    await store.apply(Change(remove=(kept.id,)))
    begun = store.intake()  # and never finished
    begun.write(bytes(200_000))
    await begun.drain()


def shown(envelope: Envelope, body: bytes) -> dict[str, Any]:
    """A message as the list beside the spools has it."""
    fields = json.loads(json.dumps(asdict(replace(envelope, id=0, size=0)), default=str))
    return {"envelope": fields, "size": len(body), "sha256": sha256(body).hexdigest()}


def write(directory: Path, name: str) -> None:
    """One spool, by a process of its own that ends as it should."""
    if (child := os.fork()) == 0:
        asyncio.run(_live(directory, name))
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


async def _live(directory: Path, name: str) -> None:
    store = open_store(directory, SIZE, ManualClock(), 0, journal=SPOOLS[name])
    await _fill(store)
    if name == "closed":
        await store.close()
    os._exit(0)


def main() -> None:
    """Never writes over what an earlier release has left."""
    path = PLACE / f"{__version__}.tar.xz"
    if path.exists():
        sys.exit(f"{path} is there: a released spool is not written again")
    listing = json.dumps([shown(envelope, body) for envelope, body in messages()], indent=1)
    with tempfile.TemporaryDirectory() as place, tarfile.open(path, "w:xz") as archive:
        for name in SPOOLS:
            write(Path(place) / name, name)
            for file in sorted((Path(place) / name).iterdir()):
                if file.name in ("data.mdb", "journal"):
                    archive.add(file, f"{name}/{file.name}")
        about = tarfile.TarInfo("messages.json")
        about.size = len(listing.encode())
        archive.addfile(about, io.BytesIO(listing.encode()))
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
