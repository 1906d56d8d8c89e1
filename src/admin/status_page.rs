//! `/`: one page for a human, with nothing to load and nothing to click.

use std::fmt::{Display, Write};
use std::time::Duration;

use super::status::{PoolStatus, Status};
use crate::metrics::{ClientState, Metrics};

/// Seconds after which a browser asks again.
const REFRESH_SECONDS: u32 = 5;

const STYLE: &str = "body{font:14px/1.5 system-ui,sans-serif;margin:2em;max-width:70em;color-scheme:light dark}\
    table{border-collapse:collapse;margin:0 0 1.5em}th,td{padding:.2em .8em;text-align:right;\
    border-bottom:1px solid #8884}\
    th:first-child,td:first-child,.t{text-align:left}h2{font-size:1.1em;margin:1.5em 0 .3em}.warn{color:#c40}";

/// The page as HTML. Everything that has a name from outside is escaped.
pub(super) fn render(status: &Status, metrics: &Metrics) -> String {
    let mut html = String::with_capacity(4096);
    // Writing into a String can't fail.
    let _ = write!(
        html,
        "<!doctype html><html lang=en><head><meta charset=utf-8><meta http-equiv=refresh content={REFRESH_SECONDS}>\
         <title>pgsidecar</title><style>{STYLE}</style></head><body><h1>pgsidecar {}</h1>",
        env!("CARGO_PKG_VERSION")
    );
    overview(&mut html, status, metrics);
    pools(&mut html, &status.pools);
    clients(&mut html, metrics);
    counts(
        &mut html,
        "Errors sent to clients, by SQLSTATE",
        "SQLSTATE",
        &metrics.errors(),
    );
    counts(&mut html, "Pins, by reason", "reason", &metrics.pins());
    html.push_str("<p><a href=/metrics>/metrics</a> <a href=/healthz>/healthz</a> <a href=/readyz>/readyz</a></p>");
    html.push_str("</body></html>\n");
    html
}

fn overview(html: &mut String, status: &Status, metrics: &Metrics) {
    let readiness = match metrics.readiness().check() {
        Ok(()) => "ready".to_owned(),
        Err(why) => format!("not ready: {why}"),
    };
    let upstream = if metrics.readiness().is_upstream_up() {
        "up"
    } else {
        "not reached at the last attempt"
    };
    let rows = [
        ("State", format!("{}, {readiness}", status.phase)),
        ("Up for", seconds(Duration::from_secs(status.uptime.as_secs()))),
        ("Listening on", status.listening.join(", ")),
        ("PostgreSQL", format!("{} ({upstream})", status.upstream)),
    ];
    html.push_str("<table>");
    for (name, value) in rows {
        let _ = write!(
            html,
            "<tr><th class=t>{name}</th><td class=t>{}</td></tr>",
            Escaped(&value)
        );
    }
    html.push_str("</table>");
}

fn pools(html: &mut String, pools: &[PoolStatus]) {
    html.push_str(
        "<h2>Pools</h2><table><tr><th>database</th><th class=t>user</th><th class=t>mode</th><th>active</th>\
         <th>pinned</th><th>idle</th><th>connecting</th><th>max</th><th>waiting</th><th>oldest wait</th></tr>",
    );
    for pool in pools {
        let class = if pool.waiting > 0 { "warn" } else { "" };
        let _ = write!(
            html,
            "<tr><td>{}</td><td class=t>{}</td><td class=t>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td>\
             <td>{}</td><td class=\"{class}\">{}</td><td class=\"{class}\">{}</td></tr>",
            Escaped(&pool.database),
            Escaped(&pool.user),
            Escaped(&pool.mode),
            pool.active,
            pool.pinned,
            pool.idle,
            pool.connecting,
            pool.max_size,
            pool.waiting,
            pool.oldest_wait.map_or_else(|| "–".to_owned(), seconds),
        );
    }
    if pools.is_empty() {
        html.push_str("<tr><td colspan=10>none yet</td></tr>");
    }
    html.push_str("</table>");
}

fn clients(html: &mut String, metrics: &Metrics) {
    let now = metrics.snapshot();
    let rows: Vec<_> = ClientState::ALL
        .iter()
        .map(|state| (state.as_str(), now.clients[state.index()]))
        .collect();
    counts(html, "Clients, by state", "state", &rows);
}

fn counts<S: AsRef<str>>(html: &mut String, title: &str, label: &str, rows: &[(S, u64)]) {
    let _ = write!(html, "<h2>{title}</h2><table><tr><th>{label}</th><th>count</th></tr>");
    for (value, count) in rows {
        let _ = write!(html, "<tr><td>{}</td><td>{count}</td></tr>", Escaped(value.as_ref()));
    }
    if rows.is_empty() {
        html.push_str("<tr><td colspan=2>none</td></tr>");
    }
    html.push_str("</table>");
}

fn seconds(duration: Duration) -> String {
    match duration.as_secs() {
        0..60 => format!("{} s", (duration.as_secs_f64() * 1000.0).round() / 1000.0),
        60..3600 => format!("{} min {} s", duration.as_secs() / 60, duration.as_secs() % 60),
        whole => format!("{} h {} min", whole / 3600, whole / 60 % 60),
    }
}

/// Text inside HTML, in an element or a quoted attribute.
struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for character in self.0.chars() {
            match character {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::SqlState;

    #[test]
    fn the_page_shows_pools_clients_errors_and_pins() {
        let metrics = Metrics::new();
        let _client = metrics.client(ClientState::Waiting);
        metrics.error_sent(SqlState::TOO_MANY_CONNECTIONS);
        metrics.pinned("temporary_object");
        let pool = PoolStatus {
            database: "app".into(),
            user: "owner".into(),
            mode: "transaction".into(),
            max_size: 20,
            waiting: 2,
            oldest_wait: Some(Duration::from_millis(1234)),
            ..PoolStatus::default()
        };
        let html = render(
            &Status {
                pools: vec![pool],
                phase: "serving".into(),
                ..Status::default()
            },
            &metrics,
        );
        for part in [
            "<td>app</td>",
            "owner",
            "transaction",
            "1.234 s",
            "waiting</td><td>1<",
            "53300",
            "temporary_object",
        ] {
            assert!(html.contains(part), "{part} in {html}");
        }
        assert!(html.contains("http-equiv=refresh"));
    }

    #[test]
    fn names_are_escaped() {
        let pool = PoolStatus {
            database: "<script>alert('\"&')</script>".into(),
            ..PoolStatus::default()
        };
        let html = render(
            &Status {
                pools: vec![pool],
                ..Status::default()
            },
            &Metrics::new(),
        );
        assert!(!html.contains("<script"));
        assert!(html.contains("&lt;script&gt;alert(&#39;&quot;&amp;&#39;)&lt;/script&gt;"));
    }

    #[test]
    fn durations_read_well() {
        assert_eq!(seconds(Duration::from_millis(1500)), "1.5 s");
        assert_eq!(seconds(Duration::from_secs(61)), "1 min 1 s");
        assert_eq!(seconds(Duration::from_secs(7260)), "2 h 1 min");
    }
}
