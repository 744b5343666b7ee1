"""Mail keeps to its link: by which interface it leaves, whatever the system's routes prefer. The real process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.network import Places, ip, needs_root, places
from tests.scenarios.relay import Relay, relay
from tests.scenarios.sink import Sink, sink

FAST = """
queue_run_delay = "1s"
minimal_backoff_time = "1s"
maximal_backoff_time = "2s"
smtp_connection_cache_time_limit = "1s"
"""
LISTENER = '\n[[listener]]\nname = "lan"\naddress = "127.0.0.1"\nport = 0\n'
FOUR, SIX = "198.51.100.25", "2001:db8:9::25"  # the smarthost, far away
OWN = {"quay0": ("192.0.2.2", "2001:db8:2::2"), "sat0": ("192.0.3.2", "2001:db8:3::2")}


@pytest.fixture
def network() -> Iterator[Places]:
    """A box with two uplinks, each with a way to the smarthost; the system prefers the quay's."""
    with places("box", "far") as found:
        for number, name in ((2, "quay0"), (3, "sat0")):
            found.wire("box", name, "far", f"far-{name}")
            with found.within("far"):
                ip(f"addr add 192.0.{number}.1/24 dev far-{name}")
                ip(f"addr add 2001:db8:{number}::1/64 dev far-{name} nodad")
            with found.within("box"):
                ip(f"addr add 192.0.{number}.2/24 dev {name}", f"addr add 2001:db8:{number}::2/64 dev {name} nodad")
                ip(f"route add default via 192.0.{number}.1 metric {number}")
                ip(f"route add default via 2001:db8:{number}::1 metric {number}")
        with found.within("far"):
            ip(f"addr add {FOUR}/32 dev lo", f"addr add {SIX}/128 dev lo nodad")
        yield found


def link(name: str, interface: str, more: str = "") -> str:
    return f'\n[[link]]\nname = "{name}"\ninterface = "{interface}"\n{more}\n'


def known(box: Relay, name: str) -> dict[str, Any]:
    """What the relay says of a link."""
    found = json.loads(box.run("edgemail", "routes", "--json").stdout)
    return next(one for one in found["links"] if one["link"] == name)


def clients(found: Sink) -> list[str]:
    return found.server.clients


@needs_root
@pytest.mark.parametrize(("host", "family"), [(FOUR, 0), (SIX, 1)], ids=["IPv4", "IPv6"])
def test_mail_leaves_by_the_link_that_its_transport_names(
    tmp_path: Path, network: Places, host: str, family: int
) -> None:
    with network.within("far"):
        manager = sink(host=host)
        isp = manager.__enter__()
    try:
        hop = f"[{host}]:{isp.port}" if family == 0 else f"[ipv6:{host}]:{isp.port}"
        settings = FAST + f'relayhost = "{hop}"\ntransport_maps = [{{ "free.example" = "free:{hop}" }}]\n'
        tables = LISTENER + '\n[transport.smtp]\nsmtp_links = ["vsat", "quay"]\n'
        tables += link("vsat", "sat0") + link("quay", "quay0")
        with network.within("box"), relay(tmp_path, settings, tables) as box:
            box.send()
            isp.wait_for(1)
            assert clients(isp) == [OWN["sat0"][family]], "though the routes prefer the quay"
            box.send(recipients="bob@free.example")
            isp.wait_for(2)
            assert clients(isp)[1] == OWN["quay0"][family], "what names no link goes as the system routes"
            ip("link set sat0 down")
            box.wait_for("link vsat: down, no carrier on sat0")
            box.send()
            isp.wait_for(3)
            assert clients(isp)[2] == OWN["quay0"][family], "the next best link takes over"
            box.configure(settings, tables.replace('"sat0"\n', '"sat0"\nbind = false\n', 1))
            box.reload()
            ip("link set sat0 up")
            box.wait_until(lambda: known(box, "vsat")["state"] == "up", "link")
            box.send()
            isp.wait_for(4)
            assert clients(isp)[3] == OWN["quay0"][family], "watched and no more"
    finally:
        manager.__exit__(None, None, None)


@needs_root
def test_a_link_without_an_address_of_that_family_bounces_nothing(tmp_path: Path, network: Places) -> None:
    with network.within("box"):
        ip("addr del 2001:db8:3::2/64 dev sat0")
        settings = FAST + f'relayhost = "[ipv6:{SIX}]:25"\nsmtp_links = ["vsat"]\n'
        with relay(tmp_path, settings, LISTENER + link("vsat", "sat0")) as box:
            box.send()
            (one,) = box.wait_deferred()
            assert "link vsat has no IPv6 address" in one["recipients"][0]["reason"]


@needs_root
def test_a_probe_goes_by_its_own_link(tmp_path: Path, network: Places) -> None:
    """The quay leads to the host; the satellite's far end does not answer, and so the satellite is down."""
    with network.within("far"):
        manager = sink(host=FOUR)
        isp = manager.__enter__()
    try:
        probe = f'probe = "[{FOUR}]:{isp.port}"\nprobe_timeout = "2s"\nprobe_interval = "5s"'
        tables = LISTENER + link("vsat", "sat0", probe) + link("quay", "quay0", probe)
        with network.within("far"):
            ip("addr del 192.0.3.1/24 dev far-sat0", "addr del 2001:db8:3::1/64 dev far-sat0")
        with network.within("box"), relay(tmp_path, 'smtp_links = ["vsat", "quay"]\n', tables) as box:
            box.wait_for("link quay: up")
            box.wait_until(lambda: "its probe" in known(box, "vsat")["reason"], "probe")
            assert known(box, "vsat")["state"] == "down"
            assert set(clients(isp)) == {OWN["quay0"][0]}
    finally:
        manager.__exit__(None, None, None)
