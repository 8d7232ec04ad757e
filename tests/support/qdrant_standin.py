# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in for Qdrant where no Qdrant binary is at hand: the part of its REST API that a backup and a restore depend on.

Points live in qdrant-edge-py, which is Qdrant's own storage code, so a snapshot made here is a Qdrant collection snapshot
and one made by a server loads here. Every answer follows qdrant_contract/exchanges.json, the recording of a Qdrant 1.18.3
server. `uvicorn --factory` starts `application`, which takes folder and API keys from the environment, as the server does.

What it is not: it has one node and one shard (a snapshot of several shards is merged into one, and `shard_number` says 1),
it neither searches nor filters nor optimizes, it recovers from HTTP addresses only, it compresses as gzip only (a server also
as zstd), it counts points in a text index that have no token there, and but for downloads it serves one request at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import qdrant_edge as edge
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

VERSION, SNAPSHOT_FORMAT = "1.18.3", "0.4.2"  # of the server whose answers are recorded, and its snapshots' version.info
PEER = 1000000000000000
CONVERSATION = json.loads((Path(__file__).parent / "qdrant_contract" / "exchanges.json").read_text())["exchanges"]
RECORDED = {exchange["step"]: exchange.get("body") for exchange in CONVERSATION}
INTERNAL = (subprocess.CalledProcessError, FileNotFoundError, httpx.ConnectError, httpx.HTTPStatusError)  # answered by 500
SHOWN_NULLS = {"integer": ("lookup", "range", "is_principal"), "float": ("is_principal",), "datetime": ("is_principal",)}


class Refused(HTTPException):
    """An answer other than 200 in JSON; what the server says in plain text is a mere HTTPException."""


def collection_config(body: dict) -> dict:
    """What a request to create a collection asks for, as config.json holds it; what it leaves open is as recorded."""
    asked = {name: value for name, value in body.items() if value is not None}
    recorded = RECORDED["collection info"]["result"]["config"]
    params = recorded["params"] | {"vectors": {}}
    params |= {name: asked[name] for name in (*params, "sparse_vectors") if name in asked} | {"shard_number": 1}
    config = {"params": params, "quantization_config": asked.get("quantization_config"), "uuid": None}
    for section in ("hnsw_config", "optimizer_config", "wal_config"):
        config[section] = recorded[section] | asked.get(section.replace("optimizer_", "optimizers_"), {})
    return config


def as_edge_schema(schema: str | dict) -> Any:
    if isinstance(schema, str):
        return getattr(edge.PayloadSchemaType, schema.capitalize())
    given = {name: value for name, value in schema.items() if name != "type" and value is not None}
    if "tokenizer" in given:
        given["tokenizer"] = getattr(edge.TokenizerType, given["tokenizer"].capitalize())
    return getattr(edge, f"{schema['type'].capitalize()}IndexParams")(**given)


def as_edge_vector(vector: Any) -> Any:
    if isinstance(vector, dict) and vector.keys() == {"indices", "values"}:
        return edge.SparseVector(vector["indices"], vector["values"])
    return {name: as_edge_vector(one) for name, one in vector.items()} if isinstance(vector, dict) else vector


def as_json(value: Any) -> Any:
    """For json.dumps: the points of an answer, the UUIDs and sparse vectors in them."""
    if isinstance(value, edge.SparseVector):
        return {"indices": value.indices, "values": value.values}
    named = {name: getattr(value, name, None) for name in ("id", "payload", "vector")}
    return {name: part for name, part in named.items() if part is not None} or str(value)


def pack(folder: Path, archive: Path, inside: str = "") -> None:
    """By GNU tar, because segments are sparse files of 32 MiB, which Python's tarfile neither writes nor reads well."""
    options = ("--format=gnu", "--sparse", "--owner=0", "--group=0", "--numeric-owner", f"--transform=s,^,{inside},")
    files = "".join(f"{file.relative_to(folder)}\n" for file in sorted(folder.rglob("*")) if file.is_file())
    subprocess.run(["tar", "-C", folder, "-cf", archive, *options, "-T", "-"], input=files, text=True, check=True)


