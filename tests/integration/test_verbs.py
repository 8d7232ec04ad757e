# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The verbs through the command, on four real stores: what is printed, what is written, what is refused."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shlex
import shutil
import subprocess
import time
from pathlib import Path
from typing import NoReturn

import pytest
from agentmem_backup import cli, restore
from agentmem_backup.components.postgresql import PostgresqlRestoration
from agentmem_backup.errors import BackupError, Cancelled
from agentmem_backup.progress import Reporter
from agentmem_backup.settings import load

from tests.support import command, compare, data, disks, page_cache
from tests.support.servers import Stores, empty_directory

GUIDE_TEXT = """\
=========================================
Verifying Backup Set: {id}
=========================================

1. Database Backup
-------------------
✓ Database backup exists: {dir}/db_{id}.dump.gz
✓ Database backup size OK: {db_size}
✓ Database backup gzip integrity OK
✓ Database backup is valid PostgreSQL dump
  SHA256: {db_sha}

2. Redis Backup
---------------
✓ Redis backup size OK: {redis_size}
✓ Redis backup format OK
  SHA256: {redis_sha}

3. Qdrant Backup
----------------
✓ Qdrant backup size OK: {qdrant_size}
✓ Qdrant backup tar integrity OK (N files)
  SHA256: {qdrant_sha}

4. Configuration Backup
-----------------------
✓ Config backup size OK: {config_size}
✓ Config backup tar integrity OK (N files)
  SHA256: {config_sha}

5. Manifest File
----------------
✓ Manifest file exists

=========================================
✓ Backup verification PASSED
=========================================
"""


def sizes_and_digests(directory: Path, set_id: str) -> dict[str, str]:
    """What du and sha256sum say of the files of a set."""
    facts = {"id": set_id, "dir": str(directory)}
    for prefix, suffix in (("db", "dump.gz"), ("redis", "rdb"), ("qdrant", "tar.gz"), ("config", "tar.gz")):
        path = directory / f"{prefix}_{set_id}.{suffix}"
        du = subprocess.run(
            ["du", "-h", "--apparent-size", str(path)], capture_output=True, text=True, check=True
        ).stdout.split()[0]
        sha = subprocess.run(["sha256sum", str(path)], capture_output=True, text=True, check=True).stdout.split()[0]
        facts |= {f"{prefix}_size": du, f"{prefix}_sha": sha}
    return facts


def wait_a_second() -> None:
    """Two sets never share an ID, which names the second."""
    second = int(time.time())
    while int(time.time()) == second:
        time.sleep(0.02)


def test_a_good_set_is_described_in_the_guides_words(stores: Stores) -> None:
    made = command.create(stores)
    done = command.good(stores, made["id"], program="verify-backup.sh")
    shown = re.sub(r"\(\d+ files\)", "(N files)", done.stdout)
    assert shown == GUIDE_TEXT.format(**sizes_and_digests(stores.backup_dir, made["id"]))
    text = (stores.backup_dir / f"manifest_{made['id']}.txt").read_text()
    facts = sizes_and_digests(stores.backup_dir, made["id"])
    date = f"{made['id'][:4]}-{made['id'][4:6]}-{made['id'][6:8]} {made['id'][9:11]}:{made['id'][11:13]}:{made['id'][13:]}"
    blocks = "".join(
        f"  - {prefix}_{made['id']}.{suffix}\n    Size: {facts[prefix + '_size']}\n    SHA256: {facts[prefix + '_sha']}\n\n"
        for prefix, suffix in (("db", "dump.gz"), ("redis", "rdb"), ("qdrant", "tar.gz"), ("config", "tar.gz"))
    )
    rule = "=" * 32
    head = f"AgentMem Backup Manifest\nDate: {date}\nBackup ID: {made['id']}\n{rule}\n\nBackup Files:\n"
    assert text == f"{head}{blocks}{rule}\nTotal Files: 4\n"


def test_what_lies_on_the_disk_is_private_and_complete(stores: Stores) -> None:
    made = command.create(stores)
    names = {path.name for path in stores.backup_dir.iterdir() if not path.name.startswith(".")}
    assert names == {
        f"{part}_{made['id']}.{suffix}"
        for part, suffix in (
            ("db", "dump.gz"),
            ("redis", "rdb"),
            ("qdrant", "tar.gz"),
            ("config", "tar.gz"),
            ("manifest", "txt"),
            ("manifest", "json"),
        )
    }
    for path in stores.backup_dir.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, f"{path} can be read by others"
    listed = json.loads(command.good(stores, "list", "--json").stdout)
    assert [(row["id"], row["type"], row["verdict"]) for row in listed] == [(made["id"], "full", "verified")]
    assert json.loads(command.good(stores, "info", "latest", "--json").stdout)["manifest"]["skew_s"] == made["skew_s"] < 5


def test_everything_comes_back_equal(stores: Stores) -> None:
    before = compare.capture(stores)
    command.create(stores, "--fingerprint", "content")
    stores.destroy()
    assert len(compare.differences(before, compare.capture(stores))) > 20
    answer = command.restore(stores, "latest")
    assert compare.differences(before, compare.capture(stores)) == []
    assert answer["equal"]
    assert set(answer["components"]) == {"postgresql", "redis", "qdrant", "config"}
    assert all(one["compared"] > 0 and one["differences"] == [] for one in answer["components"].values())


