# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings: who wins, what is refused and with which words, and that secrets stay out of sight."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from agentmem_backup import cli
from agentmem_backup import settings as module
from agentmem_backup.errors import UsageError
from agentmem_backup.settings import MASK, Settings, load, shown, walk

GUIDE = {
    "BACKUP_DIR": ("backup_dir", "/backups/agentmem"),
    "BACKUP_RETENTION_DAYS": ("retention_days", 30),
    "LOG_DIR": ("log_dir", "/var/log/agentmem"),
    "CONFIG_DIR": ("config.directory", "/opt/agentmem/config"),
    "COMPRESSION_LEVEL": ("compression_level", 6),
}
"""The guide's variables and their defaults (sections 3 and 6)."""

SECRETS = ("postgresql.password", "redis.password", "qdrant.api_key", "notify_slack_webhook")


@pytest.fixture(autouse=True)
def no_file_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "DEFAULT_FILE", tmp_path / "absent.yml")


def written(tmp_path: Path, content: str | bytes, mode: int = 0o600) -> Path:
    path = tmp_path / "config.yml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)
    return path


def value_of(settings: Settings, name: str) -> Any:
    return next(value for known, __, value in walk(settings) if known == name)


# --- who wins


@pytest.mark.parametrize(("name", "default"), GUIDE.values(), ids=GUIDE)
def test_defaults_are_the_guides(name: str, default: object) -> None:
    settings = load(environment={})
    assert value_of(settings, name) == default
    assert settings.sources == {}


@pytest.mark.parametrize("variable", GUIDE)
def test_the_guides_variables_are_known(variable: str) -> None:
    value = "7" if variable in ("BACKUP_RETENTION_DAYS", "COMPRESSION_LEVEL") else "/elsewhere"
    settings = load(environment={variable: value})
    assert str(value_of(settings, GUIDE[variable][0])) == value
    assert settings.sources[GUIDE[variable][0]] == variable


@pytest.mark.parametrize(
    "variable",
    ["DB_HOST", "DB_NAME", "DB_USER", "DB_PASSWORD", "NOTIFY_EMAIL", "NOTIFY_SLACK_WEBHOOK", "REDIS_HOST", "REDIS_PASSWORD",
     "REDIS_DATA_DIR", "QDRANT_HOST", "QDRANT_DATA_DIR", "QDRANT_URL", "QDRANT_API_KEY", "REDIS_USERNAME", "REDIS_CACERT",
     "DB_SSLMODE", "DB_SSLROOTCERT"],
)  # fmt: skip
def test_a_variable_reaches_its_setting_unchanged(variable: str) -> None:
    value = "  with 'quotes\", $dollar, ü and a comma,  "
    settings = load(environment={variable: value})
    [name] = settings.sources
    assert value_of(settings, name) == value


def test_the_command_line_wins_over_the_environment_over_the_file_over_the_default(tmp_path: Path) -> None:
    path = written(tmp_path, "postgresql: {host: from-file, port: 1, database: from-file, user: from-file}\n")
    environment = {"DB_PORT": "2", "DB_NAME": "from-environment"}
    settings = load(path, environment, {"postgresql.database": "from-command-line"})
    postgresql = settings.postgresql
    assert (postgresql.host, postgresql.port, postgresql.database) == ("from-file", 2, "from-command-line")
    assert settings.sources == {
        "postgresql.host": str(path),
        "postgresql.user": str(path),
        "postgresql.port": "DB_PORT",
        "postgresql.database": "command line",
    }


def test_an_empty_variable_says_nothing(tmp_path: Path) -> None:
    path = written(tmp_path, "postgresql.host: from-file\n")
    assert load(path, {"DB_HOST": ""}).postgresql.host == "from-file"


def test_the_default_file_is_read_where_it_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = written(tmp_path, "instance: blue\n")
    monkeypatch.setattr(module, "DEFAULT_FILE", path)
    assert load(environment={}).instance == "blue"


def test_two_loads_share_no_list() -> None:
    load(environment={}).components.append("x")
    assert "x" not in load(environment={}).components


def test_lists_come_from_words_and_from_yaml(tmp_path: Path) -> None:
    path = written(tmp_path, "components: postgresql, redis\nconfig:\n  extra_paths: [/a, '/b, c']\n")
    settings = load(path, {})
    assert settings.components == ["postgresql", "redis"]
    assert settings.config.extra_paths == ["/a", "/b, c"]


