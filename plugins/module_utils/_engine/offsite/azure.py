# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Azure Blob Storage."""

from __future__ import annotations

from .rclone import RcloneRemote


class AzureRemote(RcloneRemote):
    """A folder in a container of Azure Blob Storage, by the account's key or a shared access signature."""

    scheme = "azure"
    root_key = "container"
    # Its library tries four times and rests 4, 12 and 28 s between, before it says what is wrong (azblob's RetryOptions).
    patience = 4

    def options(self) -> dict[str, str]:
        target = self.target
        return {
            "type": "azureblob",
            "account": target["account"],
            "key": target["key"],
            "sas_url": target["sas_url"],
            "endpoint": target["endpoint"],
        }