def test_a_restore_over_changed_data_brings_the_old_state_back(stores: Stores) -> None:
    before = compare.capture(stores)
    command.create(stores)
    for flip in (compare.flip_one_column, compare.flip_one_expiry, compare.flip_one_payload, compare.flip_one_mode):
        flip(stores)
    assert len(compare.differences(before, compare.capture(stores))) >= 4
    command.restore(stores, "latest")
    assert compare.differences(before, compare.capture(stores)) == []


@pytest.mark.parametrize("component", ["postgresql", "redis", "qdrant", "config"])
def test_one_component_alone(stores: Stores, component: str) -> None:
    before = compare.capture(stores)
    made = command.create(stores, "--component", component)
    assert made["partial"]["absent"] == [one for one in ("postgresql", "redis", "qdrant", "config") if one != component]
    report = command.good(stores, "verify", made["id"]).stdout
    assert report.count("not part of this set") == 3
    assert "PASSED" in report
    stores.destroy()
    after = compare.capture(stores)
    lost = len(compare.differences(before, after))
    command.restore(stores, made["id"])
    left = compare.differences(before, compare.capture(stores))
    label = {"config": "configuration", "postgresql": "PostgreSQL", "redis": "Redis", "qdrant": "Qdrant"}[component]
    assert 0 < len(left) < lost
    assert not [text for text in left if text.lower().startswith((component, label.lower()))]


def on_a_terminal(stores: Stores, answer: str, *arguments: str) -> tuple[int, str]:
    """Run the command on a pseudo-terminal and answer its question; returns its exit code and what was shown."""
    controller, terminal = pty.openpty()
    child = subprocess.Popen(
        [command.BIN / arguments[0], *arguments[1:]],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env={**command.environment(stores), "TERM": "xterm"},
    )
    os.close(terminal)
    shown, answered = b"", False
    while True:
        ready, __, __ = select.select([controller], [], [], 60)
        if not ready:
            break
        try:
            piece = os.read(controller, 65536)
        except OSError:
            break
        if not piece:
            break
        shown += piece
        if not answered and b"(yes/no): " in shown:
            os.write(controller, f"{answer}\n".encode())
            answered = True
    os.close(controller)
    if not answered:
        child.kill()
    return child.wait(timeout=60), shown.decode(errors="replace")


def test_only_yes_means_yes(stores: Stores) -> None:
    made = command.create(stores)
    compare.flip_one_column(stores)
    before = compare.capture(stores)
    for answer in ("no", "y", "YES", ""):
        code, shown = on_a_terminal(stores, answer, "restore.sh", "--all", made["id"])
        assert "⚠️  This will overwrite existing data. Continue? (yes/no): " in shown
        assert code == 1
        assert "nothing was touched" in shown
    assert compare.differences(before, compare.capture(stores)) == []


def test_yes_on_a_terminal_restores_with_progress(stores: Stores) -> None:
    before = compare.capture(stores)
    made = command.create(stores)
    compare.flip_one_column(stores)
    __, shown = on_a_terminal(stores, "yes", "restore.sh", "--all", made["id"])
    assert "switched to the restored data" in shown
    assert compare.differences(before, compare.capture(stores)) == []


def test_without_a_terminal_nothing_is_overwritten_unasked(stores: Stores) -> None:
    made = command.create(stores)
    compare.flip_one_column(stores)
    before = compare.capture(stores)
    done = command.run(stores, "--all", made["id"], program="restore.sh")
    assert done.returncode == 2
    assert "--yes" in done.stderr
    assert compare.differences(before, compare.capture(stores)) == []


def test_dry_run_tells_the_plan_and_touches_nothing(stores: Stores) -> None:
    made = command.create(stores)
    before = compare.capture(stores)
    files = sorted(path.name for path in stores.backup_dir.iterdir())
    done = command.good(stores, "restore", made["id"], "--dry-run")
    for word in ("postgresql:", "redis:", "qdrant:", "config:", "fence:"):
        assert word in done.stdout
    assert stores.postgres.dbname in done.stdout
    assert compare.differences(before, compare.capture(stores)) == []
    assert sorted(path.name for path in stores.backup_dir.iterdir()) == files
    planned = command.good(stores, "create", "--dry-run").stdout
    assert "would make a set" in planned
    assert len(json.loads(command.good(stores, "list", "--json").stdout)) == 1


def test_single_files_in_any_combination(stores: Stores) -> None:
    before = compare.capture(stores)
    made = command.create(stores)
    stores.destroy()
    folder = stores.backup_dir
    command.good(
        stores,
        "--redis",
        str(folder / f"redis_{made['id']}.rdb"),
        "--config",
        str(folder / f"config_{made['id']}.tar.gz"),
        "--yes",
        program="restore.sh",
        env={"AGENTMEM": "1"},
    )
    left = compare.differences(before, compare.capture(stores))
    assert left
    assert not [text for text in left if text.lower().startswith(("redis", "config"))]
    command.good(
        stores,
        "--db",
        str(folder / f"db_{made['id']}.dump.gz"),
        "--qdrant",
        str(folder / f"qdrant_{made['id']}.tar.gz"),
        "--yes",
        program="restore.sh",
    )
    assert compare.differences(before, compare.capture(stores)) == []


