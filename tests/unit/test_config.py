"""The configuration file: what is read, what is refused and with which words, what is printed."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import socket
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemail.boot import config, reading, show
from edgemail.boot.expand import FILE_NAMES, Mistake, split
from edgemail.boot.lines import lines
from edgemail.boot.values import octets, seconds
from edgemail.errors import ConfigurationError, Problem
from edgemail.settings import PARAMETERS, Configuration, Health, Settings

SMALLEST = """\
myhostname      = "gw7.example.com"
mynetworks      = ["127.0.0.0/8", "::1/128", "192.168.7.0/24"]
relayhost       = "[smtp.isp.example]:587"        # "" = by MX
queue_directory = "{directory}/spool"

[[listener]]
address = "127.0.0.1"                              # an address, "*" for all, or an interface name
port    = 2525

[health]
address = "127.0.0.1"
port    = 8025
"""
HEAD = 'myhostname = "gw7.example.com"\nqueue_directory = "spool"\nadmin_address = "admin@example.com"\n'


def load(directory: Path, text: str, *, files: bool = True) -> Configuration:
    path = directory / "edgemail.toml"
    path.write_text(text)
    return config.load(path, files=files)


def problems(directory: Path, text: str) -> list[Problem]:
    with pytest.raises(ConfigurationError) as caught:
        load(directory, text)
    return list(caught.value.problems)


def problem(directory: Path, text: str) -> Problem:
    """The only problem of a text after HEAD; its line counts from the first line after HEAD."""
    found = problems(directory, HEAD + text)
    assert len(found) == 1, reading.report("x", tuple(found))
    return dataclasses.replace(found[0], line=found[0].line - HEAD.count("\n"))


# ---- what is read


def test_the_smallest_useful_file(tmp_path: Path) -> None:
    read = load(tmp_path, SMALLEST.format(directory=tmp_path))
    assert read.settings.myhostname == "gw7.example.com"
    assert read.settings.mydomain == "example.com"
    assert read.settings.myorigin == "gw7.example.com"
    assert read.settings.mydestination == ("gw7.example.com", "localhost.example.com", "localhost")
    assert read.settings.relayhost == ("[smtp.isp.example]:587",)
    assert read.settings.smtpd_banner == "gw7.example.com ESMTP edgemail"
    assert read.settings.smtpd_client_event_limit_exceptions == ("127.0.0.0/8", "::1/128", "192.168.7.0/24")
    assert [(one.name, one.address, one.port, one.profile) for one in read.listeners] == [
        ("127.0.0.1:2525", "127.0.0.1", 2525, "lan")
    ]
    assert read.health == Health("127.0.0.1", 8025)
    assert read.given["relayhost"] == 3
    assert read.given["listener[1].port"] == 8


def test_an_empty_file_trusts_and_serves_loopback_alone(tmp_path: Path) -> None:
    read = load(tmp_path, "", files=False)
    assert read.settings.mynetworks == ("127.0.0.0/8", "::1/128")
    assert read.settings.relay_domains == ()
    assert [(one.address, one.port, one.profile) for one in read.listeners] == [
        ("127.0.0.1", 25, "lan"),
        ("::1", 25, "lan"),
    ]
    assert read.health is None


@pytest.mark.parametrize(
    "value",
    [
        '"$mydomain, example.org, oreilly.com"',
        '"$mydomain example.org oreilly.com"',
        '"""\n  $mydomain\n  example.org,\n  oreilly.com\n"""',
        '["$mydomain", "example.org", "oreilly.com"]',
        '["${mydomain}", "example.org,oreilly.com"]',
        '["$(mydomain)",\n  # whose?\n  "example.org", "oreilly.com",\n]',
    ],
)
def test_lists_are_read_in_every_spelling(tmp_path: Path, value: str) -> None:
    read = load(tmp_path, f"{HEAD}mydestination = {value}\nsmtpd_timeout = 9\n")
    assert read.settings.mydestination == ("example.com", "example.org", "oreilly.com")
    assert read.given["smtpd_timeout"] == (HEAD + value).count("\n") + 2


def test_names_expand_in_any_order(tmp_path: Path) -> None:
    read = load(
        tmp_path, 'myorigin = "$mydomain"\nmydomain = "example.com"\nmyhostname = "gw.$mydomain"\n', files=False
    )
    assert (read.settings.myorigin, read.settings.myhostname) == ("example.com", "gw.example.com")


def test_names_of_numbers_lists_and_dollars(tmp_path: Path) -> None:
    read = load(
        tmp_path,
        HEAD
        + 'smtpd_banner = "$myhostname ESMTP $$5 $message_size_limit $maximal_queue_lifetime"\n'
        + 'maximal_queue_lifetime = 3\nbounce_queue_lifetime = "$maximal_queue_lifetime"\n'
        + 'smtpd_hard_error_limit = 7\nsmtpd_soft_error_limit = "$smtpd_hard_error_limit"\n'
        + 'mynetworks = ["10.0.0.0/8"]\nproxy_interfaces = ["192.0.2.1", "$mynetworks"]\n'
        + '2bounce_notice_recipient = "$error_notice_recipient"\nerror_notice_recipient = "x@$mydomain"\n'
        + 'bounce_notice_recipient = "$2bounce_notice_recipient"\n',
    ).settings
    assert read.smtpd_banner == "gw7.example.com ESMTP $5 10240000 3d"
    assert read.bounce_queue_lifetime == 3 * 86_400
    assert read.smtpd_soft_error_limit == 7
    assert read.proxy_interfaces == ("192.0.2.1", "10.0.0.0/8")
    assert read.double_bounce_notice_recipient == read.bounce_notice_recipient == "x@example.com"


def test_a_system_without_a_full_name_gets_one_and_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "raspberry_pi")
    read = load(tmp_path, "", files=False)
    assert (read.settings.myhostname, read.settings.mydomain) == ("raspberry-pi.localdomain", "localdomain")
    warnings = config.check(load(tmp_path, f'queue_directory = "{tmp_path}"'))[1]
    assert "myhostname" in {each.key for each in warnings}
    read = load(tmp_path, 'mydomain = "example.com"', files=False)
    assert read.settings.myhostname == "raspberry-pi.example.com"
    monkeypatch.setattr(socket, "gethostname", lambda: "pi.site.example")
    assert load(tmp_path, "", files=False).settings.myhostname == "pi.site.example"


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "transport").write_text("example.org smtp:[192.0.2.1]\n")
    (tmp_path / "domains").write_text("example.net\n")
    read = load(tmp_path, HEAD + 'transport_maps = ["texthash:transport"]\nrelay_domains = "./domains"\n')
    assert read.settings.transport_maps == (f"texthash:{tmp_path}/transport",)
    assert read.settings.relay_domains == (f"{tmp_path}/domains",)
    assert read.settings.queue_directory == f"{tmp_path}/spool"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('["inline:{a=b, {c = d e}}", { "x" = "smtp:$y" }]', ("inline:{a=b, {c = d e}}", (("x", "smtp:$y"),))),
        ('{ "x" = "y" }', ((("x", "y"),),)),
        ('"static:a, static:b"', ("static:a", "static:b")),
        ("[]", ()),
        ('""', ()),
    ],
)
def test_tables(tmp_path: Path, text: str, expected: object) -> None:
    assert load(tmp_path, f"{HEAD}smtp_sasl_password_maps = {text}\n").settings.smtp_sasl_password_maps == expected


def test_a_table_of_a_parameter_may_be_a_section(tmp_path: Path) -> None:
    read = load(tmp_path, HEAD + '[transport_maps]\n"example.org" = "slow:[192.0.2.1]"\n')
    assert read.settings.transport_maps == ((("example.org", "slow:[192.0.2.1]"),),)


@pytest.mark.parametrize(
    ("text", "unit", "expected"),
    [
        ("300s", "s", 300),
        ("5d", "s", 432_000),
        ("2", "d", 172_800),
        ("1.5h", "s", 5400),
        ("1W", "s", 604_800),
        ("0", "h", 0),
    ],
)
def test_durations(text: str, unit: str, expected: float) -> None:
    assert seconds(text, unit) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("10240000", 10_240_000), ("25MiB", 26_214_400), ("10MB", 10_000_000), ("1.5 KiB", 1536), ("7b", 7)],
)
def test_sizes(text: str, expected: int) -> None:
    assert octets(text) == expected


@given(st.integers(0, 10**9), st.sampled_from("smhdw"))
def test_any_whole_duration_is_read(number: int, unit: str) -> None:
    assert seconds(f"{number}{unit}", "s") == seconds(str(number), unit)


@given(st.text(max_size=40))
def test_splitting_keeps_every_character_but_the_separators(text: str) -> None:
    assert "".join(split(text)) == re.sub(r"[\s,]", "", text) or "{" in text or "}" in text


# ---- listeners and transports


def test_profiles_are_spelled_out(tmp_path: Path) -> None:
    passwords = tmp_path / "passwd"
    passwords.touch(mode=0o600)
    read = load(
        tmp_path,
        HEAD
        + 'smtpd_sasl_password_file = "passwd"\nmynetworks = "10.0.0.0/8"\ninet_interfaces = "all"\n'
        + "[[listener]]\nport = 25\nmynetworks = []\n"
        + '[[listener]]\nname = "people"\nport = 587\nprofile = "submission"\nsmtpd_timeout = "1m"\n'
        + '[[listener]]\nport = 465\nprofile = "submissions"\nsmtpd_tls_security_level = "may"\n'
        + '[[listener]]\nport = 2526\nprofile = "legacy"\naddress = ["10.0.0.1", "eth0"]\n',
    )
    lan, people, implicit, old, other = read.listeners
    assert lan.settings.mynetworks == () == lan.settings.smtpd_client_event_limit_exceptions
    assert read.settings.mynetworks == ("10.0.0.0/8",)
    assert people.name == "people"
    assert people.settings.smtpd_sasl_auth_enable
    assert people.settings.smtpd_relay_restrictions == ("permit_sasl_authenticated", "reject")
    assert people.settings.smtpd_timeout == 60
    assert people.settings.syslog_name == "edgemail/submission"
    assert (people.settings.smtpd_tls_security_level, implicit.settings.smtpd_tls_security_level) == ("encrypt", "may")
    assert implicit.settings.smtpd_tls_wrappermode
    assert not people.settings.smtpd_tls_wrappermode
    assert old.settings.smtpd_legacy_line_ends
    assert [(one.address, one.port) for one in (lan, old, other)] == [("*", 25), ("10.0.0.1", 2526), ("eth0", 2526)]


@pytest.mark.parametrize(
    ("interfaces", "expected"),
    [
        ('"all"', ["*"]),
        ('"loopback-only"', ["127.0.0.1", "::1"]),
        ('"localhost"', ["127.0.0.1", "::1"]),
        ('["localhost", "192.0.2.1", "eth0"]', ["127.0.0.1", "::1", "192.0.2.1", "eth0"]),
        ('"localhost"\ninet_protocols = "ipv4"', ["127.0.0.1"]),
        ('"localhost"\ninet_protocols = "ipv6"', ["::1"]),
        ('"$myhostname, [2001:db8::1]"', ["gw7.example.com", "2001:db8::1"]),
    ],
)
def test_interfaces(tmp_path: Path, interfaces: str, expected: list[str]) -> None:
    read = load(tmp_path, f"{HEAD}inet_interfaces = {interfaces}\n")
    assert [listener.address for listener in read.listeners] == expected


def test_transports_have_settings_of_their_own(tmp_path: Path) -> None:
    read = load(
        tmp_path,
        HEAD
        + 'smtp_connect_timeout = "9s"\nrelay_destination_concurrency_limit = 2\nslow_destination_recipient_limit = 3\n'
        + 'slow_initial_destination_concurrency = 1\n[transport.slow]\nsmtp_tls_security_level = "encrypt"\n',
    )
    assert read.transport("relay").default_destination_concurrency_limit == 2
    slow = read.transport("slow")
    assert (slow.default_destination_recipient_limit, slow.initial_destination_concurrency) == (3, 1)
    assert (slow.smtp_tls_security_level, slow.smtp_connect_timeout) == ("encrypt", 9)
    assert read.transport("smtp") is read.settings
    assert read.settings.default_destination_recipient_limit == 50


# ---- what is refused


@pytest.mark.parametrize(
    ("text", "key", "message", "hint"),
    [
        ('relay_hosts = "x"', "relay_hosts", "unknown parameter", "relayhost"),
        ('smptd_banner = "x"', "smptd_banner", "unknown parameter", "smtpd_banner"),
        ('transport_map = "x"', "transport_map", "unknown parameter", "transport_maps"),
        ("smtp_skip_4xx_greeting = false", "smtp_skip_4xx_greeting", "does not have", "always passed over"),
        ("smtp_sasl_auth_soft_bounce = true", "smtp_sasl_auth_soft_bounce", "does not have", "bounces nothing"),
        ("relay_domains_reject_code = 450", "relay_domains_reject_code", "does not have", "soft_bounce"),
        ('reject_unknown_sender = "x"', "reject_unknown_sender", "does not have", "smtpd_recipient_restrictions"),
        ('virtual_alias_maps = "x"', "virtual_alias_maps", "does not have", "rewrites"),
        ("postaliases = 1", "postaliases", "unknown parameter", ""),
        ("[nonsense]\nx = 1", "nonsense", "unknown parameter", ""),
        ("[lissener]\nport = 1", "lissener", "unknown parameter", "listener"),
        ("smtpd_banner = 3", "smtpd_banner", "is a number, expected text", '"3"'),
        ('smtpd_banner = "$myhostname\\nX"', "smtpd_banner", "control character", ""),
        ('soft_bounce = "yes"', "soft_bounce", "expected true or false", "write true"),
        ("soft_bounce = 1", "soft_bounce", "expected true or false", ""),
        ('smtpd_recipient_limit = "5"', "smtpd_recipient_limit", "expected a whole number", "write 5"),
        ("smtpd_recipient_limit = 0", "smtpd_recipient_limit", "too small", "at least 1"),
        ("smtpd_recipient_limit = true", "smtpd_recipient_limit", "expected a whole number", ""),
        ("smtp_tcp_port = 65536", "smtp_tcp_port", "too large", "65535"),
        ('smtpd_timeout = "3 weeks"', "smtpd_timeout", "not a duration", "300s"),
        ("smtpd_timeout = -1", "smtpd_timeout", "negative", ""),
        ("smtpd_timeout = false", "smtpd_timeout", "expected a duration", ""),
        ('in_flow_delay = "1m"', "in_flow_delay", "60s is too large", "10s"),
        ('message_size_limit = "25M"', "message_size_limit", "not a size", '"25MiB"'),
        ("message_size_limit = 2.5", "message_size_limit", "expected a size", ""),
        ("line_length_limit = 100", "line_length_limit", "too small", "512"),
        ('smtp_tls_security_level = "verfy"', "smtp_tls_security_level", "not one of none, may", "verify"),
        ("smtp_tls_security_level = true", "smtp_tls_security_level", "expected one of", ""),
        ("mydestination = [1]", "mydestination", "expected text in the array", ""),
        ("mydestination = 1", "mydestination", "expected an array", ""),
        ('mydestination = ["a@b.example"]', "mydestination", "is an address", ""),
        ('mydestination = "a.example # mine"', "mydestination", "'#' is not an entry", "comment"),
        ('mynetworks = ["192.168.7.1/24"]', "mynetworks", "host bits", "192.168.7.0/24"),
        ('mynetworks = ["192.168.7.0/33"]', "mynetworks", "no address and no network", ""),
        ('relay_domains = ["*.example"]', "relay_domains", "expected '.example'", ""),
        ('mydomain = "a.b # text"', "mydomain", "not a host name", "comment"),
        ('myorigin = "ex ample"', "myorigin", "not a host name", ""),
        ('myorigin = "bücher.example"', "myorigin", "not a host name", "xn--"),
        ('mydomain = "example.com."', "mydomain", "not a host name", "without the dot"),
        ('myorigin = "$mydomian"', "myorigin", "$mydomian is not a parameter", ""),
        ('myorigin = "$"', "myorigin", "a lone $", "$$"),
        ('myorigin = "$myorigin"', "myorigin", "in a circle", ""),
        ('myorigin = "$transport_maps"', "myorigin", "no value as text", ""),
        ('bounce_notice_recipient = "A <a@b.example>"', "bounce_notice_recipient", "not a mail address", "bare"),
        ('notify_classes = "resourc"', "notify_classes", "not one of", "resource"),
        ('inet_protocols = "ipv5"', "inet_protocols", "not one of", "ipv"),
        ('smtpd_discard_ehlo_keywords = "chunkin"', "smtpd_discard_ehlo_keywords", "not one of", "chunking"),
        ('dns_nameservers = "ns.example"', "dns_nameservers", "not a resolver", ""),
        ('default_transport = "smtp:[a"', "default_transport", "is no next hop", ""),
        ('relayhost = "[smtp.isp.example] # isp"', "relayhost", "'#' is not an entry", "comment"),
        ('relayhost = "192.0.2.1"', "relayhost", "in brackets", ""),
        ('relayhost = ["a.example", "[a.example]:0"]', "relayhost", "a port is from 1 to 65535", ""),
        ('smtp_fallback_relay = "a:b:c"', "smtp_fallback_relay", "no next hop", ""),
        ('transport_maps = { "x.example" = "[192.0.2.1]" }', "transport_maps", "transport:nexthop", ""),
        ('smtp_sasl_security_options = "noplain"', "smtp_sasl_security_options", "unknown security", "noplaintext"),
        ('smtp_sasl_tls_security_options = "nodictionary"', "smtp_sasl_tls_security_options", "leaves none", ""),
        ('smtpd_relay_restrictions = "permit_mynetworks"', "smtpd_relay_restrictions", "open relay", "reject_unauth"),
        ("smtpd_relay_restrictions = []", "smtpd_relay_restrictions", "open relay", ""),
        ('smtpd_relay_restrictions = "permit, reject"', "smtpd_relay_restrictions", "everybody", ""),
        (
            'smtpd_recipient_restrictions = "reject_unauth_pipeling"',
            "smtpd_recipient_restrictions",
            "not one of",
            "",
        ),
        (
            'smtpd_recipient_restrictions = "permit_mynetwork"',
            "smtpd_recipient_restrictions",
            "not one of",
            "permit_mynetworks",
        ),
        ('mail_owner = "a b"', "mail_owner", "not a user", ""),
        ('syslog_name = "a b"', "syslog_name", "not a word", ""),
        ('smtpd_tls_protocols = "TLSv1"', "smtpd_tls_protocols", "leaves no protocol", "TLSv1.2"),
        ('smtp_tls_exclude_ciphers = "A:B"', "smtp_tls_exclude_ciphers", "not the name of a cipher", ""),
        ('smtp_tls_mandatory_exclude_ciphers = "A:B"', "smtp_tls_mandatory_exclude_ciphers", "not the name", ""),
        ('transport_maps = "/etc/x"', "transport_maps", "needs its type", "texthash:/etc/x"),
        ("transport_maps = [{ a = 1 }]", "transport_maps", "expected text for 'a'", '"1"'),
        ('transport_maps = ["texthash:/nowhere/x"]', "transport_maps", "/nowhere/x", ""),
        ("transport_maps = 1", "transport_maps", "expected an array of tables", ""),
        ('relay_domains = "/nowhere/x"', "relay_domains", "/nowhere/x", ""),
        ('smtp_tls_CAfile = "/nowhere/x"', "smtp_tls_CAfile", "does not exist", ""),
        ('smtp_tls_CAfile = "/tmp"', "smtp_tls_CAfile", "is a directory", ""),
        ('smtpd_tls_key_file = "/nowhere/x"', "smtpd_tls_key_file", "without smtpd_tls_cert_file", ""),
        ("smtp_tls_wrappermode = true", "smtp_tls_wrappermode", "demands TLS", "encrypt"),
        ("smtp_sasl_auth_enable = true", "smtp_sasl_auth_enable", "needs smtp_sasl_password_maps", ""),
        (
            "smtpd_sasl_auth_enable = true",
            "smtpd_sasl_auth_enable",
            "needs smtpd_sasl_password_file",
            "edgemail passwd",
        ),
        ("minimal_backoff_time = 5000", "minimal_backoff_time", "longer than maximal_backoff_time", ""),
        ('message_size_limit = "2GiB"', "spool_size", "too small", "1.5 x"),
        ("inet_interfaces = []", "inet_interfaces", "is empty", "loopback-only"),
        (
            "slwo_destination_recipient_limit = 1",
            "slwo_destination_recipient_limit",
            "no transport 'slwo'",
            "[transport.slwo]",
        ),
        ("[transport]\nslow = 1", "transport", "a table for each", "[transport.slow]"),
        ('[transport.slow]\nmyhostname = "x" # <-', "transport.slow.myhostname", "whole box", "top"),
        (
            "[transport.slow]\nsmtp_conect_timeout = 1 # <-",
            "transport.slow.smtp_conect_timeout",
            "unknown",
            "smtp_connect_timeout",
        ),
        ("[transport.slow]\nsmtp_connect_timeout = 0 # <-", "transport.slow.smtp_connect_timeout", "too small", ""),
        ("listener = 1", "listener", "expected tables", "[[listener]]"),
        ("[listener]\nport = 1", "listener", "is a table, expected tables", "[[listener]]"),
        ("[[listener]]\nsmtpd_timeout = 5", "listener[1].port", "is missing", "587"),
        ('[[listener]]\nport = "25" # <-', "listener[1].port", "is text", "write 25"),
        ("[[listener]]\nport = 65536 # <-", "listener[1].port", "not a port", ""),
        ('[[listener]]\nport = 1\nprofile = "submision" # <-', "listener[1].profile", "not one of lan", "submission"),
        (
            '[[listener]]\nport = 1\nprofile = "submission" # <-',
            "listener[1].profile",
            "needs smtpd_sasl_password_file",
            "",
        ),
        ('[[listener]]\nport = 1\nname = "a b" # <-', "listener[1].name", "short word", ""),
        ('[[listener]]\nport = 1\naddress = "" # <-', "listener[1].address", "not an address", ""),
        ('[[listener]]\nport = 1\naddress = "a b/c" # <-', "listener[1].address", "not an address", ""),
        ("[[listener]]\nport = 1\nmydestination = [] # <-", "listener[1].mydestination", "whole box", ""),
        ("[[listener]]\nport = 1\nsmtpd_tmeout = 5 # <-", "listener[1].smtpd_tmeout", "unknown", "smtpd_timeout"),
        ("[[listener]]\nport = 1\nsmtpd_timeout = 0 # <-", "listener[1].smtpd_timeout", "too small", ""),
        (
            '[[listener]]\nport = 1\nsmtpd_tls_security_level = "none"\nsmtpd_tls_wrappermode = true # <-',
            "listener[1].smtpd_tls_wrappermode",
            "needs TLS",
            "encrypt",
        ),
        ("health = 3", "health", "is a number", "[health]"),
        ("[health]\nprot = 3 # <-", "health.prot", "unknown", "port"),
        ("[health]\nport = -1 # <-", "health.port", "not a port", ""),
        ("[health]\naddress = 1 # <-", "health.address", "expected text", ""),
        ('[health]\naddress = "" # <-', "health.address", "not an address", '"*"'),
        ('[health]\nnetworks = ["127.0.0.1/8"] # <-', "health.networks", "host bits", "127.0.0.0/8"),
        ('[health]\ntoken_file = "none" # <-', "health.token_file", "does not exist", ""),
    ],
)
def test_each_mistake_is_named_with_line_and_hint(tmp_path: Path, text: str, key: str, message: str, hint: str) -> None:
    found = problem(tmp_path, text + "\n")
    assert found.key == key
    assert message in found.message
    assert hint in found.hint
    marked = [number for number, line in enumerate(text.split("\n"), 1) if line.endswith("# <-")] or [1]
    assert found.line == (-HEAD.count("\n") if key == "spool_size" else marked[0]), "a default stands on no line"


@pytest.mark.parametrize(
    "name", ["a.b # text", "gw7", "192.0.2.1", "-.example", "a..b", "x" * 64 + ".example", "a b.example"]
)
def test_names_that_no_host_has(tmp_path: Path, name: str) -> None:
    found = problems(tmp_path, f'queue_directory = "spool"\nmyhostname = "{name}"\n')
    assert [(each.key, each.line) for each in found] == [("myhostname", 2)], "and nothing of what is made of it"
    if "#" in name:
        assert "comment" in found[0].hint


def test_everything_is_reported_at_once(tmp_path: Path) -> None:
    found = problems(tmp_path, 'myhostname = "x"\nsmtpd_timeout = "x"\nfoo = 1\n[[listener]]\n[health]\nport = "x"\n')
    assert [(each.line, each.key) for each in found if each.line] == [
        (1, "myhostname"),
        (2, "smtpd_timeout"),
        (3, "foo"),
        (4, "listener[1].port"),
        (6, "health.port"),
    ]


def test_a_mistake_that_listeners_inherit_is_said_once(tmp_path: Path) -> None:
    text = 'mynetworks = "10.0.0.1/8"\n[[listener]]\nport = 1\n[[listener]]\nport = 2\n[transport.x]\n'
    assert problem(tmp_path, text).key == "mynetworks"


@pytest.mark.parametrize(
    ("first", "second", "clash"),
    [
        ('address = "127.0.0.1"', 'address = "127.0.0.1"', True),
        ('address = "*"', 'address = "127.0.0.1"', True),
        ('address = "127.0.0.1"', 'address = "*"', True),
        ('address = "127.0.0.1"', 'address = "127.0.0.2"', False),
    ],
)
@pytest.mark.parametrize("port", [25, 0])
def test_two_listeners_on_one_port(tmp_path: Path, first: str, second: str, clash: bool, port: int) -> None:
    text = f"[[listener]]\n{first}\nport = {port}\n[[listener]]\n{second}\nport = {port}\n"
    if clash and port:
        found = problem(tmp_path, text)
        assert (found.key, found.line) == ("listener[2].port", 6)
        assert "taken by listener[1]" in found.message
    else:
        assert len(load(tmp_path, HEAD + text).listeners) == 2


def test_two_listeners_of_one_name(tmp_path: Path) -> None:
    found = problem(tmp_path, '[[listener]]\nname = "a"\nport = 1\n[[listener]]\nname = "a"\nport = 2\n')
    assert (found.key, found.line) == ("listener[2].name", 5)


@pytest.mark.parametrize(
    ("text", "line", "hint"),
    [
        ("\nmyhostname = gw7.example.com\n", 2, '"gw7.example.com"'),
        ("soft_bounce = yes\n", 1, "write true"),
        ('a = "x\n', 1, ""),
        ("a = 1\na = 2\n", 2, ""),
        ("a = [1,\n2", 2, ""),
    ],
)
def test_what_is_not_toml(tmp_path: Path, text: str, line: int, hint: str) -> None:
    (found,) = problems(tmp_path, text)
    assert found.line == line
    assert "not TOML" in found.message
    assert hint in found.hint


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        config.load(tmp_path / "none.toml")
    said = reading.report("none.toml", caught.value.problems)
    assert said.startswith("none.toml: cannot be read: No such file or directory (")
    assert "--config" in said and "$EDGEMAIL_CONFIG" in said
    (tmp_path / "latin.toml").write_bytes(b"a = 1\nb = '\xe4'\n")
    with pytest.raises(ConfigurationError) as caught:
        config.load(tmp_path / "latin.toml")
    assert caught.value.problems[0].line == 2
    (tmp_path / "huge.toml").write_bytes(b"#" * (config.MAX_FILE + 1))
    with pytest.raises(ConfigurationError, match="1 problem"):
        config.load(tmp_path / "huge.toml")


def test_secrets_that_anyone_can_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("isp.example user:password\n")
    text = 'smtp_sasl_auth_enable = true\nsmtp_sasl_password_maps = ["texthash:secret"]\n'
    secret.chmod(0o644)
    found = problem(tmp_path, text)
    assert found.key == "smtp_sasl_password_maps"
    assert "chmod 640" in found.hint
    secret.chmod(0o640)
    load(tmp_path, HEAD + text)
    secret.chmod(0o644)
    load(tmp_path, HEAD + text, files=False)


def test_a_queue_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = problems(tmp_path, f'queue_directory = "{tmp_path}/file"\n')
    assert (found[0].key, found[0].line) == ("queue_directory", 1)
    assert "not a directory" in found[0].message


def test_a_queue_directory_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(os, "geteuid", lambda: 65533)
    found = problem(tmp_path, 'mail_owner = "pi"\n')
    assert found.key == "queue_directory"
    assert found.message == f"{tmp_path} cannot be written by user 65533"
    assert found.hint == f"ask as root or as pi, or chown 65533 {tmp_path}"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    found = problem(tmp_path, 'mail_owner = "pi"\n')
    assert found.message == f"{tmp_path} cannot be written by root"
    assert "read-only" in found.hint


# ---- warnings, reload


def test_a_good_box_needs_no_advice(tmp_path: Path) -> None:
    owner = 'mail_owner = "nobody"\n'
    assert config.check(load(tmp_path, owner + SMALLEST.format(directory=tmp_path)))[0] == ()
    text = HEAD + owner + 'relayhost = "[smtp.isp.example]:587"\n'
    assert config.check(load(tmp_path, text)) == ((), ())


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        (
            'mydestination = "a.example"\nrelay_domains = "A.example"',
            "relay_domains",
            "BOTH mydestination and relay_domains",
        ),
        ('mynetworks = "0.0.0.0/0"', "mynetworks", "open relay"),
        ('mynetworks = "::/0"', "mynetworks", "open relay"),
        ('relayhost = "[gw7.example.com]"', "relayhost", "is this box"),
        ('smtp_sasl_password_maps = "static:u:p"', "smtp_sasl_password_maps", "is not used"),
        ('smtp_sasl_password_maps = "static:u:p"', "smtp_sasl_password_maps", "every user can read"),
        (
            'smtp_sasl_auth_enable = true\nsmtp_sasl_password_maps = "static:u:p"',
            "smtp_tls_security_level",
            "does not demand TLS",
        ),
        ('smtpd_banner = "hello"', "smtpd_banner", "host name"),
    ],
)
def test_what_is_unwise_is_a_warning(tmp_path: Path, text: str, key: str, message: str) -> None:
    errors, warnings = config.check(load(tmp_path, HEAD + 'mail_owner = "root"\n' + text + "\n"))
    assert errors == ()
    assert any(each.key == key and message in each.message for each in warnings), warnings


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_a_user_that_cannot_be_become_is_an_error(tmp_path: Path) -> None:
    """As `edgemail run` has it, which ends with 78."""
    (error,) = config.check(load(tmp_path, HEAD + 'mail_owner = "no-such-user"\n'))[0]
    assert (error.key, error.line) == ("mail_owner", 4)
    assert "no user no-such-user" in error.message


@pytest.mark.parametrize("name", ["smtp_tls_verify_cert_match", "smtp_tls_secure_cert_match"])
def test_names_that_a_certificate_may_bear(tmp_path: Path, name: str) -> None:
    """Postfix's words, and names as they are, in any case; not words that are nearly right."""
    right = '["Hostname", "nexthop", "dot-nexthop", "mx.isp.example", ".isp.example"]'
    assert load(tmp_path, HEAD + f"{name} = {right}\n").settings.smtp_tls_verify_cert_match
    for wrong in ("hostnme", "isp", "mx..example", "a b.example"):
        found = problem(tmp_path, f'{name} = ["{wrong}"]\n')
        assert found.key == name, wrong


