# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where Redis is."""

from __future__ import annotations


class ModuleDocFragment:
    """Options as `module_utils/_argspec.py` has them."""

    DOCUMENTATION = r"""
options:
  redis_host:
    description:
      - Host name or address of the server. In the environment E(REDIS_HOST).
    type: str
  redis_port:
    description:
      - Port of the server. In the environment E(REDIS_PORT).
    type: int
  redis_username:
    description:
      - ACL user. In the environment E(REDIS_USERNAME). Without it the default user.
    type: str
  redis_password:
    description:
      - Password of the user. In the environment E(REDIS_PASSWORD).
    type: str
  redis_data_dir:
    description:
      - Data directory of the server as seen from the host. In the environment E(REDIS_DATA_DIR). Without it as the server says.
    type: path
  redis_tls:
    description:
      - Connect with TLS. In the environment E(REDIS_TLS).
    type: bool
  redis_cacert:
    description:
      - Certificate authority of the server. In the environment E(REDIS_CACERT).
    type: path
  redis_certfile:
    description:
      - File of the own certificate, which a server with TLS asks for unless it has C(tls-auth-clients no).
        In the environment E(REDIS_CERTFILE).
    type: path
  redis_keyfile:
    description:
      - File of the own certificate's private key, unless it is in the same file. In the environment E(REDIS_KEYFILE).
    type: path
"""

    FILTERS = r"""
options:
  redis_method:
    description:
      - How the data is fetched. V(copy) saves with C(BGSAVE) and copies the file, V(stream) takes the replication stream.
    type: str
    choices: [auto, copy, stream]
  redis_include_keys:
    description:
      - Glob patterns of keys. Only these are backed up, and the set says so.
    type: list
    elements: str
  redis_exclude_keys:
    description:
      - Glob patterns of keys that are left out, and the set says so.
    type: list
    elements: str
"""

    TARGET = r"""
options:
  redis_restore_method:
    description:
      - How the data comes back. V(replicate) has the server replicate a throwaway one, V(file) replaces the files of a stopped
        server, V(keys) sends key by key.
    type: str
    choices: [auto, replicate, file, keys]
"""
