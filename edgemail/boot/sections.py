"""The sections of a configuration file, made into typed values: the top, listeners, transports, health.

Owns which keys may stand where and which layer of the file a section sees. Gathers every problem before it gives up.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Final

from edgemail.boot import checks, site
from edgemail.boot.absent import ABSENT
from edgemail.boot.expand import DEFAULTS, FIELDS, Layer, Mistake, Scope, split
from edgemail.boot.links import links
from edgemail.boot.priorities import priorities
from edgemail.boot.profiles import PROFILES
from edgemail.boot.pushes import push
from edgemail.boot.values import near, printable, read, shown
from edgemail.errors import ConfigurationError, Problem
from edgemail.settings import PARAMETERS, Configuration, Health, Listener, Settings

MAX_LISTENERS: Final = 64  # limit: [[listener]] tables
DEFAULT_PORT: Final = 25  # of the one listener of a file that names none
TABLES: Final = ("listener", "transport", "link", "priority", "health", "push", "network", "time", "update")
LISTENER_KEYS: Final = ("name", "address", "port", "profile")
HEALTH_KEYS: Final = ("address", "port", "token_file", "networks")
TRANSPORT_SUFFIXES: Final = {
    "_initial_destination_concurrency": "initial_destination_concurrency",
    "_destination_concurrency_limit": "default_destination_concurrency_limit",
    "_destination_recipient_limit": "default_destination_recipient_limit",
}

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:\[\]-]{0,63}")
_TRANSPORT_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


class Reading:
    """One file on its way to a Configuration; gathers problems as it goes."""

    def __init__(self, path: str, given: Mapping[str, int]) -> None:
        self.path = path
        self.base = Path(path).absolute().parent
        self.given = given
        self.problems: list[Problem] = []
        self.derived: list[Problem] = []  # of defaults made of other values: said only where those are right
        self.names: dict[str, str] = {}  # of listeners, and where they stand

    def problem(self, key: str, message: str, hint: str = "") -> None:
        self.problems.append(Problem(key, self._line(key), message, hint))

    def _line(self, key: str) -> int:
        """The line of a key, or of the table around it."""
        while key and key not in self.given:
            key = key.rpartition(".")[0]
        return self.given.get(key, 0)

    def configuration(self, data: Mapping[str, Any], files: bool) -> Configuration:
        """The whole. Raises ConfigurationError."""
        top: dict[str, Any] = {}
        limits: dict[str, Layer] = {}
        for key, value in data.items():
            if key in FIELDS:
                top[FIELDS[key]] = value
            elif key not in TABLES and not self._of_transport(key, value, limits):
                self._unknown(key, [*FIELDS, *TABLES])
        layer = Layer(top, {FIELDS[key]: key for key in data if key in FIELDS})
        scope = Scope([layer])
        settings = self._settings(scope)
        self._found(scope, checks.of_box(settings), checks.of_transport(settings))
        listeners = self._listeners(data.get("listener"), layer, settings, files)
        transports = self._transports(data.get("transport", {}), limits, layer, settings, files)
        health = self._health(data["health"], scope, files) if "health" in data else None
        uplinks = links(self, data.get("link", []), scope, files=files)
        classes = priorities(self, data.get("priority", []), scope)
        pushed = push(self, data["push"], self.base, files=files) if "push" in data else None
        image = site.tables(self, data, self.base, files=files)
        self._known(scope, settings, transports, {link.name for link in uplinks})
        if files:
            self._found(scope, checks.of_files(settings), checks.of_queue_directory(settings))
        if self.problems or self.derived:
            unique = dict.fromkeys(self.problems or self.derived)
            raise ConfigurationError(self.path, tuple(sorted(unique, key=lambda problem: problem.line)))
        tables = uplinks, classes, pushed, *image
        return Configuration(self.path, settings, listeners, transports, health, self.given, *tables)

    def _unknown(self, key: str, known: list[str], place: str = "") -> None:
        if not place and key in ABSENT:
            self.problem(key, "edgemail does not have this parameter of Postfix", ABSENT[key])
        else:
            self.problem(place + key, "unknown parameter", near(key, known))

    def _of_transport(self, key: str, value: Any, limits: dict[str, Layer]) -> bool:
        """Take a limit that names its transport ("slow_destination_concurrency_limit")."""
        for suffix, name in TRANSPORT_SUFFIXES.items():
            if key.endswith(suffix) and _TRANSPORT_NAME.fullmatch(key.removesuffix(suffix)):
                layer = limits.setdefault(key.removesuffix(suffix), Layer({}, {}))
                layer.add(name, value, key)
                return True
        return False

    def _settings(self, scope: Scope) -> Settings:
        """All parameters as `scope` has them. A wrong one is reported and stands at its default."""
        values: dict[str, Any] = {}
        for name in PARAMETERS:
            try:
                values[name] = read(name, scope, self.base)
            except Mistake as mistake:
                self._found(scope, [(name, mistake)])
                scope.wrong.add(name)
                values[name] = DEFAULTS[name]
        settings = Settings(**values)
        self._found(scope, checks.meanings(settings))
        return settings

    def _found(self, scope: Scope, *found: Iterable[tuple[str, Mistake]]) -> None:
        """Report mistakes where their values stand; those in a default that is made of other values, apart."""
        for name, mistake in chain(*found):
            if name in scope.wrong:
                continue
            key, (_, given) = scope.place(name), scope.raw(name)
            derived = not given and ("$" in str(DEFAULTS[name]) or name == "mydomain")
            wanted = self.derived if derived else self.problems
            wanted.append(Problem(key, self._line(key), mistake.message, mistake.hint))

    # ---- listeners

    def _listeners(self, tables: Any, top: Layer, settings: Settings, files: bool) -> tuple[Listener, ...]:
        if tables is None:
            scope = Scope([top])
            self._found(scope, checks.of_listener(settings))
            wanted = addresses(settings.inet_interfaces, settings.inet_protocols)
            listeners = [Listener(f"{each}:{DEFAULT_PORT}", each, DEFAULT_PORT, "lan", settings) for each in wanted]
        elif not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            self.problem("listener", f"is {shown(tables)}, expected tables", "write [[listener]], with two brackets")
            return ()
        elif len(tables) > MAX_LISTENERS:
            self.problem("listener", f"more than {MAX_LISTENERS} listeners")
            return ()
        else:
            listeners = []
            for number, table in enumerate(tables, 1):
                listeners += self._listener(table, f"listener[{number}]", top, settings, files)
        self._same(listeners)
        return tuple(listeners)

    def _listener(
        self, table: dict[str, Any], section: str, top: Layer, settings: Settings, files: bool
    ) -> Iterator[Listener]:
        own: dict[str, Any] = {}
        known = [name for name in FIELDS if PARAMETERS[FIELDS[name]].listener]
        for key, value in table.items():
            if key in known:
                own[FIELDS[key]] = value
            elif key not in LISTENER_KEYS:
                self._in_section(key, section, [*LISTENER_KEYS, *known])
        profile = table.get("profile", "lan")
        if not isinstance(profile, str) or profile not in PROFILES:
            message = f"{profile!r} is not one of {', '.join(PROFILES)}"
            self.problem(f"{section}.profile", message, near(str(profile), PROFILES))
            profile = "lan"
        layers = [
            Layer(own, {name: f"{section}.{name}" for name in own}),
            Layer(PROFILES[profile], dict.fromkeys(PROFILES[profile], f"{section}.profile")),
            top,
        ]
        scope = Scope(layers)
        mine = self._settings(scope)
        self._found(scope, checks.of_listener(mine))
        if files:
            self._found(scope, checks.of_files(mine))
        if profile == "odmr" and not mine.odmr_domain_maps:
            hint = 'for example odmr_domain_maps = [{ "ship" = "ship.example" }]'
            self.problem(f"{section}.profile", "odmr needs odmr_domain_maps: who may have whose mail", hint)
        port = self._port(table.get("port"), section)
        name = table.get("name")
        if name is not None and not (isinstance(name, str) and _NAME.fullmatch(name)):
            self.problem(f"{section}.name", "is not a short word", 'for example "lan"')
            name = None
        if name is not None and self.names.setdefault(name, section) != section:
            self.problem(f"{section}.name", f"'{name}' is the name of {self.names[name]}")
        try:
            wanted = self._addresses(table, scope, settings)
        except Mistake as mistake:
            self.problem(f"{section}.address", mistake.message, mistake.hint)
            return
        for address in wanted:
            yield Listener(name or f"{address}:{port}", address, port, profile, mine, section)

    def _in_section(self, key: str, section: str, known: list[str]) -> None:
        """A key that a section may not hold."""
        if key in FIELDS:
            self.problem(f"{section}.{key}", "holds for the whole box", "move it to the top of the file")
        else:
            self._unknown(key, known, section + ".")

    def _port(self, port: Any, section: str) -> int:
        if port is None:
            self.problem(f"{section}.port", "is missing", "25 for a network, 587 submission, 465 submissions; 0 = any")
        elif isinstance(port, bool) or not isinstance(port, int):
            hint = f"write {port}, without quotes" if isinstance(port, str) and port.isdigit() else ""
            self.problem(f"{section}.port", f"is {shown(port)}, expected a number", hint)
        elif not 0 <= port <= 65535:
            self.problem(f"{section}.port", f"{port} is not a port", "0 to 65535")
        else:
            return port
        return 0

    def _addresses(self, table: dict[str, Any], scope: Scope, settings: Settings) -> list[str]:
        if "address" not in table:
            return addresses(settings.inet_interfaces, settings.inet_protocols)
        raw = table["address"]
        parts = [raw] if isinstance(raw, str) else raw
        if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
            raise Mistake(f"is {shown(raw)}, expected text", '"*", an address or the name of an interface')
        names = [word for part in parts for word in split(scope.expand(part))]
        if not names or not all(_address_like(word) for word in names):
            raise Mistake(f"'{raw}' is not an address", '"*", an address or the name of an interface')
        return addresses(names, ("all",))

    def _same(self, listeners: list[Listener]) -> None:
        """Two listeners that want one port."""
        for number, listener in enumerate(listeners):
            for other in listeners[:number]:
                one = listener.address == other.address or "*" in (listener.address, other.address)
                if one and listener.port and listener.port == other.port:
                    section, theirs = (each.section or "inet_interfaces" for each in (listener, other))
                    key = f"{section}.port" if listener.section else section
                    self.problem(key, f"{listener.address} port {listener.port} is taken by {theirs}")
                    break

    # ---- transports

    def _transports(
        self, tables: Any, limits: dict[str, Layer], top: Layer, settings: Settings, files: bool
    ) -> dict[str, Settings]:
        if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
            self.problem("transport", "expected a table for each transport", "for example [transport.slow]")
            return {}
        known = {"smtp", "relay", *tables, *_used(settings)}
        for name, layer in limits.items():
            if name not in known:
                hint = near(name, known) or f"give it a table: [transport.{name}]"
                self.problem(next(iter(layer.place.values())), f"there is no transport '{name}'", hint)
        out: dict[str, Settings] = {}
        for name in dict.fromkeys([*tables, *limits]):
            section = f"transport.{name}"
            if not _TRANSPORT_NAME.fullmatch(name):
                self.problem(section, f"'{name}' is not a name for a transport", "letters, digits, - and _")
            own: dict[str, Any] = {}
            allowed = [key for key in FIELDS if PARAMETERS[FIELDS[key]].transport]
            for key, value in tables.get(name, {}).items():
                if key in allowed:
                    own[FIELDS[key]] = value
                else:
                    self._in_section(key, section, allowed)
            layer = Layer(own, {key: f"{section}.{key}" for key in own})
            scope = Scope([layer, limits.get(name, Layer({}, {})), top])
            out[name] = self._settings(scope)
            self._found(scope, checks.of_transport(out[name]))
            if files:
                self._found(scope, checks.of_files(out[name]))
        return out

    def _known(self, scope: Scope, settings: Settings, transports: Mapping[str, Settings], uplinks: set[str]) -> None:
        """Links and transports that are named must be there."""
        places = {scope.place("smtp_links"): settings.smtp_links}
        places |= {f"transport.{name}.smtp_links": own.smtp_links for name, own in transports.items()}
        for place, names in places.items():
            for name in names:
                if name not in uplinks and (place in self.given or place == "smtp_links"):
                    hint = near(name, uplinks) or f'give it a table: [[link]] with name = "{name}"'
                    self.problem(place, f"there is no link '{name}'", hint)
        for name in settings.defer_transports:
            if not _TRANSPORT_NAME.fullmatch(name):
                self.problem("defer_transports", f"'{name}' is not a name for a transport", "letters, digits, - and _")

    # ---- health

    def _health(self, table: Any, scope: Scope, files: bool) -> Health | None:
        if not isinstance(table, dict):
            self.problem("health", f"is {shown(table)}, expected a table", "write [health]")
            return None
        for key in table:
            if key not in HEALTH_KEYS:
                self._in_section(key, "health", list(HEALTH_KEYS))
        values: dict[str, Any] = {}
        default = Health()
        for key in ("address", "token_file"):
            value = table.get(key, getattr(default, key))
            try:
                if not isinstance(value, str):
                    raise Mistake(f"is {shown(value)}, expected text")
                values[key] = printable(value)
                if key == "address" and not _address_like(value):
                    raise Mistake(f"'{value}' is not an address", '"127.0.0.1", or "*" for all')
            except Mistake as mistake:
                self.problem(f"health.{key}", mistake.message, mistake.hint)
        if values.get("token_file"):
            path = values["token_file"] = str(self.base / values["token_file"])
            if files:
                self._health_file(path)
        values["port"] = self._port(table.get("port", default.port), "health")
        networks = table.get("networks", list(default.networks))
        parts = [networks] if isinstance(networks, str) else networks
        try:
            if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
                raise Mistake(f"is {shown(networks)}, expected an array of text")
            values["networks"] = tuple(word for part in parts for word in split(scope.expand(part)))
            for each in checks.networks(values["networks"]):
                self.problem("health.networks", each.message, each.hint)
        except Mistake as mistake:
            self.problem("health.networks", mistake.message, mistake.hint)
        return Health(**values)

    def _health_file(self, path: str) -> None:
        for mistake in checks.secret_file(path):
            self.problem("health.token_file", mistake.message, mistake.hint)


def addresses(interfaces: Iterable[str], protocols: tuple[str, ...]) -> list[str]:
    """The addresses to bind that the words of inet_interfaces mean; interface and host names stay as they are."""
    out: list[str] = []
    for name in interfaces:
        if name in ("all", "*"):
            out.append("*")
        elif name in ("loopback-only", "localhost"):
            out += ["127.0.0.1", "::1"]
        else:
            out.append(name.removeprefix("[").removesuffix("]"))
    if "all" not in protocols:
        unwanted = socket.AF_INET6 if "ipv6" not in protocols else socket.AF_INET if "ipv4" not in protocols else None
        out = [address for address in out if _family(address) != unwanted]
    return ["*"] if "*" in out else list(dict.fromkeys(out))


def _address_like(word: str) -> bool:
    """An address, "*", or what may be the name of an interface."""
    return word == "*" or _NAME.fullmatch(word) is not None or _family(word.strip("[]").partition("%")[0]) != 0


def _family(address: str) -> int:
    """The family of a literal address; 0 for a name."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, address)
        except (OSError, ValueError):  # ValueError: a NUL in it
            continue
        return family
    return 0


def _used(settings: Settings) -> Iterator[str]:
    """The transports that the settings themselves name; those in table files are not looked up."""
    for value in (settings.default_transport, settings.relay_transport):
        yield value.partition(":")[0]
    for spec in settings.transport_maps:
        if not isinstance(spec, str):
            yield from (value.partition(":")[0] for _, value in spec)
