"""The two changes to a message on its way out, and that nothing else changes."""

from __future__ import annotations

import email.utils
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemail.envelope import NULL_SENDER, Address, Envelope
from edgemail.relay.send.rewrite import COMPLETE, _bare_addresses, bare_addresses, complete, fold, rewrite
from edgemail.settings import Settings

ORIGIN = b"@origin.test"


def out(message: bytes, *, size: int = 1 << 20, long_lines: bool = False, **settings: Any) -> bytes:
    """The message as it goes out, when it is stored in chunks of `size`."""
    given = Settings(**({"myhostname": "gw7.example.com", "myorigin": "origin.test"} | settings))
    envelope = Envelope(1, NULL_SENDER, (), long_lines=long_lines)
    chunks = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(rewrite(chunks, envelope, given))


# ---- addresses

LISTS = [
    # completed
    (b"kdent", b"kdent@"),
    (b"kdent, ann", b"kdent@, ann@"),
    (b" kdent ,\r\n\tann ", b" kdent@ ,\r\n\tann@ "),
    (b"<kdent>", b"<kdent@>"),
    (b"Kyle Dent <kdent>", b"Kyle Dent <kdent@>"),
    (b'"Dent, Kyle" <kdent>, ann@example.com', b'"Dent, Kyle" <kdent@>, ann@example.com'),
    (b"kdent (Kyle (the) Dent, \\) )", b"kdent@ (Kyle (the) Dent, \\) )"),
    (b"(first) kdent(last)", b"(first) kdent@(last)"),
    (b"< (x) kdent (y) >", b"< (x) kdent@ (y) >"),
    (b"=?utf-8?q?J=C3=BCrgen?= <juergen>", b"=?utf-8?q?J=C3=BCrgen?= <juergen@>"),
    ("Jürgen <juergen>".encode(), "Jürgen <juergen@>".encode()),
    (b'"john smith"', b'"john smith"@'),
    (b'<"john \\" smith">', b'<"john \\" smith"@>'),
    (b"Team: joe, ann@x.example, Bob <bob>;", b"Team: joe@, ann@x.example, Bob <bob@>;"),
    (b"Team: joe;, kim", b"Team: joe@;, kim@"),
    (b"joe.user+tag", b"joe.user+tag@"),
    (b"MAILER-DAEMON (Mail Delivery System)", b"MAILER-DAEMON@ (Mail Delivery System)"),
    (b",, kdent,", b",, kdent@,"),
    (b"kdent, <@a.example,@b.example:joe@c.example>", b"kdent@, <@a.example,@b.example:joe@c.example>"),
    (b"a@[192.0.2.1], kdent", b"a@[192.0.2.1], kdent@"),
    (b"kdent, ann @ example.com", b"kdent@, ann @ example.com"),
    # left as they are
    (b"", b""),
    (b"<>", b"<>"),
    (b"kdent@example.com", b"kdent@example.com"),
    (b"undisclosed-recipients:;", b"undisclosed-recipients:;"),
    (b"undisclosed-recipients: ;", b"undisclosed-recipients: ;"),
    (b"Kyle Dent", b"Kyle Dent"),
    (b"Kyle Dent, ann@example.com", b"Kyle Dent, ann@example.com"),
    (b"=?utf-8?q?J=C3=BCrgen?=", b"=?utf-8?q?J=C3=BCrgen?="),
    ("Jürgen".encode(), "Jürgen".encode()),
    (b"host!user", b"host!user"),
    (b"user%host", b"user%host"),
    (b"<@a.example:joe>", b"<@a.example:joe>"),
    (b"<two words>", b"<two words>"),
    (b"joe.", b"joe."),
    (b".joe", b".joe"),
    (b"joe..user", b"joe..user"),
    (b"(only a comment)", b"(only a comment)"),
    (b'""', b'""'),
    # what does not parse is left alone as a whole
    (b"ann, joe <kdent", b"ann, joe <kdent"),
    (b"ann, joe> x", b"ann, joe> x"),
    (b'ann, "joe', b'ann, "joe'),
    (b"ann, (joe", b"ann, (joe"),
    (b"ann) , joe", b"ann) , joe"),
    (b"ann, <joe> more", b"ann, <joe> more"),
    (b"ann, <joe> <kim>", b"ann, <joe> <kim>"),
    (b"ann; joe", b"ann; joe"),
    (b"ann, a: b: c;", b"ann, a: b: c;"),
    (b"ann, team: joe", b"ann, team: joe"),
    (b"ann, [joe", b"ann, [joe"),
    (b"ann\\, joe", b"ann\\, joe"),
    (b"ann, <joe, kim>", b"ann, <joe, kim>"),
    (b"kim, ann@example.com <joe>", b"kim, ann@example.com <joe>"),
]


