"""Habits of servers that lie, stall, flood and break, one a row: what becomes of the mail, and of the connection.

A reply that is no SMTP, or does not fit the state, ends the connection and is the route's failure, 4.5.0; one that
is lost or stalls within a message puts it off; only a well-formed 5yz to MAIL, RCPT, DATA or the end of the
message may return mail. Every server gets a second message after it, over another connection if the first one broke.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest

from edgemail.errors import Kind
from edgemail.relay.send.credentials import Login
from tests.servers import DROP, FULL, PLAIN, RESET, STALL, FakeServer
from tests.unit.test_deliver import at, one, rig, run

ROUTE, TEMPORARY, PERMANENT = Kind.ROUTE, Kind.MESSAGE_TEMPORARY, Kind.MESSAGE_PERMANENT
PHASES = ("helo", "starttls", "mail", "rcpt", "data_init", "data_xfer", "data_done", "rset", "quit")
STANDSTILL = 0.7  # seconds, where a server stands still
PATIENCE = 20.0  # elsewhere
LOGIN = Login("u", "p")


@dataclass(frozen=True)
class Habit:
    """What a server does, and what that means. `kind` None: delivered."""

    name: str
    kind: Kind | None
    says: str = ""  # in the reply that the outcome bears
    answers: dict[str, Any] = field(default_factory=dict)
    keywords: tuple[str, ...] = FULL
    said: tuple[bytes, ...] = ()  # instead of all that: octets, one for each read
    pause: float = 0.0  # between the octets of `said`
    login: Login | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    status: str = ""


def broken(name: str, says: str = "protocol error", **more: Any) -> Habit:
    status = "4.5.0" if says == "protocol error" else "4.4.2"
    return Habit(name, ROUTE, says, status=status, **more)


def lost(name: str, says: str, **more: Any) -> Habit:
    """Within a message."""
    return Habit(name, TEMPORARY, says, status="4.4.2", **more)


DRIP = tuple(bytes((octet,)) for octet in b"220 slow and so on and on")
HELLO = (b"220 x ESMTP\r\n", b"250-x\r\n250 PIPELINING\r\n")
SLOW = (b"220 x ESMTP\r\n", b"250 x\r\n")  # without pipelining
TAKEN = (b"250 ok\r\n", b"251 will forward\r\n", b"354 go\r\n", b"250 ok\r\n")
UP_TO_DATA = (*SLOW, b"250 ok\r\n", b"250 ok\r\n")
MANY = b"".join(b"250-line %d\r\n" % number for number in range(200))

HABITS = [
    # the greeting
    broken("a greeting of 10 MB in lines", answers={"GREETING": (b"220-" + b"x" * 1000 + b"\r\n") * 10_000}),
    broken("a greeting of 10 MB in one line", answers={"GREETING": b"220 " + b"x" * 10_000_000}),
    broken("a greeting without end", "timed out", answers={"GREETING": b"220-x\r\n" * 50}),
    broken(
        "an octet at a time", "timed out", said=tuple(bytes((c,)) for c in b"220 slow and so on and on"), pause=0.05
    ),
    broken("silence", "timed out", answers={"GREETING": STALL}),
    broken("hangs up at once", "lost connection", answers={"GREETING": DROP}),
    broken("resets at once", "lost connection", answers={"GREETING": RESET}),
    broken("999 for a greeting", answers={"GREETING": b"999 x\r\n"}),
    broken("letters for a greeting", answers={"GREETING": b"hello there\r\n"}),
    broken("an empty greeting", answers={"GREETING": b"\r\n"}),
    broken("zeros for a greeting", answers={"GREETING": bytes(100) + b"\r\n"}),
    broken("speaks HTTP", answers={"GREETING": b"HTTP/1.1 400 Bad Request\r\n\r\n"}),
    broken("speaks SSH", answers={"GREETING": b"SSH-2.0-OpenSSH_9.2\r\n"}),
    broken("speaks TLS", answers={"GREETING": b"\x15\x03\x01\x00\x02\x02\x28\n"}),
    broken("speaks POP3", answers={"GREETING": b"+OK ready\r\n"}),
    broken("a greeting of two codes", answers={"GREETING": b"220-a\r\n250 b\r\n"}),
    Habit("refuses at once", ROUTE, "554", {"GREETING": b"554 5.7.1 go away\r\n"}),
    Habit("is busy", ROUTE, "421", {"GREETING": b"421 4.3.2 busy\r\n"}),
    Habit("goes ahead before anything", ROUTE, "354", {"GREETING": b"354 go\r\n"}),
    Habit("a greeting without text", None, answers={"GREETING": b"220\r\n"}),
    Habit("lines that end in LF", None, answers={"GREETING": b"220 x\n", "MAIL": b"250 ok\n"}),
    # EHLO
    broken("greets twice", said=(b"220 x\r\n220 x\r\n",)),
    broken("answers EHLO before it", said=(b"220 x\r\n250 x\r\n", b"250 ok\r\n")),
    broken("answers everything before anything", said=(b"220 x\r\n" + b"250 ok\r\n" * 3 + b"354 go\r\n250 ok\r\n",)),
    broken("hangs up at EHLO", "lost connection", answers={"EHLO": DROP}),
    broken("999 to EHLO", answers={"EHLO": b"999 x\r\n"}),
    broken("a hundred lines and more to EHLO", answers={"EHLO": MANY + b"250 end\r\n"}),
    broken("keywords without end", answers={"EHLO": b"250-" + b"K" * 3000 + b"\r\n250 x\r\n"}),
    broken("two codes to EHLO", answers={"EHLO": b"250-x\r\n550 y\r\n"}),
    Habit("421 to EHLO", ROUTE, "421", {"EHLO": b"421 4.3.2 no\r\n"}),
    Habit("354 to EHLO", ROUTE, "354", {"EHLO": b"354 go\r\n"}),
    Habit("5yz to EHLO and HELO", ROUTE, "550", {"EHLO": b"500 what\r\n", "HELO": b"550 5.7.1 no\r\n"}),
    Habit("keywords that are none", None, answers={"EHLO": b"250-x\r\n250--\r\n250-SIZE x y\r\n250 \xff\x00\r\n"}),
    # SIZE
    Habit("a limit that is none", None, keywords=("SIZE 99999999999999999999999999",)),
    Habit("a limit of nothing", None, keywords=("SIZE 0",)),
    Habit("a limit that it does not keep", PERMANENT, "552", {".": b"552 5.3.4 big\r\n"}, ("SIZE 10240000",)),
    Habit("full, and says so as for ever at RCPT", TEMPORARY, "452", {"RCPT": b"552 5.2.2 full\r\n"}),
    # MAIL
    broken("999 to MAIL", answers={"MAIL": b"999 what\r\n"}),
    broken("letters to MAIL", answers={"MAIL": b"no\r\n"}),
    broken("nothing to MAIL", answers={"MAIL": b"\r\n"}),
    broken("two digits to MAIL", answers={"MAIL": b"55 no\r\n"}),
    broken("four digits to MAIL", answers={"MAIL": b"5500 no\r\n"}),
    broken("550 without a blank to MAIL", answers={"MAIL": b"550no\r\n"}),
    broken("354 to MAIL", answers={"MAIL": b"354 go\r\n"}),
    broken("550 that does not end", answers={"MAIL": b"550-no\r\n" * 200}),
    broken("550 and another code", answers={"MAIL": b"550-no\r\n250 yes\r\n"}),
    Habit("550 and 250 to one MAIL", PERMANENT, "550", {"MAIL": b"550 5.7.1 no\r\n250 ok\r\n250 ok\r\n"}, PLAIN),
    lost("hangs up at MAIL", "lost connection", answers={"MAIL": DROP}),
    lost("stalls within a refusal", "timed out", said=(*SLOW, b"550-5.1.1 no such")),
    lost("stalls at MAIL", "timed out", answers={"MAIL": STALL}),
    Habit("421 to MAIL", TEMPORARY, "421", {"MAIL": b"421 4.3.2 bye\r\n"}),
    Habit("wants a login that we have not", ROUTE, "530", {"MAIL": b"530 5.7.0 log in\r\n"}),
    Habit("refuses the sender", PERMANENT, "550", {"MAIL": b"550 5.7.1 no\r\n"}),
    Habit("puts the sender off", TEMPORARY, "451", {"MAIL": b"451 4.7.1 later\r\n"}),
    # RCPT
    broken("999 to RCPT", answers={"RCPT": b"999 what\r\n"}),
    broken("354 to RCPT", answers={"RCPT": b"354 go\r\n"}),
    lost("hangs up at RCPT", "lost connection", answers={"RCPT": DROP}),
    broken("answers RCPT twice", answers={"RCPT": b"250 ok\r\n250 ok\r\n"}, keywords=PLAIN),
    lost("answers too few of what was pipelined", "timed out", said=(*HELLO, b"250 ok\r\n250 ok\r\n")),
    Habit("421 to RCPT", TEMPORARY, "421", {"RCPT": b"421 4.3.2 bye\r\n"}),
    Habit("refuses the recipient", PERMANENT, "550", {"RCPT": b"550 5.1.1 no\r\n"}),
    Habit("251 to RCPT", None, said=(*SLOW, *TAKEN, *TAKEN, b"221 bye\r\n")),
    # DATA
    broken("250 to DATA", answers={"DATA": b"250 ok\r\n"}, keywords=PLAIN),
    broken("220 to DATA", answers={"DATA": b"220 what\r\n"}, keywords=PLAIN),
    broken("taken before it was sent", said=(*UP_TO_DATA, b"354 go\r\n250 taken\r\n")),
    broken("goes ahead twice", said=(*UP_TO_DATA, b"354 go\r\n354 go\r\n")),
    lost("stalls at DATA", "timed out", answers={"DATA": STALL}, keywords=PLAIN),
    Habit("421 instead of going ahead", TEMPORARY, "421", {"DATA": b"421 4.3.2 bye\r\n"}, PLAIN),
    Habit("refuses the content beforehand", PERMANENT, "554", {"DATA": b"554 5.7.1 no\r\n"}, PLAIN),
    # the end
    broken("999 to the end", answers={".": b"999 what\r\n"}, keywords=PLAIN),
    broken("354 to the end", answers={".": b"354 more\r\n"}, keywords=PLAIN),
    broken("354 to the last chunk", answers={"LAST": b"354 more\r\n"}),
    broken("an answer to the end that has none", answers={".": b"250-ok\r\n" * 200}, keywords=PLAIN),
    lost("hangs up at the end", "lost connection", answers={".": DROP}, keywords=PLAIN),
    lost("resets at the end", "lost connection", answers={"LAST": RESET}),
    lost("stalls at the end", "timed out", answers={".": STALL}, keywords=PLAIN),
    Habit("421 to the end", TEMPORARY, "421", {".": b"421 4.3.2 bye\r\n"}, PLAIN),
    Habit("refuses the message", PERMANENT, "554", {".": b"554 5.7.1 spam\r\n"}, PLAIN),
    Habit("refuses the last chunk", PERMANENT, "554", {"LAST": b"554 5.7.1 spam\r\n"}),
    Habit("takes it and says so twice", None, answers={".": b"250 ok\r\n250 ok\r\n"}, keywords=PLAIN),
    Habit("takes it and hangs up", None, answers={"RSET": DROP, "QUIT": RESET}),
    Habit("takes it and says rubbish to QUIT", None, answers={"QUIT": b"\xff\xfe\r\n"}),
    Habit("takes it and stalls at QUIT", None, answers={"QUIT": STALL}),
    # STARTTLS and AUTH
    broken("hangs up at STARTTLS", "lost connection", answers={"STARTTLS": DROP}, keywords=("STARTTLS",)),
    broken(
        "octets behind its go-ahead to TLS",
        said=(b"220 x\r\n", b"250-x\r\n250 STARTTLS\r\n", b"220 go\r\n250-evil\r\n250 AUTH PLAIN\r\n"),
    ),
    Habit(
        "no TLS where it must be",
        ROUTE,
        "454",
        {"STARTTLS": b"454 4.7.0 no\r\n"},
        ("STARTTLS",),
        settings={"smtp_tls_security_level": "encrypt"},
    ),
    Habit(
        "clear text for a handshake where it must be TLS",
        ROUTE,
        "TLS",
        {"STARTTLS": b"220 go\r\n"},
        ("STARTTLS",),
        settings={"smtp_tls_security_level": "encrypt"},
        said=(b"220 x\r\n", b"250-x\r\n250 STARTTLS\r\n", b"220 go\r\n", b"250 this is no handshake\r\n" * 20),
    ),
    broken(
        "challenges without end",
        answers={"AUTH": b"334 \r\n"},
        keywords=("AUTH LOGIN",),
        login=LOGIN,
        said=(b"220 x\r\n", b"250-x\r\n250 AUTH LOGIN\r\n", *[b"334 VXNlcm5hbWU6\r\n"] * 30),
    ),
    Habit("a login refused for ever", ROUTE, "535", {"AUTH": b"535 5.7.8 no\r\n"}, ("AUTH PLAIN",), login=LOGIN),
    broken("999 to AUTH", answers={"AUTH": b"999 x\r\n"}, keywords=("AUTH PLAIN",), login=LOGIN),
]


def script(habit: Habit) -> Any:
    """Says its octets, one piece for each read; then waits."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in habit.said:
            if not piece:
                return
            writer.write(piece)
            await writer.drain()
            if habit.pause:
                await asyncio.sleep(habit.pause)
            elif not await reader.read(65_536):
                return
        await asyncio.Event().wait()

    return serve if habit.said else None


