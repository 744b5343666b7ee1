"""A power cut at any instant while a configuration comes into force: the one before or the one after, whole.

And whatever is left of it, the next start brings the new one into force, with every secret, also where the cut came
while the secrets on the boot partition were blanked. EDGEMAIL_CRASH_STATES asks for more states.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgemail.boot import config, provision
from edgemail.boot.provision import Site
from tests.crash.tree import Look, Watch, cuts, lay_out

WANTED = int(os.environ.get("EDGEMAIL_CRASH_STATES", "400")) // 4
SEED = int(os.environ.get("EDGEMAIL_CRASH_SEED", "20261"))
FILE = "edgemail.toml"


def text(number: int) -> str:
    """A configuration with two secrets, over several sectors."""
    filler = "".join(f"# line {line} of what the person who wrote it wanted to remember\n" for line in range(20))
    return f"""\
myhostname = "gw{number}.example.com"
mynetworks = ["127.0.0.0/8", "192.168.7.0/24"]
relayhost  = "[smtp.isp.example]:587"
smtp_sasl_auth_enable   = true
smtp_sasl_password_maps = [{{ "[smtp.isp.example]:587" = "box7:pass word {number}" }}]
smtp_tls_security_level = "encrypt"
{filler}
[secrets]
token = "open sesame {number}"

[health]
address    = "*"
token_file = "secrets/token"
"""


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where inodes have numbers of their own: no number is given twice."""
    path = Path(f"/dev/shm/edgemail-configuration-{os.getpid()}")
    path.mkdir()
    monkeypatch.setitem(provision.TOP, "queue_directory", f'"{path}/spool"')
    monkeypatch.setitem(provision.TOP, "mail_owner", '"root"')
    yield path
    shutil.rmtree(path)


def recorded(root: Path, first: bool, *, flushes: bool = True) -> list[Look]:
    """A configuration comes into force: the first one, or in the place of another."""
    boot, site = root / "boot", Site(root / "edgemail")
    boot.mkdir(parents=True)
    if not first:
        (boot / FILE).write_text(text(0))
        assert site.provision(boot).state == "applied"
    (boot / FILE).write_text(text(1))
    watch = Watch(root)

    def act() -> None:
        assert site.provision(boot).state == "applied"

    return watch.run(act, flushes=flushes)


def in_force(site: Site) -> int:
    """The number of the configuration that a start would run with, its secrets with it; -1: none."""
    if not site.configured():
        return -1
    found = config.load(site.current / FILE)
    number = int(found.settings.myhostname[2])
    secrets = site.stored()
    assert secrets.pop("token").strip() == f"open sesame {number}", "the token of another configuration"
    assert [word for word in secrets.values() if f"pass word {number}" in word], "the password of another one"
    assert site.facts() is not None
    return number


def judge(root: Path, first: bool, last: bool) -> list[str]:
    """What is wrong with what a cut left. `last`: it was told that it is in force."""
    site = Site(root / "edgemail")
    try:
        found = in_force(site)
        if found not in ((1,) if last else (-1, 1) if first else (0, 1)):
            return [f"{found} is in force"]
        again = site.provision(root / "boot")
        if again.state not in ("applied", "unchanged"):
            return [f"the next start finds it {again.state}: {again.problems}"]
        if in_force(site) != 1:
            return ["the next start does not bring it into force"]
    except Exception as error:
        return [repr(error)]
    left = (root / "boot" / FILE).read_text()
    return [] if "sesame" not in left and "pass word" not in left else ["secrets are left on the boot partition"]


def faults(place: Path, looks: list[Look], root: Path, first: bool, most: int) -> tuple[int, list[str]]:
    wrong: list[str] = []
    judged = 0
    rng = random.Random(SEED)
    inode = root.stat().st_ino
    for number, names, contents in cuts(looks, rng, max(3, -(-most * 2 // len(looks)))):
        lay_out(place / "state", inode, names, contents)
        wrong += [f"look {number}: {one}" for one in judge(place / "state", first, number == len(looks) - 1)]
        judged += 1
    return judged, wrong


@pytest.mark.parametrize("first", [True, False], ids=["first", "another"])
def test_no_cut_leaves_the_box_without_its_configuration(place: Path, first: bool) -> None:
    looks = recorded(place / "run", first)
    judged, wrong = faults(place, looks, place / "run", first, WANTED // 2)
    assert not wrong, "\n".join(wrong[:10])
    print(f"{judged} states, {len(looks)} looks")
    assert judged >= min(WANTED // 2, 200)  # there are some hundreds, and no more


def test_the_check_sees_flushes_that_do_nothing(place: Path) -> None:
    looks = recorded(place / "run", False, flushes=False)
    assert faults(place, looks, place / "run", False, 200)[1]
