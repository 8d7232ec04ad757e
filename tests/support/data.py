# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""AgentMem-like data for the four stores, fixed by a seed: the same seed and scale give the same rows, keys and points.

`fill` puts in, beside the bulk, one specimen of everything that a backup has lost somewhere: names that need quoting, a
table without a key, large objects, binary Redis keys, sparse vectors, file names with a newline. A library without pytest.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import random
import struct
import subprocess
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import httpx
from psycopg import sql

from tests.support.servers import Postgres, Qdrant, Redis, Stores

READER = "agentmem reader"
FAR = 4_070_908_800  # 2099-01-01T00:00:00Z: expiries that no test outlives
TEXT = (
    "agent memory recalls the user preference for concise answers about travel plans budget meeting notes project "
    "deadline vector search reflection episode semantic working context tool result error retry summary session"
)
WORDS = TEXT.split()


@dataclass(frozen=True)
class Scale:
    """How much of the bulk data there is; the specimens are always the same."""

    memories: int
    messages: int
    redis_keys: int
    redis_value: int
    points: int
    vector_size: int
    config_files: int

    TEST: ClassVar[Scale]
    DEMO: ClassVar[Scale]

    @classmethod
    def bench(cls, postgres_mb: float = 1000, redis_mb: float = 100, vectors_mb: float = 600, vector_size: int = 768) -> Scale:
        """About so many megabytes (10^6 bytes) of rows, of Redis values and of raw float32 vectors."""
        return cls(
            memories=max(1, int(postgres_mb * 550)),
            messages=max(1, int(postgres_mb * 800)),
            redis_keys=max(1, int(redis_mb * 1000)),
            redis_value=1000,
            points=max(1, int(vectors_mb * 1_000_000 / (4 * vector_size))),
            vector_size=vector_size,
            config_files=100,
        )


Scale.TEST = Scale(memories=1200, messages=1500, redis_keys=300, redis_value=200, points=200, vector_size=32, config_files=10)
Scale.DEMO = Scale.bench(postgres_mb=32, redis_mb=8, vectors_mb=10, vector_size=384)


def fill(stores: Stores, *, seed: int = 1, scale: Scale = Scale.TEST, progress: Callable[[str], None] | None = None) -> None:
    """Fill the four empty stores, all at once; `progress` is told the name of each store that is done."""
    work = {
        "postgresql": lambda: fill_postgres(stores.postgres, seed=seed, scale=scale),
        "redis": lambda: fill_redis(stores.redis, seed=seed, scale=scale),
        "qdrant": lambda: fill_qdrant(stores.qdrant, seed=seed, scale=scale),
        "config": lambda: fill_config(stores.config_dir, seed=seed, scale=scale),
    }
    with ThreadPoolExecutor(max_workers=len(work)) as pool:
        for name, future in {name: pool.submit(job) for name, job in work.items()}.items():
            future.result()
            if progress:
                progress(name)


def memory_id(seed: int, number: int) -> str:
    """The id of row `number` (from 1) of the table memories; Qdrant's points refer to it."""
    return str(uuid.UUID(hashlib.md5(f"memory {seed} {number}".encode()).hexdigest()))  # noqa: S324


# ---------------------------------------------------------------------------------------------------------- PostgreSQL

