# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the support itself: a judge that cannot say no, or a fixture that leaks, would make every other test worthless."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import psycopg
import pytest
import redis as redis_py
from psycopg import sql

from tests.support import command, compare, data, warm
from tests.support.compare import Position, capture, differences
from tests.support.fixtures import assert_real_qdrant_is_used
from tests.support.servers import (
    AWKWARD,
    CHECKOUT,
    Postgres,
    Qdrant,
    Redis,
    Stores,
    awkward_password,
    directory_in_memory,
    postgres_bindirs,
    qdrant_kind,
    redis_quoted,
    throwaway_directory,
)


def run_sql(text: str) -> Callable[[Stores], object]:
    """A change by SQL behind the triggers' back."""

    def change(stores: Stores) -> None:
        with stores.postgres.connect(stores.postgres.dbname) as connection:
            connection.execute("SET session_replication_role = replica")
            connection.execute(text)

    return change


def run_redis(*command: object, db: int = 0) -> Callable[[Stores], object]:
    def change(stores: Stores) -> None:
        with stores.redis.client(db) as client:
            client.execute_command(*command)

    return change


def run_qdrant(method: str, path: str, body: object = None) -> Callable[[Stores], object]:
    def change(stores: Stores) -> None:
        with stores.qdrant.client() as client:
            client.request(method, path, json=body).raise_for_status()

    return change


def run_config(act: Callable[[Path], object]) -> Callable[[Stores], object]:
    return lambda stores: act(stores.config_dir)


def relink(directory: Path) -> None:
    (directory / "current.yml").unlink()
    (directory / "current.yml").symlink_to("elsewhere.yml")


def break_hard_link(directory: Path) -> None:
    link = directory / "conf.d" / "hard link.yml"
    content, mode = link.read_bytes(), link.stat().st_mode & 0o7777
    link.unlink()
    link.write_bytes(content)
    link.chmod(mode)


FIRST_POINT = "/collections/memories/points"