@pytest.mark.parametrize("size", [1 << 20, 1])
@pytest.mark.parametrize(("written", "sent"), LISTS)
def test_address_list(written: bytes, sent: bytes, size: int) -> None:
    expected = _completed(written, sent)
    message = b"Subject: s\r\nTo:%b\r\nX: kdent\r\n\r\nTo: kdent\r\n"
    assert out(message % written, size=size) == message % expected


def _completed(written: bytes, sent: bytes) -> bytes:
    """`sent` with the origin put where it has an "@" that `written` has not."""
    result, at = bytearray(), 0
    for octet in sent:
        if at < len(written) and written[at] == octet:
            at += 1
            result.append(octet)
        else:
            assert octet == ord("@")
            result += ORIGIN
    assert at == len(written)
    return bytes(result)


@pytest.mark.parametrize("name", [b"From", b"TO", b"cc", b"Cc "])
def test_completed_fields(name: bytes) -> None:
    message = name + b": kdent\r\n\r\nbody"
    assert out(message) == name + b": kdent@origin.test\r\n\r\nbody"


@pytest.mark.parametrize(
    "header",
    [
        b"Sender: kdent",
        b"Reply-To: kdent",
        b"Bcc: kdent",
        b"Resent-To: kdent",
        b"Return-Path: <kdent>",
        b"Tow: kdent",
        b"X-To: kdent",
        b"Subject: x\r\n To: kdent",
        b"From kdent Mon Jan  1 10:00:00 2026\r\nTo: kdent",
        b"no header at all\r\nTo: kdent",
        b"\r\nTo: kdent",
    ],
)
def test_nothing_else_is_touched(header: bytes) -> None:
    message = header + b"\r\n\r\nTo: kdent\r\n"
    assert out(message) == message


def test_header_without_body_and_several_fields() -> None:
    assert out(b"To: a\r\nTo: b\r\nCc: c\r\n") == b"To: a@origin.test\r\nTo: b@origin.test\r\nCc: c@origin.test\r\n"
    assert out(b"To: a") == b"To: a"
    assert out(b"") == b""


def test_header_is_looked_at_up_to_its_limit() -> None:
    message = b"To: a\r\n%bCc: b\r\n\r\n" % (b"X: x\r\n" * 300)
    for size in (100, 1 << 20):
        assert out(message, header_size_limit=1024, size=size) == message.replace(b"To: a", b"To: a@origin.test")


def test_untouched_chunks_are_passed_on_as_they_are() -> None:
    chunks = [b"To: a@b.example\r\n", b"\r", b"\n\r", b"\nbody", b"more"]
    given = Settings(myhostname="gw7.example.com", myorigin="origin.test")
    sent = list(rewrite(iter(chunks), Envelope(1, NULL_SENDER, ()), given))
    assert [id(chunk) for chunk in sent] == [id(chunk) for chunk in chunks]


def test_body_is_not_drawn_before_it_is_wanted() -> None:
    drawn = []

    def chunks() -> Any:
        for chunk in (b"To: a\r\n\r\n", b"one", b"two"):
            drawn.append(chunk)
            yield chunk

    stream = rewrite(chunks(), Envelope(1, NULL_SENDER, ()), Settings(myhostname="h", myorigin="origin.test"))
    assert next(stream) == b"To: a@origin.test\r\n\r\n"
    assert len(drawn) == 1


