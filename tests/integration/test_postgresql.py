# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PostgreSQL from the live database into a file and back, held against the independent comparer."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from agentmem_backup import process
from agentmem_backup.components import postgresql
from agentmem_backup.components.base import CONTENT, COUNTS, RestoreOptions, Source
from agentmem_backup.errors import BackupError, UsageError, VerificationError
from agentmem_backup.formats import pgarchive
from psycopg import sql

from tests.support.compare import capture_postgres, fact_differences
from tests.support.pgstore import Store, pushing, rows_in
from tests.support.servers import Postgres, wait_until


@pytest.fixture
def store(filled_postgres: Postgres, tmp_path: Path) -> Store:
    return Store(filled_postgres, tmp_path)


def execute(server: Postgres, *statements: str, superuser: bool = False) -> None:
    connection = server.connect(server.dbname) if superuser else server.connect_application()
    with connection:
        for one in statements:
            connection.execute(one)


@pytest.mark.parametrize("level", [COUNTS, CONTENT])
@pytest.mark.parametrize("name", ["db.dump.gz", "db.dump.zst", "db.dump"])
def test_dump_destroy_restore_equal(store: Store, level: str, name: str) -> None:
    before = capture_postgres(store.server)
    source = store.dump(level, name=name)
    assert store.faults(source) == []
    assert store.plan(source).warnings == []
    store.server.recreate_database()
    assert list(fact_differences(before, capture_postgres(store.server)))
    comparison, state = store.restore(source)
    assert comparison.equal and comparison.compared > 35
    assert list(fact_differences(before, capture_postgres(store.server))) == []
    assert "is the restored one" in state and "__before_" in state
    assert store.component.look() == "1200 memories"


def test_settings_of_the_role_that_change_how_values_are_written_and_read_change_nothing(store: Store) -> None:
    server = store.server
    before = capture_postgres(server)
    settings = {
        "client_encoding": "LATIN1", "array_nulls": "off", "DateStyle": "German", "IntervalStyle": "iso_8601",
        "extra_float_digits": "-15", "bytea_output": "escape", "standard_conforming_strings": "off", "xmloption": "document",
        "quote_all_identifiers": "on", "search_path": "nowhere", "default_transaction_read_only": "on",
        "default_transaction_isolation": "serializable", "statement_timeout": "2s", "lock_timeout": "2s",
        "idle_in_transaction_session_timeout": "2s",
    }  # fmt: skip
    role = sql.Identifier(server.app_user)
    with server.connect() as connection:
        for name, value in settings.items():
            connection.execute(sql.SQL("ALTER ROLE {} SET {} = {}").format(role, sql.Identifier(name), value))
        try:
            source = store.dump(CONTENT)
            assert store.faults(source) == []
            server.empty_database()
            compared, __ = store.restore(source)
        finally:
            connection.execute(sql.SQL("ALTER ROLE {} RESET ALL").format(role))
    assert compared.equal and compared.compared > 35
    assert list(fact_differences(before, capture_postgres(server))) == []


@pytest.fixture
def spaces(tmp_path: Path) -> Iterator[Store]:
    """A database in a tablespace of its own, with a table and an index in another, where only a superuser may create."""
    with Postgres() as server:
        server.create_application()
        with server.connect() as connection:
            for name in ("its own", "fast disk"):
                location = sql.Literal(str(server.private(name)))
                connection.execute(sql.SQL("CREATE TABLESPACE {} LOCATION {}").format(sql.Identifier(name), location))
            connection.execute('GRANT CREATE ON TABLESPACE "fast disk", "its own", pg_default TO agentmem')
            connection.execute('ALTER DATABASE agentmem SET TABLESPACE "its own"')
        execute(
            server,
            'CREATE TABLE memories (id integer PRIMARY KEY USING INDEX TABLESPACE "fast disk", content text)',
            'CREATE TABLE embeddings (id integer REFERENCES memories, value real) TABLESPACE "fast disk"',
            "CREATE TABLE plain (id integer) TABLESPACE pg_default",
            "INSERT INTO memories SELECT i, 'memory ' || i FROM generate_series(1, 500) i",
            "INSERT INTO embeddings SELECT i, i / 7.0 FROM generate_series(1, 500) i",
        )
        yield Store(server, tmp_path)