TABLES = r"""
CREATE SCHEMA "tenant data";
COMMENT ON SCHEMA "tenant data" IS 'a schema whose name has a space';
CREATE TYPE memory_type AS ENUM ('episodic', 'semantic', 'procedural', 'it''s odd');
CREATE TYPE span AS (starts timestamptz, ends timestamptz);
CREATE DOMAIN importance AS double precision CHECK (VALUE >= 0 AND VALUE <= 1);
CREATE DOMAIN email AS text CONSTRAINT "has an at" CHECK (VALUE LIKE '%@%');

CREATE TABLE organizations (id serial PRIMARY KEY, name text NOT NULL UNIQUE, created_at timestamptz NOT NULL);
CREATE TABLE users (
  id bigint GENERATED ALWAYS AS IDENTITY (START 100 INCREMENT 5) PRIMARY KEY,
  organization_id integer NOT NULL, email email NOT NULL, name text, tags text[], balance numeric,
  active boolean DEFAULT true, born date, "select" text);
CREATE TABLE agents (
  id uuid PRIMARY KEY, user_id bigint NOT NULL, name varchar(80) NOT NULL, config jsonb DEFAULT '{}'::jsonb,
  avatar bytea, active span, updated_at timestamptz NOT NULL);
CREATE TABLE memories (
  id uuid PRIMARY KEY, agent_id uuid NOT NULL, memory_type memory_type NOT NULL, content text NOT NULL,
  metadata jsonb, importance importance, created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL,
  words integer GENERATED ALWAYS AS (length(content) / 6) STORED);
COMMENT ON TABLE memories IS 'what an agent remembers; "quoted", ünicode';
COMMENT ON COLUMN memories.words IS 'an estimate';
CREATE TABLE messages (id bigserial PRIMARY KEY, agent_id uuid NOT NULL, role text NOT NULL, body text, sent_at timestamptz);
CREATE TABLE blocks (agent_id uuid, label text, value text, "limit" integer, PRIMARY KEY (agent_id, label));
CREATE TABLE tools (name text PRIMARY KEY, schema jsonb, weight numeric(20, 6), cost money, took interval, host inet);
CREATE TABLE "Mixed Case" ("Id" integer PRIMARY KEY, "select" text, "a ""quoted"" column" text, "größe" real);
CREATE TABLE "tenant data"."order" ("group" integer, "from" text);
CREATE TABLE log_without_key (at timestamptz, line text);
CREATE TABLE attachments (id integer PRIMARY KEY, name text, content oid);
CREATE TABLE audit (id bigserial PRIMARY KEY, table_name text, operation text, old_row jsonb, new_row jsonb);
CREATE TABLE oddities (
  id integer PRIMARY KEY, number numeric, float double precision, single real, text text, bytes bytea,
  stamp timestamptz, local timestamp, ints integer[], matrix text[][], doc json, bits bit varying, x xml,
  search tsvector, range int4range, flag "char", point point);
CREATE TABLE events (id bigint, at timestamptz NOT NULL, kind text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE events_2025 PARTITION OF events FOR VALUES FROM ('2025-01-01Z') TO ('2026-01-01Z');
CREATE TABLE events_2026 PARTITION OF events FOR VALUES FROM ('2026-01-01Z') TO ('2027-01-01Z');
CREATE TABLE events_other PARTITION OF events DEFAULT;
CREATE TABLE documents (id integer, title text);
CREATE TABLE contracts (signed date) INHERITS (documents);
ALTER TABLE documents ADD COLUMN pages integer DEFAULT 1;
CREATE TABLE secrets (id integer PRIMARY KEY, owner text, value text);
CREATE TABLE empty_table (id integer PRIMARY KEY);
CREATE UNLOGGED TABLE scratch (id integer, note text);
CREATE SEQUENCE "tenant data"."ticket no" START 1000 INCREMENT 7 CACHE 3;
"""

