# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where Qdrant is."""

from __future__ import annotations


class ModuleDocFragment:
    """Options as `module_utils/_argspec.py` has them."""

    DOCUMENTATION = r"""
options:
  qdrant_url:
    description:
      - Address of the server, or those of all peers of a cluster, separated by commas. In the environment E(QDRANT_URL).
    type: str
  qdrant_api_key:
    description:
      - Key with full access. In the environment E(QDRANT_API_KEY).
    type: str
  qdrant_cacert:
    description:
      - Certificate authority of the server.
    type: path
  qdrant_data_dir:
    description:
      - Storage of the server as seen from the host, for checks of space. In the environment E(QDRANT_DATA_DIR).
    type: path
"""

    FILTERS = r"""
options:
  qdrant_include_collections:
    description:
      - Patterns of collections. Only these are backed up, and the set says so.
    type: list
    elements: str
  qdrant_exclude_collections:
    description:
      - Patterns of collections that are left out, and the set says so.
    type: list
    elements: str
"""

    TARGET = r"""
options:
  qdrant_only_collections:
    description:
      - Restore only these collections, by name or alias.
    type: list
    elements: str
  qdrant_collection_prefix:
    description:
      - Text to put in front of the name of every collection and alias, so that they come back beside the present ones.
    type: str
  qdrant_restore_method:
    description:
      - How a collection comes back that is there and that the application reaches through an alias. V(overwrite) ends under its
        own name, over a safety copy. V(alias) restores it beside, under a new name, and switches its aliases in one request. The
        present collection stays until it is deleted by hand.
    type: str
    choices: [overwrite, alias]
"""
