# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Take one table, collection, key pattern or file out of a set, without touching a store."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from . import backup_set, lock, pipeline, registry, verify
from .backup_set import Staging
from .clock import now, set_id
from .components.base import Context, Source
from .errors import UsageError, VerificationError
from .progress import Reporter
from .settings import Settings


def extract(settings: Settings, reporter: Reporter, which: str, component: str, what: str, target: Path, form: str = "") -> str:
    """Write `what` of a component in the set `which` to `target`, which must not exist; returns a sentence on what was written.

    The component's file is verified first. Raises UsageError, VerificationError, BackupError.
    """
    directory = backup_set.directory(settings.backup_dir, write=False)
    one = backup_set.find(directory, which)
    if component not in one.holds:
        raise UsageError(f"set {one.id} has no {component}: it holds {', '.join(one.holds)}")
    if target.exists() or target.is_symlink():
        raise UsageError(f"{target} exists already: name a file that does not")
    path = one.holds[component]
    report = verify.verify_file(settings, reporter, path)
    if report.faults:
        raise VerificationError(f"{path.name} does not verify, so nothing was taken out of it: {'; '.join(report.faults)}")
    source = Source(path, pipeline.compression_of(path), one.entry(component))
    with _workplace(directory, settings, reporter) as context:
        return registry.CLASSES[component](context).extract(source, what, target, form)


@contextlib.contextmanager
def _workplace(directory: Path, settings: Settings, reporter: Reporter) -> Iterator[Context]:
    """Where the component may leave what it needs: beside the sets, or, where nothing can be written there, elsewhere.

    A disk that is going is mounted read-only by the kernel, and that is when somebody wants a file from it.
    """
    if not os.access(directory, os.W_OK):  # says no on a read-only file system, to root as well
        with tempfile.TemporaryDirectory(prefix="agentmem-extract-") as folder:
            yield Context(settings, reporter, Path(folder), lambda step, **facts: None)
        return
    with lock.hold(directory / backup_set.STATE / "lock", "extract", settings.lock_wait_s):
        staging = Staging(directory, f"extract-{set_id(now())}")
        try:
            yield Context(settings, reporter, staging.work, staging.note)
        finally:
            staging.discard()
