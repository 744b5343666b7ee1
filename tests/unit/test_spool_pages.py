"""Damage of whole pages: it is told before LMDB trips over it, and the repair saves what the other pages hold."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgemail.boot.cli import main
from edgemail.clock import ManualClock
from edgemail.errors import SpoolDamaged, SpoolError
from edgemail.spool import layout
from edgemail.spool.pages import Pages, inspect
from edgemail.spool.salvage import HELD, salvage
from edgemail.spool.store import open_reader, open_store
from edgemail.spool.verbs import Change
from tests.spools import MAP, body_of, keep

SIZES = (80, 900, 3000, 9000, 70_000)
PAGE = os.sysconf("SC_PAGE_SIZE")


class Wreck:
    """A spool whose process died, and what stands on each of its pages."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.bodies: dict[int, bytes] = {}
        self.gone: set[int] = set()
        self.on_page: dict[int, set[int]] = {}  # messages by the leaf that holds some record of theirs
        self.branches: list[int] = []
        asyncio.run(self._fill())
        with Pages(directory / "data.mdb") as pages:
            assert pages.meta is not None
            self.meta = pages.meta
            for number, raw, starts in pages.leaves(pages.meta.main):
                places = [layout.place(node.key) for node in pages.nodes(raw, starts)]
                self.on_page[number] = {place[0] for place in places if place is not None}
            self.branches = [
                n for n in range(2, pages.meta.last) if struct.unpack_from("=H", pages.read(n), 10)[0] == 1
            ]
            self.branches = [n for n in self.branches if pages.claimed[n]]

    async def _fill(self) -> None:
        chance = random.Random(5)
        store = open_store(self.directory, MAP, ManualClock(), 0)
        for _ in range(260):
            body = chance.randbytes(chance.choice(SIZES))
            kept = await keep(store, body)
            self.bodies[kept.id] = body
            if chance.random() < 0.3:
                await store.apply(Change(remove=(kept.id,)))
                self.gone.add(kept.id)
        store._holder.release()  # and no more: as after a kill
        self.store = store


@pytest.fixture(scope="module")
def wreck(tmp_path_factory: pytest.TempPathFactory) -> Wreck:
    return Wreck(tmp_path_factory.mktemp("wreck") / "spool")