def test_a_wrong_row_in_a_table_file_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "transport").write_text("a.example relay:[192.0.2.1]\nb.example [192.0.2.1]\n")
    errors, warnings = config.check(load(tmp_path, HEAD + 'mail_owner = "root"\ntransport_maps = "hash:transport"\n'))
    assert (errors, [each.key for each in warnings]) == ((), ["transport_maps"])


def test_logins_in_clear_are_a_warning(tmp_path: Path) -> None:
    (tmp_path / "passwd").touch(mode=0o600)
    text = HEAD + 'smtpd_sasl_auth_enable = true\nsmtpd_sasl_password_file = "passwd"\nmail_owner = "root"\n'
    open_lan = '[[listener]]\nport = 25\naddress = "*"\nsmtpd_tls_auth_only = false\n'
    (warning,) = config.check(load(tmp_path, text + open_lan))[1]
    assert (warning.key, "in clear" in warning.message, warning.line) == ("listener[1]", True, 7)
    hidden = '[[listener]]\nport = 25\nsmtpd_tls_security_level = "none"\n'
    (warning,) = config.check(load(tmp_path, text + hidden))[1]
    assert "offers no login" in warning.message


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_files_that_the_owner_could_not_read_again() -> None:
    text = HEAD + 'mail_owner = "nobody"\nsmtpd_sasl_password_file = "passwd"\nsmtp_sasl_password_maps = "hash:sasl"\n'
    with tempfile.TemporaryDirectory() as name:  # for pytest's are closed to others
        directory = Path(name)
        directory.chmod(0o755)
        for secret in ("passwd", "sasl"):
            (directory / secret).touch(mode=0o600)
        found = {one.key for one in config.check(load(directory, text))[1] if "by mail_owner nobody" in one.message}
        assert found == {"smtpd_sasl_password_file", "smtp_sasl_password_maps"}
        for secret in ("passwd", "sasl"):
            shutil.chown(directory / secret, "nobody")
        assert not [one for one in config.check(load(directory, text))[1] if "mail_owner" in one.message]


