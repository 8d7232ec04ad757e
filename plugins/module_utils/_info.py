# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is told of sets without a look at any store: info, and whether there is a backup that is young enough.

Nothing here reaches the stores' part of the engine, so backup_set_info travels to a host without it. The action plugin
of the modules that make sets asks it before anything larger travels. Parses on Python 3.8; see _module.py.
"""

from __future__ import annotations


def info(task):
    """The action that tells which sets there are, and one in full. What is absent is no failure."""
    from pathlib import Path

    from ._engine import backup_set, clock, freshness, list_sets

    wanted = task.params["components"] or []
    result = {
        "changed": False,
        "exists": Path(task.settings.backup_dir).is_dir(),
        "sets": [],
        "newest_verified": None,
        "set": None,
    }
    result["directory"] = task.settings.backup_dir
    if task.params["max_age"] is not None:
        result.update(fresh=False)
    if not result["exists"]:
        return dict(result, msg=f"there is no directory {task.settings.backup_dir}")
    directory = backup_set.directory(task.settings.backup_dir, write=False)
    if task.params["max_age"] is not None:
        return dict(result, **_young_enough(task, directory, wanted))
    rows = [row for row in list_sets.list_sets(task.settings) if {*wanted} <= {*row.components}]
    result["sets"] = [dict(row.as_dict(), time=clock.iso(clock.id_time(row.id))) for row in rows]
    newest = freshness.newest_good(directory, wanted)
    result["newest_verified"] = newest.id if newest else None
    which = task.params["id"]
    if which:
        if which != "latest":
            clock.id_time(which)
        ids = [row.id for row in rows]
        which = ids[-1] if which == "latest" and ids else which
        if which in ids:
            result["set"] = described(backup_set.find(directory, which), task.settings.backup_dir)
    return dict(result, msg=f"{len(rows)} sets in {task.settings.backup_dir}")


def _young_enough(task, directory, wanted):
    """What a task has to know that would make such a set only where there is none. The sets are not listed: they may be many."""
    task.settings.components = wanted or task.settings.components
    newest, why = why_create(task, directory)
    told = {"newest_verified": newest.id if newest else None}
    if why is not None:
        return dict(told, msg=why)
    return dict(told, fresh=True, set=described(newest, task.settings.backup_dir), msg=fresh(task, newest))


def why_create(task, directory):
    """(the newest good set that these settings would make, or None; why to make one, or None)."""
    from ._engine import clock, freshness

    wanted, max_age = task.settings.components, task.params["max_age"]
    if max_age is None:
        return None, "no max_age is given"
    longest = clock.parse_age(max_age)
    newest = freshness.newest_good(directory, wanted, task.settings)
    if newest is None:
        return None, f"there is no verified set of {', '.join(wanted)} in {directory}"
    made = clock.id_time(newest.id)
    if clock.now() - made <= longest:
        return newest, None
    age = clock.age(made)
    return newest, f"the newest verified set of {', '.join(wanted)}, {newest.id}, is {age} old, and max_age is {max_age}"


def fresh(task, newest):
    """The sentence that says why nothing is to be done."""
    from ._engine import clock

    age = clock.age(clock.id_time(newest.id))
    max_age = task.params["max_age"]
    return f"the newest verified set, {newest.id}, is {age} old, and max_age is {max_age}: nothing to do"


def described(one, directory):
    """What a result says of a set: from its manifest, or of a legacy or damaged one from what lies there."""
    from ._engine import history
    from ._engine.errors import VerificationError

    verdict = history.newest(one.directory).get(one.id) or {}
    told = {"id": one.id, "directory": directory, "verdict": verdict.get("verdict", "never verified")}
    told["alarms"] = list(verdict.get("alarms") or [])
    try:
        made = one.manifest
    except VerificationError as error:
        made, told["fault"] = None, str(error)
    if made is None:
        files = {name: {"file": str(path), "bytes": path.stat().st_size} for name, path in one.files.items()}
        kind = "damaged" if "fault" in told else "legacy"
        return dict(told, type=kind, bytes=sum(file["bytes"] for file in files.values()), components=files)
    return dict(
        told,
        type=made.data["type"],
        bytes=made.size,
        time=made.data["started"],  # `started` is a word of async_status, which would wait for `finished` for ever
        skew_s=made.data["skew_s"],
        partial=made.data["partial"],
        components={name: _component(one, entry) for name, entry in made.components.items()},
    )


def _component(one, entry):
    plain = ("bytes", "raw_bytes", "sha256", "compression", "cut", "method", "duration_s")
    return dict(
        {key: entry[key] for key in plain},
        file=str(one.directory / entry["file"]),
        server=f"{entry['server']['name']} {entry['server']['version']}",
        tool=f"{entry['tool']['name']} {entry['tool']['version']}",
        fingerprint=_amounts(entry["fingerprint"]),
        warnings=list(entry["warnings"]),
    )


def _amounts(fingerprint):
    """A fingerprint's level and totals: its digests, one for each table or key span, stay in the manifest."""
    plain = ("level", "files", "directories", "links", "bytes", "functions")
    told = {key: fingerprint[key] for key in plain if key in fingerprint}
    tables, databases = fingerprint.get("tables"), fingerprint.get("databases")
    collections = fingerprint.get("collections")
    if isinstance(tables, dict):
        told.update(tables=len(tables), rows=sum(one["rows"] or 0 for one in tables.values()))
    if isinstance(databases, dict):
        told.update(databases=len(databases), keys=sum(one["keys"] for one in databases.values()))
    if isinstance(collections, dict):
        told.update(collections=len(collections), points=sum(one["count_after"] for one in collections.values()))
    return told
