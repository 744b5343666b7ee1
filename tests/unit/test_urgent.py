"""Mail that goes first: who it is, and that it does."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgemail.boot import config
from edgemail.envelope import Address, Envelope, Origin, Recipient
from edgemail.errors import ConfigurationError
from edgemail.relay.queue.urgent import Urgent, parse_rule
from edgemail.settings import Link
from tests.unit.test_keep import Box, play

RULES = (
    "sender:UPS@ship.example",
    "recipient:@alarm.example",
    "listener:alarms",
    "header:X-Priority:1",
    "header:X-Fire:",
)
VSAT = Link("vsat", "satellite", interface="sat0")


def mail(sender: str = "a@b.example", recipient: str = "c@d.example", listener: str = "lan") -> Envelope:
    return Envelope(1, Address.of(sender), (Recipient(Address.of(recipient)),), origin=Origin(listener=listener))


@pytest.mark.parametrize(
    ("envelope", "header", "first"),
    [
        (mail(), b"Subject: x", False),
        (mail("ups@SHIP.example"), b"", True),
        (mail("ups@other.example"), b"", False),
        (mail(recipient="x@ALARM.example"), b"", True),
        (mail(recipient="x@sub.alarm.example"), b"", False),
        (mail(listener="alarms"), b"", True),
        (mail(), b"x-priority:  1 (Highest)\r\nSubject: x", True),
        (mail(), b"X-Priority: 3", False),
        (mail(), b"X-Fire : no", True),
        (mail(), b"Subject: X-Priority: 1\r\n\r\nX-Priority: 1\r\n", False),
        (mail(), b"Subject: x\r\n X-Priority: 1\r\n", False),
        (mail(), b"\xff\xfe: \x00\r\n\r\n", False),
    ],
)
def test_who_goes_first(envelope: Envelope, header: bytes, first: bool) -> None:
    assert Urgent(RULES).matches(envelope, lambda: header) is first


def test_no_header_is_read_where_no_rule_asks_for_one() -> None:
    rules = Urgent(("sender:a@b.example",))
    assert rules
    assert not rules.matches(mail("x@b.example"), lambda: pytest.fail("it was read"))
    assert not Urgent(())


@pytest.mark.parametrize("text", ["", "sender", "sender:", "sender:bob", "subject:x", "header:", ":x"])
def test_what_is_no_rule(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_rule(text)
    if not text:
        return
    path = tmp_path / "edgemail.toml"
    path.write_text(f'myhostname = "gw.example.com"\nurgent = ["{text}"]\n')
    with pytest.raises(ConfigurationError) as caught:
        config.load(path, files=False)
    assert [(problem.key, problem.line) for problem in caught.value.problems] == [("urgent", 2)]


@pytest.mark.parametrize(
    ("rule", "alarm"),
    [
        ("sender:ups@ship.example", {"sender": "ups@ship.example"}),
        ("header:X-Priority:1", {"content": b"X-Priority: 1\r\n\r\n"}),
    ],
)
def test_alarms_that_came_last_leave_first_when_the_link_comes_up(rule: str, alarm: dict[str, object]) -> None:
    async def scenario(box: Box) -> None:
        await box.link("vsat", False)
        for number in range(100):
            await box.accept(f"scan{number}@example.net")
        for number in range(3):
            await box.accept(f"alarm{number}@example.net", **alarm)
        await box.settle()
        if rule.startswith("sender"):
            await box.crash()  # and a restart does not forget it
        await box.link("vsat", True)
        await box.advance(3.0)
        assert not box.mail()
        tried = [address for _, _, address in box.net.tried]
        assert sorted(tried[:4])[:3] == ["alarm0@example.net", "alarm1@example.net", "alarm2@example.net"]

    play(scenario, VSAT, urgent=(rule,))


def test_an_alarm_passes_the_backlog_of_a_slow_link() -> None:
    async def scenario(box: Box) -> None:
        gate = box.net.hold("*")
        await box.link("vsat", True)
        for number in range(50):
            await box.accept(f"scan{number}@example.net")
        await box.settle()
        under_way = len(box.net.tried)
        assert 1 <= under_way <= 32
        await box.accept("alarm@example.net", sender="ups@ship.example")
        await box.settle()
        gate.set()
        await box.advance(3.0)
        tried = [address for _, _, address in box.net.tried]
        assert len(tried) == 51
        assert tried.index("alarm@example.net") == under_way, "right behind what was on its way over the one connection"

    play(scenario, VSAT, urgent=("sender:ups@ship.example",))
