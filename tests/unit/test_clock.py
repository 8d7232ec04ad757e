# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Times and IDs: UTC whatever the machine's zone is, and no text that is not a time passes for one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone

import pytest
from agentmem_backup import clock
from agentmem_backup.clock import UTC
from agentmem_backup.errors import UsageError
from hypothesis import given
from hypothesis import strategies as st

NOON = datetime(2025, 1, 3, 12, 0, 0, tzinfo=UTC)


@pytest.fixture(params=["UTC", "Asia/Shanghai", "America/St_Johns"])
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield request.param
    monkeypatch.undo()
    time.tzset()


def test_the_zone_of_the_machine_changes_nothing(zone: str) -> None:
    assert clock.now().utcoffset() == timedelta(0)
    assert clock.set_id(NOON) == "20250103_120000"
    assert clock.id_time("20250103_120000") == NOON
    assert clock.iso(NOON) == "2025-01-03T12:00:00.000Z"
    for text in (
        "2025-01-03T12:00:00",
        "2025-01-03 12:00:00",
        "2025-01-03T12:00:00Z",
        "2025-01-03T13:00:00+01:00",
        "20250103_120000",
    ):
        assert clock.parse_moment(text) == NOON
    assert clock.parse_moment("2025-01-03") == NOON.replace(hour=0)


def test_a_moment_of_another_zone_is_told_in_utc() -> None:
    moment = NOON.astimezone(timezone(timedelta(hours=8)))
    assert clock.set_id(moment) == "20250103_120000"
    assert clock.iso(moment) == "2025-01-03T12:00:00.000Z"


@given(st.datetimes(min_value=datetime(1000, 1, 1), max_value=datetime(9999, 12, 31), timezones=st.just(UTC)))
def test_text_and_id_are_inverse_to_the_moment(moment: datetime) -> None:
    milliseconds = moment.replace(microsecond=moment.microsecond // 1000 * 1000)
    assert clock.from_iso(clock.iso(moment)) == milliseconds
    assert clock.is_set_id(clock.set_id(moment))
    assert clock.id_time(clock.set_id(moment)) == moment.replace(microsecond=0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "20250103",
        "20250103_12000",
        "20250103_1200000",
        "2025010_3120000",
        "20251303_120000",
        "20250230_120000",
        "20250103_250000",
        "20250103_120060",
        "20250103_120000\n",
        " 20250103_120000",
        "../20250103_120000",
        "20250103_120000/..",
        "latest",
        "\uff12\uff10\uff12\uff150103_120000",
        "00000000_000000",
        "20250103-120000",
        "20250103_120000.txt",
    ],
)
def test_what_is_no_id_is_refused_in_words(text: str) -> None:
    assert not clock.is_set_id(text)
    with pytest.raises(UsageError, match="is not the ID of a set"):
        clock.id_time(text)


@pytest.mark.parametrize(
    "text", ["", "yesterday", "12:00", "2025-13-01", "2025-02-30", "2025-01-03T25:00:00", "../x", "20259999_000000"]
)
def test_what_is_no_time_is_refused_in_words(text: str) -> None:
    with pytest.raises(UsageError, match=f"'{text}' is not a time: write it as 2025-01-03"):
        clock.parse_moment(text)


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_a_time_beyond_the_calendar_is_refused_in_words(text: str) -> None:
    with pytest.raises(UsageError, match="is not a time"):
        clock.parse_moment(text)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(-5, "in the future"), (0, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "119 min"), (7200, "2 h"), (172799, "47 h"),
     (172800, "2 d"), (86400 * 400, "400 d")],
)  # fmt: skip
def test_age_is_said_as_a_person_says_it(seconds: int, said: str) -> None:
    assert clock.age(NOON, NOON + timedelta(seconds=seconds)) == said


def test_a_second_is_outlasted(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = [datetime(2025, 1, 3, 12, 0, second, tzinfo=timezone.utc) for second in (7, 7, 7, 8, 9)]
    monkeypatch.setattr(clock, "now", lambda: moments.pop(0))
    clock.outlast("20250103_120007")
    assert [one.second for one in moments] == [9]
