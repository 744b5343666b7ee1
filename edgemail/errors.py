"""The five kinds of failure and the errors that cross a part's border. Standard library only.

What a peer may read (`reply`, bland) is apart from what is logged (the message and the cause).
"""

from __future__ import annotations

from enum import Enum

from edgemail.reply import DISK_FULL, LOCAL_ERROR, SPOOL_FULL, Reply
from edgemail.value import value


class Kind(Enum):
    """Why a delivery failed. Only MESSAGE_PERMANENT may bounce, together with the end of the message's lifetime."""

    MESSAGE_PERMANENT = "message-permanent"  # this message will never be taken there
    MESSAGE_TEMPORARY = "message-temporary"  # the destination said: not now
    ROUTE = "route"  # a configured next hop refuses login, TLS, greeting, connection
    LINK = "link"  # no network, no resolver
    LOCAL = "local"  # our own trouble, an unexpected exception included


class EdgemailError(Exception):
    """The root of every error that edgemail raises on purpose."""


class SystemRefused(EdgemailError):
    """The system does not give what the start needs, such as a port; the configuration may be as it should."""


class SpoolError(EdgemailError):
    """The spool could not do it now; it is intact. `reply` is what a client is told."""

    reply: Reply = LOCAL_ERROR


class SpoolFull(SpoolError):
    """No room: the spool is as large as it may be, or the buffers are."""

    reply: Reply = SPOOL_FULL


class DiskFull(SpoolFull):
    """No room: the file system has none left."""

    reply: Reply = DISK_FULL


class SpoolDamaged(EdgemailError):
    """A record failed its checksum or does not parse. The record is to be quarantined, never deleted."""

    def __init__(self, id: int, why: str) -> None:
        super().__init__(f"{id:08X}: {why}")
        self.id = id
        self.why = why


class SpoolBusy(EdgemailError):
    """Another process holds the spool; the message names it."""


@value
class Problem:
    """One mistake in a configuration: `line` is 1-based, 0 where no line can be named; `hint` says what to do."""

    key: str
    line: int
    message: str
    hint: str = ""


class ConfigurationError(EdgemailError):
    """Everything that is wrong with a configuration file, at once."""

    def __init__(self, path: str, problems: tuple[Problem, ...]) -> None:
        super().__init__(f"{path}: {len(problems)} problem(s)")
        self.path = path
        self.problems = problems


class TableError(EdgemailError):
    """A lookup table cannot be read or a line of it does not parse; the message names file and line."""
