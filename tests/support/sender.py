# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host that has sets and sends them elsewhere. Its sets hold configuration only, so that it needs no server."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest import mock

import yaml
from agentmem_backup import clock, create, history, settings
from agentmem_backup.progress import Reporter

from tests.support import warm
from tests.support.command import BIN


class Sender:
    """A host `name` with directories and a configuration of its own, under `directory`."""

    def __init__(self, directory: Path, name: str, targets: Mapping[str, Any], **offsite: Any):
        self.name = name
        self.directory = directory / name
        self.backup_dir = self.directory / "backups"
        self.config_dir = self.directory / "config"
        self.log_dir = self.directory / "log"
        for path in (self.backup_dir, self.config_dir, self.log_dir):
            path.mkdir(parents=True, mode=0o700)
        (self.config_dir / "agentmem.env").write_text("A=1\n")
        self.file = self.directory / "config.yml"
        self.extra: dict[str, Any] = {}
        self.env: dict[str, str] = {}
        self.configure(targets, **offsite)

    def configure(self, targets: Mapping[str, Any], **offsite: Any) -> None:
        """Write the configuration anew."""
        content = {
            "backup_dir": str(self.backup_dir),
            "log_dir": str(self.log_dir),
            "components": ["config"],
            "config": {"directory": str(self.config_dir)},
            "offsite": {"host": self.name, "timeout_s": 20, "targets": {**targets}, **offsite},
            **self.extra,
        }
        self.file.touch(mode=0o600)
        self.file.write_text(yaml.safe_dump(content))

    def settings(self) -> settings.Settings:
        return settings.load(self.file, environment={})

    def make_set(self, moment: str = "", content: str = "", size: int = 0) -> str:
        """Make a verified set, at `moment` (2025-01-03 12:00:00) or now; returns its ID."""
        (self.config_dir / "content").write_text(content or moment)
        if size:
            (self.config_dir / "large").write_bytes(os.urandom(size))
        loaded = replace(self.settings(), retention_days=36500)
        if not moment:
            while any(self.backup_dir.glob(f"*_{clock.set_id(clock.now())}.*")):
                pass
            return create.create(loaded, Reporter()).manifest.id
        at = datetime.fromisoformat(moment).replace(tzinfo=clock.UTC)
        with mock.patch.object(clock, "now", lambda: at):
            return create.create(loaded, Reporter()).manifest.id

    def files(self, set_id: str) -> dict[str, bytes]:
        """Every file of a set as it lies here."""
        return {path.name: path.read_bytes() for path in self.backup_dir.glob(f"*_{set_id}.*")}

    def run(self, *words: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run `sync` with the host's configuration."""
        return warm.run(self.argv(*words), self.environment(env), 250)

    def argv(self, *words: str) -> list[str]:
        return [str(BIN / "agentmem-backup"), "sync", *words, "--config", str(self.file)]

    def environment(self, env: Mapping[str, str] | None = None) -> dict[str, str]:
        ours = {"BACKUP_DIR": str(self.backup_dir), "LOG_DIR": str(self.log_dir), "CONFIG_DIR": str(self.config_dir)}
        return {**os.environ, **ours, **self.env, **(env or {})}

    def good(self, *words: str, env: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Run it with --json and insist on exit code 0."""
        done = self.run(*words, "--json", env=env)
        assert done.returncode == 0, f"{words} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def bad(self, *words: str, code: int = 1, env: Mapping[str, str] | None = None) -> str:
        """Run it, insist on an exit code, and return what it said, which is no traceback."""
        done = self.run(*words, env=env)
        said = done.stdout + done.stderr
        assert done.returncode == code, f"{words} ended with {done.returncode}:\n{said}"
        assert "Traceback" not in said and "unexpected" not in said, said
        return said

    def state(self) -> dict[str, bytes]:
        """All files here that make up the sets: what nothing that goes wrong elsewhere may touch."""
        return {path.name: path.read_bytes() for path in self.backup_dir.iterdir() if path.is_file()}

    def verdicts(self) -> dict[str, dict[str, Any]]:
        return history.newest(self.backup_dir)
