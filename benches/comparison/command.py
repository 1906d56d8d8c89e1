"""benches/compare itself: options, the order of things, what is printed and written."""

import argparse
import dataclasses
import datetime
import json
import os
import pathlib
import platform
import re
import signal
import sys
import tempfile
import xml.dom.minidom

from . import chart, document, tables
from .bars import judge
from .distance import ROUNDS, measure_distant
from .memory import check_descriptors, measure_idle, measure_peak
from .peers import PEERS, USUAL
from .postgres import Postgres
from .progress import Progress
from .scenarios import DISTANT, IDLE, NAMES, PEAK, TIMED
from .system_calls import find_counter
from .tools import ROOT, Missing, Tools
from .turns import Turn, compare

# A thousand connections of a debug build on a busy machine take a CI's patience.
SMOKE_CLIENTS = 50


def main(description):
    options = parse_options(description)
    # Whatever was started is stopped on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if options.read:
            results = json.loads(pathlib.Path(options.read).read_text())
        else:
            results = run_all(options)
        return tell(results, options)
    except (Missing, OSError, json.JSONDecodeError) as missing:
        print(f"benches/compare: {missing}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def parse_options(description):
    parser = argparse.ArgumentParser(prog="benches/compare", description=description,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)

    def names(known):
        return lambda text: checked(parser, text.split(","), known)

    parser.add_argument("--scenarios", type=names(NAMES), default=NAMES, metavar="NAME,…", help=", ".join(NAMES))
    parser.add_argument("--peers", type=names(list(PEERS)), default=USUAL, metavar="NAME,…",
                        help=", ".join(USUAL) + "; or unclassified: pgsidecar built without its look at statements")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each peer in each scenario (3)")
    parser.add_argument("--seconds", type=float, default=5, help="how long a turn is (5)")
    parser.add_argument("--json", help="where the results go (target/compare/results.json)")
    parser.add_argument("--svg", help="where the chart goes (target/compare/chart.svg)")
    parser.add_argument("--document", action="store_true", help="write the figures into docs/performance.md, too")
    parser.add_argument("--judge", action="store_true", help="compare with the bars; status 1 if one is missed")
    parser.add_argument("--read", metavar="FILE", help="measure nothing: take the results from this JSON file")
    parser.add_argument("--smoke", action="store_true", help="everything, too short to mean anything: does it work?")
    options = parser.parse_args()
    if options.rounds < 1 or options.seconds <= 0:
        parser.error("--rounds and --seconds must be more than nothing")
    if options.smoke:
        options.rounds, options.seconds = 1, 0.2
    return options


def checked(parser, names, known):
    for name in names:
        if name not in known:
            parser.error(f"unknown: {name}; choose from {', '.join(known)}")
    return [name for name in known if name in names]


def run_all(options):
    with tempfile.TemporaryDirectory(prefix="pgsidecar-compare-") as scratch:
        tools = Tools(options.peers, pathlib.Path(scratch))
        check_descriptors(options, tools.descriptors)
        counter = find_counter()
        if not counter:
            print("system calls are not counted: neither perf nor strace may do so here", file=sys.stderr)
        results = {
            "when": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            "machine": machine(),
            "versions": tools.versions(options.peers),
            "options": {"rounds": options.rounds, "seconds": options.seconds, "smoke": options.smoke},
            "counter": counter, "scenarios": {}, "memory": {}, "distant": {}, "failed": {},
        }
        progress = Progress(count_steps(options, counter))
        try:
            with Postgres(tools, options.smoke) as postgres:
                measure(Turn(tools, postgres, options, progress, counter), results)
        finally:
            progress.end()
    return results


def measure(turn, results):
    """What fails is told at the end; the others are measured all the same."""
    for scenario in chosen(turn.options):
        attempt(scenario.name, results, results["scenarios"], lambda: compare(scenario, turn))
        # Counting is slow, and the first scenario shows as well as all that it works.
        turn.counter = None if turn.options.smoke else turn.counter
    for name in IDLE:
        if name in turn.options.scenarios:
            attempt(name, results, results["memory"], lambda: measure_idle(name, turn))
    for name in PEAK:
        if name in turn.options.scenarios:
            attempt(name, results, results["memory"], lambda: measure_peak(turn))
    for name in DISTANT:
        if name in turn.options.scenarios:
            attempt(name, results, results["distant"], lambda: measure_distant(turn))


def attempt(name, results, found, run):
    try:
        found[name] = run()
    except Missing as missing:
        results["failed"][name] = str(missing)


def chosen(options):
    scenarios = [scenario for scenario in TIMED if scenario.name in options.scenarios]
    if options.smoke:
        return [dataclasses.replace(scenario, clients=min(scenario.clients, SMOKE_CLIENTS)) for scenario in scenarios]
    return scenarios


def count_steps(options, counter):
    """Steps are turns of about the same length, near enough."""
    poolers = sum(PEERS[name].pools for name in options.peers)
    per_peer = 1 if options.smoke else options.rounds + 1 + (counter is not None)
    timed = sum((len(options.peers) if scenario.forwarders else poolers) * per_peer for scenario in chosen(options))
    others = sum(name in options.scenarios for name in (*IDLE, *PEAK))
    return timed + poolers * (others + ("distant" in options.scenarios) * ROUNDS)


def machine():
    model = re.search(r"^model name\s*:\s*(.+)$", pathlib.Path("/proc/cpuinfo").read_text(), re.M)
    return {"processors": len(os.sched_getaffinity(0)), "model": model.group(1) if model else platform.machine(),
            "kernel": platform.release(), "load": os.getloadavg()[0]}


def tell(results, options):
    print(tables.as_text(results))
    drawing = chart.svg(results)
    if options.smoke:
        prove(results, drawing)
    if not options.read:
        write(options.json or ROOT / "target/compare/results.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    if drawing and (options.svg or not options.read):
        write(options.svg or ROOT / "target/compare/chart.svg", drawing)
    if options.document:
        document.write_document(results)
    if options.judge:
        lines, all_met = judge(results)
        print("\n".join(lines))
        if not all_met:
            return 1
    if results["failed"]:
        raise Missing("; ".join(f"{name}: {reason}" for name, reason in results["failed"].items()))
    return 0


def write(path, text):
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    print(f"written: {path}", file=sys.stderr)


def prove(results, drawing):
    """That each peer has figures, and that what is made of them can be made."""
    for name, scenario in results["scenarios"].items():
        for peer, figures in scenario["medians"].items():
            if not all(figures[key] > 0 for key in ("rate", "max_us", "operations")):
                raise Missing(f"failed: {name} has no figures for {peer}: {figures}")
    first = next(iter(results["scenarios"].values()), None)
    if first and results["counter"] and not all(calls["total"] > 0 for calls in first["system_calls"].values()):
        raise Missing(f"failed: no system calls were counted: {first['system_calls']}")
    if drawing:
        xml.dom.minidom.parseString(drawing)
    if document.DOCUMENT.exists():
        document.filled(document.DOCUMENT.read_text(), results)
    judge(results)
