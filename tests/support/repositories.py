# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What hosts install from, as plain files that any web server serves: a package index (PEP 503) and an apt repository.

`python -m tests.support.repositories DIRECTORY WHEELHOUSE PACKAGES` makes DIRECTORY/simple of the wheelhouse's wheels and the
engine's own, DIRECTORY/apt for Debian 12 with PostgreSQL 17's client tools, where PGDG's package has them, and all packages in
PACKAGES, and DIRECTORY/key.asc, which signs it.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from email.utils import formatdate
from pathlib import Path

from tests.support.pgstore import postgres17
from tests.support.servers import CHECKOUT

SUITE = "bookworm-pgdg"
CLIENT = "postgresql-client-17"


def index(directory: Path, wheelhouse: Path) -> None:
    """A simple index: a folder for each project, whose name is normalized (PEP 503)."""
    with tempfile.TemporaryDirectory() as made:
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", made]
        subprocess.run([*command, str(CHECKOUT)], check=True)
        for wheel in [*wheelhouse.glob("*.whl"), *Path(made).glob("*.whl")]:
            project = directory / re.sub(r"[-_.]+", "-", wheel.name.partition("-")[0]).lower()
            project.mkdir(parents=True, exist_ok=True)
            shutil.copy(wheel, project)


def client(directory: Path) -> None:
    """A package of PostgreSQL 17's client tools, where PGDG's lie."""
    with tempfile.TemporaryDirectory() as place:
        root, programs = Path(place), postgres17()
        root.chmod(0o755)
        home = root / "usr" / "lib" / "postgresql" / "17"
        for kind, names in (("bin", ["pg_dump", "pg_dumpall", "pg_restore", "psql"]), ("lib", ["*.so.*"])):
            (home / kind).mkdir(parents=True)
            for name in names:
                for file in (programs.parent / kind).glob(name):
                    shutil.copy(file, home / kind)
        (root / "DEBIAN").mkdir()
        control = {
            "Package": CLIENT, "Version": "17.0-1.pgdg120+1", "Maintainer": "Test <test@example.com>",
            "Architecture": _said("dpkg", "--print-architecture").strip(), "Description": "client of PostgreSQL 17, for tests",
        }  # fmt: skip
        (root / "DEBIAN" / "control").write_text("".join(f"{key}: {value}\n" for key, value in control.items()))
        _said("dpkg-deb", "--root-owner-group", "-Znone", "--build", str(root), str(directory / f"{CLIENT}.deb"))


def repository(directory: Path, packages: Path, key: Path) -> None:
    """An apt repository of that package and others, signed by a key made for it, whose public half goes to `key`."""
    pool = directory / "pool"
    pool.mkdir(parents=True)
    client(pool)
    for one in packages.glob("*.deb"):
        shutil.copy(one, pool / one.name.replace("%3a", "."))  # a web server would take it for a colon
    entry = "".join(
        f"{_said('dpkg-deb', '--field', str(one))}Filename: pool/{one.name}\nSize: {one.stat().st_size}\n"
        f"SHA256: {_sha256(one.read_bytes())}\n\n"
        for one in sorted(pool.iterdir())
    )
    architecture = _said("dpkg", "--print-architecture").strip()
    folder = directory / "dists" / SUITE / "main" / f"binary-{architecture}"
    folder.mkdir(parents=True)
    (folder / "Packages").write_text(entry)
    (folder / "Packages.gz").write_bytes(gzip.compress(entry.encode()))
    top = directory / "dists" / SUITE
    listed = [
        f" {_sha256(file.read_bytes())} {file.stat().st_size} {file.relative_to(top)}\n"
        for file in sorted(folder.glob("Packages*"))
    ]
    told = (
        f"Suite: {SUITE}\nCodename: {SUITE}\nArchitectures: {architecture}\nComponents: main\nDate: {formatdate(usegmt=True)}\n"
    )
    (top / "Release").write_text(told + "SHA256:\n" + "".join(listed))
    with tempfile.TemporaryDirectory() as home:
        gpg = ["gpg", "--homedir", home, "--batch", "--quiet", "--yes"]
        _said(*gpg, "--passphrase", "", "--quick-generate-key", "test@example.com", "default", "default", "never")
        _said(*gpg, "--clearsign", "--output", str(top / "InRelease"), str(top / "Release"))
        key.write_text(_said(*gpg, "--armor", "--export", "test@example.com"))
        subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=False, capture_output=True)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _said(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main(directory: str, wheelhouse: str, packages: str) -> None:
    """Make both anew."""
    place = Path(directory)
    shutil.rmtree(place, ignore_errors=True)
    os.umask(0o022)
    index(place / "simple", Path(wheelhouse))
    repository(place / "apt", Path(packages), place / "key.asc")


if __name__ == "__main__":
    main(*sys.argv[1:])
