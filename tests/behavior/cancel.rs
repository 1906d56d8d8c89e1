//! A cancel reaches exactly the query that its client runs.

use std::time::Duration;

use pgsidecar::wire::startup_packet::CancelKey;

use crate::support::postgres::{PASSWORD, Postgres, USER};
use crate::support::raw_client::{RawClient, cancel};
use crate::support::sidecar::Sidecar;
use crate::support::{eventually, postgres::Database};

async fn until_sleeping(database: &Database) {
    let sql = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = '{}' AND wait_event = 'PgSleep'",
        database.name
    );
    eventually("pg_sleep runs", async || {
        (Postgres::shared().psql("postgres", &sql) == "1").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_running_query_is_cancelled_and_the_session_goes_on() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::start(&database).await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    let key = client.cancel_key.clone().expect("BackendKeyData came");
    client.query("SELECT pg_sleep(60)").await;
    until_sleeping(&database).await;
    cancel(sidecar.port, &key).await;
    let answer = client.until_ready().await;
    let error = answer.iter().find(|message| message.tag == b'E').expect("an error");
    assert_eq!(error.sqlstate(), "57014");
    assert_eq!(client.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn trap_72_a_queued_client_is_dequeued() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "1")
        .start_ready()
        .await;
    let mut holder = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    holder.ask("BEGIN").await;
    let mut queued = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    queued.query("SELECT 1").await;
    sidecar
        .wait_metric("pgsidecar_clients", &[("state", "waiting")], |waiting| waiting == 1.0)
        .await;
    cancel(sidecar.port, &queued.cancel_key.clone().expect("BackendKeyData came")).await;
    assert_eq!(queued.expect("E Z").await[0].sqlstate(), "57014");
    holder.ask("COMMIT").await;
    assert_eq!(queued.value("SELECT 2").await, "2");
}

#[tokio::test]
async fn trap_72_an_idle_client_is_told_nothing() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::start(&database).await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    cancel(sidecar.port, &client.cancel_key.clone().expect("BackendKeyData came")).await;
    assert!(client.silent_for(Duration::from_millis(50)).await);
    assert_eq!(client.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn trap_71_no_cancel_hits_the_next_owner_of_the_backend() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "1")
        .start_ready()
        .await;
    let mut first = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    let mut second = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    let key = first.cancel_key.clone().expect("BackendKeyData came");
    first.value("SELECT pg_backend_pid()").await;
    second.query("SELECT pg_sleep(0.3), 'undisturbed'").await;
    until_sleeping(&database).await;
    cancel(sidecar.port, &key).await;
    second.expect("T D C Z").await;
}

#[tokio::test]
async fn trap_74_a_wrong_key_cancels_nothing() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::start(&database).await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    let key = client.cancel_key.clone().expect("BackendKeyData came");
    client.query("SELECT pg_sleep(0.3)").await;
    until_sleeping(&database).await;
    let wrong = key.secret.iter().map(|byte| !byte).collect();
    cancel(
        sidecar.port,
        &CancelKey {
            process_id: key.process_id,
            secret: wrong,
        },
    )
    .await;
    client.expect("T D C Z").await;
}
