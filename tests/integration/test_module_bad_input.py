# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bad input for the modules: one sentence, nothing changed, nothing half-done, no secret in any form with -vvv."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.faults.test_secrets import forms_of
from tests.support import command, compare
from tests.support.controller import Controller, Task, task
from tests.support.servers import CHECKOUT, Stores, awkward_password

ABSENT = "20010203_040506"
NOBODY = "127.0.0.9"
"""An address of this machine at which nothing listens on port 9."""

ARGUMENTS: list[tuple[Task, str]] = [
    (task("redis_dump", redis_port="many"), r"'redis_port' .* int"),
    (task("redis_dump", redis_tls="perhaps"), r"'redis_tls' .* boolean"),
    (task("postgresql_dump", lock_wait="long"), r"'lock_wait' .* float"),
    (task("backup_set_create", settings="log_dir"), r"'settings' .* dict"),
    (task("config_dump", compression="brotli"), r"value of compression must be one of: gzip, zstd, got: brotli"),
    (task("config_verify", depth="deep"), r"value of depth must be one of: quick, full, got: deep"),
    (task("backup_set_create", components=["mysql"]), r"value of components must be one or more of: .* mysql"),
    (task("config_dump", colour="red"), r"Unsupported parameters .*colour"),
    (task("config_verify", id=ABSENT, path="/dev/null"), r"parameters are mutually exclusive: id\|path"),
    (task("qdrant_restore", id=ABSENT, before="2001-01-01", confirm=True), r"mutually exclusive: id\|before\|path"),
    (task("backup_set_restore", components=["redis"], files={"redis": "/x"}, confirm=True), r"exclusive: components\|files"),
    (task("redis_restore", confirm=True), r"one of the following is required: id, before, path"),
    (task("backup_set_restore", confirm=True), r"one of the following is required: id, before, files"),
    (task("backup_set_verify", acknowledge=True), r"acknowledge is True but all of the following are missing: id"),
]
"""What Ansible itself refuses, because the module declares it."""

ENGINE: list[tuple[Task, str]] = [
    (task("config_dump", compression_level=11), r"compression_level must lie between 0 and 9, not 11"),
    (task("redis_dump", redis_port=70000), r"redis\.port must lie between 1 and 65535, not 70000"),
    (task("backup_set_create", retention_days=0), r"retention_days must be at least 1, not 0"),
    (task("config_dump", max_age="yesterday"), r"yesterday"),
    (task("config_dump", settings={"colour": "red"}), r"settings has an unknown name 'colour'"),
    (task("config_dump", settings={"redis.port": "many"}), r"redis\.port in the module's options must be a whole number"),
    (task("config_dump", settings={"backup_dir": "/x"}, backup_dir="/y"), r"backup_dir is given twice"),
    (task("config_dump", settings_file="/there/is/none.yml"), r"/there/is/none\.yml"),
    (task("config_verify", id="yesterday"), r"yesterday"),
    (task("config_verify", id=ABSENT), ABSENT),
    (task("config_verify", path="/there/is/none.tar.gz"), r"/there/is/none\.tar\.gz"),
    (task("backup_set_verify", id=ABSENT), ABSENT),
    (task("backup_set_restore", id=ABSENT, confirm=True), ABSENT),
    (task("backup_set_restore", before="2001-01-01", confirm=True), r"2001"),
    (task("redis_restore", before="soon", confirm=True), r"soon"),
    (task("backup_set_restore", id="latest"), r"set confirm to true"),
    (task("config_dump", config_directory="/there/is/none"), r"/there/is/none"),
    (task("config_dump", backup_dir="/dev/null"), r"/dev/null"),
    (task("config_dump", backup_dir="/proc/agentmem"), r"/proc/agentmem"),
]
"""What the engine refuses before it looks at a store."""


def unreachable(secret: str) -> list[tuple[Task, str]]:
    """Stores that do not answer, or refuse the password."""
    postgresql: dict[str, Any] = {"postgresql_password": secret}
    redis: dict[str, Any] = {"redis_password": secret}
    qdrant: dict[str, Any] = {"qdrant_api_key": secret}
    nobody = {"postgresql_host": NOBODY, "redis_host": NOBODY, "qdrant_url": f"http://{NOBODY}:9"}
    ports = {"postgresql_port": 9, "redis_port": 9}
    return [
        (task("postgresql_dump", **postgresql, postgresql_host=NOBODY, postgresql_port=9), rf"PostgreSQL.*{NOBODY}"),
        (task("redis_dump", **redis, redis_host=NOBODY, redis_port=9), rf"Redis.*{NOBODY}:9"),
        (task("qdrant_dump", **qdrant, qdrant_url=f"http://{NOBODY}:9"), rf"Qdrant.*{NOBODY}:9"),
        (task("backup_set_create", **postgresql, **redis, **qdrant, **nobody, **ports), NOBODY),
        (task("backup_set_restore", id="latest", confirm=True, **postgresql, **redis, **qdrant, **nobody, **ports), NOBODY),
        (task("backup_set_restore", id="latest", check=True, **postgresql, **redis, **qdrant), r"password"),
        (task("postgresql_dump", **postgresql), r"PostgreSQL.*password"),
        (task("redis_dump", **redis), r"Redis.*password"),
        (task("qdrant_dump", **qdrant), r"Qdrant.*key"),
        (task("postgresql_restore", id="latest", confirm=True, force=True, **postgresql), r"PostgreSQL.*password"),
        (task("redis_restore", id="latest", confirm=True, force=True, **redis), r"Redis.*password"),
        (task("qdrant_restore", id="latest", confirm=True, force=True, **qdrant), r"Qdrant.*key"),
    ]


