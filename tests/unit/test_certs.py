"""The certificate of the first start: made once, in a child, whole or not at all. How long a certificate lasts."""

from __future__ import annotations

import dataclasses
import datetime
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edgemail.boot import certs
from edgemail.clock import RELEASE_DATE, ManualClock
from edgemail.errors import EdgemailError
from edgemail.settings import Configuration, Listener, Settings

DAY = 86_400


def configuration(directory: Path, **values: object) -> Configuration:
    settings = Settings(myhostname="gw7.example.com", queue_directory=str(directory), **values)  # type: ignore[arg-type]
    listener = Listener("lan", "127.0.0.1", 25, "lan", settings)
    plain = Listener("old", "eth0", 25, "legacy", dataclasses.replace(settings, smtpd_tls_security_level="none"))
    return Configuration(str(directory / "edgemail.toml"), settings, (listener, plain))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Configuration]:
    """A directory with the certificate, and the configuration that names it."""
    directory = tmp_path_factory.mktemp("spool")
    return directory, certs.ensure(configuration(directory), ManualClock())


def test_every_listener_with_tls_gets_it(made: tuple[Path, Configuration]) -> None:
    directory, filled = made
    assert filled.settings.smtpd_tls_cert_file == str(directory / "tls/cert.pem")
    lan, old = filled.listeners
    assert lan.settings.smtpd_tls_key_file == str(directory / "tls/key.pem")
    assert old.settings.smtpd_tls_cert_file == ""
    assert (directory / "tls/cert.pem").stat().st_mode & 0o777 == 0o644
    assert (directory / "tls/key.pem").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in (directory / "tls").iterdir()) == ["cert.pem", "key.pem"]


@pytest.mark.parametrize("name", ["gw7.example.com", "localhost", "127.0.0.1"])
def test_a_client_that_trusts_it_connects_by_each_name(made: tuple[Path, Configuration], name: str) -> None:
    settings = made[1].settings
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(settings.smtpd_tls_cert_file, settings.smtpd_tls_key_file)
    client = ssl.create_default_context(cafile=settings.smtpd_tls_cert_file)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    near, far = socket.socketpair()

    def serve() -> None:
        with far, server.wrap_socket(far, server_side=True) as stream:
            stream.recv(1)

    thread = threading.Thread(target=serve)
    thread.start()
    with near, client.wrap_socket(near, server_hostname=name) as stream:
        assert stream.version() == "TLSv1.3"
        stream.send(b"x")
    thread.join()


def test_what_is_there_is_kept(made: tuple[Path, Configuration], monkeypatch: pytest.MonkeyPatch) -> None:
    directory, filled = made
    monkeypatch.setattr(certs, "make", lambda *_: pytest.fail("made again"))
    clock = ManualClock()
    assert certs.ensure(configuration(directory), clock) == filled
    clock.trust = False
    clock.advance(20 * 365 * DAY)
    assert certs.ensure(configuration(directory), clock) == filled, "no date counts without a trusted clock"


@pytest.mark.parametrize("damage", ["nothing but time", "no key", "no certificate", "another key", "torn"])
def test_what_cannot_be_used_is_made_anew(
    made: tuple[Path, Configuration], tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tls").mkdir()
    for name in ("cert.pem", "key.pem"):
        (tmp_path / "tls" / name).write_bytes((made[0] / "tls" / name).read_bytes())
    clock = ManualClock()
    if damage == "nothing but time":
        clock.advance((certs.LIFETIME_DAYS - 20) * DAY)
    elif damage == "no key":
        (tmp_path / "tls/key.pem").unlink()
    elif damage == "no certificate":
        (tmp_path / "tls/cert.pem").unlink()
    elif damage == "another key":
        (tmp_path / "tls/key.pem").write_text((made[0] / "tls/cert.pem").read_text())
    else:
        (tmp_path / "tls/cert.pem").write_text((made[0] / "tls/cert.pem").read_text()[:300])
    asked: list[tuple[Path, str, list[str]]] = []
    monkeypatch.setattr(certs, "make", lambda *arguments: asked.append(arguments))
    certs.ensure(configuration(tmp_path), clock)
    assert [each[:2] for each in asked] == [(tmp_path / "tls", "gw7.example.com")]


def test_a_configured_certificate_is_left_alone(tmp_path: Path) -> None:
    own = configuration(tmp_path, smtpd_tls_cert_file="/x.pem", smtpd_tls_key_file="/x.pem")
    assert certs.ensure(own, ManualClock()) is own
    plain = configuration(tmp_path, smtpd_tls_security_level="none")
    assert certs.ensure(plain, ManualClock()) is plain
    assert list(tmp_path.iterdir()) == []


def test_why_none_could_be_made(tmp_path: Path) -> None:
    (tmp_path / "tls").touch()
    with pytest.raises(EdgemailError, match=r"no certificate could be made in .*: .*tls"):
        certs.make(tmp_path / "tls", "gw7.example.com")


def test_days_left(made: tuple[Path, Configuration], tmp_path: Path) -> None:
    cert = made[0] / "tls/cert.pem"
    openssl = ssl._ssl._test_decode_cert(str(cert))["notAfter"]  # type: ignore[attr-defined]
    ends = ssl.cert_time_to_seconds(openssl)
    assert certs.days_left(cert, ends - 1) == 0
    assert certs.days_left(cert, ends - DAY) == 1
    assert certs.days_left(cert, ends + 1) == -1
    assert certs.days_left(cert, RELEASE_DATE) in (certs.LIFETIME_DAYS, (int(ends) - RELEASE_DATE) // DAY)
    assert certs.days_left(made[0] / "tls/key.pem") is None
    assert certs.days_left(tmp_path / "none") is None
    for length in range(0, len(cert.read_text()), 37):
        (tmp_path / "cut.pem").write_text(cert.read_text()[:length] + "\n" + ssl.PEM_FOOTER)
        certs.days_left(tmp_path / "cut.pem")


@pytest.mark.parametrize(("year", "century"), [(2030, "UTCTime"), (2060, "GeneralizedTime")])
def test_days_left_in_both_forms_of_a_time(tmp_path: Path, year: int, century: str) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    ends = datetime.datetime(year, 5, 6, 7, 8, 9, tzinfo=datetime.UTC)
    name = x509.Name([])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, ends - datetime.timedelta(days=1), ends)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    (tmp_path / "x.pem").write_bytes(b"text before it\n" + made)
    assert certs.days_left(tmp_path / "x.pem", ends.timestamp() - 3 * DAY) == 3


def test_a_clock_in_1970_still_makes_a_certificate_for_today(tmp_path: Path) -> None:
    program = (
        "import datetime, sys, pathlib\n"
        "class Past(datetime.datetime):\n"
        "    @classmethod\n"
        "    def now(cls, tz=None): return cls(1970, 1, 1, tzinfo=tz)\n"
        "from edgemail.boot import certs\n"
        "datetime.datetime = Past\n"
        "certs.write(pathlib.Path(sys.argv[1]), 'gw7.example.com', [])\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
    assert certs.days_left(tmp_path / "cert.pem", RELEASE_DATE) == certs.LIFETIME_DAYS


def test_the_daemon_does_not_load_cryptography() -> None:
    program = "import sys; from edgemail.boot import certs; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