# Store → what is changed → how, and what a difference must say (object, property).
CHANGES: dict[str, dict[str, tuple[Callable[[Stores], object], tuple[str, ...]]]] = {
    "PostgreSQL": {
        "one column": (compare.flip_one_column, ("table public.memories: content",)),
        "added row": (run_sql("INSERT INTO log_without_key VALUES (now(), 'x')"), ("log_without_key", "row count was 20, is 21")),
        "deleted row": (run_sql("DELETE FROM contracts WHERE id = 6"), ("public.contracts: row count",)),
        "two equal rows more": (
            run_sql("""INSERT INTO "tenant data"."order" VALUES (9, 'z'), (9, 'z')"""),
            ('table "tenant data"."order"', "row count was 4, is 6"),
        ),
        "swapped pair of equal rows": (
            run_sql("""UPDATE "tenant data"."order" SET "from" = 'b' WHERE "group" = 1"""),
            ('table "tenant data"."order": content',),
        ),
        "null for an empty text": (run_sql("UPDATE tools SET cost = NULL WHERE name = ''"), ("public.tools: content",)),
        "sign of a zero": (run_sql("UPDATE oddities SET float = 0 WHERE id = 4"), ("public.oddities: content",)),
        "spelling of JSON": (run_sql("""UPDATE oddities SET doc = '{"b":1}' WHERE id = 1"""), ("public.oddities: content",)),
        "row in a partition": (run_sql("UPDATE events SET kind = 'x' WHERE id = 1"), ("events_other: content",)),
        "row under row security": (run_sql("UPDATE secrets SET value = 'x' WHERE id = 2"), ("public.secrets: content",)),
        "lost table": (run_sql("DROP TABLE empty_table"), ("table public.empty_table is missing",)),
        "new table": (run_sql("CREATE TABLE extra (i int)"), ("table public.extra was not there before",)),
        "lost index": (run_sql("DROP INDEX memories_by_source"), ("memories_by_source", "missing")),
        "index on something else": (
            run_sql("DROP INDEX events_kind; CREATE INDEX events_kind ON events (at)"),
            ("events_kind", "definition was"),
        ),
        "lost foreign key": (run_sql("""ALTER TABLE agents DROP CONSTRAINT "agent's user" """), ("agent's user", "missing")),
        "lost check": (run_sql("ALTER TABLE messages DROP CONSTRAINT role_known"), ("role_known", "missing")),
        "validated constraint": (run_sql("ALTER TABLE tools VALIDATE CONSTRAINT not_yet"), ("not_yet", "validated was False")),
        "lost trigger": (run_sql("DROP TRIGGER touch ON memories"), ("trigger touch on public.memories", "missing")),
        "disabled trigger": (run_sql("ALTER TABLE memories DISABLE TRIGGER touch"), ("trigger touch", "enabled was 'O'")),
        "enabled trigger": (run_sql("ALTER TABLE users ENABLE TRIGGER silent"), ("trigger silent", "enabled was 'D'")),
        "lost function": (run_sql("DROP PROCEDURE tidy()"), ("function public.tidy()", "missing")),
        "body of a function": (
            run_sql("CREATE OR REPLACE PROCEDURE tidy() LANGUAGE sql AS 'SELECT 1'"),
            ("function public.tidy()", "definition was"),
        ),
        "aggregate": (run_sql("DROP AGGREGATE longest(text)"), ("function public.longest", "missing")),
        "lost view": (run_sql("DROP VIEW recent_memories"), ("view public.recent_memories", "missing")),
        "stale materialized view": (
            run_sql("UPDATE agents SET name = 'other' WHERE name = 'agent 3'; REFRESH MATERIALIZED VIEW memories_per_agent"),
            ("materialized view public.memories_per_agent: content",),
        ),
        "filled materialized view": (run_sql("REFRESH MATERIALIZED VIEW never_filled"), ("never_filled", "populated was False")),
        "sequence behind": (
            run_sql("""SELECT setval('"tenant data"."ticket no"', 1001)"""),
            ('sequence "tenant data"."ticket no"', "position was"),
        ),
        "sequence without owner": (run_sql("ALTER SEQUENCE audit_id_seq OWNED BY NONE"), ("audit_id_seq", "owned by was")),
        "sequence options": (run_sql("""ALTER SEQUENCE "tenant data"."ticket no" CACHE 1"""), ("ticket no", "options was")),
        "identity": (run_sql("ALTER TABLE users ALTER id DROP IDENTITY"), ("column public.users.id", "identity was 'a'")),
        "type of a column": (run_sql("ALTER TABLE blocks ALTER label TYPE varchar(90)"), ("blocks.label", "type was")),
        "default of a column": (run_sql("ALTER TABLE users ALTER active DROP DEFAULT"), ("users.active", "default was")),
        "option of a column": (run_sql("ALTER TABLE users ALTER name SET (n_distinct = 5)"), ("users.name", "options was []")),
        "label of an enum": (run_sql("ALTER TYPE memory_type ADD VALUE 'new'"), ("type public.memory_type", "labels was")),
        "check of a domain": (run_sql("""ALTER DOMAIN email DROP CONSTRAINT "has an at" """), ("has an at", "missing")),
        "comment": (run_sql("COMMENT ON TABLE memories IS NULL"), ("table public.memories", "comment was")),
        "comment of a column": (run_sql("COMMENT ON COLUMN memories.words IS 'x'"), ("memories.words", "comment was")),
        "owner": (run_sql("ALTER TABLE blocks OWNER TO postgres"), ("table public.blocks", "owner was 'agentmem'")),
        "grant": (run_sql('REVOKE SELECT ON memories FROM "agentmem reader"'), ("table public.memories", "grants was")),
        "grant on a column": (run_sql('REVOKE SELECT (id) ON users FROM "agentmem reader"'), ("users.id", "grants was")),
        "grant on a function": (run_sql("REVOKE EXECUTE ON FUNCTION touch() FROM PUBLIC"), ("public.touch()", "grants was")),
        "default privileges": (
            run_sql(
                """ALTER DEFAULT PRIVILEGES FOR ROLE agentmem IN SCHEMA "tenant data"
                 REVOKE SELECT ON TABLES FROM "agentmem reader" """
            ),
            ("default privileges of agentmem", "missing"),
        ),
        "row security": (run_sql("ALTER TABLE secrets DISABLE ROW LEVEL SECURITY"), ("public.secrets", "row security was True")),
        "policy": (run_sql("DROP POLICY own_secrets ON secrets"), ("policy own_secrets", "missing")),
        "rule": (run_sql("DROP RULE no_delete ON tools"), ("rule no_delete", "missing")),
        "statistics": (run_sql("DROP STATISTICS message_statistics"), ("message_statistics", "missing")),
        "inheritance": (run_sql("ALTER TABLE contracts NO INHERIT documents"), ("public.contracts", "parents was")),
        "partition": (run_sql("ALTER TABLE events DETACH PARTITION events_2026"), ("events_2026", "partition bound was")),
        "persistence": (run_sql("ALTER TABLE scratch SET LOGGED"), ("public.scratch", "persistence was 'u'")),
        "cluster index": (run_sql("ALTER TABLE memories SET WITHOUT CLUSTER"), ("memories_by_agent", "clustered was True")),
        "content of a large object": (
            run_sql("SELECT lo_put(content, 5, 'x') FROM attachments WHERE id = 1"),
            ("large object", "content was"),
        ),
        "lost large object": (
            run_sql("SELECT lo_unlink(content) FROM attachments WHERE id = 6"),
            ("large object", "missing"),
        ),
        "setting of the database": (
            run_sql("ALTER DATABASE agentmem SET work_mem = '5MB'"),
            ("the database", "settings was"),
        ),
        "grant on the database": (run_sql("REVOKE TEMPORARY ON DATABASE agentmem FROM PUBLIC"), ("the database", "grants was")),
    },
    "Redis": {
        "one expiry": (compare.flip_one_expiry, ("key", "expiry was")),
        "lost key": (run_redis("DEL", "list:small"), ("key b'list:small' of database 0 is missing",)),
        "new key": (run_redis("SET", "new", "x"), ("key b'new' of database 0 was not there",)),
        "lost database": (run_redis("FLUSHDB", db=5), ("of database 5 is missing",)),
        "key in another database": (run_redis("MOVE", "geo", 1), ("b'geo' of database 0 is missing", "b'geo' of database 1")),
        "value of a string": (run_redis("APPEND", "string:int", "8"), ("b'string:int'", "value differs")),
        "bit": (run_redis("SETBIT", "bitmap", 8, 1), ("b'bitmap'", "value differs")),
        "order of a list": (run_redis("LMOVE", "list:small", "list:small", "LEFT", "RIGHT"), ("b'list:small'", "value differs")),
        "member of a set": (run_redis("SREM", "set:large", "member 7"), ("b'set:large'", "value differs")),
        "score": (run_redis("ZINCRBY", "zset:small", 1, "a"), ("b'zset:small'", "value differs")),
        "field of a hash": (run_redis("HSET", "hash:small", "", "x"), ("b'hash:small'", "value differs")),
        "type of a key": (run_redis("SINTERSTORE", "string:int", "set:small"), ("b'string:int'", "type was 'string', is 'set'")),
        "lost expiry": (run_redis("PERSIST", "string:expiring"), ("b'string:expiring'", "is -1")),
        "binary key": (run_redis("DEL", b"\x00\xffbinary \r\n key"), (r"key b'\x00\xffbinary \r\n key'", "missing")),
        "lost stream entry": (run_redis("XDEL", "stream:events", "50-0"), ("b'stream:events'", "value differs")),
        "lost consumer group": (run_redis("XGROUP", "DESTROY", "stream:events", "idle group"), ("idle group", "is None")),
        "lost consumer": (run_redis("XGROUP", "DELCONSUMER", "stream:events", "workers", "bob"), ("b'workers'", "was")),
        "acknowledged entry": (run_redis("XACK", "stream:events", "workers", "2-0"), ("b'workers'", "was")),
        "last id of a stream": (run_redis("XSETID", "stream:events", "200-0"), ("last-generated-id was b'120-0'",)),
        "lost function library": (run_redis("FUNCTION", "FLUSH"), ("function library agentmem is missing",)),
    },
    "Qdrant": {
        "one payload": (compare.flip_one_payload, ("point", "'memories'", "payload differs")),
        "lost collection": (run_qdrant("DELETE", "/collections/agents"), ("collection 'agents' is missing",)),
        "lost alias": (
            run_qdrant("POST", "/collections/aliases", {"actions": [{"delete_alias": {"alias_name": "current"}}]}),
            ("alias 'current' is missing",),
        ),
        "alias of another collection": (
            run_qdrant(
                "POST",
                "/collections/aliases",
                {
                    "actions": [
                        {"delete_alias": {"alias_name": "current"}},
                        {"create_alias": {"alias_name": "current", "collection_name": "agents"}},
                    ]
                },
            ),
            ("alias 'current'", "collection was 'memories', is 'agents'"),
        ),
        "lost payload index": (
            run_qdrant("DELETE", "/collections/memories/index/user_id?wait=true"),
            ("payload index 'user_id' of collection 'memories' is missing",),
        ),
        "lost point": (
            run_qdrant("POST", f"{FIRST_POINT}/delete?wait=true", {"points": [data.point_id(3)]}),
            (f"point {data.point_id(3)} of collection 'memories' is missing",),
        ),
        "vector": (
            run_qdrant(
                "PUT",
                "/collections/agents/points?wait=true",
                {"points": [{"id": 4, "vector": {"text": [1.0] * 8}, "payload": {"agent": "agent 4"}}]},
            ),
            ("point 4 of collection 'agents'", "vector differs"),
        ),
    },
    "Configuration": {
        "one mode": (compare.flip_one_mode, ("mode was",)),
        "content of a file": (run_config(lambda d: (d / "agentmem.yml").write_text("x")), ("'agentmem.yml'", "content differs")),
        "lost file": (run_config(lambda d: (d / "odd/new\nline.conf").unlink()), (r"'odd/new\nline.conf' is missing",)),
        "new file": (run_config(lambda d: (d / "extra").touch()), ("'extra' was not there",)),
        "lost directory": (run_config(lambda d: (d / "empty directory").rmdir()), ("'empty directory' is missing",)),
        "target of a link": (run_config(relink), ("'current.yml'", "target was 'agentmem.yml', is 'elsewhere.yml'")),
        "broken hard link": (run_config(break_hard_link), ("hard link.yml", "hard links was")),
        "mode of a directory": (run_config(lambda d: (d / "odd").chmod(0o777)), ("'odd'", "mode was '0o1777'")),
        "mode of the directory": (run_config(lambda d: d.chmod(0o700)), ("'.'", "mode was")),
        "file for a link": (
            run_config(lambda d: [(d / "dangling").unlink(), (d / "dangling").touch()]),
            ("'dangling'", "kind was 'symbolic link', is 'file'"),
        ),
    },
}

