# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules as ansible-playbook runs them, on four real stores; what the stores hold is looked at by another way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import basic

from tests.support import compare
from tests.support.controller import CHANGED, FAILED, UNCHANGED, Controller, outcome, task
from tests.support.servers import Stores, throwaway_directory

STORES = ("postgresql", "redis", "qdrant", "config")


def sets_in(stores: Stores) -> list[str]:
    return sorted(path.stem.removeprefix("manifest_") for path in stores.backup_dir.glob("manifest_*.json"))


def test_a_set_is_made_once_verified_and_brought_back_once(stores: Stores, controller: Controller) -> None:
    """Check, real, check again, real again; then the state by another way. The application is not asked: there is none."""
    create = {"fingerprint": "content", "max_age": "2h"}
    made = controller.run(
        stores,
        [
            task("backup_set_info"),
            task("backup_set_create", check=True, **create),
            task("backup_set_create", **create),
            task("backup_set_create", check=True, **create),
            task("backup_set_create", **create),
            task("backup_set_verify"),
            task("backup_set_restore", id="latest", confirm=True),
            task("backup_set_info", id="latest"),
        ],
    )
    assert outcome(made) == [UNCHANGED, CHANGED, CHANGED, UNCHANGED, UNCHANGED, UNCHANGED, UNCHANGED, UNCHANGED], made
    assert (made[0]["sets"], made[0]["newest_verified"]) == ([], None)
    assert any("PostgreSQL" in line for line in made[1]["plan"])
    (set_id,) = sets_in(stores)
    assert [result["id"] for result in made[2:7]] == [set_id] * 5
    assert made[4]["components"] == made[2]["components"]
    assert made[2]["components"]["postgresql"]["fingerprint"]["tables"] == 21
    assert made[6]["msg"] == f"the live data is equal to {set_id}: nothing to do"
    assert made[7]["newest_verified"] == made[7]["set"]["id"] == set_id

    before = compare.capture(stores)
    stores.destroy()
    assert compare.differences(before, compare.capture(stores))
    restore = {"id": set_id, "confirm": True}
    back = controller.run(
        stores,
        [
            task("backup_set_restore", id=set_id),
            task("backup_set_restore", check=True, diff=True, id=set_id),
            task("backup_set_restore", **restore),
            task("backup_set_restore", check=True, **restore),
            task("backup_set_restore", **restore),
        ],
    )
    assert outcome(back) == [FAILED, CHANGED, CHANGED, UNCHANGED, UNCHANGED], back
    assert "set confirm to true" in back[0]["msg"]
    assert {line.partition(":")[0] for line in back[1]["diff"]["prepared"].splitlines()} == set(STORES)
    assert back[1]["plan"]
    assert back[2]["equal"]
    assert {check["name"]: check["outcome"] for check in back[2]["checks"]}["memories"] == "passed"
    assert compare.differences(before, compare.capture(stores)) == []


def test_where_there_is_nothing_to_do_the_stores_part_of_the_engine_does_not_travel(
    stores: Stores, controller: Controller
) -> None:
    """Under async the module answers by itself: both ways must say the same, and only what is plainly fresh is cut short."""
    dump = task("config_dump", max_age="2h")
    (made,) = controller.run(stores, [dump])
    (short,) = controller.run(stores, [dump], "-vvvvv")
    assert "_engine/freshness.py" in controller.printed and "_engine/components/" not in controller.printed
    own, *others = controller.run(
        stores,
        [
            {**dump, "async": 60, "poll": 1},
            task("config_dump", max_age="2h", qdrant_url="http://localhost:1"),
            task("config_dump", max_age="2h", settings={"config.directory": "/x"}, config_directory="/y"),
            task("config_dump", max_age="soon"),
            task("config_dump", max_age="2h", config_directory=str(stores.log_dir)),
        ],
        "-vvvvv",
    )
    assert "_engine/components/redis.py" in controller.printed
    assert own["msg"].endswith(": nothing to do") and short["msg"].endswith(": nothing to do")
    apart = {"msg", "ansible_job_id", "finished", "results_file", "started", "stderr", "stderr_lines", "stdout", "stdout_lines"}
    assert {name: own[name] for name in own.keys() - apart} == {name: short[name] for name in short.keys() - apart}
    assert outcome([made, short, own]) == [CHANGED, UNCHANGED, UNCHANGED] and short["id"] == made["id"]
    assert outcome(others) == [FAILED, FAILED, FAILED, CHANGED], others
    assert "Unsupported parameters" in others[0]["msg"] and "given twice" in others[1]["msg"] and "soon" in others[2]["msg"]


