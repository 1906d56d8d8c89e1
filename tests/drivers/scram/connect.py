"""connect.py DRIVER HOST PORT USER PASSWORD DATABASE: the median of ten connects in milliseconds, or the driver's refusal."""

import asyncio
import statistics
import sys
import time

driver, host, port, user, password, database = sys.argv[1:]


def connect():
    if driver == "libpq":
        import psycopg

        psycopg.connect(host=host, port=port, user=user, password=password, dbname=database, sslmode="disable").close()
    elif driver == "pg8000":
        import pg8000.dbapi

        pg8000.dbapi.connect(host=host, port=int(port), user=user, password=password, database=database).close()
    else:
        import asyncpg

        async def once():
            connection = await asyncpg.connect(
                host=host, port=int(port), user=user, password=password, database=database, ssl=False
            )
            await connection.close()

        asyncio.run(once())


def timed():
    began = time.perf_counter()
    connect()
    return (time.perf_counter() - began) * 1000


try:
    timed()
    print(f"{statistics.median(timed() for _ in range(10)):.1f}")
except Exception as refusal:
    print(f"refused: {str(refusal).strip().splitlines()[0]}")
