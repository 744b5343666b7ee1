"""Free ports, and waiting until somebody listens on one."""

from __future__ import annotations

import contextlib
import socket
import time


def free_port() -> int:
    """A port of 127.0.0.1 that nobody uses now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def greeting(port: int, seconds: float = 20.0) -> bytes:
    """What a server on `port` says first; AssertionError when nobody speaks in time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            if said := connection.recv(1000):
                return said
        time.sleep(0.05)
    raise AssertionError(f"nobody speaks on port {port}")
