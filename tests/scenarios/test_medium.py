"""A medium that fails, or has no inodes left, under the real process: a small ext4, mounted. Root only."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scenarios.client import Client
from tests.scenarios.relay import relay
from tests.scenarios.test_health import HEALTH, get, status, wait_ready

FS_IOC_GOINGDOWN = 0x8004587D  # linux/fs.h and fs/ext4: every write fails from now on
NO_LOG_FLUSH = 2
SETTINGS = 'message_size_limit = 1_000_000\nspool_size = "32MiB"\nin_flow_delay = 0\n'


def made(tmp_path: Path) -> Path:
    """An image with a file system of 64 inodes."""
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        pytest.skip("a loop mount needs root and mkfs.ext4")
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", "-N", "64", str(image)], check=True, capture_output=True)
    (tmp_path / "spool").mkdir()
    return image


@contextlib.contextmanager
def mounted(what: str, place: Path, *options: str) -> Iterator[Path]:
    """A file system, let go of lazily, for it may be beyond use."""
    done = subprocess.run(["mount", *options, what, str(place)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"no mount here: {done.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own."""
    with mounted(str(made(tmp_path)), tmp_path / "spool", "-o", "loop") as place:
        yield place


def answer_to_mail(port: int) -> str:
    with Client(port) as client:
        return client.ask("EHLO me", "MAIL FROM:<a@b.example>")[-1]


def test_no_inodes_left(tmp_path: Path, disk: Path) -> None:
    with relay(tmp_path, SETTINGS, HEALTH) as one:
        wait_ready(one)
        many = disk / "many"
        many.mkdir()
        with contextlib.suppress(OSError):
            for number in range(64):
                (many / str(number)).touch()
        refused = "452 4.3.1 Insufficient system storage: no inodes left"
        one.wait_until(lambda: answer_to_mail(one.port) == refused, "refusal")
        assert get(one, "/readyz") == (503, refused + "\n")
        assert get(one, "/livez")[0] == 200
        one.wait_until(lambda: status(one)["components"]["guard.inodes"]["level"] == "full", "guard to trip")
        shutil.rmtree(many)
        one.wait_until(lambda: answer_to_mail(one.port).startswith("250 "), "room")
        one.wait_until(lambda: get(one, "/readyz")[0] == 200, "readiness")


def test_a_medium_that_fails(tmp_path: Path, disk: Path) -> None:
    """451 4.3.0 within 5 s for each message; /readyz fails, /livez does not; nothing is said to be taken."""
    with relay(tmp_path, SETTINGS, HEALTH) as one:
        wait_ready(one)
        descriptor = os.open(disk, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, FS_IOC_GOINGDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(descriptor)
        for _ in range(2):
            began = time.monotonic()
            with Client(one.port) as client:
                said = client.ask("EHLO me", "MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA")
                if said[-1].startswith("354"):
                    client.send(b"Subject: lost?\r\n\r\n.\r\n")
                    said.append(client.reply())
            assert any(re.match("451 4.3.0 ", each) for each in said), said
            assert time.monotonic() - began < 5
        assert get(one, "/readyz")[0] == 503
        assert get(one, "/livez") == (200, "ok\n")
        one.wait_until(lambda: status(one)["state"] == "failed", "failed state")
        assert "cannot be written" in status(one)["message"]
        assert get(one, "/healthz")[0] == 503
