"""A release on trial writes no newer format of the spool than the release that the box would go back to knows."""

from __future__ import annotations

from pathlib import Path

from edgemail.spool import layout
from edgemail.spool.environment import Environment
from edgemail.spool.takeup import read_meta
from tests.scenarios.relay import Relay


def format_after_mail(relay: Relay, **environment: str) -> int:
    """What a cut of the power leaves: the format that the spool says of itself."""
    relay.start(**environment)
    relay.send()
    relay.kill()
    spool = Environment(relay.directory / "spool", 64 << 20)
    try:
        meta = read_meta(spool)
    finally:
        spool.close()
    assert meta is not None
    return layout.FORMAT if meta.journal is None else layout.FORMAT_WITH_JOURNAL


def test_the_journal_waits_until_the_slot_is_good(tmp_path: Path) -> None:
    relay = Relay(tmp_path, 'relayhost = "[127.0.0.1]:1"\n')
    try:
        assert format_after_mail(relay, EDGEMAIL_SPOOL_FORMAT="1") == layout.FORMAT
        assert format_after_mail(relay, EDGEMAIL_SPOOL_FORMAT="2") == layout.FORMAT_WITH_JOURNAL
        # back to the one before is no way that the box takes; but what is told is done, and no mail is lost by it
        assert format_after_mail(relay, EDGEMAIL_SPOOL_FORMAT="1") == layout.FORMAT
        relay.start()
        assert len(relay.queue()) == 3
    finally:
        relay._end()
