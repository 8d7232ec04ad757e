# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`restore --only-table`: the rows of some tables put back into the live database, or nothing at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from agentmem_backup.components import postgresql_tables
from agentmem_backup.components.base import CONTENT, RestoreOptions
from agentmem_backup.errors import BackupError

from tests.support import command, compare
from tests.support.compare import capture_postgres
from tests.support.pgstore import Store
from tests.support.servers import Postgres, Stores

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def store(filled_postgres: Postgres, tmp_path: Path) -> Store:
    return Store(filled_postgres, tmp_path)


def run(store: Store, *statements: str) -> None:
    """As the application's role, each statement by itself."""
    with store.server.connect_application(autocommit=True) as connection:
        for one in statements:
            connection.execute(one)


def one(store: Store, query: str) -> object:
    with store.server.connect_application() as connection:
        return (connection.execute(query).fetchone() or (None,))[0]


@contextlib.contextmanager
def untouched(store: Store) -> Iterator[None]:
    before, databases = capture_postgres(store.server), store.databases()
    yield
    assert list(compare.fact_differences(before, capture_postgres(store.server))) == []
    assert store.databases() == databases


def test_lost_and_changed_rows_come_back_and_the_rest_stays(store: Store) -> None:
    good = capture_postgres(store.server)
    source = store.dump(CONTENT)
    run(
        store,
        "DELETE FROM messages",
        "UPDATE memories SET content = 'gone'",
        "INSERT INTO log_without_key VALUES (now(), 'later')",
    )
    newer = one(store, "SELECT count(*) FROM log_without_key")
    plan = store.plan(source, only_tables=["messages", "public.memories"])
    assert plan.problems == []
    assert any("the rows of public.messages in database agentmem" in line and "__before_" in line for line in plan.lines)
    outcome, state = store.restore(source, only_tables=["messages", "public.memories"])
    assert outcome.equal and outcome.differences == [] and outcome.compared == 2
    assert "public.memories, public.messages of database agentmem hold the rows of the backup" in state
    assert store.databases() == {"agentmem", "agentmem filled"}
    assert one(store, "SELECT count(*) FROM log_without_key") == newer
    kept = [
        row[0]
        for row in store.server.connect(store.server.dbname).execute(
            "SELECT relname FROM pg_class WHERE relname LIKE '%\\_\\_before\\_%' AND relkind = 'r' ORDER BY 1"
        )
    ]
    assert [name.partition("__")[0] for name in kept] == ["memories", "messages"]
    assert one(store, f"SELECT count(*) FROM \"{kept[0]}\" WHERE content = 'gone'") == one(store, "SELECT count(*) FROM memories")
    assert one(store, f'SELECT count(*) FROM "{kept[1]}"') == 0
    run(store, *(f'DROP TABLE "{name}"' for name in kept), "DELETE FROM log_without_key WHERE line = 'later'")
    assert list(compare.fact_differences(good, capture_postgres(store.server))) == []


def test_no_trigger_fires_and_no_cascade_runs(store: Store) -> None:
    source = store.dump()
    run(store, "UPDATE agents SET name = 'renamed'", "DELETE FROM audit")
    users = one(store, "SELECT count(*) FROM users")
    states = "SELECT string_agg(tgname::text || tgenabled::text, ',' ORDER BY tgname) FROM pg_trigger WHERE NOT tgisinternal"
    triggers = one(store, states)
    outcome, __ = store.restore(source, only_tables=["agents", "organizations"])
    assert outcome.equal
    assert one(store, "SELECT count(*) FROM audit") == 0, "a trigger has written down what the restore did"
    assert one(store, "SELECT count(*) FROM users") == users, "ON DELETE CASCADE has taken rows along"
    assert one(store, "SELECT count(*) FROM agents WHERE name = 'renamed'") == 0
    assert one(store, states) == triggers


def test_a_sequence_gives_out_no_number_that_a_row_has(store: Store) -> None:
    source = store.dump()
    last = one(store, "SELECT max(id) FROM messages")
    run(store, "TRUNCATE messages RESTART IDENTITY")
    store.restore(source, only_tables=["messages"])
    run(store, "INSERT INTO messages (agent_id, role) SELECT id, 'user' FROM agents LIMIT 1")
    assert isinstance(last, int)
    assert one(store, "SELECT max(id) FROM messages") == last + 1


def test_rows_that_do_not_fit_the_others_change_nothing(store: Store) -> None:
    source = store.dump()
    run(store, "DELETE FROM memories", "DELETE FROM messages", "DELETE FROM blocks", "DELETE FROM agents")
    with (
        untouched(store),
        pytest.raises(BackupError, match=r"do not fit the other tables, and nothing .* present in"),
    ):
        store.restore(source, only_tables=["memories"])
    outcome, __ = store.restore(source, only_tables=["memories", "agents"])
    assert outcome.equal


def test_a_table_that_is_held_is_not_waited_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgresql_tables, "_LOCK_WAIT", "50ms")
    monkeypatch.setattr(postgresql_tables, "_LOCK_TRIES", 2)
    source = store.dump()
    with untouched(store), store.server.connect_application(autocommit=False) as application:
        application.execute("SELECT count(*) FROM agents")  # the other end of a foreign key, in a transaction that stays open
        with pytest.raises(BackupError, match=r"does not let go of .*agents.*messages.* nothing was changed: set services"):
            store.restore(source, only_tables=["messages"])


@pytest.mark.parametrize("when", ["before", "after"])
def test_abort_before_the_end_leaves_everything(store: Store, when: str) -> None:
    source = store.dump()
    run(store, "DELETE FROM messages")
    with untouched(store):
        restoration = store.new().restoration(source, RestoreOptions(only_tables=["messages"]))
        restoration.prepare()
        if when == "after":
            restoration.commit()
        restoration.abort()
        restoration.close()
        assert restoration.state() == "database agentmem is as before, untouched"
    assert one(store, "SELECT count(*) FROM messages") == 0


def test_what_forbids_it_is_told_at_once(store: Store) -> None:
    source = store.dump()
    run(store, "DROP TABLE messages", "ALTER TABLE tools RENAME TO instruments", "ALTER TABLE blocks ADD more text")
    with store.server.connect(store.server.dbname, autocommit=True) as superuser:
        superuser.execute("ALTER TABLE audit OWNER TO postgres")
    problems = store.plan(source, only_tables=["messages", "tools", "audit"]).problems
    assert len(problems) == 3
    assert "the live database has no table public.messages" in problems[0]
    assert "public.audit belongs to another role" in problems[2]
    plan = store.plan(source, only_tables=["attachments", "empty_table"])
    assert plan.warnings == ["large objects are not restored with single tables: public.attachments may point to some"]
    assert "the dump has no table nothing" in store.plan(source, only_tables=["nothing"]).problems[0]
    with untouched(store), pytest.raises(BackupError, match=r"public.blocks has other columns now .* nothing was changed"):
        store.restore(source, only_tables=["blocks"])
    store.settings.postgresql.database = "elsewhere"
    assert "there is no database elsewhere to put tables into" in store.plan(source, only_tables=["tools"]).problems[0]


def test_by_the_command(stores: Stores) -> None:
    before = compare.capture(stores)
    command.create(stores)
    with stores.postgres.connect_application(autocommit=True) as connection:
        connection.execute("DELETE FROM messages")
    answer = command.restore(stores, "latest", "--only-table", "messages")
    assert answer["equal"] and set(answer["components"]) == {"postgresql"}
    left = compare.differences(before, compare.capture(stores))
    assert left and all("messages__before_" in text or "number of" in text.lower() for text in left), left
