"""The results as rows, for the terminal and for the document."""

HEAD = ["scenario", "peer", "per s", "p50 µs", "p99 µs", "max µs", "CPU µs", "user µs", "switches", "system calls",
        "ours: rate", "ours: p99", "ours: CPU"]


def tables(results):
    """Head and rows of each table that there are results for."""
    found = []
    if results["scenarios"]:
        found.append((HEAD, [row for scenario in results["scenarios"].values() for row in timed_rows(scenario)]))
    for memory in results["memory"].values():
        found.append(per_peer(memory["title"], memory["peers"], memory_name))
    for distant in results["distant"].values():
        found.append(per_peer(distant["title"], distant["peers"], lambda key: distant["situations"][key] + ", s"))
    return found


def timed_rows(scenario):
    rows, title = [], scenario["title"] + (", per MB" if scenario["unit"] == "MB" else "")
    for peer, figure in scenario["medians"].items():
        calls, ratios = scenario["system_calls"].get(peer), scenario["ratios"].get(peer, {})
        rows.append([title, peer, count(figure["rate"]), count(figure["p50_us"]), count(figure["p99_us"]),
                     count(figure["max_us"]), short(figure["cpu_us"]), short(figure["user_us"]),
                     f"{figure['switches']:.2f}", f"{calls['total']:.2f}" if calls else "–",
                     *(f"{ratios[key]:.2f} ×" if key in ratios else "–" for key in ("rate", "p99_us", "cpu_us"))])
        title = ""
    return rows


def memory_name(name):
    """What a key of memory.py is called."""
    if name.startswith("kib_per_client_at_"):
        return f"KiB per client at {name.removeprefix('kib_per_client_at_')}"
    return {"resident_mib": "resident, MiB", "given_back": "given back, share", "copy_mib": "COPY: peak, MiB",
            "row_mib": "one row: peak, MiB"}[name]


def per_peer(title, peers, name_of):
    keys = list(next(iter(peers.values())))
    return [title, *map(name_of, keys)], [[peer, *(f"{found[key]:.2f}" for key in keys)] for peer, found in peers.items()]


def count(value):
    return f"{value:,.0f}".replace(",", " ")


def short(value):
    return f"{value:.1f}" if value < 1000 else count(value)


def system_call_lines(results):
    """Which calls they are, of those that make up a twentieth of one."""
    for scenario in results["scenarios"].values():
        for peer, calls in scenario["system_calls"].items():
            named = ", ".join(f"{name} {value:.2f}" for name, value in calls["by_name"].items() if value >= 0.05)
            yield f"{scenario['title']}: {peer}: {named}"


def notes(results):
    return [f"{scenario['title']}: {note}" for scenario in results["scenarios"].values() for note in scenario["notes"]]


def conditions(results):
    machine, versions = results["machine"], results["versions"]
    peers = "; ".join(f"{name} {version}" for name, version in versions.items())
    options = results["options"]
    return (f"{results['when']}, {machine['processors']} × {machine['model']}, Linux {machine['kernel']}, load "
            f"{machine['load']:.1f} before; {peers}; {options['rounds']} round(s) of {options['seconds']:g} s; system "
            f"calls by {results['counter'] or 'nothing'}")


def as_text(results):
    lines = [conditions(results), ""]
    for head, rows in tables(results):
        widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
        for row in [head, *rows]:
            first = 2 if head is HEAD else 1
            lines.append("  ".join(cell.ljust(width) if column < first else cell.rjust(width)
                                   for column, (cell, width) in enumerate(zip(row, widths))).rstrip())
        lines.append("")
    return "\n".join([*lines, *notes(results)])


def as_markdown(results):
    lines = [conditions(results) + ".", ""]
    for head, rows in tables(results):
        texts = 2 if head is HEAD else 1
        lines += ["| " + " | ".join(head) + " |", "|" + "---|" * texts + "---:|" * (len(head) - texts)]
        lines += ["| " + " | ".join(row) + " |" for row in rows] + [""]
    lines += [f"- {note}" for note in notes(results)]
    calls = list(system_call_lines(results))
    if calls:
        lines += ["", "System calls by name:", "", *(f"- {line}" for line in calls)]
    return "\n".join(lines).rstrip() + "\n"
