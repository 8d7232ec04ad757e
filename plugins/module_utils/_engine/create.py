# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make a set: the sequence of a backup, from the first look to the published manifest.

    lock → recover what a killed run left → preflight → hook before → cuts at one moment → dumps side by side, each read
    back from the disk and verified → manifest → publish → verdict, audit → retention → hook after

Until `publish` nothing of the set is visible, and a failure removes exactly what the journal names.
"""

from __future__ import annotations

import platform
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from . import __version__, audit, backup_set, clock, history, hooks, lock, manifest, preflight, process, prune, registry, watch
from .backup_set import Staging
from .components.base import Component, Context, Cut, Source, named
from .crew import Crew
from .errors import BackupError, Cancelled, VerificationError
from .manifest import Manifest, human_size
from .pipeline import Digest, Growing, Writer
from .progress import Collecting, Reporter
from .settings import Settings
from .verify import Section, walk_file


@dataclass
class Created:
    """What `create` made. `verdict` is verified or suspicious (then `alarms` says why)."""

    manifest: Manifest
    directory: Path
    verdict: str
    alarms: list[str]
    removed: list[str]
    duration_s: float
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For --json and for modules."""
        return {
            "id": self.manifest.id,
            "directory": str(self.directory),
            "verdict": self.verdict,
            "alarms": self.alarms,
            "bytes": self.manifest.size,
            "files": {name: entry["file"] for name, entry in self.manifest.components.items()},
            "skew_s": self.manifest.data["skew_s"],
            "partial": self.manifest.data["partial"],
            "removed": self.removed,
            "duration_s": round(self.duration_s, 3),
            "warnings": self.warnings,
        }


def create(settings: Settings, reporter: Reporter) -> Created:
    """Make a full set of the components in `settings`. Raises BackupError; then no set was made and nothing is left behind."""
    collecting = Collecting(reporter)
    with watch.watch(settings, collecting, "create") as run:
        created = _create_locked(settings, collecting, run)
        run.summary = f"{created.verdict}, {human_size(created.manifest.size)} in {created.duration_s:.0f} s"
        if created.alarms:
            run.fault = f"set {run.name} was made and is suspicious: {'; '.join(created.alarms)}"
            run.look = f"info {run.name}"
    return created


def _create_locked(settings: Settings, collecting: Collecting, run: watch.Run) -> Created:
    directory = backup_set.directory(settings.backup_dir)
    with lock.hold(directory / backup_set.STATE / "lock", "create", settings.lock_wait_s):
        set_id = ""
        try:
            clear_the_way(directory, settings, collecting)
            ready = check_ready(directory, settings, collecting)
            run.facts["needed"] = ready.needed
            set_id = run.name = backup_set.new_id(directory)
            hooks.run(settings, "before", collecting, {"verb": "create", "backup_dir": directory, "id": set_id})
            created = _create(directory, set_id, settings, collecting, ready)
        except BaseException as error:
            process.resume()
            _failed(directory, set_id, settings, collecting, error)
            raise
        finally:
            settle(directory, settings, collecting)
        hooks.run(
            settings, "after", collecting, {"verb": "create", "backup_dir": directory, "id": set_id, "verdict": created.verdict}
        )
        created.warnings = collecting.warnings
        return created


def plan(settings: Settings, reporter: Reporter) -> list[str]:
    """What `create` would do now, in sentences. Raises NotReady where it would not begin."""
    directory = backup_set.directory(settings.backup_dir)
    ready = check_ready(directory, settings, reporter)
    lines = [f"would make a set in {directory} of: {', '.join(settings.components)}"]
    lines += [
        f"{name}: {named(facts.facts.get('server', 'ready'))}"
        + (f", about {human_size(facts.raw_bytes)} before compression" if facts.raw_bytes is not None else "")
        for name, facts in ready.probes.items()
    ]
    lines.append(f"disk: {human_size(ready.free)} free, {human_size(ready.needed)} needed ({ready.basis})")
    doomed = prune.plan(directory, prune.Rule.of(settings))
    lines += [f"set {one.id} would be {doomed.reasons[one.id]}" for one in doomed.doomed]
    return lines


def clear_the_way(directory: Path, settings: Settings, reporter: Reporter) -> None:
    """Finish or remove what killed runs left behind; call it under the lock."""
    context = Context(settings, reporter, directory, lambda step, **facts: None)
    components = registry.make(context, list(registry.CLASSES))

    def clean_up(step: dict[str, Any]) -> None:
        component = components.get(str(step["component"]))
        if component is not None:
            component.clean_up(step)

    settle(directory, settings, reporter)
    for sentence in backup_set.recover(directory, clean_up):
        reporter.warn(sentence)
        audit.record(directory, reporter, "recover", "done", what=sentence)


def settle(directory: Path, settings: Settings, reporter: Reporter) -> None:
    """Remove what a run, this one or an earlier, could not remove at once; call it under the lock, also when a run ends."""
    context = Context(settings, reporter, directory, lambda step, **facts: None)
    for component in registry.make(context, list(registry.CLASSES)).values():
        component.settle()


