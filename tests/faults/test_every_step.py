# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Killed, stopped or out of disk at every step that the journal knows: nothing is lost, and the next run clears up.

The steps are not listed here: a first run writes down which there are, and each of them is then hit.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from agentmem_backup import backup_set, create, lock, restore, verify
from agentmem_backup.components.postgresql import PostgresqlRestoration
from agentmem_backup.components.redis import RedisRestoration
from agentmem_backup.errors import BackupError
from agentmem_backup.progress import Reporter
from agentmem_backup.settings import load

from tests.support import command, compare
from tests.support.at_step import AtStep
from tests.support.disks import can_mount, small_disk
from tests.support.servers import Stores, wait_until

pytestmark = pytest.mark.timeout(900)
Record = Callable[[str, object], None]
"""pytest's record_property; what is recorded as `listed` stands in the run's last lines."""


@pytest.fixture(scope="module")
def program() -> Iterator[AtStep]:
    """The command, warm."""
    with AtStep() as program:
        yield program


@dataclass
class Stopper:
    """Runs of one command on the stores, stopped or hampered at one step after the other."""

    program: AtStep
    stores: Stores
    trace: Path
    arguments: tuple[str, ...]

    def steps(self) -> list[str]:
        """The steps of a run that nothing stops."""
        done = self.program.run(self.stores, *self.arguments, trace=self.trace)
        assert done.returncode == 0, done.stdout + done.stderr
        return self.taken()

    def taken(self) -> list[str]:
        """The steps of the last run."""
        return self.trace.read_text().splitlines()

    def run(self, number: int, action: str) -> subprocess.CompletedProcess[str]:
        """One run to which `action` happens at step `number`."""
        done = self.program.run(self.stores, *self.arguments, number=number, action=action, trace=self.trace)
        assert "Traceback" not in done.stderr
        return done


def recover(stores: Stores) -> None:
    """What every run begins with: finish or remove what a killed one left."""
    settings = load(environment=stores.environment())
    with lock.hold(stores.backup_dir / backup_set.STATE / "lock", "test", 0):
        create.clear_the_way(stores.backup_dir, settings, Reporter())


def has_snapshots(stores: Stores) -> bool:
    with stores.qdrant.client() as client:
        names = [one["name"] for one in client.get("/collections").json()["result"]["collections"]]
        return any(client.get(f"/collections/{name}/snapshots").json()["result"] for name in names)


def assert_nothing_is_left(stores: Stores, told: str = "", *, snapshots: bool = True) -> None:
    staging = stores.backup_dir / ".staging"
    assert not staging.exists() or list(staging.iterdir()) == [], told
    assert not (snapshots and has_snapshots(stores)), told
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


def keep_newest_set(stores: Stores) -> None:
    """Keep the next rounds short."""
    for path in sorted(stores.backup_dir.glob("manifest_*.json"))[:-1]:
        one = path.name.removeprefix("manifest_").removesuffix(".json")
        for file in stores.backup_dir.glob(f"*_{one}.*"):
            file.unlink()


@pytest.mark.parametrize("action", ["kill", "term"])
def test_create_stopped_at_every_step(
    program: AtStep, stores: Stores, tmp_path: Path, action: str, record_property: Record
) -> None:
    """A terminated run leaves nothing; after a killed one, nothing is left once the next has looked."""
    stopper = Stopper(program, stores, tmp_path / "trace", ("create",))
    steps = stopper.steps()
    assert len(steps) > 12
    assert {"begin", "file", "publish", "move", "published"} <= {step.split()[0] for step in steps}
    # From this step on a set is finished: by the next run, or by a run that is asked to end and has begun to move files.
    visible = "publish" if action == "kill" else "move"
    for number in range(1, len(steps) + 1):
        done = stopper.run(number, action)
        taken = stopper.taken()
        assert done.returncode == (-9 if action == "kill" else 1) or len(taken) < number, done.stderr
        if action == "kill":
            recover(stores)
        told = f"after {action} at step {number}, {taken[-1]}: {done.stderr}"
        assert assert_every_set_is_whole(stores) == (2 if visible in taken else 1), told
        if action == "kill":
            # Another store's step may have been the last while Qdrant made a snapshot: it comes late, at any moment, and a later
            # look takes it.
            wait_until(lambda: recover(stores) is None and not has_snapshots(stores), 30, lambda: None)
        assert_nothing_is_left(stores, told, snapshots=action != "kill")
        keep_newest_set(stores)
    assert stopper.steps()
    assert assert_every_set_is_whole(stores) == 2
    assert_nothing_is_left(stores)
    record_property("listed", f"create was hit by {action} at: {', '.join(steps)}")


def test_disk_filled_at_every_step(program: AtStep, stores: Stores, tmp_path: Path, record_property: Record) -> None:
    if not can_mount(tmp_path / "probe"):
        pytest.skip("this machine does not let us mount a small disk")
    stopper = Stopper(program, stores, tmp_path / "trace", ("create",))
    with small_disk(stores.backup_dir, 200):
        steps = stopper.steps()
        (first,) = stores.backup_dir.glob("manifest_*.json")
        failures = 0
        ballast = stores.backup_dir / "ballast"
        for number in range(1, len(steps) + 1):
            done = stopper.run(number, f"fill:{ballast}")
            ballast.unlink(missing_ok=True)
            if done.returncode != 0:
                failures += 1
                assert "the disk is full" in done.stderr, done.stderr
            recover(stores)
            assert_every_set_is_whole(stores)
            assert_nothing_is_left(stores, f"after a full disk at step {number}: {done.stderr}")
            assert first.exists()
            for path in sorted(stores.backup_dir.glob("manifest_*.json"))[1:]:
                one = path.name.removeprefix("manifest_").removesuffix(".json")
                for file in stores.backup_dir.glob(f"*_{one}.*"):
                    file.unlink()
        assert failures > len(steps) / 2, f"the disk was full at {failures} of {len(steps)} steps only"
        assert stopper.steps()
        assert assert_every_set_is_whole(stores) == 2
    record_property("listed", f"create met a full disk at: {', '.join(steps)}")


@pytest.mark.parametrize("action", ["kill", "term"])
def test_restore_stopped_at_every_step(
    program: AtStep, stores: Stores, tmp_path: Path, action: str, record_property: Record
) -> None:
    """A terminated restore takes everything back by itself; what a killed one left, the next finishes or undoes."""
    before = compare.capture(stores)
    command.create(stores)
    stores.destroy()
    stopper = Stopper(program, stores, tmp_path / "trace", ("restore", "latest", "--yes", *command.QUIET))
    beside = stopper.steps()
    assert {"prepare", "switch", "switched", "complete"} <= {step.split()[0] for step in beside}
    assert compare.differences(before, compare.capture(stores)) == []
    steps = stopper.steps()  # over live data there are more: safety copies
    for number in range(1, len(steps) + 1):
        done = stopper.run(number, action)
        taken = stopper.taken()
        assert done.returncode == (-9 if action == "kill" else 1) or len(taken) < number, done.stdout + done.stderr
        if action == "kill":
            assert stopper.steps()
        told = f"after {action} at step {number}, {taken[-1]}: {done.stderr}"
        assert compare.differences(before, compare.capture(stores)) == [], told
        assert_nothing_is_left(stores, told)
        shutil.rmtree(stores.backup_dir / ".state" / "previous", ignore_errors=True)
    assert command.restore(stores, "latest")["equal"]
    assert compare.differences(before, compare.capture(stores)) == []
    record_property("listed", f"restore was hit by {action} at: {', '.join(steps)}")


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
