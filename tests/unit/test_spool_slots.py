"""Where the readers' slots stand, who gives them up, and what becomes of them where there is no memory for them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgemail.clock import ManualClock
from edgemail.errors import SpoolError
from edgemail.spool import environment, slots
from edgemail.spool.environment import Environment
from edgemail.spool.store import open_reader, open_store
from tests.spools import keep


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory that stands for the file system in memory."""
    place = tmp_path / "memory"
    place.mkdir()
    monkeypatch.setattr(slots, "MEMORY", (str(place),))
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    yield place


def made(directory: Path) -> Environment:
    directory.mkdir(exist_ok=True)
    return Environment(directory, 1 << 20)


def test_the_slots_stand_in_memory_and_are_gone_at_the_end(tmp_path: Path, memory: Path) -> None:
    spool = tmp_path / "spool"
    one = made(spool)
    link = spool / "lock.mdb"
    assert link.is_symlink() and link.resolve().is_relative_to(memory)
    assert link.resolve().stat().st_size > 0 and link.resolve().stat().st_blocks > 0
    assert link.resolve().parent.stat().st_mode & 0o777 == spool.stat().st_mode & 0o755
    one.reopen()
    assert link.resolve().exists()
    one.close()
    assert not link.is_symlink() and list(memory.iterdir()) == []
    one.close()


def test_the_service_managers_directory_goes_first(
    tmp_path: Path, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "runtime"
    own.mkdir()
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(own))
    one = made(tmp_path / "spool")
    assert (tmp_path / "spool/lock.mdb").resolve().is_relative_to(own)
    one.close()


def test_who_still_has_the_spool_open_keeps_them(tmp_path: Path, memory: Path) -> None:
    """A tool that reads while the relay stops, and while the next one starts: one file of slots for all."""
    spool = tmp_path / "spool"
    one = made(spool)
    tool = slots.Slots(spool, readonly=True)
    link = spool / "lock.mdb"
    kept = link.stat().st_ino
    one.close()
    assert link.stat().st_ino == kept
    other = made(spool)
    assert link.stat().st_ino == kept
    tool.close()
    assert link.stat().st_ino == kept
    other.close()
    assert list(memory.iterdir()) == []


def test_a_tool_alone_makes_them_where_the_relay_will_look(tmp_path: Path, memory: Path) -> None:
    spool = tmp_path / "spool"
    made(spool).close()
    with_tool = Environment(spool, readonly=True)
    kept = (spool / "lock.mdb").stat().st_ino
    one = slots.Slots(spool, readonly=False)
    assert (spool / "lock.mdb").stat().st_ino == kept
    one.close()
    with_tool.close()
    assert list(memory.iterdir()) == []


def test_after_a_power_cut_the_link_leads_nowhere(tmp_path: Path, memory: Path) -> None:
    async def scenario() -> None:
        spool = tmp_path / "spool"
        spool.mkdir()
        (spool / "lock.mdb").symlink_to(memory / "gone" / "lock.mdb")
        (spool / "lock.new").symlink_to("half made")
        store = open_store(spool, 1 << 20, ManualClock())
        kept = await keep(store)
        assert (spool / "lock.mdb").exists()
        await store.close()
        with open_reader(spool) as reader:
            assert [each.id for each in reader.envelopes()] == [kept.id]

    asyncio.run(scenario())


def test_a_plain_file_of_an_older_spool_gives_way(tmp_path: Path, memory: Path) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    (spool / "lock.mdb").write_bytes(bytes(8192))
    one = made(spool)
    assert (spool / "lock.mdb").is_symlink()
    one.close()


def test_a_directory_that_others_may_change_is_not_used(tmp_path: Path, memory: Path) -> None:
    spool = tmp_path / "spool"
    one = made(spool)
    name = (spool / "lock.mdb").readlink().parent.name
    one.close()
    (memory / name).mkdir()
    (memory / name).chmod(0o777)
    one = made(spool)
    assert (spool / "lock.mdb").readlink().parent.name.startswith(f"{name}-")
    one.close()
    assert [each.name for each in memory.iterdir()] == [name]


def test_without_memory_it_is_a_file_of_the_spool(
    tmp_path: Path, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "MEMORY", (str(tmp_path / "not there"),))
    spool = tmp_path / "spool"
    one = made(spool)
    assert (spool / "lock.mdb").is_file() and not (spool / "lock.mdb").is_symlink()
    one.close()
    assert (spool / "lock.mdb").is_file()


def test_a_spool_that_is_opened_anew_by_a_medium_that_hangs_does_not_hold_its_readers(
    tmp_path: Path, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "GATE_SECONDS", 0.05)
    one = made(tmp_path / "spool")
    inside, answer = threading.Event(), threading.Event()
    opened = one._open

    def hang() -> None:
        inside.set()
        assert answer.wait(30)
        opened()

    monkeypatch.setattr(one, "_open", hang)
    thread = threading.Thread(target=one.reopen)
    thread.start()
    assert inside.wait(30)
    began = time.monotonic()
    for _ in range(200):  # the first waits a little, the others not at all
        with pytest.raises(SpoolError, match="does not answer"), one.read():
            pass
    assert time.monotonic() - began < 5
    answer.set()
    thread.join()
    with one.read() as transaction:
        assert transaction.get(b"none") is None
    one.close()