def test_each_store_by_itself(stores: Stores, controller: Controller) -> None:
    made = controller.run(stores, [task(f"{store}_{verb}") for store in STORES for verb in ("dump", "verify")])
    assert outcome(made) == [CHANGED, UNCHANGED] * 4, made
    ids = dict(zip(STORES, sets_in(stores), strict=True))
    assert [result["id"] for result in made] == [one for store in STORES for one in [ids[store]] * 2]
    files = {store: made[2 * number]["components"][store]["file"] for number, store in enumerate(STORES)}
    before = compare.capture(stores)
    stores.destroy()
    back = controller.run(
        stores,
        [
            task("postgresql_restore", id="latest", confirm=True),
            task("redis_restore", path=files["redis"], confirm=True),
            task("qdrant_restore", before="2999-01-01", confirm=True),
            task("config_restore", id=ids["config"], confirm=True, force=True),
            task("postgresql_verify", path=files["postgresql"], depth="quick"),
            task("redis_verify", path=files["config"]),
            task("redis_verify", id=ids["config"]),
        ],
    )
    assert outcome(back) == [CHANGED] * 4 + [UNCHANGED] + [FAILED] * 2, back
    assert [result["id"] for result in back[:4]] == [ids["postgresql"], Path(files["redis"]).name, ids["qdrant"], ids["config"]]
    assert back[-2]["msg"] == f"{files['config']} is not a backup file of redis"
    assert back[-1]["msg"] == f"set {ids['config']} has no redis: it holds config"
    assert compare.differences(before, compare.capture(stores)) == []


def test_the_rows_of_one_table_are_brought_back_once(stores: Stores, controller: Controller) -> None:
    (made,) = controller.run(stores, [task("postgresql_dump", fingerprint="content")])
    before = compare.capture(stores)
    with stores.postgres.connect_application(autocommit=True) as connection:
        connection.execute("UPDATE memories SET content = 'gone'")
        connection.execute("INSERT INTO log_without_key VALUES (now(), 'later')")
    restore = {"id": made["id"], "confirm": True, "postgresql_only_tables": ["public.memories"]}
    back = controller.run(
        stores,
        [
            task("postgresql_restore", check=True, **restore),
            task("postgresql_restore", **restore),
            task("postgresql_restore", **restore),
            task("backup_set_restore", **restore),
            task("postgresql_restore", **{**restore, "postgresql_only_tables": ["absent"]}),
        ],
    )
    assert outcome(back) == [CHANGED, CHANGED, UNCHANGED, UNCHANGED, FAILED], back
    assert "the rows of public.memories" in back[0]["plan"][0]
    assert "the dump has no table absent" in back[-1]["msg"]
    with stores.postgres.connect_application(autocommit=True) as connection:
        (kept,) = connection.execute("SELECT relname FROM pg_class WHERE relname LIKE 'memories\\_\\_before\\_%'").fetchone()
        connection.execute(f'DROP TABLE "{kept}"')
        connection.execute("DELETE FROM log_without_key WHERE line = 'later'")
    assert compare.differences(before, compare.capture(stores)) == []