ROWS = r"""
INSERT INTO organizations (name, created_at)
  SELECT 'Organization ' || i || CASE i WHEN 1 THEN ' Ω "O''Neil" \ ' ELSE '' END,
    '2025-01-01Z'::timestamptz + i * interval '1 hour'
  FROM generate_series(1, 5) i;
INSERT INTO users (organization_id, email, name, tags, balance, born, "select")
  SELECT 1 + i % 5, 'user' || i || '@example.com',
    (ARRAY[NULL, 'Zoë', E'tab\there', E'two\nlines', E'back\\slash', '日本語', '', '\N', '\.'])[1 + i % 9],
    CASE WHEN i % 4 = 0 THEN NULL ELSE ARRAY['a', 'b "c"', NULL, md5({seed} || 'u' || i)] END,
    (ARRAY['NaN', '0', '-0.000000000000000000000001', '123456789012345678901234567890.123'])[1 + i % 4]::numeric,
    date '1970-01-01' + i, 'select ' || i
  FROM generate_series(1, 50) i;
INSERT INTO agents (id, user_id, name, config, avatar, active, updated_at)
  SELECT md5('agent {seed} ' || i)::uuid, 100 + 5 * (i % 50), 'agent ' || i,
    jsonb_build_object('model', 'm' || i % 3, 'temperature', i / 10.0, 'nested', jsonb_build_object('k', ARRAY[i, NULL])),
    decode(md5({seed} || 'v' || i) || '00ff0a5c', 'hex'),
    CASE WHEN i % 3 > 0 THEN ROW('2025-01-01Z', NULL)::span END, '2025-03-01 12:00:00.123456Z'::timestamptz + i * interval '1 day'
  FROM generate_series(1, 40) i;
INSERT INTO memories (id, agent_id, memory_type, content, metadata, importance, created_at, updated_at)
  SELECT md5('memory {seed} ' || i)::uuid, md5('agent {seed} ' || (1 + i % 40))::uuid,
    (ARRAY['episodic', 'semantic', 'procedural', 'it''s odd'])[1 + i % 4]::memory_type,
    (SELECT string_agg(md5({seed} || 'c' || i || '/' || j) || ' {words} ', '') FROM generate_series(1, 8) j),
    CASE WHEN i % 10 > 0 THEN jsonb_build_object('source', 'chat', 'turn', i, 'score', (i * 37 % 1000) / 1000.0,
      'tags', jsonb_build_array('t' || i % 7, 'ü' || i % 3)) END,
    (i * 37 % 1000) / 1000.0, '2025-01-01Z'::timestamptz + i * interval '1 minute',
    '2025-01-02Z'::timestamptz + i * interval '1 second'
  FROM generate_series(1, {memories}) i;
INSERT INTO messages (agent_id, role, body, sent_at)
  SELECT md5('agent {seed} ' || (1 + i % 40))::uuid, (ARRAY['user', 'assistant', 'tool'])[1 + i % 3],
    CASE WHEN i % 100 > 0 THEN (SELECT string_agg(md5({seed} || 'b' || i || '/' || j) || ' said the agent to ', '')
      FROM generate_series(1, 8) j) END,
    '2025-01-01Z'::timestamptz + i * interval '1 second'
  FROM generate_series(1, {messages}) i;
INSERT INTO blocks SELECT a.id, l, repeat(l || ' ', 50), 2000 FROM agents a, unnest(ARRAY['human', 'persona']) l;
INSERT INTO tools VALUES ('search', '{{"type": "object"}}', 0.000001, 12.5, '1 mon 2 days 03:04:05.678', '10.0.0.0/8'),
  ('naïve tool', NULL, 'NaN', NULL, '-1 day', '::1'), ('', '[]', 0, 0, '0', NULL);
INSERT INTO "Mixed Case" VALUES (1, 'x', 'y', 1.5), (2, NULL, '"', 'NaN'), (3, '', '''', '-Infinity');
INSERT INTO "tenant data"."order" VALUES (1, 'a'), (1, 'a'), (2, NULL), (NULL, NULL);
INSERT INTO log_without_key SELECT '2025-01-01Z', 'the same line' FROM generate_series(1, 20);
INSERT INTO attachments SELECT i, 'file ' || i, lo_from_bytea(0, decode(repeat(md5({seed} || 'l' || i), 200 * i), 'hex'))
  FROM generate_series(1, 4) i;
INSERT INTO attachments VALUES (5, 'nothing', NULL), (6, 'empty', lo_from_bytea(0, ''));
INSERT INTO oddities (id, number, float, single, text, bytes, stamp, local, ints, matrix, doc, bits, search, range, flag, point)
  VALUES (1, 'NaN', 'NaN', 'NaN', E'\t\r\n\\.\b\f\v"''', '\x00', 'infinity', '-infinity', '{{}}', '{{{{a,b}},{{c,"d e"}}}}',
    '{{"b":1, "a":1,  "a":2}}', B'0101', 'a:1 cat:2', '[1,5)', 'c', '(1,2.5)'),
  (2, 1e-30, 1e-300, 1e-30, '🦉 ﷽ e' || U&'\0301', '', '0044-03-15 12:00:00+00 BC', '9999-12-31 23:59:59.999999', '{{NULL,1}}',
    NULL, 'null', B'', '', 'empty', NULL, NULL),
  (3, 0.1, 0.1, 0.1, repeat('toasted ' || md5({seed}::text), 4000), decode(repeat('00ff', 3000), 'hex'),
    '1900-01-01 00:00:00.000001+00', NULL, '[0:2]={{1,2,3}}', NULL, '[1, 2]', NULL, NULL, '(,)', NULL, NULL),
  (4, NULL, '-0', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO events SELECT i, '2024-06-01Z'::timestamptz + i * interval '9 days', 'kind ' || i % 3 FROM generate_series(1, 100) i;
INSERT INTO documents SELECT i, 'doc ' || i, i FROM generate_series(1, 5) i;
INSERT INTO contracts (id, title, pages, signed)
  SELECT i, 'contract ' || i, i, date '2025-01-01' + i FROM generate_series(6, 9) i;
INSERT INTO secrets VALUES (1, 'agentmem', 'top secret'), (2, 'nobody', 'hidden from all but the owner');
INSERT INTO scratch VALUES (1, 'unlogged');
SELECT nextval('"tenant data"."ticket no"') FROM generate_series(1, 10);
"""

