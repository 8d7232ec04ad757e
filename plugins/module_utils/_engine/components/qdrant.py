# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Qdrant: vectors, payloads and indexes, through the snapshot API of every node.

The file is a tar of `<collection>.snapshot` (in a cluster `<peer>/<collection>.snapshot`), made by the server and held
against its checksum when it is read back, and `collections.json` last: what a snapshot does not hold (aliases, counts
around the cut, the server's version) and the digest of each snapshot.

A restore ends in the original names. A collection that the target does not have is uploaded beside the live data. One
that is there is overwritten in the switch, and only after a snapshot of what it held lies verified on our disk: a server
that is killed in the middle of an upload has lost the old data and not got the new (measured with 1.18.3). Aliases are
put back last, in one request.

Facts about the server's answers are from a recording of Qdrant 1.18.3 unless said otherwise.
"""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import email.utils
import fnmatch
import functools
import hashlib
import http.client
import itertools
import json
import operator
import os
import re
import secrets
import shutil
import ssl
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote_to_bytes, urlsplit

from .. import clock, points
from ..errors import BackupError, Cancelled, UsageError, VerificationError, one_line
from ..formats import tarball
from ..libraries import missing, require
from ..pipeline import PIECE, Writer
from ..process import guarded, raise_if_stopping, stopping
from ..settings import QdrantSettings
from .base import (
    CONTENT,
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

INVENTORY = "collections.json"
_INVENTORY_LIMIT = 256 * 1024 * 1024
_MAKING, _MADE = "qdrant_snapshot", "qdrant_snapshot_made"
_BESIDE, _FINAL = "qdrant_beside", "qdrant_final"
_UPLOADING, _SENT, _UPLOADED = "qdrant_upload", "qdrant_sent", "qdrant_uploaded"
_OWED = "qdrant-owed.json"  # in .state/: what may yet turn up on a server and must then be deleted
_RESTORED = re.compile(r"__restored_\d{8}_\d{6}$")  # the end of a collection's name that a restore by alias made
_STAMP = re.compile(r"-(\d{4}-\d\d-\d\d-\d\d-\d\d-\d\d)\.snapshot$")  # the end of a snapshot's name: its start in UTC
_MAKE_TRIES, _OPEN_TRIES, _LIST_TRIES = 8, 4, 10
_SETTLE_S = 5.0  # how long a restored collection may go on optimizing before we stop waiting: it answers all the while
_READY_S = 120.0
_QUESTION_S = 5.0  # how long a run that is being stopped waits for the answer to a question
_BUSY = (
    " (or some beside them: it was written to while its snapshot was made, and what came and went again was in neither count;"
    " the fingerprint content counts the points inside)"
)
_RATED_S = 120.0  # how long a server that limits the rate of requests is asked again
_IDLE_S = 2.0  # how long an idle connection is used again: Qdrant closes it after 5 (http_keep_alive_timeout_sec, as httpx would)
_FIRST_S = 20.0  # within what a server that is well answers the first questions, however much it has to do
_GRACE_S = 30.0  # within what systemd gives a unit to stop (90 s)
_ARRIVAL_S, _ARRIVAL_BYTES_S = 2.0, 100e6  # a server that has an upload whole hashes it before it lists it
_OWED_S = 7 * 86400.0
_COLLECTIONS_AT_ONCE = 4
_HELD_BACK, _DRIP, _DRIP_S = 64 * 1024, 16, 2.0  # bytes, bytes, seconds: enough for two hours
_SCROLLED_NUMBERS = 20_000_000  # of larger collections the live content is compared by a snapshot
_CREATED_WITH = ("hnsw_config", "wal_config", "quantization_config", "strict_mode_config", "metadata")

_owing = threading.Lock()

Result = TypeVar("Result")


# -- the REST API of one node -----------------------------------------------------------------------------------------


class Answered(BackupError):
    """The server answered with an error; `status` is HTTP's."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


class Taken(BackupError):
    """A snapshot of ours is no longer there, or another one lies under its name: somebody else backs up this server, too."""


def _begun(action: Callable[[], Result]) -> concurrent.futures.Future[Result]:
    """`action` in a thread of its own, which nobody needs to wait for."""
    done: concurrent.futures.Future[Result] = concurrent.futures.Future()

    def work() -> None:
        try:
            done.set_result(action())
        except BaseException as error:  # raised in the waiting thread
            done.set_exception(error)

    threading.Thread(target=work, name="qdrant-request", daemon=True).start()
    return done


def _rest_s(answer: Any) -> float:
    """For how long an answer with the status 429 tells us not to ask."""
    try:
        return max(0.1, float(answer.headers.get("retry-after", "")))
    except ValueError:  # none, or a date
        return 1.0


def patiently(
    done: concurrent.futures.Future[Result], *, grace_s: float = 0, give_up: Callable[[], bool] = lambda: True
) -> Result:
    """Wait for what may take an hour inside the server, so that a run that is being stopped need not wait for it.

    A stopped run still waits `grace_s` for the answer: what the server is about to make must be deleted again. And it
    waits to the end where `give_up` says no: the action can no longer be called back.
    """
    deadline: float | None = None
    while True:
        if stopping() and not done.done():
            deadline = deadline or time.monotonic() + grace_s
            if time.monotonic() >= deadline and give_up():
                raise Cancelled("the run is being stopped")
        concurrent.futures.wait([done], timeout=0.2)
        if done.done():
            return done.result()


class _Body:
    """The body of an upload, which can be given up until its end is sent: of a form without its end a server uses nothing.

    A request that went on behind a run that is being taken back would put the new data over the old once more, and leave
    its file after everybody has looked for it.

    Until `release` its end is held back. Of the last bytes a few go out every two seconds meanwhile: a proxy gives up a
    connection on which nothing comes (nginx after 60 s), and a connection that breaks is noticed.
    """

    def __init__(self, name: str, pieces: Iterable[bytes], announce: Callable[[], None]):
        boundary = secrets.token_hex(16)
        self.content_type = f"multipart/form-data; boundary={boundary}"
        self._head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="snapshot"; filename="{name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        ).encode()
        self._tail = f"\r\n--{boundary}--\r\n".encode()
        self._pieces = pieces
        self._announce = announce
        self._guard = threading.Lock()
        self._given_up = self._whole = False
        self._go = threading.Event()
        self.waits = threading.Event()
        """All is sent but what is held back."""

    def length(self, size: int) -> int:
        """How long it is with `size` bytes of content."""
        return len(self._head) + size + len(self._tail)

    def __iter__(self) -> Iterator[bytes]:
        yield self._head
        last = b""
        for piece in self._pieces:
            self._still_wanted()
            yield last
            last = piece
        yield last[:-_HELD_BACK]
        self.waits.set()
        yield from self._held(last[-_HELD_BACK:])
        self._announce()
        with self._guard:
            self._still_wanted()
            self._whole = True
        yield self._tail

    def _held(self, rest: bytes) -> Iterator[bytes]:
        while not self._go.wait(_DRIP_S):
            self._still_wanted()
            yield rest[:_DRIP]
            rest = rest[_DRIP:]
        self._still_wanted()
        yield rest

    def _still_wanted(self) -> None:
        if self._given_up or stopping():
            raise Cancelled("the run is being stopped")

    def release(self) -> None:
        """Let the end go."""
        self._go.set()

    def give_up(self) -> bool:
        """Never send the end. False where it was sent: the server may be at work, and its answer must be waited for."""
        with self._guard:
            self._given_up = not self._whole
            self._go.set()
            return self._given_up


class Sending:
    """An upload in a thread of its own: all of it goes out at once but its end, without which the server does nothing."""

    def __init__(self, body: _Body, answer: concurrent.futures.Future[Any]):
        self._body = body
        self._answer = answer

    def wait(self) -> None:
        """Until all is sent but the end. Raises what kept it from going out: Answered, BackupError."""
        while not self._body.waits.wait(0.2):
            if self._answer.done():
                self._answer.result()
                raise BackupError("Qdrant answered an upload before it had all of it")
            if stopping() and self._body.give_up():
                raise Cancelled("the run is being stopped")

    @property
    def broken(self) -> bool:
        """Whether it ended by itself, although its end was held back."""
        return self._answer.done()

    def end(self) -> None:
        """Send the end and wait for the answer. Raises Answered, BackupError."""
        self._body.release()
        patiently(self._answer, give_up=self._body.give_up)

    def give_up(self) -> None:
        """Break it off before its end; what the server has of it, it throws away."""
        self._body.give_up()
        concurrent.futures.wait([self._answer], timeout=_GRACE_S)


_REFUSED_IN_NAMES = frozenset('<>:"/\\|?*\0\x1f')
"""What Qdrant 1.18.3 answers 422 to in a collection's name: "collection name cannot contain … char"."""


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # an IPv6 address without its bracket, a port that is none
        return False


class Node:
    """One peer of a cluster, or a server on its own. `name` is the peer's id in a cluster of several, else empty."""

    def __init__(self, url: str, settings: QdrantSettings):
        self.url = url
        self.name = ""
        self.version = ""
        self._settings = settings
        parts = urlsplit(url)
        self.shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        self._clients: Any = None

    @property
    def _client(self) -> Any:
        import httpx

        if self._clients is None:
            timeout = httpx.Timeout(self._settings.timeout_s, connect=10.0)
            key = self._settings.api_key
            # Where compression is accepted downloads come compressed on the fly and without their length (measured).
            headers = {b"accept-encoding": b"identity", **({b"api-key": key.encode()} if key else {})}
            self._clients = httpx.Client(
                headers=headers,
                timeout=timeout,
                verify=self._trust(),
                limits=httpx.Limits(keepalive_expiry=_IDLE_S),
                trust_env=False,  # proxies of the environment are not for a store's gigabytes
            )
        return self._clients

    def _trust(self) -> Any:
        if not self.url.startswith("https:"):
            return False  # nothing to verify, and a context takes a while to make
        try:
            return ssl.create_default_context(cafile=self._settings.cacert or None)
        except (OSError, ssl.SSLError) as error:
            raise BackupError(
                f"the certificate authority {self._settings.cacert} cannot be used: {one_line(error)} (check qdrant.cacert)"
            ) from None

    def _plain_connection(self) -> http.client.HTTPConnection:
        parts = urlsplit(self.url)
        host, timeout = parts.hostname or "", self._settings.timeout_s
        if parts.scheme == "https":
            return http.client.HTTPSConnection(host, parts.port, timeout=timeout, context=self._trust())
        return http.client.HTTPConnection(host, parts.port, timeout=timeout)

    def _plain_headers(self, url: Any) -> dict[str, str]:
        headers = {name: value for name, value in self._client.headers.items() if name in ("accept-encoding", "api-key")}
        if url.userinfo:
            headers["authorization"] = "Basic " + base64.b64encode(unquote_to_bytes(url.userinfo)).decode()
        return headers

    def close(self) -> None:
        """Close the connections."""
        if self._clients is not None:
            self._clients.close()
            self._clients = None

    @contextlib.contextmanager
    def _words(self, what: str, within_s: float | None = None) -> Iterator[None]:
        """Turn what httpx raises into a sentence."""
        import httpx

        try:
            yield
        except httpx.ConnectError as error:
            raise BackupError(
                f"Qdrant at {self.shown} cannot be reached ({one_line(error, 120)}): "
                "is it running? check QDRANT_URL, or QDRANT_HOST and QDRANT_PORT"
            ) from None
        except httpx.TimeoutException:
            if within_s is not None:
                raise BackupError(
                    f"Qdrant at {self.shown} takes connections and does not answer within {within_s:g} s ({what}): "
                    "look into its log, restart it where it hangs"
                ) from None
            raise BackupError(f"Qdrant at {self.shown} did not answer in time while {what} (see qdrant.timeout_s)") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            said = one_line(error, 160) or type(error).__name__
            raise BackupError(f"the connection to Qdrant at {self.shown} broke while {what}: {said}") from None

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        what: str,
        within_s: float | None = None,
        changes_nothing: bool = False,
    ) -> Any:
        """The `result` of a request. `what` says what was being done. Raises Answered, BackupError.

        `within_s` is for questions that a server answers at once or, where it hangs, never. `changes_nothing` is for a POST
        that only asks, as a GET does. A run that is being stopped asks on, for it must find what it has to delete, but waits
        only seconds for an answer that changes nothing.
        """
        options = {"json": body, **({"timeout": within_s} if within_s is not None else {})}
        deadline = time.monotonic() + _RATED_S
        while True:
            with self._words(what, within_s):
                if changes_nothing or method == "GET":
                    answer = self._question(method, path, **options)
                else:
                    answer = self._client.request(method, self.url + path, **options)
            # A collection in strict mode answers so often a minute, all of us together; what is too much it does not do.
            later = time.monotonic() + _rest_s(answer) if answer.status_code == 429 else deadline
            while time.monotonic() < later < deadline and not stopping():
                time.sleep(0.1)
            if later >= deadline or stopping():
                return self._result(answer, what)

    def _question(self, method: str, path: str, **options: Any) -> Any:
        """The answer to what changes nothing. It is asked once more where no answer came (RFC 9110, 9.2.2): a server, or a
        proxy, may close an idle connection in the very moment in which a question goes out on it.
        """
        import httpx

        def request() -> Any:
            try:
                return self._client.request(method, self.url + path, **options)
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):  # its end, or a reset
                return self._client.request(method, self.url + path, **options)

        return patiently(_begun(request), grace_s=_QUESTION_S)

    def _result(self, answer: Any, what: str) -> Any:
        self._check(answer, what)
        try:
            return answer.json()["result"]
        except (ValueError, KeyError, TypeError):
            raise BackupError(f"what answers at {self.shown} is no Qdrant: check QDRANT_URL") from None

    def _check(self, answer: Any, what: str) -> None:
        status = answer.status_code
        if status in (200, 202, 206):
            return
        said = one_line(_error_text(answer), 240)
        if status == 401:
            how = "refuses the API key" if self._settings.api_key else "asks for an API key"
            raise Answered(f"Qdrant at {self.shown} {how} ({said}): set QDRANT_API_KEY to its key with full access", status)
        if status == 403:
            raise Answered(
                f"the API key has no right for {what} on Qdrant at {self.shown} ({said}): "
                "set QDRANT_API_KEY to the key with full access, not the read-only one",
                status,
            )
        raise Answered(f"Qdrant at {self.shown} failed {what}: HTTP {status}: {said}", status)

    def greet(self) -> None:
        """Learn the server's version (`GET /` answers without a key)."""
        with self._words("greeting it", _FIRST_S):
            answer = self._question("GET", "/", timeout=_FIRST_S)
        self._check(answer, "greeting it")
        try:
            self.version = str(answer.json()["version"])
        except (ValueError, KeyError, TypeError):
            raise BackupError(f"what answers at {self.shown} is no Qdrant: check QDRANT_URL") from None

    def trouble(self) -> str | None:
        """Why this node cannot be worked with (a sentence), or None. A `/` that answers proves nothing about the key."""
        try:
            self.greet()
            self.collections(within_s=_FIRST_S)
        except BackupError as error:
            return str(error)
        return None

    def cluster(self) -> dict[str, Any]:
        """`GET /cluster`: status enabled or disabled, peer_id, peers."""
        found: dict[str, Any] = self.ask("GET", "/cluster", what="asking for the cluster's state")
        return found

    def collections(self, within_s: float | None = None) -> list[str]:
        """The names of all collections, sorted."""
        found = self.ask("GET", "/collections", what="listing the collections", within_s=within_s)["collections"]
        return sorted(str(item["name"]) for item in found)

    def aliases(self) -> dict[str, str]:
        """Alias → collection."""
        found = self.ask("GET", "/aliases", what="listing the aliases")["aliases"]
        return {item["alias_name"]: item["collection_name"] for item in found}

    def point_back(self, before: dict[str, str], mine: set[str]) -> None:
        """Aliases that now point, or pointed `before`, to one of the collections `mine` point where they did; to "", nowhere."""
        now = self.aliases()
        actions: list[dict[str, Any]] = []
        for alias in sorted({*now, *before}):
            old = before.get(alias) or None
            if now.get(alias) != old and {now.get(alias), old} & mine:
                if alias in now:
                    actions.append({"delete_alias": {"alias_name": alias}})
                if old:
                    actions.append({"create_alias": {"alias_name": alias, "collection_name": old}})
        self.change_aliases(actions)

    def change_aliases(self, actions: list[dict[str, Any]]) -> None:
        """All of `actions` in one request, which the server does whole or not at all."""
        if actions:
            self.ask("POST", "/collections/aliases", {"actions": actions}, what="putting the aliases back")

    def info(self, collection: str) -> dict[str, Any]:
        """Status, configuration and payload schema of a collection."""
        found: dict[str, Any] = self.ask("GET", _path(collection), what=f"looking at collection {collection}")
        return found

    def count(self, collection: str) -> int:
        """The exact number of points (of the whole cluster)."""
        path, what = _path(collection) + "/points/count", f"counting the points of {collection}"
        return int(self.ask("POST", path, {"exact": True}, what=what, changes_nothing=True)["count"])

    def exists(self, collection: str) -> bool:
        """Whether there is such a collection or alias."""
        return bool(self.ask("GET", _path(collection) + "/exists", what=f"looking for collection {collection}")["exists"])

    def has_lost(self, collection: str, error: Answered) -> bool:
        """Whether the server answered so because there is no such collection any more."""
        if error.status == 404:
            with contextlib.suppress(BackupError):
                return collection not in self.collections()
        return False

    def delete_collection(self, collection: str) -> None:
        """Delete a collection; one that is gone is no error."""
        self.ask("DELETE", _path(collection), what=f"deleting collection {collection}")

    def create_collection(self, collection: str, config: dict[str, Any]) -> None:
        """Make a collection as `config`, which is what `info` tells, says."""
        body = {**config["params"], **{key: config.get(key) for key in _CREATED_WITH}}
        body["optimizers_config"] = config.get("optimizer_config")
        body = {key: value for key, value in body.items() if value is not None}
        self.ask("PUT", _path(collection) + "?timeout=60", body, what=f"making collection {collection}")

    def shards(self, collection: str) -> list[int]:
        """The shards of a collection that this node has."""
        found = self.ask("GET", _path(collection) + "/cluster", what=f"asking where the shards of {collection} are")
        return sorted(int(one["shard_id"]) for one in found["local_shards"] if one["state"] == "Active")

    def change_shards(self, collection: str, operation: str, facts: dict[str, Any]) -> None:
        """Start `move_shard`, `replicate_shard` or `drop_replica`."""
        self.ask("POST", _path(collection) + "/cluster", {operation: facts}, what=f"placing the shards of {collection}")

    def snapshots(self, collection: str) -> list[dict[str, Any]]:
        """The snapshots that this node lists for a collection.

        A snapshot that somebody deletes meanwhile makes the server fail (measured with 1.18.3): it is asked again.
        """
        path, what = _path(collection) + "/snapshots", f"listing the snapshots of {collection}"
        for left in reversed(range(_LIST_TRIES)):
            try:
                found: list[dict[str, Any]] = self.ask("GET", path, what=what)
                return found
            except Answered as error:
                if error.status != 500 or "No such file" not in str(error) or not left:
                    raise
            time.sleep(0.1)
        raise AssertionError

    def make_snapshot(self, collection: str) -> dict[str, Any]:
        """Make a snapshot: name, size, checksum (null where the server keeps them on S3)."""
        path, what = _path(collection) + "/snapshots", f"making a snapshot of {collection}"
        found: dict[str, Any] = patiently(_begun(lambda: self.ask("POST", path, what=what)), grace_s=_GRACE_S)
        return found

    def has_snapshot(self, collection: str, made: dict[str, Any]) -> bool:
        """Whether the snapshot that is listed under this name is the one that was made, and not one that has replaced it."""
        listed = {one["name"]: one for one in self.snapshots(collection)}.get(made["name"])
        return listed is not None and (listed["size"], listed.get("checksum")) == (made["size"], made.get("checksum"))

    def delete_own(self, collection: str, made: dict[str, Any]) -> bool:
        """Delete a snapshot unless another run's has replaced it, which that one deletes; says whether ours was there."""
        try:
            ours = self.has_snapshot(collection, made)
        except Answered as error:
            if error.status != 404:  # the snapshots of a collection that was deleted cannot be listed
                raise
            ours = True
        return ours and self.delete_snapshot(collection, made["name"])

    def delete_snapshot(self, collection: str, name: str) -> bool:
        """Delete a snapshot; says whether it was there."""
        try:
            self.ask("DELETE", _path(collection, "snapshots", name), what=f"deleting the snapshot {name}")
        except Answered as error:
            if error.status != 404:
                raise
            return False
        return True

    def now(self) -> datetime:
        """The server's clock, to the second: its snapshots' names tell it, and ours may differ."""
        with self._words("asking for the time"):
            answer = self._question("GET", "/healthz")
        with contextlib.suppress(TypeError, ValueError):
            return email.utils.parsedate_to_datetime(answer.headers.get("date", "")).astimezone(clock.UTC)
        return clock.now()

    def download(self, collection: str, name: str, size: int) -> Generator[memoryview, None, None]:
        """The bytes of a snapshot, which must be `size`, in pieces that hold until the next is asked for.

        By the standard library's client, straight into one buffer: through httpx each 64 KiB pass five layers of Python,
        which took longer than hashing and storing them. Raises Taken where the name has no such snapshot any more, and
        BackupError where they come short or compressed.
        """
        import httpx

        what = f"downloading the snapshot {name}"
        seen, buffer = 0, memoryview(bytearray(PIECE))
        with self._words(what), _as_httpx(), contextlib.closing(self._plain_connection()) as connection:
            url = httpx.URL(self.url + _path(collection, "snapshots", name))
            connection.request("GET", url.raw_path.decode(), headers=self._plain_headers(url))
            answer = connection.getresponse()
            if answer.status == 404:
                raise Taken(f"the snapshot {name} is not on {self.shown} any more: another run, or a person, has deleted it")
            if answer.status != 200:
                self._check(httpx.Response(answer.status, content=answer.read()), what)
            encoding, length = answer.headers.get("content-encoding", "identity"), answer.headers.get("content-length")
            if encoding != "identity" or length is None:
                raise BackupError(
                    f"the snapshot {name} comes compressed or without its length from {self.shown}: "
                    "a proxy in between changes downloads; set QDRANT_URL to the server itself"
                )
            if int(length) != size:
                raise Taken(f"the snapshot {name} has {length} bytes on {self.shown}, which said {size} when making it")
            while count := answer.readinto(buffer):
                raise_if_stopping()
                seen += count
                yield buffer[:count]
        if seen != size:
            raise BackupError(f"the snapshot {name} ended after {seen} of {size} bytes: the connection to {self.shown} broke")

    def send(
        self, collection: str, name: str, pieces: Iterable[bytes], size: int, checksum: str, announce: Callable[[], None]
    ) -> Sending:
        """Begin to make `collection` what a snapshot of `size` bytes holds, under the file name `name`; `end` does it.

        Always with priority=snapshot: the default differs between versions. `announce` is called before the end is sent:
        from then on the server may do it, whatever becomes of us.
        """
        body = _Body(name, pieces, announce)
        headers = {"Content-Type": body.content_type, "Content-Length": str(body.length(size))}
        path = f"{_path(collection)}/snapshots/upload?wait=true&priority=snapshot&checksum={checksum}"
        what = f"restoring collection {collection}"

        def post() -> Any:
            with self._words(what):
                answer = self._client.post(self.url + path, content=iter(body), headers=headers)
            return self._result(answer, what)

        return Sending(body, _begun(post))

    def create_index(self, collection: str, field_name: str, schema: Any) -> None:
        """Make a payload index and wait for it."""
        body = {"field_name": field_name, "field_schema": schema}
        self.ask("PUT", _path(collection) + "/index?wait=true", body, what=f"making the payload index {field_name}")

    def delete_index(self, collection: str, field_name: str) -> None:
        """Delete a payload index and wait for it."""
        path = f"{_path(collection, 'index', field_name)}?wait=true"
        self.ask("DELETE", path, what=f"deleting the payload index {field_name}")

    def points(self, collection: str, numbers: int) -> Iterator[dict[str, Any]]:
        """Every point with payload and vectors, `numbers` of them in each."""
        ask: dict[str, Any] = {"limit": points.page_size(numbers), "with_payload": True, "with_vector": True}
        path, what = _path(collection) + "/points/scroll", f"reading the points of {collection}"
        while True:
            page = self.ask("POST", path, ask, what=what, changes_nothing=True)
            yield from page["points"]
            if page.get("next_page_offset") is None:
                return
            raise_if_stopping()
            ask["offset"] = page["next_page_offset"]


