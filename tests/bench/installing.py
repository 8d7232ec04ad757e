# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rows of the benchmark that install a fleet: the playbook `install` on hosts with a real systemd, from scratch and once more."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import yaml

from tests.bench.rows import Result
from tests.bench.stand import BenchError, Contender, Sample, Stand, take_turns
from tests.support import hosts
from tests.support.collection import ansible_environment, ansible_playbook
from tests.support.servers import CHECKOUT

HARNESS = CHECKOUT / "extensions" / "molecule" / "_shared" / "hosts.py"
NAMES = ("one", "two", "three")
UNCHANGED_MOST = 30.0

WANTED: dict[str, Any] = {
    "host_groups": ["redis"],
    "host_settings": {"health_url": ""},
    "host_secrets": {
        "postgresql": {"password": hosts.DB_PASSWORD},
        "redis": {"password": hosts.REDIS_PASSWORD},
        "qdrant": {"api_key": hosts.QDRANT_API_KEY},
    },
    "schedule_sync": True,
    "offsite_targets": {"vault": {"type": "rsync", "host": "vault"}},
    "offsite_known_hosts": ["vault ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0000000000000000000000000000000000000000000"],
    "notify_email": "ops@example.com",
    "notify_smtp_host": "controller",
    "notify_slack_webhook": "http://controller:8025/services/T0/B0/hook",
    "notify_textfile_directory": "/var/lib/prometheus/node-exporter",
}
"""Something for each of the four roles."""


class Hosts:
    """Hosts as the molecule scenarios have them, and the playbook on them as users run it: by ssh, with Ansible's defaults."""

    def __init__(self, stand: Stand):
        self._directory = stand.fresh("install")
        self._run = self._directory / "run"
        ours = self._directory / "ansible_collections" / "agentmem"
        ours.mkdir(parents=True)
        (ours / "backup").symlink_to(CHECKOUT)
        self._environment = {**ansible_environment(self._directory), "ANSIBLE_PYTHON_INTERPRETER": "/usr/bin/python3"}
        self._wheelhouse = self._harness("wheelhouse").strip()

    def _harness(self, *words: str, given: str = "") -> str:
        environment = {**os.environ, "AGENTMEM_MOLECULE_SOCKETS": f"{self._directory}/s"}
        command = [sys.executable, str(HARNESS), *words]
        done = subprocess.run(command, input=given, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(done.stderr.strip())
        return done.stdout

    def renew(self) -> None:
        """Hosts on which nothing of ours has ever been."""
        asked = {"hosts": [{"name": name, "root": "stores"} for name in NAMES]}
        state = json.loads(self._harness("up", str(self._run), given=json.dumps(asked)))
        ssh = f"-o UserKnownHostsFile={self._run}/known_hosts -o StrictHostKeyChecking=yes -o ControlPath={self._directory}/s-%h"
        common = {
            "ansible_user": "root",
            "ansible_ssh_private_key_file": f"{self._run}/key",
            "ansible_ssh_common_args": ssh,
            "host_wheelhouse": self._wheelhouse,
            **WANTED,
        }
        found = {host["name"]: {"ansible_host": host["address"]} for host in state["hosts"]}
        (self._directory / "inventory.yml").write_text(yaml.safe_dump({"all": {"hosts": found, "vars": common}}))

    def install(self, changing: bool) -> None:
        """Run the playbook. Raises BenchError unless every host is well and was changed (or was not) as expected."""
        done = ansible_playbook(self._directory, self._environment, "agentmem.backup.install", "-i", "inventory.yml")
        changed = re.findall(r" changed=(\d+) +unreachable=0 +failed=0 ", done.stdout)
        if done.returncode or len(changed) != len(NAMES) or any((number != "0") != changing for number in changed):
            raise BenchError(f"install ended with {done.returncode}: {done.stdout[-3000:]}")

    def close(self) -> None:
        """Take them away."""
        self._harness("down", str(self._run))


def install(stand: Stand) -> list[Result]:
    """The playbook agentmem.backup.install on three hosts, from scratch and with nothing to do."""
    fleet = Hosts(stand)
    try:
        found = take_turns(
            [
                Contender("from scratch", lambda: fleet.install(True), before=fleet.renew),
                Contender("unchanged", lambda: fleet.install(False)),
            ],
            stand.tell,
        )
    finally:
        fleet.close()
    again: Sample = found["unchanged"]
    where = f"on {len(NAMES)} hosts by ssh, four roles"
    return [
        Result(f"playbook agentmem.backup.install {where}, from scratch", found["from scratch"], "", None, None, "", True),
        Result("the same again, unchanged", again, "", None, None, f"≤ {UNCHANGED_MOST:g} s", again.seconds <= UNCHANGED_MOST),
    ]


ROWS: dict[str, Callable[[Stand], list[Result]]] = {f"install{len(NAMES)}": install}
