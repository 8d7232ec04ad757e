# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs that the engine starts: found by name, watched, and never outliving what they serve.

Each has its own return code, looked at; what it says on stderr is kept (the last 64 KiB) and becomes the sentence when
it fails. Secrets reach a program by environment, file or descriptor, never by argv.

A child dies with us (`setpriv --pdeathsig`), and inherits the lock of the backup directory, so that a directory is
never unlocked while something still writes for it.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import select
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Any, NoReturn, TextIO

from .errors import BackupError, Cancelled, ToolError, one_line

_STDERR_KEPT = 64 * 1024
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h
_STOPPERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_GIVING_WAY = 10  # nice(1)'s own step
_GIVEN_BACK_EVERY_S = 0.1
_given_back_s = 0.0  # time.monotonic() of the last time
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_inherited: set[int] = set()
_running: set[Child] = set()
_guard = threading.Lock()
_stopping = threading.Event()


@contextlib.contextmanager
def inheriting(descriptor: int) -> Iterator[None]:
    """Programs started inside the block inherit `descriptor` (the lock)."""
    _inherited.add(descriptor)
    try:
        yield
    finally:
        _inherited.discard(descriptor)


def find(tool: str, package: str, directories: Sequence[Path] = ()) -> str:
    """The path of `tool`: in `directories`, else on the PATH. Raises BackupError that names the Debian package."""
    for directory in directories:
        if os.access(directory / tool, os.X_OK):
            return str(directory / tool)
    found = shutil.which(tool)
    if found is None:
        raise BackupError(f"the program {tool} is not installed: install it (Debian: apt-get install {package})")
    return found


@functools.cache
def _leash() -> tuple[str, ...]:
    """The words in front of a command that make the kernel end it with us. Without setpriv the lock alone protects."""
    setpriv = shutil.which("setpriv")
    return (setpriv, "--pdeathsig", "KILL", "--") if setpriv else ()


@functools.cache
def _buffering() -> str | None:
    """The program stdbuf (coreutils), where it is there and works here (musl's C library takes nothing preloaded from it)."""
    stdbuf = shutil.which("stdbuf")
    if stdbuf is None:
        return None
    # pylint: disable-next=ansible-bad-function  # run_command is a module's, and the engine knows no Ansible
    tried = subprocess.run([stdbuf, "-o256K", "true"], capture_output=True, check=False, env=_environment(None))
    return stdbuf if tried.returncode == 0 and not tried.stderr else None


def _environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "LANGUAGE": "C"}
    environment.update(extra or {})
    return environment


