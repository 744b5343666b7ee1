"""ETRN at a listener: who may ask, for what, how often, and what is passed on to the queue."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from edgemail.errors import SpoolError
from edgemail.relay.receive.limits import MAX_ASKED, Anvil
from edgemail.relay.receive.policy import Client, Policy, check_etrn_restrictions
from edgemail.reply import Reply
from tests.receiving import HOST, serving, settings

FLUSHED = {"fast_flush_domains": ("example.com",), "mynetworks": ("127.0.0.0/8",)}
Flush = Callable[[str], Awaitable[int | None]]


LOOPBACK = Client("127.0.0.1")


def refusal(node: str = "example.com", client: Client = LOOPBACK, **changes: Any) -> Reply | None:
    return Policy(settings(**{**FLUSHED, **changes})).etrn_refusal(client, node)


NODES = {
    "example.com": True,
    "EXAMPLE.com": True,
    "a.b.example.com": True,  # parent_domain_matches_subdomains
    "@example.com": True,
    "@sub.example.com": True,
    "#anything": True,  # the queue knows which there are
    "example.net": False,
    "@example.net": False,
    "notexample.com": False,
    "com": False,
    "[192.0.2.1]": False,
}


@pytest.mark.parametrize(("node", "eligible"), NODES.items())
def test_only_fast_flush_domains_are_eligible(node: str, eligible: bool) -> None:
    expected = None if eligible else Reply(459, "", f"<{node}>: service unavailable")
    assert refusal(node) == expected


def test_without_parent_matching_a_domain_stands_for_itself() -> None:
    alone: dict[str, Any] = {"parent_domain_matches_subdomains": ("relay_domains",)}
    assert refusal("example.com", **alone) is None
    assert refusal("sub.example.com", **alone) is not None
    assert refusal("@example.com", **alone) is not None
    below = {**alone, "fast_flush_domains": (".example.com", "example.com")}
    assert refusal("sub.example.com", **below) is None
    assert refusal("@example.com", **below) is None


STRANGER, USER, NEIGHBOUR = Client("198.51.100.7"), Client("198.51.100.7", "ship"), Client("127.0.0.9")
DENIED = Reply(554, "", "<example.com>: Etrn command rejected: Access denied")
RESTRICTIONS: dict[tuple[str, ...], tuple[Client, ...]] = {  # who may ask
    (): (USER, NEIGHBOUR),
    ("permit",): (STRANGER, USER, NEIGHBOUR),
    ("reject",): (),
    ("permit_mynetworks", "reject"): (NEIGHBOUR,),
    ("permit_sasl_authenticated", "reject"): (USER,),
    ("permit_sasl_authenticated", "permit_mynetworks", "reject"): (USER, NEIGHBOUR),
    ("permit_mynetworks",): (NEIGHBOUR,),  # no such list passes the check; it lets nobody else in
}


@pytest.mark.parametrize(("names", "may"), RESTRICTIONS.items())
def test_who_may_ask(names: tuple[str, ...], may: tuple[Client, ...]) -> None:
    for client in (STRANGER, USER, NEIGHBOUR):
        assert refusal("example.com", client, smtpd_etrn_restrictions=names) == (None if client in may else DENIED)
    assert refusal("example.net", STRANGER) == Reply(554, "", "<example.net>: Etrn command rejected: Access denied")


def test_restrictions_are_checked() -> None:
    assert check_etrn_restrictions(()) is None
    assert check_etrn_restrictions(("permit_mynetworks", "reject")) is None
    for names, words in (
        (("permit_mynetwork", "reject"), "is not one of"),
        (("reject_unauth_destination",), "is not one of"),
        (("permit_mynetworks",), "put reject at its end"),
    ):
        assert words in (check_etrn_restrictions(names) or "")


def test_how_often_a_domain_was_asked_for_is_known_within_bounds() -> None:
    now = 0.0
    anvil = Anvil(lambda: now, 60.0, 100)
    assert [anvil.asked("example.com") for _ in range(3)] == [1, 2, 3]
    assert anvil.asked("example.net") == 1
    now = 59.0
    assert anvil.asked("example.com") == 4
    now = 60.0
    assert anvil.asked("example.com") == 1
    for number in range(2 * MAX_ASKED):
        anvil.asked(f"{number}.example.com")
    assert len(anvil._asked) == MAX_ASKED


class Queue:
    """A queue that remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.fault: Exception | None = None

    async def flush(self, node: str) -> int | None:
        self.asked.append(node)
        if self.fault is not None:
            raise self.fault
        return None if node.startswith("#") else 3


