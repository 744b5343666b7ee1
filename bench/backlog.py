"""A queue that waits for its next hop: how fast it grows, is listed, comes back after a start, drains; and what one of
500 domains costs that is asked for with ETRN.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from functools import partial

from bench.cases import Case, Figures, Row
from bench.medium import medium
from bench.systems import SECONDS, SENT, SYSTEMS, System
from tests.peers import need
from tests.peers.ports import free_port, greeting
from tests.peers.postfix import smtp_source
from tests.scenarios.sink import Sink

DOMAINS = 500
SESSIONS = 16
SIZE = 1000
DEFERRED = b"status=deferred"


@contextlib.contextmanager
def waiting(name: str, messages: int, *, counting: bool = False) -> Iterator[tuple[System, int, float]]:
    """A system with so many messages for a next hop that refuses connections: it, that port, messages a second."""
    port = free_port()
    domains = [f"d{number}.example" for number in range(DOMAINS)]
    settings = {
        "relayhost": f"[127.0.0.1]:{port}",
        "relay_domains": str(domains).replace("'", '"'),
        "smtpd_client_connection_count_limit": "0",
    }
    with medium() as place, SYSTEMS[name](place, settings, counting=counting) as system:
        started = time.monotonic()
        for domain in domains:
            count = messages // DOMAINS
            done = smtp_source(
                system.port, "-t", f"to@{domain}", messages=count, sessions=min(count, SESSIONS), length=SIZE
            )
            assert done.returncode == 0, done.stderr
        seconds = time.monotonic() - started
        system.wait_for(DEFERRED, messages)
        yield system, port, messages / seconds


def backlog(name: str, *, messages: int) -> Figures:
    """Enqueue, list, restart, drain."""
    with waiting(name, messages) as (system, port, rate):
        time.sleep(2)
        memory = system.memory()["anonymous"]
        started = time.monotonic()
        listed = system.command("postqueue", "-p").count(b"to@d")
        listing = time.monotonic() - started
        assert listed == messages, f"{listed} of {messages} are listed"
        system.stop()
        restart = system.start()
        before = system.logged(SENT)
        with _sink(port):
            started = time.monotonic()
            system.command("postqueue", "-f")
            system.wait_for(SENT, before + messages)
            drain = messages / (time.monotonic() - started)
    return {"enqueue": rate, "list": listing, "restart": restart, "drain": drain, "anonymous": memory}


@contextlib.contextmanager
def _sink(port: int) -> Iterator[None]:
    peer = need("postfix")
    command = [peer.path("smtp-sink"), "-u", "nobody", f"127.0.0.1:{port}", "200"]
    with subprocess.Popen(command, env=peer.environment(), stdout=subprocess.DEVNULL) as process:
        greeting(port)
        yield
        process.terminate()


def flush(name: str, *, messages: int) -> Figures:
    """From ETRN on an open session to the first and to the last MAIL at the next hop; milliseconds.

    And how many bytes are read for it, until the last of its messages is done with.
    """
    wanted = messages // DOMAINS
    with (
        waiting(name, messages, counting=True) as (system, port, _),
        socket.create_connection(("127.0.0.1", system.port)) as client,
    ):
        client.recv(1000)
        client.sendall(b"EHLO client.example.com\r\n")
        client.recv(4000)
        times: list[float] = []

        def note(command: str) -> bytes:
            times.append(time.monotonic())
            return b""  # the usual answer

        sent, read = system.logged(SENT), system.spool_reads()
        hop = Sink(answers={"MAIL": note}, port=port)
        hop.start()
        try:
            asked = time.monotonic()
            client.sendall(f"ETRN d{DOMAINS // 2}.example\r\n".encode())
            reply = client.recv(1000)
            assert reply.startswith(b"250"), reply
            while len(times) < wanted:
                assert time.monotonic() - asked < SECONDS, f"{len(times)} of {wanted}"
                time.sleep(0.001)
            system.wait_for(SENT, sent + wanted)
            read = system.spool_reads() - read
        finally:
            hop.end()
    return {"read": read / 1024, "first": 1000 * (times[0] - asked), "last": 1000 * (times[wanted - 1] - asked)}


def _backlog(messages: int) -> Case:
    many = f"{messages:,} queued"
    return Case(
        f"backlog {messages}",
        partial(backlog, messages=messages),
        (
            Row(f"enqueue, {many}", "enqueue", "/s", 5.0, rate=True),
            Row(f"list, {many}", "list", "s", 0.25),
            Row(f"restart to listening, {many}", "restart", "s", 0.15),
            Row(f"drain, {many}", "drain", "/s", 8.0, rate=True),
            Row(f"anonymous memory, {many}", "anonymous", "MiB", 0.6),
        ),
        once=True,
    )


def _flush(messages: int) -> Case:
    many = f"of {messages:,} queued"
    rows = (
        Row(f"ETRN to the first MAIL, 1 domain of 500, {many}", "first", "ms", 1.0),
        Row(f"ETRN to the last MAIL, 1 domain of 500, {many}", "last", "ms", 1.0),
        Row(f"read for it, 1 domain of 500, {many}", "read", "KiB", 1.0),
    )
    return Case(f"flush {messages}", partial(flush, messages=messages), rows, once=messages > 10_000)


CASES = (
    *(_flush(messages) for messages in (1000, 10_000, 100_000)),
    *(_backlog(messages) for messages in (5000, 20_000, 100_000)),
)
