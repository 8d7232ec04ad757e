# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `agentmem-backup`: arguments → engine → lines on a stream and an exit code.

Exit codes: 0 done, 1 failed, 2 bad usage or input, 3 verification failed or suspicious, 75 another run holds the lock.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from . import __version__, process
from .errors import BackupError, UsageError

if TYPE_CHECKING:
    from .console import Console
    from .restore import Plan, Request
    from .settings import Settings
    from .sync_check import Checked

COMPONENTS = ("postgresql", "redis", "qdrant", "config")
RISKS = ("maxmemory", "roles", "topology", "version")
QUESTION = "⚠️  This will overwrite existing data. Continue? (yes/no): "
_EPILOG = """\
at 3 a.m.:
  agentmem-backup list                      which sets are there, and which are known to be good
  agentmem-backup verify latest             is the newest one whole?
  agentmem-backup restore latest --dry-run  what would a restore do? (touches nothing)
  agentmem-backup restore latest            bring everything back; asks before anything is touched

exit codes: 0 done, 1 failed, 2 bad usage or input, 3 verification failed or suspicious, 75 another run holds the lock
"""


_EXAMPLES = {
    "create": (
        ("", "all stores, verified"),
        ("--component postgresql --component redis", "only these; the set says so"),
        ("--dry-run", "what is ready, what is missing, how much disk it takes"),
    ),
    "verify": (
        ("latest", "everything is read, decompressed and walked"),
        ("20250103_120000 --depth quick", "sizes and digests only"),
        ("/mnt/usb/db_20250103_120000.dump.gz", "one file, wherever it lies"),
    ),
    "restore": (
        ("latest --dry-run", "the plan; touches nothing"),
        ("latest", "everything; asks before anything is touched"),
        ("--before 2025-01-03T12:00:00Z", "the newest verified set from before that time"),
        ("latest --component redis", "one store"),
        ("latest --only-table public.messages", "one table's rows, into the live database"),
        ("--db /mnt/usb/dump.gz", "a file (elsewhere: DB_NAME=copy agentmem-backup restore …)"),
    ),
    "extract": (
        ("latest --table public.memories --output memories.csv", ""),
        ("latest --keys 'session:*' --output sessions.jsonl", ""),
        ("latest --collection memories --form jsonl --output points.jsonl", ""),
        ("latest --file .env --output old.env", ""),
    ),
    "check": (
        ("", "stores, rights, tools, disk"),
        ("--max-age 26h --monitor", "for Nagios, Icinga and the like"),
    ),
}
"""Verb → what people type, and what it does: the end of its help."""


def _examples(name: str) -> str | None:
    if name not in _EXAMPLES:
        return None
    typed = [(" ".join(filter(None, (f"  agentmem-backup {name}", words))), told) for words, told in _EXAMPLES[name]]
    width = max(len(words) for words, told in typed)
    return "\n".join(["examples:", *(f"{words:{width}}  {told}".rstrip() for words, told in typed)])


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see: {self.prog} --help)")


