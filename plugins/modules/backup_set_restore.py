#!/usr/bin/python
# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_set_restore
short_description: Restore AgentMem from a backup set
version_added: 0.1.0
author: The agentmem.backup maintainers (@agentmem)
description:
  - Brings all stores of a set back, or those that are chosen, after the set was verified fully.
  - Everything is prepared beside the live data and compared, then all stores are switched together. A failure before the
    switch is final takes back what was done, and the message says for each store what is live and where the old data lies.
options:
  components:
    description:
      - Stores to restore. Without it all that the set holds.
    type: list
    elements: str
    choices: [postgresql, redis, qdrant, config]
  files:
    description:
      - Backup files on the host to restore from, instead of a set. The stores that are named are restored, in any combination.
    type: dict
    suboptions:
      postgresql:
        description:
          - File to restore PostgreSQL from.
        type: path
      redis:
        description:
          - File to restore Redis from.
        type: path
      qdrant:
        description:
          - File to restore Qdrant from.
        type: path
      config:
        description:
          - File to restore the configuration from.
        type: path
seealso:
  - module: agentmem.backup.backup_set_create
  - module: agentmem.backup.backup_set_verify
  - module: agentmem.backup.backup_set_info
extends_documentation_fragment:
  - agentmem.backup._attributes
  - agentmem.backup._attributes.restores
  - agentmem.backup._common
  - agentmem.backup._restore
  - agentmem.backup._postgresql
  - agentmem.backup._redis
  - agentmem.backup._qdrant
  - agentmem.backup._config
  - agentmem.backup._postgresql.target
  - agentmem.backup._redis.target
  - agentmem.backup._qdrant.target
"""

EXAMPLES = r"""
- name: Show what a restore of the newest set would do
  agentmem.backup.backup_set_restore:
    id: latest
    postgresql_password: "{{ agentmem_db_password }}"
    redis_password: "{{ agentmem_redis_password }}"
    qdrant_api_key: "{{ agentmem_qdrant_api_key }}"
  check_mode: true
  diff: true

- name: Restore the newest set unless the live data is equal to it already
  agentmem.backup.backup_set_restore:
    id: latest
    postgresql_password: "{{ agentmem_db_password }}"
    redis_password: "{{ agentmem_redis_password }}"
    qdrant_api_key: "{{ agentmem_qdrant_api_key }}"
    confirm: true
  register: restored

- name: Restore database and vectors as they were before a moment
  agentmem.backup.backup_set_restore:
    before: "{{ '%Y-%m-%dT%H:%M:%SZ' | strftime(utc=true) }}"
    components:
      - postgresql
      - qdrant
    postgresql_password: "{{ agentmem_db_password }}"
    qdrant_api_key: "{{ agentmem_qdrant_api_key }}"
    confirm: true

- name: Find the files of the newest set with Redis and the configuration
  agentmem.backup.backup_set_info:
    id: latest
    components:
      - redis
      - config
  register: found

- name: Restore Redis and the configuration from single files
  agentmem.backup.backup_set_restore:
    files:
      redis: "{{ found.set.components.redis.file }}"
      config: "{{ found.set.components.config.file }}"
    redis_password: "{{ agentmem_redis_password }}"
    confirm: true
"""

RETURN = r"""
id:
  description: The set, or the names of the files, that the data comes from.
  returned: when there is one
  type: str
  sample: "20250103_120000"
differences:
  description: In what the live data differed from the backup before the restore.
  returned: when O(force=false)
  type: list
  elements: str
  sample: ["postgresql: rows of public.memories: 52340 backed up, 0 in the database"]
not_compared:
  description: What could not be compared before the restore, and why. It is never taken for equal.
  returned: when O(force=false)
  type: list
  elements: str
  sample: []
plan:
  description: What is done, or in check mode what would be done.
  returned: when something is to be restored
  type: list
  elements: str
  sample: ["postgresql: the present database agentmem is kept as agentmem__before_20250104_080000"]
equal:
  description: Whether every store was compared with its manifest after the restore, and nothing differs.
  returned: when something was restored
  type: bool
  sample: true
undescribed:
  description: Stores that came from files without a manifest, so that there was nothing to compare them with.
  returned: when something was restored
  type: list
  elements: str
  sample: []
components:
  description: For each store, how many things were compared afterwards, what differs, and where the old data lies.
  returned: when something was restored
  type: dict
  sample:
    postgresql:
      compared: 41
      differences: []
      not_compared: []
      state: database agentmem is the restored one; the old data lies in database agentmem__before_20250104_080000
      duration_s: 14.2
checks:
  description: The guide's five checks after a restore.
  returned: when something was restored
  type: list
  elements: dict
  contains:
    name:
      description: V(services), V(health), V(memories), V(redis) or V(write).
      type: str
    outcome:
      description: V(passed), V(failed) or V(not made).
      type: str
    detail:
      description: What was asked and answered.
      type: str
  sample: [{"name": "memories", "outcome": "passed", "detail": "52340 memories"}]
duration_s:
  description: How long it took, in seconds.
  returned: when something was restored
  type: float
  sample: 16.9
msg:
  description: What was done, or why there was nothing to do, or what is wrong, in one sentence.
  returned: always
  type: str
  sample: "20250103_120000 was restored: equal to what was backed up; why it was: force is set"
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
    targets = _argspec.POSTGRESQL_TARGET + _argspec.REDIS_TARGET + _argspec.QDRANT_TARGET
    spec = _argspec.COMMON + _argspec.RESTORE_SET + _argspec.STORES + targets
    run(spec.make(), _actions.restore())


if __name__ == "__main__":
    main()
