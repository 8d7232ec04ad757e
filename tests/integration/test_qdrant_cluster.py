# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Qdrant as a cluster of two nodes: each node's snapshots hold only its own shards, and go back to where they came from."""

from __future__ import annotations

import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from agentmem_backup.components.base import CONTENT
from agentmem_backup.errors import BackupError

from tests.integration.test_qdrant import Case, small, some_points
from tests.support.servers import Qdrant, free_port, qdrant_kind

pytestmark = pytest.mark.skipif(qdrant_kind() != "binary", reason="a cluster needs a qdrant binary on the PATH")


class Peer(Qdrant):
    """A node of a cluster; the first one has nobody to bootstrap from."""

    def __init__(self, first: Peer | None = None) -> None:
        super().__init__()
        self.first = first
        self.p2p = free_port()

    def command(self) -> Sequence[str]:
        bootstrap = ["--bootstrap", f"http://127.0.0.1:{self.first.p2p}"] if self.first else []
        return [*super().command(), "--uri", f"http://127.0.0.1:{self.p2p}", *bootstrap]

    def variables(self) -> dict[str, str]:
        return {**super().variables(), "QDRANT__CLUSTER__ENABLED": "true", "QDRANT__CLUSTER__P2P__PORT": str(self.p2p)}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Case]:
    """Two nodes with `spread` (four shards) and `doubled` (two shards, each on both nodes), and a case that names both."""
    with Peer() as one, Peer(one) as two:
        case = Case(tmp_path, one)
        deadline = time.monotonic() + 60
        while len(case.ask("GET", "/cluster")["peers"]) < 2:
            assert time.monotonic() < deadline, two.log_end()
            time.sleep(0.05)
        case.settings.qdrant.url = f"{one.url}, {two.url}/"
        case.ask("PUT", "/collections/spread?timeout=30", {**small(), "shard_number": 4})
        case.ask("PUT", "/collections/doubled?timeout=30", {**small(), "shard_number": 2, "replication_factor": 2})
        for name in ("spread", "doubled"):
            case.ask("PUT", f"/collections/{name}/points?wait=true&ordering=strong", some_points(200))
        alias = {"create_alias": {"collection_name": "spread", "alias_name": "current"}}
        case.ask("POST", "/collections/aliases", {"actions": [alias]})
        yield case


def test_field_note_every_node_is_dumped_and_gets_its_own_back(cluster: Case) -> None:
    before = cluster.facts()
    peers = sorted(cluster.ask("GET", "/cluster")["peers"])
    source = cluster.dump(CONTENT)
    assert source.entry is not None
    told = source.entry["fingerprint"]["collections"]
    assert (told["spread"]["points"], told["doubled"]["points"]) == (200, 200)
    with tarfile.open(source.path) as tar:
        assert sorted(tar.getnames()) == sorted(
            [*(f"{peer}/{name}.snapshot" for peer in peers for name in ("doubled", "spread")), "collections.json"]
        )
    assert cluster.examine(source).faults == []
    for name in ("spread", "doubled"):
        cluster.ask("POST", f"/collections/{name}/points/delete?wait=true", {"points": list(range(100))})
    cluster.restore(source)
    assert cluster.differs(before) == []
    shards = cluster.ask("GET", "/collections/spread/cluster")
    assert {one["state"] for one in (*shards["local_shards"], *shards["remote_shards"])} == {"Active"}


def test_collections_that_are_gone_come_back_to_both_nodes(cluster: Case) -> None:
    before = cluster.facts()
    source = cluster.dump(CONTENT)
    cluster.delete("spread")
    cluster.delete("doubled")
    cluster.restore(source)
    assert cluster.differs(before) == []


def test_a_shard_that_was_moved_is_not_made_a_dead_replica(cluster: Case) -> None:
    source = cluster.dump()
    first, second = (node.name for node in cluster.component.connect())
    shard = cluster.ask("GET", "/collections/spread/cluster")["local_shards"][0]["shard_id"]
    move = {"shard_id": shard, "from_peer_id": int(first), "to_peer_id": int(second)}
    cluster.ask("POST", "/collections/spread/cluster", {"move_shard": move})
    deadline = time.monotonic() + 60
    while shard in [one["shard_id"] for one in cluster.ask("GET", "/collections/spread/cluster")["local_shards"]]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert f"collection spread has its shards {shard} on other nodes" in cluster.plan(source).problems[0]
    before = cluster.facts()
    cluster.restore(source, collection_prefix="copy_")
    copies = {
        name.replace("copy_", ""): fact for name, fact in cluster.facts().items() if "copy_" in name and "alias" not in name
    }
    assert copies == {name: fact for name, fact in before.items() if "alias" not in name}


def test_extract_reads_each_shard_once(cluster: Case, tmp_path: Path) -> None:
    source = cluster.dump()
    for name in ("spread", "doubled"):
        said = cluster.component.extract(source, name, tmp_path / f"{name}.jsonl", "jsonl")
        assert "200 points" in said
        assert len((tmp_path / f"{name}.jsonl").read_text().splitlines()) == 200
    cluster.component.extract(source, "spread", tmp_path / "spread.snapshot", "snapshot")
    assert len(list(tmp_path.glob("spread.snapshot.*"))) == 2


def test_never_half_a_backup(cluster: Case) -> None:
    source = cluster.dump()
    both = cluster.settings.qdrant.url
    cluster.settings.qdrant.url = cluster.server.url
    assert "cluster of 2 peers" in cluster.component.probe().problems[0]
    with pytest.raises(BackupError, match="QDRANT_URL names 1 of them"):
        cluster.dump()
    with Qdrant() as alone:
        cluster.settings.qdrant.url = alone.url
        assert "made of 2 node(s) and QDRANT_URL names 1" in cluster.plan(source).problems[0]
        cluster.settings.qdrant.url = f"{cluster.server.url},{alone.url}"
        assert "not peers of one cluster" in cluster.component.probe().problems[0]
    cluster.settings.qdrant.url = both
    assert cluster.plan(source).problems == []
