//! What is bounded, and what happens at the bound.

use pgsidecar::wire::SqlState;

use crate::support::fake_backend::FakeBackend;
use crate::support::postgres::{PASSWORD, Postgres, USER};
use crate::support::raw_client::RawClient;
use crate::support::sidecar::Sidecar;

#[tokio::test]
async fn beyond_max_clients_a_login_is_refused_with_53300() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("LIMITS__MAX_CLIENTS", "1")
        .start_ready()
        .await;
    let first = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    let mut second = RawClient::connect(sidecar.port).await;
    let refusal = second
        .log_in(USER, PASSWORD, &[("database", &database.name)])
        .await
        .expect_err("one is the limit");
    assert_eq!(refusal.sqlstate, SqlState::TOO_MANY_CONNECTIONS);
    drop(first);
    sidecar
        .wait_metric("pgsidecar_clients", &[], |clients| clients == 0.0)
        .await;
    RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
}

#[tokio::test]
async fn a_client_that_does_not_log_in_is_closed_at_its_deadline() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("LIMITS__CLIENT_LOGIN_TIMEOUT", "300ms")
        .start_ready()
        .await;
    let mut client = RawClient::connect(sidecar.port).await;
    client.until_closed().await;
}

#[tokio::test]
async fn an_acquire_timeout_is_53300_with_counts_and_a_hint() {
    let database = Postgres::shared().create_database();
    let builder = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "1")
        .set("POOL__ACQUIRE_TIMEOUT", "300ms");
    let sidecar = builder.start_ready().await;
    let mut holder = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    holder.ask("BEGIN").await;
    let mut waiter = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    let answer = waiter.ask("SELECT 1").await;
    let report = answer[0].report();
    assert_eq!(report.sqlstate, SqlState::TOO_MANY_CONNECTIONS);
    assert!(report.detail.is_some() && report.hint.is_some(), "{report:?}");
    holder.ask("COMMIT").await;
    assert_eq!(waiter.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn a_refused_upstream_login_reaches_the_client_in_postgresqls_words() {
    let fake = FakeBackend::start(|mut session| async move {
        session
            .refuse(
                SqlState::INVALID_PASSWORD,
                "password authentication failed for user \"app\"",
            )
            .await
    })
    .await;
    let sidecar = fake.sidecar().start().await;
    let mut client = RawClient::connect(sidecar.port).await;
    let refusal = client
        .log_in(USER, PASSWORD, &[("database", "fake")])
        .await
        .expect_err("the upstream refuses");
    assert_eq!(refusal.sqlstate, SqlState::INVALID_PASSWORD);
}
