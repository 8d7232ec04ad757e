# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# ruff: noqa: PTH102, PTH115, PTH118, PTH123, PTH208
"""Directory trees as tar archives: written, walked to their trailer, and built again without following a link.

Members carry their absolute path without the leading slash, in PAX format (POSIX.1-2001), extended attributes and
access lists as `SCHILY.xattr.…` records, as star and GNU tar write and read them. The last member is our own list of
everything in the archive; its SHA-256 stands in the manifest.

Names are bytes to the kernel and text here: UTF-8 with surrogates for what is not UTF-8, whatever the locale is.
"""

# Paths are bytes in this file: a configuration may have names that are no text, and pathlib knows text only.

from __future__ import annotations

import contextlib
import errno
import functools
import grp
import hashlib
import io
import json
import os
import pwd
import stat
import tarfile
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

from ..errors import BackupError, one_line
from ..pipeline import PIECE
from ..process import os_sentence
from . import tarball

LIST_NAME = ".agentmem-backup/files.json"
STAGE_PREFIX = b".agentmem-restore-"
"""What our own directories in and beside a restored one are called; they are never backed up."""

_XATTR = "SCHILY.xattr."
_UNKEPT = ("security.ima", "security.evm")  # sealed by the kernel of the machine: they cannot be set, or fit no other
_READ_ATTEMPTS = 3
_RACY_NS = 100_000_000  # far above a kernel tick: within one, two writes leave the same time stamp
_IN_MEMORY = 4 * PIECE
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

FILE, DIRECTORY, LINK, HARD_LINK = "file", "directory", "link", "hard link"


def text(raw: bytes) -> str:
    """A path as the kernel has it, as text from which `raw` gets the same bytes back."""
    return raw.decode("utf-8", "surrogateescape")


def raw(name: str) -> bytes:
    """The inverse of `text`."""
    return name.encode("utf-8", "surrogateescape")


def shown(name: str | bytes) -> str:
    """A name as it may stand in a sentence: line feeds, control characters and stray bytes escaped."""
    plain = text(name) if isinstance(name, bytes) else name
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in plain)


@contextlib.contextmanager
def telling(what: str) -> Iterator[None]:
    """Turns an OSError inside the block into a BackupError that says `what` was being done."""
    try:
        yield
    except OSError as error:
        raise BackupError(os_sentence(error, what)) from error


class Root(NamedTuple):
    """Where a tree begins: its name in the archive, its path on the disk, and whether it is the configuration directory."""

    name: str
    path: bytes
    main: bool = False


class Entry(NamedTuple):
    """What is recorded of one file, directory or link: everything that a restore must bring back."""

    name: str
    kind: str
    mode: int
    uid: int
    gid: int
    user: str
    group: str
    size: int
    sha256: str
    link: str
    attributes: str
    """SHA-256 over the extended attributes and access lists; empty where there are none."""
    mtime_ns: int


class Item(NamedTuple):
    """An entry met on the disk, with what only the archive needs: its attributes and content."""

    entry: Entry
    attributes: dict[str, bytes]
    content: IO[bytes] | None


class Sink(Protocol):
    """What an archive is written to."""

    def write(self, data: bytes, /) -> Any:
        """Take the next bytes."""


# --- reading the disk ----------------------------------------------------------------------------------------------


def _through(above: int, name: bytes) -> bytes:
    """A path to a name in an open directory, for calls that take no directory (attributes of links)."""
    return b"/proc/self/fd/%d/%b" % (above, name)


@contextlib.contextmanager
def _opened(name: bytes, above: int, flags: int = os.O_RDONLY | os.O_DIRECTORY) -> Iterator[int]:
    """What a name in an open directory stands for, opened without following a link."""
    descriptor = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=above)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@functools.cache
def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


@functools.cache
def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return ""


def attributes_of(target: int | bytes) -> dict[str, bytes]:
    """Extended attributes (access lists are among them) of an open file, or of what a path itself names."""
    follow: dict[str, bool] = {} if isinstance(target, int) else {"follow_symlinks": False}
    try:
        names = [name for name in os.listxattr(target, **follow) if name not in _UNKEPT]
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.ENOSYS):
            return {}
        raise
    found = {}
    for name in names:
        with contextlib.suppress(OSError):  # removed meanwhile, or listed and not readable as some NFS servers do
            found[name] = os.getxattr(target, name, **follow)
    return found


def _attributes_digest(attributes: dict[str, bytes]) -> str:
    if not attributes:
        return ""
    digest = hashlib.sha256()
    for name in sorted(attributes):
        digest.update(b"%d %b=%d %b" % (len(raw(name)), raw(name), len(attributes[name]), attributes[name]))
    return digest.hexdigest()


