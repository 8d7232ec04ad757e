# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Throwaway PostgreSQL, Redis and Qdrant servers on free loopback ports, and the bundle `Stores` of all four stores.

A library without pytest: fixtures, script/demo and script/bench use it. Nothing here touches a server of the system. As
root the servers run as an unprivileged account (PostgreSQL refuses root), and every one of them dies with this process.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pwd
import queue
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import psycopg
import redis as redis_py
from psycopg import sql
from redis.backoff import NoBackoff
from redis.retry import Retry

CHECKOUT = Path(__file__).resolve().parents[2]
AWKWARD = " '\"$\\é"  # what a password may hold and a careless script breaks on
START_SECONDS = 60.0
STOP_SECONDS = 60.0
MEMORY_WANTED = 4 << 30  # bytes that must be free, or the disk is used
LOOPBACK = "127.0.0.1"


class ServerError(RuntimeError):
    """A throwaway server could not be started or stopped; the message holds the end of its log."""


def awkward_password(label: str) -> str:
    """A random password that contains a space, both quotes, `$`, a backslash and a non-ASCII letter."""
    return f"{label}{AWKWARD}{secrets.token_hex(6)}"


def account(*names: str) -> pwd.struct_passwd | None:
    """The first of these system accounts that exists (then `nobody`); None when we are not root and stay who we are."""
    if os.geteuid() != 0:
        return None
    for name in (*names, "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise ServerError(f"None of the accounts {', '.join(names)}, nobody exists; create one to run throwaway servers as.")


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def traversable(path: Path) -> bool:
    """Whether every directory from the root to this one lets other accounts through."""
    return all(parent.stat().st_mode & stat.S_IXOTH for parent in (path, *path.parents))


def new_directory(prefix: str = "agentmem-test-", base: Path | None = None) -> Path:
    """A fresh directory with a short name (a unix socket's path has 107 bytes) that other accounts may pass through."""
    base = base or Path(tempfile.gettempdir())
    if len(str(base)) > 40 or not traversable(base):
        base = Path("/tmp")
    directory = Path(tempfile.mkdtemp(prefix=prefix, dir=base))
    directory.chmod(0o711)
    return directory


def directory_in_memory(name: str) -> Path | None:
    """A fresh directory that lies in memory, or None where there is no room for it.

    For a database that is dropped and made anew for every test: some hundred files each time, which took a third of the
    server's time on ext4. What runs that were killed have left there goes.
    """
    memory = Path("/dev/shm")
    with contextlib.suppress(OSError):
        for left in memory.glob("agentmem-*-*-*"):
            if not Path("/proc", left.name.split("-")[2]).exists():
                shutil.rmtree(left, ignore_errors=True)
        if os.access(memory, os.W_OK | os.X_OK) and traversable(memory) and shutil.disk_usage(memory).free >= MEMORY_WANTED:
            return new_directory(f"agentmem-{name}-{os.getpid()}-", memory)
    return None


def remove_directory(directory: Path) -> None:
    """Remove a tree whose last writers may still be on their way out."""
    deadline = time.monotonic() + 5
    while directory.exists():
        shutil.rmtree(directory, ignore_errors=time.monotonic() < deadline)
        if directory.exists():
            time.sleep(0.02)


def wait_until(ready: Callable[[], bool], seconds: float, failed: Callable[[], str | None]) -> None:
    """Poll `ready` until it is true; raises ServerError with what `failed` says, or when the time is up."""
    deadline = time.monotonic() + seconds
    while not ready():
        problem = failed()
        if problem is None and time.monotonic() > deadline:
            problem = f"not ready after {seconds:.0f} s"
        if problem is not None:
            raise ServerError(problem)
        time.sleep(0.01)


class _Launcher(threading.Thread):
    """Starts every child from one thread that lives as long as this process.

    PR_SET_PDEATHSIG fires when the *thread* that forked ends (prctl(2)), so a server started from a short-lived thread
    would be killed with it.
    """

    def __init__(self) -> None:
        super().__init__(name="server-launcher", daemon=True)
        self.requests: queue.SimpleQueue[tuple[Future[Any], Sequence[str], dict[str, Any]]] = queue.SimpleQueue()

    def run(self) -> None:
        while True:
            answer, argv, options = self.requests.get()
            try:
                answer.set_result(subprocess.Popen(argv, **options))
            except BaseException as error:
                answer.set_exception(error)

    def popen(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        answer: Future[Any] = Future()
        self.requests.put((answer, argv, options))
        return answer.result()


_launcher: _Launcher | None = None
_launcher_lock = threading.Lock()


def launch(argv: Sequence[str], owner: pwd.struct_passwd | None, **options: Any) -> subprocess.Popen[bytes]:
    """Start a program as `owner`, in a session of its own, so that it is killed when this process dies."""
    global _launcher
    with _launcher_lock:
        if _launcher is None:
            _launcher = _Launcher()
            _launcher.start()
    prefix = ["setpriv", "--pdeathsig", "KILL"]
    if owner is not None:
        prefix += [f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}", "--clear-groups"]
    return _launcher.popen([*prefix, "--", *argv], start_new_session=True, stdin=subprocess.DEVNULL, **options)


class Server:
    """A throwaway server: `start`, `stop`, `kill`, `restart`, `close`; as a context manager it starts and closes.

    `directory` is created if missing and belongs to this server alone; None makes one in the temporary directory.
    `close` (also at exit) stops the server and removes the directory.
    """

    name = "server"
    accounts: tuple[str, ...] = ()

    def __init__(self, directory: Path | str | None = None) -> None:
        self.directory = Path(directory) if directory is not None else new_directory(f"agentmem-{self.name}-")
        self.owner = account(*self.accounts)
        self.host = LOOPBACK
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.directory.mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o711)
        if self.owner is not None and not traversable(self.directory):
            raise ServerError(f"{self.directory} lies under a directory that {self.owner.pw_name} may not enter; name another.")
        self.log = self.directory / "log"
        atexit.register(self.close)

    def private(self, name: str) -> Path:
        """A directory of mode 0700 that belongs to the server's account."""
        path = self.directory / name
        path.mkdir(mode=0o700, exist_ok=True)
        self.give(path)
        return path

    def secret(self, path: Path, text: str) -> Path:
        """A file of mode 0600 that belongs to the server's account."""
        path.touch(mode=0o600)
        path.write_text(text, encoding="utf-8")
        self.give(path)
        return path

    def give(self, path: Path) -> None:
        if self.owner is not None:
            os.chown(path, self.owner.pw_uid, self.owner.pw_gid)

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        """The server's process id; ServerError when it does not run."""
        if self.process is None or self.process.poll() is not None:
            raise ServerError(f"{self.name} is not running")
        return self.process.pid

    def prepare(self) -> None:
        """What happens once, before the first start."""

    def configure(self) -> None:
        """Write the configuration for `self.port`."""

    def command(self) -> Sequence[str]:
        raise NotImplementedError

    def variables(self) -> Mapping[str, str]:
        """What is added to the server's environment."""
        return {}

    def ready(self) -> bool:
        raise NotImplementedError

    def start(self) -> None:
        """Start and wait until it answers. The port stays the same over restarts."""
        if self.running:
            return
        first = self.port == 0
        if first:
            self.prepare()
        for attempt in range(5):
            if first:
                self.port = free_port()
            try:
                self._start_once()
                return
            except ServerError:
                # A port may be taken between looking and binding; memory of a killed server may not be free yet.
                if attempt == 4:
                    raise

    def _start_once(self) -> None:
        self.configure()
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "QDRANT__"))}
        with self.log.open("ab") as log:
            self.process = launch(
                self.command(),
                self.owner,
                cwd=self.working_directory(),
                env={**inherited, **self.variables()},
                stdout=log,
                stderr=log,
            )
        try:
            wait_until(self.ready, START_SECONDS, self._problem)
        except ServerError as error:
            self.kill()
            raise ServerError(f"{self.name} did not start: {error}. The end of its log:\n{self.log_end()}") from None

    def working_directory(self) -> Path:
        return self.directory

    def _problem(self) -> str | None:
        return None if self.running else f"it ended with {self.process.returncode if self.process else None}"

    def log_end(self, size: int = 3000) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-size:] if self.log.exists() else ""

    def stop(self) -> None:
        """An orderly shutdown; waits until the server has ended."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, as a power cut does; waits until the server has ended."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise ServerError(f"{self.name} did not end within {STOP_SECONDS:.0f} s of {number.name}") from None

    def restart(self) -> None:
        self.stop()
        self.start()

    def close(self) -> None:
        """Kill the server and remove its directory."""
        atexit.unregister(self.close)
        self.kill()
        remove_directory(self.directory)

    def __enter__(self) -> Any:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def postgres_bindirs() -> list[Path]:
    """The directories with a PostgreSQL server on this machine, newest major first."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    found += [path.parent for path in Path("/usr").glob("pgsql-*/bin/initdb")]
    if not found and (initdb := shutil.which("initdb")):
        found = [Path(initdb).resolve().parent]
    return sorted(found, key=lambda path: int((re.findall(r"\d+", str(path)) or ["0"])[0]), reverse=True)


