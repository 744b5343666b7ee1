"""The file on the boot partition: as people save it, good and bad, with secrets, and cut at any instant."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edgemail.boot import config, provision
from edgemail.boot.provision import Outcome, Site, find, preview

GOOD = """\
# our gateway
myhostname = "gw7.example.com"
mynetworks = ["127.0.0.0/8", "192.168.7.0/24"]
relayhost  = "[smtp.isp.example]:587"
smtp_sasl_auth_enable   = true
smtp_sasl_password_maps = [{ "[smtp.isp.example]:587" = "box7:pässw*rd" }]   # from the provider
smtp_tls_security_level = "encrypt"

[secrets]
token = "open sesame"

[health]
address    = "*"
token_file = "secrets/token"
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setitem(provision.TOP, "queue_directory", f'"{tmp_path}/spool"')
    monkeypatch.setitem(provision.TOP, "mail_owner", '"root"')
    (tmp_path / "boot").mkdir()
    return Site(tmp_path / "edgemail")


def put(site: Site, data: str | bytes, name: str = "edgemail.toml") -> Path:
    path = site.home.parent / "boot" / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def run(site: Site) -> Outcome:
    return site.provision(site.home.parent / "boot")


def in_force(site: Site) -> str:
    return (site.current / "edgemail.toml").read_text()


# ---- as people save it


@pytest.mark.parametrize(
    "saved",
    [
        lambda text: text.encode(),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(),
        lambda text: text.replace("\n", "\r\n").encode("utf-16"),
        lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
        lambda text: text.encode("utf-16-le"),
        lambda text: text.encode("utf-16-be"),
    ],
    ids=["unix", "windows", "bom", "notepad-unicode", "big-endian", "utf-16-le", "utf-16-be"],
)
def test_a_good_file_comes_into_force_and_its_secrets_go(site: Site, saved: Callable[[str], bytes]) -> None:
    raw = saved(GOOD)
    path = put(site, raw)
    assert run(site) == Outcome("applied", configured=True)
    found = config.load(site.current / "edgemail.toml")
    assert found.settings.myhostname == "gw7.example.com"
    assert found.settings.queue_directory == f"{site.home.parent}/spool"
    maps = site.current / "secrets" / "smtp_sasl_password_maps"
    assert maps.read_text() == "[smtp.isp.example]:587 box7:pässw*rd\n"
    assert (site.current / "secrets" / "token").read_text() == "open sesame\n"
    assert maps.stat().st_mode & 0o777 == 0o600
    assert "sesame" not in in_force(site)
    assert "box7" not in in_force(site)
    # on the boot partition: as long as before, every other character where it was
    after = path.read_bytes()
    assert len(after) == len(raw)
    left = provision.read(path).text.replace("\r\n", "\n").splitlines()
    assert [line for line in left if "*" in line] == [
        'smtp_sasl_password_maps = [{ "[smtp.isp.example]:587" = "' + "*" * left[5].count("*") + '" }]'
        "   # from the provider",
        'token = "***********"',
        'address    = "*"',
    ]
    assert run(site) == Outcome("unchanged", configured=True)


def test_names_that_are_nearly_right_are_said(site: Site) -> None:
    for name in ("edgemail.toml.txt", "config.txt", "Edgemail (1).TOML", "edgemail-status.txt", ".edgemail.toml"):
        put(site, GOOD, name)
    (site.home.parent / "boot" / "New folder").mkdir()
    put(site, GOOD, "New folder/Edgemail.toml")
    found = run(site)
    assert (found.state, found.configured) == ("missing", False)
    assert found.notes == [
        "Edgemail (1).TOML is not read: it has to be called edgemail.toml",
        "New folder/edgemail.toml is in a folder: it has to stand beside the other files",
        "edgemail.toml.txt is not read: it has to be called edgemail.toml "
        "(Windows hides the ending .txt: show file name extensions)",
    ]
    put(site, GOOD, "Edgemail.TOML")
    assert run(site).state == "applied"


def test_a_partition_that_is_not_there(tmp_path: Path) -> None:
    path, notes = find(tmp_path / "none")
    assert path is None
    assert notes == ["The boot partition cannot be read: No such file or directory"]


