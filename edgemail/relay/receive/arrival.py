"""One message on its way in: from DATA or BDAT to the spool's commit.

Owns the intake, the trace header in front of the content, and the envelope that is kept with it. Decides nothing about
the message and answers nobody.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from edgemail.envelope import Envelope, Origin, Recipient, queue_id
from edgemail.relay.receive.heading import Heading
from edgemail.relay.receive.stamp import received
from edgemail.relay.wire.events import Mail
from edgemail.settings import Settings
from edgemail.spool.verbs import Intakes

log = logging.getLogger("edgemail.cleanup")


class Arrival:
    """Content goes in by `write` and `drain`; then `keep` or `abort`."""

    __slots__ = ("_at", "_heading", "_intake", "_limit", "_log_as", "_mail", "_origin", "_recipients", "failed", "size")

    def __init__(
        self,
        spool: Intakes,
        settings: Settings,
        *,
        at: float,
        origin: Origin,
        mail: Mail,
        recipients: Sequence[Recipient],
        tls: str = "",
    ) -> None:
        """Begin the message with its trace header. `at`: wall clock. `tls`: what to say of TLS. Raises SpoolError."""
        self._mail = mail
        self._recipients = tuple(recipients)
        self._origin = origin
        self._at = at
        self._heading = Heading(settings.header_size_limit)
        self._limit = settings.hopcount_limit
        self._log_as = {"syslog_name": settings.syslog_name}
        self._intake = spool.intake()
        self.failed = False  # it can no longer be kept
        self.size = 0  # octets of content
        self._intake.write(
            received(
                origin,
                myhostname=settings.myhostname,
                mail_name=settings.mail_name,
                id=self._intake.id,
                at=self._at,
                recipient=self._recipients[0].address if len(self._recipients) == 1 else None,
                tls=tls,
            )
        )

    @property
    def queue_id(self) -> str:
        return queue_id(self._intake.id)

    @property
    def looping(self) -> bool:
        """It was received hopcount_limit times before (RFC 5321 6.3)."""
        return self._heading.hops >= self._limit

    def write(self, data: bytes) -> None:
        """Take a piece of content. Raises SpoolError."""
        self.size += len(data)
        self._heading.feed(data)
        self._intake.write(data)

    async def drain(self) -> None:
        """Returns when there is room for the next piece. Raises SpoolError."""
        await self._intake.drain()

    def finish(self) -> None:
        """The content is complete: what there is to know of its header is known."""
        self._heading.finish()

    async def keep(self, *, eight_bit: bool, long_lines: bool) -> Envelope:
        """Make it durable; returns after the barrier. Raises SpoolError, and then nothing was kept."""
        log.info("%s: message-id=%s", self.queue_id, self._heading.message_id or "<>", extra=self._log_as)
        return await self._intake.commit(
            Envelope(
                id=self._intake.id,
                sender=self._mail.sender,
                recipients=self._recipients,
                size=self._intake.size,
                received_at=self._at,
                origin=self._origin,
                body=self._mail.body,
                eight_bit=eight_bit,
                smtputf8=self._mail.smtputf8,
                ret=self._mail.ret,
                envid=self._mail.envid,
                message_id=self._heading.message_id,
                long_lines=long_lines,
            )
        )

    async def abort(self) -> None:
        """Forget it. Safe to call twice."""
        self.failed = True
        await self._intake.abort()
