"""What goes wrong around a box: no file or a bad one, no clock, a full card, a damaged one, no network, a crash."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from edgemail.boot import card as cards
from image.card import CARD_SIZE
from tests.image.conftest import configuration
from tests.image.machine import Card, Machine
from tests.image.test_life import send
from tests.scenarios.client import Client
from tests.scenarios.sink import sink

READY = "edgemail: ready"
STATUS = "edgemail-status.txt"

# What people put on the boot partition: the name of the file, its content, and what the status file must say.
GOOD = configuration()
BAD: tuple[tuple[str, bytes, str], ...] = (
    ("edgemail.toml.txt", GOOD.encode(), "edgemail.toml.txt"),
    ("edgemail.toml", b"", "edgemail.toml"),
    ("edgemail.toml", GOOD.replace("myhostname", "myhostnam").encode(), "myhostname"),
    ("edgemail.toml", b"myhostname = gw7.example.com\n", "line 1"),
    ("edgemail.toml", GOOD.replace("port = 25\n", 'port = "smtp"\n').encode(), "port"),
    ("edgemail.toml", GOOD.replace('"10.0.2.0/24"]', '"10.0.2.0/33"]').encode(), "10.0.2.0/33"),
    ("edgemail.toml", b"\xff\xfe" + "myhostname = ".encode("utf-16-le"), "line 1"),
    ("edgemail.toml", b"\x89PNG\r\n\x1a\n" + bytes(100), "edgemail.toml"),
    ("edgemail.toml", b"[[[[", "line 1"),
    ("edgemail.toml", (GOOD + 'token_file = "secrets/missing"\n').encode(), "missing"),
)


def status(card: Card) -> str:
    return card.get(STATUS).decode("utf-8", "replace")


@pytest.mark.long
def test_no_file_then_bad_ones_then_a_good_one(image: Path, tmp_path: Path) -> None:
    """Ten bad files are each told where a person looks; the page is there; no mail is taken until the file is right."""
    card = Card.flashed(image, tmp_path / "card.img")
    with Machine(card, ports=(25, 80, 8025)) as machine:
        machine.wait_for(READY, 240)
        assert "edgemail.toml" in machine.said.partition("Starting kernel")[2]
        assert "http://10.0.2.15" in machine.said
        with pytest.raises((OSError, AssertionError)):
            Client(machine.port(25)).say("NOOP")
    assert "edgemail.toml" in status(card) and "http://10.0.2.15" in status(card)
    for name, content, words in BAD:
        one = card.copy(tmp_path / "one.img")
        one.put(name, content)
        with Machine(one) as machine:
            machine.wait_for("Open http", 240)
            machine.wait_for(READY, 240)
        assert words in status(one), (name, content, status(one))
    card.put("edgemail.toml", b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    with Machine(card) as machine:
        machine.wait_ready(240)
        send(machine, "configured")
    card.put("edgemail.toml", BAD[2][1])
    with Machine(card) as machine:
        machine.wait_for(READY, 240)
        send(machine, "the one from before is in force")
    assert "myhostname" in status(card)


def test_secrets_leave_the_boot_partition(image: Path, tmp_path: Path) -> None:
    card = Card.flashed(image, tmp_path / "card.img")
    card.put("edgemail.toml", configuration(more="") + '\n[secrets]\ntoken = "correct horse battery"\n')
    with Machine(card) as machine:
        machine.wait_ready(240)
    assert b"correct horse battery" not in card.get("edgemail.toml")
    assert b"correct horse battery" not in card.read(0, CARD_SIZE)


def test_a_clock_in_1970(image: Path, tmp_path: Path) -> None:
    """No clock and no network time: mail is taken and goes out, nothing expires."""
    card = Card.flashed(image, tmp_path / "card.img")
    with sink() as smarthost:
        card.put("edgemail.toml", configuration(smarthost.port))
        with Machine(card, clock="1970-01-01T00:00:00") as machine:
            machine.wait_ready(240)
            send(machine, "without a clock")
            got = smarthost.wait_for(1, 240)
            assert b" 1970 " not in got[0].content.partition(b"\r\nSubject")[0]


def test_no_network(image: Path, tmp_path: Path) -> None:
    """It starts, it says what is missing, and it does not start again and again."""
    card = Card.flashed(image, tmp_path / "card.img")
    card.put("edgemail.toml", configuration(9))
    with Machine(card, network=False) as machine:
        machine.wait_for(READY, 300)
        time.sleep(5)
        assert machine.said.count("Starting kernel") == 1
    assert "network" in status(card)


@pytest.mark.long
def test_a_full_card(image: Path, tmp_path: Path) -> None:
    """4xx with the reason when there is no room, and the box stays up; mail leaves and is taken again."""
    card = Card.flashed(image, tmp_path / "card.img", CARD_SIZE + (48 << 20))
    with sink() as smarthost:
        port = smarthost.port
        smarthost.stop()
        card.put("edgemail.toml", configuration(port, more='message_size_limit = "4MiB"\nqueue_minfree = "8MiB"'))
        with Machine(card) as machine:
            machine.wait_ready(240)
            body = b"Subject: large\r\n\r\n" + (b"x" * 76 + b"\r\n") * 40_000
            taken, refused = 0, ""
            for _ in range(20):
                with Client(machine.port(25)) as client:
                    client.say("EHLO scanner.example")
                    reply = client.say(f"MAIL FROM:<scan@example.com> SIZE={len(body)}")
                    if reply.startswith("250"):
                        assert client.say("RCPT TO:<user@example.net>").startswith("250")
                        reply = client.data(body)
                    if reply.startswith("250"):
                        taken += 1
                    else:
                        refused = reply
                        break
            assert taken >= 1 and refused.startswith("452"), (taken, refused)
            assert machine.get("/livez")[0] == 200
            smarthost.start()
            smarthost.wait_for(taken, 240)
            until = time.monotonic() + 240
            while True:
                with Client(machine.port(25)) as client:
                    client.say("EHLO scanner.example")
                    if client.say("MAIL FROM:<scan@example.com> SIZE=1000").startswith("250"):
                        break
                assert time.monotonic() < until
                time.sleep(2)


def test_a_damaged_data_partition_is_never_made_anew(image: Path, tmp_path: Path) -> None:
    card = Card.flashed(image, tmp_path / "card.img")
    card.put("edgemail.toml", configuration(9))
    with Machine(card) as machine:
        machine.wait_ready(240)
        send(machine, "kept")
    data = cards.partitions(card.read(0, 512))[4]
    chance = random.Random(11)
    for _ in range(400):
        card.write(data.start * 512 + chance.randrange(0, 8 << 20), chance.randbytes(64))
    card.write(data.start * 512 + 1024, bytes(64))
    before = card.read(data.start * 512, 16 << 20)
    with Machine(card, ports=(25, 80, 8025)) as machine:
        machine.wait_for(READY, 300)
        said = machine.said.partition("Starting kernel")[2]
        assert "damaged" in said
    assert card.read(data.start * 512, 16 << 20) == before, "it was written to"
    assert "damaged" in status(card)
    card.put("edgemail-reset.txt", "erase\r\n")
    with Machine(card) as machine:
        machine.wait_ready(240)
        send(machine, "made anew, as asked")
    assert "edgemail-was-reset.txt" in " ".join(card.names())
