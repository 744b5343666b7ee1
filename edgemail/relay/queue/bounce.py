"""Write a notice about a message into the spool: bounces, delay warnings, reports of success, the postmaster's copies.

Owns the form of the message (multipart/report, RFC 3462 and RFC 6522) and how much of the original comes back. The
notice is streamed, and commits in one transaction with what becomes of the original. Never decides who is told.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from edgemail.clock import Clock
from edgemail.dates import date
from edgemail.envelope import NULL_SENDER, Address, Body, Envelope, Recipient, Ret, queue_id
from edgemail.errors import SpoolError
from edgemail.relay.queue import dsn
from edgemail.relay.queue.dsn import Form
from edgemail.relay.queue.settle import Reported
from edgemail.settings import Settings
from edgemail.spool.verbs import Change, Intake, Spool
from edgemail.value import value

log = logging.getLogger("edgemail.bounce")

END_OF_HEADER: Final = b"\r\n\r\n"


@value
class _Notice:
    """One notice to be written."""

    form: Form
    about: Envelope
    reported: Sequence[Reported]
    until: float
    sender: Address
    to: Address
    full: bool  # all of the original comes back


class Bounces:
    """The writer of notices. One for the process."""

    def __init__(self, spool: Spool, clock: Clock, settings: Callable[[], Settings], random: random.Random) -> None:
        self._spool = spool
        self._clock = clock
        self._settings = settings
        self._random = random

    async def report(
        self, form: Form, envelope: Envelope, reported: Sequence[Reported], also: Change, *, until: float = 0.0
    ) -> Envelope:
        """Tell the sender, from the null sender; `also` becomes true with it. Raises as a commit, or as a body does."""
        full = form is dsn.FAILED and envelope.ret is not Ret.HDRS
        return await self._write(_Notice(form, envelope, reported, until, NULL_SENDER, envelope.sender, full), also)

    async def copy(
        self,
        form: Form,
        envelope: Envelope,
        reported: Sequence[Reported],
        also: Change,
        *,
        recipient: str,
        until: float = 0.0,
    ) -> Envelope:
        """Tell the postmaster: headers only, from double_bounce_sender."""
        sender = notice_sender(self._settings())
        return await self._write(_Notice(form, envelope, reported, until, sender, Address.of(recipient), False), also)

    async def note(self, recipient: str, subject: str, text: str) -> Envelope:
        """A notice that is about no message."""
        settings = self._settings()
        sender, to = notice_sender(settings), Address.of(recipient)
        intake = self._spool.intake()
        try:
            paragraphs: list[str] = []
            for line in text.split("\n"):
                paragraphs += list(dsn.wrap(line))
            head = self._head(intake.id, settings, to, subject, "auto-generated")
            lines = [*head, "Content-Type: text/plain; charset=us-ascii", "", *paragraphs]
            intake.write(dsn.encoded(lines, utf8=False))
            await intake.drain()
        except BaseException:
            await intake.abort()
            raise
        return await self._commit(intake, self._envelope(sender, to), Change())

    async def _write(self, notice: _Notice, also: Change) -> Envelope:
        settings = self._settings()
        limit = settings.bounce_size_limit
        about = notice.about
        if about.size > limit:
            notice = replace(notice, full=False)
        utf8 = dsn.needs_utf8(about)
        boundary, wide = self._boundary(notice, settings)
        intake = self._spool.intake()
        try:
            intake.write(dsn.encoded(self._opening(notice, intake.id, settings, boundary, wide=wide), utf8=utf8))
            for piece in self._returned(notice, limit):
                intake.write(piece)
                await intake.drain()
            intake.write(f"\r\n--{boundary}--\r\n".encode())
            await intake.drain()
        except BaseException:
            await intake.abort()
            raise
        made = self._envelope(notice.sender, notice.to, utf8=utf8, wide=wide or utf8, long_lines=about.long_lines)
        kept = await self._commit(intake, made, also)
        log.info("%s: %s: %s", about.queue_id, NAMES.get(notice.form, "postmaster notification"), kept.queue_id)
        return kept

    async def _commit(self, intake: Intake, envelope: Envelope, also: Change) -> Envelope:
        """Whoever is cancelled here leaves the commit to its fate: aborted, it could undo the notice and not `also`."""
        try:
            return await intake.commit(envelope, also)
        except SpoolError:
            await intake.abort()
            raise

    def _envelope(
        self, sender: Address, to: Address, *, utf8: bool = False, wide: bool = False, long_lines: bool = False
    ) -> Envelope:
        return Envelope(
            0,
            sender,
            (Recipient(to),),
            received_at=self._clock.wall(),
            body=Body.EIGHT_BIT if wide else Body.SEVEN_BIT,
            eight_bit=wide,
            smtputf8=utf8,
            long_lines=long_lines,
            bounce=True,
        )

    def _head(self, id: int, settings: Settings, to: Address, subject: str, automatic: str) -> Iterator[str]:
        """The header that all notices have; the caller adds its Content-Type."""
        now = self._clock.wall()
        yield f"Received: by {settings.myhostname} ({settings.mail_name})"
        yield f"\tid {queue_id(id)}; {date(now)}"
        yield f"Date: {date(now)}"
        yield f"From: MAILER-DAEMON@{settings.myhostname} (Mail Delivery System)"
        yield from dsn.wrap(subject, "Subject: ", " ")
        yield from dsn.header("To", dsn.clean(str(dsn.full_address(to, settings))))
        yield f"Auto-Submitted: {automatic}"  # RFC 3834 5
        yield f"Message-ID: <{int(now)}.{queue_id(id)}@{settings.myhostname}>"
        yield "MIME-Version: 1.0"

    def _opening(self, notice: _Notice, id: int, settings: Settings, boundary: str, *, wide: bool) -> Iterator[str]:
        """Everything up to the original."""
        form, about, utf8 = notice.form, notice.about, dsn.needs_utf8(notice.about)
        until = date(notice.until) if notice.until else ""
        eight = ("Content-Transfer-Encoding: 8bit",)
        yield from self._head(id, settings, notice.to, form.subject, "auto-replied")
        yield "Content-Type: multipart/report; report-type=delivery-status;"  # RFC 6522 3; RFC 6533 5 keeps the type
        yield f'\tboundary="{boundary}"'
        yield from eight if wide or utf8 else ()
        yield ""
        yield "This is a MIME-encapsulated message."
        yield ""
        yield f"--{boundary}"
        yield "Content-Description: Notification"
        yield f"Content-Type: text/plain; charset={'utf-8' if utf8 else 'us-ascii'}"
        yield from eight if utf8 else ()
        yield ""
        yield from dsn.human(form, settings, notice.reported, until)
        yield ""
        yield f"--{boundary}"
        yield "Content-Description: Delivery report"
        yield f"Content-Type: message/{'global-' if utf8 else ''}delivery-status"  # RFC 6533 4
        yield from eight if utf8 else ()
        yield ""
        yield from dsn.status_fields(form, settings, about, notice.reported, until, utf8=utf8)
        yield ""
        yield f"--{boundary}"
        yield f"Content-Description: {form.returned}{'' if notice.full else ' Headers'}"
        if notice.full:
            yield f"Content-Type: message/{'global' if utf8 else 'rfc822'}"
        else:
            yield f"Content-Type: {'message/global-headers' if utf8 else 'text/rfc822-headers'}"  # RFC 6522 4
        yield from eight if wide or utf8 else ()
        yield ""

    def _boundary(self, notice: _Notice, settings: Settings) -> tuple[str, bool]:
        """A boundary that nothing of the original holds, and whether what comes back of it is not 7-bit."""
        while True:
            boundary = f"{notice.about.queue_id}.{self._random.getrandbits(64):016X}/{settings.myhostname}"
            wanted, tail, found, wide = boundary.encode(), b"", False, False
            for piece in self._returned(notice, settings.bounce_size_limit):
                found = found or wanted in tail + piece
                tail = (tail + piece)[-len(wanted) :]
                wide = wide or not piece.isascii()
            if not found:
                return boundary, wide

    def _returned(self, notice: _Notice, limit: int) -> Iterator[bytes]:
        """What of the original comes back: all of it, or its header; at most `limit` octets."""
        content = self._spool.body(notice.about.id)
        for piece in content if notice.full else _header(content):
            piece = piece[:limit]
            limit -= len(piece)
            yield piece if limit > 0 else piece.removesuffix(b"\r")  # cut there, its LF would be missing
            if limit <= 0 and not notice.full:  # all of it is read to its end: only there is its checksum
                return


NAMES: Final = {
    dsn.FAILED: "sender non-delivery notification",
    dsn.DELAYED: "sender delay notification",
    dsn.RELAYED: "sender delivery status notification",
}


def notice_sender(settings: Settings) -> Address:
    """Who sends notices to the postmaster; mail to it is dropped."""
    return dsn.full_address(Address.of(settings.double_bounce_sender), settings)


def _header(content: Iterable[bytes]) -> Iterator[bytes]:
    """The header of a message, with the line end of its last line; nothing of one that begins with its body."""
    kept, done = b"\r\n", 2  # the last octets, which may be the beginning of its end; so many of them are given
    for piece in content:
        kept += piece
        end = kept.find(END_OF_HEADER)
        if end >= 0:
            yield kept[done : end + 2]
            return
        left = max(0, len(kept) - 3)
        yield kept[done:left]
        kept, done = kept[left:], max(done - left, 0)
    yield kept[done:]
