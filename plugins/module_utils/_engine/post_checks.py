# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guide's five checks after a restore: services, /health, the memories, Redis PING, and writing one memory.

Each says passed, failed, or why it was not made. They look at the application; that the data is equal has been proven
by the stores' own comparison before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import process
from .components.base import Component
from .errors import BackupError, one_line
from .settings import Settings

PASSED, FAILED, SKIPPED = "passed", "failed", "not made"


@dataclass(frozen=True)
class PostCheck:
    """One check and its outcome."""

    name: str
    outcome: str
    detail: str

    @property
    def failed(self) -> bool:
        """Whether it was made and failed."""
        return self.outcome == FAILED

    @property
    def text(self) -> str:
        """For a person."""
        return f"{self.name}: {self.outcome} ({self.detail})"

    def as_dict(self) -> dict[str, str]:
        """For --json."""
        return {"name": self.name, "outcome": self.outcome, "detail": self.detail}


def run(settings: Settings, components: dict[str, Component]) -> list[PostCheck]:
    """Make the five checks. Never raises: what fails is in the outcome."""
    return [
        _services(settings),
        _health(settings),
        _look("memories", components.get("postgresql")),
        _look("redis", components.get("redis")),
        _write(settings),
    ]


def _services(settings: Settings) -> PostCheck:
    if not settings.services:
        return PostCheck("services", SKIPPED, "no services are set")
    try:
        systemctl = process.find("systemctl", "systemd")
        for unit in settings.services:
            process.run([systemctl, "is-active", "--quiet", unit], timeout_s=30)
    except BackupError as error:
        return PostCheck("services", FAILED, one_line(error))
    return PostCheck("services", PASSED, f"{', '.join(settings.services)} active")


def _health(settings: Settings) -> PostCheck:
    return _ask(settings, "health", "GET", "/health", None)


def _write(settings: Settings) -> PostCheck:
    return _ask(settings, "write", "POST", "/api/v1/memories", {"content": "Test after restore", "memory_type": "episodic"})


def _ask(settings: Settings, name: str, method: str, path: str, body: dict[str, Any] | None) -> PostCheck:
    if not settings.health_url:
        return PostCheck(name, SKIPPED, "no health_url is set")
    import httpx

    url = settings.health_url.rstrip("/") + path
    try:
        answer = httpx.request(method, url, json=body, timeout=10)
    except httpx.HTTPError as error:
        return PostCheck(name, FAILED, f"{method} {url}: {one_line(error) or type(error).__name__}")
    outcome = PASSED if answer.is_success else FAILED
    return PostCheck(name, outcome, f"{method} {url} answered {answer.status_code}")


def _look(name: str, component: Component | None) -> PostCheck:
    """Ask a restored store itself."""
    if component is None:
        return PostCheck(name, SKIPPED, "that store was not restored")
    try:
        return PostCheck(name, PASSED, component.look())
    except BackupError as error:
        return PostCheck(name, FAILED, one_line(error))