def test_which_changes_need_a_restart(tmp_path: Path) -> None:
    base = HEAD + 'inet_interfaces = "127.0.0.1"\n'
    old = load(tmp_path, base)
    assert reading.restart_needed(old, load(tmp_path, base + 'relayhost = "x.example"\nsmtpd_timeout = 5\n')) == []
    moved = load(tmp_path, base.replace("127.0.0.1", "all") + "[health]\n")
    told = reading.restart_needed(old, moved)
    assert [each.partition(":")[0] for each in told] == [
        "inet_interfaces",
        "listener 127.0.0.1",
        "listener *",
        "health",
    ]
    away = load(tmp_path, base.replace('"spool"', '"other"') + 'mail_owner = "nobody"\nspool_size = "1GiB"\n')
    told = reading.restart_needed(old, away)
    assert [each.partition(":")[0] for each in told] == ["queue_directory", "mail_owner", "spool_size"]


# ---- printing

EVERYTHING = (
    HEAD
    + 'smtpd_banner = "$myhostname ESMTP $$1 \\"quoted\\" ü"\nmaximal_queue_lifetime = "36h"\nin_flow_delay = 0.5\n'
    + 'transport_maps = ["static:a$$b", { "x.example" = "slow:[192.0.2.1]", "$y" = "z" }]\ndelay_warning_time = 4\n'
    + '2bounce_notice_recipient = "x"\nslow_destination_recipient_limit = 3\ninet_interfaces = "localhost"\n'
    + '[[listener]]\nname = "two"\nport = 25\n[[listener]]\nport = 2525\nprofile = "legacy"\nsmtpd_timeout = 3\n'
    + '[transport.slow]\nsmtp_tls_security_level = "encrypt"\n[health]\nport = 0\nnetworks = "10.0.0.0/8"\n'
)


