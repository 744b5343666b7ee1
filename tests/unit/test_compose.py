"""What sendmail makes of a program's text: line ends, the lone dot, header and addresses."""

from __future__ import annotations

import email.policy
from email.message import EmailMessage
from email.utils import getaddresses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemail.boot.compose import (
    MAX_HEADER,
    HeaderReader,
    HeaderTooLong,
    MalformedAddress,
    Text,
    addresses,
    mailbox,
)

PIECES = st.lists(
    st.sampled_from([b".", b"\n", b"\r", b"\r\n", b"a", b".\n", b"\n.\n", b"\r\n.\r\n", b"x" * 70]), max_size=12
)


def text(data: bytes, *, dot: bool, size: int = 0) -> bytes:
    reader, out = Text(dot=dot), b""
    for start in range(0, len(data), size or len(data) or 1):
        out += reader.feed(data[start : start + (size or len(data))])
    return out + reader.finish()


def until_dot(data: bytes) -> bytes:
    """The plain way to say it."""
    lines = data.split(b"\r\n")
    return b"".join(line + b"\r\n" for line in lines[: lines.index(b".")]) if b"." in lines else data


@given(PIECES.map(b"".join), st.integers(1, 5))
def test_text_is_the_same_at_any_split(data: bytes, size: int) -> None:
    plain = text(data, dot=False)
    assert text(data, dot=False, size=size) == plain
    assert plain.count(b"\r\n") == plain.count(b"\r") == plain.count(b"\n")
    assert text(data, dot=True, size=size) == until_dot(plain)


@pytest.mark.parametrize(
    ("data", "out"),
    [
        (b"one\n.\ntwo\n", b"one\r\n"),
        (b".\n", b""),
        (b".", b""),
        (b"one\n.", b"one\r\n"),
        (b"..\n", b"..\r\n"),
        (b"a.\n.b\n", b"a.\r\n.b\r\n"),
        (b"one\n.\r", b"one\r\n"),
        (b"", b""),
    ],
)
def test_a_lone_dot_ends_it(data: bytes, out: bytes) -> None:
    assert text(data, dot=True) == out


def read(data: bytes, size: int = 1000) -> HeaderReader:
    reader = HeaderReader()
    for start in range(0, len(data), size):
        reader.feed(data[start : start + size])
    reader.finish()
    return reader


@given(
    st.lists(
        st.sampled_from([b"To: a@b\r\n", b" folded\r\n", b"\r\n", b"body\r\n", b"From x\r\n", b"X:\r\n", b"end"]),
        max_size=8,
    )
)
def test_header_and_rest_are_the_same_at_any_split(parts: list[bytes]) -> None:
    data = b"".join(parts)
    one, whole = read(data, 1), read(data)
    assert (one.header.fields, one.rest) == (whole.header.fields, whole.rest)
    back = b"".join(whole.header.fields)
    assert data.replace(b"From x\r\n", b"").startswith(back[:-2].replace(b"From x\r\n", b""))


def test_a_header_without_end_is_refused() -> None:
    reader = HeaderReader()
    with pytest.raises(HeaderTooLong):
        for _ in range(MAX_HEADER // 1000 + 2):
            reader.feed(b"X: " + b"y" * 995 + b"\r\n")
    reader = HeaderReader()
    with pytest.raises(HeaderTooLong):
        for _ in range(MAX_HEADER // 1000 + 2):
            reader.feed(b"y" * 1000)


@pytest.mark.parametrize(
    ("given_", "found"),
    [
        ("bob", ["bob"]),
        ("bob@example.org", ["bob@example.org"]),
        ("Bob Smith <bob@example.org>", ["bob@example.org"]),
        ('"Smith, Bob" <bob@example.org>', ["bob@example.org"]),
        ("bob@example.org (Bob (the) Smith, esq.)", ["bob@example.org"]),
        ("a@b, c@d ,e@f,,", ["a@b", "c@d", "e@f"]),
        ("a @ b . c", ["a@b.c"]),
        ("friends: a@b, Cee <c@d>; e@f", ["a@b", "c@d", "e@f"]),
        ("undisclosed-recipients:;", []),
        ("<@one,@two:a@b>", ["a@b"]),
        ('"a b"@c', ['"a b"@c']),
        ('"a \\" b"@c', ['"a \\" b"@c']),
        ("a@[192.0.2.1]", ["a@[192.0.2.1]"]),
        ("a@[IPv6:2001:db8::1]", ["a@[IPv6:2001:db8::1]"]),
        ("<>", []),
        ("", []),
        ("Dr. A. B. Cee <x@y>", ["x@y"]),
        ("=?utf-8?Q?B=C3=A4r?= <b@c>", ["b@c"]),
        ("jürgen@exämple.org", ["jürgen@exämple.org"]),
        ('a@b (it\'s "quoted" [here])', ["a@b"]),
    ],
)
def test_addresses(given_: str, found: list[str]) -> None:
    assert addresses(given_) == found


@pytest.mark.parametrize(
    "text",
    ["a b", "<a@b", "(a@b", "a)@b", '"a', "<a@b> <c@d>", "a@b c@d", "a@[b", "x \\ y", "j\udce4@b", "a@b <c@d> e <f@g>"],
)
def test_what_cannot_be_read_is_an_error_and_never_dropped(text: str) -> None:
    with pytest.raises(MalformedAddress):
        addresses(text)


LOCAL = st.from_regex(r"[a-z0-9]{1,8}(\.[a-z0-9]{1,8})?", fullmatch=True)
DOMAIN = st.from_regex(r"[a-z]{1,8}\.(com|org)", fullmatch=True)
NAME = st.from_regex(r'[A-Za-z ,()<>@"\\.;:]{0,20}', fullmatch=True)


@given(st.lists(st.tuples(NAME, LOCAL, DOMAIN), min_size=1, max_size=4))
def test_addresses_agree_with_the_standard_library(people: list[tuple[str, str, str]]) -> None:
    message = EmailMessage(policy=email.policy.SMTP)
    field = ", ".join(mailbox(f"{local}@{domain}", name) for name, local, domain in people)
    message["To"] = field
    expected = [f"{local}@{domain}" for _, local, domain in people]
    assert addresses(field) == expected
    assert [address for _, address in getaddresses([field])] == expected


@given(st.text(max_size=60))
def test_any_text_gives_addresses_or_an_error(text: str) -> None:
    try:
        found = addresses(text)
    except MalformedAddress:
        return
    assert all(isinstance(one, str) and one for one in found)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("", "a@b"),
        ("  Full   Name ", "Full Name <a@b>"),
        ("Name, Full", '"Name, Full" <a@b>'),
        ('The "Box"', '"The \\"Box\\"" <a@b>'),
        ("Jürgen", "=?utf-8?B?SsO8cmdlbg==?= <a@b>"),
        ("x\r\nBcc: y", '"x Bcc: y" <a@b>'),
    ],
)
def test_mailbox_quotes_and_encodes(name: str, field: str) -> None:
    assert mailbox("a@b", name) == field
