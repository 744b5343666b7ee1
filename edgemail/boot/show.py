"""`edgemail config`: the configuration in force, as a file would spell it.

Owns the spelling of values; what is printed can be loaded again, but for passwords, which are never printed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from edgemail.boot.checks import SECRET_MAPS
from edgemail.boot.expand import DEFAULTS, FIELDS, FILE_NAMES, Mistake
from edgemail.boot.values import SECONDS, near
from edgemail.settings import PARAMETERS, Configuration, Link, Listener, Priority, Push, Settings

HIDDEN: Final = "********"


def text(
    configuration: Configuration,
    names: Sequence[str] = (),
    *,
    changed: bool = False,
    defaults: bool = False,
    bare: bool = False,
) -> str:
    """What `edgemail config` prints: `name = value` lines, then the tables.

    `names`: these parameters only. `changed`: only what the file sets. `defaults`: the defaults, not filled in.
    `bare`: values without names and quotes. Raises Mistake for a name that does not exist.
    """
    for name in names:
        if name not in FIELDS:
            raise Mistake(f"unknown parameter {name}", near(name, FIELDS))
    values = DEFAULTS if defaults else dataclasses.asdict(configuration.settings)
    chosen = [FIELDS[name] for name in names] or list(PARAMETERS)
    out = []
    for name in chosen:
        key = FILE_NAMES.get(name, name)
        if changed and key not in configuration.given:
            continue
        out.append(_bare(name, values[name]) if bare else f"{key} = {spelled(name, values[name], raw=defaults)}")
    if not names and not defaults and not bare:
        out += _tables(configuration)
    return "\n".join(out)


def as_json(configuration: Configuration, names: Sequence[str] = (), *, changed: bool = False) -> str:
    """The same for programs: durations in seconds, sizes in bytes, tables as in the file."""
    settings = configuration.settings
    wanted = [FIELDS[name] for name in names if name in FIELDS] or list(PARAMETERS)
    document: dict[str, Any] = {
        FILE_NAMES.get(name, name): _plain(name, getattr(settings, name))
        for name in wanted
        if not changed or FILE_NAMES.get(name, name) in configuration.given
    }
    if not names:
        document["listener"] = [
            {**head, **{name: _plain(name, value) for name, value in _own(listener.settings, settings).items()}}
            for head, listener in _listeners(configuration)
        ]
        document["transport"] = {
            name: {key: _plain(key, value) for key, value in _own(own, settings).items()}
            for name, own in configuration.transports.items()
        }
        if configuration.links:
            document["link"] = [_link(link) for link in configuration.links]
        if configuration.priorities:
            document["priority"] = [_priority(each) for each in configuration.priorities]
        if configuration.health is not None:
            document["health"] = dataclasses.asdict(configuration.health)
        if configuration.push is not None:
            document["push"] = dict(_push(configuration.push))
        document |= _image(configuration)
    return json.dumps(document, indent=2, ensure_ascii=False)


def spelled(name: str, value: Any, *, raw: bool = False) -> str:
    """A value of Settings in TOML. `raw`: `$` in it stands for a name still (a default)."""
    form = PARAMETERS[name].form
    if form == "maps":
        return "[" + ", ".join(_table(spec, raw) for spec in _masked(name, value)) + "]"
    if form == "list":
        return "[" + ", ".join(_quoted(item, raw) for item in value) + "]"
    if form == "duration":
        return f'"{_duration(value, PARAMETERS[name].unit)}"'
    if form == "bool":
        return "true" if value else "false"
    return _quoted(value, raw) if isinstance(value, str) else str(value)


def _bare(name: str, value: Any) -> str:
    form = PARAMETERS[name].form
    if form == "maps":
        return ", ".join(spec if isinstance(spec, str) else _table(spec, raw=True) for spec in _masked(name, value))
    if form == "list":
        return ", ".join(value)
    return value if isinstance(value, str) else spelled(name, value).strip('"')


def _plain(name: str, value: Any) -> Any:
    if PARAMETERS[name].form == "maps":
        return [spec if isinstance(spec, str) else dict(spec) for spec in _masked(name, value)]
    return list(value) if isinstance(value, tuple) else value


def _masked(name: str, specs: Any) -> Iterator[Any]:
    """Tables without the passwords that stand in the file itself."""
    for spec in specs:
        if name not in SECRET_MAPS:
            yield spec
        elif not isinstance(spec, str):
            yield tuple((key, HIDDEN) for key, _ in spec)
        else:
            kind, colon, _ = spec.partition(":")
            yield kind + colon + HIDDEN if kind in ("static", "inline") else spec


def _quoted(value: str, raw: bool) -> str:
    """A TOML basic string; a dollar doubled, so that it is read as one."""
    return json.dumps(value if raw else value.replace("$", "$$"), ensure_ascii=False).replace("\x7f", "\\u007f")


def _table(spec: Any, raw: bool) -> str:
    if isinstance(spec, str):
        return _quoted(spec, raw)
    return "{ " + ", ".join(f"{_quoted(key, True)} = {_quoted(value, True)}" for key, value in spec) + " }"


def _duration(value: float, unit: str) -> str:
    """In the parameter's own unit where that gives a whole number, else in seconds."""
    count = value / SECONDS[unit]
    return f"{count:.0f}{unit}" if count == int(count) else f"{value:.15g}s"


