# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every shell block of README.md and docs/operations.md is run, in order, against the throwaway stores.

`bash` blocks must end with 0. In `console` blocks the commands behind `$ ` are run and what they print is held against
the block: sizes, digests, IDs, numbers and `…` stand for any, everything else is compared. `cron` lines are run as they
stand, `yaml` blocks that name the configuration file are loaded, others are written to the file that they name.
What cannot be run is in NOT_RUN, with the reason.
"""

from __future__ import annotations

import os
import pty
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from agentmem_backup import settings

from tests.docs.pages import ANY, CHECKOUT, Block, blocks
from tests.support.command import BIN, environment
from tests.support.endpoints import Sshd
from tests.support.listeners import mail_server
from tests.support.servers import Stores

EXAMPLE = "20250103_120000"
NOT_RUN = {
    "script/demo    # four real stores are backed up, verified, destroyed, brought back, and proven equal": (
        "has a test of its own; here it must exist"
    ),
    "script/test    # lint, types and the tests, against real servers and a sample of real hosts; --all: everything": (
        "runs this very test; here it must exist"
    ),
    "docker run -d --name qdrant-for-tests -p 127.0.0.1:6333:6333 qdrant/qdrant:v1.18.3": "needs a container engine",
    "QDRANT_TEST_URL=http://127.0.0.1:6333 script/demo": "needs that container",
    "ansible-galaxy collection install git+https://github.com/agentmem/agentmem.backup": "from the network; the checkout is it",
    "python3 -m venv /opt/agentmem-backup/venv": "installs, from the network: script/bootstrap does the same",
    "/opt/agentmem-backup/venv/bin/pip install '.[points]'": "installs, from the network: script/bootstrap does the same",
    **dict.fromkeys(
        [
            "ansible-playbook -i inventory agentmem.backup.install -b --check --diff   # works on bare hosts, too",
            "ansible-playbook -i inventory agentmem.backup.install -b",
            "ansible-playbook -i inventory agentmem.backup.install -b --limit web-3.example",
            "ansible-playbook -i inventory agentmem.backup.backup -b -e agentmem_backup_hosts=agentmem",
            "ansible-playbook -i inventory agentmem.backup.verify -b -e agentmem_backup_hosts=agentmem",
            "ansible-playbook -i inventory agentmem.backup.offsite -b -e agentmem_backup_hosts=agentmem",
            "ansible-playbook -i inventory agentmem.backup.report -b -e agentmem_backup_hosts=agentmem",
        ],
        "needs a fleet: extensions/molecule/fleet has one, and runs them",
    ),
}
LANGUAGES = {"bash", "console", "cron", "yaml", "sql", ""}
_VARYING = re.compile(
    rf"(?P<id>{EXAMPLE})|(?P<any>{ANY})|(?P<digest>\b[0-9a-f]{{12}}\b)|(?P<where>localhost:\d+)"
    r"|(?P<age>\b\d+ (?:s|min|h|d)\b)|(?P<size>\b\d+(?:\.\d+)*[KMGT]?\b)|(?P<space> +)"
)


def _pattern(expected: str, known: str) -> re.Pattern[str]:
    """An expected line as a pattern: what differs from run to run may be anything of its kind."""
    ways = {
        "id": r"\d{8}_\d{6}",
        "any": r".*",
        "digest": r"[0-9a-f]{64}",
        "where": r"\S+:\d+",
        "age": r"\d+ (?:s|min|h|d)",
        "size": r"\d+(?:\.\d+)*[KMGT]?",
        "space": " +",
    }
    text, end = "", 0
    for match in _VARYING.finditer(expected):
        text += re.escape(expected[end : match.start()]) + ways[str(match.lastgroup)]
        end = match.end()
    return re.compile(text.replace(re.escape(EXAMPLE), known) + re.escape(expected[end:]))


def unlike(expected: list[str], printed: list[str]) -> list[str]:
    """How what was printed differs from the block. Lines may change places, for stores are dumped side by side."""
    left, faults = list(printed), []
    for line in (one for one in expected if one.strip() and one != ANY):
        match = next((one for one in left if _pattern(line, EXAMPLE).fullmatch(one)), None)
        if match is None:
            faults.append(f"not printed: {line}")
        else:
            left.remove(match)
    if ANY not in expected:
        faults += [f"printed and not in the block: {line}" for line in left if line.strip()]
    return faults


@dataclass
class Host:
    """A host with AgentMem's stores, on which the documentation's commands are run as they stand."""

    stores: Stores
    home: Path
    mail_port: int
    sshd: Sshd
    env: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        programs = self.home / "bin"
        programs.mkdir()
        # There is no application to ask after a restore, and nothing of the machine's own must be asked instead.
        shim = f"#!/bin/sh\nreal={shlex.quote(str(BIN / 'agentmem-backup'))}\n"
        # The receiving host of the documentation is one of the test's.
        elsewhere = self.home / "elsewhere.yml"
        elsewhere.write_text(yaml.safe_dump({"offsite": {"host": "web-1", "targets": {"backup_host": self.sshd.target()}}}))
        shim += 'case "$1" in restore) exec "$real" "$@" --set health_url= ;;\n'
        shim += f'sync) exec "$real" "$@" --config {elsewhere} ;;\n'
        shim += f'notify) exec "$real" "$@" --set notify.smtp_port={self.mail_port} ;; *) exec "$real" "$@" ;; esac\n'
        (programs / "agentmem-backup").write_text(shim)
        (programs / "agentmem-backup").chmod(0o755)
        collections = self.home / "collections"
        (collections / "ansible_collections" / "agentmem").mkdir(parents=True)
        (collections / "ansible_collections" / "agentmem" / "backup").symlink_to(CHECKOUT)
        ours = {
            "PATH": f"{programs}:{BIN}:{os.environ['PATH']}",
            "HOME": str(self.home),
            "ANSIBLE_COLLECTIONS_PATH": str(collections),
            "ANSIBLE_ASYNC_DIR": str(self.home / "async"),
            "ANSIBLE_REMOTE_TEMP": str(self.home / "remote"),
            "ANSIBLE_TRANSPORT": "local",
            "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
        }
        self.env = environment(self.stores, ours)

    def here(self, text: str) -> str:
        """The documentation's places as they are on this host."""
        made = sorted(path.name[9:24] for path in self.stores.backup_dir.glob("manifest_*.json"))
        text = text.replace("sudo ", "").replace("/opt/agentmem/config", str(self.stores.config_dir))
        text = text.replace("/backups/agentmem", str(self.stores.backup_dir)).replace(
            "/var/log/agentmem", str(self.stores.log_dir)
        )
        text = text.replace("/etc/agentmem-backup", str(self.home)).replace("http://localhost:8080", "''")
        return text.replace(EXAMPLE, made[0]) if made else text

    def run(self, command: str, where: str) -> subprocess.CompletedProcess[str]:
        """Run it in bash, at a terminal on which somebody answers yes."""
        ours, theirs = pty.openpty()
        try:
            os.write(ours, b"yes\n" * 8)
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", self.here(command)],
                cwd=self.home, env=self.env, stdin=theirs, capture_output=True, text=True, timeout=120, check=False,
            )  # fmt: skip
        finally:
            os.close(ours)
            os.close(theirs)
        assert done.returncode == 0, f"{where}: {command}\nended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done

    def told(self, text: str) -> str:
        """What was printed, with this host's places as the documentation has them."""
        text = text.replace(str(self.stores.backup_dir), "/backups/agentmem").replace(
            str(self.stores.config_dir), "/opt/agentmem/config"
        )
        return text.replace("Continue? (yes/no): ", "Continue? (yes/no): yes\n")


