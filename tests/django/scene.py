"""A Django app far from its database, as it is and through pgsidecar: measures, and prints the table.

tests/django/run starts it, with the database's port and password in the environment. Each row starts gunicorn anew, and
pgsidecar or PgBouncer where it is used; all of them run on loopback. The link and the load are examples/far_link.rs and
examples/http_burst.rs: they take next to nothing of the processors that they share with what is measured.
"""

import argparse
import contextlib
import dataclasses
import math
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import tables

HERE = Path(__file__).parent
ROUND_TRIP_MS = 150
AT_ONCE = 16
# All warm from the start, some more than are used at once: the sidecar has questions of its own.
BACKENDS = 20
# A TIME_ZONE that is not the one of the server.
OTHER_ZONE = "Asia/Shanghai"
WORKERS = {"sync": "sync", "gthread": "gthread", "gevent": "gevent", "asgi": "uvicorn_worker.UvicornWorker"}
# What a row through the unix socket must keep to, in milliseconds.
ACQUIRE_P99_MAX, ACQUIRE_MAX = 5, 10
API_OVERHEAD_MAX = 15
WAIT_DEADLINE = 30


@dataclasses.dataclass(frozen=True)
class Scenario:
    worker: str
    driver: str
    way: str  # direct, unix, tcp, pgbouncer
    max_age: int = 0
    is_zone_equal: bool = True
    has_pool: bool = False

    @property
    def has_health_checks(self):
        return self.max_age > 0


@dataclasses.dataclass
class Row:
    scenario: Scenario
    first: float
    one_by_one: list
    at_once: list
    totals: list
    opened: int
    errors: int

    @property
    def later(self):
        return self.one_by_one + self.at_once


