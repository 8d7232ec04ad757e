# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Killed, stopped or out of disk at every step that the journal knows: nothing is lost, and the next run clears up.

The steps are not listed here: a first run writes down which there are, and each of them is then hit.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from agentmem_backup import backup_set, restore, verify
from agentmem_backup.components.postgresql import PostgresqlRestoration
from agentmem_backup.components.redis import RedisRestoration
from agentmem_backup.errors import BackupError
from agentmem_backup.progress import Reporter
from agentmem_backup.settings import load

from tests.support import command, compare
from tests.support.servers import Stores

pytestmark = pytest.mark.timeout(900)
AT_STEP = (sys.executable, "-m", "tests.support.at_step")


def run_until(stores: Stores, trace: Path, number: int, action: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    trace.unlink(missing_ok=True)
    return command.run(stores, *arguments, program=(*AT_STEP, str(number), action, str(trace), "--"))


def steps_of(stores: Stores, trace: Path, *arguments: str) -> list[str]:
    done = run_until(stores, trace, 0, "none", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return trace.read_text().splitlines()


def next_second() -> None:
    """Two sets never share an ID, which names the second."""
    second = int(time.time())
    while int(time.time()) == second:
        time.sleep(0.02)


def assert_nothing_is_left(stores: Stores, told: str = "") -> None:
    staging = stores.backup_dir / ".staging"
    assert not staging.exists() or list(staging.iterdir()) == []
    with stores.qdrant.client() as client:
        for one in client.get("/collections").json()["result"]["collections"]:
            assert client.get(f"/collections/{one['name']}/snapshots").json()["result"] == []
    with stores.postgres.connect() as connection:
        names = [row[0] for row in connection.execute("SELECT datname FROM pg_database")]
    assert [name for name in names if "__restore" in name or "__scratch" in name] == [], told
    with stores.redis.client() as client:
        assert client.info("replication")["role"] == "master"


def assert_every_set_is_whole(stores: Stores) -> int:
    manifests = sorted(stores.backup_dir.glob("manifest_*.json"))
    named = {path.name.removeprefix("manifest_").removesuffix(".json") for path in manifests}
    lying = {path.name.split(".")[0].partition("_")[2] for path in stores.backup_dir.iterdir() if not path.name.startswith(".")}
    assert lying == named, "files lie there that no manifest describes"
    settings = load(environment={"BACKUP_DIR": str(stores.backup_dir)})
    for one in backup_set.sets(stores.backup_dir):
        report = verify.examine_set(settings, Reporter(), one)
        assert report.verdict == "verified", report.faults
    return len(named)


@pytest.mark.parametrize("action", ["kill", "term"])
def test_create_stopped_at_every_step(stores: Stores, tmp_path: Path, action: str) -> None:
    trace = tmp_path / "trace"
    steps = steps_of(stores, trace, "create")
    assert len(steps) > 12
    assert {"begin", "file", "publish", "move", "published"} <= {step.split()[0] for step in steps}
    for number in range(1, len(steps) + 1):
        next_second()
        done = run_until(stores, trace, number, action, "create")
        assert done.returncode == (-9 if action == "kill" else 1) or len(trace.read_text().splitlines()) < number, done.stderr
        if action == "term":
            assert "Traceback" not in done.stderr
        before = assert_every_set_is_whole(stores) if action == "term" else None
        next_second()
        command.create(stores)
        after = assert_every_set_is_whole(stores)
        assert before is None or after == before + 1
        assert_nothing_is_left(stores)
        for path in sorted(stores.backup_dir.glob("manifest_*.json"))[:-1]:  # keep the next rounds short
            one = path.name.removeprefix("manifest_").removesuffix(".json")
            for file in stores.backup_dir.glob(f"*_{one}.*"):
                file.unlink()
    print(f"\ncreate was hit by {action} at: {', '.join(steps)}")


@contextlib.contextmanager
def small_disk(path: Path, megabytes: int) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0700", "tmpfs", str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def can_mount(path: Path) -> bool:
    path.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(path)], capture_output=True, check=False)
    if done.returncode == 0:
        subprocess.run(["umount", str(path)], check=True)
    return done.returncode == 0