CAPTURES = {
    "PostgreSQL": ("postgres", "filled_postgres", compare.capture_postgres),
    "Redis": ("redis", "filled_redis", compare.capture_redis),
    "Qdrant": ("qdrant", "filled_qdrant", compare.capture_qdrant),
    "Configuration": ("config_dir", "filled_config", compare.capture_config),
}


@pytest.fixture
def filled_config() -> Iterator[Path]:
    with throwaway_directory() as directory:
        data.fill_config(directory)
        yield directory


@pytest.mark.parametrize(("store", "name"), [(store, name) for store, changes in CHANGES.items() for name in changes])
def test_comparer_names_a_single_change(store: str, name: str, request: pytest.FixtureRequest) -> None:
    act, words = CHANGES[store][name]
    attribute, fixture, capture_one = CAPTURES[store]
    server = request.getfixturevalue(fixture)
    before = capture_one(server)
    assert list(compare.fact_differences(before, capture_one(server))) == []
    act(cast(Stores, SimpleNamespace(**{attribute: server})))
    found = list(compare.fact_differences(before, capture_one(server)))
    for word in words:
        assert any(word in sentence for sentence in found), found


def test_comparer_names_the_store(stores: Stores) -> None:
    before = capture(stores)
    assert differences(before, capture(stores)) == []
    flips = (compare.flip_one_column, compare.flip_one_expiry, compare.flip_one_payload, compare.flip_one_mode)
    told = [flip(stores) for flip in flips]
    found = differences(before, capture(stores))
    assert [sentence.partition(":")[0] for sentence in told] == list(CAPTURES)
    assert [sentence.partition(":")[0] for sentence in found] == list(CAPTURES)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_comparer_names_owner_of_a_file(stores: Stores) -> None:
    before = capture(stores)
    os.chown(stores.config_dir / "current.yml", 0, 65534, follow_symlinks=False)
    found = differences(before, capture(stores))
    assert found == ["Configuration: 'current.yml': owner was 65534, is 0."]


