# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The stand-in of Qdrant earns its place: it answers as the recorded server did, and snapshots go both ways."""

from __future__ import annotations

import importlib.util
import math
import secrets
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.servers import Qdrant

CONTRACT = Path(__file__).resolve().parents[1] / "support" / "qdrant_contract"
KEYS = {"api_key": secrets.token_hex(8), "read_only_api_key": secrets.token_hex(8)}

BY_CIRCUMSTANCE = (
    "greeting",  # a server that was built without git at hand tells no commit
    "what a shard snapshot holds",  # newest_clocks.json too, once the server has flushed, which it does every 5 seconds
)

needs_binary = pytest.mark.skipif(shutil.which("qdrant") is None, reason="no qdrant on the PATH")


class Chosen(Qdrant):
    """A server of the kind that the test names, whatever the rest of the run uses."""

    def __init__(self, kind: str, **keys: str) -> None:
        super().__init__(**keys)
        self.kind, self._url = kind, ""
        self.api_key, self.read_only_api_key = keys.get("api_key"), keys.get("read_only_api_key")
        if kind == "stand-in":
            self.owner = None

    def upload(self, collection: str, snapshot: bytes | Path) -> httpx.Response:
        content = snapshot.read_bytes() if isinstance(snapshot, Path) else snapshot
        with self.client() as client:
            path = f"/collections/{collection}/snapshots/upload?wait=true&priority=snapshot"
            return client.post(path, files={"snapshot": ("restored.snapshot", content)})

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        with self.client() as client:
            return client.request(method, path, json=body).raise_for_status().json()["result"]

    def points(self, collection: str) -> dict[Any, dict]:
        """Every point by its id, vectors as 32-bit numbers, read in pages that do not divide the whole."""
        found, body = {}, {"limit": 7, "with_vector": True, "with_payload": True}
        while True:
            page = self.ask("POST", f"/collections/{collection}/points/scroll", body)
            found.update({point["id"]: as_float32(point) for point in page["points"]})
            if page["next_page_offset"] is None:
                return found
            body["offset"] = page["next_page_offset"]

    def schema(self, collection: str) -> dict:
        return self.ask("GET", f"/collections/{collection}")["payload_schema"]

    def snapshot(self, collection: str) -> bytes:
        made = self.ask("POST", f"/collections/{collection}/snapshots")
        return self.download(collection, made["name"], "identity").content

    def download(self, collection: str, snapshot: str, encoding: str) -> httpx.Response:
        with self.client() as client:
            path = f"/collections/{collection}/snapshots/{snapshot}"
            return client.get(path, headers={"accept-encoding": encoding}).raise_for_status()


def as_float32(value: Any) -> Any:
    """JSON's numbers as Qdrant keeps those of a vector; payloads of these tests survive it alike on both sides."""
    if isinstance(value, float):
        return struct.unpack("f", struct.pack("f", value))[0]
    if isinstance(value, dict):
        return {name: as_float32(inner) for name, inner in value.items()}
    return [as_float32(inner) for inner in value] if isinstance(value, list) else value


@pytest.fixture
def start() -> Iterator[Callable]:
    servers: list[Chosen] = []

    def started(kind: str = "stand-in", **keys: str) -> Chosen:
        servers.append(Chosen(kind, **keys))
        servers[-1].start()
        return servers[-1]

    yield started
    for server in servers:
        server.close()


