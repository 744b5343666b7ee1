"""The child that reads the configuration for the daemon: the same as `config.load` says, good or bad."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgemail.boot import config, reading
from edgemail.errors import ConfigurationError, SystemRefused

EVERYTHING = """
myhostname = "gw.example.com"
mynetworks = ["127.0.0.0/8"]
transport_maps = [{ "example.org" = "smtp:[relay.example.org]" }]
[[listener]]
address = "127.0.0.1"
port = 2525
smtpd_client_connection_count_limit = 3
[[link]]
name = "dsl"
probe = "[192.0.2.1]:587"
[health]
port = 8025
[push]
heartbeat_url = "https://watch.example.net/x"
"""


def written(directory: Path, text: str) -> str:
    path = directory / "edgemail.toml"
    path.write_text(text)
    return str(path)


def test_the_child_says_what_the_file_says(tmp_path: Path) -> None:
    queue = tmp_path / "spool"
    queue.mkdir()
    path = written(tmp_path, f'queue_directory = "{queue}"\nmail_owner = "root"\n{EVERYTHING}')
    assert reading.read(path) == config.load(path)


def test_the_child_names_every_mistake(tmp_path: Path) -> None:
    path = written(tmp_path, 'myhostnme = "gw"\nsmtpd_timeout = "soon"\n')
    with pytest.raises(ConfigurationError) as here:
        config.load(path)
    with pytest.raises(ConfigurationError) as there:
        reading.read(path)
    assert there.value.problems == here.value.problems
    assert len(there.value.problems) >= 2
    assert there.value.path == path


def test_a_child_that_dies_or_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(SystemRefused, match="ended with 1"):
        reading.read("x.toml")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    with pytest.raises(SystemRefused, match="no process to read it"):
        reading.read("x.toml")
