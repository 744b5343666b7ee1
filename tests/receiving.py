"""Rigs for tests of the receiving side: a server on loopback with a spool in memory, and a client without manners."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any

from edgemail.clock import SystemClock
from edgemail.envelope import Envelope
from edgemail.relay.receive.listen import Server
from edgemail.relay.receive.session import Reception
from edgemail.settings import Configuration, Listener, Settings
from edgemail.spool.memory import MemorySpool

HOST = "relay.example.com"
PATIENCE = 20.0  # seconds until a test that hangs fails


def settings(**changes: Any) -> Settings:
    """The settings of a box as `boot.config` would make them, with short times."""
    values: dict[str, Any] = {
        "myhostname": HOST,
        "mydomain": "example.com",
        "myorigin": HOST,
        "mydestination": (HOST, "localhost"),
        "smtpd_banner": f"{HOST} ESMTP edgemail",
        "smtpd_client_event_limit_exceptions": (),
        "smtpd_error_sleep_time": 0.0,
        "smtpd_tls_security_level": "none",
    }
    return Settings(**{**values, **changes})


def listener(values: Settings, *, name: str = "lan", address: str = "127.0.0.1", port: int = 0) -> Listener:
    return Listener(name, address, port, "lan", values)


def configuration(*listeners: Listener) -> Configuration:
    return Configuration("/nowhere/edgemail.toml", listeners[0].settings, listeners)


class Wire:
    """A client that says whatever it is told to: octets out, replies in."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, port: int, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> Wire:
        return cls(*await asyncio.open_connection(host, port, ssl=tls))

    async def reply(self) -> str:
        """One reply, its lines parted by newlines; "" when the connection has ended."""
        lines = []
        while True:
            line = (await asyncio.wait_for(self.reader.readline(), PATIENCE)).decode()
            lines.append(line.removesuffix("\r\n"))
            if not line or line[3:4] != "-":
                return "\n".join(lines)

    async def say(self, *commands: str) -> str:
        """Commands in one write; the reply to the last."""
        self.send("".join(f"{command}\r\n" for command in commands).encode())
        for _ in commands[1:]:
            await self.reply()
        return await self.reply()

    def send(self, octets: bytes) -> None:
        self.writer.write(octets)

    async def rest(self) -> bytes:
        """Everything up to the end of the connection."""
        with contextlib.suppress(ConnectionError):
            return await asyncio.wait_for(self.reader.read(), PATIENCE)
        return b""

    async def hello(self) -> str:
        await self.reply()
        return await self.say("EHLO client.example.org")

    async def mail(self, content: bytes = b"Subject: x\r\n\r\nhello\r\n", to: str = "you@example.net") -> str:
        """A whole transaction; the reply to its end."""
        await self.say("MAIL FROM:<me@example.org>", f"RCPT TO:<{to}>", "DATA")
        self.send(content + b".\r\n")
        return await self.reply()

    async def starttls(self, context: ssl.SSLContext) -> None:
        assert (await self.say("STARTTLS")).startswith("220 ")
        loop = asyncio.get_running_loop()
        protocol: Any = self.writer.transport.get_protocol()
        transport = await loop.start_tls(self.writer.transport, protocol, context, server_hostname=HOST)
        assert transport is not None
        protocol._over_ssl = True
        self.reader._transport = transport  # type: ignore[attr-defined]
        self.writer._transport = transport  # type: ignore[attr-defined]

    def reset(self) -> None:
        """Leave without a farewell: TCP's RST."""
        connection = self.writer.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError, TimeoutError):
            await asyncio.wait_for(self.writer.wait_closed(), PATIENCE)


@dataclass
class Box:
    """A running server and what it told the rest of the box."""

    server: Server
    spool: MemorySpool
    accepted: list[Envelope] = field(default_factory=list)
    notices: list[tuple[str, str, str]] = field(default_factory=list)
    wires: list[Wire] = field(default_factory=list)
    reception: Reception = field(init=False)

    @property
    def port(self) -> int:
        return self.server.addresses[0][2]

    async def wire(self, number: int = 0, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> Wire:
        wire = await Wire.open(self.server.addresses[number][2], tls=tls, host=host)
        self.wires.append(wire)
        return wire

    def stored(self) -> list[bytes]:
        """The bodies that are in the spool."""
        return [b"".join(self.spool.body(envelope.id)) for envelope in self.spool.envelopes()]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Let the loop turn until something has happened."""
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def serving(
    *listeners: Listener, reception: Callable[[Reception], Reception] = lambda given: given, **changes: Any
) -> AsyncIterator[Box]:
    """A server with `listeners`, or one with `changes` to the settings. `reception` may replace what it is given."""
    chosen = listeners or (listener(settings(**changes)),)
    spool = MemorySpool()
    box = Box(Server(chosen), spool)
    alone = Reception.alone(spool, SystemClock(), configuration(*chosen))
    box.reception = reception(
        replace(alone, accepted=box.accepted.append, notice=lambda *notice: box.notices.append(notice))
    )
    await box.server.start(box.reception)
    try:
        yield box
    finally:
        for wire in box.wires:
            await wire.close()
        async with asyncio.timeout(PATIENCE):
            await box.server.drain(0.0)
        await spool.close()
