# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The matrix: every ansible-core and Python that is promised, `script/test --all` runs it. `nox --list` names the sessions.

A combination whose Python is not on this machine is skipped, and nox says so; with pyenv all of its Pythons are on offer.
"""

from __future__ import annotations

import os
import shutil
import subprocess

import antsibull_nox
import nox

CORES = {"2.18": "ansible-core~=2.18.0", "newest": "ansible-core>=2.19"}
"""The oldest that is supported, and the newest that there is for the Python at hand."""

CONTROLLERS = ["3.11", "3.12", "3.13"]
"""Pythons that run ansible-core 2.18 and newer, and the modules."""

HOSTS_ONLY = "3.10"
"""A Python that the modules run in, and no supported ansible-core."""

nox.options.default_venv_backend = "venv"


def offer_pythons_of_pyenv() -> None:
    """pyenv's `python3.x` only start where the version is activated; so the real ones come first, the one in force before all."""
    if shutil.which("pyenv"):
        current, others = (_said("pyenv", "version-name").split(":"), _said("pyenv", "versions", "--bare").split())
        prefixes = [_said("pyenv", "prefix", version) for version in dict.fromkeys([*current, *others])]
        os.environ["PATH"] = os.pathsep.join([*(f"{prefix}/bin" for prefix in prefixes), os.environ["PATH"]])


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def in_collection(session: nox.Session, *command: str) -> None:
    """Run `command` of this session's environment in a copy of the checkout that Ansible's tools accept."""
    session.run("script/in-collection", *command, env={"ANSIBLE_BIN": session.bin}, external=True)


offer_pythons_of_pyenv()
antsibull_nox.load_antsibull_nox_toml()


@nox.session(python=CONTROLLERS)
@nox.parametrize("core", list(CORES))
def sanity(session: nox.Session, core: str) -> None:
    """Every sanity test on the whole tree; with the first controller also what a host's oldest Python makes of the modules."""
    session.install(CORES[core])
    in_collection(session, "ansible-test", "sanity", "--requirements", "--python", str(session.python), *session.posargs)
    if session.python == CONTROLLERS[0] and shutil.which(f"python{HOSTS_ONLY}"):
        tests = ("--test", "compile", "--test", "import")
        in_collection(session, "ansible-test", "sanity", "--requirements", "--python", HOSTS_ONLY, *tests)


@nox.session(python=CONTROLLERS)
@nox.parametrize("core", list(CORES))
def units(session: nox.Session, core: str) -> None:
    """`ansible-test units` of modules and module_utils; the engine's own unit tests are pytest's, in script/test."""
    session.install(CORES[core], "-e", ".[points]")
    in_collection(session, "ansible-test", "units", "--requirements", "--python", str(session.python), "tests/unit/plugins/")


@nox.session(python=CONTROLLERS)
@nox.parametrize("core", list(CORES))
def integration(session: nox.Session, core: str) -> None:
    """Modules and playbooks as users run them, against real servers."""
    session.install(CORES[core], "-e", ".[points,test]")
    parts = ["playbooks", "modules", "targets"]
    tests = session.posargs or [f"tests/integration/test_{part}.py" for part in parts]
    session.run("python", "-m", "pytest", "-n", "2", "--dist", "worksteal", *tests)
