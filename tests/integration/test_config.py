# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration: backed up, destroyed and restored; judged by the independent comparer, tar and the kernel."""

from __future__ import annotations

import contextlib
import gzip
import os
import shutil
import signal
import socket
import stat
import subprocess
import tarfile
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from agentmem_backup import journal
from agentmem_backup.components.base import COUNTS, Context, RestoreOptions, Source
from agentmem_backup.components.config import ConfigComponent
from agentmem_backup.errors import BackupError, UsageError, VerificationError
from agentmem_backup.formats import filetree
from agentmem_backup.pipeline import Writer
from agentmem_backup.progress import Collecting
from agentmem_backup.settings import Settings

from tests.support import data
from tests.support.compare import capture_config
from tests.support.restoring import carry_out

NOBODY = 65534


class Case:
    """A configuration directory with the seeded files, a backup directory, and a component over them."""

    def __init__(self, base: Path):
        self.base = base
        self.directory = base / "opt" / "config"
        self.backups = base / "backups"
        self.work = base / "work"
        for path in (self.directory, self.backups, self.work):
            path.mkdir(parents=True, mode=0o700)
        self.settings = Settings(backup_dir=str(self.backups))
        self.settings.config.directory = str(self.directory)
        self.reporter = Collecting()
        self.steps: list[dict[str, Any]] = []

    def journal(self, step: str, **facts: Any) -> None:
        self.steps.append({"step": step, **facts})

    def component(self) -> ConfigComponent:
        return ConfigComponent(Context(self.settings, self.reporter, self.work, self.journal))

    def dump(self, name: str = "config_20250103_120000.tar.gz") -> Source:
        path = self.backups / name
        cut = self.component().open_cut(lambda: None, COUNTS)
        out = Writer(path, compression="gzip")
        try:
            cut.dump(out)
        except BaseException:
            out.abandon()
            raise
        out.close()
        entry = cut.entry()
        cut.close()
        return Source(path, "gzip", entry)

    def restore(self, source: Source) -> Any:
        """A whole restore, as the verb does it; returns the restoration."""
        restoration = self.component().restoration(source, RestoreOptions())
        carry_out(restoration)
        return restoration

    def examine(self, source: Source) -> Any:
        return self.component().examine(source, source.pieces())

    def left_behind(self) -> list[str]:
        """Our own directories and temporary files that are still somewhere."""
        return [str(path) for path in self.base.rglob("*") if ".agentmem-" in path.name or path.name.endswith(".partial")]


@pytest.fixture
def case(tmp_path: Path) -> Case:
    made = Case(tmp_path)
    data.fill_config(made.directory)
    (made.directory / os.fsdecode(b"not \xff utf-8 \xe4.conf")).write_text("bytes\n")
    (made.directory / "certs" / "setuid").write_text("x")
    os.chown(made.directory / "certs" / "setuid", NOBODY, NOBODY)
    (made.directory / "certs" / "setuid").chmod(0o6711)
    os.setxattr(made.directory / "agentmem.yml", "user.binary", b"\xff\x00=\n%\xfe")
    os.setxattr(made.directory / "agentmem.yml", "user.a=b%c", b"odd name")
    os.utime(made.directory / "agentmem.yml", ns=(1_700_000_000_123_456_789,) * 2)
    os.utime(made.directory / "bin" / "hook.sh", ns=(-86_400_500_000_000, -86_400_500_000_000))
    return made


def facts_of(directory: Path) -> dict[str, Any]:
    """The independent comparer's facts, and the times, which it leaves aside."""
    facts = dict(capture_config(directory))
    times = {str(path.relative_to(directory)): path.lstat().st_mtime_ns for path in sorted(directory.rglob("*"))}
    return {**facts, "times": times}


