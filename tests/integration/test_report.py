# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reports of sets that were really made: by the command, by the playbook over several hosts, and in a real browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from agentmem_backup import audit, backup_set, clock, fleet, page, report
from agentmem_backup.settings import load

from tests.docs.pages import rows
from tests.docs.schema import Schema, faults
from tests.support import command, markup, synthetic
from tests.support.collection import Played, ansible_environment, ansible_playbook, custom_stats
from tests.support.servers import CHECKOUT, Stores, throwaway_directory

PAGE = "docs/report.md"


def told(stores: Stores, *arguments: str) -> dict[str, Any]:
    """The host's report, which must be as the page describes it."""
    found: dict[str, Any] = json.loads(command.good(stores, "report", "--format", "json", *arguments).stdout)
    strange, seen = faults(Schema(PAGE, ["The host"]), found)
    assert strange == []
    assert Schema(PAGE, ["The host"]).expected("always") <= seen
    return found


def create(stores: Stores, *arguments: str) -> str:
    """Make a set in a second in which there is none yet; returns its ID."""
    while (stores.backup_dir / f"manifest_{clock.set_id(clock.now())}.json").exists():
        pass
    return str(command.create(stores, *arguments)["id"])


def test_what_was_made_what_failed_and_what_was_removed(stores: Stores) -> None:
    first, second = create(stores), create(stores)
    sizes = {
        one.id: {name: path.stat().st_size for name, path in one.files.items()} for one in backup_set.sets(stores.backup_dir)
    }
    found = told(stores)
    assert (found["state"], found["reasons"], found["sets"]) == ("green", [], 2)
    assert [(run["id"], run["result"], run["stores"]) for run in found["runs"]] == [
        (one, "verified", sizes[one]) for one in (first, second)
    ]
    assert found["bytes"] == sum(size for one in sizes.values() for size in one.values())
    assert found["newest_verified"]["id"] == second and found["newest_verified"]["bytes"] == sum(sizes[second].values())
    seconds = command.manifest(stores, first)
    took = clock.from_iso(seconds["finished"]) - clock.from_iso(seconds["started"])
    assert found["runs"][0]["duration_s"] == round(took.total_seconds(), 3) > 0

    backup_set.remove(stores.backup_dir, [one for one in backup_set.sets(stores.backup_dir) if one.id == first])
    stores.redis.stop()
    try:
        refused = command.run(stores, "create", "--json")
    finally:
        stores.redis.start()
    assert refused.returncode == 1
    found = told(stores)
    assert found["state"] == "failed" and "Redis" in found["reasons"][0]
    assert [(run["present"], run["result"], run["stores"]) for run in found["runs"]] == [
        (False, "verified", sizes[first]),
        (True, "verified", sizes[second]),
        (False, "failed", {}),
    ]
    assert found["runs"][-1]["error"] in json.loads(refused.stdout)["error"]
    third = create(stores)
    found = told(stores)
    assert (found["state"], found["newest_verified"]["id"]) == ("green", third)
    assert clock.from_iso(found["next_expected"]) > clock.id_time(third)


@pytest.mark.parametrize(("order", "state"), [(("failed", "made"), "green"), (("made", "failed"), "failed")])
def test_two_runs_within_one_second(stores: Stores, monkeypatch: pytest.MonkeyPatch, order: tuple[str, str], state: str) -> None:
    made = create(stores)
    runs = {"failed": {"verb": "create", "result": "failed"}, "made": {"verb": "create", "result": "verified", "id": made}}
    told = [
        {**runs[name], "time": clock.iso(clock.id_time(made) + timedelta(seconds=after))}
        for name, after in zip(order, (0.4, 0.8), strict=True)
    ]
    monkeypatch.setattr(report, "_entries", lambda directory: told)
    assert report.report(load(environment=command.environment(stores)))["state"] == state


def test_shrunken_acknowledged_damaged_and_stale(stores: Stores) -> None:
    create(stores)
    with stores.redis.client() as client:
        client.flushall()
    done = command.run(stores, "create", "--json")
    assert done.returncode == 3
    newest = json.loads(done.stdout)["id"]
    found = told(stores)
    assert found["state"] == "shrinking" and "redis shrank by" in found["reasons"][0]
    command.good(stores, "verify", newest, "--acknowledge")
    found = told(stores)
    assert (found["state"], found["runs"][-1]["result"]) == ("green", "acknowledged")
    assert [(event["verb"], event["id"]) for event in found["events"]] == [("verify", newest)]
    assert told(stores, "--max-age", "0")["state"] == "stale"

    (stores.backup_dir / json.loads(done.stdout)["files"]["config"]).write_bytes(b"nothing")
    assert command.run(stores, "verify", "latest").returncode == 3
    found = told(stores)
    assert found["state"] == "failed" and f"set {newest} does not verify" in found["reasons"][0]


