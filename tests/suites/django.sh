# shellcheck shell=bash
# Django's database suites, by Django's own sources and psycopg 3, on two databases of one cluster.

django_version=5.2.19
django_suites=(backends postgres_tests transactions transaction_hooks queries schema migrations select_for_update
    get_or_create aggregation)

install_django() {
    tests/install postgres psql pgbench venv python3
    django_python=$cache/django-$django_version/python/bin/python
    django_tests=$cache/django-$django_version/tests
    [ -e "$cache/django-$django_version/installed" ] && return
    echo "installing Django $django_version"
    rm -rf "$cache/django-$django_version"
    mkdir -p "$cache/django-$django_version/sdist"
    python3 -m venv "$cache/django-$django_version/python"
    "$django_python" -m pip install --quiet --disable-pip-version-check "Django==$django_version" "psycopg[binary,pool]>=3.2,<4"
    "$django_python" -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: \
        -d "$cache/django-$django_version/sdist" "Django==$django_version"
    tar -xzf "$cache/django-$django_version"/sdist/*.tar.gz -C "$cache/django-$django_version" --strip-components=1 \
        --wildcards '*/tests/*'
    touch "$cache/django-$django_version/installed"
}

run_django() {
    django_once direct
    django_once through
    compare_outcomes django "$results/direct.outcomes" "$results/through.outcomes"
}

# django_once direct|through: a fresh cluster, one run of all suites.
django_once() {
    local port password began=$SECONDS
    start_postgres "$(newest_postgres)" app app_password "max_prepared_transactions = 10"
    password=$(as_postgres cat "$postgres_directory/superuser_password")
    postgres_as_superuser "CREATE DATABASE suite" "CREATE DATABASE suite_other"
    port=$postgres_port
    if [ "$1" = through ]; then
        start_sidecar "$1" postgres "$password" postgres
        port=$sidecar_port
    fi
    if [ "$1" = through ] && $busy; then
        # The tests make their databases themselves; the other clients need them before.
        postgres_as_superuser "CREATE DATABASE test_suite" "CREATE DATABASE test_suite_other"
        start_noise "$1" postgres "$password" test_suite
    fi
    (cd "$django_tests" && SUITE_PORT=$port SUITE_USER=postgres SUITE_PASSWORD=$password \
        SUITE_OUTCOMES=$results/$1.outcomes PYTHONPATH=$OLDPWD/tests/suites/django timeout 3000 \
        "$django_python" runtests.py --settings=suite_settings --parallel=1 --noinput --timing \
        $([ -n "$noise_pid" ] && echo --keepdb) "${django_suites[@]}") >"$results/$1.log" 2>&1 || true
    stop_noise
    stop_sidecar "$1"
    as_postgres cat "$postgres_directory/log" >"$results/$1.postgres.log"
    stop_postgres
    sort -o "$results/$1.outcomes" "$results/$1.outcomes"
    echo "$1: $((SECONDS - began)) s"
}
