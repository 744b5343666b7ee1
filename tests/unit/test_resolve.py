"""Next hops to hosts, and what a failed lookup means, against a DNS server that does as it is told."""

from __future__ import annotations

import asyncio
import random
import socket
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest

from edgemail.clock import ManualClock
from edgemail.errors import Kind
from edgemail.relay.send import resolve
from edgemail.relay.send.resolve import Host, ResolveError, Resolver, parse_nameserver
from edgemail.settings import Configuration, Settings
from tests.dns import FakeDns, Fault

THREE = {
    "example.com": {"MX": ["20 mail2.example.com.", "10 mail1.example.com.", "30 mail3.example.com."]},
    "mail1.example.com": {"A": ["192.0.2.1"]},
    "mail2.example.com": {"A": ["192.0.2.2"]},
    "mail3.example.com": {"A": ["192.0.2.3"]},
}


class Bench:
    """A resolver, its clock and its server."""

    def __init__(self, dns: FakeDns, own: Callable[[], Collection[str]] = frozenset, **given: Any) -> None:
        self.settings = Settings(
            **({"myhostname": "gw7.example.net", "dns_nameservers": (dns.address,)} | given),
        )
        self.clock = ManualClock()
        configuration = Configuration("", self.settings, ())
        self.resolver = Resolver(configuration, self.clock, own, shuffle=random.Random(7), seconds=1.0)

    async def hosts(self, hop: str, *, configured: bool = False) -> tuple[Host, ...]:
        return await self.resolver.hosts(hop, self.settings, configured=configured, domain=hop)

    def find(self, hop: str, *, configured: bool = False) -> tuple[Host, ...]:
        return asyncio.run(self.hosts(hop, configured=configured))

    def names(self, hop: str) -> list[str]:
        return [host.name for host in self.find(hop)]

    def refused(self, hop: str, *, configured: bool = False) -> tuple[Kind, str]:
        with pytest.raises(ResolveError) as error:
            self.find(hop, configured=configured)
        return error.value.kind, str(error.value.reply)


# ---- MX


def test_mx_hosts_come_in_order_of_preference() -> None:
    with FakeDns(THREE) as dns:
        found = Bench(dns).find("Example.COM")
    assert found == tuple(
        Host(f"mail{n}.example.com", ((socket.AF_INET, f"192.0.2.{n}"),), 25, n * 10) for n in (1, 2, 3)
    )


def test_no_mx_then_the_domain_is_its_own_host() -> None:  # A or AAAA
    with FakeDns({"four.example": {"A": ["192.0.2.4"]}, "six.example": {"AAAA": ["2001:db8::6"], "TXT": ["x"]}}) as dns:
        bench = Bench(dns)
        assert bench.find("four.example") == (Host("four.example", ((socket.AF_INET, "192.0.2.4"),), 25, 0),)
        assert bench.find("six.example") == (Host("six.example", ((socket.AF_INET6, "2001:db8::6"),), 25, 0),)


@pytest.mark.parametrize("by_proxy", [False, True])
def test_own_and_worse_hosts_are_dropped(by_proxy: bool) -> None:
    with FakeDns(THREE) as dns:
        if by_proxy:
            bench = Bench(dns, proxy_interfaces=("192.0.2.2",))
        else:
            bench = Bench(dns, own=lambda: ("127.0.0.1", "192.0.2.2"))
        assert bench.names("example.com") == ["mail1.example.com"]
        dns.fail("mail1.example.com", Fault.SERVFAIL)
        bench = Bench(dns, own=lambda: ("192.0.2.2",))
        expected = "451 4.4.4 unable to find primary relay for example.com"
        assert bench.refused("example.com") == (Kind.MESSAGE_TEMPORARY, expected)
        assert Bench(dns, myhostname="mail3.example.com").names("example.com") == ["mail2.example.com"]


