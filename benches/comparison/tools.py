"""The programs that are run: installed, built, found."""

import os
import pathlib
import random
import re
import resource
import shutil
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
USER, PASSWORD, DATABASE = "app", "app_password", "app"
# PgBouncer and HAProxy hold two descriptors per client, and ten thousand clients may come.
DESCRIPTORS = 24000


class Missing(Exception):
    """Something that the comparison needs and that is not there; its text is one line for whoever runs it."""


class Tools:
    """Paths of the programs."""

    def __init__(self, peers, scratch):
        install(["cc", "postgres", "pgbench", "psql", "openssl", "setpriv", "runuser"]
                + [peer for peer in ("pgbouncer", "haproxy") if peer in peers])
        binaries = run(["bash", "-c", ". deploy/throwaway_postgres.sh; newest_postgres || true"], 10).strip()
        if not binaries:
            raise Missing("missing: PostgreSQL's programs in /usr/lib/postgresql/*/bin")
        self.pgbench, self.psql, self.postgres = (f"{binaries}/{name}" for name in ("pgbench", "psql", "postgres"))
        self.pgbouncer = os.environ.get("PGBOUNCER") or shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"
        self.haproxy = shutil.which("haproxy") or "/usr/sbin/haproxy"
        self.forwarder = str(scratch / "byte_forwarder")
        run(["cc", "-O2", "-o", self.forwarder, "benches/byte_forwarder.c"], 60)
        self.sidecar, self.load, self.built = build()
        self.unclassified = build_unclassified() if "unclassified" in peers else None
        self.descriptors = raise_descriptor_limit()

    def pgbouncer_version(self):
        found = re.search(r"(\d+)\.(\d+)", run([self.pgbouncer, "--version"], 10))
        return tuple(int(part) for part in found.groups())

    def versions(self, peers):
        versions = {"postgres": run([self.postgres, "--version"], 10).split()[2]}
        if "pgbouncer" in peers:
            versions["pgbouncer"] = ".".join(map(str, self.pgbouncer_version()))
        if "haproxy" in peers:
            versions["haproxy"] = re.search(r"version (\d+(\.\d+)+)", run([self.haproxy, "-v"], 10)).group(1)
        versions["pgsidecar"] = commit() + self.built
        return versions


def install(names):
    finished = subprocess.run([ROOT / "tests/install", *names], check=False, stdout=sys.stderr, stderr=subprocess.PIPE,
                              text=True)
    if finished.returncode:
        lines = finished.stderr.strip().splitlines() or ["tests/install failed"]
        raise Missing(lines[-1])


def build():
    """pgsidecar and the load that pgbench can't make, unless both are given."""
    sidecar, load = os.environ.get("PGSIDECAR_BINARY"), os.environ.get("PGSIDECAR_CONNECT_LOAD")
    profile = "debug" if os.environ.get("PGSIDECAR_PROFILE") == "dev" else "release"
    command = ["cargo", "build", "--quiet"]
    command += [] if sidecar else ["--bin", "pgsidecar"]
    command += [] if load else ["--example", "connect_load"]
    command += ["--release"] if profile == "release" else []
    if not (sidecar and load):
        if not shutil.which("cargo"):
            raise Missing("missing: cargo, or PGSIDECAR_BINARY and PGSIDECAR_CONNECT_LOAD with what it would build")
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            raise Missing(f"failed: {' '.join(command)}")
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / profile
    sidecar, load = sidecar or str(target / "pgsidecar"), load or str(target / "examples/connect_load")
    for program in (sidecar, load):
        if not os.access(program, os.X_OK):
            raise Missing(f"missing: {program}")
    # A program that was given may be of any commit.
    given = ", given by PGSIDECAR_BINARY" if os.environ.get("PGSIDECAR_BINARY") else ""
    return sidecar, load, given or (", not optimised" if profile == "debug" else "")


def build_unclassified():
    """pgsidecar that takes every statement for an ordinary one, in a directory of its own."""
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "unclassified"
    command = ["cargo", "build", "--quiet", "--release", "--bin", "pgsidecar"]
    flags = f"{os.environ.get('RUSTFLAGS', '')} --cfg pgsidecar_unclassified".strip()
    environment = os.environ | {"RUSTFLAGS": flags, "CARGO_TARGET_DIR": str(target)}
    if subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode:
        raise Missing(f"failed: RUSTFLAGS='{flags}' {' '.join(command)}")
    return str(target / "release/pgsidecar")


def raise_descriptor_limit():
    """As many as are wanted or allowed; the poolers and the loads inherit it."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    for wanted in (max(hard, DESCRIPTORS), hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
            break
        except (ValueError, OSError):
            continue
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def commit():
    try:
        described = subprocess.run(["git", "describe", "--always", "--dirty", "--exclude=*"], cwd=ROOT, check=True,
                                   capture_output=True, text=True)
        return described.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def run(command, timeout):
    """Its output. It fails with its first line of complaint and its last, which is where programs say why."""
    name = pathlib.Path(command[0]).name
    try:
        finished = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=timeout,
                                  stdin=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise Missing(f"missing: {command[0]}") from error
    except subprocess.TimeoutExpired as error:
        raise Missing(f"failed: {name} did not end within {timeout:.0f} s") from error
    if finished.returncode:
        lines = [line for line in finished.stderr.splitlines() if line.strip()] or ["no reason given"]
        raise Missing(f"failed: {name}: " + " … ".join(dict.fromkeys([lines[0], lines[-1]])))
    return finished.stdout


def free_port():
    """Below the ports that the system gives to outgoing connections."""
    for _ in range(200):
        port = random.randrange(10000, 32000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise Missing("missing: a free port on 127.0.0.1 between 10000 and 32000")
