# shellcheck shell=bash
# What the suites share: pgsidecar in front of the cluster that was started last, other clients, and the comparison.

sidecar_pid='' noise_pid='' failures=0
pool_size=20
debian_keys=/usr/share/keyrings/debian-archive-keyring.gpg

clean_up() {
    stop_noise
    stop_sidecar
    stop_postgres
}

# start_sidecar NAME USER PASSWORD DATABASE: sets sidecar_port; its log is $results/NAME.sidecar.log.
start_sidecar() {
    sidecar_port=$(free_port)
    sidecar_metrics_port=$(free_port)
    local attempt
    PGSIDECAR_UPSTREAM="postgres://$2:$3@127.0.0.1:$postgres_port/$4" PGSIDECAR_LISTEN=127.0.0.1:$sidecar_port \
        PGSIDECAR_METRICS_LISTEN=127.0.0.1:$sidecar_metrics_port PGSIDECAR__POOL__MAX_SIZE=$pool_size \
        "$PGSIDECAR_BINARY" 2>"$results/$1.sidecar.log" &
    sidecar_pid=$!
    for attempt in $(seq 100); do
        if PGSIDECAR_METRICS_LISTEN=127.0.0.1:$sidecar_metrics_port "$PGSIDECAR_BINARY" healthcheck --ready \
            >/dev/null 2>&1; then
            return
        fi
        kill -0 "$sidecar_pid" 2>/dev/null || break
        sleep 0.1
    done
    cat "$results/$1.sidecar.log" >&2
    echo "pgsidecar did not become ready ($attempt)" >&2
    exit 1
}

# stop_sidecar [NAME]: keeps what it counted in $results/NAME.metrics.
stop_sidecar() {
    [ -n "$sidecar_pid" ] || return 0
    if [ $# -gt 0 ]; then
        python3 -c 'import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1]).read().decode())' \
            "http://127.0.0.1:$sidecar_metrics_port/metrics" >"$results/$1.metrics" || true
    fi
    kill -TERM "$sidecar_pid" 2>/dev/null || true
    wait "$sidecar_pid" 2>/dev/null || true
    sidecar_pid=
}

# start_noise NAME USER PASSWORD DATABASE: a few clients more than the pool has backends, in short transactions of their
# own, so that a backend which one client gives back is another's at once.
start_noise() {
    cat >"$results/noise.sql" <<'SQL'
BEGIN;
SELECT set_config('DateStyle', 'SQL, DMY', true), set_config('TimeZone', 'Asia/Tokyo', true);
SELECT pg_sleep(0.03);
COMMIT;
SQL
    PGPASSWORD=$3 PGOPTIONS='-c client_min_messages=warning' "$(newest_postgres)/pgbench" -n -c $((pool_size + 2)) \
        -T 36000 -f "$results/noise.sql" -h 127.0.0.1 -p "$sidecar_port" -U "$2" "$4" >"$results/$1.noise.log" 2>&1 &
    noise_pid=$!
}

stop_noise() {
    [ -n "$noise_pid" ] || return 0
    if ! kill -TERM "$noise_pid" 2>/dev/null; then
        echo "the other clients have ended: $(cat "$results"/*.noise.log | tail -n 3)"
        failures=$((failures + 1))
    fi
    wait "$noise_pid" 2>/dev/null || true
    noise_pid=
}

# compare_outcomes NAME DIRECT THROUGH: two files of lines "test outcome". Prints the table and the differences; a
# difference is a test that is ok directly and anything else, or missing, through.
compare_outcomes() {
    local name=$1 direct=$2 through=$3 test outcome reason unexpected=0
    echo "$name: $(grep -c ' ok$' "$direct") of $(wc -l <"$direct") pass directly, $(grep -c ' ok$' "$through") of" \
        "$(wc -l <"$through") through pgsidecar"
    awk 'NR == FNR { if ($2 == "ok") want[$1]; next } { found[$1] = $2 }
        END { for (t in want) if (found[t] != "ok") print t, t in found ? found[t] : "not-run" }' \
        "$direct" "$through" | sort >"$results/$name.differences"
    while read -r test outcome; do
        reason=$(exception "$test" "$(difference_of "$name" "$test")")
        if [ -n "$reason" ]; then
            echo "  excepted $test: $reason"
        else
            echo "  differs  $test: $outcome"
            unexpected=$((unexpected + 1))
        fi
    done <"$results/$name.differences"
    [ "$unexpected" = 0 ] || failures=$((failures + 1))
}

# Where a suite leaves files of what each test printed, the lines that differ as diff says them, with a | behind each.
difference_of() {
    local directory=$results/$1
    [ -d "$directory-direct.results" ] || return 0
    diff "$directory-direct.results/$2.out" "$directory-through.results/$2.out" | sed -n '/^[<>]/p' | tr '\n' '|'
}

# exception TEST DIFFERENCE: the reason that tests/suites/exceptions has for it. Lines "test reason…" and, behind one, lines
# "< …" and "> …" that the difference must be; # begins a comment.
exception() {
    awk -v t="$1" -v difference="$2" '
        /^[<>]/ { if (on) expected = expected $0 "|"; next }
        { on = $1 == t }
        on { $1 = ""; sub(/^ /, ""); reason = $0 }
        END { if (reason && (expected == "" || expected == difference)) print reason }' "tests/suites/exceptions/$suite.txt"
}

# apt with lists of its own, in the cache, so that neither root nor a deb-src line of the system is needed.
suites_apt() {
    local root=$cache/apt
    mkdir -p "$root/lists/partial" "$root/archives/partial"
    apt-get -o Dir::Etc::sourcelist="$root/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::State::Lists="$root/lists" -o Dir::Cache::Archives="$root/archives" -o APT::Sandbox::User="$(id -un)" -qq "$@"
}

# Reads the lists of the archives that the system itself uses, binaries and sources.
suites_apt_update() {
    local archives kind
    mkdir -p "$cache/apt"
    archives=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' | sort -u)
    [ -n "$archives" ] || { echo "apt knows no archive: see /etc/apt/sources.list" >&2 && return 1; }
    for kind in deb deb-src; do
        sed "s|^|$kind [signed-by=$debian_keys] |" <<<"$archives"
    done >"$cache/apt/sources.list"
    suites_apt update
}