class Child:
    """A running program whose stdout or stdin may be a pipe of ours.

    Use it as a context manager: leaving the block without `wait()` having returned ends the program. Start and wait
    from the same thread: the kernel ties a child's life to the thread that started it (prctl(2), PR_SET_PDEATHSIG).
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        stdin: int | IO[bytes] | None = subprocess.DEVNULL,
        stdout: int | IO[bytes] | None = subprocess.PIPE,
        cwd: Path | None = None,
        user: tuple[int, int] | None = None,
        pass_fds: Sequence[int] = (),
        buffered: bool = False,
        fed: bool = False,
    ):
        """Start `argv`. `user` is (uid, gid) to run as, where we are root. Raises BackupError when it cannot be started.

        `buffered`: the program writes much by C's stdio, which gives a pipe 4 KiB at a time. With 256 KiB (stdbuf(1)) it
        calls the kernel one time in 64: measured, half of the processor time that pg_dump takes.

        `fed`: what the program does is take what a server sends. It gives way (nice(2)) to the server, which it would
        otherwise interrupt for every 8 KiB: measured, pg_dump is done a tenth sooner where two processors are busy.
        """
        raise_if_stopping()
        self.name = Path(argv[0]).name
        stdbuf = _buffering() if buffered else None
        drop: dict[str, Any] = {"user": user[0], "group": user[1], "extra_groups": []} if user else {}
        try:
            # pylint: disable-next=ansible-bad-function  # run_command is a module's, and the engine knows no Ansible
            self.process: subprocess.Popen[bytes] = subprocess.Popen(
                [*_leash(), *((stdbuf, "-o256K") if stdbuf else ()), *argv],
                env=_environment(env),
                stdin=stdin,
                stdout=stdout,
                stderr=subprocess.PIPE,
                cwd=cwd,
                pass_fds=(*_inherited, *pass_fds),
                **drop,
            )
        except OSError as error:
            raise BackupError(f"{self.name} cannot be started: {one_line(error)}") from error
        if fed:
            with contextlib.suppress(OSError):  # it has ended
                own = os.getpriority(os.PRIO_PROCESS, self.process.pid)
                os.setpriority(os.PRIO_PROCESS, self.process.pid, max(own, _GIVING_WAY))
        self._said = bytearray()
        self._listener = threading.Thread(target=self._listen, name=f"{self.name}-stderr", daemon=True)
        self._listener.start()
        with _guard:
            _running.add(self)

    def _listen(self) -> None:
        pipe = self.process.stderr
        if pipe is None:
            raise AssertionError("always asked for above")
        with contextlib.suppress(ValueError):  # closed by release()
            while piece := pipe.read1(8192):  # type: ignore[attr-defined]
                self._said += piece
                del self._said[:-_STDERR_KEPT]

    @property
    def stdout(self) -> IO[bytes]:
        """Our end of the program's standard output."""
        return _pipe(self.process.stdout)

    @property
    def stdin(self) -> IO[bytes]:
        """Our end of the program's standard input."""
        return _pipe(self.process.stdin)

    @property
    def stderr(self) -> str:
        """The end of what the program said, once it has ended."""
        return self._said.decode(errors="replace").strip()

    def wait(self, *, accept: Sequence[int] = (0,), timeout_s: float | None = None) -> int:
        """Wait for the end; returns the exit status when it is in `accept`, raises ToolError with what it said otherwise."""
        try:
            returncode: int = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ToolError(
                f"{self.name} did not end within {timeout_s:g} s and was stopped",
                tool=self.name,
                returncode=-9,
                stderr=self.stderr,
            ) from None
        self._listener.join(timeout=5)
        self._forget()
        if returncode not in accept:
            raise_if_stopping()
            ended = (
                f"was ended by {signal.Signals(-returncode).name}" if returncode < 0 else f"failed with exit status {returncode}"
            )
            said = f": {one_line(self.stderr)}" if self.stderr else ""
            raise ToolError(f"{self.name} {ended}{said}", tool=self.name, returncode=returncode, stderr=self.stderr)
        return returncode

    def kill(self) -> None:
        """End the program at once and reap it."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        self._listener.join(timeout=5)
        self._forget()

    def terminate(self) -> None:
        """Ask the program to end (SIGTERM)."""
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()

    def _forget(self) -> None:
        with _guard:
            _running.discard(self)
        pipes = [self.process.stdin, self.process.stdout]
        if not self._listener.is_alive():  # else a grandchild keeps the pipe: closing would wait for the listener, for ever
            pipes.append(self.process.stderr)
        for pipe in pipes:
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *__: object) -> None:
        if self.process.returncode is None:
            self.kill()
        else:
            self._forget()


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise ValueError("the program was not started with that pipe")
    return pipe


def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    input_bytes: bytes | None = None,
    accept: Sequence[int] = (0,),
    timeout_s: float | None = None,
    cwd: Path | None = None,
) -> str:
    """Run a short program to its end and return its standard output as text. Raises ToolError as `Child.wait` does."""
    stdin = subprocess.PIPE if input_bytes is not None else subprocess.DEVNULL
    with Child(argv, env=env, stdin=stdin, cwd=cwd) as child:
        writer: threading.Thread | None = None
        if input_bytes is not None:
            writer = threading.Thread(target=_feed, args=(child.stdin, input_bytes), daemon=True)
            writer.start()
        output = b""
        reader_done = threading.Event()
        pieces: list[bytes] = []

        def read() -> None:
            pieces.append(child.stdout.read())
            reader_done.set()

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        if timeout_s is not None and not reader_done.wait(timeout_s):
            child.kill()
            raise ToolError(
                f"{child.name} did not end within {timeout_s:g} s and was stopped",
                tool=child.name,
                returncode=-9,
                stderr="",
            )
        reader.join()
        output = pieces[0]
        child.wait(accept=accept, timeout_s=timeout_s)
        return output.decode(errors="replace")


def _feed(pipe: IO[bytes], content: bytes) -> None:
    with contextlib.suppress(BrokenPipeError), pipe:
        pipe.write(content)


def keep_freed_memory() -> None:
    """Tell glibc to reuse the buffers that move the data, in one arena, instead of handing each back to the kernel.

    A piece of 1 MiB is otherwise mapped, faulted in page by page and unmapped again each time (mallopt(3)): measured, a
    seventh of a backup's time. Elsewhere than on glibc nothing happens.
    """
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((_M_MMAP_THRESHOLD, 32 << 20), (_M_TRIM_THRESHOLD, 128 << 20), (_M_ARENA_MAX, 1)):
            mallopt(option, value)


def give_freed_memory_back() -> None:
    """Hand the kernel what lies free between blocks in use (malloc_trim(3)): call it with every piece of data that moves; it acts
    ten times a second at most.

    Blocks of many sizes from several threads leave holes that none of the next fits into, and how much depends on the data:
    measured with glibc 2.36, the dump of a database of 1 GB in pieces of 256 KiB held 94 MB, of which 8 MB were in use. It takes
    no processor time that could be measured. Elsewhere than on glibc nothing happens.
    """
    global _given_back_s
    now = time.monotonic()
    if now - _given_back_s < _GIVEN_BACK_EVERY_S:
        return
    _given_back_s = now
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def look_for_cycles_less_often() -> None:
    """Let Python's collector of cycles wait for ten thousand new objects instead of 700: importing the three clients alone made
    it run a hundred times and took a quarter longer for it. Everything large here is freed by counting references."""
    gc.set_threshold(10_000, 10, 10)


def stop_all() -> None:
    """Ask every running program to end and let no new one start: the run is being given up."""
    _stopping.set()
    with _guard:
        running = list(_running)
    for child in running:
        child.terminate()


def stop_on_signals() -> None:
    """From now on SIGTERM, SIGINT and SIGHUP end the run as a failure does: its programs are stopped, and it cleans up."""
    for one in _STOPPERS:
        signal.signal(one, _stop)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    for one in _STOPPERS:
        signal.signal(one, signal.SIG_IGN)  # cleaning up must not be stopped in turn
    stop_all()
    raise Cancelled(f"stopped by {signal.Signals(number).name}")


def wait_for_line(terminal: TextIO) -> None:
    """Wait until a line was typed at `terminal`. A signal ends the wait by its handler, whenever it comes: one that comes
    just before a read(2) begins would be looked at after the answer only."""
    awake, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    waited: list[TextIO | int] = [terminal, awake]
    before = signal.set_wakeup_fd(wake)
    try:
        while terminal not in select.select(waited, [], [])[0]:
            os.read(awake, 64)
    finally:
        signal.set_wakeup_fd(before)
        os.close(awake)
        os.close(wake)


def end_with_parent() -> None:
    """Have the kernel send us SIGTERM when the process that started us ends (prctl(2), PR_SET_PDEATHSIG)."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def stopping() -> bool:
    """Whether the run is being given up; loops that move data ask."""
    return _stopping.is_set()


def raise_if_stopping() -> None:
    """Raises Cancelled where the run is being given up."""
    if stopping():
        raise Cancelled("the run is being stopped")


def resume() -> None:
    """Let programs start again: a failed run that goes on to clean up, or the next run in the same process."""
    _stopping.clear()


def guarded(action: Callable[[], Any], what: str) -> Any:
    """Run `action`; turn an OSError into a BackupError that says `what` was being done and what to do about it."""
    try:
        return action()
    except OSError as error:
        raise BackupError(os_sentence(error, what)) from error


def os_sentence(error: OSError, what: str) -> str:
    """The sentence for an OSError met while doing `what` (such as 'writing /backups/x')."""
    import errno

    hint = {
        errno.ENOSPC: "the disk is full: make room or prune old sets",
        errno.EDQUOT: "the disk quota is used up: make room or prune old sets",
        errno.EACCES: "permission denied: run as the backup user or root",
        errno.EPERM: "not permitted: run as the backup user or root",
        errno.EROFS: "the file system is read-only",
        errno.ENOENT: "no such file or directory",
    }.get(error.errno or 0, one_line(error.strerror or error))
    return f"{what} failed: {hint}"
