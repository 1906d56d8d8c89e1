"""A long way to the database: forwards TCP from one loopback port to another, each byte half a round trip late.

    link.py LISTEN_PORT DESTINATION_PORT ROUND_TRIP_MS COUNTS_PORT

The first byte of a connection waits a whole round trip more: what TCP's own handshake would have taken. Whoever connects
to COUNTS_PORT is told how many connections were made so far. Ends with its parent.
"""

import asyncio
import ctypes
import signal
import socket
import sys

PR_SET_PDEATHSIG = 1
# Bytes on their way in one direction before the sender has to wait.
IN_FLIGHT_MAX = 1 << 22


async def forward(reader, writer, delay, not_before):
    """Everything that is read is written `delay` later, and not before the connection is up."""
    loop = asyncio.get_running_loop()
    on_the_way = asyncio.Queue(maxsize=IN_FLIGHT_MAX >> 14)

    async def receive():
        while data := await reader.read(1 << 14):
            await on_the_way.put((max(loop.time(), not_before) + delay, data))
        await on_the_way.put((max(loop.time(), not_before) + delay, b""))

    async def deliver():
        while True:
            due, data = await on_the_way.get()
            wait = due - loop.time()
            if wait > 0:
                await asyncio.sleep(wait)
            if not data:
                writer.close()
                return
            writer.write(data)
            await writer.drain()

    receiving = asyncio.create_task(receive())
    try:
        await deliver()
    finally:
        receiving.cancel()


async def main(listen, destination, round_trip, counts):
    connections = 0

    async def accept(reader, writer):
        nonlocal connections
        connections += 1
        loop = asyncio.get_running_loop()
        accepted = loop.time()
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", destination)
        except OSError:
            writer.close()
            return
        for end in (writer, upstream_writer):
            end.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ways = [
            forward(reader, upstream_writer, round_trip / 2, accepted + round_trip),
            forward(upstream_reader, writer, round_trip / 2, accepted),
        ]
        await asyncio.gather(*ways, return_exceptions=True)
        writer.close()
        upstream_writer.close()

    async def tell(_, writer):
        writer.write(f"{connections}\n".encode())
        await writer.drain()
        writer.close()

    servers = [
        await asyncio.start_server(accept, "127.0.0.1", listen, backlog=1000),
        await asyncio.start_server(tell, "127.0.0.1", counts),
    ]
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    listen_port, destination_port, round_trip_ms, counts_port = map(int, sys.argv[1:])
    asyncio.run(main(listen_port, destination_port, round_trip_ms / 1000, counts_port))
