# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Role schedule, as far as it goes without an init of its own: what it writes, what systemd says of that, what it refuses.

That the services work inside their sandbox and the timers start them is shown on real hosts: extensions/molecule/schedule.
"""

from __future__ import annotations

import getpass
import grp
import json
import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.collection import BIN, OF_A_PLAY, ansible_environment, ansible_playbook
from tests.support.servers import CHECKOUT

# The sample of the scenarios shows the role on a real host; what else it must do is tried by script/test --all.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd's own tools"),
    pytest.mark.timeout(900),
]
EXPOSURE = 2.0
USER = "daemon" if os.geteuid() == 0 else getpass.getuser()
"""Whom the jobs run as: not root, which systemd would count."""


@dataclass
class Host:
    """A host that is directories: where units, crontabs and logs go, and how the role is run on it."""

    root: Path

    @property
    def units(self) -> Path:
        return self.root / "units"

    @property
    def crontab(self) -> Path:
        return self.root / "cron.d" / "agentmem-backup"

    def variables(self) -> dict[str, Any]:
        """What makes the role keep to the directories."""
        return {
            "schedule_manager": "systemd",
            "schedule_command": str(BIN / "agentmem-backup"),
            "schedule_user": USER,
            "schedule_group": grp.getgrgid(pwd.getpwnam(USER).pw_gid).gr_name,
            "schedule_unit_directory": str(self.units),
            "schedule_cron_directory": str(self.crontab.parent),
            "schedule_enable": False,
            "schedule_instances": {"default": self.instance(), "second": self.instance(backup_dir="/backups/second")},
        }

    def instance(self, **own: Any) -> dict[str, Any]:
        return {"log_dir": str(self.root / "log"), **own}

    def play(
        self, plays: Mapping[str, dict[str, Any]], *arguments: str, serial: int = 1
    ) -> tuple[str, dict[str, dict[str, int]]]:
        """Run the role once for each (name, its variables), one after the other; returns the output, and how each one ended."""
        role = {"ansible.builtin.import_role": {"name": "agentmem.backup.schedule"}}
        book = [{"hosts": "all", "order": "inventory", "serial": serial, "gather_facts": False, "tasks": [OF_A_PLAY, role]}]
        playbook = self.root / "play.yml"
        playbook.write_text(yaml.safe_dump(book))
        here = {"ansible_connection": "local", "ansible_python_interpreter": str(BIN / "python"), **self.variables()}
        inventory = {name: {**here, **variables} for name, variables in plays.items()}
        (self.root / "inventory.yml").write_text(json.dumps({"all": {"hosts": inventory}}))
        told = ("-i", self.root / "inventory.yml", playbook, *arguments)
        done = ansible_playbook(self.root, ansible_environment(self.root), *told, timeout=880)
        recap = {
            name: {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", counts)}
            for name, counts in re.findall(r"^(\w+)\s*: (ok=.*)$", done.stdout, re.MULTILINE)
        }
        return done.stdout, recap


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """The role is the checkout's own: that it is in the artifact, others test."""
    for name in ("units", "cron.d", "log", "ansible_collections/agentmem"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "ansible_collections" / "agentmem" / "backup").symlink_to(CHECKOUT)
    return Host(tmp_path)


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def unit(text: str) -> dict[str, list[str]]:
    """Setting → its values in the order of the file."""
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE):
        found.setdefault(key, []).append(value)
    return found


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False)


