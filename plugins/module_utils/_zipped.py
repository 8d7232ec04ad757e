# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible sends a module as a zip, out of which Python compiles every file anew, and twice: this has it done once.

Parses on Python 3.8; see _module.py.
"""

from __future__ import annotations

import sys
import zipimport


class _Importer(zipimport.zipimporter):
    """Tells a file's name by where it lies. zipimport's own compiles it for that, and once more to run it (CPython 3.8 to 3.14,
    Lib/zipimport.py: get_filename and get_code both call _get_module_code)."""

    def get_filename(self, fullname):
        end = "/__init__.py" if self.is_package(fullname) else ".py"
        return f"{self.archive}/{self.prefix}{fullname.rpartition('.')[2]}{end}"


def compile_once():
    """What is imported from now on out of a zip is compiled once. Changes nothing where there is no zip, or a second time."""
    if _Importer in sys.path_hooks:
        return
    sys.path_hooks.insert(0, _Importer)
    for place, importer in list(sys.path_importer_cache.items()):
        if isinstance(importer, zipimport.zipimporter):
            del sys.path_importer_cache[place]
