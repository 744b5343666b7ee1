"""The configuration loader against every TOML block of the documents, mutated.

Invariants: a configuration comes out, or every mistake with a sentence; never another exception, and never one that
leaves the box open: whatever loads still ends its relay restrictions in a refusal.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given

from edgemail.boot import config, reading
from edgemail.envelope import Address
from edgemail.errors import ConfigurationError, TableError
from edgemail.relay.receive.policy import Client, Policy
from tests.fuzz.seeds import bounded, mutations

ROOT = Path(__file__).parents[2]
HEAD = b'myhostname = "gw.example.com"\nqueue_directory = "spool"\n'
OPEN = HEAD + b'smtpd_relay_restrictions = ["permit_mynetworks", "permit"]\nsmtpd_recipient_restrictions = "permit"\n'
BLOCKS = [
    HEAD + block.encode()
    for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
    for block in re.findall(r"```toml\n(.*?)```", path.read_text(), re.DOTALL)
]


def judge(directory: Path, text: bytes) -> None:
    path = directory / "edgemail.toml"
    path.write_bytes(text)
    try:
        found = config.load(path, files=False)
    except ConfigurationError as error:
        assert error.problems
        assert all(problem.message for problem in error.problems)
        reading.report("edgemail.toml", error.problems).encode()
        return
    stranger = Client("203.0.113.77")
    for listener in found.listeners:
        try:
            policy = Policy(listener.settings, directory)
        except TableError:
            continue
        if not policy.trusts(stranger):
            assert policy.refusal(stranger, Address("victim", "elsewhere.invalid")) is not None


@pytest.mark.parametrize("text", [*BLOCKS, OPEN])
def test_corpus(tmp_path: Path, text: bytes) -> None:
    judge(tmp_path, text)


@bounded(0.7)
@given(data=mutations([*BLOCKS, OPEN]))
def test_mutations(tmp_path: Path, data: bytes) -> None:
    judge(tmp_path, data)
