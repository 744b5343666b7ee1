"""The component `ptr` of the status: whether the addresses that our mail comes from have names that lead back to them.

Many a site refuses mail from an address without one. Asked only while mail goes straight to the sites of its recipients
and somebody looks at the status; seldom, beside everything else, and never in the way. Where a router changes
addresses, the one that the world sees is not known here and is not judged.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Awaitable, Callable
from typing import Final

from edgemail.boot.components import Conditions, Numbers
from edgemail.clock import Clock
from edgemail.health.board import Condition, State

AGAIN_SECONDS: Final = 21_600.0  # between two looks
UNKNOWN: Final = "unknown"  # smtpd(8)'s word for a name that is not there or does not lead back
# Addresses that stand for the world (RFC 5737, RFC 3849): connecting a datagram socket sends nothing.
WORLD: Final = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))

Peername = Callable[[str], Awaitable[str]]  # address -> its confirmed name, or UNKNOWN
Addresses = Callable[[], tuple[str, ...]]


def sources() -> tuple[str, ...]:
    """The addresses that a connection to the world would come from now."""
    found = []
    for family, world in WORLD:
        try:
            with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as one:
                one.connect((world, 25))
                found.append(str(one.getsockname()[0]).partition("%")[0])
        except OSError:  # no such protocol, no such route
            continue
    return tuple(found)


class OwnName:
    """What is known of our own names."""

    def __init__(self, clock: Clock, peername: Peername, addresses: Addresses = sources) -> None:
        self._clock = clock
        self._peername = peername
        self._addresses = addresses
        self._looked = float("-inf")
        self._names: dict[str, str] = {}  # address -> name

    @property
    def due(self) -> bool:
        return self._clock.monotonic() - self._looked >= AGAIN_SECONDS

    async def look(self) -> None:
        """Ask for the names. Never raises because of the network."""
        self._looked = self._clock.monotonic()
        public = [each for each in self._addresses() if ipaddress.ip_address(each).is_global]
        self._names = {each: await self._peername(each) for each in public}

    def conditions(self) -> Conditions:
        """Nothing, before the first look and where no address of ours is one of the world's."""
        if not self._names:
            return {}
        numbers: Numbers = dict(self._names)
        nameless = [address for address, name in self._names.items() if name == UNKNOWN]
        if not nameless:
            return {"ptr": Condition(numbers=numbers)}
        message = (
            f"{' and '.join(nameless)}, where our mail comes from, has no name in the DNS that leads back to it: "
            "many sites will refuse the mail. Ask the provider for a PTR record, or set relayhost"
        )
        return {"ptr": Condition(State.DEGRADED, "ptr-missing", message, numbers, counts=False)}
