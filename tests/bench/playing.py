# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rows of the benchmark that run Ansible: what a module and a playbook cost beside ping and beside the command itself."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tests.bench.rows import Result
from tests.bench.stand import BenchError, Contender, Sample, Stand, take_turns
from tests.support.collection import ansible_environment, ansible_playbook
from tests.support.servers import CHECKOUT

MODULE_MORE, PLAYBOOK_MORE, FLEET_MOST = 0.5, 3.0, 2.5
FLEET = 50


class Controller:
    """Runs playbooks on hosts that are all this machine, with the checkout as the only collection."""

    def __init__(self, stand: Stand):
        self._stand = stand
        self._directory = stand.fresh("ansible")
        self.sets = stand.fresh("playbook")
        ours = self._directory / "ansible_collections" / "agentmem"
        ours.mkdir(parents=True)
        (ours / "backup").symlink_to(CHECKOUT)
        variables = f"ansible_connection=local ansible_python_interpreter={sys.executable}"
        for number in (1, FLEET):
            hosts = "".join(f"host{one} {variables}\n" for one in range(number))
            (self._directory / f"{number}.ini").write_text(hosts)

    def written(self, name: str, task: dict[str, Any]) -> Path:
        """A playbook of one task."""
        playbook = self._directory / f"{name}.yml"
        playbook.write_text(yaml.safe_dump([{"hosts": "all", "gather_facts": False, "tasks": [task]}]))
        return playbook

    def play(self, playbook: str | Path, hosts: int = 1, *arguments: str, changed: int) -> Callable[[], None]:
        """What runs a playbook; BenchError unless every host is well and `changed` of its tasks were."""

        def go() -> None:
            environment = {**ansible_environment(self._directory), **self._stand.stores.environment()}
            environment["BACKUP_DIR"] = str(self.sets)
            inventory = self._directory / f"{hosts}.ini"
            forks = ("--forks", str(hosts))
            done = ansible_playbook(self._directory, environment, playbook, "-i", inventory, *forks, *arguments)
            if done.returncode or done.stdout.count(f" changed={changed} ") != hosts:
                raise BenchError(f"{playbook} ended with {done.returncode}: {done.stdout[-3000:]}")

        return go


def _module_and_ping(stand: Stand, hosts: int) -> dict[str, Sample]:
    """backup_set_create, which finds a set that is young enough, and ping, on so many hosts at as many forks."""
    controller = Controller(stand)
    stand.ours(controller.sets, "create", "--component", "config")
    options = {"max_age": "1d", "components": ["config"]}
    nothing = controller.written("nothing", {"agentmem.backup.backup_set_create": options})
    ping = controller.written("ping", {"ansible.builtin.ping": {}})
    return take_turns(
        [
            Contender("module", controller.play(nothing, hosts, changed=0)),
            Contender("ping", controller.play(ping, hosts, changed=0)),
        ],
        stand.tell,
    )


def module(stand: Stand) -> list[Result]:
    """A module with nothing to do, beside ansible.builtin.ping."""
    found = _module_and_ping(stand, 1)
    more = found["module"].seconds - found["ping"].seconds
    must = f"≤ {MODULE_MORE:g} s more (is {more:.2f} s)"
    work = "a module that has nothing to do"
    return [Result(work, found["module"], "ansible.builtin.ping", found["ping"], None, must, more <= MODULE_MORE)]


def fleet(stand: Stand) -> list[Result]:
    """The same on 50 local hosts at 50 forks."""
    found = _module_and_ping(stand, FLEET)
    ratio = found["module"].seconds / found["ping"].seconds
    work = f"a module that has nothing to do on {FLEET} local hosts at forks {FLEET}"
    must = f"≤ {FLEET_MOST:g} ×"
    return [Result(work, found["module"], "ansible.builtin.ping", found["ping"], ratio, must, ratio <= FLEET_MOST)]


def playbook(stand: Stand) -> list[Result]:
    """The playbook agentmem.backup.backup on one host, beside the command itself."""
    controller = Controller(stand)
    backup = controller.play("agentmem.backup.backup", 1, changed=1)

    def command() -> None:
        stand.ours(controller.sets, "create")

    found = take_turns([Contender("playbook", backup), Contender("command", command)], stand.tell)
    made = len(list(controller.sets.glob("manifest_*.json")))
    if made < 2:
        raise BenchError(f"only {made} sets were made")
    more = found["playbook"].seconds - found["command"].seconds
    must = f"≤ {PLAYBOOK_MORE:g} s more (is {more:.2f} s)"
    work = "playbook agentmem.backup.backup on one host"
    return [Result(work, found["playbook"], "agentmem-backup create", found["command"], None, must, more <= PLAYBOOK_MORE)]


ROWS: dict[str, Callable[[Stand], list[Result]]] = {"module": module, f"fleet{FLEET}": fleet, "playbook": playbook}
