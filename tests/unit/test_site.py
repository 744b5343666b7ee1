"""The tables of the system image: [network], [time], [update]."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgemail.boot import config, show
from edgemail.errors import ConfigurationError
from edgemail.settings import Configuration, Network, TimeServers, Update

HEAD = 'myhostname = "gw.example.com"\n'
KEY = "0123456789abcdef" * 4


def loaded(text: str, tmp_path: Path) -> Configuration:
    path = tmp_path / "edgemail.toml"
    path.write_text(HEAD + text)
    return config.load(path, files=False)


def test_without_them_the_box_asks_dhcp(tmp_path: Path) -> None:
    found = loaded("", tmp_path)
    assert (found.network, found.time, found.update) == (Network(), TimeServers(), Update())
    assert found.network.address == ("dhcp",)


def test_all_of_them(tmp_path: Path) -> None:
    text = f"""
[network]
interface = "eth1"
vlan = 7
address = ["192.0.2.7/24", "2001:db8::7/64"]
gateway = ["192.0.2.1", "fe80::1"]
nameservers = "192.0.2.53"
ipv6 = "off"
[time]
servers = ["ntp.example.com", "192.0.2.123"]
[update]
url = "https://updates.example.com/edgemail.bundle"
keys = ["{KEY.upper()}"]
check_interval = "12h"
windows = ["Sun 03:00-04:00"]
ca_file = "roots.pem"
"""
    found = loaded(text, tmp_path)
    addresses = ("192.0.2.7/24", "2001:db8::7/64")
    assert found.network == Network("eth1", 7, addresses, ("192.0.2.1", "fe80::1"), ("192.0.2.53",), "off")
    assert found.time.servers == ("ntp.example.com", "192.0.2.123")
    roots = str(tmp_path / "roots.pem")
    url = "https://updates.example.com/edgemail.bundle"
    assert found.update == Update(url, (KEY,), 43_200.0, ("Sun 03:00-04:00",), roots)
    again = tmp_path / "again.toml"
    again.write_text(show.text(found))
    assert config.load(again, files=False).network == found.network
    assert config.load(again, files=False).update == found.update
    assert config.load(again, files=False).time == found.time


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ("network = 1", "network", "expected a table"),
        ("[network]\nadress = 'dhcp'", "network.adress", "unknown parameter"),
        ("[network]\naddress = '192.0.2.7'", "network.address", "no prefix"),
        ("[network]\naddress = '192.0.2.0/24'", "network.address", "network itself"),
        ("[network]\naddress = '192.0.2.300/24'", "network.address", "not an address"),
        ("[network]\naddress = []", "network.address", "0 entries"),
        ("[network]\ngateway = '192.0.2.1'", "network.gateway", "without an address"),
        ("[network]\naddress = '192.0.2.7/24'\ngateway = '192.0.3.1'", "network.gateway", "in the network of no"),
        ("[network]\ngateway = 'router'", "network.gateway", "not an address"),
        ("[network]\nvlan = 4095", "network.vlan", "VLAN"),
        ("[network]\ninterface = 'eth 0'", "network.interface", "name of an interface"),
        ("[network]\nipv6 = true", "network.ipv6", "not one of"),
        ("[time]\nservers = ['ntp example']", "time.servers", "ntp example"),
        ("[update]\nurl = 'http://updates.example.com/x'", "update.url", "https"),
        ("[update]\nurl = 'https://a:b@updates.example.com/x'", "update.url", "names a user"),
        ("[update]\nurl = 'https://updates.example.com:0/x'", "update.url", "port 0"),
        ("[update]\nkeys = ['abc']", "update.keys", "not a key"),
        ("[update]\ncheck_interval = '1s'", "update.check_interval", "out of bounds"),
        ("[update]\nwindows = ['Sun 03:00-04:00']", "update.windows", "without url"),
        ("[update]\nurl = 'https://a.example/x'\nwindows = ['always']", "update.windows", "always"),
    ],
)
def test_mistakes(text: str, key: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as raised:
        loaded(text, tmp_path)
    assert [(one.key, one.line > 1) for one in raised.value.problems] == [(key, True)]
    assert message in raised.value.problems[0].message


def test_roots_that_are_not_there(tmp_path: Path) -> None:
    path = tmp_path / "edgemail.toml"
    path.write_text(f'{HEAD}queue_directory = "{tmp_path}"\n[update]\nca_file = "none.pem"\n')
    with pytest.raises(ConfigurationError) as raised:
        config.load(path)
    assert [one.message for one in raised.value.problems] == [f"{tmp_path}/none.pem: no such file"]