@pytest.mark.parametrize("by_proxy", [False, True])
def test_best_mx_is_ourselves(by_proxy: bool, caplog: pytest.LogCaptureFixture) -> None:
    own = {"proxy_interfaces": ("[192.0.2.1]",)} if by_proxy else {"own": lambda: ("192.0.2.1",)}
    with FakeDns(THREE) as dns:
        bench = Bench(dns, **own)
        loop = "4.6 mail for example.com loops back to myself"
        assert bench.refused("example.com") == (Kind.MESSAGE_PERMANENT, "554 5." + loop)
        assert caplog.messages == ["warning: mailer loop: best MX host for example.com is local"]
        assert bench.refused("example.com", configured=True) == (Kind.ROUTE, "451 4." + loop)


def test_equal_preference_with_ourselves_is_dropped() -> None:
    zones = THREE | {"example.com": {"MX": ["10 mail1.example.com.", "10 mail2.example.com."]}}
    with FakeDns(zones) as dns:
        assert Bench(dns, own=lambda: ("192.0.2.2",)).refused("example.com")[0] is Kind.MESSAGE_PERMANENT


def test_another_port_is_not_ourselves() -> None:
    with FakeDns({"a.example": {"A": ["192.0.2.1"]}}) as dns:
        bench = Bench(dns, own=lambda: ("192.0.2.1",))
        assert bench.refused("a.example")[1] == "554 5.4.6 mail for a.example loops back to myself"
        assert bench.find("a.example:2525")[0].port == 2525
        assert bench.refused("[192.0.2.1]")[1] == "554 5.4.6 mail for [192.0.2.1] loops back to myself"
        assert bench.find("[192.0.2.1]", configured=True)[0].name == "192.0.2.1"


def test_equal_preference_is_shuffled_or_as_received() -> None:
    zones = THREE | {"example.com": {"MX": ["10 mail2.example.com.", "10 mail1.example.com.", "5 mail3.example.com."]}}
    with FakeDns(zones) as dns:
        bench = Bench(dns)
        orders = {tuple(bench.names("example.com")) for _ in range(40)}
        kept = Bench(dns, smtp_randomize_addresses=False)
        received = {tuple(kept.names("example.com")) for _ in range(10)}
    assert {order[0] for order in orders} == {"mail3.example.com"}
    assert len(orders) == 2
    assert received == {("mail3.example.com", "mail2.example.com", "mail1.example.com")}


def test_null_mx() -> None:
    with FakeDns(
        {
            "n.example": {"MX": ["0 ."], "A": ["192.0.2.1"]},
            "m.example": {"MX": ["0 .", "5 m.example."], "A": ["192.0.2.1"]},
        }
    ) as dns:
        bench = Bench(dns)
        text = "Domain n.example does not accept mail (nullMX)"
        assert bench.refused("n.example") == (Kind.MESSAGE_PERMANENT, f"556 5.1.10 {text}")
        assert bench.refused("n.example", configured=True) == (Kind.ROUTE, f"451 4.1.10 {text}")
        assert bench.names("m.example") == ["m.example"]
        assert dns.asked(".", "A") == 0


def test_mx_that_is_an_alias_is_tolerated() -> None:
    zones = {
        "a.example": {"MX": ["5 mx.a.example."]},
        "mx.a.example": {"CNAME": ["real.example."]},
        "real.example": {"A": ["192.0.2.8"]},
    }
    with FakeDns(zones) as dns:
        assert Bench(dns).find("a.example") == (Host("mx.a.example", ((socket.AF_INET, "192.0.2.8"),), 25, 5),)


def test_numeric_mx_is_skipped(caplog: pytest.LogCaptureFixture) -> None:
    zones = {
        "a.example": {"MX": ["5 192.0.2.1.", "7 b.example."]},
        "b.example": {"A": ["192.0.2.2"]},
        "192.0.2.1": {"A": ["192.0.2.1"]},
    }
    with FakeDns(zones) as dns:
        assert Bench(dns).names("a.example") == ["b.example"]
    assert caplog.messages == ["warning: numeric domain name in resource data of MX record for a.example: 192.0.2.1"]


