"""System calls of a process, counted in a pass of its own so that the counting is in nobody's time.

perf counts in the kernel and hardly slows what it counts. Where it is missing, or may not, strace counts, which stops the
process at each call: the load is then more than it can take, more clients are ready at each look, and epoll_wait's share is
less than it would be.
"""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import time

# To ask for all that there are takes perf most of a minute.
NAMED = ["recvfrom", "recvmsg", "read", "readv", "sendto", "sendmsg", "write", "writev", "epoll_wait", "epoll_pwait",
         "epoll_ctl", "futex", "accept4", "socket", "connect", "close", "shutdown", "getsockopt", "setsockopt", "getsockname",
         "getpeername", "ioctl", "fcntl", "timerfd_settime", "mmap", "munmap", "madvise", "getrandom"]
ALL = "raw_syscalls:sys_enter"
COMMANDS = {
    "perf": ["perf", "stat", "-x", ",", "-e", ",".join([ALL, *(f"syscalls:sys_enter_{name}" for name in NAMED)])],
    # Where one of the names is none: aarch64 has no epoll_wait.
    "perf, sums alone": ["perf", "stat", "-x", ",", "-e", ALL],
    "strace": ["strace", "-c", "-f", "-U", "calls,name"],
}
ATTACH_SECONDS = 10


def find_counter():
    """The first that can count another process here, or None."""
    for tool, command in COMMANDS.items():
        if not shutil.which(command[0]):
            continue
        with subprocess.Popen(["sleep", "30"], stdout=subprocess.DEVNULL) as sleeper:
            try:
                with Counter(tool, sleeper.pid):
                    return tool
            except CannotCount:
                continue
            finally:
                sleeper.kill()
    return None


class CannotCount(Exception):
    """The tool ended by itself, or did not attach."""


class Counter:
    """Counts from the beginning of `with` to its end; then `calls` has them by name."""

    def __init__(self, tool, process_id):
        self.tool, self.process_id, self.calls = tool, process_id, {}

    def __enter__(self):
        self.output = tempfile.NamedTemporaryFile("r", prefix="pgsidecar-compare-")
        self.process = subprocess.Popen([*COMMANDS[self.tool], "-o", self.output.name, "-p", str(self.process_id)],
                                        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + ATTACH_SECONDS
        while not self.is_attached():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise CannotCount(self.tool)
            time.sleep(0.1)
        return self

    def is_attached(self):
        if self.tool == "strace":
            return "\nTracerPid:\t0\n" not in pathlib.Path(f"/proc/{self.process_id}/status").read_text()
        before, now = getattr(self, "events", 0), self.count_events()
        self.events = now
        return 0 < now == before

    def count_events(self):
        directory, count = f"/proc/{self.process.pid}/fd", 0
        try:
            for name in os.listdir(directory):
                count += "perf_event" in os.readlink(f"{directory}/{name}")
        except OSError:
            return 0
        return count

    def __exit__(self, *_):
        text = self.stop()
        pattern = r"^(\d+),[^,]*,\w+:sys_enter(\w*)," if self.tool != "strace" else r"^\s*(\d+)\s+(\w+)$"
        found = {name.removeprefix("_"): int(count) for count, name in re.findall(pattern, text, re.M) if int(count)}
        found.pop("total", None)
        if self.tool != "strace":
            found["others"] = found.pop("", 0) - sum(found.values())
        self.calls = found

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        self.process.wait(30)
        with self.output:
            return self.output.read()


def calls_per_unit(tool, process_id, run):
    """By a short run and a long one: what both have alike, logins above all, falls out of the difference. `run` takes True
    for the long one and returns how many units it did."""
    counts = []
    for is_long in (False, True):
        with Counter(tool, process_id) as counter:
            amount = run(is_long)
        counts.append((amount, counter.calls))
    (short, few), (long, many) = counts
    if long <= short:
        short, few = 0, {}
    calls = {name: (count - few.get(name, 0)) / (long - short) for name, count in many.items()}
    named = {name: value for name, value in sorted(calls.items(), key=lambda item: -item[1]) if value >= 0.005}
    return {"total": sum(calls.values()), "by_name": named}
