"""What the relay on a box shows of it, and a release that comes by the page."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgemail.boot import box as module
from edgemail.boot import waiting
from edgemail.boot.box import Box
from edgemail.health.board import State
from edgemail.health.http import HttpServer
from edgemail.settings import Health

REPORT = {
    "state": "ok",
    "reason": "",
    "message": "",
    "version": "1.0",
    "data": "mounted",
    "provision": "unchanged",
    "configured": True,
    "problems": [],
    "notes": [],
    "addresses": ["192.0.2.7"],
    "port": 80,
}


@pytest.fixture
def box(tmp_path: Path) -> Box:
    (tmp_path / "incoming").mkdir()
    (tmp_path / "boot.json").write_text(json.dumps(REPORT))
    (tmp_path / "token").write_text("open sesame\n")
    given = {"REPORT": tmp_path / "boot.json", "INCOMING": tmp_path / "incoming", "AGENT": tmp_path / "agent"}
    names = {"REPORT": "EDGEMAIL_BOOT_REPORT", "INCOMING": "EDGEMAIL_INCOMING", "AGENT": "EDGEMAIL_AGENT"}
    return Box({names[name]: str(path) for name, path in given.items()})


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[int]:
    """The root side, which listens."""
    os.mkfifo(tmp_path / "agent")
    end = os.open(tmp_path / "agent", os.O_RDWR | os.O_NONBLOCK)
    yield end
    os.close(end)


def ask(box: Box, tmp_path: Path, head: str, content: bytes = b"", *, short: int = 0) -> tuple[int, bytes]:
    async def scenario() -> bytes:
        health = Health(port=0, token_file=str(tmp_path / "token"))
        server = HttpServer(health, (), box.pages())
        await server.start()
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            lines = f"{head}\r\nHost: localhost:{server.port}\r\nContent-Length: {len(content)}\r\n\r\n"
            writer.write(lines.encode() + content[: len(content) - short])
            if short:
                writer.write_eof()
            async with asyncio.timeout(20):
                answer = await reader.read()
            writer.close()
            return answer
        finally:
            await server.close()

    answer = asyncio.run(scenario())
    return int(answer.split(b" ")[1]), answer


POST = "POST /update HTTP/1.1\r\nAuthorization: Bearer open sesame"
RELEASE = b"EDGEMAIL" + b"x" * 1_000_000


def test_a_release_by_the_page_is_laid_down_and_somebody_is_told(box: Box, agent: int, tmp_path: Path) -> None:
    assert ask(box, tmp_path, POST, RELEASE)[0] == 202
    assert (tmp_path / "incoming" / "release.bundle").read_bytes() == RELEASE
    assert os.read(agent, 100) == b"install\n"


@pytest.mark.parametrize(
    ("head", "content", "code"),
    [
        ("POST /update HTTP/1.1", RELEASE, 401),
        ("POST /update HTTP/1.1\r\nAuthorization: Bearer wrong", RELEASE, 401),
        (POST + "\r\nOrigin: https://elsewhere.example", RELEASE, 403),
        (POST, b"PK\x03\x04" + bytes(1000), 400),
        (POST, b"", 413),
        ("PUT /update HTTP/1.1\r\nAuthorization: Bearer open sesame", b"x", 405),
    ],
)
def test_what_is_refused_leaves_nothing(
    box: Box, agent: int, tmp_path: Path, head: str, content: bytes, code: int
) -> None:
    assert ask(box, tmp_path, head, content)[0] == code
    assert list((tmp_path / "incoming").iterdir()) == []
    with pytest.raises(BlockingIOError):
        os.read(agent, 1)


def test_too_large_no_room_no_agent_and_cut(box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "MAX_RELEASE", 1000)
        assert ask(box, tmp_path, POST, RELEASE)[0] == 413
    with monkeypatch.context() as patch:
        patch.setattr(module, "KEPT_FREE", 1 << 62)
        assert ask(box, tmp_path, POST, RELEASE)[0] == 503
    code, answer = ask(box, tmp_path, POST, RELEASE)
    assert (code, answer.endswith(b"nobody on this box installs releases\n")) == (503, True)
    assert ask(box, tmp_path, POST, RELEASE, short=1000)[0] == 503
    assert list((tmp_path / "incoming").iterdir()) == []


def test_the_component_and_how_an_update_goes(box: Box, tmp_path: Path) -> None:
    found = box.conditions()["appliance"]
    assert (found.state, found.numbers) == (State.OK, {"version": "1.0", "data": "mounted", "provision": "unchanged"})
    (tmp_path / "update.json").write_text(json.dumps({"state": "installing", "percent": 40}))
    assert box.conditions()["appliance"].numbers["update_percent"] == 40
    assert json.loads(ask(box, tmp_path, "GET /update HTTP/1.1")[1].split(b"\r\n\r\n")[1])["percent"] == 40
    (tmp_path / "update.json").write_text(json.dumps({"state": "failed", "message": "no"}))
    os.utime(tmp_path / "update.json", ns=(1, 1))
    found = box.conditions()["appliance"]
    assert (found.state, found.reason, found.counts) == (State.DEGRADED, "update-failed", False)
    report = {**REPORT, "state": "degraded", "reason": "configuration-bad", "message": "It has mistakes"}
    (tmp_path / "boot.json").write_text(json.dumps(report))
    os.utime(tmp_path / "boot.json", ns=(1, 1))
    found = box.conditions()["appliance"]
    assert (found.state, found.reason, found.counts) == (State.DEGRADED, "configuration-bad", True)
    (tmp_path / "boot.json").write_text("{")
    os.utime(tmp_path / "boot.json", ns=(2, 2))
    assert box.conditions()["appliance"].reason == "update-failed"


def test_a_box_whose_start_left_no_report(tmp_path: Path) -> None:
    report = waiting.read(tmp_path / "none")
    assert report["configured"] is False
    assert waiting.pages(report, 0.0)


def test_the_page_of_a_box_that_waits() -> None:
    report = {**REPORT, "configured": False, "state": "failed", "reason": "not-configured", "message": "It waits"}
    report["provision"] = "missing"

    async def scenario() -> dict[str, bytes]:
        server = HttpServer(Health("127.0.0.1", 0, "", waiting.NETWORKS), (), waiting.pages(report, 0.0))
        await server.start()
        found = {}
        try:
            for path in ("/", "/livez", "/readyz", "/healthz"):
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
                writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n".encode())
                found[path] = await reader.read()
                writer.close()
        finally:
            await server.close()
        return found

    found = asyncio.run(scenario())
    codes = {path: int(answer.split()[1]) for path, answer in found.items()}
    assert codes == {"/": 200, "/livez": 200, "/readyz": 503, "/healthz": 503}
    assert b"write a file edgemail.toml" in found["/"]
    status = json.loads(found["/healthz"].split(b"\r\n\r\n")[1])
    assert status["components"]["appliance"]["reason"] == "not-configured"
