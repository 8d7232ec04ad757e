# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the modules take: one spec for each doc fragment, merged with its constraints into a module's own.

An option is a setting of the engine under its own name, with `_` where the setting has a dot (`postgresql.host` is
`postgresql_host`). None has a default: what is not given is left to the host's configuration. Parses on Python 3.8.
"""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule, env_fallback

INTERPRETER = "/opt/agentmem-backup/venv/bin/python"
COMPONENTS = ("postgresql", "redis", "qdrant", "config")
SETTINGS_OF = {"lock_wait": "lock_wait_s"}
"""Option → setting, where the one's name does not follow from the other's."""


class ArgumentSpec:
    """Options with the constraints between them."""

    def __init__(self, options=None, **constraints):
        """`constraints` as AnsibleModule takes them: mutually_exclusive, required_one_of, required_if, …, each a list."""
        self.options = dict(options or {})
        self.constraints = {kind: list(rules) for kind, rules in constraints.items()}

    def __add__(self, other):
        merged = ArgumentSpec(self.options, **self.constraints)
        merged.options.update(other.options)
        for kind, rules in other.constraints.items():
            merged.constraints[kind] = merged.constraints.get(kind, []) + rules
        return merged

    def make(self):
        """The module of these options."""
        return AnsibleModule(argument_spec=self.options, supports_check_mode=True, **self.constraints)


def _text(**more):
    return dict(type="str", **more)


def _words(**more):
    return dict(type="list", elements="str", **more)


COMMON = ArgumentSpec(
    {
        "backup_dir": {"type": "path"},
        "settings_file": {"type": "path"},
        "settings": {"type": "dict"},
        "interpreter": {"type": "path", "default": INTERPRETER, "fallback": (env_fallback, ["AGENTMEM_BACKUP_PYTHON"])},
    }
)

POSTGRESQL = ArgumentSpec(
    {
        "postgresql_host": _text(),
        "postgresql_port": {"type": "int"},
        "postgresql_database": _text(),
        "postgresql_user": _text(),
        "postgresql_password": _text(no_log=True),
        "postgresql_sslmode": _text(choices=["disable", "allow", "prefer", "require", "verify-ca", "verify-full"]),
        "postgresql_sslrootcert": {"type": "path"},
        "postgresql_bin_dir": {"type": "path"},
    }
)
POSTGRESQL_FILTERS = ArgumentSpec({"postgresql_include_tables": _words(), "postgresql_exclude_tables": _words()})
POSTGRESQL_TARGET = ArgumentSpec({"postgresql_only_tables": _words()})

REDIS = ArgumentSpec(
    {
        "redis_host": _text(),
        "redis_port": {"type": "int"},
        "redis_username": _text(),
        "redis_password": _text(no_log=True),
        "redis_data_dir": {"type": "path"},
        "redis_tls": {"type": "bool"},
        "redis_cacert": {"type": "path"},
        "redis_certfile": {"type": "path"},
        "redis_keyfile": {"type": "path", "no_log": False},
    }
)
REDIS_FILTERS = ArgumentSpec(
    {
        "redis_method": _text(choices=["auto", "copy", "stream"]),
        "redis_include_keys": _words(no_log=False),
        "redis_exclude_keys": _words(no_log=False),
    }
)
REDIS_TARGET = ArgumentSpec({"redis_restore_method": _text(choices=["auto", "replicate", "file", "keys"])})

QDRANT = ArgumentSpec(
    {
        "qdrant_url": _text(),
        "qdrant_api_key": _text(no_log=True),
        "qdrant_cacert": {"type": "path"},
        "qdrant_data_dir": {"type": "path"},
    }
)
QDRANT_FILTERS = ArgumentSpec({"qdrant_include_collections": _words(), "qdrant_exclude_collections": _words()})
QDRANT_TARGET = ArgumentSpec(
    {
        "qdrant_only_collections": _words(),
        "qdrant_collection_prefix": _text(),
        "qdrant_restore_method": _text(choices=["overwrite", "alias"]),
    }
)

CONFIG = ArgumentSpec({"config_directory": {"type": "path"}, "config_extra_paths": {"type": "list", "elements": "path"}})

STORES = POSTGRESQL + REDIS + QDRANT + CONFIG
FILTERS = POSTGRESQL_FILTERS + REDIS_FILTERS + QDRANT_FILTERS
COMPONENTS_OPTION = ArgumentSpec({"components": _words(choices=list(COMPONENTS))})

CREATE = ArgumentSpec(
    {
        "max_age": _text(),
        "instance": _text(),
        "fingerprint": _text(choices=["counts", "content"]),
        "compression": _text(choices=["gzip", "zstd"]),
        "compression_level": {"type": "int"},
        "retention_days": {"type": "int"},
        "lock_wait": {"type": "float"},
    }
)

DUMPS = {
    "backup_set_create": COMMON + CREATE + STORES + COMPONENTS_OPTION + FILTERS,
    "postgresql_dump": COMMON + CREATE + POSTGRESQL + POSTGRESQL_FILTERS,
    "redis_dump": COMMON + CREATE + REDIS + REDIS_FILTERS,
    "qdrant_dump": COMMON + CREATE + QDRANT + QDRANT_FILTERS,
    "config_dump": COMMON + CREATE + CONFIG,
}
"""Module → what it takes, for those that make sets; their action plugin must know it as well."""

INFO = ArgumentSpec({"id": _text(), "max_age": _text()}, mutually_exclusive=[("id", "max_age")])

DEPTH = ArgumentSpec({"depth": _text(default="full", choices=["quick", "full"])})
VERIFY = DEPTH + ArgumentSpec({"id": _text(), "path": {"type": "path"}}, mutually_exclusive=[("id", "path")])
VERIFY_SET = DEPTH + ArgumentSpec(
    {"id": _text(), "acknowledge": {"type": "bool", "default": False}},
    required_if=[("acknowledge", True, ("id",))],
)

REPORT = ArgumentSpec({"days": {"type": "int", "default": 90}, "max_age": _text(default="26h")})

SYNC = ArgumentSpec(
    {
        "action": _text(default="push", choices=["push", "pull", "check"]),
        "id": _text(),
        "targets": _words(),
        "host": _text(),
        "read_back": {"type": "bool", "default": False},
        "lock_wait": {"type": "float"},
    },
    required_if=[("action", "pull", ("id",))],
)

RESTORE = ArgumentSpec(
    {
        "id": _text(),
        "before": _text(),
        "confirm": {"type": "bool", "default": False},
        "force": {"type": "bool", "default": False},
        "accept": _words(choices=["maxmemory", "roles", "topology", "version"]),
        "services": _words(),
        "health_url": _text(),
        "lock_wait": {"type": "float"},
    }
)
RESTORE_ONE = RESTORE + ArgumentSpec(
    {"path": {"type": "path"}},
    mutually_exclusive=[("id", "before", "path")],
    required_one_of=[("id", "before", "path")],
)
RESTORE_SET = (
    RESTORE
    + COMPONENTS_OPTION
    + ArgumentSpec(
        {"files": {"type": "dict", "options": {name: {"type": "path"} for name in COMPONENTS}}},
        mutually_exclusive=[("id", "before", "files"), ("components", "files")],
        required_one_of=[("id", "before", "files")],
    )
)


def settings_of(options):
    """Option → setting, for those of `options` that are settings of the engine."""
    apart = {"settings_file", "settings", "interpreter", "max_age", "depth", "id", "before", "path", "files", "confirm", "force"}
    apart |= {"accept", "acknowledge", "postgresql_only_tables", "qdrant_only_collections", "qdrant_collection_prefix", "days"}
    apart |= {"action", "targets", "host", "read_back"}
    found = {}
    for option in set(options) - apart:
        section, __, rest = option.partition("_")
        dotted = section + "." + rest if section in COMPONENTS else option
        found[option] = SETTINGS_OF.get(option, dotted)
    return found
