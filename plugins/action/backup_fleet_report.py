# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fleet's report, made on the controller by the same engine that runs on the hosts; jinja2 is there, for Ansible needs it."""

from __future__ import annotations

import json
from pathlib import Path

from ansible.plugins.action import ActionBase

from ..module_utils._engine import fleet, page, report
from ..module_utils._engine.errors import BackupError, one_line

SPEC = {
    "results": {"type": "str", "default": "agentmem_backup_report"},
    "html": {"type": "path", "default": "agentmem-backup-report.html"},
    "json": {"type": "path", "default": "agentmem-backup-report.json"},
    "title": {"type": "str", "default": "Backups of AgentMem"},
}


class ActionModule(ActionBase):
    """See plugins/modules/backup_fleet_report.py for what it takes and gives."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        _given, options = self.validate_argument_spec(argument_spec=SPEC)
        paths = {kind: Path(options[kind]).absolute() for kind in ("html", "json")}
        found = fleet.join(*self._told(options["results"], task_vars))
        try:
            texts = {"html": page.html(found, options["title"]), "json": json.dumps(found, separators=(",", ":")) + "\n"}
            for kind, path in paths.items():
                if not self._task.check_mode:
                    report.write(path, texts[kind])
        except BackupError as error:
            return dict(result, failed=True, changed=False, msg=str(error))
        counts = {state: number for state, number in found["counts"].items() if number}
        said = ", ".join(f"{number} {state}" for state, number in counts.items()) or "none"
        return dict(
            result,
            changed=True,
            counts=found["counts"],
            not_green={host["name"]: (host["reasons"] or [""])[0] for host in found["hosts"] if host["state"] != fleet.GREEN},
            not_fresh=[host["name"] for host in found["hosts"] if not host["fresh"]],
            msg=f"{len(found['hosts'])} hosts: {said}",
            **{kind: str(path) for kind, path in paths.items()},
        )

    @staticmethod
    def _told(variable, task_vars):
        """(reports, why unreachable, why failed) of the play's hosts, by name."""
        reports, unreachable, failed = {}, {}, {}
        for host in task_vars["ansible_play_hosts_all"]:
            # Raw: what a host has said is data, and nothing in it is ever a template.
            told = task_vars["hostvars"].raw_get(host).get(variable)
            if not isinstance(told, dict):
                failed[host] = f"it was not asked: it has no variable {variable}"
            elif told.get("unreachable"):
                unreachable[host] = one_line(told.get("msg") or "no connection")
            elif isinstance(told.get("report"), dict) and not told.get("failed"):
                reports[host] = json.loads(json.dumps(told["report"]))  # plain types, without Ansible's tags
            else:
                failed[host] = one_line(told.get("msg") or "the module said nothing")
        return reports, unreachable, failed
