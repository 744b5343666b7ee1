"""Postfix's words for TLS: protocols, grades, exclusions; names a certificate may bear."""

from __future__ import annotations

import ssl
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemail.relay.send.tls import Contexts, matches, wanted_names
from edgemail.settings import Settings
from edgemail.tls import VERSIONS, ciphers, restrict, versions

TWO, THREE = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (">=TLSv1.2", (TWO, THREE)),
        ("", (TWO, THREE)),
        ("!SSLv2, !SSLv3", (TWO, THREE)),
        ("!SSLv2,!SSLv3,!TLSv1:!TLSv1.1", (TWO, THREE)),
        (">=TLSv1", (TWO, THREE)),  # below the floor: understood, not enabled
        ("TLSv1.2", (TWO, TWO)),
        ("tlsv1.3", (THREE, THREE)),
        ("TLSv1, TLSv1.2", (TWO, TWO)),
        (">=TLSv1.3", (THREE, THREE)),
        ("<=TLSv1.2", (TWO, TWO)),
        (">=TLSv1.1 <=TLSv1.2", (TWO, TWO)),
        ("!TLSv1.3", (TWO, TWO)),
        ("!TLSv1.2", (THREE, THREE)),
    ],
)
def test_protocols(text: str, expected: tuple[ssl.TLSVersion, ssl.TLSVersion]) -> None:
    assert versions(text) == expected


@pytest.mark.parametrize("text", ["TLSv1", "<=TLSv1.1", "!TLSv1.2 !TLSv1.3", "TLSv1.2 !TLSv1.2", ">=TLSv1.3 <=TLSv1.2"])
def test_protocols_that_leave_nothing(text: str) -> None:
    with pytest.raises(ValueError, match=r"leaves no protocol.*try"):
        versions(text)


@pytest.mark.parametrize("text", ["TLSv2", "!", ">=", "=TLSv1.2", ">TLSv1.2", "yes"])
def test_protocols_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"unknown protocol.*the names are SSLv2"):
        versions(text)


@given(st.lists(st.tuples(st.sampled_from(["", "!", ">=", "<="]), st.sampled_from(VERSIONS)), max_size=5))
def test_nothing_below_the_floor_is_ever_enabled(words: list[tuple[str, str]]) -> None:
    try:
        lowest, highest = versions(", ".join(mark + name for mark, name in words))
    except ValueError:
        return
    assert TWO <= lowest <= highest <= THREE


