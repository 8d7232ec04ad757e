# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fleet's report as one HTML page: no other file, no link out, no need of its script.

Everything that a host said goes through jinja2's autoescape; what is marked safe is drawn from numbers alone. The page's
own policy (CSP, by the script's digest) lets no other script run, should that ever fail.
"""

from __future__ import annotations

import base64
import hashlib
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from . import clock
from .fleet import BROKEN, SUSPICIOUS, VERIFIED
from .libraries import require
from .manifest import human_size

if TYPE_CHECKING:
    from markupsafe import Markup

_WIDTH, _HEIGHT = 180, 24
_WEEK_WIDTH, _WEEK_HEIGHT = 80, 16

STATE_WORDS = {
    "unreachable": ("Unreachable", "could not be asked"),
    "failed": ("Failed", "the last run failed, or its set does not verify"),
    "stale": ("Stale", "no verified set is young enough"),
    "shrinking": ("Shrinking", "a store of the newest set is much smaller than before"),
    "green": ("Green", "the newest set is verified and young enough"),
}

_SCRIPT = """
(function () {
  var table = document.querySelector("table.hosts"), box = document.getElementById("tools");
  if (!table || !box) return;
  box.hidden = false;
  var bodies = Array.prototype.slice.call(table.tBodies), said = document.getElementById("shown");
  function show() {
    var text = box.querySelector("input").value.toLowerCase(), state = box.querySelectorAll("select")[0].value, left = 0;
    bodies.forEach(function (one) {
      var fits = (!state || one.dataset.state === state) && one.dataset.name.toLowerCase().indexOf(text) >= 0;
      one.hidden = !fits;
      left += fits;
    });
    said.textContent = left + " of " + bodies.length + " hosts";
  }
  function sort() {
    var by = box.querySelectorAll("select")[1].value;
    bodies.sort(function (a, b) {
      if (by === "name") return a.dataset.name.localeCompare(b.dataset.name);
      return (by === "state" ? 1 : -1) * (a.dataset[by] - b.dataset[by]) || a.dataset.name.localeCompare(b.dataset.name);
    }).forEach(function (one) { table.appendChild(one); });
  }
  box.addEventListener("input", show);
  box.addEventListener("change", function () { sort(); show(); });
  show();
})();
"""

_STYLE = """
:root { color-scheme: light dark; --back: #f6f7f9; --card: #fff; --ink: #1b1f24; --soft: #59636e; --line: #d5dae0;
  --green: #14713c; --shrinking: #8a5300; --stale: #8a5300; --failed: #b3161b; --unreachable: #6b2fa0; --draw: #2563a8; }
@media (prefers-color-scheme: dark) {
  :root { --back: #0f1318; --card: #181d24; --ink: #e6eaef; --soft: #9aa5b1; --line: #323a44;
    --green: #56c482; --shrinking: #e0a44a; --stale: #e0a44a; --failed: #ff8078; --unreachable: #c49bf0; --draw: #6cb0f5; }
}
* { box-sizing: border-box; }
body { margin: 0; padding: 1.25rem; background: var(--back); color: var(--ink); font: 16px/1.45 system-ui, sans-serif; }
main, header, footer { max-width: 76rem; margin: 0 auto; }
h1 { font-size: 1.5rem; line-height: 1.2; margin: 0 0 .25rem; }
p { margin: .25rem 0; }
a { color: inherit; }
.soft { color: var(--soft); }
.counts { display: flex; flex-wrap: wrap; gap: .5rem; list-style: none; padding: 0; margin: 1rem 0; }
.counts li { flex: 1 1 8.5rem; background: var(--card); border: 1px solid var(--line); border-radius: .5rem; }
.counts a, .counts span.none { display: block; padding: .6rem .8rem; text-decoration: none; }
.counts b { display: block; font-size: 1.6rem; line-height: 1.2; }
.counts a:focus-visible, summary:focus-visible { outline: 3px solid var(--draw); outline-offset: 2px; border-radius: .4rem; }
.facts { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; margin: 1rem 0; }
.facts div { min-width: 0; }
#tools { display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: end; margin: 1rem 0; }
#tools[hidden] { display: none; }
#tools label { display: grid; font-size: .85rem; color: var(--soft); }
#tools input, #tools select { font: inherit; color: var(--ink); background: var(--card); border: 1px solid var(--line);
  border-radius: .4rem; padding: .4rem .5rem; min-height: 2.5rem; }
table { border-collapse: collapse; width: 100%; }
table.hosts { background: var(--card); border: 1px solid var(--line); }
.hosts > thead th { text-align: start; font-size: .85rem; color: var(--soft); font-weight: 600; padding: .5rem .75rem; }
.hosts > tbody { border-top: 1px solid var(--line); scroll-margin-top: .5rem; }
.hosts > tbody > tr > * { padding: .55rem .75rem; vertical-align: top; text-align: start; }
.hosts > tbody > tr.more > td { padding-top: 0; padding-bottom: .3rem; }
.name { font-weight: 600; overflow-wrap: anywhere; min-width: 9rem; }
.state { font-weight: 600; white-space: nowrap; }
.state svg, .counts svg { width: 1em; height: 1em; vertical-align: -.12em; fill: none; stroke: currentColor; stroke-width: 2; }
.why { margin: 0; padding: 0; list-style: none; overflow-wrap: anywhere; }
td.drawn { min-width: 9rem; }
.num { white-space: nowrap; font-variant-numeric: tabular-nums; }
.green { color: var(--green); } .shrinking { color: var(--shrinking); } .stale { color: var(--stale); }
.failed { color: var(--failed); } .unreachable { color: var(--unreachable); }
svg.days, svg.line { display: block; max-width: 100%; height: auto; overflow: visible; }
svg.line { border-bottom: 1px solid var(--line); }
.line path { fill: none; stroke: var(--draw); stroke-width: 1.5; stroke-linecap: round; vector-effect: non-scaling-stroke; }
.days .v { fill: var(--green); } .days .s { fill: var(--shrinking); } .days .f { fill: var(--failed); }
.days .base { stroke: var(--line); stroke-width: 1; }
details summary { cursor: pointer; color: var(--soft); font-size: .9rem; width: fit-content; padding: .15rem .3rem; }
.inner { overflow-x: auto; }
.inner table { font-size: .9rem; margin: .4rem 0 .8rem; width: auto; }
.inner caption { text-align: start; font-weight: 600; padding: .2rem .5rem; }
.inner th, .inner td { text-align: start; padding: .2rem .9rem .2rem .5rem; vertical-align: top;
  border-top: 1px solid var(--line); }
.inner td.error { overflow-wrap: anywhere; min-width: 12rem; }
footer { margin-top: 1.5rem; font-size: .85rem; color: var(--soft); }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; font-size: .85rem; color: var(--soft); margin: .5rem 0; }
.legend svg { display: inline-block; vertical-align: -.3em; margin-inline-end: .3rem; }
.vh { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
@media (max-width: 60rem) {
  body { padding: .75rem; }
  table.hosts { background: none; border: 0; display: block; }
  .hosts > thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  .hosts > tbody { display: block; background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
    margin-bottom: .75rem; padding: .5rem .75rem; }
  .hosts > tbody[hidden] { display: none; }
  .hosts > tbody > tr.main { display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: .2rem .75rem; }
  .hosts > tbody > tr.more, .hosts > tbody > tr.more > td { display: block; }
  .hosts > tbody > tr > * { padding: 0; }
  .hosts .wide { grid-column: 1 / -1; }
  .hosts td[data-label]::before { content: attr(data-label) ": "; color: var(--soft); font-weight: 400; }
  .hosts td.drawn::before { display: block; font-size: .85rem; }
  details summary { padding: .5rem .2rem; }
}
@media print { #tools { display: none; } body { background: #fff; } }
"""

_TEMPLATE = """\
{% macro icon(state) %}<svg aria-hidden="true" viewBox="0 0 16 16"><use href="#i-{{ state }}"/></svg>{% endmacro %}
{% macro moment(time) %}<time datetime="{{ time }}">{{ time[:10] }} {{ time[11:16] }} UTC</time>{% endmacro %}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src '{{ script_digest }}'; base-uri 'none'; form-action 'none'">
<title>{{ title }}</title>
<style>{{ style }}</style>
</head>
<body>
<svg width="0" height="0" style="position:absolute" aria-hidden="true">
<symbol id="i-green" viewBox="0 0 16 16"><path d="M2 8.5l4 4 8-9"/></symbol>
<symbol id="i-shrinking" viewBox="0 0 16 16"><path d="M8 2v11M3.5 8.5L8 13l4.5-4.5"/></symbol>
<symbol id="i-stale" viewBox="0 0 16 16"><path d="M8 4v4.5l3 2M8 1.5a6.5 6.5 0 1 0 .01 0z"/></symbol>
<symbol id="i-failed" viewBox="0 0 16 16"><path d="M3 3l10 10M13 3L3 13"/></symbol>
<symbol id="i-unreachable" viewBox="0 0 16 16"><path d="M8 1.5a6.5 6.5 0 1 0 .01 0zM3.5 12.5l9-9"/></symbol>
</svg>
<header>
<h1>{{ title }}</h1>
<p class="soft">As of {{ moment(fleet.generated) }}.
{{ fleet.hosts | length }} host{{ "" if fleet.hosts | length == 1 else "s" }},
the last {{ fleet.days }} days.</p>
</header>
<main>
<ul class="counts" aria-label="Hosts by state">
{% for state, count in fleet.counts.items() %}
<li>{% if count %}<a href="#{{ state }}" class="{{ state }}">{% else %}<span class="none soft">{% endif %}
<b>{{ count }}</b>{{ icon(state) }} {{ words[state][0] }}<span class="vh">: {{ words[state][1] }}</span>
{% if count %}</a>{% else %}</span>{% endif %}</li>
{% endfor %}
</ul>
<div class="facts">
<div><span class="soft">On the hosts' disks</span><br><b>{{ fleet.bytes | size }}</b></div>
<div><span class="soft">Newest full sets</span><br><b>{{ fleet.trend.bytes[-1] | size }}</b>{{ line(fleet.trend.bytes) }}</div>
<div><span class="soft">Hosts with a good run today</span><br><b>{{ fleet.trend.verified[-1] }}</b>
{{ line(fleet.trend.verified, count=true) }}</div>
</div>
<div id="tools" role="search" aria-label="Hosts" hidden>
<label>Name has<input type="search" autocomplete="off"></label>
<label>State<select><option value="">all</option>
{% for state in fleet.counts %}<option value="{{ state }}">{{ words[state][0] }}</option>{% endfor %}</select></label>
<label>Sort by<select><option value="state">state</option><option value="name">name</option>
<option value="age">age of the newest verified set</option><option value="size">size</option></select></label>
<output id="shown" class="soft"></output>
</div>
<p class="legend" aria-hidden="true">
<span><svg width="9" height="15"><rect class="v" x="0" y="9" width="9" height="6" style="fill:var(--green)"/></svg>verified</span>
<span><svg width="9" height="15"><rect y="5" width="9" height="10" style="fill:var(--shrinking)"/></svg>suspicious</span>
<span><svg width="9" height="15"><rect width="9" height="15" style="fill:var(--failed)"/></svg>failed</span>
<span><svg width="9" height="15"><path d="M0 14.5h9" style="stroke:var(--line)"/></svg>no run</span></p>
<table class="hosts">
<caption class="vh">Every host, the worst first</caption>
<thead><tr><th scope="col">Host</th><th scope="col">State</th><th scope="col">Newest verified set</th>
<th scope="col">Size</th><th scope="col">{{ fleet.days }} days</th><th scope="col">Trend of size</th></tr></thead>
{% for host in fleet.hosts %}
<tbody data-name="{{ host.name }}" data-state="{{ host.state }}"
 data-age="{{ host.newest_verified.age_s if host.newest_verified else 1000000000 }}" data-size="{{ host.bytes }}"
{% if loop.first or loop.previtem.state != host.state %} id="{{ host.state }}"{% endif %}>
<tr class="main"><th scope="row" class="name"><bdi>{{ host.name }}</bdi>
{%- if host.instance and host.instance != "default" %} <span class="soft">({{ host.instance }})</span>{% endif %}</th>
<td class="state {{ host.state }}">{{ icon(host.state) }} {{ words[host.state][0] }}</td>
<td class="num wide" data-label="Newest verified">
{%- if host.newest_verified %}{{ host.newest_verified.age_s | age }} old, {{ host.newest_verified.bytes | size }}
{%- else %}{{ "not known" if host.host is none else "none" }}{% endif %}</td>
<td class="num wide" data-label="On its disk">{% if host.host is none %}not known
{%- else %}{{ host.bytes | size }}, {{ host.sets }} set{{ "" if host.sets == 1 else "s" }}{% endif %}</td>
<td class="drawn wide">{% if host.host is not none %}{{ days(host.trend.days) }}{% endif %}</td>
{% if host.stores %}
<td class="drawn wide" data-label="Trend of size">{{ line(host.trend.bytes) }}</td></tr>
{% else %}
<td></td></tr>
{% endif %}
<tr class="more"><td colspan="6">
{% if host.reasons %}<ul class="why">{% for reason in host.reasons %}<li><bdi>{{ reason }}</bdi></li>{% endfor %}</ul>{% endif %}
{% if host.host is not none %}
<details><summary>More of <bdi>{{ host.name }}</bdi></summary>
<div class="inner">
<p class="soft">{{ host.directory }}
{%- if host.disk %}, {{ host.disk.free | size }} of {{ host.disk.total | size }} free{% endif %}
{%- if host.newest_verified %}; newest verified {{ host.newest_verified.id }}{% endif %}
{%- if host.next_expected %}; next expected {{ moment(host.next_expected) }}{% endif %}; agentmem-backup {{ host.version }}</p>
{% if host.stores %}<table><caption>Stores</caption>
<tr><th scope="col">Store</th><th scope="col">Size</th><th scope="col">30 days</th><th scope="col">Week by week</th></tr>
{% for name, store in host.stores.items() %}<tr><th scope="row">{{ name }}</th><td class="num">{{ store.bytes | size }}</td>
<td class="num">{{ store.change_percent | change }}</td><td>{{ line(store.weeks, small=true) }}</td></tr>
{% endfor %}</table>{% endif %}
{% if host.runs %}<table><caption>Newest runs</caption>
<tr><th scope="col">Time</th><th scope="col">Type</th><th scope="col">Result</th><th scope="col">Size</th>
<th scope="col">Took</th><th scope="col">What was wrong</th></tr>
{% for run in host.runs | reverse %}<tr><td class="num">{{ moment(run.time) }}</td><td>{{ run.type }}</td>
<td>{{ run.result }}</td>
<td class="num">{{ run.bytes | size if run.bytes else "" }}</td>
<td class="num">{% if run.duration_s is not none %}{{ run.duration_s | round(1) }} s{% endif %}</td>
<td class="error"><bdi>{{ (run.alarms + [run.error] if run.error else run.alarms) | join("; ") }}</bdi></td></tr>
{% endfor %}</table>{% endif %}
{% if host.events %}<table><caption>Restores and drills</caption>
<tr><th scope="col">Time</th><th scope="col">What</th><th scope="col">Result</th>
<th scope="col">Set</th><th scope="col">Who</th></tr>
{% for one in host.events | reverse %}<tr><td class="num">{{ moment(one.time) }}</td><td>{{ one.verb }}</td>
<td class="error">{{ one.result }}{% if one.error %}: <bdi>{{ one.error }}</bdi>{% endif %}</td><td>{{ one.id or "" }}</td>
<td><bdi>{{ one.user }}</bdi></td></tr>
{% endfor %}</table>{% endif %}
</div></details>{% endif %}</td></tr>
</tbody>
{% endfor %}
</table>
</main>
<footer><p>Made by agentmem-backup {{ fleet.version }}. Sizes in powers of 1024, times in UTC.</p></footer>
<script>{{ script }}</script>
</body>
</html>
"""


def html(fleet: dict[str, Any], title: str = "Backups of AgentMem") -> str:
    """The page of a fleet's report (`fleet.join`). Raises BackupError where jinja2 is missing."""
    require("jinja2")
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters.update(size=human_size, age=_age, change=_change)
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    return environment.from_string(_TEMPLATE).render(
        fleet=fleet,
        title=title,
        words=STATE_WORDS,
        line=_line,
        days=_days,
        style=Markup(_STYLE),  # noqa: S704  # our own text, as is the script
        script=Markup(_SCRIPT),  # noqa: S704
        script_digest=f"sha256-{digest}",
    )


def _age(seconds: int) -> str:
    at = clock.now()
    return clock.age(at - timedelta(seconds=seconds), at)


def _change(percent: float | None) -> str:
    """A change as a person reads it, the direction in words of its own: +3 %, −12 %."""
    if percent is None:
        return ""
    whole = round(percent)
    return f"{'+' if whole > 0 else '−' if whole < 0 else '±'}{abs(whole)} %"


def _drawing(text: str) -> Markup:
    from markupsafe import Markup

    return Markup(text)  # noqa: S704  # made of numbers, and of words of this file


def _line(values: list[int | None], *, count: bool = False, small: bool = False) -> Markup | str:
    """A sparkline from zero to the largest value; a gap where there is none. It says in words what it shows."""
    known = [value for value in values if value is not None]
    if not known:
        return "no sets"
    width, height = (_WEEK_WIDTH, _WEEK_HEIGHT) if small else (_WIDTH, _HEIGHT)
    top, step = max(*known, 1), width / max(1, len(values) - 1)
    say = str if count else human_size
    label = f"from {say(known[0])} to {say(known[-1])}, at most {say(max(known))}"
    path, drawing, at = [], False, (0, 0)
    for number, value in enumerate(values):
        if value is None:
            continue  # days without a set are bridged: the size did not change because nobody looked
        point = (round(number * step), round((height - 2) * (1 - value / top)) + 1)
        path.append(f"l{point[0] - at[0]} {point[1] - at[1]}" if drawing else f"M{point[0]} {point[1]}l0 0")
        drawing, at = True, point
    return _drawing(
        f'<svg class="line" role="img" aria-label="{label}" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
        f'<path d="{"".join(path).replace(" -", "-")}"/></svg>'
    )


_BARS = {VERIFIED: (9, 6), SUSPICIOUS: (5, 10), BROKEN: (0, 15)}
"""Letter of a day → top and height of its bar: seen without colours, too."""


def _days(letters: str) -> Markup:
    """A bar for each day, as high as it was bad; none for a day without a run."""
    step = max(1, _WIDTH // max(1, len(letters)))
    width, paths = step * len(letters), dict.fromkeys(_BARS, "")
    start = 0
    for end in range(1, len(letters) + 1):
        if end < len(letters) and letters[end] == letters[start]:
            continue
        if letters[start] in _BARS:
            top, height = _BARS[letters[start]]
            wide = step * (end - start)
            paths[letters[start]] += f"M{step * start} {top}h{wide}v{height}h-{wide}z"
        start = end
    told = {"verified": VERIFIED, "suspicious": SUSPICIOUS, "failed": BROKEN, "without a run": "."}
    label = ", ".join(f"{letters.count(letter)} {word}" for word, letter in told.items() if letter in letters)
    drawn = "".join(f'<path class="{letter}" d="{path}"/>' for letter, path in paths.items() if path)
    return _drawing(
        f'<svg class="days" role="img" aria-label="Days: {label}" width="{width}" height="16" viewBox="0 0 {width} 16">'
        f'<path class="base" d="M0 15.5h{width}"/>{drawn}</svg>'
    )
