# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The independent judge: captures the complete state of the four stores and names every difference between two states.

It imports nothing of the engine and computes its digests in another way (MD5 sums in the server, BLAKE2 here), so that
one mistake cannot make both agree. Rows, values and vectors are kept as digests: a gigabyte fits.

Not looked at: modification times of files; PostgreSQL's operators, casts, collations, text search objects, foreign
servers and planner statistics; Redis's CONFIG and ACL users, which no RDB holds, and expiries of single hash fields.
"""

from __future__ import annotations

import array
import hashlib
import json
import os
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import psycopg
import redis as redis_py

from tests.support.servers import Postgres, Qdrant, Redis, Stores

Facts = dict[str, dict[str, Any]]  # an object in words → its properties


class Digest(str):
    """A value too long to print: a difference says only that it differs."""

    __slots__ = ()


@dataclass(frozen=True)
class Position:
    """Where a sequence stands: a dump may see it further on than the rows, never behind (PostgreSQL: Sequence Functions)."""

    value: int
    called: bool
    increment: int

    def reached_by(self, other: object) -> bool:
        if not isinstance(other, Position):
            return False
        direction = 1 if self.increment > 0 else -1
        return (direction * other.value, other.called) >= (direction * self.value, self.called)


@dataclass(frozen=True)
class Capture:
    """The state of the four stores: for each the objects it holds and their properties."""

    postgresql: Facts
    redis: Facts
    qdrant: Facts
    config: Facts


TITLES = {"postgresql": "PostgreSQL", "redis": "Redis", "qdrant": "Qdrant", "config": "Configuration"}


def capture(stores: Stores) -> Capture:
    """The complete state of all four stores; they should be at rest."""
    with ThreadPoolExecutor(max_workers=4) as pool:
        work = {
            "postgresql": pool.submit(capture_postgres, stores.postgres),
            "redis": pool.submit(capture_redis, stores.redis),
            "qdrant": pool.submit(capture_qdrant, stores.qdrant),
            "config": pool.submit(capture_config, stores.config_dir),
        }
        return Capture(**{store: future.result() for store, future in work.items()})


def differences(before: Capture, after: Capture) -> list[str]:
    """A sentence for each object that is missing, new or changed, naming store, object and what differs; [] is equal."""
    found: list[str] = []
    for store, title in TITLES.items():
        found += [f"{title}: {text}" for text in fact_differences(getattr(before, store), getattr(after, store))]
    return found


def fact_differences(before: Facts, after: Facts) -> Iterator[str]:
    """The same for one store, without its name."""
    for name in sorted({*before, *after}):
        if name not in after:
            yield f"{name} is missing."
        elif name not in before:
            yield f"{name} was not there before."
        elif before[name] != after[name]:
            yield from _property_differences(name, before[name], after[name])


def _property_differences(name: str, before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    for key in sorted({*before, *after}):
        old, new = before.get(key), after.get(key)
        if old == new or (isinstance(old, Position) and old.reached_by(new)):
            continue
        if isinstance(old, Digest) and isinstance(new, Digest):
            yield f"{name}: {key} differs."
        else:
            yield f"{name}: {key} was {_short(old)}, is {_short(new)}."


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "…"


def digest(value: Any) -> Digest:
    """A digest of nested lists, dicts, strings, bytes, numbers and None that no two different values share."""
    state = hashlib.blake2b(digest_size=16)
    _feed(state, value)
    return Digest(state.hexdigest())


def _feed(state: Any, value: Any) -> None:
    if isinstance(value, dict):
        value = sorted(value.items())
        state.update(b"d")
    if isinstance(value, (list, tuple)):
        state.update(b"[%d:" % len(value))
        for item in value:
            _feed(state, item)
        return
    kind, content = (b"b", value) if isinstance(value, bytes) else (type(value).__name__.encode(), str(value).encode())
    state.update(b"%s%d:" % (kind, len(content)) + content)


# ---------------------------------------------------------------------------------------------------------- PostgreSQL

SESSION = " ".join(
    f"-c {name}={value}"
    for name, value in {
        "search_path": "",
        "timezone": "UTC",
        "datestyle": "ISO,YMD",
        "intervalstyle": "postgres",
        "bytea_output": "hex",
        "extra_float_digits": "1",
        "row_security": "off",
        "lock_timeout": "0",
        "statement_timeout": "0",
        "default_transaction_isolation": "repeatable\\ read",
    }.items()
)


def _grants(acl: str, kind: str, owner: str) -> str:
    """SQL for the effective grants: the default ones spelled out, as a restore may spell them out."""
    return f"""ARRAY(SELECT format('%s=%s/%s%s', CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(a.grantee)::text END,
        a.privilege_type, pg_get_userbyid(a.grantor), CASE WHEN a.is_grantable THEN '*' END)
      FROM aclexplode(coalesce({acl}, acldefault({kind}, {owner}))) a) AS grants"""


def _own(catalog: str, oid: str, namespace: str) -> str:
    """SQL condition: neither of the system nor a part of an extension."""
    return f"""{namespace} NOT IN (SELECT oid FROM pg_namespace WHERE nspname ~ '^pg_' OR nspname = 'information_schema')
      AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = 'pg_catalog.{catalog}'::regclass AND e.objid = {oid}
        AND e.deptype = 'e')"""


def _tablespace(oid: str) -> str:
    """SQL for a tablespace's name; none where it is the database's own."""
    return f"(SELECT spcname FROM pg_tablespace WHERE pg_tablespace.oid = {oid}) AS tablespace"


RELATION = _own("pg_class", "c.oid", "c.relnamespace")
ACL_KIND = """(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END)::"char\""""
# The server's own note of a column's version, other in each database, which pg_dump leaves out: pg_attver, seen since Debian's
# 15.20 and 17.12.
OPTIONS = "ARRAY(SELECT o FROM unnest(attoptions) o WHERE o NOT LIKE 'pg\\_attver=%' ORDER BY o)"

