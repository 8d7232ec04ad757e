# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell somebody: a message to try the ways of telling, a sentence, and what the alarm unit says of a unit that failed.

The alarm unit comes after every failure of a unit, also of one that ended before our code ran. What has been told of that very
run already (systemd names it by its invocation ID) is not told again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import channels, clock, process, runs, watch
from .channels import Message
from .errors import BackupError, UsageError, one_line
from .progress import Reporter
from .settings import Settings

_UNIT = re.compile(r"agentmem-backup(?:-(?P<job>[a-z]+))?(?:@(?P<instance>[\w.-]+))?\.(?:service|timer)")
_JOBS = {None: "create", "incremental": "create"}
"""Job in a unit's name → verb, where they differ."""


@dataclass
class Notified:
    """What became of a message: way of telling → nothing, or why it did not arrive."""

    outcome: dict[str, str] = field(default_factory=dict)
    remark: str = ""

    @property
    def arrived(self) -> list[str]:
        """The ways by which it arrived."""
        return [label for label, said in self.outcome.items() if not said]

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return {"arrived": self.arrived, "failed": {label: said for label, said in self.outcome.items() if said}, **self._more()}

    def _more(self) -> dict[str, str]:
        return {"remark": self.remark} if self.remark else {}


def test_message(settings: Settings, reporter: Reporter) -> Notified:
    """Send a message that says that it is a test, by every way. Raises UsageError where there is none."""
    facts = {
        "what this is": "a test: nothing has happened",
        "when you hear": "of a failure always, of the first success after it"
        + (" and of every other" * settings.notify.on_success),
        "last good set": watch.last_good(settings),
    }
    return _send(settings, reporter, watch.told(settings, f"AgentMem backup on {watch.place(settings)}: a test message", facts))


def message(settings: Settings, reporter: Reporter, text: str) -> Notified:
    """Tell a sentence of somebody else's, such as a playbook's about a whole fleet, by every way. Raises UsageError."""
    if not text.strip():
        raise UsageError("--message takes the sentence that is to be told, and it is empty")
    title = f"AgentMem backup, by way of {watch.place(settings)}: {one_line(text, 100)}"
    return _send(settings, reporter, watch.told(settings, title, {"what there is to tell": text.strip()}))


def instance_of(unit: str) -> str:
    """The instance that a unit works for, by its name; nothing where it is the default one or no unit of ours."""
    found = _UNIT.fullmatch(unit)
    return (found["instance"] or "") if found else ""


def unit_failed(settings: Settings, reporter: Reporter, unit: str, environment: Mapping[str, str] | None = None) -> Notified:
    """Tell that a systemd unit failed, with its result, unless the run has told so itself. Raises UsageError."""
    if not re.fullmatch(r"[A-Za-z0-9:_.\\@][A-Za-z0-9:_.\\@-]*", unit):
        raise UsageError(f"{unit!r} is not the name of a unit: such as agentmem-backup.service")
    result, invocation = _result(unit, os.environ if environment is None else environment)
    known = runs.read(Path(settings.backup_dir))["runs"]
    for entry in known.values():
        told = entry.get("told") or {}
        if invocation and told.get("invocation") == invocation and told.get("by"):
            return Notified(remark=f"the run itself has told of this failure, by {', '.join(told['by'])}")
    if invocation and invocation in runs.told_by_mark(settings):
        return Notified(remark="the run itself has told of this failure")
    facts = {
        "unit": unit,
        "what failed": f"{unit} failed before agentmem-backup could tell of it: {result}",
        "last good set": watch.last_good(settings),
        "look further": f"journalctl -u {unit} -n 50",
    }
    message = watch.told(settings, f"AgentMem backup FAILED on {watch.place(settings)}: {unit}", facts)
    _remember_failure(settings, unit)
    return _send(settings, reporter, message)


def _send(settings: Settings, reporter: Reporter, message: Message) -> Notified:
    ways = channels.channels(settings)
    if not ways:
        raise UsageError(
            "nobody is named to be told: set notify_email (NOTIFY_EMAIL), notify_slack_webhook (NOTIFY_SLACK_WEBHOOK) "
            "or notify.urls"
        )
    outcome = channels.Delivery(settings, ways, message).outcome()
    try:
        with runs.changing(Path(settings.backup_dir)) as known:
            watch.note_channels(known["channels"], outcome)
    except OSError as error:
        reporter.warn(process.os_sentence(error, f"writing {runs.path(Path(settings.backup_dir))}"))
    return Notified({channel.label: said for channel, said in outcome})


def _remember_failure(settings: Settings, unit: str) -> None:
    """So that the first success after it is told."""
    found = _UNIT.fullmatch(unit)
    if found is None:
        return
    verb = _JOBS.get(found["job"], str(found["job"]))
    try:
        with runs.changing(Path(settings.backup_dir)) as known:
            entry = known["runs"].setdefault(verb, {})
            entry["failing_since"] = entry.get("failing_since") or clock.iso(clock.now())
            entry["failures_in_a_row"] = entry.get("failures_in_a_row", 0) + 1
    except OSError:
        runs.mark(settings, verb)


def _result(unit: str, environment: Mapping[str, str]) -> tuple[str, str]:
    """How a unit ended, in words, and the ID of that run; from systemd's own variables (since 251), else asked of it."""
    if environment.get("MONITOR_UNIT") == unit:
        named = {
            key: environment.get(f"MONITOR_{key}", "") for key in ("SERVICE_RESULT", "EXIT_CODE", "EXIT_STATUS", "INVOCATION_ID")
        }
        return _in_words(named["SERVICE_RESULT"], named["EXIT_CODE"], named["EXIT_STATUS"]), named["INVOCATION_ID"]
    properties = "Result,ExecMainStatus,InvocationID"
    try:
        output = process.run(["systemctl", "show", unit, "--property", properties], timeout_s=10)
    except BackupError:
        return "its result is not known", ""
    found = dict(line.partition("=")[::2] for line in output.splitlines())
    return _in_words(found.get("Result", ""), "", found.get("ExecMainStatus", "")), found.get("InvocationID", "")


def _in_words(result: str, kind: str, status: str) -> str:
    told = f"result {result or 'unknown'}"
    return f"{told}, {kind or 'status'} {status}" if status else told
