#!/usr/bin/python
# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_set_sync
short_description: Copy verified backup sets elsewhere, and bring them back
version_added: 0.1.0
author: The agentmem.backup maintainers (@agentmem)
description:
  - Sends the verified sets of a host to every target of its configuration, as rsync over ssh, S3, Google Cloud Storage and Azure
    Blob Storage, and has every byte read back there. Brings a set back, and looks what is where.
  - What fails at one target stops no other. Nothing is removed at a target because it is missing on the host.
  - The targets stand in the host's configuration, under C(offsite.targets).
attributes:
  check_mode:
    support: full
    details:
      - Asks the targets what they have and tells what would be sent or brought back.
  diff_mode:
    support: none
  idempotent:
    support: full
    details:
      - Sends what is missing and fetches what is not there. C(changed) says whether anything was sent, brought back or removed.
options:
  action:
    description:
      - With V(push), what is missing is sent to every target, read back there, and what a target's C(keep) lets go is removed.
      - With V(pull), the set O(id) is brought back into the backup directory, verified fully before it appears. A set that
        lies there already stays as it is.
      - With V(check), nothing is transferred. The module fails where a verified set is missing or damaged at a target.
    type: str
    choices: [push, pull, check]
    default: push
  id:
    description:
      - The set to bring back, by its ID such as V(20250103_120000), or V(latest), the newest that a target has whole.
    type: str
  targets:
    description:
      - Names of the targets in question. Without it, all of the host's configuration.
    type: list
    elements: str
  host:
    description:
      - Whose sets, by the name of the host at the targets, such as V(web-1), or V(web-1/NAME) for its instance C(NAME). It is for
        a fresh host that takes the place of a lost one, and for O(action=pull) and O(action=check) only.
      - Without it, the host's own.
    type: str
  read_back:
    description:
      - With O(action=check), read every byte of every copy at the far end and compare.
    type: bool
    default: false
  lock_wait:
    description:
      - How many seconds to wait where another push or pull is at work. Without it the module fails at once.
    type: float
seealso:
  - module: agentmem.backup.backup_set_create
  - module: agentmem.backup.backup_set_verify
  - module: agentmem.backup.backup_set_restore
extends_documentation_fragment:
  - agentmem.backup._attributes
  - agentmem.backup._common
"""

EXAMPLES = r"""
- name: Send what is missing to every target
  agentmem.backup.backup_set_sync:
    lock_wait: 60
  register: pushed

- name: Look whether every verified set is everywhere, and read all copies
  agentmem.backup.backup_set_sync:
    action: check
    read_back: true

- name: Send to one target only
  agentmem.backup.backup_set_sync:
    targets:
      - backup_host

- name: Bring a set back, unless it is here
  agentmem.backup.backup_set_sync:
    action: pull
    id: "{{ pushed.targets.backup_host.whole | first }}"

- name: Look which set of a lost host would come back here
  agentmem.backup.backup_set_sync:
    action: pull
    id: latest
    host: "{{ agentmem_lost_host }}"
  check_mode: true
"""

RETURN = r"""
host:
  description: The folder at the targets in question, that of a host, and of its instance where that is not the default one.
  returned: O(action=push) and O(action=check)
  type: str
  sample: web-1
targets:
  description:
    - For each target, what was done there. C(sent), C(read_back), C(removed), C(left_out) and C(whole) are lists of IDs,
      C(faults) and C(notes) lists of sentences, C(where) says where the sets lie, and C(ok) whether nothing went wrong.
  returned: O(action=push)
  type: dict
  sample:
    cloud:
      where: s3://my-bucket/agentmem-backups/web-1
      sent: ["20250103_120000"]
      sent_bytes: 272629760
      read_back: ["20250103_120000"]
      removed: []
      whole: ["20250103_120000"]
      left_out: []
      faults: []
      notes: []
      ok: true
skipped:
  description: For each set that stayed on the host, why it did.
  returned: O(action=push)
  type: dict
  sample: {}
sets:
  description:
    - For each set, its verdict on the host (C(here)), whether it is one that shall be everywhere (C(wanted)), and for each target
      its state there, one of V(whole), V(incomplete), V(missing), V(damaged) and V(left out).
  returned: O(action=check)
  type: dict
  sample:
    "20250103_120000":
      here: verified
      wanted: true
      targets:
        cloud:
          state: whole
          read_back: "2025-01-03T12:10:00.000Z"
          remark: ""
unreached:
  description: For each target that could not be asked, why.
  returned: O(action=check)
  type: dict
  sample: {}
id:
  description: The set that was asked for.
  returned: O(action=pull)
  type: str
  sample: "20250103_120000"
where:
  description: Where it came from.
  returned: O(action=pull), unless it was there already
  type: str
  sample: s3://my-bucket/agentmem-backups/web-1
pulled:
  description: The sets that were brought back, which are that one and the one that it needs, where that was not there.
  returned: O(action=pull), unless it was there already or in check mode
  type: list
  elements: str
  sample: ["20250103_120000"]
problems:
  description: Everything that went wrong, a sentence each, with the target's name.
  returned: O(action=push) and O(action=check)
  type: list
  elements: str
  sample: []
duration_s:
  description: How long it took, in seconds.
  returned: O(action=push) and O(action=pull), when something was done
  type: float
  sample: 41.2
msg:
  description: What was done, or why there was nothing to do, or what is wrong, in one sentence.
  returned: always
  type: str
  sample: "sent 1 sets to 2 targets"
exit_code:
  description: The command's exit code for the same failure. V(1) failed, V(2) bad input, V(3) verification failed, V(75) locked.
  returned: failure of the engine
  type: int
  sample: 1
"""

from ..module_utils import _actions, _argspec
from ..module_utils._module import run


def main():
    spec = _argspec.COMMON + _argspec.SYNC
    run(spec.make(), _actions.sync)


if __name__ == "__main__":
    main()
