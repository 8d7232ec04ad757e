# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Around every run, whichever door it came in by: who is told how it ended, what is remembered of it, what is counted.

    ping start → the run → what is said, and to whom → every channel at once → what is remembered → metrics

A failure is told always, a success where `notify.on_success` says so, and always the first one after a failure. Nothing that
goes wrong here fails a run: it is a warning, `check` goes on telling it, and so do the channels that still work.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import channels, clock, freshness, metrics, runs
from .channels import Channel, Delivery, Message
from .errors import BackupError, LockedError, ToolError, UsageError, one_line
from .progress import Reporter
from .settings import MASK, Settings

_PINGED = "create"
"""The verb that the dead man's switch watches: what must not stay out is a backup."""
_CONTENTS = re.compile(r"\s*\b(?:DETAIL|CONTEXT|STATEMENT|QUERY|Command was):[^;]*")
"""What PostgreSQL says beside its sentence may quote rows."""


@dataclass
class Run:
    """One run under way: what its verb says of it while it goes on, and how it ended."""

    verb: str
    name: str = ""
    """The set, or the files."""
    summary: str = ""
    """What a success has brought, in a few words."""
    fault: str = ""
    """Why a run that ended by itself is none to rely on: a suspicious set, data that differs."""
    look: str = ""
    """The arguments of the command that tells more."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Remembered with the run, for the metrics: `needed` bytes of disk; `pushed`, target → when everything had arrived there."""
    untold: bool = False
    """Nothing was done, and nobody need know."""
    begun: float = field(default_factory=time.monotonic)


@contextlib.contextmanager
def watch(settings: Settings, reporter: Reporter, verb: str) -> Iterator[Run]:
    """Report what happens in the block, by every way that the settings name; what goes wrong with that is warned of."""
    run = Run(verb)
    start = _started(settings, verb)
    try:
        yield run
    except BaseException as error:
        run.fault = sentence(error)
        run.untold = run.untold or (reporter.attended and isinstance(error, (UsageError, LockedError)))
        _end(settings, reporter, run, start)
        raise
    _end(settings, reporter, run, start)


def sentence(error: BaseException) -> str:
    """The engine's sentence, without what a program quotes of the data."""
    text = str(error) or type(error).__name__
    behind: BaseException | None = error
    seen: list[BaseException] = []
    while behind is not None and behind not in seen:  # an error that is raised again behind its own consequence closes a ring
        if isinstance(behind, ToolError) and behind.stderr:
            text = text.replace(one_line(behind.stderr), one_line(behind.stderr.strip().splitlines()[0]))
        seen.append(behind)
        behind = behind.__cause__ or behind.__context__
    return one_line(_CONTENTS.sub("", text), 1500)


def _started(settings: Settings, verb: str) -> Delivery | None:
    ping = channels.ping(settings, "start") if verb == _PINGED else None
    return Delivery(settings, [ping], Message("", "")) if ping else None


def _end(settings: Settings, reporter: Reporter, run: Run, start: Delivery | None) -> None:
    try:
        if not run.untold:
            _report(settings, reporter, run, start)
    except Exception as error:  # whatever it is, the run itself has ended as it has
        reporter.warn(f"what became of the run could not be reported: {type(error).__name__}: {one_line(error, 200)}")


def _report(settings: Settings, reporter: Reporter, run: Run, start: Delivery | None) -> None:
    run.fault = _masked(settings, run.fault)
    known = runs.read(Path(settings.backup_dir))
    before = known["runs"].get(run.verb, {})
    recovered = not run.fault and (bool(before.get("failing_since")) or runs.marked(settings, run.verb))
    ways: list[Channel] = []
    if run.fault or recovered or settings.notify.on_success:
        ways += channels.channels(settings)
    ping = channels.ping(settings, "fail" if run.fault else "success") if run.verb == _PINGED else None
    outcome = start.outcome() if start else []
    message = _message(settings, run, before, recovered)
    outcome += deliver(settings, reporter, message, [*ways, *([ping] if ping else [])], known["channels"])
    _remember(settings, run, outcome)
    metrics.write(settings, reporter)


def deliver(
    settings: Settings, reporter: Reporter, message: Message, ways: list[Channel], known: dict[str, dict[str, Any]]
) -> list[tuple[Channel, str]]:
    """Send by all `ways` at once. A way that has just broken is a warning, and told by those that are left.

    `known` is what is remembered of the channels. Returns each channel with nothing, or why it failed.
    """
    outcome = Delivery(settings, ways, message).outcome()
    broken = [(channel, said) for channel, said in outcome if said]
    for channel, said in broken:
        reporter.warn(f"no message by {channel.label}: {said}")
    fresh = [one for one in broken if not known.get(one[0].key, {}).get("failing_since")]
    dead = {channel.key for channel, __ in broken}
    left = [channel for channel in channels.channels(settings) if channel.key not in dead]
    if fresh and left:
        lines = [f"{channel.label}: {said}" for channel, said in fresh]
        outcome += Delivery(settings, left, _told_of_channels(settings, lines)).outcome()
    return outcome


def _told_of_channels(settings: Settings, lines: list[str]) -> Message:
    body = ["messages of agentmem-backup do not arrive by:", *(f"  {line}" for line in lines)]
    body += ["", f"when that is mended, try it: {command(settings, 'notify')}"]
    return Message(f"AgentMem backup on {place(settings)}: messages do not arrive", "\n".join(body))


