"""`edgemail boot`, `provision`, `update` and `reset`: the commands of a box that runs from the system image."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from edgemail.boot import stages
from edgemail.boot.client import Failure
from edgemail.boot.frames import EX_CONFIG, EX_OK, EX_OSERR, EX_UNAVAILABLE
from edgemail.boot.places import replace, run


def add_to(commands: Any) -> None:
    """Add them to the command line."""
    boot = commands.add_parser("boot", help="prepare a box that runs from the system image; its init calls it")
    which = boot.add_mutually_exclusive_group()
    which.add_argument("--serve", action="store_true", help="give up root, and become the relay")
    which.add_argument("--confirm", action="store_true", help="wait until it does its work, and mark its slot good")
    which.add_argument("--upkeep", action="store_true", help="what is done once an hour")
    boot.set_defaults(run=_boot)
    provision = commands.add_parser("provision", help="try a file for the boot partition of a system image")
    provision.add_argument("--preview", metavar="FILE", required=True, help="say what a box would say; changes nothing")
    provision.set_defaults(run=_provision)
    reset = commands.add_parser("reset", help="a box that runs from the system image: start it anew")
    reset.add_argument(
        "what", choices=("keep-mail", "erase", "repair"), help="keep-mail forgets the configuration only"
    )
    reset.add_argument("--now", action="store_true", help="and restart")
    reset.set_defaults(run=_reset)
    update = commands.add_parser("update", help="a box that runs from the system image: its releases")
    verbs = update.add_subparsers(title="commands", metavar="COMMAND", required=True)
    status = verbs.add_parser("status", help="what runs, and what there is")
    status.add_argument("--json", action="store_true", help="as JSON")
    check = verbs.add_parser("check", help="ask the server of [update] url")
    install = verbs.add_parser("install", help="put a release on the slot that does not run; it is started next")
    install.add_argument("source", metavar="FILE|URL", help="the bundle; only https")
    install.add_argument("--reboot", action="store_true", help="and restart")
    stick = verbs.add_parser("stick", help="install a newer release from a USB stick, if there is one, and restart")
    good = verbs.add_parser("mark-good", help="what runs is started from now on")
    back = verbs.add_parser("rollback", help="the other slot is started next")
    for one, act in (
        (status, _status),
        (check, _check),
        (install, _install),
        (stick, _stick),
        (good, _mark_good),
        (back, _roll_back),
    ):
        one.set_defaults(run=_refused(act))


def _refused(act: Any) -> Any:
    """What an update is refused for is a sentence and an exit code."""

    def run(arguments: argparse.Namespace) -> int:
        from edgemail.boot.trial import Problems

        try:
            return int(act(arguments))
        except Problems as error:
            raise Failure(str(error), EX_UNAVAILABLE) from error

    return run


def _boot(arguments: argparse.Namespace) -> int:
    chosen = next((name for name in ("serve", "confirm", "upkeep") if getattr(arguments, name)), "")
    return stages.STAGES[f"--{chosen}" if chosen else ""]()


def _provision(arguments: argparse.Namespace) -> int:
    from edgemail.boot import reading
    from edgemail.boot.provision import preview

    path = Path(arguments.preview)
    with tempfile.TemporaryDirectory() as directory:
        outcome = preview(path, Path(directory))
    for note in outcome.notes:
        print(note)
    if outcome.problems:
        print(reading.report(str(path), outcome.problems), file=sys.stderr)
        return EX_CONFIG
    print(f"{path} would be put into force.")
    return EX_OK


def _reset(arguments: argparse.Namespace) -> int:
    from edgemail.boot.data import RESET

    if not os.path.ismount(stages.PLACES.boot):
        raise Failure("this is no box that runs from the system image", EX_UNAVAILABLE)
    replace(stages.PLACES.boot / f"{RESET}.txt", f"{arguments.what}\n")
    if arguments.now:
        _restart()
    else:
        print("It is done at the next start.")
    return EX_OK


def _status(arguments: argparse.Namespace) -> int:
    found = stages.updates().status()
    if arguments.json:
        print(json.dumps(found, indent=2))
        return EX_OK
    print(f"edgemail {found['version']} runs from slot {found['slot']}", end="")
    print("" if found["good"] else ", on trial: it is not marked good yet")
    for slot, about in sorted(found["slots"].items()):
        left = found["attempts"][slot]
        stands = "in use" if slot == found["slot"] else f"{left} starts left" if left else "not to be started"
        print(f"slot {slot}: {about['version']}, {stands}")
    if found["available"].get("newer"):
        print(f"{found['available']['version']} can be installed from {found['url']}")
    if found["progress"]:
        print(" ".join(f"{name}={value}" for name, value in found["progress"].items() if name != "at"))
    return EX_OK


def _check(arguments: argparse.Namespace) -> int:
    manifest = stages.updates().check()
    print(f"{manifest.version} can be installed" if manifest else "what runs is the newest release")
    return EX_OK


def _install(arguments: argparse.Namespace) -> int:
    updates = stages.updates()
    manifest = updates.install(arguments.source)
    incoming = stages.PLACES.incoming.resolve()
    if Path(arguments.source).resolve().parent == incoming:  # it came by the page and has served
        Path(arguments.source).unlink(missing_ok=True)
    print(f"{manifest.version} is started next")
    if arguments.reboot:
        _restart()
    return EX_OK


def _stick(arguments: argparse.Namespace) -> int:
    manifest = stages.updates().from_stick(run)
    if manifest is None:
        print("no stick with a newer release")
        return EX_OK
    print(f"{manifest.version} is started next")
    _restart()
    return EX_OK


def _mark_good(arguments: argparse.Namespace) -> int:
    print("marked good" if stages.updates().mark_good() else "it was marked good before")
    return EX_OK


def _roll_back(arguments: argparse.Namespace) -> int:
    print(f"slot {stages.updates().roll_back()} is started next")
    return EX_OK


def _restart() -> None:
    ran = stages.restart()
    if ran.code != 0:
        raise Failure(f"the box does not restart: {ran.said}", EX_OSERR)
