# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Redis backed up and brought back, on real servers, judged by the independent comparer."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import struct
import subprocess
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py
from agentmem_backup import process
from agentmem_backup.components import redis as component_module
from agentmem_backup.components.base import CONTENT, COUNTS, RestoreOptions, Source
from agentmem_backup.components.redis import RedisRestoration
from agentmem_backup.errors import BackupError, Cancelled, UsageError, VerificationError
from agentmem_backup.pipeline import Writer

from tests.support.compare import Facts, capture_redis, fact_differences
from tests.support.data import fill_redis
from tests.support.redisstore import AT_ONCE, Bench, left_in
from tests.support.servers import Redis, free_port, redis_quoted, throwaway_directory

SECRET = "pass word'\"$\\é€"


def masterauth(client: redis_py.Redis) -> bytes:
    found = client.execute_command("CONFIG", "GET", "masterauth")
    return next(value for value in (found.values() if isinstance(found, dict) else found[1::2]))


def destroy(server: Redis) -> None:
    with server.client() as client:
        client.flushall()
        client.function_flush()
        client.set("what came later", "is not in the backup")


def differences(before: Facts, server: Redis) -> list[str]:
    return list(fact_differences(before, capture_redis(server)))


# ---------------------------------------------------------------------------------------------------------- end to end


@pytest.mark.parametrize("appendonly", [False, True], ids=["rdb", "aof"])
@pytest.mark.parametrize("level", [COUNTS, CONTENT])
@pytest.mark.parametrize(
    ("method", "restore_method"), [("copy", "replicate"), ("stream", "keys"), ("stream", "replicate"), ("copy", "keys")]
)
def test_dump_destroy_restore_equal(
    serve: Any, bench: Any, appendonly: bool, level: str, method: str, restore_method: str
) -> None:
    server = serve(appendonly=appendonly)
    fill_redis(server)
    before = capture_redis(server)
    place = bench(server, method=method, restore_method=restore_method)
    source = place.dump(level)
    assert source.entry is not None and source.entry["method"].startswith("BGSAVE" if method == "copy" else "replication")
    assert source.entry["server"] == {"name": "redis", "version": "7.0.15"} or source.entry["server"]["version"]
    assert place.faults(source) == []
    destroy(server)
    assert differences(before, server) != []
    place.restore(source)
    assert differences(before, server) == []
    server.kill()  # what was restored must lie on the disk
    server.start()
    assert differences(before, server) == []
    with server.client() as client:
        assert client.fcall("recall", 1, "string:int") == b"1234567"


@pytest.mark.parametrize("appendonly", [False, True], ids=["rdb", "aof"])
def test_restore_as_files_of_a_stopped_server(serve: Any, bench: Any, appendonly: bool) -> None:
    server = serve(appendonly=appendonly)
    fill_redis(server)
    before = capture_redis(server)
    place = bench(server, data_dir=str(server.dir))
    source = place.dump()
    destroy(server)
    later = capture_redis(server)
    server.stop()
    restoration = place.restore(source)
    match = re.search(r"the old ones lie in (\S+)", restoration.state())
    assert match is not None
    aside = Path(match[1])
    assert {one.name for one in aside.iterdir()} >= ({"appendonlydir"} if appendonly else {"dump.rdb"})
    for path in server.dir.rglob("*"):
        assert path.stat().st_uid == server.dir.stat().st_uid, path
        assert aside in path.parents or not path.is_file() or path.stat().st_mode & 0o077 == 0, path
    server.start()
    assert differences(before, server) == []
    server.kill()
    server.start()
    assert differences(before, server) == []
    assert later != before


def test_the_files_of_a_server_that_runs_elsewhere_are_left_alone(serve: Any, bench: Any) -> None:
    """A wrong port must not take a running server for a stopped one: it would write its own data over the restored files."""
    server = serve()
    fill_redis(server)
    place = bench(server, data_dir=str(server.dir))
    source = place.dump()
    place.settings.redis.port = free_port()
    [problem] = place.component.plan_restore(source, RestoreOptions()).problems
    assert f"does not answer, but a server (process {server.pid}) works in {server.dir}" in problem
    assert "correct REDIS_HOST and REDIS_PORT, or stop it" in problem
    server.stop()
    assert place.component.plan_restore(source, RestoreOptions()).problems == []


