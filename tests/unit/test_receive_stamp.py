"""The trace header, and what is read of a message's own header as it streams by."""

from __future__ import annotations

import email
import email.policy
import email.utils
import re
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemail.clock import RELEASE_DATE
from edgemail.dates import date
from edgemail.envelope import Address, Origin
from edgemail.relay.receive.heading import LINE_KEPT, Heading
from edgemail.relay.receive.stamp import cipher_words, literal, protocol, received

ORIGIN = Origin("pr1.example.org", "192.0.2.7", "printer", "ESMTP", "", "lan")


def stamped(origin: Origin = ORIGIN, recipient: Address | None = None, tls: str = "") -> str:
    return received(
        origin, myhostname="gw.example.com", mail_name="edgemail", id=0xDBA3F1A9, at=0.0, recipient=recipient, tls=tls
    ).decode()


@pytest.fixture
def utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


@pytest.mark.usefixtures("utc")
def test_one_recipient_is_named() -> None:
    assert stamped(recipient=Address("you", "example.net")) == (
        "Received: from printer (pr1.example.org [192.0.2.7])\r\n"
        "\tby gw.example.com (edgemail) with ESMTP id DBA3F1A9\r\n"
        "\tfor <you@example.net>; Thu, 1 Jan 1970 00:00:00 +0000 (UTC)\r\n"
    )


@pytest.mark.usefixtures("utc")
def test_several_are_not() -> None:
    assert stamped() == (
        "Received: from printer (pr1.example.org [192.0.2.7])\r\n"
        "\tby gw.example.com (edgemail) with ESMTP id DBA3F1A9; Thu, 1 Jan 1970 00:00:00 +0000 (UTC)\r\n"
    )


def test_tls_where_it_is_to_be_noted() -> None:
    words = cipher_words("TLSv1.3", "TLS_AES_256_GCM_SHA384", 256, 256)
    assert stamped(tls=words).splitlines()[1] == "\t(using TLSv1.3 with cipher TLS_AES_256_GCM_SHA384 (256/256 bits))"


def test_ipv6() -> None:
    assert "(unknown [IPv6:fe80::1])" in stamped(Origin("unknown", "fe80::1%eth0", "x", "SMTP"))
    assert literal("2001:db8::1") == "IPv6:2001:db8::1"


def test_no_helo() -> None:
    assert stamped(Origin("unknown", "192.0.2.1", "", "SMTP")).startswith(
        "Received: from unknown (unknown [192.0.2.1])"
    )


@pytest.mark.parametrize(
    ("extended", "tls", "user", "utf8", "name"),
    [
        (False, False, False, False, "SMTP"),
        (False, True, False, False, "SMTP"),
        (True, False, False, False, "ESMTP"),
        (True, True, False, False, "ESMTPS"),
        (True, False, True, False, "ESMTPA"),
        (True, True, True, False, "ESMTPSA"),
        (True, False, False, True, "UTF8SMTP"),
        (True, True, False, True, "UTF8SMTPS"),
        (True, False, True, True, "UTF8SMTPA"),
        (True, True, True, True, "UTF8SMTPSA"),
    ],
)
def test_protocol_names(extended: bool, tls: bool, user: bool, utf8: bool, name: str) -> None:
    assert protocol(extended=extended, tls=tls, authenticated=user, smtputf8=utf8) == name


def test_a_very_long_recipient_is_left_out() -> None:
    assert "for <" not in stamped(recipient=Address("x" * 1000, "example.net"))


