"""Where mail goes, through the real process: MX and addresses, rows, classes of domains, and failed lookups."""

from __future__ import annotations

import re
import smtplib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dns import Fault
from tests.peers.ports import free_port
from tests.scenarios.internet import HASTY, Internet, gone, table, tried
from tests.scenarios.relay import MESSAGE, Relay, relay
from tests.scenarios.sink import Sink, sink

INSIDE, OUTSIDE = "127.0.9.9", "127.0.0.1"  # where clients come from, for relays with INNER
INNER = 'mynetworks = ["127.0.9.0/24"]\n'


@pytest.fixture(scope="module")
def net() -> Iterator[Internet]:
    with Internet() as found:
        yield found


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory, net: Internet) -> Iterator[Relay]:
    """A relay without a smarthost; transports by which some domains get other care."""
    rows = {f"{word}.example": f"{word}:" for word in ("ordered", "shuffled", "strict", "plain", "rescued")}
    rows |= {"ora.com": f"smtp:[127.0.0.99]:{free_port()}", "kdent@ora.com": "error:no mail accepted for kdent"}
    settings = f"""\
{net.settings}{HASTY}
relay_domains = "kept.example"
proxy_interfaces = "127.0.77.1"
transport_maps = [{table(rows)}]
[transport.ordered]
smtp_randomize_addresses = false
smtp_connection_cache_time_limit = 0
[transport.shuffled]
smtp_connection_cache_time_limit = 0
[transport.strict]
smtp_skip_5xx_greeting = false
[transport.plain]
disable_dns_lookups = true
[transport.rescued]
smtp_fallback_relay = "[rescue.example]"
"""
    with relay(tmp_path_factory.mktemp("box"), settings) as found:
        yield found


# by MX


def test_mail_goes_to_the_best_mx_and_to_the_next_while_that_is_down(net: Internet, box: Relay) -> None:
    hosts = [net.host(f"mail{number}.three.example") for number in (1, 2, 3)]
    net.domain("three.example", "mail1.three.example", "mail2.three.example", "mail3.three.example")
    queue_id = box.send(recipients="bob@three.example")
    assert f" relay=mail1.three.example[{hosts[0].server.host}]:{net.port}," in tried(box, queue_id, "sent")
    hosts[0].stop()
    queue_id = box.send(recipients="bob@three.example")
    assert " relay=mail2.three.example[" in tried(box, queue_id, "sent")
    assert [len(host.received) for host in hosts] == [1, 1, 0]


def test_a_backup_mx_keeps_mail_until_a_better_one_answers(net: Internet, box: Relay) -> None:
    better, worse = net.host("mail1.kept.example"), net.host("mail3.kept.example")
    net.dns.set("mail2.kept.example", {"A": ["127.0.0.1"]})
    net.domain("kept.example", "mail1.kept.example", "mail2.kept.example", "mail3.kept.example")
    better.stop()
    queue_id = box.send(recipients="bob@kept.example")
    line = tried(box, queue_id, "deferred", count=2)
    assert " relay=none, " in line
    assert f"(connect to mail1.kept.example[{better.server.host}]:{net.port}: Connection refused)" in line
    better.start()
    assert " relay=mail1.kept.example[" in tried(box, queue_id, "sent")
    assert not worse.received


def test_a_domain_without_mx_is_its_own_host(net: Internet, box: Relay) -> None:
    host = net.host("alone.example")
    queue_id = box.send(recipients="bob@alone.example")
    assert f" relay=alone.example[{host.server.host}]:{net.port}," in tried(box, queue_id, "sent")


def test_an_address_literal_is_sent_to_that_address(net: Internet, box: Relay) -> None:
    host = net.host("literal.example")
    address = host.server.host
    queue_id = box.send(recipients=f"bob@[{address}]")
    assert f" relay={address}[{address}]:{net.port}," in tried(box, queue_id, "sent")


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.77.1"], ids=["own", "proxy_interfaces"])
def test_mail_for_a_domain_whose_best_mx_is_this_box_comes_back(net: Internet, box: Relay, address: str) -> None:
    domain = f"loop{address.count('7')}.example"
    net.dns.set(f"mx.{domain}", {"A": [address]})
    net.domain(domain, f"mx.{domain}", "mail.example.com")
    queue_id = box.send(recipients=f"bob@{domain}")
    line = tried(box, queue_id, "bounced")
    assert " relay=none," in line and " dsn=5.4.6, " in line
    assert line.endswith(f" status=bounced (mail for {domain} loops back to myself)")
    assert f"warning: mailer loop: best MX host for {domain} is local" in box.log()
    notice = net.notice(queue_id)
    assert b"loops back to myself" in notice.content
    gone(box, queue_id)


