# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One run at a time, and a lock that cannot go stale (restic#3219: 787 hours)."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from agentmem_backup import lock, runs
from agentmem_backup.errors import LockedError

HOLDER = """
import sys
from pathlib import Path
from agentmem_backup import lock
with lock.hold(Path(sys.argv[1]), "create"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "backups" / ".state" / "lock"


@contextmanager
def held(path: Path) -> Iterator[subprocess.Popen[str]]:
    words = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        try:
            yield holder
        finally:
            holder.kill()


def test_a_second_run_is_told_who_holds_the_lock_and_since_when(path: Path) -> None:
    with held(path) as holder, pytest.raises(LockedError) as caught, lock.hold(path, "restore"):
        pass
    told = str(caught.value)
    assert caught.value.exit_code == 75
    assert str(path.parent.parent) in told
    assert f"create (process {holder.pid}) since 20" in told
    assert "--lock-wait" in told


def test_waiting_gets_the_lock_once_it_is_free(path: Path) -> None:
    got = threading.Event()

    def wait() -> None:
        with lock.hold(path, "restore", 60):
            got.set()

    with held(path) as holder:
        waiting = threading.Thread(target=wait, daemon=True)
        waiting.start()
        assert not got.wait(0.5)
        assert holder.stdin is not None
        holder.stdin.close()
        assert got.wait(60)
    waiting.join()


def test_waiting_ends_with_a_sentence(path: Path) -> None:
    with held(path), pytest.raises(LockedError, match=r"after waiting 0\.3 s: create"), lock.hold(path, "restore", 0.3):
        pass


def test_a_killed_holder_holds_nothing(path: Path) -> None:
    with held(path) as holder:
        holder.kill()
        holder.wait()
        assert path.exists()
        with lock.hold(path, "restore"):
            pass


def test_an_error_in_the_block_frees_the_lock(path: Path) -> None:
    with pytest.raises(RuntimeError), lock.hold(path, "create"):
        raise RuntimeError
    with lock.hold(path, "restore"):
        pass


def test_a_lock_file_that_says_nothing_is_no_obstacle(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\xff{")
    with lock.hold(path, "create"):
        path.write_bytes(b"\xff{")
        with pytest.raises(LockedError, match="another run is at work"), lock.hold(path, "restore"):
            pass


def test_the_lock_and_its_directory_are_private(path: Path) -> None:
    with lock.hold(path, "create"):
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_longer_holder_leaves_no_rest_behind(path: Path) -> None:
    with lock.hold(path, "a verb with a very long name indeed"):
        pass
    with lock.hold(path, "x"), pytest.raises(LockedError, match=r"x \(process"), lock.hold(path, "y"):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_makes_belongs_to_the_directorys_owner(tmp_path: Path) -> None:
    """A set that `sudo` made is verified, pruned and followed by the backup user's timer."""
    os.chown(tmp_path, 65534, 65533)
    kept = tmp_path / ".state" / "replaced" / "kept"
    kept.parent.mkdir(parents=True)
    kept.touch()
    (tmp_path / "theirs").touch()
    os.chown(tmp_path / "theirs", 1234, 1234)
    (tmp_path / "link").symlink_to(kept)
    with pytest.raises(ValueError), lock.hold(tmp_path / ".state" / "lock", "create"):
        (tmp_path / "manifest_20250103_120000.json").touch()
        raise ValueError
    for name in ("manifest_20250103_120000.json", ".state", ".state/lock", ".state/replaced", "link"):
        found = (tmp_path / name).lstat()
        assert (found.st_uid, found.st_gid) == (65534, 65533), name
    assert kept.stat().st_uid == 0
    assert (tmp_path / "theirs").stat().st_uid == 1234


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_remembers_of_its_run_belongs_to_the_directorys_owner(tmp_path: Path) -> None:
    """It is written after the lock is let go, and the backup user's next run reads it."""
    os.chown(tmp_path, 65534, 65533)
    with runs.changing(tmp_path) as known:
        known["runs"]["restore"] = {"ended": "2025-01-03T12:00:00Z"}
    for name in (".history", ".history/runs.json"):
        found = (tmp_path / name).stat()
        assert (found.st_uid, found.st_gid) == (65534, 65533), name


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_in_roots_own_directory_nothing_changes_hands(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with lock.hold(tmp_path / ".state" / "lock", "create"):
        pass
    assert (tmp_path / "x").stat().st_uid == 0