# Each gives the object in words and its properties; the name of a column is the name of the property.
OBJECTS = {
    "database": f"""SELECT 'the database' AS name, pg_get_userbyid(datdba) AS owner, {_grants("datacl", "'d'", "datdba")},
        pg_encoding_to_char(encoding) AS encoding, datcollate AS collation, datctype AS ctype, datconnlimit AS "connection limit",
        ARRAY(SELECT coalesce(pg_get_userbyid(nullif(setrole, 0))::text, '') || ' ' || s.setting
          FROM pg_db_role_setting, unnest(setconfig) s(setting) WHERE setdatabase = d.oid) AS settings,
        shobj_description(d.oid, 'pg_database') AS comment, {_tablespace("dattablespace")},
        to_jsonb(d) ->> 'datlocprovider' AS "locale provider", to_jsonb(d) ->> 'daticurules' AS "ICU rules",
        coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale') AS locale
      FROM pg_database d WHERE datname = current_database()""",
    "schemas": f"""SELECT format('schema %I', nspname) AS name, pg_get_userbyid(nspowner) AS owner,
        {_grants("nspacl", "'n'", "nspowner")}, obj_description(oid, 'pg_namespace') AS comment
      FROM pg_namespace n WHERE {_own("pg_namespace", "n.oid", "n.oid")}""",
    "relations": f"""SELECT format('%s %s', CASE relkind WHEN 'r' THEN 'table' WHEN 'p' THEN 'partitioned table'
          WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' WHEN 'S' THEN 'sequence'
          WHEN 'f' THEN 'foreign table' ELSE 'composite type' END, c.oid::regclass) AS name,
        pg_get_userbyid(relowner) AS owner, relpersistence::text AS persistence,
        {_grants("relacl", ACL_KIND, "relowner")},
        relreplident::text AS "replica identity", relrowsecurity AS "row security", relforcerowsecurity AS "forced row security",
        reloptions AS options, obj_description(c.oid, 'pg_class') AS comment, relispopulated AS populated,
        pg_get_expr(relpartbound, c.oid) AS "partition bound", pg_get_partkeydef(c.oid) AS "partition key",
        ARRAY(SELECT inhparent::regclass::text FROM pg_inherits WHERE inhrelid = c.oid ORDER BY inhseqno) AS parents,
        (SELECT amname FROM pg_am WHERE pg_am.oid = relam) AS "access method", {_tablespace("reltablespace")},
        CASE WHEN relkind IN ('v', 'm') THEN pg_get_viewdef(c.oid) END AS definition
      FROM pg_class c WHERE relkind IN ('r', 'p', 'v', 'm', 'S', 'f', 'c') AND {RELATION}""",
    # Inheritance with a column added later to the parent changes the order in a dump (and only there), so it is left out.
    "columns": f"""SELECT format('column %s.%I', c.oid::regclass, attname) AS name, format_type(atttypid, atttypmod) AS type,
        attnotnull AS "not null", pg_get_expr(adbin, adrelid) AS "default", attidentity::text AS identity,
        attgenerated::text AS generated, attcollation::regcollation::text AS collation, attstorage::text AS storage,
        to_jsonb(a) ->> 'attcompression' AS compression, to_jsonb(a) ->> 'attstattarget' AS "statistics target",
        ARRAY(SELECT unnest(attacl)::text) AS grants, {OPTIONS} AS options, col_description(c.oid, attnum) AS comment,
        CASE WHEN NOT EXISTS (SELECT FROM pg_inherits WHERE inhrelid = c.oid)
          THEN rank() OVER (PARTITION BY c.oid ORDER BY attnum) END AS place
      FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
      WHERE attnum > 0 AND NOT attisdropped AND relkind IN ('r', 'p', 'v', 'm', 'f', 'c') AND {RELATION}""",
    "constraints": f"""SELECT format('constraint %I on %s', conname, CASE conrelid WHEN 0 THEN contypid::regtype::text
          ELSE conrelid::regclass::text END) AS name, pg_get_constraintdef(k.oid) AS definition, convalidated AS validated,
        conislocal AS "local", obj_description(k.oid, 'pg_constraint') AS comment
      FROM pg_constraint k WHERE {_own("pg_constraint", "k.oid", "k.connamespace")}""",
    "indexes": f"""SELECT format('index %s on %s', c.oid::regclass, indrelid::regclass) AS name,
        pg_get_indexdef(c.oid) AS definition,
        indisvalid AS valid, indisclustered AS clustered, indisreplident AS "replica identity", indisprimary AS "primary",
        {_tablespace("reltablespace")},
        obj_description(c.oid, 'pg_class') AS comment
      FROM pg_index JOIN pg_class c ON c.oid = indexrelid WHERE {RELATION}""",
    "triggers": f"""SELECT format('trigger %I on %s', tgname, c.oid::regclass) AS name, pg_get_triggerdef(t.oid) AS definition,
        tgenabled::text AS enabled, obj_description(t.oid, 'pg_trigger') AS comment
      FROM pg_trigger t JOIN pg_class c ON c.oid = tgrelid WHERE NOT tgisinternal AND {RELATION}""",
    "rules": f"""SELECT format('rule %I on %s', rulename, c.oid::regclass) AS name, pg_get_ruledef(r.oid) AS definition,
        ev_enabled::text AS enabled, obj_description(r.oid, 'pg_rewrite') AS comment
      FROM pg_rewrite r JOIN pg_class c ON c.oid = ev_class WHERE rulename <> '_RETURN' AND {RELATION}""",
    "policies": f"""SELECT format('policy %I on %s', polname, c.oid::regclass) AS name,
        polcmd::text AS command, polpermissive AS permissive,
        ARRAY(SELECT CASE r WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(r)::text END FROM unnest(polroles) r ORDER BY 1) AS roles,
        pg_get_expr(polqual, polrelid) AS "using", pg_get_expr(polwithcheck, polrelid) AS "check"
      FROM pg_policy p JOIN pg_class c ON c.oid = polrelid WHERE {RELATION}""",
    "functions": f"""SELECT format('function %s', p.oid::regprocedure) AS name, pg_get_userbyid(proowner) AS owner,
        {_grants("proacl", "'f'", "proowner")}, obj_description(p.oid, 'pg_proc') AS comment, CASE prokind WHEN 'a' THEN
          (SELECT format('%s %s %s %s', aggtransfn::regproc, aggfinalfn::regproc, aggtranstype::regtype, agginitval)
            FROM pg_aggregate WHERE aggfnoid = p.oid) ELSE pg_get_functiondef(p.oid) END AS definition
      FROM pg_proc p WHERE {_own("pg_proc", "p.oid", "p.pronamespace")}""",
    "types": f"""SELECT format('type %s', t.oid::regtype) AS name, typtype::text AS kind, pg_get_userbyid(typowner) AS owner,
        {_grants("typacl", "'T'", "typowner")}, obj_description(t.oid, 'pg_type') AS comment, typnotnull AS "not null",
        CASE WHEN typtype = 'd' THEN format_type(typbasetype, typtypmod) END AS base, typdefault AS "default",
        ARRAY(SELECT enumlabel::text FROM pg_enum WHERE enumtypid = t.oid ORDER BY enumsortorder) AS labels
      FROM pg_type t WHERE typtype IN ('e', 'd', 'r', 'c') AND {_own("pg_type", "t.oid", "t.typnamespace")}
        AND (typrelid = 0 OR (SELECT relkind FROM pg_class WHERE pg_class.oid = typrelid) = 'c')""",
    "statistics": f"""SELECT format('statistics %I', stxname) AS name, pg_get_statisticsobjdef(s.oid) AS definition,
        pg_get_userbyid(stxowner) AS owner FROM pg_statistic_ext s WHERE {_own("pg_statistic_ext", "s.oid", "s.stxnamespace")}""",
    "extensions": """SELECT format('extension %I', extname) AS name, extversion AS version,
        extnamespace::regnamespace::text AS schema,
        obj_description(oid, 'pg_extension') AS comment FROM pg_extension""",
    "event triggers": """SELECT format('event trigger %I', evtname) AS name, evtevent AS event,
        evtfoid::regproc::text AS function, evtenabled::text AS enabled, evttags AS tags FROM pg_event_trigger""",
    "publications": """SELECT format('publication %I', pubname) AS name, to_jsonb(p) - 'oid' - 'pubowner' AS options,
        ARRAY(SELECT format('%I.%I', schemaname, tablename) FROM pg_publication_tables t WHERE t.pubname = p.pubname ORDER BY 1)
          AS tables FROM pg_publication p""",
    "default privileges": """SELECT format('default privileges of %s in %s for %s', pg_get_userbyid(defaclrole),
          nullif(defaclnamespace, 0)::regnamespace, defaclobjtype) AS name, ARRAY(SELECT unnest(defaclacl)::text) AS grants
      FROM pg_default_acl""",
    "large objects": f"""SELECT format('large object %s', oid) AS name, pg_get_userbyid(lomowner) AS owner,
        {_grants("lomacl", "'L'", "lomowner")},
        obj_description(oid, 'pg_largeobject') AS comment, md5(lo_get(oid)) AS content FROM pg_largeobject_metadata""",
}
UNORDERED = {"grants", "settings", "options"}


