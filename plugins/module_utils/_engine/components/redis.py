# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Redis (6.2 to 8) and Valkey: an RDB, by BGSAVE and copy where its file can be read here, else as a replica gets it.

A restore brings the whole server back: by replication from a throwaway server that loaded the RDB, key by key where the
server refuses REPLICAOF, or as files where the server is stopped. Read it in this order: talking to a server, throwaway
servers, what a server holds (fingerprints), the cut, the restoration, the component.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import fnmatch
import functools
import hashlib
import json
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any, ClassVar

from .. import clock, process
from ..errors import BackupError, Cancelled, ToolError, UsageError, VerificationError, one_line
from ..formats import rdb
from ..journal import sync_directory
from ..pipeline import PIECE, Writer
from ..settings import RedisSettings
from .base import (
    CONTENT,
    COUNTS,
    Comparison,
    Component,
    Context,
    Cut,
    Examination,
    Probe,
    Restoration,
    RestoreOptions,
    RestorePlan,
    Source,
    make_private,
)


class _Library:
    """redis-py, loaded when it is first used: listing and verifying never need it, and it takes as long as they do."""

    def __getattr__(self, name: str) -> Any:
        import redis.backoff
        import redis.retry

        return getattr(redis, name)


redis: Any = _Library()

_Apart = Callable[[int, int], None]
"""Takes what goes before its key does: when, in ms since 1970, and its digest."""

Client = Any
"""A `redis.Redis` that speaks bytes; its own annotations mix in those of the asynchronous client."""

_TYPES = ("string", "list", "set", "zset", "hash", "stream")
_POLL_S = 0.02
_FIRST_S = 20.0  # within what a server that is well answers the first questions
_ANSWER_S = 60.0  # within what it answers any other while it is backed up; less than systemd gives a stopped unit (90 s)
_LINK_S = 20.0  # how long a target may take to reach the throwaway server before the other way is taken
_PAGE = 300  # keys at a time

# ------------------------------------------------------------------------------------------------- talking to a server


def _text(value: Any) -> str:
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else str(value)


def _where(settings: RedisSettings) -> str:
    return f"Redis at {settings.host}:{settings.port}"


@contextlib.contextmanager
def _talking(settings: RedisSettings, doing: str) -> Iterator[None]:
    """Turn what redis-py raises inside the block into one sentence that says what to do."""
    where = _where(settings)
    user = f"the Redis user '{settings.username or 'default'}'"
    try:
        yield
    except redis.exceptions.NoPermissionError as error:
        raise BackupError(
            f"{where}: {user} may not do that ({doing}): {one_line(error)}; give it the right by ACL SETUSER"
        ) from None
    except redis.exceptions.AuthenticationError as error:
        hint = "check REDIS_USERNAME and REDIS_PASSWORD"
        raise BackupError(f"{where} refuses the login of {user}: {one_line(error).rstrip('.')}; {hint}") from None
    except redis.exceptions.BusyLoadingError:
        raise BackupError(f"{where} is still loading its data: wait until it has ended") from None
    except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError) as error:
        hint = "check that it is running, and REDIS_HOST, REDIS_PORT and REDIS_TLS"
        if settings.tls and not settings.certfile:
            hint += "; a server that asks for our certificate needs REDIS_CERTFILE"
        raise BackupError(f"{where} does not answer ({doing}): {one_line(error).rstrip('.')}; {hint}") from None
    except redis.exceptions.RedisError as error:
        raise BackupError(f"{where} refused {doing}: {one_line(error)}") from None


def _tls(settings: RedisSettings) -> dict[str, Any]:
    for name in ("cacert", "certfile", "keyfile"):
        path = getattr(settings, name)
        if path and not os.access(path, os.R_OK):
            raise BackupError(f"{_where(settings)}: redis.{name} names {path}, which cannot be read here: correct it")
    ours = {"ssl_certfile": settings.certfile, "ssl_keyfile": settings.keyfile or settings.certfile} if settings.certfile else {}
    return {"ssl": True, "ssl_ca_certs": settings.cacert or None, **ours}


def _connect(settings: RedisSettings, database: int = 0, *, within_s: float = 600) -> Client:
    """A client of the server that the settings name, which may take so long to answer. It connects when it is first used.
    Raises BackupError where a file that the settings name for TLS cannot be read."""
    tls = _tls(settings) if settings.tls else {}
    return redis.Redis(
        host=settings.host,
        port=settings.port,
        db=database,
        username=settings.username or None,
        password=settings.password or None,
        protocol=2,
        socket_connect_timeout=10,
        socket_timeout=within_s,
        socket_keepalive=True,
        retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0),
        **tls,
    )


def _info(client: Client, section: str) -> dict[str, Any]:
    return dict(client.info(section))


def _config(client: Client, name: str) -> str | None:
    """A server's configuration value; None where the server or its ACL does not tell."""
    try:
        found = client.config_get(name)
    except redis.exceptions.ResponseError:
        return None
    return next((_text(value) for key, value in found.items() if _text(key) == name), None)


def _version(server: dict[str, Any]) -> tuple[str, str]:
    """Name and version of a server out of its INFO: Valkey keeps Redis's own field at 7.2.4."""
    if "valkey_version" in server:
        return "valkey", str(server["valkey_version"])
    return "redis", str(server.get("redis_version", "0"))


def _mode(server: dict[str, Any]) -> str:
    """`standalone`, `cluster` or `sentinel`, out of a server's INFO: Valkey says server_mode (8.1 and 9.1, as they answered)."""
    return str(server.get("redis_mode") or server.get("server_mode") or "standalone")


@dataclass(frozen=True)
class _Module:
    """A module that a server has loaded. `path` is empty for one that is a part of the server, and before Redis 7.0."""

    name: str
    version: int
    path: str
    arguments: tuple[str, ...]


def _modules(client: Client) -> list[_Module] | None:
    """The modules of a server (MODULE LIST); None where its user may not ask. Valkey lists its own Lua among them."""
    try:
        listed = [_paired(one) for one in _pipelined(client, [("MODULE", "LIST")])[0]]
    except redis.exceptions.ResponseError:
        return None
    return [
        _Module(
            _text(one[b"name"]),
            int(one[b"ver"]),
            _text(one.get(b"path", b"")),
            tuple(_text(argument) for argument in one.get(b"args", ())),
        )
        for one in listed
    ]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


_FORMATS = {"redis": {(0, 0): 9, (7, 0): 10, (7, 2): 11, (7, 4): 12}, "valkey": {(0, 0): 11, (9, 0): 80, (9, 2): 81}}
"""Server → from which version on it writes which RDB version (redis and valkey: rdb.h)."""


def _format_of(name: str, version: str) -> int:
    """The newest RDB version that a server of this name and version reads and writes."""
    table = _FORMATS.get(name, _FORMATS["redis"])
    return max((number for since, number in table.items() if _numbers(version) >= since), default=9)


_ASKED = "agentmem-asks-for-the-right"
"""A key, a cursor, an option that no server has: what a right is asked for with."""


_FIELD_EXPIRY = ("HPEXPIRETIME", _ASKED, "FIELDS", "1", _ASKED)


def _is_unknown(error: Exception) -> bool:
    """Whether a server says that it has no such command, or that it was renamed."""
    return "unknown command" in str(error).lower()


def _knows(client: Client, *command: str) -> bool:
    """Whether a server has a command, which does nothing as it is given here; whether the user may use it is another matter."""
    try:
        client.execute_command(*command)
    except redis.exceptions.ResponseError as error:
        return not _is_unknown(error)
    return True


def _refused(client: Client, *command: str) -> str | None:
    """Why a command that is wrong in itself, or does nothing, is refused for want of a right; None where it is allowed.

    Redis looks at the rights before it looks at the arguments, but for their number (server.c: processCommand).
    """
    try:
        client.execute_command(*command)
    except redis.exceptions.NoPermissionError as error:
        return one_line(error)
    except redis.exceptions.ResponseError as error:
        return one_line(error) if _is_unknown(error) else None
    return None


def _dry_run(client: Client, *command: str) -> str | None:
    """What ACL DRYRUN (Redis 7.0) says of a command, OK where it is allowed; None where it does not tell, or has no such."""
    try:
        return _text(client.execute_command("ACL", "DRYRUN", client.execute_command("ACL", "WHOAMI"), *command))
    except redis.exceptions.ResponseError:
        return None


def _may_sync(client: Client) -> str | None:
    """Why the user may not replicate; None where it may. Asked by ACL DRYRUN, else by trying and hanging up at once."""
    answer = _dry_run(client, "SYNC")
    if answer is None:
        return _sync_refused(client)
    return None if answer == "OK" else answer


def _sync_refused(client: Client) -> str | None:
    connection = client.connection_pool.make_connection()
    try:
        connection.connect()
        connection.send_command("SYNC")
        # The bytes themselves: of one that begins to replicate redis-py would wait for an answer until the data comes.
        connection._sock.settimeout(0.5)
        answer = bytes(connection._sock.recv(4096))
    except (redis.exceptions.RedisError, OSError):
        return None
    finally:
        connection.disconnect()
    return one_line(answer[1:].decode(errors="replace")) if answer.startswith(b"-") else None


def _wait(ready: Callable[[], bool], seconds: float, what: str) -> None:
    """Ask until it is so. Raises BackupError that says `what` did not happen in time."""
    deadline = time.monotonic() + seconds
    while not ready():
        process.raise_if_stopping()
        if time.monotonic() > deadline:
            raise BackupError(f"{what} within {seconds:g} s")
        time.sleep(_POLL_S)


def _is_here(host: str) -> bool:
    """Whether a host name is this machine: only an address of our own can be bound."""
    try:
        addresses = {(family, address[0]) for family, *__, address in socket.getaddrinfo(host, 0)}
    except OSError:
        return False
    for family, address in addresses:
        with contextlib.suppress(OSError), socket.socket(family) as probe:
            probe.bind((address, 0))
            return True
    return False


# ---------------------------------------------------------------------------------------------------- throwaway servers


def _server_program() -> str:
    """The path of redis-server, else of valkey-server. Raises BackupError where neither is installed."""
    if shutil.which("redis-server") is None and shutil.which("valkey-server") is not None:
        return process.find("valkey-server", "valkey-server")
    return process.find("redis-server", "redis-server")


def _client_program() -> str:
    """The path of redis-cli, else of valkey-cli. Raises BackupError where neither is installed."""
    if shutil.which("redis-cli") is None and shutil.which("valkey-cli") is not None:
        return process.find("valkey-cli", "valkey-tools")
    return process.find("redis-cli", "redis-tools")


def _program_version(program: str) -> tuple[str, str]:
    said = process.run([program, "--version"], timeout_s=30)
    found = re.search(r"v=([0-9.]+)", said)
    return ("valkey" if "valkey" in said.lower() else "redis"), found.group(1) if found else "0"