@pytest.mark.parametrize(("text", "meant"), [("true", True), ("1", True), ("YES", True), ("off", False), ("0", False)])
def test_truth_has_many_words(text: str, meant: bool) -> None:
    assert load(environment={"REDIS_TLS": text}).redis.tls is meant


# --- what is refused


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("postgresql: {hots: x}", r"unknown setting 'postgresql\.hots': did you mean 'postgresql\.host'\?"),
        ("retention_day: 3", r"unknown setting 'retention_day': did you mean 'retention_days'\?"),
        ("zzz: 3", r"unknown setting 'zzz'$"),
        ("sources: {}", None),
        ("sources: 1", "unknown setting 'sources'"),
        ("retention_days: many", r"retention_days in .*config\.yml must be a whole number, not 'many'"),
        ("retention_days: 1.5", r"retention_days in .* must be a whole number, not '1\.5'"),
        ("retention_days: yes", r"retention_days in .* must be a whole number, not 'True'"),
        ("retention_days: [1]", "retention_days in .* must be a whole number"),
        ("retention_days: 2025-01-03", "retention_days in .* must be a whole number"),
        ("retention_days: 0", "retention_days must be at least 1, not 0"),
        ("keep_daily: 0", "keep_daily must lie between 1 and 36500, not 0"),
        ("keep_monthly: -1", "keep_monthly must lie between 0 and 1200, not -1"),
        ("retention: never", "retention in .* must be one of age, tiers"),
        ("lock_wait_s: soon", "lock_wait_s in .* must be a number"),
        ("lock_wait_s: .nan", "lock_wait_s in .* must be a number"),
        ("lock_wait_s: .inf", "lock_wait_s in .* must be a number"),
        ("redis: {tls: maybe}", r"redis\.tls in .* must be true or false"),
        ("instance: yes", "instance in .* must be text"),
        ("instance: {a: b}", r"unknown setting 'instance\.a'"),
        ("components: {a: b}", r"unknown setting 'components\.a'"),
        ("components: 5", "components in .* must be a list of words"),
        ("components: [[x]]", "components in .* must be a list of words"),
        ("components: [mysql]", "there is no component 'mysql': choose from postgresql, redis, qdrant, config"),
        ("components: []", "no component is chosen"),
        ("compression: lzma", "compression in .* must be one of gzip, zstd, not 'lzma'"),
        ("compression_level: 10", "compression_level must lie between 0 and 9"),
        ("backup_dir: relative/dir", "backup_dir must be an absolute path, not 'relative/dir'"),
        ("postgresql: {port: 70000}", r"postgresql\.port must lie between 1 and 65535"),
        ("redis: {port: 0}", r"redis\.port must lie between 1 and 65535"),
        ("qdrant: {port: 99999}", r"qdrant\.port must lie between 1 and 65535"),
        ("lock_wait_s: -1", r"^lock_wait_s must lie between 0 and 604800, not -1\.0 \(from .*config\.yml\)$"),
        ("lock_wait_s: 1e9", "lock_wait_s must lie between 0 and 604800"),
        ("retention_days: 99999999999", "retention_days must be at most 36500, not 99999999999"),
        ("shrink_alarm_percent: -5", "shrink_alarm_percent must lie between 0 and 100"),
        ("shrink_alarm_percent: 101", "shrink_alarm_percent must lie between 0 and 100"),
        ("postgresql: {jobs: -2}", r"postgresql\.jobs must lie between 0 and 256"),
        ("postgresql: {lock_attempts: 0}", r"postgresql\.lock_attempts must lie between 1 and 1000"),
        ("postgresql: {lock_timeout_s: 0}", r"postgresql\.lock_timeout_s must lie between 0\.1 and 3600"),
        ("redis: {save_timeout_s: -1}", r"redis\.save_timeout_s must lie between 1 and 604800"),
        ("qdrant: {timeout_s: 0}", r"qdrant\.timeout_s must lie between 1 and 604800"),
        ("hooks: {timeout_s: -0.5}", r"hooks\.timeout_s must lie between 1 and 604800"),
        (f"postgresql: {{database: {'a' * 64}}}", r"postgresql\.database must have at most 63 bytes, not 64: .* \(from .*\)$"),
        (f"postgresql: {{user: {'ä' * 32}}}", r"postgresql\.user must have at most 63 bytes, not 64"),
        ("- a\n- b", "must be a mapping of settings"),
        ("just words", "must be a mapping of settings"),
        ("a: [1\nb: 2", r"is not valid YAML at line \d"),
        (b"instance: \xff\xfe", "is not valid YAML"),
        ("a: !!python/object/apply:os.system ['true']", "is not valid YAML at line 1"),
    ],
)  # fmt: skip
def test_a_bad_file_is_told_with_setting_source_and_what_it_must_be(
    tmp_path: Path, content: str | bytes, sentence: str | None
) -> None:
    path = written(tmp_path, content)
    if sentence is None:
        load(path, {})
        return
    with pytest.raises(UsageError, match=sentence) as caught:
        load(path, {})
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_every_number_has_bounds() -> None:
    numbers = {name for name, option, __ in walk(Settings()) if str(option.type) in ("int", "float")}
    assert {name for name, option, __ in walk(Settings()) if option.metadata["bounds"]} == numbers - {"retention_days"}


