"""Logins for next hops: which entry counts, and that a password shows nowhere."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import pytest

from edgemail.clock import ManualClock
from edgemail.errors import TableError
from edgemail.relay.send.credentials import Credentials, Login, exposed
from edgemail.settings import Configuration, Maps, Settings

SECRET = "tr0ub4dor:&3"


def configuration(maps: Maps, directory: Path = Path("/etc/edgemail")) -> Configuration:
    settings = Settings(myhostname="gw7.example.com", smtp_sasl_password_maps=maps)
    return Configuration(str(directory / "edgemail.toml"), settings, ())


def login(pairs: tuple[tuple[str, str], ...], hop: str, host: str = "") -> Login | None:
    maps: Maps = (pairs,)
    return Credentials(configuration(maps)).login(maps, hop, host)


TWO = (("ora.com", "kdent:pw1"), ("mail.postfix.org", "kyle:quixote"))


@pytest.mark.parametrize(
    ("pairs", "hop", "host", "user"),
    [
        ((("[smtp.example.net]:587", "u:p"),), "[smtp.example.net]:587", "smtp.example.net", "u"),
        ((("[smtp.example.net]:587", "u:p"),), "[SMTP.Example.net]:587", "", "u"),
        ((("[smtp.example.net]:587", "u:p"),), "[smtp.example.net]:465", "smtp.example.net", None),
        ((("smtp.example.net", "u:p"),), "[smtp.example.net]:587", "", "u"),
        (TWO, "ora.com", "mail.ora.com", "kdent"),
        (TWO, "postfix.org", "mail.postfix.org", "kyle"),
        (TWO, "ora.com", "mail.postfix.org", "kdent"),
        (TWO, "other.example", "mx.other.example", None),
        ((("[h]:587", "exact:p"), ("h", "host:p")), "[h]:587", "h", "exact"),
        ((("192.0.2.1", "u:p"),), "[192.0.2.1]:25", "192.0.2.1", "u"),
        ((("h", "no-colon"),), "[h]", "h", None),
        ((("h", ":p"),), "[h]", "h", None),
    ],
)
def test_which_entry_counts(pairs: tuple[tuple[str, str], ...], hop: str, host: str, user: str | None) -> None:
    found = login(pairs, hop, host)
    assert (found.user if found else None) == user


def test_password_may_hold_colons_and_be_empty() -> None:
    assert login((("h", f"user:{SECRET}"),), "[h]") == Login("user", SECRET)
    assert login((("h", "user:"),), "[h]") == Login("user", "")


def test_password_shows_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    assert SECRET not in repr(login((("h", f"user:{SECRET}"),), "[h]"))
    login((("h", SECRET.replace(":", "")),), "[h]")
    path = tmp_path / "sasl_passwd"
    says = []
    for text in (f"user:{SECRET}\n", f'"h user:{SECRET}\n', f"h {SECRET}\nh {SECRET}\n"):
        path.write_text(text)
        path.chmod(0o644)
        maps: Maps = ("texthash:sasl_passwd",)
        try:
            Credentials(configuration(maps, tmp_path)).login(maps, "[x]")
        except TableError as error:
            says.append(str(error))
    with pytest.raises(TableError) as wrong:
        Credentials(configuration((f"inline:{{user:{SECRET}}}",)))
    says.append(str(wrong.value))
    assert len(says) == 3
    assert "tr0ub4dor" not in "".join(says) + caplog.text
    assert "the entry for h is not user:password" in caplog.text


def test_wrong_entry_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    maps: Maps = ((("h", "wrong"),),)
    credentials = Credentials(configuration(maps))
    caplog.clear()
    for _ in range(3):
        assert credentials.login(maps, "[h]") is None
    assert len(caplog.messages) == 1


def test_file_that_others_can_read_draws_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "sasl_passwd"
    path.write_text("h u:p\n")
    path.chmod(0o644)
    says = f"{path} holds passwords and has mode 0644; expected 0600, or 0640 for mail_owner's group"
    assert exposed((f"texthash:{path}",), tmp_path) == (says,)
    Credentials(configuration((f"hash:{path}",)))
    assert caplog.messages == [f"warning: {says}"]
    for mode in (0o600, 0o640):
        path.chmod(mode)
        assert exposed(("texthash:sasl_passwd", (("h", "u:p"),), "static:u:p"), tmp_path) == ()


def test_file_is_read_again_and_transports_have_their_own(tmp_path: Path) -> None:
    clock = ManualClock()
    for name, user in (("one", "ann"), ("two", "bob")):
        (tmp_path / name).write_text(f"h {user}:p\n")
        (tmp_path / name).chmod(0o600)
    one: Maps = ("texthash:one",)
    two: Maps = ("texthash:two",)
    given = configuration(one, tmp_path)
    given = dataclasses.replace(
        given, transports={"slow": dataclasses.replace(given.settings, smtp_sasl_password_maps=two)}
    )
    credentials = Credentials(given, monotonic=clock.monotonic)
    assert credentials.login(one, "[h]") == Login("ann", "p")
    assert credentials.login(two, "[h]") == Login("bob", "p")
    (tmp_path / "new").write_text("h carol:p\n")
    (tmp_path / "new").rename(tmp_path / "one")
    clock.advance(1)
    assert credentials.login(one, "[h]") == Login("carol", "p")
    with pytest.raises(TableError):
        credentials.reload(configuration(("texthash:missing",), tmp_path))
    assert credentials.login(one, "[h]") == Login("carol", "p")
