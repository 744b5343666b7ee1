"""Postfix's names for the queue commands: the same options, output and exit codes, for scripts that know them.

Each is a program of its own (`postqueue`, `mailq`, `postsuper`, `postcat`, `qshape`); sendmail has a module to itself.
"""

from __future__ import annotations

import getopt
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from edgemail.boot import listing
from edgemail.boot.client import IDS_AT_ONCE, Failure, Office
from edgemail.boot.entries import STATES, Entry, parse_id
from edgemail.boot.frames import EX_OK, EX_USAGE
from edgemail.boot.program import complain, flush, office, program, show_queue
from edgemail.boot.sendmail import sendmail

__all__ = ["mailq", "postcat", "postqueue", "postsuper", "qshape", "sendmail"]

MAILDROP: Final = "maildrop"  # a queue of Postfix that is always empty here
EX_FATAL: Final = 1  # what Postfix's msg_fatal exits with


# postqueue, mailq


POSTQUEUE_USAGE: Final = "usage: postqueue -f | postqueue -i queueid | postqueue -j | postqueue -p | postqueue -s site"


def postqueue(argv: Sequence[str] | None = None) -> int:
    """postqueue(1): list and flush."""
    return program("postqueue", _postqueue, argv)


def mailq(argv: Sequence[str] | None = None) -> int:
    """mailq(1), which is `sendmail -bp`."""
    return program("mailq", lambda given: sendmail(["-bp", *given]), argv)


def _postqueue(argv: list[str]) -> int:
    try:
        options, rest = getopt.getopt(argv, "c:fi:jps:v")
    except getopt.GetoptError as error:
        raise Failure(f"{error}\n{POSTQUEUE_USAGE}", EX_USAGE) from error
    modes = [(o, value) for o, value in options if o in ("-f", "-i", "-j", "-p", "-s")]
    if len(modes) != 1 or rest:
        raise Failure(POSTQUEUE_USAGE, EX_USAGE)
    where = office(dict(options).get("-c", ""))
    mode, value = modes[0]
    if mode in ("-j", "-p"):
        show_queue(where, as_json=mode == "-j")
    elif mode == "-i":
        flush(where, {"ids": [_checked(value)]})
    else:
        flush(where, {"domain": _site(value)} if mode == "-s" else {})
    return EX_OK


def _site(text: str) -> str:
    """A domain or an address literal, as postqueue -s takes it."""
    inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if not inner or len(text) > 255 or any(c.isspace() or c in "[]<>@\"'(),;\\/" for c in inner):
        raise Failure(f'Cannot flush mail queue - invalid destination: "{text[:100]}"', EX_USAGE)
    return text


def _checked(text: str) -> str:
    try:
        parse_id(text)
    except ValueError:
        raise Failure(f'Cannot flush queue ID - invalid name: "{text[:100]}"', EX_USAGE) from None
    return text


# postsuper

_VERBS: Final = {
    "-d": ("queue.delete", "removed", "Deleted"),
    "-h": ("queue.hold", "placed on hold", "Placed on hold"),
    "-H": ("queue.release", "released from hold", "Released from hold"),
    "-r": ("queue.requeue", "requeued", "Requeued"),
}
_REPORTED: Final = ("-r", "-d", "-h", "-H")  # the order of Postfix's report


def postsuper(argv: Sequence[str] | None = None) -> int:
    """postsuper(1): delete, hold, release, requeue. Reports on stderr, exits 0 also when nothing matched."""
    return program("postsuper", _postsuper, argv)