def unpack_shards(snapshot: Path, target: Path) -> None:
    """All points of an unpacked snapshot in one closed shard. A cluster's node has the others' shards without segments."""
    shards = []
    for folder in sorted(path.parent for path in snapshot.glob("[0-9]*/segments")):
        archive, place = folder.with_suffix(".tar"), folder.with_suffix(".unpacked") if shards else target
        pack(folder, archive)
        edge.EdgeShard.unpack_snapshot(str(archive), str(place))
        shards.append(edge.EdgeShard.load(str(place)))
    first, *others = shards
    for other in others:
        everything = edge.ScrollRequest(limit=other.count(edge.CountRequest()) + 1, with_payload=True, with_vector=True)
        points = [edge.Point(record.id, record.vector, record.payload) for record in other.scroll(everything)[0]]
        first.update(edge.UpdateOperation.upsert_points(points))
    for shard in shards:
        shard.close()


def check_recovery(given: dict, archive: Path) -> None:
    """The parameters of an upload or a recovery from this file."""
    asked, actual = given.get("checksum"), hashlib.sha256(archive.read_bytes()).hexdigest()
    if asked and not re.fullmatch(r"[0-9a-fA-F]{64}", asked):
        raise Refused(422, "Validation error in query parameters: [checksum: Validation error: invalid_sha256_hash]")
    if given.get("priority") not in (None, "no_sync", "snapshot", "replica"):
        raise Refused(400, f"Deserialize error in query parameters: unknown variant `{given['priority']}`")
    if asked and asked.lower() != actual:
        raise Refused(400, f"Checksum mismatch: expected {asked}, actual {actual}")


class Collection:
    """A folder that holds what a snapshot holds, but for its one shard, which lies unpacked in `0/`."""

    def __init__(self, folder: Path):
        self.name, self.folder, self.operations = folder.name, folder, 0
        self.config = json.loads((folder / "config.json").read_text())
        self.schema = json.loads((folder / "payload_index.json").read_text())["schema"]
        self.shard = edge.EdgeShard.load(str(folder / "0"))

    def remove(self) -> None:
        self.shard.close()
        shutil.rmtree(self.folder)

    def info(self) -> dict:
        indexed, schema = self.shard.info().payload_schema, {}
        for field, kind in self.schema.items():
            schema[field] = {"data_type": kind} if isinstance(kind, str) else {"data_type": kind["type"], "params": kind}
            schema[field]["points"] = indexed[field].points if field in indexed else 0
        state = {"status": "green", "optimizer_status": "ok", "points_count": self.shard.count(edge.CountRequest())}
        return {**state, "config": self.config, "payload_schema": schema}

    def scroll(self, **asked: Any) -> dict:
        points, following = self.shard.scroll(edge.ScrollRequest(**{"with_payload": True, **asked}))
        return {"points": points, "next_page_offset": following}

    def retrieve(self, ids: list, with_payload: Any = True, with_vector: Any = False) -> list[edge.Record]:
        return self.shard.retrieve(ids, with_payload, with_vector)

    def update(self, operation: str, *arguments: Any) -> dict:
        self.shard.update(getattr(edge.UpdateOperation, operation)(*arguments))
        self.operations += 2 if operation.endswith("_field_index") else 1
        return {"operation_id": self.operations, "status": "completed"}

    def upsert(self, points: list[dict]) -> dict:
        made = [edge.Point(one["id"], as_edge_vector(one["vector"]), one.get("payload")) for one in points]
        return self.update("upsert_points", made)

    def set_index(self, field: str, schema: str | dict | None) -> dict:
        known = {name: value for name, value in self.schema.items() if name != field}
        if schema is None:
            answer = self.update("delete_field_index", field)
        else:
            answer = self.update("create_field_index", field, as_edge_schema(schema))
            known[field] = schema if isinstance(schema, str) else dict.fromkeys(SHOWN_NULLS.get(schema["type"], ())) | schema
        (self.folder / "payload_index.json").write_text(json.dumps({"schema": known}))
        self.schema = known
        return answer

    def snapshot(self, archive: Path, part: str = ".") -> None:
        """All, or the shard `0` alone: each segment is a tar of its own; the log goes along, for its numbering must go on."""
        self.shard.flush()
        folder = archive.with_suffix(".layout")
        shutil.copytree(self.folder, folder, ignore=shutil.ignore_patterns("0"))
        shard, live = folder / "0", self.folder / "0"
        (shard / "segments").mkdir(parents=True)
        for segment in (live / "segments").iterdir():
            pack(segment, shard / "segments" / f"{segment.name}.tar", "snapshot/files/")
        subprocess.run(["cp", "-a", "--sparse=always", live / "wal", shard / "wal"], check=True)
        (shard / "replica_state.json").write_text(json.dumps({"is_local": True, "this_peer_id": PEER, "peers": {PEER: "Active"}}))
        (shard / "shard_config.json").write_text('{"type": "ReplicaSet"}')
        pack(folder / part, archive)
        shutil.rmtree(folder)