def test_a_set_from_before_sizes_were_recorded_is_read_from_its_manifest(stores: Stores) -> None:
    made = create(stores, "--component", "config")
    verdicts = stores.backup_dir / ".history" / "verdicts.jsonl"
    line = json.loads(verdicts.read_text())
    line["summary"] = {"type": "full", "size": line["summary"]["size"], "partial": True}
    verdicts.write_text(json.dumps(line) + "\n")
    (run,) = told(stores)["runs"]
    assert run["stores"] == {"config": command.manifest(stores, made)["components"]["config"]["bytes"]}
    assert run["duration_s"] is not None
    verdicts.unlink()
    (run,) = told(stores)["runs"]
    assert run["result"] == "never verified" and run["stores"]
    assert told(stores)["state"] == "stale"


def test_metrics_are_those_of_the_text_file(stores: Stores) -> None:
    made = create(stores, "--component", "config")
    printed = command.good(stores, "report", "--format", "prometheus").stdout
    size = command.manifest(stores, made)["components"]["config"]["bytes"]
    (line,) = [line for line in printed.splitlines() if line.startswith("agentmem_backup_last_good_size_bytes{")]
    assert '"config"' in line and line.endswith(f" {size}")
    assert all(line.startswith(("#", "agentmem_backup_")) for line in printed.splitlines())


def test_no_secret_leaves_the_host_in_a_sentence(stores: Stores) -> None:
    secret = str(stores.postgres.app_password)
    audit.append(stores.backup_dir, "create", "failed", id="", error=f"password {secret} is wrong")
    for form in ("json", "html"):
        printed = command.good(stores, "report", "--format", form).stdout
        assert "password" in printed and secret not in printed and json.dumps(secret)[1:-1] not in printed
    assert "********" in told(stores)["reasons"][0]


def test_the_page_is_written_whole_or_not_at_all(stores: Stores, tmp_path: Path) -> None:
    made = create(stores)
    target = tmp_path / "report.html"
    target.write_text("old")
    target.chmod(0o604)
    done = command.good(stores, "report", "--output", str(target))
    assert done.stdout.startswith(f"written to {target}: ") and done.stdout.rstrip().endswith("is green")
    assert target.stat().st_mode & 0o777 == 0o604
    assert made in markup.parse(target.read_text()).text
    assert list(tmp_path.iterdir()) == [target]
    for bad, said in ((tmp_path, "is a directory"), (tmp_path / "no" / "x", "no such file or directory")):
        refused = command.run(stores, "report", "--output", str(bad))
        assert refused.returncode == 1 and said in refused.stderr and len(refused.stderr.splitlines()) == 1
    for bad in (("--days", "0"), ("--days", "x"), ("--max-age", "young"), ("--backup-dir", "/there/is/none")):
        refused = command.run(stores, "report", *bad)
        assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1, refused.stderr
    assert list(tmp_path.iterdir()) == [target]


def test_the_documentation_knows_the_present_formats() -> None:
    assert [int(row[0]) for row in rows(PAGE, "Versions")] == list(range(1, max(report.FORMAT, fleet.FORMAT) + 1))
    assert {row[0].strip("`") for row in rows(PAGE, "States")} == set(fleet.STATES)
    schema = Schema(PAGE, ["The fleet"])
    for joined in (synthetic.joined(2), synthetic.hostile()):
        strange, seen = faults(schema, joined)
        assert strange == []
        assert schema.expected("always") <= seen
    # what a report is held against on the controller is what the page says of it
    described = {path for path in Schema(PAGE, ["The host"]).fields if len(path) == 1}
    assert {path[0] for path in described} == fleet._HOST.keys()


# --- the fleet, by the playbook


@pytest.fixture
def controller() -> Iterator[Path]:
    """A directory from which Ansible finds the checkout as its only collection."""
    with throwaway_directory("agentmem-fleet-") as directory:
        (directory / "ansible_collections" / "agentmem").mkdir(parents=True)
        (directory / "ansible_collections" / "agentmem" / "backup").symlink_to(CHECKOUT)
        yield directory