def capture_postgres(server: Postgres) -> Facts:
    """Everything in the application's database, read as the superuser in one snapshot."""
    facts: Facts = {}
    with server.connect(server.dbname, autocommit=False, options=SESSION) as connection:
        for query in OBJECTS.values():
            cursor = connection.execute(query)
            columns = [column.name for column in cursor.description or ()]
            for row in cursor:
                properties = dict(zip(columns, row, strict=True))
                for key in UNORDERED & properties.keys():
                    if isinstance(properties[key], list):
                        properties[key] = sorted(properties[key])
                facts[properties.pop("name")] = properties
        _add_sequences(connection, facts)
        _add_rows(connection, facts)
    return facts


def _add_sequences(connection: psycopg.Connection[Any], facts: Facts) -> None:
    owned = f"""SELECT c.oid::regclass::text, seqtypid::regtype::text, seqstart, seqincrement, seqmax, seqmin, seqcache, seqcycle,
        (SELECT format('%s.%I', refobjid::regclass, attname) FROM pg_depend d
          JOIN pg_attribute ON attrelid = refobjid AND attnum = refobjsubid
          WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND deptype IN ('a', 'i'))
      FROM pg_sequence JOIN pg_class c ON c.oid = seqrelid WHERE {RELATION}"""
    for name, *options, owner in connection.execute(owned).fetchall():
        value, called = connection.execute(f"SELECT last_value, is_called FROM {name}").fetchone() or (0, False)
        facts[f"sequence {name}"] |= {
            "options": options,
            "owned by": owner,
            "position": Position(value, called, options[2]),
        }


