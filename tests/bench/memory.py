# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Peak memory of a command and everything it starts, sampled every 20 ms from /proc.

What is counted is the proportional set size (PSS, proc_pid_smaps(5)): a page shared by several processes counts once
in their sum. The page cache of files that are read and written is not in it (a cgroup's peak holds it, and would
mostly measure how much the kernel had to spare). A second figure cannot miss a peak between two samples: the sum of
every process's own high-water mark (VmHWM), as if all had peaked at once and shared nothing.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

INTERVAL = 0.02
STORES = ("redis-server",)
"""Programs that are stores themselves: a restore's throwaway Redis holds the whole dataset and is shown apart."""


@dataclass(frozen=True)
class Peak:
    """Bytes. `pss` and `anonymous` are peaks of the whole tree less `stores`, the peak of the throwaway stores in it;
    `bound` is the sum of high-water marks, also without the stores; `samples` says how often it was looked; `parts` is
    what made up the peak of `pss`, by the programs' names."""

    pss: int
    anonymous: int
    bound: int
    stores: int
    samples: int
    parts: dict[str, int]


def measure(argv: Sequence[str], environment: Mapping[str, str]) -> tuple[Peak, subprocess.CompletedProcess[str]]:
    """Run a program to its end and return its peak and what it printed."""
    with subprocess.Popen(
        argv, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        sampler = _Sampler(process.pid)
        sampler.start()
        stdout, stderr = process.communicate()
        peak = sampler.end()
    return peak, subprocess.CompletedProcess(argv, process.returncode, stdout, stderr)


class _Sampler(threading.Thread):
    """Looks at the tree under one process until `end`."""

    def __init__(self, root: int) -> None:
        super().__init__(name="memory sampler", daemon=True)
        self._root = root
        self._done = threading.Event()
        self._pss = self._anonymous = self._stores = self._samples = 0
        self._marks: dict[int, int] = {}
        self._parts: dict[str, int] = {}

    def run(self) -> None:
        while not self._done.wait(INTERVAL):
            self._look()

    def end(self) -> Peak:
        self._done.set()
        self.join()
        return Peak(self._pss, self._anonymous, sum(self._marks.values()), self._stores, self._samples, self._parts)

    def _look(self) -> None:
        anonymous = stores = 0
        parts: dict[str, int] = defaultdict(int)
        for pid, name in tree(self._root).items():
            with contextlib.suppress(OSError):  # it has just ended
                memory = _fields(Path(f"/proc/{pid}/smaps_rollup"))
                if name in STORES:
                    stores += memory["Pss"]
                    continue
                parts[name] += memory["Pss"]
                anonymous += memory["Pss_Anon"] + memory["Pss_Shmem"]
                self._marks[pid] = max(self._marks.get(pid, 0), _fields(Path(f"/proc/{pid}/status"))["VmHWM"])
        if (pss := sum(parts.values())) > self._pss:
            self._pss, self._parts = pss, dict(parts)
        self._anonymous = max(self._anonymous, anonymous)
        self._stores = max(self._stores, stores)
        self._samples += 1


def _fields(path: Path) -> Mapping[str, int]:
    """Lines such as `Pss:  208 kB`, in bytes; what is not there counts as 0."""
    found: dict[str, int] = defaultdict(int)
    for line in path.read_text().splitlines():
        name, __, rest = line.partition(":")
        if rest.endswith(" kB"):
            found[name] = int(rest[:-3]) * 1024
    return found


def tree(root: int) -> dict[int, str]:
    """The living processes under (and with) `root`: pid → name."""
    names: dict[int, str] = {}
    children: dict[int, list[int]] = defaultdict(list)
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            with contextlib.suppress(OSError):
                head, __, rest = (directory / "stat").read_text().rpartition(") ")
                names[int(directory.name)] = head.partition("(")[2]
                children[int(rest.split()[1])].append(int(directory.name))
    found, waiting = {}, [root]
    while waiting:
        pid = waiting.pop()
        if pid in names:
            found[pid] = names[pid]
            waiting += children[pid]
    return found
