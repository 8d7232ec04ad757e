# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the modules do: create, verify, restore, report, each from a task's parameters to its result.

One question (`_info.why_create`, `why_restore`) decides whether there is something to do: None, or the sentence that says
why. It serves check mode, `msg` and the act. Parses on Python 3.8; see _module.py.
"""

from __future__ import annotations

from ._info import described, fresh, why_create
from ._module import Failure

# --- create


def create(components=()):
    """The action that makes a set of `components`; without any, of those that the settings name."""

    def action(task):
        from ._engine import backup_set

        task.settings.components = list(components or task.settings.components)
        directory = backup_set.directory(task.settings.backup_dir)
        newest, why = why_create(task, directory)
        if why is None:
            return dict(described(newest, task.settings.backup_dir), changed=False, msg=fresh(task, newest))
        # Only now: from Ansible's zip every file is compiled anew, and where there is nothing to do that is most of the time.
        from ._engine import create as engine

        if task.check_mode:
            plan = engine.plan(task.settings, task.log)
            return {"changed": True, "msg": "a set would be made: " + why, "plan": plan}
        _await_next_id(directory)
        made = engine.create(task.settings, task.begin())
        one = backup_set.find(made.directory, made.manifest.id)
        result = dict(described(one, task.settings.backup_dir), removed=made.removed, duration_s=round(made.duration_s, 3))
        if made.alarms:
            said = f"set {one.id} was made and is {made.verdict}: {'; '.join(made.alarms)}"
            raise Failure(
                f"{said} (if that is as it should be, acknowledge it with backup_set_verify)",
                **dict(result, changed=True, exit_code=3),
            )
        return dict(result, changed=True, msg=f"set {one.id} was made ({made.verdict}): {why}")

    return action


def _await_next_id(directory):
    """An ID is a second, and the next task of a play may well begin within that of the last."""
    import time

    from ._engine import backup_set, clock

    present = {one.id for one in backup_set.sets(directory)}
    while clock.set_id(clock.now()) in present:
        time.sleep(0.05)


# --- verify


def verify_component(component):
    """The action that verifies one component's file, of a set or by its path, and records nothing."""

    def action(task):
        from pathlib import Path

        from ._engine import backup_set, verify
        from ._engine.errors import UsageError

        depth = task.params["depth"]
        if task.params["path"]:
            path = Path(task.params["path"])
            if path.is_file() and backup_set.component_of_file(path) != component:
                raise UsageError(f"{path} is not a backup file of {component}")
            report = verify.verify_file(task.settings, task.log, path, depth=depth)
        else:
            directory = backup_set.directory(task.settings.backup_dir, write=False)
            one = backup_set.find(directory, task.params["id"] or "latest", [component])
            if not _damaged(one):
                backup_set.demand(one, [component])
            report = verify.examine_set(task.settings, task.log, one, depth=depth, components=[component])
        report.acknowledged = True  # an alarm is a matter of the whole set: backup_set_verify tells
        return _verified(report)

    return action


def verify_set(task):
    """The action that verifies a whole set and records the verdict."""
    from ._engine import verify

    params = task.params
    which = params["id"] or "latest"
    if task.check_mode:
        return _verified(_look_only(task, which))
    report = verify.verify_set(task.settings, task.log, which, depth=params["depth"], acknowledge=params["acknowledge"])
    return _verified(report)


def _look_only(task, which):
    """A verification that records nothing: for check mode."""
    from ._engine import backup_set, history, verify

    directory = backup_set.directory(task.settings.backup_dir, write=False)
    one = backup_set.find(directory, which)
    report = verify.examine_set(task.settings, task.log, one, depth=task.params["depth"])
    known = history.newest(directory).get(one.id) or {}
    report.acknowledged = task.params["acknowledge"] or known.get("verdict") == history.ACKNOWLEDGED
    return report


def _damaged(one):
    from ._engine.errors import VerificationError

    try:
        return not one.holds
    except VerificationError:
        return True


def _verified(report):
    """The result of a good report; fails with that of any other."""
    from ._engine import history

    told = {key: value for key, value in report.as_dict().items() if key != "files"}
    told["components"] = {
        one.component: {"sha256": one.sha256, "faults": one.faults} for one in report.sections if one.component and one.lines
    }
    told["changed"] = False
    if report.verdict == history.FAILED:
        raise Failure(f"{report.name} does not verify: {'; '.join(report.faults)}", **dict(told, exit_code=3))
    if report.verdict == history.SUSPICIOUS:
        said = f"{report.name} is whole and suspicious: {'; '.join(report.alarms)}"
        raise Failure(f"{said} (if that is as it should be, set acknowledge)", **dict(told, exit_code=3))
    return dict(told, msg=f"{report.name} is whole (depth {report.depth})")


# --- restore


def restore(components=()):
    """The action that restores `components`; without any, those that the parameters name, or all of the set."""

    def action(task):
        from ._engine import restore as engine
        from ._engine.errors import UsageError
        from ._engine.preflight import NotReady

        request = _request(task, components)
        if not (task.params["confirm"] or task.check_mode):
            raise UsageError(
                "a restore overwrites existing data: set confirm to true if that is meant, "
                "or run in check mode to see what would be done"
            )
        told, why = why_restore(task, request)
        if why is None:
            return dict(told, changed=False, msg=f"the live data is equal to {told['id']}: nothing to do")
        if not request.files:
            request.which, request.before = told.get("id") or request.which, request.before if "id" not in told else None
        if task.check_mode:
            plan = engine.plan(task.settings, task.log, request)
            for warning in plan.warnings:
                task.log.warn(warning)
            if plan.problems:
                raise NotReady(plan.problems, "restore")
            said = f"{plan.name} would be restored: {why}"
            return dict(told, changed=True, id=plan.name, plan=plan.lines, msg=said)
        plans = []
        restored = engine.restore(task.settings, task.begin(), request, lambda plan: plans.append(plan) is None)
        return _restored(task, restored, dict(told, plan=plans[0].lines), why)

    return action