# After the rows: the bulk then comes in without a trigger or an index for each row.
RULES = r"""
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN NEW.updated_at := now(); RETURN NEW; END $$;
CREATE FUNCTION record_change() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
  INSERT INTO audit (table_name, operation, old_row, new_row)
    VALUES (TG_TABLE_NAME, TG_OP, CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) END,
            CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) END);
  RETURN coalesce(NEW, OLD);
END $body$;
CREATE FUNCTION "tenant data"."add, or not"(a integer, b integer DEFAULT 2) RETURNS integer
  LANGUAGE sql IMMUTABLE AS 'SELECT a + b';
COMMENT ON FUNCTION "tenant data"."add, or not"(integer, integer) IS 'a comment with '' a quote';
CREATE PROCEDURE tidy() LANGUAGE sql AS 'DELETE FROM scratch';
CREATE AGGREGATE longest(text) (SFUNC = textcat, STYPE = text, INITCOND = '');
CREATE TRIGGER touch BEFORE UPDATE ON memories FOR EACH ROW EXECUTE FUNCTION touch();
CREATE TRIGGER "record change" AFTER INSERT OR UPDATE OR DELETE ON agents FOR EACH ROW EXECUTE FUNCTION record_change();
CREATE TRIGGER silent AFTER UPDATE ON users FOR EACH ROW EXECUTE FUNCTION record_change();
ALTER TABLE users DISABLE TRIGGER silent;
ALTER TABLE users ADD FOREIGN KEY (organization_id) REFERENCES organizations ON DELETE CASCADE;
ALTER TABLE agents ADD CONSTRAINT "agent's user" FOREIGN KEY (user_id) REFERENCES users DEFERRABLE INITIALLY DEFERRED;
ALTER TABLE memories ADD FOREIGN KEY (agent_id) REFERENCES agents;
ALTER TABLE messages ADD FOREIGN KEY (agent_id) REFERENCES agents;
ALTER TABLE blocks ADD FOREIGN KEY (agent_id) REFERENCES agents;
ALTER TABLE messages ADD CONSTRAINT role_known CHECK (role IN ('user', 'assistant', 'tool'));
ALTER TABLE tools ADD CONSTRAINT not_yet CHECK (cost IS NULL OR cost >= 0::money) NOT VALID;
CREATE INDEX memories_by_agent ON memories (agent_id, created_at DESC);
CREATE INDEX memories_by_source ON memories ((metadata ->> 'source')) WHERE metadata IS NOT NULL;
CREATE INDEX memories_metadata ON memories USING gin (metadata jsonb_path_ops);
CREATE UNIQUE INDEX "users by lower email" ON users (lower(email));
CREATE INDEX events_kind ON events (kind);
CREATE STATISTICS message_statistics (dependencies) ON agent_id, role FROM messages;
ALTER TABLE memories CLUSTER ON memories_by_agent;
UPDATE agents SET name = name || '!' WHERE name IN ('agent 1', 'agent 2');
INSERT INTO agents VALUES (md5('gone')::uuid, 100, 'gone', NULL, NULL, NULL, '2025-01-01Z');
DELETE FROM agents WHERE name = 'gone';
CREATE VIEW recent_memories AS SELECT m.id, a.name, m.content FROM memories m JOIN agents a ON a.id = m.agent_id
  WHERE m.created_at > '2025-01-01 10:00:00Z';
CREATE MATERIALIZED VIEW memories_per_agent AS
  SELECT a.name, count(*) AS memories, avg(m.importance) AS mean FROM agents a
  JOIN memories m ON m.agent_id = a.id GROUP BY a.name;
CREATE UNIQUE INDEX ON memories_per_agent (name);
CREATE MATERIALIZED VIEW never_filled AS SELECT 1 AS one WITH NO DATA;
ALTER TABLE secrets ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_secrets ON secrets FOR SELECT TO "agentmem reader" USING (owner = current_user);
CREATE RULE no_delete AS ON DELETE TO tools DO INSTEAD NOTHING;
GRANT SELECT ON memories, agents, secrets TO "agentmem reader";
GRANT SELECT (id, name) ON users TO "agentmem reader";
GRANT USAGE ON SCHEMA "tenant data" TO "agentmem reader";
REVOKE EXECUTE ON FUNCTION "tenant data"."add, or not"(integer, integer) FROM PUBLIC;
ALTER DEFAULT PRIVILEGES IN SCHEMA "tenant data" GRANT SELECT ON TABLES TO "agentmem reader";
"""


