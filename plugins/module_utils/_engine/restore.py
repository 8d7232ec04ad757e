# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring stores back: the sequence of a restore, from the choice of the set to the last look at the live data.

    lock → recover → choose → verify fully → plan and preflight → the question → prepare beside the live data, compare →
    fence → switch (postgresql, qdrant, redis, config) → make it final → compare the live data → release → post-checks

Nothing live is touched before the switch. A failure up to the moment where the switch is made final takes back what
can be taken back, and says for each store what is live now and where the old data lies.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from . import audit, backup_set, clock, fence, history, hooks, lock, pipeline, post_checks, process, registry, verify, watch
from .backup_set import BackupSet, Staging
from .components.base import Comparison, Component, Context, Restoration, RestoreOptions, Source
from .create import clear_the_way, settle
from .crew import Crew
from .errors import BackupError, Cancelled, UsageError, VerificationError, one_line
from .preflight import NotReady
from .progress import Collecting, Reporter
from .settings import Settings

SWITCH_ORDER = (("postgresql",), ("qdrant", "redis"), ("config",))
"""PostgreSQL goes first, because its switch can be held open, and rolled back, until all others are through. Qdrant and
Redis move gigabytes, and do it side by side; the configuration, which takes a moment, changes last."""


@dataclass
class Request:
    """What is to be restored: a set (`which` an ID or `latest`, or the newest `before` a time) or named files."""

    which: str = ""
    before: datetime | None = None
    files: dict[str, Path] = field(default_factory=dict)
    components: list[str] = field(default_factory=list)
    options: RestoreOptions = field(default_factory=RestoreOptions)


@dataclass
class Plan:
    """What a restore will do, in the lines that are shown before the question."""

    name: str
    lines: list[str]
    warnings: list[str]
    problems: list[str]


@dataclass
class Restored:
    """The outcome: for each component its comparison and state, the five checks, and how long each part took in seconds."""

    name: str
    comparisons: dict[str, Comparison]
    states: dict[str, str]
    durations: dict[str, float]
    checks: list[post_checks.PostCheck]
    duration_s: float
    warnings: list[str]
    undescribed: list[str]
    """Components restored from files without a manifest: there was nothing to compare them with."""

    @property
    def differences(self) -> list[str]:
        """Everything in which the live stores differ from what was backed up."""
        return _all_differences(self.comparisons)

    @property
    def sound(self) -> bool:
        """Whether nothing differs, and every store that has a manifest was compared with it."""
        described = [one for name, one in self.comparisons.items() if name not in self.undescribed]
        return bool(self.comparisons) and not self.differences and all(one.equal for one in described)

    @property
    def equal(self) -> bool:
        """Whether every restored store was compared with its manifest and nothing differs."""
        return self.sound and not self.undescribed

    @property
    def proof(self) -> str:
        """What is proven of the restored data, in words; only where it is sound."""
        if self.undescribed:
            return f"what the files hold is there; {', '.join(self.undescribed)} came without a manifest to compare with"
        return "equal to what was backed up"

    def unwell(self, settings: Settings) -> list[str]:
        """The checks that failed and count: the stores' own, and those of an application that the settings name."""
        asked = "health_url" in settings.sources
        return [check.text for check in self.checks if check.failed and (asked or check.name in ("memories", "redis"))]

    def as_dict(self) -> dict[str, Any]:
        """For --json and for modules."""
        return {
            "restored": self.name,
            "equal": self.equal,
            "undescribed": self.undescribed,
            "components": {
                name: {
                    "compared": one.compared,
                    "differences": one.differences,
                    "not_compared": one.not_compared,
                    "state": self.states[name],
                    "duration_s": round(self.durations[name], 3),
                }
                for name, one in self.comparisons.items()
            },
            "checks": [check.as_dict() for check in self.checks],
            "duration_s": round(self.duration_s, 3),
            "warnings": self.warnings,
        }


def _all_differences(comparisons: dict[str, Comparison]) -> list[str]:
    return [f"{name}: {text}" for name, one in comparisons.items() for text in one.differences]


