"""The limits on clients: counts, rates, texts, and the bound of their own memory."""

from __future__ import annotations

from typing import Any

from edgemail.clock import ManualClock
from edgemail.relay.receive import limits
from edgemail.relay.receive.limits import RESERVED, Anvil, Visit, client_of
from tests.receiving import HOST, settings


class Desk:
    """An anvil with its clock."""

    def __init__(self, most: int = 100, **changes: Any) -> None:
        self.clock = ManualClock()
        self.settings = settings(**changes)
        self.anvil = Anvil(self.clock.monotonic, 60.0, most)

    def visit(self, address: str = "192.0.2.1", *, listener: str = "lan", exempt: bool = False) -> Visit:
        return self.anvil.visit(listener, address, self.settings, exempt=exempt)

    def said(self, visit: Visit) -> str:
        return str(visit.at_connect("unknown[192.0.2.1]") or "")


def test_sessions_at_once() -> None:
    desk = Desk(smtpd_client_connection_count_limit=2)
    first, second, third = (desk.visit() for _ in range(3))
    assert desk.said(third) == f"421 4.7.0 {HOST} Error: too many connections from unknown[192.0.2.1]"
    assert desk.said(desk.visit("192.0.2.2")) == ""
    third.leave()
    third.leave()
    assert desk.said(desk.visit()) != ""
    first.leave()
    second.leave()
    assert desk.said(desk.visit()) == ""


def test_connections_in_a_unit() -> None:
    desk = Desk(smtpd_client_connection_rate_limit=2)
    for expected in ("", "", "421"):
        visit = desk.visit()
        assert desk.said(visit).partition(" ")[0] == expected
        visit.leave()
    desk.clock.advance(60.0)
    assert desk.said(desk.visit()) == ""


def test_messages_and_recipients_in_a_unit() -> None:
    desk = Desk(smtpd_client_message_rate_limit=1, smtpd_client_recipient_rate_limit=2)
    visit = desk.visit()
    assert visit.at_mail("a[b]") is None
    assert str(visit.at_mail("a[b]")) == "450 4.7.1 Error: too much mail from a[b]"
    assert [visit.at_recipient("a[b]") is None for _ in range(3)] == [True, True, False]
    assert str(desk.visit().at_recipient("a[b]")) == "450 4.7.1 Error: too many recipients from a[b]"
    desk.clock.advance(61.0)
    assert visit.at_mail("a[b]") is None
    assert visit.at_recipient("a[b]") is None


def test_zero_is_no_limit() -> None:
    desk = Desk(smtpd_client_connection_count_limit=0)
    visits = [desk.visit() for _ in range(75)]
    assert all(desk.said(visit) == "" for visit in visits)
    assert all(visits[0].at_mail("x") is None and visits[0].at_recipient("x") is None for _ in range(1000))


def test_exceptions() -> None:
    desk = Desk(smtpd_client_connection_count_limit=1, smtpd_client_message_rate_limit=1)
    visits = [desk.visit(exempt=True) for _ in range(5)]
    assert [desk.said(visit) for visit in visits] == [""] * 5
    assert all(visits[0].at_mail("x") is None for _ in range(5))


def test_all_sessions_together() -> None:
    desk = Desk(most=20)
    first = [desk.visit(f"192.0.2.{number}", exempt=True) for number in range(20)]
    assert all(desk.said(visit) == "" for visit in first)
    assert desk.said(desk.visit("192.0.2.0")) == f"421 4.3.2 {HOST} Error: all server ports are busy"


def test_some_room_is_kept_for_clients_that_have_none() -> None:
    desk = Desk(most=20)
    others = [desk.visit(f"192.0.2.{number % 10}") for number in range(20)]
    late = []
    for number in range(RESERVED + 1):
        late.append(desk.visit(f"198.51.100.{number}"))
        assert (desk.said(late[-1]) == "") is (number < RESERVED)
    assert desk.said(desk.visit("192.0.2.1")) != ""
    for visit in (*others[:3], late[-1]):
        visit.leave()
    assert desk.said(desk.visit("198.51.100.200")) == ""


def test_nobody_holds_them_all_but_this_box_itself() -> None:
    desk = Desk(most=20, smtpd_client_connection_count_limit=0)
    assert [desk.said(desk.visit(exempt=True)) == "" for _ in range(16)] == [True] * 15 + [False]
    for own in ("127.0.0.1", "::1"):
        desk = Desk(most=20)
        assert [desk.said(desk.visit(own, exempt=True)) for _ in range(20)] == [""] * 20


def test_each_listener_counts_for_itself() -> None:
    desk = Desk(smtpd_client_connection_count_limit=1)
    desk.visit()
    assert desk.said(desk.visit(listener="submission")) == ""


def test_the_neighbours_of_an_ipv6_address_are_one_client() -> None:
    assert client_of("2001:db8::1") == client_of("2001:db8::2:3") == "2001:db8::"
    assert client_of("2001:db8::1") != client_of("2001:db8:0:1::1")
    assert client_of("192.0.2.1") != client_of("192.0.2.2")
    assert client_of("strange:name") == "strange:name"


def test_clients_that_are_gone_are_forgotten() -> None:
    desk = Desk()
    for number in range(100):
        desk.visit(f"192.0.2.{number}").leave()
    assert len(desk.anvil) == 100
    desk.clock.advance(61.0)
    desk.visit("198.51.100.1").leave()
    assert len(desk.anvil) == 1


def test_the_table_is_bounded() -> None:
    desk = Desk(smtpd_client_connection_count_limit=2)
    guest = desk.visit("192.0.2.1")
    for number in range(3 * limits.MAX_CLIENTS):
        desk.visit(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}").leave()
        assert len(desk.anvil) <= limits.MAX_CLIENTS + 1
    desk.visit("192.0.2.1")
    assert desk.said(desk.visit("192.0.2.1")) != ""  # who is in session was not forgotten
    guest.leave()


def test_one_long_session_does_not_keep_the_table_from_shrinking() -> None:
    desk = Desk()
    desk.visit("192.0.2.1")
    for number in range(50):
        desk.visit(f"198.51.100.{number}").leave()
    desk.clock.advance(61.0)
    desk.visit("203.0.113.1").leave()
    assert len(desk.anvil) == 2


def test_sessions_beside_this_one() -> None:
    desk = Desk()
    first = desk.visit()
    assert first.others == 0
    desk.visit()
    assert first.others == 1