def test_mail_for_a_server_that_bears_our_own_name_comes_back(net: Internet, box: Relay) -> None:
    host = net.host("mirror.example", answers={"GREETING": b"220 GW.example.com ESMTP\r\n"})
    queue_id = box.send(recipients="bob@mirror.example")
    assert "(mail for mirror.example loops back to myself)" in tried(box, queue_id, "bounced")
    assert not any(line.startswith("MAIL") for line in host.server.lines)
    net.notice(queue_id)


@pytest.mark.parametrize(
    ("domain", "records", "status", "text"),
    [
        (
            "txtonly.example",
            {"TXT": ['"hello"']},
            "5.1.2",
            "Name service error for name=txtonly.example type=A: Host found but no data record of requested type",
        ),
        ("nowhere.example", None, "5.1.2", "Name service error for name=nowhere.example type=A: Host not found"),
        ("nomail.example", {"MX": ["0 ."]}, "5.1.10", "Domain nomail.example does not accept mail (nullMX)"),
    ],
)
def test_mail_for_a_domain_that_takes_none_comes_back_at_once(
    net: Internet, box: Relay, domain: str, records: dict[str, list[str]] | None, status: str, text: str
) -> None:
    net.dns.set(domain, records)
    queue_id = box.send(recipients=f"bob@{domain}")
    line = tried(box, queue_id, "bounced")
    assert " relay=none, " in line and f" dsn={status}, " in line
    assert line.endswith(f" status=bounced ({text})")
    notice = net.notice(queue_id)
    assert f"\r\nStatus: {status}\r\n".encode() in notice.content
    gone(box, queue_id)


def test_mx_hosts_without_an_address_are_waited_for(net: Internet, box: Relay) -> None:
    net.domain("seaglass.example", "mail.seaglass.example")
    queue_id = box.send(recipients="bob@seaglass.example")
    line = tried(box, queue_id, "deferred", count=2)
    assert " relay=none, " in line
    assert line.endswith("(Name service error for name=mail.seaglass.example type=A: Host not found)")
    assert "warning: no MX host for seaglass.example has a valid A record" in box.log()
    net.host("mail.seaglass.example")
    tried(box, queue_id, "sent")


def test_a_domain_whose_nameservers_fail_is_waited_for(net: Internet, box: Relay) -> None:
    net.host("lame.example")
    net.dns.fail("lame.example", Fault.SERVFAIL)
    queue_id = box.send(recipients="bob@lame.example")
    line = tried(box, queue_id, "deferred", count=2)
    assert line.endswith("(Name service error for name=lame.example type=MX: Host not found, try again)")
    net.dns.fail("lame.example", None)
    tried(box, queue_id, "sent")


@pytest.mark.parametrize("greeting", [b"421 4.3.2 later\r\n", b"554 5.3.2 go away\r\n"])
def test_a_host_that_refuses_to_talk_is_passed_over_for_the_next(net: Internet, box: Relay, greeting: bytes) -> None:
    domain = f"rude{greeting[:3].decode()}.example"
    first = net.host(f"a.{domain}", answers={"GREETING": greeting})
    net.host(f"b.{domain}")
    net.domain(domain, f"a.{domain}", f"b.{domain}")
    queue_id = box.send(recipients=f"bob@{domain}")
    assert f" relay=b.{domain}[" in tried(box, queue_id, "sent")
    assert first.server.connections == 1


def test_told_not_to_skip_it_a_host_that_refuses_to_talk_is_waited_for(net: Internet, box: Relay) -> None:
    answers = {"GREETING": b"554 5.3.2 go away\r\n"}
    first = net.host("a.strict.example", answers=answers)
    second = net.host("b.strict.example")
    net.domain("strict.example", "a.strict.example", "b.strict.example")
    queue_id = box.send(recipients="bob@strict.example")
    line = tried(box, queue_id, "deferred", count=2)
    assert f"(host a.strict.example[{first.server.host}] refused to talk to me: 554 5.3.2 go away)" in line
    assert second.server.connections == 0
    first.server.answers = {}
    assert " relay=a.strict.example[" in tried(box, queue_id, "sent")


