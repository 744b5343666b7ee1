"""How the queue is shown: Postfix's formats to the byte, and edgemail's own. Text from values; no IO.

The formats are those of Postfix 3.7: showq_compat.c and showq_json.c for mailq, postcat.c, qshape.pl.
"""

from __future__ import annotations

import json
import math
import re
import time
from dataclasses import dataclass, field
from typing import Any, Final

from edgemail.boot.entries import ACTIVE, DEFERRED, HOLD, Entry, Waiting
from edgemail.dates import local_time

HEADING: Final = "{:<11} {:>7} {:<20} {}\n".format(
    "-Queue ID-", "--Size--", "----Arrival Time----", "-Sender/Recipient-------"
)
EMPTY: Final = "Mail queue is empty\n"
NULL_SENDER_NAME: Final = "MAILER-DAEMON"  # empty_address_recipient
REASON_WIDTH: Final = 76
NO_TEXT: Final = "\u2028\u2029"  # line separators; half surrogates are told by their range
NO_REASON: Final = "reason unavailable"
SUSPENDED: Final = "delivery temporarily suspended: "  # not tried, because others were: the same reason to a person
MAX_CAUSES: Final = 1000  # limit: lines of `edgemail queue why`; what is beyond is summed up
MAX_DOMAINS: Final = 5000  # limit: lines of qshape; what is beyond is summed up
OTHER_DOMAINS: Final = "OTHER"


def printable(text: str) -> str:
    """Text as a terminal may have it: controls, and what is no character, made '?'."""
    return "".join(
        "?" if not c.isprintable() and (ord(c) <= 0x9F or 0xD800 <= ord(c) < 0xE000 or c in NO_TEXT) else c
        for c in text
    )


def reason_of(entry: Entry, recipient: Waiting) -> str:
    """Why a recipient waits; what a held message waits for where there was no attempt."""
    return recipient.reason or entry.hold_reason


class Mailq:
    """`postqueue -p`: heading, messages, trailer, as they come."""

    def __init__(self) -> None:
        self._count = self._size = 0

    def add(self, one: Entry) -> str:
        """The text of one more message."""
        before = "\n" if self._count else HEADING
        self._count += 1
        self._size += one.message_size
        return before + mailq_entry(one)

    def end(self) -> str:
        """What stands below the last one."""
        if self._count == 0:
            return EMPTY
        return f"\n-- {self._size // 1024} Kbytes in {self._count} Request{'' if self._count == 1 else 's'}.\n"


def mailq_entry(one: Entry) -> str:
    """One message: a line, then each recipient, with a reason above where it changes."""
    mark = {ACTIVE: "*", HOLD: "!"}.get(one.queue_name, "")
    arrival = time.asctime(local_time(one.arrival_time))[:19] + " "
    sender = printable(one.sender) or NULL_SENDER_NAME
    lines = [f"{one.queue_id + mark:<11} {one.message_size:>7} {arrival:>20} {sender}\n"]
    shown = ""
    for recipient in one.recipients:
        reason = printable(reason_of(one, recipient))
        if reason != shown:
            shown = reason
            text = reason or NO_REASON
            lines.append(f"{'':>{max(0, REASON_WIDTH - len(text.encode()))}}({text})\n")
        lines.append(f"{'':<11} {'':>7} {'':<20} {printable(recipient.address)}\n")
    return "".join(lines)