def test_what_is_printed_is_the_same_configuration(tmp_path: Path) -> None:
    once = load(tmp_path, EVERYTHING)
    printed = show.text(once)
    again = load(tmp_path, printed)
    assert again.settings == once.settings
    assert [dataclasses.replace(one, section="") for one in again.listeners] == [
        dataclasses.replace(one, section="") for one in once.listeners
    ]
    assert again.transports == once.transports
    assert again.health == once.health
    assert show.text(again) == printed


def test_printing_what_changed_one_key_and_defaults(tmp_path: Path) -> None:
    read = load(tmp_path, SMALLEST.format(directory=tmp_path))
    assert show.text(read, changed=True).splitlines()[:4] == [
        'myhostname = "gw7.example.com"',
        'mynetworks = ["127.0.0.0/8", "::1/128", "192.168.7.0/24"]',
        'relayhost = ["[smtp.isp.example]:587"]',
        f'queue_directory = "{tmp_path}/spool"',
    ]
    assert show.text(read, ["smtp_helo_name"]) == 'smtp_helo_name = "gw7.example.com"'
    assert show.text(read, ["smtp_helo_name"], defaults=True) == 'smtp_helo_name = "$myhostname"'
    assert show.text(read, ["mynetworks"], bare=True) == "127.0.0.0/8, ::1/128, 192.168.7.0/24"
    assert show.text(read, ["maximal_queue_lifetime", "smtpd_timeout"], bare=True) == "5d\n300s"
    assert len(show.text(read, defaults=True).splitlines()) == len(PARAMETERS)
    with pytest.raises(Mistake, match="unknown parameter myhostnam") as caught:
        show.text(read, ["myhostnam"])
    assert "myhostname" in caught.value.hint