def names(grade: str, *exclude: str) -> set[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    restrict(context, protocols=">=TLSv1.2", grade=grade, exclude=exclude)
    return {each["name"] for each in context.get_ciphers()}


@pytest.mark.parametrize("grade", ["medium", "high"])
def test_grades_have_no_anonymous_and_no_broken_suite(grade: str) -> None:
    found = names(grade)
    assert {"ECDHE-RSA-AES256-GCM-SHA384", "ECDHE-ECDSA-AES128-GCM-SHA256"} <= found
    for word in ("ADH", "AECDH", "NULL", "RC4", "DES", "MD5", "PSK", "SRP", "EXP"):
        assert not any(word in name for name in found), word


def test_excluded_ciphers_are_gone() -> None:
    assert "AES128-SHA" in names("medium")
    assert "AES128-SHA" not in names("medium", "AES128-SHA")
    assert not any(name.startswith("DHE-") for name in names("medium", "kDHE", "aNULL"))


@pytest.mark.parametrize(
    ("grade", "exclude", "hint"),
    [
        ("low", (), "medium or high"),
        ("high", ("TLS_AES_128_GCM_SHA256",), "bound the protocols"),
        ("high", ("A:B",), "OpenSSL names"),
        ("high", ("!aNULL",), "OpenSSL names"),
        ("high", ("ALL",), "exclude fewer"),
    ],
)
def test_bad_words_come_with_a_hint(grade: str, exclude: tuple[str, ...], hint: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with pytest.raises(ValueError, match=hint):
        restrict(context, protocols=">=TLSv1.2", grade=grade, exclude=exclude)


def test_the_cipher_list_never_loses_its_refusals() -> None:
    assert ciphers("high", ("kRSA",)).endswith(":!kRSA")
    assert "!aNULL" in ciphers("medium")


# -- whose certificate ------------------------------------------------------------------------------------------------


def certificate(*dns: str, common: str = "", address: str = "") -> dict[str, Any]:
    made: dict[str, Any] = {"subjectAltName": tuple(("DNS", each) for each in dns)}
    if common:
        made["subject"] = ((("commonName", common),),)
    if address:
        made["subjectAltName"] += (("IP Address", address),)
    return made


@pytest.mark.parametrize(
    ("bears", "wanted", "good"),
    [
        (certificate("mx.example.com"), "mx.example.com", True),
        (certificate("MX.Example.COM"), "mx.example.com", True),
        (certificate("mx.example.com", "b.example"), "b.example", True),
        (certificate("example.com"), "mx.example.com", False),
        (certificate("*.example.com"), "mx.example.com", True),
        (certificate("*.example.com"), "a.mx.example.com", False),
        (certificate("*.example.com"), "example.com", False),
        (certificate("*.com"), "example.com", False),
        (certificate("m*.example.com"), "mx.example.com", False),
        (certificate("mx.example.com"), ".example.com", True),
        (certificate("a.mx.example.com"), ".example.com", True),
        (certificate("example.com"), ".example.com", False),
        (certificate("badexample.com"), ".example.com", False),
        (certificate(common="mx.example.com"), "mx.example.com", True),
        (certificate("other.example", common="mx.example.com"), "mx.example.com", False),
        (certificate("192.0.2.1"), "192.0.2.1", False),
        (certificate(address="192.0.2.1"), "192.0.2.1", True),
        (certificate(address="2001:DB8:0:0:0:0:0:1"), "2001:db8::1", True),
        (certificate(address="192.0.2.1"), "192.0.2.2", False),
        ({}, "mx.example.com", False),
    ],
)
def test_names_of_a_certificate(bears: dict[str, Any], wanted: str, good: bool) -> None:
    assert matches(bears, (wanted,)) is good


def test_the_names_that_each_level_wants() -> None:
    def wanted(level: str, **more: Any) -> tuple[str, ...]:
        return wanted_names(Settings(smtp_tls_security_level=level, **more), "mx.Example.com.", "example.com")

    assert wanted("may") == wanted("encrypt") == wanted("none") == ()
    assert wanted("verify") == ("mx.example.com",)
    assert wanted("secure") == ("example.com", ".example.com")
    assert wanted("secure", smtp_tls_secure_cert_match=("hostname", "smtp.isp.example")) == (
        "mx.example.com",
        "smtp.isp.example",
    )


# -- contexts ---------------------------------------------------------------------------------------------------------


def test_one_context_for_equal_demands_and_roots_only_where_they_judge() -> None:
    contexts = Contexts()
    may = Settings(smtp_tls_security_level="may")
    verify = Settings(smtp_tls_security_level="verify")
    first = contexts.context(may, dated=True)
    assert contexts.context(may, dated=False) is first  # nothing is judged, so no date is
    assert not first.get_ca_certs()
    assert first.verify_mode is ssl.CERT_NONE
    judging = contexts.context(verify, dated=True)
    assert judging is not first
    assert contexts.context(Settings(smtp_tls_security_level="secure"), dated=True) is judging
    assert judging.verify_mode is ssl.CERT_REQUIRED
    assert not judging.verify_flags & ssl.VerifyFlags.VERIFY_X509_STRICT
    assert not judging.verify_flags & 0x200000
    undated = contexts.context(verify, dated=False)
    assert undated is not judging
    assert undated.verify_flags & 0x200000
    contexts.forget()
    assert contexts.context(may, dated=True) is not first


def test_the_higher_levels_have_their_own_protocols_and_ciphers() -> None:
    def context(level: str, **more: Any) -> ssl.SSLContext:
        settings = Settings(
            smtp_tls_security_level=level,
            smtp_tls_mandatory_protocols=">=TLSv1.3",
            smtp_tls_exclude_ciphers=("AES128-SHA",),
            smtp_tls_mandatory_exclude_ciphers=("AES256-SHA",),
            **more,
        )
        return Contexts().context(settings, dated=True)

    def has(made: ssl.SSLContext, name: str) -> bool:
        return any(each["name"] == name for each in made.get_ciphers())

    may, encrypt = context("may"), context("encrypt")
    assert (may.minimum_version, encrypt.minimum_version) == (TWO, THREE)
    assert (has(may, "AES128-SHA"), has(may, "AES256-SHA")) == (False, True)
    assert (has(encrypt, "AES128-SHA"), has(encrypt, "AES256-SHA")) == (False, False)
    assert context("none", smtp_tls_wrappermode=True).minimum_version == THREE
