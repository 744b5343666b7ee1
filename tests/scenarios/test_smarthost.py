"""Mail through a smarthost: how it is found, TLS, logins, and that nothing which is wrong with it ever bounces mail."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.dns import Fault
from tests.peers.ports import free_port
from tests.scenarios.internet import HASTY, Internet, gone, table, tried
from tests.scenarios.relay import LISTENER, Relay, relay
from tests.scenarios.sink import Sink
from tests.servers import PLAIN, RESET, STALL, Authority

SECRET = "quixote's ~w0rd"
AUTH = (*PLAIN, "AUTH PLAIN LOGIN")
SHORT_LIFE = 'maximal_queue_lifetime = "1s"\nbounce_queue_lifetime = "1s"\n'


@pytest.fixture(scope="module")
def net() -> Iterator[Internet]:
    with Internet() as found:
        yield found


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def passwords(directory: Path, **logins: str) -> str:
    """A file of passwords as the guides have it; the lines of TOML that use it."""
    path = directory / "sasl_passwd"
    path.write_text("".join(f"{key} {value}\n" for key, value in logins.items()))
    path.chmod(0o600)
    return f'smtp_sasl_auth_enable = true\nsmtp_sasl_password_maps = "texthash:{path}"\n'


def verbs(server: Sink) -> list[str]:
    return [line.split(" ")[0].upper() for line in server.server.lines]


# the way to it


def test_a_provider_by_port_587_with_tls_and_login(tmp_path: Path, net: Internet, authority: Authority) -> None:
    provider = net.host(
        "smtp.example.net", port=0, keywords=AUTH, tls=authority.server("smtp.example.net"), users={"username": SECRET}
    )
    net.dns.set("smtp.example.net", {"A": [provider.server.host], "MX": ["10 mail.example.com."]})
    relayhost = f"[smtp.example.net]:{provider.port}"
    settings = f"""\
{net.settings}{HASTY}
relayhost = "{relayhost}"
{passwords(tmp_path, **{relayhost: f"username:{SECRET}"})}
smtp_sasl_security_options = "noanonymous"
smtp_tls_security_level = "verify"
smtp_tls_CAfile = "{authority.file}"
"""
    with relay(tmp_path, settings) as found:
        queue_id = found.send()
        line = tried(found, queue_id, "sent")
        assert f" relay=smtp.example.net[{provider.server.host}]:{provider.port}," in line
        assert verbs(provider)[:5] == ["EHLO", "STARTTLS", "EHLO", "AUTH", "MAIL"]
        assert net.dns.asked("smtp.example.net", "MX") == 0
        log = found.log()
    assert re.search(r"Verified TLS connection established to smtp\.example\.net\[.*: TLSv1\.3 with cipher \S+ \(", log)
    for secret in (SECRET, base64.b64encode(f"\0username\0{SECRET}".encode()).decode()):
        assert secret not in log


def test_a_smarthost_without_brackets_is_found_by_its_mx(tmp_path: Path, net: Internet) -> None:
    net.host("mx1.provider.example")
    net.domain("provider.example", "mx1.provider.example")
    with relay(tmp_path, f'{net.settings}{HASTY}relayhost = "provider.example"\n') as found:
        queue_id = found.send()
        line = tried(found, queue_id, "sent")
        assert re.search(rf" relay=mx1\.provider\.example\[127\.0\.0\.\d+\]:{net.port},", line)


def test_smarthosts_are_tried_in_order(tmp_path: Path, net: Internet) -> None:
    first, second = net.host("first.isp.example"), net.host("second.isp.example")
    first.stop()
    settings = f'{net.settings}{HASTY}relayhost = ["[first.isp.example]", "[second.isp.example]"]\n'
    with relay(tmp_path, settings) as found:
        assert " relay=second.isp.example[" in tried(found, found.send(), "sent")
        first.start()
        second.stop()
        assert " relay=first.isp.example[" in tried(found, found.send(), "sent")


def test_recipients_of_many_domains_go_to_the_smarthost_together(tmp_path: Path, net: Internet) -> None:
    host = net.host("together.isp.example")
    with relay(tmp_path, f'{net.settings}{HASTY}relayhost = "[together.isp.example]"\n') as found:
        gone(found, found.send(recipients=[f"bob@{number}.example" for number in range(7)]))
        (one,) = host.received
        assert len(one.rcpt) == 7


def test_one_connection_carries_what_comes_together_and_ends_with_quit(tmp_path: Path, net: Internet) -> None:
    host = net.host("kept.isp.example")
    settings = f"""\
{net.settings}{HASTY}
relayhost = "[kept.isp.example]"
smtp_connection_cache_time_limit = "1h"
"""
    with relay(tmp_path, settings) as found:
        for _ in range(5):
            gone(found, found.send())
        assert host.server.connections == 1
        assert found.stop() == 0
        assert verbs(host)[-1] == "QUIT"


def test_an_address_that_works_is_found_behind_one_that_does_not(tmp_path: Path, net: Internet) -> None:
    with Internet() as other:
        host = other.host("two.isp.example", host="::1" if has_ipv6() else "127.0.0.2", port=0)
        addresses = {"AAAA": ["::1"]} if has_ipv6() else {}
        net.dns.set("two.isp.example", {"A": ["127.255.255.255", "127.0.0.2"], **addresses})
        settings = f'{net.settings}{HASTY}relayhost = "[two.isp.example]:{host.port}"\n'
        with relay(tmp_path, settings) as found:
            tried(found, found.send(), "sent")
            assert "status=deferred" not in found.log()


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


# loops


def test_a_box_that_is_its_own_smarthost_keeps_the_mail_and_says_so(tmp_path: Path) -> None:
    port = free_port()
    listener = LISTENER.replace("port = 0", f"port = {port}")
    settings = f'{HASTY}{SHORT_LIFE}relayhost = "[127.0.0.1]:{port}"\n'
    with relay(tmp_path, settings, listener) as found:
        queue_id = found.send()
        line = tried(found, queue_id, "deferred", count=3)
        assert line.endswith("(mail for example.org loops back to myself)")
        found.wait_for(r"route paused, .* loops back to myself")
        assert "status=bounced" not in found.log()
        assert sorted(one["sender"] for one in found.waiting()) == ["alice@example.com", "double-bounce@gw.example.com"]


def test_two_boxes_that_are_each_others_smarthost_end_the_loop(tmp_path: Path) -> None:
    """The hop limit ends it; the bounce goes the same way and is dropped there. Nothing is left, nothing multiplies."""
    ports = {"one": free_port(), "two": free_port()}
    with contextlib.ExitStack() as stack:
        boxes = []
        for name, other in (("one", "two"), ("two", "one")):
            (tmp_path / name).mkdir()
            settings = f"""\
{HASTY}
myhostname = "{name}.example.com"
relayhost = "[127.0.0.1]:{ports[other]}"
hopcount_limit = 8
"""
            listener = LISTENER.replace("port = 0", f"port = {ports[name]}")
            boxes.append(stack.enter_context(relay(tmp_path / name, settings, listener)))
        boxes[0].send()

        def dropped() -> int:
            return sum(box.log().count("undeliverable, and has no sender to return to") for box in boxes)

        boxes[0].wait_until(lambda: dropped() == 1, "end of the loop")
        for box in boxes:
            box.wait_empty()
        log = boxes[0].log() + boxes[1].log()
        assert log.count("status=bounced") == 2
        assert "too many hops" in log
        assert log.count(" status=sent ") <= 16


# logins


def test_two_accounts_each_at_its_own_destination(tmp_path: Path, net: Internet) -> None:
    """By the recipient's domain, and by the name of the host that is connected to."""
    hosts = [
        net.host(name, keywords=(*PLAIN, "AUTH CRAM-MD5"), users={user: password})
        for name, user, password in (("mail.ora.example", "kdent", "one"), ("mail.postfix.example", "kyle", SECRET))
    ]
    net.domain("ora.example", "mail.ora.example")
    net.domain("lists.example", "mail.postfix.example")
    logins = {"ora.example": "kdent:one", "mail.postfix.example": f"kyle:{SECRET}"}
    with relay(tmp_path, net.settings + HASTY + passwords(tmp_path, **logins)) as found:
        for domain, host, user in zip(("ora.example", "lists.example"), hosts, ("kdent", "kyle"), strict=True):
            tried(found, found.send(recipients=f"x@{domain}"), "sent")
            assert verbs(host)[:3] == ["EHLO", "AUTH", "MAIL"], user
        net.host("third.example", keywords=(*PLAIN, "AUTH CRAM-MD5"))
        tried(found, found.send(recipients="x@third.example"), "sent")  # nobody there: without a login


