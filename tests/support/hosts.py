# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The stores of a molecule host, as extensions/molecule/_shared/root/stores.sh makes them: filled, described, compared.

`python -m tests.support.hosts ADDRESS [CONFIG_DIR]` fills them from the controller over the bridge, and the host's
configuration directory where it is named as the controller sees it.
"""

from __future__ import annotations

import atexit
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support import data
from tests.support.servers import Postgres, Qdrant, Redis, Stores, throwaway_directory

POSTGRES_PASSWORD = "molecule super's"
DB_PASSWORD = "molecule db's \"$word"
REDIS_PASSWORD = "molecule redis's $word"
QDRANT_API_KEY = "molecule-qdrant-key"


@contextmanager
def stores_of(address: str, config_dir: Path | None = None) -> Iterator[Stores]:
    """The stores at `address`, as tests know stores; they are neither started nor stopped."""
    with throwaway_directory() as directory:
        postgres, redis = Postgres(directory / "pg"), Redis(directory / "redis", password=REDIS_PASSWORD)
        qdrant = Qdrant(directory / "qdrant", api_key=QDRANT_API_KEY)
        for server, port in ((postgres, 5432), (redis, 6379), (qdrant, 6333)):
            server.host, server.port = address, port
        postgres.password, postgres.app_password = POSTGRES_PASSWORD, DB_PASSWORD
        stores = Stores(directory, postgres=postgres, redis=redis, qdrant=qdrant)
        atexit.unregister(stores.close)  # it would take the host's configuration away
        stores.config_dir = config_dir or stores.config_dir
        try:
            yield stores
        finally:
            for server in (postgres, redis, qdrant):
                server.close()


def main(address: str, config_dir: str = "") -> None:
    """Fill them; the seed follows from the address, so that no two hosts hold the same."""
    with stores_of(address, Path(config_dir) if config_dir else None) as stores:
        data.fill(stores, seed=int(address.rpartition(".")[2]))


if __name__ == "__main__":
    main(*sys.argv[1:])