@given(helo=st.text(max_size=300), name=st.text(max_size=300), address=st.text(max_size=60))
def test_what_a_client_calls_itself_can_only_be_a_name(helo: str, name: str, address: str) -> None:
    text = stamped(Origin(name, address, helo, "ESMTP"), Address("you", "example.net"), "TLSv1.3 with cipher X")
    lines = text.split("\r\n")
    assert lines.pop() == ""
    assert len(lines) == 4
    assert all(len(line) <= 998 for line in lines)
    assert not re.search(r"[\x00-\x08\x0a-\x1f\x7f-\uffff]", "".join(lines))
    parsed = email.message_from_string(text + "\r\n", policy=email.policy.default)
    assert parsed.keys() == ["Received"]
    assert parsed["Received"].count(";") == 1


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/St_Johns", "Pacific/Chatham", "<weird)zone>-3"])
@pytest.mark.parametrize("at", [0.0, RELEASE_DATE, RELEASE_DATE - 86400.0 * 150, 4102444800.0])
def test_dates_are_those_of_rfc_5322(zone: str, at: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        text = date(at)
        assert re.fullmatch(r"\w{3}, \d{1,2} \w{3} \d{4} \d\d:\d\d:\d\d [+-]\d{4}(?: \([A-Za-z0-9+-]+\))?", text), text
        assert email.utils.parsedate_to_datetime(text).timestamp() == at
    finally:
        monkeypatch.undo()
        time.tzset()


# ---- the message's own header

HEADER = (
    b"Received: from a\r\n\tby b; x\r\nreceived : from c\r\nX-Received: no\r\nSubject: Received: no\r\n"
    b"Message-ID: <1@example.org>\r\nTo: x,\r\n received: no\r\n\r\nReceived: in the body\r\nMessage-ID: <2@x>\r\n"
)


def read(pieces: list[bytes], limit: int = 102_400) -> Heading:
    heading = Heading(limit)
    for piece in pieces:
        heading.feed(piece)
    heading.finish()
    return heading


def test_hops_and_message_id() -> None:
    heading = read([HEADER])
    assert (heading.hops, heading.message_id) == (2, "<1@example.org>")


@given(st.lists(st.integers(1, 40), max_size=40))
def test_however_it_is_cut(sizes: list[int]) -> None:
    pieces, rest = [], HEADER
    for size in sizes:
        pieces.append(rest[:size])
        rest = rest[size:]
    heading = read([*pieces, rest])
    assert (heading.hops, heading.message_id) == (2, "<1@example.org>")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(
    ("header", "hops", "message_id"),
    [
        (b"", 0, ""),
        (b"\r\nReceived: x\r\n", 0, ""),
        (b"Received: x", 1, ""),
        (b"MESSAGE-id:\r\n\t<a@b>\r\n\r\n", 0, "<a@b>"),
        (b"Message-ID: \r\n \r\n <a@b>\r\nReceived: x\r\n\r\n", 1, "<a@b>"),
        (b"Message-ID: <a@b>", 0, "<a@b>"),
        (b"Message-ID:\r\nReceived: x\r\n\r\n", 1, ""),
        (b"Message-ID: <a@b>\r\nMessage-ID: <c@d>\r\n\r\n", 0, "<a@b>"),
        (b"Message-ID: \xff\xfe\r\n\r\n", 0, "\ufffd\ufffd"),
        (b"X: " + b"y" * 3000 + b"\r\nReceived: x\r\nMessage-ID: <a@b>\r\n\r\n", 1, "<a@b>"),
        (b"X: " + b"y" * (LINE_KEPT - 6) + b"\r\nReceived: x\r\n\r\n", 1, ""),
        (b"Received: x\r\n" * 60, 60, ""),
    ],
)
def test_headers_of_all_sorts(size: int, header: bytes, hops: int, message_id: str) -> None:
    heading = read([header[at : at + size] for at in range(0, len(header), size)])
    assert (heading.hops, heading.message_id) == (hops, message_id)


@pytest.mark.parametrize("length", range(LINE_KEPT - 8, LINE_KEPT + 8))
def test_no_length_of_a_line_hides_the_next(length: int) -> None:
    header = b"X: " + b"y" * length + b"\r\nReceived: x\r\n\r\n"
    for cut in range(len(header) - 40, len(header)):
        assert read([header[:cut], header[cut:]]).hops == 1, cut


def test_only_so_much_of_a_header_is_looked_at() -> None:
    heading = read([b"Received: x\r\n" * 3, b"Received: x\r\n" * 100], limit=13 * 5)
    assert heading.hops == 5


def test_an_endless_header_line_costs_nothing() -> None:
    heading = Heading(50_000_000)
    piece = b"x" * 32768
    tracemalloc.start()
    try:
        for _ in range(300):
            heading.feed(piece)
        assert tracemalloc.get_traced_memory()[1] < 300_000
    finally:
        tracemalloc.stop()
