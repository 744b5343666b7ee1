"""What is in the image, for people and for programs: a manifest of files with their owners, and a CycloneDX SBOM."""

from __future__ import annotations

import hashlib
import json
import uuid
from pathlib import Path
from typing import Any, Final

from image import debian
from image.root import PROJECT, Root

NAMESPACE: Final = uuid.UUID("ed9e3a11-0000-4000-8000-000000000000")


def write(target: Path, lock: debian.Lock, root: Root, first: dict[str, str], about: dict[str, object]) -> None:
    """TARGET.manifest.json and TARGET.sbom.json."""
    files: dict[str, Any] = {}
    for path in root.paths():
        place = root.tree / path[1:]
        if place.is_symlink():
            files[path] = {"owner": root.owners[path], "link": str(place.readlink())}
        else:
            data = place.read_bytes()
            files[path] = {"owner": root.owners[path], "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    owners = {entry["owner"] for entry in files.values()} | set(first.values())
    owners |= {package.name for package in lock.group("board")}
    packages = [package for package in lock.group("root", "board") if package.name in owners]
    listed = {
        **about,
        "packages": {package.name: {"version": package.version, "sha256": package.sha256} for package in packages},
        "files": files,
        "initramfs": first,
    }
    for name, document in (("manifest", listed), ("sbom", _sbom(target.name, about, packages))):
        text = json.dumps(document, indent=1, sort_keys=True)
        target.with_name(f"{target.name}.{name}.json").write_text(text + "\n")


def _sbom(name: str, about: dict[str, object], packages: list[debian.Package]) -> dict[str, object]:
    """CycloneDX 1.5. Licences are named by the copyright files that the image carries."""
    components: list[dict[str, object]] = [
        {"type": "application", "name": PROJECT, "version": about["version"], "bom-ref": PROJECT}
    ]
    for package in packages:
        fields = debian.control(package)
        component: dict[str, object] = {
            "type": "library",
            "name": package.name,
            "version": package.version,
            "bom-ref": f"pkg:deb/debian/{package.name}@{package.version}",
            "purl": f"pkg:deb/debian/{package.name}@{package.version}?arch={package.architecture}",
            "hashes": [{"alg": "SHA-256", "content": package.sha256}],
            "supplier": {"name": fields.get("Maintainer", "Debian")},
            "properties": [
                {"name": "debian:source", "value": fields.get("Source", package.name)},
                {"name": "debian:copyright", "value": f"/usr/share/doc/{package.name}/copyright"},
            ],
        }
        if "Homepage" in fields:
            component["externalReferences"] = [{"type": "website", "url": fields["Homepage"]}]
        components.append(component)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "serialNumber": f"urn:uuid:{uuid.uuid5(NAMESPACE, name)}",
        "metadata": {"component": {"type": "operating-system", "name": name, "version": about["version"]}},
        "components": components,
    }
