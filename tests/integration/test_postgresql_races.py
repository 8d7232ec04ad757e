# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the application and its operators may do to tables while a backup runs: none of it may make a wrong backup."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from agentmem_backup import process
from agentmem_backup.components import postgresql
from agentmem_backup.components.base import CONTENT, COUNTS
from agentmem_backup.components.postgresql import PostgresqlCut
from agentmem_backup.errors import BackupError
from agentmem_backup.pipeline import Writer

from tests.support.compare import capture_postgres, fact_differences
from tests.support.pgstore import Session, Store, rows_in
from tests.support.servers import Postgres


@pytest.fixture
def store(filled_postgres: Postgres, tmp_path: Path) -> Store:
    return Store(filled_postgres, tmp_path, lock_timeout_s=0.3)


def test_truncate_and_reload_between_export_and_dump(store: Store) -> None:
    """Field note: without locks the dump has 0 rows, the fingerprint has 0, and both are equal."""
    sessions: list[Session] = []

    def reload() -> None:
        statement = (
            "BEGIN; TRUNCATE log_without_key; INSERT INTO log_without_key SELECT now(), 'new' FROM generate_series(1, 33); COMMIT"
        )
        sessions.append(Session(store.server, statement))
        sessions[0].wait_until_blocked_or_done()

    source = store.dump(CONTENT, at_the_cut=reload)
    sessions[0].ended()
    assert rows_in(source)["public", "log_without_key"] in (20, 33)
    assert store.faults(source) == []
    assert store.restore(source)[0].equal


def test_alter_table_queued_between_export_and_dump_does_not_stop_the_application(store: Store) -> None:
    """Field note: pg_dump queued behind a queued ALTER TABLE, the application's SELECTs behind it, and no detector sees it.

    We do, and let go at once: with this timeout the test would not come to its end otherwise.
    """
    store.settings.postgresql.lock_timeout_s = 3600
    altering: list[Session] = []
    reading: list[Session] = []

    def queue() -> None:
        altering.append(Session(store.server, "ALTER TABLE memories ADD COLUMN late integer"))
        assert altering[0].wait_until_blocked_or_done(), "our locks must hold it back"
        reading.append(Session(store.server, "SELECT count(*) FROM memories"))
        assert reading[0].wait_until_blocked_or_done(), "the SELECT waits behind the ALTER TABLE"

    source = store.dump(at_the_cut=queue)
    for session in (*altering, *reading):
        session.ended()
    assert source.entry is not None and source.entry["attempts"] >= 2
    assert any("letting go" in step and "public.memories" in step for step in store.reporter.steps)
    assert rows_in(source)["public", "memories"] == 1200
    assert store.restore(source)[0].equal
    with store.server.connect_application() as connection:
        assert connection.execute("SELECT count(*) FROM memories WHERE late IS NULL").fetchone() == (1200,)


def test_lock_held_for_ever_ends_in_one_sentence_that_names_table_and_holder(store: Store) -> None:
    store.settings.postgresql.lock_attempts = 2
    with store.server.connect_application(autocommit=False, application_name="migration") as holder:
        holder.execute("LOCK TABLE agents IN ACCESS EXCLUSIVE MODE")
        pid = holder.info.backend_pid
        with pytest.raises(BackupError) as caught:
            store.dump()
        message = str(caught.value)
        assert f"process {pid} of role agentmem, migration holds an exclusive lock on public.agents" in message
        assert "in 2 attempts" in message and "\n" not in message
        holder.rollback()
    with store.server.connect() as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'agentmem-backup'"
        assert connection.execute(query).fetchone() == (0,)


def test_lock_that_is_released_in_time_only_costs_attempts(store: Store) -> None:
    with store.server.connect_application(autocommit=False) as holder, ThreadPoolExecutor(1) as pool:
        holder.execute("LOCK TABLE agents IN ACCESS EXCLUSIVE MODE")
        let_go = threading.Event()
        store.reporter.step = lambda text: let_go.set() if "letting go" in text else None  # type: ignore[method-assign]
        dumped = pool.submit(store.dump)
        assert let_go.wait(30)
        holder.rollback()
        source = dumped.result(60)
    assert source.entry is not None and source.entry["attempts"] >= 2
    assert store.faults(source) == []


def test_table_dropped_while_it_is_being_locked(store: Store) -> None:
    store.settings.postgresql.lock_timeout_s = 20
    with store.server.connect_application(autocommit=False) as dropper, ThreadPoolExecutor(1) as pool:
        dropper.execute("DROP TABLE tools")
        dumped = pool.submit(store.dump)
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        with store.server.connect() as watcher:
            while not watcher.execute(waiting).fetchone()[0]:
                assert not dumped.done()
        dropper.commit()
        source = dumped.result(60)
    assert ("public", "tools") not in rows_in(source)
    assert store.restore(source)[0].equal


