"""Lookup tables and lists: `type:source` text, read as Postfix reads it, without a postmap step.

Owns which table types there are, the order of lookups, and lists of domains and networks. Never writes, never fetches
from a network, and keeps the table it has when the new file is wrong. Standard library only.
"""

from __future__ import annotations

import logging
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, Protocol

from edgemail.domain import ascii_domain
from edgemail.errors import TableError
from edgemail.patterns import Patterns, parse_address, parse_network, parse_rules
from edgemail.settings import Maps, Names, TableSpec
from edgemail.watched import RECHECK, Monotonic, Watched, logical_lines

LITERAL_TYPES: Final = ("texthash", "hash", "lmdb", "btree", "cdb")
PATTERN_TYPES: Final = ("regexp", "pcre", "cidr")
TYPES: Final = (*LITERAL_TYPES, *PATTERN_TYPES, "static", "inline")
MAX_INCLUDES: Final = 8  # limit: list files inside list files
KNOWN: Final = 128  # limit: verdicts that a list of domains or networks keeps, so that it need not look again

log = logging.getLogger("edgemail.tables")


class Table(Protocol):
    """One table. `literal`: it holds keys, so that a part of an address (its domain) may be looked up in it."""

    literal: bool

    def find(self, key: str) -> str | None: ...

    def values(self) -> Iterable[str]: ...


QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"(?:\s+|$)(.*)', re.DOTALL)


def parse_pairs(path: Path, text: str) -> dict[str, str]:
    """`key value` lines. Of two equal keys the first counts, as in postmap. Raises TableError."""
    pairs: dict[str, str] = {}
    for number, line in logical_lines(text):
        if line.startswith('"'):
            match = QUOTED.match(line)
            if match is None:
                raise TableError(f'{path}:{number}: the quoted key has no closing "')
            key, value = re.sub(r"\\(.)", r"\1", match[1]), match[2].strip()
        else:
            key, value = (*line.split(None, 1), "")[:2]
        if not value:
            # the key is not quoted: in a table of passwords it may be a password without its key
            raise TableError(f"{path}:{number}: no value; expected: key, blank, value")
        key = key.lower()
        if key in pairs:
            log.warning("warning: %s:%d: this key stands here twice; the first one counts", path, number)
        else:
            pairs[key] = value
    return pairs


class Pairs:
    """A table of keys, from a file that is watched or from a configuration's inline table."""

    __slots__ = ("_current",)
    literal = True

    def __init__(self, current: Callable[[], dict[str, str]]) -> None:
        self._current = current

    def find(self, key: str) -> str | None:
        return self._current().get(key.lower())

    def values(self) -> Iterable[str]:
        return self._current().values()


class Static:
    """One value for every key."""

    __slots__ = ("_value",)
    literal = True

    def __init__(self, value: str) -> None:
        self._value = value

    def find(self, key: str) -> str | None:
        return self._value

    def values(self) -> Iterable[str]:
        return (self._value,)


class Tables:
    """An ordered list of tables; the first that has the key answers."""

    __slots__ = ("_tables",)

    def __init__(self, tables: tuple[Table, ...]) -> None:
        self._tables = tables

    @classmethod
    def open(cls, specs: Maps, base: Path | None = None, *, monotonic: Monotonic = time.monotonic) -> Tables:
        """The tables of a parameter. `base`: where relative paths start (the configuration's directory).

        Raises TableError, which names the file and the line and says what is expected.
        """
        return cls(tuple(open_table(spec, base, monotonic) for spec in specs))

    def __bool__(self) -> bool:
        return bool(self._tables)

    def find(self, key: str) -> str | None:
        """The first table's value for `key`, in whatever case it is."""
        for table in self._tables:
            value = table.find(key)
            if value is not None:
                return value
        return None

    def values(self) -> Iterator[str]:
        """Every value, for a check of their form; those of patterns with their `$1` still in them."""
        for table in self._tables:
            yield from table.values()

    def search(self, keys: Iterable[str]) -> str | None:
        """Each key through all tables before the next key is tried.

        The first key is the whole subject; the others are parts of it (its domain) and are not shown to pattern
        tables, as in Postfix: "!/@example\\.com$/" would fit any bare domain.
        """
        for number, key in enumerate(keys):
            for table in self._tables:
                if number == 0 or table.literal:
                    value = table.find(key)
                    if value is not None:
                        return value
        return None