def parser() -> argparse.ArgumentParser:
    """The command's parser, from which help and shell completion are made."""
    top = _Parser(
        prog="agentmem-backup",
        description="Back up AgentMem's four stores, prove that every backup can be restored, and restore it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"agentmem-backup {__version__}")
    shared = _Parser(add_help=False)
    for place, absent in ((top, ""), (shared, argparse.SUPPRESS)):  # after the verb, absent must not hide what stood before it
        place.add_argument(
            "--instance", metavar="NAME", default=absent, help="this AgentMem of several: reads /etc/agentmem-backup/NAME.yml"
        )
    shared.add_argument(
        "--config", metavar="FILE", type=Path, help="configuration file (default: /etc/agentmem-backup/config.yml)"
    )
    shared.add_argument("--backup-dir", metavar="DIR", help="where the sets lie (default: BACKUP_DIR, or /backups/agentmem)")
    shared.add_argument("--set", metavar="NAME=VALUE", action="append", default=[], help="any other setting (see: config --show)")
    shared.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    shared.add_argument("--quiet", action="store_true", help="print nothing but warnings and errors")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=_Parser)

    def verb(name: str, help_text: str, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        sub = verbs.add_parser(
            name,
            help=help_text,
            description=help_text[0].upper() + help_text[1:] + ".",
            epilog=_examples(name),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            parents=[shared],
        )
        sub.set_defaults(run=run)
        return sub

    _create_arguments(verb("create", "make a backup set of all stores and verify it", _create))
    _verify_arguments(verb("verify", "check that a set, or one file, is whole and unchanged", _verify))
    _restore_arguments(verb("restore", "bring stores back from a set or from single files", _restore))
    _extract_arguments(verb("extract", "take one table, collection, key pattern or file out of a set", _extract))
    verb("list", "show which sets there are, oldest first", _list)
    verb("info", "show one set in full", _info).add_argument(
        "id", metavar="ID", nargs="?", default="latest", help="a set, or latest"
    )
    check = verb("check", "look whether everything is ready for a backup; for monitors too", _check)
    check.add_argument(
        "--max-age", metavar="AGE", help="fail unless a verified set is younger, such as 26h or 2d (a number alone is seconds)"
    )
    _report_arguments(verb("report", "tell this host's history: runs, sizes, verdicts, the newest verified set", _report))
    check.add_argument(
        "--monitor", action="store_true", help="print one line and exit 0, 1, 2 or 3 as monitoring plug-ins do (Nagios, Icinga)"
    )
    notify = verb("notify", "tell those who are to be told: a test message, that a unit failed, or a sentence", _notify)
    what = notify.add_mutually_exclusive_group()
    what.add_argument("--unit", metavar="UNIT", help="tell that this systemd unit failed (the alarm unit calls it)")
    what.add_argument("--message", metavar="TEXT", help="tell this sentence (for playbooks that look at a whole fleet)")
    prune = verb("prune", "remove sets that retention no longer keeps", _prune)
    prune.add_argument("--dry-run", action="store_true", help="say what would be removed, and why each set stays or goes")
    _sync_arguments(verbs.add_parser, shared)
    audit = verb("audit", "show who did what to the backups", _audit)
    audit.add_argument("--check", action="store_true", help="find lines that were changed, removed or cut")
    config = verb("config", "show the settings and where each comes from", _config)
    config.add_argument("--show", action="store_true", help="print every setting, secrets masked (the default)")
    completion = verb("completion", "print the completion script of a shell", _completion)
    completion.add_argument("shell", choices=("bash", "zsh"), help="for which shell")
    return top


def _component_argument(sub: argparse.ArgumentParser, help_text: str) -> None:
    sub.add_argument("--component", metavar="NAME", action="append", choices=COMPONENTS, default=[], help=help_text)


def _lock_argument(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--lock-wait", metavar="SECONDS", type=float, help="how long to wait for another run (default: not at all)")


def _create_arguments(sub: argparse.ArgumentParser) -> None:
    _component_argument(sub, f"only this store, repeatable: {', '.join(COMPONENTS)}")
    sub.add_argument("--type", choices=("full",), default="full", help="kind of set")
    sub.add_argument("--fingerprint", choices=("counts", "content"), help="what to record of the data (default: counts)")
    sub.add_argument("--dry-run", action="store_true", help="look at everything and say what would be done")
    _lock_argument(sub)


def _verify_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("what", metavar="ID|latest|FILE", nargs="?", default="latest", help="a set, the newest, or one backup file")
    sub.add_argument("--depth", choices=("quick", "full"), default="full", help="quick: sizes and digests; full: walk everything")
    sub.add_argument("--acknowledge", action="store_true", help="accept that a store shrank, which makes a set suspicious")


def _restore_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "id", metavar="ID|latest", nargs="?", help="the set to restore; latest is the newest that holds all that is asked for"
    )
    sub.add_argument("--before", metavar="TIME", help="the newest verified set from before TIME, such as 2025-01-03T12:00:00Z")
    _component_argument(sub, f"only this store, repeatable: {', '.join(COMPONENTS)}")
    sub.add_argument("--db", metavar="FILE", type=Path, help="restore PostgreSQL from this file")
    sub.add_argument("--redis", metavar="FILE", type=Path, help="restore Redis from this file")
    sub.add_argument("--qdrant", metavar="FILE", type=Path, help="restore Qdrant from this file")
    sub.add_argument("--config-archive", metavar="FILE", type=Path, help="restore the configuration from this file")
    sub.add_argument(
        "--only-table",
        metavar="SCHEMA.TABLE",
        action="append",
        default=[],
        help="only the rows of this table, into the database that is there; repeatable",
    )
    sub.add_argument("--only-collection", metavar="NAME", action="append", default=[], help="only this collection, repeatable")
    sub.add_argument(
        "--collection-prefix", metavar="TEXT", default="", help="put in front of every collection's and alias's name"
    )
    sub.add_argument(
        "--accept",
        metavar="RISK",
        action="append",
        choices=RISKS,
        default=[],
        help=f"go on in spite of a problem that names this word: {', '.join(RISKS)}",
    )
    sub.add_argument("--dry-run", action="store_true", help="verify, look at the stores, print the plan; touch nothing")
    sub.add_argument("--yes", action="store_true", help="do not ask (for scripts)")
    _lock_argument(sub)


def _sync_arguments(add: Callable[..., argparse.ArgumentParser], shared: _Parser) -> None:
    help_text = "copy verified sets elsewhere, see what is where, bring one back"
    sub = add("sync", help=help_text, description=help_text[0].upper() + help_text[1:] + ".")
    actions = sub.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=_Parser)

    def action(name: str, help_text: str, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        one = actions.add_parser(name, help=help_text, description=help_text[0].upper() + help_text[1:] + ".", parents=[shared])
        one.set_defaults(run=run)
        one.add_argument("--target", metavar="NAME", action="append", default=[], help="only this target, repeatable")
        return one

    push = action("push", "send what is missing to every target, and read it back there", _sync_push)
    push.add_argument("--dry-run", action="store_true", help="say what would be sent; sends and removes nothing")
    _lock_argument(push)
    pull = action("pull", "bring a set back into the backup directory", _sync_pull)
    pull.add_argument("id", metavar="ID|latest", help="the set")
    check = action("check", "show what is where and what is missing", _sync_check)
    check.add_argument("--read-back", action="store_true", help="read every byte of every copy at the far end")
    for one in (pull, check):
        one.add_argument("--host", metavar="HOST[/INSTANCE]", default="", help="whose sets (default: this host's)")
    _lock_argument(pull)


def _extract_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("id", metavar="ID|latest", help="the set to take it from")
    group = sub.add_mutually_exclusive_group(required=True)
    group.add_argument("--table", metavar="SCHEMA.TABLE", help="one table (csv or sql)")
    group.add_argument("--collection", metavar="NAME", help="one collection (snapshot or jsonl)")
    group.add_argument("--keys", metavar="PATTERN", help="the Redis keys that match (jsonl)")
    group.add_argument("--file", metavar="PATH", help="one configuration file")
    sub.add_argument(
        "--form",
        choices=("csv", "sql", "jsonl", "snapshot", "file"),
        default="",
        help="csv or sql (table), snapshot or jsonl (collection), jsonl (keys), file; default: the first of these",
    )
    sub.add_argument("--output", metavar="FILE", type=Path, required=True, help="where to write it; must not exist yet")
    _lock_argument(sub)


def _report_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--format", choices=("html", "json", "prometheus"), default="html", help="page, data (as --json), or metrics"
    )
    sub.add_argument("--output", metavar="FILE", type=Path, help="where to write it, whole or not at all (default: print it)")
    sub.add_argument("--days", metavar="N", type=int, default=90, help="how far to look back (default: 90)")
    sub.add_argument("--max-age", metavar="AGE", default="26h", help="older than this is stale (default: 26h)")


