"""What is allowed in a configuration and yet seldom meant. Owns the warnings of `edgemail check`; refuses nothing."""

from __future__ import annotations

import ipaddress
import os
import pwd
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from edgemail.boot.checks import MAPS
from edgemail.boot.expand import LOCAL_DOMAIN, Mistake
from edgemail.envelope import Address
from edgemail.errors import TableError
from edgemail.relay.send.route import Router, class_conflicts, parse_row
from edgemail.settings import Configuration, Listener, Settings
from edgemail.tables import Tables

FILES: Final = ("smtpd_tls_cert_file", "smtpd_tls_key_file", "smtpd_sasl_password_file", "smtp_tls_CAfile")

MANY: Final = 1 << 62  # a limit of 0 is none

Advice = Iterator[tuple[str, Mistake]]


def of_configuration(configuration: Configuration) -> Advice:
    """Warnings for the whole, each with its parameter or its place in the file."""
    settings = configuration.settings
    yield from _of_names(settings, configuration.given)
    yield from _of_trust(settings)
    yield from _of_next_hop(settings)
    yield from _of_secrets(configuration)
    yield from _of_links(configuration)
    for name, own in configuration.transports.items():
        if own.smtp_sasl_auth_enable and own.smtp_tls_security_level == "none":
            yield f"transport.{name}", Mistake("logs in without TLS, which smtp_sasl_security_options forbids")
    for listener in configuration.listeners:
        yield from _of_listener(listener)
        yield from _of_owner(listener.settings)
    yield from _of_owner(settings)
    health = configuration.health
    if health and not health.token_file and not _loopback(health.address) and not health.networks:
        yield "health.networks", Mistake("is empty: nobody may read the status page")


def _of_names(settings: Settings, given: Mapping[str, int]) -> Advice:
    if not settings.admin_address:
        hint = 'admin_address = "you@example.com"'
        yield "admin_address", Mistake("is not set: mail for postmaster, root and abuse of this box is held", hint)
    if "myhostname" not in given and settings.myhostname.endswith("." + LOCAL_DOMAIN):
        hint = "set myhostname to the name that the box has in DNS"
        yield "myhostname", Mistake(f"the system has no full name; '{settings.myhostname}' is made up", hint)
    if not settings.smtpd_banner.lower().startswith(settings.myhostname.lower()):
        # RFC 5321 4.3.1: the greeting begins with the server's name
        yield "smtpd_banner", Mistake("does not begin with the host name", 'begin it with "$myhostname ESMTP"')
    for sentence in class_conflicts(settings):
        yield "relay_domains", Mistake(sentence)


def _of_trust(settings: Settings) -> Advice:
    for entry in settings.mynetworks:
        try:
            network = ipaddress.ip_network(entry.replace("[", "").replace("]", ""))
        except ValueError:
            continue
        if network.prefixlen < 8 or (network.prefixlen == 8 and network.is_global):
            hint = "list the networks of your own site"
            yield "mynetworks", Mistake(f"{entry} trusts strangers: this may be an open relay", hint)


def _of_next_hop(settings: Settings) -> Advice:
    own = {settings.myhostname.lower(), f"[{settings.myhostname.lower()}]"}
    if any(hop.lower() in own for hop in settings.relayhost):
        yield "relayhost", Mistake("is this box: mail would come back")
    for value in _rows(settings):
        try:
            parse_row(value, settings.smtp_tcp_port)
        except ValueError as error:
            yield "transport_maps", Mistake(str(error), "mail for it is held until the row is right")
    if settings.smtp_sasl_password_maps and not settings.smtp_sasl_auth_enable:
        yield "smtp_sasl_password_maps", Mistake("is not used", "smtp_sasl_auth_enable = true")
    if settings.smtp_sasl_auth_enable and settings.smtp_tls_security_level in ("none", "may"):
        hint = 'smtp_tls_security_level = "encrypt", or "secure" to be sure who it is'
        yield "smtp_tls_security_level", Mistake("does not demand TLS, and the login waits for it", hint)


def _rows(settings: Settings) -> tuple[str, ...]:
    """The values in the files of transport_maps; those of patterns may still have something to be filled in."""
    try:
        values = Tables.open(settings.transport_maps).values()
    except TableError:
        return ()
    return tuple(value for value in values if "$" not in value)


