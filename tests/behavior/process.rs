//! The process as an operator meets it: its log, its probes, its complaints.

use std::process::{Command, Output};

use crate::support::certificates;
use crate::support::ports::free_port;
use crate::support::postgres::{PASSWORD, Postgres, USER};
use crate::support::raw_client::RawClient;
use crate::support::sidecar::{Builder, Sidecar};

/// A URL that nobody answers; for processes that end before they would dial.
const NOWHERE: &str = "postgres://app:hunter2@127.0.0.1:9/app";

/// What a process that does not start says, which must be one line.
async fn complaint(builder: Builder) -> String {
    let mut sidecar = builder.spawn();
    let status = sidecar.wait_exit().await;
    assert_eq!(status.code(), Some(1), "{}", sidecar.log());
    crate::support::eventually("its last words", async || sidecar.log().ends_with('\n').then_some(())).await;
    let log = sidecar.log();
    let errors: Vec<_> = log.lines().filter(|line| line.starts_with("pgsidecar: ")).collect();
    assert_eq!(errors.len(), 1, "one clear line: {log}");
    assert!(!log.contains("hunter2"), "{log}");
    errors[0].to_owned()
}

fn healthcheck(sidecar: &Sidecar, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pgsidecar"))
        .arg("healthcheck")
        .args(arguments)
        .env_clear()
        .env(
            "PGSIDECAR_METRICS_LISTEN",
            format!("127.0.0.1:{}", sidecar.metrics_port),
        )
        .output()
        .expect("the binary runs")
}

#[tokio::test]
async fn the_start_line_names_every_bound_address_and_the_upstream_without_secrets() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::start(&database).await;
    let line = sidecar.wait_for_log("pgsidecar serves").await;
    for part in [
        format!("127.0.0.1:{}", sidecar.port),
        sidecar.socket().display().to_string(),
        format!("127.0.0.1:{}", sidecar.metrics_port),
        format!("{USER}:***@127.0.0.1:{}/{}", database.port, database.name),
    ] {
        assert!(line.contains(&part), "{part} in {line}");
    }
    assert!(!sidecar.log().contains(PASSWORD));
}

#[tokio::test]
async fn statistics_are_one_line_per_interval() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("LOG__STATS_INTERVAL", "100ms")
        .start_ready()
        .await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    client.value("SELECT 'not_for_the_log'").await;
    let line = sidecar.wait_for_log("statistics").await;
    for part in ["clients_idle", "backends_idle", "transactions_per_second", "errors"] {
        assert!(line.contains(part), "{part} in {line}");
    }
    sidecar.wait_for_log("clients_idle=1").await;
    assert!(!sidecar.log().contains("not_for_the_log"));
}

#[tokio::test]
async fn connects_are_logged_where_that_is_asked_for_and_json_is_json() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("LOG__CONNECTIONS", "true")
        .set("LOG__FORMAT", "json")
        .start_ready()
        .await;
    drop(RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await);
    let line = sidecar.wait_for_log("disconnected").await;
    assert!(
        line.starts_with('{') && line.ends_with('}') && line.contains("127.0.0.1:"),
        "{line}"
    );
    sidecar.wait_for_log("\"connected\"").await;
}

#[tokio::test]
async fn probes_answer_by_http_and_by_command() {
    let database = Postgres::shared().create_database();
    let nobody = Builder::default().upstream(NOWHERE).start().await;
    assert_eq!(nobody.http("/healthz").await.expect("an answer").status, 200);
    assert_eq!(nobody.http("/readyz").await.expect("an answer").status, 503);
    assert_eq!(healthcheck(&nobody, &[]).status.code(), Some(0));
    let unready = healthcheck(&nobody, &["--ready"]);
    assert_eq!(unready.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&unready.stderr).contains("no login to PostgreSQL"));
    assert_eq!(nobody.metric("pgsidecar_upstream_up", &[]).await, Some(0.0));
    let sidecar = Sidecar::start(&database).await;
    assert_eq!(healthcheck(&sidecar, &["--ready"]).status.code(), Some(0));
    assert_eq!(sidecar.metric("pgsidecar_upstream_up", &[]).await, Some(1.0));
}

// --- one clear line each ---

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let listen = Builder::default()
        .upstream(NOWHERE)
        .own_listen()
        .variable("PGSIDECAR_LISTEN", &address);
    let line = complaint(listen).await;
    assert!(line.contains(&address) && line.contains("taken"), "{line}");
    let metrics = Builder::default()
        .upstream(NOWHERE)
        .variable("PGSIDECAR_METRICS_LISTEN", &address);
    let line = complaint(metrics).await;
    assert!(
        line.contains("metrics.listen") && line.contains(&address) && line.contains("in use"),
        "{line}"
    );
}

#[tokio::test]
async fn a_certificate_that_cannot_be_read_is_named_with_its_key() {
    let directory = tempfile::tempdir().unwrap();
    let own = certificates::self_signed(directory.path(), "own", "localhost");
    std::fs::write(directory.path().join("garbage.crt"), "no certificate\n").unwrap();
    let key = own.key.display().to_string();
    for (certificate, cause) in [("missing.crt", "No such file"), ("garbage.crt", "certificate")] {
        let path = directory.path().join(certificate).display().to_string();
        let client_side = Builder::default()
            .upstream(NOWHERE)
            .set("TLS__MODE", "allow")
            .set("TLS__CERT", &path)
            .set("TLS__KEY", &key);
        let line = complaint(client_side).await;
        assert!(
            line.contains("tls.cert") && line.contains(&path) && line.contains(cause),
            "{line}"
        );
        let upstream_side = Builder::default().upstream(format!("{NOWHERE}?sslmode=verify-full&sslrootcert={path}"));
        let line = complaint(upstream_side).await;
        assert!(
            line.contains("sslrootcert") && line.contains(&path) && line.contains(cause),
            "{line}"
        );
    }
}

#[tokio::test]
async fn an_unknown_host_and_a_wrong_password_are_one_line_each_however_often_they_fail() {
    let database = Postgres::shared().create_database();
    let wrong = format!(
        "postgres://{USER}:wrong_secret@127.0.0.1:{}/{}",
        database.port, database.name
    );
    let port = free_port();
    for (url, words) in [
        (
            "postgres://app:hunter2@no-such-host.invalid/app".to_owned(),
            "no-such-host.invalid",
        ),
        (wrong, "password authentication failed for user \"app\""),
        (format!("postgres://app:hunter2@127.0.0.1:{port}/app"), "refused"),
    ] {
        let sidecar = Builder::default()
            .upstream(url)
            .set("POOL__ACQUIRE_TIMEOUT", "100ms")
            .start()
            .await;
        let line = sidecar.wait_for_log("no backend could be opened").await;
        assert!(line.contains(words), "{line}");
        for _ in 0..5 {
            let mut client = RawClient::connect(sidecar.port).await;
            let _ = client.log_in(USER, "any", &[("database", "app")]).await;
        }
        let lines = sidecar.log().matches("no backend could be opened").count();
        assert_eq!(lines, 1, "{}", sidecar.log());
        assert!(!sidecar.log().contains("hunter2") && !sidecar.log().contains("wrong_secret"));
    }
}

#[tokio::test]
async fn a_missing_upstream_and_a_missing_password_name_what_to_set() {
    let line = complaint(Builder::default()).await;
    assert!(
        line.contains("upstream.url") || line.contains("PGSIDECAR_UPSTREAM"),
        "{line}"
    );
    let line = complaint(Builder::default().upstream("postgres://app@127.0.0.1/app")).await;
    assert!(line.contains("users") || line.contains("password"), "{line}");
}
