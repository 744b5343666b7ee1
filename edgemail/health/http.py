"""A few lines of HTTP/1.1 for the status page: GET and HEAD, POST where a page takes it, one request a connection.

Owns sockets, limits and timeouts; never touches mail. aiohttp or http.server would cost more memory than the rest of
the endpoint (and http.server a thread a client).
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from edgemail.settings import Health
from edgemail.value import value

log = logging.getLogger("edgemail.health")

MAX_CLIENTS: Final = 32  # limit: connections to the health endpoint at once; further ones are closed at once
MAX_HEAD: Final = 8192  # limit: bytes of an HTTP request's line and header fields
MAX_BODY: Final = 65536  # limit: bytes of an HTTP request's content
LINGER_SECONDS: Final = 2.0  # limit: for an HTTP client that still sends to stop, so that it can read its answer
LINGER_BYTES: Final = 1024 * 1024  # limit: bytes of an HTTP client read and dropped meanwhile
REQUEST_SECONDS: Final = 10.0  # limit: for a whole HTTP request to arrive, and for its answer to be read

REASONS: Final = {
    200: "OK",
    202: "Accepted",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    409: "Conflict",
    413: "Content Too Large",
    421: "Misdirected Request",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}


@value
class Request:
    """One request, parsed. Header names are in lower case; `trusted`: it bears the token."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    content: bytes = b""
    trusted: bool = False
    length: int = 0
    stream: asyncio.StreamReader | None = None  # where the content is to be read, `length` bytes, if the page does that


@value
class Answer:
    """One answer; `extra` are further header fields."""

    code: int
    content: bytes
    kind: str = "text/plain; charset=utf-8"
    extra: tuple[tuple[str, str], ...] = ()


@value
class Page:
    """What stands at one path."""

    answer: Callable[[Request], Answer | Awaitable[Answer]]
    methods: tuple[str, ...] = ("GET", "HEAD")
    token: bool = False  # only with the token, from wherever
    streamed: float = 0.0  # seconds in which the page itself reads the content, of any length; 0 = it is given it whole