@pytest.mark.parametrize("word", ["ordered", "shuffled"])
def test_hosts_of_equal_preference_share_the_mail_unless_told_otherwise(net: Internet, box: Relay, word: str) -> None:
    domain = f"{word}.example"
    hosts = [net.host(f"{letter}.{domain}") for letter in "ab"]
    net.dns.set(domain, {"MX": [f"10 a.{domain}.", f"10 b.{domain}."]})
    ids = [box.send(recipients=f"bob@{domain}") for _ in range(20)]
    for queue_id in ids:
        tried(box, queue_id, "sent")
    counts = [len(host.received) for host in hosts]
    assert sum(counts) == 20
    assert counts == [20, 0] if word == "ordered" else min(counts) > 0


def test_without_dns_lookups_mail_goes_to_the_host_and_not_to_its_mx(net: Internet, box: Relay) -> None:
    host = net.host("plain.example")
    net.dns.set("plain.example", {"A": [host.server.host], "MX": ["10 mail.example.com."]})
    queue_id = box.send(recipients="bob@plain.example")
    assert f" relay=plain.example[{host.server.host}]:{net.port}," in tried(box, queue_id, "sent")
    assert net.dns.asked("plain.example", "MX") == 0


def test_no_more_sessions_than_the_limit_in_one_try(net: Internet, box: Relay) -> None:
    names = [f"{letter}.many.example" for letter in "abcd"]
    hosts = [net.host(name, answers={"MAIL": b"451 4.3.0 busy\r\n"}) for name in names]
    net.domain("many.example", *names)
    queue_id = box.send(recipients="bob@many.example")
    tried(box, queue_id, "deferred")
    assert [bool(host.server.connections) for host in hosts] == [True, True, False, False]
    for host in hosts:
        host.server.answers = {}
    tried(box, queue_id, "sent")


def test_the_fallback_relay_takes_what_no_mx_does(net: Internet, box: Relay) -> None:
    net.host("mx.rescued.example").stop()
    net.domain("rescued.example", "mx.rescued.example")
    rescue = net.host("rescue.example")
    queue_id = box.send(recipients="bob@rescued.example")
    assert " relay=rescue.example[" in tried(box, queue_id, "sent")
    assert len(rescue.received) == 1


# answers of hosts


def test_a_refused_recipient_comes_back_and_nothing_stays(net: Internet, box: Relay) -> None:
    host = net.host("refusing.example", answers={"RCPT": b"550 5.1.1 no such user\r\n"})
    queue_id = box.send(recipients="bob@refusing.example")
    line = tried(box, queue_id, "bounced")
    said = f"(host refusing.example[{host.server.host}] said: 550 5.1.1 no such user (in reply to RCPT TO command))"
    assert line.endswith(said)
    gone(box, queue_id)
    notice = net.notice(queue_id)
    assert b"\r\nDiagnostic-Code: smtp; 550 5.1.1 no such user\r\n" in notice.content
    assert b"\r\nFinal-Recipient: rfc822; bob@refusing.example\r\n" in notice.content


@pytest.mark.parametrize("reply", ["450 4.2.1 greylisted", "552 5.5.3 too many recipients"])
def test_one_recipient_is_served_and_the_other_stays_with_its_reason(net: Internet, box: Relay, reply: str) -> None:
    def picky(line: str) -> bytes:
        return f"{reply}\r\n".encode() if "carol" in line else b""

    domain = f"picky{reply[:3]}.example"
    host = net.host(domain, answers={"RCPT": picky})
    queue_id = box.send(recipients=[f"bob@{domain}", f"carol@{domain}"])
    tried(box, queue_id, "sent", to=f"bob@{domain}")
    line = tried(box, queue_id, "deferred", to=f"carol@{domain}")
    assert "said: 45" in line and reply[9:] in line

    def waiting() -> list[dict[str, str]]:
        return [to for one in box.waiting() if one["queue_id"] == queue_id for to in one["recipients"]]

    box.wait_until(lambda: len(waiting()) == 1, "the completion of who is served")
    (carol,) = waiting()
    assert carol["address"] == f"carol@{domain}"
    assert reply[9:] in carol["reason"]
    host.server.answers = {}
    tried(box, queue_id, "sent", to=f"carol@{domain}")
    assert [one.rcpt[0].partition("@")[0] for one in host.received] == ["RCPT TO:<bob", "RCPT TO:<carol"]


