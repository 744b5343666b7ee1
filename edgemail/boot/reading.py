"""The configuration as the daemon gets it: read and checked in a child process, at the start and at each reload.

The TOML parser, the sections and the checks are a tenth of what an idle relay would take, and needed for a moment only;
and the child reads the file while its parent imports what serves. What the file may hold is `config`'s.

`python -m edgemail.boot.reading FILE` is the child: its answer on stdout is for its parent alone.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from typing import Final

from edgemail.errors import ConfigurationError, Problem, SystemRefused
from edgemail.relay.send.hop import TURNED
from edgemail.settings import Configuration

DEFAULT_PATH: Final = "/etc/edgemail/edgemail.toml"  # the image's
CHILD_SECONDS: Final = 120.0  # limit: for the child that reads the configuration, on a slow card

# What is bound, opened or given up once, at the start.
AT_START: Final = (
    "queue_directory",
    "mail_owner",
    "spool_size",
    "journal_size",
    "inet_interfaces",
    "inet_protocols",
    "watchdog_device",
)


def find(path: str | None = None) -> str:
    """The file that is meant: `path`, else $EDGEMAIL_CONFIG, else the image's."""
    return path or os.environ.get("EDGEMAIL_CONFIG") or DEFAULT_PATH


class Reader:
    """A child that reads the file at `path`, from now on. Raises SystemRefused when none can be started."""

    def __init__(self, path: str) -> None:
        self._path = path
        import subprocess

        command = [sys.executable, "-P", "-m", "edgemail.boot.reading", path]
        try:
            self._child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        except OSError as error:
            raise SystemRefused(f"{path}: no process to read it: {error.strerror}") from error

    def configuration(self) -> Configuration:
        """What the file says. Raises ConfigurationError, which holds every problem there is, and SystemRefused."""
        import pickle
        import subprocess

        with self._child as child:
            try:
                said, _ = child.communicate(timeout=CHILD_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                raise SystemRefused(f"{self._path}: not read within {CHILD_SECONDS:.0f} s") from None
        if child.returncode != 0:
            raise SystemRefused(f"{self._path}: the process that reads it ended with {child.returncode}")
        found = pickle.loads(said)
        if isinstance(found, Configuration):
            return found
        raise ConfigurationError(self._path, found)


def read(path: str) -> Configuration:
    """The file at `path`, read and checked. Raises ConfigurationError and SystemRefused."""
    return Reader(path).configuration()


def report(path: str, problems: tuple[Problem, ...]) -> str:
    """One line a problem: `file:line: key: message (hint)`."""
    out = []
    for problem in problems:
        where = f"{path}:{problem.line}: " if problem.line else f"{path}: "
        key = f"{problem.key}: " if problem.key else ""
        hint = f" ({problem.hint})" if problem.hint else ""
        out.append(f"{where}{key}{problem.message}{hint}")
    return "\n".join(out)


def restart_needed(old: Configuration, new: Configuration) -> list[str]:
    """What differs and cannot change while the process runs, a sentence each; empty when a reload does it all."""
    needed = [
        f"{name}: takes effect at the next start"
        for name in AT_START
        if getattr(old.settings, name) != getattr(new.settings, name)
    ]
    before, after = ({(each.address, each.port) for each in one.listeners} for one in (old, new))
    for sign, addresses in (("no longer wanted", before - after), ("not yet bound", after - before)):
        needed += [f"listener {address}:{port}: {sign}, until the next start" for address, port in sorted(addresses)]
    if (old.health and (old.health.address, old.health.port)) != (new.health and (new.health.address, new.health.port)):
        needed.append("health: its address takes effect at the next start")
    return needed


def with_turned(configuration: Configuration) -> Configuration:
    """The configuration with the transport of such sessions: one delivery at a time, for there is one connection."""
    settings = dataclasses.replace(
        configuration.settings,
        initial_destination_concurrency=1,
        default_destination_concurrency_limit=1,
        smtp_tls_security_level="none",  # what the connection has it got before it was turned round
        smtp_tls_wrappermode=False,
        smtp_sasl_auth_enable=False,
        smtp_links=(),
    )
    return dataclasses.replace(configuration, transports={**configuration.transports, TURNED: settings})


def main(path: str) -> None:
    """The child: a pickled Configuration, or the problems of the file."""
    import pickle

    from edgemail.boot import config

    found: Configuration | tuple[Problem, ...]
    try:
        found = config.load(path)
    except ConfigurationError as error:
        found = error.problems
    sys.stdout.buffer.write(pickle.dumps(found, pickle.HIGHEST_PROTOCOL))


if __name__ == "__main__":
    main(sys.argv[1])
