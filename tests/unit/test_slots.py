"""The boot state, the partition table, and an update that is cut at every instant."""

from __future__ import annotations

import hashlib
import io
import random
import zlib
from pathlib import Path

import pytest

from edgemail.boot import bootstate, card
from edgemail.boot.bootstate import ATTEMPTS, BootState, StateDamaged
from edgemail.boot.bundle import Bundle, BundleRefused
from edgemail.boot.card import BlockCard, CardRefused, device, partitions, with_data
from edgemail.boot.slots import Release, Slots, UpdateRefused
from tests.cards import (
    PUBLIC,
    RELEASE,
    SLOT,
    SLOT_B,
    LoggedCard,
    blank,
    cuts,
    release,
    slot_image,
    startable,
    started,
    table,
)


def bundle(data: bytes) -> Bundle:
    return Bundle.open(io.BytesIO(data), PUBLIC)


def digest(version: str) -> str:
    return hashlib.sha256(slot_image(version)).hexdigest()


# ---- the boot state


def test_the_state_is_an_environment_of_u_boot() -> None:
    sector = BootState(("B", "A"), {"A": 3, "B": 2}, (("bootcount", "7"),)).pack()
    assert len(sector) == 512
    assert int.from_bytes(sector[:4], "little") == zlib.crc32(sector[4:])
    assert sector[4:].startswith(b"bootcount=7\0BOOT_ORDER=B A\0BOOT_A_LEFT=3\0BOOT_B_LEFT=2\0\0")
    assert BootState.of(sector) == BootState(("B", "A"), {"A": 3, "B": 2}, (("bootcount", "7"),))


def test_a_state_that_is_none() -> None:
    good = bytearray(BootState().pack())
    for at in (0, 10, 511):
        broken = bytearray(good)
        broken[at] ^= 1
        with pytest.raises(StateDamaged):
            BootState.of(bytes(broken))
    for text in (b"BOOT_ORDER=A B\0\0", b"BOOT_ORDER=A B\0BOOT_A_LEFT=x\0BOOT_B_LEFT=1\0\0", b"\0"):
        body = text.ljust(508, b"\0")
        with pytest.raises(StateDamaged):
            BootState.of(zlib.crc32(body).to_bytes(4, "little") + body)
    with pytest.raises(StateDamaged):
        BootState(rest=(("long", "x" * 600),)).pack()


@pytest.mark.parametrize(
    ("order", "left", "chosen"),
    [("AB", (3, 3), "A"), ("BA", (3, 1), "B"), ("BA", (3, 0), "A"), ("A", (0, 0), "A"), ("BA", (0, 0), "B")],
)
def test_which_slot_is_taken(order: str, left: tuple[int, int], chosen: str) -> None:
    assert BootState(tuple(order), {"A": left[0], "B": left[1]}).chosen() == chosen


def test_the_spare_counts_when_the_first_is_damaged() -> None:
    found = LoggedCard()
    bootstate.store(found, BootState(("B", "A")))
    found.image[bootstate.PRIMARY] ^= 1
    assert bootstate.load(found).order == ("B", "A")
    found.image[bootstate.SPARE] ^= 1
    with pytest.raises(StateDamaged):
        bootstate.load(found)
    assert Slots(found, "B").state().order == ("B",)


# ---- an update


def install(found: LoggedCard, data: bytes, running: str = "A", release: Release = RELEASE) -> None:
    Slots(found, running).install(bundle(data), release)


def test_an_update_goes_into_the_other_slot_and_is_started_next() -> None:
    found = LoggedCard()
    done: list[int] = []
    Slots(found, "A").install(bundle(release()), RELEASE, done.append)
    assert done[-1] == SLOT
    assert started(found.image) == digest("1.1")
    assert bootstate.load(found) == BootState(("B", "A"), {"A": 3, "B": 3})
    assert found.image[4 << 20 : (4 << 20) + SLOT] == slot_image("1.0")


@pytest.mark.parametrize("running", ["A", "B"])
def test_a_cut_at_any_instant_leaves_a_slot_that_is_whole(running: str) -> None:
    found = LoggedCard()
    if running == "B":
        install(found, release())
    before = bytes(found.image)
    found.log.clear()
    fresh = "1.2"
    install(found, release(fresh), running)
    whole = {digest("1.1" if running == "B" else "1.0"), digest(fresh)}
    seen = [startable(image) for image in cuts(before, found.log, random.Random(running))]
    assert {each[0] for each in seen} == whole
    assert {one for each in seen for one in each} == {*whole, digest("1.0")}
    # and the control: the same, with the new slot in front from the first write on
    backwards = [*found.log[-4:], *found.log[:-4]]
    assert {started(image) for image in cuts(before, backwards, random.Random(running))} - whole


def test_the_content_is_flushed_before_the_order_names_its_slot() -> None:
    """Not by the flush of the order's own sectors: the first of them could be on the medium before the content is."""
    found = LoggedCard()
    install(found, release())
    last = max(number for number, entry in enumerate(found.log) if entry is not None and entry[0] >= SLOT_B)
    assert found.log[last + 1] is None
    assert [entry[0] for entry in found.log[last + 2 :] if entry is not None] == [bootstate.SPARE, bootstate.PRIMARY]