class Postgres(Server):
    """A PostgreSQL cluster of its own: scram-sha-256 on TCP and socket, fsync off, otherwise as initdb leaves it.

    Without `directory` it lies in memory where there is room. With one it lies on the disk: what is measured, and shown, does.

    Attributes: host, port, socket_dir, superuser, password; after `create_application` app_user, app_password, dbname.
    """

    name = "postgres"
    accounts = ("postgres",)

    def __init__(
        self,
        directory: Path | str | None = None,
        bindir: Path | str | None = None,
        *,
        locale: str = "C.UTF-8",
        settings: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(directory if directory is not None else directory_in_memory(self.name))
        if bindir is None:
            installed = postgres_bindirs()
            if not installed:
                raise ServerError("No PostgreSQL server is installed; run script/bootstrap.")
            bindir = installed[0]
        self.bindir = Path(bindir)
        self.locale = locale
        self.settings = dict(settings or {})
        self.superuser = "postgres"
        self.password = awkward_password("super")
        self.app_user = "agentmem"
        self.app_password = awkward_password("app")
        self.dbname = "agentmem"
        self.data = self.directory / "data"
        self.socket_dir = self.private("s")
        if len(str(self.socket_dir)) > 90:
            raise ServerError(f"{self.socket_dir} is too long for a unix socket; name a shorter directory.")

    def prepare(self) -> None:
        self.private("data")
        pwfile = self.secret(self.directory / "pwfile", self.password + "\n")
        initdb = launch(
            [
                *(str(self.bindir / "initdb"), "--no-sync", "--auth=scram-sha-256", f"--username={self.superuser}"),
                *(f"--pwfile={pwfile}", f"--locale={self.locale}", "--encoding=UTF8", f"--pgdata={self.data}"),
            ],
            self.owner,
            cwd=self.directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        output = initdb.communicate()[0].decode(errors="replace")
        pwfile.unlink()
        if initdb.returncode:
            raise ServerError(f"initdb failed with {initdb.returncode}:\n{output}")

    def configure(self) -> None:
        settings = {
            "listen_addresses": self.host,
            "port": str(self.port),
            "unix_socket_directories": str(self.socket_dir),
            "fsync": "off",
            **self.settings,
        }
        lines = "".join(f"{name} = '{value}'\n" for name, value in settings.items())
        include = "include 'throwaway.conf'\n"
        self.secret(self.data / "throwaway.conf", lines)
        main = self.data / "postgresql.conf"
        if include not in main.read_text(encoding="utf-8"):
            with main.open("a", encoding="utf-8") as file:
                file.write(include)

    def command(self) -> Sequence[str]:
        return [str(self.bindir / "postgres"), "-D", str(self.data)]

    def ready(self) -> bool:
        # The last line of postmaster.pid says so without a failed login in the log.
        with contextlib.suppress(OSError, IndexError, psycopg.OperationalError):
            lines = (self.data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
            if self.process and lines[0] == str(self.process.pid) and lines[7].strip() == "ready":
                self.connect(connect_timeout=5).close()
                return True
        return False

    def stop(self) -> None:
        """A fast shutdown: sessions are cut off, everything committed is written."""
        self._signal(signal.SIGINT)

    def close(self) -> None:
        """End at once and remove the directory. It is asked first: a killed server leaves its shared memory in /dev/shm."""
        with contextlib.suppress(ServerError):
            self._signal(signal.SIGQUIT)
        super().close()

    def connect(self, dbname: str = "postgres", **options: Any) -> psycopg.Connection[Any]:
        """A psycopg connection in autocommit, as the superuser over TCP unless `options` say otherwise."""
        parameters = {
            "host": self.host,
            "port": self.port,
            "user": self.superuser,
            "password": self.password,
            "autocommit": True,
            **options,
        }
        return psycopg.connect(dbname=dbname, **parameters)

    def connect_application(self, **options: Any) -> psycopg.Connection[Any]:
        """A connection of the application's role to its database."""
        return self.connect(**{"dbname": self.dbname, "user": self.app_user, "password": self.app_password, **options})

    def create_application(self, dbname: str = "agentmem") -> None:
        """Make the role `agentmem` (CREATEDB, no superuser) with a password of its own, and its empty database."""
        self.dbname = dbname
        with self.connect() as connection:
            connection.execute(
                sql.SQL("CREATE ROLE {} LOGIN CREATEDB PASSWORD {}").format(
                    sql.Identifier(self.app_user), sql.Literal(self.app_password)
                )
            )
        self.recreate_database()

    def recreate_database(self, template: str | None = None, locale: str = "") -> None:
        """Drop the application's database, with its sessions, and create it empty or from a template.

        `locale` are the clauses of CREATE DATABASE on it, as SQL.
        """
        name, owner = sql.Identifier(self.dbname), sql.Identifier(self.app_user)
        like = sql.SQL(" TEMPLATE {}").format(sql.Identifier(template)) if template else sql.SQL("")
        with self.connect() as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))
            connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}{} {}").format(name, owner, like, sql.SQL(locale)))

    def empty_database(self) -> None:
        """Lose all content of the application's database; its own settings, grants, comment and owner stay.

        They lie in shared catalogs, where a superuser may move them from the old to the new database.
        """
        old, new = self.dbname, f"{self.dbname} emptied"
        with self.connect() as connection:
            found = "SELECT oid, pg_get_userbyid(datdba) FROM pg_database WHERE datname = %s"
            old_oid, owner = connection.execute(found, [old]).fetchone() or (None, self.app_user)
            create = sql.SQL("CREATE DATABASE {} OWNER {}")
            connection.execute(create.format(sql.Identifier(new), sql.Identifier(owner)))
            new_oid = (connection.execute(found, [new]).fetchone() or (None,))[0]
            for move in (
                """UPDATE pg_database n SET datacl = o.datacl, datconnlimit = o.datconnlimit FROM pg_database o
                     WHERE n.oid = %(new)s AND o.oid = %(old)s""",
                "UPDATE pg_db_role_setting SET setdatabase = %(new)s WHERE setdatabase = %(old)s",
                """UPDATE pg_shdescription SET objoid = %(new)s
                     WHERE objoid = %(old)s AND classoid = 'pg_database'::regclass""",
            ):
                connection.execute(move, {"new": new_oid, "old": old_oid})
            names = {"old": sql.Identifier(old), "new": sql.Identifier(new)}
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {old} WITH (FORCE)").format(**names))
            connection.execute(sql.SQL("ALTER DATABASE {new} RENAME TO {old}").format(**names))

    def reset(self, keep_databases: Sequence[str] = (), keep_roles: Sequence[str] = ()) -> None:
        """Back to a cluster with the application's role as it was made: foreign databases, roles and settings go."""
        self.start()
        with self.connect() as connection:
            connection.execute("ALTER SYSTEM RESET ALL")
            connection.execute("SELECT pg_reload_conf()")
            kept = ["postgres", "template0", "template1", *keep_databases]
            for (name,) in connection.execute("SELECT datname FROM pg_database WHERE datname <> ALL (%s)", [kept]).fetchall():
                connection.execute(sql.SQL("ALTER DATABASE {} IS_TEMPLATE false").format(sql.Identifier(name)))
                connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
            self._reset_roles(connection, [self.superuser, self.app_user, *keep_roles])
            waiting = connection.execute("SELECT 1 FROM pg_settings WHERE pending_restart").fetchone()
        if waiting:
            self.restart()

    def _reset_roles(self, connection: psycopg.Connection[Any], kept: list[str]) -> None:
        foreign = "SELECT rolname FROM pg_roles WHERE rolname !~ '^pg_' AND rolname <> ALL (%s)"
        for (name,) in connection.execute(foreign, [kept]).fetchall():
            connection.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(sql.Identifier(name)))
            connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))
        application = sql.Identifier(self.app_user)
        memberships = "SELECT roleid::regrole::text FROM pg_auth_members WHERE member = to_regrole(%s)"
        for (group,) in connection.execute(memberships, [self.app_user]).fetchall():
            connection.execute(sql.SQL("REVOKE {} FROM {}").format(sql.SQL(group), application))
        exists = connection.execute("SELECT to_regrole(%s)", [self.app_user]).fetchone()
        verb = sql.SQL("ALTER ROLE" if exists and exists[0] else "CREATE ROLE")
        attributes = sql.SQL(
            "{} {} LOGIN CREATEDB NOSUPERUSER NOCREATEROLE NOREPLICATION NOBYPASSRLS CONNECTION LIMIT -1 PASSWORD {}"
        )
        connection.execute(attributes.format(verb, application, sql.Literal(self.app_password)))
        connection.execute(sql.SQL("ALTER ROLE {} RESET ALL").format(application))

    def libpq_environment(self, *, application: bool = True) -> dict[str, str]:
        """PGHOST, PGPORT, PGUSER, PGPASSWORD and PGDATABASE for a libpq program."""
        user, password = (self.app_user, self.app_password) if application else (self.superuser, self.password)
        return {
            "PGHOST": self.host,
            "PGPORT": str(self.port),
            "PGUSER": user,
            "PGPASSWORD": password,
            "PGDATABASE": self.dbname,
        }


