# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine of agentmem.backup: it backs up, verifies and restores AgentMem's stores and knows nothing about Ansible.

Read it in this order: `create.py`, `verify.py`, `restore.py` (one verb, one file), then `components/` (one store, one
file), then the ground they stand on: `backup_set`, `journal`, `pipeline`, `process`, `lock`, `settings`, `audit`.
"""

__version__ = "0.1.0"