def test_units_that_systemd_accepts_and_calls_closed(host: Host) -> None:
    output, recap = host.play({"first": {}, "again": {}})
    assert recap["first"]["failed"] == 0 and recap["first"]["changed"] > 0, output
    assert recap["again"]["failed"] == 0 and recap["again"]["changed"] == 0, output
    jobs = {"agentmem-backup", "agentmem-backup-verify", "agentmem-backup@second", "agentmem-backup-verify@second"}
    assert names(host.units) == {f"{job}.{kind}" for job in jobs for kind in ("service", "timer")}
    for job in jobs:
        service = host.units / f"{job}.service"
        checked = analyze("verify", "--man=no", service, host.units / f"{job}.timer")
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
        looked = analyze("security", "--offline=yes", "--no-pager", f"--threshold={EXPOSURE * 10:.0f}", service)
        assert looked.returncode == 0, looked.stdout[-300:]

    full = unit((host.units / "agentmem-backup.service").read_text())
    assert full["WorkingDirectory"] == ["-/opt/agentmem"] and full["Type"] == ["oneshot"]
    assert full["StandardOutput"] == [f"append:{host.root}/log/backup.log"]
    assert full["ExecStart"] == [f"{BIN}/agentmem-backup create --type full --set lock_wait_s=3600"]
    assert full["TimeoutStartSec"] == ["21600"] and full["IOSchedulingClass"] == ["idle"] and full["Nice"] == ["10"]
    assert full["ReadWritePaths"] == [f"-/backups/agentmem -{host.root}/log"]
    second = unit((host.units / "agentmem-backup-verify@second.service").read_text())
    assert second["ExecStart"] == [f"{BIN}/agentmem-backup verify latest --instance second --set lock_wait_s=3600"]
    assert second["ReadWritePaths"] == [f"-/backups/second -{host.root}/log"]
    assert full["AmbientCapabilities"] == ["CAP_DAC_READ_SEARCH"] and second["AmbientCapabilities"] == [""]

    timer = unit((host.units / "agentmem-backup.timer").read_text())
    assert timer["OnCalendar"] == ["*-*-* 02:00:00"] and timer["RandomizedDelaySec"] == ["120min"]
    assert timer["FixedRandomDelay"] == timer["Persistent"] == ["yes"] and "Requires" not in timer
    assert unit((host.units / "agentmem-backup-verify.timer").read_text())["OnCalendar"] == ["Sun *-*-* 03:00:00"]


def test_windows_jobs_and_calendars_are_as_they_were_asked_for(host: Host) -> None:
    instances = {
        "default": host.instance(environment="test", verify=False, prune=True),
        "dev": host.instance(environment="development", backup_dir="/backups/dev", jobs={"verify": {"calendar": "Fri 12:00"}}),
        "off": host.instance(
            backup_dir="/backups/off", jobs={"full": {"enabled": False}, "verify": {"spread": 0, "timeout": 60}}
        ),
    }
    asked = {"schedule_instances": instances, "schedule_read_all_files": False, "schedule_write_paths": ["/srv/metrics"]}
    output, recap = host.play({"asked": {**asked, "schedule_ip_allow": ["localhost"]}})
    assert recap["asked"]["failed"] == 0, output
    times = {
        path.stem: (timer["OnCalendar"], timer["RandomizedDelaySec"])
        for path in host.units.glob("*.timer")
        for timer in [unit(path.read_text())]
    }
    assert times == {
        "agentmem-backup": (["*-*-* 13:00:00"], ["240min"]),
        "agentmem-backup-prune": (["*-*-* 17:00:00"], ["60min"]),
        "agentmem-backup@dev": (["*-*-* 00:00:00"], ["60min"]),
        "agentmem-backup-verify@dev": (["Fri 12:00"], ["60min"]),
        "agentmem-backup-verify@off": (["Sun *-*-* 03:00:00"], ["0min"]),
    }
    full = unit((host.units / "agentmem-backup.service").read_text())
    assert full["AmbientCapabilities"] == [""] and full["ReadWritePaths"][0].endswith(" -/srv/metrics")
    assert full["IPAddressDeny"] == ["any"] and full["IPAddressAllow"] == ["localhost"]
    assert unit((host.units / "agentmem-backup-verify@off.service").read_text())["TimeoutStartSec"] == ["60"]