@pytest.mark.skipif(not shutil.which("setfacl"), reason="no setfacl")
def test_comparer_names_attributes_and_access_lists(stores: Stores) -> None:
    path = stores.config_dir / "agentmem.yml"
    try:
        os.getxattr(path, "user.note")
    except OSError:
        pytest.skip("the file system keeps no extended attributes")
    before = capture(stores)
    os.removexattr(path, "user.note")
    subprocess.run(["setfacl", "-b", "certs/server.key"], cwd=stores.config_dir, check=True)
    found = " ".join(differences(before, capture(stores)))
    assert "extended attribute user.note was" in found
    assert "'certs/server.key': access list system.posix_acl_access was" in found


def test_sequence_may_be_further_on() -> None:
    assert Position(5, True, 1).reached_by(Position(6, False, 1))
    assert not Position(5, True, 1).reached_by(Position(5, False, 1))
    assert Position(-5, True, -1).reached_by(Position(-6, True, -1))
    assert not Position(-5, True, -1).reached_by(Position(-4, True, -1))


def test_comparer_ignores_the_order_of_rows(stores: Stores) -> None:
    before = compare.capture_postgres(stores.postgres)
    with stores.postgres.connect(stores.postgres.dbname) as connection:
        connection.execute("CLUSTER agents USING agents_pkey; ALTER TABLE agents SET WITHOUT CLUSTER")
        connection.execute("SET session_replication_role = replica")
        connection.execute("UPDATE messages SET role = role WHERE id < 100")  # moves the rows to the table's end
    assert list(compare.fact_differences(before, compare.capture_postgres(stores.postgres))) == []


