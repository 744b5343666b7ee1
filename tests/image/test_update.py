"""Releases that are good, broken, rotten, cut, forged, for another board, older: the box ends where it should.

A release goes in by the page, as a person would give it; what happens then is read from the serial line, the page and
the card.
"""

from __future__ import annotations

import http.client
import json
import random
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgemail.boot import bootstate
from image import build, signing
from image.card import SLOT_A, SLOT_B
from image.definition import SLOT_SIZE
from tests.image.conftest import configuration
from tests.image.cuts import Medium, cuts, entries
from tests.image.machine import SLACK, Card, Machine
from tests.image.releases import bundle_of, slot_of
from tests.image.test_life import send
from tests.scenarios.sink import Sink, sink

TOKEN = "8f14e45fceea167a5a36dedd4bea2543"
BROKEN_SECONDS = 120.0  # until the old release serves again
HANG_SECONDS = 30.0  # until it starts again
READY = "edgemail: ready"
SLOTS_CUT = 200  # cuts of an update that are looked at


def settings(port: int) -> str:
    soon = 'minimal_backoff_time = "5s"\nmaximal_backoff_time = "20s"\nqueue_run_delay = "5s"'
    text = configuration(port, more=soon) + 'token_file = "secrets/token"\n\n'
    return text + f'[secrets]\ntoken = "{TOKEN}"\n'


@dataclass
class Releases:
    """Slots of other releases, made once."""

    made: build.Build
    directory: Path

    def slot(self, version: str, serial: int, files: dict[str, str] | None = None) -> Path:
        found = self.directory / version / f"{version}.slot"
        if not found.exists():
            slot_of(self.made, found.parent, files or {}, version=version, serial=serial)
        return found

    def good(self) -> Path:
        return bundle_of(self.made, self.slot("0.9.1", 2), version="0.9.1", serial=2)

    def broken(self) -> Path:
        """Its relay never comes up."""
        content = self.slot("0.9.2", 3, {"etc/init.d/relay": "#!/bin/sh\nexec sleep 1000\n"})
        return bundle_of(self.made, content, version="0.9.2", serial=3)


@pytest.fixture(scope="module")
def releases(made: build.Build, tmp_path_factory: pytest.TempPathFactory) -> Releases:
    return Releases(made, tmp_path_factory.mktemp("releases"))


@pytest.fixture(scope="module")
def relays() -> Iterator[Sink]:
    with sink() as found:
        yield found


@pytest.fixture(scope="module")
def fresh(image: Path, relays: Sink, tmp_path_factory: pytest.TempPathFactory) -> Card:
    """A card that was started once: slot A is good, there is a data partition."""
    card = Card.flashed(image, tmp_path_factory.mktemp("fresh") / "card.img")
    card.put("edgemail.toml", settings(relays.port))
    with Machine(card) as machine:
        machine.wait_for(READY, 240)
    return card


@pytest.fixture
def card(fresh: Card, tmp_path: Path) -> Card:
    return fresh.copy(tmp_path / "card.img")


def state(card: Card) -> bootstate.BootState:
    for at in (bootstate.PRIMARY, bootstate.SPARE):
        try:
            return bootstate.BootState.of(card.read(at, 512))
        except bootstate.StateDamaged:
            continue
    raise AssertionError("no boot state")


def give(machine: Machine, bundle: bytes) -> int:
    """POST a release to the page."""
    connection = http.client.HTTPConnection("127.0.0.1", machine.port(8025), timeout=120)
    headers = {"Authorization": f"Bearer {TOKEN}", "Host": "10.0.2.15:8025", "Content-Length": str(len(bundle))}
    try:
        connection.request("POST", "/update", bundle, headers)
        return connection.getresponse().status
    finally:
        connection.close()


def progress(machine: Machine) -> dict[str, object]:
    status, body = machine.get("/update")
    return json.loads(body) if status == 200 else {}


def ended(machine: Machine, seconds: float = 300) -> dict[str, object]:
    """How the update that was given went."""
    until = time.monotonic() + seconds
    while (found := progress(machine)).get("state") not in ("failed", "installed"):
        assert time.monotonic() < until, found
        time.sleep(0.3)
    return found


