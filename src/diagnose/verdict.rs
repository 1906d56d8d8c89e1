//! What the numbers mean, and what to change.

use serde::Serialize;

use super::findings::{Path, Steps};
use super::spread::Spread;

/// The conclusion.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    /// Whether acquiring a connection, the way the app is to go, stayed within the goal.
    pub is_goal_met: bool,
    /// Whether the app's connections come and go while those to PostgreSQL stay; `None` without a sidecar.
    pub is_reused: Option<bool>,
    /// What an app that opens a connection for each request waits for before its first query, in milliseconds.
    pub per_request_without_reuse_ms: f64,
    /// What that is, a sentence each.
    pub conclusions: Vec<String>,
    /// What to do, a sentence each.
    pub changes: Vec<String>,
}

pub(super) fn judge(goal_ms: f64, direct: &Path, through: Option<&Path>) -> Verdict {
    let judged = through.unwrap_or(direct);
    let is_goal_met = worst(judged) <= goal_ms;
    let is_reused = through.map(is_reused);
    let per_request = direct.steps_ms.acquire;
    let mut conclusions = vec![format!(
        "Without reuse each request waits {per_request:.1} ms for a connection before its first query: {}.",
        shares(&direct.steps_ms)
    )];
    if let Some(through) = through {
        let now = through.steps_ms.acquire;
        conclusions.push(format!(
            "Through pgsidecar it waits {now:.1} ms: {:.1} ms less.",
            per_request - now
        ));
        conclusions.push(reuse_sentence(through));
    } else if is_pooled_already(direct) {
        conclusions.push(format!(
            "{} backends answered {} connections: there is a pooler at this address already.",
            direct.backends, direct.connections
        ));
    }
    let way = if through.is_some() {
        "through pgsidecar"
    } else {
        "directly"
    };
    conclusions.push(format!(
        "Goal: acquiring a connection {way} within {goal_ms} ms (p99). {}: {:.1} ms.",
        if is_goal_met { "Met" } else { "Missed" },
        worst(judged)
    ));
    Verdict {
        is_goal_met,
        is_reused,
        per_request_without_reuse_ms: per_request,
        conclusions,
        changes: changes(goal_ms, is_goal_met, direct, through),
    }
}

/// The p99 of the worse of both series.
fn worst(path: &Path) -> f64 {
    path.one_by_one_ms.p99.max(path.at_once_ms.p99)
}

/// One after another needs one backend; a few more are a pool that grew or was renewed meanwhile.
fn is_reused(path: &Path) -> bool {
    let one_by_one = path.one_by_one_ms.count;
    one_by_one < 2 || path.backends_one_by_one * 2 <= one_by_one
}

fn is_pooled_already(path: &Path) -> bool {
    path.one_by_one_ms.count > 1 && is_reused(path)
}

fn reuse_sentence(through: &Path) -> String {
    let (backends, connections) = (through.backends, through.connections);
    if is_reused(through) {
        format!("Backends are reused: {backends} answered {connections} connections.")
    } else {
        format!("Backends are NOT reused: {backends} answered {connections} connections.")
    }
}

/// `TCP 150.1, TLS 301.0, login 450.2`.
fn shares(steps: &Steps) -> String {
    let named = [
        ("DNS", steps.dns),
        ("connecting", steps.connect),
        ("TLS", steps.tls),
        ("login", steps.login),
    ];
    let shares = named
        .iter()
        .filter_map(|(name, took)| Some(format!("{name} {:.1}", (*took)?)));
    shares.collect::<Vec<_>>().join(", ")
}

fn changes(goal_ms: f64, is_goal_met: bool, direct: &Path, through: Option<&Path>) -> Vec<String> {
    let Some(through) = through else {
        return if is_goal_met {
            vec!["Nothing: a new connection is as cheap here as it has to be.".to_owned()]
        } else {
            vec![
                "Run pgsidecar beside the app with this URL as PGSIDECAR_UPSTREAM, and point the app's DATABASE_URL at \
                 127.0.0.1:6432; then: pgsidecar diagnose URL --through THE_APP'S_URL."
                    .to_owned(),
            ]
        };
    };
    let mut changes = Vec::new();
    if !is_reused(through) {
        changes.push(
            "Find out what keeps backends from being reused: pool.mode session, pool.max_lifetime, or pins \
             (pgsidecar_pins_total, and a line each in pgsidecar's log)."
                .to_owned(),
        );
    }
    if !is_goal_met {
        changes.push(slowness(goal_ms, direct, through).to_owned());
    }
    if changes.is_empty() {
        changes.push("Nothing.".to_owned());
    }
    changes
}

