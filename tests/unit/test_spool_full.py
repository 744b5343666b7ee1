"""The spool on a medium that is really full: a small file system of its own, and a small map."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edgemail.clock import ManualClock
from edgemail.envelope import Envelope
from edgemail.errors import SpoolError, SpoolFull
from edgemail.reply import DISK_FULL, SPOOL_FULL, Reply
from edgemail.spool.recover import Report, verify
from edgemail.spool.space import Figures, admission
from edgemail.spool.store import Store, open_store
from edgemail.spool.verbs import Change, Room
from tests.spools import CHUNK, MAIL, body_of, keep, run

BIG = 256 << 20
SMALL = 8 << 20


@pytest.fixture(params=["tmpfs", "ext4"])
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of 40 MB, mounted for the test; where that is not allowed the test says so and is skipped."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small file system")
    place = tmp_path / "disk"
    place.mkdir()
    if request.param == "tmpfs":
        command = ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(place)]
    else:
        image = tmp_path / "image"
        with image.open("wb") as file:
            file.truncate(48 << 20)
        made = subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], capture_output=True, text=True, check=False)
        if made.returncode:
            pytest.skip(f"mkfs.ext4: {made.stderr.strip()}")
        command = ["mount", "-o", "loop", str(image), str(place)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture(params=[0, 1 << 20], ids=["lmdb", "journal"])
def journal(request: pytest.FixtureRequest) -> int:
    """The size of the journal in front of the spool."""
    found: int = request.param
    return found


def fill(disk: Path) -> Path:
    """Somebody else's file takes the rest of the disk."""
    other = disk / "other"
    with other.open("ab", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                continue
    assert os.statvfs(disk).f_bavail == 0
    return other


async def fill_with_mail(store: Store, size: int, told: Reply | None = None) -> list[Envelope]:
    """Twenty senders (of large messages one), until there is no more room."""
    kept = []

    async def send() -> None:
        while True:
            try:
                kept.append(await keep(store, os.urandom(size)))
            except SpoolFull as error:
                assert error.reply == (told or (DISK_FULL if store.room().disk else SPOOL_FULL))
                return

    await asyncio.gather(*(send() for _ in range(20 if size < 1_000_000 else 1)))
    return sorted(kept, key=lambda e: e.id)


async def drains(store: Store, kept: list[Envelope]) -> None:
    """Every message can be rewritten, every message can be finished, and all are whole until then."""
    assert list(store.envelopes()) == kept
    assert verify(store._view).sound
    waits = [replace(e.recipients[0], reason="Connection timed out " * 15) for e in kept]
    changed = [replace(e, recipients=(r,), attempts=1) for e, r in zip(kept, waits, strict=True)]
    await asyncio.gather(*(store.apply(Change(update=(e,)), lazy=True) for e in changed))
    assert list(store.envelopes()) == changed
    for envelope in kept[1:6]:
        await store.apply(Change(remove=(envelope.id,)))
    await asyncio.gather(*(store.apply(Change(remove=(e.id,)), lazy=True) for e in kept[6 : len(kept) // 2]))
    await store.apply(Change(remove=tuple(e.id for e in kept[1:])))
    assert [e.id for e in store.envelopes()] == [kept[0].id]
    assert len(body_of(store, kept[0].id)) == kept[0].size


def blind(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let everything through to LMDB, as where the figures come too late."""
    free = Figures(0, BIG, 0, BIG, -1, store._space.reserve)
    monkeypatch.setattr(store._space, "figures", lambda: free)


@pytest.mark.parametrize("size", [3000, 200_000])
def test_a_disk_full_of_mail(small_disk: Path, size: int, journal: int) -> None:
    async def scenario() -> None:
        store = open_store(small_disk / "spool", BIG, ManualClock(), 0, journal)
        kept = await fill_with_mail(store, size)
        assert sum(e.size for e in kept) > 12 << 20
        assert store.room().bytes < 20 * (size + 8192)
        await drains(store, kept)
        again = await fill_with_mail(store, size)
        assert len(again) > len(kept) // 2
        await store.close()

    run(scenario())


@pytest.mark.parametrize("mails", [1, 300])
def test_a_disk_full_of_other_things(small_disk: Path, mails: int, journal: int) -> None:
    async def scenario() -> None:
        clock = ManualClock()
        store = open_store(small_disk / "spool", BIG, clock, 0, journal)
        kept = [await keep(store, os.urandom(3000)) for _ in range(mails)]
        other = fill(small_disk)
        clock.advance(2.0)
        assert store.room().bytes <= store._space.reserve // 4
        assert store.admission(0, 10 << 20) == DISK_FULL
        kept += await fill_with_mail(store, 3000)
        assert store.admission(8000, 0) == DISK_FULL
        await drains(store, kept)
        other.unlink()
        clock.advance(2.0)
        assert store.admission(0, 10 << 20) is None
        await keep(store, os.urandom(50 * CHUNK))
        await store.close()

    run(scenario())


@pytest.mark.parametrize("size", [3000, 200_000])
def test_a_disk_that_fills_up_under_lmdb(
    small_disk: Path, size: int, monkeypatch: pytest.MonkeyPatch, journal: int
) -> None:
    async def scenario() -> None:
        clock = ManualClock()
        store = open_store(small_disk / "spool", BIG, clock, 0, journal)
        ballast = small_disk / "ballast"
        ballast.write_bytes(bytes(10 << 20))
        kept = [await keep(store, os.urandom(3000)) for _ in range(20)]
        blind(store, monkeypatch)
        kept += await fill_with_mail(store, size, DISK_FULL)
        assert store._writer.tally.failures > 0  # it was LMDB that refused
        monkeypatch.undo()
        report = verify(store._view)  # chunks that could not even be dropped are the next start's business
        assert replace(report, unfinished=0) == Report(len(kept), sum(e.size for e in kept))
        ballast.unlink()
        clock.advance(2.0)
        await drains(store, kept)
        await keep(store, os.urandom(size))
        await store.close()

    run(scenario())


def test_a_start_on_a_full_disk(small_disk: Path, journal: int) -> None:
    async def scenario() -> None:
        store = open_store(small_disk / "spool", BIG, ManualClock(), 0, journal)
        kept = [await keep(store, os.urandom(3000)) for _ in range(20)]
        half = store.intake()
        half.write(bytes(5 * CHUNK))
        await half.drain()
        await store.apply(Change())
        fill(small_disk)
        store._writer.stop()
        store._environment.close()
        store._holder.release()
        store = open_store(small_disk / "spool", BIG, ManualClock(), 0, journal)
        assert store.recovered is not None
        assert store.recovered.dropped == 1
        kept += await fill_with_mail(store, 3000)
        await drains(store, kept)
        await store.close()
        with pytest.raises(SpoolError):
            open_store(small_disk / "another", BIG, ManualClock(), 0, journal)

    run(scenario())


@pytest.mark.parametrize("size", [3000, 200_000, 2_000_000])
def test_a_full_map(tmp_path: Path, size: int, journal: int) -> None:
    async def scenario() -> None:
        store = open_store(tmp_path, SMALL, ManualClock(), 0, journal)
        assert store._space.reserve == SMALL // 10
        kept = await fill_with_mail(store, size)
        assert sum(e.size for e in kept) > SMALL // 3
        bounce = await keep(store, bytes(2000), Change(remove=(kept[0].id,)))  # a bounce still finds room
        await drains(store, [*kept[1:], bounce])
        # Twenty that come at once may fill the room with halves that are given up again.
        assert len(await fill_with_mail(store, size)) >= len(kept) // 3
        await store.close()

    run(scenario())


def test_updates_leave_removals_their_room(tmp_path: Path, journal: int) -> None:
    async def scenario() -> None:
        store = open_store(tmp_path, SMALL, ManualClock(), 0, journal)
        kept = await fill_with_mail(store, 3000)
        tale = [replace(e, recipients=(replace(e.recipients[0], reason="x" * 3000),)) for e in kept]
        told = await asyncio.gather(*(store.apply(Change(update=(e,))) for e in tale), return_exceptions=True)
        assert {type(t) for t in told} == {type(None), SpoolFull}
        await store.apply(Change(remove=tuple(e.id for e in kept)))
        assert list(store.envelopes()) == []
        await store.close()

    run(scenario())


@pytest.mark.parametrize("size", [3000, 200_000])
def test_a_map_that_fills_up_under_lmdb(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch, journal: int
) -> None:
    async def scenario() -> None:
        store = open_store(tmp_path, SMALL, ManualClock(), 0, journal)
        blind(store, monkeypatch)
        await fill_with_mail(store, size)
        assert store._writer.tally.failures > 0
        intake = store.intake()
        small = [asyncio.create_task(keep(store, b"x" * 50)) for _ in range(10)]
        intake.write(bytes(40 * CHUNK))  # 2.5 MB beside ten that would just fit
        with pytest.raises(SpoolFull):
            await intake.commit(MAIL)
        await intake.abort()
        await asyncio.gather(*small, return_exceptions=True)
        monkeypatch.undo()
        kept = list(store.envelopes())
        report = verify(store._view)
        assert replace(report, unfinished=0) == Report(len(kept), sum(e.size for e in kept))
        for envelope in kept:  # to the last page full, even so
            await store.apply(Change(remove=(envelope.id,)))
        assert list(store.envelopes()) == []
        await keep(store, bytes(size))
        await store.close()

    run(scenario())


@pytest.mark.parametrize(
    ("free", "size", "limit", "minfree", "refused"),
    [
        (15_001, 0, 10_000, 0, False),
        (15_000, 0, 10_000, 0, True),  # 1.5 x message_size_limit, queue_minfree or not
        (100_000, 0, 10_000, 99_999, False),
        (100_000, 0, 10_000, 100_000, True),
        (15_000, 10_000, 0, 0, True),  # no limit: what was declared stands for it
        (15_001, 10_000, 0, 0, False),
        (1, 0, 0, 0, False),
        (0, 0, 0, 0, True),
    ],
)
def test_admission_by_the_rule_of_postfix(free: int, size: int, limit: int, minfree: int, refused: bool) -> None:
    assert admission(Room(free, -1), size, limit, minfree) == (SPOOL_FULL if refused else None)
    assert admission(Room(free, -1, disk=True), size, limit, minfree) == (DISK_FULL if refused else None)


def test_the_room_falls_with_the_mail_and_rises_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = open_store(tmp_path, 32 << 20, ManualClock(), 0)
        before = store.room()
        kept = await keep(store, bytes(5 << 20))
        taken = before.bytes - store.room().bytes
        assert 5 << 20 <= taken < 6 << 20
        await store.apply(Change(remove=(kept.id,)))
        assert store.room().bytes >= before.bytes - 65536
        assert before.inodes != 0
        await store.close()

    run(scenario())
