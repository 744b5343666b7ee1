"""A disk that runs full under the real process, and has room again: a small ext4 in a file, mounted. Root only."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scenarios.client import Client
from tests.scenarios.relay import Relay
from tests.scenarios.sink import sink

FULL = "452 4.3.1 Insufficient system storage: the disk is full"
DISK = 48 << 20
LIMIT = 1_000_000


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own."""
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        pytest.skip("a loop mount needs root and mkfs.ext4")
    image, place = tmp_path / "disk.img", tmp_path / "spool"
    with image.open("wb") as file:
        file.truncate(DISK)
    place.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", str(image)], check=True, capture_output=True)
    mounted = subprocess.run(["mount", "-o", "loop", str(image), str(place)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no loop mount here: {mounted.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def fill(disk: Path, leave: int) -> Path:
    """A file that takes the room but for `leave` bytes."""
    ballast = disk / "ballast"
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free - leave)
    return ballast


def answer_to_mail(server: Relay, size: str = "") -> str:
    with Client(server.port) as client:
        return client.ask("EHLO me", f"MAIL FROM:<a@b.example>{size}")[-1]


def test_a_full_disk_refuses_mail_and_still_delivers(tmp_path: Path, disk: Path) -> None:
    """452 at MAIL; what is queued leaves; with room again mail is taken again. One process all the while."""
    with sink() as smarthost:
        smarthost.stop()
        settings = f"""\
relayhost = "[127.0.0.1]:{smarthost.port}"
spool_size = "32MiB"
message_size_limit = {LIMIT}
in_flow_delay = 0
minimal_backoff_time = "1s"
maximal_backoff_time = "1s"
queue_run_delay = "1s"
"""
        server = Relay(tmp_path, settings)
        server.start()
        try:
            assert server.process is not None
            pid = server.process.pid
            bodies = [b"Subject: %d\r\n\r\n" % number + b"x" * 70 + b"\r\n" for number in range(20)]
            for body in bodies:
                server.send(message=body)
            server.wait_deferred(len(bodies))
            ballast = fill(disk, 200_000)
            server.wait_until(lambda: answer_to_mail(server) == FULL, "refusal")
            assert answer_to_mail(server, " SIZE=10") == FULL
            with Client(server.port) as client:  # the service is up: everything else is answered
                assert client.ask("EHLO me", "NOOP", "VRFY x", "MAIL FROM:<a@b.example>", "NOOP")[-2:] == [
                    FULL,
                    "250 2.0.0 Ok",
                ]
            assert re.search(r"NOQUEUE: reject: MAIL from unknown\[127\.0\.0\.1\]: 452 4\.3\.1 ", server.log())
            smarthost.start()
            server.wait_empty(60)
            came = [body for body in smarthost.bodies() if body.startswith(b"Subject: ")]  # and a notice of the pause
            assert sorted(came) == sorted(bodies)
            assert answer_to_mail(server) == FULL  # delivering made no room on the disk: the ballast has it
            ballast.unlink()
            server.wait_until(lambda: answer_to_mail(server) == "250 2.1.0 Ok", "room")
            server.send(message=b"Subject: after\r\n\r\n")
            server.wait_empty()
            assert b"Subject: after\r\n\r\n" in smarthost.bodies()
            assert server.process.pid == pid and server.process.poll() is None
            assert "panic: " not in server.log() and "status=bounced" not in server.log()
            assert server.stop() == 0
        finally:
            server._end()


def test_a_disk_that_fills_up_in_mid_message(tmp_path: Path, disk: Path) -> None:
    """Room at MAIL, none at the end: 4xx, nothing kept, and the next one is taken when there is room."""
    with sink() as smarthost:
        smarthost.stop()
        settings = f'relayhost = "[127.0.0.1]:{smarthost.port}"\nspool_size = "32MiB"\nmessage_size_limit = 9_000_000\n'
        settings += 'minimal_backoff_time = "1s"\nmaximal_backoff_time = "1s"\nqueue_run_delay = "1s"\n'
        server = Relay(tmp_path, settings + "in_flow_delay = 0\n")
        server.start()
        try:
            kept = server.send(message=b"Subject: kept\r\n\r\n")
            server.wait_deferred()
            content = b"x" * 70 + b"\r\n"
            with Client(server.port) as client:
                assert (
                    client.ask("EHLO me", "MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA")[-1][:3] == "354"
                )
                ballast = fill(disk, 100_000)
                client.send(b"\r\n" + content * (8_000_000 // len(content)) + b".\r\n")
                reply = client.reply()
                assert reply == FULL
                assert client.say("NOOP") == "250 2.0.0 Ok"
            assert [each["queue_id"] for each in server.waiting()] == [kept]
            server.wait_until(lambda: answer_to_mail(server) == FULL, "refusal")  # others are told at once
            smarthost.start()
            server.wait_for(rf"{kept}: removed")  # what was taken leaves all the same
            ballast.unlink()
            server.wait_until(lambda: answer_to_mail(server) == "250 2.1.0 Ok", "room")
            server.send(message=b"Subject: after\r\n\r\n")
            server.wait_empty()
            assert {b"Subject: kept\r\n\r\n", b"Subject: after\r\n\r\n"} <= set(smarthost.bodies())
            assert "panic: " not in server.log()
        finally:
            server._end()
