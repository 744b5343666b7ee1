"""The configuration file: read, filled in, checked all at once.

Owns the way from a path to a `Configuration`. What a section may hold is `sections`', how one value is written is
`values`', what values mean is `checks`', how they are shown is `show`'s; the daemon has it all done by `reading`.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Any, Final

from edgemail.boot import advice, privileges
from edgemail.boot.lines import lines
from edgemail.boot.sections import Reading
from edgemail.errors import ConfigurationError, Problem
from edgemail.settings import Configuration, Listener

MAX_FILE: Final = 1_048_576  # limit: bytes of a configuration file

_AT_LINE: Final = re.compile(r" \(at line (\d+), column \d+\)$")


def load(path: str | Path, *, files: bool = True) -> Configuration:
    """Read and check a configuration file. Raises ConfigurationError, which holds every problem there is.

    `files=False` leaves out what the file names on disk, for commands that need none of it and may not read it.
    """
    data, given = parse(str(path))
    return Reading(str(path), given).configuration(data, files)


def check(configuration: Configuration) -> tuple[tuple[Problem, ...], tuple[Problem, ...]]:
    """Errors and warnings of a configuration that `load` could read; both empty when all is well."""
    try:
        load(configuration.path)
        errors: tuple[Problem, ...] = ()
    except ConfigurationError as error:
        errors = error.problems
    given = configuration.given
    owner = configuration.settings.mail_owner
    if not privileges.known(owner):
        hint = f"useradd --system {owner}"
        problem = Problem("mail_owner", given.get("mail_owner", 0), f"there is no user {owner} to become", hint)
        errors = (*errors, problem)
    warnings = [Problem(k, given.get(k, 0), m.message, m.hint) for k, m in advice.of_configuration(configuration)]
    return errors, tuple(dict.fromkeys(warnings))


def smarthost_configuration(configuration: Configuration, myhostname: str, port: int) -> Configuration:
    """That of a development smarthost beside the relay: on loopback, in clear, taking all mail from this machine."""
    settings = dataclasses.replace(
        configuration.settings,
        myhostname=myhostname,
        mydestination=(),
        mynetworks=("127.0.0.0/8", "::1/128"),
        relay_domains=(),
        smtpd_banner=f"{myhostname} ESMTP smarthost for trials",
        smtpd_tls_security_level="none",
        syslog_name="smarthost",
    )
    listener = Listener("smarthost", "127.0.0.1", port, "lan", settings)
    return Configuration(configuration.path, settings, (listener,))


def parse(path: str) -> tuple[dict[str, Any], dict[str, int]]:
    """The file's TOML, and the line of each key. Raises ConfigurationError for the first thing that is not TOML."""
    try:
        with Path(path).open("rb") as file:
            raw = file.read(MAX_FILE + 1)
        if len(raw) > MAX_FILE:
            raise _unreadable(path, f"is larger than {MAX_FILE} bytes")
        text = raw.decode()
    except OSError as error:
        hint = "name the file with --config or in $EDGEMAIL_CONFIG" if isinstance(error, FileNotFoundError) else ""
        raise _unreadable(path, f"cannot be read: {error.strerror}", hint) from error
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise _unreadable(path, "is not UTF-8 text", line=line) from error
    return parse_text(path, text.replace("\r\n", "\n"))


def parse_text(path: str, text: str) -> tuple[dict[str, Any], dict[str, int]]:
    """The same of a text, its lines ended by a newline alone; `path` names it in messages."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        match = _AT_LINE.search(str(error))
        line = int(match[1]) if match else len(text.splitlines())
        message = _AT_LINE.sub("", str(error)).replace(" (at end of document)", " at the end of the file")
        raise _unreadable(path, f"is not TOML: {message}", _toml_hint(text, line), line) from error
    return data, lines(text)


def _unreadable(path: str, message: str, hint: str = "", line: int = 0) -> ConfigurationError:
    return ConfigurationError(path, (Problem("", line, message, hint),))


def _toml_hint(text: str, line: int) -> str:
    """What is most often wrong in a line that came from main.cf."""
    source = text.splitlines()[line - 1 : line]
    if source and re.search("[\u2018-\u201e\u00ab\u00bb]", source[0]):
        return """write straight quotes: "text\""""
    match = re.match(r"\s*[A-Za-z0-9_]+\s*=\s*([^\"'\[{\s#][^#]*)", source[0]) if source else None
    if match:
        value = match[1].strip()
        if value in ("yes", "no"):
            return f"write {'true' if value == 'yes' else 'false'}"
        return f'text stands in quotes: "{value}"'
    return ""
