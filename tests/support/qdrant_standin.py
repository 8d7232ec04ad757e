# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in for Qdrant where no Qdrant binary is at hand: the part of its REST API that a backup and a restore depend on.

Points live in qdrant-edge-py, which is Qdrant's own storage code, so a snapshot made here is a Qdrant collection snapshot
and one made by a server loads here. Every answer follows qdrant_contract/exchanges.json, the recording of a Qdrant 1.18.3
server; LEFT_OUT names the exchanges where the stand-in answers otherwise, and why.

    python -m tests.support.qdrant_standin --port 7333 --storage DIR [--api-key KEY] [--read-only-key KEY]

What it is not: it has one node and one shard (a snapshot of several shards is merged into one, and `shard_number` says 1),
it does not search, its filters know `match` and `has_id`, it never optimizes, `PATCH` changes what it tells and not how
it stores, it compresses as gzip only (a server also as zstd), it counts points in a text index that have no token there,
and one lock lies around every request, so writes wait while a snapshot is made.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import hmac
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx
import qdrant_edge as edge
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

LEFT_OUT: dict[str, str] = {}  # step of the contract -> why the stand-in answers it otherwise

VERSION, SNAPSHOT_FORMAT = "1.18.3", "0.4.2"  # of the server whose answers are recorded, and its snapshots' version.info
PEER = 1000000000000000
# fmt: off
DEFAULTS: dict[str, dict[str, Any]] = {
    "hnsw_config": {"m": 16, "ef_construct": 100, "full_scan_threshold": 10000, "max_indexing_threads": 0, "on_disk": False},
    "optimizer_config": {
        "deleted_threshold": 0.2, "vacuum_min_vector_number": 1000, "default_segment_number": 0, "max_segment_size": None,
        "memmap_threshold": None, "indexing_threshold": 10000, "flush_interval_sec": 5, "max_optimization_threads": None,
        "prevent_unoptimized": None},
    "wal_config": {"wal_capacity_mb": 32, "wal_segments_ahead": 0, "wal_retain_closed": 1},
}
# fmt: on
SHOWN_NULLS = {"integer": ("lookup", "range", "is_principal"), "float": ("is_principal",), "datetime": ("is_principal",)}


class Refused(Exception):
    """An answer other than 200; `plain` where the server answers in text, not in JSON."""

    def __init__(self, status: int, message: str, plain: bool = False):
        super().__init__(message)
        self.status, self.plain = status, plain


# -- between the API's JSON and qdrant-edge ---------------------------------------------------------------------------


def dense_vectors(params: dict) -> dict[str, dict]:
    dense = params.get("vectors") or {}
    return {"": dense} if "size" in dense else dense


def shape(config: dict) -> tuple:
    """What must be equal for a snapshot to fit a collection."""
    dense = ((name, vector["size"], vector["distance"]) for name, vector in dense_vectors(config["params"]).items())
    return (*sorted(dense), *sorted(config["params"].get("sparse_vectors") or {}))


def collection_config(body: dict) -> dict:
    """What a request to create a collection asks for, as config.json holds it."""
    for vector in dense_vectors(body).values():
        if not isinstance(vector["size"], int) or not hasattr(edge.Distance, vector["distance"]):
            raise Refused(400, "Format error in JSON body: data did not match any variant of untagged enum VectorsConfig")
        if vector.keys() & {"multivector_config", "datatype"}:
            raise Refused(400, "The stand-in knows no multivectors and no other datatype than float32: leave them out")
    params = {"vectors": {}, "replication_factor": 1, "write_consistency_factor": 1, "on_disk_payload": True}
    params.update({name: body[name] for name in (*params, "sparse_vectors") if body.get(name) is not None})
    config = {"params": {**params, "shard_number": 1}, "quantization_config": body.get("quantization_config"), "uuid": None}
    for section, defaults in DEFAULTS.items():
        asked = body.get(section.replace("optimizer_", "optimizers_")) or {}
        config[section] = defaults | {name: value for name, value in asked.items() if value is not None}
    return config | ({"metadata": body["metadata"]} if body.get("metadata") else {})


