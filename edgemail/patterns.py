"""Pattern tables: regexp, pcre and cidr, with `if`, negation and substitution; addresses and networks as written.

Owns the syntax of Postfix's regexp_table(5), pcre_table(5), cidr_table(5). Never reads a file. Standard library only.
"""

from __future__ import annotations

import ipaddress
import re
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Final

from edgemail.errors import TableError
from edgemail.value import value
from edgemail.watched import logical_lines

MAX_PATTERN: Final = 1024  # limit: characters of one pattern in a regexp or pcre table
MAX_NESTING: Final = 20  # limit: if blocks inside each other in a pattern table
ADDRESSES_KNOWN: Final = 128  # limit: texts that are remembered as addresses, or as none; each session asks for a few


@value
class Rule:
    """A line of a pattern table. `value` None: an `if`, which when it fails goes on at `beyond`."""

    test: Callable[[str], re.Match[str] | bool | None]
    negated: bool
    value: str | None
    beyond: int = 0


class Patterns:
    """A regexp, pcre or cidr table: the first rule that fits gives the value. Only whole keys are looked up in it."""

    __slots__ = ("_current",)
    literal = False

    def __init__(self, current: Callable[[], list[Rule]]) -> None:
        self._current = current

    def find(self, key: str) -> str | None:
        rules, at = self._current(), 0
        while at < len(rules):
            rule = rules[at]
            at += 1
            found = rule.test(key)
            if bool(found) == rule.negated:
                at = at if rule.value is not None else rule.beyond
            elif rule.value is not None:
                return _expand(rule.value, found) if isinstance(found, re.Match) else rule.value
        return None

    def values(self) -> list[str]:
        return [rule.value for rule in self._current() if rule.value is not None]


SUBSTITUTION = re.compile(r"\$(?:(\$)|(\d+)|\{(\d+)\}|\((\d+)\))")


def _expand(value: str, found: re.Match[str]) -> str:
    return SUBSTITUTION.sub(lambda dollar: "$" if dollar[1] else found[_group(dollar)] or "", value)


def _group(dollar: re.Match[str]) -> int:
    return int(dollar[2] or dollar[3] or dollar[4])


IF_LINE = re.compile(r"if\s*(!?)\s*(\S.*)", re.IGNORECASE | re.DOTALL)


def parse_rules(path: Path, text: str, kind: str) -> list[Rule]:
    """The rules of a pattern table in order, `if` and `endif` resolved. Raises TableError."""
    rules: list[Rule] = []
    opened: list[int] = []  # rules that are an `if` without its endif yet
    for number, line in logical_lines(text):
        try:
            if line.lower() == "endif":
                if not opened:
                    raise ValueError("endif without if")
                start = opened.pop()
                rules[start] = Rule(rules[start].test, rules[start].negated, None, len(rules))
                continue
            condition = IF_LINE.fullmatch(line)
            negated, rest = (bool(condition[1]), condition[2]) if condition else (line[0] == "!", line.lstrip("! \t"))
            test, groups, value = _cidr_rule(rest) if kind == "cidr" else _pattern_rule(rest, kind)
            if condition:
                if value:
                    raise ValueError("an if takes no value")
                if len(opened) == MAX_NESTING:
                    raise ValueError(f"more than {MAX_NESTING} if blocks inside each other")
                opened.append(len(rules))
            elif not value:
                raise ValueError("no value; expected: pattern, blank, value")
            for dollar in SUBSTITUTION.finditer(value) if kind != "cidr" else ():
                if not dollar[1] and (negated or _group(dollar) > groups):
                    raise ValueError(f"{dollar[0]} names a group that the pattern does not have")
            rules.append(Rule(test, negated, None if condition else value))
        except (ValueError, re.error) as error:
            raise TableError(f"{path}:{number}: {error}") from None
    if opened:
        raise TableError(f"{path}: an if without endif")
    return rules


