# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures that hand out real stores: servers of the session, brought back to a known state for each test."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from psycopg import sql

from tests.support import data
from tests.support.compare import Facts, capture_qdrant
from tests.support.servers import (
    Postgres,
    Qdrant,
    Redis,
    Stores,
    path_segment,
    postgres_bindirs,
    qdrant_kind,
    throwaway_directory,
)

FILLED = "agentmem filled"  # the template that the test data is copied from


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, too (script/test --all)")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: left out unless --slow is given, or its file is named")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is slow, and let pytest's last line count it."""
    if config.getoption("--slow"):
        return
    named = {(config.invocation_params.dir / arg.partition("::")[0]).resolve() for arg in config.args}
    left_out = [one for one in items if one.get_closest_marker("slow") and one.path not in named]
    if left_out:
        items[:] = [one for one in items if one not in left_out]
        config.hook.pytest_deselected(items=left_out)


def pytest_report_header() -> list[str]:
    kind = qdrant_kind()
    server = {
        "url": f"the server of QDRANT_TEST_URL, {os.environ.get('QDRANT_TEST_URL')}",
        "binary": f"the binary {shutil.which('qdrant')}",
        "stand-in": "the stand-in of tests/support (no QDRANT_TEST_URL, no qdrant on the PATH)",
    }[kind]
    bindirs = postgres_bindirs()
    programs = [str(bindirs[0] / "postgres") if bindirs else "postgres", "redis-server"]
    return [f"Qdrant: {server}", "Servers: " + ", ".join(_version(program) for program in programs)]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What tests have recorded for a person to read, such as the steps at which runs were killed."""
    told = [value for one in terminalreporter.stats.get("passed", []) for name, value in one.user_properties if name == "listed"]
    for text in dict.fromkeys(told):
        terminalreporter.write_line(text)


def _version(program: str) -> str:
    try:
        return subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return f"{program} is missing"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL cluster for this worker, with the application's role and its empty database."""
    with Postgres() as server:
        server.create_application()
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Redis]:
    """A Redis server for this worker."""
    with Redis() as server:
        yield server


@pytest.fixture(scope="session")
def qdrant() -> Iterator[Qdrant]:
    """A Qdrant for this worker: the real one wherever there is one."""
    with Qdrant(api_key="a-test's_key") as server:
        assert_real_qdrant_is_used(server)
        yield server


def assert_real_qdrant_is_used(server: Qdrant) -> None:
    """Fail where a real Qdrant is at hand and the tests run on something else."""
    url, binary = os.environ.get("QDRANT_TEST_URL"), shutil.which("qdrant")
    if url:
        assert server.url == url.rstrip("/"), f"QDRANT_TEST_URL is {url}, and the tests run on {server.url}."
    elif binary:
        running = Path(f"/proc/{server.pid}/exe").resolve()
        assert running == Path(binary).resolve(), f"{binary} is on the PATH, and the tests run on {running}."


@contextlib.contextmanager
def _turn(server: Qdrant) -> Iterator[None]:
    """A server given by its URL is one for all workers: one test at a time may have it."""
    if server.kind != "url":
        yield
        return
    name = f"agentmem-test-{hashlib.sha256(server.url.encode()).hexdigest()[:16]}.lock"
    with (Path(tempfile.gettempdir()) / name).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture
def empty_stores(postgres: Postgres, redis_server: Redis, qdrant: Qdrant) -> Iterator[Stores]:
    """The four stores without any data: an empty database of the application's role, new directories."""
    with _turn(qdrant), throwaway_directory() as directory:
        data.create_reader(postgres)
        postgres.reset(keep_databases=[FILLED], keep_roles=[data.READER])
        postgres.recreate_database()
        redis_server.reset()
        qdrant.reset()
        yield Stores(directory, postgres=postgres, redis=redis_server, qdrant=qdrant)


@pytest.fixture(scope="session")
def filled_database(postgres: Postgres) -> str:
    """A template database with the test data, for copying it is faster than making it."""
    postgres.reset(keep_roles=[data.READER])
    postgres.recreate_database()
    data.fill_postgres(postgres)
    with postgres.connect() as connection:
        rename = sql.SQL("ALTER DATABASE {} RENAME TO {}")
        connection.execute(rename.format(sql.Identifier(postgres.dbname), sql.Identifier(FILLED)))
    return FILLED


@pytest.fixture(scope="session")
def qdrant_facts() -> dict[str, Facts]:
    """What the filled Qdrant of this worker holds, once it was filled."""
    return {}


@pytest.fixture
def filled_postgres(postgres: Postgres, filled_database: str) -> Postgres:
    """The cluster with the test data in the application's database, and nothing else."""
    data.create_reader(postgres)
    postgres.reset(keep_databases=[FILLED], keep_roles=[data.READER])
    postgres.recreate_database(template=filled_database)
    data.describe_database(postgres)
    return postgres


@pytest.fixture
def filled_redis(redis_server: Redis) -> Redis:
    """The Redis server, started anew, with the test data."""
    redis_server.reset()
    data.fill_redis(redis_server)
    return redis_server


@pytest.fixture
def filled_qdrant(qdrant: Qdrant, qdrant_facts: dict[str, Facts]) -> Iterator[Qdrant]:
    """The Qdrant with the test data and without any snapshot."""
    with _turn(qdrant):
        if not _untouched(qdrant, qdrant_facts):
            qdrant.reset()
            data.fill_qdrant(qdrant)
            qdrant_facts["facts"] = capture_qdrant(qdrant)
        yield qdrant


@pytest.fixture
def stores(filled_postgres: Postgres, filled_redis: Redis, filled_qdrant: Qdrant) -> Iterator[Stores]:
    """The four stores with the test data (tests.support.data, seed 1, Scale.TEST), new directories."""
    with throwaway_directory() as directory:
        filled = Stores(directory, postgres=filled_postgres, redis=filled_redis, qdrant=filled_qdrant)
        data.fill_config(filled.config_dir)
        yield filled


def _untouched(qdrant: Qdrant, filled: dict[str, Facts]) -> bool:
    """Whether Qdrant still holds just the test data and no snapshot: looking is faster than filling."""
    if not filled or not qdrant.running:
        return False
    with contextlib.suppress(Exception):
        with qdrant.client() as client:
            paths = ["/snapshots", *(f"/collections/{path_segment(name)}/snapshots" for name in ("memories", "agents"))]
            if any(client.get(path).raise_for_status().json()["result"] for path in paths):
                return False
        left = [path for path in qdrant.snapshots.rglob("*") if path.is_file()]
        return not left and capture_qdrant(qdrant) == filled["facts"]
    return False
