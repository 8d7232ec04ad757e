# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every setting, its type, its default, where it may come from and what it means: one field, one place.

Order of precedence: the command line, the guide's environment variables, systemd's credential, the drop-ins beside the
configuration file (`config.d/*.yml`, later names first), that file (`/etc/agentmem-backup/config.yml`, or `NAME.yml` for
the instance NAME), the default. `load` tells for each value where it came from.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import targets
from .errors import UsageError, one_line
from .process import os_sentence
from .targets import Target

DEFAULT_FILE = Path("/etc/agentmem-backup/config.yml")
CREDENTIAL = "agentmem-backup.yml"
"""Name of the systemd credential (LoadCredential=, LoadCredentialEncrypted=) that holds settings."""
DEFAULT_INSTANCE = "default"
MASK = "********"
_INSTANCE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_SOUND_SECRET = ("password", "api_key", "webhook")
_PASSWORD_IN_URL = re.compile(r"://[^/@:,\s]*:([^/@,\s]+)@")


_PORTS = (1, 65535)
_WAITS = (1, 7 * 86400)
"""Seconds: what waits longer than a week is never ended by anybody."""
_LONGEST_NAME = 63
"""Bytes. PostgreSQL cuts longer names without a word (NAMEDATALEN; its documentation, "Identifiers and Key Words")."""


def _option(
    default: Any,
    help_text: str,
    *,
    env: str = "",
    secret: bool = False,
    choices: tuple[str, ...] = (),
    bounds: tuple[float, float] | None = None,
) -> Any:
    # pylint: disable=invalid-field-call  # it is called in the bodies of the dataclasses below, and nowhere else
    metadata = {"env": env, "secret": secret, "choices": choices, "bounds": bounds, "help": help_text}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class PostgresqlSettings:
    """Where PostgreSQL is and what of it is backed up. Empty values leave the matter to libpq (PGPASSFILE, PGSERVICE)."""

    host: str = _option("localhost", "server's host name, address or socket directory", env="DB_HOST")
    port: int = _option(5432, "server's port", env="DB_PORT", bounds=_PORTS)
    database: str = _option("agentmem", "database to back up", env="DB_NAME")
    user: str = _option("agentmem", "role to connect as", env="DB_USER")
    password: str = _option("", "its password; empty: libpq's own ways", env="DB_PASSWORD", secret=True)
    sslmode: str = _option("", "libpq's sslmode; empty: libpq's default", env="DB_SSLMODE")
    sslrootcert: str = _option("", "certificate authority of the server", env="DB_SSLROOTCERT")
    bin_dir: str = _option("", "directory of pg_dump and pg_restore; empty: the server's own major is looked for")
    lock_timeout_s: float = _option(
        10.0, "how long to wait for the tables' locks before letting go and trying again", bounds=(0.1, 3600)
    )
    lock_attempts: int = _option(
        6, "how often to try for the locks, and for how many of their timeouts, whichever is longer", bounds=(1, 1000)
    )
    include_tables: list[str] = _option([], "patterns of schema.table; only these are backed up")
    exclude_tables: list[str] = _option([], "patterns of schema.table that are left out")
    jobs: int = _option(0, "parallel jobs of pg_restore; 0: one per processor, at most 4", bounds=(0, 256))
    maintenance_database: str = _option("postgres", "database to connect to while the other is renamed")


