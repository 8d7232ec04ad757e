# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Is there anything to do? One question for each module that acts: None, or the sentence that says why."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace

import pytest
from ansible_collections.agentmem.backup.plugins.module_utils import _actions, _info
from ansible_collections.agentmem.backup.plugins.module_utils._engine import clock, compare, history
from ansible_collections.agentmem.backup.plugins.module_utils._engine.components.base import CONTENT, COUNTS, Comparison, Source
from ansible_collections.agentmem.backup.plugins.module_utils._engine.errors import BackupError, UsageError
from ansible_collections.agentmem.backup.plugins.module_utils._engine.manifest import Manifest
from ansible_collections.agentmem.backup.plugins.module_utils._engine.settings import Settings

FILES = {"postgresql": "db_{}.dump.gz", "redis": "redis_{}.rdb", "qdrant": "qdrant_{}.tar.gz", "config": "config_{}.tar.gz"}


def lay(directory, hours, components=("postgresql",), *, verdict="verified", instance="default", **entry):
    """A set that was made `hours` ago, as far as files tell. Returns its ID."""
    set_id = clock.set_id(clock.now() - timedelta(hours=hours))
    entries = {}
    for name in components:
        file = directory / FILES[name].format(set_id)
        file.write_bytes(b"x")
        entries[name] = {"file": file.name, "bytes": 1, **entry}
    data = {"format": 1, "id": set_id, "instance": instance, "type": "full", "partial": None, "components": entries}
    (directory / f"manifest_{set_id}.json").write_bytes(Manifest(data).to_json())
    if verdict:
        history.append(directory, set_id, verdict, "create")
    return set_id


def asked(directory, max_age, components=("postgresql",), **changes):
    """(ID of the newest good set, the answer) of a task with `max_age`."""
    settings = Settings(backup_dir=str(directory), components=list(components))
    for name, value in changes.items():
        section, _dot, rest = name.partition("__")
        setattr(getattr(settings, section) if rest else settings, rest or section, value)
    task = SimpleNamespace(settings=settings, params={"max_age": max_age})
    newest, why = _info.why_create(task, directory)
    return newest.id if newest else None, why


# --- create


def test_without_max_age_a_set_is_always_made(tmp_path):
    lay(tmp_path, 1)
    assert asked(tmp_path, None) == (None, "no max_age is given")


def test_without_any_set_one_is_made(tmp_path):
    assert asked(tmp_path, "24h") == (None, f"there is no verified set of postgresql in {tmp_path}")


def test_a_younger_set_is_enough(tmp_path):
    set_id = lay(tmp_path, 3)
    assert asked(tmp_path, "4h") == (set_id, None)


def test_an_older_set_is_not(tmp_path):
    set_id = lay(tmp_path, 5)
    said = f"the newest verified set of postgresql, {set_id}, is 5 h old, and max_age is 4h"
    assert asked(tmp_path, "4h") == (set_id, said)


@pytest.mark.parametrize("verdict", ["failed", "suspicious", None])
def test_a_set_that_is_not_known_to_be_good_does_not_count(tmp_path, verdict):
    older = lay(tmp_path, 5)
    lay(tmp_path, 1, verdict=verdict)
    assert asked(tmp_path, "4h")[0] == older
    assert asked(tmp_path, "4h")[1] is not None


def test_a_set_must_hold_every_store_that_is_asked_for(tmp_path):
    lay(tmp_path, 1, ["postgresql", "redis"])
    assert asked(tmp_path, "4h", ["postgresql", "qdrant"])[1] == f"there is no verified set of postgresql, qdrant in {tmp_path}"
    assert asked(tmp_path, "4h", ["redis"])[1] is None


def test_a_set_of_the_future_does_not_count(tmp_path):
    lay(tmp_path, -2)
    assert asked(tmp_path, "4h")[0] is None


def test_a_set_of_another_instance_does_not_count(tmp_path):
    lay(tmp_path, 1, instance="other")
    assert asked(tmp_path, "4h")[0] is None
    assert asked(tmp_path, "4h", instance="other")[1] is None


def test_a_set_that_left_something_else_out_does_not_count(tmp_path):
    lay(tmp_path, 1, filters={"exclude": ["public.audit"]})
    assert asked(tmp_path, "4h")[0] is None
    assert asked(tmp_path, "4h", postgresql__exclude_tables=["public.audit"])[1] is None
    assert asked(tmp_path, "4h", postgresql__exclude_tables=["public.other"])[0] is None


def test_a_set_of_another_database_does_not_count(tmp_path):
    lay(tmp_path, 1, database={"name": "one"})
    sources = {"postgresql.database": "module's options"}
    assert asked(tmp_path, "4h", postgresql__database="one", sources=sources)[1] is None
    assert asked(tmp_path, "4h", postgresql__database="two", sources=sources)[0] is None