/// Where the time through pgsidecar goes.
fn slowness(goal_ms: f64, direct: &Path, through: &Path) -> &'static str {
    let steps = &through.steps_ms;
    let over = |spread: &Spread, wait: f64| spread.count > 0 && wait > goal_ms;
    if steps.connect.unwrap_or_default() > goal_ms {
        "pgsidecar is not beside the app: the way to it alone takes longer than the goal. Run it on the app's machine, in \
         its pod, or in its container's network."
    } else if steps.dns.unwrap_or_default() > goal_ms {
        "Looking up pgsidecar's name takes longer than the goal: use an address, or a unix socket."
    } else if steps.acquire > goal_ms && steps.acquire * 2.0 > direct.steps_ms.acquire {
        "Connecting through pgsidecar costs about what it costs without: is the second URL really pgsidecar's?"
    } else if steps.tls.unwrap_or_default() > goal_ms {
        "TLS to pgsidecar takes longer than the goal; on loopback or a unix socket it needs none."
    } else if steps.login.unwrap_or_default() > goal_ms {
        "The login to pgsidecar takes longer than the goal: a unix socket with auth peer or trust derives no SCRAM keys."
    } else if over(&through.one_by_one_ms, through.one_by_one_ms.first)
        && !over(&through.one_by_one_ms, through.one_by_one_ms.p50)
        && !over(&through.at_once_ms, through.at_once_ms.p99)
    {
        "Only the first was slow: start pgsidecar before the app, and wait for pgsidecar healthcheck --ready."
    } else {
        "Some were slow and most were not: look for a machine short of CPU (a cgroup's limit counts), and use a unix \
         socket with auth peer or trust, which spares every connection the SCRAM key derivation."
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnose::spread::Spread;

    fn path(acquire: f64, count: usize, backends: usize) -> Path {
        let spread = Spread {
            count,
            first: acquire,
            p50: acquire,
            p99: acquire,
            max: acquire,
        };
        Path {
            address: "x".into(),
            steps_ms: Steps {
                dns: None,
                connect: Some(acquire / 4.0),
                tls: None,
                login: Some(acquire * 3.0 / 4.0),
                acquire,
                first_query: 1.0,
                round_trip: 1.0,
            },
            one_by_one_ms: spread,
            at_once_ms: spread,
            connections: count * 2,
            backends,
            backends_one_by_one: backends,
        }
    }

    #[test]
    fn a_slow_database_without_a_sidecar_is_told_to_get_one() {
        let verdict = judge(5.0, &path(1000.0, 10, 10), None);
        assert!(!verdict.is_goal_met && verdict.is_reused.is_none());
        assert!(verdict.conclusions[0].contains("1000.0 ms") && verdict.conclusions[0].contains("connecting 250.0"));
        assert!(verdict.changes[0].contains("PGSIDECAR_UPSTREAM"));
        assert!(judge(5.0, &path(2.0, 10, 10), None).is_goal_met);
    }

    #[test]
    fn the_way_of_the_app_is_judged() {
        let verdict = judge(5.0, &path(1000.0, 10, 10), Some(&path(1.0, 10, 1)));
        assert!(verdict.is_goal_met);
        assert_eq!(
            (verdict.is_reused, verdict.changes),
            (Some(true), vec!["Nothing.".to_owned()])
        );
        assert!(verdict.conclusions.iter().any(|it| it.contains("999.0 ms less")));
    }

    #[test]
    fn backends_that_are_not_reused_are_named() {
        let verdict = judge(5.0, &path(1000.0, 10, 10), Some(&path(1.0, 10, 10)));
        assert_eq!(verdict.is_reused, Some(false));
        assert!(verdict.changes[0].contains("pool.mode session"));
    }

    #[test]
    fn a_sidecar_far_away_is_told_to_come_closer() {
        let verdict = judge(5.0, &path(1000.0, 10, 10), Some(&path(150.0, 10, 1)));
        assert!(
            !verdict.is_goal_met && verdict.changes[0].contains("not beside the app"),
            "{verdict:?}"
        );
    }

    #[test]
    fn a_pooler_that_is_there_already_is_seen() {
        let verdict = judge(5.0, &path(1.0, 10, 1), None);
        assert!(
            verdict
                .conclusions
                .iter()
                .any(|it| it.contains("pooler at this address"))
        );
    }
}
