"""One value of a file, read by the form its parameter has: text, bool, int, duration, size, list, maps, choice, path,
address. Owns how values are written; knows nothing of what they mean together.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from edgemail.boot.expand import Mistake, Scope, split
from edgemail.settings import PARAMETERS, Parameter, TableSpec
from edgemail.tables import LITERAL_TYPES, PATTERN_TYPES

SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
BYTES: Final = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}
MAX_LOCAL: Final = 64  # limit: octets of a local part, RFC 5321 4.5.3.1.1
MAX_DOMAIN: Final = 253  # limit: characters of a host name, RFC 1035 2.3.4

_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)")
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)")
_TABLE_FILE: Final = re.compile(rf"(!?(?:{'|'.join((*LITERAL_TYPES, *PATTERN_TYPES))})):\s*([^/\s].*)", re.DOTALL)
_LABEL: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
DOMAIN: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
COMMENT_HINT: Final = "a comment inside the quotes is part of the value; write it behind the closing quote"


def read(name: str, scope: Scope, base: Path) -> Any:
    """The value in force for a field of Settings. `base`: where relative paths start. Raises Mistake."""
    parameter = PARAMETERS[name]
    raw, given = scope.raw(name)
    if not given and parameter.form in ("bool", "int", "duration", "size"):
        return raw
    return _READERS[parameter.form](name, parameter, raw, scope, base)


def near(word: str, known: Any) -> str:
    """ "did you mean x?", or "" where nothing is like it."""
    from difflib import get_close_matches  # only a file with a mistake needs it

    found = get_close_matches(word, list(known), n=1, cutoff=0.7)
    return f"did you mean {found[0]}?" if found else ""


def printable(text: str) -> str:
    """`text` as it is. Raises Mistake for a control character."""
    if any(char < " " or char == "\x7f" for char in text):
        raise Mistake("holds a control character or a line break")
    return text


def domain(text: str) -> str:
    """A host or domain name, checked. Raises Mistake."""
    if "#" in text:
        raise Mistake(f"'{text}' is not a host name", COMMENT_HINT)
    if not DOMAIN.fullmatch(text) or len(text) > MAX_DOMAIN:
        hint = "letters, digits and hyphens, parted by dots"
        if not text.isascii():
            hint = "write it in its xn-- form"
        elif text.endswith(".") and DOMAIN.fullmatch(text[:-1]):
            hint = "write it without the dot at the end"
        raise Mistake(f"'{text}' is not a host name", hint)
    return text


def qualified(text: str) -> str:
    """A fully qualified host name, checked. Raises Mistake."""
    if "." not in domain(text):
        raise Mistake(f"'{text}' is not a fully qualified name", f"for example {text}.example.com")
    if text.rpartition(".")[2].isdigit():
        raise Mistake(f"'{text}' is not a host name but an address", "write the name that the address has")
    return text


def seconds(text: str, unit: str) -> float:
    """A duration: a number and s, m, h, d or w; a bare number is in `unit`. Raises Mistake."""
    match = _DURATION.fullmatch(text.strip())
    if match is None or (match[2] and match[2].lower() not in SECONDS):
        raise Mistake(f"'{text}' is not a duration", 'a number with s, m, h, d or w, for example "300s" or "5d"')
    return float(match[1]) * SECONDS[match[2].lower() or unit]


def octets(text: str) -> int:
    """A size: bytes, or a number with kB, KiB, MB, MiB, GB or GiB. Raises Mistake."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or match[2].lower() not in BYTES:
        hint = f'write "{text}iB" or "{text}B"' if re.fullmatch(r"\d+[kMG]", text) else 'for example "25MiB" or "10MB"'
        raise Mistake(f"'{text}' is not a size", hint)
    return int(float(match[1]) * BYTES[match[2].lower()])


def shown(raw: Any) -> str:
    """A TOML value, as a message names it."""
    names = {bool: "a boolean", int: "a number", float: "a number", str: "text", list: "an array", dict: "a table"}
    return names.get(type(raw), type(raw).__name__)


def _wrong(raw: Any, wanted: str, hint: str = "") -> Mistake:
    return Mistake(f"is {shown(raw)}, expected {wanted}", hint)


def _text(name: str, parameter: Parameter, raw: Any, scope: Scope, base: Path) -> str:
    if not isinstance(raw, str):
        hint = f'write "{raw}"' if isinstance(raw, (int, float)) and not isinstance(raw, bool) else ""
        raise _wrong(raw, "text", hint)
    return printable(scope.text(name))


def _choice(name: str, parameter: Parameter, raw: Any, scope: Scope, base: Path) -> str:
    if isinstance(raw, bool):
        raise _wrong(raw, "one of " + ", ".join(parameter.choices))
    value = _text(name, parameter, raw, scope, base)
    if value not in parameter.choices:
        raise Mistake(f"'{value}' is not one of {', '.join(parameter.choices)}", near(value, parameter.choices))
    return value


