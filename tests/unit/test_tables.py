"""Lookup tables and lists: what is found, in which order, and what is said about a wrong entry."""

from __future__ import annotations

import ipaddress
import logging
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemail.clock import ManualClock
from edgemail.domain import ascii_domain
from edgemail.errors import TableError
from edgemail.tables import DomainList, NetworkList, Tables, check


def table(tmp_path: Path, text: str, kind: str = "texthash") -> Tables:
    (tmp_path / "table").write_text(text)
    return Tables.open((f"{kind}:table",), tmp_path)


# ---- text tables


@pytest.mark.parametrize("kind", ["texthash", "hash", "lmdb", "btree", "cdb"])
def test_text_table(tmp_path: Path, kind: str) -> None:
    found = table(
        tmp_path,
        "# who goes where\n"
        "Example.COM\tsmtp:[192.168.23.56]:20025\n"
        "oreilly.com   relay:[gateway.oreilly.com]  \n"
        "long.example  error:no mail\n"
        "# and a comment inside\n"
        "\n"
        "\t accepted  here\n"
        '"John \\"J\\" Smith@example.com"  smtp:quoted\n',
        kind,
    )
    assert found.find("example.com") == "smtp:[192.168.23.56]:20025"
    assert found.find("EXAMPLE.com") == "smtp:[192.168.23.56]:20025"
    assert found.find("oreilly.com") == "relay:[gateway.oreilly.com]"
    assert found.find("long.example") == "error:no mail accepted  here"
    assert found.find('john "j" smith@example.com') == "smtp:quoted"
    assert found.find("sub.example.com") is None


def test_byte_order_mark_is_no_part_of_a_key(tmp_path: Path) -> None:
    assert table(tmp_path, "\ufeffa.example x\n").find("a.example") == "x"


def test_of_two_equal_keys_the_first_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert table(tmp_path, "a 1\nA 2\n").find("a") == "1"
    assert "table:2: this key stands here twice" in caplog.text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a b\nlonely\n", "table:2: no value"),
        ('a b\n"open\n', "table:2: the quoted key has no closing"),
        ("a b\n\xff\udcff\n", "table:2: not UTF-8"),
    ],
)
def test_wrong_text_table_names_file_and_line(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "table").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(TableError, match=says):
        Tables.open(("texthash:table",), tmp_path)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("/etc/edgemail/transport", 'write "texthash:/etc/edgemail/transport"'),
        ("proxy:hash:/etc/x", 'write "hash:/etc/x"'),
        ("mysql:/etc/x.cf", "no table type 'mysql'; there are texthash"),
        ("texthash:", 'expected "type:path"'),
        ("texthash:missing", "missing: No such file"),
        ("inline:{novalue}", "expected key=value"),
    ],
)
def test_wrong_table_is_explained(tmp_path: Path, spec: str, says: str) -> None:
    (problem,) = check((spec, "static:x"), tmp_path)
    assert says in problem


def test_static_and_inline() -> None:
    assert Tables.open(("static:x",)).find("anything") == "x"
    assert Tables.open(("static:{ two words }",)).find("anything") == "two words"
    assert Tables.open(("inline:{a=1, {B = two words}}",)).find("b") == "two words"
    pairs = Tables.open(((("A", "1"), ("b", "2"), ("a", "3")),))
    assert (pairs.find("a"), pairs.find("B"), pairs.find("c")) == ("1", "2", None)


def test_first_table_that_has_the_key_answers() -> None:
    tables = Tables.open(((("a", "first"),), (("a", "second"), ("b", "second")), "static:rest"))
    assert [tables.find(key) for key in "abc"] == ["first", "second", "rest"]
    assert not Tables.open(())


def test_each_key_goes_through_all_tables_before_the_next() -> None:
    tables = Tables.open(((("example.com", "domain"),), (("a@example.com", "user"),)))
    assert tables.search(("a@example.com", "example.com")) == "user"
    assert tables.search(("b@example.com", "example.com")) == "domain"
    assert tables.search(("b@example.org", "example.org")) is None


def test_parts_of_a_key_are_not_shown_to_patterns(tmp_path: Path) -> None:
    tables = table(tmp_path, "!/@example\\.com$/ elsewhere\n", "pcre")
    assert tables.search(("a@example.com", "example.com")) is None
    assert tables.search(("a@example.org", "example.org")) == "elsewhere"


