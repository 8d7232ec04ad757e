# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action of backup_set_create and of the four dumps (meta/runtime.yml): a short cut where there is nothing to do.

Packing the whole engine and taking it to a host costs more than the answer. So the small backup_set_info is asked first, where
`max_age` is given. Whatever is not plainly fresh is left to the module, which asks the same question again and says what is
wrong where something is.
"""

from __future__ import annotations

from ansible.plugins.action.normal import ActionModule as NormalAction

from ..module_utils._argspec import COMMON, DUMPS, settings_of


class ActionModule(NormalAction):
    def run(self, tmp=None, task_vars=None):
        return self._fresh(task_vars) or super().run(tmp, task_vars)

    def _fresh(self, task_vars):
        """The module's result where there is a set that is young enough; else None."""
        question = self._question()
        if question is None:
            return None
        told = self._execute_module("agentmem.backup.backup_set_info", question, task_vars=task_vars)
        if not told.get("fresh"):
            return None
        own = ("exists", "fresh", "invocation", "newest_verified", "set", "sets")
        return {**{name: value for name, value in told.items() if name not in own}, **told["set"]}

    def _question(self):
        """What backup_set_info is to be asked; None where the task asks for nothing that it could answer."""
        name, args = self._task.action.rpartition(".")[2], self._task.args
        options = DUMPS[name].options
        given = {option: value for option, value in args.items() if value is not None}
        if self._task.async_val or "max_age" not in given or not given.keys() <= options.keys():
            return None
        question = {option: given[option] for option in (*COMMON.options, "components", "max_age") if option in given}
        if "components" not in options:
            question["components"] = [name.partition("_")[0]]
        settings = {setting: given[option] for option, setting in settings_of(given).items() if option not in question}
        secret = {setting for option, setting in settings_of(given).items() if options[option].get("no_log")}
        more = given.get("settings") or {}
        if not isinstance(more, dict) or more.keys() & settings.keys():
            return None
        question["settings"] = {**{one: settings[one] for one in settings.keys() - secret}, **more}
        return question
