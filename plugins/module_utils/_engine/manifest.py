# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a set's manifest says, as JSON (the truth) and as the guide's text (generated from it).

The JSON carries its own SHA-256, so that an edited or cut manifest is found, and a format number: this version reads
every format up to `FORMAT` and refuses newer ones in words. The schema is described in docs/manifest.md.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import clock
from .errors import VerificationError

FORMAT = 1
COMPONENTS = ("postgresql", "redis", "qdrant", "config")
"""In the guide's order."""
_LINE = "=" * 32


@dataclass(frozen=True)
class Manifest:
    """A manifest as it was read or is about to be written; `data` is the JSON object without its digest."""

    data: dict[str, Any]

    @property
    def id(self) -> str:
        """The set's ID."""
        return str(self.data["id"])

    @property
    def components(self) -> dict[str, dict[str, Any]]:
        """Component → what is recorded of it."""
        components: dict[str, dict[str, Any]] = self.data["components"]
        return components

    @property
    def size(self) -> int:
        """Size of all files of the set on the disk, in bytes, the manifests left out."""
        return sum(int(entry["bytes"]) for entry in self.components.values())

    def summary(self) -> dict[str, Any]:
        """What a listing or a report shows, so that it need not read thousands of manifests, and outlives the set."""
        began, ended = (clock.from_iso(self.data[word]) for word in ("started", "finished"))
        return {
            "type": self.data["type"],
            "size": self.size,
            "partial": bool(self.data.get("partial")),
            "stores": {name: int(entry["bytes"]) for name, entry in self.components.items()},
            "duration_s": round((ended - began).total_seconds(), 3),
        }

    def digest(self) -> str:
        """SHA-256 over the canonical form of `data`."""
        return hashlib.sha256(_canonical(self.data)).hexdigest()

    def to_json(self) -> bytes:
        """The file's content."""
        return json.dumps({**self.data, "digest": self.digest()}, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"

    def to_text(self) -> str:
        """The guide's manifest_ID.txt."""
        date = clock.id_time(self.id).strftime("%Y-%m-%d %H:%M:%S")
        lines = ["AgentMem Backup Manifest", f"Date: {date}", f"Backup ID: {self.id}", _LINE, "", "Backup Files:"]
        ordered = [self.components[name] for name in COMPONENTS if name in self.components]
        for entry in ordered:
            lines += [
                f"  - {entry['file']}",
                f"    Size: {human_size(entry['bytes'])}",
                f"    SHA256: {entry['sha256']}",
                "",
            ]
        return "\n".join([*lines, _LINE, f"Total Files: {len(ordered)}", ""])


def _canonical(data: dict[str, Any]) -> bytes:
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def read(path: Path) -> Manifest:
    """Read and check a manifest. Raises VerificationError where it is cut, edited, of a newer format or of another set."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise VerificationError(f"the manifest {path} cannot be read: {error.strerror}") from error
    try:
        data = json.loads(content)
    except ValueError:
        raise VerificationError(f"the manifest {path} is damaged: it is not whole JSON") from None
    if not isinstance(data, dict) or not isinstance(data.get("format"), int):
        raise VerificationError(f"the manifest {path} is damaged: it names no format")
    if data["format"] > FORMAT:
        raise VerificationError(
            f"the manifest {path} has format {data['format']}, and this version reads up to {FORMAT}: upgrade agentmem-backup"
        )
    recorded = data.pop("digest", None)
    manifest = Manifest(data)
    if recorded != manifest.digest() or content != manifest.to_json():
        raise VerificationError(f"the manifest {path} was changed after it was written: its own digest does not fit")
    components = data.get("components")
    if not isinstance(components, dict) or f"manifest_{data.get('id')}.json" != path.name:
        raise VerificationError(f"the manifest {path} belongs to another set: it says {data.get('id')!r}")
    return manifest


def human_size(size: int) -> str:
    """A size as the guide prints it (du -h): 512, 4.0K, 245M, 1.2G; powers of 1024, rounded up."""
    if size < 1024:
        return str(size)
    value = float(size)
    for unit in "KMGTP":
        value /= 1024
        if value < 9.95:
            return f"{_up(value, 10):.1f}{unit}"
        if value < 1023.5 or unit == "P":
            return f"{_up(value, 1):.0f}{unit}"
    return str(size)


def _up(value: float, parts: int) -> float:
    scaled = value * parts
    return (int(scaled) + (scaled > int(scaled))) / parts
