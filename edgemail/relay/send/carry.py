"""One message over one session that is ready: what is asked of the server, and what its answers mean.

Owns `Attempt`, the state of a delivery under way. Never opens, keeps or closes a connection; that is for `deliver`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Final

from edgemail.clock import Clock
from edgemail.envelope import Delivery, Envelope, Outcome, Target
from edgemail.errors import Kind, SpoolDamaged
from edgemail.relay.send.berth import Berth
from edgemail.relay.send.exchange import BodyFailed, Broken
from edgemail.relay.send.rewrite import complete
from edgemail.relay.send.session import Session
from edgemail.relay.send.verdict import Verdict, outcome, reply_verdict, site_verdict
from edgemail.relay.wire.client import Phase
from edgemail.relay.wire.transaction import Burden, Result, Transaction, obstacle, recipient_obstacle
from edgemail.reply import Reply
from edgemail.settings import Settings
from edgemail.spool.verbs import Spool

log = logging.getLogger("edgemail.smtp")

HEADER_PEEK: Final = 65_536  # limit: octets of a header searched for raw UTF-8 before SMTPUTF8 is taken as needed

STALE_CONNECTIONS: Final = 20  # limit: connections kept from before that may prove closed in one delivery

Rewriter = Callable[[Iterable[bytes], Envelope, Settings], Iterator[bytes]]
Notice = Callable[[str, str, str], None]  # class, subject, text: for the postmaster


def no_notice(cls: str, subject: str, text: str) -> None:
    """Nobody is told."""


@dataclass(slots=True)
class Attempt:
    """One delivery under way: who is still to be served, what became of the others, what stood in the way."""

    delivery: Delivery
    settings: Settings
    started: float  # monotonic
    pending: dict[int, Target]
    outcomes: dict[int, tuple[Outcome, str]] = field(default_factory=dict)  # settled, with the log's text
    said: dict[int, Verdict] = field(default_factory=dict)  # why a recipient that is pending was not taken
    failures: list[Verdict] = field(default_factory=list)  # of next hops, hosts and set-ups
    tried: set[tuple[str, str, int]] = field(default_factory=set)  # host, address, port
    uses: int = 0  # messages over the connection that was used last
    ready: float = 0.0  # monotonic: when the last connection was; 0.0 before
    berth: Berth[Session] | None = None  # the place of a connection that is being opened, where places are counted
    stale: int = 0  # connections that ended before they heard of this message

    @property
    def configured(self) -> bool:
        return self.delivery.route.configured

    @property
    def domain(self) -> str:
        """Of the recipients, as far as one word can say it."""
        return self.delivery.targets[0].address.domain

    def settle(self, index: int, verdict: Verdict, now: float) -> None:
        """This recipient is not to be tried again in this delivery."""
        soft = self.settings.soft_bounce
        connect, transfer = self._delays(now)
        del self.pending[index]
        self.outcomes[index] = outcome(verdict, index, soft=soft, connect=connect, transfer=transfer), verdict.text

    def taken(self, index: int, reply: Reply, relay: str, now: float, *, relayed_dsn: bool) -> None:
        """The server has this recipient's mail."""
        connect, transfer = self._delays(now)
        del self.pending[index]
        done = Outcome(
            index,
            None,
            reply,
            relay,
            remote=True,
            relayed_dsn=relayed_dsn,
            connect_delay=connect,
            transfer_delay=transfer,
        )
        self.outcomes[index] = done, str(reply)

    def _delays(self, now: float) -> tuple[float, float]:
        """Seconds until the connection was ready, and since."""
        ready = self.ready or now
        return ready - self.started, now - ready