def _add_rows(connection: psycopg.Connection[Any], facts: Facts) -> None:
    """Per table the number of rows and a sum over their MD5, which no order changes and no pair of equal rows cancels."""
    tables = f"""SELECT c.oid::regclass::text, relkind::text,
        coalesce((SELECT string_agg(quote_ident(attname), ', ' ORDER BY attname) FROM pg_attribute
          WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped), '')
      FROM pg_class c WHERE relkind IN ('r', 'm') AND relispopulated AND {RELATION}"""
    for name, kind, columns in connection.execute(tables).fetchall():
        half = "sum(('x' || substr(h, {}, 16))::bit(64)::bigint::numeric)::text"
        count, *sums = connection.execute(
            f"SELECT count(*), {half.format(1)}, {half.format(17)}"
            f" FROM (SELECT md5(ROW({columns})::text) AS h FROM ONLY {name}) t"
        ).fetchone() or (0,)
        label = f"materialized view {name}" if kind == "m" else f"table {name}"
        facts[label] |= {"row count": count, "content of the rows": Digest(sums)}


# --------------------------------------------------------------------------------------------------------------- Redis

READ = {
    b"string": lambda key: ("GET", key),
    b"list": lambda key: ("LRANGE", key, 0, -1),
    b"set": lambda key: ("SMEMBERS", key),
    b"zset": lambda key: ("ZRANGE", key, 0, -1, "WITHSCORES"),
    b"hash": lambda key: ("HGETALL", key),
    b"stream": lambda key: ("XINFO", "STREAM", key, "FULL", "COUNT", 0),
}


