# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PostgreSQL: dumped by its own pg_dump inside a snapshot that we hold, restored into a new database that is then renamed.

Backing up: list the tables, lock them all, export the snapshot, list again; then pg_dump and our own queries see the very
same data. Without the locks a TRUNCATE between export and dump gives an empty table that looks equal. Every lock has a
timeout, and whoever loses lets go of everything: a queued ALTER TABLE must not stop the application for the length of a dump.

Restoring: into `<name>__restore_<time>` beside the live database, compared there; then one transaction renames the live
one to `<name>__before_<time>` and the new one into its place. It stays open until all other stores have switched.

Read from top to bottom: connections, programs, what is in a database, fingerprints, the cut, the restore, the component.
"""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import functools
import hashlib
import json
import os
import re
import secrets
import select
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .. import clock, process
from ..errors import BackupError, ToolError, UsageError, VerificationError, one_line
from ..formats import pgarchive
from ..formats.pgarchive import Archive, ArchiveError, Entry
from ..pipeline import PIECE, Writer
from ..settings import PostgresqlSettings
from .base import (
    CONTENT,
    COUNTS,
    Comparison,
    Component,
    Context,
    Cut,
    Examination,
    Probe,
    Restoration,
    RestoreOptions,
    RestorePlan,
    Source,
    named,
)

if TYPE_CHECKING:
    import psycopg

    Connection = psycopg.Connection[Any]

OLDEST_SERVER = 13
_PACKAGE = "postgresql-client"
_NAME_BYTES = 63  # NAMEDATALEN - 1: PostgreSQL cuts longer names without a word

# ------------------------------------------------------------------------------------------------- names and statements


def identifier(*names: str) -> str:
    """Names as SQL writes them, quoted and joined by dots."""
    return ".".join('"' + name.replace('"', '""') + '"' for name in names)


def literal(text: str) -> str:
    """A text as SQL writes it (standard_conforming_strings is on in all our sessions)."""
    return "'" + text.replace("'", "''") + "'"


def statement(template: str, *parts: str) -> bytes:
    """A statement with identifiers and literals, already quoted, in its {} places."""
    return template.format(*parts).encode()


def table_key(schema: str, name: str) -> str:
    """How a manifest names a table: schema.name, each part in quotes where SQL needs them. The same for every server."""
    return ".".join(part if re.fullmatch(r"[a-z_][a-z0-9_]*", part) else identifier(part) for part in (schema, name))


def listed(names: Iterable[str], most: int = 5) -> str:
    """Names in a sentence, the first few of them."""
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def beside(name: str, purpose: str, moment: str) -> str:
    """The name of a database beside `name`: agentmem__before_20250103_120000, cut to what PostgreSQL allows."""
    suffix = f"__{purpose}_{moment}"
    room = _NAME_BYTES - len(suffix)
    return name.encode()[:room].decode(errors="ignore") + suffix


_LOOK_LASTS_S = 60.0
_MAKING_S = 60.0  # copying a template that holds nothing takes a moment
_OURS = re.compile(r"__(?:restore|scratch)_\d{8}_\d{6}(?:_\d+)?$")

# ------------------------------------------------------------------------------------------------------- connections

# What decides how values are written as text; the same on both sides of a comparison.
_SESSION = """
SET client_encoding = 'UTF8'; SET standard_conforming_strings = on; SET search_path = ''; SET row_security = off;
SET TimeZone = 'UTC'; SET DateStyle = 'ISO, YMD'; SET IntervalStyle = 'postgres'; SET bytea_output = 'hex';
SET extra_float_digits = 3; SET lc_monetary = 'C'; SET lc_numeric = 'C'; SET xmlbinary = 'base64'; SET xmloption = 'content';
SET array_nulls = on; SET quote_all_identifiers = off; SET default_transaction_read_only = off; SET jit = off;
SET statement_timeout = 0; SET lock_timeout = 0; SET idle_in_transaction_session_timeout = 0; SET client_min_messages = warning;
"""
_SESSION_SINCE = {14: "SET idle_session_timeout = 0;", 17: "SET transaction_timeout = 0;"}

_REFUSALS = (
    ("password authentication failed", "refuses the password of role {user}: set DB_PASSWORD (or PGPASSFILE)"),
    ("no password supplied", "wants a password for role {user}: set DB_PASSWORD (or PGPASSFILE)"),
    ("fe_sendauth", "wants a password for role {user}: set DB_PASSWORD (or PGPASSFILE)"),
    ("root certificate file", "cannot be trusted ({said}): check DB_SSLROOTCERT"),
    ("does not exist", "refuses the connection ({said}): check DB_NAME and DB_USER"),
    ("is not permitted to log in", "does not let role {user} log in: ALTER ROLE … LOGIN, or set DB_USER"),
    ("no pg_hba.conf entry", "does not accept role {user} from this host: allow it in pg_hba.conf ({said})"),
    ("permission denied for database", "does not let role {user} into the database: GRANT CONNECT ON DATABASE … TO it"),
    ("Connection refused", "does not answer: start it, or check DB_HOST and DB_PORT"),
    ("No such file or directory", "does not answer: start it, or check DB_HOST and DB_PORT"),
    ("timeout", "does not answer in time: check DB_HOST, DB_PORT and the network"),
    ("could not translate host name", "cannot be found under that name: check DB_HOST"),
    ("failed to resolve host", "cannot be found under that name: check DB_HOST"),
    ("Name or service not known", "cannot be found under that name: check DB_HOST"),
    ("SSL", "and we do not agree on TLS ({said}): check DB_SSLMODE and DB_SSLROOTCERT"),
    ("certificate", "shows a certificate that is not trusted ({said}): check DB_SSLROOTCERT"),
    ("too many", "has no connection left for us ({said}): raise max_connections or the role's limit"),
    ("starting up", "is still starting: try again in a moment"),
)


class Access:
    """How to reach the server. What the settings leave empty is libpq's matter (PGPASSFILE, PGSERVICE)."""

    def __init__(self, settings: PostgresqlSettings):
        self._settings = settings
        by_service = bool(os.environ.get("PGSERVICE"))
        defaults = PostgresqlSettings()

        def chosen(name: str) -> str:
            value = getattr(settings, name)
            return "" if by_service and value == getattr(defaults, name) else str(value)

        self._parts = {
            "host": chosen("host"),
            "port": chosen("port"),
            "user": chosen("user"),
            "dbname": chosen("database"),
            "password": settings.password,
            "sslmode": settings.sslmode,
            "sslrootcert": settings.sslrootcert,
        }

    @property
    def where(self) -> str:
        """The server, for a sentence."""
        if not self._parts["host"]:
            return f"of service {os.environ.get('PGSERVICE')}"
        return f"at {self._parts['host']}:{self._parts['port'] or 5432}"

    def parameters(self, database: str = "") -> dict[str, Any]:
        """Keywords for psycopg.connect; `database` overrides the settings' own."""
        parts = {**self._parts, **({"dbname": database} if database else {})}
        return {name: value for name, value in parts.items() if value}

    def environment(self, database: str = "") -> dict[str, str]:
        """libpq's variables for a program of PostgreSQL: secrets go this way and never in argv."""
        names = {"dbname": "PGDATABASE"}
        variables = {names.get(name, f"PG{name.upper()}"): value for name, value in self.parameters(database).items()}
        return {**variables, "PGAPPNAME": "agentmem-backup", "PGCONNECT_TIMEOUT": "15"}

    def connect(self, database: str = "") -> Connection:
        """A connection in autocommit with everything set that decides how values look. Raises BackupError."""
        import psycopg

        try:
            connection = psycopg.connect(
                **self.parameters(database),
                autocommit=True,
                connect_timeout=15,
                application_name="agentmem-backup",
                client_encoding="UTF8",
                prepare_threshold=None,
            )
        except (psycopg.Error, UnicodeError, ValueError) as error:
            raise BackupError(self._refusal(str(error))) from None
        with self.answered("preparing the session"):
            connection.execute(_SESSION.encode())
            for major, more in _SESSION_SINCE.items():
                if connection.info.server_version // 10000 >= major:
                    connection.execute(more.encode())
        return connection

    def _refusal(self, said: str) -> str:
        lines = [line for line in said.splitlines() if line.strip()] or ["it refuses the connection"]
        short = one_line(re.sub(r"^.*?(?:FATAL|failed):\s*", "", lines[-1]), 200)
        for sign, sentence in _REFUSALS:
            if sign.lower() in said.lower():
                return f"PostgreSQL {self.where} " + sentence.format(user=self._parts["user"] or "in use", said=short)
        return f"PostgreSQL {self.where} refuses the connection: {one_line(said)}"

    @contextlib.contextmanager
    def answered(self, doing: str) -> Iterator[None]:
        """Turns what the server says against a statement into a BackupError that says what was being done."""
        import psycopg

        try:
            yield
        except psycopg.Error as error:
            raise BackupError(f"PostgreSQL {self.where}: {doing} failed: {said(error)}") from error


def said(error: BaseException) -> str:
    """What PostgreSQL said against a statement, with its detail, in one line."""
    diagnosis = getattr(error, "diag", None)
    parts = [diagnosis.message_primary, diagnosis.message_detail, diagnosis.message_hint] if diagnosis is not None else []
    return one_line("; ".join(part for part in parts if part) or error)


def rows(connection: Connection, query: bytes | str, parameters: Sequence[Any] | None = None) -> list[tuple[Any, ...]]:
    """All rows of a query."""
    return connection.execute(query.encode() if isinstance(query, str) else query, parameters).fetchall()


def value(connection: Connection, query: bytes | str, parameters: Sequence[Any] | None = None) -> Any:
    """The one value of a query."""
    return rows(connection, query, parameters)[0][0]


def database_oid(connection: Connection, name: str) -> int | None:
    """The OID of a database; None where there is none of that name."""
    found: int | None = value(connection, "SELECT (SELECT oid::bigint FROM pg_catalog.pg_database WHERE datname = %s)", [name])
    return found


def major_of(connection: Connection) -> int:
    """The server's major version."""
    return connection.info.server_version // 10000


def server_of(connection: Connection) -> dict[str, str]:
    """The server as a manifest names it: PostgreSQL and 15.14."""
    told = str(value(connection, "SELECT pg_catalog.current_setting('server_version')"))
    return {"name": "PostgreSQL", "version": told.split()[0]}


# ---------------------------------------------------------------------------------------------------------- programs


@dataclass(frozen=True)
class Tool:
    """A program of PostgreSQL, its version as it tells it, and that version's major."""

    path: str
    version: str
    major: int


def _tool(path: str) -> Tool | None:
    try:
        told = process.run([path, "--version"], timeout_s=30)
    except BackupError:
        return None
    found = re.search(r"\(PostgreSQL\) (\S+)", told)
    return Tool(path, found[1], pgarchive.major(found[1])) if found else None


def _tools(program: str, bin_dir: str, wanted: int) -> list[Tool]:
    """Every such program on this machine, that of major `wanted` alone where it is there."""
    if bin_dir:
        paths = [Path(bin_dir) / program]
    else:
        first = [Path(f"/usr/lib/postgresql/{wanted}/bin/{program}"), Path(f"/usr/pgsql-{wanted}/bin/{program}")]
        others = [*Path("/usr/lib/postgresql").glob(f"*/bin/{program}"), *Path("/usr").glob(f"pgsql-*/bin/{program}")]
        on_path = shutil.which(program)
        paths = [*first, *others, *([Path(on_path)] if on_path else [])]
    found = []
    for path in dict.fromkeys(paths):
        tool = _tool(str(path)) if os.access(path, os.X_OK) else None
        if tool and tool.major == wanted:
            return [tool]
        found += [tool] if tool else []
    return found


def find_tool(program: str, bin_dir: str, wanted: int, at_least: int = 0) -> Tool:
    """The `program` of major `wanted`, or of the nearest newer one; never older than `at_least`. Raises BackupError."""
    floor = max(wanted, at_least)
    found = _tools(program, bin_dir, floor)
    newer = sorted((tool for tool in found if tool.major >= floor), key=lambda tool: tool.major)
    if newer:
        return newer[0]
    where = f" in {bin_dir}" if bin_dir else ""
    if found:
        have = ", ".join(sorted({tool.version for tool in found}))
        raise BackupError(f"{program}{where} is too old: {have}, and {floor} is needed: install {_PACKAGE}-{floor}")
    raise BackupError(f"the program {program} is not installed{where}: install it (Debian: apt-get install {_PACKAGE}-{floor})")


# ----------------------------------------------------------------------------------------------- what is in a database


