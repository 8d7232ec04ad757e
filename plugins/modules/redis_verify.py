#!/usr/bin/python
# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_verify
short_description: Verify a backup of Redis
version_added: 0.1.0
author: The agentmem.backup maintainers (@agentmem)
description:
  - Checks that a backup of Redis is whole and unchanged, with the manifest's digests and without the server.
  - Looks only. The verdict on a whole set is recorded by M(agentmem.backup.backup_set_verify).
seealso:
  - module: agentmem.backup.redis_dump
  - module: agentmem.backup.redis_restore
  - module: agentmem.backup.backup_set_verify
extends_documentation_fragment:
  - agentmem.backup._attributes
  - agentmem.backup._attributes.looks
  - agentmem.backup._common
  - agentmem.backup._verify
  - agentmem.backup._verify.depth
"""

EXAMPLES = r"""
- name: Verify the newest backup of Redis
  agentmem.backup.redis_verify:
  register: verified

- name: Verify a set by its ID, without decompressing it
  agentmem.backup.redis_verify:
    id: "{{ verified.id }}"
    depth: quick

- name: Find the file of that set
  agentmem.backup.backup_set_info:
    id: "{{ verified.id }}"
  register: found

- name: Verify one file
  agentmem.backup.redis_verify:
    path: "{{ found.set.components.redis.file }}"
"""

RETURN = r"""
id:
  description: The set, or the name of the file, that was verified.
  returned: when there is one
  type: str
  sample: "20250103_120000"
depth:
  description: How deeply it was verified.
  returned: when there is one
  type: str
  sample: full
verdict:
  description: V(verified), or V(failed) where there are faults.
  returned: when there is one
  type: str
  sample: verified
faults:
  description: Everything that is wrong with it, a sentence each.
  returned: when there is one
  type: list
  elements: str
  sample: []
alarms:
  description: Stores that had shrunk when the set was made, a sentence each.
  returned: when there is one
  type: list
  elements: str
  sample: []
components:
  description: For each store, the digest of its file as it was read and what is wrong with it.
  returned: when there is one
  type: dict
  sample:
    redis:
      sha256: a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f90
      faults: []
duration_s:
  description: How long it took, in seconds.
  returned: when there is one
  type: float
  sample: 3.52
msg:
  description: What was done, or why there was nothing to do, or what is wrong, in one sentence.
  returned: always
  type: str
  sample: "20250103_120000 is whole (depth full)"
exit_code:
  description: The command's exit code for the same failure. V(1) failed, V(2) bad input, V(3) verification failed, V(75) locked.
  returned: failure of the engine
  type: int
  sample: 3
"""

from ..module_utils import _actions, _argspec
from ..module_utils._module import run


def main():
    spec = _argspec.COMMON + _argspec.VERIFY
    run(spec.make(), _actions.verify_component("redis"))


if __name__ == "__main__":
    main()
