#!/usr/bin/python
# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_set_verify
short_description: Verify a backup set and record the verdict
version_added: 0.1.0
author: The agentmem.backup maintainers (@agentmem)
description:
  - Checks that every file of a set is whole and unchanged, and that the set is what its manifest says. No store is needed for
    it.
  - The verdict is recorded with the sets. Only verified sets count when old ones are removed and when the newest good one is
    looked for.
attributes:
  check_mode:
    support: full
    details:
      - Verifies just as well, and records nothing.
  diff_mode:
    support: N/A
    details:
      - No store and no set is changed, so nothing differs.
  idempotent:
    support: full
    details:
      - C(changed) is always V(false). The verdict is a line in the tool's own log of verdicts and in its audit log.
options:
  id:
    description:
      - The set, by its ID such as V(20250103_120000), or V(latest). Without it, the newest.
    type: str
  acknowledge:
    description:
      - Accept that a store had shrunk, which makes a set suspicious and keeps old ones from being removed. Name the set with
        O(id).
    type: bool
    default: false
seealso:
  - module: agentmem.backup.backup_set_create
  - module: agentmem.backup.backup_set_restore
  - module: agentmem.backup.backup_set_info
extends_documentation_fragment:
  - agentmem.backup._attributes
  - agentmem.backup._common
  - agentmem.backup._verify.depth
"""

EXAMPLES = r"""
- name: Verify the newest set
  agentmem.backup.backup_set_verify:
  register: verified

- name: Compare its sizes and digests only
  agentmem.backup.backup_set_verify:
    id: "{{ verified.id }}"
    depth: quick

- name: Accept that a store shrank since the set before it
  agentmem.backup.backup_set_verify:
    id: "{{ verified.id }}"
    acknowledge: true
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
  description: V(verified), V(suspicious) where a store had shrunk and nobody has acknowledged it, or V(failed).
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
    postgresql:
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
    spec = _argspec.COMMON + _argspec.VERIFY_SET
    run(spec.make(), _actions.verify_set)


if __name__ == "__main__":
    main()
