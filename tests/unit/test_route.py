"""Where a recipient goes: classes in their order, transport rows, next hops as written."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from edgemail.clock import ManualClock
from edgemail.envelope import NULL_SENDER, Address, Disposal, Envelope, Recipient, Route
from edgemail.errors import TableError
from edgemail.relay.send.hop import Hop, parse_hop
from edgemail.relay.send.route import POSTMASTER_WAITS, Router, class_conflicts, parse_row
from edgemail.settings import Configuration, Settings


def settings(**given: Any) -> Settings:
    named: dict[str, Any] = {
        "myhostname": "gw7.example.com",
        "mydomain": "example.com",
        "myorigin": "example.com",
        "mydestination": ("gw7.example.com", "localhost.example.com", "localhost"),
    }
    return Settings(**(named | given))


def configuration(transports: dict[str, Settings] | None = None, **given: Any) -> Configuration:
    return Configuration("/etc/edgemail/edgemail.toml", settings(**given), (), transports or {})


def router(**given: Any) -> Router:
    return Router(configuration(**given))


def rows(*pairs: tuple[str, str]) -> tuple[tuple[tuple[str, str], ...], ...]:
    return (pairs,)


def sent(router: Router, recipient: str) -> tuple[Route, str]:
    envelope = Envelope(1, NULL_SENDER, ())
    route, address = router.route(envelope, Recipient(Address.of(recipient)))
    assert router.route_address(Address.of(recipient)) == route
    return route, str(address)


# ---- classes


@pytest.mark.parametrize(
    ("given", "recipient", "route", "address"),
    [
        # everything else to the smarthost, or by the recipient's own MX
        ({}, "u@other.example", Route("smtp", ("other.example",)), None),
        ({"relayhost": ("smtp.isp.example",)}, "u@o.example", Route("smtp", ("smtp.isp.example",), True), None),
        (
            {"relayhost": ("[smtp.isp.example]:587", "[b.example]")},
            "u@o.example",
            Route("smtp", ("[smtp.isp.example]:587", "[b.example]"), True),
            None,
        ),
        ({"default_transport": "slow"}, "u@o.example", Route("slow", ("o.example",)), None),
        ({"default_transport": "smtp:[gw]"}, "u@o.example", Route("smtp", ("[gw]",), True), None),
        (
            {"default_transport": "smtp:[gw]", "relayhost": ("[isp]",)},
            "u@o.example",
            Route("smtp", ("[gw]",), True),
            None,
        ),
        ({"default_transport": "error:5.4.1 offline"}, "u@o.example", ("error", "offline", "5.4.1"), None),
        # relayed domains, the subdomains too, and relayhost for them as for all
        ({"relay_domains": ("example.org",)}, "u@sub.example.org", Route("relay", ("sub.example.org",)), None),
        (
            {"relay_domains": ("example.org",), "relayhost": ("[10.15.1.65]",)},
            "u@example.org",
            Route("relay", ("[10.15.1.65]",), True),
            None,
        ),
        ({"relayhost": ("[10.15.1.65]",)}, "u@other.tld", Route("smtp", ("[10.15.1.65]",), True), None),
        (
            {"relay_domains": ("example.org",), "relay_transport": "relay:[inner]:26"},
            "u@example.org",
            Route("relay", ("[inner]:26",), True),
            None,
        ),
        # literals and U-labels
        ({}, "u@[192.0.2.1]", Route("smtp", ("[192.0.2.1]",)), None),
        ({}, "u@[IPv6:2001:db8::1]", Route("smtp", ("[IPv6:2001:db8::1]",)), None),
        ({}, "u@bücher.example", Route("smtp", ("xn--bcher-kva.example",)), None),
        ({}, "u@[nonsense]", ("error", "Bad destination domain: '[nonsense]' is no address literal", "5.1.2"), None),
        ({}, "u@a..b", ("error", "Bad destination domain: 'a..b': 'a..b' is no host name", "5.1.2"), None),
        # bare recipients are completed; append_dot_mydomain
        ({}, "kdent", Route("smtp", ("example.com",)), "kdent@example.com"),
        ({"append_dot_mydomain": True}, "u@host", Route("smtp", ("host.example.com",)), "u@host.example.com"),
        ({"append_dot_mydomain": True}, "u@[192.0.2.1]", Route("smtp", ("[192.0.2.1]",)), None),
        (
            {"append_dot_mydomain": True, "myorigin": "box"},
            "u",
            Route("smtp", ("box.example.com",)),
            "u@box.example.com",
        ),
        # mydestination: not known here any more
        ({}, "bob@GW7.example.com", ("error", "User unknown in local recipient table", "5.1.1"), None),
        ({"relayhost": ("[isp]",)}, "bob@gw7.example.com", Route("smtp", ("[isp]",), True), None),
        (
            {"transport_maps": rows(("bob@gw7.example.com", "relay:[inner]"))},
            "Bob@GW7.example.com",
            Route("relay", ("[inner]",), True),
            None,
        ),
        # the fallback relay is the last hop
        (
            {"smtp_fallback_relay": ("[fb.example]",)},
            "u@o.example",
            Route("smtp", ("o.example", "[fb.example]")),
            None,
        ),
        (
            {"smtp_fallback_relay": ("[fb.example]",), "relayhost": ("[isp]", "[fb.example]")},
            "u@o.example",
            Route("smtp", ("[isp]", "[fb.example]"), True),
            None,
        ),
    ],
)
def test_class(given: dict[str, Any], recipient: str, route: Route | tuple[str, ...], address: str | None) -> None:
    found, to = sent(router(**given), recipient)
    if isinstance(route, tuple):
        assert (found.disposal.value, found.text, found.status) == route
    else:
        assert found == route
    assert to == (address or recipient)


# ---- transport rows

TRANSPORTS = rows(
    ("kdent@ora.com", "error:no mail accepted for kdent"),
    ("gone@ora.com", "error:5.1.6 moved"),
    ("example.com", "smtp:[192.168.23.56]:20025"),
    ("oreilly.com", "relay:[gateway.oreilly.com]"),
    ("hr.example.net", "relay:[mail1]"),
    ("sales.example.net", "relay:[mail2]"),
    ("sleepy.example", "ondemand"),
    ("direct.example", "smtp:"),
    ("hop.example", ":[other]:26"),
    ("same.example", ":"),
    ("two.example", "relay:[one]:25, [two]"),
    (".up.example", "smtp:[up]"),
    ("drop.example", "discard:not wanted"),
    ("keep.example", "hold:"),
    ("wrong.example", "smtp:192.0.2.1"),
    ("[192.0.2.9]", "smtp:[nat]:2525"),
    ("bücher.example", "relay:[books]"),
)


@pytest.mark.parametrize(
    ("recipient", "expected"),
    [
        ("kdent@ora.com", ("error", "no mail accepted for kdent", "5.0.0")),
        ("KDENT@Ora.Com", ("error", "no mail accepted for kdent", "5.0.0")),
        ("gone@ora.com", ("error", "moved", "5.1.6")),
        ("x@ora.com", ("smtp", ("[isp]",), True)),
        ("x@example.com", ("smtp", ("[192.168.23.56]:20025",), True)),
        ("x@oreilly.com", ("relay", ("[gateway.oreilly.com]",), True)),
        ("x@sub.oreilly.com", ("smtp", ("[isp]",), True)),  # `dom` is not its subdomains
        ("x@hr.example.net", ("relay", ("[mail1]",), True)),
        ("x@sales.example.net", ("relay", ("[mail2]",), True)),
        ("x@sleepy.example", ("ondemand", ("sleepy.example",), False)),
        ("x@direct.example", ("smtp", ("direct.example",), False)),
        ("x@hop.example", ("smtp", ("[other]:26",), True)),
        ("x@same.example", ("smtp", ("[isp]",), True)),
        ("x@two.example", ("relay", ("[one]:25", "[two]"), True)),
        ("x@a.b.up.example", ("smtp", ("[up]",), True)),
        ("x@up.example", ("smtp", ("[isp]",), True)),
        ("x@drop.example", ("discard", "not wanted", "")),
        ("x@keep.example", ("hold", "held by a transport row", "")),
        (
            "x@wrong.example",
            (
                "hold",
                "wrong row in transport_maps: '192.0.2.1': an address as next hop stands in brackets: [192.0.2.1]",
                "",
            ),
        ),
        ("x@[192.0.2.9]", ("smtp", ("[nat]:2525",), True)),
        ("x@xn--bcher-kva.example", ("smtp", ("[isp]",), True)),
        ("x@Bücher.example", ("relay", ("[books]",), True)),
    ],
)
def test_transport_row(recipient: str, expected: tuple[Any, ...]) -> None:
    found, _ = sent(router(transport_maps=TRANSPORTS, relayhost=("[isp]",)), recipient)
    if isinstance(expected[1], tuple):
        assert (found.transport, found.hops, found.configured) == expected
    else:
        assert (found.disposal.value, found.text, found.status) == expected


def test_user_before_domain_before_parents_before_star() -> None:
    table = rows(
        ("*", "smtp:[rest]"),
        (".example.org", "smtp:[below]"),
        ("a.example.org", "smtp:[dom]"),
        ("u@a.example.org", "smtp:[user]"),
    )
    found = router(transport_maps=table)
    hops = [sent(found, to)[0].hops[0] for to in ("u@a.example.org", "v@a.example.org", "v@b.example.org", "v@x.tld")]
    assert hops == ["[user]", "[dom]", "[below]", "[rest]"]


def test_parents_match_where_the_setting_says_so() -> None:
    table = rows(("example.org", "smtp:[dom]"))
    found = router(transport_maps=table, parent_domain_matches_subdomains=("transport_maps",))
    assert sent(found, "u@a.example.org")[0].hops == ("[dom]",)


def test_relayed_domain_keeps_its_class_where_a_row_names_only_the_hop() -> None:
    found = router(transport_maps=rows(("example.org", ":[inner]")), relay_domains=("example.org",))
    assert sent(found, "u@example.org")[0] == Route("relay", ("[inner]",), True)


def test_fallback_relay_is_the_transports_own() -> None:
    slow = settings(smtp_fallback_relay=("[slow.fallback]",))
    found = Router(configuration({"slow": slow}, transport_maps=rows(("slow.example", "slow:"))))
    assert sent(found, "u@slow.example")[0].hops == ("slow.example", "[slow.fallback]")
    assert sent(found, "u@fast.example")[0].hops == ("fast.example",)


# ---- the box's own names


@pytest.mark.parametrize("name", ["postmaster", "Root", "ABUSE", "Mailer-Daemon"])
@pytest.mark.parametrize("domain", ["", "@gw7.example.com", "@LOCALHOST", "@[192.0.2.7]", "@[203.0.113.1]"])
def test_standard_names_go_to_the_admin(name: str, domain: str) -> None:
    found = Router(
        configuration(admin_address="admin@isp.example", proxy_interfaces=("203.0.113.1",)),
        own=lambda: ("127.0.0.1", "192.0.2.7"),
    )
    route, address = sent(found, name + domain)
    assert route == Route("smtp", ("isp.example",))
    assert address == "admin@isp.example"

    nobody = Router(configuration(proxy_interfaces=("203.0.113.1",)), own=lambda: ("127.0.0.1", "192.0.2.7"))
    route, address = sent(nobody, name + domain)
    assert route.disposal is Disposal.HOLD
    assert route.text == POSTMASTER_WAITS


def test_standard_names_elsewhere_are_other_peoples() -> None:
    found = router(admin_address="admin@isp.example")
    assert sent(found, "postmaster@other.example") == (Route("smtp", ("other.example",)), "postmaster@other.example")


@pytest.mark.parametrize(
    ("admin", "says"),
    [
        ("root@gw7.example.com", "is this box itself"),
        ("postmaster@localhost", "is this box itself"),
        ("bob@gw7.example.com", "cannot be reached: User unknown"),
        ("x@drop.example", "cannot be reached"),
    ],
)
def test_admin_address_that_leads_back_here_holds_the_mail(admin: str, says: str) -> None:
    found = router(admin_address=admin, transport_maps=rows(("drop.example", "discard:")))
    route, address = sent(found, "postmaster")
    assert route.disposal is Disposal.HOLD
    assert says in route.text
    assert address == "postmaster@example.com"


def test_bare_admin_address_is_completed() -> None:
    assert sent(router(admin_address="ann"), "root")[1] == "ann@example.com"


@pytest.mark.parametrize("recipient", ["double-bounce", "Double-Bounce@gw7.example.com", "double-bounce@example.com"])
def test_mail_to_double_bounce_is_dropped(recipient: str) -> None:
    assert sent(router(relayhost=("[isp]",)), recipient)[0].disposal is Disposal.DISCARD


def test_double_bounce_elsewhere_is_not_ours() -> None:
    assert sent(router(), "double-bounce@other.example")[0].disposal is Disposal.RELAY


# ---- reload


def test_table_and_configuration_change(tmp_path: Path) -> None:
    clock = ManualClock()
    (tmp_path / "transport").write_text("a.example smtp:[one]\n")
    first = dataclasses.replace(
        configuration(transport_maps=("texthash:transport",)), path=str(tmp_path / "edgemail.toml")
    )
    found = Router(first, monotonic=clock.monotonic)
    assert sent(found, "u@a.example")[0].hops == ("[one]",)
    (tmp_path / "new").write_text("a.example smtp:[two]\n")
    (tmp_path / "new").rename(tmp_path / "transport")
    clock.advance(1)
    assert sent(found, "u@a.example")[0].hops == ("[two]",)
    with pytest.raises(TableError):
        found.reload(configuration(transport_maps=("texthash:/nowhere/at/all",)))
    assert sent(found, "u@a.example")[0].hops == ("[two]",)
    found.reload(configuration(relayhost=("[isp]",)))
    assert sent(found, "u@a.example")[0].hops == ("[isp]",)


# ---- next hops as written


@pytest.mark.parametrize(
    ("text", "hop"),
    [
        ("smtp.isp.example", Hop("smtp.isp.example", True, 25)),
        ("SMTP.isp.Example:submission", Hop("smtp.isp.example", True, 587)),
        ("[smtp.isp.example]:587", Hop("smtp.isp.example", False, 587)),
        ("[mail_1]", Hop("mail_1", False, 25)),
        ("[192.168.23.56]:20025", Hop("192.168.23.56", False, 20025)),
        ("[2001:DB8::1]", Hop("2001:db8::1", False, 25)),
        ("[IPv6:2001:db8::1]:submissions", Hop("2001:db8::1", False, 465)),
        ("[h]:smtps", Hop("h", False, 465)),
        ("[h]:smtp", Hop("h", False, 25)),
        ("bücher.example", Hop("xn--bcher-kva.example", True, 25)),
    ],
)
def test_hop(text: str, hop: Hop) -> None:
    assert parse_hop(text, 25) == hop
    assert hop.literal == (hop.host[0] in "12")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("192.0.2.1", r"stands in brackets: \[192.0.2.1\]"),
        ("192.0.2.1:25", r"stands in brackets: \[192.0.2.1\]"),
        ("2001:db8::1", r"stands in brackets: \[2001:db8::1\]"),
        ("[h", "is no next hop"),
        ("[h]25", "is no next hop"),
        ("", "is no next hop"),
        ("smtp:[h]", "is no next hop"),
        ("[h]:0", "a port is from 1 to 65535"),
        ("[h]:70000", "a port is from 1 to 65535"),
        ("[h]:nosuchservice", "no service 'nosuchservice'"),
        ("[300.1.1.1]", "is no host name"),
        ("[a b]", "is no next hop"),
        ("-a.example", "is no host name"),
        ("a" * 64 + "." + "b" * 200, "is no host name"),
    ],
)
def test_wrong_hop_is_explained(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_hop(text, 25)


def test_wrong_row_is_explained() -> None:
    with pytest.raises(ValueError, match=r"expected transport:nexthop, for example relay:\[gateway.example\]"):
        parse_row("[gateway.example]")
    with pytest.raises(ValueError, match=r"error: takes a status 5\.x\.y"):
        parse_row("error:4.7.1 later")


def test_domain_in_two_classes() -> None:
    given = settings(relay_domains=("Localhost", "example.org", "./file"))
    assert class_conflicts(given) == ["do not list domain Localhost in BOTH mydestination and relay_domains"]
    assert class_conflicts(settings(relay_domains=("example.com",))) == []