# --- what is said ---------------------------------------------------------------------------------------------------


def place(settings: Settings) -> str:
    """The host, and the instance where it is not the only one."""
    host = socket.gethostname()
    return host if settings.instance == "default" else f"{host} ({settings.instance})"


def command(settings: Settings, arguments: str) -> str:
    """The command with these arguments, for this instance."""
    return f"agentmem-backup {arguments}" + ("" if settings.instance == "default" else f" --instance {settings.instance}")


def last_good(settings: Settings) -> str:
    """When the last good set was made, in words."""
    try:
        good = freshness.newest_good(Path(settings.backup_dir), settings.components)
    except BackupError as error:
        return f"not known, {error}"
    return f"{good.id}, {clock.age(clock.id_time(good.id))} old" if good else "none"


def told(settings: Settings, title: str, facts: dict[str, str]) -> Message:
    """A message of these facts, beside host and instance; nothing empty, and no secret."""
    lines = {"host": socket.gethostname(), "instance": settings.instance, **facts}
    body = "\n".join(f"{name}: {text}" for name, text in lines.items() if text)
    return Message(_masked(settings, title), _masked(settings, body))


def _masked(settings: Settings, text: str) -> str:
    for secret in sorted((one for one in settings.secrets() if len(one) > 3), key=len, reverse=True):
        text = text.replace(secret, MASK)
    return text


def _message(settings: Settings, run: Run, before: dict[str, Any], recovered: bool) -> Message:
    state = "FAILED" if run.fault else "RECOVERED" if recovered else "OK"
    facts = {
        "verb": run.verb,
        "set": run.name,
        "what failed": run.fault,
        "what was done": "" if run.fault else run.summary,
        "failed before": _failed_before(before) if recovered else "",
        "last good set": last_good(settings),
        "look further": command(settings, run.look or "check") if run.fault else "",
    }
    return told(settings, f"AgentMem backup {state} on {place(settings)}: {run.verb}", facts)


def _failed_before(before: dict[str, Any]) -> str:
    since, times = before.get("failing_since"), before.get("failures_in_a_row", 0)
    return f"{times} times since {since}" if since else "yes"


# --- what is remembered ---------------------------------------------------------------------------------------------


def _remember(settings: Settings, run: Run, outcome: list[tuple[Channel, str]]) -> None:
    directory = Path(settings.backup_dir)
    try:
        with runs.changing(directory) as known:
            _count(known["runs"].setdefault(run.verb, {}), run, [channel.key for channel, said in outcome if not said])
            note_channels(known["channels"], outcome)
        runs.unmark(settings, run.verb)
    except OSError:  # the backup directory is gone or not ours to write; a failure must be remembered all the same
        if run.fault:
            arrived = any(not said and channel.key != "ping" for channel, said in outcome)
            runs.mark(settings, run.verb, os.environ.get("INVOCATION_ID", "") if arrived else "")
        else:
            runs.unmark(settings, run.verb)


def _count(entry: dict[str, Any], run: Run, arrived: list[str]) -> None:
    at = clock.iso(clock.now())
    entry.update(last=at, ok=not run.fault, seconds=round(time.monotonic() - run.begun, 3), runs=entry.get("runs", 0) + 1)
    pushed = {**entry.get("pushed", {}), **run.facts.pop("pushed", {})}  # of several targets only some may have been reached
    entry.update(run.facts, **({"pushed": pushed} if pushed else {}))
    entry.setdefault("failed", 0)
    if run.fault:
        entry.update(failed=entry["failed"] + 1, failures_in_a_row=entry.get("failures_in_a_row", 0) + 1, fault=run.fault)
        entry["failing_since"] = entry.get("failing_since") or at
        # The alarm unit comes after a unit that failed: it asks whether this very run has been told of.
        entry["told"] = {"invocation": os.environ.get("INVOCATION_ID", ""), "by": [key for key in arrived if key != "ping"]}
    else:
        entry.update(last_success=at, failures_in_a_row=0, failing_since=None, fault="", told=None)


def note_channels(known: dict[str, dict[str, Any]], outcome: list[tuple[Channel, str]]) -> None:
    """Keep which channels are broken, since when and why, and count."""
    for channel, said in outcome:
        entry = known.setdefault(channel.key, {})
        entry.setdefault("failures", 0)
        if said:
            since = entry.get("failing_since") or clock.iso(clock.now())
            entry.update(failures=entry["failures"] + 1, failing_since=since, label=channel.label, fault=said)
        else:
            entry.update(failing_since=None, label=channel.label, fault="")


def broken_channels(settings: Settings) -> list[str]:
    """A sentence for each way of telling by which the last message did not arrive; of those that the settings still name."""
    known = runs.read(Path(settings.backup_dir))["channels"]
    used = {channel.key for channel in channels.channels(settings)}
    pings = (settings.notify.ping_start, settings.notify.ping_success, settings.notify.ping_fail)
    used |= {"ping"} if any(pings) else set()
    return [
        f"messages do not arrive by {entry.get('label', key)}, since {entry['failing_since']}: {entry.get('fault', '')} "
        f"(when that is mended: {command(settings, 'notify')})"
        for key, entry in known.items()
        if key in used and entry.get("failing_since")
    ]
