# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Role offsite, its sending half, on this machine with places of the test's. Whole hosts are molecule's matter."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.collection import OF_A_PLAY, Played, play
from tests.support.command import BIN
from tests.support.endpoints import Sshd
from tests.support.sender import Sender
from tests.support.servers import CHECKOUT

# The sample of the scenarios shows the role on a real host; what else it must do is tried by script/test --all.
pytestmark = pytest.mark.slow

SECRET = "hush-hush-hush"
CLOUD = {"type": "s3", "bucket": "my-bucket"}


class Host:
    """A host on which role `host` has been: its engine and its directory of configuration are the test's."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.etc = directory / "etc"
        self.etc.mkdir()
        self.file = self.etc / "config.d" / "offsite.yml"
        ours = directory / "collections" / "ansible_collections" / "agentmem"
        ours.mkdir(parents=True)
        (ours / "backup").symlink_to(CHECKOUT)

    def play(self, *arguments: str, **variables: Any) -> Played:
        # The role's own places can be moved by nothing weaker than extra variables.
        places = {"_offsite_etc": str(self.etc), "_offsite_command": str(BIN / "agentmem-backup")}
        given = self.directory / "variables.json"
        given.write_text(json.dumps({**places, "offsite_user": "root", "offsite_group": "root", **variables}))
        tasks = [OF_A_PLAY, {"ansible.builtin.include_role": {"name": "agentmem.backup.offsite"}}]
        playbook = self.directory / "play.yml"
        playbook.write_text(yaml.safe_dump([{"hosts": "all", "gather_facts": False, "tasks": tasks}]))
        return play(playbook, self.directory, self.directory / "collections", "-e", f"@{given}", *arguments)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    if os.geteuid() != 0:
        pytest.skip("the role gives files to root")
    return Host(tmp_path)


def changed(played: Played) -> int:
    recap = re.search(r"changed=(\d+) .* failed=0", played.output)
    assert played.code == 0 and recap, played.output
    return int(recap[1])


def test_what_the_role_writes_sends_sets_and_the_second_run_changes_nothing(host: Host, sshd: Sshd, tmp_path: Path) -> None:
    there = {key: value for key, value in sshd.target().items() if not key.endswith(("_file", "_folder"))}
    given: dict[str, Any] = {
        "offsite_name": "web-1",
        "offsite_targets": {"backup_host": there},
        "offsite_known_hosts": sshd.known_hosts.read_text().splitlines(),
        "offsite_settings": {"bandwidth_limit": "50M"},
        "offsite_instances": {"blue": {"settings": {}}},
    }
    assert changed(host.play("--check", **given)) > 0 and not host.file.exists()
    assert changed(host.play(**given)) > 0
    assert host.file.stat().st_mode & 0o777 == 0o600
    key = host.file.with_name("offsite_key")
    assert key.stat().st_mode & 0o777 == 0o600
    blue = host.etc / "blue.d" / "offsite.yml"
    wanted = yaml.safe_load(host.file.read_text())
    del wanted["offsite"]["bandwidth_limit"]
    assert yaml.safe_load(blue.read_text()) == wanted and blue.stat().st_mode & 0o777 == 0o600
    assert changed(host.play(**given)) == changed(host.play("--check", **given)) == 0

    sshd.key = key
    sshd.admit()
    sender = Sender(tmp_path, "unused", {})
    set_id = sender.make_set()
    sender.file.write_text(host.file.read_text())
    assert sender.good("push")["host"] == "web-1"
    assert sshd.files(".") == sender.files(set_id), "the receiving side gives the host's name, and it is not added once more"

    assert changed(host.play(**given, offsite_state="absent")) > 0
    assert not host.file.exists() and not key.exists() and not blue.exists()


def test_targets_that_the_engine_refuses_never_replace_the_old_and_no_secret_shows(host: Host) -> None:
    secrets = {"cloud": {"access_key_id": "AKEY", "secret_access_key": SECRET}}
    good = host.play("-vvv", "--diff", offsite_targets={"cloud": CLOUD}, offsite_secrets=secrets)
    assert changed(good) > 0 and SECRET in host.file.read_text()
    before = host.file.read_bytes()
    bad = host.play("-vvv", "--diff", offsite_targets={"cloud": {**CLOUD, "bukcet": "x"}}, offsite_secrets=secrets)
    assert bad.code != 0 and "has an unknown setting 'bukcet': did you mean 'bucket'?" in bad.output.replace("\\'", "'")
    assert host.file.read_bytes() == before
    assert SECRET not in bad.output


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"offsite_targets": {"a": {"type": "rsync", "host": "h"}}}, "offsite_known_hosts is empty"),
        ({"offsite_secrets": {"b": {"key": "k"}}}, "offsite_secrets names a target that offsite_targets does not have: b"),
        ({"offsite_receive_hosts": {"../x": "k"}}, "has a name that cannot be a folder"),
        ({"offsite_state": "gone"}, "value of offsite_state must be one of"),
        (
            {"offsite_targets": {"a": CLOUD}, "offsite_instances": {"blue": {"targets": {"b": CLOUD}, "secrets": {"a": {}}}}},
            "offsite_instances.blue.secrets names a target that offsite_instances.blue.targets does not have: a",
        ),
        ({"offsite_instances": {"blue": {"target": {}}}}, "offsite_instances.blue.target. Supported parameters include"),
    ],
)
def test_wrong_variables_are_told_before_anything_is_done(host: Host, given: dict[str, Any], sentence: str) -> None:
    played = host.play(**given)
    assert played.code != 0 and sentence in " ".join(played.output.split()), played.output
    assert [*host.etc.iterdir()] == []