def test_what_lay_in_a_tablespace_lies_there_again(spaces: Store) -> None:
    before = capture_postgres(spaces.server)
    source = spaces.dump(CONTENT)
    assert source.entry is not None and source.entry["database"]["tablespace"] == "its own"
    spaces.server.recreate_database()
    assert any("tablespace" in text for text in fact_differences(before, capture_postgres(spaces.server)))
    plan = spaces.plan(source)
    assert plan.problems == [] and not any("tablespace" in text for text in plan.warnings)
    assert spaces.restore(source)[0].equal
    assert list(fact_differences(before, capture_postgres(spaces.server))) == []


@pytest.mark.parametrize("gone", ["dropped", "not ours"])
def test_without_its_tablespaces_everything_comes_back_elsewhere(spaces: Store, gone: str) -> None:
    """A new machine has none of them, and the data is wanted more than its place."""
    before = capture_postgres(spaces.server)
    source = spaces.dump(CONTENT)
    spaces.server.recreate_database()
    with spaces.server.connect() as connection:
        for name in ("its own", "fast disk"):
            text = "DROP TABLESPACE {}" if gone == "dropped" else "REVOKE CREATE ON TABLESPACE {} FROM agentmem"
            connection.execute(sql.SQL(text).format(sql.Identifier(name)))
    plan = spaces.plan(source)
    assert plan.problems == []
    (warning,) = [text for text in plan.warnings if "tablespaces" in text]
    assert "fast disk, its own, pg_default in the backup will lie in the default one: fast disk, its own are not there" in warning
    assert spaces.restore(source)[0].equal
    differing = list(fact_differences(before, capture_postgres(spaces.server)))
    assert [text for text in differing if ": tablespace was " not in text] == [] and len(differing) == 4


@pytest.mark.parametrize("level", [COUNTS, CONTENT])
def test_what_pg_dump_has_locks_enough_for_is_backed_up_and_compared(tmp_path: Path, level: str) -> None:
    """Reading a table locks its indexes too, which pg_dump does not: a schema for each tenant soon makes thousands."""
    few = {"max_locks_per_transaction": "40", "max_connections": "20", "max_worker_processes": "2", "max_wal_senders": "0"}
    with Postgres(settings=few) as server:
        server.create_application()
        with server.connect_application() as connection:
            for number in range(250):
                table = sql.Identifier(f"tenant {number}")
                connection.execute(sql.SQL("CREATE TABLE {} (a int)").format(table))
                for __ in range(8):
                    connection.execute(sql.SQL("CREATE INDEX ON {} (a)").format(table))
            connection.execute('INSERT INTO "tenant 249" VALUES (7)')
            connection.execute("BEGIN")
            with pytest.raises(psycopg.errors.OutOfMemory, match="max_locks_per_transaction"):  # it is as few as meant
                for number in range(250):
                    connection.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(f"tenant {number}")))
        store = Store(server, tmp_path)
        source = store.dump(level)
        for described in (source, replace(source, entry=None)):
            server.recreate_database()
            comparison, __ = store.restore(described)
            assert comparison.equal and comparison.compared >= 250
            with server.connect_application() as connection:
                assert connection.execute('SELECT a FROM "tenant 249"').fetchall() == [(7,)]


def test_the_old_database_is_kept_under_the_name_that_the_plan_told(store: Store) -> None:
    source = store.dump()
    execute(store.server, "CREATE TABLE only_in_the_old (i integer)")
    component = store.new()
    plan = component.plan_restore(source, RestoreOptions())
    assert plan.problems == []
    restoration = component.restoration(source, RestoreOptions())
    restoration.prepare()
    restoration.commit()
    restoration.complete()
    restoration.close()
    (kept,) = {name for name in store.databases() if "__before_" in name}
    assert any(f"is kept as {kept}" in line for line in plan.lines)
    with store.server.connect(kept) as connection:
        assert connection.execute("SELECT count(*) FROM only_in_the_old").fetchone() == (0,)
    with store.server.connect_application() as connection:
        assert connection.execute("SELECT to_regclass('only_in_the_old')").fetchone() == (None,)


def test_every_restored_table_is_analyzed(store: Store) -> None:
    """Partitions and materialized views, too; what only superusers may analyze leaves no line in the server's log."""
    source = store.dump()
    log = store.server.log.stat().st_size
    store.restore(source)
    never = """
      SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
      WHERE c.relkind IN ('r', 'm', 'p') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND reltuples = -1"""
    with store.server.connect_application() as connection:
        assert connection.execute(never).fetchall() == []
    assert "only superuser can analyze" not in store.server.log.read_bytes()[log:].decode(errors="replace")