def test_appendonly_is_read_in_the_servers_configuration(
    serve: Any, bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """field notes: with `appendonly yes`, Redis 7 that finds only a dump.rdb starts empty."""
    server = serve(appendonly=True)
    fill_redis(server)
    before = capture_redis(server)
    place = bench(server, data_dir=str(server.dir))
    source = place.dump()
    server.stop()
    for path in server.dir.rglob("*.*"):
        path.unlink()
    (server.dir / "appendonlydir").rmdir()
    config = tmp_path / "redis.conf"
    config.write_text(f'# Redis\ndir "{server.dir}"\nappendonly yes\ndbfilename dump.rdb\n')
    monkeypatch.setattr(component_module, "CONFIGURATIONS", [tmp_path / "none", config])
    plan = place.component.plan_restore(source, RestoreOptions())
    assert plan.problems == [] and plan.warnings == [] and "appendonly is yes" in plan.lines[-1]
    place.restore(source)
    server.start()
    assert differences(before, server) == []


def test_the_plan_warns_where_appendonly_is_not_known(serve: Any, bench: Any) -> None:
    server = serve()
    place = bench(server, data_dir=str(server.dir))
    source = place.dump()
    server.stop()
    plan = place.component.plan_restore(source, RestoreOptions())
    assert plan.problems == [] and "would start empty" in plan.warnings[0]


def test_a_single_value_or_expiry_changed_is_found_by_the_content_level(serve: Any, bench: Any) -> None:
    server = serve()
    fill_redis(server)
    place = bench(server)
    source = place.dump(CONTENT)
    destroy(server)
    restoration = place.component.restoration(source, RestoreOptions())
    try:
        restoration.prepare()
        restoration.commit()
        changes: list[Callable[[Any], Any]] = [
            lambda client: client.set("string:short", "embstR"),
            lambda client: client.pexpireat("string:expiring", client.pexpiretime("string:expiring") + 1),
            lambda client: client.hset("hash:large", "field 699", "other"),
            lambda client: client.zadd("zset:large", {"member 499": 7.5}),
            lambda client: client.lset("list:large", 499, "other"),
            lambda client: (client.srem("set:large", "member 999"), client.sadd("set:large", "member 1000")),
            lambda client: client.xack("stream:events", "workers", "2-0"),
            lambda client: client.xgroup_setid("stream:events", "idle group", "5-0"),
            lambda client: client.setrange("string:long", 6000, "X"),
            lambda client: client.function_load(server_library("changed"), replace=True),
        ]
        with server.client() as client:
            assert restoration.compare().equal
            for change in changes:
                change(client)
                compared = restoration.compare()
                assert len(compared.differences) >= 1 and not compared.equal
                restoration.commit()
                assert restoration.compare().equal
    finally:
        restoration.close()


def server_library(word: str) -> str:
    return f"#!lua name=agentmem\nredis.register_function('remember', function(keys, args) return '{word}' end)\n"


def test_counts_see_a_missing_key_and_a_lost_expiry(serve: Any, bench: Any) -> None:
    server = serve()
    fill_redis(server)
    place = bench(server)
    source = place.dump()
    restoration = place.component.restoration(source, RestoreOptions())
    try:
        restoration.prepare()
        restoration.commit()
        with server.client(1) as client:
            client.delete("cache:1:0")
            client.persist("cache:1:1")
        said = restoration.compare().differences
        assert said == [
            "database 1: 50 keys of type string in the backup, 49 here",
            "database 1: 25 expiring keys of type string in the backup, 24 here",
        ]
        with server.client() as client:
            client.function_flush()
        assert any("1 function libraries in the backup, 0 here" in one for one in restoration.compare().differences)
    finally:
        restoration.close()


def test_every_type_is_counted_as_the_server_counts_it(serve: Any, bench: Any) -> None:
    server = serve()
    fill_redis(server)
    source = bench(server).dump()
    facts = capture_redis(server)
    assert source.entry is not None
    counted = source.entry["fingerprint"]["databases"]
    for number in (0, 1, 5):
        keys = [one for name, one in facts.items() if name.endswith(f" of database {number}")]
        assert counted[str(number)]["types"] == dict(Counter(one["type"] for one in keys))
        assert counted[str(number)]["expiring"] == dict(Counter(one["type"] for one in keys if one["expiry"] > 0))


def test_an_empty_server_is_backed_up_and_restored(serve: Any, bench: Any) -> None:
    server = serve()
    place = bench(server)
    source = place.dump(CONTENT)
    destroy(server)
    place.restore(source)
    assert capture_redis(server) == {}


@pytest.mark.parametrize("level", [COUNTS, CONTENT])
def test_keys_that_expire_between_cut_and_comparison_are_no_difference(serve: Any, bench: Any, level: str) -> None:
    """field notes: expired keys are dropped at load."""
    server = serve()
    place = bench(server)
    with server.client() as client:
        client.set("stays", "here")
        client.set("later", "x", ex=3000)
        client.set("soon", "gone", px=1500)
        source = place.dump(level)
        while client.exists("soon"):
            time.sleep(0.02)
        client.flushall()
    assert source.entry is not None and source.entry["fingerprint"]["databases"]["0"]["keys"] == 3
    restoration = place.component.restoration(source, RestoreOptions())
    try:
        restoration.prepare()
        assert restoration.check().equal
        restoration.commit()
        assert restoration.compare().equal
        with server.client() as client:
            client.set("later", "y" if level == CONTENT else "x", keepttl=level == CONTENT)
        changed = restoration.compare()
        assert changed.differences, "a key beside one that has expired is still compared"
    finally:
        restoration.close()


# ------------------------------------------------------------------------------------------------------------- the cut


def test_a_slow_save_never_gives_the_stale_file(serve: Any, bench: Any) -> None:
    """field notes: a save that takes longer than a fixed sleep gives yesterday's file."""
    server = serve()
    with server.client() as client:
        client.set("yesterday", "1")
        client.save()
        client.mset({f"key {n}": n for n in range(300)})
        client.config_set("rdb-key-save-delay", 2000)
    place = bench(server, method="copy")
    source = place.dump()
    assert source.entry is not None and source.entry["fingerprint"]["databases"]["0"]["keys"] == 301


def test_a_save_that_was_under_way_is_not_taken_for_ours(serve: Any, bench: Any) -> None:
    server = serve()
    with server.client() as client:
        client.mset({f"key {n}": n for n in range(300)})
        client.config_set("rdb-key-save-delay", 2000)
        client.bgsave()
        client.set("written after that save began", "1")
        assert client.info("persistence")["rdb_bgsave_in_progress"] == 1
    place = bench(server, method="copy")
    source = place.dump()
    assert source.entry is not None and source.entry["fingerprint"]["databases"]["0"]["keys"] == 301
    assert any("saving already" in one for one in place.told.steps)


def test_the_cut_is_made_when_all_stores_are_ready(serve: Any, bench: Any) -> None:
    server = serve()
    place = bench(server, method="copy")

    def ready() -> None:
        with server.client() as client:
            client.set("written before the others were ready", "1")

    source = place.dump(ready=ready)
    assert source.entry is not None and source.entry["fingerprint"]["databases"]["0"]["keys"] == 1


def test_a_failed_save_is_said(serve: Any, bench: Any) -> None:
    server = serve()
    place = bench(server, method="copy")
    with server.client() as client:
        client.set("a", "1")
        client.config_set("rdb-key-save-delay", 300_000)
        cut = place.component.open_cut(lambda: None, COUNTS)
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
        os.kill(int(children[0]), 9)
    out = Writer(place.directory / "x.rdb")
    try:
        with pytest.raises(BackupError, match=r"BGSAVE of Redis at .* failed"):
            cut.dump(out)
    finally:
        out.abandon()
        cut.close()
    assert any("last BGSAVE" in one for one in place.component.probe().warnings)


def test_a_file_replaced_while_it_is_copied_is_still_copied_whole(serve: Any, bench: Any) -> None:
    server = serve()
    with server.client() as client:
        for number in range(40):
            client.set(f"key {number}", os.urandom(100_000))
    place = bench(server, method="copy")

    class Meddling(Writer):
        replaced = False

        def write(self, data: Any) -> int:
            if not self.replaced:
                self.replaced = True
                with server.client() as client:
                    client.flushall()
                    client.set("written after the cut", "1")
                    client.save()
            return super().write(data)

    cut = place.component.open_cut(lambda: None, COUNTS)
    out = Meddling(place.directory / "x.rdb")
    try:
        cut.dump(out)
        out.close()
        assert out.replaced
        assert cut.entry()["fingerprint"]["databases"]["0"]["keys"] == 40
    finally:
        cut.close()
        out.abandon()


@pytest.mark.parametrize("method", ["copy", "auto"])
def test_a_file_that_is_not_the_servers_is_never_taken(serve: Any, bench: Any, tmp_path: Path, method: str) -> None:
    server, other = serve(), serve()
    for one, name in ((server, "right"), (other, "wrong")):
        with one.client() as client:
            client.set(name, "1")
            client.save()
    place = bench(server, method=method, data_dir=str(other.dir))
    if method == "copy":
        with pytest.raises(BackupError, match="did not change with the save: data_dir must be"):
            place.dump()
        return
    source = place.dump()
    assert source.entry is not None and source.entry["method"].startswith("replication stream")
    assert any("did not change" in one for one in source.entry["warnings"])
    place.restore(source)
    assert list(capture_redis(server)) == ["key b'right' of database 0"]


def test_without_file_access_the_stream_is_chosen_and_said(serve: Any, bench: Any, tmp_path: Path) -> None:
    server = serve()
    place = bench(server, data_dir=str(tmp_path / "not here"))
    assert place.component.probe().facts["method"].startswith("stream, because the directory")
    place.settings.redis.method = "copy"
    (problem,) = place.component.probe().problems
    assert "cannot be backed up by copy" in problem


def test_nothing_of_the_streams_end_mark_stays_in_the_file(serve: Any, bench: Any) -> None:
    """field notes: redis-cli --rdb - leaves the 40-byte EOF mark at the end of the data."""
    server = serve()
    fill_redis(server)
    place = bench(server, method="stream")
    source = place.dump()
    assert place.faults(source) == []
    stored = source.path.read_bytes()
    (place.directory / "tail.rdb").write_bytes(stored + os.urandom(40))
    (fault,) = place.faults(Source(place.directory / "tail.rdb", "none"))
    assert "something follows its end: 40 bytes" in fault


def test_patterns_make_a_set_that_says_so(serve: Any, bench: Any) -> None:
    server = serve()
    fill_redis(server)
    place = bench(server, include_keys=["session:*", "cache:*"], exclude_keys=["cache:5:*"])
    source = place.dump(CONTENT)
    assert source.entry is not None
    assert source.entry["filters"] == {"include": ["session:*", "cache:*"], "exclude": ["cache:5:*"]}
    assert any("left out" in one for one in source.entry["warnings"])
    before = capture_redis(server)
    place.restore(source)
    left = {name for name in capture_redis(server) if name.startswith("key ")}
    wanted = {name for name in before if re.match(r"key b'(session:|cache:(?!5:))", name)}
    assert left == wanted
    assert place.faults(source) == []
    with place.component.restoration(source, RestoreOptions())._live(0) as client:  # the live server lost nothing by the filter
        assert client.ping()


def test_extract_writes_matching_keys_only(serve: Any, bench: Any, tmp_path: Path) -> None:
    import json

    server = serve()
    fill_redis(server)
    place = bench(server)
    source = place.dump()
    server.stop()  # no store is needed
    target = tmp_path / "keys.jsonl"
    said = place.component.extract(source, "string:*", target, "")
    lines = {one["key"]: one for one in map(json.loads, target.read_text().splitlines())}
    assert f"{len(lines)} keys" in said and stat.S_IMODE(target.stat().st_mode) == 0o600
    assert lines["string:int"] == {"db": 0, "key": "string:int", "type": "string", "value": "1234567"}
    assert lines["string:expiring"]["expires_ms"] > 0
    with pytest.raises(UsageError, match="exists already"):
        place.component.extract(source, "string:*", target, "")
    with pytest.raises(UsageError, match="jsonl"):
        place.component.extract(source, "string:*", tmp_path / "x", "csv")
    with pytest.raises(BackupError, match=r"no key in .* matches 'nothing:\*'"):
        place.component.extract(source, "nothing:*", tmp_path / "y", "")
    assert not (tmp_path / "y").exists()
    place.component.extract(source, "*", tmp_path / "all", "jsonl")
    binary = [json.loads(line) for line in (tmp_path / "all").read_text().splitlines() if "base64" in line]
    assert binary and left_in(place.component.context.workdir) == []


# --------------------------------------------------------------------------------------------------------- bad input


def small(serve: Any, bench: Any) -> tuple[Bench, Source]:
    server = serve()
    with server.client() as client:
        client.set("a", "1")
        client.hset("h", "f", "v" * 30)
        client.set("e", "x", ex=1000)
        client.function_load(server_library("x"))
    place = bench(server)
    return place, place.dump()


def test_every_cut_and_every_turned_bit_of_a_file_is_found(serve: Any, bench: Any) -> None:
    place, source = small(serve, bench)
    whole = source.path.read_bytes()
    assert place.component.examine(source, iter([whole])).faults == []
    for end in range(len(whole)):
        assert place.component.examine(source, iter([whole[:end]])).faults, f"cut after {end} bytes"
    for position in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            assert place.component.examine(Source(source.path, "none"), iter([bytes(damaged)])).faults, f"bit {bit} of {position}"


def test_a_file_of_another_set_is_found_by_its_counts(serve: Any, bench: Any) -> None:
    place, source = small(serve, bench)
    with place.server.client() as client:
        client.set("one more", "1")
    other = place.dump()
    swapped = Source(other.path, "none", source.entry)
    (fault,) = place.faults(swapped)
    assert "holds 4 keys" in fault and "manifest says 3 keys" in fault


def test_a_damaged_file_is_never_loaded(serve: Any, bench: Any) -> None:
    """field notes: our digest and walk before anything loads a file."""
    place, source = small(serve, bench)
    damaged = bytearray(source.path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path = place.directory / "damaged.rdb"
    path.write_bytes(damaged)
    plan = place.component.plan_restore(Source(path, "none"), RestoreOptions())
    assert len(plan.problems) == 1 and "is damaged" in plan.problems[0]
    with pytest.raises(VerificationError, match="is damaged"):
        place.component.restoration(Source(path, "none"), RestoreOptions()).prepare()


def test_wrong_password_and_server_down_are_one_sentence_each(serve: Any, bench: Any) -> None:
    server = serve()
    for password in ("wrong one", ""):
        place = bench(server, password=password)
        (problem,) = place.component.probe().problems
        assert "refuses the login" in problem and "REDIS_PASSWORD" in problem and "wrong one" not in problem
        with pytest.raises(BackupError, match="refuses the login"):
            place.component.open_cut(lambda: None, COUNTS)
    place = bench(server)
    source = place.dump()
    server.stop()
    (problem,) = place.component.probe().problems
    assert "does not answer" in problem and "REDIS_HOST" in problem
    (problem,) = place.component.plan_restore(source, RestoreOptions()).problems
    assert "does not answer" in problem and "REDIS_DATA_DIR" in problem


@pytest.mark.parametrize("rights", ["+@all -sync", "+ping +info +config +time +psync +replconf +bgsave"])
def test_a_user_without_sync_is_told_before_the_run(serve: Any, bench: Any, tmp_path: Path, rights: str) -> None:
    """field notes: the documented replica ACL +psync gives NOPERM."""
    server = serve(acl=[f"user backup on >secret ~* &* {rights}"])
    place = bench(server, username="backup", password="secret", data_dir=str(tmp_path / "none"))
    (problem,) = place.component.probe().problems
    assert "may not SYNC" in problem and "+sync" in problem
    with pytest.raises(BackupError, match=r"may not SYNC: give it \+sync"):
        place.dump()
    with server.client() as client:
        client.acl_setuser("backup", enabled=True, commands=["+sync"])
    assert place.component.probe().problems == []
    assert place.faults(place.dump()) == []


def test_a_user_without_bgsave_is_backed_up_by_the_stream(serve: Any, bench: Any) -> None:
    server = serve(acl=["user backup on >secret ~* &* +@all -bgsave"])
    place = bench(server, username="backup", password="secret")
    probe = place.component.probe()
    assert probe.problems == [] and probe.facts["method"].startswith("stream, because")
    assert place.faults(place.dump()) == []


@pytest.mark.parametrize("field", ["redis_mode", "server_mode"])
def test_a_cluster_node_is_refused_in_words(serve: Any, bench: Any, monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    """Each would give only its part, and that as a success. Valkey calls the field server_mode (9.1, as it answered)."""
    source = bench(serve()).dump()
    asked = component_module._info

    def info(client: redis_py.Redis, section: str) -> dict[str, Any]:
        said = asked(client, section)
        mode = {said.pop(name) for name in ("redis_mode", "server_mode") if name in said}
        return {**said, field: mode.pop()} if mode else said

    monkeypatch.setattr(component_module, "_info", info)
    node = bench(serve(extra=("cluster-enabled yes",)))
    (problem,) = node.component.probe().problems
    assert "Redis Cluster, which is not supported" in problem
    (problem,) = node.component.plan_restore(source, RestoreOptions()).problems
    assert "is a node of a Redis Cluster, which cannot be restored into" in problem


def test_missing_redis_cli_and_server_are_named_together(serve: Any, bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve()
    place = bench(server, method="stream", include_keys=["a*"])
    monkeypatch.setenv("PATH", "/nonexistent")
    problems = place.component.probe().problems
    assert [one for one in problems if "redis-cli is not installed" in one]
    assert [one for one in problems if "redis-server is not installed" in one]


def test_without_redis_server_the_content_is_said_to_be_not_compared(
    serve: Any, bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve()
    place = bench(server)
    place.settings.fingerprint = CONTENT
    monkeypatch.setattr(component_module, "_server_program", missing_program)
    assert any("values will not be compared" in one for one in place.component.probe().warnings)
    source = place.dump(CONTENT)
    monkeypatch.undo()
    restoration = place.component.restoration(source, RestoreOptions())
    try:
        restoration.prepare()
        assert any("no throwaway server" in one for one in restoration.check().not_compared)
    finally:
        restoration.close()


def missing_program() -> str:
    raise BackupError("the program redis-server is not installed: install it")


# ------------------------------------------------------------------------------------------------ restores that must not


def test_over_maxmemory_is_refused_unless_accepted(serve: Any, bench: Any) -> None:
    """field notes: loading ignores maxmemory, and the first writes afterwards evict."""
    server = serve()
    fill_redis(server)
    before = capture_redis(server)
    place = bench(server)
    source = place.dump()
    with server.client() as client:
        client.config_set("maxmemory", 1_100_000)
    (problem,) = place.component.plan_restore(source, RestoreOptions()).problems
    assert "maxmemory" in problem and "1100000" in problem
    with pytest.raises(BackupError, match="maxmemory"):
        place.component.restoration(source, RestoreOptions()).prepare()
    destroy_first = capture_redis(server)
    assert destroy_first == before
    plan = place.component.plan_restore(source, RestoreOptions(accept=frozenset({"maxmemory"})))
    assert plan.problems == [] and "maxmemory" in plan.warnings[0]


@pytest.mark.parametrize("user", ["", "replica"])
def test_masterauth_of_the_target_is_kept(serve: Any, bench: Any, user: str) -> None:
    """field notes: REPLICAOF with masterauth set and no password on the seed is down for ever."""
    extra = [*AT_ONCE, f"masterauth {redis_quoted(SECRET)}", *([f"masteruser {user}"] if user else [])]
    server = serve(extra=extra)
    fill_redis(server)
    before = capture_redis(server)
    place = bench(server, restore_method="replicate")
    source = place.dump()
    destroy(server)
    place.restore(source)
    assert differences(before, server) == []
    with server.client() as client:
        assert masterauth(client) == SECRET.encode()
        assert client.info("replication")["role"] == "master"


def test_a_masterauth_that_was_not_there_is_gone_again(serve: Any, bench: Any) -> None:
    server = serve()
    place = bench(server, restore_method="replicate")
    place.restore(place.dump())
    with server.client() as client:
        assert masterauth(client) == b""


def test_where_replicaof_is_refused_the_keys_go_one_by_one(serve: Any, bench: Any) -> None:
    server = serve(acl=["user app on >secret ~* &* +@all -replicaof"])
    fill_redis(server)
    before = capture_redis(server)
    place = bench(server, username="app", password="secret")
    source = place.dump()
    destroy(server)
    plan = place.component.plan_restore(source, RestoreOptions())
    assert "key by key" in plan.lines[0] and "REPLICAOF is refused" in plan.lines[0]
    place.restore(source)
    assert differences(before, server) == []
    place.settings.redis.restore_method = "replicate"
    assert "REPLICAOF is refused" in place.component.plan_restore(source, RestoreOptions()).problems[0]


def test_values_of_any_size_pass_through_the_same_little_memory(serve: Any, bench: Any) -> None:
    """Long lists of long messages, as sessions are: never all values of a page of keys at once, nor a thousand elements."""
    server = serve()
    with server.client() as client:
        for number in range(60):
            message = f"{number:04}".encode() * 500
            client.rpush(f"session:{number}", *[message] * 500)
            client.hset(f"agent:{number}", mapping={f"field {one}": message for one in range(100)})
        client.set("one that is long", b"x" * (6 << 20))
        assert client.info("memory")["used_memory"] > 70 << 20
    before = capture_redis(server)
    place = bench(server, restore_method="keys")
    tracemalloc.start()
    try:
        source = place.dump(CONTENT)
        destroy(server)
        place.restore(source)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert differences(before, server) == []
    assert peak < 32 << 20


def test_a_run_that_is_stopped_does_not_read_all_values_first(serve: Any, bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve()
    with server.client() as client:
        client.mset({f"key {number}": number for number in range(5000)})
    place = bench(server)
    pages = []
    read_page = component_module._Reader._page

    def page(reader: Any, client: Any, database: int, keys: list[bytes], held: Any) -> None:
        read_page(reader, client, database, keys, held)
        pages.append(keys)
        process.stop_all()

    monkeypatch.setattr(component_module._Reader, "_page", page)
    try:
        with pytest.raises(Cancelled):
            place.dump(CONTENT)
    finally:
        process.resume()
    assert len(pages) == 1


@pytest.mark.parametrize("lines", [["CONFIG", "FLUSHALL", "FLUSHDB"], ["REPLICAOF", "FLUSHALL"]])
def test_a_server_without_flushall_is_emptied_key_by_key(serve: Any, bench: Any, lines: list[str]) -> None:
    """As hardened servers have it in redis.conf."""
    server = serve(extra=(*AT_ONCE, *(f'rename-command {one} ""' for one in lines)))
    fill_redis(server)
    before = capture_redis(server)
    place = bench(server)
    source = place.dump()
    with server.client() as client, server.client(7) as other:
        client.delete("string:short", "hash:large")
        client.function_load(server_library("later").replace("agentmem", "later").replace("remember", "later"))
        client.set("what came later", "is not in the backup")
        other.set("nor", "this")
    place.restore(source)
    assert differences(before, server) == []


def test_a_managed_server_that_refuses_everything_special_is_restored_by_keys(serve: Any, bench: Any, tmp_path: Path) -> None:
    server = serve(acl=["user app on >secret ~* &* +@all -replicaof -sync -psync -bgsave -config -eval"])
    fill_redis(server)
    before = capture_redis(server)
    source = bench(server).dump()
    destroy(server)
    old = capture_redis(server)
    place = bench(server, username="app", password="secret")
    restoration = place.restore(source)
    assert differences(before, server) == []
    assert any("safety copy is made key by key" in one for one in place.told.warnings)
    safety = Source(safety_copy(restoration), "none")
    place.restore(safety)
    assert differences(old, server) == []


def safety_copy(restoration: RedisRestoration) -> Path:
    match = re.search(r"its old data (?:also )?lies in (\S+)", restoration.state())
    assert match is not None, restoration.state()
    path = Path(match[1])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    return path


def commands_used(server: Redis) -> list[str]:
    """What was run since `CONFIG RESETSTAT`, but for what every connection begins with, as ACL SETUSER takes it."""
    with server.client() as client:
        return sorted(name[8:] for name in client.info("commandstats") if name[8:] not in ("auth", "config|resetstat", "hello"))


@pytest.mark.parametrize("level", [COUNTS, CONTENT])
@pytest.mark.parametrize("restore_method", ["auto", "keys"])
def test_a_right_that_is_missing_is_told_by_the_plan_or_not_needed(
    serve: Any, bench: Any, restore_method: str, level: str
) -> None:
    """Each command that a backup or a restore uses is taken from the user in turn."""
    server = serve(acl=["user app on >secret ~* &* +@all"])
    fill_redis(server)
    place = bench(server, username="app", password="secret", restore_method=restore_method)
    with server.client() as client:
        client.config_resetstat()
        source = place.dump(level)
        for_dump = commands_used(server)
        client.config_resetstat()
        place.restore(source)
        for_restore = commands_used(server)
        told = set()
        for command in for_restore:
            client.execute_command("ACL", "SETUSER", "app", "+@all", f"-{command}")
            if place.component.plan_restore(source, RestoreOptions()).problems:
                told.add(command)
            else:
                place.restore(source)
        assert {"scan", "type", "time", "info", "select"} < told and "eval" not in told
        assert told >= ({"hscan", "xpending", "xinfo|stream", "getrange"} if level == CONTENT else set())
        assert ("restore" in told) == (restore_method == "keys")
        for command in for_dump:
            client.execute_command("ACL", "SETUSER", "app", "+@all", f"-{command}")
            if not place.component.probe().problems:
                place.dump(level)


def test_a_target_that_cannot_reach_the_seed_gets_the_keys(serve: Any, bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve()
    fill_redis(server)
    before = capture_redis(server)
    place = bench(server)
    source = place.dump()
    destroy(server)
    monkeypatch.setattr(component_module, "_LINK_S", 0.5)
    load = RedisRestoration._load

    def unreachable(self: RedisRestoration, one: Source) -> Any:
        seed = load(self, one)
        seed.port = component_module._free_port("127.0.0.1")
        return seed

    monkeypatch.setattr(RedisRestoration, "_load", unreachable)
    place.restore(source)
    assert any("one by one instead" in one for one in place.told.warnings)
    assert differences(before, server) == []
    place.settings.redis.restore_method = "replicate"
    old = capture_redis(server)
    restoration = place.component.restoration(source, RestoreOptions())
    try:
        restoration.prepare()
        with pytest.raises(BackupError, match="could not reach the throwaway server"):
            restoration.commit()
        restoration.abort()
        assert "holds its old data" in restoration.state()
    finally:
        restoration.close()
    assert differences(old, server) == []
    with server.client() as client:
        assert client.info("replication")["role"] == "master"
        assert masterauth(client) == b""


def test_a_replica_and_a_server_with_fewer_databases_are_refused(serve: Any, bench: Any) -> None:
    server, few = serve(), serve(databases=4)
    fill_redis(server)
    source = bench(server).dump()
    (problem,) = bench(few).component.plan_restore(source, RestoreOptions()).problems
    assert "uses database 5" in problem and "raise `databases`" in problem
    replica = serve()
    with replica.client() as client:
        client.config_set("masterauth", server.password)
        client.replicaof(server.host, server.port)
    (problem,) = bench(replica).component.plan_restore(source, RestoreOptions()).problems
    assert f"is a replica of {server.host}:{server.port}" in problem


def test_a_dump_of_a_newer_server_is_refused(serve: Any, bench: Any) -> None:
    from agentmem_backup.formats import rdb

    server = serve()
    place = bench(server)
    body = b"VALKEY081\xfe\x00\x00\x01k\x01v\xff"
    crc = rdb.new_crc()
    crc.update(body)
    path = place.directory / "newer.rdb"
    path.write_bytes(body + struct.pack("<Q", crc.value()))
    assert place.faults(Source(path, "none")) == []
    problems = place.component.plan_restore(Source(path, "none"), RestoreOptions()).problems
    assert "has the format 81" in problems[0] and "update the server" in problems[0]


def test_a_throwaway_server_newer_than_the_target_is_refused(serve: Any, bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """field notes: a seed newer than the target is a trap of REPLICAOF."""
    place = bench(serve())
    source = place.dump()
    monkeypatch.setattr(component_module, "_program_version", lambda program: ("redis", "99.0.0"))
    monkeypatch.setitem(component_module._FORMATS["redis"], (99, 0), 999)
    (problem,) = place.component.plan_restore(source, RestoreOptions()).problems
    assert "is newer than" in problem and "install the server's own version" in problem


def test_a_running_server_is_not_restored_by_files(serve: Any, bench: Any) -> None:
    server = serve()
    place = bench(server, restore_method="file", data_dir=str(server.dir))
    (problem,) = place.component.plan_restore(place.dump(), RestoreOptions()).problems
    assert "is running" in problem and "stop it" in problem


def test_replicating_by_tls_or_watched_by_a_sentinel_means_key_by_key(serve: Any, bench: Any) -> None:
    server = serve()
    place = bench(server)
    source = place.dump()
    with server.client() as client, client.pubsub() as watcher:
        watcher.subscribe("__sentinel__:hello")
        assert watcher.get_message(timeout=10) is not None
        plan = place.component.plan_restore(source, RestoreOptions())
        assert "key by key" in plan.lines[0] and "Sentinel" in plan.lines[0]


# -------------------------------------------------------------------------------------------------------- the way back


@pytest.mark.parametrize("restore_method", ["replicate", "keys", "file"])
def test_abort_after_the_switch_brings_the_old_data_back(serve: Any, bench: Any, restore_method: str) -> None:
    server = serve()
    fill_redis(server)
    place = bench(server, data_dir=str(server.dir), restore_method=restore_method)
    source = place.dump()
    destroy(server)
    with server.client() as client:
        client.function_load(server_library("old"))
        client.save()
    old = capture_redis(server)
    if restore_method == "file":
        server.stop()
    restoration = place.component.restoration(source, RestoreOptions())
    try:
        restoration.prepare()
        restoration.commit()
        if restore_method != "file":
            assert differences(old, server) != []
        restoration.abort()
        assert "holds its old data" in restoration.state()
    finally:
        restoration.close()
    if restore_method == "file":
        server.start()
    assert differences(old, server) == []


def test_abort_before_the_switch_touches_nothing(serve: Any, bench: Any) -> None:
    server = serve()
    fill_redis(server)
    place = bench(server)
    source = place.dump()
    destroy(server)
    old = capture_redis(server)
    restoration = place.component.restoration(source, RestoreOptions())
    restoration.prepare()
    restoration.abort()
    restoration.close()
    assert differences(old, server) == []
    assert left_in(place.component.context.workdir) == []
    assert safety_copy(restoration).exists()  # type: ignore[arg-type]


def test_the_safety_copy_holds_the_present_data(serve: Any, bench: Any) -> None:
    server = serve()
    fill_redis(server)
    place = bench(server)
    source = place.dump()
    destroy(server)
    old = capture_redis(server)
    restoration = place.restore(source)
    place.restore(Source(safety_copy(restoration), "none"))
    assert differences(old, server) == []


def test_a_killed_run_is_cleaned_up_by_its_journal(serve: Any, bench: Any) -> None:
    server = serve()
    fill_redis(server)
    place = bench(server)
    source = place.dump(CONTENT)
    before = capture_redis(server)
    place.journal.clear()
    restoration = place.component.restoration(source, RestoreOptions())
    restoration.prepare()
    seed = restoration._seed  # type: ignore[attr-defined]
    with server.client() as client:  # as if the run had died in the middle of the switch
        client.config_set("masterauth", seed.password)
        link = {
            "step": "redis-link",
            "component": "redis",
            "host": seed.address,
            "port": seed.port,
            "masterauth_sha256": sha256(seed.password),
        }
        client.execute_command("REPLICAOF", seed.address, seed.port)
        fresh = bench(server)
        for step in [*place.journal, link]:
            assert step["component"] == "redis"
            fresh.component.clean_up(step)
            fresh.component.clean_up(step)
        assert client.info("replication")["role"] == "master"
        assert masterauth(client) == b""
    assert left_in(place.component.context.workdir) == []
    assert seed._child.process.wait(10) != 0
    restoration.close()
    assert differences(before, server) == []


def test_a_file_switch_killed_halfway_is_taken_back(serve: Any, bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(appendonly=True)
    fill_redis(server)
    place = bench(server, data_dir=str(server.dir))
    source = place.dump()
    destroy(server)
    old = capture_redis(server)
    server.stop()

    def killed(*__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(component_module, "_place_append", killed)
    restoration = place.component.restoration(source, RestoreOptions())
    restoration.prepare()
    with pytest.raises(KeyboardInterrupt):
        restoration.commit()
    monkeypatch.undo()
    assert not (server.dir / "appendonlydir").exists()
    for step in reversed(place.journal):
        bench(server).component.clean_up(step)
    server.start()
    assert differences(old, server) == []
    assert not [one.name for one in server.dir.iterdir() if "agentmem" in one.name]


# --------------------------------------------------------------------------------------------------------------- secrets


def test_awkward_passwords_work_and_stand_in_no_argv(serve: Any, bench: Any) -> None:
    server = serve(password=SECRET, extra=(), acl=[f"user {'backup'} on #{sha256(SECRET)} ~* &* +@all"])
    fill_redis(server)
    for user in ("", "backup"):
        place = bench(server, username=user, password=SECRET, method="stream")
        seen: set[str] = set()
        done = threading.Event()
        watch = threading.Thread(target=watch_children, args=(seen, done))
        watch.start()
        try:
            source = place.dump(CONTENT)  # redis-cli waits five seconds for other replicas: time enough to be seen
            place.restore(source)
        finally:
            done.set()
            watch.join()
        assert any("redis-cli" in one for one in seen) and any("redis-server" in one for one in seen)
        assert not [one for one in seen if SECRET in one]
        said = [*place.told.steps, *place.told.warnings, *map(str, place.journal), str(source.entry)]
        assert not [one for one in said if SECRET in one]


def sha256(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()


def watch_children(seen: set[str], done: threading.Event) -> None:
    """Every command line of our children and theirs, as anybody on the host can read them."""
    while not done.wait(0.002):
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                seen.add(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))


def test_throwaway_servers_are_unprivileged_and_behind_a_password(serve: Any, bench: Any) -> None:
    """field notes: loading an RDB has had code-execution holes."""
    server = serve()
    place = bench(server)
    restoration = place.component.restoration(place.dump(), RestoreOptions())
    try:
        restoration.prepare()
        seed = restoration._seed  # type: ignore[attr-defined]
        status = Path(f"/proc/{seed._child.process.pid}/status").read_text()
        uid = re.search(r"^Uid:\s+(\d+)", status, re.MULTILINE)
        assert uid is not None and (int(uid[1]) != 0 or os.geteuid() != 0)
        stranger = redis_py.Redis(host=seed.address, port=seed.port)
        with pytest.raises(redis_py.exceptions.AuthenticationError):
            stranger.ping()
        assert seed.address == "127.0.0.1"
        assert stat.S_IMODE(seed.directory.stat().st_mode) == 0o700
    finally:
        restoration.close()


def test_files_under_way_are_private(serve: Any, bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve()
    with server.client() as client:
        client.mset({f"key {n}": "x" * 100 for n in range(500)})
        client.config_set("rdb-key-save-delay", 500)
    place = bench(server, method="stream")
    cut = place.component.open_cut(lambda: None, COUNTS)
    try:
        (path,) = place.component.context.workdir.iterdir()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        cut.close()
    assert left_in(place.component.context.workdir) == []


# ---------------------------------------------------------------------------------------------------------- other facts


@pytest.mark.parametrize(("replication", "asks"), [("no", "no"), ("yes", "no"), ("no", "yes")])
def test_over_tls(serve: Any, bench: Any, tmp_path: Path, replication: str, asks: str) -> None:
    """field notes: a target that replicates by TLS cannot take a plain throwaway server. By default it asks for the
    client's certificate, too (redis.conf: tls-auth-clients)."""
    with throwaway_directory() as folder:
        key, certificate = folder / "key.pem", folder / "cert.pem"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
             "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
            check=True, capture_output=True,
        )  # fmt: skip
        key.chmod(0o644)
        port = free_port()
        tls = (f"tls-port {port}", f"tls-cert-file {certificate}", f"tls-key-file {key}", f"tls-ca-cert-file {certificate}")
        server = serve(extra=(*AT_ONCE, *tls, f"tls-auth-clients {asks}", f"tls-replication {replication}"))
        fill_redis(server)
        before = capture_redis(server)
        ours = {"certfile": str(certificate), "keyfile": str(key)} if asks == "yes" else {}
        place = bench(server, port=port, tls=True, cacert=str(certificate), method="stream", **ours)
        source = place.dump()
        destroy(server)
        plan = place.component.plan_restore(source, RestoreOptions())
        assert ("by TLS only" in plan.lines[0]) == (replication == "yes")
        place.restore(source)
        assert differences(before, server) == []
        (problem,) = bench(server, port=port, tls=True).component.probe().problems
        assert "does not answer" in problem and "certificate" in problem.lower()
        if asks == "yes":
            (problem,) = bench(server, port=port, tls=True, cacert=str(certificate)).component.probe().problems
            assert "REDIS_CERTFILE" in problem
            both = folder / "both.pem"
            both.write_bytes(certificate.read_bytes() + key.read_bytes())
            assert (
                bench(server, port=port, tls=True, cacert=str(certificate), certfile=str(both)).component.probe().problems == []
            )
        for name in ("cacert", "certfile"):
            (problem,) = bench(server, port=port, tls=True, **{name: "/nowhere"}).component.probe().problems
            assert f"redis.{name} names /nowhere, which cannot be read here" in problem


def test_an_error_quotes_no_value(serve: Any, bench: Any) -> None:
    server = serve()
    with server.client() as client:
        client.set("private key", "private value " * 10)
    place = bench(server, restore_method="keys")
    source = place.dump()
    with server.client() as client:
        restoration = place.component.restoration(source, RestoreOptions())
        try:
            restoration.prepare()
            client.config_set("maxmemory", 1)
            with pytest.raises(BackupError, match="used memory > 'maxmemory'") as caught:
                restoration.commit()
            assert "private" not in str(caught.value)
            assert "a part of the new data" in restoration.state()
            client.config_set("maxmemory", 0)
            restoration.abort()
        finally:
            restoration.close()
        assert client.get("private key") == b"private value " * 10


def test_expiries_of_servers_before_7_are_read_by_a_script(serve: Any) -> None:
    server = serve()
    with server.client() as client:
        client.set("a", 1, pxat=4_000_000_000_123)
        client.set("b", 1)
    reader = component_module._Reader(server.client, content=False)
    with server.client() as client:
        exact = reader.expiries(client, [b"a", b"b", b"c"])
        reader.exact_expiry = False
        assert reader.expiries(client, [b"a", b"b", b"c"]) == exact == [4_000_000_000_123, -1, -2]


@pytest.mark.parametrize(
    ("name", "version", "expected"),
    [
        ("redis", "6.2.14", 9),
        ("redis", "7.0.15", 10),
        ("redis", "7.2.4", 11),
        ("redis", "8.0.1", 12),
        ("valkey", "8.1.0", 11),
        ("valkey", "9.0.0", 80),
    ],
)
def test_which_format_a_version_writes(name: str, version: str, expected: int) -> None:
    assert component_module._format_of(name, version) == expected
