"""What the postmaster of this box is owed: mail that only waited for somebody to read it, and word of damaged mail.

Owns neither mail nor notices: it looks for the one, and words the other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from typing import Final

from edgemail.errors import SpoolError
from edgemail.relay.send.route import POSTMASTER_WAITS
from edgemail.spool.recover import Recovered
from edgemail.spool.verbs import Spool

log = logging.getLogger("edgemail.qmgr")

LOOKS: Final = 64  # limit: held messages looked at before others have their turn
DAMAGED: Final = "a damaged message was set aside"

Release = Callable[[Collection[int]], Awaitable[list[int]]]


async def release(spool: Spool, free: Release) -> int:
    """Let go of what is on hold for want of an admin_address, and of nothing else; how many."""
    found, released = [], []
    try:
        for count, envelope in enumerate(spool.envelopes(), 1):
            if envelope.hold and envelope.hold_reason == POSTMASTER_WAITS:
                found.append(envelope.id)
            if count % LOOKS == 0:
                await asyncio.sleep(0)
        if found:
            released = await free(found)
            log.info("there is an admin_address: %d held messages for postmaster released", len(released))
    except SpoolError as error:
        log.warning("warning: held messages for postmaster are not released: %s", error)
    return len(released)


def word_of(recovered: Recovered | None) -> str:
    """What to tell of a recovery that set mail aside; "" when it did not."""
    if recovered is None or not recovered.set_aside:
        return ""
    return (
        f"{recovered.set_aside} damaged messages were found at the start and set aside: they are not delivered, and\n"
        "not deleted. `edgemail queue list` names them."
    )
