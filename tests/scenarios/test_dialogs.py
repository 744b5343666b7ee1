"""Every dialog script against the real process, with the script's settings given to it by SIGHUP."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgemail.relay.receive.auth import set_password
from tests.dialogs.runner import Remote, play, read, scripts
from tests.scenarios.relay import Relay, relay
from tests.scenarios.sink import Sink, sink


@pytest.fixture(scope="module")
def smarthost() -> Iterator[Sink]:
    with sink() as found:
        yield found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    with relay(tmp_path_factory.mktemp("relay")) as found:
        yield found


@pytest.mark.parametrize("path", scripts(), ids=lambda path: path.stem)
def test_script(path: Path, server: Relay, smarthost: Sink) -> None:
    """The dialogue to the letter; and each message that was acknowledged goes out, nothing else does."""
    script = read(path)
    values: dict[str, Any] = {"smtpd_error_sleep_time": 0, "in_flow_delay": 0, **script.settings}
    users: dict[str, str] = values.pop("users", {})
    passwords = server.directory / f"users.{path.stem}"
    for user, password in (users or {"somebody": "else"}).items():
        set_password(str(passwords), user, password)
    values["smtpd_sasl_password_file"] = str(passwords)
    values["relayhost"] = f"[127.0.0.1]:{smarthost.port}"
    server.reload("".join(f"{name} = {toml(value)}\n" for name, value in values.items()))
    assert re.findall("read again|stays in force", server.log())[-1] == "read again", server.log()
    smarthost.received.clear()
    peer = Remote("127.0.0.1", server.port)
    try:
        play(script, peer)
    finally:
        peer.close()
    acknowledged = sum(step.kind == "S:" and "queued as" in step.text for step in script.steps)
    smarthost.wait_for(acknowledged)
    server.wait_empty()
    assert len(smarthost.received) == acknowledged
    assert "panic: " not in server.log()


def toml(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(each)}" for key, each in value.items()) + "}"
    return json.dumps(value)
