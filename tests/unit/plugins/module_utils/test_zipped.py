# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What Ansible sends as a zip is compiled once, and is what it was otherwise."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import zipfile
from pathlib import Path

from ansible_collections.agentmem.backup.plugins.module_utils import _zipped

PROGRAM = """
import builtins, collections, importlib.util, json, sys, traceback
place, ours, once = sys.argv[1:]
specification = importlib.util.spec_from_file_location("ours", ours)
module = importlib.util.module_from_spec(specification)
specification.loader.exec_module(module)
sys.path.insert(0, place)
import package
counts, original = collections.Counter(), builtins.compile
def counting(source, name, *more, **given):
    counts[name] += name.startswith(place)
    return original(source, name, *more, **given)
builtins.compile = counting
if once == "once":
    module.compile_once()
    module.compile_once()
import package.inner.leaf
try:
    package.inner.leaf.fail()
except ValueError:
    said = traceback.format_exc()
files = [one.__file__ for one in (package, package.inner, package.inner.leaf)]
print(json.dumps([sorted(set(counts.values()) - {0}), files, said, package.inner.__path__, len(sys.path_hooks)]))
"""


def run(place: Path, once: str) -> list:
    command = [sys.executable, "-S", "-c", PROGRAM, str(place), _zipped.__file__, once]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_each_file_is_compiled_once_and_lies_where_it_lay(tmp_path: Path) -> None:
    place = tmp_path / "payload.zip"
    with zipfile.ZipFile(place, "w") as archive:
        archive.writestr("package/__init__.py", "")
        archive.writestr("package/inner/__init__.py", "")
        archive.writestr("package/inner/leaf.py", "def fail():\n    raise ValueError\n")
    before, after = run(place, "twice"), run(place, "once")
    assert before[0] == [2], "Python itself compiles once now: _zipped.py can go"
    assert after[0] == [1]
    assert after[1:4] == before[1:4]
    assert after[4] == before[4] + 1


def test_it_parses_on_the_oldest_python_of_a_host() -> None:
    ast.parse(Path(_zipped.__file__).read_text(), feature_version=(3, 8))
