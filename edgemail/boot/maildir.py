"""The development smarthost's store: what is taken goes, whole, into a Maildir. For `edgemail demo` and nothing else.

It answers the spool's `intake` verb, so that the same sessions that serve the relay serve the smarthost.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from edgemail.envelope import Envelope
from edgemail.spool.verbs import Change


class MaildirIntake:
    """One message on its way into `root`/tmp and, when it is whole and flushed, into `root`/new."""

    def __init__(self, root: Path, id: int, delivered: Callable[[Envelope, Path], None]) -> None:
        self.id = id
        self.size = 0
        name = f"{int(time.time())}.M{id}P{os.getpid()}.{socket.gethostname()}"
        self._draft = root / "tmp" / name
        self._place = root / "new" / name
        self._file = self._draft.open("wb")
        self._delivered = delivered

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self.size += len(data)

    async def drain(self) -> None:
        """A file needs no waiting for."""

    async def commit(self, envelope: Envelope, also: Change | None = None) -> Envelope:
        self._file.flush()
        await asyncio.to_thread(os.fsync, self._file.fileno())
        self._file.close()
        self._draft.rename(self._place)
        kept = replace(envelope, id=self.id, size=self.size)
        self._delivered(kept, self._place)
        return kept

    async def abort(self) -> None:
        self._file.close()
        self._draft.unlink(missing_ok=True)


class Maildir:
    """A directory with tmp, new and cur, made when it is not there. `delivered` hears of each message and its file."""

    def __init__(self, root: Path, delivered: Callable[[Envelope, Path], None]) -> None:
        self.root = root
        self._delivered = delivered
        self._last = int(time.time()) << 8
        for part in ("tmp", "new", "cur"):
            (root / part).mkdir(parents=True, exist_ok=True)

    def intake(self) -> MaildirIntake:
        self._last += 1
        return MaildirIntake(self.root, self._last, self._delivered)
