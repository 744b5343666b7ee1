"""A relay that is nothing but its spool and its control socket, in a thread of its own, for tests of the commands."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from array import array
from collections.abc import Collection, Coroutine, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from edgemail.boot import config
from edgemail.boot.control import ControlServer
from edgemail.boot.frames import SOCKET_NAME
from edgemail.boot.standing import StandingQueue
from edgemail.boot.verbs import Desk
from edgemail.clock import ManualClock
from edgemail.envelope import Address, Envelope, Recipient
from edgemail.relay.queue.flush import Flush
from edgemail.reply import Reply
from edgemail.spool.store import open_store

T = TypeVar("T")


class Scheduled(StandingQueue):
    """A scheduler that remembers what it was asked."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.in_hand: set[int] = set()
        self.flushed: list[tuple[Any, ...]] = []
        self.taken: list[Envelope] = []
        self.accounts: list[Flush] = []  # that somebody waits for

    def accepted(self, envelope: Envelope) -> None:
        self.taken.append(envelope)

    def active(self, id: int) -> bool:
        return id in self.in_hand

    async def flush(
        self,
        ids: Collection[int] | None = None,
        domain: str | None = None,
        site: str | None = None,
        account: Flush | None = None,
    ) -> int:
        self.flushed.append((None if ids is None else list(ids), domain, site))
        found = array("Q", (each.id for each in self.spool.envelopes()) if ids is None else sorted(ids))
        if account is not None:
            self.accounts.append(account)
            account.begin(found)
            for number, one in enumerate(found):  # the first of three is sent, the second waits, the third is returned
                if number % 3 == 1:
                    account.waits(one, ("450 4.2.0 later",))
                else:
                    account.gone(one, sent=number % 3 == 0)
        return len(found)

    def leave(self, account: Flush) -> None:
        self.accounts.remove(account)


def write_configuration(directory: Path, more: str = "") -> Path:
    """A configuration whose spool is in `directory`."""
    path = directory / "edgemail.toml"
    path.write_text(
        f'myhostname = "gw.example.com"\nqueue_directory = "{directory}/spool"\nspool_size = "16MiB"\n{more}'
        '[[listener]]\naddress = "127.0.0.1"\nport = 0\n'
    )
    return path


class Running:
    """The thread, its loop and its parts."""

    def __init__(self, directory: Path, more: str = "") -> None:
        self.path = write_configuration(directory, more)
        self.configuration = config.load(self.path)
        self.directory = directory / "spool"
        self.clock = ManualClock()
        self.refused: Reply | None = None
        self.reloads = 0
        self.routes: dict[str, Any] = {}
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="desk")
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the relay's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    async def _reload(self) -> None:
        self.reloads += 1
        config.load(self.path)

    async def _start(self) -> None:
        self.store = open_store(self.directory, self.configuration.settings.spool_size, self.clock)
        self.queue = Scheduled(self.store, self.clock, self.configuration)
        self.desk = Desk(
            self.store,
            self.queue,
            self.clock,
            lambda: self.configuration,
            reload=self._reload,
            refusal=lambda size: self.refused,
            status=lambda: {"state": "ok"},
            routes=lambda: self.routes,
        )
        self.server = ControlServer(self.directory / SOCKET_NAME, self.desk.verbs)
        await self.server.start()

    async def _stop(self) -> None:
        await self.server.close()
        await self.store.close()

    def start(self) -> None:
        self.call(self._start())

    def stop(self) -> None:
        """The daemon goes; its spool stays."""
        self.call(self._stop())

    def end(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def keep(
        self,
        sender: str = "alice@example.com",
        recipients: Iterable[str | Recipient] = ("bob@example.org",),
        body: bytes = b"Subject: test\r\n\r\nhello\r\n",
        **more: Any,
    ) -> Envelope:
        """Put a message into the spool; `more` are fields of its envelope."""
        return self.call(self._keep(sender, recipients, body, more))

    async def _keep(
        self, sender: str, recipients: Iterable[str | Recipient], body: bytes, more: dict[str, Any]
    ) -> Envelope:
        intake = self.store.intake()
        intake.write(body)
        await intake.drain()
        found = tuple(Recipient(Address.of(r)) if isinstance(r, str) else r for r in recipients)
        envelope = Envelope(intake.id, Address.of(sender), found, received_at=self.clock.wall())
        return await intake.commit(replace(envelope, **more))

    def body(self, id: int) -> bytes:
        return self.call(self._body(id))

    async def _body(self, id: int) -> bytes:
        return b"".join(self.store.body(id))

    def envelopes(self) -> list[Envelope]:
        return self.call(self._envelopes())

    async def _envelopes(self) -> list[Envelope]:
        return list(self.store.envelopes())


@contextlib.contextmanager
def running(directory: Path, more: str = "") -> Iterator[Running]:
    """A relay for the length of a test; it may be stopped and started within."""
    relay = Running(directory, more)
    relay.start()
    try:
        yield relay
    finally:
        with contextlib.suppress(Exception):
            relay.stop()
        relay.end()