WORD = st.sampled_from([b"joe", b"j.d", b'"a b"', b'"a\\"@b"', b"=?utf-8?q?x?=", "ü".encode(), b"", b"x!y"])
BLANK = st.sampled_from([b"", b" ", b"\r\n ", b"(c)", b" (a (b) \\) c) ", b"\t"])
SPEC = st.one_of(
    WORD, st.tuples(WORD, st.sampled_from([b"@x.example", b"@[192.0.2.1]", b" @ x.example"])).map(b"".join)
)
MAILBOX = st.one_of(
    st.tuples(BLANK, SPEC, BLANK).map(b"".join),
    st.tuples(WORD, BLANK, st.just(b"<"), BLANK, SPEC, BLANK, st.just(b">"), BLANK).map(b"".join),
)
GROUP = st.lists(MAILBOX, max_size=3).map(lambda boxes: b"g: " + b",".join(boxes) + b";")
ADDRESSES = st.lists(st.one_of(MAILBOX, GROUP), min_size=1, max_size=4).map(b", ".join)
NOISE = st.lists(
    st.sampled_from([b"<", b">", b"@", b",", b";", b":", b"(", b")", b'"', b"\\", b"[", b"]", b"joe", b" "]),
    max_size=12,
).map(b"".join)
FIELDS = st.lists(
    st.tuples(st.sampled_from([b"From:", b"to: ", b"CC :", b"Subject: ", b"Sender:"]), st.one_of(ADDRESSES, NOISE)).map(
        lambda pair: b"".join(pair) + b"\r\n"
    ),
    max_size=5,
).map(b"".join)
BODY = st.sampled_from([b"", b"\r\n", b"\r\nTo: joe\r\n\r\nFrom: joe\r\n", b"\r\n\r\n.\r\n"])


@given(FIELDS, BODY, st.integers(1, 80))
def test_output_without_the_origin_is_the_input(header: bytes, body: bytes, size: int) -> None:
    sent = out(header + body, size=size)
    assert sent.replace(ORIGIN, b"") == header + body
    assert sent.endswith(body)
    assert ORIGIN not in sent[len(sent) - len(body) :]
    assert out(sent, size=size) == sent, "a second pass finds nothing"


@given(
    st.lists(
        st.sampled_from(["joe", "Joe <joe>", "ann@x.example", '"A, B" <ab>', "(c) joe (d)", "Kim <kim@x.example>"]),
        min_size=1,
    )
)
def test_every_address_of_a_sound_list_has_a_domain(boxes: list[str]) -> None:
    sent = out(b"To: " + ", ".join(boxes).encode() + b"\r\n\r\n").decode()
    found = email.utils.getaddresses([sent.partition(":")[2].strip()])
    assert len(found) == len(boxes)
    assert all("@" in address for _, address in found)


PIECES = [
    b"joe",
    b"a@b.example",
    b"<a@b>",
    b"<a>",
    b"Joe ",
    b'"A, B" ',
    b",",
    b", ",
    b",\r\n ",
    b" ",
    b"(c)",
    b":",
    b"@",
    b";",
    b"\\",
]


@given(st.lists(st.tuples(st.sampled_from([b"To", b"FROM", b"cc ", b"Subject"]), st.lists(st.sampled_from(PIECES)))))
def test_the_quick_look_says_what_the_long_one_says(fields: list[tuple[bytes, list[bytes]]]) -> None:
    header = b"".join(name + b":" + b"".join(pieces) + b"\r\n" for name, pieces in fields) + b"\r\n"
    if COMPLETE.match(header):
        assert _bare_addresses(header) == []


def test_the_quick_look_is_quick_on_a_header_made_to_slow_it() -> None:
    header = b"To: " + b'a "b" ' * 20_000 + b"\r\n\r\n"
    assert COMPLETE.match(header) is None
    plain = b"To: " + b"a@b, " * 5_000 + b"Joe <a@b>\r\nSubject: x\r\n\r\nbody"
    assert COMPLETE.match(plain) is not None


