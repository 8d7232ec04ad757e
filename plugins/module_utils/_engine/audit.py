# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who did what to the backups, when, and how it ended: append-only JSON lines, each naming the digest of the one before.

The head (sequence number and digest of the newest line) stands in `audit.head` and in every set's manifest, so that a
changed, missing or cut line is found even where the whole file was written anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import hashlib
import json
import os
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from . import clock
from .journal import ends_torn, sync_directory, write_all
from .process import os_sentence
from .progress import Reporter

NOTHING = "0" * 64
"""The digest that the first line names as its predecessor's."""


def paths(backup_dir: Path) -> tuple[Path, Path]:
    """The audit log and its head in a backup directory."""
    return backup_dir / ".history" / "audit.jsonl", backup_dir / ".history" / "audit.head"


@contextlib.contextmanager
def _locked(log: Path) -> Iterator[int]:
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _last_line(descriptor: int) -> bytes:
    size = os.fstat(descriptor).st_size
    kept = b""
    while size > 0 and kept.count(b"\n") < 2:
        step = min(65536, size)
        size -= step
        kept = os.pread(descriptor, step, size) + kept
    lines = [line for line in kept.split(b"\n") if line]
    return lines[-1] if lines else b""


def _next_sequence(descriptor: int, last: bytes) -> int:
    if not last:
        return 1
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return int(json.loads(last)["seq"]) + 1
    # The line before is damaged; the check says so, and the log goes on, each damaged line counted as one.
    lines = [line for line in os.pread(descriptor, os.fstat(descriptor).st_size, 0).split(b"\n") if line]
    for behind, line in enumerate(reversed(lines)):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return int(json.loads(line)["seq"]) + behind + 1
    return len(lines) + 1


def _write_line(descriptor: int, line: bytes) -> None:
    """Write a whole line or nothing: a full disk must not break the chain."""
    size = os.fstat(descriptor).st_size
    try:
        write_all(descriptor, line)
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, size)
        raise


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return str(os.getuid())


def append(backup_dir: Path, verb: str, result: str, **facts: Any) -> dict[str, Any]:
    """Add one line: `verb` (create, restore, …) ended with `result` (done, failed, …). Returns the new head. Raises OSError."""
    log, head_path = paths(backup_dir)
    with _locked(log) as descriptor:
        last = _last_line(descriptor)
        entry = {
            "seq": _next_sequence(descriptor, last),
            "time": clock.iso(clock.now()),
            "user": _user(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "verb": verb,
            "result": result,
            **facts,
            "previous": _digest(last) if last else NOTHING,
        }
        line = json.dumps(entry, sort_keys=True, ensure_ascii=False).encode("utf-8", "backslashreplace")  # as JSON escapes them
        # A line that a kill tore off must not swallow this one.
        _write_line(descriptor, (b"\n" if ends_torn(descriptor) else b"") + line + b"\n")
        head = {"seq": entry["seq"], "digest": _digest(line)}
        temporary = head_path.with_suffix(".new")
        temporary.write_text(json.dumps(head))
        temporary.chmod(0o600)
        temporary.replace(head_path)
        sync_directory(head_path.parent)
    return head


def record(backup_dir: Path, reporter: Reporter, verb: str, result: str, **facts: Any) -> None:
    """`append`, where the run must go on without it: on a full disk the hole in the log is told, and sets can be removed."""
    try:
        append(backup_dir, verb, result, **facts)
    except OSError as error:
        reporter.warn(os_sentence(error, "writing the audit log"))


def entries(backup_dir: Path) -> Iterator[dict[str, Any]]:
    """The lines of the log, oldest first; one that cannot be read is passed over, for `check` tells of it. Raises OSError."""
    log, __ = paths(backup_dir)
    for line in log.read_bytes().split(b"\n") if log.exists() else []:
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict):
                yield entry


def head(backup_dir: Path) -> dict[str, Any]:
    """Sequence number and digest of the newest line; `seq` 0 where nothing was recorded yet."""
    log, __ = paths(backup_dir)
    if not log.exists():
        return {"seq": 0, "digest": NOTHING}
    with _locked(log) as descriptor:
        last = _last_line(descriptor)
    try:
        return {"seq": int(json.loads(last)["seq"]), "digest": _digest(last)}
    except (ValueError, KeyError, TypeError):
        return {"seq": 0, "digest": _digest(last) if last else NOTHING}


def check(backup_dir: Path, heads: Iterable[tuple[str, dict[str, Any]]] = ()) -> list[str]:
    """Every fault of the log, as sentences; an empty list means that it is whole.

    `heads` are (where it stands, head) pairs, from manifests, that the log must contain.
    """
    log, head_path = paths(backup_dir)
    heads = list(heads)
    if not log.exists():
        known = [where for where, one in heads if one.get("seq", 0) > 0]
        if head_path.exists() or known:
            return [f"the audit log {log} is missing, although {', '.join(known) or head_path} knows of its lines"]
        return []
    faults: list[str] = []
    digests: dict[int, str] = {}
    previous, expected = NOTHING, 1
    for number, line in enumerate((piece for piece in log.read_bytes().split(b"\n") if piece), start=1):
        try:
            entry = json.loads(line)
            sequence, names = int(entry["seq"]), str(entry["previous"])
        except (ValueError, KeyError, TypeError):
            faults.append(f"line {number} of {log} cannot be read: it was cut or changed")
            previous, expected = _digest(line), expected + 1
            continue
        if sequence != expected:
            faults.append(
                f"line {number} of {log} is numbered {sequence} where {expected} should stand: lines are missing or were added"
            )
        elif names != previous:
            faults.append(f"line {number} of {log} does not follow from the line before: one of them was changed")
        digests[sequence] = _digest(line)
        previous, expected = digests[sequence], sequence + 1
    try:
        heads.append((str(head_path), json.loads(head_path.read_bytes())))
    except FileNotFoundError:
        if expected > 2:  # the very first line is written before there is a head
            faults.append(f"{head_path} is missing: lines may have been cut from the end of {log}")
    except (OSError, ValueError):
        faults.append(f"{head_path} cannot be read: it was cut or changed")
    for where, one in heads:
        faults += _head_faults(log, digests, where, one)
    return faults


def _head_faults(log: Path, digests: dict[int, str], where: str, one: Any) -> list[str]:
    number = one.get("seq") if isinstance(one, dict) else None
    if not isinstance(number, int):
        return [f"{where} names no line of {log}: it was cut or changed"]
    if number == 0 or digests.get(number) == one.get("digest"):
        return []
    fault = "is missing from" if number not in digests else "was changed in"
    return [f"line {number}, which {where} knows, {fault} {log}"]
