# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbooks, run by their names from an installed collection, on four real stores whose data is compared."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.support import command, compare
from tests.support.collection import Played, play
from tests.support.endpoints import Sshd
from tests.support.servers import Stores

Run = Callable[..., Played]


@pytest.fixture
def run(stores: Stores, collections: Path, tmp_path: Path) -> Run:
    """Run a playbook of the collection; what the host's own configuration file says is all that it is told of the stores."""
    settings = tmp_path / "config.yml"
    settings.touch(mode=0o600)
    settings.write_text(yaml.safe_dump(stores.configuration()))
    options = {"settings_file": str(settings), "interpreter": "/there/is/none"}

    def run(name: str, *arguments: str, **variables: object) -> Played:
        told = json.dumps({"agentmem_backup_options": options, **variables})
        return play(f"agentmem.backup.{name}", tmp_path, collections, "-e", told, *arguments)

    return run


def good(played: Played) -> dict[str, object]:
    """What the run told of its host, which must have succeeded."""
    assert played.code == 0, played.output
    return dict(played.stats["agentmem_backup_sets"]["stores"])


def test_backup_verify_destroy_restore(stores: Stores, run: Run) -> None:
    """Once under async, as on every host that is not this machine; nothing else shows that the result comes back whole."""
    before = compare.capture(stores)
    made = good(run("backup", agentmem_backup_async=200))
    assert made == {"id": command.manifest(stores, str(made["id"]))["id"], "verdict": "verified"}
    assert good(run("verify")) == made
    assert good(run("verify", agentmem_backup_id=made["id"])) == made

    stores.destroy()
    gone = compare.capture(stores)
    assert len(compare.differences(before, gone)) > 20
    refused = run("restore")
    assert refused.code == 2 and "set confirm to true" in refused.output
    assert compare.differences(gone, compare.capture(stores)) == []

    assert good(run("restore", agentmem_backup_confirm="yes", agentmem_backup_async=200)) == {"id": made["id"], "equal": True}
    assert compare.differences(before, compare.capture(stores)) == []


def test_check_mode_tells_the_plan_and_makes_nothing(stores: Stores, run: Run) -> None:
    played = run("backup", "--check", "-v")
    assert good(played) == {}
    assert "a set would be made" in played.output
    assert [path for path in stores.backup_dir.iterdir() if not path.name.startswith(".")] == []


def test_a_damaged_set_fails_the_play_and_the_verdict_is_told(stores: Stores, run: Run) -> None:
    made = command.create(stores)
    file = stores.backup_dir / made["files"]["redis"]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    played = run("verify")
    assert played.code == 2
    assert played.stats["agentmem_backup_sets"] == {"stores": {"id": made["id"], "verdict": "failed"}}
    before = compare.capture(stores)
    refused = run("restore", agentmem_backup_confirm=True)
    assert refused.code == 2 and "does not verify" in refused.output.replace("\n", " ")
    assert compare.differences(before, compare.capture(stores)) == []


# --- a fleet


class Fleet:
    """Four hosts that are this machine, each with a backup directory of its own: one cannot be reached, one cannot write."""

    def __init__(self, directory: Path, collections: Path):
        self._directory, self._collections = directory, collections
        (directory / "config").mkdir()
        (directory / "config" / "app.env").write_text("A=1")
        (directory / "file").touch()
        self.hosts = {name: {"agentmem_backup_options": self._options(name)} for name in ("dead", "bad", "one", "two")}
        self.hosts["dead"]["ansible_remote_tmp"] = "/proc/nowhere"  # Ansible calls such a host unreachable
        self.hosts["bad"]["agentmem_backup_options"]["backup_dir"] = str(directory / "file" / "sets")

    def _options(self, name: str) -> dict[str, object]:
        (self._directory / name).mkdir(mode=0o700)
        settings = {
            "config.directory": str(self._directory / "config"),
            "log_dir": str(self._directory),
            "components": ["config"],
        }
        return {"backup_dir": str(self._directory / name), "settings": settings, "settings_file": "/dev/null"}

    def run(self, name: str, *arguments: str, **variables: object) -> Played:
        told = ("-e", json.dumps(variables), *arguments)
        return play(f"agentmem.backup.{name}", self._directory, self._collections, *told, hosts=self.hosts)

    def directory(self, name: str) -> Path:
        return self._directory / name

    def made(self) -> list[str]:
        """Hosts that have a set, as the disk says."""
        return [name for name in self.hosts if list((self._directory / name).glob("manifest_*.json"))]


