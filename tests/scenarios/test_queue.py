"""The queue at work in the real process: when it tries again, how much at once, what does not stop what.

Times are short by settings; what is asserted of them is that nothing comes too early.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest

from tests.peers.ports import free_port
from tests.scenarios.relay import MESSAGE, relay
from tests.scenarios.sink import after_trace, sink
from tests.servers import STALL, Received

QUICK = 'minimal_backoff_time = "1s"\nmaximal_backoff_time = "2s"\nqueue_run_delay = "1s"\nin_flow_delay = 0\n'
PATIENT = 'minimal_backoff_time = "1h"\nmaximal_backoff_time = "2h"\nqueue_run_delay = "1h"\nin_flow_delay = 0\n'


def row(domain: str, port: int, address: str = "127.0.0.1", transport: str = "smtp") -> str:
    """One row of transport_maps."""
    return f'"{domain}" = "{transport}:[{address}]:{port}"'


def rows(*given: str) -> str:
    return f"transport_maps = [{{ {', '.join(given)} }}]\n"


def to(port: int) -> str:
    return f'relayhost = "[127.0.0.1]:{port}"\n'


def addresses(one: Received) -> list[str]:
    return re.findall("<(.*?)>", " ".join(one.rcpt))


class Meter:
    """How many transactions a smarthost has open, each time one begins; each lasts a while."""

    def __init__(self, seconds: float = 0.1) -> None:
        self.levels: list[int] = []
        self.first = 0  # how many had begun when the first one ended
        self._open = 0
        self.options: dict[str, Any] = {
            "answers": {"MAIL": self._begin, "LAST": self._end},
            "delays": {"LAST": seconds},
        }

    def _begin(self, line: str) -> bytes:
        self._open += 1
        self.levels.append(self._open)
        return b""

    def _end(self, line: str) -> bytes:
        self.first = self.first or len(self.levels)
        self._open -= 1
        return b""


# when it tries again


def test_waits_double(tmp_path: Path) -> None:
    """Never earlier than minimal_backoff_time after the last attempt, then twice as long, then twice that."""
    at: list[float] = []

    def later(line: str) -> bytes:
        at.append(time.monotonic())
        return b"450 4.2.0 greylisted\r\n"

    times = 'minimal_backoff_time = "1s"\nmaximal_backoff_time = "9s"\nqueue_run_delay = "1s"\n'
    with sink(answers={"RCPT": later}) as smarthost, relay(tmp_path, times + to(smarthost.port)) as found:
        found.send()
        found.wait_until(lambda: len(at) >= 4, "fourth attempt", 30)
        (one,) = found.waiting()
        assert one["queue_name"] in ("deferred", "active")
    waits = [later - earlier for earlier, later in itertools.pairwise(at)][:3]
    slack = 0.05
    assert all(wait > least - slack for wait, least in zip(waits, (1, 2, 4), strict=True)), waits


def test_a_restart_hurries_nothing(tmp_path: Path) -> None:
    with sink(answers={"RCPT": b"450 4.2.0 later\r\n"}) as smarthost:
        with relay(tmp_path, PATIENT + to(smarthost.port)) as found:
            found.send()
            (before,) = found.wait_deferred()
            tried = smarthost.server.connections
            found.restart()
            other = found.send("second@example.com")
            found.wait_for(f"{other}: to=<.*status=deferred")
            after = next(one for one in found.waiting() if one["queue_id"] == before["queue_id"])
            assert after["queue_name"] == "deferred"
            assert after["recipients"][0]["reason"] == before["recipients"][0]["reason"]
            assert smarthost.server.connections == tried + 1
            assert f"{before['queue_id']}: to=" not in found.log()


def test_a_refusal_for_now_and_one_for_good(tmp_path: Path) -> None:
    """Of one message: one is delivered, one comes back, one stays alone with its reason and follows."""
    greylist = [b"450 4.2.0 greylisted\r\n"]

    def mood(line: str) -> bytes:
        if "<later@" in line and greylist:
            return greylist.pop()
        return b"550 5.1.1 unknown\r\n" if "<bogus@" in line else b""

    with sink(answers={"RCPT": mood}) as smarthost, relay(tmp_path, PATIENT + to(smarthost.port)) as found:
        queue_id = found.send("", ["later@example.org", "bob@example.org", "bogus@example.org"])
        (one,) = found.wait_deferred()
        (left,) = one["recipients"]
        assert left["address"] == "later@example.org"
        assert "450 4.2.0 greylisted (in reply to RCPT TO command)" in left["reason"]
        assert [addresses(each) for each in smarthost.received] == [["bob@example.org"]]
        assert re.search(rf"{queue_id}: to=<bogus@example.org>.*status=bounced", found.log())
        found.run("postqueue", "-f")
        found.wait_for(f"{queue_id}: removed")
        assert [addresses(each) for each in smarthost.received] == [["bob@example.org"], ["later@example.org"]]


# how much at once


def test_a_site_that_is_back_is_not_flooded(tmp_path: Path) -> None:
    """Fifty wait for it: five at once to begin with, never more than twenty, and more than five after successes."""
    meter = Meter()
    with sink(**meter.options) as smarthost:
        smarthost.stop()
        with relay(tmp_path, PATIENT + to(smarthost.port)) as found:
            for number in range(60):
                found.send(recipients=f"bob{number}@example.org")
            found.wait_deferred(60)
            smarthost.start()
            found.run("postqueue", "-f")
            smarthost.wait_for(60)
            found.wait_until(lambda: found.log().count(": removed") >= 60, "60 deliveries")
    assert meter.first <= 5
    assert 5 < max(meter.levels) <= 20


@pytest.mark.parametrize(("limit", "most"), [("default_destination_concurrency_limit", 3), ("transport", 2)])
def test_limits_of_concurrency(tmp_path: Path, limit: str, most: int) -> None:
    """For all transports, and for one by its own table."""
    meter = Meter(0.03)
    with sink(**meter.options) as smarthost:
        if limit == "transport":
            settings = rows(row("example.org", smarthost.port, transport="slow"))
            settings += f"\n[transport.slow]\ndefault_destination_concurrency_limit = {most}\n"
        else:
            settings = f"{limit} = {most}\n" + to(smarthost.port)
        with relay(tmp_path, QUICK + settings) as found:
            for number in range(30):
                found.send(recipients=f"bob{number}@example.org")
            smarthost.wait_for(30)
            found.wait_empty()
    assert max(meter.levels) == most


def test_recipients_of_one_delivery_are_limited(tmp_path: Path) -> None:
    with sink() as smarthost:
        settings = "default_destination_recipient_limit = 2\n" + to(smarthost.port)
        with relay(tmp_path, QUICK + settings) as found:
            found.send(recipients=[f"bob{number}@example.org" for number in range(5)])
            received = smarthost.wait_for(3)
            found.wait_empty()
    assert sorted(len(one.rcpt) for one in received) == [1, 2, 2]
    assert len({address for one in received for address in addresses(one)}) == 5


# what does not stop what


@contextlib.contextmanager
def silent(count: int) -> Iterator[list[tuple[str, int]]]:
    """Destinations that take a connection and never say a word."""
    port = free_port()
    with contextlib.ExitStack() as stack:
        found = []
        for number in range(count):
            address = f"127.0.9.{number + 1}"
            listener = stack.enter_context(socket.create_server((address, port), backlog=64))
            found.append((address, listener.getsockname()[1]))
        yield found


def test_sixty_silent_destinations_do_not_hold_up_mail_for_one_that_answers(tmp_path: Path) -> None:
    """More of them than deliveries of a transport may run at once; none of theirs ends before ours has arrived."""
    with silent(60) as dead, sink() as healthy:
        table = [row(f"d{number}.example", port, address) for number, (address, port) in enumerate(dead)]
        settings = rows(*table, row("example.org", healthy.port)) + "default_process_limit = 20\n"
        with relay(tmp_path, PATIENT + settings) as found:
            for number in range(180):
                found.send(recipients=f"bob@d{number % 60}.example")
            # never seen before, then known to answer
            for number in range(3):
                found.send(recipients=f"bob{number}@example.org")
                healthy.wait_for(number + 1)
            assert "status=deferred" not in found.log()
            found.kill()


def test_new_mail_is_not_stuck_behind_a_backlog(tmp_path: Path) -> None:
    """Hundreds are due for one slow destination when a message for another comes, and one for the same."""
    with sink(delays={"LAST": 0.2}) as slow, sink() as quick:
        slow.stop()
        settings = rows(row("slow.example", slow.port), row("example.org", quick.port))
        with relay(tmp_path, PATIENT + settings + "default_destination_concurrency_limit = 5\n") as found:
            for number in range(300):
                found.send(recipients=f"bob{number}@slow.example")
            found.wait_deferred(300)
            slow.start()
            found.run("postqueue", "-f")
            slow.wait_for(10)
            found.send(recipients="bob@example.org")
            quick.wait_for(1)
            found.send(recipients="new@slow.example")
            found.wait_until(lambda: any("<new@" in one.rcpt[0] for one in slow.received), "the new message")
            assert len(slow.received) < 200  # the backlog is not through
            found.kill()


def test_senders_are_slowed_when_arrivals_outrun_deliveries(tmp_path: Path) -> None:
    """in_flow_delay: a pause before a message is taken, while many others have not been tried yet; 0 is none."""
    with sink(answers={"LAST": STALL}) as smarthost:
        settings = PATIENT.replace("in_flow_delay = 0", 'in_flow_delay = "2s"\nqmgr_message_active_limit = 100')
        settings += to(smarthost.port)
        with relay(tmp_path, settings) as found:
            started = time.monotonic()
            for _ in range(90):
                found.send()
            quick = time.monotonic() - started
            threads = [threading.Thread(target=found.send) for _ in range(40)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            started = time.monotonic()
            found.send()
            last = time.monotonic() - started
            found.kill()
    assert quick < 90  # nobody waits while few are untried
    assert last > 1.9


# life and death


def test_after_a_kill_what_was_taken_is_delivered_once_and_whole(tmp_path: Path) -> None:
    quiet = 'notice_recipient = "double-bounce"\n'  # that the route pauses is not to be among the mail
    with sink() as smarthost:
        smarthost.stop()
        with relay(tmp_path, QUICK + quiet + to(smarthost.port)) as found:
            messages = {}
            for number in range(20):
                body = MESSAGE + f"number {number}\r\n".encode() * (1 + number * 500)
                messages[f"bob{number}@example.org"] = body
                found.send(recipients=f"bob{number}@example.org", message=body)
            found.kill()
            smarthost.start()
            found.start()
            received = smarthost.wait_for(20)
            found.wait_empty()
    assert len(received) == 20
    assert {addresses(one)[0]: after_trace(one.content) for one in received} == messages


def test_killed_before_the_peer_has_confirmed_it_is_sent_again(tmp_path: Path) -> None:
    with sink(answers={"LAST": [STALL]}) as smarthost, relay(tmp_path, QUICK + to(smarthost.port)) as found:
        found.send()
        smarthost.wait_for(1)  # the server has it, and has not said so
        found.kill()
        found.start()
        both = smarthost.wait_for(2)
        found.wait_empty()
    assert both[0].content == both[1].content


def spoil(directory: Path, key: bytes, where: int) -> None:
    """Turn one octet of a record over."""
    with contextlib.closing(lmdb.open(str(directory / "spool"), map_size=64 << 20)) as env:
        with env.begin(write=True) as transaction:
            value = bytearray(transaction.get(key) or b"")
            value[where] ^= 0x55
            assert transaction.put(key, bytes(value))


@pytest.mark.parametrize("part", [0, 1])
def test_a_damaged_record_is_set_aside_and_the_rest_goes_on(tmp_path: Path, part: int) -> None:
    """Its envelope, or its content; the postmaster hears of it, found at the start or when it was to be sent."""
    with sink() as smarthost:
        smarthost.stop()
        with relay(tmp_path, PATIENT + to(smarthost.port)) as found:
            ids = [found.send(recipients=f"bob{number}@example.org") for number in range(3)]
            found.wait_deferred(3)
            assert found.stop() == 0
            spoil(tmp_path, struct.pack(">BQI", 1, int(ids[1], 16), part), -1)
            smarthost.start()
            found.start()
            found.run("postqueue", "-f")
            found.wait_for(rf"{ids[1]}: damaged, set aside: body does not match" if part else rf"{ids[1]}.*set aside")
            for each in (ids[0], ids[2]):
                found.wait_for(rf"{each}: removed")
            notice = found.wait_for(r"([0-9A-F]{8,}): notice to <postmaster>: Postmaster notice \(resource\)")[1]
            found.wait_for(f"{notice}: removed")
            found.wait_until(lambda: found.run("mailq").stdout == "Mail queue is empty\n", "empty queue")
            assert f"set aside: {ids[1]}" in found.run("edgemail", "queue", "list").stdout
            assert "raceback" not in found.log()
    received = {addresses(one)[0]: one for one in smarthost.received}
    notices = [one for one in smarthost.received if addresses(one) == ["admin@example.com"]]
    assert received.keys() - {"admin@example.com"} == {"bob0@example.org", "bob2@example.org"}
    assert all(after_trace(received[f"bob{number}@example.org"].content) == MESSAGE for number in (0, 2))
    assert any(b"Subject: Postmaster notice (resource): " in one.content for one in notices)


def test_a_full_inbox_of_orders_at_once(tmp_path: Path) -> None:
    """Hold, release, flush and delete while mail comes and goes: nothing is lost, nothing comes twice."""
    with sink(delays={"LAST": 0.02}) as smarthost, relay(tmp_path, QUICK + to(smarthost.port)) as found:
        sent: list[str] = []

        def feed() -> None:
            for number in range(150):
                found.send(recipients=f"bob{number}@example.org")
                sent.append(f"bob{number}@example.org")

        thread = threading.Thread(target=feed)
        thread.start()
        while thread.is_alive():
            found.run("postsuper", "-h", "ALL")
            found.run("postqueue", "-f")
            found.run("postsuper", "-H", "ALL")
        thread.join()
        found.run("postsuper", "-H", "ALL")
        found.wait_empty(30)
        arrived = sorted(addresses(one)[0] for one in smarthost.received)
        assert arrived == sorted(sent)
        assert "raceback" not in found.log()


def test_mailq_says_who_is_active_and_when_the_rest_is_due(tmp_path: Path) -> None:
    with sink(answers={"LAST": STALL}) as smarthost:
        settings = rows(row("example.org", smarthost.port)) + to(free_port())
        with relay(tmp_path, PATIENT + settings) as found:
            waiting = found.send(recipients="carol@away.example")
            found.wait_deferred()
            active = found.send(recipients="bob@example.org")
            smarthost.wait_for(1)
            states = {one["queue_id"]: one["queue_name"] for one in found.waiting()}
            assert states == {waiting: "deferred", active: "active"}
            assert f"{active}* " in found.run("mailq").stdout
            found.kill()


def test_a_flush_waits_and_says_what_came_of_it(tmp_path: Path) -> None:
    answers = {"RCPT": lambda line: b"450 4.2.0 later\r\n" if "bob2" in line else b""}
    with sink(answers=answers) as isp:
        isp.stop()
        with relay(tmp_path, f'relayhost = "[127.0.0.1]:{isp.port}"\n') as box:
            for number in range(3):
                box.send(recipients=f"bob{number}@example.org")
            box.wait_deferred(3)
            done = box.run("edgemail", "queue", "flush")
            found = re.match(r"(\d) messages: 0 sent, (\d) still waiting\n", done.stdout)
            assert found, done.stdout
            assert found[1] == found[2] >= "3", "the notice that the route pauses may be one of them"
            assert "onnection refused" in done.stdout
            isp.start()
            done = box.run("edgemail", "queue", "flush", "--domain", "example.org")
            assert done.stdout == (
                "3 messages: 2 sent, 1 still waiting\n"
                "  1  host 127.0.0.1[127.0.0.1] said: 450 4.2.0 later (in reply to RCPT TO command)\n"
            )
            asked = ("edgemail", "queue", "flush", "--reason", "4.2.0 later", "--json")
            assert json.loads(box.run(*asked).stdout)["waiting"] == 1
            for quiet in (("postqueue", "-f"), ("sendmail", "-q")):
                assert box.run(*quiet).stdout == ""
            box.wait_until(
                lambda: [one["queue_name"] for one in box.waiting()] == ["deferred"], "the end of those tries"
            )
            assert box.run(*asked[:-1], "--no-wait").stdout == "1 message to be tried now\n"
