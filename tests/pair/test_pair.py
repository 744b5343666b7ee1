"""Our client against our server over an imaginary wire: any split, any refusal, and both stay in step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemail.envelope import Address, Body, Envelope, Notify, Recipient, Ret, Target
from edgemail.relay.wire import replies
from edgemail.relay.wire.answers import MalformedReply
from edgemail.relay.wire.client import Client, Phase
from edgemail.relay.wire.dialog import Dialog
from edgemail.relay.wire.events import Bad, Begin, Command, Content, End, Hello, Mail, Noop, Quit, Rcpt, Reset, StartTls
from edgemail.relay.wire.transaction import Burden, Transaction
from edgemail.reply import Reply
from edgemail.settings import Settings

SENDER = Address("a", "example.com")
EVERYTHING = ()
WITHOUT_CHUNKING = ("CHUNKING",)
IN_STEP = ("CHUNKING", "PIPELINING")
IN_STEP_CHUNKS = ("PIPELINING",)
OFFERS = [EVERYTHING, WITHOUT_CHUNKING, IN_STEP, IN_STEP_CHUNKS]


@dataclass
class Taken:
    """One message as the server's side got it."""

    mail: Mail
    rcpts: list[Rcpt]
    content: bytes = b""


@dataclass
class Server:
    """A session without a socket. `refuse` may answer an event with something else than its default."""

    dialog: Dialog
    refuse: Callable[[Command | End], Reply | None] = lambda event: None
    taken: list[Taken] = field(default_factory=list)
    bad: list[Reply] = field(default_factory=list)
    pending: Taken | None = None

    def run(self) -> None:
        """Answer all that can be answered."""
        while (event := self.dialog.next_event()) is not None:
            if isinstance(event, Content):
                assert self.pending is not None
                self.pending.content += event.data
                continue
            self.dialog.answer(self.refuse(event) or self.default(event))

    def default(self, event: Command | End) -> Reply:
        reply = replies.OK
        match event:
            case Hello():
                reply = self.dialog.ehlo_reply()
            case Mail():
                self.pending = Taken(event, [])
            case Rcpt():
                assert self.pending is not None
                self.pending.rcpts.append(event)
            case Begin():
                reply = replies.GO_AHEAD
            case End():
                assert self.pending is not None
                if event.fault is None:
                    self.taken.append(self.pending)
                reply = event.fault or replies.OK
            case StartTls():
                reply = replies.READY_FOR_TLS
            case Quit():
                reply = replies.BYE
            case Bad() | Noop():
                reply = event.reply
            case Reset():
                self.pending = None
        if isinstance(event, Bad):
            self.bad.append(event.reply)
        return reply


class Pair:
    """Both halves and the wire between them; `cuts` says after how many octets each way is interrupted."""

    def __init__(self, without: Sequence[str] = (), *, cuts: Iterator[int] | None = None, **settings: object) -> None:
        made = Settings(myhostname="mx.example", smtpd_discard_ehlo_keywords=tuple(without), **settings)  # type: ignore[arg-type]
        self.server = Server(Dialog(made))
        self.server.dialog.greet(Reply(220, "", "mx.example ESMTP"))
        self.client = Client("gw.example")
        self.cuts = cuts
        self.exchange()
        self.client.hello()
        self.exchange()
        assert self.client.awaiting is None

    def pieces(self, octets: bytes) -> Iterator[bytes]:
        while octets:
            size = next(self.cuts, len(octets)) if self.cuts is not None else len(octets)
            yield octets[:size]
            octets = octets[size:]

    def exchange(self) -> None:
        """Let octets pass to and fro until both are silent."""
        while True:
            self.server.run()
            down = self.server.dialog.data_to_send()
            for piece in self.pieces(down):
                self.client.receive_data(piece)
                while self.client.next_answer() is not None:
                    pass
            up = self.client.data_to_send()
            for piece in self.pieces(up):
                self.server.dialog.receive_data(piece)
                self.server.run()
            if not up and not down:
                return

    def send(self, transaction: Transaction, content: Sequence[bytes]) -> None:
        """Drive a transaction to its end, in the order in which a session does."""
        pieces = list(content)
        while not transaction.done:
            if not transaction.wants_content:
                assert self.client.awaiting is not None
                self.exchange()
            elif pieces:
                transaction.write(pieces.pop(0))
                if self.client.pending > 1000:
                    self.exchange()
            else:
                transaction.finish()
        self.exchange()


