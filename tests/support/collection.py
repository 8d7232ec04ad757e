# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The collection as its users have it: built from this checkout and installed in a path of its own; playbooks run from there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.servers import CHECKOUT

BIN = Path(sys.executable).parent
"""Where the ansible of the Python at hand is; it is not on everybody's PATH."""

OF_A_PLAY = {"ansible.builtin.set_fact": dict.fromkeys(
    ("addresses", "content", "directories", "ending", "fresh", "known", "lines", "logs", "names", "others", "paths", "place",
     "places", "running", "second", "seen", "sets", "settings", "silent", "strange", "sum", "timers", "unwanted", "wrong"),
    "somebody's own",
)}  # fmt: skip
"""A task that sets what a play may have registered under common names: it goes before a role's own variable of that name."""


def ansible_environment(directory: Path, collections: Path | None = None) -> dict[str, str]:
    """An environment in which Ansible sees no configuration and no collection but those named, and writes to `directory`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "AGENTMEM_"))}
    home = directory / "ansible-home"
    home.mkdir(exist_ok=True)
    (home / "ansible.cfg").touch()
    return {
        **kept,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "ANSIBLE_COLLECTIONS_PATH": str(collections or directory),
        "ANSIBLE_CONFIG": str(home / "ansible.cfg"),
        "ANSIBLE_HOME": str(home),
        "ANSIBLE_INJECT_INVOCATION": "true",  # what a module was given may be shown: ansible-core 2.21 no longer does so unasked
        "ANSIBLE_LOCAL_TEMP": str(home / "tmp"),
        "ANSIBLE_LOCALHOST_WARNING": "false",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_SHOW_CUSTOM_STATS": "true",
    }


def tool(*argv: str | Path, cwd: Path, env: Mapping[str, str] | None = None, timeout: float = 280) -> str:
    """Run a program and insist on exit code 0; returns what it printed, stderr included."""
    done = _run(argv, cwd, env or ansible_environment(cwd), timeout)
    assert done.returncode == 0, f"{argv} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


def build(directory: Path) -> Path:
    """Build the artifact of this checkout, with what is not committed yet, into `directory`; returns its path."""
    environment = {**os.environ, "ANSIBLE_BIN": str(BIN)}
    command = ("ansible-galaxy", "collection", "build", "--output-path", directory)
    tool(CHECKOUT / "script" / "in-collection", *command, cwd=directory, env=environment)
    (artifact,) = directory.glob("agentmem-backup-*.tar.gz")
    return artifact


def install(artifact: Path, path: Path) -> Path:
    """Install the artifact into `path`, which has no other collection; returns the collection's directory."""
    tool("ansible-galaxy", "collection", "install", "--offline", "--collections-path", path, artifact, cwd=artifact.parent)
    return path / "ansible_collections" / "agentmem" / "backup"


@dataclass
class Played:
    """How a run of ansible-playbook ended: its exit code, all that it printed, and what set_stats told for the run."""

    code: int
    output: str
    stats: dict[str, Any]


def ansible_playbook(
    directory: Path, env: Mapping[str, str], *arguments: str | Path, timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ansible-playbook in a directory to its end, with nobody to answer it; stdout has all that it printed."""
    return _run([BIN / "ansible-playbook", *arguments], directory, env, timeout)


def _run(
    argv: Sequence[str | Path], cwd: Path, env: Mapping[str, str], timeout: float | None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(one) for one in argv],
        cwd=cwd,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )


def custom_stats(printed: str) -> tuple[dict[str, Any], str]:
    """What set_stats told for the run, and what was printed besides."""
    told = re.search(r"^CUSTOM STATS: \*+\n\s*RUN: (\{.*\})\s*$", printed, re.MULTILINE)
    return (json.loads(told[1]), printed[: told.start()] + printed[told.end() :]) if told else ({}, printed)


def play(
    playbook: str | Path,
    directory: Path,
    collections: Path,
    *arguments: str,
    env: Mapping[str, str] | None = None,
    hosts: Mapping[str, Mapping[str, Any]] | None = None,
) -> Played:
    """Run a playbook on a host `stores`, or on `hosts` with variables of their own, with collections from `collections` alone.

    Every host is this machine.
    """
    here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    inventory = directory / "inventory.json"
    told = {name: {**here, **variables} for name, variables in (hosts or {"stores": {}}).items()}
    inventory.write_text(json.dumps({"all": {"hosts": told}}))
    environment = {**ansible_environment(directory, collections), **(env or {})}
    done = ansible_playbook(directory, environment, playbook, "-i", inventory, *arguments, timeout=280)
    return Played(done.returncode, done.stdout, custom_stats(done.stdout)[0])
