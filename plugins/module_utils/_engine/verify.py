# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Is a set what its manifest says? Quick: sizes, digests, first bytes. Full: everything decompressed and walked as well.

`verify_set` and `verify_file` return a `Report`; `render` makes the guide's text of it. A report passes only on
positive proof: every file that the manifest names was read to its end, and its digest compared.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import audit, backup_set, history, manifest, pipeline, registry, watch
from .backup_set import BackupSet
from .components.base import Component, Context, Source
from .crew import Crew
from .errors import BackupError, UsageError, VerificationError
from .manifest import human_size
from .pipeline import Digest
from .process import os_sentence
from .progress import Reporter
from .settings import Settings

QUICK, FULL = "quick", "full"
_RULE = "=" * 41


@dataclass
class Section:
    """What was found out about one component's file (or the manifest): lines as (good, text), and its SHA-256."""

    title: str
    lines: list[tuple[bool, str]] = field(default_factory=list)
    sha256: str = ""
    remark: str = ""
    component: str = ""
    walked: dict[str, Any] = field(default_factory=dict)
    """What the walk through the file found, for whoever reads the same file next."""

    def good(self, text: str) -> None:
        """Add a ✓ line."""
        self.lines.append((True, text))

    def bad(self, text: str) -> None:
        """Add a ✗ line."""
        self.lines.append((False, text))

    @property
    def faults(self) -> list[str]:
        """The texts of the ✗ lines."""
        return [text for good, text in self.lines if not good]


@dataclass
class Report:
    """The outcome of a verification. `alarms` make a good set suspicious until somebody acknowledges them."""

    name: str
    heading: str
    depth: str
    sections: list[Section]
    alarms: list[str] = field(default_factory=list)
    acknowledged: bool = False
    duration_s: float = 0.0

    @property
    def faults(self) -> list[str]:
        """Every fault, in the order of the sections."""
        return [fault for section in self.sections for fault in section.faults]

    @property
    def verdict(self) -> str:
        """verified, suspicious or failed. A report that looked at nothing has failed."""
        if self.faults or not any(section.lines for section in self.sections):
            return history.FAILED
        return history.SUSPICIOUS if self.alarms and not self.acknowledged else history.VERIFIED

    def as_dict(self) -> dict[str, Any]:
        """For --json and for modules."""
        return {
            "id": self.name,
            "depth": self.depth,
            "verdict": self.verdict,
            "faults": self.faults,
            "alarms": self.alarms,
            "duration_s": round(self.duration_s, 3),
            "files": {section.title: section.sha256 for section in self.sections if section.sha256},
        }


def verify_set(settings: Settings, reporter: Reporter, which: str, *, depth: str = FULL, acknowledge: bool = False) -> Report:
    """Verify the set `which` (an ID or `latest`) and record the verdict.

    Raises UsageError where there is no such set. Faults do not raise: they are in the report.
    """
    with watch.watch(settings, reporter, "verify") as run:
        report = _verify_set(settings, reporter, which, depth=depth, acknowledge=acknowledge)
        told(run, report)
    return report


def told(run: watch.Run, report: Report) -> None:
    """Say of a run that verifies how it ended."""
    run.name, run.summary = report.name, f"whole (depth {report.depth})"
    if report.verdict == history.FAILED:
        run.fault, run.look = f"{report.name} does not verify: {'; '.join(report.faults)}", f"verify {report.name}"
    elif report.verdict == history.SUSPICIOUS:
        run.fault, run.look = f"{report.name} is whole and suspicious: {'; '.join(report.alarms)}", f"info {report.name}"


def _verify_set(settings: Settings, reporter: Reporter, which: str, *, depth: str, acknowledge: bool) -> Report:
    directory = backup_set.directory(settings.backup_dir, write=False)
    one = backup_set.find(directory, which)
    report = examine_set(settings, reporter, one, depth=depth)
    known = history.newest(directory).get(one.id, {})
    report.acknowledged = acknowledge or known.get("verdict") == history.ACKNOWLEDGED
    verdict = report.verdict
    if verdict == history.VERIFIED and report.alarms:
        verdict = history.ACKNOWLEDGED
    try:
        if depth == FULL or report.faults:
            history.append(directory, one.id, verdict, "verify", depth=depth, faults=report.faults, alarms=report.alarms)
        audit.append(directory, "verify", verdict, id=one.id, depth=depth)
    except (BackupError, OSError) as error:
        said = os_sentence(error, "writing the audit log") if isinstance(error, OSError) else str(error)
        reporter.warn(f"the verdict could not be recorded: {said}")
    return report


