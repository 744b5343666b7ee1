"""Sockets that keep to an uplink."""

from __future__ import annotations

import errno
import socket

import pytest

from edgemail.via import Via, tied

LO = Via("a", "lo", ("127.0.0.2", "::1"))


def device(found: socket.socket) -> bytes:
    return found.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0")


@pytest.mark.parametrize(
    ("family", "address", "own"), [(socket.AF_INET, "192.0.2.1", "127.0.0.2"), (socket.AF_INET6, "2001:db8::1", "::1")]
)
def test_a_socket_is_tied_to_the_interface_and_its_only_address(
    family: socket.AddressFamily, address: str, own: str
) -> None:
    found = tied(family, address, LO)
    assert found is not None
    with found:
        assert device(found) == b"lo"
        assert found.getsockname()[0] == own


def test_of_several_addresses_the_system_chooses() -> None:
    found = tied(socket.AF_INET, "192.0.2.1", Via("a", "lo", ("127.0.0.2", "127.0.0.3")))
    assert found is not None
    with found:
        assert (device(found), found.getsockname()[0]) == (b"lo", "0.0.0.0")


def test_what_is_on_this_box_and_what_names_no_link_is_reached_as_ever() -> None:
    assert tied(socket.AF_INET, "127.0.0.1", LO) is None
    assert tied(socket.AF_INET6, "::1", LO) is None
    assert tied(socket.AF_INET, "192.0.2.1", None) is None


def test_a_link_without_an_address_of_the_family_says_so() -> None:
    with pytest.raises(OSError, match="link a has no IPv6 address") as caught:
        tied(socket.AF_INET6, "2001:db8::1", Via("a", "lo", ("127.0.0.2",)))
    assert caught.value.errno == errno.EADDRNOTAVAIL


def test_an_interface_that_is_gone_leaves_no_socket_open() -> None:
    with pytest.raises(OSError, match="No such device"):
        tied(socket.AF_INET, "192.0.2.1", Via("a", "nothing0", ("127.0.0.2",)))


def test_where_tying_is_not_permitted_the_address_has_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(socket.socket):
        def setsockopt(self, *given: object) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(socket, "socket", Refusing)
    found = tied(socket.AF_INET, "192.0.2.1", Via("a", "lo", ("127.0.0.2", "127.0.0.3")))
    assert found is not None
    with found:
        assert found.getsockname()[0] == "127.0.0.2"
