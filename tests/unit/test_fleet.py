# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Many hosts' reports put together and drawn: what is counted, what is refused, and that nothing a host says becomes markup."""

from __future__ import annotations

from typing import Any

import pytest
from agentmem_backup import fleet, page

from tests.support import markup, synthetic
from tests.support.synthetic import HOSTILE


def hosts_of(joined: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {host["name"]: host for host in joined["hosts"]}


def test_everybody_is_there_the_worst_first() -> None:
    reports = {name: synthetic.host(name, 1, state) for name, state in (("a", "green"), ("b", "shrinking"), ("c", "stale"))}
    joined = fleet.join({**reports, "d": synthetic.host("d", 2, "failed")}, {"e": "no route to host"}, {"f": "no python"})
    assert [(host["name"], host["state"]) for host in joined["hosts"]] == [
        ("e", "unreachable"),
        ("d", "failed"),
        ("f", "failed"),
        ("c", "stale"),
        ("b", "shrinking"),
        ("a", "green"),
    ]
    assert joined["counts"] == {"unreachable": 1, "failed": 2, "stale": 1, "shrinking": 1, "green": 1}
    assert joined["bytes"] == sum(one["bytes"] for one in reports.values()) + hosts_of(joined)["d"]["bytes"]
    assert hosts_of(joined)["e"]["reasons"] == ["no route to host"]


def test_days_weeks_and_changes_are_those_of_the_runs() -> None:
    said = synthetic.host("a", 3, days=21)
    for run in said["runs"]:
        run.update(result="verified", error="", type="full", bytes=100, stores={"redis": 100})
    said["runs"][3].update(result="failed", bytes=0, stores={})
    said["runs"][4].update(result="suspicious")
    said["runs"][-1].update(bytes=50, stores={"redis": 50})
    again = {**said["runs"][6], "time": said["runs"][6]["time"].replace("T00:", "T01:"), "result": "failed", "bytes": 0}
    said["runs"] += [again, {**said["runs"][6], "time": again["time"].replace("T01:", "T02:")}]  # a bad run between two good ones
    del said["runs"][8]
    host = fleet.join({"a": said})["hosts"][0]
    assert host["trend"]["days"] == "vvvfsvfv.vvvvvvvvvvvv"
    assert host["trend"]["bytes"] == [100, 100, 100, None, 100, 100, 100, 100, None, *[100] * 11, 50]
    assert host["stores"] == {"redis": {"bytes": 50, "change_percent": -50.0, "weeks": [100, 100, 50]}}


def test_a_host_without_a_set_today_counts_with_its_last_one() -> None:
    reports = {name: synthetic.host(name, 4, days=10) for name in ("a", "b")}
    for said in reports.values():
        for run in said["runs"]:
            run.update(result="verified", error="", type="full", bytes=7, stores={"redis": 7})
    del reports["b"]["runs"][5:]
    joined = fleet.join(reports)
    assert joined["trend"] == {"bytes": [14] * 10, "verified": [2] * 5 + [1] * 5}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "upgrade the collection"),
        ({"format": "1"}, "names no format"),
        ({"state": "unreachable"}, "its state is 'unreachable'"),
        ({"days": 10**9}, "its number of days"),
        ({"bytes": float("nan")}, "bytes is missing or not what it should be"),
        ({"runs": [{"time": "2025-13-01T00:00:00.000Z"}]}, "runs.0.time is missing or not what it should be"),
        ({"runs": {}}, "runs is missing or not what it should be"),
        ({"newest_verified": {"id": 7}}, "newest_verified.id is missing or not what it should be"),
        ({"reasons": [None]}, "reasons.0 is missing or not what it should be"),
    ],
)
def test_a_report_that_cannot_be_used_fails_its_host_and_no_other(change: dict[str, Any], said: str) -> None:
    bad = synthetic.host("bad", 1)
    if "runs" in change and isinstance(change["runs"], list):
        change = {"runs": [{**bad["runs"][0], **change["runs"][0]}]}
    joined = fleet.join({"bad": {**bad, **change}, "good": synthetic.host("good", 1)})
    assert {name: host["state"] for name, host in hosts_of(joined).items()} == {"bad": "failed", "good": "green"}
    assert said in hosts_of(joined)["bad"]["reasons"][0]


