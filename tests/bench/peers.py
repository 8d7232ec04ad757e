# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The peers, written out literally: what an operator would type. Each is a bash script (errexit, pipefail).

They find the servers in their environment, as the guide's own scripts do: libpq's variables, REDISCLI_AUTH, REDIS_HOST,
REDIS_PORT, REDIS_DATA_DIR, QDRANT_DATA_DIR, CONFIG_DIR; their files go to (or come from) the directory OUT.
"""

from __future__ import annotations

import shutil
import sys

# backup.sh of the guide, store by store, one after the other. Its digests and its manifest are left out, in its favour.
GUIDE_CREATE = r"""
pg_dump -F c | gzip -6 > "$OUT/db.dump.gz"
redis-cli -h "$REDIS_HOST" -p "$REDIS_PORT" BGSAVE | grep -q 'saving started'
sleep 2
cp "$REDIS_DATA_DIR/dump.rdb" "$OUT/redis.rdb"
tar -czf "$OUT/qdrant.tar.gz" -C "$QDRANT_DATA_DIR" . || [ $? = 1 ]  # 1: a file changed while it was read
tar -czf "$OUT/config.tar.gz" -C "$CONFIG_DIR" .
"""

# restore.sh of the guide, in parts: the servers are stopped and started in between (`systemctl` in the guide), and the
# bench goes on as soon as they answer.
GUIDE_RESTORE_DB = r"""
dropdb "$PGDATABASE"
createdb "$PGDATABASE"
gunzip -c "$OUT/db.dump.gz" | pg_restore -d "$PGDATABASE"
"""
GUIDE_RESTORE_REDIS = r"""
cp "$OUT/redis.rdb" "$REDIS_DATA_DIR/dump.rdb"
"""
GUIDE_RESTORE_QDRANT = r"""
rm -rf "${QDRANT_DATA_DIR:?}"/*
tar -xzf "$OUT/qdrant.tar.gz" -C "$QDRANT_DATA_DIR"
"""
GUIDE_RESTORE_CONFIG = r"""
tar -xzf "$OUT/config.tar.gz" -C "$CONFIG_DIR"
"""

# ISA-L's own program (Debian: apt-get install isal) where it is there, else the same library from Python.
IGZIP = "igzip" if shutil.which("igzip") else f"{sys.executable} -m isal.igzip"

DUMPS = {
    "pg_dump -Fc -Z0 | igzip -1": rf'pg_dump -Fc -Z0 | {IGZIP} -1 -c > "$OUT/db.dump.gz"',
    "pg_dump -Fc -Z0 | pigz -1": r'pg_dump -Fc -Z0 | pigz -1 > "$OUT/db.dump.gz"',
    "pg_dump -Fc -Z1": r'pg_dump -Fc -Z1 > "$OUT/db.dump.gz"',
}

# In OUT lies one set of ours.
VERIFY = rf"""
openssl dgst -sha256 "$OUT"/db_*.dump.gz "$OUT"/redis_*.rdb "$OUT"/qdrant_*.tar.gz "$OUT"/config_*.tar.gz
for file in "$OUT"/*.gz; do {IGZIP} -d -c < "$file" > /dev/null; done
"""