def create_shard(folder: Path, params: dict) -> None:
    dense = {
        name: edge.EdgeVectorParams(vector["size"], getattr(edge.Distance, vector["distance"]), vector.get("on_disk"))
        for name, vector in dense_vectors(params).items()
    }
    sparse = {
        name: edge.EdgeSparseVectorParams(modifier=edge.Modifier.Idf if vector.get("modifier") == "idf" else None)
        for name, vector in (params.get("sparse_vectors") or {}).items()
    }
    config = edge.EdgeConfig(vectors=dense, sparse_vectors=sparse, on_disk_payload=params["on_disk_payload"])
    edge.EdgeShard.create(str(folder), config).close()


def as_edge_schema(schema: str | dict) -> Any:
    if isinstance(schema, str):
        return getattr(edge.PayloadSchemaType, schema.capitalize())
    given = {name: value for name, value in schema.items() if name != "type" and value is not None}
    if given.keys() & {"stopwords", "stemmer"}:
        raise Refused(400, "The stand-in knows no stopwords and no stemmer in a text index: leave them out")
    if "tokenizer" in given:
        given["tokenizer"] = getattr(edge.TokenizerType, given["tokenizer"].capitalize())
    return getattr(edge, f"{schema['type'].capitalize()}IndexParams")(**given)


def as_edge_filter(given: dict | None) -> edge.Filter:
    conditions = {name: [as_edge_condition(one) for one in clause] for name, clause in (given or {}).items()}
    return edge.Filter(**conditions)


def as_edge_condition(given: dict) -> Any:
    match = given.get("match") or {}
    if "value" in match:
        return edge.FieldCondition(given["key"], match=edge.MatchValue(match["value"]))
    if "any" in match:
        return edge.FieldCondition(given["key"], match=edge.MatchAny(match["any"]))
    if "has_id" in given:
        return edge.HasIdCondition(given["has_id"])
    raise Refused(400, f"The stand-in's filters know match value, match any and has_id, not {sorted(given)}")


def as_edge_vector(vector: Any) -> Any:
    if isinstance(vector, dict) and vector.keys() == {"indices", "values"}:
        return edge.SparseVector(vector["indices"], vector["values"])
    return {name: as_edge_vector(one) for name, one in vector.items()} if isinstance(vector, dict) else vector


def as_json(value: Any) -> Any:
    """For json.dumps: what a record holds beside JSON's own types."""
    return {"indices": value.indices, "values": value.values} if isinstance(value, edge.SparseVector) else str(value)


def as_json_point(record: edge.Record) -> dict:
    point = {"id": record.id, "payload": record.payload, "vector": record.vector}
    return {name: value for name, value in point.items() if value is not None}


# -- files ------------------------------------------------------------------------------------------------------------


