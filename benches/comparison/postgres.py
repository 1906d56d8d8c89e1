"""The one PostgreSQL that all peers stand in front of."""

import os
import pathlib
import shutil
import subprocess
import tempfile

from .tools import DATABASE, PASSWORD, ROOT, USER, Missing, run

# Forwarders have a backend per client, the poolers twenty each; all of them run side by side.
CONNECTIONS = 300
ACCESS = f"""\
local all {USER} trust
local all all scram-sha-256
host all all 127.0.0.1/32 scram-sha-256
"""


class Postgres:
    """A throwaway cluster, held by a shell that stops it when its input ends. TLS is on offer, and trust on its socket."""

    SCRIPT = """
        . deploy/throwaway_postgres.sh
        trap stop_postgres EXIT
        start_postgres "$(newest_postgres)" "$@" || exit 1
        echo "$postgres_port"
        echo "$postgres_directory"
        postgres_as_superuser "SELECT rolpassword FROM pg_authid WHERE rolname = '$1'"
        read -r _
    """

    def __init__(self, tools, smoke):
        self.tools, self.scale = tools, 1 if smoke else 10
        self.bulk_mib = 1 if smoke else 32

    def __enter__(self):
        self.access = tempfile.mkdtemp(prefix="pgsidecar-compare-")
        os.chmod(self.access, 0o755)
        access = pathlib.Path(self.access) / "pg_hba.conf"
        access.write_text(ACCESS)
        settings = [f"max_connections = {CONNECTIONS}", "shared_buffers = 256MB", f"hba_file = '{access}'"]
        self.shell = subprocess.Popen(["bash", "-c", self.SCRIPT, "postgres", USER, PASSWORD, *settings], cwd=ROOT,
                                      stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                      start_new_session=True)
        told = [self.shell.stdout.readline().strip() for _ in range(3)]
        if not all(told):
            lines = self.shell.communicate()[1].strip().splitlines() or ["no reason given"]
            shutil.rmtree(self.access)
            raise Missing(f"PostgreSQL does not start: {lines[-1]}")
        self.port, self.directory, self.verifier = int(told[0]), told[1], told[2]
        try:
            self.fill()
        except BaseException:
            self.__exit__()
            raise
        return self

    def fill(self):
        url = f"postgres://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{DATABASE}?sslmode=disable"
        run([self.tools.pgbench, "-i", "-q", "-s", str(self.scale), url], 300)
        # Rows of 1 KiB, below what PostgreSQL would compress or store elsewhere.
        run([self.tools.psql, "-Xqc", "CREATE UNLOGGED TABLE bulk (payload text); CREATE UNLOGGED TABLE sink (payload text)",
             "-c", f"INSERT INTO bulk SELECT repeat('x', 1018) FROM generate_series(1, {self.bulk_mib * 1024})",
             "-c", "VACUUM ANALYZE bulk", url], 300)

    @property
    def socket_path(self):
        return f"{self.directory}/.s.PGSQL.{self.port}"

    def __exit__(self, *_):
        self.shell.stdin.close()
        self.shell.wait(30)
        shutil.rmtree(self.access)
