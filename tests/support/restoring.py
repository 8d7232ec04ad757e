# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A restore of one store from its first step to its last."""

from __future__ import annotations

from agentmem_backup.components.base import Restoration


def carry_out(restoration: Restoration) -> None:
    """A whole restore, as the verb does it; check and compare must both say equal. It is closed in every case."""
    try:
        restoration.prepare()
        checked = restoration.check()
        assert checked.equal, checked
        restoration.commit()
        restoration.complete()
        compared = restoration.compare()
        assert compared.equal, compared
    finally:
        restoration.close()
