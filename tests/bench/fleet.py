# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rows of the benchmark about many hosts (`script/bench --fleet`): the page of a thousand, and backups of fifty at once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from agentmem_backup import clock

from tests.bench import installing
from tests.bench.rows import Result
from tests.bench.stand import BenchError, Contender, Sample, Stand, take_turns
from tests.support import synthetic
from tests.support.collection import ansible_environment, ansible_playbook
from tests.support.servers import CHECKOUT

REPORT_HOSTS, REPORT_MOST, REPORT_BYTES = 1000, 10.0, 5_000_000
PLAY_HOSTS, PLAY_MOST = (1, 10, 50), 2.5

_REPORT = """
import json, sys
from pathlib import Path
from agentmem_backup import fleet, page, report
found = fleet.join(json.loads(Path(sys.argv[1]).read_text()), {"dead.example.org": "no route to host"})
report.write(Path(sys.argv[2]), page.html(found))
report.write(Path(sys.argv[3]), json.dumps(found, separators=(",", ":")))
"""
"""What the playbook's last task does with what the hosts have told, in a process of its own."""

_PING = [
    {
        "hosts": "all",
        "gather_facts": False,
        "tasks": [
            {
                "ignore_unreachable": True,
                "block": [{"ansible.builtin.include_tasks": "one.yml"}],
                "rescue": [{"ansible.builtin.fail": {"msg": "no"}, "when": "limit is defined"}],
                "always": [{"ansible.builtin.set_stats": {"data": {"pings": "{{ {inventory_hostname: pinged.ping} }}"}}}],
            }
        ],
    },
    {
        "hosts": "all",
        "gather_facts": False,
        "vars": {"bad": "{{ ansible_play_hosts_all | map('extract', hostvars) | rejectattr('pinged', 'defined') }}"},
        "tasks": [
            {"ansible.builtin.debug": {"msg": "{{ bad | length }} hosts"}, "when": "bad | length > 0", "run_once": True},
            {"ansible.builtin.set_stats": {"data": {"bad": "{{ bad }}"}}, "run_once": True},
            {"ansible.builtin.fail": {"msg": "it was not tried"}, "when": "pinged is not defined"},
        ],
    },
]
"""A play of the same shape as agentmem.backup.backup and its end (playbooks/tasks/run.yml, playbooks/_end.yml)."""
_ONE = [{"ansible.builtin.ping": {}, "register": "pinged"}]
"""Its step: not under async, for the playbook's is not either where the hosts are local."""


def report(stand: Stand) -> list[Result]:
    """The page and the JSON of a thousand hosts with 90 days each, from what the hosts have told."""
    directory = stand.fresh("report")
    told, page, data = directory / "told.json", directory / "page.html", directory / "page.json"
    told.write_text(json.dumps(synthetic.hosts(REPORT_HOSTS)))

    def go() -> Sample | None:
        subprocess.run([sys.executable, "-c", _REPORT, str(told), str(page), str(data)], check=True, cwd=CHECKOUT)
        return None

    found = take_turns([Contender("report", go)], stand.tell)["report"]
    sizes = page.stat().st_size, data.stat().st_size
    text = page.read_text()
    if text.count("<tbody ") != REPORT_HOSTS + 1 or "dead.example.org" not in text:
        raise BenchError("the page does not show every host")
    must = f"≤ {REPORT_MOST:g} s and ≤ 5 MB each (JSON: {sizes[1]:,} bytes)"
    met = found.seconds <= REPORT_MOST and max(sizes) <= REPORT_BYTES
    work = f"page and JSON of {REPORT_HOSTS} hosts × 90 days"
    return [Result(work, Sample(found.seconds, sizes[0], found.spread), "", None, None, must, met)]


class Fleet:
    """So many hosts that are all this machine, each with a backup directory of its own and the checkout as the collection."""

    def __init__(self, stand: Stand, number: int):
        self._stand = stand
        self._number = number
        self._directory = stand.fresh(f"fleet{number}")
        (self._directory / "ansible_collections" / "agentmem").mkdir(parents=True)
        (self._directory / "ansible_collections" / "agentmem" / "backup").symlink_to(CHECKOUT)
        local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        hosts = {f"host{one}": {**local, "agentmem_backup_options": self._options(one)} for one in range(number)}
        (self._directory / "inventory.yml").write_text(yaml.safe_dump({"all": {"hosts": hosts}}))
        (self._directory / "ping.yml").write_text(yaml.safe_dump(_PING))
        (self._directory / "one.yml").write_text(yaml.safe_dump(_ONE))

    def _options(self, one: int) -> dict[str, Any]:
        path = self._directory / f"sets{one}"
        path.mkdir(mode=0o700)
        return {"backup_dir": str(path), "components": ["config"]}

    def play(self, playbook: str) -> None:
        """Run a playbook with as many forks as hosts. Raises BenchError unless every host is well."""
        environment = {**ansible_environment(self._directory), **self._stand.stores.environment()}
        forks = ("--forks", str(self._number))
        done = ansible_playbook(self._directory, environment, playbook, "-i", "inventory.yml", *forks)
        if done.returncode or done.stdout.count(" unreachable=0 ") != self._number:
            raise BenchError(f"{playbook} ended with {done.returncode}: {done.stdout[-3000:]}")

    def slowest(self) -> float:
        """Seconds that the slowest of the newest sets of all hosts took, by their manifests."""
        took = []
        for one in range(self._number):
            newest: Path = max((self._directory / f"sets{one}").glob("manifest_*.json"))
            made = json.loads(newest.read_text())
            took.append((clock.from_iso(made["finished"]) - clock.from_iso(made["started"])).total_seconds())
        return max(took)


def backups(stand: Stand, number: int) -> list[Result]:
    """The playbook agentmem.backup.backup on so many hosts at once, beside a ping play of the same shape."""
    fleet = Fleet(stand, number)
    found = take_turns(
        [
            Contender("backup", lambda: fleet.play("agentmem.backup.backup")),
            Contender("ping", lambda: fleet.play("ping.yml")),
        ],
        stand.tell,
    )
    slowest = fleet.slowest()
    most = PLAY_MOST * found["ping"].seconds + slowest
    must = f"≤ {PLAY_MOST:g} × and {slowest:.2f} s (the slowest host's own backup): {most:.2f} s"
    ratio = found["backup"].seconds / found["ping"].seconds
    work = (
        f"playbook agentmem.backup.backup on {number} local host{'s' if number > 1 else ''} at as many forks, configuration only"
    )
    peer = "a ping play of the same shape"
    return [Result(work, found["backup"], peer, found["ping"], ratio, must, found["backup"].seconds <= most)]


ROWS: dict[str, Callable[[Stand], list[Result]]] = {
    "report": report,
    **installing.ROWS,
    **{f"backup{number}": partial(backups, number=number) for number in PLAY_HOSTS},
}