def play(directory: Path, hosts: dict[str, dict[str, Any]], *arguments: str, playbook: str = "agentmem.backup.report") -> Played:
    """Run the playbook over hosts with these variables; those without a connection are this machine."""
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    inventory = {"all": {"hosts": {name: {**local, **variables} for name, variables in hosts.items()}}}
    (directory / "inventory.yml").write_text(yaml.safe_dump(inventory))
    environment = ansible_environment(directory)
    kept = {name: value for name, value in environment.items() if name not in ("BACKUP_DIR", "LOG_DIR")}
    done = ansible_playbook(directory, kept, playbook, "-i", directory / "inventory.yml", *arguments, timeout=280)
    return Played(done.returncode, done.stdout, custom_stats(done.stdout)[0])


DEAD = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}


def options(directory: Path) -> dict[str, Any]:
    """A host's variables: its own backup directory, nothing else of this machine."""
    return {"agentmem_backup_options": {"backup_dir": str(directory), "settings_file": os.devnull}}


def test_one_page_for_green_stale_shrunken_broken_and_dead_hosts(stores: Stores, controller: Path) -> None:
    good = create(stores)
    small = controller / "small"
    shutil.copytree(stores.backup_dir, small)
    with stores.redis.client() as client:
        client.flushall()
    assert command.run(stores, "create", "--backup-dir", str(small)).returncode == 3
    played = play(
        controller,
        {
            "green": options(stores.backup_dir),
            "stale": {**options(stores.backup_dir), "agentmem_backup_max_age": "0"},
            "small": options(small),
            "bare": options(controller / "nothing"),
            "broken": {"ansible_python_interpreter": "/there/is/no/python"},
            "dead": DEAD,
            "<b>odd</b>": options(stores.backup_dir),
        },
    )
    assert played.code == 0, played.output
    found = json.loads((controller / "agentmem-backup-report.json").read_text())
    strange, __ = faults(Schema(PAGE, ["The fleet"]), found)
    assert strange == []
    hosts = {host["name"]: host for host in found["hosts"]}
    assert {name: host["state"] for name, host in hosts.items()} == {
        "dead": "unreachable",
        "bare": "failed",
        "broken": "failed",
        "stale": "stale",
        "small": "shrinking",
        "green": "green",
        "<b>odd</b>": "green",
    }
    assert "Connection refused" in hosts["dead"]["reasons"][0]
    assert "does not exist" in hosts["bare"]["reasons"][0]
    assert "/there/is/no/python" in hosts["broken"]["reasons"][0]
    assert "redis shrank by" in hosts["small"]["reasons"][0]
    entries = command.manifest(stores, good)["components"]
    assert {name: store["bytes"] for name, store in hosts["green"]["stores"].items()} == {
        name: entry["bytes"] for name, entry in entries.items()
    }
    assert hosts["green"]["trend"]["days"].endswith("v") and hosts["green"]["newest_verified"]["id"] == good
    stats = played.stats["agentmem_backup_fleet"]
    assert stats["counts"] == found["counts"] == {"unreachable": 1, "failed": 2, "stale": 1, "shrinking": 1, "green": 2}
    assert stats["not_green"] == {name: host["reasons"][0] for name, host in hosts.items() if host["state"] != "green"}
    without = ["dead", "bare", "broken", "stale"]
    assert [host["name"] for host in found["hosts"] if not host["fresh"]] == without
    assert played.stats["agentmem_backup_without"] == without
    assert f"no fresh backup on 4 of 7 hosts: {', '.join(without)}" in played.output
    rows_of = {one.attributes["data-name"]: one for one in markup.parse(page_of(controller)).all("tbody")}
    assert list(rows_of) == [host["name"] for host in found["hosts"]]
    assert good in rows_of["green"].text and "Unreachable" in rows_of["dead"].text


def page_of(controller: Path) -> str:
    """The page that the playbook has written."""
    return (controller / "agentmem-backup-report.html").read_text()


def test_a_fleet_of_dead_hosts_has_a_page_too_and_check_mode_writes_none(controller: Path) -> None:
    hosts = {"one": DEAD, "two": DEAD}
    checked = play(controller, hosts, "--check")
    assert checked.code == 0 and checked.stats["agentmem_backup_fleet"]["counts"]["unreachable"] == 2
    assert list(controller.glob("*.html")) == []
    played = play(controller, hosts)
    assert played.code == 0, played.output
    assert len(markup.parse(page_of(controller)).all("tbody")) == 2


