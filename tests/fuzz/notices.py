"""A notice written by the real writer into a spool in memory, and what must hold of every one of them."""

from __future__ import annotations

import asyncio
import email
import email.policy
import random
import re
from email.message import EmailMessage
from typing import Final

from edgemail.clock import ManualClock
from edgemail.envelope import Address, Envelope, Ret
from edgemail.relay.queue import dsn
from edgemail.relay.queue.bounce import Bounces
from edgemail.relay.queue.dsn import Form
from edgemail.relay.queue.settle import Reported
from edgemail.settings import Settings
from edgemail.spool.memory import MemorySpool
from edgemail.spool.verbs import Change

LINE_LIMIT: Final = 998  # RFC 5322 2.1.1
FORMS: Final = (dsn.FAILED, dsn.DELAYED, dsn.RELAYED, dsn.COPY)


def written(
    form: Form, envelope: Envelope, reported: list[Reported], content: bytes, limit: int
) -> tuple[bytes, Envelope]:
    """The notice in the spool."""

    async def scenario() -> tuple[bytes, Envelope]:
        clock = ManualClock()
        spool = MemorySpool(clock)
        settings = Settings(myhostname="gw.example.com", myorigin="gw.example.com", bounce_size_limit=limit)
        intake = spool.intake()
        intake.write(content)
        kept = await intake.commit(envelope)
        bounces = Bounces(spool, clock, lambda: settings, random.Random(3))
        made = await bounces.report(form, kept, reported, Change(remove=(kept.id,)), until=clock.wall())
        raw = b"".join(spool.body(made.id))
        assert spool.envelope(kept.id) is None
        await spool.close()
        return raw, made

    return asyncio.run(scenario())


def judge_notice(
    form: Form,
    sender: Address,
    reported: list[Reported],
    content: bytes,
    envid: str,
    smtputf8: bool,
    ret: Ret | None,
    limit: int,
) -> None:
    """Write it, and hold it against the standard library's parser."""
    envelope = Envelope(
        0,
        sender,
        tuple(one.recipient for one in reported),
        received_at=1e9,
        smtputf8=smtputf8,
        eight_bit=not content.isascii(),
        envid=envid,
        ret=ret,
    )
    raw, made = written(form, envelope, reported, content, limit)
    assert raw.count(b"\r\n") == raw.count(b"\n") == raw.count(b"\r")
    assert raw.endswith(b"\r\n")
    # The parser knows the groups of fields of RFC 3464, and not yet that those of RFC 6533 are the same.
    known = raw.replace(b"message/global-delivery-status", b"message/delivery-status", 1)
    message = email.message_from_bytes(known, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    boundary = (message.get_boundary() or "").encode()
    before, returned = raw.rsplit(b"--" + boundary + b"\r\n", 1)
    ours = before + returned.partition(b"\r\n\r\n")[0]
    for line in ours.split(b"\r\n"):
        assert len(line) <= LINE_LIMIT, line[:100]
        assert not re.search(rb"[\x00-\x08\x0b-\x1f\x7f]", line), line
    assert raw.isascii() or made.eight_bit
    human, status, original = message.iter_parts()
    assert not [part.defects for part in (message, human, status) if part.defects]
    assert human.get_content_type() == "text/plain"
    assert status.get_content_type() == "message/delivery-status"
    groups = [group for group in status.get_payload() if isinstance(group, EmailMessage)]
    assert len(groups) == 1 + len(reported)
    assert [group["Action"] for group in groups[1:]] == [form.action] * len(reported)
    assert [group["Status"] for group in groups[1:]] == [one.status for one in reported]
    for header in ("Bcc", "Content-Disposition"):
        assert message[header] is None
    back = returned.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n--" + boundary + b"--\r\n")
    full = original.get_content_type() in ("message/rfc822", "message/global")
    assert back == content if full else content.startswith(back)
