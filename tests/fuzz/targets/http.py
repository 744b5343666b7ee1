"""The status endpoint against any octets.

Invariants: one whole answer or none; no page fails; nothing that needs the token is done without it; no header of the
answer comes from the request; of content no more than its bound is read.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Final

from edgemail.health.http import MAX_BODY, MAX_HEAD, REASONS, Answer, HttpServer, Page, Refused, Request, parse_head
from edgemail.settings import Health
from tests.fuzz.targets.streams import exchange

WORDS: Final = (
    *(b"GET / HTTP/1.1\r\n", b"HEAD ", b"POST /post HTTP/1.0\r\n", b"Host: localhost:8025\r\n", b"Content-Length: "),
    *(b"Transfer-Encoding: chunked\r\n", b"Authorization: Bearer x\r\n", b"\r\n\r\n", b"http://", b"[::1]", b"%0d%0a"),
    *(
        b"?",
        b"#",
        b"//",
        b"*",
        b"CONNECT ",
        b"HTTP/2.0",
        b" ",
        b"\t",
        b":",
        b"\xff",
        b"\n",
        b"\r",
        b"\0",
        b"-1",
        b"9" * 12,
    ),
)
HEAD: Final = re.compile(rb"HTTP/1\.1 (\d{3}) [A-Z][A-Za-z ]+\r\n(?:[A-Za-z-]+: [ -~]*\r\n)*\r\n", re.DOTALL)
FIELDS: Final = {
    *(b"Content-Type", b"Content-Length", b"Connection", b"Cache-Control", b"X-Content-Type-Options"),
    *(b"Referrer-Policy", b"WWW-Authenticate", b"Allow"),
}
PORT: Final = 8025
ENDS: Final = {"peername": ("127.0.0.1", 4711), "sockname": ("127.0.0.1", PORT)}
done: list[Request] = []


async def _post(request: Request) -> Answer:
    done.append(request)
    return Answer(200, b"done")


PAGES: Final = {
    "/": Page(lambda request: Answer(200, b"hello", "text/html")),
    "/healthz": Page(lambda request: Answer(503, request.query.encode("utf-8", "replace"))),
    "/post": Page(_post, ("POST",), token=True),
}
LOOP: Final = asyncio.new_event_loop()


class Ear(logging.Handler):
    """Whether a page failed."""

    failed = False

    def emit(self, record: logging.LogRecord) -> None:
        Ear.failed = Ear.failed or record.exc_info is not None


logging.getLogger("edgemail.health").addHandler(Ear())


def judge(data: bytes) -> None:
    data = data.replace(b"{port}", b"%d" % PORT)
    server = HttpServer(Health(port=PORT), ("gw.example.com",), PAGES, port=PORT)
    Ear.failed = False
    answer, unread = LOOP.run_until_complete(exchange(server._client, data, MAX_HEAD, **ENDS))
    assert not Ear.failed
    assert not done
    assert len(data) - unread <= MAX_HEAD + MAX_BODY + 1024 * 1024 + 2 * MAX_HEAD
    try:
        parse_head(data)
    except Refused as refused:
        assert refused.code in REASONS
    if not answer:
        return
    head = HEAD.match(answer)
    assert head, answer[:300]
    code = int(head[1])
    assert code in REASONS
    assert {line.partition(b":")[0] for line in head[0].split(b"\r\n")[1:-2]} <= FIELDS
    length = re.search(rb"Content-Length: (\d+)", head[0])
    assert length
    rest = len(answer) - head.end()
    assert rest == int(length[1]) or (rest == 0 and data.startswith(b"HEAD"))
    assert not (code == 200 and data.startswith(b"POST"))
