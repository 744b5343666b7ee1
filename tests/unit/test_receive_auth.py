"""Logging in: the exchanges without a wire, the password file, and its editing."""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemail.clock import ManualClock
from edgemail.errors import TableError
from edgemail.relay.receive import auth
from edgemail.relay.receive.auth import Exchange, Hashed, Login, Passwords, delete_user, parse_users, set_password
from edgemail.relay.wire.extensions import MECHANISMS


def test_plain_with_and_without_an_initial_response() -> None:
    assert Exchange("PLAIN").step(b"\0kdent\0Rumpelstiltskin") == Login("kdent", b"Rumpelstiltskin")
    exchange = Exchange("PLAIN")
    assert exchange.step(None) == b""
    assert exchange.step(b"kdent\0kdent\0Rumpelstiltskin") == Login("kdent", b"Rumpelstiltskin")


@pytest.mark.parametrize(
    "response",
    [
        b"",
        b"\0",
        b"\0\0",
        b"\0\0x",
        b"user\0pass",
        b"other\0user\0pass",
        b"\0a\0b\0c",
        b"\0\xff\0b",
        b"\0a\0" + b"b" * 5000,
    ],
)
def test_plain_that_makes_no_sense(response: bytes) -> None:
    assert Exchange("PLAIN").step(response) is None


def test_login_by_prompts_and_with_the_user_at_once() -> None:
    exchange = Exchange("LOGIN")
    assert exchange.step(None) == b"Username:"
    assert exchange.step(b"anna") == b"Password:"
    assert exchange.step(b"pass\0word") == Login("anna", b"pass\0word")
    exchange = Exchange("LOGIN")
    assert exchange.step(b"anna") == b"Password:"
    assert exchange.step(b"secret") == Login("anna", b"secret")


def test_login_that_makes_no_sense() -> None:
    exchange = Exchange("LOGIN")
    exchange.step(None)
    exchange.step(b"")
    assert exchange.step(b"x") is None


@given(st.sampled_from(MECHANISMS), st.lists(st.none() | st.binary(max_size=40), max_size=6))
def test_no_response_breaks_an_exchange(mechanism: str, responses: list[bytes | None]) -> None:
    exchange = Exchange(mechanism)
    for response in responses:
        step = exchange.step(response)
        assert step is None or isinstance(step, bytes | Login)
        if not isinstance(step, bytes):
            break


def test_a_password_does_not_show() -> None:
    assert "secret" not in repr(Login("anna", b"secret")) + str(Login("anna", b"secret"))


# ---- the file


def test_set_change_and_delete(tmp_path: Path) -> None:
    path = tmp_path / "passwd"
    set_password(str(path), "anna", "one")
    set_password(str(path), "bob", "two")
    assert path.stat().st_mode & 0o777 == 0o600
    users = parse_users(path, path.read_text())
    assert (users["anna"].fits(b"one"), users["anna"].fits(b"two"), users["bob"].fits(b"two")) == (True, False, True)
    set_password(str(path), "anna", "three")
    users = parse_users(path, path.read_text())
    assert list(users) == ["anna", "bob"]
    assert (users["anna"].fits(b"one"), users["anna"].fits(b"three")) == (False, True)
    assert delete_user(str(path), "anna") is True
    assert delete_user(str(path), "anna") is False
    assert list(parse_users(path, path.read_text())) == ["bob"]
    assert [each.name for each in tmp_path.iterdir()] == ["passwd"]
    assert "two" not in path.read_text()


def test_equal_passwords_do_not_look_equal(tmp_path: Path) -> None:
    path = tmp_path / "passwd"
    set_password(str(path), "anna", "same")
    set_password(str(path), "bob", "same")
    lines = path.read_text().splitlines()
    assert lines[0].partition(":")[2] != lines[1].partition(":")[2]


def test_an_edit_is_durable_when_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        flushed.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    set_password(str(tmp_path / "passwd"), "anna", "one")
    assert flushed == ["file", "directory"]


def test_comments_stay_and_a_name_counts_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "passwd"
    path.write_text("# people\n\n")
    set_password(str(path), "anna", "one")
    set_password(str(path), "ann", "two")
    assert delete_user(str(path), "ann")
    assert path.read_text().startswith("# people\n\nanna:scrypt:")


@pytest.mark.parametrize("user", ["", "a b", "a:b", "a\nb", "a#b", "\u202ea", "x" * 300])
def test_names_that_no_user_can_have(tmp_path: Path, user: str) -> None:
    with pytest.raises(ValueError, match="name"):
        set_password(str(tmp_path / "passwd"), user, "x")
    assert not (tmp_path / "passwd").exists()


