# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options are said three times (fragment, spec, setting of the engine), and all three must say the same."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import yaml
from ansible_collections.agentmem.backup.plugins.module_utils import _argspec
from ansible_collections.agentmem.backup.plugins.module_utils._engine.settings import Settings, walk

PLUGINS = Path(__file__).parents[4] / "plugins"
HOME = "ansible_collections.agentmem.backup.plugins"
ACTIONS = {path.stem for path in (PLUGINS / "action").glob("*.py")} - {"backup_set_create"}
"""These run on the controller: their modules are nothing but documentation. That of backup_set_create is only a short cut."""
MODULES = sorted({path.stem for path in (PLUGINS / "modules").glob("*.py")} - ACTIONS)
KINDS = {"str": {"str", "path"}, "int": {"int"}, "float": {"float"}, "bool": {"bool"}, "list[str]": {"list"}}
"""Type of a setting → types of an option that may stand for it."""


def loaded(module):
    return importlib.import_module(f"{HOME}.modules.{module}")


def spec_of(module, monkeypatch):
    """The spec that a module makes its AnsibleModule of."""
    made = []

    def keep(self):
        made.append(self)

    monkeypatch.setattr(_argspec.ArgumentSpec, "make", keep)
    code = loaded(module)
    monkeypatch.setattr(code, "run", lambda module, action: None)
    code.main()
    return made[0]


def documented(module):
    """A module's documented options, those of its fragments included."""
    documentation = yaml.safe_load(loaded(module).DOCUMENTATION)
    options = dict(documentation.get("options") or {})
    for fragment in documentation["extends_documentation_fragment"]:
        name, _dot, part = fragment.removeprefix("agentmem.backup.").partition(".")
        source = importlib.import_module(f"{HOME}.doc_fragments.{name}").ModuleDocFragment
        options.update(yaml.safe_load(getattr(source, (part or "documentation").upper())).get("options") or {})
    return options


def facts(option):
    """What spec and documentation must agree on."""
    nested = option.get("options") or option.get("suboptions") or {}
    return {
        **{key: option.get(key) for key in ("type", "elements", "default", "required")},
        "choices": [str(one) for one in option.get("choices") or []],
        "nested": {name: facts(one) for name, one in nested.items()},
    }


@pytest.mark.parametrize("module", MODULES)
def test_fragments_say_what_the_spec_says(module, monkeypatch):
    spec = spec_of(module, monkeypatch)
    said = documented(module)
    assert {name: facts(one) for name, one in said.items()} == {name: facts(one) for name, one in spec.options.items()}


@pytest.mark.parametrize("module", MODULES)
def test_every_option_is_a_setting_of_the_engine_of_the_same_type(module, monkeypatch):
    settings = {name: option for name, option, _value in walk(Settings())}
    spec = spec_of(module, monkeypatch)
    for option, setting in _argspec.settings_of(spec.options).items():
        assert setting in settings, option
        said, meant = spec.options[option], settings[setting]
        assert said["type"] in KINDS[meant.type], option
        if meant.metadata["choices"]:
            assert tuple(said["choices"]) == tuple(meant.metadata["choices"]), option


@pytest.mark.parametrize("module", MODULES)
def test_an_option_that_is_a_setting_has_no_default(module, monkeypatch):
    """A default here would override the host's own configuration in every task that says nothing."""
    spec = spec_of(module, monkeypatch)
    assert [name for name in _argspec.settings_of(spec.options) if "default" in spec.options[name]] == []


@pytest.mark.parametrize("module", MODULES)
def test_secrets_and_nothing_else_is_hidden(module, monkeypatch):
    secret = {name for name, option, _value in walk(Settings()) if option.metadata["secret"]}
    spec = spec_of(module, monkeypatch)
    hidden = {name for name, option in spec.options.items() if option.get("no_log")}
    assert hidden == {name for name, setting in _argspec.settings_of(spec.options).items() if setting in secret}


@pytest.mark.parametrize("module", MODULES)
def test_modules_are_thin_and_say_what_they_are(module):
    text = (PLUGINS / "modules" / f"{module}.py").read_text()
    code = text.rpartition('"""')[2].strip().splitlines()
    assert len(code) <= 60
    for block in (loaded(module).DOCUMENTATION, loaded(module).EXAMPLES, loaded(module).RETURN):
        assert yaml.safe_load(block)
    assert yaml.safe_load(loaded(module).DOCUMENTATION)["module"] == module


def test_which_there_are():
    stores = {f"{store}_{verb}" for store in _argspec.COMPONENTS for verb in ("dump", "restore", "verify")}
    assert set(MODULES) == stores | {f"backup_set_{verb}" for verb in ("create", "verify", "restore", "info", "report", "sync")}
    assert {"backup_fleet_report"} == ACTIONS


def test_constraints_are_merged_with_the_options():
    one = _argspec.ArgumentSpec({"a": {"type": "str"}}, mutually_exclusive=[("a", "b")])
    two = _argspec.ArgumentSpec({"b": {"type": "str"}}, mutually_exclusive=[("b", "c")], required_one_of=[("a", "b")])
    both = one + two
    assert sorted(both.options) == ["a", "b"]
    assert both.constraints == {"mutually_exclusive": [("a", "b"), ("b", "c")], "required_one_of": [("a", "b")]}
    assert one.constraints == {"mutually_exclusive": [("a", "b")]}
