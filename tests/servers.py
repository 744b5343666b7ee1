"""A scripted SMTP server on loopback that does what a test tells it to, however wrong; and certificates for it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import hashlib
import hmac
import ipaddress
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DROP = b"<drop>"  # close the connection instead of answering
RESET = b"<reset>"  # close it hard
STALL = b"<stall>"  # never answer

Answer = bytes | list[bytes] | Callable[[str], bytes]
FULL = ("PIPELINING", "SIZE 10240000", "8BITMIME", "SMTPUTF8", "DSN", "ENHANCEDSTATUSCODES", "CHUNKING")
PLAIN = ("SIZE 10240000", "8BITMIME")


@dataclass
class Received:
    """One message as the server took it."""

    mail: str
    rcpt: list[str]
    content: bytes


@dataclass
class FakeServer:
    """`answers` by verb ("GREETING", "MAIL", "." for the end of data, "CHUNK" for a BDAT that is not the last...).

    A list is used up one by one, then the default comes back; a callable is given the whole command line.
    """

    keywords: Sequence[str] = FULL
    answers: Mapping[str, Answer] = field(default_factory=dict)
    delays: Mapping[str, float] = field(default_factory=dict)  # by verb: seconds before it is answered
    name: str = "fake.example"
    host: str = "127.0.0.1"
    tls: ssl.SSLContext | None = None
    implicit: bool = False
    users: Mapping[str, str] = field(default_factory=dict)
    received: list[Received] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)  # every command of every connection
    connections: int = 0
    clients: list[str] = field(default_factory=list)  # the address of each
    sessions: list[str] = field(default_factory=list)  # "cipher" or "resumed" of each handshake
    port: int = 0
    script: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]] | None = None  # instead of all that

    async def __aenter__(self) -> FakeServer:
        context = self.tls if self.implicit else None
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = await asyncio.start_server(self._accept, self.host, self.port, limit=1 << 20, ssl=context)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self.clients.append(str(writer.get_extra_info("peername")[0]))
        try:
            with contextlib.suppress(
                ConnectionError, asyncio.IncompleteReadError, ssl.SSLError, asyncio.CancelledError
            ):
                await (self.script(reader, writer) if self.script else _Conversation(self, reader, writer).run())
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    def answer(self, verb: str, line: str, default: bytes) -> bytes:
        said = self.answers.get(verb)
        if callable(said):
            return said(line) or default
        if isinstance(said, list):
            return said.pop(0) if said else default
        return default if said is None else said


class _Conversation:
    def __init__(self, server: FakeServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.server, self.reader, self.writer = server, reader, writer
        self.secure = server.implicit
        self.mail, self.rcpt, self.chunks = "", [], b""  # type: tuple[str, list[str], bytes]

    async def say(self, verb: str, line: str, default: bytes) -> bytes:
        if verb in self.server.delays:
            await asyncio.sleep(self.server.delays[verb])
        data = self.server.answer(verb, line, default)
        await self.raw(data)
        return data

    async def run(self) -> None:
        await self.say("GREETING", "", f"220 {self.server.name} ESMTP\r\n".encode())
        while True:
            octets = await self.reader.readline()
            if not octets:
                return
            assert octets.endswith(b"\r\n"), octets
            assert b"\r" not in octets[:-2], octets
            line = octets[:-2].decode()
            self.server.lines.append(line)
            verb = line.split(" ", 1)[0].upper()
            if await getattr(self, f"do_{verb.lower()}", self.do_other)(line):
                return

    async def do_other(self, line: str) -> bool:
        verb = line.split(" ", 1)[0].upper()
        await self.say(verb, line, b"500 5.5.2 what\r\n")
        return False

    async def do_ehlo(self, line: str) -> bool:
        words = [self.server.name, *self.server.keywords]
        if self.server.tls is not None and not self.secure:
            words.append("STARTTLS")
        text = "".join(f"250{' ' if word is words[-1] else '-'}{word}\r\n" for word in words)
        await self.say("EHLO", line, text.encode())
        return False

    async def do_helo(self, line: str) -> bool:
        await self.say("HELO", line, f"250 {self.server.name}\r\n".encode())
        return False

    async def do_starttls(self, line: str) -> bool:
        if not (await self.say("STARTTLS", line, b"220 2.0.0 go\r\n")).startswith(b"220"):
            return False
        assert self.server.tls is not None
        await self.writer.start_tls(self.server.tls)
        connection = self.writer.get_extra_info("ssl_object")
        self.server.sessions.append("resumed" if connection.session_reused else "full")
        self.secure = True
        return False

    async def do_auth(self, line: str) -> bool:
        said = self.server.answers.get("AUTH")
        if said is not None:
            await self.say("AUTH", line, b"")
            return False
        words = line.split(" ")
        good = False
        if words[1] == "PLAIN":
            _, user, password = base64.b64decode(words[2]).decode().split("\0")
            good = self.server.users.get(user) == password
        elif words[1] == "LOGIN":
            user = (await self.ask(b"Username:")).decode()
            good = self.server.users.get(user) == (await self.ask(b"Password:")).decode()
        elif words[1] == "CRAM-MD5":
            user, _, digest = (await self.ask(b"<1.2@fake>")).decode().partition(" ")
            password = self.server.users.get(user, "")
            good = hmac.new(password.encode(), b"<1.2@fake>", hashlib.md5).hexdigest() == digest
        self.writer.write(b"235 2.7.0 ok\r\n" if good else b"535 5.7.8 no\r\n")
        return False

    async def ask(self, prompt: bytes) -> bytes:
        self.writer.write(b"334 " + base64.b64encode(prompt) + b"\r\n")
        return base64.b64decode(await self.reader.readline())

    async def do_mail(self, line: str) -> bool:
        if (await self.say("MAIL", line, b"250 2.1.0 ok\r\n")).startswith(b"250"):
            self.mail, self.rcpt, self.chunks = line, [], b""
        return False

    async def do_rcpt(self, line: str) -> bool:
        default = b"250 2.1.5 ok\r\n" if self.mail else b"503 5.5.1 need MAIL\r\n"
        if (await self.say("RCPT", line, default)).startswith(b"250") and self.mail:
            self.rcpt.append(line)
        return False

    async def do_data(self, line: str) -> bool:
        default = b"354 go\r\n" if self.rcpt else b"554 5.5.1 no valid recipients\r\n"
        if not (await self.say("DATA", line, default)).startswith(b"354"):
            return False
        content = bytearray()
        while (octets := await self.reader.readline()) != b".\r\n":
            if not octets:
                return True
            assert octets.endswith(b"\r\n"), octets
            assert b"\r" not in octets[:-2], octets
            content += octets[1:] if octets.startswith(b".") else octets
        await self.take(".", bytes(content))
        return False

    async def do_bdat(self, line: str) -> bool:
        words = line.split(" ")
        self.chunks += await self.reader.readexactly(int(words[1]))
        if len(words) > 2:
            await self.take("LAST", self.chunks)
            self.chunks = b""
        else:
            await self.say("CHUNK", line, b"250 2.0.0 more\r\n")
        return False

    async def take(self, verb: str, content: bytes) -> None:
        default = b"250 2.0.0 Ok: queued as 1\r\n" if self.rcpt else b"554 5.5.1 no valid recipients\r\n"
        if verb in self.server.delays:
            await asyncio.sleep(self.server.delays[verb])
        data = self.server.answer(verb, "", default)
        if data.startswith(b"250") or data in {DROP, RESET, STALL}:
            self.server.received.append(Received(self.mail, list(self.rcpt), content))
        await self.raw(data)
        self.mail, self.rcpt = "", []

    async def raw(self, data: bytes) -> None:
        if data is DROP:
            raise ConnectionError
        if data is RESET:
            self.writer.transport.abort()
            raise ConnectionError
        if data is STALL:
            await asyncio.Event().wait()
        self.writer.write(data)
        await self.writer.drain()
        if data.startswith(b"421"):
            raise ConnectionError

    async def do_rset(self, line: str) -> bool:
        self.mail, self.rcpt = "", []
        await self.say("RSET", line, b"250 2.0.0 ok\r\n")
        return False

    async def do_quit(self, line: str) -> bool:
        await self.say("QUIT", line, b"221 2.0.0 bye\r\n")
        return True


# -- certificates -----------------------------------------------------------------------------------------------------

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


class Authority:
    """A root of our own, and the certificates it signs; everything lies as PEM in `folder`."""

    def __init__(self, folder: Path, name: str = "Test Root") -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        own = x509.BasicConstraints(ca=True, path_length=None)
        # Python 3.13's contexts want what RFC 5280 4.2.1.3 and 4.2.1.1 ask of an authority and of what it signs.
        usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
        self.certificate = self._sign(self.name, self.key, NOW - DAY, NOW + 30 * DAY, [own, usage])
        self.file = folder / f"{name.replace(' ', '-')}.pem"
        self.file.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    def server(self, *names: str, expired: bool = False) -> ssl.SSLContext:
        """A server context whose certificate bears `names`, DNS names or addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        alternatives = x509.SubjectAlternativeName([_general(name) for name in names])
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        end = NOW - DAY if expired else NOW + 30 * DAY
        certificate = self._sign(subject, key, NOW - 10 * DAY, end, [alternatives])
        path = self.folder / f"{names[0].replace('*', 'any')}-{expired}.pem"
        path.write_bytes(
            certificate.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context

    def _sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        start: datetime.datetime,
        end: datetime.datetime,
        extensions: Sequence[x509.ExtensionType],
    ) -> x509.Certificate:
        builder = x509.CertificateBuilder(self.name, subject, key.public_key(), x509.random_serial_number(), start, end)
        public = self.key.public_key()
        builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        for extension in extensions:
            critical = isinstance(extension, x509.BasicConstraints | x509.KeyUsage)
            builder = builder.add_extension(extension, critical=critical)
        return builder.sign(self.key, hashes.SHA256())


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
