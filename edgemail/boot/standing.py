"""The queue while no daemon runs: the same verbs, done on the spool itself by the command that asks.

Reading needs no lock; a change takes the spool as the daemon would, and gives it up when it is done.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import AsyncIterator, Collection, Mapping
from pathlib import Path
from typing import Any, Final, cast

from edgemail.boot import config, reading
from edgemail.boot.client import Failure, Sink, become_owner
from edgemail.boot.control import Channel, Peer, Refused
from edgemail.boot.frames import EX_CONFIG, EX_TEMPFAIL
from edgemail.boot.verbs import Desk, Find
from edgemail.clock import Clock, SystemClock
from edgemail.envelope import Envelope
from edgemail.errors import ConfigurationError, EdgemailError, SpoolBusy, SpoolDamaged, SpoolError
from edgemail.relay.queue.flush import Flush
from edgemail.settings import Configuration
from edgemail.spool.verbs import Change, Spool

READING: Final = ("queue.list", "queue.show", "queue.why", "queue.damaged", "queue.cat", "shape")
CHANGING: Final = ("queue.hold", "queue.release", "queue.delete", "queue.requeue")


class StandingQueue:
    """A scheduler that schedules nothing: changes go to the spool, and the next start finds them there."""

    def __init__(self, spool: Spool, clock: Clock, configuration: Configuration) -> None:
        self.spool = spool
        self.clock = clock
        self.configuration = configuration

    def accepted(self, envelope: Envelope) -> None:
        """Nobody to tell."""

    def active(self, id: int) -> bool:
        """Nothing is being delivered."""
        return False

    def flow(self) -> float:
        """Nothing arrives."""
        return 0.0

    async def flush(
        self,
        ids: Collection[int] | None = None,
        domain: str | None = None,
        site: str | None = None,
        account: Flush | None = None,
    ) -> int:
        """Nobody is here to try."""
        raise Refused("the relay is not running", EX_TEMPFAIL)

    def leave(self, account: Flush) -> None:
        """Nobody waits."""

    async def hold(self, ids: Collection[int], reason: str = "") -> list[int]:
        """Mark them held."""
        found = [e for e in self._found(ids) if not e.hold]
        await self.spool.apply(Change(tuple(dataclasses.replace(e, hold=True, hold_reason=reason) for e in found)))
        return [e.id for e in found]

    async def release(self, ids: Collection[int]) -> list[int]:
        """Mark them free; the next start tries them."""
        found = [e for e in self._found(ids) if e.hold]
        free = tuple(dataclasses.replace(e, hold=False, hold_reason="", next_attempt=0.0) for e in found)
        await self.spool.apply(Change(free))
        return [e.id for e in found]

    async def remove(self, ids: Collection[int]) -> list[int]:
        """Delete them."""
        found = tuple(e.id for e in self._found(ids))
        await self.spool.apply(Change(remove=found))
        return list(found)

    async def requeue(self, ids: Collection[int]) -> list[tuple[int, int]]:
        """Take each in again."""
        from edgemail.relay.queue.requeue import requeue

        settings = self.configuration.settings
        return [(e.id, (await requeue(self.spool, self.clock, settings, e)).id) for e in self._found(ids)]

    def _found(self, ids: Collection[int]) -> list[Envelope]:
        found = []
        for one in ids:
            try:
                envelope = self.spool.envelope(one)
            except SpoolDamaged:
                continue
            if envelope is not None:
                found.append(envelope)
        return found


class Counter:
    """A Channel without a connection: what is said goes to the sink."""

    def __init__(self, sink: Sink | None) -> None:
        self.peer = Peer(os.getpid(), os.geteuid(), os.getegid())
        self._sink = sink

    async def say(self, data: Mapping[str, Any]) -> None:
        """One line of the answer."""
        if self._sink is not None:
            self._sink(data)

    async def send(self, content: bytes) -> None:
        """One frame of it."""
        if self._sink is not None:
            self._sink(content)

    async def content(self) -> AsyncIterator[bytes]:
        """There is none: nothing is submitted without a daemon."""
        return
        yield b""


def carry_out(path: str, directory: Path, request: Mapping[str, Any], sink: Sink | None) -> Mapping[str, Any]:
    """Do one request on the spool of `directory`. Raises Failure."""
    verb = str(request["verb"])
    if verb not in READING + CHANGING:
        raise Failure("the relay is not running", EX_TEMPFAIL)
    try:
        configuration = config.load(path, files=False)
    except ConfigurationError as error:
        raise Failure(reading.report(path, error.problems), EX_CONFIG) from error
    become_owner(directory)
    try:
        return asyncio.run(_carry_out(verb, configuration, directory, request, sink))
    except Refused as refused:
        raise Failure(str(refused), refused.code) from refused
    except (SpoolBusy, SpoolError, SpoolDamaged) as error:
        raise Failure(str(error) or "the spool cannot be opened", EX_TEMPFAIL) from error
    except OSError as error:
        raise Failure(f"{directory}: {error.strerror}", EX_TEMPFAIL) from error


async def _carry_out(
    verb: str, configuration: Configuration, directory: Path, request: Mapping[str, Any], sink: Sink | None
) -> Mapping[str, Any]:
    from edgemail.spool.store import open_reader, open_store

    clock = SystemClock()
    settings = configuration.settings
    if verb in READING:
        with open_reader(directory) as reader:
            return await _done(verb, cast(Spool, reader), configuration, request, sink)
    store = open_store(directory, settings.spool_size, clock, settings.queue_minfree)
    try:
        return await _done(verb, store, configuration, request, sink)
    finally:
        await store.close()


async def _done(
    verb: str, spool: Spool, configuration: Configuration, request: Mapping[str, Any], sink: Sink | None
) -> Mapping[str, Any]:
    clock = SystemClock()
    queue = StandingQueue(spool, clock, configuration)
    desk = Desk(
        spool,
        queue,
        clock,
        lambda: configuration,
        reload=_nothing,
        refusal=lambda size: None,
        route=_route(configuration),
    )
    return await desk.verbs()[verb].run(dict(request), cast(Channel, Counter(sink)))


def _route(configuration: Configuration) -> Find | None:
    """The router's, or none where this user may not read its tables."""
    from edgemail.relay.send.route import Router

    try:
        return Router(configuration).route
    except EdgemailError:
        return None


async def _nothing() -> None:
    """Nothing to reload."""
