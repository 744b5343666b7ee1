"""The configuration loader, fed with anything.

Invariants: a configuration comes out, or every mistake with a sentence; never another exception, and never one that
leaves the box open: whatever loads still ends its relay restrictions in a refusal.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path
from typing import Final

from edgemail.boot import config, reading
from edgemail.envelope import Address
from edgemail.errors import ConfigurationError, TableError
from edgemail.relay.receive.policy import Client, Policy
from edgemail.settings import Settings

WORDS: Final = (
    *(name.encode() for name in Settings.__dataclass_fields__),
    *(
        b"[[listener]]\n",
        b"[[route]]\n",
        b"[[link]]\n",
        b"[health]\n",
        b"[push]\n",
        b"[identity]\n",
        b"profile = ",
        b"\n",
    ),
    *(
        b' = "',
        b' = ["',
        b'"]\n',
        b" = true\n",
        b" = 1\n",
        b'"5d"',
        b'"25MiB"',
        b"$myhostname",
        b"texthash:",
        b"static:",
    ),
    *(
        b"permit_mynetworks",
        b"reject_unauth_destination",
        b"permit",
        b"defer_unauth_destination",
        b"0.0.0.0/0",
        b"::/0",
    ),
    *(
        b'address = "*"\n',
        b"port = 25\n",
        b"nan",
        b"inf",
        b"1e400",
        b"-1",
        b"{",
        b"}",
        b"'''",
        b"2026-01-01",
        b"\xef\xbb\xbf",
    ),
)
STRANGER: Final = Client("203.0.113.77")
VICTIM: Final = Address("victim", "elsewhere.invalid")
_directory: Path | None = None


def directory() -> Path:
    """A place for the file, for the length of the process."""
    global _directory
    if _directory is None:
        _directory = Path(tempfile.mkdtemp(prefix="edgemail-fuzz-"))
        atexit.register(shutil.rmtree, _directory, ignore_errors=True)
    return _directory


def judge(data: bytes) -> None:
    path = directory() / "edgemail.toml"
    path.write_bytes(data)
    try:
        found = config.load(path, files=False)
    except ConfigurationError as error:
        assert error.problems
        assert all(problem.message for problem in error.problems)
        reading.report("edgemail.toml", error.problems).encode()
        return
    for listener in found.listeners:
        try:
            policy = Policy(listener.settings, path.parent)
        except TableError:
            continue
        if not policy.trusts(STRANGER):
            assert policy.refusal(STRANGER, VICTIM) is not None