@pytest.mark.parametrize(
    ("offer", "options", "used"),
    [
        ("AUTH CRAM-MD5 PLAIN", "noplaintext, noanonymous", "CRAM-MD5"),
        ("AUTH LOGIN PLAIN", "noanonymous", "LOGIN"),  # the server's own order
        ("AUTH GSSAPI PLAIN", "noanonymous", "PLAIN"),  # the first that we know
        ("AUTH PLAIN LOGIN", "noplaintext, noanonymous", ""),  # not in clear
        ("AUTH GSSAPI XOAUTH2", "noanonymous", ""),
    ],
)
def test_the_mechanism_is_the_servers_choice_among_those_allowed(
    tmp_path: Path, net: Internet, offer: str, options: str, used: str
) -> None:
    name = re.sub("[^a-z]", "", (offer + options).lower()) + ".example"
    server = net.host(name, keywords=(*PLAIN, offer), users={"kyle": SECRET})
    settings = f"""\
{net.settings}{HASTY}{SHORT_LIFE}
relayhost = "[{name}]"
smtp_sasl_security_options = "{options}"
{passwords(tmp_path, **{f"[{name}]": f"kyle:{SECRET}"})}"""
    with relay(tmp_path, settings) as found:
        queue_id = found.send()
        if used:
            tried(found, queue_id, "sent")
            assert any(line.startswith(f"AUTH {used}") for line in server.server.lines)
        else:
            line = tried(found, queue_id, "deferred", count=3)
            assert "SASL authentication failed" in line
            assert "MAIL" not in verbs(server) and "AUTH" not in verbs(server)
            assert "status=bounced" not in found.log() and "status=expired" not in found.log()