# ---- pattern tables

PATTERNS = r"""
/^postmaster@/          first
/^(.*)-list@(.+)$/      relay:[$2]:$(1)/${1}$$
!/@example\.com$/       outside
if /^a/
/^ab/                   ab
  if !/^ac/
  # a line that begins with a blank continues the one before it: so indented rules are not rules
endif
/^CASE/i                exactly
/[[:digit:]]{3}/        digits
"""


def test_patterns(tmp_path: Path) -> None:
    text = PATTERNS.replace("  if !/^ac/\n", "").replace("  # a line that", "# a line that")
    found = table(tmp_path, text, "regexp")
    assert found.find("POSTMASTER@example.com") == "first"
    assert found.find("Big-List@inner.example.com") == "relay:[inner.example.com]:Big/Big$"
    assert found.find("x@example.org") == "outside"
    assert found.find("abc@example.com") == "ab"
    assert found.find("b-abc@example.com") is None
    assert found.find("case@example.com") is None
    assert found.find("CASE@example.com") == "exactly"
    assert found.find("a123@example.com") == "digits"


def test_nested_if(tmp_path: Path) -> None:
    found = table(tmp_path, "if /@a/\nif !/^x/\n/./ in\nendif\n/^x/ x\nendif\n/@b/ b\n", "pcre")
    assert [found.find(key) for key in ("1@a", "x@a", "1@b", "1@c")] == ["in", "x", "b", None]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("/a/ x\n/(/ y\n", r"table:2: missing \)"),
        ("a x\n", "table:1: expected: /pattern/ value"),
        ("/a x\n", "table:1: no closing /"),
        ("/a/ \n", "table:1: no value"),
        ("/a/q x\n", "table:1: unknown flag 'q'"),
        ("/a/ $1\n", r"table:1: \$1 names a group"),
        ("!/(a)/ $1\n", r"table:1: \$1 names a group"),
        ("/%s/ x\n" % ("a" * 1025), "table:1: a pattern of more than 1024"),
        ("if /a/\n/b/ c\n", "table: an if without endif"),
        ("endif\n", "table:1: endif without if"),
        ("if /a/ x\nendif\n", "table:1: an if takes no value"),
        ("if /a/\n" * 21, "table:21: more than 20 if"),
    ],
)
def test_wrong_patterns_name_file_and_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(TableError, match=says):
        table(tmp_path, text, "pcre")


def test_other_delimiter_and_escaped_delimiter(tmp_path: Path) -> None:
    found = table(tmp_path, "|a/b| bar\n/c\\/d/ slash\n", "pcre")
    assert (found.find("a/b"), found.find("c/d")) == ("bar", "slash")


def test_cidr_table(tmp_path: Path) -> None:
    found = table(
        tmp_path,
        "192.0.2.1 one\n192.0.2.0/24 $net\n[2001:db8::]/32 six\n!10.0.0.0/8 not ten\n10.0.0.0/8 ten\n",
        "cidr",
    )
    assert found.find("192.0.2.1") == "one"
    assert found.find("::ffff:192.0.2.9") == "$net"
    assert found.find("2001:db8::7") == "six"
    assert found.find("10.1.2.3") == "ten"
    assert found.find("198.51.100.1") == "not ten"
    with pytest.raises(TableError, match=r"table:1: '192.0.2.1/24' has host bits set; write 192.0.2.0/24"):
        table(tmp_path, "192.0.2.1/24 x\n", "cidr")


# ---- reading again


