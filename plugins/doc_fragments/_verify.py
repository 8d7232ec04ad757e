# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is verified, and how deeply."""

from __future__ import annotations


class ModuleDocFragment:
    """Options as `module_utils/_argspec.py` has them."""

    DOCUMENTATION = r"""
options:
  id:
    description:
      - The set, by its ID such as V(20250103_120000), or V(latest) for the newest that holds this store.
      - Without it and without O(path), the newest.
    type: str
  path:
    description:
      - One backup file on the host, instead of a set. Its name must begin as the guide's names do.
    type: path
"""

    DEPTH = r"""
options:
  depth:
    description:
      - With V(quick), sizes, digests and first bytes. With V(full), everything is decompressed and walked through as well.
    type: str
    default: full
    choices: [quick, full]
"""
