# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`ansible-test integration`: every target of tests/integration/targets, run by Ansible's own tool against the real stores."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import pytest
import yaml

from tests.support import compare
from tests.support.collection import BIN, tool
from tests.support.endpoints import Sshd
from tests.support.servers import CHECKOUT, Stores

TARGETS = CHECKOUT / "tests" / "integration" / "targets"
MODULES = CHECKOUT / "plugins" / "modules"


def where(stores: Stores, sshd: Sshd) -> dict[str, dict[str, object]]:
    """What integration_config.yml says: where the stores are, and another host that takes sets."""
    postgres, redis, qdrant = stores.postgres, stores.redis, stores.qdrant
    return {
        "postgresql": {
            "host": postgres.host,
            "port": postgres.port,
            "database": postgres.dbname,
            "user": postgres.app_user,
            "password": postgres.app_password,
        },
        "redis": {"host": redis.host, "port": redis.port, "password": redis.password},
        "qdrant": {"url": qdrant.url, "api_key": qdrant.api_key or ""},
        "offsite": {"directory": str(sshd.root), "target": sshd.target()},
    }


def run_targets(stores: Stores, sshd: Sshd, directory: Path) -> str:
    """Run all targets in one call, in a copy of the checkout; returns what ansible-test printed. Each must pass."""
    settings = directory / "integration_config.yml"
    settings.touch(mode=0o600)
    settings.write_text(yaml.safe_dump(where(stores, sshd), allow_unicode=True))
    version = ".".join(platform.python_version_tuple()[:2])
    script = f'cp "$1" tests/integration/ && exec ansible-test integration --color no --python {version}'
    environment = {**os.environ, "ANSIBLE_BIN": str(BIN)}
    in_collection = CHECKOUT / "script" / "in-collection"
    return tool(in_collection, "bash", "-euc", script, "-", settings, cwd=directory, env=environment, timeout=880)


@pytest.mark.timeout(900)
def test_every_target_passes_and_every_store_is_as_it_was(stores: Stores, sshd: Sshd, tmp_path: Path) -> None:
    before = compare.capture(stores)
    printed = run_targets(stores, sshd, tmp_path)
    run = re.findall(r"^Running (\S+) integration test role$", printed, re.MULTILINE)
    assert sorted(run) == sorted(path.parent.name for path in TARGETS.glob("*/aliases") if "hidden" not in path.read_text())
    assert compare.differences(before, compare.capture(stores)) == []


def test_every_module_has_a_target() -> None:
    tasks = "".join(path.read_text() for path in TARGETS.rglob("*.yml"))
    used = set(re.findall(r"^ +agentmem\.backup\.(\w+):(?: &\w+)?$", tasks, re.MULTILINE))
    assert used == {path.stem for path in MODULES.glob("*.py")}


def test_the_template_names_what_the_targets_need(stores: Stores, sshd: Sshd) -> None:
    template = yaml.safe_load((CHECKOUT / "tests" / "integration" / "integration_config.yml.template").read_text())
    assert {name: list(values) for name, values in template.items()} == {
        name: list(values) for name, values in where(stores, sshd).items()
    }
