# shellcheck shell=bash
# Throwaway PostgreSQL clusters for scripts: a directory of their own, a free port on loopback, SCRAM passwords and TLS.
# Source it, call start_postgres, and call stop_postgres (all of them, by process id) in a trap on EXIT.

throwaway_directories=()
throwaway_binaries=()

# PostgreSQL refuses to run as root: there it runs as the user that Debian's package makes.
as_postgres() {
    if [ "$(id -u)" = 0 ]; then
        (cd / && exec runuser -u postgres -- "$@")
    else
        "$@"
    fi
}

# The newest of Debian's versions: /usr/lib/postgresql/15/bin.
newest_postgres() {
    local directory newest=
    for directory in $(printf '%s\n' /usr/lib/postgresql/*/bin | sort -t/ -k5,5n); do
        [ -x "$directory/postgres" ] && newest=$directory
    done
    [ -n "$newest" ] && echo "$newest"
}

# Below the ports that the system hands to outgoing connections, so that none of those takes it meanwhile.
free_port() {
    local port
    while :; do
        port=$((10000 + RANDOM % 22000))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    echo "$port"
}

# 24 characters that need no quoting in a URL.
generate_password() {
    od -An -N12 -tx1 /dev/urandom | tr -d ' \n'
}

# start_postgres BINARIES ROLE PASSWORD [SETTING…]: sets postgres_port and postgres_directory. ROLE owns a database of its
# own name and may create others; the superuser's password is in $postgres_directory/superuser_password.
start_postgres() {
    local binaries=$1 role=$2 password=$3 setting
    shift 3
    postgres_port=$(free_port)
    postgres_directory=$(as_postgres mktemp -d /tmp/pgsidecar-postgres-XXXXXX) || return 1
    throwaway_directories+=("$postgres_directory")
    throwaway_binaries+=("$binaries")
    generate_password | as_postgres tee "$postgres_directory/superuser_password" >/dev/null
    as_postgres "$binaries/initdb" -U postgres -A scram-sha-256 -E UTF8 --locale=C.UTF-8 --no-sync \
        --pwfile="$postgres_directory/superuser_password" -D "$postgres_directory/data" >/dev/null || return 1
    # The self-signed certificate of PostgreSQL's manual (ssl-tcp, "Creating Certificates").
    as_postgres openssl req -new -x509 -days 30 -newkey rsa:2048 -nodes -subj /CN=localhost \
        -keyout "$postgres_directory/server.key" -out "$postgres_directory/server.crt" 2>/dev/null || return 1
    {
        echo "port = $postgres_port"
        echo "listen_addresses = '127.0.0.1'"
        echo "unix_socket_directories = '$postgres_directory'"
        echo "ssl = on"
        echo "ssl_cert_file = '$postgres_directory/server.crt'"
        echo "ssl_key_file = '$postgres_directory/server.key'"
        echo "fsync = off"
        for setting in "$@"; do echo "$setting"; done
    } | as_postgres tee -a "$postgres_directory/data/postgresql.conf" >/dev/null
    as_postgres "$binaries/pg_ctl" -D "$postgres_directory/data" -l "$postgres_directory/log" -w start \
        </dev/null >/dev/null 2>&1 || { as_postgres cat "$postgres_directory/log" >&2; return 1; }
    postgres_as_superuser "CREATE ROLE $role LOGIN CREATEDB PASSWORD '$password'" "CREATE DATABASE $role OWNER $role"
}

# Runs statements as the superuser of the cluster that was started last.
postgres_as_superuser() {
    local statement arguments=()
    for statement in "$@"; do arguments+=(-c "$statement"); done
    PGPASSWORD=$(as_postgres cat "$postgres_directory/superuser_password") "$(newest_postgres)/psql" -qXAt \
        -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "$postgres_port" -U postgres -d postgres "${arguments[@]}"
}

# Stops every cluster that start_postgres started, and removes its files.
stop_postgres() {
    local index
    for index in "${!throwaway_directories[@]}"; do
        as_postgres "${throwaway_binaries[$index]}/pg_ctl" -D "${throwaway_directories[$index]}/data" -m immediate \
            -w stop </dev/null >/dev/null 2>&1
        rm -rf "${throwaway_directories[$index]}"
    done
    throwaway_directories=()
}