def with_indexes(server: Postgres) -> set[tuple[str, str]]:
    """Tables that have an index, partitions left out."""
    query = """
      SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
      WHERE c.relkind = 'r' AND NOT c.relispartition AND c.relhasindex AND n.nspname !~ '^pg_'"""
    with server.connect_application() as connection:
        return set(connection.execute(query).fetchall())


@pytest.mark.parametrize(
    ("away", "back"),
    [
        ("DROP INDEX memories_by_source", "CREATE INDEX memories_by_source ON memories ((metadata ->> 'source'))"),
        ("DROP TRIGGER touch ON memories", "CREATE TRIGGER touch BEFORE UPDATE ON memories EXECUTE FUNCTION touch()"),
        (
            "ALTER TABLE memories DROP CONSTRAINT memories_agent_id_fkey",
            "ALTER TABLE memories ADD CONSTRAINT memories_agent_id_fkey FOREIGN KEY (agent_id) REFERENCES agents",
        ),
    ],
)
def test_a_table_is_analyzed_while_others_are_built_and_not_before_all_of_it_is_there(store: Store, away: str, back: str) -> None:
    """Without an index there are no statistics of its expressions, and a trigger would have to wait for the ANALYZE."""
    entries = pgarchive.walk(store.dump().pieces()).entries
    execute(store.server, away)
    waiting = {("public", "memories"), *([("public", "agents")] if "agents" in back else [])}
    all_others = with_indexes(store.server) - waiting
    with postgresql.Analyzing(store.component.access, store.server.dbname, entries) as analyzing:
        wait_until(lambda: analyzing.done == all_others, 30, lambda: None if analyzing.running else "it has ended")
        execute(store.server, "DELETE FROM pg_statistic", back, superuser=True)
        wait_until(lambda: waiting <= analyzing.done, 30, lambda: None if analyzing.running else "it has ended")
    with store.server.connect_application() as connection:
        (known,) = connection.execute("SELECT count(*) FROM pg_stats WHERE tablename = 'memories_by_source'").fetchone() or (0,)
    assert known == 1
    assert ("public", "messages") in all_others


def test_whoever_holds_a_table_does_not_hold_up_what_is_analyzed_on_the_way(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql.Analyzing, "_WAIT", "50ms")
    entries = pgarchive.walk(store.dump().pieces()).entries
    with store.server.connect_application() as connection, connection.transaction():
        connection.execute("LOCK TABLE memories IN SHARE MODE")
        with postgresql.Analyzing(store.component.access, store.server.dbname, entries) as analyzing:
            wait_until(lambda: not analyzing.running, 30, lambda: None)
    assert ("public", "memories") not in analyzing.done


def test_restore_where_there_is_no_database(store: Store) -> None:
    before = capture_postgres(store.server)
    source = store.dump(CONTENT)
    with store.server.connect() as connection:
        connection.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(store.server.dbname)))
    plan = store.plan(source)
    assert plan.problems == [] and any("nothing is overwritten" in line for line in plan.lines)
    comparison, state = store.restore(source)
    assert comparison.equal and "there was none before" in state
    assert list(fact_differences(before, capture_postgres(store.server))) == []


@pytest.mark.parametrize("superuser", [False, True])
def test_settings_grants_and_comment_of_the_database_come_back(store: Store, superuser: bool) -> None:
    """Field note: database-level GRANTs and ALTER DATABASE/ROLE … SET do not come along."""
    name = sql.Identifier(store.server.dbname)
    with store.server.connect() as connection:
        for text in (
            """ALTER DATABASE {} SET search_path = "tenant data", public, '$user'""",
            "ALTER DATABASE {} SET timezone = 'Asia/Kathmandu'",
            "ALTER DATABASE {} SET datestyle = 'SQL, DMY'",
            "ALTER DATABASE {} CONNECTION LIMIT 17",
            "ALTER ROLE agentmem IN DATABASE {} SET work_mem = '7MB'",
            "REVOKE TEMPORARY ON DATABASE {} FROM PUBLIC",
        ):
            connection.execute(sql.SQL(text).format(name))
        if superuser:
            connection.execute(sql.SQL("ALTER DATABASE {} SET app.note = 'it''s \"odd\" \\ ü'").format(name))
            store.settings.postgresql.user, store.settings.postgresql.password = store.server.superuser, store.server.password
    before, facts = capture_postgres(store.server), _database_facts(store)
    source = store.dump(CONTENT)
    store.server.recreate_database()
    assert _database_facts(store) != facts
    comparison, __ = store.restore(source)
    assert comparison.equal
    assert _database_facts(store) == facts
    assert list(fact_differences(before, capture_postgres(store.server))) == []


