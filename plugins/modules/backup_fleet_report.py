#!/usr/bin/python
# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_fleet_report
short_description: Write one page about the backups of all hosts
version_added: 0.2.0
author: The agentmem.backup maintainers (@agentmem)
description:
  - Puts together what M(agentmem.backup.backup_set_report) told of each host of the play, and writes it as an HTML page and as
    JSON on the controller. The page is one file without links to others, for desktop and phone, light and dark.
  - Each host is green, shrinking, stale, failed or unreachable. A host that could not be asked is there with the reason. None is
    missing.
  - Use it with C(run_once), after the task that asks the hosts. The playbook C(agentmem.backup.report) does.
options:
  results:
    description:
      - Name of the variable in which each host's result of M(agentmem.backup.backup_set_report) was registered.
    type: str
    default: agentmem_backup_report
  html:
    description:
      - Where to write the page, on the controller. A relative path starts at the directory in which Ansible was started.
      - A file that is replaced keeps its mode.
    type: path
    default: agentmem-backup-report.html
  json:
    description:
      - Where to write the data, in the same way. Every field is described in C(docs/report.md) of the collection.
    type: path
    default: agentmem-backup-report.json
  title:
    description:
      - Heading of the page.
    type: str
    default: Backups of AgentMem
seealso:
  - module: agentmem.backup.backup_set_report
attributes:
  action:
    description: Has a corresponding action plugin, so that it runs on the controller.
    support: full
  bypass_host_loop:
    description: Runs once for all hosts by itself.
    support: none
    details:
      - Set C(run_once).
  check_mode:
    description: Can run in C(check_mode) and tell what it would do without doing it.
    support: full
  diff_mode:
    description: Tells what differs when it runs in diff mode.
    support: none
  idempotent:
    description: Run again under the same circumstances, it changes nothing.
    support: none
    details:
      - A report names the moment at which it was made.
  platform:
    description: Operating systems that the controller may have.
    platforms: posix
    support: full
"""

EXAMPLES = r"""
- name: Ask each host, the dead ones too
  agentmem.backup.backup_set_report:
  register: agentmem_backup_report
  ignore_unreachable: true

- name: Write the page
  agentmem.backup.backup_fleet_report:
    html: /srv/www/backups/index.html
    json: /srv/www/backups/fleet.json
  run_once: true
"""

RETURN = r"""
html:
  description: The page.
  returned: success
  type: str
  sample: /srv/www/backups/index.html
json:
  description: The data.
  returned: success
  type: str
  sample: /srv/www/backups/fleet.json
counts:
  description: How many hosts are in each state.
  returned: success
  type: dict
  sample: {unreachable: 1, failed: 0, stale: 2, shrinking: 0, green: 57}
not_green:
  description: The first sentence on each host that is not green, by its name.
  returned: success
  type: dict
  sample: {db7: "the newest verified set, 20250103_120000, is 4 d old"}
not_fresh:
  description:
    - The hosts without a fresh backup, the worst first. Their newest verified set of all configured stores is older than
      O(agentmem.backup.backup_set_report#module:max_age), or they have none, or they could not tell.
  returned: success
  type: list
  elements: str
  sample: [db7]
msg:
  description: What was written, or what is wrong, in one sentence.
  returned: always
  type: str
  sample: "60 hosts: 1 unreachable, 2 stale, 57 green"
"""
