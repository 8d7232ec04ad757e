# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Many hosts' reports put together: who is green, stale, shrinking, failed or unreachable, how large, and how it went.

What a host says is checked before it is used: a host that is broken, or not ours any more, must not break the page of the
others. Nobody is left out: one that could not be asked is there with the reason. The JSON is described in docs/report.md.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from typing import Any

from . import __version__, clock
from .errors import UsageError, one_line, printable
from .report import FAILED, GREEN, MOST_DAYS, SHRINKING, STALE
from .report import FORMAT as HOST_FORMAT

FORMAT = 1
UNREACHABLE = "unreachable"
STATES = (UNREACHABLE, FAILED, STALE, SHRINKING, GREEN)
"""Worst first: the order in which a page shows them."""
NONE, VERIFIED, SUSPICIOUS, BROKEN = ".", "v", "s", "f"
"""A day's letter: nothing was made; all was good; a set is suspicious or was never verified; a run failed."""
_RUNS_IN_ALL, _RUNS_MOST, _RUNS_LEAST = 1000, 30, 3
_SKEW = timedelta(hours=1)
_LONGEST_SENTENCE = 300
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z")


class _Text:
    """A word or sentence of at most so many characters."""

    def __init__(self, limit: int):
        self.limit = limit


class _Time:
    """A moment as `clock.iso` writes it."""


_SENTENCE, _WORD, _MOMENT, _COUNT = _Text(_LONGEST_SENTENCE), _Text(60), _Time(), int
_OPTIONAL = "optional"
_RUN = {
    "id": (_OPTIONAL, _WORD), "time": _MOMENT, "type": _WORD, "result": _WORD, "bytes": _COUNT, "stores": {str: _COUNT},
    "duration_s": (_OPTIONAL, float), "present": bool, "alarms": [_SENTENCE], "error": _SENTENCE,
}  # fmt: skip
_EVENT = {
    "time": _MOMENT, "verb": _WORD, "result": _WORD, "id": (_OPTIONAL, _Text(200)), "user": _WORD, "error": _SENTENCE,
}  # fmt: skip
_HOST = {
    "format": _COUNT, "generated": _MOMENT, "version": _WORD, "host": _Text(255), "instance": _WORD, "directory": _SENTENCE,
    "days": _COUNT, "max_age_s": _COUNT, "state": _WORD, "reasons": [_SENTENCE],
    "newest_verified": (_OPTIONAL, {"id": _WORD, "time": _MOMENT, "age_s": _COUNT, "bytes": _COUNT}),
    "next_expected": (_OPTIONAL, _MOMENT), "sets": _COUNT, "bytes": _COUNT,
    "disk": (_OPTIONAL, {"free": _COUNT, "total": _COUNT}), "runs": [_RUN], "events": [_EVENT],
}  # fmt: skip


class _Misfit(Exception):
    """Something in a report is not what it should be; `place` is where, outermost first."""

    def __init__(self) -> None:
        super().__init__()
        self.place: list[str] = []


def _fitted(value: Any, shape: Any) -> Any:
    """`value` in this shape and nothing else, its text made printable. Raises _Misfit."""
    kind = type(shape)
    if kind is _Text and isinstance(value, str):
        return _plain(value, shape.limit)
    if kind is dict and isinstance(value, dict):
        if str in shape:
            return {_plain(name, 60): _inner(one, shape[str], name) for name, one in value.items()}
        return {key: _inner(value.get(key), inner, key) for key, inner in shape.items()}
    if kind is list and isinstance(value, list):
        return [_inner(one, shape[0], number) for number, one in enumerate(value)]
    if kind is tuple:
        return None if value is None else _fitted(value, shape[1])
    if kind is _Time and isinstance(value, str) and _TIME.fullmatch(value):
        with contextlib.suppress(ValueError):
            clock.from_iso(value)
            return value
    if shape is bool and isinstance(value, bool):
        return value
    if shape in (int, float) and isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e18:
        return shape(value)  # a NaN fails the comparison
    raise _Misfit