@pytest.fixture
def fleet(tmp_path: Path, collections: Path) -> Fleet:
    return Fleet(tmp_path, collections)


@pytest.mark.parametrize("serial", ["100%", 1, [1, "50%"]], ids=str)
def test_a_dead_and_a_failing_host_stop_no_other(fleet: Fleet, serial: object) -> None:
    played = fleet.run("backup", agentmem_backup_serial=serial)
    assert played.code == 2, played.output
    assert fleet.made() == ["one", "two"]
    assert "no fresh backup on 2 of 4 hosts: dead, bad" in played.output
    assert played.stats["agentmem_backup_without"] == ["dead", "bad"]
    told = played.stats["agentmem_backup_sets"]
    assert {name: one.get("verdict") for name, one in told.items()} == {
        "dead": None, "bad": None, "one": "verified", "two": "verified",
    }  # fmt: skip
    failed = re.findall(r"^(\w+) .* failed=1 ", played.output, re.MULTILINE)
    assert sorted(failed) == ["bad", "dead"]


def test_sets_go_elsewhere_from_every_host_that_can(fleet: Fleet, sshd: Sshd) -> None:
    for name, one in fleet.hosts.items():
        one["agentmem_backup_options"]["settings"].update({"offsite.host": name, "offsite.targets": {"away": sshd.target()}})
    fleet.run("backup")
    foretold = fleet.run("offsite", "--check")
    assert foretold.code == 2 and sshd.files("one") == {}
    assert foretold.stats["agentmem_backup_without"] == ["dead", "bad"]
    sent = fleet.run("offsite")
    assert "sets that are not everywhere on 2 of 4 hosts: dead, bad" in sent.output
    for name in ("one", "two"):
        here = {path.name: path.read_bytes() for path in fleet.directory(name).iterdir() if path.is_file()}
        assert sshd.files(name) == here != {}
    assert sshd.files("bad") == sshd.files("dead") == {}


def test_a_limit_is_kept_to(fleet: Fleet) -> None:
    played = fleet.run("backup", "--limit", "one")
    assert played.code == 0, played.output
    assert fleet.made() == ["one"] and played.stats["agentmem_backup_without"] == []
    played = fleet.run("verify", "--limit", "one,two")
    assert played.code == 2 and "no backup that is proven whole on 1 of 2 hosts: two" in played.output
    assert played.stats["agentmem_backup_sets"]["one"]["verdict"] == "verified"


@pytest.mark.parametrize("failing", ["dead", "bad"])
def test_too_many_failures_end_the_run_where_that_is_wanted(fleet: Fleet, failing: str) -> None:
    played = fleet.run("backup", "--limit", f"{failing},one,two", agentmem_backup_serial=1, agentmem_backup_max_fail_percentage=0)
    assert played.code == 2 and fleet.made() == [], played.output
    played = fleet.run(
        "backup", "--limit", f"{failing},one,two", agentmem_backup_serial=3, agentmem_backup_max_fail_percentage=40
    )
    assert played.code == 2 and fleet.made() == ["one", "two"], played.output


# --- secrets


def test_no_secret_is_shown_with_all_verbosity(stores: Stores, run: Run) -> None:
    stores.redis.stop()
    try:
        played = run("backup", "-vvv")
    finally:
        stores.redis.start()
    assert played.code == 2 and "Redis" in played.output
    secrets = (stores.postgres.app_password, stores.redis.password, stores.qdrant.api_key)
    assert [one for one in secrets if one and (one in played.output or json.dumps(one)[1:-1] in played.output)] == []