# POSIX character classes, which re does not know
POSIX_CLASSES: Final = {
    "alpha": "a-zA-Z",
    "digit": "0-9",
    "alnum": "a-zA-Z0-9",
    "upper": "A-Z",
    "lower": "a-z",
    "xdigit": "0-9A-Fa-f",
    "space": r"\s",
    "blank": r" \t",
    "punct": r"!-/:-@\[-`{-~",
    "cntrl": r"\x00-\x1f\x7f",
    "graph": "!-~",
    "print": " -~",
}
POSIX_CLASS = re.compile(r"\[:(\w+):\]")
FLAGS: Final = {"i": re.IGNORECASE, "m": re.MULTILINE, "s": re.DOTALL, "x": re.VERBOSE}


def _pattern_rule(line: str, kind: str) -> tuple[Callable[[str], re.Match[str] | None], int, str]:
    """`/pattern/flags value`: the test, how many groups it has, the value. Flags toggle, as in Postfix."""
    mark = line[0]
    if mark.isalnum() or mark in "\\[]{}()<>\"'.*+?^$":
        raise ValueError("expected: /pattern/ value")
    end = re.compile(rf"(?:[^\\{re.escape(mark)}]|\\.)*{re.escape(mark)}", re.DOTALL).match(line, 1)
    if end is None:
        raise ValueError(f"no closing {mark} after the pattern")
    pattern = line[1 : end.end() - 1].replace("\\" + mark, mark)
    letters, value = (*re.split(r"\s+", line[end.end() :], maxsplit=1), "")[:2]
    if len(pattern) > MAX_PATTERN:
        raise ValueError(f"a pattern of more than {MAX_PATTERN} characters")
    flags = re.IGNORECASE if kind == "regexp" else re.IGNORECASE | re.DOTALL
    for letter in letters:
        if letter not in (FLAGS if kind == "pcre" else "im"):
            raise ValueError(f"unknown flag '{letter}' after the pattern")
        flags ^= FLAGS[letter]
    translated = POSIX_CLASS.sub(lambda match: POSIX_CLASSES.get(match[1], match[0]), pattern)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # "possible nested set": these brackets are POSIX's
        compiled = re.compile(translated, flags)
    return compiled.search, compiled.groups, value


def _cidr_rule(line: str) -> tuple[Callable[[str], bool], int, str]:
    """`network value`: the test, no groups, the value."""
    text, value = (*line.split(None, 1), "")[:2]
    network = parse_network(text)

    def test(key: str) -> bool:
        address = parse_address(key)
        return address is not None and address.version == network.version and address in network

    return test, 0, value


# ---- addresses and networks

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
MAPPED: Final = ipaddress.IPv6Network("::ffff:0:0/96")


@lru_cache(maxsize=ADDRESSES_KNOWN)
def parse_address(text: str) -> IPAddress | None:
    """An address without its zone; an IPv4-mapped one as IPv4. None when it is none."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, ipaddress.IPv6Address) else address


def parse_network(text: str) -> IPNetwork:
    """`192.0.2.1`, `192.0.2.0/24`, `[2001:db8::]/32`, `[2001:db8::/32]`, `2001:db8::/32`. ValueError with a hint."""
    bare = text.replace("[", "", 1).replace("]", "", 1) if text.startswith("[") else text
    try:
        network = ipaddress.ip_network(bare)
    except ValueError:
        try:
            loose = ipaddress.ip_network(bare, strict=False)
        except ValueError:
            raise ValueError(
                f"'{text}' is no address and no network; expected 192.0.2.0/24 or [2001:db8::]/32"
            ) from None
        raise ValueError(f"'{text}' has host bits set; write {loose} or leave the /{loose.prefixlen} out") from None
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(MAPPED):
        low = ipaddress.IPv4Address(int(network.network_address) & 0xFFFFFFFF)
        return ipaddress.IPv4Network((low, network.prefixlen - 96))
    return network
