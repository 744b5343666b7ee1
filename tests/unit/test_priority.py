"""Classes of mail: which is which, and that the one goes before the other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgemail.boot import config, show
from edgemail.envelope import Address, Envelope, Origin, Recipient
from edgemail.errors import ConfigurationError
from edgemail.relay.queue.priority import MAX_RANKS, Priorities, Rules, parse_rule
from edgemail.settings import Configuration, Link, Priority
from tests.queue import later
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
    assert Rules(RULES).matches(envelope, lambda: header) is first


def test_no_header_is_read_where_no_rule_asks_for_one_and_never_twice() -> None:
    rules = Rules(("sender:a@b.example",))
    assert not rules.matches(mail("x@b.example"), lambda: pytest.fail("it was read"))
    read: list[int] = []

    def header() -> bytes:
        read.append(1)
        return b"X-Third: 1\r\n\r\n"

    classes = [Priority(name, (f"header:X-{name}:",)) for name in ("first", "second", "third")]
    assert Priorities(classes).rank(mail(), header) == 2
    assert len(read) == 1


@pytest.mark.parametrize(
    ("classes", "ranks", "normal"),
    [
        ((), (0, 0, 0), 0),
        ((Priority("alarm", ("listener:alarms",)),), (0, 1, 1), 1),
        (
            (Priority("alarm", ("listener:alarms",)), Priority("rest"), Priority("scan", ("listener:scan",))),
            (0, 2, 1),
            1,
        ),
        ((Priority("rest"), Priority("scan", ("listener:scan",))), (0, 1, 0), 0),
    ],
)
def test_the_first_class_that_names_it_counts(
    classes: tuple[Priority, ...], ranks: tuple[int, ...], normal: int
) -> None:
    found = Priorities(classes)
    assert tuple(found.rank(mail(listener=name)) for name in ("alarms", "scan", "lan")) == ranks
    assert found.normal == normal
    assert bool(found) is any(each.match for each in classes)


WHOLE = """
[[priority]]
name = "alarm"
match = ["listener:alarms", "sender:ups@ship.example"]
[[priority]]
name = "letters"
[[priority]]
name = "scan"
match = "header:X-Scanner:"
"""


def load(path: Path, text: str) -> Configuration:
    path.write_text('myhostname = "gw.example.com"\n' + text)
    return config.load(path, files=False)


def test_classes_of_a_file(tmp_path: Path) -> None:
    found = load(tmp_path / "edgemail.toml", WHOLE)
    assert found.priorities == (
        Priority("alarm", ("listener:alarms", "sender:ups@ship.example")),
        Priority("letters"),
        Priority("scan", ("header:X-Scanner:",)),
    )
    again = tmp_path / "again.toml"
    again.write_text(show.text(found))
    assert config.load(again, files=False).priorities == found.priorities
    assert [each["name"] for each in json.loads(show.as_json(found))["priority"]] == ["alarm", "letters", "scan"]


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ("[priority]\nname='a'", "priority", "expected tables"),
        ("[[priority]]\nmatch=['listener:x']", "priority[1].name", "not a short word"),
        ("[[priority]]\nname='a'\nmach=['listener:x']", "priority[1].mach", "unknown parameter"),
        ("[[priority]]\nname='a'\nmatch=['listener:x']\n[[priority]]\nname='a'", "priority[2].name", "another class"),
        ("[[priority]]\nname='a'\n[[priority]]\nname='b'", "priority[2]", "second without match"),
        ("[[priority]]\nname='a'\nmatch=3", "priority[1].match", "expected an array"),
        ("[[priority]]\nname='a'\nmatch=['subject:x']", "priority[1].match", "says nothing of mail"),
        ("[[priority]]\nname='a'\nmatch=['sender:bob']", "priority[1].match", "expected an address"),
        ("[[priority]]\nname='a'\nmatch=['listener:\\u0007']", "priority[1].match", "listener"),
        (
            "".join(f"[[priority]]\nname='a{n}'\nmatch=['listener:x']\n" for n in range(MAX_RANKS)),
            "priority[8]",
            "more than 8 classes",
        ),
    ],
)
def test_mistakes(tmp_path: Path, text: str, key: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path / "edgemail.toml", text.replace("'listener:\\u0007'", '"listener:\\u0007$x"'))
    problems = caught.value.problems
    assert [problem.key for problem in problems] == [key]
    assert message in problems[0].message or message == "listener"
    assert problems[0].line


@pytest.mark.parametrize("text", ["", "sender", "sender:", "sender:bob", "subject:x", "header:", ":x"])
def test_what_is_no_rule(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_rule(text)


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

    play(scenario, VSAT, priorities=(Priority("alarm", (rule,)),))


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

    play(scenario, VSAT, priorities=(Priority("alarm", ("sender:ups@ship.example",)),))


CLASSES = (
    Priority("alarm", ("sender:ups@ship.example",)),
    Priority("crew", ("listener:crew",)),
    Priority("letters"),
    Priority("scan", ("listener:scan",)),
)


@pytest.mark.parametrize("how", ["link", "flush", "run"])
def test_several_classes_leave_in_their_order(how: str) -> None:
    """Whatever lets them go: the link, a flush, or that their time has come. They go to several destinations."""

    async def scenario(box: Box) -> None:
        await box.link("vsat", how != "link")
        box.net.answers["*"] = later
        for number in range(12):
            await box.accept(f"scan{number}@example{number % 3}.net", origin=Origin(listener="scan"))
            await box.accept(f"letter{number}@example{number % 3}.net")
            await box.accept(f"crew{number}@example{number % 3}.net", origin=Origin(listener="crew"))
            await box.accept(f"alarm{number}@other.example", sender="ups@ship.example")
        await box.advance(5.0)
        box.net.answers.clear()
        box.net.tried.clear()
        if how == "link":
            await box.link("vsat", True)
        elif how == "flush":
            await box.scheduler.flush()
        else:
            await box.advance(400.0)
        await box.advance(5.0)
        assert not box.mail()
        kinds = [address.rstrip("0123456789").partition("@")[0].rstrip("0123456789") for _, _, address in box.net.tried]
        order = ["alarm"] * 12 + ["crew"] * 12 + ["letter"] * 12 + ["scan"] * 12
        early = sum(kind != wanted for kind, wanted in zip(kinds, order, strict=True))
        assert early <= 2, "".join(
            kind[0] for kind in kinds
        )  # what was under way when the first of a class was looked at

    play(scenario, VSAT, priorities=CLASSES)