def write_json(path: Path, value: Any) -> None:
    beside = path.with_name(path.name + ".new")
    beside.write_text(json.dumps(value), encoding="utf-8")
    beside.replace(path)


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def tar(*arguments: Any, names: Iterable[Path] = ()) -> None:
    """GNU tar, because segments are sparse files of 32 MiB, which Python's tarfile neither writes nor reads well."""
    listed = "".join(f"{name}\n" for name in names)
    done = subprocess.run(["tar", *map(str, arguments)], input=listed, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refused(500, f"Service internal error: File IO error: {done.stderr.strip()}")


def pack(folder: Path, archive: Path, inside: str = "") -> None:
    options = ("--format=gnu", "--sparse", "--owner=0", "--group=0", "--numeric-owner", f"--transform=s,^,{inside},")
    files = [file.relative_to(folder) for file in sorted(folder.rglob("*")) if file.is_file()]
    tar("-C", folder, "-cf", archive, *options, "-T", "-", names=files)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


# -- what is kept -----------------------------------------------------------------------------------------------------


class Collection:
    """A folder with config.json and payload_index.json as a snapshot has them, and the one shard in `0/`."""

    def __init__(self, folder: Path):
        self.folder, self.operations = folder, 0
        self.config = json.loads((folder / "config.json").read_text())
        self.schema = json.loads((folder / "payload_index.json").read_text())["schema"]
        self.shard = edge.EdgeShard.load(str(folder / "0"))

    def update(self, operation: Any, steps: int = 1) -> dict:
        try:
            self.shard.update(operation)
        except Exception as error:  # qdrant-edge has one class for all that it finds wrong with a request
            raise Refused(400, f"Wrong input: {error}") from error
        self.operations += steps
        return {"operation_id": self.operations, "status": "completed"}

    def set_index(self, field: str, schema: str | dict | None) -> dict:
        known = {name: value for name, value in self.schema.items() if name != field}
        operation = edge.UpdateOperation.delete_field_index(field)
        if schema is not None:
            operation = edge.UpdateOperation.create_field_index(field, as_edge_schema(schema))
            shown = isinstance(schema, dict) and dict.fromkeys(SHOWN_NULLS.get(schema["type"], ()))
            known[field] = schema if isinstance(schema, str) else {**shown, **schema}
        answer = self.update(operation, 2)
        write_json(self.folder / "payload_index.json", {"schema": known})
        self.schema = known
        return answer

    def patch(self, body: dict) -> bool:
        for section in ("hnsw_config", "optimizer_config", "params"):
            self.config[section].update(body.get(section.replace("optimizer_", "optimizers_")) or {})
        self.config.update({name: body[name] for name in ("quantization_config", "metadata") if name in body})
        write_json(self.folder / "config.json", self.config)
        return True

    def count(self, condition: dict | None = None) -> int:
        return self.shard.count(edge.CountRequest(filter=as_edge_filter(condition)))

    def indexed(self, field: str) -> dict:
        schema, known = self.schema[field], self.shard.info().payload_schema.get(field)
        described = {"data_type": schema} if isinstance(schema, str) else {"data_type": schema["type"], "params": schema}
        return {**described, "points": known.points if known else 0}

    def info(self) -> dict:
        shard = self.shard.info()
        return {
            "status": "green",
            "optimizer_status": "ok",
            "indexed_vectors_count": shard.indexed_vectors_count,
            "points_count": self.count(),
            "segments_count": shard.segments_count,
            "config": {name: value for name, value in self.config.items() if name != "uuid"},
            "payload_schema": {field: self.indexed(field) for field in self.schema},
            "update_queue": {"length": 0},
        }

    def scroll(self, body: dict) -> dict:
        asked = {name: body.get(name) for name in ("offset", "limit", "with_vector")}
        asked["with_payload"], asked["filter"] = body.get("with_payload", True), as_edge_filter(body.get("filter"))
        records, following = self.shard.scroll(edge.ScrollRequest(**asked))
        return {"points": [as_json_point(record) for record in records], "next_page_offset": following}

    def retrieve(self, body: dict) -> list[dict]:
        records = self.shard.retrieve(body["ids"], body.get("with_payload", True), body.get("with_vector", False))
        return [as_json_point(record) for record in records]

    def upsert(self, body: dict) -> dict:
        points = [edge.Point(one["id"], as_edge_vector(one["vector"]), one.get("payload")) for one in body["points"]]
        return self.update(edge.UpdateOperation.upsert_points(points))

    def change(self, operation: str, body: dict, *arguments: str) -> dict:
        """An operation on points that are named, or that a filter finds."""
        by_id = body.get("points") is not None
        chosen = body["points"] if by_id else as_edge_filter(body["filter"])
        function = getattr(edge.UpdateOperation, operation if by_id else f"{operation}_by_filter")
        return self.update(function(chosen, *(body[name] for name in arguments)))

    def shards(self) -> dict:
        local = [{"shard_id": 0, "points_count": self.count(), "state": "Active"}]
        return {"peer_id": PEER, "shard_count": 1, "local_shards": local, "remote_shards": [], "shard_transfers": []}

    def lay_out_shard(self, folder: Path) -> None:
        """The shard as a snapshot holds it: each segment a tar of its own; the log, whose numbering must go on."""
        self.shard.flush()
        (folder / "segments").mkdir(parents=True)
        for segment in (self.folder / "0" / "segments").iterdir():
            pack(segment, folder / "segments" / f"{segment.name}.tar", "snapshot/files/")
        subprocess.run(["cp", "-a", "--sparse=always", self.folder / "0" / "wal", folder / "wal"], check=True)
        state = {"is_local": True, "this_peer_id": PEER, "peers": {str(PEER): "Active"}}
        write_json(folder / "replica_state.json", state)
        write_json(folder / "shard_config.json", {"type": "ReplicaSet"})

    def snapshot(self, archive: Path) -> None:
        with scratch() as folder:
            self.lay_out_shard(folder / "0")
            (folder / "version.info").write_text(SNAPSHOT_FORMAT)
            write_json(folder / "config.json", self.config)
            write_json(folder / "shard_key_mapping.json", [])
            write_json(folder / "payload_index.json", {"schema": self.schema})
            pack(folder, archive)


def unpack_shard(folder: Path, target: Path) -> edge.EdgeShard:
    """One shard folder of an unpacked snapshot, through Qdrant's own unpacking."""
    archive = folder.with_suffix(".tar")
    pack(folder, archive)
    try:
        edge.EdgeShard.unpack_snapshot(str(archive), str(target))
        return edge.EdgeShard.load(str(target))
    except Exception as error:
        raise Refused(500, f"Service internal error: File IO error: {error}") from error


def restore_shards(snapshot: Path, target: Path, params: dict) -> None:
    """All points of an unpacked snapshot in one closed shard. A cluster's node has the others' shards without segments."""
    found = sorted(path.parent for path in snapshot.glob("[0-9]*/segments"))
    if not found:
        create_shard(target, params)
        return
    shard = unpack_shard(found[0], target)
    for folder in found[1:]:
        other, following, unread = unpack_shard(folder, folder.with_suffix(".unpacked")), None, True
        while unread:
            request = edge.ScrollRequest(offset=following, limit=1000, with_payload=True, with_vector=True)
            records, following = other.scroll(request)
            points = [edge.Point(record.id, record.vector, record.payload) for record in records]
            shard.update(edge.UpdateOperation.upsert_points(points))
            unread = following is not None
        other.close()
    shard.close()


class Store:
    """Collections, aliases and snapshots below one folder; `lock` is held by whoever reads or changes them."""

    def __init__(self, root: Path):
        self.folder, self.snapshots, self.aliases_file = root / "collections", root / "snapshots", root / "aliases.json"
        shutil.rmtree(root / "tmp", ignore_errors=True)
        for folder in (self.folder, self.snapshots, root / "tmp"):
            folder.mkdir(parents=True, exist_ok=True)
        tempfile.tempdir = str(root / "tmp")  # uploads too, so that every rename stays on one disk
        self.lock = threading.RLock()
        self.aliases = json.loads(self.aliases_file.read_text()) if self.aliases_file.exists() else {}
        self.collections = {folder.name: Collection(folder) for folder in sorted(self.folder.iterdir())}

    def real_name(self, name: str) -> str:
        name = self.aliases.get(name, name)
        if name not in self.collections:
            raise Refused(404, f"Not found: Collection `{name}` doesn't exist!")
        return name

    def __getitem__(self, name: str) -> Collection:
        return self.collections[self.real_name(name)]

    def check_name(self, name: str) -> None:
        if re.search(r'[<>:"/\\|?*\0]', name) or name in (".", "..") or len(name) > 255:
            raise Refused(422, "Validation error in path parameters: [collection_name: invalid]")

    def create(self, name: str, body: dict) -> bool:
        if name in self.aliases:
            raise Refused(400, f"Wrong input: Can't create collection with name {name}. Alias with the same name exists")
        if name in self.collections:
            raise Refused(409, f"Wrong input: Collection `{name}` already exists!")
        self.check_name(name)
        config = collection_config(body)
        with scratch() as folder:
            create_shard(folder / "new" / "0", config["params"])
            self.install(name, folder / "new", config, {})
        return True

    def install(self, name: str, prepared: Path, config: dict, schema: dict) -> None:
        """Put a prepared folder, its shard closed, in the place of collection `name`."""
        write_json(prepared / "config.json", config)
        write_json(prepared / "payload_index.json", {"schema": schema})
        self.remove(name)
        prepared.rename(self.folder / name)
        self.collections[name] = Collection(self.folder / name)

    def remove(self, name: str) -> bool:
        collection = self.collections.pop(name, None)
        if collection is not None:
            collection.shard.close()
            shutil.rmtree(collection.folder)
        return collection is not None

    def delete(self, name: str) -> bool:
        removed = self.remove(name)
        self.set_aliases({alias: target for alias, target in self.aliases.items() if not (removed and target == name)})
        return removed

    def set_aliases(self, aliases: dict[str, str]) -> None:
        write_json(self.aliases_file, aliases)
        self.aliases = aliases

    def list_aliases(self, name: str | None = None) -> dict:
        wanted = ((alias, target) for alias, target in self.aliases.items() if name in (None, target))
        return {"aliases": [{"alias_name": alias, "collection_name": target} for alias, target in wanted]}

    def change_aliases(self, actions: list[dict]) -> bool:
        """All of them or none."""
        aliases = dict(self.aliases)
        for action in actions:
            ((what, given),) = action.items()
            if what == "rename_alias" and given["old_alias_name"] not in aliases:
                raise Refused(404, f"Not found: Alias {given['old_alias_name']} does not exists!")
            target = aliases.pop(given.get("old_alias_name", given.get("alias_name")), None)
            if what == "delete_alias":
                continue
            new = given["new_alias_name" if what == "rename_alias" else "alias_name"]
            target = given.get("collection_name", target)
            if new in self.collections:
                raise Refused(409, f"Wrong input: Collection `{new}` already exists!")
            if target not in self.collections:
                raise Refused(404, f"Not found: Collection `{target}` doesn't exist!")
            aliases[new] = target
        self.set_aliases(aliases)
        return True

    # Snapshots; the name None stands for those of the whole storage.

    def snapshots_of(self, name: str | None) -> Path:
        return self.snapshots / self.real_name(name) if name else self.snapshots

    def snapshot_file(self, name: str | None, snapshot: str, plain: bool = False) -> Path:
        path = self.snapshots_of(name) / snapshot
        if "/" in snapshot or not path.is_file():
            raise Refused(404, f"Not found: Snapshot {snapshot} not found", plain)
        return path

    def make_snapshot(self, name: str | None, stamp: str) -> dict:
        with self.lock, scratch() as folder:
            target = self.snapshots_of(name) / f"full-snapshot-{stamp}.snapshot"
            if name:
                target = target.with_name(f"{self.real_name(name)}-{PEER}-{stamp}.snapshot")
                self[name].snapshot(folder / "made")
            else:
                files = {name: f"{name}-{PEER}-{stamp}.snapshot" for name in self.collections}
                (folder / "all").mkdir()
                for each, file in files.items():
                    self[each].snapshot(folder / "all" / file)
                mapping = {"collections_mapping": files, "collections_aliases": self.aliases}
                write_json(folder / "all" / "config.json", mapping)
                pack(folder / "all", folder / "made")
            target.parent.mkdir(exist_ok=True)
            Path(f"{target}.checksum").write_text(sha256(folder / "made"))
            return self.describe((folder / "made").rename(target))

    def describe(self, path: Path) -> dict:
        state, checksum = path.stat(), Path(f"{path}.checksum")
        made = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(state.st_mtime))
        digest = checksum.read_text() if checksum.exists() else None
        return {"name": path.name, "creation_time": made, "size": state.st_size, "checksum": digest}

    def list_snapshots(self, name: str | None) -> list[dict]:
        return [self.describe(path) for path in sorted(self.snapshots_of(name).glob("*.snapshot"))]

    def delete_snapshot(self, name: str | None, snapshot: str) -> bool:
        self.snapshot_file(name, snapshot).unlink()
        return True

    def recover(self, name: str, archive: Path) -> bool:
        """Make collection `name` what the snapshot holds; at any fault of the snapshot it stays what it was."""
        with self.lock, scratch() as folder:
            snapshot = folder / "snapshot"
            snapshot.mkdir()
            tar("-C", snapshot, "--no-same-owner", "-xf", archive)
            if not (snapshot / "config.json").exists():
                raise Refused(500, "Service internal error: File IO error: failed to open file `config.json`")
            name, config = self.aliases.get(name, name), json.loads((snapshot / "config.json").read_text())
            self.check_name(name)
            if name in self.collections and shape(self[name].config) != shape(config):
                raise Refused(400, "Wrong input: Snapshot is not compatible with existing collection")
            if name in self.collections:
                config = self[name].config
            config["params"]["shard_number"] = 1
            (folder / "new").mkdir()
            restore_shards(snapshot, folder / "new" / "0", config["params"])
            index = snapshot / "payload_index.json"
            schema = json.loads(index.read_text())["schema"] if index.exists() else {}
            self.install(name, folder / "new", config, schema)
            return True

    def recover_from(self, name: str, asked: dict) -> bool:
        check_recovery(asked)
        location = urlsplit(asked["location"])
        if location.scheme not in ("file", "http", "https"):
            raise Refused(400, f"Format error in JSON body: relative URL without a base: {asked['location']!r}")
        with scratch() as folder:
            path = Path(unquote(location.path)) if location.scheme == "file" else folder / "fetched"
            if location.scheme != "file":
                fetch(asked["location"], asked.get("api_key"), path)
            if not path.is_file():
                raise Refused(400, f'Bad request: Snapshot file "{path}" does not exist')
            check_digest(path, asked.get("checksum"))
            return self.recover(name, path)


