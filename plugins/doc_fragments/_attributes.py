# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every module can say of itself."""

from __future__ import annotations


class ModuleDocFragment:
    """Options as `module_utils/_argspec.py` has them."""

    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    description: Can run in C(check_mode) and tell what it would do without doing it.
  diff_mode:
    description: Tells what differs when it runs in diff mode.
  idempotent:
    description: Run again under the same circumstances, it changes nothing.
  platform:
    description: Operating systems that the module runs on.
    platforms: linux
    support: full
"""

    LOOKS = r"""
options: {}
attributes:
  check_mode:
    support: full
  diff_mode:
    support: N/A
    details:
      - Nothing is changed, so nothing differs.
  idempotent:
    support: full
    details:
      - Nothing is changed.
"""

    ACTS = r"""
options: {}
attributes:
  check_mode:
    support: full
    details:
      - Looks at the stores, their rights, the programs and the disk, and returns the engine's own plan.
  diff_mode:
    support: none
  idempotent:
    support: partial
    details:
      - With O(max_age) a set is only made where the newest verified one is older. Without it, each run makes one.
"""

    RESTORES = r"""
options: {}
attributes:
  check_mode:
    support: partial
    details:
      - Returns the engine's own plan, for which the backup is verified fully and every store is looked at. No data is touched,
        but PostgreSQL makes and drops a scratch database to find out whether the restore will be possible, Qdrant may make
        and delete a snapshot in order to compare, and what a killed run has left behind is cleaned up first.
  diff_mode:
    support: partial
    details:
      - Lists in what the live data differs from the backup. There is nothing to list with O(force=true), or where the backup
        has only counts.
  idempotent:
    support: partial
    details:
      - Nothing is done where the live data is proven equal to the backup. That takes a backup made with C(fingerprint=content).
        Where it has only counts, or something could not be compared, the restore takes place.
      - What is compared is data, columns and the number of constraints, indexes and functions, not their definitions.
"""
