"""Telling the service manager that we are ready and alive, sd_notify(3); it, or we, feed the hardware's watchdog.

Owns the datagrams to $NOTIFY_SOCKET and when they are sent. What counts as alive is /livez and nothing else: a full
disk or a dead link must never reboot a box.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from typing import Final

log = logging.getLogger("edgemail.health")

SHORTEST: Final = 0.1  # limit: seconds between two words to the service manager
STATUS_SECONDS: Final = 10.0  # between two looks at what the status line says

Environment = dict[str, str]


def notify(*lines: str) -> bool:
    """Send lines ("READY=1") to the service manager; False where there is none. Never raises, never blocks."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return False
    address = "\0" + path[1:] if path[0] == "@" else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as found:
            found.setblocking(False)
            found.sendto("\n".join(lines).encode(), address)
    except OSError as error:
        log.warning("warning: the service manager does not listen: %s", error)
        return False
    return True


def interval() -> float:
    """How often the service manager wants to hear of us: half of WatchdogSec; 0.0 when it does not."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    if not microseconds.isdigit() or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    return max(SHORTEST, int(microseconds) / 2_000_000)


class Watchdog:
    """Speaks while `alive` says "". `sentence` is what the status line says. Where nobody listens it does nothing."""

    def __init__(self, alive: Callable[[], str], sentence: Callable[[], str]) -> None:
        self._alive = alive
        self._sentence = sentence
        self._said = ""
        self._silent = ""

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            self.turn()
            await asyncio.sleep(min(interval() or STATUS_SECONDS, STATUS_SECONDS))

    def turn(self) -> None:
        """One word, or silence and why in the log."""
        why = self._alive()
        if why != self._silent:
            self._silent = why
            if why:
                log.critical("panic: not alive: %s; the watchdog is not fed", why)
        sentence = self._sentence()
        lines = [] if why or not interval() else ["WATCHDOG=1"]
        if sentence != self._said:
            lines.append(f"STATUS={sentence}")
        if lines and notify(*lines):
            self._said = sentence
