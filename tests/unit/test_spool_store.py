"""The spool on LMDB: the barrier, grouping, ids, locks, readers, recovery."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lmdb
import pytest

from edgemail.clock import RELEASE_DATE, ManualClock
from edgemail.envelope import Envelope
from edgemail.errors import DiskFull, SpoolBusy, SpoolDamaged, SpoolError, SpoolFull
from edgemail.spool import environment, layout, records, register
from edgemail.spool import intake as intake_module
from edgemail.spool import store as store_module
from edgemail.spool.layout import Head, Meta
from edgemail.spool.recover import Report, verify
from edgemail.spool.store import Store, open_reader, open_store
from edgemail.spool.verbs import Change
from tests.spools import CHUNK, MAIL, MAP, StoreRig, body_of, edit_record, keep, run, turn_bit


def opened(directory: Path, clock: ManualClock | None = None, size: int = MAP) -> Store:
    return open_store(directory, size, clock or ManualClock(), 0)


def crash(store: Store) -> None:
    """Let go of the spool as a power cut does: nothing is marked, nothing is finished."""
    store._writer.stop()
    store._environment.close()
    store._holder.release()


def raw(directory: Path) -> dict[bytes, bytes]:
    """Every record of a spool that nobody has open."""
    with contextlib.closing(lmdb.open(str(directory), readonly=True, map_size=0)) as env, env.begin() as transaction:
        return {bytes(key): bytes(value) for key, value in transaction.cursor()}


def spoil(directory: Path, key: bytes, value: bytes | None) -> None:
    """Set or delete one record of a spool that nobody has open."""
    with contextlib.closing(lmdb.open(str(directory), map_size=MAP)) as env, env.begin(write=True) as transaction:
        if value is None:
            assert transaction.delete(key)
        else:
            transaction.put(key, value)


def check(directory: Path) -> Report:
    with open_reader(directory) as reader:
        return verify(reader)


def waiter(gate: threading.Event) -> Callable[[Any], None]:
    """Hold every commit until the gate is open."""

    def wait(_: Any) -> None:
        assert gate.wait(10)

    return wait


# --- the barrier ----------------------------------------------------------------------------------------------------


def test_a_commit_returns_after_the_barrier_and_not_before(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = StoreRig(tmp_path)
        gate = threading.Event()
        entered = threading.Event()

        def wait(_: Any) -> None:
            entered.set()
            assert gate.wait(10)

        rig.on_commit = wait
        intake = rig.store.intake()
        intake.write(b"x")
        commit = asyncio.create_task(intake.commit(MAIL))
        change = asyncio.create_task(rig.store.apply(Change(remove=(1,))))
        while not entered.is_set():
            await asyncio.sleep(0)
        for _ in range(100):
            await asyncio.sleep(0)
        assert not commit.done()
        assert not change.done()
        assert rig.store.envelope(intake.id) is None
        gate.set()
        await commit
        await change
        assert rig.store.envelope(intake.id) is not None
        await rig.store.close()

    run(scenario())


def test_lmdb_is_asked_for_every_barrier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    real = lmdb.open

    def spy(*args: Any, **options: Any) -> Any:
        seen.update(options)
        return real(*args, **options)

    monkeypatch.setattr(lmdb, "open", spy)

    async def scenario() -> None:
        store = opened(tmp_path)
        assert (tmp_path / "lock.mdb").stat().st_mode & 0o777 == 0o660
        await store.close()

    run(scenario())
    assert (seen["sync"], seen["metasync"], seen["writemap"], seen["meminit"]) == (True, True, False, True)
    assert (seen["readahead"], seen["max_dbs"], seen["max_readers"]) == (False, 0, 8)
    assert seen.get("lib_version", 0) == 0
    assert (tmp_path / "data.mdb").stat().st_mode & 0o007 == 0


def test_what_collects_during_one_commit_goes_into_the_next(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = StoreRig(tmp_path)
        gate = threading.Event()
        rig.on_commit = waiter(gate)
        tasks = [asyncio.create_task(keep(rig.store)) for _ in range(50)]
        for _ in range(100):
            await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(*tasks)
        assert rig.commits <= 3
        await rig.store.close()

    run(scenario())


def test_a_batch_has_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgemail.spool.writer.BATCH_BYTES", 4 * (CHUNK + 16))

    async def scenario() -> None:
        rig = StoreRig(tmp_path)
        gate = threading.Event()
        rig.on_commit = waiter(gate)
        first = asyncio.create_task(keep(rig.store))
        await asyncio.sleep(0)
        intake = rig.store.intake()
        intake.write(bytes(16 * CHUNK))
        commit = asyncio.create_task(intake.commit(MAIL))
        await asyncio.sleep(0)
        gate.set()
        await first
        await commit
        assert rig.store._writer.tally.largest <= 4
        assert rig.commits >= 5
        await rig.store.close()

    run(scenario())


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for company waits until it has some."""
    monkeypatch.setattr("edgemail.spool.writer.LAZY_SECONDS", 3600.0)


