//! SIGTERM: who is served on, who is told to go, and when the process ends.

use nix::sys::signal::Signal;

use crate::support::eventually;
use crate::support::postgres::{Database, PASSWORD, Postgres, USER};
use crate::support::raw_client::{RawClient, tags};
use crate::support::sidecar::Sidecar;

#[tokio::test]
async fn without_clients_it_ends_at_once_with_0() {
    let database = Postgres::shared().create_database();
    let mut sidecar = Sidecar::start(&database).await;
    sidecar.signal(Signal::SIGTERM);
    assert_eq!(sidecar.wait_exit().await.code(), Some(0));
}

#[tokio::test]
async fn a_sidecar_keeps_serving_until_the_last_client_has_left() {
    let database = Postgres::shared().create_database();
    let mut sidecar = Sidecar::builder(&database)
        .set("DRAIN__DEADLINE", "60s")
        .start_ready()
        .await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    sidecar.signal(Signal::SIGTERM);
    sidecar.wait_for_log("drain").await;
    assert_eq!(sidecar.http("/readyz").await.expect("health stays up").status, 503);
    assert_eq!(sidecar.http("/healthz").await.expect("health stays up").status, 200);
    assert_eq!(client.value("SELECT 1").await, "1");
    let mut late = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    assert_eq!(late.value("SELECT 2").await, "2");
    drop((client, late));
    assert_eq!(sidecar.wait_exit().await.code(), Some(0));
}

#[tokio::test]
async fn at_the_deadline_clients_get_57p01() {
    let database = Postgres::shared().create_database();
    let mut sidecar = Sidecar::builder(&database)
        .set("DRAIN__DEADLINE", "1s")
        .start_ready()
        .await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    assert_eq!(client.value("SELECT 1").await, "1");
    sidecar.signal(Signal::SIGTERM);
    let end = client.until_closed().await;
    assert_eq!(
        end.iter()
            .map(crate::support::raw_client::Message::sqlstate)
            .collect::<Vec<_>>(),
        ["57P01"]
    );
    assert_eq!(sidecar.wait_exit().await.code(), Some(0));
}

#[tokio::test]
async fn a_client_that_comes_back_every_moment_is_idle_in_between_and_is_told_to_go() {
    let database = Postgres::shared().create_database();
    let mut sidecar = Sidecar::builder(&database)
        .set("DRAIN__DEADLINE", "1s")
        .start_ready()
        .await;
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
        for number in 0..40 {
            assert_eq!(client.value(&format!("SELECT {number}")).await, number.to_string());
        }
        clients.push(client);
    }
    sidecar
        .wait_metric("pgsidecar_clients", &[("state", "idle")], |idle| idle == 2.0)
        .await;
    drop(clients.pop());
    sidecar
        .wait_metric("pgsidecar_clients", &[("state", "idle")], |idle| idle == 1.0)
        .await;
    sidecar.signal(Signal::SIGTERM);
    let end = clients[0].until_closed().await;
    assert_eq!(
        end.last().map(crate::support::raw_client::Message::sqlstate).as_deref(),
        Some("57P01")
    );
    assert_eq!(sidecar.wait_exit().await.code(), Some(0));
}

#[tokio::test]
async fn trap_90_a_second_sigterm_closes_all_at_once() {
    let database = Postgres::shared().create_database();
    let mut sidecar = Sidecar::builder(&database)
        .set("DRAIN__DEADLINE", "60s")
        .start_ready()
        .await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    client.ask("BEGIN").await;
    sidecar.signal(Signal::SIGTERM);
    sidecar.wait_for_log("drain").await;
    sidecar.signal(Signal::SIGTERM);
    client.until_closed().await;
    assert_eq!(sidecar.wait_exit().await.code(), Some(0));
}

#[tokio::test]
async fn a_server_stops_accepting_and_ends_each_client_at_its_transaction_boundary() {
    let database = Postgres::shared().create_database();
    let builder = Sidecar::builder(&database)
        .set("DRAIN__MODE", "server")
        .set("DRAIN__DEADLINE", "60s");
    let mut sidecar = builder.start_ready().await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    client.ask("BEGIN").await;
    sidecar.signal(Signal::SIGTERM);
    sidecar.wait_for_log("drain").await;
    assert_eq!(client.value("SELECT 1").await, "1");
    client.query("COMMIT").await;
    let end = client.until_closed().await;
    assert_eq!(end[0].command(), "COMMIT");
    assert_eq!(
        end.last().map(crate::support::raw_client::Message::sqlstate).as_deref(),
        Some("57P01")
    );
    assert_eq!(sidecar.wait_exit().await.code(), Some(0));
}