# --- what each verb does with its arguments -------------------------------------------------------------------------


def _settings(arguments: argparse.Namespace) -> Settings:
    from .settings import Settings, instance_file, load, walk

    known = {name: option for name, option, __ in walk(Settings())}
    given: dict[str, Any] = {}
    for pair in arguments.set:
        name, separator, value = pair.partition("=")
        if not separator or name not in known:
            raise UsageError(f"--set takes NAME=VALUE with a setting's name, not {name!r} (see: agentmem-backup config --show)")
        if known[name].metadata["secret"]:
            where = known[name].metadata["env"]
            raise UsageError(
                f"{name} is a secret and must not stand on the command line: use the environment ({where}) or the file"
            )
        given[name] = value
    for attribute, name in (("backup_dir", "backup_dir"), ("fingerprint", "fingerprint"), ("lock_wait", "lock_wait_s")):
        if getattr(arguments, attribute, None) is not None:
            given[name] = getattr(arguments, attribute)
    if arguments.verb in ("create", "check") and getattr(arguments, "component", None):
        given["components"] = [name for name in COMPONENTS if name in arguments.component]
    file = arguments.config
    if arguments.instance:
        named = instance_file(arguments.instance) if file is None else None
        file = file or named
        given["instance"] = arguments.instance
    return load(file, command_line=given)