def examine_set(
    settings: Settings,
    reporter: Reporter,
    one: BackupSet,
    *,
    depth: str = FULL,
    components: list[str] | None = None,
    keep: Path | None = None,
) -> Report:
    """Verify a set, or only the files of some `components` and the manifest, without recording anything.

    `keep` is a directory for content that a restore needs in a file (see `Source`).
    """
    begun = time.monotonic()
    context = Context(settings, reporter, one.directory, lambda step, **facts: None)
    damaged = ""
    try:
        described = one.manifest
    except VerificationError as error:
        described, damaged = None, str(error)
    digests = _text_digests(one) if one.legacy else {}
    announced = _announced(one) if one.legacy else set()
    if one.legacy:
        damaged = _lost_manifest(one)
    examined = registry.make(context, list(registry.CLASSES) if components is None else components)

    def examine(name: str) -> Section:
        component = examined[name]
        path = one.files.get(name)
        entry = described.components.get(name) if described else None
        if entry is not None:
            path = one.directory / str(entry["file"])
        section = Section(component.title, component=name)
        if path is None:
            return _absent(section, one, component, described, announced)
        entry = entry or ({"sha256": digests[path.name]} if path.name in digests else None)
        if described and name not in described.components:
            section.bad(f"{component.label} backup is not named in the manifest: {path}")
            return section
        examine_file(section, component, path, entry, depth, reporter, keep=keep)
        return section

    with Crew(examined) as crew:
        found = crew.each(examine)
    sections = [*(found[name] for name in examined), _manifest_section(one, described, damaged)]
    alarms = list(described.data.get("alarms", [])) if described else []
    return Report(one.id, f"Verifying Backup Set: {one.id}", depth, sections, alarms, duration_s=time.monotonic() - begun)


def _lost_manifest(one: BackupSet) -> str:
    """A sentence where a set was made with a JSON manifest that is gone; without it only the guide's text is left to trust."""
    if "summary" in history.newest(one.directory).get(one.id, {}):
        return (
            f"the manifest {one.manifest_path} is missing, although the set was made with one: bring it back, or restore "
            "single files (restore --db FILE …), which are then compared with nothing"
        )
    return ""


def _absent(
    section: Section, one: BackupSet, component: Component, described: manifest.Manifest | None, announced: set[str]
) -> Section:
    if described is not None or (one.legacy and component.name == "config" and component.prefix not in announced):
        section.remark = "not part of this set"
    else:
        section.bad(f"{component.label} backup is missing: {one.directory / registry.file_name(component.name, one.id, 'gzip')}")
    return section


def examine_file(
    section: Section,
    component: Component,
    path: Path,
    entry: dict[str, Any] | None,
    depth: str,
    reporter: Reporter,
    keep: Path | None = None,
) -> None:
    """Verify one component's file into `section`; `keep` is the `Source`'s."""
    label = f"{component.label} backup"
    try:
        size = path.stat().st_size
    except OSError as error:
        section.bad(f"{label} is missing: {path}" if not path.exists() else f"{label} cannot be read: {path} ({error.strerror})")
        return
    if component.name == "postgresql":
        section.good(f"{label} exists: {path}")
    if size == 0:
        section.bad(f"{label} is empty: {path}")
        return
    if entry and "bytes" in entry and entry["bytes"] != size:
        section.bad(f"{label} has {size} bytes where the manifest says {entry['bytes']}: {path}")
    else:
        section.good(f"{label} size OK: {human_size(size)}")
    compression = pipeline.compression_of(path)
    magic = pipeline.MAGIC.get(compression, b"")
    with path.open("rb") as file:
        if file.read(len(magic)) != magic:
            section.bad(f"{label} is not a {compression} file: {path}")
    # The question is what the disk holds, and not what the kernel remembers of it. A restore reads the file once more right
    # away, and needs what is remembered.
    past_cache = keep is None
    try:
        if depth == QUICK:
            section.sha256 = pipeline.hash_file(path, past_cache=past_cache)[1]
            _compare_digest(section, label, path, entry, section.sha256)
        else:
            described = entry if entry and "fingerprint" in entry else None
            source = Source(path, compression, described, keep=keep, past_cache=past_cache)
            walk_file(section, component, source, entry, reporter)
    except BackupError as error:
        section.bad(f"{label} is damaged: {error}" if str(path) not in str(error) else f"{label}: {error}")
        if not section.sha256:
            section.sha256 = pipeline.hash_file(path, past_cache=past_cache)[1]
            _compare_digest(section, label, path, entry, section.sha256)


def walk_file(section: Section, component: Component, source: Source, entry: dict[str, Any] | None, reporter: Reporter) -> Digest:
    """Read a file to its end, walk its content and hold both against `entry`, into `section`; the digest of what was read.

    Raises BackupError where it cannot be read on.
    """
    label, path = f"{component.label} backup", source.path
    total = entry.get("raw_bytes") if entry else None
    reader = source.reader(lambda done: reporter.advance(component.name, done, total))
    pieces = reader.pieces()
    examination = component.examine(source, pieces)
    section.walked = examination.facts
    if source.growing is not None and not source.growing.ended and not examination.faults:
        section.bad(f"{label} was walked through before it was whole: {path}")
    for __ in pieces:  # a walk that ended before the file did: the rest must be whole too
        pass
    digest = reader.digest()
    section.sha256 = digest.sha256
    _compare_digest(section, label, path, entry, digest.sha256)
    if entry and "raw_bytes" in entry and entry["raw_bytes"] != digest.raw_bytes:
        section.bad(f"{label} holds {digest.raw_bytes} bytes where the manifest says {entry['raw_bytes']}: {path}")
    if component.name == "postgresql" and source.compression != "none":
        section.good(f"{label} {source.compression} integrity OK")
    if examination.faults:
        for fault in examination.faults:
            section.bad(fault)
    else:
        section.good(examination.line)
    return digest


