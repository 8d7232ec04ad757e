# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Targets in the settings: what is taken, what is refused and with which words, and that their secrets stay out of sight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from agentmem_backup import settings as module
from agentmem_backup import targets
from agentmem_backup.errors import UsageError
from agentmem_backup.settings import MASK, load, shown
from agentmem_backup.targets import rate

S3 = {"type": "s3", "bucket": "b"}
RSYNC = {"type": "rsync", "host": "h", "key_file": "/k", "known_hosts_file": "/n"}
AZURE = {"type": "azure", "container": "c", "account": "a", "key": "dGhlLWtleQ=="}


@pytest.fixture(autouse=True)
def no_file_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "DEFAULT_FILE", tmp_path / "absent.yml")


def loaded(tmp_path: Path, offsite: Any, environment: dict[str, str] | None = None, mode: int = 0o600) -> module.Settings:
    path = tmp_path / "config.yml"
    path.write_text(yaml.safe_dump({"offsite": offsite}))
    path.chmod(mode)
    return load(path, environment=environment or {})


def test_targets_have_every_field_and_keep_their_order(tmp_path: Path) -> None:
    offsite = loaded(tmp_path, {"targets": {"zoo": S3, "ark": {**RSYNC, "keep": 5}}}).offsite
    assert [*offsite.targets] == ["ark", "zoo"] or [*offsite.targets] == ["zoo", "ark"]
    assert offsite.targets["ark"]["port"] == 22 and offsite.targets["ark"]["keep"] == 5 and not offsite.targets["zoo"].locked
    assert offsite.max_removals == 3 and offsite.min_local_sets == 2


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([], "offsite.targets in {file} must be a mapping of names to what each target takes"),
        ({"a": None}, "offsite.targets.a in {file} must be a mapping that says its type (one of s3, gcs, azure, rsync)"),
        ({"A-B": S3}, "offsite.targets in {file} has the name 'A-B': small letters, digits and _ make a target's name"),
        ({"a": {"type": "s4"}}, "offsite.targets.a.type in {file} must be one of s3, gcs, azure, rsync, not 's4'"),
        ({"a": {"bucket": "b"}}, "offsite.targets.a.type in {file} must be one of s3, gcs, azure, rsync, and none is given"),
        ({"a": {"type": "s3"}}, "offsite.targets.a.bucket is missing: a target of type s3 needs it (bucket, which must exist)"),
        ({"a": {**S3, "bukcet": "c"}}, "offsite.targets.a in {file} has an unknown setting 'bukcet': did you mean 'bucket'?"),
        ({"a": {**S3, "keep": -1}}, "offsite.targets.a.keep in {file} must be a whole number, 0 or more, not '-1'"),
        ({"a": {**S3, "keep": 1.5}}, "offsite.targets.a.keep in {file} must be a whole number, 0 or more, not '1.5'"),
        ({"a": {**S3, "object_lock": "maybe"}}, "offsite.targets.a.object_lock in {file} must be true or false, not 'maybe'"),
        (
            {"a": {**S3, "bandwidth_limit": "fast"}},
            "offsite.targets.a.bandwidth_limit in {file} must be bytes a second, such as 500K or 10M, not 'fast'",
        ),
        ({"a": {**S3, "prefix": "a/../b"}}, "offsite.targets.a.prefix may hold letters, digits and . _ - between"),
        ({"a": {**S3, "bucket": "b/c"}}, "offsite.targets.a.bucket may hold letters, digits and . _ -, not 'b/c'"),
        (
            {"a": {**S3, "access_key_id": "k"}},
            "offsite.targets.a has only one of access_key_id and secret_access_key: give both, or neither",
        ),
        (
            {"a": {**S3, "access_key_id": "k", "secret_access_key": 83}},
            "offsite.targets.a.secret_access_key in {file} must be text: put it in quotes",
        ),
        ({"a": {"type": "gcs", "bucket": "b"}}, "offsite.targets.a needs the service account's key: give"),
        (
            {"a": {"type": "gcs", "bucket": "b", "service_account": "{"}},
            "offsite.targets.a.service_account must be the JSON that the cloud's console gives out",
        ),
        ({"a": {"type": "azure", "container": "c"}}, "offsite.targets.a needs a secret: give account and key, or sas_url"),
        ({"a": {**AZURE, "sas_url": "https://x"}}, "offsite.targets.a needs a secret: give account and"),
        ({"a": {**AZURE, "key": "the-key"}}, "offsite.targets.a.key is no account's key: copy it whole from the cloud's console"),
        ({"a": {**AZURE, "account": ""}}, "offsite.targets.a.account is missing: key belongs to an account"),
        ({"a": {**RSYNC, "host": "-oProxyCommand=x"}}, "offsite.targets.a.host is no name or address: '-oProxyCommand=x'"),
        ({"a": {**RSYNC, "key_file": "id"}}, "offsite.targets.a.key_file in {file} must be an absolute path without"),
        ({"a": {**RSYNC, "path": "/a", "own_folder": True}}, "offsite.targets.a has both path and own_folder"),
        ({"a": {**RSYNC, "port": 0}}, "offsite.targets.a.port must lie between 1 and 65535, not 0"),
        ({"a": {**RSYNC, "path": "/a b"}}, "offsite.targets.a.path may hold letters, digits and . _ - between its slashes"),
    ],
)  # fmt: skip
def test_every_mistake_is_one_sentence(tmp_path: Path, given: Any, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        loaded(tmp_path, {"targets": given})
    assert sentence.format(file=tmp_path / "config.yml") in str(caught.value)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"host": "web 1"}, "offsite.host may hold letters, digits and . _ -, not 'web 1'"),
        ({"host": ".."}, "offsite.host may hold letters, digits and . _ -, not '..'"),
        ({"bandwidth_limit": "0"}, "offsite.bandwidth_limit must be bytes a second, such as 500K or 10M, not '0'"),
        ({"max_removals": 0}, "offsite.max_removals must lie between 1 and 1000, not 0"),
    ],
)
def test_mistakes_beside_the_targets(tmp_path: Path, given: Any, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        loaded(tmp_path, given)
    assert sentence in str(caught.value)


def test_a_drop_in_adds_the_secrets_field_by_field(tmp_path: Path) -> None:
    main = tmp_path / "config.yml"
    main.write_text(yaml.safe_dump({"offsite": {"targets": {"cloud": {**S3, "access_key_id": "A"}}}}))
    main.chmod(0o600)
    (tmp_path / "config.d").mkdir()
    drop_in = tmp_path / "config.d" / "offsite.yml"
    drop_in.write_text(yaml.safe_dump({"offsite.targets": {"cloud": {"secret_access_key": "hush"}, "other": RSYNC}}))
    drop_in.chmod(0o600)
    settings = load(main, environment={})
    assert settings.offsite.targets["cloud"]["secret_access_key"] == "hush" and [*settings.offsite.targets] == ["cloud", "other"]
    rows = {name: (value, source) for name, value, source in shown(settings)}
    assert rows["offsite.targets.cloud.secret_access_key"] == (MASK, str(drop_in))
    assert rows["offsite.targets.cloud.bucket"] == ("b", str(main))
    assert set(settings.secrets()) >= {"A", "hush"}


def test_the_environment_gives_secrets_and_nothing_else(tmp_path: Path) -> None:
    ours = {"AGENTMEM_OFFSITE_CLOUD_ACCESS_KEY_ID": "A", "AGENTMEM_OFFSITE_CLOUD_SECRET_ACCESS_KEY": "B"}
    settings = loaded(tmp_path, {"targets": {"cloud": S3}}, {**ours, "AGENTMEM_OFFSITE_CLOUD_BUCKET": "other"})
    assert (settings.offsite.targets["cloud"]["secret_access_key"], settings.offsite.targets["cloud"]["bucket"]) == ("B", "b")
    assert settings.sources["offsite.targets.cloud.access_key_id"] == "AGENTMEM_OFFSITE_CLOUD_ACCESS_KEY_ID"


@pytest.mark.parametrize("mode", [0o644, 0o604])
def test_a_file_with_a_targets_secret_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(UsageError, match="holds a secret and is open to others: chmod 600"):
        loaded(tmp_path, {"targets": {"a": AZURE}}, mode=mode)
    assert loaded(tmp_path, {"targets": {"a": RSYNC}}, mode=mode)


def test_no_sentence_shows_a_secret(tmp_path: Path) -> None:
    for key in ("access_key_id", "secret_access_key", "session_token"):
        with pytest.raises(UsageError) as caught:
            loaded(tmp_path, {"targets": {"a": {**S3, key: ["hush-hush"]}}})
        assert "hush-hush" not in str(caught.value)


def test_every_field_says_what_it_is_and_what_sounds_secret_is() -> None:
    for kind, fields in targets.KINDS.items():
        for name, one in fields.items():
            assert one.help and one.help[0] == one.help[0].lower(), f"{kind}.{name}"
            assert one.secret or not any(word in name for word in ("secret", "token", "sas", "key_id")), f"{kind}.{name}"


@pytest.mark.parametrize(("text", "number"), [("", 0), ("500K", 512000), ("10M", 10485760), ("1.5g", 1610612736), ("1", 1024)])
def test_rates(text: str, number: int) -> None:
    assert rate(text) == number
