"""The secrets in a provisioning file: told apart from the rest, and blanked in the text that they came in.

Owns which keys may hold a secret: every key of `[secrets]`, the inline tables of the maps that hold passwords, and the
addresses of `[push]`. What is left of the text keeps its lines, so that messages name the right ones. Text in, text
out; touches no file.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from edgemail.boot.checks import SECRET_MAPS
from edgemail.boot.places import SECRETS
from edgemail.boot.values import shown
from edgemail.errors import Problem

TABLE: Final = "secrets"
BLANK: Final = "*"
URLS: Final = ("push.heartbeat_url", "push.alarm_url")  # their paths are what lets one in
MAX_SECRETS: Final = 32  # limit: entries of [secrets]
MAX_SECRET: Final = 16_384  # limit: characters of one secret in a provisioning file

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
# A comment, or a string: in this order, so that neither is looked for within the other.
_TOKEN: Final = re.compile(
    r"""#[^\n]*|\"{3}(?:[^\\]|\\.)*?\"{3,5}|'{3}.*?'{3,5}|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'""", re.DOTALL
)
_IS_KEY: Final = re.compile(r"[ \t]*[=.\]]")


@dataclass
class Parted:
    """A text without its secrets. `files`: what is to stand in SECRETS, by name. `blanked`: the text as it is to
    stand where it came from. Where there are `problems`, nothing else counts."""

    text: str
    blanked: str = ""
    files: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def is_blank(value: str) -> bool:
    """Whether a secret was blanked by us."""
    return BLANK in value and not value.strip(BLANK + "\r\n")


def part(text: str, data: Mapping[str, Any], given: Mapping[str, int], stored: Mapping[str, str]) -> Parted:
    """Take the secrets out of a text. `data` and `given`: its TOML, and the line of each key.

    `stored`: the files that the box has from before; a secret that is blank, or was being blanked when the power went,
    is taken from there.
    """
    out = Parted(text)
    lines = text.split("\n")
    spans: dict[str, tuple[int, int]] = {}  # key -> its lines, from 0
    starts = sorted({*given.values(), len(lines) + 1})
    for key, line in given.items():
        spans[key] = (line - 1, next(start for start in starts if start > line) - 1)
    values: dict[str, set[str]] = {}  # key of the file -> the secrets in it
    for key in given:
        if key == TABLE or key.startswith(TABLE + "."):
            begin, end = spans[key]
            lines[begin:end] = [""] * (end - begin)
    _of_table(data.get(TABLE, {}), given, stored, out, values)
    for key, specs in _maps(data):
        _of_map((key, given.get(key, 0)), specs, stored, out, values)
        if key in spans and key in values:
            begin, end = spans[key]
            new = f"{key.rpartition('.')[2]} = [{', '.join(_specs(key, specs))}]"
            lines[begin:end] = [new, *[""] * (end - begin - 1)]
        elif key in values:
            out.problems.append(_hidden(key, given))
    for key in URLS:
        value = _looked_up(data, key)
        if isinstance(value, str) and value and key not in spans:
            out.problems.append(_hidden(key, given))
        elif isinstance(value, str) and value:
            begin, end = spans[key]
            name = key.replace(".", "_")
            content = _known(value, stored.get(name, ""))
            if content is None:
                out.problems.append(
                    Problem(key, given[key], "is blank, and the box has no such address", "write it anew")
                )
                continue
            out.files[name] = content + "\n"
            values[key] = {value}
            lines[begin:end] = [f"{key.rpartition('.')[2]} = {_quoted(content)}", *[""] * (end - begin - 1)]
    out.text = "\n".join(lines)
    out.blanked = _blanked(text, {key: spans[key] for key in values if key in spans}, values)
    return out


def _hidden(key: str, given: Mapping[str, int]) -> Problem:
    """Of a secret within an inline table, where its place in the text is not known."""
    table, _, name = key.rpartition(".")
    line = given.get(table, given.get(table.partition(".")[0], 0))
    return Problem(
        key, line, "holds a secret and stands inside braces", f"write [{table}] and {name} on a line of its own"
    )


def _of_table(
    table: Any, given: Mapping[str, int], stored: Mapping[str, str], out: Parted, values: dict[str, set[str]]
) -> None:
    if not isinstance(table, dict):
        out.problems.append(Problem(TABLE, given.get(TABLE, 0), f"is {shown(table)}, expected a table", "[secrets]"))
        return
    if len(table) > MAX_SECRETS:
        out.problems.append(Problem(TABLE, given.get(TABLE, 0), f"more than {MAX_SECRETS} secrets"))
    for name, value in table.items():
        key = f"{TABLE}.{name}"
        line = given.get(key, given.get(TABLE, 0))
        if not _NAME.fullmatch(name):
            out.problems.append(Problem(key, line, f"'{name}' is not a name", "letters, digits, - and _"))
        elif not isinstance(value, str) or not value:
            out.problems.append(Problem(key, line, f"is {shown(value)}, expected text"))
        elif len(value) > MAX_SECRET:
            out.problems.append(Problem(key, line, f"is longer than {MAX_SECRET} characters"))
        elif (content := _known(value, stored.get(name, ""))) is None:
            out.problems.append(Problem(key, line, "is blank, and the box has no such secret", "write it anew"))
        else:
            out.files[name] = content.removesuffix("\n") + "\n"
            values.setdefault(key if key in given else TABLE, set()).add(value)


