"""What is compared: pgsidecar, PgBouncer, HAProxy and the bare forwarder, each a child process in a session of its own.

The kernel's scheduler shares the processors between sessions first (sched(7), autogroup), so no peer may share one with its
load, and none may have another's share: PgBouncer as a daemon would leave for a session of its own, the others would not.
"""

import os
import pathlib
import shutil
import socket
import subprocess
import tempfile
import time

from .tools import DATABASE, PASSWORD, USER, Missing, free_port, run

POOL_SIZE = 20
LISTEN_SECONDS = 20
# Two of the ports may be taken between being found free and being used.
ATTEMPTS = 3


class Peer:
    """One peer for one scenario, with its files in a directory of its own."""

    # Whether it lends few backends to many clients.
    pools = False
    refusal = "it does not listen"

    def __init__(self, tools, postgres, scenario):
        self.tools, self.postgres, self.scenario = tools, postgres, scenario

    def __enter__(self):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="pgsidecar-compare-"))
        for _ in range(ATTEMPTS):
            self.port = free_port()
            self.process = self.spawn()
            if self.is_ready():
                return self
            log = (self.directory / "log").read_text(errors="replace").strip().splitlines()
            self.stop()
        shutil.rmtree(self.directory)
        raise Missing(f"{self.name} does not serve {self.scenario.name}: {log[-1] if log else self.refusal}")

    def __exit__(self, *_):
        self.stop()
        shutil.rmtree(self.directory)

    def stop(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)

    def is_ready(self):
        deadline = time.monotonic() + LISTEN_SECONDS
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                if self.scenario.upstream == "distant":
                    # Nothing may have been opened before the first client comes.
                    socket.create_connection(("127.0.0.1", self.port)).close()
                    return True
                run([self.tools.psql, "-XAtqc", "SELECT 1", self.url()], 30)
                return True
            except (Missing, OSError) as refusal:
                self.refusal = refusal
                time.sleep(0.05)
        return False

    def start(self, command, environment=None):
        with open(self.directory / "log", "wb") as log:
            return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                    start_new_session=True)

    def serves_prepared(self):
        return True

    @property
    def transport(self):
        return self.scenario.transport

    @property
    def socket_path(self):
        return f"{self.directory}/.s.PGSQL.{self.port}"

    def url(self):
        """For libpq. Debian's libpq would try GSSAPI first where it finds a ticket."""
        if self.transport == "unix":
            return f"postgres://{USER}@/{DATABASE}?host={self.directory}&port={self.port}"
        mode = "require" if self.transport == "tls" else "disable"
        return f"postgres://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{DATABASE}?sslmode={mode}&gssencmode=disable"

    def address(self):
        """For connect_load."""
        return f"unix:{self.socket_path}" if self.transport == "unix" else f"{self.transport}:{self.port}"


class PgBouncer(Peer):
    name = "pgbouncer"
    pools = True

    def has_prepared_statements(self):
        """Since 1.21 in transaction mode."""
        return self.tools.pgbouncer_version() >= (1, 21)

    def serves_prepared(self):
        return self.has_prepared_statements() or self.scenario.without_prepared == "session"

    def spawn(self):
        files = {"pgbouncer.ini": self.settings(),
                 "users": f'"{USER}" "{self.secret()}"\n',
                 "access": f"local all all trust\nhost all all 127.0.0.1/32 {self.scenario.auth}\n"}
        if self.transport == "tls" or self.scenario.upstream == "distant":
            for name in ("server.crt", "server.key"):
                files[name] = (pathlib.Path(self.postgres.directory) / name).read_text()
        for name, text in files.items():
            (self.directory / name).write_text(text)
        command = [self.tools.pgbouncer, str(self.directory / "pgbouncer.ini")]
        if os.geteuid() == 0:
            # It refuses to run as root. setpriv becomes the program, so the process id stays.
            for path in (self.directory, *(self.directory / name for name in files)):
                shutil.chown(path, "postgres", "postgres")
            command = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--", *command]
        return self.start(command)

    def secret(self):
        """From a plain password it would derive keys with a new salt at each login; the verifier is its better side. It logs
        in to PostgreSQL with what clients show it then, and those that are trusted show nothing."""
        return PASSWORD if self.scenario.auth == "trust" else self.postgres.verifier

    def settings(self):
        mode, size, more = "transaction", POOL_SIZE, ""
        if self.has_prepared_statements():
            more = "max_prepared_statements = 100\n"
        elif self.scenario.without_prepared == "session":
            mode, size = "session", self.scenario.clients
        if self.transport == "tls":
            more += (f"client_tls_sslmode = require\nclient_tls_key_file = {self.directory}/server.key\n"
                     f"client_tls_cert_file = {self.directory}/server.crt\n")
        if self.scenario.upstream == "distant":
            more += (f"server_tls_sslmode = verify-ca\nserver_tls_ca_file = {self.directory}/server.crt\n")
        database = f"host={self.postgres.directory if self.scenario.upstream == 'unix' else '127.0.0.1'}"
        return (f"[databases]\n* = {database} port={self.postgres.port}\n[pgbouncer]\n"
                f"listen_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir = {self.directory}\n"
                f"auth_type = hba\nauth_hba_file = {self.directory}/access\nauth_file = {self.directory}/users\n"
                f"pool_mode = {mode}\ndefault_pool_size = {size}\nmax_client_conn = 11000\n"
                f"log_connections = 0\nlog_disconnections = 0\n{more}")


