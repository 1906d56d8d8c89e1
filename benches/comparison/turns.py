"""Interleaved rounds of one scenario, and their medians and ratios."""

import contextlib
import dataclasses
import statistics

from .counters import Sampler, figures
from .loads import run_load
from .peers import PEERS
from .system_calls import CannotCount, calls_per_unit

OURS = "pgsidecar"
COUNTING_SECONDS = (1, 3)


@dataclasses.dataclass
class Turn:
    """What every turn needs."""

    tools: object
    postgres: object
    options: object
    progress: object
    counter: str | None


def compare(scenario, turn):
    """Rounds of all peers in turn; per peer the medians, and of ours to each the median of the ratios of a round."""
    taking_part = [name for name in turn.options.peers if PEERS[name].pools or scenario.forwarders]
    rounds = {name: [] for name in taking_part}
    with contextlib.ExitStack() as stack:
        peers = {name: stack.enter_context(PEERS[name](turn.tools, turn.postgres, scenario)) for name in taking_part}
        for name, peer in {} if turn.options.smoke else peers.items():
            turn.progress.step(f"{scenario.name}, warming {name}")
            run_load(scenario, peer, turn.postgres, 1)
        for number in range(turn.options.rounds):
            order = taking_part if number % 2 == 0 else taking_part[::-1]
            for name in order:
                turn.progress.step(f"{scenario.name}, round {number + 1}, {name}")
                rounds[name].append(one_turn(scenario, peers[name], turn))
        calls = {name: calls for name, peer in peers.items() if (calls := count_calls(scenario, peer, turn))}
    return {
        "title": scenario.title,
        "unit": scenario.unit,
        "medians": {name: medians(taken) for name, taken in rounds.items()},
        "ratios": {name: ratios(rounds[OURS], taken) for name, taken in rounds.items() if name != OURS and OURS in rounds},
        "system_calls": calls,
        "rounds": rounds,
        "notes": notes(scenario, peers, turn),
    }


def one_turn(scenario, peer, turn):
    with Sampler(peer.process.pid) as sampler:
        operations = run_load(scenario, peer, turn.postgres, turn.options.seconds, turn.options.smoke)
    return figures(sampler.samples, operations)


def count_calls(scenario, peer, turn):
    if not turn.counter or (turn.options.smoke and peer.name != OURS):
        return None
    turn.progress.step(f"{scenario.name}, counting {peer.name}'s system calls")
    short, long = (0.2, 0.4) if turn.options.smoke else COUNTING_SECONDS

    def run(is_long):
        operations = run_load(scenario, peer, turn.postgres, long if is_long else short, turn.options.smoke)
        return sum(operation.amount for operation in operations)

    try:
        return calls_per_unit(turn.counter, peer.process.pid, run)
    except CannotCount:
        return None


def medians(taken):
    return {key: statistics.median(figure[key] for figure in taken) for key in taken[0]}


def ratios(ours, theirs):
    """Of the two turns of each round. What was too little to be measured has no ratio."""
    found = {}
    for key in ("rate", "p50_us", "p99_us", "cpu_us", "switches"):
        pairs = [mine[key] / other[key] for mine, other in zip(ours, theirs) if other[key]]
        if pairs:
            found[key] = statistics.median(pairs)
    return found


def notes(scenario, peers, turn):
    bouncer = peers.get("pgbouncer")
    if not bouncer or not scenario.without_prepared or bouncer.has_prepared_statements():
        return []
    version = ".".join(map(str, turn.tools.pgbouncer_version()))
    instead = {"session": "it ran in session mode with a backend per client, which is less work for it",
               "extended": "its clients sent their statements anew each time, which is more work for PostgreSQL"}
    return [f"PgBouncer {version} has no prepared statements in transaction mode: "
            f"{instead[scenario.without_prepared]}."]
