# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""backup_set_sync as ansible-playbook runs it, against a real object store and a real sshd, which are asked by another way.

The target backup_set_sync, which `ansible-test integration` runs, goes the same way over ssh; what takes longest here is left to
`script/test --all`.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from agentmem_backup import lock

from tests.integration.test_module_bad_input import one_sentence
from tests.support.controller import CHANGED, FAILED, UNCHANGED, Controller, Task, outcome, task
from tests.support.endpoints import S3, Sshd
from tests.support.sender import Sender

ABSENT = "20010203_040506"


@pytest.fixture
def target(s3: S3, tmp_path: Path) -> dict[str, Any]:
    """The object store, in a folder of this test alone."""
    return {**s3.target(), "prefix": tmp_path.name}


def sync(sender: Sender, *, check: bool = False, **options: Any) -> Task:
    return task("backup_set_sync", check=check, settings_file=str(sender.file), **options)


def four(sender: Sender, **options: Any) -> list[Task]:
    """Check, real, check again, real again."""
    return [sync(sender, check=check, **options) for check in (True, False, True, False)]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_set_goes_to_every_target_once_and_comes_back_once(
    s3: S3, sshd: Sshd, target: dict[str, Any], controller: Controller, tmp_path: Path
) -> None:
    host = Sender(tmp_path, "web-1", {"cloud": target, "receiver": sshd.target()})
    first, second = host.make_set("2025-01-03 12:00:00"), host.make_set("2025-01-04 12:00:00")
    here, folder = host.state(), f"{target['prefix']}/web-1"
    (tried,) = controller.run(None, [sync(host, check=True)])
    assert outcome([tried]) == [CHANGED] and sorted(tried["targets"]["cloud"]["sent"]) == [first, second]
    assert (s3.files(folder), sshd.files("web-1")) == ({}, {})

    pushed = controller.run(None, [sync(host, targets=["receiver"]), *four(host), sync(host, action="check", read_back=True)])
    assert outcome(pushed) == [CHANGED, CHANGED, CHANGED, UNCHANGED, UNCHANGED, UNCHANGED], pushed
    assert list(pushed[0]["targets"]) == ["receiver"]
    assert [pushed[2]["targets"][name]["sent"] for name in ("cloud", "receiver")] == [[second, first], []]
    assert pushed[4]["msg"] == "every set that leaves is at every target: nothing to do"
    assert s3.files(folder) == sshd.files("web-1") == here
    states = {name: one["state"] for name, one in pushed[5]["sets"][second]["targets"].items()}
    assert states == {"cloud": "whole", "receiver": "whole"}

    fresh = Sender(tmp_path, "web-2", {"cloud": target, "receiver": sshd.target()})
    options = {"action": "pull", "id": "latest", "host": "web-1"}
    (looked,) = controller.run(None, [sync(fresh, check=True, **options)])
    assert outcome([looked]) == [CHANGED] and looked["id"] == second
    assert fresh.state() == {}
    pulled = controller.run(None, four(fresh, **options)[1:])
    assert outcome(pulled) == [CHANGED, UNCHANGED, UNCHANGED], pulled
    assert pulled[0]["pulled"] == [second]
    assert fresh.state() == host.files(second)
    assert s3.files(folder) == sshd.files("web-1") == here


@pytest.mark.slow
def test_keep_removes_there_and_check_mode_says_nothing_of_what_it_has_not_done(
    s3: S3,
    target: dict[str, Any],
    controller: Controller,
    tmp_path: Path,
) -> None:
    host = Sender(tmp_path, "web-1", {"cloud": target})
    old = host.make_set("2025-01-03 12:00:00")
    controller.run(None, [sync(host)])
    host.configure({"cloud": {**target, "keep": 1}}, min_local_sets=1)
    new = host.make_set("2025-01-04 12:00:00")
    results = controller.run(None, four(host))
    assert outcome(results) == [CHANGED, CHANGED, UNCHANGED, UNCHANGED], results
    assert results[1]["targets"]["cloud"]["removed"] == [old]
    assert s3.files(f"{target['prefix']}/web-1") == host.files(new)


