# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules' door to the engine: `run` finds an interpreter that has its libraries, loads settings, calls, and leaves.

What stands here runs in whatever Python Ansible found on the host, and must parse on 3.8. The engine is imported once
an interpreter is found that can run it, inside functions; Ansible's packer finds the imports there as well.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from ansible.module_utils.common.respawn import has_respawned, respawn_module

from ._argspec import settings_of
from ._engine.libraries import HELPFUL, PACKAGES, REQUIRED, missing
from ._zipped import compile_once

OLDEST_PYTHON = (3, 10)


class Failure(Exception):
    """The module fails with these facts: `msg` and whatever the task's result shall have."""

    def __init__(self, msg, **facts):
        super().__init__(msg)
        self.facts = dict(facts, msg=msg)


class Task:
    """What an action works with: the module's parameters, the engine's settings, and a log that keeps the warnings."""

    def __init__(self, module, settings, log):
        self.module = module
        self.params = module.params
        self.check_mode = module.check_mode
        self.settings = settings
        self.log = log

    def begin(self):
        """From now on something is done: what the engine tells goes to LOG_DIR/backup.log as well. Returns the log."""
        from ._engine import process
        from ._engine.log import Log

        process.keep_freed_memory()
        process.look_for_cycles_less_often()
        before, self.log = self.log, Log(self.settings)
        self.log.warnings[:0] = before.warnings
        return self.log


def run(module, action):
    """Call `action(task)`, which returns the task's result, in an interpreter that can; and leave. Never returns.

    Every failure is one sentence in `msg`: the engine's own, with its `exit_code` and, where a run could not begin, all
    its `problems`. An unexpected error is one sentence as well; where it came from is in the log.
    """
    compile_once()
    find_interpreter(module)
    result, failed = _outcome(module, action)
    # Outside of any except block: there Ansible would add a traceback.
    if failed:
        module.fail_json(**result)
    module.exit_json(**result)


def find_interpreter(module):
    """Return where this Python can run the engine, else go on in the host's virtual environment, else fail."""
    lacking = missing(REQUIRED)
    able = sys.version_info >= OLDEST_PYTHON and not lacking
    interpreter = module.params["interpreter"]
    there = os.access(interpreter, os.X_OK) and not Path(interpreter).is_dir()
    if there and not has_respawned() and not _is_current(interpreter) and (not able or missing(HELPFUL)):
        trouble = None
        try:
            respawn_module(interpreter)
        except OSError as error:
            trouble = error.strerror
        module.fail_json(msg=f"{interpreter} cannot be started: {trouble}; make that virtual environment anew")
    if not able:
        module.fail_json(msg=_what_is_missing(lacking, interpreter, there))
    _check_format(module)


def _is_current(interpreter):
    return str(Path(interpreter).absolute().parent.parent) == sys.prefix


def _what_is_missing(lacking, interpreter, there):
    """One sentence: what this Python lacks, and the one command that helps."""
    old = sys.version_info < OLDEST_PYTHON
    faults = [f"is older than {OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]}"] if old else []
    faults += [f"lacks the libraries {', '.join(lacking)}"] if lacking else []
    this = f"Python {platform.python_version()} ({sys.executable}) {' and '.join(faults)}"
    if there and not old:
        packages = " ".join(f"'{PACKAGES[name]}'" for name in lacking)
        return f"{this}: install them with: {sys.executable} -m pip install {packages}"
    packages = " ".join(f"'{PACKAGES[name]}'" for name in REQUIRED)
    command = f"python3 -m venv {Path(interpreter).parent.parent} && {interpreter} -m pip install {packages}"
    absent = "" if there else f", and there is no {interpreter}"
    return f"{this}{absent}: make that virtual environment with Python 3.10 or newer: {command}"


def _check_format(module):
    """Two engines that write different manifests must not work in one backup directory."""
    from ._engine.manifest import FORMAT

    installed = _installed_format()
    if installed not in (None, FORMAT):
        module.fail_json(
            msg=f"this module's manifests have format {FORMAT}, and those of the agentmem_backup that is installed for "
            f"{sys.executable} have format {installed}: bring the collection and the host to the same version"
        )


def _installed_format():
    """The format of the engine that is installed in this Python; None where there is none."""
    try:
        from agentmem_backup import manifest
    except ImportError:
        return None
    return getattr(manifest, "FORMAT", "unknown")


def _outcome(module, action):
    """(the result, whether it is a failure)."""
    from ._engine import process
    from ._engine.errors import BackupError, one_line
    from ._engine.log import Log
    from ._engine.settings import Settings

    process.stop_on_signals()
    if has_respawned():
        process.end_with_parent()
    task = Task(module, Settings(), Log(Settings(), write=False))
    try:
        task.settings = _load(module)
        # Ansible masks them wherever they would show, in the result and in the invocation.
        module.no_log_values.update(one for one in task.settings.secrets() if len(one) > 3)
        return action(task), False
    except Failure as failure:
        return dict({"changed": False}, **failure.facts), True
    except BackupError as error:
        task.log.error(str(error))
        facts = {"msg": str(error), "exit_code": error.exit_code, "changed": False}
        if getattr(error, "problems", None):
            facts["problems"] = list(error.problems)
        return facts, True
    except Exception as error:
        task.log.error(str(error))
        task.log.trace(error)
        said = f"unexpected {type(error).__name__}: {one_line(error)} (please report this)"
        return {"msg": said, "exit_code": 1, "changed": False}, True
    finally:
        for warning in task.log.warnings:
            module.warn(warning)
        task.log.close()


def _load(module):
    """The engine's settings: what the task gives, before the environment, the host's file and the defaults."""
    from ._engine import targets
    from ._engine.errors import UsageError
    from ._engine.settings import Settings, load, walk

    known = {name: option for name, option, _value in walk(Settings())}
    options = settings_of(module.params)
    given = {options[name]: module.params[name] for name in options if module.params[name] is not None}
    more = module.params["settings"] or {}
    for name, value in more.items():
        if name in known and known[name].metadata["secret"]:
            module.no_log_values.add(str(value))
            raise UsageError(
                f"{name} is a secret and must not stand in settings: use the module's own option or the host's configuration file"
            )
        if name == targets.SETTING and targets.holds_secret(value):
            raise UsageError(f"{name} in settings holds a secret: secrets of targets belong to the host's configuration file")
        if name not in known:
            raise UsageError(f"settings has an unknown name {name!r} (see: agentmem-backup config --show)")
        if name in given:
            raise UsageError(f"{name} is given twice: as an option, and in settings")
        given[name] = value
    file = module.params["settings_file"]
    return load(Path(file) if file else None, command_line=given, given_by="module's options")