@contextlib.contextmanager
def _as_httpx() -> Iterator[None]:
    """What the standard library's client raises, as httpx would."""
    import httpx

    try:
        yield
    except TimeoutError as error:
        raise httpx.ReadTimeout(str(error)) from error
    except ConnectionRefusedError as error:
        raise httpx.ConnectError(str(error)) from error
    except (http.client.HTTPException, OSError) as error:
        raise httpx.ReadError(str(error)) from error


def _path(collection: str, *parts: str) -> str:
    return "/collections/" + "/".join(quote(part, safe="") for part in (collection, *parts))


def _error_text(answer: Any) -> str:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(answer.json()["status"]["error"])
    return str(answer.text) or str(answer.reason_phrase)


# -- what the inventory says ------------------------------------------------------------------------------------------


def _file_name(node: str, collection: str) -> str:
    """The member that holds a collection: its name where that is safe as a file's, else percent-encoded, never too long."""
    name = quote(collection, safe="")
    if name.startswith((".", "~")):
        name = f"%{ord(name[0]):02X}{name[1:]}"
    if len(name) > 180:
        name = f"{name[:140]}~{hashlib.sha256(collection.encode()).hexdigest()[:32]}"
    return f"{node}/{name}.snapshot" if node else f"{name}.snapshot"