def test_what_does_not_verify_fails_with_every_fault(stores: Stores, controller: Controller) -> None:
    (made,) = controller.run(stores, [task("backup_set_create", components=["redis", "config"])])
    path = Path(made["components"]["redis"]["file"])
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    before = compare.capture(stores)
    results = controller.run(
        stores,
        [
            task("redis_verify"),
            task("config_verify"),
            task("backup_set_verify", check=True),
            task("backup_set_verify"),
            task("backup_set_restore", id="latest", confirm=True),
            task("redis_restore", id="latest", confirm=True),
            task("backup_set_info"),
        ],
    )
    assert outcome(results) == [FAILED, UNCHANGED, FAILED, FAILED, FAILED, FAILED, UNCHANGED], results
    for number in (0, 2, 3):
        assert results[number]["verdict"] == "failed"
        assert results[number]["exit_code"] == 3
        assert any("SHA256" in fault for fault in results[number]["faults"])
    assert "nothing was touched" in results[4]["msg"]
    assert results[6]["sets"][0]["verdict"] == "failed"
    assert results[6]["newest_verified"] is None
    assert compare.differences(before, compare.capture(stores)) == []


def test_a_store_that_shrank_is_an_alarm_until_it_is_acknowledged(stores: Stores, controller: Controller) -> None:
    controller.run(stores, [task("redis_dump")])
    with stores.redis.client() as client:
        client.flushall()
    (alarmed,) = controller.run(stores, [task("redis_dump")])
    assert outcome([alarmed]) == [(True, True)]
    assert "redis shrank by" in alarmed["msg"]
    set_id = alarmed["id"]
    results = controller.run(
        stores,
        [
            task("backup_set_verify", id=set_id),
            task("redis_dump", max_age="1d", check=True),
            task("backup_set_verify", id=set_id, acknowledge=True),
            task("redis_dump", max_age="1d"),
        ],
    )
    assert outcome(results) == [FAILED, UNCHANGED, UNCHANGED, UNCHANGED], results
    assert results[1]["id"] != set_id
    assert results[3]["id"] == set_id


# --- interpreters


@pytest.fixture(scope="module")
def bare_python() -> Iterator[str]:
    """A Python without any library of ours."""
    with throwaway_directory("agentmem-bare-") as directory:
        base = getattr(sys, "_base_executable", sys.executable)
        subprocess.run([base, "-m", "venv", "--without-pip", str(directory / "bare")], check=True, timeout=60)
        yield str(directory / "bare" / "bin" / "python")


def old_python(version: str) -> str | None:
    """A Python of that minor version, which ansible-core still runs on and the engine does not."""
    there = Path("~/.pyenv/versions").expanduser().glob(f"{version}.*/bin/python")
    code = f"import sys; sys.exit('%d.%d' % sys.version_info[:2] != '{version}')"
    for one in [shutil.which(f"python{version}"), *map(str, there)]:
        if one and subprocess.run([one, "-c", code], check=False).returncode == 0:
            return one
    return None


def test_a_python_without_any_library_goes_on_in_the_virtual_environment(
    stores: Stores, controller: Controller, bare_python: str
) -> None:
    tasks = [
        task("config_dump", interpreter=sys.executable),
        task("config_verify"),
        task("config_verify", interpreter="/nonexistent/bin/python"),
        task("config_verify", interpreter=bare_python),
    ]
    results = controller.run(stores, tasks, python=bare_python, AGENTMEM_BACKUP_PYTHON=sys.executable)
    assert outcome(results) == [CHANGED, UNCHANGED, FAILED, FAILED], results
    assert "lacks the libraries httpx, psycopg, redis, yaml, and there is no /nonexistent/bin/python" in results[2]["msg"]
    assert f"{bare_python} -m pip install 'httpx' 'psycopg[binary]' 'redis' 'PyYAML'" in results[3]["msg"]
    assert sets_in(stores) == [results[0]["id"]]


@pytest.mark.parametrize("version", ["3.8", "3.9"])  # the oldest that ansible-core 2.18 runs modules on, and RHEL 9's
def test_a_python_that_is_too_old_goes_on_in_the_virtual_environment(
    stores: Stores, controller: Controller, version: str
) -> None:
    python = old_python(version)
    if python is None:
        pytest.skip(f"there is no Python {version} here")
    if tuple(map(int, version.split("."))) < basic._PY_MIN:
        pytest.skip(f"this ansible-core runs no module on Python {version}")
    tasks = [task("config_dump", interpreter=sys.executable), task("config_dump", interpreter="/nonexistent/bin/python")]
    results = controller.run(stores, tasks, python=python)
    assert outcome(results) == [CHANGED, FAILED], results
    assert "is older than 3.10" in results[1]["msg"]
    assert sets_in(stores) == [results[0]["id"]]


