# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Another host, by rsync over ssh: with a key of its own, and nobody else's host key than the one that was pinned.

The receiving side needs no more than rsync behind a forced command (rrsync of rsync's own package). It reads its copy for
`differing` itself: rsync --checksum has both sides digest the whole file, whatever size and times say (rsync(1)).
"""

from __future__ import annotations

import functools
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from .. import pipeline, process
from ..errors import BackupError, ToolError
from ..targets import demand_private
from .base import Complaints, Remote, Unusable

_LISTED = re.compile(r"(?P<kind>[-d])\S+\s+(?P<size>[\d,.]+)\s+\d{4}/\d\d/\d\d\s+\d\d:\d\d:\d\d\s(?P<name>.+)")
_NO_FOLDER = re.compile(
    r"(change_dir|link_stat|opendir) .* failed: No such file or directory|rrsync error: .* No such file or directory"
)


_FULL = "{place}: the disk there is full or cannot be written: make room, or send less to target {target}"
_FILE_IO = 11  # rsync(1), EXIT VALUES


class RsyncRemote(Remote):
    """A folder on another host."""

    complaints: Complaints = (
        (
            r"REMOTE HOST IDENTIFICATION HAS CHANGED|Host key verification failed|No \S+ host key is known",
            "{place}: the host there does not have the key that known_hosts_file of target {target} pins: "
            "somebody stands between, or it was set up anew; compare the keys before you change the file",
        ),
        (
            r"Permissions \S+ for .* are too open|bad permissions|UNPROTECTED PRIVATE KEY",
            "{place}: key_file of target {target} is open to others: chmod 600 it",
        ),
        (
            r"Load key .*(invalid format|error in libcrypto|No such file)|invalid format",
            "{place}: key_file of target {target} is no private key that ssh can read",
        ),
        (
            r"Permission denied \(|Too many authentication failures",
            "{place}: the host there does not accept key_file of target {target}: it is wrong or was revoked",
        ),
        (
            r"No space left on device|Disk quota exceeded|File too large",
            _FULL,
        ),
        (
            r"Connection refused|Could not resolve hostname|Connection timed out|No route to host|Network is unreachable"
            r"|Operation timed out|Connection reset|Connection closed by|timeout in data|lost connection|kex_exchange",
            "{place}: the host there is not reached: look at the network, and at host and port of target {target}",
        ),
        (
            r"rsync: (command )?not found|No such file or directory: .*rsync|rrsync: not found",
            "{place}: the receiving host has no rsync: install it there",
        ),
        (
            r"rrsync.*(error|rejected|option)|SSH_ORIGINAL_COMMAND|delete.*refus|not allowed|denied by|disabled",
            "{place}: the receiving side's forced command does not allow it (target {target})",
        ),
        (r"Read-only file system", "{place}: the file system there is read-only"),
        (
            r"Permission denied \(13\)|Operation not permitted",
            "{place}: the account of target {target} may not write there: look at the folder's owner and modes",
        ),
    )

    def explained(self, error: ToolError) -> BackupError:
        if error.returncode == _FILE_IO and not error.stderr:  # the far end has ended before its words came over
            return Unusable(_FULL.format(place=self.where, target=self.target.name))
        return super().explained(error)

    @property
    def _root(self) -> str:
        return str(self.target["path"]).rstrip("/")

    @property
    def where(self) -> str:
        return f"{self._account}:{self._below(self.place.folder)}"

    @property
    def _account(self) -> str:
        host = str(self.target["host"])
        return f"{self.target['user']}@" + (f"[{host}]" if ":" in host else host)

    def _below(self, folder: str) -> str:
        if folder == "/":
            return ""
        return "/".join(part for part in (self._root, folder) if part) if self._root != "" or folder else "."

    @functools.cached_property
    def _folder(self) -> str:
        """The folder below the root. Where the root is this host's own, only an instance has one there.

        Earlier releases put the host's name twice there: what they have sent is gone on with where it lies.
        """
        place = self.place
        if not self.target.own_folder:
            return place.folder
        if place.instance == place.host:
            raise Unusable(f"{self.where}: an instance that is called like its host cannot be told from it: rename it")
        found = self._list_root()
        if any(one["kind"] == "d" and one["name"] == place.host for one in found):
            self.remarks.append(
                f"the sets lie in {place.host}/{place.host} there, where earlier releases put them: on the receiving host, "
                f"move them up into {place.host} (docs/operations.md)"
            )
            return place.folder
        if not any(one["name"].startswith("manifest_") for one in found):
            self._demand_own(found)
        return "" if place.instance == "default" else place.instance

    def _demand_own(self, found: list[re.Match[str]]) -> None:
        """Before the first set lies there: behind rrsync / is the folder itself, elsewhere it is everybody's."""
        if [one["name"] for one in self._list("/")] != [one["name"] for one in found]:
            raise Unusable(
                f"{self.where}: own_folder of target {self.target.name} says that the key is let into this host's folder alone, "
                "and it is let in everywhere: put a forced command (rrsync) before it there, or take own_folder away"
            )

    def _ssh(self) -> str:
        target = self.target
        for key in ("key_file", "known_hosts_file"):
            if not Path(target[key]).is_file():
                raise BackupError(f"{self.where}: {key} of target {target.name} is missing: {target[key]}")
        demand_private(target["key_file"], f"key_file of target {target.name}")
        options = {
            "BatchMode": "yes",
            "IdentitiesOnly": "yes",
            "PreferredAuthentications": "publickey",
            "StrictHostKeyChecking": "yes",
            "GlobalKnownHostsFile": "/dev/null",
            "UserKnownHostsFile": target["known_hosts_file"],
            "ConnectTimeout": str(max(int(self.timeout_s), 1)),
            "ServerAliveInterval": "15",
            "ServerAliveCountMax": "4",
            "ControlPath": "none",
            "ForwardAgent": "no",
        }
        words = [process.find("ssh", "openssh-client"), "-F", "/dev/null", "-p", str(target["port"]), "-i", target["key_file"]]
        words += [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        return " ".join(f"'{word}'" if " " in word else word for word in words)

    def _run(self, *words: str, directory: Path | None = None) -> str:
        argv = [process.find("rsync", "rsync"), "-e", self._ssh(), "--timeout=300", *words]
        if self.rate:
            argv.insert(1, f"--bwlimit={max(self.rate // 1024, 1)}")
        return process.run(argv, cwd=directory)

    def _explaining(self, *words: str, directory: Path | None = None) -> str:
        try:
            return self._run(*words, directory=directory)
        except ToolError as error:
            raise self.explained(error) from error

    def _list(self, folder: str) -> list[re.Match[str]]:
        """What lies in a folder there. Raises FileNotFoundError where it is not there."""
        try:
            said = self._run("--list-only", "--no-human-readable", "--dirs", f"{self._account}:{self._below(folder)}/")
        except ToolError as error:
            if _NO_FOLDER.search(error.stderr):
                raise FileNotFoundError(folder) from error
            raise self.explained(error) from error
        return [match for line in said.splitlines() if (match := _LISTED.fullmatch(line))]

    def _list_root(self) -> list[re.Match[str]]:
        """What lies in the folder of all hosts. It must be there: made on the way, it would hide a disk that is not mounted."""
        try:
            return self._list("")
        except FileNotFoundError:
            raise Unusable(
                f"{self.where}: there is no folder {self._below('')} at the receiving host: mount its disk, or make it"
            ) from None

    def listing(self) -> dict[str, int]:
        try:
            found = self._list(self._folder)
        except FileNotFoundError:
            self._list_root()
            return {}
        return {one["name"]: int(re.sub(r"\D", "", one["size"])) for one in found if one["kind"] == "-"}

    def hosts(self) -> list[str]:
        if self.target.own_folder:
            return []
        return sorted(one["name"] for one in self._list_root() if one["kind"] == "d" and not one["name"].startswith("."))

    def send(self, directory: Path, names: Iterable[str]) -> None:
        # --ignore-times: what to send is decided by whoever calls, and rsync must not think otherwise.
        for name in names:
            # Half a file stays there under its name, and is gone on with; a manifest comes whole or not at all, and what is
            # locked could not be gone on with. (--partial-dir keeps nothing behind the rrsync of rsync 3.5.)
            resume = [] if self.target.locked or name.endswith(".json") else ["--partial"]
            self._explaining(
                "--ignore-times", "--times", "--chmod=F600,D700", "--perms", "--mkpath", *resume,
                "--", name, f"{self._account}:{self._below(self._folder)}/",
                directory=directory,
            )  # fmt: skip

    def differing(self, directory: Path, digests: Mapping[str, str]) -> list[str]:
        here = [name for name in digests if (directory / name).is_file()]
        differing = self._differing_from(directory, here) if here else []
        return differing + [name for name, sha256 in digests.items() if name not in here and self._sha256(name) != sha256]

    def _sha256(self, name: str) -> str:
        """Of a file that is not here any more: it has to come over."""
        with tempfile.TemporaryDirectory(prefix="agentmem-backup-") as scratch:
            self.fetch(name, Path(scratch) / name)
            return pipeline.hash_file(Path(scratch) / name)[1]

    def _differing_from(self, directory: Path, names: list[str]) -> list[str]:
        said = self._explaining(
            "--dry-run", "--checksum", "--out-format=%i|%n", "-i", "-i",
            "--", *names, f"{self._account}:{self._below(self._folder)}/",
            directory=directory,
        )  # fmt: skip
        # Proof is a line that says: the same. What is not spoken of has not been looked at.
        equal = {line.split("|", 1)[1] for line in said.splitlines() if re.match(r"\.f[^c]", line)}
        return [name for name in names if name not in equal]

    def fetch(self, name: str, path: Path) -> None:
        self._explaining(
            "--times", "--inplace", "--partial", "--", f"{self._account}:{self._below(self._folder)}/{name}", str(path)
        )

    def remove(self, names: Iterable[str]) -> None:
        # rsync removes what an empty folder lacks; the filter leaves it nothing but the named files.
        with tempfile.TemporaryDirectory(prefix="agentmem-backup-") as empty:
            for name in names:
                self._explaining(
                    "--recursive", "--delete", "--ignore-existing", "--existing", f"--include=/{name}", "--exclude=*",
                    f"{empty}/", f"{self._account}:{self._below(self._folder)}/",
                )  # fmt: skip