@pytest.mark.parametrize("password", ["", "x" * 5000, "a\0b"])
def test_passwords_that_nobody_can_have(tmp_path: Path, password: str) -> None:
    with pytest.raises(ValueError, match="password"):
        set_password(str(tmp_path / "passwd"), "anna", password)


def test_an_edit_that_fails_leaves_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "passwd"
    set_password(str(path), "anna", "one")
    before = path.read_text()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        set_password(str(path), "anna", "two")
    assert path.read_text() == before
    assert [each.name for each in tmp_path.iterdir()] == ["passwd"]


GOOD = str(Hashed.of(b"one"))


@pytest.mark.parametrize(
    "line",
    [
        "anna",
        "anna:plain:one",
        "anna:" + GOOD.replace("scrypt", "bcrypt"),
        "anna:" + GOOD.replace(":4096:", ":8192:"),  # 8 MiB
        "anna:" + GOOD.replace(":4096:", ":4095:"),
        "anna:" + GOOD.replace(":8:5:", ":8:65:"),
        "anna:" + GOOD.replace(":8:5:", ":0:5:"),
        "anna:" + GOOD[:-3] + "*==",
        "anna:scrypt:4096:8:5::",
        "anna:scrypt:x:8:5:YWJj:YWJj",
    ],
)
def test_a_line_that_cannot_be_read_stops_nobody_else(line: str, caplog: pytest.LogCaptureFixture) -> None:
    users = parse_users(Path("passwd"), f"{line}\nbob:{GOOD}\n")
    assert list(users) == ["bob"]
    assert "passwd:1: " in caplog.text
    assert "YWJj" not in caplog.text
    assert GOOD not in caplog.text


def test_one_check_takes_four_megabytes_at_most() -> None:
    hashed = Hashed.parse(GOOD)
    assert 128 * hashed.n * hashed.r <= auth.SCRYPT_MEMORY == 4 * 1024 * 1024


@pytest.fixture
def worker() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def test_verify(tmp_path: Path, worker: ThreadPoolExecutor) -> None:
    path = tmp_path / "passwd"
    set_password(str(path), "anna", "one")
    passwords = Passwords(str(path), worker, ManualClock().monotonic)

    async def scenario() -> None:
        assert await passwords.verify(Login("anna", b"one")) is True
        assert await passwords.verify(Login("anna", b"two")) is False
        assert await passwords.verify(Login("bob", b"one")) is False

    asyncio.run(scenario())
    assert (passwords.knows("anna"), passwords.knows("bob")) == (True, False)


def test_a_stranger_costs_as_much_as_a_user(
    tmp_path: Path, worker: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "passwd"
    set_password(str(path), "anna", "one")
    asked: list[tuple[int, int, int]] = []
    real = Hashed.fits

    def fits(self: Hashed, password: bytes) -> bool:
        asked.append((self.n, self.r, self.p))
        return real(self, password)

    monkeypatch.setattr(Hashed, "fits", fits)
    passwords = Passwords(str(path), worker, ManualClock().monotonic)
    asyncio.run(passwords.verify(Login("anna", b"x")))
    asyncio.run(passwords.verify(Login("nobody", b"x")))
    assert len(asked) == 2
    assert asked[0] == asked[1]


def test_the_file_is_read_again_when_it_changes(tmp_path: Path, worker: ThreadPoolExecutor) -> None:
    path, clock = tmp_path / "passwd", ManualClock()
    passwords = Passwords(str(path), worker, clock.monotonic)
    with pytest.raises(TableError, match="No such file"):
        passwords.users()
    set_password(str(path), "anna", "one")
    assert list(passwords.users()) == ["anna"]
    set_password(str(path), "bob", "two")
    clock.advance(2.0)
    assert list(passwords.users()) == ["anna", "bob"]
    path.unlink()
    clock.advance(2.0)
    assert list(passwords.users()) == ["anna", "bob"]


def test_the_loop_turns_while_a_password_is_checked(tmp_path: Path, worker: ThreadPoolExecutor) -> None:
    path = tmp_path / "passwd"
    set_password(str(path), "anna", "one")
    passwords = Passwords(str(path), worker, ManualClock().monotonic)

    async def scenario() -> int:
        turns = 0
        check = asyncio.ensure_future(passwords.verify(Login("anna", b"one")))
        while not check.done():
            turns += 1
            await asyncio.sleep(0)
        return turns

    assert asyncio.run(scenario()) > 10


def test_nothing_of_a_password_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    path = tmp_path / "passwd"
    set_password(str(path), "anna", "hush-hush")
    parse_users(path, path.read_text() + "bob:hush-hush\n")
    assert "hush-hush" not in caplog.text