def test_defaults_as_printed_are_the_defaults(tmp_path: Path) -> None:
    blank = load(tmp_path, "", files=False)
    again = load(tmp_path, show.text(blank, defaults=True), files=False)
    assert again.settings == blank.settings


def test_no_password_is_printed(tmp_path: Path) -> None:
    text = HEAD + 'smtp_sasl_auth_enable = true\nsmtp_sasl_password_maps = ["static:u:sesame", { x = "u:sesame" }]\n'
    read = load(tmp_path, text)
    assert "sesame" not in show.text(read) + show.as_json(read) + show.text(read, bare=True)
    assert show.HIDDEN in show.text(read)


def test_json(tmp_path: Path) -> None:
    import json

    document = json.loads(show.as_json(load(tmp_path, EVERYTHING)))
    assert document["maximal_queue_lifetime"] == 129_600
    assert document["2bounce_notice_recipient"] == "x"
    assert document["listener"][0] == {"name": "two", "address": ["127.0.0.1", "::1"], "port": 25, "profile": "lan"}
    assert document["listener"][1]["smtpd_timeout"] == 3
    assert document["transport"]["slow"]["smtp_tls_security_level"] == "encrypt"
    assert document["health"]["port"] == 0


def test_every_parameter_can_be_given(tmp_path: Path) -> None:
    """Each form's default, spelled out, is a value that the form takes."""
    read = load(tmp_path, "", files=False)
    for name in PARAMETERS:
        line = f"{FILE_NAMES.get(name, name)} = {show.spelled(name, getattr(read.settings, name))}"
        assert getattr(load(tmp_path, line, files=False).settings, name) == getattr(read.settings, name), line


