# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One host's history: runs, sizes, durations, verdicts, alarms, the newest verified set and when the next one is due.

It reads what is recorded (`.history/`, and manifests of sets that were made before sizes were recorded there) and asks no
server. What it gives is the JSON of docs/report.md, with a format number; `fleet` puts those of many hosts together.
"""

from __future__ import annotations

import itertools
import os
import shutil
import socket
from datetime import datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

from . import __version__, audit, backup_set, clock, freshness, history
from .errors import BackupError, UsageError, VerificationError
from .log import Log
from .process import guarded, os_sentence
from .settings import Settings

FORMAT = 1
DAYS, MAX_AGE = 90, "26h"
"""What is looked at unless told: a quarter of a year, and a day with two hours of grace."""
GREEN, SHRINKING, STALE, FAILED = "green", "shrinking", "stale", "failed"
MOST_DAYS = 3660
_INTERVALS = 10
"""So many of the last intervals tell the rhythm of a host's runs."""


class NoDirectory(UsageError):
    """The backup directory cannot be read: bad input for a person who asks, and a finding for whoever asks a fleet."""


def report(settings: Settings, days: int = DAYS, max_age: timedelta | None = None) -> dict[str, Any]:
    """The last `days` days of this host; it is stale when no verified set is younger than `max_age` (default 26 h).

    Raises NoDirectory where the backup directory cannot be read, UsageError for bad `days`, BackupError where the history cannot.
    """
    if not 0 < days <= MOST_DAYS:
        raise UsageError(f"a report looks back 1 to {MOST_DAYS} days, not {days}")
    try:
        directory = backup_set.directory(settings.backup_dir, write=False)
    except UsageError as error:
        raise NoDirectory(str(error)) from None
    at = clock.now()
    present = {one.id: one for one in backup_set.sets(directory)}
    verdicts = history.newest(directory)
    since = at - timedelta(days=days)
    told = _entries(directory)
    ended = _ended(told)
    runs = sorted(
        [*_made(present, verdicts, since, at), *_failed(told, present, since)],
        key=lambda run: (ended.get(run["id"], run["time"]), str(run["id"])),
    )
    good = freshness.newest_good(directory, settings.components)
    longest = clock.parse_age(MAX_AGE) if max_age is None else max_age
    state, reasons = _judged(directory, good, runs, longest, settings.components, at)
    disk = shutil.disk_usage(directory)
    found = {
        **_head(settings, days, longest, at),
        "state": state,
        "reasons": reasons,
        "newest_verified": good and _newest(good, verdicts[good.id], at),
        "next_expected": _next_expected(runs),
        "sets": len(present),
        "bytes": sum(_size(one, verdicts.get(one.id)) for one in present.values()),
        "disk": {"free": disk.free, "total": disk.total},
        "runs": runs,
        "events": _events(told, since),
    }
    return _masked(found, settings)


def unreadable(settings: Settings, sentence: str, days: int = DAYS, max_age: timedelta | None = None) -> dict[str, Any]:
    """The report of a host whose backup directory cannot be read: it has failed, and `sentence` says why."""
    longest = clock.parse_age(MAX_AGE) if max_age is None else max_age
    nothing: dict[str, Any] = {"newest_verified": None, "next_expected": None, "sets": 0, "bytes": 0, "disk": None}
    told = {"state": FAILED, "reasons": [sentence], **nothing, "runs": [], "events": []}
    return _masked({**_head(settings, days, longest, clock.now()), **told}, settings)


