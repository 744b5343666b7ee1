"""The `[push]` table of a configuration file, made into a value. Owns its keys; every mistake is reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from edgemail.boot.expand import Mistake
from edgemail.boot.values import near, printable, seconds, shown
from edgemail.settings import Push

INTERVAL: Final = (30.0, 86_400.0)  # limit: seconds between two heartbeats
KEYS: Final = ("heartbeat_url", "heartbeat_interval", "alarm_url", "ca_file")


class Report(Protocol):
    """Who is told of mistakes."""

    def problem(self, key: str, message: str, hint: str = "") -> None: ...


def push(report: Report, table: Any, base: Path, *, files: bool) -> Push | None:
    """The table's value. Mistakes go to `report`."""
    if not isinstance(table, dict):
        report.problem("push", f"is {shown(table)}, expected a table", "write [push]")
        return None
    values: dict[str, Any] = {}
    for key, raw in table.items():
        if key not in KEYS:
            report.problem(f"push.{key}", "unknown parameter", near(key, KEYS))
            continue
        try:
            values[key] = _interval(raw) if key == "heartbeat_interval" else _text(key, raw, base, files=files)
        except (Mistake, ValueError) as error:
            report.problem(f"push.{key}", str(error), error.hint if isinstance(error, Mistake) else "")
    if not any(table.get(key) for key in ("heartbeat_url", "alarm_url")):
        report.problem("push", "names nobody to tell", 'alarm_url = "https://..." or heartbeat_url = "https://..."')
    return Push(**values)


def _text(key: str, raw: Any, base: Path, *, files: bool) -> str:
    if not isinstance(raw, str):
        raise Mistake(f"is {shown(raw)}, expected text")
    text = printable(raw)
    if key == "ca_file":
        path = base / text
        if text and files and not path.is_file():
            raise Mistake(f"{path}: no such file")
        return str(path) if text else ""
    if text:
        _check(text)
    return text


def _check(url: str) -> None:
    """Raises Mistake; does not repeat the URL, which may hold a secret."""
    parts = urlsplit(url)
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise Mistake("is not the URL of a web server", 'for example "https://alarms.example.com/edgemail"')
    if not url.isascii() or " " in url:
        raise Mistake("has characters that no URL has", "write them as %20 and so on")
    if parts.username is not None:
        raise Mistake("names a user", "logins in URLs are not sent; put the secret into the path")
    if parts.port == 0:
        raise Mistake("has port 0")


def _interval(raw: Any) -> float:
    if isinstance(raw, bool) or not isinstance(raw, (int, float, str)):
        raise Mistake(f"is {shown(raw)}, expected a duration", 'for example "300s"')
    value = seconds(raw if isinstance(raw, str) else f"{raw:.15g}", "s")
    if not INTERVAL[0] <= value <= INTERVAL[1]:
        raise Mistake(f"{value:g}s is out of bounds", f"from {INTERVAL[0]:g}s to {INTERVAL[1]:g}s")
    return value
