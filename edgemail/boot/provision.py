"""`edgemail.toml` on the boot partition: found, read as people save it, checked, put into force on the data partition.

Owns what stands in /data/edgemail: one directory for each configuration, with its secrets, and `current`, a link that
is replaced in one step. Cut at any instant, the configuration before or the one after is in force; the secrets on the
boot partition are blanked when they are safe on the data partition, and not before.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from edgemail.boot.places import SECRETS
from edgemail.errors import ConfigurationError, Problem
from edgemail.settings import Configuration, Network, TimeServers, Update
from edgemail.value import value

NAME: Final = "edgemail.toml"
CURRENT: Final = "current"
VERSIONS: Final = "configurations"
FACTS: Final = "facts.json"  # beside a configuration: what the box needs of it
SOURCE: Final = "source"  # beside a configuration: the SHA-256 of the file that it came from
MAX_FILE: Final = 262_144  # limit: bytes of edgemail.toml on the boot partition
MAX_ENTRIES: Final = 200  # limit: names on the boot partition that are looked at

# What editors put in front: Windows' Notepad has all three.
MARKS: Final = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
# What a configuration of the image says where its file does not; the file's own lines come behind.
TOP: Final = {"queue_directory": '"/data/spool"', "mail_owner": '"edgemail"', "watchdog_device": '"/dev/watchdog"'}
FIXED: Final = ("queue_directory", "mail_owner")
HEALTH: Final = '[health]\naddress = "*"\nport = 80\nnetworks = ["$mynetworks"]\n'


@value
class Source:
    """The file as it was found: its text, and how to write it back byte by byte."""

    raw: bytes
    text: str
    mark: bytes  # the byte order mark
    encoding: str

    def encoded(self, text: str) -> bytes:
        return self.mark + text.encode(self.encoding)


@dataclass
class Outcome:
    """What became of the file. `state`: applied, unchanged, missing, bad. `notes`: what else a person should know."""

    state: str
    problems: tuple[Problem, ...] = ()
    notes: list[str] = field(default_factory=list)
    configured: bool = False  # a configuration is in force, this one or one from before


@value
class Facts:
    """What the box itself needs of a configuration, which takes a board seconds to read and check."""

    myhostname: str
    host: str  # where its page can be asked by the box
    port: int
    network: Network
    time: TimeServers
    update: Update

    @classmethod
    def of(cls, configuration: Configuration) -> Facts:
        health = configuration.health
        host = health.address if health is not None and health.address != "*" else "127.0.0.1"
        port = health.port if health is not None else 0
        tables = configuration.network, configuration.time, configuration.update
        return cls(configuration.settings.myhostname, host, port, *tables)


class Unreadable(Exception):
    """No text; says why and what to do."""


# ---- the file


def find(folder: Path) -> tuple[Path | None, list[str]]:
    """The file on the boot partition, and a sentence for each file that was probably meant to be it."""
    try:
        entries = sorted(folder.iterdir())[:MAX_ENTRIES]
    except OSError as error:
        return None, [f"The boot partition cannot be read: {error.strerror}"]
    found = next((each for each in entries if each.name.lower() == NAME and each.is_file()), None)
    notes = []
    for entry in entries:
        name = entry.name.lower()
        if entry.is_dir() and not name.startswith("."):
            with contextlib.suppress(OSError):
                if any(inner.name.lower() == NAME for inner in entry.iterdir()):
                    notes.append(f"{entry.name}/{NAME} is in a folder: it has to stand beside the other files")
        elif name != NAME and _meant(name):
            why = " (Windows hides the ending .txt: show file name extensions)" if name.endswith(".txt") else ""
            notes.append(f"{entry.name} is not read: it has to be called {NAME}{why}")
    return found, notes


def _meant(name: str) -> bool:
    """Whether a name, in lower case, looks like a try at ours."""
    if name.startswith((".", "edgemail-")):
        return False
    return name.endswith((".toml", ".toml.txt")) or name in ("edgemail", "edgemail.txt", "edgemail.conf", "main.cf")


def read(path: Path) -> Source:
    """Raises Unreadable."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE + 1)
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror}") from error
    if len(raw) > MAX_FILE:
        raise Unreadable(f"is larger than {MAX_FILE} bytes")
    if raw.startswith((b"PK\3\4", b"{\\rtf", b"\xd0\xcf\x11\xe0")):
        raise Unreadable("is a document of a word processor; save it as plain text, or use an editor for text")
    mark, encoding = next(
        (each for each in MARKS if raw.startswith(each[0])),
        (b"", "utf-16-le" if raw[1:2] == b"\0" else "utf-16-be" if raw[:1] == b"\0" else "utf-8"),
    )
    try:
        text = raw[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise Unreadable(
            f"has characters in line {line} that are not UTF-8; save it with the encoding UTF-8"
        ) from error
    return Source(raw, text, mark, encoding)


# ---- into force


class Site:
    """The configurations on the data partition; `home` is /data/edgemail. `owner`: who reads them, uid and gid."""

    def __init__(self, home: Path, owner: tuple[int, int] | None = None) -> None:
        self.home = home
        self._owner = owner

    @property
    def current(self) -> Path:
        return self.home / CURRENT

    def configured(self) -> bool:
        return (self.current / NAME).is_file()

    def stored(self) -> dict[str, str]:
        """The secrets of the configuration in force, by name."""
        found = {}
        with contextlib.suppress(OSError):
            for path in (self.current / SECRETS).iterdir():
                found[path.name] = path.read_text()
        return found

    def facts(self) -> Facts | None:
        """What the box itself needs of the configuration in force; None where there is none."""
        try:
            found = json.loads((self.current / FACTS).read_text())
            tables = {"network": Network, "time": TimeServers, "update": Update}
            for name, kind in tables.items():
                values = {key: tuple(value) if isinstance(value, list) else value for key, value in found[name].items()}
                found[name] = kind(**values)
            return Facts(**found)
        except (OSError, ValueError, KeyError, TypeError):
            pass
        from edgemail.boot import config  # written by a release that knew other facts

        try:
            return Facts.of(config.load(self.current / NAME, files=False))
        except ConfigurationError:
            return None

    def provision(self, folder: Path) -> Outcome:
        """Take what stands on the boot partition. Raises OSError when the data partition cannot be written."""
        path, notes = find(folder)
        if path is None:
            return Outcome("missing", (), notes, self.configured())
        try:
            source = read(path)
        except Unreadable as error:
            return Outcome("bad", (Problem("", 0, str(error)),), notes, self.configured())
        if self.configured() and self._source() == hashlib.sha256(source.raw).hexdigest():
            return Outcome("unchanged", (), notes, configured=True)
        plan = Plan(source, self.stored())
        if not plan.problems:
            blanked = source.encoded(plan.parted.blanked)
            plan.problems = self._put(plan, hashlib.sha256(blanked).hexdigest())
            if not plan.problems and blanked != source.raw:
                try:
                    _overwrite(path, blanked)
                except OSError as error:
                    notes.append(f"The passwords in {NAME} could not be blanked: {error.strerror}")
        if plan.problems:
            return Outcome("bad", plan.problems, notes, self.configured())
        return Outcome("applied", (), notes, configured=True)

    def _source(self) -> str:
        try:
            return (self.current / SOURCE).read_text()
        except OSError:
            return ""

    def _put(self, plan: Plan, digest: str) -> tuple[Problem, ...]:
        """Write the plan down beside what is in force, check it there, and let it be in force."""
        content = "\0".join((plan.text, digest, *(f"{name}\0{text}" for name, text in plan.parted.files.items())))
        versions = self.home / VERSIONS
        fresh = versions / hashlib.sha256(content.encode()).hexdigest()[:16]
        if self.current.exists() and self.current.resolve() == fresh.resolve():
            return ()  # it was in force already, and what came after was cut
        shutil.rmtree(fresh, ignore_errors=True)
        self._make(versions, private=False)
        self._make(fresh)
        self._make(fresh / SECRETS)
        for name, text in plan.parted.files.items():
            self._write(fresh / SECRETS / name, text)
        self._write(fresh / NAME, plan.text)
        self._write(fresh / SOURCE, digest)
        _sync(fresh / SECRETS)
        for made in (fresh, versions, self.home, self.home.parent):  # each name before the link leads to it
            _sync(made)
        problems = plan.check(fresh / NAME)
        if problems:
            shutil.rmtree(fresh, ignore_errors=True)
            return problems
        if plan.configuration is not None:
            self._write(fresh / FACTS, json.dumps(dataclasses.asdict(Facts.of(plan.configuration))) + "\n")
            _sync(fresh)
        beside = self.home / (CURRENT + ".new")
        beside.unlink(missing_ok=True)
        beside.symlink_to(Path(VERSIONS) / fresh.name)
        beside.replace(self.current)
        _sync(self.home)
        for other in versions.iterdir():
            if other.name != fresh.name:
                shutil.rmtree(other, ignore_errors=True)
        return ()

    def forget(self) -> None:
        """No configuration is in force any more."""
        self.current.unlink(missing_ok=True)
        if self.home.is_dir():
            _sync(self.home)
        shutil.rmtree(self.home / VERSIONS, ignore_errors=True)

    def _make(self, directory: Path, *, private: bool = True) -> None:
        directory.mkdir(mode=0o700 if private else 0o755, parents=True, exist_ok=True)
        if self._owner is not None and private:
            os.chown(directory, *self._owner)

    def _write(self, path: Path, text: str) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            if self._owner is not None:
                os.fchown(descriptor, *self._owner)
            file.write(text)
            file.flush()
            os.fsync(descriptor)


class Plan:
    """A file on its way to a configuration: without its secrets, with what the image sets. `problems`: why not."""

    def __init__(self, source: Source, stored: dict[str, str]) -> None:
        from edgemail.boot import blanking, config

        self.problems: tuple[Problem, ...] = ()
        self.text = ""
        self.added = 0  # lines in front of the file's own
        self.configuration: Configuration | None = None
        self.parted = blanking.Parted("")
        text = source.text.replace("\r\n", "\n")
        try:
            data, given = config.parse_text(NAME, text)
        except ConfigurationError as error:
            self.problems = error.problems
            return
        self.parted = blanking.part(text, data, given, stored)
        # the same characters, with the line ends that the file has
        self.parted.blanked = _with_ends(source, self.parted.blanked)
        wanted = {key: value for key, value in TOP.items() if key not in data and _there(key, value)}
        head = [f"{key} = {value}" for key, value in wanted.items()]
        tail = "" if "health" in data else f"\n{HEALTH}"
        self.added = len(head)
        self.text = "\n".join([*head, self.parted.text]) + tail
        wrong = [*self.parted.problems, *self._places(data, given), *self._references(data, given)]
        self.problems = tuple(sorted(wrong, key=lambda problem: problem.line))

    def check(self, path: Path, *, files: bool = True) -> tuple[Problem, ...]:
        """What is wrong with the configuration in `path`, by the lines of the file that it came from."""
        from edgemail.boot import config

        try:
            self.configuration = config.load(path, files=files)
        except ConfigurationError as error:
            return tuple(
                Problem(one.key, max(0, one.line - self.added), one.message, one.hint) for one in error.problems
            )
        return ()

    def _places(self, data: dict[str, object], given: dict[str, int]) -> Iterator[Problem]:
        for key in FIXED:
            value = TOP[key]
            if key in data and f'"{data[key]}"' != value:
                yield Problem(key, given.get(key, 0), f"is always {value} in the system image", "leave it out")

    def _references(self, data: object, given: dict[str, int]) -> Iterator[Problem]:
        """Files among the secrets that are named and were not given."""
        place = SECRETS + "/"
        for key, text in _strings(data, ""):
            path = text.partition(":")[2] if ":" in text else text
            name = path.removeprefix(place)
            if path.startswith(place) and name not in self.parted.files and not key.startswith("secrets."):
                line = given.get(key, 0)
                yield Problem(key, line, f"there is no secret '{name}'", f'write it into [secrets]: {name} = "..."')


def preview(path: Path, directory: Path) -> Outcome:
    """What `provision` would say of a file, on any computer; `directory` is an empty one to work in."""
    try:
        source = read(path)
    except Unreadable as error:
        return Outcome("bad", (Problem("", 0, str(error)),))
    notes = [] if path.name.lower() == NAME else [f"On the boot partition it has to be called {NAME}"]
    plan = Plan(source, {})
    if not plan.problems:
        (directory / NAME).write_text(plan.text)
        plan.problems = plan.check(directory / NAME, files=False)
    if plan.problems:
        return Outcome("bad", plan.problems, notes)
    if plan.parted.files:
        notes.append(f"Moved to the data partition and blanked here: {', '.join(sorted(plan.parted.files))}")
    return Outcome("applied", (), notes, configured=True)


def _there(key: str, value: str) -> bool:
    """Not every board has a watchdog."""
    return not key.endswith("_device") or Path(value.strip('"')).exists()


def _strings(value: object, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from _strings(each, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for number, each in enumerate(value, 1):
            yield from _strings(each, f"{key}[{number}]" if isinstance(each, dict) else key)


def _with_ends(source: Source, text: str) -> str:
    """`text`, of the same characters as the source's, byte for byte as long as the source."""
    old = source.text
    out = []
    at = 0
    for char in old:
        if char == "\r" and text[at : at + 1] != "\r":
            out.append(char)  # of a line end that is two characters there
            continue
        new = text[at]
        size, unit = len(char.encode(source.encoding)), len(new.encode(source.encoding))
        out.append(new * (size // unit) if new != char else new)
        at += 1
    return "".join(out)


def _overwrite(path: Path, data: bytes) -> None:
    """Write over a file where it stands on the medium; its length stays."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        done = 0
        while done < len(data):
            done += os.pwrite(descriptor, data[done:], done)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