@pytest.mark.parametrize("nothing", [None, [], "text", {}])
def test_nothing_is_no_report(nothing: Any) -> None:
    (host,) = fleet.join({"bad": nothing})["hosts"]
    assert host["reasons"] == ["the report of this host cannot be used: it names no format"]


def test_a_clock_that_is_wrong_is_told() -> None:
    said = synthetic.host("a", 1)
    said["generated"] = "2020-01-01T00:00:00.000Z"
    (host,) = fleet.join({"a": said})["hosts"]
    assert host["reasons"] == ["its report is of 2020-01-01 00:00 UTC: its clock is wrong, or the report is old"]


# --- the page


def test_nothing_that_a_host_says_becomes_markup() -> None:
    html = page.html(synthetic.hostile(), HOSTILE)
    tree = markup.parse(html)
    assert len(tree.all("script")) == 1 and tree.all("script")[0].text == page._SCRIPT
    assert tree.all("img") == []
    assert {name for one in tree.all() for name in one.attributes if name.startswith("on")} == set()
    shown = HOSTILE.replace("\u202e", "\\u202e")
    assert tree.all("title")[0].text == HOSTILE  # ours, not a host's
    (row,) = [one for one in tree.all("tbody") if one.attributes["data-name"] == shown]
    assert row.all("th")[0].text.startswith(shown)
    assert row.text.count("שלום \\u202eevil") > 5
    assert "\u202e" not in html.partition("</h1>")[2]


def test_the_page_shows_the_data_and_links_nowhere() -> None:
    joined = synthetic.joined(60)
    html = page.html(joined)
    assert "http://" not in html and "https://" not in html and "//" not in html.replace(page._SCRIPT, "").partition("<body>")[2]
    tree = markup.parse(html)
    assert tree.all("link") == [] and [one for one in tree.all() if {"src", "srcset", "action"} & one.attributes.keys()] == []
    assert {one.attributes["href"][0] for one in tree.all() if "href" in one.attributes} == {"#"}
    rows = {one.attributes["data-name"]: one for one in tree.all("tbody")}
    assert list(rows) == [host["name"] for host in joined["hosts"]]
    for host in joined["hosts"]:
        text = " ".join(rows[host["name"]].text.split())
        assert page.STATE_WORDS[host["state"]][0] in text
        assert all(reason in text for reason in host["reasons"])
        if host["newest_verified"]:
            assert host["newest_verified"]["id"] in text and "postgresql" in text
    counts = {one.attributes["href"]: one.all("b")[0].text for one in tree.all("a")}
    assert counts == {f"#{state}": str(number) for state, number in joined["counts"].items() if number}
    targets = {one.attributes["id"] for one in tree.all() if "id" in one.attributes}
    assert {target.removeprefix("#") for target in counts} <= targets


def test_every_drawing_says_in_words_what_it_shows() -> None:
    tree = markup.parse(page.html(synthetic.joined(3)))
    drawings = [one for one in tree.all("svg") if one.attributes.get("class") in ("days", "line")]
    assert len(drawings) > 10
    assert all(one.attributes["role"] == "img" and one.attributes["aria-label"] for one in drawings)
    assert all("aria-hidden" in one.attributes for one in tree.all("svg") if one not in drawings and one.parent.tag != "span")


def test_a_fleet_of_none_and_a_host_without_a_run_can_be_drawn() -> None:
    assert "0 hosts" in page.html(fleet.join({}))
    said = {**synthetic.host("a", 1), "runs": [], "newest_verified": None, "next_expected": None, "disk": None}
    assert "none" in page.html(fleet.join({"a": said}))
