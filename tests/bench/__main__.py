# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Command line of script/bench."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

from tests.bench import fleet, playing, report, rows
from tests.bench.memory import Peak
from tests.bench.rows import MemoryResult
from tests.bench.stand import BenchError, Stand
from tests.support.data import Scale
from tests.support.servers import CHECKOUT

PAGE = CHECKOUT / "docs" / "benchmarks.md"
FULL = {"PostgreSQL": 1000.0, "Redis": 100.0, "vectors": 600.0}
QUICK = {"PostgreSQL": 100.0, "Redis": 10.0, "vectors": 60.0}
QUIET_LOAD = 0.5
ROWS = {**rows.ROWS, **playing.ROWS, **fleet.ROWS}
NAMES = (*ROWS, "memory")


def tell(text: str) -> None:
    """A line about where the run is."""
    print(text, flush=True)


def scale(sizes: dict[str, float], postgres: float = 1.0) -> Scale:
    """The data's scale; `postgres` makes that store alone smaller or larger."""
    return Scale.bench(sizes["PostgreSQL"] * postgres, sizes["Redis"], sizes["vectors"])


def measure_all(sizes: dict[str, float], names: list[str], save: Callable[[report.Findings], None]) -> report.Findings:
    """Measure the named rows; `save` is called after each. A row that fails is told and listed as missing; the others go on."""
    load = os.getloadavg()[0]
    tell(f"Filling stores: {', '.join(f'{size:g} MB {name}' for name, size in sizes.items())}")
    with Stand(scale(sizes), tell) as stand:
        found = report.Findings(sizes, report.facts(stand))
        found.facts["load before the bench"] = f"{load:.1f}" + (
            " (disturbed: other work was running)" if load > QUIET_LOAD else ""
        )
        for name in names:
            if name != "memory":
                tell(f"  {name}")
                try:
                    found.results += ROWS[name](stand)
                except (BenchError, AssertionError) as error:
                    found.missing.append(f"{name}: {error}")
                    tell(f"    ✗ {error}")
                save(found)
        if "memory" in names:
            measure_memory(stand, sizes, found)
    return found


def measure_memory(stand: Stand, sizes: dict[str, float], found: report.Findings) -> None:
    """Peaks on this stand and on others whose PostgreSQL is smaller and larger."""
    tell("  memory")
    peaks: dict[float, dict[str, Peak]] = {}
    try:
        for share in sorted(rows.MEMORY_SHARES, key=lambda share: share != 1):  # this stand first, while it is as it was left
            with contextlib.nullcontext(stand) if share == 1 else Stand(scale(sizes, share), tell) as one:
                peaks[share] = rows.peaks(one)
    except BenchError as error:
        found.missing.append(f"memory: {error}")
        tell(f"    ✗ {error}")
        return
    found.memory += [MemoryResult(verb, [peaks[share][verb] for share in rows.MEMORY_SHARES]) for verb in rows.VERBS]


def main() -> int:
    """Run the bench; 0 when every row could be measured, whatever came out."""
    parser = argparse.ArgumentParser(prog="script/bench", description="Measure ours and the peers and write docs/benchmarks.md.")
    parser.add_argument("--quick", action="store_true", help="a tenth of the data; writes nothing unless --write is given")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md also after --quick")
    parser.add_argument(
        "--only", metavar="ROW", action="append", choices=NAMES, help=f"one row (writes nothing): {', '.join(NAMES)}"
    )
    parser.add_argument("--fleet", action="store_true", help=f"only the rows about many hosts: {', '.join(fleet.ROWS)}")
    options = parser.parse_args()

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, stop)
    begun = time.monotonic()
    names = options.only or list(fleet.ROWS if options.fleet else NAMES)
    writing = options.write or not (options.quick or options.only or options.fleet)

    def save(so_far: report.Findings) -> None:
        if writing:
            PAGE.write_text(report.page(so_far), encoding="utf-8")

    # What Ansible adds does not depend on how much data there is.
    little = options.quick or {*names} <= {*playing.ROWS, *fleet.ROWS}
    found = measure_all(QUICK if little else FULL, names, save)
    tell("\n" + report.page(found))
    save(found)
    if writing:
        tell(f"written to {Path(PAGE).relative_to(CHECKOUT)}")
    tell(f"({time.monotonic() - begun:.0f} s)")
    return 1 if found.missing else 0


if __name__ == "__main__":
    sys.exit(main())