def replace(path: Path, text: str) -> None:
    """As a careful program does: a new file, renamed into place."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


def test_changed_file_is_read_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clock, path = ManualClock(), tmp_path / "table"
    path.write_text("a 1\n")
    tables = Tables.open(("texthash:table",), tmp_path, monotonic=clock.monotonic)
    replace(path, "a 2\n")
    assert tables.find("a") == "1", "not looked at more than once a second"
    clock.advance(1)
    assert tables.find("a") == "2"

    replace(path, "a\n")
    for _ in range(3):
        clock.advance(1)
        assert tables.find("a") == "2"
    path.unlink()
    for _ in range(3):
        clock.advance(1)
        assert tables.find("a") == "2"
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 2
    assert "table:1: no value" in warnings[0]
    assert "No such file" in warnings[1]

    replace(path, "a 3\n")
    for _ in range(2):  # the inode may be the one that was just freed
        clock.advance(1)
        tables.find("a")
    assert tables.find("a") == "3"
    assert "in order again" in caplog.messages[-1]


def test_file_written_in_place_is_taken_when_it_rests(tmp_path: Path) -> None:
    clock, path = ManualClock(), tmp_path / "table"
    path.write_text("a 1\nb 1\n")
    tables = Tables.open(("texthash:table",), tmp_path, monotonic=clock.monotonic)
    path.write_text("a 2\n")  # half of it
    clock.advance(1)
    assert tables.find("b") == "1"
    path.write_text("a 2\nb 2\n")
    os.utime(path, ns=(1, 1))
    clock.advance(1)
    assert tables.find("b") == "1"
    clock.advance(1)
    assert tables.find("b") == "2"


# ---- lists of domains


@pytest.mark.parametrize(
    ("names", "parents", "inside", "outside"),
    [
        (("example.com",), False, ("example.com", "EXAMPLE.com."), ("sub.example.com", "com", "badexample.com", "")),
        (("Example.com",), True, ("example.com", "a.b.example.com"), ("badexample.com", "com", "xexample.com")),
        ((".example.com",), False, ("a.example.com", "a.b.example.com"), ("example.com",)),
        (
            ("!it.example.com", "example.com"),
            True,
            ("example.com", "a.example.com"),
            ("it.example.com", "x.it.example.com"),
        ),
        (("example.com", "!it.example.com"), True, ("it.example.com",), ("example.org",)),
        (("inline:{a.example=1, .b.example=1}",), False, ("a.example", "x.b.example"), ("x.a.example", "b.example")),
        (("inline:{a.example=1}",), True, ("a.example", "x.a.example"), ("example",)),
        (("a.example", "!static:all"), False, ("a.example",), ("b.example",)),
        (("b.example", "!static:all", "a.example"), False, ("b.example",), ("a.example",)),
        (("!inline:{a.example=1}", "static:all"), True, ("b.example", "example"), ("a.example",)),
        (
            ("bücher.example",),
            False,
            ("bücher.example", "xn--bcher-kva.example", "BÜCHER.example"),
            ("bucher.example",),
        ),
        (("[192.0.2.1]", "localhost"), False, ("[192.0.2.1]", "localhost"), ("192.0.2.1",)),
        ((), True, (), ("example.com",)),
    ],
)
def test_domain_list(names: tuple[str, ...], parents: bool, inside: tuple[str, ...], outside: tuple[str, ...]) -> None:
    domains = DomainList(names, parents)
    assert [name for name in inside if name not in domains] == []
    assert [name for name in outside if name in domains] == []


def test_list_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock, path = ManualClock(), tmp_path / "domains"
    path.write_text("# ours\na.example, b.example\n  ! c.example\n./more\n")
    (tmp_path / "more").write_text("d.example\n")
    domains = DomainList(("./domains", "c.example"), False, tmp_path, monotonic=clock.monotonic)
    found = [name for name in ("a.example", "b.example", "c.example", "d.example") if name in domains]
    assert found == ["a.example", "b.example", "d.example"]

    replace(tmp_path / "more", "e.example\n")
    clock.advance(1)
    assert "e.example" in domains
    assert "d.example" not in domains
    replace(path, "*.example\n")
    for _ in range(3):
        clock.advance(1)
        assert "a.example" in domains
    assert len(caplog.messages) == 1
    assert f"{path}:1: '*.example': expected '.example'" in caplog.text
    replace(path, "f.example\n")
    clock.advance(1)
    assert "f.example" in domains


def test_list_file_that_includes_itself(tmp_path: Path) -> None:
    (tmp_path / "loop").write_text("./loop\n")
    with pytest.raises(TableError, match="more than 8 list files"):
        DomainList(("./loop",), False, tmp_path)


@pytest.mark.parametrize(
    ("entry", "hint"),
    [
        ("user@example.com", "expected a domain: 'example.com'"),
        ("*.example.com", r"expected '\.example\.com'"),
        ("smtp:example", "no table type 'smtp'"),
        ("a..b", "is no domain name"),
        ("!", "nothing to match"),
        ("/nowhere/domains", "No such file"),
    ],
)
def test_wrong_domain_is_explained(entry: str, hint: str) -> None:
    with pytest.raises(TableError, match=hint):
        DomainList((entry,), True)


# ---- lists of networks


@pytest.mark.parametrize(
    ("names", "inside", "outside"),
    [
        (("127.0.0.0/8", "::1/128"), ("127.0.0.1", "::1", "::ffff:127.9.9.9"), ("128.0.0.1", "::2", "unknown", "")),
        (("[2001:db8::]/32", "[fe80::1]"), ("2001:db8:1::1", "fe80::1%eth0"), ("fe80::2", "2001:db9::")),
        (("[::ffff:192.0.2.0]/120",), ("192.0.2.7", "::ffff:192.0.2.7"), ("192.0.3.1", "::192.0.2.7")),
        (("!192.168.7.9", "192.168.7.0/24"), ("192.168.7.1",), ("192.168.7.9", "192.168.8.1")),
        (("0.0.0.0/0",), ("1.2.3.4",), ("::1",)),
        (("inline:{192.0.2.1=ok}", "cdb:1::"), ("192.0.2.1", "cdb:1::"), ("192.0.2.2",)),
        (("fd00:1::/48",), ("fd00:1::5",), ("fd00:2::5",)),
        ((), (), ("127.0.0.1",)),
    ],
)
def test_network_list(names: tuple[str, ...], inside: tuple[str, ...], outside: tuple[str, ...]) -> None:
    networks = NetworkList(names)
    assert [address for address in inside if address not in networks] == []
    assert [address for address in outside if address in networks] == []


def test_network_list_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "networks").write_text("10.0.0.0/8\n!192.0.2.9 192.0.2.0/24\n")
    (tmp_path / "cidr").write_text("198.51.100.0/24 yes\n")
    networks = NetworkList((str(tmp_path / "networks"), f"cidr:{tmp_path}/cidr"))
    assert [a in networks for a in ("10.9.9.9", "192.0.2.8", "192.0.2.9", "198.51.100.4")] == [True, True, False, True]


@pytest.mark.parametrize(
    ("entry", "hint"),
    [
        ("192.168.7.1/24", "has host bits set; write 192.168.7.0/24"),
        ("mail.example.com", "is no address and no network"),
        ("192.168.7", "expected 192.0.2.0/24"),
        ("mysql:/x", "no table type 'mysql'"),
    ],
)
def test_wrong_network_is_explained(entry: str, hint: str) -> None:
    with pytest.raises(TableError, match=hint):
        NetworkList((entry,))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 255), st.integers(24, 32)), max_size=8), st.integers(0, 255))
def test_network_list_is_a_walk_in_order(entries: list[tuple[bool, int, int]], low: int) -> None:
    networks = [ipaddress.ip_network((0xC0000200 | value, length), strict=False) for _, value, length in entries]
    names = tuple(("" if want else "!") + str(net) for (want, _, _), net in zip(entries, networks, strict=True))
    address = ipaddress.ip_address(0xC0000200 | low)
    verdicts = [want for (want, _, _), net in zip(entries, networks, strict=True) if address in net]
    assert (str(address) in NetworkList(names)) == (verdicts[0] if verdicts else False)


# ---- names


@pytest.mark.parametrize(
    ("domain", "ascii"),
    [
        ("Example.COM.", "example.com"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER。example", "xn--bcher-kva.example"),
        ("straße.example", "xn--strae-oqa.example"),
        ("ΒΌΛΟΣ.example", "xn--nxasmq6b.example"),
        ("βόλος.example", "xn--nxasmm1c.example"),
        ("ｅｘａｍｐｌｅ.com", "example.com"),
    ],
)
def test_ascii_domain(domain: str, ascii: str) -> None:
    assert ascii_domain(domain) == ascii


@pytest.mark.parametrize("domain", ["a\u200db.example", "ü" * 70 + ".example", "\u3000.example", "a／b.example"])
def test_no_domain(domain: str) -> None:
    with pytest.raises(ValueError, match=r"joiner|no domain label"):
        ascii_domain(domain)