def test_a_set_of_other_paths_does_not_count(tmp_path):
    lay(tmp_path, 1, ["config"], roots=["/etc/one", "/etc/two"])
    asked_for = [
        ("/etc/one/", ["/etc/two"]),
        ("/etc/one", ["/etc/two", "/etc/one/below"]),
        ("/etc/one", []),
        ("/etc/one", ["/etc/twofold"]),
    ]
    fresh = [
        asked(tmp_path, "4h", ["config"], config__directory=directory, config__extra_paths=paths)[0] is not None
        for directory, paths in asked_for
    ]
    assert fresh == [True, True, False, False]


def test_a_set_whose_manifest_is_damaged_does_not_count(tmp_path):
    set_id = lay(tmp_path, 1)
    (tmp_path / f"manifest_{set_id}.json").write_text("{")
    assert asked(tmp_path, "4h")[0] is None


def test_an_age_that_is_none_is_refused(tmp_path):
    with pytest.raises(UsageError, match="'soon' is not an age"):
        asked(tmp_path, "soon")


@pytest.mark.parametrize(("text", "hours"), [("90m", 1.5), ("26h", 26), ("2d", 48), ("3600", 1), ("1.5h", 1.5), ("7200s", 2)])
def test_ages(text, hours):
    assert clock.parse_age(text) == timedelta(hours=hours)


# --- restore


def why_restore(monkeypatch, comparisons, *, force=False, diff=False):
    compared = compare.Compared("20250103_120000", comparisons)
    monkeypatch.setattr(compare, "compare", lambda settings, log, request: compared)
    module = SimpleNamespace(_diff=diff)
    task = SimpleNamespace(params={"force": force}, settings=None, log=None, module=module)
    return _actions.why_restore(task, None)


def test_equal_data_needs_no_restore(monkeypatch):
    told, why = why_restore(monkeypatch, {"redis": Comparison(compared=7), "config": Comparison(compared=1)})
    assert why is None
    assert told == {"id": "20250103_120000", "differences": [], "not_compared": []}


def test_a_difference_is_a_reason_and_the_others_are_counted(monkeypatch):
    found = {"redis": Comparison(7, ["one key less", "another"]), "config": Comparison(1, ["a file"])}
    told, why = why_restore(monkeypatch, found, diff=True)
    assert why == "redis: one key less (and 2 more)"
    assert told["diff"] == {"prepared": "redis: one key less\nredis: another\nconfig: a file\n"}


def test_what_was_not_compared_is_never_equal(monkeypatch):
    _told, why = why_restore(monkeypatch, {"redis": Comparison(7, [], ["the values"])})
    assert why == "it is not proven that the live data is equal: redis: not compared: the values"


def test_nothing_compared_is_never_equal(monkeypatch):
    _told, why = why_restore(monkeypatch, {"config": Comparison()})
    assert why == "it is not proven that the live data is equal: config: nothing was compared"


def test_a_backup_of_nothing_is_never_equal(monkeypatch):
    _told, why = why_restore(monkeypatch, {})
    assert why == "it is not proven that the live data is equal: 20250103_120000 holds nothing that could be compared"


def test_force_asks_nothing(monkeypatch):
    assert why_restore(monkeypatch, {"redis": Comparison(compared=7)}, force=True) == ({}, "force is set")


class Store:
    """A component whose live store compares as told."""

    def __init__(self, outcome):
        self.outcome = outcome
        self.closed = False

    def restoration(self, source, options):
        return self

    def compare(self):
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def close(self):
        self.closed = True


def test_counts_alone_prove_nothing_and_nothing_is_asked(tmp_path):
    store = Store(AssertionError("it must not be asked"))
    entry = {"fingerprint": {"level": COUNTS}}
    found = compare._compare(store, Source(tmp_path, "none", entry), None)
    assert found.not_compared == ["its content: the backup has only counts of it (create it with fingerprint content)"]


def test_a_file_without_a_manifest_proves_nothing(tmp_path):
    found = compare._compare(Store(AssertionError()), Source(tmp_path, "none", None), None)
    assert (found.compared, len(found.not_compared)) == (0, 1)


def test_a_store_that_does_not_answer_is_a_doubt_and_is_let_go(tmp_path):
    store = Store(BackupError("it is down"))
    found = compare._compare(store, Source(tmp_path, "none", {"fingerprint": {"level": CONTENT}}), None)
    assert found.not_compared == ["it is down"]
    assert store.closed


# --- and when


def test_the_next_set_waits_for_the_next_second(tmp_path, monkeypatch):
    """Two tasks of a play may begin within one second, which is a set's ID."""
    set_id, begun = lay(tmp_path, 0), clock.now()
    moments = iter([begun, begun, begun + timedelta(seconds=1)])
    monkeypatch.setattr(clock, "set_id", lambda moment: set_id if moment == begun else "20991231_235959")
    monkeypatch.setattr(clock, "now", lambda: next(moments))
    _actions._await_next_id(tmp_path)
    assert next(moments, None) is None