def test_cron_and_systemd_take_turns_and_nothing_stays_at_the_end(host: Host) -> None:
    exact = {"schedule_jobs": {"full": {"spread": 0}, "verify": {"cron": "0 3 * * 0"}}}
    cron = {
        "schedule_manager": "cron",
        **exact,
        "schedule_cron_alarm": "echo 100% broken",
        "schedule_instances": {"default": host.instance()},
    }
    output, recap = host.play({"before": {}, "cron": cron})
    assert {name: (ended["failed"], ended["changed"] > 0) for name, ended in recap.items()} == {
        "before": (0, True),
        "cron": (0, True),
    }, output
    assert names(host.units) == set()
    lines = host.crontab.read_text().splitlines()
    assert 'MAILTO=""' in lines
    full, verify = (next(line for line in lines if f"agentmem-backup {words}" in line) for words in ("create", "verify"))
    assert full.startswith("0 2 * * * root setpriv ") and verify.startswith(f"0 3 * * 0 {USER} sh -c ")
    for line in (full, verify):
        assert " flock " in line and f">> {host.root}/log/backup-cron.log 2>&1;" in line and "|| { echo 100\\% broken; }'" in line
        assert len(line) < 998, "cron's longest line"

    output, recap = host.play({"systemd": {}, "absent": {"schedule_state": "absent"}})
    assert recap["systemd"]["failed"] == 0 and recap["absent"]["failed"] == 0, output
    assert names(host.units) == names(host.crontab.parent) == set()


def test_a_check_run_of_a_bare_host_passes_and_changes_nothing(host: Host) -> None:
    (host.root / "log" / "backup.log").touch()  # the guide's own scripts have been there
    bare = {
        "schedule_command": "/not/yet/agentmem-backup",
        "schedule_user": "not-yet",
        "schedule_instances": {"default": host.instance()},
    }
    output, recap = host.play({"bare": bare}, "--check", "--diff")
    assert recap["bare"]["failed"] == 0, output
    assert {name for name in ("agentmem-backup.service", "agentmem-backup.timer") if f"item={name}" in output} == {
        "agentmem-backup.service",
        "agentmem-backup.timer",
    }
    assert "+OnCalendar=*-*-* 02:00:00" in output and names(host.units) == set()


BAD = {
    "calendar": (
        {"schedule_jobs": {"full": {"calendar": "daily at two"}}},
        "the calendar 'daily at two' of agentmem-backup is none",
    ),
    "never": ({"schedule_jobs": {"verify": {"calendar": "2020-01-01"}}}, "'2020-01-01' of agentmem-backup-verify never comes"),
    "twice": ({"schedule_jobs": {"full": {"calendar": ["02:00", "14:00"]}}}, "must be one expression on one line"),
    "lines": ({"schedule_jobs": {"full": {"calendar": "02:00\nOnCalendar=14:00"}}}, "must be one expression on one line"),
    "incremental": ({"schedule_policy": "hourly_incremental"}, "knows no `create --type incremental`"),
    "drill": ({"schedule_drill": True}, "knows no `drill latest`"),
    "policy": ({"schedule_policy": "sometimes"}, "value of schedule_policy must be one of"),
    "job": ({"schedule_jobs": {"ful": {}}}, "Supported parameters include"),
    "environment": ({"schedule_environment": "prod"}, "the environment prod needs a window in schedule_windows"),
    "start": ({"schedule_windows": {"production": {"start": 7200, "minutes": 120}}}, "with its start in quotes"),
    "user": (
        {"schedule_user": "nobody-of-that-name"},
        "there is no user nobody-of-that-name: run the role agentmem.backup.host first",
    ),
    "command": ({"schedule_command": "/not/there"}, "/not/there is not there: run the role agentmem.backup.host first"),
    "path": ({"schedule_write_paths": ["/two words"]}, '"/two words" is no path for a unit file'),
    "places": (
        {"schedule_instances": {"x": {"backup_dir": "/backups/agentmem", "log_dir": "/x"}}},
        "each instance needs a backup_dir of its own",
    ),
    "settings": ({"schedule_instances": {"missing": None}}, "there is no instance 'missing'"),
    "name": ({"schedule_instances": {"config": {}}}, 'schedule_instances has "config", and an instance cannot be named so'),
    "own": ({"schedule_instances": {"x": {"polic": "daily"}}}, "schedule_instances.x.polic"),
    "choice": ({"schedule_instances": {"x": {"policy": "yearly"}}}, "value of policy must be one of"),
    "inner": ({"schedule_instances": {"x": {"jobs": {"full": {"at": 1}}}}}, "schedule_instances.x.jobs.full.at"),
    "cron": ({"schedule_manager": "cron", "schedule_jobs": {"full": {"cron": "0 25 * * *"}}}, 'the cron time "0 25 * * *" of'),
    "words": (
        {"schedule_manager": "cron", "schedule_jobs": {"full": {"calendar": "02:00"}}},
        "has a calendar in the words of systemd",
    ),
    "nocron": (
        {"schedule_manager": "cron", "schedule_cron_directory": "/not/there"},
        "this host has no /not/there: install cron",
    ),
    "quote": ({"schedule_cron_alarm": "echo 'x'"}, "one line without single quotes"),
}


