"""The real process under pressure: floods, slow clients, little memory, a full spool. It refuses, and serves others."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scenarios.client import Client
from tests.scenarios.relay import Relay, relay
from tests.scenarios.sink import sink
from tests.scenarios.test_health import HEALTH, get, status, values, wait_ready

OTHERS = 'mynetworks = ["127.0.0.0/8"]\nsmtpd_client_event_limit_exceptions = ["127.0.0.1"]\nin_flow_delay = 0\n'
GOOD_SECONDS = 5.0  # within which a client that holds nothing is served, whatever goes on
SLACK = 3  # a machine that is slower, or whose other core is busy, is no fault of the relay
CGROUP = Path("/sys/fs/cgroup")


def serve_a_good_client(one: Relay, source: str = "127.0.0.9") -> None:
    """A small message of a client that holds no session, from greeting to 250, in time."""
    began = time.monotonic()
    with Client(one.port, source=source) as client:
        assert client.greeting.startswith("220 "), client.greeting
        said = client.ask("EHLO good.example", "MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA")
        assert said[-1].startswith("354 "), said
        client.send(b"Subject: small\r\n\r\nhello\r\n.\r\n")
        assert client.reply().startswith("250 ")
    took = time.monotonic() - began
    print(f"a good client was served in {took:.2f} s, of {GOOD_SECONDS:.0f}")
    assert took < SLACK * GOOD_SECONDS


@contextlib.contextmanager
def many(count: int, one: Relay, sources: list[str]) -> Iterator[list[socket.socket]]:
    """Connections that are opened, and closed at the end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count + 200:
        if hard != resource.RLIM_INFINITY and hard < count + 200:
            pytest.skip(f"{count} connections need more descriptors than {hard}")
        resource.setrlimit(resource.RLIMIT_NOFILE, (count + 200, hard))
    found: list[socket.socket] = []
    try:
        for number in range(count):
            source = sources[number % len(sources)]
            found.append(socket.create_connection(("127.0.0.1", one.port), 30, (source, 0)))
        yield found
    finally:
        for each in found:
            each.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_5000_connections_from_one_address(tmp_path: Path) -> None:
    with sink() as host, relay(tmp_path, OTHERS + f'relayhost = "[127.0.0.1]:{host.port}"\n', HEALTH) as one:
        with many(5000, one, ["127.0.0.2"]) as flood:
            serve_a_good_client(one)
            greetings = []
            for each in flood:
                each.settimeout(20)
                with contextlib.suppress(OSError):
                    greetings.append(each.recv(200)[:3])
            assert greetings.count(b"220") == 50  # smtpd_client_connection_count_limit
            assert greetings.count(b"421") >= 4900
            serve_a_good_client(one)
            assert get(one, "/livez")[0] == 200
            assert values(one)["edgemail_smtpd_connections_refused_total,listener=lan"] >= 4900
        host.wait_for(2)
        assert one.log().count("too many connections") < 10  # a flood does not flood the log
        one.wait_until(lambda: values(one)["edgemail_smtpd_sessions"] == 0, "end of the flood")


def test_200_clients_that_send_a_byte_a_minute(tmp_path: Path) -> None:
    """More of them than there are sessions, each from an address of its own; a second client is served at once."""
    slow = [f"127.0.1.{number}" for number in range(1, 201)]
    with relay(tmp_path, OTHERS + 'smtpd_timeout = "300s"\n', HEALTH) as one, many(200, one, slow) as clients:
        for each in clients:
            with contextlib.suppress(OSError):  # some were refused
                each.sendall(b"E")
        one.wait_for(r"timeout after CONNECT from unknown\[127\.0\.1\.")  # the first that keep others out
        one.wait_until(lambda: values(one)["edgemail_smtpd_sessions"] <= 100, "relief")
        serve_a_good_client(one)


def test_a_flood_of_the_endpoint_does_not_touch_the_mail(tmp_path: Path) -> None:
    """Clients that never end their request, and some that never read the answer; /livez is back when they are gone."""
    with relay(tmp_path, OTHERS, HEALTH) as one, contextlib.ExitStack() as stack:
        wait_ready(one)
        found = re.search(r"port (\d+), health", one.log())
        assert found is not None
        for number in range(100):
            each = stack.enter_context(socket.create_connection(("127.0.0.1", int(found[1])), 20))
            with contextlib.suppress(OSError):  # those above the bound are hung up on
                each.sendall(b"GET /page.json HTTP/1.1\r\n" + (b"Host: localhost\r\n\r\n" if number % 2 else b"X: "))
        serve_a_good_client(one)
        stack.close()
        one.wait_until(lambda: _answers(one), "answer")
        assert "Traceback" not in one.log()


def _answers(one: Relay) -> bool:
    with contextlib.suppress(OSError, http.client.HTTPException):
        return get(one, "/livez") == (200, "ok\n")
    return False


def test_a_line_has_smtpd_timeout_however_many_bytes_come(tmp_path: Path) -> None:
    with relay(tmp_path, 'smtpd_timeout = "1s"\n') as one, Client(one.port) as client:
        began = time.monotonic()
        with contextlib.suppress(OSError):
            for octet in b"NOOP" * 20:
                client.send(bytes([octet]))
                time.sleep(0.2)
                if client.socket in _readable(client.socket):
                    break
        assert client.reply() == "421 4.4.2 gw.example.com Error: timeout exceeded"
        assert 0.9 < time.monotonic() - began < 10