def percentile(values, percent):
    """By nearest rank."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(len(ranked) * percent / 100) - 1)]


def full_matrix():
    for driver in ("psycopg 3", "psycopg2"):
        for worker in WORKERS:
            for max_age in (0, 600):
                yield Scenario(worker, driver, "direct", max_age)
            for max_age in (0, 600):
                yield Scenario(worker, driver, "unix", max_age)
            yield Scenario(worker, driver, "unix", is_zone_equal=False)
            yield Scenario(worker, driver, "tcp")
    # What of it is the app's own and any pooler's: PgBouncer in the same place.
    for worker, driver in (("gevent", "psycopg 3"), ("gevent", "psycopg2"), ("asgi", "psycopg 3")):
        yield Scenario(worker, driver, "pgbouncer")
    for worker in ("gthread", "gevent"):
        yield Scenario(worker, "psycopg 3", "direct", has_pool=True)


def short_matrix():
    yield Scenario("gevent", "psycopg 3", "direct", 600)
    yield Scenario("gevent", "psycopg 3", "unix", 600)
    yield Scenario("gthread", "psycopg2", "unix")
    yield Scenario("asgi", "psycopg 3", "tcp")


class Scene:
    """The processes around one run, and where they listen."""

    def __init__(self, directory, is_short):
        self.directory = Path(directory)
        self.database_port = int(os.environ["SCENE_POSTGRES_PORT"])
        self.password = os.environ["SCENE_PASSWORD"]
        self.binary = os.environ["PGSIDECAR_BINARY"]
        self.tools = Path(os.environ["SCENE_TOOLS"])
        self.python = sys.executable
        self.one_by_one = {"direct": 3 if is_short else 10, "through": 20 if is_short else 84}
        self.rounds = {"direct": 1 if is_short else 2, "through": 4 if is_short else 26}
        self.link_port, self.counts_port = free_port(), free_port()

    @contextlib.contextmanager
    def link(self):
        arguments = [self.link_port, self.database_port, ROUND_TRIP_MS, self.counts_port]
        # It ends with its input, and so with this process.
        with process([self.tools / "far_link", *arguments], self.directory / "link.log", stdin=subprocess.PIPE):
            wait_for_port(self.counts_port)
            yield

    def connections_so_far(self):
        with socket.create_connection(("127.0.0.1", self.counts_port)) as counts:
            return int(counts.makefile().read())

    @contextlib.contextmanager
    def sidecar(self):
        metrics_port = free_port()
        self.sidecar_port = free_port()
        self.sockets = Path(tempfile.mkdtemp(dir=self.directory))
        listen = f"[{{address: 'unix:{self.sockets}', auth: trust}}, {{address: '127.0.0.1:{self.sidecar_port}'}}]"
        environment = {
            "PGSIDECAR_UPSTREAM": f"postgres://app:{self.password}@127.0.0.1:{self.link_port}/app?sslmode=require",
            "PGSIDECAR__LISTEN": listen,
            "PGSIDECAR_METRICS_LISTEN": f"127.0.0.1:{metrics_port}",
            "PGSIDECAR__POOL__MAX_SIZE": str(BACKENDS),
            "PGSIDECAR__POOL__MIN_IDLE": str(BACKENDS),
            # What Django sets in each connection where it is not the server's: tried when the pool opens.
            "PGSIDECAR__POOL__WARM_SETTINGS": f"{{TimeZone: {OTHER_ZONE}}}",
        }
        with process([self.binary], self.directory / "sidecar.log", environment):
            wait_for(lambda: idle_backends(metrics_port) >= BACKENDS, "warm backends")
            yield

    @contextlib.contextmanager
    def pgbouncer(self):
        """Its backends as warm as the sidecar's, by the same kind of socket."""
        self.bouncer_port = free_port()
        # Not in the directory of everything else, which is root's alone: PgBouncer refuses to run as root.
        with tempfile.TemporaryDirectory(prefix="pgsidecar-django-pgbouncer-") as directory:
            self.sockets = Path(directory)
            settings = self.sockets / "pgbouncer.ini"
            settings.write_text(self.bouncer_settings())
            command = [shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin"), settings]
            if os.geteuid() == 0:
                for path in (self.sockets, settings):
                    shutil.chown(path, "postgres", "postgres")
                # It becomes the program, so the process id stays.
                command = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--", *command]
            log = self.directory / "pgbouncer.log"
            url = f"postgres://app@/{{}}?host={self.sockets}&port={self.bouncer_port}"
            with process(command, log):
                wait_for((self.sockets / f".s.PGSQL.{self.bouncer_port}").exists, "PgBouncer")
                # It fills its pool up, one after another, while there is a client.
                with process(["psql", "-X", url.format("app")], log, stdin=subprocess.PIPE):
                    wait_for(lambda: idle_servers(url.format("pgbouncer")) >= BACKENDS, "warm servers", 60)
                    yield

    def bouncer_settings(self):
        server = f"host=127.0.0.1 port={self.link_port} dbname=app user=app password={self.password}"
        return (
            f"[databases]\napp = {server} pool_size={BACKENDS} min_pool_size={BACKENDS}\n[pgbouncer]\n"
            f"listen_port = {self.bouncer_port}\nunix_socket_dir = {self.sockets}\nauth_type = any\n"
            "pool_mode = transaction\nserver_tls_sslmode = require\nlog_connections = 0\nlog_disconnections = 0\n"
        )

    def database_url(self, scenario):
        if scenario.way in ("unix", "pgbouncer"):
            port = 6432 if scenario.way == "unix" else self.bouncer_port
            return f"postgres://app@/app?host={self.sockets}&port={port}"
        port = {"direct": self.link_port, "tcp": getattr(self, "sidecar_port", None)}[scenario.way]
        options = "?sslmode=require" if scenario.way == "direct" else ""
        return f"postgres://app:{self.password}@127.0.0.1:{port}/app{options}"

    @contextlib.contextmanager
    def gunicorn(self, scenario):
        self.web_port = free_port()
        environment = self.django_environment(scenario) | {
            "BIND": f"127.0.0.1:{self.web_port}",
            "WORKER_CLASS": WORKERS[scenario.worker],
        }
        application = "backend.asgi:application" if scenario.worker == "asgi" else "backend.wsgi:application"
        command = [self.python, "-m", "gunicorn", "-c", "config/gunicorn/backend.py", application]
        with process(command, self.directory / "gunicorn.log", environment, HERE / "backend"):
            wait_for_port(self.web_port)
            yield

    def django_environment(self, scenario):
        environment = {
            "DATABASE_URL": self.database_url(scenario),
            "DRIVER": scenario.driver.replace(" ", ""),
            "CONN_MAX_AGE": str(scenario.max_age),
            "CONN_HEALTH_CHECKS": "1" if scenario.has_health_checks else "0",
            "DATABASE_POOL": "1" if scenario.has_pool else "0",
        }
        if not scenario.is_zone_equal:
            environment["DATABASE_TIME_ZONE"] = OTHER_ZONE
        return environment

    def run(self, scenario):
        with contextlib.ExitStack() as stack:
            if scenario.way != "direct":
                stack.enter_context(self.pgbouncer() if scenario.way == "pgbouncer" else self.sidecar())
            stack.enter_context(self.gunicorn(scenario))
            before = self.connections_so_far()
            counts = "direct" if scenario.way == "direct" else "through"
            results = self.requests(1, 1 + self.one_by_one[counts])
            crowd = self.requests(AT_ONCE, AT_ONCE * self.rounds[counts])
            opened = self.connections_so_far() - before
        good = [result for result in results if result]
        good_crowd = [result for result in crowd if result]
        if not good or not good_crowd:
            print((self.directory / "gunicorn.log").read_text()[-3000:], file=sys.stderr)
            raise SystemExit(f"no answer at all: {scenario}")
        return Row(
            scenario,
            first=good[0][0],
            one_by_one=[acquire for acquire, _ in good[1:]],
            at_once=[acquire for acquire, _ in good_crowd],
            totals=[total for _, total in good[1:] + good_crowd],
            opened=opened,
            errors=len(results) + len(crowd) - len(good) - len(good_crowd),
        )

    def requests(self, at_once, count):
        """What the app says that each request waited for a connection, and took; None for an answer that is an error."""
        command = [self.tools / "http_burst", self.web_port, "/api/schools/primary/", at_once, count]
        said = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, check=True, text=True).stdout
        return [None if line == "error" else tuple(map(float, line.split())) for line in said.splitlines()]


