"""`edgemail queue`: what waits, why, and what a person can do about it.

Each subcommand is a function of the parsed arguments; output is for people, or JSON lines with `--json`. Reading works
with the relay down; so do hold, release, requeue and delete, on the spool itself.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

from edgemail.boot import listing
from edgemail.boot.client import IDS_AT_ONCE, Failure, Office
from edgemail.boot.entries import STATES, Entry, parse_id
from edgemail.boot.flushing import MAX_WAIT, WAIT, Report
from edgemail.boot.frames import EX_CANTCREAT, EX_DATAERR, EX_OK, EX_USAGE
from edgemail.boot.listing import Cause
from edgemail.boot.names import gather

EXAMPLES: Final = """\
examples:
  edgemail queue list --state deferred
  edgemail queue why
  edgemail queue flush --domain example.com
  edgemail queue delete --sender printer@example.com --json
  edgemail queue hold ALL --reason "smarthost is being moved"
  edgemail queue export --recipient bob@example.com --to /mnt/usb/mail

messages are named by queue id, by ALL, by filters (all that are given must fit), or by ids on stdin with "-"
exit codes: 0 done, 64 wrong use, 65 no such message, 75 the relay is not running, 77 not permitted,
78 bad configuration
"""

Lines = Mapping[str, Any] | bytes


def add_to(commands: Any) -> None:
    """Add `queue` and its subcommands to the command line."""
    queue = commands.add_parser(
        "queue",
        help="look at the queue and act on it",
        description="Look at the queue and act on it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = queue.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _verb(verbs, "list", show_list, "the messages, as mailq shows them; also what was set aside as damaged", ids=True)
    _verb(verbs, "show", show_messages, "all that is known of messages", ids=True)
    _verb(verbs, "why", show_why, "why mail waits: a line for each destination and reason", ids=True)
    shape = _verb(verbs, "shape", show_shape, "counts by domain and age in minutes, as qshape")
    shape.add_argument("--senders", action="store_true", help="by the senders' domains")
    flush = _verb(verbs, "flush", flush_queue, "try to deliver now", ids=True)
    flush.add_argument("--id", action="append", dest="also", default=[], metavar="QUEUEID", help="this message")
    flush.add_argument(
        "--route",
        "--site",
        dest="site",
        default="",
        metavar="ROUTE",
        help="what goes by one route: smtp:[isp.example]:587",
    )
    waits = flush.add_mutually_exclusive_group()
    waits.add_argument(
        "--wait", type=_seconds, default=WAIT, metavar="SECONDS", help=f"for what comes of it (default {WAIT:g})"
    )
    waits.add_argument("--no-wait", action="store_const", const=0.0, dest="wait", help="only start it")
    hold = _verb(verbs, "hold", act("queue.hold", "on hold"), "no more attempts until released", ids=True)
    hold.add_argument("--because", default="", metavar="TEXT", help="what the queue shows as the reason")
    _verb(verbs, "release", act("queue.release", "released"), "end the hold", ids=True)
    _verb(verbs, "requeue", act("queue.requeue", "requeued"), "take in again, as new mail with a new id", ids=True)
    _verb(verbs, "delete", act("queue.delete", "deleted"), "remove, without a notice to anybody", ids=True)
    _verb(verbs, "cat", cat_messages, "print the message as it is stored", ids=True)
    export = _verb(verbs, "export", export_messages, "write messages and envelopes into files", ids=True)
    export.add_argument("--to", required=True, metavar="DIRECTORY", help="where: QUEUEID.eml and QUEUEID.json")


def _verb(
    verbs: Any, name: str, run: Callable[[argparse.Namespace], int], help: str, *, ids: bool = False
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", help="JSON lines, for programs")
    if ids:
        parser.add_argument("ids", nargs="*", metavar="QUEUEID", help='queue ids, ALL, or "-" for ids on stdin')
    else:
        parser.set_defaults(ids=[])
    parser.add_argument("--state", action="append", choices=STATES, default=[], help="only messages in this state")
    parser.add_argument("--sender", default="", metavar="ADDRESS", help='only from this sender; "<>" for notices')
    parser.add_argument("--recipient", default="", metavar="ADDRESS", help="only with this recipient")
    parser.add_argument("--domain", default="", help="only with a recipient in this domain")
    parser.add_argument("--reason", default="", metavar="TEXT", help="only with this in a reason")
    return parser


def requests(arguments: argparse.Namespace, *, everything: bool) -> Iterator[dict[str, Any]]:
    """The selections that the arguments mean, ids in groups. `everything`: saying nothing means all."""
    named = list(arguments.ids)
    filters = {
        name: value
        for name, value in (
            ("states", arguments.state),
            ("sender", arguments.sender),
            ("recipient", arguments.recipient),
            ("domain", arguments.domain),
            ("reason", arguments.reason),
        )
        if value
    }
    if "-" in named:
        named = [one for one in named if one != "-"] + [line.strip() for line in sys.stdin if line.strip()]
        if not named:
            return
    if "ALL" in named and len(named) > 1:
        raise Failure("ALL stands alone", EX_USAGE)
    if named == ["ALL"] or not named:
        if not named and not filters and not everything:
            raise Failure("say which messages: queue ids, filters, or ALL", EX_USAGE)
        yield {**filters, "all": True}
        return
    for one in named:
        try:
            parse_id(one)
        except ValueError as error:
            raise Failure(str(error), EX_USAGE) from None
    for start in range(0, len(named), IDS_AT_ONCE):
        yield {**filters, "ids": named[start : start + IDS_AT_ONCE]}


def _print(data: object) -> None:
    sys.stdout.write(json.dumps(data, ensure_ascii=False) + "\n")


def entries(arguments: argparse.Namespace, each: Callable[[Entry], None], *, everything: bool = True) -> int:
    """Hand every message that fits to `each`; how many there were."""
    count = 0

    def line(data: Lines) -> None:
        nonlocal count
        if not isinstance(data, bytes) and "entry" in data:
            count += 1
            each(Entry.of_json(data["entry"]))

    office = Office.of(arguments.config)
    for request in requests(arguments, everything=everything):
        office.ask({"verb": "queue.list", **request}, line, standing=True)
    return count


def show_list(arguments: argparse.Namespace) -> int:
    """queue list"""
    office = Office.of(arguments.config)
    if arguments.json:
        entries(arguments, lambda one: _print(one.as_json()))
    else:
        mailq = listing.Mailq()
        entries(arguments, lambda one: _write(mailq.add(one)))
        _write(mailq.end())

    def damaged(data: Lines) -> None:
        if isinstance(data, bytes) or "damaged" not in data:
            return
        one = data["damaged"]
        if arguments.json:
            _print({"damaged": one})
        else:
            _write(f"set aside: {one['queue_id']}, {listing.moment(one['at'])}: {listing.printable(one['why'])}\n")

    office.ask({"verb": "queue.damaged"}, damaged, standing=True)
    return EX_OK


def _write(text: str) -> None:
    sys.stdout.write(text)


def show_messages(arguments: argparse.Namespace) -> int:
    """queue show"""
    now = time.time()
    shown = 0

    def each(one: Entry) -> None:
        nonlocal shown
        if arguments.json:
            _print(one.as_json())
        else:
            _write(("\n" if shown else "") + listing.show(one, now))
        shown += 1

    if entries(arguments, each, everything=False) == 0:
        raise Failure("no such message in the queue", EX_DATAERR)
    return EX_OK


def show_why(arguments: argparse.Namespace) -> int:
    """queue why"""
    found: list[Cause] = []

    def line(data: Lines) -> None:
        if not isinstance(data, bytes) and "cause" in data:
            found.append(Cause(**data["cause"]))

    office = Office.of(arguments.config)
    for request in requests(arguments, everything=True):
        office.ask({"verb": "queue.why", **request}, line, standing=True)
    now = time.time()
    for cause in found:
        if arguments.json:
            _print(cause.as_json())
        else:
            _write(listing.why_line(cause, now))
    if not found and not arguments.json:
        _write(listing.EMPTY)
    return EX_OK


def show_shape(arguments: argparse.Namespace) -> int:
    """queue shape"""
    shape = listing.Shape(now=0.0, senders=arguments.senders)
    for request in requests(arguments, everything=True):
        gather(Office.of(arguments.config), shape, request)
    if arguments.json:
        heads = shape.heads()
        for domain, counts in shape.rows():
            _print({"domain": domain, "total": counts[0], "ages": dict(zip(heads[1:], counts[1:], strict=True))})
    else:
        _write(shape.table())
    return EX_OK


def flush_queue(arguments: argparse.Namespace) -> int:
    """queue flush"""
    office, report = Office.of(arguments.config), Report()
    arguments.ids = [*arguments.ids, *arguments.also]
    until = time.monotonic() + arguments.wait
    for what in _flushed(arguments):
        left = max(0.1, until - time.monotonic()) if arguments.wait else 0.0
        report.add(office.ask({"verb": "queue.flush", **what, "wait": left}, lambda _: None))
    if arguments.json:
        _print(report.as_json())
    else:
        _write(report.text())
    return EX_OK


def _flushed(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What is to be flushed, as the relay is asked for it. One domain, or all, it finds without reading the queue."""
    if arguments.site:
        yield {"site": arguments.site}
        return
    for request in requests(arguments, everything=True):
        match sorted(request):
            case ["all"]:
                yield {}
            case ["all", "domain"]:
                yield {"domain": request["domain"], "any": True}
            case _:
                yield {"select": request}