def fill_postgres(server: Postgres, *, seed: int = 1, scale: Scale = Scale.TEST) -> None:
    """Fill the application's empty database as the application's role; the reader's role is made where it is missing."""
    create_reader(server)
    rows = ROWS.format(seed=seed, memories=scale.memories, messages=scale.messages, words=" ".join(WORDS[:8]))
    with server.connect_application(options="-c timezone=UTC -c synchronous_commit=off") as connection:
        for script in (TABLES, rows, RULES):
            connection.execute(script)
        available = "SELECT 1 FROM pg_available_extensions WHERE name = 'pg_trgm'"
        if connection.execute(available).fetchone():
            connection.execute("CREATE EXTENSION pg_trgm")
            connection.execute("CREATE INDEX agents_by_trigram ON agents USING gin (name gin_trgm_ops)")
        connection.execute("ANALYZE")
    describe_database(server)


def create_reader(server: Postgres) -> None:
    """Make the role that the data's grants name, where it is missing."""
    with server.connect() as connection:
        if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [READER]).fetchone():
            connection.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(sql.Identifier(READER)))


def describe_database(server: Postgres) -> None:
    """Settings, grants and comment of the database itself, which neither a template nor a plain dump carries along."""
    name = sql.Identifier(server.dbname)
    with server.connect() as connection:
        connection.execute(sql.SQL("ALTER DATABASE {} SET lock_timeout = '17min'").format(name))
        connection.execute(sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(name, sql.Identifier(READER)))
        connection.execute(sql.SQL("COMMENT ON DATABASE {} IS 'AgentMem''s own'").format(name))


# --------------------------------------------------------------------------------------------------------------- Redis

LIBRARY = """#!lua name=agentmem
redis.register_function('remember', function(keys, args) return redis.call('SET', keys[1], args[1]) end)
redis.register_function{function_name='recall', callback=function(keys) return redis.call('GET', keys[1]) end,
  flags={'no-writes'}}
"""


