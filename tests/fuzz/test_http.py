"""The status endpoint against anything, over real sockets.

Invariants: one whole answer or none; no page fails; nothing that needs the token is done without it; no header of the
answer comes from the request.
"""

from __future__ import annotations

import re

import pytest
from hypothesis import given

from edgemail.health.http import REASONS
from tests.fuzz.seeds import bounded, mutations, names, seeds
from tests.unit.test_health_http import ask

CORPUS = seeds("http")
HEAD = re.compile(rb"HTTP/1\.1 (\d{3}) [A-Z][A-Za-z ]+\r\n(?:[A-Za-z-]+: [ -~]*\r\n)*\r\n", re.DOTALL)
FIELDS = {
    *(b"Content-Type", b"Content-Length", b"Connection", b"Cache-Control", b"X-Content-Type-Options"),
    *(b"Referrer-Policy", b"WWW-Authenticate", b"Allow"),
}


def judge(request: bytes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.clear()
    # Its end, so that a server that waits for more content does not wait for long.
    code, answer = ask(request + b"\r\n\r\n" + b"x" * 70_000)
    assert not [record for record in caplog.records if record.exc_info]
    if not answer:
        return
    head = HEAD.match(answer)
    assert head, answer[:300]
    assert code in REASONS
    assert {line.partition(b":")[0] for line in head[0].split(b"\r\n")[1:-2]} <= FIELDS
    length = re.search(rb"Content-Length: (\d+)", head[0])
    assert length
    rest = len(answer) - head.end()
    assert rest == int(length[1]) or (rest == 0 and request.startswith(b"HEAD"))
    assert not (code == 200 and request.startswith(b"POST"))


@pytest.mark.parametrize("seed", CORPUS, ids=names("http"))
def test_corpus(seed: bytes, caplog: pytest.LogCaptureFixture) -> None:
    judge(seed, caplog)


@bounded()
@given(data=mutations(CORPUS))
def test_mutations(data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    judge(data, caplog)