def test_a_setting_that_the_role_may_not_make_is_told_before_and_after(store: Store) -> None:
    with store.server.connect() as connection:
        connection.execute(sql.SQL("ALTER DATABASE {} SET app.note = 'x'").format(sql.Identifier(store.server.dbname)))
    source = store.dump()
    assert any("will not be restored: ALTER DATABASE" in text and "app.note" in text for text in store.plan(source).warnings)
    store.restore(source)
    assert any("not restored" in text and "app.note" in text for text in store.reporter.warnings)


def _database_facts(store: Store) -> Any:
    with store.server.connect() as connection:
        return connection.execute(
            """SELECT datconnlimit, ARRAY(SELECT unnest(datacl)::text ORDER BY 1), shobj_description(oid, 'pg_database'),
              ARRAY(SELECT setrole || unnest(setconfig) FROM pg_db_role_setting WHERE setdatabase = d.oid ORDER BY 1)
              FROM pg_database d WHERE datname = %s""",
            [store.server.dbname],
        ).fetchone()


def test_same_data_has_the_same_digest_whatever_the_session_settings(store: Store) -> None:
    source = store.dump(CONTENT)
    name = sql.Identifier(store.server.dbname)
    with store.server.connect() as connection:
        for text in ("timezone = 'Asia/Kathmandu'", "intervalstyle = 'iso_8601'", "bytea_output = 'escape'", "lc_monetary = 'C'"):
            connection.execute(sql.SQL("ALTER DATABASE {} SET " + text).format(name))
        connection.execute(sql.SQL("ALTER DATABASE {} SET datestyle = 'German'").format(name))
        connection.execute(sql.SQL("ALTER DATABASE {} SET extra_float_digits = -3").format(name))
    again = store.dump(CONTENT, name="again.dump.gz")
    assert again.entry["fingerprint"] == source.entry["fingerprint"]


def test_one_changed_value_changes_the_digest_and_null_is_not_empty(store: Store) -> None:
    first = store.dump(CONTENT).entry["fingerprint"]
    execute(store.server, """UPDATE "Mixed Case" SET "select" = '' WHERE "select" IS NULL""")
    second = store.dump(CONTENT, name="2.dump").entry["fingerprint"]
    compared = postgresql.compare(first, second)
    assert compared.differences == ['content of public."Mixed Case" differs, with the same number of rows']
    execute(store.server, "SELECT lo_put(content, 0, '\\x00') FROM attachments WHERE id = 1")
    third = store.dump(CONTENT, name="3.dump").entry["fingerprint"]
    assert [text.split(":")[0] for text in postgresql.compare(second, third).differences] == ["content of the large objects"]


def test_large_objects_beyond_one_piece_are_compared_to_their_end(store: Store) -> None:
    execute(store.server, "INSERT INTO attachments VALUES (9, 'big', lo_from_bytea(0, decode(repeat('00ff', 1300000), 'hex')))")
    first = store.dump(CONTENT).entry["fingerprint"]
    execute(store.server, "SELECT lo_put(content, 2599999, '\\x07') FROM attachments WHERE id = 9")
    second = store.dump(CONTENT, name="2.dump").entry["fingerprint"]
    assert first["large_objects"]["sum"] != second["large_objects"]["sum"]


def test_inheritance_with_a_later_column_compares_equal_by_names(store: Store) -> None:
    execute(
        store.server,
        "CREATE TABLE parent (a integer, b text)",
        "CREATE TABLE child (c integer) INHERITS (parent)",
        "INSERT INTO child VALUES (1, 'x', 2)",
        "ALTER TABLE parent ADD COLUMN late integer DEFAULT 7",
    )
    source = store.dump(CONTENT)
    comparison, __ = store.restore(source)
    assert comparison.equal
    with store.server.connect_application() as connection:
        assert connection.execute("SELECT a, b, c, late FROM child").fetchall() == [(1, "x", 2, 7)]


def test_sequences_are_compared_by_at_least(store: Store) -> None:
    source = store.dump(at_the_cut=lambda: execute(store.server, "SELECT setval('messages_id_seq', 5000)"))
    comparison, __ = store.restore(source)
    assert comparison.equal
    recorded = source.entry["fingerprint"]
    assert recorded["sequences"]["public.messages_id_seq"]["last"] == 1500
    execute(store.server, "SELECT setval('messages_id_seq', 10)")
    found = store.dump(name="2.dump").entry["fingerprint"]
    assert postgresql.compare(recorded, found).differences == [
        "sequence public.messages_id_seq stands at 10, before the 1500 that was backed up"
    ]