def test_content_has_a_rate_to_keep(tmp_path: Path) -> None:
    settings = 'smtpd_timeout = "1s"\nsmtpd_min_data_rate = 10000\n'
    with relay(tmp_path, settings) as one, Client(one.port) as client:
        client.ask("EHLO me", "MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA")
        with contextlib.suppress(OSError):
            for _ in range(100):
                client.send(b"x" * 98 + b"\r\n")
                time.sleep(0.1)
                if client.socket in _readable(client.socket):
                    break
        assert client.reply() == "421 4.4.2 gw.example.com Error: timeout exceeded"
        assert one.waiting() == []
        with Client(one.port) as quick:
            quick.ask("EHLO me", "MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA")
            for _ in range(20):
                quick.send((b"x" * 98 + b"\r\n") * 20)
                time.sleep(0.1)
            quick.send(b".\r\n")
            assert quick.reply().startswith("250 ")


def _readable(each: socket.socket) -> list[socket.socket]:
    return select.select([each], [], [], 0)[0]


def test_a_full_spool_refuses_drains_and_takes_mail_again(tmp_path: Path) -> None:
    """The map is the bound here: 16 MiB of spool, on a disk with room."""
    body = b"Subject: big\r\n\r\n" + (b"y" * 70 + b"\r\n") * 13_000
    with sink() as host:
        host.stop()
        settings = f"""\
relayhost = "[127.0.0.1]:{host.port}"
spool_size = "16MiB"
message_size_limit = 1_000_000
minimal_backoff_time = "1s"
maximal_backoff_time = "1s"
queue_run_delay = "1s"
in_flow_delay = 0
"""
        with relay(tmp_path, settings, HEALTH) as one:
            taken, refused = 0, ""
            while not refused and taken < 40:
                with Client(one.port) as client:
                    said = client.ask("EHLO me", "MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA")
                    if said[-1].startswith("354"):
                        client.send(body + b".\r\n")
                        taken += client.reply().startswith("250 ")
                    else:
                        refused = said[1]
            assert taken >= 4
            assert refused == "452 4.3.1 Insufficient system storage: the spool is full"
            one.wait_until(lambda: get(one, "/readyz")[0] == 503, "readiness to fail")
            assert "452 4.3.1" in get(one, "/readyz")[1]
            assert get(one, "/livez") == (200, "ok\n")
            one.wait_until(lambda: status(one)["components"]["guard.spool"]["level"] == "full", "guard to trip")
            code, found = get(one, "/healthz")
            assert code == 503 and "spool_size" in found
            host.start()
            one.wait_empty(60)
            assert len([each for each in host.bodies() if each == body]) == taken
            one.wait_until(lambda: get(one, "/readyz")[0] == 200, "readiness")
            one.send()
            assert status(one)["components"]["guard.spool"]["tripped"] == 1
            assert "panic" not in one.log()


@pytest.fixture
def cage(tmp_path: Path) -> Iterator[Path]:
    """A memory cgroup (v1 or v2) of 96 MiB without swap; yields its directory."""
    if os.geteuid() != 0:
        pytest.skip("a cgroup needs root")
    base = CGROUP / "memory" if (CGROUP / "memory/memory.limit_in_bytes").exists() else CGROUP
    found = base / f"edgemail-test-{os.getpid()}"
    try:
        found.mkdir()
        limit = found / ("memory.limit_in_bytes" if base != CGROUP else "memory.max")
        limit.write_text(str(96 << 20))
    except OSError as error:
        with contextlib.suppress(OSError):
            found.rmdir()
        pytest.skip(f"no memory cgroup here: {error}")
    try:
        yield found
    finally:
        for _ in range(100):
            try:
                found.rmdir()
                break
            except OSError:
                time.sleep(0.05)


def killed(cage: Path) -> int:
    """How often the kernel killed for want of memory."""
    for name in ("memory.events", "memory.oom_control"):
        if (cage / name).exists():
            found = re.search(r"^oom_kill (\d+)", (cage / name).read_text(), re.MULTILINE)
            return int(found[1]) if found else 0
    return 0


def test_96_mib_and_200_sessions_of_25_mb(tmp_path: Path, cage: Path) -> None:
    """All of them send; what is acknowledged is kept, nobody is killed, a small message passes all the while."""
    size = 25_000_000
    settings = (
        OTHERS
        + """\
relayhost = "[127.0.0.1]:1"
message_size_limit = "30MB"
spool_size = "1GiB"
default_process_limit = 250
smtpd_client_connection_count_limit = 250
"""
    )
    with relay(tmp_path, settings, HEALTH) as one:
        assert one.process is not None
        (cage / "cgroup.procs").write_text(str(one.process.pid))
        flood = subprocess.Popen(
            [sys.executable, "-m", "tests.scenarios.flood", str(one.port), "200", str(size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        most, served, until = 0, 0, time.monotonic() + 12
        try:
            while time.monotonic() < until:
                serve_a_good_client(one)
                served += 1
                most = max(most, anonymous(one))
                time.sleep(0.5)
        finally:
            acknowledged = flood.communicate(timeout=60)[0].decode().split()
        print(f"anonymous memory at most {most >> 20} MiB; taken: {len(acknowledged)} of 25 MB, {served} small ones")
        assert killed(cage) == 0
        assert one.process.poll() is None
        assert most < 90 << 20
        kept = {each["queue_id"] for each in one.waiting()}
        assert set(acknowledged) <= kept
        one.wait_until(lambda: values(one)["edgemail_smtpd_sessions"] <= 1, "end of the flood", 60)
        one.wait_until(lambda: status(one)["components"]["guard.memory"]["level"] == "calm", "calm after the flood")
        one.send(message=b"Subject: big\r\n\r\n" + (b"y" * 70 + b"\r\n") * 60_000)  # without a restart
        assert "panic" not in one.log() and "Traceback" not in one.log()
        one.process.send_signal(signal.SIGTERM)
        assert one.process.wait(25) == 0


def anonymous(one: Relay) -> int:
    """RssAnon of the process, bytes."""
    assert one.process is not None
    found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{one.process.pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024
