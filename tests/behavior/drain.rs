//! SIGTERM: who is served on, who is told to go, and when the process ends.

use nix::sys::signal::Signal;

use crate::support::postgres::{PASSWORD, Postgres, USER};
use crate::support::raw_client::RawClient;
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
