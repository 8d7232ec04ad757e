# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where PostgreSQL is."""

from __future__ import annotations


class ModuleDocFragment:
    """Options as `module_utils/_argspec.py` has them."""

    DOCUMENTATION = r"""
options:
  postgresql_host:
    description:
      - Host name, address or socket directory of the server. In the environment E(DB_HOST).
    type: str
  postgresql_port:
    description:
      - Port of the server. In the environment E(DB_PORT).
    type: int
  postgresql_database:
    description:
      - Database to work on. In the environment E(DB_NAME).
      - A restore under a name that does not exist yet makes that database.
    type: str
  postgresql_user:
    description:
      - Role to connect as. In the environment E(DB_USER).
    type: str
  postgresql_password:
    description:
      - Password of the role. In the environment E(DB_PASSWORD). Without it libpq's own ways apply, such as E(PGPASSFILE).
    type: str
  postgresql_sslmode:
    description:
      - How libpq uses TLS. In the environment E(DB_SSLMODE).
    type: str
    choices: [disable, allow, prefer, require, verify-ca, verify-full]
  postgresql_sslrootcert:
    description:
      - Certificate authority of the server. In the environment E(DB_SSLROOTCERT).
    type: path
  postgresql_bin_dir:
    description:
      - Directory of C(pg_dump) and C(pg_restore). Without it those of the server's own major version are looked for.
    type: path
"""

    FILTERS = r"""
options:
  postgresql_include_tables:
    description:
      - Patterns of C(schema.table). Only these are backed up, and the set says so.
    type: list
    elements: str
  postgresql_exclude_tables:
    description:
      - Patterns of C(schema.table) whose rows are left out, and the set says so.
    type: list
    elements: str
"""

    TARGET = r"""
options:
  postgresql_only_tables:
    description:
      - Restore only the rows of these tables, C(schema.table) or a name that is unique, into the live database. What it holds
        of them now is kept beside, and the other tables stay as they are.
      - Large objects are not restored with single tables.
    type: list
    elements: str
"""