def _compare_digest(section: Section, label: str, path: Path, entry: dict[str, Any] | None, sha256: str) -> None:
    if entry and "sha256" in entry and entry["sha256"] != sha256:
        section.bad(f"{label} does not have the SHA256 that the manifest says ({entry['sha256']}): {path}")


def _text_digests(one: BackupSet) -> dict[str, str]:
    """File → SHA-256 as a legacy set's text manifest says; shortened digests say nothing."""
    try:
        text = one.text_path.read_text(errors="replace")
    except OSError:
        return {}
    return dict(re.findall(r"^\s*- (\S+)\n(?:\s+Size:.*\n)?\s+SHA256: ([0-9a-f]{64})\s*$", text, re.MULTILINE))


def _announced(one: BackupSet) -> set[str]:
    """The first parts of the names of the files that a legacy set's text manifest names."""
    try:
        return set(re.findall(rf"^\s*- ([a-z]+)_{one.id}\.", one.text_path.read_text(errors="replace"), re.MULTILINE))
    except OSError:
        return set()


def _manifest_section(one: BackupSet, described: manifest.Manifest | None, damaged: str) -> Section:
    section = Section("Manifest File")
    if damaged:
        section.bad(damaged)
        return section
    if described is None:
        if one.text_path.exists():
            section.good("Manifest file exists")
        else:
            section.bad(f"Manifest file is missing: {one.text_path}")
        return section
    try:
        text = one.text_path.read_bytes()
    except OSError:
        section.bad(f"Manifest file is missing: {one.text_path}")
        return section
    if text != described.to_text().encode():
        section.bad(f"Manifest file {one.text_path} does not say what {one.manifest_path.name} says: it was changed")
    for name in backup_set.extra_files(one):
        section.bad(f"a file bears this set's ID although the manifest does not name it: {one.directory / name}")
    if not section.lines:
        section.good("Manifest file exists")
    return section


def verify_file(
    settings: Settings, reporter: Reporter, path: Path, *, depth: str = FULL, component_name: str | None = None
) -> Report:
    """Verify one file, with what its set's manifest says of it where there is one. Raises UsageError for no backup file.

    Whose it is its name tells; where the caller knows (`component_name`) it may have any other name.
    """
    begun = time.monotonic()
    if not path.is_file():
        raise UsageError(
            f"there is no file {path}: give the ID of a set (see: agentmem-backup list) or the path of a backup file"
        )
    named = backup_set.component_of_file(path)
    name = component_name or named
    if name is not None and named not in (None, name):
        raise UsageError(f"{path} is a file of {named} by its name, and not of {name}: name the right one, or rename it")
    if name is None:
        raise UsageError(f"{path} is not a backup file: its name must begin with db_, redis_, qdrant_ or config_")
    context = Context(settings, reporter, path.parent, lambda step, **facts: None)
    component = registry.CLASSES[name](context)
    section = Section(component.title, component=name)
    one = backup_set.set_of_file(path)
    entry: dict[str, Any] | None = None
    if one is not None and not one.legacy:
        try:
            entry = one.entry(name)
        except VerificationError as error:
            section.bad(str(error))
        if entry is None and not section.lines:
            section.bad(f"{component.label} backup is not named in the manifest of its set: {path}")
        elif entry is not None and entry["file"] != path.name:
            section.bad(f"the manifest names {entry['file']} and not {path.name}")
    elif one is not None:
        digests = _text_digests(one)
        entry = {"sha256": digests[path.name]} if path.name in digests else None
    examine_file(section, component, path, entry, depth, reporter)
    heading = f"Verifying Backup File: {path.name}"
    return Report(path.name, heading, depth, [section], duration_s=time.monotonic() - begun)


def render(report: Report) -> str:
    """The guide's text, section by section."""
    lines = [_RULE, report.heading, _RULE, ""]
    for number, section in enumerate(report.sections, start=1):
        title = f"{number}. {section.title}" if len(report.sections) > 1 else section.title
        lines += [title, "-" * (len(title) + (section.title == "Database Backup"))]
        lines += [f"{'✓' if good else '✗'} {text}" for good, text in section.lines]
        if section.remark:
            lines.append(f"  {section.remark}")
        if section.sha256:
            lines.append(f"  SHA256: {section.sha256}")
        lines.append("")
    lines += [f"⚠️  {alarm}" for alarm in report.alarms]
    if report.alarms and not report.acknowledged:
        lines.append(f"   If that is as it should be: agentmem-backup verify {report.name} --acknowledge")
    if report.alarms:
        lines.append("")
    ending = {
        history.VERIFIED: "✓ Backup verification PASSED",
        history.SUSPICIOUS: "✗ Backup verification SUSPICIOUS",
        history.FAILED: "✗ Backup verification FAILED",
    }[report.verdict]
    return "\n".join([*lines, _RULE, ending, _RULE])
