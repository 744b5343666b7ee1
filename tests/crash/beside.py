"""What runs under the recorder beside the spool: files replaced as a whole, each replacement told when it is done.

python -m tests.crash.beside DIRECTORY WHAT; it tells the number of each version in DIRECTORY/marks.ledger.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from edgemail.boot import places
from edgemail.relay.queue import uplink
from edgemail.relay.receive import auth

VERSIONS = 8


def users(directory: Path, number: int) -> None:
    """A password that is changed, the file made at the first time."""
    auth.os.getpid = lambda: 7  # type: ignore[attr-defined]  # the name of the new file, known beforehand
    auth.set_password(str(directory / "users"), "lamp", f"secret {number}", recoverable=True)


def links(directory: Path, number: int) -> None:
    """What links have carried."""
    uplink._write(directory / "links.json", f'{{"lte": {{"day": {number}}}}}\n' + " " * 3000 + "\n")


def record(directory: Path, number: int) -> None:
    """What a box wrote down of its slots."""
    places.replace(directory / "record.json", f'{{"A": {{"version": {number}}}}}\n' + " " * 3000 + "\n")


WHAT: dict[str, Callable[[Path, int], None]] = {"users": users, "links": links, "record": record}


def main(directory: Path, what: str) -> None:
    ledger = os.open(directory / "marks.ledger", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in range(VERSIONS):
        WHAT[what](directory, number)
        os.write(ledger, f"{number}\n".encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
