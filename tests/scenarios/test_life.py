"""The life of the real process: reload while mail flows, stopping in the middle, starting twice, whom it runs as."""

from __future__ import annotations

import grp
import os
import pwd
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers.ports import free_port
from tests.scenarios.client import Client, id_in
from tests.scenarios.relay import LISTENER, MESSAGE, Relay, relay
from tests.scenarios.sink import after_trace, sink
from tests.servers import STALL

OWNER = "nobody"
QUICK = 'in_flow_delay = 0\nminimal_backoff_time = "1s"\nqueue_run_delay = "1s"\n'


def to(port: int) -> str:
    return f'relayhost = "[127.0.0.1]:{port}"\n{QUICK}'


# reload


def test_reload_while_mail_flows(tmp_path: Path) -> None:
    """Sessions and deliveries go on through twenty reloads: everything arrives once, new sessions see new values."""
    numbers = iter(range(10_000))
    lock = threading.Lock()
    acknowledged: list[bytes] = []
    failures: list[str] = []
    over = threading.Event()

    def customer(port: int) -> None:
        try:
            with Client(port) as client:
                client.say("EHLO me")
                while not over.is_set():
                    with lock:
                        body = b"Subject: %d\r\n\r\n" % next(numbers) + b"x" * 70 + b"\r\n"
                    client.message(body)
                    acknowledged.append(body)
        except (AssertionError, OSError) as error:
            failures.append(repr(error))

    with sink() as smarthost, relay(tmp_path, to(smarthost.port)) as server:
        with Client(server.port) as old:
            assert "250-SIZE 10240000" in old.say("EHLO me")
            customers = [threading.Thread(target=customer, args=(server.port,)) for _ in range(4)]
            for each in customers:
                each.start()
            for round in range(20):
                size = 1_000_000 + round
                server.reload(f"{to(smarthost.port)}message_size_limit = {size}\n")
                with Client(server.port) as client:
                    assert f"250-SIZE {size}\n" in client.say("EHLO me")
            over.set()
            for each in customers:
                each.join()
            last = b"Subject: old\r\n\r\n"
            old.message(last)  # a session keeps what it began with
            acknowledged.append(last)
        assert not failures
        assert len(acknowledged) > 20
        smarthost.wait_for(len(acknowledged), 60)
        server.wait_empty()
        assert sorted(smarthost.bodies()) == sorted(acknowledged)
        assert "panic: " not in server.log()


def test_reload_with_a_bad_file_changes_nothing(tmp_path: Path) -> None:
    """The old values stay in force, key and line are logged, and the next good file is taken."""
    with sink() as smarthost, relay(tmp_path, to(smarthost.port) + "message_size_limit = 123_456\n") as server:
        mistakes = (
            ("message_size_limit = -1\n", r"edgemail\.toml:\d+: message_size_limit: "),
            ("mesage_size_limit = 1\n", r"edgemail\.toml:\d+: mesage_size_limit: .*message_size_limit"),
            ("myhostname = ]\n", r"edgemail\.toml:\d+: "),
            ('smtpd_relay_restrictions = ["permit"]\n', r"edgemail\.toml:\d+: smtpd_relay_restrictions: "),
        )
        for number, (settings, complaint) in enumerate(mistakes, 1):
            server.reload(settings)
            assert re.search(rf"edgemail/master\[\d+\]: error: .*{complaint}", server.log()), server.log()
            assert server.log().count("error: the configuration before it stays in force\n") == number
            with Client(server.port) as client:
                assert "250-SIZE 123456\n" in client.say("EHLO me")
                client.message(MESSAGE)
        server.path.unlink()
        assert server.process is not None
        count = server.log().count("stays in force")
        server.process.send_signal(signal.SIGHUP)
        server.wait_until(lambda: server.log().count("stays in force") > count, "complaint about a file that is gone")
        server.reload(to(smarthost.port) + "message_size_limit = 222_222\n")
        with Client(server.port) as client:
            assert "250-SIZE 222222\n" in client.say("EHLO me")
        smarthost.wait_for(len(mistakes))


def test_what_takes_a_restart_says_so(tmp_path: Path) -> None:
    with relay(tmp_path) as server:
        other = LISTENER.replace('"lan"', '"more"') + 'profile = "legacy"\n'
        server.reload('spool_size = "128MiB"\ninet_interfaces = "all"\n', LISTENER + other)
        for name in ("spool_size", "inet_interfaces"):
            assert re.search(rf"warning: {name}: takes effect at the next start", server.log()), server.log()
        assert re.search(r"warning: listener .*more takes a restart", server.log())
        server.restart()
        assert set(server.ports) == {"lan", "more"}


# stopping


