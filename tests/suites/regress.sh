# shellcheck shell=bash
# PostgreSQL's own regression suite against the distribution's PostgreSQL: tests and expected output are of Debian's source
# package of the same version, pg_regress and psql are Debian's, only the tests' C functions (regress.so) are compiled.

install_regress() {
    tests/install postgres psql pgbench cc
    local version package
    regress_major=$(newest_postgres | cut -d/ -f5)
    package=postgresql-$regress_major
    # shellcheck disable=SC2016 # dpkg's own variable
    version=$(dpkg-query -W -f '${Version}' "$package")
    regress_cache=$cache/$package-$version
    [ -e "$regress_cache/regress.so" ] && return
    echo "fetching the source of $package $version"
    mkdir -p "$regress_cache"
    suites_apt_update
    (cd "$regress_cache" && suites_apt source --download-only "$package=$version" &&
        suites_apt download "postgresql-server-dev-$regress_major=$version")
    tar -xf "$regress_cache"/*.orig.tar.* -C "$regress_cache" --wildcards --strip-components=4 '*/src/test/regress/*'
    dpkg -x "$regress_cache"/postgresql-server-dev-*.deb "$regress_cache/dev"
    cc -O1 -w -shared -fPIC -I "$regress_cache/dev/usr/include/postgresql/$regress_major/server" \
        -I "$regress_cache/dev/usr/include/postgresql/internal" -o "$regress_cache/regress.so" "$regress_cache/regress.c"
}

run_regress() {
    local way
    for way in ${only:-parallel serial}; do
        regress_once "$way" direct
        regress_once "$way" through
        compare_outcomes "$way" "$results/$way-direct.outcomes" "$results/$way-through.outcomes"
    done
}

# regress_once parallel|serial direct|through: a fresh cluster, one run of all tests.
regress_once() {
    local name=$1-$2 port password began=$SECONDS
    start_postgres "$(newest_postgres)" app app_password "max_prepared_transactions = 10" "max_connections = 100"
    password=$(as_postgres cat "$postgres_directory/superuser_password")
    port=$postgres_port
    if [ "$2" = through ]; then
        start_sidecar "$name" postgres "$password" postgres
        port=$sidecar_port
    fi
    regress_files
    if [ "$2" = through ] && $busy; then
        postgres_as_superuser "CREATE DATABASE regression TEMPLATE template0"
        regress_database | PGPASSWORD=$password "$(newest_postgres)/psql" -qX -h 127.0.0.1 -p "$postgres_port" -U postgres regression
        start_noise "$name" postgres "$password" regression
    fi
    regress_tests "$1" "$port" "$password" "$([ -n "$noise_pid" ] && echo --use-existing)" >"$results/$name.log" 2>&1 || true
    stop_noise
    stop_sidecar "$name"
    rm -rf "$results/$name.results"
    cp -r "$postgres_directory/regress/results" "$results/$name.results"
    cp "$postgres_directory/regress/regression.diffs" "$results/$name.diffs" 2>/dev/null || true
    as_postgres cat "$postgres_directory/log" >"$results/$name.postgres.log"
    stop_postgres
    regress_outcomes <"$results/$name.log" >"$results/$name.outcomes"
    echo "$name: $((SECONDS - began)) s"
}

# The tests' files where PostgreSQL may read them and write its own beside.
regress_files() {
    local directory=$postgres_directory/regress
    mkdir -p "$directory/library"
    cp -r "$regress_cache"/{sql,expected,data,parallel_schedule,resultmap} "$directory"
    cp "$regress_cache/regress.so" /usr/lib/postgresql/"$regress_major"/lib/{refint,autoinc}.so "$directory/library"
    [ "$(id -u)" != 0 ] || chown -R postgres "$directory"
}

# What pg_regress says to a database that it creates itself.
regress_database() {
    local setting
    for setting in lc_messages lc_monetary lc_numeric lc_time; do
        echo "ALTER DATABASE regression SET $setting TO 'C';"
    done
    echo "ALTER DATABASE regression SET bytea_output TO 'hex';"
    echo "ALTER DATABASE regression SET timezone_abbreviations TO 'Default';"
}

regress_tests() {
    local directory=$postgres_directory/regress arguments=()
    [ "$1" = parallel ] && arguments+=(--max-concurrent-tests=20) || arguments+=(--max-connections=1)
    [ -z "$4" ] || arguments+=("$4")
    (cd "$directory" && as_postgres env PGPASSWORD="$3" timeout 3000 \
        "/usr/lib/postgresql/$regress_major/lib/pgxs/src/test/regress/pg_regress" --inputdir="$directory" \
        --outputdir="$directory" --bindir="$(newest_postgres)" --dlpath="$directory/library" --host=127.0.0.1 \
        --port="$2" --user=postgres --schedule="$directory/parallel_schedule" "${arguments[@]}")
}

# "test boolean ... ok 12 ms" and, in groups, "     boolean ... ok 12 ms".
regress_outcomes() {
    sed -nE 's/^(test)? +([a-z0-9_.]+) +\.\.\. (ok|FAILED|failed).*/\2 \3/p'
}
