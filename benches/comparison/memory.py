"""Memory of a pooler: with thousands of idle clients, after they have left, and while 1 GB passes."""

import pathlib
import re
import subprocess
import time

from .peers import PEERS
from .scenarios import IDLE, PEAK
from .tools import DATABASE, PASSWORD, USER, Missing, run

# Descriptors that a pooler needs beside its clients'.
SPARE_DESCRIPTORS = 100
# After clients have left, memory that is still there after so long with nothing happening is not given back.
QUIET_SECONDS = 5
LARGE = {
    "copy": "COPY (SELECT repeat('x', 1000000) FROM generate_series(1, {count})) TO STDOUT",
    "row": "SELECT repeat('x', {count}000000)",
}


def resident_kib(process_id, field="VmRSS"):
    status = pathlib.Path(f"/proc/{process_id}/status").read_text()
    return int(re.search(rf"^{field}:\s+(\d+) kB", status, re.M).group(1))


def measure_idle(name, turn):
    """KiB per client, and what of it is there no more after they have left."""
    counts, results = idle_counts(turn.options), {}
    for peer_name in poolers(turn):
        turn.progress.step(f"{name}, {peer_name}")
        with PEERS[peer_name](turn.tools, turn.postgres, IDLE[name]) as peer:
            results[peer_name] = idle_clients(peer, counts, 0.5 if turn.options.smoke else QUIET_SECONDS)
    return {"title": IDLE[name].title, "peers": results}


def idle_counts(options):
    return [20, 100] if options.smoke else [1000, 10000]


def check_descriptors(options, limit):
    """Before anything is measured."""
    count = idle_counts(options)[-1]
    if any(name in options.scenarios for name in IDLE) and limit < count + SPARE_DESCRIPTORS:
        raise Missing(f"missing: file descriptors for {count} clients (ulimit -Hn is {limit}); choose other --scenarios")


def idle_clients(peer, counts, quiet_seconds):
    def memory():
        return resident_kib(peer.process.pid)

    before, found = memory(), {}
    command = [peer.tools.load, "idle", peer.address(), USER, PASSWORD, DATABASE, ",".join(map(str, counts))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True) as clients:
        for count in counts:
            if clients.stdout.readline() != "ready\n":
                lines = clients.communicate()[1].strip().splitlines() or ["no reason given"]
                raise Missing(f"failed: {count} idle clients through {peer.name}: {lines[-1]}")
            time.sleep(min(1, quiet_seconds))
            there = memory()
            found[f"kib_per_client_at_{count}"] = (there - before) / count
            clients.stdin.write("\n")
            clients.stdin.flush()
    after = settled(memory, quiet_seconds)
    found["resident_mib"] = there / 1024
    found["given_back"] = max(0, there - after) / (there - before) if there > before else 1.0
    return found


def settled(memory, quiet_seconds):
    """What is left once nothing more is given back."""
    least, since = memory(), time.monotonic()
    while time.monotonic() < since + quiet_seconds:
        time.sleep(0.2)
        now = memory()
        if now < least:
            least, since = now, time.monotonic()
    return least


def measure_peak(turn):
    """The most memory that was resident while a COPY, or one row, of 1 GB passed."""
    count = 10 if turn.options.smoke else 1000
    results = {}
    for peer_name in poolers(turn):
        turn.progress.step(f"peak, {peer_name}")
        with PEERS[peer_name](turn.tools, turn.postgres, PEAK["peak"]) as peer:
            results[peer_name] = {f"{kind}_mib": peak(peer, sql.format(count=count)) for kind, sql in LARGE.items()}
    return {"title": PEAK["peak"].title, "peers": results}


def peak(peer, sql):
    pathlib.Path(f"/proc/{peer.process.pid}/clear_refs").write_text("5")
    run([peer.tools.load, "fetch", peer.address(), USER, PASSWORD, DATABASE, "0", sql], 300)
    return resident_kib(peer.process.pid, "VmHWM") / 1024


def poolers(turn):
    return [name for name in turn.options.peers if PEERS[name].pools]