def write_tar(path: Path, *members: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes], trailer: bool = True) -> Source:
    """An archive with members that tar itself would not write."""
    with path.open("wb") as file:
        for member in members:
            info, content = member if isinstance(member, tuple) else (member, b"")
            info.size = len(content)
            file.write(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
            file.write(content + bytes(-len(content) % 512))
        file.write(bytes(1024 if trailer else 0))
    return Source(path, "none")


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, mode
    return info


# --- the round trip


def test_everything_comes_back_after_the_directory_was_destroyed(case: Case) -> None:
    before = facts_of(case.directory)
    source = case.dump()
    shutil.rmtree(case.directory)

    case.restore(source)

    assert facts_of(case.directory) == before
    assert case.left_behind() == []


def test_the_seeded_files_exercise_what_the_store_promises(case: Case) -> None:
    """A round trip proves nothing about access lists, attributes and hard links that were never there."""
    facts = repr(capture_config(case.directory))
    for needed in ("access list", "extended attribute", "hard links", "symbolic link", "'0o1777'", "'0o6711'"):
        assert needed in facts


def test_a_changed_directory_is_renamed_aside_and_ends_equal(case: Case) -> None:
    before = facts_of(case.directory)
    source = case.dump()
    (case.directory / "agentmem.yml").write_text("changed")
    (case.directory / "extra").mkdir()
    (case.directory / "extra" / "file").write_text("new")
    (case.directory / "certs" / "server.key").unlink()
    changed = facts_of(case.directory)

    restoration = case.restore(source)

    assert facts_of(case.directory) == before
    [previous] = case.directory.parent.glob("config.before_*")
    assert facts_of(previous) == changed
    assert str(previous) in restoration.state()


def test_tar_unpacks_the_archive_to_the_very_same_files(case: Case) -> None:
    before = facts_of(case.directory)
    source = case.dump()
    target = case.base / "unpacked"
    target.mkdir()
    tar = ["tar", "-xpzf", str(source.path), "-C", str(target), "--xattrs", "--xattrs-include=*", "--numeric-owner"]
    subprocess.run(tar, check=True, capture_output=True)

    assert facts_of(target / str(case.directory).lstrip("/")) == before


def test_the_fingerprint_is_the_same_for_the_same_files_and_another_for_one_mode(case: Case) -> None:
    first = case.dump("a.tar.gz").entry
    assert case.dump("b.tar.gz").entry == first
    (case.directory / "agentmem.yml").chmod(0o600)
    changed = case.dump("c.tar.gz").entry
    assert changed["fingerprint"]["sha256"] != first["fingerprint"]["sha256"]
    assert {**changed, "fingerprint": 0} == {**first, "fingerprint": 0}


def test_live_files_that_differ_are_named(case: Case) -> None:
    source = case.dump()
    restoration = case.restore(source)
    (case.directory / "agentmem.yml").chmod(0o666)
    (case.directory / "certs" / "server.crt").write_text("other")
    (case.directory / "new\nfile").write_text("extra")
    (case.directory / "dangling").unlink()
    os.setxattr(case.directory / "bin" / "hook.sh", "user.note", b"x")
    os.chown(case.directory / "odd" / "empty.conf", 1234, 1234)

    told = "\n".join(restoration.compare().differences)

    for expected in (
        "agentmem.yml differs: its mode (0666 instead of 0640)",
        "server.crt differs: its content",
        "new\\nfile is there and should not be",
        "dangling is missing",
        "hook.sh differs: its attributes",
        "empty.conf differs: its owner",
    ):
        assert expected in told


def test_another_environment_has_its_directory_elsewhere(case: Case) -> None:
    before = facts_of(case.directory)
    source = case.dump()
    elsewhere = case.base / "another place" / "conf"
    case.settings.config.directory = str(elsewhere)

    case.restore(source)

    assert facts_of(elsewhere) == before
    assert facts_of(case.directory) == before


def test_further_paths_come_back_file_by_file(case: Case) -> None:
    single, folder = case.base / "etc" / "ca.pem", case.base / "etc" / "more"
    folder.mkdir(parents=True)
    single.write_text("certificate")
    single.chmod(0o440)
    (folder / "x").write_text("x")
    case.settings.config.extra_paths = [str(single), str(folder), str(case.directory / "certs")]
    source = case.dump()
    before = facts_of(case.base / "etc"), facts_of(case.directory)
    single.write_text("changed")
    (folder / "x").unlink()

    restoration = case.restore(source)

    shutil.rmtree(next(folder.parent.glob("more.before_*")))
    os.utime(case.base / "etc", ns=(0, 0))
    after = facts_of(case.base / "etc"), facts_of(case.directory)
    assert after == before
    [saved] = (case.backups / ".state" / "previous").rglob("*.tar")
    assert str(saved) in restoration.state()
    with tarfile.open(saved) as archive:
        assert archive.extractfile(str(single).lstrip("/")).read() == b"changed"


def test_another_environment_gets_no_further_path_that_its_settings_do_not_name(case: Case) -> None:
    single = case.base / "ca.pem"
    single.write_text("certificate")
    case.settings.config.extra_paths = [str(single)]
    source = case.dump()
    single.write_text("this environment's own")
    case.settings.config.directory = str(case.base / "elsewhere")
    case.settings.config.extra_paths = []

    plan = case.component().plan_restore(source, RestoreOptions())
    case.restore(source)

    assert single.read_text() == "this environment's own"
    assert any(str(single) in warning for warning in plan.warnings)


def test_a_directory_that_is_a_link_is_replaced_behind_it(case: Case) -> None:
    link = case.base / "link"
    link.symlink_to(case.directory)
    case.settings.config.directory = str(link)
    before = facts_of(case.directory)
    source = case.dump()
    shutil.rmtree(case.directory)
    case.directory.mkdir()

    case.restore(source)

    assert link.is_symlink()
    assert facts_of(case.directory) == before


def test_an_inherited_access_list_does_not_stay_on_restored_files(case: Case) -> None:
    source = case.dump()
    shutil.rmtree(case.directory)
    subprocess.run(["setfacl", "-d", "-m", "u:65534:rwx", str(case.directory.parent)], check=True)

    case.restore(source)  # compares the access lists

    assert "system.posix_acl_access" not in os.listxattr(case.directory / "agentmem.yml")


def test_a_file_larger_than_memory_should_hold_passes_through_the_scratch_directory(case: Case) -> None:
    large = case.directory / "large.bin"
    with large.open("wb") as file:
        for number in range(24):
            file.write(bytes([number]) * 1024 * 1024)
    before = facts_of(case.directory)
    source = case.dump()
    large.unlink()

    case.restore(source)

    assert facts_of(case.directory) == before
    assert list(case.work.iterdir()) == []


# --- ready to be backed up?


def test_a_missing_directory_is_told_before_the_run(case: Case) -> None:
    shutil.rmtree(case.directory)
    [problem] = case.component().probe().problems
    assert f"{case.directory} does not exist" in problem
    assert "CONFIG_DIR" in problem
    with pytest.raises(BackupError, match="does not exist"):
        case.component().open_cut(lambda: None, COUNTS)


def test_a_file_in_place_of_the_directory_is_told(case: Case) -> None:
    case.settings.config.directory = str(case.directory / "agentmem.yml")
    [problem] = case.component().probe().problems
    assert "is not a directory" in problem


@pytest.mark.parametrize("path", ["relative/config", "/", ""])
def test_a_path_that_cannot_be_meant_is_refused(case: Case, path: str) -> None:
    case.settings.config.directory = path
    [problem] = case.component().probe().problems
    assert "config.directory" in problem


@pytest.mark.parametrize("path", ["/", "/etc", "/usr/local/", "link"])
def test_nothing_is_restored_into_a_directory_of_the_whole_system(case: Case, tmp_path: Path, path: str) -> None:
    source = case.dump()
    (tmp_path / "link").symlink_to("/etc")
    case.settings.config.directory = str(tmp_path / path) if path == "link" else path
    [problem] = case.component().plan_restore(source, RestoreOptions()).problems
    assert "is a directory of the whole system" in problem


def test_every_problem_is_told_at_once(case: Case) -> None:
    case.settings.config.extra_paths = [str(case.base / "gone.pem"), str(case.base / "gone too")]
    shutil.rmtree(case.directory)
    problems = case.component().probe().problems
    assert [name for name in ("config", "gone.pem", "gone too") if any(f"{name} does" in told for told in problems)] == [
        "config",
        "gone.pem",
        "gone too",
    ]


@contextmanager
def as_nobody() -> Iterator[None]:
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_case() -> Iterator[Case]:
    """A case where another user may go too."""
    base = Path(tempfile.mkdtemp(prefix="agentmem-test-"))
    base.chmod(0o755)
    case = Case(base)
    for path in (case.directory, case.directory.parent):
        path.chmod(0o755)
    yield case
    shutil.rmtree(base)


def test_every_unreadable_file_is_named(open_case: Case) -> None:
    for name, mode in (("open", 0o644), ("closed 1", 0o600), ("closed\n2", 0o000)):
        (open_case.directory / name).write_text("x")
        (open_case.directory / name).chmod(mode)
    (open_case.directory / "closed directory").mkdir(mode=0o700)
    with as_nobody():
        problems = open_case.component().probe().problems
        with pytest.raises(BackupError, match="closed"):
            open_case.component().open_cut(lambda: None, COUNTS).dump(Sink())  # type: ignore[arg-type]
    told = "\n".join(problems)
    for name in ("closed 1", "closed\\n2", "closed directory"):
        assert f"{open_case.directory}/{name} " in told
    assert len(problems) == 3


class Sink:
    """Takes an archive and forgets it."""

    def write(self, data: bytes) -> int:
        return len(data)


def test_who_is_not_root_is_told_that_owners_were_not_compared(open_case: Case) -> None:
    (open_case.directory / "file").write_text("x")
    source = open_case.dump()
    for path in (open_case.base, *open_case.base.rglob("*")):
        if open_case.directory not in (path, *path.parents):
            os.chown(path, NOBODY, NOBODY)
    shutil.rmtree(open_case.directory)
    with as_nobody():
        plan = open_case.component().plan_restore(source, RestoreOptions())
        restoration = open_case.component().restoration(source, RestoreOptions())
        restoration.prepare()
        checked = restoration.check()
        restoration.commit()
        restoration.close()
    assert (open_case.directory / "file").stat().st_uid == NOBODY
    assert plan.problems == []
    assert any("only root" in warning for warning in plan.warnings)
    assert any("owners" in reason for reason in checked.not_compared)
    assert checked.equal


def test_sockets_pipes_and_devices_are_told_and_passed_over(case: Case) -> None:
    listener = socket.socket(socket.AF_UNIX)
    previous = Path.cwd()
    os.chdir(case.directory)  # a socket's path is short
    try:
        listener.bind("socket")
    finally:
        os.chdir(previous)
        listener.close()
    os.mkfifo(case.directory / "pipe")
    os.mknod(case.directory / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))

    source = case.dump()

    for name in ("socket", "pipe", "device"):
        assert any(f"/{name} is a socket, pipe or device" in told for told in source.entry["warnings"])
        assert any(f"/{name} is a socket, pipe or device" in told for told in case.component().probe().warnings)
    assert case.examine(source).faults == []


