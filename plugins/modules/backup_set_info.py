#!/usr/bin/python
# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_set_info
short_description: List the backup sets, and show one in full
version_added: 0.1.0
author: The agentmem.backup maintainers (@agentmem)
description:
  - Tells which sets there are, which is the newest verified one, and what is recorded of one of them.
  - Looks only at what is recorded. M(agentmem.backup.backup_set_verify) looks at the files. What is absent is no failure.
options:
  id:
    description:
      - A set to show in full, by its ID such as V(20250103_120000), or V(latest).
    type: str
  components:
    description:
      - Only sets that hold all of these stores.
    type: list
    elements: str
    choices: [postgresql, redis, qdrant, config]
  max_age:
    description:
      - Tell whether there is a verified set that is not older than this, such as V(90m), V(36h) or V(7d). Without O(components)
        it must hold the stores that the host's configuration names.
      - Only a set counts that the host's configuration and O(settings) would make, with the same things left out.
      - The sets are not listed then. Cannot be used together with O(id).
    type: str
seealso:
  - module: agentmem.backup.backup_set_create
  - module: agentmem.backup.backup_set_verify
  - module: agentmem.backup.backup_set_restore
extends_documentation_fragment:
  - agentmem.backup._attributes
  - agentmem.backup._attributes.looks
  - agentmem.backup._common
"""

EXAMPLES = r"""
- name: List the sets
  agentmem.backup.backup_set_info:
  register: backups

- name: Stop where there is no verified set
  ansible.builtin.assert:
    that: backups.newest_verified is not none
    fail_msg: There is no verified backup in {{ backups.directory }}.

- name: Find out whether the database was backed up within the last day
  agentmem.backup.backup_set_info:
    components:
      - postgresql
    max_age: 24h
  register: backups

- name: Stop where it was not
  ansible.builtin.assert:
    that: backups.fresh
    fail_msg: "{{ backups.msg }}"

- name: Show the newest set with a database in full
  agentmem.backup.backup_set_info:
    id: latest
    components:
      - postgresql
"""

RETURN = r"""
exists:
  description: Whether the backup directory is there.
  returned: always
  type: bool
  sample: true
directory:
  description: The backup directory.
  returned: always
  type: str
  sample: /backups/agentmem
sets:
  description: The sets, oldest first. Empty with O(max_age).
  returned: always
  type: list
  elements: dict
  contains:
    id:
      description: The set.
      type: str
    type:
      description: Kind of set. V(legacy) where the guide's own scripts made it.
      type: str
    time:
      description: When its making began, in UTC.
      type: str
    age:
      description: How old it is, for people.
      type: str
    size:
      description: Size of its files on the disk, in bytes.
      type: int
    components:
      description: Stores that it holds.
      type: list
      elements: str
    verdict:
      description: V(verified), V(suspicious), V(acknowledged), V(failed) or V(never verified).
      type: str
    remark:
      description: V(partial), or what is odd about it.
      type: str
  sample:
    - id: "20250103_120000"
      type: full
      time: "2025-01-03T12:00:00.000Z"
      age: 5 h
      size: 256901120
      components: [postgresql, redis, qdrant, config]
      verdict: verified
      remark: ""
newest_verified:
  description:
    - The newest verified set that holds O(components), by its ID. V(none) where there is none. With O(max_age) one that would be
      made as the host's configuration says.
  returned: always
  type: str
  sample: "20250103_120000"
fresh:
  description: Whether there is a set that is young enough. The sentence in RV(msg) says which, or why there is none.
  returned: O(max_age) is given
  type: bool
  sample: true
set:
  description:
    - The set of O(id), or the one that is young enough for O(max_age), in full. V(none) where there is no such set.
  returned: always
  type: dict
  contains:
    id:
      description: The set.
      type: str
      sample: "20250103_120000"
    directory:
      description: Directory in which it lies.
      type: str
      sample: /backups/agentmem
    verdict:
      description: V(verified), or V(suspicious) where a store shrank (then the module fails, and the set is there).
      type: str
      sample: verified
    alarms:
      description: Why it is suspicious.
      type: list
      elements: str
      sample: []
    type:
      description: Kind of set.
      type: str
      sample: full
    bytes:
      description: Size of its files on the disk.
      type: int
      sample: 256901120
    time:
      description: When its making began, in UTC.
      type: str
      sample: "2025-01-03T12:00:00.000Z"
    skew_s:
      description: Seconds between the first and the last store's cut.
      type: float
      sample: 0.004
    partial:
      description: Stores that are C(absent) and stores of which something was C(filtered) out. V(none) where the set is complete.
      type: dict
      sample: {"absent": ["redis"], "filtered": []}
    components:
      description: Each store's file, what made it, and the level and totals of its fingerprint.
      type: dict
      sample:
        postgresql:
          file: /backups/agentmem/db_20250103_120000.dump.gz
          bytes: 256901120
          raw_bytes: 1073741824
          sha256: a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f90
          compression: gzip
          cut: "2025-01-03T12:00:00.412Z"
          server: PostgreSQL 15.14
          tool: pg_dump 15.14
          method: pg_dump in a held snapshot, all tables locked ACCESS SHARE
          duration_s: 9.731
          fingerprint: {level: content, tables: 12, rows: 52340}
          warnings: []
    fault:
      description: Where the manifest is damaged, the sentence that says so. Then C(type) is V(damaged).
      type: str
msg:
  description: What was done, or why there was nothing to do, or what is wrong, in one sentence.
  returned: always
  type: str
  sample: "23 sets in /backups/agentmem"
exit_code:
  description: The command's exit code for the same failure. V(1) failed, V(2) bad input, V(3) verification failed, V(75) locked.
  returned: failure of the engine
  type: int
  sample: 3
"""

from ..module_utils import _argspec, _info
from ..module_utils._module import run


def main():
    spec = _argspec.COMMON + _argspec.COMPONENTS_OPTION + _argspec.INFO
    run(spec.make(), _info.info)


if __name__ == "__main__":
    main()