def test_u_label() -> None:
    with FakeDns({"xn--bcher-kva.example": {"A": ["192.0.2.4"]}}) as dns:
        assert Bench(dns).names("bücher.example") == ["xn--bcher-kva.example"]


def test_many_mx_hosts_have_a_bound() -> None:
    zones: dict[str, dict[str, list[str]]] = {"many.example": {"MX": [f"{n} m{n}.example." for n in range(60)]}}
    zones |= {f"m{n}.example": {"A": ["192.0.2.9"]} for n in range(60)}
    with FakeDns(zones) as dns:
        assert Bench(dns).names("many.example") == [f"m{n}.example" for n in range(resolve.MAX_MX)]


# ---- failures


def error(name: str, rdtype: str, text: str) -> str:
    return f"Name service error for name={name} type={rdtype}: {text}"


NO_DATA = "Host found but no data record of requested type"
NOT_FOUND = "Host not found"
TRY_AGAIN = "Host not found, try again"


def test_neither_mx_nor_address() -> None:
    with FakeDns({"e.example": {"TXT": ["nothing here"]}}) as dns:
        bench = Bench(dns)
        no_data, no_name = error("e.example", "A", NO_DATA), error("gone.example", "A", NOT_FOUND)
        assert bench.refused("e.example") == (Kind.MESSAGE_PERMANENT, f"550 5.1.2 {no_data}")
        assert bench.refused("gone.example") == (Kind.MESSAGE_PERMANENT, f"550 5.1.2 {no_name}")
        assert bench.refused("e.example", configured=True) == (Kind.ROUTE, f"451 4.1.2 {no_data}")
        assert bench.refused("gone.example", configured=True) == (Kind.ROUTE, f"451 4.1.2 {no_name}")
        assert bench.refused("[gone.example]", configured=True) == (Kind.ROUTE, f"451 4.1.2 {no_name}")


def test_no_such_domain_bounces_only_if_the_resolver_reaches_the_world() -> None:
    with FakeDns(root=False) as dns:  # a router without a link: everything is NXDOMAIN
        text = error("gone.example", "A", NOT_FOUND)
        assert Bench(dns).refused("gone.example") == (Kind.LINK, f"451 4.1.2 {text}")


def test_a_recent_mx_is_proof_enough() -> None:
    with FakeDns(THREE, root=False) as dns:
        bench = Bench(dns)
        bench.find("example.com")
        assert bench.refused("gone.example")[0] is Kind.MESSAGE_PERMANENT
        bench.clock.advance(resolve.PROOF_SECONDS)
        assert bench.refused("gone.example")[0] is Kind.LINK


def test_addresses_of_mx_hosts_that_nobody_tells() -> None:
    with FakeDns(THREE) as dns:
        bench = Bench(dns)
        for name in ("mail1", "mail2", "mail3"):
            dns.fail(f"{name}.example.com", Fault.SERVFAIL)
        text = "451 4.4.4 " + error("mail3.example.com", "A", TRY_AGAIN)
        assert bench.refused("example.com") == (Kind.MESSAGE_TEMPORARY, text)
        for name in ("mail1", "mail2", "mail3"):
            dns.fail(f"{name}.example.com", Fault.SILENT)
        assert bench.refused("example.com") == (Kind.LINK, text)


def test_an_address_is_no_proof() -> None:
    with FakeDns({"nas.lan": {"A": ["192.0.2.1"]}}, root=False) as dns:  # the router knows the hosts of its LAN
        bench = Bench(dns)
        assert bench.names("nas.lan") == ["nas.lan"]
        assert bench.refused("gone.example")[0] is Kind.LINK


def test_mx_hosts_without_an_address_always_defer(caplog: pytest.LogCaptureFixture) -> None:
    with FakeDns({"example.com": {"MX": ["10 mail.seaglass.com."]}}) as dns:
        bench = Bench(dns)
        text = error("mail.seaglass.com", "A", NOT_FOUND)
        assert bench.refused("example.com") == (Kind.MESSAGE_TEMPORARY, f"451 4.4.4 {text}")
        assert caplog.messages == ["warning: no MX host for example.com has a valid A record"]
        assert bench.refused("example.com", configured=True)[0] is Kind.ROUTE


