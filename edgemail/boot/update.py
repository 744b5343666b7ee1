"""Updates of a box: what there is, and putting it on the other slot. Finding what runs good is `trial`'s.

Owns one update at a time, and what is said meanwhile. The order of writes on the card is `slots`', the file's form
`bundle`'s, where it comes from `source`'s.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from edgemail.boot import bundle, slots
from edgemail.boot.bundle import Bundle, Manifest
from edgemail.boot.places import Places, Run, replace
from edgemail.boot.slots import Slots, UpdateRefused
from edgemail.boot.trial import RECORD, Problems, Trial, read_json
from edgemail.settings import Update

logger = logging.getLogger("edgemail.update")

CHECKED: Final = "release.json"  # on the data partition: the newest release that the server had
PROGRESS: Final = "update.json"  # in memory: how an update goes
AGAIN_SECONDS: Final = 3600.0  # limit: between two tries to ask a server that did not answer


class Updates(Trial):
    """The updates of one box."""

    def __init__(self, places: Places, settings: Update, *, now: Callable[[], float] = time.time) -> None:
        super().__init__(places)
        self.settings = settings
        self._now = now

    # ---- what there is

    def keys(self) -> tuple[bytes, ...]:
        """The public keys that are trusted: the image's, and those of the configuration."""
        text = ""
        with contextlib.suppress(OSError):
            text = Path(self.places.keys).read_text()
        return (*bundle.public_keys(text), *bundle.public_keys("\n".join(self.settings.keys)))

    def status(self) -> dict[str, Any]:
        """All of it, for people and programs. Raises UpdateRefused and OSError."""
        release = self.release()
        with self.slots() as found:
            state, trial = found.state(), found.trial()
        record = read_json(self.places.home / RECORD)
        return {
            "version": release.version,
            "serial": release.serial,
            "board": release.board,
            "slot": found.running,
            "good": not trial,
            "order": list(state.order),
            "attempts": dict(state.left),
            "slots": record,
            "available": read_json(self.places.home / CHECKED),
            "url": self.settings.url,
            "progress": read_json(self.places.run / PROGRESS),
        }

    # ---- new releases

    def check(self) -> Manifest | None:
        """Ask the server: the newest release, None where what runs is as new. Raises EdgemailError and OSError."""
        if not self.settings.url:
            raise UpdateRefused("no server is configured: [update] url")
        release = self.release()
        from edgemail.boot import source

        with source.opened(self.settings.url, self.settings.ca_file) as stream:
            manifest = Bundle.open(stream, self.keys()).manifest
        newer = manifest.serial > release.serial
        found = {"version": manifest.version, "serial": manifest.serial, "newer": newer, "asked": int(self._now())}
        replace(self.places.home / CHECKED, json.dumps(found) + "\n")
        if not newer:
            return None
        slots.suits(manifest, release)
        return manifest

    def install(self, where: str) -> Manifest:
        """Put a bundle on the other slot: a file, or an https URL. Raises EdgemailError and OSError."""
        from edgemail.boot import source

        with self._alone():
            try:
                self._say("opening", source=Path(where).name if "://" not in where else where)
                with source.opened(where, self.settings.ca_file) as stream, self.slots(write=True) as found:
                    opened = Bundle.open(stream, self.keys())
                    manifest = opened.manifest
                    self._installing(found, opened)
                self._record(found.other, manifest)
            except Problems as error:
                self._say("failed", message=str(error))
                logger.error("error: update: %s", error)
                raise
            self._say("installed", version=manifest.version)
        logger.info("update: %s is in slot %s and starts next", manifest.version, found.other)
        return manifest

    def _installing(self, found: Slots, opened: Bundle) -> None:
        manifest = opened.manifest
        said = -1

        def progress(done: int) -> None:
            nonlocal said
            percent = 100 * done // manifest.size
            if percent // 5 != said:
                said = percent // 5
                self._say("installing", version=manifest.version, percent=percent)

        found.install(opened, self.release(), progress)

    def from_stick(self, run: Run) -> Manifest | None:
        """Install the newest release on a stick that is newer than what runs; None where there is none."""
        from edgemail.boot import source

        newest: tuple[int, Path] | None = None
        with source.stick(self.places, run) as bundles:
            for path in bundles:
                try:
                    with source.opened(str(path)) as stream:
                        serial = Bundle.open(stream, self.keys()).manifest.serial
                except Problems as error:
                    logger.warning("warning: %s: %s", path.name, error)
                    continue
                if newest is None or serial > newest[0]:
                    newest = serial, path
            if newest is None or newest[0] <= self.release().serial or self._was_there(newest[0]):
                return None
            return self.install(str(newest[1]))

    def _was_there(self, serial: int) -> bool:
        """Whether that release stands in the other slot: it was left, by the box or a person, or it is next anyway."""
        with self.slots() as found:
            return bool(read_json(self.places.home / RECORD).get(found.other, {}).get("serial") == serial)

    def due(self) -> bool:
        """Whether the server is to be asked now."""
        interval = self.settings.check_interval
        if not self.settings.url or not interval:
            return False
        asked = read_json(self.places.home / CHECKED).get("asked", 0)
        tried = read_json(self.places.run / "asked.json").get("asked", 0)
        now = self._now()
        return not (0 <= now - asked < interval or 0 <= now - tried < AGAIN_SECONDS)

    def by_itself(self) -> Manifest | None:
        """What is done now and then without being asked: look for a release, and install it in its window."""
        wanted = read_json(self.places.home / CHECKED)
        if self.due():
            replace(self.places.run / "asked.json", json.dumps({"asked": int(self._now())}))
            self.check()
            wanted = read_json(self.places.home / CHECKED)
        from edgemail.relay.queue.window import is_open, parse_window

        windows = [parse_window(each) for each in self.settings.windows]
        newer = wanted.get("serial", 0) > self.release().serial
        if not windows or not newer or not is_open(windows, self._now()) or self._was_there(wanted["serial"]):
            return None
        return self.install(self.settings.url)

    # ---- records

    def _say(self, state: str, **more: object) -> None:
        with contextlib.suppress(OSError):
            replace(self.places.run / PROGRESS, json.dumps({"state": state, "at": int(self._now()), **more}) + "\n")

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One update at a time. Raises UpdateRefused."""
        lock = os.open(self.places.run / "update.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UpdateRefused("another update is under way") from None
            yield
        finally:
            os.close(lock)