@dataclass
class RedisSettings:
    """Where Redis is, and how its data is reached."""

    host: str = _option("localhost", "server's host name or address", env="REDIS_HOST")
    port: int = _option(6379, "server's port", env="REDIS_PORT", bounds=_PORTS)
    username: str = _option("", "ACL user; empty: the default user", env="REDIS_USERNAME")
    password: str = _option("", "its password", env="REDIS_PASSWORD", secret=True)
    data_dir: str = _option("", "server's data directory as seen from here; empty: as the server says", env="REDIS_DATA_DIR")
    tls: bool = _option(False, "connect with TLS", env="REDIS_TLS")
    cacert: str = _option("", "certificate authority of the server", env="REDIS_CACERT")
    certfile: str = _option("", "our own certificate, for a server that asks for one", env="REDIS_CERTFILE")
    keyfile: str = _option("", "private key of our certificate; empty: in the same file", env="REDIS_KEYFILE")
    method: str = _option("auto", "copy (BGSAVE and the file), stream (replication) or auto", choices=("auto", "copy", "stream"))
    restore_method: str = _option(
        "auto",
        "replicate (from a throwaway server), file (stopped server), keys (RESTORE one by one) or auto",
        choices=("auto", "replicate", "file", "keys"),
    )
    include_keys: list[str] = _option([], "glob patterns of keys; only these are backed up")
    exclude_keys: list[str] = _option([], "glob patterns of keys that are left out")
    save_timeout_s: float = _option(3600.0, "how long a BGSAVE may take", bounds=_WAITS)


@dataclass
class QdrantSettings:
    """Where Qdrant is. A cluster is named by one URL for each peer."""

    url: str = _option("", "server's address, or those of all peers, separated by commas", env="QDRANT_URL")
    host: str = _option("localhost", "server's host, where no url is given", env="QDRANT_HOST")
    port: int = _option(6333, "server's REST port, where no url is given", env="QDRANT_PORT", bounds=_PORTS)
    data_dir: str = _option("", "server's storage as seen from here, for checks of space", env="QDRANT_DATA_DIR")
    api_key: str = _option("", "key with full access", env="QDRANT_API_KEY", secret=True)
    cacert: str = _option("", "certificate authority of the server")
    timeout_s: float = _option(3600.0, "how long one snapshot or upload may take", bounds=_WAITS)
    restore_method: str = _option(
        "overwrite",
        "overwrite (a collection ends under its own name) or alias (beside it, then the alias is switched)",
        choices=("overwrite", "alias"),
    )
    include_collections: list[str] = _option([], "patterns of collections; only these are backed up")
    exclude_collections: list[str] = _option([], "patterns of collections that are left out")

    def urls(self) -> list[str]:
        """The addresses of all peers, without a trailing slash."""
        if self.url:
            return [part.strip().rstrip("/") for part in self.url.split(",") if part.strip()]
        host = f"[{self.host}]" if ":" in self.host else self.host  # RFC 3986: an IPv6 address stands in brackets
        return [f"http://{host}:{self.port}"]


@dataclass
class ConfigSettings:
    """Which configuration is backed up."""

    directory: str = _option("/opt/agentmem/config", "configuration directory", env="CONFIG_DIR")
    extra_paths: list[str] = _option([], "further files or directories, as absolute paths")


@dataclass
class HookSettings:
    """The operator's own commands: each a list of words, run without a shell, with the run's facts as AGENTMEM_… variables."""

    before: list[str] = _option([], "before anything is touched; failing stops the run")
    after: list[str] = _option([], "after a run that succeeded")
    error: list[str] = _option([], "after a run that failed")
    fence: list[str] = _option([], "keeps the application from writing while a restore switches")
    release: list[str] = _option([], "ends what fence began")
    timeout_s: float = _option(600.0, "how long a hook may take", bounds=_WAITS)


@dataclass
class NotifySettings:
    """How somebody is told of a run, beside the guide's notify_email and notify_slack_webhook; and a dead man's switch."""

    on_success: bool = _option(False, "tell of every success, too; of a failure and of the first success after it always")
    urls: list[str] = _option([], "addresses of further services, as apprise knows them", env="NOTIFY_URLS", secret=True)
    smtp_host: str = _option("localhost", "mail server")
    smtp_port: int = _option(25, "port of the mail server", bounds=_PORTS)
    smtp_tls: str = _option("none", "none, starttls, or tls from the first byte (port 465)", choices=("none", "starttls", "tls"))
    smtp_cacert: str = _option("", "certificate authority of the mail server; empty: the system's")
    smtp_user: str = _option("", "user to log in as; empty: no login")
    smtp_password: str = _option("", "its password", env="NOTIFY_SMTP_PASSWORD", secret=True)
    smtp_from: str = _option("", "sender; empty: agentmem-backup at this host")
    timeout_s: float = _option(20.0, "how long telling may take in all; a run waits no longer", bounds=(1, 300))
    ping_start: str = _option("", "address asked when a backup begins", env="NOTIFY_PING_START", secret=True)
    ping_success: str = _option("", "address asked when it has succeeded", env="NOTIFY_PING_SUCCESS", secret=True)
    ping_fail: str = _option("", "address asked when it has failed", env="NOTIFY_PING_FAIL", secret=True)


