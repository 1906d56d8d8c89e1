"""What a process has used, by /proc, sampled while a load runs; and the figures of the time in which all of it ran."""

import dataclasses
import os
import pathlib
import re
import threading
import time

TICKS = os.sysconf("SC_CLK_TCK")
SAMPLE_SECONDS = 0.05
# Logins, first plans and full pools are behind it then.
SETTLE_SECONDS = 0.3
FEW = 500


@dataclasses.dataclass(frozen=True)
class Sample:
    at: float
    # Seconds on a processor, in user mode and in the kernel. The parts are told in hundredths only.
    cpu: float
    user: float
    system: float
    switches: int


def sample(process_id):
    root = pathlib.Path(f"/proc/{process_id}")
    fields = (root / "stat").read_text().rsplit(")", 1)[1].split()
    user, system = int(fields[11]) / TICKS, int(fields[12]) / TICKS
    ran, switches = 0, 0
    for task in (root / "task").iterdir():
        try:
            # The scheduler's own account, in nanoseconds where stat counts hundredths.
            ran += int((task / "schedstat").read_text().split()[0])
            switches += sum(map(int, re.findall(r"ctxt_switches:\s+(\d+)", (task / "status").read_text())))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return Sample(time.time(), ran / 1e9 or user + system, user, system, switches)


class Sampler:
    """Samples a process from a thread of its own."""

    def __init__(self, process_id):
        self.process_id, self.samples = process_id, []
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self):
        while not self.over.is_set():
            self.samples.append(sample(self.process_id))
            self.over.wait(SAMPLE_SECONDS)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()
        self.samples.append(sample(self.process_id))


def figures(samples, operations):
    """Of what ended between two samples: after all had settled, and before the last was done."""
    first, last = bounds(samples, operations)
    inside = [operation for operation in operations if first.at < operation.ended <= last.at]
    if not inside:
        first, last, inside = samples[0], samples[-1], operations
    amount, seconds = sum(operation.amount for operation in inside), last.at - first.at
    times = sorted(operation.microseconds for operation in inside)
    cpu, user, system = last.cpu - first.cpu, last.user - first.user, last.system - first.system
    return {
        "rate": amount / seconds,
        "p50_us": times[len(times) // 2],
        "p99_us": times[min(len(times) - 1, len(times) * 99 // 100)],
        "max_us": times[-1],
        "cpu_us": cpu * 1e6 / amount,
        "user_us": cpu * (user / (user + system) if user + system else 0) * 1e6 / amount,
        "switches": (last.switches - first.switches) / amount,
        "operations": len(inside),
    }


def bounds(samples, operations):
    begin = operations[0].ended - operations[0].microseconds / 1e6 + SETTLE_SECONDS
    end = operations[-1].ended - SAMPLE_SECONDS
    if len(operations) < FEW:
        # They are long: what is counted begins and ends with one of them, or a part of one would be.
        begin = next((operation.ended for operation in operations if operation.ended >= begin), begin)
        end = next((taken.at for taken in samples if taken.at >= operations[-1].ended), samples[-1].at)
    between = [taken for taken in samples if begin <= taken.at <= end]
    return (between[0], between[-1]) if len(between) > 4 else (samples[0], samples[-1])
