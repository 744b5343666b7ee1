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
        "damaged": [{"queue_id": queue_id(number), "why": why} for number, why in report.damaged],
    }


def _say(found: dict[str, Any], as_json: bool, repaired: bool) -> None:
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return
    print(f"{found['directory']}: {found['messages']} messages of {found['bytes']} bytes are sound")
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
    found = _look(directory)
    _say(found, arguments.json, repaired=False)
    sound: bool = found["sound"]
    return EX_OK if sound else EX_DATAERR


def _repair(arguments: argparse.Namespace) -> int:
    directory, size = _directory(arguments)
    become_owner(directory)
    found = _look(directory)
    try:
        asyncio.run(_set_aside(directory, size, found))
    except SpoolBusy as error:
        raise Failure(f"{error}; stop the relay first", EX_TEMPFAIL) from error
    except SpoolError as error:
        raise Failure(str(error), EX_TEMPFAIL) from error
    _say(found, arguments.json, repaired=True)
    return EX_OK


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