def restore(settings: Settings, reporter: Reporter, request: Request, confirm: Callable[[Plan], bool]) -> Restored | None:
    """Restore what `request` names; `confirm` is shown the plan and says whether to go on.

    Returns None where the answer was no. Raises NotReady with every obstacle, VerificationError where the backup is not
    whole or the restored data is not equal, BackupError where a store could not be restored.
    """
    collecting = Collecting(reporter)
    with watch.watch(settings, collecting, "restore") as told:
        restored = _restore_locked(settings, collecting, request, confirm, told)
        if restored is None:
            told.untold = True
        elif not restored.sound:
            told.fault = (
                f"what was restored differs from the backup: {'; '.join(restored.differences[:10]) or 'nothing was compared'}"
            )
        elif unwell := restored.unwell(settings):
            told.fault = f"the data is restored ({restored.proof}), but the application is not well: {'; '.join(unwell)}"
        else:
            told.summary = f"{restored.proof}, in {restored.duration_s:.0f} s"
    return restored


def _restore_locked(
    settings: Settings, collecting: Collecting, request: Request, confirm: Callable[[Plan], bool], told: watch.Run
) -> Restored | None:
    directory = backup_set.directory(settings.backup_dir)
    with lock.hold(directory / backup_set.STATE / "lock", "restore", settings.lock_wait_s):
        clear_the_way(directory, settings, collecting)
        name, sources = choose(settings, request)
        told.name, told.look = name, "" if request.files else f"restore {name} --dry-run"
        staging = Staging(directory, f"restore-{clock.set_id(clock.now())}")
        context = Context(settings, collecting, staging.work, staging.note)
        components = registry.make(context, list(sources))
        run = _Run(settings, collecting, request, name, components, sources, staging)
        try:
            with Crew(components) as crew:
                restored = run.go(crew, confirm)
        except BaseException as error:
            process.resume()
            audit.record(directory, collecting, "restore", "failed", what=name, error=str(error) or type(error).__name__)
            if not isinstance(error, NotReady):
                _error_hook(settings, collecting, name, error)
            raise
        finally:
            staging.discard()
            settle(directory, settings, collecting)
            clock.outlast(context.stamp)  # what it put aside has that in its name
        if restored is not None:
            seconds = {one: round(value, 3) for one, value in restored.durations.items()}
            audit.record(directory, collecting, "restore", "done", what=name, seconds=seconds, equal=restored.equal)
        return restored


def plan(settings: Settings, reporter: Reporter, request: Request) -> Plan:
    """What `restore` would do: the backup is verified and every store looked at, nothing is touched."""
    directory = backup_set.directory(settings.backup_dir)
    with lock.hold(directory / backup_set.STATE / "lock", "restore --dry-run", settings.lock_wait_s):
        clear_the_way(directory, settings, reporter)
        name, sources = choose(settings, request)
        staging = Staging(directory, f"restore-{clock.set_id(clock.now())}")
        try:
            components = registry.make(Context(settings, reporter, staging.work, staging.note), list(sources))
            run = _Run(settings, Collecting(reporter), request, name, components, sources, staging)
            with Crew(components) as crew:
                run.verify_fully()
                return run.make_plan(crew)
        finally:
            staging.discard()


def choose(settings: Settings, request: Request) -> tuple[str, dict[str, Source]]:
    """The name of what is restored and a source for each component. Raises UsageError."""
    _refuse_contradictions(request)
    if request.files:
        if request.which or request.before:
            raise UsageError("give either a set or single files, not both")
        for name, path in request.files.items():
            if not path.is_file():
                raise UsageError(f"there is no file {path} to restore {name} from")
        sources = {name: _file_source(name, path) for name, path in request.files.items()}
        return ", ".join(path.name for path in request.files.values()), sources
    directory = backup_set.directory(settings.backup_dir)
    if request.before:
        one = _newest_before(directory, request.before, request.components, settings.components)
    elif request.which in ("", "latest"):
        one = _newest(directory, request.components, settings.components)
    else:
        one = backup_set.find(directory, request.which)
    wanted = request.components or list(registry.CLASSES)
    backup_set.demand(one, request.components)
    return one.id, {name: _set_source(one, name) for name in registry.CLASSES if name in wanted and name in one.holds}


def _refuse_contradictions(request: Request) -> None:
    """An option that would be passed over means that more is overwritten than somebody had in mind. Raises UsageError."""
    files, options = request.files, request.options
    if files and request.components and {*request.components} != files.keys():
        raise UsageError(
            f"the files are those of {', '.join(files)}, and {', '.join(request.components)} is to be restored: "
            "leave out --component, or name the same stores"
        )
    chosen = {*files} or {*request.components} or {*registry.CLASSES}
    for option, given, store in (
        ("--only-table", options.only_tables, "postgresql"),
        ("--only-collection", options.only_collections, "qdrant"),
        ("--collection-prefix", options.collection_prefix, "qdrant"),
    ):
        if given and store not in chosen:
            raise UsageError(f"{option} is about {store}, which is not among what is restored: {', '.join(sorted(chosen))}")


