"""ETRN (RFC 1985): the mail of a site that is not always there, for it is there now.

Owns who may ask and what is answered; what it asks of the queue is the reception's. Nearly always that takes no
waiting, and the connection to the site is being made when the client reads its 250.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgemail.errors import EdgemailError
from edgemail.relay.wire import replies
from edgemail.relay.wire.events import Etrn
from edgemail.reply import Reply

if TYPE_CHECKING:
    from edgemail.relay.receive.clerk import Clerk


def at_once(clerk: Clerk, event: Etrn) -> Reply | None:
    """The refusal; None where the client may ask: then the mail is on its way, if that is possible without waiting, and
    `after_all` has the reply: behind the first steps of the connection to the site.
    """
    node = event.argument
    refusal = clerk.service.policy.etrn_refusal(clerk.client, node) or clerk.visit.at_etrn(node)
    if refusal is not None or clerk.reception.flush is None:
        return refusal or replies.ETRN_UNABLE
    try:
        clerk.flushed = clerk.reception.flush_at_once(node)
    except EdgemailError as error:
        return _failed(clerk, node, error)
    return None


async def after_all(clerk: Clerk, event: Etrn) -> Reply:
    """The reply behind an `at_once` that had none."""
    count, clerk.flushed = clerk.flushed, None
    try:
        if count is None and clerk.reception.flush is not None:
            count = await clerk.reception.flush(event.argument)
    except EdgemailError as error:
        return _failed(clerk, event.argument, error)
    return replies.ETRN_UNABLE if count is None else _begun(clerk, event.argument, count)


def _begun(clerk: Clerk, node: str, count: int) -> Reply:
    clerk.service.log.info("etrn from %s: %s, %d messages", clerk.label, node, count)
    return replies.ETRN_STARTED


def _failed(clerk: Clerk, node: str, error: EdgemailError) -> Reply:
    clerk.service.log.warning("warning: %s: ETRN %s: %s", clerk.label, node, error)
    return replies.ETRN_UNABLE
