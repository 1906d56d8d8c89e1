"""The loads under which the peers are compared."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Scenario:
    """One load. `unit` is what CPU and system calls are divided by: a transaction, or a MB."""

    name: str
    title: str
    # For Load: ("pgbench", arguments…), ("connect",), ("fetch", sql), ("send", sql)
    load: tuple
    clients: int
    # tcp, tls or unix.
    transport: str = "tcp"
    # tcp, unix, or distant: by TLS, whose certificate is looked at.
    upstream: str = "tcp"
    # How clients log in: scram-sha-256, or trust.
    auth: str = "scram-sha-256"
    unit: str = "transaction"
    # Whether a forwarder, which has a backend per client, can take part.
    forwarders: bool = True
    # What a PgBouncer before 1.21 does, which has no prepared statements in transaction mode: "session" gives each client
    # a backend, which is less work for it; "extended" has its clients send their texts each time.
    without_prepared: str = ""


def pgbench(*arguments):
    return ("pgbench", *arguments)


TIMED = [
    # pgbench reads the clock once for an answer that is there at its first look, and tells 0 µs.
    Scenario("select-1", "SELECT 1, 1 client", ("fetch", "SELECT 1"), 1),
    Scenario("simple", "pgbench -S simple, 32 clients", pgbench("-S", "-M", "simple"), 32),
    Scenario("extended", "pgbench -S extended, 32 clients", pgbench("-S", "-M", "extended"), 32),
    Scenario("prepared", "pgbench -S prepared, 32 clients", pgbench("-S", "-M", "prepared"), 32, without_prepared="session"),
    Scenario("tpcb", "tpcb-like, 16 clients", pgbench("-M", "simple"), 16),
    # How they logged in is no part of it, and libpq would derive keys for three seconds.
    Scenario("prepared-1000", "prepared, 1000 clients on 20 backends", pgbench("-S", "-M", "prepared"), 1000, auth="trust",
             forwarders=False, without_prepared="extended"),
    Scenario("connect-scram", "connect, SCRAM", ("connect",), 8),
    # Through a forwarder it is PostgreSQL that trusts its clients, which it does on its socket.
    Scenario("connect-unix", "connect, unix socket, trust", ("connect",), 8, transport="unix", upstream="unix",
             auth="trust"),
    Scenario("connect-tls", "connect, TLS and SCRAM", ("connect",), 8, transport="tls"),
    Scenario("result", "large results", ("fetch", "SELECT payload FROM bulk"), 1, unit="MB"),
    Scenario("copy-out", "COPY out", ("fetch", "COPY bulk TO STDOUT"), 1, unit="MB"),
    # The rows are read and not stored, or PostgreSQL's storing would be most of the time.
    Scenario("copy-in", "COPY in", ("send", "COPY sink FROM STDIN WHERE false"), 1, unit="MB"),
    Scenario("tls", "TLS, prepared, 32 clients", pgbench("-S", "-M", "prepared"), 32, transport="tls",
             without_prepared="session"),
    Scenario("unix", "unix sockets on both legs, prepared, 32", pgbench("-S", "-M", "prepared"), 32, transport="unix",
             upstream="unix", auth="trust", without_prepared="session"),
]

# Measured otherwise, on the poolers alone: name and title.
IDLE = {
    "idle": Scenario("idle", "idle clients", ("idle",), 0),
    "idle-tls": Scenario("idle-tls", "idle clients, TLS", ("idle",), 0, transport="tls"),
}
PEAK = {"peak": Scenario("peak", "while 1 GB passes", ("fetch",), 1)}
DISTANT = {"distant": Scenario("distant", "a database 150 ms away", ("burst",), 16,
                               upstream="distant")}

NAMES = [scenario.name for scenario in TIMED] + [*IDLE, *PEAK, *DISTANT]