def _dense(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Vector name → its parameters; the nameless one is ''."""
    found = config.get("params", {}).get("vectors") or {}
    return {"": found} if "size" in found else found


def _sparse(config: dict[str, Any]) -> list[str]:
    return sorted(config.get("params", {}).get("sparse_vectors") or {})


def _numbers(config: dict[str, Any]) -> int:
    """How many numbers the vectors of a point have, about."""
    return sum(int(one.get("size", 0)) for one in _dense(config).values()) + 50 * len(_sparse(config))


def _shape(config: dict[str, Any]) -> str:
    """What must be equal for a snapshot to fit a collection, in words."""
    dense = [f"{name or 'vector'} {one.get('size')} {one.get('distance')}" for name, one in sorted(_dense(config).items())]
    return ", ".join([*dense, *(f"{name} sparse" for name in _sparse(config))]) or "no vectors"


def _size_estimate(info: dict[str, Any]) -> int:
    """About how many bytes a snapshot of the collection takes."""
    width = {"float16": 2, "uint8": 1}
    config = info["config"]
    vectors = sum(int(one.get("size", 0)) * width.get(str(one.get("datatype")), 4) for one in _dense(config).values())
    replicas = int(config["params"].get("replication_factor") or 1)
    return 256 * 1024 + int(info.get("points_count") or 0) * (vectors + 400 * len(_sparse(config)) + 600) * replicas


def _schema(info: dict[str, Any]) -> dict[str, Any]:
    """Field → what is indexed and how, without the number of points."""
    return {name: {key: one[key] for key in one if key != "points"} for name, one in info["payload_schema"].items()}


def _indexes(record: dict[str, Any], name: str) -> list[Any]:
    """What a field's payload index may be in a snapshot: as it was before it was made, or after; None is no index."""
    before = record["payload_schema"]
    return [before.get(name), record.get("payload_schema_after", before).get(name)]


def _problem(collection: str, info: dict[str, Any]) -> str | None:
    """Why a collection cannot be backed up as it is."""
    if info["status"] != "red":
        return None
    why = info.get("optimizer_status")
    said = why.get("error") if isinstance(why, dict) else why
    return f"collection {collection} is in status red ({one_line(said, 200)}): look at Qdrant's log and repair it first"


def _range(low: int, high: int) -> str:
    return f"{low}" if low == high else f"between {min(low, high)} and {max(low, high)}"


def _holds(record: dict[str, Any], count: int) -> bool:
    """Whether a number of points lies where it must: what was counted inside, else between the counts around the cut."""
    if record.get("points") is not None:
        return bool(count == record["points"])
    low, high = sorted((int(record["count_before"]), int(record["count_after"])))
    return low <= count <= high


def _expected(record: dict[str, Any]) -> str:
    if record.get("points") is not None:
        return str(record["points"])
    return _range(record["count_before"], record["count_after"])


def _digests(fingerprint: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Collection → its part of a content fingerprint."""
    found: dict[str, dict[str, Any]] = (fingerprint or {}).get("collections", {})
    return found


# -- the component ----------------------------------------------------------------------------------------------------


class QdrantComponent(Component):
    """Qdrant, one server or a cluster with one URL for each peer."""

    name = "qdrant"
    prefix = "qdrant"
    extension = ".tar"
    label = "Qdrant"
    title = "Qdrant Backup"

    def __init__(self, context: Context):
        super().__init__(context)
        self._uploaded: set[str] = set()
        """Uploads of a killed run that were answered and deleted, as its journal says."""
        self._final = False

    @property
    def options(self) -> QdrantSettings:
        """The settings of this store."""
        return self.settings.qdrant

    def note(self, step: str, **facts: Any) -> None:
        """Write a line of the journal."""
        self.context.journal(step, component=self.name, **facts)

    def connect(self) -> list[Node]:
        """One node for each URL, known to be peers of one cluster or a server on its own. Raises BackupError."""
        require("httpx")
        self._check_key()
        urls = self.options.urls()
        for url in urls or [self.options.url]:
            if not _is_address(url):
                shown = one_line(url.rpartition("@")[2], 100)
                raise BackupError(f"'{shown}' is no address of a Qdrant: QDRANT_URL looks like http://host:6333")
        nodes = [Node(url, self.options) for url in urls]
        try:
            if problems := [problem for node in nodes if (problem := node.trouble())]:
                raise BackupError("; ".join(problems))
            _name_peers(nodes)
        except BaseException:
            close_all(nodes)
            raise
        return nodes

    def _check_key(self) -> None:
        if any(ord(letter) < 32 or ord(letter) == 127 for letter in self.options.api_key):
            raise BackupError("the API key of Qdrant holds a line break or another control character: check QDRANT_API_KEY")

    def select(self, names: list[str]) -> list[str]:
        """The collections that the patterns choose. Raises UsageError for a pattern that matches none."""
        include, exclude = self.options.include_collections, self.options.exclude_collections
        idle = [one for one in (*include, *exclude) if not fnmatch.filter(names, one)]
        if idle:
            raise UsageError(
                f"no collection matches {', '.join(map(repr, idle))}: there are {', '.join(names) or 'none'} "
                "(check qdrant.include_collections and qdrant.exclude_collections)"
            )
        chosen = [name for name in names if not include or any(fnmatch.fnmatchcase(name, one) for one in include)]
        return [name for name in chosen if not any(fnmatch.fnmatchcase(name, one) for one in exclude)]

    def probe(self) -> Probe:
        """Reachable, all peers named, right to make snapshots, collections in a good state, disk. Nothing is left behind."""
        found = Probe()
        if missing(["httpx"]):
            found.problems.append("the Python library httpx is not installed (pip install httpx)")
            return found
        try:
            nodes = self.connect()
        except BackupError as error:
            found.problems.append(str(error))
            return found
        try:
            self._probe(nodes, found)
        except BackupError as error:
            found.problems.append(str(error))
        finally:
            close_all(nodes)
        return found

    def _probe(self, nodes: list[Node], found: Probe) -> None:
        found.facts.update(server={"name": "Qdrant", "version": nodes[0].version}, nodes=len(nodes))
        for node in nodes:
            if problem := _snapshot_right(node):
                found.problems.append(problem)
        names = nodes[0].collections()
        try:
            names = self.select(names)
        except BackupError as error:
            found.problems.append(str(error))
        found.facts["collections"] = len(names)
        sizes = [0]
        for name in names:
            try:
                info = nodes[0].info(name)
            except Answered as error:
                if not nodes[0].has_lost(name, error):  # since it was listed
                    found.problems.append(f"collection {name} does not answer ({error}): repair or delete it first")
                continue
            if problem := _problem(name, info):
                found.problems.append(problem)
            sizes.append(self._size_on_disk(name) or _size_estimate(info))
        found.raw_bytes = sum(sizes)
        self._probe_disks(found, max(sizes))

    def _size_on_disk(self, collection: str) -> int | None:
        """Bytes that a collection takes in the server's storage, where that can be seen from here."""
        folder = Path(self.options.data_dir or "/nonexistent") / "collections" / collection
        total = 0
        for where, __, files in os.walk(folder):
            for name in files:
                with contextlib.suppress(OSError):
                    total += Path(where, name).stat().st_blocks * 512
        return total or None

    def _probe_disks(self, found: Probe, largest: int) -> None:
        data_dir = Path(self.options.data_dir) if self.options.data_dir else None
        if data_dir and data_dir.is_dir() and (free := shutil.disk_usage(data_dir).free) < (found.raw_bytes or 0):
            found.problems.append(
                f"snapshots need about {_mb(found.raw_bytes or 0)} beside Qdrant's data and {_mb(free)} are free in {data_dir}: "
                "make room there"
            )
        if self.settings.fingerprint != CONTENT:
            return
        if why := points.unavailable():
            found.warnings.append(f"the points will not be fingerprinted by content: {why}")
            return
        scratch = 2 * largest  # a collection is unpacked while the one before it is read
        found.facts["scratch_bytes"] = scratch
        folder = next((one for one in (self.context.workdir, Path(self.settings.backup_dir)) if one.is_dir()), Path("/"))
        if (free := shutil.disk_usage(folder).free) < scratch + (found.raw_bytes or 0):
            found.problems.append(
                f"the content fingerprint needs about {_mb(scratch)} of scratch space beside the backup and {_mb(free)} "
                f"are free in {folder}: make room, or use --fingerprint counts"
            )

    def open_cut(self, ready: Callable[[], None], level: str) -> Cut:
        """Look at everything, wait for the other stores, then make all snapshots."""
        cut = QdrantCut(self, self.connect(), level)
        try:
            cut.open(ready)
        except BaseException:
            cut.close()
            raise
        return cut

    def snapshot(self, node: Node, collection: str) -> dict[str, Any]:
        """Make a snapshot that is in nobody's way; gives name, size, checksum. The journal names it before and after.

        Names carry whole seconds: a second snapshot within one overwrites the first under its name (measured), and hosts
        that share a server know nothing of each other. So a second that has a name already is let pass, and where ours was
        overwritten all the same, it is made again in another; chance sees to it that two hosts do not meet there.
        """
        for __ in range(_MAKE_TRIES):
            known, at = sorted(str(one["name"]) for one in node.snapshots(collection)), node.now()
            if any(0 <= (stamp - at).total_seconds() <= 1 for name in known if (stamp := _stamp(name))):
                time.sleep(0.3)
                continue
            step = {"url": node.url, "collection": collection, "known": known, "at": clock.iso(at)}
            self.note(_MAKING, **step)
            try:
                made = node.make_snapshot(collection)
            except BackupError as error:
                self._look_for_unnamed(node, {"step": _MAKING, **step}, error)
                raise
            if str(made["name"]) not in known:
                try:
                    self.note(_MADE, url=node.url, collection=collection, **_traits(made))
                    if node.has_snapshot(collection, made):
                        return made
                except BackupError:  # the disk is full, the server gone: what nobody names must not stay
                    self.drop(node, collection, made)
                    raise
            time.sleep(1.1 + secrets.randbelow(2000) / 1000)  # until a name that is free
        raise BackupError(
            f"other snapshots of {collection} are being made on {node.shown} again and again under the same name: "
            "find what makes them, or choose another time"
        )

    def fresh(self, node: Node, collection: str) -> tuple[dict[str, Any], Iterator[memoryview]]:
        """A new snapshot and its bytes; made again where another run has taken its name."""
        for left in reversed(range(_OPEN_TRIES)):
            made = self.snapshot(node, collection)
            try:
                return made, self.opened(node, collection, made)
            except BaseException as error:
                self.drop(node, collection, made)
                if not isinstance(error, Taken) or not left:
                    raise
                self.reporter.warn(f"{error}; it is made again")
        raise AssertionError

    def opened(self, node: Node, collection: str, made: dict[str, Any]) -> Iterator[memoryview]:
        """The bytes of a snapshot of ours. Raises Taken, before any is given, where it is not ours any more.

        It is looked for once its bytes have begun to come: what was still there then is what comes, for a server that
        replaces a file lets those who read the old one go on.
        """
        pieces = node.download(collection, str(made["name"]), int(made["size"]))
        first = next(pieces, memoryview(b""))
        if not node.has_snapshot(collection, made):
            pieces.close()
            raise Taken(f"the snapshot {made['name']} on {node.shown} was replaced by another run's of the same second")
        return itertools.chain([first], pieces)

    def examine(self, source: Source, pieces: Iterator[bytes]) -> Examination:
        """Walk the tar and every snapshot in it to their trailers, and hold all against collections.json and the manifest."""
        walk = _Walk(source)
        walk.run(pieces)
        return walk.examination()

    def inventory(self, source: Source) -> dict[str, Any]:
        """What collections.json says: from the manifest, else from the file itself. Raises VerificationError."""
        if source.entry and "inventory" in source.entry:
            found: dict[str, Any] = source.entry["inventory"]
            return found
        tar = tarball.Tar(source.pieces(), str(source.path))
        inside = None
        for member in tar:
            if member.name == INVENTORY:
                inside = _parse_inventory(tar.read(_INVENTORY_LIMIT), str(source.path))
        if inside is None:
            raise VerificationError(
                f"{source.path} has no {INVENTORY}: it is a copy of a live data directory as the guide's script makes it, torn "
                "by design, and cannot be restored through Qdrant; unpack it into the storage of a stopped server and hope, "
                "or restore a set that agentmem-backup made"
            )
        return inside

    def plan_restore(self, source: Source, options: RestoreOptions) -> RestorePlan:
        """What will be overwritten, created and left; versions, peers, shapes and names that forbid it."""
        plan = RestorePlan()
        try:
            restoration = QdrantRestoration(self, source, options)
        except BackupError as error:
            plan.problems.append(str(error))
            return plan
        try:
            restoration.plan(plan)
        except BackupError as error:
            plan.problems.append(str(error))
        finally:
            restoration.disconnect()
        return plan

    def restoration(self, source: Source, options: RestoreOptions) -> Restoration:
        """A restore, connected and not yet begun."""
        return QdrantRestoration(self, source, options)

    def extract(self, source: Source, what: str, target: Path, form: str) -> str:
        """One collection as `snapshot` (the server's file; of a cluster one for each node) or `jsonl` (its points)."""
        return _Extraction(self, source, what, target).run(form or "snapshot")

    def clean_up(self, step: dict[str, Any]) -> None:
        """Delete what a killed run left on the server; put a safety copy back over a collection that it left broken."""
        require("httpx")
        if step["step"] == _UPLOADED:
            self._uploaded.add(step["name"])
            return
        self._final = self._final or step["step"] == _FINAL
        node = Node(str(step.get("url", "")), self.options)
        try:
            if step["step"] == _MADE:
                _delete_named(node, step)
            elif step["step"] == _MAKING and not self._remove_unnamed(node, step):
                self.owe(step)
            elif step["step"] == _SENT and step["name"] not in self._uploaded:
                self._await_upload(node, step)
            elif step["step"] == _UPLOADING:
                self._undo_upload(node, step)
            elif step["step"] == _BESIDE and not self._final:
                self._undo_beside(node, step)
        finally:
            node.close()

    def _undo_beside(self, node: Node, step: dict[str, Any]) -> None:
        """A restore by alias that was killed: its aliases go back to where they pointed, and what it made is deleted."""
        name = str(step["collection"])
        if not _RESTORED.search(name) or not node.exists(name):
            return
        node.point_back(step["aliases"], {name})
        node.delete_collection(name)
        self.reporter.warn(
            f"collection {name}, which a killed restore had made, was deleted; its aliases point where they did before"
        )

    # What may yet turn up on a server

    def drop(self, node: Node, collection: str, made: dict[str, Any]) -> None:
        """Delete a snapshot of ours; where that fails now, the end of this run or a later one does it."""
        try:
            node.delete_own(collection, made)
        except BackupError:
            self.owe({"step": _MADE, "url": node.url, "collection": collection, **_traits(made)})

    def owe(self, step: dict[str, Any]) -> None:
        """Remember a line of a journal whose snapshot or upload could not be deleted: it may not be there yet."""
        facts = ("step", "url", "collection", "name", "size", "checksum", "known", "at")
        kept: dict[str, Any] = {key: step[key] for key in facts if key in step}
        kept["since"] = clock.iso(clock.now())
        try:
            with _owing:
                self._write_owed([*self._read_owed(), kept])
        except OSError as error:
            self.reporter.warn(
                f"a snapshot of {step['collection']} may stay on the server, which cannot be written down ({one_line(error)}): "
                "look for it there"
            )

    @property
    def _owed_file(self) -> Path:
        return Path(self.settings.backup_dir) / ".state" / _OWED

    def _read_owed(self) -> list[dict[str, Any]]:
        try:
            found = json.loads(self._owed_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return []
        return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []

    def _write_owed(self, owed: list[dict[str, Any]]) -> None:
        if not owed:
            self._owed_file.unlink(missing_ok=True)
            return
        make_private(self._owed_file.parent)
        fresh = self._owed_file.with_suffix(".new")
        fresh.touch(mode=0o600)
        fresh.write_text(json.dumps(owed), encoding="utf-8")
        fresh.replace(self._owed_file)

    def settle(self) -> None:
        """Delete what earlier runs owe and has turned up since."""
        owed = self._read_owed()
        if not owed or missing(["httpx"]):
            return
        left = [step for step in owed if not self._settled(step)]
        if left != owed:
            with contextlib.suppress(OSError), _owing:
                self._write_owed(left)

    def _settled(self, step: dict[str, Any]) -> bool:
        """Whether nothing can come of this line any more."""
        node = Node(str(step["url"]), self.options)
        age_s = (clock.now() - clock.from_iso(step["since"])).total_seconds()
        try:
            gone = self._remove_unnamed(node, step) if step["step"] == _MAKING else _delete_named(node, step)
        except BackupError:
            return age_s > _OWED_S
        finally:
            node.close()
        return gone or age_s > self.options.timeout_s

    def _look_for_unnamed(self, node: Node, step: dict[str, Any], error: BackupError) -> None:
        """After a request for a snapshot that failed: one that was not answered may be carried out all the same."""
        gone = isinstance(error, Answered)
        with contextlib.suppress(BackupError):
            gone = self._remove_unnamed(node, step) or gone
        if not gone:
            self.owe(step)

    def _await_upload(self, node: Node, step: dict[str, Any]) -> None:
        """Wait until the server lists an upload that it had whole when our process was killed.

        Before, there is nothing to delete, and the file would come when nobody looks any more.
        """
        deadline = time.monotonic() + _ARRIVAL_S + step["size"] / _ARRIVAL_BYTES_S
        while time.monotonic() < deadline:
            try:
                if any(one["name"] == step["name"] for one in node.snapshots(step["collection"])):
                    return
            except Answered as error:
                if error.status != 404:  # a collection that is yet to be made cannot list anything
                    raise
            time.sleep(0.1)
        self.owe(step)

    def _remove_unnamed(self, node: Node, step: dict[str, Any]) -> bool:
        """Delete the snapshot of a request that was never answered. Says whether that is settled: else it may yet come.

        It is ours where it was not there before, its name tells the half minute in which we asked, and no other does: where
        several could be it, somebody else makes snapshots too, and none is touched.
        """
        asked = clock.from_iso(step["at"])
        try:
            listed = node.snapshots(step["collection"])
        except Answered as error:
            if error.status == 404:
                return True
            raise
        candidates = []
        for name in (str(one["name"]) for one in listed):
            made = _stamp(name)
            if name in step["known"] or made is None:
                continue
            if timedelta(seconds=-1) <= made - asked <= timedelta(seconds=30):
                candidates.append(name)
        if len(candidates) == 1:
            node.delete_snapshot(step["collection"], candidates[0])
        elif candidates:
            self.reporter.warn(
                f"one of the snapshots {', '.join(candidates)} of {step['collection']} on {node.shown} may be left over from a "
                "killed run: delete it by hand"
            )
        return bool(candidates)

    def _undo_upload(self, node: Node, step: dict[str, Any]) -> None:
        collection, safety = step["collection"], step.get("safety")
        try:
            node.info(collection)
        except Answered as error:
            if error.status == 500 and safety and Path(safety["path"]).is_file():
                self.upload_file(node, collection, safety, step["name"])
                self.reporter.warn(f"collection {collection} was left broken by a killed restore: its old data is back")
            elif error.status == 500 and step.get("created"):
                node.delete_collection(collection)
        self.forget_upload(node, collection, step["name"])

    def upload_file(self, node: Node, collection: str, safety: dict[str, Any], name: str) -> None:
        """Upload a snapshot from our disk under `name`, after its digest was compared. Raises BackupError.

        The file stays on the server until `forget_upload`.
        """
        path = Path(safety["path"])
        digest, size = hashlib.sha256(), 0
        for piece in _file_pieces(path):
            digest.update(piece)
            size += len(piece)
        if (size, digest.hexdigest()) != (safety["size"], safety["sha256"]):
            raise VerificationError(f"the safety copy {path} is not what was written: it cannot be put back")
        note = {"url": node.url, "collection": collection, "name": name, "size": size}
        self.note(_UPLOADING, **note, safety=safety, created=False)
        announce = functools.partial(self.note, _SENT, **note)
        node.send(collection, name, _file_pieces(path), size, safety["sha256"], announce).end()

    def forget_upload(self, node: Node, collection: str, name: str) -> bool:
        """Delete an uploaded file, which the server keeps in its snapshots folder, also after a failure; was it there?

        Where the collection does not exist the file cannot be listed or deleted: only while a collection of that name
        exists (measured). A small one is made for that moment, and deleted again.
        """
        if node.exists(collection):
            return node.delete_snapshot(collection, name)
        probe = {"vectors": {}, "wal_config": {"wal_capacity_mb": 1}}
        node.ask("PUT", _path(collection), probe, what=f"finding the file of a failed upload to {collection}")
        try:
            return node.delete_snapshot(collection, name)
        finally:
            if node.count(collection) == 0:
                node.delete_collection(collection)


def close_all(nodes: list[Node]) -> None:
    """Close the connections of all nodes."""
    for node in nodes:
        node.close()


def _name_peers(nodes: list[Node]) -> None:
    """Hold the URLs against the cluster's own list of peers, and name each node by its id. Raises BackupError."""
    states = [node.cluster() for node in nodes]
    enabled = [state for state in states if state.get("status") == "enabled"]
    if len(nodes) > 1 and len(enabled) < len(nodes):
        raise BackupError(
            "QDRANT_URL names several addresses that are not peers of one cluster: give each server an instance of its own"
        )
    peers = sorted({peer for state in enabled for peer in state.get("peers", {})})
    if len(peers) <= 1 and len(nodes) == 1:
        return
    own = [str(state["peer_id"]) for state in enabled]
    if len(set(own)) < len(own):
        raise BackupError("QDRANT_URL names the same peer of the cluster twice: name each of them once")
    if sorted(own) != peers:
        uris = ", ".join(str(one.get("uri")) for state in enabled[:1] for one in state["peers"].values())
        raise BackupError(
            f"Qdrant is a cluster of {len(peers)} peers ({uris}) and QDRANT_URL names {len(nodes)} of them: "
            "a node's snapshots hold only its own shards, so name the REST address of every peer, separated by commas"
        )
    for node, peer in zip(nodes, own, strict=True):
        node.name = peer


def _snapshot_right(node: Node) -> str | None:
    """Why snapshots may not be made, or None.

    Asked for a collection that does not exist the server answers 404 to whoever may, and 403 to whoever may not
    (measured with 1.18.3): the right is proven and nothing is made.
    """
    absent = f"agentmem-backup-probe-{secrets.token_hex(6)}"
    try:
        made = node.ask("POST", _path(absent) + "/snapshots", what="making snapshots")
    except Answered as error:
        return None if error.status == 404 else str(error)
    node.delete_snapshot(absent, str(made["name"]))
    return None


def _mb(size: int) -> str:
    return f"{size / 1e6:.0f} MB"


def _upload_name() -> str:
    return f"agentmem-restore-{secrets.token_hex(8)}.snapshot"


def _file_pieces(path: Path) -> Iterator[bytes]:
    with guarded(lambda: path.open("rb"), f"reading {path}") as file:
        while piece := guarded(lambda: file.read(PIECE), f"reading {path}"):
            yield piece


def _parse_inventory(content: bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(content)
        if found["format"] > 1:
            raise BackupError(f"{where} was written by a newer agentmem-backup: install that version to read it")
        if not all(isinstance(found[key], kind) for key, kind in (("collections", list), ("aliases", dict), ("server", dict))):
            raise ValueError
        for record in found["collections"]:
            operator.itemgetter("name", "config", "count_before", "count_after", "payload_schema")(record)
            for one in record["snapshots"]:
                operator.itemgetter("node", "file", "size", "sha256")(one)
    except (ValueError, KeyError, TypeError):
        raise VerificationError(f"{where} is damaged: its {INVENTORY} cannot be read") from None
    inventory: dict[str, Any] = found
    return inventory


def _stamp(name: str) -> datetime | None:
    """The second that a snapshot's name tells, in which it was begun."""
    found = _STAMP.search(name)
    return datetime.strptime(found.group(1), "%Y-%m-%d-%H-%M-%S").replace(tzinfo=clock.UTC) if found else None


def _traits(made: dict[str, Any]) -> dict[str, Any]:
    """By what a snapshot is known again: two of one second have one name."""
    return {"name": str(made["name"]), "size": made["size"], "checksum": made.get("checksum")}


def _delete_named(node: Node, step: dict[str, Any]) -> bool:
    """Delete the snapshot, or the uploaded file, that a line of a journal names; says whether it was there."""
    if step["step"] == _MADE and "size" in step:  # lines of 0.1 do not say what they made
        return node.delete_own(step["collection"], step)
    return node.delete_snapshot(step["collection"], step["name"])


# -- the cut ----------------------------------------------------------------------------------------------------------


@dataclass
class _Made:
    """A snapshot on a server, ours to fetch and to delete."""

    node: Node
    collection: str
    traits: dict[str, Any]
    """Its name, size and checksum, as the server told them."""
    shards: list[int] = field(default_factory=list)
    sha256: str = ""
    gone: bool = False

    @property
    def name(self) -> str:
        return str(self.traits["name"])

    @property
    def size(self) -> int:
        return int(self.traits["size"])

    @property
    def checksum(self) -> str | None:
        """SHA-256; None where the server keeps its snapshots on S3."""
        checksum = self.traits["checksum"]
        return None if checksum is None else str(checksum)

    def record(self) -> dict[str, Any]:
        return {
            "node": self.node.name,
            "file": _file_name(self.node.name, self.collection),
            "size": self.size,
            "sha256": self.sha256,
            "checksum_compared": self.checksum is not None,
            "shards": self.shards,
        }


@dataclass
class _Collection:
    """One collection on its way into the file."""

    name: str
    info: dict[str, Any]
    """As the server described it before its snapshots were made."""
    then: dict[str, Any] = field(default_factory=dict)
    """The same afterwards."""
    before: int = 0
    after: int = 0
    snapshots: list[_Made] = field(default_factory=list)
    shards: dict[str, dict[str, Any]] = field(default_factory=dict)
    not_digested: str = ""
    gone: bool = False
    """Deleted before anything of it was in the file."""

    def digest(self) -> points.Digest:
        """All shards together."""
        total = points.Digest()
        for shard in self.shards.values():
            total.join(shard["points"], shard["digest"])
        return total

    def record(self) -> dict[str, Any]:
        changed = _schema(self.then) != _schema(self.info)
        return {
            "name": self.name,
            "config": self.info["config"],
            "payload_schema": _schema(self.info),
            **({"payload_schema_after": _schema(self.then)} if changed else {}),
            "count_before": self.before,
            "count_after": self.after,
            "snapshots": [one.record() for one in self.snapshots],
        }


class QdrantCut(Cut):
    """Snapshots of all collections, lying on the servers until they are fetched.

    A snapshot's checksum, as the server told it, is compared when the file is read back from the disk: hashing it also on its
    way there would prove nothing more, and a run waits for this store longer than for any other.
    """

    sealed = True

    def __init__(self, component: QdrantComponent, nodes: list[Node], level: str):
        self.component = component
        self.nodes = nodes
        self.level = level
        self.collections: list[_Collection] = []
        self.aliases: dict[str, str] = {}
        self.warnings: list[str] = []
        self.left_out: list[str] = []
        self.moment = clock.now()
        self._inventory: dict[str, Any] = {}
        self._readings = _Readings(component)
        self._undigested = points.unavailable() if level == CONTENT else None

    def open(self, ready: Callable[[], None]) -> None:
        """List, look, wait, and make the snapshots, several collections at once so that the cut is short."""
        first = self.nodes[0]
        everything = first.collections()
        chosen = self.component.select(everything)
        self.left_out = [name for name in everything if name not in chosen]
        for name in chosen:
            try:
                self.collections.append(_Collection(name, first.info(name)))
            except Answered as error:
                if not first.has_lost(name, error):  # since it was listed
                    raise
        problems = [problem for one in self.collections if (problem := _problem(one.name, one.info))]
        if problems:
            raise BackupError("; ".join(problems))
        ready()
        self.moment = clock.now()
        if self.collections:
            _at_once(self._make, self.collections)
        held = [one.name for one in self._held()]
        self.aliases = {alias: name for alias, name in sorted(first.aliases().items()) if name in held}

    def _held(self) -> list[_Collection]:
        """The collections that are in the file, or will be."""
        return [one for one in self.collections if not one.gone]

    def _make(self, collection: _Collection) -> None:
        """The snapshots of one collection, one node after the other, between two looks at it."""
        first = self.nodes[0]
        try:
            collection.info, collection.before = first.info(collection.name), first.count(collection.name)
            for node in self.nodes:
                made = self.component.snapshot(node, collection.name)
                shards = node.shards(collection.name) if node.name else []
                collection.snapshots.append(_Made(node, collection.name, _traits(made), shards))
            self._look_afterwards(collection)
        except Answered as error:
            self._miss(collection, error)

    def _look_afterwards(self, collection: _Collection) -> None:
        """Count and describe a collection whose snapshots were made; what is in them lies between this and the look before."""
        first = self.nodes[0]
        collection.then, collection.after = first.info(collection.name), first.count(collection.name)
        old, new = _shape(collection.info["config"]), _shape(collection.then["config"])
        if old != new:
            raise BackupError(
                f"collection {collection.name} was made anew while it was being dumped, with the vectors {new} where it had"
                f" {old}: run the backup again"
            )

    def _miss(self, collection: _Collection, error: Answered) -> None:
        """Go on without a collection that was deleted before anything of it was in the file; raises `error` where it was not.

        An application that keeps a collection for as long as a session must not cost the whole backup.
        """
        if not self.nodes[0].has_lost(collection.name, error):
            raise error
        if any(made.sha256 for made in collection.snapshots):
            raise BackupError(
                f"collection {collection.name} was deleted while it was being dumped, and a part of it is in the file: run the "
                "backup again"
            ) from error
        collection.gone = True
        self.warnings.append(
            f"collection {collection.name} was deleted before it could be dumped and is not in the backup"
            + (" (a snapshot of it may remain in the server's snapshots folder)" if collection.snapshots else "")
        )

    def dump(self, out: Writer) -> None:
        """Fetch every snapshot into the tar, delete the server's copy, and write the inventory last.

        The last copy is left to `close`: while the server deletes its gigabytes, the end of the file is read back.
        """
        waiting = [(collection, made) for collection in self._held() for made in collection.snapshots]
        for collection, made in waiting:
            if collection.gone:
                continue
            try:
                opened = self._opened(collection, made)
            except Answered as error:
                self._miss(collection, error)
            else:
                self._fetch(collection, made, opened, out)
            if made is not waiting[-1][1]:
                self._delete(made)
        self._readings.finish()
        self._look_again()
        self._inventory = {
            "format": 1,
            "server": {"name": "Qdrant", "version": self.nodes[0].version},
            "nodes": [node.name for node in self.nodes],
            "collections": [one.record() for one in self._held()],
            "aliases": self.aliases,
        }
        content = json.dumps(self._inventory, indent=1, ensure_ascii=False, sort_keys=True).encode()
        mtime = int(self.moment.timestamp())
        out.write(tarball.header(INVENTORY, len(content), mtime=mtime))
        out.write(content)
        out.write(tarball.padding(len(content)) + tarball.TRAILER)

    def _opened(self, collection: _Collection, made: _Made) -> Iterator[memoryview]:
        """The bytes of a snapshot. Where another run on the server has taken its name it is made again, between new counts."""
        first = self.nodes[0]
        for __ in range(_OPEN_TRIES - 1):
            try:
                return self.component.opened(made.node, collection.name, made.traits)
            except Taken as error:
                self.component.reporter.warn(f"{error}; it is made again")
                self.component.drop(made.node, collection.name, made.traits)
                info, before = first.info(collection.name), first.count(collection.name)
                made.traits = _traits(self.component.snapshot(made.node, collection.name))
                made.shards = made.node.shards(collection.name) if made.node.name else []
                if len(collection.snapshots) == 1:
                    collection.info, collection.before = info, before
                self._look_afterwards(collection)
        return self.component.opened(made.node, collection.name, made.traits)

    def _fetch(self, collection: _Collection, made: _Made, opened: Iterator[memoryview], out: Writer) -> None:
        what = f"the snapshot {made.name}"
        mtime = int(self.moment.timestamp())
        out.write(tarball.header(_file_name(made.node.name, collection.name), made.size, mtime=mtime))
        digest = hashlib.sha256()

        def pieces() -> Iterator[memoryview]:
            for piece in opened:
                if made.checksum is None:
                    digest.update(piece)
                out.write(piece)
                yield piece

        if self.level == CONTENT and self._undigested is None:
            self._readings.start(collection, pieces(), what)
        else:
            for __ in pieces():
                pass
        out.write(tarball.padding(made.size))
        made.sha256 = made.checksum or digest.hexdigest()
        if made.checksum is None:
            self.warnings.append(
                f"the server gave no checksum for the snapshot of {collection.name} (S3): only its size was compared"
            )

    def _delete(self, made: _Made) -> None:
        try:
            made.node.delete_own(made.collection, made.traits)
            made.gone = True
        except BackupError as error:
            self.warnings.append(f"the snapshot {made.name} stays on the server until a later run deletes it: {error}")

    def _look_again(self) -> None:
        """What came and went while we dumped."""
        now = self.nodes[0].collections()
        held = [one.name for one in self._held()]
        known = {*held, *self.left_out}
        self.aliases = {alias: name for alias, name in self.aliases.items() if name in held}
        for name in now:
            if name not in known:
                self.warnings.append(f"collection {name} was created during the dump and is not in it")
        for name in held:
            if name not in now:
                self.warnings.append(f"collection {name} was deleted during the dump; the file holds it as it was at the cut")

    def entry(self) -> dict[str, Any]:
        """The inventory, the fingerprint, and what a restore needs."""
        import httpx

        major, minor = _version(self.nodes[0].version)
        return {
            "server": self._inventory["server"],
            "tool": {"name": "httpx", "version": httpx.__version__},
            "fingerprint": self._fingerprint(),
            "method": "collection snapshots through the REST API" + (" of every peer" if len(self.nodes) > 1 else ""),
            "requires": {"server": [f"{major}.{minor}", f"{major}.{minor + 1}"], "nodes": len(self.nodes)},
            "warnings": self.warnings,
            "filters": self._filters(),
            "inventory": self._inventory,
        }

    def _filters(self) -> dict[str, Any]:
        include, exclude = self.component.options.include_collections, self.component.options.exclude_collections
        return {"include": include, "exclude": exclude, "left_out": self.left_out} if include or exclude else {}

    def _fingerprint(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for one in self._held():
            found[one.name] = {"count_before": one.before, "count_after": one.after}
            if self.level != CONTENT:
                continue
            if why := self._undigested or one.not_digested:
                found[one.name]["not_digested"] = why
            else:
                total = one.digest()
                found[one.name].update(points=total.points, digest=total.hex())
        return {"level": self.level, "collections": found, "aliases": self.aliases}

    def close(self) -> None:
        """Delete every snapshot that still lies on a server, end the child, close the connections."""
        self._readings.close()
        for collection in self.collections:
            for made in collection.snapshots:
                if not made.gone:
                    self._delete(made)
                if not made.gone:
                    self.component.drop(made.node, made.collection, made.traits)
                    made.gone = True
        close_all(self.nodes)


def _at_once(work: Callable[[_Collection], None], collections: list[_Collection]) -> None:
    """Run `work` on all collections, some at a time; the first error is raised once all have ended."""
    with concurrent.futures.ThreadPoolExecutor(_COLLECTIONS_AT_ONCE, thread_name_prefix="qdrant-cut") as pool:
        futures = [pool.submit(work, one) for one in collections]
        __, waiting = concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_EXCEPTION)
        for future in waiting:
            future.cancel()
    for future in futures:
        if not future.cancelled():
            future.result()


class _Readings:
    """Opens one snapshot after the other in a child process while the next one is being fetched."""

    def __init__(self, component: QdrantComponent):
        self._component = component
        self._number = 0
        self._running: tuple[_Collection, points.Reading] | None = None

    def start(self, collection: _Collection, pieces: Iterator[memoryview], what: str) -> None:
        """Read `pieces` to their end, and let a child digest what they hold."""
        folder = self._component.context.workdir / f"qdrant-points-{self._number}"
        self._number += 1
        try:
            points.unpack(map(bytes, pieces), folder, what)  # a piece holds until the next, and a tar may keep it longer
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self.finish()
        self._running = (collection, points.Reading(folder, skip=list(collection.shards)))

    def finish(self) -> None:
        """Wait for the child. Where it fails the content is not compared, and the entry says why."""
        if self._running is None:
            return
        collection, reading = self._running
        try:
            collection.shards.update(reading.result())
        except Cancelled:
            raise
        except BackupError as error:
            collection.not_digested = str(error)
            self._component.reporter.warn(f"the points of {collection.name} are not fingerprinted: {error}")
        finally:
            reading.close()
            self._running = None

    def close(self) -> None:
        """End what runs."""
        if self._running is not None:
            self._running[1].close()
            self._running = None


# -- the file ---------------------------------------------------------------------------------------------------------


class _Walk:
    """A walk through the file: outer tar, and each snapshot's own tar inside, while digests are taken."""

    def __init__(self, source: Source):
        self.source = source
        self.entry = source.entry
        self.count = 0
        # With the manifest the verb compares the digest of the whole file, so its content need not be hashed once more.
        self.hashing = "sha256" not in (source.entry or {})
        self.seen: dict[str, tuple[int, str]] = {}
        self.inner_faults: list[str] = []
        self.faults: list[str] = []
        self.inside: dict[str, Any] | None = None
        self.last = ""

    def run(self, pieces: Iterator[bytes]) -> None:
        tar = tarball.Tar(pieces, str(self.source.path))
        for member in tar:
            self.count += 1
            self.last = member.name
            if member.name in self.seen:
                self.faults.append(f"Qdrant backup holds {member.name!r} twice")
            if member.name == INVENTORY and member.kind == "file":
                content = tar.read(_INVENTORY_LIMIT)
                self.seen[member.name] = (len(content), hashlib.sha256(content).hexdigest())
                self.inside = _parse_inventory(content, str(self.source.path))
            elif member.kind == "file":
                self._content(tar, member)
            else:
                self.seen[member.name] = (0, member.kind)

    def _content(self, tar: tarball.Tar, member: tarball.Member) -> None:
        digest = hashlib.sha256()

        def through() -> Iterator[bytes]:
            for piece in tar.content():
                if self.hashing:
                    digest.update(piece)
                yield piece  # type: ignore[misc]

        stream = through()
        if member.name.endswith(".snapshot"):
            try:
                for __member in tarball.Tar(stream, f"the snapshot {member.name}"):
                    pass
            except VerificationError as error:
                self.inner_faults.append(str(error))
        for __ in stream:
            pass
        self.seen[member.name] = (member.size, digest.hexdigest() if self.hashing else "")

    def examination(self) -> Examination:
        faults = list(self.faults)
        told = (self.entry or {}).get("inventory")
        if self.inside is None:
            if told is not None:
                faults.append(f"Qdrant backup has no {INVENTORY}, and the manifest says that it must: {self.source.path}")
        else:
            faults += self.inner_faults
            if self.last != INVENTORY:
                faults.append(f"Qdrant backup holds {self.last!r} after its {INVENTORY}")
            faults += self._against(self.inside)
            if told is not None and told != self.inside:
                faults.append(f"Qdrant backup's {INVENTORY} differs from the manifest: the file belongs to another set")
        facts = {"files": self.count, "legacy": self.inside is None}
        return Examination(f"Qdrant backup tar integrity OK ({self.count} files)", faults, facts)

    def _against(self, inventory: dict[str, Any]) -> Iterator[str]:
        wanted = {one["file"]: one for record in inventory["collections"] for one in record["snapshots"]}
        for name in sorted({*wanted, *self.seen} - {INVENTORY}):
            if name not in self.seen:
                yield f"Qdrant backup lacks {name!r}, which its {INVENTORY} names"
            elif name not in wanted:
                yield f"Qdrant backup holds {name!r}, which its {INVENTORY} does not name"
            elif self.seen[name] != (wanted[name]["size"], wanted[name]["sha256"] if self.hashing else ""):
                yield (
                    f"Qdrant backup's {name!r} is not what the server made, its size or SHA-256 differ: it was changed on its "
                    "way or on the disk, or another run on the same server overwrote it; run the backup again"
                )


class _Extraction:
    """One collection taken out of a file."""

    def __init__(self, component: QdrantComponent, source: Source, what: str, target: Path):
        self.component = component
        self.source = source
        self.target = target
        inventory = component.inventory(source)
        names = {record["name"]: record for record in inventory["collections"]}
        name = inventory["aliases"].get(what, what)
        if name not in names:
            raise UsageError(f"there is no collection {what!r} in {source.path}: it holds {', '.join(sorted(names)) or 'none'}")
        self.record = names[name]

    def run(self, form: str) -> str:
        if form not in ("snapshot", "jsonl"):
            raise UsageError(f"a collection can be extracted as snapshot or jsonl, not as {form}")
        if form == "jsonl" and (why := points.unavailable()):
            raise BackupError(f"the points cannot be read: {why}")
        made: list[Path] = []
        try:
            return self._snapshots(made) if form == "snapshot" else self._lines(made)
        except BaseException:
            for path in made:
                path.unlink(missing_ok=True)
            raise

    def _members(self) -> Iterator[tuple[dict[str, Any], Iterator[bytes]]]:
        for one, __, pieces in _snapshots_of(self.source, {one["file"]: (self.record, one) for one in self.record["snapshots"]}):
            yield one, pieces

    def _snapshots(self, made: list[Path]) -> str:
        several = len(self.record["snapshots"]) > 1
        for one, pieces in self._members():
            path = self.target.with_name(f"{self.target.name}.{one['node']}") if several else self.target
            made.append(path)
            _write_file(path, pieces)
        return f"collection {self.record['name']}: snapshot written to {', '.join(map(str, made))}"

    def _lines(self, made: list[Path]) -> str:
        made.append(self.target)
        _write_file(self.target, iter(()))
        shards: dict[str, dict[str, Any]] = {}
        for number, (one, pieces) in enumerate(self._members()):
            folder = self.component.context.workdir / f"qdrant-extract-{number}"
            try:
                points.unpack(pieces, folder, f"the snapshot {one['file']}")
                reading = points.Reading(folder, lines=self.target, skip=list(shards))
                try:
                    shards.update(reading.result())
                finally:
                    reading.close()
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        total = sum(shard["points"] for shard in shards.values())
        return f"collection {self.record['name']}: {total} points written to {self.target}, one a line"


def _write_file(path: Path, pieces: Iterator[bytes | memoryview]) -> None:
    def opened(name: str, flags: int) -> int:
        return os.open(name, flags, 0o600)

    with guarded(lambda: open(path, "xb", opener=opened), f"writing {path}") as file:
        for piece in pieces:
            guarded(functools.partial(file.write, piece), f"writing {path}")
        guarded(file.flush, f"writing {path}")
        guarded(functools.partial(os.fsync, file.fileno()), f"writing {path}")


def _write_hashed(path: Path, pieces: Iterator[memoryview]) -> str:
    """Past the page cache, side by side with what brings the pieces; gives their SHA-256."""
    with Writer(path) as writer:
        for piece in pieces:
            writer.write(piece)
        return writer.close().sha256


Wanted = dict[str, tuple[Any, dict[str, Any]]]


def _snapshots_of(source: Source, wanted: Wanted) -> Iterator[tuple[dict[str, Any], Any, Iterator[bytes]]]:
    """For each wanted member of the file: its snapshot's record, what it is wanted for, and its bytes.

    The bytes end with VerificationError where their digest is not the recorded one. What is not read is passed over.
    Raises VerificationError where a member is not there.
    """
    left = dict(wanted)
    tar = tarball.Tar(source.pieces(), str(source.path))
    for member in tar:
        if member.name not in left:
            continue
        owner, record = left.pop(member.name)
        yield record, owner, _checked(tar, record)
        if not left:
            return
    if left:
        raise VerificationError(f"{source.path} lacks {', '.join(left)}")


def _checked(tar: tarball.Tar, record: dict[str, Any]) -> Iterator[bytes]:
    digest = hashlib.sha256()
    for piece in tar.content():
        digest.update(piece)
        yield bytes(piece)
    if digest.hexdigest() != record["sha256"]:
        raise VerificationError(f"{record['file']} is not what was backed up: its SHA-256 differs")


# -- the restore ------------------------------------------------------------------------------------------------------


@dataclass
class _Target:
    """One collection of the file and what becomes of it on the server."""

    record: dict[str, Any]
    name: str
    live: dict[str, Any] | None
    """What the server says of the collection of that name; None where there is none."""
    broken: str = ""
    """Why the live collection does not answer; then there is nothing to save."""
    safety: list[tuple[Node, dict[str, Any]]] = field(default_factory=list)
    safety_count: int | None = None
    touched: bool = False
    restored: bool = False
    beside: str = ""
    """The collection beside which this one is made, where the application goes through an alias that is then switched."""

    @property
    def there(self) -> bool:
        return self.live is not None or bool(self.broken)


def _new_folder(parent: Path, stamp: str) -> Path:
    """Where the collections of this moment will be saved: a name that no other restore took (it is not made yet)."""
    names = (f"qdrant_{stamp}{suffix}" for suffix in ("", *(f"_{number}" for number in range(2, 1000))))
    return next(path for name in names if not (path := parent / name).exists())


@dataclass
class _Upload:
    """A file on its way to a server, which keeps it until we delete it."""

    node: Node
    collection: str
    name: str
    known: bool = False
    """Whether it is known what became of it: answered, or never sent whole. Before, that it is not there proves nothing."""

    def step(self) -> dict[str, Any]:
        return {"step": _UPLOADING, "url": self.node.url, "collection": self.collection, "name": self.name}


@dataclass
class _Ahead:
    """What was sent before the switch, all but its end."""

    upload: _Upload
    target: _Target
    file: str
    sending: Sending


class QdrantRestoration(Restoration):
    """Absent collections are uploaded in `prepare`; those that are there are saved in `prepare` and replaced in `commit`."""

    def __init__(self, component: QdrantComponent, source: Source, options: RestoreOptions):
        self.component = component
        self.source = source
        self.options = options
        self.inventory = component.inventory(source)
        self.nodes = component.connect()
        self.by_name: dict[str, Node] = {}
        self.targets: list[_Target] = []
        self.previous = _new_folder(Path(component.settings.backup_dir) / ".state" / "previous", component.context.stamp)
        self.aliases_before: dict[str, str] | None = None
        self._leftovers: list[_Upload] = []
        self._ahead: _Ahead | None = None
        try:
            self._look()
        except BaseException:
            self.disconnect()
            raise

    def disconnect(self) -> None:
        """Close the connections."""
        close_all(self.nodes)

    def _look(self) -> None:
        """Pair each chosen collection of the file with what the server has under its new name."""
        self._assign_nodes()
        first = self.nodes[0]
        present = first.collections()
        for record in self.inventory["collections"]:
            if self.options.only_collections and record["name"] not in self._only():
                continue
            target = _Target(record, self.options.collection_prefix + record["name"], None)
            if target.name in present:
                try:
                    target.live = first.info(target.name)
                except Answered as error:
                    target.broken = str(error)
                if self.component.options.restore_method == "alias":
                    self._put_beside(target, first.aliases())
            self.targets.append(target)

    def _put_beside(self, target: _Target, live: dict[str, str]) -> None:
        """Where the application goes through an alias the collection is restored under a name of its own."""
        if not any(alias in live for alias in self._aliases_of(target)):
            return
        target.beside, target.live, target.broken = target.name, None, ""
        target.name = f"{_RESTORED.sub('', target.name)}__restored_{self.component.context.stamp}"

    def _aliases_of(self, target: _Target) -> list[str]:
        prefix = self.options.collection_prefix
        return [prefix + alias for alias, name in self.inventory["aliases"].items() if name == target.record["name"]]

    def _only(self) -> set[str]:
        """The chosen collections: named by themselves or by an alias that the file records."""
        return {self.inventory["aliases"].get(name, name) for name in self.options.only_collections}

    def _assign_nodes(self) -> None:
        """Each node's snapshots go to the node that they came from, never to another (it would get dead replicas)."""
        names = list(self.inventory.get("nodes") or [""])
        mine = {node.name: node for node in self.nodes}
        if set(names) == set(mine):
            self.by_name = mine
        elif len(names) == len(self.nodes):
            self.by_name = dict(zip(names, self.nodes, strict=True))

    # What the plan says

    def plan(self, plan: RestorePlan) -> None:
        """Fill in lines, problems and warnings."""
        plan.problems += self._topology_problems() + self._version_problems() + self._name_problems()
        for target in self.targets:
            self._plan_target(target, plan)
        told = {name for target in self.targets for name in (target.name, target.beside)}
        for name in self.nodes[0].collections():
            if name not in told:
                plan.lines.append(f"collection {name} is not restored and stays as it is")
        for alias, collection in self._aliases().items():
            plan.lines.append(f"alias {alias} will point to {collection}")
        for alias in self._foreign_aliases():
            plan.lines.append(f"alias {alias} is not in the backup and will be removed")
        plan.warnings += self._space_warnings()

    def _plan_target(self, target: _Target, plan: RestorePlan) -> None:
        what = f"collection {target.name}"
        expected = f"{_expected(self._fingerprint(target))} points"
        if target.beside:
            plan.lines.append(
                f"{what} will be created with {expected}, and its aliases are switched to it in one request; collection "
                f"{target.beside} stays as it is, until you delete it"
            )
        elif not target.there:
            plan.lines.append(f"{what} will be created with {expected}")
        elif target.broken:
            plan.lines.append(f"{what} is broken and will be replaced by {expected}")
            plan.warnings.append(f"{what} does not answer, so no safety copy of it can be made ({target.broken})")
        elif target.live is not None:
            old, new = _shape(target.live["config"]), _shape(target.record["config"])
            if old != new:
                plan.problems.append(
                    f"{what} has other vectors on {self.nodes[0].shown} ({old}) than in the backup ({new}), "
                    "and Qdrant would refuse it: delete or rename it first, or restore beside it with a collection prefix"
                )
            if len(self.nodes) > 1 and len(self.by_name) == len(self.nodes):
                moved = [
                    shard for shard, peers in self._placement(target).items() if self._shard_changes(target.name, shard, peers)
                ]
                if moved:
                    plan.problems.append(
                        f"{what} has its shards {', '.join(map(str, moved))} on other nodes than when it was backed up: "
                        "move them back, delete it first, or restore beside it with a collection prefix"
                    )
            now = target.live.get("points_count") or 0
            plan.lines.append(
                f"{what} ({now} points now) will be overwritten with {expected}; a copy of it is saved in {self.previous} first"
            )

    def _topology_problems(self) -> list[str]:
        names = list(self.inventory.get("nodes") or [""])
        if {node.name for node in self.nodes} == set(names):
            return []
        if len(names) != len(self.nodes):
            return [
                f"the backup was made of {len(names)} node(s) and QDRANT_URL names {len(self.nodes)}: each node's snapshots hold "
                "its own shards, so restore to as many nodes"
            ]
        if "topology" in self.options.accept:
            return []
        return [
            f"the backup was made of the peers {', '.join(names)} and the target's are "
            f"{', '.join(node.name or 'a single server' for node in self.nodes)}: their shards may lie on "
            "other nodes (accept 'topology' to restore in the order of QDRANT_URL)"
        ]

    def _version_problems(self) -> list[str]:
        made, target = str(self.inventory["server"].get("version", "")), self.nodes[0].version
        old, new = _version(made), _version(target)
        if "version" in self.options.accept or (new[0] == old[0] and old[1] <= new[1] <= old[1] + 1):
            return []
        return [
            f"the backup was made by Qdrant {made} and the target is {target}: snapshots fit the same "
            f"or the next minor version only (restore to {old[0]}.{old[1]} or {old[0]}.{old[1] + 1}, or accept 'version')"
        ]

    def _name_problems(self) -> list[str]:
        first = self.nodes[0]
        problems = []
        if self.options.only_collections:
            known = {record["name"] for record in self.inventory["collections"]}
            if unknown := sorted(self._only() - known):
                problems.append(
                    f"there is no collection {', '.join(unknown)} in the backup: it holds {', '.join(sorted(known)) or 'none'}"
                )
        if refused := sorted(_REFUSED_IN_NAMES.intersection(self.options.collection_prefix)):
            problems.append(f"Qdrant takes no name with {' '.join(map(repr, refused))} in it: give another collection prefix")
        aliases, present = first.aliases(), set(first.collections())
        for target in self.targets:
            if target.name in aliases:
                problems.append(
                    f"the target has an alias {target.name} (for {aliases[target.name]}) where a collection of that name "
                    "is to be restored: delete the alias first, or restore with a collection prefix"
                )
        problems += [
            f"the target has a collection {alias} where an alias of that name is to be restored: "
            "delete or rename it first, or restore with a collection prefix"
            for alias in self._aliases()
            if alias in present
        ]
        return problems

    def _space_warnings(self) -> list[str]:
        data_dir = self.component.options.data_dir
        if not data_dir or not Path(data_dir).is_dir():
            return []
        largest = max((one["size"] for target in self.targets for one in target.record["snapshots"]), default=0)
        free = shutil.disk_usage(data_dir).free
        if free >= 3 * largest:
            return []
        return [
            f"restoring needs about {_mb(3 * largest)} beside Qdrant's data (three times the largest snapshot) and {_mb(free)} "
            f"are free in {data_dir}"
        ]

    def _aliases(self) -> dict[str, str]:
        """Alias → collection as it shall be, for the chosen collections."""
        return {alias: target.name for target in self.targets for alias in self._aliases_of(target)}

    def _foreign_aliases(self) -> list[str]:
        """Aliases of restored collections that the backup does not have."""
        mine, wanted = {target.name for target in self.targets}, self._aliases()
        return sorted(alias for alias, name in self.nodes[0].aliases().items() if name in mine and alias not in wanted)

    # The restore itself

    def prepare(self) -> None:
        """Save what will be overwritten to our disk, and upload what is not there yet."""
        plan = RestorePlan()
        self.plan(plan)
        if plan.problems:
            raise BackupError("; ".join(plan.problems))
        for target in self.targets:
            if target.live is not None:
                self._save(target)
            if target.beside:
                live = self.nodes[0].aliases()
                aliases = {alias: live.get(alias, "") for alias in self._aliases_of(target)}
                self.component.note(_BESIDE, url=self.nodes[0].url, collection=target.name, aliases=aliases)
        self._upload([target for target in self.targets if not target.there])
        self._send_ahead()

    def _save(self, target: _Target) -> None:
        """A snapshot of the live collection, fetched, compared and durable, before anything may be uploaded over it."""
        guarded(lambda: make_private(self.previous), f"making {self.previous}")
        target.safety_count = self.nodes[0].count(target.name)
        for node in self.nodes:
            made, opened = self.component.fresh(node, target.name)
            try:
                path = self.previous / _file_name(node.name, target.name)
                guarded(functools.partial(path.parent.mkdir, mode=0o700, exist_ok=True), f"making {path.parent}")
                digest = _write_hashed(path, opened)
                if made.get("checksum") not in (None, digest):
                    raise BackupError(f"the safety copy {path} of {target.name} is not what the server sent: nothing was touched")
                safety = {"path": str(path), "size": int(made["size"]), "sha256": digest}
                target.safety.append((node, safety))
            finally:
                self.component.drop(node, target.name, made)
        self.component.reporter.step(f"qdrant: collection {target.name} saved in {self.previous}")

    def _upload(self, targets: list[_Target]) -> None:
        """Upload the snapshots of `targets` straight out of the file, in the order in which they lie there."""
        wanted: Wanted = {one["file"]: (target, one) for target in targets for one in target.record["snapshots"]}
        if not wanted:
            return
        left = {target.name: len(target.record["snapshots"]) for target in targets}
        for target in targets:
            if len(self.nodes) > 1 and not target.there:
                self._place_shards(target)

        def arrived(target: _Target) -> None:
            left[target.name] -= 1
            if not left[target.name]:
                self._finish(target)

        if (ahead := self._ahead) is not None and self._end_ahead(ahead):
            del wanted[ahead.file]
            arrived(ahead.target)
        if not wanted:
            return
        for record, target, pieces in _snapshots_of(self.source, wanted):
            upload, sending = self._begin(target, record, pieces)
            target.touched = True
            with self._kept(upload):
                sending.end()
            arrived(target)

    def _send_ahead(self) -> None:
        """Send the largest of the snapshots that will overwrite a collection, all but its end: the switch is that much shorter.

        Only that one: the server keeps what came of it on its disk, and needs as much once more for each that it puts in place.
        """
        waiting: Wanted = {
            one["file"]: (target, one) for target in self.targets if target.there for one in target.record["snapshots"]
        }
        if not waiting:
            return
        largest = max(waiting, key=lambda file: int(waiting[file][1]["size"]))
        for record, target, pieces in _snapshots_of(self.source, {largest: waiting[largest]}):
            upload, sending = self._begin(target, record, pieces)
            self._ahead = _Ahead(upload, target, largest, sending)
            sending.wait()
            self.component.reporter.step(f"qdrant: the new collection {target.name} is sent and waits for the switch")

    def _end_ahead(self, ahead: _Ahead) -> bool:
        """Put in place what was sent ahead. Where its connection broke meanwhile nothing came of it: False."""
        self._ahead = None
        if ahead.sending.broken:
            ahead.upload.known = True
            self.component.reporter.step(
                f"qdrant: the connection broke while {ahead.target.name} waited for the switch; sending anew"
            )
            return False
        ahead.target.touched = True
        with self._kept(ahead.upload):
            ahead.sending.end()
        return True

    def _drop_ahead(self) -> None:
        if self._ahead is not None:
            self._ahead.sending.give_up()
            self._ahead.upload.known = True
            self._ahead = None

    def _place_shards(self, target: _Target) -> None:
        """Make a collection of a cluster whose shards lie where they lay.

        The server would place those of a new collection as it likes, and a node that gets a shard it does not have makes
        a dead replica of it (measured: 93 of 200 points came back).
        """
        target.touched = True
        self.nodes[0].create_collection(target.name, target.record["config"])
        wanted = self._placement(target)
        deadline = time.monotonic() + self.component.options.timeout_s
        for shard in sorted(wanted):
            while changes := self._shard_changes(target.name, shard, wanted[shard]):
                for operation, facts in changes:
                    with contextlib.suppress(Answered):  # the same move is still under way
                        self.nodes[0].change_shards(target.name, operation, facts)
                raise_if_stopping()
                if time.monotonic() > deadline:
                    raise BackupError(f"shard {shard} of {target.name} cannot be placed as it was when it was backed up")
                time.sleep(0.2)

    def _placement(self, target: _Target) -> dict[int, set[str]]:
        """Shard → the peers that had it when it was backed up."""
        wanted: dict[int, set[str]] = {}
        for one in target.record["snapshots"]:
            for shard in one.get("shards", []):
                wanted.setdefault(shard, set()).add(self.by_name[one["node"]].name)
        return wanted

    def _shard_changes(self, name: str, shard: int, wanted: set[str]) -> list[tuple[str, dict[str, Any]]]:
        """What brings a shard to the peers `wanted`: moves, else copies, else drops."""
        present = {node.name for node in self.nodes if shard in node.shards(name)}
        missing_at, extra = sorted(wanted - present), sorted(present - wanted)
        changes: list[tuple[str, dict[str, Any]]] = []
        for there in missing_at:
            operation = "move_shard" if extra else "replicate_shard"
            source = extra.pop() if extra else next(iter(sorted(present)), "")
            if source:
                changes.append((operation, {"shard_id": shard, "from_peer_id": int(source), "to_peer_id": int(there)}))
        if not missing_at:
            changes += [("drop_replica", {"shard_id": shard, "peer_id": int(one)}) for one in extra]
        return changes

    def _begin(self, target: _Target, record: dict[str, Any], pieces: Iterator[bytes]) -> tuple[_Upload, Sending]:
        self._sweep()
        node = self.by_name[record["node"]]
        safety = next((one for where, one in target.safety if where is node), None)
        upload = _Upload(node, target.name, _upload_name())
        self._leftovers.append(upload)
        note = {"url": node.url, "collection": target.name, "name": upload.name, "size": int(record["size"])}
        self.component.note(_UPLOADING, **note, safety=safety, created=not target.there)
        announce = functools.partial(self.component.note, _SENT, **note)
        return upload, node.send(target.name, upload.name, pieces, int(record["size"]), str(record["sha256"]), announce)

    @contextlib.contextmanager
    def _kept(self, upload: _Upload) -> Iterator[None]:
        """Note whether the server is done with the uploaded file."""
        try:
            yield
        except BackupError as error:
            upload.known = isinstance(error, (Answered, Cancelled, VerificationError))
            raise
        upload.known = True

    def _sweep(self) -> None:
        """Delete uploaded files: before the next is sent, and the last once the application is let back in, which need not
        wait for it. What cannot be deleted now is tried again in `close`.
        """
        for upload in list(self._leftovers):
            with contextlib.suppress(BackupError):
                there = self.component.forget_upload(upload.node, upload.collection, upload.name)
                self._leftovers.remove(upload)
                if not (there or upload.known):
                    self.component.owe(upload.step())
                self.component.note(_UPLOADED, url=upload.node.url, collection=upload.collection, name=upload.name)

    def _finish(self, target: _Target) -> None:
        """Wait until the collection answers, and see to its payload indexes."""
        self._put_indexes(target.name, self._settled(target.name), target.record)
        target.restored = True

    def _put_indexes(self, collection: str, info: dict[str, Any], record: dict[str, Any]) -> None:
        """Make the payload indexes those of `record`: an upload over a live collection leaves it the indexes that it has
        (1.18.3), and older servers bring none along."""
        present = _schema(info)
        for name in sorted({*present, *record["payload_schema"]}):
            recorded = _indexes(record, name)
            if present.get(name) in recorded:
                continue
            if name in present:
                self.nodes[0].delete_index(collection, name)
            if described := recorded[0]:
                kind, parameters = described["data_type"], described.get("params")
                self.nodes[0].create_index(collection, name, {**parameters, "type": kind} if parameters else kind)

    def _settled(self, name: str) -> dict[str, Any]:
        """The collection's info once it is green, or answers and only goes on optimizing. Raises BackupError."""
        begun = time.monotonic()
        while True:
            trouble = ""
            try:
                info = self.nodes[0].info(name)
                waited = time.monotonic() - begun
                if info["status"] == "green" or (info["status"] in ("yellow", "grey") and waited > _SETTLE_S):
                    return info
                trouble = _problem(name, info) or ""
            except Answered as error:
                trouble = str(error)
            raise_if_stopping()
            if trouble and time.monotonic() - begun > _READY_S:
                raise BackupError(f"collection {name} does not become ready after its upload: {trouble}")
            time.sleep(0.05)

    def check(self) -> Comparison:
        """The collections that were uploaded beside; those that are overwritten in the switch cannot be looked at yet."""
        found = Comparison()
        for target in self.targets:
            if target.restored:
                self._compare_count(target, found)
            else:
                found.not_compared.append(f"collection {target.name}: it is overwritten in the switch, and compared afterwards")
        return found

    def commit(self) -> None:
        """Upload over what is there, aliases last."""
        self._upload([target for target in self.targets if target.there])
        self._put_aliases()

    def _put_aliases(self) -> None:
        """Aliases of the restored collections exactly as recorded, in one request."""
        first = self.nodes[0]
        now, wanted = first.aliases(), self._aliases()
        actions: list[dict[str, Any]] = [{"delete_alias": {"alias_name": alias}} for alias in self._foreign_aliases()]
        for alias, name in wanted.items():
            if now.get(alias) != name:
                if alias in now:
                    actions.append({"delete_alias": {"alias_name": alias}})
                actions.append({"create_alias": {"alias_name": alias, "collection_name": name}})
        self.aliases_before = now
        first.change_aliases(actions)

    def complete(self) -> None:
        """Nothing is held open; a run that is killed from now on is not taken back."""
        if any(target.beside for target in self.targets):
            self.component.note(_FINAL, url=self.nodes[0].url)

    def compare(self) -> Comparison:
        """Points, payload schema, vectors' shape and aliases of the live server against what was recorded."""
        self._sweep()
        found = Comparison()
        first = self.nodes[0]
        for target in self.targets:
            if target.beside and not target.touched:  # nothing was restored now: the live one is where the aliases point
                target.name = next(
                    (name for alias, name in first.aliases().items() if alias in self._aliases_of(target)), target.beside
                )
            try:
                self._compare_target(target, found)
            except Answered as error:
                found.compared += 1
                found.differences.append(f"collection {target.name} does not answer: {error}")
        now, mine = first.aliases(), {target.name for target in self.targets}
        wanted = self._aliases()
        found.compared += 1 + len(wanted)
        for alias in sorted({*wanted, *(alias for alias, name in now.items() if name in mine)}):
            if now.get(alias) != wanted.get(alias):
                found.differences.append(f"alias {alias} points to {now.get(alias)} where the backup says {wanted.get(alias)}")
        return found

    def _compare_target(self, target: _Target, found: Comparison) -> None:
        self._compare_count(target, found)
        info = self.nodes[0].info(target.name)
        found.compared += 2
        old, new = _shape(target.record["config"]), _shape(info["config"])
        if old != new:
            found.differences.append(f"collection {target.name} has the vectors {new} where the backup has {old}")
        recorded, here = target.record["payload_schema"], _schema(info)
        fields = {*recorded, *here, *target.record.get("payload_schema_after", {})}
        if any(here.get(name) not in _indexes(target.record, name) for name in fields):
            found.differences.append(
                f"collection {target.name} has the payload indexes {_named(here)} where the backup has {_named(recorded)}"
            )
        self._compare_content(target, found)

    def _fingerprint(self, target: _Target) -> dict[str, Any]:
        told = _digests((self.source.entry or {}).get("fingerprint")).get(target.record["name"], {})
        return {**target.record, **told}

    def _compare_count(self, target: _Target, found: Comparison) -> None:
        count, wanted = self.nodes[0].count(target.name), self._fingerprint(target)
        found.compared += 1
        if not _holds(wanted, count):
            busy = "" if wanted["count_before"] == wanted["count_after"] or wanted.get("points") is not None else _BUSY
            found.differences.append(
                f"collection {target.name} has {count} points where the backup has {_expected(wanted)}{busy}"
            )

    def _compare_content(self, target: _Target, found: Comparison) -> None:
        wanted = self._fingerprint(target)
        if "not_digested" in wanted:
            found.not_compared.append(f"the content of collection {target.name}: {wanted['not_digested']}")
        if "digest" not in wanted:
            return
        numbers = _numbers(target.record["config"])
        large = numbers * int(wanted["points"]) > _SCROLLED_NUMBERS and points.unavailable() is None
        digest = self._digest_of_snapshot(target) if large else self._digest_of_answers(target, numbers)
        found.compared += 1
        if digest != wanted["digest"]:
            found.differences.append(f"collection {target.name}: the content of its points differs from the backup")

    def _digest_of_answers(self, target: _Target, numbers: int) -> str:
        """Of what the server gives to whoever asks for points."""
        total = points.Digest()
        for point in self.nodes[0].points(target.name, numbers):
            total.add(point["id"], point.get("payload"), point.get("vector"))
        return total.hex()

    def _digest_of_snapshot(self, target: _Target) -> str:
        """Of a snapshot of the live collection: a sixth of the time, for no number becomes text on the way."""
        live = _Collection(target.name, {})
        readings = _Readings(self.component)
        try:
            for node in self.nodes:
                made, pieces = self.component.fresh(node, target.name)
                try:
                    readings.start(live, pieces, f"the snapshot {made['name']}")
                finally:
                    self.component.drop(node, target.name, made)
            readings.finish()
        finally:
            readings.close()
        if live.not_digested:
            raise BackupError(f"the content of collection {target.name} could not be compared: {live.not_digested}")
        return live.digest().hex()

    def abort(self) -> None:
        """Upload the safety copies back, delete what was created, put the old aliases back. Raises BackupError for what stays."""
        self._drop_ahead()
        self._sweep()
        troubles = []
        if self.aliases_before is not None:  # first: with a collection that we made its aliases would go
            try:
                self.nodes[0].point_back(self.aliases_before, {target.name for target in self.targets})
            except BackupError as error:
                troubles.append(f"aliases: {error}")
        for target in reversed(self.targets):
            if target.touched:
                try:
                    self._undo(target)
                except BackupError as error:
                    troubles.append(f"collection {target.name}: {error}{_kept(target)}")
        if troubles:
            raise BackupError("; ".join(troubles))

    def _undo(self, target: _Target) -> None:
        first = self.nodes[0]
        if not target.there:
            if target.name in first.collections():
                first.delete_collection(target.name)
        elif not target.safety:
            raise BackupError("it was broken before, so there is no safety copy to go back to")
        else:
            for node, safety in target.safety:
                self._sweep()
                upload = _Upload(node, target.name, _upload_name())
                self._leftovers.append(upload)
                with self._kept(upload):
                    self.component.upload_file(node, target.name, safety, upload.name)
            info = self._settled(target.name)
            if target.live is not None:
                self._put_indexes(target.name, info, {"payload_schema": _schema(target.live)})
            count = first.count(target.name)
            if target.safety_count is not None and count < target.safety_count:
                raise BackupError(f"after going back it has {count} points of {target.safety_count}")
        target.touched = target.restored = False

    def state(self) -> str:
        """What is live now."""
        new = [target.name for target in self.targets if target.restored]
        unsure = [target.name for target in self.targets if target.touched and not target.restored]
        old = [target.name for target in self.targets if not target.touched]
        said = [f"restored: {', '.join(new)}"] if new else []
        said += [f"begun and not finished: {', '.join(unsure)}"] if unsure else []
        said += [f"as before: {', '.join(old)}"] if old else []
        olds = [target.beside for target in self.targets if target.beside and target.restored]
        said += [f"kept with what they held, until you delete them: {', '.join(olds)}"] if olds else []
        saved = any(target.safety for target in self.targets)
        kept = f"; what collections held before lies in {self.previous}" if saved else ""
        return f"Qdrant collections {'; '.join(said) or 'none'}{kept}"

    def close(self) -> None:
        """Delete uploaded files that are still there; the old data stays in `.state/previous`."""
        self._drop_ahead()
        self._sweep()
        left, self._leftovers = self._leftovers, []
        self.disconnect()
        for upload in left:
            self.component.owe(upload.step())
        if left:
            said = ", ".join(f"{upload.name} of {upload.collection}" for upload in left)
            raise BackupError(f"uploaded files stay in Qdrant's snapshots folder until a later run deletes them: {said}")


def _kept(target: _Target) -> str:
    return f" (what it held before lies in {', '.join(safety['path'] for __, safety in target.safety)})" if target.safety else ""


def _named(schema: dict[str, Any]) -> str:
    return ", ".join(f"{name} ({one.get('data_type')})" for name, one in sorted(schema.items())) or "none"


def _version(text: str) -> tuple[int, int]:
    """Major and minor of a version."""
    numbers = re.findall(r"\d+", text)
    return (int(numbers[0]), int(numbers[1])) if len(numbers) > 1 else (0, 0)