def test_the_play_fails_where_that_is_wanted_once_the_report_is_written(stores: Stores, controller: Path) -> None:
    create(stores, "--component", "config")
    ours = {"components": ["config"], "log_dir": str(stores.log_dir), "config.directory": str(stores.config_dir)}
    good = {"agentmem_backup_options": {"backup_dir": str(stores.backup_dir), "settings_file": os.devnull, "settings": ours}}
    hosts = {"green": good, "stale": {**good, "agentmem_backup_max_age": "0"}, "dead": DEAD, "bare": options(controller / "no")}
    wanted = ("-e", "agentmem_backup_fail_when_stale=true")
    played = play(controller, hosts, *wanted)
    assert played.code == 2 and "no fresh backup on 3 of 4 hosts: dead, bare, stale" in played.output, played.output
    assert played.stats["agentmem_backup_without"] == ["dead", "bare", "stale"]
    assert len(markup.parse(page_of(controller)).all("tbody")) == 4
    failed = {name for name in hosts if re.search(rf"^{name} .*failed=1", played.output, re.MULTILINE)}
    assert failed == {"stale", "dead", "bare"}, played.output

    # the last run failed, and the set before it is young enough: red in the report, and yet not without a backup
    assert command.run(stores, "create", "--component", "config", "--set", "config.directory=/there/is/none").returncode
    played = play(controller, {"green": good}, *wanted)
    assert played.code == 0 and "no fresh backup" not in played.output, played.output
    assert played.stats["agentmem_backup_fleet"]["counts"]["failed"] == 1


def test_what_cannot_be_written_is_told_in_a_sentence(controller: Path) -> None:
    played = play(controller, {"one": DEAD}, "-e", "agentmem_backup_html=/there/is/none/x.html")
    assert played.code == 2 and "writing /there/is/none/x.html failed: no such file or directory" in played.output
    assert list(controller.glob("*.json")) == []


# --- a real browser, where there is one

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def opened(file: Path) -> markup.Element:
    """The document as a browser has it, once its scripts have run."""
    assert BROWSER
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={file.parent / 'profile'}"]
    options += ["--window-size=1400,1000", "--virtual-time-budget=3000", "--dump-dom", file.as_uri()]
    done = subprocess.run([BROWSER, *options], capture_output=True, text=True, check=True, timeout=120)
    return markup.parse(done.stdout)


@pytest.mark.skipif(BROWSER is None, reason="there is no chromium here (apt-get install chromium)")
def test_in_a_browser_only_our_own_script_runs(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(page.html(synthetic.hostile()))
    tree = opened(tmp_path / "page.html")
    assert tree.all("title")[0].text == "Backups of AgentMem"
    assert tree.all("output")[0].text == "3 of 3 hosts"  # so our script has run, under the page's own policy
    other = page.html(synthetic.hostile()).replace("</body>", "<script>document.title = 'owned'</script></body>")
    (tmp_path / "other.html").write_text(other)
    assert opened(tmp_path / "other.html").all("title")[0].text == "Backups of AgentMem"


@pytest.mark.skipif(BROWSER is None, reason="there is no chromium here (apt-get install chromium)")
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser_nothing_is_wider_than_the_screen(tmp_path: Path, width: int) -> None:
    html = page.html(fleet.join({**synthetic.hosts(60), "very-long-name-" * 16: synthetic.host("x", 1)}, {"y": "z" * 300}))
    measure = "<script>parent.postMessage([innerWidth, document.documentElement.scrollWidth].join(), '*')</script></body>"
    loose = html.replace("Content-Security-Policy", "x").replace("<details>", "<details open>").replace("</body>", measure)
    (tmp_path / "page.html").write_text(loose)
    # In a frame, for a window is at least 500 wide.
    frame = f"<title></title><iframe width={width} height=900 style='border:0' src='page.html'></iframe>"
    (tmp_path / "frame.html").write_text(f"{frame}<script>onmessage = event => document.title = event.data</script>")
    inner, needed = map(int, opened(tmp_path / "frame.html").all("title")[0].text.split(","))
    assert inner == width
    assert needed <= inner


def test_a_thousand_hosts_fit_into_five_megabytes() -> None:
    joined = synthetic.joined(1000)
    size = len(page.html(joined).encode())
    assert size <= 5_000_000
    assert len(json.dumps(joined, separators=(",", ":"))) <= 5_000_000
    assert len(joined["hosts"]) == 1001 and joined["days"] == report.DAYS
