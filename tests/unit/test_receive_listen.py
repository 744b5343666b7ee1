"""Listening: addresses and interfaces, refusals, descriptors that run out, reload, and the end."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgemail.clock import SystemClock
from edgemail.errors import EdgemailError, TableError
from edgemail.relay.receive import interfaces, listen
from edgemail.relay.receive.listen import Server
from edgemail.relay.receive.session import Reception
from edgemail.reply import Reply
from edgemail.settings import Listener
from edgemail.spool.intake import SpoolIntake
from edgemail.spool.memory import MemorySpool
from tests.receiving import HOST, Box, configuration, listener, serving, settings

QUEUED = "250 2.0.0 Ok: queued as "
IPV6 = Path("/proc/net/if_inet6").exists() and "::1" in interfaces.own_addresses()
needs_ipv6 = pytest.mark.skipif(not IPV6, reason="this machine has no IPv6")


def places(address: str, **changes: Any) -> list[tuple[str, int]]:
    """What a listener with this address would be bound to."""
    server = Server([listener(settings(**changes), address=address)])
    server.bind()
    try:
        return [(host, port) for _, host, port in server.addresses]
    finally:
        asyncio.run(server.drain(0.0))


def hosts(address: str, **changes: Any) -> list[str]:
    return [host for host, _ in places(address, **changes)]


def test_an_address_a_name_and_an_interface() -> None:
    assert hosts("127.0.0.1") == ["127.0.0.1"]
    assert hosts("127.0.0.9") == ["127.0.0.9"]
    assert "127.0.0.1" in hosts("localhost", inet_protocols=("ipv4",))
    assert "127.0.0.1" in hosts("lo")


@needs_ipv6
def test_ipv6_and_both() -> None:
    assert hosts("::1") == ["::1"]
    assert sorted(hosts("lo")) == ["127.0.0.1", "::1"]
    assert hosts("lo", inet_protocols=("ipv6",)) == ["::1"]
    assert hosts("lo", inet_protocols=("ipv4",)) == ["127.0.0.1"]
    (six, four) = places("*")
    assert (six[0], four[0]) == ("::", "0.0.0.0")
    assert six[1] == four[1] != 0
    assert hosts("*", inet_protocols=("ipv4",)) == ["0.0.0.0"]
    assert hosts("*", inet_protocols=("ipv6",)) == ["::"]


@needs_ipv6
def test_an_ipv4_client_of_all_addresses_has_an_ipv4_address() -> None:
    async def scenario() -> None:
        async with serving(listener(settings(), address="*")) as box:
            for number, host, seen in ((0, "::1", "::1"), (1, "127.0.0.1", "127.0.0.1")):
                wire = await box.wire(number, host=host)
                await wire.hello()
                await wire.mail()
                assert box.accepted[-1].origin.client_address == seen
            assert b"[IPv6:::1]" in box.stored()[0]

    asyncio.run(scenario())


@needs_ipv6
def test_a_mapped_client_counts_as_ipv4() -> None:
    async def scenario() -> None:
        dual = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        chosen = listener(settings(mynetworks=("127.0.0.0/8",)), name="lan")
        box = Box(Server([chosen]), MemorySpool())
        box.server.bind([("lan", dual)])
        await box.server.start(Reception.alone(box.spool, SystemClock(), configuration(chosen)))
        try:
            wire = await box.wire()
            await wire.hello()
            assert (await wire.mail()).startswith(QUEUED)
            (envelope,) = box.spool.envelopes()
            assert envelope.origin.client_address == "127.0.0.1"
            await wire.close()
        finally:
            await box.server.drain(0.0)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("192.0.2.77", "no address of this machine"),
        ("no-such-interface.invalid", "neither an address, an interface, nor a host"),
    ],
)
def test_what_cannot_be_bound_is_said(address: str, why: str) -> None:
    good = listener(settings())
    server = Server([good, listener(settings(), address=address, name="other")])
    with pytest.raises(EdgemailError, match=why):
        server.bind()
    assert server.addresses == ()


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for address in ("127.0.0.1", "*"):
            with pytest.raises(EdgemailError, match=rf"port {port}: Address already in use; another server has it"):
                Server([listener(settings(inet_protocols=("ipv4",)), address=address, port=port)]).bind()


def test_no_ipv6_is_no_reason_not_to_start(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    real = listen._bind

    def bind(family: socket.AddressFamily, address: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        return real(family, address)

    monkeypatch.setattr(listen, "_bind", bind)
    server = Server([listener(settings()), listener(settings(), address="::1", name="six")])
    server.bind()
    assert [name for name, _, _ in server.addresses] == ["lan"]
    assert "no IPv6 here" in caplog.text
    asyncio.run(server.drain(0.0))
    assert hosts("*") == ["0.0.0.0"]
    with pytest.raises(EdgemailError, match="no listener could be bound"):
        Server([listener(settings(), address="::1")]).bind()


def test_interfaces_are_what_the_kernel_says() -> None:
    assert "127.0.0.1" in interfaces.addresses_of("lo")
    assert "127.0.0.1" in interfaces.own_addresses()
    assert interfaces.is_interface("lo")
    assert not interfaces.is_interface("127.0.0.1")
    assert interfaces.addresses_of("none0") == ()
    for name in {name for _, name in socket.if_nameindex()}:
        for address in interfaces.addresses_of(name):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                zone = socket.if_nametoindex(name) if "%" in address else 0
                host = address.partition("%")[0]
                probe.bind((host, 0, 0, zone) if family == socket.AF_INET6 else (host, 0))


def test_several_listeners_each_with_its_own_settings() -> None:
    async def scenario() -> None:
        lan = listener(settings(smtpd_banner="lan"))
        closed = listener(settings(smtpd_banner="closed", smtpd_relay_restrictions=("reject",)), name="closed")
        async with serving(lan, closed) as box:
            assert [name for name, _, _ in box.server.addresses] == ["lan", "closed"]
            first, second = await box.wire(0), await box.wire(1)
            assert (await first.reply(), await second.reply()) == ("220 lan", "220 closed")
            assert (await first.mail()).startswith(QUEUED)
            assert (await second.say("MAIL FROM:<a@b.example>", "RCPT TO:<a@b.example>")).startswith("554 5.7.1 ")
            assert box.accepted[0].origin.listener == "lan"

    asyncio.run(scenario())


# ---- refusals


def test_too_many_sessions_of_one_client(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with serving(smtpd_client_connection_count_limit=2) as box:
            first, second, third = [await box.wire() for _ in range(3)]
            assert (await first.reply()).startswith("220")
            assert (await second.reply()).startswith("220")
            assert await third.reply() == f"421 4.7.0 {HOST} Error: too many connections from unknown[127.0.0.1]"
            assert await third.rest() == b""
            assert box.server.sessions == 2
            await first.say("QUIT")
            await first.rest()
            await box.until(lambda: box.server.sessions == 1)
            assert (await (await box.wire()).reply()).startswith("220")

    asyncio.run(scenario())
    assert "NOQUEUE: reject: CONNECT from unknown[127.0.0.1]: 421 4.7.0" in caplog.text


def test_trusted_clients_are_excepted() -> None:
    async def scenario() -> None:
        async with serving(
            smtpd_client_connection_count_limit=1, smtpd_client_event_limit_exceptions=("127.0.0.0/8",)
        ) as box:
            for _ in range(4):
                assert (await (await box.wire()).reply()).startswith("220")

    asyncio.run(scenario())


def test_all_sessions_have_one_bound() -> None:
    async def scenario() -> None:
        async with serving(default_process_limit=2, smtpd_client_event_limit_exceptions=("127.0.0.0/8",)) as box:
            wires = [await box.wire() for _ in range(3)]
            assert [(await wire.reply())[:9] for wire in wires] == ["220 relay", "220 relay", "421 4.3.2"]

    asyncio.run(scenario())


def test_the_guards_are_asked_at_a_connection() -> None:
    asked: list[tuple[str, int, int]] = []

    def crowded(host: str, held: int, total: int) -> Reply | None:
        asked.append((host, held, total))
        return Reply(421, "4.3.2", f"{host} Error: out of memory, try again later") if total else None

    async def scenario() -> None:
        async with serving(reception=lambda given: replace(given, crowded=crowded)) as box:
            assert (await (await box.wire()).reply()).startswith("220")
            assert (await (await box.wire()).reply()).startswith("421 4.3.2 ")

    asyncio.run(scenario())
    assert asked == [(HOST, 0, 0), (HOST, 1, 1)]


def test_who_is_refused_is_not_waited_for_and_not_logged_each_time(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with serving(smtpd_client_connection_count_limit=1) as box:
            keeper = await box.wire()
            await keeper.reply()
            with socket.socket() as mute:
                mute.setblocking(False)
                await asyncio.get_running_loop().sock_connect(mute, ("127.0.0.1", box.port))
                for _ in range(50):
                    wire = await box.wire()
                    assert (await wire.reply()).startswith("421")
            assert (await keeper.say("NOOP")).startswith("250")

    asyncio.run(scenario())
    assert sum("reject: CONNECT" in message for message in caplog.messages) == 1


def test_out_of_descriptors(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(listen, "EXHAUSTED_SECONDS", 0.02)
    failures = [0]

    async def scenario() -> None:
        real = socket.socket.accept

        def accept(self: socket.socket) -> Any:
            if 0 < failures[0] < 5:
                failures[0] += 1
                raise OSError(errno.EMFILE, "Too many open files")
            return real(self)

        monkeypatch.setattr(socket.socket, "accept", accept)
        async with serving() as box:
            assert (await (await box.wire()).reply()).startswith("220")
            failures[0] = 1
            assert (await (await box.wire()).reply()).startswith("220")
            assert (await (await box.wire()).reply()).startswith("220")
            await box.until(lambda: failures[0] == 5)

    asyncio.run(scenario())
    assert sum("Too many open files" in message for message in caplog.messages) == 1


def test_a_real_lack_of_descriptors() -> None:
    """In a process of its own: 40 descriptors, 100 clients; those that were in stay in, the others get in later."""
    program = f"""
