"""Relay control: who may send to whom, and that nothing a stranger says opens the box."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemail.envelope import Address
from edgemail.relay.receive.policy import RESTRICTIONS, Client, Policy, check_restrictions
from tests.receiving import HOST, settings

INSIDE = Client("192.168.7.9")
OUTSIDE = Client("203.0.113.5")
USER = Client("203.0.113.5", "anna")

SITE: dict[str, Any] = {
    "mynetworks": ("127.0.0.0/8", "192.168.7.0/24", "[2001:db8:7::]/48"),
    "relay_domains": ("example.com", "oreillynet.com"),
    "relay_recipient_maps": ((("user1@example.com", "x"), ("user2@example.com", "x"), ("@oreillynet.com", "x")),),
    "mydestination": (HOST, "localhost"),
    "local_recipient_maps": ((("printer", "x"), (f"admin@{HOST}", "x")),),
}


def said(client: Client, recipient: str, **changes: Any) -> str:
    """The refusal of a recipient, "" for none."""
    policy = Policy(settings(**{**SITE, **changes}), own=lambda: ("192.168.7.1", "2001:db8:7::1"))
    return str(policy.refusal(client, Address.of(recipient)) or "")


def test_a_stranger_may_not_send_elsewhere() -> None:
    assert said(OUTSIDE, "any@elsewhere.example") == "554 5.7.1 <any@elsewhere.example>: Relay access denied"


@pytest.mark.parametrize("client", [INSIDE, USER, Client("127.0.0.1"), Client("2001:db8:7:1::2"), Client("127.9.9.9")])
def test_who_is_known_may(client: Client) -> None:
    assert said(client, "any@elsewhere.example") == ""


def test_a_mapped_address_is_an_ipv4_address() -> None:
    assert said(Client("::ffff:192.168.7.9"), "any@elsewhere.example") == ""
    assert said(Client("::ffff:203.0.113.5"), "any@elsewhere.example") != ""


def test_nothing_is_trusted_unless_told() -> None:
    bare = Policy(settings())
    assert bare.refusal(Client("192.168.7.9"), Address.of("any@elsewhere.example")) is not None
    assert bare.refusal(Client("127.0.0.1"), Address.of("any@elsewhere.example")) is None
    assert bare.refusal(Client("::1"), Address.of("any@elsewhere.example")) is None
    assert bare.refusal(Client("unknown"), Address.of("any@elsewhere.example")) is not None


@pytest.mark.parametrize("client", [INSIDE, OUTSIDE])
@pytest.mark.parametrize(
    ("recipient", "expected"),
    [
        ("user1@example.com", ""),
        ("USER1@EXAMPLE.COM", ""),
        ("any@oreillynet.com", ""),
        (
            "nobody@example.com",
            "550 5.1.1 <nobody@example.com>: Recipient address rejected: User unknown in relay recipient table",
        ),
        (
            "user1@sub.example.com",
            "550 5.1.1 <user1@sub.example.com>: Recipient address rejected: User unknown in relay recipient table",
        ),
        ("postmaster@example.com", ""),
        (f"printer@{HOST}", ""),
        (f"admin@{HOST}", ""),
        (
            "admin@localhost",
            "550 5.1.1 <admin@localhost>: Recipient address rejected: User unknown in local recipient table",
        ),
        (
            f"nobody@{HOST}",
            f"550 5.1.1 <nobody@{HOST}>: Recipient address rejected: User unknown in local recipient table",
        ),
        ("nobody", "550 5.1.1 <nobody>: Recipient address rejected: User unknown in local recipient table"),
        ("printer", ""),
        ("printer@[192.168.7.1]", ""),
        ("printer@[IPv6:2001:db8:7::1]", ""),
    ],
)
def test_known_recipients(client: Client, recipient: str, expected: str) -> None:
    assert said(client, recipient) == expected


@pytest.mark.parametrize("name", ["postmaster", "root", "abuse", "mailer-daemon", "double-bounce"])
@pytest.mark.parametrize("case", [str.lower, str.upper, str.title])
@pytest.mark.parametrize("domain", ["", f"@{HOST}", "@localhost", "@[192.168.7.1]"])
def test_standard_names_are_taken_from_anybody(name: str, case: Any, domain: str) -> None:
    if name == "double-bounce" and domain.startswith("@["):
        return
    assert said(OUTSIDE, case(name) + domain, local_recipient_maps=()) == ""


def test_standard_names_elsewhere_are_not_ours() -> None:
    assert "Relay access denied" in said(OUTSIDE, "postmaster@elsewhere.example")
    assert "Relay access denied" in said(OUTSIDE, "double-bounce@elsewhere.example")


def test_the_sender_of_notices_when_the_name_of_the_box_is_no_destination() -> None:
    assert said(OUTSIDE, f"double-bounce@{HOST}", mydestination=()) == ""


@pytest.mark.parametrize(
    "local", ["a%elsewhere.example", "elsewhere.example!a", "a@elsewhere.example", '"a@b"', '"x!y"']
)
@pytest.mark.parametrize("domain", ["oreillynet.com", HOST, "[192.168.7.1]", "sub.oreillynet.com"])
def test_a_route_in_the_local_part_is_refused_from_outside(local: str, domain: str) -> None:
    policy = Policy(settings(**{**SITE, "relay_recipient_maps": ()}), own=lambda: ("192.168.7.1",))
    refusal = policy.refusal(OUTSIDE, Address(local, domain))
    assert refusal is not None
    assert (refusal.code, refusal.text) == (554, f"<{local}@{domain}>: Relay access denied")
    assert policy.refusal(INSIDE, Address(local, "elsewhere.example")) is None


def test_the_literals_of_others_are_elsewhere() -> None:
    assert "Relay access denied" in said(OUTSIDE, "printer@[198.51.100.1]")
    assert said(OUTSIDE, "printer@[198.51.100.1]", proxy_interfaces=("198.51.100.1",)) == ""


def test_a_domain_without_its_subdomains() -> None:
    only = {"parent_domain_matches_subdomains": (), "relay_recipient_maps": ()}
    assert said(OUTSIDE, "x@example.com", **only) == ""
    assert "Relay access denied" in said(OUTSIDE, "x@sub.example.com", **only)


def test_unlisted_recipients_where_nobody_minds() -> None:
    assert said(OUTSIDE, "nobody@example.com", smtpd_reject_unlisted_recipient=False) == ""


@pytest.mark.parametrize(
    ("words", "client", "recipient", "expected"),
    [
        (("permit_sasl_authenticated", "reject"), INSIDE, "user1@example.com", "Access denied"),
        (("permit_sasl_authenticated", "reject"), USER, "any@elsewhere.example", ""),
        (("permit_mynetworks", "defer_unauth_destination"), OUTSIDE, "a@elsewhere.example", "454 4.7.1"),
        (("permit_auth_destination", "reject"), OUTSIDE, "user1@example.com", ""),
        (("permit_auth_destination", "reject"), OUTSIDE, "a@elsewhere.example", "Access denied"),
        (("reject",), Client("127.0.0.1"), "a@elsewhere.example", "Access denied"),
    ],
)
def test_the_words_of_a_list(words: tuple[str, ...], client: Client, recipient: str, expected: str) -> None:
    refusal = said(client, recipient, smtpd_relay_restrictions=words)
    assert expected in refusal
    assert bool(expected) == bool(refusal)


def test_the_other_list_is_asked_too() -> None:
    more = {"smtpd_recipient_restrictions": ("permit_mynetworks", "reject")}
    assert said(INSIDE, "any@oreillynet.com", **more) == ""
    assert "Access denied" in said(OUTSIDE, "any@oreillynet.com", **more)
    assert "User unknown" in said(INSIDE, "nobody@example.com", **more)  # a permit does not make it known


def test_the_lists_of_old_main_cf() -> None:
    old = {
        "smtpd_relay_restrictions": (),
        "smtpd_recipient_restrictions": ("permit_mynetworks", "reject_unauth_destination"),
    }
    assert said(INSIDE, "any@elsewhere.example", **old) == ""
    assert "Relay access denied" in said(OUTSIDE, "any@elsewhere.example", **old)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("permit_mynetworks", "permit_sasl_authenticated", "reject_unauth_destination"), None),
        (("permit_sasl_authenticated", "reject"), None),
        (("permit_mynetworks", "defer_unauth_destination"), None),
        ((), "open relay"),
        (("permit_mynetworks",), "open relay"),
        (("reject_unauth_destination", "permit_mynetworks"), "open relay"),
        (("permit", "reject_unauth_destination"), "everybody"),
        (("permit_mynetwork", "reject"), "'permit_mynetwork' is not one of"),
    ],
)
def test_what_is_wrong_with_a_list(words: tuple[str, ...], problem: str | None) -> None:
    found = check_restrictions(words)
    assert (found is None) if problem is None else (problem in (found or ""))


def test_further_checks_may_end_as_they_like() -> None:
    assert check_restrictions((), relaying=False) is None
    assert check_restrictions(("permit",), relaying=False) is None
    assert check_restrictions(("nonsense",), relaying=False) is not None


@given(
    relay=st.lists(st.sampled_from((*RESTRICTIONS, "nonsense")), max_size=4),
    further=st.lists(st.sampled_from((*RESTRICTIONS, "nonsense")), max_size=4),
    local=st.sampled_from(["a", "a%b.example", "elsewhere!a", "postmaster", "double-bounce", ""]),
)
def test_never_an_open_relay_whatever_the_lists(relay: list[str], further: list[str], local: str) -> None:
    policy = Policy(
        settings(smtpd_relay_restrictions=tuple(relay), smtpd_recipient_restrictions=tuple(further), relay_domains=())
    )
    assert policy.refusal(OUTSIDE, Address(local, "elsewhere.example")) is not None


def test_every_word_is_known_to_both() -> None:
    for first, last in itertools.product(RESTRICTIONS, ("reject", "reject_unauth_destination")):
        found = check_restrictions((first, last))
        assert (found is None) == (first != "permit")
