"""What a reply or a failure means for a recipient, and the line in the log that says so.

Owns the kinds: which failure is the message's own fault, which the route's, which the network's. A wrong answer here
bounces mail that should have waited. No IO but the log.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from edgemail.envelope import Envelope, Outcome, Target
from edgemail.errors import Kind
from edgemail.relay.wire.client import Phase
from edgemail.reply import Reply
from edgemail.value import value

log = logging.getLogger("edgemail.smtp")

# The login is missing, too weak or wrong: whatever command it answers, it is not about the message.
LOGIN_CODES: Final = frozenset({530, 534, 535, 538})


@value
class Verdict:
    """Why something did not go out, and whether that is settled: `final` is not tried with another server now."""

    kind: Kind
    reply: Reply
    phase: Phase = Phase.IDLE
    peer: str = ""  # "host[address]", as texts name it
    relay: str = "none"
    remote: bool = False
    site_failed: bool = False
    final: bool = False

    @property
    def text(self) -> str:
        """As the log and mailq say it, in Postfix's words."""
        if not self.remote:
            return self.reply.text.replace("\n", " ")
        if self.phase is Phase.GREETING:
            return f"host {self.peer} refused to talk to me: {self.reply}"
        return f"host {self.peer} said: {self.reply} (in reply to {self.phase.command})"


def site_verdict(
    reply: Reply, configured: bool, phase: Phase, *, peer: str = "", relay: str = "none", remote: bool = False
) -> Verdict:
    """A server that does not work for us: the route's failure where the next hop is configured; it never bounces."""
    kind = Kind.ROUTE if configured else Kind.MESSAGE_TEMPORARY
    return Verdict(kind, reply, phase, peer, relay, remote, site_failed=True)


def reply_verdict(
    reply: Reply, configured: bool, phase: Phase, *, peer: str, relay: str, login_passed_over: bool
) -> Verdict:
    """A server's refusal of a command about the message.

    `login_passed_over`: we have a login for it and could not use it, so a permanent refusal may be for want of that.
    """
    if reply.code in LOGIN_CODES or (login_passed_over and reply.permanent):
        return site_verdict(reply, configured, phase, peer=peer, relay=relay, remote=True)
    if reply.permanent:
        return Verdict(Kind.MESSAGE_PERMANENT, reply, phase, peer, relay, remote=True, final=True)
    return Verdict(Kind.MESSAGE_TEMPORARY, reply, phase, peer, relay, remote=True)


def worst_excuse(failures: Iterable[Verdict]) -> Verdict:
    """What to say when nothing could be reached: the last failure of the kind that all of them together amount to.

    Permanent or the network's only when every one of them was; there must be one.
    """
    every = list(failures)
    for kinds in (
        [Kind.LOCAL],
        [Kind.ROUTE, Kind.MESSAGE_TEMPORARY],
        [Kind.LINK],
        [Kind.MESSAGE_PERMANENT],
    ):
        found = [failure for failure in every if failure.kind in kinds]
        if found:
            return found[-1]
    raise ValueError("no failure")


def outcome(verdict: Verdict, index: int, *, soft: bool, connect: float, transfer: float) -> Outcome:
    """The verdict as the queue hears it. `soft`: soft_bounce is on, so that nothing is permanent."""
    made = Outcome(
        index,
        verdict.kind,
        verdict.reply,
        verdict.relay,
        verdict.remote,
        verdict.site_failed,
        connect_delay=connect,
        transfer_delay=transfer,
        text=verdict.text,
    )
    if soft and made.kind is Kind.MESSAGE_PERMANENT:
        return replace(made, kind=Kind.MESSAGE_TEMPORARY, reply=made.reply.softened())
    return made


def log_outcome(
    envelope: Envelope, target: Target, result: Outcome, text: str, *, uses: int, before: float, total: float
) -> None:
    """The one line about one recipient. `before`: seconds from arrival to the attempt; `total`: to its end."""
    status = result.reply.status
    if result.kind is None:
        word = "sent"
    elif result.kind is Kind.MESSAGE_PERMANENT:
        word = "bounced"
    else:
        word, status = "deferred", "4" + status[1:]
    original = target.recipient.address
    log.info(
        "%s: to=<%s>,%s relay=%s,%s delay=%s, delays=%s/0/%s/%s, dsn=%s, status=%s (%s)",
        envelope.queue_id,
        target.address,
        f" orig_to=<{original}>," if original != target.address else "",
        result.relay,
        f" conn_use={uses}," if uses > 1 else "",
        _seconds(total),
        _seconds(before),
        _seconds(result.connect_delay),
        _seconds(result.transfer_delay),
        status,
        word,
        text,
    )


def _seconds(seconds: float) -> str:
    """Two significant digits, as Postfix."""
    if seconds >= 10:
        return f"{seconds:.0f}"
    return f"{max(seconds, 0):.2g}" if seconds >= 0.01 else "0" if seconds < 0.005 else "0.01"
