# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Child of the bench: the engine's PostgreSQL dump alone, as `create` runs it. `python -m tests.bench.dump_alone FILE`.

Timed from opening the cut (locks, snapshot) to the closed and flushed file, with the counts fingerprint and both
digests; not the start of Python, not the preflight (`create` does it once for all), not the verification. Prints
seconds and bytes as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from agentmem_backup.components.base import COUNTS, Context
from agentmem_backup.components.postgresql import PostgresqlComponent
from agentmem_backup.pipeline import Writer
from agentmem_backup.progress import Reporter
from agentmem_backup.settings import load


def dump(path: Path) -> dict[str, float]:
    """Dump the database that the environment names into `path`."""
    settings = load()
    component = PostgresqlComponent(Context(settings, Reporter(), path.parent, lambda step, **facts: None))
    problems = component.probe().problems
    if problems:
        raise SystemExit("; ".join(problems))
    begun = time.perf_counter()
    cut = component.open_cut(lambda: None, COUNTS)
    try:
        writer = Writer(path, compression=settings.compression, level=settings.compression_level)
        cut.dump(writer)
        digest = writer.close()
    finally:
        cut.close()
    return {"seconds": time.perf_counter() - begun, "bytes": digest.bytes}


if __name__ == "__main__":
    print(json.dumps(dump(Path(sys.argv[1]))))
