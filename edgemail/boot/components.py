"""The components of the status: what each part of the running relay says of itself, as a condition.

Owns the words and the thresholds. Reads figures that the parts have at hand; never waits, never changes anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgemail.boot.certs import days_left
from edgemail.clock import Clock, SystemClock
from edgemail.errors import Kind
from edgemail.health.board import Condition, Number, State
from edgemail.settings import Configuration, Settings

if TYPE_CHECKING:
    from edgemail.boot.serve import Relay
    from edgemail.boot.survey import Survey
    from edgemail.relay.queue.link import LinkStatus
    from edgemail.relay.queue.sites import SiteStatus

SHOWN_ROUTES: Final = 30  # limit: destinations by MX that the status names, those that fail first
HUNG_SECONDS: Final = 10.0  # limit: a transaction of the spool under way for longer counts as hung
CERTIFICATE_DAYS: Final = 21  # limit: days left at which a certificate is worth a warning
LOOK_SECONDS: Final = 600.0  # limit: age of what is known of a certificate file

Conditions = dict[str, Condition]
Numbers = dict[str, Number]


def listeners(relay: Relay, failing: Callable[[], Mapping[str, str]]) -> Conditions:
    """Where mail is taken; `failing`: what the probe found, by listener."""
    places: dict[str, list[str]] = {}
    for name, host, port in relay.server.addresses:
        places.setdefault(name, []).append(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    found = {}
    for name, addresses in places.items():
        numbers = {"address": ", ".join(addresses)}
        why = failing().get(name, "")
        found[f"listener.{name}"] = (
            Condition(State.FAILED, "no-answer", f"Listener {name} does not answer as it should: {why}", numbers)
            if why
            else Condition(numbers=numbers)
        )
    return found


def spool(relay: Relay, survey: Survey) -> Conditions:
    """The medium and what is wrong with it. That there is no room is the guards' to say."""
    vitals, room, damaged = relay.store.vitals(), relay.store.room(), survey.queue.damaged
    numbers = {"room": room.bytes, "damaged": damaged, "under_way": round(vitals.inside, 1)}
    if not vitals.alive:
        return {"spool": Condition(State.FAILED, "writer-ended", "The spool's writer has ended: restart", numbers)}
    if vitals.trouble:
        message = f"The spool cannot be written: {vitals.trouble}"
        return {"spool": Condition(State.FAILED, "medium-failed", message, numbers)}
    if vitals.inside > HUNG_SECONDS:
        message = f"The medium has not answered for {vitals.inside:.0f} s"
        return {"spool": Condition(State.FAILED, "medium-hangs", message, numbers)}
    if relay.store.lost:
        message = f"Mail may be lost: {relay.store.lost}"
        return {"spool": Condition(State.DEGRADED, "journal-damaged", message, numbers)}
    if damaged:
        message = f"{damaged} damaged messages were set aside; edgemail queue list names them"
        return {"spool": Condition(State.DEGRADED, "damaged-mail", message, numbers)}
    return {"spool": Condition(numbers=numbers)}


def queue(relay: Relay, survey: Survey) -> Conditions:
    """How much waits, and how long. Waiting mail is this box's trade and no fault."""
    found, now = survey.queue, relay.clock.wall()
    numbers = {
        "depth": found.depth,
        "bytes": found.bytes,
        "oldest_age": round(max(0.0, now - found.oldest)) if found.oldest else 0,
        "next_attempt": round(max(0.0, found.next_attempt - now)) if found.next_attempt else 0,
        **found.states,
    }
    return {"queue": Condition(numbers=numbers)}


def routes(sites: Iterable[SiteStatus], now: float) -> Conditions:
    """Each destination. Only a configured one that fails makes the box unwell: its mail has nowhere else to go."""
    chosen = sorted(sites, key=lambda one: (not one.configured, one.word == "up", -one.waiting, one.name))
    found: Conditions = {}
    for one in chosen:
        if not one.configured and len(found) >= SHOWN_ROUTES:
            break
        found[f"route.{one.name}"] = _route(one, now)
    return found


def _route(one: SiteStatus, now: float) -> Condition:
    numbers: Numbers = {
        "waiting": one.waiting,
        "running": one.running,
        "next_probe": round(max(0.0, one.next_probe - now)) if one.next_probe else 0,
        "stands": one.word,
        "paused_since": one.since,
    }
    if one.well:
        return Condition(numbers=numbers)
    destination = one.name.partition(":")[2]
    why = f": {one.reason}" if one.reason else ""
    if one.state == "paused":
        reason = "route-paused" if one.kind in (Kind.ROUTE, None) else f"{one.kind.value}-failed"
        message = f"Mail through {destination} waits{why}"
        return Condition(State.DEGRADED, reason, message, numbers)
    message = f"{destination} {'does not work' if one.state == 'dead' else 'has failed'}{why}"
    return Condition(State.DEGRADED, f"route-{one.state}", message, numbers, counts=one.configured)


def links(found: Iterable[LinkStatus]) -> Conditions:
    """Each uplink. One that is down is no fault of the box: it is the routes without any that make it unwell."""
    return {f"link.{one.name}": _link(one) for one in found}


def _link(one: LinkStatus) -> Condition:
    numbers: Numbers = {"day_bytes": one.day_bytes, "month_bytes": one.month_bytes, "running": one.running}
    for verb, ask in one.asked.items():
        numbers |= {f"{verb}_at": ask.at, f"{verb}_result": ask.answer.value, f"{verb}_words": ask.words}
    if one.state.value == "up":
        return Condition(numbers=numbers)
    message = f"Link {one.name} is {one.state.value}: {one.reason}"
    return Condition(State.DEGRADED, f"link-{one.state.value}", message, numbers, counts=False)


def clock(clock: Clock) -> Conditions:
    """Whether the date may be believed."""
    doubt = (
        clock.doubt() if isinstance(clock, SystemClock) else "" if clock.trusted() else "it is not known to be right"
    )
    if not doubt:
        return {"clock": Condition()}
    message = f"The clock is not trusted: {doubt}. Nothing expires meanwhile"
    return {"clock": Condition(State.DEGRADED, "clock-untrusted", message)}


class Certificates:
    """How long each certificate lasts; its file is looked at now and then."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._known: dict[str, tuple[float, int | None]] = {}  # path -> looked at (monotonic), days

    def conditions(self, configuration: Configuration) -> Conditions:
        found: Conditions = {}
        for settings in (each.settings for each in configuration.listeners):
            path = settings.smtpd_tls_cert_file
            if path and settings.smtpd_tls_security_level != "none":
                found[f"certificate.{Path(path).name}"] = self._condition(path, settings)
        return found

    def _condition(self, path: str, settings: Settings) -> Condition:
        looked, days = self._known.get(path, (float("-inf"), None))
        now = self._clock.monotonic()
        if now - looked > LOOK_SECONDS:
            days = days_left(path, self._clock.wall())
            self._known[path] = (now, days)
        if days is None:
            return Condition(State.DEGRADED, "certificate-unreadable", f"There is no certificate to read in {path}")
        numbers = {"days_left": days}
        if days > CERTIFICATE_DAYS or not self._clock.trusted():
            return Condition(numbers=numbers)
        if days < 0:
            message = f"The certificate {path} has expired"
            return Condition(State.DEGRADED, "certificate-expired", message, numbers)
        return Condition(State.DEGRADED, "certificate-ends", f"The certificate {path} ends in {days} days", numbers)