def _of_links(configuration: Configuration) -> Advice:
    """What would wait for ever, and what would go back to where it came from."""
    settings, kept = configuration.settings, {link.name: link for link in configuration.links}
    for name, own in {"smtp_links": settings, **configuration.transports}.items():
        limits = [kept[link].size_limit for link in own.smtp_links if link in kept]
        largest = min((listener.settings.message_size_limit or MANY) for listener in configuration.listeners)
        if limits and all(limits) and max(limits) < largest:
            place = name if own is settings else f"transport.{name}"
            hint = "lower message_size_limit, or name a link without size_limit"
            yield place, Mistake(f"messages of more than {max(limits)} bytes are taken, and no link carries them", hint)
    try:
        router = Router(configuration)
    except (TableError, ValueError):
        return  # said elsewhere
    named = [(number, name) for number, link in enumerate(configuration.links, 1) for name in link.atrn_domains]
    for number, domain in named:
        route = router.route_address(Address("postmaster", domain))
        if route.configured and route.hops == settings.relayhost:
            hint = f"list it in relay_domains, and say in transport_maps where mail for {domain} goes"
            yield (
                f"link[{number}].atrn_domains",
                Mistake(f"mail for {domain} would go to relayhost, not to its readers", hint),
            )


def _of_secrets(configuration: Configuration) -> Advice:
    inline = [spec for spec in configuration.settings.smtp_sasl_password_maps if _has_secret(spec)]
    try:
        exposed = bool(inline) and bool(Path(configuration.path).stat().st_mode & 0o004)
    except OSError:
        return
    if exposed:
        hint = 'use "texthash:/path" with a file of mode 640'
        yield "smtp_sasl_password_maps", Mistake("holds passwords in a file that every user can read", hint)


def _has_secret(spec: object) -> bool:
    return not isinstance(spec, str) or spec.startswith(("static:", "inline:"))


def _of_owner(settings: Settings) -> Advice:
    """As root: what the user that the relay becomes could not read again."""
    try:
        user = pwd.getpwnam(settings.mail_owner)
    except KeyError:
        return
    if os.geteuid() != 0 or user.pw_uid == 0:
        return
    groups = os.getgrouplist(user.pw_name, user.pw_gid)
    for name in FILES:
        path = getattr(settings, name)
        if path and not _may_read(Path(path), user.pw_uid, groups):
            hint = f"chgrp {user.pw_name} {path} && chmod 640 {path}"
            yield name, Mistake(f"{path} cannot be read by mail_owner {user.pw_name}", hint)
    for name in MAPS:
        for spec in getattr(settings, name):
            kind, _, path = spec.partition(":") if isinstance(spec, str) else ("inline", "", "")
            if kind not in ("static", "inline") and not _may_read(Path(path), user.pw_uid, groups):
                hint = f"chgrp {user.pw_name} {path} && chmod 640 {path}"
                yield name, Mistake(f"{path} cannot be read by mail_owner {user.pw_name}", hint)


def _may_read(path: Path, uid: int, groups: list[int]) -> bool:
    """Whether the mode bits let a user read a file; True where nothing can be said."""
    for step, bit in (*((parent, 0o1) for parent in path.parents), (path, 0o4)):
        try:
            status = step.stat()
        except OSError:
            return True
        shift = 6 if status.st_uid == uid else 3 if status.st_gid in groups else 0
        if not status.st_mode >> shift & bit:
            return False
    return True


def _of_listener(listener: Listener) -> Advice:
    settings = listener.settings
    place = listener.section or "smtpd_tls_security_level"
    if not settings.smtpd_sasl_auth_enable:
        return
    plain = settings.smtpd_tls_security_level == "none"
    if plain and settings.smtpd_tls_auth_only:
        yield place, Mistake("offers no login: there is no TLS, and smtpd_tls_auth_only wants it")
    elif not settings.smtpd_tls_auth_only and not _loopback(listener.address):
        yield place, Mistake("takes passwords in clear from the network", "leave smtpd_tls_auth_only true")


def _loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "lo"