class Store:
    """Collections, aliases and snapshots below one folder; `lock` is held by whoever reads or changes them.

    The name None stands for the whole storage; a method's `folder` is an empty one for this request alone.
    """

    def __init__(self, root: Path):
        self.folder, self.snapshots, self.aliases_file = root / "collections", root / "snapshots", root / "aliases.json"
        shutil.rmtree(root / "tmp", ignore_errors=True)
        for folder in (self.folder, self.snapshots, root / "tmp"):
            folder.mkdir(parents=True, exist_ok=True)
        tempfile.tempdir = str(root / "tmp")  # uploads too, so that every rename stays on one disk
        self.lock = threading.Lock()
        self.aliases = json.loads(self.aliases_file.read_text()) if self.aliases_file.exists() else {}
        self.collections = {folder.name: Collection(folder) for folder in sorted(self.folder.iterdir())}

    def __getitem__(self, name: str) -> Collection:
        name = self.aliases.get(name, name)
        if name not in self.collections:
            raise Refused(404, f"Not found: Collection `{name}` doesn't exist!")
        return self.collections[name]

    def create(self, name: str, body: dict, folder: Path) -> bool:
        if name in self.aliases:
            raise Refused(400, f"Wrong input: Can't create collection with name {name}. Alias with the same name exists")
        if name in self.collections:
            raise Refused(409, f"Wrong input: Collection `{name}` already exists!")
        config = collection_config(body)
        params = {"sparse_vectors": {}, **config["params"]}
        dense = {"": params["vectors"]} if "size" in params["vectors"] else params["vectors"]
        edge_config = {"vectors": dense, **{name: params[name] for name in ("sparse_vectors", "on_disk_payload")}}
        (folder / "new" / "0").mkdir(parents=True)
        (folder / "new" / "0" / "edge_config.json").write_text(json.dumps(edge_config))
        edge.EdgeShard.load(str(folder / "new" / "0")).close()
        return self.install(name, folder / "new", config, {"schema": {}})

    def install(self, name: str, prepared: Path, config: dict, index: dict) -> bool:
        """Put a prepared folder, its shard closed, in the place of collection `name`."""
        for file, content in {"config": config, "payload_index": index, "shard_key_mapping": []}.items():
            (prepared / f"{file}.json").write_text(json.dumps(content))
        (prepared / "version.info").write_text(SNAPSHOT_FORMAT)
        if name in self.collections:
            self.collections.pop(name).remove()
        self.collections[name] = Collection(prepared.rename(self.folder / name))
        return True

    def delete(self, name: str) -> bool:
        if name not in self.collections:
            return False
        self.collections.pop(name).remove()
        lost = [alias for alias, target in self.aliases.items() if target == name]
        return self.change_aliases([{"delete_alias": {"alias_name": alias}} for alias in lost])

    def list_aliases(self, name: str | None = None) -> dict:
        wanted = ((alias, target) for alias, target in self.aliases.items() if name in (None, target))
        return {"aliases": [{"alias_name": alias, "collection_name": target} for alias, target in wanted]}

    def change_aliases(self, actions: list[dict]) -> bool:
        """All of them or none."""
        aliases = dict(self.aliases)
        for action in actions:
            ((what, given),) = action.items()
            if given["alias_name"] in self.collections:
                raise Refused(409, f"Wrong input: Collection `{given['alias_name']}` already exists!")
            aliases.pop(given["alias_name"], None)
            if what == "create_alias":
                aliases[given["alias_name"]] = self[given["collection_name"]].name
        self.aliases_file.write_text(json.dumps(aliases))
        self.aliases = aliases
        return True

    def snapshots_of(self, name: str | None) -> Path:
        return self.snapshots / self[name].name if name else self.snapshots

    def snapshot_file(self, name: str | None, snapshot: str, refusal: type[HTTPException] = Refused) -> Path:
        path = self.snapshots_of(name) / snapshot
        if "/" in snapshot or not path.is_file():
            raise refusal(404, f"Not found: Snapshot {snapshot} not found")
        return path

    def make_snapshot(self, name: str | None, stamp: str, folder: Path) -> dict:
        collections = [self[name]] if name else self.collections.values()
        files = {one.name: f"{one.name}-{PEER}-{stamp}.snapshot" for one in collections}
        target = self.snapshots_of(name) / (files[self[name].name] if name else f"full-snapshot-{stamp}.snapshot")
        for one in collections:
            one.snapshot(folder / files[one.name])
        if not name:
            (folder / "config.json").write_text(json.dumps({"collections_mapping": files, "collections_aliases": self.aliases}))
            pack(folder, folder / target.name)
        target.parent.mkdir(exist_ok=True)
        return self.describe((folder / target.name).rename(target))

    def describe(self, path: Path) -> dict:
        made = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(path.stat().st_mtime))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return {"name": path.name, "creation_time": made, "size": path.stat().st_size, "checksum": digest}

    def list_snapshots(self, name: str | None) -> list[dict]:
        return [self.describe(path) for path in sorted(self.snapshots_of(name).glob("*.snapshot"))]

    def delete_snapshot(self, name: str | None, snapshot: str) -> bool:
        self.snapshot_file(name, snapshot).unlink()
        return True

    def download(self, name: str | None, snapshot: str, ranged: bool) -> Response:
        path = self.snapshot_file(name, snapshot, HTTPException)
        identity = {"content-encoding": "identity"} if ranged else {}
        response = FileResponse(path, media_type="application/octet-stream", filename=path.name, headers=identity)
        response.chunk_size = max(1, min(1 << 18, path.stat().st_size))  # in pieces, so that gzip knows no length
        return response

    def stream_shard(self, name: str, folder: Path) -> Response:
        self[name].snapshot(folder / "shard", part="0")
        return Response((folder / "shard").read_bytes(), media_type="application/octet-stream")

    def upload(self, name: str, given: dict, folder: Path) -> bool:
        """The uploaded file stays among the collection's snapshots under its own name, whatever becomes of it."""
        if not hasattr(given.get("snapshot"), "file"):
            raise HTTPException(400, "Required field is missing: snapshot")
        (folder / "uploaded").write_bytes(given["snapshot"].file.read())
        check_recovery(given, folder / "uploaded")
        kept = self.snapshots / self.aliases.get(name, name) / Path(given["snapshot"].filename).name
        kept.parent.mkdir(exist_ok=True)
        return self.recover(name, (folder / "uploaded").rename(kept), folder)

    def recover_from(self, name: str, given: dict, folder: Path) -> bool:
        (folder / "fetched").write_bytes(httpx.get(given["location"], timeout=60).raise_for_status().content)
        check_recovery(given, folder / "fetched")
        return self.recover(name, folder / "fetched", folder)

    def recover(self, name: str, archive: Path, folder: Path) -> bool:
        """Make collection `name` what the snapshot holds; at any fault of the snapshot it stays what it was."""
        name = self.aliases.get(name, name)
        subprocess.run(["tar", "-C", folder, "--no-same-owner", "-xf", archive], check=True)
        config, index = (json.loads((folder / f"{file}.json").read_text()) for file in ("config", "payload_index"))
        config["params"]["shard_number"] = 1
        if name in self.collections:
            held, config = config["params"], self[name].config
            if any((held.get(kind) or {}) != (config["params"].get(kind) or {}) for kind in ("vectors", "sparse_vectors")):
                raise Refused(400, "Wrong input: Snapshot is not compatible with existing collection")
        (folder / "new").mkdir()
        unpack_shards(folder, folder / "new" / "0")
        return self.install(name, folder / "new", config, index)