_ESCAPES: Final = {"\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\", '"': '\\"'}


def _quoted(text: str) -> str:
    """A JSON string as Postfix writes it: UTF-8 as it is, other controls as \\u00XX."""
    out = "".join(_ESCAPES.get(c) or (f"\\u{ord(c):04X}" if _escaped(ord(c)) else c) for c in text)
    return '"' + out.encode("utf-8", "replace").decode() + '"'


def _escaped(code: int) -> bool:
    return code < 0x20 or 0x7F <= code <= 0x9F or 0x2028 <= code <= 0x2029


def json_line(one: Entry) -> str:
    """`postqueue -j`: one message, one line, Postfix's members and spacing."""
    recipients = []
    for recipient in one.recipients:
        reason = reason_of(one, recipient)
        delay = f', "delay_reason": {_quoted(reason)}' if reason else ""
        recipients.append(f'{{"address": {_quoted(recipient.address)}{delay}}}')
    return (
        f'{{"queue_name": {_quoted(one.queue_name)}, "queue_id": {_quoted(one.queue_id)}, '
        f'"arrival_time": {int(one.arrival_time)}, "message_size": {one.message_size}, "forced_expire": false, '
        f'"sender": {_quoted(one.sender or NULL_SENDER_NAME)}, "recipients": [{", ".join(recipients)}]}}\n'
    )


# postcat


def postcat_path(one: Entry) -> str:
    """What stands where Postfix names a file."""
    return f"{one.queue_name}/{one.queue_id}"


def postcat_envelope(one: Entry) -> str:
    """`postcat -e`: the records before the message."""
    size = one.message_size
    arrival = time.asctime(local_time(one.arrival_time))
    lines = [
        f"*** ENVELOPE RECORDS {postcat_path(one)} ***",
        f"message_size: {size:>15} {0:>15} {len(one.recipients):>15} {0:>15} {size:>15} {int(one.smtputf8):>15}",
        f"message_arrival_time: {arrival}",
        f"create_time: {arrival}",
        f"named_attribute: log_ident={one.queue_id}",
        "named_attribute: rewrite_context=local",  # bare addresses are completed, whoever sent them
    ]
    if one.envid:
        lines.append(f"named_attribute: envelope_id={printable(one.envid)}")
    if one.ret:
        lines.append(f"named_attribute: ret_flags={1 if one.ret == 'FULL' else 2}")
    lines.append(f"sender: {_unquoted(one.sender)}")
    if one.client_address:
        lines += [f"named_attribute: {name}={printable(value)}" for name, value in _client(one)]
    for recipient in one.recipients:
        address = _unquoted(recipient.address)
        if recipient.orcpt:
            lines.append(f"named_attribute: dsn_orig_rcpt={printable(recipient.orcpt)}")
        if recipient.notify is not None:
            lines.append(f"named_attribute: notify_flags={recipient.notify << 1 or 1}")  # Postfix: NEVER is 1
        lines += [f"original_recipient: {address}", f"recipient: {address}"]
    return "\n".join(lines) + "\n"


def _unquoted(address: str) -> str:
    """As Postfix's records have it: a quoted local part without its quotes."""
    local, at, domain = address.rpartition("@")
    if local.startswith('"') and local.endswith('"'):
        local = re.sub(r"\\(.)", r"\1", local[1:-1])
    return printable(local + at + domain)


def _client(one: Entry) -> list[tuple[str, str]]:
    """Postfix's attributes of the client, as far as they are kept here."""
    family = "10" if ":" in one.client_address else "2"  # AF_INET6, AF_INET
    client = [
        ("log_client_name", one.client_name),
        ("log_client_address", one.client_address),
        ("log_message_origin", f"{one.client_name}[{one.client_address}]"),
        ("log_helo_name", one.helo),
        ("log_protocol_name", one.protocol),
        ("client_name", one.client_name),
        ("client_address", one.client_address),
        ("helo_name", one.helo),
        ("protocol_name", one.protocol),
        ("client_address_type", family),
    ]
    return [*client, ("sasl_username", one.sasl_username)] if one.sasl_username else client


def postcat_contents(one: Entry) -> str:
    """The marker above the message."""
    return f"*** MESSAGE CONTENTS {postcat_path(one)} ***\n"


def postcat_end(one: Entry) -> str:
    """The markers below it."""
    path = postcat_path(one)
    return f"*** HEADER EXTRACTED {path} ***\n*** MESSAGE FILE END {path} ***\n"


# qshape


@dataclass(slots=True)
class Shape:
    """Counts by domain and age, and their table. Options as those of qshape(1)."""

    now: float
    senders: bool = False  # -s
    parents: bool = False  # -p
    buckets: int = 10  # -b
    minutes: int = 5  # -t
    linear: bool = False  # -l
    width: int = 80  # -w
    subdomains: int = 5  # -m
    counts: dict[str, list[int]] = field(default_factory=dict)
    below: dict[str, int] = field(default_factory=dict)

    def add(self, one: Entry) -> None:
        """Count one message: by each recipient, or once by its sender."""
        bucket = self._bucket(one.arrival_time)
        for address in [one.sender] if self.senders else [r.address for r in one.recipients]:
            self._count("TOTAL", bucket)
            name = address.lower().rpartition("@")[2] if address else NULL_SENDER_NAME
            name = name.replace("..", ".").strip(".") or name
            fresh = False
            while True:
                first = self._count(name, bucket)
                if fresh:
                    self.below[name] = self.below.get(name, 0) + 1
                fresh = first
                parent = name.lstrip(".").partition(".")[2]
                if not self.parents or "." not in parent:
                    break
                name = "." + parent

    def _count(self, name: str, bucket: int) -> bool:
        if name not in self.counts and len(self.counts) >= MAX_DOMAINS:
            name = OTHER_DOMAINS
        row = self.counts.setdefault(name, [0] * (self.buckets + 1))
        row[0] += 1
        row[bucket] += 1
        return row[0] == 1

    def _bucket(self, arrival: float) -> int:
        age = (int(self.now) - int(arrival)) / (60 * self.minutes)
        if age < 1:
            return 1
        return min(self.buckets, int(age + 1) if self.linear else 2 + int(math.log(age) / math.log(2)))

    def heads(self) -> list[str]:
        """T, then the upper bounds of the ages in minutes; the last has none."""
        bounds = [self.minutes * ((i + 1) if self.linear else 2**i) for i in range(max(1, self.buckets - 1))]
        if self.buckets == 1:
            return ["T", "0+"]
        return ["T", *map(str, bounds), f"{bounds[-1]}+"]

    def rows(self) -> list[tuple[str, list[int]]]:
        """TOTAL first, then by count; parents with too few subdomains left out."""
        counts = {"TOTAL": [0] * (self.buckets + 1), **self.counts}
        order = sorted(counts, key=lambda name: (-counts[name][0], len(name), name != "TOTAL", name))
        order.sort(key=lambda name: name != "TOTAL")
        return [
            (name, counts[name])
            for name in order
            if not (name.startswith(".") and self.below.get(name, 0) < self.subdomains)
        ]

    def table(self) -> str:
        """The text that qshape prints."""
        heads = self.heads()
        totals = self.counts.get("TOTAL", [0] * (self.buckets + 1))
        widths = []
        for head, total in zip(heads, totals, strict=True):
            length = max(len(head), len(str(total)))
            widths.append(length + 1 if length > 2 else 3)
        room = max(18, self.width - sum(widths))
        lines = [_row("", heads, widths, room)]
        lines += [_row(name, [str(n) for n in row], widths, room) for name, row in self.rows()]
        return "".join(lines)


def _row(name: str, cells: list[str], widths: list[int], room: int) -> str:
    name = printable(name)
    if len(name) > room:
        name = ".+" + name[2 - room :] if name.startswith(".") else "+" + name[1 - room :]
    return f"{name:>{room}}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)) + "\n"


# why


@dataclass(slots=True)
class Cause:
    """Messages that wait at one destination for one reason."""

    destination: str
    reason: str
    status: str
    state: str
    messages: int = 0
    recipients: int = 0
    oldest: float = 0.0  # arrival, wall clock
    next_attempt: float = 0.0  # the earliest; 0.0 = as soon as possible

    def as_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


class Causes:
    """Why mail waits: destinations and reasons with their counts, gathered message by message."""

    def __init__(self) -> None:
        self.messages = 0
        self._found: dict[tuple[str, str, str], Cause] = {}

    def add(self, one: Entry) -> None:
        """Count a message once for each destination and reason that it waits for."""
        self.messages += 1
        seen = set()
        for recipient in one.recipients:
            reason = reason_of(one, recipient).removeprefix(SUSPENDED)
            key = (recipient.site or recipient.domain or recipient.address, reason, one.queue_name)
            if key not in self._found and len(self._found) >= MAX_CAUSES:
                key = ("elsewhere", "for other reasons", one.queue_name)
            cause = self._found.get(key)
            if cause is None:
                cause = self._found[key] = Cause(key[0], key[1], recipient.status, one.queue_name)
                cause.oldest, cause.next_attempt = one.arrival_time, one.next_attempt
            cause.recipients += 1
            if key not in seen:
                seen.add(key)
                cause.messages += 1
            cause.oldest = min(cause.oldest, one.arrival_time)
            cause.next_attempt = min(cause.next_attempt, one.next_attempt)

    def found(self) -> list[Cause]:
        """All of them, most messages first."""
        return sorted(self._found.values(), key=lambda c: (-c.messages, c.destination, c.reason))


def why_line(cause: Cause, now: float) -> str:
    """One line: how many, where, how old, when next, and the reason."""
    if cause.state == HOLD:
        upcoming = "on hold"
    elif cause.state == ACTIVE:
        upcoming = "being tried"
    elif cause.next_attempt <= now:
        upcoming = "next now"
    else:
        upcoming = f"next in {span(cause.next_attempt - now)}"
    silent = {HOLD: "held by hand", DEFERRED: NO_REASON}.get(cause.state, "not tried yet")
    reason = printable(cause.reason) or silent
    where, age = printable(cause.destination), span(now - cause.oldest)
    return f"{cause.messages:>6}  {where}  oldest {age}, {upcoming}: {reason}\n"


def span(seconds: float) -> str:
    """A time span in two words at most: "45s", "12m", "3h 5m", "4d 2h"."""
    whole = max(0, int(seconds))
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days}d {hours}h" if hours else f"{days}d"
    if hours:
        return f"{hours}h {minutes}m" if minutes else f"{hours}h"
    return f"{minutes}m" if minutes else f"{whole}s"