def overwrite(path: Path, at: int, octets: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(octets)


def copy(wreck: Wreck, tmp_path: Path) -> Path:
    directory = tmp_path / "spool"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    shutil.copy(wreck.directory / "data.mdb", directory)
    return directory


HOW: dict[str, Callable[[random.Random], list[tuple[int, bytes]]]] = {
    "zeros": lambda chance: [(0, bytes(PAGE))],
    "garbage": lambda chance: [(0, chance.randbytes(PAGE))],
    "bounds": lambda chance: [(12, chance.randbytes(4))],
    "flags": lambda chance: [(10, bytes([chance.choice((1, 2, 4, 0x20, 0x40, 0, 255))]))],
    "places": lambda chance: [(16 + 2 * chance.randrange(4), chance.randbytes(2))],
    "nodes": lambda chance: [(chance.randrange(100, PAGE - 8), chance.randbytes(8)) for _ in range(8)],
}


def opens(directory: Path) -> bool:
    """Whether the relay's own start and every reading after it goes well or says what to do; never anything else."""

    async def scenario() -> bool:
        try:
            store = open_store(directory, MAP, ManualClock(), 0)
        except SpoolError as error:
            assert "edgemail spool repair" in str(error), error
            return False
        for envelope in list(store.envelopes()):
            try:
                body_of(store, envelope.id)
            except SpoolDamaged:
                pass
        kept = await keep(store)
        await store.apply(Change(remove=(kept.id,)))
        await store.close()
        return True

    return asyncio.run(scenario())


def judge_saved(directory: Path, wreck: Wreck, lost: set[int], *, held: bool) -> None:
    """After the repair: whole, but for what stood on the damaged page."""

    async def scenario() -> None:
        store = open_store(directory, MAP, ManualClock(), 0)
        found = {one.id: one for one in store.envelopes()}
        for mail, envelope in found.items():
            try:
                assert body_of(store, mail) == wreck.bodies[mail]
            except SpoolDamaged:
                assert mail in lost
            assert mail not in wreck.gone or (envelope.hold and envelope.hold_reason == HELD)
        wanted = set(wreck.bodies) - wreck.gone - lost
        aside = {one.id for one in store.damaged()}
        assert wanted <= set(found), f"{len(wanted - set(found))} of {len(wanted)} are not there"
        assert held or not [one for one in found.values() if one.hold]
        assert aside <= lost | wreck.gone
        await store.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("which", ["root", "branch", "leaf", "free"])
def test_a_damaged_page(wreck: Wreck, tmp_path: Path, which: str, how: str) -> None:
    refused = 0
    for seed in range(4):
        chance = random.Random(f"{which} {how} {seed}")
        number = {
            "root": wreck.meta.main,
            "branch": chance.choice(wreck.branches),
            "leaf": chance.choice(list(wreck.on_page)),
            "free": wreck.meta.free,
        }[which]
        directory = copy(wreck, tmp_path)
        for at, octets in HOW[how](chance):
            overwrite(directory / "data.mdb", number * PAGE + at, octets[: PAGE - at])
        damaged = (directory / "data.mdb").read_bytes()
        if opens(directory):
            continue
        refused += 1
        assert (directory / "data.mdb").read_bytes() == damaged, "looking at it changed it"
        done = salvage(directory, MAP, 1e9)
        assert done is not None
        assert done.kept.read_bytes() == damaged
        judge_saved(directory, wreck, wreck.on_page.get(number, set()), held=which == "free")
    assert refused or how in ("places", "nodes", "flags")


@pytest.mark.parametrize("metas", [(0,), (1,), (0, 1)])
def test_damaged_meta_pages(wreck: Wreck, tmp_path: Path, metas: tuple[int, ...]) -> None:
    directory = copy(wreck, tmp_path)
    for meta in metas:
        overwrite(directory / "data.mdb", meta * PAGE, random.Random(meta).randbytes(PAGE))
    assert not opens(directory)
    assert salvage(directory, MAP, 1e9) is not None
    judge_saved(directory, wreck, set(), held=True)


def spoil_root(file: Path, meta: int) -> None:
    """The root of the main tree behind the last page, in one meta page."""
    overwrite(file, meta * PAGE + 16 + 24 + 48 + 40, struct.pack("=Q", 1 << 40))


def test_a_meta_page_whose_writing_failed_is_no_damage(wreck: Wreck, tmp_path: Path) -> None:
    """LMDB puts back the date of the one before it and leaves the trees of the one that failed; it takes the other."""
    directory = copy(wreck, tmp_path)
    with Pages(directory / "data.mdb") as pages:
        dates = [each.transaction for each in pages.metas]
    older = dates.index(min(dates))
    spoil_root(directory / "data.mdb", older)
    assert inspect(directory / "data.mdb", always=True) == []
    assert opens(directory)
    judge_saved(directory, wreck, set(), held=False)
    directory = copy(wreck, tmp_path)
    spoil_root(directory / "data.mdb", 1 - older)
    assert inspect(directory / "data.mdb", always=True)[0] == f"meta page {1 - older} is damaged"
    assert not opens(directory)


def test_so_it_is_with_the_first_of_all(tmp_path: Path) -> None:
    """Both meta pages of a new file are of one date, and the first counts."""
    open_store(tmp_path / "model", MAP, ManualClock(), 0)._holder.release()
    (tmp_path / "spool").mkdir()
    new = bytearray((tmp_path / "model" / "data.mdb").read_bytes()[: 2 * PAGE])
    for meta in (0, 1):
        at = meta * PAGE + 16 + 24
        for tree in (at, at + 48):
            new[tree + 40 : tree + 48] = struct.pack("=Q", 2**64 - 1)
            new[tree + 6 : tree + 40] = bytes(34)
        new[at + 96 : at + 112] = struct.pack("=QQ", 1, 0)
    (tmp_path / "spool" / "data.mdb").write_bytes(new)
    assert inspect(tmp_path / "spool" / "data.mdb", always=True) == []
    spoil_root(tmp_path / "spool" / "data.mdb", 1)
    assert inspect(tmp_path / "spool" / "data.mdb", always=True) == []
    assert opens(tmp_path / "spool")


def test_a_file_that_lost_its_end(wreck: Wreck, tmp_path: Path) -> None:
    """Bodies cut off are one message's damage; pages of the trees are the file's."""
    for kept in (1, 2, 3, 40, 200, wreck.meta.last - 5):
        directory = copy(wreck, tmp_path)
        os.truncate(directory / "data.mdb", kept * PAGE + 100)
        if not opens(directory):
            assert salvage(directory, MAP, 1e9) is not None
        assert opens(directory)


def test_a_sound_file_is_left_alone(wreck: Wreck, tmp_path: Path) -> None:
    directory = copy(wreck, tmp_path)
    assert inspect(directory / "data.mdb", always=True) == []
    assert salvage(directory, MAP, 1e9) is None
    assert [each.name for each in directory.iterdir() if "damaged" in each.name] == []
    judge_saved(directory, wreck, set(), held=False)


def test_a_file_closed_in_order_is_believed_at_the_start(tmp_path: Path) -> None:
    """A start must not read every page; what nobody noticed ends the process once, and the next start looks."""

    async def scenario() -> None:
        store = open_store(tmp_path, MAP, ManualClock(), 0)
        for _ in range(50):
            await keep(store, b"x" * 3000)
        await store.close()

    asyncio.run(scenario())
    with Pages(tmp_path / "data.mdb") as pages:
        assert pages.clean()
        assert pages.meta is not None
        leaves = {number: next(pages.nodes(raw, starts)).key for number, raw, starts in pages.leaves(pages.meta.main)}
        last = max(leaves, key=lambda number: leaves[number])
    overwrite(tmp_path / "data.mdb", last * PAGE, bytes(PAGE))
    assert inspect(tmp_path / "data.mdb") == []
    assert inspect(tmp_path / "data.mdb", always=True) == [f"page {last} is damaged"]


def test_lmdb_alone_would_abort(wreck: Wreck, tmp_path: Path) -> None:
    """Why there is a check at all."""
    script = (
        "import sys, asyncio; from pathlib import Path; from edgemail.spool import store; from edgemail.clock import"
        " ManualClock; store.refuse_damage = lambda _: None;"
        " store.open_store(Path(sys.argv[1]), 1 << 25, ManualClock())"
    )
    died = False
    for number in list(wreck.on_page)[1:8]:
        directory = copy(wreck, tmp_path)
        overwrite(directory / "data.mdb", number * PAGE, bytes(PAGE))
        found = subprocess.run(
            [sys.executable, "-c", script, str(directory)], capture_output=True, timeout=60, check=False
        )
        died = died or found.returncode < 0
        assert not opens(directory)
    assert died


def test_the_commands_say_and_do_it(wreck: Wreck, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = copy(wreck, tmp_path)
    number = list(wreck.on_page)[3]
    overwrite(directory / "data.mdb", number * PAGE, bytes(PAGE))
    path = tmp_path / "edgemail.toml"
    path.write_text(
        f'myhostname = "gw.example.com"\nqueue_directory = "{directory}"\nmail_owner = "root"\nspool_size = {MAP}\n'
    )
    before = (directory / "data.mdb").read_bytes()
    assert main(["spool", "check", "--config", str(path)]) == 65
    assert f"page {number} is damaged" in capsys.readouterr().out
    assert (directory / "data.mdb").read_bytes() == before
    assert main(["queue", "list", "--config", str(path)]) != 0
    assert "edgemail spool repair" in capsys.readouterr().err
    assert main(["spool", "repair", "--config", str(path)]) == 0
    assert "records saved; the damaged file is" in capsys.readouterr().out
    assert main(["spool", "check", "--config", str(path)]) == 0
    with open_reader(directory) as reader:
        assert len(list(reader.envelopes())) >= len(wreck.bodies) - len(wreck.gone) - len(wreck.on_page[number])