def test_stale_materialized_view_is_told_and_not_taken_for_equal(store: Store) -> None:
    execute(store.server, "DELETE FROM memories WHERE agent_id = (SELECT id FROM agents ORDER BY id LIMIT 1)")
    comparison, __ = store.restore(store.dump())
    assert comparison.equal
    assert any("memories_per_agent" in text and "computed anew" in text for text in comparison.not_compared)


def test_a_lost_index_or_policy_is_a_difference(store: Store) -> None:
    first = store.dump().entry["fingerprint"]
    execute(store.server, "DROP INDEX memories_by_agent", "DROP POLICY own_secrets ON secrets", "DROP TABLE blocks")
    differences = postgresql.compare(first, store.dump(name="2.dump").entry["fingerprint"]).differences
    assert "table public.blocks is missing" in differences
    assert any(text.startswith("number of indexes") for text in differences)
    assert any(text.startswith("number of policies") for text in differences)


def test_examine_holds_rows_against_the_manifest(store: Store) -> None:
    source = store.dump()
    fingerprint = source.entry["fingerprint"]
    fingerprint["tables"]["public.memories"]["rows"] += 1
    fingerprint["tables"]["public.gone"] = {"rows": 3}
    fingerprint["large_objects"]["count"] = 99
    assert store.faults(source) == [
        "the dump has 1200 rows of table public.memories, and the manifest says 1201",
        "the dump has no data of table public.gone, which had 3 rows",
        "the dump has 5 large objects, and the manifest says 99",
    ]


def test_abort_before_the_end_leaves_the_live_database_and_nothing_else(store: Store) -> None:
    source = store.dump()
    execute(store.server, "CREATE TABLE written_since (i integer)")
    before, databases = capture_postgres(store.server), store.databases()
    for committed in (False, True):
        restoration = store.new().restoration(source, RestoreOptions())
        restoration.prepare()
        assert len(store.databases()) == len(databases) + 1
        if committed:
            restoration.commit()
        restoration.abort()
        assert "the old one, untouched" in restoration.state()
        restoration.close()
        assert store.databases() == databases
        assert list(fact_differences(before, capture_postgres(store.server))) == []


def test_abort_after_the_end_says_that_it_is_too_late(store: Store) -> None:
    restoration = store.new().restoration(store.dump(), RestoreOptions())
    restoration.prepare()
    restoration.commit()
    restoration.complete()
    with pytest.raises(BackupError, match="already the restored one; the old one is agentmem__before_"):
        restoration.abort()


@pytest.mark.parametrize("committed", [True, False])
def test_a_connection_lost_at_the_last_commit_says_what_is_live(store: Store, committed: bool) -> None:
    source = store.dump()
    execute(store.server, "CREATE TABLE written_since (i integer)")
    restoration = store.new().restoration(source, RestoreOptions())
    restoration.prepare()
    restoration.commit()
    switch = restoration._switch
    assert switch is not None

    class Breaking:
        """The connection, which breaks at COMMIT: before or after the server took it."""

        def execute(self, text: str) -> None:
            switch.execute("COMMIT" if committed else "ROLLBACK")
            raise psycopg.OperationalError("server closed the connection unexpectedly")

        def close(self) -> None:
            switch.close()

    restoration._switch = Breaking()  # type: ignore[assignment]
    if committed:
        restoration.complete()
        assert "the restored one; the old data lies in" in restoration.state()
    else:
        with pytest.raises(BackupError, match="making the renamed databases final"):
            restoration.complete()
        assert "the old one, untouched" in restoration.state()
    gone = "SELECT to_regclass('written_since') IS NULL"
    with store.server.connect_application() as connection:
        assert connection.execute(gone).fetchone() == (committed,)


def test_a_killed_run_is_cleaned_up_by_its_journal(store: Store) -> None:
    source = store.dump()
    databases = store.databases()
    restoration = store.new().restoration(source, RestoreOptions())
    restoration.prepare()
    (left,) = store.databases() - databases
    assert left in {step["database"] for step in store.journal}
    with store.server.connect_application(dbname=left):  # an orphaned session must not keep it
        for step in reversed(store.journal):
            store.new().clean_up(step)
            store.new().clean_up(step)
    assert store.databases() == databases