def test_digests_of_different_values_differ() -> None:
    values = [b"a", "a", ["a"], [["a"]], ["a", ""], ["", "a"], [b"a"], 1, "1", None, "None", [], {}, {"a": "b"}, [["a", "b"]]]
    assert len({compare.digest(value) for value in values}) == len(values)


def test_destroy_loses_all_content_and_keeps_what_the_database_is(stores: Stores) -> None:
    before = capture(stores)
    stores.destroy()
    after = capture(stores)
    assert after.redis == {}
    assert after.qdrant == {}
    assert list(after.config) == ["'.'"]
    assert {"the database", "schema public"} <= set(after.postgresql) <= {"the database", "schema public", "extension plpgsql"}
    assert after.postgresql["the database"] == before.postgresql["the database"]


def test_seed_fixes_the_data(empty_stores: Stores) -> None:
    def once(seed: int) -> list[compare.Facts]:
        empty_stores.destroy()
        data.fill(empty_stores, seed=seed)
        state = capture(empty_stores)
        rows = {
            name: f.get("content of the rows")
            for name, f in state.postgresql.items()
            if name.endswith((".memories", ".messages"))
        }
        state.redis.pop("key b'stream:events' of database 0")  # its deliveries bear the time of day
        return [{"rows": {"digests": rows}}, state.redis, state.qdrant, state.config]

    first = once(1)
    assert once(1) == first
    assert all(other != one for other, one in zip(once(2), first, strict=True))


def test_points_refer_to_memories(stores: Stores) -> None:
    with stores.qdrant.client() as client:
        ask = {"limit": 1000, "with_payload": True}
        points = client.post("/collections/current/points/scroll", json=ask).raise_for_status().json()["result"]["points"]
    with stores.postgres.connect_application() as connection:
        ids = {str(row[0]) for row in connection.execute("SELECT id FROM memories")}
    assert len(points) == data.Scale.TEST.points
    assert {point["payload"]["memory_id"] for point in points} <= ids


def test_specimens_are_there(stores: Stores) -> None:
    facts = compare.capture_redis(stores.redis)
    kinds = {properties.get("type") for properties in facts.values()} - {None}
    assert kinds == {"string", "list", "set", "zset", "hash", "stream"}
    assert {name.rsplit(" ", 1)[1] for name in facts if name.startswith("key")} == {"0", "1", "5"}
    with stores.redis.client() as client:
        encodings = {client.object("encoding", key) for key in client.scan_iter(count=1000)}
        assert {b"int", b"embstr", b"raw", b"intset", b"hashtable", b"skiplist", b"quicklist", b"stream"} <= encodings
        assert client.fcall("recall", 1, "string:short") == b"embstr"
    with stores.postgres.connect_application() as connection:
        connection.execute("UPDATE memories SET content = content || '.' WHERE importance < 0.01")
        touched = connection.execute("SELECT count(*) FROM memories WHERE updated_at > now() - interval '1 hour'").fetchone()
        assert touched and touched[0] > 0
        sizes = [len(row[0]) for row in connection.execute("SELECT lo_get(content) FROM attachments WHERE content IS NOT NULL")]
        assert min(sizes) == 0 and max(sizes) > 2048


# ------------------------------------------------------------------------------------------------------------- fixtures


