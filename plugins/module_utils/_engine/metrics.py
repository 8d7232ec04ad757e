# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Numbers for Prometheus, in its text format, as node_exporter's textfile collector reads it.

Written after each run, whole or not at all. node_exporter adds the host (`instance`); which AgentMem of the host it is stands
in `agentmem_instance`. Names and units follow https://prometheus.io/docs/practices/naming/.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import __version__, backup_set, clock, history, preflight, runs
from .errors import BackupError
from .process import os_sentence
from .progress import Reporter
from .settings import Settings

PREFIX = "agentmem_backup_"


@dataclass
class Family:
    """One metric: its type and meaning, and its values by their labels."""

    kind: str
    help: str
    samples: list[tuple[dict[str, str], float]] = field(default_factory=list)


def families(settings: Settings) -> dict[str, Family]:
    """Every metric of an instance (without the prefix) → its values; from what lies on the disk, asking no store."""
    found = {
        "info": Family("gauge", "version of agentmem-backup", [({"version": __version__}, 1)]),
        "last_run_timestamp_seconds": Family("gauge", "when a verb was last run to its end"),
        "last_run_success": Family("gauge", "1 where that run succeeded, 0 where it failed or its set was suspicious"),
        "last_run_duration_seconds": Family("gauge", "how long that run took"),
        "last_success_timestamp_seconds": Family("gauge", "when a verb last succeeded"),
        "runs_total": Family("counter", "runs of a verb"),
        "runs_failed_total": Family("counter", "runs of a verb that failed"),
        "last_good_timestamp_seconds": Family("gauge", "recovery point of a store: cut of the newest verified set that holds it"),
        "last_good_size_bytes": Family("gauge", "size of a store's file in that set"),
        "last_good_duration_seconds": Family("gauge", "how long a store's dump took in that set"),
        "last_verified_timestamp_seconds": Family("gauge", "when a set was last found whole, by create or by verify"),
        "sets": Family("gauge", "sets by their newest verdict"),
        "newest_set_verdict": Family("gauge", "1 for the verdict of the newest set, 0 for the others"),
        "disk_free_bytes": Family("gauge", "free space where the sets lie"),
        "disk_needed_bytes": Family("gauge", "space that the last backup wanted to be free"),
        "offsite_last_push_timestamp_seconds": Family("gauge", "when all good sets had last arrived at a target of sync"),
        "notification_failed": Family("gauge", "1 where the last message by a channel did not arrive"),
        "notification_failures_total": Family("counter", "messages by a channel that did not arrive"),
    }
    _add_runs(found, Path(settings.backup_dir), runs.marks(settings))
    with contextlib.suppress(BackupError):  # what cannot be looked at has no number
        _add_sets(found, backup_set.directory(settings.backup_dir, write=False))
    return found


def _add_runs(found: dict[str, Family], directory: Path, failing: list[str]) -> None:
    known = runs.read(directory)
    for verb in failing:
        known["runs"].setdefault(verb, {})["ok"] = False
    for verb, entry in known["runs"].items():
        label = {"verb": verb}
        for name, value in (
            ("last_run_timestamp_seconds", _seconds(entry.get("last"))),
            ("last_run_success", float(bool(entry.get("ok")))),
            ("last_run_duration_seconds", entry.get("seconds")),
            ("last_success_timestamp_seconds", _seconds(entry.get("last_success"))),
            ("runs_total", entry.get("runs")),
            ("runs_failed_total", entry.get("failed")),
        ):
            if isinstance(value, (int, float)):
                found[name].samples.append((label, value))
        for target, at in (entry.get("pushed") or {}).items():
            if (moment := _seconds(at)) is not None:
                found["offsite_last_push_timestamp_seconds"].samples.append(({"target": target}, moment))
        if isinstance(entry.get("needed"), (int, float)):
            found["disk_needed_bytes"].samples.append(({}, entry["needed"]))
    for key, entry in known["channels"].items():
        found["notification_failed"].samples.append(({"channel": key}, float(bool(entry.get("failing_since")))))
        found["notification_failures_total"].samples.append(({"channel": key}, int(entry.get("failures", 0))))


def _add_sets(found: dict[str, Family], directory: Path) -> None:
    found["disk_free_bytes"].samples.append(({}, shutil.disk_usage(directory).free))
    for name, entry in preflight.last_entries(directory).items():
        label = {"component": name}
        for metric, value in (
            ("last_good_timestamp_seconds", _seconds(entry.get("cut"))),
            ("last_good_size_bytes", entry.get("bytes")),
            ("last_good_duration_seconds", entry.get("duration_s")),
        ):
            if isinstance(value, (int, float)):
                found[metric].samples.append((label, value))
    verdicts, present = history.newest(directory), backup_set.sets(directory)
    whole = [_seconds(one.get("time")) for one in verdicts.values() if history.is_verified(one)]
    if times := [one for one in whole if one is not None]:
        found["last_verified_timestamp_seconds"].samples.append(({}, max(times)))
    names = [str(verdicts.get(one.id, {}).get("verdict", "none")) for one in present]
    all_verdicts = (history.VERIFIED, history.ACKNOWLEDGED, history.SUSPICIOUS, history.FAILED, "none")
    counted = Counter(names)
    for name in all_verdicts:
        found["sets"].samples.append(({"verdict": name}, counted[name]))
        if names:
            found["newest_set_verdict"].samples.append(({"verdict": name}, float(names[-1] == name)))


def _seconds(text: Any) -> float | None:
    """A remembered time in seconds since 1970."""
    try:
        return clock.from_iso(text).timestamp() if isinstance(text, str) else None
    except ValueError:
        return None


def render(settings: Settings) -> str:
    """All metrics in Prometheus's text format (https://prometheus.io/docs/instrumenting/exposition_formats/)."""
    lines: list[str] = []
    for name, family in families(settings).items():
        if family.samples:
            full = PREFIX + name
            lines += [f"# HELP {full} {family.help}", f"# TYPE {full} {family.kind}"]
            lines += [f"{full}{_labels(settings.instance, labels.items())} {value:.17g}" for labels, value in family.samples]
    return "\n".join(lines) + "\n"


def _labels(instance: str, more: Iterable[tuple[str, str]]) -> str:
    told = [("agentmem_instance", instance), *more]
    escaped = [(name, text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")) for name, text in told]
    return "{" + ",".join(f'{name}="{text}"' for name, text in escaped) + "}"


def file(settings: Settings) -> Path:
    """Where they are written: `metrics.textfile` itself, or a file of the instance's in that directory."""
    named = Path(settings.metrics.textfile)
    return named if named.suffix == ".prom" else named / f"agentmem-backup-{settings.instance.replace('/', '_')}.prom"


def write(settings: Settings, reporter: Reporter) -> None:
    """Write them where the settings ask for them. Never raises: what goes wrong is a warning."""
    if not settings.metrics.textfile:
        return
    path = file(settings)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")  # node_exporter reads *.prom only
    try:
        content = render(settings)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with os.fdopen(descriptor, "w") as opened:
            os.fchmod(descriptor, 0o644)  # whatever the umask: node_exporter is another user
            opened.write(content)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True) if temporary.parent.is_dir() else None
        reporter.warn(f"no metrics are written: {os_sentence(error, f'writing {path}')}")
    except BackupError as error:
        reporter.warn(f"no metrics are written: {error}")
