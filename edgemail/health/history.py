"""What happened lately, in bounded memory: the last hundred messages with their fate, and a day of traffic.

Owns rings of small values; told by boot.serve what came and what went. Nothing here survives a restart.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Any, Final

from edgemail.clock import Clock
from edgemail.envelope import Envelope, Outcome, Recipient
from edgemail.errors import Kind

RECENT: Final = 100  # limit: messages that the status page remembers
FATES: Final = 3  # limit: recipients of one message whose fate the status page spells out
SLOT_SECONDS: Final = 300  # limit: width of one column of the traffic plot
SLOTS: Final = 288  # limit: columns of the traffic plot, one day
TEXT: Final = 200  # limit: characters of a reply that the status page keeps


@dataclass(slots=True)
class Passage:
    """One message as the page shows it."""

    queue_id: str
    at: float
    sender: str
    recipients: int
    size: int
    fate: str = "waiting"
    fates: dict[str, tuple[str, str]] = field(default_factory=dict)  # recipient -> (fate, text)


class History:
    """Told of each acceptance and each outcome; asked by the page."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._recent: OrderedDict[int, Passage] = OrderedDict()
        self._traffic: deque[list[int]] = deque(maxlen=SLOTS)  # [slot number, in, out, bounced]

    def accepted(self, envelope: Envelope) -> None:
        """A message is in the spool."""
        self._slot()[1] += 1
        self._recent[envelope.id] = Passage(
            envelope.queue_id, self._clock.wall(), str(envelope.sender), len(envelope.recipients), envelope.size
        )
        while len(self._recent) > RECENT:
            self._recent.popitem(last=False)

    def outcome(self, envelope: Envelope, recipient: Recipient, outcome: Outcome) -> None:
        """What became of one recipient at one try."""
        if outcome.delivered:
            fate = "sent"
            self._slot()[2] += 1
        elif outcome.kind is Kind.MESSAGE_PERMANENT:
            fate = "bounced"
            self._slot()[3] += 1
        else:
            fate = "deferred"
        passage = self._recent.get(envelope.id)
        if passage is None:
            return
        address = str(recipient.address)
        if address in passage.fates or len(passage.fates) < FATES:
            passage.fates[address] = (fate, str(outcome.reply)[:TEXT])
        if fate == "bounced" or passage.fate != "bounced":
            passage.fate = fate

    def _slot(self) -> list[int]:
        number = int(self._clock.monotonic() // SLOT_SECONDS)
        if not self._traffic or self._traffic[-1][0] != number:
            self._traffic.append([number, 0, 0, 0])
        return self._traffic[-1]

    def recent(self) -> list[dict[str, Any]]:
        """The newest first."""
        return [
            {
                "id": p.queue_id,
                "at": p.at,
                "from": p.sender,
                "recipients": p.recipients,
                "size": p.size,
                "fate": p.fate,
                "to": [{"address": a, "fate": fate, "text": text} for a, (fate, text) in p.fates.items()],
            }
            for p in reversed(self._recent.values())
        ]

    def traffic(self) -> list[list[int]]:
        """[slots ago, in, out, bounced] for each slot of the last day in which something happened."""
        now = int(self._clock.monotonic() // SLOT_SECONDS)
        return [[now - n, came, went, bounced] for n, came, went, bounced in self._traffic if now - n < SLOTS]
