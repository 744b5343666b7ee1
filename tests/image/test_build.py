"""What is built: the same each time, small, whole, owned, and nothing on it that is not used."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import stat
import struct
import subprocess
from pathlib import Path

import pytest

from edgemail.boot import bootstate
from image import build, card, checks, debian, tools
from image.definition import BOOT_SIZE, BOOT_START, IMAGE_XZ_LIMIT, SLOT_SIZE
from image.root import Root, prune, rules

SHELLS = ("getty", "login", "sshd", "dropbear", "telnetd", "su", "passwd", "vi")
FOREIGN = ("gcc", "cc", "ld", "pip", "pip3", "apt-get", "dpkg", "make", "git", "perl")


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_two_builds_are_the_same(made: build.Build, tmp_path: Path) -> None:
    """Another directory, another time, the same bytes: card, slot, manifest and SBOM."""
    again = dataclasses.replace(made, work=tmp_path / "work", out=tmp_path / "out", stages=[], xz=False)
    build.run(again)
    for suffix in ("img", "slot", "bundle", "manifest.json", "sbom.json"):
        name = f"{made.name}.{suffix}"
        assert digest(made.out / name) == digest(again.out / name), name


def test_size(made: build.Build, image: Path, tmp_path: Path) -> None:
    packed = image.with_suffix(".img.xz")
    if not packed.exists() or packed.stat().st_mtime < image.stat().st_mtime:
        build.pack(made, tools.tools())
    assert packed.stat().st_size <= IMAGE_XZ_LIMIT
    assert (made.out / f"{made.name}.slot").stat().st_size <= SLOT_SIZE
    with (tmp_path / "unpacked").open("wb") as file:
        command = tools.tools().command("xz", "-dc", packed)
        subprocess.run(command, stdout=file, env=tools.tools().environment(), check=True)
    assert digest(tmp_path / "unpacked") == digest(image)


def test_sums_are_of_the_files(made: build.Build) -> None:
    found = sorted(made.out.glob(f"{made.name}.*.sha256"))
    assert {path.name.removeprefix(f"{made.name}.") for path in found} >= {"img.sha256", "slot.sha256", "bundle.sha256"}
    for path in found:
        told, _, name = path.read_text().strip().partition("  ")
        assert digest(made.out / name) == told


def test_table_and_boot_state(image: Path) -> None:
    with image.open("rb") as file:
        first = file.read(512)
        file.seek(bootstate.PRIMARY)
        sectors = [file.read(512), file.read(512)]
    rows = [struct.unpack_from("<B3sB3sII", first, 446 + 16 * number) for number in range(4)]
    assert [(row[4] * 512, row[5] * 512) for row in rows] == [
        (BOOT_START, BOOT_SIZE),
        (card.SLOT_A, SLOT_SIZE),
        (card.SLOT_B, SLOT_SIZE),
        (0, 0),
    ]
    assert struct.unpack_from("<I", first, 440) == (card.SIGNATURE,)
    for sector in sectors:
        state = bootstate.BootState.of(sector)
        assert (state.order, state.left["A"], state.left["B"]) == (("A",), 3, 0)


def test_a_slot_is_what_its_list_says(made: build.Build, tmp_path: Path) -> None:
    content = made.out / f"{made.name}.slot"
    whole = tmp_path / "slot"
    whole.write_bytes(content.read_bytes().ljust(SLOT_SIZE, b"\0"))
    tools.tools().run("mcopy", "-i", whole, "::*", tmp_path)
    listed = json.loads((tmp_path / "slot.json").read_text())
    assert set(listed["files"]) == {"kernel.gz", "initrd", "root.img", "verity.env"}
    for name, told in listed["files"].items():
        assert digest(tmp_path / name) == told, name
    words = dict(line.split("=") for line in (tmp_path / "verity.env").read_text().split())
    root = tmp_path / "root.img"
    said = tools.tools().run(
        "veritysetup", "verify", root, root, words["ROOT_HASH"], "--no-superblock", f"--salt={words['SALT']}",
        f"--hash-offset={int(words['DATA_BLOCKS']) * 4096}", f"--data-blocks={words['DATA_BLOCKS']}",
    )  # fmt: skip
    assert "failed" not in said


def test_every_file_has_an_owner_and_a_licence(made: build.Build) -> None:
    listed = json.loads((made.out / f"{made.name}.manifest.json").read_text())
    owners = {entry["owner"] for entry in listed["files"].values()} | set(listed["initramfs"].values())
    assert owners <= {*listed["packages"], "edgemail"}
    for name in listed["packages"]:
        own = f"/usr/share/doc/{name}"
        own = str(Path(own).parent / listed["files"].get(own, {}).get("link", name))
        assert f"{own}/copyright" in listed["files"], f"{name}: its licence is not there"
    assert any(path.startswith("/usr/share/common-licenses/") for path in listed["files"])


def test_the_list_of_materials_names_all(made: build.Build) -> None:
    listed = json.loads((made.out / f"{made.name}.manifest.json").read_text())
    materials = json.loads((made.out / f"{made.name}.sbom.json").read_text())
    assert materials["bomFormat"] == "CycloneDX"
    named = {part["name"]: part for part in materials["components"]}
    assert set(named) == {*listed["packages"], "edgemail"}
    assert all(part["hashes"][0]["content"] for name, part in named.items() if name != "edgemail")


def test_nobody_can_log_in_and_nothing_is_built_there(made: build.Build) -> None:
    listed = json.loads((made.out / f"{made.name}.manifest.json").read_text())
    names = {Path(path).name for path in listed["files"] if Path(path).parent.name in ("bin", "sbin")}
    assert not names & {*SHELLS, *FOREIGN}
    for line in (made.work / "root/etc/passwd").read_text().splitlines():
        fields = line.split(":")
        assert fields[1] == "*" and fields[6] == "/nonexistent", line
    assert "getty" not in (made.work / "root/etc/inittab").read_text()
    assert not [path for path in listed["files"] if path.endswith(".py")], "sources"


def test_no_secret_stands_in_it(made: build.Build) -> None:
    for path in (made.work / "root").rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert b"PRIVATE KEY-----\nM" not in path.read_bytes(), path


def test_every_module_of_the_relay_loads(made: build.Build) -> None:
    """With the image's own Python and libraries, under user-mode emulation."""
    tree = made.work / "root"
    site = tree / "usr/lib/python3/dist-packages"
    names = sorted(
        ".".join(path.relative_to(site).with_suffix("").parts).removesuffix(".__init__")
        for path in (site / "edgemail").rglob("*.pyc")
    )
    assert len(names) > 60
    program = f"import importlib\nfor name in {names!r}:\n    importlib.import_module(name)\nprint(len({names!r}))"
    emulator = tools.tools("emulator")
    more = {"PYTHONHOME": str(tree / "usr"), "PYTHONPATH": str(site), "CRYPTOGRAPHY_OPENSSL_NO_LEGACY": "1"}
    said = emulator.run(
        "qemu-aarch64", "-L", tree, tree / "usr/bin/python3.13", "-S", "-B", "-c", program, environment=more
    )
    assert int(said) == len(names)


