# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One run at a time in a backup directory: `flock`, which the kernel lets go of when its holders are gone.

The descriptor is handed to the programs that the run starts (see `process`): where the run is killed, the directory
stays locked until the last `pg_dump` or `pg_restore` that still writes has ended. A lock file left behind holds nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import clock, process
from .errors import LockedError

_LAST_BREATH_S = 10.0
"""How long to wait, unasked, where the holder itself is gone: the programs that it started are just ending."""


def _facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text())
        return {"verb": str(facts["verb"]), "pid": int(facts["pid"]), "since": str(facts["since"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _holder(facts: dict[str, Any]) -> str:
    if not facts:
        return "another run"
    gone = "" if _alive(facts["pid"]) else "a program started by "
    return f"{gone}{facts['verb']} (process {facts['pid']}) since {facts['since']}"


def _alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists() or not Path("/proc/self").exists()


@contextlib.contextmanager
def hold(path: Path, verb: str, wait_s: float = 0) -> Iterator[None]:
    """Hold the lock at `path` for the length of the block.

    Takes the verb that is run (told to whoever finds the lock held) and how many seconds to wait for it. Raises
    `LockedError` that says who holds it and since when.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        begun = time.monotonic()
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                facts = _facts(path)
                allowed = wait_s if not facts or _alive(facts["pid"]) else max(wait_s, _LAST_BREATH_S)
                left = begun + allowed - time.monotonic()
                if left <= 0:
                    waited = f" after waiting {wait_s:g} s" if wait_s else ""
                    raise LockedError(
                        f"{path.parent.parent} is locked{waited}: {_holder(facts)} is at work there; "
                        "wait for it, or give --lock-wait SECONDS"
                    ) from None
                time.sleep(min(0.2, left))
        holder = {"pid": os.getpid(), "verb": verb, "since": clock.iso(clock.now())}
        with contextlib.suppress(OSError):  # on a full disk nobody learns who holds it, and sets can still be removed
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        with process.inheriting(descriptor):
            yield
    finally:
        hand_over(path.parent.parent)
        os.close(descriptor)


def hand_over(directory: Path) -> None:
    """Give what root made in a backup directory to the directory's owner, whose next run would else be refused.

    Sets, and what lies right in the directory's own folders; not what is deeper, which may be a restore's old files with the
    owners that they had.
    """
    owner = directory.stat()
    if os.geteuid() != 0 or owner.st_uid == 0:
        return
    for place in (directory, *(directory / name for name in (".staging", ".state", ".history"))):
        with contextlib.suppress(FileNotFoundError), os.scandir(place) as entries:
            for entry in entries:
                if entry.stat(follow_symlinks=False).st_uid == 0:
                    os.chown(entry.path, owner.st_uid, owner.st_gid, follow_symlinks=False)
