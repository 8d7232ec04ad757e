# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One thread for each component, for the length of a run.

Components work side by side; each keeps to its own thread, because the kernel ends a child program with the thread
that started it. When one fails, the programs of the others are stopped, and the first real error is what is raised.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterable
from typing import TypeVar

from . import process
from .errors import BackupError, Cancelled, one_line

Result = TypeVar("Result")


class Crew:
    """Threads named after components. Use it as a context manager."""

    def __init__(self, names: Iterable[str]):
        self._threads = {name: concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix=name) for name in names}

    def each(
        self, work: Callable[[str], Result], on_failure: Callable[[], None] = lambda: None, *, names: Iterable[str] | None = None
    ) -> dict[str, Result]:
        """Run `work(name)` for every component (or for `names`) at the same time and return what each gave.

        The first failure calls `on_failure`, stops what the others run, and is raised when all have ended.
        """
        futures: dict[concurrent.futures.Future[Result], str] = {}
        failures: list[tuple[str, BaseException]] = []
        try:
            # Inside the try: a signal may come between two of them, and those that wait for the others must be let go.
            for name in names or self._threads:
                futures[self._threads[name].submit(work, name)] = name
            for future in concurrent.futures.as_completed(futures):
                error = future.exception()
                if error is not None:
                    failures.append((futures[future], error))
                    on_failure()
                    process.stop_all()
        except BaseException:  # the run itself was asked to stop
            on_failure()
            process.stop_all()
            concurrent.futures.wait(futures)
            raise
        if failures:
            process.resume()
            raise _first_real(failures)
        return {name: future.result() for future, name in futures.items()}

    def one(self, name: str, work: Callable[[], Result]) -> Result:
        """Run `work` in the thread of one component and return what it gave."""
        return self._threads[name].submit(work).result()

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *__: object) -> None:
        for thread in self._threads.values():
            thread.shutdown(wait=True)


def _first_real(failures: list[tuple[str, BaseException]]) -> BaseException:
    """The failure that made the others stop; those were only cancelled."""
    name, error = next(((name, one) for name, one in failures if not isinstance(one, Cancelled)), failures[0])
    if isinstance(error, BackupError) and not str(error).startswith(f"{name}: "):
        error.args = (f"{name}: {error}",)
    elif not isinstance(error, BackupError) and isinstance(error, Exception):
        named = BackupError(f"{name}: unexpected {type(error).__name__}: {one_line(error)} (please report this)")
        named.__cause__ = error
        return named
    return error