def _console(settings: Settings, arguments: argparse.Namespace, *, log: bool = True) -> Console:
    from .console import Console

    process.keep_freed_memory()
    process.look_for_cycles_less_often()
    return Console(settings, quiet=arguments.quiet or arguments.json, log=log)


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def _print_json(value: Any) -> None:
    _print(json.dumps(value, indent=1, ensure_ascii=False, default=str))


def _create(arguments: argparse.Namespace) -> int:
    from . import create, history

    settings = _settings(arguments)
    with _console(settings, arguments) as console, _explained(console, arguments):
        if arguments.dry_run:
            lines = create.plan(settings, console)
            if arguments.json:
                _print_json({"plan": lines})
            else:
                _print("\n".join(lines))
            return 0
        created = create.create(settings, console)
        if arguments.json:
            _print_json(created.as_dict())
        return 0 if created.verdict == history.VERIFIED else 3


def _verify(arguments: argparse.Namespace) -> int:
    from . import clock, history, verify, watch

    settings = _settings(arguments)
    with _console(settings, arguments, log=False) as console, _explained(console, arguments):
        if arguments.what == "latest" or clock.is_set_id(arguments.what):
            report = verify.verify_set(
                settings, console, arguments.what, depth=arguments.depth, acknowledge=arguments.acknowledge
            )
        elif "/" in arguments.what or (arguments.what and Path(arguments.what).exists()):
            with watch.watch(settings, console, "verify") as run:
                report = verify.verify_file(settings, console, Path(arguments.what), depth=arguments.depth)
                verify.told(run, report)
        else:
            clock.id_time(arguments.what)  # says what an ID looks like
            raise UsageError(f"there is no set {arguments.what}")
        if arguments.json:
            _print_json(report.as_dict())
        elif not arguments.quiet:
            _print(verify.render(report))
        return 0 if report.verdict == history.VERIFIED else 3


