# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sets that the guide's own scripts made: five files and no JSON. They are listed, verified, restored and pruned."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import subprocess
import time
from pathlib import Path

from tests.support import command, compare
from tests.support.servers import Stores

ID = "20250103_120000"


def make_legacy(stores: Stores, *, digests: bool = True) -> Path:
    """What the guide's backup.sh does, with its own programs; returns the backup directory."""
    folder = stores.backup_dir
    environment = {**command.environment(stores), **stores.postgres.libpq_environment()}
    dump = subprocess.run(
        [stores.postgres.bindir / "pg_dump", "-F", "c", stores.postgres.dbname], env=environment, capture_output=True, check=True
    ).stdout
    (folder / f"db_{ID}.dump.gz").write_bytes(gzip.compress(dump, 6))
    with stores.redis.client() as client:
        client.save()
    shutil.copy(stores.redis.rdb, folder / f"redis_{ID}.rdb")
    if stores.qdrant.kind == "url":
        (folder / "empty").mkdir()
    storage = folder / "empty" if stores.qdrant.kind == "url" else stores.qdrant.storage
    subprocess.run(["tar", "-czf", folder / f"qdrant_{ID}.tar.gz", "-C", storage, "."], check=False, capture_output=True)
    subprocess.run(["tar", "-czf", folder / f"config_{ID}.tar.gz", "-C", stores.config_dir, "."], check=True)
    blocks = ""
    for name in (f"db_{ID}.dump.gz", f"redis_{ID}.rdb", f"qdrant_{ID}.tar.gz", f"config_{ID}.tar.gz"):
        sha = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        blocks += f"  - {name}\n    Size: 1M\n    SHA256: {sha if digests else sha[:12] + '...'}\n\n"
    rule = "=" * 32
    head = f"AgentMem Backup Manifest\nDate: 2025-01-03 12:00:00\nBackup ID: {ID}\n{rule}\n\nBackup Files:\n"
    (folder / f"manifest_{ID}.txt").write_text(f"{head}{blocks}{rule}\nTotal Files: 4\n")
    return folder


def test_a_legacy_set_is_listed_and_verified(stores: Stores) -> None:
    make_legacy(stores, digests=False)
    row = json.loads(command.good(stores, "list", "--json").stdout)[0]
    assert (row["id"], row["type"], row["verdict"]) == (ID, "legacy", "never verified")
    shown = command.good(stores, ID, program="verify-backup.sh").stdout
    for line in (
        "✓ Database backup gzip integrity OK",
        "✓ Database backup is valid PostgreSQL dump",
        "✓ Redis backup format OK",
        "✓ Manifest file exists",
        "✓ Backup verification PASSED",
    ):
        assert line in shown.splitlines()


def test_its_digests_are_compared_where_its_manifest_has_them_whole(stores: Stores) -> None:
    folder = make_legacy(stores)
    command.good(stores, ID, program="verify-backup.sh")
    path = folder / f"config_{ID}.tar.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), 1))  # the same content, not the same file
    done = command.run(stores, ID, program="verify-backup.sh")
    assert done.returncode == 3
    assert "does not have the SHA256" in done.stdout


def test_a_cut_legacy_file_is_found_without_any_digest(stores: Stores) -> None:
    folder = make_legacy(stores, digests=False)
    path = folder / f"db_{ID}.dump.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-400]))  # whole gzip, cut archive
    done = command.run(stores, ID, program="verify-backup.sh")
    assert done.returncode == 3, done.stdout


def test_postgresql_redis_and_configuration_come_back(stores: Stores) -> None:
    before = compare.capture(stores)
    folder = make_legacy(stores)
    stores.destroy()
    words = [word for name in ("postgresql", "redis", "config") for word in ("--component", name)]
    done = command.run(stores, "restore", ID, "--yes", *command.QUIET, *words)
    left = [text for text in compare.differences(before, compare.capture(stores)) if not text.startswith("Qdrant")]
    # The guide's tar keeps neither access lists nor extended attributes.
    assert [text for text in left if "extended attribute" not in text and "access list" not in text] == [], (
        done.stdout + done.stderr
    )
    assert "equal to what was backed up" not in done.stdout, "there was nothing to compare with"
    assert "came without a manifest to compare with" in done.stdout
    assert done.returncode == 0
    assert (folder / f"db_{ID}.dump.gz").exists()


def test_the_torn_copy_of_qdrants_directory_is_refused_in_words(stores: Stores) -> None:
    make_legacy(stores)
    before = compare.capture(stores)
    done = command.run(stores, "restore", ID, "--yes", *command.QUIET)
    assert done.returncode == 1
    assert "qdrant:" in done.stderr
    assert "Traceback" not in done.stderr
    assert compare.differences(before, compare.capture(stores)) == []


def test_a_legacy_set_grows_old_like_any_other(stores: Stores) -> None:
    folder = make_legacy(stores)
    assert command.create(stores, "--component", "config")["removed"] == []
    next_second = time.time() + 1
    while time.time() < next_second:
        time.sleep(0.05)
    made = command.create(stores)
    assert made["removed"] == [ID]
    assert not list(folder.glob(f"*_{ID}.*"))


def test_half_a_legacy_set_is_not_restored_as_if_it_were_whole(stores: Stores) -> None:
    folder = make_legacy(stores)
    (folder / f"qdrant_{ID}.tar.gz").unlink()  # the torn one, which would be refused anyhow
    (folder / f"db_{ID}.dump.gz").unlink()
    before = compare.capture(stores)
    done = command.run(stores, "--all", ID, "--yes", program="restore.sh")
    assert done.returncode == 3
    assert f"Database backup is missing: {folder}/db_{ID}.dump.gz" in done.stderr
    assert compare.differences(before, compare.capture(stores)) == []
    command.good(stores, "restore", ID, "--component", "redis", "--yes", *command.QUIET)


def test_a_configuration_that_the_text_manifest_names_must_be_there(stores: Stores) -> None:
    folder = make_legacy(stores, digests=False)
    (folder / f"config_{ID}.tar.gz").unlink()
    done = command.run(stores, ID, program="verify-backup.sh")
    assert done.returncode == 3
    assert f"✗ Config backup is missing: {folder}/config_{ID}.tar.gz" in done.stdout
