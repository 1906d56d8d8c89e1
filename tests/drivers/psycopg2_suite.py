"""What psycopg2 does: run directly and through pgsidecar, the printed lines must be the same."""

import io
import os
import select
import threading

import psycopg2
import psycopg2.extensions
import psycopg2.extras

URL = os.environ["DATABASE_URL"]


def show(name, value):
    print(f"{name}: {value}", flush=True)


def error_of(action):
    try:
        action()
    except psycopg2.Error as error:
        return f"{type(error).__name__} {error.pgcode}"
    return "no error"


def query(connection, statement, parameters=None):
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return cursor.fetchall()


def basics(connection):
    show("encoding", connection.encoding)
    show("parameters", [connection.get_parameter_status(name) for name in ("TimeZone", "DateStyle", "server_version")])
    show("select", query(connection, "SELECT %s + 1, %s", (41, "grüße")))
    show("several statements", query(connection, "SELECT 1; SELECT 2"))
    show("status", connection.get_transaction_status())
    connection.commit()
    show("status after commit", connection.get_transaction_status())


def bulk(connection):
    with connection.cursor() as cursor:
        psycopg2.extras.execute_values(cursor, "INSERT INTO psycopg2_t VALUES %s", [(n, str(n)) for n in range(1000)])
        psycopg2.extras.execute_batch(cursor, "UPDATE psycopg2_t SET b = %s WHERE a = %s", [("x", n) for n in range(100)])
    connection.commit()
    show("bulk", query(connection, "SELECT count(*), count(*) FILTER (WHERE b = 'x') FROM psycopg2_t"))
    connection.rollback()


def server_side_cursor(connection):
    with connection.cursor("named") as cursor:
        cursor.itersize = 50
        cursor.execute("SELECT a FROM psycopg2_t ORDER BY a")
        show("named cursor", sum(row[0] for row in cursor))
    connection.commit()


def copy(connection):
    with connection.cursor() as cursor:
        cursor.copy_expert("COPY psycopg2_t FROM STDIN", io.StringIO("".join(f"{n}\tcopied\n" for n in range(2000, 3000))))
        out = io.StringIO()
        cursor.copy_expert("COPY (SELECT a FROM psycopg2_t WHERE a >= 2000 ORDER BY a) TO STDOUT", out)
        show("copy", len(out.getvalue()))
        show("copy error", error_of(lambda: cursor.copy_expert("COPY psycopg2_t FROM STDIN", io.StringIO("x\ty\n"))))
    connection.rollback()
    show("copy undone", query(connection, "SELECT count(*) FROM psycopg2_t WHERE a >= 2000"))
    connection.rollback()


def failed_transaction(connection):
    show("error", error_of(lambda: query(connection, "SELECT 1/0")))
    show("25P02", error_of(lambda: query(connection, "SELECT 1")))
    connection.rollback()
    show("after rollback", query(connection, "SELECT 1"))
    connection.rollback()


def notifies(connection):
    connection.set_isolation_level(psycopg2.extensions.ISOLATION_LEVEL_AUTOCOMMIT)
    with connection.cursor() as cursor:
        cursor.execute("LISTEN psycopg2_channel")
    other = psycopg2.connect(URL)
    other.autocommit = True
    with other.cursor() as cursor:
        cursor.execute("NOTIFY psycopg2_channel, 'hello'")
    other.close()
    while not connection.notifies and select.select([connection], [], [], 5)[0]:
        connection.poll()
    show("notifies", [(notify.channel, notify.payload) for notify in connection.notifies])


def cancel(connection):
    timer = threading.Timer(0.3, connection.cancel)
    timer.start()
    show("cancel", error_of(lambda: query(connection, "SELECT pg_sleep(20)")))
    timer.join()
    show("and on", query(connection, "SELECT 1"))


def settings(connection):
    connection.set_client_encoding("LATIN1")
    show("latin1", (connection.encoding, query(connection, "SELECT 'é'")))
    connection.set_client_encoding("UTF8")
    connection.set_session(isolation_level="SERIALIZABLE", autocommit=False)
    show("isolation", query(connection, "SHOW transaction_isolation"))
    connection.rollback()


def two_phase(connection):
    other = psycopg2.connect(URL)
    name = other.xid(1, "psycopg2", os.environ.get("SUITE_NAME", "suite"))
    other.tpc_begin(name)
    with other.cursor() as cursor:
        cursor.execute("INSERT INTO psycopg2_t VALUES (5000, 'two-phase')")
    other.tpc_prepare()
    other.tpc_commit()
    other.close()
    show("two-phase", query(connection, "SELECT b FROM psycopg2_t WHERE a = 5000"))
    connection.rollback()


def main():
    connection = psycopg2.connect(URL)
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS psycopg2_t")
        cursor.execute("CREATE TABLE psycopg2_t (a int, b text)")
    connection.commit()
    for part in (basics, bulk, server_side_cursor, copy, failed_transaction, notifies, cancel, settings, two_phase):
        part(connection)
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE psycopg2_t")
    connection.commit()
    connection.close()


main()
