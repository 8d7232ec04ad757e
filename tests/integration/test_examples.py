# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every EXAMPLES block of every module runs as it stands: the host says where the stores are, variables hold the secrets."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.plugin_docs import read_docstring

from tests.support import command, compare
from tests.support.collection import play
from tests.support.endpoints import Sshd
from tests.support.servers import CHECKOUT, Stores, empty_directory

MODULES = CHECKOUT / "plugins" / "modules"
FAMILIES = {
    "postgresql": ["postgresql_dump", "postgresql_verify", "postgresql_restore"],
    "redis": ["redis_dump", "redis_verify", "redis_restore"],
    "qdrant": ["qdrant_dump", "qdrant_verify", "qdrant_restore"],
    "config": ["config_dump", "config_verify", "config_restore"],
    "backup_set": [
        *("backup_set_create", "backup_set_info", "backup_set_verify", "backup_set_sync"),
        *("backup_set_report", "backup_fleet_report", "backup_set_restore"),
    ],
}
"""Each store's modules, in an order in which one can use what the one before has made."""


def examples(module: str) -> list[dict[str, Any]]:
    """The tasks of a module's EXAMPLES, found as ansible-doc finds them."""
    text = read_docstring(str(MODULES / f"{module}.py"))["plainexamples"]
    tasks = yaml.safe_load(text)
    assert isinstance(tasks, list) and tasks, f"{module} has no examples"
    assert any(f"agentmem.backup.{module}" in task for task in tasks), f"the examples of {module} do not use it"
    return tasks


class Host:
    """A host whose own settings name the stores, and whose secrets come from variables."""

    def __init__(self, stores: Stores, directory: Path):
        self.stores = stores
        self.directory = directory
        self.collections = directory / "collections"
        ours = self.collections / "ansible_collections" / "agentmem"
        ours.mkdir(parents=True)
        (ours / "backup").symlink_to(CHECKOUT)
        self.certificate = directory / "ca-certificates.crt"
        self.certificate.write_text("a certificate\n")
        self.elsewhere: dict[str, object] = {}

    def settings(self) -> dict[str, object]:
        """Where the stores are; nothing secret, for the examples give that themselves."""
        postgres, redis = self.stores.postgres, self.stores.redis
        return {
            "log_dir": str(self.stores.log_dir),
            "health_url": "",  # there is no application to ask after a restore
            "postgresql.host": postgres.host,
            "postgresql.port": postgres.port,
            "redis.host": redis.host,
            "redis.port": redis.port,
            "qdrant.url": self.stores.qdrant.url,
            **self.elsewhere,
        }

    def here(self, text: str) -> str:
        """The examples' places, which a test must not touch on this machine, as places of this test."""
        places = {
            "/etc/ssl/certs/ca-certificates.crt": str(self.certificate),
            "/tmp/agentmem-config-restored": str(self.restored),
            "/srv/www/backups": str(self.directory),
        }
        for place, ours in places.items():
            text = text.replace(place, ours)
        return text

    @property
    def restored(self) -> Path:
        return self.directory / "config restored"

    def run(self, *modules: str) -> None:
        """Run the examples of these modules in one play. Every task must be run, and succeed."""
        tasks = [task for module in modules for task in examples(module)]
        options = {"backup_dir": str(self.stores.backup_dir), "settings": self.settings(), "interpreter": "/there/is/none"}
        defaults: dict[str, Any] = {"group/agentmem.backup.all": options}
        configuration = {"config_directory": str(self.stores.config_dir)}
        for module in ("config_dump", "config_restore", "backup_set_create", "backup_set_restore"):
            defaults[f"agentmem.backup.{module}"] = configuration
        secrets = {
            "agentmem_db_password": self.stores.postgres.app_password,
            "agentmem_redis_password": self.stores.redis.password,
            "agentmem_qdrant_api_key": self.stores.qdrant.api_key or "",
            "agentmem_lost_host": "web-1",
        }
        whole = [{"hosts": "all", "gather_facts": False, "module_defaults": defaults, "tasks": tasks}]
        playbook = self.directory / "examples.yml"
        playbook.write_text(self.here(yaml.safe_dump(whole, sort_keys=False, allow_unicode=True)))
        variables = self.directory / "secrets.json"
        variables.write_text(json.dumps(secrets))
        played = play(playbook, self.directory, self.collections, "-e", f"@{variables}", "-v")
        assert played.code == 0, played.output
        recap = re.search(r"^stores +: ok=(\d+) .* failed=0 +skipped=0 +rescued=0 +ignored=0", played.output, re.MULTILINE)
        assert recap and int(recap[1]) == len(tasks), played.output


@pytest.fixture
def host(stores: Stores, tmp_path: Path) -> Host:
    return Host(stores, tmp_path)


def lose(stores: Stores, family: str) -> None:
    """Lose all that the family's modules back up."""

    def keys() -> None:
        with stores.redis.client() as client:
            client.flushall()
            client.function_flush()

    ways: dict[str, Callable[[], None]] = {
        "postgresql": stores.postgres.empty_database,
        "redis": keys,
        "qdrant": stores.qdrant.empty,
        "config": lambda: empty_directory(stores.config_dir),
        "backup_set": stores.destroy,
    }
    ways[family]()


def leave_only_what_was(host: Host, family: str) -> None:
    """The examples that restore beside the live data must have done so; take it away, for the rest must be as it was."""
    stores = host.stores
    if family == "qdrant":
        with stores.qdrant.client() as client:
            names = ("memories", "restored_memories")
            told = [client.get(f"/collections/{name}").json()["result"]["points_count"] for name in names]
            assert told[0] == told[1] > 0
            client.delete("/collections/restored_memories").raise_for_status()
    elif family == "postgresql":
        counted = "SELECT count(*) FROM memories"
        with stores.postgres.connect(dbname="agentmem_restored") as beside, stores.postgres.connect_application() as live:
            assert beside.execute(counted).fetchone() == live.execute(counted).fetchone() != (0,)
            [(kept,)] = live.execute("SELECT relname FROM pg_class WHERE relname LIKE 'memories\\_\\_before\\_%'").fetchall()
            assert live.execute(f'SELECT count(*) FROM "{kept}"').fetchone() == live.execute(counted).fetchone()
            live.execute(f'DROP TABLE "{kept}"')
            live.commit()
    elif family == "config":
        assert compare.capture_config(host.restored) == compare.capture_config(stores.config_dir) != {}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_examples_run_and_bring_everything_back(host: Host, family: str, sshd: Sshd) -> None:
    host.elsewhere = {"offsite.host": "web-1", "offsite.targets": {"backup_host": sshd.target()}}
    *making, restoring = FAMILIES[family]
    before = compare.capture(host.stores)
    host.run(*making)
    assert compare.differences(before, compare.capture(host.stores)) == []
    stores = ["postgresql", "redis", "qdrant", "config"] if family == "backup_set" else [family]
    whole = [word for store in stores for word in ("--component", store)]
    command.create(host.stores, *whole)  # the newest that the examples made has only part of it
    lose(host.stores, family)
    assert compare.differences(before, compare.capture(host.stores)) != []
    host.run(restoring)
    leave_only_what_was(host, family)
    assert compare.differences(before, compare.capture(host.stores)) == []


def test_no_module_is_left_out() -> None:
    assert sorted(name for family in FAMILIES.values() for name in family) == sorted(path.stem for path in MODULES.glob("*.py"))