def test_a_database_that_is_still_being_made_for_a_killed_run_is_dropped(store: Store) -> None:
    """The server carries a CREATE DATABASE out whose client is gone; a look before its end finds no database."""
    name = "agentmem__restore_20260101_000000"
    here = [store.settings.postgresql.host, store.settings.postgresql.port]

    def make() -> None:
        with store.server.connect_application(dbname="postgres") as connection:
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE template0')

    def clean_up() -> None:
        store.new().clean_up({"step": "restore-database", "database": name, "server": here})

    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'CREATE DATABASE%%'"
    with store.server.connect() as look, ThreadPoolExecutor(2) as pool:
        with store.server.connect(autocommit=False) as other:
            other.execute("LOCK TABLE pg_database IN SHARE MODE")
            made = pool.submit(make)
            wait_until(lambda: look.execute(waiting).fetchone() == (1,), 30, lambda: None)
            cleaned = pool.submit(clean_up)
            wait([cleaned], timeout=1)  # one that does not wait ends within this second
        made.result()
        cleaned.result()
    assert name not in store.databases()


def test_autovacuum_does_not_keep_a_database_from_being_dropped(store: Store) -> None:
    """DROP DATABASE … WITH (FORCE) is refused to its owner while autovacuum, which is a superuser's, works there."""
    name = "agentmem__restore_20260101_000000"
    slow = "autovacuum_vacuum_threshold = 1, autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1"
    with store.server.connect() as connection:
        made, owner = sql.Identifier(name), sql.Identifier(store.server.app_user)
        connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(made, owner))
        connection.execute("ALTER SYSTEM SET autovacuum_naptime = '1s'")
        connection.execute("SELECT pg_reload_conf()")
        with store.server.connect(name) as inside:
            inside.execute(f"CREATE TABLE vast WITH ({slow}) AS SELECT repeat('x', 1000) AS text FROM generate_series(1, 5000)")
            inside.execute("DELETE FROM vast")
        working = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND backend_type = 'autovacuum worker'"
        wait_until(lambda: connection.execute(working, [name]).fetchone() == (1,), 30, lambda: None)
        store.new().drop_database(name)
    assert name not in store.databases()


def test_clean_up_never_drops_what_was_swapped_in_or_is_not_ours(store: Store) -> None:
    store.restore(store.dump())
    databases = store.databases()
    for step in reversed(store.journal):
        store.new().clean_up(step)
    here = [store.settings.postgresql.host, store.settings.postgresql.port]
    store.new().clean_up({"step": "restore-database", "database": store.server.dbname, "server": here})
    assert store.databases() == databases
    with pytest.raises(BackupError, match="another server"):
        store.new().clean_up({"step": "restore-database", "database": "x__restore_20250101_000000", "server": ["far", 1]})


def test_swap_under_reconnecting_clients(store: Store) -> None:
    """Field note: both renames fit into one transaction under 8 reconnecting clients."""
    source = store.dump()
    with pushing(store.server, 8) as queries:
        comparison, __ = store.restore(source)
        assert comparison.equal
        after = list(queries)
        while not all(now > then for now, then in zip(queries, after, strict=True)):
            pass  # every client is back, on the restored database
    with store.server.connect() as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname LIKE 'agentmem\\_\\_%'"
        assert connection.execute(query).fetchone() == (0,)


def test_open_sessions_are_told_in_the_plan(store: Store) -> None:
    source = store.dump()
    with store.server.connect_application(application_name="the application"):
        plan = store.plan(source)
    assert plan.problems == []
    assert any("1 open session of agentmem will be ended (the application)" in line for line in plan.lines)


def test_another_environment_gets_another_name_and_owner(store: Store) -> None:
    with store.server.connect() as connection:
        connection.execute("CREATE ROLE other LOGIN CREATEDB PASSWORD 'x y'")
    source = store.dump(CONTENT)
    store.settings.postgresql.database = "agentmem_restored"
    store.settings.postgresql.user, store.settings.postgresql.password = "other", "x y"
    plan = store.plan(source)
    assert plan.problems == []
    assert any("everything will belong to role other" in text for text in plan.warnings)
    comparison, state = store.restore(source)
    assert comparison.equal and "agentmem_restored" in state
    with store.server.connect("agentmem_restored") as connection:
        assert connection.execute("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'").fetchall() == [
            ("other",)
        ]
    assert store.component.look() == "1200 memories"


