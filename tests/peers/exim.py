"""Exim, unpacked: a private server with STARTTLS and AUTH that delivers everything into one Maildir.

It insists on a user of its own; libnss-wrapper shows it one, so that none has to be made on the machine.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.peers import Peer, need
from tests.peers.certificate import Certificate
from tests.peers.ports import free_port, greeting

USER = "Debian-exim"
UID = 65533  # nobody's

CONFIGURATION = """\
primary_hostname = exim.example
exim_user = {uid}
exim_group = {uid}
spool_directory = {directory}/spool
log_file_path = {directory}/log/%slog
pid_file_path = {directory}/exim.pid
daemon_smtp_ports = {port}
local_interfaces = 127.0.0.1
rfc1413_query_timeout = 0s
host_lookup =
keep_environment = LD_PRELOAD : LD_LIBRARY_PATH : ^NSS_WRAPPER
deliver_drop_privilege = true
tls_advertise_hosts = *
tls_certificate = {certificate}
tls_privatekey = {key}
auth_advertise_hosts = ${{if eq{{$tls_in_cipher}}{{}}{{}}{{*}}}}
acl_smtp_rcpt = check
chunking_advertise_hosts = *
dsn_advertise_hosts = *
smtputf8_advertise_hosts = *
message_size_limit = 50M
smtp_accept_queue_per_connection = 0
qualify_domain = exim.example

begin acl
check:
  accept authenticated = *
  deny message = relay not permitted

begin routers
all:
  driver = accept
  transport = maildir

begin transports
maildir:
  driver = appendfile
  maildir_format
  directory = {directory}/maildir
  create_directory
  envelope_to_add
  return_path_add
  user = {uid}
  group = {uid}

begin retry
* * F,1h,1m

begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  server_prompts = :
  server_condition = ${{if and{{{{eq{{$auth2}}{{{user}}}}}{{eq{{$auth3}}{{{password}}}}}}}}}
  server_set_id = $auth2
login:
  driver = plaintext
  public_name = LOGIN
  server_prompts = Username:: : Password::
  server_condition = ${{if and{{{{eq{{$auth1}}{{{user}}}}}{{eq{{$auth2}}{{{password}}}}}}}}}
  server_set_id = $auth1
cram:
  driver = cram_md5
  public_name = CRAM-MD5
  server_secret = ${{if eq{{$auth1}}{{{user}}}{{{password}}}fail}}
  server_set_id = $auth1
"""


class Exim:
    """A private Exim; take it from `exim()`."""

    def __init__(self, certificate: Certificate, user: str, password: str) -> None:
        self.peer: Peer = need("exim", root=True)
        self.directory = Path(tempfile.mkdtemp(prefix="exim-"))
        self.port = free_port()
        self.user, self.password = user, password
        for path in (certificate.certificate, certificate.key):
            shutil.copy(path, self.directory)
        self._certificate = certificate
        self._process: subprocess.Popen[bytes] | None = None

    def environment(self) -> dict[str, str]:
        """With the user that Exim looks for."""
        passwd, group = self.directory / "passwd", self.directory / "group"
        passwd.write_text(Path("/etc/passwd").read_text() + f"{USER}:x:{UID}:{UID}::/nonexistent:/usr/sbin/nologin\n")
        group.write_text(Path("/etc/group").read_text() + f"{USER}:x:{UID}:\n")
        (wrapper,) = self.peer.tree.glob("usr/lib/*-linux-*/libnss_wrapper.so")
        return {
            **self.peer.environment(),
            "LD_PRELOAD": str(wrapper),
            "NSS_WRAPPER_PASSWD": str(passwd),
            "NSS_WRAPPER_GROUP": str(group),
        }

    def start(self) -> None:
        """Start the daemon; returns when it greets."""
        environment = self.environment()
        path = self.directory / "exim.conf"
        path.write_text(
            CONFIGURATION.format(
                uid=UID,
                directory=self.directory,
                port=self.port,
                certificate=self.directory / self._certificate.certificate.name,
                key=self.directory / self._certificate.key.name,
                user=self.user,
                password=self.password,
            )
        )
        for name in ("spool", "log", "maildir"):
            (self.directory / name).mkdir()
        for path_ in (self.directory, *self.directory.rglob("*")):
            os.chown(path_, UID, UID)
        path.chmod(0o644)
        os.chown(path, 0, 0)
        command = [self.peer.path("exim4"), "-C", str(path), "-bdf", "-q1m"]
        output = (self.directory / "output").open("wb")
        with output:
            self._process = subprocess.Popen(
                command, env=environment, stdout=output, stderr=output, start_new_session=True
            )
        try:
            greeting(self.port)
        except AssertionError:
            raise AssertionError((self.directory / "output").read_text() + self.log()) from None

    def stop(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)  # its queue runners and deliveries too
            self._process.wait(10)
        shutil.rmtree(self.directory, ignore_errors=True)

    def log(self) -> str:
        return "".join(path.read_text() for path in sorted((self.directory / "log").glob("*log")))

    def messages(self, count: int = 1, seconds: float = 30.0) -> list[bytes]:
        """The delivered messages, once there are `count`."""
        until = time.monotonic() + seconds
        while len(found := sorted((self.directory / "maildir" / "new").glob("*"))) < count:
            assert time.monotonic() < until, f"{len(found)} of {count} messages:\n{self.log()}"
            time.sleep(0.05)
        return [path.read_bytes() for path in found]


@contextlib.contextmanager
def exim(certificate: Certificate, user: str = "gateway", password: str = "secret") -> Iterator[Exim]:
    """A private Exim for the length of a test."""
    instance = Exim(certificate, user, password)
    try:
        instance.start()
        yield instance
    finally:
        instance.stop()