@pytest.mark.usefixtures("patient")
def test_a_lazy_change_waits_for_company(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = StoreRig(tmp_path)
        one, two = await keep(rig.store), await keep(rig.store)
        before = rig.commits
        lazy = [asyncio.create_task(rig.store.apply(Change(remove=(e.id,)), lazy=True)) for e in (one, two)]
        for _ in range(100):
            await asyncio.sleep(0)
        assert rig.commits == before
        await keep(rig.store)
        await asyncio.gather(*lazy)
        assert rig.commits == before + 1
        lonely = asyncio.create_task(rig.store.apply(Change(remove=(one.id,)), lazy=True))
        await asyncio.sleep(0)
        await rig.store.close()
        await lonely

    run(scenario())


@pytest.mark.usefixtures("patient")
def test_a_message_of_some_chunks_needs_one_commit(tmp_path: Path) -> None:
    """Its chunks wait for its end, but for no longer than a lazy change does."""

    async def scenario() -> None:
        rig = StoreRig(tmp_path)
        await keep(rig.store)
        before = rig.commits
        intake = rig.store.intake()
        intake.write(bytes(5 * CHUNK + 1))
        await intake.drain()
        await asyncio.sleep(0.1)  # a chunk that did not wait would be written by now
        await intake.commit(MAIL)
        assert rig.commits == before + 1
        await rig.store.close()

    run(scenario())


@pytest.mark.usefixtures("patient")
def test_a_long_message_is_on_its_way_while_it_comes(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = StoreRig(tmp_path)
        await keep(rig.store)
        before = rig.commits
        intake = rig.store.intake()
        for _ in range(intake_module.MESSAGE_CHUNKS + 2):
            intake.write(bytes(CHUNK))
            await asyncio.wait_for(intake.drain(), 10)  # for the chunks before
        assert rig.commits > before
        await intake.abort()
        await rig.store.close()

    run(scenario())


# --- a transaction that fails ----------------------------------------------------------------------------------------


def test_one_bad_job_does_not_fail_its_neighbours(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = StoreRig(tmp_path)
        gate = threading.Event()
        rig.on_commit = waiter(gate)
        first = asyncio.create_task(keep(rig.store))
        await asyncio.sleep(0)

        def bad(transaction: Any) -> None:
            transaction.put(b"\x01half of it", b"")
            raise lmdb.MapFullError("mdb_put: MDB_MAP_FULL")

        def mistake(_: Any) -> None:
            raise ZeroDivisionError

        good = [asyncio.create_task(keep(rig.store)) for _ in range(9)]
        await asyncio.sleep(0)
        failed = rig.store._writer.submit(bad)
        wrong = rig.store._writer.submit(mistake)
        good += [asyncio.create_task(keep(rig.store)) for _ in range(9)]
        await asyncio.sleep(0)
        gate.set()
        kept = [await task for task in (first, *good)]
        with pytest.raises(SpoolFull):
            await failed
        with pytest.raises(SpoolError, match="ZeroDivisionError"):
            await wrong
        assert list(rig.store.envelopes()) == sorted(kept, key=lambda e: e.id)
        await rig.store.close()
        assert check(tmp_path) == Report(messages=19, bytes=19 * kept[0].size)

    run(scenario())


def test_a_chunk_that_failed_fails_its_message(tmp_path: Path) -> None:
    """The end of the message waits already when the medium refuses a chunk, and would be taken."""

    async def scenario() -> None:
        rig = StoreRig(tmp_path)
        gate = threading.Event()
        rig.on_commit = waiter(gate)
        first = asyncio.create_task(keep(rig.store))
        await asyncio.sleep(0)
        intake = rig.store.intake()
        intake.write(bytes(3 * CHUNK))
        next(job for job in rig.store._writer._jobs if job.due).steps = failing  # the lazy one is the chunk
        commit = asyncio.create_task(intake.commit(MAIL))
        await asyncio.sleep(0)
        gate.set()
        kept = await first
        with pytest.raises(SpoolError, match="a chunk fails"):
            await commit
        await intake.abort()
        assert [envelope.id for envelope in rig.store.envelopes()] == [kept.id]
        await keep(rig.store)
        await rig.store.close()

    def failing(_: Any) -> None:
        raise SpoolError("a chunk fails")

    run(scenario())


def test_a_put_that_stores_nothing_is_a_failure(tmp_path: Path) -> None:
    class Deaf:
        def put(self, key: bytes, value: bytes) -> bool:
            return False

    with pytest.raises(SpoolError):
        records.put(Deaf(), b"\x01", b"")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (lmdb.MapFullError("mdb_put: MDB_MAP_FULL"), SpoolFull),
        (lmdb.DiskError("mdb_txn_commit: No space left on device"), DiskFull),
        (lmdb.Error("mdb_txn_commit: No space left on device"), DiskFull),
        (lmdb.Error("mdb_txn_commit: Input/output error"), SpoolError),
        (lmdb.PanicError("mdb_txn_begin: MDB_PANIC"), SpoolError),
        (lmdb.CorruptedError("mdb_get: MDB_CORRUPTED"), SpoolError),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_errors_of_lmdb_become_ours(tmp_path: Path, error: lmdb.Error, kind: type[SpoolError]) -> None:
    with pytest.raises(SpoolError) as caught, environment.map_errors(tmp_path):
        raise error
    assert type(caught.value) is kind


def test_a_short_write_is_want_of_room_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_no_room", lambda _: True)
    with pytest.raises(SpoolFull), environment.map_errors(tmp_path):
        raise lmdb.Error("mdb_txn_commit: Input/output error")


def test_a_page_that_cannot_be_right_is_the_damage_of_the_record_sought(tmp_path: Path) -> None:
    with pytest.raises(SpoolDamaged) as caught, environment.map_errors(tmp_path, 7):
        raise lmdb.PageNotFoundError("mdb_get: MDB_PAGE_NOTFOUND")
    assert caught.value.id == 7


def test_a_poisoned_environment_is_opened_anew(tmp_path: Path) -> None:
    """As after a meta page that could not be written: every later transaction fails with MDB_PANIC."""

    class Poisoned:
        def __init__(self, env: Any) -> None:
            self._env = env

        def begin(self, write: bool = False) -> Any:
            if write:
                raise lmdb.PanicError("mdb_txn_begin: MDB_PANIC")
            return self._env.begin()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._env, name)

    async def scenario() -> None:
        rig = StoreRig(tmp_path)
        one = await keep(rig.store)
        rig.store._environment._env = Poisoned(rig.store._environment._env)
        two = await keep(rig.store)
        assert list(rig.store.envelopes()) == [one, two]
        assert not isinstance(rig.store._environment._env, Poisoned)
        await rig.store.close()

    run(scenario())


def test_many_removals_are_done_in_steps(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = StoreRig(tmp_path)
        kept = await asyncio.gather(*(keep(rig.store, b"") for _ in range(3 * store_module.REMOVALS_PER_COMMIT)))
        before = rig.commits
        await rig.store.apply(Change(remove=tuple(e.id for e in kept)))
        assert rig.commits == before + 3
        assert list(rig.store.envelopes()) == []
        await rig.store.close()

    run(scenario())


def test_what_was_set_aside_is_out_of_reach_of_removals(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = opened(tmp_path)
        kept = await keep(store, bytes(2 * CHUNK))
        await store.quarantine(kept.id, "because")
        await store.apply(Change(remove=(kept.id,), update=(kept,)))
        await store.close()
        there = {layout.aside_key(kept.id), layout.note_key(kept.id), layout.key(kept.id, 1), layout.key(kept.id, 2)}
        assert set(raw(tmp_path)) == there | {layout.meta_key()}
        store = opened(tmp_path)
        assert await store.discard(kept.id)
        await store.close()
        assert set(raw(tmp_path)) == {layout.meta_key()}

    run(scenario())


def test_an_abort_during_the_commit_wins(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = StoreRig(tmp_path)
        gate = threading.Event()
        rig.on_commit = waiter(gate)
        intake = rig.store.intake()
        intake.write(b"x")
        commit = asyncio.create_task(intake.commit(MAIL))
        await asyncio.sleep(0)
        abort = asyncio.create_task(intake.abort())
        await asyncio.sleep(0)
        gate.set()
        with pytest.raises(SpoolError, match="aborted"):  # or a 250 would follow for what is removed
            await commit
        await abort
        assert list(rig.store.envelopes()) == []
        await rig.store.close()

    run(scenario())


# --- ids and the meta record -----------------------------------------------------------------------------------------


def test_a_new_spool_begins_at_the_clock(tmp_path: Path) -> None:
    async def scenario() -> None:
        for name, wall, first in (
            ("now", RELEASE_DATE, int(RELEASE_DATE) << 8),
            ("never set", 86_400.0, 1),
            ("far future", 1e12, register.MAX_FIRST_ID),
        ):
            store = opened(tmp_path / name, ManualClock(wall))
            assert store.intake().id == first
            assert 8 <= len(replace(MAIL, id=first + 2**40).queue_id) <= 11
            await store.close()

    run(scenario())


def test_no_id_is_given_twice(tmp_path: Path) -> None:
    async def scenario() -> None:
        given: list[int] = []
        for round in range(6):
            store = opened(tmp_path)
            given += [(await keep(store)).id for _ in range(3)]
            given += [store.intake().id for _ in range(700)]  # named in a log, and never committed
            if round % 2:
                crash(store)
            else:
                await store.close()
        assert given == sorted(set(given))

    run(scenario())


def test_an_orderly_stop_skips_no_id(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = opened(tmp_path)
        last = (await keep(store)).id
        await store.close()
        store = opened(tmp_path)
        assert store.recovered is None
        assert store.intake().id == last + 1
        await store.close()

    run(scenario())


def test_ids_are_reserved_before_they_run_out(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = StoreRig(tmp_path)
        for _ in range(3 * register.ID_BLOCK):  # sessions that come and never send
            await rig.store.intake().abort()
            if rig.store._background:
                await asyncio.wait(rig.store._background)
        assert rig.commits <= 1 + 3 * register.ID_BLOCK // (register.ID_BLOCK // 2)
        rig.failing(True)
        with pytest.raises(SpoolFull):
            while True:
                await rig.store.intake().abort()
                await asyncio.sleep(0)
        rig.failing(False)
        await rig.store.apply(Change())
        await keep(rig.store)
        await rig.store.close()

    run(scenario())


def test_the_date_floor_rises_with_a_trusted_clock_only(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = ManualClock()
        store = opened(tmp_path, clock)
        assert store.floor == RELEASE_DATE
        clock.advance(90.0)
        await keep(store)
        assert store.floor == RELEASE_DATE + 90.0
        clock.advance(1e9)
        clock.trust = False
        await keep(store)
        await store.close()
        store = opened(tmp_path, ManualClock(0.0))
        assert store.floor == RELEASE_DATE + 90.0
        await store.close()

    run(scenario())


def test_a_newer_format_is_refused_with_advice(tmp_path: Path) -> None:
    async def scenario() -> None:
        await opened(tmp_path).close()
        record = raw(tmp_path)[layout.meta_key()]
        newer = record[:4] + (3).to_bytes(2, "big") + record[6:-4] + b"more"
        spoil(tmp_path, layout.meta_key(), newer + zlib.crc32(newer).to_bytes(4, "big"))
        for opener in (lambda: opened(tmp_path), lambda: open_reader(tmp_path)):
            with pytest.raises(SpoolError, match=r"format 3.*start the release that wrote it"):
                opener()
        assert layout.read_meta(raw(tmp_path)[layout.meta_key()]).format == 3

    run(scenario())


def test_a_damaged_meta_record_is_made_anew(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = opened(tmp_path, ManualClock(RELEASE_DATE))
        kept = await keep(store)
        await store.close()
        for value in (b"nothing", None):
            if value is None:
                spoil(tmp_path, layout.meta_key(), None)
            else:
                spoil(tmp_path, layout.meta_key(), value)
            store = opened(tmp_path, ManualClock(0.0))  # and the clock lost its battery too
            assert next(store.envelopes()) == kept
            assert (await keep(store)).id > kept.id
            await store.close()

    run(scenario())


# --- who may open it -------------------------------------------------------------------------------------------------


def test_a_second_start_names_the_first(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = opened(tmp_path)
        with pytest.raises(SpoolBusy, match=f"process {os.getpid()}"):
            opened(tmp_path)
        code = (
            "import sys; from pathlib import Path; from edgemail.clock import ManualClock;"
            "from edgemail.errors import SpoolBusy; from edgemail.spool.store import open_store\n"
            "try: open_store(Path(sys.argv[1]), 1 << 25, ManualClock(), 0)\n"
            "except SpoolBusy as error: print(error)"
        )
        said = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
        assert f"process {os.getpid()}" in said.stdout
        await keep(store)
        await store.close()
        await opened(tmp_path).close()

    run(scenario())


def test_what_cannot_be_opened_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(SpoolError, match="must be a directory"):
        opened(tmp_path / "file")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "data.mdb").write_bytes(b"not a spool at all" * 1000)
    with pytest.raises(SpoolError):
        opened(tmp_path / "foreign")
    with pytest.raises(SpoolError):
        opened(tmp_path / "foreign")  # the lock was given up
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(SpoolError, match="no spool here"):
            open_reader(path)


READ = """
import json, sys
from pathlib import Path
from edgemail.errors import SpoolError
from edgemail.spool.recover import verify
from edgemail.spool.store import open_reader
if len(sys.argv) > 2:
    import os
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    with open_reader(Path(sys.argv[1])) as reader:
        found = [[e.id, len(b"".join(reader.body(e.id)))] for e in reader.envelopes()]
        print(json.dumps({"found": found, "aside": [d.id for d in reader.damaged()],
            "skipped": [e.id for e in reader.skipped], "sound": verify(reader).sound}))
except SpoolError as error:
    print(json.dumps({"error": str(error)}))
"""


def read_from_outside(directory: Path, *nobody: str) -> dict[str, Any]:
    code = [sys.executable, "-c", READ, str(directory), *nobody]
    said = subprocess.run(code, capture_output=True, text=True, check=True)
    answer: dict[str, Any] = json.loads(said.stdout)
    return answer


def test_a_reader_beside_the_relay_and_after_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = StoreRig(tmp_path)
        one, bad = await keep(rig.store, bytes(3 * CHUNK)), await keep(rig.store)
        rig.damage_envelope(bad.id)
        expected = {"found": [[one.id, one.size]], "aside": [], "skipped": [bad.id], "sound": False}
        assert read_from_outside(tmp_path) == expected
        list(rig.store.envelopes())
        await rig.store.apply(Change())
        expected = {"found": [[one.id, one.size]], "aside": [bad.id], "skipped": [], "sound": True}
        assert read_from_outside(tmp_path) == expected
        await rig.store.close()
        assert read_from_outside(tmp_path) == expected

    run(scenario())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become nobody")
def test_a_reader_without_the_right_to_write() -> None:
    async def scenario(tmp_path: Path) -> None:
        store = opened(tmp_path)
        kept = await keep(store)
        (tmp_path / "data.mdb").chmod(0o644)
        (tmp_path / "lock.mdb").chmod(0o644)
        assert "may not write its lock.mdb" in read_from_outside(tmp_path, "nobody")["error"]
        await store.close()
        assert read_from_outside(tmp_path, "nobody")["found"] == [[kept.id, kept.size]]
        assert not (tmp_path / "lock.mdb").is_symlink()  # as in a copy
        assert read_from_outside(tmp_path, "nobody")["found"] == [[kept.id, kept.size]]
        (tmp_path / "data.mdb").chmod(0o600)
        assert "error" in read_from_outside(tmp_path, "nobody")

    with tempfile.TemporaryDirectory() as directory:  # pytest's own are closed to others, and stay so
        Path(directory).chmod(0o755)
        run(scenario(Path(directory)))


def test_dead_readers_are_cleared_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(environment.Environment, "reader_check", lambda self: calls.append(1))

    async def scenario() -> None:
        clock = ManualClock()
        store = opened(tmp_path, clock)
        assert len(calls) == 1
        await keep(store)
        clock.advance(61.0)
        await keep(store)
        await keep(store)
        assert len(calls) == 2
        await store.close()

    run(scenario())


# --- after a power cut -----------------------------------------------------------------------------------------------


@pytest.fixture
def wreck(tmp_path: Path) -> Iterator[tuple[Path, list[Envelope], int]]:
    """A spool that was not closed: three whole messages, and the first chunks of a fourth (its id)."""
    kept: list[Envelope] = []
    half = 0

    async def scenario() -> None:
        nonlocal half
        store = opened(tmp_path)
        kept.extend([await keep(store, bytes(2 * CHUNK + 5)) for _ in range(3)])
        intake = store.intake()
        intake.write(bytes(6 * CHUNK))
        await intake.drain()
        await store.apply(Change())
        half = intake.id
        crash(store)

    run(scenario())
    yield tmp_path, kept, half


def recovered(directory: Path) -> tuple[list[Envelope], list[int], tuple[int, int, int]]:
    found: list[Any] = []

    async def scenario() -> None:
        store = opened(directory)
        assert store.recovered is not None
        numbers = (store.recovered.messages, store.recovered.dropped, store.recovered.set_aside)
        found.extend([list(store.envelopes()), [d.id for d in store.damaged()], numbers])
        await keep(store)
        await store.close()

    run(scenario())
    return found[0], found[1], found[2]


def test_chunks_without_an_envelope_are_dropped(wreck: tuple[Path, list[Envelope], int]) -> None:
    directory, kept, half = wreck
    assert any(key.startswith(layout.run(half)) for key in raw(directory))
    assert check(directory) == Report(messages=3, bytes=3 * kept[0].size, unfinished=1)
    assert recovered(directory) == (kept, [], (3, 1, 0))
    assert not any(key.startswith(layout.run(half)) for key in raw(directory))


@pytest.mark.parametrize("part", [1, 2, 3])
def test_a_missing_chunk_sets_the_message_aside(wreck: tuple[Path, list[Envelope], int], part: int) -> None:
    directory, kept, _ = wreck
    spoil(directory, layout.key(kept[1].id, part), None)
    assert recovered(directory) == ([kept[0], kept[2]], [kept[1].id], (2, 1, 1))
    left = [part for part in range(4) if layout.key(kept[1].id, part) in raw(directory)]
    assert left == [p for p in (1, 2, 3) if p != part]  # kept, for whoever wants to look at it


def test_a_damaged_envelope_is_set_aside_with_its_body(wreck: tuple[Path, list[Envelope], int]) -> None:
    directory, kept, _ = wreck
    record = raw(directory)[layout.key(kept[0].id, 0)]
    spoil(directory, layout.key(kept[0].id, 0), turn_bit(record))
    assert recovered(directory) == (kept[1:], [kept[0].id], (2, 1, 1))
    assert raw(directory)[layout.aside_key(kept[0].id)] == turn_bit(record)
    before = raw(directory)
    spoil(directory, layout.meta_key(), layout.write_meta(Meta(4096, CHUNK, 1)))  # another power cut
    assert recovered(directory)[1] == [kept[0].id]
    assert {k: v for k, v in raw(directory).items() if kept[0].id.to_bytes(8, "big") in k} == {
        k: v for k, v in before.items() if kept[0].id.to_bytes(8, "big") in k
    }


def test_a_key_that_no_release_wrote_is_left_alone(wreck: tuple[Path, list[Envelope], int]) -> None:
    directory, kept, half = wreck
    strays = [b"\x01short", layout.key(kept[0].id, 1) + b"long", b"\x05", b"\xff" * 20, b"\x09?", b"\x00\x00"]
    for stray in strays:
        spoil(directory, stray, b"?")
    report = check(directory)
    assert (report.messages, report.strays, report.unfinished, report.sound) == (3, len(strays), 1, False)
    assert recovered(directory)[0] == kept
    assert set(strays) <= set(raw(directory))
    assert half


def test_an_orderly_close_leaves_nothing_to_recover(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = opened(tmp_path)
        kept = await keep(store)
        half = store.intake()
        half.write(bytes(4 * CHUNK))
        await half.drain()
        await store.close()
        assert check(tmp_path) == Report(messages=1, bytes=kept.size)
        store = opened(tmp_path)
        assert store.recovered is None
        await store.close()

    run(scenario())


def test_chunks_that_could_not_be_dropped_keep_the_mark_open(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = StoreRig(tmp_path)
        intake = rig.store.intake()
        intake.write(bytes(4 * CHUNK))
        await intake.drain()
        await rig.store.apply(Change())
        rig.failing(True)
        await intake.abort()
        rig.failing(False)
        await rig.store.close()
        store = opened(tmp_path)
        assert store.recovered is not None
        assert store.recovered.dropped == 1
        await store.close()

    run(scenario())


def test_recovery_reads_no_body(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        store = opened(tmp_path)
        await keep(store, bytes(9 * CHUNK))
        crash(store)
        longest = 0
        real = lmdb.open

        class Env:
            def __init__(self, env: Any) -> None:
                self._env = env

            def __getattr__(self, name: str) -> Any:
                return getattr(self._env, name)

            def begin(self, **options: Any) -> Any:
                transaction = self._env.begin(**options)
                return transaction if options else Spy(transaction)

        class Spy:
            def __init__(self, inner: Any) -> None:
                self._inner = inner

            def __enter__(self) -> Spy:
                self._inner.__enter__()
                return self

            def __exit__(self, *args: Any) -> Any:
                return self._inner.__exit__(*args)

            def get(self, key: bytes) -> Any:
                nonlocal longest
                value = self._inner.get(key)
                longest = max(longest, len(value or b""))
                return value

            def cursor(self) -> Any:
                return Cursor(self._inner.cursor())

        class Cursor(Spy):
            def __getattr__(self, name: str) -> Any:
                assert name in ("set_range", "next", "prev", "first", "last", "key"), f"reads a {name}"
                return getattr(self._inner, name)

            def value(self) -> Any:
                nonlocal longest
                value = self._inner.value()
                longest = max(longest, len(value))
                return value

        monkeypatch.setattr(lmdb, "open", lambda *args, **options: Env(real(*args, **options)))
        store = opened(tmp_path)
        assert store.recovered is not None
        assert store.recovered.messages == 1
        assert 0 < longest < 1000
        await store.close()

    run(scenario())


def test_the_check_reads_everything(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = StoreRig(tmp_path)
        kept = [await keep(rig.store, bytes(2 * CHUNK)) for _ in range(5)]
        rig.damage_envelope(kept[0].id)
        rig.damage_body(kept[1].id)
        rig.lose_chunk(kept[2].id, 2)
        await rig.store.quarantine(kept[3].id, "by hand")
        edit_record(rig.store, layout.note_key(kept[3].id), turn_bit)
        report = verify(rig.store._view)
        assert [mail for mail, _ in report.damaged] == [e.id for e in kept[:3]]
        assert (report.messages, report.bytes, report.set_aside, report.unfinished) == (1, 2 * CHUNK, 1, 0)
        assert not report.sound
        assert [d.why for d in rig.store.damaged()] == ["the note that says why is damaged too"]
        await rig.store.close()

    run(scenario())


def test_records_end_where_ids_do(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = opened(tmp_path)
        last = layout.MAX_ID
        with store._environment._env.begin(write=True) as transaction:
            transaction.put(layout.key(last, 0), layout.seal(last, Head(0, 0, 0), layout.fields_of(MAIL)))
        assert [e.id for e in store.envelopes()] == [last]
        assert b"".join(store.body(last)) == b""
        await store.apply(Change(remove=(last,)))
        assert list(store.envelopes()) == []
        await store.close()

    run(scenario())


def test_a_body_is_read_while_others_write(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = opened(tmp_path)
        data = os.urandom(20 * CHUNK)
        kept = await keep(store, data)
        got = b""
        for chunk in store.body(kept.id):
            got += chunk
            await keep(store)
        assert got == data
        assert body_of(store, kept.id) == data
        await store.close()

    run(scenario())