@dataclass(frozen=True)
class Relation:
    """A table, partitioned table, materialized view, foreign table or sequence that belongs to no extension."""

    oid: int
    schema: str
    name: str
    kind: str
    unlogged: bool
    root: str
    """schema.name of the partitioned table that it is a part of, or nothing."""

    @property
    def key(self) -> str:
        return table_key(self.schema, self.name)

    @property
    def sql(self) -> str:
        return identifier(self.schema, self.name)


# pg_dump leaves out what an extension made, and every schema whose name begins with pg_.
_OWN_SCHEMA = "n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"
_RELATIONS = f"""
SELECT c.oid::bigint, n.nspname, c.relname, c.relkind::text, c.relpersistence = 'u',
  coalesce((SELECT rn.nspname || '.' || r.relname FROM pg_catalog.pg_class r
    JOIN pg_catalog.pg_namespace rn ON rn.oid = r.relnamespace
    WHERE c.relispartition AND r.oid = pg_catalog.pg_partition_root(c.oid)), '')
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'm', 'f', 'S') AND c.relpersistence <> 't' AND {_OWN_SCHEMA}
  AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
    AND d.objid = c.oid AND d.objsubid = 0 AND d.deptype = 'e')
ORDER BY 2, 3"""  # noqa: S608  both parts are constants of ours

_FOREIGN, _PARTITIONED, _SEQUENCE, _TABLE, _VIEW = "f", "p", "S", "r", "m"


def relations(connection: Connection) -> list[Relation]:
    """All relations with data that a dump could hold."""
    return [Relation(*row) for row in rows(connection, _RELATIONS)]


def left_out(relation: Relation, settings: PostgresqlSettings) -> bool:
    """Whether the patterns leave out a table's rows (its own name or that of the table it is a partition of decides)."""
    names = [f"{relation.schema}.{relation.name}", *([relation.root] if relation.root else [])]

    def matches(patterns: list[str]) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)

    included = not settings.include_tables or matches(settings.include_tables)
    return not included or matches(settings.exclude_tables)


@dataclass
class Inventory:
    """The relations of a database, sorted by what a dump does with them."""

    tables: list[Relation] = field(default_factory=list)
    excluded: list[Relation] = field(default_factory=list)
    views: list[Relation] = field(default_factory=list)
    foreign: list[Relation] = field(default_factory=list)
    sequences: list[Relation] = field(default_factory=list)
    lockable: list[Relation] = field(default_factory=list)


def inventory(found: list[Relation], settings: PostgresqlSettings, *, standby: bool = False) -> Inventory:
    """Sort relations. On a standby unlogged tables cannot be read: they count as left out."""
    sorted_out = Inventory()
    for relation in found:
        if relation.kind == _TABLE:
            gone = left_out(relation, settings) or (standby and relation.unlogged)
            (sorted_out.excluded if gone else sorted_out.tables).append(relation)
        elif relation.kind == _VIEW:
            sorted_out.views.append(relation)
        elif relation.kind == _FOREIGN:
            sorted_out.foreign.append(relation)
        elif relation.kind == _SEQUENCE:
            sorted_out.sequences.append(relation)
        if relation.kind in (_TABLE, _PARTITIONED):
            sorted_out.lockable.append(relation)
    return sorted_out


def on_standby(connection: Connection) -> bool:
    """Whether the server is in recovery."""
    return bool(value(connection, "SELECT pg_catalog.pg_is_in_recovery()"))


# -------------------------------------------------------------------------------------------------------- fingerprints

_OBJECTS = f"""
WITH n AS (SELECT n.oid FROM pg_catalog.pg_namespace n WHERE {_OWN_SCHEMA}),
  e AS (SELECT classid, objid FROM pg_catalog.pg_depend WHERE deptype = 'e')
SELECT 'indexes', count(*) FROM pg_catalog.pg_class c WHERE c.relkind IN ('i', 'I') AND c.relnamespace IN (SELECT oid FROM n)
UNION ALL SELECT 'constraints', count(*) FROM pg_catalog.pg_constraint c
  WHERE c.contype <> 'n' AND c.connamespace IN (SELECT oid FROM n)
UNION ALL SELECT 'triggers', count(*) FROM pg_catalog.pg_trigger t WHERE NOT t.tgisinternal
UNION ALL SELECT 'policies', count(*) FROM pg_catalog.pg_policy
UNION ALL SELECT 'publications', count(*) FROM pg_catalog.pg_publication
UNION ALL SELECT 'rules', count(*) FROM pg_catalog.pg_rewrite r JOIN pg_catalog.pg_class c ON c.oid = r.ev_class
  WHERE r.rulename <> '_RETURN' AND c.relnamespace IN (SELECT oid FROM n)
UNION ALL SELECT 'functions', count(*) FROM pg_catalog.pg_proc p WHERE p.pronamespace IN (SELECT oid FROM n)
  AND ('pg_catalog.pg_proc'::pg_catalog.regclass, p.oid) NOT IN (SELECT classid, objid FROM e)
UNION ALL SELECT 'types', count(*) FROM pg_catalog.pg_type t WHERE t.typtype IN ('d', 'e', 'r')
  AND t.typnamespace IN (SELECT oid FROM n)
  AND ('pg_catalog.pg_type'::pg_catalog.regclass, t.oid) NOT IN (SELECT classid, objid FROM e)
UNION ALL SELECT 'views', count(*) FROM pg_catalog.pg_class c WHERE c.relkind = 'v' AND c.relnamespace IN (SELECT oid FROM n)
  AND ('pg_catalog.pg_class'::pg_catalog.regclass, c.oid) NOT IN (SELECT classid, objid FROM e)"""  # noqa: S608  constants

_COLUMNS = """
SELECT a.attrelid::bigint, a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod) FROM pg_catalog.pg_attribute a
WHERE a.attrelid = ANY(%s) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attname COLLATE "C" """

# An order-independent digest: sum of 64-bit hashes over the multiset of rows. ROW(…)::text tells NULL from ''.
_DIGEST = """
SELECT count(*), coalesce(sum(pg_catalog.hashtextextended(ROW({})::text COLLATE "C", 0)), 0)::text FROM ONLY {}"""
_SLICE = 1024 * 1024  # of a large object; recorded fingerprints depend on it
_LARGE_OBJECT_DIGEST = """
SELECT coalesce(sum(pg_catalog.hashtextextended(
    part.oid::text || ':' || %s::text || ':' || pg_catalog.encode(pg_catalog.sha256(part.piece), 'hex'), 0)), 0)::text,
  coalesce(array_agg(part.oid) FILTER (WHERE pg_catalog.octet_length(part.piece) = %s), '{}')::bigint[]
FROM (SELECT m.oid::bigint AS oid, pg_catalog.lo_get(m.oid, %s::bigint, %s::integer) AS piece
  FROM pg_catalog.pg_largeobject_metadata m WHERE %s::bigint[] IS NULL OR m.oid = ANY(%s::bigint[]::oid[]) OFFSET 0) part"""


def _in_turn(connection: Connection, relations: list[Relation]) -> Iterator[Relation]:
    """The relations one by one, to be read; within a transaction, which must change nothing, what ten of them had
    locked is let go before the next. A table's indexes are locked with it, and pg_dump itself takes no such locks: a server
    has room for so many only (max_locks_per_transaction)."""
    from psycopg.pq import TransactionStatus

    held = connection.info.transaction_status == TransactionStatus.INTRANS
    for some in _batches(relations, 10):
        if held:
            connection.execute("SAVEPOINT reading")
        yield from some
        if held:
            connection.execute("ROLLBACK TO SAVEPOINT reading; RELEASE SAVEPOINT reading")


def _columns(connection: Connection, tables: list[Relation]) -> dict[int, list[tuple[str, str]]]:
    columns: dict[int, list[tuple[str, str]]] = {table.oid: [] for table in tables}
    for oid, name, kind in rows(connection, _COLUMNS, [list(columns)]):
        columns[oid].append((name, kind))
    return columns


def table_facts(connection: Connection, tables: list[Relation], level: str) -> dict[str, dict[str, Any]]:
    """The `tables` of a fingerprint."""
    facts: dict[str, dict[str, Any]] = {}
    columns = _columns(connection, tables) if level == CONTENT else {}
    for table in _in_turn(connection, tables):
        process.raise_if_stopping()
        if level == COUNTS:
            facts[table.key] = {"rows": value(connection, statement("SELECT count(*) FROM ONLY {}", table.sql))}
            continue
        names = ", ".join(identifier(name) for name, __ in columns[table.oid])
        count, total = rows(connection, statement(_DIGEST, names, table.sql))[0]
        described = hashlib.sha256(json.dumps(columns[table.oid]).encode()).hexdigest()[:16]
        facts[table.key] = {"rows": count, "sum": total, "columns": described}
    return facts


def _large_object_facts(connection: Connection, level: str) -> dict[str, Any]:
    facts: dict[str, Any] = {"count": value(connection, "SELECT count(*) FROM pg_catalog.pg_largeobject_metadata")}
    if level == CONTENT and facts["count"]:
        total, begin, left = 0, 0, None
        while left is None or left:
            part, left = rows(connection, _LARGE_OBJECT_DIGEST, [begin, _SLICE, begin, _SLICE, left, left])[0]
            total, begin = total + int(part), begin + _SLICE
        facts["sum"] = str(total)
    return facts


def sequence_facts(connection: Connection, sequences: list[Relation]) -> dict[str, dict[str, Any]]:
    """Where each sequence stands. Sequences do not obey snapshots: read them before pg_dump does, and compare by ≥."""
    query = """SELECT s.seqrelid::bigint, s.seqincrement, s.seqcycle FROM pg_catalog.pg_sequence s WHERE s.seqrelid = ANY(%s)"""
    steps = {oid: (step, cycle) for oid, step, cycle in rows(connection, query, [[one.oid for one in sequences]])}
    facts = {}
    for one in sequences:
        last, called = rows(connection, statement("SELECT last_value, is_called FROM {}", one.sql))[0]
        step, cycle = steps[one.oid]
        facts[one.key] = {"last": last, "called": called, "increment": step, "cycle": cycle}
    return facts


def _view_facts(connection: Connection, views: list[Relation]) -> dict[str, dict[str, Any]]:
    facts: dict[str, dict[str, Any]] = {}
    for view in views:
        filled = value(connection, "SELECT relispopulated FROM pg_catalog.pg_class WHERE oid = %s", [view.oid])
        facts[view.key] = {"populated": filled, "rows": _count_view(connection, view) if filled else None}
    return facts


