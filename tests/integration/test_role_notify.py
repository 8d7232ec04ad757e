# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Role notify into a directory of its own: what it writes, what it refuses, and that its alarm tells with curl alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from agentmem_backup import settings

from tests.integration.test_notify import HOST, SECRET, TO, Host, mail
from tests.support.collection import BIN, OF_A_PLAY, Played, play
from tests.support.listeners import Mailbox, Recorder, certificate, free_port, mail_server
from tests.support.servers import CHECKOUT

# The sample of the scenarios shows the role on a real host; what else it must do is tried by script/test --all.
pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.getuid() != 0, reason="a role's files belong to root")]
ROLE = CHECKOUT / "roles" / "notify"
UNITS = ("agentmem-backup.service", "agentmem-backup@.service", "agentmem-backup-.service")


@dataclass
class Target:
    """A directory that stands for a host's root, and the role's variables that lead there."""

    root: Path
    variables: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("etc", "units", "log"):
            (self.root / name).mkdir()
        collections = self.root / "collections" / "ansible_collections" / "agentmem"
        collections.mkdir(parents=True)
        (collections / "backup").symlink_to(CHECKOUT)
        role = {"ansible.builtin.import_role": {"name": "agentmem.backup.notify"}}
        playbook = [{"hosts": "all", "gather_facts": False, "tasks": [OF_A_PLAY, role]}]
        (self.root / "play.yml").write_text(yaml.safe_dump(playbook))
        self.variables = {
            "notify_command": str(BIN / "agentmem-backup"),
            "notify_interpreter": str(BIN / "python"),
            "notify_config_directory": str(self.root / "etc"),
            "notify_unit_directory": str(self.root / "units"),
            "notify_log_directory": str(self.root / "log"),
            "notify_alarm_script": str(self.root / "lib" / "alarm"),
            "notify_user": "root",
            "notify_group": "root",
        }

    def run(self, *arguments: str, **variables: Any) -> Played:
        told = self.root / "variables.json"
        told.write_text(json.dumps({**self.variables, **variables}))
        return play(self.root / "play.yml", self.root, self.root / "collections", "-e", f"@{told}", *arguments)

    def made(self, *arguments: str, **variables: Any) -> Played:
        """Run it and insist on success."""
        played = self.run(*arguments, **variables)
        assert played.code == 0, played.output
        return played

    def files(self) -> dict[str, str]:
        """What lies there: path → mode and content."""
        found = {}
        for part in ("etc", "units", "lib", "textfile", "rules"):
            for path in sorted((self.root / part).rglob("*")):
                content = path.read_text() if path.is_file() else ""
                found[str(path.relative_to(self.root))] = f"{path.stat().st_mode & 0o7777:o} {content}"
        return found

    def alarm(self, unit: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run the alarm's script as the alarm's unit does."""
        given = {"PATH": os.environ["PATH"], "BACKUP_DIR": str(self.root / "sets"), "LOG_DIR": str(self.root / "log"), **env}
        return subprocess.run(
            [str(self.root / "lib" / "alarm"), unit], env=given, capture_output=True, text=True, check=False, timeout=200
        )


@pytest.fixture
def target(tmp_path: Path) -> Target:
    return Target(tmp_path)


def test_the_specs_are_the_defaults() -> None:
    defaults = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text())
    options = yaml.safe_load((ROLE / "meta" / "argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    assert {name: option["default"] for name, option in options.items()} == defaults
    secret = {name for name in defaults if any(word in name for word in ("password", "webhook", "urls", "ping"))}
    assert {name for name, option in options.items() if option.get("no_log")} == secret
    readme = (ROLE / "README.md").read_text()
    assert not [name for name in defaults if f"`{name}`" not in readme]


@pytest.mark.timeout(900)
def test_check_then_real_then_nothing_to_do_then_gone(target: Target) -> None:
    given = {
        "notify_email": "ops@example.com", "notify_slack_webhook": "https://hooks.example.com/topsecrettoken",
        "notify_smtp_host": "mail.example.com", "notify_smtp_tls": "starttls", "notify_smtp_user": "agent",
        "notify_smtp_password": SECRET + '"\\', "notify_ping_fail": "https://ping.example.com/x",
        "notify_instances": {"blue": {"email": "blue@example.com", "ping_fail": ""}},
        "notify_textfile_directory": str(target.root / "textfile"), "notify_rules_directory": str(target.root / "rules"),
    }  # fmt: skip
    (target.root / "rules").mkdir()
    before = target.files()
    target.made("--check", "--diff", **given)
    assert target.files() == before
    said = target.made("--diff", "-vvv", **given).output
    assert "topsecrettoken" not in said and "of the 'mail'" not in said, "a secret shows with -vvv"
    found = target.files()
    for directory in ("config.d", "blue.d"):
        path = target.root / "etc" / directory / "notify.yml"
        assert path.stat().st_mode & 0o7777 == 0o600
        told = settings.load(path, {})
        assert told.notify.smtp_password == SECRET + '"\\' and told.notify.smtp_host == "mail.example.com"
        assert told.notify_email == ("ops@example.com" if directory == "config.d" else "blue@example.com")
        assert bool(told.notify.ping_fail) == (directory == "config.d")
        assert told.metrics.textfile == str(target.root / "textfile")
    assert found["etc/alarm/mail.curl"].startswith("600 ") and found["etc/alarm/webhook.curl"].startswith("600 ")
    for unit in UNITS:
        drop_in = found[f"units/{unit}.d/notify.conf"]
        assert "OnFailure=agentmem-alarm@%n.service" in drop_in and f"ReadWritePaths=-{target.root}/textfile" in drop_in
    assert (target.root / "rules" / "agentmem-backup.rules.yml").read_text() == (
        ROLE / "files" / "agentmem-backup.rules.yml"
    ).read_text()
    assert "changed=0 " in target.made(**given).output
    assert target.files() == found
    for name in ("units/agentmem-backup@.service.d/notify.conf", "lib/alarm", "etc/blue.d/notify.yml", "etc/alarm/ping.curl"):
        (target.root / name).write_text("by hand\n")
    for name in ("units/agentmem-alarm@.service", "etc/alarm/mail.curl", "etc/alarm"):
        (target.root / name).chmod(0o777)
    target.made(**given)
    assert target.files() == found, "what somebody has changed is as it was"
    target.made(notify_state="absent", notify_rules_directory=given["notify_rules_directory"])
    assert not [name for name, what in target.files().items() if len(what) > 5], "only directories stay"


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({}, "nobody is named to be told: set notify_email, notify_slack_webhook or notify_urls"),
        (
            {"notify_slack_webhook": "hooks.slack.com/topsecrettoken"},
            "notify_slack_webhook must be an address that begins with https://",
        ),
        (
            {"notify_slack_webhook": 'https://x/"\ntopsecrettoken'},
            "notify_slack_webhook must be an address that begins with https://",
        ),
        ({"notify_slack_webhook": "https://x/topsecrettoken\n"}, "notify_slack_webhook must be an address that begins with"),
        ({"notify_email": "a@b\nBcc: c@d"}, "notify_email must be one line"),
        ({"notify_email": "a@b", "notify_instances": {"../x": {}}}, "an instance cannot be named so"),
        ({"notify_email": "a@b", "notify_instances": {"blue": {"emial": "c@d"}}}, "notify_instances.blue.emial"),
        (
            {"notify_email": "a@b", "notify_instances": {"blue": {"email": ""}}},
            "to be told of the instance blue: set notify_email",
        ),
        (
            {"notify_email": "a@b", "notify_instances": {"blue": {"ping_start": "topsecrettoken"}}},
            "notify_instances.blue.ping_start must be an address that begins with https://",
        ),
        ({"notify_email": "a@b", "notify_smtp_tls": "ssl"}, "value of notify_smtp_tls must be one of: none, starttls, tls"),
        ({"notify_email": "a@b", "notify_smtp_port": "many"}, "notify_smtp_port"),
        (
            {"notify_email": "a@b", "notify_command": "/there/is/none"},
            "/there/is/none is not there: run the role agentmem.backup.host",
        ),
        (
            {
                "notify_email": "a@b",
                "notify_smtp_host": "mail.example.com",
                "notify_smtp_user": "x",
                "notify_smtp_password": "topsecrettoken",
            },
            "would go to mail.example.com in clear",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_and_nothing_is_replaced(
    target: Target, variables: dict[str, Any], sentence: str
) -> None:
    (target.root / "etc" / "config.d").mkdir()
    before = target.root / "etc" / "config.d" / "notify.yml"
    before.write_text("notify_email: before@example.com\n")
    played = target.run("-vvv", **variables)
    assert played.code != 0
    assert sentence in " ".join(played.output.split()), played.output
    assert "topsecrettoken" not in played.output
    assert before.read_text() == "notify_email: before@example.com\n"
    assert not (target.root / "lib").exists()


def test_the_alarm_calls_the_engine_and_says_no_more(target: Target, box: Mailbox) -> None:
    (target.root / "sets").mkdir()
    shim = target.root / "command"
    words = " ".join(mail(box))
    shim.write_text(f'#!/bin/sh\nNOTIFY_EMAIL={TO["NOTIFY_EMAIL"]} exec {BIN}/agentmem-backup "$@" {words}\n')
    shim.chmod(0o755)
    target.made(notify_email="ops@example.com", notify_command=str(shim))
    done = target.alarm("agentmem-backup.service", MONITOR_UNIT="agentmem-backup.service", MONITOR_SERVICE_RESULT="timeout")
    assert done.returncode == 0, done.stderr
    assert box.subjects == [f"AgentMem backup FAILED on {HOST}: agentmem-backup.service"]
    assert "result timeout" in box.bodies[0]


@pytest.mark.parametrize("tls", ["none", "starttls", "tls"])
def test_the_alarm_tells_by_mail_where_python_is_broken(target: Target, tls: str) -> None:
    password = 'a "secret" of\\ the $erver'
    pair = certificate(target.root)
    login = ("agent", password) if tls != "none" else None
    with mail_server(login=login, certificates=pair if tls != "none" else None, from_the_first_byte=tls == "tls") as box:
        given = {
            "notify_smtp_user": "agent",
            "notify_smtp_password": password,
            "notify_smtp_from": "AgentMem <backup@example.com>",
        }
        target.made(
            notify_email="ops@example.com, Night <night@example.com>", notify_smtp_host="127.0.0.1", notify_smtp_port=box.port,
            notify_smtp_tls=tls, notify_smtp_cacert=str(pair[0]) if tls != "none" else "", **(given if login else {}),
        )  # fmt: skip
        _break(target)
        done = target.alarm(
            "agentmem-backup-verify@blue.service", MONITOR_UNIT="agentmem-backup-verify@blue.service",
            MONITOR_SERVICE_RESULT="exit-code", MONITOR_EXIT_CODE="exited", MONITOR_EXIT_STATUS="203",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert box.subjects == [f"AgentMem backup FAILED on {HOST}: agentmem-backup-verify@blue.service"]
        assert box.recipients == [["ops@example.com", "night@example.com"]]
        assert box.logins == ([("agent", True)] if login else [])
        for line in (
            f"host: {HOST}",
            "instance: blue",
            "what failed: agentmem-backup-verify@blue.service failed (result exit-code exited 203), "
            "and agentmem-backup itself could not tell of it",
            "look further: journalctl -u agentmem-backup-verify@blue.service -n 50",
        ):
            assert line in box.bodies[0].splitlines(), box.bodies[0]
    assert (target.root / "log" / ".failing" / ".failing-blue-verify").exists()
    assert password not in done.stdout + done.stderr


def _break(target: Target) -> None:
    """As where the virtual environment was moved away: the command's interpreter is not there."""
    script = target.root / "lib" / "alarm"
    text = script.read_text()
    broken = target.root / "broken"
    broken.write_text("#!/nowhere/venv/bin/python\n")
    broken.chmod(0o755)
    script.write_text(text.replace(str(BIN / "agentmem-backup"), str(broken)))


def test_the_alarm_tells_by_webhook_and_ping_where_python_is_broken_and_mail_too(target: Target, web: Recorder) -> None:
    target.made(
        notify_email="ops@example.com", notify_smtp_host="127.0.0.1", notify_smtp_port=free_port(),
        notify_slack_webhook=f"{web.url}/topsecrettoken", notify_ping_fail=f"{web.url}/fail",
    )  # fmt: skip
    _break(target)
    done = target.alarm("agentmem-backup.service")
    assert done.returncode == 0, done.stderr
    assert [(one.method, one.path) for one in web.requests] == [("POST", "/topsecrettoken"), ("GET", "/fail")]
    lines = web.requests[0].json["text"].splitlines()
    assert lines[0] == f"*AgentMem backup FAILED on {HOST}: agentmem-backup.service*" and f"host: {HOST}" in lines
    assert "topsecrettoken" not in done.stdout + done.stderr
    assert (target.root / "log" / ".failing" / ".failing-default-create").exists()


def test_the_alarms_secrets_are_no_arguments(target: Target, web: Recorder) -> None:
    target.made(notify_slack_webhook=f"{web.url}/topsecrettoken")
    _break(target)
    log = target.root / "trace"
    strace = ["strace", "-f", "-qq", "-s", "4096", "-e", "trace=execve", "-o", str(log)]
    given = {"PATH": os.environ["PATH"]}
    script = str(target.root / "lib" / "alarm")
    subprocess.run([*strace, script, "agentmem-backup.service"], env=given, check=True, capture_output=True, timeout=120)
    assert "curl" in log.read_text() and "topsecrettoken" not in log.read_text()


def test_an_alarm_that_cannot_leave_its_mark_is_told_all_the_same(target: Target, web: Recorder) -> None:
    """In dash a redirection that fails ends the script where it stands at a special builtin."""
    target.made(notify_slack_webhook=f"{web.url}/hook")
    _break(target)
    shutil.rmtree(target.root / "log")
    assert target.alarm("agentmem-backup.service").returncode == 0
    assert web.paths == ["/hook"]


def test_an_alarm_that_reaches_nobody_says_so_and_fails(target: Target) -> None:
    target.made(notify_email="ops@example.com", notify_smtp_host="127.0.0.1", notify_smtp_port=free_port())
    _break(target)
    done = target.alarm("agentmem-backup.service")
    assert done.returncode == 1 and "alarm: nobody could be told that agentmem-backup.service failed" in done.stderr
    for bad in ("", 'x";reboot', "$(reboot).service"):
        assert target.alarm(bad).returncode == 2


def test_the_first_success_after_such_an_alarm_is_told(target: Target, box: Mailbox, tmp_path: Path) -> None:
    target.made(notify_email="ops@example.com", notify_smtp_host="127.0.0.1", notify_smtp_port=box.port)
    _break(target)
    assert target.alarm("agentmem-backup.service").returncode == 0
    home = tmp_path / "host"
    home.mkdir()
    host = Host(home)
    host.works("create", *mail(box), "--set", f"log_dir={tmp_path / 'log'}", **TO)
    assert box.subjects[-1] == f"AgentMem backup RECOVERED on {HOST}: create"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_systemd_takes_the_alarm_and_finds_it_well_closed(target: Target) -> None:
    target.made(notify_email="ops@example.com")
    unit = target.root / "units" / "agentmem-alarm@.service"
    security = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", "--threshold=20", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert security.returncode == 0, security.stdout + security.stderr
