"""Who may know whom, how long a module may grow, and what may not stand in the repository. The rules are data."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "edgemail"
MAX_LINES = 450

# What the modules under a prefix may import of edgemail itself; the longest prefix that fits a module counts. Every
# module may also import from its own package and the leaf values, whose names have no dot below `edgemail.`.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "edgemail": (),
    "edgemail.spool": (),
    "edgemail.health": (),
    "edgemail.relay.wire": (),
    "edgemail.relay.receive": ("edgemail.relay.wire", "edgemail.spool"),
    "edgemail.relay.queue": ("edgemail.spool",),
    "edgemail.relay.send": ("edgemail.relay.wire", "edgemail.spool"),
    "edgemail.boot": ("edgemail.relay", "edgemail.spool", "edgemail.health"),
}

# Packages that only these modules (or what is below them) may import.
ONLY_IN: dict[str, tuple[str, ...]] = {
    "lmdb": ("edgemail.spool",),
    "aiosmtpd": ("edgemail.relay.receive.connection",),
    "dns": ("edgemail.relay.send.resolve", "edgemail.relay.receive.policy"),
    "cryptography": ("edgemail.boot.bundle", "edgemail.boot.certs"),
    "psutil": ("edgemail.health.guard", "edgemail.boot.serve"),
    "argparse": (
        "edgemail.boot.box_command",
        "edgemail.boot.cli",
        "edgemail.boot.queue_command",
        "edgemail.boot.spool_command",
    ),
    "email": (),
    "smtplib": (),
    "requests": (),
}
# Of those, the ones that are imported on first use, inside a function.
LAZY = ("dns", "cryptography", "psutil")

# What these modules must not touch, for they do no IO.
NEVER_IN: dict[str, tuple[str, ...]] = {
    "edgemail.relay.wire": ("asyncio", "ssl", "logging", "socket", "select", "threading"),
    "edgemail.reply": ("asyncio", "ssl", "logging"),
    "edgemail.envelope": ("asyncio", "ssl", "logging"),
    "edgemail.health": ("aiosmtpd", "lmdb"),
}

# Third-party packages at all.
DEPENDENCIES = ("lmdb", "aiosmtpd", "dns", "cryptography", "psutil")

MARKS = re.compile("|".join(("TO" + "DO", "FIX" + "ME", "XX" + r"X\b", r"\bHACK:")))
# Names of documents and places that a reader of the repository does not have.
STRANGE = re.compile(r"\brows? [A-Z]\d|/(?:home|root)/\w|\bissue #?\d")


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Every imported module by its full name, and whether that is at the top of the module."""
    tree = ast.parse(path.read_text())
    inside = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.walk(node)
    }
    typing_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        top = id(node) not in inside and id(node) not in typing_only
        if isinstance(node, ast.Import):
            yield from ((name.name, top) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            module = node.module or ""
            yield from ((f"{module}.{name.name}" if below(module, name.name) else module, top) for name in node.names)


def below(module: str, name: str) -> bool:
    """Whether `from module import name` names a module of ours."""
    path = ROOT.joinpath(*module.split("."))
    return path.is_dir() and ((path / f"{name}.py").exists() or (path / name).is_dir())


def within(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(prefix + ".")


def leaf(module: str) -> bool:
    return module.count(".") <= 1 and (module == "edgemail" or PACKAGE.joinpath(module.split(".")[1] + ".py").exists())


ALL = list(modules())


@pytest.mark.parametrize(("module", "path"), ALL, ids=[name for name, _ in ALL])
def test_who_may_know_whom(module: str, path: Path) -> None:
    home = max((prefix for prefix in MAY_IMPORT if within(module, prefix)), key=len)
    for name, top in imports(path):
        package = name.partition(".")[0]
        if package == "edgemail":
            allowed = leaf(name) or any(within(name, prefix) for prefix in MAY_IMPORT[home])
            assert allowed or (home != "edgemail" and within(name, home)), f"{module} imports {name}"
        elif package in ONLY_IN:
            assert any(within(module, place) for place in ONLY_IN[package]), f"{module} imports {name}"
            assert not (top and package in LAZY), f"{module} imports {name} at its top"
        else:
            assert package in sys.stdlib_module_names, f"{module} imports {name}"
        for place, denied in NEVER_IN.items():
            assert not (within(module, place) and package in denied), f"{module} imports {name}"
        assert package not in DEPENDENCIES or not leaf(module), f"{module} is a leaf and imports {name}"


@pytest.mark.parametrize(("module", "path"), ALL, ids=[name for name, _ in ALL])
def test_a_module_has_one_thing_in_it_and_says_what(module: str, path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_LINES, f"{module} has two things in it: split it"
    assert ast.get_docstring(ast.parse(text)), f"{module} does not say what it owns"


def kept() -> list[Path]:
    """Every text file that git keeps or would keep."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
        text=True,
    ).stdout.split("\0")
    paths = [ROOT / name for name in listed if name and "/corpus/" not in name]
    return [path for path in paths if path.is_file() and b"\0" not in path.read_bytes()[:4096]]


def test_nothing_is_left_for_later_and_nothing_points_outside() -> None:
    found = []
    for path in kept():
        if path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            matches = (pattern.search(line) for pattern in (MARKS, STRANGE))
            found += [f"{path.relative_to(ROOT)}:{number}: {match[0]}" for match in matches if match]
    assert not found, "\n".join(found)


def test_documents_that_are_named_exist() -> None:
    names = {path.name for path in kept()}
    found = []
    for path in kept():
        if path.suffix not in (".py", ".md", ".toml") and path.name != "Makefile":
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            found += [
                f"{path.relative_to(ROOT)}:{number}: {word}"
                for word in re.findall(r"[\w-]+\.md\b", line)
                if word not in names
            ]
    assert not found, "\n".join(found)


def test_the_rules_are_about_modules_that_exist() -> None:
    """A module that is renamed must not leave its rule behind."""
    known = {name for name, _ in ALL}
    for place in (*MAY_IMPORT, *NEVER_IN, *(place for places in ONLY_IN.values() for place in places)):
        assert place in known, place


def test_the_rules_can_be_broken(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text("import dns.resolver\nfrom edgemail.relay import send\n\ndef f():\n    import lmdb\n")
    assert list(imports(path)) == [("dns.resolver", True), ("edgemail.relay.send", True), ("lmdb", False)]
