"""The configurations in docs/examples: they load without a warning, are named in the documents, do what these say."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgemail.boot import advice, config
from edgemail.boot.provision import preview
from edgemail.clock import ManualClock
from edgemail.envelope import NULL_SENDER, Address, Envelope, Recipient
from edgemail.relay.queue.keep import Keep
from edgemail.relay.queue.link import Links
from edgemail.relay.send.hop import provider
from edgemail.relay.send.route import Router
from edgemail.settings import Configuration

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.toml"))


def example(name: str) -> Configuration:
    return config.load(ROOT / "docs" / "examples" / f"{name}.toml", files=False)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_right_and_somebody_is_told_of_it(path: Path) -> None:
    loaded = config.load(path, files=False)
    found = [(name, mistake.message) for name, mistake in advice.of_configuration(loaded)]
    assert [one for one in found if one[0] != "mail_owner"] == []
    assert f"examples/{path.name}" in (ROOT / "docs" / "operations.md").read_text()
    assert path.read_text().startswith("# ")


def test_there_are_the_four_sites() -> None:
    assert [path.stem for path in EXAMPLES] == ["branch", "office", "provider", "ship"]


def test_the_ship() -> None:
    found = example("ship")
    clock = ManualClock()
    links = Links(clock, found)
    keep = Keep(found, links)
    assert "link quay is down" in keep.shut("smtp")
    links.observe("lte", True)
    assert keep.kept("smtp", 1_000_000, asked=False) is None
    large = keep.kept("smtp", 6_000_000, asked=False)
    assert large is not None
    assert "waits for a better link" in large.reason
    links.observe("quay", True)
    assert keep.kept("smtp", 20_000_000, asked=False) is None
    assert [links.begin("smtp", 1) is None for _ in range(100)] == [False] * 100
    ups, bridge, scanner = (Address(name, "nordwind.example") for name in ("ups", "bridge", "scanner"))
    ranks = [keep.rank(Envelope(1, sender, (Recipient(bridge),))) for sender in (ups, bridge, scanner)]
    assert ranks == sorted(set(ranks))


@pytest.mark.parametrize(("name", "link"), [("office", "dsl"), ("branch", "wan")])
def test_a_site_with_one_line(name: str, link: str) -> None:
    found = example(name)
    links = Links(ManualClock(), found)
    keep = Keep(found, links)
    assert keep.shut("smtp").startswith(f"link {link} is down")
    links.observe(link, True)
    assert keep.shut("smtp") == ""


def test_the_branch_calls_its_hub() -> None:
    found = example("branch")
    router, keep = Router(found), Keep(found, None)
    (link,) = found.links
    assert provider(link.atrn, 366) == provider(found.settings.relayhost[0].replace("[", "").replace("]", ""), 25)
    assert (link.atrn_domains, link.ask_interval, link.on_up) == (("branch7.example",), 600.0, ())
    inner = router.route_address(Address("bob", "branch7.example"))
    assert (inner.transport, inner.hops) == ("inner", ("[192.168.30.10]",))
    assert keep.kept(inner.transport, 1, asked=False) is None
    outer = router.route_address(Address("bob", "else.example"))
    assert outer.hops == ("[hub.corp.example]:366",)
    assert keep.kept(outer.transport, 1, asked=False) is not None, "it waits for the call"


def test_the_provider() -> None:
    found = example("provider")
    router = Router(found)
    keep = Keep(found, None)
    recipients = [Recipient(Address("a", domain)) for domain in ("customer.example", "harbour.example", "else.example")]
    envelope = Envelope(1, NULL_SENDER, tuple(recipients))
    routes = [router.route(envelope, recipient)[0] for recipient in recipients]
    assert [route.hops for route in routes] == [("customer.example",), ("[mail.harbour.example]",), ("else.example",)]
    kept = [keep.kept(route.transport, 1, asked=False) is not None for route in routes]
    assert kept == [True, True, False]
    assert not any(keep.kept(route.transport, 1, asked=True) for route in routes)


def test_the_card(tmp_path: Path) -> None:
    """What a box would make of the example for the boot partition."""
    path = ROOT / "docs" / "examples" / "appliance" / "edgemail.toml"
    found = preview(path, tmp_path)
    assert (found.state, found.problems) == ("applied", ())
    assert found.notes == ["Moved to the data partition and blanked here: smtp_sasl_password_maps, token"]
    loaded = config.load(tmp_path / "edgemail.toml", files=False)
    assert loaded.network.address == ("192.168.7.2/24",)
    assert "examples/appliance/edgemail.toml" in (ROOT / "docs" / "appliance.md").read_text()
    assert path.read_text().startswith("# ")
