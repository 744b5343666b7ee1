"""Offline is a state: transports on demand, links that are down, closed or full, wrong clocks. The real process."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.network import cable, ip, namespace, needs_root, plug, pull
from tests.scenarios.relay import LISTENER, MESSAGE, Relay, relay
from tests.scenarios.sink import Sink, sink

FAST = """
queue_run_delay = "1s"
minimal_backoff_time = "1s"
maximal_backoff_time = "2s"
"""


@pytest.fixture
def isp() -> Iterator[Sink]:
    with sink() as found:
        yield found


def routes(box: Relay) -> dict[str, Any]:
    found = json.loads(box.run("edgemail", "routes", "--json").stdout)
    return {one["route"]: one for one in found["routes"]} | {one["link"]: one for one in found["links"]}


# transports on demand


def ondemand(port: int) -> str:
    return FAST + (
        f'transport_maps = [{{ "example.org" = "ondemand:[127.0.0.1]:{port}", "*" = "smtp:[127.0.0.1]:{port}" }}]\n'
        'defer_transports = ["ondemand"]\n'
    )


def test_a_transport_on_demand_waits_over_runs_and_restarts_until_somebody_asks(tmp_path: Path, isp: Sink) -> None:
    with relay(tmp_path, ondemand(isp.port)) as box:
        kept = box.send(recipients="bob@example.org")
        box.send(recipients="carol@example.net")
        isp.wait_for(1)
        waiting = box.wait_deferred()
        assert [one["recipients"][0]["reason"] for one in waiting] == ["deferred transport"]
        time.sleep(2.5)  # some queue runs
        box.restart()
        time.sleep(2.5)
        assert len(isp.received) == 1
        assert [one["queue_id"] for one in box.waiting()] == [kept]
        assert routes(box)[f"ondemand:[127.0.0.1]:{isp.port}"]["state"] == "on-demand"
        box.run("edgemail", "queue", "flush", "--domain", "example.net")
        time.sleep(1)
        assert len(isp.received) == 1, "another site's flush is not this one's"
        box.run("edgemail", "queue", "flush", "--domain", "example.org")
        isp.wait_for(2)
        box.wait_empty()


@pytest.mark.parametrize("how", [("postqueue", "-f"), ("sendmail", "-q"), ("postqueue", "-i")])
def test_everybody_who_may_flush_may_ask(tmp_path: Path, isp: Sink, how: tuple[str, str]) -> None:
    settings = FAST + f'relayhost = "[127.0.0.1]:{isp.port}"\ndefer_transports = ["smtp"]\n'
    with relay(tmp_path, settings) as box:
        ids = [box.send() for _ in range(3)]
        box.wait_deferred(3)
        assert not isp.received, "nothing was tried before"
        box.run(*how, *ids[:1] if how[1] == "-i" else ())
        isp.wait_for(1 if how[1] == "-i" else 3)
        if how[1] == "-i":
            box.wait_until(lambda: len(box.waiting()) == 2, "its completion")


def test_a_flush_is_for_what_waits_now_and_a_failed_one_waits_again(tmp_path: Path, isp: Sink) -> None:
    settings = FAST + f'relayhost = "[127.0.0.1]:{isp.port}"\ndefer_transports = ["smtp"]\n'
    isp.stop()
    with relay(tmp_path, settings) as box:
        box.send()
        box.wait_deferred()
        box.run("postqueue", "-f")
        box.wait_for("onnection refused")
        isp.start()
        time.sleep(2.5)
        assert not isp.received, "on demand again"
        box.run("postqueue", "-f")
        isp.wait_for(1)


def test_what_nobody_asks_for_expires_by_the_wall_clock_alone(tmp_path: Path, isp: Sink) -> None:
    settings = FAST + (
        f'transport_maps = [{{ "example.org" = "ondemand:", "example.com" = "smtp:[127.0.0.1]:{isp.port}" }}]\n'
        'defer_transports = ["ondemand"]\nmaximal_queue_lifetime = "3s"\n'
    )
    with relay(tmp_path, settings) as box:
        box.send()
        box.wait_deferred()
        time.sleep(5)
        assert len(box.waiting()) == 1, "its clock stands still"
        box.reload(settings + 'lifetime_counts = "wall"\n')
        box.run("postqueue", "-f")
        (notice,) = isp.wait_for(1)
        assert b"deferred transport" in notice.content or b"example.org" in notice.content


# links


def link(port: int, more: str = "") -> tuple[str, str]:
    return FAST + f'relayhost = "[127.0.0.1]:{port}"\nsmtp_links = ["up"]\n', (
        '\n[[listener]]\nname = "lan"\naddress = "127.0.0.1"\nport = 0\n'
        f'\n[[link]]\nname = "up"\ninterface = "up0"\n{more}\n'
    )


@needs_root
def test_mail_waits_for_its_link_and_leaves_when_it_comes_up(tmp_path: Path) -> None:
    with namespace(), sink() as isp, relay(tmp_path, *link(isp.port)) as box:
        for _ in range(5):
            box.send()
        waiting = box.wait_deferred(5)
        assert {one["recipients"][0]["reason"] for one in waiting} == {"link up is down: there is no interface up0"}
        site = f"smtp:[127.0.0.1]:{isp.port}"
        found = routes(box)
        assert (found[site]["state"], found[site]["kind"]) == ("paused", "link")
        assert found["up"]["state"] == "down"
        status = json.loads(box.run("edgemail", "status").stdout)
        assert status["components"][f"route.{site}"]["state"] == "degraded"
        assert status["components"]["link.up"]["reason"] == "link-down"
        assert (status["state"], status["reason"]) == ("degraded", "link-failed")
        text = box.run("edgemail", "routes").stdout
        assert "link up (fibre): down" in text
        cable("up0")
        ip("addr add 192.0.2.2/24 dev up0")
        box.run("postqueue", "-f")
        time.sleep(1.5)
        assert not isp.received, "a flush does not make a link"
        plug("up0")
        isp.wait_for(5)
        box.wait_empty()
        assert routes(box)[site]["state"] == "up"
        pull("up0")
        box.wait_for("link up: down, no carrier on up0")
        box.send()
        box.wait_deferred()
        box.restart()
        plug("up0")
        isp.wait_for(6)
        assert "Traceback" not in box.log()


@needs_root
def test_the_provider_is_asked_for_our_mail_when_the_link_comes_up(tmp_path: Path) -> None:
    asked: list[str] = []

    def started(line: str) -> bytes:
        asked.append(line)
        return b"250 2.0.0 Queuing started\r\n" if "gone" not in line else b"459 4.7.1 not yours\r\n"

    with namespace(), sink(answers={"ETRN": started}, keywords=("PIPELINING", "ETRN")) as isp:
        more = f'etrn = "[127.0.0.1]:{isp.port}"\netrn_domains = ["ship.example", "gone.example"]'
        with relay(tmp_path, *link(isp.port, more)) as box:
            cable("up0")
            ip("addr add 192.0.2.2/24 dev up0")
            assert not asked
            plug("up0")
            box.wait_for("etrn ship.example to .*: 250 2.0.0 Queuing started")
            box.wait_for("etrn gone.example to .*: 459")
        assert asked == ["ETRN ship.example", "ETRN gone.example"]


@needs_root
def test_a_provider_that_is_not_there_is_a_line_in_the_log(tmp_path: Path) -> None:
    with namespace(), sink() as isp:
        isp.stop()
        more = f'etrn = "[127.0.0.1]:{isp.port}"\netrn_domains = ["ship.example"]\non_up = []'
        with relay(tmp_path, *link(isp.port, more)) as box:
            cable("up0")
            ip("addr add 192.0.2.2/24 dev up0")
            plug("up0")
            box.wait_for("warning: link up: etrn to .*onnect")
            assert "flush" not in box.log()
            assert "Traceback" not in box.log()


@needs_root
def test_a_line_that_flaps_loses_nothing_and_sends_each_message_once(tmp_path: Path) -> None:
    with namespace(), sink() as isp, relay(tmp_path, *link(isp.port)) as box:
        cable("up0")
        ip("addr add 192.0.2.2/24 dev up0")
        for number in range(40):
            box.send(message=MESSAGE.replace(b"a test", b"number %d" % number))
            (plug if number % 2 else pull)("up0")
        pull("up0")
        plug("up0")
        isp.wait_for(40)
        box.wait_empty()
        assert len({one.content for one in isp.received}) == len(isp.received) == 40


@needs_root
def test_large_mail_waits_for_a_better_link_and_the_budget_is_kept_over_a_restart(tmp_path: Path) -> None:
    with namespace(), sink() as isp:
        settings, tables = link(isp.port, 'class = "satellite"\nsize_limit = "20kB"\nbudget_day = "9kB"\n')
        settings = settings.replace('["up"]', '["quay", "up"]')
        tables += '\n[[link]]\nname = "quay"\ninterface = "quay0"\n'
        with relay(tmp_path, settings, tables) as box:
            for name, net in (("up0", 2), ("quay0", 3)):
                cable(name)
                ip(f"addr add 192.0.{net}.2/24 dev {name}")
            plug("up0")
            box.wait_for("link up: up")
            box.send(message=MESSAGE + b"x" * 30_000 + b"\r\n")
            (large,) = box.wait_deferred()
            assert "waits for a better link" in large["recipients"][0]["reason"]
            small = MESSAGE + (b"x" * 70 + b"\r\n") * 50
            for _ in range(2):
                box.send(message=small)
            isp.wait_for(2)
            box.wait_for("link up: spent, it has carried")
            box.send(message=small)
            box.wait_deferred(2)
            box.restart()
            box.wait_for("link up: spent, it has carried")
            time.sleep(1.5)
            assert len(isp.received) == 2
            assert routes(box)["up"]["day_bytes"] > 9000
            plug("quay0")
            isp.wait_for(4)
            box.wait_empty()


@needs_root
def test_a_window_that_is_closed_keeps_mail_and_says_when_it_opens(tmp_path: Path) -> None:
    now = time.localtime(time.time() + 7200)
    hours = f"{now.tm_hour:02d}:00-{now.tm_hour:02d}:59"
    with namespace(), sink() as isp:
        cable("up0")
        ip("addr add 192.0.2.2/24 dev up0")
        plug("up0")
        with relay(tmp_path, *link(isp.port, f'windows = ["{hours}"]')) as box:
            box.send()
            (one,) = box.wait_deferred()
            assert "link up is closed: its hours begin" in one["recipients"][0]["reason"]
            settings, tables = link(isp.port, 'windows = ["00:00-24:00"]')
            box.reload(settings, tables)
            isp.wait_for(1)


# the clock

SHIFTED = """
import sys, time
import edgemail.clock
shift, real = float(sys.argv[1]), time.time
time.time = lambda: real() + shift
edgemail.clock._ADJTIMEX = None  # whatever this machine's NTP says of its own clock
from edgemail.boot import cli
sys.argv = ["edgemail", *sys.argv[2:]]
sys.exit(cli.main())
"""
DAY = 86_400.0


@pytest.mark.parametrize(
    ("shift", "year", "doubt"),
    [
        (-time.time(), "1970", "before a date that has passed"),
        (-7 * DAY, "20", "it stands 7 days before a date that has passed"),
        (3653 * DAY, "20", "it is 10 years ahead, and NTP has not confirmed that"),
    ],
    ids=["1970", "seven-days-late", "ten-years-ahead"],
)
def test_with_a_wrong_clock_nothing_expires(tmp_path: Path, shift: float, year: str, doubt: str) -> None:
    answers = {"RCPT": lambda line: b"450 4.2.0 greylisted\r\n" if "bob@" in line else b""}
    with sink(answers=answers) as isp:
        settings = FAST + f'relayhost = "[127.0.0.1]:{isp.port}"\nlifetime_counts = "wall"\n'
        with relay(tmp_path, settings) as box:
            kept = box.send()
            box.wait_deferred()
            assert box.stop() == 0
            certificate = (tmp_path / "spool" / "tls" / "cert.pem").read_bytes()
            box.configure(settings + 'maximal_queue_lifetime = "1s"\ndelay_warning_time = "1s"\n')
            box.program = ["-c", SHIFTED, str(shift)]
            box.start()
            box.run("postqueue", "-f")
            box.wait_for(f"{kept}: to=.*status=deferred", count=2)
            assert [one["queue_id"] for one in box.waiting()] == [kept]
            assert "status=expired" not in box.log()
            clock = json.loads(box.run("edgemail", "status").stdout)["components"]["clock"]
            assert (clock["state"], clock["reason"]) == ("degraded", "clock-untrusted")
            assert doubt in clock["message"]
            box.send(recipients="carol@example.net")
            (taken,) = isp.wait_for(1)
            assert f" {year}".encode() in taken.content.partition(b"\r\n\r\n")[0].partition(b";")[2]
            assert (tmp_path / "spool" / "tls" / "cert.pem").read_bytes() == certificate, "no date was judged"
            box.restart()
            box.wait_for(f"{kept}: to=.*status=deferred")
            assert "status=expired" not in box.log(), "a restart makes a wrong clock no better"
            assert box.stop() == 0
            box.program = ["-c", SHIFTED, "0"]
            box.start()
            box.run("postqueue", "-f")
            box.wait_for("status=expired")
            assert "Traceback" not in box.log()


# notices


def told(box: Relay) -> int:
    return len(re.findall(r"notice to <\S+>: Mail route pauses", box.log_path.read_text()))


SEVERAL = 5  # messages whose tries fail at once: a route pauses after fewer, one message alone takes a while


def several(box: Relay) -> None:
    for _ in range(SEVERAL):
        box.send()


def test_of_a_pause_somebody_is_told_once_over_restarts_and_kills_too(tmp_path: Path, isp: Sink) -> None:
    settings = FAST + f'transport_maps = [{{ "example.org" = "smtp:[127.0.0.1]:{isp.port}" }}]\n'
    settings += 'defer_transports = ["later"]\ndefault_transport = "later"\n'
    isp.stop()
    with relay(tmp_path, settings) as box:
        several(box)
        box.wait_for("route paused")
        box.wait_until((tmp_path / "spool" / "pauses.json").exists, "file of what was told")
        assert told(box) == 1
        site = f"smtp:[127.0.0.1]:{isp.port}"
        since = routes(box)[site]["since"]
        for stop in (box.stop, box.kill):
            stop()
            box.start()
            box.wait_for("route paused", count=2)
            assert told(box) == 1
            found = routes(box)[site]
            assert (found["state"], found["since"]) == ("paused", since), "it pauses for as long as it has"
        isp.start()
        isp.wait_for(SEVERAL)
        box.wait_until(lambda: (tmp_path / "spool" / "pauses.json").read_text() == "{}\n", "end of the pause")
        isp.stop()
        box.restart()
        several(box)
        box.wait_for("route paused")
        box.wait_until(lambda: told(box) == 2, "second notice: this is another pause")


def metric(text: str, name: str, route: str) -> dict[str, float]:
    """The samples of a metric about a route, by the rest of their labels."""
    found = re.findall(rf'(?m)^{name}{{route="{re.escape(route)}"(?:,state="(\S+)")?}} (\S+)$', text)
    return {label: float(value) for label, value in found}


def test_routes_status_and_metrics_say_the_same(tmp_path: Path, isp: Sink) -> None:
    settings = FAST.replace('"2s"', '"100s"').replace('minimal_backoff_time = "1s"', 'minimal_backoff_time = "90s"')
    settings += (
        f'transport_maps = [{{ "example.org" = "smtp:[127.0.0.1]:{isp.port}", "*" = "ondemand:[192.0.2.1]" }}]\n'
    )
    settings += 'defer_transports = ["ondemand"]\n'
    isp.stop()
    with relay(tmp_path, settings, LISTENER + "\n[health]\nport = 0\n") as box:
        for recipient in ["bob@example.org"] * 6 + ["bob@elsewhere.example"]:
            box.send(recipients=recipient)
        box.wait_for("route paused")
        box.wait_deferred(7)
        site, asked = f"smtp:[127.0.0.1]:{isp.port}", "ondemand:[192.0.2.1]"
        found = routes(box)
        assert (found[site]["state"], found[asked]["state"]) == ("paused", "on-demand")
        status = json.loads(box.run("edgemail", "status").stdout)["components"]
        port = box.wait_for(r"listening on \S+ port (\d+), health")[1]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        for name, up in ((site, 0.0), (asked, 1.0)):
            one, component = found[name], status[f"route.{name}"]
            assert component["stands"] == one["state"]
            assert component["paused_since"] == one["since"]
            assert (component["state"] == "ok") == bool(up)
            assert metric(text, "edgemail_route_state", name) == {one["state"]: 1.0}
            assert metric(text, "edgemail_route_up", name) == {"": up}
        assert found[site]["reason"] in status[f"route.{site}"]["message"]
        assert metric(text, "edgemail_route_paused_since_timestamp_seconds", site)[""] == pytest.approx(
            found[site]["since"], abs=0.01
        )
        assert metric(text, "edgemail_route_next_probe_timestamp_seconds", site)[""] == pytest.approx(
            found[site]["next_probe"], abs=1.0
        )
        assert status[f"route.{site}"]["next_probe"] == pytest.approx(found[site]["next_probe"] - time.time(), abs=5)
