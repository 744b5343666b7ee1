"""The commands of a box: their words, their exit codes, and that they say so on a computer that is none."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from edgemail.boot import stages
from edgemail.boot.cli import main
from edgemail.boot.places import Places
from edgemail.boot.provision import Site
from tests.cards import PUBLIC, blank, release


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    (tmp_path / "card.img").write_bytes(blank())
    (tmp_path / "release").write_text("VERSION=1.0\nBOARD=arm64\nSERIAL=10\nBUILD_DATE=1795219200\n")
    (tmp_path / "keys").write_text(PUBLIC[0].hex())
    (tmp_path / "cmdline").write_text("edgemail.slot=A")
    for name in ("run", "data/edgemail/incoming", "boot"):
        (tmp_path / name).mkdir(parents=True)
    found = Places(
        disk=str(tmp_path / "card.img"),
        boot=tmp_path / "boot",
        data=tmp_path / "data",
        run=tmp_path / "run",
        release=str(tmp_path / "release"),
        keys=str(tmp_path / "keys"),
        cmdline=str(tmp_path / "cmdline"),
        console=str(tmp_path / "console"),
    )
    monkeypatch.setattr(stages, "PLACES", found)
    return found


def test_an_update_by_command(places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    path = places.incoming / "release.bundle"
    path.write_bytes(release())
    assert main(["update", "install", str(path)]) == 0
    assert capsys.readouterr().out == "1.1 is started next\n"
    assert not path.exists()
    assert main(["update", "status"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("edgemail 1.0 runs from slot A\n")
    assert "slot B: 1.1, 3 starts left" in said
    assert main(["update", "status", "--json"]) == 0
    assert '"order": [\n    "B",\n    "A"\n  ]' in capsys.readouterr().out
    assert main(["update", "mark-good"]) == 0
    assert main(["update", "rollback"]) == 0
    assert "slot B is started next" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["update", "check"], "no server is configured"),
        (["update", "install", "/nowhere"], "No such file"),
        (["update", "install", "http://example.com/x"], "https only"),
        (["update", "rollback"], "no release that is known to start"),
        (["reset", "erase"], "no box that runs from the system image"),
    ],
)
def test_what_cannot_be_done_is_a_sentence(
    places: Places, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 69
    assert said in capsys.readouterr().err


def test_on_a_computer_that_is_no_box(
    places: Places, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stages, "PLACES", dataclasses.replace(places, release="/nowhere/release"))
    assert main(["update", "status"]) == 69
    assert "this is not a system image" in capsys.readouterr().err


def test_the_preview(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "edgemail.toml"
    path.write_text('myhostname = "gw.example.com"\n')
    assert main(["provision", "--preview", str(path)]) == 0
    assert "would be put into force" in capsys.readouterr().out
    path.write_text('\nmyhostnam = "gw.example.com"\n')
    assert main(["provision", "--preview", str(path)]) == 78
    assert f"{path}:2: myhostnam: unknown parameter (did you mean myhostname?)" in capsys.readouterr().err


def test_what_a_box_needs_of_its_configuration_is_kept_beside_it(places: Places, tmp_path: Path) -> None:
    site = Site(places.home)
    assert site.facts() is None
    kept = places.home / "current"
    kept.mkdir()
    text = 'myhostname = "gw.example.com"\n[update]\nurl = "https://u.example/x"\n[health]\nport = 8080\n'
    (kept / "edgemail.toml").write_text(text)
    found = site.facts()
    assert found is not None
    assert (found.myhostname, found.port, found.update.url) == ("gw.example.com", 8080, "https://u.example/x")
    assert stages.updates().settings.url == "https://u.example/x"