def check_ready(directory: Path, settings: Settings, reporter: Reporter) -> preflight.Readiness:
    """The preflight. Raises NotReady with every problem at once."""
    problems = preflight.check_libraries()
    if problems:
        raise preflight.NotReady(problems, "back up")
    context = Context(settings, reporter, directory, lambda step, **facts: None)
    components = registry.make(context)
    with Crew(components) as crew:
        ready = preflight.assess(directory, components, crew)
    for warning in ready.warnings:
        reporter.warn(warning)
    if ready.problems:
        raise preflight.NotReady(ready.problems, "back up")
    return ready


def _create(directory: Path, set_id: str, settings: Settings, reporter: Collecting, ready: preflight.Readiness) -> Created:
    begun, started = time.monotonic(), clock.now()
    staging = Staging(directory, set_id)
    try:
        reporter.step(f"set {set_id}: backing up {', '.join(settings.components)} to {directory}")
        entries, moments = _dump_all(staging, settings, reporter, ready)
        described = _describe(staging.id, started, entries, moments, settings, directory, reporter)
        text_name, json_name = f"manifest_{set_id}.txt", f"manifest_{set_id}.json"
        staging.write(text_name, described.to_text().encode())
        staging.write(json_name, described.to_json())
        manifest.read(staging.path / json_name)
        alarms = list(described.data["alarms"])
        verdict = history.SUSPICIOUS if alarms else history.VERIFIED
        # Before the set is there: whatever happens from now on, it never lies there without what is known of it.
        history.append(directory, set_id, verdict, "create", depth="full", alarms=alarms, faults=[], summary=described.summary())
        staging.publish([*(entry["file"] for entry in entries.values()), text_name, json_name])
    except BaseException as error:
        process.resume()
        staging.discard()
        if isinstance(error, Cancelled):
            made = (directory / f"manifest_{set_id}.json").exists()
            error.args = (f"{error}: " + (f"set {set_id} was whole by then, and is there" if made else "no set was made"),)
        raise
    duration = time.monotonic() - begun
    audit.record(directory, reporter, "create", verdict, id=set_id, bytes=described.size, digest=described.digest())
    reporter.step(f"set {set_id}: {verdict}, {human_size(described.size)} in {duration:.1f} s")
    for alarm in alarms:
        reporter.warn(alarm)
    removed = prune.prune(directory, prune.Rule.of(settings), reporter)
    return Created(described, directory, verdict, alarms, removed, duration)


