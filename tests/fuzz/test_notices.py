"""Notices about mail whose sender, recipients, parameters, content and servers are hostile.

Invariants: the standard library's parser finds the three parts and no defect; line ends are CRLF, no line is longer
than 998 octets but those of the original, nothing outside it holds a control; what comes back is what was sent; a
notice that says it is 7-bit is.
"""

from __future__ import annotations

import re

from hypothesis import example, given
from hypothesis import strategies as st

from edgemail.envelope import Address, Notify, Recipient, Ret
from edgemail.relay.queue import dsn
from edgemail.relay.queue.dsn import Form
from edgemail.relay.queue.settle import Reported
from edgemail.reply import Reply
from tests.fuzz.notices import FORMS, judge_notice
from tests.fuzz.seeds import bounded

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
    judge_notice(form, sender, reported, content, envid, smtputf8, ret, limit)
