# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tasks with the modules of this checkout, as ansible-playbook runs them on this machine; and the collection, installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.collection import BIN, ansible_environment, build, custom_stats, install, tool
from tests.support.servers import CHECKOUT, Stores, throwaway_directory

Task = Mapping[str, Any]
UNCHANGED, CHANGED, FAILED = (False, False), (True, False), (False, True)
"""What `outcome` says of a task."""


class Controller:
    """Runs tasks on this machine with the checkout as the only collection."""

    def __init__(self, directory: Path):
        self.directory = directory
        (directory / "ansible_collections" / "agentmem").mkdir(parents=True)
        (directory / "ansible_collections" / "agentmem" / "backup").symlink_to(CHECKOUT)

    def environment(self, stores: Stores | None, extra: Mapping[str, str]) -> dict[str, str]:
        return {**ansible_environment(self.directory), **(stores.environment() if stores else {}), **extra}

    def command(self, tasks: Sequence[Task], python: str, *arguments: str) -> list[str]:
        """The command that runs `tasks` one after the other, failing or not, and tells their results at its end."""
        named = [
            {"register": f"result_{number}", "ignore_errors": True, "vars": {"ansible_python_interpreter": python}, **task}
            for number, task in enumerate(tasks)
        ]
        results = "{{ [" + ", ".join(f"result_{number}" for number in range(len(tasks))) + "] }}"
        last = {"ansible.builtin.set_stats": {"data": {"results": results}}}  # told at the end of the run
        play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": [*named, last]}
        (self.directory / "play.yml").write_text(yaml.safe_dump([play], sort_keys=False))
        return [str(BIN / "ansible-playbook"), "-i", "localhost,", str(self.directory / "play.yml"), *arguments]

    def run(self, stores: Stores | None, tasks: Sequence[Task], *arguments: str, python: str = "", **extra: str) -> list[Any]:
        """The tasks' results. Without `stores` the tasks themselves say where everything is."""
        self.printed = ""
        command = self.command(tasks, python or sys.executable, *arguments)
        told, self.printed = custom_stats(tool(*command, cwd=self.directory, env=self.environment(stores, extra)))
        results: list[Any] = told["results"]
        return results


@pytest.fixture
def controller() -> Iterator[Controller]:
    with throwaway_directory("agentmem-controller-") as directory:
        yield Controller(directory)


def task(module: str, *, check: bool = False, diff: bool = False, **options: Any) -> Task:
    if module.endswith("_restore"):
        options = {"health_url": "", **options}  # nothing of the machine's own is asked
    return {f"agentmem.backup.{module}": options, "check_mode": check, "diff": diff}


def outcome(results: list[Any]) -> list[tuple[bool, bool]]:
    """(changed, failed) of each."""
    return [(result["changed"], result["failed"]) for result in results]


@pytest.fixture(scope="session")
def collections(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A path with this collection, installed from its artifact, and no other."""
    return install(build(tmp_path_factory.mktemp("artifact")), tmp_path_factory.mktemp("installed")).parents[2]
