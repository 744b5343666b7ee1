"""The start of a box: what is done in which order, what is said when it fails, and that again changes nothing."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from edgemail.boot import appliance, card, data, network, provision, words
from edgemail.boot.appliance import BEYOND, Boot
from edgemail.boot.card import partitions
from edgemail.boot.places import Places, Ran, report_of
from edgemail.clock import RELEASE_DATE
from edgemail.settings import Network
from tests.cards import table

GOOD = 'myhostname = "gw7.example.com"\n'


@dataclass
class Box:
    """A box without hardware: its programs are said to end with `codes`."""

    root: Path
    codes: dict[str, Ran] = field(default_factory=dict)
    ran: list[list[str]] = field(default_factory=list)
    clock: float = RELEASE_DATE + 100.0
    host: str = ""

    @property
    def places(self) -> Places:
        root = self.root
        return Places(
            disk=str(root / "card.img"),
            partition=str(root / "card4"),
            boot=root / "boot",
            data=root / "data",
            run=root / "run" / "edgemail",
            release=str(root / "release"),
            console=str(root / "console"),
            resolver=root / "resolv.conf",
            sys=root / "sys",
            proc=root / "proc",
            user="nobody-here",
        )

    def run(self, command: Sequence[str], seconds: float) -> Ran:
        self.ran.append(list(command))
        return self.codes.get(command[0], Ran(0))

    def start(self) -> dict[str, object]:
        self.ran.clear()

        def settime(now: float) -> None:
            self.clock = now

        return Boot(self.places, self.run, settime=settime, pause=lambda _: None, now=lambda: self.clock).start()

    def programs(self) -> list[str]:
        return [each[0] for each in self.ran]

    def put(self, text: str, name: str = "edgemail.toml") -> None:
        (self.root / "boot" / name).write_text(text)

    def status(self) -> str:
        return (self.root / "boot" / "edgemail-status.txt").read_bytes().decode()


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Box:
    found = Box(tmp_path)
    monkeypatch.setitem(provision.TOP, "queue_directory", f'"{tmp_path}/data/spool"')
    monkeypatch.setitem(provision.TOP, "mail_owner", '"root"')

    def sethostname(name: str) -> None:
        found.host = name

    monkeypatch.setattr("socket.sethostname", sethostname)
    for name in ("boot", "data", "sys/eth0/device", "sys/lo", "proc/ipv6/conf/eth0"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "sys/eth0/type").write_text("1\n")
    (tmp_path / "release").write_text(f"VERSION=1.0\nBOARD=arm64\nSERIAL=1\nBUILD_DATE={int(RELEASE_DATE)}\n")
    with (tmp_path / "card.img").open("wb") as file:
        file.truncate(300 << 20)
        file.write(table((4 << 20, 28 << 20), (32 << 20, 64 << 20), (96 << 20, 64 << 20)))
    return found


def table_of(box: Box) -> dict[int, card.Partition]:
    with (box.root / "card.img").open("rb") as file:
        return partitions(file.read(512))


# ---- the whole


def test_the_first_start_and_the_second(box: Box) -> None:
    box.put(GOOD)
    report = box.start()
    assert (report["state"], report["data"], report["provision"], report["configured"]) == (
        "ok",
        "made",
        "applied",
        True,
    )
    assert box.programs() == ["mkfs.ext4", "mount", "ip", "udhcpc"]
    assert f"offset={160 << 20}" in " ".join(box.ran[0])
    assert table_of(box)[4].start == 160 << 11
    assert box.host == "gw7.example.com"
    run = box.places.run
    assert (run / "ntpd.conf").read_text() == "servers 2.debian.pool.ntp.org\n"
    assert 'myhostname = "gw7.example.com"' in (run / "edgemail.toml").read_text()
    identity = (box.root / "run" / "machine-id").read_text()
    assert len(identity) == 33
    assert json.loads((run / "boot.json").read_text()) == report

    again = box.start()
    assert box.programs() == ["e2fsck", "mount", "ip", "udhcpc"]
    assert (again["state"], again["data"], again["provision"]) == ("ok", "mounted", "unchanged")
    assert (box.root / "run" / "machine-id").read_text() == identity


def test_a_start_that_is_cut_while_the_partition_is_made_begins_again(box: Box) -> None:
    box.codes["mkfs.ext4"] = Ran(1, "killed")
    assert box.start()["data"] == "missing"
    assert 4 not in table_of(box)
    del box.codes["mkfs.ext4"]
    assert box.start()["data"] == "made"


def test_without_a_configuration_the_box_says_what_to_do(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "addresses", lambda sys: ["192.0.2.7", "2001:db8::7"])
    report = box.start()
    assert (report["state"], report["reason"], report["configured"]) == ("failed", "not-configured", False)
    assert not box.places.configuration.exists()
    said = box.status()
    assert "Open http://192.0.2.7/\r\n" in said
    assert "write a file edgemail.toml" in said
    assert '    relayhost  = "[smtp.isp.example]:587"\r\n' in said
    assert said.count("\n") == said.count("\r\n")
    assert "Open http://192.0.2.7/" in (box.root / "console").read_text()
    assert box.host == "edgemail"
    assert "udhcpc" in box.programs()


def test_a_bad_file_is_said_with_its_line_and_the_one_before_stays(box: Box) -> None:
    box.put(GOOD)
    box.start()
    box.put(GOOD.replace("gw7", "gw8") + "mynetwork = 1\n")
    report = box.start()
    assert (report["state"], report["reason"], report["configured"]) == ("degraded", "configuration-bad", True)
    assert box.host == "gw7.example.com"
    assert "edgemail.toml:2: mynetwork: unknown parameter" in box.status()
    assert "The configuration from before is in force." in box.status()


def test_the_status_file_is_written_only_when_it_says_something_else(box: Box) -> None:
    box.start()
    path = box.root / "boot" / "edgemail-status.txt"
    os.utime(path, (1, 1))
    box.start()
    assert path.stat().st_mtime == 1
    box.put("bad")
    box.start()
    assert path.stat().st_mtime != 1


# ---- the data partition


@pytest.mark.parametrize(
    ("code", "state"), [(0, "mounted"), (1, "mounted"), (2, "mounted"), (4, "damaged"), (8, "damaged")]
)
def test_a_damaged_partition_is_never_made_anew(box: Box, code: int, state: str) -> None:
    box.put(GOOD)
    box.start()
    box.codes["e2fsck"] = Ran(code, "edgemail-data: UNEXPECTED INCONSISTENCY; RUN fsck MANUALLY.\n")
    report = box.start()
    assert report["data"] == state
    assert "mkfs.ext4" not in box.programs()
    if state == "damaged":
        assert (report["state"], report["reason"], report["configured"]) == ("failed", "data-damaged", False)
        assert "mount" not in box.programs()
        assert "Nothing was deleted." in box.status()
        assert "RUN fsck MANUALLY" in box.status()
        assert not box.places.configuration.exists()


def test_a_partition_that_cannot_be_mounted(box: Box) -> None:
    box.start()
    box.codes["mount"] = Ran(255, "mount: mounting failed: Invalid argument")
    report = box.start()
    assert (report["data"], report["state"]) == ("damaged", "failed")


def test_a_card_without_room(box: Box) -> None:
    with (box.root / "card.img").open("r+b") as file:
        file.truncate(165 << 20)
    report = box.start()
    assert (report["data"], report["reason"]) == ("missing", "data-missing")
    assert "too small" in str(report["message"])
    assert "another card" in box.status()


# ---- reset


@pytest.mark.parametrize(
    ("word", "programs", "configured"),
    [
        ("keep-mail", ["e2fsck", "mount"], False),
        ("erase\r\n", ["mkfs.ext4", "mount"], True),  # the partition of this box is no partition
        ("REPAIR", ["e2fsck", "mount"], True),
        ("please", ["e2fsck", "mount"], True),
    ],
)
def test_a_reset_is_asked_for_by_a_file(box: Box, word: str, programs: list[str], configured: bool) -> None:
    box.put(GOOD)
    box.start()
    (box.root / "boot" / "edgemail.toml").unlink()
    box.put(word, "edgemail-reset.txt.txt" if word == "REPAIR" else "edgemail-reset.txt")
    report = box.start()
    assert box.programs()[:2] == programs
    assert report["configured"] is configured
    if word == "REPAIR":
        assert box.ran[0][1:3] == ["-f", "-y"]
    left = data.wanted(box.places.boot)
    if word == "please":
        assert left is not None
        assert "keep-mail, erase, repair" in box.status()
    else:
        assert left is None
        assert (box.root / "boot" / "edgemail-was-reset.txt").exists()
        box.start()
        assert box.ran[0][:2] == ["e2fsck", "-p"]


def test_a_reset_that_fails_is_asked_for_still(box: Box) -> None:
    box.start()
    box.put("erase", "edgemail-reset.txt")
    box.codes["mkfs.ext4"] = Ran(1, "no")
    assert box.start()["data"] == "damaged"
    assert data.wanted(box.places.boot) is not None


# ---- the clock


def test_the_clock_goes_on_from_the_latest_date_that_has_passed(box: Box) -> None:
    box.start()
    stamp = box.places.home / "clock"
    spool = box.places.spool / "data.mdb"
    for path, written in ((stamp, RELEASE_DATE + 5_000), (spool, RELEASE_DATE + 9_000)):
        path.write_text("")
        os.utime(path, (written, written))
    box.clock = 0.0
    box.start()
    assert box.clock == RELEASE_DATE + 9_000
    box.clock = RELEASE_DATE + 20_000
    box.start()
    assert box.clock == RELEASE_DATE + 20_000
    wrong = RELEASE_DATE + BEYOND + 1
    os.utime(stamp, (wrong, wrong))
    box.clock = 0.0
    box.start()
    assert box.clock == RELEASE_DATE + 9_000


def test_a_clock_before_the_release_cannot_be_right(box: Box) -> None:
    (box.root / "release").write_text(f"VERSION=1\nBOARD=a\nSERIAL=1\nBUILD_DATE={int(RELEASE_DATE) + 50}\n")
    box.clock = 12.0
    box.start()
    assert box.clock == RELEASE_DATE + 50


# ---- the network


def bring_up(box: Box, wanted: Network) -> tuple[list[list[str]], list[str]]:
    box.places.run.mkdir(parents=True, exist_ok=True)
    box.ran.clear()
    trouble = network.bring_up(box.places, wanted, "gw7.example.com", box.run, lambda _: None)
    return box.ran, trouble


def test_dhcp_is_asked_with_the_name_of_the_box(box: Box) -> None:
    ran, trouble = bring_up(box, Network())
    assert trouble == []
    assert ran[0] == ["ip", "link", "set", "eth0", "up"]
    assert ran[1][:4] == ["udhcpc", "-b", "-i", "eth0"]
    assert "hostname:gw7" in ran[1]
    assert (box.root / "proc/ipv6/conf/eth0/accept_ra").read_text() == "1"


def test_fixed_addresses_and_a_vlan(box: Box) -> None:
    (box.root / "proc/ipv6/conf/eth0.7").mkdir()
    wanted = Network("eth0", 7, ("192.0.2.7/24", "2001:db8::7/64"), ("192.0.2.1", "fe80::1"), ("192.0.2.53",), "off")
    ran, trouble = bring_up(box, wanted)
    assert trouble == []
    assert [" ".join(each) for each in ran] == [
        "ip link set eth0 up",
        "ip link add link eth0 name eth0.7 type vlan id 7",
        "ip link set eth0.7 up",
        "ip -4 addr replace 192.0.2.7/24 dev eth0.7",
        "ip -6 addr replace 2001:db8::7/64 dev eth0.7",
        "ip -4 route replace default via 192.0.2.1 dev eth0.7",
        "ip -6 route replace default via fe80::1 dev eth0.7",
    ]
    assert (box.root / "resolv.conf").read_text() == "nameserver 192.0.2.53\n"
    assert (box.root / "proc/ipv6/conf/eth0.7/autoconf").read_text() == "0"
    (box.root / "sys/eth0.7").mkdir()
    ran, _ = bring_up(box, wanted)
    assert not any("add" in each for each in ran)


def test_no_interface_and_no_dhcp_are_said_and_not_the_end(box: Box) -> None:
    box.put(GOOD)
    box.codes["udhcpc"] = Ran(1, "udhcpc: no lease, failing")
    report = box.start()
    assert (report["state"], report["reason"], report["configured"]) == ("degraded", "boot-trouble", True)
    assert "no lease" in str(report["message"])
    (box.root / "sys/eth0/type").write_text("772\n")
    assert "There is no network interface" in str(box.start()["notes"])
    assert bring_up(box, Network("wan0"))[1] == ["There is no network interface wan0"]


# ---- later


def test_a_new_address_is_said_on_the_boot_partition(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box.put(GOOD)
    box.start()
    monkeypatch.setattr(network, "addresses", lambda sys: ["192.0.2.9"])
    appliance.refresh(box.places)
    assert "Open http://192.0.2.9/" in box.status()
    found = report_of(box.places)
    assert found is not None
    assert found["addresses"] == ["192.0.2.9"]


def test_the_stamp_of_the_clock(box: Box) -> None:
    box.start()
    before = time.time()
    appliance.stamp(box.places)
    stamp = box.places.home / "clock"
    assert stamp.stat().st_mtime >= before - 1
    for kept, ago in ((True, appliance.STAMP_SECONDS - 60), (False, appliance.STAMP_SECONDS + 60), (False, -60)):
        os.utime(stamp, (before - ago, before - ago))
        appliance.stamp(box.places)
        assert (stamp.stat().st_mtime == before - ago) is kept


def test_the_page_says_what_the_status_file_says(box: Box) -> None:
    box.put('myhostname = "<script>"\n')
    report = box.start()
    page = words.as_html(report)
    assert "<script>" not in page
    assert "has mistakes" in page
    assert "correct the lines above" in page


def test_the_addresses_of_this_machine() -> None:
    found: Callable[..., list[str]] = network.addresses
    assert "127.0.0.1" not in found()
    assert not any(each.startswith("fe80") for each in found())