import asyncio, resource, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from edgemail.relay.receive import listen
from tests.receiving import serving
listen.EXHAUSTED_SECONDS = 0.05

async def scenario():
    async with serving(default_process_limit=1000, smtpd_client_connection_count_limit=0) as box:
        import socket
        first = await box.wire()
        await first.hello()
        # the clients are in another process: they must not use our descriptors
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c",
            "import socket,sys\\n"
            "c=[socket.create_connection(('127.0.0.1',%d)) for _ in range(100)]\\n"
            "print('in',flush=True); sys.stdin.readline()\\n"
            "[x.close() for x in c]\\n" % box.port,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
        await child.stdout.readline()
        await asyncio.sleep(0.2)
        assert (await first.mail()).startswith("250"), "who is in is served"
        assert box.server.sessions < 40
        child.stdin.write(b"\\n")
        await child.stdin.drain()
        await child.wait()
        await box.until(lambda: box.server.sessions == 1)
        late = await box.wire()
        assert (await late.reply()).startswith("220")
        print("ok")

asyncio.run(scenario())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "ok\n", done.stderr


# ---- reload


def test_a_reload_is_for_new_sessions() -> None:
    async def scenario() -> None:
        async with serving(smtpd_banner="before") as box:
            old = await box.wire()
            assert await old.reply() == "220 before"
            box.server.reload(configuration(listener(settings(smtpd_banner="after", mynetworks=("192.0.2.1",)))))
            new = await box.wire()
            assert await new.reply() == "220 after"
            assert (await old.mail()).startswith(QUEUED)
            await new.say("MAIL FROM:<a@b.example>")
            assert (await new.say("RCPT TO:<a@b.example>")).startswith("554 5.7.1 ")

    asyncio.run(scenario())