def open_table(spec: TableSpec, base: Path | None, monotonic: Monotonic) -> Table:
    """One table of a configuration. Raises TableError."""
    if not isinstance(spec, str):
        inline = {key.lower(): value for key, value in reversed(spec)}
        return Pairs(lambda: inline)
    kind, colon, source = spec.partition(":")
    if not colon or kind not in TYPES or not source.strip():
        raise TableError(_explain(spec, kind, source))
    if kind == "static":
        return Static(_unbraced(source))
    if kind == "inline":
        pairs = _inline_pairs(source)
        return Pairs(lambda: pairs)
    path = (base or Path()) / source
    if kind in LITERAL_TYPES:
        return Pairs(Watched(path, parse_pairs, monotonic).current)
    return Patterns(Watched(path, lambda at, text: parse_rules(at, text, kind), monotonic).current)


def _explain(spec: str, kind: str, source: str) -> str:
    if spec.startswith(("/", "./", "../")):
        return f"'{spec}': a table needs its type; write \"texthash:{spec}\""
    if kind == "proxy":
        return f"'{spec}': there is no proxy here; write \"{source}\""
    if not source.strip():
        return f'\'{spec}\': expected "type:path", for example "texthash:/etc/edgemail/table"'
    return f"'{spec}': no table type '{kind}'; there are {', '.join(TYPES)}"


def _unbraced(text: str) -> str:
    bare = text.strip()
    return bare[1:-1].strip() if bare.startswith("{") and bare.endswith("}") else bare


def _inline_pairs(source: str) -> dict[str, str]:
    """`inline:{key=value, {key = value with blanks}}`."""
    pairs: dict[str, str] = {}
    for braced, plain in re.findall(r"\{([^{}]*)\}|([^\s,{}]+)", _unbraced(source)):
        key, equals, value = (braced or plain).partition("=")
        if not (key.strip() and equals and value.strip()):
            raise TableError('inline: expected key=value; an inline table reads better: {"key" = "value"}')
        pairs.setdefault(key.strip().lower(), value.strip())
    return pairs


def check(specs: Maps, base: Path | None = None) -> tuple[str, ...]:
    """What is wrong with the tables of a parameter, one sentence each; empty when they can be used."""
    problems = []
    for spec in specs:
        try:
            open_table(spec, base, time.monotonic)
        except TableError as error:
            problems.append(str(error))
    return tuple(problems)


# ---- lists

# "cdb:/path" but not the IPv6 address "cdb:1::"; no other type can be the first group of an address
TABLE_ENTRY = re.compile(r"[a-z]*[g-z][a-z]*:|cdb:[/.]")


class Entries(ABC):
    """An ordered list of patterns, `/files` of patterns, `type:tables` and `!negations`; the first that fits decides.

    Patterns are in a dictionary with their places, so that a long list costs no more than a short one.
    """

    __slots__ = (
        "_base",
        "_complaint",
        "_due",
        "_files",
        "_index",
        "_known",
        "_monotonic",
        "_names",
        "_state",
        "_tables",
    )

    def __init__(self, names: Names, base: Path | None, monotonic: Monotonic) -> None:
        self._names = names
        self._base = base
        self._monotonic = monotonic
        self._files: dict[Path, Watched[list[tuple[int, str]]]] = {}
        self._complaint = ""
        self._due = monotonic() + RECHECK
        self._compile()

    def __bool__(self) -> bool:
        return bool(self._names)

    def _compile(self) -> None:
        index: dict[object, tuple[int, bool]] = {}
        tables: list[tuple[int, bool, Table]] = []
        for place, (entry, wanted, where) in enumerate(self._flat(self._names, True, "", 0)):
            try:
                if TABLE_ENTRY.match(entry):
                    tables.append((place, wanted, open_table(entry, self._base, self._monotonic)))
                else:
                    index.setdefault(self._parse(entry), (place, wanted))
            except (ValueError, TableError) as error:
                raise TableError(f"{where}{error}") from None
        self._index, self._tables = index, tables
        self._known: dict[str, bool] = {}  # what was found of late; a table may say something else the next time
        self._state = self._generations()

    def _flat(self, names: Iterable[str], wanted: bool, where: str, depth: int) -> Iterator[tuple[str, bool, str]]:
        """Single entries with their sign and, for those out of files, "file:line: "."""
        for name in names:
            entry = name.strip().lstrip("!").strip()
            sign = wanted ^ bool(name.count("!", 0, name.find(entry)) % 2)
            if not entry:
                raise TableError(f"{where}'{name}': nothing to match")
            if not entry.startswith(("/", "./", "../")):
                yield entry, sign, where
                continue
            if depth == MAX_INCLUDES:
                raise TableError(f"{where}{entry}: more than {MAX_INCLUDES} list files inside each other")
            path = (self._base or Path()) / entry
            if path not in self._files:
                self._files[path] = Watched(path, lambda _, text: list(logical_lines(text)), self._monotonic)
            for number, line in self._files[path].current():
                yield from self._flat(re.findall(r"(?:!\s*)*[^\s,]+", line), sign, f"{path}:{number}: ", depth + 1)

    @abstractmethod
    def _parse(self, entry: str) -> object:
        """The key of a pattern in the dictionary. Raises ValueError with a hint."""

    def _generations(self) -> int:
        return sum(file.generation for file in self._files.values())

    def __contains__(self, text: str) -> bool:
        """Whether `text`, in any of its forms, is in the list; False for what could not be."""
        self._refresh()
        if not (self._index or self._tables):
            return False
        found = self._known.get(text)
        if found is None:
            found = self._find(text)
            if not self._tables:
                if len(self._known) >= KNOWN:
                    self._known.clear()
                self._known[text] = found
        return found

    @abstractmethod
    def _find(self, text: str) -> bool:
        """The verdict on a text."""

    def _refresh(self) -> None:
        """Read changed files again; a wrong one leaves the list as it was, and is said once."""
        if not self._files or (now := self._monotonic()) < self._due:
            return
        self._due = now + RECHECK
        for file in self._files.values():
            file.current()
        if self._state == self._generations():
            return
        try:
            self._compile()
            self._complaint = ""
        except TableError as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                log.warning("warning: %s; the list read before stays in use", error)

    def _verdict(self, keys: Iterable[object], texts: Callable[[], tuple[str, ...]]) -> bool:
        """What the first entry says that is one of `keys` or a table with one of `texts`; False when there is none."""
        best, verdict = -1, False
        for key in keys:
            place, wanted = self._index.get(key, (-1, False))
            if place >= 0 and (best < 0 or place < best):
                best, verdict = place, wanted
        for place, wanted, table in self._tables:
            if 0 <= best < place:
                break
            if any(table.find(text) is not None for text in texts()):
                return wanted
        return verdict


