//! `/healthz` and `/readyz`.

use hyper::StatusCode;

use crate::metrics::Readiness;

/// The process is alive if it can answer at all. A liveness probe that asked for more would have the process killed for
/// an outage of its database.
pub(super) fn healthz() -> (StatusCode, String) {
    (StatusCode::OK, "ok\n".to_owned())
}

/// Ready, or one line that says why not.
pub(super) fn readyz(readiness: &Readiness) -> (StatusCode, String) {
    match readiness.check() {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readyz_says_why_not() {
        let readiness = Readiness::default();
        assert_eq!(readyz(&readiness).0, StatusCode::SERVICE_UNAVAILABLE);
        assert!(readyz(&readiness).1.contains("no login to PostgreSQL"));
        readiness.upstream_login_succeeded();
        assert_eq!(readyz(&readiness), (StatusCode::OK, "ready\n".to_owned()));
        readiness.set_draining();
        assert!(readyz(&readiness).1.contains("draining"));
    }
}
