"""`edgemail passwd`: how it asks, what it writes, how it ends."""

from __future__ import annotations

import getpass
import io
import sys
from pathlib import Path

import pytest

from edgemail.boot import passwd
from edgemail.relay.receive.auth import MAX_PASSWORD, parse_users
from edgemail.settings import Configuration, Listener, Settings


def configuration(path: Path | None) -> Configuration:
    settings = Settings(smtpd_sasl_password_file=str(path or ""))
    return Configuration("edgemail.toml", Settings(), (Listener("people", "*", 587, "submission", settings),))


def given(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def users(path: Path) -> dict[str, bool]:
    return {user: hashed.fits(b"sesame") for user, hashed in parse_users(path, path.read_text()).items()}


def test_one_line_from_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "passwd"
    given("sesame\r\nmore\n", monkeypatch)
    assert passwd.passwd(configuration(path), "anna") == 0
    given("other", monkeypatch)
    assert passwd.passwd(configuration(path), "bob@example.com") == 0
    assert users(path) == {"anna": True, "bob@example.com": False}
    assert path.stat().st_mode & 0o777 == 0o600
    assert "sesame" not in path.read_text()


def test_a_user_is_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "passwd"
    given("sesame", monkeypatch)
    passwd.passwd(configuration(path), "anna")
    assert passwd.passwd(configuration(path), "anna", delete=True) == 0
    assert users(path) == {}
    assert passwd.passwd(configuration(path), "anna", delete=True) == 67
    assert "no user anna" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answers", "status", "said"),
    [
        (["sesame", "sesame"], 0, ""),
        (["sesame", "seseme"], 65, "not the same"),
        ([""], 65, "nothing is changed"),
    ],
)
def test_twice_at_a_terminal(
    tmp_path: Path,
    answers: list[str],
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "passwd"
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    asked = iter(answers)
    monkeypatch.setattr(getpass, "getpass", lambda prompt: next(asked))
    assert passwd.passwd(configuration(path), "anna") == status
    assert said in capsys.readouterr().err
    assert path.exists() == (status == 0)
    assert list(asked) == []


@pytest.mark.parametrize(
    ("user", "typed", "status"),
    [("a:b", "x", 64), ("a b", "x", 64), ("", "x", 64), ("a", "x" * (MAX_PASSWORD + 1), 64), ("a", "", 65)],
)
def test_what_cannot_be(
    tmp_path: Path,
    user: str,
    typed: str,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given(typed, monkeypatch)
    assert passwd.passwd(configuration(tmp_path / "passwd"), user) == status
    assert capsys.readouterr().err.startswith("edgemail passwd: ")
    assert not (tmp_path / "passwd").exists()


def test_no_file_to_write_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert passwd.passwd(configuration(None), "anna") == 78
    assert "smtpd_sasl_password_file" in capsys.readouterr().err
    given("sesame", monkeypatch)
    assert passwd.passwd(configuration(tmp_path / "none" / "passwd"), "anna") == 73
    assert "No such file" in capsys.readouterr().err