@pytest.mark.slow
def test_bytes_changed_there_are_a_failure_that_changes_nothing_and_the_next_push_mends_them(
    s3: S3,
    target: dict[str, Any],
    controller: Controller,
    tmp_path: Path,
) -> None:
    host = Sender(tmp_path, "web-1", {"cloud": target})
    set_id = host.make_set()
    controller.run(None, [sync(host)])
    folder = f"{target['prefix']}/web-1"
    name = next(one for one in s3.files(folder) if one.startswith("config_"))
    content = bytearray(s3.files(folder)[name])
    content[len(content) // 2] ^= 1
    s3.change(f"{folder}/{name}", bytes(content))
    tasks = [sync(host, action="check"), sync(host, action="check", read_back=True), sync(host, check=True), sync(host)]
    looked, read, foretold, mended = controller.run(None, tasks)
    assert outcome([looked, read, foretold, mended]) == [UNCHANGED, FAILED, CHANGED, CHANGED]
    assert read["exit_code"] == 3 and one_sentence(read["msg"])
    assert f"set {set_id} is damaged there: {name} has other content than was sent" in read["msg"]
    assert s3.files(folder) == host.state()


def refused(controller: Controller, host: Sender, cases: list[tuple[Task, str]]) -> None:
    """Each fails with its sentence, and says that nothing was changed; nothing here was."""
    before = host.state()
    results = controller.run(None, [one for one, __ in cases])
    for (one, sentence), result in zip(cases, results, strict=True):
        assert result["failed"] and not result["changed"] and one_sentence(result["msg"]), (one, result)
        assert sentence in result["msg"], (one, result["msg"])
    assert "Traceback" not in controller.printed
    assert host.state() == before


def test_bad_input(s3: S3, sshd: Sshd, target: dict[str, Any], controller: Controller, tmp_path: Path) -> None:
    host, without = Sender(tmp_path, "web-1", {"cloud": target}), Sender(tmp_path, "web-2", {})
    away = Sender(tmp_path, "web-3", {"cloud": {**target, "endpoint": "http://127.0.0.1:1"}}, timeout_s=2)
    gone = Sender(tmp_path, "web-4", {"cloud": {**target, "bucket": "there-is-none"}})
    receiver = Sender(tmp_path, "web-5", {"receiver": {**sshd.target(), "port": 1}}, timeout_s=2)
    for one in (host, without, away, gone, receiver):
        one.make_set()
    cases = [
        (sync(host, targets=["clowd"]), "there is no target 'clowd': there are cloud"),
        (sync(without), "no target is configured"),
        (sync(host, action="send"), "value of action must be one of: push, pull, check, got: send"),
        (sync(host, action="pull"), "action is pull but all of the following are missing: id"),
        (sync(host, id="latest"), "id has no effect with action push: leave it out"),
        (sync(host, host="web-2"), "host has no effect with action push: leave it out"),
        (sync(host, read_back=True), "read_back has no effect with action push: leave it out"),
        (sync(host, action="pull", id="yesterday"), "is not the ID of a set"),
        (sync(host, action="pull", id="latest", host="../web-2"), "names no host"),
        (sync(host, action="pull", id=ABSENT), f"no target has a whole set {ABSENT} of web-1"),
        (sync(host, backup_dir="/there/is/none"), "/there/is/none"),
        (sync(away), "is not reached: look at the network"),
        (sync(away, check=True), "is not reached: look at the network"),
        (sync(away, action="check"), "is not reached: look at the network"),
        (sync(away, action="pull", id="latest"), "is not reached: look at the network"),
        (sync(receiver), "is not reached: look at the network"),
        (sync(gone), "there-is-none"),
    ]
    refused(controller, host, cases)
    assert s3.files(target["prefix"]) == {}


@pytest.mark.slow
@pytest.mark.parametrize("program", ["rclone", "rsync"])
def test_a_program_that_is_not_installed(
    s3: S3,
    sshd: Sshd,
    target: dict[str, Any],
    program: str,
    controller: Controller,
    tmp_path: Path,
) -> None:
    host = Sender(tmp_path, "web-1", {"away": target if program == "rclone" else sshd.target()})
    host.make_set()
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "setpriv").symlink_to(str(shutil.which("setpriv")))
    sentence = f"the program {program} is not installed: install it (Debian: apt-get install"
    tasks = [sync(host), sync(host, check=True), sync(host, action="check"), sync(host, action="pull", id="latest")]
    refused(controller, host, [({**one, "environment": {"PATH": str(bare)}}, sentence) for one in tasks])


@pytest.mark.slow
def test_what_fails_at_one_target_is_a_failure_that_says_what_went_elsewhere(
    s3: S3,
    target: dict[str, Any],
    controller: Controller,
    tmp_path: Path,
) -> None:
    host = Sender(tmp_path, "web-1", {"cloud": target, "gone": {**target, "bucket": "there-is-none"}})
    set_id = host.make_set()
    (result,) = controller.run(None, [sync(host)])
    assert result["failed"] and one_sentence(result["msg"]) and result["msg"].startswith("gone: ")
    assert result["targets"]["cloud"]["sent"] == [set_id] and result["changed"]
    assert s3.files(f"{target['prefix']}/web-1") == host.state()


@pytest.mark.slow
def test_another_push_at_work_is_told(target: dict[str, Any], controller: Controller, tmp_path: Path) -> None:
    host = Sender(tmp_path, "web-1", {"cloud": target})
    host.make_set()
    with lock.hold(host.backup_dir / ".state" / "offsite.lock", "sync", 0):
        (result,) = controller.run(None, [sync(host)])
    assert result["failed"] and not result["changed"] and result["exit_code"] == 75 and one_sentence(result["msg"])
