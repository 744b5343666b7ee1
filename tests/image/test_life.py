"""A flashed card with one file on it: it starts, takes mail and passes it on, and nothing complains."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from image import build
from tests.dialogs.runner import Remote, play, read, scripts
from tests.image.conftest import configuration
from tests.image.machine import SLACK, Card, Machine
from tests.image.releases import slot_of
from tests.scenarios.client import Client
from tests.scenarios.sink import Sink, sink
from tests.scenarios.test_dialogs import toml

START_SECONDS = 15.0  # from U-Boot's start to a durable 250
SMALL = 128  # MiB of memory that are enough; the goal is 96
IDLE_MIB = 60  # used by everything when idle; the goal is 42


def send(machine: Machine, text: str, *, port: int = 25) -> str:
    """One message; its queue id, which stands in the 250."""
    with Client(machine.port(port)) as client:
        client.say("EHLO printer.example")
        id = client.message(
            f"Subject: {text}\r\n\r\n{text}\r\n".encode(), "user@example.net", sender="scan@example.com"
        )
        client.say("QUIT")
    return id


class TestBox:
    """One box for all of these."""

    def test_mail_goes_in_and_out(self, box: Machine, smarthost: Sink) -> None:
        before = len(smarthost.received)
        assert send(box, "through the box")
        got = smarthost.wait_for(before + 1, 240)[-1]
        assert got.rcpt == ["RCPT TO:<user@example.net>"]
        assert got.content.endswith(b"Subject: through the box\r\n\r\nthrough the box\r\n")

    def test_it_says_that_it_is_well(self, box: Machine) -> None:
        for path in ("/livez", "/readyz", "/healthz", "/metrics", "/"):
            status, body = box.get(path)
            assert status == 200, (path, body)

    def test_etrn(self, box: Machine) -> None:
        with Client(box.port(25)) as client:
            assert "ETRN" in client.say("EHLO site.example")
            assert client.say("ETRN site.example")[:3] in ("250", "251", "252", "253")

    def test_nothing_complains(self, box: Machine) -> None:
        """What stands on the console is what a person should read there: no failure of kernel, script or service."""
        said = box.said.partition("Starting kernel ...")[2]
        for word in (
            "rror",
            "ailed",
            "not found",
            "can't",
            "annot",
            "Traceback",
            "panic",
            "unexpected",
            "BUG:",
            "WARN",
        ):
            assert word not in said, said


def test_the_dialogs(image: Path, tmp_path: Path) -> None:
    """The scripts whose settings a listener can have, each against a listener of its own on the board."""
    chosen = [s for s in map(read, scripts()) if all(name.startswith("smtpd_") for name in s.settings)]
    chosen = [s for s in chosen if not s.settings.get("smtpd_sasl_auth_enable")]
    assert len(chosen) >= 8
    more, ports = [], {}
    for number, script in enumerate(chosen):
        ports[2500 + number] = script
        more.append(f'[[listener]]\naddress = "*"\nport = {2500 + number}\nsmtpd_error_sleep_time = 0')
        more += [f"{name} = {toml(value)}" for name, value in script.settings.items()]
    card = Card.flashed(image, tmp_path / "card.img")
    with sink() as smarthost:
        card.put("edgemail.toml", configuration(smarthost.port) + "\n" + "\n".join(more) + "\n")
        with Machine(card, ports=(25, 8025, *ports)) as machine:
            machine.wait_ready(240)
            for port, script in ports.items():
                peer = Remote("127.0.0.1", machine.port(port))
                try:
                    play(script, peer)
                finally:
                    peer.close()


PROBE = r"""#!/bin/sh
# Looks at the system from inside and says on the console what it sees.
export PATH=/usr/bin:/usr/sbin
exec >/dev/console 2>&1
say() { echo "probe: $*"; }
until logread 2>/dev/null | grep -q ' is ready, myhostname='; do sleep 1; done
sleep 25 # until whether the slot is good was asked
while read -r device place kind options rest; do say "mount $place $kind $options"; done </proc/mounts
try() { # as whom, where
    if busybox su -s /usr/bin/sh edgemail -c "touch '$2/.probe'" 2>/dev/null; then
        say "written as $1 in $2"
        rm -f "$2/.probe"
    fi
}
find / -xdev -type d 2>/dev/null | while read -r place; do
    touch "$place/.probe" 2>/dev/null && say "written as 0 in $place"
done
for place in /proc /sys /dev /dev/shm /run /tmp /var /slot; do
    touch "$place/.probe" 2>/dev/null && say "written as 0 in $place" && rm -f "$place/.probe"
done
for place in / /etc /usr /run /run/edgemail /run/edgemail/relay /var /tmp /boot /slot /data /data/edgemail \
    /data/spool /dev /dev/shm /sys /proc; do
    try 100 "$place"
