# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs are watched: their exit status is looked at, their secrets stay out of sight, and they die with us."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from agentmem_backup import process
from agentmem_backup.errors import BackupError, Cancelled, ToolError
from agentmem_backup.process import Child

from tests.support.servers import wait_until


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int) -> None:
    wait_until(lambda: not alive(pid), 20, lambda: None)


@pytest.fixture(autouse=True)
def nothing_stays_stopped() -> Iterator[None]:
    yield
    process.resume()


# --- exit status and what was said


def test_output_is_returned() -> None:
    assert process.run(["sh", "-c", "printf 'größe\\n'; echo noise >&2"]) == "größe\n"


def test_a_failure_becomes_a_sentence_with_what_the_program_said() -> None:
    with pytest.raises(ToolError, match=r"^sh failed with exit status 3: first line second line$") as caught:
        process.run(["sh", "-c", "echo first line >&2; echo '  second line' >&2; exit 3"])
    assert (caught.value.tool, caught.value.returncode) == ("sh", 3)
    assert caught.value.stderr == "first line\n  second line"


def test_a_signal_is_told_by_its_name() -> None:
    with pytest.raises(ToolError, match="was ended by SIGSEGV") as caught:
        process.run(["sh", "-c", "kill -SEGV $$"])
    assert caught.value.returncode == -signal.SIGSEGV


FED = """
import os, subprocess
from agentmem_backup.process import Child
with Child(["cat"], stdin=subprocess.PIPE, fed=True) as child:
    print(os.getpriority(os.PRIO_PROCESS, 0), os.getpriority(os.PRIO_PROCESS, child.process.pid))
"""


@pytest.mark.parametrize("nice", [0, 15])
def test_a_program_that_is_fed_by_a_server_gives_way_to_it(nice: int) -> None:
    said = process.run(["nice", f"-n{nice}", sys.executable, "-c", FED])
    own, fed = map(int, said.split())
    assert fed == max(own, 10)


def first_write(path: Path, *, buffered: bool) -> int:
    """How many bytes of a file a program that writes by C's stdio gives the kernel at once, its output being no terminal."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # each write stays a message of its own
    with ours, theirs, Child(["expand", str(path)], stdout=theirs.fileno(), buffered=buffered) as child:
        size = len(ours.recv(1 << 20))
        theirs.close()
        while ours.recv(1 << 20):
            pass
        child.wait()
    return size


def test_a_program_that_writes_much_may_gather_what_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lines"
    path.write_text("".join(f"{number:05}\n" for number in range(8000)))
    assert first_write(path, buffered=True) == 48_000
    assert first_write(path, buffered=False) < 48_000
    monkeypatch.setattr(process, "_buffering", lambda: None)  # a machine without stdbuf
    assert first_write(path, buffered=True) < 48_000


def test_an_accepted_status_is_no_failure() -> None:
    assert process.run(["sh", "-c", "echo out; exit 4"], accept=(0, 4)) == "out\n"


def test_only_the_end_of_a_long_complaint_is_kept() -> None:
    script = "import sys; sys.stderr.write('x' * 10_000_000 + ' the end'); sys.exit(1)"
    with pytest.raises(ToolError) as caught:
        process.run([sys.executable, "-c", script])
    assert caught.value.stderr.endswith(" the end")
    assert len(caught.value.stderr) <= 64 * 1024
    assert len(str(caught.value)) < 500


def test_a_program_that_is_missing_is_told_with_its_package() -> None:
    with pytest.raises(BackupError, match=r"pg_dumpling is not installed.*apt-get install postgresql-client"):
        process.find("pg_dumpling", "postgresql-client")
    with pytest.raises(BackupError, match="no-such-program"):
        process.run(["/no-such-program"])


def test_a_named_directory_comes_before_the_path(tmp_path: Path) -> None:
    own = tmp_path / "sh"
    own.write_text("#!/bin/sh\n")
    assert process.find("sh", "dash", [tmp_path]) == shutil.which("sh")
    own.chmod(0o755)
    assert process.find("sh", "dash", [tmp_path]) == str(own)


def test_a_program_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with pytest.raises(ToolError, match=r"did not end within 0\.5 s and was stopped"):
        process.run(["sh", "-c", f"echo $$ > {pid}; exec sleep 1000"], timeout_s=0.5)
    gone(int(pid.read_text()))


def test_input_and_output_beyond_a_pipes_buffer_do_not_wait_for_each_other() -> None:
    content = os.urandom(500_000).hex().encode()
    assert process.run(["cat"], input_bytes=content).encode() == content


def test_a_program_that_does_not_read_its_input_does_not_hang_us() -> None:
    assert process.run(["true"], input_bytes=bytes(5_000_000)) == ""


def test_messages_are_in_english_whatever_the_locale_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("LANGUAGE", "de")
    assert process.run(["sh", "-c", "echo $LC_ALL $LANGUAGE"]) == "C.UTF-8 C\n"


def test_a_grandchild_that_keeps_the_pipe_does_not_hang_us(tmp_path: Path) -> None:
    """A server that goes into the background keeps its parent's standard error."""
    pid = tmp_path / "pid"
    child = Child(["sh", "-c", f"sleep 1000 & echo $! > {pid}; echo started >&2"], stdout=subprocess.DEVNULL)
    finished = threading.Event()

    def wait() -> None:
        child.wait()
        finished.set()

    threading.Thread(target=wait, daemon=True).start()
    try:
        assert finished.wait(60)
        assert alive(int(pid.read_text()))
        assert child.stderr == "started"
    finally:
        os.kill(int(pid.read_text()), signal.SIGKILL)