# -- the requests -----------------------------------------------------------------------------------------------------

# A handler gets the store, the body and the names in the path, and gives back the result.
Handler = Callable[..., Any]
ANSWERS: dict[str, Handler] = {
    "GET /cluster": lambda store, body: {"status": "disabled"},
    "GET /telemetry": lambda store, body: {"id": "stand-in", "app": {"name": "qdrant", "version": VERSION}},
    "GET /aliases": lambda store, body: store.list_aliases(),
    "GET /collections": lambda store, body: {"collections": [{"name": name} for name in store.collections]},
    "POST /collections/aliases": lambda store, body: store.change_aliases(body["actions"]),
    "GET /collections/{c}": lambda store, body, c: store[c].info(),
    "PUT /collections/{c}": lambda store, body, c: store.create(c, body),
    "PATCH /collections/{c}": lambda store, body, c: store[c].patch(body),
    "DELETE /collections/{c}": lambda store, body, c: store.delete(c),
    "GET /collections/{c}/exists": lambda store, body, c: {"exists": c in {*store.collections, *store.aliases}},
    "GET /collections/{c}/aliases": lambda store, body, c: store.list_aliases(store.real_name(c)),
    "GET /collections/{c}/cluster": lambda store, body, c: store[c].shards(),
    "PUT /collections/{c}/index": lambda store, body, c: store[c].set_index(body["field_name"], body["field_schema"]),
    "DELETE /collections/{c}/index/{field}": lambda store, body, c, field: store[c].set_index(field, None),
    "PUT /collections/{c}/points": lambda store, body, c: store[c].upsert(body),
    "POST /collections/{c}/points": lambda store, body, c: store[c].retrieve(body),
    "POST /collections/{c}/points/scroll": lambda store, body, c: store[c].scroll(body),
    "POST /collections/{c}/points/count": lambda store, body, c: {"count": store[c].count(body.get("filter"))},
    "POST /collections/{c}/points/delete": lambda store, body, c: store[c].change("delete_points", body),
    "POST /collections/{c}/points/payload": lambda store, body, c: store[c].change("set_payload", body, "payload"),
    "PUT /collections/{c}/points/payload": lambda store, body, c: store[c].change("overwrite_payload", body, "payload"),
    "GET /snapshots": lambda store, body: store.list_snapshots(None),
    "DELETE /snapshots/{s}": lambda store, body, s: store.delete_snapshot(None, s),
    "GET /collections/{c}/snapshots": lambda store, body, c: store.list_snapshots(c),
    "DELETE /collections/{c}/snapshots/{s}": lambda store, body, c, s: store.delete_snapshot(c, s),
}
# These take the lock themselves, and may be asked not to wait for them. `at` is when the request came, which a snapshot's
# name tells in whole seconds: two within one second share a name and a file, as on the server.
UNHURRIED: dict[str, Handler] = {
    "POST /snapshots": lambda store, body, at: store.make_snapshot(None, at),
    "POST /collections/{c}/snapshots": lambda store, body, c, at: store.make_snapshot(c, at),
    "PUT /collections/{c}/snapshots/recover": lambda store, body, c, at: store.recover_from(c, body),
}


