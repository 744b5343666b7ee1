"""What the commands with Postfix's names share: how they end, how they complain, how they list and flush.

Formats nothing itself, and knows no options.
"""

from __future__ import annotations

import getopt
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgemail.boot import listing
from edgemail.boot.client import Down, Failure, Office
from edgemail.boot.entries import Entry
from edgemail.boot.frames import EX_OK, EX_UNAVAILABLE, EX_USAGE


def program(name: str, run: Callable[[list[str]], int], argv: Sequence[str] | None) -> int:
    """Run a command: its failures become a line on stderr and an exit code."""
    try:
        status = run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader has seen enough: `mailq | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EX_OK
    except getopt.GetoptError as error:
        complain(name, f"fatal: {error}")
        return EX_USAGE
    except Failure as failure:
        complain(name, f"fatal: {failure}")
        return failure.code
    except KeyboardInterrupt:
        return 130


def complain(name: str, text: str) -> None:
    """A line on stderr as Postfix writes it."""
    print(f"{name}: {text}", file=sys.stderr)


def office(config: str) -> Office:
    """By a configuration file, or by the directory that holds one (Postfix's -c)."""
    path = Path(config) / "edgemail.toml" if config and Path(config).is_dir() else config
    return Office.of(str(path) if path else None)


def show_queue(where: Office, *, as_json: bool = False, name: str = "postqueue") -> None:
    """Print the queue in Postfix's form, from the spool itself when the daemon is down."""
    mailq = listing.Mailq()
    warned = False

    def each(line: Mapping[str, Any] | bytes) -> None:
        nonlocal warned
        if where.standing and not warned:
            warned = True
            complain(name, "warning: Mail system is down -- accessing queue directly")
        if not isinstance(line, bytes) and "entry" in line:
            one = Entry.of_json(line["entry"])
            sys.stdout.write(listing.json_line(one) if as_json else mailq.add(one))

    try:
        where.ask({"verb": "queue.list"}, each, standing=True)
    except Failure as failure:
        if not where.standing:
            raise
        text = f"Queue report unavailable - mail system is down ({failure})"
        raise Failure(text, EX_UNAVAILABLE) from failure
    if not as_json:
        sys.stdout.write(mailq.end())


def flush(where: Office, what: Mapping[str, Any]) -> None:
    """Ask for an attempt now."""
    try:
        where.ask({"verb": "queue.flush", **what})
    except Down as down:
        raise Failure(f"Cannot flush mail queue - mail system is down ({down})", EX_UNAVAILABLE) from down
