"""sd_notify: what the service manager hears, and that it hears nothing when the box is not alive."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgemail.health.watchdog import Watchdog, interval, notify


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as found:
        found.bind(path)
        found.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        yield found


def heard(manager: socket.socket) -> list[str]:
    out = []
    while True:
        try:
            out.append(manager.recv(4096).decode())
        except BlockingIOError:
            return out


def test_it_hears_of_life_and_of_changes(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    sentences = iter(["all is well", "all is well", "the disk is full"])
    dog = Watchdog(lambda: "", lambda: next(sentences))
    for _ in range(3):
        dog.turn()
    assert heard(manager) == ["WATCHDOG=1\nSTATUS=all is well", "WATCHDOG=1", "WATCHDOG=1\nSTATUS=the disk is full"]


def test_what_is_not_alive_is_silent(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    why = "the medium has not answered for 121 s"
    dog = Watchdog(lambda: why, lambda: "as before")
    with caplog.at_level(logging.INFO):
        dog.turn()
        dog.turn()
    assert heard(manager) == ["STATUS=as before"]
    assert caplog.text.count(why) == 1


def test_no_watchdog_was_asked_for(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    Watchdog(lambda: "", lambda: "").turn()
    assert heard(manager) == []


@pytest.mark.parametrize(
    ("microseconds", "pid", "seconds"),
    [
        ("", "", 0.0),
        ("x", "", 0.0),
        ("10000000", "", 5.0),
        ("10000000", "own", 5.0),
        ("10000000", "1", 0.0),
        ("1", "", 0.1),
    ],
)
def test_how_often(microseconds: str, pid: str, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", microseconds)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    if pid:
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)
    assert interval() == seconds


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert notify("READY=1") is False
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    assert notify("READY=1") is False
    assert "does not listen" in caplog.text


def test_an_abstract_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as found:
        name = f"edgemail-test-{os.getpid()}"
        found.bind("\0" + name)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
        assert notify("READY=1") is True
        assert found.recv(100) == b"READY=1"
