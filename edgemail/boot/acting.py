"""What a person does to the queue from the status page: flush, hold, release, delete, and a message to see it work.

Owns the way from a page's request to the scheduler. Every action is logged; whether somebody may act was decided by
the endpoint, by its token.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from edgemail.boot.control import Refused
from edgemail.boot.entries import parse_id
from edgemail.boot.submit import Submission, accept, address
from edgemail.dates import date
from edgemail.envelope import Address, Recipient, queue_id
from edgemail.errors import EdgemailError

if TYPE_CHECKING:
    from edgemail.boot.serve import Relay

log = logging.getLogger("edgemail.health")

BATCH: Final = 50  # limit: messages that an action takes at once
WHY: Final = "held from the status page"


class Acting:
    """The verbs of the page."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    async def act(self, verb: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """Do one verb; what was done, or {"error": why not}."""
        try:
            if verb == "test":
                return await self._test(str(request.get("to", "")))
            if verb == "conversation":
                return self._conversation(_id(request))
            return await self._queue(verb, _id(request))
        except (Refused, EdgemailError, ValueError) as error:
            return {"error": str(error)}

    async def _queue(self, verb: str, which: int | None) -> dict[str, Any]:
        scheduler = self._relay.scheduler
        if verb == "flush":
            count = await scheduler.flush(ids=None if which is None else [which])
        else:
            acts: dict[str, Callable[[Collection[int]], Awaitable[Iterable[int]]]] = {
                "hold": lambda ids: scheduler.hold(ids, WHY),
                "release": scheduler.release,
                "delete": scheduler.remove,
            }
            count = 0
            async for ids in self._batches(which):
                acted = list(await acts[verb](ids))
                for one in acted:
                    log.info("%s: %s from the status page", queue_id(one), verb)
                count += len(acted)
        log.info("%s from the status page: %s, %d messages", verb, "all" if which is None else queue_id(which), count)
        return {"verb": verb, "count": count}

    async def _batches(self, which: int | None) -> AsyncIterator[list[int]]:
        if which is not None:
            yield [which]
            return
        ids = [envelope.id for envelope in self._relay.store.envelopes()]
        for start in range(0, len(ids), BATCH):
            yield ids[start : start + BATCH]

    # ---- a message to see it work

    async def _test(self, to: str) -> dict[str, Any]:
        """Put a message in the queue and watch it: by default to admin_address."""
        relay = self._relay
        settings = relay.configuration.settings
        to = to or settings.admin_address
        if not to:
            raise Refused("say to whom: there is no admin_address")
        refusal = relay.refusal(-1)
        if refusal is not None:
            raise Refused(str(refusal))
        submission = Submission(Address(Address.of(settings.double_bounce_sender).local), (Recipient(address(to)),))
        envelope = await accept(
            submission, self._text(to), relay.store, relay.clock, settings=settings, uid=os.geteuid()
        )
        relay.outbound.courier.watch(envelope.id)
        relay.accepted(envelope)
        log.info("%s: test message to=<%s> from the status page", envelope.queue_id, to)
        return {"verb": "test", "id": envelope.queue_id, "to": to}

    async def _text(self, to: str) -> AsyncIterator[bytes]:
        relay = self._relay
        host, at = relay.configuration.settings.myhostname, relay.clock.wall()
        yield (
            f"From: edgemail on {host} <postmaster@{host}>\n"
            f"To: {to}\n"
            f"Subject: a test message of {host}\n"
            f"Date: {date(at)}\n"
            f"Message-ID: <{int(at * 1000)}.test@{host}>\n"
            "Auto-Submitted: auto-generated\n"
            "\n"
            f"Somebody sent this from the status page of {host}, to see that mail leaves it.\n"
        ).encode()

    def _conversation(self, which: int | None) -> dict[str, Any]:
        lines = self._relay.outbound.courier.conversation(which or 0)
        if lines is None:
            return {"error": "no conversation of this message is remembered"}
        return {"verb": "conversation", "lines": lines}


def _id(request: Mapping[str, Any]) -> int | None:
    """The message that a request is about; None for all."""
    which = request.get("id", "")
    return parse_id(which) if isinstance(which, str) and which else None