def test_marking_and_rolling_back_can_be_cut_too() -> None:
    found = LoggedCard()
    install(found, release())
    state = bootstate.load(found)
    bootstate.store(found, BootState(state.order, {"A": 3, "B": 2}))  # the boot script counts
    for act in (Slots(found, "B").mark_good, Slots(found, "B").roll_back):
        before = bytes(found.image)
        found.log.clear()
        act()
        assert found.log
        for image in cuts(before, found.log, random.Random(1)):
            assert started(image) in (digest("1.0"), digest("1.1"))
    assert started(found.image) == digest("1.0")


def test_what_is_not_for_this_box_is_refused_before_a_byte_is_written() -> None:
    refused = [
        release(board="amd64"),
        release(serial=9),
        release(min_from=11),
        release(spool_format=3),
        release(payload=bytes(SLOT + 512)),
    ]
    for data in refused:
        found = LoggedCard()
        with pytest.raises(BundleRefused):
            install(found, data)
        assert not found.log


def test_while_it_is_on_trial_the_other_slot_is_kept() -> None:
    found = LoggedCard()
    bootstate.store(found, BootState(("A", "B"), {"A": 2, "B": 3}))
    found.log.clear()
    with pytest.raises(UpdateRefused, match="marked good"):
        install(found, release())
    assert not found.log
    assert Slots(found, "A").mark_good()
    assert not Slots(found, "A").mark_good()
    install(found, release())


@pytest.mark.parametrize("how", ["changed", "cut"])
def test_a_payload_that_is_not_what_was_signed_is_never_started(how: str) -> None:
    data = bytearray(release())
    if how == "changed":
        data[-1] ^= 1
    else:
        del data[-1000:]
    found = LoggedCard()
    with pytest.raises(BundleRefused):
        install(found, bytes(data))
    assert started(found.image) == digest("1.0")
    assert bootstate.load(found) == BootState(("A",), {"A": 3, "B": 0})
    with pytest.raises(UpdateRefused, match="slot B"):
        Slots(found, "A").roll_back()
    install(found, release())
    assert started(found.image) == digest("1.1")


def test_a_card_that_does_not_keep_what_is_written() -> None:
    class Worn(LoggedCard):
        def write(self, at: int, data: bytes) -> None:
            super().write(at, bytes(len(data)) if len(data) > 512 else data)

    found = Worn()
    with pytest.raises(UpdateRefused, match="worn"):
        install(found, release())
    assert started(found.image) == digest("1.0")


def test_back_to_the_release_before() -> None:
    found = LoggedCard()
    install(found, release())
    assert Slots(found, "B").roll_back() == "A"
    assert started(found.image) == digest("1.0")


# ---- the release file


def test_the_release_file(tmp_path: Path) -> None:
    path = tmp_path / "release"
    path.write_text("VERSION=1.0\nBOARD=arm64\nSERIAL=10\nBUILD_DATE=1795219200\nSPOOL_FORMAT=1\n")
    assert Release.read(path) == RELEASE
    for text in ("VERSION=1.0\n", "VERSION=1\nBOARD=a\nSERIAL=x\nBUILD_DATE=1\n"):
        path.write_text(text)
        with pytest.raises(UpdateRefused, match="not a system image"):
            Release.read(path)
    with pytest.raises(UpdateRefused, match="not a system image"):
        Release.read(tmp_path / "none")


# ---- the card


def test_a_file_for_a_card(tmp_path: Path) -> None:
    path = tmp_path / "card.img"
    path.write_bytes(blank())
    with BlockCard(path) as found:
        Slots(found, "A").install(bundle(release(payload=slot_image("1.1")[:-100])), RELEASE)
        assert found.size == 6 << 20
        with pytest.raises(CardRefused, match="ends"):
            found.read(found.size - 512, 1024)
    image = path.read_bytes()
    assert image[5 << 20 : (5 << 20) + SLOT] == slot_image("1.1")[:-100] + bytes(100)
    assert BootState.of(image[bootstate.PRIMARY : bootstate.PRIMARY + 512]).chosen() == "B"
    assert ATTEMPTS == 3


def test_a_data_partition_in_the_free_space() -> None:
    before = table((4 << 20, 28 << 20), (32 << 20, 64 << 20), (96 << 20, 64 << 20))
    total = (2 << 30) // 512 + 5
    after, place = with_data(before, total)
    assert (place.start, place.sectors % 2048) == (160 << 11, 0)
    assert place.start + place.sectors == (2 << 30) // 512
    assert partitions(after) == {**partitions(before), 4: place}
    assert (after[:446], after[510:]) == (before[:446], before[510:])
    with pytest.raises(CardRefused, match="has a data"):
        with_data(after, total)
    with pytest.raises(CardRefused, match="too small"):
        with_data(before, (170 << 20) // 512)
    with pytest.raises(CardRefused, match="no partition table"):
        partitions(bytes(512))
    with_data(before, 1 << 40)


def test_the_devices_of_partitions() -> None:
    assert [device(disk, 4) for disk in ("/dev/vda", "/dev/mmcblk0", "/dev/nvme0n1")] == [
        "/dev/vda4",
        "/dev/mmcblk0p4",
        "/dev/nvme0n1p4",
    ]
    assert card.SECTOR == 512
