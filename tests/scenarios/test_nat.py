"""A branch behind carrier NAT and its hub, an edgemail each, in networks of the test's own."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.network import Places, forward, ip, needs_root, places
from tests.peers import need
from tests.scenarios.relay import Relay
from tests.scenarios.sink import Sink, sink

HUB, CARRIER = "198.51.100.1", "198.51.100.9"
PASSWORD = "correct horse"
FAST = """
queue_run_delay = "1s"
minimal_backoff_time = "1s"
maximal_backoff_time = "2s"
"""
PROVIDER = (
    FAST
    + """
myhostname = "hub.example.net"
relay_domains = ["branch.example", "depot.example"]
relay_transport = "ondemand:[192.0.2.1]"
transport_maps = [{ "corp.example" = "smtp:[127.0.0.1]:PORT" }]
defer_transports = ["ondemand"]
odmr_domain_maps = [{ "branch" = "branch.example, depot.example" }]
smtpd_sasl_password_file = "users"
"""
)
PROVIDER_LISTENERS = """
[[listener]]
name = "lan"
address = "127.0.0.1"
port = 0
[[listener]]
name = "odmr"
address = "*"
port = 366
profile = "odmr"
"""
BRANCH = (
    FAST
    + f"""
myhostname = "gw.branch.example"
relay_domains = ["branch.example", "depot.example"]
relay_transport = "inner:[127.0.0.1]:PORT"
relayhost = "[{HUB}]:366"
defer_transports = ["smtp"]
smtp_tls_security_level = "encrypt"
smtp_links = ["wan"]
[transport.inner]
smtp_links = []
smtp_tls_security_level = "none"
"""
)
LINK = f"""
[[listener]]
name = "lan"
address = "*"
port = 0

