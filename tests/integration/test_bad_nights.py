# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What somebody meets at three in the morning: disks that are full or going, servers that hang, a run that is broken off."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from agentmem_backup import check, create, process
from agentmem_backup.components import qdrant, redis
from agentmem_backup.errors import BackupError, Cancelled
from agentmem_backup.progress import Reporter
from agentmem_backup.settings import QdrantSettings, load

from tests.support import command, compare
from tests.support.disks import can_mount, fill, read_only, small_disk
from tests.support.servers import Stores, wait_until

pytestmark = pytest.mark.timeout(300)
CONFIG = ("--component", "config")


@pytest.fixture
def disk(stores: Stores, tmp_path: Path) -> Iterator[Path]:
    """The backup directory, on a small disk of its own."""
    if not can_mount(tmp_path / "probe"):
        pytest.skip("this machine does not let us mount a small disk")
    with small_disk(stores.backup_dir, 16):
        yield stores.backup_dir


def sets(stores: Stores) -> list[str]:
    return [row["id"] for row in json.loads(command.good(stores, "list", "--json").stdout)]


def test_a_full_disk_is_pruned(stores: Stores, disk: Path) -> None:
    """The advice of every message on a full disk, which must not need room itself."""
    old = command.create(stores, *CONFIG)
    second = command.create(stores, *CONFIG)
    newest = command.create(stores, *CONFIG)
    fill(disk / "ballast")
    refused = command.run(stores, "create", *CONFIG)
    assert refused.returncode == 1
    assert "prune old sets" in refused.stderr
    assert command.run(stores, "prune").returncode == 0  # nothing is old enough
    assert sets(stores) == [old["id"], second["id"], newest["id"]]
    done = command.good(stores, "prune", "--set", "retention=tiers", "--set", "keep_weekly=0", "--set", "keep_monthly=0")
    assert sets(stores) == [newest["id"]]
    assert done.stdout.count("removed set") == 2
    assert list((disk / ".staging").iterdir()) == []
    (disk / "ballast").unlink()
    assert command.good(stores, "verify", newest["id"]).stdout.count("PASSED") == 1


def test_what_is_on_a_disk_that_went_read_only_can_be_taken_from_it(stores: Stores, disk: Path, tmp_path: Path) -> None:
    made = command.create(stores)
    read_only(disk)
    refused = command.run(stores, "create")
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"✗ the backup directory {disk} lies on a read-only file system: ")
    assert "PASSED" in command.good(stores, "verify", "latest").stdout
    for number, words in enumerate((("--table", "memories"), ("--collection", "memories"), ("--keys", "*"), ("--file", ".env"))):
        target = tmp_path / f"out{number}"
        command.good(stores, "extract", made["id"], *words, "--output", str(target))
        assert target.stat().st_size > 0
    assert (tmp_path / "out3").read_bytes() == (stores.config_dir / ".env").read_bytes()
    done = command.run(stores, "restore", "latest", "--yes", *command.QUIET)
    assert done.returncode == 2
    assert "may be copied" in done.stderr
    copied = tmp_path / "copied"
    copied.mkdir(mode=0o700)
    subprocess.run(["cp", "-a", *(str(path) for path in disk.glob(f"*_{made['id']}.*")), str(copied)], check=True)
    before = compare.capture(stores)
    stores.destroy()
    assert command.restore(stores, "latest", "--backup-dir", str(copied))["equal"]
    assert compare.differences(before, compare.capture(stores)) == []


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A server that hangs: its kernel takes connections, and nobody answers."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_servers_that_hang_are_told(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    if stores.qdrant.kind == "url":
        pytest.skip("that Qdrant is not ours to stop")
    monkeypatch.setattr(qdrant, "_FIRST_S", 1.0)
    monkeypatch.setattr(redis, "_FIRST_S", 1.0)
    with stopped(stores.redis.pid), stopped(stores.qdrant.pid):
        found = check.check(load(environment=stores.environment()), Reporter())
    told = "\n".join(found.problems)
    assert "redis: Redis at" in told
    assert "does not answer (the first questions): Timeout" in told
    assert "takes connections and does not answer within 1 s (greeting it)" in told
    assert not check.check(load(environment=stores.environment()), Reporter()).problems


def test_a_redis_that_hangs_while_it_is_backed_up_ends_the_run(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis, "_ANSWER_S", 1.0)
    settings = load(environment=stores.environment())
    hook = stores.backup_dir.parent / "hook"
    hook.write_text(f"#!/bin/sh\nkill -STOP {stores.redis.pid}\n")
    hook.chmod(0o755)
    settings.hooks.before = [str(hook)]
    try:
        with pytest.raises(BackupError, match=r"^redis: Redis at .* does not answer \(the cut\): Timeout"):
            create.create(settings, Reporter())
    finally:
        os.kill(stores.redis.pid, signal.SIGCONT)
    assert sets(stores) == []
    assert list((stores.backup_dir / ".staging").iterdir()) == []


