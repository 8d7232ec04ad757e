# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Time, in one place: UTC, as an aware datetime, as text, and as the ID of a set."""

from __future__ import annotations

import re
import time
from datetime import datetime, timedelta, timezone

from .errors import UsageError

UTC = timezone.utc
_AGE = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhd]?)")
_UNITS = {"": "seconds", "s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_ID = re.compile(r"[0-9]{8}_[0-9]{6}")  # \d would take the digits of every script


def now() -> datetime:
    """The present moment in UTC."""
    return datetime.now(UTC)


def iso(moment: datetime) -> str:
    """ISO 8601 in UTC with milliseconds: 2025-01-03T12:00:00.000Z."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def from_iso(text: str) -> datetime:
    """The inverse of `iso`; raises ValueError."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(UTC)


def set_id(moment: datetime) -> str:
    """The ID of a set started at `moment`: YYYYMMDD_HHMMSS in UTC."""
    return moment.astimezone(UTC).strftime("%Y%m%d_%H%M%S")


def outlast(text: str) -> None:
    """Wait until the second is over that an ID names: whoever comes next takes names of its own from it. Not for a clock that
    stands still."""
    deadline = time.monotonic() + 2
    while set_id(now()) == text and time.monotonic() < deadline:
        time.sleep(0.02)


def is_set_id(text: str) -> bool:
    """Whether `text` has an ID's form and names a real date and time."""
    return bool(_ID.fullmatch(text)) and _parsed(text) is not None


def id_time(set_id_text: str) -> datetime:
    """The start time that a set's ID names; raises UsageError where the text is no ID."""
    moment = _parsed(set_id_text) if _ID.fullmatch(set_id_text) else None
    if moment is None:
        raise UsageError(f"'{set_id_text}' is not the ID of a set: an ID looks like 20250103_120000 (see: agentmem-backup list)")
    return moment


def _parsed(text: str) -> datetime | None:
    # By hand: strptime takes ten times as long, and a listing parses thousands.
    try:
        day, hour = int(text[:8]), int(text[9:])
        return datetime(day // 10000, day // 100 % 100, day % 100, hour // 10000, hour // 100 % 100, hour % 100, tzinfo=UTC)
    except ValueError:
        return None


def parse_moment(text: str) -> datetime:
    """A point in time as a person writes it: ISO date or date and time (UTC where it names no zone), or a set's ID."""
    if is_set_id(text):
        return id_time(text)
    try:
        moment = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise UsageError(f"'{text}' is not a time: write it as 2025-01-03 or 2025-01-03T12:00:00Z") from None


def parse_age(text: str) -> timedelta:
    """An age as a person writes it: 90m, 26h or 2d; a number alone is seconds. Raises UsageError."""
    match = _AGE.fullmatch(text.strip())
    try:
        if match:
            return timedelta(**{_UNITS[match[2]]: float(match[1])})
    except OverflowError:
        pass
    raise UsageError(f"{text!r} is not an age: write it as 90m, 26h or 2d")


def age(moment: datetime, at: datetime | None = None) -> str:
    """How long ago `moment` was, as a person says it: 3 min, 5 h, 12 d; 'in the future' where it lies ahead."""
    seconds = ((at or now()) - moment).total_seconds()
    if seconds < -1:
        return "in the future"
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60), (172800, "h", 3600)):
        if seconds < limit:
            return f"{int(max(seconds, 0) / size)} {unit}"
    return f"{int(seconds / 86400)} d"
