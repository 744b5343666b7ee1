"""The HTTP endpoint: what it answers, whom it refuses, and that hostile requests cost it nothing."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemail.health import http
from edgemail.health.http import Answer, HttpServer, Page, Refused, Request, as_json, parse_head, split_host
from edgemail.settings import Health


async def slow_page(request: Request) -> Answer:
    await asyncio.sleep(0)
    return Answer(200, request.content)


def broken_page(request: Request) -> Answer:
    raise RuntimeError("a secret path")


PAGES = {
    "/": Page(lambda request: Answer(200, b"hello", "text/html")),
    "/json": Page(lambda request: as_json(503, {"a": 1})),
    "/post": Page(slow_page, ("POST",), token=True),
    "/broken": Page(broken_page),
}


def ask(
    request: bytes, health: Health | None = None, names: tuple[str, ...] = ("gw.example.com",)
) -> tuple[int, bytes]:
    """One request to a fresh server; {port} in it is the server's port. Returns status and everything received."""

    async def scenario() -> bytes:
        server = HttpServer(health or Health(port=0), names, PAGES)
        await server.start()
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(request.replace(b"{port}", str(server.port).encode()))
            async with asyncio.timeout(20):
                answer = await reader.read()
            writer.close()
            await writer.wait_closed()
            return answer
        finally:
            await server.close()

    answer = asyncio.run(scenario())
    return int(answer.split(b" ")[1]) if answer else 0, answer


HOST = b"Host: localhost:{port}\r\n"


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (b"GET / HTTP/1.1\r\n" + HOST + b"\r\n", 200),
        (b"GET /?x=1 HTTP/1.0\r\n" + HOST + b"\r\n", 200),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n", 200),
        (b"GET / HTTP/1.1\r\nHost: [::1]:{port}\r\n\r\n", 200),
        (b"GET / HTTP/1.1\r\nHost: GW.example.com:{port}\r\n\r\n", 200),
        (b"GET / HTTP/1.1\r\nHost: gw.example.com\r\n\r\n", 421),
        (b"GET / HTTP/1.1\r\nHost: evil.example:{port}\r\n\r\n", 421),
        (b"GET / HTTP/1.1\r\nHost: localhost:1\r\n\r\n", 421),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + HOST + b"\r\n", 400),
        (b"GET /json HTTP/1.1\r\n" + HOST + b"\r\n", 503),
        (b"GET /none HTTP/1.1\r\n" + HOST + b"\r\n", 404),
        (b"DELETE / HTTP/1.1\r\n" + HOST + b"\r\n", 405),
        (b"POST / HTTP/1.1\r\n" + HOST + b"\r\n", 405),
        (b"POST /post HTTP/1.1\r\n" + HOST + b"\r\n", 401),
        (b"GET /broken HTTP/1.1\r\n" + HOST + b"\r\n", 500),
        (b"GET / HTTP/2.0\r\n" + HOST + b"\r\n", 505),
        (b"GET http://localhost/ HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"EHLO there\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"X : y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: 99999999\r\n\r\n", 413),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n", 501),
        (b"GET / HTTP/1.1\r\n" + b"X: " + b"a" * 20000 + b"\r\n\r\n", 431),
        (b"\xff\xfe / HTTP/1.1\r\n\r\n", 400),
    ],
)
def test_answers(request_: bytes, code: int) -> None:
    assert ask(request_)[0] == code


def test_who_sends_more_than_was_asked_for_gets_its_answer_all_the_same() -> None:
    """Closed with the rest unread, the connection would be reset, and the answer lost on the way."""
    for _ in range(20):
        code, answer = ask(b"POST / HTTP/1.1\r\n" + HOST + b"\r\n" + b"x" * 500_000)
        assert code == 405
        assert answer.endswith(b"this method is not for this page\n")


def test_head_has_no_content() -> None:
    code, answer = ask(b"HEAD / HTTP/1.1\r\n" + HOST + b"\r\n")
    assert code == 200
    assert b"Content-Length: 5" in answer
    assert answer.endswith(b"\r\n\r\n")


def test_an_error_page_tells_nothing_of_the_cause() -> None:
    assert b"secret" not in ask(b"GET /broken HTTP/1.1\r\n" + HOST + b"\r\n")[1]


def test_json_content() -> None:
    assert json.loads(ask(b"GET /json HTTP/1.1\r\n" + HOST + b"\r\n")[1].partition(b"\r\n\r\n")[2]) == {"a": 1}


def test_the_token_opens_what_needs_it(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    health = Health(port=0, token_file=str(token))
    post = b"POST /post HTTP/1.1\r\n" + HOST + b"Content-Length: 2\r\nAuthorization: Bearer %s\r\n\r\nhi"
    assert ask(post % b"s3cret", health)[0] == 200
    assert ask(post % b"wrong", health)[0] == 401
    token.write_text("\n")
    assert ask(post % b"", health)[0] == 401


def test_a_client_outside_the_networks_needs_the_token(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    health = Health(port=0, token_file=str(token), networks=("192.0.2.0/24",))
    assert ask(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n", health)[0] == 401
    assert ask(b"GET / HTTP/1.1\r\n" + HOST + b"Authorization: bearer s3cret\r\n\r\n", health)[0] == 200


def test_a_flood_of_silent_clients_leaves_room_for_none_but_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past MAX_CLIENTS connections are closed at once; when the silent ones time out, the page answers again."""
    monkeypatch.setattr(http, "REQUEST_SECONDS", 0.3)

    async def scenario() -> tuple[bytes, bytes]:
        server = HttpServer(Health(port=0), (), PAGES)
        await server.start()
        silent = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(http.MAX_CLIENTS)]
        await asyncio.sleep(0)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        try:
            refused = await reader.read()
        except ConnectionResetError:
            refused = b""
        writer.close()
        late = await silent[0][0].read()
        reader, writer2 = await asyncio.open_connection("127.0.0.1", server.port)
        for _, other in silent:
            other.close()
        while server._clients:
            await asyncio.sleep(0.01)
        reader, writer3 = await asyncio.open_connection("127.0.0.1", server.port)
        writer3.write(b"GET / HTTP/1.1\r\nHost: localhost:%d\r\n\r\n" % server.port)
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer2.close()
        writer3.close()
        await server.close()
        return refused, late

    refused, late = asyncio.run(scenario())
    assert refused == b""
    assert late.startswith(b"HTTP/1.1 408")


@given(st.binary(max_size=300))
def test_any_head_parses_or_is_refused(head: bytes) -> None:
    try:
        request = parse_head(head)
    except Refused as refused:
        assert refused.code in http.REASONS
    else:
        assert request.path.startswith("/") or request.path == ""


@given(st.text(max_size=40))
def test_any_host_splits(host: str) -> None:
    name, port = split_host(host)
    assert name == name.lower()
    assert -1 <= port < 1_000_000
