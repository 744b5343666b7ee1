"""What every spool does: in memory, on LMDB, and on LMDB with a journal in front of it."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edgemail.envelope import Address, Envelope, Recipient
from edgemail.errors import SpoolDamaged, SpoolError, SpoolFull
from edgemail.reply import DISK_FULL, SPOOL_FULL
from edgemail.spool.intake import POOL_BYTES, SMALL_BYTES, SMALL_ROOM
from edgemail.spool.verbs import Change
from tests.spools import CHUNK, MAIL, JournalRig, MemoryRig, StoreRig, body_of, keep, run

Rig = MemoryRig | StoreRig


@pytest.fixture(params=[MemoryRig, StoreRig, JournalRig], ids=["memory", "lmdb", "journal"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Rig]:
    def make() -> Rig:
        made: Rig = request.param(tmp_path)
        return made

    return make


Make = Callable[[], Rig]


@pytest.mark.parametrize(
    "size", [0, 1, 5000, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 1, 9 * CHUNK + 7], ids=str
)
def test_what_is_kept_is_what_was_written(rig: Make, size: int) -> None:
    async def scenario() -> None:
        spool = rig().spool
        data = bytes(i * 7 % 256 for i in range(256)) * (size // 256 + 1)
        kept = await keep(spool, data[:size])
        assert kept == replace(MAIL, id=kept.id, size=size)
        assert spool.envelope(kept.id) == kept
        assert list(spool.envelopes()) == [kept]
        assert body_of(spool, kept.id) == data[:size]
        await spool.close()

    run(scenario())


def test_ids_rise_and_are_known_at_once(rig: Make) -> None:
    async def scenario() -> None:
        spool = rig().spool
        intakes = [spool.intake() for _ in range(3)]
        assert [i.id for i in intakes] == sorted({i.id for i in intakes})
        assert all(8 <= len(replace(MAIL, id=i.id).queue_id) <= 11 for i in intakes)
        for intake in reversed(intakes):
            intake.write(b"x")
            assert (await intake.commit(MAIL)).id == intake.id
        assert [e.id for e in spool.envelopes()] == [i.id for i in intakes]
        await spool.close()

    run(scenario())


def test_the_envelope_given_at_the_end_is_kept_whatever_it_says_of_id_and_size(rig: Make) -> None:
    async def scenario() -> None:
        spool = rig().spool
        intake = spool.intake()
        intake.write(b"four")
        assert intake.size == 4
        kept = await intake.commit(replace(MAIL, id=99, size=99, envid="QQ314159"))
        assert (kept.id, kept.size, kept.envid) == (intake.id, 4, "QQ314159")
        await spool.close()

    run(scenario())


def test_more_messages_than_one_read_holds(rig: Make) -> None:
    async def scenario() -> None:
        spool = rig().spool
        kept = await asyncio.gather(*(keep(spool, bytes((n % 256,)) * n) for n in range(200)))
        assert list(spool.envelopes()) == sorted(kept, key=lambda e: e.id)
        for envelope in kept:
            assert len(body_of(spool, envelope.id)) == envelope.size
        await spool.close()

    run(scenario())


def test_nothing_is_there_before_the_commit_and_nothing_after_an_abort(rig: Make) -> None:
    async def scenario() -> None:
        spool = rig().spool
        room = spool.room().bytes
        for size in (10, 5 * CHUNK):
            intake = spool.intake()
            intake.write(bytes(size))
            await intake.drain()
            assert spool.envelope(intake.id) is None
            with pytest.raises(KeyError):
                spool.body(intake.id)
            assert list(spool.envelopes()) == []
            await intake.abort()
            await intake.abort()
            assert list(spool.envelopes()) == []
            with pytest.raises(SpoolError):
                await intake.commit(MAIL)
            with pytest.raises(SpoolError):
                intake.write(b"more")
        await spool.apply(Change())  # the figure is refreshed by commits
        assert room - spool.room().bytes < CHUNK
        await spool.close()

    run(scenario())


def test_an_abort_after_the_commit_changes_nothing(rig: Make) -> None:
    async def scenario() -> None:
        spool = rig().spool
        intake = spool.intake()
        intake.write(bytes(3 * CHUNK))
        kept = await intake.commit(MAIL)
        await intake.abort()
        assert body_of(spool, kept.id) == bytes(3 * CHUNK)
        with pytest.raises(SpoolError):
            await intake.commit(MAIL)
        await spool.close()

    run(scenario())


def test_a_cancelled_commit_can_be_made_undone(rig: Make) -> None:
    async def scenario() -> None:
        spool = rig().spool
        intake = spool.intake()
        intake.write(b"x" * 3 * CHUNK)
        await intake.drain()
        task = asyncio.create_task(intake.commit(MAIL))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await intake.abort()
        assert list(spool.envelopes()) == []
        await keep(spool)
        await spool.close()

    run(scenario())


def test_an_abort_overtakes_a_commit_with_its_chunks(rig: Make) -> None:
    async def scenario() -> None:
        spool = rig().spool
        intake = spool.intake()
        intake.write(b"x" * 3 * CHUNK)
        task = asyncio.create_task(intake.commit(MAIL))
        await asyncio.sleep(0)
        await intake.abort()
        with pytest.raises(SpoolError, match="aborted"):
            await task
        await spool.apply(Change())
        assert list(spool.envelopes()) == []
        await spool.close()

    run(scenario())


def test_update_replaces_and_passes_over_what_is_gone(rig: Make) -> None:
    async def scenario() -> None:
        spool = rig().spool
        one, two, three = [await keep(spool) for _ in range(3)]
        await spool.apply(Change(remove=(two.id,)))
        waits = Recipient(Address("b", "example.net"), reason="connection refused " * 300, status="4.4.1")
        changes = tuple(replace(e, recipients=(waits,), attempts=1, next_attempt=9.0, size=12345) for e in (one, two))
        await spool.apply(Change(update=changes), lazy=True)
        assert list(spool.envelopes()) == [replace(changes[0], size=one.size), three]
        assert spool.envelope(two.id) is None
        assert body_of(spool, one.id) == body_of(spool, three.id)
        await spool.close()

    run(scenario())


def test_remove_finishes_messages(rig: Make) -> None:
    async def scenario() -> None:
        spool = rig().spool
        one, two = await keep(spool), await keep(spool, bytes(5 * CHUNK))
        reading = spool.body(two.id)
        next(reading)
        await spool.apply(Change(remove=(two.id, two.id, 4711)))
        assert list(spool.envelopes()) == [one]
        with pytest.raises(KeyError):
            spool.body(two.id)
        with pytest.raises(KeyError):
            next(reading)
        await spool.apply(Change(remove=(one.id,)), lazy=True)
        assert list(spool.envelopes()) == []
        await spool.close()

    run(scenario())


def test_a_bounce_and_the_end_of_its_message_are_one(rig: Make) -> None:
    async def scenario() -> None:
        made = rig()
        spool = made.spool
        failed, other = await keep(spool), await keep(spool)
        change = Change(remove=(failed.id,), update=(replace(other, attempts=1),))
        made.failing(True)
        with pytest.raises(SpoolError):
            await keep(spool, b"bounce", change)
        made.failing(False)
        assert list(spool.envelopes()) == [failed, other]
        bounce = await keep(spool, b"bounce", change)
        assert list(spool.envelopes()) == [replace(other, attempts=1), bounce]
        await spool.close()

    run(scenario())


def test_a_failing_medium_keeps_nothing_and_loses_nothing(rig: Make) -> None:
    async def scenario() -> None:
        made = rig()
        spool = made.spool
        kept = await keep(spool)
        made.failing(True)
        results = await asyncio.gather(*(keep(spool, bytes(n * CHUNK)) for n in range(5)), return_exceptions=True)
        assert [type(r) for r in results] == [SpoolError] * 5
        with pytest.raises(SpoolError) as caught:
            await spool.apply(Change(remove=(kept.id,)))
        assert caught.value.reply.temporary
        made.failing(False)
        assert list(spool.envelopes()) == [kept]
        again = await keep(spool, bytes(3 * CHUNK))
        assert list(spool.envelopes()) == [kept, again]
        await spool.close()

    run(scenario())


def test_a_full_spool_refuses_mail_and_still_drains(rig: Make) -> None:
    async def scenario() -> None:
        made = rig()
        spool = made.spool
        one, two = await keep(spool), await keep(spool)
        made.full(True)
        assert spool.room().bytes == 0
        with pytest.raises(SpoolFull) as caught:
            await keep(spool)
        assert caught.value.reply in (SPOOL_FULL, DISK_FULL)
        intake = spool.intake()
        intake.write(bytes(2 * CHUNK))
        with pytest.raises(SpoolFull):
            while True:
                await intake.drain()
                await asyncio.sleep(0)
        intake.write(bytes(10 * CHUNK))  # what comes after it is counted and dropped
        assert intake.size == 12 * CHUNK
        with pytest.raises(SpoolFull):
            await intake.commit(MAIL)
        await intake.abort()
        await spool.apply(Change(update=(replace(one, attempts=1),), remove=(two.id,)))
        assert list(spool.envelopes()) == [replace(one, attempts=1)]
        made.full(False)
        await keep(spool)
        assert len(list(spool.envelopes())) == 2
        await spool.close()

    run(scenario())


def test_a_damaged_envelope_is_set_aside_and_the_rest_goes_on(rig: Make) -> None:
    async def scenario() -> None:
        made = rig()
        spool = made.spool
        one, two, three = [await keep(spool, bytes(2 * CHUNK)) for _ in range(3)]
        made.damage_envelope(two.id)
        with pytest.raises(SpoolDamaged) as caught:
            spool.envelope(two.id)
        assert caught.value.id == two.id
        with pytest.raises(SpoolDamaged):
            spool.body(two.id)
        assert list(spool.envelopes()) == [one, three]
        await spool.apply(Change())
        (damaged,) = spool.damaged()
        assert damaged.id == two.id
        assert "checksum" in damaged.why
        assert spool.envelope(two.id) is None
        await spool.apply(Change(remove=(two.id,), update=(two,)))  # comes too late, and must not reach it
        assert [d.id for d in spool.damaged()] == [two.id]
        assert list(spool.envelopes()) == [one, three]
        await spool.close()

    run(scenario())


def test_an_update_of_a_damaged_envelope_sets_it_aside(rig: Make) -> None:
    async def scenario() -> None:
        made = rig()
        one, two = await keep(made.spool), await keep(made.spool)
        made.damage_envelope(one.id)
        await made.spool.apply(Change(update=(replace(one, attempts=1), replace(two, attempts=1))))
        assert [d.id for d in made.spool.damaged()] == [one.id]
        assert list(made.spool.envelopes()) == [replace(two, attempts=1)]
        await made.spool.close()

    run(scenario())


@pytest.mark.parametrize("how", ["bit", "first", "last"])
def test_a_damaged_body_is_noticed_before_its_end(rig: Make, how: str) -> None:
    async def scenario() -> None:
        made = rig()
        spool = made.spool
        bad, good = await keep(spool, bytes(3 * CHUNK)), await keep(spool, bytes(3 * CHUNK))
        if how == "bit":
            made.damage_body(bad.id)
        else:
            made.lose_chunk(bad.id, 1 if how == "first" else 3)
        got = 0
        with pytest.raises(SpoolDamaged):
            for chunk in spool.body(bad.id):
                got += len(chunk)
        assert got < bad.size  # no receiver ever sees its end
        await spool.quarantine(bad.id, "body does not match")
        await spool.quarantine(bad.id, "a second time")
        assert [(d.id, d.why) for d in spool.damaged()] == [(bad.id, "body does not match")]
        assert list(spool.envelopes()) == [good]
        assert body_of(spool, good.id) == bytes(3 * CHUNK)
        assert await spool.discard(bad.id)
        assert not await spool.discard(bad.id)
        assert not await spool.discard(good.id)
        assert list(spool.damaged()) == []
        await spool.close()

    run(scenario())


def test_any_number_of_messages_may_be_half_read(rig: Make) -> None:
    async def scenario() -> None:
        spool = rig().spool
        kept = [await keep(spool, bytes(3 * CHUNK)) for _ in range(40)]
        bodies = [spool.body(envelope.id) for envelope in kept]
        lists = [spool.envelopes() for _ in kept]
        for reading in (*bodies, *lists):
            next(reading)
        aside = [spool.damaged() for _ in kept]
        assert all(sum(map(len, reading)) == 2 * CHUNK for reading in bodies)
        assert all(list(reading) == kept[1:] for reading in lists)
        assert not any(list(reading) for reading in aside)
        await spool.close()

    run(scenario())


def test_a_small_message_does_not_wait_for_big_ones(rig: Make) -> None:
    async def scenario() -> None:
        spool = rig().spool
        pool = spool._pool
        pool.bound = POOL_BYTES // 8
        big, small, second = (spool.intake() for _ in range(3))
        for _ in range(40):
            big.write(bytes(SMALL_BYTES))
        small.write(b"small")
        second.write(bytes(SMALL_BYTES + 1))
        passed, waits = (asyncio.ensure_future(each.drain()) for each in (small, second))
        await asyncio.sleep(0)
        assert not pool.within
        assert passed.done() and not waits.done()
        assert (await small.commit(MAIL)).size == 5
        await waits
        for each in (big, second):
            await each.abort()
        assert pool.held == pool.flying == 0
        await spool.close()

    run(scenario())


def test_all_sessions_together_stay_within_the_bound(rig: Make) -> None:
    """Fifty senders, half of them falling silent in mid-message: the others go on, the memory has its bound."""

    async def scenario() -> None:
        made = rig()
        spool = made.spool
        pool = spool._pool
        pool.bound = bound = POOL_BYTES // 8
        pool.extra = extra = SMALL_ROOM // 8
        read = 8192
        most = 0
        silent = [spool.intake() for _ in range(25)]
        for intake in silent:
            for _ in range(7):
                intake.write(bytes(read))
                await intake.drain()
                most = max(most, pool.held + pool.flying)

        async def send() -> Envelope:
            nonlocal most
            intake = spool.intake()
            for _ in range(50):
                intake.write(bytes(read))
                most = max(most, pool.held + pool.flying)
                await intake.drain()
            kept: Envelope = await intake.commit(MAIL)
            return kept

        kept = await asyncio.gather(*(send() for _ in range(25)))
        assert most <= bound + extra + 25 * read
        for intake in silent:
            intake.write(b"end")
            kept.append(await intake.commit(MAIL))
        assert pool.held == pool.flying == 0
        assert not pool.intakes
        for envelope in kept:
            assert (
                body_of(spool, envelope.id)
                == bytes(envelope.size - envelope.size % read) + b"end"[: envelope.size % read]
            )
        await spool.close()

    run(scenario())


def test_nobody_waits_for_ever_when_the_medium_fails_under_pressure(rig: Make) -> None:
    async def scenario() -> None:
        made = rig()
        spool = made.spool
        spool._pool.bound = 4 * CHUNK
        made.failing(True)
        results = await asyncio.gather(*(keep(spool, bytes(8 * CHUNK)) for _ in range(20)), return_exceptions=True)
        assert {type(r) for r in results} == {SpoolError}
        assert spool._pool.held == spool._pool.flying == 0
        made.failing(False)
        await keep(spool, bytes(8 * CHUNK))
        await spool.close()

    run(scenario())


def test_close_finishes_what_waits_and_then_takes_nothing(rig: Make) -> None:
    async def scenario() -> None:
        spool = rig().spool
        one = await keep(spool)
        half = spool.intake()
        half.write(bytes(5 * CHUNK))
        intake = spool.intake()
        intake.write(b"in the last moment")
        commit = asyncio.create_task(intake.commit(MAIL))
        lazy = asyncio.create_task(spool.apply(Change(update=(replace(one, attempts=1),)), lazy=True))
        await asyncio.sleep(0)
        await spool.close()
        await spool.close()
        assert (await commit).id == intake.id
        await lazy
        with pytest.raises(SpoolError):
            spool.intake()
        with pytest.raises(SpoolError):
            await spool.apply(Change(remove=(one.id,)))
        await half.abort()
        gc.collect()

    run(scenario())