def _dump_all(
    staging: Staging, settings: Settings, reporter: Reporter, ready: preflight.Readiness
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Cut all stores at one moment and dump them side by side; returns entries and the moments of the cuts."""
    context = Context(settings, reporter, staging.work, staging.note)
    components = registry.make(context)
    gate = threading.Barrier(len(components))
    moments: dict[str, Any] = {}

    def at_once() -> None:
        try:
            gate.wait()
        except threading.BrokenBarrierError:
            raise Cancelled("another component was not ready") from None

    def back_up(name: str) -> dict[str, Any]:
        total = ready.probes[name].raw_bytes
        return _back_up(staging, components[name], settings, reporter, total, at_once, moments)

    with Crew(components) as crew:
        entries = crew.each(back_up, on_failure=gate.abort)
    return {name: entries[name] for name in components}, moments


def _back_up(
    staging: Staging,
    component: Component,
    settings: Settings,
    reporter: Reporter,
    total: int | None,
    at_once: Callable[[], None],
    moments: dict[str, Any],
) -> dict[str, Any]:
    """One component: cut, dump, read back from the disk, verify. Returns its entry for the manifest."""
    begun = time.monotonic()
    compression = registry.compression_for(component.name, settings.compression)
    path = staging.new_file(registry.file_name(component.name, staging.id, settings.compression))
    cut = component.open_cut(at_once, settings.fingerprint)
    try:
        moments[component.name] = cut.moment
        growing = Growing()
        reading = _Reading(component, path, compression, growing, cut)
        writer = Writer(
            path,
            compression=compression,
            level=settings.compression_level,
            advance=lambda done: reporter.advance(component.name, done, total),
            growing=growing,
            hashing=not cut.sealed,
        )
        with reading:
            with writer:
                cut.dump(writer)
                digest = writer.close()
            entry = {
                **cut.entry(),
                **asdict(digest),
                "file": path.name,
                "compression": compression,
                "cut": clock.iso(cut.moment),
                "duration_s": round(time.monotonic() - begun, 3),
            }
            cut.close()  # locks and server-side copies need not wait for the rest of the reading
            entry["sha256"] = reading.require(entry, digest).sha256
    finally:
        cut.close()
    for warning in entry.get("warnings", []):
        reporter.warn(f"{component.name}: {warning}")
    staging.note("verified", name=path.name, sha256=entry["sha256"])
    reporter.step(f"{component.name}: {path.name} {human_size(digest.bytes)} in {entry['duration_s']:.1f} s, verified")
    return entry


class _Reading:
    """Reads a file back from the disk while it is still being written, and walks it: what is left when the dump ends is short.

    Use it as a context manager around the dump; leaving the block early ends the reading.
    """

    def __init__(self, component: Component, path: Path, compression: str, growing: Growing, cut: Cut):
        self._component = component
        self._growing = growing
        self._path = path
        self._section = Section(component.title)
        # What a walk compares with is only known when the dump has ended. That there will be a digest tells it to take none.
        self._sealed = cut.sealed
        self._entry: dict[str, Any] = {} if self._sealed else {"sha256": ""}
        self._walked = cut.walks
        self._source = Source(path, compression, self._entry, past_cache=True, growing=growing)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"{component.name}-back")
        self._read: Future[Digest] | None = None

    def __enter__(self) -> _Reading:
        self._read = self._pool.submit(self._walk)
        return self

    def _walk(self) -> Digest:
        self._growing.wait_for(1)
        if not self._walked:
            return walk_file(self._section, self._component, self._source, self._entry, Reporter())
        reader = self._source.reader()
        for __ in reader.pieces():
            pass
        return reader.digest()

    def require(self, entry: dict[str, Any], written: Digest) -> Digest:
        """Wait for the end of the walk, which holds the file against `entry`; what was read. Raises VerificationError."""
        # A walk may only begin now, and takes no digests where there is one of the whole file: of a sealed one there is none yet.
        self._entry.update({key: value for key, value in entry.items() if not (self._sealed and key == "sha256")})
        self._growing.end()
        if self._read is None:
            raise AssertionError("asked for within the block only")
        try:
            read = self._read.result()
        except Cancelled:
            raise
        except BackupError as error:
            raise VerificationError(f"what was written cannot be trusted: {error}") from error
        if self._section.faults:
            raise VerificationError(f"what was written cannot be trusted: {self._section.faults[0]}")
        if read != (replace(written, sha256=read.sha256) if self._sealed else written):
            raise VerificationError(f"{self._path} does not read back as it was written: check the disk")
        return read

    def __exit__(self, *__: object) -> None:
        self._growing.give_up()
        self._pool.shutdown(wait=True)


def _describe(
    set_id: str,
    started: Any,
    entries: dict[str, dict[str, Any]],
    moments: dict[str, Any],
    settings: Settings,
    directory: Path,
    reporter: Reporter,
) -> Manifest:
    filtered = sorted(name for name, entry in entries.items() if entry.get("filters"))
    absent = [name for name in registry.CLASSES if name not in entries]
    spread = max(moments.values()) - min(moments.values())
    data = {
        "format": manifest.FORMAT,
        "id": set_id,
        "type": "full",
        "base": None,
        "host": socket.gethostname(),
        "instance": settings.instance,
        "tool": {"name": "agentmem-backup", "version": __version__, "python": platform.python_version()},
        "started": clock.iso(started),
        "finished": clock.iso(clock.now()),
        "skew_s": round(spread.total_seconds(), 3),
        "partial": {"absent": absent, "filtered": filtered} if absent or filtered else None,
        "components": entries,
        "alarms": _alarms(entries, directory, settings.shrink_alarm_percent),
        "audit": audit.head(directory),
    }
    if data["partial"]:
        said = [f"without {', '.join(absent)}"] if absent else []
        said += [f"only a part of {', '.join(filtered)}"] if filtered else []
        # That stores are absent was asked for by name; that a filter leaves something out is easily forgotten.
        (reporter.warn if filtered else reporter.step)(f"set {set_id} is partial: {'; '.join(said)}")
    return Manifest(data)


def _alarms(entries: dict[str, dict[str, Any]], directory: Path, percent: float) -> list[str]:
    """A sentence for each store that shrank by more than `percent` against the last good set of the same kind."""
    alarms = []
    last = preflight.last_entries(directory)
    for name, entry in entries.items():
        before = last.get(name)
        if before is None or _scope(before) != _scope(entry) or not before["raw_bytes"]:
            continue
        shrunk = 100 * (1 - entry["raw_bytes"] / before["raw_bytes"])
        if shrunk > percent:
            alarms.append(
                f"{name} shrank by {shrunk:.0f} % since {before['file']}: "
                f"{human_size(before['raw_bytes'])} then, {human_size(entry['raw_bytes'])} now"
            )
    return alarms


def _scope(entry: dict[str, Any]) -> tuple[Any, Any]:
    """Of what an entry is a backup: another choice of tables or paths is no loss."""
    return entry.get("filters") or {}, entry.get("roots")


def _failed(directory: Path, set_id: str, settings: Settings, reporter: Reporter, error: BaseException) -> None:
    """Record a failed run and call the error hook; what fails here must not hide why the run failed."""
    sentence = str(error) or type(error).__name__
    audit.record(directory, reporter, "create", "failed", id=set_id, error=sentence)
    try:
        hooks.run(settings, "error", reporter, {"verb": "create", "backup_dir": directory, "id": set_id, "error": sentence})
    except BackupError as trouble:
        reporter.warn(str(trouble))
