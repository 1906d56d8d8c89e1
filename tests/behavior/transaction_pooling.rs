//! `mode: transaction`: a backend belongs to a client for a transaction, then to whoever comes next.

use crate::support::postgres::{Database, PASSWORD, Postgres, USER};
use crate::support::process::pgbench;
use crate::support::raw_client::{RawClient, tags};
use crate::support::sidecar::Sidecar;

async fn one_backend(database: &Database) -> Sidecar {
    Sidecar::builder(database)
        .set("POOL__MAX_SIZE", "1")
        .start_ready()
        .await
}

#[tokio::test]
async fn two_clients_share_one_backend() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let mut first = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    let mut second = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    let backend = first.value("SELECT pg_backend_pid()").await;
    assert_eq!(second.value("SELECT pg_backend_pid()").await, backend);
    assert_eq!(first.value("SELECT pg_backend_pid()").await, backend);
}

#[tokio::test]
async fn a_backend_is_held_for_a_transaction_and_waited_for_meanwhile() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let mut first = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    let mut second = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    first.ask("BEGIN").await;
    let backend = first.value("SELECT pg_backend_pid()").await;
    second.query("SELECT pg_backend_pid()").await;
    sidecar
        .wait_metric("pgsidecar_clients", &[("state", "waiting")], |waiting| waiting == 1.0)
        .await;
    assert_eq!(tags(&first.ask("COMMIT").await), "CZ");
    let answer = second.until_ready().await;
    assert_eq!(answer[1].row(), [Some(backend)]);
}

#[tokio::test]
async fn a_failed_transaction_is_held_until_it_is_rolled_back() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    client.ask("BEGIN").await;
    assert_eq!(client.ask("SELECT 1/0").await[0].sqlstate(), "22012");
    let answer = client.ask("SELECT 1").await;
    assert_eq!(
        (answer[0].sqlstate().as_str(), answer[1].body.as_slice()),
        ("25P02", &b"E"[..])
    );
    assert_eq!(client.ask("COMMIT").await[0].command(), "ROLLBACK");
}

#[tokio::test]
async fn trap_42_a_client_gone_inside_a_transaction_leaves_nothing_behind() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let mut first = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    first.ask("CREATE TABLE kept (x int)").await;
    first.ask("BEGIN").await;
    first.ask("INSERT INTO kept VALUES (1)").await;
    drop(first);
    let mut second = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    assert_eq!(second.value("SELECT count(*) FROM kept").await, "0");
}

#[tokio::test]
async fn session_state_never_reaches_another_client() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "2")
        .start_ready()
        .await;
    let mut first = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    first.ask("SET work_mem = '7MB'").await;
    first.ask("CREATE TEMP TABLE mine (x int)").await;
    first.ask("SELECT set_config('app.tenant', 'first', false)").await;
    for _ in 0..4 {
        let mut other = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
        assert_ne!(other.value("SHOW work_mem").await, "7MB");
        assert_eq!(
            other
                .value("SELECT coalesce(current_setting('app.tenant', true), '')")
                .await,
            ""
        );
        assert_eq!(
            other.value("SELECT (to_regclass('pg_temp.mine') IS NULL)::text").await,
            "true"
        );
        assert_eq!(first.value("SHOW work_mem").await, "7MB");
    }
    drop(first);
    let mut next = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    for _ in 0..4 {
        assert_ne!(next.value("SHOW work_mem").await, "7MB");
    }
}

#[tokio::test]
async fn pgbench_runs_in_its_three_protocols() {
    let database = Postgres::shared().create_database();
    pgbench(&database.url(), &["-i", "-q", "-s", "1"]).await.ok();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "2")
        .start_ready()
        .await;
    // A thread for each client: pgbench prepares synchronously, so that one of two clients of a thread would wait for a
    // backend while the other can't end its transaction.
    for protocol in ["simple", "extended", "prepared"] {
        let arguments = ["-n", "-c", "4", "-j", "4", "-T", "1", "-M", protocol];
        let output = pgbench(&sidecar.url(&database), &arguments).await.ok();
        assert!(
            output.contains("number of failed transactions: 0 "),
            "{protocol}: {output}"
        );
    }
}
