# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PostgreSQL: only some tables of a dump put back into the live database, in one transaction (`restore --only-table`).

The whole dump is restored into a new database beside the live one and compared there, as ever. Then, instead of the
renames: the tables are locked, their rows kept in a table beside, foreign keys from and to them are dropped, the rows are
replaced by those of the new database, and the foreign keys are made again. Making them again is the proof that no row of
another table refers to one that has gone: where one does, the server says which, and nothing has happened. The transaction
stays open until all other stores have switched.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import process
from ..errors import BackupError
from ..formats import pgarchive
from ..settings import PostgresqlSettings
from .base import COUNTS, Comparison
from .postgresql import (
    PostgresqlRestoration,
    Relation,
    beside,
    compare_tables,
    find_tables,
    identifier,
    inventory,
    listed,
    literal,
    relations,
    rows,
    said,
    statement,
    table_facts,
    table_key,
    value,
)

if TYPE_CHECKING:
    from .postgresql import Connection

Name = tuple[str, str]
"""Schema and table."""

_TABLE = """
SELECT c.oid::bigint, pg_catalog.pg_has_role(c.relowner, 'MEMBER') FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relname = %s AND c.relkind = 'r'"""
_COLUMNS = """
SELECT attname, pg_catalog.format_type(atttypid, atttypmod), attgenerated <> '' FROM pg_catalog.pg_attribute
WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped ORDER BY attname COLLATE "C" """
_KEYS = """
SELECT n.nspname, c.relname, k.conname, pg_catalog.pg_get_constraintdef(k.oid), pg_catalog.pg_has_role(c.relowner, 'MEMBER'),
  coalesce(pg_catalog.obj_description(k.oid, 'pg_constraint'), ''), rn.nspname, r.relname
FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_class r ON r.oid = k.confrelid JOIN pg_catalog.pg_namespace rn ON rn.oid = r.relnamespace
WHERE k.contype = 'f' AND k.conparentid = 0 AND (k.conrelid = ANY(%s) OR k.confrelid = ANY(%s)) ORDER BY 1, 2, 3"""
_TRIGGERS = """
SELECT tgname, tgenabled::text FROM pg_catalog.pg_trigger WHERE tgrelid = %s AND NOT tgisinternal AND tgenabled <> 'D'"""
_ENABLE = {"O": "ENABLE TRIGGER", "R": "ENABLE REPLICA TRIGGER", "A": "ENABLE ALWAYS TRIGGER"}
_SEQUENCES = """
SELECT n.nspname, c.relname FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_class c ON c.oid = d.objid AND c.relkind = 'S'
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid = %s AND d.deptype IN ('a', 'i')"""


_LOCK_WAIT, _LOCK_TRIES, _LOCK_PAUSE_S = "1s", 30, 0.3


@dataclass
class _Table:
    """A table of the live database whose rows are replaced."""

    schema: str
    name: str
    oid: int

    @property
    def sql(self) -> str:
        return identifier(self.schema, self.name)

    @property
    def key(self) -> str:
        return table_key(self.schema, self.name)


def obstacles(connection: Connection, names: list[Name]) -> list[str]:
    """What forbids putting rows into these tables of the database that `connection` is to."""
    problems, oids = [], []
    for schema, name in names:
        found = rows(connection, _TABLE, [schema, name])
        if not found:
            problems.append(
                f"the live database has no table {table_key(schema, name)}: make it (its definition: agentmem-backup extract "
                "--form sql), or restore the whole database under another name (DB_NAME)"
            )
        elif not found[0][1]:
            problems.append(f"table {table_key(schema, name)} belongs to another role: restore as its owner or as a superuser")
        else:
            oids.append(found[0][0])
    foreign = {table_key(schema, name) for schema, name, __, __, ours, *__ in rows(connection, _KEYS, [oids, oids]) if not ours}
    if foreign:
        problems.append(
            f"{listed(foreign)} have foreign keys from or to these tables and belong to another role: restore as a superuser"
        )
    return problems


def with_large_objects(connection: Connection, names: list[Name]) -> list[str]:
    """Those of these tables that have a column for the OID of a large object."""
    query = """SELECT count(*) FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
      JOIN pg_catalog.pg_class c ON c.oid = a.attrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
      WHERE n.nspname = %s AND c.relname = %s AND a.attnum > 0 AND NOT a.attisdropped AND t.typname IN ('oid', 'lo')"""
    return [table_key(*name) for name in names if value(connection, query, name)]


