"""The board's watchdog: fed while we are alive, hungry when not, asleep after an orderly end."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgemail.health import hardware
from edgemail.health.hardware import RESET_SECONDS, SET_TIMEOUT, WatchdogDevice


@pytest.fixture
def board(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A pipe in the device's place, and its reading end."""
    path = tmp_path / "watchdog"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    yield path, reader
    os.close(reader)


def eaten(reader: int) -> bytes:
    try:
        return os.read(reader, 100)
    except BlockingIOError:
        return b""


def test_it_is_fed_while_we_are_alive_and_let_go_in_good_order(board: tuple[Path, int]) -> None:
    path, reader = board
    device = WatchdogDevice(path, lambda: "")
    assert device.open()
    device.turn()
    device.turn()
    assert eaten(reader) == b"\0\0"
    device.close()
    device.close()
    assert eaten(reader) == b"V"


def test_what_is_not_alive_does_not_feed(board: tuple[Path, int], caplog: pytest.LogCaptureFixture) -> None:
    path, reader = board
    state = ["", "nothing was measured for 11 s", "nothing was measured for 11 s", ""]
    device = WatchdogDevice(path, lambda: state.pop(0))
    device.open()
    with caplog.at_level(logging.CRITICAL):
        for wanted in (b"\0", b"", b"", b"\0"):
            device.turn()
            assert eaten(reader) == wanted
    assert len(caplog.records) == 1
    device.close()


def test_it_is_fed_by_a_task(board: tuple[Path, int], monkeypatch: pytest.MonkeyPatch) -> None:
    path, reader = board
    monkeypatch.setattr(hardware, "FEED_SECONDS", 0)
    device = WatchdogDevice(path, lambda: "")
    device.open()

    async def scenario() -> None:
        task = asyncio.create_task(device.run())
        for _ in range(5):
            await asyncio.sleep(0)
        task.cancel()

    asyncio.run(scenario())
    assert len(eaten(reader)) >= 3
    device.close()


def test_without_a_device_mail_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    device = WatchdogDevice(tmp_path / "none", lambda: "")
    assert not device.open()
    assert "No such file" in caplog.text
    device.close()


def test_a_device_that_takes_nothing_is_told_of(board: tuple[Path, int], caplog: pytest.LogCaptureFixture) -> None:
    path, _ = board
    device = WatchdogDevice(path, lambda: "")
    device.open()
    os.close(device._file)
    device.turn()
    assert "Bad file descriptor" in caplog.text


def test_the_driver_is_told_how_long_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, bytes]] = []
    monkeypatch.setattr(fcntl, "ioctl", lambda file, what, value: asked.append((what, value)))
    device = WatchdogDevice(Path("/dev/null"), lambda: "")
    assert device.open()
    assert asked == [(SET_TIMEOUT, struct.pack("i", RESET_SECONDS))]
    device.close()
