# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Secrets stay where they belong: not in argv, logs, results, errors, manifests or files that others can read."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import command
from tests.support.servers import Stores

pytestmark = pytest.mark.timeout(300)


def forms_of(secret: str) -> list[bytes]:
    """The ways in which a secret may show: as it is, as strace escapes it, quoted for a URL, in base64."""
    import base64
    from urllib.parse import quote

    raw = secret.encode()
    escaped = "".join(f"\\{byte:o}" if byte > 126 else chr(byte).replace("\\", "\\\\").replace('"', '\\"') for byte in raw)
    return [raw, escaped.encode(), quote(secret, safe="").encode(), base64.b64encode(raw).rstrip(b"=")]


def secrets_of(stores: Stores) -> dict[str, list[bytes]]:
    known = {
        "PostgreSQL's": stores.postgres.app_password,
        "Redis's": stores.redis.password,
        "Qdrant's": stores.qdrant.api_key or "",
    }
    return {name: forms_of(secret) for name, secret in known.items() if secret}


def assert_absent(stores: Stores, where: str, content: bytes) -> None:
    for name, forms in secrets_of(stores).items():
        for form in forms:
            assert form not in content, f"{name} secret stands in {where}"


def traced(stores: Stores, trace: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command with every execve of it and its children written to `trace`."""
    strace = ("strace", "-f", "-qq", "-s", "100000", "-e", "trace=execve", "-v", "-o", str(trace))
    return command.run(stores, *arguments, program=(*strace, str(command.BIN / "agentmem-backup")), timeout=240)


def test_the_passwords_of_the_test_servers_are_awkward(stores: Stores) -> None:
    for password in (stores.postgres.app_password, stores.redis.password):
        assert all(sign in password for sign in " '\"$\\")
        assert not password.isascii()


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_no_secret_in_any_argv_log_result_or_open_file(stores: Stores, tmp_path: Path) -> None:
    runs = [
        ("create", "--fingerprint", "content"),
        ("verify", "latest"),
        ("restore", "latest", "--yes", *command.QUIET),
        ("check",),
    ]
    for number, words in enumerate(runs):
        trace = tmp_path / f"trace{number}"
        done = traced(stores, trace, *words)
        assert done.returncode == 0, done.stdout + done.stderr
        executed = trace.read_bytes()
        argvs = b"\n".join(re.findall(rb'execve\("[^"]*", (\[.*?\]), \[', executed))
        if words[0] in ("create", "restore"):
            assert b"pg_dump" in argvs or b"pg_restore" in argvs
        assert_absent(stores, f"the arguments of a program run by {words[0]}", argvs)
        assert_absent(stores, f"what {words[0]} prints", (done.stdout + done.stderr).encode())
    for path in (*stores.backup_dir.rglob("*"), *stores.log_dir.rglob("*")):
        if path.is_file():
            if path.suffix not in (".gz", ".rdb"):
                assert_absent(stores, str(path), path.read_bytes())
            assert path.stat().st_mode & 0o007 == 0, f"{path} can be read by everybody"


@pytest.mark.parametrize("variable", ["DB_HOST", "REDIS_HOST", "QDRANT_URL"])
def test_no_secret_in_errors(stores: Stores, variable: str) -> None:
    done = command.run(
        stores, "create", "--json", env={variable: "http://127.0.0.1:9" if variable == "QDRANT_URL" else "127.0.0.9"}
    )
    assert done.returncode == 1
    assert_absent(stores, "an error", (done.stdout + done.stderr).encode())
    assert_absent(stores, "the log", (stores.log_dir / "backup.log").read_bytes())
    assert_absent(stores, "the audit log", (stores.backup_dir / ".history" / "audit.jsonl").read_bytes())
