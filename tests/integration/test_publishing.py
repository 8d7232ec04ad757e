# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes to Galaxy: the artifact, its documentation, its changelog, and what an execution environment takes from it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

from tests.support.collection import ansible_environment, build, install, tool
from tests.support.servers import CHECKOUT


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The collection as it would be published."""
    return build(tmp_path_factory.mktemp("artifact"))


@pytest.fixture(scope="module")
def installed(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The collection's directory where it was installed from the artifact."""
    return install(artifact, tmp_path_factory.mktemp("installed"))


def modules(collection: Path) -> list[str]:
    return sorted(path.stem for path in (collection / "plugins" / "modules").glob("*.py"))


def test_the_artifact_has_what_belongs_to_it_and_nothing_else(artifact: Path) -> None:
    with tarfile.open(artifact) as archive:
        names = {Path(member.name).parts[0] for member in archive if member.isfile()}
    assert names == {
        *("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md", "SECURITY.md", "FILES.json", "MANIFEST.json"),
        *("bindep.txt", "pyproject.toml", "requirements.txt"),
        *("changelogs", "docs", "meta", "playbooks", "plugins", "roles"),
    }
    assert artifact.stat().st_size < 1_000_000


def test_the_installed_collection_is_the_checkout(installed: Path) -> None:
    for tree in ("plugins", "playbooks", "meta", "roles"):
        ours = {path.relative_to(CHECKOUT) for path in (CHECKOUT / tree).rglob("*") if path.is_file() and path.suffix != ".pyc"}
        assert {path.relative_to(installed) for path in (installed / tree).rglob("*") if path.is_file()} == ours


def test_the_action_group_has_every_module() -> None:
    runtime = yaml.safe_load((CHECKOUT / "meta" / "runtime.yml").read_text())
    # Those that run on the controller share no options with the hosts'; that of backup_set_create is only a short cut.
    actions = {path.stem for path in (CHECKOUT / "plugins" / "action").glob("*.py")} - {"backup_set_create"}
    assert runtime["action_groups"]["all"] == [name for name in modules(CHECKOUT) if name not in actions] != []


def test_no_result_can_be_mistaken_for_a_running_job() -> None:
    """async_status takes a result with `started` and without `finished` for one that is still to come, for ever."""
    for name in modules(CHECKOUT):
        text = (CHECKOUT / "plugins" / "modules" / f"{name}.py").read_text()
        returned = yaml.safe_load(text.partition('RETURN = r"""')[2].partition('"""')[0])
        assert returned and not {"started", "finished", "ansible_job_id", "results_file"} & set(returned), name


def test_requirements_are_those_of_the_package() -> None:
    lines = (CHECKOUT / "requirements.txt").read_text().splitlines()
    declared = (CHECKOUT / "pyproject.toml").read_text().partition("\ndependencies = [")[2].partition("\n]")[0]
    wanted = re.findall(r'^  "(.*)",$', declared, re.MULTILINE)
    assert [line for line in lines if not line.startswith("#")] == wanted != []


def test_one_version_everywhere() -> None:
    galaxy = yaml.safe_load((CHECKOUT / "galaxy.yml").read_text())
    engine = (CHECKOUT / "plugins" / "module_utils" / "_engine" / "__init__.py").read_text()
    assert f'__version__ = "{galaxy["version"]}"' in engine
    released = yaml.safe_load((CHECKOUT / "changelogs" / "changelog.yaml").read_text())["releases"]
    assert galaxy["version"] in released


def test_galaxy_would_import_it(artifact: Path) -> None:
    # ansible-lint is script/test's own, on the same files and with all its rules.
    environment = {**ansible_environment(artifact.parent), "GALAXY_IMPORTER_RUN_ANSIBLE_LINT": "false"}
    printed = tool("python", "-m", "galaxy_importer.main", artifact, cwd=artifact.parent, env=environment)
    assert "Importer processing completed successfully" in printed
    complaints = [line for line in printed.splitlines() if re.search(r"\b(ERROR|WARNING)\b", line)]
    assert complaints == []