@pytest.mark.parametrize("fault", [Fault.SERVFAIL, Fault.REFUSED])
@pytest.mark.parametrize(("configured", "kind"), [(False, Kind.MESSAGE_TEMPORARY), (True, Kind.ROUTE)])
def test_servers_of_one_domain_fail(fault: Fault, configured: bool, kind: Kind) -> None:
    with FakeDns(THREE) as dns:
        dns.fail("example.com", fault)
        expected = (kind, "451 4.4.3 " + error("example.com", "MX", TRY_AGAIN))
        assert Bench(dns).refused("example.com", configured=configured) == expected


@pytest.mark.parametrize("fault", [Fault.SERVFAIL, Fault.REFUSED, Fault.SILENT, Fault.GARBAGE])
@pytest.mark.parametrize("configured", [False, True])
def test_resolver_that_answers_nothing_is_the_link(fault: Fault, configured: bool) -> None:
    with FakeDns(THREE) as dns:
        dns.fail("*", fault)
        bench = Bench(dns)
        expected = (Kind.LINK, "451 4.4.3 " + error("example.com", "MX", TRY_AGAIN))
        assert bench.refused("example.com", configured=configured) == expected
        dns.fail("*", None)
        assert len(bench.find("example.com")) == 3


def test_no_nameserver_there(tmp_path: Path) -> None:
    with FakeDns() as dns:
        pass
    expected = (Kind.LINK, "451 4.4.3 " + error("example.com", "MX", TRY_AGAIN))
    assert Bench(dns).refused("example.com") == expected

    settings = Settings(myhostname="gw7.example.net")
    resolver = Resolver(
        Configuration("", settings, ()), ManualClock(), resolv_conf=tmp_path / "resolv.conf", seconds=1.0
    )
    with pytest.raises(ResolveError) as error_without_file:
        asyncio.run(resolver.hosts("example.com", settings, configured=False, domain="example.com"))
    assert error_without_file.value.kind is Kind.LINK


def test_one_of_several_mx_lookups_fails() -> None:
    with FakeDns(THREE) as dns:
        dns.fail("mail1.example.com", Fault.SERVFAIL)
        assert Bench(dns).names("example.com") == ["mail2.example.com", "mail3.example.com"]


def test_one_family_fails() -> None:
    with FakeDns(THREE) as dns:
        dns.fail("mail1.example.com/AAAA", Fault.SERVFAIL)
        assert Bench(dns).names("example.com")[0] == "mail1.example.com"


def test_truncated_and_slow_answers_are_answers() -> None:
    with FakeDns(THREE) as dns:
        dns.fail("example.com", Fault.TRUNCATED)
        dns.fail("mail1.example.com", Fault.SLOW)
        assert len(Bench(dns).find("example.com")) == 3
        assert ("example.com", "MX", "tcp") in dns.questions


def test_bad_hop() -> None:
    with FakeDns() as dns:
        assert Bench(dns).refused("a..b")[0] is Kind.MESSAGE_PERMANENT
        assert Bench(dns).refused("[a", configured=True)[0] is Kind.ROUTE


# ---- addresses

BOTH = {"b.example": {"A": ["192.0.2.1", "192.0.2.2"], "AAAA": ["2001:db8::1", "2001:db8::2", "2001:db8::3"]}}


@pytest.mark.parametrize(
    ("given", "order"),
    [
        ({}, "646466"[:5]),
        ({"smtp_address_preference": "ipv4"}, "44666"),
        ({"smtp_address_preference": "ipv6"}, "66644"),
        ({"inet_protocols": ("ipv4",)}, "44"),
        ({"inet_protocols": ("ipv6",)}, "666"),
    ],
)
def test_families(given: dict[str, Any], order: str) -> None:
    with FakeDns(BOTH) as dns:
        (host,) = Bench(dns, **given).find("b.example")
    assert "".join("6" if family is socket.AF_INET6 else "4" for family, _ in host.addresses) == order
    assert len(set(host.addresses)) == len(order)


