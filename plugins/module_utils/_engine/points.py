# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The points inside a Qdrant snapshot, read without a server by qdrant-edge, and digests of points that know no order.

qdrant-edge is Qdrant's own storage code. It runs in a child process: it takes some hundred megabytes, and a damaged
snapshot may end it. A collection snapshot holds one folder for each shard, which is unpacked as it comes (`unpack`), put
together and loaded by qdrant-edge. Where there is much to read two children share it, each with half of the points.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .errors import BackupError, ToolError, one_line
from .formats.tarball import BLOCK, TRAILER, Forward, Member, Tar
from .libraries import missing
from .pipeline import PIECE
from .process import Child, guarded, look_for_cycles_less_often

# The package may be known under any name and lie in a zip: the child finds it where we found it.
_START = (
    "import importlib, json, sys; task = json.loads(sys.stdin.readline()); sys.path[:] = task['path']; "
    "importlib.import_module(task['module']).child(task)"
)
_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=str).encode  # in ASCII
_MUCH = 16 * 1024 * 1024  # bytes of shards that are worth a second process
_LARGE = 8 * 1024 * 1024
_SEGMENT = b"snapshot/"  # what the names in a segment's archive begin with
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


def unpack(pieces: Iterable[bytes], folder: Path, what: str) -> None:
    """Read a collection snapshot to its end and leave a folder for each shard with data in `folder` (made here).

    The archive of a segment, which is a member of its own, is taken apart on the way: its files then lie in the segment's
    folder as in a snapshot that a server streams (lib/segment/src/segment/segment_ops.rs of Qdrant 1.18: restore_snapshot),
    and nothing is written twice. `what` names the snapshot in errors. Raises VerificationError, BackupError.
    """
    folder.mkdir(mode=0o700)
    tar = Tar(iter(pieces), what)
    for member in tar:
        shard, __, name = member.name.partition("/")
        if not (shard.isdigit() and name) or member.kind not in ("file", "directory"):
            continue
        if member.unsafe:
            raise tar.damaged(f"it has a member named {member.name!r}")
        path = folder / member.name
        if path.parent == folder / shard / "segments" and path.suffix == ".tar":
            _unpack_segment(tar, path, f"{member.name} in {what}")
        else:
            _place(tar, member, path)
    for one in folder.iterdir():
        if not (one / "segments").is_dir():  # in a cluster the shards of other nodes are there without segments
            shutil.rmtree(one)


def _unpack_segment(tar: Tar, path: Path, what: str) -> None:
    content = Forward(tar.content())
    first = content.read(BLOCK)
    rest = iter(lambda: bytes(content.some(PIECE)), b"")
    if not first.startswith(_SEGMENT):  # as older servers made them: qdrant-edge takes it apart by itself
        _write(path, itertools.chain([first], rest), [])
        return
    archive = Tar(itertools.chain([first], rest), what, trailer=False)
    for member in archive:
        name = member.name.encode(errors="surrogateescape").removeprefix(_SEGMENT).decode(errors="surrogateescape")
        if member.unsafe or name == member.name:
            raise archive.damaged(f"it has a member named {member.name!r}")
        if member.kind in ("file", "directory"):
            _place(archive, member, path.with_suffix("") / name)


def _place(tar: Tar, member: Member, path: Path) -> None:
    """A member as the file or directory that it was, with its holes."""
    if member.kind == "directory":
        guarded(lambda: path.mkdir(parents=True, exist_ok=True), f"making {path}")
    else:
        _write(path, tar.content(), *tar.extents(member))


def _write(path: Path, content: Iterator[bytes | memoryview], extents: list[tuple[int, int]], size: int | None = None) -> None:
    """Write `content` to a new file: its parts at their (offset, length), or all of it where there are none."""

    def write() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = Forward(content)
        with path.open("xb", buffering=0) as file:
            for offset, length in extents or [(0, sys.maxsize)]:
                file.seek(offset)
                left = length
                while left and (piece := stream.some(left)):
                    left -= file.write(piece)
            if size is not None:
                file.truncate(size)

    guarded(write, f"writing {path}")


class Reading:
    """Child processes that read the unpacked shards in `folder` and remove them. Use from one thread, and `close`."""

    def __init__(self, folder: Path, *, lines: Path | None = None, skip: Iterable[str] = ()):
        """Digests the points of each shard; with `lines` also writes each point to that file as a line of JSON.

        `skip` names shards that were read already (replicas on other nodes).
        """
        self._folder = folder
        self._children: list[Child] = []
        shards = sorted((one.name for one in folder.iterdir() if one.name not in {*skip}), key=int)
        much = 512 * sum(path.stat().st_blocks for shard in shards for path in (folder / shard / "segments").rglob("*"))
        rooms = [folder, folder / "other"] if much >= _MUCH and not lines and (os.cpu_count() or 1) > 1 else [folder]
        try:
            for number, room in enumerate(rooms):
                self._start(room, lines, shards, [len(rooms), number], rooms[1:] if number == 0 else [])
        except BaseException:
            self.close()
            raise

    def _start(self, room: Path, lines: Path | None, shards: list[str], part: list[int], share_with: list[Path]) -> None:
        guarded(lambda: room.mkdir(mode=0o700, exist_ok=True), f"making {room}")
        task = {
            "path": [str(Path(entry).absolute()) if entry == "" else entry for entry in sys.path],
            "module": __name__,
            "folder": str(room),
            "lines": str(lines) if lines else None,
            "shards": shards,
            "slice": part,
            "share_with": [str(other) for other in share_with],
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
        for name in task["shards"]:
            digest = Digest()
            shard = _put_together(folder, name, task["slice"], [Path(other) for other in task["share_with"]])
            for record in _records(shard, task["slice"]):
                digest.add(record.id, record.payload, record.vector)
                if lines:
                    lines.write(json.dumps(_as_json(record), ensure_ascii=False) + "\n")
            shutil.rmtree(shard)
            found[name] = {"points": digest.points, "digest": digest.hex()}
    return found


def _put_together(folder: Path, name: str, part: list[int], share_with: list[Path]) -> Path:
    """The shard's folder, as it is loaded: put together here, and for those that share the work, who wait for it."""
    import qdrant_edge

    shard = folder / name
    if part[1]:
        while not shard.exists():
            time.sleep(0.02)
        return shard
    nothing = folder / f"{name}.tar"
    nothing.write_bytes(TRAILER)
    qdrant_edge.EdgeShard.unpack_snapshot(str(nothing), str(shard))  # into what is there already, which it then completes
    nothing.unlink()
    for other in share_with:
        coming = other / f"{name}.coming"
        shutil.copytree(shard, coming, copy_function=_link_or_copy)
        coming.rename(other / name)
    return shard


def _link_or_copy(source: str, target: str) -> None:
    """Large files hold vectors and payloads, which reading does not change; into some of the small ones it writes."""
    if Path(source).stat().st_size >= _LARGE:
        with contextlib.suppress(OSError):  # a file system without links
            os.link(source, target)
            return
    shutil.copyfile(source, target)


def _records(folder: Path, part: list[int]) -> Iterator[Any]:
    """The points of a shard, or those of one of `part[0]` slices, which share them out by a hash of their IDs."""
    import qdrant_edge

    edge: Any = qdrant_edge  # its stubs do not know SliceCondition
    shard = edge.EdgeShard.load(str(folder))
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