def _seconds(text: str) -> float:
    """For argparse, which makes a ValueError its own."""
    value = float(text)
    if not 0 <= value <= MAX_WAIT:
        raise ValueError
    return value


def act(verb: str, done: str) -> Callable[[argparse.Namespace], int]:
    """A subcommand that changes messages: says each id, and how many."""

    def run(arguments: argparse.Namespace) -> int:
        count = 0

        def line(data: Lines) -> None:
            nonlocal count
            if isinstance(data, bytes):
                return
            for one in data.get("acted", ()):
                count += 1
                old, new = one if isinstance(one, list) else (one, "")
                if arguments.json:
                    _print({"queue_id": old, "done": done, **({"new_queue_id": new} if new else {})})
                else:
                    _write(f"{old}: {done}{f' as {new}' if new else ''}\n")

        office = Office.of(arguments.config)
        because = getattr(arguments, "because", "")
        for request in requests(arguments, everything=False):
            office.ask({"verb": verb, "because": because, **request}, line, standing=True)
        if not arguments.json:
            _write(f"{count} message{'' if count == 1 else 's'} {done}\n")
        return EX_OK

    return run


def cat_messages(arguments: argparse.Namespace) -> int:
    """queue cat"""
    for found in _found(arguments):
        _copy(arguments, found, sys.stdout.buffer)
    sys.stdout.buffer.flush()
    return EX_OK