def targets(*recipients: Recipient) -> tuple[Target, ...]:
    return tuple(Target(place, each, each.address) for place, each in enumerate(recipients))


def plain(*names: str) -> tuple[Target, ...]:
    return targets(*(Recipient(Address(name, "x.example")) for name in names))


SPLITS = st.lists(st.integers(1, 40), max_size=200)
LINES = st.lists(
    st.sampled_from(
        [b"\r\n", b".\r\n", b"..\r\n", b"x\r\n", b"QUIT\r\n", b"\xc3\xa4\r\n", b"BDAT 3 LAST\r\n", b"y" * 999 + b"\r\n"]
    ),
    max_size=30,
)


@pytest.mark.parametrize("without", OFFERS)
@given(splits=SPLITS, lines=LINES, cut=st.integers(1, 50), again=st.integers(1, 3))
def test_what_is_sent_is_what_is_taken(
    without: Sequence[str], splits: list[int], lines: list[bytes], cut: int, again: int
) -> None:
    content = b"Subject: x\r\n\r\n" + b"".join(lines)
    pieces = [content[at : at + cut] for at in range(0, len(content), cut)]
    pair = Pair(without, cuts=iter(splits))
    for _ in range(again):
        envelope = Envelope(1, SENDER, (), size=len(content), eight_bit=not content.isascii())
        burden = Burden(len(content), eight_bit=not content.isascii())
        made = Transaction(pair.client, SENDER, plain("b", "c"), envelope, burden)
        pair.send(made, pieces)
        assert [str(each.reply) for each in made.results if each] == ["250 2.0.0 Ok"] * 2
    assert [each.content for each in pair.server.taken] == [content] * again
    assert not pair.server.bad
    for each in pair.server.taken:
        assert each.mail.size == len(content)
        assert each.mail.body is (Body.SEVEN_BIT if content.isascii() else Body.EIGHT_BIT)


@pytest.mark.parametrize("without", OFFERS)
@given(data=st.data(), splits=SPLITS)
def test_whatever_is_refused_both_stay_in_step(without: Sequence[str], data: st.DataObject, splits: list[int]) -> None:
    """Random refusals of any command of a first message; a second one then passes over the same connection."""
    refusals = {
        kind: data.draw(st.sampled_from([None, Reply(451, "4.3.0", "later"), Reply(550, "5.7.1", "no")]), label=kind)
        for kind in ("Mail", "Begin", "End")
    }
    names = data.draw(st.lists(st.sampled_from(["good", "bad", "slow"]), min_size=1, max_size=4))
    big = data.draw(st.booleans())

    def refuse(event: Command | End) -> Reply | None:
        if isinstance(event, Rcpt):
            said = {"bad": Reply(550, "5.1.1", "who"), "slow": Reply(450, "4.2.0", "grey")}
            return said.get(event.recipient.local.rstrip("0123456789"))
        return refusals.get(type(event).__name__)

    pair = Pair(without, cuts=iter(splits))
    pair.server.refuse = refuse
    content = [b"Subject: x\r\n\r\n", *([b"0123456789\r\n" * 3000] * (9 if big else 0))]
    size = sum(map(len, content))
    recipients = plain(*(f"{name}{place}" for place, name in enumerate(names)))
    made = Transaction(pair.client, SENDER, recipients, Envelope(1, SENDER, ()), Burden(size))
    pair.send(made, content)
    overall = refusals["Mail"] or None
    for name, result in zip(names, made.results, strict=True):
        assert result is not None
        expected = overall or {"bad": Reply(550, "5.1.1", "who"), "slow": Reply(450, "4.2.0", "grey")}.get(name)
        expected = expected or refusals["Begin"] or refusals["End"] or replies.OK
        assert result.reply == expected
        assert result.remote
    assert pair.client.awaiting is None
    assert not pair.client.closing

    pair.server.refuse = lambda event: None
    pair.server.taken.clear()
    made = Transaction(pair.client, SENDER, plain("d"), Envelope(1, SENDER, ()), Burden(3))
    pair.send(made, [b"x\r\n"])
    assert [str(each.reply) for each in made.results if each] == ["250 2.0.0 Ok"]
    assert [each.content for each in pair.server.taken] == [b"x\r\n"]
    assert [each.recipient.local for each in pair.server.taken[0].rcpts] == ["d"]


DSN_RECIPIENTS = st.builds(
    Recipient,
    st.sampled_from([Address("b", "x.example"), Address('"b c"', "x.example"), Address("ä", "ö.example")]),
    st.sampled_from([None, Notify.NEVER, Notify.SUCCESS, Notify.FAILURE | Notify.DELAY]),
    st.sampled_from(["", "rfc822;Bob+2BSmith@x.example"]),
)