def test_what_only_a_superuser_can_make_is_told_before_and_restored_by_one(store: Store) -> None:
    """pg_restore comes to it last, when all rows are there."""
    execute(
        store.server,
        "CREATE FUNCTION note() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN /*\n    LANGUAGE c */ END'",
        "CREATE EVENT TRIGGER noted ON ddl_command_end EXECUTE FUNCTION note()",
        "CREATE PUBLICATION everything FOR ALL TABLES",
        "CREATE PUBLICATION one FOR TABLE memories",
        "CREATE FUNCTION plus(integer, integer) RETURNS integer LANGUAGE internal AS 'int4pl'",
        superuser=True,
    )
    before = capture_postgres(store.server)
    source = store.dump()
    plan = store.plan(source, accept=["roles"])
    assert plan.problems == []
    (warning,) = [text for text in plan.warnings if "only a superuser can make" in text]
    expected = "event trigger noted, function plus(integer, integer), publication everything, and role agentmem is none"
    assert expected in warning
    with pytest.raises(BackupError, match="permission denied for language internal"):
        store.restore(source, accept=["roles"])
    assert list(fact_differences(before, capture_postgres(store.server))) == []
    store.server.recreate_database()
    store.settings.postgresql.user, store.settings.postgresql.password = store.server.superuser, store.server.password
    assert store.plan(source).problems == []
    assert store.restore(source)[0].equal
    assert list(fact_differences(before, capture_postgres(store.server))) == []


def test_filters_make_a_set_that_says_so_and_can_be_restored(store: Store) -> None:
    store.settings.postgresql.exclude_tables = ["public.audit", "public.events", "tenant data.*"]
    source = store.dump(CONTENT)
    left_out = {"public.audit", "public.events_2025", "public.events_2026", "public.events_other", '"tenant data".order'}
    assert set(source.entry["fingerprint"]["excluded"]) == left_out
    assert source.entry["filters"] == {"exclude": ["public.audit", "public.events", "tenant data.*"]}
    assert any("left out" in text for text in source.entry["warnings"])
    assert ("public", "audit") not in rows_in(source) and rows_in(source)["public", "memories"] == 1200
    assert store.faults(source) == []
    assert any("will be empty" in text for text in store.plan(source).warnings)
    comparison, __ = store.restore(source)
    assert comparison.equal and any("left out" in text for text in comparison.not_compared)
    with store.server.connect_application() as connection:
        assert connection.execute("SELECT (SELECT count(*) FROM audit), (SELECT count(*) FROM events)").fetchone() == (0, 0)


def test_legacy_file_without_manifest_is_walked_and_restored(store: Store) -> None:
    """The guide's own way compresses twice: pg_dump -Fc, then gzip."""
    before = capture_postgres(store.server)
    path = store.directory / "legacy.dump.gz"
    environment = {**os.environ, **store.server.libpq_environment()}
    program = str(store.server.bindir / "pg_dump")
    dumped = subprocess.run([program, "-Fc"], env=environment, check=True, capture_output=True).stdout
    path.write_bytes(subprocess.run(["gzip", "-6"], input=dumped, check=True, capture_output=True).stdout)
    source = Source(path, "gzip")
    assert store.faults(source) == []
    execute(store.server, "DELETE FROM memories")
    assert any("no manifest" in text for text in store.plan(source).warnings)
    comparison, __ = store.restore(source)
    assert comparison.equal and comparison.compared == 21
    assert list(fact_differences(before, capture_postgres(store.server))) == []


@pytest.mark.parametrize(("what", "table"), [("oddities", "oddities"), ("tenant data.order", '"tenant data"."order"')])
def test_extract_one_table_as_csv_equals_what_the_server_writes(store: Store, what: str, table: str) -> None:
    source = store.dump()
    with store.server.connect_application() as connection:
        connection.execute("SET timezone = 'UTC'")
        with connection.cursor().copy(f"COPY {table} TO STDOUT (FORMAT csv, HEADER)".encode()) as copy:
            expected = b"".join(bytes(piece) for piece in copy)
    target = store.directory / "out.csv"
    said = store.component.extract(source, what, target, "")
    assert "rows of" in said and (target.stat().st_mode & 0o777) == 0o600
    assert target.read_bytes() == expected


def test_extract_as_sql_can_be_loaded(store: Store) -> None:
    source = store.dump()
    target = store.directory / "out.sql"
    store.component.extract(source, '"Mixed Case"', target, "sql")
    execute(store.server, 'DROP TABLE "Mixed Case"')
    environment = {**os.environ, **store.server.libpq_environment()}
    psql = [str(store.server.bindir / "psql"), "-q", "-v", "ON_ERROR_STOP=1", "-f", str(target)]
    subprocess.run(psql, env=environment, check=True, capture_output=True)
    with store.server.connect_application() as connection:
        assert connection.execute('SELECT count(*) FROM "Mixed Case"').fetchone() == (3,)