def tree(directory: Path) -> dict[str, tuple[int, int]]:
    """What lies below, files with size and time of their last change; who holds the lock and who tried what is left out."""
    found = {}
    for path in directory.rglob("*"):
        if path.name not in ("lock", "runs.json") and not path.name.startswith("audit."):
            status = path.lstat()
            found[str(path.relative_to(directory))] = (status.st_size, status.st_mtime_ns) if path.is_file() else (0, 0)
    return found


def one_sentence(message: str) -> bool:
    return "\n" not in message.strip() and "Traceback" not in message and 10 < len(message) < 1500


def shown(secret: str, text: str) -> list[str]:
    """The forms of a secret that stand in a text: those of test_secrets, and as JSON and Python write it."""
    forms = {form.decode() for form in forms_of(secret)}
    forms |= {json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1], repr(secret)[1:-1]}
    return [form for form in forms if form in text]


def refuse_all(stores: Stores, controller: Controller, cases: list[tuple[Task, str]], *arguments: str, **env: str) -> list[Any]:
    """Run the cases in one play; each must fail with its sentence and change nothing."""
    before, files = compare.capture(stores), tree(stores.backup_dir)
    results = controller.run(stores, [one for one, __ in cases], *arguments, **env)
    faults = [
        f"{one}: {json.dumps(result)}"
        for (one, pattern), result in zip(cases, results, strict=True)
        if not (
            result["failed"] and not result.get("changed") and one_sentence(result["msg"]) and re.search(pattern, result["msg"])
        )
    ]
    assert faults == []
    assert "Traceback" not in controller.printed
    assert tree(stores.backup_dir) == files
    assert compare.differences(before, compare.capture(stores)) == []
    return results


def test_wrong_types_contradictions_and_what_is_not_there(stores: Stores, controller: Controller) -> None:
    command.create(stores, "--component", "config")
    results = refuse_all(stores, controller, ARGUMENTS + ENGINE)
    assert {result["exit_code"] for result in results[len(ARGUMENTS) :]} <= {1, 2}


def test_stores_that_cannot_be_reached_and_no_secret_shows(stores: Stores, controller: Controller) -> None:
    """The secrets come from a file of variables, as from a vault: what is on the command line would be the test's own doing."""
    command.create(stores)
    secret = awkward_password("wrong")
    variables = controller.directory / "secrets.json"
    variables.write_text(json.dumps({"the_secret": secret}))
    cases = unreachable("{{ the_secret }}")
    results = refuse_all(stores, controller, cases, "-vvv", "-e", f"@{variables}")
    everything = controller.printed + json.dumps(results)
    for text in (everything, (stores.log_dir / "backup.log").read_text()):
        assert shown(secret, text) == []
    own = (stores.postgres.app_password, stores.redis.password, stores.qdrant.api_key or "")
    assert [form for one in own for form in shown(one, everything)] == []
    assert "VALUE_SPECIFIED_IN_NO_LOG_PARAMETER" in controller.printed


def test_the_search_for_secrets_finds_them() -> None:
    secret = awkward_password("x")
    texts = [f"x {secret} y", json.dumps({"msg": secret}), repr([secret])]
    assert [bool(shown(secret, text)) for text in texts] == [True] * 3
    assert shown(secret, "nothing") == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system that root cannot write to")
def test_a_full_and_a_read_only_disk(stores: Stores, controller: Controller) -> None:
    disks = {"full": "size=64k,mode=0700", "read-only": "ro,mode=0700"}
    mounted: list[Path] = []
    try:
        for name, options in disks.items():
            path = controller.directory / name
            path.mkdir()
            if subprocess.run(
                ["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], capture_output=True, check=False
            ).returncode:
                pytest.skip("mounting is not allowed here")
            mounted.append(path)
        full, read_only = mounted
        cases = [
            (task("backup_set_create", backup_dir=str(full)), r"make room"),
            (task("config_dump", backup_dir=str(read_only)), r"lies on a read-only file system"),
        ]
        refuse_all(stores, controller, cases)
        assert [list(disk.rglob("*_2*")) for disk in mounted] == [[], []]
    finally:
        for path in mounted:
            subprocess.run(["umount", path], check=True)


def test_what_runs_before_the_respawn_parses_on_python_3_8() -> None:
    """All that is imported at the top of a module's file, and of what that imports."""
    waiting = sorted((CHECKOUT / "plugins" / "modules").glob("*.py"))
    seen: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        for node in ast.parse(path.read_text(), feature_version=(3, 8)).body:
            if isinstance(node, ast.ImportFrom) and node.level:
                base = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
                found = [base.with_suffix(".py"), *((base / name.name).with_suffix(".py") for name in node.names)]
                waiting += [one for one in [*found, base / "__init__.py"] if one.is_file()]
    names = {path.name for path in seen}
    assert {"_module.py", "_argspec.py", "_info.py", "_actions.py", "libraries.py", "errors.py"} <= names
    assert not {"create.py", "restore.py", "postgresql.py", "settings.py"} & names