def test_a_refused_login_is_tried_once_and_not_for_every_message(tmp_path: Path, net: Internet) -> None:
    """An account that is tried too often is locked."""
    server = net.host("lock.isp.example", keywords=(*PLAIN, "AUTH CRAM-MD5"), users={"kyle": "another"})
    settings = f"""\
{net.settings}in_flow_delay = 0
relayhost = "[lock.isp.example]"
minimal_backoff_time = "1h"
{passwords(tmp_path, **{"lock.isp.example": f"kyle:{SECRET}"})}"""
    with relay(tmp_path, settings) as found:
        for _ in range(10):
            found.send()
        found.wait_for(r"route paused, next attempt in \d+ s: .*535 5\.7\.8")
        assert len(found.wait_deferred(11)) == 11  # the notice, too
        assert verbs(server).count("AUTH") <= 5  # as many as began before the first answer
        before = verbs(server).count("AUTH")
        found.send()
        found.wait_deferred(12)
        assert verbs(server).count("AUTH") == before
        said = json.loads(found.run("edgemail", "status", "--json").stdout)["components"]
        login = said["credential.[lock.isp.example]"]
        assert login["reason"] == "login-refused" and login["user"] == "kyle" and "535 5.7.8" in login["message"]
        (file,) = (each for name, each in said.items() if name.startswith("credential.") and "mode" in each)
        assert file["mode"] == "0600" and SECRET not in json.dumps(said)


# TLS