@given(
    recipients=st.lists(DSN_RECIPIENTS, min_size=1, max_size=5),
    ret=st.sampled_from([None, *Ret]),
    envid=st.sampled_from(["", "Qq+2B31"]),
    splits=SPLITS,
)
def test_every_parameter_arrives(recipients: list[Recipient], ret: Ret | None, envid: str, splits: list[int]) -> None:
    pair = Pair(cuts=iter(splits))
    envelope = Envelope(1, SENDER, (), ret=ret, envid=envid)
    made = Transaction(pair.client, SENDER, targets(*recipients), envelope, Burden(3))
    pair.send(made, [b"x\r\n"])
    (taken,) = pair.server.taken
    assert (taken.mail.sender, taken.mail.ret, taken.mail.envid) == (SENDER, ret, envid)
    assert taken.mail.smtputf8 == any(not str(each.address).isascii() for each in recipients)
    assert [(each.recipient, each.notify, each.orcpt) for each in taken.rcpts] == [
        (each.address, each.notify, each.orcpt) for each in recipients
    ]


@given(up_to=st.integers(0, 400), down_to=st.integers(0, 250), without=st.sampled_from(OFFERS))
def test_a_wire_cut_anywhere_leaves_nobody_without_a_result(up_to: int, down_to: int, without: Sequence[str]) -> None:
    """The wire breaks after so many octets in either direction, and the client hears that it is gone."""
    content = b"Subject: x\r\n\r\n" + b"line\r\n" * 20
    pair = Pair(without)
    made = Transaction(pair.client, SENDER, plain("b", "c"), Envelope(1, SENDER, ()), Burden(len(content)))
    pieces = [content]
    while not made.done:
        while made.wants_content:
            if pieces:
                made.write(pieces.pop(0))
            else:
                made.finish()
        up = pair.client.data_to_send()
        pair.server.dialog.receive_data(up[:up_to] or b"")
        pair.server.run()
        down = pair.server.dialog.data_to_send()
        pair.client.receive_data(down[:down_to])
        while pair.client.next_answer() is not None:
            pass
        if (len(up) > up_to or len(down) > down_to) and not made.done:
            made.lost(Reply(421, "4.4.2", "lost"))
            break
        up_to, down_to = up_to - len(up), down_to - len(down)
    results = [each for each in made.results if each is not None]
    assert len(results) == 2
    if any(each.reply.positive for each in results):
        assert [each.content for each in pair.server.taken] == [content]  # a success is never invented
    for each in results:
        # What may have been taken is said to be in doubt, so that no other server gets it at once.
        assert each.reply.positive or not pair.server.taken or each.phase is Phase.END


@given(garbage=st.binary(min_size=1, max_size=80), at=st.integers(0, 6))
def test_garbage_from_the_server_is_never_taken_for_success(garbage: bytes, at: int) -> None:
    pair = Pair(IN_STEP)
    made = Transaction(pair.client, SENDER, plain("b"), Envelope(1, SENDER, ()), Burden(3))
    try:
        for step in range(20):
            while made.wants_content:
                made.finish()
            if made.done:
                break
            pair.server.dialog.receive_data(pair.client.data_to_send())
            pair.server.run()
            said = pair.server.dialog.data_to_send()
            pair.client.receive_data(garbage if step == at else said)
            while pair.client.next_answer() is not None:
                pass
            if step == at:
                break
    except MalformedReply:
        pass
    made.lost(Reply(421, "4.4.2", "lost"))
    for each in made.results:
        assert each is not None
        assert not each.reply.positive or pair.server.taken or garbage[:1] == b"2"


def test_starttls_forgets_on_both_sides() -> None:
    pair = Pair(smtpd_tls_security_level="may", message_size_limit=1000)
    assert pair.client.abilities.offers("STARTTLS")
    pair.client.starttls()
    pair.exchange()
    assert pair.server.dialog.unread == 0
    pair.client.tls_started()
    pair.server.dialog.tls_started()
    assert pair.client.abilities.keywords == {}
    pair.client.hello()
    pair.exchange()
    assert pair.client.abilities.size_limit == 1000
    assert not pair.client.abilities.offers("STARTTLS")


def test_quit() -> None:
    pair = Pair()
    pair.client.quit()
    pair.exchange()
    assert pair.server.dialog.closed
    assert pair.client.awaiting is None