def test_a_reload_that_fails_changes_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(smtpd_banner="before") as box:
            bad = settings(smtpd_banner="after", relay_recipient_maps=(f"texthash:{tmp_path}/none",))
            with pytest.raises(TableError):
                box.server.reload(configuration(listener(bad)))
            assert await (await box.wire()).reply() == "220 before"

    asyncio.run(scenario())


def test_listeners_come_and_go_with_a_restart_only(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with serving(smtpd_banner="before") as box:
            other = Listener("new", "127.0.0.1", 2500, "lan", settings())
            box.server.reload(configuration(other))
            assert await (await box.wire()).reply() == "220 before"

    asyncio.run(scenario())
    assert "127.0.0.1:2500 takes a restart" in caplog.text
    assert "stays until a restart" in caplog.text


def test_a_listener_is_known_by_its_place_not_by_its_name_or_number() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]

    async def scenario() -> None:
        async with serving(Listener("a", "127.0.0.1", port, "lan", settings(), "listener[0]")) as box:
            moved = Listener("b", "127.0.0.1", port, "lan", settings(smtpd_banner="after"), "listener[1]")
            box.server.reload(configuration(moved))
            assert await (await box.wire()).reply() == "220 after"

    asyncio.run(scenario())


# ---- the end


def test_a_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "CANCEL_SECONDS", 0.02)
    gate = asyncio.Event()
    real = SpoolIntake.commit

    async def commit(self: SpoolIntake, *rest: Any) -> Any:
        await gate.wait()
        return await real(self, *rest)

    async def scenario() -> None:
        async with serving() as box:
            fresh, idle, talking, sending, stuck = [await box.wire() for _ in range(5)]
            for wire in (idle, talking, sending, stuck):
                await wire.hello()
            await fresh.reply()
            for wire in (talking, sending, stuck):
                await wire.say("MAIL FROM:<a@b.example>", "RCPT TO:<a@b.example>")
            for wire in (sending, stuck):
                await wire.say("DATA")
            monkeypatch.setattr(SpoolIntake, "commit", commit)
            sending.send(b"hello\r\n.\r\n")
            stuck.send(b"never ending")
            await box.until(lambda: any(each.committing for each in box.server._sessions))
            port = box.port
            drained = asyncio.ensure_future(box.server.drain(0.3))
            goodbye = f"421 4.3.2 {HOST} Service shutting down"
            assert await fresh.reply() == await idle.reply() == goodbye
            with pytest.raises(OSError):
                await asyncio.open_connection("127.0.0.1", port)
            assert (await talking.say("DATA")).startswith("354")  # a transaction in hand goes on
            talking.send(b"hello\r\n.\r\n")
            assert await stuck.reply() == goodbye
            for wire in (fresh, idle, stuck):
                await wire.close()
            await asyncio.sleep(0.15)  # cancelled by now, whoever is to be cancelled
            assert not drained.done()
            gate.set()
            assert (await talking.reply()).startswith(QUEUED)
            assert await talking.reply() == goodbye
            assert (await sending.reply()).startswith(QUEUED)
            assert await sending.reply() == goodbye
            for wire in (talking, sending):
                await wire.close()
            await drained
            assert len(box.accepted) == len(box.stored()) == 2
            assert box.server.sessions == 0
            assert box.server.addresses == ()

    asyncio.run(scenario())


