# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What role host does on the controller: the engine's wheel, and the settings that are checked before a host is touched."""

from __future__ import annotations

import getpass
import grp
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest
import tomllib

CHECKOUT = Path(__file__).resolve().parents[2]
BUNDLE = CHECKOUT / "roles" / "host" / "files" / "bundle.py"
LOOK = CHECKOUT / "roles" / "host" / "files" / "look.sh"
PROBE = CHECKOUT / "roles" / "host" / "files" / "probe.sh"


def bundle(place: Path, **given: Any) -> subprocess.CompletedProcess[str]:
    place.mkdir(exist_ok=True)
    told = json.dumps({"engine": "", "extras": [], "wheelhouse": "", "settings": {}, **given})
    command = [sys.executable, str(BUNDLE), str(CHECKOUT), str(place)]
    return subprocess.run(command, input=told, capture_output=True, text=True, check=False)


def packed(place: Path, **given: Any) -> dict[str, str]:
    done = bundle(place, **given)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def wheel_in(path: str) -> zipfile.ZipFile:
    with tarfile.open(path) as archive:
        [name] = [one for one in archive.getnames() if one.startswith("agentmem_backup-")]
        inner = archive.extractfile(name)
        assert inner is not None
        return zipfile.ZipFile(io.BytesIO(inner.read()))


def test_the_same_engine_is_the_same_wheel(tmp_path: Path) -> None:
    one, two = packed(tmp_path / "one"), packed(tmp_path / "two")
    assert one["digest"] == two["digest"]
    assert Path(one["path"]).read_bytes() == Path(two["path"]).read_bytes()
    assert packed(tmp_path / "one", extras=["points"])["digest"] != one["digest"]


def test_the_wheel_is_the_engine_with_the_libraries_that_pyproject_names(tmp_path: Path) -> None:
    wheel = wheel_in(packed(tmp_path)["path"])
    engine = CHECKOUT / "plugins" / "module_utils" / "_engine"
    ours = {f"agentmem_backup/{path.relative_to(engine)}" for path in engine.rglob("*.py")}
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == ours
    [info] = {name.partition("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    metadata = Parser().parsestr(wheel.read(f"{info}/METADATA").decode())
    told = metadata.get_all("Requires-Dist") or []
    assert told[: len(project["dependencies"])] == project["dependencies"]
    assert any("qdrant-edge-py" in one and "extra == 'points'" in one for one in told)
    scripts = wheel.read(f"{info}/entry_points.txt").decode()
    assert all(f"{name} = {target}\n" in scripts for name, target in project["scripts"].items())


def test_the_wheelhouse_goes_along(tmp_path: Path) -> None:
    house = tmp_path / "wheels"
    house.mkdir()
    (house / "x-1-py3-none-any.whl").write_bytes(b"x")
    (house / "README").touch()
    with tarfile.open(packed(tmp_path / "place", wheelhouse=str(house))["path"]) as archive:
        assert sorted(archive.getnames())[1:] == ["x-1-py3-none-any.whl"]


def test_another_engine_comes_from_the_index(tmp_path: Path) -> None:
    told = packed(tmp_path, engine="agentmem-backup==1.2", extras=["points", "notify"])
    assert told["requirement"] == "agentmem-backup[notify,points]==1.2"
    with tarfile.open(told["path"]) as archive:
        assert archive.getnames() == []


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"settings": {"default": {"retention_day": 3}}}, "host_settings has an unknown setting 'retention_day': did you mean"),
        ({"settings": {"default": {"retention_days": "x"}}}, "retention_days in host_settings must be a whole number, not 'x'"),
        ({"settings": {"blue": {"redis": {"tls": "maybe"}}}}, "redis.tls in host_instances.blue.settings must be true or false"),
        ({"settings": {"a/b": {}}}, "an instance cannot be named 'a/b'"),
        (
            {"settings": {"default": {"qdrant.api_key": "x"}}},
            "qdrant.api_key in host_settings is secret: it belongs into host_secrets",
        ),
        ({"wheelhouse": "/nowhere"}, "host_wheelhouse: /nowhere is no directory on the controller"),
        ({"wheelhouse": str(CHECKOUT / "docs")}, "host_wheelhouse: there is no wheel in"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence_before_a_host_is_touched(
    tmp_path: Path, given: dict[str, Any], sentence: str
) -> None:
    done = bundle(tmp_path, **given)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(sentence)
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_probe_tells_what_is_missing_and_nothing_else(tmp_path: Path) -> None:
    words = ["sh", str(PROBE), sys.executable, "15", "false", "no-such-user", str(tmp_path), str(tmp_path / "it's not there")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    assert done.stderr == ""
    assert told["python"] == sys.executable
    assert told["absent"] == [str(tmp_path / "it's not there")]
    assert (told["root"], told["user"]) == (os.geteuid() == 0, False)


def test_a_look_tells_what_is_there_in_lines_that_the_roles_compare(tmp_path: Path) -> None:
    (tmp_path / "a directory").mkdir(mode=0o750)
    for name in ("a file", "backup.log", "gone"):
        (tmp_path / name).write_text("x")
        (tmp_path / name).chmod(0o640)
    (tmp_path / "gone").unlink()
    (tmp_path / "a link").symlink_to("gone")
    paths = [str(tmp_path / name) for name in ("a directory", "a file", "backup.log", "gone", "a link")]
    script = LOOK.read_text() + 'look "$@"\n'
    done = subprocess.run(["sh", "-euc", script, "sh", *paths], capture_output=True, text=True, check=True)
    directory, file, log, __, link = paths
    owner = f"{getpass.getuser()}:{grp.getgrgid(os.getgid()).gr_name}"
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        f"directory {owner} 750 {directory}",
        f"file {owner} 640 {hashlib.sha256(b'x').hexdigest()} {file}",
        f"file {owner} 640 - {log}",
        f"link {link} -> gone",
    ]
