"""The box as the relay on it shows it: how its start went, how an update goes, and taking in a release by the page.

Reads what the system's own side wrote; has no right to do anything itself. A release that comes by the page is laid
down for the update, which runs as root and believes its signature only.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

from edgemail.health.board import Condition, Number, State
from edgemail.health.http import Answer, Page, Request, as_json
from edgemail.health.page import foreign

log = logging.getLogger("edgemail.health")

MAX_RELEASE: Final = 128 * 1024 * 1024  # limit: bytes of a release that comes by the page
KEPT_FREE: Final = 64 * 1024 * 1024  # limit: bytes of the data partition that a release leaves for mail
UPLOAD_SECONDS: Final = 900.0  # limit: for a release to come by the page
PIECE: Final = 262_144  # limit: bytes of such a release in memory at once
MAX_SAID: Final = 65_536  # limit: bytes of what the system's side wrote that are read
RELEASE: Final = "release.bundle"
MAGIC: Final = b"EDGEMAIL"  # of a bundle; what is in it is the update's to judge


class Box:
    """One box; `environment` says where things are, as the launcher set it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._report = Path(environment["EDGEMAIL_BOOT_REPORT"])
        self._progress = self._report.with_name("update.json")
        self._incoming = Path(environment.get("EDGEMAIL_INCOMING", ""))
        self._agent = environment.get("EDGEMAIL_AGENT", "")
        self._known: dict[Path, tuple[int, dict[str, Any]]] = {}
        self._busy = False

    def conditions(self) -> dict[str, Condition]:
        """The component `appliance`."""
        report, update = self._read(self._report), self._read(self._progress)
        numbers: dict[str, Number] = {
            name: value for name in ("version", "data", "provision") if isinstance(value := report.get(name), str)
        }
        numbers |= {f"update_{name}": value for name, value in update.items() if isinstance(value, str | int)}
        state = {"degraded": State.DEGRADED, "failed": State.FAILED}.get(str(report.get("state")), State.OK)
        if state is State.OK and update.get("state") == "failed":
            message = f"The last update failed: {update.get('message')}"
            return {"appliance": Condition(State.DEGRADED, "update-failed", message, numbers, counts=False)}
        return {"appliance": Condition(state, str(report.get("reason", "")), str(report.get("message", "")), numbers)}

    def pages(self) -> dict[str, Page]:
        """`/update`: how it goes, and a new release."""
        return {
            "/update": Page(
                lambda request: self._take(request) if request.method == "POST" else self._show(),
                ("GET", "HEAD", "POST"),
                streamed=UPLOAD_SECONDS,
            )
        }

    def _show(self) -> Answer:
        return as_json(200, {"version": self._read(self._report).get("version", ""), **self._read(self._progress)})

    async def _take(self, request: Request) -> Answer:
        """POST: the bundle is the content."""
        refused = foreign(request)
        if refused is not None:
            return refused
        if not request.trusted or request.stream is None:
            return Answer(
                401, b"this needs the token of [health] token_file\n", extra=(("WWW-Authenticate", "Bearer"),)
            )
        if self._busy:
            return Answer(409, b"a release is on its way already\n")
        if not 0 < request.length <= MAX_RELEASE:
            return Answer(413, f"a release has at most {MAX_RELEASE} bytes\n".encode())
        self._busy = True
        try:
            return await self._keep(request.stream, request.length)
        except OSError as error:
            log.error("error: a release by the page: %s", error)
            return Answer(503, f"it could not be kept: {error.strerror}\n".encode())
        finally:
            self._busy = False

    async def _keep(self, stream: asyncio.StreamReader, length: int) -> Answer:
        path = self._incoming / RELEASE
        beside = self._incoming / (RELEASE + ".new")
        room = os.statvfs(self._incoming)
        if room.f_bavail * room.f_frsize < length + KEPT_FREE:
            return Answer(503, b"there is no room for it beside the mail\n")
        head = await stream.readexactly(min(length, len(MAGIC)))
        if head != MAGIC:
            return Answer(400, b"this is not an edgemail bundle\n")
        file = await asyncio.to_thread(beside.open, "wb")
        try:
            await self._copy(stream, file, head, length)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        finally:
            file.close()
        beside.replace(path)
        try:
            agent = os.open(self._agent, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            path.unlink(missing_ok=True)
            return Answer(503, b"nobody on this box installs releases\n")
        try:
            os.write(agent, b"install\n")
        finally:
            os.close(agent)
        log.info("a release of %d bytes came by the page", length)
        return as_json(202, {"state": "received", "bytes": length})

    @staticmethod
    async def _copy(stream: asyncio.StreamReader, file: BinaryIO, head: bytes, length: int) -> None:
        await asyncio.to_thread(file.write, head)
        left = length - len(head)
        while left:
            piece = await stream.read(min(PIECE, left))
            if not piece:
                raise OSError(0, "the connection ended before the release did")
            left -= len(piece)
            await asyncio.to_thread(file.write, piece)
        file.flush()
        await asyncio.to_thread(os.fsync, file.fileno())

    def _read(self, path: Path) -> dict[str, Any]:
        """A file of the system's side, read again when it is another one."""
        try:
            stamp = path.stat().st_mtime_ns
            known = self._known.get(path)
            if known is not None and known[0] == stamp:
                return known[1]
            with path.open("rb") as file:
                found = json.loads(file.read(MAX_SAID))
        except (OSError, ValueError):
            return {}
        value = found if isinstance(found, dict) else {}
        self._known[path] = (stamp, value)
        return value
