"""`edgemail boot --confirm`: whether what was started does its work, and then it is marked good.

Owns what counts as well: the relay says that it is ready, which is a conversation with each of its listeners and a
record in its spool; a box that waits for a person shows its page. Starts nothing: that is for init, by the exit code.
Imports little: it is there beside the relay, on boards with little memory.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from edgemail.boot import words
from edgemail.boot.frames import EX_OK, EX_TEMPFAIL
from edgemail.boot.places import Places, report_of
from edgemail.boot.trial import Problems, Trial

CONFIRM_SECONDS: Final = 30.0  # limit: for the box to do its work, before it is started again
ANSWER_SECONDS: Final = 5.0  # limit: for its own page to answer
PAUSE_SECONDS: Final = 0.5  # between two looks
OK, UNAUTHORIZED = 200, 401


def ask(port: int, path: str, host: str = "127.0.0.1") -> int:
    """The code that the box's own page answers with; 0 for none."""
    try:
        with socket.create_connection((host, port), ANSWER_SECONDS) as connection:
            connection.settimeout(ANSWER_SECONDS)
            connection.sendall(f"GET {path} HTTP/1.0\r\nHost: {host}:{port}\r\n\r\n".encode())
            line = connection.makefile("rb").readline(200).split()
    except OSError:
        return 0
    return int(line[1]) if len(line) > 1 and line[0].startswith(b"HTTP/1.") and line[1].isdigit() else 0


def well(places: Places, report: dict[str, Any]) -> bool:
    """Whether the box does now what it can do."""
    if not report["configured"]:
        return ask(report["port"], "/livez") == OK
    code = ask(report["port"], "/readyz", report.get("host", "127.0.0.1"))
    if code != UNAUTHORIZED:
        return code == OK
    from edgemail.boot.client import Failure, Office  # its page is not for us: ask by the control socket

    try:
        return Office.of(str(places.configuration)).ask({"verb": "status"}).get("state") in ("ok", "degraded")
    except Failure:
        return False


def confirm(
    places: Places,
    trial: Trial,
    *,
    seconds: float = CONFIRM_SECONDS,
    monotonic: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> int:
    """Wait until the box is well and mark its slot good: 0. Not well in time, and there is another slot: 75.

    A release that never did its work here has one such chance, and the other slot is next; one that did has all its
    attempts, for what ails the box may pass.
    """
    started = monotonic()
    report = report_of(places)
    while report is not None:
        if well(places, report):
            trial.mark_good()
            with contextlib.suppress(OSError):
                Path(places.console).write_text(f"edgemail: ready, {words.headline(report)}\r\n")
            return EX_OK
        if monotonic() - started > seconds:
            break
        pause(PAUSE_SECONDS)
    try:
        if not trial.another():
            return EX_OK  # the same slot again would do no better
        if trial.unproven():
            trial.roll_back()
        return EX_TEMPFAIL
    except Problems:
        return EX_OK
