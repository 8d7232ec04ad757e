# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is restored, and whether that is meant."""

from __future__ import annotations


class ModuleDocFragment:
    """Options as `module_utils/_argspec.py` has them."""

    DOCUMENTATION = r"""
options:
  id:
    description:
      - The set to restore, by its ID such as V(20250103_120000), or V(latest) for the newest that holds the stores in question.
    type: str
  before:
    description:
      - Restore the newest verified set from before this time, such as V(2025-01-03T12:00:00Z). Without a zone it is UTC.
    type: str
  confirm:
    description:
      - The C(yes) that the command asks for. A restore overwrites existing data, and without V(true) here the module fails
        before it looks at anything. In check mode it is not needed.
      - What was there before is kept, and RV(components) says where.
    type: bool
    default: false
  force:
    description:
      - Restore without looking first whether the live data is equal to the backup already.
    type: bool
    default: false
  accept:
    description:
      - Risks to accept by name. A problem that can be accepted says which word does it.
    type: list
    elements: str
    choices: [maxmemory, roles, topology, version]
  services:
    description:
      - Systemd units of the application, stopped while the restore switches to the new data.
    type: list
    elements: str
  health_url:
    description:
      - Where the application answers C(/health) after the restore. Where it is given and does not answer, the module fails, and
        the data is restored nevertheless.
    type: str
  lock_wait:
    description:
      - How many seconds to wait where another run is at work in the same directory. Without it the module fails at once.
    type: float
"""

    ONE = r"""
options:
  path:
    description:
      - One backup file on the host to restore from, instead of a set.
    type: path
"""