def test_table_made_after_the_list_is_in_the_dump(store: Store) -> None:
    made: list[str] = []

    def make() -> None:  # between the locks and the snapshot, where the other stores are waited for
        Session(store.server, "CREATE TABLE brand_new AS SELECT 1 AS one").ended()
        made.append("brand_new")

    cut = store.component.open_cut(make, COUNTS)
    path = store.directory / "db.dump"
    try:
        writer = Writer(path)
        cut.dump(writer)
        writer.close()
        entry = cut.entry()
    finally:
        cut.close()
    assert made == ["brand_new"], "ready() is called once"
    assert entry["attempts"] == 2
    assert entry["fingerprint"]["tables"]["public.brand_new"] == {"rows": 1}


class _Held:
    """A writer that stops at its first piece until it may go on."""

    def __init__(self, path: Path, on_first: Callable[[], None]):
        self.writer = Writer(path)
        self._on_first: Callable[[], None] | None = on_first

    def fill_from(self, descriptor: int) -> int:
        size = self.writer.fill_from(descriptor)
        if self._on_first is not None:
            first, self._on_first = self._on_first, None
            first()
        return size


@pytest.mark.parametrize(
    "statement",
    [
        "TRUNCATE messages",
        "DROP TABLE messages CASCADE",
        "ALTER TABLE messages ADD COLUMN x text DEFAULT 'y'",
        "DELETE FROM messages",
    ],
)
def test_table_changed_while_pg_dump_is_writing(store: Store, statement: str) -> None:
    sessions: list[Session] = []

    def interfere() -> None:
        sessions.append(Session(store.server, statement))
        assert sessions[0].wait_until_blocked_or_done() is not statement.startswith("DELETE")

    path = store.directory / "db.dump"
    cut = store.component.open_cut(lambda: None, CONTENT)
    try:
        held = _Held(path, interfere)
        cut.dump(held)  # type: ignore[arg-type]
        held.writer.close()
        entry = cut.entry()
    finally:
        cut.close()
    sessions[0].ended()
    source = store.dump(name="after.dump")
    source = type(source)(path, "none", {**entry, "raw_bytes": path.stat().st_size})
    assert rows_in(source)["public", "messages"] == 1500
    assert store.faults(source) == []
    assert store.restore(source)[0].equal


_MADE = """
CREATE SCHEMA tools; CREATE TYPE tools.mood AS ENUM ('calm', 'hasty'); CREATE FUNCTION tools.answer() RETURNS int LANGUAGE sql AS
'SELECT 42'; CREATE FUNCTION tools.noted() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN new; END';
CREATE TABLE tools.used (id int DEFAULT tools.answer(), felt tools.mood);
CREATE TRIGGER noted BEFORE INSERT ON tools.used FOR EACH ROW EXECUTE FUNCTION tools.noted();
CREATE VIEW tools.seen AS SELECT id FROM tools.used; CREATE MATERIALIZED VIEW tools.kept AS SELECT id FROM tools.used;
CREATE FUNCTION tools.of_mood(tools.mood) RETURNS int LANGUAGE sql AS 'SELECT 1'"""


@pytest.mark.parametrize(
    "change",
    [
        "DROP FUNCTION tools.of_mood(tools.mood)",
        "ALTER FUNCTION tools.answer() RENAME TO reply",
        "CREATE TABLE tools.added (id int); CREATE OR REPLACE VIEW tools.seen AS SELECT id FROM tools.added",
        "ALTER SCHEMA tools RENAME TO instruments",
        "ALTER TYPE tools.mood RENAME TO temper",
        "CREATE FUNCTION tools.later() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN new; END';"
        " CREATE OR REPLACE TRIGGER noted BEFORE INSERT ON tools.used FOR EACH ROW EXECUTE FUNCTION tools.later()",
        "DROP MATERIALIZED VIEW tools.kept",
    ],
)
def test_a_definition_that_changes_before_pg_dump_has_read_it_is_dumped_whole(store: Store, change: str) -> None:
    """pg_dump asks the server for texts that are of now, not of the snapshot: it archived half a function and said nothing."""

    def execute(statements: str) -> None:
        with store.server.connect_application() as connection:
            connection.execute(statements)

    execute(_MADE)
    changes = [change]
    source = store.dump(CONTENT, at_the_cut=lambda: execute(changes.pop()))
    assert source.entry is not None and source.entry["attempts"] == 2
    assert any("definitions were changed while pg_dump read them (pg_" in step for step in store.reporter.steps)
    before = capture_postgres(store.server)
    store.server.recreate_database()
    comparison, __ = store.restore(source)
    assert comparison.equal
    assert list(fact_differences(before, capture_postgres(store.server))) == []