def test_a_named_file_may_have_any_name(stores: Stores, tmp_path: Path) -> None:
    """The guide's `--db FILE --redis FILE`: whose a file is the option says."""
    before = compare.capture(stores)
    made = command.create(stores)
    stores.destroy()
    words = []
    for option, file, name in (
        ("--db", f"db_{made['id']}.dump.gz", "last good dump"),
        ("--redis", f"redis_{made['id']}.rdb", "dump.rdb"),
        ("--qdrant", f"qdrant_{made['id']}.tar.gz", "vectors"),
        ("--config", f"config_{made['id']}.tar.gz", "conf.tgz"),
    ):
        shutil.copy(stores.backup_dir / file, tmp_path / name)
        words += [option, str(tmp_path / name)]
    command.good(stores, *words, "--yes", program="restore.sh")
    assert compare.differences(before, compare.capture(stores)) == []
    mixed = command.run(stores, "--redis", str(stores.backup_dir / f"db_{made['id']}.dump.gz"), "--yes", program="restore.sh")
    assert mixed.returncode == 2
    assert "is a file of postgresql by its name, and not of redis" in mixed.stderr
    assert compare.differences(before, compare.capture(stores)) == []


def test_another_environment(stores: Stores) -> None:
    made = command.create(stores)
    before = compare.capture(stores)
    path = stores.backup_dir / f"db_{made['id']}.dump.gz"
    command.good(stores, "--db", str(path), "--yes", program="restore.sh", env={"DB_NAME": "agentmem_restored"})
    assert compare.differences(before, compare.capture(stores)) == [], "the live stores were touched"
    with stores.postgres.connect("agentmem_restored") as restored, stores.postgres.connect(stores.postgres.dbname) as live:
        query = "SELECT md5(string_agg(m::text, '|' ORDER BY m::text)) FROM memories m"
        assert restored.execute(query).fetchone() == live.execute(query).fetchone()


def test_another_host_gets_everything(stores: Stores) -> None:
    """Other servers, other passwords, another directory, another name for the database, a prefix for the collections."""
    made = command.create(stores)
    before = compare.capture(stores)
    with Stores() as other:
        env = {**other.environment(), "BACKUP_DIR": str(stores.backup_dir), "DB_NAME": "agentmem copy"}
        words = ("restore", made["id"], "--yes", "--json", *command.QUIET)
        refused = command.run(stores, *words, env=env)
        assert refused.returncode == 1
        assert f'CREATE ROLE "{data.READER}" first' in refused.stderr
        data.create_reader(other.postgres)
        answer = json.loads(command.good(stores, *words, env=env).stdout)
        assert answer["equal"]
        assert set(answer["components"]) == {"postgresql", "redis", "qdrant", "config"}
        with other.postgres.connect() as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{other.postgres.dbname}"')
            connection.execute(f'ALTER DATABASE "agentmem copy" RENAME TO "{other.postgres.dbname}"')
        assert compare.differences(before, compare.capture(other)) == []
        command.good(stores, *words, "--component", "qdrant", "--collection-prefix", "old_", env=env)
        with other.qdrant.client() as client:
            names = {one["name"] for one in client.get("/collections").json()["result"]["collections"]}
            aliases = client.get("/aliases").json()["result"]["aliases"]
        assert names == {"agents", "memories", "old_agents", "old_memories"}
        assert {(one["alias_name"], one["collection_name"]) for one in aliases} == {
            ("current", "memories"),
            ("old_current", "old_memories"),
        }
    assert compare.differences(before, compare.capture(stores)) == [], "the first stores were touched"


def test_before_a_time_takes_the_newest_verified_set_before_it(stores: Stores) -> None:
    before = compare.capture(stores)
    first = command.create(stores)
    wait_a_second()
    compare.flip_one_column(stores)
    second = command.create(stores)
    answer = command.restore(stores, "--before", first["id"])
    assert answer["restored"] == first["id"] != second["id"]
    assert compare.differences(before, compare.capture(stores)) == []
    done = command.run(stores, "restore", "--yes", "--before", "2001-01-01")
    assert done.returncode == 2
    assert "no verified set from before" in done.stderr


def test_a_wrong_id_is_one_sentence(stores: Stores) -> None:
    command.create(stores, "--component", "config")
    for which, says in (
        ("20250103_120000", "there is no set 20250103_120000"),
        ("20251399_120000", "is not the ID of a set"),
        ("tomorrow", "is not the ID of a set"),
        ("../../etc/passwd", "is not the ID of a set"),
    ):
        for verb in (("restore", "--yes"), ("info",)):
            done = command.run(stores, *verb, which)
            assert done.returncode == 2, done.stderr
            assert says in done.stderr
            assert len(done.stderr.strip().splitlines()) == 1
        done = command.run(stores, "verify", which)
        assert done.returncode == 2