@contextlib.contextmanager
def process(command, log, environment=None, directory=None, stdin=None):
    """Runs while the block does; then SIGTERM, and twice, so that nobody waits for a last client."""
    with open(log, "ab") as output:
        running = subprocess.Popen(
            [str(part) for part in command],
            env=os.environ | (environment or {}),
            cwd=directory,
            stdin=stdin,
            stdout=output,
            stderr=output,
        )
    try:
        try:
            yield running
        except TimeoutError as error:
            raise SystemExit(f"{error}; {log}:\n{Path(log).read_text()[-3000:]}") from error
        if running.poll() is not None:
            raise SystemExit(f"{command[0]} ended by itself; see {log}:\n{Path(log).read_text()[-2000:]}")
    finally:
        for _ in range(2):
            with contextlib.suppress(ProcessLookupError):
                running.send_signal(signal.SIGTERM)
                time.sleep(0.05)
        try:
            running.wait(10)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


def free_port():
    """Below the ports that the system gives to outgoing connections."""
    while True:
        port = 10000 + int.from_bytes(os.urandom(2), "big") % 22000
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port


def wait_for(condition, what, seconds=WAIT_DEADLINE):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds} s for {what}")
        time.sleep(0.05)


def wait_for_port(port):
    def listens():
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_for(listens, f"port {port}")