def _count_view(connection: Connection, view: Relation) -> int | None:
    """The rows of a materialized view; None where it is being refreshed, for longer than we wait, or was dropped meanwhile.
    Neither is in pg_dump's way, which takes the definition only. The caller is within a transaction."""
    import psycopg

    connection.execute("SAVEPOINT counting")
    try:
        return int(value(connection, statement("SELECT count(*) FROM {}", view.sql)))
    except (psycopg.errors.LockNotAvailable, psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        return None
    finally:
        connection.execute("ROLLBACK TO SAVEPOINT counting; RELEASE SAVEPOINT counting")


def fingerprint(
    connection: Connection, level: str, found: Inventory, sequences: dict[str, dict[str, Any]] | None = None
) -> dict[str, Any]:
    """What is in a database, as a JSON object; `level` is COUNTS or CONTENT. The caller holds the snapshot, if any."""
    return {
        "level": level,
        "major": major_of(connection),
        "tables": table_facts(connection, found.tables, level),
        "sequences": sequence_facts(connection, found.sequences) if sequences is None else sequences,
        "materialized_views": _view_facts(connection, found.views),
        "large_objects": _large_object_facts(connection, level),
        "objects": dict(rows(connection, _OBJECTS)),
        "excluded": [table.key for table in found.excluded],
        "foreign_tables": [table.key for table in found.foreign],
    }


def compare(recorded: dict[str, Any], found: dict[str, Any]) -> Comparison:
    """What is in a database against what was recorded of it; both from `fingerprint` at the recorded level."""
    outcome = Comparison()
    compare_tables(outcome, recorded["tables"], found["tables"], set(recorded["excluded"]))
    for name, before in recorded["sequences"].items():
        _compare_sequence(outcome, name, before, found["sequences"].get(name))
    for name, before in recorded["materialized_views"].items():
        _compare_view(outcome, name, before, found["materialized_views"].get(name))
    _expect(outcome, "large objects", recorded["large_objects"]["count"], found["large_objects"]["count"])
    if "sum" in recorded["large_objects"]:
        _expect(outcome, "content of the large objects", recorded["large_objects"]["sum"], found["large_objects"].get("sum"))
    if recorded["major"] == found["major"]:
        for name, before in recorded["objects"].items():
            _expect(outcome, f"number of {name}", before, found["objects"].get(name))
    else:
        outcome.not_compared.append(f"numbers of indexes, functions and such: PostgreSQL {found['major']} counts them otherwise")
    if recorded["excluded"]:
        outcome.not_compared.append(f"rows of {listed(recorded['excluded'])}: left out of the backup")
    if recorded["foreign_tables"]:
        outcome.not_compared.append(f"foreign tables {listed(recorded['foreign_tables'])}: their rows lie on other servers")
    if recorded["level"] == COUNTS:
        outcome.not_compared.append("the content of rows: the backup recorded counts only (--fingerprint content records more)")
    return outcome


def _expect(outcome: Comparison, what: str, before: Any, now: Any) -> None:
    outcome.compared += 1
    if before != now:
        outcome.differences.append(f"{what}: {before} backed up, {'none' if now is None else now} in the database")


def compare_tables(outcome: Comparison, recorded: dict[str, Any], found: dict[str, Any], excluded: set[str]) -> None:
    """Add to `outcome` what was found of tables against what was recorded of them; `excluded` may be there and empty."""
    for name, before in recorded.items():
        now = found.get(name)
        if now is None:
            outcome.compared += 1
            outcome.differences.append(f"table {name} is missing")
            continue
        _expect(outcome, f"rows of {name}", before["rows"], now["rows"])
        if "sum" in before and before["rows"] == now["rows"]:
            if before["columns"] != now.get("columns"):
                outcome.differences.append(f"columns of {name} have other names or types")
            elif before["sum"] != now.get("sum"):
                outcome.differences.append(f"content of {name} differs, with the same number of rows")
    for name in sorted(found.keys() - recorded.keys() - excluded):
        outcome.differences.append(f"table {name} was not in the backup")


def _compare_sequence(outcome: Comparison, name: str, before: dict[str, Any], now: dict[str, Any] | None) -> None:
    if now is None:
        outcome.compared += 1
        outcome.differences.append(f"sequence {name} is missing")
        return
    if before["cycle"]:
        outcome.not_compared.append(f"sequence {name}: it goes round, so later is not larger")
        return
    outcome.compared += 1
    sign = 1 if before["increment"] > 0 else -1
    if (sign * now["last"], now["called"]) < (sign * before["last"], before["called"]):
        outcome.differences.append(f"sequence {name} stands at {now['last']}, before the {before['last']} that was backed up")


def _compare_view(outcome: Comparison, name: str, before: dict[str, Any], now: dict[str, Any] | None) -> None:
    _expect(outcome, f"materialized view {name} filled", before["populated"], now["populated"] if now else None)
    if before["populated"] and before["rows"] is None:
        outcome.not_compared.append(f"materialized view {name}: it was being refreshed, or dropped, while it was backed up")
    elif now and before["populated"] == now["populated"] and before["rows"] != now["rows"]:
        outcome.not_compared.append(
            f"materialized view {name}: {before['rows']} rows when last refreshed, {now['rows']} now, computed anew"
        )


# ---------------------------------------------------------------------------- what a restore needs beside the archive

_ROLES = """
SELECT DISTINCT d.deptype::text, r.rolname FROM pg_catalog.pg_shdepend d JOIN pg_catalog.pg_roles r ON r.oid = d.refobjid
WHERE d.refclassid = 'pg_catalog.pg_authid'::pg_catalog.regclass AND d.deptype IN ('o', 'a', 'r')
  AND d.dbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
  AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend e WHERE e.classid = d.classid AND e.objid = d.objid AND e.deptype = 'e')"""
_EXTENSIONS = """
SELECT e.extname, e.extversion, n.nspname FROM pg_catalog.pg_extension e
JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace WHERE e.extname <> 'plpgsql' ORDER BY 1"""
_LOCALE = {
    15: "d.datlocprovider::text, d.daticulocale, NULL",
    16: "d.datlocprovider::text, d.daticulocale, d.daticurules",
    17: "d.datlocprovider::text, d.datlocale, d.daticurules",
}
_DEFAULT_TABLESPACE = "pg_default"
_DATABASE = """
SELECT d.oid::bigint, r.rolname, pg_catalog.pg_encoding_to_char(d.encoding), d.datcollate, d.datctype, d.datconnlimit,
  pg_catalog.shobj_description(d.oid, 'pg_database'), d.datacl IS NULL, t.spcname, {}
FROM pg_catalog.pg_database d JOIN pg_catalog.pg_roles r ON r.oid = d.datdba
JOIN pg_catalog.pg_tablespace t ON t.oid = d.dattablespace WHERE d.datname = %s"""
_DATABASE_SETTINGS = """
SELECT coalesce(r.rolname, ''), u.setting FROM pg_catalog.pg_db_role_setting s
LEFT JOIN pg_catalog.pg_roles r ON r.oid = s.setrole, pg_catalog.unnest(s.setconfig) WITH ORDINALITY u (setting, place)
WHERE s.setdatabase = %s ORDER BY 1, u.place"""
_DATABASE_GRANTS = """
SELECT coalesce(r.rolname, ''), a.privilege_type, a.is_grantable
FROM pg_catalog.pg_database d, pg_catalog.aclexplode(d.datacl) a LEFT JOIN pg_catalog.pg_roles r ON r.oid = a.grantee
WHERE d.oid = %s AND (a.grantee = 0 OR r.rolname IS NOT NULL) ORDER BY 1, 2"""


def requirements(connection: Connection) -> dict[str, Any]:
    """The roles and extensions that the open database cannot be restored without."""
    names = {"o": "owners", "a": "grantees", "r": "policies"}
    roles: dict[str, list[str]] = {name: [] for name in names.values()}
    for kind, role in rows(connection, _ROLES):
        roles[names[kind]].append(role)
    extensions = [{"name": name, "version": version, "schema": schema} for name, version, schema in rows(connection, _EXTENSIONS)]
    return {"roles": {name: sorted(found) for name, found in roles.items()}, "extensions": extensions}


def database_facts(connection: Connection, database: str) -> dict[str, Any] | None:
    """A database's own properties, settings and grants, which no dump and no template carries along; None: no such database."""
    locale = next(
        (text for major, text in sorted(_LOCALE.items(), reverse=True) if major_of(connection) >= major), "'c', NULL, NULL"
    )
    found = rows(connection, statement(_DATABASE, locale), [database])
    if not found:
        return None
    oid, owner, encoding, collate, ctype, limit, comment, default_grants, tablespace, provider, name, rules = found[0]
    grants = None if default_grants else [list(row) for row in rows(connection, _DATABASE_GRANTS, [oid])]
    return {
        "name": database,
        "owner": owner,
        "encoding": encoding,
        "collate": collate,
        "ctype": ctype,
        "provider": provider,
        "locale": name,
        "rules": rules,
        "tablespace": tablespace,
        "connection_limit": limit,
        "comment": comment,
        "settings": [list(row) for row in rows(connection, _DATABASE_SETTINGS, [oid])],
        "grants": grants,
    }


# ------------------------------------------------------------------------------------------------------------- the cut


class _Contended(Exception):
    """Somebody else's lock or change came in between: let go of everything and try again."""


_TEMPORARY = "SELECT oid FROM temporary"
_OF_TEMPORARY = f"SELECT r.oid FROM pg_catalog.pg_class r WHERE r.relnamespace IN ({_TEMPORARY})"  # noqa: S608  constants
_DEFINING = {  # catalog → which of its rows describe nothing temporary
    **dict.fromkeys(("pg_aggregate", "pg_cast", "pg_enum", "pg_event_trigger", "pg_extension", "pg_foreign_server"), "true"),
    **dict.fromkeys(("pg_language", "pg_publication", "pg_publication_rel", "pg_transform", "pg_ts_config_map"), "true"),
    "pg_collation": f"c.collnamespace NOT IN ({_TEMPORARY})",
    "pg_constraint": f"c.connamespace NOT IN ({_TEMPORARY})",
    "pg_conversion": f"c.connamespace NOT IN ({_TEMPORARY})",
    "pg_namespace": f"c.oid NOT IN ({_TEMPORARY})",
    "pg_opclass": f"c.opcnamespace NOT IN ({_TEMPORARY})",
    "pg_operator": f"c.oprnamespace NOT IN ({_TEMPORARY})",
    "pg_opfamily": f"c.opfnamespace NOT IN ({_TEMPORARY})",
    "pg_proc": f"c.pronamespace NOT IN ({_TEMPORARY})",
    "pg_rewrite": f"c.ev_class NOT IN ({_OF_TEMPORARY})",
    "pg_statistic_ext": f"c.stxnamespace NOT IN ({_TEMPORARY})",
    "pg_trigger": f"c.tgrelid NOT IN ({_OF_TEMPORARY})",
    "pg_ts_config": f"c.cfgnamespace NOT IN ({_TEMPORARY})",
    "pg_ts_dict": f"c.dictnamespace NOT IN ({_TEMPORARY})",
    "pg_type": f"c.typnamespace NOT IN ({_TEMPORARY})",
}
_TOUCHED = " UNION ALL ".join(
    f"SELECT '{catalog}' AS catalog, c.xmax FROM pg_catalog.{catalog} c WHERE c.xmax <> '0'::xid AND {lasting}"  # noqa: S608  constants
    for catalog, lasting in _DEFINING.items()
)
# Which catalogs have lost a row that the transaction's snapshot sees, because somebody has deleted or updated it since: xmax is
# the lower half of the number of who did it, which is near the snapshot's own.
_CHANGED = f"""
WITH temporary AS (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname ~ '^pg_(toast_)?temp_'),
  own AS (SELECT pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text::bigint AS number),
  touched AS ({_TOUCHED}),
  by AS (SELECT catalog, number + (xmax::text::bigint - number % 4294967296 + 6442450944) % 4294967296 - 2147483648 AS whom
    FROM touched, own)
SELECT DISTINCT catalog FROM by WHERE whom > 0 AND pg_catalog.pg_xact_status(whom::text::xid8) = 'committed' ORDER BY 1"""  # noqa: S608  constants


# Whether the session of that name waits for a lock that it cannot get before we let go: it waits for somebody who waits for us.
_ENTANGLED = """
WITH RECURSIVE waits(pid) AS (
  SELECT pid FROM pg_catalog.pg_stat_activity WHERE application_name = %s AND wait_event_type = 'Lock'
  UNION SELECT blocking FROM waits, pg_catalog.unnest(pg_catalog.pg_blocking_pids(waits.pid)) AS blocking)
SELECT EXISTS (SELECT FROM waits WHERE pid = pg_catalog.pg_backend_pid())"""
_LOOK_MS = 100
_LONGEST_PAUSE_S = 2.0


class PostgresqlCut(Cut):
    """All tables locked ACCESS SHARE, and a snapshot exported; pg_dump and the fingerprint both look through it."""

    def __init__(self, component: PostgresqlComponent, level: str):
        self._component = component
        self._settings = component.settings.postgresql
        self._access = component.access
        self._level = level
        self._connection: Connection | None = None
        self._snapshot = self._encoding = self._dumper = ""
        self._inventory = Inventory()
        self._sequences: dict[str, dict[str, Any]] = {}
        self._entry: dict[str, Any] = {}
        self._warnings: list[str] = []
        self._ready: Callable[[], None] | None = None
        self._attempt = 0
        self._begun = 0.0
        self.moment: datetime = clock.now()

    # Taking it

    def open(self, ready: Callable[[], None]) -> None:
        """Lock, call `ready` once, export the snapshot. Raises BackupError after `lock_attempts` in vain, where so many of their
        timeouts have passed, too: most attempts end long before it."""
        self._ready = ready
        self._begun = time.monotonic()
        self._connection = self._access.connect()
        self._tool = find_tool("pg_dump", self._settings.bin_dir, major_of(self._connection))
        self._standby = on_standby(self._connection)
        self._describe()
        self._hold()

    def _describe(self) -> None:
        with self._access.answered("reading the catalogue"):
            database = str(value(self._open, "SELECT pg_catalog.current_database()"))
            self._entry = {
                "server": server_of(self._open),
                "tool": {"name": "pg_dump", "version": self._tool.version},
                "role": str(value(self._open, "SELECT current_user")),
                "requires": requirements(self._open),
                "database": database_facts(self._open, database),
                "size": int(value(self._open, "SELECT pg_catalog.pg_database_size(pg_catalog.current_database())")),
                "filters": {
                    name: patterns
                    for name, patterns in (("include", self._settings.include_tables), ("exclude", self._settings.exclude_tables))
                    if patterns
                },
            }

    @property
    def _open(self) -> Connection:
        if self._connection is None:
            raise BackupError("the cut of PostgreSQL is closed")
        return self._connection

    def _hold(self) -> None:
        while True:
            self._attempt += 1
            try:
                with self._access.answered("holding the tables"):
                    return self._hold_once()
            except _Contended as reason:
                self._let_go_and_wait(str(reason))

    def _let_go_and_wait(self, reason: str) -> None:
        """Release everything, so that whoever waits for us gets on; raises BackupError when it was the last attempt."""
        blocker = self._blocker()
        with self._access.answered("letting go of the tables"):
            self._open.execute("ROLLBACK")
        most = self._settings.lock_attempts
        if self._attempt >= most and time.monotonic() >= self._begun + most * self._settings.lock_timeout_s:
            raise BackupError(
                f"PostgreSQL {self._access.where}: {reason} in {self._attempt} attempts"
                + (f" ({blocker})" if blocker else "")
                + ": back up at a quieter time, or raise lock_timeout_s or lock_attempts"
            )
        self._component.reporter.step(f"postgresql: {reason}; letting go and trying again" + (f" ({blocker})" if blocker else ""))
        # Never the same twice: who keeps an application's time meets it again and again.
        pause = min(0.2 * 2**self._attempt, _LONGEST_PAUSE_S) * (0.5 + secrets.randbelow(500) / 1000)
        until = time.monotonic() + pause
        while time.monotonic() < until:
            process.raise_if_stopping()
            time.sleep(0.05)

    def _hold_once(self) -> None:
        import psycopg

        connection = self._open
        before = relations(connection)
        # In REPEATABLE READ the first query takes the snapshot; LOCK is none, so what we see is newer than every lock.
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        if self._level == COUNTS:  # beside pg_dump there is no need to hurry, and more than one process would slow it down
            connection.execute("SET LOCAL max_parallel_workers_per_gather = 0")
        connection.execute(f"SET LOCAL lock_timeout = {self._timeout_ms}".encode())
        self._inventory = inventory(before, self._settings, standby=self._standby)
        try:
            for table in _batches(self._inventory.lockable, 100):
                names = ", ".join(f"ONLY {one.sql}" for one in table)
                connection.execute(statement("LOCK TABLE {} IN ACCESS SHARE MODE", names))
        except psycopg.errors.LockNotAvailable:
            raise _Contended("the tables could not be locked within the timeout") from None
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
            raise _Contended("a table was dropped or renamed while it was being locked") from None
        except psycopg.errors.OutOfMemory:
            raise BackupError(
                f"PostgreSQL {self._access.where} has no room for {len(self._inventory.lockable)} locks: "
                "raise max_locks_per_transaction"
            ) from None
        if self._ready is not None:
            announce, self._ready = self._ready, None
            announce()
        self._snapshot = str(value(connection, "SELECT pg_catalog.pg_export_snapshot()"))
        self._dumper = f"agentmem-backup, pg_dump of {value(connection, 'SELECT pg_catalog.pg_backend_pid()')}"
        self._encoding = connection.info.parameter_status("server_encoding") or ""
        self.moment = clock.now()
        if relations(connection) != before:
            raise _Contended("tables were made or changed while they were being locked")
        try:
            self._sequences = sequence_facts(connection, self._inventory.sequences)
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
            raise _Contended("a sequence was dropped or renamed before it was read") from None

    @property
    def _timeout_ms(self) -> int:
        return max(1, int(self._settings.lock_timeout_s * 1000))

    def _blocker(self) -> str:
        """Who holds or waits for a lock that conflicts with ours, for a sentence; nothing where nobody does."""
        query = """
          SELECT n.nspname, c.relname, l.pid, l.granted, a.usename, a.application_name, a.query
          FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_class c ON c.oid = l.relation
          JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
          LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
          WHERE l.mode = 'AccessExclusiveLock' AND l.locktype = 'relation' AND l.relation = ANY(%s)
            AND l.pid <> pg_catalog.pg_backend_pid()
          ORDER BY l.granted DESC LIMIT 1"""
        try:
            with contextlib.closing(self._access.connect()) as other, self._access.answered("looking for who blocks"):
                found = rows(other, query, [[one.oid for one in self._inventory.lockable]])
        except BackupError:
            return ""
        if not found:
            return ""
        schema, name, pid, granted, user, application, __ = found[0]
        who = f"process {pid}" + (f" of role {user}" if user else "") + (f", {application}" if application else "")
        return f"{who} {'holds' if granted else 'waits for'} an exclusive lock on {table_key(schema, name)}"

    # Dumping it

    def dump(self, out: Writer) -> None:
        """pg_dump through the snapshot into `out`, the fingerprint beside it on the other core."""
        while True:
            try:
                return self._dump_once(out)
            except _Contended as reason:
                self._let_go_and_wait(str(reason))
                self._hold()

    def _dump_once(self, out: Writer) -> None:
        with (
            ThreadPoolExecutor(1, thread_name_prefix="fingerprint") as pool,
            process.Child(self._command(), env=self._environment(), buffered=True, fed=True) as child,
        ):
            self._await_definitions(child)
            taken = pool.submit(fingerprint, self._open, self._level, self._inventory, self._sequences)
            try:
                self._pump(child, out, taken)
                with self._access.answered("taking the fingerprint"):
                    self._entry["fingerprint"] = taken.result()
            except BaseException:
                with contextlib.suppress(Exception):
                    self._open.cancel()
                raise

    def _await_definitions(self, child: process.Child) -> None:
        """Wait until pg_dump has read all definitions; its first byte says so (pg_backup_custom.c, _CloseArchive).

        Of functions, views, rules, triggers and constraints it has the server write the text (ruleutils.c), which looks at
        what they are now, and not at what they were in the snapshot. Of a function that was dropped meanwhile nothing comes,
        and pg_dump archives a statement that no server takes; a view that was replaced may name a table that is not in the
        dump (both measured). So where anything that the snapshot sees was changed, the archive is not taken.
        """
        waiting = select.poll()
        waiting.register(child.stdout.fileno(), select.POLLIN)
        while not (events := waiting.poll(_LOOK_MS)):
            self._look_for_entangled()
        has_begun = any(event & select.POLLIN for __, event in events)
        with self._access.answered("looking for changed definitions"):
            changed = [str(catalog) for (catalog,) in rows(self._open, _CHANGED)]
        if changed:
            raise _Contended(f"definitions were changed while pg_dump read them ({', '.join(changed)})")
        if has_begun:
            return
        try:
            child.wait()
        except ToolError as error:
            if "LOCK TABLE" in error.stderr:
                # Nothing has gone out yet, so letting go costs nothing; holding on would stop the application.
                raise _Contended("pg_dump could not lock the tables within the timeout") from None
            raise

    def _look_for_entangled(self) -> None:
        """Raises _Contended where pg_dump waits for a lock behind somebody who waits for ours.

        A TRUNCATE that came between our locks and pg_dump's waits for us, and pg_dump behind it, until the timeout; and so does
        whoever only reads that table (measured: the application stood still for 10 s an attempt).
        """
        process.raise_if_stopping()
        with self._access.answered("looking for who waits"):
            self._open.execute("SELECT pg_catalog.pg_stat_clear_snapshot()")  # else a transaction sees what it saw first
            if value(self._open, _ENTANGLED, [self._dumper]):
                raise _Contended("pg_dump waits for a lock behind somebody who waits for ours")

    def _pump(self, child: process.Child, out: Writer, taken: Future[dict[str, Any]]) -> None:
        pipe = child.stdout.fileno()
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIECE)
        while out.fill_from(pipe):
            if taken.done() and (error := taken.exception()) is not None:
                with self._access.answered("taking the fingerprint"):
                    raise error
        try:
            child.wait()
        except ToolError:
            if taken.done() and (cause := taken.exception()) is not None:  # it took the snapshot along
                with self._access.answered("taking the fingerprint"):
                    raise cause from None
            raise

    def _environment(self) -> dict[str, str]:
        return {**self._access.environment(), "PGAPPNAME": self._dumper}

    def _command(self) -> list[str]:
        command = [self._tool.path, "--format=custom", "--compress=0", "--no-password", f"--snapshot={self._snapshot}"]
        command.append(f"--lock-wait-timeout={self._timeout_ms}")
        command.append(f"--encoding={self._encoding}")  # else it is that of the session, which a role may have set otherwise
        return command + [f"--exclude-table-data={one.sql}" for one in self._inventory.excluded]

    def entry(self) -> dict[str, Any]:
        """What the manifest records; `database` is what a rename does not bring along."""
        method = "pg_dump in a held snapshot, all tables locked ACCESS SHARE"
        return {**self._entry, "method": method, "warnings": self._notes(), "attempts": self._attempt}

    def _notes(self) -> list[str]:
        notes = tool_warnings(self._tool, int(self._entry["fingerprint"]["major"]))
        if self._inventory.excluded:
            names = listed(one.key for one in self._inventory.excluded)
            notes.append(f"the rows of {len(self._inventory.excluded)} tables are left out ({names}): restored, they are empty")
        if self._inventory.foreign:
            names = listed(one.key for one in self._inventory.foreign)
            notes.append(f"the rows of foreign tables are not in the backup, only their definitions ({names})")
        return notes

    def close(self) -> None:
        """Let go of the locks and the snapshot."""
        if self._connection is not None:
            with contextlib.suppress(Exception):
                self._connection.close()
            self._connection = None


