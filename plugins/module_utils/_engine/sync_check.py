# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""See what is where: every set, here and at each target, and with `read_back` every byte of every copy."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import backup_set, copies, history, manifest, pipeline, sync_keep
from .backup_set import BackupSet
from .crew import Crew
from .errors import BackupError, Cancelled, VerificationError
from .manifest import Manifest
from .offsite import kinds
from .offsite import record as records
from .offsite.base import Remote
from .offsite.record import Record
from .process import guarded
from .progress import Reporter
from .settings import Settings
from .targets import Target

WHOLE, INCOMPLETE, MISSING, DAMAGED, LEFT_OUT = "whole", "incomplete", "missing", "damaged", "left out"


@dataclass
class Checked:
    """What is where. `sets` has for each ID the verdict here and, for each target that was reached, its state there."""

    place: str
    sets: dict[str, dict[str, Any]]
    unreached: dict[str, str]

    @property
    def problems(self) -> list[str]:
        """What is missing or damaged, and which targets could not be asked."""
        found = [f"{name}: {sentence}" for name, sentence in self.unreached.items()]
        for set_id, row in self.sets.items():
            for name, one in row["targets"].items():
                if one["state"] == DAMAGED:
                    found.append(f"{name}: set {set_id} is damaged there: {one['remark']}")
                elif one["state"] in (MISSING, INCOMPLETE) and row["wanted"]:
                    found.append(f"{name}: set {set_id} is {one['state']} there (agentmem-backup sync push)")
        return found

    @property
    def damaged(self) -> bool:
        """Whether a copy is not what its manifest says."""
        return any(one["state"] == DAMAGED for row in self.sets.values() for one in row["targets"].values())

    def as_dict(self) -> dict[str, Any]:
        """For --json and for modules."""
        return {"host": self.place, "sets": self.sets, "unreached": self.unreached, "problems": self.problems}


def check(
    settings: Settings, reporter: Reporter, names: Iterable[str] = (), *, host: str = "", read_back: bool = False
) -> Checked:
    """What is where, and what is missing. With `read_back` every byte of every copy is read at the far end."""
    directory = backup_set.directory(settings.backup_dir, write=read_back)
    wanted, place = copies.chosen(settings, names), copies.place_of(settings, host)
    own = place == copies.place_of(settings) if settings.offsite.host or not host else False
    record = Record(directory)
    ready, __ = copies.candidates(directory, record, place) if own else ([], {})
    verdicts = history.newest(directory)
    local = {one.id: one for one in backup_set.sets(directory)} if own else {}
    unreached: dict[str, str] = {}

    def look(target: Target) -> dict[str, dict[str, str]]:
        remote = kinds.reach(settings, target, place)
        try:
            return _states(remote, record, {one.id: one for one in ready}, directory, read_back)
        except Cancelled:
            raise
        except BackupError as error:
            unreached[target.name] = str(error)
            return {}

    with Crew([target.name for target in wanted]) as crew:
        by_name = {target.name: target for target in wanted}
        found = crew.each(lambda name: look(by_name[name]))
    leaving = {one.id for one in ready}
    sets = {}
    for one in sorted({*local, *(set_id for states in found.values() for set_id in states)}):
        sets[one] = {
            "here": verdicts.get(one, {}).get("verdict", "never verified") if one in local else "",
            "wanted": one in leaving,
            "targets": {
                target.name: found[target.name].get(one, {"state": MISSING, "read_back": "", "remark": ""})
                for target in wanted
                if target.name not in unreached
            },
        }
    return Checked(str(place), sets, unreached)


def _states(
    remote: Remote, record: Record, ready: dict[str, BackupSet], directory: Path, read_back: bool
) -> dict[str, dict[str, str]]:
    """Set → what it is at one target, for all of which at least a file is there."""
    present = remote.listing()
    scratch = directory / backup_set.STATE / copies.SCRATCH / f"check-{remote.target.name}"
    states = {}
    try:
        for one in copies.ids(present):
            states[one] = _state(remote, record, one, present, ready.get(one), scratch, read_back)
        rule = sync_keep.Keep(record, remote, [*ready.values()])
        for one, here in ready.items():
            with contextlib.suppress(VerificationError):
                if one not in states and rule.leaves_out(here, present):
                    states[one] = {"state": LEFT_OUT, "read_back": "", "remark": "keep wants newer ones only"}
    finally:
        copies.clear(scratch)
    return states


def _state(
    remote: Remote, record: Record, set_id: str, present: dict[str, int], here: BackupSet | None, scratch: Path, read_back: bool
) -> dict[str, str]:
    if f"manifest_{set_id}.json" not in present:
        return {"state": INCOMPLETE, "read_back": "", "remark": "no manifest: the sending was stopped, or the removing"}
    try:
        described = copies.manifest_of(here) if here else _manifest_there(remote, set_id, scratch)
        text_name = f"manifest_{set_id}.txt"
        sizes = {str(entry["file"]): int(entry["bytes"]) for entry in described.components.values()}
        sizes[text_name] = len(described.to_text().encode())
        wrong = [f"{name} is missing" for name in sizes if name not in present]
        wrong += [
            f"{name} has {present[name]} bytes, not {size}" for name, size in sizes.items() if present.get(name, size) != size
        ]
        if not wrong and read_back:
            wrong = _read_back_again(remote, record, described, here, scratch)
    except VerificationError as error:
        wrong = [str(error)]
    if wrong:
        return {"state": DAMAGED, "read_back": "", "remark": "; ".join(wrong)}
    return {"state": WHOLE, "read_back": record.was_read_back(remote.where, described), "remark": ""}


def _manifest_there(remote: Remote, set_id: str, scratch: Path) -> Manifest:
    guarded(lambda: scratch.mkdir(mode=0o700, parents=True, exist_ok=True), f"making {scratch}")
    path = scratch / f"manifest_{set_id}.json"
    remote.fetch(path.name, path)
    return manifest.read(path)


def _read_back_again(remote: Remote, record: Record, described: Manifest, here: BackupSet | None, scratch: Path) -> list[str]:
    digests = {str(entry["file"]): str(entry["sha256"]) for entry in described.components.values()}
    own = ((f"manifest_{described.id}.txt", described.to_text().encode()), (f"manifest_{described.id}.json", described.to_json()))
    digests |= {name: hashlib.sha256(content).hexdigest() for name, content in own}
    # What lies here counts as right only where it is: a copy must not be held against a file that has rotted meanwhile.
    sound = here if here and all(pipeline.hash_file(here.directory / name)[1] == digests[name] for name in digests) else None
    wrong = remote.differing(sound.directory if sound else scratch, digests)
    if wrong:
        record.note(records.DAMAGED, remote.where, described.id, files=wrong)
        return [f"{name} has other content than was sent" for name in wrong]
    record.read_back(remote.where, described)
    return []
