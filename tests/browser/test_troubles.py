"""The status page of a box with every trouble at once: each is read in words, at 360 and 1280 pixels, in both themes.

The page and its script are the relay's own; what they show is made here, for no box has all of this at the same time.
"""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgemail.boot import components
from edgemail.boot.credentials import logins
from edgemail.boot.ownname import OwnName
from edgemail.clock import ManualClock
from edgemail.errors import Kind
from edgemail.health.board import Board, Condition, State
from edgemail.health.guard import MEMORY_THRESHOLDS, Guard, Guards
from edgemail.health.page import asset
from edgemail.relay.queue.link import LinkStatus
from edgemail.relay.queue.link import State as LinkState
from edgemail.relay.queue.sites import SiteStatus
from edgemail.relay.send.credentials import Verdict
from tests.browser import Browser, browser

ISP = "smtp:[smtp.a-provider-with-a-long-name.example]:587"
REFUSAL = "535 5.7.8 Error: authentication credentials invalid, see https://help.provider.example/login"


def site(name: str, *, configured: bool, state: str, reason: str = "", waiting: int = 0) -> SiteStatus:
    kind = Kind.ROUTE if reason else None
    return SiteStatus(name, "smtp", configured, state, reason, "4.7.8", kind, 0.0, 0.0, 5, 0, waiting)


def link(name: str, state: LinkState, reason: str = "") -> LinkStatus:
    return LinkStatus(name, "satellite", state, reason, 0.0, 0, 1_234_567, 5_000_000, 9_876_543, 0, {})


def told() -> dict[str, Any]:
    """What /page.json says of such a box."""
    clock = ManualClock()
    guards = Guards(clock)
    guards.disk.measure(10_000_000, 40_000_000, 8_000_000_000)
    guards.inodes.measure(900_000, 16, 1_000_000)
    guards.spool.measure(1_900_000_000, 40_000_000, 2_000_000_000)
    guards.memory = Guard("memory", MEMORY_THRESHOLDS, clock)
    guards.memory.measure(0.88)
    guards.descriptors.measure(0.02)
    sites = (
        site(ISP, configured=True, state="paused", reason=f"login refused: {REFUSAL}", waiting=12),
        site("smtp:example.org", configured=False, state="dead", reason="connect to mx.example.org: timed out"),
        site("smtp:well.example", configured=False, state="up"),
    )
    own = OwnName(clock, lambda address: _unknown(), lambda: ("8.8.8.7",))
    own._names = {"8.8.8.7": "unknown"}
    board = Board(clock)
    for probe in (
        lambda: {"listener.lan": Condition(numbers={"address": "192.168.7.1:25, [fd00::7]:25"})},
        lambda: {"spool": Condition()},
        lambda: {"queue": Condition(numbers={"depth": 12, "oldest_age": 7400, "next_attempt": 60})},
        guards.conditions,
        lambda: components.routes(sites, clock.wall()),
        lambda: components.links((link("dsl", LinkState.DOWN, "eth1 has no carrier"), link("sat", LinkState.UP))),
        lambda: {
            "clock": Condition(State.DEGRADED, "clock-untrusted", "The clock is not trusted: NTP has not set it yet.")
        },
        lambda: {"certificate.gw.pem": Condition(State.DEGRADED, "certificate-ends", "The certificate ends in 9 days")},
        lambda: logins({"[smtp.a-provider-with-a-long-name.example]:587": Verdict("gw7", REFUSAL, 0.0)}, 300.0),
        lambda: {"credential.sasl_passwd": Condition(numbers={"mode": "0600"})},
        own.conditions,
    ):
        board.add(probe)
    status = board.status()
    causes = [
        {"destination": ISP, "reason": REFUSAL, "state": "deferred", "messages": 11, "oldest": 7400.0, "next": 60.0},
        {"destination": "smtp:example.org", "reason": "", "state": "hold", "messages": 1, "oldest": 30.0, "next": None},
    ]
    recent = [
        {
            "id": "6B01A4B902",
            "at": clock.wall() - 90,
            "from": "scanner@a-rather-long-name-for-a-device.example.com",
            "recipients": 1,
            "size": 4000,
            "fate": "deferred",
            "to": [{"address": "office@example.com", "fate": "deferred", "text": REFUSAL}],
        }
    ]
    return {
        "status": status,
        "now": clock.wall(),
        "version": "0.1.0",
        "myhostname": "gw7.example.com",
        "sentence": status["message"],
        "queue": causes,
        "shape": [1, 2, 8, 0, 0, 1, 0, 0, 0, 0],
        "shape_labels": ["5", "10", "20", "40", "80", "160", "320", "640", "1280", "1280+"],
        "traffic": [[0, 4, 0, 1], [3, 9, 7, 0], [40, 30, 30, 2]],
        "recent": recent,
    }


async def _unknown() -> str:
    return "unknown"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A web server with the page, its script and that answer."""
    answers = {
        "/": ("text/html; charset=utf-8", asset("page.html")),
        "/page.js": ("text/javascript; charset=utf-8", asset("page.js")),
        "/page.json": ("application/json", json.dumps(told()).encode()),
    }

    class Pages(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, content = answers[self.path]
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_trouble_is_said_in_words(tmp_path: Path, address: str, window: Browser, width: int, dark: bool) -> None:
    window.look(width, dark=dark)
    window.open(address)
    window.wait(lambda: "asking" not in window.text("#state"), "answer to the page")
    assert window.text("#state") == "failed"
    assert window.text("#sentence") == "The disk is full: no mail is taken until there is room again"
    assert "waits: login refused: 535 5.7.8" in window.text("#routes")
    assert "Link dsl is down: eth1 has no carrier" in window.text("#routes")
    parts = window.text("#components")
    assert "does not let us in as gw7: 535 5.7.8" in parts
    assert "8.8.8.7, where our mail comes from, has no name in the DNS" in parts
    assert "a file of mode 0600" in parts
    overflow = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert window.run(overflow) <= 0
    window.picture(tmp_path / f"troubles-{width}.png")
    assert window.errors() == []
