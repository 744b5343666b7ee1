"""Values: compared, hashed, shown and changed by their fields."""

from __future__ import annotations

from dataclasses import field

import pytest

from edgemail.envelope import Address, Envelope, Recipient
from edgemail.value import changed, value

MAIL = Envelope(1, Address("a", "example.com"), (Recipient(Address("b", "example.net")),))


@value
class Alone:
    number: int


@value(kw_only=True)
class Named:
    a: int
    b: str = ""
    c: list[int] = field(default_factory=list, compare=False)


def test_a_changed_value_is_another_one() -> None:
    other = changed(MAIL, attempts=3, hold=True)
    assert (other.attempts, other.hold, MAIL.attempts, MAIL.hold) == (3, True, 0, False)
    assert changed(other, attempts=0, hold=False) == MAIL
    assert other.recipients is MAIL.recipients


def test_of_one_field_and_by_keyword() -> None:
    assert changed(Alone(1), number=2) == Alone(2)
    assert changed(Named(a=1, c=[1]), b="x") == Named(a=1, b="x")
    assert changed(Named(a=1, c=[1]), b="x").c == [1]


def test_a_field_that_is_none_of_its() -> None:
    with pytest.raises(TypeError):
        changed(MAIL, nothing=1)  # type: ignore[call-arg]
