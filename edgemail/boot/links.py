"""The `[[link]]` tables of a configuration file, made into values. Owns their keys; every mistake is reported."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from edgemail.boot import checks
from edgemail.boot.expand import Mistake, Scope, split
from edgemail.boot.values import domain, near, octets, printable, seconds, shown
from edgemail.patterns import parse_address
from edgemail.relay.queue.window import parse_window
from edgemail.relay.send.hop import parse_hop, provider
from edgemail.settings import LINK_CLASSES, ON_UP, Link, Names

MAX_LINKS: Final = 16  # limit: [[link]] tables
MAX_WINDOWS: Final = 32  # limit: windows of one link
MAX_DOMAINS: Final = 100  # limit: domains that one link asks for with ETRN, or with ATRN
MAX_INTERFACE: Final = 15  # limit: characters of an interface's name, linux/if.h
PROBE_INTERVAL: Final = (5.0, 86_400.0)
PROBE_TIMEOUT: Final = (1.0, 120.0)
ASK_INTERVAL: Final = (60.0, 604_800.0)
ATRN: Final = ("atrn", "atrn_domains", "atrn_user", "atrn_password_file")

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")


class Report(Protocol):
    """Who is told of mistakes. `base`: where relative paths start."""

    base: Path

    def problem(self, key: str, message: str, hint: str = "") -> None: ...


def links(report: Report, tables: Any, scope: Scope, *, files: bool) -> tuple[Link, ...]:
    """All links of a file. Mistakes go to `report`, with `files` those of what it names on disk too."""
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        report.problem("link", f"is {shown(tables)}, expected tables", "write [[link]], with two brackets")
        return ()
    if len(tables) > MAX_LINKS:
        report.problem(f"link[{MAX_LINKS + 1}]", f"more than {MAX_LINKS} links")
        return ()
    found: dict[str, Link] = {}
    for number, table in enumerate(tables, 1):
        section = f"link[{number}]"
        link = _link(report, table, section, scope)
        if files and link.atrn_password_file:
            for mistake in checks.secret_file(link.atrn_password_file):
                report.problem(f"{section}.atrn_password_file", mistake.message, mistake.hint)
        if link.name in found:
            report.problem(f"{section}.name", f"'{link.name}' is the name of another link")
        found[link.name or section] = link
    return tuple(found.values())


def _link(report: Report, table: Mapping[str, Any], section: str, scope: Scope) -> Link:
    values: dict[str, Any] = {"name": ""}
    for key, raw in table.items():
        if key not in _READERS:
            report.problem(f"{section}.{key}", "unknown parameter", near(key, _READERS))
            continue
        try:
            values["kind" if key == "class" else key] = _READERS[key](raw, scope)
        except (Mistake, ValueError) as error:
            hint = error.hint if isinstance(error, Mistake) else ""
            report.problem(f"{section}.{key}", str(error), hint)
    if "name" not in table:
        report.problem(f"{section}.name", "is missing", 'for example name = "fibre"')
    if not any(key in table for key in ("interface", "route", "probe", "command")):
        hint = 'interface = "eth0", route = "192.0.2.1", probe = "[192.0.2.1]:587", or command = [...]'
        report.problem(section, "does not say how its state is known", hint)
    if ("etrn" in table) != ("etrn_domains" in table):
        report.problem(section, "etrn and etrn_domains need each other", "whom to ask, and for which domains")
    missing = [key for key in ATRN if key not in table]
    if 0 < len(missing) < len(ATRN):
        report.problem(section, f"atrn needs {' and '.join(missing)} too", "whom to ask, for what, and the login")
    if "ask_interval" in table and "etrn" not in table and "atrn" not in table:
        report.problem(f"{section}.ask_interval", "asks nobody", "name a provider: etrn or atrn")
    if values.get("atrn_password_file"):
        values["atrn_password_file"] = str(report.base / values["atrn_password_file"])
    return Link(**values)


# ---- values


def _text(raw: Any, scope: Scope) -> str:
    if not isinstance(raw, str):
        raise Mistake(f"is {shown(raw)}, expected text")
    return printable(scope.expand(raw))


def _name(raw: Any, scope: Scope) -> str:
    text = _text(raw, scope)
    if not _NAME.fullmatch(text):
        raise Mistake(f"'{text}' is not a short word", 'for example "fibre"')
    return text


def _class(raw: Any, scope: Scope) -> str:
    text = _text(raw, scope)
    if text not in LINK_CLASSES:
        raise Mistake(f"'{text}' is not one of {', '.join(LINK_CLASSES)}", near(text, LINK_CLASSES))
    return text


def _interface(raw: Any, scope: Scope) -> str:
    text = _text(raw, scope)
    if not text or len(text) > MAX_INTERFACE or re.search(r"[\s/]", text):
        raise Mistake(f"'{text}' is not the name of an interface", 'for example "eth0"')
    return text


def _address(raw: Any, scope: Scope) -> str:
    text = _text(raw, scope)
    if parse_address(text) is None or "%" in text:
        raise Mistake(f"'{text}' is not an address", "an address beyond the link, without a port: 192.0.2.1")
    return text


def _probe(raw: Any, scope: Scope) -> str:
    text = _text(raw, scope)
    hop = parse_hop(text, 0)
    if not hop.port:
        raise Mistake(f"'{text}' names no port", f"for example {text}:587")
    return text


def _command(raw: Any, scope: Scope) -> Names:
    if not isinstance(raw, list) or not raw or not all(isinstance(part, str) for part in raw):
        raise Mistake("is not a command", 'the program and its arguments: ["/usr/bin/check-modem", "-q"]')
    words = tuple(printable(part) for part in raw)
    if not words[0].startswith("/"):
        raise Mistake(f"'{words[0]}' is not an absolute path", "no shell and no search path is used")
    return words


def _within(bounds: tuple[float, float]) -> Callable[[Any, Scope], float]:
    def read(raw: Any, scope: Scope) -> float:
        if isinstance(raw, bool) or not isinstance(raw, (int, float, str)):
            raise Mistake(f"is {shown(raw)}, expected a duration", 'for example "60s"')
        value = seconds(scope.expand(raw) if isinstance(raw, str) else f"{raw:.15g}", "s")
        if not bounds[0] <= value <= bounds[1]:
            raise Mistake(f"{value:g}s is out of bounds", f"from {bounds[0]:g}s to {bounds[1]:g}s")
        return value

    return read


def _bytes(raw: Any, scope: Scope) -> int:
    if isinstance(raw, bool) or not isinstance(raw, (int, str)):
        raise Mistake(f"is {shown(raw)}, expected a size", 'bytes, or for example "25MiB"')
    value = octets(scope.expand(raw)) if isinstance(raw, str) else raw
    if value <= 0:
        raise Mistake(f"{value} bytes is too small", "leave it out for no limit")
    return value


def _connections(raw: Any, scope: Scope) -> int:
    if isinstance(raw, bool) or not isinstance(raw, int) or not 1 <= raw <= 1000:
        raise Mistake("is not a number of connections", "from 1 to 1000; leave it out for what the class means")
    return raw


def _bool(raw: Any, scope: Scope) -> bool:
    if not isinstance(raw, bool):
        raise Mistake(f"is {shown(raw)}, expected true or false")
    return raw


def _windows(raw: Any, scope: Scope) -> Names:
    parts = [raw] if isinstance(raw, str) else raw
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise Mistake(f"is {shown(raw)}, expected an array of text", 'for example ["Mon-Fri 02:00-04:00"]')
    if not parts:
        raise Mistake("is empty: the link would never be used", "leave it out for all hours")
    if len(parts) > MAX_WINDOWS:
        raise Mistake(f"more than {MAX_WINDOWS} windows")
    for part in parts:
        parse_window(part)
    return tuple(parts)


def _on_up(raw: Any, scope: Scope) -> Names:
    parts = split(raw) if isinstance(raw, str) else raw
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise Mistake(f"is {shown(raw)}, expected an array of text", 'for example ["flush"]')
    for part in parts:
        if part not in ON_UP:
            raise Mistake(f"'{part}' is not one of {', '.join(ON_UP)}", near(part, ON_UP))
    return tuple(parts)


def _user(raw: Any, scope: Scope) -> str:
    text = _text(raw, scope)
    if not text:
        raise Mistake("is empty", "the user that the provider has given us")
    return text


def _host(raw: Any, scope: Scope) -> str:
    text = _text(raw, scope)
    provider(text, 25)
    return text


def _domains(raw: Any, scope: Scope) -> Names:
    parts = [raw] if isinstance(raw, str) else raw
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise Mistake(f"is {shown(raw)}, expected an array of text", 'for example ["branch.example"]')
    found = tuple(word for part in parts for word in split(scope.expand(part)))
    if not 0 < len(found) <= MAX_DOMAINS:
        raise Mistake(f"has {len(found)} domains", f"from 1 to {MAX_DOMAINS}")
    for word in found:
        domain(word.removeprefix("@"))
    return found


def _own_domains(raw: Any, scope: Scope) -> Names:
    """Without signs before them: RFC 2645 5.2 knows none."""
    found = _domains(raw, scope)
    for word in found:
        domain(word)
    return found


_READERS: Final[Mapping[str, Callable[[Any, Scope], Any]]] = {
    "name": _name,
    "class": _class,
    "interface": _interface,
    "route": _address,
    "probe": _probe,
    "command": _command,
    "probe_interval": _within(PROBE_INTERVAL),
    "probe_timeout": _within(PROBE_TIMEOUT),
    "windows": _windows,
    "budget_day": _bytes,
    "budget_month": _bytes,
    "size_limit": _bytes,
    "connections": _connections,
    "bind": _bool,
    "on_up": _on_up,
    "etrn": _host,
    "etrn_domains": _domains,
    "atrn": _host,
    "atrn_domains": _own_domains,
    "atrn_user": _user,
    "atrn_password_file": _user,
    "ask_interval": _within(ASK_INTERVAL),
}
