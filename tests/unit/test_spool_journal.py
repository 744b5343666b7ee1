"""The journal in front of LMDB: groups, moves, replay, damage. What every spool does is in test_spool_contract."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import lmdb
import pytest

from edgemail.clock import RELEASE_DATE, ManualClock
from edgemail.envelope import Envelope
from edgemail.errors import SpoolError, SpoolFull
from edgemail.spool import journal_file, journal_layout, layout, writer
from edgemail.spool.environment import Environment
from edgemail.spool.journal import Journal
from edgemail.spool.journal_layout import BLOCK, LARGEST_BODY, Entry, Scan, half, start
from edgemail.spool.layout import JournalMark
from edgemail.spool.recover import Report, verify
from edgemail.spool.store import Store, open_reader, open_store
from edgemail.spool.verbs import Change
from tests.spools import CHUNK, MAIL, MAP, JournalRig, StoreRig, body_of, keep, run

SIZE = 1 << 20


@pytest.fixture(autouse=True)
def never_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test leaves in the journal stays there until the test says otherwise."""
    monkeypatch.setattr(writer, "IDLE_SECONDS", 3600.0)


def opened(directory: Path, size: int | None = SIZE, clock: ManualClock | None = None) -> Store:
    return open_store(directory, MAP, clock or ManualClock(), 0, size)


def journal_of(store: Store) -> Journal:
    assert store.journal is not None
    return store.journal


def crash(store: Store) -> None:
    """Let go of the spool as a power cut does: nothing is marked, nothing moves any more."""
    with store._writer._wake:
        store._writer._jobs.clear()
        store._writer._urgent = 0
    store._writer.stop()
    journal_of(store).close()
    store._environment.close()
    store._holder.release()


def table(spool: Path | Store) -> dict[bytes, bytes]:
    """Every record that LMDB holds."""
    if isinstance(spool, Store):
        with spool._environment.read() as transaction:
            return {bytes(key): bytes(value) for key, value in transaction.cursor()}
    with (
        contextlib.closing(lmdb.open(str(spool), readonly=True, map_size=0, lock=False)) as env,
        env.begin() as transaction,
    ):
        return {bytes(key): bytes(value) for key, value in transaction.cursor()}


def stored(spool: Path | Store) -> dict[int, bytes]:
    """The bodies that LMDB alone holds."""
    found: dict[int, bytes] = {}
    for key, value in table(spool).items():
        place = layout.place(key)
        if place is not None:
            found[place[0]] = found.get(place[0], b"") + (b"" if place[1] == 0 else value)
    return found


def mark_of(spool: Path | Store) -> JournalMark | None:
    return layout.read_meta(table(spool)[layout.meta_key()]).journal


def told(directory: Path) -> tuple[list[Envelope], str, Report]:
    """What a tool sees with no relay up: the queue, what is lost, the full check."""
    with open_reader(directory) as reader:
        found = list(reader.envelopes())
        for envelope in found:
            assert sum(map(len, reader.body(envelope.id))) == envelope.size
        return found, reader.journal.lost, verify(reader)


def overwrite(directory: Path, at: int, data: bytes) -> None:
    with (directory / "journal").open("r+b") as file:
        file.seek(at)
        file.write(data)


async def again(directory: Path, size: int | None = SIZE) -> tuple[list[Envelope], dict[int, bytes], str]:
    """The next start: what it finds, and what of the journal was lost; then an orderly end."""
    store = opened(directory, size)
    assert store.recovered is not None
    assert not list(store.damaged())
    found = list(store.envelopes())
    bodies = {envelope.id: body_of(store, envelope.id) for envelope in found}
    await store.close()
    return found, bodies, store.recovered.lost


# --- one home ---------------------------------------------------------------------------------------------------------


