"""A line that is down for a month, that flaps, that dies in the middle of a message. The real process."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

from tests.network import cable, ip, namespace, needs_root, plug, pull
from tests.scenarios.line import line
from tests.scenarios.relay import MESSAGE, Relay, relay
from tests.scenarios.sink import after_trace, sink

DAY = 86_400.0
FAST = """
queue_run_delay = "1s"
minimal_backoff_time = "1s"
maximal_backoff_time = "2s"
maximal_queue_lifetime = "5d"
bounce_queue_lifetime = "5d"
delay_warning_time = "4h"
"""
TABLES = """
[[listener]]
name = "lan"
address = "127.0.0.1"
port = 0

[[link]]
name = "vsat"
class = "satellite"
interface = "sat0"

[[priority]]
name = "alarm"
match = ["sender:ups@ship.example"]
[[priority]]
name = "letters"
[[priority]]
name = "scan"
match = ["header:X-Scanner:"]
"""
# The machine's clocks, set forward by what a file says: time passes for the process, as it does over night.
LATER = """
import os, sys, time
import edgemail.clock
path, real, even = sys.argv[1], time.time, time.monotonic
def shift():
    try:
        return float(open(path).read() or 0)
    except (OSError, ValueError):
        return 0.0
time.time = lambda: real() + shift()
time.monotonic = lambda: even() + shift()
edgemail.clock._since_boot = time.monotonic
edgemail.clock._ADJTIMEX = None
from edgemail.boot import cli
sys.argv = ["edgemail", *sys.argv[2:]]
sys.exit(cli.main())
"""


def pass_days(path: Path, days: int) -> None:
    """Let days pass, one after the other."""
    for day in range(days):
        path.with_suffix(".new").write_text(str((day + 1) * DAY))
        path.with_suffix(".new").replace(path)
        time.sleep(0.3)


def subject(content: bytes) -> str:
    found = re.search(rb"Subject: (\w+)", content)
    assert found
    return found[1].decode()


def message(name: str, more: bytes = b"") -> bytes:
    return more + MESSAGE.replace(b"a test", name.encode())


@needs_root
def test_a_month_without_a_line_then_everything_leaves_the_urgent_first(tmp_path: Path) -> None:
    shift = tmp_path / "shift"
    shift.write_text("0")
    with namespace(), sink() as isp:
        cable("sat0")
        ip("addr add 192.0.2.2/24 dev sat0")
        settings = FAST + f'relayhost = "[127.0.0.1]:{isp.port}"\nsmtp_links = ["vsat"]\n'
        box = Relay(tmp_path, settings, TABLES)
        box.program = ["-c", LATER, str(shift)]
        box.start()
        try:
            kinds: list[tuple[str, dict[str, Any]]] = [
                ("scan", {"message": message("scan", b"X-Scanner: 1\r\n")}),
                ("letter", {"message": message("letter")}),
                ("alarm", {"message": message("alarm"), "sender": "ups@ship.example"}),
            ]
            for _ in range(10):
                for _, given in kinds:
                    box.send(**given)
            box.wait_deferred(30)
            pass_days(shift, 30)
            box.wait_until(lambda: box.waiting()[0]["arrival_time"] + 29 * DAY < time.time() + 30 * DAY, "month")
            assert len(box.waiting()) == 30
            assert isp.received == []
            assert "status=bounced" not in box.log()
            assert "status=expired" not in box.log()
            assert "notice to" not in box.log()
            plug("sat0")
            found = [subject(one.content) for one in isp.wait_for(30)]
            box.wait_empty()
            assert len(isp.received) == 30, "no bounce, no warning, nothing twice"
            order = ["alarm"] * 10 + ["letter"] * 10 + ["scan"] * 10
            assert sum(one != wanted for one, wanted in zip(found, order, strict=True)) <= 4, found
            assert "Traceback" not in box.log()
        finally:
            box._end()


@needs_root
def test_a_line_that_comes_and_goes_while_mail_is_under_way(tmp_path: Path) -> None:
    """Slow, cut every now and then, its carrier gone with it: each message arrives, and none is returned."""
    with namespace(), sink() as isp, line(isp.port) as way:
        way.rate, way.delay = 60_000.0, 0.01
        cable("sat0")
        ip("addr add 192.0.2.2/24 dev sat0")
        settings = FAST + f'relayhost = "[127.0.0.1]:{way.port}"\nsmtp_links = ["vsat"]\n'
        with relay(tmp_path, settings, TABLES) as box:
            bodies = [message(f"n{number}") + (b"x" * 70 + b"\r\n") * (20 * number + 1) for number in range(20)]
            for body in bodies:
                box.send(message=body)
            for _ in range(4):
                plug("sat0")
                time.sleep(0.7)
                pull("sat0")
                way.cut()
                time.sleep(0.2)
            plug("sat0")
            box.wait_empty(60)
            arrived = {after_trace(one.content) for one in isp.received}
            assert arrived == set(bodies)
            assert "status=bounced" not in box.log()
            assert "Traceback" not in box.log()


@pytest.mark.parametrize("chunking", [True, False])
def test_a_line_that_dies_in_the_middle_of_a_message(tmp_path: Path, chunking: bool) -> None:
    """The server has not said that it has it: it is sent again, whole, and once."""
    keywords = ("PIPELINING", "8BITMIME", "SIZE", *(("CHUNKING",) if chunking else ()))
    with sink(keywords=keywords) as isp, line(isp.port) as way:
        way.cut_after = 150_000
        with relay(tmp_path, FAST + f'relayhost = "[127.0.0.1]:{way.port}"\n') as box:
            body = message("large") + (b"y" * 70 + b"\r\n") * 6000
            box.send(message=body)
            box.wait_for(r"status=deferred \(lost connection|status=deferred \(.*[Cc]onnection")
            box.wait_empty(30)
            assert [after_trace(one.content) for one in isp.received] == [body]
            assert way.connections == 2
            assert "status=bounced" not in box.log()
