"""Notices about mail whose sender, recipients, parameters, content and servers are hostile.

Invariants: the standard library's parser finds the three parts and no defect; line ends are CRLF, no line is longer
than 998 octets but those of the original, nothing outside it holds a control; what comes back is what was sent; a
notice that says it is 7-bit is.
"""

from __future__ import annotations

import asyncio
import email
import email.policy
import random
import re
from email.message import EmailMessage

from hypothesis import example, given
from hypothesis import strategies as st

from edgemail.clock import ManualClock
from edgemail.envelope import Address, Envelope, Notify, Recipient, Ret
from edgemail.relay.queue import dsn
from edgemail.relay.queue.bounce import Bounces
from edgemail.relay.queue.dsn import Form, Reported
from edgemail.reply import Reply
from edgemail.settings import Settings
from edgemail.spool.memory import MemorySpool
from edgemail.spool.verbs import Change
from tests.fuzz.seeds import bounded

LINE_LIMIT = 998  # RFC 5322 2.1.1
FORMS = (dsn.FAILED, dsn.DELAYED, dsn.RELAYED, dsn.COPY)
EVIL = st.sampled_from(
    [
        *(
            "",
            "\r\n.\r\n",
            "\n",
            "\r",
            "\0",
            "\r\nBcc: all@example.com\r\n",
            "\u2028",
            "\x85",
            "\x1b[2J",
            "=?utf-8?q?x?=",
            ";",
        ),
        *(
            "--",
            "x" * 1200,
            "用" * 900,
            "ü" * 500,
            "\ud800",
            "+0D+0A.+0D+0A",
            "rfc822;",
            "utf-8;\\x{D800}",
            "a b " * 300,
        ),
        *("From: x", " ", '"', "<>", "%s", "{until}", "Content-Type: text/html", "\t"),
    ]
)
TEXT = st.lists(EVIL | st.text(max_size=30), max_size=4).map("".join)
ADDRESS = st.builds(Address, TEXT, TEXT)
REPLY = st.builds(Reply, st.sampled_from([250, 450, 550]), st.sampled_from(["", "5.1.1", "4.2.0", "2.0.0"]), TEXT)
REPORTED = st.builds(
    Reported,
    st.builds(Recipient, ADDRESS, st.none() | st.integers(0, 7).map(Notify), orcpt=TEXT),
    status=st.sampled_from(["5.1.1", "4.4.1", "2.0.0"]),
    text=TEXT,
    reply=st.none() | REPLY,
    relay=TEXT,
    remote=st.booleans(),
)
CONTENT = st.lists(
    st.sampled_from(
        [b"Subject: x\r\n", b"\r\n", b"--b\r\n", b"\xff\xfe\r\n", b".\r\n", b"x" * 70 + b"\r\n", b"caf\xc3\xa9\r\n"]
    )
    | st.binary(max_size=40).map(lambda data: re.sub(rb"[\r\n]", b"", data) + b"\r\n"),
    max_size=12,
).map(b"".join)


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


@bounded()
@given(
    form=st.sampled_from(FORMS),
    sender=ADDRESS,
    reported=st.lists(REPORTED, min_size=1, max_size=3),
    content=CONTENT,
    envid=TEXT,
    smtputf8=st.booleans(),
    ret=st.none() | st.sampled_from(Ret),
    limit=st.sampled_from([0, 10, 50_000]),
)
@example(
    form=dsn.FAILED,
    sender=Address("ü", "example.com"),
    reported=[
        Reported(
            Recipient(Address("a" * 300, "b.example")), "5.1.1", "用" * 900, Reply(550, "5.1.1", "用" * 600), "x", True
        )
    ],
    content=b"Subject: x\r\n\r\n",
    envid="",
    smtputf8=True,
    ret=None,
    limit=50_000,
)
@example(
    form=dsn.FAILED,
    sender=Address("ü", "example.com"),
    reported=[Reported(Recipient(Address("用" * 74)), "5.1.1", "用" * 300)],
    content=b"Subject: x\r\n\r\n",
    envid="",
    smtputf8=True,
    ret=None,
    limit=50_000,
)
def test_every_notice_is_well_formed(
    form: Form,
    sender: Address,
    reported: list[Reported],
    content: bytes,
    envid: str,
    smtputf8: bool,
    ret: Ret | None,
    limit: int,
) -> None:
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