# ---- lines


def test_lines_of_keys_in_every_place() -> None:
    text = (
        '# one\na = 1\n"quoted key" = "x # y"\n'
        'b.c = [ # [\n  "]", \'"\',\n]\nd = """\ne = 1\n"""\nf = \'\'\'\n[g]\n\'\'\'\n'
        + '[t]  # c\nh = "\\""\n\n[[l]]\ni = {x = 1, y = [1]}\n[[l]]\ni = 2\n[t.u]\nj = 1979-05-27T07:32:00Z\n'
    )
    assert lines(text) == {
        "a": 2,
        "quoted key": 3,
        "b.c": 4,
        "d": 7,
        "f": 10,
        "t": 13,
        "t.h": 14,
        "l[1]": 16,
        "l[1].i": 17,
        "l[2]": 18,
        "l[2].i": 19,
        "t.u": 20,
        "t.u.j": 21,
    }


@given(st.text(alphabet="a=.[]{}\"'#\\\n $1,", max_size=60))
def test_lines_end_for_any_text(text: str) -> None:
    assert all(1 <= line <= text.count("\n") + 1 for line in lines(text).values())


def test_where_the_file_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEMAIL_CONFIG", raising=False)
    assert reading.find() == reading.DEFAULT_PATH
    monkeypatch.setenv("EDGEMAIL_CONFIG", "/x")
    assert reading.find() == "/x"
    assert reading.find("/y") == "/y"


