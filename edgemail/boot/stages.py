"""The stages of a box's life, as its init calls them: the start, becoming the relay, confirming, and the hourly upkeep.

Imports for each stage what that one needs: a board starts them one after the other, and a person waits.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from edgemail.boot.frames import EX_OK
from edgemail.boot.places import Places, Ran, run

if TYPE_CHECKING:
    from edgemail.boot.update import Updates

PLACES = Places()


def start() -> int:
    """`edgemail boot`."""
    from edgemail.boot.appliance import Boot
    from edgemail.boot.trial import Problems, Trial

    Boot(PLACES, run).start()
    try:
        Trial(PLACES).note_format()
    except Problems as error:
        print(f"edgemail: {error}", file=sys.stderr)
    return EX_OK


def serve() -> int:
    """`edgemail boot --serve`: does not return."""
    from edgemail.boot import launch

    launch.serve(PLACES)
    return EX_OK


def confirm() -> int:
    """`edgemail boot --confirm`."""
    from edgemail.boot import confirm as confirming
    from edgemail.boot.trial import Trial

    return confirming.confirm(PLACES, Trial(PLACES))


def upkeep() -> int:
    """`edgemail boot --upkeep`."""
    from edgemail.boot import appliance
    from edgemail.boot.trial import Problems
    from edgemail.clock import ntp_synchronised

    appliance.refresh(PLACES)
    if ntp_synchronised() and PLACES.home.is_dir():
        appliance.stamp(PLACES)
    try:
        if updates().by_itself() is not None:
            restart()
    except Problems as error:
        print(f"edgemail: {error}", file=sys.stderr)
    return EX_OK


STAGES = {"": start, "--serve": serve, "--confirm": confirm, "--upkeep": upkeep}


def updates() -> Updates:
    """The box's updates, as its configuration wants them."""
    from edgemail.boot.provision import Site
    from edgemail.boot.update import Updates
    from edgemail.settings import Update

    facts = Site(PLACES.home).facts()
    return Updates(PLACES, facts.update if facts is not None else Update())


def restart() -> Ran:
    """Restart the box."""
    return run(["reboot"], 30.0)