def walk(
    root: Root, avoid: Collection[tuple[int, int]] = (), refuse: Callable[[OSError, bytes], None] | None = None
) -> Iterator[tuple[str, bytes, os.stat_result]]:
    """Everything from `root` on as (name in the archive, path, lstat); a directory comes before what it holds.

    `avoid` are the (device, inode) of directories that are left out. `refuse` is told what cannot be read; without it
    the OSError is raised. What vanishes meanwhile is passed over.
    """
    waiting = [(root.name, root.path)]
    while waiting:
        name, path = waiting.pop()
        try:
            status = os.lstat(path)
            if (status.st_dev, status.st_ino) in avoid:
                continue
            inside: list[bytes] = []
            if stat.S_ISDIR(status.st_mode):
                inside = [one for one in os.listdir(path) if not one.startswith(STAGE_PREFIX)]
        except FileNotFoundError:
            continue
        except OSError as error:
            if refuse is None:
                raise
            refuse(error, path)
            continue
        yield name, path, status
        waiting += [(f"{name}/{text(one)}" if name else text(one), os.path.join(path, one)) for one in inside]


def _copy(descriptor: int, content: IO[bytes] | None) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    os.lseek(descriptor, 0, os.SEEK_SET)
    while piece := os.read(descriptor, PIECE):
        digest.update(piece)
        size += len(piece)
        if content is not None:
            content.write(piece)
    return size, digest.hexdigest()


def _unmoved(before: os.stat_result, after: os.stat_result) -> bool:
    facts = ("st_dev", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns")
    return all(getattr(before, fact) == getattr(after, fact) for fact in facts)


def _read_file(path: bytes, content: IO[bytes] | None) -> tuple[os.stat_result, dict[str, bytes], int, str]:
    """One regular file as it was at one moment: its status, attributes, size and digest; `content` gets its bytes."""
    for _attempt in range(_READ_ATTEMPTS):
        if content is not None:
            content.seek(0)
            content.truncate()
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            before = os.fstat(descriptor)
            if not stat.S_ISREG(before.st_mode):
                continue
            size, digest = _copy(descriptor, content)
            fresh = abs(time.time_ns() - before.st_ctime_ns) < _RACY_NS
            again = _copy(descriptor, None) if fresh else (size, digest)
            attributes = attributes_of(descriptor)
            if _unmoved(before, os.lstat(path)) and (size, digest) == again and size == before.st_size:
                return before, attributes, size, digest
        finally:
            os.close(descriptor)
    raise BackupError(
        f"{shown(path)} changed while it was being read, {_READ_ATTEMPTS} times in a row: "
        "stop what writes to it, or take it out of the configuration directory"
    )


def _refuse(error: OSError, path: bytes) -> None:
    raise BackupError(os_sentence(error, f"reading {shown(path)}")) from error


def read_tree(
    roots: Iterable[Root],
    *,
    avoid: Collection[tuple[int, int]] = (),
    scratch: Path | None = None,
    warn: Callable[[str], None] = lambda __: None,
) -> Iterator[Item]:
    """Everything under the roots, in the order of its names; contents are handed out where `scratch` is a directory.

    Sockets, pipes and devices are passed over with a warning. Raises BackupError for a file that cannot be read or does
    not hold still.
    """
    found = []
    for root in roots:
        found += list(walk(root, avoid, _refuse))
    first_names: dict[tuple[int, int], Entry] = {}
    for name, path, status in sorted(found, key=lambda one: raw(one[0])):
        with telling(f"reading {shown(path)}"), contextlib.ExitStack() as open_files:
            content = None
            if scratch is not None and stat.S_ISREG(status.st_mode):
                content = open_files.enter_context(tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=str(scratch)))
            try:
                item = _item(name, path, status, content, first_names)
            except FileNotFoundError:
                warn(f"{shown(path)} was removed while the configuration was being read")
                continue
            if item is None:
                warn(f"{shown(path)} is a socket, pipe or device and is not backed up")
            else:
                yield item