def test_a_backup_directory_inside_the_configuration_is_left_out(case: Case) -> None:
    case.backups = case.directory / "backups"
    case.backups.mkdir()
    case.settings.backup_dir = str(case.backups)
    (case.backups / "old set").write_bytes(bytes(100_000))
    source = case.dump()
    with tarfile.open(source.path) as archive:
        assert not any("backups" in name for name in archive.getnames())
    # The old directory is renamed as a whole, and the sets would go with it.
    problems = case.component().plan_restore(source, RestoreOptions()).problems
    assert len(problems) == 1
    assert f"the backup directory {case.backups} lies inside {case.directory}" in problems[0]


# --- files that change


def changing(monkeypatch: pytest.MonkeyPatch, target: Path, times: int) -> list[int]:
    """Whenever `target` was read, write other bytes of the same length into it, up to `times` times."""
    original, happened = filetree._copy, []

    def copy(descriptor: int, content: Any) -> tuple[int, str]:
        result = original(descriptor, content)
        if len(happened) < times and os.fstat(descriptor).st_ino == target.stat().st_ino:
            happened.append(1)
            target.write_bytes(b"version %03d" % len(happened))
        return result

    monkeypatch.setattr(filetree, "_copy", copy)
    return happened


def test_a_file_that_changes_while_it_is_read_is_read_again(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    target = case.directory / "busy.conf"
    target.write_bytes(b"version 000")
    changing(monkeypatch, target, 1)
    source = case.dump()
    with tarfile.open(source.path) as archive:
        assert archive.extractfile(str(target).lstrip("/")).read() == target.read_bytes() == b"version 001"
    assert case.examine(source).faults == []


def test_a_write_that_leaves_the_time_stamp_as_it_was_is_noticed(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within one tick of the kernel's clock two writes leave the same time."""
    target = case.directory / "busy.conf"
    target.write_bytes(b"version 000")
    changing(monkeypatch, target, 1)
    monkeypatch.setattr(filetree, "_unmoved", lambda before, after: True)
    source = case.dump()
    with tarfile.open(source.path) as archive:
        assert archive.extractfile(str(target).lstrip("/")).read() == target.read_bytes() == b"version 001"


def test_a_file_that_never_holds_still_fails_in_a_sentence(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    target = case.directory / "busy.conf"
    target.write_bytes(b"version 000")
    changing(monkeypatch, target, 1000)
    with pytest.raises(BackupError, match=r"busy\.conf changed while it was being read"):
        case.dump()
    assert list(case.backups.iterdir()) == []


def test_a_file_that_vanishes_is_told(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    original = filetree._item

    def item(name: str, path: bytes, *rest: Any) -> Any:
        if path.endswith(b"/agentmem.yml"):
            (case.directory / "certs" / "server.key").unlink(missing_ok=True)
        return original(name, path, *rest)

    monkeypatch.setattr(filetree, "_item", item)
    source = case.dump()
    assert any("server.key was removed while" in told for told in source.entry["warnings"])
    assert case.examine(source).faults == []


# --- examining


def test_the_guides_line_is_printed_with_the_number_of_files(case: Case) -> None:
    source = case.dump()
    listed = subprocess.run(["tar", "-tzf", str(source.path)], capture_output=True, check=True).stdout.splitlines()
    examination = case.examine(source)
    assert examination.line == f"Config backup tar integrity OK ({len(listed) - 1} files)"
    assert examination.faults == []


def small_case(tmp_path: Path) -> tuple[Case, Source]:
    case = Case(tmp_path)
    (case.directory / "a.conf").write_bytes(b"some content\n" * 3)
    (case.directory / "link").symlink_to("a.conf")
    os.setxattr(case.directory / "a.conf", "user.note", b"noted")
    source = case.dump()
    plain = case.backups / "config.tar"
    plain.write_bytes(gzip.decompress(source.path.read_bytes()))
    return case, Source(plain, "none", source.entry)


def told(case: Case, source: Source) -> list[str]:
    try:
        return list(case.examine(source).faults)
    except VerificationError as error:
        return [str(error)]


def test_a_cut_anywhere_is_found(tmp_path: Path) -> None:
    case, source = small_case(tmp_path)
    content = source.path.read_bytes()
    assert told(case, source) == []
    for length in range(0, len(content), 61):
        source.path.write_bytes(content[:length])
        assert told(case, source), f"cut to {length} of {len(content)} bytes"


def test_a_turned_bit_is_found_wherever_it_would_change_what_is_restored(tmp_path: Path) -> None:
    """Examining works without the manifest's digests too, which the verb compares besides."""
    case, source = small_case(tmp_path)
    content = source.path.read_bytes()
    whole = filetree.walk_archive(iter([content]), "archive").entries
    silent = 0
    for place in range(len(content)):
        turned = bytearray(content)
        turned[place] ^= 1 << place % 8
        source.path.write_bytes(turned)
        if not told(case, source):
            silent += 1
            assert filetree.walk_archive(iter([bytes(turned)]), "archive").entries == whole, f"byte {place}"
    assert silent < len(content) / 3  # padding of extended headers, and blanks that nobody reads


def test_a_list_exchanged_together_with_a_file_is_found_by_the_manifest(case: Case) -> None:
    source = case.dump()
    (case.directory / "agentmem.yml").write_text("workers: 5\n")
    other = case.dump("other.tar.gz")
    exchanged = Source(other.path, "gzip", source.entry)
    assert any("not the one that the manifest knows" in fault for fault in case.examine(exchanged).faults)


def test_a_list_of_a_newer_version_says_so(tmp_path: Path) -> None:
    case = Case(tmp_path)
    source = write_tar(case.backups / "x.tar", (member(filetree.LIST_NAME), b'{"version":2}'))
    assert any("newer version" in fault for fault in case.examine(source).faults)


MALICIOUS: dict[str, list[Any]] = {
    "an absolute name": [(member("/etc/agentmem-evil"), b"x")],
    "dots": [(member("config/../../evil"), b"x")],
    "dots at the end": [member("config/..", tarfile.DIRTYPE, mode=0o777)],
    "a link out": [member("config/out", tarfile.SYMTYPE, "/etc")],
    "a relative link out": [member("config/out", tarfile.SYMTYPE, "../../etc")],
    "a link that climbs above the top": [member("config/out", tarfile.SYMTYPE, "../../../../config/x")],
    "writing through a link": [member("config/out", tarfile.SYMTYPE, "."), (member("config/out/evil"), b"x")],
    "writing through a file": [(member("config/file"), b"x"), (member("config/file/evil"), b"x")],
    "a hard link out": [member("config/passwd", tarfile.LNKTYPE, "/etc/passwd")],
    "a hard link out by dots": [member("config/passwd", tarfile.LNKTYPE, "../../etc/passwd")],
    "a hard link to a link": [member("config/a", tarfile.SYMTYPE, "b"), member("config/b", tarfile.LNKTYPE, "config/a")],
    "a device": [member("config/null", tarfile.CHRTYPE)],
    "a block device": [member("config/disk", tarfile.BLKTYPE)],
    "a pipe": [member("config/pipe", tarfile.FIFOTYPE)],
    "a name twice": [(member("config/file"), b"x"), (member("config/file"), b"y")],
    "a name twice, once with a dot": [(member("./file"), b"x"), (member("file"), b"y")],
    "a file replaced by a link": [(member("config/file"), b"x"), member("config/file", tarfile.SYMTYPE, "file2")],
    "an empty part": [(member("config//file"), b"x")],
}


@pytest.mark.parametrize("members", MALICIOUS.values(), ids=MALICIOUS.keys())
def test_a_malicious_archive_is_refused_and_touches_nothing(case: Case, members: list[Any]) -> None:
    source = write_tar(case.backups / "evil.tar", member("config", tarfile.DIRTYPE, mode=0o755), *members)
    before = facts_of(case.base)

    assert case.examine(source).faults
    assert case.component().plan_restore(source, RestoreOptions()).problems
    restoration = case.component().restoration(source, RestoreOptions())
    with pytest.raises(VerificationError):
        restoration.prepare()
    restoration.abort()
    restoration.close()

    assert facts_of(case.base) == before


def test_a_stage_writes_nothing_through_a_link_even_when_asked(tmp_path: Path) -> None:
    """The second line of defence, should a member ever pass the first."""
    outside = tmp_path / "outside"
    outside.mkdir()
    stage = filetree.Stage(os.fsencode(tmp_path / "stage"))
    stage.take(member("x", tarfile.DIRTYPE), "", "", iter(()))
    stage.take(member("x", tarfile.SYMTYPE, str(outside)), "out", "", iter(()))
    for info in (member("x"), member("x", tarfile.DIRTYPE), member("x", tarfile.SYMTYPE, "y")):
        with pytest.raises(BackupError):
            stage.take(info, "out/evil", "", iter([b"x"]))
    with pytest.raises(BackupError):
        stage.take(member("x"), "out", "", iter([b"x"]))
    assert list(outside.iterdir()) == []


def test_links_that_lead_out_are_ours_to_bring_back(case: Case) -> None:
    """They are part of a configuration; they are made, and never followed."""
    (case.directory / "system.pem").symlink_to("/etc/ssl/certs/ca-certificates.crt")
    (case.directory / "up").symlink_to("../../../..")
    source = case.dump()
    before = facts_of(case.directory)
    shutil.rmtree(case.directory)
    assert case.examine(source).faults == []
    case.restore(source)
    assert facts_of(case.directory) == before


# --- archives of the guide's own script


@pytest.mark.parametrize("style", ["directory", "within", "absolute", "loose"])
def test_legacy_archives_are_walked_and_restored(case: Case, style: str) -> None:
    (case.directory / os.fsdecode(b"not \xff utf-8 \xe4.conf")).unlink()
    before = capture_config(case.directory)
    path = case.backups / "config_20250103_120000.tar.gz"
    names = sorted(one.name for one in case.directory.iterdir())
    words = {
        "directory": ["-C", str(case.directory.parent), "config"],
        "within": ["-C", str(case.directory), "."],
        "absolute": [str(case.directory)],
        "loose": ["-C", str(case.directory), "--", *names],
    }[style]
    subprocess.run(["tar", "--xattrs", "--xattrs-include=*", "-czf", str(path), *words], check=True, capture_output=True)
    source = Source(path, "gzip")
    listed = subprocess.run(["tar", "-tzf", str(path)], capture_output=True, check=True).stdout.splitlines()
    assert case.examine(source).line == f"Config backup tar integrity OK ({len(listed)} files)"
    assert case.examine(source).faults == []
    (case.directory / "agentmem.yml").write_text("changed")
    (case.directory / "extra").write_text("extra")

    restoration = case.restore(source)

    assert capture_config(case.directory) == before
    assert any("fingerprint" in reason for reason in restoration.compare().not_compared)


# --- mounts


@contextmanager
def mounted(*words: str | Path) -> Iterator[None]:
    target = str(words[-1])
    done = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no mount may be made here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", target], check=True)


def change(case: Case) -> dict[str, Any]:
    (case.directory / "agentmem.yml").write_text("changed")
    (case.directory / "extra").mkdir()
    (case.directory / "extra" / "file").write_text("new")
    (case.directory / "certs" / "server.key").unlink()
    shutil.rmtree(case.directory / "conf.d")
    (case.directory / "conf.d").write_text("a file where a directory was")
    (case.directory / "dangling").unlink()
    (case.directory / "dangling").mkdir()
    return facts_of(case.directory)


def test_a_directory_that_is_a_mount_point_is_restored_file_by_file(case: Case) -> None:
    before = facts_of(case.directory)
    source = case.dump()
    with mounted("-t", "tmpfs", "tmpfs", case.directory):
        assert list(case.directory.iterdir()) == []
        data.fill_config(case.directory, seed=2)
        change(case)
        plan = case.component().plan_restore(source, RestoreOptions())
        assert "file by file" in plan.lines[0]
        restoration = case.restore(source)
        after = facts_of(case.directory)
        assert os.path.ismount(case.directory)
        assert case.left_behind() == []
        [saved] = (case.backups / ".state" / "previous").rglob("*.tar")
        assert str(saved) in restoration.state()
    assert after == before


@pytest.mark.parametrize("inner", [False, True], ids=["the directory", "one within it"])
def test_a_mount_point_that_is_read_only_is_refused_by_the_plan(case: Case, inner: bool) -> None:
    place = case.directory / "empty directory" if inner else case.directory
    source = case.dump()
    with mounted("-t", "tmpfs", "-o", "mode=755", "tmpfs", place):
        (place / "old").write_text("old")
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        (problem,) = case.component().plan_restore(source, RestoreOptions()).problems
        assert problem.startswith(f"{place} cannot be changed: mount it writable")
        assert (place / "old").read_text() == "old" and case.left_behind() == []


def test_a_directory_that_is_immutable_is_refused_by_the_plan(case: Case) -> None:
    source = case.dump()
    before = facts_of(case.directory)
    if subprocess.run(["chattr", "+i", case.directory], capture_output=True, check=False).returncode:
        pytest.skip("no file can be made immutable here")
    try:
        (problem,) = case.component().plan_restore(source, RestoreOptions()).problems
        assert "chattr -i" in problem
        # one that becomes so after the plan: nothing is lost, and nothing is called new that may be old
        restoration = case.component().restoration(source, RestoreOptions())
        restoration.prepare()
        with pytest.raises(BackupError, match="not permitted"):
            restoration.commit()
        assert "may be new in part, its old files lie in" in restoration.state()
        subprocess.run(["chattr", "-i", case.directory], check=True)
        restoration.abort()
        restoration.close()
        assert f"{case.directory} is as it was" in restoration.state()
    finally:
        subprocess.run(["chattr", "-i", case.directory], check=True)
    assert facts_of(case.directory) == before and case.left_behind() == []


def test_the_files_in_a_bind_mount_elsewhere_are_the_restored_ones(case: Case) -> None:
    """After a directory rename a container's bind mount still shows the old files (field notes)."""
    before = facts_of(case.directory)
    source = case.dump()
    container = case.base / "container"
    container.mkdir()
    with mounted("--bind", case.directory, container):
        change(case)
        restoration = case.restore(source)
        assert facts_of(container) == before
        restoration.abort()
    assert facts_of(case.directory) != before


def test_a_single_file_mounted_into_a_container_shows_the_restored_content(case: Case) -> None:
    source = case.dump()
    before = facts_of(case.directory)
    seen = case.base / "seen.env"
    seen.touch()
    with mounted("--bind", case.directory / ".env", seen):
        wanted = (case.directory / ".env").read_text()
        (case.directory / ".env").write_text("DB_HOST=changed\n")
        assert seen.read_text() == "DB_HOST=changed\n"
        case.restore(source)
        assert seen.read_text() == wanted
    assert facts_of(case.directory) == before


def test_a_mount_point_within_the_directory_stays_mounted(case: Case) -> None:
    inner = case.directory / "empty directory"
    with mounted("-t", "tmpfs", "-o", "mode=755", "tmpfs", inner):
        (inner / "inside").write_text("x")
        os.utime(inner, ns=(10**18, 10**18))
        source = case.dump()
        before = facts_of(case.directory)
        (inner / "inside").write_text("changed")
        (inner / "more").write_text("x")
        change(case)
        case.restore(source)
        assert os.path.ismount(inner)
        assert facts_of(case.directory) == before


def test_a_bind_mount_in_a_container_of_its_own_is_seen(case: Case) -> None:
    """A container's mounts do not show in our own mountinfo."""
    elsewhere = case.base / "elsewhere"
    elsewhere.mkdir()
    script = 'mount --bind "$1" "$2" && echo mounted && cat'
    words = ["unshare", "-m", "sh", "-c", script, "sh", str(case.directory / "certs"), str(elsewhere)]
    assert filetree.pinned_paths(os.fsencode(case.directory)) == set()
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as container:
        if container.stdout.readline() != b"mounted\n":
            pytest.skip("no mount namespace may be made here")
        pinned = filetree.pinned_paths(os.fsencode(case.directory))
        container.stdin.close()
    assert pinned == {os.fsencode(case.directory / "certs")}


def test_a_rename_that_the_kernel_refuses_turns_into_file_by_file(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    before = facts_of(case.directory)
    source = case.dump()
    with mounted("--bind", case.directory, case.directory):
        change(case)
        monkeypatch.setattr(filetree, "pinned_paths", lambda path: set())
        case.restore(source)
    assert any("cannot be renamed" in told for told in case.reporter.warnings)
    assert facts_of(case.directory) == before


# --- going back


@pytest.mark.parametrize("pinned", [False, True], ids=["renamed", "file by file"])
def test_abort_after_the_commit_brings_the_old_files_back(case: Case, monkeypatch: pytest.MonkeyPatch, pinned: bool) -> None:
    source = case.dump()
    old = change(case)
    if pinned:
        monkeypatch.setattr(filetree, "pinned_paths", lambda path: {path})
    restoration = case.component().restoration(source, RestoreOptions())
    restoration.prepare()
    restoration.commit()
    assert facts_of(case.directory) != old
    assert "is new" in restoration.state()
    restoration.abort()
    assert "as it was" in restoration.state()
    restoration.close()
    assert facts_of(case.directory) == old
    assert case.left_behind() == []


def test_abort_before_the_commit_leaves_no_trace(case: Case) -> None:
    source = case.dump()
    before = facts_of(case.base)
    restoration = case.component().restoration(source, RestoreOptions())
    restoration.prepare()
    restoration.abort()
    restoration.close()
    os.utime(case.directory.parent, ns=(before["times"]["opt"],) * 2)
    assert facts_of(case.base) == before


def test_abort_removes_what_was_not_there_before(case: Case) -> None:
    single = case.base / "ca.pem"
    single.write_text("certificate")
    case.settings.config.extra_paths = [str(single)]
    source = case.dump()
    shutil.rmtree(case.directory)
    single.unlink()
    restoration = case.component().restoration(source, RestoreOptions())
    restoration.prepare()
    restoration.commit()
    assert single.exists()
    assert case.directory.exists()
    restoration.abort()
    restoration.close()
    assert not single.exists()
    assert not case.directory.exists()
    assert case.left_behind() == []


STEPS = ("rename", "mkdir", "unlink", "rmdir", "symlink", "link", "fchmod", "fsync")


def killed_at(case: Case, source: Source, number: int, log: Path) -> bool:
    """Run a restore in a child that is killed before its `number`-th change to the disk; False where it ended before."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        done = [0]

        def counted(original: Callable[..., Any]) -> Callable[..., Any]:
            def call(*words: Any, **more: Any) -> Any:
                done[0] += 1
                if done[0] == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*words, **more)

            return call

        with contextlib.suppress(BaseException):
            for name in STEPS:
                setattr(os, name, counted(getattr(os, name)))
            written = journal.Journal(log)
            context = Context(case.settings, case.reporter, case.work, written.append)
            restoration = ConfigComponent(context).restoration(source, RestoreOptions())
            restoration.prepare()
            restoration.commit()
            restoration.complete()
            restoration.close()
            os._exit(0)
        os._exit(1)
    __, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("pinned", [False, True], ids=["renamed", "file by file"])
def test_a_restore_killed_before_any_step_is_finished_or_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pinned: bool
) -> None:
    case = Case(tmp_path)
    for name, text in (("a.conf", "a"), ("sub/b.conf", "b"), ("c.conf", "c")):
        (case.directory / name).parent.mkdir(exist_ok=True)
        (case.directory / name).write_text(text)
    (case.directory / "link").symlink_to("a.conf")
    os.link(case.directory / "a.conf", case.directory / "sub" / "hard")
    new = facts_of(case.directory)
    source = case.dump()
    if pinned:
        monkeypatch.setattr(filetree, "pinned_paths", lambda path: {path})
    ends = set()
    for number in range(1, 400):
        for path in case.directory.parent.iterdir():
            shutil.rmtree(path)
        (case.directory / "sub").mkdir(parents=True)
        (case.directory / "a.conf").write_text("old a")
        (case.directory / "sub" / "old").write_text("old")
        (case.directory / "link").mkdir()
        old = facts_of(case.directory)
        log = case.base / f"journal {number}"

        killed = killed_at(case, source, number, log)
        for __ in range(2):  # a clean-up may be repeated
            for step in reversed(journal.read(log)):
                if "component" in step:
                    case.component().clean_up(step)

        now = facts_of(case.directory)
        assert now in (old, new), f"step {number}"
        assert case.left_behind() == [], f"step {number}"
        ends.add("old" if now == old else "new")
        if not killed:
            break
    assert not killed
    assert number > 15
    assert ends == {"old", "new"}


# --- what comes back still opens the stores


def test_the_plan_names_the_variables_that_would_change_and_never_their_values(case: Case) -> None:
    env = case.directory / ".env"
    env.write_text("DB_HOST=db\nexport DB_PASSWORD='old secret'\nREDIS_PASSWORD=same\nSECRET_KEY=x\n# DB_USER=no\n")
    (case.directory / "qdrant.env").write_text('QDRANT_API_KEY="archived key"\n')
    source = case.dump()
    named = case.component().stores_named(source)
    assert named == {
        "DB_HOST": "db",
        "DB_PASSWORD": "old secret",
        "REDIS_PASSWORD": "same",
        "QDRANT_API_KEY": "archived key",
    }
    assert not any("other values" in told for told in case.component().plan_restore(source, RestoreOptions()).warnings)

    env.write_text("DB_HOST=db\nDB_PASSWORD='new secret'\nREDIS_PASSWORD=same\n")
    (case.directory / "qdrant.env").unlink()
    case.settings.qdrant.api_key = "present key"
    case.settings.sources["qdrant.api_key"] = "QDRANT_API_KEY"
    [warning] = case.component().plan_restore(source, RestoreOptions()).warnings

    assert "DB_PASSWORD, QDRANT_API_KEY" in warning
    assert not any(value in warning for value in ("secret", "same", "archived", "present key"))


def test_the_plan_touches_nothing_and_says_what_happens_to_the_old_files(case: Case) -> None:
    source = case.dump()
    before = facts_of(case.base)
    plan = case.component().plan_restore(source, RestoreOptions())
    assert plan.problems == []
    assert "config.before_" in plan.lines[0]
    assert facts_of(case.base) == before
    shutil.rmtree(case.directory)
    assert "made anew" in case.component().plan_restore(source, RestoreOptions()).lines[0]


# --- one file


def test_one_file_is_extracted_by_any_of_its_names(case: Case) -> None:
    source = case.dump()
    wanted = (case.directory / "certs" / "server.key").read_bytes()
    for number, what in enumerate(
        ["certs/server.key", str(case.directory / "certs/server.key"), str(case.directory / "certs/server.key").lstrip("/")]
    ):
        target = case.base / f"out {number}"
        told = case.component().extract(source, what, target, "")
        assert target.read_bytes() == wanted
        assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE((case.directory / "certs" / "server.key").stat().st_mode)
        assert str(target) in told
    hard = case.base / "hard"
    case.component().extract(source, "conf.d/hard link.yml", hard, "")
    assert hard.read_bytes() == (case.directory / "agentmem.yml").read_bytes()


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("not/there", "there is no file"),
        ("certs", "is a directory"),
        ("current.yml", "is a link to agentmem.yml"),
        ("../../etc/passwd", "there is no file"),
    ],
)
def test_what_cannot_be_extracted_is_said(case: Case, what: str, sentence: str) -> None:
    source = case.dump()
    with pytest.raises(UsageError, match=sentence):
        case.component().extract(source, what, case.base / "out", "")
    assert not (case.base / "out").exists()


def test_extracting_never_overwrites(case: Case) -> None:
    source = case.dump()
    (case.base / "out").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        case.component().extract(source, ".env", case.base / "out", "")
    with pytest.raises(UsageError, match="csv"):
        case.component().extract(source, ".env", case.base / "out 2", "csv")
    assert (case.base / "out").read_text() == "mine"
