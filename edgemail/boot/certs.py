"""The box's own certificate: self-signed, made at the first start, so that STARTTLS is there before anyone set it up.

Owns the two files under the queue directory and how long a certificate lasts. The daemon never loads the cryptography
package, which costs 10 MiB: the certificate is made by this module in a child process,
`python -m edgemail.boot.certs --directory DIR --name HOST [--address IP ...]`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import logging
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from edgemail.clock import RELEASE_DATE, Clock
from edgemail.dates import midnight
from edgemail.errors import SystemRefused
from edgemail.settings import Configuration, Settings

logger = logging.getLogger("edgemail.certs")

DIRECTORY: Final = "tls"  # under queue_directory
CERT: Final = "cert.pem"
KEY: Final = "key.pem"
DAY: Final = 86_400.0
LIFETIME_DAYS: Final = 3650  # limit: days that a self-signed certificate is valid
RENEW_DAYS: Final = 30  # limit: days left at which a self-signed certificate is made anew
CHILD_SECONDS: Final = 120.0  # limit: for the child that makes a certificate, on a slow card
MAX_PEM: Final = 1_048_576  # limit: bytes of a certificate file that are looked at


def ensure(configuration: Configuration, clock: Clock) -> Configuration:
    """Give every listener that speaks TLS and names no certificate the box's own, made now if need be.

    Returns the configuration with the files' names filled in. Raises EdgemailError when none can be made.
    """
    settings = [configuration.settings, *(listener.settings for listener in configuration.listeners)]
    if not any(_wanting(each) for each in settings):
        return configuration
    directory = Path(configuration.settings.queue_directory) / DIRECTORY
    literals = {listener.address for listener in configuration.listeners}
    if not _usable(directory, clock):
        make(directory, configuration.settings.myhostname, sorted(literals))
        logger.info("certificate=%s made, self-signed, for %s", directory / CERT, configuration.settings.myhostname)

    def with_own(each: Settings) -> Settings:
        if not _wanting(each):
            return each
        return dataclasses.replace(
            each, smtpd_tls_cert_file=str(directory / CERT), smtpd_tls_key_file=str(directory / KEY)
        )

    listeners = tuple(dataclasses.replace(each, settings=with_own(each.settings)) for each in configuration.listeners)
    return dataclasses.replace(configuration, settings=with_own(configuration.settings), listeners=listeners)


def _wanting(settings: Settings) -> bool:
    return settings.smtpd_tls_security_level != "none" and not settings.smtpd_tls_cert_file


def _usable(directory: Path, clock: Clock) -> bool:
    """Whether both files are there, fit each other, and last. Without a trusted clock nothing counts as expired."""
    cert, key = directory / CERT, directory / KEY
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=lambda: b"")
    except OSError:  # SSLError is one
        return False
    left = days_left(cert, clock.wall())
    return not clock.trusted() or left is None or left > RENEW_DAYS


def make(directory: Path, name: str, addresses: Iterable[str] = ()) -> None:
    """Make key and certificate in a child process. Raises EdgemailError with what the child said."""
    command = [sys.executable, "-P", "-m", "edgemail.boot.certs", "--directory", str(directory), "--name", name]
    for address in addresses:
        with contextlib.suppress(ValueError):
            command += ["--address", str(ipaddress.ip_address(address))]
    try:
        child = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=CHILD_SECONDS, check=False, text=True
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SystemRefused(f"no certificate could be made: {error}") from error
    if child.returncode != 0:
        said = child.stderr.strip().splitlines() or [f"exit code {child.returncode}"]
        raise SystemRefused(f"no certificate could be made in {directory}: {said[-1]}")


# ---- how long a certificate lasts


def days_left(path: str | Path, now: float | None = None) -> int | None:
    """Whole days until the first certificate in a PEM file ends, negative afterwards; None when there is none to read.

    `now`: wall clock seconds, by default the system's.
    """
    try:
        with Path(path).open("rb") as file:
            pem = file.read(MAX_PEM).decode("ascii", "replace")
        begin = pem.index(ssl.PEM_HEADER)
        end = pem.index(ssl.PEM_FOOTER, begin) + len(ssl.PEM_FOOTER)
        ends = _not_after(ssl.PEM_cert_to_DER_cert(pem[begin:end] + "\n"))
    except (OSError, ValueError, IndexError):
        return None
    return int((ends - (time.time() if now is None else now)) // DAY)


def _not_after(der: bytes) -> float:
    """The notAfter of a certificate, RFC 5280 4.1. Raises ValueError and IndexError for what is none."""
    tbs = next(_elements(next(_elements(der))[1]))[1]
    sequences = [body for tag, body in _elements(tbs) if tag == 0x30]
    validity = sequences[2]  # after signature algorithm and issuer
    tag, text = list(_elements(validity))[1]
    digits = text.decode("ascii")
    if tag == 0x17:  # UTCTime, RFC 5280 4.1.2.5.1
        digits = ("20" if int(digits[:2]) < 50 else "19") + digits
    if len(digits) != 15 or digits[14] != "Z":
        raise ValueError(f"no time of a certificate: {digits}")
    date = int(digits[:4]), int(digits[4:6]), int(digits[6:8])
    return midnight(*date) + 3600 * int(digits[8:10]) + 60 * int(digits[10:12]) + int(digits[12:14])


def _elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    """The DER elements in `der`, one level deep. Raises ValueError and IndexError where it is cut short."""
    at = 0
    while at < len(der):
        tag, length = der[at], der[at + 1]
        at += 2
        if length & 0x80:
            count = length & 0x7F
            length = int.from_bytes(der[at : at + count], "big")
            at += count
        if at + length > len(der):
            raise ValueError("cut short")
        yield tag, der[at : at + length]
        at += length


# ---- the child


def write(directory: Path, name: str, addresses: Iterable[str]) -> None:
    """Make a P-256 key and its certificate and put them in place. Only in the child: imports cryptography."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    # Valid from before the release, whatever the clock says: a box without a clock starts in 1970.
    release = datetime.datetime.fromtimestamp(RELEASE_DATE, datetime.UTC)
    today = max(release, datetime.datetime.now(datetime.UTC).replace(microsecond=0))
    names: list[x509.GeneralName] = [x509.DNSName(each) for each in dict.fromkeys((name, "localhost"))]
    names += [x509.IPAddress(ipaddress.ip_address(each)) for each in addresses]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])  # RFC 5280: 64 characters
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(release - datetime.timedelta(days=1))
        .not_valid_after(today + datetime.timedelta(days=LIFETIME_DAYS))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        # Its own authority, so that a client may be told to trust this file; X509_STRICT wants the usage said.
        .add_extension(x509.KeyUsage(True, False, False, False, False, True, False, False, False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    directory.mkdir(parents=True, exist_ok=True, mode=0o755)
    # The certificate goes first and comes last: where a power cut leaves one file alone, both are made again.
    (directory / CERT).unlink(missing_ok=True)
    _sync(directory)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _replace(directory / KEY, private, 0o600)
    _replace(directory / CERT, certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _replace(path: Path, data: bytes, mode: int) -> None:
    """Put a file in place, whole or not at all, on the medium when this returns."""
    beside = path.with_name(path.name + ".new")
    beside.unlink(missing_ok=True)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(data)
        file.flush()
        os.fsync(descriptor)
    beside.replace(path)
    _sync(path.parent)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def main(arguments: list[str]) -> int:
    """The child: `--directory DIR --name HOST [--address IP ...]`."""
    options: dict[str, list[str]] = {}
    for flag, value in zip(arguments[::2], arguments[1::2], strict=True):
        options.setdefault(flag.removeprefix("--"), []).append(value)
    try:
        write(Path(options["directory"][0]), options["name"][0], options.get("address", []))
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
