"""The client's half without IO: replies, abilities, the order of commands, logins, the pool."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemail.envelope import Address, Envelope, Notify, Recipient, Ret, Target
from edgemail.relay.send.pool import IDLE_CONNECTIONS, IDLE_FOR_ONE, Key, Pool, idle_until
from edgemail.relay.wire import sasl
from edgemail.relay.wire.answers import REPLY_LINE_LIMIT, MalformedReply, ReplyReader
from edgemail.relay.wire.client import Abilities, Client, Phase, abilities
from edgemail.relay.wire.transaction import (
    BDAT_SIZE,
    Burden,
    Transaction,
    mail_command,
    obstacle,
    rcpt_command,
    recipient_obstacle,
    speakable,
)
from edgemail.reply import Reply

# -- replies ----------------------------------------------------------------------------------------------------------

REPLIES: list[tuple[bytes, Reply]] = [
    (b"250 ok\r\n", Reply(250, "", "ok")),
    (b"250\r\n", Reply(250, "", "")),
    (b"250 \r\n", Reply(250, "", "")),
    (b"250 ok\n", Reply(250, "", "ok")),
    (b"250 2.1.0 ok\r\n", Reply(250, "2.1.0", "ok")),
    (b"250 2.1.0\r\n", Reply(250, "2.1.0", "")),
    (b"250 5.1.0 odd\r\n", Reply(250, "", "5.1.0 odd")),  # the class does not fit: text
    (b"550 5.1.1234 x\r\n", Reply(550, "", "5.1.1234 x")),
    (b"354 2.0.0 x\r\n", Reply(354, "", "2.0.0 x")),
    (b"550-5.1.1 one\r\n550 5.1.1 two\r\n", Reply(550, "5.1.1", "one\ntwo")),
    (b"550-5.1.1 one\r\n550 two\r\n", Reply(550, "5.1.1", "one\ntwo")),
    (b"250-a\r\n250-\r\n250 c\r\n", Reply(250, "", "a\n\nc")),
    (b"250-a\r\n250\r\n", Reply(250, "", "a\n")),
    (b"550 a\x00b\x1b[31m\x7f\xc2\x85\xe2\x80\xa8\r\n", Reply(550, "", "a?b?[31m???")),
    (b"550 gr\xc3\xbc\xc3\x9fe\r\n", Reply(550, "", "grüße")),
    (b"550 gr\xfc\r\n", Reply(550, "", "gr\N{REPLACEMENT CHARACTER}")),
    (b"550 a\rb\r\n", Reply(550, "", "a?b")),
    (b"250 " + b"x" * 2000 + b"\r\n", Reply(250, "", "x" * 2000)),
]


def read(pieces: Iterable[bytes]) -> list[Reply]:
    reader, found = ReplyReader(), []
    for piece in pieces:
        reader.feed(piece)
        while (reply := reader.next_reply()) is not None:
            found.append(reply)
    return found


@pytest.mark.parametrize(("octets", "reply"), REPLIES)
def test_replies_whole_octet_by_octet_and_with_more_behind(octets: bytes, reply: Reply) -> None:
    assert read([octets]) == [reply]
    assert read(octets[at : at + 1] for at in range(len(octets))) == [reply]
    assert read([octets + b"221 bye\r\n25"]) == [reply, Reply(221, "", "bye")]


MALFORMED = [
    b"hello\r\n",
    b"\r\n",
    b"25 x\r\n",
    b"2500 x\r\n",
    b"150 x\r\n",
    b"650 x\r\n",
    b"250+x\r\n",
    b"250x\r\n",
    b" 250 x\r\n",
    b"250-a\r\n251 b\r\n",
    b"250-a\r\nb\r\n",
    "２50 x\r\n".encode(),
    b"250 " + b"x" * REPLY_LINE_LIMIT + b"\r\n",
    b"x" * REPLY_LINE_LIMIT,
    b"250-x\r\n" * 101,
    (b"250-" + b"x" * 1000 + b"\r\n") * 40,
]


@pytest.mark.parametrize("octets", MALFORMED, ids=range(len(MALFORMED)))
def test_what_is_no_reply_is_refused_and_nothing_is_kept(octets: bytes) -> None:
    for pieces in ([octets], [octets[at : at + 1] for at in range(len(octets))]):
        reader = ReplyReader()

        def feed(reader: ReplyReader = reader, pieces: Sequence[bytes] = pieces) -> None:
            for piece in pieces:
                reader.feed(piece)
                while reader.next_reply() is not None:
                    pass

        with pytest.raises(MalformedReply):
            feed()
        assert reader.unread == 0


@given(st.lists(st.binary(max_size=60), max_size=20))
def test_no_octets_make_the_reader_stumble(pieces: list[bytes]) -> None:
    try:
        for reply in read(pieces):
            assert 200 <= reply.code <= 599
            assert all(c.isprintable() for c in reply.text.replace("\n", ""))
    except MalformedReply:
        pass


# -- abilities --------------------------------------------------------------------------------------------------------


def able(*keywords: str) -> Abilities:
    return abilities(Reply(250, "", "\n".join(("mx.example hello", *keywords))))


def test_abilities() -> None:
    found = able("PIPELINING", "size 1000 2", "AUTH=LOGIN plain", "AUTH PLAIN XOAUTH2", "8BITMIME ", "", "-X", "x y z")
    assert found.name == "mx.example"
    assert found.size_limit == 1000
    assert found.mechanisms == ("LOGIN", "PLAIN", "XOAUTH2")
    assert found.offers("8BITMIME")
    assert found.keywords["X"] == ("y", "z")
    assert not found.offers("-X")
    assert not found.offers("")
    assert able().keywords == {}
    assert [able(f"SIZE {size}").size_limit for size in ("x", "-1", "١", "9" * 30)] == [0, 0, 0, 0]
    assert not abilities(Reply(250, "", "x\nPIPELINING\nDSN"), frozenset({"DSN"})).offers("DSN")


def test_what_was_known_is_forgotten_with_each_hello_and_with_tls() -> None:
    client = connected("SIZE 10", "STARTTLS")
    client.starttls()
    client.data_to_send()
    client.receive_data(b"220 go\r\n")
    client.next_answer()
    client.tls_started()
    assert client.abilities == Abilities()
    client = connected("SIZE 10")
    client.hello(extended=False)
    assert client.abilities == Abilities()


def test_octets_behind_the_reply_to_starttls() -> None:
    for behind in (b"2", b"250 x\r\n", b"\r\n"):
        client = connected("STARTTLS")
        client.starttls()
        client.data_to_send()
        client.receive_data(b"220 go\r\n" + behind)
        client.next_answer()
        with pytest.raises(MalformedReply):
            client.tls_started()


# -- the client -------------------------------------------------------------------------------------------------------


def connected(*keywords: str) -> Client:
    """A client behind greeting and EHLO."""
    client = Client("gw.example")
    assert client.awaiting is Phase.GREETING
    client.receive_data(b"220 mx.example\r\n")
    assert client.next_answer() is not None
    client.hello()
    assert client.data_to_send() == b"EHLO gw.example\r\n"
    lines = ["mx.example", *keywords]
    said = "".join(f"250{' ' if place == len(lines) - 1 else '-'}{line}\r\n" for place, line in enumerate(lines))
    client.receive_data(said.encode())
    assert client.next_answer() is not None
    assert client.awaiting is None
    return client


@pytest.mark.parametrize("line", ["a\r\nb", "a\nb", "a\rb", "a\0b", "a\x1bb", "a\x7fb"])
def test_no_argument_can_hold_a_second_command(line: str) -> None:
    client = connected()
    with pytest.raises(ValueError, match="control character"):
        client.say(f"MAIL FROM:<{line}>", Phase.MAIL)
    with pytest.raises(ValueError, match="control character"):
        Client(f"gw{line}").hello()
    assert client.data_to_send() == b""


def test_a_reply_to_nothing() -> None:
    client = connected()
    client.receive_data(b"250 surprise\r\n")
    with pytest.raises(MalformedReply, match="to nothing"):
        client.next_answer()
    client = connected()
    client.receive_data(b"421 4.3.2 going down\r\n")
    answer = client.next_answer()
    assert answer is not None
    assert answer.phase is Phase.IDLE
    assert client.closing


def test_a_reply_before_its_command() -> None:
    client = Client("gw.example")
    client.receive_data(b"220 mx.example\r\n250 mx.example\r\n")
    assert client.next_answer() is not None
    client.hello()
    with pytest.raises(MalformedReply, match="before the EHLO command"):
        client.next_answer()
    client = connected(*PIPELINED)
    made = transaction(client)
    client.data_to_send()
    client.receive_data(b"250 ok\r\n250 ok\r\n354 go\r\n250 taken unseen\r\n")
    for _ in range(3):
        client.next_answer()
    made.write(b"x\r\n")
    made.finish()
    with pytest.raises(MalformedReply, match="before the end of DATA command"):
        client.next_answer()
    made.lost(Reply(421, "4.4.2", "gone"))
    assert [each.reply.code for each in made.results if each] == [421]


def test_a_refusal_that_comes_before_the_content_is_out_is_one() -> None:
    client = connected(*PIPELINED)
    made = transaction(client)
    client.data_to_send()
    client.receive_data(b"250 ok\r\n250 ok\r\n354 go\r\n")
    for _ in range(3):
        client.next_answer()
    made.write(b"x\r\n")
    made.finish()
    client.receive_data(b"552 5.3.4 too big\r\n")
    client.next_answer()
    assert [each.reply.code for each in made.results if each] == [552]


# -- transactions -----------------------------------------------------------------------------------------------------

SENDER = Address("a", "example.com")
GOOD = {"MAIL": "250 ok", "RCPT": "250 ok", "DATA": "354 go", ".": "250 done", "BDAT": "250 chunk", "RSET": "250 ok"}


def targets(*names: str) -> tuple[Target, ...]:
    return tuple(
        Target(place, Recipient(Address(name, "x.example")), Address(name, "x.example"))
        for place, name in enumerate(names)
    )


def transaction(client: Client, *names: str, size: int = 100, **more: Any) -> Transaction:
    envelope = Envelope(1, SENDER, (), **more)
    return Transaction(client, SENDER, targets(*(names or ("b",))), envelope, Burden(size))


def play(client: Client, made: Transaction, answer: Callable[[str], str], content: Sequence[bytes]) -> list[list[str]]:
    """Drive a transaction against `answer`; the commands that went out, one list for each time that was waited."""
    pieces = list(content)
    rounds: list[list[str]] = []
    for _ in range(100):
        while made.wants_content:
            if pieces:
                made.write(pieces.pop(0))
            else:
                made.finish()
        if made.done:
            break
        said = commands(client.data_to_send())
        assert said, "nothing was said, and still something is awaited"
        rounds.append([line.split(" ")[0] for line in said])
        client.receive_data("".join(f"{answer(line)}\r\n" for line in said).encode())
        while client.next_answer() is not None:
            pass
    assert None not in made.results
    return rounds


def commands(octets: bytes) -> list[str]:
    """The command lines in what was written, the end of data as ".", content left out."""
    found = []
    while octets:
        line, end, octets = octets.partition(b"\r\n")
        assert end
        text = line.decode()
        if text.startswith("BDAT"):
            octets = octets[int(text.split(" ")[1]) :]
        elif text.split(" ")[0] not in {"MAIL", "RCPT", "DATA", "RSET", "."}:
            continue
        found.append(text)
    return found


def good(line: str) -> str:
    return GOOD[line.split(" ", 1)[0]]


PIPELINED = ("PIPELINING",)
CHUNKED = ("PIPELINING", "CHUNKING")


@pytest.mark.parametrize(
    ("keywords", "size", "rounds"),
    [
        ((), 100, [["MAIL"], ["RCPT"], ["RCPT"], ["DATA"], ["."]]),
        (PIPELINED, 100, [["MAIL", "RCPT", "RCPT", "DATA"], ["."]]),
        (CHUNKED, 100, [["MAIL", "RCPT", "RCPT", "BDAT"]]),
        (CHUNKED, BDAT_SIZE + 1, [["MAIL", "RCPT", "RCPT"], ["BDAT"]]),
        (("CHUNKING",), 100, [["MAIL"], ["RCPT"], ["RCPT"], ["BDAT"]]),
    ],
)
def test_the_order_of_commands(keywords: Sequence[str], size: int, rounds: list[list[str]]) -> None:
    client = connected(*keywords)
    made = transaction(client, "b", "c", size=size)
    assert play(client, made, good, [b"Subject: x\r\n\r\n"]) == rounds
    assert [each.reply.code for each in made.results if each] == [250, 250]
    assert not client.in_transaction


@pytest.mark.parametrize("keywords", [(), PIPELINED, CHUNKED, ("CHUNKING",)])
def test_a_refused_sender_ends_it_and_the_next_begins_with_rset_if_need_be(keywords: Sequence[str]) -> None:
    client = connected(*keywords)
    made = transaction(client, "b", "c")

    def answer(line: str) -> str:
        return "550 5.7.1 no" if line.startswith("MAIL") else "503 5.5.1 need MAIL"

    play(client, made, answer, [b"x\r\n"])
    assert [(each.reply.code, each.phase) for each in made.results if each] == [(550, Phase.MAIL)] * 2
    assert not client.in_transaction
    made = transaction(client, "b")
    play(client, made, lambda line: "550 5.1.1 no" if line.startswith(("RCPT", "DATA", "BDAT")) else "250 ok", [b"x"])
    assert client.in_transaction
    rounds = play(client, transaction(client, "b"), good, [b"x\r\n"])
    assert rounds[0][0] == "RSET"


def test_bdat_goes_out_in_bounded_chunks_and_the_last_is_called_last() -> None:
    client = connected(*CHUNKED)
    made = transaction(client, size=1_000_000)
    said: list[str] = []

    def answer(line: str) -> str:
        said.append(line)
        return good(line)

    play(client, made, answer, [b"x" * 30_000] * 10 + [b"\r\n"])
    chunks = [line.split(" ")[1:] for line in said if line.startswith("BDAT")]
    assert sum(int(words[0]) for words in chunks) == 300_002
    assert all(int(words[0]) <= BDAT_SIZE for words in chunks)
    assert [len(words) for words in chunks] == [1] * (len(chunks) - 1) + [2]


@pytest.mark.parametrize("keywords", [(), PIPELINED, CHUNKED])
@given(data=st.data())
def test_content_arrives_with_crlf_only_however_it_is_cut(keywords: Sequence[str], data: st.DataObject) -> None:
    content = data.draw(
        st.lists(st.sampled_from([b"\r\n", b"\n", b"\r", b".", b"..", b"x", b"\r\n.\r\n"]), max_size=12)
    )
    client = connected(*keywords)
    made = transaction(client)
    sent = b""
    pieces = list(content)
    while not made.done:
        while made.wants_content:
            if pieces:
                made.write(pieces.pop(0))
            else:
                made.finish()
        octets = client.data_to_send()
        sent += octets
        awaited = client.awaiting
        client.receive_data(b"354 go\r\n" if awaited is Phase.DATA else b"250 ok\r\n")
        client.next_answer()
    assert sent.replace(b"\r\n", b"").count(b"\r") == sent.replace(b"\r\n", b"").count(b"\n") == 0
    body = sent.partition(b"BDAT ")[2].partition(b"\r\n")[2] if keywords is CHUNKED else sent.partition(b"DATA\r\n")[2]
    assert body == b"" or body.endswith(b"\r\n")
    if keywords is not CHUNKED:
        assert body == b".\r\n" or body.endswith(b"\r\n.\r\n")
        assert b"\r\n.\r\n" not in (b"\r\n" + body)[:-3]


def test_out_of_place_replies() -> None:
    for verb, reply in (("MAIL", "354 go"), ("RCPT", "354 go"), ("DATA", "250 ok"), (".", "354 go")):
        client = connected(*PIPELINED)
        made = transaction(client)

        def answer(line: str, verb: str = verb, reply: str = reply) -> str:
            return reply if line.startswith(verb) else good(line)

        with pytest.raises(MalformedReply):
            play(client, made, answer, [b"x\r\n"])


def test_421_ends_the_transaction_where_it_stands() -> None:
    client = connected(*PIPELINED)
    made = transaction(client, "b", "c", "d")
    client.data_to_send()
    client.receive_data(b"250 ok\r\n250 ok\r\n421 4.3.2 bye\r\n")
    while client.next_answer() is not None:
        pass
    assert made.done
    assert client.closing
    assert [each.reply.code for each in made.results if each] == [421, 421, 421]


def test_lost_says_where() -> None:
    client = connected(*PIPELINED)
    made = transaction(client)
    made.lost(Reply(421, "4.4.2", "gone"))
    assert [(each.phase, each.remote) for each in made.results if each] == [(Phase.MAIL, False)]
    assert made.results[0] is not None
    assert not made.heard
    client = connected(*CHUNKED)
    made = transaction(client)
    made.finish()
    made.lost(Reply(421, "4.4.2", "gone"))
    assert [each.phase for each in made.results if each] == [Phase.END]


# -- parameters -------------------------------------------------------------------------------------------------------


def test_parameters_only_where_offered() -> None:
    envelope = Envelope(1, SENDER, (), ret=Ret.FULL, envid="x+2By")
    full = able("SIZE", "8BITMIME", "SMTPUTF8", "DSN")
    heavy = Burden(10, eight_bit=True, utf8=True)
    assert mail_command(full, SENDER, envelope, heavy, True) == (
        "MAIL FROM:<a@example.com> SIZE=10 BODY=8BITMIME SMTPUTF8 RET=FULL ENVID=x+2By"
    )
    assert mail_command(able(), SENDER, envelope, heavy, True) == "MAIL FROM:<a@example.com>"
    assert mail_command(full, SENDER, envelope, Burden(10), False).startswith("MAIL FROM:<a@example.com> SIZE=10 RET")
    spoilt = Envelope(1, SENDER, (), envid="x y=z")
    assert "ENVID" not in mail_command(full, SENDER, spoilt, Burden(1), False)


@pytest.mark.parametrize(
    ("notify", "orcpt", "expected"),
    [
        (None, "", ""),
        (Notify.NEVER, "", " NOTIFY=NEVER"),
        (Notify.FAILURE, "", " NOTIFY=FAILURE"),
        (Notify.SUCCESS | Notify.FAILURE | Notify.DELAY, "", " NOTIFY=SUCCESS,FAILURE,DELAY"),
        (None, "rfc822;Bob+2B@x", " ORCPT=rfc822;Bob+2B@x"),
        (None, "utf-8;b\\x{C4}b@x", " ORCPT=utf-8;b\\x{C4}b@x"),
        (None, "rfc822;a b", ""),
        (None, "rfc822;a=b", ""),
        (None, "nonsense", ""),
    ],
)
def test_dsn_parameters_of_a_recipient(notify: Notify | None, orcpt: str, expected: str) -> None:
    address = Address("b", "x.example")
    target = Target(0, Recipient(address, notify, orcpt), address)
    assert rcpt_command(able("DSN"), target) == "RCPT TO:<b@x.example>" + expected
    assert rcpt_command(able(), target) == "RCPT TO:<b@x.example>"


@pytest.mark.parametrize(
    "text", ["a@b", '"a b"@c', '"a\\"b"@c', "a@[192.0.2.1]", "a@[IPv6:2001:db8::1]", "ä@ö.example", "a"]
)
def test_addresses_that_can_be_said(text: str) -> None:
    assert speakable(Address.of(text))


@pytest.mark.parametrize(
    "text", ["a b@c", "a>@c", "<a@c", "a@b c", "a@b>", 'a"@c', '"a@c', "a\\@c", "a\r\n@c", "a\0@c", "@c", "a@b\n"]
)
def test_addresses_that_cannot(text: str) -> None:
    assert not speakable(Address.of(text))
    assert recipient_obstacle(able(), Address.of(text), "mx") is not None


def test_obstacles() -> None:
    def status(found: Abilities, burden: Burden, sender: Address = SENDER) -> str:
        reply = obstacle(found, burden, sender, "mx.example[192.0.2.1]")
        return reply.status if reply else ""

    assert status(able("SIZE 99"), Burden(100)) == "5.3.4"
    assert status(able("SIZE 100"), Burden(100)) == ""
    assert status(able(), Burden(1, eight_bit=True)) == "5.6.3"
    assert status(able("8BITMIME"), Burden(1, eight_bit=True, utf8=True, utf8_header=True)) == "5.6.7"
    assert status(able("8BITMIME", "SMTPUTF8"), Burden(1, eight_bit=True, utf8=True, utf8_header=True)) == ""
    assert status(able(), Burden(1), Address("ä", "x")) == "5.6.7"
    assert status(able(), Burden(1), Address("")) == ""
    found = recipient_obstacle(able(), Address(""), "mx")
    assert found is not None
    assert found.status == "5.1.3"


# -- logging in -------------------------------------------------------------------------------------------------------


def test_mechanisms_in_the_servers_order_without_what_is_refused() -> None:
    offered = ("XOAUTH2", "LOGIN", "CRAM-MD5", "PLAIN", "LOGIN")
    assert sasl.usable(offered, ("noanonymous",)) == ("LOGIN", "CRAM-MD5", "PLAIN")
    assert sasl.usable(offered, ("noplaintext", "noanonymous")) == ("CRAM-MD5",)
    assert sasl.usable(offered, ("noactive",)) == ()
    assert sasl.usable((), ()) == ()
    with pytest.raises(ValueError, match="unknown security option"):
        sasl.usable(offered, ("noplain",))


def test_plain() -> None:
    exchange = sasl.mechanism("PLAIN", "kdent", "päss")
    assert exchange.initial == b"\0kdent\0p\xc3\xa4ss"
    assert exchange.respond(b"") == exchange.initial
    assert exchange.respond(b"what?") is None


def test_login() -> None:
    exchange = sasl.mechanism("LOGIN", "kdent", "secret")
    assert exchange.initial is None
    assert [exchange.respond(prompt) for prompt in (b"Username:", b"Password:", b"again?")] == [
        b"kdent",
        b"secret",
        None,
    ]


def test_cram_md5() -> None:
    exchange = sasl.mechanism("CRAM-MD5", "tim", "tanstaaftanstaaf")  # the example of RFC 2195 2
    challenge = base64.b64decode("PDE4OTYuNjk3MTcwOTUyQHBvc3RvZmZpY2UucmVzdG9uLm1jaS5uZXQ+")
    assert exchange.respond(challenge) == b"tim b913a602c7eda7a495b4e6e7334d3890"
    assert exchange.respond(challenge) is None
    assert sasl.mechanism("CRAM-MD5", "tim", "x").respond(b"") is None


def test_a_nul_cannot_stand_in_a_login() -> None:
    with pytest.raises(ValueError, match="NUL"):
        sasl.mechanism("PLAIN", "a\0b", "c")


@pytest.mark.parametrize(
    ("code", "name", "again"),
    [
        (504, "PLAIN", True),
        (534, "PLAIN", True),
        (535, "CRAM-MD5", True),
        (535, "PLAIN", False),
        (535, "LOGIN", False),
        (454, "CRAM-MD5", False),
        (530, "PLAIN", False),
    ],
)
def test_when_another_mechanism_is_tried(code: int, name: str, again: bool) -> None:
    assert sasl.another(code, name) is again


# -- the pool ---------------------------------------------------------------------------------------------------------

KEY = Key("smtp", "[mx.example]", "may", "")


def test_the_pool_returns_what_must_be_closed() -> None:
    pool: Pool[str] = Pool()
    assert pool.acquire(KEY, 0) is None
    assert pool.next_expiry() is None
    for name in ("a", "b"):
        pool.opened()
        assert pool.release(KEY, name, until=2, now=0) == ()
    assert repr(pool) == "<Pool 0 active, 2 idle>"
    assert pool.acquire(Key("smtp", "[mx.example]", "secure", ""), 0) is None
    assert pool.acquire(Key("smtp", "[mx.example]", "may", "kdent"), 0) is None
    assert pool.acquire(KEY, 1) == "b"  # the one used last is the least likely to be closed
    assert repr(pool) == "<Pool 1 active, 1 idle>"
    assert pool.acquire(KEY, 2) is None  # too old
    assert pool.next_expiry() == 2
    assert pool.expire(1.9) == ()
    assert pool.expire(2) == ("a",)
    assert pool.release(KEY, "b", until=3, now=3) == ("b",)
    assert repr(pool) == "<Pool 0 active, 0 idle>"


def test_the_pool_is_bounded() -> None:
    pool: Pool[int] = Pool()
    closed: list[int] = []
    for number in range(IDLE_FOR_ONE + 2):
        pool.opened()
        closed += pool.release(KEY, number, until=9, now=0)
    assert closed == [0, 1]
    for number in range(1000, 1000 + IDLE_CONNECTIONS):
        pool.opened()
        closed += pool.release(Key("smtp", str(number), "", ""), number, until=9, now=0)
    assert pool.idle == IDLE_CONNECTIONS
    assert closed == list(range(IDLE_FOR_ONE + 2))
    assert len(pool.clear()) == IDLE_CONNECTIONS
    assert repr(pool) == "<Pool 0 active, 0 idle>"


def test_how_long_a_connection_may_be_idle() -> None:
    def until(now: float, count: int = 1, *, reuse_count: int = 0, cache_time: float = 2) -> float:
        return idle_until(now, 100, count, cache_time=cache_time, reuse_time=50, reuse_count=reuse_count)

    assert until(110) == 112
    assert until(149) == 150
    assert until(150) == 150
    assert until(110, cache_time=0) == 110
    assert until(110, 5, reuse_count=5) == 110
    assert until(110, 4, reuse_count=5) == 112