@pytest.mark.parametrize(
    "change",
    [
        "CREATE TABLE later (id int PRIMARY KEY); CREATE VIEW also AS SELECT id FROM later; CREATE TYPE new AS ENUM ('a')",
        "CREATE TEMP TABLE gone (id int CHECK (id > 1)); CREATE TEMP VIEW by AS SELECT id FROM gone; DROP TABLE gone CASCADE",
        "REFRESH MATERIALIZED VIEW tools.kept",
        "REINDEX TABLE memories",
        "ANALYZE",
        "GRANT SELECT ON memories TO PUBLIC",
        "ALTER TYPE tools.mood ADD VALUE 'late'",
        "BEGIN; DROP FUNCTION tools.of_mood(tools.mood); ROLLBACK",
    ],
)
def test_what_changes_no_definition_in_the_dump_costs_no_attempt(store: Store, change: str) -> None:
    with store.server.connect_application() as connection:
        connection.execute(_MADE)

        def act() -> None:
            for one in change.split("; "):
                connection.execute(one)

        source = store.dump(at_the_cut=act)
    assert source.entry is not None and source.entry["attempts"] == 1
    assert store.restore(source)[0].equal


def test_a_materialized_view_that_is_being_refreshed_does_not_end_the_backup(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for pg_dump, which has looked at the view, and whoever counts its rows would wait for both."""
    with store.server.connect_application() as connection:
        connection.execute(_MADE)
        connection.execute("INSERT INTO tools.used SELECT 1 FROM generate_series(1, 9); REFRESH MATERIALIZED VIEW tools.kept")
    refreshing: list[Session] = []
    await_definitions = PostgresqlCut._await_definitions

    def refresh_then(cut: PostgresqlCut, child: process.Child) -> None:
        await_definitions(cut, child)
        statements = "BEGIN; REFRESH MATERIALIZED VIEW tools.kept; SELECT pg_advisory_lock(7); COMMIT"
        refreshing.append(Session(store.server, statements))
        assert refreshing[0].wait_until_blocked_or_done(), "pg_dump must hold it back"

    monkeypatch.setattr(PostgresqlCut, "_await_definitions", refresh_then)
    with store.server.connect_application() as connection:
        connection.execute("SELECT pg_advisory_lock(7)")
        source = store.dump(CONTENT)
    refreshing[0].ended()
    assert source.entry is not None
    assert source.entry["fingerprint"]["materialized_views"]["tools.kept"] == {"populated": True, "rows": None}
    store.server.recreate_database()
    comparison, __ = store.restore(source)
    assert comparison.equal
    assert any("materialized view tools.kept: it was being refreshed" in one for one in comparison.not_compared)
    with store.server.connect_application() as connection:
        assert connection.execute("SELECT count(*) FROM tools.kept").fetchone() == (9,)


@pytest.mark.parametrize("statement", ["DROP SCHEMA tools CASCADE", "DROP SEQUENCE tools.numbers"])
def test_what_is_dropped_between_the_list_and_its_lock_costs_an_attempt(
    store: Store, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    with store.server.connect_application() as connection:
        connection.execute(f"{_MADE}; CREATE SEQUENCE tools.numbers")
        statements = [statement]
        read = "sequence_facts" if "SEQUENCE" in statement else "inventory"
        original = getattr(postgresql, read)

        def drop_first(*arguments: Any, **options: Any) -> Any:
            if statements:
                connection.execute(statements.pop())
            return original(*arguments, **options)

        monkeypatch.setattr(postgresql, read, drop_first)
        source = store.dump()
    assert source.entry is not None and source.entry["attempts"] == 2
    assert store.restore(source)[0].equal


def test_definitions_that_never_hold_still_fail_in_a_sentence(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.settings.postgresql.lock_attempts = 2
    with store.server.connect_application() as connection:
        connection.execute("CREATE FUNCTION answer() RETURNS int LANGUAGE sql AS 'SELECT 1'")
        await_definitions = PostgresqlCut._await_definitions

        def change_first(cut: PostgresqlCut, child: process.Child) -> None:
            connection.execute("CREATE OR REPLACE FUNCTION answer() RETURNS int LANGUAGE sql AS 'SELECT 2'")
            await_definitions(cut, child)

        monkeypatch.setattr(PostgresqlCut, "_await_definitions", change_first)
        with pytest.raises(BackupError, match=r"definitions were changed .*\(pg_proc\) in \d attempts: back up at"):
            store.dump()


def test_cut_lets_go_of_its_locks_at_close(store: Store) -> None:
    cut = store.component.open_cut(lambda: None, COUNTS)
    waiting = Session(store.server, "LOCK TABLE memories IN ACCESS EXCLUSIVE MODE")
    waiting.wait_until_blocked_or_done()
    cut.close()
    cut.close()
    with pytest.raises(Exception, match="can only be used in transaction blocks"):
        waiting.ended()


def test_refused_ready_leaves_nothing_behind(store: Store) -> None:
    def refuse() -> None:
        raise BackupError("another store is not ready")

    with pytest.raises(BackupError, match="another store"):
        store.component.open_cut(refuse, COUNTS)
    Session(store.server, "TRUNCATE messages").ended()