@pytest.mark.parametrize("hop", ["[192.0.2.1]:587", "[IPv6:2001:db8::1]:587"])
def test_address_literal_is_not_looked_up(hop: str) -> None:
    with FakeDns() as dns:
        (host,) = Bench(dns).find(hop, configured=True)
        assert not dns.questions
    assert (host.name, host.port) == (host.addresses[0][1], 587)
    assert host.name in ("192.0.2.1", "2001:db8::1")


def test_bracketed_host_has_no_mx_lookup() -> None:
    with FakeDns({"a.example": {"A": ["192.0.2.4"], "MX": ["1 b.example."]}}) as dns:
        assert Bench(dns).find("[a.example]:587", configured=True) == (
            Host("a.example", ((socket.AF_INET, "192.0.2.4"),), 587, 0),
        )
        assert Bench(dns, disable_dns_lookups=True).names("a.example") == ["a.example"]
        assert dns.asked("a.example", "MX") == 0


def test_library_is_asked_without_nameservers_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []

    def getaddrinfo(host: str, port: None, family: int, kind: int) -> list[Any]:
        asked.append((host, family))
        if host == "dead.example":
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        if host == "gone.example":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET6, kind, 6, "", ("::7", 0, 0, 0)), (socket.AF_INET, kind, 6, "", ("192.0.2.7", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with FakeDns() as dns:
        bench = Bench(dns, dns_nameservers=())
        (host,) = bench.find("[a.example]", configured=True)
        assert host.addresses == ((socket.AF_INET6, "::7"), (socket.AF_INET, "192.0.2.7"))
        assert (
            Bench(dns, dns_nameservers=(), smtp_address_preference="ipv4").find("[a.example]")[0].addresses[0][1]
            == "192.0.2.7"
        )
        Bench(dns, dns_nameservers=(), inet_protocols=("ipv4",)).find("[a.example]")
        assert asked == [("a.example", 0), ("a.example", 0), ("a.example", socket.AF_INET)]
        assert bench.refused("[dead.example]", configured=True) == (
            Kind.LINK,
            "451 4.4.3 " + error("dead.example", "A", TRY_AGAIN),
        )
        assert bench.refused("[gone.example]", configured=True) == (
            Kind.ROUTE,
            "451 4.1.2 " + error("gone.example", "A", NOT_FOUND),
        )


def test_hanging_library_call_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    release = threading.Event()

    def getaddrinfo(*_: Any) -> list[Any]:
        release.wait(30)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    settings = Settings(myhostname="gw7.example.net")

    async def scenario() -> None:
        resolver = Resolver(Configuration("", settings, ()), ManualClock(), seconds=0.05)
        hops = [f"[h{n}.example]" for n in range(9)]
        results = await asyncio.gather(
            *(resolver.hosts(hop, settings, configured=True, domain="") for hop in hops), return_exceptions=True
        )
        assert [getattr(result, "kind", None) for result in results] == [Kind.LINK] * 9
        assert [thread.daemon for thread in threading.enumerate() if thread.name == "hostnames"] == [True] * 4
        release.set()

    asyncio.run(scenario())


def test_literals_and_bracketed_hosts_do_without_dnspython() -> None:
    code = """
import asyncio, sys
from edgemail.clock import SystemClock
from edgemail.relay.send.resolve import Resolver
from edgemail.settings import Configuration, Settings
settings = Settings(myhostname="gw7.example.net")
resolver = Resolver(Configuration("", settings, ()), SystemClock())
for hop in ("[192.0.2.1]:587", "[localhost]:25"):
    print(asyncio.run(resolver.hosts(hop, settings, configured=True, domain="x"))[0].port)
print("dns" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["587", "25", "False"]


# ---- what is kept


def test_answers_are_kept_for_their_ttl_and_forgotten_at_a_reload() -> None:
    with FakeDns(THREE) as dns:
        bench = Bench(dns)
        bench.find("example.com")
        bench.find("example.com")
        assert dns.asked("example.com", "MX") == 1
        bench.clock.advance(301)
        bench.find("example.com")
        assert dns.asked("example.com", "MX") == 2
        bench.resolver.reload(Configuration("", bench.settings, ()))
        bench.find("example.com")
        assert dns.asked("example.com", "MX") == 3


def test_changed_resolv_conf_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dns.asyncresolver

    path = tmp_path / "resolv.conf"
    path.write_text("search should.not.matter\n")
    settings = Settings(myhostname="gw7.example.net")
    resolver = Resolver(Configuration("", settings, ()), ManualClock(), resolv_conf=path, seconds=1.0)
    ports: list[int] = []
    read = dns.asyncresolver.Resolver.read_resolv_conf

    def read_with_port(self: dns.asyncresolver.Resolver, file: str) -> None:
        read(self, file)
        self.port = ports[-1]

    def find() -> str:
        found = asyncio.run(resolver.hosts("a.example", settings, configured=False, domain="a.example"))
        return found[0].addresses[0][1]

    monkeypatch.setattr(dns.asyncresolver.Resolver, "read_resolv_conf", read_with_port)
    with pytest.raises(ResolveError):
        find()
    by_mx = {"a.example": {"MX": ["1 m.example."]}, "m.example": {"A": ["192.0.2.1"]}}
    with FakeDns(by_mx) as one, FakeDns({"a.example": {"A": ["192.0.2.2"]}}) as two:
        ports.append(one.port)
        path.write_text(f"nameserver {one.host}\n")
        assert find() == "192.0.2.1"
        ports.append(two.port)
        assert find() == "192.0.2.1"
        path.write_text(f"# another network\nnameserver {two.host}\n")
        assert find() == "192.0.2.2"


def test_cache_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "MAX_CACHE", 3)
    with FakeDns({f"h{n}.example": {"A": [f"192.0.2.{n}"]} for n in range(9)}) as dns:
        bench = Bench(dns, inet_protocols=("ipv4",))
        for n in (*range(9), 8):
            bench.find(f"[h{n}.example]")
        assert dns.asked("h8.example", "A") == 1
        assert len(bench.resolver._cache) == 3


# ---- clients


def test_peername_is_confirmed_or_unknown() -> None:
    zones = {
        "7.2.0.192.in-addr.arpa": {"PTR": ["Printer.example."]},
        "printer.example": {"A": ["192.0.2.7"]},
        "8.2.0.192.in-addr.arpa": {"PTR": ["liar.example."]},
        "liar.example": {"A": ["192.0.2.9"]},
        "9.2.0.192.in-addr.arpa": {"PTR": ["bad\\032name.example."]},
    }
    with FakeDns(zones) as dns:
        resolver = Bench(dns).resolver

        async def scenario() -> list[str]:
            return [
                await resolver.peername(address)
                for address in ("192.0.2.7", "192.0.2.8", "192.0.2.9", "192.0.2.6", "unknown")
            ]

        assert asyncio.run(scenario()) == ["printer.example", "unknown", "unknown", "unknown", "unknown"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("192.0.2.53", ("192.0.2.53", 53)),
        ("2001:db8::53", ("2001:db8::53", 53)),
        ("[2001:db8::53]:5353", ("2001:db8::53", 5353)),
        ("[192.0.2.53]", ("192.0.2.53", 53)),
        ("192.0.2.53:5353", ("192.0.2.53", 5353)),
    ],
)
def test_nameserver(text: str, found: tuple[str, int]) -> None:
    assert parse_nameserver(text) == found


@pytest.mark.parametrize("text", ["ns.example", "[192.0.2.53]:0", "192.0.2", ""])
def test_wrong_nameserver(text: str) -> None:
    with pytest.raises(ValueError, match="is no nameserver"):
        parse_nameserver(text)
