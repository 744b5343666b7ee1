"""Free ports, and waiting until somebody listens on one."""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import time
from pathlib import Path

# From here on (the kernel's own default, or later) the kernel gives a port to whoever asks for any.
RANDOM_FROM = max(32_768, int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0]))
_numbers = itertools.count(random.randrange(16_384))


def free_port() -> int:
    """A port of 127.0.0.1 that nobody uses now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def quiet_port() -> int:
    """The same for who takes his time to listen: a port that the kernel gives to nobody, and each only once."""
    for number in _numbers:
        port = RANDOM_FROM - 1 - number % 16_384
        with contextlib.suppress(OSError), socket.socket() as found:
            found.bind(("127.0.0.1", port))
            return port
    raise AssertionError("numbers do not end")


def greeting(port: int, seconds: float = 20.0) -> bytes:
    """What a server on `port` says first; AssertionError when nobody speaks in time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            if said := connection.recv(1000):
                return said
        time.sleep(0.05)
    raise AssertionError(f"nobody speaks on port {port}")
