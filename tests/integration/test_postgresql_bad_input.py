# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is wrong with a server, a role, a program or a file gets one clear sentence, and nothing live is touched."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from agentmem_backup.components.base import COUNTS
from agentmem_backup.errors import BackupError
from psycopg import sql

from tests.support.compare import capture_postgres, fact_differences
from tests.support.pgstore import Session, Store
from tests.support.servers import Postgres, free_port


@pytest.fixture
def store(filled_postgres: Postgres, tmp_path: Path) -> Store:
    return Store(filled_postgres, tmp_path)


def problem(store: Store) -> str:
    """The one problem that a probe finds; a run that goes on nevertheless says the same."""
    problems = store.new().probe().problems
    assert len(problems) == 1, problems
    assert "\n" not in problems[0] and store.settings.postgresql.password not in problems[0]
    return str(problems[0])


def role(store: Store, name: str, *statements: str) -> None:
    """A login role, and the store connecting as it."""
    with store.server.connect(store.server.dbname) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'weak-password'").format(sql.Identifier(name)))
        for statement in statements:
            connection.execute(statement)
    store.settings.postgresql.user, store.settings.postgresql.password = name, "weak-password"
    store.new()


def refusal(store: Store) -> str:
    with pytest.raises(BackupError) as caught:
        store.component.open_cut(lambda: None, COUNTS)
    return str(caught.value)


def test_server_down(store: Store) -> None:
    store.settings.postgresql.port = free_port()
    assert "does not answer: start it, or check DB_HOST and DB_PORT" in problem(store)
    assert refusal(store) == problem(store)
    store.settings.postgresql.host = "/nowhere"
    assert "PostgreSQL at /nowhere:" in problem(store) and "does not answer" in problem(store)


def test_host_that_does_not_exist(store: Store) -> None:
    store.settings.postgresql.host = "no-such-host.invalid"
    assert "cannot be found under that name: check DB_HOST" in problem(store)


@pytest.mark.parametrize("password", ["wrong", "wr'o\"ng $é", "nul\0byte"])
def test_wrong_password(store: Store, password: str) -> None:
    store.settings.postgresql.password = password
    assert "PostgreSQL at 127.0.0.1:" in problem(store)
    if "\0" not in password:
        assert "refuses the password of role agentmem: set DB_PASSWORD" in problem(store)
    assert refusal(store) == problem(store)


def test_password_missing(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "none"))
    with monkeypatch.context():
        problems = Store(store.server, tmp_path, password="").component.probe().problems
    assert len(problems) == 1 and "wants a password for role agentmem: set DB_PASSWORD (or PGPASSFILE)" in problems[0]


def test_database_missing(store: Store) -> None:
    store.settings.postgresql.database = "absent"
    assert 'database "absent" does not exist' in problem(store) and "check DB_NAME" in problem(store)


def test_unknown_role_and_role_without_login(store: Store) -> None:
    store.settings.postgresql.user = "agentmem reader"
    assert "agentmem reader" in problem(store)


def test_server_that_does_not_speak_tls(store: Store) -> None:
    store.settings.postgresql.sslmode = "require"
    assert "TLS" in problem(store) and "DB_SSLMODE" in problem(store)


def test_role_without_rights_hears_of_all_tables(store: Store) -> None:
    role(store, "weak", "GRANT CONNECT ON DATABASE agentmem TO weak", "GRANT SELECT ON memories TO weak")
    assert "role weak may not read" in problem(store)
    assert 'GRANT pg_read_all_data TO "weak"' in problem(store)
    assert "permission denied" in refusal(store)


def test_forced_row_security_hides_rows_from_the_owner(store: Store) -> None:
    """Field note: FORCE ROW LEVEL SECURITY makes the owner count 0."""
    with store.server.connect_application() as connection:
        connection.execute("ALTER TABLE secrets FORCE ROW LEVEL SECURITY")
    assert "row level security hides rows of public.secrets from role agentmem" in problem(store)
    with pytest.raises(BackupError, match=r"row-level security policy for table .secrets."):
        store.dump()
    with store.server.connect() as connection:
        connection.execute("ALTER ROLE agentmem BYPASSRLS")
    assert store.new().probe().problems == []
    source = store.dump()
    assert source.entry is not None and source.entry["fingerprint"]["tables"]["public.secrets"] == {"rows": 2}
    assert store.restore(source)[0].equal
    with store.server.connect() as connection:
        connection.execute("ALTER ROLE agentmem NOBYPASSRLS")