def capture_redis(server: Redis) -> Facts:
    """Every key of every database with type, value and expiry (absolute, ms), also a hash's fields', and the function
    libraries (Redis 7.0+)."""
    facts: Facts = {}
    with _raw(server, 0) as client:
        for library in client.execute_command("FUNCTION", "LIST", "WITHCODE"):
            properties = dict(zip(library[::2], library[1::2], strict=True))
            name = properties[b"library_name"].decode()
            facts[f"function library {name}"] = {"code": properties[b"library_code"], "engine": properties[b"engine"]}
        keyspace = client.execute_command("INFO", "keyspace").decode()
    for line in keyspace.splitlines():
        if line.startswith("db"):
            number = int(line[2 : line.index(":")])
            with _raw(server, number) as client:
                facts.update(_keys(client, number))
    return facts


def _raw(server: Redis, db: int) -> redis_py.Redis:
    """A client that hands the server's answers over as they come."""
    client = server.client(db, protocol=2)
    client.response_callbacks.clear()
    return client


def _keys(client: redis_py.Redis, db: int) -> Iterator[tuple[str, dict[str, Any]]]:
    cursor, seen = b"0", set()
    fields_expire = client.execute_command("COMMAND", "INFO", "HPEXPIRETIME")[0] is not None  # Redis 7.4, Valkey 9.0
    while True:
        cursor, page = client.execute_command("SCAN", cursor, "COUNT", 1000)
        keys = [key for key in dict.fromkeys(page) if key not in seen]  # SCAN may give a key twice
        seen.update(keys)
        kinds = _pipelined(client, [("TYPE", key) for key in keys])
        expiries = _pipelined(client, [("PEXPIRETIME", key) for key in keys])
        values = _pipelined(client, [READ[kind](key) for key, kind in zip(keys, kinds, strict=True)])
        for key, kind, expiry, value in zip(keys, kinds, expiries, values, strict=True):
            properties = {"type": kind.decode(), "expiry": expiry, "value": digest(_canonical(kind, value))}
            if kind == b"stream":
                properties |= _stream(value)
            if kind == b"hash" and fields_expire:
                properties["expiries of fields"] = digest(_field_expiries(client, key, value[::2]))
            yield f"key {key!r} of database {db}", properties
        if cursor == b"0":
            return


