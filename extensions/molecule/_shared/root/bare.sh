# shellcheck shell=sh
# Run inside the root when it is built. The packages are fetched and not installed; apt's lists stay, so it finds them.
apt-get install --download-only --yes --quiet --no-install-recommends \
    python3-apt python3-venv postgresql-client postgresql-client-15 redis-server redis-tools rsync rclone cron logrotate \
    acl attr gnupg age bash-completion
mkdir -p /opt/qdrant/lib /opt/qdrant/tests /opt/wheelhouse /opt/agentmem/config
touch /opt/qdrant/qdrant