def _request(arguments: argparse.Namespace) -> Request:
    from . import clock
    from .components.base import RestoreOptions
    from .restore import Request

    named = {"postgresql": arguments.db, "redis": arguments.redis, "qdrant": arguments.qdrant, "config": arguments.config_archive}
    files = {name: path for name, path in named.items() if path is not None}
    if not files and not arguments.id and not arguments.before:
        raise UsageError("say what to restore: an ID, latest, --before TIME, or files (see: agentmem-backup list)")
    if arguments.id and arguments.before:
        raise UsageError("give either an ID or --before, not both")
    if arguments.id and arguments.id != "latest":
        clock.id_time(arguments.id)
    options = RestoreOptions(
        arguments.only_table, arguments.only_collection, arguments.collection_prefix, frozenset(arguments.accept)
    )
    components = arguments.component or (
        [name for name, chosen in (("postgresql", options.only_tables), ("qdrant", options.only_collections)) if chosen]
        if not files
        else []
    )
    before = clock.parse_moment(arguments.before) if arguments.before else None
    return Request(arguments.id or "", before, files, components, options)


def _restore(arguments: argparse.Namespace) -> int:
    from . import restore

    settings, request = _settings(arguments), _request(arguments)
    if not arguments.yes and not arguments.dry_run and not sys.stdin.isatty():
        raise UsageError(
            "there is no terminal to ask on: give --yes to overwrite without being asked, or --dry-run to see the plan"
        )
    with _console(settings, arguments) as console, _explained(console, arguments):
        if arguments.dry_run:
            return _show_plan(restore.plan(settings, console, request), arguments)
        restored = restore.restore(settings, console, request, lambda plan: _agreed(plan, arguments, console))
        if restored is None:
            _print("Restore cancelled: nothing was touched.")
            return 1
        if arguments.json:
            _print_json(restored.as_dict())
        if restored.sound and (failed := restored.unwell(settings)):
            console.error(f"the data is restored ({restored.proof}), but the application is not well: {'; '.join(failed)}")
            return 1
        if restored.sound:
            console.step(f"restored {restored.name} in {restored.duration_s:.1f} s: {restored.proof}")
        return 0 if restored.sound else 3


def _show_plan(plan: Plan, arguments: argparse.Namespace) -> int:
    if arguments.json:
        _print_json({"plan": plan.lines, "warnings": plan.warnings, "problems": plan.problems})
    else:
        _print("\n".join([f"Restore of {plan.name}:", *(f"  {line}" for line in plan.lines)]))
        for text in (*(f"⚠ {warning}" for warning in plan.warnings), *(f"✗ {problem}" for problem in plan.problems)):
            _print(text)
    return 1 if plan.problems else 0


def _agreed(plan: Plan, arguments: argparse.Namespace, console: Console) -> bool:
    """Show the plan and ask the guide's question; only `yes` means yes."""
    for line in (f"restore of {plan.name}:", *(f"  {line}" for line in plan.lines)):
        console.step(line)
    if arguments.yes:
        return True
    return console.ask(QUESTION) == "yes"


def _extract(arguments: argparse.Namespace) -> int:
    from . import extract

    settings = _settings(arguments)
    chosen = {"postgresql": arguments.table, "qdrant": arguments.collection, "redis": arguments.keys, "config": arguments.file}
    component, what = next((name, value) for name, value in chosen.items() if value is not None)
    with _console(settings, arguments, log=False) as console, _explained(console, arguments):
        sentence = extract.extract(settings, console, arguments.id, component, what, arguments.output.absolute(), arguments.form)
        if arguments.json:
            _print_json({"extracted": sentence, "output": str(arguments.output)})
        elif not arguments.quiet:
            _print(sentence)
    return 0


def _list(arguments: argparse.Namespace) -> int:
    from .list_sets import list_sets
    from .manifest import human_size

    rows = list_sets(_settings(arguments))
    if arguments.json:
        _print_json([row.as_dict() for row in rows])
        return 0
    if not rows:
        _print("There is no set yet: make one with agentmem-backup create")
        return 0
    lines = [f"{'ID':15}  {'TYPE':6}  {'AGE':>7}  {'SIZE':>6}  {'VERDICT':14}  COMPONENTS"]
    for row in rows:
        remark = f"  ({row.remark})" if row.remark else ""
        components = ",".join(row.components)
        lines.append(
            f"{row.id:15}  {row.type:6}  {row.age:>7}  {human_size(row.size):>6}  {row.verdict:14}  {components}{remark}"
        )
    _print("\n".join(lines))
    return 0