def subjects(relays: Sink) -> list[str]:
    """Of the mail that the test sent; the box's own notice of a smarthost that is away goes to its administrator."""
    mine = [one for one in relays.received if "admin@" not in one.rcpt[0]]
    return sorted(re.findall(rb"Subject: ([^\r]*)", one.content)[-1].decode() for one in mine)


def sent(machine: Machine, words: str, count: int) -> list[str]:
    """So many messages handed to the box; their subjects."""
    subjects = [f"{words} {number}" for number in range(count)]
    for each in subjects:
        send(machine, each)
    return subjects


def test_a_good_release_keeps_the_mail(card: Card, releases: Releases, relays: Sink) -> None:
    """Mail that waits before the update leaves after it; mail that comes meanwhile is taken."""
    bundle = releases.good().read_bytes()
    relays.received.clear()
    relays.stop()
    with Machine(card) as machine:
        machine.wait_for(READY, 240)
        waiting = sent(machine, "before the update", 20)
        began = machine.cpu()
        assert give(machine, bundle) == 202
        while progress(machine).get("state") not in ("installing", "installed", None):
            time.sleep(0.2)
        send(machine, "during the update")
        machine.wait_for("slot B, 2 tries left", 300)
        written = machine.cpu() - began
        machine.wait_for(READY, 240, times=2)
        print(f"written, verified, restarted: {written:.1f} CPU seconds; serving: {machine.cpu() - began:.1f}")
        assert progress(machine)["version"] == "0.9.1"
        relays.start()
        for text in (*waiting[:1], "after the update"):
            send(machine, text)
        wanted = sorted([*waiting, waiting[0], "during the update", "after the update"])
        until = time.monotonic() + 400
        while (got := subjects(relays)) != wanted:
            assert time.monotonic() < until and len(got) <= len(wanted), got
            time.sleep(0.5)
    assert state(card).left == {"A": 3, "B": 3}
    assert state(card).order == ("B", "A")


@pytest.mark.long  # it waits for gates and watchdogs: minutes, bounded by the clock
def test_a_broken_release_is_left(card: Card, releases: Releases, relays: Sink) -> None:
    with Machine(card) as machine:
        machine.wait_for(READY, 240)
        assert give(machine, releases.broken().read_bytes()) == 202
        machine.wait_for("slot B, 2 tries left", 300)
        began, spent = time.monotonic(), machine.cpu()
        machine.wait_for("slot A, 2 tries left", 400, times=2)
        machine.wait_for(READY, 240, times=2)
        took, spent = time.monotonic() - began, machine.cpu() - spent
        print(f"back on the old release after {took:.0f} s ({spent:.0f} CPU seconds)")
        assert min(took, spent) <= SLACK * BROKEN_SECONDS
        relays.received.clear()
        send(machine, "served again")
        relays.wait_for(1, 240)


@pytest.mark.long  # two starts, and a minute of another release
def test_rollback_with_a_full_queue(card: Card, releases: Releases, relays: Sink) -> None:
    """Mail taken before an update, and by the release that is left again, all leaves by the release before."""
    leave = "#!/bin/sh\nexport PATH=/usr/bin:/usr/sbin\nsleep 90\nedgemail update rollback\nsync\nreboot\n"
    content = releases.slot("0.9.3", 4, {"etc/init.d/confirm": leave})
    bundle = bundle_of(releases.made, content, version="0.9.3", serial=4).read_bytes()
    relays.received.clear()
    relays.stop()
    with Machine(card) as machine:
        machine.wait_for(READY, 240)
        before = sent(machine, "before the update", 30)
        assert give(machine, bundle) == 202
        machine.wait_for("slot B, 2 tries left", 300)
        machine.greeting(240)
        meanwhile = sent(machine, "by the release that is left", 10)
        machine.wait_for("slot A, 2 tries left", 400, times=2)
        machine.wait_for(READY, 240, times=2)
        relays.start()
        send(machine, "after all")
        wanted = sorted([*before, *meanwhile, "after all"])
        until = time.monotonic() + 400
        while (got := subjects(relays)) != wanted:
            assert time.monotonic() < until and len(got) <= len(wanted), got
            time.sleep(0.5)
    assert state(card).order == ("A", "B")


