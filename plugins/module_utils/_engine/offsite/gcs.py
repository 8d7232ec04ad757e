# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Google Cloud Storage."""

from __future__ import annotations

from ..targets import demand_private
from .rclone import RcloneRemote


class GcsRemote(RcloneRemote):
    """A folder in a bucket of Google Cloud Storage, as a service account."""

    scheme = "gs"

    def options(self) -> dict[str, str]:
        target = self.target
        if target["service_account_file"]:
            demand_private(target["service_account_file"], f"service_account_file of target {target.name}")
        return {
            "type": "google cloud storage",
            "service_account_file": target["service_account_file"],
            "service_account_credentials": target["service_account"],
            "endpoint": target["endpoint"],
            "storage_class": target["storage_class"],
            "bucket_policy_only": "true",  # rights are the bucket's own matter, as Google advises
        }