@dataclass
class MetricsSettings:
    """Numbers for Prometheus."""

    textfile: str = _option("", "directory of node_exporter's textfile collector, or a file.prom in it; empty: no metrics")


@dataclass
class OffsiteSettings:
    """Where verified sets are copied to, and what may go there again. Every place ends in this host's name."""

    targets: dict[str, Target] = _option({}, "places to copy sets to: a name, and what its type takes (see docs/operations.md)")
    host: str = _option("", "this host's name at the targets; empty: its own host name")
    bandwidth_limit: str = _option("", "bytes a second at most to each target, such as 10M; empty: no limit")
    timeout_s: float = _option(30.0, "how long to wait for a target that does not answer", bounds=(1, 3600))
    max_removals: int = _option(
        3, "where a target has keep: more sets than this are never removed there in one run", bounds=(1, 1000)
    )
    min_local_sets: int = _option(
        2, "where a target has keep: nothing is removed there while fewer verified sets lie here", bounds=(1, 1000)
    )


@dataclass
class Settings:
    """All settings of a run."""

    backup_dir: str = _option("/backups/agentmem", "where the sets lie", env="BACKUP_DIR")
    retention: str = _option("age", "what goes after a success: by age, or by tiers", choices=("age", "tiers"))
    retention_days: int = _option(30, "by age: sets older than this go", env="BACKUP_RETENTION_DAYS")
    keep_daily: int = _option(7, "by tiers: of so many days the last verified set stays", bounds=(1, 36500))
    keep_weekly: int = _option(4, "by tiers: and of so many weeks before", bounds=(0, 5200))
    keep_monthly: int = _option(12, "by tiers: and of so many months before", bounds=(0, 1200))
    log_dir: str = _option("/var/log/agentmem", "where backup.log is written", env="LOG_DIR")
    compression: str = _option("gzip", "gzip, as the guide has it, or zstd", choices=("gzip", "zstd"))
    compression_level: int = _option(
        6, "0 stores; up to 6 as fast as the disk; 7 to 9 smaller and slow", env="COMPRESSION_LEVEL", bounds=(0, 9)
    )
    instance: str = _option(DEFAULT_INSTANCE, "name of this AgentMem where a host has several")
    components: list[str] = _option(["postgresql", "redis", "qdrant", "config"], "stores to back up")
    fingerprint: str = _option("counts", "what is recorded of the data at the cut", choices=("counts", "content"))
    shrink_alarm_percent: float = _option(30.0, "a store that shrank by more than this makes a set suspicious", bounds=(0, 100))
    lock_wait_s: float = _option(0.0, "how long to wait for another run", bounds=(0, _WAITS[1]))
    services: list[str] = _option([], "systemd units of the application, stopped while a restore switches")
    health_url: str = _option("http://localhost:8080", "where the application answers /health after a restore; empty: not asked")
    notify_email: str = _option("", "where to send a message", env="NOTIFY_EMAIL")
    notify_slack_webhook: str = _option("", "Slack address to send a message to", env="NOTIFY_SLACK_WEBHOOK", secret=True)
    postgresql: PostgresqlSettings = field(default_factory=PostgresqlSettings)
    redis: RedisSettings = field(default_factory=RedisSettings)
    qdrant: QdrantSettings = field(default_factory=QdrantSettings)
    config: ConfigSettings = field(default_factory=ConfigSettings)
    hooks: HookSettings = field(default_factory=HookSettings)
    notify: NotifySettings = field(default_factory=NotifySettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    offsite: OffsiteSettings = field(default_factory=OffsiteSettings)
    sources: dict[str, str] = field(default_factory=dict)
    """Setting (as section.name) → where its value came from."""

    def secrets(self) -> list[str]:
        """Every secret value that is set: nothing that is printed or logged may contain one."""
        named = [
            str(one)
            for __, option, value in walk(self)
            if option.metadata["secret"] and value
            for one in (value if isinstance(value, list) else [value])
        ]
        named += [secret for target in self.offsite.targets.values() for secret in target.secrets()]
        return named + [word for address in (self.qdrant.url, self.health_url) for word in _PASSWORD_IN_URL.findall(address)]


Option = dataclasses.Field[Any]


def walk(settings: Settings) -> list[tuple[str, Option, Any]]:
    """Every setting as (dotted name, field, value), in the order of their definition."""
    found: list[tuple[str, Option, Any]] = []
    for outer in dataclasses.fields(settings):
        value = getattr(settings, outer.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            found += [(f"{outer.name}.{inner.name}", inner, getattr(value, inner.name)) for inner in dataclasses.fields(value)]
        elif outer.name != "sources":
            found.append((outer.name, outer, value))
    return found


def _boolean(text: str) -> bool:
    lowered = text.strip().lower()
    if lowered in ("1", "true", "yes", "on"):
        return True
    if lowered in ("", "0", "false", "no", "off"):
        return False
    raise ValueError


def _whole(value: Any) -> int:
    if isinstance(value, float):
        raise ValueError
    return int(value)


def _number(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


_PARSERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "str": (str, "text"),
    "int": (_whole, "a whole number"),
    "float": (_number, "a number"),
    "bool": (lambda value: value if isinstance(value, bool) else _boolean(str(value)), "true or false"),
}


def _convert(name: str, option: Option, value: Any, source: str) -> Any:
    if str(option.type) == "list[str]":
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
        if not isinstance(value, list) or not all(isinstance(part, (str, int, float)) for part in value):
            raise UsageError(f"{name} in {source} must be a list of words")
        return [str(part) for part in value]
    if option.metadata["secret"] and not isinstance(value, (str, type(None))):
        # YAML reads 0123 as the number 83: a wrong password, silently.
        raise UsageError(f"{name} in {source} must be text: put it in quotes")
    parse, kind = _PARSERS[str(option.type)]
    try:
        if isinstance(value, (list, dict)) or (kind != "true or false" and isinstance(value, bool)):
            raise ValueError
        converted = parse("" if value is None else value)
    except (ValueError, TypeError):
        shown = "" if option.metadata["secret"] else f", not {one_line(value, 60)!r}"
        raise UsageError(f"{name} in {source} must be {kind}{shown}") from None
    choices = option.metadata["choices"]
    if choices and converted not in choices:
        raise UsageError(f"{name} in {source} must be one of {', '.join(choices)}, not {converted!r}")
    return converted


def _assign(settings: Settings, name: str, value: Any) -> None:
    section, __, inner = name.rpartition(".")
    setattr(getattr(settings, section) if section else settings, inner, value)


def _read_file(path: Path) -> tuple[dict[str, Any], int]:
    """(setting → value as YAML has it, the file's mode)."""
    import yaml

    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = yaml.safe_load(file) or {}
    except OSError as error:
        raise UsageError(os_sentence(error, f"reading the configuration {path}")) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise UsageError(
            f"the configuration {path} is not valid YAML{where}: {getattr(error, 'problem', None) or 'bad bytes'}"
        ) from None
    if not isinstance(content, dict):
        raise UsageError(f"the configuration {path} must be a mapping of settings")
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict) and key != targets.SETTING:
            flat.update({f"{key}.{inner}": one for inner, one in value.items()})
        else:
            flat[str(key)] = value
    return flat, mode


def check_instance_name(name: str) -> None:
    """Raise UsageError where no instance can have this name, which becomes a file's and a unit's."""
    if not _INSTANCE.fullmatch(name) or name == DEFAULT_FILE.stem:
        raise UsageError(
            f"an instance cannot be named {one_line(name, 60)!r}: letters, digits, _ . and - make a name, and config is none"
        )


def instance_file(name: str) -> Path | None:
    """The configuration file of the instance `name`; None for the default one, whose file may be absent.

    Raises UsageError where there can be no such instance, or is none.
    """
    if name == DEFAULT_INSTANCE:
        return None
    check_instance_name(name)
    place = DEFAULT_FILE.parent
    path = place / f"{name}.yml"
    try:
        there = sorted(one.name for one in os.scandir(place))
    except FileNotFoundError:
        there = []
    except OSError as error:
        raise UsageError(os_sentence(error, f"reading {place}")) from error
    if path.name not in there:
        others = [one[:-4] for one in there if one.endswith(".yml") and not one.startswith(".") and one != DEFAULT_FILE.name]
        known = f"; there are {', '.join([DEFAULT_INSTANCE, *others])}" if others else ""
        raise UsageError(f"there is no instance {name!r}: {path} does not exist{known}")
    return path


def files_of(file: Path | None, environment: Mapping[str, str]) -> list[Path]:
    """The files that a run's settings come from, the winning one last: the configuration, its drop-ins, the credential.

    systemd tells a service by CREDENTIALS_DIRECTORY where its credentials lie (systemd.exec(5)).
    """
    path = file or DEFAULT_FILE
    found = [path] if file is not None or _is_there(path) else []
    beside = path.with_suffix(".d")
    try:
        names = sorted(entry.name for entry in os.scandir(beside))
    except FileNotFoundError:
        names = []
    except OSError as error:
        raise UsageError(os_sentence(error, f"reading the configuration's drop-ins in {beside}")) from error
    # Hidden ones are what editors and Ansible are still writing.
    found += [beside / name for name in names if name.endswith(".yml") and not name.startswith(".")]
    if environment.get("CREDENTIALS_DIRECTORY"):
        credential = Path(environment["CREDENTIALS_DIRECTORY"]) / CREDENTIAL
        found += [credential] if _is_there(credential) else []
    return found


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise UsageError(os_sentence(error, f"reading the configuration {path}")) from error
    return True


def _take_file(options: Mapping[str, Option], path: Path, take: Callable[[str, Any, str, str], None]) -> None:
    flat, mode = _read_file(path)
    known = [name for name in flat if name in options and options[name].metadata["secret"]]
    if mode & (stat.S_IRWXO | stat.S_IWGRP) and (
        known or any(name.endswith(_SOUND_SECRET) for name in flat) or targets.holds_secret(flat.get(targets.SETTING))
    ):
        raise UsageError(f"the configuration {path} holds a secret and is open to others: chmod 600 {path}")
    for name, value in flat.items():
        if name not in options:
            close = difflib.get_close_matches(name, options, 1)
            raise UsageError(f"{path} has an unknown setting {name!r}" + (f": did you mean {close[0]!r}?" if close else ""))
        take(name, value, str(path), str(path))


def load(
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    command_line: Mapping[str, Any] | None = None,
    *,
    given_by: str = "command line",
) -> Settings:
    """The settings of a run.

    `file` must exist where it is named; the default one may be absent. Files beside it count too (see `files_of`).
    `command_line` maps dotted names to values and leaves out what was not given; `given_by` is what errors call it.
    Raises UsageError that names the setting, its source and what it must be.
    """
    environment = os.environ if environment is None else environment
    settings = Settings()
    options = {name: option for name, option, __ in walk(settings)}
    raw: targets.Raw = {}

    def take(name: str, value: Any, given: str, source: str) -> None:
        if name == targets.SETTING:
            targets.collect(raw, value, given)
        else:
            _assign(settings, name, _convert(name, options[name], value, given))
        settings.sources[name] = source

    for path in files_of(file, environment):
        _take_file(options, path, take)
    for name, option in options.items():
        variable = option.metadata["env"]
        if variable and environment.get(variable, "") != "":
            take(name, environment[variable], f"the environment variable {variable}", variable)
    for name, value in (command_line or {}).items():
        take(name, value, f"the {given_by}", given_by)
    settings.offsite.targets = targets.parse(raw, environment, settings.sources)
    _check(settings)
    return settings


def _check(settings: Settings) -> None:
    known = ("postgresql", "redis", "qdrant", "config")
    for name in settings.components:
        if name not in known:
            raise UsageError(f"there is no component {name!r}: choose from {', '.join(known)}")
    if not settings.components:
        raise UsageError("no component is chosen: choose from " + ", ".join(known))
    if settings.retention_days < 1:
        raise UsageError(f"retention_days must be at least 1, not {settings.retention_days}: a set must live to be restored")
    if settings.retention_days > 36500:
        raise UsageError(f"retention_days must be at most 36500, not {settings.retention_days}: that is a hundred years")
    if not Path(settings.backup_dir).is_absolute():
        raise UsageError(f"backup_dir must be an absolute path, not {settings.backup_dir!r}")
    for name, option, value in walk(settings):
        bounds = option.metadata["bounds"]
        if bounds and not bounds[0] <= value <= bounds[1]:
            raise UsageError(f"{name} must lie between {bounds[0]} and {bounds[1]}, not {value}{_from(settings, name)}")
    _check_offsite(settings.offsite)
    for name in ("database", "user", "maintenance_database"):
        length = len(getattr(settings.postgresql, name).encode())
        if length > _LONGEST_NAME:
            raise UsageError(
                f"postgresql.{name} must have at most {_LONGEST_NAME} bytes, not {length}: "
                f"PostgreSQL would cut it and take another name{_from(settings, f'postgresql.{name}')}"
            )
    _check_telling(settings)


def _from(settings: Settings, name: str) -> str:
    source = settings.sources.get(name)
    return f" (from {source})" if source else ""


def _check_telling(settings: Settings) -> None:
    notify = settings.notify
    if notify.smtp_password and not notify.smtp_user:
        raise UsageError("notify.smtp_password is set without notify.smtp_user: say who logs in")
    if notify.smtp_user and notify.smtp_tls == "none" and notify.smtp_host not in ("localhost", "127.0.0.1", "::1"):
        raise UsageError(
            f"notify.smtp_password would go to {notify.smtp_host} in clear: set notify.smtp_tls to starttls, or to tls (port 465)"
        )
    if settings.metrics.textfile and not Path(settings.metrics.textfile).is_absolute():
        raise UsageError(f"metrics.textfile must be an absolute path, not {settings.metrics.textfile!r}")


def words_of_address(address: str) -> list[str]:
    """The parts of an address that may be secret on their own: an error quotes a token without the address around it."""
    scheme, separator, rest = address.partition("://")
    if scheme in ("http", "https"):  # elsewhere a token may stand in the host's place
        before, __, after = rest.partition("/")
        rest = "/".join([*before.rpartition("@")[:1], after])
    return [word for word in re.split(r"[:/?&=@#]+", rest) if len(word) > 5] if separator else []


def _check_offsite(offsite: OffsiteSettings) -> None:
    if offsite.host and not targets.fit_for_path(offsite.host):
        raise UsageError(f"offsite.host may hold letters, digits and . _ -, not {offsite.host!r}")
    try:
        targets.rate(offsite.bandwidth_limit)
    except ValueError:
        raise UsageError(
            f"offsite.bandwidth_limit must be bytes a second, such as 500K or 10M, not {offsite.bandwidth_limit!r}"
        ) from None


def shown(settings: Settings) -> list[tuple[str, str, str]]:
    """Every setting as (name, value with secrets masked, source): what `config --show` prints."""
    rows = []
    for name, option, value in walk(settings):
        if name == targets.SETTING:
            rows += targets.shown(value, settings.sources, MASK) or [(name, "", "default")]
            continue
        text = MASK if option.metadata["secret"] and value else ",".join(value) if isinstance(value, list) else str(value)
        for password in _PASSWORD_IN_URL.findall(text):
            text = text.replace(f":{password}@", f":{MASK}@")
        rows.append((name, text, settings.sources.get(name, "default")))
    return rows
