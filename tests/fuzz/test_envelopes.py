"""A hostile spool: envelopes whose checksums are right and whose values are anything, in queue, routes, notices, lists.

Invariants: no exception; a message is delivered, returned, waiting or on hold, and never forgotten; what the log and
the lists show holds no control.
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from edgemail.boot import listing
from edgemail.boot.entries import Entry, entry
from edgemail.envelope import Disposal, Envelope, Recipient
from edgemail.relay.queue.errands import EXCEPTIONS
from edgemail.relay.send.route import Router
from edgemail.settings import Configuration, Settings
from edgemail.spool import layout
from edgemail.spool.layout import Head
from tests.fuzz.seeds import bounded
from tests.fuzz.test_server import Ear, harmless
from tests.queue import Rig, later, play, refused, sent
from tests.unit.test_spool_layout import ENVELOPE

ANSWERS = st.sampled_from([sent, later, refused])
ROUTER = Router(Configuration("/x", Settings(myhostname="gw.example.com", myorigin="gw.example.com"), ()))


def stored(envelope: Envelope) -> Envelope:
    """As it comes back from the medium."""
    return layout.parse(envelope.id, layout.seal(envelope.id, Head(5, 1, 0), layout.fields_of(envelope)))[1]


@bounded()
@given(envelope=ENVELOPE)
def test_lists(envelope: Envelope) -> None:
    one = Entry.of_json(json.loads(json.dumps(entry(stored(envelope)).as_json())))
    texts = [listing.mailq_entry(one), listing.json_line(one), listing.postcat_envelope(one), listing.show(one, 1e9)]
    shape, causes = listing.Shape(1e9), listing.Causes()
    shape.add(one)
    causes.add(one)
    texts += [shape.table(), *(listing.why_line(cause, 1e9) for cause in causes.found())]
    for text in texts:
        text.encode()
        assert all(harmless(part) for part in text.split("\n")), text


@bounded()
@given(envelope=ENVELOPE)
def test_routes(envelope: Envelope) -> None:
    for recipient in stored(envelope).recipients:
        route, _ = ROUTER.route(envelope, recipient)
        assert route.disposal is not Disposal.RELAY or route.hops


@bounded()
@given(envelope=ENVELOPE, answer=ANSWERS)
def test_queue(envelope: Envelope, answer: object) -> None:
    ear = Ear()
    log = logging.getLogger("edgemail")

    async def scenario(rig: Rig) -> None:
        rig.net.answers["*"] = answer  # type: ignore[assignment]
        odd = stored(replace(envelope, hold=False))
        known = odd.recipients or (Recipient(odd.sender),)
        fields = {name: getattr(odd, name) for name in Envelope.__dataclass_fields__}
        for name in ("id", "size", "sender", "recipients", "received_at"):
            del fields[name]
        kept = await rig.keep(*known, **fields)
        kept = replace(kept, sender=odd.sender, received_at=odd.received_at)
        rig.spool._kept[kept.id] = (rig.spool._kept[kept.id][0], kept)
        await rig.crash()
        await rig.settle()
        await rig.advance(1e5, 5000)
        there = rig.mail()
        known_ids = {kept.id} & there.keys()
        lost = [
            id for id in known_ids if not (there[id].hold or id in rig.scheduler._waiting or rig.scheduler.active(id))
        ]
        assert not lost, there

    log.addHandler(ear)
    before = sum(EXCEPTIONS.values.values())
    try:
        play(scenario)
    finally:
        log.removeHandler(ear)
    assert sum(EXCEPTIONS.values.values()) == before
    assert not [record.getMessage() for record in ear.records if record.exc_info]
