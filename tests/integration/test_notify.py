# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is told what, and when: against a real SMTP server and a real HTTP server, and servers that are broken."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from agentmem_backup import runs, settings

from tests.support import warm
from tests.support.command import BIN
from tests.support.listeners import Mailbox, Recorder, certificate, free_port, mail_server, silence

HOST = socket.gethostname()
SECRET = "a secret/of the 'mail' $erver"


@dataclass
class Host:
    """A host whose only store is its configuration directory, which fails when it is away."""

    home: Path

    def __post_init__(self) -> None:
        for name in ("sets", "log", "config"):
            (self.home / name).mkdir(mode=0o700)
        self.put_back()

    def put_back(self) -> None:
        """The store is there."""
        (self.home / "config").mkdir(exist_ok=True)
        (self.home / "config" / ".env").write_text("TOKEN=content that nobody may be told\n")

    def break_it(self) -> None:
        """The store is gone."""
        shutil.rmtree(self.home / "config")

    def run(self, *arguments: str, program: str = "agentmem-backup", **env: str) -> subprocess.CompletedProcess[str]:
        """Run the command to its end, with only this configuration as a store."""
        self.next_second()
        file = self.home / "config.yml"
        if not file.exists():
            file.write_text("components: [config]\n")
        given = {**os.environ, "BACKUP_DIR": str(self.home / "sets"), "LOG_DIR": str(self.home / "log")}
        given |= {"CONFIG_DIR": str(self.home / "config"), **env}
        words = [*arguments, "--config", str(file)] if program == "agentmem-backup" else list(arguments)
        return warm.run([str(BIN / program), *words], given, 120)

    def next_second(self) -> None:
        """Two sets never share an ID, which names the second."""
        newest = max((path.name[9:24] for path in (self.home / "sets").glob("manifest_*.json")), default="")
        while time.strftime("%Y%m%d_%H%M%S", time.gmtime()) == newest:
            time.sleep(0.02)

    def fails(self, *arguments: str, code: int = 1, **env: str) -> subprocess.CompletedProcess[str]:
        """Run it and insist on this exit code."""
        done = self.run(*arguments, **env)
        assert done.returncode == code, f"{arguments} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done

    def works(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run it and insist on success."""
        return self.fails(*arguments, code=0, **env)

    @property
    def log(self) -> str:
        """The log file."""
        return (self.home / "log" / "backup.log").read_text()


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def mail(box: Mailbox, **more: str) -> list[str]:
    return ["--set", "notify.smtp_host=127.0.0.1", "--set", f"notify.smtp_port={box.port}"] + [
        word for name, value in more.items() for word in ("--set", f"notify.{name}={value}")
    ]


TO = {"NOTIFY_EMAIL": "ops@example.com"}


# --- what is said, and when


def test_a_failure_is_told_with_all_that_somebody_needs_at_night(host: Host, box: Mailbox) -> None:
    good = json.loads(host.works("create", "--json").stdout)["id"]
    host.break_it()
    done = host.fails("create", *mail(box), **TO)
    [message], [body] = box.messages, box.bodies
    assert message["Subject"] == f"AgentMem backup FAILED on {HOST}: create"
    assert message["To"] == "ops@example.com" and HOST in str(message["From"]) and message["Date"] and message["Message-ID"]
    said = re.search(r"✗ (.*)", done.stderr)
    assert said
    for line in (
        f"host: {HOST}",
        "instance: default",
        "verb: create",
        f"what failed: {said[1]}",
        "look further: agentmem-backup check",
    ):
        assert line in body.splitlines(), body
    assert re.search(rf"^last good set: {good}, \d+ s old$", body, re.MULTILINE), body
    assert "content that nobody may be told" not in body


def test_a_success_is_told_only_where_that_is_wanted(host: Host, box: Mailbox) -> None:
    host.works("create", *mail(box), **TO)
    assert box.messages == []
    made = json.loads(host.works("create", "--json", *mail(box, on_success="true"), **TO).stdout)
    assert box.subjects == [f"AgentMem backup OK on {HOST}: create"]
    assert f"set: {made['id']}" in box.bodies[0].splitlines()
    assert re.search(r"^what was done: verified, \S+ in \d+ s$", box.bodies[0], re.MULTILINE)


def test_every_failure_is_told_and_the_recovery_once(host: Host, box: Mailbox) -> None:
    host.break_it()
    for __ in range(2):
        host.fails("create", *mail(box), **TO)
    host.put_back()
    for __ in range(2):
        host.works("create", *mail(box), **TO)
    assert box.subjects == [f"AgentMem backup {state} on {HOST}: create" for state in ("FAILED", "FAILED", "RECOVERED")]
    assert re.search(r"^failed before: 2 times since 20\d\d-", box.bodies[-1], re.MULTILINE)


def test_the_recovery_is_told_although_the_backup_directory_was_gone(host: Host, box: Mailbox) -> None:
    (host.home / "sets").rename(host.home / "elsewhere")
    host.fails("create", *mail(box), code=2, **TO)
    assert "the backup directory" in box.bodies[0] and "last good set: not known" in box.bodies[0]
    (host.home / "elsewhere").rename(host.home / "sets")
    for __ in range(2):
        host.works("create", *mail(box), **TO)
    assert box.subjects == [f"AgentMem backup {state} on {HOST}: create" for state in ("FAILED", "RECOVERED")]


def test_one_verbs_success_does_not_end_anothers_failure(host: Host, box: Mailbox) -> None:
    made = json.loads(host.works("create", "--json").stdout)["id"]
    archive = host.home / "sets" / f"config_{made}.tar.gz"
    content = archive.read_bytes()
    archive.write_bytes(content[:-20])
    done = host.fails("verify", *mail(box), code=3, **TO)
    assert "FAILED" in done.stdout
    host.works("prune", *mail(box), **TO)
    assert box.subjects == [f"AgentMem backup FAILED on {HOST}: verify"]
    assert f"{made} does not verify" in box.bodies[0] and f"look further: agentmem-backup verify {made}" in box.bodies[0]
    archive.write_bytes(content)
    host.works("verify", *mail(box), **TO)
    assert box.subjects[1:] == [f"AgentMem backup RECOVERED on {HOST}: verify"]


def test_a_suspicious_set_is_told(host: Host, box: Mailbox) -> None:
    for number in range(30):
        (host.home / "config" / f"{number}.conf").write_text("x" * 4000)
    host.works("create")
    for number in range(30):
        (host.home / "config" / f"{number}.conf").unlink()
    host.fails("create", *mail(box), code=3, **TO)
    host.fails("verify", *mail(box), code=3, **TO)
    assert box.subjects == [f"AgentMem backup FAILED on {HOST}: {verb}" for verb in ("create", "verify")]
    assert "suspicious: config shrank by" in box.bodies[0]
    host.works("verify", "latest", "--acknowledge", *mail(box), **TO)
    assert box.subjects[2:] == [f"AgentMem backup RECOVERED on {HOST}: verify"]


def test_one_file_and_a_restore_are_told_of_as_well(host: Host, box: Mailbox) -> None:
    made = json.loads(host.works("create", "--json").stdout)["id"]
    archive = host.home / "sets" / f"config_{made}.tar.gz"
    archive.write_bytes(archive.read_bytes()[:-20])
    host.fails("verify", str(archive), *mail(box), code=3, **TO)
    host.fails("restore", made, "--yes", *mail(box), code=3, **TO)
    assert box.subjects == [f"AgentMem backup FAILED on {HOST}: {verb}" for verb in ("verify", "restore")]
    assert "nothing was touched" in box.bodies[1] and f"look further: agentmem-backup restore {made} --dry-run" in box.bodies[1]


def test_looking_and_planning_tell_nobody(host: Host, box: Mailbox) -> None:
    host.break_it()
    for words in (["create", "--dry-run"], ["check"]):
        host.fails(*words, *mail(box, on_success="true"), **TO)
    host.works("prune", "--dry-run", *mail(box, on_success="true"), **TO)
    host.works("list", *mail(box, on_success="true"), **TO)
    assert box.messages == []
    assert not (host.home / "sets" / ".history" / "runs.json").exists()


def test_the_guides_script_tells_by_the_guides_variables(host: Host, box: Mailbox, web: Recorder) -> None:
    config = host.home / "config.yml"
    config.write_text(f"components: [config]\nnotify: {{smtp_host: 127.0.0.1, smtp_port: {box.port}}}\n")
    host.break_it()
    code = "import sys; from pathlib import Path; from agentmem_backup import compat, settings; "
    code += f"settings.DEFAULT_FILE = Path({str(config)!r}); sys.argv = ['backup.sh']; sys.exit(compat.backup())"
    done = host.run("-c", code, program="python", NOTIFY_SLACK_WEBHOOK=f"{web.url}/services/T0/B0/xyz", **TO)
    assert done.returncode == 1, done.stderr
    assert box.subjects == [f"AgentMem backup FAILED on {HOST}: create"]
    assert [(one.method, one.path) for one in web.requests] == [("POST", "/services/T0/B0/xyz")]


def test_an_instance_is_named(host: Host, box: Mailbox) -> None:
    host.break_it()
    host.fails("create", "--instance", "blue", *mail(box), **TO)
    assert box.subjects == [f"AgentMem backup FAILED on {HOST} (blue): create"]
    assert "instance: blue" in box.bodies[0] and "look further: agentmem-backup check --instance blue" in box.bodies[0]


def test_a_held_lock_is_told_where_nobody_sees_it(host: Host, box: Mailbox) -> None:
    import fcntl

    (host.home / "sets" / ".state").mkdir()
    with (host.home / "sets" / ".state" / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        host.fails("create", *mail(box), code=75, **TO)
    assert box.subjects == [f"AgentMem backup FAILED on {HOST}: create"]
    assert "is locked: another run is at work there" in box.bodies[0]


# --- by which ways


def test_slack_gets_its_payload(host: Host, web: Recorder) -> None:
    host.break_it()
    (host.home / "a<b&c>").mkdir()
    host.fails("create", NOTIFY_SLACK_WEBHOOK=f"{web.url}/hook", CONFIG_DIR=str(host.home / "a<b&c>" / "none"))
    [asked] = web.requests
    assert asked.method == "POST" and set(asked.json) == {"text"}
    text = asked.json["text"]
    assert text.startswith(f"*AgentMem backup FAILED on {HOST}: create*\nhost: {HOST}\n")
    assert "a&lt;b&amp;c&gt;/none" in text and "<" not in text


def test_any_service_of_apprise_is_told(host: Host, web: Recorder) -> None:
    host.break_it()
    host.fails("create", NOTIFY_URLS=web.url.replace("http", "json") + "/token")
    [asked] = web.requests
    assert asked.path == "/token" and asked.json["title"] == f"AgentMem backup FAILED on {HOST}: create"
    assert "what failed:" in asked.json["message"]


def test_apprise_is_asked_for_by_name_where_it_is_missing(host: Host, box: Mailbox, tmp_path: Path) -> None:
    host.break_it()
    code = "import sys, importlib.util as u; found = u.find_spec; "
    code += "u.find_spec = lambda name, *more: None if name == 'apprise' else found(name, *more); "
    code += "from agentmem_backup.cli import main; sys.exit(main())"
    words = [str(host.home / "config.yml"), *mail(box)]
    (host.home / "config.yml").write_text("components: [config]\n")
    done = host.run("-c", code, "create", "--config", *words, program="python", NOTIFY_URLS="json://localhost/x", **TO)
    assert done.returncode == 1
    assert "Python libraries are missing: apprise; install them with: pip install 'apprise'" in done.stderr
    assert len(box.messages) == 2, "the failure, and that apprise is missing"


@pytest.mark.parametrize(("tls", "password"), [("starttls", SECRET), ("starttls", "schlüssel ✓"), ("tls", SECRET)])
def test_mail_over_tls_with_a_login(host: Host, tls: str, password: str) -> None:
    pair = certificate(host.home)
    with mail_server(login=("agent", password), certificates=pair, from_the_first_byte=tls == "tls") as box:
        more = mail(box, smtp_tls=tls, smtp_user="agent", smtp_cacert=str(pair[0]), smtp_from="backup@example.com")
        host.works("notify", *more, NOTIFY_SMTP_PASSWORD=password, NOTIFY_EMAIL="a@example.com, B <b@example.com>")
        assert box.logins == [("agent", True)]
        assert box.recipients == [["a@example.com", "b@example.com"]]
        assert box.messages[0]["From"] == "backup@example.com"


def _enough(host: Host, web: Recorder) -> int:
    """Seconds in which a message arrives several times over, as this machine is loaded now; a silent server takes all of them."""
    begun = time.monotonic()
    host.works("notify", NOTIFY_SLACK_WEBHOOK=f"{web.url}/hook")
    web.requests.clear()
    return 6 + round(6 * (time.monotonic() - begun))


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("password", r"127\.0\.0\.1:\d+ refuses the login \(notify\.smtp_user\): 535 "),
        ("certificate", r"127\.0\.0\.1:\d+: its certificate is not trusted: self-signed certificate"),
        ("refused", r"127\.0\.0\.1:\d+: connection refused"),
        ("silent", r"127\.0\.0\.1:\d+: it does not answer in time|no answer within \d+ s"),
        ("recipient", r"127\.0\.0\.1:\d+ takes no mail for ops@example\.com: 550 no such user"),
        ("no starttls", r"127\.0\.0\.1:\d+: STARTTLS extension not supported by server\. \(look at notify\.smtp_tls"),
        ("no host", r"no\.such\.host\.invalid:\d+: "),
    ],
)
def test_a_broken_mail_server_fails_no_backup_and_is_reported(host: Host, web: Recorder, fault: str, sentence: str) -> None:
    pair = certificate(host.home)
    tls = "none" if fault in ("refused", "silent", "recipient", "no host") else "starttls"
    with mail_server(login=("a", "b"), certificates=pair) as strict, mail_server() as plain, silence() as quiet:
        port = {"refused": free_port(), "silent": quiet, "recipient": plain.port, "no starttls": plain.port}.get(
            fault, strict.port
        )
        plain.refusing = "550 no such user" if fault == "recipient" else ""
        given = {
            "smtp_host": "no.such.host.invalid" if fault == "no host" else "127.0.0.1", "smtp_port": str(port), "smtp_tls": tls,
            "timeout_s": str(_enough(host, web)) if fault == "silent" else "40", "on_success": "true",
            "smtp_cacert": "" if fault == "certificate" else str(pair[0]),
        }  # fmt: skip
        given |= {"smtp_user": "a"} if fault == "password" else {}
        words = [word for name, value in given.items() for word in ("--set", f"notify.{name}={value}")]
        env = {**TO, "NOTIFY_SLACK_WEBHOOK": f"{web.url}/hook"} | (
            {"NOTIFY_SMTP_PASSWORD": SECRET} if fault == "password" else {}
        )
        done = host.works("create", "--json", *words, **env)
        answer = json.loads(done.stdout)
        assert answer["verdict"] == "verified"
        [warning] = answer["warnings"]
        assert re.search(r"no message by e-mail to ops@example\.com: (?:" + sentence + ")", warning), warning
        assert warning in done.stderr and warning in host.log
        checked = host.works("check", *words, **env).stdout
        assert re.search("⚠ messages do not arrive by e-mail.*(?:" + sentence + ")", checked), checked
        assert host.fails("check", "--monitor", *words, code=1, **env).stdout.startswith(
            "AGENTMEM BACKUP WARNING - messages do not"
        )
        assert [one.json["text"].splitlines()[0] for one in web.requests] == [
            f"*AgentMem backup OK on {HOST}: create*",
            f"*AgentMem backup on {HOST}: messages do not arrive*",
        ]
        assert re.search(sentence, web.requests[1].json["text"])
        host.works("create", *words, **env)
        assert len(web.requests) == 3, "that the mail server is broken is told by the others once"
        assert SECRET not in done.stdout + done.stderr + host.log + str([one.body for one in web.requests])


def test_a_mended_mail_server_is_forgotten(host: Host, box: Mailbox) -> None:
    box.refusing = "451 later"
    host.fails("notify", *mail(box), **TO)
    assert "⚠ messages do not arrive" in host.works("check", *mail(box), **TO).stdout
    box.refusing = ""
    host.works("notify", *mail(box), **TO)
    assert "⚠" not in host.works("check", *mail(box), **TO).stdout


@pytest.mark.parametrize("way", ["email", "slack", "ping", "url"])
def test_whatever_never_answers_holds_a_run_up_only_so_long(host: Host, way: str) -> None:
    """Everything that may be asked is asked at once; a run waits `timeout_s` for all of it."""
    with silence() as port:
        address = f"http://127.0.0.1:{port}/x"
        env = {
            "email": {**TO},
            "slack": {"NOTIFY_SLACK_WEBHOOK": address},
            "ping": {"NOTIFY_PING_START": address, "NOTIFY_PING_SUCCESS": address},
            "url": {"NOTIFY_URLS": address.replace("http", "json")},
        }[way]
        words = ["--set", "notify.smtp_host=127.0.0.1", "--set", f"notify.smtp_port={port}", "--set", "notify.on_success=true"]
        done = host.works("create", *words, "--set", "notify.timeout_s=2", **env)
        assert "⚠ no message by" in done.stderr


@pytest.mark.parametrize("status", [403, 404, 500, 302])
def test_a_webhook_that_refuses_is_told_without_its_address(host: Host, web: Recorder, status: int) -> None:
    web.status, web.answer = status, b"invalid_token"
    done = host.fails("notify", NOTIFY_SLACK_WEBHOOK=f"{web.url}/services/T012345/B678901/topsecrettoken")
    assert f"✗ the Slack webhook: it answers {status}" in done.stderr and "invalid_token" in done.stderr
    assert "topsecret" not in done.stderr + done.stdout + host.log


@pytest.mark.parametrize(
    "address", ["hooks.slack.com/services/topsecrettoken", "https://[topsecrettoken", "ftp://topsecrettoken/x"]
)
def test_an_address_that_is_none_is_told_without_it(host: Host, address: str) -> None:
    done = host.fails("notify", NOTIFY_SLACK_WEBHOOK=address)
    assert "✗ the Slack webhook: " in done.stderr
    assert "topsecrettoken" not in done.stderr + done.stdout + host.log


def test_apprise_fails_without_showing_its_address(host: Host) -> None:
    for address in (
        "tgram://123456789:topsecrettoken/x",
        "nosuch://topsecrettoken",
        f"json://user:topsecrettoken@127.0.0.1:{free_port()}",
    ):
        done = host.fails("notify", NOTIFY_URLS=address)
        assert f"✗ {address.partition('://')[0]} (number 1 of notify.urls): " in done.stderr
        assert "topsecrettoken" not in done.stderr + done.stdout + host.log


def test_a_header_cannot_be_smuggled_in(host: Host, box: Mailbox) -> None:
    done = host.fails("notify", *mail(box), NOTIFY_EMAIL="a@example.com\nBcc: b@example.com")
    assert "notify_email or notify.smtp_from is no address" in done.stderr
    assert box.messages == []


# --- the dead man's switch


def test_the_dead_mans_switch_hears_of_backups_and_of_nothing_else(host: Host, web: Recorder) -> None:
    pings = {f"NOTIFY_PING_{moment.upper()}": f"{web.url}/{moment}/topsecret" for moment in ("start", "success", "fail")}
    host.works("create", **pings)
    assert sorted(web.paths[:1]) + web.paths[1:] == ["/start/topsecret", "/success/topsecret"]
    host.works("verify", **pings)
    host.works("prune", **pings)
    assert len(web.requests) == 2
    host.break_it()
    host.fails("create", **pings)
    assert web.paths[2:] == ["/start/topsecret", "/fail/topsecret"]
    assert {one.method for one in web.requests} == {"GET"}


def test_a_dead_mans_switch_that_is_dead_itself_fails_no_backup_and_is_told(host: Host, box: Mailbox) -> None:
    done = host.works("create", *mail(box), **TO, NOTIFY_PING_SUCCESS=f"http://127.0.0.1:{free_port()}/topsecret")
    assert "no message by the dead man's switch (ping_success): connection refused" in done.stderr.lower()
    assert box.subjects == [f"AgentMem backup on {HOST}: messages do not arrive"]
    assert "topsecret" not in done.stderr + host.log + box.bodies[0]


# --- the verb


def test_the_test_message_goes_every_way_and_says_that_it_is_one(host: Host, box: Mailbox, web: Recorder) -> None:
    done = host.works("notify", *mail(box), NOTIFY_SLACK_WEBHOOK=f"{web.url}/hook", **TO)
    assert "✓ e-mail to ops@example.com: sent" in done.stdout and "✓ the Slack webhook: sent" in done.stdout
    assert box.subjects == [f"AgentMem backup on {HOST}: a test message"]
    assert "what this is: a test" in web.requests[0].json["text"]


def test_a_sentence_is_told_as_it_is_and_without_a_secret(host: Host, box: Mailbox, web: Recorder) -> None:
    hook = f"{web.url}/services/topsecrettoken"
    host.works("notify", "--message", f"web-1: no fresh backup, asked {hook}", *mail(box), NOTIFY_SLACK_WEBHOOK=hook, **TO)
    (text,) = [request.json["text"] for request in web.requests]
    assert "what there is to tell: web-1: no fresh backup, asked ********" in text
    assert "topsecrettoken" not in text + "".join(box.subjects)
    assert "it is empty" in host.fails("notify", "--message", " ", *mail(box), code=2, **TO).stderr
    both = host.fails("notify", "--message", "x", "--unit", "agentmem-backup.service", code=2)
    assert "not allowed with argument" in both.stderr


def test_a_test_message_that_nobody_would_get_is_refused(host: Host) -> None:
    assert "nobody is named to be told: set notify_email" in host.fails("notify", code=2).stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["smtp_user=x", "smtp_host=mail.example.com"], "would go to mail.example.com in clear: set notify.smtp_tls"),
        (["smtp_port=0"], "notify.smtp_port must lie between 1 and 65535"),
        (["smtp_tls=ssl"], "notify.smtp_tls in the command line must be one of none, starttls, tls"),
        (["timeout_s=0"], "notify.timeout_s must lie between 1 and 300"),
        (["smtp_password=x"], "notify.smtp_password is a secret and must not stand on the command line"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(host: Host, words: list[str], sentence: str) -> None:
    done = host.fails("notify", *(word for one in words for word in ("--set", f"notify.{one}")), code=2)
    assert sentence in done.stderr


# --- what the alarm unit says


def test_a_unit_that_failed_before_our_code_ran_is_told(host: Host, box: Mailbox) -> None:
    systemd = {
        "MONITOR_UNIT": "agentmem-backup-verify.service", "MONITOR_SERVICE_RESULT": "exit-code", "MONITOR_EXIT_CODE": "exited",
        "MONITOR_EXIT_STATUS": "203", "MONITOR_INVOCATION_ID": "0123456789abcdef",
    }  # fmt: skip
    host.works("notify", "--unit", "agentmem-backup-verify.service", *mail(box), **TO, **systemd)
    assert box.subjects == [f"AgentMem backup FAILED on {HOST}: agentmem-backup-verify.service"]
    assert "result exit-code, exited 203" in box.bodies[0]
    assert "look further: journalctl -u agentmem-backup-verify.service -n 50" in box.bodies[0]
    host.works("create", *mail(box), **TO)
    host.works("verify", *mail(box), **TO)
    assert box.subjects[1:] == [f"AgentMem backup RECOVERED on {HOST}: verify"]


def test_what_a_run_has_told_itself_is_not_told_again(host: Host, box: Mailbox) -> None:
    host.break_it()
    unit = {"MONITOR_UNIT": "agentmem-backup.service", "MONITOR_SERVICE_RESULT": "exit-code"}
    host.fails("create", *mail(box), **TO, INVOCATION_ID="first")
    done = host.works("notify", "--unit", "agentmem-backup.service", *mail(box), **TO, **unit, MONITOR_INVOCATION_ID="first")
    assert "the run itself has told of this failure, by email" in done.stdout
    assert len(box.messages) == 1
    host.works("notify", "--unit", "agentmem-backup.service", *mail(box), **TO, **unit, MONITOR_INVOCATION_ID="second")
    assert len(box.messages) == 2, "another run, killed before it could tell"


def test_nor_where_the_backup_directory_is_gone(host: Host, box: Mailbox) -> None:
    (host.home / "sets").rename(host.home / "elsewhere")
    host.fails("create", *mail(box), code=2, **TO, INVOCATION_ID="first")
    unit = {"MONITOR_UNIT": "agentmem-backup.service", "MONITOR_SERVICE_RESULT": "exit-code"}
    host.works("notify", "--unit", "agentmem-backup.service", *mail(box), **TO, **unit, MONITOR_INVOCATION_ID="first")
    assert box.subjects == [f"AgentMem backup FAILED on {HOST}: create"]
    host.works("notify", "--unit", "agentmem-backup.service", *mail(box), **TO, **unit, MONITOR_INVOCATION_ID="second")
    assert len(box.messages) == 2


def test_what_a_run_could_not_tell_is_told_by_the_alarm(host: Host, box: Mailbox) -> None:
    host.break_it()
    box.refusing = "451 later"
    host.fails("create", *mail(box), **TO, INVOCATION_ID="first")
    box.refusing = ""
    unit = {"MONITOR_UNIT": "agentmem-backup.service", "MONITOR_SERVICE_RESULT": "exit-code", "MONITOR_INVOCATION_ID": "first"}
    host.works("notify", "--unit", "agentmem-backup.service", *mail(box), **TO, **unit)
    assert box.subjects == [f"AgentMem backup FAILED on {HOST}: agentmem-backup.service"]


def test_an_alarm_that_reaches_nobody_fails_so_that_the_script_goes_on(host: Host, box: Mailbox, web: Recorder) -> None:
    box.refusing = "550 no"
    host.fails("notify", "--unit", "agentmem-backup.service", *mail(box), **TO)
    hook = {"NOTIFY_SLACK_WEBHOOK": f"{web.url}/hook"}
    host.works("notify", "--unit", "agentmem-backup.service", *mail(box), **TO, **hook)
    assert len(web.requests) == 1


@pytest.mark.parametrize("unit", ["", "-x", "a b.service", "x.service;reboot", "x\ny"])
def test_what_is_no_unit_is_refused(host: Host, box: Mailbox, unit: str) -> None:
    done = host.run("notify", f"--unit={unit}", *mail(box), **TO)
    if unit:
        assert done.returncode == 2 and "is not the name of a unit" in done.stderr
        assert box.messages == []


# --- what must not be said


def test_what_a_program_quotes_of_the_data_stays_here() -> None:
    from agentmem_backup import errors, watch

    said = "pg_restore: error: COPY failed\nDETAIL: Key (email)=(anna@example.com) exists.\nCONTEXT:  COPY memories, line 1"
    error = errors.ToolError(
        f"pg_restore failed with exit status 1: {errors.one_line(said)}", tool="x", returncode=1, stderr=said
    )
    wrapped = errors.BackupError(f"{error}; postgresql: the old data is live")
    wrapped.__cause__ = error
    assert watch.sentence(wrapped) == (
        "pg_restore failed with exit status 1: pg_restore: error: COPY failed; postgresql: the old data is live"
    )
    library = errors.BackupError("duplicate key DETAIL: Key (email)=(anna@example.com) exists; redis: untouched")
    assert watch.sentence(library) == "duplicate key; redis: untouched"


@pytest.mark.timeout(20)
def test_errors_that_stand_behind_each_other_have_a_sentence_too() -> None:
    from agentmem_backup import errors, watch

    first, second = errors.BackupError("the first"), errors.BackupError("the second")
    first.__cause__, second.__context__ = second, first
    assert watch.sentence(first) == "the first"


def test_a_secret_in_the_engines_sentence_is_masked(host: Host, box: Mailbox, web: Recorder) -> None:
    """The sentence names the directory that is missing, and its name is a password."""
    env = {
        **TO,
        "NOTIFY_SLACK_WEBHOOK": f"{web.url}/hook",
        "CONFIG_DIR": "/nowhere/topsecretpassword",
        "DB_PASSWORD": "topsecretpassword",
    }
    host.fails("create", *mail(box), **env)
    assert "/nowhere/********" in box.bodies[0] and "/nowhere/********" in web.requests[0].json["text"]
    assert "topsecret" not in box.bodies[0] + web.requests[0].json["text"] + runs.path(host.home / "sets").read_text()


def test_no_secret_in_what_is_remembered(host: Host, box: Mailbox) -> None:
    host.break_it()
    words = mail(box, smtp_user="agent")
    host.fails("create", *words, NOTIFY_SMTP_PASSWORD=SECRET, NOTIFY_PING_FAIL="http://127.0.0.1:9/topsecrettoken", **TO)
    path = runs.path(host.home / "sets")
    assert path.stat().st_mode & 0o777 == 0o600
    assert SECRET not in path.read_text() and "topsecrettoken" not in path.read_text()
    assert "topsecrettoken" not in host.works("config", NOTIFY_PING_FAIL="http://127.0.0.1:9/topsecrettoken").stdout
    assert "topsecrettoken" in settings.load(environment={"NOTIFY_URLS": "x://topsecrettoken"}).secrets()[0]


def test_a_spoiled_history_of_runs_is_begun_anew(host: Host) -> None:
    host.works("create")
    runs.path(host.home / "sets").write_text("no JSON")
    host.works("verify")
    assert json.loads(runs.path(host.home / "sets").read_text())["runs"]["verify"]["ok"] is True
