# shellcheck shell=sh
# probe.sh PYTHON POSTGRESQL_MAJOR REDIS_SERVER USER DIRECTORY...: what the role needs to know of a host, as one line of JSON: the
# Python to use, packages and directories that are missing, the engine that is there; and, where there is the user, a line with
# its account as `account GROUP:COMMENT:HOME:SHELL` and one with its groups. Changes nothing.
set -u
python=$1 major=$2 redis_server=$3 user=$4
shift 4

able() { command -v "$1" >/dev/null && "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }
chosen=
for name in ${python:-python3.13 python3.12 python3.11 python3.10 python3}; do
    if able "$name"; then chosen=$(command -v "$name"); break; fi
done
ensurepip=false
if [ -n "$chosen" ] && "$chosen" -c 'import ensurepip, venv' 2>/dev/null; then ensurepip=true; fi

if [ -z "$major" ]; then
    for program in /usr/lib/postgresql/*/bin/postgres /usr/pgsql-*/bin/postgres /usr/bin/postgres; do
        if [ -x "$program" ]; then
            told=$("$program" --version | sed 's/[^0-9]*\([0-9]*\).*/\1/')
            if [ "${told:-0}" -gt "${major:-0}" ]; then major=$told; fi
        fi
    done
fi

manager=none wanted=
if command -v apt-get >/dev/null; then
    manager=apt
    wanted="postgresql-client${major:+-$major} redis-tools"
    if [ "$redis_server" = true ]; then wanted="$wanted redis-server"; fi
    if [ "$ensurepip" = false ]; then
        case ${chosen##*/} in '' | python3) wanted="$wanted python3-venv" ;; *) wanted="$wanted ${chosen##*/}-venv" ;; esac
    fi
elif command -v dnf >/dev/null; then
    manager=dnf
    wanted=redis
    if rpm -q --quiet --whatprovides valkey && ! rpm -q --quiet redis; then wanted=valkey; fi
    if ! rpm -q --quiet --whatprovides redis valkey && ! dnf -q list redis >/dev/null 2>&1; then wanted=valkey; fi
    if [ -x "/usr/pgsql-$major/bin/pg_dump" ]; then :; else wanted="postgresql $wanted"; fi
    if [ -z "$chosen" ]; then wanted="$wanted python3.12"; fi
fi
missing=
for package in $wanted; do
    case $manager in
    apt) state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) ;;
    dnf) state=$(rpm -q --quiet "$package" && echo installed) ;;
    esac
    if [ "${state:-}" != installed ]; then missing="$missing${missing:+,}\"$package\""; fi
done

current=$(readlink /opt/agentmem-backup/venv || true)
works=false
if [ -x /opt/agentmem-backup/venv/bin/agentmem-backup ] && /opt/agentmem-backup/venv/bin/agentmem-backup --version >/dev/null 2>&1; then
    works=true
fi
absent=
for path in "$@"; do
    if [ ! -d "$path" ]; then absent="$absent${absent:+,}\"$path\""; fi
done
directory() { if [ -d "$1" ]; then echo true; else echo false; fi; }
printf '{"root": %s, "python": "%s", "manager": "%s", "missing": [%s], "current": "%s", "works": %s, ' \
    "$([ "$(id -u)" = 0 ] && echo true || echo false)" "$chosen" "$manager" "$missing" "${current##*/}" "$works"
codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release 2>/dev/null)
printf '"codename": "%s", ' "$codename"
printf '"user": %s, "systemd": %s, "logrotate": %s, "absent": [%s]}\n' \
    "$(id -u "$user" >/dev/null 2>&1 && echo true || echo false)" "$(directory /run/systemd/system)" "$(directory /etc/logrotate.d)" \
    "$absent"
if account=$(getent passwd "$user"); then
    echo "account $(id -gn "$user"):$(echo "$account" | cut -d: -f5-)"
    echo "groups $(id -Gn "$user")"
fi
