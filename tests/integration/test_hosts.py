# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The hosts of the molecule scenarios: they boot, they are what they should be, and nothing is left of them.

The scenarios themselves run under `script/test --all` and by `script/molecule NAME`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.servers import CHECKOUT

HOSTS = CHECKOUT / "extensions" / "molecule" / "_shared" / "hosts.py"
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts, a bridge and systemd-nspawn need root"),
    pytest.mark.timeout(900),  # the root file system is built once, which takes some minutes
]


def hosts(*words: str | Path, given: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(HOSTS), *map(str, words)]
    return subprocess.run(command, input=given, capture_output=True, text=True, check=False)


def left_of(state: dict[str, str], directory: Path) -> list[str]:
    """What this machine still has of a run."""
    found = [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(directory) in line]
    if Path("/sys/class/net", state["bridge"]).exists():
        found.append(state["bridge"])
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_text(errors="replace")
        except OSError:
            continue
        if str(directory) in words and "systemd-nspawn" in words:
            found.append(words)
    return found + [path.name for path in directory.iterdir() if path.name != "lock"]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "run"
    assert hosts("down", tmp_path / "run").returncode == 0


def test_a_host_boots_answers_and_leaves_nothing(run: Path) -> None:
    up = hosts("up", run, given=json.dumps({"hosts": [{"name": "one", "root": "stores"}]}))
    assert up.returncode == 0, up.stderr
    state = json.loads(up.stdout)
    [host] = state["hosts"]
    pinned = ("-o", f"UserKnownHostsFile={run / 'known_hosts'}", "-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes")
    asked = "cat /proc/1/comm; hostname; systemctl is-active postgresql@15-main redis-server qdrant; getent hosts controller"
    ssh = ["ssh", "-i", str(run / "key"), *pinned, f"root@{host['address']}"]
    told = subprocess.run([*ssh, asked], capture_output=True, text=True, check=True).stdout.split()
    assert told == ["systemd", "one", "active", "active", "active", state["controller"], "controller"]
    # As if the run had been interrupted: what its state names is found, and the next one begins from nothing.
    (run / "key").unlink()
    assert hosts("kill", run, "one").returncode == 0
    again = hosts("up", run, given=json.dumps({"hosts": [{"name": "two", "root": "stores"}]}))
    assert again.returncode == 0, again.stderr
    assert [one["name"] for one in json.loads(again.stdout)["hosts"]] == ["two"]
    assert not (run / "hosts" / "one").exists()
    assert hosts("down", run).returncode == 0
    assert left_of(json.loads(again.stdout), run) == []


def test_what_is_asked_for_and_not_there_is_said_in_a_sentence(run: Path) -> None:
    asked = hosts("up", run, given=json.dumps({"hosts": [{"name": "one", "root": "solaris"}]}))
    assert (asked.returncode, asked.stderr) == (1, "hosts: there is no root 'solaris': there are bare, rpm, stores\n")
    poor = subprocess.run(
        [sys.executable, HOSTS, "down", run], env={"PATH": "/nowhere"}, capture_output=True, text=True, check=False
    )
    assert poor.returncode == 1
    assert poor.stderr.startswith(
        "hosts: molecule's hosts need these packages: apt-get install iproute2 mmdebstrap openssh-client"
    )
