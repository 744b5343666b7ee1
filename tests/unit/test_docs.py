"""The documents tell the truth: their configurations load, their commands exist, their tables are the code's."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from edgemail.boot import cli, config
from edgemail.settings import PARAMETERS
from tests import reference

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")

# What a shell has beside our own commands.
SYSTEM = ("cat", "chmod", "curl", "egrep", "grep", "journalctl", "openssl", "printf", "python3", "systemctl", "useradd")


def blocks(kind: str) -> list[tuple[str, str]]:
    found = []
    for path in DOCUMENTS:
        text = path.read_text()
        for match in BLOCK.finditer(text):
            if match[1] == kind:
                line = text.count("\n", 0, match.start()) + 1
                found.append((f"{path.relative_to(ROOT)}:{line}", match[2]))
    return found


TOML = blocks("toml")
CONSOLE = blocks("console")


@pytest.mark.parametrize(("where", "text"), TOML, ids=[where for where, _ in TOML])
def test_every_configuration_loads(where: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "edgemail.toml"
    path.write_text(text)
    config.load(path, files=False)


@pytest.mark.parametrize(("where", "text"), CONSOLE, ids=[where for where, _ in CONSOLE])
def test_every_command_exists(where: str, text: str) -> None:
    for line in text.splitlines():
        if line.startswith("$ "):
            for part in re.split(r" \| | && ", line[2:]):
                known(shlex.split(part))


def known(words: list[str]) -> None:
    while "=" in words[0]:
        words = words[1:]
    program = Path(words[0]).name
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in targets, words
    elif program == "edgemail":
        try:
            cli.parser().parse_args(words[1:])
        except SystemExit:
            pytest.fail(f"edgemail does not take {words[1:]}")
    else:
        scripts = re.findall(r'^(\w+) = "edgemail\.boot', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
        assert program in (*scripts, *SYSTEM), words


@pytest.mark.parametrize(("path", "name"), [(path, name) for path, name, _ in reference.GENERATED])
def test_the_generated_parts_are_what_the_code_says(path: Path, name: str) -> None:
    make = next(make for _, each, make in reference.GENERATED if each == name)
    text = path.read_text()
    assert reference.replaced(text, name, make()) == text, "run `make fmt`"


def test_every_parameter_is_in_the_table_once() -> None:
    listed = [name for _, names in reference.groups() for name in names]
    assert sorted(listed) == sorted(PARAMETERS)


def test_every_limit_is_read() -> None:
    assert reference.unread() == [], "a line of the form NAME: Final = value  # limit: what it bounds"
    assert len(list(reference.scan())) > 10


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere_and_lines_fit(path: Path) -> None:
    text = path.read_text()
    for target in LINK.findall(text):
        assert (path.parent / target).exists(), f"{path.name}: {target}"
    for number, line in enumerate(text.splitlines(), 1):
        assert len(line) <= 160 or line.startswith(("|", "<!--", "    ")), f"{path.name}:{number} is too long"


def test_profiles_and_their_documents_agree() -> None:
    from edgemail.boot.profiles import PROFILES

    text = (ROOT / "docs" / "configuration.md").read_text()
    table = text.partition("| profile | for |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(PROFILES)