def fill_redis(server: Redis, *, seed: int = 1, scale: Scale = Scale.TEST) -> None:
    """Fill databases 0, 1 and 5 with every type, small and large encodings, and load a function library."""
    rng = random.Random(seed)
    with server.client() as client:
        client.function_load(LIBRARY, replace=True)
        pipe = client.pipeline(transaction=False)
        _redis_specimens(pipe, rng)
        if client.command_list(pattern="hpexpireat"):  # Redis 7.4, Valkey 9.0
            pipe.execute_command("HPEXPIREAT", "hash:large", FAR * 1000 + 7, "FIELDS", 2, "field 1", "field 2")
            pipe.hset("hash:fields expire", mapping={"one": 1, "two": 2})
            pipe.execute_command("HPEXPIREAT", "hash:fields expire", FAR * 1000 + 8, "FIELDS", 2, "one", "two")
        pipe.execute()
        for number, value in enumerate(_redis_values(rng, scale)):
            key = f"session:{number}"
            if number % 3 == 0:
                pipe.hset(key, mapping={"user": number % 50, "state": value})
            else:
                pipe.set(key, value)
            if number % 2 == 0:
                pipe.pexpireat(key, FAR * 1000 + number)
            if len(pipe) >= 5000:
                pipe.execute()
        pipe.execute()
    for db in (1, 5):
        with server.client(db) as client:
            pipe = client.pipeline(transaction=False)
            for number in range(50):
                pipe.set(f"cache:{db}:{number}", rng.randbytes(20), exat=FAR + number if number % 2 else None)
            pipe.sadd("session:0", f"the same name in database {db}")
            pipe.execute()


def _redis_specimens(pipe: Any, rng: random.Random) -> None:
    pipe.set("string:int", 1234567)
    pipe.set("string:short", "embstr")
    pipe.set("string:empty", "")
    pipe.set("string:long", "compressible " * 500)
    pipe.set("string:expiring", "expires far in the future", pxat=FAR * 1000 + 123)
    pipe.set(b"\x00\xffbinary \r\n key", bytes(range(256)))
    pipe.set("", "the key is empty")
    pipe.set("schlüssel mit ü", "wert: 日本語")
    pipe.rpush("list:small", *range(10))
    pipe.rpush("list:large", *[rng.randbytes(100) for __ in range(500)])
    pipe.sadd("set:int", *range(100))
    pipe.sadd("set:small", "a", "b", b"\x00")
    pipe.sadd("set:large", *[f"member {n}" for n in range(1000)])
    pipe.zadd("zset:small", {"a": 1.5, "b": float("-inf"), "c": 1e-300})
    pipe.zadd("zset:large", {f"member {n}": rng.random() for n in range(500)})
    pipe.hset("hash:small", mapping={"field": "value", b"\xff": b"\x00", "": ""})
    pipe.hset("hash:large", mapping={f"field {n}": rng.randbytes(10) for n in range(700)})
    pipe.expireat("hash:large", FAR + 5)
    for number in range(1, 121):
        pipe.xadd("stream:events", {"n": number, "data": f"event {number}"}, id=f"{number}-0")
    pipe.xdel("stream:events", "3-0", "120-0")
    pipe.xgroup_create("stream:events", "workers", id="0-0")
    pipe.xgroup_create("stream:events", "idle group", id="$")
    pipe.xreadgroup("workers", "alice", {"stream:events": ">"}, count=5)
    pipe.xreadgroup("workers", "bob", {"stream:events": ">"}, count=5)
    pipe.xack("stream:events", "workers", "1-0", "7-0")
    pipe.pfadd("hyperloglog", *[f"visitor {n}" for n in range(1000)])
    pipe.geoadd("geo", (13.361389, 38.115556, "Palermo", 15.087269, 37.502669, "Catania"))
    for offset in (0, 7, 1000, 65_535):
        pipe.setbit("bitmap", offset, 1)


