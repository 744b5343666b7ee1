"""The receiving side against clients that say anything, over real sockets.

Invariants: no exception; replies are well-formed lines and end with the session; nothing that a stranger says makes the
box relay; what is stored has CRLF for line ends and one trace header; no line of the log holds a control; no password
is ever logged or told to the postmaster.
"""

from __future__ import annotations

import asyncio
import logging
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given

from edgemail.domain import ascii_domain
from edgemail.envelope import Address, Envelope
from edgemail.relay.receive.auth import set_password
from edgemail.relay.receive.clerk import EXCEPTIONS
from tests.fuzz.seeds import bounded, mutations, names, seeds
from tests.receiving import HOST, serving

CORPUS = seeds("server")
LINE = re.compile(r"[2-5][0-9]{2}(?:[ -][^\r\n]*)?")
OURS = {HOST, "localhost", "relay.example"}
PASSWORD = "sesame-7f3a"


class Ear(logging.Handler):
    """Everything that is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("users") / "users"
    set_password(str(path), "lamp", PASSWORD)
    return path


@pytest.fixture
def ear() -> Iterator[Ear]:
    found = Ear()
    log = logging.getLogger("edgemail")
    level = log.level
    log.addHandler(found)
    log.setLevel(logging.DEBUG)
    yield found
    log.removeHandler(found)
    log.setLevel(level)


def ours(recipient: Address) -> bool:
    """Whether a stranger may write to a recipient, told without the policy's own code."""
    local, domain = recipient.local.lower(), recipient.domain
    if not domain:
        return local == "postmaster" or not any(char in local for char in "@%!")
    try:
        name = ascii_domain(domain).lower().removesuffix(".")
    except ValueError:
        return False
    below = any(name.endswith(f".{one}") for one in OURS)
    return (name in OURS or below) and not any(char in local for char in "@%!")


def harmless(text: str) -> bool:
    return not any(unicodedata.category(char) in ("Cc", "Zl", "Zp") for char in text)


def talk(data: bytes, users: Path, *, cut: int = 0) -> tuple[bytes, list[tuple[Envelope, bytes]], list[str]]:
    """One session; what was answered, what was stored, what the postmaster is told."""

    async def scenario() -> tuple[bytes, list[tuple[Envelope, bytes]], list[str]]:
        async with serving(
            mynetworks=("192.0.2.0/24",),
            relay_domains=("relay.example",),
            local_recipient_maps=(),
            smtpd_sasl_auth_enable=True,
            smtpd_tls_auth_only=False,
            smtpd_sasl_password_file=str(users),
            notify_classes=("policy", "protocol", "resource"),
        ) as box:
            wire = await box.wire()
            wire.send(data[:cut])
            await asyncio.sleep(0)
            wire.send(data[cut:])
            wire.writer.write_eof()
            said = await wire.rest()
            await wire.close()
            await box.server.drain(1.0)
            stored = [(one, b"".join(box.spool.body(one.id))) for one in box.spool.envelopes()]
            return said, stored, [text for _, _, text in box.notices]

    return asyncio.run(scenario())


def exceptions() -> float:
    return sum(EXCEPTIONS.values.values())


def judge(data: bytes, users: Path, ear: Ear, cut: int = 0) -> None:
    ear.records.clear()
    before = exceptions()
    said, stored, _ = talk(data, users, cut=cut)
    assert exceptions() == before
    assert not [record for record in ear.records if record.exc_info]
    lines = said.decode().split("\r\n")
    assert lines.pop() == ""
    assert all(LINE.fullmatch(line) and harmless(line) for line in lines), lines
    for envelope, body in stored:
        assert body.startswith(b"Received: ")
        assert body.count(b"\r\n") == body.count(b"\r") == body.count(b"\n")
        assert envelope.origin.sasl_username or all(ours(one.address) for one in envelope.recipients), envelope
    for record in ear.records:
        assert harmless(record.getMessage()), record.getMessage()


@pytest.mark.parametrize("seed", CORPUS, ids=names("server"))
def test_corpus(seed: bytes, users: Path, ear: Ear) -> None:
    judge(seed, users, ear)


@bounded()
@given(data=mutations(CORPUS))
def test_mutations(data: bytes, users: Path, ear: Ear) -> None:
    judge(data, users, ear, cut=len(data) // 3)


@pytest.mark.parametrize("seed", ["login", "login_steps"])
@pytest.mark.parametrize(
    "prefix", [b"", b"HELO me\r\n", b"EHLO me\r\nMAIL FROM:<a@b.example>\r\n", b"junk\r\nEHLO\r\n"]
)
def test_no_password_is_repeated(seed: str, prefix: bytes, users: Path, ear: Ear) -> None:
    """In whatever state a login is said: where it is taken, too early, too late, or as a command of its own."""
    data = dict(zip(names("server"), CORPUS, strict=True))[seed]
    said, _, notices = talk(prefix + data.replace(b"EHLO me\r\n", b"" if prefix else b"EHLO me\r\n"), users)
    ear_text = "\n".join(record.getMessage() for record in ear.records)
    secrets = [PASSWORD, *re.findall(r"[A-Za-z0-9+/]{12,}=*", data.decode())]
    for text in (said.decode(), ear_text, *notices):
        for secret in secrets:
            assert secret not in text, f"{secret} in {text}"