def test_settings_hold_nothing_unreadable() -> None:
    assert set(PARAMETERS) == {field.name for field in dataclasses.fields(Settings)}


ODD = (
    *("1", "-1", "0", "1.5", "nan", "-inf", "99999999999999999999999", "true", "1979-05-27", "07:32:00"),
    *(
        '""',
        '" "',
        '"x"',
        '"$"',
        '"${"',
        '"$x"',
        '"#"',
        '"/"',
        '"\\u0000"',
        '"!"',
        '"[::1"',
        '"%eth0"',
        '"a:b"',
        '"ü@ü"',
    ),
    *(
        '"9e9"',
        '"1e5d"',
        '"static:"',
        '"inline:{"',
        '"cidr:x"',
        '"../x"',
        '"-"',
        '"::1/129"',
        '"@"',
        '"$transport_maps"',
    ),
    *("[]", "[[]]", "[1]", '[""]', '["!"]', '["$"]', "{}", '{ x = "y" }', "{ x = {} }", "[{}]", "[{ x = 1 }]"),
)


@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize("place", ["top", "[[listener]]", "[transport.x]", "[health]", "[push]", "tables"])
def test_whatever_stands_there_is_read_or_refused(tmp_path: Path, place: str, value: str) -> None:
    names = {
        "top": [FILE_NAMES.get(name, name) for name in PARAMETERS],
        "[[listener]]": [*PARAMETERS, "name", "address", "port", "profile"],
        "[transport.x]": [*PARAMETERS],
        "[health]": ["address", "port", "token_file", "networks"],
        "[push]": ["heartbeat_url", "heartbeat_interval", "alarm_url", "ca_file"],
        "tables": ["listener", "transport", "health", "push", "x_destination_recipient_limit"],
    }[place]
    heading = place if place.startswith("[") else ""
    body = "\n".join(f"{name} = {value}" for name in names)
    try:
        load(tmp_path, f"{heading}\n{body}\n")
    except ConfigurationError as error:
        assert error.problems
        assert all(each.message for each in error.problems)
