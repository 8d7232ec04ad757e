# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The points inside a Qdrant snapshot, read without a server by qdrant-edge, and digests of points that know no order.

qdrant-edge is Qdrant's own storage code. It runs in a child process: it takes some hundred megabytes, and a damaged
snapshot may end it. A collection snapshot holds one folder for each shard; each is put into a tar of its own (`repack`),
which qdrant-edge unpacks and loads.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from .errors import BackupError, ToolError, one_line
from .formats.tarball import TRAILER, Member, Tar, padding, renamed
from .libraries import missing
from .process import Child, guarded, look_for_cycles_less_often

# The package may be known under any name and lie in a zip: the child finds it where we found it.
_START = (
    "import importlib, json, sys; task = json.loads(sys.stdin.readline()); sys.path[:] = task['path']; "
    "importlib.import_module(task['module']).child(task)"
)
_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=str).encode  # in ASCII
_MUCH = 16 * 1024 * 1024  # bytes of shards that are worth a second process
_BATCH_NUMBERS = 100_000  # floats of a scroll's page: Python takes 32 bytes for each


class Digest:
    """A digest of points that does not depend on their order: the sum of each one's SHA-256, modulo 2^256."""

    def __init__(self, points: int = 0, total: int = 0):
        self.points = points
        self._total = total

    def add(self, point_id: Any, payload: Any, vector: Any) -> None:
        """Count a point in, as qdrant-edge or the REST API gives it."""
        self._total += int.from_bytes(hashlib.sha256(b"".join(_parts(point_id, payload, vector))).digest(), "big")
        self.points += 1

    def hex(self) -> str:
        """The digest so far, 64 hexadecimal digits."""
        return f"{self._total % 2**256:064x}"

    def join(self, points: int, digest: str) -> None:
        """Count in what another digest has seen."""
        self._total += int(digest, 16)
        self.points += points


def _parts(point_id: Any, payload: Any, vector: Any) -> Iterator[bytes]:
    yield _canonical([str(point_id), payload or {}]).encode()
    named = vector if isinstance(vector, dict) else {"": vector} if vector else {}
    for name in sorted(named):
        yield json.dumps(name).encode()
        yield from _vector(named[name])


def _vector(vector: Any) -> Iterator[bytes]:
    if isinstance(vector, list):
        if vector and isinstance(vector[0], list):
            yield b"multi %d" % len(vector)
            for part in vector:
                yield from _vector(part)
        else:
            yield b"dense %d" % len(vector)
            yield _floats(vector)
        return
    indices = vector["indices"] if isinstance(vector, dict) else vector.indices
    values = vector["values"] if isinstance(vector, dict) else vector.values
    pairs = sorted(zip(indices, values, strict=True))
    yield b"sparse %s" % json.dumps([index for index, __ in pairs]).encode()
    yield _floats([value for __, value in pairs])


def _floats(numbers: list[float]) -> bytes:
    """float32, little-endian: what Qdrant keeps, whatever decimals its JSON shows. (The module array takes twice as long.)"""
    return struct.pack(f"<{len(numbers)}f", *numbers)