def test_a_stop_in_the_middle_of_everything(tmp_path: Path) -> None:
    """Idle sessions are told, the message that is coming in is taken, a stalled client and a stalled delivery do not
    hold the stop up: exit 0 within 20 s, and what was acknowledged is there at the next start."""
    with sink() as smarthost, relay(tmp_path, to(smarthost.port)) as server:
        smarthost.server.answers = {"MAIL": STALL}
        stalled = server.send(message=b"Subject: stalled\r\n\r\n")
        smarthost_asked(smarthost.server.lines, "MAIL")
        idle, busy, silent = (Client(server.port) for _ in range(3))
        with idle, busy, silent:
            idle.say("EHLO me")
            for client in (busy, silent):
                client.ask("EHLO me", "MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA")
                client.send(b"Subject: in flight\r\n\r\n")
            assert server.process is not None
            begun = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert idle.reply() == "421 4.3.2 gw.example.com Service shutting down"
            assert idle.line() == b""
            with pytest.raises(OSError):
                Client(server.port)
            busy.send(b"the rest\r\n.\r\n")
            taken = id_in(busy.reply())
            assert busy.reply() == "421 4.3.2 gw.example.com Service shutting down"
            assert silent.reply() == "421 4.3.2 gw.example.com Service shutting down"
            assert server.process.wait(25) == 0
            assert time.monotonic() - begun < 20
        assert re.search(r"edgemail/master\[\d+\]: stopped$", server.log(), re.MULTILINE)
        smarthost.server.answers = {}
        server.start()
        found = {after_trace(one.content) for one in smarthost.wait_for(2)}
        assert found == {b"Subject: stalled\r\n\r\n", b"Subject: in flight\r\n\r\nthe rest\r\n"}
        server.wait_empty()
        assert f"{stalled}: removed" in server.log() and f"{taken}: removed" in server.log()


def smarthost_asked(lines: list[str], verb: str) -> None:
    until = time.monotonic() + 20
    while not any(line.startswith(verb) for line in lines):
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_with_nothing_to_do_is_quick(tmp_path: Path, number: signal.Signals) -> None:
    with relay(tmp_path) as server:
        assert server.process is not None
        begun = time.monotonic()
        server.process.send_signal(number)
        assert server.process.wait(10) == 0
        assert time.monotonic() - begun < 5
        assert not (tmp_path / "spool" / "control").is_socket()


# starting


def refused(server: Relay) -> subprocess.CompletedProcess[str]:
    """A start that is to fail."""
    return server.run("edgemail", "run", "--config", str(server.path), check=False)


@pytest.mark.parametrize("port", [0, free_port()], ids=["any port", "the same port"])
def test_a_second_start_names_the_holder(tmp_path: Path, port: int) -> None:
    with relay(tmp_path, listeners=LISTENER.replace("port = 0", f"port = {port}")) as server:
        assert server.process is not None
        done = refused(server)
        assert done.returncode == 69
        assert re.search(rf"fatal: .*\b{server.process.pid}\b", done.stderr), done.stderr
        server.send()


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        server = Relay(tmp_path, listeners=LISTENER.replace("port = 0", f"port = {port}"))
        done = refused(server)
    assert done.returncode == 71  # may be free in a minute: whoever started it may try again
    assert f"fatal: cannot listen on 127.0.0.1 port {port}: Address already in use" in done.stderr


def test_a_spool_that_cannot_be_opened(tmp_path: Path) -> None:
    """What cannot be opened as a spool is no fault of the configuration."""
    server = Relay(tmp_path)
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool/data.mdb").write_bytes(b"no environment" * 1000)
    done = refused(server)
    assert done.returncode == 71
    assert re.search(r"fatal: .*/spool", done.stderr), done.stderr


def test_check_is_silent_when_all_is_well(tmp_path: Path) -> None:
    server = Relay(tmp_path)
    done = server.run("edgemail", "check", "--config", str(server.path))
    assert (done.stdout, done.stderr) == ("", "")
    server.configure("relay_host = 1\n")
    done = server.run("edgemail", "check", "--config", str(server.path), check=False)
    assert done.returncode == 78
    assert "relay_host" in done.stderr and "relayhost" in done.stderr


# privileges


# Shows the interpreter ($1) to everybody where a directory above it ($2) does not: in a mount namespace of its own.
OPENED = """\
mount --bind "$1" /mnt && mount -t tmpfs -o mode=755 none "$2" && mkdir -p "$1" && mount --move /mnt "$1" || exit 99
shift 2
exec "$@"
"""