class TablesRestoration(PostgresqlRestoration):
    """A new database beside the live one, and the transaction that takes some tables' rows over from it."""

    def _tables(self, connection: Connection) -> list[_Table]:
        found = []
        for schema, name in self._target.tables:
            there = rows(connection, _TABLE, [schema, name])
            if not there:
                raise BackupError(
                    f"table {table_key(schema, name)} has gone from database {self._target.live}: nothing was changed"
                )
            found.append(_Table(schema, name, there[0][0]))
        return found

    def commit(self) -> None:
        """Replace the rows, in a transaction that is left open: until it ends, whoever wants these tables waits."""
        live = self._target.live
        self._switch = self._access.connect(live)
        with (
            contextlib.closing(self._access.connect(self._new)) as source,
            self._access.answered(f"putting the rows into database {live}"),
        ):
            tables, keys = self._lock(self._switch)
            for schema, name, key, *__ in keys:
                self._switch.execute(statement("ALTER TABLE {} DROP CONSTRAINT {}", identifier(schema, name), identifier(key)))
            for table in tables:
                self._replace(self._switch, source, table)
            self._make_again(self._switch, keys)

    def _lock(self, live: Connection) -> tuple[list[_Table], list[tuple[Any, ...]]]:
        """Begin the transaction and lock these tables and those at the other ends of their foreign keys; both are returned.

        Never waits for long: behind a lock that waits, the application's own statements wait.
        """
        import psycopg

        live.execute(statement("SET lock_timeout = {}", literal(_LOCK_WAIT)))
        for __ in range(_LOCK_TRIES):
            live.execute("BEGIN")
            tables = self._tables(live)
            oids = [table.oid for table in tables]
            keys = rows(live, _KEYS, [oids, oids])
            ends = {identifier(*names) for schema, name, *__, other, its in keys for names in ((schema, name), (other, its))}
            everything = sorted({table.sql for table in tables} | ends)
            try:
                live.execute(statement("LOCK TABLE ONLY {} IN ACCESS EXCLUSIVE MODE", ", ONLY ".join(everything)))
                return tables, keys
            except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
                live.execute("ROLLBACK")
            process.raise_if_stopping()
            time.sleep(_LOCK_PAUSE_S)
        raise BackupError(
            f"the application does not let go of {listed(everything)}, and nothing was changed: set services or a fence hook, so "
            "that it is stopped during the switch, or try again when it is quiet"
        )

    def _make_again(self, live: Connection, keys: list[tuple[Any, ...]]) -> None:
        """The foreign keys as they were. Raises BackupError where rows refer to what is not there."""
        import psycopg

        for schema, name, key, definition, __, comment, *__ in keys:
            on, called = identifier(schema, name), identifier(key)
            try:
                live.execute(statement("ALTER TABLE {} ADD CONSTRAINT {} {}", on, called, definition))
            except psycopg.errors.ForeignKeyViolation as error:
                raise BackupError(
                    f"the rows of the backup do not fit the other tables, and nothing was changed: {said(error)}: name that "
                    "table with --only-table, too, or restore the whole database"
                ) from error
            if comment:
                live.execute(statement("COMMENT ON CONSTRAINT {} ON {} IS {}", called, on, literal(comment)))

    def _replace(self, live: Connection, source: Connection, table: _Table) -> None:
        oid = rows(source, _TABLE, [table.schema, table.name])[0][0]
        columns = rows(live, _COLUMNS, [table.oid])
        if columns != rows(source, _COLUMNS, [oid]):
            raise BackupError(
                f"table {table.key} has other columns now than when it was backed up, and nothing was changed: restore the whole "
                "database under another name (DB_NAME), and take the rows over by hand"
            )
        triggers = rows(live, _TRIGGERS, [table.oid])
        live.execute(
            statement("CREATE TABLE {} AS SELECT * FROM ONLY {}", identifier(table.schema, self._kept(table)), table.sql)
        )
        live.execute(statement("ALTER TABLE ONLY {} DISABLE TRIGGER USER", table.sql))
        live.execute(statement("TRUNCATE ONLY {}", table.sql))
        names = ", ".join(identifier(name) for name, __, generated in columns if not generated)
        with (
            source.cursor().copy(statement("COPY (SELECT {} FROM ONLY {}) TO STDOUT", names, table.sql)) as reading,
            live.cursor().copy(statement("COPY {} ({}) FROM STDIN", table.sql, names)) as writing,
        ):
            for piece in reading:
                process.raise_if_stopping()
                writing.write(piece)
        for name, state in triggers:
            live.execute(statement(f"ALTER TABLE ONLY {{}} {_ENABLE[state]} {{}}", table.sql, identifier(name)))
        self._push_sequences(live, source, table)
        live.execute(statement("ANALYZE {}", table.sql))

    def _push_sequences(self, live: Connection, source: Connection, table: _Table) -> None:
        """No sequence of the table may give out a number that a row of the backup has."""
        for schema, name in rows(live, _SEQUENCES, [table.oid]):
            sequence = identifier(schema, name)
            if not value(source, "SELECT pg_catalog.to_regclass(%s) IS NOT NULL", [sequence]):
                continue
            read = statement("SELECT last_value, is_called FROM {}", sequence)
            (then, called), (now, __) = rows(source, read)[0], rows(live, read)[0]
            step = value(
                live, "SELECT seqincrement FROM pg_catalog.pg_sequence WHERE seqrelid = %s::pg_catalog.regclass", [sequence]
            )
            if (then > now) if step > 0 else (then < now):
                live.execute(
                    statement("SELECT pg_catalog.setval({}, {}, {})", literal(sequence), str(then), "true" if called else "false")
                )

    def _kept(self, table: _Table) -> str:
        return beside(table.name, "before", self._moment)

    def complete(self) -> None:
        """COMMIT: from now on the rows of the backup are the live ones. The new database is dropped by `close`."""
        if self._switch is None:
            raise BackupError("the switch of PostgreSQL was not begun")
        try:
            with self._access.answered(f"making the new rows of database {self._target.live} final"):
                self._switch.execute("COMMIT")
        except BackupError:
            # A connection that breaks now does not tell whether the server had committed before.
            if not self._switched():
                raise
        self._final = True
        self._switch.close()
        self._switch = None

    def _switched(self) -> bool:
        schema, name = self._target.tables[0]
        kept = identifier(schema, beside(name, "before", self._moment))
        with contextlib.closing(self._access.connect(self._target.live)) as connection:
            return bool(value(connection, "SELECT pg_catalog.to_regclass(%s) IS NOT NULL", [kept]))

    def compare(self) -> Comparison:
        """The tables in the live database against the fingerprint; of the others nothing was restored."""
        live = self._target.live
        names = self._target.tables or find_tables(pgarchive.contents(self._source.pieces()), self._options.only_tables)
        wanted = {table_key(*name) for name in names}
        outcome = Comparison()
        with (
            contextlib.closing(self._access.connect(live)) as connection,
            self._access.answered(f"comparing tables of database {live or self._settings.database}"),
        ):
            tables: list[Relation] = [
                one for one in inventory(relations(connection), PostgresqlSettings()).tables if one.key in wanted
            ]
            recorded: dict[str, Any] = self._recorded or {
                "level": COUNTS,
                "tables": {table_key(*name): {"rows": count} for name, count in self._rows.items()},
            }
            before = {key: facts for key, facts in recorded["tables"].items() if key in wanted}
            compare_tables(outcome, before, table_facts(connection, tables, recorded["level"]), set())
        if recorded["level"] == COUNTS:
            outcome.not_compared.append(
                "the content of rows: the backup recorded counts only (--fingerprint content records more)"
            )
        return outcome

    def state(self) -> str:
        """What is live, and where the old rows lie."""
        live, names = self._target.live or self._settings.database, self._target.tables
        if not self._final:
            return f"database {live} is as before, untouched"
        kept = [table_key(schema, beside(name, "before", self._moment)) for schema, name in names]
        return (
            f"{listed(table_key(*name) for name in names)} of database {live} hold the rows of the backup; the rows before lie "
            f"in {listed(kept)}"
        )

    def close(self) -> None:
        """Drop the new database, which was only taken from."""
        super().close()
        if self._made:
            self._component.drop_database(self._new)
            self._made = False
