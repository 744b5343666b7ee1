"""Where things are on a box that runs from the system image, and how its programs are run. Does nothing by itself."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from edgemail.value import value

logger = logging.getLogger("edgemail.boot")

COMMAND_SECONDS: Final = 30.0  # limit: for a program of the system at boot
SECRETS: Final = "secrets"  # beside a configuration: a file for each secret in it
MAX_SAID: Final = 2000  # limit: characters of what a program says that are kept


@value
class Ran:
    """How a program ended: its exit code (-1: it could not be run, or not to its end) and what it said."""

    code: int
    said: str = ""


Run = Callable[[Sequence[str], float], Ran]


@value
class Places:
    """The box's paths; a test has others."""

    disk: str = "/dev/card"
    partition: str = "/dev/card4"
    boot: Path = Path("/boot")
    data: Path = Path("/data")
    run: Path = Path("/run/edgemail")
    release: str = "/usr/lib/edgemail/release"
    keys: str = "/usr/lib/edgemail/update.keys"
    cmdline: str = "/proc/cmdline"
    console: str = "/dev/console"
    resolver: Path = Path("/run/resolv.conf")
    sys: Path = Path("/sys/class/net")
    proc: Path = Path("/proc/sys/net")
    watchdog: str = "/dev/watchdog"
    user: str = "edgemail"

    @property
    def home(self) -> Path:
        """What the box knows of itself, on the data partition."""
        return self.data / "edgemail"

    @property
    def spool(self) -> Path:
        return self.data / "spool"

    @property
    def incoming(self) -> Path:
        """A release that came by the page."""
        return self.home / "incoming"

    @property
    def configuration(self) -> Path:
        """That in force; not there while there is none."""
        return self.run / "edgemail.toml"

    @property
    def report(self) -> Path:
        return self.run / "boot.json"

    @property
    def spool_format(self) -> Path:
        """The newest format of the spool that may be written, a number; not there where that cannot be told."""
        return self.run / "spool-format"


def run(command: Sequence[str], seconds: float = COMMAND_SECONDS) -> Ran:
    """Run a program of the system to its end."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Ran(-1, f"{command[0]} did not end within {seconds:.0f} s")
    except OSError as error:
        return Ran(-1, f"{command[0]}: {error.strerror}")
    return Ran(done.returncode, done.stdout.decode("utf-8", "replace").strip()[-MAX_SAID:])


def owner(name: str) -> tuple[int, int] | None:
    """The uid and gid of a user; None where there is none, or we may not give anything away."""
    import os
    import pwd

    if os.geteuid() != 0:
        return None
    try:
        user = pwd.getpwnam(name)
    except KeyError:
        return None
    return user.pw_uid, user.pw_gid


def replace(path: Path, text: str, mode: int = 0o644) -> None:
    """Put a small file in place, whole or not at all, on the medium when this returns. Raises OSError."""
    import os

    beside = path.with_name(path.name + ".new")
    beside.unlink(missing_ok=True)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    beside.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def report_of(places: Places) -> dict[str, Any] | None:
    """What the last start said; None where there was none."""
    import json

    try:
        found = json.loads(places.report.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