def _item(name: str, path: bytes, status: os.stat_result, content: Any, first_names: dict[tuple[int, int], Entry]) -> Item | None:
    kind, size, digest, link = DIRECTORY, 0, "", ""
    if stat.S_ISREG(status.st_mode):
        kind = FILE
        status, attributes, size, digest = _read_file(path, content)
    elif stat.S_ISLNK(status.st_mode):
        kind, link, attributes = LINK, text(os.readlink(path)), attributes_of(path)
        status = os.lstat(path)
    elif stat.S_ISDIR(status.st_mode):
        attributes = attributes_of(path)
    else:
        return None
    entry = Entry(
        name=name,
        kind=kind,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        user=_user_name(status.st_uid),
        group=_group_name(status.st_gid),
        size=size,
        sha256=digest,
        link=link,
        attributes=_attributes_digest(attributes),
        mtime_ns=status.st_mtime_ns,
    )
    if kind == FILE and status.st_nlink > 1:
        first = first_names.setdefault((status.st_dev, status.st_ino), entry)
        if first is not entry:
            entry = entry._replace(kind=HARD_LINK, link=first.name)
    return Item(entry, attributes, content if entry.kind == FILE else None)


# --- writing an archive --------------------------------------------------------------------------------------------


@dataclass
class Listing:
    """What an archive holds. `roots` and `sha256` are those of its own list; empty where it has none."""

    entries: list[Entry] = field(default_factory=list)
    roots: list[Root] = field(default_factory=list)
    sha256: str = ""
    members: int = 0
    faults: list[str] = field(default_factory=list)
    dotted: bool = False
    """Whether its names begin with ./ as `tar -C DIRECTORY .` writes them."""

    def count(self, *kinds: str) -> int:
        """How many entries are of these kinds."""
        return sum(entry.kind in kinds for entry in self.entries)


def list_bytes(roots: Iterable[Root], entries: Iterable[Entry]) -> bytes:
    """The list of an archive's entries in its one canonical form."""
    content = {
        "version": 1,
        "roots": [[root.name, root.main] for root in sorted(roots, key=lambda one: raw(one.name))],
        "entries": sorted(entries, key=lambda entry: raw(entry.name)),
    }
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


_TAR_TYPES = {FILE: tarfile.REGTYPE, DIRECTORY: tarfile.DIRTYPE, LINK: tarfile.SYMTYPE, HARD_LINK: tarfile.LNKTYPE}


