"""`edgemail spool check` and `edgemail spool repair`: the whole file read, every checksum compared.

`check` changes nothing and may run beside the relay. `repair` wants the relay stopped; it deletes no message, what is
damaged is set aside.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

from edgemail.boot.client import Failure, become_owner
from edgemail.boot.frames import EX_DATAERR, EX_OK, EX_TEMPFAIL
from edgemail.clock import SystemClock
from edgemail.envelope import queue_id
from edgemail.errors import SpoolBusy, SpoolError


def add_to(commands: Any) -> None:
    """Add `spool` and its verbs to the command line."""
    spool = commands.add_parser("spool", help="check or repair the file that holds the mail")
    verbs = spool.add_subparsers(title="commands", metavar="COMMAND", required=True)
    check = verbs.add_parser("check", help="read every record and compare every checksum; changes nothing")
    repair = verbs.add_parser("repair", help="set what is damaged aside; the relay must be stopped")
    for one, run in ((check, _check), (repair, _repair)):
        one.add_argument("--json", action="store_true", help="as JSON")
        one.set_defaults(run=run)


def _directory(arguments: argparse.Namespace) -> tuple[Path, int]:
    from edgemail.boot import config, reading

    settings = config.load(reading.find(arguments.config), files=False).settings
    return Path(settings.queue_directory), settings.spool_size


def _look(directory: Path) -> dict[str, Any]:
    """What a full check found. Raises Failure when the spool cannot be read at all."""
    from edgemail.spool.recover import verify
    from edgemail.spool.store import open_reader

    try:
        with open_reader(directory) as reader:
            report = verify(reader)
    except SpoolError as error:
        raise Failure(str(error), EX_TEMPFAIL) from error
    return {
        "directory": str(directory),
        "sound": report.sound,
        "messages": report.messages,
        "bytes": report.bytes,
        "unfinished": report.unfinished,
        "set_aside": report.set_aside,
        "strays": report.strays,
        "lost": report.lost,
        "nameless": report.nameless,
        "damaged": [{"queue_id": queue_id(number), "why": why} for number, why in report.damaged],
    }


def _pages(directory: Path) -> list[str]:
    """What is wrong with the file's pages, which nothing can be read through. Not while a relay writes them."""
    from edgemail.spool.environment import DATA, holder_of
    from edgemail.spool.pages import inspect

    if holder_of(directory) is not None:
        return []
    try:
        return inspect(directory / DATA, always=True)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise Failure(f"{directory}: {error.strerror}", EX_TEMPFAIL) from error


def _say(found: dict[str, Any], as_json: bool, repaired: bool) -> None:
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return
    print(f"{found['directory']}: {found['messages']} messages of {found['bytes']} bytes are sound")
    if found["lost"]:
        kept = "what there is of it is kept" if repaired else "repair, or the next start, keeps what there is of it"
        print(f"mail may be lost: {found['lost']}; {kept}")
    if found["nameless"]:
        made = "it is made anew" if repaired else "repair, or the next start, makes it anew"
        print(f"the spool's record of itself is missing or damaged: {made}")
    if found["unfinished"]:
        print(f"{found['unfinished']} unfinished: begun and never acknowledged; the next start clears them away")
    for one in found["damaged"]:
        print(f"{one['queue_id']}: damaged: {one['why']}; {'set aside' if repaired else 'repair would set it aside'}")
    if found["strays"]:
        print(f"{found['strays']} records that no release wrote; they are in nobody's way and stay")
    if found["set_aside"]:
        print(f"{found['set_aside']} set aside earlier; edgemail queue list names them")


def _check(arguments: argparse.Namespace) -> int:
    directory, _ = _directory(arguments)
    damage = _pages(directory)
    if damage:
        if arguments.json:
            print(json.dumps({"directory": str(directory), "sound": False, "pages": damage}))
        else:
            for one in damage:
                print(f"{directory}: {one}")
            print("edgemail spool repair saves what can be read into a new file, and keeps this one")
        return EX_DATAERR
    found = _look(directory)
    _say(found, arguments.json, repaired=False)
    sound: bool = found["sound"]
    return EX_OK if sound else EX_DATAERR


def _repair(arguments: argparse.Namespace) -> int:
    directory, size = _directory(arguments)
    become_owner(directory)
    _salvage(directory, size, arguments.json)
    found = _look(directory)
    try:
        asyncio.run(_set_aside(directory, size, found))
    except SpoolBusy as error:
        raise Failure(f"{error}; stop the relay first", EX_TEMPFAIL) from error
    except SpoolError as error:
        raise Failure(str(error), EX_TEMPFAIL) from error
    _say(found, arguments.json, repaired=True)
    return EX_OK


def _salvage(directory: Path, size: int, as_json: bool) -> None:
    """Where pages are damaged: a new file from what can be read."""
    if not _pages(directory):
        return
    from edgemail.spool.salvage import salvage

    try:
        done = salvage(directory, size, SystemClock().wall())
    except SpoolBusy as error:
        raise Failure(f"{error}; stop the relay first", EX_TEMPFAIL) from error
    except SpoolError as error:
        raise Failure(str(error), EX_TEMPFAIL) from error
    if done is None or as_json:
        return
    for one in done.damage:
        print(f"{directory}: {one}")
    print(f"{done.records} records saved; the damaged file is {done.kept}")
    if done.held:
        print(f"{done.held} messages are on hold: they may have been delivered before; edgemail queue release")
    if done.unread:
        print(f"{done.unread} records stand on damaged pages; what they belong to is set aside below")


async def _set_aside(directory: Path, size: int, found: dict[str, Any]) -> None:
    """Open the spool as the relay does, which recovers it, and set the rest of the damage aside."""
    from edgemail.spool.store import open_store

    store = open_store(directory, size, SystemClock())
    try:
        known = {one.id for one in store.damaged()}
        for one in found["damaged"]:
            number = int(one["queue_id"], 16)
            if number not in known:
                await store.quarantine(number, one["why"])
    finally:
        await store.close()