def _newest(directory: Path, components: list[str], usual: list[str]) -> BackupSet:
    """The newest set of `components`; where none are named, of all that this host backs up, and of what there is failing that.

    Somebody who asks for everything back does not mean the set of the configuration that was made an hour ago.
    """
    if not components:
        with contextlib.suppress(UsageError):
            return backup_set.find(directory, "latest", usual)
    return backup_set.find(directory, "latest", components)


def _newest_before(directory: Path, moment: datetime, components: list[str], usual: list[str]) -> BackupSet:
    """As `_newest`, of the verified sets that are not from after `moment`."""
    verdicts = history.newest(directory)
    earlier = [one for one in backup_set.sets(directory) if clock.id_time(one.id) <= moment]
    verified = [one for one in earlier if history.is_verified(verdicts.get(one.id))]
    good = [one for one in verified if backup_set.meant_to_hold(one, components or usual)]
    if not components and not good:
        good = verified
    if not good:
        said = f"{len(earlier)} older sets are there, none of them verified" if earlier else "no set is that old"
        raise UsageError(f"there is no verified set from before {clock.iso(moment)}: {said} (see: agentmem-backup list)")
    return good[-1]


def _set_source(one: BackupSet, name: str) -> Source:
    path = one.holds[name]
    return Source(path, pipeline.compression_of(path), one.entry(name))


def _file_source(name: str, path: Path) -> Source:
    one = backup_set.set_of_file(path)
    entry = one.entry(name) if one is not None and one.files.get(name, path).name == path.name else None
    return Source(path.absolute(), pipeline.compression_of(path), entry)


class _Turns:
    """Those that are named go one after the other, in this order; whoever is not named need not wait."""

    def __init__(self, names: list[str]):
        self._done = {name: threading.Event() for name in names}

    @contextlib.contextmanager
    def take(self, name: str) -> Iterator[None]:
        """The turn of `name`, which may have to be waited for. Raises Cancelled where the run is being stopped."""
        names = list(self._done)
        try:
            for before in names[: names.index(name)] if name in names else []:
                while not self._done[before].wait(0.5):
                    process.raise_if_stopping()
            yield
        finally:
            if name in names:
                self._done[name].set()