def redis_quoted(text: str) -> str:
    """A string as redis.conf reads it back byte by byte: quoted, everything unusual as \\xHH."""
    plain = re.compile(r"[A-Za-z0-9_.:/-]")
    return '"' + "".join(c if plain.fullmatch(c) else "".join(f"\\x{b:02x}" for b in c.encode()) for c in text) + '"'


class Redis(Server):
    """A Redis server of its own with Redis's default settings, a password, and its data in `dir`.

    `acl` holds further `user …` lines as redis.conf has them, `extra` further directives.
    """

    name = "redis"
    accounts = ("redis",)

    def __init__(
        self,
        directory: Path | str | None = None,
        *,
        appendonly: bool = False,
        password: str | None = None,
        databases: int = 16,
        acl: Iterable[str] | None = None,
        extra: Iterable[str] = (),
        program: str = "redis-server",
    ) -> None:
        super().__init__(directory)
        self.password = awkward_password("redis") if password is None else password
        self.appendonly = appendonly
        self.databases = databases
        self.acl = tuple(acl or ())
        self.extra = tuple(extra)
        self.program = program
        self.dbfilename = "dump.rdb"
        self.dir = self.private("data")
        self.socket = self.private("s") / "redis.sock"
        self.config_file = self.private("conf") / "redis.conf"

    def configure(self) -> None:
        lines = [
            f"bind {self.host}",
            f"port {self.port}",
            f"unixsocket {redis_quoted(str(self.socket))}",
            "daemonize no",
            f"dir {redis_quoted(str(self.dir))}",
            f"dbfilename {self.dbfilename}",
            f"databases {self.databases}",
            f"appendonly {'yes' if self.appendonly else 'no'}",
            *([f"requirepass {redis_quoted(self.password)}"] if self.password else []),
            *self.acl,
            *self.extra,
        ]
        self.secret(self.config_file, "\n".join(lines) + "\n")

    def command(self) -> Sequence[str]:
        return [self.program, str(self.config_file)]

    def ready(self) -> bool:
        try:
            client = self.client()
            return bool(client.ping())
        except (redis_py.ConnectionError, redis_py.exceptions.BusyLoadingError):
            return False

    def client(self, db: int = 0, **options: Any) -> redis_py.Redis:
        """A redis-py client that speaks bytes; `options` as redis.Redis takes them (username, password, …)."""
        parameters = {"host": self.host, "port": self.port, "password": self.password or None, **options}
        at_once = Retry(NoBackoff(), 0)  # redis-py would try again for seconds, also at a wrong password
        return redis_py.Redis(db=db, decode_responses=False, **{"retry": at_once, **parameters})

    def stop(self, save: bool | None = None) -> None:
        """Shut down; `save` True writes the RDB first, False does not, None does as the save points say."""
        if save is not None and self.running:
            with contextlib.suppress(redis_py.ConnectionError), self.client() as client:
                client.shutdown(save=save, nosave=not save)
        self._signal(signal.SIGTERM)

    def reset(self) -> None:
        """Back to the server as it was first started: no data, no files, its own configuration."""
        self.kill()
        empty_directory(self.dir)
        self.start()

    @property
    def rdb(self) -> Path:
        """Where this server writes its RDB."""
        return self.dir / self.dbfilename


