# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration: backed up, destroyed and restored; judged by the independent comparer, tar and the kernel."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from agentmem_backup.components.base import COUNTS, Context, RestoreOptions, Source
from agentmem_backup.components.config import ConfigComponent
from agentmem_backup.pipeline import Writer
from agentmem_backup.progress import Collecting
from agentmem_backup.settings import Settings

from tests.support import data
from tests.support.compare import capture_config

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
        restoration.prepare()
        checked = restoration.check()
        assert checked.equal, checked
        restoration.commit()
        restoration.complete()
        compared = restoration.compare()
        assert compared.equal, compared
        restoration.close()
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