def test_the_longest_name_that_postgresql_keeps_is_taken() -> None:
    assert load(environment={"DB_NAME": "a" * 63}).postgresql.database == "a" * 63


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    assert load(written(tmp_path, ""), {}) == load(environment={})


@pytest.mark.parametrize("port", ["x", "5432.0", "", "-1", "5432; DROP"])
def test_a_bad_variable_is_told_by_its_name(port: str) -> None:
    if port == "":
        assert load(environment={"DB_PORT": port}).postgresql.port == 5432
        return
    with pytest.raises(UsageError, match="DB_PORT" if port != "-1" else "between 1 and 65535"):
        load(environment={"DB_PORT": port})


def test_a_bad_option_is_told() -> None:
    with pytest.raises(UsageError, match="retention_days in the command line must be a whole number"):
        load(environment={}, command_line={"retention_days": "x"})


def test_a_named_file_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"reading the configuration .*gone\.yml failed: no such file"):
        load(tmp_path / "gone.yml", {})
    with pytest.raises(UsageError, match="reading the configuration"):
        load(tmp_path, {})


# --- secrets


def test_secrets_are_masked_wherever_settings_are_shown() -> None:
    words = {
        "DB_PASSWORD": "one secret",
        "REDIS_PASSWORD": "two secret",
        "QDRANT_API_KEY": "three",
        "NOTIFY_SLACK_WEBHOOK": "four",
    }
    settings = load(environment=words)
    rows = {name: (text, source) for name, text, source in shown(settings)}
    for name, variable in zip(SECRETS, ("DB_PASSWORD", "REDIS_PASSWORD", "QDRANT_API_KEY", "NOTIFY_SLACK_WEBHOOK"), strict=True):
        assert rows[name] == (MASK, variable)
    assert sorted(settings.secrets()) == sorted(words.values())
    assert not any(secret in str(rows) for secret in words.values())
    assert {name: text for name, text, __ in shown(load(environment={}))}["redis.password"] == ""


@pytest.mark.parametrize("name", SECRETS)
def test_every_secret_setting_is_marked_as_one(name: str) -> None:
    marked = {known for known, option, __ in walk(Settings()) if option.metadata["secret"]}
    assert name in marked


def test_every_setting_that_sounds_secret_is_marked_as_one() -> None:
    for name, option, __ in walk(Settings()):
        if any(word in name for word in ("password", "key", "webhook", "token", "secret")) and not name.endswith(
            ("_keys", "keyfile")
        ):
            assert option.metadata["secret"], name


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o666, 0o620, 0o602])
@pytest.mark.parametrize("content", ["redis: {password: x}", "notify_slack_webhook: x", "qdrant: {api_key: x}"])
def test_a_file_with_a_secret_that_others_can_read_or_change_is_refused(tmp_path: Path, content: str, mode: int) -> None:
    path = written(tmp_path, content, mode)
    with pytest.raises(UsageError, match=f"holds a secret and is open to others: chmod 600 {path}"):
        load(path, {})


@pytest.mark.parametrize(
    ("content", "mode"), [("redis: {password: x}", 0o600), ("redis: {password: x}", 0o640), ("instance: x", 0o644)]
)
def test_a_file_that_is_closed_or_holds_no_secret_is_taken(tmp_path: Path, content: str, mode: int) -> None:
    load(written(tmp_path, content, mode), {})


