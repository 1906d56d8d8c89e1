"""A database 150 ms away: how long the slowest of sixteen clients waits that come at once."""

import asyncio
import contextlib
import statistics
import threading
import time

from .loads import connect_load
from .peers import PEERS, POOL_SIZE
from .scenarios import DISTANT
from .tools import DATABASE, PASSWORD, USER, Missing, run

ROUND_TRIP_SECONDS = 0.15
CLIENTS = 16
ROUNDS = 3
SITUATIONS = {
    "fresh": "a fresh process",
    "warm": "a warm pool of 20",
    "gone": "connected once, its backends are gone",
}


class Distance:
    """Stands for the PostgreSQL behind it, half a round trip away in each direction. What comes first from a client comes a
    whole one later: a kernel's connect takes that long over such a distance, and the one to here does not."""

    def __init__(self, postgres, round_trip):
        self.round_trip, self.nearby_port = round_trip, postgres.port
        self.directory, self.verifier, self.port = postgres.directory, postgres.verifier, None

    def __enter__(self):
        self.loop, listening = asyncio.new_event_loop(), threading.Event()
        self.thread = threading.Thread(target=self.run, args=(listening,), daemon=True)
        self.thread.start()
        if not listening.wait(10):
            raise Missing("failed: the distance does not listen")
        return self

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()

    def run(self, listening):
        asyncio.set_event_loop(self.loop)
        server = self.loop.run_until_complete(asyncio.start_server(self.serve, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        listening.set()
        self.loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        self.loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self.loop.close()

    async def serve(self, reader, writer):
        near, far = await asyncio.open_connection("127.0.0.1", self.nearby_port)
        half = self.round_trip / 2
        there = asyncio.ensure_future(self.carry(reader, far, half, self.loop.time() + self.round_trip + half))
        back = asyncio.ensure_future(self.carry(near, writer, half, 0))
        # Cancelled when it all ends, which asyncio would print.
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([there, back])

    async def carry(self, reader, writer, delay, not_before):
        """Each piece leaves `delay` after it came, however many are on the way."""
        while data := await self.read(reader):
            at = max(self.loop.time() + delay, not_before)
            self.loop.call_at(at, self.write, writer, data)
        self.loop.call_at(max(self.loop.time() + delay, not_before), writer.close)

    async def read(self, reader):
        try:
            return await reader.read(65536)
        except OSError:
            return b""

    def write(self, writer, data):
        if not writer.is_closing():
            writer.write(data)


def measure_distant(turn):
    """Seconds of the slowest answer, per peer and situation."""
    round_trip = 0.01 if turn.options.smoke else ROUND_TRIP_SECONDS
    poolers = [name for name in turn.options.peers if PEERS[name].pools]
    found = {name: {situation: [] for situation in SITUATIONS} for name in poolers}
    with Distance(turn.postgres, round_trip) as distant:
        for number in range(1 if turn.options.smoke else ROUNDS):
            for name in poolers:
                turn.progress.step(f"distant, round {number + 1}, {name}")
                for situation, seconds in situations(PEERS[name], turn, distant).items():
                    found[name][situation].append(seconds)
    return {"title": DISTANT["distant"].title, "round_trip_seconds": round_trip, "situations": SITUATIONS,
            "peers": {name: {situation: statistics.median(taken) for situation, taken in all_taken.items()}
                      for name, all_taken in found.items()}}


def situations(kind, turn, distant):
    with kind(turn.tools, distant, DISTANT["distant"]) as peer:
        fresh = slowest(peer, CLIENTS, "SELECT 1")
        slowest(peer, POOL_SIZE, f"SELECT pg_sleep({4 * distant.round_trip + 0.5})")
        warm = slowest(peer, CLIENTS, "SELECT 1")
        end_backends(turn)
        return {"fresh": fresh, "warm": warm, "gone": slowest(peer, CLIENTS, "SELECT 1")}


def slowest(peer, clients, sql):
    operations = connect_load([peer.tools.load, "burst", peer.address(), USER, PASSWORD, DATABASE, str(clients), sql], 60,
                              "transaction")
    return max(operation.microseconds for operation in operations) / 1e6


def end_backends(turn):
    """And waits until the pooler has heard of it, over the distance."""
    url = f"postgres://{USER}:{PASSWORD}@127.0.0.1:{turn.postgres.port}/{DATABASE}?sslmode=disable"
    run([turn.tools.psql, "-XAtqc",
         "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = current_user AND pid <> pg_backend_pid()",
         url], 30)
    time.sleep(2 * ROUND_TRIP_SECONDS)
