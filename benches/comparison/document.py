"""Writes the figures into docs/performance.md, between the marks there, with the chart and the results beside it."""

import json

from .bars import judge
from .chart import svg
from .tables import as_markdown
from .tools import ROOT, Missing

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
DOCUMENT = ROOT / "docs/performance.md"


def filled(text, results):
    """The document with the figures in it."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise Missing(f"missing: the marks {BEGIN} and {END} in docs/performance.md")
    bars = "\n".join(judge(results)[0])
    figures = (f"![CPU and throughput beside PgBouncer's](performance.svg)\n\n{as_markdown(results)}\n"
               f"Against the bars of `--judge`:\n\n```\n{bars}\n```\n")
    return f"{before}{BEGIN}\n\n{figures}\n{END}{after}"


def write_document(results):
    if not svg(results):
        raise Missing("missing: figures of pgbouncer, which the chart compares with")
    DOCUMENT.write_text(filled(DOCUMENT.read_text(), results))
    DOCUMENT.with_suffix(".svg").write_text(svg(results))
    DOCUMENT.with_suffix(".json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
