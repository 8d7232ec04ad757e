# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every module takes."""

from __future__ import annotations


class ModuleDocFragment:
    """Options as `module_utils/_argspec.py` has them."""

    DOCUMENTATION = r"""
options:
  backup_dir:
    description:
      - Directory in which the backup sets lie, an absolute path on the host.
      - What is not given here comes from the environment variable E(BACKUP_DIR), else from the host's configuration file, else
        it is V(/backups/agentmem).
    type: path
  settings_file:
    description:
      - Configuration file on the host. One that is named must exist.
      - Without it V(/etc/agentmem-backup/config.yml) is read where there is one.
    type: path
  settings:
    description:
      - Any other setting of the engine, by its name with dots, such as V(redis.save_timeout_s). C(agentmem-backup config --show)
        prints them all.
      - Secrets are refused here, because a dictionary is shown in Ansible's output. They have options of their own.
    type: dict
  interpreter:
    description:
      - Python of the virtual environment on the host that has the engine's libraries. The module goes on in it where the Python
        that Ansible has found lacks one of them or is older than 3.10.
      - Where the environment variable E(AGENTMEM_BACKUP_PYTHON) is set, it is the default.
    type: path
    default: /opt/agentmem-backup/venv/bin/python
requirements:
  - Python 3.10 or newer on the host, with C(httpx), C(psycopg), C(redis) and C(PyYAML), in O(interpreter) or in the Python that
    Ansible uses there
notes:
  - An option that is not given leaves the matter to the guide's environment variables, then to the host's configuration file,
    then to the default, exactly as the command C(agentmem-backup) does. C(agentmem-backup config --show) prints what applies.
  - Give secrets as options or in the host's configuration file. Ansible shows a task's C(environment) with C(-vvv).
  - Where a set does not verify, or another run is at work, the module fails with the sentence that the command prints. The result
    has the command's C(exit_code), and C(problems) with every obstacle where a run could not begin.
"""
