"""The server dialog: its state machine, its bounds, and that neither depends on how the octets arrive."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from edgemail.relay.wire import replies
from edgemail.relay.wire.dialog import RECIPIENT_OVERSHOOT, Dialog
from edgemail.relay.wire.events import (
    Atrn,
    Auth,
    AuthResponse,
    Bad,
    Begin,
    Content,
    End,
    Etrn,
    Hello,
    Mail,
    Rcpt,
    StartTls,
)
from edgemail.relay.wire.extensions import ALWAYS
from edgemail.relay.wire.lines import AUTH_LINE_LIMIT, DROPPED_LIMIT
from edgemail.relay.wire.states import BEFORE_TLS, TRANSITIONS, State
from edgemail.reply import Reply
from edgemail.settings import Settings
from tests.dialogs.driver import Driver

HOST = "gw7.example.com"
KEPT = 65_536
END_OF_REPLY = re.compile(rb"^[2-5][0-9][0-9] ", re.MULTILINE)

HELO = b"HELO client.example\r\n"
MAIL = b"MAIL FROM:<a@client.example>\r\n"
RCPT = b"RCPT TO:<b@example.com>\r\n"
OPENING = HELO + MAIL + RCPT


def started(
    mechanisms: tuple[str, ...] = (), tls: bool = False, etrn: bool = False, atrn: bool = False, **given_settings: Any
) -> Driver:
    """A greeted session with these settings, and as many errors as it likes."""
    values = {"smtpd_hard_error_limit": 1_000_000, "smtpd_junk_command_limit": 1_000_000, **given_settings}
    dialog = Dialog(Settings(myhostname=HOST, **values), tls=tls, mechanisms=mechanisms, etrn=etrn, atrn=atrn)
    driver = Driver(dialog)
    assert driver.greet() == b"220 gw7.example.com ESMTP edgemail\r\n"
    return driver


def said(driver: Driver, data: bytes) -> list[str]:
    """The replies to `data`, each as its code and enhanced code."""
    text = driver.receive(data).decode()
    return [" ".join(line.split(" ")[:2]) for line in text.splitlines() if line[3:4] == " "]


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True) if a < b]


# The transition table

OPENINGS = {
    State.START: b"",
    State.READY: HELO,
    State.SENDER: HELO + MAIL,
    State.RECIPIENT: OPENING,
    State.CHUNKS: OPENING + b"BDAT 3\r\nabc",
}
COMMANDS = {
    "HELO": HELO,
    "EHLO": b"EHLO client.example\r\n",
    "MAIL": MAIL,
    "RCPT": RCPT,
    "DATA": b"DATA\r\n",
    "BDAT": b"BDAT 0\r\n",
    "RSET": b"RSET\r\n",
    "NOOP": b"NOOP\r\n",
    "HELP": b"HELP\r\n",
    "QUIT": b"QUIT\r\n",
    "VRFY": b"VRFY a\r\n",
    "EXPN": b"EXPN a\r\n",
    "STARTTLS": b"STARTTLS\r\n",
    "AUTH": b"AUTH PLAIN\r\n",
    "ETRN": b"ETRN example.com\r\n",
    "ATRN": b"ATRN example.com\r\n",
}
# First digit of the reply in each state, in the order of State; written down apart from the table that it checks.
EXPECTED = {
    "HELO": "22222",
    "EHLO": "22222",
    "MAIL": "22555",
    "RCPT": "55225",
    "DATA": "55535",
    "BDAT": "55522",
    "RSET": "22222",
    "NOOP": "22222",
    "HELP": "22222",
    "QUIT": "22222",
    "VRFY": "22222",
    "EXPN": "55555",
    "STARTTLS": "22555",
    "AUTH": "53555",
    "ETRN": "52555",
    "ATRN": "52555",
}


@pytest.mark.parametrize("verb", TRANSITIONS)
@pytest.mark.parametrize("state", State)
def test_every_verb_in_every_state(state: State, verb: str) -> None:
    driver = started(("PLAIN",), etrn=True, atrn=True, smtpd_sasl_auth_enable=True, smtpd_tls_auth_only=False)
    driver.receive(b"NOOP\r\n" + OPENINGS[state])
    if verb == "ATRN":
        driver.dialog.authenticated("user")
    before = len(driver.events)
    reply = driver.receive(COMMANDS[verb])
    assert reply[:1].decode() == EXPECTED[verb][state]
    refusal = TRANSITIONS[verb][state]
    if refusal is not None:
        assert driver.events[before:] == [Bad(refusal)]
        assert reply == refusal.encode()
        again = "RCPT" if state >= State.SENDER else "MAIL"  # and the state is as it was
        assert driver.receive(COMMANDS[again])[:1].decode() == EXPECTED[again][state]


def test_the_table_is_complete() -> None:
    assert set(TRANSITIONS) == set(COMMANDS) == set(EXPECTED)
    assert set(TRANSITIONS) >= BEFORE_TLS


# Content of DATA: anything without a dot, and lines that would be commands, one of them doubled dots before it.
CONTENT = st.binary(max_size=20).filter(lambda content: b"." not in content) | st.lists(
    st.sampled_from((b"QUIT", b"RSET", b"MAIL FROM:<x@y>", b"..QUIT", b"BDAT 5 LAST", b"LONG")), max_size=4
).map(lambda lines: b"\r\n".join(lines).replace(b"LONG", b"x" * 40_000))


class Session(RuleBasedStateMachine):
    """A client that says anything at any time, and a model of what a server has to answer."""

    def __init__(self) -> None:
        super().__init__()
        self.driver = started(smtpd_recipient_limit=3)
        self.hello = self.sender = self.chunks = False
        self.recipients = 0

    def expect(self, data: bytes, *codes: int) -> None:
        assert [int(reply[:3]) for reply in said(self.driver, data)] == list(codes)

    def over(self) -> None:
        self.sender = self.chunks = False
        self.recipients = 0

    @rule(extended=st.booleans())
    def greets(self, extended: bool) -> None:
        self.expect(b"EHLO x\r\n" if extended else b"HELO x\r\n", 250)
        self.hello = True
        self.over()

    @rule()
    def mail(self) -> None:
        self.expect(MAIL, 503 if self.sender else 250)
        self.sender = True

    @rule()
    def rcpt(self) -> None:
        if not self.sender or self.chunks:
            self.expect(RCPT, 503)
        elif self.recipients == 3:
            self.expect(RCPT, 452)
        else:
            self.expect(RCPT, 250)
            self.recipients += 1

    @rule(content=CONTENT)
    def data(self, content: bytes) -> None:
        if not self.sender or self.chunks:
            self.expect(b"DATA\r\n", 503)
        elif not self.recipients:
            self.expect(b"DATA\r\n", 554)
        else:
            self.expect(b"DATA\r\n", 354)
            clean = not re.search(rb"\r(?!\n)|(?<!\r)\n|\0", content + b"\r\n")
            self.expect(content + b"\r\n.\r\n", 250 if clean else 550)
            self.over()

    @rule(last=st.booleans(), content=st.binary(max_size=20).filter(lambda content: not set(content) & set(b"\r\n\0")))
    def bdat(self, last: bool, content: bytes) -> None:
        command = b"BDAT %d%s\r\n%s" % (len(content), b" LAST" if last else b"", content)
        if not self.sender:
            self.expect(command, 503)
        elif not self.recipients:
            self.expect(command, 554)
        else:
            self.expect(command, 250)
            self.chunks = True
            if last:
                self.over()

    @rule()
    def rset(self) -> None:
        self.expect(b"RSET\r\n", 250)
        self.over()

    @rule(line=st.sampled_from([b"", b"FOO", b"MAIL", b"RCPT TO:<>", b"NOOP\n", b"NOOP\0", b"\xff", b"x" * 3000]))
    def nonsense(self, line: bytes) -> None:
        before = len(self.driver.events)
        assert len(said(self.driver, line + b"\r\n")) == 1
        assert isinstance(self.driver.events[before], Bad)

    @rule(length=st.integers(1, 60_000))
    def a_long_line(self, length: int) -> None:
        early = said(self.driver, b"x" * length)
        assert self.driver.dialog.buffered <= KEPT
        assert len(early + said(self.driver, b"\r\n")) == 1

    @invariant()
    def nothing_of_the_content_was_a_command(self) -> None:
        assert not self.driver.dialog.closed

    @invariant()
    def model_and_dialog_agree(self) -> None:
        dialog = self.driver.dialog
        assert (dialog.in_transaction, dialog.recipients) == (self.sender, self.recipients)
        assert dialog.hello == ("x" if self.hello else "")
        assert not dialog.in_content
        assert not dialog.buffered


TestSession = Session.TestCase
TestSession.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


# How the octets arrive

BODY = st.lists(
    st.sampled_from([b"Subject: x", b"\r\n", b"\r", b"\n", b".", b"\r\n.", b"\0", b"\xe4", b"a" * 1200])
).map(b"".join)
COMMAND = st.sampled_from([
    HELO, b"EHLO x\r\n", MAIL, RCPT, OPENING, b"MAIL FROM:<> SIZE=2000\r\n", b"RCPT TO:<a b>\r\n", b"DATA\r\n",
    b"RSET\r\n", b"NOOP\r\n", b"VRFY a\r\n", b"\r\n", b"AUTH PLAIN\r\n", b"AUTH PLAIN AAA=\r\n", b"*\r\n",
    b"BDAT 3\r\nabc", b"BDAT 5 LAST\r\na\r\nbc", b"BDAT 0 LAST\r\n", b"NOOP\nNOOP\r\n", b"NOOP\rNOOP\r\r\n",
    b"x" * 600 + b"\r\n", b"y" * 510 + b"\r\r\r\n", b"AUTH PLAIN " + b"A" * 1024 + b"\r\n", b"NO", b".\r\n",
])  # fmt: skip
MESSAGE = BODY.map(lambda body: OPENING + b"DATA\r\n" + body + b"\r\n.\r\n")
CHUNKS = BODY.map(lambda body: OPENING + b"BDAT %d LAST\r\n" % len(body) + body)
SESSION = st.lists(COMMAND | MESSAGE | CHUNKS, min_size=1).map(b"".join)


@given(SESSION, st.lists(st.integers(0, 10_000), max_size=20), st.booleans())
@settings(deadline=None, max_examples=200)
def test_it_does_not_matter_how_octets_arrive(data: bytes, cuts: list[int], legacy: bool) -> None:
    outcomes = []
    for fed in ([data], pieces(data, cuts), [data[i : i + 1] for i in range(len(data))]):
        driver = started(
            ("PLAIN",), tls=True, smtpd_sasl_auth_enable=True, line_length_limit=512, message_size_limit=1500,
            smtpd_legacy_line_ends=legacy,
        )  # fmt: skip
        said = b"".join(driver.receive(piece) for piece in fed)
        outcomes.append(
            (said, driver.events, [dataclasses.replace(m, pieces=0) for m in driver.messages], driver.dialog.closed)
        )
    assert outcomes[0] == outcomes[1] == outcomes[2]
    for message in outcomes[0][2]:
        assert not re.search(rb"\r(?!\n)|(?<!\r)\n|\0", message.content)


@given(st.lists(st.binary(max_size=300) | COMMAND, max_size=30), st.booleans())
@settings(deadline=None, max_examples=300)
def test_no_octets_raise(data: list[bytes], legacy: bool) -> None:
    driver = started(("PLAIN", "LOGIN"), tls=True, smtpd_sasl_auth_enable=True, smtpd_legacy_line_ends=legacy)
    for piece in data:
        out = driver.receive(piece)
        assert not out or out.endswith(b"\r\n")
        assert driver.dialog.buffered <= KEPT
    driver.receive(b"")
    assert driver.dialog.closed


UNENDED = [b"AUTH PLAIN\r\n", OPENING + b"DATA\r\n", OPENING + b"BDAT 99999999999\r\n", b"BDAT 99999999999\r\n"]


@pytest.mark.parametrize("opening", [b"", *UNENDED])
@pytest.mark.parametrize("octet", [b"x", b"\r", b"\n", b"\0", b"\r\n", b".", b"\x16", b"\xff"])
def test_nothing_is_kept_of_what_never_ends(opening: bytes, octet: bytes) -> None:
    driver = started(("PLAIN",), tls=True, smtpd_sasl_auth_enable=True, message_size_limit=0)
    driver.receive(HELO + opening)
    for _ in range(20):
        driver.receive(octet * (10_000 // len(octet)))
        assert driver.dialog.buffered <= KEPT


def test_replies_in_step() -> None:
    """As many replies as commands, in their order, however many arrive together."""
    driver = started()
    group = b"NOOP\r\nFOO\r\n" + MAIL + b"\r\nNOOP\nQUIT\r\n" + RCPT + b"x" * 5000 + b"\r\nVRFY a\r\nRSET\r\n"
    codes = [
        "250 2.0.0",
        "500 5.5.2",
        "250 2.1.0",
        "500 5.5.2",
        "500 5.5.2",
        "250 2.1.5",
        "500 5.5.2",
        "252 2.0.0",
        "250 2.0.0",
    ]
    for _ in range(3):
        assert said(driver, group * 3) == codes * 3
        assert [part for i in range(len(group)) for part in said(driver, group[i : i + 1])] == codes


# Commands


def test_ehlo_in_full() -> None:
    driver = started(
        ("PLAIN", "LOGIN"),
        tls=True,
        etrn=True,
        smtpd_sasl_auth_enable=True,
        broken_sasl_auth_clients=True,
        message_size_limit=0,
    )
    assert driver.receive(b"EHLO x\r\n").decode().splitlines() == [
        f"250-{HOST}", "250-PIPELINING", "250-SIZE", "250-VRFY", "250-ETRN", "250-AUTH PLAIN LOGIN",
        "250-AUTH=PLAIN LOGIN", "250-ENHANCEDSTATUSCODES", "250-8BITMIME", "250-DSN", "250-SMTPUTF8",
        "250-LIMITS RCPTMAX=1000", "250 CHUNKING",
    ]  # fmt: skip


def test_discarded_keywords_are_not_served() -> None:
    words = (*ALWAYS, "vrfy", "starttls", "auth", "smtputf8", "silent-discard")
    driver = started(
        ("PLAIN",), smtpd_discard_ehlo_keywords=words, smtpd_sasl_auth_enable=True, smtpd_tls_auth_only=False
    )
    assert driver.receive(b"EHLO x\r\n") == b"250 gw7.example.com\r\n"
    assert said(driver, b"STARTTLS\r\n") == ["502 5.5.1"]
    assert said(driver, b"AUTH PLAIN\r\n") == ["503 5.5.1"]
    assert said(driver, b"MAIL FROM:<a@b.c> RET=FULL\r\n") == ["555 5.5.4"]
    assert said(driver, b"MAIL FROM:<a@b.c> SMTPUTF8\r\n") == ["555 5.5.4"]
    assert said(driver, MAIL + RCPT + b"BDAT 6 LAST\r\nNOOP\r\nNOOP\r\n") == [
        "250 2.1.0",
        "250 2.1.5",
        "502 5.5.1",
        "250 2.0.0",
    ]


def test_a_refused_command_changes_nothing() -> None:
    driver = started()
    driver.refuse = {Hello: Reply(550, "5.7.1", "no"), Mail: Reply(450, "4.7.1", "no"), Rcpt: Reply(550, "5.1.1", "no")}
    assert said(driver, HELO + MAIL + RCPT) == ["550 5.7.1", "450 4.7.1", "503 5.5.1"]
    assert driver.dialog.hello == ""
    del driver.refuse[Mail], driver.refuse[Hello]
    assert said(driver, b"EHLO me\r\n" + MAIL + RCPT + b"DATA\r\n")[1:] == ["250 2.1.0", "550 5.1.1", "554 5.5.1"]
    assert (driver.dialog.hello, driver.dialog.extended) == ("me", True)
    driver.refuse = {Hello: Reply(550, "5.7.1", "no")}
    driver.receive(b"HELO you\r\n")
    assert (driver.dialog.hello, driver.dialog.extended, driver.dialog.in_transaction) == ("me", True, True)


def test_names_in_any_character_set() -> None:
    driver = started()
    assert said(driver, b"HELO b\xfcro\x01 3\r\n") == ["250 gw7.example.com"]
    assert driver.dialog.hello == "b?ro? 3"


def test_tls_comes_first_where_it_is_required() -> None:
    driver = started(smtpd_tls_security_level="encrypt")
    for verb in TRANSITIONS:
        if verb not in BEFORE_TLS:
            assert said(driver, COMMANDS[verb]) == ["530 5.7.0"]
    for command in (HELO, b"EHLO x\r\n", b"NOOP\r\n", b"RSET\r\n"):
        assert said(driver, command)[0].startswith("250")
    # and a password never goes in clear there, whatever smtpd_tls_auth_only says
    open_ = started(
        ("PLAIN",), smtpd_tls_security_level="encrypt", smtpd_sasl_auth_enable=True, smtpd_tls_auth_only=False
    )
    assert b"AUTH" not in open_.receive(b"EHLO x\r\n")


def test_starttls_forgets_what_was_said_in_clear() -> None:
    driver = started(smtpd_sasl_auth_enable=True)
    driver.receive(OPENING + b"RSET\r\n")
    driver.dialog.authenticated("kdent")
    assert said(driver, b"STARTTLS\r\nMAIL FROM:<evil@client.example>\r\n") == ["220 2.0.0"]
    assert driver.events[-1] == StartTls()
    assert driver.dialog.unread == 33
    assert driver.receive(b"NOOP\r\n") == b""  # nothing is read before the handshake
    driver.dialog.tls_started(("PLAIN",))
    assert driver.dialog.unread == 0
    assert (driver.dialog.hello, driver.dialog.user, driver.dialog.tls) == ("", "", True)
    assert said(driver, b"AUTH PLAIN\r\n") == ["503 5.5.1"]
    assert b"AUTH PLAIN" in driver.receive(b"EHLO x\r\n")
    plain = started()
    plain.refuse = {StartTls: replies.TLS_UNAVAILABLE}
    assert said(plain, b"STARTTLS\r\nNOOP\r\n") == ["454 4.7.0", "250 2.0.0"]


def test_auth_events() -> None:
    driver = started(("PLAIN", "LOGIN"), tls=True, smtpd_sasl_auth_enable=True)
    driver.receive(HELO + b"auth plain =\r\nAUTH PLAIN AAA=\r\nAUTH LOGIN\r\nYWI=\r\n\r\nAUTH LOGIN\r\n*\r\n")
    assert driver.events[1:] == [
        Auth("PLAIN", b""), Auth("PLAIN", b"\0\0"),
        Auth("LOGIN", None), AuthResponse(b"ab"), AuthResponse(b""),
        Auth("LOGIN", None), AuthResponse(None),
    ]  # fmt: skip


def test_long_auth_lines_are_taken_and_longer_ones_are_not() -> None:
    driver = started(("PLAIN",), tls=True, smtpd_sasl_auth_enable=True)
    driver.receive(HELO)
    driver.refuse = {Auth: replies.AUTH_REFUSED, AuthResponse: replies.AUTH_REFUSED}
    room = AUTH_LINE_LIMIT - len("AUTH PLAIN ")
    room -= room % 4
    assert said(driver, b"AUTH PLAIN " + b"A" * room + b"\r\n") == ["535 5.7.8"]
    assert said(driver, b"AUTH PLAIN " + b"A" * (room + 4) + b"\r\n") == ["500 5.5.2"]
    for length, code in ((AUTH_LINE_LIMIT, "535 5.7.8"), (AUTH_LINE_LIMIT + 4, "500 5.5.6")):
        driver.refuse = {Auth: replies.challenge(b""), AuthResponse: replies.AUTH_REFUSED}
        assert said(driver, b"AUTH PLAIN\r\n" + b"A" * length + b"\r\n") == ["334 ", code]
        assert said(driver, b"NOOP\r\n") == ["250 2.0.0"]


def test_line_length() -> None:
    driver = started(line_length_limit=600)
    assert said(driver, b"NOOP " + b"x" * 595 + b"\r\n") == ["250 2.0.0"]
    assert said(driver, b"NOOP " + b"x" * 596 + b"\r\n") == ["500 5.5.2"]
    assert driver.events[-1] == Bad(replies.LINE_TOO_LONG)
    legacy = started(line_length_limit=600, smtpd_legacy_line_ends=True)
    assert said(legacy, b"NOOP " + b"x" * 595 + b"\nNOOP " + b"x" * 596 + b"\n") == ["250 2.0.0", "500 5.5.2"]


def test_a_line_without_end_is_answered_at_once_and_closed_in_the_end() -> None:
    driver = started()
    assert said(driver, b"x" * 3000) == ["500 5.5.2"]
    assert said(driver, b"x" * 3000 + b"\r") == []
    assert said(driver, b"\nNOOP\r\n") == ["250 2.0.0"]
    assert said(driver, b"NOOP\n") == ["500 5.5.2"]
    for _ in range(DROPPED_LIMIT // 65536 - 1):
        driver.receive(b"x" * 65536)
    assert not driver.dialog.closed
    assert said(driver, b"x" * 65536) == ["500 5.5.2"]
    assert driver.dialog.closed


def test_a_tls_handshake_on_a_plain_port_is_closed() -> None:
    driver = started()
    assert said(driver, b"\x16\x03\x01\x02\x00\x01\x00") == ["554 5.5.1"]
    assert driver.dialog.closed


@pytest.mark.parametrize("line", [b"GET / HTTP/1.0", b"post /x", b"CONNECT a:25 HTTP/1.1", b"PRI * HTTP/2.0"])
def test_http_is_closed(line: bytes) -> None:
    driver = started()
    assert said(driver, line + b"\r\n" + MAIL) == ["554 5.5.1"]
    assert driver.dialog.closed
    assert isinstance(driver.events[-1], Bad)
    assert driver.events[-1].fatal


ATRN = {
    "": Atrn(()),
    "example.com": Atrn(("example.com",)),
    "a.example,b.example": Atrn(("a.example", "b.example")),
    "a.example , b.example": Atrn(("a.example", "b.example")),
    "a.example,": None,
    ",": None,
    "a b": None,
    "-x": None,
    "@example.com": None,
    "[192.0.2.1]": None,
}


@pytest.mark.parametrize(("argument", "event"), ATRN.items())
def test_atrn(argument: str, event: Atrn | None) -> None:
    driver = started(atrn=True)
    driver.receive(HELO)
    driver.dialog.authenticated("user")
    reply = driver.receive(f"ATRN {argument}".encode() + b"\r\nNOOP\r\n")
    if event is None:
        assert reply == replies.ATRN_SYNTAX.encode() + replies.OK.encode()
    else:
        assert driver.events[-1] == event
        assert reply == replies.ATRN_TURNING.encode()  # and nothing that stands behind it is read


def test_atrn_is_for_users_on_its_own_listeners() -> None:
    line = b"ATRN example.com\r\n"
    assert started().receive(HELO + line).endswith(replies.NOT_IMPLEMENTED.encode())
    assert started(atrn=True).receive(line) == replies.AUTHENTICATION_REQUIRED.encode()
    assert started(atrn=True).receive(HELO + line).endswith(b"\r\n" + replies.AUTHENTICATION_REQUIRED.encode())
    offer = started(("CRAM-MD5",), etrn=True, atrn=True, smtpd_sasl_auth_enable=True, smtpd_tls_auth_only=True)
    lines = offer.receive(b"EHLO x\r\n").decode().split("\r\n")
    assert lines.index("250-ETRN") < lines.index("250-ATRN") < lines.index("250-AUTH CRAM-MD5")  # before any login


ETRN_FAULTS = {
    "": replies.ETRN_SYNTAX,
    "a b": replies.ETRN_SYNTAX,
    "#a b": replies.ETRN_SYNTAX,
    "-x": replies.ETRN_BAD_NAME,
    "@": replies.ETRN_BAD_NAME,
}


@pytest.mark.parametrize(("argument", "reply"), ETRN_FAULTS.items())
def test_etrn_syntax(argument: str, reply: Reply) -> None:
    driver = started(etrn=True)
    assert driver.receive(HELO + f"ETRN {argument}\r\n".encode()).endswith(b"\r\n" + reply.encode())


def test_etrn() -> None:
    driver = started(etrn=True)
    driver.receive(HELO)
    for name in ("example.com", "@example.com", "#queue", "[192.0.2.1]"):
        assert driver.receive(f"ETRN {name}\r\n".encode()) == b"250 Queuing started\r\n"
        assert driver.events[-1] == Etrn(name)
    assert driver.receive(MAIL + b"ETRN example.com\r\n").endswith(b"\r\n503 Error: MAIL transaction in progress\r\n")


# Content


def test_content_and_its_traits() -> None:
    driver = started()
    driver.receive(OPENING + b"DATA\r\n")
    assert driver.dialog.in_content
    assert said(driver, b"..a\r\n" + b"x" * 999 + b"\r\n\xe4\r\n.\r\n") == ["250 2.0.0"]
    assert driver.messages[0].content == b".a\r\n" + b"x" * 999 + b"\r\n\xe4\r\n"
    assert driver.events[-1] == End(1008, None)
    assert (driver.dialog.eight_bit, driver.dialog.long_lines) == (True, True)
    assert not driver.dialog.in_content
    assert said(driver, MAIL + RCPT + b"DATA\r\n" + b"plain\r\n.\r\n")[-1] == "250 2.0.0"
    assert (driver.dialog.eight_bit, driver.dialog.long_lines) == (False, False)


def test_large_content_comes_in_pieces() -> None:
    driver = started()
    driver.receive(OPENING + b"DATA\r\n")
    piece = (b"x" * 76 + b"\r\n") * 800
    for _ in range(50):
        driver.receive(piece)
        assert driver.dialog.buffered < 10
    driver.receive(b".\r\n")
    assert driver.messages[0].content == piece * 50
    assert driver.messages[0].pieces > 40


# What a client tells a lenient server to be the end of a message, and the command that it hides.
HIDDEN = b"MAIL FROM:<admin@example.com>\r\nRCPT TO:<victim@example.com>\r\nDATA\r\nevil\r\n"


ENDS = [
    b"\n.\n",
    b"\r\n.\n",
    b"\n.\r\n",
    b"\r.\r",
    b"\r\n.\r",
    b"\r.\r\n",
    b"\r\n\0.\r\n",
    b"\r\n.\0\r\n",
    b"\n\n.\r\n",
]


@pytest.mark.parametrize("end", [*ENDS, b"\r\r\n.\r\r\n"])
def test_smuggling(end: bytes) -> None:
    driver = started()
    assert said(driver, OPENING + b"DATA\r\nSubject: x\r\n\r\na" + end + HIDDEN) == [
        "250 gw7.example.com",
        "250 2.1.0",
        "250 2.1.5",
        "354 End",
    ]
    assert said(driver, b"\r\n.\r\nNOOP\r\n") == ["550 5.6.11", "250 2.0.0"]
    assert driver.messages == []
    chunk = b"a" + end + HIDDEN
    assert said(driver, MAIL + RCPT + b"BDAT %d LAST\r\n%sNOOP\r\n" % (len(chunk), chunk))[2:] == [
        "550 5.6.11",
        "250 2.0.0",
    ]
    assert driver.messages == []


def test_legacy_content() -> None:
    driver = started(smtpd_legacy_line_ends=True)
    driver.receive(OPENING.replace(b"\r\n", b"\n") + b"DATA\n")
    assert said(driver, b"a\n..b\rc\0\n.\nNOOP\n") == ["250 2.0.0", "250 2.0.0"]
    assert driver.messages[0].content == b"a\r\n.b\r\nc\r\n"
    assert said(driver, MAIL + RCPT + b"BDAT 5 LAST\r\na\nb\0\r")[-1] == "250 2.0.0"
    assert driver.messages[1].content == b"a\r\nb\r\n"


def test_a_message_over_the_limit() -> None:
    driver = started(message_size_limit=1000)
    driver.receive(OPENING + b"DATA\r\n")
    for _ in range(15):
        driver.receive(b"x" * 98 + b"\r\n")
    assert said(driver, b".\r\nNOOP\r\n") == ["552 5.3.4", "250 2.0.0"]
    assert End(1500, replies.MESSAGE_TOO_BIG) in driver.events
    chunk = b"x" * 98 + b"\r\n"
    assert said(driver, MAIL + RCPT + (b"BDAT 100\r\n" + chunk) * 15 + b"BDAT 0 LAST\r\n")[2:] == ["250 2.0.0"] * 15 + [
        "552 5.3.4"
    ]


@pytest.mark.parametrize("chunking", [False, True])
def test_a_flood_is_cut_off(chunking: bool) -> None:
    driver = started(message_size_limit=1000)
    driver.receive(OPENING + (b"BDAT 1000000\r\n" if chunking else b"DATA\r\n"))
    driver.receive(b"x" * 2000)
    driver.receive(b"\r" if chunking else b"\r\n")  # held back: at twice the limit, not past it
    assert not driver.dialog.closed
    assert said(driver, b"xx") == ["552 5.3.4"]
    assert driver.dialog.closed
    assert driver.dialog.unread == 0


def test_a_session_that_cannot_take_the_rest() -> None:
    full = replies.SPOOL_FULL
    driver = started(message_size_limit=1000)
    driver.fail = full
    driver.receive(OPENING + b"DATA\r\n")
    for _ in range(5):
        driver.receive(b"x" * 98 + b"\r\n")
    assert said(driver, b".\r\nNOOP\r\n") == ["452 4.3.1", "250 2.0.0"]
    assert End(500, full) in driver.events
    assert said(driver, MAIL + RCPT + b"BDAT 4\r\nab\r\nBDAT 4 LAST\r\nab\r\n")[2:] == ["250 2.0.0", "452 4.3.1"]
    # what the content itself earned, and trying again would not help, stands above it
    assert said(driver, MAIL + RCPT + b"DATA\r\na\r\n")[-1] == "354 End"
    assert said(driver, b"b\nc\r\n.\r\n") == ["550 5.6.11"]
    driver.fail = replies.TOO_MANY_HOPS
    assert said(driver, MAIL + RCPT + b"DATA\r\na\r\n")[-1] == "354 End"
    assert said(driver, b"b\nc\r\n.\r\n") == ["554 5.4.0"]
    assert driver.messages == []
    driver.fail = None
    assert said(driver, MAIL + RCPT + b"DATA\r\na\r\n.\r\n")[-1] == "250 2.0.0"


def test_a_refused_start_of_content() -> None:
    driver = started()
    driver.refuse = {Begin: replies.SPOOL_FULL}
    assert said(driver, OPENING + b"DATA\r\nNOOP\r\n")[3:] == ["452 4.3.1", "250 2.0.0"]
    # each BDAT of a refused message gets the refusal, and its octets are gone
    assert said(driver, b"BDAT 6\r\nQUIT\r\nBDAT 6\r\nQUIT\r\nNOOP\r\nBDAT 6 LAST\r\nQUIT\r\nNOOP\r\n") == [
        "452 4.3.1", "452 4.3.1", "250 2.0.0", "452 4.3.1", "250 2.0.0",
    ]  # fmt: skip
    assert not driver.dialog.in_transaction
    assert said(driver, MAIL + RCPT + b"BDAT 6 LAST\r\nQUIT\r\nNOOP\r\n")[2:] == ["452 4.3.1", "250 2.0.0"]
    assert not driver.dialog.in_transaction
    assert sum(isinstance(event, Begin) for event in driver.events) == 3


def test_a_huge_chunk_that_nobody_wants_is_not_waited_for() -> None:
    driver = started(message_size_limit=1000)
    assert said(driver, b"BDAT 2000\r\n") == ["503 5.5.1"]
    driver.receive(b"x" * 2000)
    assert said(driver, b"BDAT 2001\r\n") == ["503 5.5.1"]
    assert driver.dialog.closed


@pytest.mark.parametrize("argument", ["", "x", "-1", "1 FIRST", "1 LAST x", "1LAST", "123456789012345678901", "٣"])
def test_a_chunk_that_cannot_be_counted_closes(argument: str) -> None:
    driver = started()
    assert said(driver, OPENING + f"BDAT {argument}\r\n".encode())[3:] == ["501 5.5.4"]
    assert driver.dialog.closed


# Counting


def test_errors_are_counted_when_they_are_answered() -> None:
    driver = started()
    dialog = driver.dialog
    driver.receive(b"FOO\r\nRCPT TO:<a@b.c>\r\nNOOP\r\n")
    assert dialog.errors == 2
    driver.refuse = {Mail: Reply(450, "4.7.1", "later")}
    driver.receive(MAIL)
    assert dialog.errors == 3
    dialog.receive_data(b"FOO\r\n")
    assert dialog.next_event() is not None
    assert dialog.error_number(replies.NOT_RECOGNIZED) == 4
    assert dialog.error_number(replies.OK) == 0
    assert dialog.errors == 3
    dialog.answer(replies.NOT_RECOGNIZED)
    assert dialog.errors == 4


def test_recipients_over_the_limit_are_no_errors_for_a_while() -> None:
    driver = started(smtpd_recipient_limit=1000, smtpd_hard_error_limit=20)
    driver.receive(HELO + MAIL + RCPT * 1000)
    assert driver.dialog.recipients == 1000
    assert said(driver, RCPT * RECIPIENT_OVERSHOOT) == ["452 4.5.3"] * RECIPIENT_OVERSHOOT
    assert driver.dialog.errors == 0
    assert said(driver, RCPT + b"RSET\r\n" + MAIL + RCPT * 1001)[-1] == "452 4.5.3"
    assert driver.dialog.errors == 1
    assert said(driver, RCPT * RECIPIENT_OVERSHOOT) == ["452 4.5.3"] * RECIPIENT_OVERSHOOT
    assert said(driver, RCPT * 20) == ["452 4.5.3"] * 17 + ["421 4.7.0"]


def test_junk_counts_as_errors_in_the_end_and_mail_makes_up_for_it() -> None:
    driver = started(smtpd_junk_command_limit=5, smtpd_hard_error_limit=3)
    message = MAIL + RCPT + b"DATA\r\n.\r\n"
    driver.receive(HELO)
    for _ in range(4):
        assert said(driver, b"NOOP\r\nRSET\r\nVRFY a\r\nHELP\r\nNOOP\r\n" + message)[-1] == "250 2.0.0"
        assert driver.dialog.junk == 0
    assert driver.dialog.errors == 0
    assert said(driver, b"NOOP\r\n" * 9) == ["250 2.0.0"] * 7 + ["421 4.7.0"]
    assert driver.dialog.closed


# The driver's part


def test_greetings() -> None:
    for reply, closes in (
        (Reply(220, "", "x"), False),
        (Reply(421, "4.7.0", "x"), True),
        (Reply(554, "5.7.1", "x"), True),
    ):
        dialog = Dialog(Settings(myhostname=HOST))
        dialog.receive_data(b"NOOP\r\n")
        assert dialog.next_event() is None  # nothing is heard before the greeting
        dialog.greet(reply)
        assert dialog.data_to_send() == reply.encode()
        assert dialog.closed is closes
        assert (dialog.next_event() is None) is closes


@pytest.mark.parametrize("code", [221, 421])
def test_answers_that_close(code: int) -> None:
    dialog = started().dialog
    dialog.receive_data(b"NOOP\r\nNOOP\r\n")
    assert dialog.next_event() is not None
    dialog.answer(Reply(code, "", "x"))
    assert dialog.closed
    assert dialog.next_event() is None
    dialog.receive_data(b"NOOP\r\n")
    assert dialog.unread == 0


def test_the_end_of_input_closes_when_all_is_said() -> None:
    driver = started()
    assert said(driver, b"NOOP\r\nNOO") == ["250 2.0.0"]
    assert not driver.dialog.closed
    driver.receive(b"")
    assert driver.dialog.closed
    half = started()
    half.dialog.receive_data(OPENING + b"DATA\r\na\r\n.\r\n")
    half.dialog.receive_data(b"")  # half-closed behind the dot: the answer is still owed
    assert b"queued as" in half.receive(b"")
    assert half.dialog.closed
    cut = started()
    cut.receive(OPENING + b"DATA\r\na\r\n")
    cut.receive(b"")
    assert cut.dialog.closed
    assert not any(isinstance(event, End) for event in cut.events)


def test_events_are_answered_one_by_one() -> None:
    dialog = started().dialog
    with pytest.raises(RuntimeError):
        dialog.answer(replies.OK)
    dialog.receive_data(b"NOOP\r\n")
    assert dialog.next_event() is not None
    with pytest.raises(RuntimeError):
        dialog.next_event()


def test_content_needs_no_answer() -> None:
    driver = started()
    driver.receive(OPENING + b"DATA\r\n")
    driver.dialog.receive_data(b"abc\r\n.\r\n")
    assert driver.dialog.next_event() == Content(b"abc\r\n")
    assert driver.dialog.next_event() == End(5, None)
    driver.dialog.answer(replies.queued("00000001"))
    assert driver.dialog.data_to_send() == b"250 2.0.0 Ok: queued as 00000001\r\n"