class _Run:
    """One restore under way."""

    def __init__(
        self,
        settings: Settings,
        reporter: Collecting,
        request: Request,
        name: str,
        components: dict[str, Component],
        sources: dict[str, Source],
        staging: Staging,
    ):
        self.settings = settings
        self.reporter = reporter
        self.request = request
        self.name = name
        self.components = components
        self.sources = sources
        self.staging = staging
        self.restorations: dict[str, Restoration] = {}
        self.durations = dict.fromkeys(components, 0.0)
        self.order = [name for group in SWITCH_ORDER for name in group if name in components]
        self.final = False
        """Whether every store's switch has been made final: from then on there is no way back, and none is tried."""
        self.comparisons: dict[str, Comparison] = {}
        """Of the live data, once it was compared."""
        self.released = False
        """Whether the application was let back in."""

    def go(self, crew: Crew, confirm: Callable[[Plan], bool]) -> Restored | None:
        """The whole sequence."""
        begun = time.monotonic()
        self.verify_fully(self.staging.work)
        plan = self.make_plan(crew)
        for warning in plan.warnings:
            self.reporter.warn(warning)
        if plan.problems:
            raise NotReady(plan.problems, "restore")
        try:
            agreed = confirm(plan)
        except Cancelled as error:
            error.args = (f"{error}: nothing was touched",)
            raise
        if not agreed:
            return None
        try:
            self._prepare(crew)
            self._switch(crew)
            states = self._states(crew)
            checks = post_checks.run(self.settings, self.components)
        except BaseException as error:
            process.resume()
            raise (self._told_of_all(crew, error) if self.final else self._take_back(crew, error)) from error
        finally:
            self._close(crew)
        restored = Restored(
            self.name,
            self.comparisons,
            states,
            self.durations,
            checks,
            time.monotonic() - begun,
            self.reporter.warnings,
            [name for name, source in self.sources.items() if source.entry is None],
        )
        self._tell(restored)
        return restored

    def verify_fully(self, keep: Path | None = None) -> None:
        """Full verification of what is about to be restored. Raises VerificationError; nothing was touched.

        `keep` is where a store may leave the decompressed content for the restore that follows.
        """
        for name in self.components:
            self.reporter.step(f"{name}: verifying {self.sources[name].path}")
        if self.request.files:
            reports = [
                verify.verify_file(self.settings, self.reporter, path, component_name=name)
                for name, path in self.request.files.items()
            ]
            sections = [section for report in reports for section in report.sections]
        else:
            one = backup_set.find(backup_set.directory(self.settings.backup_dir), self.name)
            # Of a set without a manifest only verify knows what should be there: asked for whole, it must be whole.
            wanted = list(registry.CLASSES) if one.legacy and not self.request.components else list(self.components)
            sections = verify.examine_set(self.settings, self.reporter, one, components=wanted, keep=keep).sections
        for section in sections:
            if section.component in self.sources:
                self.sources[section.component] = replace(self.sources[section.component], walked=section.walked)
        faults = [fault for section in sections for fault in section.faults]
        if faults:
            raise VerificationError(
                f"{self.name} does not verify, and nothing was touched: {'; '.join(faults)} "
                "(take the set before it: agentmem-backup restore --before TIME)"
            )

    def make_plan(self, crew: Crew) -> Plan:
        """What each store says will happen."""
        options = self.request.options
        plans = crew.each(lambda name: self.components[name].plan_restore(self.sources[name], options))
        lines = [f"{name}: {line}" for name in self.components for line in plans[name].lines]
        lines += fence.described(self.settings)
        return Plan(
            self.name,
            lines,
            [*self._doubts(), *(f"{name}: {warning}" for name in self.components for warning in plans[name].warnings)],
            [f"{name}: {problem}" for name in self.components for problem in plans[name].problems],
        )

    def _doubts(self) -> list[str]:
        """What somebody who restores a whole set should know of it: stores that it lacks, alarms that nobody acknowledged."""
        if self.request.files:
            return []
        directory = backup_set.directory(self.settings.backup_dir)
        known = history.newest(directory).get(self.name, {})
        doubts = []
        if known.get("verdict") == history.SUSPICIOUS:
            doubts.append(f"set {self.name} is suspicious: {'; '.join(known.get('alarms') or ['see agentmem-backup verify'])}")
        newer = [one.id for one in backup_set.sets(directory) if self.name < one.id <= clock.set_id(clock.now())]
        if newer and self.request.which in ("", "latest") and not self.request.before:
            doubts.append(f"newer sets hold only some of the stores: {', '.join(newer[-3:])}")
        absent = [name for name in registry.CLASSES if name not in self.components]
        if absent and not self.request.components:
            doubts.append(f"set {self.name} is partial: {', '.join(absent)} not in it, and left as now")
        return doubts

    def _timed(self, name: str, work: Callable[[], Any]) -> Any:
        begun = time.monotonic()
        try:
            return work()
        finally:
            self.durations[name] += time.monotonic() - begun

    def _prepare(self, crew: Crew) -> None:
        self.staging.note("prepare", what=self.name, components=list(self.components))

        def prepare(name: str) -> Comparison:
            self.reporter.step(f"{name}: preparing beside the live data")
            restoration = self.components[name].restoration(self.sources[name], self.request.options)
            self.restorations[name] = restoration
            restoration.prepare()
            found = restoration.check()
            if not found.differences:
                compared = f", {found.compared} things compared and equal" if found.compared else ""
                self.reporter.step(f"{name}: prepared{compared}")
            return found

        turns = _Turns(self._one_after_the_other())

        def in_turn(name: str) -> Comparison:
            with turns.take(name):
                return self._timed(name, lambda: prepare(name))  # type: ignore[no-any-return]

        checks = crew.each(in_turn)
        if differences := _all_differences(checks):
            raise VerificationError(f"what was prepared is not what was backed up: {'; '.join(differences[:10])}")

    def _one_after_the_other(self) -> list[str]:
        """The stores that take turns, the largest first, where there are more stores than processors.

        PostgreSQL's rows and indexes take longest by far: what the others do meanwhile must not take the processors from it.
        """
        if "postgresql" not in self.components or (os.cpu_count() or 1) >= len(self.components):
            return []
        others = [name for name in self.components if name != "postgresql"]
        return sorted(others, key=lambda name: -self.sources[name].path.stat().st_size)

    def _switch(self, crew: Crew) -> None:
        with fence.closed(self.settings, self.reporter, {"verb": "restore", "what": self.name}):
            for group in SWITCH_ORDER:
                self._switch_together(crew, [name for name in group if name in self.components])
            # PostgreSQL's transaction has stayed open until here.
            for name in reversed(self.order):
                self.staging.note("complete", store=name)
                crew.one(name, lambda name=name: self._timed(name, self.restorations[name].complete))  # type: ignore[misc]
            self.final = True
            # The application is still kept out: what it writes would be taken for a difference.
            self.comparisons = crew.each(self._compare_live)
        self.released = True

    def _switch_together(self, crew: Crew, names: list[str]) -> None:
        for name in names:
            self.staging.note("switch", store=name)

        def switch(name: str) -> None:
            self._timed(name, self.restorations[name].commit)
            self.staging.note("switched", store=name)
            self.reporter.step(f"{name}: switched to the restored data")

        if names:
            crew.each(switch, names=names)

    def _take_back(self, crew: Crew, error: BaseException) -> BaseException:
        """Undo what can be undone, newest first; returns the error with the state of every store in its sentence."""
        states = []
        for name in reversed(self.order):
            restoration = self.restorations.get(name)
            if restoration is None:
                continue
            try:
                crew.one(name, restoration.abort)
            except Exception as trouble:  # whatever it is, the other stores must be taken back too
                self.staging.keep()
                states.append(f"{name} could not be taken back, the next run tries again ({one_line(trouble)})")
            states.append(f"{name}: {crew.one(name, restoration.state)}")
        if not isinstance(error, BackupError):
            self.reporter.warn("; ".join(states))
            return error
        error.args = ("; ".join([str(error), *states]),)
        return error

    def _compare_live(self, name: str) -> Comparison:
        """One store's comparison. What cannot be looked at any more counts as different, and not as a restore that failed."""
        try:
            return self._timed(name, self.restorations[name].compare)  # type: ignore[no-any-return]
        except Cancelled:
            raise
        except BackupError as error:
            return Comparison(differences=[f"it is restored, and cannot be compared: {error}"])

    def _states(self, crew: Crew) -> dict[str, str]:
        return crew.each(lambda name: self.restorations[name].state())

    def _told_of_all(self, crew: Crew, error: BaseException) -> BaseException:
        """The error after the switch was made final, with what it broke off and the state of every store.

        Taking some stores back now would tear them apart from PostgreSQL.
        """
        states = self._states(crew)
        why = error if isinstance(error, BackupError) else "see the error"
        if not self.comparisons:
            told = f"every store holds the restored data, but comparing it was broken off ({why})"
        elif not self.released:
            told = f"every store holds the restored data, but the application was not let back in ({why}): start it by hand"
        else:
            told = f"every store holds the restored data, but the checks afterwards were broken off ({why})"
        differences = _all_differences(self.comparisons)
        parts = [
            told,
            *(["it differs from what was backed up", *differences[:10]] if differences else []),
            *(f"{name}: {states[name]}" for name in self.order),
        ]
        if isinstance(error, BackupError):
            error.args = ("; ".join(parts),)
        else:
            self.reporter.warn("; ".join(parts))
        return error

    def _close(self, crew: Crew) -> None:
        for name, restoration in self.restorations.items():
            try:
                crew.one(name, restoration.close)
            except BackupError as trouble:
                self.reporter.warn(f"{name}: could not tidy up: {trouble}")

    def _tell(self, restored: Restored) -> None:
        for name, one in restored.comparisons.items():
            self.reporter.step(f"{name}: {restored.states[name]}")
            for reason in one.not_compared:
                self.reporter.warn(f"{name}: not compared: {reason}")
        for check in restored.checks:
            (self.reporter.warn if check.failed else self.reporter.step)(f"check: {check.text}")
        if restored.differences:
            self.reporter.warn("the live data differs from what was backed up: " + "; ".join(restored.differences[:10]))


def _error_hook(settings: Settings, reporter: Reporter, name: str, error: BaseException) -> None:
    try:
        hooks.run(settings, "error", reporter, {"verb": "restore", "what": name, "error": str(error)})
    except BackupError as trouble:
        reporter.warn(str(trouble))