def _field_expiries(client: redis_py.Redis, key: bytes, names: list[bytes]) -> list[Any]:
    expiries = client.execute_command("HPEXPIRETIME", key, "FIELDS", len(names), *names)
    return sorted(zip(names, expiries, strict=True))


def _pipelined(client: redis_py.Redis, commands: list[tuple[Any, ...]]) -> list[Any]:
    pipe = client.pipeline(transaction=False)
    pipe.response_callbacks = {}
    for command in commands:
        pipe.execute_command(*command)
    return list(pipe.execute())


def _canonical(kind: bytes, value: Any) -> Any:
    if kind == b"set":
        return sorted(value)
    if kind == b"hash":
        return sorted(zip(value[::2], value[1::2], strict=True))
    if kind == b"stream":
        return dict(zip(value[::2], value[1::2], strict=True))[b"entries"]
    return value


def _stream(value: list[Any]) -> dict[str, Any]:
    """What a stream has beside its entries: ids, and per group its position, consumers and pending entries."""
    described = dict(zip(value[::2], value[1::2], strict=True))
    names = (b"last-generated-id", b"max-deleted-entry-id", b"entries-added", b"recorded-first-entry-id")
    properties = {name.decode(): described.get(name) for name in names}
    for group in described[b"groups"]:
        details = dict(zip(group[::2], group[1::2], strict=True))
        properties[f"consumer group {details.pop(b'name')!r}"] = _as_text(details)
    return properties


def _as_text(value: Any) -> Any:
    if isinstance(value, dict):
        return {_as_text(key): _as_text(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_as_text(inner) for inner in value]
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else value


# -------------------------------------------------------------------------------------------------------------- Qdrant


def capture_qdrant(server: Qdrant) -> Facts:
    """Every collection's configuration and payload schema, every alias, every point with payload and vectors."""
    facts: Facts = {}
    with server.client() as client:
        for alias in _result(client.get("/aliases"))["aliases"]:
            facts[f"alias {alias['alias_name']!r}"] = {"collection": alias["collection_name"]}
        for item in _result(client.get("/collections"))["collections"]:
            name = item["name"]
            path = f"/collections/{quote(name, safe='')}"
            described = _result(client.get(path))
            facts[f"collection {name!r}"] = {**described["config"], "status": described["status"]}
            for field, schema in described["payload_schema"].items():
                schema.pop("points", None)
                facts[f"payload index {field!r} of collection {name!r}"] = schema
            for point in _points(client, path):
                facts[f"point {point['id']} of collection {name!r}"] = {
                    "payload": digest(json.dumps(point.get("payload"), sort_keys=True)),
                    "vector": digest(_vector(point.get("vector"))),
                }
    return facts


def _result(answer: httpx.Response) -> Any:
    return answer.raise_for_status().json()["result"]


def _points(client: httpx.Client, path: str) -> Iterator[dict[str, Any]]:
    ask: dict[str, Any] = {"limit": 500, "with_payload": True, "with_vector": True}
    while True:
        page = _result(client.post(f"{path}/points/scroll", json=ask))
        yield from page["points"]
        if page.get("next_page_offset") is None:
            return
        ask["offset"] = page["next_page_offset"]


def _vector(value: Any) -> Any:
    """A vector as the 32-bit floats that Qdrant keeps; named ones by name, sparse ones by index."""
    if isinstance(value, dict) and value.keys() == {"indices", "values"}:
        return sorted(zip(value["indices"], array.array("f", value["values"]), strict=True))
    if isinstance(value, dict):
        return {name: _vector(inner) for name, inner in value.items()}
    if value and isinstance(value[0], list):
        return [_vector(inner) for inner in value]
    return array.array("f", value or []).tobytes()


# ------------------------------------------------------------------------------------------------------- configuration

KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symbolic link",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFBLK: "block device",
    stat.S_IFCHR: "character device",
}


