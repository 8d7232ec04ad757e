# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole promise in one run: four real stores backed up, verified, destroyed, brought back and proven equal.

Everything happens in throwaway servers in a temporary directory; interrupted, it leaves nothing behind. The judge is
`compare`, which shares no code with the engine, and at the end the judge is put to the test as well.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

from tests.support import compare, data
from tests.support.servers import Stores

COMMAND = Path(sys.executable).parent / "agentmem-backup"
FLIPS = (compare.flip_one_column, compare.flip_one_expiry, compare.flip_one_payload, compare.flip_one_mode)
STORES = {"postgresql": "PostgreSQL", "redis": "Redis", "qdrant": "Qdrant", "config": "configuration"}


def tell(text: str) -> None:
    """A line of the demo's own."""
    print(f"\n▶ {text}", flush=True)


def agentmem_backup(stores: Stores, *arguments: str) -> None:
    """Run the command against the throwaway stores, its output shown; a failure ends the demo."""
    print(f"  $ agentmem-backup {' '.join(arguments)}", flush=True)
    # The demo has no application, so there is no health address to ask after the restore.
    environment = {**os.environ, **stores.environment()}
    done = subprocess.run([COMMAND, *arguments, "--set", "health_url="], env=environment, check=False)
    if done.returncode != 0:
        sys.exit(f"demo: agentmem-backup {arguments[0]} ended with exit code {done.returncode}")


def seconds(stores: Stores) -> dict[str, tuple[float, float]]:
    """Component → seconds of its dump (from the manifest) and of its restore (from the audit log)."""
    manifest = json.loads(next(stores.backup_dir.glob("manifest_*.json")).read_text())
    audit = [json.loads(line) for line in (stores.backup_dir / ".history" / "audit.jsonl").read_text().splitlines()]
    restored = next(line for line in reversed(audit) if line["verb"] == "restore")
    return {name: (manifest["components"][name]["duration_s"], restored["seconds"][name]) for name in STORES}


def sizes(stores: Stores) -> dict[str, int]:
    """Component → bytes of its file in the set."""
    manifest = json.loads(next(stores.backup_dir.glob("manifest_*.json")).read_text())
    return {name: manifest["components"][name]["bytes"] for name in STORES}


def prove_the_judge(stores: Stores, before: compare.Capture) -> bool:
    """Change one thing in each store; the comparison must say no each time."""
    caught = True
    seen: set[str] = set()
    for flip in FLIPS:
        changed = flip(stores)
        found = [text for text in compare.differences(before, compare.capture(stores)) if text not in seen]
        seen.update(found)
        print(f"  {changed}\n    → {'NOT EQUAL: ' + found[0] if found else 'still called equal!'}")
        caught = caught and bool(found)
    return caught


def run(scale: data.Scale) -> int:
    """The demo; returns its exit code."""
    begun = time.monotonic()
    tell("Starting throwaway PostgreSQL, Redis and Qdrant")
    with Stores() as stores:
        print(f"  Qdrant is a {'real server' if stores.qdrant.kind != 'stand-in' else 'stand-in'} ({stores.qdrant.kind})")
        tell("Filling them with an AgentMem's data")
        data.fill(stores, scale=scale, progress=lambda text: print(f"  {text}", flush=True))
        before = compare.capture(stores)

        tell("Backing up")
        agentmem_backup(stores, "create", "--fingerprint", "content")
        tell("Verifying")
        agentmem_backup(stores, "verify", "latest")
        tell("Destroying all four stores")
        stores.destroy()
        lost = compare.differences(before, compare.capture(stores))
        print(f"  the comparison now finds {len(lost)} differences, such as: {lost[0]}")
        tell("Restoring")
        agentmem_backup(stores, "restore", "latest", "--yes")

        tell("Comparing with what there was, by code that shares nothing with the engine")
        differences = compare.differences(before, compare.capture(stores))
        for text in differences:
            print(f"  ✗ {text}")
        print("  everything is equal" if not differences else f"  {len(differences)} differences")
        tell("Is the comparison itself awake? One column, one expiry, one payload, one file mode are changed")
        awake = prove_the_judge(stores, before)

        times, bytes_of = seconds(stores), sizes(stores)
        print(f"\n{'store':<14} {'size':>9} {'dump s':>8} {'restore s':>10}  equal")
        for name, label in STORES.items():
            equal = not any(name in text.split(":")[0].lower() for text in differences)
            dump, restore = times[name]
            print(f"{label:<14} {bytes_of[name] / 1e6:>6.1f} MB {dump:>8.1f} {restore:>10.1f}  {'yes' if equal else 'NO'}")
    good = not differences and awake
    print(f"\n{'✓ Everything came back.' if good else '✗ The demo failed.'} ({time.monotonic() - begun:.0f} s)")
    return 0 if good else 1


def main() -> int:
    """Command line of the demo."""
    parser = argparse.ArgumentParser(prog="script/demo", description=__doc__)
    parser.add_argument("--small", action="store_true", help="a few thousand rows instead of about 50 MB")
    options = parser.parse_args()

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, stop)
    return run(data.Scale.TEST if options.small else data.Scale.DEMO)


if __name__ == "__main__":
    sys.exit(main())
