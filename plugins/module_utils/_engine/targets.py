# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A target: one place that verified sets are copied to, as the settings describe it.

In the configuration `offsite.targets` maps a name to what its type takes: see `KINDS`. Secrets stand in a file that only
the backup user reads, or in the environment as AGENTMEM_OFFSITE_<TARGET>_<FIELD>; every mistake is one sentence.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import UsageError, one_line

SETTING = "offsite.targets"
_TARGET_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,252}")
_RATE = re.compile(r"([0-9]+(?:\.[0-9]+)?)([KMG]?)")
_BASE64 = re.compile(r"(?:[A-Za-z0-9+/]{4})+(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")
_FACTORS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True)
class Field:
    """One thing that a target may say: what it means, its kind (text, number, flag, rate, file), and its default."""

    help: str
    kind: str = "text"
    default: Any = ""
    required: bool = False
    secret: bool = False


_COMMON = {
    "keep": Field("how many sets stay there; 0: nothing is ever removed", "number", 0),
    "bandwidth_limit": Field("bytes a second at most, such as 10M; empty: that of offsite", "rate"),
}
_PREFIX = {"prefix": Field("folder in it, under which every host has its own")}
_BUCKET = {"bucket": Field("bucket, which must exist", required=True), **_PREFIX}
_STORAGE_CLASS = {"storage_class": Field("storage class of what is sent")}


def _locked(why: str) -> dict[str, Field]:
    return {"object_lock": Field(f"{why}: nothing there is ever replaced or removed", "flag", False)}


KINDS: dict[str, dict[str, Field]] = {
    "s3": {
        **_BUCKET,
        "region": Field("its region"),
        "endpoint": Field("address of a store other than Amazon's"),
        "provider": Field("rclone's name of the provider", default="AWS"),
        "access_key_id": Field("access key; empty: AWS_… variables or the machine's own role", secret=True),
        "secret_access_key": Field("the key's secret", secret=True),
        "session_token": Field("its session's token", secret=True),
        **_STORAGE_CLASS,
        **_locked("the bucket locks what is in it"),
        **_COMMON,
    },
    "gcs": {
        **_BUCKET,
        "service_account_file": Field("file with the service account's key, for the backup user alone", "file"),
        "service_account": Field("that key itself, as JSON", secret=True),
        "endpoint": Field("address of a store other than Google's"),
        **_STORAGE_CLASS,
        **_locked("the bucket has a retention policy"),
        **_COMMON,
    },
    "azure": {
        "container": Field("container, which must exist", required=True),
        **_PREFIX,
        "account": Field("storage account"),
        "key": Field("the account's key", secret=True),
        "sas_url": Field("address with a shared access signature, instead of account and key", secret=True),
        "endpoint": Field("domain of another cloud than the public one, such as blob.core.usgovcloudapi.net"),
        **_locked("the container is immutable"),
        **_COMMON,
    },
    "rsync": {
        "host": Field("receiving host", required=True),
        "port": Field("its ssh port", "number", 22),
        "user": Field("account there", default="agentmem-offsite"),
        "path": Field("directory there, under which every host has its own; empty: where the account is let in"),
        "own_folder": Field("the key is let into this host's folder and no other: no host's name is added there", "flag", False),
        "key_file": Field("private key, for the backup user alone", "file", required=True),
        "known_hosts_file": Field("file with the receiving host's key; no other is accepted", "file", required=True),
        **_locked("the receiving side forbids it"),
        **_COMMON,
    },
}
"""Type of a target → what it takes."""


@dataclass(frozen=True)
class Target:
    """One target. `values` has every field of its type."""

    name: str
    type: str
    values: dict[str, Any] = field(repr=False)

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    @property
    def locked(self) -> bool:
        """Whether what is there may be neither replaced nor removed."""
        return bool(self.values["object_lock"])

    @property
    def own_folder(self) -> bool:
        """Whether the root of all that is seen there is this host's own folder."""
        return bool(self.values.get("own_folder"))

    def secrets(self) -> list[str]:
        """The secret values that are set."""
        return [str(self.values[key]) for key, one in KINDS[self.type].items() if one.secret and self.values[key]]


def variable(name: str, key: str) -> str:
    """The environment variable that may hold a secret of a target."""
    return f"AGENTMEM_OFFSITE_{name}_{key}".upper()