def test_a_drain_does_not_wait_for_who_does_not_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "CANCEL_SECONDS", 0.1)

    async def never(self: SpoolIntake) -> None:
        await asyncio.Event().wait()

    async def scenario() -> None:
        async with serving() as box:
            wire = await box.wire()
            await wire.hello()
            await wire.say("MAIL FROM:<a@b.example>", "RCPT TO:<a@b.example>", "DATA")
            monkeypatch.setattr(SpoolIntake, "drain", never)
            wire.send(b"hello\r\n")
            await box.until(lambda: any(each.clerk.taken > 0 for each in box.server._sessions))
            async with asyncio.timeout(5):
                await box.server.drain(0.0)
            assert box.spool._pool.intakes == set()

    asyncio.run(scenario())


def test_a_drain_does_not_wait_for_a_tarpit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "CANCEL_SECONDS", 60.0)

    async def scenario() -> None:
        async with serving(smtpd_soft_error_limit=0, smtpd_error_sleep_time=60.0) as box:
            wire = await box.wire()
            await wire.hello()
            wire.send(b"BOGUS\r\n")
            await box.until(lambda: any(each._last == "UNKNOWN" for each in box.server._sessions))
            async with asyncio.timeout(10):
                drained = asyncio.ensure_future(box.server.drain(0.0))
                assert (await wire.reply()).startswith("500")
                assert (await wire.reply()).startswith("421 4.3.2 ")
                await wire.close()
                await drained

    asyncio.run(scenario())


