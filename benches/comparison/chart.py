"""The ratios as bars: CPU per transaction or MB, and throughput, of every peer where PgBouncer's is 1."""

from xml.sax.saxutils import escape

COLOURS = {"pgsidecar": "#2f6db5", "haproxy": "#c9a227", "forwarder": "#8a8f98", "pgbouncer": "#b5483a"}
LABEL_WIDTH, PANEL_WIDTH, GAP = 250, 300, 70
BAR_HEIGHT, SCENARIO_GAP, TOP, BOTTOM = 9, 10, 62, 24
# Forwarders hand their connects to PostgreSQL, and are beyond any scale there.
SCALE_MAX = 2.5
PANELS = [("cpu_us", "CPU per transaction or MB, less is better"), ("rate", "throughput, more is better")]
REFERENCE = "pgbouncer"


def svg(results):
    """Nothing where PgBouncer took no part."""
    scenarios = [found for found in results["scenarios"].values() if REFERENCE in found["medians"]]
    if not scenarios:
        return None
    parts, bottom = [], TOP
    for scenario in scenarios:
        parts.append(rows(scenario, bottom))
        bottom += len(shown(scenario)) * BAR_HEIGHT + SCENARIO_GAP
    width, height = LABEL_WIDTH + 2 * PANEL_WIDTH + GAP + 50, bottom + BOTTOM
    head = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            'font-family="sans-serif" font-size="11">\n'
            f'<title>pgsidecar and its peers, PgBouncer = 1</title>\n<rect width="{width}" height="{height}" fill="white"/>\n')
    return head + legend() + axes(bottom) + "".join(parts) + "</svg>\n"


def shown(scenario):
    return [peer for peer in COLOURS if peer in scenario["medians"] and peer != REFERENCE]


def left_of(panel):
    return LABEL_WIDTH + panel * (PANEL_WIDTH + GAP)


def legend():
    parts, left = [], LABEL_WIDTH
    for peer, colour in COLOURS.items():
        name = peer if peer != REFERENCE else "pgbouncer = 1"
        parts.append(f'<rect x="{left}" y="10" width="12" height="10" fill="{colour}"/>'
                     f'<text x="{left + 17}" y="19">{name}</text>\n')
        left += 110
    return "".join(parts)


def axes(bottom):
    parts = []
    for number, (_, title) in enumerate(PANELS):
        left = left_of(number)
        one = left + PANEL_WIDTH / SCALE_MAX
        parts.append(f'<text x="{left}" y="44" font-weight="bold">{title}</text>\n'
                     f'<line x1="{left}" y1="{TOP - 6}" x2="{left}" y2="{bottom}" stroke="#444"/>\n'
                     f'<line x1="{one}" y1="{TOP - 6}" x2="{one}" y2="{bottom}" stroke="{COLOURS[REFERENCE]}" '
                     f'stroke-dasharray="3 2"/>\n<text x="{one}" y="{bottom + 14}" text-anchor="middle">1</text>\n')
    return "".join(parts)


def rows(scenario, top):
    peers, parts = shown(scenario), []
    middle = top + len(peers) * BAR_HEIGHT / 2 + 4
    parts.append(f'<text x="{LABEL_WIDTH - 10}" y="{middle:g}" text-anchor="end">{escape(scenario["title"])}</text>\n')
    for index, peer in enumerate(peers):
        for number, (key, _) in enumerate(PANELS):
            reference = scenario["medians"][REFERENCE][key]
            if not reference:
                continue
            value = scenario["medians"][peer][key] / reference
            left, height = left_of(number), top + index * BAR_HEIGHT
            length = min(value, SCALE_MAX) / SCALE_MAX * PANEL_WIDTH
            parts.append(f'<rect x="{left}" y="{height}" width="{length:.1f}" height="{BAR_HEIGHT - 1}" '
                         f'fill="{COLOURS[peer]}"/><text x="{left + length + 4:.1f}" y="{height + BAR_HEIGHT - 1}" '
                         f'font-size="9">{value:.2f}</text>\n')
    return "".join(parts)
