"""What LMDB knows of the journal is lost, or is of an earlier time: what stands in the journal is not lost with it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import lmdb
import pytest

from edgemail.clock import RELEASE_DATE, ManualClock
from edgemail.envelope import Envelope
from edgemail.spool import journal_layout, layout, replay, writer
from edgemail.spool.environment import Environment
from edgemail.spool.replay import HELD, STRANGE
from edgemail.spool.verbs import Change
from tests.spools import MAP, JournalRig, keep, run
from tests.unit.test_spool_journal import again, crash, journal_of, opened, overwrite, table, told


@pytest.fixture(autouse=True)
def never_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test leaves in the journal stays there until the test says otherwise."""
    monkeypatch.setattr(writer, "IDLE_SECONDS", 3600.0)


def write_meta(directory: Path, record: bytes | None) -> None:
    """Put this in the place of the meta record; None: take it away."""
    with lmdb.open(str(directory), map_size=MAP) as env, env.begin(write=True) as transaction:
        if record is None:
            assert transaction.delete(layout.meta_key())
        else:
            transaction.put(layout.meta_key(), record)


def held(mail: list[Envelope]) -> list[Envelope]:
    return [replace(one, hold=True, hold_reason=HELD) for one in mail]


LOST = [None, b"?" * 92]


@pytest.mark.parametrize("record", LOST, ids=["gone", "damaged"])
def test_what_stands_in_the_journal_alone_goes_on_hold(tmp_path: Path, record: bytes | None) -> None:
    async def scenario() -> None:
        rig = JournalRig(tmp_path)
        moved = await keep(rig.store, b"moved")
        rig.settle()
        waits = await keep(rig.store, b"waits")
        changed = await keep(rig.store, b"changed")
        changed = replace(changed, attempts=3)
        await rig.store.apply(Change(update=(changed,)))
        finished = await keep(rig.store, b"finished")
        await rig.store.apply(Change(remove=(finished.id,)))
        crash(rig.store)
        write_meta(tmp_path, record)
        shown, lost, report = told(tmp_path)
        assert shown == [moved, *held([waits, changed])]
        assert lost == STRANGE
        assert not report.sound and report.nameless
        before = (tmp_path / "journal").read_bytes()
        found, bodies, lost = await again(tmp_path)
        assert found == shown
        assert list(bodies.values()) == [b"moved", b"waits", b"changed"]
        assert lost == STRANGE
        assert (tmp_path / "journal.aside.1").read_bytes() == before
        store = opened(tmp_path)
        assert store.recovered is None
        assert list(store.envelopes()) == shown
        assert store.intake().id > finished.id
        await store.close()

    run(scenario())


def test_the_latest_date_is_the_journals(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = ManualClock()
        store = opened(tmp_path, clock=clock)
        clock.advance(86_400.0)
        await keep(store)
        crash(store)
        write_meta(tmp_path, None)
        lost = ManualClock(0.0)
        lost.trust = False
        store = opened(tmp_path, clock=lost)
        assert store.floor == RELEASE_DATE + 86_400.0
        await store.close()

    run(scenario())


def test_a_rescue_may_be_cut_and_come_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "MOVE_BYTES", 100_000)

    async def scenario() -> None:
        store = opened(tmp_path)
        kept = [await keep(store, os.urandom(20_000)) for _ in range(20)]
        crash(store)
        write_meta(tmp_path, None)
        commit = Environment.commit
        left = 1

        def cut(self: Environment, transaction: object) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            commit(self, transaction)

        with monkeypatch.context() as patch:
            patch.setattr(Environment, "commit", cut)
            with pytest.raises(KeyboardInterrupt):
                opened(tmp_path)
        assert 0 < len([key for key in table(tmp_path) if key[0] == layout.MAIL]) < 2 * len(kept)
        assert told(tmp_path)[0] == held(kept)
        assert (await again(tmp_path))[0] == held(kept)

    run(scenario())