def write(path: Path, content: str) -> None:
    """Write a report whole or not at all; a file that is replaced keeps its mode. Raises BackupError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")

    def save() -> None:
        try:
            temporary.write_text(content, encoding="utf-8")
            if path.exists():
                temporary.chmod(path.stat().st_mode & 0o7777)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    if path.is_dir():
        raise BackupError(f"{path} is a directory: name a file in it")
    guarded(save, f"writing {path}")


def _head(settings: Settings, days: int, max_age: timedelta, at: datetime) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "generated": clock.iso(at),
        "version": __version__,
        "host": socket.gethostname(),
        "instance": settings.instance,
        "directory": settings.backup_dir,
        "days": days,
        "max_age_s": int(max_age.total_seconds()),
    }


def _masked(found: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """No sentence that was recorded may carry a secret out of the host."""
    log = Log(settings, write=False)
    found["reasons"] = [log.masked(reason) for reason in found["reasons"]]
    for entry in (*found["runs"], *found["events"]):
        entry["error"] = log.masked(entry["error"])
    return found


def _entries(directory: Path) -> list[dict[str, Any]]:
    try:
        return list(audit.entries(directory))
    except OSError as error:
        raise BackupError(os_sentence(error, "reading the audit log")) from error


# --- runs


def _made(
    present: dict[str, backup_set.BackupSet], verdicts: dict[str, dict[str, Any]], since: datetime, at: datetime
) -> list[dict[str, Any]]:
    """A run for every set that was made, whether it still lies there or was removed since."""
    ids = {one for one in {*present, *verdicts} if clock.is_set_id(one) and since <= clock.id_time(one) <= at}
    return [_run(one, present.get(one), verdicts.get(one)) for one in ids if one in present or verdicts[one].get("summary")]


def _run(set_id: str, one: backup_set.BackupSet | None, verdict: dict[str, Any] | None) -> dict[str, Any]:
    summary = _summary(one, verdict)
    known = verdict or {}
    faults = [str(fault) for fault in known.get("faults") or []]
    return {
        "id": set_id,
        "time": clock.iso(clock.id_time(set_id)),
        "type": str(summary.get("type", "?")),
        "result": str(known.get("verdict", "never verified")),
        "bytes": int(summary.get("size", 0)),
        "stores": {name: int(size) for name, size in (summary.get("stores") or {}).items()},
        "duration_s": summary.get("duration_s"),
        "present": one is not None,
        "alarms": [str(alarm) for alarm in known.get("alarms") or []],
        "error": "; ".join(faults),
    }


def _summary(one: backup_set.BackupSet | None, verdict: dict[str, Any] | None) -> dict[str, Any]:
    """What was recorded when the set was made; where that knows no stores, what the set itself says."""
    recorded: dict[str, Any] = dict((verdict or {}).get("summary") or {})
    if one is None or "stores" in recorded:
        return recorded
    try:
        if one.manifest is not None:
            return one.manifest.summary()
        return {"type": "legacy", "size": one.size(), "stores": {name: path.stat().st_size for name, path in one.files.items()}}
    except (VerificationError, OSError):
        return {"type": "damaged", "size": 0, **recorded}


def _size(one: backup_set.BackupSet, verdict: dict[str, Any] | None) -> int:
    recorded = (verdict or {}).get("summary") or {}
    try:
        return int(recorded["size"]) if "size" in recorded else one.size()
    except OSError:
        return 0  # it was removed while we looked


def _failed(told: list[dict[str, Any]], present: dict[str, backup_set.BackupSet], since: datetime) -> list[dict[str, Any]]:
    """A run for every one that made no set."""
    return [
        {
            "id": str(entry.get("id") or "") or None,
            "time": str(entry["time"]),
            "type": "?",
            "result": FAILED,
            "bytes": 0,
            "stores": {},
            "duration_s": None,
            "present": False,
            "alarms": [],
            "error": str(entry.get("error", "")),
        }
        for entry in _within(told, since)
        if entry.get("verb") == "create" and entry.get("result") == FAILED and entry.get("id") not in present
    ]


def _ended(told: list[dict[str, Any]]) -> dict[str | None, str]:
    """When runs ended: an ID names the second in which its run began, which may be before the end of one that failed."""
    return {str(entry["id"]): str(entry["time"]) for entry in told if entry.get("verb") == "create" and entry.get("id")}


def _events(told: list[dict[str, Any]], since: datetime) -> list[dict[str, Any]]:
    """What else was done to the backups: restores, verifications, removals, drills."""
    return [
        {
            "time": str(entry["time"]),
            "verb": str(entry.get("verb", "?")),
            "result": str(entry.get("result", "?")),
            "id": str(entry.get("id") or entry.get("what") or "") or None,
            "user": str(entry.get("user", "?")),
            "error": str(entry.get("error", "")),
        }
        for entry in _within(told, since)
        if entry.get("verb") != "create"
    ]


def _within(told: list[dict[str, Any]], since: datetime) -> list[dict[str, Any]]:
    first = clock.iso(since)
    return [entry for entry in told if str(entry.get("time", "")) >= first]  # ISO 8601 in UTC sorts as time does


# --- judgement


def _judged(
    directory: Path,
    good: backup_set.BackupSet | None,
    runs: list[dict[str, Any]],
    max_age: timedelta,
    components: list[str],
    at: datetime,
) -> tuple[str, list[str]]:
    """The worst of what is wrong, and a sentence for each thing that is."""
    found: dict[str, list[str]] = {FAILED: [], STALE: [], SHRINKING: []}
    last = runs[-1] if runs else None
    if last is not None and last["result"] == FAILED:
        what = f"set {last['id']} does not verify" if last["present"] else f"the run of {_minute(last['time'])} failed"
        found[FAILED].append(f"{what}: {last['error']}" if last["error"] else what)
    if good is None:
        found[STALE].append(f"there is no verified set of {', '.join(components)} in {directory}")
    elif at - clock.id_time(good.id) > max_age:
        found[STALE].append(f"the newest verified set, {good.id}, is {clock.age(clock.id_time(good.id), at)} old")
    if last is not None and last["result"] == history.SUSPICIOUS:
        found[SHRINKING] += [f"set {last['id']} is suspicious: {alarm}" for alarm in last["alarms"]]
    state = next((state for state in found if found[state]), GREEN)
    return state, [sentence for sentences in found.values() for sentence in sentences]


def _minute(time: str) -> str:
    return f"{time[:10]} {time[11:16]} UTC"


def _newest(good: backup_set.BackupSet, verdict: dict[str, Any], at: datetime) -> dict[str, Any]:
    moment = clock.id_time(good.id)
    return {
        "id": good.id,
        "time": clock.iso(moment),
        "age_s": int((at - moment).total_seconds()),
        "bytes": _size(good, verdict),
    }


def _next_expected(runs: list[dict[str, Any]]) -> str | None:
    """When the next set is due by the rhythm of the last ones: the host's timer is not asked. None below three sets."""
    moments = [clock.from_iso(run["time"]) for run in runs if run["result"] != FAILED][-_INTERVALS - 1 :]
    if len(moments) < 3:
        return None
    usual = median((later - earlier).total_seconds() for earlier, later in itertools.pairwise(moments))
    return clock.iso(moments[-1] + timedelta(seconds=usual))