@pytest.mark.parametrize("turn", [1, 2])
def test_fixture_removes_what_a_test_left(stores: Stores, turn: int) -> None:
    """Both turns do the same harm; the second finds nothing of the first, whichever runs first."""
    with stores.postgres.connect() as connection:
        names = {row[0] for row in connection.execute("SELECT datname FROM pg_database")}
        assert names == {"postgres", "template0", "template1", "agentmem", "agentmem filled"}
        roles = {row[0] for row in connection.execute("SELECT rolname FROM pg_roles WHERE rolname !~ '^pg_'")}
        assert roles == {"postgres", "agentmem", "agentmem reader"}
        asked = "SELECT current_setting('work_mem'), rolcreatedb FROM pg_roles WHERE rolname = 'agentmem'"
        assert connection.execute(asked).fetchone() == ("4MB", True)
        connection.execute("CREATE ROLE stranger")
        connection.execute("CREATE DATABASE strange OWNER stranger IS_TEMPLATE true")
        connection.execute("ALTER SYSTEM SET work_mem = '8MB'")
        connection.execute("GRANT stranger TO agentmem")
        connection.execute("ALTER ROLE agentmem NOCREATEDB PASSWORD 'other'")
    with stores.redis.client() as client:
        assert client.config_get("appendonly") == {"appendonly": "no"}
        assert client.acl_users() == ["default"]
        assert client.info("replication")["role"] == "master"
        client.acl_setuser("stranger", enabled=True, nopass=True)
        client.config_set("appendonly", "yes")
        client.config_set("requirepass", "other")
    with stores.qdrant.client() as client:
        assert client.get("/collections/memories/snapshots").json()["result"] == []
        client.post("/collections/memories/snapshots?wait=true").raise_for_status()
        client.put("/collections/stranger", json={"vectors": {"size": 2, "distance": "Dot"}}).raise_for_status()
    assert list(stores.backup_dir.iterdir()) == list(stores.log_dir.iterdir()) == []
    (stores.backup_dir / f"left by turn {turn}").touch()


@pytest.mark.parametrize("turn", [1, 2])
def test_fixture_refills_a_changed_qdrant(filled_qdrant: Qdrant, turn: int) -> None:
    """An importance is below 1 in the data, and at least 1 once it was flipped."""
    with filled_qdrant.client() as client:
        ask = {"limit": 1000, "with_payload": True}
        points = client.post("/collections/memories/points/scroll", json=ask).raise_for_status().json()["result"]["points"]
    assert max(point["payload"]["importance"] for point in points) < 1, f"turn {turn} found what the other left"
    compare.flip_one_payload(cast(Stores, SimpleNamespace(qdrant=filled_qdrant)))


def test_fixture_survives_a_test_that_killed_the_servers(stores: Stores) -> None:
    before = capture(stores)
    stores.postgres.kill()
    stores.redis.kill()
    if stores.qdrant.kind != "url":
        stores.qdrant.kill()
    stores.postgres.reset(keep_databases=["agentmem", "agentmem filled"], keep_roles=[data.READER])
    stores.redis.reset()
    stores.qdrant.reset()
    after = capture(stores)
    # PostgreSQL empties unlogged tables after a crash, and nothing else.
    changed = [text.partition(":")[0] for text in compare.fact_differences(before.postgresql, after.postgresql)]
    assert set(changed) == {"table public.scratch"}
    assert after.redis == after.qdrant == {}


def test_empty_stores_are_empty(empty_stores: Stores) -> None:
    state = capture(empty_stores)
    assert not [name for name in state.postgresql if name.startswith("table")]
    assert state.redis == state.qdrant == {}


# -------------------------------------------------------------------------------------------------------------- servers


def test_environment_opens_the_stores(stores: Stores) -> None:
    environment = stores.environment()
    with psycopg.connect(
        host=environment["DB_HOST"],
        port=environment["DB_PORT"],
        dbname=environment["DB_NAME"],
        user=environment["DB_USER"],
        password=environment["DB_PASSWORD"],
    ) as connection:
        assert connection.execute("SELECT rolsuper, rolcreatedb FROM pg_roles WHERE rolname = current_user").fetchone() == (
            False,
            True,
        )
    assert Path(environment["REDIS_DATA_DIR"]) == stores.redis.rdb.parent
    assert AWKWARD in environment["DB_PASSWORD"] and AWKWARD in environment["REDIS_PASSWORD"]
    assert environment["QDRANT_URL"] == stores.qdrant.url


def test_both_doors_of_postgres_ask_for_the_password(postgres: Postgres) -> None:
    for host in (postgres.host, str(postgres.socket_dir)):
        postgres.connect(host=host).close()
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            postgres.connect(host=host, password="wrong")


