# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copies elsewhere: real endpoints on loopback, and what lies there looked at by another way than the product's."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from agentmem_backup import audit, backup_set, clock, history, lock, runs

from tests.support.endpoints import BUCKET, S3, Azure, AzureByKey, Endpoint, Gcs, S3ByTls, Sshd, answering, certify
from tests.support.listeners import recorder
from tests.support.sender import Sender
from tests.support.servers import Server

KINDS = ["s3", "gcs", "azure", "sshd"]


@pytest.fixture
def endpoint(request: pytest.FixtureRequest) -> Endpoint:
    found: Endpoint = request.getfixturevalue(request.param)
    return found


def prefixed(endpoint: Endpoint, folder: str) -> dict[str, Any]:
    """A target whose folder no other test has."""
    target = endpoint.target()
    if "prefix" in target or target["type"] != "rsync":
        target["prefix"] = folder
    return target


def below(endpoint: Endpoint, folder: str, *parts: str) -> str:
    """That folder as the endpoint has it."""
    return "/".join(parts if isinstance(endpoint, Sshd) else (folder, *parts))


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"t{abs(hash((request.node.nodeid, str(tmp_path)))) % 10**10}"


def flipped(content: bytes) -> bytes:
    """The same length, one bit another."""
    changed = bytearray(content)
    changed[len(changed) // 2] ^= 1
    return bytes(changed)


def data_file(files: dict[str, bytes]) -> str:
    return next(name for name in files if name.startswith("config_"))


# --- there and back


@pytest.mark.parametrize("endpoint", KINDS, indirect=True)
def test_a_set_goes_there_whole_is_read_back_and_comes_back_on_a_fresh_host(
    endpoint: Endpoint, folder: str, tmp_path: Path
) -> None:
    target = prefixed(endpoint, folder)
    host = Sender(tmp_path, "web-1", {"away": target})
    set_id = host.make_set()
    missing = host.run("check")
    assert missing.returncode == 1 and f"away: set {set_id} is missing there" in missing.stderr

    pushed = host.good("push")
    assert pushed["targets"]["away"]["sent"] == pushed["targets"]["away"]["read_back"] == [set_id] and pushed["changed"]
    assert endpoint.files(below(endpoint, folder, "web-1")) == host.files(set_id), (
        "not the same bytes, or not under the host's name"
    )

    assert runs.read(host.backup_dir)["runs"]["sync"]["pushed"].keys() == {"away"}, "the metrics know when it had arrived"

    again = host.good("push")
    assert not again["changed"] and again["targets"]["away"]["whole"] == [set_id] and again["targets"]["away"]["read_back"] == []
    state = host.good("check")["sets"][set_id]
    assert state["here"] == "verified" and state["targets"]["away"]["state"] == "whole" and state["targets"]["away"]["read_back"]

    fresh = Sender(tmp_path, "web-2", {"away": target})
    assert "sets of web-1" in fresh.bad("pull", "latest")
    pulled = fresh.good("pull", "latest", "--host", "web-1")
    assert pulled["id"] == set_id and fresh.files(set_id) == host.files(set_id)
    assert fresh.verdicts()[set_id]["verdict"] == "verified" and fresh.verdicts()[set_id]["by"] == "sync"
    assert {path.stat().st_mode & 0o777 for path in fresh.backup_dir.glob(f"*_{set_id}.*")} == {0o600}
    before = fresh.state()
    assert "already, and it stays as it is" in fresh.bad("pull", set_id, "--host", "web-1", code=2)
    assert fresh.state() == before
    assert not list((fresh.backup_dir / ".state" / "offsite").rglob("*_*")), "something was left of the fetching"
    assert "web-1" in fresh.run("push").stdout, "what came from another host is not sent on as one's own"
    assert endpoint.files(below(endpoint, folder, "web-2")) == {}


@pytest.mark.parametrize("endpoint", KINDS, indirect=True)
def test_bytes_changed_there_with_size_and_metadata_kept_are_found_and_mended(
    endpoint: Endpoint, folder: str, tmp_path: Path
) -> None:
    host = Sender(tmp_path, "web-1", {"away": prefixed(endpoint, folder)})
    set_id = host.make_set()
    host.good("push")
    files = host.files(set_id)
    name = data_file(files)
    endpoint.change(below(endpoint, folder, "web-1", name), flipped(files[name]))
    assert host.good("check")["sets"][set_id]["targets"]["away"]["state"] == "whole", "sizes alone say nothing"

    said = host.bad("check", "--read-back", code=3)
    assert f"set {set_id} is damaged there: {name} has other content than was sent" in said
    fresh = Sender(tmp_path, "web-2", {"away": prefixed(endpoint, folder)})
    said = fresh.bad("pull", set_id, "--host", "web-1", code=3)
    assert "does not verify and was not taken" in said and fresh.state() == {}

    foretold = host.good("push", "--dry-run")["targets"]["away"]
    assert (foretold["sent"], foretold["sent_bytes"]) == ([set_id], len(files[name]))
    mended = host.good("push")["targets"]["away"]
    assert mended["read_back"] == mended["sent"] == [set_id] and mended["sent_bytes"] == len(files[name])
    assert endpoint.files(below(endpoint, folder, "web-1")) == files
    assert host.good("check", "--read-back")["problems"] == []


def test_the_first_push_finds_what_was_changed_before_the_set_was_whole(s3: S3, folder: str, tmp_path: Path) -> None:
    """A push was stopped before the manifest; meanwhile a file there has lost a bit."""
    host = Sender(tmp_path, "web-1", {"away": prefixed(s3, folder)})
    set_id = host.make_set()
    files = host.files(set_id)
    name = data_file(files)
    s3.client().put_object(Bucket=BUCKET, Key=f"{folder}/web-1/{name}", Body=flipped(files[name]))
    done = host.run("push")
    assert done.returncode == 0 and f"{name} was damaged there, and is sent again" in done.stdout + done.stderr
    assert s3.files(f"{folder}/web-1") == files


def test_a_store_that_gives_back_other_bytes_than_it_took_never_counts(s3: S3, folder: str, tmp_path: Path) -> None:
    host = Sender(tmp_path, "web-1", {"away": prefixed(s3, folder)})
    set_id = host.make_set()
    shim = tmp_path / "bin" / "rclone"
    shim.parent.mkdir()
    real = shutil.which("rclone")
    shim.write_text(f'#!/bin/sh\nif [ "$3" = cat ]; then {real} "$@" | tr a-f b-g; else exec {real} "$@"; fi\n')
    shim.chmod(0o755)
    said = host.bad("push", env={"PATH": f"{shim.parent}:{os.environ['PATH']}"})
    assert f"set {set_id} does not read back from s3://{BUCKET}/{folder}/web-1 as it was sent" in said
    assert f"manifest_{set_id}.json" not in s3.files(f"{folder}/web-1"), "a set that cannot be trusted looks whole"


def test_a_set_that_lacks_a_file_there_is_told_and_not_pulled(s3: S3, folder: str, tmp_path: Path) -> None:
    host = Sender(tmp_path, "web-1", {"away": prefixed(s3, folder)})
    set_id = host.make_set()
    host.good("push")
    name = data_file(host.files(set_id))
    s3.delete(f"{folder}/web-1/{name}")
    assert f"{name} is missing" in host.bad("check", code=3)
    fresh = Sender(tmp_path, "web-2", {"away": prefixed(s3, folder)})
    assert f"{name} is missing there" in fresh.bad("pull", set_id, "--host", "web-1", code=3)
    assert fresh.state() == {}
    host.good("push")
    assert s3.files(f"{folder}/web-1") == host.files(set_id)
    s3.delete(f"{folder}/web-1/manifest_{set_id}.json")
    assert f"set {set_id} is incomplete there" in host.bad("check")
    assert f"only a part of {set_id}" in fresh.bad("pull", set_id, "--host", "web-1")


# --- whose


def test_two_hosts_and_two_instances_never_touch_each_other(s3: S3, folder: str, tmp_path: Path) -> None:
    target = prefixed(s3, folder)
    one, two, three = (Sender(tmp_path, name, {"away": target}) for name in ("web-1", "web-2", "web-1-second"))
    three.extra = {"instance": "second"}
    three.name = "web-1"
    three.configure({"away": target})
    moment = "2025-01-03 12:00:00"  # the very same ID everywhere
    set_id = {host.make_set(moment, content=name) for name, host in (("a", one), ("b", two), ("c", three))}.pop()
    for host in (one, two, three):
        host.good("push")
    for place, host in (("web-1", one), ("web-2", two), ("web-1/second", three)):
        there = {name: body for name, body in s3.files(f"{folder}/{place}").items() if "/" not in name}
        assert there == host.files(set_id)
    assert Sender(tmp_path, "fresh", {"away": target}).good("pull", set_id, "--host", "web-1/second")["id"] == set_id


@pytest.fixture
def own(sshd: Sshd) -> Sshd:
    """A receiving host that lets the key into the folder of web-1 alone."""
    sshd.own = "web-1"
    sshd.admit()
    return sshd


def test_in_a_folder_of_its_own_a_host_has_its_name_once(own: Sshd, tmp_path: Path) -> None:
    target = {**own.target(), "keep": 1}
    one, blue = Sender(tmp_path, "web-1", {"away": target}), Sender(tmp_path, "web-1-blue", {"away": target})
    blue.extra, blue.name = {"instance": "blue"}, "web-1"
    blue.configure({"away": target})
    moment = "2025-01-03 12:00:00"
    old = one.make_set(moment, content="a")
    assert blue.make_set(moment, content="b") == old
    for host in (one, blue):
        pushed = host.good("push")["targets"]["away"]
        assert pushed["sent"] == [old] and pushed["notes"] == [] and pushed["where"].endswith(f":{'/'.join(host_place(host))}")
        assert own.files("/".join(host_place(host))) == host.files(old)
        assert host.good("check", "--read-back")["sets"][old]["targets"]["away"]["state"] == "whole"
    new = one.make_set("2025-01-04 12:00:00")
    assert one.good("push")["targets"]["away"]["removed"] == [old]
    assert own.files("web-1") == one.files(new) and own.files("web-1/blue") == blue.files(old)
    assert sorted(path.name for path in own.root.rglob("*") if path.is_dir()) == ["blue", "web-1"]

    fresh = Sender(tmp_path, "web-2", {"away": target})
    assert fresh.good("pull", "latest", "--host", "web-1/blue")["id"] == old and fresh.files(old) == blue.files(old)
    assert fresh.good("pull", "latest", "--host", "web-1")["id"] == new
    blue.extra = {"instance": "web-1"}
    blue.configure({"away": target})
    assert "an instance that is called like its host cannot be told from it" in blue.bad("push")


def host_place(host: Sender) -> list[str]:
    return [host.name, *([host.extra["instance"]] if host.extra else [])]


def test_what_lies_where_earlier_releases_put_it_is_gone_on_with(own: Sshd, tmp_path: Path) -> None:
    (own.root / "web-1" / "web-1").mkdir(parents=True)
    host = Sender(tmp_path, "web-1", {"away": own.target()})
    set_id = host.make_set()
    done = host.run("push")
    sentence = "the sets lie in web-1/web-1 there, where earlier releases put them: on the receiving host, move them up"
    assert done.returncode == 0 and f"target away: {sentence}" in done.stderr
    assert own.files("web-1/web-1") == host.files(set_id) and own.files("web-1") == {}

    for path in (own.root / "web-1" / "web-1").iterdir():
        path.rename(own.root / "web-1" / path.name)
    (own.root / "web-1" / "web-1").rmdir()
    again = host.good("push")
    assert not again["changed"] and again["targets"]["away"]["whole"] == [set_id] and again["targets"]["away"]["notes"] == []


def test_a_folder_of_its_own_that_is_everybodys_is_told(tmp_path: Path) -> None:
    with Sshd(forced=False) as sshd:
        host = Sender(tmp_path, "web-1", {"away": {**sshd.target(), "path": "", "own_folder": True}})
        host.make_set()
        refused(host, "says that the key is let into this host's folder alone, and it is let in everywhere: put a forced command")


def test_ones_own_folder_is_not_taken_for_another_hosts(own: Sshd, tmp_path: Path) -> None:
    host = Sender(tmp_path, "web-1", {"away": own.target()})
    set_id = host.make_set()
    host.good("push")
    for name in host.files(set_id):
        (host.backup_dir / name).unlink()
    assert "opens the folder of web-1, not that of web-2: let it into" in host.bad("pull", "latest", "--host", "web-2")
    assert host.state() == {}
    assert host.good("pull", "latest")["id"] == set_id


def test_two_hosts_of_one_name_are_told_and_the_first_ones_set_stays(s3: S3, folder: str, tmp_path: Path) -> None:
    one = Sender(tmp_path / "a", "web-1", {"away": prefixed(s3, folder)})
    two = Sender(tmp_path / "b", "web-1", {"away": prefixed(s3, folder)})
    set_id = one.make_set("2025-01-03 12:00:00", content="mine")
    two.make_set("2025-01-03 12:00:00", content="thine")
    one.good("push")
    before = s3.files(f"{folder}/web-1")
    assert f"has another set {set_id}" in two.bad("push")
    assert s3.files(f"{folder}/web-1") == before == one.files(set_id)


@pytest.mark.parametrize("name", ["localhost", "localhost.localdomain"])
def test_a_host_without_a_name_of_its_own_sends_nothing(s3: S3, tmp_path: Path, name: str) -> None:
    host = Sender(tmp_path, name, {"away": s3.target()})
    host.make_set()
    assert "set offsite.host" in host.bad("push", code=2)


# --- several targets


def test_what_fails_at_one_target_stops_no_other_and_is_named(s3: S3, sshd: Sshd, folder: str, tmp_path: Path) -> None:
    bad = {**s3.target(), "bucket": "there-is-none"}
    host = Sender(tmp_path, "web-1", {"broken": bad, "away": prefixed(s3, folder), "other_host": sshd.target()})
    set_id = host.make_set()
    before = host.state()
    done = host.run("push", "--json")
    answer = json.loads(done.stdout)
    assert done.returncode == 1 and host.state() == before
    assert [name for name, one in answer["targets"].items() if not one["ok"]] == ["broken"]
    assert answer["problems"] == [
        "broken: s3://there-is-none/web-1: there is no such bucket or container: make it, or name another for target broken"
    ]
    for there in (s3.files(f"{folder}/web-1"), sshd.files("web-1")):
        assert there == host.files(set_id)
    checked = host.run("check", "--json")
    assert checked.returncode == 1 and [*json.loads(checked.stdout)["unreached"]] == ["broken"]
    assert host.good("push", "--target", "away")["problems"] == []
    fresh = Sender(tmp_path, "web-2", {"broken": bad, "other_host": sshd.target()})
    assert fresh.good("pull", set_id, "--host", "web-1")["where"].endswith(":web-1"), "the next target serves"


# --- only verified sets leave


def test_only_verified_sets_leave_and_the_result_says_why_another_stays(s3: S3, folder: str, tmp_path: Path) -> None:
    host = Sender(tmp_path, "web-1", {"away": prefixed(s3, folder)})
    ids = [host.make_set(f"2025-01-0{day} 12:00:00") for day in range(1, 6)]
    legacy, unknown, failed, suspicious, good = ids
    for name in ("manifest_{}.json",):
        (host.backup_dir / name.format(legacy)).unlink()
    verdicts = history.path(host.backup_dir)
    verdicts.write_text("".join(line for line in verdicts.read_text().splitlines(True) if unknown not in line))
    history.append(host.backup_dir, failed, history.FAILED, "verify")
    history.append(host.backup_dir, suspicious, history.SUSPICIOUS, "create")
    answer = host.good("push")
    assert answer["targets"]["away"]["sent"] == [good]
    assert {name.split(".")[0].split("_", 1)[1] for name in s3.files(f"{folder}/web-1")} == {good}
    assert "JSON manifest" in answer["skipped"][legacy] and "never verified" in answer["skipped"][unknown]
    assert "failed" in answer["skipped"][failed] and "suspicious" in answer["skipped"][suspicious]


def test_a_set_that_has_rotted_since_it_was_verified_does_not_leave(s3: S3, folder: str, tmp_path: Path) -> None:
    host = Sender(tmp_path, "web-1", {"away": prefixed(s3, folder)})
    rotten, good = host.make_set("2025-01-01 12:00:00"), host.make_set("2025-01-02 12:00:00")
    name = data_file(host.files(rotten))
    (host.backup_dir / name).write_bytes(flipped((host.backup_dir / name).read_bytes()))
    said = host.bad("push")
    assert f"set {rotten} does not verify any more and was not sent" in said
    assert s3.files(f"{folder}/web-1") == host.files(good)
    assert host.verdicts()[rotten]["verdict"] == "failed"


# --- nothing is removed there by mistake


def test_an_empty_or_shrunken_local_side_removes_nothing_there(s3: S3, folder: str, tmp_path: Path) -> None:
    host = Sender(tmp_path, "web-1", {"away": {**prefixed(s3, folder), "keep": 2}})
    ids = [host.make_set(f"2025-01-0{day} 12:00:00") for day in (1, 2)]
    host.good("push")
    before = s3.files(f"{folder}/web-1")
    shutil.rmtree(host.backup_dir)
    host.backup_dir.mkdir(mode=0o700)
    assert "there is no verified set" in host.bad("push")
    assert s3.files(f"{folder}/web-1") == before
    checked = host.good("check")
    assert [(row["here"], row["targets"]["away"]["state"]) for row in checked["sets"].values()] == [("", "whole")] * 2
    assert [*checked["sets"]] == ids


def test_the_guards_say_their_numbers(s3: S3, folder: str, tmp_path: Path) -> None:
    target = prefixed(s3, folder)
    host = Sender(tmp_path, "web-1", {"away": target})
    ids = [host.make_set(f"2025-01-0{day} 12:00:00") for day in range(1, 8)]
    host.good("push")
    before = s3.files(f"{folder}/web-1")
    host.configure({"away": {**target, "keep": 2}})
    said = host.bad("push")
    assert "5 sets are more than keep, and offsite.max_removals lets 3 go" in said and s3.files(f"{folder}/web-1") == before
    for set_id in ids[:-1]:
        for path in host.backup_dir.glob(f"*_{set_id}.*"):
            path.unlink()
    said = host.bad("push", "--set", "offsite.max_removals=5")
    assert "only 1 verified sets lie here, and offsite.min_local_sets wants 2" in said and s3.files(f"{folder}/web-1") == before


@pytest.mark.parametrize("endpoint", KINDS, indirect=True)
def test_keep_lets_the_oldest_go_and_nothing_else(endpoint: Endpoint, folder: str, tmp_path: Path) -> None:
    target = {**prefixed(endpoint, folder), "keep": 2}
    host, other = Sender(tmp_path, "web-1", {"away": target}), Sender(tmp_path, "web-2", {"away": target})
    neighbour = other.make_set("2024-01-01 12:00:00")
    other.good("push")
    ids = [host.make_set(f"2025-01-0{day} 12:00:00") for day in (1, 2)]
    assert host.good("push")["targets"]["away"]["removed"] == []
    ids += [host.make_set(f"2025-01-0{day} 12:00:00") for day in (3, 4)]
    answer = host.good("push")["targets"]["away"]
    assert answer["sent"] == [ids[3], ids[2]] and answer["removed"] == ids[:2]
    assert endpoint.files(below(endpoint, folder, "web-1")) == host.files(ids[2]) | host.files(ids[3])
    assert endpoint.files(below(endpoint, folder, "web-2")) == other.files(neighbour)


def test_what_keep_has_let_go_is_not_sent_again(s3: S3, folder: str, tmp_path: Path) -> None:
    host = Sender(tmp_path, "web-1", {"away": {**prefixed(s3, folder), "keep": 1}})
    old = host.make_set("2025-01-01 12:00:00")
    host.good("push")
    new = host.make_set("2025-01-02 12:00:00")
    assert host.good("push")["targets"]["away"]["removed"] == [old]
    again = host.good("push")
    assert not again["changed"] and again["targets"]["away"]["left_out"] == [old]
    assert s3.files(f"{folder}/web-1") == host.files(new)
    checked = host.good("check")
    assert checked["problems"] == [] and checked["sets"][old]["targets"]["away"]["state"] == "left out"


def test_older_sets_than_keep_wants_are_not_even_sent(s3: S3, folder: str, tmp_path: Path) -> None:
    host = Sender(tmp_path, "web-1", {"away": {**prefixed(s3, folder), "keep": 2}})
    ids = [host.make_set(f"2025-01-0{day} 12:00:00") for day in range(1, 8)]
    assert host.good("push", "--dry-run")["targets"]["away"]["sent"] == [ids[6], ids[5]]
    answer = host.good("push")["targets"]["away"]
    assert answer["sent"] == [ids[6], ids[5]] and answer["removed"] == []


def test_a_set_of_one_store_does_not_replace_one_of_all(s3: S3, folder: str, tmp_path: Path) -> None:
    """What keep counts must hold what goes."""
    target = {**prefixed(s3, folder), "keep": 1}
    host = Sender(tmp_path, "web-1", {"away": target})
    whole, part = host.make_set("2025-01-01 12:00:00"), host.make_set("2025-01-02 12:00:00")
    file = host.backup_dir / ".history" / "offsite.jsonl"
    host.configure({"away": prefixed(s3, folder)})
    host.good("push")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        line["components"] = ["postgresql", "config"] if line["id"] == whole else ["config"]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    host.configure({"away": target})
    assert host.good("push")["targets"]["away"]["removed"] == []
    assert s3.files(f"{folder}/web-1") == host.files(whole) | host.files(part)


# --- object lock


def test_in_a_locked_bucket_nothing_is_replaced_or_removed(s3: S3, folder: str, tmp_path: Path) -> None:
    bucket = s3.locked_bucket(f"locked-{folder}", 30)
    target = {**s3.target(), "bucket": bucket, "object_lock": True, "keep": 1}
    host = Sender(tmp_path, "web-1", {"vault": target})
    old = host.make_set("2025-01-01 12:00:00")
    host.good("push")
    new = host.make_set("2025-01-02 12:00:00")
    done = host.run("push")
    assert done.returncode == 0, done.stderr
    assert "1 sets are more than keep (1) and stay: what is there is locked (object_lock)" in done.stdout

    client = s3.client()
    names = {*host.files(old), *host.files(new)}
    versions = client.list_object_versions(Bucket=bucket, Prefix="web-1/")
    assert sorted(one["Key"].removeprefix("web-1/") for one in versions["Versions"]) == sorted(names)
    assert "DeleteMarkers" not in versions
    key = f"web-1/{data_file(host.files(old))}"
    client.put_object(Bucket=bucket, Key=key, Body=flipped(host.files(old)[data_file(host.files(old))]))
    host.bad("check", "--read-back", code=3)
    said = host.bad("push")
    assert f"set {old} is damaged at s3://{bucket}/web-1" in said and "locked (object_lock)" in said
    versions = client.list_object_versions(Bucket=bucket, Prefix=key)["Versions"]
    assert len(versions) == 2, "a push has written over what is locked"


# --- interrupted


def on_path(directory: Path, program: str, script: str) -> dict[str, str]:
    """An environment in which `program` is a script of the test, which has the real one's path in $REAL."""
    directory.mkdir(exist_ok=True)
    shim = directory / program
    shim.write_text(f"#!/bin/bash\nREAL={shlex.quote(str(shutil.which(program)))}\n{script}")
    shim.chmod(0o755)
    return {"PATH": f"{directory}:{os.environ['PATH']}"}


def started(host: Sender, *words: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        host.argv(*words), env=host.environment(env), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def waited(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


@pytest.mark.parametrize("endpoint", ["s3", "sshd"], indirect=True)
def test_a_killed_push_leaves_no_set_that_looks_whole_and_goes_on_file_by_file(
    endpoint: Endpoint, folder: str, tmp_path: Path
) -> None:
    host = Sender(tmp_path, "web-1", {"away": prefixed(endpoint, folder)})
    set_id = host.make_set()
    program = "rsync" if isinstance(endpoint, Sshd) else "rclone"
    log = tmp_path / "calls"
    # The second file that is sent never gets through: there the run is killed.
    hold = (
        f'echo "$@" >>{log}\ncase "$*" in *manifest_*.txt*) touch {tmp_path}/reached; exec sleep 600;; esac\nexec "$REAL" "$@"\n'
    )
    push = started(host, "push", env=on_path(tmp_path / "bin", program, hold))
    waited((tmp_path / "reached").exists)
    push.send_signal(signal.SIGKILL)
    push.wait()
    there = endpoint.files(below(endpoint, folder, "web-1"))
    assert [*there] == [data_file(host.files(set_id))]
    assert f"set {set_id} is incomplete there" in host.bad("check")

    log.write_text("")
    answer = host.good("push", env=on_path(tmp_path / "bin", program, f'echo "$@" >>{log}\nexec "$REAL" "$@"\n'))
    assert answer["targets"]["away"]["sent"] == [set_id]
    sending = [line for line in log.read_text().splitlines() if "--ignore-times" in line]
    assert [line for line in sending if data_file(host.files(set_id)) in line] == [], "what was there was sent again"
    assert len(sending) == 2
    assert endpoint.files(below(endpoint, folder, "web-1")) == host.files(set_id)
    assert not list((host.backup_dir / ".state" / "offsite").rglob("*_*"))


def test_rsync_goes_on_in_the_middle_of_a_file(sshd: Sshd, tmp_path: Path) -> None:
    host = Sender(tmp_path, "web-1", {"away": sshd.target()}, bandwidth_limit="2M")
    set_id = host.make_set(size=12_000_000)
    push = started(host, "push")

    def there() -> list[int]:
        return [one.stat().st_size for one in sshd.root.rglob("*config_*") if one.is_file()]

    waited(lambda: any(size > 3_000_000 for size in there()))
    push.terminate()
    push.communicate()
    name = data_file(host.files(set_id))
    waited((sshd.root / "web-1" / name).exists)
    assert 3_000_000 < (sshd.root / "web-1" / name).stat().st_size < 12_000_000
    assert f"set {set_id} is incomplete there" in host.bad("check")
    stats = on_path(tmp_path / "bin", "rsync", f'"$REAL" --stats "$@" | tee -a {tmp_path}/stats\nexit ${{PIPESTATUS[0]}}\n')
    host.configure({"away": sshd.target()})
    host.good("push", env=stats)
    literal = [int(line.split(":")[1].replace(",", "").split()[0]) for line in (tmp_path / "stats").read_text().splitlines()
               if line.startswith("Literal data")]  # fmt: skip
    assert sum(literal) < 10_000_000, f"{literal}: the whole file was sent again"
    assert sshd.files("web-1") == host.files(set_id)


def test_a_pull_that_was_killed_fetches_only_what_is_missing(s3: S3, folder: str, tmp_path: Path) -> None:
    host = Sender(tmp_path, "web-1", {"away": prefixed(s3, folder)})
    set_id = host.make_set()
    host.good("push")
    fresh = Sender(tmp_path, "web-2", {"away": prefixed(s3, folder)})
    hold = f'case "$*" in *copyto*manifest_*.txt*) touch {tmp_path}/reached; exec sleep 600;; esac\nexec "$REAL" "$@"\n'
    pull = started(fresh, "pull", set_id, "--host", "web-1", env=on_path(tmp_path / "bin", "rclone", hold))
    waited((tmp_path / "reached").exists)
    pull.send_signal(signal.SIGKILL)
    pull.wait()
    assert fresh.state() == {} and backup_set.sets(fresh.backup_dir) == []
    name = data_file(host.files(set_id))
    log = f'echo "$@" >>{tmp_path}/calls\nexec "$REAL" "$@"\n'
    assert fresh.good("pull", set_id, "--host", "web-1", env=on_path(tmp_path / "bin", "rclone", log))["id"] == set_id
    assert name not in (tmp_path / "calls").read_text() and fresh.files(set_id) == host.files(set_id)


# --- beside other runs


def test_what_retention_removes_meanwhile_is_still_sent(s3: S3, folder: str, tmp_path: Path) -> None:
    host = Sender(tmp_path, "web-1", {"away": prefixed(s3, folder)})
    set_id = host.make_set()
    files = host.files(set_id)
    stopped = f"touch {tmp_path}/reached; while [ ! -e {tmp_path}/go ]; do sleep 0.05; done"
    script = f'case "$*" in *copyto*) {stopped};; esac\nexec "$REAL" "$@"\n'
    push = started(host, "push", env=on_path(tmp_path / "bin", "rclone", script))
    waited((tmp_path / "reached").exists)
    with lock.hold(host.backup_dir / ".state" / "lock", "prune"):  # a push keeps no backup waiting
        backup_set.remove(host.backup_dir, backup_set.sets(host.backup_dir))
    assert "is at work there" in host.bad("push", code=75)
    (tmp_path / "go").touch()
    said, __ = push.communicate()
    assert push.returncode == 0, said
    assert s3.files(f"{folder}/web-1") == files
    assert not list((host.backup_dir / ".state" / "offsite").rglob("*_*")), "what was held must be let go"


# --- bad input: each with a sentence


@contextmanager
def small_disk(path: Path) -> Iterator[None]:
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(path)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("needs the right to mount")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)  # the receiving program may still be on its way out


def refused(host: Sender, sentence: str, code: int = 1, env: dict[str, str] | None = None) -> None:
    """A push that ends with the sentence, sends it as an alarm, and leaves what lies here as it was."""
    before = host.state()
    with recorder() as web:
        said = host.bad("push", code=code, env={**(env or {}), "NOTIFY_SLACK_WEBHOOK": f"{web.url}/hook"})
        alarms = [one.json["text"] for one in web.requests]
    assert sentence in said, said
    assert len(alarms) == 1 and "FAILED" in alarms[0] and sentence in alarms[0], alarms
    assert host.state() == before
    assert audit.check(host.backup_dir) == []


@pytest.mark.parametrize("endpoint", KINDS, indirect=True)
def test_an_unreachable_target(endpoint: Endpoint, tmp_path: Path) -> None:
    target = endpoint.target()
    if target["type"] == "rsync":
        target["port"] = 1
    else:
        key = "sas_url" if target["type"] == "azure" else "endpoint"
        target[key] = target[key].replace(f":{endpoint.port}", ":1")
    host = Sender(tmp_path, "web-1", {"away": target}, timeout_s=2)
    host.make_set()
    refused(host, "is not reached: look at the network")


def test_wrong_keys_and_keys_that_were_revoked(s3: S3, folder: str, tmp_path: Path) -> None:
    key, secret = s3.demand_keys()
    try:
        target = {**prefixed(s3, folder), "access_key_id": key, "secret_access_key": secret}
        host = Sender(tmp_path, "web-1", {"away": target})
        set_id = host.make_set()
        host.good("push")
        host.configure({"away": {**target, "secret_access_key": "not-the-secret"}})
        host.make_set()
        refused(host, "the store does not accept the credentials of target away: they are wrong, expired or revoked")
        host.configure({"away": target})
        s3.client("iam")  # made before the door is shut
        import boto3

        keys = {"aws_access_key_id": key, "aws_secret_access_key": secret, "region_name": "us-east-1"}
        boto3.client("iam", endpoint_url=s3.url, **keys).delete_access_key(UserName="agentmem", AccessKeyId=key)
        refused(host, "the store does not accept the credentials of target away: they are wrong, expired or revoked")
        assert set_id in host.bad("pull", set_id, code=2)
    finally:
        s3.reset()


def test_a_service_account_that_was_revoked(gcs: Gcs, folder: str, tmp_path: Path) -> None:
    host = Sender(tmp_path, "web-1", {"away": prefixed(gcs, folder)})
    host.make_set()
    before, gcs.token = gcs.token, (400, json.dumps({"error": "invalid_grant", "error_description": "Invalid JWT Signature."}))
    try:
        refused(host, "the store does not accept the credentials of target away")
        skew = "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe."
        gcs.token = (400, json.dumps({"error": "invalid_grant", "error_description": skew}))
        refused(host, "the store refuses this host's time: set its clock (timedatectl)")
    finally:
        gcs.token = before


def test_a_shared_access_signature_serves_and_a_false_one_does_not(azure: Azure, folder: str, tmp_path: Path) -> None:
    target = prefixed(azure, folder)
    host = Sender(tmp_path, "web-1", {"away": target})
    set_id = host.make_set()
    host.good("push")
    assert azure.files(f"{folder}/web-1") == host.files(set_id)
    host.configure({"away": {**target, "sas_url": azure.sas_url().replace("sig=", "sig=A")}})
    refused(host, "the store does not accept the credentials of target away")


def test_azure_by_the_accounts_key(azure_by_key: AzureByKey, folder: str, tmp_path: Path) -> None:
    """With neither endpoint nor signature, as somebody has it who copied account and key from the cloud's console."""
    target = prefixed(azure_by_key, folder)
    host, fresh = (Sender(tmp_path, name, {"away": target}) for name in ("web-1", "web-2"))
    host.env = fresh.env = azure_by_key.environment()
    set_id = host.make_set()
    assert host.good("push")["targets"]["away"]["read_back"] == [set_id]
    files = host.files(set_id)
    assert azure_by_key.files(f"{folder}/web-1") == files
    name = data_file(files)
    azure_by_key.change(f"{folder}/web-1/{name}", flipped(files[name]))
    assert f"{name} has other content than was sent" in host.bad("check", "--read-back", code=3)
    assert host.good("push")["targets"]["away"]["sent"] == [set_id]
    assert fresh.good("pull", "latest", "--host", "web-1")["id"] == set_id and fresh.files(set_id) == files

    host.configure({"away": {**target, "key": azure_by_key.KEY[::-1].lstrip("=") + "=="}})
    refused(host, "the store does not accept the credentials of target away: they are wrong, expired or revoked")
    host.configure({"away": {**target, "container": "there-is-none"}})
    refused(host, "there is no such bucket or container: make it")


@pytest.mark.parametrize("kind", [S3ByTls, pytest.param(AzureByKey, marks=pytest.mark.slow)])  # Azure's library is patient
def test_a_clock_that_has_fallen_back(kind: type[S3ByTls | AzureByKey], tmp_path: Path) -> None:
    """Its host then sees certificates that are not valid yet, everywhere."""
    with kind() as store:
        host = Sender(tmp_path, "web-1", {"away": store.target()})
        host.env = store.environment()
        host.make_set()
        host.good("push")
        host.make_set()
        store.stop()
        certify(store.directory, "localhost" if kind is S3ByTls else "*.blob.core.windows.net", days=1)
        Server.start(store)
        refused(host, "the store refuses this host's time: set its clock (timedatectl)")


@pytest.mark.parametrize(
    ("status", "code", "sentence"),
    [
        (403, "RequestTimeTooSkewed", "the store refuses this host's time: set its clock (timedatectl)"),
        (507, "InsufficientStorage", "the store is full or its quota used up"),
        (403, "QuotaExceeded", "the store is full or its quota used up"),
        (403, "ExpiredToken", "they are wrong, expired or revoked"),
        (403, "AccessDenied", "the store forbids it to the credentials of target away"),
    ],
)
def test_what_a_store_says_becomes_a_sentence(tmp_path: Path, status: int, code: str, sentence: str) -> None:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>as {code} goes</Message></Error>"
    url = answering(lambda path: (status, body))
    target = {"type": "s3", "bucket": "b", "endpoint": url, "provider": "Other", "access_key_id": "k", "secret_access_key": "s"}
    host = Sender(tmp_path, "web-1", {"away": target})
    host.make_set()
    refused(host, sentence)


@pytest.mark.parametrize("endpoint", ["s3", "gcs", "azure"], indirect=True)
def test_a_missing_bucket_is_told_and_not_made(endpoint: Endpoint, tmp_path: Path) -> None:
    target = endpoint.target()
    target["container" if target["type"] == "azure" else "bucket"] = "there-is-none"
    if "sas_url" in target:
        target["sas_url"] = endpoint.sas_url("there-is-none")  # type: ignore[attr-defined]
    host = Sender(tmp_path, "web-1", {"away": target})
    host.make_set()
    refused(host, "there is no such bucket or container: make it")
    refused(host, "there is no such bucket or container: make it")


def test_a_changed_host_key_and_none_at_all(sshd: Sshd, tmp_path: Path) -> None:
    host = Sender(tmp_path, "web-1", {"away": sshd.target()})
    host.make_set()
    sshd.stop()
    sshd.new_host_key()
    sshd.start()
    refused(host, "does not have the key that known_hosts_file of target away pins")
    sshd.known_hosts.write_text("")
    refused(host, "does not have the key that known_hosts_file of target away pins")
    assert sshd.files("web-1") == {}
    sshd.known_hosts.unlink()
    refused(host, "known_hosts_file of target away is missing")


def test_a_key_that_is_wrong_revoked_open_or_no_key(sshd: Sshd, tmp_path: Path) -> None:
    host = Sender(tmp_path, "web-1", {"away": sshd.target()})
    host.make_set()
    sshd.shut_out()
    refused(host, "does not accept key_file of target away: it is wrong or was revoked")
    sshd.key.chmod(0o644)
    refused(host, f"key_file of target away is open to others: chmod 600 {sshd.key}", code=1)
    sshd.key.chmod(0o600)
    sshd.admit()  # else ssh has no use for the private half
    sshd.key.write_text("no key\n")
    refused(host, "key_file of target away is no private key that ssh can read")


def test_a_full_disk_there(sshd: Sshd, tmp_path: Path) -> None:
    host = Sender(tmp_path, "web-1", {"away": sshd.target()})
    set_id = host.make_set(size=2_000_000)
    with small_disk(sshd.root):
        refused(host, "the disk there is full or cannot be written: make room")
        assert f"manifest_{set_id}.json" not in {one.name for one in sshd.root.rglob("*")}
    host.good("push")


def test_a_disk_there_that_is_not_mounted_is_not_made_up_for(tmp_path: Path) -> None:
    with Sshd(forced=False) as sshd:
        host = Sender(tmp_path, "web-1", {"away": sshd.target()})
        host.make_set()
        host.good("push")
        sshd.root.rename(sshd.root.with_name("unmounted"))
        refused(host, "there is no folder")
        assert not sshd.root.exists()


def test_a_receiving_side_that_forbids_removing_says_so(sshd: Sshd, tmp_path: Path) -> None:
    sshd.options = "-no-del"
    sshd.admit()
    host = Sender(tmp_path, "web-1", {"away": sshd.target()})
    for day in (1, 2):
        host.make_set(f"2025-01-0{day} 12:00:00")
    host.good("push")
    host.configure({"away": {**sshd.target(), "keep": 1}})
    refused(host, "forced command does not allow it")
    assert len(sshd.files("web-1")) == 6


@pytest.mark.parametrize(("endpoint", "program"), [("s3", "rclone"), ("sshd", "rsync"), ("sshd", "ssh")], indirect=["endpoint"])
def test_a_program_that_is_not_installed(endpoint: Endpoint, program: str, tmp_path: Path) -> None:
    host = Sender(tmp_path, "web-1", {"away": endpoint.target()})
    host.make_set()
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("setpriv", "rsync" if program == "ssh" else "true"):
        (bare / name).symlink_to(str(shutil.which(name)))
    refused(host, f"the program {program} is not installed: install it (Debian: apt-get install", env={"PATH": str(bare)})


def test_no_target_an_unknown_one_and_a_bad_id(s3: S3, tmp_path: Path) -> None:
    host = Sender(tmp_path, "web-1", {})
    host.make_set()
    assert "no target is configured" in host.bad("push", code=2)
    host.configure({"away": s3.target()})
    assert "there is no target 'awya': there are away" in host.bad("push", "--target", "awya", code=2)
    assert "is not the ID of a set" in host.bad("pull", "yesterday", code=2)
    assert "names no host" in host.bad("pull", "latest", "--host", "../web-2", code=2)


# --- secrets, limits, hooks, the log


def test_secrets_are_in_no_argument_no_file_and_no_output(s3: S3, folder: str, tmp_path: Path) -> None:
    secret = "a'very \"secret$word"
    target = prefixed(s3, folder)
    del target["access_key_id"], target["secret_access_key"]
    host = Sender(tmp_path, "web-1", {"away": {**target, "access_key_id": "THEACCESSKEYID", "secret_access_key": secret}})
    host.make_set()
    log = f'printf "%s\\n" "$@" >>{tmp_path}/argv\nenv >>{tmp_path}/env\nexec "$REAL" "$@"\n'
    shown = host.run("push", env=on_path(tmp_path / "bin", "rclone", log))
    assert shown.returncode == 0
    broken = {**target, "bucket": "there-is-none", "access_key_id": "THEACCESSKEYID", "secret_access_key": secret}
    host.configure({"away": broken})
    shown_too = host.run("push", "--json")
    config = subprocess.run(
        [host.argv()[0], "config", "--config", str(host.file)], env=host.environment(), capture_output=True, text=True, check=True
    )
    assert (
        "offsite.targets.away.secret_access_key  ********" in " ".join(config.stdout.split("  ")).replace("   ", "  ")
        or "********" in config.stdout
    )
    printed = shown.stdout + shown.stderr + shown_too.stdout + shown_too.stderr + config.stdout + (tmp_path / "argv").read_text()
    kept = b"".join(path.read_bytes() for path in [*host.backup_dir.rglob("*"), *host.log_dir.rglob("*")] if path.is_file())
    assert secret in (tmp_path / "env").read_text(), "the test must look where the secret is"
    for word in (secret, "THEACCESSKEYID"):
        assert word not in printed and word.encode() not in kept


def test_secrets_may_come_from_the_environment(s3: S3, folder: str, tmp_path: Path) -> None:
    key, secret = s3.demand_keys()
    try:
        target = {name: value for name, value in prefixed(s3, folder).items() if "key" not in name}
        host = Sender(tmp_path, "web-1", {"my_store": target})
        host.make_set()
        ours = {"AGENTMEM_OFFSITE_MY_STORE_ACCESS_KEY_ID": key, "AGENTMEM_OFFSITE_MY_STORE_SECRET_ACCESS_KEY": secret}
        assert host.good("push", env=ours)["changed"]
        amazons = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}
        assert host.good("push", env=amazons)["problems"] == []
    finally:
        s3.reset()


@pytest.mark.parametrize(
    ("endpoint", "told"), [("s3", "RCLONE_BWLIMIT=3145728B"), ("sshd", "--bwlimit=3072")], indirect=["endpoint"]
)
def test_the_bandwidth_limit_reaches_the_program(endpoint: Endpoint, told: str, folder: str, tmp_path: Path) -> None:
    host = Sender(tmp_path, "web-1", {"away": {**prefixed(endpoint, folder), "bandwidth_limit": "3M"}}, bandwidth_limit="1G")
    host.make_set()
    program = "rsync" if isinstance(endpoint, Sshd) else "rclone"
    log = f'echo "$@" >>{tmp_path}/calls\nenv >>{tmp_path}/calls\nexec "$REAL" "$@"\n'
    host.good("push", env=on_path(tmp_path / "bin", program, log))
    assert told in (tmp_path / "calls").read_text()


def test_hooks_and_the_audit_log_know_of_it(s3: S3, folder: str, tmp_path: Path) -> None:
    host = Sender(tmp_path, "web-1", {"away": prefixed(s3, folder)})
    set_id = host.make_set()
    words = ["sh", "-c", f'echo "$AGENTMEM_HOOK $AGENTMEM_VERB $AGENTMEM_TARGETS $AGENTMEM_ERROR $SECRET" >>{tmp_path}/hooks']
    host.extra = {"hooks": {"before": words, "after": words, "error": words}}
    host.configure({"away": prefixed(s3, folder)})
    host.good("push")
    host.configure({"away": {**prefixed(s3, folder), "bucket": "there-is-none"}})
    host.bad("push")
    told = (tmp_path / "hooks").read_text().splitlines()
    assert [line.split()[:3] for line in told] == [
        ["before", "sync", "away"], ["after", "sync", "away"], ["before", "sync", "away"], ["error", "sync", "away"],
    ]  # fmt: skip
    assert "there is no such bucket" in told[-1]
    lines = [json.loads(line) for line in audit.paths(host.backup_dir)[0].read_text().splitlines()]
    ours = [(line["result"], line["target"], line["sent"]) for line in lines if line["verb"] == "sync"]
    assert ours == [("done", "away", [set_id]), ("failed", "away", [])]
    assert f"set {set_id}: sent 3 files" in (host.log_dir / "backup.log").read_text()


def test_a_dry_run_says_what_would_be_sent_and_sends_nothing(s3: S3, folder: str, tmp_path: Path) -> None:
    host = Sender(tmp_path, "web-1", {"away": prefixed(s3, folder)})
    set_id = host.make_set()
    answer = host.good("push", "--dry-run")
    assert answer["targets"]["away"]["sent"] == [set_id] and s3.files(f"{folder}/web-1") == {}
    assert answer["targets"]["away"]["sent_bytes"] == sum(len(body) for body in host.files(set_id).values())
    host.good("push")
    assert not host.good("push", "--dry-run")["changed"]


def test_check_shows_a_table(s3: S3, sshd: Sshd, folder: str, tmp_path: Path) -> None:
    host = Sender(tmp_path, "web-1", {"away": prefixed(s3, folder), "other_host": sshd.target()})
    old = host.make_set("2025-01-01 12:00:00")
    host.good("push", "--target", "away")
    done = host.run("check")
    assert done.stdout.splitlines() == ["ID               HERE      AWAY   OTHER_HOST", f"{old}  verified  whole  missing"]
    assert done.returncode == 1 and f"other_host: set {old} is missing there" in done.stderr


def test_a_pulled_set_that_retention_would_take_is_told(s3: S3, folder: str, tmp_path: Path) -> None:
    host = Sender(tmp_path, "web-1", {"away": prefixed(s3, folder)})
    old = host.make_set("2025-01-01 12:00:00")
    host.good("push")
    for path in host.backup_dir.glob(f"*_{old}.*"):
        path.unlink()
    done = host.run("pull", old)
    assert done.returncode == 0 and "the next backup removes what is older than retention_days" in done.stdout + done.stderr
    assert host.good("push")["targets"]["away"]["whole"] == [old], "brought back from one's own place, it is one's own"


def test_ids_are_of_the_present() -> None:
    assert clock.is_set_id(clock.set_id(clock.now())) and sys.version_info >= (3, 10)