def capture_config(directory: Path) -> Facts:
    """Every entry with kind, mode, owner, content, link target, hard links, extended attributes and access lists."""
    facts: Facts = {}
    same: dict[tuple[int, int], list[str]] = defaultdict(list)
    for path in _walk(directory):
        status = path.lstat()
        name = repr(str(path.relative_to(directory)))
        facts[name] = _entry(path, status)
        if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
            same[status.st_dev, status.st_ino].append(name)
    for names in same.values():
        for name in names:
            facts[name]["hard links"] = sorted(names)
    return facts


def _walk(directory: Path) -> Iterator[Path]:
    yield directory
    for root, folders, files in os.walk(directory):
        yield from (Path(root, name) for name in (*folders, *files))


def _entry(path: Path, status: os.stat_result) -> dict[str, Any]:
    kind = KINDS[stat.S_IFMT(status.st_mode)]
    properties: dict[str, Any] = {"kind": kind, "owner": status.st_uid, "group": status.st_gid}
    if kind == "symbolic link":
        return {**properties, "target": os.readlink(path)}  # noqa: PTH115 (pathlib tidies the target)
    properties["mode"] = oct(stat.S_IMODE(status.st_mode))
    if kind == "file":
        with path.open("rb") as file:
            properties["content"] = Digest(_file_digest(file))
        properties["size"] = status.st_size
    for name in _attribute_names(path):
        title = "access list" if name.startswith("system.posix_acl") else "extended attribute"
        properties[f"{title} {name}"] = os.getxattr(path, name)
    return properties


def _attribute_names(path: Path) -> Iterable[str]:
    try:
        return os.listxattr(path)
    except OSError:  # a file system without extended attributes
        return []


def _file_digest(file: Any) -> str:
    state = hashlib.blake2b(digest_size=16)
    while block := file.read(1 << 20):
        state.update(block)
    return state.hexdigest()


# ---------------------------------------------------------------------------------- one change each, for a demonstration


def flip_one_column(stores: Stores) -> str:
    """Change one column of one row of memories, behind the triggers' back; says what it changed."""
    with stores.postgres.connect(stores.postgres.dbname) as connection:
        connection.execute("SET session_replication_role = replica")
        changed = connection.execute(
            """UPDATE public.memories SET importance = 1 - importance WHERE id =
                 (SELECT id FROM public.memories WHERE importance <> 0.5 ORDER BY id LIMIT 1) RETURNING id"""
        ).fetchone()
    if changed is None:
        raise LookupError("table memories has no row to change")
    return f"PostgreSQL: column importance of the row {changed[0]} of table memories has another value."


def flip_one_expiry(stores: Stores) -> str:
    """Let one key expire a second later; says which."""
    with stores.redis.client() as client:
        for key in sorted(client.scan_iter(count=1000)):
            expiry = client.pexpiretime(key)
            if expiry > 0:
                client.pexpireat(key, expiry + 1000)
                return f"Redis: key {key!r} of database 0 expires one second later."
    raise LookupError("database 0 has no key that expires")


def flip_one_payload(stores: Stores) -> str:
    """Change one field of one point's payload; says which."""
    with stores.qdrant.client() as client:
        point = _result(client.post("/collections/memories/points/scroll", json={"limit": 1, "with_payload": True}))["points"][0]
        change = {"payload": {"importance": 1 + point["payload"].get("importance", 0)}, "points": [point["id"]]}
        _result(client.post("/collections/memories/points/payload?wait=true", json=change))
    return f"Qdrant: payload field importance of point {point['id']} of collection memories has another value."


def flip_one_mode(stores: Stores) -> str:
    """Turn the group's read permission of one file; says which."""
    path = next(path for path in sorted(stores.config_dir.rglob("*")) if path.is_file() and not path.is_symlink())
    path.chmod(stat.S_IMODE(path.stat().st_mode) ^ stat.S_IRGRP)
    return f"Configuration: mode of {str(path.relative_to(stores.config_dir))!r} is {stat.S_IMODE(path.stat().st_mode):o}."