@given(st.binary(max_size=200))
def test_no_input_is_too_odd(header: bytes) -> None:
    places = bare_addresses(b"To: " + header + b"\r\n")
    assert places == sorted(places)


# ---- long lines


def lines(data: bytes) -> list[bytes]:
    return data.split(b"\r\n")


def test_line_of_the_limit_passes_and_one_octet_more_is_folded() -> None:
    fits, over = b"x" * 998, b"x" * 999
    assert out(b"\r\n" + fits + b"\r\n", long_lines=True) == b"\r\n" + fits + b"\r\n"
    assert out(b"\r\n" + over + b"\r\n", long_lines=True) == b"\r\n" + fits + b"\r\n x\r\n"
    assert out(b"\r\n" + over, long_lines=True) == b"\r\n" + fits + b"\r\n x"
    assert out(b"\r\n" + over, long_lines=True, smtp_line_length_limit=0) == b"\r\n" + over
    assert out(b"\r\n" + over, long_lines=True, smtp_line_length_limit=2000) == b"\r\n" + over


def test_lower_limit_folds_without_being_told_of_long_lines() -> None:
    sent = out(b"A: b\r\n\r\n" + b"y" * 250 + b"\r\n", smtp_line_length_limit=100)
    assert [len(line) for line in lines(sent)] == [4, 0, 100, 100, 52, 0]


def test_completion_that_makes_a_line_too_long_is_folded() -> None:
    message = b"To: " + b", ".join([b"joe"] * 198) + b", x\r\n\r\nbody\r\n"
    assert max(map(len, lines(message))) < 998
    sent = out(message)
    assert max(map(len, lines(sent))) <= 998
    assert sent.replace(b"\r\n ", b"").replace(ORIGIN, b"") == message


@given(
    st.lists(st.text(st.sampled_from("aü€😀 "), max_size=60), max_size=5),
    st.booleans(),
    st.integers(8, 40),
    st.integers(1, 50),
)
def test_fold(texts: list[str], ended: bool, limit: int, size: int) -> None:
    message = "\r\n".join("x" + text for text in texts).encode() + (b"\r\n" if ended else b"")
    chunks = [message[at : at + size] for at in range(0, len(message), size)]
    sent = b"".join(fold(chunks, limit))
    assert sent == b"".join(fold([message], limit))
    assert sent.replace(b"\r\n ", b"") == message.replace(b"\r\n ", b"")
    assert all(len(line) <= limit for line in lines(sent))
    assert all(line.decode() is not None for line in lines(sent))
    whole = all(len(line) <= limit for line in lines(message))
    assert (sent == message) == whole


@given(
    st.binary(max_size=300).map(lambda data: data.replace(b"\r", b"").replace(b"\n", b"\r\n")),
    st.integers(8, 40),
    st.integers(1, 50),
)
def test_fold_of_any_octets(message: bytes, limit: int, size: int) -> None:
    sent = b"".join(fold([message[at : at + size] for at in range(0, len(message), size)], limit))
    assert all(len(line) <= limit for line in lines(sent))
    assert sent.replace(b"\r\n ", b"") == message.replace(b"\r\n ", b"")


def test_endless_line_is_not_held() -> None:
    stream = fold((b"z" * 1000 for _ in range(1000)), 998)
    assert max(len(piece) for piece in stream) < 4000


# ---- envelope


@pytest.mark.parametrize(
    ("address", "settings", "completed"),
    [
        ("kdent", {}, "kdent@origin.test"),
        ("kdent@host", {}, "kdent@host"),
        ("kdent@host", {"append_dot_mydomain": True}, "kdent@host.example.com"),
        ("kdent@a.host", {"append_dot_mydomain": True}, "kdent@a.host"),
        ("", {"append_dot_mydomain": True}, ""),
    ],
)
def test_complete(address: str, settings: dict[str, Any], completed: str) -> None:
    given = Settings(**({"myorigin": "origin.test", "mydomain": "example.com"} | settings))
    assert str(complete(Address.of(address), given)) == completed