@pytest.fixture
def fake_programs(tmp_path: Path) -> Iterator[Path]:
    """pg_dump and pg_restore that say they are of PostgreSQL 11."""
    directory = tmp_path / "old programs"
    directory.mkdir()
    for name in ("pg_dump", "pg_restore"):
        program = directory / name
        program.write_text(f"#!/bin/sh\necho '{name} (PostgreSQL) 11.22'\n")
        program.chmod(0o755)
    yield directory


def test_wrong_major_of_pg_dump_is_refused_in_words(store: Store, fake_programs: Path) -> None:
    store.settings.postgresql.bin_dir = str(fake_programs)
    server = int(store.new().probe().facts["server"]["version"].split(".")[0])
    problems = store.new().probe().problems
    assert problems == [
        f"{name} in {fake_programs} is too old: 11.22, and {server} is needed: install postgresql-client-{server}"
        for name in ("pg_dump", "pg_restore")
    ]
    assert "too old" in refusal(store)


def test_missing_programs_are_told_all_at_once(store: Store, tmp_path: Path) -> None:
    store.settings.postgresql.bin_dir = str(tmp_path / "empty")
    problems = store.new().probe().problems
    assert [one.split(" is not installed")[0] for one in problems] == ["the program pg_dump", "the program pg_restore"]


def test_pattern_that_matches_nothing(store: Store) -> None:
    store.settings.postgresql.include_tables = ["public.typo*"]
    assert "no table matches include_tables (public.typo*)" in problem(store)


def test_reference_to_rows_that_are_left_out(store: Store) -> None:
    store.settings.postgresql.exclude_tables = ["public.organizations"]
    assert problem(store) == "public.users refers to public.organizations, whose rows are left out: leave out both, or neither"


# Restoring


def untouched(store: Store) -> list[str]:
    """Databases and content of the live one, to see that a refusal touched nothing."""
    return sorted(store.databases())


def test_restore_without_createdb(store: Store) -> None:
    source = store.dump()
    with store.server.connect() as connection:
        connection.execute("ALTER ROLE agentmem NOCREATEDB")
    plan = store.plan(source)
    assert len(plan.problems) == 1
    assert 'ALTER ROLE "agentmem" CREATEDB' in plan.problems[0]
    before = untouched(store)
    with pytest.raises(BackupError, match="may not create databases"):
        store.restore(source)
    assert untouched(store) == before


def test_untrusted_extension(store: Store) -> None:
    """Field note: a role with CREATEDB fails on any untrusted extension, also when the live database has it."""
    with store.server.connect(store.server.dbname) as connection:
        connection.execute("CREATE EXTENSION pageinspect")
    source = store.dump()
    before, databases = capture_postgres(store.server), untouched(store)
    plan = store.plan(source)
    assert len(plan.problems) == 1 and "CREATE EXTENSION in template1" in plan.problems[0]
    with pytest.raises(BackupError, match="may not create the extensions"):
        store.restore(source)
    assert untouched(store) == databases
    assert list(fact_differences(before, capture_postgres(store.server))) == []
    with store.server.connect("template1") as connection:
        connection.execute("CREATE EXTENSION pageinspect")
        connection.execute("CREATE EXTENSION pg_trgm")
    try:
        plan = store.plan(source)
        assert plan.problems == [] and any("made from template1" in text for text in plan.warnings)
        assert store.restore(source)[0].equal
    finally:
        with store.server.connect("template1") as connection:
            connection.execute("DROP EXTENSION pageinspect, pg_trgm")
    assert list(fact_differences(before, capture_postgres(store.server))) == []