def _redis_values(rng: random.Random, scale: Scale) -> Iterator[bytes]:
    """Text that compresses about 2:1: half noise in hexadecimal, half words."""
    text = " ".join(rng.choices(WORDS, k=scale.redis_value)).encode()
    half = scale.redis_value // 2
    for __ in range(scale.redis_keys):
        start = rng.randrange(half + 1)
        yield rng.randbytes(half // 2).hex().encode() + text[start : start + scale.redis_value - half]


# -------------------------------------------------------------------------------------------------------------- Qdrant

BLOCK = 16  # vectors are put together from blocks of this many numbers, for json.dumps would need minutes for 600 MB
BLOCKS = 16_384
NAMESPACE = uuid.UUID("6f1d7c1e-3a52-4f0b-9d55-0d9f0c1a2b3c")


def fill_qdrant(server: Qdrant, *, seed: int = 1, scale: Scale = Scale.TEST) -> None:
    """Two collections and an alias: `memories` (UUIDs, one vector) and `agents` (integers, named and sparse vectors)."""
    rng = random.Random(seed)
    small = {"wal_config": {"wal_capacity_mb": 1}, "optimizers_config": {"default_segment_number": 1}}
    # Building the search index of a large collection would keep all processors busy for minutes, also after each restore.
    tuning = small if scale.points < 10_000 else {"optimizers_config": {"indexing_threshold": 0}}
    with server.client() as client:
        memories = {"vectors": {"size": scale.vector_size, "distance": "Cosine"}, **tuning}
        _ask(client, "PUT", "/collections/memories", json=memories)
        for field, schema in (("user_id", "keyword"), ("importance", "float")):
            _ask(client, "PUT", "/collections/memories/index?wait=true", json={"field_name": field, "field_schema": schema})
        for body in _memory_batches(rng, seed, scale):
            _ask(client, "PUT", "/collections/memories/points?wait=true", content=body)
        agents = {
            "vectors": {"text": {"size": 8, "distance": "Dot"}, "image": {"size": 4, "distance": "Euclid"}},
            "sparse_vectors": {"words": {}},
            **small,
        }
        _ask(client, "PUT", "/collections/agents", json=agents)
        _ask(client, "PUT", "/collections/agents/points?wait=true", json={"points": [_agent(rng, n) for n in range(1, 41)]})
        alias = {"create_alias": {"collection_name": "memories", "alias_name": "current"}}
        _ask(client, "POST", "/collections/aliases", json={"actions": [alias]})


def point_id(number: int) -> str:
    """The UUID of point `number` (from 1) of the collection memories."""
    return str(uuid.uuid5(NAMESPACE, str(number)))


def _ask(client: httpx.Client, method: str, path: str, **options: Any) -> Any:
    answer = client.request(method, path, headers={"content-type": "application/json"}, **options)
    if not answer.is_success:
        raise RuntimeError(f"{method} {path}: {answer.status_code} {answer.text[:500]}")
    return answer.json()["result"]


def _memory_batches(rng: random.Random, seed: int, scale: Scale) -> Iterator[bytes]:
    """Bodies of upserts of about 4 MB."""
    if scale.vector_size % BLOCK:
        raise ValueError(f"vector_size must be a multiple of {BLOCK}, not {scale.vector_size}")
    blocks = [
        ",".join(f"{rng.uniform(-1, 1):.7f}" for __ in range(BLOCK)) for __ in range(BLOCKS if scale.points > 5000 else 256)
    ]
    points: list[str] = []
    for number in range(1, scale.points + 1):
        vector = ",".join(rng.choices(blocks, k=scale.vector_size // BLOCK))
        payload = {
            "memory_id": memory_id(seed, 1 + (number - 1) % scale.memories),
            "user_id": f"user {number % 50}",
            "importance": number % 1000 / 1000,
            "tags": ["a", "ü"] if number % 3 else [],
            "nested": {"deep": [number, None, True]},
        }
        points.append(f'{{"id":"{point_id(number)}","vector":[{vector}],"payload":{json.dumps(payload)}}}')
        if len(points) * scale.vector_size * 10 > 4_000_000 or number == scale.points:
            yield f'{{"points":[{",".join(points)}]}}'.encode()
            points = []


def _agent(rng: random.Random, number: int) -> dict[str, Any]:
    vectors: dict[str, Any] = {"text": [round(rng.uniform(-1, 1), 6) for __ in range(8)]}
    if number % 4:
        vectors["image"] = [round(rng.uniform(-1, 1), 6) for __ in range(4)]
        vectors["words"] = {
            "indices": sorted(rng.sample(range(1000), 5)),
            "values": [round(rng.uniform(0.1, 1), 6) for __ in range(5)],
        }
    return {"id": number, "vector": vectors, "payload": {"agent": f"agent {number}"} if number % 5 else {}}


# ------------------------------------------------------------------------------------------------------- configuration


def fill_config(directory: Path, *, seed: int = 1, scale: Scale = Scale.TEST) -> None:
    """Files as a configuration directory has them, and as it should not have them: odd names, modes, links, attributes."""
    rng = random.Random(seed)

    def write(name: str, content: str | bytes, mode: int) -> Path:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        path.chmod(mode)
        return path

    write(".env", f"DB_HOST=db.example\nSECRET_KEY='{rng.randbytes(16).hex()} $HOME \\ \"ü\"'\n", 0o600)
    write("agentmem.yml", "workers: 4\nfeatures: [memory, tools]\n", 0o640)
    write("certs/server.crt", _pem(rng, "CERTIFICATE"), 0o444)
    write("certs/server.key", _pem(rng, "PRIVATE KEY"), 0o600)
    write("certs/ca/deep/er/ca.crt", _pem(rng, "CERTIFICATE"), 0o644)
    write("bin/hook.sh", "#!/bin/sh\nexit 0\n", 0o755)
    for name in (
        "with space.conf",
        'quote\'s "both".conf',
        "größe-日本語.conf",
        "-leading-dash",
        "new\nline.conf",
        "tab\t$HOME\\.conf",
    ):
        write(f"odd/{name}", f"name = {name!r}\n", 0o604)
    write("odd/empty.conf", "", 0o644)
    write("odd/binary.dat", rng.randbytes(5000), 0o640)
    for number in range(scale.config_files):
        write(f"conf.d/{number:03}.conf", f"number = {number}\ntoken = {rng.randbytes(20).hex()}\n" * 20, 0o644)
    (directory / "empty directory").mkdir()
    (directory / "certs").chmod(0o750)
    (directory / "odd").chmod(0o1777)
    (directory / "current.yml").symlink_to("agentmem.yml")
    (directory / "certs" / "up.yml").symlink_to("../agentmem.yml")
    (directory / "dangling").symlink_to("not/there")
    (directory / "conf link").symlink_to("conf.d", target_is_directory=True)
    os.link(directory / "agentmem.yml", directory / "conf.d" / "hard link.yml")
    if os.geteuid() == 0:
        os.chown(directory / "bin" / "hook.sh", 65534, 65534)
        os.chown(directory / "current.yml", 65534, 65534, follow_symlinks=False)
    _attributes(directory)
    for number, path in enumerate(sorted(directory.rglob("*"), reverse=True)):
        stamp = 1_735_689_600 + number
        os.utime(path, (stamp, stamp), follow_symlinks=False)


def _attributes(directory: Path) -> None:
    """An extended attribute and access lists, where the file system has them."""
    with contextlib.suppress(OSError):
        os.setxattr(directory / "agentmem.yml", "user.note", "checked by Zoë".encode())
    for arguments in (("-m", "u:65534:r", "certs/server.key"), ("-d", "-m", "u:65534:rx", "certs/ca")):
        with contextlib.suppress(OSError):
            subprocess.run(["setfacl", *arguments], cwd=directory, check=False, capture_output=True)


def _pem(rng: random.Random, kind: str) -> str:
    body = base64.encodebytes(struct.pack(">I", 0x30820200) + rng.randbytes(500)).decode()
    return f"-----BEGIN {kind}-----\n{body}-----END {kind}-----\n"
