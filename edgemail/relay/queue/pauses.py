"""Which routes pause, since when, and that somebody was told: what of it must outlast this process.

Owns `pauses.json` beside the spool. Written when a notice has been queued, and when such a route works again; a power
cut in between costs a second notice, never the only one. Without a directory it is kept in memory.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

log = logging.getLogger("edgemail.qmgr")

FILE_NAME: Final = "pauses.json"
MAX_FILE: Final = 65_536  # limit: bytes of that file
MAX_PAUSES: Final = 100  # limit: paused routes that are remembered over a restart; the oldest are forgotten
MAX_NAME: Final = 300  # limit: characters of the name of such a route


class Pauses:
    """The routes of which somebody was told, with the date (wall clock) since when they pause."""

    def __init__(self, directory: Path | None, spawn: Callable[[Coroutine[Any, Any, None]], None]) -> None:
        self._path = directory / FILE_NAME if directory is not None else None
        self._spawn = spawn
        self._since = self._read()
        self._dirty = self._writing = False

    def since(self, route: str) -> float:
        """The date; 0.0 for a route of which nobody was told."""
        return self._since.get(route, 0.0)

    def told(self, route: str, since: float) -> None:
        """Somebody has been told of this pause."""
        if len(route) <= MAX_NAME:
            self._since[route] = since
            while len(self._since) > MAX_PAUSES:
                del self._since[min(self._since, key=self._since.__getitem__)]
            self._keep()

    def over(self, route: str) -> None:
        """It works, or is no more."""
        if self._since.pop(route, None) is not None:
            self._keep()

    def _read(self) -> dict[str, float]:
        if self._path is None:
            return {}
        try:
            with self._path.open("rb") as file:
                import json

                found = json.loads(file.read(MAX_FILE))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            log.warning("warning: %s: %s; of routes that pause somebody is told anew", self._path, error)
            return {}
        pairs = found.items() if isinstance(found, dict) else ()
        return {name: float(at) for name, at in pairs if isinstance(at, int | float) and at > 0}

    def _keep(self) -> None:
        self._dirty = True
        if self._path is not None and not self._writing:
            self._writing = True
            self._spawn(self._write(self._path))

    async def _write(self, path: Path) -> None:
        import json

        try:
            while self._dirty:
                self._dirty = False
                await asyncio.to_thread(_replace, path, json.dumps(self._since) + "\n")
        except OSError as error:
            log.warning("warning: %s: %s; after a restart somebody is told anew", path, error)
        finally:
            self._writing = False


def _replace(path: Path, text: str) -> None:
    fresh = path.with_suffix(".new")
    with fresh.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
