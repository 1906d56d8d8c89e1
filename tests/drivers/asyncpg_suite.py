"""What asyncpg does: run directly and through pgsidecar, the printed lines must be the same."""

import asyncio
import datetime
import os

import asyncpg

URL = os.environ["DATABASE_URL"]


def show(name, value):
    print(f"{name}: {value}", flush=True)


async def error_of(awaitable):
    try:
        await awaitable
    except asyncpg.PostgresError as error:
        return f"{type(error).__name__} {error.sqlstate}"
    except (asyncio.TimeoutError, TimeoutError):
        return "timeout"
    return "no error"


async def basics(connection):
    settings = connection.get_settings()
    show("settings", (settings.TimeZone, settings.client_encoding, settings.server_encoding))
    show("version", connection.get_server_version()[:2])
    show("fetch", await connection.fetch("SELECT $1::int + 1 AS n, $2::text AS t", 41, "grüße"))
    show("types", await connection.fetchrow(
        "SELECT $1::timestamptz, $2::numeric, $3::int[], $4::jsonb",
        datetime.datetime(2024, 2, 29, tzinfo=datetime.timezone.utc), 3, [1, 2, 3], '{"a": 1}'))
    show("execute", await connection.execute("SELECT 1; SELECT 2"))


async def prepared(connection):
    statement = await connection.prepare("SELECT $1::int * 2")
    show("prepared", [await statement.fetchval(n) for n in range(10)])
    show("attributes", [attribute.name for attribute in statement.get_attributes()])
    show("many statements", sum([await connection.fetchval(f"SELECT {n} + $1::int", n) for n in range(150)]))
    await connection.executemany("INSERT INTO asyncpg_t VALUES ($1, $2)", [(n, str(n)) for n in range(200)])
    show("executemany", await connection.fetchval("SELECT sum(a) FROM asyncpg_t"))
    show("fetchmany", len(await connection.fetch("SELECT * FROM asyncpg_t")))


async def cursors(connection):
    async with connection.transaction():
        show("iterated", sum([row["a"] async for row in connection.cursor("SELECT a FROM asyncpg_t", prefetch=10)]))
        cursor = await connection.cursor("SELECT a FROM asyncpg_t ORDER BY a")
        await cursor.forward(10)
        show("cursor", [row["a"] for row in await cursor.fetch(3)])


async def transactions(connection):
    async def failing():
        async with connection.transaction():
            await connection.execute("INSERT INTO asyncpg_t VALUES (-1, 'undone')")
            await connection.execute("SELECT 1/0")

    show("rollback", await error_of(failing()))
    show("undone", await connection.fetchval("SELECT count(*) FROM asyncpg_t WHERE a = -1"))
    async with connection.transaction(isolation="serializable", readonly=True, deferrable=True):
        show("isolation", await connection.fetchval("SHOW transaction_isolation"))
    async with connection.transaction():
        async def inner():
            async with connection.transaction():
                await connection.execute("SELECT nonsense")

        show("savepoint", await error_of(inner()))
        show("goes on", await connection.fetchval("SELECT 1"))


async def copy(connection):
    show("copy in", await connection.copy_records_to_table("asyncpg_t", records=[(n, "copied") for n in range(5000)]))
    total = 0

    async def count(data):
        nonlocal total
        total += len(data)

    await connection.copy_from_query("SELECT * FROM asyncpg_t WHERE b = 'copied'", output=count, format="csv")
    show("copy out", total)


async def listening(connection):
    heard = asyncio.Queue()
    await connection.add_listener("asyncpg_channel", lambda _c, _pid, channel, payload: heard.put_nowait((channel, payload)))
    other = await asyncpg.connect(URL)
    await other.execute("NOTIFY asyncpg_channel, 'hello'")
    await other.close()
    show("heard", await asyncio.wait_for(heard.get(), 5))


async def cancelling(connection):
    show("timeout", await error_of(connection.execute("SELECT pg_sleep(20)", timeout=0.3)))
    show("and on", await connection.fetchval("SELECT 1"))
    show("statement_timeout", await error_of(with_timeout(connection)))


async def with_timeout(connection):
    async with connection.transaction():
        await connection.execute("SET LOCAL statement_timeout = 50")
        await connection.execute("SELECT pg_sleep(5)")


async def pool():
    async with asyncpg.create_pool(URL, min_size=2, max_size=8, server_settings={"application_name": "pooled"}) as pool:
        async def one(n):
            async with pool.acquire() as connection:
                async with connection.transaction():
                    return await connection.fetchval("SELECT $1::int + count(*) FROM asyncpg_t WHERE a < 0", n)

        show("pool", sum(await asyncio.gather(*(one(n) for n in range(100)))))
        async with pool.acquire() as connection:
            show("name", await connection.fetchval("SHOW application_name"))


async def main():
    connection = await asyncpg.connect(URL)
    await connection.execute("DROP TABLE IF EXISTS asyncpg_t; CREATE TABLE asyncpg_t (a int, b text)")
    for part in (basics, prepared, cursors, transactions, copy, listening, cancelling):
        await part(connection)
    await connection.close()
    await pool()
    connection = await asyncpg.connect(URL, statement_cache_size=0)
    show("without cache", [await connection.fetchval("SELECT $1::int", n) for n in range(5)])
    await connection.execute("DROP TABLE asyncpg_t")
    await connection.close()


asyncio.run(main())