def test_a_small_message_is_one_write_and_never_touches_lmdb(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = JournalRig(tmp_path)
        before = rig.commits
        kept = await keep(rig.store, bytes(4096))
        assert (rig.groups, rig.commits) == (1, before)
        assert stored(rig.store) == {}
        await rig.store.apply(Change(update=(replace(kept, attempts=1),)))
        assert rig.store.envelope(kept.id) == replace(kept, attempts=1)
        bounce = await keep(rig.store, b"bounce", Change(remove=(kept.id,)))
        await rig.store.apply(Change(remove=(bounce.id,)))
        assert (rig.groups, rig.commits) == (4, before)
        assert list(rig.store.envelopes()) == []
        assert journal_of(rig.store).held == journal_of(rig.store).cost == 0
        await rig.store.close()

    run(scenario())


def test_a_large_message_is_wholly_in_lmdb(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = JournalRig(tmp_path)
        small = await keep(rig.store, bytes(LARGEST_BODY))
        large = await keep(rig.store, bytes(LARGEST_BODY + 1))
        assert journal_of(rig.store).ids() == [small.id]
        assert stored(rig.store) == {large.id: bytes(LARGEST_BODY + 1)}
        assert list(rig.store.envelopes()) == [small, large]
        await rig.store.close()

    run(scenario())


def test_what_shares_a_group_shares_a_barrier(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = JournalRig(tmp_path)
        gate = threading.Event()
        rig.on_group = lambda: assert_true(gate.wait(10))
        tasks = [asyncio.create_task(keep(rig.store)) for _ in range(50)]
        for _ in range(100):
            await asyncio.sleep(0)
        assert list(rig.store.envelopes()) == []
        assert not any(task.done() for task in tasks)
        gate.set()
        kept = await asyncio.gather(*tasks)
        assert rig.groups <= 2
        assert list(rig.store.envelopes()) == sorted(kept, key=lambda e: e.id)
        await rig.store.close()

    run(scenario())


def assert_true(value: object) -> None:
    assert value


def test_an_end_waits_for_company_or_a_hundred_of_its_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "LAZY_SECONDS", 3600.0)

    async def scenario() -> None:
        rig = JournalRig(tmp_path)
        kept = await asyncio.gather(*(keep(rig.store) for _ in range(writer.LAZY_JOBS + 1)))
        before = rig.groups
        ends = [asyncio.create_task(rig.store.apply(Change(remove=(e.id,)), lazy=True)) for e in kept[1:-1]]
        for _ in range(200):
            await asyncio.sleep(0)
        assert rig.groups == before
        last = asyncio.create_task(rig.store.apply(Change(remove=(kept[-1].id,)), lazy=True))
        await asyncio.gather(*ends, last)
        assert rig.groups == before + 1
        lonely = asyncio.create_task(rig.store.apply(Change(remove=(kept[0].id,)), lazy=True))
        await asyncio.sleep(0)
        await keep(rig.store)
        await lonely
        assert rig.groups == before + 2
        await rig.store.close()

    run(scenario())


def test_a_change_over_both_homes_is_one_transaction_of_lmdb(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = JournalRig(tmp_path)
        small, other = await keep(rig.store), await keep(rig.store)
        large = await keep(rig.store, bytes(2 * CHUNK))
        notice = await keep(rig.store, bytes(2 * CHUNK), Change(remove=(small.id,)))  # a long one about a short one
        assert journal_of(rig.store).empty
        assert set(stored(rig.store)) == {other.id, large.id, notice.id}
        short = await keep(rig.store, b"short", Change(remove=(large.id,)))
        assert set(stored(rig.store)) == {other.id, notice.id, short.id}
        third = await keep(rig.store)
        assert journal_of(rig.store).ids() == [third.id]
        changed = tuple(replace(e, attempts=3) for e in (other, third))
        await rig.store.apply(Change(update=changed))
        assert list(rig.store.envelopes()) == [changed[0], notice, short, changed[1]]
        crash(rig.store)
        assert (await again(tmp_path))[0] == [changed[0], notice, short, changed[1]]

    run(scenario())


def test_an_abort_of_a_commit_in_flight_is_undone_in_the_journal(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = JournalRig(tmp_path)
        gate = threading.Event()
        rig.on_group = lambda: assert_true(gate.wait(10))
        first = asyncio.create_task(keep(rig.store))
        await asyncio.sleep(0)
        intake = rig.store.intake()
        intake.write(b"x")
        commit = asyncio.create_task(intake.commit(MAIL))
        await asyncio.sleep(0)
        abort = asyncio.create_task(intake.abort())
        await asyncio.sleep(0)
        gate.set()
        with pytest.raises(SpoolError, match="aborted"):
            await commit
        await abort
        assert list(rig.store.envelopes()) == [await first]
        crash(rig.store)
        assert (await again(tmp_path))[0] == [first.result()]

    run(scenario())


# --- moving -----------------------------------------------------------------------------------------------------------


def test_an_idle_box_empties_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "IDLE_SECONDS", 0.01)

    async def scenario() -> None:
        store = opened(tmp_path)
        kept = await keep(store)
        while not journal_of(store).empty:
            await asyncio.sleep(0.001)
        assert set(stored(store)) == {kept.id}
        assert list(store.envelopes()) == [kept]
        await store.apply(Change(remove=(kept.id,)))
        assert stored(store) == {}
        crash(store)
        assert (await again(tmp_path))[0] == []

    run(scenario())


def test_after_an_orderly_stop_lmdb_alone_is_the_spool(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = opened(tmp_path)
        assert mark_of(store) is not None
        kept = [await keep(store, os.urandom(n)) for n in (0, 10, 5000)]
        bodies = {e.id: body_of(store, e.id) for e in kept}
        await store.apply(Change(remove=(kept[1].id,)), lazy=True)
        await store.close()
        assert mark_of(tmp_path) is None
        (tmp_path / "journal").unlink()
        assert stored(tmp_path) == {e.id: bodies[e.id] for e in (kept[0], kept[2])}
        found, lost, report = told(tmp_path)
        assert (found, lost, report.sound) == ([kept[0], kept[2]], "", True)
        store = opened(tmp_path, None)
        assert store.recovered is None
        await store.close()
        assert not (tmp_path / "journal").exists()

    run(scenario())


def test_halves_take_turns_and_nothing_waits_for_want_of_room(tmp_path: Path) -> None:
    """Ten times the journal's size, a share of which stays: what is finished in time never touches LMDB."""

    async def scenario() -> None:
        rig = JournalRig(tmp_path, journal=journal_layout.MIN_SIZE)
        expected: dict[int, bytes] = {}
        for number in range(400):
            body = os.urandom(6000)
            kept = await keep(rig.store, body)
            if number % 8 == 0:
                expected[kept.id] = body
            else:
                assert body_of(rig.store, kept.id) == body
                await rig.store.apply(Change(remove=(kept.id,)))
        journal = journal_of(rig.store)
        assert journal._epoch > 10
        assert journal.moved <= len(expected) + 2
        assert {e.id: body_of(rig.store, e.id) for e in rig.store.envelopes()} == expected
        crash(rig.store)
        assert (await again(tmp_path))[1] == expected

    run(scenario())


def test_memory_has_its_bound(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = opened(tmp_path, 8 << 20)
        journal = journal_of(store)
        assert journal.waiting_bytes <= store._space.reserve // 2
        most = 0
        for _ in range(120):
            await keep(store, bytes(40_000))
            await store.apply(Change())  # behind what was due after the group
            most = max(most, journal.held)
        assert journal.waiting_bytes // 2 < most <= journal.waiting_bytes + 40_000
        assert store._pool.within
        assert len(list(store.envelopes())) == 120
        await store.close()

    run(scenario())


def test_a_half_moves_under_a_running_delivery(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = JournalRig(tmp_path, journal=journal_layout.MIN_SIZE)
        body = os.urandom(50_000)
        kept = await keep(rig.store, body)
        early = rig.store.body(kept.id)  # begun before
        listing = rig.store.envelopes()
        journal = journal_of(rig.store)
        for _ in range(40):  # both halves are written over
            other = await keep(rig.store, os.urandom(30_000))
            await rig.store.apply(Change(remove=(other.id,)))
        assert journal.leaf(kept.id) is None
        assert b"".join(early) == body
        assert body_of(rig.store, kept.id) == body
        assert list(listing) == [kept]
        await rig.store.close()

    run(scenario())


def test_a_listing_meets_what_moves_exactly_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = JournalRig(tmp_path)
        stays = [await keep(rig.store, bytes(2 * CHUNK)) for _ in range(70)]
        kept = [await keep(rig.store) for _ in range(70)]
        listing = rig.store.envelopes()
        got = [next(listing) for _ in range(10)]
        rig.settle()
        await rig.store.apply(Change(remove=(kept[60].id,)))
        assert [*got, *listing] == [*stays, *kept[:60], *kept[61:]]
        await rig.store.close()

    run(scenario())


# --- replay -----------------------------------------------------------------------------------------------------------


def test_what_stands_in_the_journal_is_found_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = ManualClock()
        store = opened(tmp_path, clock=clock)
        clock.advance(500.0)
        kept = [await keep(store, os.urandom(n * 1000)) for n in range(9)]
        bodies = {e.id: body_of(store, e.id) for e in kept}
        later = replace(kept[0], attempts=2, next_attempt=77.0)
        await store.apply(Change(update=(later,), remove=(kept[1].id,)))
        crash(store)
        found, lost, report = told(tmp_path)
        assert (found, lost) == ([later, *kept[2:]], "")
        assert (report.messages, report.sound) == (8, True)
        assert stored(tmp_path) == {}
        store = opened(tmp_path, clock=ManualClock(0.0))
        assert store.recovered is not None
        assert (store.recovered.messages, store.recovered.replayed, store.recovered.lost) == (8, 8, "")
        assert store.floor == RELEASE_DATE + 500.0  # the date went with the mail
        assert list(store.envelopes()) == [later, *kept[2:]]
        assert all(body_of(store, e.id) == bodies[e.id] for e in store.envelopes())
        assert store.intake().id > kept[-1].id
        await store.close()

    run(scenario())


@pytest.mark.parametrize("size", [None, 0, 2 * SIZE], ids=["a tool", "without", "larger"])
def test_a_journal_is_replayed_whatever_comes_after_it(tmp_path: Path, size: int | None) -> None:
    async def scenario() -> None:
        store = opened(tmp_path)
        kept = await keep(store)
        crash(store)
        assert (await again(tmp_path, size))[0] == [kept]
        path = tmp_path / "journal"
        assert (path.stat().st_size if path.exists() else 0) == (SIZE if size is None else size)
        assert not path.exists() or path.stat().st_mode & 0o777 == 0o600

    run(scenario())


def test_a_replay_may_be_cut_and_come_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgemail.spool.replay.MOVE_BYTES", 20_000)

    async def scenario() -> None:
        store = opened(tmp_path)
        kept = [await keep(store, os.urandom(9000)) for _ in range(10)]
        bodies = {e.id: body_of(store, e.id) for e in kept}
        await store.apply(Change(remove=(kept[9].id,), update=(replace(kept[8], attempts=1),)))
        crash(store)
        commit = Environment.commit
        left = 0

        def cut(self: Environment, transaction: object) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt  # as a power cut: nothing handles it
            commit(self, transaction)

        monkeypatch.setattr(Environment, "commit", cut)
        for count in range(5):
            left = count % 3
            with pytest.raises(KeyboardInterrupt):
                opened(tmp_path)
        monkeypatch.setattr(Environment, "commit", commit)
        assert told(tmp_path)[0] == [*kept[:8], replace(kept[8], attempts=1)]
        found, there, lost = await again(tmp_path)
        assert found == [*kept[:8], replace(kept[8], attempts=1)]
        assert (there, lost) == ({e.id: bodies[e.id] for e in kept[:9]}, "")

    run(scenario())


def test_what_lmdb_learnt_after_a_move_is_not_taken_back_by_a_replay(tmp_path: Path) -> None:
    """The first of two messages has moved, was rewritten and is finished; the journal still holds its old record."""

    async def scenario() -> None:
        rig = JournalRig(tmp_path)
        one, two, three = [await keep(rig.store, os.urandom(5000)) for _ in range(3)]
        await rig.store.apply(Change(update=(replace(two, attempts=1),)))
        journal = journal_of(rig.store)
        assert journal.ids() == [one.id, two.id, three.id]
        number = journal._leaves[two.id].number
        await asyncio.to_thread(journal._move, number)  # nothing else is under way
        assert journal.ids() == [three.id]
        await rig.store.apply(Change(remove=(one.id,)))
        await rig.store.apply(Change(update=(replace(two, attempts=2),)))
        await rig.store.apply(Change(update=(replace(three, attempts=5),)))
        crash(rig.store)
        expected = [replace(two, attempts=2), replace(three, attempts=5)]
        assert told(tmp_path)[0] == expected
        assert (await again(tmp_path))[0] == expected

    run(scenario())


def test_a_torn_tail_is_nobodys_loss(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = opened(tmp_path)
        kept = [await keep(store, os.urandom(3000)) for _ in range(3)]
        journal = journal_of(store)
        salt, number, at = journal._mark.salts[0], journal._number, journal._at
        crash(store)
        record = layout.seal(99, layout.Head(9000, 1, 1), layout.fields_of(MAIL))
        one = Entry((98, layout.seal(98, layout.Head(0, 0, 0), layout.fields_of(MAIL)), b""))
        group = journal_layout.write_group([one, Entry((99, record, bytes(9000)))], salt, number + 1, 0.0)
        for block in range(len(group) // BLOCK):
            torn = bytearray(group)
            torn[block * BLOCK : (block + 1) * BLOCK] = os.urandom(BLOCK)
            overwrite(tmp_path, at, bytes(torn))
            found, lost, _ = told(tmp_path)
            assert not lost
            assert {e.id for e in found} - {98} == {e.id for e in kept}, "a record that was torn is whole"
        least = layout.seal(98, layout.Head(0, 0, 0), layout.fields_of(MAIL))
        whole = Entry((98, least, bytes(BLOCK - Entry((98, least, b"")).size)))
        group = journal_layout.write_group([whole, one], salt, number + 1, 0.0)
        overwrite(
            tmp_path, at, b"?" * BLOCK + group[BLOCK:]
        )  # what is left begins on a block, and is the end of a write
        assert told(tmp_path)[:2] == (kept, "")
        assert (await again(tmp_path))[2] == ""

    run(scenario())


def test_bad_before_good_is_damage_and_the_rest_is_served(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        store = opened(tmp_path)
        kept = [await keep(store, os.urandom(5000)) for _ in range(5)]
        at = start(journal_of(store)._mark.size, 1)
        crash(store)
        overwrite(tmp_path, at + 2 * BLOCK + 100, b"\xff" * 8)  # in the second message
        found, lost, report = told(tmp_path)
        assert found == [kept[0], *kept[2:]]
        assert "1 record of" in lost and report.lost == lost and not report.sound
        bad = (tmp_path / "journal").read_bytes()
        found, _, lost = await again(tmp_path)
        assert (found, lost) == ([kept[0], *kept[2:]], report.lost)
        assert (tmp_path / "journal.aside.1").read_bytes() == bad
        assert [r for r in caplog.records if r.levelname == "ERROR" and "mail may be lost" in r.message]
        assert told(tmp_path)[2].sound

    run(scenario())


def _another_spool(directory: Path) -> None:
    async def scenario() -> None:
        store = opened(directory.parent / "another")
        await keep(store)
        crash(store)

    run(scenario())
    (directory.parent / "another" / "journal").replace(directory / "journal")


def _older_time(directory: Path) -> None:
    copy = (directory / "journal.copy").read_bytes()
    (directory / "journal").write_bytes(copy)


SPOILT: dict[str, Callable[[Path], object]] = {
    "none": lambda directory: (directory / "journal").unlink(),
    "empty": lambda directory: (directory / "journal").write_bytes(b""),
    "another size": lambda directory: os.truncate(directory / "journal", SIZE // 2),
    "of another spool": _another_spool,
    "of another time": _older_time,
    "a header that does not read": lambda directory: overwrite(directory, 20, b"\xff" * 4),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_journal_that_is_not_ours_is_damage_and_lmdb_is_served(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "spool"
    kept: list[Envelope] = []

    async def scenario() -> None:
        store = opened(directory)
        await keep(store)
        (directory / "journal.copy").write_bytes((directory / "journal").read_bytes())
        await store.close()
        store = opened(directory)
        kept.extend([*store.envelopes(), await keep(store, bytes(2 * CHUNK))])
        await keep(store)  # this one is lost
        crash(store)

    run(scenario())
    SPOILT[how](directory)

    async def aftermath() -> None:
        found, lost, report = told(directory)
        assert found == kept and "lost" in lost and not report.sound
        found, _, lost = await again(directory)
        assert found == kept and "lost" in lost
        assert (directory / "journal.aside.1").exists() == (how != "none")
        assert [r for r in caplog.records if r.levelname == "ERROR" and "mail may be lost" in r.message]
        assert (await again_clean(directory)) == kept

    run(aftermath())


async def again_clean(directory: Path) -> list[Envelope]:
    store = opened(directory)
    assert store.recovered is None
    found = list(store.envelopes())
    await store.close()
    return found


def test_a_body_full_of_forged_records_is_a_body(tmp_path: Path) -> None:
    """Whole blocks of records with every salt but the right one, and with the right one of an epoch that is over."""

    async def scenario() -> None:
        rig = JournalRig(tmp_path, journal=journal_layout.MIN_SIZE)
        journal = journal_of(rig.store)
        old = journal._mark.salts[0]
        forged = Entry((7, layout.seal(7, layout.Head(0, 0, 0), layout.fields_of(MAIL)), b""))
        while journal._epoch == 1:
            await rig.store.apply(Change(remove=((await keep(rig.store, bytes(30_000))).id,)))
        blocks = b"".join(
            journal_layout.write_group([forged], salt, number, 0.0)
            for salt in (old, 0, 2**64 - 1)
            for number in range(journal._number, journal._number + 4)
        )
        pad = bytes(BLOCK - 400)  # some of them end up at the start of a block, whatever stands before them
        kept = [await keep(rig.store, bytes(n) + pad + blocks[: 12 * BLOCK]) for n in range(0, 400, 37)]
        at = journal._at
        crash(rig.store)
        end = start(journal._mark.size, journal._epoch) + half(journal._mark.size)
        stale = [journal_layout.write_group([forged], salt, journal._number + 1, 0.0) for salt in (old, 0)]
        overwrite(tmp_path, at, (b"".join(stale) + blocks)[: end - at])  # and what an older epoch left behind the end
        found, lost, _ = told(tmp_path)
        assert (found, lost) == (kept, "")
        assert (await again(tmp_path))[0] == kept

    run(scenario())


def test_a_stale_epoch_behind_the_end_is_not_read(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = JournalRig(tmp_path, journal=journal_layout.MIN_SIZE)
        journal = journal_of(rig.store)
        while journal._epoch < 3:  # the first half begins anew over what it held
            await rig.store.apply(Change(remove=((await keep(rig.store, os.urandom(3900))).id,)))
        kept = await keep(rig.store)
        assert journal._at < start(journal._mark.size, 3) + half(journal._mark.size) // 2
        crash(rig.store)
        assert (await again(tmp_path))[0] == [kept]

    run(scenario())


# --- failures ---------------------------------------------------------------------------------------------------------


def test_a_failed_barrier_sends_all_to_lmdb_and_is_never_repeated(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = JournalRig(tmp_path)
        journal = journal_of(rig.store)
        kept = [await keep(rig.store, os.urandom(3000)) for _ in range(3)]
        places: list[int] = []
        real = rig._write

        def fail(at: int, data: bytes) -> None:
            places.append(at)
            real(at, data)  # it reached the medium, though it says that it did not
            raise SpoolError("fdatasync: Input/output error")

        rig._write = fail
        two = await asyncio.gather(keep(rig.store, b"in spite of it"), rig.store.apply(Change(remove=(kept[0].id,))))
        rig._write = real
        assert not journal.broken and journal.empty
        assert set(stored(rig.store)) == {kept[1].id, kept[2].id, two[0].id}
        await rig.store.apply(Change(remove=(two[0].id,)))  # by LMDB: the failed record must not bring it back
        new = await keep(rig.store)
        assert journal.ids() == [new.id]
        assert journal._at - BLOCK < start(journal._mark.size, journal._epoch) + BLOCK
        assert journal._epoch == 2 and len(places) == 1
        crash(rig.store)
        assert (await again(tmp_path))[0] == [kept[1], kept[2], new]

    run(scenario())


def test_what_failed_is_out_of_date_before_lmdb_has_it(tmp_path: Path) -> None:
    """Or a cut between the two would bring back, at some later start, what was finished meanwhile."""

    async def scenario() -> None:
        rig = JournalRig(tmp_path)
        seen: list[tuple[bool, int]] = []

        def look(transaction: lmdb.Transaction) -> None:
            with transaction.cursor() as cursor:
                there = cursor.set_range(bytes((layout.MAIL,))) and cursor.key()[0] == layout.MAIL
            mark = mark_of(rig.store)
            seen.append((there, mark.epoch if mark is not None else 0))  # what is on the medium by then

        rig.on_commit = look
        real = rig._write

        def fail(at: int, data: bytes) -> None:
            real(at, data)
            raise SpoolError("fdatasync: Input/output error")

        rig._write = fail
        await keep(rig.store)
        assert seen == [(False, 1), (True, 2)]
        await rig.store.close()

    run(scenario())


def test_when_both_fail_nothing_is_acknowledged_and_nothing_lost(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = JournalRig(tmp_path)
        kept = await keep(rig.store)
        rig.failing(True)
        results = await asyncio.gather(
            keep(rig.store), rig.store.apply(Change(remove=(kept.id,))), return_exceptions=True
        )
        assert [type(result) for result in results] == [SpoolError, SpoolError]
        assert rig.store.vitals().trouble
        assert list(rig.store.envelopes()) == [kept]
        assert body_of(rig.store, kept.id)
        rig.failing(False)
        await rig.store.apply(Change(remove=(kept.id,)))
        assert not rig.store.vitals().trouble
        await rig.store.close()
        assert told(tmp_path)[0] == []

    run(scenario())


def test_a_move_of_which_nobody_knows_is_done_again_before_anything_else(tmp_path: Path) -> None:
    """LMDB says that the commit failed, and the medium has it: what is finished after it must stay finished."""

    async def scenario() -> None:
        rig = JournalRig(tmp_path)
        kept = [await keep(rig.store) for _ in range(3)]
        journal = journal_of(rig.store)
        real = rig._real

        def lie(transaction: object) -> None:
            real(transaction)
            raise lmdb.Error("mdb_txn_commit: Input/output error")

        rig._real = lie
        with pytest.raises(SpoolError):
            await rig.store.apply(Change(remove=(kept[0].id, 4711)))  # the latter could be anywhere
        assert journal.broken
        rig._real = real
        await rig.store.apply(Change(remove=(kept[1].id,)))
        assert journal.empty and not journal.broken
        crash(rig.store)
        assert (await again(tmp_path))[0] == [kept[0], kept[2]]

    run(scenario())


def test_a_full_journal_takes_no_mail_and_still_drains(tmp_path: Path) -> None:
    """LMDB fails for good: mail is refused in the end, and what was delivered can still be finished."""

    async def scenario() -> None:
        rig = JournalRig(tmp_path, journal=journal_layout.MIN_SIZE)
        kept: list[Envelope] = []
        environment = rig.store._environment
        begin = environment._begin
        environment._begin = refuse_begin  # type: ignore[method-assign]
        with pytest.raises(SpoolFull):
            while True:
                kept += [await keep(rig.store, bytes(20_000))]
        assert len(kept) >= 10
        journal = journal_of(rig.store)
        assert not journal.broken
        for envelope in kept[:3]:
            await rig.store.apply(Change(remove=(envelope.id,)))
        assert list(rig.store.envelopes()) == kept[3:]
        environment._begin = begin  # type: ignore[method-assign]
        new = await keep(rig.store, bytes(20_000))
        crash(rig.store)
        assert (await again(tmp_path))[0] == [*kept[3:], new]

    def refuse_begin() -> lmdb.Transaction:
        raise lmdb.MapFullError("mdb_put: MDB_MAP_FULL")

    run(scenario())


def test_what_waits_in_the_journal_has_its_room_in_lmdb(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = JournalRig(tmp_path)
        before = rig.store.room().bytes
        kept = await keep(rig.store, bytes(20_000))
        owed = before - rig.store.room().bytes
        assert 20_000 <= owed <= 40_000
        rig.settle()
        await rig.store.apply(Change(remove=(kept.id,)))
        assert before - rig.store.room().bytes < 20_000
        await rig.store.close()

    run(scenario())


def test_without_room_for_the_file_the_spool_works_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal_file.JournalFile, "_put", staticmethod(full))

    async def scenario() -> None:
        store = opened(tmp_path)
        assert store.journal is None
        assert not list(tmp_path.glob("journal*"))
        kept = await keep(store)
        await store.close()
        assert set(stored(tmp_path)) == {kept.id}

    run(scenario())


# --- the bytes --------------------------------------------------------------------------------------------------------


def test_records_say_what_they_do() -> None:
    entries = [
        Entry((1, b"record", b"body" * 2000), ((2, b"fields"), (3, b"")), (4, 5)),
        Entry(remove=(1,)),
        Entry((2**64 - 1, b"r", b"")),
    ]
    mark = JournalMark(bytes(16), SIZE, 4, 10, (77, 78))
    group = journal_layout.write_group(entries, 77, 11, 5.0)
    assert len(group) == journal_layout.blocks(sum(e.size for e in entries))
    file = bytearray(SIZE)
    at = start(SIZE, 4)
    file[at : at + len(group)] = group

    def read(at: int, count: int) -> bytes:
        return bytes(file[at : at + count])

    scan = Scan()
    found = list(scan.records(read, mark))
    assert [(r.number, r.date, r.entry) for r in found] == [(11 + n, 5.0, e) for n, e in enumerate(entries)]
    assert read(found[0].at, 8000) == b"body" * 2000
    assert not scan.lost
    assert [r.number for r in Scan().records(read, replace(mark, number=12))] == [13]
    for bit in range(0, entries[0].size * 8, 97):  # any bit of the first record
        file[at + bit // 8] ^= 1 << bit % 8
        scan = Scan()
        assert list(scan.records(read, mark)) == []
        file[at + bit // 8] ^= 1 << bit % 8
    assert len(list(Scan().records(read, mark))) == 3


def test_the_halves_do_not_overlap_and_the_header_is_outside() -> None:
    for size in (journal_layout.MIN_SIZE, SIZE, 16 << 20):
        assert start(size, 0) == BLOCK
        assert start(size, 1) == BLOCK + half(size)
        assert start(size, 1) + half(size) <= size
        assert half(size) % BLOCK == 0
    header = journal_layout.write_header(SIZE, b"i" * 16)
    assert journal_layout.read_header(header) == (SIZE, b"i" * 16)
    for spoilt in (b"", header[:20], b"X" + header[1:], bytes(BLOCK)):
        assert journal_layout.read_header(spoilt) is None


def test_no_journal_means_none(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = StoreRig(tmp_path)
        await keep(rig.store)
        assert rig.store.journal is None
        assert not (tmp_path / "journal").exists()
        await rig.store.close()

    run(scenario())