def _batches(items: list[Relation], size: int) -> Iterator[list[Relation]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def tool_warnings(tool: Tool, server: int) -> list[str]:
    """What the operator should know of a pg_dump that is newer than its server."""
    if tool.major == server:
        return []
    warning = f"pg_dump {tool.version} is newer than the server: its archive needs pg_restore {tool.major}"
    if tool.major >= 17 > server:  # it sets transaction_timeout, which came with 17
        warning += f" and cannot be restored into PostgreSQL {server}"
    return [f"{warning}: install {_PACKAGE}-{server}"]


# ----------------------------------------------------------------------------------------------------- a restore's target

_GRANTEE = re.compile(
    r'(?:TO|FROM|FOR ROLE) ("(?:[^"]|"")+"|[^\s",;]+)(?: WITH GRANT OPTION)?(?=;$| IN SCHEMA | GRANT | REVOKE )', re.M
)
_POLICY_ROLES = re.compile(r' TO ((?:"(?:[^"]|"")+"|[^\s",;()]+)(?:, (?:"(?:[^"]|"")+"|[^\s",;()]+))*)(?= USING | WITH CHECK |;)')
_ROLE_NAME = re.compile(r'"((?:[^"]|"")+)"|([^\s",]+)')
_NOT_ROLES = {"PUBLIC", "CURRENT_USER", "SESSION_USER", "CURRENT_ROLE"}


def _role_names(text: str) -> set[str]:
    found = {(quoted.replace('""', '"') if quoted else bare) for quoted, bare in _ROLE_NAME.findall(text)}
    return {name for name in found - _NOT_ROLES if not name.startswith("pg_")}


def archive_roles(archive: Archive) -> dict[str, set[str]]:
    """The roles that an archive's statements name: as owners, as grantees and in row security policies."""
    roles: dict[str, set[str]] = {"owners": set(), "grantees": set(), "policies": set()}
    roles["owners"] = {name for name in archive.owners() if not name.startswith("pg_")}
    for entry in archive.entries:
        if entry.kind in ("ACL", "DEFAULT ACL"):
            roles["grantees"].update(*(_role_names(found) for found in _GRANTEE.findall(entry.definition)))
        elif entry.kind == "POLICY":
            roles["policies"].update(*(_role_names(found) for found in _POLICY_ROLES.findall(entry.definition)))
    return roles


_SUPERUSERS = {
    *("ACCESS METHOD", "EVENT TRIGGER", "FOREIGN DATA WRAPPER", "OPERATOR CLASS", "OPERATOR FAMILY"),
    *("PUBLICATION TABLES IN SCHEMA", "TEXT SEARCH PARSER", "TEXT SEARCH TEMPLATE"),
}
"""Kinds of entries that only a superuser may restore (PostgreSQL 18: the reference of their CREATE statements)."""
_HEADS_OF_C = re.compile(r"^    LANGUAGE (c|internal)\b", re.MULTILINE)


def superusers_only(archive: Archive) -> list[str]:
    """What of the archive only a superuser can restore, as kind and name."""

    def wants_one(entry: Entry) -> bool:
        head = entry.definition.partition("\n    AS ")[0]
        return (
            entry.kind in _SUPERUSERS
            or (entry.kind == "PUBLICATION" and "FOR ALL TABLES" in head)
            or (entry.kind in {"FUNCTION", "PROCEDURE"} and _HEADS_OF_C.search(head) is not None)
        )

    return [f"{entry.kind.lower()} {entry.tag}" for entry in archive.entries if wants_one(entry)]


@dataclass
class Target:
    """Where a restore goes and how: what `assess` found out, for the plan and for the restore itself."""

    live: str = ""
    live_oid: int | None = None
    owner: str = ""
    user: str = ""
    template: str = "template0"
    like: dict[str, Any] | None = None
    tool: Tool | None = None
    no_owner: bool = False
    no_privileges: bool = False
    tablespace: str = ""
    """Where the new database lies; empty: where the server puts one unasked."""
    no_tablespaces: bool = False
    own_extensions: bool = True
    database: dict[str, Any] | None = None
    server_major: int = 0
    maintenance: str = ""
    tables: list[tuple[str, str]] = field(default_factory=list)
    """Only these, by schema and name, into the database that is there (`postgresql_tables`); empty: all of it, in its place."""


def _unwanted(entry: Entry, target: Target) -> bool:
    """Whether a restore must leave an entry out: what the template brought along, and what only its owner may set."""
    of_extension = entry.kind == "EXTENSION" or (entry.kind == "COMMENT" and entry.tag.startswith("EXTENSION "))
    if of_extension and not target.own_extensions:
        return True
    return entry.kind == "DEFAULT ACL" and target.no_owner


def _create_statement(name: str, target: Target) -> bytes:
    """CREATE DATABASE with the encoding and locale that the backup recorded."""
    parts = [statement("CREATE DATABASE {} TEMPLATE {}", identifier(name), identifier(target.template)).decode()]
    if target.owner:
        parts.append(f"OWNER {identifier(target.owner)}")
    if target.tablespace:
        parts.append(f"TABLESPACE {identifier(target.tablespace)}")
    like = target.like
    if like and target.template == "template0":
        parts.append(f"ENCODING {literal(like['encoding'])}")
        parts.append(f"LC_COLLATE {literal(like['collate'])} LC_CTYPE {literal(like['ctype'])}")
        provider = {"i": ("icu", "ICU_LOCALE"), "b": ("builtin", "BUILTIN_LOCALE")}.get(like["provider"])
        if provider and like["locale"]:
            parts.append(f"LOCALE_PROVIDER {provider[0]} {provider[1]} {literal(like['locale'])}")
            if like.get("rules") and target.server_major >= 16:
                parts.append(f"ICU_RULES {literal(like['rules'])}")
        elif target.server_major >= 15:
            parts.append("LOCALE_PROVIDER libc")
    return " ".join(parts).encode()


@dataclass(frozen=True)
class _Trouble:
    """Why a scratch database could not be made (`inside`: it could, but not all that belongs into it)."""

    inside: bool
    said: str


class Assessment:
    """Looks at the target before anything is touched: `target` is how, `plan` what is told to the operator."""

    def __init__(self, component: PostgresqlComponent, source: Source, options: RestoreOptions):
        self.target = Target()
        self.plan = RestorePlan()
        self._component = component
        self._settings = component.settings.postgresql
        self._access = component.access
        self._source = source
        self._options = options
        self._moment = component.context.stamp
        self._available: dict[str, str] = {}
        self._refused: list[str] = []
        self._entry = source.entry or {}

    def make(self) -> Assessment:
        """Find out everything. Never raises for what it finds: that is a problem in the plan."""
        try:
            self._archive = pgarchive.contents(self._source.pieces())
        except VerificationError as error:
            self.plan.problems.append(str(error))
            return self
        try:
            self.target.tables = find_tables(self._archive, self._options.only_tables)
        except UsageError as error:
            self.plan.problems.append(str(error))
            return self
        try:
            self.target.maintenance, connection = self._component.maintenance()
            with contextlib.closing(connection), self._access.answered("looking at the restore's target"):
                self._look(connection)
        except BackupError as error:
            self.plan.problems.append(str(error))
        return self

    def _look(self, connection: Connection) -> None:
        target = self.target
        target.live = self._component.live_name(connection)
        target.server_major = major_of(connection)
        target.user = str(value(connection, "SELECT current_user"))
        rights = "SELECT rolcreatedb OR rolsuper, rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user"
        createdb, superuser = rows(connection, rights)[0]
        live = database_facts(connection, target.live)
        if live is not None:
            target.live_oid = database_oid(connection, target.live)
        recorded = self._entry.get("database")
        target.database = recorded or live
        target.like = recorded or live
        self._check_versions()
        self._check_space()
        if on_standby(connection):
            self.plan.problems.append(
                f"PostgreSQL {self._access.where} is a standby and takes no changes: restore on its primary"
            )
            return
        self._choose_roles(connection)
        self._choose_tablespaces(connection)
        if not superuser and (theirs := superusers_only(self._archive)):
            # A warning, for a managed server may let its own administrators do so.
            self.plan.warnings.append(
                f"by PostgreSQL's own rules only a superuser can make {listed(theirs)}, and role {target.user} is none: unless "
                "this server allows it, the restore ends there, before anything is replaced; restore as a superuser"
            )
        if not createdb:
            self.plan.problems.append(
                f"role {target.user} may not create databases, and a restore builds the new one beside the old: "
                f"ALTER ROLE {identifier(target.user)} CREATEDB, or restore as a role that may"
            )
            return
        self._try_out(connection, live)
        if target.tables:
            self._describe_tables(live)
        else:
            self._describe(connection, live)

    def _check_versions(self) -> None:
        archive, target = self._archive, self.target
        made_from, made_by = pgarchive.major(archive.server_version), pgarchive.major(archive.dump_version)
        if made_from > target.server_major:
            self.plan.problems.append(
                f"the backup comes from PostgreSQL {made_from}, and the server {self._access.where} is {target.server_major}: "
                "an older server cannot take a newer one's data; restore into the same major or a newer one"
            )
        try:
            tool = target.tool = find_tool("pg_restore", self._settings.bin_dir, target.server_major, made_by)
        except BackupError as error:
            self.plan.problems.append(str(error))
            return
        if tool.major >= 17 > target.server_major:
            self.plan.problems.append(
                f"pg_restore {tool.major} sets transaction_timeout, which PostgreSQL {target.server_major} does not know"
                + (
                    f", and no older one reads what pg_dump {made_by} made: restore into PostgreSQL 17 or newer"
                    if made_by >= 17
                    else f": install {_PACKAGE}-{target.server_major}"
                )
            )

    def _check_space(self) -> None:
        if self._source.walked.get("unpacked"):
            return  # it is there already
        size = self._entry.get("raw_bytes")
        free = shutil.disk_usage(self._component.context.workdir).free
        if size and size > free:
            self.plan.problems.append(
                f"the dump is decompressed for a parallel restore: {size} bytes are needed in "
                f"{self._component.context.workdir}, and {free} are free: make room, or prune old sets"
            )

    def _choose_roles(self, connection: Connection) -> None:
        target, named = self.target, archive_roles(self._archive)
        everyone = set().union(*named.values())
        query = "SELECT rolname, pg_catalog.pg_has_role(oid, 'MEMBER') FROM pg_catalog.pg_roles WHERE rolname = ANY(%s)"
        there = dict(rows(connection, query, [sorted(everyone)]))
        missing = {kind: names - there.keys() for kind, names in named.items()}
        not_ours = {name for name in named["owners"] if not there.get(name, False)}
        accepted = "roles" in self._options.accept
        elsewhere = bool(named["owners"]) and target.user not in named["owners"]
        if not_ours and (elsewhere or accepted):
            target.no_owner = True
            self.plan.warnings.append(
                f"everything will belong to role {target.user}: the owners in the backup ({listed(not_ours)}) are not there, "
                "or not this role's to act for"
            )
        elif not_ours:
            self._refuse_roles("own objects in the backup", not_ours, there)
        defaults = {entry.owner for entry in self._archive.entries if entry.kind == "DEFAULT ACL"}
        if target.no_owner and defaults:
            self.plan.warnings.append(f"no default privileges will be restored: they are those of {listed(defaults)}")
        if missing["grantees"] and (target.no_owner or accepted):
            target.no_privileges = True
            self.plan.warnings.append(f"no grants will be restored: the roles {listed(missing['grantees'])} do not exist")
        elif missing["grantees"]:
            self._refuse_roles("are granted rights in the backup", missing["grantees"], there)
        if missing["policies"]:
            names = ", ".join(f"CREATE ROLE {identifier(name)}" for name in sorted(missing["policies"])[:5])
            self.plan.problems.append(f"row security policies in the backup name roles that do not exist: {names} first")

    def _choose_tablespaces(self, connection: Connection) -> None:
        """Those of the backup, where all are here and ours to use; data that lies elsewhere is better than none."""
        target = self.target
        named = {entry.tablespace for entry in self._archive.entries if entry.tablespace}
        recorded = (self._entry.get("database") or {}).get("tablespace", _DEFAULT_TABLESPACE)
        own = {recorded} - {_DEFAULT_TABLESPACE}  # a new database lies there unasked
        query = (
            "SELECT spcname, pg_catalog.has_tablespace_privilege(oid, 'CREATE') FROM pg_catalog.pg_tablespace"
            " WHERE spcname = ANY(%s)"
        )
        ours = dict(rows(connection, query, [sorted(named | own)]))
        unusable = {name for name in named | own if not ours.get(name, False)}
        target.no_tablespaces = not named.isdisjoint(unusable)
        target.tablespace = "" if own <= unusable else recorded
        if unusable:
            elsewhere = (named if target.no_tablespaces else set()) | unusable
            self.plan.warnings.append(
                f"what lies in the tablespaces {listed(elsewhere)} in the backup will lie in the default one: {listed(unusable)} "
                f"are not there, or role {target.user} may not CREATE in them"
            )

    def _refuse_roles(self, why: str, names: set[str], there: dict[str, bool]) -> None:
        absent = {name for name in names if name not in there}
        if absent:
            first = "; ".join(f"CREATE ROLE {identifier(name)}" for name in sorted(absent)[:5])
            self.plan.problems.append(
                f"the roles {listed(absent)} {why} and do not exist {self._access.where}: {first} first, or accept 'roles' "
                f"to restore without them"
            )
        if others := names - absent:
            self.plan.problems.append(
                f"the roles {listed(others)} {why}, and role {self.target.user} may not act for them: GRANT them to it, restore "
                "as a superuser, or accept 'roles' to restore without them"
            )

    # What only a try can tell

    def _try_out(self, connection: Connection, live: dict[str, Any] | None) -> None:
        """Make a scratch database as the new one will be made, and the extensions in it."""
        target = self.target
        recorded = self._entry.get("database") or {}
        if recorded:
            member = "SELECT pg_catalog.pg_has_role(oid, 'MEMBER') FROM pg_catalog.pg_roles WHERE rolname = %s"
            owner = rows(connection, member, [recorded["owner"]])
            target.owner = recorded["owner"] if owner and owner[0][0] and not target.no_owner else ""
        self._check_extensions(connection)
        wanted = [name for name in self._archive.extensions() if name in self._available]
        candidates = [one for one in (recorded, live) if one] or [None]
        for target.like in candidates:
            trouble = self._try_database(connection, "template0", wanted)
            if trouble is None or trouble.inside:
                break
        if trouble is None:
            self._warn_of_locale(recorded)
            self.plan.warnings += [f"will not be restored: {refusal}" for refusal in self._refused]
        elif not trouble.inside:
            self.plan.problems.append(
                f"a database like the one in the backup cannot be made {self._access.where}: {trouble.said}"
            )
        elif self._try_database(connection, "template1", wanted) is None:
            target.template, target.own_extensions = "template1", False
            self.plan.warnings.append(
                f"the new database is made from template1, which has the extensions {listed(wanted)}: role {target.user} "
                "may not create them"
            )
        else:
            self.plan.problems.append(
                f"role {target.user} may not create the extensions of the backup in a new database ({trouble.said}), even if "
                "the live one has them: let a superuser run CREATE EXTENSION in template1, or restore as a superuser"
            )

    def _warn_of_locale(self, recorded: dict[str, Any]) -> None:
        like = self.target.like
        if recorded and like and like is not recorded:
            self.plan.warnings.append(
                f"the backup's locale {recorded['collate']} is not on this server: the live database's {like['collate']} "
                "is used, and texts may sort otherwise"
            )

    def _check_extensions(self, connection: Connection) -> None:
        available = self._available = dict(
            rows(connection, "SELECT name, default_version FROM pg_catalog.pg_available_extensions")
        )
        recorded = {one["name"]: one["version"] for one in self._entry.get("requires", {}).get("extensions", [])}
        wanted = self._archive.extensions()
        if absent := [name for name in wanted if name not in available]:
            self.plan.problems.append(
                f"the extensions {listed(absent)} are not on the server {self._access.where}: install their packages there"
            )
        for name in wanted:
            if name in available and name in recorded and available[name] != recorded[name]:
                self.plan.warnings.append(
                    f"extension {name} comes back as {available[name]}; in the backup it was {recorded[name]}"
                )

    def _try_database(self, connection: Connection, template: str, extensions: list[str]) -> _Trouble | None:
        """Make a scratch database and extensions in it, and drop it; what the server said against it, if anything."""
        import psycopg

        scratch = beside(self.target.live, "scratch", self._moment)
        self._component.journal_database("scratch-database", scratch)
        made = False
        try:
            connection.execute(_create_statement(scratch, replace(self.target, template=template)))
            made = True
            with contextlib.closing(self._access.connect(scratch)) as inside:
                inside.execute("SET search_path = public")
                for name in extensions:
                    inside.execute(statement("CREATE EXTENSION IF NOT EXISTS {} CASCADE", identifier(name)))
            self._refused = list(furnish(connection, scratch, self.target))
        except psycopg.Error as error:
            return _Trouble(made, said(error))
        finally:
            self._component.drop_database(scratch)
        return None

    # What will happen, in words

    def _describe(self, connection: Connection, live: dict[str, Any] | None) -> None:
        target, plan = self.target, self.plan
        made = f"PostgreSQL {self._archive.server_version.split()[0]}"
        plan.lines.append(
            f"database {target.live} {self._access.where}: restored from {self._source.path.name} ({made}) into a new database, "
            "analyzed and compared, then renamed into place"
        )
        if live is None:
            plan.lines.append(f"there is no database {target.live} yet: nothing is overwritten")
        else:
            plan.lines.append(f"the present database {target.live} is kept as {beside(target.live, 'before', self._moment)}")
            self._check_swap(connection, live)
        if self._entry.get("filters"):
            excluded = self._entry.get("fingerprint", {}).get("excluded", [])
            plan.warnings.append(f"the backup is partial: the tables {listed(excluded)} will be empty in the restored database")
        if not self._entry:
            plan.warnings.append(
                "the backup has no manifest: only the rows in the file can be counted, not compared with the source"
            )

    def _describe_tables(self, live: dict[str, Any] | None) -> None:
        from .postgresql_tables import obstacles, with_large_objects

        target, plan = self.target, self.plan
        if live is None:
            plan.problems.append(f"there is no database {target.live} to put tables into: restore it whole")
            return
        with contextlib.closing(self._access.connect(target.live)) as inside, self._access.answered("looking at the tables"):
            plan.problems += obstacles(inside, target.tables)
            if pointing := with_large_objects(inside, target.tables):
                plan.warnings.append(f"large objects are not restored with single tables: {listed(pointing)} may point to some")
        if excluded := {table_key(*name) for name in target.tables} & set(self._entry.get("fingerprint", {}).get("excluded", [])):
            plan.problems.append(f"the rows of {listed(excluded)} were left out of the backup: take them from another set")
        for schema, name in target.tables:
            kept = table_key(schema, beside(name, "before", self._moment))
            plan.lines.append(
                f"the rows of {table_key(schema, name)} in database {target.live} {self._access.where} are replaced by those of "
                f"{self._source.path.name}; the present ones are kept in {kept}"
            )
        plan.lines.append("the other tables stay as they are, and whoever wants these ones waits during the switch")

    def _check_swap(self, connection: Connection, live: dict[str, Any]) -> None:
        """May we rename the live database, and end its sessions?"""
        target, plan = self.target, self.plan
        if not value(
            connection,
            "SELECT pg_catalog.pg_has_role(oid, 'MEMBER') FROM pg_catalog.pg_roles WHERE rolname = %s",
            [live["owner"]],
        ):
            plan.problems.append(
                f"database {target.live} belongs to role {live['owner']}, and role {target.user} may not rename it: "
                "restore as its owner"
            )
        sessions = rows(connection, _SESSIONS, [target.live_oid])
        if sessions:
            who = listed({application or user for __, user, application, __ in sessions})
            plan.lines.append(f"{len(sessions)} open session{'s' * (len(sessions) != 1)} of {target.live} will be ended ({who})")
        foreign = {user for __, user, __, ours in sessions if not ours}
        if foreign:
            plan.problems.append(
                f"role {target.user} may not end the sessions of {listed(foreign)} in {target.live}: close them, or "
                "restore as a superuser"
            )
        prepared = value(connection, "SELECT count(*) FROM pg_catalog.pg_prepared_xacts WHERE database = %s", [target.live])
        if prepared:
            plan.problems.append(
                f"{prepared} prepared transactions hold database {target.live}: COMMIT PREPARED or ROLLBACK PREPARED them first"
            )
        slots = [
            row[0]
            for row in rows(
                connection, "SELECT slot_name FROM pg_catalog.pg_replication_slots WHERE database = %s", [target.live]
            )
        ]
        if slots:
            plan.warnings.append(f"the replication slots {listed(slots)} stay with the old database: make them anew afterwards")


_SESSIONS = """
SELECT a.pid, coalesce(a.usename, ''), a.application_name,
  pg_catalog.pg_has_role(a.usesysid, 'MEMBER') OR (NOT coalesce(s.rolsuper, false)
    AND pg_catalog.pg_has_role('pg_signal_backend', 'MEMBER'))
FROM pg_catalog.pg_stat_activity a LEFT JOIN pg_catalog.pg_roles s ON s.oid = a.usesysid
WHERE a.datid = %s AND a.usesysid IS NOT NULL AND coalesce(a.backend_type, 'client backend') = 'client backend'
  AND a.pid <> pg_catalog.pg_backend_pid()"""

_ANALYZED = """
SELECT n.nspname, c.relname
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'm', 'p') AND NOT c.relispartition AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
ORDER BY pg_catalog.pg_table_size(c.oid) DESC, 1, 2"""
"""Tables and materialized views; a partitioned table brings its partitions along."""

_BUILT = """
WITH made(relation, kind) AS (
  SELECT indrelid, 0 FROM pg_catalog.pg_index WHERE indisvalid
  UNION ALL SELECT stxrelid, 1 FROM pg_catalog.pg_statistic_ext
  UNION ALL SELECT conrelid, 2 FROM pg_catalog.pg_constraint WHERE contype = 'f' AND conparentid = 0
  UNION ALL SELECT confrelid, 2 FROM pg_catalog.pg_constraint WHERE contype = 'f' AND conparentid = 0 AND confrelid <> conrelid
  UNION ALL SELECT tgrelid, 3 FROM pg_catalog.pg_trigger WHERE NOT tgisinternal)
SELECT n.nspname, c.relname, count(*) FILTER (WHERE m.kind = 0), count(*) FILTER (WHERE m.kind = 1),
  count(*) FILTER (WHERE m.kind = 2), count(*) FILTER (WHERE m.kind = 3)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace JOIN made m ON m.relation = c.oid
WHERE c.relkind = 'r' AND NOT c.relispartition AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
GROUP BY c.oid, n.nspname, c.relname"""
"""What each table has by now of all that is made only once its rows are in, as `_BUILT_AS` counts it; a foreign key belongs
to both of its tables, for it locks both."""
_BUILT_AS = {"INDEX": 0, "CONSTRAINT": 0, "STATISTICS": 1, "FK CONSTRAINT": 2, "TRIGGER": 3}

# --------------------------------------------------------------------------------------------------------- the restore


class Analyzing:
    """ANALYZE of the tables of a database that is being restored, of each once nothing more will be made of it.

    Beside the restore and not after it: the server is building indexes of other tables anyway. And autovacuum, which soon
    comes to tables that were filled, makes whoever comes after it wait for deadlock_timeout, a second.

    Where it does not get to a table, that table is simply not in `done`. Leave it as a context manager.
    """

    _LOOK_S = 0.25
    _WAIT = "5s"
    """For the lock of a table: autovacuum is sent away in a second, whoever else holds it may hold it long."""

    def __init__(self, access: Access, database: str, entries: list[Entry]):
        """`entries` are those of the archive that are restored into `database`."""
        tables = {entry.dump_id: (entry.namespace, entry.tag) for entry in entries if entry.kind == "TABLE"}
        self._access = access
        self._database = database
        self._wanted = {table: [0, 0, 0, 0] for table in tables.values()}
        for entry in entries:
            if entry.kind in _BUILT_AS:
                for table in {tables[needed] for needed in entry.needs if needed in tables}:
                    self._wanted[table][_BUILT_AS[entry.kind]] += 1
        self.done: set[tuple[str, str]] = set()
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="analyze", daemon=True)

    def __enter__(self) -> Analyzing:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._enough.set()
        self._thread.join()

    @property
    def running(self) -> bool:
        """Whether it goes on looking for tables."""
        return self._thread.is_alive()

    def _watch(self) -> None:
        with (
            contextlib.suppress(BackupError),
            contextlib.closing(self._access.connect(self._database)) as connection,
            self._access.answered("analyzing the new tables"),
        ):
            connection.execute(statement("SET lock_timeout = {}", literal(self._WAIT)))
            looked_s = 0.0
            while not self._enough.wait(max(self._LOOK_S, 20 * looked_s)):  # thousands of tables take a while to look at
                begun = time.monotonic()
                whole = self._whole(connection)
                looked_s = time.monotonic() - begun
                for table in whole:
                    connection.execute(statement("ANALYZE {}", identifier(*table)))
                    self.done.add(table)

    def _whole(self, connection: Connection) -> list[tuple[str, str]]:
        """Tables that have all that the archive holds of them. Those without an index do not show that their rows are in."""
        return [
            (schema, name)
            for schema, name, *built in rows(connection, _BUILT)
            if built[0] and built == self._wanted.get((schema, name)) and (schema, name) not in self.done
        ]


