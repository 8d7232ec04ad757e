# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which stores prepare side by side, and which take turns."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from agentmem_backup import process
from agentmem_backup.errors import Cancelled
from agentmem_backup.restore import _Turns


def test_those_that_take_turns_follow_one_another_and_others_do_not_wait() -> None:
    turns, order, go_on = _Turns(["qdrant", "redis"]), list[str](), threading.Event()

    def work(name: str) -> None:
        with turns.take(name):
            if name == "qdrant":
                assert go_on.wait(20)
            order.append(name)

    with ThreadPoolExecutor(3) as pool:
        later = [pool.submit(work, name) for name in ("redis", "qdrant")]
        pool.submit(work, "postgresql").result(20)
        assert order == ["postgresql"]
        go_on.set()
        for one in later:
            one.result(20)
    assert order == ["postgresql", "qdrant", "redis"]


def test_whoever_fails_lets_the_next_one_have_its_turn() -> None:
    turns = _Turns(["qdrant", "redis"])
    with pytest.raises(ZeroDivisionError), turns.take("qdrant"):
        raise ZeroDivisionError
    with turns.take("redis"):
        pass


def test_a_run_that_is_stopped_waits_for_nobody() -> None:
    turns = _Turns(["qdrant", "redis"])
    process.stop_all()
    try:
        with pytest.raises(Cancelled), turns.take("redis"):
            pytest.fail("it was not its turn")
    finally:
        process.resume()
