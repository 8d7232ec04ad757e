# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What `keep` of a target means: which sets need not be sent there, and which go there.

Nothing here depends on what is missing locally: a set goes at a target only where `keep` says so and this host itself has
read it back there, and only a few go at a time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from . import clock, copies
from .backup_set import BackupSet
from .errors import BackupError
from .offsite import record as records
from .offsite.base import Remote
from .offsite.record import Record, base_of
from .progress import Reporter
from .settings import Settings


class Keep:
    """What `keep` of a target means for a set that is not there: so many newer ones are, each with all that it holds."""

    def __init__(self, record: Record, remote: Remote, ready: list[BackupSet]):
        self._record = record
        self._remote = remote
        self._keep = int(remote.target["keep"])
        self._here = {one.id: one for one in ready}

    def leaves_out(self, one: BackupSet, present: dict[str, int], coming: Iterable[str] = ()) -> bool:
        """Whether a set need not be sent. `coming` are those that a plan has sent already. Raises VerificationError."""
        if not self._keep or one.manifest_path.name in present:
            return False
        newer = [entry for set_id, entry in known_there(self._record, self._remote, present).items() if set_id > one.id]
        newer += [records.facts_of(copies.manifest_of(self._here[set_id])) for set_id in coming if set_id > one.id]
        mine = records.facts_of(copies.manifest_of(one))
        needed = {base_of(copies.manifest_of(other)) for other in self._here.values() if other.id > one.id}
        return one.id not in needed and sum(_covers(entry, mine) for entry in newer) >= self._keep


def known_there(record: Record, remote: Remote, present: dict[str, int]) -> dict[str, dict[str, Any]]:
    """The sets that this host has read back at a target, not dated in the future, with what it wrote down of each."""
    at = clock.now()
    return {
        one: entry
        for one in copies.ids(present)
        if f"manifest_{one}.json" in present
        and (entry := record.of(remote.where, one)).get("event") == records.READ_BACK
        and clock.id_time(one) <= at
    }


@dataclass
class Retention:
    """Which sets go at a target. `here` is how many verified sets lie on this host; `removed` and `notes` tell what was done."""

    settings: Settings
    reporter: Reporter
    record: Record
    remote: Remote
    here: int
    removed: list[str]
    notes: list[str]

    def run(self, present: dict[str, int]) -> None:
        """Remove what goes. Raises BackupError where a guard forbids it."""
        keep, where = self.remote.target["keep"], self.remote.where
        if not keep:
            return
        begun = [one for one in copies.ids(present) if self.record.of(where, one).get("event") == records.REMOVING]
        doomed = self._doomed(present, keep)
        if doomed and self.remote.target.locked:
            self.notes.append(
                f"{len(doomed)} sets are more than keep ({keep}) and stay: what is there is locked (object_lock), "
                "and the store's own rules remove it"
            )
            self.reporter.step(f"target {self.remote.target.name}: {self.notes[-1]}")
            return
        if doomed:
            self._guard(len(doomed))
        for set_id in [*begun, *doomed]:
            self._remove(set_id, present)

    def _doomed(self, present: dict[str, int], keep: int) -> list[str]:
        """A set goes when `keep` newer ones that were read back there each hold all that it holds, and none needs it."""
        known = known_there(self.record, self.remote, present)
        kept: list[dict[str, Any]] = []
        doomed = []
        for one, entry in sorted(known.items(), reverse=True):
            if sum(_covers(newer, entry) for newer in kept) < keep:
                kept.append(entry)
            else:
                doomed.append(one)
        needed = {entry["base"] for entry in kept}
        return sorted(one for one in doomed if one not in needed)

    def _guard(self, number: int) -> None:
        offsite = self.settings.offsite
        if self.here < offsite.min_local_sets:
            raise BackupError(
                f"nothing is removed at {self.remote.where}: only {self.here} verified sets lie here, and offsite.min_local_sets "
                f"wants {offsite.min_local_sets} before any of the {number} that are more than keep goes"
            )
        if number > offsite.max_removals:
            raise BackupError(
                f"nothing is removed at {self.remote.where}: {number} sets are more than keep, and offsite.max_removals lets "
                f"{offsite.max_removals} go in one run; if that is meant: sync push --set offsite.max_removals={number}"
            )

    def _remove(self, set_id: str, present: dict[str, int]) -> None:
        """The manifest first: from then on nobody takes for whole what is left."""
        self.record.note(records.REMOVING, self.remote.where, set_id)
        names = sorted((name for name in present if f"_{set_id}." in name), key=lambda name: not name.endswith(".json"))
        self.remote.remove(names)
        for name in names:
            del present[name]
        self.record.note(records.REMOVED, self.remote.where, set_id)
        self.removed.append(set_id)
        self.reporter.step(f"target {self.remote.target.name}: removed set {set_id}: more than keep")


def _covers(newer: dict[str, Any], older: dict[str, Any]) -> bool:
    """Whether a newer set holds all that an older one does: a part of a store replaces the same part only."""
    return {*newer["components"]} >= {*older["components"]} and all(
        newer["filters"].get(name) in (None, older["filters"].get(name)) for name in older["components"]
    )