class PostgresqlRestoration(Restoration):
    """A new database beside the live one, and the transaction that puts it into its place."""

    def __init__(self, component: PostgresqlComponent, source: Source, options: RestoreOptions):
        self._component = component
        self._access = component.access
        self._settings = component.settings.postgresql
        self._source = source
        self._options = options
        self._recorded: dict[str, Any] | None = (source.entry or {}).get("fingerprint")
        self._rows: dict[tuple[str, str], int | None] = {}
        self._moment = component.context.stamp
        self._file = component.context.workdir / f"restore_{self._moment}.dump"
        self._target = Target()
        self._new = self._old = ""
        self._checked = Comparison()
        self._made = False
        self._switch: Connection | None = None
        self._new_oid: int | None = None
        self._final = False

    # Beside the live data

    def prepare(self) -> None:
        """Decompress (walking through all of it), restore into a new database, ANALYZE and compare it, settings and grants."""
        assessment = self._component.assess(self._source, self._options)
        if assessment.plan.problems:
            raise BackupError("; ".join(assessment.plan.problems))
        self._target = assessment.target
        self._new = beside(self._target.live, "restore", self._moment)
        self._old = beside(self._target.live, "before", self._moment)
        archive = self._unpack()
        self._component.journal_database("restore-database", self._new)
        with contextlib.closing(self._access.connect(self._target.maintenance)) as connection:
            with self._access.answered(f"making database {self._new}"):
                connection.execute(_create_statement(self._new, self._target))
            self._made = True
            kept = [entry for entry in archive.entries if not _unwanted(entry, self._target)]
            with Analyzing(self._access, self._new, kept) as early, ThreadPoolExecutor(1, thread_name_prefix="unlink") as pool:
                self._pg_restore(archive, kept)
                gone = pool.submit(self._file.unlink)  # a gigabyte that lies in memory takes a moment to go
                self._checked = self._compare(self._new)
                gone.result()
            self._analyze(early.done)
            for refusal in furnish(connection, self._new, self._target):
                self._component.reporter.warn(f"postgresql: not restored: {refusal}")

    def _unpack(self) -> Archive:
        """The archive as a file that can be sought in, with the positions that a parallel restore wants."""
        archive, unpacked = self._source.walked.get("archive"), self._source.walked.get("unpacked")
        if archive is None or unpacked is None:
            archive = self._write_unpacked()
        else:
            process.guarded(lambda: unpacked.rename(self._file), f"writing {self._file}")
        if archive.faults:
            raise VerificationError("; ".join(archive.faults))
        with process.guarded(lambda: self._file.open("r+b"), f"writing {self._file}") as file:
            process.guarded(lambda: pgarchive.write_offsets(file, archive), f"writing {self._file}")
        self._rows = archive.rows()
        return archive

    def _write_unpacked(self) -> Archive:
        with _new_file(self._file) as file:

            def copied() -> Iterator[bytes]:
                for piece in self._source.pieces():
                    process.guarded(functools.partial(file.write, piece), f"writing {self._file}")
                    yield piece

            return pgarchive.walk(copied())

    def _pg_restore(self, archive: Archive, kept: list[Entry]) -> None:
        tool, target = self._target.tool, self._target
        if tool is None:
            raise BackupError("no pg_restore was found")
        # A name may look like a connection string; one inside a connection string does not.
        name = "dbname='" + self._new.replace("\\", "\\\\").replace("'", "\\'") + "'"
        command = [tool.path, "--exit-on-error", "--no-password", f"--jobs={self._jobs}", f"--dbname={name}"]
        command += ["--no-owner"] if target.no_owner else []
        command += ["--no-privileges"] if target.no_privileges else []
        command += ["--no-tablespaces"] if target.no_tablespaces else []
        command += [] if len(kept) == len(archive.entries) else [self._use_list(kept)]
        options = "-c synchronous_commit=off -c maintenance_work_mem=128MB -c jit=off -c default_transaction_read_only=off"
        # Which pg_restore's own settings leave alone, or make only after its first queries.
        options += " -c array_nulls=on -c statement_timeout=0 -c lock_timeout=0 -c idle_in_transaction_session_timeout=0"
        environment = {**self._access.environment(), "PGOPTIONS": options}
        with process.Child([*command, str(self._file)], env=environment, stdout=None) as child:
            child.wait()

    def _use_list(self, kept: list[Entry]) -> str:
        """The option that names what to restore, where something of the archive must not be."""
        path = self._file.with_suffix(".list")
        path.write_text("".join(f"{entry.dump_id};\n" for entry in kept))
        return f"--use-list={path}"

    @property
    def _jobs(self) -> int:
        return self._settings.jobs or min(4, os.cpu_count() or 1)

    def _analyze(self, done: set[tuple[str, str]]) -> None:
        """ANALYZE every restored table that is not `done`, the largest first, several at once.

        Not the whole database: of what only superusers may analyze the server would write a warning each into its log.
        """
        with contextlib.closing(self._access.connect(self._new)) as connection, self._access.answered("listing the new tables"):
            tables = [identifier(*table) for table in rows(connection, _ANALYZED) if table not in done]
        left = iter(tables)

        def work() -> None:
            with (
                contextlib.closing(self._access.connect(self._new)) as connection,
                self._access.answered("analyzing the new database"),
            ):
                for table in left:  # shared: each takes the next one
                    connection.execute(statement("ANALYZE {}", table))

        with ThreadPoolExecutor(self._jobs, thread_name_prefix="analyze") as pool:
            for one in [pool.submit(work) for __ in range(min(self._jobs, len(tables)))]:
                one.result()

    # Comparing

    def check(self) -> Comparison:
        """The new database against the fingerprint, as `prepare` found it."""
        return self._checked

    def compare(self) -> Comparison:
        """The live database against the fingerprint."""
        return self._compare(self._target.live)

    def _compare(self, database: str) -> Comparison:
        with (
            contextlib.closing(self._access.connect(database)) as connection,
            self._access.answered(f"comparing database {database}"),
        ):
            # One snapshot for all tables: the application may be back already.
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            if self._recorded is None:
                return self._compare_with_file(connection)
            excluded = set(self._recorded["excluded"])
            found = inventory(relations(connection), PostgresqlSettings())
            found.tables = [table for table in found.tables if table.key not in excluded]
            return compare(self._recorded, fingerprint(connection, self._recorded["level"], found))

    def _compare_with_file(self, connection: Connection) -> Comparison:
        outcome = Comparison()
        found = {(one.schema, one.name): one for one in relations(connection) if one.kind == _TABLE}
        counted = [found[name] for name, count in self._rows.items() if count is not None and name in found]
        for table in _in_turn(connection, counted):
            now = value(connection, statement("SELECT count(*) FROM ONLY {}", table.sql))
            _expect(outcome, f"rows of {table.key}", self._rows[table.schema, table.name], now)
        for name in sorted(self._rows.keys() - {(table.schema, table.name) for table in counted}):
            outcome.not_compared.append(f"table {table_key(*name)}: its rows cannot be counted in the file")
        outcome.not_compared.append("the source: the file has no manifest, so only its own rows were counted")
        return outcome

    # The switch

    def commit(self) -> None:
        """Both renames in one transaction, left open: until it ends, nobody can connect to the database."""
        target = self._target
        self._component.journal_database("swap", self._new, live=target.live, before=self._old)
        self._switch = self._access.connect(target.maintenance)
        with self._access.answered(f"renaming database {target.live}"):
            self._switch.execute("SET lock_timeout = '60s'")
            self._switch.execute("BEGIN")
            if target.live_oid is not None:
                self._rename(self._switch, target.live, self._old, target.live_oid)
            self._new_oid = database_oid(self._switch, self._new)
            self._rename(self._switch, self._new, target.live, self._new_oid)
            limit = (target.database or {}).get("connection_limit", -1)
            if limit != -1:
                self._switch.execute(statement("ALTER DATABASE {} CONNECTION LIMIT {}", identifier(target.live), str(int(limit))))

    def _rename(self, connection: Connection, name: str, new_name: str, oid: int | None) -> None:
        """Rename while a second session ends whoever is connected; clients that come back at once wait for the rename."""
        import psycopg

        text = statement("ALTER DATABASE {} RENAME TO {}", identifier(name), identifier(new_name))
        with _ending_sessions(self._access, self._target.maintenance, oid):
            for attempt in range(6):
                connection.execute("SAVEPOINT before_rename")
                try:
                    connection.execute(text)
                    return
                except psycopg.errors.ObjectInUse:
                    connection.execute("ROLLBACK TO SAVEPOINT before_rename")
                    if attempt == 5 or process.stopping():
                        raise

    def complete(self) -> None:
        """COMMIT: from now on the restored database is the live one."""
        if self._switch is None:
            raise BackupError("the switch of PostgreSQL was not begun")
        try:
            with self._access.answered("making the renamed databases final"):
                self._switch.execute("COMMIT")
        except BackupError:
            # A connection that breaks now does not tell whether the server had committed before.
            if not self._switched():
                raise
        self._final, self._made = True, False
        self._switch.close()
        self._switch = None

    def _switched(self) -> bool:
        """Whether the live name belongs to the restored database, as a new connection sees it."""
        with (
            contextlib.closing(self._access.connect(self._target.maintenance)) as connection,
            self._access.answered(f"looking which database is {self._target.live} now"),
        ):
            return database_oid(connection, self._target.live) == self._new_oid

    def abort(self) -> None:
        """Take the renames back and drop the new database. Raises BackupError once the switch is final."""
        if self._final:
            raise BackupError(f"database {self._target.live} is already the restored one; the old one is {self._old}")
        if self._switch is not None:
            with contextlib.suppress(Exception):  # a broken connection has rolled back by itself
                self._switch.execute("ROLLBACK")
            self._switch.close()
            self._switch = None
        if self._made:
            self._component.drop_database(self._new)
            self._made = False

    def state(self) -> str:
        """What is live, and where the old data lies."""
        live = self._target.live or self._settings.database
        if not self._final:
            return f"database {live} is the old one, untouched"
        if self._target.live_oid is None:
            return f"database {live} is the restored one; there was none before"
        return f"database {live} is the restored one; the old data lies in database {self._old}"

    def close(self) -> None:
        """Remove the decompressed file."""
        for path in (self._file, self._file.with_suffix(".list")):
            path.unlink(missing_ok=True)
        if self._switch is not None:
            self._switch.close()
            self._switch = None


