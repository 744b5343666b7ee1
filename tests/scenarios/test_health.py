"""Health of the running process: what /livez, /readyz, /healthz and /metrics say, and when they change their mind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import smtplib
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from tests.peers import need
from tests.peers.ports import free_port
from tests.scenarios.relay import LISTENER, Relay, relay
from tests.scenarios.sink import sink

HEALTH = LISTENER + "\n[health]\nport = 0\n"
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def get(one: Relay, path: str, accept: str = "*/*") -> tuple[int, str]:
    """Status and content of a page."""
    found = re.search(r"listening on 127\.0\.0\.1 port (\d+), health", one.log())
    assert found is not None, one.log()
    request = urllib.request.Request(f"http://127.0.0.1:{found[1]}{path}", headers={"Accept": accept})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def status(one: Relay) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(get(one, "/healthz")[1])
    return found


def wait_ready(one: Relay) -> None:
    one.wait_until(lambda: get(one, "/readyz")[0] == 200, "readiness")


def values(one: Relay) -> dict[str, float]:
    """Every sample by name and labels."""
    read = openmetrics.text_string_to_metric_families
    families = read(get(one, "/metrics", OPENMETRICS)[1])  # type: ignore[no-untyped-call]
    return {
        sample.name + "".join(f",{k}={v}" for k, v in sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def test_the_metrics_are_what_scrapers_read_and_they_count(tmp_path: Path) -> None:
    with sink(answers={"RCPT": [b"550 5.1.1 no such user\r\n"]}) as host:
        settings = f'relayhost = "[127.0.0.1]:{host.port}"\n'
        with relay(tmp_path, settings, HEALTH) as one:
            one.send(recipients="nobody@example.org")
            one.send()
            with smtplib.SMTP("127.0.0.1", one.port, timeout=30) as client:
                client.ehlo("client.example.com")
                assert client.docmd("MAIL", "FROM:<a@example.com> SIZE=99999999")[0] == 552
            host.wait_for(2)
            one.wait_empty()
            assert get(one, "/page.json")[0] == 200
            one.wait_until(lambda: values(one)["edgemail_queue_messages,state=deferred"] == 0, "survey")
            found = values(one)
            route = f"route=smtp:[127.0.0.1]:{host.port}"
            assert found["edgemail_smtpd_messages_total,listener=lan"] == 2
            assert found["edgemail_smtpd_commands_total,verb=RCPT"] == 2
            assert found["edgemail_smtpd_refusals_total,code=552,status=5.3.4"] == 1
            assert found[f"edgemail_smtp_recipients_total,outcome=sent,{route}"] == 2  # and the bounce
            assert found[f"edgemail_smtp_recipients_total,outcome=message-permanent,{route}"] == 1
            assert found["edgemail_spool_commit_seconds_count"] >= 3
            assert found["edgemail_spool_batch_jobs_bucket,le=1.0"] > 0
            assert found["edgemail_probe_up"] == 1
            assert found["edgemail_memory_bytes,kind=anonymous"] > 1e6
            assert found["edgemail_medium_written_bytes_per_message"] > 0
            assert found[f"edgemail_route_up,{route}"] == 1

            older = get(one, "/metrics")[1]
            names = {family.name for family in text_string_to_metric_families(older)}
            assert {"edgemail_smtpd_messages", "edgemail_queue_messages", "edgemail_guard_level"} <= names
            promtool = need("prometheus").path()
            done = subprocess.run(
                [promtool, "check", "metrics"], input=older, capture_output=True, text=True, timeout=60, check=False
            )
            assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_dead_smarthost_makes_it_neither_dead_nor_unready(tmp_path: Path) -> None:
    settings = f'relayhost = "[127.0.0.1]:{free_port()}"\n'
    with relay(tmp_path, settings, HEALTH) as one:
        wait_ready(one)
        one.send()
        one.wait_deferred()
        one.wait_until(lambda: status(one)["components"]["queue"]["depth"] == 1, "depth of the queue")
        found = status(one)
        assert found["state"] == "degraded"
        assert "Connection refused" in found["message"]
        assert [name for name in found["components"] if name.startswith("route.")]
        assert get(one, "/livez") == (200, "ok\n")
        assert get(one, "/readyz") == (200, "ok\n")
        assert get(one, "/healthz")[0] == 200


def test_every_component_is_named_and_the_control_socket_says_the_same(tmp_path: Path) -> None:
    with relay(tmp_path, "", HEALTH) as one:
        wait_ready(one)
        names = set(status(one)["components"])
        guards = {f"guard.{name}" for name in ("memory", "descriptors", "disk", "inodes", "spool")}
        assert {"listener.lan", "spool", "queue", "clock", "certificate.cert.pem"} | guards <= names
        told = json.loads(one.run("edgemail", "status", "--json").stdout)
        assert told["state"] in ("ok", "degraded") and set(told["components"]) == names


def test_the_probe_leaves_nothing_behind(tmp_path: Path) -> None:
    with relay(tmp_path, "", HEALTH) as one:
        wait_ready(one)
        assert one.queue() == []
        assert "status=" not in one.log()  # nothing was relayed
        one.kill()
        one.start()
        assert one.queue() == []


def test_the_service_manager_hears_of_it(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(20)
        one = Relay(tmp_path, "", HEALTH)
        one.start(NOTIFY_SOCKET=str(path), WATCHDOG_USEC="400000")
        heard: list[str] = []
        while sum("WATCHDOG=1" in each for each in heard) < 3 or "READY=1" not in heard:
            heard.append(manager.recv(4096).decode())
        assert any("STATUS=Mail is taken" in each for each in heard)
        assert one.stop() == 0
        while "STOPPING=1" not in heard:
            heard.append(manager.recv(4096).decode())


def test_the_boards_watchdog_is_fed_and_put_to_sleep(tmp_path: Path) -> None:
    path = tmp_path / "watchdog"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with relay(tmp_path, f'watchdog_device = "{path}"\n') as one:
            eaten = bytearray()

            def fed() -> bool:
                with contextlib.suppress(BlockingIOError):
                    eaten.extend(os.read(reader, 100))
                return bool(eaten)

            one.wait_until(fed, "food for the watchdog")
            assert set(eaten) == {0}
            assert one.stop() == 0
            assert os.read(reader, 100).endswith(b"V")
            one.start()
            one.kill()
            assert b"V" not in os.read(reader, 100)  # and the board is reset
    finally:
        os.close(reader)


class Alarms:
    """A web server in a thread that remembers what was posted."""

    def __init__(self) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listening.getsockname()[1]
        self.posted: list[dict[str, Any]] = []
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self.listening.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as file, contextlib.suppress(OSError):
                head = list(iter(file.readline, b"\r\n"))
                length = next((int(line.split(b":")[1]) for line in head if line.startswith(b"Content-Length")), 0)
                if length:
                    self.posted.append(json.loads(file.read(length)))
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")


@contextlib.contextmanager
def alarms() -> Iterator[Alarms]:
    found = Alarms()
    try:
        yield found
    finally:
        found.listening.shutdown(socket.SHUT_RDWR)
        found.listening.close()
        found.thread.join()


def test_an_alarm_goes_out_when_the_smarthost_is_gone(tmp_path: Path) -> None:
    settings = f'relayhost = "[127.0.0.1]:{free_port()}"\n'
    with alarms() as web:
        tables = HEALTH + f'\n[push]\nalarm_url = "http://127.0.0.1:{web.port}/alarm"\n'
        with relay(tmp_path, settings, tables) as one:
            one.send()
            one.wait_until(lambda: web.posted, "alarm")
            found = web.posted[0]
            assert found["host"] == "gw.example.com" and found["state"] == "degraded"
            assert "Connection refused" in found["message"]


@pytest.mark.parametrize("path", ["/queue/flush", "/queue/delete"])
def test_nobody_acts_without_the_token(tmp_path: Path, path: str) -> None:
    token = tmp_path / "token"
    token.write_text("a-secret\n")
    token.chmod(0o600)
    with relay(tmp_path, "", HEALTH + f'token_file = "{token}"\n') as one:
        found = re.search(r"port (\d+), health", one.log())
        assert found is not None
        root = f"http://127.0.0.1:{found[1]}"
        for headers, code in (
            ({}, 401),
            ({"Authorization": "Bearer wrong"}, 401),
            ({"Authorization": "Bearer a-secret", "Origin": "http://evil.example"}, 403),
            ({"Authorization": "Bearer a-secret", "Host": "evil.example"}, 421),
            ({"Authorization": "Bearer a-secret", "Origin": root}, 200),
        ):
            request = urllib.request.Request(root + path, b"{}", headers, method="POST")
            try:
                with urllib.request.urlopen(request, timeout=20) as answer:
                    got = answer.status
            except urllib.error.HTTPError as error:
                with error:
                    got = error.code
            assert got == code, headers