def test_a_server_that_was_never_started_drains() -> None:
    server = Server([listener(settings())])
    server.bind()
    asyncio.run(server.drain(0.0))
    assert server.addresses == ()


# ---- systemd


def test_inherited_sockets(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """In a process of its own, for the descriptors begin at 3."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        program = f"""
import os, socket, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
os.dup2({one.fileno()}, 3); os.dup2({two.fileno()}, 4)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="2", LISTEN_FDNAMES="lan:other")
from edgemail.relay.receive.listen import Server
from tests.receiving import listener, settings
port = int(sys.argv[1])
plain = settings()
server = Server([listener(plain), listener(plain, name="by port", port=port), listener(plain, name="own")])
server.bind()
print(*[(name, where) for name, _, where in server.addresses[:2]], server.addresses[2][0])
assert "LISTEN_FDS" not in os.environ
assert not os.get_inheritable(3)
"""
        ports = one.getsockname()[1], two.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-c", program, str(ports[1])],
            capture_output=True,
            text=True,
            check=False,
            pass_fds=(one.fileno(), two.fileno()),
        )
        assert done.stdout == f"('lan', {ports[0]}) ('by port', {ports[1]}) own\n", done.stderr


def test_sockets_for_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid() + 1))
    monkeypatch.setenv("LISTEN_FDS", "1")
    assert listen.inherited_sockets() == []


def test_an_inherited_socket_that_nobody_wants_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    stray = socket.create_server(("127.0.0.1", 0))
    server = Server([listener(settings())])
    server.bind([("stray", stray)])
    assert stray.fileno() == -1
    assert "no listener for the inherited socket stray" in caplog.text
    asyncio.run(server.drain(0.0))


def test_connections_and_sessions_are_counted() -> None:
    async def scenario() -> None:
        before = listen.CONNECTIONS.values.get(("counted",), 0)
        async with serving(listener(settings(), name="counted")) as box:
            wire = await box.wire()
            await wire.hello()
            assert listen.SESSIONS.values[()] == 1
            await wire.close()
            await box.until(lambda: listen.SESSIONS.values[()] == 0)
        assert listen.CONNECTIONS.values[("counted",)] == before + 1

    asyncio.run(scenario())


def test_the_log_names_the_listener(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "edgemail")

    async def scenario() -> None:
        async with serving(listener(settings(syslog_name="edgemail/submission"))) as box:
            wire = await box.wire()
            await wire.hello()

    asyncio.run(scenario())
    assert {record.__dict__["syslog_name"] for record in caplog.records} == {"edgemail/submission"}


def test_answers_are_not_kept_back_by_nagle() -> None:
    """An accepted socket has TCP_NODELAY by inheritance: asyncio would not set it."""

    async def scenario() -> None:
        async with serving() as box:
            assert all(d.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for d in box.server._doors)

    asyncio.run(scenario())