def wrapped(status: int, content: dict, started: float) -> Response:
    content["time"] = time.perf_counter() - started
    return Response(json.dumps(content, default=as_json), status, media_type="application/json")


def refusal(error: Refused) -> Response:
    if error.plain:
        return PlainTextResponse(str(error), error.status)
    return wrapped(error.status, {"status": {"error": str(error)}}, time.perf_counter())


async def answer(request: Request, work: Callable[[], Any], may_wait: bool = True) -> Response:
    """What `work` gives as the server wraps it; with wait=false `accepted`, and the work is done afterwards."""
    started = time.perf_counter()
    if may_wait and request.query_params.get("wait") == "false":
        response = wrapped(202, {"status": "accepted"}, started)
        response.background = BackgroundTask(work)
        return response
    try:
        return wrapped(200, {"result": await run_in_threadpool(work), "status": "ok"}, started)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Refused(400, f"Format error in JSON body: {type(error).__name__}: {error}") from error


def now() -> str:
    return time.strftime("%Y-%m-%d-%H-%M-%S", time.gmtime())


def check_recovery(asked: Any) -> None:
    """The parameters of an upload or a recovery."""
    if not re.fullmatch(r"[0-9a-fA-F]{64}", asked.get("checksum") or "0" * 64):
        raise Refused(422, "Validation error in query parameters: [checksum: Validation error: invalid_sha256_hash]")
    if asked.get("priority") not in (None, "no_sync", "snapshot", "replica"):
        raise Refused(400, f"Deserialize error in query parameters: unknown variant `{asked['priority']}`")


