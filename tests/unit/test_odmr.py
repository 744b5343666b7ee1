"""Who may have which mail by ATRN, which way it goes meanwhile, and what the queue says of it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from edgemail.boot.odmr import Provider, Turning
from edgemail.boot.reading import with_turned
from edgemail.clock import ManualClock
from edgemail.envelope import Address, Disposal, Envelope, Recipient, Route
from edgemail.relay.send.hop import TURNED
from edgemail.relay.wire import replies
from edgemail.settings import Configuration, Settings
from tests.queue import Rig, later, play, unreachable

MAPS = ((("Branch", "branch.example, Two.Example"), ("other", "other.example"), ("none", "")),)
ENVELOPE = Envelope(1, Address.of("a@example.net"), ())


class Queue:
    """A queue in which mail waits for some domains."""

    def __init__(self, *names: str) -> None:
        self.names = set(names)

    def waits(self, names: Collection[str]) -> bool:
        return bool(self.names & set(names))


def find(envelope: Envelope, recipient: Recipient) -> tuple[Route, Address]:
    if recipient.address.local == "gone":
        return Route("error", disposal=Disposal.ERROR, text="moved"), recipient.address
    return Route("smtp", ("[hub.example]:366",), configured=True), recipient.address


def provider(*waiting: str, maps: Any = MAPS) -> Provider:
    configuration = Configuration("/nowhere/edgemail.toml", Settings(odmr_domain_maps=maps), ())
    courier: Any = None
    found = Provider(ManualClock(), configuration, courier, find, asyncio.Event())
    queue: Any = Queue(*waiting)
    found.queue = queue
    return found


REFUSALS = {
    ("branch", ("other.example",)): replies.ATRN_REFUSED,
    ("branch", ("branch.example", "other.example")): replies.ATRN_REFUSED,
    ("branch", ("sub.branch.example",)): replies.ATRN_REFUSED,
    ("none", ()): replies.ATRN_REFUSED,
    ("stranger", ()): replies.ATRN_REFUSED,
    ("stranger", ("branch.example",)): replies.ATRN_REFUSED,
    ("branch", ("two.example",)): replies.ATRN_NO_MAIL,
}


@pytest.mark.parametrize(("asked", "reply"), REFUSALS.items())
def test_refusals(asked: tuple[str, tuple[str, ...]], reply: object) -> None:
    found = provider("branch.example", "other.example")
    assert found.turn(asked[0], "192.0.2.1", asked[1]) == reply
    assert found.serving == {}


def test_one_session_for_a_domain() -> None:
    found = provider("branch.example", "two.example", "other.example")
    first = found.turn("branch", "192.0.2.1", ("BRANCH.example",))
    assert isinstance(first, Turning)
    assert found.turn("branch", "192.0.2.1", ()) == replies.ATRN_UNABLE
    second = found.turn("branch", "192.0.2.1", ("two.example",))
    third = found.turn("other", "192.0.2.2", ())
    assert isinstance(second, Turning)
    assert isinstance(third, Turning)
    assert set(found.serving) == {"branch.example", "two.example", "other.example"}
    first.release()
    first.release()
    again = found.turn("branch", "192.0.2.1", ("branch.example",))
    assert isinstance(again, Turning)
    first.release()  # of what is another's by now
    assert found.serving["branch.example"] is again


def test_none_begins_when_the_relay_stops() -> None:
    found = provider("branch.example")
    found.stopping.set()
    assert found.turn("branch", "192.0.2.1", ()) == replies.ATRN_UNABLE


def test_tables_that_cannot_be_read_any_more(tmp_path: Path) -> None:
    path = tmp_path / "domains"
    path.write_text("branch branch.example\n")
    found = provider("branch.example", maps=(f"texthash:{path}",))
    assert isinstance(found.turn("branch", "192.0.2.1", ()), Turning)


def test_the_way_is_another_while_a_session_takes_mail() -> None:
    found = provider()
    bob, gone, joe = (Recipient(Address.of(text)) for text in ("bob@Branch.example", "gone@branch.example", "joe@x.y"))
    usual = Route("smtp", ("[hub.example]:366",), configured=True)
    assert found.route(ENVELOPE, bob)[0] == usual
    way = found.ways["branch.example"] = Route(TURNED, ("branch.example",))
    assert found.route(ENVELOPE, bob) == (way, bob.address)
    assert found.route(ENVELOPE, gone)[0].disposal is Disposal.ERROR
    assert found.route(ENVELOPE, joe)[0] == usual


def test_one_connection_takes_one_message_at_a_time() -> None:
    settings = Settings(smtp_tls_security_level="secure", smtp_links=("x",), default_destination_concurrency_limit=50)
    found = with_turned(Configuration("", settings, ())).transport(TURNED)
    assert (found.default_destination_concurrency_limit, found.initial_destination_concurrency) == (1, 1)
    assert (found.smtp_tls_security_level, found.smtp_links) == ("none", ())


def test_what_waits_and_what_is_about_to_go() -> None:
    async def scenario(rig: Rig) -> None:
        scheduler, names = rig.scheduler, ("example.net",)
        assert not scheduler.waits(names)
        rig.net.answers["*"] = later
        await rig.accept("b@example.com")
        mail = await rig.accept("b@Example.NET")
        assert (scheduler.waits(names), scheduler.pressing(names)) == (True, True)  # new mail
        await rig.settle()
        assert (scheduler.waits(names), scheduler.pressing(names)) == (True, False)  # deferred
        assert not scheduler.waits(("sub.example.net",))
        gate = rig.net.hold("Example.NET")
        await scheduler.flush(domain="example.net")
        assert scheduler.pressing(names)  # asked for
        await rig.settle()
        assert scheduler.active(mail.id)
        assert (scheduler.waits(names), scheduler.pressing(names)) == (True, True)  # under way
        assert (scheduler.busy("smtp:example.net"), scheduler.busy("smtp:example.com")) == (True, False)
        rig.net.answers.clear()
        gate.set()
        await rig.settle()
        assert (scheduler.waits(names), scheduler.pressing(names)) == (False, False)
        assert not scheduler.busy("smtp:example.net")
        other = await rig.accept("b@example.net")
        assert scheduler.busy("smtp:example.net")  # nobody has looked yet where it goes
        await scheduler.hold([other.id])
        assert not scheduler.waits(names)

    play(scenario)


def test_a_destination_that_was_there_for_a_while_is_forgotten() -> None:
    async def scenario(rig: Rig) -> None:
        rig.net.smarthost = "hub"
        rig.net.answers["*"] = unreachable
        await rig.accept("b@example.net")
        await rig.settle()
        assert [(one.name, one.state) for one in rig.scheduler.sites()] == [("smtp:hub", "failing")]
        rig.scheduler.forget("smtp:other")
        rig.scheduler.forget("smtp:hub")
        assert rig.scheduler.sites() == ()
        gate = rig.net.hold("*")
        await rig.accept("c@example.net")
        await rig.settle()
        rig.scheduler.forget("smtp:hub")  # something is under way there
        assert [one.name for one in rig.scheduler.sites()] == ["smtp:hub"]
        gate.set()
        await rig.settle()

    play(scenario)