def _path(name: str, parameter: Parameter, raw: Any, scope: Scope, base: Path) -> str:
    value = _text(name, parameter, raw, scope, base)
    return str(base / value) if value else ""


def _address(name: str, parameter: Parameter, raw: Any, scope: Scope, base: Path) -> str:
    value = _text(name, parameter, raw, scope, base)
    local, at, host = value.rpartition("@") if "@" in value else (value, "", "")
    if value and (not local or len(local) > MAX_LOCAL or re.search(r"[\s<>(),;:\\\"\[\]#]", local)):
        raise Mistake(f"'{value}' is not a mail address", "one bare address, for example admin@example.com")
    if at:
        domain(host)
    return value


def _bool(name: str, parameter: Parameter, raw: Any, scope: Scope, base: Path) -> bool:
    if isinstance(raw, bool):
        return raw
    word = raw.strip().lower() if isinstance(raw, str) else ""
    hint = f"write {'true' if word in ('yes', 'true') else 'false'}, without quotes"
    raise _wrong(raw, "true or false", hint if word in ("yes", "no", "true", "false") else "")


def _int(name: str, parameter: Parameter, raw: Any, scope: Scope, base: Path) -> int:
    if isinstance(raw, str):
        value = scope.expand(raw).strip()
        if "$" not in raw or not value.isdigit():
            raise _wrong(raw, "a whole number", f"write {value}, without quotes" if value.isdigit() else "")
        raw = int(value)
    if isinstance(raw, bool) or not isinstance(raw, int):
        raise _wrong(raw, "a whole number")
    return int(_bounded(raw, parameter, "{:.0f}"))


def _duration(name: str, parameter: Parameter, raw: Any, scope: Scope, base: Path) -> float:
    if isinstance(raw, bool) or not isinstance(raw, (int, float, str)):
        raise _wrong(raw, "a duration", 'for example "300s"')
    text = scope.expand(raw) if isinstance(raw, str) else f"{raw:.15g}"
    if text.startswith("-"):
        raise Mistake(f"'{text}' is negative")
    return _bounded(seconds(text, parameter.unit), parameter, "{:g}s")


def _size(name: str, parameter: Parameter, raw: Any, scope: Scope, base: Path) -> int:
    if isinstance(raw, bool) or not isinstance(raw, (int, str)):
        raise _wrong(raw, "a size", 'bytes, or for example "25MiB"')
    value = octets(scope.expand(raw)) if isinstance(raw, str) else raw
    return int(_bounded(value, parameter, "{:.0f} bytes"))


def _bounded(value: float, parameter: Parameter, form: str) -> float:
    if value < parameter.low:
        raise Mistake(f"{form.format(value)} is too small", f"at least {form.format(parameter.low)}")
    if value > parameter.high:
        raise Mistake(f"{form.format(value)} is too large", f"at most {form.format(parameter.high)}")
    return value


def _list(name: str, parameter: Parameter, raw: Any, scope: Scope, base: Path) -> tuple[str, ...]:
    if not isinstance(raw, (str, list, tuple)):
        raise _wrong(raw, "an array of text")
    for part in raw if not isinstance(raw, str) else ():
        if not isinstance(part, str):
            raise _wrong(part, "text in the array", f'write "{part}"')
    items = split(scope.text(name))
    if any(item.startswith("#") for item in items):
        raise Mistake("'#' is not an entry", COMMENT_HINT)
    return tuple(_absolute(printable(item), base) for item in items)


def _maps(name: str, parameter: Parameter, raw: Any, scope: Scope, base: Path) -> tuple[TableSpec, ...]:
    parts = split(raw) if isinstance(raw, str) else [raw] if isinstance(raw, dict) else raw
    if not isinstance(parts, (list, tuple)):
        raise _wrong(raw, "an array of tables", 'for example ["texthash:/etc/edgemail/table"]')
    specs: list[TableSpec] = []
    for part in parts:
        if isinstance(part, dict):
            specs.append(_pairs(part))
        elif not isinstance(part, str):
            raise _wrong(part, "a table", '"type:path" or { "key" = "value" }')
        else:
            specs.append(_absolute(printable(scope.expand(part)), base))
    return tuple(specs)


def _pairs(table: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    for key, value in table.items():
        if not isinstance(value, str):
            raise _wrong(value, f"text for '{key}'", f'write "{value}"' if isinstance(value, int) else "")
        printable(key + value)
    return tuple(table.items())


def _absolute(entry: str, base: Path) -> str:
    """A list entry or table with its relative path, if it has one, made absolute."""
    if entry.startswith(("./", "../")):
        return str(base / entry)
    match = _TABLE_FILE.fullmatch(entry)
    return f"{match[1]}:{base / match[2]}" if match else entry


_READERS: Final = {
    "text": _text,
    "path": _path,
    "address": _address,
    "choice": _choice,
    "bool": _bool,
    "int": _int,
    "duration": _duration,
    "size": _size,
    "list": _list,
    "maps": _maps,
}