def damaged(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "bit":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "gone":
        path.unlink()


@pytest.mark.parametrize("part", ["db", "redis", "qdrant", "config", "manifest"])
def test_damage_is_told_and_nothing_is_restored_from_it(stores: Stores, part: str) -> None:
    made = command.create(stores)
    before = compare.capture(stores)
    path = next(one for one in stores.backup_dir.glob(f"{part}_{made['id']}.*") if part != "manifest" or one.suffix == ".json")
    whole = path.read_bytes()
    for how in ("cut", "bit", "empty", "gone"):
        path.write_bytes(whole)
        damaged(path, how)
        done = command.run(stores, made["id"], program="verify-backup.sh")
        assert done.returncode == 3, done.stdout
        assert "✗ Backup verification FAILED" in done.stdout
        faults = [line for line in done.stdout.splitlines() if line.startswith("✗")]
        assert any(path.name in line for line in faults), faults
        refused = command.run(stores, "restore", "--yes", made["id"])
        assert refused.returncode in (2, 3)
        assert "Traceback" not in refused.stderr
    assert compare.differences(before, compare.capture(stores)) == []


def test_files_swapped_between_sets_are_found(stores: Stores) -> None:
    first = command.create(stores)
    wait_a_second()
    compare.flip_one_column(stores)
    second = command.create(stores)
    one, two = (stores.backup_dir / f"db_{made['id']}.dump.gz" for made in (first, second))
    spare = stores.backup_dir / "spare"
    one.rename(spare)
    two.rename(one)
    spare.rename(two)
    for made in (first, second):
        done = command.run(stores, "verify", made["id"])
        assert done.returncode == 3
        assert "SHA256" in done.stdout
    shutil.copy(two, stores.backup_dir / f"db_{first['id']}.dump.zst")
    assert "although the manifest does not name it" in command.run(stores, "verify", first["id"]).stdout


def test_an_edited_manifest_and_a_newer_one(stores: Stores) -> None:
    made = command.create(stores, "--component", "config")
    path = stores.backup_dir / f"manifest_{made['id']}.json"
    original = path.read_text()
    path.write_text(original.replace('"skew_s"', '"skew_x"'))
    assert "was changed after it was written" in command.run(stores, "verify", made["id"]).stdout
    path.write_text(original.replace('"format": 1', '"format": 2'))
    done = command.run(stores, "restore", "--yes", made["id"])
    assert done.returncode == 3
    assert "upgrade agentmem-backup" in done.stderr


def test_the_plan_warns_where_qdrant_has_not_three_times_the_room_that_an_upload_takes(stores: Stores, tmp_path: Path) -> None:
    """A field note: such an upload ends with 500, and its file stays."""
    if not disks.can_mount(tmp_path / "try"):
        pytest.skip("this machine lets nobody mount a small disk")
    made = command.create(stores)
    manifest = json.loads((stores.backup_dir / f"manifest_{made['id']}.json").read_text())
    collections = manifest["components"]["qdrant"]["inventory"]["collections"]
    largest = max(one["size"] for collection in collections for one in collection["snapshots"])
    (data_dir := tmp_path / "storage").mkdir()
    for more, warned in ((-0.05, True), (0.05, False)):
        with disks.small_disk(data_dir, 3 * largest / (1 << 20) + more):
            done = command.good(stores, "restore", made["id"], "--dry-run", "--set", f"qdrant.data_dir={data_dir}")
        assert ("three times the largest snapshot" in done.stdout + done.stderr) is warned


def test_a_single_file_with_and_without_its_set(stores: Stores, tmp_path: Path) -> None:
    made = command.create(stores)
    for path in stores.backup_dir.glob(f"*_{made['id']}.*"):
        if path.name.startswith("manifest"):
            continue
        assert "PASSED" in command.good(stores, str(path), program="verify-backup.sh").stdout
        alone = tmp_path / path.name
        shutil.copy(path, alone)
        assert "PASSED" in command.good(stores, str(alone), program="verify-backup.sh").stdout
        damaged(alone, "cut")
        done = command.run(stores, str(alone), program="verify-backup.sh")
        assert done.returncode == 3, done.stdout


def test_quick_reads_digests_and_does_not_claim_more(stores: Stores) -> None:
    made = command.create(stores)
    quick = command.good(stores, "verify", "--depth", "quick", made["id"]).stdout
    assert quick.count("SHA256:") == 4
    assert "integrity OK" not in quick
    damaged(stores.backup_dir / f"qdrant_{made['id']}.tar.gz", "bit")
    assert command.run(stores, "verify", "--depth", "quick", made["id"]).returncode == 3


@pytest.mark.parametrize("depth", ["quick", "full"])
def test_verify_asks_the_disk_and_not_the_page_cache(stores: Stores, depth: str) -> None:
    path = stores.backup_dir / f"qdrant_{command.create(stores)['id']}.tar.gz"
    middle = path.stat().st_size // 2
    if not page_cache.can_be_passed(path):
        pytest.skip("this file system has no O_DIRECT")
    command.good(stores, "verify", "--depth", depth, str(path))
    assert not page_cache.remembers(path, middle)
    path.read_bytes()
    assert page_cache.remembers(path, middle)


def test_a_store_that_shrank_raises_the_alarm_until_acknowledged(stores: Stores) -> None:
    first = command.create(stores)
    with stores.postgres.connect_application(autocommit=True) as connection:
        connection.execute("TRUNCATE memories, messages CASCADE")
    wait_a_second()
    done = command.run(stores, "create", "--json")
    assert done.returncode == 3
    second = json.loads(done.stdout)
    assert second["verdict"] == "suspicious"
    assert "postgresql shrank by" in second["alarms"][0]
    held = command.good(stores, "prune", "--dry-run", "--json", "--set", "retention_days=1").stdout
    assert "suspicious" in json.loads(held)["held"]
    verified = command.run(stores, "verify", second["id"])
    assert verified.returncode == 3
    assert "SUSPICIOUS" in verified.stdout
    assert command.good(stores, "verify", second["id"], "--acknowledge").stdout.count("PASSED") == 1
    assert json.loads(command.good(stores, "prune", "--dry-run", "--json").stdout)["held"] == ""
    assert first["verdict"] == "verified"


def test_a_filtered_store_is_named_and_does_not_count_as_shrunk(stores: Stores) -> None:
    command.create(stores)
    wait_a_second()
    done = command.create(stores, "--set", "redis.exclude_keys=session:*", "--set", "postgresql.exclude_tables=public.mess*")
    assert done["alarms"] == []
    assert command.manifest(stores, done["id"])["partial"] == {"absent": [], "filtered": ["postgresql", "redis"]}


def test_the_plan_names_the_places_where_the_old_data_will_lie(stores: Stores) -> None:
    command.create(stores)
    done = command.good(stores, "restore", "latest", "--yes", *command.QUIET)
    told = set(re.findall(r"kept as (\S+)|saved in (\S+?)[; ]", done.stdout))
    places = {one or two for one, two in told}
    assert len(places) == 3  # the database, Qdrant's folder, the configuration's old directory
    with stores.postgres.connect() as connection:
        there = {str(name) for (name,) in connection.execute("SELECT datname FROM pg_database")}
    assert {place for place in places if place not in there and not Path(place).exists()} == set()
    for path in (stores.backup_dir / ".state").rglob("*"):
        if path.is_dir():
            assert path.stat().st_mode & 0o777 == 0o700, path


def aged(stores: Stores, made: dict[str, object], days: int) -> str:
    """A copy of a set that looks as if it had been made `days` ago (a legacy one: it has no JSON)."""
    moment = time.strftime("%Y%m%d_%H%M%S", time.gmtime(time.time() - days * 86400))
    for path in stores.backup_dir.glob(f"*_{made['id']}.*"):
        if path.suffix != ".json":
            shutil.copy(path, path.with_name(path.name.replace(str(made["id"]), moment)))
    return moment


def test_retention_removes_by_age_and_never_the_newest_good_set(stores: Stores) -> None:
    made = command.create(stores, "--component", "config")
    old, young, future = aged(stores, made, 40), aged(stores, made, 5), aged(stores, made, -3)
    plan = json.loads(command.good(stores, "prune", "--dry-run", "--json").stdout)
    assert plan["remove"] == [old]
    assert "future" in plan["reasons"][future]
    wait_a_second()
    again = command.create(stores, "--component", "config")
    assert again["removed"] == [old]
    present = {row["id"] for row in json.loads(command.good(stores, "list", "--json").stdout)}
    assert present == {made["id"], young, future, again["id"]}
    bystander = stores.backup_dir / "db_notes.txt"
    bystander.write_text("mine")
    (stores.backup_dir / ".history" / "verdicts.jsonl").unlink()  # now no set is known to be good
    aged(stores, made, 50)
    done = command.good(stores, "prune")
    assert "nothing is removed" in done.stderr
    assert bystander.read_text() == "mine"


def test_a_second_run_says_who_holds_the_lock(stores: Stores, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\ncat {gate}\n")
    hook.chmod(0o755)
    first = subprocess.Popen(
        [command.BIN / "agentmem-backup", "create", "--component", "config", "--set", f"hooks.before={hook}"],
        env=command.environment(stores),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with gate.open("w"):  # opens when the hook has opened its end: the first run holds the lock
        done = command.run(stores, "create", "--component", "config")
        assert done.returncode == 75
        assert f"create (process {first.pid})" in done.stderr
        waited = command.run(stores, "create", "--lock-wait", "0.3")
        assert waited.returncode == 75
        assert "after waiting" in waited.stderr
    first.communicate(timeout=60)
    assert first.returncode == 0


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        ("missing", "does not exist"),
        ("link", "is a symbolic link"),
        ("file", "is not a directory"),
    ],
)
def test_a_bad_backup_directory_is_one_sentence(stores: Stores, tmp_path: Path, spoil: str, says: str) -> None:
    place = tmp_path / "sets"
    if spoil == "link":
        (tmp_path / "real").mkdir()
        place.symlink_to(tmp_path / "real")
    elif spoil == "file":
        place.write_text("")
    done = command.run(stores, "create", env={"BACKUP_DIR": str(place)})
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_every_missing_thing_is_told_at_once(stores: Stores) -> None:
    wrong = {"DB_PASSWORD": "no", "REDIS_PASSWORD": "no", "QDRANT_API_KEY": "no", "CONFIG_DIR": "/nonexistent"}
    if stores.qdrant.api_key is None:
        wrong["QDRANT_URL"] = "http://127.0.0.1:9"
    done = command.run(stores, "create", env=wrong)
    assert done.returncode == 1
    for name in ("postgresql:", "redis:", "qdrant:", "config:"):
        assert name in done.stderr
    assert not [path for path in stores.backup_dir.iterdir() if not path.name.startswith(".")]
    checked = command.run(stores, "check", env=wrong)
    assert checked.returncode == 1
    assert checked.stdout.count("✗") >= 4


def test_check_for_monitors(stores: Stores) -> None:
    assert "no verified set" in command.run(stores, "check", "--max-age", "26h").stdout
    command.create(stores)
    done = command.good(stores, "check", "--max-age", "26h")
    assert done.stdout.count("✓") >= 6
    assert command.run(stores, "check", "--max-age", "soon").returncode == 2


def test_hooks_know_the_run_and_not_the_secrets(stores: Stores, tmp_path: Path) -> None:
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\nenv > {tmp_path}/$AGENTMEM_HOOK\n")
    hook.chmod(0o755)
    words = [word for name in ("before", "after", "error") for word in ("--set", f"hooks.{name}={hook}")]
    made = command.create(stores, "--component", "config", *words)
    assert f"AGENTMEM_ID={made['id']}" in (tmp_path / "after").read_text()
    assert stores.postgres.app_password not in (tmp_path / "before").read_text()
    assert not (tmp_path / "error").exists()
    done = command.run(stores, "create", "--component", "config", *words, env={"CONFIG_DIR": "/nonexistent"})
    assert done.returncode == 1
    assert "AGENTMEM_ERROR=" in (tmp_path / "error").read_text()
    hook.write_text("#!/bin/sh\necho the array is degraded >&2\nexit 7\n")
    wait_a_second()
    done = command.run(stores, "create", "--component", "config", "--set", f"hooks.before={hook}")
    assert done.returncode == 1
    assert "the array is degraded" in done.stderr
    assert len(json.loads(command.good(stores, "list", "--json").stdout)) == 1


def test_the_audit_log_finds_what_was_done_to_it(stores: Stores) -> None:
    made = command.create(stores, "--component", "config")
    wait_a_second()
    command.create(stores, "--component", "config")
    command.good(stores, "verify", made["id"])
    assert "whole" in command.good(stores, "audit", "--check").stdout
    log = stores.backup_dir / ".history" / "audit.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    assert [json.loads(line)["verb"] for line in lines] == ["create", "create", "verify"]
    for spoilt in ([lines[0].replace("verified", "forged"), *lines[1:]], lines[1:], [*lines[:1], *lines[2:]], lines[:-1], []):
        log.write_text("".join(spoilt))
        done = command.run(stores, "audit", "--check")
        assert done.returncode == 3, spoilt
    log.unlink()
    assert command.run(stores, "audit", "--check").returncode == 3


def test_the_log_file_has_a_line_a_step_and_no_colour(stores: Stores) -> None:
    done = command.good(stores, program="backup.sh")
    log = (stores.log_dir / "backup.log").read_text()
    for name in ("postgresql", "redis", "qdrant", "config"):
        assert re.search(rf"^\S+Z INFO {name}: \S+ .* verified$", log, re.MULTILINE)
        assert f"{name}: " in done.stdout
    assert "\x1b" not in log + done.stdout


def test_extract_each_kind(stores: Stores, tmp_path: Path) -> None:
    command.create(stores)
    table, keys, file = tmp_path / "memories.csv", tmp_path / "keys.jsonl", tmp_path / "env"
    command.good(stores, "extract", "latest", "--table", "public.memories", "--output", str(table))
    command.good(stores, "extract", "latest", "--keys", "*", "--output", str(keys))
    command.good(stores, "extract", "latest", "--file", ".env", "--output", str(file))
    command.good(stores, "extract", "latest", "--collection", "memories", "--output", str(tmp_path / "memories.snapshot"))
    assert file.read_bytes() == (stores.config_dir / ".env").read_bytes()
    with stores.postgres.connect(stores.postgres.dbname) as connection:
        rows = connection.execute("SELECT count(*) FROM memories").fetchone()
    import csv

    with table.open(newline="") as lines:
        assert rows is not None
        assert len(list(csv.reader(lines))) == rows[0] + 1
    with stores.redis.client() as client:
        total = sum(facts["keys"] for facts in client.info("keyspace").values())
    assert len(keys.read_text().splitlines()) == total
    again = command.run(stores, "extract", "latest", "--file", ".env", "--output", str(file))
    assert again.returncode == 2
    absent = command.run(stores, "extract", "latest", "--table", "public.absent", "--output", str(tmp_path / "absent"))
    assert absent.returncode in (1, 2)
    assert "absent" in absent.stderr
    assert not (tmp_path / "absent").exists()


def test_config_shows_where_each_value_comes_from(stores: Stores, tmp_path: Path) -> None:
    file = tmp_path / "config.yml"
    file.write_text("retention_days: 12\ncompression_level: 1\n")
    done = command.good(stores, "config", "--show", "--config", str(file), "--set", "compression_level=3")
    assert re.search(r"^retention_days +12  \[.*config.yml\]$", done.stdout, re.MULTILINE)
    assert re.search(r"^compression_level +3  \[command line\]$", done.stdout, re.MULTILINE)
    assert re.search(r"^postgresql.password +\*{8}  \[DB_PASSWORD\]$", done.stdout, re.MULTILINE)
    assert stores.postgres.app_password not in done.stdout
    refused = command.run(stores, "config", "--set", "postgresql.password=x")
    assert refused.returncode == 2
    assert "must not stand on the command line" in refused.stderr


def test_help_completion_and_version(stores: Stores) -> None:
    assert command.good(stores, "--version").stdout.startswith("agentmem-backup ")
    for script in ("backup.sh", "restore.sh", "verify-backup.sh"):
        assert "BACKUP_DIR" in command.good(stores, "--help", program=script).stdout
    for verb in ("create", "verify", "restore", "list", "info", "extract", "check", "config", "audit", "prune"):
        told = command.good(stores, verb, "--help").stdout
        assert "--json" in told
        for typed in re.findall(r"^  agentmem-backup (.+?)(?:  .*)?$", told, re.MULTILINE):  # examples must be understood
            parsed = cli.parser().parse_args(shlex.split(typed))
            assert parsed.verb == verb
    script = command.good(stores, "completion", "bash").stdout
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    for words, offered in (("re", "restore report"), ("restore --accept ma", "maxmemory"), ("create --component q", "qdrant")):
        typed = f"COMP_WORDS=(agentmem-backup {words}); COMP_CWORD={len(words.split())}"
        program = f'{script}\n{typed}; _shtab_agentmem_backup; echo "${{COMPREPLY[*]}}"'
        done = subprocess.run(["bash", "-s"], input=program, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == offered
    done = command.run(stores, "destroy")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1


def test_an_application_that_is_not_let_back_in_tears_no_store_from_the_others(stores: Stores, tmp_path: Path) -> None:
    before = compare.capture(stores)
    made = command.create(stores)
    stores.destroy()
    hooks = tmp_path / "hooks.yml"
    hooks.write_text("hooks:\n  fence: [/bin/true]\n  release: [/bin/false]\n")
    done = command.run(stores, "restore", made["id"], "--yes", "--config", str(hooks), *command.QUIET)
    assert done.returncode == 1
    assert "every store holds the restored data" in done.stderr
    assert "the hook release failed" in done.stderr
    assert compare.differences(before, compare.capture(stores)) == []
    assert list((stores.backup_dir / ".staging").iterdir()) == []


def restored(stores: Stores, set_id: str) -> restore.Restored:
    """A restore in this process."""
    done = restore.restore(load(environment=stores.environment()), Reporter(), restore.Request(set_id), lambda plan: True)
    assert done is not None
    return done


def test_what_the_application_writes_once_it_is_let_in_is_no_difference(stores: Stores, tmp_path: Path) -> None:
    """The live data is compared while the application is still kept out."""
    made = command.create(stores, "--fingerprint", "content")
    stores.destroy()
    application = tmp_path / "application"
    application.write_text(
        "#!/bin/sh\npsql -qc 'TRUNCATE log_without_key'\n"
        f"psql -qc 'ALTER TABLE blocks RENAME COLUMN label TO title'\nrm '{stores.config_dir}/.env'\n"
    )
    application.chmod(0o755)
    hooks = tmp_path / "hooks.yml"
    hooks.write_text(f"hooks:\n  fence: [/bin/true]\n  release: [{application}]\n")
    env = stores.postgres.libpq_environment()
    assert command.restore(stores, made["id"], "--config", str(hooks), env=env)["equal"]
    assert not (stores.config_dir / ".env").exists()  # it was let in


def test_two_restores_never_give_the_old_data_one_name(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two within one second failed: there was a database of that name."""
    made = command.create(stores)
    waited: list[str] = []
    monkeypatch.setattr(restore.clock, "outlast", waited.append)
    state = restored(stores, made["id"]).states["postgresql"]
    assert [state.rpartition("__before_")[2]] == waited


def test_what_cannot_be_compared_is_told_as_restored_and_not_as_failed(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    before = compare.capture(stores)
    made = command.create(stores)
    stores.destroy()

    def broken(*__: object) -> NoReturn:
        raise BackupError("the connection broke")

    monkeypatch.setattr(PostgresqlRestoration, "compare", broken)
    done = restored(stores, made["id"])
    assert done.differences == ["postgresql: it is restored, and cannot be compared: the connection broke"]
    assert not done.sound
    assert "is the restored one" in done.states["postgresql"]
    assert all(done.comparisons[name].equal for name in ("redis", "qdrant", "config"))
    assert compare.differences(before, compare.capture(stores)) == []


def test_a_look_that_is_broken_off_says_that_everything_is_restored(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    made = command.create(stores)
    before = compare.capture(stores)
    stores.destroy()

    def stopped(*__: object) -> NoReturn:
        raise Cancelled("stopped by SIGTERM")

    monkeypatch.setattr(restore.post_checks, "run", stopped)
    with pytest.raises(Cancelled) as caught:
        restored(stores, made["id"])
    told = "every store holds the restored data, but the checks afterwards were broken off (stopped by SIGTERM); postgresql: "
    assert str(caught.value).startswith(told)
    assert all(f"; {name}: " in str(caught.value) for name in ("qdrant", "redis", "config"))
    assert compare.differences(before, compare.capture(stores)) == []


def test_a_set_whose_manifest_has_vanished_is_not_taken_for_a_legacy_one(stores: Stores) -> None:
    made = command.create(stores)
    (stores.backup_dir / f"manifest_{made['id']}.json").unlink()
    done = command.run(stores, made["id"], program="verify-backup.sh")
    assert done.returncode == 3
    assert f"✗ the manifest {stores.backup_dir}/manifest_{made['id']}.json is missing" in done.stdout
    before = compare.capture(stores)
    assert command.run(stores, "restore", made["id"], "--yes").returncode == 3
    assert compare.differences(before, compare.capture(stores)) == []
    file = str(stores.backup_dir / f"config_{made['id']}.tar.gz")
    assert "without a manifest" in command.good(stores, "restore", "--config-archive", file, "--yes", *command.QUIET).stdout


def test_an_option_that_would_be_passed_over_is_refused(stores: Stores) -> None:
    made = command.create(stores, "--component", "postgresql", "--component", "redis")
    dump = str(stores.backup_dir / f"db_{made['id']}.dump.gz")
    for words, said in (
        (("--db", dump, "--component", "redis"), "leave out --component"),
        (("--db", dump, "--only-collection", "memories"), "--only-collection is about qdrant"),
        (("--db", dump, "--collection-prefix", "old_"), "--collection-prefix is about qdrant"),
        ((made["id"], "--component", "redis", "--only-table", "memories"), "--only-table is about postgresql"),
    ):
        done = command.run(stores, "restore", *words, "--yes")
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr


def test_the_plan_says_what_a_partial_set_lacks_and_that_a_set_is_suspicious(stores: Stores) -> None:
    made = command.create(stores, "--component", "config")
    plan = command.good(stores, "restore", made["id"], "--dry-run").stdout
    assert "is partial: postgresql, redis, qdrant not in it" in plan
    assert "partial" not in command.good(stores, "restore", made["id"], "--component", "config", "--dry-run").stdout
    (stores.config_dir / "large").write_bytes(os.urandom(1 << 20))
    wait_a_second()
    command.create(stores, "--component", "config")
    (stores.config_dir / "large").unlink()
    wait_a_second()
    assert command.run(stores, "create", "--component", "config").returncode == 3
    assert "suspicious: config shrank by" in command.good(stores, "restore", "latest", "--dry-run").stdout


def test_a_set_of_the_configuration_keeps_no_monitor_quiet(stores: Stores) -> None:
    command.create(stores, "--component", "config")
    done = command.run(stores, "check", "--max-age", "26h")
    assert done.returncode == 1
    assert "no verified set of postgresql, redis, qdrant, config" in done.stdout
    command.good(stores, "check", "--max-age", "26h", "--set", "components=config")


def test_a_terminal_that_knows_no_check_mark_ends_no_backup(stores: Stores) -> None:
    env = {"PYTHONIOENCODING": "latin-1", "DB_PASSWORD": "wrong"}
    done = command.run(stores, "check", env=env)
    assert done.returncode == 1
    assert "\\u2713" in done.stdout
    assert "unexpected" not in done.stderr + done.stdout


def test_a_name_with_a_line_of_its_own_stays_in_one_line_of_the_log(stores: Stores) -> None:
    with stores.postgres.connect_application(autocommit=True) as connection:
        connection.execute('CREATE TABLE "x\n2025-01-01T00:00:00.000Z INFO set verified" ()')
    done = command.good(stores, "create", "--component", "postgresql", "--set", "postgresql.exclude_tables=public.x*")
    log = (stores.log_dir / "backup.log").read_text().splitlines()
    assert "\\n2025-01-01" in done.stderr
    assert not [line for line in log if line.startswith("2025-01-01")]


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_without_its_standard_streams_it_works_all_the_same(stores: Stores, closed: str) -> None:
    """As some crontabs have it. The next file that is opened must not take a stream's place."""
    before = compare.capture_config(stores.config_dir)
    for asked in ("create --component config --component redis", "verify latest", "restore latest --yes --component config"):
        script = f'exec "$0" {asked} --set health_url= {closed}'
        done = command.run(stores, str(command.BIN / "agentmem-backup"), program=("sh", "-c", script))
        assert done.returncode == 0, done
        if asked.startswith("verify"):
            empty_directory(stores.config_dir)
    assert compare.capture_config(stores.config_dir) == before


def test_a_full_disk_under_the_log_or_the_output_fails_no_backup(stores: Stores) -> None:
    (stores.log_dir / "backup.log").unlink(missing_ok=True)
    (stores.log_dir / "backup.log").symlink_to("/dev/full")
    command.create(stores, "--component", "config")
    wait_a_second()
    script = 'exec "$0" create --component config >/dev/full'  # as cron does, on a full disk
    done = command.run(stores, str(command.BIN / "agentmem-backup"), program=("sh", "-c", script))
    assert (done.returncode, done.stderr) == (0, "")
    rows = json.loads(command.good(stores, "list", "--json").stdout)
    assert [row["verdict"] for row in rows] == ["verified", "verified"]
    for asked in ("list", "--help"):
        told = command.run(stores, str(command.BIN / "agentmem-backup"), program=("sh", "-c", f'exec "$0" {asked} >/dev/full'))
        sentence = "agentmem-backup: writing the output failed: the disk is full: make room or prune old sets\n"
        assert (told.returncode, told.stderr) == (1, sentence)
    piped = command.run(stores, str(command.BIN / "agentmem-backup"), program=("sh", "-c", '{ "$0" list; echo $? >&2; } | true'))
    assert piped.stderr == "1\n"


def test_a_stray_file_among_the_work_in_progress_stops_nothing(stores: Stores) -> None:
    stray = stores.backup_dir / ".staging" / "notes"
    stray.parent.mkdir(mode=0o700)
    stray.write_text("mine")
    assert "left " + str(stray) in command.good(stores, "create", "--component", "config").stderr
    assert command.good(stores, "list").stdout.count("verified") == 1
    assert stray.read_text() == "mine"