def test_tls_from_the_first_byte(tmp_path: Path, net: Internet, authority: Authority) -> None:
    context = authority.server("smtps.isp.example")
    server = net.host("smtps.isp.example", keywords=AUTH, tls=context, implicit=True, users={"kyle": SECRET})
    settings = f"""\
{net.settings}{HASTY}
relayhost = "[smtps.isp.example]"
smtp_tls_wrappermode = true
smtp_tls_security_level = "encrypt"
{passwords(tmp_path, **{"[smtps.isp.example]": f"kyle:{SECRET}"})}"""
    with relay(tmp_path, settings) as found:
        tried(found, found.send(), "sent")
        assert verbs(server)[:3] == ["EHLO", "AUTH", "MAIL"]
        assert "Untrusted TLS connection established to smtps.isp.example[" in found.log()


def test_each_level_of_tls_against_servers_with_and_without(
    tmp_path: Path, net: Internet, authority: Authority
) -> None:
    """none and may take what there is; encrypt wants TLS from anybody; verify and secure a certificate that fits."""
    stranger_folder = tmp_path / "stranger"
    stranger_folder.mkdir()
    stranger = Authority(stranger_folder, "Stranger")
    servers = {
        "clear": None,
        "trusted": authority.server("trusted.example"),
        "stranger": stranger.server("stranger.example"),
        "other": authority.server("somebody-else.example"),
    }
    hosts = {name: net.host(f"{name}.example", tls=context) for name, context in servers.items()}
    takes = {"none": 4, "may": 4, "encrypt": 3, "verify": 1, "secure": 1}
    rows: dict[str, str] = {}
    tables = ""
    for level in takes:
        tables += f'[transport.{level}]\nsmtp_tls_security_level = "{level}"\nsmtp_tls_CAfile = "{authority.file}"\n'
        rows |= {f"{level}-{name}.example": f"{level}:[{name}.example]" for name in hosts}
    settings = f"{net.settings}{HASTY}transport_maps = [{table(rows)}]\n{tables}"
    with relay(tmp_path, settings) as found:
        ids = {domain: found.send(recipients=f"bob@{domain}") for domain in rows}
        sent = dict.fromkeys(takes, 0)
        for domain, queue_id in ids.items():
            line = found.wait_for(rf"{queue_id}: to=<.*status=(sent|deferred|bounced) .*")
            assert line[1] != "bounced"
            level = domain.partition("-")[0]
            sent[level] += line[1] == "sent"
            if line[1] == "deferred":
                assert "ertificate" in line[0] or "TLS is required, but was not offered" in line[0]
        assert sent == takes
        assert "STARTTLS" not in verbs(hosts["clear"])


# what is wrong with a route


@dataclass
class Trouble:
    """Something that is wrong with a smarthost, what the log says of it, and how it is mended."""

    says: str
    options: dict[str, Any] = field(default_factory=dict)
    mend: Callable[[Internet, Sink], None] = lambda net, host: None
    spoil: Callable[[Internet, Sink], None] = lambda net, host: None


def answer_well(net: Internet, host: Sink) -> None:
    host.server.answers = {}


def answering(verb: str, reply: bytes, says: str = "", **more: bytes) -> Trouble:
    options = {"answers": {verb: reply, **more}, "keywords": PLAIN}
    return Trouble(says or re.escape(reply.decode().strip()), options, answer_well)


def name_of(host: Sink) -> str:
    return host.server.name


def lost_in_dns(says: str, spoil: Callable[[Internet, Sink], None]) -> Trouble:
    def found_again(net: Internet, host: Sink) -> None:
        net.dns.fail(name_of(host), None)
        net.dns.set(name_of(host), {"A": [host.server.host]})

    return Trouble(says, {}, found_again, spoil=spoil)


