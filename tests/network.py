"""A network of the test's own: its thread, and what it starts, see nothing of the machine's. Needs root."""

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