def _of_map(
    place: tuple[str, int], specs: list[Any], stored: Mapping[str, str], out: Parted, values: dict[str, set[str]]
) -> None:
    """The inline tables of one map, which stands at `place` (key and line): a file for each."""
    key, line = place
    for number, spec in enumerate(specs):
        if isinstance(spec, str) and spec.partition(":")[0] in ("static", "inline"):
            hint = f'{{ "[smtp.isp.example]:587" = "user:password" }}, or a file: "texthash:{SECRETS}/NAME"'
            out.problems.append(Problem(key, line, "a password may not stand in such a text", hint))
        if not isinstance(spec, dict):
            continue
        name = _file(key, number)
        before = dict(each.split(" ", 1) for each in stored.get(name, "").splitlines() if " " in each)
        rows = []
        for left, value in spec.items():
            content = _known(value, before.get(left, "")) if isinstance(value, str) else ""
            if content is None:
                out.problems.append(Problem(key, line, f"{left}: is blank, and the box has no such password"))
            elif not content or re.search(r"[\r\n]", content) or re.search(r"\s|^#", left) or not left:
                out.problems.append(Problem(key, line, f"{left}: expected text of one line"))
            else:
                rows.append(f"{left} {content}\n")
                values.setdefault(key, set()).add(value)
        values.setdefault(key, set())
        out.files[name] = "".join(rows)


def _known(value: str, stored: str) -> str | None:
    """The secret that a value stands for; None for a blank one that nobody knows."""
    before = stored.removesuffix("\n")
    text = value.removesuffix("\n")
    if is_blank(value):
        return before or None
    if BLANK in text and before:
        for encoding in ("utf-8", "utf-16-le"):
            pairs = text.encode(encoding), before.encode(encoding)
            if len(pairs[0]) == len(pairs[1]) and all(
                one in (ord(BLANK), other, 0) for one, other in zip(*pairs, strict=True)
            ):
                return before  # the power went while it was being blanked
    return value


def _maps(data: Mapping[str, Any]) -> Iterator[tuple[str, list[Any]]]:
    """Every map that may hold passwords, by its place in the file."""
    places = [("", data)]
    listeners = data.get("listener", [])
    if isinstance(listeners, list):
        places += [(f"listener[{number}].", table) for number, table in enumerate(listeners, 1)]
    transports = data.get("transport", {})
    if isinstance(transports, dict):
        places += [(f"transport.{name}.", table) for name, table in transports.items()]
    for prefix, table in places:
        for name in SECRET_MAPS:
            if isinstance(table, dict) and name in table:
                value = table[name]
                yield prefix + name, value if isinstance(value, list) else [value]


def _file(key: str, number: int) -> str:
    """The file that an inline table goes into."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", key) + (f"_{number}" if number else "")


def _specs(key: str, specs: list[Any]) -> Iterator[str]:
    """The map's entries, as a file spells them."""
    for number, spec in enumerate(specs):
        text = f"texthash:{SECRETS}/{_file(key, number)}" if isinstance(spec, dict) else str(spec)
        yield _quoted(text)


def _quoted(text: str) -> str:
    """A TOML basic string."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _looked_up(data: Mapping[str, Any], key: str) -> Any:
    table, _, name = key.partition(".")
    found = data.get(table)
    return found.get(name) if isinstance(found, dict) else None


def _blanked(text: str, spans: Mapping[str, tuple[int, int]], values: Mapping[str, set[str]]) -> str:
    """The text with each secret made unreadable; every other character stands where it stood."""
    starts = [0]
    for line in text.split("\n"):
        starts.append(starts[-1] + len(line) + 1)
    out = list(text)
    for token in _TOKEN.finditer(text):
        if token[0].startswith("#") or _IS_KEY.match(text, token.end()):
            continue
        for key, (begin, end) in spans.items():
            secrets = values[key]
            if starts[begin] <= token.start() < starts[end] and tomllib.loads(f"x = {token[0]}")["x"] in secrets:
                marks = 3 if token[0][:3] in ('"""', "'''") else 1
                for at in range(token.start() + marks, token.end() - marks):
                    if out[at] not in "\r\n":
                        out[at] = BLANK
                break
    return "".join(out)
