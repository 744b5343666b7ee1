"""Sites that come and ask: ETRN at the real process, on-demand transports, postqueue -s."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scenarios.client import Client
from tests.scenarios.relay import LISTENER, Relay, relay
from tests.scenarios.sink import Sink, sink

SETTINGS = """
transport_maps = [{{ "example.com" = "ondemand:[127.0.0.1]:{port}" }},
    {{ "sub.example.com" = "ondemand:[127.0.0.1]:{port}" }},
    {{ "other.tld" = "smtp:[127.0.0.1]:{dead}" }}]
relay_domains = ["example.com"]
defer_transports = ["ondemand"]
queue_run_delay = "1s"
minimal_backoff_time = "1s"
maximal_backoff_time = "1s"
"""


@pytest.fixture
def site() -> Iterator[Sink]:
    with sink() as found:
        yield found


@pytest.fixture
def hub(tmp_path: Path, site: Sink) -> Iterator[Relay]:
    with sink() as dead:
        dead.stop()
        with relay(tmp_path, SETTINGS.format(port=site.port, dead=dead.port)) as found:
            yield found


def arrived(site: Sink) -> list[str]:
    """Recipients, in the order in which their mail came."""
    return [re.findall("<(.*?)>", one.rcpt[0])[0] for one in site.received]


def test_the_session_of_a_site_that_asks(hub: Relay, site: Sink) -> None:
    hub.send(recipients="bob@example.com")
    hub.send(recipients="eve@sub.example.com")
    hub.send(recipients="joe@other.tld")
    hub.wait_deferred(3)
    with Client(hub.port) as client:
        assert client.say("ETRN example.com") == "503 Error: send HELO/EHLO first"
        hello = client.say("EHLO mail.example.com").split("\n")
        keywords = [line[4:].split(" ")[0] for line in hello[1:]]
        assert keywords[:6] == ["PIPELINING", "SIZE", "VRFY", "ETRN", "STARTTLS", "ENHANCEDSTATUSCODES"]
        assert client.say("ETRN") == "500 Syntax: ETRN domain"
        assert client.say("ETRN a b") == "500 Syntax: ETRN domain"
        assert client.say("ETRN -x") == "501 Error: invalid parameter syntax"
        assert client.say("ETRN other.tld") == "459 <other.tld>: service unavailable"
        assert client.say("ETRN #nothing") == "458 Unable to queue messages"
        assert client.say("MAIL FROM:<a@example.com>").startswith("250")
        assert client.say("ETRN example.com") == "503 Error: MAIL transaction in progress"
        assert client.say("RSET").startswith("250")
        assert arrived(site) == []
        assert client.say("ETRN example.com") == "250 Queuing started"
        site.wait_for(1)
        hub.wait_for(r"status=sent")
        assert arrived(site) == ["bob@example.com"]  # it alone: ETRN d is not ETRN @d
        assert client.say("ETRN @example.com") == "250 Queuing started"
        site.wait_for(2)
        assert arrived(site) == ["bob@example.com", "eve@sub.example.com"]
        assert client.say("QUIT").startswith("221")
    hub.wait_for(r"etrn from \S+\[127\.0\.0\.1\]: example\.com, 1 messages")
    hub.wait_until(lambda: len(hub.waiting()) == 1, "mail for the other site alone")
    assert hub.waiting()[0]["recipients"][0]["address"] == "joe@other.tld"


def test_mail_on_demand_waits_for_etrn_and_for_nothing_else(hub: Relay, site: Sink) -> None:
    """Any number of queue runs, each of them tries the other site, leave it where it is; a named queue is asked for."""
    hub.send(recipients="bob@example.com")
    hub.send(recipients="joe@other.tld")
    hub.wait_for(r"to=<joe@other\.tld>.*status=deferred", count=3)
    assert arrived(site) == []
    waiting = {one["recipients"][0]["address"]: one for one in hub.waiting()}
    assert "deferred transport" in waiting["bob@example.com"]["recipients"][0]["reason"]
    with Client(hub.port) as client:
        client.say("EHLO mail.example.com")
        assert client.say("ETRN #ondemand") == "250 Queuing started"
    assert len(site.wait_for(1)) == 1


def test_a_flush_does_not_mind_that_the_site_was_dead(tmp_path: Path) -> None:
    """No queue run, no back-off: the mail leaves because it is asked for."""
    settings = 'relay_domains = ["example.com"]\ntransport_maps = [{{ "example.com" = "smtp:[127.0.0.1]:{}" }}]\n'
    with sink() as site:
        site.stop()
        with relay(tmp_path, settings.format(site.port)) as hub:
            for number in range(3):
                hub.send(recipients=f"user{number}@example.com")
            hub.wait_deferred(3)
            site.start()
            with Client(hub.port) as client:
                client.say("EHLO mail.example.com")
                assert client.say("ETRN example.com") == "250 Queuing started"
            site.wait_for(3)
            hub.wait_empty()


def test_postqueue_asks_for_one_site(hub: Relay, site: Sink) -> None:
    hub.send(recipients="bob@example.com")
    hub.send(recipients="eve@sub.example.com")
    hub.wait_deferred(2)
    refused = hub.run("postqueue", "-s", "other.tld", check=False)
    assert (refused.returncode, refused.stdout) == (69, "")
    assert refused.stderr == 'postqueue: fatal: Flush service is not configured for destination "other.tld"\n'
    hub.run("postqueue", "-s", "example.com")
    site.wait_for(1)
    hub.wait_until(lambda: len(hub.waiting()) == 1, "one message left")
    assert arrived(site) == ["bob@example.com"]
    hub.run("sendmail", "-qRsub.example.com")
    site.wait_for(2)


def test_strangers_may_not_ask_and_a_flood_is_refused(tmp_path: Path, site: Sink) -> None:
    settings = SETTINGS.format(port=site.port, dead=site.port)
    settings += 'mynetworks = ["127.0.0.1"]\nfast_flush_rate_limit = 2\n'
    with relay(tmp_path, settings) as hub:
        hub.send(recipients="bob@example.com")
        hub.wait_deferred(1)
        with Client(hub.port, source="127.0.0.2") as stranger:
            stranger.say("EHLO mail.example.net")
            denied = "554 <example.com>: Etrn command rejected: Access denied"
            assert stranger.say("ETRN example.com") == denied
        assert arrived(site) == []
        with Client(hub.port) as client:
            client.say("EHLO mail.example.com")
            said = client.ask(*["ETRN example.com"] * 4)
            assert said == ["250 Queuing started"] * 2 + ["458 Unable to queue messages"] * 2
        site.wait_for(1)
        hub.reload(settings, LISTENER + 'smtpd_noop_commands = ["etrn"]\n')
        hub.send(recipients="eve@example.com")
        with Client(hub.port) as client:
            client.say("EHLO mail.example.com")
            assert client.say("ETRN example.com") == "250 2.0.0 Ok"
        hub.wait_deferred(1)
        assert arrived(site) == ["bob@example.com"]


# ---- asking a provider


@pytest.mark.parametrize("level", ["none", "may"])
def test_a_branch_asks_its_hub(tmp_path: Path, site: Sink, level: str) -> None:
    """`edgemail etrn` from one relay to another, whose mail then comes over a connection of its own."""
    (tmp_path / "hub").mkdir()
    (tmp_path / "branch").mkdir()
    with (
        relay(tmp_path / "hub", SETTINGS.format(port=site.port, dead=site.port)) as hub,
        relay(
            tmp_path / "branch", f'myhostname = "branch.example.com"\nsmtp_tls_security_level = "{level}"\n'
        ) as branch,
    ):
        hub.send(recipients="bob@example.com")
        hub.wait_deferred(1)
        done = branch.run("edgemail", "etrn", f"127.0.0.1:{hub.port}", "example.com")
        assert (done.stdout, done.stderr) == ("example.com: 250 Queuing started\n", "")
        site.wait_for(1)
        hub.wait_for(r"disconnect from \S+ .*etrn=1 quit=1" if level == "none" else "starttls=1 .*etrn=1 quit=1")
        done = branch.run("edgemail", "etrn", f"127.0.0.1:{hub.port}", "@example.com", "b.tld", "--json", check=False)
        assert done.returncode == 69
        assert [json.loads(line) for line in done.stdout.splitlines()] == [
            {"node": "@example.com", "code": 250, "reply": "250 Queuing started"},
            {"node": "b.tld", "code": 459, "reply": "459 <b.tld>: service unavailable"},
        ]
        done = branch.run("edgemail", "etrn", f"127.0.0.1:{hub.port}", "#nothing", check=False)
        assert (done.returncode, done.stdout) == (75, "#nothing: 458 Unable to queue messages\n")


def test_a_provider_that_cannot_be_asked(tmp_path: Path) -> None:
    answers = {"EHLO": b"250 plain.example\r\n"}
    with sink(answers=answers) as plain, relay(tmp_path) as branch:
        for arguments, code, words in (
            (("127.0.0.1:1", "example.com"), 75, "connect to 127.0.0.1[127.0.0.1]:1: Connect"),
            ((f"127.0.0.1:{plain.port}", "example.com"), 69, "does not offer ETRN"),
            (("127.0.0.1:x y", "example.com"), 64, "is no next hop"),
            (("127.0.0.1", "-x"), 64, "'-x' is not a domain"),
            (("[::1", "example.com"), 64, "is no next hop"),
        ):
            done = branch.run("edgemail", "etrn", *arguments[:1], "--", *arguments[1:], check=False)
            assert (done.returncode, done.stdout) == (code, ""), done.stderr
            assert words in done.stderr
        branch.stop()
        done = branch.run("edgemail", "etrn", "127.0.0.1", "example.com", check=False)
        assert done.returncode == 75
        assert "the relay is not running" in done.stderr
