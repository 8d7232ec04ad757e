#!/usr/bin/python
# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_dump
short_description: Back up the data of a Redis server
version_added: 0.1.0
author: The agentmem.backup maintainers (@agentmem)
description:
  - Makes a backup set that holds Redis alone.
  - Waits for the save that it asked for and copies its file, or takes the replication stream.
  - The file is read back from the disk and verified before the set is published. Where anything fails, no set is left behind.
notes:
  - To back up all stores at one moment, use M(agentmem.backup.backup_set_create).
seealso:
  - module: agentmem.backup.redis_verify
  - module: agentmem.backup.redis_restore
  - module: agentmem.backup.backup_set_create
extends_documentation_fragment:
  - agentmem.backup._attributes
  - agentmem.backup._attributes.acts
  - agentmem.backup._common
  - agentmem.backup._create
  - agentmem.backup._redis
  - agentmem.backup._redis.filters
"""

EXAMPLES = r"""
- name: Back up the data of a Redis server
  agentmem.backup.redis_dump:
    redis_password: "{{ agentmem_redis_password }}"
    lock_wait: 60
  register: dump

- name: Back up again only where the newest verified set is older than a day
  agentmem.backup.redis_dump:
    redis_password: "{{ agentmem_redis_password }}"
    max_age: 24h
    lock_wait: 60

- name: Dump the sessions only
  agentmem.backup.redis_dump:
    redis_password: "{{ agentmem_redis_password }}"
    redis_include_keys:
      - "session:*"
    lock_wait: 60

- name: Look whether a backup would be possible
  agentmem.backup.redis_dump:
    redis_password: "{{ agentmem_redis_password }}"
  check_mode: true
"""

RETURN = r"""
id:
  description: The set.
  returned: when there is a set, so not in check mode unless there is nothing to do
  type: str
  sample: "20250103_120000"
directory:
  description: Directory in which it lies.
  returned: when there is a set, so not in check mode unless there is nothing to do
  type: str
  sample: /backups/agentmem
verdict:
  description: V(verified), or V(suspicious) where a store shrank (then the module fails, and the set is there).
  returned: when there is a set, so not in check mode unless there is nothing to do
  type: str
  sample: verified
alarms:
  description: Why it is suspicious.
  returned: when there is a set, so not in check mode unless there is nothing to do
  type: list
  elements: str
  sample: []
type:
  description: Kind of set.
  returned: when there is a set, so not in check mode unless there is nothing to do
  type: str
  sample: full
bytes:
  description: Size of its files on the disk.
  returned: when there is a set, so not in check mode unless there is nothing to do
  type: int
  sample: 256901120
time:
  description: When its making began, in UTC.
  returned: when there is a set, so not in check mode unless there is nothing to do
  type: str
  sample: "2025-01-03T12:00:00.000Z"
skew_s:
  description: Seconds between the first and the last store's cut.
  returned: when there is a set, so not in check mode unless there is nothing to do
  type: float
  sample: 0.004
partial:
  description: Stores that are C(absent) and stores of which something was C(filtered) out. V(none) where the set is complete.
  returned: when there is a set, so not in check mode unless there is nothing to do
  type: dict
  sample: {"absent": ["redis"], "filtered": []}
components:
  description: Each store's file, what made it, and the level and totals of its fingerprint.
  returned: when there is a set, so not in check mode unless there is nothing to do
  type: dict
  sample:
    redis:
      file: /backups/agentmem/redis_20250103_120000.rdb
      bytes: 256901120
      raw_bytes: 1073741824
      sha256: a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f90
      compression: none
      cut: "2025-01-03T12:00:00.412Z"
      server: redis 7.0.15
      tool: BGSAVE 7.0.15
      method: BGSAVE and copy of the file
      duration_s: 9.731
      fingerprint: {level: content, databases: 1, keys: 18211, functions: 0}
      warnings: []
removed:
  description: Old sets that were removed, as O(retention_days) says.
  returned: when a set was made
  type: list
  elements: str
  sample: ["20241203_120000"]
duration_s:
  description: How long it took, in seconds.
  returned: when a set was made
  type: float
  sample: 11.204
plan:
  description: What would be done.
  returned: in check mode, when a set would be made
  type: list
  elements: str
  sample: ["would make a set in /backups/agentmem of postgresql"]
msg:
  description: What was done, or why there was nothing to do, or what is wrong, in one sentence.
  returned: always
  type: str
  sample: "set 20250103_120000 was made (verified): no max_age is given"
exit_code:
  description: The command's exit code for the same failure. V(1) failed, V(2) bad input, V(3) verification failed, V(75) locked.
  returned: failure of the engine
  type: int
  sample: 3
problems:
  description: Every obstacle where a run could not begin, a sentence each.
  returned: when the stores, the programs or the disk are not ready
  type: list
  elements: str
  sample: ["redis: Redis at localhost:6379 refuses the password"]
"""

from ..module_utils import _actions, _argspec
from ..module_utils._module import run


def main():
    run(_argspec.DUMPS["redis_dump"].make(), _actions.create(["redis"]))


if __name__ == "__main__":
    main()