/// Asks something whose answer takes a while, and is there when it runs.
async fn run_slow(database: &Database, client: &mut RawClient, sql: &str) {
    client.query(sql).await;
    let sleepers = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = '{}' AND wait_event = 'PgSleep'",
        database.name
    );
    eventually("pg_sleep runs", async || {
        (Postgres::shared().psql("postgres", &sleepers) == "1").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_server_lets_a_query_finish_and_then_says_57p01() {
    let database = Postgres::shared().create_database();
    let builder = Sidecar::builder(&database)
        .set("DRAIN__MODE", "server")
        .set("DRAIN__DEADLINE", "60s");
    let mut sidecar = builder.start_ready().await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    run_slow(&database, &mut client, "SELECT pg_sleep(0.5)").await;
    sidecar.signal(Signal::SIGTERM);
    let end = client.until_closed().await;
    assert_eq!(tags(&end), "TDCZE");
    assert_eq!(end[4].sqlstate(), "57P01");
    assert_eq!(sidecar.wait_exit().await.code(), Some(0));
}

#[tokio::test]
async fn a_server_ends_clients_that_keep_their_backends_at_the_same_place() {
    let database = Postgres::shared().create_database();
    let builder = Sidecar::builder(&database)
        .set("DRAIN__MODE", "server")
        .set("DRAIN__DEADLINE", "60s");
    let mut sidecar = builder.start_ready().await;
    let mut idle = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    idle.ask("SET idle_session_timeout = '7h'").await;
    let mut inside = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    inside.ask("SET idle_session_timeout = '7h'").await;
    inside.ask("BEGIN").await;
    sidecar.signal(Signal::SIGTERM);
    assert_eq!(idle.until_closed().await[0].sqlstate(), "57P01");
    assert_eq!(inside.value("SELECT 1").await, "1");
    inside.query("COMMIT").await;
    let end = inside.until_closed().await;
    assert_eq!((end[0].command().as_str(), tags(&end).as_str()), ("COMMIT", "CZE"));
    assert_eq!(sidecar.wait_exit().await.code(), Some(0));
}

#[tokio::test]
async fn a_server_accepts_nobody_any_more() {
    let database = Postgres::shared().create_database();
    let builder = Sidecar::builder(&database)
        .set("DRAIN__MODE", "server")
        .set("DRAIN__DEADLINE", "60s");
    let mut sidecar = builder.start_ready().await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    client.ask("BEGIN").await;
    sidecar.signal(Signal::SIGTERM);
    eventually("the port is closed", async || {
        tokio::net::TcpStream::connect(("127.0.0.1", sidecar.port))
            .await
            .is_err()
            .then_some(())
    })
    .await;
    assert_eq!(sidecar.http("/healthz").await.expect("health stays up").status, 200);
    assert_eq!(sidecar.http("/readyz").await.expect("health stays up").status, 503);
    assert_eq!(client.ask("COMMIT").await[0].command(), "COMMIT");
    assert_eq!(sidecar.wait_exit().await.code(), Some(0));
}

#[tokio::test]
async fn trap_90_the_rest_goes_a_second_after_the_deadline_and_runs_on_nowhere() {
    let database = Postgres::shared().create_database();
    let mut sidecar = Sidecar::builder(&database)
        .set("DRAIN__DEADLINE", "200ms")
        .start_ready()
        .await;
    let mut idle = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    idle.ask("SELECT 1").await;
    let mut inside = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    inside.ask("BEGIN").await;
    let mut busy = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    run_slow(&database, &mut busy, "SELECT pg_sleep(60)").await;
    sidecar.signal(Signal::SIGTERM);
    assert_eq!(idle.until_closed().await[0].sqlstate(), "57P01");
    // One in its transaction may still end it, for a second.
    assert_eq!(inside.value("SELECT 1").await, "1");
    inside.query("COMMIT").await;
    let end = inside.until_closed().await;
    assert_eq!((end[0].command().as_str(), tags(&end).as_str()), ("COMMIT", "CZE"));
    assert!(
        sidecar.metrics().await.contains("pgsidecar_build_info"),
        "metrics stay up"
    );
    assert_eq!(busy.until_closed().await[0].sqlstate(), "57P01");
    assert_eq!(sidecar.wait_exit().await.code(), Some(0));
    let running = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = '{}' AND state = 'active'",
        database.name
    );
    assert_eq!(Postgres::shared().psql("postgres", &running), "0");
}
