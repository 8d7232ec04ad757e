# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Qdrant: backed up, lost and restored, on whatever Qdrant there is; judged by the independent comparer.

A small proxy between the engine and the server does what networks and servers do: cut, compress, alter, refuse.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import re
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import agentmem_backup
import httpx
import pytest
from agentmem_backup import clock, create, points, process
from agentmem_backup.components import qdrant as store
from agentmem_backup.components.base import CONTENT, COUNTS, Context, Examination, RestoreOptions, RestorePlan, Source
from agentmem_backup.components.qdrant import QdrantComponent
from agentmem_backup.errors import BackupError, Cancelled, VerificationError
from agentmem_backup.formats import tarball
from agentmem_backup.pipeline import Writer
from agentmem_backup.progress import Collecting
from agentmem_backup.settings import Settings

from tests.support import data
from tests.support.command import BIN
from tests.support.compare import Facts, capture_qdrant, fact_differences
from tests.support.fixtures import _turn
from tests.support.servers import Qdrant, free_port, path_segment

KEY, READER = "full key'$", "reader's key"
ODD = "odd näme %2e. x"
LONG = "ü" * 80  # the server makes a file name of it, with its peer and the time


class Proxy:
    """Between the engine and the server. `before(method, path)` is called first; `alter(method, path, answer)` may change
    (status, headers, content) of an answer, or say `cut` (half of it), `drop` (nothing at all) or `reset` (nothing, and the
    connection is reset). `received` counts the bytes of bodies while they come; `hang_up` ends connections on which one is
    still coming."""

    def __init__(self, server: Qdrant):
        self.before: Callable[[str, str], object] = lambda method, path: None
        self.alter: Callable[[str, str, dict[str, Any]], object] = lambda method, path, answer: None
        self.asked: list[tuple[str, str]] = []
        self.received: dict[str, int] = {}
        self.connections = 0
        self.hang_up = threading.Event()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *__: object) -> None:
                """Nothing to say."""

            def setup(self) -> None:
                proxy.connections += 1
                super().setup()

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except ConnectionError:
                    self.close_connection = True

            def do_any(self) -> None:
                length = int(self.headers.get("content-length", "0"))
                body = self.body(length)
                if len(body) < length:  # as a server does with a request that is cut: nothing
                    self.close_connection = True
                    return
                proxy.asked.append((self.command, self.path))
                proxy.before(self.command, self.path)
                # Answers in JSON come uncompressed, so that they can be altered; downloads as the engine asks for them.
                dropped = ("host",) if is_download(self.command, self.path) else ("host", "accept-encoding")
                headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
                try:
                    plainly = {"accept-encoding": "identity"}
                    with httpx.Client(timeout=300, trust_env=False, verify=server.verify, headers=plainly) as client:
                        request = client.build_request(self.command, server.url + self.path, headers=headers, content=body)
                        got = client.send(request, stream=True)
                        content = b"".join(got.iter_raw())
                except httpx.HTTPError:
                    self.close_connection = True
                    return
                kept = ("content-type", "content-encoding", "date")
                answer: dict[str, Any] = {
                    "status": got.status_code,
                    "headers": {name: got.headers[name] for name in kept if name in got.headers},
                    "content": content,
                }
                self.answer(answer, proxy.alter(self.command, self.path, answer))

            def body(self, length: int) -> bytes:
                body = b""
                while len(body) < length and not proxy.hang_up.is_set():
                    part = self.rfile.read1(length - len(body))
                    if not part:
                        break
                    body += part
                    proxy.received[self.path] = len(body)
                return body

            def answer(self, answer: dict[str, Any], how: object) -> None:
                if how == "reset":  # socket(7): with a linger of 0 s a close resets the connection
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.finish()
                    self.connection.close()
                    raise ConnectionError
                if how == "drop":
                    self.close_connection = True
                    return
                self.send_response_only(answer["status"])
                headers = {"content-length": str(len(answer["content"])), **answer["headers"]}
                for name, value in headers.items():
                    if value:
                        self.send_header(name, value)
                self.end_headers()
                content = answer["content"]
                self.wfile.write(content[: len(content) // 2] if how == "cut" else content)
                self.close_connection = how == "cut" or not headers["content-length"]

            do_GET = do_POST = do_PUT = do_DELETE = do_any

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Case:
    """A component on a server, with a backup directory of its own, and the shortcuts that tests need."""

    def __init__(self, base: Path, server: Qdrant):
        self.server = server
        self.base = base
        self.settings = Settings(backup_dir=str(base))
        self.settings.qdrant.url = server.url
        self.settings.qdrant.api_key = server.api_key or ""
        self.reporter = Collecting()
        self.steps: list[dict[str, Any]] = []
        self.work = base / "work"
        self.work.mkdir()
        self.file = base / "qdrant.tar.gz"

    def journal(self, step: str, **facts: Any) -> None:
        json.dumps(facts)
        self.steps.append({"step": step, **facts})

    @property
    def component(self) -> QdrantComponent:
        return QdrantComponent(Context(self.settings, self.reporter, self.work, self.journal))

    def dump(self, level: str = COUNTS, ready: Callable[[], None] = lambda: None) -> Source:
        self.file.unlink(missing_ok=True)
        cut = self.component.open_cut(ready, level)
        try:
            writer = Writer(self.file, compression="gzip")
            try:
                cut.dump(writer)
            except BaseException:
                writer.abandon()
                raise
            writer.close()
            return Source(self.file, "gzip", json.loads(json.dumps(cut.entry())))
        finally:
            cut.close()

    def restore(self, source: Source, **options: Any) -> store.QdrantRestoration:
        """The whole sequence; the comparison must be good."""
        restoration = self.component.restoration(source, RestoreOptions(**options))
        assert isinstance(restoration, store.QdrantRestoration)
        try:
            restoration.prepare()
            assert restoration.check().differences == []
            restoration.commit()
            restoration.complete()
            comparison = restoration.compare()
            assert comparison.differences == []
            assert comparison.equal
        finally:
            restoration.close()
        return restoration

    def plan(self, source: Source, **options: Any) -> RestorePlan:
        return self.component.plan_restore(source, RestoreOptions(**options))

    def examine(self, source: Source) -> Examination:
        return self.component.examine(source, source.pieces())

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        with self.server.client() as client:
            answer = client.request(method, path, json=body)
            assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
            return answer.json()["result"]

    def facts(self) -> Facts:
        return capture_qdrant(self.server)

    def differs(self, before: Facts) -> list[str]:
        return list(fact_differences(before, self.facts()))

    def snapshots(self) -> list[str]:
        """Every snapshot that the server lists, and every such file that it keeps where we can see them."""
        found = []
        for item in self.ask("GET", "/collections")["collections"]:
            found += [one["name"] for one in self.ask("GET", f"/collections/{path_segment(item['name'])}/snapshots")]
        if self.server.kind != "url":
            found += [path.name for path in self.server.snapshots.rglob("*.snapshot") if path.name not in found]
            found += [path.name for path in (self.server.storage / "snapshots").rglob("*.snapshot") if path.name not in found]
        return sorted(found)

    def delete(self, collection: str) -> None:
        self.ask("DELETE", f"/collections/{path_segment(collection)}")

    def damage(self) -> None:
        """What makes somebody restore: points gone and changed, an index gone, the alias elsewhere, one too many."""
        self.ask("POST", "/collections/memories/points/delete?wait=true", {"points": [data.point_id(n) for n in range(1, 90)]})
        payload = {"payload": {"user_id": "wrong"}, "points": [data.point_id(100)]}
        self.ask("POST", "/collections/memories/points/payload?wait=true", payload)
        self.ask("DELETE", "/collections/memories/index/user_id?wait=true")
        actions = [
            {"delete_alias": {"alias_name": "current"}},
            {"create_alias": {"alias_name": "current", "collection_name": "agents"}},
            {"create_alias": {"alias_name": "stray", "collection_name": "memories"}},
        ]
        self.ask("POST", "/collections/aliases", {"actions": actions})


def small(size: int = 4) -> dict[str, Any]:
    return {
        "vectors": {"size": size, "distance": "Cosine"},
        "wal_config": {"wal_capacity_mb": 1},
        "optimizers_config": {"default_segment_number": 1},
    }


def some_points(count: int, size: int = 4, start: int = 0) -> dict[str, Any]:
    numbers = range(start, start + count)
    return {"points": [{"id": n, "vector": [1.0 + n, *[0.5] * (size - 1)], "payload": {"n": n}} for n in numbers]}


@pytest.fixture(scope="module")
def own_server() -> Iterator[Qdrant]:
    """A server for this file's tests, with a key for readers too."""
    with Qdrant(api_key=KEY, read_only_api_key=READER) as server:
        yield server


@pytest.fixture
def case(own_server: Qdrant, tmp_path: Path) -> Iterator[Case]:
    """A server without collections and snapshots."""
    with _turn(own_server):
        own_server.start()
        case = Case(tmp_path, own_server)
        for item in case.ask("GET", "/collections")["collections"]:
            for one in case.ask("GET", f"/collections/{path_segment(item['name'])}/snapshots"):
                case.ask("DELETE", f"/collections/{path_segment(item['name'])}/snapshots/{path_segment(one['name'])}")
            case.delete(item["name"])
        for folder in (own_server.snapshots, own_server.storage / "snapshots"):
            for left in folder.rglob("*.snapshot*") if own_server.kind != "url" else ():
                left.unlink()
        process.resume()
        yield case


@pytest.fixture
def filled(case: Case) -> Case:
    """The seeded collections `memories` and `agents`, and the alias `current`."""
    data.fill_qdrant(case.server)
    return case


@pytest.fixture
def proxy(case: Case) -> Iterator[Proxy]:
    """A proxy that the component goes through."""
    made = Proxy(case.server)
    case.settings.qdrant.url = made.url
    yield made
    made.close()


def is_download(method: str, path: str) -> bool:
    return method == "GET" and path.endswith(".snapshot")


def is_upload(method: str, path: str) -> bool:
    return method == "POST" and "/snapshots/upload?" in path


def is_making(method: str, path: str) -> bool:
    return method == "POST" and path.endswith("/snapshots")


# -- whole and equal --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [COUNTS, CONTENT])
def test_lost_and_restored_is_equal(filled: Case, level: str) -> None:
    before = filled.facts()
    source = filled.dump(level)
    assert filled.examine(source).faults == []
    assert filled.examine(source).line == "Qdrant backup tar integrity OK (3 files)"
    assert filled.snapshots() == []
    filled.delete("memories")
    filled.delete("agents")
    assert filled.differs(before)
    filled.restore(source)
    assert filled.differs(before) == []
    assert filled.snapshots() == []
    assert list(filled.work.iterdir()) == []


def test_over_damaged_live_data_is_equal_and_the_old_data_is_kept(filled: Case) -> None:
    before = filled.facts()
    source = filled.dump(CONTENT)
    filled.damage()
    damaged = filled.facts()
    restoration = filled.restore(source)
    assert filled.differs(before) == []
    assert filled.snapshots() == []
    kept = restoration.previous / "memories.snapshot"
    assert str(restoration.previous) in restoration.state()
    assert kept.stat().st_mode & 0o777 == 0o600
    assert restoration.previous.stat().st_mode & 0o777 == 0o700
    with kept.open("rb") as file, filled.server.client() as client:
        path = "/collections/memories/snapshots/upload?wait=true&priority=snapshot"
        assert client.post(path, files={"snapshot": ("old.snapshot", file)}).is_success
    points_of = {name: fact for name, fact in damaged.items() if name.endswith("of collection 'memories'") and "point" in name}
    now = filled.facts()
    assert {name: now.get(name) for name in points_of} == points_of


def test_the_plan_says_what_will_happen_and_touches_nothing(filled: Case) -> None:
    source = filled.dump()
    filled.damage()
    filled.delete("agents")
    filled.ask("PUT", "/collections/other", small())
    before = filled.facts()
    plan = filled.plan(source)
    assert plan.problems == []
    said = "\n".join(plan.lines)
    assert "collection memories (111 points now) will be overwritten with 200 points" in said
    assert "collection agents will be created with 40 points" in said
    assert "collection other is not restored and stays as it is" in said
    assert "alias current will point to memories" in said
    assert "alias stray is not in the backup and will be removed" in said
    assert filled.differs(before) == []
    assert filled.snapshots() == []


def test_an_empty_qdrant_is_a_backup_too(case: Case) -> None:
    source = case.dump(CONTENT)
    assert case.examine(source).line == "Qdrant backup tar integrity OK (1 files)"
    case.ask("PUT", "/collections/later", small())
    case.restore(source)
    assert [item["name"] for item in case.ask("GET", "/collections")["collections"]] == ["later"]


def test_names_that_are_no_file_names(case: Case) -> None:
    for number, name in enumerate((ODD, ".hidden", LONG)):
        case.ask("PUT", f"/collections/{path_segment(name)}", small())
        case.ask("PUT", f"/collections/{path_segment(name)}/points?wait=true", some_points(3 + number))
    before = case.facts()
    source = case.dump(CONTENT)
    with tarfile.open(case.file) as tar:
        assert all(name.isascii() and len(name) < 200 and name[0] != "." and "/" not in name for name in tar.getnames())
    for name in (ODD, ".hidden", LONG):
        case.delete(name)
    case.restore(source)
    assert case.differs(before) == []


def test_any_tar_reads_the_file_and_any_qdrant_its_members(filled: Case) -> None:
    before = filled.facts()
    filled.dump()
    filled.delete("agents")
    with tarfile.open(filled.file) as tar:
        assert tar.getnames() == ["agents.snapshot", "memories.snapshot", "collections.json"]
        content = tar.extractfile("agents.snapshot")
        assert content is not None
        with filled.server.client() as client:
            path = "/collections/agents/snapshots/upload?priority=snapshot"
            assert client.post(path, files={"snapshot": ("agents.snapshot", content)}).is_success
    assert filled.differs(before) == []


def test_only_some_collections_and_patterns(filled: Case) -> None:
    filled.settings.qdrant.exclude_collections = ["mem*"]
    assert filled.component.probe().problems == []
    source = filled.dump()
    assert source.entry is not None
    assert source.entry["filters"] == {"include": [], "exclude": ["mem*"], "left_out": ["memories"]}
    assert [one["name"] for one in source.entry["inventory"]["collections"]] == ["agents"]
    assert source.entry["inventory"]["aliases"] == {}
    filled.settings.qdrant.include_collections = ["nothing-*"]
    filled.settings.qdrant.exclude_collections = []
    assert "no collection matches 'nothing-*'" in filled.component.probe().problems[0]


def test_restoring_one_collection_leaves_the_others(filled: Case) -> None:
    source = filled.dump()
    filled.damage()
    filled.ask("POST", "/collections/agents/points/delete?wait=true", {"points": [1, 2, 3]})
    filled.restore(source, only_collections=["current"])  # the alias that the backup knows for memories
    assert filled.ask("POST", "/collections/memories/points/count", {"exact": True})["count"] == 200
    assert filled.ask("POST", "/collections/agents/points/count", {"exact": True})["count"] == 37
    assert "there is no collection absent in the backup" in filled.plan(source, only_collections=["absent"]).problems[0]


def test_restoring_beside_with_a_prefix_leaves_the_live_data(filled: Case) -> None:
    source = filled.dump(CONTENT)
    filled.damage()
    live = filled.facts()
    assert "takes no name with '/' in it" in filled.plan(source, collection_prefix="a/").problems[0]
    filled.restore(source, collection_prefix="copy_")
    now = filled.facts()
    assert {name: fact for name, fact in now.items() if "copy_" not in name} == live
    copies = {name.replace("copy_", ""): fact for name, fact in now.items() if "copy_" in name and "alias" not in name}
    filled.delete("copy_memories")
    filled.delete("copy_agents")
    filled.restore(source)
    assert {name: fact for name, fact in filled.facts().items() if "alias" not in name} == copies
    assert now["alias 'copy_current'"] == {"collection": "copy_memories"}
    assert filled.snapshots() == []


# -- what the fingerprint sees ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["answers", "snapshot"])
def test_one_changed_payload_or_vector_makes_the_content_differ(filled: Case, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "snapshot":
        monkeypatch.setattr(store, "_SCROLLED_NUMBERS", 0)
    source = filled.dump(CONTENT)
    one = filled.ask("POST", "/collections/agents/points", {"ids": [2], "with_vector": True, "with_payload": True})[0]

    def said() -> list[str]:
        restoration = filled.component.restoration(source, RestoreOptions())
        try:
            return restoration.compare().differences
        finally:
            restoration.close()

    assert said() == []
    changes = [
        {**one, "payload": {"agent": "agent 3"}},
        {**one, "vector": {**one["vector"], "text": [*one["vector"]["text"][:-1], one["vector"]["text"][-1] + 1e-6]}},
        {**one, "vector": {**one["vector"], "words": {**one["vector"]["words"], "indices": [1, 2, 3, 4, 5]}}},
        {**one, "vector": {"text": one["vector"]["text"], "words": one["vector"]["words"]}},
    ]
    for change in changes:
        filled.ask("PUT", "/collections/agents/points?wait=true", {"points": [change]})
        assert said() == ["collection agents: the content of its points differs from the backup"]
        filled.ask("PUT", "/collections/agents/points?wait=true", {"points": [one]})
        assert said() == []
    assert filled.snapshots() == []
    assert list(filled.work.iterdir()) == []


def test_counts_alias_and_index_are_compared(filled: Case) -> None:
    source = filled.dump()
    filled.damage()
    restoration = filled.component.restoration(source, RestoreOptions())
    found = restoration.compare()
    restoration.close()
    said = "\n".join(found.differences)
    assert "collection memories has 111 points where the backup has 200" in said
    assert (
        "collection memories has the payload indexes importance (float) where the backup has importance (float), user_id" in said
    )
    assert "alias current points to agents where the backup says memories" in said
    assert "alias stray points to memories where the backup says None" in said
    filled.delete("agents")
    restoration = filled.component.restoration(source, RestoreOptions())
    assert any("agents does not answer" in text for text in restoration.compare().differences)
    restoration.close()


def test_without_qdrant_edge_the_content_is_not_compared_and_says_why(filled: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(points, "unavailable", lambda: "the library is not there")
    filled.settings.fingerprint = CONTENT
    assert "the library is not there" in filled.component.probe().warnings[0]
    source = filled.dump(CONTENT)
    restoration = filled.component.restoration(source, RestoreOptions())
    found = restoration.compare()
    restoration.close()
    assert found.differences == []
    assert found.not_compared == [
        f"the content of collection {name}: the library is not there" for name in ("agents", "memories")
    ]


def test_the_snapshots_of_several_shards_and_nodes_are_read_whole(tmp_path: Path) -> None:
    """field-notes: every shard folder: with two shards `0/` held 527 of 1,000 points."""
    folder = Path(__file__).parents[1] / "support" / "qdrant_contract"
    shards: dict[str, dict[str, Any]] = {}
    for node in ("spread-node1", "spread-node2"):
        points.unpack([(folder / f"{node}.snapshot").read_bytes()], tmp_path / node, node)
        reading = points.Reading(tmp_path / node, lines=tmp_path / "points.jsonl", skip=list(shards))
        try:
            shards.update(reading.result())
        finally:
            reading.close()
    assert sorted(shards) == ["0", "1", "2", "3"]
    assert sum(one["points"] for one in shards.values()) == 200
    lines = [json.loads(line) for line in (tmp_path / "points.jsonl").read_text().splitlines()]
    assert sorted(line["id"] for line in lines) == list(range(200))
    total, again = points.Digest(), points.Digest()
    for one in shards.values():
        total.join(one["points"], one["digest"])
    for line in reversed(lines):
        again.add(line["id"], line["payload"], line["vector"])
    assert (total.points, total.hex()) == (again.points, again.hex())


def test_two_processes_read_a_large_snapshot_and_each_point_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = Path(__file__).parents[1] / "support" / "qdrant_contract" / "spread-node1.snapshot"

    def read(folder: Path) -> tuple[int, dict[str, dict[str, Any]]]:
        points.unpack([snapshot.read_bytes()], folder, "it")
        reading = points.Reading(folder)
        try:
            return len(reading._children), reading.result()
        finally:
            reading.close()
            assert not folder.exists()

    alone, found = read(tmp_path / "alone")
    assert alone == 1 and sum(shard["points"] for shard in found.values()) > 50
    monkeypatch.setattr(points, "_MUCH", 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert read(tmp_path / "together") == (2, found)


@pytest.mark.parametrize("links", [True, False])
def test_of_a_shard_only_large_files_are_shared_and_where_links_cannot_be_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def refuse(source: str, target: str) -> None:
        raise OSError("no links here")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(points, "_LARGE", 100)
    for size, shared in ((99, False), (100, links)):
        source, target = tmp_path / f"{size}", tmp_path / f"{size}.other"
        source.write_bytes(b"x" * size)
        points._link_or_copy(str(source), str(target))
        assert target.read_bytes() == b"x" * size
        assert (source.stat().st_ino == target.stat().st_ino) is shared


def test_a_collection_of_several_shards(case: Case) -> None:
    case.ask("PUT", "/collections/spread", {**small(), "shard_number": 3})
    case.ask("PUT", "/collections/spread/points?wait=true", some_points(300))
    before = case.facts()
    source = case.dump(CONTENT)
    assert source.entry is not None
    assert source.entry["fingerprint"]["collections"]["spread"]["points"] == 300
    case.delete("spread")
    case.restore(source)
    assert case.differs(before) == []


def test_the_child_process_works_from_a_zip_and_under_another_name(tmp_path: Path, filled: Case) -> None:
    """Ansible ships the engine in a zip, under ansible_collections…"""
    engine, package = Path(agentmem_backup.__file__).parent, "ansible_collections/agentmem/backup/plugins/module_utils/_engine"
    with zipfile.ZipFile(tmp_path / "payload.zip", "w") as archive:
        parts = package.split("/")
        for depth in range(1, len(parts)):
            archive.writestr("/".join([*parts[:depth], "__init__.py"]), "")
        for path in engine.rglob("*.py"):
            archive.write(path, f"{package}/{path.relative_to(engine)}")
    snapshot = Path(__file__).parents[1] / "support" / "qdrant_contract" / "memories.snapshot"
    program = (
        "import sys, json; from pathlib import Path; sys.path.insert(0, sys.argv[1]); "
        f"from {package.replace('/', '.')} import points; "
        "points.unpack([Path(sys.argv[2]).read_bytes()], Path(sys.argv[3]), 'it'); "
        "reading = points.Reading(Path(sys.argv[3])); sys.stdout.write(json.dumps(reading.result())); reading.close()"
    )
    argv = [sys.executable, "-c", program, tmp_path / "payload.zip", snapshot, tmp_path / "folder"]
    done = subprocess.run(argv, check=True, capture_output=True, cwd=tmp_path)
    assert json.loads(done.stdout)["0"]["points"] == 40
    assert not (tmp_path / "folder").exists()


def test_a_snapshot_that_qdrant_edge_cannot_open_is_not_compared(filled: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = points.unpack

    def damaged(pieces: Any, folder: Path, what: str) -> None:
        whole(pieces, folder, what)
        for path in folder.rglob("segment.json"):
            path.write_bytes(b"noise" * 1000)

    monkeypatch.setattr(points, "unpack", damaged)
    source = filled.dump(CONTENT)
    assert source.entry is not None
    assert "cannot open" in source.entry["fingerprint"]["collections"]["agents"]["not_digested"]
    assert "digest" not in source.entry["fingerprint"]["collections"]["agents"]


# -- while the data changes -------------------------------------------------------------------------------------------


def test_field_note_the_cut_lies_between_the_counts_while_points_are_written(filled: Case) -> None:
    writing, stop = threading.Event(), threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            filled.ask(
                "PUT",
                "/collections/agents/points?wait=true",
                {"points": [{"id": 1000 + number, "vector": {"text": [0.1] * 8}, "payload": {"n": number}}]},
            )
            number += 1
            writing.set()

    thread = threading.Thread(target=write)
    thread.start()
    try:
        writing.wait(30)
        source = filled.dump(CONTENT)
    finally:
        stop.set()
        thread.join()
    assert source.entry is not None
    told = source.entry["fingerprint"]["collections"]["agents"]
    assert told["count_before"] <= told["points"] <= told["count_after"]
    assert told["count_after"] <= filled.ask("POST", "/collections/agents/points/count", {"exact": True})["count"]
    filled.restore(source)
    assert filled.ask("POST", "/collections/agents/points/count", {"exact": True})["count"] == told["points"]


@pytest.mark.parametrize("how", ["drop", "reset"])
def test_a_question_that_meets_a_closing_connection_is_asked_again(filled: Case, proxy: Proxy, how: str) -> None:
    """Seen: Qdrant closed an idle connection just when it was asked for its snapshots, and the backup failed."""
    filled.settings.qdrant.url = proxy.url
    dropped: set[str] = set()

    def drop(method: str, path: str, answer: dict[str, Any]) -> object:
        asks = method == "GET" or path.endswith(("/points/count", "/points/scroll"))
        if not asks or is_download(method, path) or path in dropped:
            return None
        dropped.add(path)
        return how

    proxy.alter = drop
    source = filled.dump(CONTENT)
    assert {"/", "/healthz", "/collections", "/aliases", "/collections/memories/snapshots"} <= dropped
    assert filled.examine(source).faults == []
    filled.restore(source)
    assert {f"/collections/memories/points/{asked}" for asked in ("count", "scroll")} <= dropped


def test_a_collection_that_may_not_be_asked_more_often_is_waited_for(filled: Case) -> None:
    """Strict mode, which the stand-in does not have: here one question a second, once those of a minute are used up."""
    if filled.server.kind == "stand-in":
        pytest.skip("needs a real Qdrant")
    with filled.server.client() as client:
        limited = {"vectors": {"size": 2, "distance": "Dot"}, "strict_mode_config": {"enabled": True, "read_rate_limit": 60}}
        client.put("/collections/limited", json=limited).raise_for_status()
        points = {"points": [{"id": 1, "vector": [1, 2]}, {"id": 2, "vector": [3, 4]}]}
        client.put("/collections/limited/points?wait=true", json=points).raise_for_status()

        def use_up() -> None:
            while client.post("/collections/limited/points/count", json={"exact": True}).status_code != 429:
                pass

        use_up()
        source = filled.dump(CONTENT)
        assert filled.examine(source).faults == []
        use_up()
        filled.restore(source)


def test_an_action_that_gets_no_answer_is_not_done_again(filled: Case, proxy: Proxy) -> None:
    filled.settings.qdrant.url = proxy.url
    proxy.alter = lambda method, path, answer: "drop" if method == "POST" and path.endswith("/snapshots") else None
    with pytest.raises(BackupError, match="broke while making a snapshot of "):
        filled.dump()
    made = [path for method, path in proxy.asked if method == "POST" and path.endswith("/snapshots")]
    assert len(made) == len(set(made)) > 0
    assert filled.snapshots() == []


def test_an_idle_connection_is_given_up_before_the_server_does(
    filled: Case, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.settings.qdrant.url = proxy.url
    node = store.Node(proxy.url, filled.settings.qdrant)
    try:
        assert node.collections() == node.collections() != []
        assert proxy.connections == 1
        moment = time.monotonic
        monkeypatch.setattr(time, "monotonic", lambda: moment() + 3)
        assert node.collections() != []
        assert proxy.connections == 2
    finally:
        node.close()


@pytest.mark.parametrize("at", ["looked at", "made", "downloaded"])
def test_a_backup_goes_on_without_a_collection_that_is_deleted(filled: Case, proxy: Proxy, at: str) -> None:
    """One that an application keeps for as long as a session: it cost the whole backup."""
    deleted: list[str] = []

    def delete(method: str, path: str) -> None:
        now = {
            "looked at": method == "GET" and path.endswith("/collections/agents"),
            "made": method == "POST" and path.endswith("/agents/snapshots"),
            "downloaded": is_download(method, path) and "/agents/" in path,
        }
        if now[at] and not deleted:
            deleted.append(at)
            filled.delete("agents")

    proxy.before = delete
    filled.settings.qdrant.url = proxy.url
    source = filled.dump()
    assert deleted == [at]
    assert filled.examine(source).faults == []
    assert source.entry is not None
    assert [one["name"] for one in source.entry["inventory"]["collections"]] == ["memories"]
    assert [*source.entry["fingerprint"]["collections"]] == ["memories"]
    told = "collection agents was deleted before it could be dumped and is not in the backup"
    remains = " (a snapshot of it may remain in the server's snapshots folder)" if at == "downloaded" else ""
    assert source.entry["warnings"] == ([] if at == "looked at" else [told + remains])
    proxy.before = lambda method, path: None
    before = filled.facts()
    filled.delete("memories")
    filled.restore(source)
    assert filled.differs(before) == []
    assert [name for name in filled.snapshots() if name.startswith("memories")] == []


def test_a_collection_created_while_dumping_is_told(filled: Case) -> None:
    source = filled.dump(ready=lambda: filled.ask("PUT", "/collections/late", small()))
    assert source.entry is not None
    assert source.entry["warnings"] == ["collection late was created during the dump and is not in it"]


@pytest.mark.parametrize("when", ["before the cut", "before the snapshot", "after the snapshot"])
def test_payload_indexes_that_change_while_dumping_are_restored_as_they_are_in_it(filled: Case, proxy: Proxy, when: str) -> None:
    """An index of a restored collection that the description of it did not know made a whole restore end as "differs"."""
    indexes = filled.ask("GET", "/collections/memories")["payload_schema"]
    left: list[str] = [when]

    def change() -> None:
        left.clear()
        filled.ask("PUT", "/collections/memories/index?wait=true", {"field_name": "late", "field_schema": "keyword"})
        filled.ask("DELETE", "/collections/memories/index/importance?wait=true")

    def ready() -> None:
        if left == ["before the cut"]:
            change()

    def before(method: str, path: str) -> None:
        if left == ["before the snapshot"] and is_making(method, path) and "/memories/" in path:
            change()

    def after(method: str, path: str, __: dict[str, Any]) -> None:
        if left == ["after the snapshot"] and is_making(method, path) and "/memories/" in path:
            change()

    proxy.before, proxy.alter = before, after
    filled.settings.qdrant.url = proxy.url
    source = filled.dump(CONTENT, ready=ready)
    assert left == []
    filled.delete("memories")
    filled.restore(source)
    restored = filled.ask("GET", "/collections/memories")["payload_schema"]
    changed = {*indexes} - {"importance"} | {"late"}
    assert {*restored} == ({*indexes} if when == "after the snapshot" else changed)


@pytest.mark.parametrize("came", [5, 40])
def test_a_difference_that_may_be_points_that_came_and_went_while_dumping_says_so(filled: Case, proxy: Proxy, came: int) -> None:
    """Counted before and after, and inside were more than at either time: the storm of a busy night, and perhaps no damage."""
    ids = [100_000 + number for number in range(came)]
    left = filled.ask("POST", "/collections/memories/points/scroll", {"limit": 1})["points"][0]["id"]

    def come(method: str, path: str) -> None:
        if is_making(method, path) and "/memories/" in path:
            point = filled.ask(
                "POST", "/collections/memories/points", {"ids": [left], "with_vector": True, "with_payload": True}
            )[0]
            points = [{"id": one, "vector": point["vector"], "payload": point["payload"]} for one in ids]
            filled.ask("PUT", "/collections/memories/points?wait=true", {"points": points})

    def go(method: str, path: str, __: dict[str, Any]) -> None:
        if is_making(method, path) and "/memories/" in path:
            filled.ask("POST", "/collections/memories/points/delete?wait=true", {"points": [*ids, left]})

    proxy.before, proxy.alter = come, go
    filled.settings.qdrant.url = proxy.url
    source = filled.dump()
    proxy.before, proxy.alter = lambda method, path: None, lambda method, path, answer: None
    restoration = filled.component.restoration(source, RestoreOptions())
    try:
        restoration.prepare()
        restoration.commit()
        restoration.complete()
        comparison = restoration.compare()
    finally:
        restoration.close()
    assert filled.ask("POST", "/collections/memories/points/count", {"exact": True})["count"] == 200 + came
    [sentence] = comparison.differences
    assert f"has {200 + came} points where the backup has between 199 and 200 (or some beside them" in sentence


def test_a_collection_made_anew_with_other_vectors_while_dumping_fails_in_words(filled: Case, proxy: Proxy) -> None:
    def exchange(method: str, path: str) -> None:
        if is_making(method, path) and "/agents/" in path:
            proxy.before = lambda method, path: None
            filled.delete("agents")
            filled.ask("PUT", "/collections/agents", small())

    proxy.before = exchange
    filled.settings.qdrant.url = proxy.url
    with pytest.raises(BackupError, match="collection agents was made anew while it was being dumped, with the vectors"):
        filled.dump()
    assert filled.snapshots() == []


def wait_for_a_new_second() -> None:
    """What follows has the most time to happen within one."""
    while time.time() % 1 > 0.05:
        time.sleep(0.01)


def test_field_note_two_snapshots_within_one_second_have_one_name(filled: Case, proxy: Proxy) -> None:
    """Somebody else's snapshot, made just before ours, is neither used nor deleted nor overwritten: its second is let pass."""
    others: list[dict[str, Any]] = []

    def other_first(method: str, path: str) -> None:
        if method == "GET" and path == "/collections/agents/snapshots" and not others:
            wait_for_a_new_second()
            others.append(filled.ask("POST", "/collections/agents/snapshots"))

    proxy.before = other_first
    source = filled.dump()
    assert filled.examine(source).faults == []
    assert filled.ask("GET", "/collections/agents/snapshots") == others  # size, checksum and time, too
    made = [step["name"] for step in filled.steps if step["step"] == "qdrant_snapshot_made"]
    assert others[0]["name"] not in made and len(made) == 2


def test_field_note_a_snapshot_overwritten_within_its_second_is_made_again(filled: Case, proxy: Proxy) -> None:
    names: list[tuple[str, str]] = []

    def overwrite(method: str, path: str, answer: dict[str, Any]) -> None:
        if is_making(method, path) and "/agents/" in path and not names:
            filled.ask("POST", "/collections/agents/points/delete?wait=true", {"points": [1]})
            again = filled.ask("POST", "/collections/agents/snapshots")["name"]
            names.append((json.loads(answer["content"])["result"]["name"], again))

    proxy.before = lambda method, path: wait_for_a_new_second() if is_making(method, path) and "/agents/" in path else None
    proxy.alter = overwrite
    for __ in range(20):  # until the other's came within the second of ours
        filled.ask("PUT", "/collections/agents/points?wait=true", {"points": [{"id": 1, "vector": {"text": [0.5] * 8}}]})
        filled.steps.clear()
        source = filled.dump(CONTENT)
        assert filled.examine(source).faults == []
        ours, other = names.pop()
        made = [
            step["name"] for step in filled.steps if step["step"] == "qdrant_snapshot_made" and step["collection"] == "agents"
        ]
        assert source.entry is not None
        if ours == other:
            assert len(made) == 2
            assert source.entry["fingerprint"]["collections"]["agents"]["points"] == 39
            return
        assert made == [ours]
        filled.ask("DELETE", f"/collections/agents/snapshots/{path_segment(other)}")
    pytest.fail("two snapshots never came within one second")


def test_a_snapshot_that_another_run_replaces_or_deletes_before_it_is_fetched_is_made_again(filled: Case, proxy: Proxy) -> None:
    """Hosts that share a server: each deletes what bears its snapshot's name, and the next one finds nothing there."""
    done: list[str] = []

    def other(method: str, path: str) -> None:
        if is_download(method, path) and not done:
            done.append(path)
            filled.ask("POST", "/collections/agents/points/delete?wait=true", {"points": [1]})
            filled.ask("DELETE", path)

    filled.ask("PUT", "/collections/agents/points?wait=true", {"points": [{"id": 1, "vector": {"text": [0.5] * 8}}]})
    proxy.before = other
    source = filled.dump(CONTENT)
    assert filled.examine(source).faults == [] and done
    assert source.entry is not None
    told = source.entry["fingerprint"]["collections"]["agents"]
    assert told["points"] == told["count_before"] == told["count_after"] == 39  # of the second snapshot
    assert filled.snapshots() == []


def test_what_another_run_has_put_in_the_place_of_ours_is_not_deleted(filled: Case) -> None:
    (node,) = filled.component.connect()
    for __ in range(20):  # until both came within one second
        wait_for_a_new_second()
        ours = filled.component.snapshot(node, "agents")
        filled.ask("POST", "/collections/agents/points/delete?wait=true", {"points": [1]})
        theirs = filled.ask("POST", "/collections/agents/snapshots")
        if ours["name"] == theirs["name"]:
            break
        filled.ask("DELETE", f"/collections/agents/snapshots/{path_segment(theirs['name'])}")
        filled.component.drop(node, "agents", ours)
    else:
        pytest.fail("two snapshots never came within one second")
    with pytest.raises(store.Taken, match=r"bytes on .* which said|was replaced by another run's of the same second"):
        filled.component.opened(node, "agents", ours)
    filled.component.drop(node, "agents", ours)
    step = {"step": "qdrant_snapshot_made", "url": node.url, "collection": "agents", **ours}
    filled.component.clean_up(step)  # a run that was killed is no reason to delete it, either
    assert filled.ask("GET", "/collections/agents/snapshots") == [theirs]
    filled.component.clean_up({**step, **theirs})
    assert filled.snapshots() == []


def test_hosts_that_back_up_one_server_at_the_same_moment_all_succeed(filled: Case, tmp_path: Path) -> None:
    """Three runs with backup directories of their own, begun together: their snapshots would have the same names."""
    env = {**os.environ, "QDRANT_URL": filled.server.url, "QDRANT_API_KEY": filled.server.api_key or ""}
    for __ in range(2):
        running = []
        for name in ("one", "two", "three"):
            own = {"BACKUP_DIR": str(tmp_path / name), "LOG_DIR": str(tmp_path / name)}
            words = [str(BIN / "agentmem-backup"), "create", "--component", "qdrant", "--config", os.devnull]
            running.append(
                subprocess.Popen(words, env={**env, **own}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            )
        said = [one.communicate(timeout=200)[0] for one in running]
        assert [one.returncode for one in running] == [0, 0, 0], "\n".join(said)
    assert filled.snapshots() == []
    assert len(list(tmp_path.glob("*/manifest_*.json"))) == 6
    assert list(tmp_path.glob("*/.state/qdrant-owed.json")) == []


# -- a network and a server that fail ---------------------------------------------------------------------------------


def flip(answer: dict[str, Any]) -> None:
    content = bytearray(answer["content"])
    content[len(content) // 2] ^= 1
    answer["content"] = bytes(content)


def compress(answer: dict[str, Any]) -> None:
    answer["content"] = gzip.compress(answer["content"])
    answer["headers"].update({"content-encoding": "gzip", "content-length": ""})


def fail(answer: dict[str, Any]) -> None:
    answer.update(status=500, headers={}, content=b'{"status":{"error":"Service internal error: No space left on device"}}')


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        pytest.param(lambda answer: "cut", "broke|ended after", id="short"),
        pytest.param(lambda answer: "drop", "broke", id="dropped"),
        pytest.param(compress, "compressed or without its length", id="compressed"),
        pytest.param(lambda answer: answer["headers"].update({"content-length": ""}), "without its length", id="no length"),
        pytest.param(lambda answer: answer.update(content=answer["content"] + b"x"), "which said", id="longer"),
        pytest.param(fail, "HTTP 500.*No space left", id="500"),
    ],
)
@pytest.mark.parametrize("level", [COUNTS, CONTENT])
def test_field_note_a_faulty_download_fails_and_leaves_nothing(
    filled: Case, proxy: Proxy, fault: Callable[[dict[str, Any]], object], said: str, level: str
) -> None:
    before = filled.facts()
    proxy.alter = lambda method, path, answer: fault(answer) if is_download(method, path) else None
    with pytest.raises(BackupError, match=said):
        filled.dump(level)
    assert not filled.file.exists()
    assert filled.snapshots() == []
    assert filled.differs(before) == []
    assert list(filled.work.iterdir()) == []


@pytest.mark.parametrize("level", [COUNTS, CONTENT])
def test_field_note_a_download_that_was_altered_is_found_when_it_is_read_back(filled: Case, proxy: Proxy, level: str) -> None:
    """It has the length that was promised; what lies on the disk is held against the checksum that the server told."""
    before, backups = filled.facts(), filled.base / "sets"
    backups.mkdir(mode=0o700)
    filled.settings.backup_dir, filled.settings.components, filled.settings.fingerprint = str(backups), ["qdrant"], level
    proxy.alter = lambda method, path, answer: flip(answer) if is_download(method, path) and "/memories/" in path else None
    with pytest.raises(VerificationError, match=r"'memories\.snapshot' is not what the server made.*changed on its way"):
        create.create(filled.settings, filled.reporter)
    assert [path for path in backups.iterdir() if not path.name.startswith(".")] == []
    assert list((backups / ".staging").iterdir()) == []
    assert filled.snapshots() == []
    assert filled.differs(before) == []


def test_the_digest_of_a_file_is_that_of_what_was_read_back(filled: Case) -> None:
    """It is not taken on the way to the disk: what a set records must be what lies there."""
    backups = filled.base / "sets"
    backups.mkdir(mode=0o700)
    filled.settings.backup_dir, filled.settings.components = str(backups), ["qdrant"]
    made = create.create(filled.settings, filled.reporter)
    entry = made.manifest.components["qdrant"]
    assert entry["sha256"] == hashlib.sha256((backups / entry["file"]).read_bytes()).hexdigest()
    for record in entry["inventory"]["collections"]:
        (one,) = record["snapshots"]
        with tarfile.open(backups / entry["file"]) as tar:
            content = tar.extractfile(one["file"])
            assert content is not None
            assert hashlib.sha256(content.read()).hexdigest() == one["sha256"]


def test_field_note_downloads_ask_for_identity(filled: Case) -> None:
    """A client that accepts compression gets the download compressed, without Content-Length: so the real server does."""
    filled.ask("POST", "/collections/agents/snapshots")
    name = filled.snapshots()[0]
    with filled.server.client() as client:
        assert "content-length" not in client.get(f"/collections/agents/snapshots/{name}").headers
    filled.ask("DELETE", f"/collections/agents/snapshots/{name}")
    assert filled.examine(filled.dump()).faults == []


def test_field_note_a_snapshot_that_cannot_be_made_fails_and_leaves_nothing(filled: Case, proxy: Proxy) -> None:
    proxy.alter = lambda method, path, answer: fail(answer) if is_making(method, path) and "/agents/" in path else None
    with pytest.raises(BackupError, match=r"making a snapshot of agents: HTTP 500.*No space left"):
        filled.dump()
    assert filled.snapshots() == []


def test_field_note_a_server_without_checksums_is_said(filled: Case, proxy: Proxy) -> None:
    """Snapshots on S3 have no checksum."""

    def without(method: str, path: str, answer: dict[str, Any]) -> None:
        if path.endswith("/snapshots"):
            whole = json.loads(
                gzip.decompress(answer["content"]) if answer["headers"].pop("content-encoding", "") else answer["content"]
            )
            for one in whole["result"] if isinstance(whole["result"], list) else [whole["result"]]:
                one["checksum"] = None
            answer["content"] = json.dumps(whole).encode()

    proxy.alter = without
    source = filled.dump()
    assert source.entry is not None
    assert any("gave no checksum for the snapshot of agents (S3)" in text for text in source.entry["warnings"])
    assert filled.examine(source).faults == []


def test_the_server_goes_away_while_dumping(filled: Case, proxy: Proxy) -> None:
    if filled.server.kind == "url":
        pytest.skip("a server that is not ours is not stopped")
    proxy.before = lambda method, path: filled.server.kill() if is_download(method, path) else None
    with pytest.raises(BackupError, match=r"broke|cannot be reached"):
        filled.dump()
    filled.server.start()
    for step in reversed(filled.steps):
        filled.component.clean_up(step)
    assert filled.snapshots() == []


# -- before a run -----------------------------------------------------------------------------------------------------


def test_probe_is_content_and_leaves_nothing(filled: Case) -> None:
    before = filled.facts()
    probe = filled.component.probe()
    assert probe.problems == []
    assert probe.facts["collections"] == 2
    assert probe.raw_bytes is not None
    filled.dump()
    written = sum(one["size"] for record in filled.dump().entry["inventory"]["collections"] for one in record["snapshots"])  # type: ignore[index]
    assert written / 4 < probe.raw_bytes < written * 4
    assert filled.differs(before) == []
    assert filled.snapshots() == []


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("", "asks for an API key.*set QDRANT_API_KEY"),
        ("wrong", "refuses the API key.*set QDRANT_API_KEY"),
        ("pässword with 'quotes' \" $HOME", "refuses the API key|HTTP 4"),
        (READER, "no right for making snapshots.*full access, not the read-only one"),
        ("two\nlines", "holds a line break"),
    ],
)
def test_field_note_keys_that_do_not_do(filled: Case, key: str, said: str) -> None:
    if filled.server.kind == "url" and not filled.server.read_only_api_key:
        pytest.skip("that server has no keys")
    filled.settings.qdrant.api_key = key
    probe = filled.component.probe()
    assert len(probe.problems) == 1
    assert re.search(said, probe.problems[0])
    if key:
        assert key not in probe.problems[0]
    with pytest.raises(BackupError):
        filled.dump()
    filled.settings.qdrant.api_key = filled.server.api_key or ""
    assert filled.snapshots() == []


def test_a_server_that_is_down_or_is_none(case: Case) -> None:
    case.settings.qdrant.url = f"http://127.0.0.1:{free_port()}"
    assert "cannot be reached" in case.component.probe().problems[0]
    with pytest.raises(BackupError, match=r"cannot be reached.*QDRANT_URL"):
        case.dump()
    for address in ("localhost:6333", "http://", "http://[::1", "http://h:99999", " ", ","):
        case.settings.qdrant.url = address
        assert "is no address of a Qdrant" in case.component.probe().problems[0]

    class Other(BaseHTTPRequestHandler):
        def log_message(self, *__: object) -> None:
            """Nothing to say."""

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<h1>It works</h1>")

    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        case.settings.qdrant.url = f"http://127.0.0.1:{other.server_port}"
        assert "is no Qdrant" in case.component.probe().problems[0]
        other.shutdown()


def test_every_broken_collection_is_named(filled: Case, proxy: Proxy) -> None:
    def broken(method: str, path: str, answer: dict[str, Any]) -> None:
        if method == "GET" and path == "/collections/agents":
            answer.update(status=500, headers={}, content=b'{"status":{"error":"Dirty shard - shard is not fully initialized"}}')
        if method == "GET" and path == "/collections/memories":
            body = {"status": "red", "optimizer_status": {"error": "out of disk"}, "config": {"params": {}}, "payload_schema": {}}
            answer.update(headers={}, content=json.dumps({"result": body}).encode())

    proxy.alter = broken
    said = "\n".join(filled.component.probe().problems)
    assert "collection agents does not answer" in said
    assert "Dirty shard" in said
    assert "collection memories is in status red (out of disk)" in said


def test_a_cluster_of_which_only_one_peer_is_named_is_refused(filled: Case, proxy: Proxy) -> None:
    """field-notes: a node's snapshot holds only the points of its own shards. Never half a backup."""
    peers = {"11": {"uri": "http://10.0.0.1:6335/"}, "22": {"uri": "http://10.0.0.2:6335/"}}

    def clustered(method: str, path: str, answer: dict[str, Any]) -> None:
        if path == "/cluster":
            result = {"status": "enabled", "peer_id": 11, "peers": peers}
            answer.update(headers={}, content=json.dumps({"result": result}).encode())

    proxy.alter = clustered
    said = filled.component.probe().problems
    assert len(said) == 1
    assert "cluster of 2 peers (http://10.0.0.1:6335/, http://10.0.0.2:6335/) and QDRANT_URL names 1" in said[0]
    with pytest.raises(BackupError, match="cluster of 2 peers"):
        filled.dump()
    filled.settings.qdrant.url = f"{proxy.url},{proxy.url}"
    assert "same peer of the cluster twice" in filled.component.probe().problems[0]
    proxy.alter = lambda method, path, answer: None
    assert "not peers of one cluster" in filled.component.probe().problems[0]


# -- the file ---------------------------------------------------------------------------------------------------------


def unpacked(source: Source) -> dict[str, bytes]:
    with tarfile.open(source.path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def repacked(path: Path, members: dict[str, bytes], entry: dict[str, Any] | None) -> Source:
    content = b"".join(
        tarball.header(name, len(content)) + content + tarball.padding(len(content)) for name, content in members.items()
    )
    path.write_bytes(content + tarball.TRAILER)
    return Source(path, "none", entry)


def faults(case: Case, source: Source) -> list[str]:
    try:
        return case.examine(source).faults
    except VerificationError as error:
        return [str(error)]


def test_every_tampering_with_the_file_is_found(filled: Case) -> None:
    source = filled.dump()
    members = unpacked(source)
    assert faults(filled, repacked(filled.base / "a.tar", members, source.entry)) == []
    tampered = {
        "a member lacks": {name: content for name, content in members.items() if name != "agents.snapshot"},
        "one is too many": {"evil.snapshot": b"", **members},
        "two are swapped": {
            **members,
            "agents.snapshot": members["memories.snapshot"],
            "memories.snapshot": members["agents.snapshot"],
        },
        "no inventory": {name: content for name, content in members.items() if name != "collections.json"},
        "one is cut": {**members, "agents.snapshot": members["agents.snapshot"][:-1024]},
        "a broken inventory": {**members, "collections.json": members["collections.json"][:-5]},
        "another inventory": {**members, "collections.json": members["collections.json"].replace(b'"current"', b'"changed"')},
        "an inventory that is a list": {**members, "collections.json": b"[]"},
    }
    for what, changed in tampered.items():
        assert faults(filled, repacked(filled.base / "a.tar", changed, source.entry)), what
    for what in ("a member lacks", "one is too many", "two are swapped", "one is cut", "a broken inventory"):
        assert faults(filled, repacked(filled.base / "a.tar", tampered[what], None)), f"{what}, without a manifest"


def test_a_file_cut_anywhere_or_with_any_bit_turned_is_found(filled: Case) -> None:
    source = filled.dump()
    repacked(filled.base / "whole.tar", unpacked(source), None)
    whole = (filled.base / "whole.tar").read_bytes()
    changed = filled.base / "changed.tar"
    for size in range(0, len(whole), 4999):
        changed.write_bytes(whole[:size])
        assert faults(filled, Source(changed, "none", source.entry)), f"cut at {size}"
    harmless = 0
    for at in range(7, len(whole) - 1024, 4999):
        changed.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        found = faults(filled, Source(changed, "none", None))
        harmless += not found
    assert harmless == 0


def test_the_guides_own_tar_is_walked_and_not_restored(case: Case, tmp_path: Path) -> None:
    folder = tmp_path / "qdrant" / "storage" / "collections" / "x"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "x.snapshot").write_bytes(b"half of one")
    subprocess.run(["tar", "-C", tmp_path, "-czf", tmp_path / "legacy.tar.gz", "qdrant"], check=True)
    legacy = Source(tmp_path / "legacy.tar.gz", "gzip", None)
    examination = case.examine(legacy)
    assert (examination.faults, examination.line) == ([], "Qdrant backup tar integrity OK (6 files)")
    assert "torn by design" in case.plan(legacy).problems[0]
    with pytest.raises(BackupError, match="torn by design"):
        case.component.extract(legacy, "x", tmp_path / "out", "")


def test_a_file_without_its_manifest_is_restored(filled: Case) -> None:
    before = filled.facts()
    source = Source(filled.dump().path, "gzip", None)
    filled.delete("memories")
    filled.restore(source)
    assert filled.differs(before) == []


def test_extract(filled: Case, tmp_path: Path) -> None:
    source = filled.dump()
    component = filled.component
    assert "40 points" in component.extract(source, "agents", tmp_path / "a.jsonl", "jsonl")
    lines = {line["id"]: line for line in map(json.loads, (tmp_path / "a.jsonl").read_text().splitlines())}
    page = filled.ask("POST", "/collections/agents/points/scroll", {"limit": 100, "with_vector": True})
    assert sorted(lines) == sorted(one["id"] for one in page["points"])
    for one in page["points"]:
        assert lines[one["id"]]["payload"] == one["payload"]
        assert lines[one["id"]]["vector"].keys() == one["vector"].keys()
    assert "snapshot written" in component.extract(source, "current", tmp_path / "m.snapshot", "")
    assert (tmp_path / "m.snapshot").read_bytes() == unpacked(source)["memories.snapshot"]
    assert (tmp_path / "m.snapshot").stat().st_mode & 0o777 == 0o600
    with pytest.raises(BackupError, match=r"no collection 'absent'.*agents, memories"):
        component.extract(source, "absent", tmp_path / "x", "")
    with pytest.raises(BackupError, match="snapshot or jsonl"):
        component.extract(source, "agents", tmp_path / "x", "csv")
    assert not (tmp_path / "x").exists()
    assert list(filled.work.iterdir()) == []


# -- restores that are refused, or fail -------------------------------------------------------------------------------


def with_version(source: Source, version: str) -> Source:
    assert source.entry is not None
    entry = json.loads(json.dumps(source.entry))
    entry["inventory"]["server"]["version"] = version
    return Source(source.path, source.compression, entry)


def test_field_note_only_the_same_or_the_next_minor_version(filled: Case) -> None:
    source = filled.dump()
    major, minor = map(int, filled.server.version().split(".")[:2])
    for version, good in ((f"{major}.{minor}.9", True), (f"{major}.{minor - 1}.0", True), (f"{major}.{minor - 2}.0", False),
                          (f"{major}.{minor + 1}.0", False), (f"{major - 1}.{minor}.0", False)):  # fmt: skip
        problems = filled.plan(with_version(source, version)).problems
        assert (problems == []) == good
        if not good:
            assert f"made by Qdrant {version} and the target is" in problems[0]
            assert filled.plan(with_version(source, version), accept=frozenset({"version"})).problems == []
            restoration = filled.component.restoration(with_version(source, version), RestoreOptions())
            with pytest.raises(BackupError, match="next minor version only"):
                restoration.prepare()
            restoration.close()


def test_field_note_another_shape_is_refused_and_untouched(filled: Case) -> None:
    source = filled.dump()
    filled.delete("memories")
    filled.ask("PUT", "/collections/memories", small(8))
    filled.ask("PUT", "/collections/memories/points?wait=true", some_points(5, 8))
    before = filled.facts()
    problems = filled.plan(source).problems
    assert len(problems) == 1
    assert "collection memories has other vectors" in problems[0]
    assert "(vector 8 Cosine) than in the backup (vector 32 Cosine)" in problems[0]
    restoration = filled.component.restoration(source, RestoreOptions())
    with pytest.raises(BackupError, match="other vectors"):
        restoration.prepare()
    restoration.abort()
    restoration.close()
    assert filled.differs(before) == []


def test_field_note_a_name_cannot_be_alias_and_collection(filled: Case) -> None:
    source = filled.dump()
    filled.delete("agents")
    filled.ask("POST", "/collections/aliases", {"actions": [
        {"delete_alias": {"alias_name": "current"}},
        {"create_alias": {"alias_name": "agents", "collection_name": "memories"}}]})  # fmt: skip
    filled.ask("PUT", "/collections/current", small())
    said = "\n".join(filled.plan(source).problems)
    assert "the target has an alias agents (for memories) where a collection of that name is to be restored" in said
    assert "the target has a collection current where an alias of that name is to be restored" in said


def test_field_note_payload_indexes_that_did_not_come_back_are_made(filled: Case, proxy: Proxy) -> None:
    """Older servers replay them only into a collection that did not exist."""
    before = filled.facts()
    source = filled.dump()
    filled.damage()

    def lose(method: str, path: str, answer: dict[str, Any]) -> None:
        if is_upload(method, path) and "/memories/" in path:
            for field in ("user_id", "importance"):
                filled.ask("DELETE", f"/collections/memories/index/{field}?wait=true")

    proxy.alter = lose
    filled.restore(source)
    assert filled.differs(before) == []


def change_indexes(case: Case) -> None:
    """An index more, another of a different type, and one less."""
    index = "/collections/memories/index"
    case.ask("PUT", f"{index}?wait=true", {"field_name": '"made later"', "field_schema": "keyword"})
    case.ask("DELETE", f"{index}/importance?wait=true")
    case.ask("PUT", f"{index}?wait=true", {"field_name": "importance", "field_schema": "keyword"})
    case.ask("DELETE", f"{index}/user_id?wait=true")


def test_payload_indexes_that_were_changed_since_the_backup_are_as_in_it(filled: Case) -> None:
    """An upload over a live collection leaves it the indexes that it has."""
    before = filled.facts()
    source = filled.dump()
    change_indexes(filled)
    assert filled.differs(before) != []
    filled.restore(source)
    assert filled.differs(before) == []


def test_payload_indexes_that_were_changed_since_the_backup_are_changed_again_when_it_is_taken_back(filled: Case) -> None:
    source = filled.dump()
    change_indexes(filled)
    changed = filled.facts()
    restoration = filled.component.restoration(source, RestoreOptions())
    try:
        restoration.prepare()
        restoration.commit()
        assert filled.differs(changed) != []
        restoration.abort()
    finally:
        restoration.close()
    assert filled.differs(changed) == []


def test_field_note_the_upload_asks_for_everything_explicitly(filled: Case, proxy: Proxy) -> None:
    source = filled.dump()
    assert source.entry is not None
    filled.delete("agents")
    filled.restore(source)
    uploads = [path for method, path in proxy.asked if is_upload(method, path)]
    digests = {record["name"]: record["snapshots"][0]["sha256"] for record in source.entry["inventory"]["collections"]}
    assert sorted(uploads) == [
        f"/collections/{name}/snapshots/upload?wait=true&priority=snapshot&checksum={digests[name]}"
        for name in ("agents", "memories")
    ]


@pytest.mark.parametrize("name", ["memories", "agents"])
def test_a_file_changed_after_its_verification_reaches_no_collection(filled: Case, name: str) -> None:
    """The digest is compared while it streams: the server never gets the end of the upload."""
    source = filled.dump()
    members = unpacked(source)
    changed = bytearray(members[f"{name}.snapshot"])
    changed[len(changed) // 2] ^= 1
    bad = repacked(filled.base / "bad.tar", {**members, f"{name}.snapshot": bytes(changed)}, source.entry)
    before = filled.facts()
    restoration = filled.component.restoration(bad, RestoreOptions())
    with pytest.raises(VerificationError, match=rf"{name}\.snapshot is not what was backed up"):
        restoration.prepare()  # here already where it is sent ahead
        restoration.commit()
    restoration.abort()
    restoration.close()
    assert filled.differs(before) == []
    assert filled.snapshots() == []


def test_a_failed_upload_over_live_data_is_taken_back(filled: Case, proxy: Proxy) -> None:
    source = filled.dump(CONTENT)
    filled.damage()
    before = filled.facts()
    failed: list[str] = []

    def dirty(method: str, path: str, answer: dict[str, Any]) -> None:
        if is_upload(method, path) and "/memories/" in path and not failed:
            failed.append(path)
            answer.update(status=500, headers={}, content=b'{"status":{"error":"Dirty shard"}}')

    proxy.alter = dirty
    restoration = filled.component.restoration(source, RestoreOptions())
    restoration.prepare()
    with pytest.raises(BackupError, match="restoring collection memories: HTTP 500: Dirty shard"):
        restoration.commit()
    assert "begun and not finished: memories" in restoration.state()
    restoration.abort()
    assert "as before: agents, memories" in restoration.state()
    restoration.close()
    # An upload brings the index back that was lost before: that is the only difference that an abort may leave.
    assert [text for text in filled.differs(before) if "payload index" not in text] == []
    assert filled.snapshots() == []


def test_field_note_a_failed_upload_without_a_collection_leaves_no_file(filled: Case, proxy: Proxy) -> None:
    """The uploaded file stays on the server, and where the collection does not exist it cannot even be listed."""
    source = filled.dump()
    filled.delete("memories")
    before = filled.facts()
    failed: list[str] = []

    def refuse(method: str, path: str) -> None:
        if is_upload(method, path) and "/memories/" in path:
            noise = {"snapshot": (path_name(filled), io.BytesIO(b"noise" * 1000))}
            with filled.server.client() as client:
                failed.append(
                    str(client.post("/collections/memories/snapshots/upload?priority=snapshot", files=noise).status_code)
                )
            raise ConnectionError

    proxy.before = refuse
    restoration = filled.component.restoration(source, RestoreOptions())
    with pytest.raises(BackupError, match="broke"):
        restoration.prepare()
    assert failed == ["500"]
    restoration.abort()
    restoration.close()
    assert filled.differs(before) == []
    assert filled.snapshots() == []


def path_name(case: Case) -> str:
    """The name of the upload under way, as the journal has it."""
    return str([step for step in case.steps if step["step"] == "qdrant_upload"][-1]["name"])


def test_what_was_created_is_deleted_and_aliases_come_back_when_a_later_store_fails(filled: Case) -> None:
    source = filled.dump()
    filled.damage()
    filled.delete("agents")  # and with it the alias that damage() had moved there
    before = filled.facts()
    restoration = filled.component.restoration(source, RestoreOptions())
    restoration.prepare()
    restoration.commit()
    restoration.abort()
    restoration.close()
    assert [text for text in filled.differs(before) if "payload index" not in text] == []
    assert filled.snapshots() == []


@pytest.mark.parametrize("way", ["abort", "again"])
def test_field_note_a_server_killed_in_the_middle_of_an_upload(filled: Case, proxy: Proxy, way: str) -> None:
    """After its restart the collection may answer 500, the old data gone and the new not there."""
    if filled.server.kind == "url":
        pytest.skip("a server that is not ours is not killed")
    before = filled.facts()
    source = filled.dump(CONTENT)
    filled.ask("POST", "/collections/memories/points/delete?wait=true", {"points": [data.point_id(n) for n in range(1, 90)]})
    damaged = filled.facts()
    kills: list[threading.Thread] = []

    def kill(method: str, path: str) -> None:
        if is_upload(method, path) and "/memories/" in path and not kills:
            kills.append(threading.Thread(target=filled.server.kill))
            kills[0].start()

    proxy.before = kill
    restoration = filled.component.restoration(source, RestoreOptions())
    restoration.prepare()
    with pytest.raises(BackupError, match=r"broke|cannot be reached|HTTP"):
        restoration.commit()
    kills[0].join()
    with pytest.raises(BackupError, match=r"memories: .*lies in .*memories\.snapshot"):
        restoration.abort()
    filled.server.start()
    if way == "abort":
        restoration.abort()
        restoration.close()
        assert filled.differs(damaged) == []
    else:
        with contextlib.suppress(BackupError):
            restoration.close()
        filled.restore(source)
        assert filled.differs(before) == []
    assert filled.snapshots() == []


def test_a_broken_collection_is_replaced_without_a_safety_copy(filled: Case, proxy: Proxy) -> None:
    source = filled.dump()
    before = filled.facts()
    uploaded = threading.Event()

    def dirty(method: str, path: str, answer: dict[str, Any]) -> None:
        if is_upload(method, path) and "/memories/" in path:
            uploaded.set()
        if path == "/collections/memories" and not uploaded.is_set():
            answer.update(status=500, headers={}, content=b'{"status":{"error":"Dirty shard"}}')

    proxy.alter = dirty
    plan = filled.plan(source)
    assert "collection memories is broken and will be replaced by 200 points" in "\n".join(plan.lines)
    assert "no safety copy of it can be made" in plan.warnings[0]
    filled.restore(source)
    assert filled.differs(before) == []


# -- what a killed run leaves behind ----------------------------------------------------------------------------------


def test_a_run_killed_after_its_snapshots_were_made_is_cleaned_up(filled: Case) -> None:
    foreign = filled.ask("POST", "/collections/agents/snapshots")["name"]
    cut = filled.component.open_cut(lambda: None, COUNTS)  # and never closed
    assert len(filled.snapshots()) == 3
    assert cut.moment
    named = [step for step in filled.steps if step["step"] == "qdrant_snapshot_made"]
    for steps in (named, filled.steps):
        for step in reversed(steps):
            filled.component.clean_up(step)
        assert filled.snapshots() == [foreign]


def test_a_run_killed_while_its_snapshot_is_being_made_is_cleaned_up(filled: Case) -> None:
    """The name is not known then: only the journal's line before the request is there."""
    foreign = filled.ask("POST", "/collections/agents/snapshots")["name"]
    filled.component.open_cut(lambda: None, COUNTS)
    steps = [step for step in filled.steps if step["step"] == "qdrant_snapshot"]
    for step in reversed(steps):
        filled.component.clean_up(step)
    assert filled.snapshots() == [foreign]


def test_snapshots_of_others_are_never_deleted_by_guessing(filled: Case) -> None:
    component = filled.component
    nodes = component.connect()
    at = nodes[0].now()
    filled.ask("POST", "/collections/agents/snapshots")
    step = {"step": "qdrant_snapshot", "component": "qdrant", "url": filled.server.url, "collection": "agents", "known": []}
    component.clean_up({**step, "at": "2020-01-01T00:00:00.000Z"})
    assert len(filled.snapshots()) == 1
    with filled.server.client() as client:
        while len(filled.snapshots()) < 2:  # until the second is over, and with it the first name
            client.post("/collections/agents/snapshots")
    component.clean_up({**step, "at": at.isoformat()})
    assert len(filled.snapshots()) == 2
    assert "delete it by hand" in filled.reporter.warnings[0]
    store.close_all(nodes)


def test_a_restore_killed_in_its_upload_is_cleaned_up(filled: Case, proxy: Proxy) -> None:
    source = filled.dump(CONTENT)
    filled.ask("POST", "/collections/memories/points/delete?wait=true", {"points": [data.point_id(1)]})
    before = filled.facts()

    def stop(method: str, path: str) -> None:
        if is_upload(method, path) and "/memories/" in path:
            raise ConnectionError

    proxy.before = stop
    restoration = filled.component.restoration(source, RestoreOptions())
    restoration.prepare()
    with pytest.raises(BackupError):
        restoration.commit()  # and the process is gone
    name = path_name(filled)
    whole = unpacked(source)["memories.snapshot"]
    with filled.server.client() as client:
        assert client.post("/collections/memories/snapshots/upload", files={"snapshot": (name, whole)}).is_success
    assert name in filled.snapshots()
    proxy.before = lambda method, path: None
    state = {"dirty": True}

    def dirty(method: str, path: str, answer: dict[str, Any]) -> None:
        if is_upload(method, path):
            state["dirty"] = False
        if path == "/collections/memories" and state["dirty"]:
            answer.update(status=500, headers={}, content=b'{"status":{"error":"Dirty shard"}}')

    proxy.alter = dirty
    for __ in range(2):
        for step in reversed(filled.steps.copy()):
            if step["collection"] == "memories":
                filled.component.clean_up(step)
    assert filled.differs(before) == []
    assert filled.snapshots() == []


def sent_ahead(proxy: Proxy, name: str) -> int:
    """How many bytes of an upload's body have come, of one that is not asked for yet."""
    assert not any(is_upload(*asked) for asked in proxy.asked)
    return sum(size for path, size in proxy.received.items() if f"/{name}/snapshots/upload" in path)


def test_the_largest_snapshot_is_sent_before_the_switch_and_used_in_it(filled: Case, proxy: Proxy) -> None:
    source = filled.dump()
    assert source.entry is not None
    wanted = filled.facts()
    size = unpacked(source).pop("memories.snapshot")
    filled.ask("POST", "/collections/memories/points/delete?wait=true", {"points": [data.point_id(1)]})
    live = filled.facts()
    restoration = filled.component.restoration(source, RestoreOptions())
    restoration.prepare()
    while sent_ahead(proxy, "memories") < len(size) - 128 * 1024:
        time.sleep(0.01)
    assert sent_ahead(proxy, "agents") == 0
    assert filled.differs(live) == []
    restoration.commit()
    restoration.complete()
    assert restoration.compare().differences == []
    restoration.close()
    assert filled.differs(wanted) == []
    assert filled.snapshots() == []
    uploads = [path for method, path in proxy.asked if is_upload(method, path)]
    assert sorted(path.split("/")[2] for path in uploads) == ["agents", "memories"]


def test_what_was_sent_ahead_is_never_used_when_the_restore_is_given_up(filled: Case, proxy: Proxy) -> None:
    source = filled.dump()
    filled.ask("POST", "/collections/memories/points/delete?wait=true", {"points": [data.point_id(1)]})
    live, before = filled.facts(), set(threading.enumerate())
    restoration = filled.component.restoration(source, RestoreOptions())
    restoration.prepare()
    while not sent_ahead(proxy, "memories"):
        time.sleep(0.01)
    restoration.abort()
    restoration.close()
    assert [thread for thread in set(threading.enumerate()) - before if thread.name == "qdrant-request"] == []
    assert not any(is_upload(*asked) for asked in proxy.asked)
    assert filled.differs(live) == []
    assert filled.snapshots() == []


def test_what_was_sent_ahead_is_sent_anew_where_its_connection_broke(
    filled: Case, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a proxy does that waits for nobody. A few bytes now and then tell us."""
    monkeypatch.setattr(store, "_DRIP_S", 0.02)
    source, wanted = filled.dump(), filled.facts()
    filled.ask("POST", "/collections/memories/points/delete?wait=true", {"points": [data.point_id(1)]})
    restoration = filled.component.restoration(source, RestoreOptions())
    restoration.prepare()
    proxy.hang_up.set()
    assert restoration._ahead is not None
    while not restoration._ahead.sending.broken:
        time.sleep(0.01)
    proxy.hang_up.clear()
    restoration.commit()
    restoration.complete()
    restoration.close()
    assert filled.differs(wanted) == []
    assert filled.snapshots() == []
    assert any("sending anew" in text for text in filled.reporter.steps)


def test_a_damaged_safety_copy_is_not_put_back(filled: Case) -> None:
    source = filled.dump()
    restoration = filled.restore(source)
    copy = restoration.previous / "memories.snapshot"
    safety = {"path": str(copy), "size": copy.stat().st_size, "sha256": hashlib.sha256(copy.read_bytes()).hexdigest()}
    copy.write_bytes(copy.read_bytes()[:-1] + b"x")
    before = filled.facts()
    component = filled.component
    (node,) = component.connect()
    with pytest.raises(VerificationError, match="cannot be put back"):
        component.upload_file(node, "memories", safety, "agentmem-restore-0.snapshot")
    node.close()
    assert filled.differs(before) == []


def test_a_run_that_is_stopped_does_not_wait_for_the_server(filled: Case, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def hang(method: str, path: str) -> None:
        if is_making(method, path) and "probe" not in path:
            asked.set()
            go_on.wait(60)

    proxy.before = hang
    monkeypatch.setattr(store, "_GRACE_S", 0.5)
    stopper = threading.Thread(target=lambda: (asked.wait(30), process.stop_all()))
    stopper.start()
    try:
        with pytest.raises(BackupError, match="being stopped"):
            filled.dump()
        assert not go_on.is_set()
    finally:
        stopper.join()
        process.resume()
        go_on.set()


# -- what the server finishes late ------------------------------------------------------------------------------------


def test_an_upload_that_the_server_has_whole_is_waited_for_by_a_run_that_is_stopped(filled: Case, proxy: Proxy) -> None:
    """Else the server finished it behind a restore that was already taken back: new data, and a file that nobody deletes."""
    source = filled.dump()
    filled.ask("POST", "/collections/agents/points/delete?wait=true", {"points": [1, 2]})
    filled.ask("POST", "/collections/memories/points/delete?wait=true", {"points": [data.point_id(1)]})
    before = filled.facts()
    go_on = threading.Event()
    uploads: list[str] = []
    finished: list[str] = []

    def hold(method: str, path: str) -> None:
        if is_upload(method, path):
            uploads.append(path)
            if len(uploads) == 1:
                process.stop_all()
                go_on.wait(3)  # until somebody who did not wait has taken everything back

    proxy.before = hold
    proxy.alter = lambda method, path, answer: finished.append(path) if is_upload(method, path) else None
    restoration = filled.component.restoration(source, RestoreOptions())
    restoration.prepare()
    with contextlib.suppress(BackupError):
        restoration.commit()
    process.resume()
    restoration.abort()
    restoration.close()
    go_on.set()
    while len(finished) < len(uploads):
        time.sleep(0.01)
    assert [text for text in filled.differs(before) if "payload index" not in text] == []
    assert filled.snapshots() == []


def test_an_upload_that_is_cut_does_nothing_even_when_the_run_goes_on(filled: Case, proxy: Proxy) -> None:
    filled.dump()
    before = filled.facts()
    (node,) = filled.component.connect()
    content = unpacked(Source(filled.file, "gzip"))["memories.snapshot"]
    filled.ask("POST", "/collections/memories/points/delete?wait=true", {"points": [data.point_id(1)]})
    damaged = filled.facts()
    assert fact_differences(before, damaged) != []
    announced: list[bool] = []
    others = set(threading.enumerate())  # an earlier test's request may wait for ever for a server that is gone

    def pieces() -> Iterator[bytes]:
        yield content[:1000]
        process.stop_all()
        given_up.wait(30)
        process.resume()
        yield content[1000:]
        ended.set()

    given_up, ended = threading.Event(), threading.Event()
    digest = hashlib.sha256(content).hexdigest()
    with pytest.raises(Cancelled):
        node.send("memories", "agentmem-restore-1.snapshot", pieces(), len(content), digest, lambda: announced.append(True)).end()
    given_up.set()
    for thread in set(threading.enumerate()) - others:
        if thread.name == "qdrant-request":
            thread.join()
    assert not announced
    assert not ended.is_set()
    assert not any(is_upload(*asked) for asked in proxy.asked)
    assert filled.differs(damaged) == []
    assert filled.snapshots() == []
    node.close()


def test_a_killed_upload_that_the_server_finishes_late_is_cleaned_up(filled: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    source = filled.dump()
    restoration = filled.component.restoration(source, RestoreOptions())
    restoration.prepare()
    monkeypatch.setattr(store.Sending, "end", _killed_with_the_end_sent)
    with pytest.raises(BackupError, match="killed"):
        restoration.commit()
    assert [step["step"] for step in filled.steps][-2:] == ["qdrant_upload", "qdrant_sent"]
    left, whole = filled.steps[-1], unpacked(source)[f"{filled.steps[-1]['collection']}.snapshot"]
    asked: list[str] = []
    listed = store.Node.snapshots

    def late(self: store.Node, collection: str) -> Any:
        asked.append(collection)
        if len(asked) == 3:
            with filled.server.client() as client:
                upload = {"snapshot": (left["name"], whole)}
                assert client.post(f"/collections/{collection}/snapshots/upload", files=upload).is_success
        return listed(self, collection)

    monkeypatch.setattr(store.Node, "snapshots", late)
    component = filled.component
    for step in reversed(filled.steps.copy()):
        component.clean_up(step)
    assert len(asked) >= 3
    assert filled.snapshots() == []
    restoration.close()


def _killed_with_the_end_sent(self: store.Sending) -> None:
    self._body._announce()
    self.give_up()
    raise BackupError("killed")


def test_a_killed_upload_that_was_answered_is_not_waited_for(filled: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    restoration = filled.restore(filled.dump())
    assert [step["step"] for step in filled.steps][-3:] == ["qdrant_upload", "qdrant_sent", "qdrant_uploaded"]
    monkeypatch.setattr(store.QdrantComponent, "_await_upload", lambda *__: pytest.fail("nothing to wait for"))
    component = filled.component
    for step in reversed(filled.steps.copy()):
        component.clean_up(step)
    restoration.close()


def owed(case: Case) -> list[str]:
    path = case.base / ".state" / "qdrant-owed.json"
    if not path.exists():
        return []
    assert path.stat().st_mode & 0o777 == 0o600
    return [one["step"] for one in json.loads(path.read_text())]


def test_a_snapshot_that_the_server_finishes_late_is_deleted_when_it_is_there(filled: Case) -> None:
    """The run that asked for it was killed, and the next one looked before it was there."""
    component = filled.component
    (node,) = component.connect()
    known = [str(one["name"]) for one in node.snapshots("agents")]
    step = {"step": "qdrant_snapshot", "url": filled.server.url, "collection": "agents", "known": known}
    component.clean_up({**step, "at": clock.iso(node.now())})
    assert owed(filled) == ["qdrant_snapshot"]
    filled.component.settle()
    assert owed(filled) == ["qdrant_snapshot"]
    filled.ask("POST", "/collections/agents/snapshots")
    filled.component.settle()
    assert filled.snapshots() == []
    assert owed(filled) == []
    node.close()


def test_a_snapshot_that_a_stopped_run_did_not_wait_for_is_deleted_when_it_is_there(
    filled: Case, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, made = threading.Event(), threading.Event()

    def hang(method: str, path: str) -> None:
        if is_making(method, path):
            process.stop_all()
            go_on.wait(60)

    proxy.before = hang
    proxy.alter = lambda method, path, answer: made.set() if is_making(method, path) else None
    monkeypatch.setattr(store, "_GRACE_S", 0.3)
    filled.settings.qdrant.include_collections = ["agents"]
    with pytest.raises(BackupError, match="being stopped"):
        filled.dump()
    process.resume()
    assert owed(filled) == ["qdrant_snapshot"]
    go_on.set()
    assert made.wait(60)
    assert len(filled.snapshots()) == 1
    filled.component.settle()
    assert filled.snapshots() == []
    assert owed(filled) == []


def test_what_cannot_be_deleted_now_is_deleted_by_a_later_run(filled: Case, proxy: Proxy) -> None:
    proxy.before = _no_deletion
    source = filled.dump()
    assert len(filled.snapshots()) == 2
    assert owed(filled) == ["qdrant_snapshot_made"] * 2
    restoration = filled.component.restoration(source, RestoreOptions())
    restoration.prepare()
    restoration.commit()
    with pytest.raises(BackupError, match="until a later run deletes them"):
        restoration.close()
    assert len(filled.snapshots()) == 6
    proxy.before = lambda method, path: None
    filled.component.settle()
    assert filled.snapshots() == []
    assert owed(filled) == []


def _no_deletion(method: str, path: str) -> None:
    if method == "DELETE":
        raise ConnectionError


# -- the restore by alias ---------------------------------------------------------------------------------------------


@pytest.fixture
def aliased(filled: Case) -> Case:
    """A server whose application goes through the alias `current`, and a restore that switches it."""
    filled.settings.qdrant.restore_method = "alias"
    return filled


def beside(case: Case) -> list[str]:
    return [item["name"] for item in case.ask("GET", "/collections")["collections"] if "__restored_" in item["name"]]


def alias(case: Case) -> str | None:
    """Where the alias `current` points."""
    found = {one["alias_name"]: one["collection_name"] for one in case.ask("GET", "/aliases")["aliases"]}
    return found.get("current")


def changed(case: Case) -> None:
    """The points of `memories` that an accident leaves."""
    case.ask("POST", "/collections/memories/points/delete?wait=true", {"points": [data.point_id(n) for n in range(1, 90)]})


def test_field_note_behind_an_alias_the_restored_collection_stands_beside(aliased: Case) -> None:
    good = aliased.facts()
    source = aliased.dump(CONTENT)
    changed(aliased)
    damaged = aliased.facts()
    plan = aliased.plan(source)
    assert plan.problems == []
    assert any("collection memories stays as it is, until you delete it" in line for line in plan.lines)
    assert any("alias current will point to memories__restored_" in line for line in plan.lines)
    assert aliased.differs(damaged) == []
    restored = aliased.restore(source)
    (new,) = beside(aliased)
    assert f"restored: {new}" in restored.state() or f"restored: agents, {new}" in restored.state()
    assert "kept with what they held, until you delete them: memories" in restored.state()
    assert alias(aliased) == new
    now = aliased.facts()
    # The collection's own name still has what it held, and what the alias leads to is what was backed up.
    in_place = {name: fact for name, fact in now.items() if new not in name and "alias" not in name}
    assert in_place == {name: fact for name, fact in damaged.items() if "alias" not in name}
    renamed = {name.replace(new, "memories"): fact for name, fact in now.items() if new in name}
    assert renamed == {name: fact for name, fact in good.items() if "memories" in name}
    assert aliased.snapshots() == []
    assert not (restored.previous / "memories.snapshot").exists(), "nothing of it is overwritten, so nothing need be saved"


def test_a_second_restore_by_alias_and_a_look_find_what_the_alias_leads_to(aliased: Case) -> None:
    source = aliased.dump(CONTENT)
    changed(aliased)
    aliased.restore(source)
    (first,) = beside(aliased)
    look = aliased.component.restoration(source, RestoreOptions())
    assert look.compare().differences == []
    look.close()
    wait_for_a_new_second()
    aliased.restore(source)
    second = alias(aliased)
    assert second in beside(aliased)
    assert second != first
    again = aliased.dump()
    assert {one["name"] for one in (again.entry or {})["inventory"]["collections"]} == {"agents", "memories", first, second}
    aliased.ask("POST", f"/collections/{second}/points/delete?wait=true", {"points": [data.point_id(100)]})
    look = aliased.component.restoration(source, RestoreOptions())
    assert any("points where the backup has" in text for text in look.compare().differences)
    look.close()


def test_a_collection_that_no_alias_leads_to_is_overwritten_also_by_alias(aliased: Case) -> None:
    source = aliased.dump()
    aliased.ask("POST", "/collections/agents/points/delete?wait=true", {"points": [1, 2, 3]})
    aliased.ask("POST", "/collections/aliases", {"actions": [{"delete_alias": {"alias_name": "current"}}]})
    changed(aliased)
    aliased.restore(source)
    assert beside(aliased) == []
    assert alias(aliased) == "memories"
    assert aliased.ask("POST", "/collections/memories/points/count", {"exact": True})["count"] == 200
    assert aliased.ask("POST", "/collections/agents/points/count", {"exact": True})["count"] == 40


@pytest.mark.parametrize("how", ["abort", "killed before", "killed after the switch", "killed when it was final"])
def test_a_restore_by_alias_is_taken_back_whole(aliased: Case, how: str) -> None:
    source = aliased.dump()
    changed(aliased)
    before = aliased.facts()
    restoration = aliased.component.restoration(source, RestoreOptions(only_collections=["memories"]))
    restoration.prepare()
    assert restoration.check().compared == 1
    if how != "killed before":
        restoration.commit()
        assert alias(aliased) in beside(aliased)
    if how == "killed when it was final":
        restoration.complete()
    steps = list(aliased.steps)
    if how == "abort":
        restoration.abort()
    restoration.close()
    if how != "abort":
        component = aliased.component
        for step in reversed(steps):
            component.clean_up(step)
    if how == "killed when it was final":
        assert alias(aliased) in beside(aliased)
    else:
        assert aliased.differs(before) == []
        assert alias(aliased) == "memories"
        assert beside(aliased) == []
    assert aliased.snapshots() == []