done
mount -o remount,rw / 2>/dev/null && touch /usr/.probe 2>/dev/null && say "written as 0 in /usr after a remount"
say "memory $(sed -n 's/^MemTotal: *//p;s/^MemAvailable: *//p' /proc/meminfo | tr '\n' ' ')"
say "details $(grep -E '^(AnonP|Shmem|SUnr|PageT|KernelS|Percpu|VmallocU|MemF)' /proc/meminfo | tr -s '\n ' ' ')"
say "modules $(cut -d' ' -f1,2 /proc/modules | tr '\n' ' ')"
for process in /proc/[0-9]*; do
    name=$(tr '\0' ' ' <"$process/cmdline" 2>/dev/null)
    rights=$(grep -E '^(Uid|NoNewPrivs|Seccomp|CapBnd|RssAnon):' "$process/status" | tr -s '\n\t ' ' ')
    [ -n "$name" ] && say "process $rights| $name"
done
say "the end"
"""


@pytest.fixture(scope="module")
def probed(made: build.Build, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What a probe in an otherwise equal release says of the system that it runs in."""
    directory = tmp_path_factory.mktemp("probe")
    inittab = (made.work / "root/etc/inittab").read_text() + "::once:/etc/init.d/probe\n"
    release = slot_of(made, directory / "release", {"etc/init.d/probe": PROBE, "etc/inittab": inittab})
    from image.card import SLOT_A

    card = Card.flashed(made.out / f"{made.name}.img", directory / "card.img")
    card.write(SLOT_A, release.read_bytes())
    with sink() as smarthost:
        card.put("edgemail.toml", configuration(smarthost.port))
        with Machine(card) as machine:
            machine.wait_for("probe: the end", 240)
            return re.findall(r"^probe: (.*)$", machine.said, re.MULTILINE)


WRITABLE = {
    "/boot": "vfat",
    "/data": "ext4",
    "/dev": "devtmpfs",
    "/run": "tmpfs",
    "/tmp": "tmpfs",
    "/var": "tmpfs",
    "/proc": "proc",
    "/sys": "sysfs",
}


def test_what_can_be_written_is_a_list(probed: list[str]) -> None:
    """Mounts that may be written are these; everywhere else root itself fails, and a remount does not help."""
    mounts = {words[1]: words[2:] for line in probed if (words := line.split())[0] == "mount"}
    assert mounts["/"][0] == "erofs" and "ro" in mounts["/"][1].split(",")
    assert mounts["/slot"][0] == "vfat" and "ro" in mounts["/slot"][1].split(",")
    writable = {place: kind for place, (kind, options) in mounts.items() if "rw" in options.split(",")}
    assert writable == WRITABLE
    for place in ("/boot", "/data", "/run", "/tmp", "/var"):
        assert {"nosuid", "nodev", "noexec"} <= set(mounts[place][1].split(",")), place
    written = {line.split()[-1] for line in probed if line.startswith("written as 0 ")}
    assert written <= {"/boot", "/data", "/dev", "/dev/shm", "/run", "/tmp", "/var"}, written
    assert not [line for line in probed if "after a remount" in line]


def test_what_the_relay_can_write(probed: list[str]) -> None:
    written = {line.split()[-1] for line in probed if line.startswith("written as 100 ")}
    assert written <= {"/tmp", "/dev/shm", "/data/spool", "/run/edgemail/relay"}, written


def test_memory_when_idle(probed: list[str]) -> None:
    total, available = (
        int(word) for word in re.findall(r"(\d+) kB", next(x for x in probed if x.startswith("memory")))
    )
    used = (total - available) / 1024
    print("\n".join(line for line in probed if line.startswith(("details", "process", "modules"))))
    print(f"{used:.1f} MiB of {total / 1024:.0f} used")
    assert used <= IDLE_MIB


def test_the_relay_has_no_rights(probed: list[str]) -> None:
    lines = [line for line in probed if line.startswith("process") and " run " in line]
    assert lines, probed
    for line in lines:
        rights = dict(re.findall(r"(\w+): ([0-9a-f]+)", line.partition("|")[0]))
        assert rights["Uid"] == "100" and rights["NoNewPrivs"] == "1" and rights["Seccomp"] == "2", line
        assert int(rights["CapBnd"], 16) == 1 << 10, line  # CAP_NET_BIND_SERVICE


def test_small_memory_and_the_time_to_start(image: Path, tmp_path: Path) -> None:
    """First start with little memory; then the time to a durable 250 on a card that has its data."""
    card = Card.flashed(image, tmp_path / "card.img")
    with sink() as smarthost:
        card.put("edgemail.toml", configuration(smarthost.port))
        with Machine(card, memory=SMALL) as machine:
            machine.wait_ready(240)
            assert send(machine, "small memory")
            smarthost.wait_for(1, 240)
            time.sleep(1)
        with Machine(card) as machine:
            machine.greeting(240)
            assert send(machine, "the second start")
            spent, took = machine.cpu(), time.monotonic() - machine.began
            print(f"from U-Boot's start to 250: {took:.1f} s, {spent:.1f} CPU seconds, of {START_SECONDS:.0f}")
            # The emulator is given all of one core on a quiet machine; on a busy one its CPU seconds are the measure.
            assert min(took, spent) <= SLACK * START_SECONDS