def _info(arguments: argparse.Namespace) -> int:
    from .components.base import named
    from .info import info
    from .manifest import human_size

    facts = info(_settings(arguments), arguments.id)
    if arguments.json:
        _print_json(facts)
        return 0
    verdict = facts["verdict"] or {"verdict": "never verified"}
    _print(f"Set {facts['id']} ({facts['type']}, {facts['age']} old) in {facts['directory']}")
    _print(f"Verdict: {verdict['verdict']}" + (f" by {verdict['by']} at {verdict['time']}" if "by" in verdict else ""))
    if facts["fault"]:
        _print(f"✗ {facts['fault']}")
    entries = facts["manifest"]["components"] if facts["manifest"] else {}
    for name, file in facts["files"].items():
        _print(f"{name}: {file['path']} {human_size(file['bytes'])}")
        entry = entries.get(name, {})
        for key in ("server", "tool", "method", "cut", "raw_bytes", "sha256"):
            if key in entry:
                _print(f"  {key}: {named(entry[key])}")
        for warning in entry.get("warnings", []):
            _print(f"  ⚠ {warning}")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from . import check, clock

    if arguments.monitor:
        return _monitor(arguments)
    settings = _settings(arguments)
    max_age = clock.parse_age(arguments.max_age) if arguments.max_age else None
    with _console(settings, arguments, log=False) as console, _explained(console, arguments):
        checked = check.check(settings, console, max_age)
        if arguments.json:
            _print_json(checked.as_dict())
        else:
            lines = [f"✓ {text}" for text in checked.good]
            lines += [f"⚠ {text}" for text in checked.warnings] + [f"✗ {text}" for text in checked.problems]
            _print(console.masked("\n".join(lines)))
    return 1 if checked.problems else 0


def _monitor(arguments: argparse.Namespace) -> int:
    """One line with perfdata, and the exit codes of https://www.monitoring-plugins.org/doc/guidelines.html."""
    from . import check, clock
    from .log import Log

    try:
        settings = _settings(arguments)
        max_age = clock.parse_age(arguments.max_age) if arguments.max_age else None
    except BackupError as error:
        _print(f"AGENTMEM BACKUP UNKNOWN - {error}".replace("|", "/"))
        return 3
    with Log(settings, write=False) as log:
        line, code = check.monitored(settings, log, max_age)
        _print(log.masked(line))
    return code


def _notify(arguments: argparse.Namespace) -> int:
    from . import notify

    if arguments.unit and not arguments.instance and arguments.config is None:
        arguments.instance = notify.instance_of(arguments.unit)
    settings = _settings(arguments)
    with _console(settings, arguments) as console, _explained(console, arguments):
        if arguments.unit:
            sent = notify.unit_failed(settings, console, arguments.unit)
        elif arguments.message is not None:
            sent = notify.message(settings, console, arguments.message)
        else:
            sent = notify.test_message(settings, console)
        if arguments.json:
            _print_json(sent.as_dict())
        elif sent.remark and not arguments.quiet:
            _print(sent.remark)
        for label, said in sent.outcome.items():
            if said:
                console.error(f"{label}: {said}")
            else:
                console.step(f"✓ {label}: sent")
        failed = len(sent.outcome) - len(sent.arrived)
        # An alarm that arrived by one way has arrived; a test is of every way.
        an_alarm = bool(arguments.unit or arguments.message)
        return int(bool(sent.outcome) and (not sent.arrived if an_alarm else failed > 0))