def test_extract_says_which_tables_there_are(store: Store) -> None:
    source = store.dump()
    with pytest.raises(UsageError, match=r'no table nonsense: it has "tenant data"\.order, public\."Mixed Case"'):
        store.component.extract(source, "nonsense", store.directory / "x", "")
    with pytest.raises(UsageError, match="as csv or sql"):
        store.component.extract(source, "memories", store.directory / "x", "xml")


def test_damaged_files_are_found(store: Store) -> None:
    """Field note: a table file cut to 60 % restores with exit 0, and a flipped bit passes pg_restore."""
    plain = store.dump(name="db.dump")
    content = plain.path.read_bytes()
    cut = store.directory / "cut.dump"
    cut.write_bytes(content[: len(content) * 6 // 10])
    assert any("cut off" in fault for fault in store.faults(replace(plain, path=cut)))
    cut.write_bytes(content + b"junk")
    assert any("follows its end" in fault for fault in store.faults(replace(plain, path=cut)))
    packed = store.dump(name="db.dump.gz")
    flipped = bytearray(packed.path.read_bytes())
    flipped[len(flipped) // 2] ^= 0x10
    damaged = store.directory / "flipped.dump.gz"
    damaged.write_bytes(flipped)
    with pytest.raises(VerificationError, match="damaged"):
        store.faults(replace(packed, path=damaged))


@pytest.fixture
def argvs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str]]]:
    """Every command line that is started."""
    seen: list[list[str]] = []
    original = process.subprocess.Popen

    def popen(argv: list[str], *args: Any, **options: Any) -> Any:
        seen.append([str(word) for word in argv])
        return original(argv, *args, **options)

    monkeypatch.setattr(process.subprocess, "Popen", popen)
    yield seen


def test_the_password_stands_in_no_command_line_and_no_message(store: Store, argvs: list[list[str]]) -> None:
    """The throwaway server's passwords hold spaces, both quotes, $, a backslash and a non-ASCII letter."""
    password = store.settings.postgresql.password
    assert all(mark in password for mark in " '\"$\\é")
    source = store.dump()
    store.restore(source)
    assert {Path(argv[-1]).name for argv in argvs} and any("pg_dump" in word for argv in argvs for word in argv)
    said = [*store.reporter.steps, *store.reporter.warnings, repr(store.journal), repr(source.entry)]
    assert not any(password in text or "é" in text for text in [word for argv in argvs for word in argv] + said)


def test_password_file_and_service_of_libpq_are_honoured(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = store.server
    escaped = server.app_password.replace("\\", "\\\\").replace(":", "\\:")
    passfile = tmp_path / "pgpass"
    passfile.write_text(f"*:*:*:{server.app_user}:{escaped}\n")
    passfile.chmod(0o600)
    service = tmp_path / "service.conf"
    service.write_text(
        f"[memory]\nhost={server.socket_dir}\nport={server.port}\nuser={server.app_user}\ndbname={server.dbname}\n"
    )
    monkeypatch.setenv("PGPASSFILE", str(passfile))
    by_file = Store(server, tmp_path, password="")
    assert by_file.component.probe().problems == []
    monkeypatch.setenv("PGSERVICEFILE", str(service))
    monkeypatch.setenv("PGSERVICE", "memory")
    by_service = Store(server, tmp_path, password="", host="localhost", port=5432, database="agentmem", user="agentmem")
    source = by_service.dump()
    assert rows_in(source)["public", "memories"] == 1200
    assert by_service.restore(source)[0].equal


def test_socket_directory_as_host(filled_postgres: Postgres, tmp_path: Path) -> None:
    store = Store(filled_postgres, tmp_path, host=str(filled_postgres.socket_dir))
    assert store.restore(store.dump())[0].equal


def test_what_the_application_writes_after_the_cut_is_not_in_the_dump(store: Store) -> None:
    source = store.dump(CONTENT, at_the_cut=lambda: execute(store.server, "DELETE FROM messages WHERE id % 2 = 0"))
    assert rows_in(source)["public", "messages"] == 1500 == source.entry["fingerprint"]["tables"]["public.messages"]["rows"]
    assert store.restore(source)[0].equal


def test_row_security_does_not_hide_rows_from_the_owner(store: Store) -> None:
    assert rows_in(store.dump())["public", "secrets"] == 2


def test_probe_measures_and_names_versions(store: Store) -> None:
    probe = store.component.probe()
    assert probe.problems == [] and probe.warnings == []
    assert probe.facts["server"]["name"] == "PostgreSQL" and probe.raw_bytes > 500_000