async def converse(queue: Queue, *commands: str, **changes: Any) -> list[str]:
    """The replies behind that to EHLO."""
    async with serving(
        reception=lambda given: replace(given, flush=queue.flush),
        **{**FLUSHED, "anvil_rate_time_unit": 60.0, **changes},
    ) as box:
        wire = await box.wire()
        await wire.hello()
        return [await wire.say(command) for command in commands]


def test_what_may_be_asked_for_is_passed_on() -> None:
    queue = Queue()
    replies = asyncio.run(converse(queue, "ETRN Example.COM", "etrn @example.com", "ETRN #other", "ETRN example.net"))
    assert replies == [
        "250 Queuing started",
        "250 Queuing started",
        "458 Unable to queue messages",
        "459 <example.net>: service unavailable",
    ]
    assert queue.asked == ["Example.COM", "@example.com", "#other"]


def test_what_takes_no_waiting_is_not_waited_for() -> None:
    queue, asked = Queue(), []

    def at_once(node: str) -> int | None:
        asked.append(node)
        if node == "@example.com":
            raise SpoolError("broken")
        return None if node.startswith("#") else 2

    async def scenario() -> list[str]:
        async with serving(
            reception=lambda given: replace(given, flush=queue.flush, flush_at_once=at_once), **FLUSHED
        ) as box:
            wire = await box.wire()
            await wire.hello()
            nodes = ("example.com", "example.net", "@example.com", "#other", "example.com")
            return [await wire.say(f"ETRN {node}") for node in nodes]

    assert [reply[:3] for reply in asyncio.run(scenario())] == ["250", "459", "458", "458", "250"]
    assert asked == ["example.com", "@example.com", "#other", "example.com"], "each once, and nobody who may not"
    assert queue.asked == ["#other"]


def test_a_flood_is_refused_and_forgotten() -> None:
    queue = Queue()
    flood = ["ETRN example.com"] * 4
    replies = asyncio.run(converse(queue, *flood, "ETRN other.example.com", fast_flush_rate_limit=2))
    assert replies == ["250 Queuing started"] * 2 + ["458 Unable to queue messages"] * 2 + ["250 Queuing started"]
    assert queue.asked == ["example.com"] * 2 + ["other.example.com"]
    queue = Queue()
    assert asyncio.run(converse(queue, *flood, fast_flush_rate_limit=0)) == ["250 Queuing started"] * 4


def test_a_flood_in_one_session_ends_it() -> None:
    """Past smtpd_junk_command_limit each ETRN is an error, whatever its answer."""
    queue = Queue()
    limits = {"fast_flush_rate_limit": 0, "smtpd_junk_command_limit": 3, "smtpd_hard_error_limit": 4}
    replies = asyncio.run(converse(queue, *["ETRN example.com"] * 7, **limits))
    assert replies == ["250 Queuing started"] * 6 + [f"421 4.7.0 {HOST} Error: too many errors"]


@pytest.mark.parametrize("fault", [SpoolError("broken"), ZeroDivisionError()])
def test_trouble_in_the_queue(fault: Exception) -> None:
    queue = Queue()
    queue.fault = fault
    expected = "458 Unable to queue messages" if isinstance(fault, SpoolError) else "451 4.3.0 "
    assert asyncio.run(converse(queue, "ETRN example.com"))[0].startswith(expected)


def test_the_keyword_stands_where_something_can_be_asked_for() -> None:
    async def hello(flush: Flush | None, **changes: Any) -> tuple[str, str]:
        async with serving(reception=lambda given: replace(given, flush=flush), **changes) as box:
            wire = await box.wire()
            return await wire.hello(), await wire.say("ETRN example.com")

    queue = Queue()
    refused = "502 5.5.1 Error: command not implemented"
    keywords, reply = asyncio.run(hello(queue.flush, **FLUSHED))
    assert (keywords.index("VRFY") < keywords.index("ETRN") < keywords.index("8BITMIME"), reply[:3]) == (True, "250")
    keywords, reply = asyncio.run(hello(queue.flush, fast_flush_domains=()))
    assert ("ETRN" in keywords, reply) == (False, refused)
    keywords, reply = asyncio.run(hello(None, **FLUSHED))
    assert ("ETRN" in keywords, reply) == (False, refused)
    keywords, reply = asyncio.run(hello(queue.flush, **FLUSHED, smtpd_discard_ehlo_keywords=("etrn",)))
    assert ("ETRN" in keywords, reply) == (False, refused)
    _, reply = asyncio.run(hello(queue.flush, **FLUSHED, smtpd_noop_commands=("etrn",)))
    assert reply == "250 2.0.0 Ok"
    assert queue.asked == ["example.com"]