def _found(arguments: argparse.Namespace) -> list[Entry]:
    found: list[Entry] = []
    if entries(arguments, found.append, everything=False) == 0 and arguments.ids not in (["ALL"], ["-"]):
        raise Failure("no such message in the queue", EX_DATAERR)
    return found


def _copy(arguments: argparse.Namespace, one: Entry, file: BinaryIO) -> None:
    def line(data: Lines) -> None:
        if isinstance(data, bytes):
            file.write(data)

    Office.of(arguments.config).ask({"verb": "queue.cat", "id": one.queue_id}, line, standing=True)


def export_messages(arguments: argparse.Namespace) -> int:
    """queue export: a file that exists is left alone, so that a broken-off export can be taken up again."""
    directory = Path(arguments.to)
    count = 0
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for one in _found(arguments):
            message = directory / f"{one.queue_id}.eml"
            if not message.exists():
                partial = directory / f"{one.queue_id}.eml.part"
                with partial.open("wb") as file:
                    _copy(arguments, one, file)
                envelope = json.dumps(one.as_json(), ensure_ascii=False, indent=2) + "\n"
                (directory / f"{one.queue_id}.json").write_text(envelope)
                partial.rename(message)
            count += 1
            if arguments.json:
                _print({"queue_id": one.queue_id, "file": str(message)})
    except OSError as error:
        raise Failure(f"{error.filename or directory}: {error.strerror}", EX_CANTCREAT) from error
    if not arguments.json:
        _write(f"{count} message{'' if count == 1 else 's'} in {directory}\n")
    return EX_OK
