//! Who may log in, and what the others are told.

use crate::support::postgres::{PASSWORD, Postgres, USER};
use crate::support::raw_client::RawClient;
use crate::support::sidecar::Sidecar;

#[tokio::test]
async fn the_upstreams_own_password_logs_in_by_scram() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::start(&database).await;
    let client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    assert_eq!(client.authentication, [10, 11, 12, 0], "SASL, continue, final, ok");
}

#[tokio::test]
async fn a_wrong_password_is_refused_with_28p01_and_the_connection_closed() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::start(&database).await;
    let mut client = RawClient::connect(sidecar.port).await;
    let refusal = client
        .log_in(USER, "not it", &[("database", &database.name)])
        .await
        .expect_err("it is wrong");
    assert_eq!(refusal.sqlstate.to_string(), "28P01");
    assert_eq!(refusal.severity.as_str(), "FATAL");
    assert_eq!(refusal.message, "password authentication failed for user \"app\"");
    assert!(client.until_closed().await.is_empty());
}

#[tokio::test]
async fn trap_83_an_unknown_user_sees_the_same_exchange_as_a_wrong_password() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::start(&database).await;
    let mut client = RawClient::connect(sidecar.port).await;
    let refusal = client
        .log_in("nobody", PASSWORD, &[("database", &database.name)])
        .await
        .expect_err("unknown");
    assert_eq!(refusal.sqlstate.to_string(), "28P01");
    assert_eq!(refusal.message, "password authentication failed for user \"nobody\"");
    assert_eq!(
        client.authentication,
        [10, 11],
        "the exchange goes as far as with a wrong password"
    );
}

#[tokio::test]
async fn configured_users_log_in_and_are_themselves_on_the_backend() {
    let database = Postgres::shared().create_database();
    let users = "[{name: app, password: app_password}, {name: other, password: other_password}]";
    let sidecar = Sidecar::builder(&database).set("USERS", users).start().await;
    for (user, password) in [("app", "app_password"), ("other", "other_password")] {
        let mut client = RawClient::login(sidecar.port, user, password, &database.name).await;
        assert_eq!(client.value("SELECT session_user").await, user);
    }
}

#[tokio::test]
async fn the_log_never_shows_a_password() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("LOG__LEVEL", "trace")
        .set("LOG__CONNECTIONS", "true")
        .start()
        .await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    client.value("SELECT 'a literal nobody should see'").await;
    let mut refused = RawClient::connect(sidecar.port).await;
    let _ = refused
        .log_in(USER, "a_wrong_password", &[("database", &database.name)])
        .await;
    sidecar.wait_for_log("28P01").await;
    for secret in [PASSWORD, "a_wrong_password", "a literal nobody should see"] {
        assert!(!sidecar.log().contains(secret), "{secret} in:\n{}", sidecar.log());
    }
}
