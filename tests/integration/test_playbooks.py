# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbooks, run by their names from an installed collection, on four real stores whose data is compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.support import command, compare
from tests.support.collection import Played, build, install, play
from tests.support.servers import Stores

Run = Callable[..., Played]


@pytest.fixture(scope="module")
def collections(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A path with this collection, installed from its artifact, and no other."""
    return install(build(tmp_path_factory.mktemp("artifact")), tmp_path_factory.mktemp("installed")).parents[2]


@pytest.fixture
def run(stores: Stores, collections: Path, tmp_path: Path) -> Run:
    """Run a playbook of the collection; what the host's own configuration file says is all that it is told of the stores."""
    settings = tmp_path / "config.yml"
    settings.touch(mode=0o600)
    settings.write_text(yaml.safe_dump(configuration(stores)))
    options = {"settings_file": str(settings), "interpreter": "/there/is/none"}

    def run(name: str, *arguments: str, **variables: object) -> Played:
        told = json.dumps({"agentmem_backup_options": options, **variables})
        return play(f"agentmem.backup.{name}", tmp_path, collections, "-e", told, *arguments)

    return run


def configuration(stores: Stores) -> dict[str, object]:
    """What stands in /etc/agentmem-backup/config.yml of a host with these stores."""
    postgres, redis, qdrant = stores.postgres, stores.redis, stores.qdrant
    return {
        "backup_dir": str(stores.backup_dir),
        "log_dir": str(stores.log_dir),
        "postgresql": {
            "host": postgres.host,
            "port": postgres.port,
            "database": postgres.dbname,
            "user": postgres.app_user,
            "password": postgres.app_password,
        },
        "redis": {"host": redis.host, "port": redis.port, "password": redis.password, "data_dir": str(redis.dir)},
        "qdrant": {"url": qdrant.url, "api_key": qdrant.api_key or ""},
        "config": {"directory": str(stores.config_dir)},
    }


def good(played: Played) -> dict[str, object]:
    """What the run told of its host, which must have succeeded."""
    assert played.code == 0, played.output
    return dict(played.stats["agentmem_backup_sets"]["stores"])


def test_backup_verify_destroy_restore(stores: Stores, run: Run) -> None:
    before = compare.capture(stores)
    made = good(run("backup"))
    assert made == {"id": command.manifest(stores, str(made["id"]))["id"], "verdict": "verified"}
    assert good(run("verify")) == made
    assert good(run("verify", agentmem_backup_id=made["id"])) == made

    stores.destroy()
    gone = compare.capture(stores)
    assert len(compare.differences(before, gone)) > 20
    refused = run("restore")
    assert refused.code == 2 and "set confirm to true" in refused.output
    assert compare.differences(gone, compare.capture(stores)) == []

    assert good(run("restore", agentmem_backup_confirm="yes")) == {"id": made["id"], "equal": True}
    assert compare.differences(before, compare.capture(stores)) == []


def test_check_mode_tells_the_plan_and_makes_nothing(stores: Stores, run: Run) -> None:
    played = run("backup", "--check", "-v")
    assert good(played) == {}
    assert "a set would be made" in played.output
    assert [path for path in stores.backup_dir.iterdir() if not path.name.startswith(".")] == []


def test_a_damaged_set_fails_the_play_and_the_verdict_is_told(stores: Stores, run: Run) -> None:
    made = command.create(stores)
    file = stores.backup_dir / made["files"]["redis"]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    played = run("verify")
    assert played.code == 2
    assert played.stats["agentmem_backup_sets"] == {"stores": {"id": made["id"], "verdict": "failed"}}
    before = compare.capture(stores)
    refused = run("restore", agentmem_backup_confirm=True)
    assert refused.code == 2 and "does not verify" in refused.output.replace("\n", " ")
    assert compare.differences(before, compare.capture(stores)) == []


def test_no_secret_is_shown_with_all_verbosity(stores: Stores, run: Run) -> None:
    stores.redis.stop()
    try:
        played = run("backup", "-vvv")
    finally:
        stores.redis.start()
    assert played.code == 2 and "Redis" in played.output
    secrets = (stores.postgres.app_password, stores.redis.password, stores.qdrant.api_key)
    assert [one for one in secrets if one and (one in played.output or json.dumps(one)[1:-1] in played.output)] == []
