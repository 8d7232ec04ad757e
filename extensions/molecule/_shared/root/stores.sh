# shellcheck shell=sh
# Run inside the root when it is built: the stores are configured as for an application on another host, and empty.
apt-get clean
rm -rf /var/lib/apt/lists/*

cat > /etc/postgresql/15/main/conf.d/molecule.conf <<'CONF'
listen_addresses = '*'
fsync = off
CONF
echo "host all all samenet scram-sha-256" >> /etc/postgresql/15/main/pg_hba.conf
pg_ctlcluster 15 main start
su postgres -c psql <<'SQL'
ALTER ROLE postgres PASSWORD 'molecule super''s';
CREATE ROLE agentmem LOGIN CREATEDB PASSWORD 'molecule db''s "$word';
CREATE DATABASE agentmem OWNER agentmem;
SQL
pg_ctlcluster 15 main stop
systemctl disable --quiet pg_receivewal@ 2>/dev/null || true

cat >> /etc/redis/redis.conf <<'CONF'
bind * -::*
requirepass "molecule redis's $word"
CONF

useradd --system --home-dir /var/lib/qdrant --create-home qdrant
cat > /usr/local/sbin/qdrant-service <<'SH'
#!/bin/sh
# The real server where the controller has one, else the stand-in.
if [ -x /opt/qdrant/qdrant ]; then exec /opt/qdrant/qdrant; fi
exec /usr/bin/python3 -B -m uvicorn --factory tests.support.qdrant_standin:application --log-level warning --host 0.0.0.0 --port 6333
SH
chmod 755 /usr/local/sbin/qdrant-service
cat > /etc/systemd/system/qdrant.service <<'UNIT'
[Unit]
Description=Qdrant

[Service]
ExecStart=/usr/local/sbin/qdrant-service
User=qdrant
WorkingDirectory=/var/lib/qdrant
Environment=PYTHONPATH=/opt/qdrant/lib:/opt/qdrant
Environment=QDRANT__SERVICE__API_KEY=molecule-qdrant-key
Environment=QDRANT__SERVICE__HOST=0.0.0.0
Environment=QDRANT__SERVICE__HTTP_PORT=6333
Environment=QDRANT__STORAGE__STORAGE_PATH=/var/lib/qdrant/storage
Environment=QDRANT__STORAGE__SNAPSHOTS_PATH=/var/lib/qdrant/storage/snapshots
Environment=QDRANT__TELEMETRY_DISABLED=true

[Install]
WantedBy=multi-user.target
UNIT
mkdir -p /opt/qdrant/lib /opt/qdrant/tests /opt/wheelhouse /opt/agentmem/config
touch /opt/qdrant/qdrant
systemctl enable --quiet qdrant