def check_digest(path: Path, expected: str | None) -> None:
    actual = sha256(path) if expected else None
    if expected and actual != expected.lower():
        raise Refused(400, f"Checksum mismatch: expected {expected}, actual {actual}")


class SnapshotFiles:
    """The requests that give or take a file."""

    def __init__(self, store: Store):
        self.store = store

    async def download(self, request: Request) -> Response:
        path = self.store.snapshot_file(request.path_params.get("c"), request.path_params["s"], plain=True)
        identity = {"content-encoding": "identity"} if "range" in request.headers else {}
        response = FileResponse(path, media_type="application/octet-stream", filename=path.name, headers=identity)
        response.chunk_size = max(1, min(1 << 18, path.stat().st_size))  # in pieces, so that gzip knows no length
        return response

    async def download_shard(self, request: Request) -> Response:
        name, path = request.path_params["c"], Path(tempfile.gettempdir()) / f"shard-{os.urandom(8).hex()}"

        def make() -> None:
            with self.store.lock, scratch() as folder:
                self.store[name].lay_out_shard(folder)
                pack(folder, path)

        await run_in_threadpool(make)
        file, clean = f"{name}-shard-0-{now()}.snapshot", BackgroundTask(path.unlink)
        return FileResponse(path, media_type="application/octet-stream", filename=file, background=clean)

    async def upload(self, request: Request) -> Response:
        name, query = request.path_params["c"], request.query_params
        check_recovery(query)
        async with request.form() as form:
            part = form.get("snapshot")
            if part is None or isinstance(part, str):
                raise Refused(400, "Required field is missing: snapshot", plain=True)
            path = await run_in_threadpool(self.keep, name, part, query.get("checksum"))
        return await answer(request, lambda: self.store.recover(name, path))

    def keep(self, name: str, part: Any, checksum: str | None) -> Path:
        """The uploaded file stays among the collection's snapshots under its own name, whatever becomes of it."""
        self.store.check_name(name)
        folder = self.store.snapshots / self.store.aliases.get(name, name)
        with scratch() as beside:
            with (beside / "upload").open("wb") as file:
                shutil.copyfileobj(part.file, file, 1 << 20)
            check_digest(beside / "upload", checksum)
            folder.mkdir(exist_ok=True)
            return (beside / "upload").rename(folder / (Path(part.filename or "").name or f"{uuid.uuid4()}.snapshot"))