def _postsuper(argv: list[str]) -> int:
    try:
        options, queues = getopt.getopt(argv, "c:d:h:H:r:psSv")
    except getopt.GetoptError as error:
        usage = (
            "usage: postsuper [-c config_dir] [-d queue_id (delete)] [-h queue_id (hold)] [-H queue_id (un-hold)] "
            "[-r queue_id (requeue)] [queue...]"
        )
        raise Failure(f"{error}\n{usage}", EX_FATAL) from error
    where = office(dict(options).get("-c", ""))
    filters: dict[str, Any] = {"states": [q for q in map(_queue, queues) if q != MAILDROP]} if queues else {}
    counts: dict[str, int] = {}
    for option, value in options:
        if option not in _VERBS:  # -p, -s, -S: there is no directory structure to repair
            continue
        counts.setdefault(option, 0)
        if queues and not filters["states"]:
            continue
        if value == "ALL":
            counts[option] += _super(where, option, {**filters, "all": True}, say=False)
            continue
        for ids in _in_groups(_ids(value)):
            counts[option] += _super(where, option, {**filters, "ids": ids}, say=True)
    for option in _REPORTED:
        if option in counts:
            number = counts[option]
            complain("postsuper", f"{_VERBS[option][2]}: {number} message{'' if number == 1 else 's'}")
    return EX_OK


def _super(where: Office, option: str, what: Mapping[str, Any], *, say: bool) -> int:
    verb, done, _ = _VERBS[option]
    count = 0

    def each(line: Mapping[str, Any] | bytes) -> None:
        nonlocal count
        if isinstance(line, bytes):
            return
        for one in line.get("acted", ()):
            count += 1
            if say:
                complain("postsuper", f"{one if isinstance(one, str) else one[0]}: {done}")

    where.ask({"verb": verb, **what}, each, standing=True)
    return count


def _ids(value: str) -> Iterable[str]:
    """The queue ids of one option: itself, or the lines of stdin for "-". What can be none is complained of."""
    for text in (line.strip() for line in sys.stdin) if value == "-" else [value]:
        try:
            parse_id(text)
        except ValueError:
            complain("postsuper", f"warning: invalid mail queue id: {listing.printable(text)[:100]}")
        else:
            yield text


def _in_groups(ids: Iterable[str]) -> Iterable[list[str]]:
    group: list[str] = []
    for one in ids:
        group.append(one)
        if len(group) == IDS_AT_ONCE:
            yield group
            group = []
    if group:
        yield group


def _queue(text: str) -> str:
    """A queue's name, also from a path that ends in it."""
    name = text.rstrip("/").rpartition("/")[2]
    if name not in (*STATES, MAILDROP):
        raise Failure(f"invalid directory name: {listing.printable(text)[:100]}", EX_FATAL)
    return name


# postcat


def postcat(argv: Sequence[str] | None = None) -> int:
    """postcat(1) -q: envelope and content of messages in the queue."""
    return program("postcat", _postcat, argv)


def _postcat(argv: list[str]) -> int:
    usage = "usage: postcat [-b (body text)] [-c config_dir] [-e (envelope records)] [-h (header text)] -q queue_id..."
    try:
        options, ids = getopt.getopt(argv, "bc:dehoqv")
    except getopt.GetoptError as error:
        raise Failure(f"{error}\n{usage}", EX_FATAL) from error
    given = dict(options)
    if "-q" not in given or not ids:
        raise Failure(f"{usage}\nthere are no queue files here: name messages by -q and queue id", EX_FATAL)
    parts = {flag for flag in "beh" if f"-{flag}" in given} or {"b", "e", "h"}
    where = office(given.get("-c", ""))
    for text in ids:
        try:
            parse_id(text)
        except ValueError:
            raise Failure(f"bad mail queue ID: {listing.printable(text)[:100]}", EX_FATAL) from None
        cat = Cat(parts, sys.stdout.buffer.write)
        try:
            where.ask({"verb": "queue.cat", "id": text}, cat.take, standing=True)
        except Failure as failure:
            raise Failure(f"open queue file {text}: {failure}", EX_FATAL) from failure
        cat.end()
        sys.stdout.buffer.flush()
    return EX_OK


