"""`edgemail routes`: what the daemon answers, what a person reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgemail.boot.cli import main
from edgemail.boot.routes import MAX_ROUTES, survey, text
from edgemail.clock import RELEASE_DATE
from edgemail.errors import Kind
from edgemail.relay.queue.link import Answer, Ask, LinkStatus, State
from edgemail.relay.queue.sites import SiteStatus
from tests.desk import Running, running

NOW = RELEASE_DATE + 86_400.0
Text = pytest.CaptureFixture[str]


def site(name: str = "smtp:example.org", state: str = "up", configured: bool = False, **more: object) -> SiteStatus:
    values: dict[str, object] = {
        "name": name, "transport": "smtp", "configured": configured, "state": state, "reason": "", "status": "",
        "kind": None, "since": 0.0, "next_probe": 0.0, "window": 5, "running": 0, "waiting": 0,
    }  # fmt: skip
    return SiteStatus(**{**values, **more})  # type: ignore[arg-type]


PAUSED = site(
    "smtp:[isp.example]:587", "paused", True, reason="535 5.7.8 no\x1b[2J", status="4.7.8", kind=Kind.ROUTE,
    since=NOW - 7200, next_probe=NOW + 300, waiting=12,
)  # fmt: skip
ASKED = {
    "etrn": Ask("hub.example", NOW - 300, Answer.OK, "ship.example: 250 Queuing started"),
    "atrn": Ask("hub.example:366", NOW - 7200, Answer.LATER, "connect to hub.example[192.0.2.1]:366: \x1b[2Jno"),
}
VSAT = LinkStatus("vsat", "satellite", State.SPENT, "it has carried enough", NOW - 60, 0, 200, 100, 200, 0, ASKED)


@pytest.fixture
def relay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    with running(tmp_path) as found:
        monkeypatch.setenv("EDGEMAIL_CONFIG", str(found.path))
        yield found


def test_what_is_wrong_stands_first() -> None:
    found = survey([site(), site("smtp:b.example", "dead"), PAUSED, site("smtp:c.example", "new")], [VSAT])
    assert [(one["route"], one["state"]) for one in found["routes"]] == [
        ("smtp:[isp.example]:587", "paused"),
        ("smtp:b.example", "dead"),
        ("smtp:c.example", "up"),
        ("smtp:example.org", "up"),
    ]
    assert len(survey([site(f"smtp:{n}") for n in range(MAX_ROUTES + 5)], [])["routes"]) == MAX_ROUTES


def test_the_words() -> None:
    said = text({"now": NOW, **survey([PAUSED, site(running=1)], [VSAT])})
    assert said == (
        "smtp:[isp.example]:587: paused for 2h: 535 5.7.8 no?[2J; next probe in 5m (0 under way, 12 in line)\n"
        "smtp:example.org: up (1 under way, 0 in line)\n"
        "link vsat (satellite): spent for 1m: it has carried enough; 200 of 100 bytes this day\n"
        "  atrn to hub.example:366 2h ago: later: connect to hub.example[192.0.2.1]:366: ?[2Jno\n"
        "  etrn to hub.example 5m ago: ok: ship.example: 250 Queuing started\n"
    )


def test_the_command_asks_the_daemon(relay: Running, capsys: Text) -> None:
    assert main(["routes"]) == 0
    assert capsys.readouterr().out == "No mail has gone anywhere since the start.\n"
    relay.routes = survey([PAUSED], [VSAT])
    assert main(["routes", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["routes"][0] == {
        "route": "smtp:[isp.example]:587", "transport": "smtp", "state": "paused", "reason": "535 5.7.8 no\x1b[2J",
        "kind": "route", "since": NOW - 7200, "next_probe": NOW + 300, "configured": True, "running": 0, "waiting": 12,
    }  # fmt: skip
    assert found["links"][0]["state"] == "spent"
    assert found["links"][0]["asked"][1] == {
        "verb": "etrn", "host": "hub.example", "at": NOW - 300, "result": "ok",
        "words": "ship.example: 250 Queuing started",
    }  # fmt: skip
    assert found["now"] == relay.clock.wall()
    relay.stop()
    assert main(["routes"]) == 75
    assert "edgemail" in capsys.readouterr().err