class HAProxy(Peer):
    """tcp mode, one thread as all the others have one."""

    name = "haproxy"

    def spawn(self):
        bind = f"unix@{self.socket_path}" if self.transport == "unix" else f"127.0.0.1:{self.port}"
        server = f"unix@{self.postgres.socket_path}" if self.scenario.upstream == "unix" else f"127.0.0.1:{self.postgres.port}"
        settings = self.directory / "haproxy.cfg"
        settings.write_text(
            "global\n  nbthread 1\n  maxconn 2000\ndefaults\n  mode tcp\n  timeout connect 10s\n  timeout client 1h\n"
            f"  timeout server 1h\nfrontend clients\n  bind {bind}\n  default_backend postgres\n"
            f"backend postgres\n  server postgres {server}\n")
        return self.start([self.tools.haproxy, "-db", "-q", "-f", str(settings)])


class Forwarder(Peer):
    """benches/byte_forwarder.c: the floor."""

    name = "forwarder"

    def spawn(self):
        listen = self.socket_path if self.transport == "unix" else str(self.port)
        server = self.postgres.socket_path if self.scenario.upstream == "unix" else str(self.postgres.port)
        return self.start([self.tools.forwarder, listen, server])


class Sidecar(Peer):
    name = "pgsidecar"
    pools = True

    def spawn(self):
        host = self.postgres.directory if self.scenario.upstream == "unix" else "127.0.0.1"
        tls, idle = "sslmode=disable", "1"
        if self.scenario.upstream == "distant":
            tls, idle = f"sslmode=verify-ca sslrootcert={self.postgres.directory}/server.crt", "0"
        environment = {
            "PATH": os.environ["PATH"],
            "PGSIDECAR_UPSTREAM": f"host={host} port={self.postgres.port} user={USER} password={PASSWORD} "
                                  f"dbname={DATABASE} {tls}",
            "PGSIDECAR_METRICS_LISTEN": f"127.0.0.1:{free_port()}",
            "PGSIDECAR__LISTEN": self.listen(),
            "PGSIDECAR__POOL__MAX_SIZE": str(POOL_SIZE),
            "PGSIDECAR__POOL__MIN_IDLE": idle,
            "PGSIDECAR__LIMITS__MAX_CLIENTS": "11000",
        }
        if self.transport == "tls":
            environment |= {"PGSIDECAR__TLS__MODE": "require",
                            "PGSIDECAR__TLS__CERT": f"{self.postgres.directory}/server.crt",
                            "PGSIDECAR__TLS__KEY": f"{self.postgres.directory}/server.key"}
        return self.start([self.program()], environment)

    def program(self):
        return self.tools.sidecar

    def listen(self):
        address = f"unix:{self.directory}:{self.port}" if self.transport == "unix" else f"127.0.0.1:{self.port}"
        return f"[{{address: '{address}', auth: {self.scenario.auth}}}]"


class Unclassified(Sidecar):
    """pgsidecar as it would be if it did not care what statements do. Nothing to serve with: clients' settings mix."""

    name = "unclassified"

    def program(self):
        return self.tools.unclassified


PEERS = {kind.name: kind for kind in (Sidecar, PgBouncer, HAProxy, Forwarder, Unclassified)}
# It takes a build of its own.
USUAL = [name for name in PEERS if name != Unclassified.name]
