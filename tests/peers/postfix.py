"""Postfix, unpacked: its test programs, and a whole private instance with its own configuration and queue.

The instance runs as root (master insists), keeps everything below one temporary directory and listens on loopback.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.peers import Peer, need
from tests.peers.certificate import Certificate
from tests.peers.ports import free_port, greeting

# Accounts that every Debian has: Postfix wants an owner and a group that nobody else shares.
OWNER = "daemon"
GROUP = "mail"
SERVICES = """\
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
flush unix n - n 1000? 0 flush
pickup unix n - n 60 1 pickup
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
local unix - n n - - local
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""


def smtp_source(
    port: int, *options: str, messages: int = 1, sessions: int = 1, length: int = 1000, seconds: float = 120.0
) -> subprocess.CompletedProcess[str]:
    """Send with Postfix's load generator; ends when all are sent."""
    peer = need("postfix")
    command = [peer.path("smtp-source"), "-m", str(messages), "-s", str(sessions), "-l", str(length)]
    command += [*options, f"127.0.0.1:{port}"]
    return subprocess.run(command, env=peer.environment(), capture_output=True, text=True, timeout=seconds, check=False)


@contextlib.contextmanager
def smtp_sink(*options: str, backlog: int = 100) -> Iterator[int]:
    """Postfix's swallowing server, for the length of a test; its port. As root it needs `-u USER`."""
    peer = need("postfix")
    port = free_port()
    command = [peer.path("smtp-sink"), *options, f"127.0.0.1:{port}", str(backlog)]
    process = subprocess.Popen(command, env=peer.environment(), stdout=subprocess.DEVNULL)
    try:
        greeting(port)
        yield port
    finally:
        process.terminate()
        process.wait(10)


class Postfix:
    """A private Postfix. `start` it, use `port`, `stop` it; or take it from `postfix()`."""

    def __init__(self, settings: dict[str, str] | None = None) -> None:
        self.peer: Peer = need("postfix", root=True)
        self.directory = Path(tempfile.mkdtemp(prefix="postfix-"))
        self.directory.chmod(0o755)  # its daemons run as OWNER
        self.port = free_port()
        self.settings = {
            "compatibility_level": "3.6",
            "queue_directory": f"{self.directory}/queue",
            "data_directory": f"{self.directory}/data",
            "command_directory": str(self.peer.tree / "usr/sbin"),
            "daemon_directory": str(self.peer.tree / "usr/lib/postfix/sbin"),
            "shlib_directory": str(self.peer.tree / "usr/lib/postfix"),
            "meta_directory": f"{self.directory}/conf",
            "mail_owner": OWNER,
            "setgid_group": GROUP,
            "maillog_file": f"{self.directory}/log",
            "maillog_file_prefixes": str(self.directory),
            "import_environment": f"MAIL_CONFIG TZ LANG=C LD_LIBRARY_PATH={self._libraries} SASL_PATH={self._plugins}",
            "myhostname": "postfix.example",
            "mydestination": "",
            "inet_interfaces": "127.0.0.1",
            "inet_protocols": "ipv4",
            "mynetworks": "127.0.0.0/8",
            "alias_maps": "",
            "alias_database": "",
            "local_recipient_maps": "",
            "smtpd_peername_lookup": "no",
            "disable_dns_lookups": "yes",
            "smtp_tls_security_level": "none",
            "smtpd_tls_security_level": "none",
            **(settings or {}),
        }

    @property
    def _libraries(self) -> str:
        return self.peer.environment()["LD_LIBRARY_PATH"]

    @property
    def _plugins(self) -> str:
        return ":".join(map(str, self.peer.tree.glob("usr/lib/*-linux-*/sasl2")))

    def start(self) -> None:
        """Write the configuration and start master; returns when it greets."""
        conf = self.directory / "conf"
        for name in ("conf", "queue", "data"):
            (self.directory / name).mkdir(exist_ok=True)
        shutil.copy(self.peer.tree / "usr/share/postfix/dynamicmaps.cf", conf)
        shutil.copy(self.peer.tree / "etc/postfix/postfix-files", conf)
        (conf / "main.cf").write_text("".join(f"{name} = {value}\n" for name, value in self.settings.items()))
        (conf / "master.cf").write_text(f"127.0.0.1:{self.port} inet n - n - - smtpd\n" + SERVICES)
        shutil.chown(self.directory / "data", OWNER)
        self.run("postfix", "start")
        greeting(self.port)

    def stop(self) -> None:
        """Stop master and remove everything."""
        self.run("postfix", "stop", check=False)
        shutil.rmtree(self.directory, ignore_errors=True)

    def run(
        self, program: str, *arguments: str, input: bytes | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[bytes]:
        """One of Postfix's commands on this instance."""
        environment = {**self.peer.environment(), "MAIL_CONFIG": str(self.directory / "conf"), "TZ": "UTC"}
        environment["PATH"] = f"{self.peer.tree}/usr/sbin:{environment['PATH']}"
        done = subprocess.run(
            [self.peer.path(program), *arguments],
            env=environment,
            input=input,
            stdin=None if input is not None else subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"{program} {arguments}: {done.stderr.decode()}\n{self.log()}")
        return done

    def log(self) -> str:
        path = self.directory / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_for(self, text: str, count: int = 1, seconds: float = 30.0) -> None:
        """Until `text` stands in the log `count` times."""
        until = time.monotonic() + seconds
        while self.log().count(text) < count:
            assert time.monotonic() < until, f"{text!r} is not in the log:\n{self.log()}"
            time.sleep(0.05)


def with_login(instance: Postfix, certificate: Certificate, user: str, password: str) -> None:
    """STARTTLS, and AUTH behind it, for `user`: Cyrus SASL with a sasldb of its own. Before `start`."""
    sasl = instance.directory / "conf" / "sasl"  # where Debian's Postfix looks, whatever cyrus_sasl_config_path says
    sasl.mkdir(parents=True)
    database = sasl / "sasldb2"
    instance.run("saslpasswd2", "-p", "-c", "-f", str(database), "-u", "postfix.example", user, input=password.encode())
    shutil.chown(database, OWNER)
    (sasl / "smtpd.conf").write_text(
        f"pwcheck_method: auxprop\nauxprop_plugin: sasldb\nsasldb_path: {database}\nmech_list: PLAIN LOGIN CRAM-MD5\n"
    )
    keys = instance.directory / "keys"
    keys.mkdir()
    for path in (certificate.certificate, certificate.key):
        shutil.copy(path, keys)
    instance.settings.update(
        smtpd_tls_security_level="may",
        smtpd_tls_cert_file=str(keys / certificate.certificate.name),
        smtpd_tls_key_file=str(keys / certificate.key.name),
        smtpd_tls_auth_only="yes",
        smtpd_sasl_auth_enable="yes",
        smtpd_sasl_type="cyrus",
        smtpd_sasl_path="smtpd",
        smtpd_sasl_local_domain="postfix.example",
        smtpd_relay_restrictions="permit_sasl_authenticated, reject",
        mynetworks="",
    )


@contextlib.contextmanager
def postfix(settings: dict[str, str] | None = None) -> Iterator[Postfix]:
    """A private Postfix for the length of a test."""
    instance = Postfix(settings)
    try:
        instance.start()
        yield instance
    finally:
        instance.stop()


def closed_port() -> int:
    """A port that refuses connections."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