def answers(store: Store) -> dict[str, Callable[[Any], Any]]:
    """Each request's handler. `it` holds the names in the path, the body, an empty folder, and `at`: when the request came.

    A snapshot's name tells `at` in whole seconds: two within one second share a name and a file, as on the server.
    """
    return {
        "GET /cluster": lambda it: RECORDED["cluster status of a single node"]["result"],
        "GET /aliases": lambda it: store.list_aliases(),
        "GET /collections": lambda it: {"collections": [{"name": name} for name in store.collections]},
        "POST /collections/aliases": lambda it: store.change_aliases(it.body["actions"]),
        "GET /collections/{c}": lambda it: store[it.c].info(),
        "PUT /collections/{c}": lambda it: store.create(it.c, it.body, it.folder),
        "DELETE /collections/{c}": lambda it: store.delete(it.c),
        "GET /collections/{c}/exists": lambda it: {"exists": it.c in {*store.collections, *store.aliases}},
        "GET /collections/{c}/aliases": lambda it: store.list_aliases(store[it.c].name),
        "PUT /collections/{c}/index": lambda it: store[it.c].set_index(it.body["field_name"], it.body["field_schema"]),
        "DELETE /collections/{c}/index/{field}": lambda it: store[it.c].set_index(it.field, None),
        "PUT /collections/{c}/points": lambda it: store[it.c].upsert(it.body["points"]),
        "POST /collections/{c}/points": lambda it: store[it.c].retrieve(**it.body),
        "POST /collections/{c}/points/scroll": lambda it: store[it.c].scroll(**it.body),
        "POST /collections/{c}/points/count": lambda it: {"count": store[it.c].shard.count(edge.CountRequest(**it.body))},
        "POST /collections/{c}/points/delete": lambda it: store[it.c].update("delete_points", it.body["points"]),
        "POST /collections/{c}/points/payload": lambda it: store[it.c].update(
            "set_payload", it.body["points"], it.body["payload"]
        ),
        "GET /snapshots": lambda it: store.list_snapshots(None),
        "POST /snapshots": lambda it: store.make_snapshot(None, it.at, it.folder),
        "DELETE /snapshots/{s}": lambda it: store.delete_snapshot(None, it.s),
        "GET /collections/{c}/snapshots": lambda it: store.list_snapshots(it.c),
        "POST /collections/{c}/snapshots": lambda it: store.make_snapshot(it.c, it.at, it.folder),
        "DELETE /collections/{c}/snapshots/{s}": lambda it: store.delete_snapshot(it.c, it.s),
        "POST /collections/{c}/snapshots/upload": lambda it: store.upload(it.c, it.body, it.folder),
        "PUT /collections/{c}/snapshots/recover": lambda it: store.recover_from(it.c, it.body, it.folder),
        "GET /snapshots/{s:path}": lambda it: store.download(None, it.s, it.ranged),
        "GET /collections/{c}/snapshots/{s:path}": lambda it: store.download(it.c, it.s, it.ranged),
        "GET /collections/{c}/shards/0/snapshot": lambda it: store.stream_shard(it.c, it.folder),
    }