def idle_backends(metrics_port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    except OSError:
        return 0
    found = re.findall(r'^pgsidecar_backends{.*state="idle".*} (\d+)$', text, re.MULTILINE)
    return sum(map(int, found))


def idle_servers(console):
    """What PgBouncer says."""
    said = subprocess.run(["psql", "-XAtqc", "SHOW SERVERS", console], capture_output=True, check=False, text=True).stdout
    return sum("|idle|" in line for line in said.splitlines())


def migrate(scene):
    scenario = Scenario("sync", "psycopg 3", "direct")
    environment = os.environ | scene.django_environment(scenario)
    environment["DATABASE_URL"] = f"postgres://app:{scene.password}@127.0.0.1:{scene.database_port}/app"
    subprocess.run([scene.python, "manage.py", "migrate", "-v", "0"], cwd=HERE / "backend", env=environment, check=True)


SCRAM_COST = """
import importlib, sys, time
driver = importlib.import_module(sys.argv[1])
driver.connect(sys.argv[2]).close()
before = time.process_time()
for _ in range(20):
    driver.connect(sys.argv[2]).close()
print((time.process_time() - before) * 1000 / 20)
"""


def scram_cost(scene, driver):
    """Milliseconds of its own CPU that a driver spends on a login by TCP and SCRAM to PostgreSQL on this machine."""
    url = f"postgres://app:{scene.password}@127.0.0.1:{scene.database_port}/app?sslmode=disable"
    command = [scene.python, "-c", SCRAM_COST, driver.replace(" 3", ""), url]
    return float(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


def faults(row, is_short, scram):
    """What a row is to keep to and doesn't. `scram` is the driver's own cost of a login.

    The short form runs anywhere, beside anything: there the limits are for the median, and ten times as wide.
    """
    name = tables.name_of(row.scenario)
    scenario = row.scenario
    percent, slack = (50, 10) if is_short else (99, 1)
    if row.errors:
        yield f"{name}: {row.errors} errors"
    acquired = [row.first, *row.later]
    if scenario.way == "direct":
        if scenario.worker == "gevent" and not scenario.has_pool and min(acquired) < 1000:
            yield f"{name}: a direct connection under gevent took less than 1000 ms: the link is no scene"
        return
    # It is there to compare with.
    if scenario.way == "pgbouncer":
        return
    if row.first >= ROUND_TRIP_MS:
        yield f"{name}: the first acquire took {row.first:.1f} ms: it has asked the database"
    if scenario.way == "unix":
        if percentile(acquired, percent) >= ACQUIRE_P99_MAX * slack:
            yield f"{name}: p{percent} of acquiring is {percentile(acquired, percent):.1f} ms"
        if not is_short and max(acquired) >= ACQUIRE_MAX:
            yield f"{name}: the slowest acquire is {max(acquired):.1f} ms"
    else:
        # Half of what comes at once is each of the two processes' own.
        for series, logins in ((row.one_by_one, 1), (row.at_once, AT_ONCE / 2)):
            limit = (ACQUIRE_P99_MAX + scram * logins) * slack
            if percentile(series, percent) > limit:
                yield f"{name}: p{percent} of acquiring is {percentile(series, percent):.1f} ms, above {limit:.1f}"
    queries = 2 if scenario.has_health_checks else 1
    total = percentile(row.totals, percent)
    is_judged = scenario.way == "unix" or not is_short
    if is_judged and total > ROUND_TRIP_MS * queries + API_OVERHEAD_MAX * slack:
        yield f"{name}: p{percent} of the API is {total:.1f} ms for {queries} queries"
    if row.opened:
        yield f"{name}: {row.opened} connections to PostgreSQL were opened beside the warm ones"


def machine():
    with open("/proc/cpuinfo", encoding="utf-8") as cpus:
        model = next((line.split(":")[1].strip() for line in cpus if line.startswith("model name")), platform.machine())
    return f"{os.cpu_count()} × {model}"


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--short", action="store_true", help="four rows, with wide limits")
    arguments.add_argument("--write", action="store_true", help="put the tables into docs/django.md")
    arguments.add_argument("--only", default="", help="rows whose name contains this, or one of these with commas between")
    options = arguments.parse_args()
    # As an exit, so that what was started is stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    directory = tempfile.mkdtemp(prefix="pgsidecar-django-")
    load = os.getloadavg()[0]
    rows = []
    try:
        scene = Scene(directory, options.short)
        migrate(scene)
        scram = {driver: scram_cost(scene, driver) for driver in ("psycopg 3", "psycopg2")}
        print("a driver's own CPU for a login by TCP and SCRAM, ms:", {name: round(cost, 1) for name, cost in scram.items()})
        matrix = list(short_matrix() if options.short else full_matrix())
        parts = options.only.split(",")
        matrix = [scenario for scenario in matrix if any(part in tables.name_of(scenario) for part in parts)]
        with scene.link():
            for number, scenario in enumerate(matrix, 1):
                row = scene.run(scenario)
                rows.append(row)
                print(f"[{number}/{len(matrix)}] {tables.line(row)}", flush=True)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    print()
    print(tables.table(rows, tables.ENGLISH))
    if options.write:
        about = {"machine": machine(), "date": time.strftime("%Y-%m-%d"), "round_trip": ROUND_TRIP_MS, "load": f"{load:.1f}"}
        tables.write(HERE.parent.parent / "docs" / "django.md", rows, about)
    found = [fault for row in rows for fault in faults(row, options.short, scram[row.scenario.driver])]
    for fault in found:
        print(f"beyond the limits: {fault}")
    if not found:
        print("All rows are within their limits.")
    raise SystemExit(1 if found else 0)


if __name__ == "__main__":
    main()
