# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Amazon S3 and what speaks its protocol."""

from __future__ import annotations

from .rclone import RcloneRemote


class S3Remote(RcloneRemote):
    """A folder in an S3 bucket. Without keys rclone looks for them where Amazon's own tools do (AWS_…, the machine's role)."""

    scheme = "s3"

    def options(self) -> dict[str, str]:
        target = self.target
        named = ("provider", "region", "endpoint", "access_key_id", "secret_access_key", "session_token", "storage_class")
        return {
            "type": "s3",
            **{key: target[key] for key in named},
            "env_auth": "" if target["access_key_id"] else "true",
            # Whoever reads the bucket's owner's data may be somebody else than who wrote it: never public.
            "acl": "private",
        }
