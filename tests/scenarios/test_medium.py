"""A medium that fails, hangs, turned read-only or has no inodes left, at the real process. Root only."""

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
FREEZE, THAW = 0xC0045877, 0xC0045878  # linux/fs.h: FIFREEZE, FITHAW
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
            said = offer(one.port)
            assert any(re.match("451 4.3.0 ", each) for each in said), said
            assert time.monotonic() - began < 5
        assert get(one, "/readyz")[0] == 503
        assert get(one, "/livez") == (200, "ok\n")
        one.wait_until(lambda: status(one)["state"] == "failed", "failed state")
        assert "cannot be written" in status(one)["message"]
        assert get(one, "/healthz")[0] == 503


def test_a_medium_that_turned_read_only(tmp_path: Path) -> None:
    """As ext4 does after an error: 451 within 5 s, deliveries are not claimed, the process lives and says why."""
    image = made(tmp_path)
    with mounted(str(image), tmp_path / "spool", "-o", "loop,errors=remount-ro") as disk:
        device = Path("/sys/dev/block", _device(disk)).resolve().name
        trigger = Path("/sys/fs/ext4", device, "trigger_fs_error")
        if not trigger.exists():
            pytest.skip(f"no {trigger} here")
        with relay(tmp_path, SETTINGS, HEALTH) as one:
            wait_ready(one)
            kept = one.send()
            trigger.write_text("1")
            with pytest.raises(OSError, match=r"[Rr]ead-only"):
                (disk / "x").touch()
            for _ in range(2):
                began = time.monotonic()
                said = offer(one.port)
                assert any(re.match("451 4.3.0 ", each) for each in said), said
                assert time.monotonic() - began < 5
            assert get(one, "/livez") == (200, "ok\n")
            code, why = get(one, "/readyz")
            assert code == 503 and "cannot be written" in why
            one.wait_until(lambda: status(one)["components"]["spool"]["reason"] == "medium-failed", "reason")
            assert [each["queue_id"] for each in one.queue()] == [kept]


def _device(path: Path) -> str:
    found = path.stat().st_dev
    return f"{os.major(found)}:{os.minor(found)}"


def offer(port: int) -> list[str]:
    """The replies to a message, as far as it came."""
    with Client(port) as client:
        said = client.ask("EHLO me", "MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA")
        if said[-1].startswith("354"):
            client.send(b"Subject: lost?\r\n\r\n.\r\n")
            said.append(client.reply())
        return said


@contextlib.contextmanager
def frozen(place: Path) -> Iterator[None]:
    """A file system that takes nothing and does not say so, as for a snapshot, or as a card that hangs."""
    os.sync()  # what is clean must be asked for before it is written: there it is that a process hangs
    descriptor = os.open(place, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, FREEZE, 0)
        try:
            yield
        finally:
            fcntl.ioctl(descriptor, THAW, 0)
    finally:
        os.close(descriptor)


def test_a_medium_that_hangs(tmp_path: Path, disk: Path) -> None:
    """Everybody is answered all the while, with 451 from the fifth second on, and it goes on where it stopped."""
    with relay(tmp_path, SETTINGS, HEALTH) as one, Client(one.port) as caught:
        wait_ready(one)
        kept = one.send()
        one.wait_deferred()
        assert caught.ask("EHLO me", "MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA")[-1].startswith("354")
        with frozen(disk):
            caught.send(b"Subject: in the middle\r\n\r\n.\r\n")
            began = time.monotonic()
            slowest, hung = 0.0, ""
            while time.monotonic() - began < 11:
                asked = time.monotonic()
                said = answer_to_mail(one.port)
                alive, (ready, why) = get(one, "/livez"), get(one, "/readyz")
                slowest = max(slowest, time.monotonic() - asked)
                assert alive == (200, "ok\n")
                if asked - began > 5:
                    assert said == "451 4.3.0 Error: the disk does not answer, try again later"
                    assert ready == 503
                hung = why
                time.sleep(0.3)
            assert slowest < 3
            assert hung.startswith("the medium has not answered for ")
            assert status(one)["components"]["spool"]["reason"] == "medium-hangs"
            assert [each["queue_id"] for each in one.waiting()] == [kept]
        assert caught.reply().startswith("250 ")  # it was kept when it could be
        one.wait_until(lambda: get(one, "/readyz")[0] == 200, "readiness")
        assert offer(one.port)[-1].startswith("250 ")
        assert len(one.queue()) == 3
        assert "panic" not in one.log() and "Traceback" not in one.log()