class Refused(Exception):
    """A request that cannot be answered as asked."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code
        self.why = why


def as_json(code: int, value: Any) -> Answer:
    import json

    return Answer(code, json.dumps(value, indent=1).encode() + b"\n", "application/json")


def parse_head(head: bytes) -> Request:
    """RFC 9112: request line and header fields. Raises Refused."""
    try:
        first, *lines = head.decode("ascii").split("\r\n")
        method, target, version = first.split(" ")
    except ValueError:
        raise Refused(400, "this is not an HTTP request") from None
    if version not in ("HTTP/1.1", "HTTP/1.0"):
        raise Refused(505, "HTTP/1.1 is spoken here")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():  # RFC 9112 5.1: no blank before the colon
            raise Refused(400, "a header field does not parse")
        name = name.lower()
        if name in headers and name in ("host", "content-length", "authorization"):
            raise Refused(400, f"two {name} fields")
        headers[name] = value.strip()
    if not target.startswith("/"):
        raise Refused(400, "the target must be a path")
    parts = urlsplit("//x" + target)
    return Request(method, parts.path, parts.query, headers)


@dataclass
class HttpServer:
    """The endpoint. `pages` maps paths; `names` are the host names (without port) that it answers to."""

    health: Health
    names: tuple[str, ...]
    pages: Mapping[str, Page]
    port: int = 0
    _clients: set[asyncio.Task[None]] = field(default_factory=set)
    _server: asyncio.Server | None = None

    async def start(self) -> None:
        """Bind and serve. Raises OSError."""
        self._server = await asyncio.start_server(
            self._client,
            None if self.health.address == "*" else self.health.address,
            self.health.port,
            limit=MAX_HEAD,
            backlog=128,
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in tuple(self._clients):
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) >= MAX_CLIENTS:
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            async with asyncio.timeout(2 * REQUEST_SECONDS) as limit:
                await self._serve(reader, writer, limit)
        except (TimeoutError, OSError):
            pass
        except asyncio.CancelledError:
            pass  # by close; asyncio would log a client's task that ends as cancelled
        finally:
            self._clients.discard(task)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: asyncio.Timeout) -> None:
        method = "GET"
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                request = await self._read(reader, writer)
            method = request.method
            if request.stream is not None:
                seconds = self.pages[request.path].streamed + REQUEST_SECONDS
                limit.reschedule(asyncio.get_running_loop().time() + seconds)
            answer = await self._answer(request)
        except Refused as refused:
            extra = (("WWW-Authenticate", "Bearer"),) if refused.code == 401 else ()
            answer = Answer(refused.code, f"{refused.why}\n".encode(), extra=extra)
        except TimeoutError:
            answer = Answer(408, b"the request did not arrive in time\n")
        except asyncio.IncompleteReadError:
            return
        except Exception:
            log.exception("a page failed")
            answer = Answer(500, b"the page failed; see the log\n")
        head = [
            f"HTTP/1.1 {answer.code} {REASONS.get(answer.code, 'Unknown')}",
            f"Content-Type: {answer.kind}",
            f"Content-Length: {len(answer.content)}",
            "Connection: close",
            "Cache-Control: no-store",
            "X-Content-Type-Options: nosniff",
            "Referrer-Policy: no-referrer",
            *(f"{name}: {value}" for name, value in answer.extra),
        ]
        writer.write("\r\n".join(head).encode("ascii") + b"\r\n\r\n" + (b"" if method == "HEAD" else answer.content))
        await writer.drain()
        await self._part(reader, writer)

    async def _part(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hang up so that the answer arrives: a socket that is closed with unread input resets the connection."""
        dropped = 0
        with contextlib.suppress(OSError):  # TimeoutError is one
            writer.write_eof()
            async with asyncio.timeout(LINGER_SECONDS):
                while dropped < LINGER_BYTES and (data := await reader.read(MAX_HEAD)):
                    dropped += len(data)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            raise Refused(431, f"the request's head is over {MAX_HEAD} bytes") from None
        request = parse_head(head[:-4])
        trusted = self._has_token(request)
        self._admit(request, *(str(writer.get_extra_info(end)[0]) for end in ("peername", "sockname")), trusted=trusted)
        if "transfer-encoding" in request.headers:
            raise Refused(501, "send Content-Length")
        length = request.headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            raise Refused(400, "Content-Length is not a number")
        page = self.pages.get(request.path)
        if page is not None and page.streamed and request.method == "POST" and len(length) <= 15:
            return replace(request, trusted=trusted, length=int(length), stream=reader)
        if len(length) > 9 or int(length) > MAX_BODY:
            raise Refused(413, f"at most {MAX_BODY} bytes")
        content = await reader.readexactly(int(length))
        return replace(request, content=content, trusted=trusted, length=int(length))

    def _has_token(self, request: Request) -> bool:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if not self.health.token_file or scheme.lower() != "bearer":
            return False
        try:
            token = Path(self.health.token_file).read_text().strip()
        except OSError as error:
            log.error("token_file cannot be read: %s", error)
            return False
        if not token:
            return False
        import hmac

        return hmac.compare_digest(token.encode(), given.strip().encode())

    def _admit(self, request: Request, peer: str, own: str, *, trusted: bool) -> None:
        """Who may ask at all, and by which name (DNS rebinding: a page elsewhere that points a name at us).

        `own` is the address that was connected to.
        """
        host = request.headers.get("host")
        if host is None:
            raise Refused(400, "a Host field is missing")
        name, port = split_host(host)
        if name not in self._own_names(own) or port != self.port:
            raise Refused(421, "this name is not served here")
        address = ipaddress.ip_address(peer.partition("%")[0])
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        networks = (ipaddress.ip_network(n, strict=False) for n in self.health.networks)
        if not trusted and not any(address in network for network in networks):
            raise Refused(401, "this client may ask only with the token of [health] token_file")

    def _own_names(self, own: str) -> set[str]:
        addresses = {"localhost", "127.0.0.1", "::1", self.health.address.lower(), own.partition("%")[0]}
        return addresses | {name.lower() for name in self.names}

    async def _answer(self, request: Request) -> Answer:
        page = self.pages.get(request.path)
        if page is None:
            raise Refused(404, "there is no such page; see /")
        if request.method not in page.methods:
            return Answer(405, b"this method is not for this page\n", extra=(("Allow", ", ".join(page.methods)),))
        if page.token and not request.trusted:
            raise Refused(401, "this needs the token of [health] token_file")
        answer = page.answer(request)
        return answer if isinstance(answer, Answer) else await answer


def split_host(host: str) -> tuple[str, int]:
    """A Host field as name (without brackets, in lower case) and port: 80 where none is named, -1 for a bad one."""
    host = host.lower()
    name, bracket, rest = host.partition("]")
    if bracket:
        name = name.removeprefix("[")
    else:
        name, colon, port = host.partition(":")
        rest = colon + port
    if not rest:
        return name, 80
    return name, int(rest[1:]) if rest[0] == ":" and rest[1:].isascii() and rest[1:].isdigit() and len(rest) < 7 else -1