def opened() -> tuple[str, ...]:
    """A command that runs another, whose interpreter OWNER can then read; skips where there is none."""
    base = Path(sys.base_prefix)
    closed = [path for path in reversed(base.parents) if not path.stat().st_mode & 0o001]
    prefix = ("unshare", "-m", "sh", "-c", OPENED, "sh", str(base), str(closed[0])) if closed else ()
    load = "import edgemail.boot.serve, psutil"
    subprocess.run([sys.executable, "-c", load], check=True)
    become = f"import os, pwd; os.setuid(pwd.getpwnam('{OWNER}').pw_uid); {load}"
    tried = subprocess.run([*prefix, sys.executable, "-c", become], capture_output=True, check=False)
    if tried.returncode:
        pytest.skip(f"{OWNER} cannot read this interpreter or this checkout: {tried.stderr.decode()[-200:]}")
    return prefix


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that everybody can get to."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    directory = Path(tempfile.mkdtemp(prefix="edgemail-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def low_port() -> int:
    """A free port that only root may bind."""
    for port in range(700, 1024):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port below 1024 is free")


def test_root_binds_and_nobody_serves(public: Path) -> None:
    """Every thread, every file: after the port is bound, nothing is root's any more, and everything still works."""
    user = pwd.getpwnam(OWNER)
    groups = {user.pw_gid, *(group.gr_gid for group in grp.getgrall() if OWNER in group.gr_mem)}
    port = low_port()
    listeners = LISTENER.replace("port = 0", f"port = {port}")
    with sink() as smarthost:
        settings = to(smarthost.port) + f'mail_owner = "{OWNER}"\n'
        server = Relay(public, settings, listeners)
        server.prefix = opened()
        ours = os.getgroups()
        os.setgroups([*ours, 4, 6])  # root's own, adm and disk it may be: the process is to keep none of them
        try:
            server.start()
        finally:
            os.setgroups(ours)
        try:
            assert server.port == port
            with Client(port) as client:
                client.say("EHLO me")
                client.starttls()
                client.message(MESSAGE)
            smarthost.wait_for(1)
            smarthost.stop()
            waiting = server.send(message=b"Subject: later\r\n\r\n")
            server.wait_deferred()
            assert server.process is not None
            tasks = list(Path(f"/proc/{server.process.pid}/task").iterdir())
            assert len(tasks) > 1
            for task in tasks:
                status = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
                assert status["Uid"].split() == [str(user.pw_uid)] * 4
                assert status["Gid"].split() == [str(user.pw_gid)] * 4
                assert set(map(int, status["Groups"].split())) <= groups
                assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
            spool = public / "spool"
            files = [spool, *spool.rglob("*")]
            assert len(files) > 3
            for path in files:
                found = path.lstat()
                assert (found.st_uid, found.st_gid) == (user.pw_uid, user.pw_gid), path
                if stat.S_ISREG(found.st_mode) and path.name not in ("cert.pem", "holder.pid"):  # no mail, no key
                    assert not found.st_mode & 0o007, f"{path}: {found.st_mode:o}"
            server.reload(settings + "message_size_limit = 1_000_000\n", listeners)
            server.restart()
            smarthost.start()
            server.wait_for(f"{waiting}: removed")
            assert "panic: " not in server.log()
        finally:
            server._end()


def test_no_such_owner(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root becomes somebody else")
    done = refused(Relay(tmp_path, 'mail_owner = "no-such-user"\n'))
    assert done.returncode == 78
    assert "mail_owner" in done.stderr and "no-such-user" in done.stderr
    assert not (tmp_path / "spool").exists()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_signal_during_the_start(tmp_path: Path, number: signal.Signals) -> None:
    """Heeded when the start is done, however early it came: a reload, or an end in good order."""
    server = Relay(tmp_path)
    server.start()
    try:
        assert server.process is not None
        held = tmp_path / "spool" / "tls" / "cert.pem"
        assert server.stop() == 0
        held.unlink()  # making it anew takes a moment
        starting = threading.Thread(target=server.start)
        starting.start()
        until = time.monotonic() + 20
        while server.process is None or not handles(server.process.pid, number):
            assert time.monotonic() < until
            time.sleep(0.001)
        process = server.process
        process.send_signal(number)
        assert " is ready" not in server.log(), "it was heeded too late to tell"
        starting.join()
        if number is signal.SIGHUP:
            server.wait_for("read again")
            assert server.stop() == 0
        else:
            assert process.wait(10) == 0
            assert "stopped" in server.log()
    finally:
        server._end()


def handles(pid: int, number: int) -> bool:
    """Whether the process catches a signal (proc(5))."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"(?m)^SigCgt:\s*([0-9a-f]+)$", status)
    return found is not None and bool(int(found[1], 16) >> (number - 1) & 1)
