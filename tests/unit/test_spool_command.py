"""`edgemail spool check` says what is damaged and changes nothing; `repair` sets it aside."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import lmdb
import pytest

from edgemail.boot.cli import main
from edgemail.clock import SystemClock
from edgemail.spool import layout
from edgemail.spool.store import open_store
from tests.spools import MAP, JournalRig, StoreRig, keep


def make(tmp_path: Path, *, damage: bool) -> tuple[Path, str]:
    """A configuration whose spool holds two messages, one of them damaged if asked for; its queue id."""
    spool = tmp_path / "spool"

    async def scenario() -> str:
        rig = StoreRig(spool)
        await keep(rig.spool)
        second = await keep(rig.spool)
        if damage:
            rig.damage_body(second.id)
        await rig.spool.close()
        return second.queue_id

    damaged = asyncio.run(scenario())
    path = tmp_path / "edgemail.toml"
    path.write_text(
        f'myhostname = "gw.example.com"\nqueue_directory = "{spool}"\nmail_owner = "root"\nspool_size = {MAP}\n'
    )
    return path, damaged


def test_a_sound_spool(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = make(tmp_path, damage=False)
    assert main(["spool", "check", "--config", str(path)]) == 0
    assert "2 messages" in capsys.readouterr().out


def test_damage_is_said_and_nothing_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, damaged = make(tmp_path, damage=True)
    before = (tmp_path / "spool/data.mdb").read_bytes()
    assert main(["spool", "check", "--config", str(path)]) == 65
    assert f"{damaged}: damaged:" in capsys.readouterr().out
    assert (tmp_path / "spool/data.mdb").read_bytes() == before


def test_repair_sets_aside_and_the_next_check_is_sound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, damaged = make(tmp_path, damage=True)
    assert main(["spool", "repair", "--config", str(path)]) == 0
    capsys.readouterr()
    assert main(["spool", "check", "--json", "--config", str(path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["messages"], found["set_aside"], found["damaged"]) == (1, 1, [])

    async def scenario() -> list[int]:
        store = open_store(tmp_path / "spool", MAP, SystemClock())
        aside = [one.id for one in store.damaged()]
        await store.close()
        return aside

    assert asyncio.run(scenario()) == [int(damaged, 16)]


def test_repair_wants_the_relay_stopped(tmp_path: Path) -> None:
    path, _ = make(tmp_path, damage=True)

    async def scenario() -> tuple[int | None, str]:
        store = open_store(tmp_path / "spool", MAP, SystemClock())
        try:
            command = [sys.executable, "-m", "edgemail.boot.cli", "spool", "repair", "--config", str(path)]
            child = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
            _, said = await child.communicate()
            return child.returncode, said.decode()
        finally:
            await store.close()

    code, said = asyncio.run(scenario())
    assert code == 75
    assert "stop the relay first" in said


def cut(tmp_path: Path) -> Path:
    """A configuration whose spool was not closed: three messages stand in its journal alone."""
    path, _ = make(tmp_path, damage=False)

    async def scenario() -> None:
        rig = JournalRig(tmp_path / "spool")
        for _ in range(3):
            await keep(rig.spool, bytes(5000))
        rig.store._writer._jobs.clear()
        rig.store._writer.stop()
        rig.store._environment.close()
        rig.store._holder.release()
        assert rig.store.journal is not None
        rig.store.journal.close()

    asyncio.run(scenario())
    return path


def test_mail_in_the_journal_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = cut(tmp_path)
    before = (tmp_path / "spool" / "journal").read_bytes()
    assert main(["spool", "check", "--config", str(path)]) == 0
    assert "5 messages" in capsys.readouterr().out
    assert main(["queue", "list", "--json", "--config", str(path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5
    assert (tmp_path / "spool" / "journal").read_bytes() == before


def test_a_damaged_journal_is_said_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = cut(tmp_path)
    journal = tmp_path / "spool" / "journal"
    bad = bytearray(journal.read_bytes())
    at = bad.index(b"EMSJ") + 4096
    at = next(n for n in range(at, len(bad), 4096) if any(bad[n : n + 4096]))
    bad[at : at + 64] = b"?" * 64  # the head of the first record
    journal.write_bytes(bad)
    assert main(["spool", "check", "--config", str(path)]) == 65
    assert "mail may be lost: 1 record of the journal does not read; repair" in capsys.readouterr().out
    assert main(["spool", "repair", "--config", str(path)]) == 0
    assert (tmp_path / "spool" / "journal.aside.1").read_bytes() == bad
    capsys.readouterr()
    assert main(["spool", "check", "--json", "--config", str(path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["messages"], found["lost"]) == (4, "")


def test_a_lost_meta_record_is_said_and_the_mail_in_the_journal_held(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = cut(tmp_path)
    with lmdb.open(str(tmp_path / "spool"), map_size=MAP) as env, env.begin(write=True) as transaction:
        assert transaction.delete(layout.meta_key())
    assert main(["spool", "check", "--config", str(path)]) == 65
    said = capsys.readouterr().out
    assert "5 messages" in said
    assert "mail may be lost: what the spool knows of its journal is lost or too old" in said
    assert "record of itself is missing or damaged: repair, or the next start, makes it anew" in said
    assert main(["spool", "repair", "--config", str(path)]) == 0
    capsys.readouterr()
    assert main(["spool", "check", "--json", "--config", str(path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["messages"], found["lost"], found["nameless"]) == (5, "", False)
    assert main(["queue", "list", "--json", "--config", str(path)]) == 0
    states = [json.loads(line)["queue_name"] for line in capsys.readouterr().out.splitlines()]
    assert sorted(states) == ["hold", "hold", "hold", "incoming", "incoming"]


def test_no_spool_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "edgemail.toml"
    path.write_text(f'myhostname = "gw.example.com"\nqueue_directory = "{tmp_path}/none"\n')
    assert main(["spool", "check", "--config", str(path)]) == 75
    assert "there is no spool here" in capsys.readouterr().err