# ---- the checks themselves can fail


@pytest.fixture
def small(tmp_path: Path) -> Root:
    root = Root(tmp_path / "tree")
    for name, data in (("usr/bin/one", b"x" * 3000), ("etc/two", b"2")):
        root.put(name, data, "package")
    for path in (root.tree, *root.tree.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return root


def test_a_file_of_nobody_is_seen(small: Root) -> None:
    assert checks.unowned(small) == []
    (small.tree / "etc/three").write_text("3")
    assert checks.unowned(small) == ["/etc/three: of no package"]


@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o666, 0o622])
def test_a_file_that_gives_rights_is_seen(small: Root, mode: int) -> None:
    assert checks.rights(small) == []
    (small.tree / "usr/bin/one").chmod(mode)
    assert checks.rights(small) == [f"/usr/bin/one: mode {stat.S_IMODE(mode):o}"]


def test_a_missing_library_is_seen(made: build.Build, small: Root) -> None:
    small.take(made.work / "root/usr/sbin/dmsetup", "usr/sbin/dmsetup", "package")
    assert "/usr/sbin/dmsetup: needs libdevmapper.so.1.02.1" in checks.closure(small)
    small.take(Path(os.path.realpath("/bin/true")), "usr/bin/true", "package")
    assert "/usr/bin/true: for another processor" in checks.closure(small)


def test_a_package_over_its_budget_is_seen(small: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "budgets.txt"
    read = checks.budgets
    monkeypatch.setattr(checks, "budgets", lambda: read(table))
    table.write_text("# KiB\npackage 3\n")
    assert checks.over(small) == []
    table.write_text("package 2\n")
    assert checks.over(small) == ["package: 2 KiB, its budget is 2"]
    table.write_text("other 9\n")
    assert checks.over(small) == ["package: no budget (2 KiB)", "other: a budget for what is not there"]


def test_what_is_left_out_takes_the_links_to_it_along(small: Root, tmp_path: Path) -> None:
    (small.tree / "usr/bin/link").symlink_to("one")
    small.owners["/usr/bin/link"] = "package"
    table = tmp_path / "left_out.txt"
    table.write_text("# a remark\n/usr/*\n!/usr/bin/link\n/etc/*\n!/etc/two\n")
    prune(small, rules(table))
    assert small.paths() == ["/etc/two"]
    assert small.owners == {"/etc/two": "package"}


def test_a_package_that_is_not_the_locked_one_ends_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian, "DEBS", tmp_path)
    monkeypatch.setattr(debian, "MIRROR", (tmp_path / "mirror").as_uri())
    monkeypatch.setattr(debian, "SNAPSHOT", (tmp_path / "snapshot").as_uri())
    content = b"a package"
    one = debian.Package(
        "root", "one", "1", "all", len(content), hashlib.sha256(content).hexdigest(), "debian/pool/one.deb"
    )
    place = tmp_path / "mirror/debian/pool"
    place.mkdir(parents=True)
    with pytest.raises(debian.Mismatch, match="relock"):
        debian.fetch([one], "20260101T000000Z")
    (place / "one.deb").write_bytes(b"A package")
    with pytest.raises(debian.Mismatch, match="another size or hash"):
        debian.fetch([one], "20260101T000000Z")
    (place / "one.deb").unlink()
    old = tmp_path / "snapshot/debian/20260101T000000Z/pool"
    old.mkdir(parents=True)
    (old / "one.deb").write_bytes(content)
    debian.fetch([one], "20260101T000000Z")
    assert one.archive.read_bytes() == content
    one.archive.write_bytes(b"rotten!!!")
    debian.fetch([one], "20260101T000000Z")
    assert one.archive.read_bytes() == content


def test_the_lock_file_is_read_as_it_is_written(tmp_path: Path) -> None:
    lock = debian.read()
    assert {"root", "board", "tools", "emulator"} == {package.group for package in lock.packages}
    debian.write(lock, tmp_path / "lock")
    assert debian.read(tmp_path / "lock") == lock
    (tmp_path / "lock").write_text("root one 1 all 5 nothex path\n")
    with pytest.raises(debian.Mismatch, match="lock:1"):
        debian.read(tmp_path / "lock")