def page_size(numbers: int) -> int:
    """How many points to ask for at once when each has so many numbers in its vectors."""
    return max(10, min(1000, _BATCH_NUMBERS // max(1, numbers)))


def unavailable() -> str | None:
    """Why snapshots cannot be opened here (a sentence), or None."""
    if missing(["qdrant_edge"]):
        return "the Python library qdrant-edge-py is not installed (pip install qdrant-edge-py)"
    return None


def repack(pieces: Iterable[bytes | memoryview], folder: Path, what: str) -> None:
    """Read a collection snapshot to its end and leave one tar for each shard with data in `folder` (made here).

    Headers and contents are copied as they stand: sparse members stay sparse. `what` names the snapshot in errors.
    """
    folder.mkdir(mode=0o700)
    shards: dict[str, BinaryIO] = {}
    with_data: set[str] = set()
    try:
        tar = Tar(iter(pieces), what)  # type: ignore[arg-type]
        for member in tar:
            shard, __, name = member.name.partition("/")
            if not (shard.isdigit() and name) or member.kind not in ("file", "directory"):
                continue
            if member.unsafe:
                raise tar.damaged(f"it has a member named {member.name!r}")
            if shard not in shards:
                shards[shard] = guarded(functools.partial((folder / f"{shard}.tar").open, "xb"), f"writing to {folder}")
            _copy(tar, member, name, shards[shard])
            if name.startswith("segments/"):
                with_data.add(shard)
        for out in shards.values():
            guarded(functools.partial(out.write, TRAILER), f"writing to {folder}")
    finally:
        for out in shards.values():
            guarded(out.close, f"writing to {folder}")
    for shard in shards.keys() - with_data:  # in a cluster the shards of other nodes are there without segments
        (folder / f"{shard}.tar").unlink()


def _copy(tar: Tar, member: Member, name: str, out: BinaryIO) -> None:
    def copy() -> None:
        out.write(renamed(member, name))
        for piece in tar.content():
            out.write(piece)
        out.write(padding(member.size))

    guarded(copy, f"writing {out.name}")


class Reading:
    """Child processes that read the repacked shards in `folder` and remove them. Use from one thread, and `close`."""

    def __init__(self, folder: Path, *, lines: Path | None = None, skip: Iterable[str] = ()):
        """Digests the points of each shard; with `lines` also writes each point to that file as a line of JSON.

        `skip` names shards that were read already (replicas on other nodes).
        """
        self._folder = folder
        self._children: list[Child] = []
        folders = [folder] if lines else _reading_rooms(folder)
        try:
            for number, room in enumerate(folders):
                self._start(room, lines, list(skip), [len(folders), number])
        except BaseException:
            self.close()
            raise

    def _start(self, room: Path, lines: Path | None, skip: list[str], part: list[int]) -> None:
        task = {
            "path": [str(Path(entry).absolute()) if entry == "" else entry for entry in sys.path],
            "module": __name__,
            "folder": str(room),
            "lines": str(lines) if lines else None,
            "skip": skip,
            "slice": part,
        }
        child = Child([sys.executable, "-c", _START], stdin=subprocess.PIPE, cwd=room)
        self._children.append(child)
        with contextlib.suppress(OSError):  # it has ended already: result() tells why
            child.stdin.write(json.dumps(task).encode() + b"\n")
            child.stdin.close()

    def result(self) -> dict[str, dict[str, Any]]:
        """Waits; shard → {"points": number, "digest": hex}. Raises BackupError where qdrant-edge cannot read it."""
        shards: dict[str, Digest] = {}
        for child in self._children:
            for shard, facts in _answer(child).items():
                shards.setdefault(shard, Digest()).join(facts["points"], facts["digest"])
        return {shard: {"points": digest.points, "digest": digest.hex()} for shard, digest in shards.items()}

    def close(self) -> None:
        """End the children where they still run, and remove what they worked on."""
        for child in self._children:
            if child.process.returncode is None:
                child.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


def _reading_rooms(folder: Path) -> list[Path]:
    """A folder with the shards' tars for each reader: two where there is much to read, more processors and hard links."""
    archives = list(folder.glob("*.tar"))
    if (os.cpu_count() or 1) < 2 or sum(archive.stat().st_size for archive in archives) < _MUCH:
        return [folder]
    other = folder / "other"
    try:
        other.mkdir(mode=0o700)
        for archive in archives:
            os.link(archive, other / archive.name)
    except OSError:  # a file system without links: one reader does it all
        shutil.rmtree(other, ignore_errors=True)
        return [folder]
    return [folder, other]


def _answer(child: Child) -> dict[str, Any]:
    said = child.stdout.read()
    try:
        child.wait()
        answer = json.loads(said.splitlines()[-1])
    except (ToolError, ValueError, IndexError) as error:
        why = child.stderr or error
        raise BackupError(f"the process that opens snapshots with qdrant-edge ended early: {one_line(why, 200)}") from None
    if "error" in answer:
        raise BackupError(f"qdrant-edge cannot open the snapshot: {one_line(answer['error'], 300)}")
    shards: dict[str, Any] = answer["shards"]
    return shards


def child(task: dict[str, Any]) -> None:
    """What the child process does: its answer is the last line of its standard output."""
    look_for_cycles_less_often()
    try:
        answer: dict[str, Any] = {"shards": _read_shards(task)}
    except BaseException as error:  # qdrant-edge raises its own, Rust's panics among them
        answer = {"error": f"{type(error).__name__}: {error}"}
    os.write(1, b"\n" + json.dumps(answer).encode() + b"\n")


def _read_shards(task: dict[str, Any]) -> dict[str, dict[str, Any]]:
    folder, found = Path(task["folder"]), {}
    with contextlib.ExitStack() as stack:
        lines = stack.enter_context(Path(task["lines"]).open("a", encoding="utf-8")) if task["lines"] else None
        for archive in sorted(folder.glob("*.tar"), key=lambda path: int(path.stem)):
            if archive.stem in task["skip"]:
                continue
            digest = Digest()
            for record in _records(archive, task["slice"]):
                digest.add(record.id, record.payload, record.vector)
                if lines:
                    lines.write(json.dumps(_as_json(record), ensure_ascii=False) + "\n")
            found[archive.stem] = {"points": digest.points, "digest": digest.hex()}
    return found


def _records(archive: Path, part: list[int]) -> Iterator[Any]:
    """The points of a shard, or those of one of `part[0]` slices, which share them out by a hash of their IDs."""
    import qdrant_edge

    edge: Any = qdrant_edge  # its stubs do not know SliceCondition
    unpacked = archive.with_suffix("")
    edge.EdgeShard.unpack_snapshot(str(archive), str(unpacked))
    archive.unlink()
    shard = edge.EdgeShard.load(str(unpacked))
    offset, limit = None, 10
    chosen = edge.Filter(must=[edge.SliceCondition(*part)]) if part[0] > 1 else None
    while True:
        request = edge.ScrollRequest(offset=offset, limit=limit, filter=chosen, with_payload=True, with_vector=True)
        records, offset = shard.scroll(request)
        yield from records
        if offset is None:
            break
        if records:  # a page of a slice may be empty; that is not its end
            limit = page_size(_numbers(records[-1].vector))
    shard.close()
    shutil.rmtree(unpacked)


def _numbers(vector: Any) -> int:
    """About how many numbers a point's vectors have."""
    if isinstance(vector, list):
        return sum(map(_numbers, vector)) if vector and isinstance(vector[0], list) else len(vector)
    return sum(map(_numbers, vector.values())) if isinstance(vector, dict) else 10


def _as_json(record: Any) -> dict[str, Any]:
    """A point as the REST API shows it."""
    return {
        "id": record.id if isinstance(record.id, int) else str(record.id),
        "payload": record.payload or {},
        "vector": _vector_as_json(record.vector if record.vector is not None else {}),
    }


def _vector_as_json(vector: Any) -> Any:
    if isinstance(vector, dict):
        return {name: _vector_as_json(one) for name, one in sorted(vector.items())}
    return vector if isinstance(vector, list) else {"indices": vector.indices, "values": vector.values}