def test_a_run_that_is_stopped_waits_for_no_answer_of_a_qdrant_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qdrant, "_QUESTION_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        node = qdrant.Node(f"http://127.0.0.1:{silent.getsockname()[1]}", QdrantSettings(timeout_s=30))
        outcome: list[BaseException] = []

        def ask() -> None:
            try:
                node.info("memories")
            except BaseException as error:
                outcome.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        connection, __ = silent.accept()
        with connection:
            assert connection.recv(65536).startswith(b"GET /collections/memories ")
            process.stop_all()
            try:
                thread.join()
            finally:
                process.resume()
        node.close()
    assert isinstance(outcome[0], Cancelled)


class Terminal:
    """A command on a terminal of so many columns."""

    def __init__(self, stores: Stores, columns: int, *words: str):
        self._controller, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        environment = {**command.environment(stores), "TERM": "xterm"}
        environment.pop("COLUMNS", None)
        self._child = subprocess.Popen(
            ["setsid", "--ctty", "--wait", str(command.BIN / words[0]), *words[1:]],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env=environment,
        )
        os.close(terminal)
        self.shown = ""

    def read(self, until: str = "") -> str:
        """Everything shown so far, up to what is waited for or the end."""
        while not until or until not in self.shown:
            assert select.select([self._controller], [], [], 120)[0], self.shown
            try:
                piece = os.read(self._controller, 65536)
            except OSError:  # the other end is closed
                piece = b""
            if not piece:
                break
            self.shown += piece.decode(errors="replace")
        return self.shown

    def press(self, keys: bytes) -> None:
        os.write(self._controller, keys)

    def end(self) -> int:
        self.read()
        os.close(self._controller)
        return self._child.wait(60)


def test_a_question_that_is_broken_off_has_touched_nothing(stores: Stores) -> None:
    command.create(stores)
    before = compare.capture(stores)
    terminal = Terminal(stores, 80, "restore.sh", "--all", "latest")
    terminal.read("(yes/no): ")
    terminal.press(b"\x03")
    assert terminal.end() == 1
    assert "✗ stopped by SIGINT: nothing was touched" in terminal.shown
    assert compare.differences(before, compare.capture(stores)) == []


def test_a_backup_that_is_broken_off_says_that_there_is_no_set(stores: Stores, tmp_path: Path) -> None:
    # Redis answers the first questions and hangs then, so that the run is in the middle of its cuts.
    gate = tmp_path / "gate"
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\nkill -STOP {stores.redis.pid}\ntouch {gate}\n")
    hook.chmod(0o755)
    terminal = Terminal(stores, 80, "agentmem-backup", "create", "--set", f"hooks.before={hook}")
    try:
        wait_until(gate.exists, 60, lambda: None)
        terminal.read("backing up")
        terminal.press(b"\x03")
        terminal.press(b"\x03")  # and again, as people do
    finally:
        os.kill(stores.redis.pid, signal.SIGCONT)
    assert terminal.end() == 1
    assert "✗ stopped by SIGINT: no set was made" in terminal.shown
    assert sets(stores) == []
    assert list((stores.backup_dir / ".staging").iterdir()) == []


def test_bars_fit_a_narrow_terminal(stores: Stores) -> None:
    terminal = Terminal(stores, 40, "backup.sh")
    assert terminal.end() == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.shown)
    bars = [line for line in re.split(r"[\r\n]+", plain) if "━" in line]
    assert bars
    for line in bars:
        assert re.fullmatch(r" *(postgresql|redis|qdrant|config) [━╸╺ ]+ +\d+%", line.split("verified")[-1].rstrip()), line


def test_the_newest_set_of_everything_is_what_latest_means(stores: Stores) -> None:
    before = compare.capture(stores)
    whole = command.create(stores)
    part = command.create(stores, *CONFIG)
    plan = command.good(stores, "restore", "latest", "--dry-run").stdout
    assert f"Restore of {whole['id']}:" in plan
    assert f"newer sets hold only some of the stores: {part['id']}" in plan
    stores.destroy()
    assert command.restore(stores, "--before", part["id"])["restored"] == whole["id"]
    assert compare.differences(before, compare.capture(stores)) == []
    assert f"Restore of {part['id']}:" in command.good(stores, "restore", "latest", *CONFIG, "--dry-run").stdout
    assert (
        f"Restore of {part['id']}:" in command.good(stores, "restore", "latest", "--set", "components=config", "--dry-run").stdout
    )


def test_wrong_words_get_one_line(stores: Stores) -> None:
    command.create(stores, *CONFIG)
    for program, words, says in (
        ("agentmem-backup", ("restore", "latest", "--yes", "--accept", "everything"), "invalid choice: 'everything'"),
        ("verify-backup.sh", ("",), "'' is not the ID of a set"),
        ("verify-backup.sh", (), "the following arguments are required: ID|FILE"),
        ("restore.sh", (), "say what to restore: --all ID, or --db"),
        ("restore.sh", ("--all",), "expected one argument"),
        ("backup.sh", ("--wrong",), "unrecognized arguments: --wrong"),
        ("agentmem-backup", (), "the following arguments are required: VERB"),
        ("agentmem-backup", ("extract", "latest", "--file", "envv", "--output", "/nonexistent/x"), "such as .env"),
    ):
        done = command.run(stores, *words, program=program)
        assert done.returncode == 2
        assert says in done.stderr
        assert len(done.stderr.splitlines()) == 1