def _header(item: Item) -> bytes:
    entry = item.entry
    info = tarfile.TarInfo(entry.name)
    info.type = _TAR_TYPES[entry.kind]
    info.mode, info.uid, info.gid, info.uname, info.gname = entry.mode, entry.uid, entry.gid, entry.user, entry.group
    info.size = entry.size if entry.kind == FILE else 0
    info.linkname = entry.link
    info.mtime, rest = divmod(entry.mtime_ns, 10**9)
    records: dict[str, str] = {}
    if rest:
        records["mtime"] = f"{Decimal(entry.mtime_ns).scaleb(-9):f}"
    for name, value in sorted(item.attributes.items()):
        # GNU tar's xheader.c: these two would end the keyword too early
        records[_XATTR + name.replace("%", "%25").replace("=", "%3D")] = text(value)
    info.pax_headers = records
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def write_archive(
    out: Sink,
    roots: Collection[Root],
    *,
    scratch: Path,
    avoid: Collection[tuple[int, int]] = (),
    warn: Callable[[str], None] = lambda __: None,
) -> Listing:
    """Write everything under the roots to `out`, with the list as its last member, and return what was written.

    Files above 4 MiB pass through an unnamed file in `scratch`, so that one that changes can be read again.
    """
    entries = []
    for item in read_tree(roots, avoid=avoid, scratch=scratch, warn=warn):
        entries.append(item.entry)
        out.write(_header(item))
        if item.content is not None:
            item.content.seek(0)
            while piece := item.content.read(PIECE):
                out.write(piece)
            out.write(tarball.padding(item.entry.size))
    content = list_bytes(roots, entries)
    info = tarfile.TarInfo(LIST_NAME)
    info.mode, info.size, info.mtime = 0o600, len(content), int(time.time())
    out.write(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
    out.write(content + tarball.padding(len(content)))
    out.write(tarball.TRAILER)
    return Listing(entries, list(roots), hashlib.sha256(content).hexdigest(), len(entries))


# --- walking an archive --------------------------------------------------------------------------------------------


Take = Callable[[tarfile.TarInfo, str, Iterator[bytes | memoryview]], None]
"""Is handed each safe member: its header, its clean name and its content."""


def _members(pieces: Iterator[bytes], what: str) -> Iterator[tuple[tarfile.TarInfo, Iterator[bytes | memoryview]]]:
    """Every member in turn, to the trailer and the end of the file. Raises VerificationError where that fails."""
    archive = tarball.Tar(pieces, what)
    for member in archive:
        try:  # tarfile knows every field and record of a header; it is shown one header at a time
            header = io.BytesIO(member.raw + tarball.TRAILER)
            info = tarfile.TarFile(fileobj=header, encoding="utf-8", errors="surrogateescape").next()
        except (tarfile.TarError, ValueError, OverflowError, IndexError) as error:
            raise archive.damaged(f"a header cannot be read: {one_line(error)}") from None
        if info is None:
            raise archive.damaged("a header cannot be read")
        yield info, archive.content()


def _attributes(info: tarfile.TarInfo) -> dict[str, bytes]:
    return {
        key[len(_XATTR) :].replace("%3D", "=").replace("%25", "%"): raw(value)
        for key, value in info.pax_headers.items()
        if key.startswith(_XATTR)
    }


def _mtime_ns(info: tarfile.TarInfo) -> int:
    try:
        return int(Decimal(info.pax_headers.get("mtime", str(info.mtime))).scaleb(9))
    except (InvalidOperation, ValueError, OverflowError):
        return 0


def _clean(name: str) -> str:
    """A member's name without a leading ./ and the slash at its end; the top itself is the empty name."""
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    return "" if name == "." else name.rstrip("/")


def _kind(info: tarfile.TarInfo) -> str:
    if info.isreg() and not info.issparse():
        return FILE
    return {tarfile.DIRTYPE: DIRECTORY, tarfile.SYMTYPE: LINK, tarfile.LNKTYPE: HARD_LINK}.get(info.type, "")


def _entry(info: tarfile.TarInfo, name: str, kind: str, digest: str, first: Entry | None) -> Entry:
    return Entry(
        name=name,
        kind=kind,
        mode=info.mode & 0o7777,
        uid=info.uid,
        gid=info.gid,
        user=info.uname,
        group=info.gname,
        size=first.size if first else info.size if kind == FILE else 0,
        sha256=first.sha256 if first else digest,
        link=first.name if first else info.linkname if kind == LINK else "",
        attributes=_attributes_digest(_attributes(info)),
        mtime_ns=_mtime_ns(info),
    )


def _unsafe(info: tarfile.TarInfo, kind: str, seen: dict[str, Entry]) -> str:
    """Why a member must not be written anywhere; empty where it may."""
    name = _clean(info.name)
    if info.name.startswith("/"):
        return "has an absolute name"
    if "\0" in info.name + info.linkname:
        return "has a NUL in its name"
    if any(part in ("..", ".", "") for part in name.split("/")) and name:
        return "has .. or an empty part in its name"
    if not kind:
        return "is a device, pipe or sparse file"
    if name in seen:
        return "occurs twice"
    parts = name.split("/")
    for length in range(1, len(parts)):
        above = seen.get("/".join(parts[:length]))
        if above and above.kind != DIRECTORY:
            return f"would be written through {shown(above.name)}, which is a {above.kind}"
    if kind == HARD_LINK:
        first = seen.get(_clean(info.linkname))
        if info.linkname.startswith("/") or first is None or first.kind not in (FILE, HARD_LINK):
            return f"is a hard link to {shown(info.linkname)}, which is no file before it in the archive"
    if kind == LINK and not info.linkname:
        return "is a link to nothing"
    return ""


def _parse_list(content: bytes) -> tuple[list[Root], list[Entry]]:
    parsed = json.loads(content)
    if parsed["version"] != 1:
        raise BackupError("its list was written by a newer version of agentmem-backup: use that one")
    roots = [Root(str(name), b"", bool(main)) for name, main in parsed["roots"]]
    entries = [Entry(*row) for row in parsed["entries"]]
    if list_bytes(roots, entries) != content:
        raise ValueError("not canonical")
    return roots, entries


def walk_archive(pieces: Iterator[bytes], what: str, take: Take | None = None) -> Listing:
    """Read an archive to its very end and tell what it holds and what is wrong with it.

    `what` names the archive in sentences. `take` is handed every member that is safe by itself. Raises VerificationError
    where the walk cannot go on; what the walk can go on after is in `faults`.
    """
    listing, own = Listing(), b""
    seen: dict[str, Entry] = {}
    for info, content in _members(pieces, what):
        if info.name == LIST_NAME and info.isreg():
            own = b"".join(content)
            continue
        listing.members += 1
        listing.dotted = listing.dotted or info.name == "." or info.name.startswith("./")
        kind, name = _kind(info), _clean(info.name)
        if own:
            listing.faults.append(f"{shown(info.name)} stands behind the archive's own list")
        if why := _unsafe(info, kind, seen):
            listing.faults.append(f"{shown(info.name)} {why}")
            continue
        digest = hashlib.sha256()
        hashed = _hashing(content, digest)
        if take is not None:
            take(info, name, hashed)
        for __ in hashed:
            pass
        first = seen[_clean(info.linkname)] if kind == HARD_LINK else None
        if first and first.kind == HARD_LINK:
            first = seen[first.link]
        seen[name] = _entry(info, name, kind, digest.hexdigest() if kind == FILE else "", first)
    listing.entries = list(seen.values())
    if own:
        _hold_against_list(listing, own)
    return listing


def _hashing(content: Iterator[bytes | memoryview], digest: Any) -> Iterator[bytes | memoryview]:
    for piece in content:
        digest.update(piece)
        yield piece


def _hold_against_list(listing: Listing, own: bytes) -> None:
    try:
        listing.roots, recorded = _parse_list(own)
    except (ValueError, KeyError, TypeError):
        listing.faults.append(f"its own list {LIST_NAME} cannot be read: it was changed")
        return
    except BackupError as error:
        listing.faults.append(str(error))
        return
    listing.sha256 = hashlib.sha256(own).hexdigest()
    listing.faults += differences(recorded, listing.entries)


def canonical(entries: Iterable[Entry]) -> list[Entry]:
    """The entries in the order of their names, the first name of each file being the file and the others its hard links.

    All names of a file get the facts that stand with its content: tar writes attributes there only.
    """
    entries = list(entries)
    contents = {entry.name: entry for entry in entries if entry.kind == FILE}
    first_names: dict[str, str] = {}
    ordered = []
    for entry in sorted(entries, key=lambda one: raw(one.name)):
        if entry.kind in (FILE, HARD_LINK):
            content = contents[entry.link or entry.name]
            first = first_names.setdefault(content.name, entry.name)
            link = "" if first == entry.name else first
            entry = content._replace(name=entry.name, kind=HARD_LINK if link else FILE, link=link)
        ordered.append(entry)
    return ordered


def links_out(entries: Iterable[Entry], base: str, directory: str) -> list[Entry]:
    """The symbolic links that lead out of `base` in the archive (restored as `directory`)."""
    found = []
    for entry in entries:
        if entry.kind != LINK:
            continue
        if entry.link.startswith("/"):
            inside = _below(os.path.normpath(entry.link), directory)
        else:
            inside = _below(os.path.normpath(f"/{entry.name}/../{entry.link}"), f"/{base}".rstrip("/"))
            # normpath stops at the top, as the kernel does; an archive has no top, so what climbs above it is out
            inside = inside and not _climbs(entry)
        if not inside:
            found.append(entry)
    return found


def _below(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _climbs(entry: Entry) -> bool:
    depth = entry.name.count("/")
    for part in entry.link.split("/"):
        depth += {"..": -1, ".": 0, "": 0}.get(part, 1)
        if depth < 0:
            return True
    return False


def differences(
    expected: Iterable[Entry],
    found: Iterable[Entry],
    *,
    owners: bool = True,
    attributes: bool = True,
    times: bool = True,
) -> list[str]:
    """What differs, a sentence a file. An owner is equal by name or by number."""
    theirs = {entry.name: entry for entry in found}
    told = []
    for entry in expected:
        other = theirs.pop(entry.name, None)
        name = shown(entry.name) or "the directory itself"
        if other is None:
            told.append(f"{name} is missing")
            continue
        facts = [] if entry.kind == other.kind else [f"a {other.kind} instead of a {entry.kind}"]
        facts += ["its content"] if (entry.size, entry.sha256) != (other.size, other.sha256) else []
        facts += ["its target"] if entry.link != other.link else []
        if entry.mode != other.mode and entry.kind != LINK:
            facts.append(f"its mode ({other.mode:04o} instead of {entry.mode:04o})")
        if owners and not _same_owner(entry, other):
            facts.append("its owner")
        facts += ["its attributes or access list"] if attributes and entry.attributes != other.attributes else []
        facts += ["its time"] if times and entry.mtime_ns != other.mtime_ns else []
        if facts:
            told.append(f"{name} differs: {', '.join(facts)}")
    return told + [f"{shown(name)} is there and should not be" for name in theirs]


def _same_owner(one: Entry, other: Entry) -> bool:
    user = one.uid == other.uid or (one.user != "" and one.user == other.user)
    group = one.gid == other.gid or (one.group != "" and one.group == other.group)
    return user and group


# --- building a tree -----------------------------------------------------------------------------------------------


def _known(find: Callable[[str], int], name: str, number: int) -> int:
    try:
        return find(name) if name else number
    except KeyError:
        return number


def _set_attributes(target: int | bytes, wanted: dict[str, bytes]) -> set[str]:
    """Make the attributes of a file those that are wanted; returns the names that its file system does not keep."""
    follow: dict[str, bool] = {} if isinstance(target, int) else {"follow_symlinks": False}
    present = attributes_of(target)
    for name in present:
        if name not in wanted and name.startswith(("user.", "system.posix_acl_")):  # inherited from the directory
            os.removexattr(target, name, **follow)
    refused = set()
    for name, value in wanted.items():
        try:
            if present.get(name) != value:
                os.setxattr(target, name, value, **follow)
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EPERM, errno.EACCES, errno.EINVAL):
                raise
            refused.add(name)
    return refused


class Stage:
    """A private directory (0700) in which one tree is built as `tree`, from members that nobody vouches for.

    Every directory on the way is opened without following links, and a file is only ever made, never opened anew.
    `refused` names the attributes that could not be set.
    """

    def __init__(self, path: bytes):
        self.path = path
        self.tree = path + b"/tree"
        self.refused: set[str] = set()
        self._directories: list[tuple[tuple[bytes, ...], tarfile.TarInfo]] = []
        with telling(f"making {shown(path)}"):
            os.mkdir(path, 0o700)

    @contextlib.contextmanager
    def _above(self, parts: tuple[bytes, ...]) -> Iterator[int]:
        descriptor = os.open(self.path, _OPEN_DIRECTORY)
        try:
            for part in parts[:-1]:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o700, dir_fd=descriptor)
                below = os.open(part, _OPEN_DIRECTORY, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = below
            yield descriptor
        finally:
            os.close(descriptor)

    def take(self, info: tarfile.TarInfo, relative: str, link: str, content: Iterator[bytes | memoryview]) -> None:
        """Build one member. `relative` is its name below the tree, `link` that of the file that a hard link names."""
        parts = (b"tree", *(raw(part) for part in relative.split("/") if part))
        with telling(f"writing {shown(relative) or 'a directory'} into {shown(self.path)}"), self._above(parts) as above:
            if info.isdir():
                with contextlib.suppress(FileExistsError):
                    os.mkdir(parts[-1], 0o700, dir_fd=above)
                self._directories.append((parts, info))
            elif info.issym():
                os.symlink(raw(info.linkname), parts[-1], dir_fd=above)
                self._finish_link(above, parts[-1], info)
            elif info.islnk():
                first = (b"tree", *(raw(part) for part in link.split("/") if part))
                with self._above(first) as beside:
                    os.link(first[-1], parts[-1], src_dir_fd=beside, dst_dir_fd=above, follow_symlinks=False)
            else:
                self._file(above, parts[-1], info, content)

    def _file(self, above: int, name: bytes, info: tarfile.TarInfo, content: Iterator[bytes | memoryview]) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(name, flags, 0o600, dir_fd=above)
        with open(descriptor, "wb", buffering=0) as file:
            for piece in content:
                view = memoryview(piece)
                while view:
                    view = view[file.write(view) :]
            self._finish(descriptor, info)
            os.fsync(descriptor)

    def _finish(self, descriptor: int, info: tarfile.TarInfo) -> None:
        if os.geteuid() == 0:
            os.fchown(descriptor, *_owner(info))
        os.fchmod(descriptor, info.mode & 0o7777)  # after the owner, whose change takes setuid away
        self.refused |= _set_attributes(descriptor, _attributes(info))
        time_ns = _mtime_ns(info)
        os.utime(descriptor, ns=(time_ns, time_ns))

    def _finish_link(self, above: int, name: bytes, info: tarfile.TarInfo) -> None:
        if os.geteuid() == 0:
            os.chown(name, *_owner(info), dir_fd=above, follow_symlinks=False)
        self.refused |= _set_attributes(_through(above, name), _attributes(info))
        time_ns = _mtime_ns(info)
        os.utime(name, ns=(time_ns, time_ns), dir_fd=above, follow_symlinks=False)

    def finish(self) -> None:
        """Give the directories their modes, owners, lists and times: last, for what is made in one changes its time."""
        for parts, info in sorted(self._directories, key=lambda one: len(one[0]), reverse=True):
            with telling(f"writing {shown(info.name)}"), self._above((*parts, b"")) as descriptor:
                self._finish(descriptor, info)

    def remove(self) -> None:
        """Remove the directory and all that is in it."""
        remove_tree(self.path)


def _owner(info: tarfile.TarInfo) -> tuple[int, int]:
    """By name where this machine knows it, else by number: as tar does."""
    user = _known(lambda name: pwd.getpwnam(name).pw_uid, info.uname, info.uid)
    group = _known(lambda name: grp.getgrnam(name).gr_gid, info.gname, info.gid)
    return user, group


def remove_tree(path: bytes) -> None:
    """Remove a file or a directory with all that is in it, without following links; what is gone already is no error."""
    above, name = os.path.split(path)
    with telling(f"removing {shown(path)}"):
        try:
            descriptor = os.open(above, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            _remove(descriptor, name, path, frozenset())
        finally:
            os.close(descriptor)


def _remove(above: int, name: bytes, path: bytes, pinned: Collection[bytes]) -> bool:
    """Remove one name; sockets, pipes, devices and mount points stay, as do the directories that hold them."""
    try:
        status = os.stat(name, dir_fd=above, follow_symlinks=False)
    except FileNotFoundError:
        return True
    if not stat.S_ISDIR(status.st_mode):
        if path in pinned or not (stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)):
            return False
        os.unlink(name, dir_fd=above)
        return True
    descriptor = os.open(name, _OPEN_DIRECTORY, dir_fd=above)
    try:
        inside = [os.fsencode(one) for one in os.listdir(descriptor)]
        removed = [_remove(descriptor, one, path + b"/" + one, pinned) for one in inside]
    finally:
        os.close(descriptor)
    if not all(removed) or path in pinned:
        return False
    os.rmdir(name, dir_fd=above)
    return True


# --- file by file, where a directory cannot be renamed -------------------------------------------------------------


def settle(staged: bytes, live: bytes, pinned: Collection[bytes]) -> None:
    """Make the directory or file `live` equal to `staged` by moving its files over, one by one; `staged` is used up.

    `pinned` are paths at or below `live` that are mount points or bind sources: a directory among them stays, a file
    is written in place, so that whoever has it mounted sees the new content. Both lie on one file system where
    possible; across two, files are copied.
    """
    with telling(f"replacing {shown(live)}"):
        (above_staged, name), (above_live, live_name) = os.path.split(staged), os.path.split(live)
        source = os.open(above_staged, _OPEN_DIRECTORY)
        try:
            target = os.open(above_live, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                _Settling(pinned).one(source, name, target, live_name, live)
                os.fsync(target)
            finally:
                os.close(target)
        finally:
            os.close(source)


def _is_directory(above: int, name: bytes) -> bool | None:
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=above, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return None


def _copy_metadata(source: int, target: int, status: os.stat_result) -> None:
    if os.geteuid() == 0:
        os.fchown(target, status.st_uid, status.st_gid)
    os.fchmod(target, stat.S_IMODE(status.st_mode))
    _set_attributes(target, attributes_of(source))
    os.utime(target, ns=(status.st_mtime_ns, status.st_mtime_ns))


class _Settling:
    """One run of `settle`: everything is named relative to open directories, which are opened without following links."""

    def __init__(self, pinned: Collection[bytes]):
        self._pinned = pinned
        self._copied: dict[tuple[int, int], bytes] = {}

    def one(self, source: int, name: bytes, target: int, live_name: bytes, path: bytes) -> None:
        """Put `name` of the directory `source` into the place of `live_name` in `target`; `path` is that place's."""
        directory, present = _is_directory(source, name), _is_directory(target, live_name)
        if present is not None and directory != present:
            _remove(target, live_name, path, self._pinned)
        if directory:
            self._directory(source, name, target, live_name, path)
        elif directory is not None:
            self._put(source, name, target, live_name, path)

    def _directory(self, source: int, name: bytes, target: int, live_name: bytes, path: bytes) -> None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(live_name, 0o700, dir_fd=target)
        with _opened(name, source) as new, _opened(live_name, target) as old:
            wanted = {os.fsencode(one) for one in os.listdir(new)}
            status = os.fstat(new)
            for one in map(os.fsencode, os.listdir(old)):
                if one not in wanted and not one.startswith(STAGE_PREFIX):
                    _remove(old, one, path + b"/" + one, self._pinned)
            for one in sorted(wanted):
                self.one(new, one, old, one, path + b"/" + one)
            _copy_metadata(new, old, status)
            os.fsync(old)

    def _put(self, source: int, name: bytes, target: int, live_name: bytes, path: bytes) -> None:
        if path in self._pinned:
            self._overwrite(source, name, target, live_name)
            return
        try:
            os.rename(name, live_name, src_dir_fd=source, dst_dir_fd=target)
        except OSError as error:
            if error.errno == errno.EBUSY:
                self._overwrite(source, name, target, live_name)
            elif error.errno == errno.EXDEV:
                self._copy(source, name, target, live_name, path)
            else:
                raise

    def _overwrite(self, source: int, name: bytes, target: int, live_name: bytes) -> None:
        """In place: who has this very file mounted sees the new content."""
        with _opened(live_name, target, os.O_WRONLY | os.O_TRUNC) as old:
            self._fill(source, name, old)

    def _fill(self, source: int, name: bytes, old: int) -> None:
        with _opened(name, source, os.O_RDONLY) as new:
            with open(old, "wb", closefd=False) as copy:
                _copy(new, copy)
            _copy_metadata(new, old, os.fstat(new))
            os.fsync(old)

    def _copy(self, source: int, name: bytes, target: int, live_name: bytes, path: bytes) -> None:
        """Across two mounts: a copy under another name, then renamed; hard links are made anew."""
        status = os.stat(name, dir_fd=source, follow_symlinks=False)
        temporary = STAGE_PREFIX + live_name[:200]
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=target)
        first = self._copied.setdefault((status.st_dev, status.st_ino), path)
        if stat.S_ISLNK(status.st_mode):
            self._copy_link(source, name, target, temporary, status)
        elif first != path:
            os.link(first, temporary, dst_dir_fd=target, follow_symlinks=False)
        else:
            with _opened(temporary, target, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as old:
                self._fill(source, name, old)
        os.rename(temporary, live_name, src_dir_fd=target, dst_dir_fd=target)

    def _copy_link(self, source: int, name: bytes, target: int, temporary: bytes, status: os.stat_result) -> None:
        os.symlink(os.readlink(name, dir_fd=source), temporary, dir_fd=target)
        if os.geteuid() == 0:
            os.chown(temporary, status.st_uid, status.st_gid, dir_fd=target, follow_symlinks=False)
        _set_attributes(_through(target, temporary), attributes_of(_through(source, name)))
        os.utime(temporary, ns=(status.st_mtime_ns,) * 2, dir_fd=target, follow_symlinks=False)


# --- mounts --------------------------------------------------------------------------------------------------------


class _Mount(NamedTuple):
    device: bytes
    root: bytes
    point: bytes


def _unescaped(field_text: bytes) -> bytes:
    for code, sign in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        field_text = field_text.replace(code, sign)
    return field_text


def _mounts(mountinfo: Path) -> list[_Mount]:
    """The lines of a mountinfo file (proc_pid_mountinfo(5)); none where the process has ended or is not ours to see."""
    try:
        lines = mountinfo.read_bytes().splitlines()
    except OSError:
        return []
    fields = (line.split(b" ") for line in lines)
    return [_Mount(one[2], _unescaped(one[3]), _unescaped(one[4])) for one in fields if len(one) > 4]


def _all_mounts(proc: Path) -> list[_Mount]:
    """The mounts of every mount namespace that we may look into: a container's bind mounts show in its own only."""
    seen, found = set(), []
    for process in proc.iterdir():
        if not process.name.isdigit():
            continue
        try:
            namespace = (process / "ns" / "mnt").readlink()
        except OSError:
            continue
        if namespace not in seen:
            seen.add(namespace)
            found += _mounts(process / "mountinfo")
    return found


def _inside(path: bytes, directory: bytes) -> bool:
    return directory == b"/" or path == directory or path.startswith(directory + b"/")


def pinned_paths(path: bytes, proc: Path = Path("/proc")) -> set[bytes]:
    """The paths at or below `path` that are mount points here, or that are mounted somewhere else (bind sources).

    A rename over the first fails (EBUSY); after a rename of the second, whoever mounted it goes on seeing the old files.
    """
    here = _mounts(proc / "self" / "mountinfo")
    found = {mount.point for mount in here if _inside(mount.point, path)}
    holders = [mount for mount in here if _inside(path, mount.point)]
    if not holders:
        return found
    longest = max(len(mount.point) for mount in holders)
    holder = [mount for mount in holders if len(mount.point) == longest][-1]  # the last one mounted hides the others
    prefix = b"" if holder.point == b"/" else holder.point
    within = (b"" if holder.root == b"/" else holder.root) + path[len(prefix) :]
    for mount in here + _all_mounts(proc):
        if mount.device == holder.device and _inside(mount.root, within):
            found.add((path + mount.root[len(within) :]).rstrip(b"/"))
    return found
