"""What the status says of secrets and of our own name in the DNS."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from edgemail.boot import ownname
from edgemail.boot.credentials import LOOK_SECONDS, CredentialFiles, logins
from edgemail.boot.ownname import AGAIN_SECONDS, OwnName, sources
from edgemail.clock import ManualClock
from edgemail.health.board import State
from edgemail.relay.send.credentials import MAX_VERDICTS, Credentials, Verdict
from edgemail.settings import Configuration, Health, Listener, Settings

SECRET = "Rumpelstiltskin"


def configured(directory: Path) -> Configuration:
    for name, text in (("logins", f"[isp]:587 anna:{SECRET}\n"), ("users", "anna:x\n"), ("token", "t\n")):
        (directory / name).write_text(text)
        (directory / name).chmod(0o600)
    settings = Settings(smtp_sasl_auth_enable=True, smtp_sasl_password_maps=(f"texthash:{directory}/logins",))
    users = Settings(smtpd_sasl_auth_enable=True, smtpd_sasl_password_file=str(directory / "users"))
    return Configuration(
        str(directory / "edgemail.toml"),
        settings,
        (Listener("lan", "127.0.0.1", 25, "lan", users),),
        health=Health(token_file=str(directory / "token")),
    )


def test_files_of_secrets_are_named_with_their_modes(tmp_path: Path) -> None:
    found = CredentialFiles(ManualClock()).conditions(configured(tmp_path))
    assert set(found) == {"credential.logins", "credential.users", "credential.token"}
    assert all(each.state is State.OK and each.numbers == {"mode": "0600"} for each in found.values())


def test_no_secret_no_component(tmp_path: Path) -> None:
    plain = Configuration(str(tmp_path / "edgemail.toml"), Settings(), ())
    assert CredentialFiles(ManualClock()).conditions(plain) == {}


def test_a_file_that_others_may_read_or_that_is_gone(tmp_path: Path) -> None:
    clock, configuration = ManualClock(), configured(tmp_path)
    files = CredentialFiles(clock)
    files.conditions(configuration)
    (tmp_path / "logins").chmod(0o644)
    (tmp_path / "users").unlink()
    assert files.conditions(configuration)["credential.logins"].state is State.OK  # looked at a moment ago
    clock.advance(LOOK_SECONDS)
    found = files.conditions(configuration)
    assert found["credential.logins"].reason == "credential-exposed"
    assert "has mode 0644" in found["credential.logins"].message
    assert found["credential.users"].reason == "credential-missing"
    assert "smtpd_sasl_password_file" in found["credential.users"].message
    (tmp_path / "logins").chmod(0o600)
    assert files.conditions(configured(tmp_path))["credential.logins"].state is State.OK  # another configuration


def test_a_file_that_we_may_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configuration = configured(tmp_path)
    monkeypatch.setattr("edgemail.boot.credentials.os.access", lambda path, mode: not str(path).endswith("token"))
    found = CredentialFiles(ManualClock()).conditions(configuration)
    assert found["credential.token"].reason == "credential-unreadable"
    assert found["credential.users"].state is State.OK


def test_what_servers_made_of_the_last_login(tmp_path: Path) -> None:
    now = 100.0
    store = Credentials(configured(tmp_path), monotonic=lambda: now)
    maps = (f"texthash:{tmp_path}/logins",)
    login = store.login(maps, "[isp]:587")
    assert login is not None
    assert logins(store.verdicts, now) == {}
    login.heard("535 5.7.8 Error: authentication failed")
    now = 160.0
    found = logins(store.verdicts, now)["credential.[isp]:587"]
    assert (found.state, found.reason, found.counts) == (State.DEGRADED, "login-refused", True)
    assert found.message == "[isp]:587 does not let us in as anna: 535 5.7.8 Error: authentication failed"
    assert found.numbers == {"user": "anna", "tried": 60, "taken": False}
    assert SECRET not in repr((store.verdicts, found, login))
    login.heard("")
    assert logins(store.verdicts, now)["credential.[isp]:587"].state is State.OK
    store.reload(configured(tmp_path))
    assert store.verdicts == {}


def test_verdicts_are_bounded(tmp_path: Path) -> None:
    store = Credentials(configured(tmp_path))
    for number in range(MAX_VERDICTS + 5):
        store._heard(f"hop{number}", "anna", "")
    assert len(store.verdicts) == MAX_VERDICTS and "hop4" not in store.verdicts


def test_the_latest_verdict_counts() -> None:
    found = logins({"a": Verdict("u", "", 0.0), "b": Verdict("u", "535 no", 0.0)}, 0.0)
    assert [each.state for each in found.values()] == [State.OK, State.DEGRADED]


NAMES = {"198.51.100.7": "gw.example.com", "2001:4860::7": "unknown", "8.8.8.7": "unknown", "9.9.9.7": "gw.example"}


def own(*addresses: str) -> tuple[OwnName, ManualClock, list[str]]:
    asked: list[str] = []

    async def peername(address: str) -> str:
        asked.append(address)
        return NAMES[address]

    clock = ManualClock()
    return OwnName(clock, peername, lambda: addresses), clock, asked


def test_an_address_without_a_name_is_told_and_harms_nothing() -> None:
    name, _, _ = own("8.8.8.7", "9.9.9.7")
    assert name.due and name.conditions() == {}
    asyncio.run(name.look())
    found = name.conditions()["ptr"]
    assert (found.state, found.reason, found.counts) == (State.DEGRADED, "ptr-missing", False)
    assert found.message.startswith("8.8.8.7, where our mail comes from, has no name")
    assert found.numbers == {"8.8.8.7": "unknown", "9.9.9.7": "gw.example"}


def test_an_address_with_a_name_is_well_and_asked_for_seldom() -> None:
    name, clock, asked = own("9.9.9.7")
    asyncio.run(name.look())
    assert name.conditions()["ptr"].state is State.OK
    clock.advance(AGAIN_SECONDS - 1)
    assert not name.due
    clock.advance(1)
    assert name.due and asked == ["9.9.9.7"]


def test_behind_a_router_nothing_is_judged() -> None:
    name, _, asked = own("192.168.7.2", "fe80::1", "127.0.0.1", "100.64.0.9")
    asyncio.run(name.look())
    assert name.conditions() == {} and asked == []


def test_our_own_addresses_are_found_without_a_packet(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all("%" not in each for each in sources())
    monkeypatch.setattr(ownname, "WORLD", ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "::1")))
    assert sources() == ("127.0.0.1",)
