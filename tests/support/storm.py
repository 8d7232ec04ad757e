# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An application that never rests: it writes to all four stores and changes definitions while they are backed up or restored.

What it writes always adds up, seen at any one moment: `faults` says where it does not. Its workers take every error as an
application does: they connect anew and go on, for a restore ends their sessions.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import random
import threading
from collections.abc import Callable, Iterator

import httpx
import psycopg
import redis as redis_py

from tests.support.servers import Stores

ACCOUNTS = 200
PAIRS = 50
WORKERS = ("transfer", "reload", "define", "set_pairs", "expire", "upsert", "rewrite")
TABLES = f"""
CREATE TABLE accounts (id integer PRIMARY KEY, balance bigint NOT NULL);
INSERT INTO accounts SELECT i, 0 FROM generate_series(1, {ACCOUNTS}) i;
CREATE TABLE transfers (id bigserial PRIMARY KEY, of integer NOT NULL REFERENCES accounts, amount bigint NOT NULL);
CREATE TABLE reloaded (id integer PRIMARY KEY, generation bigint NOT NULL);
INSERT INTO reloaded SELECT i, 0 FROM generate_series(1, 500) i;
CREATE TABLE widened (id integer PRIMARY KEY, note text);
INSERT INTO widened SELECT i, 'note ' || i FROM generate_series(1, 500) i;
CREATE MATERIALIZED VIEW busy AS SELECT of, count(*) AS number FROM transfers GROUP BY of;
CREATE UNIQUE INDEX ON busy (of);
"""
TRANSFER = """
WITH one AS (UPDATE accounts SET balance = balance + %(amount)s WHERE id = %(to)s RETURNING id),
  other AS (UPDATE accounts SET balance = balance - %(amount)s WHERE id = %(from)s RETURNING id)
INSERT INTO transfers (of, amount) SELECT id, %(amount)s FROM one UNION ALL SELECT id, -%(amount)s FROM other
"""
DEFINITIONS = (
    ("ALTER TABLE widened ADD COLUMN more integer DEFAULT 7", "ALTER TABLE widened DROP COLUMN IF EXISTS more"),
    ("CREATE INDEX IF NOT EXISTS widened_notes ON widened (note)", "DROP INDEX IF EXISTS widened_notes"),
    ("CREATE OR REPLACE VIEW rich AS SELECT id FROM accounts WHERE balance > 100", "DROP VIEW IF EXISTS rich"),
    (
        "CREATE OR REPLACE FUNCTION worth(integer) RETURNS bigint LANGUAGE sql AS 'SELECT balance FROM accounts WHERE id = $1'",
        "DROP FUNCTION IF EXISTS worth(integer)",
    ),
    ("CREATE TABLE IF NOT EXISTS passing AS SELECT i FROM generate_series(1, 1000) i", "DROP TABLE IF EXISTS passing"),
    ("REFRESH MATERIALIZED VIEW CONCURRENTLY busy", "REFRESH MATERIALIZED VIEW busy"),
    ("ALTER TABLE widened ADD CONSTRAINT said CHECK (note <> '')", "ALTER TABLE widened DROP CONSTRAINT IF EXISTS said"),
    ("CREATE TYPE mood AS ENUM ('well')", "DROP TYPE IF EXISTS mood"),
    ("ALTER TABLE widened RENAME COLUMN note TO remark", "ALTER TABLE widened RENAME COLUMN remark TO note"),
    ("GRANT SELECT ON accounts TO PUBLIC", "REVOKE SELECT ON accounts FROM PUBLIC"),
)


