# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Metrics for Prometheus: what is in the file, that promtool takes it, and that the alert rules fire on what it says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from agentmem_backup import backup_set, clock, metrics, settings, watch
from agentmem_backup.progress import Reporter

from tests.docs.pages import rows
from tests.integration.test_notify import TO, Host, mail
from tests.support.listeners import mail_server
from tests.support.servers import CHECKOUT

RULES = CHECKOUT / "roles" / "notify" / "files" / "agentmem-backup.rules.yml"
CASES = CHECKOUT / "tests" / "monitoring" / "rules.test.yml"


@pytest.fixture
def host(tmp_path: Path) -> Host:
    (tmp_path / "textfile").mkdir()
    return Host(tmp_path)


def textfile(host: Host) -> list[str]:
    return ["--set", f"metrics.textfile={host.home / 'textfile'}"]


def values(host: Host, instance: str = "default") -> dict[str, float]:
    """What the file says, without prefix and instance: metric{labels} → value."""
    found = {}
    for line in (host.home / "textfile" / f"agentmem-backup-{instance}.prom").read_text().splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            name = name.removeprefix("agentmem_backup_").replace(f'agentmem_instance="{instance}"', "").replace("{,", "{")
            found[name.replace("{}", "")] = float(value)
    return found


def promtool(*words: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *words], input=given, capture_output=True, text=True, check=False)


def test_what_the_file_says_is_so(host: Host) -> None:
    made = json.loads(host.works("create", "--json", *textfile(host)).stdout)
    host.works("verify", *textfile(host))
    host.break_it()
    host.fails("create", *textfile(host))
    manifest = json.loads((host.home / "sets" / f"manifest_{made['id']}.json").read_text())["components"]["config"]
    found = values(host)
    assert found['last_good_timestamp_seconds{component="config"}'] == clock.from_iso(manifest["cut"]).timestamp()
    assert found['last_good_size_bytes{component="config"}'] == manifest["bytes"]
    assert found['last_run_success{verb="create"}'] == 0 and found['last_run_success{verb="verify"}'] == 1
    assert (found['runs_total{verb="create"}'], found['runs_failed_total{verb="create"}']) == (2, 1)
    at = found['last_success_timestamp_seconds{verb="create"}'] - clock.id_time(made["id"]).timestamp()
    assert 0 <= at < 60
    assert found['last_run_timestamp_seconds{verb="create"}'] > found['last_success_timestamp_seconds{verb="create"}']
    assert found['last_run_duration_seconds{verb="verify"}'] > 0
    assert found['sets{verdict="verified"}'] == 1 and found['newest_set_verdict{verdict="verified"}'] == 1
    assert found['newest_set_verdict{verdict="suspicious"}'] == 0
    free = shutil.disk_usage(host.home).free
    assert abs(found["disk_free_bytes"] - free) < free / 2 and found["disk_needed_bytes"] > 0
    assert found["last_verified_timestamp_seconds"] >= found['last_success_timestamp_seconds{verb="create"}'] - 60


def test_the_file_is_there_whole_for_another_user_and_alone(host: Host) -> None:
    old = os.umask(0o077)
    try:
        host.works("create", *textfile(host))
    finally:
        os.umask(old)
    [path] = (host.home / "textfile").iterdir()
    assert path.name == "agentmem-backup-default.prom" and path.stat().st_mode & 0o777 == 0o644
    checked = promtool("check", "metrics", given=path.read_text())
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_instances_do_not_overwrite_each_other_and_a_file_can_be_named(host: Host) -> None:
    host.works("create", *textfile(host))
    host.works("create", *textfile(host), "--instance", "blue")
    assert values(host)['sets{verdict="verified"}'] == 1
    assert values(host, "blue")['runs_total{verb="create"}'] == 2
    host.works("create", "--set", f"metrics.textfile={host.home / 'textfile' / 'own.prom'}")
    assert (host.home / "textfile" / "own.prom").exists()