def fetch(url: str, key: str | None, target: Path) -> None:
    headers = {"accept-encoding": "identity"} | ({"api-key": key} if key else {})
    try:
        with httpx.stream("GET", url, headers=headers, timeout=60) as response, target.open("wb") as file:
            response.raise_for_status()
            for block in response.iter_bytes(1 << 20):
                file.write(block)
    except httpx.HTTPError as error:
        raise Refused(500, f"Service internal error: Http request error: {error}") from error


class Guard:
    """API keys, and the 404 that the server has for every HEAD. `GET /` and the probes are open to everybody."""

    READS = re.compile(r"/collections/[^/]+/points(/scroll|/count)?")

    def __init__(self, app: Any, full: str | None, read_only: str | None):
        self.app, self.keys = app, {"full": full, "read": read_only}

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        blocked = self.blocked(Request(scope)) if scope["type"] == "http" else None
        await (blocked or self.app)(scope, receive, send)

    def blocked(self, request: Request) -> Response | None:
        path, method = request.url.path, request.method
        if method == "HEAD":
            return Response(status_code=404)
        if not any(self.keys.values()) or path in ("/", "/healthz", "/livez", "/readyz"):
            return None
        given = request.headers.get("api-key") or request.headers.get("authorization", "").removeprefix("Bearer ")
        if not given:
            return PlainTextResponse("Must provide an API key or an Authorization bearer token", 401)
        rights = {name for name, key in self.keys.items() if key and hmac.compare_digest(given.encode(), key.encode())}
        if not rights:
            return PlainTextResponse("Invalid API key or JWT", 401)
        if "full" in rights or method == "GET" or (method == "POST" and self.READS.fullmatch(path)):
            return None
        return refusal(Refused(403, "Forbidden: Global manage access is required", plain=path.endswith("/upload")))


