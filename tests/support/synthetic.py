# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts' reports that no host has made: a fleet of any size with a history, the same for the same seed."""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from typing import Any

from agentmem_backup import clock, fleet, report

SIZES = {"postgresql": 900e6, "redis": 60e6, "qdrant": 2.4e9, "config": 60e3}


HOSTILE = (
    "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> 'single' {{ 7*7 }} & שלום \u202eevil"
)


def host(name: str, seed: int, state: str = report.GREEN, days: int = report.DAYS) -> dict[str, Any]:
    """One host with a run each night, some of which failed; `state` is how its last night went."""
    chance, at = random.Random(seed), clock.now()
    scale, growth = chance.uniform(0.05, 1.5), chance.uniform(-0.002, 0.01)
    last = at.replace(hour=0, minute=chance.randrange(60), second=chance.randrange(60), microsecond=0)
    runs = [_run(chance, last - timedelta(days=ago), scale * (1 + growth) ** (days - ago)) for ago in range(days - 1, -1, -1)]
    reasons = []
    if state == report.STALE:
        del runs[-4:]
        reasons = [f"the newest verified set, {runs[-1]['id']}, is 4 d old"]
    if state == report.FAILED:
        runs[-1] = _bad(last, "Redis at localhost:6379 refuses the password: check REDIS_PASSWORD")
        reasons = [f"the run of {clock.iso(last)[:16]} UTC failed: {runs[-1]['error']}"]
    if state == report.SHRINKING:
        alarm = "postgresql shrank by 62 % since db_20250103_120000.dump.gz: 900M then, 342M now"
        runs[-1].update(result="suspicious", alarms=[alarm])
        runs[-1]["stores"]["postgresql"] = int(runs[-1]["stores"]["postgresql"] * 0.38)
        reasons = [f"set {runs[-1]['id']} is suspicious: {alarm}"]
    good = [run for run in runs if run["result"] == "verified"][-1]
    return {
        "format": report.FORMAT,
        "generated": clock.iso(at),
        "version": "0.1.0",
        "host": name,
        "instance": "default",
        "directory": "/backups/agentmem",
        "days": days,
        "max_age_s": 93600,
        "state": state,
        "reasons": reasons,
        "newest_verified": {
            "id": good["id"],
            "time": good["time"],
            "age_s": int((at - clock.from_iso(good["time"])).total_seconds()),
            "bytes": good["bytes"],
        },
        "next_expected": clock.iso(last + timedelta(days=1)),
        "sets": 23,
        "bytes": sum(run["bytes"] for run in runs[-23:]),
        "disk": {"free": int(40e9), "total": int(200e9)},
        "runs": runs,
        "events": [],
    }


def _run(chance: random.Random, moment: datetime, scale: float) -> dict[str, Any]:
    if chance.random() < 0.01:
        return _bad(moment, "there is not enough space in /backups/agentmem: 4.1G needed, 1.2G free")
    stores = {name: int(size * scale * chance.uniform(0.98, 1.02)) for name, size in SIZES.items()}
    return {
        "id": clock.set_id(moment),
        "time": clock.iso(moment),
        "type": "full",
        "result": "verified",
        "bytes": sum(stores.values()),
        "stores": stores,
        "duration_s": round(chance.uniform(20, 90), 3),
        "present": True,
        "alarms": [],
        "error": "",
    }


def _bad(moment: datetime, error: str) -> dict[str, Any]:
    nothing = {"type": "?", "result": report.FAILED, "bytes": 0, "stores": {}, "duration_s": None, "present": False}
    return {"id": clock.set_id(moment), "time": clock.iso(moment), **nothing, "alarms": [], "error": error}


def hosts(number: int, days: int = report.DAYS) -> dict[str, dict[str, Any]]:
    """So many hosts by name, most of them green."""
    states = {7: report.FAILED, 23: report.STALE, 41: report.SHRINKING}
    return {
        f"agent-{one:04d}.example.org": host(f"agent-{one:04d}", one, states.get(one % 50, report.GREEN), days)
        for one in range(number)
    }


def joined(number: int, days: int = report.DAYS) -> dict[str, Any]:
    """A fleet's report, with one host that could not be reached."""
    return fleet.join(hosts(number, days), {"agent-dead.example.org": "ssh: connect to host 192.0.2.7 port 22: No route to host"})


def hostile() -> dict[str, Any]:
    """A fleet in which every text that a host can choose is hostile."""
    said = host("x", 5, "shrinking")
    said.update(reasons=[HOSTILE], host=HOSTILE, instance=HOSTILE, directory=HOSTILE, version=HOSTILE)
    said["runs"][-1].update(id=HOSTILE, type=HOSTILE, result=HOSTILE, alarms=[HOSTILE], error=HOSTILE, stores={HOSTILE: 5})
    event = {"time": said["generated"], "verb": "restore", "result": HOSTILE, "id": HOSTILE, "user": HOSTILE, "error": HOSTILE}
    said["events"] = [event]
    return fleet.join({HOSTILE: said}, {"</table>" + HOSTILE: HOSTILE}, {"x' onload='y": HOSTILE})
