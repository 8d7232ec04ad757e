# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""On the controller: packs the collection's own engine as a wheel, and a wheelhouse with it, for one transfer to a host.

    bundle.py COLLECTION PLACE < {"engine": …, "extras": […], "wheelhouse": …, "settings": {instance: {…}}}

Writes an archive into PLACE and prints JSON: `digest` (of the engine to install), `path`, `requirement`, `version`. The wheel is
the same, byte for byte, for the same sources (PEP 427), so its digest tells whether a host has this engine. The settings are
checked by that engine before any host is touched. Standard library and PyYAML only.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import io
import json
import os
import re
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import tomllib

PACKAGE = "agentmem_backup"
MOMENT = (2025, 1, 3, 0, 0, 0)


class Trouble(Exception):
    """What is wrong, in one sentence."""


def sources(collection: Path) -> dict[str, bytes]:
    """Path inside the package → content, for every file of the engine."""
    engine = collection / "plugins" / "module_utils" / "_engine"
    found = {f"{PACKAGE}/{path.relative_to(engine).as_posix()}": path.read_bytes() for path in sorted(engine.rglob("*.py"))}
    if not found:
        raise Trouble(f"there is no engine in {engine}: is the collection agentmem.backup whole?")
    return found


def metadata(project: dict[str, Any], version: str) -> str:
    """Core metadata 2.1 of the package: what pip needs to install its libraries."""
    lines = ["Metadata-Version: 2.1", f"Name: {project['name']}", f"Version: {version}", f"Summary: {project['description']}"]
    lines += [f"Requires-Python: {project['requires-python']}"]
    lines += [f"Requires-Dist: {one}" for one in project["dependencies"]]
    for extra, wanted in project["optional-dependencies"].items():
        lines += [f"Provides-Extra: {extra}"]
        for one in wanted:
            need, __, marker = one.partition(";")
            condition = f"({marker.strip()}) and extra == '{extra}'" if marker else f"extra == '{extra}'"
            lines += [f"Requires-Dist: {need.strip()}; {condition}"]
    return "\n".join([*lines, ""])


def wheel(collection: Path) -> tuple[str, bytes, str]:
    """(file name, content, version) of the engine's wheel."""
    project = tomllib.loads((collection / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    files = sources(collection)
    told = re.search(rb'^__version__ = "([^"]+)"', files[f"{PACKAGE}/__init__.py"], re.MULTILINE)
    if told is None:
        raise Trouble(f"{collection} does not say its engine's version")
    version = told[1].decode()
    info = f"{PACKAGE}-{version}.dist-info"
    scripts = "".join(f"{name} = {target}\n" for name, target in project["scripts"].items())
    files[f"{info}/METADATA"] = metadata(project, version).encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: agentmem.backup\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/entry_points.txt"] = f"[console_scripts]\n{scripts}".encode()
    record = "".join(f"{name},sha256={_digest(content)},{len(content)}\n" for name, content in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, MOMENT)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, content)
    return f"{PACKAGE}-{version}-py3-none-any.whl", packed.getvalue(), version


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")


def bundle(collection: Path, place: Path, engine: str, extras: list[str], wheelhouse: str) -> dict[str, str]:
    """Write the archive; an empty `engine` means the collection's own, else it is a requirement as pip has it."""
    name, content, version = wheel(collection)
    if wheelhouse and not Path(wheelhouse).is_dir():
        raise Trouble(f"host_wheelhouse: {wheelhouse} is no directory on the controller")
    wheels = sorted(path for path in Path(wheelhouse).iterdir() if path.suffix == ".whl") if wheelhouse else []
    if wheelhouse and not wheels:
        raise Trouble(f"host_wheelhouse: there is no wheel in {wheelhouse}")
    wanted = f"[{','.join(sorted(extras))}]" if extras else ""
    requirement = re.sub(r"^[A-Za-z0-9._-]+", lambda found: found[0] + wanted, engine) if engine else f"./{name}{wanted}"
    told = hashlib.sha256(requirement.encode() + (b"" if engine else content)).hexdigest()[:16]
    archive = place / f"agentmem-backup-{told}.tar"
    if not archive.exists():
        _pack(archive, {} if engine else {name: content}, wheels)
    return {"digest": told, "path": str(archive), "requirement": requirement, "version": "" if engine else version}


def _pack(archive: Path, contents: dict[str, bytes], wheels: list[Path]) -> None:
    handle, partial = tempfile.mkstemp(dir=archive.parent)  # several hosts' workers may be at it
    with os.fdopen(handle, "wb") as file, tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))
        for path in wheels:
            tar.add(path, path.name, recursive=False)
    Path(partial).rename(archive)


def check(collection: Path, instances: dict[str, dict[str, Any]]) -> None:
    """Let the engine itself read each instance's settings; Trouble with its own sentence."""
    import yaml

    sys.dont_write_bytecode = True
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / PACKAGE).symlink_to(collection / "plugins" / "module_utils" / "_engine")
        sys.path.insert(0, place)
        settings = importlib.import_module(f"{PACKAGE}.settings")
        errors = importlib.import_module(f"{PACKAGE}.errors")
        secret = {name for name, option, __ in settings.walk(settings.Settings()) if option.metadata["secret"]}
        for name, given in instances.items():
            where = "host_settings" if name == "default" else f"host_instances.{name}.settings"
            file = Path(place) / "settings.yml"
            file.touch(0o600)
            file.write_text(yaml.safe_dump(given or {}), encoding="utf-8")
            try:
                taken = settings.load(file, environment={})
                if name != "default":
                    settings.check_instance_name(name)
            except errors.UsageError as error:
                raise Trouble(str(error).replace(str(file), where)) from None
            misplaced = sorted(secret & set(taken.sources))
            if misplaced:
                raise Trouble(
                    f"{', '.join(misplaced)} in {where} is secret: it belongs into {where.replace('settings', 'secrets')}"
                )


def main(collection: str, place: str) -> int:
    """Do it; a sentence on standard error and 1 where it cannot be done."""
    given = json.load(sys.stdin)
    try:
        check(Path(collection), given["settings"])
        done = bundle(Path(collection), Path(place), given["engine"], given["extras"], given["wheelhouse"])
    except Trouble as trouble:
        sys.stderr.write(f"{trouble}\n")
        return 1
    sys.stdout.write(json.dumps(done))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