def _request(task, components):
    from pathlib import Path

    from ._engine import clock
    from ._engine.components.base import RestoreOptions
    from ._engine.restore import Request

    params = task.params
    files = {components[0]: params["path"]} if components and params["path"] else (params.get("files") or {})
    options = RestoreOptions(
        params.get("postgresql_only_tables") or [],
        params.get("qdrant_only_collections") or [],
        params.get("qdrant_collection_prefix") or "",
        frozenset(params["accept"] or []),
    )
    if params["id"] and params["id"] != "latest":
        clock.id_time(params["id"])
    return Request(
        params["id"] or "",
        clock.parse_moment(params["before"]) if params["before"] else None,
        {name: Path(path) for name, path in files.items() if path},
        [] if files else list(components or params.get("components") or []),
        options,
    )


def why_restore(task, request):
    """(what is known of the backup and of the differences; why to restore it, or None where the live data is equal)."""
    from ._engine import compare

    if task.params["force"]:
        return {}, "force is set"
    compared = compare.compare(task.settings, task.log, request)
    told = {"id": compared.name, "differences": compared.differences, "not_compared": compared.doubts}
    if task.module._diff:
        told["diff"] = {"prepared": "".join(line + "\n" for line in compared.differences + compared.doubts)}
    reasons = compared.differences or compared.doubts
    if not reasons:
        return told, None
    more = f" (and {len(reasons) - 1} more)" if reasons[1:] else ""
    return told, ("" if compared.differences else "it is not proven that the live data is equal: ") + reasons[0] + more


def _restored(task, restored, told, why):
    """The result of a restore; fails where the data is not equal, or the application not well."""
    result = dict(told, changed=True, id=restored.name)
    result.update({key: value for key, value in restored.as_dict().items() if key not in ("restored", "warnings")})
    if not restored.sound:
        found = "; ".join(restored.differences[:10]) or "nothing could be compared"
        raise Failure(f"{restored.name} was restored and differs from the backup: {found}", **dict(result, exit_code=3))
    unwell = restored.unwell(task.settings)
    if unwell:
        said = f"{restored.name} was restored ({restored.proof}), but the application is not well: {'; '.join(unwell)}"
        raise Failure(said, **dict(result, exit_code=1))
    return dict(result, msg=f"{restored.name} was restored: {restored.proof}; why it was: {why}")


# --- sync


def sync(task):
    """The action that sends sets elsewhere, brings one back, or looks what is where."""
    from ._engine.errors import UsageError

    params = task.params
    for option, action in (("id", ("pull",)), ("host", ("pull", "check")), ("read_back", ("check",))):
        if params[option] and params["action"] not in action:
            raise UsageError(f"{option} has no effect with action {params['action']}: leave it out")
    return {"push": _push, "pull": _pull, "check": _check_copies}[params["action"]](task)


def _push(task):
    from ._engine import sync_push as engine

    named = task.params["targets"] or []
    pushed = engine.plan(task.settings, task.log, named) if task.check_mode else engine.push(task.settings, task.begin(), named)
    result = pushed.as_dict()
    if pushed.problems:
        raise Failure("; ".join(pushed.problems), **dict(result, exit_code=1))
    sets = len({one for outcome in pushed.outcomes for one in outcome.sent})
    removed = sum(len(outcome.removed) for outcome in pushed.outcomes)
    would = "would send" if task.check_mode else "sent"
    said = f"{would} {sets} sets to {len(pushed.outcomes)} targets" + (f", removed {removed} there" if removed else "")
    return dict(result, msg=said if pushed.changed else "every set that leaves is at every target: nothing to do")


def _pull(task):
    from ._engine import sync_pull as engine

    params, settings = task.params, task.settings
    named, host, which = params["targets"] or [], params["host"] or "", params["id"]
    found = engine.find(settings, task.log, which, named, host=host)
    if found.here:
        said = f"set {found.id} is in {settings.backup_dir} already: nothing to do"
        return {"changed": False, "id": found.id, "msg": said}
    if task.check_mode:
        said = f"would bring back set {found.id} from {found.where}"
        return {"changed": True, "id": found.id, "where": found.where, "msg": said}
    pulled = engine.pull(settings, task.begin(), found.id, named, host=host)
    return dict(pulled.as_dict(), changed=True, msg=f"brought back set {pulled.id} from {pulled.where}")


def _check_copies(task):
    from ._engine import sync_check as engine

    params = task.params
    checked = engine.check(
        task.settings, task.log, params["targets"] or [], host=params["host"] or "", read_back=params["read_back"]
    )
    result = dict(checked.as_dict(), changed=False)
    if checked.problems:
        raise Failure("; ".join(checked.problems), **dict(result, exit_code=3 if checked.damaged else 1))
    return dict(result, msg=f"{len(checked.sets)} sets are where they shall be")


# --- report


def report(task):
    """The action that tells a host's history. What is wrong with its backups is told, and is no failure of the module."""
    from ._engine import clock
    from ._engine import report as engine

    days, max_age = task.params["days"], clock.parse_age(task.params["max_age"])
    try:
        found = engine.report(task.settings, days, max_age)
    except engine.NoDirectory as error:
        found = engine.unreadable(task.settings, str(error), days, max_age)
    said = "; ".join(found["reasons"]) or f"{len(found['runs'])} runs in {days} days"
    return {"changed": False, "report": found, "msg": f"{found['host']} is {found['state']}: {said}"}
