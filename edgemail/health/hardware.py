"""The watchdog of the board, fed by ourselves where no service manager does it: Linux watchdog-api, magic close.

Owns the open device. Fed only while /livez is well: a loop that no longer turns, or a medium that has been silent for
minutes, ends in a reset of the board; a full disk or a dead link never does. An orderly stop lets it sleep.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

log = logging.getLogger("edgemail.health")

RESET_SECONDS: Final = 30  # limit: without food before the board is reset, where the driver can be told
FEED_SECONDS: Final = 5.0  # between two meals
SET_TIMEOUT: Final = 0xC0045706  # linux/watchdog.h, WDIOC_SETTIMEOUT
MAGIC_CLOSE: Final = b"V"  # without it, closing the device does not put the watchdog to sleep


class WatchdogDevice:
    """One device. Opening it starts the clock: `open` when the relay serves, and `close` behind its last commit."""

    def __init__(self, path: Path, alive: Callable[[], str]) -> None:
        self._path = path
        self._alive = alive
        self._file = -1
        self._hungry = ""

    def open(self) -> bool:
        """False, and why in the log, where it cannot be had: mail goes on without."""
        try:
            self._file = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            log.error("error: watchdog_device: %s: %s; nothing resets the board", self._path, error.strerror)
            return False
        if stat.S_ISCHR(os.fstat(self._file).st_mode):
            with contextlib.suppress(OSError):  # it then keeps its own time
                fcntl.ioctl(self._file, SET_TIMEOUT, struct.pack("i", RESET_SECONDS))
        log.info("watchdog %s is fed while /livez is well", self._path)
        return True

    async def run(self) -> None:
        """Feed it until cancelled."""
        while True:
            self.turn()
            await asyncio.sleep(FEED_SECONDS)

    def turn(self) -> None:
        """One meal, or none and why in the log."""
        why = self._alive()
        if why != self._hungry:
            self._hungry = why
            if why:
                log.critical("panic: not alive: %s; %s is not fed", why, self._path)
        if not why:
            self._write(b"\0")

    def close(self) -> None:
        """Put it to sleep. Safe to call twice."""
        if self._file >= 0:
            self._write(MAGIC_CLOSE)
            os.close(self._file)
            self._file = -1

    def _write(self, what: bytes) -> None:
        try:
            os.write(self._file, what)
        except OSError as error:
            log.error("error: watchdog_device: %s: %s", self._path, error.strerror)