def json_route(store: Store, method_and_path: str, handler: Handler) -> Route:
    unhurried = method_and_path in UNHURRIED

    async def call(request: Request) -> Response:
        arguments = request.path_params | ({"at": now()} if unhurried else {})
        body = await request.body()

        def work() -> Any:
            with contextlib.nullcontext() if unhurried else store.lock:
                return handler(store, json.loads(body) if body else {}, **arguments)

        return await answer(request, work, may_wait=unhurried)

    method, path = method_and_path.split()
    return Route(path, call, methods=[method])


def application(root: Path, api_key: str | None = None, read_only_key: str | None = None) -> Starlette:
    async def refuse(request: Request, error: Exception) -> Response:
        return refusal(error) if isinstance(error, Refused) else Response(status_code=404)

    store = Store(root)
    files = SnapshotFiles(store)
    greeting = {"title": "qdrant - vector search engine", "version": VERSION, "commit": "stand-in"}
    routes = [
        Route("/", lambda __: Response(json.dumps(greeting), media_type="application/json")),
        Route("/healthz", lambda __: PlainTextResponse("healthz check passed")),
        Route("/livez", lambda __: PlainTextResponse("healthz check passed")),
        Route("/readyz", lambda __: PlainTextResponse("all shards are ready")),
        *(json_route(store, method_and_path, handler) for method_and_path, handler in (UNHURRIED | ANSWERS).items()),
        Route("/collections/{c}/snapshots/upload", files.upload, methods=["POST"]),
        Route("/snapshots/{s:path}", files.download),
        Route("/collections/{c}/snapshots/{s:path}", files.download),
        Route("/collections/{c}/shards/0/snapshot", files.download_shard),
    ]
    guard = Middleware(Guard, full=api_key, read_only=read_only_key)
    gzip = Middleware(GZipMiddleware, minimum_size=0, compresslevel=1)
    handlers = {Refused: refuse, 404: refuse, 405: refuse}
    return Starlette(routes=routes, middleware=[guard, gzip], exception_handlers=handlers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--storage", type=Path, required=True)
    parser.add_argument("--api-key", default=os.environ.get("QDRANT__SERVICE__API_KEY"))
    parser.add_argument("--read-only-key", default=os.environ.get("QDRANT__SERVICE__READ_ONLY_API_KEY"))
    options = parser.parse_args()
    app = application(options.storage.resolve(), options.api_key, options.read_only_key)
    uvicorn.run(app, host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