def contract() -> Any:
    spec = importlib.util.spec_from_file_location("qdrant_contract", CONTRACT / "contract.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class PatientClient(httpx.Client):
    """Asks for gzip, as the recording did: with zstandard installed httpx prefers zstd, and a server that knows it gives it.

    A connection serves one request: after an upload that it refuses unread, a real server may close the connection while
    the next request is already on its way, and the check would end there.
    """

    def __init__(self, *, headers: dict[str, str], **options: Any) -> None:
        alone = httpx.Limits(max_keepalive_connections=0)
        super().__init__(headers={"accept-encoding": "gzip, deflate", **headers}, limits=alone, **options)


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable:
    """`contract.py check`: gives the lines it says. In this process, so that the keys stand in nobody's process list."""

    def checked(open_server: Chosen, secured: Chosen) -> list[str]:
        keys = ["--api-key", KEYS["api_key"], "--read-only-key", KEYS["read_only_api_key"]]
        command = ["contract.py", "check", "--url", open_server.url, "--secured-url", secured.url, *keys]
        monkeypatch.setattr(sys, "argv", command)
        monkeypatch.setattr(httpx, "Client", PatientClient)
        code = contract().main()
        monkeypatch.undo()
        said = capsys.readouterr().out
        assert (code == 0) == said.startswith("123 exchanges: all as ")
        return said.splitlines()

    return checked


def differing(said: list[str]) -> set[str]:
    """The steps in what the check says: `step: key`, then two lines that are indented."""
    return {line.rsplit(": ", 1)[0] for line in said if not line.startswith((" ", "123 exchanges: all as "))}


def test_the_stand_in_answers_as_recorded(start: Callable, check: Callable) -> None:
    said = check(start(), start(**KEYS))
    assert not differing(said), "\n".join(said)


@needs_binary
def test_a_real_server_answers_as_recorded(start: Callable, check: Callable) -> None:
    said = check(start("binary"), start("binary", **KEYS))
    unexplained = {step for step in differing(said) if not step.startswith(BY_CIRCUMSTANCE)}
    assert not unexplained, "\n".join(said)


def test_a_recorded_snapshot_gives_back_its_points(start: Callable) -> None:
    server, written = start(), contract()
    assert server.upload("memories", CONTRACT / "memories.snapshot").status_code == 200
    points = server.points("memories")
    assert sorted(points) == list(range(written.POINTS))
    for number, point in points.items():
        expected = written.point(number)
        length = math.sqrt(sum(x * x for x in expected["vector"]))
        assert point["payload"] == as_float32(expected["payload"])
        assert point["vector"] == pytest.approx([x / length for x in expected["vector"]], abs=1e-6)
    assert server.schema("memories") == {
        "user_id": {"data_type": "keyword", "points": 40},
        "importance": {
            "data_type": "float",
            "params": {"type": "float", "is_principal": None, "on_disk": False},
            "points": 40,
        },
    }


def test_a_recorded_snapshot_with_named_and_sparse_vectors_gives_back_its_points(start: Callable) -> None:
    server, written = start(), contract()
    assert server.upload("agents", CONTRACT / "agents.snapshot").status_code == 200
    points = server.points("agents")
    assert sorted(points) == [f"00000000-0000-0000-0000-{number:012d}" for number in range(12)]
    for number, point in enumerate(points[identity] for identity in sorted(points)):
        vector = written.point(number)["vector"]
        length = math.sqrt(sum(x * x for x in vector))
        assert point["payload"] == as_float32({"name": f"agent {number}", "tags": ["a", "b"], "place": {"lon": 8.5, "lat": 47.4}})
        assert point["vector"]["words"] == {"indices": [number, number + 7], "values": [0.5, 1.5]}
        assert point["vector"]["image"] == as_float32(vector[:3])
        assert point["vector"]["text"] == pytest.approx([x / length for x in vector], abs=1e-6)


def test_the_shards_of_a_cluster_s_node_are_merged(start: Callable) -> None:
    server = start()
    for node in ("node1", "node2"):
        assert server.upload(node, CONTRACT / f"spread-{node}.snapshot").status_code == 200
    halves = server.points("node1"), server.points("node2")
    assert [len(half) for half in halves] == [107, 93]
    assert len(halves[0] | halves[1]) == 200


def filled(server: Chosen) -> None:
    """Both collections as recorded, then changed, so that not only untouched segments travel."""
    for name in ("memories", "agents"):
        assert server.upload(name, CONTRACT / f"{name}.snapshot").status_code == 200
    server.ask("POST", "/collections/memories/points/delete?wait=true", {"points": [3, 4]})
    server.ask("POST", "/collections/memories/points/payload?wait=true", {"points": [5], "payload": {"new": [1, None]}})
    server.ask("PUT", "/collections/memories/index?wait=true", {"field_name": "n", "field_schema": "integer"})
    text = {"type": "text", "tokenizer": "word", "lowercase": True}
    number = {"type": "integer", "lookup": True, "range": False, "on_disk": True}
    for field, schema in {"memory_id": text, "m": number, "at": {"type": "datetime"}, "f": {"type": "float"}}.items():
        body = {"field_name": field, "field_schema": schema}
        server.ask("PUT", "/collections/memories/index?wait=true", body)
    new = {"id": 99, "vector": [0.1, 0.2, 0.3, 0.4], "payload": {"memory_id": "m-99", "n": 7}}
    server.ask("PUT", "/collections/memories/points?wait=true", {"points": [new]})
    # a collection that the server made itself, and one without any point
    agents = server.ask("GET", "/collections/agents")["config"]
    own = {"vectors": agents["params"]["vectors"], "sparse_vectors": {"words": {}}}
    server.ask("PUT", "/collections/own", own)
    points = [{"id": identity, **point} for identity, point in server.points("agents").items()]
    points.append({"id": 1, "vector": {"text": [1.0, 2.0, 3.0, 4.0]}, "payload": {}})
    server.ask("PUT", "/collections/own/points?wait=true", {"points": points})
    server.ask("PUT", "/collections/own/index?wait=true", {"field_name": "name", "field_schema": "keyword"})
    server.ask("PUT", "/collections/empty", {"vectors": {"size": 4, "distance": "Dot"}})


def content(server: Chosen, name: str) -> tuple:
    return server.points(name), server.schema(name), server.ask("GET", f"/collections/{name}")["points_count"]


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("stand-in", "stand-in"),
        pytest.param("stand-in", "binary", marks=needs_binary),
        pytest.param("binary", "stand-in", marks=needs_binary),
    ],
)
def test_a_snapshot_travels(source: str, target: str, start: Callable) -> None:
    origin, goal = start(source), start(target)
    filled(origin)
    counts = {}
    for name in ("memories", "agents", "own", "empty"):
        answer = goal.upload(name, origin.snapshot(name))
        assert answer.status_code == 200, answer.text
        assert content(goal, name) == content(origin, name)
        counts[name] = goal.ask("POST", f"/collections/{name}/points/count", {"exact": True})["count"]
    assert counts == {"memories": 39, "agents": 12, "own": 13, "empty": 0}
    # what is restored goes on living: a later write must win over what the snapshot's log numbers
    goal.ask("POST", "/collections/memories/points/delete?wait=true", {"points": [99]})
    goal.ask("POST", "/collections/own/points/payload?wait=true", {"points": [1], "payload": {"later": True}})
    goal.kill()
    goal.start()
    assert 99 not in goal.points("memories")
    assert goal.points("own")[1]["payload"] == {"later": True}


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_restart_keeps_everything(how: str, start: Callable) -> None:
    server = start()
    filled(server)
    alias = {"create_alias": {"collection_name": "own", "alias_name": "current"}}
    server.ask("POST", "/collections/aliases", {"actions": [alias]})
    snapshot = server.snapshot("own")
    names = ("memories", "agents", "own", "empty")
    before = {name: (content(server, name), server.ask("GET", f"/collections/{name}/snapshots")) for name in names}
    aliases = server.ask("GET", "/aliases")
    getattr(server, how)()
    server.start()
    after = {name: (content(server, name), server.ask("GET", f"/collections/{name}/snapshots")) for name in names}
    assert after == before
    assert server.ask("GET", "/aliases") == aliases == {"aliases": [{"alias_name": "current", "collection_name": "own"}]}
    kept = before["own"][1][0]["name"]
    assert server.download("own", kept, "identity").content == snapshot