def rate(text: str) -> int:
    """Bytes a second, of such as 10M (powers of 1024); 0 for no limit. Raises ValueError."""
    if not text:
        return 0
    match = _RATE.fullmatch(text.strip().upper())
    if match is None or float(match[1]) == 0:
        raise ValueError(text)
    return max(int(float(match[1]) * _FACTORS[match[2]]), 1024)


Raw = dict[str, dict[str, tuple[Any, str]]]
"""Target → field → (value as it was read, where it stands)."""


def collect(raw: Raw, value: Any, source: str) -> None:
    """Add what one source says of the targets; what comes later wins, field by field. Raises UsageError."""
    if not isinstance(value, dict):
        raise UsageError(f"{SETTING} in {source} must be a mapping of names to what each target takes")
    for name, one in value.items():
        if not isinstance(name, str) or not _TARGET_NAME.fullmatch(name):
            raise UsageError(f"{SETTING} in {source} has the name {name!r}: small letters, digits and _ make a target's name")
        if not isinstance(one, dict):
            raise UsageError(f"{SETTING}.{name} in {source} must be a mapping that says its type (one of {', '.join(KINDS)})")
        raw.setdefault(name, {}).update({str(key): (inner, source) for key, inner in one.items()})


def holds_secret(value: Any) -> bool:
    """Whether a raw mapping of targets has a secret in it."""
    secret = {key for kind in KINDS.values() for key, one in kind.items() if one.secret}
    return isinstance(value, dict) and any(isinstance(one, dict) and secret & one.keys() for one in value.values())


def parse(raw: Raw, environment: Mapping[str, str], sources: dict[str, str]) -> dict[str, Target]:
    """The targets, checked. `sources` is told where each value came from. Raises UsageError."""
    return {name: _parse_one(name, dict(given), environment, sources) for name, given in raw.items()}


def _parse_one(name: str, given: dict[str, tuple[Any, str]], environment: Mapping[str, str], sources: dict[str, str]) -> Target:
    where = f"{SETTING}.{name}"
    kind, source = given.pop("type", (None, next(iter(given.values()))[1] if given else ""))
    if kind not in KINDS:
        said = f"not {one_line(kind, 60)!r}" if kind is not None else "and none is given"
        raise UsageError(f"{where}.type{_in(source)} must be one of {', '.join(KINDS)}, {said}")
    fields = KINDS[kind]
    for key, (__, source) in given.items():
        if key not in fields:
            close = difflib.get_close_matches(key, fields, 1)
            hint = f": did you mean {close[0]!r}?" if close else f": a target of type {kind} takes {', '.join(fields)}"
            raise UsageError(f"{where}{_in(source)} has an unknown setting {key!r}{hint}")
    for key, one in fields.items():
        if one.secret and environment.get(variable(name, key)):
            given[key] = (environment[variable(name, key)], f"the environment variable {variable(name, key)}")
    values = {}
    for key, one in fields.items():
        value, source = given.get(key, (None, ""))
        values[key] = one.default if value is None or value == "" else _convert(f"{where}.{key}", one, value, source)
        if source:
            sources[f"{where}.{key}"] = source.removeprefix("the environment variable ")
        if one.required and values[key] == "":
            raise UsageError(f"{where}.{key} is missing: a target of type {kind} needs it ({one.help})")
    target = Target(name, kind, values)
    _RULES[kind](target, where)
    return target


def _in(source: str) -> str:
    return f" in {source}" if source else ""


def _convert(name: str, one: Field, value: Any, source: str) -> Any:
    """A field's value; raises UsageError that names it, its source and what it must be."""
    if one.secret and not isinstance(value, str):
        # YAML reads 0123 as the number 83: a wrong secret, silently.
        raise UsageError(f"{name}{_in(source)} must be text: put it in quotes")
    try:
        return _KINDS_OF_VALUE[one.kind][0](value)
    except (ValueError, TypeError):
        shown = "" if one.secret else f", not {one_line(value, 60)!r}"
        raise UsageError(f"{name}{_in(source)} must be {_KINDS_OF_VALUE[one.kind][1]}{shown}") from None


def _text(value: Any) -> str:
    text = str(value)
    if isinstance(value, (list, dict, bool)) or any(not one.isprintable() and one != "\n" for one in text):
        raise ValueError
    return text