class _Kept:
    """A copy of what a walk reads, for the restore that follows: it need not be decompressed twice.

    Where there is no room, or it runs out, nothing is kept: whether it suffices is for the plan to say.
    """

    _MARGIN = 256 << 20
    """Bytes that are left to everybody else on that disk."""

    def __init__(self, source: Source):
        self.path: Path | None = None
        size = (source.entry or {}).get("raw_bytes")
        if source.keep and size and size + self._MARGIN < shutil.disk_usage(source.keep).free:
            self.path = source.keep / "unpacked.dump"

    def through(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """The pieces, each written to the copy first."""
        if self.path is None:
            yield from pieces
            return
        with _new_file(self.path) as file:
            for piece in pieces:
                self._write(file, piece)
                yield piece

    def _write(self, file: IO[bytes], piece: bytes) -> None:
        if self.path is None:
            return
        try:
            file.write(piece)
            file.flush()
        except OSError:
            self.path.unlink()
            self.path = None


def _new_file(path: Path) -> IO[bytes]:
    """A new file that only we may read, open for writing. Raises BackupError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor: int = process.guarded(lambda: os.open(path, flags, 0o600), f"making {path}")
    return os.fdopen(descriptor, "wb")


@contextlib.contextmanager
def _ending_sessions(access: Access, maintenance: str, oid: int | None) -> Iterator[None]:
    """End the sessions of a database again and again, from a connection of our own, for the length of the block."""
    enough = threading.Event()
    connection = access.connect(maintenance)

    def work() -> None:
        import psycopg

        while not enough.is_set():
            for pid, __, __, ours in rows(connection, _SESSIONS, [oid]):
                if ours:
                    with contextlib.suppress(psycopg.Error):
                        connection.execute("SELECT pg_catalog.pg_terminate_backend(%s)", [pid])
            enough.wait(0.02)

    thread = threading.Thread(target=work, name="ending-sessions", daemon=True)
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join()
        connection.close()


_LISTS = {"search_path", "temp_tablespaces", "session_preload_libraries", "local_preload_libraries", "shared_preload_libraries"}
_SETTING_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_$]*(?:\.[A-Za-z_][A-Za-z0-9_$]*)*")


def _setting(text: str) -> str:
    """`name=value` from pg_db_role_setting as SET writes it; lists are stored with their own quotes (as in pg_dump)."""
    name, __, content = text.partition("=")
    if not _SETTING_NAME.fullmatch(name):
        name = identifier(name)
    if name.lower() not in _LISTS:
        return f"{name} TO {literal(content)}"
    parts = [
        quoted.replace('""', '"') if quoted else bare for quoted, bare in re.findall(r'"((?:[^"]|"")*)"|([^\s,"]+)', content)
    ]
    return f"{name} TO {', '.join(map(literal, parts)) or literal('')}"


def furnish(connection: Connection, database: str, target: Target) -> Iterator[str]:
    """Give a database its recorded comment, grants and settings, which no archive and no rename brings along.

    Yields what was refused, with what the server said: some settings are for superusers only.
    """
    import psycopg

    name = identifier(database)
    for text in _furniture(target):
        try:
            connection.execute(statement("{}", text.replace(_PLACE, name)))
        except psycopg.Error as error:
            yield f"{one_line(text.replace(_PLACE, identifier(target.live)), 120)}: {said(error)}"


_PLACE = "\0"  # no SQL text can hold it


def _furniture(target: Target) -> list[str]:
    facts = target.database
    if facts is None:
        return []
    texts = [f"COMMENT ON DATABASE {_PLACE} IS {literal(facts['comment'])}"] if facts["comment"] else []
    if facts["grants"] is not None and not target.no_privileges:
        texts.append(f"REVOKE ALL ON DATABASE {_PLACE} FROM PUBLIC")
        for role, privilege, grantable in facts["grants"]:
            to = identifier(role) if role else "PUBLIC"
            texts.append(f"GRANT {privilege} ON DATABASE {_PLACE} TO {to}" + (" WITH GRANT OPTION" if grantable else ""))
    for role, text in facts["settings"]:
        whose = f"ALTER ROLE {identifier(role)} IN DATABASE {_PLACE}" if role else f"ALTER DATABASE {_PLACE}"
        texts.append(f"{whose} SET {_setting(text)}")
    return texts


# ------------------------------------------------------------------------------------------------------- the component


class PostgresqlComponent(Component):
    """PostgreSQL: one database."""

    name = "postgresql"
    prefix = "db"
    extension = ".dump"
    label = "Database"
    title = "Database Backup"

    def __init__(self, context: Context):
        super().__init__(context)
        self.access = Access(self.settings.postgresql)
        self._assessed: tuple[Path, RestoreOptions, float, Assessment] | None = None

    # Looking

    def probe(self) -> Probe:
        """Reachable? Rights, tools, versions, size."""
        probe = Probe()
        try:
            with contextlib.closing(self.access.connect()) as connection, self.access.answered("looking at the database"):
                self._look_at(connection, probe)
        except BackupError as error:
            probe.problems.append(str(error))
        return probe

    def _look_at(self, connection: Connection, probe: Probe) -> None:
        server = major_of(connection)
        probe.facts["server"] = server_of(connection)
        if server < OLDEST_SERVER:
            probe.problems.append(f"{named(server_of(connection))} is too old: {OLDEST_SERVER} and newer are supported")
        for program in ("pg_dump", "pg_restore"):
            try:
                tool = find_tool(program, self.settings.postgresql.bin_dir, server)
                probe.facts[program] = tool.version
                probe.warnings += tool_warnings(tool, server) if program == "pg_dump" else []
            except BackupError as error:
                probe.problems.append(str(error))
        found = relations(connection)
        sorted_out = inventory(found, self.settings.postgresql, standby=on_standby(connection))
        probe.problems += self._rights(connection, sorted_out) + self._torn_references(connection, sorted_out)
        query = """SELECT coalesce(sum(pg_catalog.pg_table_size(oid)), 0)::bigint FROM pg_catalog.pg_class WHERE oid = ANY(%s)"""
        large = value(connection, "SELECT pg_catalog.pg_table_size('pg_catalog.pg_largeobject')")
        probe.raw_bytes = int(value(connection, query, [[one.oid for one in sorted_out.tables]])) + int(large)
        patterns = self.settings.postgresql.include_tables
        if patterns and not sorted_out.tables:
            probe.problems.append(f"no table matches include_tables ({', '.join(patterns)}): nothing would be backed up")
        elif sorted_out.excluded:
            probe.warnings.append(f"the rows of {listed(one.key for one in sorted_out.excluded)} are left out")

    def _rights(self, connection: Connection, found: Inventory) -> list[str]:
        """pg_dump locks and reads every table, and stops at the first that it may not."""
        problems = []
        role = value(connection, "SELECT current_user")
        query = """
          SELECT c.oid::bigint, CASE WHEN c.relkind = 'S' THEN pg_catalog.has_sequence_privilege(c.oid, 'SELECT')
            ELSE pg_catalog.has_table_privilege(c.oid, 'SELECT') END
            AND pg_catalog.has_schema_privilege(c.relnamespace, 'USAGE'), pg_catalog.row_security_active(c.oid)
          FROM pg_catalog.pg_class c WHERE c.oid = ANY(%s)"""
        wanted = {one.oid: one for one in (*found.lockable, *found.sequences)}
        facts = rows(connection, query, [list(wanted)])
        closed = [wanted[oid].key for oid, readable, __ in facts if not readable]
        if closed:
            problems.append(
                f"role {role} may not read {len(closed)} tables or sequences ({listed(closed)}): "
                f"GRANT pg_read_all_data TO {identifier(role)}, or back up as their owner"
            )
        guarded = [wanted[oid].key for oid, readable, guard in facts if readable and guard]
        if guarded:
            problems.append(
                f"row level security hides rows of {listed(guarded)} from role {role}, also from their owner where it is forced: "
                f"ALTER ROLE {identifier(role)} BYPASSRLS, or back up as a superuser"
            )
        return problems

    def _torn_references(self, connection: Connection, found: Inventory) -> list[str]:
        """Rows that are backed up must not refer to rows that are not: such a set could never be restored."""
        query = """SELECT DISTINCT conrelid::bigint, confrelid::bigint FROM pg_catalog.pg_constraint
          WHERE contype = 'f' AND conrelid = ANY(%s) AND confrelid = ANY(%s)"""
        inside, outside = {one.oid: one.key for one in found.tables}, {one.oid: one.key for one in found.excluded}
        return [
            f"{inside[one]} refers to {outside[other]}, whose rows are left out: leave out both, or neither"
            for one, other in rows(connection, query, [list(inside), list(outside)])
        ]

    def look(self) -> str:
        """The guide's `SELECT COUNT(*) FROM memories`."""
        with contextlib.closing(self.access.connect()) as connection, self.access.answered("counting the memories"):
            connection.execute("RESET search_path")
            count = value(connection, "SELECT count(*) FROM memories")
            return f"{count} memories"

    # Backing up

    def open_cut(self, ready: Callable[[], None], level: str) -> Cut:
        """Lock the tables, wait for the other stores, export the snapshot."""
        cut = PostgresqlCut(self, level)
        try:
            cut.open(ready)
        except BaseException:
            cut.close()
            raise
        return cut

    def examine(self, source: Source, pieces: Iterator[bytes]) -> Examination:
        """Walk the archive; rows of every table against the manifest."""
        examination = Examination("Database backup is valid PostgreSQL dump")
        kept = _Kept(source)
        try:
            archive = pgarchive.walk(kept.through(pieces))
        except ArchiveError as error:
            examination.faults.append(str(error))
            for __ in pieces:  # what follows is read as well, for its digest
                pass
            return examination
        examination.faults += archive.faults
        counted = {table_key(*name): count for name, count in archive.rows().items()}
        examination.facts = {
            "server": archive.server_version,
            "tool": archive.dump_version,
            "tables": len(counted),
            "rows": sum(count or 0 for count in counted.values()),
            "large_objects": archive.large_objects(),
            "archive": archive,
            "unpacked": kept.path,
        }
        recorded = (source.entry or {}).get("fingerprint")
        if recorded:
            examination.faults += _held_against(recorded, counted, archive.large_objects())
        return examination

    # Restoring

    def plan_restore(self, source: Source, options: RestoreOptions) -> RestorePlan:
        """Versions, rights, roles, extensions, sessions; a scratch database is made and dropped."""
        return self.assess(source, options).plan

    def assess(self, source: Source, options: RestoreOptions) -> Assessment:
        """The look behind the plan, taken anew when the last one is a minute old: somebody may have answered slowly."""
        known = self._assessed
        if known is None or known[:2] != (source.path, options) or time.monotonic() - known[2] > _LOOK_LASTS_S:
            known = (source.path, options, time.monotonic(), Assessment(self, source, options).make())
            self._assessed = known
        return known[3]

    def restoration(self, source: Source, options: RestoreOptions) -> Restoration:
        """The restore itself, not yet begun."""
        if options.only_tables:
            from .postgresql_tables import TablesRestoration

            return TablesRestoration(self, source, options)
        return PostgresqlRestoration(self, source, options)

    def extract(self, source: Source, what: str, target: Path, form: str) -> str:
        """One table as csv (the default) or sql; `what` is table or schema.table."""
        form = form or "csv"
        if form not in ("csv", "sql"):
            raise UsageError(f"a table can be extracted as csv or sql, not as {form}")
        archive = pgarchive.contents(source.pieces())
        schema, name = _find_table(archive, what)
        if form == "csv":
            return self._extract_csv(source, schema, name, target)
        return self._extract_sql(source, archive, schema, name, target)

    def _extract_csv(self, source: Source, schema: str, name: str, target: Path) -> str:
        with _new_file(target) as file:
            try:
                count = process.guarded(lambda: pgarchive.rows_of(source.pieces(), schema, name, file), f"writing {target}")
            except BaseException:
                target.unlink(missing_ok=True)
                raise
        return f"{count} rows of {table_key(schema, name)} written to {target} as CSV"

    def _extract_sql(self, source: Source, archive: Archive, schema: str, name: str, target: Path) -> str:
        made_by = pgarchive.major(archive.dump_version)
        tool = find_tool("pg_restore", self.settings.postgresql.bin_dir, made_by)
        command = [tool.path, "--file=-", f"--schema={schema}", f"--table={name}"]
        with _new_file(target) as file:
            try:
                with process.Child(command, stdin=subprocess.PIPE, stdout=file) as child:
                    with contextlib.suppress(BrokenPipeError):
                        for piece in source.pieces():
                            child.stdin.write(piece)
                    with contextlib.suppress(BrokenPipeError):
                        child.stdin.close()
                    child.wait()
            except BaseException:
                target.unlink(missing_ok=True)
                raise
        return f"table {table_key(schema, name)} written to {target} as SQL (pg_restore {tool.version})"

    def clean_up(self, step: dict[str, Any]) -> None:
        """Drop the scratch or half-restored database that a killed run's journal names, where it is still there."""
        name = str(step.get("database", ""))
        if not _OURS.search(name):
            return
        here = [self.settings.postgresql.host, self.settings.postgresql.port]
        if step.get("server") != here:
            raise BackupError(f"database {name} was left behind on another server, {step.get('server')}: drop it there")
        self.drop_database(name)

    # Shared

    def maintenance(self) -> tuple[str, Connection]:
        """A database to connect to while the other is made, renamed or dropped, and a connection to it. Raises BackupError."""
        configured = self.settings.postgresql.maintenance_database
        try:
            return configured, self.access.connect(configured)
        except BackupError:
            with contextlib.suppress(BackupError):
                return "template1", self.access.connect("template1")
            raise

    def live_name(self, connection: Connection) -> str:
        """The name of the database that is backed up and restored."""
        if name := self.access.parameters().get("dbname"):
            return str(name)
        with contextlib.suppress(BackupError), contextlib.closing(self.access.connect()) as own:
            return str(value(own, "SELECT pg_catalog.current_database()"))
        return self.settings.postgresql.database

    def journal_database(self, step: str, name: str, **facts: Any) -> None:
        """Write down a database's name before it is made."""
        here = [self.settings.postgresql.host, self.settings.postgresql.port]
        self.context.journal(step, component=self.name, database=name, server=here, **facts)

    def drop_database(self, name: str) -> None:
        """Drop a database that we made, with its sessions, where it is there. Raises BackupError.

        Not WITH (FORCE): while autovacuum works in the database, that is refused to an owner who is no superuser
        (TerminateOtherDBBackends in PostgreSQL's procarray.c); a plain DROP sends autovacuum away by itself.
        """
        import psycopg

        maintenance, connection = self.maintenance()
        with contextlib.closing(connection), self.access.answered(f"dropping database {name}"):
            _await_making(connection, name)
            oid = database_oid(connection, name)
            if oid is None:
                return
            with _ending_sessions(self.access, maintenance, oid):
                for attempt in range(6):  # each waits 5 s for sessions to end
                    try:
                        connection.execute(statement("DROP DATABASE IF EXISTS {}", identifier(name)))
                        return
                    except psycopg.errors.ObjectInUse:
                        if attempt == 5:
                            raise


def _await_making(connection: Connection, name: str) -> None:
    """Wait for a CREATE DATABASE whose client was killed: the server carries it out, and the database is there only then.

    Raises BackupError where it takes too long.
    """
    making = (
        "SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE state = 'active' AND pid <> pg_catalog.pg_backend_pid()"
        " AND pg_catalog.starts_with(query, %s)"
    )
    begun = statement("CREATE DATABASE {} ", identifier(name)).decode()
    deadline = time.monotonic() + _MAKING_S
    while value(connection, making, [begun]):
        if time.monotonic() > deadline:
            raise BackupError(f"database {name}, which a stopped run asked for, is still being made: run again later")
        time.sleep(0.05)


def _held_against(recorded: dict[str, Any], counted: dict[str, int | None], large_objects: int) -> list[str]:
    """Rows in the archive against the rows that were counted in the dump's snapshot."""
    faults = []
    for name, facts in recorded["tables"].items():
        if name not in counted:
            faults.append(f"the dump has no data of table {name}, which had {facts['rows']} rows")
        elif counted[name] is not None and counted[name] != facts["rows"]:
            faults.append(f"the dump has {counted[name]} rows of table {name}, and the manifest says {facts['rows']}")
    for name in sorted(counted.keys() & set(recorded["excluded"])):
        faults.append(f"the dump has rows of table {name}, which the manifest says are left out")
    expected = recorded["large_objects"]["count"]
    if large_objects != expected:
        faults.append(f"the dump has {large_objects} large objects, and the manifest says {expected}")
    return faults


def find_tables(archive: Archive, names: Iterable[str]) -> list[tuple[str, str]]:
    """Schema and name of the tables that a person means by `names`. Raises UsageError."""
    return list(dict.fromkeys(_find_table(archive, name) for name in names))


def _find_table(archive: Archive, what: str) -> tuple[str, str]:
    """The one table of an archive that a person means by `what`. Raises UsageError."""
    tables = [(entry.namespace, entry.tag) for entry in archive.entries if entry.kind == "TABLE DATA"]
    exact = [one for one in tables if what in (table_key(*one), ".".join(one))]
    found = exact or [one for one in tables if what in (one[1], identifier(one[1]))]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"{what} is ambiguous: {listed(table_key(*one) for one in found)}")
    raise UsageError(f"the dump has no table {what}: it has {listed((table_key(*one) for one in tables), 20)}")