@pytest.mark.parametrize("habit", HABITS, ids=[each.name.replace(" ", "-") for each in HABITS])
def test_what_it_means_for_the_mail(habit: Habit, caplog: pytest.LogCaptureFixture) -> None:
    still = habit.says == "timed out" or STALL in habit.answers.values()
    settings: dict[str, Any] = {f"smtp_{phase}_timeout": STANDSTILL if still else PATIENCE for phase in PHASES}
    settings |= {"smtp_connect_timeout": PATIENCE, "smtp_tls_security_level": "may", **habit.settings}
    if habit.login is not None:
        settings |= {"smtp_sasl_auth_enable": True, "smtp_sasl_security_options": ("noanonymous",)}

    async def scenario() -> None:
        server = FakeServer(habit.keywords, habit.answers, script=script(habit))
        async with server, rig(at(server), login=habit.login, **settings) as box:
            outcome = one(await box.send())
            assert outcome.kind is habit.kind, outcome
            assert habit.says in str(outcome.reply), outcome
            assert not habit.status or outcome.reply.status == habit.status, outcome
            before = server.connections
            again = one(await box.send())
            assert again.kind is habit.kind or (habit.kind is None and habit.said), again
            assert not habit.status or server.connections > before, "a broken connection was used again"

    run(scenario)
    assert not [record for record in caplog.records if record.exc_info]


def test_there_are_as_many_as_promised() -> None:
    assert len({habit.name for habit in HABITS}) == len(HABITS) >= 50
