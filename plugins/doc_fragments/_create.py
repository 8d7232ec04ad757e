# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a set is made."""

from __future__ import annotations


class ModuleDocFragment:
    """Options as `module_utils/_argspec.py` has them."""

    DOCUMENTATION = r"""
options:
  max_age:
    description:
      - Make a set only where the newest verified one that these settings would make is older, such as V(90m), V(24h) or V(2d).
        A number alone is seconds.
      - A set counts where it is verified, of the same O(instance), holds all the stores in question, and left out what these
        settings leave out. One made with another O(fingerprint) or O(compression) counts.
      - Without it a set is made in every run.
    type: str
  instance:
    description:
      - Name of this AgentMem where a host has several. It is recorded in the manifest.
    type: str
  fingerprint:
    description:
      - What is recorded of the data at the cut. With V(counts) how much there is, with V(content) digests of what it is, which
        takes longer and proves more.
    type: str
    choices: [counts, content]
  compression:
    description:
      - How files are compressed.
    type: str
    choices: [gzip, zstd]
  compression_level:
    description:
      - V(0) stores, up to V(6) is as fast as the disk, V(7) to V(9) is smaller and slow.
    type: int
  retention_days:
    description:
      - Sets older than this are removed after a success, where the setting C(retention) is V(age), its default; with V(tiers),
        C(keep_daily), C(keep_weekly) and C(keep_monthly) decide. The newest verified set always stays.
    type: int
  lock_wait:
    description:
      - How many seconds to wait where another run is at work in the same directory. Without it the module fails at once.
    type: float
"""