def _account() -> pwd.struct_passwd | None:
    """Who a throwaway server runs as: loading an RDB has had holes through which code was executed, so never root."""
    if os.geteuid() != 0:
        return None
    for name in ("redis", "valkey", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    return None


def _quoted(value: str) -> str:
    """A value as redis.conf takes it, whatever is in it."""
    return '"' + "".join(f"\\x{byte:02x}" for byte in value.encode(errors="surrogateescape")) + '"'


class _Scratch:
    """A throwaway server in a directory of its own, loaded from one RDB, behind a password, never saving by itself.

    It listens on a unix socket, and on one TCP address only where `address` is given. Its working directory is opened
    before it gives up our rights, so that it may lie where its account could not go.
    """

    def __init__(
        self,
        context: Context,
        component: str,
        *,
        password: str = "",
        user: str = "",
        address: str = "",
        compresses: bool = True,
    ):
        self.program = _server_program()
        self.name, self.version = _program_version(self.program)
        self.password = password or secrets.token_hex(32)
        self.user, self.address, self.port = user, address, 0
        self._compresses = compresses
        self._owner = _account()
        self._child: process.Child | None = None
        self._descriptor = -1
        self.directory = context.workdir / f"redis-scratch-{secrets.token_hex(4)}"
        context.journal("scratch-server", component=component, path=str(self.directory))
        process.guarded(lambda: self.directory.mkdir(mode=0o700), f"making {self.directory}")
        self._give(self.directory)
        self._descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    @property
    def rdb(self) -> Path:
        """The file that it loads, and saves to when told so."""
        return self.directory / "dump.rdb"

    def _give(self, path: Path) -> None:
        if self._owner is not None:
            os.chown(path, self._owner.pw_uid, self._owner.pw_gid)

    def sink(self) -> IO[bytes]:
        """A file to write what it will load into; close it before the start."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        descriptor = process.guarded(lambda: os.open(self.rdb, flags, 0o600), f"making {self.rdb}")
        self._give(self.rdb)
        return os.fdopen(descriptor, "wb", buffering=0)

    def place(self, pieces: Iterable[bytes]) -> None:
        """Write what it will load."""
        with self.sink() as file:
            for piece in pieces:
                process.guarded(functools.partial(file.write, piece), f"writing {self.rdb}")

    def start(self, databases: int, modules: Sequence[_Module] = ()) -> None:
        """Start it, with those of the modules whose files are here, and wait until it has loaded the file. Raises
        BackupError with what it said."""
        for attempt in range(3):
            if self.address:
                self.port = _free_port(self.address)
            self._launch(databases, modules)
            try:
                self._await_loaded()
                return
            except BackupError:
                said = self._log()
                self.stop()
                if attempt == 2 or "bind" not in said.lower():
                    raise

    def _launch(self, databases: int, modules: Sequence[_Module]) -> None:
        lines = [
            f"port {self.port}",
            *([f"bind {self.address}"] if self.address else []),
            "unixsocket s",
            "unixsocketperm 700",
            "dir .",
            "dbfilename dump.rdb",
            "logfile log",
            'save ""',
            "appendonly no",
            "daemonize no",
            f"databases {max(16, databases)}",
            f"requirepass {_quoted(self.password)}",
            "repl-diskless-sync yes",
            "repl-diskless-sync-delay 0",
            "stop-writes-on-bgsave-error no",
            f"rdbcompression {'yes' if self._compresses else 'no'}",
            *(
                " ".join(["loadmodule", _quoted(one.path), *map(_quoted, one.arguments)])
                for one in modules
                if Path(one.path).is_absolute() and Path(one.path).is_file()
            ),
        ]
        if self.user:
            digest = hashlib.sha256(self.password.encode(errors="surrogateescape")).hexdigest()
            lines.append(f"user {self.user} on #{digest} ~* &* +@all")
        owner = (self._owner.pw_uid, self._owner.pw_gid) if self._owner else None
        self._child = process.Child(
            [self.program, "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd=self.directory, user=owner
        )
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.write("\n".join(lines).encode() + b"\n")
            self._child.stdin.close()

    def _log(self) -> str:
        with contextlib.suppress(OSError):
            return (self.directory / "log").read_text(errors="replace")[-2000:]
        return ""

    def _await_loaded(self) -> None:
        def ready() -> bool:
            child = self._child
            if child is None or child.process.poll() is not None:
                told = [line.split(" # ")[-1] for line in self._log().splitlines() if " # " in line]
                problems = [one for one in told if not one.startswith("WARNING")]  # of the kernel's settings
                said = "; ".join(problems[-3:]) or (child.stderr if child else "")
                raise BackupError(f"a throwaway {self.name}-server {self.version} cannot load the dump: {one_line(said)}")
            try:
                with self.client() as client:
                    return bool(client.ping())
            except (redis.exceptions.ConnectionError, redis.exceptions.BusyLoadingError):
                return False

        _wait(ready, 3600, "the throwaway Redis server did not load the dump")

    def client(self, database: int = 0) -> Client:
        """A client of it, over its socket (named through a descriptor: a socket's path is at most 107 bytes long)."""
        path = f"/proc/self/fd/{self._descriptor}/s"
        return redis.Redis(
            unix_socket_path=path,
            db=database,
            password=self.password,
            protocol=2,
            socket_timeout=3600,
            retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0),
        )

    def stop(self) -> None:
        """End it; the directory stays."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def close(self) -> None:
        """End it and remove its directory."""
        self.stop()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        shutil.rmtree(self.directory, ignore_errors=True)


def _free_port(address: str) -> int:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def _remove_scratch(path: Path) -> None:
    """End the throwaway server that a killed run may have left in `path` and remove the directory."""
    for entry in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            if os.readlink(entry) == str(path):  # noqa: PTH115  (the path may be gone)
                os.kill(int(entry.parent.name), signal.SIGKILL)
    shutil.rmtree(path, ignore_errors=True)


# ------------------------------------------------------------------------------------------------ what a server holds

_HOUR, _DAY = 3_600_000, 86_400_000
# One page counted where the keys are, about ten times as fast as asking for each key. A script's time stands still.
_COUNT_SCRIPT = """local page = redis.call('SCAN', ARGV[1], 'COUNT', ARGV[2])
local late, gone, seen, keys, expiring = tonumber(ARGV[3]), 0, {}, {}, {}
local function emptied(key)
  local field = redis.call('HRANDFIELD', key)
  if not field then return true end
  if redis.call('HPEXPIRETIME', key, 'FIELDS', 1, field)[1] == -1 then return false end
  local cursor = '0'
  repeat
    local found = redis.call('HSCAN', key, cursor, 'COUNT', 1000, 'NOVALUES')
    cursor = found[1]
    for _, one in ipairs(found[2]) do
      local expiry = redis.call('HPEXPIRETIME', key, 'FIELDS', 1, one)[1]
      if expiry == -1 or expiry > late then return false end
    end
  until cursor == '0'
  return true
end
for _, key in ipairs(page[2]) do
  if not seen[key] then
    seen[key] = true
    local kind, expiry = redis.call('TYPE', key)['ok'], redis.call('PEXPIRETIME', key)
    if kind == 'none' or expiry == -2 or (expiry >= 0 and expiry <= late) then gone = gone + 1
    elseif kind == 'hash' and ARGV[4] == '1' and emptied(key) then gone = gone + 1
    else
      keys[kind] = (keys[kind] or 0) + 1
      if expiry >= 0 then expiring[kind] = (expiring[kind] or 0) + 1 end
    end
  end
end
local answer = {page[1], gone}
for kind, count in pairs(keys) do answer[#answer + 1] = {kind, count, expiring[kind] or 0} end
return answer"""
# Type and expiry of each key of a page in one answer: reading an answer takes Python longer than the server to give it.
_LOOK_SCRIPT = """local found = {}
for _, key in ipairs(KEYS) do
  found[#found + 1] = redis.call('TYPE', key)['ok']
  found[#found + 1] = redis.call('PEXPIRETIME', key)
end
return found"""
# Redis before 7.0 has no PEXPIRETIME: time and time to live, read within one millisecond, add up to it.
_EXPIRY_SCRIPT = """for _ = 1, 1000 do
  local a = redis.call('TIME'); local left = redis.call('PTTL', KEYS[1]); local b = redis.call('TIME')
  if left < 0 then return left end
  if a[1] == b[1] and math.floor(a[2] / 1000) == math.floor(b[2] / 1000) then
    return a[1] * 1000 + math.floor(a[2] / 1000) + left end
end
return redis.error_reply('the clock does not stand still')"""


def _bucket(cut_ms: int, expiry: int) -> tuple[int, int]:
    """The span of time, as [from, until) in milliseconds, whose keys share a digest: what expired since leaves the
    spans before it alone. An hour in the first two days after the cut, a day for two months, then all that is later."""
    last = (cut_ms + 60 * _DAY) // _DAY * _DAY
    if expiry >= last:
        return last, 1 << 62
    size = _HOUR if expiry < cut_ms + 2 * _DAY else _DAY
    start = expiry // size * size
    return start, start + size


@dataclass
class _Held:
    """What a server holds at `until` (ms since 1970): of keys that expire at or before it only that they were seen."""

    until: int
    databases: dict[int, Counter[str]] = field(default_factory=dict)
    expiring: dict[int, Counter[str]] = field(default_factory=dict)
    expired: int = 0
    sums: dict[tuple[int, int, int], list[int]] = field(default_factory=dict)
    """(database, from, until of the span; 0, 0 without expiry) → number and sum of the digests of what goes in it: keys,
    and fields of hashes that expire by themselves."""
    libraries: list[int] = field(default_factory=lambda: [0, 0])
    opaque: Counter[str] = field(default_factory=Counter)
    """Types of modules, whose values cannot be compared → keys."""


class _Reader:
    """Reads what a server holds; the same for a throwaway server and a live one."""

    def __init__(self, clients: Callable[[int], Client], *, content: bool, cut_ms: int = 0):
        self._clients = clients
        self._content = content
        self._cut_ms = cut_ms
        self._pace = _Pace()
        with clients(0) as client:
            server = _info(client, "server")
            self.exact_expiry = _numbers(str(server.get("redis_version", "0"))) >= (7, 0)
            self._scripts = self.exact_expiry
            self._field_expiry = _knows(client, *_FIELD_EXPIRY)

    def read(self, until: int | None = None) -> _Held:
        """Everything as of `until`, by the server's clock; as of a moment after the reading ends where it is None."""
        if until is not None:
            return self._read(until)
        keys = sum(int(one["keys"]) for one in self.keyspace().values())
        margin = 2000 + keys // (5 if self._content else 20)
        for __ in range(6):
            held = self._read(self.now() + margin)
            if self.now() < held.until:
                return held
            margin *= 4
        raise BackupError("Redis could not be read: it takes longer from one attempt to the next")

    def now(self) -> int:
        """The server's clock, in ms since 1970."""
        with self._clients(0) as client:
            seconds, micros = client.time()
        return int(seconds) * 1000 + int(micros) // 1000

    def keyspace(self) -> dict[int, dict[str, Any]]:
        """INFO keyspace by number of the database."""
        with self._clients(0) as client:
            return {int(name[2:]): dict(one) for name, one in _info(client, "keyspace").items() if name.startswith("db")}

    def _read(self, until: int) -> _Held:
        held = _Held(until)
        for database in sorted(self.keyspace()):
            with self._clients(database) as client:
                if self._content or not self._count(client, database, held):
                    self._database(client, database, held)
        if self._content:
            with self._clients(0) as client:
                for name, engine, code in _libraries(client):
                    held.libraries[0] += 1
                    held.libraries[1] = (held.libraries[1] + _digest(name, engine, code)) % _MODULUS
        return held

    def _count(self, client: Client, database: int, held: _Held) -> bool:
        """Count a database by a script; False where the server is too old for it or the user may not run scripts."""
        if not self.exact_expiry:
            return False
        cursor: Any = 0
        while True:
            try:
                cursor, gone, *kinds = _pipelined(
                    client, [("EVAL", _COUNT_SCRIPT, 0, cursor, 1000, held.until, int(self._field_expiry))]
                )[0]
            except redis.exceptions.ResponseError:
                if int(cursor) == 0:
                    return False
                raise
            held.expired += gone
            for kind, keys, expiring in kinds:
                held.databases.setdefault(database, Counter())[_text(kind)] += keys
                if expiring:
                    held.expiring.setdefault(database, Counter())[_text(kind)] += expiring
            if int(cursor) == 0:
                return True

    def _database(self, client: Client, database: int, held: _Held) -> None:
        cursor: Any = 0
        while True:
            cursor, found = client.scan(cursor, count=_PAGE)
            keys = list(dict.fromkeys(found))  # a page may name a key twice
            self._page(client, database, keys, held)
            if int(cursor) == 0:
                return
            process.raise_if_stopping()

    def _page(self, client: Client, database: int, keys: list[bytes], held: _Held) -> None:
        alive: list[tuple[bytes, str, int, int]] = []
        kinds, expiries = self._look(client, keys)
        emptied = self._emptied(client, [key for key, kind in zip(keys, kinds, strict=True) if kind == "hash"])
        for key, kind, expiry in zip(keys, kinds, expiries, strict=True):
            ends = [moment for moment in (expiry, emptied.get(key, -1)) if moment != -1]
            end = min(ends, default=-1)
            if kind == "none" or (ends and end <= held.until):
                held.expired += 1
                continue
            alive.append((key, kind, expiry, end))
            held.databases.setdefault(database, Counter())[kind] += 1
            if expiry >= 0:
                held.expiring.setdefault(database, Counter())[kind] += 1
        if self._content:
            self._values(client, database, alive, held)

    def _look(self, client: Client, keys: list[bytes]) -> tuple[list[str], list[int]]:
        """Types and expiries, by a script where the server is new enough and the user may run one."""
        if self._scripts:
            try:
                found = _pipelined(client, [("EVAL", _LOOK_SCRIPT, len(keys), *keys)])[0]
                return [_text(kind) for kind in found[::2]], [int(expiry) for expiry in found[1::2]]
            except redis.exceptions.ResponseError:
                self._scripts = False
        return [_text(kind) for kind in _pipelined(client, [("TYPE", key) for key in keys])], self.expiries(client, keys)

    def expiries(self, client: Client, keys: Sequence[bytes]) -> list[int]:
        """When each key expires, in ms since 1970; -1 never, -2 is gone."""
        if self.exact_expiry:
            return [int(one) for one in _pipelined(client, [("PEXPIRETIME", key) for key in keys])]
        return [int(one) for one in _pipelined(client, [("EVAL", _EXPIRY_SCRIPT, 1, key) for key in keys])]

    def _emptied(self, client: Client, hashes: list[bytes]) -> dict[bytes, int]:
        """Of those hashes whose every field expires, when the last one does, in ms since 1970; -2 is gone already."""
        if not self._field_expiry:
            return {}
        found = {}
        fields = _pipelined(client, [("HRANDFIELD", key) for key in hashes])
        first = [
            ("HPEXPIRETIME", key, "FIELDS", 1, field) for key, field in zip(hashes, fields, strict=True) if field is not None
        ]
        expiries = {command[1]: answer for command, answer in zip(first, _pipelined(client, first), strict=True)}
        for key in hashes:
            expiry = (expiries.get(key) or [-2])[0]
            if expiry >= 0:
                expiry = self._last_field(client, key)
            if expiry != -1:
                found[key] = expiry
        return found

    def _last_field(self, client: Client, key: bytes) -> int:
        """When the last field of a hash expires; -1 where one stays, -2 where there is none."""
        last, cursor = -2, 0
        while True:
            cursor, names = _pipelined(client, [("HSCAN", key, cursor, "COUNT", _CHUNK, "NOVALUES")])[0]
            moments = self._field_expiries(client, key, names)
            if -1 in moments:
                return -1
            last = max([last, *moments])
            if int(cursor) == 0:
                return last

    def _values(self, client: Client, database: int, keys: list[tuple[bytes, str, int, int]], held: _Held) -> None:
        while keys:
            some, keys = keys[: self._pace.size], keys[self._pace.size :]
            heads = _pipelined(client, [_about(kind, key, _HEADS) for key, kind, *__ in some])
            self._pace.saw(heads)
            for (key, kind, expiry, end), head in zip(some, heads, strict=True):
                if kind in _TYPES:
                    value = _VALUE[kind](self, client, key, head, functools.partial(self._field, held, database, key, expiry))
                else:
                    held.opaque[kind] += 1
                    value = b""
                self._add(held, database, end, _digest(key, kind.encode(), str(expiry).encode(), value))

    def _add(self, held: _Held, database: int, moment: int, digest: int) -> None:
        span = _bucket(self._cut_ms, moment) if moment >= 0 else (0, 0)
        sums = held.sums.setdefault((database, *span), [0, 0])
        sums[0] += 1
        sums[1] = (sums[1] + digest) % _MODULUS

    def _field(self, held: _Held, database: int, key: bytes, key_expiry: int, moment: int, digest: int) -> None:
        """A field that expires at `moment`, or goes with its key before."""
        if moment > held.until:
            moment = moment if key_expiry < 0 else min(moment, key_expiry)
            self._add(held, database, moment, _digest(key, digest.to_bytes(16, "big")))

    # A value's canonical digest. `head` is what the first command of `_HEADS` gave: all of it, unless it is long.

    def _string(self, client: Client, key: bytes, head: bytes, _apart: _Apart) -> bytes:
        state = hashlib.blake2b(head, digest_size=16)
        at = len(head)
        while len(head) >= _STRING_HEAD:
            head = client.getrange(key, at, at + PIECE - 1)
            state.update(head)
            at += len(head)
            if len(head) < PIECE:
                break
        return state.digest()

    def _list(self, client: Client, key: bytes, head: list[bytes], _apart: _Apart) -> bytes:
        state = hashlib.blake2b(digest_size=16)
        at, asked = 0, _HEAD
        while head:
            for element in head:
                _feed(state, element)
            at += len(head)
            if len(head) < asked:
                break
            asked = _next(head, asked)
            head = client.lrange(key, at, at + asked - 1)
        return state.digest()

    def _zset(self, client: Client, key: bytes, head: list[bytes], _apart: _Apart) -> bytes:
        state = hashlib.blake2b(digest_size=16)
        at, asked = 0, _HEAD
        while head:
            for element in head:  # member, score, member, …: in the order of the scores, ties by the members' bytes
                _feed(state, element)
            at += len(head) // 2
            if len(head) < 2 * asked:
                break
            asked = _next(head, asked)
            head = _pipelined(client, [("ZRANGE", key, at, at + asked - 1, "WITHSCORES")])[0]
        return state.digest()

    def _set(self, client: Client, key: bytes, head: tuple[Any, list[bytes]], _apart: _Apart) -> bytes:
        total, asked = 0, _HEAD
        cursor, members = head
        while True:
            total += sum(_digest(member) for member in dict.fromkeys(members))
            if int(cursor) == 0:
                return (total % _MODULUS).to_bytes(16, "big")
            asked = _next(members, asked)
            cursor, members = _pipelined(client, [("SSCAN", key, cursor, "COUNT", asked)])[0]

    def _hash(self, client: Client, key: bytes, head: tuple[Any, list[bytes]], apart: _Apart) -> bytes:
        total, asked = 0, _HEAD
        cursor, pairs = head
        while True:
            found = dict(zip(pairs[::2], pairs[1::2], strict=True))
            expiries = self._field_expiries(client, key, list(found))
            for (name, value), expiry in zip(found.items(), expiries, strict=True):
                if expiry == -1:
                    total += _digest(name, value)
                elif expiry >= 0:
                    apart(expiry, _digest(name, value, str(expiry).encode()))
            if int(cursor) == 0:
                return (total % _MODULUS).to_bytes(16, "big")
            asked = _next(pairs, asked)
            cursor, pairs = _pipelined(client, [("HSCAN", key, cursor, "COUNT", asked)])[0]

    def _field_expiries(self, client: Client, key: bytes, fields: list[bytes]) -> list[int]:
        if not self._field_expiry or not fields:
            return [-1] * len(fields)
        answer = client.execute_command("HPEXPIRETIME", key, "FIELDS", len(fields), *fields)
        return [int(one) for one in answer] if answer else [-2] * len(fields)

    def _stream(self, client: Client, key: bytes, head: list[Any], _apart: _Apart) -> bytes:
        state = hashlib.blake2b(digest_size=16)
        asked = _HEAD
        while head:
            for identity, pairs in head:
                _feed(state, identity)
                for part in pairs or ():
                    _feed(state, part)
            if len(head) < asked:
                break
            asked = _next(head, asked)
            head = _pipelined(client, [("XRANGE", key, b"(" + head[-1][0], "+", "COUNT", asked)])[0]
        stream, groups = _pipelined(client, [("XINFO", "STREAM", key), ("XINFO", "GROUPS", key)])
        described = _paired(stream)
        for name in (b"length", b"last-generated-id", b"max-deleted-entry-id", b"entries-added"):
            _feed(state, described.get(name))
        for group in sorted((_paired(one) for one in groups), key=lambda one: bytes(one[b"name"])):
            self._group(client, key, group, state)
        return state.digest()

    def _group(self, client: Client, key: bytes, group: dict[bytes, Any], state: Any) -> None:
        """A consumer group with its consumers and pending entries; how long ago they were seen is not compared."""
        for name in (b"name", b"pending", b"last-delivered-id", b"entries-read"):
            _feed(state, group.get(name))
        for consumer in _pipelined(client, [("XINFO", "CONSUMERS", key, group[b"name"])])[0]:
            described = _paired(consumer)
            _feed(state, described[b"name"])
            _feed(state, described[b"pending"])
        start = b"-"
        while True:
            pending = _pipelined(client, [("XPENDING", key, group[b"name"], start, "+", _CHUNK)])[0]
            for identity, consumer, _idle, deliveries in pending:
                for part in (identity, consumer, deliveries):
                    _feed(state, part)
            if len(pending) < _CHUNK:
                return
            start = b"(" + pending[-1][0]


_MODULUS = 1 << 128
_ANSWER = 4 * PIECE  # what one answer with values may come to
_HEAD, _CHUNK = 100, 1000  # elements of a value at first, and at most
_STRING_HEAD = 64 * 1024
_HEADS: dict[str, tuple[Any, ...]] = {
    "string": ("GETRANGE", 0, _STRING_HEAD - 1),
    "list": ("LRANGE", 0, _HEAD - 1),
    "set": ("SSCAN", 0, "COUNT", _HEAD),
    "zset": ("ZRANGE", 0, _HEAD - 1, "WITHSCORES"),
    "hash": ("HSCAN", 0, "COUNT", _HEAD),
    "stream": ("XRANGE", "-", "+", "COUNT", _HEAD),
}
_VALUE: dict[str, Callable[..., bytes]] = {
    "string": _Reader._string,
    "list": _Reader._list,
    "set": _Reader._set,
    "zset": _Reader._zset,
    "hash": _Reader._hash,
    "stream": _Reader._stream,
}


def _about(kind: str, key: bytes, commands: dict[str, tuple[Any, ...]]) -> tuple[Any, ...]:
    """The command that `commands` has for a key of this type; DUMP for a module's."""
    name, *arguments = commands.get(kind, ("DUMP",))
    return (name, key, *arguments)


def _weight(answer: Any) -> int:
    """About how many bytes an answer of a server holds: of a long list by some of its elements."""
    if not isinstance(answer, (list, tuple)):
        return len(answer) if isinstance(answer, bytes) else 8
    some = answer[:: 1 + len(answer) // 8]
    return sum(map(_weight, some)) * len(answer) // max(1, len(some))


def _next(answer: Sequence[Any], asked: int) -> int:
    """How many elements of a value to ask for next, by what `answer` held, which was asked for `asked` of them."""
    return max(1, min(_CHUNK, 4 * asked, _ANSWER * asked // max(1, _weight(answer))))


class _Pace:
    """How many keys' values to ask for in one go, by what the last ones came to: a value may have any size, memory has not."""

    def __init__(self) -> None:
        self.size = 1

    def saw(self, answers: Sequence[Any]) -> None:
        """Takes what the server has just answered, one answer a key."""
        self.size = max(1, min(_PAGE, 4 * self.size, _ANSWER * len(answers) // max(1, sum(map(_weight, answers)))))


def _feed(state: Any, part: Any) -> None:
    content = part if isinstance(part, bytes) else str(part).encode()
    state.update(len(content).to_bytes(8, "big"))
    state.update(content)


def _digest(*parts: bytes) -> int:
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        state.update(len(part).to_bytes(8, "big"))
        state.update(part)
    return int.from_bytes(state.digest(), "big")


def _paired(flat: Sequence[Any]) -> dict[bytes, Any]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _pipelined(client: Client, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Send commands in one go; the answers as they come, without redis-py's own conversions."""
    if not commands:
        return []
    pipe = client.pipeline(transaction=False)
    pipe.response_callbacks = {}
    for command in commands:
        pipe.execute_command(*command)
    answers = list(pipe.execute(raise_on_error=False))  # raised there, an error would quote keys and values
    for answer in answers:
        if isinstance(answer, redis.exceptions.ResponseError):
            raise answer
    return answers


def _libraries(client: Client) -> list[tuple[bytes, bytes, bytes]]:
    """Name, engine and code of each function library; servers before 7.0 have none."""
    try:
        listed = _pipelined(client, [("FUNCTION", "LIST", "WITHCODE")])[0]
    except redis.exceptions.NoPermissionError:
        raise
    except redis.exceptions.ResponseError:
        return []
    found = [_paired(one) for one in listed]
    return [(one[b"library_name"], one[b"engine"], one[b"library_code"]) for one in found]


def _questions(client: Client, fingerprint: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Every command that comparing a server with a fingerprint takes, so that it does nothing."""
    kinds = {kind for one in fingerprint["databases"].values() for kind in one["types"]}
    yield from (("TIME",), ("SCAN", _ASKED), ("TYPE", _ASKED))
    if _numbers(str(_info(client, "server").get("redis_version", "0"))) >= (7, 0):
        yield ("PEXPIRETIME", _ASKED)
        if fingerprint.get("functions") or _knows(client, "FUNCTION", "LIST"):
            yield ("FUNCTION", "LIST")
    if "hash" in kinds and _knows(client, *_FIELD_EXPIRY):
        yield from (_FIELD_EXPIRY, ("HRANDFIELD", _ASKED), ("HSCAN", _ASKED, "0"))
    if "content" not in fingerprint:
        return
    if kinds - {*_TYPES}:
        yield ("DUMP", _ASKED)
    for kind, (name, *arguments) in _HEADS.items():
        if kind in kinds:
            yield (name, _ASKED, *map(str, arguments))
    if "stream" in kinds:
        yield from (("XINFO", "STREAM", _ASKED), ("XINFO", "GROUPS", _ASKED), ("XINFO", "CONSUMERS", _ASKED, _ASKED))
        yield ("XPENDING", _ASKED, _ASKED)


# -------------------------------------------------------------------------------------------------------- fingerprints


def _counts(databases: dict[int, Counter[str]], expiring: dict[int, Counter[str]]) -> dict[str, Any]:
    return {
        str(number): {
            "keys": types.total(),
            "types": dict(sorted(types.items())),
            "expiring": dict(sorted(expiring.get(number, Counter()).items())),
        }
        for number, types in sorted(databases.items())
        if types.total()
    }


def _fingerprint_of(summary: rdb.Summary) -> dict[str, Any]:
    """The fingerprint of the level `counts`, exactly as of the file."""
    return {
        "level": COUNTS,
        "known": summary.counted,
        "databases": _counts(summary.databases, summary.expiring) if summary.counted else {},
        "functions": summary.functions,
        "first_expiry_ms": summary.first_expiry,
    }


def _content_of(held: _Held, cut_ms: int) -> dict[str, Any]:
    return {
        "cut_ms": cut_ms,
        "read_ms": held.until,
        "keys": [[*place, sums[0], f"{sums[1]:032x}"] for place, sums in sorted(held.sums.items())],
        "expired": held.expired,
        "functions": [held.libraries[0], f"{held.libraries[1]:032x}"],
        "opaque": dict(held.opaque),
    }


def _walk(source: Source, expired_by: int | None = None) -> rdb.Summary:
    summary = rdb.walk(source.pieces(), expired_by)
    if summary.faults:
        raise VerificationError(f"{source.path} is damaged: {'; '.join(summary.faults)}")
    return summary


def _say_counts(fingerprint: dict[str, Any]) -> str:
    if not fingerprint.get("known", True):
        return "an unknown number of keys"
    databases = fingerprint["databases"]
    keys = sum(int(one["keys"]) for one in databases.values())
    functions = int(fingerprint.get("functions", 0))
    libraries = f" and {functions} function {'library' if functions == 1 else 'libraries'}" if functions else ""
    return f"{keys} keys in {len(databases)} database{'' if len(databases) == 1 else 's'}{libraries}"


class _Judge:
    """Holds a server against the fingerprint of a file, at a moment that is the same for both."""

    def __init__(self, source: Source):
        self._source = source
        self._fingerprint = (source.entry or {}).get("fingerprint")

    def fingerprint(self) -> dict[str, Any]:
        """That of the manifest; where there is none, of the file itself."""
        if self._fingerprint is None:
            self._fingerprint = _fingerprint_of(_walk(self._source))
        return dict(self._fingerprint)

    def compare(self, clients: Callable[[int], Client], seed: Callable[[int], Client] | None = None) -> Comparison:
        """A server's keys and functions against the fingerprint; `seed` is a server that holds the same file.

        Differences are looked at twice: SCAN may give a key again while the server resizes its table.
        """
        comparison = self._compare(clients, seed)
        return self._compare(clients, seed) if comparison.differences else comparison

    def _compare(self, clients: Callable[[int], Client], seed: Callable[[int], Client] | None) -> Comparison:
        fingerprint = self.fingerprint()
        content = fingerprint.get("content")
        comparison = Comparison()
        reader = _Reader(clients, content=content is not None, cut_ms=int(content["cut_ms"]) if content else 0)
        held = reader.read()
        self._compare_counts(held, comparison)
        self._compare_functions(clients, fingerprint, comparison)
        if content is not None:
            self._compare_content(held, content, comparison, seed)
        elif fingerprint["level"] == CONTENT:
            comparison.not_compared.append(str(fingerprint.get("content_missing", "values: the manifest has no digest of them")))
        if held.expired:
            comparison.not_compared.append(f"{held.expired} keys whose time was up by {_iso(held.until)}")
        return comparison

    def _expected(self, until: int) -> dict[str, Any] | None:
        """The counts of the file less what goes by `until`; None where they are not known."""
        fingerprint = self.fingerprint()
        if not fingerprint.get("known", True):
            return None
        first = fingerprint.get("first_expiry_ms")
        if first is None or first > until:
            return dict(fingerprint["databases"])
        summary = _walk(self._source, until)
        for number, types in summary.expired.items():
            summary.databases[number] -= types
        for number, types in summary.expired_expiring.items():
            summary.expiring[number] -= types
        return _counts(summary.databases, summary.expiring)

    def _compare_counts(self, held: _Held, comparison: Comparison) -> None:
        expected = self._expected(held.until)
        if expected is None:
            comparison.not_compared.append(
                "keys: the file has types that are not known here, so nothing says how many there were"
            )
            return
        found = _counts(held.databases, held.expiring)
        comparison.compared += 1
        for number in sorted({*expected, *found}, key=int):
            before, after = expected.get(number, {}), found.get(number, {})
            for what, title in (("types", "keys of type"), ("expiring", "expiring keys of type")):
                was, now = before.get(what, {}), after.get(what, {})
                comparison.compared += len({*was, *now})
                comparison.differences += [
                    f"database {number}: {was.get(kind, 0)} {title} {kind} in the backup, {now.get(kind, 0)} here"
                    for kind in sorted({*was, *now})
                    if was.get(kind, 0) != now.get(kind, 0)
                ]

    def _compare_functions(self, clients: Callable[[int], Client], fingerprint: dict[str, Any], comparison: Comparison) -> None:
        with clients(0) as client:
            found = len(_libraries(client))
        comparison.compared += 1
        if found != int(fingerprint.get("functions", 0)):
            comparison.differences.append(f"{fingerprint['functions']} function libraries in the backup, {found} here")

    def _compare_content(
        self, held: _Held, content: dict[str, Any], comparison: Comparison, seed: Callable[[int], Client] | None
    ) -> None:
        expected = {(one[0], one[1], one[2]): (int(one[3]), str(one[4])) for one in content["keys"]}
        late = max(held.until, int(content["read_ms"]))
        unsure = 0
        for place in sorted({*expected, *held.sums}):
            database, start, end = place
            if start and start <= late:  # some of these keys are gone by now: which, a sum cannot tell
                unsure += held.sums.get(place, [0])[0]
                continue
            now = held.sums.get(place, [0, 0])
            comparison.compared += now[0]
            if expected.get(place, (0, f"{0:032x}")) != (now[0], f"{now[1]:032x}"):
                when = (
                    f"expire from {_iso(start)} until {_iso(end)}" if start and end < 1 << 61 else "expire later" if start else ""
                )
                which = f"the keys that {when}" if when else "the keys without expiry"
                comparison.differences.append(
                    f"database {database}: {which} have other names, values or expiries than in the backup"
                )
        if held.libraries != [int(content["functions"][0]), int(content["functions"][1], 16)]:
            comparison.differences.append("the function libraries are not those of the backup")
        if unsure and seed is not None:
            self._compare_with_seed(held, seed, late, int(content["cut_ms"]), comparison)
        elif unsure:
            comparison.not_compared.append(
                f"values of {unsure} keys, or fields of hashes, that share their hour with some that have expired since"
            )
        comparison.not_compared += [f"values of {n} keys of the module type {kind}" for kind, n in held.opaque.items()]

    def _compare_with_seed(
        self, held: _Held, seed: Callable[[int], Client], late: int, cut_ms: int, comparison: Comparison
    ) -> None:
        """The spans in which something has expired, against a server that loaded the same file, as of the same moment."""
        reference = _Reader(seed, content=True, cut_ms=cut_ms).read(held.until)
        for place in sorted({*reference.sums, *held.sums}):
            if place[1] and place[1] <= late:
                comparison.compared += held.sums.get(place, [0])[0]
                if reference.sums.get(place) != held.sums.get(place):
                    comparison.differences.append(
                        f"database {place[0]}: the keys that expire before {_iso(place[2])} differ from those of the backup"
                    )


def _iso(milliseconds: int) -> str:
    return clock.iso(datetime.fromtimestamp(milliseconds / 1000, timezone.utc))


# -------------------------------------------------------------------------------------------------------------- filters


def _pattern(glob: str) -> re.Pattern[bytes]:
    """A glob pattern of keys (*, ?, [abc]) as an expression over bytes."""
    return re.compile(fnmatch.translate(glob).encode("utf-8", "surrogateescape"), re.DOTALL)


def _wanted(settings: RedisSettings) -> Callable[[bytes], bool] | None:
    """Whether a key belongs into the backup; None where all do."""
    include = [_pattern(one) for one in settings.include_keys]
    exclude = [_pattern(one) for one in settings.exclude_keys]
    if not include and not exclude:
        return None
    return lambda key: (not include or any(one.match(key) for one in include)) and not any(one.match(key) for one in exclude)


def _delete_unwanted(scratch: _Scratch, wanted: Callable[[bytes], bool]) -> int:
    """Delete what is not wanted and save; gives how many keys are left out."""
    deleted = 0
    reader = _Reader(scratch.client, content=False)
    for database in reader.keyspace():
        with scratch.client(database) as client:
            cursor: Any = 0
            while True:
                cursor, keys = client.scan(cursor, count=1000)
                if unwanted := [key for key in keys if not wanted(key)]:
                    deleted += int(client.unlink(*unwanted))
                if int(cursor) == 0:
                    break
    with scratch.client() as client:
        client.save()
    return deleted


# -------------------------------------------------------------------------------------------------------------- the cut


@dataclass(frozen=True)
class _Way:
    """How the dump is got: `copy` of `path`, or `stream`; `reason` completes the sentence 'because …'."""

    method: str
    reason: str
    path: Path | None = None


def _file_of(settings: RedisSettings, client: Client) -> tuple[Path | None, str]:
    """Where the server's RDB lies as seen from here, or why that is not known."""
    name = _config(client, "dbfilename")
    if settings.data_dir:
        return Path(settings.data_dir) / (name or "dump.rdb"), ""
    directory = _config(client, "dir")
    if directory is None or name is None:
        return None, "the server does not tell where its file lies"
    return Path(directory) / name, ""


def _choose(settings: RedisSettings, client: Client) -> _Way:
    """The way to the dump. Raises BackupError where the one that was asked for does not work."""
    if settings.method == "stream":
        return _Way("stream", "the settings say so")
    path, problem = _file_of(settings, client)
    if not problem and not _is_here(settings.host) and not settings.data_dir:
        problem = f"{settings.host} is another host"
    if path is not None and not problem:
        if not os.access(path.parent, os.R_OK | os.X_OK):
            problem = f"the directory {path.parent} cannot be read here"
        elif path.exists() and not os.access(path, os.R_OK):
            problem = f"{path} cannot be read by this user"
        else:
            problem = _refused(client, "BGSAVE", _ASKED) or ""
    if path is not None and not problem:
        return _Way("copy", f"{path} can be read here", path)
    if settings.method == "copy":
        raise BackupError(f"{_where(settings)} cannot be backed up by copy: {problem}; use the method stream or auto")
    return _Way("stream", problem)


class RedisCut(Cut):
    """A save under way (copy), or a replication stream under way (stream)."""

    walks = True

    def __init__(self, component: RedisComponent, level: str, way: _Way, client: Client):
        self._component = component
        self._settings = component.settings.redis
        self._context = component.context
        self._level = level
        self._way = way
        self._client = client
        self._child: process.Child | None = None
        self._file = self._context.workdir / f"redis-stream-{secrets.token_hex(4)}.rdb"
        self._before: os.stat_result | None = None
        self._forked_at = 0
        self._scratch: _Scratch | None = None
        self._summary: rdb.Summary | None = None
        self._warnings: list[str] = []
        self._left_out = 0
        self._content: dict[str, Any] | None = None
        self._content_missing = ""
        self._server = _info(client, "server")
        self.moment = clock.now()

    # --- opening

    def open(self, ready: Callable[[], None]) -> None:
        """Wait for whatever the server is saving now, then `ready()`, then the fork."""
        if self._way.method == "copy":
            self._wait_for_children()
            self._before = _stat(self._way.path)
            ready()
            self._begin_save()
        else:
            ready()
            self._begin_stream()

    def _wait_for_children(self) -> None:
        def idle() -> bool:
            state = _info(self._client, "persistence")
            return not (int(state.get("rdb_bgsave_in_progress", 0)) or int(state.get("aof_rewrite_in_progress", 0)))

        if not idle():
            self._component.reporter.step(f"{_where(self._settings)} is saving already: waiting for the end of that")
        _wait(idle, self._settings.save_timeout_s, f"{_where(self._settings)} did not end the save that was under way")

    def _begin_save(self) -> None:
        deadline = time.monotonic() + self._settings.save_timeout_s
        while True:
            self._forked_at = int(self._client.time()[0])
            try:
                self._client.execute_command("BGSAVE")
                self.moment = clock.now()
                return
            except redis.exceptions.ResponseError as error:  # somebody else's save came first: that one is not ours
                busy = "in progress" in str(error) or "active" in str(error)
                if not busy or time.monotonic() > deadline:
                    raise
            self._wait_for_children()

    def _begin_stream(self) -> None:
        settings = self._settings
        command = [_client_program(), "-h", settings.host, "-p", str(settings.port)]
        if settings.username:
            command += ["--user", settings.username]
        if settings.tls:
            command += ["--tls", *(["--cacert", settings.cacert] if settings.cacert else [])]
            command += ["--cert", settings.certfile, "--key", settings.keyfile or settings.certfile] if settings.certfile else []
        self._context.journal("redis-stream", component=self._component.name, path=str(self._file))
        # redis-cli makes it readable for everybody, unless it is there already
        os.close(
            process.guarded(lambda: os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), f"making {self._file}")
        )
        self._forked_at = int(self._client.time()[0])
        environment = {"REDISCLI_AUTH": settings.password} if settings.password else {}
        self._child = process.Child([*command, "--rdb", str(self._file)], env=environment, stdout=subprocess.DEVNULL)
        child = self._child
        _wait(
            lambda: child.process.poll() is not None or self._file.stat().st_size > 0,
            settings.save_timeout_s,
            f"{_where(settings)} did not begin to send its data",
        )
        self.moment = clock.now()
        if child.process.poll() is not None:
            self._end_stream()  # a small one has all arrived; one that failed says why

    # --- dumping

    def dump(self, out: Writer) -> None:
        with _talking(self._settings, "the dump"):
            if self._way.method == "copy":
                source = self._finished_save()
            else:
                self._end_stream()
                source = _pieces(self._file)
            wanted = _wanted(self._settings)
            if wanted is not None:
                source = self._filtered(source, wanted)
            if self._level == CONTENT and wanted is None:
                self._prepare_scratch()
            self._summary = self._write(source, out)
            if self._level == CONTENT or self._summary.modules:
                self._load_scratch(self._summary)
            if self._level == CONTENT and not self._content_missing:
                self._read_content()

    def _finished_save(self) -> Iterator[bytes]:
        """Wait for our save, make sure that it succeeded and that the file is its result. Gives the file's content."""
        where = _where(self._settings)

        def ended() -> bool:
            return not int(_info(self._client, "persistence").get("rdb_bgsave_in_progress", 0))

        _wait(ended, self._settings.save_timeout_s, f"the BGSAVE of {where} did not end")
        state = _info(self._client, "persistence")
        if state.get("rdb_last_bgsave_status") != "ok":
            raise BackupError(f"the BGSAVE of {where} failed: look into the server's log (a full disk or too little memory)")
        if int(state.get("rdb_last_save_time", 0)) < self._forked_at:
            raise BackupError(f"the BGSAVE of {where} ended without a new file: LASTSAVE is older than its start")
        path = self._way.path
        if path is None:
            raise AssertionError("the way `copy` always has a path")
        try:
            self._prove_fresh(path)
        except BackupError as error:
            if self._settings.method != "auto":
                raise
            return self._stream_instead(str(error))
        return _pieces(path)

    def _prove_fresh(self, path: Path) -> None:
        """The file must be another one than before the save, and say that it was written then: else it is stale, or
        another server's (a container's path need not be ours)."""
        after = _stat(path)
        if after is None:
            raise BackupError(
                f"{path} is not there after the save: data_dir must be the server's data directory as seen from here"
            )
        before = self._before
        if before is not None and (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns):
            raise BackupError(
                f"{path} did not change with the save: data_dir must be the server's data directory as seen from here"
            )
        with process.guarded(lambda: path.open("rb"), f"reading {path}") as file:
            saved = rdb.saved_at(file.read(4096))
        if saved is None or not self._forked_at - 1 <= saved <= int(self._client.time()[0]) + 1:
            raise BackupError(f"{path} was not written by this save: it says {saved} and the save began at {self._forked_at}")

    def _stream_instead(self, reason: str) -> Iterator[bytes]:
        self._warnings.append(f"{reason}; the replication stream was used instead, its cut is later than the others")
        self._component.reporter.warn(self._warnings[-1])
        self._way = _Way("stream", reason)
        self._begin_stream()
        self._end_stream()
        return _pieces(self._file)

    def _end_stream(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        try:
            with child:
                child.wait(timeout_s=self._settings.save_timeout_s)
        except ToolError as error:
            said = error.stderr
            if "NOPERM" in said:
                user = self._settings.username or "default"
                raise BackupError(
                    f"{_where(self._settings)}: the user '{user}' may not SYNC: give it +sync by ACL SETUSER"
                ) from None
            hint = ""
            name, version = _version(self._server)
            if name == "valkey" and _numbers(version) >= (9, 0):  # it takes every one for an old replica, its own valkey-cli, too
                hint = (
                    "; Valkey 9 does not send hashes whose fields expire to a program: let its file be read here (REDIS_DATA_DIR)"
                )
            raise BackupError(f"{_where(self._settings)} could not be read by replication: {error}{hint}") from None

    def _filtered(self, source: Iterator[bytes], wanted: Callable[[bytes], bool]) -> Iterator[bytes]:
        self._scratch = _Scratch(self._context, self._component.name)
        self._scratch.place(source)
        summary = _walk(Source(self._scratch.rdb, "none"))
        self._scratch.start(1 + max(summary.databases, default=0), self._modules(summary))
        self._left_out = _delete_unwanted(self._scratch, wanted)
        return _pieces(self._scratch.rdb)

    def _prepare_scratch(self) -> None:
        try:
            self._scratch = _Scratch(self._context, self._component.name)
        except BackupError as error:
            self._content_missing = f"values: no throwaway server could be started ({error})"

    def _write(self, source: Iterator[bytes], out: Writer) -> rdb.Summary:
        """Into the set's file, walked on the way; a throwaway server that is not running yet gets the same bytes."""
        loads = self._scratch is not None and _wanted(self._settings) is None
        with self._scratch.sink() if self._scratch is not None and loads else contextlib.nullcontext() as sink:

            def copied() -> Iterator[bytes]:
                for piece in source:
                    out.write(piece)
                    if sink is not None:
                        process.guarded(functools.partial(sink.write, piece), "writing the throwaway server's file")
                    yield piece

            summary = rdb.walk(copied())
        if summary.faults:
            raise BackupError(
                f"what {_where(self._settings)} wrote is not a whole dump: {'; '.join(summary.faults)}; back up again"
            )
        return summary

    def _modules(self, summary: rdb.Summary) -> list[_Module]:
        """What a throwaway server must have to load the data: nothing, where no module has any."""
        return self._component.modules_here(self._client) if summary.modules else []

    def _load_scratch(self, summary: rdb.Summary) -> None:
        """Start the throwaway server, unless it runs already. One that cannot load a module's data says now what a restore
        would say then."""
        if _wanted(self._settings) is not None or self._content_missing:
            return
        try:
            if self._scratch is None:
                self._scratch = _Scratch(self._context, self._component.name)
                self._scratch.place(_pieces(self._way.path or self._file))
            self._scratch.start(1 + max(summary.databases, default=0), self._modules(summary))
        except Cancelled:
            raise
        except BackupError as error:
            self._content_missing = f"values: {error}"
            if summary.modules:
                kinds = ", ".join(sorted(summary.modules))
                self._warnings.append(
                    f"the data of modules ({kinds}) can only be restored by files into a stopped server"
                    f" (restore_method file): {error}"
                )
                self._component.reporter.warn(self._warnings[-1])

    def _read_content(self) -> None:
        cut_ms = int(self.moment.timestamp() * 1000)
        if self._scratch is None:
            return
        try:
            held = _Reader(self._scratch.client, content=True, cut_ms=cut_ms).read()
        except Cancelled:
            raise
        except BackupError as error:
            self._content_missing = f"values: {error}"
            return
        self._content = _content_of(held, cut_ms)

    # --- afterwards

    def entry(self) -> dict[str, Any]:
        summary = self._summary
        if summary is None:
            raise BackupError("Redis was not dumped yet")
        name, version = _version(self._server)
        fingerprint = _fingerprint_of(summary)
        if self._level == CONTENT:
            fingerprint["level"] = CONTENT
            if self._content is not None:
                fingerprint["content"] = self._content
            else:
                fingerprint["content_missing"] = self._content_missing
        entry: dict[str, Any] = {
            "server": {"name": name, "version": version},
            "tool": self._tool(),
            "fingerprint": fingerprint,
            "method": self._method(),
            "requires": {
                "rdb_version": summary.version,
                "databases": 1 + max(summary.databases, default=0),
                "memory_bytes": int(summary.aux.get("used-mem", "0") or 0),
                "modules": sorted(summary.modules),
            },
            "warnings": [*self._warnings, *summary.notes],
        }
        entry["filters"] = {}
        if _wanted(self._settings) is not None:
            entry["filters"] = {"include": self._settings.include_keys, "exclude": self._settings.exclude_keys}
            entry["warnings"].append(f"{self._left_out} keys are left out by include_keys and exclude_keys")
        return entry

    def _tool(self) -> dict[str, str]:
        if self._way.method == "copy":
            return {"name": "BGSAVE", "version": _version(self._server)[1]}
        program = _client_program()
        said = process.run([program, "--version"], timeout_s=30)
        found = re.search(r"\d+\.\d+\.\d+", said)
        return {"name": Path(program).name, "version": found.group(0) if found else one_line(said)}

    def _method(self) -> str:
        text = "BGSAVE and a copy of the file" if self._way.method == "copy" else "replication stream by redis-cli --rdb"
        text += f", because {self._way.reason}"
        return text + ("; then only the wanted keys, by a throwaway server" if _wanted(self._settings) is not None else "")

    def close(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None
        if self._scratch is not None:
            self._scratch.close()
            self._scratch = None
        self._file.unlink(missing_ok=True)
        with contextlib.suppress(redis.exceptions.RedisError, OSError):
            self._client.close()


def _stat(path: Path | None) -> os.stat_result | None:
    try:
        return path.stat() if path is not None else None
    except OSError:
        return None


def _pieces(path: Path) -> Iterator[bytes]:
    """A file's content by one descriptor: who renames another file to its place does not touch what we read."""
    with process.guarded(lambda: path.open("rb", buffering=0), f"reading {path}") as file:
        first = os.fstat(file.fileno())
        while piece := process.guarded(lambda: file.read(PIECE), f"reading {path}"):
            yield piece
        last = os.fstat(file.fileno())
    if (first.st_size, first.st_mtime_ns) != (last.st_size, last.st_mtime_ns):
        raise BackupError(f"{path} was changed in place while it was copied: back up again, or use the method stream")


# ------------------------------------------------------------------------------------------------------ key by key


def _copy_keys(source: Callable[[int], Client], target: Callable[[int], Client]) -> int:
    """Bring every key (DUMP, RESTORE) and function library from one server to another; gives how many keys it sent."""
    reader, pace = _Reader(source, content=False), _Pace()
    sent = 0
    for database in sorted(reader.keyspace()):
        with source(database) as giver, target(database) as taker:
            cursor: Any = 0
            while True:
                cursor, found = giver.scan(cursor, count=_PAGE)
                keys = list(dict.fromkeys(found))
                while keys:
                    some, keys = keys[: pace.size], keys[pace.size :]
                    sent += _send(reader, giver, taker, some, pace)
                    process.raise_if_stopping()
                if int(cursor) == 0:
                    break
    with source(0) as giver, target(0) as taker:
        if _libraries(giver):
            taker.execute_command("FUNCTION", "RESTORE", _pipelined(giver, [("FUNCTION", "DUMP")])[0], "FLUSH")
    return sent


def _empty(target: Callable[[int], Client]) -> None:
    """Delete all keys and function libraries; one by one where FLUSHALL is not to be had."""
    with target(0) as client:
        if _libraries(client):
            client.execute_command("FUNCTION", "FLUSH")
        try:
            client.flushall()
            return
        except redis.exceptions.ResponseError as error:
            if not isinstance(error, redis.exceptions.NoPermissionError) and not _is_unknown(error):
                raise
    for database in _Reader(target, content=False).keyspace():
        with target(database) as client:
            for key in client.scan_iter(count=1000):
                client.unlink(key)


def _send(reader: _Reader, giver: Client, taker: Client, keys: list[bytes], pace: _Pace) -> int:
    expiries = reader.expiries(giver, keys)
    values = _pipelined(giver, [("DUMP", key) for key in keys])
    pace.saw(values)
    commands = [
        ("RESTORE", key, max(expiry, 0), value, "REPLACE", "ABSTTL")
        for key, expiry, value in zip(keys, expiries, values, strict=True)
        if value is not None and expiry != -2
    ]
    _pipelined(taker, commands)
    return len(commands)


# ---------------------------------------------------------------------------------------------- a stopped server's files

CONFIGURATIONS = [
    Path(one) for one in ("/etc/redis/redis.conf", "/etc/redis.conf", "/etc/valkey/valkey.conf", "/etc/valkey.conf")
]
"""Where a server's configuration is looked for: the first whose `dir` is the data directory is believed."""


def _directives(directory: Path) -> dict[str, str]:
    """The configuration of the server whose data lies in `directory`; empty where none is found."""
    for path in CONFIGURATIONS:
        try:
            lines = [line.split(None, 1) for line in path.read_text(errors="replace").splitlines() if line.strip()]
        except OSError:
            continue
        found = {
            words[0].lower(): words[1].strip().strip('"') for words in lines if len(words) == 2 and not words[0].startswith("#")
        }
        if "dir" in found and Path(found["dir"]).resolve() == directory.resolve():
            return found
    return {}


@dataclass(frozen=True)
class _Files:
    """Which files a stopped server will read. `append` is the append-only directory (7.0+), or its single file."""

    directory: Path
    dump: str
    append: str = ""
    append_file: str = "appendonly.aof"
    known: bool = True
    """Whether `appendonly` was found out; else it is taken as `no`."""

    @property
    def names(self) -> list[str]:
        """What is moved aside where it exists."""
        return [self.dump, *([self.append] if self.append else [])]


def _files(directory: Path) -> _Files:
    """With `appendonly yes` a server reads only its append-only files, and starts empty where they are missing.

    Whether it is set is read in the server's configuration; where none is found, append-only files in the directory say so.
    """
    said = _directives(directory)
    dump = said.get("dbfilename", "dump.rdb")
    folder = said.get("appenddirname", "appendonlydir")
    name = said.get("appendfilename", "appendonly.aof")
    manifests = sorted((directory / folder).glob("*.manifest"))
    if said:
        if said.get("appendonly", "no").lower() != "yes":
            return _Files(directory, dump)
        single = (directory / name).is_file() and not manifests
        return _Files(directory, dump, name if single else folder, name)
    if manifests:
        return _Files(directory, dump, folder, manifests[0].name.removesuffix(".manifest"))
    if (directory / name).is_file():
        return _Files(directory, dump, name, name)
    return _Files(directory, dump, known=False)


# -------------------------------------------------------------------------------------------------------- the restoration


@dataclass
class _Target:
    """What a restore found out about the server that it will change."""

    method: str = ""
    reason: str = ""
    version: tuple[str, str] = ("redis", "0")
    role: str = ""
    keys: int = 0
    requires: dict[str, Any] = field(default_factory=dict)
    """What it must offer to take the dump."""
    modules: list[_Module] | None = None
    """None where it does not tell."""
    files: _Files | None = None
    running: bool = True


class _NoLink(BackupError):
    """The target did not reach the throwaway server: nothing was changed, and another way may do."""


class RedisRestoration(Restoration):
    """A restore by replication, key by key, or by files."""

    def __init__(self, component: RedisComponent, source: Source, options: RestoreOptions):
        self._component = component
        self._context = component.context
        self._settings = component.settings.redis
        self._source = source
        self._options = options
        self._judge = _Judge(source)
        self._target = _Target()
        self._seed: _Scratch | None = None
        self._safety: Path | None = None
        self._safety_problem = ""
        self._aside: Path | None = None
        self._staged: Path | None = None
        self._touched = False
        self._done = False

    def _live(self, database: int) -> Client:
        return _connect(self._settings, database)

    # --- prepare

    def prepare(self) -> None:
        """Load the dump into a throwaway server (or lay it beside the files) and save the present data."""
        with _talking(self._settings, "preparing the restore"):
            plan, self._target = self._component.inspect(self._source, self._options)
            if plan.problems:
                raise BackupError("; ".join(plan.problems))
            if self._target.method == "file":
                self._stage_file()
                return
            self._seed = self._load(self._source)
            self._save_present()

    def _load(self, source: Source) -> _Scratch:
        """A throwaway server that holds the file, with the password that the target will send."""
        requires = self._component.requires(source)
        password, user, address = "", "", ""
        if self._target.method == "replicate":
            with self._live(0) as client:
                password = _config(client, "masterauth") or ""
                user = _config(client, "masteruser") or ""
                address = _own_address(client)
        # What it sends is not kept: between processors of one machine compressing takes longer than sending.
        compresses = not _is_here(self._settings.host)
        name = self._component.name
        seed = _Scratch(self._context, name, password=password, user=user, address=address, compresses=compresses)
        try:
            seed.place(source.pieces())
            self._component.start(seed, requires, self._target)
            self._prove_loaded(seed, source)
        except BaseException:
            seed.close()
            raise
        return seed

    def _prove_loaded(self, seed: _Scratch, source: Source) -> None:
        """Keys loaded and keys expired at load must add up to those in the file: DBSIZE alone does not tell."""
        fingerprint = _Judge(source).fingerprint()
        if not fingerprint.get("known", True):
            return
        expected = sum(int(one["keys"]) for one in fingerprint["databases"].values())
        with seed.client() as client:
            state = _info(client, "persistence")
        if "rdb_last_load_keys_loaded" not in state:  # before 7.0
            return
        loaded, expired = int(state["rdb_last_load_keys_loaded"]), int(state["rdb_last_load_keys_expired"])
        emptied = 0  # hashes whose fields have all expired: Redis loads them, Valkey does not (as 8.2 and 9.1 did)
        first = fingerprint.get("first_expiry_ms")
        if loaded + expired < expected and first is not None and first <= (now := int(time.time() * 1000)):
            emptied = _walk(source, now).emptied
        if not expected - emptied <= loaded + expired <= expected:
            raise VerificationError(
                f"{source.path} holds {expected} keys, and a throwaway server loaded {loaded} and {expired} expired ones"
            )

    def _save_present(self) -> None:
        """The target's present data into a file of its own, before anything is changed."""
        folder = Path(self._component.settings.backup_dir) / ".state" / "previous"
        process.guarded(lambda: make_private(folder), f"making {folder}")
        path = folder / f"redis_{self._component.context.stamp}.rdb"
        for number in range(2, 100):
            if not path.exists():
                break
            path = path.with_stem(f"redis_{self._component.context.stamp}_{number}")
        with Writer(path) as writer:
            self._component.dump_all(writer)
            writer.close()
        sync_directory(folder)
        self._safety = path

    def _stage_file(self) -> None:
        files = self._files()
        staged = files.directory / f".agentmem-restore-{secrets.token_hex(4)}.rdb"
        self._context.journal("redis-staged", component=self._component.name, path=str(staged))
        self._staged = staged

        def write() -> None:
            owner = files.directory.stat()
            descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                for piece in self._source.pieces():
                    file.write(piece)
                os.fsync(file.fileno())
            _give(staged, owner)

        process.guarded(write, f"writing {staged}")

    def _files(self) -> _Files:
        if self._target.files is None:
            raise BackupError("the restore of Redis by files was not prepared")
        return self._target.files

    # --- check and compare

    def check(self) -> Comparison:
        """The throwaway server against the fingerprint."""
        if self._seed is None:
            return self._compare_file(self._staged)
        with _talking(self._settings, "checking the throwaway server"):
            return self._judge.compare(self._seed.client)

    def compare(self) -> Comparison:
        """The live server against the fingerprint; of a stopped one, the file that it will load."""
        if self._target.method == "file" and not self._answers():
            files = self._files()
            comparison = self._compare_file(files.directory / files.dump)
            comparison.not_compared.append("the server itself, which is stopped: start it, then check it")
            return comparison
        with _talking(self._settings, "comparing"):
            comparison = self._judge.compare(self._live, self._seed.client if self._seed else None)
            if self._touched:
                self._await_persisted()
            return comparison

    def _compare_file(self, path: Path | None) -> Comparison:
        comparison = Comparison()
        if path is None:
            comparison.not_compared.append("nothing was prepared")
            return comparison
        summary = rdb.walk(_pieces(path))
        comparison.differences += [f"{path}: {fault}" for fault in summary.faults]
        expected, found = self._judge.fingerprint(), _fingerprint_of(summary)
        if not summary.counted:
            comparison.not_compared += summary.notes
            return comparison
        comparison.compared += 1 + len(found["databases"])
        if (expected["databases"], expected["functions"]) != (found["databases"], found["functions"]):
            comparison.differences.append(f"{path} holds {_say_counts(found)}, the backup {_say_counts(expected)}")
        return comparison

    def _answers(self) -> bool:
        try:
            with self._live(0) as client:
                return bool(client.ping())
        except redis.exceptions.RedisError:
            return False

    # --- commit

    def commit(self) -> None:
        """The switch."""
        with _talking(self._settings, "the switch to the restored data"):
            if self._target.method == "file":
                self._commit_files()
            elif self._seed is not None:
                self._switch_to(self._seed)
                self._persist()
            else:
                raise BackupError("the restore of Redis was not prepared")
        self._done = True

    def _switch_to(self, seed: _Scratch) -> None:
        if self._target.method == "replicate":
            try:
                self._replicate(seed)
                return
            except _NoLink as error:
                if self._settings.restore_method == "replicate":
                    raise
                self._component.reporter.warn(f"{error}; the keys are sent one by one instead")
                self._target.method, self._target.reason = "keys", str(error)
        self._touched = True
        _empty(self._live)
        _copy_keys(seed.client, self._live)

    def _replicate(self, seed: _Scratch) -> None:
        """Make the target a replica of the throwaway server until it has everything, then a master again."""
        with self._live(0) as client:
            temporary = not _config(client, "masterauth")
            digest = hashlib.sha256(seed.password.encode()).hexdigest() if temporary else ""
            facts = {"host": seed.address, "port": seed.port, "masterauth_sha256": digest}
            self._context.journal("redis-link", component=self._component.name, **facts)
            try:
                if temporary:
                    client.config_set("masterauth", seed.password)
                client.execute_command("REPLICAOF", seed.address, str(seed.port))
                self._await_link(client)
            finally:
                client.execute_command("REPLICAOF", "NO", "ONE")
                if temporary:
                    client.config_set("masterauth", "")

    def _await_link(self, client: Client) -> None:
        """Wait for the whole data. Raises _NoLink where the transfer never began."""
        deadline = time.monotonic() + _LINK_S
        while True:
            state = _info(client, "replication")
            if state.get("master_link_status") == "up":
                self._touched = True
                return
            if int(state.get("master_sync_in_progress", 0)) or int(_info(client, "persistence").get("loading", 0)):
                self._touched = True
                deadline = time.monotonic() + self._settings.save_timeout_s
            process.raise_if_stopping()
            if time.monotonic() > deadline:
                if self._touched:
                    raise BackupError(f"{_where(self._settings)} did not end the transfer from the throwaway server")
                raise _NoLink(f"{_where(self._settings)} could not reach the throwaway server as its replica")
            time.sleep(_POLL_S)

    def _persist(self) -> None:
        """What was restored must survive the server's death: the append-only file is rewritten, or the RDB saved."""
        with self._live(0) as client:
            self._await_idle(client)
            if not int(_info(client, "persistence").get("aof_enabled", 0)) and _config(client, "save"):
                if refused := _refused(client, "BGSAVE", _ASKED):
                    self._component.reporter.warn(
                        f"{_where(self._settings)} cannot be told to save ({refused}): the restored data is on its disk"
                        " when it next saves by itself"
                    )
                    return
                client.execute_command("BGSAVE")

    def _await_persisted(self) -> None:
        """Wait for the end of what `_persist` began, which the server did beside other work; warn where it failed."""
        with self._live(0) as client:
            self._await_idle(client)
            state = _info(client, "persistence")
        saved = "aof_last_bgrewrite_status" if int(state.get("aof_enabled", 0)) else "rdb_last_bgsave_status"
        if state.get(saved, "ok") != "ok":
            self._component.reporter.warn(
                f"{_where(self._settings)} could not save the restored data to its disk: look into its log"
            )

    def _await_idle(self, client: Client) -> None:
        def idle() -> bool:
            state = _info(client, "persistence")
            busy = ("aof_rewrite_in_progress", "aof_rewrite_scheduled", "rdb_bgsave_in_progress")
            return not any(int(state.get(one, 0)) for one in busy)

        _wait(idle, self._settings.save_timeout_s, f"{_where(self._settings)} did not end its saving")

    def _commit_files(self) -> None:
        """Old files aside, the new one into their place: as the dump, and as the base of the append-only files."""
        files, staged = self._files(), self._staged
        if self._answers():
            raise BackupError(
                f"{_where(self._settings)} was started meanwhile: stop it, for it would overwrite the restored files"
            )
        aside = files.directory / f"agentmem-previous-{self._component.context.stamp}-{secrets.token_hex(2)}"
        self._context.journal(
            "redis-files", component=self._component.name, path=str(files.directory), aside=str(aside), names=files.names
        )
        self._aside = aside

        def switch() -> None:
            owner = files.directory.stat()
            aside.mkdir(mode=0o700)
            _give(aside, owner)
            self._touched = True
            for name in files.names:
                if (files.directory / name).exists():
                    (files.directory / name).rename(aside / name)
            sync_directory(aside)
            if files.append:
                _place_append(files, staged, owner)
            if staged is not None:
                staged.rename(files.directory / files.dump)
            sync_directory(files.directory)

        process.guarded(switch, f"placing the files in {files.directory}")

    def complete(self) -> None:
        """Nothing: the switch was final."""

    # --- the way back

    def abort(self) -> None:
        """Bring back what was there, where the switch had begun."""
        if not self._touched:
            return
        with _talking(self._settings, "taking the restore back"):
            if self._target.method == "file":
                _move_back(self._files().directory, self._aside, self._files().names)
            elif self._safety is not None:
                if self._seed is not None:
                    self._seed.close()
                self._seed = self._load(Source(self._safety, "none"))
                self._switch_to(self._seed)
                self._persist()
                self._await_persisted()
            else:
                raise BackupError(
                    f"{_where(self._settings)} may hold a part of the restored data, and no copy of the old is there"
                )
        self._touched = self._done = False

    def state(self) -> str:
        where = _where(self._settings)
        if self._target.method == "file" and self._aside is not None and self._touched:
            return f"{where}: the files in {self._files().directory} are the new ones, the old ones lie in {self._aside}"
        old = f", its old data also lies in {self._safety}" if self._safety else ""
        if not self._touched:
            return f"{where} holds its old data{old}"
        now = "the new data" if self._done else "a part of the new data"
        return f"{where} holds {now}; its old data lies in {self._safety}"

    def close(self) -> None:
        if self._seed is not None:
            self._seed.close()
            self._seed = None
        if self._staged is not None:
            self._staged.unlink(missing_ok=True)


def _give(path: Path, owner: os.stat_result) -> None:
    if os.geteuid() == 0:
        os.chown(path, owner.st_uid, owner.st_gid)


def _place_append(files: _Files, staged: Path | None, owner: os.stat_result) -> None:
    """The dump as append-only files: a base and a manifest of one line since 7.0, before that the file itself."""
    if staged is None:
        return
    place = files.directory / files.append
    if files.append == files.append_file:
        os.link(staged, place)
        return
    building = place.with_name(f".{place.name}-{secrets.token_hex(4)}")
    building.mkdir(mode=0o700)
    base = f"{files.append_file}.1.base.rdb"
    os.link(staged, building / base)
    manifest = building / f"{files.append_file}.manifest"
    with os.fdopen(os.open(manifest, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(f"file {base} seq 1 type b\n")  # Redis: aof.c, AOF manifest file implementation
        file.flush()
        os.fsync(file.fileno())
    for path in (manifest, building):
        _give(path, owner)
    sync_directory(building)
    building.rename(place)


def _move_back(directory: Path, aside: Path | None, names: Sequence[str]) -> None:
    """Put files that were moved aside back to their places; what was put there meanwhile is removed."""
    if aside is None or not aside.is_dir():
        return

    def back() -> None:
        for name in names:
            place = directory / name
            if place.is_dir():
                shutil.rmtree(place)
            else:
                place.unlink(missing_ok=True)
            if (aside / name).exists():
                (aside / name).rename(place)
        aside.rmdir()
        sync_directory(directory)

    process.guarded(back, f"putting the old files back in {directory}")


def _own_address(client: Client) -> str:
    """Our address as the server sees it: the end of the connection that we have to it."""
    connection = client.connection_pool.get_connection()
    try:
        return str(connection._sock.getsockname()[0])
    finally:
        client.connection_pool.release(connection)


# --------------------------------------------------------------------------------------------------------- the component


class RedisComponent(Component):
    """The store Redis."""

    name: ClassVar[str] = "redis"
    prefix: ClassVar[str] = "redis"
    extension: ClassVar[str] = ".rdb"
    label: ClassVar[str] = "Redis"
    title: ClassVar[str] = "Redis Backup"
    compressible: ClassVar[bool] = False

    # --- backing up

    def probe(self) -> Probe:
        probe = Probe()
        settings = self.settings.redis
        try:
            with _talking(settings, "the first questions"), _connect(settings, within_s=_FIRST_S) as client:
                self._probe(client, probe)
        except BackupError as error:
            probe.problems.append(str(error))
        filtered = _wanted(settings) is not None
        if filtered or self.settings.fingerprint == CONTENT:
            try:
                program = _server_program()
            except BackupError as error:
                what = "include_keys and exclude_keys need a throwaway server" if filtered else "values will not be compared"
                (probe.problems if filtered else probe.warnings).append(f"{what}: {error}")
            else:
                self._probe_program(program, probe)
        return probe

    def _probe(self, client: Client, probe: Probe) -> None:
        settings = self.settings.redis
        server = _info(client, "server")
        name, version = _version(server)
        probe.facts = {"server": {"name": name, "version": version}}
        where = _where(settings)
        if _mode(server) == "cluster":
            probe.problems.append(
                f"{where} is a node of a Redis Cluster, which is not supported: each node would give only its part"
            )
        if _mode(server) == "sentinel":
            probe.problems.append(f"{where} is a Sentinel and holds no data: give the address of the server that it watches")
            return
        persistence = _info(client, "persistence")
        if int(persistence.get("loading", 0)):
            probe.problems.append(f"{where} is still loading its data: wait until it has ended")
        if persistence.get("rdb_last_bgsave_status", "ok") != "ok":
            probe.warnings.append(f"the last BGSAVE of {where} failed: look into the server's log")
        memory = _info(client, "memory")
        probe.raw_bytes = int(memory.get("used_memory_dataset", memory.get("used_memory", 0)))
        if refused := _refused(client, "TIME"):
            probe.problems.append(f"{where} does not tell its time ({refused}): give +time by ACL SETUSER")
        try:
            way = _choose(settings, client)
        except BackupError as error:
            probe.problems.append(str(error))
            return
        if way.path is not None and way.path.exists():
            probe.raw_bytes = max(way.path.stat().st_size, probe.raw_bytes // 2)
        probe.facts["method"] = f"{way.method}, because {way.reason}"
        if way.method == "stream":
            self._probe_stream(client, probe)

    def _probe_stream(self, client: Client, probe: Probe) -> None:
        try:
            _client_program()
        except BackupError as error:
            probe.problems.append(str(error))
        if refused := _may_sync(client):
            user = self.settings.redis.username or "default"
            probe.problems.append(
                f"{_where(self.settings.redis)}: the user '{user}' may not SYNC, and the file cannot be copied either"
                f" ({refused}): give it +sync by ACL SETUSER"
            )

    def _probe_program(self, program: str, probe: Probe) -> None:
        name, version = _program_version(program)
        server = probe.facts.get("server")
        if server and _format_of(name, version) < _format_of(server["name"], server["version"]):
            made = server["version"]
            text = f"the {name}-server {version} here is older than the server's {made} and cannot load its dumps: update it"
            (probe.problems if _wanted(self.settings.redis) is not None else probe.warnings).append(text)

    def open_cut(self, ready: Callable[[], None], level: str) -> Cut:
        with _talking(self.settings.redis, "the cut"):
            client = _connect(self.settings.redis, within_s=_ANSWER_S)
            way = _choose(self.settings.redis, client)
            self.reporter.step(f"Redis: {way.method}, because {way.reason}")
            cut = RedisCut(self, level, way, client)
            try:
                cut.open(ready)
            except BaseException:
                cut.close()
                raise
            return cut

    def dump_all(self, out: Writer) -> None:
        """All present data of the server into `out`, whatever the filters say: a restore's safety copy.

        Where the server gives away neither file nor replication stream, key by key through a throwaway server.
        """
        settings = self.settings.redis
        plain = RedisComponent(self.context)
        plain.settings = dataclasses.replace(self.settings, redis=dataclasses.replace(settings, include_keys=[], exclude_keys=[]))
        try:
            cut = plain.open_cut(lambda: None, COUNTS)
        except Cancelled:
            raise
        except BackupError as error:
            self.reporter.warn(f"the safety copy is made key by key, not at one moment: {error}")
            self._dump_by_keys(out)
            return
        try:
            cut.dump(out)
        finally:
            cut.close()

    def _dump_by_keys(self, out: Writer) -> None:
        settings = self.settings.redis
        scratch = _Scratch(self.context, self.name)
        try:
            with _connect(settings) as client:
                numbers = [int(name[2:]) for name in _info(client, "keyspace") if name.startswith("db")]
                modules = self.modules_here(client)
            scratch.start(1 + max(numbers, default=0), modules)
            _copy_keys(lambda database: _connect(settings, database), scratch.client)
            with scratch.client() as client:
                client.save()
            for piece in _pieces(scratch.rdb):
                out.write(piece)
        finally:
            scratch.close()

    # --- looking at a file

    def examine(self, source: Source, pieces: Iterator[bytes]) -> Examination:
        summary = rdb.walk(pieces)
        faults = [f"Redis backup is damaged: {fault}" for fault in summary.faults]
        facts: dict[str, Any] = {"rdb_version": summary.version, "written_by": summary.server, "notes": summary.notes}
        if summary.counted:
            facts |= {"keys": summary.keys, "functions": summary.functions}
        expected = (source.entry or {}).get("fingerprint")
        if expected is not None and not faults:
            faults += _count_faults(expected, _fingerprint_of(summary))
        return Examination("Redis backup format OK", faults, facts)

    def requires(self, source: Source) -> dict[str, Any]:
        """What a server must offer to take this file: of the manifest, else of the file itself."""
        if source.entry is not None and "requires" in source.entry:
            return dict(source.entry["requires"])
        summary = _walk(source)
        return {
            "rdb_version": summary.version,
            "databases": 1 + max(summary.databases, default=0),
            "memory_bytes": int(summary.aux.get("used-mem", "0") or 0),
            "modules": sorted(summary.modules),
        }

    # --- restoring

    def plan_restore(self, source: Source, options: RestoreOptions) -> RestorePlan:
        try:
            with _talking(self.settings.redis, "planning the restore"):
                plan, target = self.inspect(source, options)
                if target.requires.get("modules") and target.running and not plan.problems:
                    self._try(source, target)
                return plan
        except BackupError as error:
            return RestorePlan(problems=[str(error)])

    def _try(self, source: Source, target: _Target) -> None:
        """Load the dump into a throwaway server: whether it can take the data of modules, only the attempt tells."""
        trial = _Scratch(self.context, self.name)
        try:
            trial.place(source.pieces())
            self.start(trial, target.requires, target)
        finally:
            trial.close()

    def start(self, seed: _Scratch, requires: dict[str, Any], target: _Target) -> None:
        """Start a throwaway server whose data the target will get. Raises BackupError where one of them cannot take the data
        of the modules that is in it: a server that is sent what it has no module for ends (redis: rdb.c)."""
        databases, where = int(requires["databases"]), _where(self.settings.redis)
        if not requires.get("modules"):
            seed.start(databases)
            return
        holds = f"the dump holds data of modules ({', '.join(requires['modules'])})"
        if target.modules is None:
            raise BackupError(f"{holds}, and {where} does not tell which it has: give its user +module|list by ACL SETUSER")
        try:
            seed.start(databases, self._here(target.modules))
        except BackupError as error:
            paths = ", ".join(one.path for one in target.modules if Path(one.path).is_absolute())
            install = f"install the modules here where {where} has them ({paths}), or " if paths else ""
            raise BackupError(
                f"{holds}, which a throwaway server cannot load: {install}stop the server and restore by files"
                f" (restore_method file); {error}"
            ) from None
        with seed.client() as client:
            theirs = {one.name: one.version for one in target.modules}
            missing = [one.name for one in _modules(client) or () if theirs.get(one.name, -1) < one.version]
        if missing:
            raise BackupError(
                f"{holds}, and {where} lacks {', '.join(missing)}, or has an older one: load the same there, for it may be needed"
            )

    def _here(self, modules: Iterable[_Module]) -> list[_Module]:
        """Those of a server's modules that a throwaway server may load: a file that another machine names is not its own."""
        return list(modules) if _is_here(self.settings.redis.host) else []

    def modules_here(self, client: Client) -> list[_Module]:
        """The same of the live server."""
        return self._here(_modules(client) or ())

    def inspect(self, source: Source, options: RestoreOptions) -> tuple[RestorePlan, _Target]:
        """The plan, and what it is built on."""
        settings = self.settings.redis
        plan, target = RestorePlan(), _Target()
        requires = target.requires = self.requires(source)
        client = _connect(settings, within_s=_FIRST_S)
        try:
            with _talking(settings, "asking about the server"), client:
                self._look_at_server(client, requires, options, plan, target)
        except BackupError as error:
            if _listens(settings) or settings.restore_method not in ("auto", "file") or not settings.data_dir:
                hint = (
                    ""
                    if _listens(settings) or settings.data_dir
                    else " (a stopped server is restored by its files: set REDIS_DATA_DIR)"
                )
                plan.problems.append(f"{error}{hint}")
                return plan, target
            self._look_at_files(plan, target)
        fingerprint = _Judge(source).fingerprint()
        if target.running and target.method and not plan.problems:
            plan.problems += self._rights(fingerprint, target)
        coming = _say_counts(fingerprint)
        ways = {
            "replicate": "by replication from a throwaway server",
            "keys": "key by key from a throwaway server",
            "file": "as files of the stopped server",
        }
        if target.method:
            present = f"{target.keys} keys, and its functions, are" if target.running else f"the files in {settings.data_dir} are"
            plan.lines.append(f"{_where(settings)}: {present} replaced by {coming}, {ways[target.method]}: {target.reason}")
        return plan, target

    def _rights(self, fingerprint: dict[str, Any], target: _Target) -> list[str]:
        """What the user may not do that this restore will: asked for now, and not found out after the switch."""
        settings = self.settings.redis
        with _talking(settings, "asking for rights"), _connect(settings, within_s=_FIRST_S) as client:
            asked = list(_questions(client, fingerprint))
            if target.method == "keys":
                asked.append(("RESTORE", _ASKED, "0", _ASKED))
                # What deletes is never sent to ask for the right: some other server might take it as it is.
                if _dry_run(client, "FLUSHALL") != "OK":
                    asked.append(("UNLINK", _ASKED))
                if fingerprint.get("functions"):
                    asked.append(("FUNCTION", "RESTORE", _ASKED))
            # One that names keys which the user may use is allowed, though not for the key that it was asked with.
            missing = [command for command in asked if "command" in (_refused(client, *command) or "")]
            if target.method == "keys" and not _refused(client, "FUNCTION", "LIST") and _libraries(client):
                missing += [("FUNCTION", "FLUSH")] if (_dry_run(client, "FUNCTION", "FLUSH") or "OK") != "OK" else []
        if not missing:
            return []
        names = [" ".join(one[:2]) if one[0] in ("FUNCTION", "XINFO") else one[0] for one in missing]
        rights = " ".join(f"+{name.lower().replace(' ', '|')}" for name in names)
        user = settings.username or "default"
        return [
            f"{_where(settings)}: the user '{user}' may not use {', '.join(names)}, which the restore needs: give it {rights} by"
            " ACL SETUSER, and do not rename them"
        ]

    def _look_at_server(
        self, client: Client, requires: dict[str, Any], options: RestoreOptions, plan: RestorePlan, target: _Target
    ) -> None:
        settings = self.settings.redis
        where = _where(settings)
        server = _info(client, "server")
        target.version = _version(server)
        target.modules = _modules(client)
        if settings.restore_method == "file":
            plan.problems.append(
                f"{where} is running, and a restore by files needs it stopped: stop it, or set restore_method to auto"
            )
            return
        if _mode(server) == "cluster":
            plan.problems.append(f"{where} is a node of a Redis Cluster, which cannot be restored into")
            return
        replication = _info(client, "replication")
        if replication.get("role") != "master":
            master = f"{replication.get('master_host')}:{replication.get('master_port')}"
            plan.problems.append(f"{where} is a replica of {master}: restore into that one")
            return
        target.keys = sum(int(one["keys"]) for name, one in _info(client, "keyspace").items() if name.startswith("db"))
        self._check_versions(requires, plan, target)
        self._check_room(client, requires, options, plan)
        target.method, target.reason = self._way_into(client, plan)
        if target.method == "keys" and int(replication.get("min_slaves_good_slaves", 1)) < _minimum_replicas(client):
            plan.problems.append(f"{where} refuses writes now, because it has fewer replicas than min-replicas-to-write asks for")

    def _check_versions(self, requires: dict[str, Any], plan: RestorePlan, target: _Target) -> None:
        where = _where(self.settings.redis)
        newest = _format_of(*target.version)
        if int(requires["rdb_version"]) > newest:
            plan.problems.append(
                f"the dump has the format {requires['rdb_version']}, and {where} ({target.version[1]}) reads no newer than"
                f" {newest}: update the server"
            )
        try:
            program = _server_program()
        except BackupError as error:
            plan.problems.append(f"a restore needs a throwaway server: {error}")
            return
        name, version = _program_version(program)
        seed = _format_of(name, version)
        if seed > newest:
            plan.problems.append(
                f"the {name}-server {version} here is newer than {where} ({target.version[1]}), which could not read what it"
                " sends: install the server's own version here"
            )
        if seed < int(requires["rdb_version"]):
            plan.problems.append(f"the {name}-server {version} here is too old to load the dump: install the version of {where}")

    def _check_room(self, client: Client, requires: dict[str, Any], options: RestoreOptions, plan: RestorePlan) -> None:
        where = _where(self.settings.redis)
        memory = _info(client, "memory")
        limit, needed = int(memory.get("maxmemory", 0)), int(requires["memory_bytes"])
        if limit and needed > limit:
            text = f"the data needs about {needed} bytes of memory, and maxmemory of {where} is {limit}"
            if "maxmemory" in options.accept:
                plan.warnings.append(f"{text}: what is above it is evicted, or writes are refused")
            else:
                plan.problems.append(f"{text}: raise it, or accept that keys are evicted by naming the risk `maxmemory`")
        try:
            client.execute_command("SELECT", int(requires["databases"]) - 1)
        except redis.exceptions.ResponseError:
            plan.problems.append(
                f"the dump uses database {int(requires['databases']) - 1}, and {where} has fewer:"
                " raise `databases` in its configuration"
            )
        else:
            client.execute_command("SELECT", 0)

    def _way_into(self, client: Client, plan: RestorePlan) -> tuple[str, str]:
        """replicate or keys, and why."""
        settings = self.settings.redis
        if settings.restore_method == "keys":
            return "keys", "the settings say so"
        problem = self._no_replication(client)
        if not problem:
            return "replicate", "it takes the place of all data at once"
        if settings.restore_method == "replicate":
            plan.problems.append(
                f"{_where(settings)} cannot be restored by replication: {problem}; set restore_method to auto or keys"
            )
        return "keys", problem

    def _no_replication(self, client: Client) -> str:
        """Why the server cannot become the replica of a throwaway server; empty where it can."""
        if refused := _refused(client, "REPLICAOF", "NO", "ONE"):  # does nothing to a master
            return f"REPLICAOF is refused ({refused})"
        if _config(client, "masterauth") is None or _refused(client, "CONFIG", "SET", _ASKED, _ASKED):
            return "CONFIG is refused, so that it cannot be given the throwaway server's password"
        if _config(client, "tls-replication") == "yes":
            return "it replicates by TLS only"
        if dict(client.pubsub_numsub("__sentinel__:hello")).get(b"__sentinel__:hello", 0):
            return "a Sentinel watches it and would take part in the switch"
        return ""

    def _look_at_files(self, plan: RestorePlan, target: _Target) -> None:
        directory = Path(self.settings.redis.data_dir)
        target.running = False
        if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
            plan.problems.append(f"{directory} is not a directory that can be written here: check REDIS_DATA_DIR")
            return
        if pid := _works_in(directory):
            plan.problems.append(
                f"{_where(self.settings.redis)} does not answer, but a server (process {pid}) works in {directory}: correct "
                "REDIS_HOST and REDIS_PORT, or stop it"
            )
            return
        files = _files(directory)
        target.files, target.method = files, "file"
        target.reason = f"it is stopped; appendonly is {'yes' if files.append else 'no'}"
        plan.lines.append(f"the present files are moved aside within {directory}")
        if not files.known:
            plan.warnings.append(
                f"no configuration with `dir {directory}` was found and no append-only files: taken as appendonly no;"
                " a server with appendonly yes would start empty"
            )

    def restoration(self, source: Source, options: RestoreOptions) -> Restoration:
        return RedisRestoration(self, source, options)

    # --- one thing out of a file

    def extract(self, source: Source, what: str, target: Path, form: str) -> str:
        if form not in ("", "jsonl"):
            raise UsageError(f"keys of Redis are extracted as jsonl, not as {form!r}")
        pattern = _pattern(what)
        scratch = _Scratch(self.context, self.name)
        try:
            scratch.place(source.pieces())
            requires = self.requires(source)
            scratch.start(int(requires["databases"]), self._modules_for(requires))
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            try:
                descriptor = os.open(target, flags, 0o600)
            except FileExistsError:
                raise UsageError(f"{target} exists already: name a file that does not") from None
            except OSError as error:
                raise BackupError(process.os_sentence(error, f"making {target}")) from error
            with (
                os.fdopen(descriptor, "w", encoding="utf-8") as file,
                _talking(self.settings.redis, "extracting from a throwaway server"),
            ):
                written = _write_keys(scratch, pattern, file)
        finally:
            scratch.close()
        if not written:
            target.unlink()
            raise BackupError(f"no key in {source.path} matches {what!r}")
        return f"{written} keys that match {what!r} are written to {target}, one JSON object a line"

    def _modules_for(self, requires: dict[str, Any]) -> list[_Module]:
        """The live server's modules, where the dump needs any and the server answers."""
        if requires.get("modules"):
            with contextlib.suppress(redis.exceptions.RedisError), _connect(self.settings.redis, within_s=_FIRST_S) as client:
                return self.modules_here(client)
        return []

    def look(self) -> str:
        """The guide's look after a restore: PING."""
        with _talking(self.settings.redis, "PING"), _connect(self.settings.redis, within_s=_FIRST_S) as client:
            return "PONG" if client.ping() else "no PONG"

    # --- after a kill

    def clean_up(self, step: dict[str, Any]) -> None:
        kind = step.get("step")
        if kind == "scratch-server":
            _remove_scratch(Path(step["path"]))
        elif kind in ("redis-stream", "redis-staged"):
            Path(step["path"]).unlink(missing_ok=True)
        elif kind == "redis-files":
            self._clean_files(Path(step["path"]), Path(step["aside"]), step["names"])
        elif kind == "redis-link":
            with _talking(self.settings.redis, "ending a killed restore's replication"), _connect(self.settings.redis) as client:
                self._clean_link(client, step)

    def _clean_files(self, directory: Path, aside: Path, names: list[str]) -> None:
        """A switch that was killed halfway is taken back; one that got to its end stays."""
        if aside.is_dir() and not (directory / names[0]).exists():
            _move_back(directory, aside, names)

    def _clean_link(self, client: Client, step: dict[str, Any]) -> None:
        state = _info(client, "replication")
        ours = (str(state.get("master_host")), int(state.get("master_port", 0))) == (step["host"], int(step["port"]))
        if state.get("role") == "slave" and ours:
            client.execute_command("REPLICAOF", "NO", "ONE")
            self.reporter.warn(f"{_where(self.settings.redis)} was left as a replica of a throwaway server and is a master again")
        present = _config(client, "masterauth")
        if present and step["masterauth_sha256"] == hashlib.sha256(present.encode(errors="surrogateescape")).hexdigest():
            client.config_set("masterauth", "")


_PROGRAMS = ("redis-server", "valkey-server")


def _works_in(directory: Path) -> int | None:
    """The process ID of a Redis or Valkey server that works in a directory, also from within a container; None where there is
    none that we can see. Its files must not be changed under it: it would write its own data over them."""
    place = directory.stat()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # A server goes into its `dir` at the start (redis: config.c, setConfigDirOption).
            if os.path.samestat(place, (entry / "cwd").stat()) and (entry / "comm").read_text().strip() in _PROGRAMS:
                return int(entry.name)
    return None


def _minimum_replicas(client: Client) -> int:
    value = _config(client, "min-replicas-to-write")
    return int(value) if value and value.isdigit() else 0


def _listens(settings: RedisSettings) -> bool:
    """Whether anything accepts connections at the server's address: a refused login is no stopped server."""
    try:
        with socket.create_connection((settings.host, settings.port), timeout=5):
            return True
    except OSError:
        return False


def _count_faults(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Where a file's counts are not those that the manifest recorded at the cut."""
    if not found["known"] or not expected.get("known", True):
        return []
    faults = []
    if expected["databases"] != found["databases"]:
        faults.append(f"Redis backup holds {_say_counts(found)}, not as the manifest says {_say_counts(expected)}")
    if expected.get("functions") != found["functions"]:
        faults.append(
            f"Redis backup holds {found['functions']} function libraries, and the manifest says {expected.get('functions')}"
        )
    return faults


def _readable(value: Any) -> Any:
    """Bytes as JSON has them: text where they are UTF-8, else {"base64": …}."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(value).decode()}
    return [_readable(one) for one in value] if isinstance(value, (list, tuple)) else value


_WHOLE: dict[str, tuple[Any, ...]] = {
    "string": ("GET",),
    "list": ("LRANGE", 0, -1),
    "set": ("SMEMBERS",),
    "zset": ("ZRANGE", 0, -1, "WITHSCORES"),
    "hash": ("HGETALL",),
    "stream": ("XRANGE", "-", "+"),
}


def _write_keys(scratch: _Scratch, pattern: re.Pattern[bytes], file: IO[str]) -> int:
    reader = _Reader(scratch.client, content=False)
    written = 0
    for database in sorted(reader.keyspace()):
        with scratch.client(database) as client:
            cursor: Any = 0
            while True:
                cursor, found = client.scan(cursor, count=_PAGE)
                keys = [key for key in dict.fromkeys(found) if pattern.match(key)]
                for key, expiry in zip(keys, reader.expiries(client, keys), strict=True):
                    kind = _text(client.type(key))
                    value = _pipelined(client, [_about(kind, key, _WHOLE)])[0]
                    line = {"db": database, "key": _readable(key), "type": kind, "value": _readable(value)}
                    if expiry >= 0:
                        line["expires_ms"] = expiry
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
                    written += 1
                if int(cursor) == 0:
                    break
    return written