def test_redis_asks_for_its_password(redis_server: Redis) -> None:
    with pytest.raises(redis_py.AuthenticationError), redis_server.client(password=None) as client:
        client.ping()


def test_redis_quoting_survives_its_parser() -> None:
    assert redis_quoted("a b\"'\\é") == r'"a\x20b\x22\x27\x5c\xc3\xa9"'


def test_no_secret_in_any_argument(stores: Stores) -> None:
    secrets = [stores.postgres.password, stores.postgres.app_password, stores.redis.password, stores.qdrant.api_key or "none"]
    servers = [stores.postgres.pid, stores.redis.pid, *([] if stores.qdrant.kind == "url" else [stores.qdrant.pid])]
    for pid in servers:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
        assert arguments
        assert not [secret for secret in secrets if secret in arguments]


@pytest.mark.skipif(os.geteuid() != 0, reason="the servers run as this user")
def test_servers_run_unprivileged(postgres: Postgres, redis_server: Redis) -> None:
    for server in (postgres, redis_server):
        assert Path(f"/proc/{server.pid}").stat().st_uid != 0


def test_data_survives_kill_and_restart() -> None:
    with Redis(appendonly=True) as server:
        with server.client() as client:
            client.set("key", "value")
            client.config_set("appendfsync", "always")
            client.set("key", "newer")
        port = server.port
        server.kill()
        assert not server.running
        server.start()
        assert server.port == port
        assert server.client().get("key") == b"newer"
        server.stop(save=True)
        assert server.rdb.read_bytes().startswith((b"REDIS", b"VALKEY"))
    assert not server.directory.exists()


def test_postgres_of_a_named_bindir_survives_kill_and_restart() -> None:
    with Postgres(bindir=postgres_bindirs()[-1]) as server:
        server.create_application("other name")
        with server.connect_application() as connection:
            connection.execute("CREATE TABLE t AS SELECT 1 AS one")
        for again in (server.kill, server.stop):
            again()
            server.start()
        with server.connect_application() as connection:
            assert connection.execute("SELECT current_database(), one FROM t").fetchone() == ("other name", 1)
    assert not server.directory.exists()


def test_acl_users_and_further_directives() -> None:
    with Redis(acl=["user reader on >secret ~* +@read"], extra=["maxmemory 50mb"], databases=3) as server:
        with server.client(username="reader", password="secret") as client, pytest.raises(redis_py.exceptions.NoPermissionError):
            client.set("a", 1)
        assert server.client().config_get("maxmemory", "databases") == {"maxmemory": "52428800", "databases": "3"}


def test_servers_die_with_their_process_and_leave_nothing_when_interrupted() -> None:
    """The demo is interrupted: SIGINT cleans up, SIGKILL leaves no process."""
    # What runs the tests in the background may have made SIGINT one that is ignored, which children inherit.
    script = """
import signal
from tests.support.servers import Redis
signal.signal(signal.SIGINT, signal.default_int_handler)
with Redis() as server:
    print(server.pid, server.directory, flush=True)
    input()
"""
    for number in (signal.SIGINT, signal.SIGKILL):
        child = subprocess.Popen(
            [sys.executable, "-c", script], cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        with child:
            assert child.stdout
            pid, directory = child.stdout.readline().decode().split()
            server = os.pidfd_open(int(pid))
            child.send_signal(number)
            child.wait(60)
            assert select.select([server], [], [], 60)[0], "the server outlived its process"
            os.close(server)
        if number == signal.SIGINT:
            assert not Path(directory).exists()
        else:
            shutil.rmtree(directory)


def test_stores_of_their_own_leave_nothing() -> None:
    with Stores() as own:
        with own.postgres.connect_application() as connection:
            assert connection.execute("SELECT current_user::text").fetchone() == ("agentmem",)
        assert own.redis.client().ping()
        assert own.qdrant.ready()
        directory = own.directory
        shared = set(re.findall(r"/dev/shm/PostgreSQL\.\d+", Path(f"/proc/{own.postgres.pid}/maps").read_text()))
        assert shared and all(Path(segment).exists() for segment in shared)
    assert not directory.exists()
    assert not own.redis.running and not own.postgres.running
    assert not any(Path(segment).exists() for segment in shared)


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="nothing may be put into memory here")
def test_what_a_killed_run_left_in_memory_goes() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    memory = Path("/dev/shm")
    left, others = (memory / f"agentmem-postgres-{pid}-test" for pid in (ended.pid, os.getpid()))
    for path in (left, others):
        (path / "data").mkdir(parents=True)
    try:
        made = directory_in_memory("postgres")
        if made is not None:
            assert made.parent == memory
            made.rmdir()
        assert not left.exists() and others.exists()
    finally:
        for path in (left, others):
            shutil.rmtree(path, ignore_errors=True)