def test_a_host_engine_of_another_format_is_refused(stores: Stores, controller: Controller) -> None:
    fake = controller.directory / "fake" / "agentmem_backup"
    fake.mkdir(parents=True)
    (fake / "__init__.py").touch()
    (fake / "manifest.py").write_text("FORMAT = 9\n")
    (result,) = controller.run(stores, [task("config_dump")], PYTHONPATH=str(fake.parent))
    assert outcome([result]) == [FAILED]
    assert "have format 1" in result["msg"]
    assert "have format 9" in result["msg"]
    assert sets_in(stores) == []


# --- secrets


def test_no_secret_shows_with_vvv(stores: Stores, controller: Controller) -> None:
    """Neither those of options, nor of the host's file, nor one that was put into the wrong place; all tasks fail."""
    secrets = {
        "db": "pass/of the db!",
        "redis": "pass of the redis",
        "qdrant": "key-of-the-qdrant",
        "wrong": "in-the-wrong-place",
    }
    (controller.directory / "secrets.yml").write_text(json.dumps({f"{name}_secret": text for name, text in secrets.items()}))
    file = controller.directory / "host.yml"
    file.write_text("redis:\n  password: of-the-hosts-file\n")
    file.chmod(0o600)
    tasks = [
        task(
            "backup_set_create",
            postgresql_password="{{ db_secret }}",
            redis_password="{{ redis_secret }}",
            qdrant_api_key="{{ qdrant_secret }}",
        ),
        task("redis_dump", settings={"redis.password": "{{ wrong_secret }}"}),
        {**task("redis_dump", settings_file=str(file)), "environment": {"REDIS_PASSWORD": ""}},
        task("redis_dump", redis_password="{{ redis_secret }}", redis_host="{{ redis_secret }}"),
    ]
    results = controller.run(stores, tasks, "-vvv", "-e", f"@{controller.directory / 'secrets.yml'}")
    assert outcome(results) == [FAILED] * 4, results
    assert len(results[0]["problems"]) == 3
    shown = controller.printed + json.dumps(results)
    assert [text for text in [*secrets.values(), "of-the-hosts-file"] if text in shown] == []
    assert "Traceback" not in shown
    assert sets_in(stores) == []


# --- being stopped


def children_of(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout.split()
    return [int(one) for one in found]


def descendants(pid: int) -> list[int]:
    below = children_of(pid)
    return below + [one for child in below for one in descendants(child)]


def wait_for(what: Any, seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen")


def test_a_module_that_is_stopped_cleans_up_also_where_it_has_respawned(
    stores: Stores, controller: Controller, bare_python: str
) -> None:
    """SIGTERM to the process that Ansible started, which only waits for the respawned one."""
    mark = controller.directory / "begun"
    hook = ["sh", "-c", f"echo > {mark}; exec sleep 100"]
    tasks = [task("config_dump", settings={"hooks.before": hook}, interpreter=sys.executable)]
    running = subprocess.Popen(
        controller.command(tasks, bare_python),
        env=controller.environment(stores, {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(mark.exists)
        modules = [one for one in descendants(running.pid) if b"AnsiballZ" in Path(f"/proc/{one}/cmdline").read_bytes()]
        waiting = [one for one in modules if Path(f"/proc/{one}/exe").resolve() == Path(bare_python).resolve()]
        below = descendants(waiting[-1])
        assert below
        os.kill(waiting[-1], signal.SIGTERM)
        wait_for(lambda: not any(Path(f"/proc/{one}").exists() for one in below))
        running.wait(60)
    finally:
        running.kill()
    assert sets_in(stores) == []
    log = (stores.log_dir / "backup.log").read_text()
    assert "stopped by SIGTERM" in log
    (after,) = controller.run(stores, [task("config_dump")])
    assert outcome([after]) == [CHANGED]
    assert "warnings" not in after  # nothing was left to clean up