def _prune(arguments: argparse.Namespace) -> int:
    from . import audit, backup_set, lock, prune, watch

    settings = _settings(arguments)
    with _console(settings, arguments) as console, _explained(console, arguments):
        if arguments.dry_run:
            directory = backup_set.directory(settings.backup_dir)
            plan = prune.plan(directory, prune.Rule.of(settings))
            if arguments.json:
                _print_json({"remove": [one.id for one in plan.doomed], "reasons": plan.reasons, "held": plan.held})
            else:
                _print("\n".join(f"{set_id}: {reason}" for set_id, reason in plan.reasons.items()) or "There is no set.")
            return 0
        with watch.watch(settings, console, "prune") as run:
            directory = backup_set.directory(settings.backup_dir)
            with lock.hold(directory / backup_set.STATE / "lock", "prune", settings.lock_wait_s):
                removed = prune.prune(directory, prune.Rule.of(settings), console)
                audit.record(directory, console, "prune", "done", removed=removed)
            if not removed:
                console.step("nothing was removed (why each set stays: agentmem-backup prune --dry-run)")
            run.summary = f"{len(removed)} sets removed"
        if arguments.json:
            _print_json({"removed": removed})
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from . import clock, fleet, metrics, page, report

    settings, max_age = _settings(arguments), clock.parse_age(arguments.max_age)
    with _console(settings, arguments, log=False) as console, _explained(console, arguments):
        found = report.report(settings, arguments.days, max_age)
        if arguments.format == "prometheus" and not arguments.json:
            text = metrics.render(settings).rstrip("\n")
        elif arguments.json or arguments.format == "json":
            text = json.dumps(found, indent=1, ensure_ascii=False)
        else:
            text = page.html(fleet.join({found["host"]: found}), f"Backups of {found['host']}")
        if arguments.output is None:
            _print(text)
            return 0
        report.write(arguments.output.absolute(), f"{text}\n")
        if not arguments.quiet:
            _print(f"written to {arguments.output}: {found['host']} is {found['state']}")
    return 0


def _sync_push(arguments: argparse.Namespace) -> int:
    from . import sync_push
    from .manifest import human_size

    settings = _settings(arguments)
    with _console(settings, arguments, log=not arguments.dry_run) as console, _explained(console, arguments):
        pushed = (sync_push.plan if arguments.dry_run else sync_push.push)(settings, console, arguments.target)
        if arguments.json:
            _print_json(pushed.as_dict())
        for one in pushed.outcomes:
            if arguments.dry_run:
                console.step(
                    f"target {one.target}: would send {len(one.sent)} sets, {human_size(one.sent_bytes)}, to {one.where}"
                )
            elif not one.faults and not one.sent:
                console.step(f"target {one.target}: all {len(one.whole)} sets are at {one.where}")
        for set_id, reason in pushed.skipped.items():
            console.step(f"set {set_id} stays here: {reason}")
        for problem in pushed.problems:
            console.error(problem)
    return 1 if pushed.problems else 0


def _sync_pull(arguments: argparse.Namespace) -> int:
    from . import sync_pull

    settings = _settings(arguments)
    with _console(settings, arguments) as console, _explained(console, arguments):
        pulled = sync_pull.pull(settings, console, arguments.id, arguments.target, host=arguments.host)
        if arguments.json:
            _print_json(pulled.as_dict())
    return 0


def _sync_check(arguments: argparse.Namespace) -> int:
    from . import sync_check

    settings = _settings(arguments)
    with _console(settings, arguments, log=False) as console, _explained(console, arguments):
        checked = sync_check.check(settings, console, arguments.target, host=arguments.host, read_back=arguments.read_back)
        if arguments.json:
            _print_json(checked.as_dict())
        else:
            _print(console.masked("\n".join(_where_table(checked))))
            for problem in checked.problems:
                console.error(problem)
    return 3 if checked.damaged else 1 if checked.problems else 0