@pytest.mark.parametrize("content", ["0123", "12345", "1_000", "1.50", "0x10", "2025-01-03", "yes", "[x]"])
def test_a_password_that_yaml_takes_for_something_else_is_refused_and_not_shown(tmp_path: Path, content: str) -> None:
    """YAML reads 0123 as the number 83: a wrong password, silently."""
    path = written(tmp_path, f"redis: {{password: {content}}}")
    with pytest.raises(UsageError, match=r"redis\.password in .* must be text.*quotes") as caught:
        load(path, {})
    assert content not in str(caught.value).replace(str(path), "")
    assert load(written(tmp_path, f"redis: {{password: '{content}'}}"), {}).redis.password == content


def test_a_password_with_every_awkward_sign_is_kept(tmp_path: Path) -> None:
    password = "pa ss'w\"or$d\\ ü#: {x}"
    quoted = password.replace("'", "''")
    assert load(written(tmp_path, f"redis:\n  password: '{quoted}'\n"), {}).redis.password == password


def test_no_error_shows_a_secret(tmp_path: Path) -> None:
    path = written(tmp_path, "redis:\n  password: 'hidden secret\n  port: [\n")
    with pytest.raises(UsageError) as caught:
        load(path, {})
    assert "hidden" not in str(caught.value)


def test_every_setting_says_what_it_is() -> None:
    for name, option, __ in walk(Settings()):
        assert len(option.metadata["help"]) > 10, name
    assert len({os.fsencode(name) for name, __, __ in walk(Settings())}) == len(walk(Settings()))


def test_an_ipv6_address_stands_in_brackets() -> None:
    assert load(environment={"QDRANT_HOST": "::1"}).qdrant.urls() == ["http://[::1]:6333"]
    assert load(environment={"QDRANT_URL": "http://[::1]:1/, http://b"}).qdrant.urls() == ["http://[::1]:1", "http://b"]


def test_a_password_in_an_address_is_a_secret_too() -> None:
    settings = load(environment={"QDRANT_URL": "http://me:geheim99@one:6333,http://two"})
    assert "geheim99" in settings.secrets()
    assert "geheim99" not in str(shown(settings))
    assert "http://me:********@one:6333,http://two" in str(shown(settings))


# --- drop-ins, systemd's credential, instances


def dropped(file: Path, name: str, content: str, mode: int = 0o600) -> Path:
    path = file.with_suffix(".d") / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    path.chmod(mode)
    return path


def test_drop_ins_count_in_the_order_of_their_names_and_say_where_a_value_came_from(tmp_path: Path) -> None:
    path = written(tmp_path, "retention_days: 1\ninstance: a\ncompression: zstd\n")
    last = dropped(path, "20-b.yml", "retention_days: 3\nredis: {password: geheim}\n")
    first = dropped(path, "10-a.yml", "retention_days: 2\ninstance: b\n", 0o644)
    settings = load(path, {"REDIS_HOST": "elsewhere"})
    assert (settings.retention_days, settings.instance, settings.compression) == (3, "b", "zstd")
    assert settings.sources == {
        "retention_days": str(last),
        "instance": str(first),
        "compression": str(path),
        "redis.password": str(last),
        "redis.host": "REDIS_HOST",
    }
    assert ("redis.password", MASK, str(last)) in shown(settings)


def test_environment_and_command_line_win_over_drop_ins(tmp_path: Path) -> None:
    path = written(tmp_path, "")
    dropped(path, "a.yml", "postgresql: {host: d, port: 1}\n")
    settings = load(path, {"DB_PORT": "2"}, {"postgresql.host": "c"})
    assert (settings.postgresql.host, settings.postgresql.port) == ("c", 2)


def test_only_visible_yml_files_are_drop_ins(tmp_path: Path) -> None:
    path = written(tmp_path, "")
    for name in (".ansible_tmpx-a.yml", "a.yml~", "a.yaml", "README", "a.yml.dpkg-old"):
        dropped(path, name, "instance: [wrong\n")
    assert load(path, {}).sources == {}


def test_drop_ins_of_the_default_file_count_without_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "DEFAULT_FILE", tmp_path / "config.yml")
    drop_in = dropped(tmp_path / "config.yml", "a.yml", "instance: blue\n")
    settings = load(environment={})
    assert (settings.instance, settings.sources["instance"]) == ("blue", str(drop_in))


