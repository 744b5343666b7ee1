"""Mail made on the box: from sendmail's envelope and content to a message in the spool.

Owns the request's form and its trace header (RFC 5321 4.4); line ends become CRLF and NUL is dropped, as everywhere.
Decides no route, and adds nothing but the trace: missing headers are sendmail's to add.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from edgemail.boot.control import Refused
from edgemail.boot.frames import EX_DATAERR, EX_UNAVAILABLE, EX_USAGE
from edgemail.clock import Clock
from edgemail.envelope import Address, Body, Envelope, Notify, Origin, Recipient, Ret
from edgemail.relay.queue.requeue import stamp
from edgemail.relay.receive.heading import Heading
from edgemail.relay.wire.dot import LegacyChunkDecoder
from edgemail.settings import Settings
from edgemail.spool.verbs import Spool
from edgemail.value import value

log = logging.getLogger("edgemail.pickup")
cleanup_log = logging.getLogger("edgemail.cleanup")

MAX_ADDRESS: Final = 512  # limit: characters of an address given to sendmail (RFC 5321 4.5.3.1 allows 320 octets)
MAX_ENVID: Final = 100  # limit: characters of sendmail -V, RFC 3461 4.4

# RFC 5321 4.1.2 with RFC 6531 3.3, and the local part alone, which is completed when it is sent.
_ADDRESS: Final = re.compile(
    r'(?P<local>[^\s\x00-\x1f\x7f-\x9f()<>\[\]:;@\\,"]+|"(?:[^"\\\x00-\x1f\x7f]|\\[ -~])*")'
    r"(?:@(?P<domain>\[[0-9A-Fa-f:.IPv]+\]|[^\s\x00-\x2c\x2f\x3a-\x40\x5b-\x60\x7b-\x9f](?:[^\s\x00-\x2c\x2f\x3a-\x40\x5b-\x5e\x60\x7b-\x9f])*))?"
)


def address(text: object) -> Address:
    """A mailbox in the form of the wire, its domain left away for one of this box. Refused for anything else."""
    found = _ADDRESS.fullmatch(text) if isinstance(text, str) and len(text) <= MAX_ADDRESS else None
    if found is None:
        raise Refused(f"malformed address: {str(text)[:100]!r}", EX_USAGE)
    try:
        found[0].encode()
    except UnicodeEncodeError:
        raise Refused("malformed address: not UTF-8", EX_USAGE) from None
    return Address(found["local"], found["domain"] or "")


@value
class Submission:
    """The envelope that sendmail gives."""

    sender: Address
    recipients: tuple[Recipient, ...]
    ret: Ret | None = None
    envid: str = ""
    body: Body = Body.SEVEN_BIT

    @classmethod
    def of_json(cls, request: Mapping[str, Any], settings: Settings) -> Submission:
        """Read a request; Refused for what is wrong with it."""
        given = request.get("recipients")
        if not isinstance(given, list) or not given:
            raise Refused("no recipients", EX_USAGE)
        if len(given) > settings.smtpd_recipient_limit:
            raise Refused(f"more than {settings.smtpd_recipient_limit} recipients", EX_USAGE)
        sender = request.get("sender")
        notify, ret, envid = request.get("notify"), request.get("ret"), request.get("envid", "")
        if notify is not None and (not isinstance(notify, int) or isinstance(notify, bool) or not 0 <= notify <= 7):
            raise Refused("notify: a number from 0 to 7 is wanted")
        if ret not in (None, "FULL", "HDRS"):
            raise Refused("ret: FULL or HDRS is wanted")
        if not isinstance(envid, str) or len(envid) > MAX_ENVID or not re.fullmatch(r"[!-~]*", envid):
            raise Refused(f"envid: up to {MAX_ENVID} printable characters are wanted")
        unique = {recipient.key: recipient for recipient in map(address, given)}
        return cls(
            Address("") if sender == "" else address(sender),
            tuple(Recipient(one, None if notify is None else Notify(notify)) for one in unique.values()),
            None if ret is None else Ret(ret),
            envid,
            Body.EIGHT_BIT if request.get("body") == "8BITMIME" else Body.SEVEN_BIT,
        )


async def _lines(content: AsyncIterator[bytes], decoder: LegacyChunkDecoder) -> AsyncIterator[bytes]:
    """The content with CRLF line ends, the last one included, and without NUL."""
    last = b"\r\n"
    async for octets in content:
        text = decoder.feed(octets)
        last = (last + text)[-2:]
        yield text
    text = decoder.finish()
    yield text if (last + text).endswith(b"\r\n") else text + b"\r\n"


async def accept(
    submission: Submission,
    content: AsyncIterator[bytes],
    spool: Spool,
    clock: Clock,
    *,
    settings: Settings,
    uid: int,
) -> Envelope:
    """Store one message; returns after the barrier. Raises Refused and SpoolError, and then nothing is kept."""
    intake = spool.intake()
    try:
        at = clock.wall()
        intake.write(stamp(settings, uid, intake.id, at))
        decoder, heading = LegacyChunkDecoder(), Heading(settings.header_size_limit)
        limit = settings.message_size_limit
        async for text in _lines(content, decoder):
            heading.feed(text)
            intake.write(text)
            await intake.drain()
            if limit and intake.size > limit:
                raise Refused("message file too big", EX_UNAVAILABLE)
        heading.finish()
        if heading.hops >= settings.hopcount_limit:
            raise Refused("too many hops", EX_DATAERR)
        addresses = (submission.sender, *(r.address for r in submission.recipients))
        envelope = await intake.commit(
            Envelope(
                id=intake.id,
                sender=submission.sender,
                recipients=submission.recipients,
                received_at=at,
                origin=Origin("localhost"),
                body=submission.body,
                eight_bit=decoder.eight_bit,
                smtputf8=not all(str(one).isascii() for one in addresses),
                ret=submission.ret,
                envid=submission.envid,
                message_id=heading.message_id,
                long_lines=decoder.long_lines,
            )
        )
    except BaseException:
        await intake.abort()
        raise
    log.info("%s: uid=%d from=<%s>", envelope.queue_id, uid, envelope.sender)
    cleanup_log.info("%s: message-id=%s", envelope.queue_id, envelope.message_id or "<>")
    return envelope