def test_extension_that_the_server_does_not_have(store: Store) -> None:
    plain = store.dump(name="db.dump")
    content = plain.path.read_bytes().replace(b"pg_trgm", b"pg_gone")
    plain.path.write_bytes(content)
    problems = store.plan(plain).problems
    assert any("the extensions pg_gone are not on the server" in text and "install their packages" in text for text in problems)


def test_roles_that_are_not_there(store: Store) -> None:
    source = store.dump()
    store.server.recreate_database()
    with store.server.connect() as connection:  # renamed, not dropped: the template of the other tests refers to it
        connection.execute('ALTER ROLE "agentmem reader" RENAME TO someone')
    try:
        problems = store.plan(source).problems
        assert any("are granted rights in the backup" in one and 'CREATE ROLE "agentmem reader"' in one for one in problems)
        assert any("row security policies" in one for one in problems)
    finally:
        with store.server.connect() as connection:
            connection.execute('ALTER ROLE someone RENAME TO "agentmem reader"')
    assert store.plan(source).problems == []


def test_database_of_another_owner(store: Store) -> None:
    source = store.dump()
    with store.server.connect() as connection:
        connection.execute("ALTER DATABASE agentmem OWNER TO postgres")
    problems = store.plan(source).problems
    assert problems == ["database agentmem belongs to role postgres, and role agentmem may not rename it: restore as its owner"]


def test_session_that_we_may_not_end(store: Store) -> None:
    source = store.dump()
    with store.server.connect(store.server.dbname):
        problems = store.plan(source).problems
    assert len(problems) == 1 and "may not end the sessions of postgres in agentmem" in problems[0]


def test_restore_of_something_else(store: Store, tmp_path: Path) -> None:
    source = store.dump(name="db.dump")
    source.path.write_bytes(b"-- PostgreSQL database dump\nCREATE TABLE x();\n")
    assert store.faults(source) == ["this is no PostgreSQL dump in custom format (pg_dump -Fc)"]
    assert store.plan(source).problems == ["this is no PostgreSQL dump in custom format (pg_dump -Fc)"]


def test_too_little_disk_for_the_decompressed_dump(store: Store) -> None:
    source = store.dump()
    assert source.entry is not None
    source.entry["raw_bytes"] = shutil.disk_usage(store.directory).total * 2
    problems = store.plan(source).problems
    assert len(problems) == 1 and "make room" in problems[0]


def test_failing_pg_restore_leaves_nothing_and_the_live_database_alone(store: Store) -> None:
    """Field note: pg_restore without --exit-on-error ends with errors ignored; any non-zero exit is a failure."""
    plain = store.dump(name="db.dump")
    content = plain.path.read_bytes()
    assert content.count(b"EXECUTE FUNCTION public.touch()") == 1
    plain.path.write_bytes(content.replace(b"EXECUTE FUNCTION public.touch()", b"EXECUTE FUNCTION public.touch(]"))
    before, databases = capture_postgres(store.server), untouched(store)
    with pytest.raises(BackupError, match=r"pg_restore failed with exit status 1.*syntax error"):
        store.restore(plain)
    assert untouched(store) == databases
    assert list(fact_differences(before, capture_postgres(store.server))) == []
    assert [path.name for path in store.directory.iterdir()] == ["db.dump"]


def test_restored_data_that_is_not_equal_is_not_switched_to(store: Store) -> None:
    source = store.dump()
    assert source.entry is not None
    source.entry["fingerprint"]["tables"]["public.users"]["rows"] = 51
    databases = untouched(store)
    with pytest.raises(AssertionError, match=r"rows of public\.users: 51 backed up, 50 in the database"):
        store.restore(source)
    assert untouched(store) == databases


def test_connection_lost_while_dumping(store: Store) -> None:
    def cut_off() -> None:
        with store.server.connect() as connection:
            query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'agentmem-backup'"
            connection.execute(query)

    with pytest.raises(BackupError):
        store.dump(at_the_cut=cut_off)
    assert list(store.directory.iterdir()) == []
    Session(store.server, "TRUNCATE messages").ended()
