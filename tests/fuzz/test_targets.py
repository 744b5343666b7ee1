"""Every target of `make fuzz`: its corpus replayed, and a bounded number of mutations of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.seeds import bounded, mutations, names, seeds
from tests.fuzz.targets import NAMES, target

CORPORA = {name: seeds(name) for name in NAMES}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        pytest.param(name, data, id=f"{name}-{file}")
        for name in NAMES
        for file, data in zip(names(name), CORPORA[name], strict=True)
    ],
)
def test_corpus(name: str, data: bytes) -> None:
    target(name).judge(data)


@pytest.mark.parametrize(
    ("name", "place"), [(name, place) for name in NAMES for place in range(len(getattr(target(name), "LARGE", ())))]
)
def test_large(name: str, place: int) -> None:
    target(name).judge(target(name).LARGE[place])


@pytest.mark.parametrize("name", NAMES)
@bounded()
@given(data=st.data())
def test_mutations(name: str, data: st.DataObject) -> None:
    words = st.lists(st.sampled_from(target(name).WORDS), max_size=8).map(b"".join)
    target(name).judge(data.draw(mutations(CORPORA[name]) | words))
