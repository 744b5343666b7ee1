"""The `[[priority]]` tables of a configuration file, made into values. Owns their keys; every mistake is reported."""

from __future__ import annotations

import re
from typing import Any, Final

from edgemail.boot.expand import Mistake, Scope
from edgemail.boot.links import Report
from edgemail.boot.values import near, printable, shown
from edgemail.relay.queue.priority import MAX_RANKS, MAX_RULES, parse_rule
from edgemail.settings import Priority

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")


def priorities(report: Report, tables: Any, scope: Scope) -> tuple[Priority, ...]:
    """All classes of a file, in its order. Mistakes go to `report`."""
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        report.problem("priority", f"is {shown(tables)}, expected tables", "write [[priority]], with two brackets")
        return ()
    found: list[Priority] = []
    for number, table in enumerate(tables, 1):
        section = f"priority[{number}]"
        for key in table:
            if key not in ("name", "match"):
                report.problem(f"{section}.{key}", "unknown parameter", near(key, ("name", "match")))
        name = table.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            report.problem(f"{section}.name", "is not a short word", 'for example name = "alarm"')
            name = ""
        elif any(each.name == name for each in found):
            report.problem(f"{section}.name", f"'{name}' is the name of another class")
        match = _rules(report, table.get("match", []), f"{section}.match", scope)
        if not match and any(not each.match for each in found):
            report.problem(section, "is the second without match", "one may stand for all mail that no other names")
        found.append(Priority(name, match))
    if len(found) + all(each.match for each in found) > MAX_RANKS:
        report.problem(f"priority[{len(found)}]", f"more than {MAX_RANKS} classes, that of all other mail among them")
    return tuple(found)


def _rules(report: Report, raw: Any, key: str, scope: Scope) -> tuple[str, ...]:
    parts = [raw] if isinstance(raw, str) else raw
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        report.problem(key, f"is {shown(raw)}, expected an array of text", 'for example ["listener:alarms"]')
        return ()
    if len(parts) > MAX_RULES:
        report.problem(key, f"has more than {MAX_RULES} entries")
        return ()
    rules = []
    for part in parts:
        try:
            rule = printable(scope.expand(part))
            parse_rule(rule)
        except (Mistake, ValueError) as error:
            message, _, hint = str(error).partition("; ")
            report.problem(key, message, hint)
        else:
            rules.append(rule)
    return tuple(rules)
