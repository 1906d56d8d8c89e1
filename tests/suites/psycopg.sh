# shellcheck shell=bash
# psycopg 3's own suite. Its tests are in no package of PyPI: they come with Debian's source package psycopg3, or from a
# checkout that PSYCOPG_SOURCE names; the library and what its tests need come by pip, in the same version.

install_psycopg() {
    tests/install postgres psql pgbench venv python3
    local version
    psycopg_source=${PSYCOPG_SOURCE:-$cache/psycopg/source}
    if [ ! -d "$psycopg_source/tests" ]; then
        echo "fetching the source of psycopg3"
        rm -rf "$cache/psycopg" && mkdir -p "$cache/psycopg/source"
        suites_apt_update
        (cd "$cache/psycopg" && suites_apt source --download-only psycopg3) ||
            { echo "psycopg's tests can't be had by apt; PSYCOPG_SOURCE=/path/of/a/checkout names them" >&2 && exit 1; }
        tar -xf "$cache"/psycopg/*.orig.tar.* -C "$cache/psycopg/source" --strip-components=1
    fi
    version=$(psycopg_version "$psycopg_source" || true)
    [ -n "$version" ] || { echo "no version of psycopg in $psycopg_source" >&2 && exit 1; }
    psycopg_python=$cache/psycopg-$version-python/bin/python
    "$psycopg_python" -c 'import psycopg_pool, pytest' 2>/dev/null && return
    echo "installing psycopg $version"
    python3 -m venv --clear "$cache/psycopg-$version-python"
    "$psycopg_python" -m pip install --quiet --disable-pip-version-check "psycopg[binary,pool,test]==$version"
}

psycopg_version() {
    cat "$1"/psycopg/{pyproject.toml,psycopg/version.py} 2>/dev/null |
        sed -nE '0,/^(version|__version__) = /s/^(version|__version__) = "([0-9.]+)".*/\2/p'
}

run_psycopg() {
    psycopg_once direct
    psycopg_once through
    compare_outcomes psycopg "$results/direct.outcomes" "$results/through.outcomes"
}

# psycopg_once direct|through: a fresh cluster, one run of all tests, in the order that they are written in. What a failed
# test leaves to the garbage collector is not charged to the test that happens to run when it is collected.
psycopg_once() {
    local port password began=$SECONDS
    start_postgres "$(newest_postgres)" app app_password "max_prepared_transactions = 10"
    password=$(as_postgres cat "$postgres_directory/superuser_password")
    postgres_as_superuser "CREATE DATABASE suite"
    port=$postgres_port
    if [ "$1" = through ]; then
        # Its tests make roles and log in as these.
        PGSIDECAR__AUTH_QUERY__QUERY='SELECT rolname, rolpassword FROM pg_catalog.pg_authid WHERE rolname = $1' \
            start_sidecar "$1" postgres "$password" postgres
        port=$sidecar_port
        ! $busy || start_noise "$1" postgres "$password" suite
    fi
    (cd "$psycopg_source" && timeout 3000 "$psycopg_python" -m pytest tests -p no:randomly -p no:unraisableexception -q \
        -o cache_dir="$results/$1.cache" -m "not slow and not timing and not mypy" --junitxml="$results/$1.xml" \
        --test-dsn="host=127.0.0.1 port=$port user=postgres password=$password dbname=suite") >"$results/$1.log" 2>&1 || true
    stop_noise
    stop_sidecar "$1"
    as_postgres cat "$postgres_directory/log" >"$results/$1.postgres.log"
    stop_postgres
    psycopg_outcomes "$results/$1.xml" | sort >"$results/$1.outcomes"
    [ -s "$results/$1.outcomes" ] || { echo "no test was run, $1: $results/$1.log" >&2 && exit 1; }
    echo "$1: $((SECONDS - began)) s"
}

psycopg_outcomes() {
    python3 - "$1" <<'PYTHON'
import sys, xml.etree.ElementTree

for case in xml.etree.ElementTree.parse(sys.argv[1]).iter("testcase"):
    outcome = next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "ok")
    # The suite's parameters may hold blanks, and the ends of lines.
    print(f"{case.get('classname')}.{case.get('name')}".replace(" ", "_").replace("\n", "_"), outcome)
PYTHON
}
