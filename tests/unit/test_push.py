"""Heartbeats and alarms: what is sent when, to whom, and that a server that fails is told later."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from edgemail.boot.certs import CERT, KEY, make
from edgemail.boot.config import load
from edgemail.clock import ManualClock
from edgemail.errors import ConfigurationError
from edgemail.health import push
from edgemail.health.push import FIRST_RETRY, QUIET_SECONDS, Pusher, PushFailed, request
from edgemail.settings import Push


class Web:
    """A web server that remembers requests and answers with `answer`."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, Any]] = []
        self.answer: bytes | None = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"  # None: silence
        self.port = 0
        self.tasks: set[asyncio.Task[Any]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = next((int(line[16:]) for line in head.split("\r\n") if line.startswith("Content-Length: ")), 0)
            content = await reader.readexactly(length)
            self.requests.append((head.split(" HTTP")[0], json.loads(content) if content else None))
            if self.answer is None:
                await reader.read()  # until the client gives up
                return
            writer.write(self.answer)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # a client that thinks better of it
        finally:
            writer.close()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"


def with_web(scenario: Callable[[Web], Awaitable[None]]) -> None:
    async def run() -> None:
        web = Web()
        server = await asyncio.start_server(web.serve, "127.0.0.1", 0)
        web.port = server.sockets[0].getsockname()[1]
        try:
            async with asyncio.timeout(20):
                await scenario(web)
        finally:
            server.close()
            await server.wait_closed()
            await asyncio.gather(*web.tasks)

    asyncio.run(run())


def status(state: str = "ok", reason: str = "") -> dict[str, Any]:
    return {"state": state, "reason": reason, "message": reason and f"{reason}.", "components": {}}


def test_an_alarm_on_each_change_and_nothing_between() -> None:
    async def scenario(web: Web) -> None:
        clock, now = ManualClock(), status()
        pusher = Pusher(Push(alarm_url=web.url("/a?b=c")), clock, "gw", lambda: now)
        await pusher.turn()
        assert web.requests == []
        now.update(status("failed", "disk-full"))
        await pusher.turn()
        await pusher.turn()
        assert web.requests == [("POST /a?b=c", {"host": "gw", **status("failed", "disk-full")})]
        now.update(status())
        await pusher.turn()
        assert len(web.requests) == 1  # not so soon
        clock.advance(QUIET_SECONDS)
        await pusher.turn()
        assert [value["state"] for _, value in web.requests] == ["failed", "ok"]

    with_web(scenario)


def test_an_alarm_that_failed_is_sent_again_with_the_latest_state(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(web: Web) -> None:
        clock, now = ManualClock(), status("degraded", "first")
        web.answer = b"HTTP/1.1 503 Later\r\n\r\n"
        pusher = Pusher(Push(alarm_url=web.url("/secret")), clock, "gw", lambda: now)
        with caplog.at_level(logging.INFO):
            for _ in range(5):
                await pusher.turn()
                clock.advance(FIRST_RETRY)
            assert 1 < len(web.requests) < 5  # the wait doubles
            assert len(caplog.records) == 1 and "503 Later" in caplog.text and "secret" not in caplog.text
            web.answer = b"HTTP/1.0 204 Fine\r\n\r\n"
            now.update(status("failed", "second"))
            clock.advance(1000)
            await pusher.turn()
            assert web.requests[-1][1]["reason"] == "second"
            assert "taken again" in caplog.text

    with_web(scenario)


def test_a_heartbeat_that_nobody_took_is_sent_again_before_the_next_is_due() -> None:
    async def scenario(web: Web) -> None:
        clock = ManualClock()
        pusher = Pusher(Push(heartbeat_url=web.url("/beat"), heartbeat_interval=300.0), clock, "gw", status)
        web.answer = b"HTTP/1.1 503 Later\r\n\r\n"
        seen = []
        for _ in range(4):  # 5, 10, 20 seconds after each other
            await pusher.turn()
            seen.append(len(web.requests))
            clock.advance(FIRST_RETRY)
        assert seen == [1, 2, 2, 3]
        web.answer = b"HTTP/1.0 204 Fine\r\n\r\n"
        clock.advance(20)
        await pusher.turn()
        clock.advance(299)
        await pusher.turn()
        assert len(web.requests) == 4
        clock.advance(1)
        await pusher.turn()
        assert len(web.requests) == 5

    with_web(scenario)


def test_a_heartbeat_while_the_box_has_not_failed() -> None:
    async def scenario(web: Web) -> None:
        clock, now = ManualClock(), status()
        pusher = Pusher(Push(heartbeat_url=web.url("/beat"), heartbeat_interval=60.0), clock, "gw", lambda: now)
        await pusher.turn()
        await pusher.turn()
        assert web.requests == [("GET /beat", None)]
        clock.advance(60)
        now.update(status("degraded", "route-paused"))
        await pusher.turn()
        assert len(web.requests) == 2
        clock.advance(60)
        now.update(status("failed", "disk-full"))
        await pusher.turn()
        assert len(web.requests) == 2

    with_web(scenario)


def test_servers_that_do_not_answer_as_they_should(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(web: Web) -> None:
        for answer in (b"", b"220 mail.example ESMTP\r\n", b"HTTP/1.1 301 Moved\r\n\r\n", b"HTTP/1.1 2", b"x" * 9000):
            web.answer = answer
            if answer == b"HTTP/1.1 2":
                await request(web.url("/"))  # a status line without its end, as far as it goes
                continue
            with pytest.raises(PushFailed):
                await request(web.url("/"))
        with pytest.raises(PushFailed, match=r"[Cc]onnect"):
            await request("http://127.0.0.1:9/")
        web.answer = None
        monkeypatch.setattr(push, "REQUEST_SECONDS", 0.1)
        with pytest.raises(PushFailed, match="no answer"):
            await request(web.url("/"))

    with_web(scenario)


def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "localhost", ["127.0.0.1"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / CERT, tmp_path / KEY)
    served: list[bytes] = []

    def serve(listening: socket.socket) -> None:
        for _ in range(2):
            accepted, _ = listening.accept()
            accepted.settimeout(10)
            with contextlib.suppress(OSError), accepted, context.wrap_socket(accepted, server_side=True) as secured:
                served.append(secured.recv(1000).split(b" HTTP")[0])
                secured.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(10)
        thread = threading.Thread(target=serve, args=(listening,))
        thread.start()
        url = f"https://localhost:{listening.getsockname()[1]}/"
        with pytest.raises(PushFailed, match="not trusted"):
            asyncio.run(request(url))
        assert served == []
        asyncio.run(request(url, ca_file=str(tmp_path / CERT)))
        thread.join()
    assert served == [b"GET /"]


def configuration(tmp_path: Path, table: str) -> Path:
    path = tmp_path / "edgemail.toml"
    path.write_text(f'myhostname = "gw.example.com"\nqueue_directory = "{tmp_path}"\n{table}\n')
    return path


def test_the_table(tmp_path: Path) -> None:
    table = '[push]\nalarm_url = "https://a.example/x"\nheartbeat_interval = "10m"'
    found = load(str(configuration(tmp_path, table)), files=False)
    assert found.push == Push(alarm_url="https://a.example/x", heartbeat_interval=600.0)


@pytest.mark.parametrize(
    ("table", "key", "words"),
    [
        ("[push]", "push", "names nobody"),
        ('[push]\nalarm_url = "ftp://a.example/"', "push.alarm_url", "not the URL"),
        ('[push]\nalarm_url = "https:///x"', "push.alarm_url", "not the URL"),
        ('[push]\nalarm_url = "https://u:hunter2@a.example/"', "push.alarm_url", "names a user"),
        ('[push]\nalarm_url = "https://a.example/b c"', "push.alarm_url", "characters"),
        ('[push]\nalarm_url = "https://a.example/"\nheartbeat_interval = 1', "push.heartbeat_interval", "bounds"),
        ('[push]\nalarm_url = "https://a.example/"\nheartbeat_intervall = 60', "push.heartbeat_intervall", "unknown"),
        ("[push]\nalarm_url = 7", "push.alarm_url", "expected text"),
        ("push = 1", "push", "expected a table"),
    ],
)
def test_mistakes_in_the_table(tmp_path: Path, table: str, key: str, words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(str(configuration(tmp_path, table)), files=False)
    found = [problem for problem in caught.value.problems if problem.key == key]
    assert found and words in found[0].message and "hunter2" not in str(found)