def qdrant_kind() -> str:
    """Which Qdrant the tests use: `url` (QDRANT_TEST_URL), `binary` (qdrant on the PATH) or `stand-in`."""
    if os.environ.get("QDRANT_TEST_URL"):
        return "url"
    return "binary" if shutil.which("qdrant") else "stand-in"


class Qdrant(Server):
    """The Qdrant that `qdrant_kind` names; `kind` and `url` say what it is.

    A server given by QDRANT_TEST_URL (with QDRANT_TEST_API_KEY, QDRANT_TEST_READ_ONLY_API_KEY where it wants keys) is
    neither started nor stopped, and `empty` deletes all it holds.
    """

    name = "qdrant"
    accounts = ("qdrant", "redis")

    def __init__(
        self,
        directory: Path | str | None = None,
        *,
        api_key: str | None = None,
        read_only_api_key: str | None = None,
    ) -> None:
        super().__init__(directory)
        self.kind = qdrant_kind()
        self.api_key = api_key
        self.read_only_api_key = read_only_api_key
        self.grpc_port = 0
        self._url = ""
        if self.kind == "url":
            self._url = os.environ["QDRANT_TEST_URL"].rstrip("/")
            self.api_key = os.environ.get("QDRANT_TEST_API_KEY") or None
            self.read_only_api_key = os.environ.get("QDRANT_TEST_READ_ONLY_API_KEY") or None
        if self.kind == "stand-in":
            self.owner = None  # the checkout's interpreter may lie where another account cannot reach it
        self.storage = self.private("storage")
        self.snapshots = self.private("storage/snapshots")

    @property
    def url(self) -> str:
        return self._url or f"http://{self.host}:{self.port}"

    @property
    def verify(self) -> bool:
        """For httpx: whether there is a certificate to verify. A client that could takes 30 ms to make, of a processor."""
        return self.url.startswith("https:")

    def configure(self) -> None:
        self.grpc_port = free_port()

    def command(self) -> Sequence[str]:
        if self.kind == "binary":
            return [shutil.which("qdrant") or "qdrant"]
        served = ["--factory", "tests.support.qdrant_standin:application", "--log-level", "warning"]
        return [sys.executable, "-m", "uvicorn", *served, "--host", self.host, "--port", str(self.port)]

    def variables(self) -> Mapping[str, str]:
        variables = {
            "QDRANT__SERVICE__API_KEY": self.api_key,
            "QDRANT__SERVICE__READ_ONLY_API_KEY": self.read_only_api_key,
            "QDRANT__STORAGE__STORAGE_PATH": str(self.storage),
            "QDRANT__STORAGE__SNAPSHOTS_PATH": str(self.snapshots),
            "QDRANT__SERVICE__HOST": self.host,
            "QDRANT__SERVICE__HTTP_PORT": str(self.port),
            "QDRANT__SERVICE__GRPC_PORT": str(self.grpc_port),
            "QDRANT__TELEMETRY_DISABLED": "true",
        }
        return {name: value for name, value in variables.items() if value}

    def working_directory(self) -> Path:
        return CHECKOUT if self.kind == "stand-in" else self.storage

    @property
    def running(self) -> bool:
        return self.kind == "url" or super().running

    def start(self) -> None:
        if self.kind != "url":
            super().start()
        elif not self.ready():
            raise ServerError(f"The Qdrant of QDRANT_TEST_URL, {self.url}, does not answer; start it or unset the variable.")

    def ready(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            answer = httpx.get(f"{self.url}/readyz", headers=self.headers(), timeout=5, verify=self.verify)
            if answer.status_code == 404:
                answer = httpx.get(f"{self.url}/", headers=self.headers(), timeout=5, verify=self.verify)
            return answer.is_success
        return False

    def headers(self) -> dict[str, str]:
        return {"api-key": self.api_key} if self.api_key else {}

    def client(self, **options: Any) -> httpx.Client:
        """An HTTP client with the full-access key and a patient timeout."""
        return httpx.Client(base_url=self.url, headers=self.headers(), timeout=300, verify=self.verify, **options)

    def version(self) -> str:
        with self.client() as client:
            return str(client.get("/").raise_for_status().json()["version"])

    def empty(self) -> None:
        """Delete every snapshot, collection (its aliases go along) and full-storage snapshot."""
        with self.client() as client:
            collections = client.get("/collections").raise_for_status().json()["result"]["collections"]
            for name in [item["name"] for item in collections]:
                self._delete_snapshots(client, f"/collections/{path_segment(name)}")
                client.delete(f"/collections/{path_segment(name)}").raise_for_status()
            self._delete_snapshots(client, "")
        if self.kind != "url":
            # Folders are made by the server, and only once; without tmp/upload it takes no upload any more.
            for left in self.snapshots.iterdir():
                if left.name != "tmp":
                    empty_directory(left) if left.is_dir() else left.unlink()

    def reset(self) -> None:
        """An empty, healthy server: one that is down or cannot be emptied is started anew without its files."""
        if self.running and self.ready():
            with contextlib.suppress(httpx.HTTPError):
                self.empty()
                return
        if self.kind == "url":
            raise ServerError(f"The Qdrant of QDRANT_TEST_URL, {self.url}, cannot be emptied; look at its log.")
        self.kill()
        empty_directory(self.storage)
        self.private("storage/snapshots")
        self.start()

    @staticmethod
    def _delete_snapshots(client: httpx.Client, owner: str) -> None:
        answer = client.get(f"{owner}/snapshots")
        for snapshot in answer.json()["result"] if answer.is_success else []:
            client.delete(f"{owner}/snapshots/{path_segment(snapshot['name'])}").raise_for_status()


def path_segment(name: str) -> str:
    """A name as one segment of a URL's path."""
    return quote(name, safe="")


class Stores:
    """AgentMem's four stores: `postgres`, `redis`, `qdrant`, `config_dir`, with `backup_dir` and `log_dir` beside them.

    Servers that are handed in stay the caller's: they are neither started nor closed. Without `directory` everything
    lies in a temporary one, which is removed at the end, also at exit.
    """

    def __init__(
        self,
        directory: Path | str | None = None,
        *,
        postgres: Postgres | None = None,
        redis: Redis | None = None,
        qdrant: Qdrant | None = None,
    ) -> None:
        self._own_directory = directory is None
        self.directory = Path(directory) if directory is not None else new_directory("agentmem-stores-")
        self.directory.mkdir(parents=True, exist_ok=True)
        atexit.register(self.close)
        self._own: list[Server] = []
        self.postgres = postgres or self._owned(Postgres(self.directory / "pg"))
        self.redis = redis or self._owned(Redis(self.directory / "redis"))
        self.qdrant = qdrant or self._owned(Qdrant(self.directory / "qdrant", api_key=f"key-{secrets.token_hex(8)}"))
        self.config_dir = self.directory / "config"
        self.backup_dir = self.directory / "backups"
        self.log_dir = self.directory / "log"
        for path, mode in ((self.config_dir, 0o755), (self.backup_dir, 0o700), (self.log_dir, 0o700)):
            path.mkdir(exist_ok=True)
            path.chmod(mode)

    def _owned(self, server: Any) -> Any:
        self._own.append(server)
        return server

    def start(self) -> None:
        """Start the servers that are ours, all at once; makes the application's role and database."""
        with ThreadPoolExecutor(max_workers=3) as pool:
            for future in [pool.submit(self._start, server) for server in self._own]:
                future.result()

    @staticmethod
    def _start(server: Server) -> None:
        first = server.port == 0
        server.start()
        if first and isinstance(server, Postgres):
            server.create_application()

    def stop(self) -> None:
        for server in self._own:
            server.stop()

    def close(self) -> None:
        """Kill the servers that are ours and remove what was made."""
        atexit.unregister(self.close)
        for server in self._own:
            server.close()
        if self._own_directory:
            remove_directory(self.directory)
        else:
            for path in (self.config_dir, self.backup_dir, self.log_dir):
                remove_directory(path)

    def __enter__(self) -> Stores:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def environment(self) -> dict[str, str]:
        """The guide's environment variables (and QDRANT_URL, QDRANT_API_KEY) that point at these stores."""
        values = {
            "DB_HOST": self.postgres.host,
            "DB_PORT": str(self.postgres.port),
            "DB_NAME": self.postgres.dbname,
            "DB_USER": self.postgres.app_user,
            "DB_PASSWORD": self.postgres.app_password,
            "REDIS_HOST": self.redis.host,
            "REDIS_PORT": str(self.redis.port),
            "REDIS_PASSWORD": self.redis.password,
            "REDIS_DATA_DIR": str(self.redis.dir),
            "QDRANT_URL": self.qdrant.url,
            "QDRANT_API_KEY": self.qdrant.api_key or "",
            "CONFIG_DIR": str(self.config_dir),
            "BACKUP_DIR": str(self.backup_dir),
            "LOG_DIR": str(self.log_dir),
        }
        return {name: value for name, value in values.items() if value}

    def configuration(self, *, passwords: bool = True) -> dict[str, Any]:
        """What stands in /etc/agentmem-backup/config.yml of a host with these stores."""
        postgres, redis, qdrant = self.postgres, self.redis, self.qdrant
        found: dict[str, Any] = {
            "backup_dir": str(self.backup_dir),
            "log_dir": str(self.log_dir),
            "postgresql": {"host": postgres.host, "port": postgres.port, "database": postgres.dbname, "user": postgres.app_user},
            "redis": {"host": redis.host, "port": redis.port, "data_dir": str(redis.dir)},
            "qdrant": {"url": qdrant.url},
            "config": {"directory": str(self.config_dir)},
        }
        if passwords:
            found["postgresql"]["password"] = postgres.app_password
            found["redis"]["password"] = redis.password
            found["qdrant"]["api_key"] = qdrant.api_key or ""
        return found

    def destroy(self) -> None:
        """Lose everything: the database, Redis's keys and functions, every collection, every configuration file."""
        self.postgres.empty_database()
        with self.redis.client() as client:
            client.flushall()
            client.function_flush()
        self.qdrant.empty()
        empty_directory(self.config_dir)


def empty_directory(directory: Path) -> None:
    """Remove everything in a directory, not the directory."""
    for entry in list(os.scandir(directory)):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            Path(entry.path).unlink()


@contextlib.contextmanager
def throwaway_directory(prefix: str = "agentmem-test-") -> Iterator[Path]:
    """A directory that other accounts may pass through (pytest's tmp_path is closed to them), removed at the end."""
    directory = new_directory(prefix)
    try:
        yield directory
    finally:
        remove_directory(directory)
