# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the configuration is."""

from __future__ import annotations


class ModuleDocFragment:
    """Options as `module_utils/_argspec.py` has them."""

    DOCUMENTATION = r"""
options:
  config_directory:
    description:
      - Configuration directory. In the environment E(CONFIG_DIR).
    type: path
  config_extra_paths:
    description:
      - Further files or directories, as absolute paths.
    type: list
    elements: path
"""
