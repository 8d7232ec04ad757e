# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the bench found, as a page for docs/benchmarks.md. No path and no name of the machine stands in it."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench import peers, rows
from tests.bench.rows import MemoryResult, Result
from tests.bench.stand import TIMES, Sample, Stand


@dataclass
class Findings:
    """Everything a run measured, and on what."""

    sizes: dict[str, float]
    facts: dict[str, str]
    results: list[Result] = field(default_factory=list)
    memory: list[MemoryResult] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """A sentence for each row that could not be measured."""


def facts(stand: Stand) -> dict[str, str]:
    """The machine and the servers."""
    cpu = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    stores = stand.stores
    with stores.postgres.connect() as connection:
        postgres = connection.info.server_version
    with stores.redis.client() as client:
        redis = client.info("server")["redis_version"]
    kind = "a real server" if stores.qdrant.kind != "stand-in" else "the stand-in of the tests, not a real server"
    return {
        "processor": f"{os.cpu_count()} cores, {cpu[1] if cpu else platform.machine()}",
        "memory": f"{int(memory[1]) / 1e6:.0f} GB" if memory else "unknown",
        "PostgreSQL": f"{postgres // 10000}.{postgres % 10000} (fsync off, as in all tests; otherwise as initdb leaves it)",
        "Redis": str(redis),
        "Qdrant": f"{stores.qdrant.version()}, {kind}",
        "Python": platform.python_version(),
        "igzip": _igzip_version(),
    }


def _igzip_version() -> str:
    if peers.IGZIP != "igzip":
        return "python -m isal.igzip (Debian's package isal is not installed)"
    done = subprocess.run(["igzip", "--version"], capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).strip() or "igzip"


def page(found: Findings) -> str:
    """The page in Markdown."""
    sizes = ", ".join(f"{size:g} MB {name}" for name, size in found.sizes.items())
    parts = [
        "# Benchmarks",
        "Written by `script/bench`; do not edit. Ratios matter, single times do not: ours and the peer took turns on the same "
        f"machine and the same seeded data ({sizes}), {TIMES} times each. Shown are the medians, and in brackets the shortest "
        "and the longest run.",
        "\n".join(f"- {name}: {value}" for name, value in found.facts.items()),
        "## Time and size",
        _times(found.results),
        *(["Not measured: " + "; ".join(found.missing)] if found.missing else []),
        *(_memory_part(found) if found.memory else []),
        "## What was run",
        "Ours: `agentmem-backup create`, `create --fingerprint content`, `restore latest --yes`, `verify latest`, `--version`, "
        "`list`, as programs of their own, the start of Python included. The dump alone is the engine's in a child process, "
        "timed from opening the cut to the closed and flushed file. A restore over live data saves a copy of every store first, "
        "which the guide's way does not: those rows show what that costs and have no must of their own; by alias a collection "
        "needs none, for it stays, and the new one is made beside it. "
        "Modules and playbooks are runs of `ansible-playbook` from start to end, on this machine over the connection `local`, "
        "with one task each; the backups of many hosts at once are those of the playbook, each host with a directory of its own. "
        "A fleet is installed on hosts with a real systemd (systemd-nspawn) by ssh with Ansible's defaults, the packages there "
        "already and the libraries from a wheelhouse. "
        "The page of a fleet is made by a process of its own from what the hosts have told. The peers, literally:",
        _literally(),
    ]
    return "\n\n".join(parts) + "\n"


def _times(results: list[Result]) -> str:
    lines = [
        "| work | ours, s | the peer, s | peer | ratio | ours, bytes | the peer, bytes | must | met |",
        "| --- | ---: | ---: | --- | ---: | ---: | ---: | --- | --- |",
    ]
    for one in results:
        cells = [
            one.work,
            _seconds(one.ours),
            _seconds(one.peer),
            one.peer_name.replace("|", "\\|"),
            f"{one.ratio:.2f}" if one.ratio else "",
            _bytes(one.ours),
            _bytes(one.peer),
            one.must,
            ("yes" if one.met else "**NO**") if one.must else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _seconds(sample: Sample | None) -> str:
    if sample is None:
        return ""
    spread = f" ({sample.spread[0]:.2f}–{sample.spread[1]:.2f})" if sample.spread else ""
    return f"{sample.seconds:.2f}{spread}"


def _bytes(sample: Sample | None) -> str:
    return f"{sample.bytes:,}" if sample and sample.bytes else ""


def _memory_part(found: Findings) -> list[str]:
    sizes = [f"{found.sizes['PostgreSQL'] * share:g}" for share in rows.MEMORY_SHARES]
    lines = [
        f"| work | {' | '.join(f'PSS at {size} MB' for size in sizes)} | the last to the one before | anonymous | sum of VmHWM "
        "| throwaway Redis | must | met |",
        f"| --- | {'---: | ' * len(sizes)}---: | ---: | ---: | ---: | --- | --- |",
    ]
    must = f"PSS ≤ {rows.MEMORY_MOST / 1e6:g} MB, with twice the data ≤ {rows.MEMORY_FLAT:g} ×"
    for one in found.memory:
        cells = [
            one.work,
            *(_megabytes(peak.pss) for peak in one.peaks),
            f"{one.flat:.2f}",
            *(", ".join(_megabytes(getattr(peak, name)) for peak in one.peaks) for name in ("anonymous", "bound", "stores")),
            must,
            "yes" if one.met else "**NO**",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    explained = (
        "Peak of the command and all its children, in MB, looked at every 20 ms: the sum of their proportional set sizes (PSS), "
        "by which it is judged, and of that the anonymous part. The sum of every process's own high-water mark (VmHWM) is an "
        "upper bound that nothing between two looks can hide from; shared pages count several times in it. Page cache is in none "
        "of them. The throwaway Redis of a restore holds the dataset and counts as a store. "
        f"Only the size of PostgreSQL differs: {', '.join(sizes)} MB. With the least it is done before the other stores begin; "
        "with more they are all dumped at once, and pg_dump, which takes 7 MB, and the buffers behind it are still there: that "
        "is the first difference."
    )
    return ["## Memory", explained, "\n".join(lines)]


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f}"


def _literally() -> str:
    restoring = [
        peers.GUIDE_RESTORE_DB.strip(),
        "# Redis is stopped",
        peers.GUIDE_RESTORE_REDIS.strip(),
        "# Redis is started and answers; Qdrant is stopped",
        peers.GUIDE_RESTORE_QDRANT.strip(),
        "# Qdrant is started and answers",
        peers.GUIDE_RESTORE_CONFIG.strip(),
    ]
    parts = {
        "the guide's backup": peers.GUIDE_CREATE.strip(),
        "the guide's restore": "\n".join(restoring),
        "PostgreSQL dump alone": "\n".join(peers.DUMPS.values()),
        "verify": peers.VERIFY.strip(),
    }
    script = "\n\n".join(f"# {title}\n{text}" for title, text in parts.items())
    return f"```bash\n{script.replace(sys.executable, 'python')}\n```"