def _own(settings: Settings, top: Settings) -> Mapping[str, Any]:
    """What a section has otherwise than the top of the file, by its name in a file."""
    return {name: getattr(settings, name) for name in PARAMETERS if getattr(settings, name) != getattr(top, name)}


def _listeners(configuration: Configuration) -> Iterator[tuple[dict[str, Any], Listener]]:
    """Each table of the file once, with all its addresses."""
    sections: dict[str, list[Listener]] = {}
    for listener in configuration.listeners:
        sections.setdefault(listener.section, []).append(listener)
    for listeners in sections.values():
        first = listeners[0]
        head: dict[str, Any] = {}
        if first.name != f"{first.address}:{first.port}":
            head["name"] = first.name
        head["address"] = [each.address for each in listeners] if len(listeners) > 1 else first.address
        yield {**head, "port": first.port, "profile": first.profile}, first


def _tables(configuration: Configuration) -> Iterator[str]:
    top = configuration.settings
    for head, listener in _listeners(configuration):
        yield "\n[[listener]]"
        yield from (f"{key} = {_value(value)}" for key, value in head.items())
        yield from (f"{key} = {spelled(key, value)}" for key, value in _own(listener.settings, top).items())
    for name, own in configuration.transports.items():
        yield f"\n[transport.{name}]"
        yield from (f"{key} = {spelled(key, value)}" for key, value in _own(own, top).items())
    for link in configuration.links:
        yield "\n[[link]]"
        yield from (f"{key} = {_value(value)}" for key, value in _link(link).items())
    for each in configuration.priorities:
        yield "\n[[priority]]"
        yield from (f"{key} = {_value(value)}" for key, value in _priority(each).items())
    if configuration.health is not None:
        yield "\n[health]"
        yield from (f"{key} = {_value(value)}" for key, value in dataclasses.asdict(configuration.health).items())
    if configuration.push is not None:
        yield "\n[push]"
        yield from (f"{key} = {_value(value)}" for key, value in _push(configuration.push))
    for name, table in _image(configuration).items():
        yield f"\n[{name}]"
        yield from (f"{key} = {_value(value)}" for key, value in table.items())


def _image(configuration: Configuration) -> dict[str, dict[str, Any]]:
    """The tables of the system image, as far as they say something."""
    tables = {name: getattr(configuration, name) for name in ("network", "time", "update")}
    out: dict[str, dict[str, Any]] = {}
    for name, table in tables.items():
        unset = type(table)()
        for field in dataclasses.fields(table):
            value = getattr(table, field.name)
            if value != getattr(unset, field.name):
                out.setdefault(name, {})[field.name] = value
    return out


def _link(link: Link) -> dict[str, Any]:
    """A link's keys, without those that are not set."""
    unset = {field.name: field.default for field in dataclasses.fields(Link)}
    values = {name: getattr(link, name) for name in unset}
    chosen = {name: value for name, value in values.items() if value != unset[name] or name in ("name", "kind")}
    return {"class" if name == "kind" else name: value for name, value in chosen.items()}


def _priority(priority: Priority) -> dict[str, Any]:
    return {"name": priority.name, **({"match": priority.match} if priority.match else {})}


def _push(push: Push) -> Iterator[tuple[str, Any]]:
    """The keys of [push]; of a URL, whose path is often a secret, the server alone."""
    for key, value in dataclasses.asdict(push).items():
        if key.endswith("_url") and value:
            server, _, path = value.partition("://")[2].rpartition("@")[2].partition("/")
            yield key, f"{value.partition('://')[0]}://{server}/{HIDDEN if path else ''}"
        else:
            yield key, value


def _value(value: Any) -> str:
    """A value outside Settings."""
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(_quoted(item, True) for item in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return _quoted(value, True) if isinstance(value, str) else str(value)
