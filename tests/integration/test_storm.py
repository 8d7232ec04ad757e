# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backups and restores while an application writes to all four stores, and changes definitions, without rest."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.support import command
from tests.support.servers import Stores
from tests.support.storm import WORKERS, Storm, faults

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
CONTENT = ("--fingerprint", "content")


def test_every_set_of_a_storm_is_of_one_moment_and_comes_back(stores: Stores) -> None:
    with Storm(stores, seed=1) as storm:
        made = [command.create(stores, *CONTENT) for __ in range(5)]
    assert all(storm.done[name] for name in WORKERS), storm.done
    assert faults(stores) == []
    for one in made:
        assert "PASSED" in command.good(stores, "verify", one["id"]).stdout
        assert command.restore(stores, one["id"])["equal"]
        assert faults(stores) == []


def test_a_restore_in_a_storm_that_nobody_keeps_out_tells_what_differs(stores: Stores) -> None:
    """What is written meanwhile lies in the new data or is lost with the old, and is never half of each."""
    with Storm(stores, seed=2):
        made = command.create(stores, *CONTENT)
        for __ in range(4):
            done = command.run(stores, "restore", made["id"], "--yes", *command.QUIET)
            assert done.returncode in (0, 3), done.stderr
            assert (done.returncode == 3) == ("the live data differs from what was backed up: " in done.stderr), done.stderr
    assert faults(stores) == []
    assert command.restore(stores, made["id"])["equal"]
    assert faults(stores) == []


def test_a_restore_in_a_storm_that_is_kept_out_is_equal(stores: Stores, tmp_path: Path) -> None:
    with Storm(stores, seed=3) as storm:
        gate = shlex.quote(str(storm.gate))
        fence, release, hooks = (tmp_path / name for name in ("fence", "release", "hooks.yml"))
        resting = f"[ $(ls {gate} | grep -c ^resting-) = {len(WORKERS)} ]"
        fence.write_text(f"#!/bin/sh\ntouch {gate}/closed\nuntil {resting}; do sleep 0.05; done\n")
        release.write_text(f"#!/bin/sh\nrm {gate}/closed\n")
        for one in (fence, release):
            one.chmod(0o755)
        hooks.write_text(f"hooks:\n  fence: [{fence}]\n  release: [{release}]\n")
        made = command.create(stores, *CONTENT)
        for __ in range(4):
            before = dict(storm.done)
            assert command.restore(stores, made["id"], "--config", str(hooks))["equal"]
            assert before != storm.done
    assert faults(stores) == []
