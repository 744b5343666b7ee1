"""kill -9 of the real process in the middle of sessions and deliveries, again and again.

What was acknowledged is delivered or queued, for every recipient and whole; no id is given twice; what comes twice was
handed over so shortly before a kill that its completion may not have been on the medium. EDGEMAIL_KILL_ROUNDS asks for
more rounds (make crash: 500). The seed is printed.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.crash.traffic import RECIPIENTS, Timed, Told, check, deliveries
from tests.scenarios.client import Client, id_in
from tests.scenarios.relay import Relay
from tests.scenarios.sink import Sink, one_in, sink

ROUNDS = int(os.environ.get("EDGEMAIL_KILL_ROUNDS", "15"))
CUSTOMERS = 4
SIZES = (0, 100, 3000, 3000, 70_000, 300_000)
FLUSHED = 1.0  # seconds until a completion is on the medium, at the latest
SLOW = 1.0  # and what a busy machine may add
UNFLUSHED = 100  # completions that may not be on the medium
QUIET = 0.2  # of the rounds, traffic rests before the kill for so long that nothing of before may come twice
IN_FLIGHT = 2 * 20  # recipients whose answers may be on their way: two each, default_destination_concurrency_limit


def customer(port: int, told: Told, chance: random.Random, over: threading.Event) -> None:
    """Sends until the server is gone."""
    try:
        with Client(port) as client:
            client.say("EHLO me")
            while not over.is_set() and told.send(client, chance, chance.choice(SIZES)):
                pass
    except OSError:
        pass


def one_life(server: Relay, told: Told, chance: random.Random) -> float:
    """Start, serve, die; when."""
    server.start()
    over = threading.Event()
    customers = [
        threading.Thread(target=customer, args=(server.port, told, random.Random(chance.random()), over))
        for _ in range(CUSTOMERS)
    ]
    enough = len(told.acknowledged) + chance.randrange(1, 60)
    for each in customers:
        each.start()
    server.wait_until(
        lambda: len(told.acknowledged) >= enough or not any(map(threading.Thread.is_alive, customers)), "mail"
    )
    over.wait(chance.random() * 0.05)  # a moment of no message's choosing
    if chance.random() < QUIET:
        over.set()
        time.sleep(FLUSHED + SLOW)
    server.kill()
    killed = time.monotonic()
    over.set()
    for each in customers:
        each.join()
    return killed


def repeated(smarthost: Sink, took: Timed) -> list[tuple[float, float]]:
    """When what came again had come before, and when it came again: one pair for each repeated recipient."""
    before: dict[tuple[int, str], float] = {}
    pairs = []
    at = [moment for one, moment in zip(took, took.at, strict=True) for _ in one.rcpt]
    for key, moment in zip(deliveries(smarthost), at, strict=True):
        if key in before:
            pairs.append((before[key], moment))
        before[key] = moment
    return pairs


def test_what_a_kill_may_repeat(tmp_path: Path) -> None:
    """Every round starts from the wreck of the one before."""
    seed = int(os.environ.get("EDGEMAIL_KILL_SEED", random.SystemRandom().randrange(1 << 30)))
    print(f"seed {seed}, {ROUNDS} rounds")
    chance = random.Random(seed)
    told, took = Told(), Timed()
    # Of seven transactions the smarthost defers one, so that some of what is killed waits with a part of it done.
    answers = {".": one_in(7, b"451 4.3.0 later\r\n"), "RCPT": one_in(9, b"450 4.2.0 later\r\n")}
    with sink(answers=answers) as smarthost:
        smarthost.server.received = took
        settings = f'relayhost = "[127.0.0.1]:{smarthost.port}"\nin_flow_delay = 0\nnotify_classes = []\n'
        settings += 'minimal_backoff_time = "1s"\nmaximal_backoff_time = "1s"\nqueue_run_delay = "1s"\n'
        server = Relay(tmp_path, settings)
        kills = []
        try:
            for _ in range(ROUNDS):
                kills.append(one_life(server, told, chance))
                check(tmp_path / "spool", smarthost, told)
            server.start()
            server.wait_empty(120)
            assert server.stop() == 0
        finally:
            server._end()
        check(tmp_path / "spool", smarthost, told)
        pairs = repeated(smarthost, took)
    assert not [reply for reply in told.refused if reply[:1] in ("4", "5")]
    assert len(told.acknowledged) > ROUNDS * 10
    arrived = set(deliveries(smarthost))
    assert {(number, name) for number in told.acknowledged.values() for name in RECIPIENTS} <= arrived
    excused: Counter[float] = Counter()
    for first, again in pairs:
        culprits = [kill for kill in kills if first <= kill + SLOW and kill - first <= FLUSHED + SLOW and kill < again]
        assert culprits, f"delivered twice, though no kill came within {FLUSHED} s of the first time"
        excused[culprits[0]] += 1
    assert all(count <= UNFLUSHED + IN_FLIGHT for count in excused.values()), excused
    print(f"{len(told.acknowledged)} messages, {len(pairs)} of {len(took.at) * 2} deliveries came twice")


@pytest.mark.parametrize("bdat", [False, True])
def test_an_acknowledgement_survives_at_once(tmp_path: Path, bdat: bool) -> None:
    """Killed the moment the client has read its 250."""
    server = Relay(tmp_path, 'relayhost = "[127.0.0.1]:9"\nin_flow_delay = 0\n')
    body = b"Message-ID: <1@example.com>\r\n\r\n" + b"x" * 60_000 + b"\r\n"
    try:
        server.start()
        with Client(server.port) as client:
            client.ask("EHLO me", "MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>")
            if bdat:
                client.send(b"BDAT %d LAST\r\n" % len(body) + body)
                reply = client.reply()
            else:
                reply = client.data(body)
            server.kill()
        queue_id = id_in(reply)
        assert [one["queue_id"] for one in server.queue()] == [queue_id]
        shown = server.run("postcat", "-q", queue_id).stdout
        assert "x" * 60_000 in shown.replace("\n ", "")
    finally:
        server._end()
