"""Runs the load of a scenario through a peer; what it did, operation by operation."""

import dataclasses
import pathlib
import shutil
import tempfile

from .tools import DATABASE, PASSWORD, USER, Missing, run

MEGABYTE = 1_000_000
# At least; with SCRAM a few hundred less, for a handful of clients.
CONNECTS_PER_SECOND = 1000


@dataclasses.dataclass(frozen=True)
class Operation:
    ended: float
    microseconds: int
    # Transactions, or MB.
    amount: float


def run_load(scenario, peer, postgres, seconds, smoke=False):
    """All operations in the order of their ends."""
    kind, *arguments = scenario.load
    if kind == "pgbench":
        operations = run_pgbench(arguments, scenario, peer, seconds, smoke)
    else:
        login = [USER, PASSWORD, DATABASE]
        tail = {"connect": [str(scenario.clients), str(seconds)],
                "fetch": [str(seconds), *arguments],
                "send": [str(seconds), *arguments, str(postgres.bulk_mib << 20)]}[kind]
        operations = connect_load([peer.tools.load, kind, peer.address(), *login, *tail], seconds, scenario.unit)
    if not operations:
        raise Missing(f"failed: no {scenario.unit} of {scenario.name} ended through {peer.name}")
    return sorted(operations, key=lambda operation: operation.ended)


def run_pgbench(arguments, scenario, peer, seconds, smoke):
    directory = tempfile.mkdtemp(prefix="pgsidecar-compare-")
    try:
        if "prepared" in arguments and not peer.serves_prepared():
            arguments[arguments.index("prepared")] = "extended"
        # Its clock runs while its clients connect.
        connecting = scenario.clients / CONNECTS_PER_SECOND
        length = ["-t", "20"] if smoke else ["-T", str(max(1, round(seconds + connecting)))]
        threads = str(min(2, scenario.clients))
        run([peer.tools.pgbench, "-n", "-l", f"--log-prefix={directory}/log", *arguments, "-c", str(scenario.clients),
                "-j", threads, *length, peer.url()], seconds + 120)
        operations = []
        for log in pathlib.Path(directory).glob("log.*"):
            with open(log, encoding="ascii") as lines:
                for line in lines:
                    # client_id transaction_no time script_no time_epoch time_us
                    fields = line.split()
                    operations.append(Operation(int(fields[4]) + int(fields[5]) / 1e6, int(fields[2]), 1))
        return operations
    finally:
        shutil.rmtree(directory)


def connect_load(command, seconds, unit):
    operations = []
    for line in run(command, seconds + 120).splitlines():
        ended, took, size = (int(field) for field in line.split())
        operations.append(Operation(ended / 1e6, took, size / MEGABYTE if unit == "MB" else 1))
    return operations