def test_a_compressed_download_has_no_length_and_the_same_bytes(start: Callable) -> None:
    server = start()
    server.ask("PUT", "/collections/small", {"vectors": {"size": 4, "distance": "Dot"}})
    plain = server.snapshot("small")
    name = server.ask("GET", "/collections/small/snapshots")[0]["name"]
    answer = server.download("small", name, "gzip")
    assert answer.headers["content-encoding"] == "gzip"
    assert "content-length" not in answer.headers
    assert answer.content == plain


def test_aliases_change_all_or_none(start: Callable) -> None:
    server = start()
    server.ask("PUT", "/collections/one", {"vectors": {"size": 4, "distance": "Dot"}})
    create = {"create_alias": {"collection_name": "one", "alias_name": "a"}}
    server.ask("POST", "/collections/aliases", {"actions": [create]})
    delete, missing = (
        {"delete_alias": {"alias_name": "a"}},
        {"create_alias": {"collection_name": "absent", "alias_name": "c"}},
    )
    with server.client() as client:
        assert client.post("/collections/aliases", json={"actions": [delete, missing]}).status_code == 404
    assert server.ask("GET", "/collections/one/aliases")["aliases"] == [{"alias_name": "a", "collection_name": "one"}]
    moved = {"create_alias": {"collection_name": "one", "alias_name": "b"}}
    server.ask("POST", "/collections/aliases", {"actions": [delete, moved]})
    assert server.ask("GET", "/collections/one/aliases")["aliases"] == [{"alias_name": "b", "collection_name": "one"}]


def test_points_are_found_by_their_ids(start: Callable) -> None:
    server = start()
    server.upload("memories", CONTRACT / "memories.snapshot")
    server.ask("POST", "/collections/memories/points/delete?wait=true", {"points": [1]})
    found = server.ask("POST", "/collections/memories/points", {"ids": [0, 1, 2], "with_payload": ["memory_id"]})
    assert found == [{"id": 0, "payload": {"memory_id": "m-0"}}, {"id": 2, "payload": {"memory_id": "m-2"}}]