def test_an_earlier_mark_is_known_by_what_the_file_holds(tmp_path: Path) -> None:
    """As a repair may find it on a page that nothing leads to any more."""

    async def scenario() -> None:
        rig = JournalRig(tmp_path, journal=journal_layout.MIN_SIZE)
        await keep(rig.store, b"first")
        early = table(rig.store)[layout.meta_key()]
        journal = journal_of(rig.store)
        while journal._epoch < 6:
            await rig.store.apply(Change(remove=((await keep(rig.store, os.urandom(30_000))).id,)))
        kept = await keep(rig.store, b"last")
        assert kept.id in journal.ids()
        crash(rig.store)
        write_meta(tmp_path, early)
        shown, lost, report = told(tmp_path)
        assert held([kept])[0] in shown
        assert STRANGE in lost
        assert not report.sound
        found, bodies, _ = await again(tmp_path)
        assert found == shown
        assert bodies[kept.id] == b"last"

    run(scenario())


def test_without_the_table_the_journal_is_still_read(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = JournalRig(tmp_path)
        kept = await keep(rig.store, b"waits")
        crash(rig.store)
        for name in ("data.mdb", "lock.mdb"):
            (tmp_path / name).unlink(missing_ok=True)
        found, bodies, lost = await again(tmp_path)
        assert found == held([kept])
        assert bodies == {kept.id: b"waits"}
        assert lost == STRANGE

    run(scenario())


def test_after_an_orderly_stop_nothing_comes_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = JournalRig(tmp_path)
        gone = await keep(rig.store, b"delivered")
        await rig.store.apply(Change(remove=(gone.id,)))
        kept = await keep(rig.store, b"waits")
        await rig.store.close()
        write_meta(tmp_path, None)
        shown, lost, report = told(tmp_path)
        assert (shown, lost, report.nameless) == ([kept], "", True)
        found, _, lost = await again(tmp_path)
        assert (found, lost) == ([kept], "")

    run(scenario())


def test_a_hole_in_such_a_journal_is_said_too(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = JournalRig(tmp_path)
        kept = [await keep(rig.store, b"%d" % number) for number in range(4)]
        begin = journal_layout.start(1 << 20, 1)
        crash(rig.store)
        overwrite(tmp_path, begin, b"?" * 64)
        overwrite(tmp_path, begin + 2 * journal_layout.BLOCK, b"?" * 64)
        write_meta(tmp_path, None)
        found, bodies, lost = await again(tmp_path)
        assert found == held([kept[1], kept[3]])
        assert list(bodies.values()) == [b"1", b"3"]
        assert lost == f"2 records of the journal do not read; {STRANGE}"

    run(scenario())


def test_an_epoch_is_told_by_its_salt() -> None:
    identity = os.urandom(16)
    salts = [journal_layout.salt_of(identity, epoch) for epoch in range(1, 1000)]
    assert len(set(salts)) == 999
    assert [journal_layout._epoch_of(identity, salt) for salt in salts] == list(range(1, 1000))
    assert not any(journal_layout._epoch_of(os.urandom(16), salt) for salt in salts)


def test_a_body_never_speaks_for_the_journal(tmp_path: Path) -> None:
    """Records forged with a salt of one's own, from the first octet of a block on."""

    async def scenario() -> None:
        rig = JournalRig(tmp_path)
        record = layout.seal(7, layout.Head(0, 0, 0), b"")
        forged = [
            journal_layout.write_group([journal_layout.Entry((7, record, b""))], salt, number, 0.0)
            for number, salt in enumerate((1, 2**64 - 1, 5), 50)
        ]
        pads = [await keep(rig.store, bytes(pad) + b"".join(forged)) for pad in range(3800, 4096, 37)]
        crash(rig.store)
        write_meta(tmp_path, None)
        found, bodies, _ = await again(tmp_path)
        assert found == held(pads)
        assert all(len(body) for body in bodies.values())

    run(scenario())