def test_the_changelog_is_what_its_fragments_say(tmp_path: Path) -> None:
    shutil.copytree(CHECKOUT / "changelogs", tmp_path / "changelogs")
    shutil.copy(CHECKOUT / "galaxy.yml", tmp_path)
    tool("antsibull-changelog", "lint", cwd=tmp_path)
    tool("antsibull-changelog", "generate", cwd=tmp_path)
    assert (tmp_path / "CHANGELOG.md").read_text() == (CHECKOUT / "CHANGELOG.md").read_text()


def test_every_module_has_a_page_and_sphinx_has_nothing_to_say(installed: Path, tmp_path: Path) -> None:
    environment = ansible_environment(tmp_path, installed.parents[2])
    command = ("antsibull-docs", "collection", "--use-current", "--fail-on-error", "--cleanup", "everything")
    pages = tmp_path / "rst"
    pages.mkdir()
    printed = tool(*command, "--squash-hierarchy", "--dest-dir", pages, "agentmem.backup", cwd=tmp_path, env=environment)
    assert "WARNING" not in printed
    assert modules(CHECKOUT) == sorted(path.stem.removesuffix("_module") for path in pages.glob("*_module.rst"))
    (tmp_path / "conf.py").write_text('extensions = ["sphinx_antsibull_ext"]\nhtml_theme = "basic"\n')
    (tmp_path / "index.rst").write_text("Collection\n==========\n\n.. toctree::\n   :glob:\n\n   rst/*\n")
    options = ("-W", "--keep-going", "-q", "-j", "2", "-D", "suppress_warnings=ref.ref")  # links into Ansible's own pages
    printed = tool("python", "-m", "sphinx", *options, tmp_path, tmp_path / "html", cwd=tmp_path, env=environment)
    assert printed == ""
    for module in modules(CHECKOUT):
        page = (tmp_path / "html" / "rst" / f"{module}_module.html").read_text()
        assert "Synopsis" in page and "Examples" in page and "Return Values" in page, module


def test_an_execution_environment_takes_its_libraries_and_programs(artifact: Path, installed: Path, tmp_path: Path) -> None:
    definition = tmp_path / "execution-environment.yml"
    definition.write_text(
        yaml.safe_dump(
            {
                "version": 3,
                "images": {"base_image": {"name": "registry.example/python:3.12"}},
                "dependencies": {
                    "ansible_core": {"package_pip": "ansible-core"},
                    "ansible_runner": {"package_pip": "ansible-runner"},
                    "galaxy": {"collections": [{"name": str(artifact), "type": "file"}]},
                },
            }
        )
    )
    context = tmp_path / "context"
    tool(
        "ansible-builder",
        "create",
        "--file",
        definition,
        "--context",
        context,
        "--output-filename",
        "Containerfile",
        cwd=tmp_path,
    )
    assert str(artifact) in (context / "_build" / "requirements.yml").read_text()
    assert "registry.example/python:3.12" in (context / "Containerfile").read_text()
    # What the build does inside, before it has a container: ask each installed collection what it needs.
    told = yaml.safe_load(tool("ansible-builder", "introspect", installed.parents[2], cwd=tmp_path).split("---")[-1])
    assert any("psycopg" in line and "agentmem.backup" in line for line in told["python"])
    assert any("redis" in line for line in told["system"])


def test_role_host_installs_from_the_artifact_the_same_engine(installed: Path, tmp_path: Path) -> None:
    told = []
    for collection in (installed, CHECKOUT):
        given = json.dumps({"engine": "", "extras": [], "wheelhouse": "", "settings": {}})
        script = collection / "roles" / "host" / "files" / "bundle.py"
        command = [sys.executable, script, collection, tmp_path]
        done = subprocess.run(command, input=given, capture_output=True, text=True, check=True)
        told.append(json.loads(done.stdout)["digest"])
    assert told[0] == told[1]
