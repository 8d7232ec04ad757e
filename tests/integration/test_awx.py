# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""extensions/awx: applied by awx.awx's own modules to a stand-in for AWX's API, and its project run as AWX runs it.

There is no AWX here. What these tests prove: every object is accepted by the modules' own argument specs and arrives; a
second run changes nothing; the project's playbooks run under ansible-runner with survey answers as extra variables and the
credential's environment; and no event holds a secret.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import yaml

from tests.support import command, compare
from tests.support.awx_standin import Awx
from tests.support.collection import BIN, ansible_environment, tool
from tests.support.listeners import Recorder
from tests.support.servers import CHECKOUT, Stores

EXTENSION = CHECKOUT / "extensions" / "awx"
TOKEN = "token-of-the-stand-in"
SECRETS = ("DB_PASSWORD", "REDIS_PASSWORD", "QDRANT_API_KEY")


@pytest.fixture(scope="session")
def awx_collection() -> Path:
    """A path with the collection awx.awx, which `ansible` 12 on PyPI carries and 14 does not; kept in .cache from run to run."""
    kept = CHECKOUT / ".cache" / "awx"
    if not (kept / "ansible_collections" / "awx" / "awx" / "MANIFEST.json").exists():
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        tool(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary=:none:", "ansible<13", cwd=kept)
        (wheel,) = kept.glob("ansible-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(kept, [name for name in archive.namelist() if name.startswith("ansible_collections/awx/awx/")])
        wheel.unlink()
    return kept


@pytest.fixture
def awx() -> Iterator[tuple[Awx, str]]:
    """A stand-in with what every AWX has, and what objects.yml says that one has made; and its address."""
    awx = Awx(TOKEN)
    awx.add("organizations", name="Default")
    awx.add("credentials", name="AgentMem hosts")
    awx.add("credentials", name="our stores")
    awx.add("notification_templates", name="on call")
    server = uvicorn.Server(uvicorn.Config(awx.application(), host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
        port = server.servers[0].sockets[0].getsockname()[1]
        yield awx, f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def apply(directory: Path, collections: Path, address: str, **variables: object) -> dict[str, int]:
    """Run apply.yml; returns the recap's numbers."""
    environment = {
        **ansible_environment(directory, collections),
        "CONTROLLER_HOST": address,
        "CONTROLLER_OAUTH_TOKEN": TOKEN,
        "CONTROLLER_VERIFY_SSL": "false",
        "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default",
    }
    told = tool(BIN / "ansible-playbook", EXTENSION / "apply.yml", "-e", json.dumps(variables), cwd=directory, env=environment)
    recap = told.rsplit("PLAY RECAP", 1)[1].partition(":")[2].split()
    return {name: int(number) for name, __, number in (word.partition("=") for word in recap)}


def test_every_object_arrives_and_a_second_run_changes_nothing(
    awx: tuple[Awx, str], awx_collection: Path, tmp_path: Path
) -> None:
    there, address = awx
    ours = {"agentmem_awx_stores_credential": "our stores", "agentmem_awx_notifications": ["on call"]}
    first = apply(tmp_path, awx_collection, address, **ours)
    assert first["failed"] == 0 and first["changed"] == first["ok"]
    second = apply(tmp_path, awx_collection, address, **ours)
    assert (second["failed"], second["changed"]) == (0, 0)

    described = yaml.load((EXTENSION / "objects.yml").read_text(), Loader=_Unsafe)  # noqa: S506  # derived from SafeLoader
    (kind,) = there.objects["credential_types"]
    assert kind["injectors"]["env"] == {name: f"{{{{ {name.lower()} }}}}" for name in SECRETS}
    assert all(field["secret"] for field in kind["inputs"]["fields"])
    templates = {one["name"]: one for one in there.objects["job_templates"]}
    assert templates.keys() == {one["name"] for one in described["agentmem_awx_job_templates"]}
    for name, one in templates.items():
        assert (EXTENSION / "project" / one["playbook"]).is_file(), name
        assert there.names("job_templates", one, "credentials") == ["AgentMem hosts", "our stores"]
        assert there.names("job_templates", one, "notification_templates_error") == ["on call"]
    (question, confirm) = there.surveys["AgentMem restore"]["spec"]
    assert (question["variable"], question["default"]) == ("agentmem_backup_id", "latest")
    assert (confirm["variable"], confirm["default"], confirm["choices"]) == ("agentmem_backup_confirm", "no", ["no", "yes"])
    nodes = {one["identifier"]: one for one in there.objects["workflow_job_template_nodes"]}
    after = {
        (name, kind): there.names("workflow_job_template_nodes", one, f"{kind}_nodes")
        for name, one in nodes.items()
        for kind in ("success", "failure")
    }
    assert after == {
        ("backup", "success"): ["verify"],
        ("verify", "success"): ["offsite"],
        ("offsite", "success"): [],
        ("alarm", "success"): [],
        ("backup", "failure"): ["alarm"],
        ("verify", "failure"): ["alarm"],
        ("offsite", "failure"): ["alarm"],
        ("alarm", "failure"): [],
    }
    workflow = there.named("workflow_job_templates", "AgentMem nightly")
    nightly = there.named("schedules", "AgentMem nightly")
    assert nightly["unified_job_template"] == workflow["id"]
    assert nightly["rrule"] == "DTSTART;TZID=UTC:20260101T020000 RRULE:FREQ=DAILY;INTERVAL=1"


class _Unsafe(yaml.SafeLoader):
    """Reads Ansible's `!unsafe` as the text that it is."""


_Unsafe.add_constructor("!unsafe", lambda loader, node: loader.construct_scalar(node))


class Runner:
    """The project of extensions/awx in a private data directory of ansible-runner, as AWX lays one for a job."""

    def __init__(self, directory: Path, stores: Stores, collections: Path):
        self.directory, self.collections = directory, collections
        shutil.copytree(EXTENSION / "project", directory / "project")
        self.inventory = directory / "project" / "inventory"
        settings = directory / "config.yml"
        settings.touch(mode=0o600)
        settings.write_text(yaml.safe_dump({**stores.configuration(passwords=False), "health_url": ""}))
        # The host knows no secret: neither from its file nor from the environment that the controller's process has.
        python = directory / "python"
        unset = " ".join(f"-u {name}" for name in SECRETS)
        python.write_text(f'#!/bin/sh\nexec env {unset} {sys.executable} "$@"\n')
        python.chmod(0o755)
        host = {"ansible_connection": "local", "ansible_python_interpreter": str(python)}
        host |= {"agentmem_backup_options": {"settings_file": str(settings), "interpreter": "/there/is/none"}}
        command = directory / "agentmem-backup"
        command.write_text(f'#!/bin/sh\nexec {BIN}/agentmem-backup "$@" --config {settings}\n')
        command.chmod(0o755)
        host["agentmem_backup_command"] = str(command)
        self.hosts = {"agentmem1": host}
        self.settings = settings

    def lay_inventory(self) -> None:
        """Write what AWX would sync from the project."""
        (self.inventory / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": self.hosts}}))

    def job(self, playbook: str, secrets: dict[str, str], **answers: object) -> tuple[int, list[dict[str, Any]], dict[str, Any]]:
        """Run a playbook of the project; returns its exit code, all events, and the artifacts that AWX would hand on."""
        self.lay_inventory()
        env = self.directory / "env"
        env.mkdir(exist_ok=True)
        (env / "envvars").write_text(json.dumps(secrets))
        (env / "extravars").write_text(json.dumps(answers))
        artifacts = self.directory / "artifacts"
        shutil.rmtree(artifacts, ignore_errors=True)
        done = subprocess.run(
            [BIN / "ansible-runner", "run", self.directory, "-p", playbook, "--inventory", self.inventory, "-i", "job", "-q"],
            env=ansible_environment(self.directory, self.collections),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        events = [json.loads(path.read_text()) for path in sorted((artifacts / "job" / "job_events").glob("*.json"))]
        assert events, done.stderr
        self.printed = (artifacts / "job" / "stdout").read_text()
        ended = [one for one in events if one["event"] == "playbook_on_stats"]
        return done.returncode, events, ended[0]["event_data"].get("artifact_data", {}) if ended else {}


def test_the_alarm_is_told_by_a_host_that_answers(stores: Stores, collections: Path, tmp_path: Path, web: Recorder) -> None:
    runner = Runner(tmp_path, stores, collections)
    dead = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
    runner.hosts = {"a-dead-one": dead, **runner.hosts}
    secrets = {"NOTIFY_SLACK_WEBHOOK": f"{web.url}/services/topsecret"}
    code, events, __ = runner.job("alarm.yml", secrets)
    (told,) = [one.json["text"] for one in web.requests]
    assert "a-dead-one: " in told and "agentmem1: " in told, runner.printed
    assert code in (0, 4), runner.printed  # 4: a host could not be reached
    assert "topsecret" not in json.dumps(events) + runner.printed


def test_the_project_runs_as_awx_runs_it(stores: Stores, collections: Path, tmp_path: Path) -> None:
    runner = Runner(tmp_path, stores, collections)
    secrets = {"DB_PASSWORD": stores.postgres.app_password, "REDIS_PASSWORD": stores.redis.password}
    secrets |= {"QDRANT_API_KEY": stores.qdrant.api_key or ""}
    told: list[str] = []

    def job(playbook: str, expected: int = 0, **answers: object) -> dict[str, Any]:
        code, events, artifacts = runner.job(playbook, secrets, **answers)
        assert code == expected, runner.printed
        told.extend([json.dumps(events, ensure_ascii=False), runner.printed])
        return dict(artifacts.get("agentmem_backup_sets", {}).get("agentmem1", {}))

    made = job("backup.yml", agentmem_backup_fingerprint="content")
    assert made["verdict"] == "verified"
    assert "content" in json.dumps(command.manifest(stores, made["id"])["components"]["postgresql"]["fingerprint"])
    assert job("verify.yml", agentmem_backup_id="latest") == made

    before = compare.capture(stores)
    stores.destroy()
    job("restore.yml", 2, agentmem_backup_id=made["id"], agentmem_backup_confirm="no")
    gone = compare.capture(stores)
    assert len(compare.differences(before, gone)) > 20
    assert job("restore.yml", agentmem_backup_id=made["id"], agentmem_backup_confirm="yes")["equal"]
    assert compare.differences(before, compare.capture(stores)) == []

    secrets["DB_PASSWORD"] = "a wrong password, and a secret all the same"
    job("backup.yml", 2)
    for secret in (*secrets.values(), stores.postgres.app_password):
        assert not any(secret and secret in text for text in told)