def test_many_recipients_go_in_parts_of_fifty(net: Internet, box: Relay) -> None:
    host = net.host("crowd.example")
    queue_id = box.send(recipients=[f"user{number}@crowd.example" for number in range(120)])
    gone(box, queue_id)
    assert sorted(len(one.rcpt) for one in host.received) == [20, 50, 50]


# rows of transport_maps


def test_a_row_error_refuses_at_rcpt_with_its_text(box: Relay) -> None:
    with pytest.raises(smtplib.SMTPRecipientsRefused) as refused:
        box.send(recipients="kdent@ora.com")
    code, text = refused.value.recipients["kdent@ora.com"]
    assert code == 550
    assert b"no mail accepted for kdent" in text


def test_rows_name_address_and_port_or_a_host_without_its_mx(tmp_path: Path, net: Internet) -> None:
    gateway = net.host("gateway.oreilly.example")
    net.domain("gateway.oreilly.example", "mail.example.com")
    net.dns.set("gateway.oreilly.example", {"A": [gateway.server.host], "MX": ["10 mail.example.com."]})
    with sink(host="127.0.0.200") as inner:
        rows = {"moved.example": f"smtp:[127.0.0.200]:{inner.port}"}
        rows |= {"oreilly.example": "relay:[gateway.oreilly.example]"}
        settings = f"{net.settings}{HASTY}relayhost = '[127.0.0.1]:1'\ntransport_maps = [{table(rows)}]\n"
        with relay(tmp_path, settings) as found:
            queue_id = found.send(recipients=["a@moved.example", "b@oreilly.example"])
            line = tried(found, queue_id, "sent", to="a@moved.example")
            assert f" relay=127.0.0.200[127.0.0.200]:{inner.port}," in line
            line = tried(found, queue_id, "sent", to="b@oreilly.example")
            assert f" relay=gateway.oreilly.example[{gateway.server.host}]:{net.port}," in line
            assert net.dns.asked("gateway.oreilly.example", "MX") == 0
            gone(found, queue_id)


def test_changed_rows_apply_to_mail_that_waits(tmp_path: Path, net: Internet) -> None:
    """One message is sent another way, one is returned with the row's text, one is thrown away."""
    new = net.host("new.moving.example")
    settings = f"{net.settings}{HASTY}relayhost = '[127.0.0.1]:{free_port()}'\n"
    with relay(tmp_path, settings) as found:
        moved = found.send(recipients="a@moving.example")
        returned = found.send(recipients="b@closed.example")
        dropped = found.send(recipients="c@void.example")
        for queue_id in (moved, returned, dropped):
            tried(found, queue_id, "deferred")
        rows = {
            "moving.example": "smtp:[new.moving.example]",
            "closed.example": "error:5.2.1 closed for good",
            "void.example": "discard:",
            "example.com": "smtp:example.com",
        }
        found.reload(settings + f"transport_maps = [{table(rows)}]\n")
        tried(found, moved, "sent")
        assert len(new.received) == 1
        notice = net.notice(returned)
        assert b"\r\nStatus: 5.2.1\r\n" in notice.content and b"closed for good" in notice.content
        gone(found, returned)
        gone(found, dropped)
        assert not any(queue_id.encode() in one.content for one in net.home.received for queue_id in (moved, dropped))


# classes of domains: who may send where, and the way it takes


def hand_over(
    box: Relay, source: str, recipient: str, helo: str = "client.example.com", message: bytes = MESSAGE
) -> tuple[int, bytes]:
    """One message from a client at `source`; the first refusal, or the answer to the final dot."""
    with smtplib.SMTP("127.0.0.1", box.port, helo, timeout=30, source_address=(source, 0)) as client:
        client.ehlo()
        for code, text in (client.mail("alice@client.example"), client.rcpt(recipient)):
            if code != 250:
                return code, text
        return client.data(message)