def _number(value: Any) -> int:
    if isinstance(value, (bool, float, list, dict)) or int(value) < 0:
        raise ValueError
    return int(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _rate_text(value: Any) -> str:
    rate(_text(value))
    return str(value)


def _file(value: Any) -> str:
    text = _text(value)
    if not text.startswith("/") or any(one in text for one in "\"'\\\n"):
        raise ValueError
    return text


_KINDS_OF_VALUE: dict[str, tuple[Callable[[Any], Any], str]] = {
    "text": (_text, "text"),
    "number": (_number, "a whole number, 0 or more"),
    "flag": (_flag, "true or false"),
    "rate": (_rate_text, "bytes a second, such as 500K or 10M"),
    "file": (_file, "an absolute path without quotes"),
}


def _demand_parts(target: Target, where: str, key: str, *, folders: bool = False) -> None:
    """Raise UsageError unless a field is a name that a path may hold, or, with `folders`, such names between slashes."""
    text = str(target[key])
    parts = [part for part in text.split("/") if part] if folders else [text]
    if not all(_PART.fullmatch(part) for part in parts):
        between = " between its slashes" if folders else ""
        raise UsageError(f"{where}.{key} may hold letters, digits and . _ -{between}, not {one_line(text, 60)!r}")


def _demand_bucket(target: Target, where: str, key: str = "bucket") -> None:
    _demand_parts(target, where, key)
    _demand_parts(target, where, "prefix", folders=True)


def _s3(target: Target, where: str) -> None:
    _demand_bucket(target, where)
    if bool(target["access_key_id"]) != bool(target["secret_access_key"]):
        raise UsageError(f"{where} has only one of access_key_id and secret_access_key: give both, or neither")


def _gcs(target: Target, where: str) -> None:
    _demand_bucket(target, where)
    if bool(target["service_account_file"]) == bool(target["service_account"]):
        raise UsageError(f"{where} needs the service account's key: give service_account_file or service_account, one of them")
    if target["service_account"]:
        try:
            json.loads(target["service_account"])
        except ValueError:
            raise UsageError(f"{where}.service_account must be the JSON that the cloud's console gives out") from None


def _azure(target: Target, where: str) -> None:
    _demand_bucket(target, where, "container")
    if bool(target["sas_url"]) == bool(target["key"]):
        raise UsageError(f"{where} needs a secret: give account and key, or sas_url, not both")
    if target["key"] and not target["account"]:
        raise UsageError(f"{where}.account is missing: key belongs to an account")
    if target["key"] and not _BASE64.fullmatch(target["key"]):
        raise UsageError(
            f"{where}.key is no account's key: copy it whole from the cloud's console (base64, of an account's access keys)"
        )
    if target["endpoint"] and not _PART.fullmatch(target["endpoint"]):
        raise UsageError(
            f"{where}.endpoint must be a domain, which the account's name is put before, not {target['endpoint']!r}: "
            "a whole address belongs into sas_url"
        )


def _rsync(target: Target, where: str) -> None:
    for key in ("host", "user"):
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*|[0-9a-fA-F:]+:[0-9a-fA-F:.]+", target[key]):
            raise UsageError(f"{where}.{key} is no name or address: {one_line(target[key], 60)!r}")
    _demand_parts(target, where, "path", folders=True)
    if target["own_folder"] and target["path"]:
        raise UsageError(f"{where} has both path and own_folder: where the key is let into this host's folder, there is no path")
    if not 0 < target["port"] < 65536:
        raise UsageError(f"{where}.port must lie between 1 and 65535, not {target['port']}")


_RULES: dict[str, Callable[[Target, str], None]] = {"s3": _s3, "gcs": _gcs, "azure": _azure, "rsync": _rsync}


def demand_private(path: str, name: str) -> None:
    """Raise UsageError unless a file with a secret is there, readable by us, and closed to others."""
    try:
        mode = Path(path).stat().st_mode
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {path} ({error.strerror})") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UsageError(f"{name} is open to others: chmod 600 {path}")
    if not os.access(path, os.R_OK):
        raise UsageError(f"{name} cannot be read: {path} (run as the backup user or root)")


def shown(targets: Mapping[str, Target], sources: Mapping[str, str], mask: str) -> list[tuple[str, str, str]]:
    """Every field that is set as (name, value with secrets masked, source)."""
    rows = []
    for name, target in targets.items():
        rows.append((f"{SETTING}.{name}.type", target.type, sources.get(SETTING, "default")))
        for key, one in KINDS[target.type].items():
            value = target[key]
            where = f"{SETTING}.{name}.{key}"
            text = mask if one.secret and value else str(value)
            rows.append((where, text, sources.get(where, "default")))
    return rows


def fit_for_path(name: str) -> bool:
    """Whether a host's or an instance's name can be a folder at a target as it stands."""
    return bool(_PART.fullmatch(name))