def wrapped(code: int, content: dict, background: BackgroundTask | None = None) -> Response:
    body = json.dumps({**content, "time": 0.0}, default=as_json)
    return Response(body, code, media_type="application/json", background=background)


def check_key(request: Request, full: str | None, read_only: str | None) -> None:
    """API keys, and the 404 that the server has for every HEAD."""
    if request.method == "HEAD":
        raise HTTPException(404)
    given, asked = request.headers.get("api-key", ""), f"{request.method} {request.url.path}"
    if not (full or read_only) or given == full:
        return
    if given != read_only:
        raise HTTPException(401, "Invalid API key or JWT" if given else RECORDED["collections with no key"])
    if not re.fullmatch(r"GET .*|POST /collections/[^/]+/points(/scroll|/count)?", asked):
        refused = HTTPException if asked.endswith("/upload") else Refused
        raise refused(403, "Forbidden: Global manage access is required")


def answered(store: Store, handler: Callable[[Any], Any], keys: dict) -> Callable:
    """The endpoint of a handler: gives its result as the server wraps it, or 202 before it begins where it may be later."""

    async def endpoint(request: Request) -> Response:
        check_key(request, **keys)
        it = SimpleNamespace(**request.path_params, ranged="range" in request.headers)
        it.at = time.strftime("%Y-%m-%d-%H-%M-%S", time.gmtime())
        # A download waits for nobody: the one who holds the lock may be fetching it.
        lock = contextlib.nullcontext() if "s" in request.path_params and request.method == "GET" else store.lock

        def work() -> Any:
            with lock, tempfile.TemporaryDirectory() as folder:
                it.folder = Path(folder)
                return handler(it)

        try:
            form = request.headers.get("content-type", "").startswith("multipart/form-data")
            it.body = {**request.query_params, **await request.form()} if form else json.loads(await request.body() or "{}")
            if request.query_params.get("wait") == "false" and "/snapshots" in request.url.path:
                return wrapped(202, {"status": "accepted"}, BackgroundTask(work))
            result = await run_in_threadpool(work)
        except HTTPException:
            raise
        except Exception as error:  # qdrant-edge has no other class
            raise Refused(500 if isinstance(error, INTERNAL) else 400, f"{type(error).__name__}: {error}") from error
        return result if isinstance(result, Response) else wrapped(200, {"result": result, "status": "ok"})

    return endpoint


def application() -> GZipMiddleware:
    """The server of the folder and the keys that the environment names; `uvicorn --factory` starts it."""
    store = Store(Path(os.environ["QDRANT__STORAGE__STORAGE_PATH"]))
    keys = {"full": os.environ.get("QDRANT__SERVICE__API_KEY"), "read_only": os.environ.get("QDRANT__SERVICE__READ_ONLY_API_KEY")}
    routes = [Route("/", lambda __: JSONResponse({**RECORDED["greeting"], "version": VERSION}))]
    for probe in ("healthz", "livez", "readyz"):
        routes.append(Route(f"/{probe}", lambda __, probe=probe: PlainTextResponse(RECORDED[probe])))
    for request, handler in answers(store).items():
        method, path = request.split()
        routes.append(Route(path, answered(store, handler, keys), methods=[method]))
    refusals = {
        Refused: lambda __, error: wrapped(error.status_code, {"status": {"error": error.detail}}),
        405: lambda *__: Response(status_code=404),
    }
    return GZipMiddleware(Starlette(routes=routes, exception_handlers=refusals), minimum_size=0, compresslevel=1)