def test_bad_input_is_refused_in_a_sentence_and_nothing_is_written(host: Host) -> None:
    one = {"schedule_instances": {"default": host.instance()}}
    output, recap = host.play({name: {**one, **variables} for name, (variables, __) in BAD.items()}, serial=len(BAD))
    assert {name: ended["failed"] for name, ended in recap.items()} == dict.fromkeys(BAD, 1), output
    told = dict(re.findall(r"^(?:fatal|failed): \[(\w+)\](.*)$", output, re.MULTILINE))
    for name, (__, sentence) in BAD.items():
        assert sentence in told[name].replace('\\"', '"'), f"{name}: {told[name]}"
    assert names(host.units) == names(host.crontab.parent) == set()


def test_a_second_definition_is_refused(host: Host) -> None:
    """Two calendars, or cron beside a timer, are two runs a day: the guide's own mistake."""
    drop_in = host.units / "agentmem-backup.timer.d" / "more.conf"
    drop_in.parent.mkdir()
    drop_in.write_text("[Timer]\nOnCalendar=14:00\n")
    stray = host.units / "agentmem-backup-mine.timer"
    stray.write_text("[Timer]\nOnCalendar=03:00\n")
    cron = host.crontab.parent / "mine"
    cron.write_text("# agentmem backup.sh\n0 2 * * * root cd /opt/agentmem && ./scripts/backup.sh >> /var/log/x 2>&1\n")
    output, recap = host.play({"both": {}})
    assert recap["both"]["failed"] == 1 and "so they would run twice" in output, output
    assert [path for path in (drop_in, stray, cron) if str(path) not in output] == []
    assert names(host.units) == {drop_in.parent.name, stray.name}

    shutil.rmtree(drop_in.parent)
    stray.unlink()
    cron.write_text("# 0 2 * * * root /opt/agentmem/scripts/backup.sh\n0 2 * * * root /srv/other/backup.sh\n")
    (host.units / "agentmem-backup.timer").write_text(
        "[Timer]\nOnCalendar=daily\nOnCalendar=02:00\n"
    )  # the guide's own gives way
    output, recap = host.play({"alone": {}})
    assert recap["alone"]["failed"] == 0, output
    assert unit((host.units / "agentmem-backup.timer").read_text())["OnCalendar"] == ["*-*-* 02:00:00"]


def test_what_is_taken_for_known_is_what_the_engine_knows() -> None:
    """vars/main.yml says which jobs this version's engine has; check runs of bare hosts go by it."""
    role = yaml.safe_load((CHECKOUT / "roles" / "schedule" / "vars" / "main.yml").read_text())
    known = [
        job
        for job, verb in role["_schedule_verbs"].items()
        if subprocess.run([BIN / "agentmem-backup", *verb["words"], "--help"], capture_output=True, check=False).returncode == 0
    ]
    assert role["_schedule_known"] == known, json.dumps(known)


def test_every_job_that_can_be_turned_on_is_closed(host: Host) -> None:
    wanted = {"schedule_prune": True, "schedule_sync": True, "schedule_instances": {"default": host.instance()}}
    output, recap = host.play({"first": wanted})
    assert recap["first"]["failed"] == 0, output
    services = {path.name for path in host.units.glob("*.service")}
    assert services == {f"agentmem-backup{job}.service" for job in ("", "-verify", "-prune", "-sync")}
    for service in services:
        looked = analyze("security", "--offline=yes", "--no-pager", f"--threshold={EXPOSURE * 10:.0f}", host.units / service)
        assert looked.returncode == 0, looked.stdout[-300:]