def show(one: Entry, now: float) -> str:
    """`edgemail queue show`: everything known of one message, a name and a value a line."""
    rows: list[tuple[str, object]] = [
        ("queue id", one.queue_id),
        ("state", one.queue_name + (f" ({one.hold_reason})" if one.hold_reason else "")),
        ("arrived", f"{moment(one.arrival_time)} ({span(now - one.arrival_time)} ago)"),
        ("size", f"{one.message_size} bytes"),
        ("sender", one.sender or "<> (a notice)"),
        ("message-id", one.message_id),
        ("client", f"{one.client_name}[{one.client_address}]" if one.client_address else "this box"),
        ("protocol", one.protocol),
        ("login", one.sasl_username),
        ("envelope id", one.envid),
        ("attempts", one.attempts),
        ("last attempt", moment(one.last_attempt) if one.last_attempt else ""),
        ("next attempt", moment(one.next_attempt) if one.next_attempt and one.queue_name != HOLD else ""),
    ]
    lines = [f"{name + ':':<14}{printable(str(value))}\n" for name, value in rows if value != ""]
    for recipient in one.recipients:
        lines.append(f"{'recipient:':<14}{printable(recipient.address)}\n")
        where = recipient.relay or recipient.site
        if where:
            lines.append(f"{'':<14}  relay {printable(where)}\n")
        reason = reason_of(one, recipient)
        if reason:
            lines.append(f"{'':<14}  {printable(f'{recipient.status} {reason}'.strip())}\n")
    return "".join(lines)


def moment(at: float) -> str:
    """A local date as RFC 3339 has it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", local_time(at))


def compact(data: object) -> str:
    """A JSON line."""
    return json.dumps(data, ensure_ascii=False, separators=(", ", ": ")) + "\n"
