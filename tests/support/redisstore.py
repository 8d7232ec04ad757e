# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Redis component on a server of a test's own: `serve` starts servers, `bench` makes a component that works on one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from agentmem_backup.components.base import COUNTS, Context, RestoreOptions, Source
from agentmem_backup.components.redis import RedisComponent, RedisRestoration
from agentmem_backup.pipeline import Writer
from agentmem_backup.progress import Collecting
from agentmem_backup.settings import Settings

from tests.support.restoring import carry_out
from tests.support.servers import Redis, throwaway_directory

AT_ONCE = ("repl-diskless-sync-delay 0",)  # a replica need not wait for others


def left_in(directory: Path) -> list[Path]:
    """What lies in a directory."""
    return list(directory.iterdir())


@dataclass
class Bench:
    """A component that works on a server, with a scratch directory of its own."""

    directory: Path
    server: Redis
    component: RedisComponent
    settings: Settings
    told: Collecting
    journal: list[dict[str, Any]] = field(default_factory=list)
    dumps: int = 0

    def dump(self, level: str = COUNTS, ready: Callable[[], None] = lambda: None) -> Source:
        """A backup of the server, with its manifest entry."""
        self.dumps += 1
        path = self.directory / f"redis_{id(self)}_{self.dumps}.rdb"
        cut = self.component.open_cut(ready, level)
        out = Writer(path)
        try:
            cut.dump(out)
            out.close()
            return Source(path, "none", cut.entry())
        finally:
            cut.close()
            out.abandon()

    def restore(self, source: Source, options: RestoreOptions | None = None) -> RedisRestoration:
        """A whole restore; check and compare must both say equal."""
        options = options or RestoreOptions()
        plan = self.component.plan_restore(source, options)
        assert plan.problems == []
        restoration = self.component.restoration(source, options)
        assert isinstance(restoration, RedisRestoration)
        carry_out(restoration)
        assert left_in(self.component.context.workdir) == []
        return restoration

    def faults(self, source: Source) -> list[str]:
        return self.component.examine(source, source.pieces()).faults


@pytest.fixture
def serve() -> Iterator[Callable[..., Redis]]:
    """Starts servers of the test's own."""
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(throwaway_directory())
        count = 0

        def start(**options: Any) -> Redis:
            nonlocal count
            count += 1
            options.setdefault("extra", AT_ONCE)
            return stack.enter_context(Redis(directory / f"server{count}", **options))

        yield start


@pytest.fixture
def bench(tmp_path: Path) -> Callable[..., Bench]:
    """Makes a bench for a server; keywords are settings of section redis."""

    def make(server: Redis, **redis_settings: Any) -> Bench:
        settings = Settings(backup_dir=str(tmp_path / "backups"))
        values = {"host": server.host, "port": server.port, "password": server.password, **redis_settings}
        for name, value in values.items():
            assert hasattr(settings.redis, name)
            setattr(settings.redis, name, value)
        told = Collecting()
        workdir = tmp_path / "work"
        workdir.mkdir(mode=0o700, exist_ok=True)
        journal: list[dict[str, Any]] = []
        context = Context(settings, told, workdir, lambda step, **facts: journal.append({"step": step, **facts}))
        return Bench(tmp_path, server, RedisComponent(context), settings, told, journal)

    return make