TROUBLES = {
    "greets with 554": answering("GREETING", b"554 5.7.1 blocked\r\n"),
    "greets with 421": answering("GREETING", b"421 4.3.2 full\r\n"),
    "speaks another protocol": answering("GREETING", b"HTTP/1.1 400 Bad Request\r\n", "protocol error"),
    "says nothing": answering("GREETING", STALL, "timed out while receiving the initial server greeting"),
    "resets": answering("GREETING", RESET, "lost connection .* while receiving the initial server greeting"),
    "knows neither EHLO nor HELO": answering("EHLO", b"550 5.7.1 who\r\n", HELO=b"550 5.7.1 who\r\n"),
    "refuses MAIL without a login": answering("MAIL", b"530 5.7.0 log in\r\n"),
    "refuses RCPT without a login": answering("RCPT", b"530 5.7.0 log in\r\n"),
    "refuses DATA without TLS": answering("DATA", b"538 5.7.11 encrypt\r\n"),
    "wants another mechanism": answering("MAIL", b"534 5.7.9 stronger\r\n"),
    "refuses the login": Trouble(
        "535 5\\.7\\.8 no",
        {"keywords": (*PLAIN, "AUTH CRAM-MD5"), "users": {"kyle": "another"}},
        lambda net, host: setattr(host.server, "users", {"kyle": SECRET}),
    ),
    "cannot check the login now": Trouble(
        "454 4\\.7\\.0 later",
        {"keywords": (*PLAIN, "AUTH CRAM-MD5"), "users": {"kyle": SECRET}, "answers": {"AUTH": b"454 4.7.0 later\r\n"}},
        answer_well,
    ),
    "is down": Trouble("Connection refused", spoil=lambda net, host: host.stop(), mend=lambda net, host: host.start()),
    "is out of reach": lost_in_dns(
        "Network is unreachable", lambda net, host: net.dns.set(name_of(host), {"A": ["127.255.255.255"]})
    ),
    "has lost its name": lost_in_dns("Host not found", lambda net, host: net.dns.set(name_of(host), None)),
    "has nameservers that fail": lost_in_dns(
        "Host not found, try again", lambda net, host: net.dns.fail(name_of(host), Fault.SERVFAIL)
    ),
}


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory, net: Internet) -> Iterator[tuple[Relay, dict[str, str]]]:
    """A message for each trouble, all tried several times within a lifetime of a second, mended only then."""
    directory = tmp_path_factory.mktemp("troubled")
    hosts = {what: net.host(f"{slug(what)}.isp.example", **trouble.options) for what, trouble in TROUBLES.items()}
    for what, trouble in TROUBLES.items():
        trouble.spoil(net, hosts[what])
    rows = {f"{slug(what)}.example": f"smtp:[{slug(what)}.isp.example]" for what in TROUBLES}
    logins = {name_of(host): f"kyle:{SECRET}" for host in hosts.values() if host.server.users}
    settings = f"""\
{net.settings}{HASTY}{SHORT_LIFE}
lifetime_counts = "wall"
{passwords(directory, **logins)}
transport_maps = [{table(rows)}]
smtp_helo_timeout = "1s"
initial_destination_concurrency = 1
"""
    with relay(directory, settings) as found:
        begun = time.monotonic()
        ids = {what: found.send(recipients=f"bob@{slug(what)}.example") for what in TROUBLES}
        for queue_id in ids.values():
            found.wait_for(rf"{queue_id}: to=<.* status=deferred", 60, count=3)
        assert time.monotonic() - begun > 2
        for what, trouble in TROUBLES.items():
            trouble.mend(net, hosts[what])
        yield found, ids


def slug(what: str) -> str:
    return what.lower().replace(" ", "-")


@pytest.mark.parametrize("what", TROUBLES)
def test_whatever_is_wrong_with_a_smarthost_the_mail_waits_and_one_notice_is_sent(
    troubled: tuple[Relay, dict[str, str]], net: Internet, what: str
) -> None:
    found, ids = troubled
    queue_id = ids[what]
    log = found.log()
    assert re.search(rf"{queue_id}: to=<.* status=deferred \(.*{TROUBLES[what].says}", log), what
    tried(found, queue_id, "sent")
    gone(found, queue_id)
    log = found.log()
    assert not re.search(rf"{queue_id}: .*(status=bounced|expired|notification)", log)
    site = rf"smtp:\[{slug(what)}\.isp\.example\]"
    assert len(re.findall(rf"notice to <postmaster.*>: Mail route pauses: {site}", log)) == 1
    subject = f"\r\nSubject: Mail route pauses: smtp:[{slug(what)}.isp.example]".encode()
    found.wait_until(lambda: any(subject in one.content for one in net.home.received), "notice")
    assert sum(subject in one.content for one in net.home.received) == 1