def _inner(value: Any, shape: Any, key: object) -> Any:
    try:
        return _fitted(value, shape)
    except _Misfit as misfit:
        misfit.place.insert(0, _plain(str(key), 60))
        raise


def _plain(text: str, limit: int) -> str:
    """One line of text that moves no cursor and turns no direction."""
    return text if len(text) <= limit and text.isprintable() else printable(one_line(text, limit))


def checked(report: Any) -> dict[str, Any]:
    """A host's report, of a known format and in its documented shape. Raises UsageError."""
    if not isinstance(report, dict) or not isinstance(report.get("format"), int):
        raise UsageError("it names no format")
    if report["format"] > HOST_FORMAT:
        raise UsageError(f"it has format {report['format']}, and this version reads up to {HOST_FORMAT}: upgrade the collection")
    try:
        fitted: dict[str, Any] = _fitted(report, _HOST)
    except _Misfit as misfit:
        raise UsageError(f"{'.'.join(misfit.place)} is missing or not what it should be") from None
    if fitted["state"] not in STATES[1:]:
        raise UsageError(f"its state is {fitted['state']!r}")
    if not 0 < fitted["days"] <= MOST_DAYS:
        raise UsageError(f"its number of days is {fitted['days']}")
    return fitted


def join(
    reports: Mapping[str, Any],
    unreachable: Mapping[str, str] | None = None,
    failed: Mapping[str, str] | None = None,
    *,
    days: int | None = None,
) -> dict[str, Any]:
    """The fleet's report from its hosts' (name → report of `report.report`), the worst first.

    `unreachable` and `failed` map hosts that gave none to the reason. `days` is how far back the page looks (default: as
    far as the hosts' reports do).
    """
    at = clock.now()
    good: dict[str, dict[str, Any]] = {}
    lost = {name: (UNREACHABLE, reason) for name, reason in (unreachable or {}).items()}
    lost |= {name: (FAILED, reason) for name, reason in (failed or {}).items()}
    for name, said in reports.items():
        try:
            good[name] = checked(said)
        except UsageError as error:
            lost[name] = (FAILED, f"the report of this host cannot be used: {error}")
    span = _Span(days or max((one["days"] for one in good.values()), default=1), at)
    shown = max(_RUNS_LEAST, min(_RUNS_MOST, _RUNS_IN_ALL // max(1, len(good) + len(lost))))
    hosts = [_host(name, one, span, shown, at) for name, one in good.items()]
    hosts += [_without_report(name, state, reason, span) for name, (state, reason) in lost.items()]
    hosts.sort(key=lambda host: (STATES.index(host["state"]), host["name"]))
    return {
        "format": FORMAT,
        "generated": clock.iso(at),
        "version": __version__,
        "days": span.days,
        "first_day": span.first.isoformat(),
        "counts": {state: sum(host["state"] == state for host in hosts) for state in STATES},
        "bytes": sum(host["bytes"] for host in hosts),
        "trend": {
            "bytes": _added([host["trend"]["bytes"] for host in hosts], span.days),
            "verified": [sum(host["trend"]["days"][day] == VERIFIED for host in hosts) for day in range(span.days)],
        },
        "hosts": hosts,
    }


class _Span:
    """The days that a report looks at; the last is today, in UTC."""

    def __init__(self, days: int, at: datetime):
        self.days = days
        self.first: date = at.astimezone(clock.UTC).date() - timedelta(days=days - 1)

        self._numbers = {(self.first + timedelta(days=number)).isoformat(): number for number in range(days)}

    def day(self, time: str) -> int | None:
        """Which day of the span a moment lies in."""
        return self._numbers.get(time[:10])


def _host(name: str, said: dict[str, Any], span: _Span, shown: int, at: datetime) -> dict[str, Any]:
    runs = sorted(said["runs"], key=lambda run: str(run["time"]))
    dated = [(day, run) for run in runs if (day := span.day(run["time"])) is not None]
    full = [(day, run) for day, run in dated if run["type"] != "incremental" and run["bytes"]]
    reasons = list(said["reasons"])
    if abs(clock.from_iso(said["generated"]) - at) > _SKEW:
        reasons.append(f"its report is of {_minute(said['generated'])}: its clock is wrong, or the report is old")
    return {
        "name": _plain(name, 255),
        "state": said["state"],
        "fresh": (newest := said["newest_verified"]) is not None and newest["age_s"] < said["max_age_s"],
        "reasons": reasons,
        **{key: said[key] for key in ("host", "instance", "version", "directory", "newest_verified", "next_expected")},
        **{key: said[key] for key in ("sets", "bytes", "disk")},
        "trend": {"days": _letters(dated, span), "bytes": _by_day([(day, run["bytes"]) for day, run in full], span)},
        "stores": {store: _store(store, full, span) for store in _stores(full)},
        "runs": [{key: run[key] for key in run if key not in ("stores", "present")} for __, run in dated[-shown:]],
        "events": [one for one in said["events"] if one["verb"] in ("restore", "drill")][-shown:],
    }


def _minute(time: str) -> str:
    return f"{time[:10]} {time[11:16]} UTC"


def _without_report(name: str, state: str, reason: str, span: _Span) -> dict[str, Any]:
    """A host that gave no report: it is there all the same."""
    unknown = dict.fromkeys(("host", "instance", "version", "directory", "newest_verified", "next_expected", "disk"))
    return {
        "name": _plain(name, 255),
        "state": state,
        "fresh": False,
        "reasons": [_plain(reason, _LONGEST_SENTENCE)],
        **unknown,
        "sets": 0,
        "bytes": 0,
        "trend": {"days": NONE * span.days, "bytes": [None] * span.days},
        "stores": {},
        "runs": [],
        "events": [],
    }


_Dated = list[tuple[int, dict[str, Any]]]
"""Runs with the number of the day in the span, oldest first."""
_LETTERS = {"verified": VERIFIED, "acknowledged": VERIFIED, FAILED: BROKEN}


def _letters(runs: _Dated, span: _Span) -> str:
    """One letter a day: the worst of its runs."""
    order = NONE + VERIFIED + SUSPICIOUS + BROKEN
    days = [0] * span.days
    for day, run in runs:
        days[day] = max(days[day], order.index(_LETTERS.get(run["result"], SUSPICIOUS)))
    return "".join(order[rank] for rank in days)


def _by_day(sizes: list[tuple[int, int]], span: _Span) -> list[int | None]:
    """Each day's last size; None for a day without."""
    days: list[int | None] = [None] * span.days
    for day, size in sizes:
        days[day] = size
    return days


def _stores(full: _Dated) -> list[str]:
    """Every store that a set has, in the order of the newest one."""
    return list(dict.fromkeys(store for __, run in reversed(full) for store in run["stores"]))


def _store(store: str, full: _Dated, span: _Span) -> dict[str, Any]:
    """Its size now, what has changed in 30 days in percent, and its size week by week (the last value of each)."""
    days = _by_day([(day, run["stores"][store]) for day, run in full if store in run["stores"]], span)
    known = [size for size in days if size is not None]
    before = next((size for size in days[-31:] if size is not None), None)
    weeks = [[size for size in days[max(0, end - 7) : end] if size is not None] for end in range(span.days, 0, -7)][::-1]
    return {
        "bytes": known[-1],
        "change_percent": round(100 * (known[-1] / before - 1), 1) if before else None,
        "weeks": [week[-1] if week else None for week in weeks],
    }


def _added(columns: list[list[int | None]], days: int) -> list[int]:
    """The fleet's size day by day: a host without a set that day counts with its last one."""
    total = [0] * days
    for column in columns:
        last = 0
        for day, size in enumerate(column):
            last = size if size is not None else last
            total[day] += last
    return total
