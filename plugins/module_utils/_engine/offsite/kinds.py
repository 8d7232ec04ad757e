# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which kinds of target there are, and how one is reached in a run."""

from __future__ import annotations

from .. import targets
from ..settings import Settings
from ..targets import Target
from .azure import AzureRemote
from .base import Place, Remote
from .gcs import GcsRemote
from .rsync import RsyncRemote
from .s3 import S3Remote

CLASSES: dict[str, type[Remote]] = {"s3": S3Remote, "gcs": GcsRemote, "azure": AzureRemote, "rsync": RsyncRemote}
"""Type of a target → its class."""


def reach(settings: Settings, target: Target, place: Place) -> Remote:
    """A place's folder at a target."""
    limit = targets.rate(target["bandwidth_limit"] or settings.offsite.bandwidth_limit)
    return CLASSES[target.type](target, place, settings.offsite.timeout_s, limit)
