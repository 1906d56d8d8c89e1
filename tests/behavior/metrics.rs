//! What `/metrics` names and counts, and the health endpoints beside it.

use std::io::Write as _;
use std::process::{Command, Stdio};

use crate::support::fake_backend::FakeBackend;
use crate::support::postgres::{PASSWORD, Postgres, USER};
use crate::support::raw_client::RawClient;
use crate::support::sidecar::Sidecar;

/// The names and types that dashboards and alerts depend on.
const NAMES: [(&str, &str); 24] = [
    ("pgsidecar_acquire_seconds", "histogram"),
    ("pgsidecar_backend_connect_seconds", "histogram"),
    ("pgsidecar_client_login_seconds", "histogram"),
    ("pgsidecar_transaction_seconds", "histogram"),
    ("pgsidecar_query_seconds", "histogram"),
    ("pgsidecar_clients", "gauge"),
    ("pgsidecar_backends", "gauge"),
    ("pgsidecar_pool_max_size", "gauge"),
    ("pgsidecar_oldest_wait_seconds", "gauge"),
    ("pgsidecar_upstream_up", "gauge"),
    ("pgsidecar_client_connections_total", "counter"),
    ("pgsidecar_backend_connections_total", "counter"),
    ("pgsidecar_backend_closed_total", "counter"),
    ("pgsidecar_transactions_total", "counter"),
    ("pgsidecar_queries_total", "counter"),
    ("pgsidecar_setting_answers_total", "counter"),
    ("pgsidecar_bytes_total", "counter"),
    ("pgsidecar_errors_total", "counter"),
    ("pgsidecar_pins_total", "counter"),
    ("pgsidecar_pins_refused_total", "counter"),
    ("pgsidecar_audits_total", "counter"),
    ("pgsidecar_audit_surprises_total", "counter"),
    ("pgsidecar_cancels_total", "counter"),
    ("pgsidecar_build_info", "gauge"),
];

/// Uses everything once, so that every series with labels exists.
async fn busy() -> (Sidecar, RawClient) {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::start(&database).await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    client.ask("SELECT 1/0").await;
    client.ask("CREATE TEMP TABLE pinning (x int)").await;
    client.value("SELECT 1").await;
    let mut refused = RawClient::connect(sidecar.port).await;
    let _ = refused.log_in(USER, "wrong", &[("database", &database.name)]).await;
    crate::support::raw_client::cancel(sidecar.port, &client.cancel_key.clone().expect("BackendKeyData came")).await;
    (sidecar, client)
}

#[tokio::test]
async fn every_promised_metric_is_there_with_its_type() {
    let (sidecar, _client) = busy().await;
    let text = sidecar.metrics().await;
    for (name, kind) in NAMES {
        assert!(text.contains(&format!("# TYPE {name} {kind}\n")), "{name} in:\n{text}");
    }
}

/// The labels of each, beside those of the histograms themselves.
fn promised_labels(name: &str) -> &'static [&'static str] {
    match name {
        "pgsidecar_acquire_seconds"
        | "pgsidecar_backend_connect_seconds"
        | "pgsidecar_transaction_seconds"
        | "pgsidecar_query_seconds"
        | "pgsidecar_pool_max_size"
        | "pgsidecar_oldest_wait_seconds"
        | "pgsidecar_backend_connections_total" => &["database", "user"],
        "pgsidecar_backends" => &["database", "state", "user"],
        "pgsidecar_clients" => &["state"],
        "pgsidecar_backend_closed_total" | "pgsidecar_pins_total" | "pgsidecar_pins_refused_total" => &["reason"],
        "pgsidecar_audit_surprises_total" => &["kind"],
        "pgsidecar_bytes_total" => &["direction"],
        "pgsidecar_errors_total" => &["sqlstate"],
        "pgsidecar_cancels_total" => &["outcome"],
        "pgsidecar_build_info" => &["version"],
        _ => &[],
    }
}

#[tokio::test]
async fn trap_92_every_series_has_the_promised_labels_and_no_others() {
    let (sidecar, _client) = busy().await;
    let text = sidecar.metrics().await;
    for line in text.lines().filter(|line| line.starts_with("pgsidecar_")) {
        let (series, _) = line.rsplit_once(' ').expect("a sample has a value");
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let base = NAMES.iter().map(|(base, _)| *base).find(|base| {
            let rest = name.strip_prefix(base);
            rest.is_some_and(|rest| ["", "_bucket", "_sum", "_count"].contains(&rest))
        });
        let base = base.unwrap_or_else(|| panic!("{name} was never promised"));
        let mut labels: Vec<_> = labels
            .split(',')
            .filter_map(|label| Some(label.split_once('=')?.0))
            .filter(|label| *label != "le")
            .collect();
        labels.sort_unstable();
        assert_eq!(labels, promised_labels(base), "{line}");
    }
}

#[tokio::test]
async fn promtool_finds_nothing_to_complain_about() {
    let (sidecar, _client) = busy().await;
    let text = sidecar.metrics().await;
    let mut promtool = Command::new("promtool");
    promtool
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut promtool = promtool
        .spawn()
        .expect("promtool is installed (./tests/run installs it)");
    promtool
        .stdin
        .take()
        .expect("stdin is piped")
        .write_all(text.as_bytes())
        .unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(
        output.status.success() && said.is_empty(),
        "{}\n{text}",
        String::from_utf8_lossy(&said)
    );
}

#[tokio::test]
async fn pool_series_carry_database_and_user() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::start(&database).await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    client.ask("BEGIN").await;
    let labels = [
        ("database", database.name.as_str()),
        ("user", USER),
        ("state", "active"),
    ];
    sidecar
        .wait_metric("pgsidecar_backends", &labels, |active| active == 1.0)
        .await;
    sidecar
        .wait_metric("pgsidecar_clients", &[("state", "active")], |active| active == 1.0)
        .await;
    client.ask("COMMIT").await;
    sidecar
        .wait_metric("pgsidecar_backends", &labels, |active| active == 0.0)
        .await;
    assert_eq!(
        sidecar.metric("pgsidecar_pool_max_size", &labels[..2]).await,
        Some(20.0)
    );
}

#[tokio::test]
async fn a_name_that_postgresql_refused_is_never_a_label() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::start(&database).await;
    let mut client = RawClient::connect(sidecar.port).await;
    let _ = client
        .log_in(USER, PASSWORD, &[("database", "nowhere_at_all")])
        .await
        .expect_err("no such database");
    assert!(!sidecar.metrics().await.contains("nowhere_at_all"));
}

#[tokio::test]
async fn health_is_yes_and_readiness_no_before_the_first_upstream_login() {
    let fake = FakeBackend::start(|mut session| async move { session.freeze().await }).await;
    let sidecar = fake.sidecar().set("POOL__MIN_IDLE", "1").start().await;
    fake.wait_sessions(1).await;
    assert_eq!(sidecar.http("/healthz").await.expect("an answer").status, 200);
    assert_eq!(sidecar.http("/readyz").await.expect("an answer").status, 503);
    assert_eq!(sidecar.http("/elsewhere").await.expect("an answer").status, 404);
}
