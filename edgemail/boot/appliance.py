"""`edgemail boot`: from a mounted root to a box that can take mail. Each start does all of it; again changes nothing.

Owns the order of the steps and the report of them. A step that fails is said, on the screen, in a file on the boot
partition and in the status, and the next one is done: a box that starts and complains is worth more than one that
stops. Never fails the boot.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from edgemail import __version__
from edgemail.boot import data, network, words
from edgemail.boot.data import Data
from edgemail.boot.places import Places, Run, owner, replace, report_of
from edgemail.boot.provision import NAME, Facts, Outcome, Site
from edgemail.boot.slots import Release, UpdateRefused
from edgemail.clock import RELEASE_DATE
from edgemail.settings import Network, TimeServers

logger = logging.getLogger("edgemail.boot")

HOSTNAME: Final = "edgemail"  # of a box without a configuration
STAMP: Final = "clock"  # its date is that of the last time that was believed
MACHINE_ID: Final = "machine-id"
STAMP_SECONDS: Final = 10_800.0  # limit: between two of them; each costs the card 28 KiB
BEYOND: Final = 30 * 31_557_600.0  # limit: seconds after the release that a stamp of the clock is believed
MAX_PROBLEMS: Final = 20  # limit: mistakes of a configuration that are shown


class Boot:
    """One start. `settime` and `pause` are given by tests."""

    def __init__(
        self,
        places: Places,
        run: Run,
        *,
        settime: Callable[[float], None] = lambda now: time.clock_settime(time.CLOCK_REALTIME, now),
        pause: Callable[[float], None] = time.sleep,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.places = places
        self.run = run
        self.owner = owner(places.user)
        self.site = Site(places.home, self.owner)
        self.trouble: list[str] = []
        self._settime = settime
        self._pause = pause
        self._now = now

    def start(self) -> dict[str, Any]:
        """All steps. Returns the report, which also stands in `places.report`."""
        places = self.places
        places.run.mkdir(parents=True, exist_ok=True)
        reset = data.wanted(places.boot)
        held = Data("missing", "The data partition was not looked at")
        with self._guarded("the data partition"):
            held = data.prepare(places, self.run, reset.word if reset else "")
        if held.usable:
            with self._guarded("the data partition"):
                self._directories()
        with self._guarded("the clock"):
            self._clock()
        outcome = Outcome("missing")
        if reset is not None:
            with self._guarded("the reset"):
                self._reset(reset, held)
        if held.usable:
            with self._guarded("the configuration"):
                outcome = self.site.provision(places.boot)
        facts = self.site.facts() if outcome.configured else None
        with self._guarded("the machine's id"):
            self._identity(held)
        name = facts.myhostname if facts else HOSTNAME
        with self._guarded("the host name"):
            socket.sethostname(name)
        with self._guarded("the time servers"):
            servers = (facts.time if facts else TimeServers()).servers
            (places.run / "ntpd.conf").write_text("".join(f"servers {each}\n" for each in servers))
        with self._guarded("the network"):
            wanted = facts.network if facts else Network()
            self.trouble += network.bring_up(places, wanted, name, self.run, self._pause)
        self._in_force(facts is not None)
        report = self._report(held, outcome, facts)
        self._say(report)
        return report

    @contextlib.contextmanager
    def _guarded(self, what: str) -> Any:
        """A step that fails is said and is not the end."""
        try:
            yield
        except Exception as error:
            logger.exception("%s", what)
            self.trouble.append(f"{what}: {error}")

    # ---- steps

    def _directories(self) -> None:
        for path in (self.places.home, self.places.spool, self.places.incoming):
            path.mkdir(mode=0o755 if path == self.places.home else 0o750, parents=True, exist_ok=True)
            if self.owner is not None and path != self.places.home:
                os.chown(path, *self.owner)

    def _reset(self, reset: data.Reset, held: Data) -> None:
        if not reset.word:
            self.trouble.append(f"{reset.path.name} has to hold one of the words {', '.join(data.WORDS)}")
            return
        if not held.usable:
            return  # not done: it counts at the next start too
        if reset.word == data.KEEP_MAIL:
            self.site.forget()
        data.done(reset)

    def _clock(self) -> None:
        """No clock runs without power: go on from the latest date that is known to have passed."""
        floor = RELEASE_DATE
        with contextlib.suppress(UpdateRefused):
            floor = max(floor, float(Release.read(self.places.release).built))
        latest = floor + BEYOND  # a stamp after that was written by a clock that was wrong
        for path in (self.places.home / STAMP, *self.places.spool.glob("*")):
            with contextlib.suppress(OSError):
                written = path.stat().st_mtime
                floor = max(floor, written) if written < latest else floor
        if self._now() < floor:
            self._settime(floor)

    def _identity(self, held: Data) -> None:
        path = self.places.home / MACHINE_ID
        if held.usable and not path.exists():
            replace(path, uuid.uuid4().hex + "\n")
        text = path.read_text() if path.exists() else uuid.uuid4().hex + "\n"
        (self.places.run.parent / MACHINE_ID).write_text(text)

    def _in_force(self, configured: bool) -> None:
        """What the relay is started with: links, which stand as long as the box runs."""
        for link, target in (
            (self.places.configuration, self.site.current / NAME),
            (self.places.run / "secrets", self.site.current / "secrets"),
        ):
            link.unlink(missing_ok=True)
            if configured:
                link.symlink_to(target)

    # ---- what is said

    def _report(self, held: Data, outcome: Outcome, facts: Facts | None) -> dict[str, Any]:
        from edgemail.boot import reading

        problems = []
        if outcome.problems:
            problems = reading.report(NAME, outcome.problems[:MAX_PROBLEMS]).splitlines()
        reason, message, state = "", "", "ok"
        if not held.usable:
            state, reason, message = "failed", f"data-{held.state}", f"{held.message}. The box takes no mail"
        elif facts is None:
            state, reason = "failed", "not-configured"
            message = "The box waits for its configuration and takes no mail"
            if outcome.state == "bad":
                reason, message = "configuration-bad", "edgemail.toml has mistakes, and the box takes no mail"
        elif outcome.state == "bad":
            state, reason = "degraded", "configuration-bad"
            message = "edgemail.toml has mistakes; the configuration from before is in force"
        elif self.trouble:
            state, reason, message = "degraded", "boot-trouble", self.trouble[0]
        version = __version__
        with contextlib.suppress(UpdateRefused):
            version = Release.read(self.places.release).version
        return {
            "state": state,
            "reason": reason,
            "message": message,
            "version": version,
            "configured": facts is not None and held.usable,
            "data": held.state,
            "provision": outcome.state,
            "problems": problems,
            "notes": [*outcome.notes, *self.trouble],
            "addresses": network.addresses(self.places.sys),
            "host": facts.host if facts else "127.0.0.1",
            "port": facts.port if facts else 80,
        }

    def _say(self, report: dict[str, Any]) -> None:
        with self._guarded("the report"):
            replace(self.places.report, json.dumps(report, indent=1) + "\n")
        write_status(self.places.boot, report)
        with contextlib.suppress(OSError):
            Path(self.places.console).write_text(words.console(report))


def write_status(boot: Path, report: dict[str, Any]) -> None:
    """The file on the boot partition, written when it would say something else than it does."""
    path = boot / words.STATUS_FILE
    text = words.status_file(report).encode()
    with contextlib.suppress(OSError):
        if path.exists() and path.read_bytes() == text:
            return
    try:
        path.write_bytes(text)
    except OSError as error:
        logger.warning("warning: %s cannot be written: %s", path, error)


def refresh(places: Places) -> None:
    """Later in the life of a box: its addresses as they are now, in the report and on the boot partition."""
    report = report_of(places)
    if report is not None:
        found = network.addresses(places.sys)
        if found != report["addresses"]:
            report["addresses"] = found
            replace(places.report, json.dumps(report, indent=1) + "\n")
            write_status(places.boot, report)


def stamp(places: Places) -> None:
    """The clock is right: keep its time for a start without one, now and then. Raises OSError."""
    path = places.home / STAMP
    with contextlib.suppress(FileNotFoundError):
        if 0 <= time.time() - path.stat().st_mtime < STAMP_SECONDS:
            return
    path.touch()
    os.utime(path)
