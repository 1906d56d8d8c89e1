"""What the figures are held against."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Bar:
    """`figure` takes the results and returns ours, or None where it was not measured."""

    what: str
    limit: float
    figure: object
    at_least: bool = False
    form: str = "{:.2f}"

    def judge(self, results):
        """(met, figure); met is None for what was not measured."""
        try:
            figure = self.figure(results)
        except KeyError:
            figure = None
        if figure is None:
            return None, None
        return (figure >= self.limit if self.at_least else figure <= self.limit), figure

    def limit_text(self):
        return ("≥ " if self.at_least else "≤ ") + self.form.format(self.limit)


def ratio(scenario, key, peer="pgbouncer"):
    return lambda results: results["scenarios"][scenario]["ratios"][peer][key]


def system_calls(*scenarios):
    """The most of them."""
    def worst(results):
        return max(results["scenarios"][name]["system_calls"]["pgsidecar"]["total"] for name in scenarios)
    return worst


def unix_to_tcp(results):
    """Of our own: there are no pairs, the two scenarios ran one after the other."""
    scenarios = results["scenarios"]
    tcp = scenarios["prepared"]["medians"]["pgsidecar"]["cpu_us"]
    return scenarios["unix"]["medians"]["pgsidecar"]["cpu_us"] / tcp if tcp else None


def idle(name):
    return lambda results: results["memory"][name]["peers"]["pgsidecar"]["kib_per_client_at_10000"]


def distant(situation):
    def ours_to_theirs(results):
        peers = results["distant"]["distant"]["peers"]
        return peers["pgsidecar"][situation] / peers["pgbouncer"][situation]
    return ours_to_theirs


def round_trips(situation):
    return lambda results: results["distant"]["distant"]["peers"]["pgsidecar"][situation] / results["distant"]["distant"]["round_trip_seconds"]


def both(what, scenario, key, to_pgbouncer, to_forwarder, at_least=False):
    bars = []
    for peer, limit in (("pgbouncer", to_pgbouncer), ("forwarder", to_forwarder)):
        if limit is not None:
            bars.append(Bar(f"{what}, × {peer}", limit, ratio(scenario, key, peer), at_least))
    return bars


BARS = [
    *both("CPU per transaction, simple at 32", "simple", "cpu_us", 1.0, 1.15),
    *both("CPU per transaction, extended at 32", "extended", "cpu_us", 1.0, 1.15),
    *both("CPU per transaction, prepared at 32", "prepared", "cpu_us", 0.85, 1.2),
    *both("CPU per transaction, prepared at 1000", "prepared-1000", "cpu_us", 0.8, None),
    *both("CPU per transaction, unix sockets", "unix", "cpu_us", 0.9, None),
    Bar("CPU per transaction, unix sockets, × our TCP", 0.6, unix_to_tcp),
    *both("CPU per transaction, TLS prepared at 32", "tls", "cpu_us", 0.85, None),
    Bar("system calls per transaction at 32", 4.2, system_calls("simple", "extended", "prepared")),
    Bar("system calls per transaction at 1000", 4.6, system_calls("prepared-1000")),
    *both("throughput, prepared at 32", "prepared", "rate", 1.15, 0.9, at_least=True),
    *both("throughput, prepared at 1000", "prepared-1000", "rate", 1.15, None, at_least=True),
    *both("p99, prepared at 32", "prepared", "p99_us", 1.0, None),
    *both("p99, prepared at 1000", "prepared-1000", "p99_us", 1.0, None),
    *both("p50, 1 client", "select-1", "p50_us", 1.0, 1.15),
    *both("connects per second, unix socket, trust", "connect-unix", "rate", 1.3, None, at_least=True),
    *both("CPU per connect, SCRAM", "connect-scram", "cpu_us", 0.9, None),
    *both("CPU per connect, TLS", "connect-tls", "cpu_us", 0.6, None),
    *both("CPU per MB, large results", "result", "cpu_us", 0.35, 1.2),
    *both("CPU per MB, COPY out", "copy-out", "cpu_us", 0.4, 1.2),
    *both("CPU per MB, COPY in", "copy-in", "cpu_us", 0.5, 1.2),
    Bar("KiB per idle client at 10 000", 3, idle("idle"), form="{:.1f}"),
    Bar("KiB per idle client at 10 000, TLS", 14, idle("idle-tls"), form="{:.1f}"),
    Bar("150 ms away, backends gone, × pgbouncer", 0.45, distant("gone")),
    Bar("150 ms away, backends gone, round trips", 6, round_trips("gone"), form="{:.1f}"),
    Bar("150 ms away, fresh process, × pgbouncer", 0.6, distant("fresh")),
    Bar("150 ms away, fresh process, round trips", 8, round_trips("fresh"), form="{:.1f}"),
    Bar("150 ms away, warm pool, × pgbouncer", 0.5, distant("warm")),
    Bar("150 ms away, warm pool, round trips", 1.2, round_trips("warm"), form="{:.1f}"),
]


def judge(results):
    """Lines to print, and whether none was missed."""
    lines, missed = [], 0
    for bar in BARS:
        met, figure = bar.judge(results)
        verdict = {True: "met", False: "MISSED", None: "not measured"}[met]
        told = "" if figure is None else bar.form.format(figure)
        lines.append(f"{verdict:13}{told:>8}  {bar.limit_text():9} {bar.what}")
        missed += met is False
    return lines, not missed
