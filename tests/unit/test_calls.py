"""What is told of asking a provider over a link: to the log, to who repeats it, and to who shows it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from edgemail.boot.calls import Calls
from edgemail.clock import ManualClock
from edgemail.relay.queue.link import Answer
from edgemail.relay.send.call import CallFailed
from edgemail.reply import Reply
from edgemail.settings import Configuration, Link, Settings

STARTED = Reply(250, "", "Queuing started")
UNABLE = Reply(458, "", "Unable to queue messages")
NOT_OURS = Reply(459, "", "<b.example>: service unavailable")
NO_MAIL = Reply(453, "", "You have no mail")
TURNED_DOWN = Reply(450, "", "ATRN request refused")


class Caller:
    """A provider that answers as it was told to."""

    def __init__(self, said: Any) -> None:
        self.said = said

    async def etrn(self, hop: str, nodes: list[str], via: object) -> list[tuple[str, Reply]]:
        if isinstance(self.said, Exception):
            raise self.said
        return list(zip(nodes, self.said, strict=True))

    async def atrn(self, *asked: object) -> tuple[Reply, None]:
        if isinstance(self.said, Exception):
            raise self.said
        return self.said[0], None


def asked(link: Link, said: Any) -> tuple[bool, list[tuple[str, str, str, Answer, str]]]:
    found: list[tuple[str, str, str, Answer, str]] = []
    caller: Any = Caller(said)
    nobody: Any = None
    configuration = Configuration("", Settings(), ())

    def heard(*what: Any) -> None:
        found.append(what)

    calls = Calls(caller, nobody, ManualClock(), lambda: configuration, nobody, heard=heard)
    return asyncio.run(calls.ask(link, None)), found


@pytest.mark.parametrize(
    ("said", "answer", "words"),
    [
        ((STARTED, STARTED), Answer.OK, "a.example: 250 Queuing started; @b.example: 250 Queuing started"),
        ((STARTED, UNABLE), Answer.LATER, "458 Unable to queue messages"),
        ((STARTED, NOT_OURS), Answer.REFUSED, "459 <b.example>: service unavailable"),
        (CallFailed("connect to hub.example: Connection refused", temporary=True), Answer.LATER, "refused"),
        (CallFailed("hub.example does not offer ETRN", temporary=False), Answer.REFUSED, "does not offer"),
    ],
)
def test_etrn(said: Any, answer: Answer, words: str) -> None:
    link = Link("wan", interface="wan0", etrn="hub.example", etrn_domains=("a.example", "@b.example"))
    done, found = asked(link, said)
    assert done is (answer is not Answer.LATER), "what is refused for good is not asked again before its time"
    assert [one[:4] for one in found] == [("wan", "etrn", "hub.example", answer)]
    assert words in found[0][4]


@pytest.mark.parametrize(
    ("said", "answer", "words"),
    [
        ((NO_MAIL,), Answer.OK, "0 messages, 453 You have no mail"),
        ((TURNED_DOWN,), Answer.REFUSED, "0 messages, 450 ATRN request refused"),
        (CallFailed("login refused", temporary=False), Answer.REFUSED, "login refused"),
    ],
)
def test_atrn(said: Any, answer: Answer, words: str, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("secret\n")
    link = Link(
        "wan",
        interface="wan0",
        atrn="hub.example",
        atrn_domains=("a.example",),
        atrn_user="branch",
        atrn_password_file=str(tmp_path / "password"),
    )
    done, found = asked(link, said)
    assert found == [("wan", "atrn", "hub.example", answer, words)]
    assert done


def test_a_password_that_cannot_be_read_is_a_reason_too(tmp_path: Path) -> None:
    where = str(tmp_path / "gone")
    link = Link("wan", interface="x", atrn="h.example", atrn_domains=("a.example",), atrn_password_file=where)
    done, found = asked(link, (NO_MAIL,))
    assert not done
    assert found[0][3] is Answer.LATER
    assert "No such file" in found[0][4]
