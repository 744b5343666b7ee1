"""What the receiving side is given by the rest of the box: the spool, and a few questions. Values only."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from edgemail.clock import Clock
from edgemail.envelope import Address, Envelope, Route
from edgemail.reply import Reply
from edgemail.settings import Configuration
from edgemail.spool.verbs import Intakes
from edgemail.value import value


class Turning(Protocol):
    """Mail that is about to be sent over a connection which the client made (ATRN). It is to be run, once."""

    async def run(self, transport: asyncio.Transport) -> None:
        """Be the client on this connection until nothing waits any more, and close it. Raises CancelledError alone."""

    def release(self) -> None:
        """Nothing comes of it, or it is over: another may ask for this mail. Safe to call twice."""


@value
class Reception:
    """Everything that a session needs from outside; `boot.serve` fills it in."""

    spool: Intakes
    clock: Clock
    configuration: Configuration
    accepted: Callable[[Envelope], None]  # a message is durable
    route: Callable[[Address], Route]  # where mail for an address would go, to refuse `error:` at RCPT
    refusal: Callable[[int], Reply | None]  # the guards, asked at MAIL with its SIZE, -1 when not said
    flow: Callable[[], float]  # seconds to wait before a message is taken (in_flow_delay)
    notice: Callable[[str, str, str], None]  # class, subject, text: for the postmaster
    peername: Callable[[str], Awaitable[str]]  # a client's host name, "unknown" when it has none
    crowded: Callable[[str, int, int], Reply | None] = lambda host, held, total: None
    # the guards, asked at a connection: our name, sessions of this client before it, sessions of all
    flush: Callable[[str], Awaitable[int | None]] | None = None
    # ETRN: try what waits for a domain, "@" and a domain for those below it too, or "#" and a queue; how many messages
    # that are, None where there is no such queue
    flush_at_once: Callable[[str], int | None] = lambda node: None
    # the same where it takes no waiting; None, and nothing is done, where it does
    turn: Callable[[str, str, Sequence[str]], Turning | Reply] | None = None
    # ATRN: for a user at an address and these domains, or all that are the user's; or why not

    @classmethod
    def alone(cls, spool: Intakes, clock: Clock, configuration: Configuration) -> Reception:
        """A receiving side with nothing behind it but a spool."""

        async def unknown(address: str) -> str:
            return "unknown"

        return cls(
            spool,
            clock,
            configuration,
            accepted=lambda envelope: None,
            route=lambda address: Route("smtp", (address.domain or configuration.settings.myhostname,)),
            refusal=lambda size: None,
            flow=lambda: 0.0,
            notice=lambda kind, subject, text: None,
            peername=unknown,
        )