def forged(bundle: bytes) -> dict[str, tuple[bytes, str]]:
    flipped = bytearray(bundle)
    flipped[len(bundle) // 2] ^= 1
    signed = bytearray(bundle)
    signed[40] ^= 1
    return {
        "signature": (bytes(signed), "signature"),
        "payload": (bytes(flipped), "not what was signed"),
        "truncated": (bundle[: len(bundle) * 2 // 3], "too early"),
        "longer": (bundle + b"x", "longer"),
    }


def test_what_is_no_release_for_this_box_changes_nothing(card: Card, releases: Releases, tmp_path: Path) -> None:
    made = releases.made
    good = releases.good()
    content = releases.slot("0.9.1", 2)
    foreign = tmp_path / "keys"
    signing.make(foreign)
    tries = forged(good.read_bytes())
    other = bundle_of(made, content, version="0.9.1", serial=2, board="amd64").read_bytes()
    tries["board"] = (other, "amd64")
    unknown = bundle_of(made, content, version="0.9.1", serial=2, key=f"{foreign}/spare.key").read_bytes()
    tries["key"] = (unknown, "signature")
    tries["downgrade"] = (bundle_of(made, content, version="0.0.9", serial=0).read_bytes(), "older")
    with Machine(card) as machine:
        machine.wait_for(READY, 240)
        for name, (bundle, words) in tries.items():
            assert give(machine, bundle) == 202, name
            until = time.monotonic() + 240
            while words not in str((found := progress(machine)).get("message")):
                assert time.monotonic() < until, (name, found)
                time.sleep(0.3)
            assert found["state"] == "failed", (name, found)
            assert state(card).order == ("A",), name
        assert machine.get("/readyz")[0] == 200
    with Machine(card) as machine:
        machine.wait_for("slot A, 2 tries left", 300)
        machine.wait_for(READY, 240)


def test_cut_in_the_middle_and_again(card: Card, releases: Releases) -> None:
    bundle = releases.good().read_bytes()
    with Machine(card) as machine:
        machine.wait_for(READY, 240)
        assert give(machine, bundle) == 202
        until = time.monotonic() + 240
        while int(str(progress(machine).get("percent", 0))) < 30:
            assert time.monotonic() < until
            time.sleep(0.1)
    assert state(card).order == ("A",)
    with Machine(card) as machine:
        machine.wait_for("slot A, 2 tries left", 300)
        machine.wait_for(READY, 240)
        assert give(machine, bundle) == 202
        machine.wait_for("slot B, 2 tries left", 300)
        machine.wait_for(READY, 240, times=2)


@pytest.mark.long  # it waits for gates and watchdogs: minutes, bounded by the clock
def test_a_rotten_slot_is_left(card: Card, releases: Releases, relays: Sink) -> None:
    """The root's blocks no longer fit their hashes: the kernel stops, and the boot counter leaves the slot."""
    content = releases.slot("0.9.1", 2).read_bytes()
    card.write(SLOT_B, content)
    both = bootstate.BootState(("A", "B"), {"A": 3, "B": 3})
    for at in (bootstate.SPARE, bootstate.PRIMARY):
        card.write(at, both.pack())
    chance = random.Random(5)
    image = card.read(SLOT_A, SLOT_SIZE)
    begin = image.index(b"\xe2\xe1\xf5\xe0") - 1024  # the root's own superblock
    for _ in range(3000):
        card.write(SLOT_A + begin + chance.randrange(4096, 15 << 20), b"rot")
    with Machine(card) as machine:
        machine.wait_for("slot B, 2 tries left", 300)
        print(f"in the other slot after {machine.cpu():.0f} CPU seconds")
        machine.wait_for(READY, 240)
        relays.received.clear()
        send(machine, "from the other slot")
        relays.wait_for(1, 240)


def hang(machine: Machine) -> None:
    """Stop the processor for good: interrupts off, in a loop, by the emulator's debugger."""
    with socket.create_connection(("127.0.0.1", machine.gdb), 10) as debugger:
        debugger.settimeout(10)

        def ask(text: str) -> bytes:
            debugger.sendall(b"$%s#%02x" % (text.encode(), sum(text.encode()) & 0xFF))
            data = b""
            while not re.search(rb"\$[^#]*#..", data):
                data += debugger.recv(4096)
            debugger.sendall(b"+")
            found = re.search(rb"\$([^#]*)#..", data)
            assert found
            return found[1]

        for _ in range(200):
            debugger.sendall(b"\x03")
            time.sleep(0.05)
            registers = ask("g")  # x0 to x30, sp, pc, cpsr
            while len(registers) < 33 * 16:
                registers = ask("g")
            pc = int.from_bytes(bytes.fromhex(registers[32 * 16 : 33 * 16].decode()), "little")
            if pc >> 48 == 0xFFFF:  # the kernel's own
                flags = int.from_bytes(bytes.fromhex(registers[33 * 16 : 33 * 16 + 8].decode()), "little") | 0x3C0
                assert ask(f"P21={flags.to_bytes(4, 'little').hex()}") == b"OK"
                assert ask(f"M{pc:x},4:00000014") == b"OK"  # b .
                debugger.sendall(b"$D#44")
                return
            debugger.sendall(b"$c#63")
            time.sleep(0.02)
        raise AssertionError("the kernel never ran")


@pytest.mark.long  # it waits for gates and watchdogs: minutes, bounded by the clock
def test_a_hang_is_ended_by_the_watchdog(card: Card) -> None:
    with Machine(card) as machine:
        machine.wait_for(READY, 240)
        time.sleep(3)
        hang(machine)
        began = time.monotonic()
        machine.wait_for("U-Boot 20", 120, times=2)
        took = time.monotonic() - began
        print(f"started again {took:.0f} s after it hung")
        assert took <= SLACK * HANG_SECONDS
        machine.wait_for(READY, 240, times=2)


@pytest.mark.long
def test_every_cut_of_an_update_leaves_a_slot_that_starts(
    card: Card, releases: Releases, tmp_path: Path, made: build.Build
) -> None:
    """The whole card is logged; for each cut the boot script's choice must be a slot that is complete."""
    before = card.read(0, 64 << 10)
    slots = {"A": card.read(SLOT_A, SLOT_SIZE), "B": card.read(SLOT_B, SLOT_SIZE)}
    new = releases.slot("0.9.1", 2).read_bytes()
    log = tmp_path / "log"
    log.touch()
    with Machine(card, log=log) as machine:
        machine.wait_for(READY, 240)
        assert give(machine, releases.good().read_bytes()) == 202
        machine.wait_for("slot B, 2 tries left", 400)
        machine.wait_for(READY, 240, times=2)
    requests = entries(log)
    first = next(
        number for number, entry in enumerate(requests) if entry.at >= SLOT_B and entry.at < SLOT_B + SLOT_SIZE
    )
    assert card.read(SLOT_B, len(new)) == new
    span = SLOT_B + len(new)
    whole = bytearray(card.read(0, span))
    whole[: len(before)] = before
    whole[SLOT_B:span] = slots["B"][: len(new)]
    tried = {"A": 0, "B": 0}
    for cut in cuts(requests, Medium(bytes(whole), 0), random.Random(3), SLOTS_CUT, max(0, first - 20)):
        found = None
        for at in (bootstate.PRIMARY, bootstate.SPARE):
            try:
                found = found or bootstate.BootState.of(bytes(cut.image[at : at + 512]))
            except bootstate.StateDamaged:
                continue
        assert found is not None, cut.after
        chosen = found.chosen()
        tried[chosen] += 1
        if chosen == "A":
            assert cut.image[SLOT_A : SLOT_A + SLOT_SIZE] == slots["A"], cut.after
        else:
            assert cut.image[SLOT_B:span] == new, cut.after
    print(f"{tried} of the cuts")
    assert all(tried.values())