def _where_table(checked: Checked) -> list[str]:
    """Set by set, what is where; a copy that was never read back says so."""
    names = list(dict.fromkeys(name for row in checked.sets.values() for name in row["targets"]))
    lines = [["ID", "HERE", *(name.upper() for name in names)]]
    for set_id, row in checked.sets.items():
        states = [row["targets"][name] for name in names]
        told = [one["state"] if one["state"] != "whole" or one["read_back"] else "whole, not read back" for one in states]
        lines.append([set_id, row["here"] or "-", *told])
    if not checked.sets:
        return [f"There is no set of {checked.place}, neither here nor at any target that was reached."]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return ["  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def _audit(arguments: argparse.Namespace) -> int:
    from . import audit, backup_set, check

    settings = _settings(arguments)
    directory = backup_set.directory(settings.backup_dir, write=False)
    if arguments.check:
        faults = check.audit_faults(settings)
        if arguments.json:
            _print_json({"whole": not faults, "faults": faults})
        else:
            _print("\n".join(f"✗ {fault}" for fault in faults) or "✓ the audit log is whole")
        return 3 if faults else 0
    log, __ = audit.paths(directory)
    if log.exists():
        sys.stdout.write(log.read_text(errors="replace"))
    return 0


def _config(arguments: argparse.Namespace) -> int:
    from .settings import shown

    rows = shown(_settings(arguments))
    if arguments.json:
        _print_json({name: {"value": value, "source": source} for name, value, source in rows})
        return 0
    width = max(len(name) for name, __, __ in rows)
    for name, value, source in rows:
        _print(f"{name:{width}}  {value or '(empty)'}  [{source}]")
    return 0


def _completion(arguments: argparse.Namespace) -> int:
    from .libraries import require

    require("shtab")
    import shtab

    _print(shtab.complete(parser(), arguments.shell))
    return 0


# --- running --------------------------------------------------------------------------------------------------------


class _explained:
    """Inside the block a BackupError becomes a line in the log; the exception goes on to `main` for its exit code."""

    def __init__(self, console: Console, arguments: argparse.Namespace):
        self._console = console
        self._json = arguments.json

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, BaseException):
            cause = error.__cause__ if isinstance(error, BackupError) else error
            if isinstance(cause, Exception) and not isinstance(cause, (BackupError, OSError)):
                self._console.trace(cause)
        if isinstance(error, BackupError) and not getattr(error, "told", False):
            problems = getattr(error, "problems", None)
            if problems and len(problems) > 1:
                self._console.error(str(error).partition(": ")[0] + ":")
                for problem in problems:
                    self._console.error(f"  {problem}")
            else:
                self._console.error(str(error))
            if self._json:
                _print_json({"error": self._console.masked(str(error)), "exit_code": error.exit_code})
            error.told = True  # type: ignore[attr-defined]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with `argv` (default: the process's own) and return its exit code. Never raises."""
    _open_streams()
    process.stop_on_signals()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a ✓ that a Latin-1 terminal does not know must not end a backup
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _run(argv)
        sys.stdout.flush()
        return code
    except BackupError as error:
        if not getattr(error, "told", False):
            sys.stderr.write(f"agentmem-backup: {error}\n")
        return error.exit_code
    except BrokenPipeError:
        _give_up_output()
        sys.stderr.close()
        return 1
    except OSError as error:
        if not error.filename:
            _give_up_output()
        where = f"using {error.filename}" if error.filename else "writing the output"
        sys.stderr.write(f"agentmem-backup: {process.os_sentence(error, where)}\n")
        return 1
    except Exception as error:
        from .errors import one_line

        sys.stderr.write(f"agentmem-backup: unexpected {type(error).__name__}: {one_line(error)} (please report this)\n")
        return 1


def _open_streams() -> None:
    """Open the standard streams that we were started without (`>&-` in a crontab): the next file that is opened would take
    their place, and what a program of ours says would be written into it."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free: this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8", closefd=False))


def _run(argv: Sequence[str] | None) -> int:
    try:
        arguments = parser().parse_args(argv)
    except SystemExit as done:  # --help and --version
        return int(done.code or 0)
    return int(arguments.run(arguments))


def _give_up_output() -> None:
    """Python may try once more at its end to write what still waits, and then says so itself and exits with 120 (Py_Exit)."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    raise SystemExit(main())