class Storm:
    """As a context manager it prepares its data, blows until the end, and waits for its workers."""

    def __init__(self, stores: Stores, seed: int, pause_s: float = 0.2):
        """`pause_s` lies between two changes of a definition; everything else goes on without a pause."""
        self.stores = stores
        self.seed = seed
        self.pause_s = pause_s
        self.done: dict[str, int] = {}
        """How often each worker got its work done."""
        self.gate = stores.directory / "gate"
        """While there is a file `closed` in it, nothing is written; each worker that rests has a file `resting-NAME` there."""
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Storm:
        with self.stores.postgres.connect_application() as connection:
            connection.execute(TABLES)
        self.gate.mkdir()
        for name in WORKERS:
            worker = threading.Thread(target=self._work, args=(name,), name=name, daemon=True)
            self._threads.append(worker)
            worker.start()
        return self

    def __exit__(self, *__: object) -> None:
        self._over.set()
        for worker in self._threads:
            worker.join()

    def _work(self, name: str) -> None:
        work: Callable[[random.Random], Iterator[None]] = getattr(self, f"_{name}")
        chance = random.Random(f"{self.seed} {name}")
        self.done[name] = 0
        while not self._over.is_set():
            with contextlib.suppress(psycopg.Error, redis_py.RedisError, httpx.HTTPError, OSError):
                for __ in work(chance):
                    self.done[name] += 1
                    self._rest(name)
                    if self._over.is_set():
                        return
            self._over.wait(0.05)

    def _rest(self, name: str) -> None:
        resting = self.gate / f"resting-{name}"
        while (self.gate / "closed").exists() and not self._over.is_set():
            resting.touch()
            self._over.wait(0.05)
        resting.unlink(missing_ok=True)

    def _transfer(self, chance: random.Random) -> Iterator[None]:
        with self.stores.postgres.connect_application() as connection:
            while True:
                one, other = sorted(chance.sample(range(1, ACCOUNTS + 1), 2))
                connection.execute(TRANSFER, {"amount": chance.randrange(-100, 100), "to": one, "from": other})
                yield

    def _reload(self, chance: random.Random) -> Iterator[None]:
        with self.stores.postgres.connect_application() as connection:
            for generation in itertools.count(1):
                with connection.transaction():
                    connection.execute("TRUNCATE reloaded" if chance.random() < 0.5 else "DELETE FROM reloaded")
                    connection.execute("INSERT INTO reloaded SELECT i, %s FROM generate_series(1, 500) i", [generation])
                self._over.wait(self.pause_s)
                yield

    def _define(self, chance: random.Random) -> Iterator[None]:
        with self.stores.postgres.connect_application() as connection:
            while True:
                with contextlib.suppress(psycopg.errors.ProgrammingError):  # what it makes is there, or what it takes is not
                    connection.execute(chance.choice(chance.choice(DEFINITIONS)))
                self._over.wait(self.pause_s)
                yield

    def _set_pairs(self, chance: random.Random) -> Iterator[None]:
        with self.stores.redis.client(db=3) as client:
            for number in itertools.count():
                pair, value = chance.randrange(PAIRS), f"{number} {'x' * chance.randrange(200)}"
                with client.pipeline(transaction=True) as pipe:
                    pipe.set(f"pair:{pair}:left", value)
                    pipe.set(f"pair:{pair}:right", value)
                    pipe.rpush("numbers", number).ltrim("numbers", -100, -1)
                    pipe.execute()
                yield

    def _expire(self, chance: random.Random) -> Iterator[None]:
        with self.stores.redis.client(db=3) as client:
            for number in itertools.count():
                client.set(f"passing:{number}", "x", px=chance.randrange(1, 300))
                yield

    def _upsert(self, chance: random.Random) -> Iterator[None]:
        with self.stores.qdrant.client() as client:
            collection = "/collections/storm"
            if client.get(collection).status_code == 404:
                client.put(collection, json={"vectors": {"size": 8, "distance": "Dot"}}).raise_for_status()
            for number in itertools.count():
                first = chance.randrange(1000)
                points = [
                    {"id": first + i, "vector": [chance.random() for __ in range(8)], "payload": {"number": number}}
                    for i in range(20)
                ]
                client.put(f"{collection}/points?wait=true", json={"points": points}).raise_for_status()
                if chance.random() < 0.2:
                    gone = {"points": [chance.randrange(1000) for __ in range(10)]}
                    client.post(f"{collection}/points/delete?wait=true", json=gone).raise_for_status()
                yield

    def _rewrite(self, chance: random.Random) -> Iterator[None]:
        while True:
            content = chance.randbytes(chance.randrange(10_000, 12_000))
            whole = content + hashlib.sha256(content).digest()
            target = self.stores.config_dir / f"storm-{chance.randrange(5)}"
            target.with_suffix(".new").write_bytes(whole)
            target.with_suffix(".new").replace(target)
            self._over.wait(self.pause_s / 4)
            yield


def faults(stores: Stores) -> list[str]:
    """Where what the storm wrote does not add up."""
    found = []
    with stores.postgres.connect_application() as connection:

        def one(question: str) -> tuple[int, ...]:
            return connection.execute(question).fetchone() or ()

        if (sums := one("SELECT sum(balance), count(*) FROM accounts")) != (0, ACCOUNTS):
            found.append(f"the accounts hold {sums}")
        wrong = (
            "SELECT count(*) FROM accounts a WHERE balance <> (SELECT coalesce(sum(amount), 0) FROM transfers WHERE of = a.id)"
        )
        if (count := one(wrong)) != (0,):
            found.append(f"{count[0]} accounts are not what their transfers add up to")
        if (loaded := one("SELECT count(*), count(DISTINCT generation) FROM reloaded")) != (500, 1):
            found.append(f"the table that is reloaded as a whole holds {loaded}")
        if (rows := one("SELECT count(*) FROM widened")) != (500,):
            found.append(f"the table whose columns change holds {rows}")
    with stores.redis.client(db=3) as client:
        if not any(client.exists(f"pair:{pair}:left") for pair in range(PAIRS)):
            found.append("no pair is there")
        for pair in range(PAIRS):
            left, right = client.mget(f"pair:{pair}:left", f"pair:{pair}:right")
            if left != right:
                found.append(f"pair {pair} holds {left!r} and {right!r}")
    if not (paths := list(stores.config_dir.glob("storm-?"))):
        found.append("none of the files is there")
    for path in paths:
        content = path.read_bytes()
        if hashlib.sha256(content[:-32]).digest() != content[-32:]:
            found.append(f"{path.name} is not whole")
    return found