class Cat:
    """One message as postcat prints it: the parts that are wanted, lines ended by LF."""

    def __init__(self, parts: Iterable[str], write: Callable[[bytes], object]) -> None:
        """`parts`: e for the envelope, h for the header, b for the body."""
        self._parts = frozenset(parts)
        self._write = write
        self._entry: Entry | None = None
        self._before: bytes | None = b"\n"  # the last octet of the header so far; None once the body has begun
        self._held = b""

    def take(self, line: Mapping[str, Any] | bytes) -> None:
        """A line or a frame of the answer."""
        if isinstance(line, bytes):
            self._content(line)
            return
        self._entry = Entry.of_json(line["entry"])
        if "e" in self._parts:
            self._write((listing.postcat_envelope(self._entry) + listing.postcat_contents(self._entry)).encode())

    def _content(self, data: bytes) -> None:
        data = self._held + data
        self._held = b"\r" if data.endswith(b"\r") else b""
        text = data.removesuffix(b"\r").replace(b"\r\n", b"\n")
        if self._before is None:
            self._part("b", text)
            return
        end = (self._before + text).find(b"\n\n")
        if end < 0:
            self._part("h", text)
            self._before = (self._before + text)[-1:]
        else:
            end += 1 - len(self._before)
            self._before = None
            self._part("h", text[:end])
            self._part("b", text[end:])

    def _part(self, part: str, text: bytes) -> None:
        if part in self._parts:
            self._write(text)

    def end(self) -> None:
        """The message is complete."""
        if self._held:
            self._part("h" if self._before is not None else "b", self._held)
        if "e" in self._parts and self._entry is not None:
            self._write(listing.postcat_end(self._entry).encode())


# qshape


def qshape(argv: Sequence[str] | None = None) -> int:
    """qshape(1): counts by domain and age."""
    return program("qshape", _qshape, argv)


def _qshape(argv: list[str]) -> int:
    usage = (
        "Usage: qshape [ -s ] [ -p ] [ -m <min_subdomains> ] [ -l ]\n"
        "\t[ -b <bucket_count> ] [ -t <bucket_time> ] [ -w <terminal_width> ]\n"
        "\t[ -c <config_directory> ] [ <queue_name> ... ]"
    )
    try:
        options, queues = getopt.getopt(argv, "lhc:psw:b:t:m:n:N:")
        given = dict(options)
        numbers = {flag: int(given[flag]) for flag in ("-w", "-b", "-t", "-m") if flag in given}
    except (getopt.GetoptError, ValueError) as error:
        raise Failure(f"{error}\n{usage}", EX_FATAL) from error
    if "-h" in given:
        print(usage)
        return EX_OK
    states = [q for q in map(_queue, queues or ["incoming", "active"]) if q != MAILDROP]
    shape = listing.Shape(
        now=0.0,
        senders="-s" in given,
        parents="-p" in given,
        linear="-l" in given,
        buckets=max(0, numbers.get("-b", 0)) or 10,
        minutes=max(0, numbers.get("-t", 0)) or 5,
        width=max(80, numbers.get("-w", 80)),
        subdomains=max(0, numbers.get("-m", 0)) or 5,
    )
    if states:
        gather(office(given.get("-c", "")), shape, {"states": states})
    sys.stdout.write(shape.table())
    return EX_OK


def gather(where: Office, shape: listing.Shape, what: Mapping[str, Any]) -> None:
    """Fill `shape` with the counts that the relay has."""

    def each(line: Mapping[str, Any] | bytes) -> None:
        if not isinstance(line, bytes) and "domain" in line:
            shape.counts[line["domain"]] = line["counts"]
            shape.below[line["domain"]] = line["below"]

    request = {
        "verb": "shape",
        "senders": shape.senders,
        "parents": shape.parents,
        "linear": shape.linear,
        "buckets": shape.buckets,
        "minutes": shape.minutes,
    }
    where.ask({**request, **what}, each, standing=True)
