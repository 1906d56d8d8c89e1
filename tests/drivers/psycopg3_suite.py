"""What psycopg 3 does: run directly and through pgsidecar, the printed lines must be the same."""

import os
import threading
import time

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

URL = os.environ["DATABASE_URL"]


def show(name, value):
    print(f"{name}: {value}", flush=True)


def error_of(action):
    try:
        action()
    except psycopg.Error as error:
        return f"{type(error).__name__} {error.sqlstate}"
    return "no error"


def basics(connection):
    show("ssl", connection.pgconn.ssl_in_use)
    show("select", connection.execute("SELECT %s::int + %s", (40, 2)).fetchall())
    show("types", connection.execute("SELECT now() > '2020-01-01', NULL, ARRAY[1,2], '{\"a\": 1}'::jsonb").fetchone())
    show("parameters", {name: connection.info.parameter_status(name) for name in (
        "server_version", "client_encoding", "TimeZone", "DateStyle", "standard_conforming_strings", "search_path",
        "application_name", "is_superuser", "session_authorization", "integer_datetimes", "in_hot_standby")})
    show("binary", connection.cursor(binary=True).execute("SELECT 1.5::float8, 'x'::text").fetchone())
    show("unicode", connection.execute("SELECT %s", ("grüße 🐘",)).fetchone())


def prepared(connection):
    cursor = connection.cursor()
    show("prepared", [cursor.execute("SELECT %s::int * 2", (n,), prepare=True).fetchone()[0] for n in range(10)])
    show("auto-prepared", [cursor.execute("SELECT %s::text", (str(n),)).fetchone()[0] for n in range(10)])
    show("executemany", cursor.executemany("INSERT INTO psycopg3 VALUES (%s, %s)", [(n, f"row {n}") for n in range(50)]))
    show("count", cursor.execute("SELECT count(*), sum(id) FROM psycopg3").fetchone())


def pipeline(connection):
    with connection.pipeline() as pipe:
        cursors = [connection.execute("SELECT %s::int", (n,)) for n in range(20)]
        pipe.sync()
        show("pipeline", [cursor.fetchone()[0] for cursor in cursors])

    def failing():
        with connection.pipeline():
            connection.execute("SELECT 1")
            connection.execute("SELECT 1/0")
            connection.execute("SELECT 2")

    show("pipeline error", error_of(failing))
    show("after it", connection.execute("SELECT 3").fetchone())


def transactions(connection):
    try:
        with connection.transaction():
            connection.execute("INSERT INTO psycopg3 VALUES (1000, 'undone')")
            with connection.transaction():
                connection.execute("INSERT INTO psycopg3 VALUES (1001, 'undone too')")
            raise psycopg.Rollback()
    except psycopg.Rollback:
        pass
    show("rolled back", connection.execute("SELECT count(*) FROM psycopg3 WHERE id >= 1000").fetchone())
    with connection.transaction():
        show("inner error", error_of(lambda: savepoint(connection)))
        show("outer goes on", connection.execute("SELECT 1").fetchone())
    show("status", connection.info.transaction_status.name)


def savepoint(connection):
    with connection.transaction():
        connection.execute("SELECT nonsense")


def server_side_cursors(connection):
    with connection.transaction(), connection.cursor("named", row_factory=dict_row) as cursor:
        cursor.execute("SELECT g AS n FROM generate_series(1, 1000) g")
        cursor.itersize = 100
        show("named cursor", sum(row["n"] for row in cursor))
    with connection.transaction(), connection.cursor("scrolling", scrollable=True) as cursor:
        cursor.execute("SELECT generate_series(1, 10)")
        cursor.scroll(5)
        forward = cursor.fetchone()
        cursor.scroll(-3)
        show("scroll", (forward, cursor.fetchone()))
    with connection.cursor("holdable", withhold=True) as cursor:
        cursor.execute("SELECT generate_series(1, 3)")
        show("with hold", cursor.fetchall())


def copy(connection):
    cursor = connection.cursor()
    cursor.execute("CREATE TABLE psycopg3_copy (a int, b text)")
    with cursor.copy("COPY psycopg3_copy FROM STDIN") as writer:
        for n in range(5000):
            writer.write_row((n, f"line {n}" * 5))
    with cursor.copy("COPY psycopg3_copy TO STDOUT (FORMAT binary)") as reader:
        show("copy out", sum(len(block) for block in reader))

    def broken():
        with cursor.copy("COPY psycopg3_copy FROM STDIN") as writer:
            writer.write("not a number\n")

    show("copy error", error_of(broken))
    show("copied", cursor.execute("SELECT count(*), max(a) FROM psycopg3_copy").fetchone())
    cursor.execute("DROP TABLE psycopg3_copy")


def notifies(connection):
    connection.execute("LISTEN psycopg3_channel")
    with psycopg.connect(URL, autocommit=True) as other:
        for n in range(3):
            other.execute("SELECT pg_notify('psycopg3_channel', %s)", (str(n),))
    show("notifies", [notify.payload for notify in connection.notifies(timeout=5, stop_after=3)])
    connection.execute("UNLISTEN *")


def cancel(connection):
    timer = threading.Timer(0.3, connection.cancel_safe)
    timer.start()
    started = time.monotonic()
    show("cancel", error_of(lambda: connection.execute("SELECT pg_sleep(20)")))
    show("at once", time.monotonic() - started < 10)
    timer.join()
    show("and on", connection.execute("SELECT 1").fetchone())


def errors(connection):
    show("syntax", error_of(lambda: connection.execute("SELEC")))
    show("division", error_of(lambda: connection.execute("SELECT 1/%s", (0,))))
    show("unique", error_of(lambda: connection.execute("INSERT INTO psycopg3 VALUES (1, 'again')")))
    show("table", error_of(lambda: connection.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier("no such")))))


def session_state(connection):
    connection.execute("SET search_path = pg_catalog, public")
    connection.execute("CREATE TEMP TABLE psycopg3_temp (x int)")
    show("temp", connection.execute("INSERT INTO psycopg3_temp VALUES (7) RETURNING x").fetchone())
    show("set", connection.execute("SHOW search_path").fetchone())
    with psycopg.connect(URL, options="-c statement_timeout=12345 -c DateStyle=German", application_name="opt") as other:
        show("options", other.execute("SELECT current_setting('statement_timeout'), current_date::text ~ '^\\d+\\.'").fetchone())
        show("name", other.execute("SELECT current_setting('application_name')").fetchone())


def large_values(connection):
    value = "x" * 5_000_000
    show("large parameter", connection.execute("SELECT length(%s)", (value,)).fetchone())
    show("large result", len(connection.execute("SELECT repeat('y', 20000000)").fetchone()[0]))


def main():
    with psycopg.connect(URL, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS psycopg3, psycopg3_copy")
        connection.execute("CREATE TABLE psycopg3 (id int PRIMARY KEY, name text)")
        for part in (basics, prepared, pipeline, transactions, server_side_cursors, copy, notifies, cancel, errors,
                     session_state, large_values):
            part(connection)
        connection.execute("DROP TABLE psycopg3")


main()
