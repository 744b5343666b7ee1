"""`edgemail boot --confirm`: whether what was started does its work, and then it is marked good.

Owns what counts as well: the relay says that it is ready, which is a conversation with each of its listeners and a
record in its spool; a box that waits for a person shows its page. Starts nothing: that is for init, by the exit code.
"""

from __future__ import annotations

import contextlib
import http.client
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from edgemail.boot import words
from edgemail.boot.appliance import report_of
from edgemail.boot.frames import EX_OK, EX_TEMPFAIL
from edgemail.boot.places import Places
from edgemail.boot.update import Problems, Updates

CONFIRM_SECONDS: Final = 60.0  # limit: from the start to a box that does its work, before it is started again
ANSWER_SECONDS: Final = 5.0  # limit: for its own page to answer
PAUSE_SECONDS: Final = 0.5  # between two looks


def ask(port: int, path: str, host: str = "127.0.0.1") -> int:
    """The code that the box's own page answers with; 0 for none."""
    connection = http.client.HTTPConnection(host, port, timeout=ANSWER_SECONDS)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def well(places: Places, report: dict[str, Any]) -> bool:
    """Whether the box does now what it can do."""
    if not report["configured"]:
        return ask(report["port"], "/livez") == http.HTTPStatus.OK
    code = ask(report["port"], "/readyz", report.get("host", "127.0.0.1"))
    if code != http.HTTPStatus.UNAUTHORIZED:
        return code == http.HTTPStatus.OK
    from edgemail.boot.client import Failure, Office  # its page is not for us: ask by the control socket

    try:
        return Office.of(str(places.configuration)).ask({"verb": "status"}).get("state") in ("ok", "degraded")
    except Failure:
        return False


def confirm(
    places: Places,
    updates: Updates,
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
            updates.mark_good()
            with contextlib.suppress(OSError):
                Path(places.console).write_text(f"edgemail: ready, {words.headline(report)}\r\n")
            return EX_OK
        if monotonic() - started > seconds:
            break
        pause(PAUSE_SECONDS)
    try:
        if not updates.another():
            return EX_OK  # the same slot again would do no better
        if updates.unproven():
            updates.roll_back()
        return EX_TEMPFAIL
    except Problems:
        return EX_OK
