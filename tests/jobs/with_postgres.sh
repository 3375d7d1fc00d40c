# shellcheck shell=bash
# To be sourced: a PostgreSQL server of its own in a directory that goes with the script; TEST_POSTGRES is its
# address. Installs Debian's package where there is none; where that cannot be, says so and leaves it at SQLite.

if ! compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null; then
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq postgresql >/dev/null; } || true
fi
if ! compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null; then
    echo "PostgreSQL cannot be installed here: the jobs' tests run on SQLite only" >&2
    return 0
fi
postgres_bin=$(dirname "$(compgen -G '/usr/lib/postgresql/*/bin/initdb' | sort -V | tail -n 1)")
postgres_dir=$(mktemp -d)
# The server refuses to be root's.
as_postgres=()
if [ "$(id -u)" = 0 ]; then
    chown postgres "$postgres_dir"
    as_postgres=(runuser -u postgres --)
fi
postgres_port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
stop_postgres() {
    "${as_postgres[@]}" "$postgres_bin/pg_ctl" -D "$postgres_dir/data" -m immediate stop >/dev/null 2>&1 || true
    rm -rf "$postgres_dir"
}
trap stop_postgres EXIT
(
    cd /
    "${as_postgres[@]}" "$postgres_bin/initdb" -D "$postgres_dir/data" -U causeway --auth trust >/dev/null
    "${as_postgres[@]}" "$postgres_bin/pg_ctl" -D "$postgres_dir/data" -w -l "$postgres_dir/log" \
        -o "-p $postgres_port -k $postgres_dir -c listen_addresses=127.0.0.1" start >/dev/null
)
export TEST_POSTGRES="postgres://causeway@127.0.0.1:$postgres_port"
