# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules' door: which interpreter, whose settings, and how every failure becomes one sentence."""

from __future__ import annotations

import ast
import signal
import sys
from pathlib import Path

import pytest
from ansible_collections.agentmem.backup.plugins.module_utils import _argspec, _module
from ansible_collections.agentmem.backup.plugins.module_utils._engine.errors import LockedError
from ansible_collections.agentmem.backup.plugins.module_utils._engine.preflight import NotReady

PLUGINS = Path(__file__).parents[4] / "plugins"


class Left(Exception):
    """The module has left, with this result."""


class FakeModule:
    """What the door uses of AnsibleModule."""

    check_mode = False
    _diff = False

    def __init__(self, **params):
        options = _argspec.COMMON + _argspec.CREATE + _argspec.STORES
        self.params = {**dict.fromkeys(options.options), "interpreter": "/nonexistent/bin/python", **params}
        self.no_log_values = set()
        self.warnings = []

    def fail_json(self, **result):
        raise Left({"failed": True, **result})

    def exit_json(self, **result):
        raise Left({"failed": False, **result})

    def warn(self, text):
        self.warnings.append(text)


@pytest.fixture(autouse=True)
def _signals_stay():
    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    yield
    for one, handler in before.items():
        signal.signal(one, handler)


@pytest.fixture(autouse=True)
def no_configuration(monkeypatch, tmp_path):
    """Neither this machine's configuration nor its environment: an empty file, named in every task."""
    for name in ("BACKUP_DIR", "DB_HOST", "DB_PORT", "DB_PASSWORD", "REDIS_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "config.yml"
    file.write_text("")
    file.chmod(0o600)
    return file


def outcome(action, no_configuration, monkeypatch, **params):
    """(module, result) of a run in an interpreter that can run the engine."""
    monkeypatch.setattr(_module, "find_interpreter", lambda module: None)
    module = FakeModule(settings_file=str(no_configuration), **params)
    with pytest.raises(Left) as left:
        _module.run(module, action)
    return module, left.value.args[0]


# --- which interpreter


def interpreter(monkeypatch, *, lacking=(), version=(3, 12, 0), respawned=False, there=False, tmp_path=None):
    """What `find_interpreter` does: returns, leaves with a result, or respawns under a path."""
    path = "/nonexistent/bin/python"
    if there:
        path = str(tmp_path / "venv" / "bin" / "python")
        Path(path).parent.mkdir(parents=True)
        Path(path).touch(0o755)
    monkeypatch.setattr(_module, "missing", lambda names: [name for name in names if name in lacking])
    monkeypatch.setattr(_module.sys, "version_info", version)
    monkeypatch.setattr(_module, "has_respawned", lambda: respawned)
    monkeypatch.setattr(_module, "_installed_format", lambda: None)

    def respawn(where):
        raise Left(f"respawned under {where}")

    monkeypatch.setattr(_module, "respawn_module", respawn)
    try:
        _module.find_interpreter(FakeModule(interpreter=path))
    except Left as left:
        return left.args[0]
    return None


def test_a_python_that_has_everything_goes_on(monkeypatch, tmp_path):
    assert interpreter(monkeypatch, there=True, tmp_path=tmp_path) is None


@pytest.mark.parametrize("lacking", [["psycopg"], ["isal"]])
def test_where_a_library_is_missing_the_virtual_environment_takes_over(monkeypatch, tmp_path, lacking):
    assert str(interpreter(monkeypatch, lacking=lacking, there=True, tmp_path=tmp_path)).startswith("respawned under")


def test_an_old_python_goes_on_in_the_virtual_environment(monkeypatch, tmp_path):
    said = interpreter(monkeypatch, version=(3, 9, 18), there=True, tmp_path=tmp_path)
    assert said == f"respawned under {tmp_path}/venv/bin/python"


def test_without_what_only_helps_and_without_a_virtual_environment_it_goes_on(monkeypatch):
    assert interpreter(monkeypatch, lacking=["isal", "zstandard"]) is None


def test_everything_that_is_missing_is_named_at_once_with_the_command(monkeypatch):
    result = interpreter(monkeypatch, lacking=["httpx", "redis"])
    assert result["failed"]
    assert "lacks the libraries httpx, redis, and there is no /nonexistent/bin/python" in result["msg"]
    assert result["msg"].endswith(
        "python3 -m venv /nonexistent && /nonexistent/bin/python -m pip install 'httpx' 'psycopg[binary]' 'redis' 'PyYAML'"
    )


def test_a_virtual_environment_that_lacks_something_is_not_entered_twice(monkeypatch, tmp_path):
    result = interpreter(monkeypatch, lacking=["httpx", "redis"], respawned=True, there=True, tmp_path=tmp_path)
    assert result["msg"].endswith(f"install them with: {sys.executable} -m pip install 'httpx' 'redis'")


def test_an_old_python_alone_says_that_it_is_too_old(monkeypatch):
    result = interpreter(monkeypatch, version=(3, 8, 18))
    assert "is older than 3.10, and there is no /nonexistent/bin/python" in result["msg"]


def test_another_format_on_the_host_is_refused_with_both_numbers(monkeypatch):
    monkeypatch.setattr(_module, "_installed_format", lambda: 9)
    with pytest.raises(Left) as left:
        _module._check_format(FakeModule())
    message = left.value.args[0]["msg"]
    assert "have format 1" in message
    assert "have format 9" in message


def top_level_imports(path):
    """Files of ours that a file imports as soon as it is imported itself."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            base = (
                path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
                if node.module
                else path.parents[node.level - 1]
            )
            for name in [base, *(base / one.name for one in node.names)]:
                yield from (one for one in (name.with_suffix(".py"), name / "__init__.py") if one.is_file())


def test_what_runs_before_the_respawn_parses_on_python_3_8():
    seen, ahead = set(), sorted((PLUGINS / "modules").glob("*.py"))
    while ahead:
        path = ahead.pop()
        if path not in seen:
            seen.add(path)
            ahead += top_level_imports(path)
    names = {path.name for path in seen}
    assert {"_module.py", "_argspec.py", "_info.py", "_actions.py", "libraries.py", "errors.py"} <= names
    assert "settings.py" not in names
    for path in seen:
        ast.parse(path.read_text(), feature_version=(3, 8))


# --- whose settings


def test_an_option_that_is_not_given_leaves_the_host_its_say(no_configuration, monkeypatch):
    no_configuration.write_text("backup_dir: /from/file\npostgresql:\n  host: filehost\n  port: 1111\n  user: fileuser\n")
    monkeypatch.setenv("DB_PORT", "2222")
    seen = {}
    outcome(lambda task: seen.update(vars(task.settings)) or {}, no_configuration, monkeypatch, postgresql_user="optionuser")
    assert seen["backup_dir"] == "/from/file"
    database = seen["postgresql"]
    assert (database.host, database.port, database.user, database.database) == ("filehost", 2222, "optionuser", "agentmem")
    assert seen["sources"]["postgresql.user"] == "module's options"


def test_other_settings_come_by_their_dotted_names(no_configuration, monkeypatch):
    seen = {}
    more = {"redis.save_timeout_s": 7, "hooks.before": ["true"]}
    outcome(lambda task: seen.update(vars(task.settings)) or {}, no_configuration, monkeypatch, settings=more, lock_wait=3.5)
    assert (seen["redis"].save_timeout_s, seen["hooks"].before, seen["lock_wait_s"]) == (7.0, ["true"], 3.5)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"nonsense": 1}, "settings has an unknown name 'nonsense'"),
        ({"postgresql.host": "here"}, "postgresql.host is given twice: as an option, and in settings"),
        ({"postgresql.jobs": "many"}, "postgresql.jobs in the module's options must be a whole number, not 'many'"),
    ],
)
def test_bad_settings_are_one_sentence(no_configuration, monkeypatch, given, said):
    _unused, result = outcome(lambda task: {}, no_configuration, monkeypatch, settings=given, postgresql_host="there")
    assert said in result["msg"]
    assert (result["failed"], result["changed"], result["exit_code"]) == (True, False, 2)


def test_a_secret_among_the_settings_is_refused_and_hidden(no_configuration, monkeypatch):
    given = {"redis.password": "in the open"}
    module, result = outcome(lambda task: {}, no_configuration, monkeypatch, settings=given)
    assert "redis.password is a secret" in result["msg"]
    assert "in the open" in module.no_log_values


def test_secrets_of_the_host_are_hidden_as_well(no_configuration, monkeypatch):
    no_configuration.write_text("redis:\n  password: of-the-host\n")
    module, _result = outcome(lambda task: {}, no_configuration, monkeypatch)
    assert module.no_log_values == {"of-the-host"}


# --- how it ends


def failing(error):
    def action(task):
        task.log.warn("something to know")
        raise error

    return action


def test_the_engines_sentence_comes_through_with_its_exit_code_and_warnings(no_configuration, monkeypatch):
    module, result = outcome(failing(LockedError("locked by another")), no_configuration, monkeypatch)
    assert result == {"failed": True, "changed": False, "msg": "locked by another", "exit_code": 75}
    assert module.warnings == ["something to know"]


def test_all_obstacles_come_through(no_configuration, monkeypatch):
    _it, result = outcome(failing(NotReady(["one", "two"], "back up")), no_configuration, monkeypatch)
    assert result["problems"] == ["one", "two"]
    assert result["msg"] == "not ready to back up: one; two"


def test_an_unexpected_error_is_one_sentence_and_no_traceback(no_configuration, monkeypatch):
    _it, result = outcome(failing(ZeroDivisionError("by\nzero")), no_configuration, monkeypatch)
    assert result["msg"] == "unexpected ZeroDivisionError: by zero (please report this)"
    assert "exception" not in result
    assert result["changed"] is False


def test_nothing_is_being_handled_when_the_module_fails(no_configuration, monkeypatch):
    """Ansible adds the traceback of whatever is being handled at that moment."""
    handled = []
    monkeypatch.setattr(
        FakeModule, "fail_json", lambda self, **result: handled.append(sys.exc_info()[0]) or FakeModule.exit_json(self)
    )
    outcome(failing(ZeroDivisionError()), no_configuration, monkeypatch)
    assert handled == [None]


def test_a_failure_of_ours_keeps_its_facts(no_configuration, monkeypatch):
    error = _module.Failure("made, and suspicious", changed=True, id="20250103_120000")
    _it, result = outcome(failing(error), no_configuration, monkeypatch)
    assert result == {"failed": True, "changed": True, "id": "20250103_120000", "msg": "made, and suspicious"}
