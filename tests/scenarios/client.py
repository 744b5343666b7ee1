"""A client without manners: says what it is told to, when it is told to, and reads replies one by one."""

from __future__ import annotations

import re
import socket
import ssl
from types import TracebackType

PATIENCE = 30.0  # seconds until a test that hangs fails


def any_certificate() -> ssl.SSLContext:
    """TLS with whoever answers."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Client:
    """One connection, its greeting read. `source`: the address to come from."""

    def __init__(
        self, port: int, *, host: str = "127.0.0.1", source: str = "", tls: ssl.SSLContext | None = None
    ) -> None:
        self.socket = socket.create_connection((host, port), PATIENCE, (source, 0) if source else None)
        self._said = b""
        if tls is not None:
            self._wrap(tls)
        self.greeting = self.reply()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def send(self, octets: bytes) -> None:
        self.socket.sendall(octets)

    def line(self) -> bytes:
        """A line with its end; what is left, or b"", when the connection has ended."""
        while b"\n" not in self._said:
            try:
                data = self.socket.recv(65536)
            except ConnectionError:
                data = b""
            if not data:
                rest, self._said = self._said, b""
                return rest
            self._said += data
        line, end, self._said = self._said.partition(b"\n")
        return line + end

    def reply(self) -> str:
        """One reply, its lines parted by newlines; "" when the connection has ended."""
        lines = []
        while True:
            line = self.line().decode()
            lines.append(line.removesuffix("\r\n"))
            if line[3:4] != "-":
                return "\n".join(lines)

    def say(self, command: str) -> str:
        self.send(command.encode() + b"\r\n")
        return self.reply()

    def ask(self, *commands: str) -> list[str]:
        """The replies to commands that are sent in one piece."""
        self.send("".join(f"{command}\r\n" for command in commands).encode())
        return [self.reply() for _ in commands]

    def starttls(self, context: ssl.SSLContext | None = None, name: str | None = None) -> None:
        reply = self.say("STARTTLS")
        assert reply.startswith("220"), reply
        self._wrap(context or any_certificate(), name)

    def _wrap(self, context: ssl.SSLContext, name: str | None = None) -> None:
        self.socket = context.wrap_socket(self.socket, server_hostname=name)

    def data(self, content: bytes) -> str:
        """DATA and content, which brings its own stuffing; the reply behind its end."""
        reply = self.say("DATA")
        if not reply.startswith("354"):
            return reply
        self.send(content + b".\r\n")
        return self.reply()

    def message(self, content: bytes, *recipients: str, sender: str = "alice@example.com") -> str:
        """A whole transaction; its queue id."""
        for command in (f"MAIL FROM:<{sender}>", *(f"RCPT TO:<{one}>" for one in recipients or ("bob@example.org",))):
            reply = self.say(command)
            assert reply.startswith("250"), f"{command}: {reply}"
        return id_in(self.data(content))


def id_in(reply: str) -> str:
    """The queue id of an acknowledgement."""
    found = re.fullmatch(r"250 2\.0\.0 Ok: queued as ([0-9A-F]{8,11})", reply)
    assert found, reply
    return found[1]
