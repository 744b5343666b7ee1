"""What the queue looks like: Postfix's formats to the byte (tests/golden/queue), and edgemail's own.

The golden files are what Postfix 3.7 prints; tests/scenarios compares the two side by side where Postfix can be had.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemail.boot import listing
from edgemail.boot.entries import Entry, Selection, Waiting, entry, parse_id, state
from edgemail.boot.listing import Causes, Mailq, Shape
from edgemail.envelope import Address, Envelope, Notify, Origin, Recipient, Ret

GOLDEN = Path(__file__).parent.parent / "golden" / "queue"
NOW = 1_795_219_200.0  # 2026-11-21 00:00 UTC, a Saturday


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


TIMED_OUT = "connect to mx.example.org[192.0.2.1]:25: Connection timed out"
SAID = "host mx.example.net[192.0.2.9] said: 450 4.2.0 <eve@example.net>: Greylisted (in reply to RCPT TO command)"


def queue() -> list[Entry]:
    """One message of each kind."""
    return [
        Entry("incoming", "0000001A", NOW - 60, 512, "alice@example.com", (Waiting("bob@example.org"),)),
        Entry("active", "0000001B", NOW - 400, 2_345_678, "", (Waiting("bob@example.org", TIMED_OUT),)),
        Entry(
            "deferred",
            "0000001C",
            NOW - 90_000,
            10_240,
            "scanner@sub.example.com",
            (
                Waiting("bob@example.org", TIMED_OUT, "4.4.1"),
                Waiting("carol@example.org", TIMED_OUT, "4.4.1"),
                Waiting("eve@example.net", SAID, "4.2.0"),
                Waiting("late@example.net"),
            ),
            attempts=7,
            last_attempt=NOW - 100,
            next_attempt=NOW + 3000,
        ),
        Entry("hold", "0000001D", NOW - 700, 999, '"a b"@example.com', (Waiting("x@y"),)),
        Entry(
            "hold", "0000001E", NOW - 701, 1, "root", (Waiting("postmaster"),), hold_reason="admin_address is not set"
        ),
    ]


def golden(name: str, text: str) -> None:
    path = GOLDEN / name
    assert text == path.read_text(), name


def test_mailq() -> None:
    mailq = Mailq()
    golden("mailq.txt", "".join(mailq.add(one) for one in queue()) + mailq.end())


def test_mailq_of_one_message_and_of_none() -> None:
    mailq = Mailq()
    golden("mailq-one.txt", mailq.add(queue()[0]) + mailq.end())
    assert Mailq().end() == "Mail queue is empty\n"


def test_json_lines_have_postfix_members_and_spacing() -> None:
    text = "".join(listing.json_line(one) for one in queue())
    golden("json.txt", text)
    members = [list(json.loads(line)) for line in text.splitlines()]
    assert set(map(tuple, members)) == {
        ("queue_name", "queue_id", "arrival_time", "message_size", "forced_expire", "sender", "recipients")
    }


def test_postcat_records() -> None:
    one = entry(
        Envelope(
            0x1F,
            Address.of("alice@example.com"),
            (
                Recipient(Address.of("bob@example.org"), Notify.NEVER, "rfc822;bob@example.org"),
                Recipient(Address.of("eve@example.net"), Notify.SUCCESS | Notify.FAILURE),
            ),
            size=1234,
            received_at=NOW,
            origin=Origin("pc.example.com", "192.0.2.7", "pc", "ESMTPSA", "alice"),
            ret=Ret.HDRS,
            envid="QQ314159",
        )
    )
    golden("postcat.txt", listing.postcat_envelope(one) + listing.postcat_contents(one) + listing.postcat_end(one))


def test_qshape() -> None:
    shape = Shape(NOW)
    for one in queue():
        shape.add(one)
    golden("qshape.txt", shape.table())


def test_qshape_by_sender_with_parents_linear_and_narrow() -> None:
    shape = Shape(NOW, senders=True, parents=True, linear=True, buckets=4, minutes=10, subdomains=1)
    for one in queue():
        shape.add(one)
    golden("qshape-senders.txt", shape.table())


def test_qshape_of_nothing() -> None:
    golden("qshape-empty.txt", Shape(NOW).table())


def test_qshape_widens_for_big_numbers_and_cuts_long_names() -> None:
    shape = Shape(NOW)
    name = "a-very-long-label-in-a-name." * 3 + "example.com"
    for _ in range(1000):
        shape.add(Entry("incoming", "1", NOW, 1, "", (Waiting(f"x@{name}"), Waiting("y@example.com"))))
    lines = shape.table().splitlines()
    assert {len(line) for line in lines} == {80}
    assert lines[1].split() == ["TOTAL", "2000", "2000", *["0"] * 9]
    assert lines[3].startswith("+") and lines[3].split()[0].endswith("example.com")


@pytest.mark.parametrize(
    ("age", "bucket"), [(0, 1), (299, 1), (300, 2), (599, 2), (600, 3), (1199, 3), (2400, 5), (76_800, 10), (10**7, 10)]
)
def test_qshape_ages_double(age: int, bucket: int) -> None:
    shape = Shape(NOW)
    shape.add(Entry("deferred", "1", NOW - age, 1, "a@b", (Waiting("c@d"),)))
    assert shape.counts["d"].index(1, 1) == bucket


def test_qshape_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MAX_DOMAINS", 5)
    shape = Shape(NOW)
    for number in range(20):
        shape.add(Entry("deferred", "1", NOW, 1, "a@b", (Waiting(f"x@d{number}.example"),)))
    assert len(shape.counts) == 6
    assert shape.counts["TOTAL"][0] == 20
    assert shape.counts["OTHER"][0] == 16


def test_why_counts_messages_and_recipients() -> None:
    causes = Causes()
    for one in queue():
        causes.add(one)
    golden("why.txt", "".join(listing.why_line(cause, NOW) for cause in causes.found()))
    assert [c.recipients for c in causes.found() if c.state == "deferred"] == [1, 1, 2]


def test_why_counts_what_was_not_tried_with_what_was() -> None:
    causes = Causes()
    for reason in ("no route", "delivery temporarily suspended: no route"):
        causes.add(Entry("deferred", "1", NOW, 1, "a@b", (Waiting("x@y", reason, site="smtp:[isp]:587"),)))
    (found,) = causes.found()
    assert (found.messages, found.destination, found.reason) == (2, "smtp:[isp]:587", "no route")


def test_why_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MAX_CAUSES", 3)
    causes = Causes()
    for number in range(10):
        causes.add(Entry("deferred", "1", NOW, 1, "a@b", (Waiting("x@y", f"reason {number}"),)))
    found = causes.found()
    assert len(found) == 4
    assert (found[0].messages, found[0].destination) == (7, "elsewhere")


def test_show_tells_all_and_hides_controls() -> None:
    one = queue()[2]
    golden("show.txt", listing.show(one, NOW))
    evil = Entry("deferred", "1", NOW, 1, "a\x1b[2J@b", (Waiting("c@d", "bad \x1b]0;x\x07 reason"),))
    for text in (listing.show(evil, NOW), listing.mailq_entry(evil), listing.postcat_envelope(evil)):
        assert "\x1b" not in text and "\x07" not in text


@given(st.text(max_size=50), st.text(max_size=50))
def test_json_line_is_json_whatever_stands_in_it(address: str, reason: str) -> None:
    one = Entry("deferred", "1", NOW, 1, address, (Waiting(address, reason),))
    line = listing.json_line(one)
    assert line.count("\n") == 1
    found = json.loads(line)
    assert found["recipients"][0]["address"] == address
    assert found["recipients"][0].get("delay_reason", "") == reason
    assert found["sender"] == (address or "MAILER-DAEMON")


@given(st.text(max_size=100))
def test_nothing_unprintable_is_printed(text: str) -> None:
    assert all(c >= " " and c != "\x7f" for c in listing.printable(text))


# entries


@pytest.mark.parametrize(
    ("envelope", "active", "name"),
    [
        (Envelope(1, Address("a"), ()), False, "incoming"),
        (Envelope(1, Address("a"), (), attempts=1), False, "deferred"),
        (Envelope(1, Address("a"), (Recipient(Address("b"), reason="x"),)), False, "deferred"),
        (Envelope(1, Address("a"), (), hold=True, attempts=1), False, "hold"),
        (Envelope(1, Address("a"), (), hold=True), True, "active"),
    ],
)
def test_states_are_postfix_queues(envelope: Envelope, active: bool, name: str) -> None:
    assert state(envelope, active) == name


def test_an_entry_survives_its_json() -> None:
    for one in queue():
        assert Entry.of_json(json.loads(json.dumps(one.as_json()))) == one
    newer = {**queue()[0].as_json(), "colour": "blue"}
    newer["recipients"][0]["mood"] = "good"
    assert Entry.of_json(newer) == queue()[0]


@given(st.integers(0, 2**64 - 1))
def test_a_queue_id_is_read_as_it_is_written(number: int) -> None:
    assert parse_id(f"{number:08X}") == number
    assert parse_id(f"{number:08x}") == number


@pytest.mark.parametrize("text", ["", "G", "-1", "0x10", " 1", "1 ", "1" * 17, "１"])
def test_what_is_no_queue_id(text: str) -> None:
    with pytest.raises(ValueError, match="invalid queue id"):
        parse_id(text)


def test_a_selection_survives_its_json() -> None:
    one = Selection(frozenset({0x1A, 0x1B}), ("hold",), "a@b", "c@d", "d", "late")
    assert Selection.of_json(json.loads(json.dumps(one.as_json()))) == one
    assert Selection.of_json({}) == Selection()
