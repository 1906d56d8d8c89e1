"""The rows as people read them: a line while it runs, and the table of docs/django.md in two languages."""

import math

ENGLISH = {
    "columns": [
        "worker", "driver", "way", "CONN_MAX_AGE", "first", "one by one p50", "p99", "max",
        "16 at once p50", "p99", "max", "API p50", "API p99", "opened", "errors",
    ],
    "ways": {"direct": "directly", "unix": "pgsidecar, unix socket", "tcp": "pgsidecar, TCP + SCRAM", "pgbouncer": "PgBouncer, unix socket"},
    "zone": "other TIME_ZONE",
    "pool": "Django's own pool",
    "health": "600 + health checks",
    "about": "Seen on {date}: {machine} (load average {load} before the run), PostgreSQL with TLS and SCRAM behind a link of {round_trip} ms round trip. Milliseconds.",
}
CHINESE = {
    "columns": [
        "worker", "驱动", "连接方式", "CONN_MAX_AGE", "首次", "逐个 p50", "p99", "最大",
        "16 并发 p50", "p99", "最大", "API p50", "API p99", "新建后端连接", "错误",
    ],
    "ways": {"direct": "直连", "unix": "pgsidecar（unix socket）", "tcp": "pgsidecar（TCP + SCRAM）", "pgbouncer": "PgBouncer（unix socket）"},
    "zone": "TIME_ZONE 不同",
    "pool": "Django 自带连接池",
    "health": "600 + 健康检查",
    "about": "{date} 实测：{machine}（测前平均负载 {load}），PostgreSQL 启用 TLS 与 SCRAM，链路往返 {round_trip} ms。单位：毫秒。",
}
BEGIN, END = "<!-- table {}: begin; written by tests/django/run --write -->", "<!-- table {}: end -->"


def rank(values, percent):
    """By nearest rank."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(len(ranked) * percent / 100) - 1)]


def name_of(scenario):
    extras = ["pool"] if scenario.has_pool else []
    extras += [] if scenario.is_zone_equal else ["other zone"]
    return " ".join([scenario.worker, scenario.driver, scenario.way, str(scenario.max_age), *extras])


def numbers(row):
    spread = [f"{rank(series, percent):.1f}" for series in (row.one_by_one, row.at_once) for percent in (50, 99, 100)]
    totals = [f"{rank(row.totals, percent):.0f}" for percent in (50, 99)]
    return [f"{row.first:.1f}", *spread, *totals, str(row.opened), str(row.errors)]


def line(row):
    first, one50, one99, one_max, many50, many99, many_max, api50, api99, opened, errors = numbers(row)
    return (
        f"{name_of(row.scenario)}: first {first}; one by one {one50} {one99} {one_max}; at once {many50} {many99} "
        f"{many_max}; API {api50} {api99}; opened {opened}; errors {errors}"
    )


def table(rows, words):
    out = ["| " + " | ".join(words["columns"]) + " |", "|---|---|---|---|" + "---:|" * (len(words["columns"]) - 4)]
    for row in rows:
        scenario = row.scenario
        way = words["ways"][scenario.way]
        way += f", {words['pool']}" if scenario.has_pool else ""
        way += "" if scenario.is_zone_equal else f", {words['zone']}"
        age = words["health"] if scenario.has_health_checks else str(scenario.max_age)
        out.append("| " + " | ".join([scenario.worker, scenario.driver, way, age, *numbers(row)]) + " |")
    return "\n".join(out)


def write(path, rows, about):
    """Replaces what stands between the marks of each language."""
    text = path.read_text(encoding="utf-8")
    for language, words in (("en", ENGLISH), ("zh", CHINESE)):
        begin, end = BEGIN.format(language), END.format(language)
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        if not rest or not after:
            raise SystemExit(f"{path} has no marks for the table in {language}")
        body = f"{words['about'].format(**about)}\n\n{table(rows, words)}"
        text = f"{before}{begin}\n{body}\n{end}{after}"
    path.write_text(text, encoding="utf-8")