[[link]]
name = "wan"
class = "lte"
interface = "wan0"
on_up = []
atrn = "{HUB}"
atrn_domains = ["branch.example", "depot.example"]
atrn_user = "branch"
atrn_password_file = "hub.password"
"""


@pytest.fixture
def net() -> Iterator[Places]:
    """branch -- carrier, who hides it behind an address of its own -- hub, who knows no way to the branch."""
    nft = need("nftables", root=True)
    with places("branch", "carrier", "hub") as found:
        found.wire("branch", "wan0", "carrier", "in0")
        found.wire("carrier", "out0", "hub", "net0")
        with found.within("carrier"):
            forward()
            ip("addr add 10.64.0.1/24 dev in0", f"addr add {CARRIER}/24 dev out0")
            rules = "table ip nat { chain after { type nat hook postrouting priority 100; oifname out0 masquerade; }; }"
            done = subprocess.run(
                [nft.path(), rules], env=nft.environment(), capture_output=True, text=True, timeout=20, check=False
            )
            assert done.returncode == 0, done.stderr
        with found.within("hub"):
            ip(f"addr add {HUB}/24 dev net0")
        with found.within("branch"):
            ip("addr add 10.64.0.2/24 dev wan0", "route add default via 10.64.0.1")
        yield found


@pytest.fixture
def ends(net: Places) -> Iterator[dict[str, Sink]]:
    """Where the mail of each side ends: a server within its network."""
    with contextlib.ExitStack() as stack:
        found = {}
        for name in ("hub", "branch"):
            with net.within(name):
                found[name] = stack.enter_context(sink())
        yield found


@pytest.fixture
def hub(tmp_path: Path, net: Places, ends: dict[str, Sink]) -> Iterator[Relay]:
    (tmp_path / "hub").mkdir()
    found = Relay(tmp_path / "hub", PROVIDER.replace("PORT", str(ends["hub"].port)), PROVIDER_LISTENERS)
    found.run("edgemail", "passwd", "branch", input=f"{PASSWORD}\n".encode())
    with net.within("hub"):
        found.start()
    try:
        yield found
    finally:
        found._end()


def branch_of(tmp_path: Path, end: Sink, link: str = LINK) -> Relay:
    (tmp_path / "branch").mkdir()
    secret = tmp_path / "branch" / "hub.password"
    secret.write_text(f"{PASSWORD}\n")
    secret.chmod(0o600)
    return Relay(tmp_path / "branch", BRANCH.replace("PORT", str(end.port)), link)


def load(net: Places, hub: Relay, branch: Relay, count: int) -> None:
    """Mail on both sides."""
    for number in range(count):
        with net.within("hub"):
            hub.send(recipients=f"down{number}@{('branch', 'depot')[number % 2]}.example")
        with net.within("branch"):
            branch.send(sender="joe@branch.example", recipients=f"up{number}@corp.example")
    hub.wait_deferred(count)
    branch.wait_deferred(count)


def arrived(end: Sink, count: int) -> list[str]:
    """Whose mail came, without domains and numbers."""
    found = end.wait_for(count)
    return [re.sub(r".*<([a-z]+)\d@.*", r"\1", rcpt) for one in found for rcpt in one.rcpt]


@needs_root
def test_mail_goes_both_ways_over_one_connection_when_the_link_comes_up(
    tmp_path: Path, net: Places, hub: Relay, ends: dict[str, Sink]
) -> None:
    branch = branch_of(tmp_path, ends["branch"])
    with net.within("branch"):
        ip("link set wan0 down")
        branch.start()
    try:
        load(net, hub, branch, 4)
        for address in ("10.64.0.2", CARRIER):
            with net.within("hub"), pytest.raises(OSError, match=r"unreachable|refused"):
                socket.create_connection((address, branch.port), 3).close()
        with net.within("branch"):
            ip("link set wan0 up", "route replace default via 10.64.0.1")
        branch.wait_for(r"link wan: atrn to \S+: 4 messages, 250 ", 40)
        assert arrived(ends["branch"], 4) == ["down"] * 4
        assert arrived(ends["hub"], 4) == ["up"] * 4
        hub.wait_empty()
        branch.wait_empty()
        assert len(re.findall(rf" connect from \S*\[{CARRIER}\]", hub.log())) == 1, "one session for all of it"
        hub.wait_for(r"disconnect from .* starttls=1 auth=1 mail=4 .*atrn=1")
        assert PASSWORD not in branch.log() + hub.log()
    finally:
        branch._end()


def asked_of(branch: Relay) -> dict[str, Any]:
    """What its link says of the last time that its provider was asked."""
    found = json.loads(branch.run("edgemail", "routes", "--json").stdout)["links"][0]["asked"]
    asked: dict[str, Any] = next((one for one in found if one["verb"] == "atrn"), {"result": "", "words": ""})
    return asked


@needs_root
def test_a_schedule_asks_at_the_start_too(tmp_path: Path, net: Places, hub: Relay, ends: dict[str, Sink]) -> None:
    """The link was up all the time. Nothing to fetch is no failure; a refused login is a warning."""
    branch = branch_of(tmp_path, ends["branch"], LINK + 'ask_interval = "5m"\n')
    with net.within("branch"):
        branch.start()
    try:
        branch.wait_for(r"link wan: atrn to \S+: 0 messages, 453 ")
        assert asked_of(branch)["result"] == "ok"
        assert "0 messages, 453" in asked_of(branch)["words"]
        load(net, hub, branch, 2)
        with net.within("branch"):
            branch.restart()
        branch.wait_for(r"link wan: atrn to \S+: 2 messages, 250 ")
        assert arrived(ends["hub"], 2) == ["up"] * 2
        assert arrived(ends["branch"], 2) == ["down"] * 2
        (tmp_path / "branch" / "hub.password").write_text("wrong\n")
        with net.within("branch"):
            branch.restart()
        branch.wait_for(r"warning: link wan: atrn to \S+: .*535 5\.7\.8")
        branch.wait_until(lambda: "535 5.7.8" in asked_of(branch)["words"], "words of the provider")
        assert asked_of(branch)["result"] == "refused"
        assert "  atrn to 198.51.100.1 " in branch.run("edgemail", "routes").stdout
        assert "Traceback" not in branch.log()
    finally:
        branch._end()
