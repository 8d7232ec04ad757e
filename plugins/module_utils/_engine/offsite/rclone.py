# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the stores that rclone reaches have in common: one program, told everything by its environment, never by argv.

rclone is given no configuration file; the one remote that it knows is called `offsite` and consists of
RCLONE_CONFIG_OFFSITE_… variables (rclone's documentation, "Config file"). Buckets are never made: a missing one is a mistake.
"""

from __future__ import annotations

import hashlib
import json
import signal
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path

from .. import process
from ..errors import BackupError, ToolError
from ..process import Child
from .base import Complaints, Remote

_PIECE = 1 << 20
_NOT_THERE = 3  # rclone's documentation, "Exit code": directory not found
COMPLAINTS: Complaints = (
    (
        r"RequestTimeTooSkewed|request date header too old|reasonable timeframe|clock.*skew"
        r"|x509: certificate has expired or is not yet",
        "{place}: the store refuses this host's time: set its clock (timedatectl), then run again",
    ),
    (
        r"InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|InvalidToken|TokenRefreshRequired|invalid_grant|AuthenticationFailed"
        r"|AuthorizationFailure|NoCredentialProviders|unauthorized|invalid_client|\b401\b",
        "{place}: the store does not accept the credentials of target {target}: they are wrong, expired or revoked",
    ),
    (
        r"ObjectLock|object is WORM|BlobImmutable|retention policy|under.*legal hold",
        "{place}: the store keeps what is there locked: set object_lock for target {target}, and leave removing to the store",
    ),
    (
        r"NoSuchBucket|ContainerNotFound|bucket.*(does not|doesn't) exist|ContainerBeingDeleted|InvalidBucketName",
        "{place}: there is no such bucket or container: make it, or name another for target {target}",
    ),
    (
        r"QuotaExceeded|StorageFull|insufficient storage|no space left|\b507\b|AccountIsDisabled.*quota|EntityTooLarge.*quota",
        "{place}: the store is full or its quota used up: make room there, or send less to target {target}",
    ),
    (
        r"AccessDenied|Forbidden|AuthorizationPermissionMismatch|InsufficientAccountPermissions|\b403\b",
        "{place}: the store forbids it to the credentials of target {target}: they may have been revoked, or lack a right",
    ),
    (
        r"no such host|connection refused|i/o timeout|network is unreachable|no route to host|context deadline exceeded"
        r"|connection reset|server misbehaving|TLS handshake timeout|\bEOF\b",
        "{place}: the store is not reached: look at the network, and at the endpoint of target {target}",
    ),
    (r"x509:|certificate", "{place}: the store's certificate is not accepted: look at the endpoint of target {target}"),
)


class RcloneRemote(Remote):
    """A folder in a bucket. What differs from store to store is the environment, and how a path begins."""

    complaints = COMPLAINTS
    scheme = ""
    root_key = "bucket"
    patience = 2
    """How many times `timeout_s` an answer may take until it is given up."""

    @abstractmethod
    def options(self) -> dict[str, str]:
        """The remote's options, named as in rclone's documentation, for the environment."""

    @property
    def _root(self) -> str:
        return "/".join(part for part in (self.target[self.root_key], self.target["prefix"].strip("/")) if part)

    @property
    def where(self) -> str:
        return f"{self.scheme}://{self._root}/{self.place}"

    def _environment(self) -> dict[str, str]:
        given = {f"RCLONE_CONFIG_OFFSITE_{key.upper()}": value for key, value in self.options().items() if value}
        seconds = f"{max(self.timeout_s, 1):g}s"
        flags = {"CONTIMEOUT": seconds, "TIMEOUT": "5m", "RETRIES": "2", "LOW_LEVEL_RETRIES": "3", "BWLIMIT": f"{self.rate}B"}
        flags |= {"S3_NO_CHECK_BUCKET": "true", "GCS_NO_CHECK_BUCKET": "true", "LOG_LEVEL": "ERROR", "STATS": "0"}
        if not self.rate:
            del flags["BWLIMIT"]
        # AWS_CA_BUNDLE is for Amazon's own tools: rclone's transport cannot take it and would not start.
        return {**given, **{f"RCLONE_{key}": value for key, value in flags.items()}, "AWS_CA_BUNDLE": ""}

    def _argv(self, *words: str) -> list[str]:
        # An empty name is no file at all: whatever configuration somebody has for himself plays no part.
        return [process.find("rclone", "rclone"), "--config", "", *words]

    def _path(self, name: str = "") -> str:
        return f"offsite:{self._root}/{self.place}" + (f"/{name}" if name else "")

    def _run(self, *words: str, accept: tuple[int, ...] = (0,)) -> str:
        try:
            return process.run(self._argv(*words), env=self._environment(), accept=accept)
        except ToolError as error:
            raise self.explained(error) from error

    def _ask(self, *words: str) -> str:
        """Run what only looks, and must answer soon: left to themselves the stores' libraries try for minutes."""
        argv, limit = self._argv(*words), self.patience * self.timeout_s
        try:
            return process.run(argv, env=self._environment(), timeout_s=limit)
        except ToolError as error:
            if error.returncode == -signal.SIGKILL and not error.stderr:
                error.stderr = "context deadline exceeded"
            raise

    def _list(self, path: str, kind: str) -> list[dict[str, object]]:
        """What lies in a folder; an empty or absent one is both nothing, but a missing bucket is an error."""
        try:
            said = self._ask("lsjson", kind, "--no-modtime", "--no-mimetype", path)
        except ToolError as error:
            if error.returncode != _NOT_THERE:
                raise self.explained(error) from error
            self._demand_bucket()
            return []
        found: list[dict[str, object]] = json.loads(said or "[]")
        return found

    def _demand_bucket(self) -> None:
        """A folder that is not there may be missing because the whole bucket is."""
        try:
            self._ask("lsf", f"offsite:{self.target[self.root_key]}")
        except ToolError as error:
            if error.returncode == _NOT_THERE:
                error.stderr = "NoSuchBucket"
            raise self.explained(error) from error

    def listing(self) -> dict[str, int]:
        return {str(one["Name"]): int(str(one["Size"])) for one in self._list(self._path(), "--files-only")}

    def hosts(self) -> list[str]:
        return sorted(str(one["Name"]) for one in self._list(f"offsite:{self._root}", "--dirs-only"))

    def send(self, directory: Path, names: Iterable[str]) -> None:
        for name in names:
            # --ignore-times: what to send is decided by whoever calls, and rclone must not think otherwise.
            self._run("copyto", "--ignore-times", str(directory / name), self._path(name))

    def differing(self, directory: Path, digests: Mapping[str, str]) -> list[str]:
        return [name for name, sha256 in digests.items() if self._sha256(name) != sha256]

    def _sha256(self, name: str) -> str:
        """Through `cat`: rclone's own check believes the digest in the object's metadata, which says nothing of its bytes."""
        digest = hashlib.sha256()
        try:
            with Child(self._argv("cat", self._path(name)), env=self._environment()) as child:
                while piece := child.stdout.read(_PIECE):
                    digest.update(piece)
                child.wait()
        except ToolError as error:
            raise self.explained(error) from error
        return digest.hexdigest()

    def fetch(self, name: str, path: Path) -> None:
        self._run("copyto", "--ignore-times", self._path(name), str(path))
        if not path.is_file():
            raise BackupError(f"{self.where}/{name} is not there any more")

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            self._run("deletefile", self._path(name))