class Carrier:
    """Reads a message from the spool, rewrites it and sees it over a session."""

    def __init__(self, spool: Spool, clock: Clock, rewriter: Rewriter, notice: Notice) -> None:
        self._spool = spool
        self._clock = clock
        self._rewriter = rewriter
        self._notice = notice

    async def carry(self, attempt: Attempt, session: Session, *, reused: bool) -> bool:
        """Try all pending targets in one transaction. Whether the session may be used again.

        `reused`: it carried something before; when it proves to have been closed meanwhile, nothing is settled.
        """
        targets = self._tellable(attempt, session)
        if not targets:
            return True
        envelope = attempt.delivery.envelope
        able = session.client.abilities
        sender = complete(envelope.sender, attempt.settings)
        body = self._rewriter(self._stored(envelope.id), envelope, attempt.settings)
        try:
            utf8_header = False
            if envelope.smtputf8 and envelope.eight_bit:
                utf8_header, body = _peek(body)
            burden = Burden(envelope.size, envelope.eight_bit, envelope.smtputf8 and envelope.eight_bit, utf8_header)
            reply = obstacle(able, burden, sender, str(session.peer))
            if reply is not None:
                for target in targets:
                    self._settle(attempt, target.index, _refused_here(reply, session))
                return True
            transaction = session.transaction(sender, targets, envelope, burden)
            broken = await session.send(transaction, body)
        except BodyFailed as error:
            await self._unreadable(attempt, error)
            return False
        finally:
            if isinstance(body, Generator):
                body.close()
        if reused and attempt.stale < STALE_CONNECTIONS and _stale(session, transaction, broken):
            attempt.stale += 1
            return False
        attempt.uses = session.count
        attempt.tried.add((session.peer.host, session.peer.address, session.peer.port))
        for target, result in zip(targets, transaction.results, strict=True):
            assert result is not None
            self._judge(attempt, session, target.index, result, malformed=broken is not None and broken.malformed)
        return broken is None

    def _stored(self, id: int) -> Iterator[bytes]:
        """The message as it is kept; a missing one, too, is found out when it is read."""
        yield from self._spool.body(id)

    def _settle(self, attempt: Attempt, index: int, verdict: Verdict) -> None:
        attempt.settle(index, verdict, self._clock.monotonic())

    def _tellable(self, attempt: Attempt, session: Session) -> list[Target]:
        """The pending targets that this server can be told of; the others are refused here."""
        able = session.client.abilities
        targets = []
        for target in list(attempt.pending.values()):
            reply = recipient_obstacle(able, target.address, str(session.peer))
            if reply is None:
                targets.append(target)
            else:
                self._settle(attempt, target.index, _refused_here(reply, session))
        return targets

    async def _unreadable(self, attempt: Attempt, error: BodyFailed) -> None:
        """The spool could not give the message: ours to mend, whatever the server would have said."""
        envelope = attempt.delivery.envelope
        cause = error.__cause__
        if isinstance(cause, SpoolDamaged):
            log.error("error: %s: damaged, set aside: %s", envelope.queue_id, cause.why)
            self._notice("resource", "a damaged message was set aside", str(cause))
            await self._spool.quarantine(envelope.id, cause.why)
        elif not isinstance(cause, KeyError):  # a KeyError: it was removed from the queue meanwhile
            log.error("error: %s: message cannot be read", envelope.queue_id, exc_info=cause)
        reply = Reply(451, "4.3.0", "message cannot be read from the spool")
        for index in list(attempt.pending):
            self._settle(attempt, index, Verdict(Kind.LOCAL, reply))

    def _judge(self, attempt: Attempt, session: Session, index: int, result: Result, *, malformed: bool) -> None:
        """Settle what is settled, or note why it has to be tried elsewhere."""
        peer, relay = str(session.peer), session.peer.relay
        reply, phase = result.reply, result.phase
        if result.remote and reply.positive:
            offers_dsn = session.client.abilities.offers("DSN")
            attempt.taken(index, reply, relay, self._clock.monotonic(), relayed_dsn=offers_dsn)
            return
        if result.remote:
            over = session.login_passed_over
            verdict = reply_verdict(reply, attempt.configured, phase, peer=peer, relay=relay, login_passed_over=over)
        elif malformed:
            verdict = site_verdict(reply, attempt.configured, phase, peer=peer, relay=relay)
        else:
            verdict = Verdict(Kind.MESSAGE_TEMPORARY, reply, phase, peer, relay)
        # Lost behind the final dot: the server may have it. Another one now would likely make a second copy.
        in_doubt = not result.remote and phase is Phase.END
        if verdict.final or in_doubt:
            self._settle(attempt, index, verdict)
        else:
            attempt.said[index] = verdict


def _refused_here(reply: Reply, session: Session) -> Verdict:
    """What the server could not carry, found before anything was sent."""
    return Verdict(Kind.MESSAGE_PERMANENT, reply, Phase.MAIL, str(session.peer), session.peer.relay, final=True)


def _stale(session: Session, transaction: Transaction, broken: Broken | None) -> bool:
    """Whether a kept connection had been closed by the server before it saw this message."""
    if broken is not None:
        return not transaction.heard and not broken.malformed
    first = transaction.results[0]
    unheard = first is not None and first.phase in (Phase.MAIL, Phase.RSET)
    return session.client.closing and unheard and first is not None and first.reply.code == 421


def _peek(body: Iterator[bytes]) -> tuple[bool, Iterator[bytes]]:
    """Whether the header holds an octet over 127, and the body again. Where its end is out of reach: as if it did."""
    pieces: list[bytes] = []
    seen = b""
    while len(seen) < HEADER_PEEK:
        try:
            piece = next(body, None)
        except Exception as error:
            raise BodyFailed(str(error)) from error
        if piece is None:
            return not seen.isascii(), iter(pieces)
        pieces.append(piece)
        seen += piece
        end = 0 if seen.startswith(b"\r\n") else seen.find(b"\r\n\r\n")
        if end >= 0:
            return not seen[:end].isascii(), chain(pieces, body)
    return True, chain(pieces, body)
