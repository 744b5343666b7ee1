"""The control socket against anything that a local user may write into it, content included.

Invariants: the daemon answers the next command; what it answers are lines of JSON, the last one done; what is submitted
is whole, has CRLF for line ends and one trace header, or is not there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import given

from tests.desk import Running, running
from tests.fuzz.seeds import bounded, mutations, names, seeds
from tests.unit.test_control import ask, raw

CORPUS = seeds("control")


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("desk")) as found:
        yield found


def lines(answer: bytes) -> list[object]:
    """The answer's JSON lines; frames of content are passed over."""
    found: list[object] = []
    while answer:
        line, end, answer = answer.partition(b"\n")
        assert end, line
        said = json.loads(line)
        found.append(said)
        if isinstance(said, dict) and "octets" in said:
            answer = answer[said["octets"] :]
    return found


def judge(relay: Running, data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.clear()
    said = lines(raw(relay, data, shut=True))
    assert not said or (isinstance(said[-1], dict) and said[-1].get("done")), said
    assert not [record for record in caplog.records if record.exc_info]
    for envelope in list(relay.store.envelopes()):
        body = b"".join(relay.store.body(envelope.id))
        assert body.startswith(b"Received: ")
        assert body.endswith(b"\r\n")
        assert body.count(b"\r\n") == body.count(b"\r") == body.count(b"\n")
        assert len(body) == envelope.size
        assert envelope.recipients
    if len(list(relay.store.envelopes())) > 20:
        ask(relay, "queue.delete", all=True)
    assert ask(relay, "status")[1]["done"]


@pytest.mark.parametrize("seed", CORPUS, ids=names("control"))
def test_corpus(seed: bytes, relay: Running, caplog: pytest.LogCaptureFixture) -> None:
    judge(relay, seed, caplog)


@bounded(0.7)
@given(data=mutations(CORPUS))
def test_mutations(data: bytes, relay: Running, caplog: pytest.LogCaptureFixture) -> None:
    judge(relay, data, caplog)