def test_disk_filled_at_every_step(stores: Stores, tmp_path: Path) -> None:
    if not can_mount(tmp_path / "probe"):
        pytest.skip("this machine does not let us mount a small disk")
    trace = tmp_path / "trace"
    with small_disk(stores.backup_dir, 200):
        first = command.create(stores)["id"]
        next_second()
        steps = steps_of(stores, trace, "create")
        failures = 0
        ballast = stores.backup_dir / "ballast"
        for number in range(1, len(steps) + 1):
            next_second()
            done = run_until(stores, trace, number, f"fill:{ballast}", "create")
            ballast.unlink(missing_ok=True)
            if done.returncode != 0:
                failures += 1
                assert "the disk is full" in done.stderr, done.stderr
                assert "Traceback" not in done.stderr
            next_second()
            command.create(stores)
            assert_every_set_is_whole(stores)
            assert_nothing_is_left(stores)
            assert (stores.backup_dir / f"manifest_{first}.json").exists()
            for path in sorted(stores.backup_dir.glob("manifest_*.json"))[1:]:
                one = path.name.removeprefix("manifest_").removesuffix(".json")
                for file in stores.backup_dir.glob(f"*_{one}.*"):
                    file.unlink()
        assert failures > len(steps) / 2, f"the disk was full at {failures} of {len(steps)} steps only"


@pytest.mark.parametrize("action", ["kill", "term"])
def test_restore_stopped_at_every_step(stores: Stores, tmp_path: Path, action: str) -> None:
    trace = tmp_path / "trace"
    before = compare.capture(stores)
    command.create(stores)
    stores.destroy()
    steps = steps_of(stores, trace, "restore", "latest", "--yes", *command.QUIET)
    assert {"prepare", "switch", "switched", "complete"} <= {step.split()[0] for step in steps}
    assert compare.differences(before, compare.capture(stores)) == []
    for number in range(1, len(steps) + 1):
        done = run_until(stores, trace, number, action, "restore", "latest", "--yes", *command.QUIET)
        assert done.returncode != 0 or len(trace.read_text().splitlines()) < number, done.stdout
        if action == "term":
            assert "Traceback" not in done.stderr
        answer = command.restore(stores, "latest")
        assert answer["equal"]
        assert compare.differences(before, compare.capture(stores)) == [], f"after {action} at step {number}: {steps[number - 1]}"
        assert_nothing_is_left(stores, f"after {action} at step {number}, {steps[number - 1]}: {done.stderr}")
        shutil.rmtree(stores.backup_dir / ".state" / "previous", ignore_errors=True)
    print(f"\nrestore was hit by {action} at: {', '.join(steps)}")


def test_what_could_not_be_taken_back_is_left_to_the_next_run(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    before = compare.capture(stores)
    command.create(stores)
    stores.destroy()

    def refuse(self: object) -> None:
        raise RuntimeError("the server went away")

    def fail(self: object) -> None:
        raise BackupError("the switch failed")

    with monkeypatch.context() as broken:
        broken.setattr(RedisRestoration, "commit", fail)
        broken.setattr(PostgresqlRestoration, "abort", refuse)
        with pytest.raises(BackupError, match="postgresql could not be taken back, the next run tries again") as failure:
            restore.restore(load(environment=stores.environment()), Reporter(), restore.Request("latest"), lambda plan: True)
    assert "the server went away" in str(failure.value)
    assert list((stores.backup_dir / ".staging").iterdir()) != []
    answer = command.restore(stores, "latest")
    assert answer["equal"]
    assert compare.differences(before, compare.capture(stores)) == []
    assert_nothing_is_left(stores)
