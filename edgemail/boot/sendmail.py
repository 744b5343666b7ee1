"""sendmail(1), as Postfix has it: mail from local programs into the relay, and the old names of queue commands.

The relay must be running: a message is either durable in its spool, or it is not taken and the exit code says so.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from edgemail.boot.client import Failure, Office
from edgemail.boot.compose import Header, HeaderReader, HeaderTooLong, MalformedAddress, Text, addresses
from edgemail.boot.frames import EX_DATAERR, EX_OK, EX_OSERR, EX_TEMPFAIL, EX_USAGE, SOCKET_NAME
from edgemail.boot.program import complain, flush, office, program, show_queue
from edgemail.envelope import Notify

STDIN: Final = 0
READ: Final = 65_536
START_SECONDS: Final = 20.0  # limit: seconds that `sendmail -bd` waits for the relay to answer

WITH_VALUE: Final = "ABCFLNORVXbfhopr"  # options that take one
WITHOUT: Final = "GIUceimntvx"
NOTIFY: Final = {"success": Notify.SUCCESS, "failure": Notify.FAILURE, "delay": Notify.DELAY}


@dataclass(slots=True)
class Request:
    """What the command line asks for."""

    mode: str = "m"  # as in -bm
    sender: str | None = None
    full_name: str | None = None
    take_recipients: bool = False  # -t
    dot_ends: bool = True  # not -i
    body: str = ""
    notify: int | None = None
    ret: str = ""
    envid: str = ""
    config: str = ""
    flush: bool = False  # -q
    interval: bool = False  # -q15m
    site: str = ""  # -qRsite
    id: str = ""  # -qIid
    recipients: list[str] = field(default_factory=list)


def sendmail(argv: Sequence[str] | None = None) -> int:
    """Run it; exits with sysexits numbers, 75 when the relay is down."""
    return program("sendmail", _sendmail, argv)


def _sendmail(argv: list[str]) -> int:
    request = parse(argv)
    if request.take_recipients and (request.mode != "m" or request.flush or request.site or request.id):
        raise Failure("-t can be used only in delivery mode", EX_USAGE)
    if request.recipients and (request.mode != "m" or request.flush or request.site or request.id):
        raise Failure("this mode requires no recipient", EX_USAGE)
    if request.mode == "d":
        return start(office(request.config))
    if request.mode == "p":
        show_queue(office(request.config), name="sendmail")
    elif request.mode == "i":  # there is no alias database to build
        pass
    elif request.site or request.id:
        flush(office(request.config), {"domain": request.site} if request.site else {"ids": [request.id]})
    elif request.flush:
        flush(office(request.config), {})
    elif not request.interval:
        submit(request, office(request.config))
    return EX_OK


def parse(argv: Sequence[str]) -> Request:
    """Read the command line. Raises Failure with 64 for what sendmail(1) does not know."""
    request = Request()
    rest = list(argv)
    while rest and rest[0].startswith("-") and len(rest[0]) > 1:
        word = rest.pop(0)
        if word == "--":
            break
        if word == "-q":  # its value is optional, so never the next word
            request.flush = True
            continue
        letters = word[1:]
        while letters:
            letter, letters = letters[0], letters[1:]
            if letter == "q":
                _queue_option(request, letters)
                break
            if letter in WITH_VALUE:
                if not letters and not rest:
                    raise Failure(f"option -{letter} needs a value", EX_USAGE)
                _option(request, letter, letters or rest.pop(0))
                break
            if letter not in WITHOUT:
                raise Failure(f"unknown option -{letter}; usage: sendmail [options] [recipient ...]", EX_USAGE)
            _flag(request, letter)
    request.recipients = rest
    return request


def _flag(request: Request, letter: str) -> None:
    if letter == "i":
        request.dot_ends = False
    elif letter == "t":
        request.take_recipients = True
    elif letter == "I":
        request.mode = "i"


def _queue_option(request: Request, value: str) -> None:
    if value[0].isdigit():
        request.interval = True
    elif value[0] == "R" and len(value) > 1:
        request.site = value[1:]
    elif value[0] == "I" and len(value) > 1:
        request.id = value[1:]
    else:
        raise Failure(f"-q{value} is not implemented", EX_USAGE)


def _option(request: Request, letter: str, value: str) -> None:
    if letter in "fr":
        request.sender = value
    elif letter == "F":
        request.full_name = value
    elif letter == "C":
        request.config = value
    elif letter == "o" and value[0] == "i":
        request.dot_ends = False
    elif letter == "B":
        if value not in ("7BIT", "8BITMIME"):
            raise Failure("-B option needs 8BITMIME or 7BIT", EX_USAGE)
        request.body = value
    elif letter == "N":
        request.notify = _notify(value)
    elif letter == "R":
        if value.upper() in ("FULL", "HDRS"):
            request.ret = value.upper()
        else:
            complain("sendmail", "warning: bad -R option value -- ignored")
    elif letter == "V":
        if len(value) > 100 or not value.isprintable():
            complain("sendmail", "warning: bad -V option value -- ignored")
        else:
            request.envid = _xtext(value)
    elif letter == "b":
        if value[0] not in "dlmpi":
            raise Failure(f"unsupported: -b{value[0]}", EX_USAGE)
        request.mode = "d" if value[0] == "l" else value[0]
    elif letter == "X":
        raise Failure(f"unsupported: -X{value[0]}", EX_USAGE)


def _notify(value: str) -> int | None:
    """RFC 3461 4.1 as sendmail -N writes it: never, or some of success, failure, delay."""
    words = [word.strip().lower() for word in value.split(",")]
    if words == ["never"]:
        return int(Notify.NEVER)
    if not all(word in NOTIFY for word in words):
        complain("sendmail", f"warning: bad -N option value: '{value[:100]}' -- ignored")
        return None
    found = Notify(0)
    for word in words:
        found |= NOTIFY[word]
    return int(found)


def _xtext(text: str) -> str:
    """RFC 3461 4."""
    return "".join(chr(c) if 0x21 <= c <= 0x7E and c not in b"+=" else f"+{c:02X}" for c in text.encode())


def start(where: Office) -> int:
    """`sendmail -bd`: start the relay in the background, unless it runs."""
    if _answers(where):
        return EX_OK
    command = [sys.executable, "-m", "edgemail.boot.cli", "run", "--config", where.path]
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and child.poll() is None:
        if _answers(where):
            return EX_OK
        time.sleep(0.1)
    if child.poll() is None:
        raise Failure("the relay was started and does not answer yet", EX_TEMPFAIL)
    raise Failure("the relay could not be started", child.returncode or EX_TEMPFAIL)


def _answers(where: Office) -> bool:
    if not (where.directory / SOCKET_NAME).exists():
        return False
    with contextlib.suppress(Failure):
        where.ask({"verb": "status"})
        return True
    return False


def submit(request: Request, where: Office) -> None:
    """Read a message from stdin and hand it to the relay. Raises Failure; then nothing was kept."""
    uid = os.getuid()
    login = _login(uid)
    try:
        sender = _sender(request.sender, login)
        named = [address for one in request.recipients for address in addresses(one)]
    except MalformedAddress as error:
        raise Failure(f"{login}({uid}): {error}", EX_USAGE) from error
    text = Text(dot=request.dot_ends)
    reader = _header(text)
    header = reader.header
    try:
        recipients = named + (header.recipients() if request.take_recipients else [])
    except MalformedAddress as error:
        raise Failure(f"{login}({uid}): unable to extract recipients: {error}", EX_DATAERR) from error
    if request.take_recipients:
        header.without_bcc()
    if not recipients:
        raise Failure(
            f"{login}({uid}): No recipient addresses found in message header"
            if request.take_recipients
            else f"{login}({uid}): Recipient addresses must be specified on the command line or via the -t option",
            EX_USAGE,
        )
    header.complete(sender, _full_name(request.full_name, uid), where.myhostname, time.time(), secrets.token_hex(6))
    envelope: dict[str, Any] = {"verb": "submit", "sender": sender, "recipients": recipients, "envid": request.envid}
    if request.notify is not None:
        envelope["notify"] = request.notify
    if request.ret:
        envelope["ret"] = request.ret
    if request.body:
        envelope["body"] = request.body
    try:
        where.ask(envelope, content=_content(header, reader.rest, text))
    except Failure as failure:
        raise Failure(f"{login}({uid}): {failure}; the message was not taken", failure.code) from failure


def _header(text: Text) -> HeaderReader:
    """Read stdin until the header is complete."""
    reader = HeaderReader()
    try:
        while not reader.complete and not text.ended and (data := _read()):
            reader.feed(text.feed(data))
        if not reader.complete:
            reader.feed(text.finish())
            reader.finish()
    except HeaderTooLong as error:
        raise Failure(str(error), EX_DATAERR) from error
    return reader


def _content(header: Header, rest: bytes, text: Text) -> Iterator[bytes]:
    """Header, then the rest of stdin as it comes."""
    yield bytes(header)
    yield rest
    while not text.ended and (data := _read()):
        yield text.feed(data)
    yield text.finish()


def _read() -> bytes:
    try:
        return os.read(STDIN, READ)
    except OSError as error:
        raise Failure(f"error reading input: {error.strerror}", EX_DATAERR) from error


def _sender(given: str | None, login: str) -> str:
    """The envelope sender: -f, or who runs this. "" is the null sender."""
    if given is None:
        return login
    found = addresses(given)
    if len(found) > 1:
        complain("sendmail", f"warning: -f option specified malformed sender: {given[:100]}")
    return found[0] if found else ""


def _login(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        raise Failure(f"no login name found for user ID {uid}", EX_OSERR) from None


def _full_name(given: str | None, uid: int) -> str:
    """-F, or $NAME, or what the password file says."""
    if given is not None:
        return given
    if "NAME" in os.environ:
        return os.environ["NAME"]
    found = pwd.getpwuid(uid)
    return found.pw_gecos.partition(",")[0].replace("&", found.pw_name.capitalize())