BAD: dict[str, tuple[str | bytes, int, str]] = {
    "empty of sense": ("hello\n", 1, "is not TOML"),
    "typographic quotes": ("# x\nmyhostname = \u201cgw.example.com\u201d\n", 2, 'straight quotes: "text"'),
    "no quotes": ("myhostname = gw.example.com\n", 1, "text stands in quotes"),
    "unknown key": ('myhostname = "gw.example.com"\nrelay_host = "x"\n', 2, "relayhost"),
    "wrong type": ('\nmynetworks = 7\nmyhostname = "gw.example.com"\n', 2, "mynetworks"),
    "key twice": ('myhostname = "a.example"\nmyhostname = "b.example"\n', 2, "is not TOML"),
    "latin-1": ("# caf\xe9\nmyhostname = 1\n".encode("latin-1"), 0, "UTF-8"),
    "a document": (b"PK\x03\x04 word", 0, "word processor"),
    "rich text": (b"{\\rtf1 ", 0, "word processor"),
    "too large": (b"#" * 300_000, 0, "larger than"),
    "a secret that is nowhere": ('[health]\ntoken_file = "secrets/token"\n', 2, "no secret 'token'"),
    "blank from the start": ('[secrets]\ntoken = "****"\n', 2, "no such secret"),
    "an address that nobody knows": ('[push]\nalarm_url = "*****"\n', 2, "no such address"),
    "an address within braces": ('\npush = { alarm_url = "https://a.example/1" }\n', 2, "on a line of its own"),
    "a password within braces": (
        'transport = { slow = { smtp_sasl_password_maps = [{ "a.example" = "u:p" }] } }\n',
        1,
        "on a line of its own",
    ),
    "another spool": ('queue_directory = "/mnt/spool"\n', 1, "leave it out"),
    "a password in static": ('smtp_sasl_password_maps = ["static:me:secret"]\n', 1, "may not stand"),
    "secrets that are none": ("[secrets]\ntoken = 7\n", 2, "expected text"),
    "no table": ('secrets = "x"\n', 1, "expected a table"),
    "a file of the box": ('smtp_tls_CAfile = "/nowhere/roots.pem"\n', 1, "does not exist"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("before", [False, True], ids=["fresh", "configured"])
def test_a_bad_file_leaves_what_was_in_force(site: Site, name: str, before: bool) -> None:
    if before:
        put(site, GOOD.replace("token_file", "# token_file").replace("token =", "other ="))
        assert run(site).state == "applied"
    data, line, said = BAD[name]
    path = put(site, data)
    raw = path.read_bytes()
    found = run(site)
    assert (found.state, found.configured) == ("bad", before)
    assert found.problems[0].line == line
    assert said in f"{found.problems[0].key} {found.problems[0].message} {found.problems[0].hint}"
    assert path.read_bytes() == raw
    assert site.configured() is before
    if before:
        assert config.load(site.current / "edgemail.toml").settings.myhostname == "gw7.example.com"


# ---- what changes later


def test_blank_secrets_are_those_of_before_and_new_ones_are_taken(site: Site) -> None:
    path = put(site, GOOD)
    run(site)
    path.write_bytes(path.read_bytes().replace(b"gw7", b"gw8"))
    assert run(site).state == "applied"
    assert 'myhostname = "gw8.example.com"' in in_force(site)
    assert site.stored()["token"] == "open sesame\n"
    assert "box7:pässw*rd" in site.stored()["smtp_sasl_password_maps"]
    path.write_text(path.read_text().replace('token = "***********"', 'token = "fresh"'))
    assert run(site).state == "applied"
    assert site.stored()["token"] == "fresh\n"
    assert "fresh" not in path.read_text()
    assert [each.name for each in (site.home / "configurations").iterdir()] == [site.current.resolve().name]


def test_a_secret_of_several_lines(site: Site) -> None:
    text = 'myhostname = "gw.example.com"\n[secrets]\nusers = """\none:{x}a\ntwo:{x}b"""\n'
    path = put(site, text.replace("\n", "\r\n"))
    assert run(site).state == "applied"
    assert site.stored()["users"] == "one:{x}a\ntwo:{x}b\n"
    assert path.read_bytes().count(b"\r\n") == 5
    assert b"{x}" not in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(b"gw.", b"gx."))
    assert run(site).state == "applied"
    assert site.stored()["users"] == "one:{x}a\ntwo:{x}b\n"


def test_only_the_secret_is_blanked_where_its_word_stands_elsewhere(site: Site) -> None:
    text = 'myhostname = "gw.example.com" # open\n[secrets]\n"open" = "open" # "open"\nb = \'gw.example.com\'\n'
    path = put(site, text)
    assert run(site).state == "applied"
    wanted = 'myhostname = "gw.example.com" # open\n[secrets]\n"open" = "****" # "open"\nb = \'**************\'\n'
    assert path.read_text() == wanted


def test_the_addresses_of_push_are_secrets(site: Site) -> None:
    text = 'myhostname = "gw.example.com"\n[push]\nalarm_url = "https://a.example/hook/0815"  # ours\n'
    path = put(site, text)
    assert run(site).problems == ()
    assert path.read_text() == text.replace("https://a.example/hook/0815", "*" * 27)
    for host in ("gx", "gy"):
        path.write_text(path.read_text().replace("gw", host).replace("gx.", f"{host}."))
        assert run(site).state == "applied"
        found = config.load(site.current / "edgemail.toml")
        assert found.push is not None
        assert (found.settings.myhostname, found.push.alarm_url) == (
            f"{host}.example.com",
            "https://a.example/hook/0815",
        )


def test_transports_have_passwords_of_their_own(site: Site) -> None:
    text = """\
myhostname = "gw.example.com"
[transport.slow]
smtp_sasl_password_maps = [
  "texthash:secrets/rows",
  { "a.example" = "u:one", "b.example" = "u:two" },  # both
]
smtp_sasl_auth_enable = true
[secrets]
rows = "c.example u:three"
"""
    path = put(site, text)
    found = run(site)
    assert found.problems == ()
    assert site.stored()["transport_slow_smtp_sasl_password_maps_1"] == "a.example u:one\nb.example u:two\n"
    loaded = config.load(site.current / "edgemail.toml").transport("slow")
    places = [str(each).rpartition("/")[2] for each in loaded.smtp_sasl_password_maps]
    assert places == ["rows", "transport_slow_smtp_sasl_password_maps_1"]
    assert loaded.smtp_sasl_auth_enable
    assert "u:" not in path.read_text()


# ---- cut at any instant


class Cut(BaseException):
    """The power goes."""


def test_the_power_goes_at_each_step(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each call that changes the disk; what is there then is what a new start finds."""
    path = put(site, GOOD)
    assert run(site).state == "applied"
    root = site.home.parent
    blank = path.read_text()
    path.write_text(blank.replace("gw7", "gw9").replace('"***********"', '"brand new!!"'))
    start = root.with_name(root.name + "-start")
    shutil.copytree(root, start, symlinks=True)
    real = {name: getattr(os, name) for name in ("fsync", "pwrite", "open", "mkdir", "replace", "unlink", "symlink")}
    seen = set()
    for last in range(200):
        shutil.rmtree(root)
        shutil.copytree(start, root, symlinks=True)
        left = last

        def counted(name: str) -> Callable[..., object]:
            def call(*given: object, **more: object) -> object:
                nonlocal left
                if left == 0:
                    if name == "pwrite":  # a part of the file is blanked
                        data = bytes(given[1])  # type: ignore[call-overload]
                        real["pwrite"](given[0], data[: data.rindex(b"*****")], given[2])
                    raise Cut
                left -= 1
                return real[name](*given, **more)

            return call

        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(os, name, counted(name))
            try:
                done = run(site)
            except Cut:
                done = None
        host = config.load(site.current / "edgemail.toml").settings.myhostname
        token = (site.current / "secrets" / "token").read_text()
        assert (host, token) in (("gw7.example.com", "open sesame\n"), ("gw9.example.com", "brand new!!\n"))
        seen.add(host)
        again = run(site)
        assert (again.configured, again.problems) == (True, ())
        assert config.load(site.current / "edgemail.toml").settings.myhostname == "gw9.example.com"
        assert site.stored()["token"] == "brand new!!\n"
        assert "brand" not in path.read_text()
        if done is not None:
            break
    assert last > 15
    assert seen == {"gw7.example.com", "gw9.example.com"}


# ---- on a computer


def test_the_preview_says_the_same(site: Site, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    path = put(site, GOOD)
    found = preview(path, work)
    assert found.state == "applied"
    assert found.notes == ["Moved to the data partition and blanked here: smtp_sasl_password_maps, token"]
    assert path.read_text() == GOOD
    for name in ("unknown key", "a document", "blank from the start"):
        data, line, _ = BAD[name]
        bad = preview(put(site, data, "gateway.toml"), work)
        assert (bad.state, bad.problems[0].line) == ("bad", line)
    assert (
        preview(put(site, GOOD, "gateway.toml"), work).notes[0]
        == "On the boot partition it has to be called edgemail.toml"
    )
