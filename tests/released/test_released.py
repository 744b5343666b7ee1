"""Spools as released versions left them: each is read, taken over and emptied by this one."""

from __future__ import annotations

import asyncio
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from edgemail import __version__
from edgemail.clock import ManualClock
from edgemail.spool.recover import verify
from edgemail.spool.store import Reader, Store, open_reader, open_store
from edgemail.spool.verbs import Change
from tests.released.__main__ import PLACE, SIZE, SPOOLS, shown
from tests.spools import body_of, keep

RELEASES = sorted(PLACE.glob("*.tar.xz"))
JOURNALS = (0, SPOOLS["journal"])


def held(spool: Store | Reader) -> list[dict[str, Any]]:
    return [shown(envelope, body_of(spool, envelope.id)) for envelope in spool.envelopes()]  # type: ignore[arg-type]


def within(wanted: Any, found: Any) -> bool:
    """Whether all that was known then is there; a later release may know more of a message."""
    if isinstance(wanted, dict):
        return all(name in found and within(value, found[name]) for name, value in wanted.items())
    if isinstance(wanted, list):
        return len(wanted) == len(found) and all(map(within, wanted, found))
    return bool(wanted == found)


@pytest.mark.parametrize("journal", JOURNALS, ids=["without a journal", "with one"])
@pytest.mark.parametrize("name", SPOOLS)
@pytest.mark.parametrize("release", RELEASES, ids=[path.name.removesuffix(".tar.xz") for path in RELEASES])
def test_a_released_spool(release: Path, name: str, journal: int, tmp_path: Path) -> None:
    with tarfile.open(release) as archive:
        archive.extractall(tmp_path, filter="data")
    wanted = json.loads((tmp_path / "messages.json").read_text())
    directory = tmp_path / name
    with open_reader(directory) as reader:
        assert within(wanted, held(reader))

    async def scenario() -> None:
        store = open_store(directory, SIZE, ManualClock(), 0, journal=journal)
        assert within(wanted, held(store))
        assert not list(store.damaged())
        new = await keep(store)
        ids = [envelope.id for envelope in store.envelopes()]
        assert ids.count(new.id) == 1
        assert new.id == max(ids)
        await store.apply(Change(remove=tuple(ids[:-1])))
        await store.close()
        store = open_store(directory, SIZE, ManualClock(), 0, journal=journal)
        assert [envelope.id for envelope in store.envelopes()] == [new.id]
        await store.close()

    asyncio.run(scenario())
    with open_reader(directory) as reader:
        report = verify(reader)
    assert report.sound
    assert report.messages == 1


def test_this_release_has_left_its_own() -> None:
    assert f"{__version__}.tar.xz" in [path.name for path in RELEASES], "python -m tests.released"