class DomainList(Entries):
    """Domains: `name`, `.name` for what is below it, and the forms of `Entries`.

    `parent_matches`: `name` stands for its subdomains too (parent_domain_matches_subdomains).
    """

    __slots__ = ("_parent_matches",)

    def __init__(
        self, names: Names, parent_matches: bool, base: Path | None = None, *, monotonic: Monotonic = time.monotonic
    ) -> None:
        """`base`: where relative paths start. Raises TableError with a hint."""
        self._parent_matches = parent_matches
        super().__init__(names, base, monotonic)

    def _find(self, domain: str) -> bool:
        """Whether a domain, in any case and in U- or A-labels, is in the list."""
        try:
            name = ascii_domain(domain)
        except ValueError:
            return False
        keys = [name]
        while "." in name:
            name = name.partition(".")[2]
            keys.append("." + name)
            if self._parent_matches:
                keys.append(name)
        return self._verdict(keys, lambda: tuple(keys))

    def _parse(self, entry: str) -> object:
        if ":" in entry and not entry.startswith("["):
            raise TableError(_explain(entry, *entry.split(":", 1)))
        if "@" in entry:
            raise ValueError(f"'{entry}' is an address; expected a domain: '{entry.rpartition('@')[2]}'")
        if entry.startswith("*."):
            raise ValueError(f"'{entry}': expected '{entry[1:]}', which stands for everything below that domain")
        if not re.fullmatch(r"\.?[^\s.\[\]/=#\"']+(\.[^\s.\[\]/=#\"']+)*\.?|\[[^\]\s]+\]", entry):
            raise ValueError(f"'{entry}' is no domain name")
        return ("." if entry.startswith(".") else "") + ascii_domain(entry.removeprefix("."))


class NetworkList(Entries):
    """Addresses and networks, with or without brackets, and the forms of `Entries`; IPv4-mapped addresses are IPv4."""

    __slots__ = ("_lengths",)

    def __init__(self, names: Names, base: Path | None = None, *, monotonic: Monotonic = time.monotonic) -> None:
        """`base`: where relative paths start. Raises TableError with a hint."""
        super().__init__(names, base, monotonic)

    def _compile(self) -> None:
        super()._compile()
        lengths: set[tuple[int, int]] = {key[:2] for key in self._index if isinstance(key, tuple)}
        self._lengths = {version: [length for at, length in lengths if at == version] for version in (4, 6)}

    def _find(self, address: str) -> bool:
        """Whether an address is in one of the networks; False for what is no address."""
        parsed = parse_address(address)
        if parsed is None:
            return False
        version, value, bits = parsed.version, int(parsed), parsed.max_prefixlen
        keys = [(version, length, value >> (bits - length)) for length in self._lengths[version]]
        return self._verdict(keys, lambda: (str(parsed),))

    def _parse(self, entry: str) -> object:
        network = parse_network(entry)
        return (
            network.version,
            network.prefixlen,
            int(network.network_address) >> (network.max_prefixlen - network.prefixlen),
        )
