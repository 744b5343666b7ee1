"""A small DNS server on loopback for tests, in a thread of its own: zones from a dict, faults on request.

    with FakeDns({"example.com": {"MX": ["10 mail1.example.com."]}, "mail1.example.com": {"A": ["127.0.0.2"]}}) as dns:
        settings = replace(settings, dns_nameservers=(dns.address,))
        dns.fail("example.com", Fault.SERVFAIL)

Names are written without a final dot; their keys are found in any case. A name that is not in the zones does not
exist (NXDOMAIN); a name without records of the type asked for has no data. The root has its NS, as the world's has,
unless `root=False`.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
from collections.abc import Mapping, Sequence
from enum import Enum
from types import TracebackType

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

Zones = Mapping[str, Mapping[str, Sequence[str]]]

CHAIN = 8  # CNAMEs followed
TTL = 300


class Fault(Enum):
    """What a name, or "*" for all, answers instead of the truth."""

    NXDOMAIN = "nxdomain"
    SERVFAIL = "servfail"
    REFUSED = "refused"
    NO_DATA = "no data"
    SILENT = "no answer at all"
    TRUNCATED = "only the TC flag over UDP, everything over TCP"
    SLOW = "the truth, `delay` seconds late"
    GARBAGE = "octets that are no DNS message"


class FakeDns:
    """The server. `questions` holds what was asked: (name, type, "udp" or "tcp")."""

    def __init__(
        self,
        zones: Zones | None = None,
        *,
        host: str = "127.0.0.1",
        root: bool = True,
        delay: float = 0.05,
        ttl: int = TTL,
    ) -> None:
        self.delay = delay
        self.ttl = ttl
        self.questions: list[tuple[str, str, str]] = []
        self._zones: dict[str, dict[str, list[str]]] = {}
        self._faults: dict[str, Fault] = {}
        self._lock = threading.Lock()
        self._timers: list[threading.Timer] = []
        self._selector = selectors.DefaultSelector()
        self._udp, self._tcp = _bind(host)
        self._stop, self._stopper = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="fake-dns", daemon=True)
        self.host, self.port = host, int(self._udp.getsockname()[1])
        if root:
            self.set(".", {"NS": ["a.root-servers.net."]})
        for name, records in (zones or {}).items():
            self.set(name, records)

    @property
    def address(self) -> str:
        """As dns_nameservers takes it: "[127.0.0.1]:5353"."""
        return f"[{self.host}]:{self.port}"

    def set(self, name: str, records: Mapping[str, Sequence[str]] | None) -> None:
        """Give a name its records, by type; None: it does not exist any more."""
        with self._lock:
            if records is None:
                self._zones.pop(_key(name), None)
            else:
                self._zones[_key(name)] = {kind: list(texts) for kind, texts in records.items()}

    def fail(self, name: str, fault: Fault | None) -> None:
        """Let a name, "name/TYPE", or "*" for all names, answer with a fault; None: no longer."""
        with self._lock:
            if fault is None:
                self._faults.pop(name.lower(), None)
            else:
                self._faults[name.lower()] = fault

    def asked(self, name: str, rdtype: str) -> int:
        """How often a question was put."""
        return sum(1 for asked, kind, _ in list(self.questions) if (asked, kind) == (_key(name), rdtype))

    def __enter__(self) -> FakeDns:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopper.send(b"x")
        self._thread.join()
        for timer in self._timers:
            timer.cancel()
            timer.join()
        for each in (self._udp, self._tcp, self._stop, self._stopper):
            each.close()
        self._selector.close()

    # ---- the thread

    def _serve(self) -> None:
        for each in (self._udp, self._tcp, self._stop):
            self._selector.register(each, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._stop:
                    return
                with contextlib.suppress(OSError):
                    self._serve_udp() if key.fileobj is self._udp else self._serve_tcp()

    def _serve_udp(self) -> None:
        data, peer = self._udp.recvfrom(4096)
        answer, late = self._answer(data, "udp")
        if answer and late:
            timer = threading.Timer(self.delay, lambda: self._late(answer, peer))
            self._timers.append(timer)
            timer.start()
        elif answer:
            self._udp.sendto(answer, peer)

    def _late(self, answer: bytes, peer: tuple[str, int]) -> None:
        with contextlib.suppress(OSError):
            self._udp.sendto(answer, peer)

    def _serve_tcp(self) -> None:
        """One question on a connection, answered at once."""
        peer, _ = self._tcp.accept()
        with peer:
            peer.settimeout(2)
            length = struct.unpack("!H", _exactly(peer, 2))[0]
            answer, _ = self._answer(_exactly(peer, length), "tcp")
            if answer:
                peer.sendall(struct.pack("!H", len(answer)) + answer)

    def _answer(self, data: bytes, protocol: str) -> tuple[bytes, bool]:
        query = dns.message.from_wire(data)
        question = query.question[0]
        name, rdtype = _key(question.name.to_text()), dns.rdatatype.to_text(question.rdtype)
        self.questions.append((name, rdtype, protocol))
        response = dns.message.make_response(query, recursion_available=True)
        with self._lock:
            fault = self._faults.get(f"{name}/{rdtype}".lower()) or self._faults.get(name) or self._faults.get("*")
            if fault in (None, Fault.SLOW) or (fault is Fault.TRUNCATED and protocol == "tcp"):
                self._fill(response, question.name, rdtype)
        if fault is Fault.SILENT:
            return b"", False
        if fault is Fault.GARBAGE:
            return b"\xff" * 7, False
        if fault is Fault.TRUNCATED and protocol == "udp":
            response.flags |= dns.flags.TC
        elif fault in (Fault.NXDOMAIN, Fault.SERVFAIL, Fault.REFUSED):
            response.set_rcode(dns.rcode.from_text(fault.name))
        return response.to_wire(want_shuffle=False), fault is Fault.SLOW

    def _fill(self, response: dns.message.Message, name: dns.name.Name, rdtype: str) -> None:
        for _ in range(CHAIN):
            records = self._zones.get(_key(name.to_text()))
            if records is None:
                response.set_rcode(dns.rcode.NXDOMAIN)
                return
            kind = rdtype if rdtype in records or "CNAME" not in records else "CNAME"
            if not records.get(kind):
                return
            response.answer.append(dns.rrset.from_text_list(name, self.ttl, "IN", kind, records[kind]))
            if kind == rdtype:
                return
            name = dns.name.from_text(records[kind][0])


def _key(name: str) -> str:
    return name.lower().rstrip(".") or "."


def _bind(host: str) -> tuple[socket.socket, socket.socket]:
    """A UDP and a TCP socket with the same free port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for _ in range(50):
        tcp = socket.socket(family, socket.SOCK_STREAM)
        tcp.bind((host, 0))
        tcp.listen(8)
        udp = socket.socket(family, socket.SOCK_DGRAM)
        try:
            udp.bind((host, tcp.getsockname()[1]))
        except OSError:
            tcp.close()
            udp.close()
            continue
        return udp, tcp
    raise OSError("no port is free for both UDP and TCP")


def _exactly(peer: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = peer.recv(count - len(data))
        if not more:
            raise ConnectionError("the asker hung up")
        data += more
    return data