def test_a_gateway_passes_mail_from_outside_to_its_inner_hosts_and_nowhere_else(tmp_path: Path, net: Internet) -> None:
    hosts = {name: net.host(f"mail.{name}.example.com") for name in ("hr", "sales")}
    rows = {f"{name}.example.com": f"relay:[mail.{name}.example.com]" for name in hosts}
    settings = f"""\
{net.settings}{HASTY}{INNER}
relay_domains = "hr.example.com, sales.example.com"
relay_recipient_maps = [{table({"heloise@hr.example.com": "x", "frank@sales.example.com": "x"})}]
transport_maps = [{table(rows)}]
"""
    with relay(tmp_path, settings) as found:
        for user, name in (("heloise", "hr"), ("frank", "sales")):
            assert hand_over(found, OUTSIDE, f"{user}@{name}.example.com")[0] == 250
            (one,) = hosts[name].wait_for(1)
            assert one.rcpt[0].startswith(f"RCPT TO:<{user}@{name}.example.com>")
        assert hand_over(found, OUTSIDE, "bob@third.example")[0] == 554
        assert hand_over(found, OUTSIDE, "nobody@hr.example.com")[0] == 550
        found.wait_for("removed", count=2)


def test_an_inner_host_sends_through_the_gateway_to_the_world(tmp_path: Path, net: Internet) -> None:
    world = net.host("world.example")
    for name in ("gateway", "inner"):
        (tmp_path / name).mkdir()
    with relay(tmp_path / "gateway", f"{net.settings}{HASTY}") as gateway:
        settings = f'myhostname = "inner.example.com"\nrelayhost = "[127.0.0.1]:{gateway.port}"\n'
        with relay(tmp_path / "inner", HASTY + settings) as inner:
            queue_id = inner.send("user@inner.example.com", "bob@world.example")
            tried(inner, queue_id, "sent")
        (one,) = world.wait_for(1)
        by = re.findall(rb"\tby (\S+) \(edgemail\)", one.content)
        assert by == [b"gw.example.com", b"inner.example.com"]


@pytest.fixture
def smarthost() -> Iterator[Sink]:
    with sink(host="127.0.0.201") as found:
        yield found


def test_a_relay_for_a_lan_and_two_domains_sends_everything_to_its_smarthost(tmp_path: Path, smarthost: Sink) -> None:
    settings = f"""\
{HASTY}{INNER}
relay_domains = "example.org example.com"
relayhost = "[127.0.0.201]:{smarthost.port}"
smtpd_helo_required = true
disable_vrfy_command = true
"""
    with relay(tmp_path, settings) as found:
        assert hand_over(found, INSIDE, "anyone@other.example")[0] == 250
        assert hand_over(found, OUTSIDE, "user@example.org")[0] == 250
        assert hand_over(found, OUTSIDE, "user@sub.example.com")[0] == 250
        assert hand_over(found, OUTSIDE, "anyone@other.example")[0] == 554
        found.wait_for("removed", count=3)
        rcpt = [re.findall("<(.*)>", one.rcpt[0])[0] for one in smarthost.received]
        assert sorted(rcpt) == ["anyone@other.example", "user@example.org", "user@sub.example.com"]
        with smtplib.SMTP("127.0.0.1", found.port, timeout=30) as client:
            assert client.docmd("MAIL FROM:<a@b.example>")[0] == 503
            client.ehlo()
            assert not client.has_extn("vrfy")
            assert client.verify("root")[0] == 502


def test_bare_addresses_are_completed_with_myorigin(tmp_path: Path, smarthost: Sink) -> None:
    settings = f'{HASTY}relayhost = "[127.0.0.201]:{smarthost.port}"\nmyorigin = "$mydomain"\n'
    text = b'From: "K. Dent" <kdent>\r\nTo: bob@example.org\r\nCc: root, kdent (me)\r\nSubject: kdent\r\n\r\nkdent\r\n'
    with relay(tmp_path, settings) as found:
        found.send("kdent", message=text)
        (one,) = smarthost.wait_for(1)
    assert one.mail.startswith("MAIL FROM:<kdent@example.com>")
    assert b'\r\nFrom: "K. Dent" <kdent@example.com>\r\n' in one.content
    assert b"\r\nCc: root@example.com, kdent@example.com (me)\r\n" in one.content
    assert one.content.endswith(b"Subject: kdent\r\n\r\nkdent\r\n")
