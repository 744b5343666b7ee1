"""Networks of the test's own: its thread, and what it starts, see nothing of the machine's. Needs root."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

CLONE_NEWNET = 0x40000000  # linux/sched.h
LIBC = ctypes.CDLL(None, use_errno=True)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


def _checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@contextlib.contextmanager
def namespace() -> Iterator[None]:
    """A new network namespace with a loopback that works; gone at the end with all that was made in it."""
    with Path("/proc/thread-self/ns/net").open() as before:
        _checked(LIBC.unshare(CLONE_NEWNET))
        try:
            ip("link set lo up")
            yield
        finally:
            _checked(LIBC.setns(before.fileno(), CLONE_NEWNET))


class Places:
    """Several networks, each with a loopback that works; the thread is `within` one of them at a time."""

    def __init__(self, *names: str) -> None:
        self._fds: dict[str, int] = {}
        with Path("/proc/thread-self/ns/net").open() as before:
            try:
                for name in names:
                    _checked(LIBC.unshare(CLONE_NEWNET))
                    ip("link set lo up")
                    self._fds[name] = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            finally:
                _checked(LIBC.setns(before.fileno(), CLONE_NEWNET))

    @contextlib.contextmanager
    def within(self, name: str) -> Iterator[None]:
        """Be in one of the networks; processes and threads that start meanwhile are, for good."""
        with Path("/proc/thread-self/ns/net").open() as before:
            _checked(LIBC.setns(self._fds[name], CLONE_NEWNET))
            try:
                yield
            finally:
                _checked(LIBC.setns(before.fileno(), CLONE_NEWNET))

    def wire(self, one: str, its: str, other: str, peers: str) -> None:
        """A cable from the interface `its` in `one` to `peers` in `other`, both switched on."""
        with self.within(one):
            there = f"/proc/{os.getpid()}/fd/{self._fds[other]}"
            ip(f"link add {its} type veth peer name {peers} netns {there}", f"link set {its} up")
        with self.within(other):
            ip(f"link set {peers} up")

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()


@contextlib.contextmanager
def places(*names: str) -> Iterator[Places]:
    """Networks for the length of a test; gone at the end, with what was made in them."""
    found = Places(*names)
    try:
        yield found
    finally:
        found.close()


def forward() -> None:
    """Make a router of the network that the thread is in."""
    for path in ("/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"):
        Path(path).write_text("1")


def ip(*commands: str) -> None:
    """What `ip` does, one command an argument, in one batch."""
    text = "\n".join(commands) + "\n"
    done = subprocess.run(["ip", "-batch", "-"], input=text, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr


def cable(name: str) -> None:
    """An interface with a cable to `far-<name>`, which is down: no carrier."""
    ip(f"link add {name} type veth peer name far-{name}", f"link set {name} up")


def plug(name: str) -> None:
    ip(f"link set far-{name} up")


def pull(name: str) -> None:
    ip(f"link set far-{name} down")
