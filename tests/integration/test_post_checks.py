# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guide's five checks after a restore, with an application that is well, ill or not there; systemctl is the test's own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.support import command
from tests.support.listeners import recorder
from tests.support.servers import Stores

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def systemctl(tmp_path: Path) -> Path:
    """A directory for the PATH whose systemctl writes down what it is told; units named `ill…` are not active."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "systemctl"
    program.write_text(f'#!/bin/sh\necho "$@" >>{folder}/told\ncase "$*" in *is-active*ill*) exit 3;; esac\n')
    program.chmod(0o755)
    return folder


def path_with(folder: Path) -> dict[str, str]:
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def test_all_five_pass_and_are_made_after_the_services_run_again(stores: Stores, systemctl: Path) -> None:
    made = command.create(stores)
    stores.destroy()
    words = ("restore", made["id"], "--yes", "--json", "--set", "services=agentmem,worker")
    with recorder() as application:
        done = command.good(stores, *words, "--set", f"health_url={application.url}/", env=path_with(systemctl))
    answer = json.loads(done.stdout)
    with stores.postgres.connect(stores.postgres.dbname) as connection:
        (memories,) = connection.execute("SELECT count(*) FROM memories").fetchone() or (None,)
    assert answer["checks"] == [
        {"name": "services", "outcome": "passed", "detail": "agentmem, worker active"},
        {"name": "health", "outcome": "passed", "detail": f"GET {application.url}/health answered 200"},
        {"name": "memories", "outcome": "passed", "detail": f"{memories} memories"},
        {"name": "redis", "outcome": "passed", "detail": "PONG"},
        {"name": "write", "outcome": "passed", "detail": f"POST {application.url}/api/v1/memories answered 200"},
    ]
    assert [(one.method, one.path) for one in application.requests] == [("GET", "/health"), ("POST", "/api/v1/memories")]
    assert application.requests[1].json == {"content": "Test after restore", "memory_type": "episodic"}
    told = (systemctl / "told").read_text().splitlines()
    assert told == [
        "stop agentmem",
        "stop worker",
        "start worker",
        "start agentmem",
        "is-active --quiet agentmem",
        "is-active --quiet worker",
    ]


def test_what_fails_is_told_and_the_restore_says_that_the_data_is_there(stores: Stores, systemctl: Path) -> None:
    made = command.create(stores, "--component", "config", "--component", "postgresql")
    words = ("restore", made["id"], "--yes", "--component", "config")
    with recorder() as application:
        application.status, application.answer = 503, b"starting"
        ill = command.run(stores, *words, "--set", f"health_url={application.url}")
    assert ill.returncode == 1
    assert "✗ the data is restored (equal to what was backed up), but the application is not well: health: failed" in ill.stderr
    assert f"GET {application.url}/health answered 503" in ill.stderr
    assert f"POST {application.url}/api/v1/memories answered 503" in ill.stderr
    gone = command.run(stores, *words, "--set", f"health_url={application.url}")
    assert gone.returncode == 1
    assert "Connection refused" in gone.stderr
    # An address that nobody has set may well not be this host's: then it is a warning.
    assert command.good(stores, *words).stderr.count("⚠ check: ") == 2
    inactive = command.run(stores, *words, "--set", "services=ill", *command.QUIET, env=path_with(systemctl))
    assert "⚠ check: services: failed" in inactive.stderr


def test_a_database_without_memories_is_not_well(stores: Stores) -> None:
    with stores.postgres.connect_application(autocommit=True) as connection:
        connection.execute("ALTER TABLE memories RENAME TO elsewhere")
    made = command.create(stores, "--component", "postgresql")
    done = command.run(stores, "restore", made["id"], "--yes", *command.QUIET)
    assert done.returncode == 1
    assert "memories: failed (PostgreSQL at" in done.stderr
    assert 'relation "memories" does not exist' in done.stderr