# the one smarthost of a box


@dataclass
class Outage:
    """How the only way out is lost, and how it comes back."""

    begin: Callable[[Internet, Sink], None]
    end: Callable[[Internet, Sink], None]
    says: str


OUTAGES = {
    "the smarthost refuses the login": Outage(
        lambda net, host: setattr(host.server, "users", {}),
        lambda net, host: setattr(host.server, "users", {"kyle": SECRET}),
        "535 5\\.7\\.8",
    ),
    "the resolver refuses everything": Outage(
        lambda net, host: net.dns.fail("*", Fault.REFUSED),
        lambda net, host: net.dns.fail("*", None),
        "Host not found, try again",
    ),
    "the network is unreachable": Outage(
        lambda net, host: net.dns.set(name_of(host), {"A": ["127.255.255.255"]}),
        lambda net, host: net.dns.set(name_of(host), {"A": [host.server.host]}),
        "Network is unreachable",
    ),
}


@pytest.mark.parametrize("what", OUTAGES)
def test_while_the_only_way_out_is_lost_nothing_bounces_and_one_notice_leaves_when_it_is_back(
    tmp_path: Path, what: str
) -> None:
    outage = OUTAGES[what]
    with Internet() as net:
        host = net.host("smtp.isp.example", keywords=(*PLAIN, "AUTH CRAM-MD5"), users={"kyle": SECRET})
        outage.begin(net, host)
        settings = f"""\
{net.settings}{HASTY}{SHORT_LIFE}
relayhost = "[smtp.isp.example]"
{passwords(tmp_path, **{"[smtp.isp.example]": f"kyle:{SECRET}"})}"""
        with relay(tmp_path, settings) as found:
            ids = [found.send(recipients=f"bob{number}@example.org") for number in range(5)]
            # A paused route is tried by one message at a time: attempts in all, over more than the lifetime.
            found.wait_for(r"status=deferred", 30, count=8)
            found.wait_for(r"route paused, next attempt in \d+ s: .*" + outage.says, 30, count=3)
            assert not host.received
            outage.end(net, host)
            for queue_id in ids:
                tried(found, queue_id, "sent")
            found.wait_empty()
            log = found.log()
            assert "status=bounced" not in log and "expired" not in log
        notices = [one for one in host.received if b"\r\nSubject: Mail route pauses: " in one.content]
        assert [one.rcpt[0].partition(" NOTIFY")[0] for one in notices] == ["RCPT TO:<admin@example.com>"]
        assert len(host.received) == 5 + 1
        assert re.search(outage.says.encode(), notices[0].content)


def test_without_a_smarthost_a_dead_resolver_or_network_bounces_nothing(tmp_path: Path) -> None:
    """Nor is "no such domain" believed, while the resolver knows nothing of the world: a router without a link."""
    with Internet() as net:
        names = ("lost.example", "refused.example", "denied.example")
        hosts = {name: net.host(name) for name in names}
        net.dns.set("lost.example", {"A": ["127.255.255.255"]})
        net.dns.fail("refused.example", Fault.REFUSED)
        net.dns.fail("denied.example", Fault.NXDOMAIN)
        net.dns.fail(".", Fault.NXDOMAIN)
        with relay(tmp_path, f"{net.settings}{HASTY}{SHORT_LIFE}") as found:
            ids = [found.send(recipients=f"bob@{name}") for name in names]
            for queue_id in ids:
                found.wait_for(rf"{queue_id}: to=<.* status=deferred", 30, count=3)
            assert "status=bounced" not in found.log() and "expired" not in found.log()
            net.dns.set("lost.example", {"A": [hosts["lost.example"].server.host]})
            for name in (".", *names):
                net.dns.fail(name, None)
            for queue_id in ids:
                tried(found, queue_id, "sent")
            assert not net.home.received