def test_a_broken_channel_is_a_number(host: Host) -> None:
    with mail_server() as box:
        box.refusing = "550 no"
        host.works("create", *mail(box, on_success="true"), *textfile(host), **TO)
        assert values(host)['notification_failed{channel="email"}'] == 1
        box.refusing = ""
        host.works("create", *mail(box, on_success="true"), *textfile(host), **TO)
        assert values(host)['notification_failed{channel="email"}'] == 0
        assert values(host)['notification_failures_total{channel="email"}'] == 1


def test_metrics_that_cannot_be_written_fail_no_backup(host: Host) -> None:
    done = host.works("create", "--set", f"metrics.textfile={host.home}/nowhere")
    assert (
        f"⚠ no metrics are written: writing {host.home}/nowhere/agentmem-backup-default.prom failed: no such file" in done.stderr
    )
    assert json.loads(host.works("list", "--json").stdout)


def test_the_failure_is_written_although_the_backup_directory_is_gone(host: Host) -> None:
    host.works("create", *textfile(host))
    (host.home / "sets").rename(host.home / "elsewhere")
    host.fails("create", *textfile(host), code=2)
    found = values(host)
    assert found['last_run_success{verb="create"}'] == 0
    assert not [name for name in found if name.startswith("last_good")], "what cannot be looked at is not claimed"


def test_every_target_keeps_the_time_of_its_own_last_push(host: Host) -> None:
    given = settings.load(environment={"BACKUP_DIR": str(host.home / "sets"), "LOG_DIR": str(host.home / "log")})
    for pushed in ({"s3": "2025-01-03T12:00:00.000Z", "nas": "2025-01-03T12:00:00.000Z"}, {"nas": "2025-01-04T12:00:00.000Z"}):
        with watch.watch(given, Reporter(), "sync") as run:
            run.facts["pushed"] = pushed
    found = metrics.families(given)["offsite_last_push_timestamp_seconds"].samples
    assert {labels["target"]: value for labels, value in found} == {"s3": 1735905600, "nas": 1735992000}


def test_labels_are_escaped(host: Host) -> None:
    given = settings.load(environment={"BACKUP_DIR": str(host.home / "sets")}, command_line={"instance": 'a"b\\c\nd'})
    text = metrics.render(given)
    assert 'agentmem_instance="a\\"b\\\\c\\nd"' in text
    assert promtool("check", "metrics", given=text).returncode == 0


def test_the_documentation_has_every_metric() -> None:
    told = {name.strip("`"): meaning for name, __, meaning in rows("docs/operations.md", "By Prometheus")}
    known = metrics.families(settings.load(environment={"BACKUP_DIR": "/nowhere"}))
    assert told == {name: family.help for name, family in known.items()}


def test_promtool_takes_the_rules() -> None:
    checked = promtool("check", "rules", str(RULES))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(yaml.safe_load(RULES.read_text())['groups'][0]['rules'])} rules found" in checked.stdout


def test_the_rules_fire_where_they_should(tmp_path: Path) -> None:
    cases = tmp_path / "rules.test.yml"
    cases.write_text(CASES.read_text().replace("[RULES]", f"[{RULES}]"))
    tested = promtool("test", "rules", str(cases))
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_every_rule_has_a_case_and_asks_for_metrics_that_are_written() -> None:
    rules = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
    cases = [one for test in yaml.safe_load(CASES.read_text())["tests"] for one in test["alert_rule_test"]]
    assert {one["alert"] for one in rules} == {one["alertname"] for one in cases if one.get("exp_alerts")}
    asked = {name for rule in rules for name in re.findall(r"agentmem_backup_(\w+)", rule["expr"])}
    assert asked <= set(metrics.families(settings.load(environment={"BACKUP_DIR": "/nowhere"})))


def test_counting_thousands_of_sets_reads_no_manifest_twice(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.works("create")
    read: list[Path] = []
    real = backup_set.manifest.read
    monkeypatch.setattr(backup_set.manifest, "read", lambda path: (read.append(path), real(path))[1])
    metrics.render(settings.load(environment={"BACKUP_DIR": str(host.home / "sets")}))
    assert len(read) <= 1
