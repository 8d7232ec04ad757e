#!/usr/bin/python
# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_set_report
short_description: Tell a host's history of backups
version_added: 0.2.0
author: The agentmem.backup maintainers (@agentmem)
description:
  - Tells of the runs of the last days how each ended, how large its set was, store by store, and how long it took. Tells which
    set is the newest verified one, and whether the host is green, stale, shrinking or failed.
  - It reads what is recorded in the backup directory and asks no store. Nothing that is wrong with the backups makes it fail, a
    missing backup directory neither. Both are in the report.
  - M(agentmem.backup.backup_fleet_report) makes one page of the reports of many hosts.
options:
  days:
    description:
      - How many days to look back, 1 to 3660.
    type: int
    default: 90
  max_age:
    description:
      - The host is stale when its newest verified set is older than this, such as V(26h) or V(8d).
    type: str
    default: 26h
seealso:
  - module: agentmem.backup.backup_fleet_report
  - module: agentmem.backup.backup_set_info
  - module: agentmem.backup.backup_set_verify
extends_documentation_fragment:
  - agentmem.backup._attributes
  - agentmem.backup._attributes.looks
  - agentmem.backup._common
"""

EXAMPLES = r"""
- name: Look back a month
  agentmem.backup.backup_set_report:
    days: 30
  register: backups

- name: Stop where backups are not as they should be
  ansible.builtin.assert:
    that: backups.report.state == 'green'
    fail_msg: "{{ backups.report.reasons | join('; ') }}"
"""

RETURN = r"""
report:
  description: The history. Every field is described in C(docs/report.md) of the collection.
  returned: success
  type: dict
  contains:
    format:
      description: Version of this structure.
      type: int
    state:
      description: V(green), V(stale), V(shrinking) or V(failed).
      type: str
    reasons:
      description: Why it is not green, a sentence each.
      type: list
      elements: str
    newest_verified:
      description: The newest verified set that holds all configured stores. V(none) where there is none.
      type: dict
    runs:
      description: Every run, oldest first. A run that failed made no set.
      type: list
      elements: dict
    events:
      description: What else was done to the backups, such as restores and verifications, oldest first.
      type: list
      elements: dict
  sample:
    format: 1
    generated: "2025-01-03T14:05:11.207Z"
    version: 0.2.0
    host: db1
    instance: default
    directory: /backups/agentmem
    days: 90
    max_age_s: 93600
    state: green
    reasons: []
    newest_verified: {id: "20250103_120000", time: "2025-01-03T12:00:00.000Z", age_s: 7511, bytes: 256901120}
    next_expected: "2025-01-04T12:00:00.000Z"
    sets: 23
    bytes: 5908725760
    disk: {free: 42949672960, total: 214748364800}
    runs:
      - id: "20250103_120000"
        time: "2025-01-03T12:00:00.000Z"
        type: full
        result: verified
        bytes: 256901120
        stores: {postgresql: 104857600, redis: 12582912, qdrant: 139374592, config: 86016}
        duration_s: 21.406
        present: true
        alarms: []
        error: ""
    events: []
msg:
  description: What was found, or what is wrong, in one sentence.
  returned: always
  type: str
  sample: "db1 is green: 90 runs in 90 days"
exit_code:
  description: The command's exit code for the same failure. V(1) failed, V(2) bad input.
  returned: failure of the engine
  type: int
  sample: 2
"""

from ..module_utils import _actions, _argspec
from ..module_utils._module import run


def main():
    run((_argspec.COMMON + _argspec.REPORT).make(), _actions.report)


if __name__ == "__main__":
    main()