@pytest.mark.parametrize(
    ("content", "mode", "sentence"),
    [
        ("retention_day: 3", 0o600, "has an unknown setting 'retention_day': did you mean 'retention_days'"),
        ("retention_days: many", 0o600, "retention_days in {} must be a whole number, not 'many'"),
        ("retention_days: [", 0o600, "the configuration {} is not valid YAML at line"),
        ("- a", 0o600, "the configuration {} must be a mapping"),
        ("redis: {password: x}", 0o644, "the configuration {} holds a secret and is open to others: chmod 600 {}"),
        ("redis: {password: 0123}", 0o600, r"redis\.password in {} must be text: put it in quotes"),
    ],
)
def test_a_bad_drop_in_is_told_by_its_own_path(tmp_path: Path, content: str, mode: int, sentence: str) -> None:
    path = written(tmp_path, "instance: fine\n")
    drop_in = dropped(path, "bad.yml", content, mode)
    with pytest.raises(UsageError, match=sentence.replace("{}", str(drop_in)).replace("{ ", "{")) as caught:
        load(path, {})
    assert str(drop_in) in str(caught.value)


def test_drop_ins_that_are_no_directory_are_told(tmp_path: Path) -> None:
    path = written(tmp_path, "")
    path.with_suffix(".d").write_text("")
    with pytest.raises(UsageError, match=r"reading the configuration's drop-ins in .*config\.d failed"):
        load(path, {})


def test_systemds_credential_is_the_last_file(tmp_path: Path) -> None:
    path = written(tmp_path, "redis: {password: first, port: 1}\n")
    dropped(path, "z.yml", "redis: {password: second}\n")
    place = tmp_path / "credentials"
    place.mkdir()
    assert load(path, {"CREDENTIALS_DIRECTORY": str(place)}).redis.password == "second"
    credential = place / "agentmem-backup.yml"
    credential.write_text("redis: {password: third}\n")
    credential.chmod(0o440)  # as systemd makes it for a service with User=
    settings = load(path, {"CREDENTIALS_DIRECTORY": str(place)})
    assert (settings.redis.password, settings.redis.port) == ("third", 1)
    assert settings.sources["redis.password"] == str(credential)
    assert load(path, {"CREDENTIALS_DIRECTORY": str(tmp_path / "gone")}).redis.password == "second"


def test_an_instance_is_a_file_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "DEFAULT_FILE", tmp_path / "config.yml")
    (tmp_path / "blue.yml").write_text("backup_dir: /b\n")
    assert module.instance_file("blue") == tmp_path / "blue.yml"
    assert module.instance_file("default") is None


@pytest.mark.parametrize("name", ["config", "../x", "", "a/b", "-x", ".x", "ü", "a b", "a\nb", "x" * 65])
def test_a_name_that_no_instance_can_have_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    monkeypatch.setattr(module, "DEFAULT_FILE", tmp_path / "config.yml")
    with pytest.raises(UsageError, match="an instance cannot be named"):
        module.instance_file(name)


def test_an_instance_that_is_not_there_is_told_with_those_that_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "DEFAULT_FILE", tmp_path / "etc" / "config.yml")
    with pytest.raises(UsageError, match=r"there is no instance 'blue': .*blue\.yml does not exist$"):
        module.instance_file("blue")
    (tmp_path / "etc").mkdir()
    for name in ("config.yml", "green.yml", ".blue.yml", "red.d"):
        (tmp_path / "etc" / name).touch()
    with pytest.raises(UsageError, match=r"does not exist; there are default, green$"):
        module.instance_file("blue")


@pytest.mark.parametrize(
    ("words", "instance", "directory"),
    [
        (["--instance", "blue", "config"], "blue", "/b"),
        (["config", "--instance", "blue"], "blue", "/b"),
        (["--instance=green", "config", "--instance", "blue"], "blue", "/b"),
        (["--instance", "default", "config"], "default", "/d"),
        (["config"], "default", "/d"),
        (["config", "--instance", "other", "--config", "FILE"], "other", "/f"),
    ],
)
def test_the_command_takes_an_instance_before_and_after_the_verb(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    words: list[str], instance: str, directory: str,
) -> None:  # fmt: skip
    for name in [name for name in os.environ if name.startswith(("BACKUP_", "DB_", "REDIS_", "QDRANT_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(module, "DEFAULT_FILE", tmp_path / "config.yml")
    for name, place in (("config", "/d"), ("blue", "/b"), ("file", "/f")):
        (tmp_path / f"{name}.yml").write_text(f"backup_dir: {place}\n")
    assert cli.main([str(tmp_path / "file.yml") if word == "FILE" else word for word in [*words, "--json"]]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["instance"]["value"], told["backup_dir"]["value"]) == (instance, directory)