def test_qdrant_kind_prefers_a_real_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("QDRANT_TEST_URL", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert qdrant_kind() == "stand-in"
    (tmp_path / "qdrant").write_text("#!/bin/sh\n")
    (tmp_path / "qdrant").chmod(0o755)
    assert qdrant_kind() == "binary"
    monkeypatch.setenv("QDRANT_TEST_URL", "http://127.0.0.1:1")
    assert qdrant_kind() == "url"


def test_run_fails_where_a_binary_is_there_and_not_used(qdrant: Qdrant, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if qdrant.kind == "url":
        pytest.skip("a server is given")
    assert_real_qdrant_is_used(qdrant)
    (tmp_path / "qdrant").write_text("#!/bin/sh\n")
    (tmp_path / "qdrant").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(AssertionError, match="is on the PATH"):
        assert_real_qdrant_is_used(qdrant)


def test_passwords_hold_what_breaks_careless_scripts() -> None:
    assert set(" '\"$\\é") <= set(awkward_password("x"))


def test_directory_lets_other_accounts_through() -> None:
    with throwaway_directory() as directory:
        assert len(str(directory)) < 60
        assert directory.stat().st_mode & 0o001
    assert not directory.exists()


def test_application_role_may_dump(stores: Stores, tmp_path: Path) -> None:
    """The data is such that the application's own role can dump and restore it, else no test of a restore could pass."""
    postgres, archive = stores.postgres, tmp_path / "archive"
    before = compare.capture_postgres(postgres)
    environment = {**os.environ, **postgres.libpq_environment()}
    subprocess.run([postgres.bindir / "pg_dump", "-Fc", "-f", archive], env=environment, check=True)
    with postgres.connect() as connection:
        connection.execute(sql.SQL("CREATE DATABASE other OWNER {}").format(sql.Identifier(postgres.app_user)))
    restore = [postgres.bindir / "pg_restore", "--exit-on-error", "-d", "other", archive]
    subprocess.run(restore, env=environment, check=True)
    postgres.empty_database()
    with postgres.connect() as connection:
        connection.execute("DROP DATABASE agentmem")
        connection.execute("ALTER DATABASE other RENAME TO agentmem")
    data.describe_database(postgres)
    assert list(compare.fact_differences(before, compare.capture_postgres(postgres))) == []


# --- a warm program


@pytest.mark.parametrize("words", [("--version",), ("list",), ("restore", "latest"), ("no-such-verb",)])
def test_a_warm_program_does_what_a_cold_one_does(tmp_path: Path, words: tuple[str, ...]) -> None:
    there = {**os.environ, "BACKUP_DIR": str(tmp_path / "not there"), "LOG_DIR": str(tmp_path)}
    argv = [str(command.BIN / "agentmem-backup"), *words]
    warmed = warm.run(argv, there, 60)
    cold = subprocess.run(argv, env=there, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert (warmed.returncode, warmed.stdout, warmed.stderr) == (cold.returncode, cold.stdout, cold.stderr)
    assert warmed.stdout + warmed.stderr


def test_a_warm_program_is_killed_when_its_time_is_up_and_the_next_run_is_another(tmp_path: Path) -> None:
    program = warm.Warm()
    try:
        argv = ["agentmem-backup", "list"]
        there = {**os.environ, "BACKUP_DIR": str(tmp_path)}
        with pytest.raises(subprocess.TimeoutExpired):
            program.run(argv, there, 0.2, before="signal:pause")
        assert program.run(argv, there).returncode == 0
    finally:
        program.close()


def test_a_warm_program_keeps_in_step_where_the_waiting_is_broken_off(tmp_path: Path) -> None:
    def give_up(*what: object) -> None:
        raise InterruptedError

    program = warm.Warm()
    before = signal.signal(signal.SIGALRM, give_up)
    try:
        argv = ["agentmem-backup", "list"]
        there = {**os.environ, "BACKUP_DIR": str(tmp_path)}
        assert program.run(argv, there).returncode == 0
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(InterruptedError):
            program.run(argv, there, before="signal:pause")
        assert program.run(argv, there).returncode == 0
    finally:
        signal.signal(signal.SIGALRM, before)
        program.close()