@pytest.fixture
def host(stores: Stores, tmp_path: Path, sshd: Sshd) -> Iterator[Host]:
    (stores.backup_dir.parent / "fresh").mkdir(mode=0o700)
    with mail_server() as mailbox:
        yield Host(stores, tmp_path, mailbox.port, sshd)


def _commands(block: Block) -> str:
    """A bash block without what is not run; settings that the reader fills in are checked by name and come from the host."""
    kept = []
    variables = {option.metadata["env"] for __, option, __ in settings.walk(settings.Settings())}
    for line in block.text.splitlines():
        if re.match(rf"export \S+={ANY}", line):
            named = set(re.findall(rf"(\w+)={ANY}", line))
            assert named <= variables, f"{block.where}: no setting has the variable {', '.join(sorted(named - variables))}"
        elif line not in NOT_RUN:
            kept.append(line)
    return "\n".join(kept)


def _session(block: Block) -> list[tuple[str, list[str]]]:
    """The commands of a console block, each with what it prints."""
    found: list[tuple[str, list[str]]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            assert found, f"{block.where}: output without a command"
            found[-1][1].append(line)
    return found


def run_block(host: Host, block: Block) -> None:
    """Run one block, or check what it says."""
    assert block.language in LANGUAGES, f"{block.where}: nobody checks blocks of the language {block.language!r}"
    if block.language == "bash" and _commands(block).strip():
        host.run(_commands(block), block.where)
    elif block.language == "console":
        for command, expected in _session(block):
            faults = unlike(expected, host.told(host.run(command, block.where).stdout).splitlines())
            assert not faults, f"{block.where}: $ {command}\n" + "\n".join(faults)
    elif block.language == "cron":
        for line in block.text.splitlines():
            host.run(line.split(maxsplit=5)[5], block.where)
    elif block.language == "yaml" and re.match(r"# /etc/agentmem-backup/config\.(?:yml|d/\w+\.yml)\n", block.text):
        path = host.home / "example.yml"
        path.write_text(block.text)
        path.chmod(0o600)
        settings.load(path, environment={})
    elif block.language == "yaml" and (named := re.match(r"# (\w+\.yml)\n", block.text)):
        (host.home / named[1]).write_text(host.here(block.text))
    elif block.language == "sql":
        _run_sql(host, block.text)


def _run_sql(host: Host, text: str) -> None:
    """As the superuser of the throwaway cluster, with the newest database that a restore has put aside."""
    with host.stores.postgres.connect() as connection:
        names = [
            str(row[0]) for row in connection.execute("SELECT datname FROM pg_database WHERE datname ~ '__before_' ORDER BY 1")
        ]
        for statement in text.replace(f"agentmem__before_{EXAMPLE}", names[-1]).split(";"):
            if statement.strip():
                connection.execute(statement.encode())


@pytest.mark.timeout(600)  # a page is some sixty commands, one after the other
@pytest.mark.parametrize("page", ["README.md", "docs/operations.md"])
def test_every_block_runs(host: Host, page: str) -> None:
    for block in blocks(page):
        run_block(host, block)


def test_what_is_not_run_is_there() -> None:
    written = {line for page in ("README.md", "docs/operations.md") for one in blocks(page) for line in one.text.splitlines()}
    assert set(NOT_RUN) <= written, "NOT_RUN names lines that no page has any more"
    for program in ("script/demo", "script/test"):
        assert os.access(CHECKOUT / program, os.X_OK)


def test_readme_begins_with_the_two_commands() -> None:
    first = next(block for block in blocks("README.md") if block.language == "bash")
    assert [line.split()[0] for line in first.text.splitlines()] == ["script/demo", "script/test"]
