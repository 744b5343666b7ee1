"""Figures of the running relay that no part counts by itself: brought up to date when somebody reads the metrics.

Owns the gauges of queue, guards, memory and of what was written to the medium.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgemail import __version__
from edgemail.counters import MAX_SERIES, Counter, Gauge
from edgemail.health.guard import RoomGuard, read_field
from edgemail.relay.receive.clerk import MESSAGES

if TYPE_CHECKING:
    from edgemail.boot.serve import Relay
    from edgemail.boot.survey import Survey
    from edgemail.health.guard import Guards

BUILD: Final = Gauge("edgemail_build", "1; what runs stands in the label", ("version",))
START: Final = Gauge("edgemail_uptime_seconds", "Time since the relay was started")
DEPTH: Final = Gauge("edgemail_queue_messages", "Messages in the queue", ("state",))
OLDEST: Final = Gauge("edgemail_queue_oldest_age_seconds", "Age of the oldest message in the queue")
QUEUE_BYTES: Final = Gauge("edgemail_queue_bytes", "Size of all messages in the queue")
CAUSES: Final = Gauge("edgemail_queue_waiting_messages", "Messages by destination and reason", ("route", "reason"))
CAUSE_AGES: Final = Gauge(
    "edgemail_queue_waiting_oldest_age_seconds", "Age of the oldest by destination and reason", ("route", "reason")
)
ROUTES: Final = Gauge(
    "edgemail_route_up",
    "1: it works as far as is known, or its mail waits as it was told to; 0: it does not",
    ("route",),
)
STATES_OF_ROUTES: Final = Gauge("edgemail_route_state", "1; the state stands in the label", ("route", "state"))
SINCE: Final = Gauge("edgemail_route_paused_since_timestamp_seconds", "Since when a route does not work", ("route",))
PROBES: Final = Gauge("edgemail_route_next_probe_timestamp_seconds", "When such a route is tried next", ("route",))
LINKS: Final = Gauge("edgemail_link_up", "1: the link may be used now, 0: it may not", ("link",))
CARRIED: Final = Gauge("edgemail_link_carried_bytes", "Bytes in the link's accounts", ("link", "period"))
GUARDS: Final = Gauge("edgemail_guard_level", "0: calm; higher: more is held back", ("guard",))
SHARES: Final = Gauge("edgemail_guard_used_ratio", "The measured share of what there is", ("guard",))
TRIPS: Final = Counter("edgemail_guard_trips", "How often a guard left its calm", ("guard",))
MEMORY: Final = Gauge("edgemail_memory_bytes", "Memory of the process and its limit", ("kind",))
DESCRIPTORS: Final = Gauge("edgemail_open_descriptors", "Open file descriptors")
ROOM: Final = Gauge("edgemail_spool_room_bytes", "What new mail may still take")
DAMAGED: Final = Gauge("edgemail_spool_damaged_messages", "Messages that were set aside")
WRITTEN: Final = Counter("edgemail_medium_written_bytes", "Bytes that the process had written to media")
PER_MESSAGE: Final = Gauge("edgemail_medium_written_bytes_per_message", "The same for each message taken, on average")
PROBE: Final = Gauge("edgemail_probe_up", "1: the last probe of ourselves went through")

MAX_REASON: Final = 80  # limit: characters of a reason that stands in a label


class Gauges:
    """Sets the gauges. Made once; `refresh` is called before the metrics are rendered."""

    def __init__(self, relay: Relay, guards: Guards, survey: Survey) -> None:
        self._relay = relay
        self._guards = guards
        self._survey = survey
        self._started = relay.clock.monotonic()
        BUILD.set(1, __version__)

    def refresh(self) -> None:
        self._queue()
        for guard in self._guards.all:
            level = guard.full if isinstance(guard, RoomGuard) else guard.level
            GUARDS.set(float(level), guard.name)
            SHARES.set(guard.value, guard.name)
            TRIPS.values[(guard.name,)] = float(guard.trips)
        for gauge in (ROUTES, STATES_OF_ROUTES, SINCE, PROBES):
            gauge.values.clear()
        for site in self._relay.scheduler.sites():
            ROUTES.set(float(site.well), site.name)
            STATES_OF_ROUTES.set(1.0, site.name, site.word)
            if site.since:
                SINCE.set(site.since, site.name)
            if site.next_probe:
                PROBES.set(site.next_probe, site.name)
        LINKS.values.clear()
        CARRIED.values.clear()
        for link in self._relay.links.snapshot():
            LINKS.set(float(link.state.value == "up"), link.name)
            CARRIED.set(float(link.day_bytes), link.name, "day")
            CARRIED.set(float(link.month_bytes), link.name, "month")
        reading = self._guards.reading
        for kind in ("anonymous", "working_set", "limit", "available", "total"):
            MEMORY.set(float(getattr(reading, kind)), kind)
        START.set(self._relay.clock.monotonic() - self._started)
        DESCRIPTORS.set(float(sum(1 for _ in Path("/proc/self/fd").iterdir())))
        ROOM.set(float(self._relay.store.room().bytes))
        DAMAGED.set(float(self._survey.queue.damaged))
        PROBE.set(0.0 if self._relay.status.prober.verdict else 1.0)
        self._written()

    def _queue(self) -> None:
        from edgemail.boot.entries import STATES

        queue, now = self._survey.queue, self._relay.clock.wall()
        for state in STATES:
            DEPTH.set(float(queue.states.get(state, 0)), state)
        OLDEST.set(max(0.0, now - queue.oldest) if queue.oldest else 0.0)
        QUEUE_BYTES.set(float(queue.bytes))
        CAUSES.values.clear()
        CAUSE_AGES.values.clear()
        for cause in queue.causes:  # most messages first: past the bound all go into one series
            series = cause.destination, f"{cause.status} {cause.reason}".strip()[:MAX_REASON] or cause.state
            if series not in CAUSES.values and len(CAUSES.values) >= MAX_SERIES:
                series = "other", "other"
            CAUSES.values[series] = CAUSES.values.get(series, 0.0) + cause.messages
            CAUSE_AGES.values[series] = max(CAUSE_AGES.values.get(series, 0.0), now - cause.oldest)

    def _written(self) -> None:
        """proc_pid_io(5); not to be had where a process that changed its user may not read its own."""
        written = read_field(Path("/proc/self/io"), "write_bytes")
        if not written:
            return
        WRITTEN.values[()] = float(written)
        taken = sum(MESSAGES.values.values())
        if taken:
            PER_MESSAGE.set(written / taken)