# --- the block and the end of a run


def test_leaving_the_block_ends_the_program() -> None:
    with pytest.raises(RuntimeError), Child(["sleep", "1000"]) as child:
        raise RuntimeError
    assert not alive(child.process.pid)


def test_stopping_ends_what_runs_and_starts_nothing_new() -> None:
    with Child(["sleep", "1000"]) as child:
        process.stop_all()
        with pytest.raises(Cancelled):
            child.wait()
    with pytest.raises(Cancelled):
        process.run(["true"])
    process.resume()
    assert process.run(["true"]) == ""


def test_no_descriptor_is_left_open() -> None:
    process.run(["true"])
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for __ in range(5):
        process.run(["cat"], input_bytes=b"x")
        with pytest.raises(ToolError):
            process.run(["false"])
        with Child(["sleep", "1000"]):
            pass
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


# --- secrets


def test_a_secret_in_the_environment_shows_in_no_argument_and_no_error() -> None:
    secret = "pa ss'w\"or$d ü"
    with Child(["sh", "-c", 'test "$PGPASSWORD" = "$EXPECTED" && cat'], env={"PGPASSWORD": secret, "EXPECTED": secret},
               stdin=subprocess.PIPE) as child:  # fmt: skip
        lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
        assert not any(secret.encode() in line for line in lines)
        child.stdin.close()
        assert child.wait() == 0
    assert "PGPASSWORD" not in os.environ
    with pytest.raises(ToolError) as caught:
        process.run(["sh", "-c", "exit 1"], env={"PGPASSWORD": secret})
    assert secret not in str(caught.value) + repr(caught.value)


def test_a_program_runs_as_the_user_it_is_given(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may run programs as others")
    with Child(["sh", "-c", "id -u; id -g; id -G"], user=(65534, 65534)) as child:
        said = child.stdout.read()
        child.wait()
    assert said.split() == [b"65534"] * 3


# --- children and their parent

PARENT = """
import subprocess, sys
from pathlib import Path
from agentmem_backup import lock, process
with lock.hold(Path(sys.argv[1]), "create"):
    process._leash.cache_clear()
    if sys.argv[2] == "unleashed":
        process._leash = tuple
    child = process.Child(["sleep", "1000"])
    print(child.process.pid, flush=True)
    child.wait()
"""


def parent_with_child(lock_path: Path, how: str) -> tuple[subprocess.Popen[str], int]:
    words = [sys.executable, "-c", PARENT, str(lock_path), how]
    parent = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    return parent, int(parent.stdout.readline())


def test_a_child_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    """Parent killed: its lock is free at once while `pg_restore` still writes (field notes)."""
    parent, child = parent_with_child(tmp_path / ".state" / "lock", "leashed")
    wait_until(lambda: Path(f"/proc/{child}/comm").read_text() == "sleep\n", 20, lambda: None)
    parent.kill()
    parent.wait()
    gone(child)


def test_a_child_that_outlives_its_parent_keeps_the_lock(tmp_path: Path) -> None:
    from agentmem_backup import lock
    from agentmem_backup.errors import LockedError

    path = tmp_path / ".state" / "lock"
    parent, child = parent_with_child(path, "unleashed")
    parent.kill()
    parent.wait()
    assert alive(child)
    with pytest.raises(LockedError), lock.hold(path, "restore"):
        pass
    os.kill(child, signal.SIGKILL)
    gone(child)
    with lock.hold(path, "restore"):
        pass


# --- sentences for errors of the system


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EACCES, "permission denied: run as"),
        (errno.EROFS, "read-only"),
        (errno.ENOENT, "no such file"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_an_error_of_the_system_becomes_a_sentence(number: int, words: str) -> None:
    def fail() -> None:
        raise OSError(number, os.strerror(number))

    with pytest.raises(BackupError, match=f"^writing /x failed: .*{words}"):
        process.guarded(fail, "writing /x")
    assert process.guarded(lambda: 5, "counting") == 5


ASKED = """
import ctypes, functools, operator, select, signal, sys
from agentmem_backup import process
from agentmem_backup.errors import Cancelled

really = select.select
interrupt = functools.partial(ctypes.CDLL(None)["raise"], signal.SIGINT)

def interrupted(*waited):
    # Of two calls that map makes Python runs no handler between them: it only notes that a signal came.
    return list(map(operator.methodcaller("__call__"), (interrupt, functools.partial(really, *waited))))[1]

select.select = interrupted
process.stop_on_signals()
try:
    process.wait_for_line(sys.stdin)
except Cancelled as error:
    print(error)
"""


def test_a_signal_that_comes_just_before_the_wait_for_an_answer_ends_it() -> None:
    with subprocess.Popen([sys.executable, "-c", ASKED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as asked:
        try:
            assert asked.wait(20) == 0
        finally:
            asked.kill()
        assert asked.stdout is not None
        assert asked.stdout.read() == "stopped by SIGINT\n"


# --- memory

HOLES = """
from pathlib import Path
from agentmem_backup import process
def held():
    return next(int(line.split()[1]) for line in Path("/proc/self/smaps_rollup").read_text().splitlines() if "Pss_Anon" in line)
process.keep_freed_memory()
kept, freed = [], []
for number in range(400):
    freed.append(b"x" * 100_000)
    kept.append(b"y" * 1_000)
del freed
before = held()
process.give_freed_memory_back()
print(before, held())
"""


def test_holes_between_blocks_go_back_to_the_kernel() -> None:
    """Without being told glibc keeps them, and what does not fit into them makes the process grow."""
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before - after > 30_000, f"{before} kB were held, and {after} kB afterwards"
