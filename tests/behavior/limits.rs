//! What is bounded, and what happens at the bound.

use std::time::Duration;

use pgsidecar::wire::SqlState;

use crate::support::eventually;
use crate::support::fake_backend::FakeBackend;
use crate::support::postgres::{Database, PASSWORD, Postgres, USER};
use crate::support::raw_client::{Message, RawClient, bind, execute, parse, sync, together};
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

async fn limited(database: &Database, key: &str, value: &str) -> Sidecar {
    Sidecar::builder(database)
        .set("POOL__MAX_SIZE", "1")
        .set(key, value)
        .start_ready()
        .await
}

/// The code of the error in an answer and the status behind it.
fn outcome(answer: &[Message]) -> (String, char) {
    let error = answer.iter().find(|message| message.tag == b'E').expect("an error");
    let ready = answer.last().expect("an answer");
    (error.sqlstate(), char::from(ready.body[0]))
}

#[tokio::test]
async fn trap_82_query_timeout_cancels_the_query_and_keeps_the_client() {
    let database = Postgres::shared().create_database();
    let sidecar = limited(&database, "LIMITS__QUERY_TIMEOUT", "300ms").await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    let backend = client.value("SELECT pg_backend_pid()").await;
    assert_eq!(
        outcome(&client.ask("SELECT pg_sleep(60)").await),
        ("57014".to_owned(), 'I')
    );
    let sleep = [
        parse("", "SELECT pg_sleep(60)"),
        bind("", "", &[]),
        execute("", 0),
        sync(),
    ];
    client.send(&together(&sleep)).await;
    assert_eq!(outcome(&client.until_ready().await), ("57014".to_owned(), 'I'));
    // In a transaction too, whichever statement of it.
    client.ask("BEGIN").await;
    client.ask("SELECT 1").await;
    assert_eq!(
        outcome(&client.ask("SELECT pg_sleep(60)").await),
        ("57014".to_owned(), 'E')
    );
    client.ask("ROLLBACK").await;
    // A client that thinks for longer than a query may run loses nothing.
    client.ask("BEGIN").await;
    assert!(client.silent_for(Duration::from_millis(600)).await);
    client.ask("COMMIT").await;
    assert_eq!(client.value("SELECT pg_backend_pid()").await, backend);
}

#[tokio::test]
async fn transaction_timeout_ends_the_client_with_25p04() {
    let database = Postgres::shared().create_database();
    let sidecar = limited(&database, "LIMITS__TRANSACTION_TIMEOUT", "300ms").await;
    let mut idle = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    idle.ask("CREATE TABLE kept (x int)").await;
    assert!(
        idle.silent_for(Duration::from_millis(500)).await,
        "between transactions none runs out"
    );
    idle.ask("BEGIN").await;
    idle.ask("INSERT INTO kept VALUES (1)").await;
    assert_eq!(idle.until_closed().await[0].sqlstate(), "25P04");
    let mut busy = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    busy.query("SELECT pg_sleep(60)").await;
    assert_eq!(busy.until_closed().await[0].sqlstate(), "25P04");
    let mut next = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    assert_eq!(next.value("SELECT count(*) FROM kept").await, "0");
}

#[tokio::test]
async fn idle_transaction_timeout_is_25p03_after_any_statement_of_it() {
    let database = Postgres::shared().create_database();
    let sidecar = limited(&database, "LIMITS__IDLE_TRANSACTION_TIMEOUT", "300ms").await;
    for statements in [
        &["BEGIN"][..],
        &["BEGIN", "SELECT 1", "SELECT 2"],
        &["BEGIN", "SELECT 1/0"],
    ] {
        let mut client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
        for sql in statements {
            client.ask(sql).await;
        }
        assert_eq!(client.until_closed().await[0].sqlstate(), "25P03", "{statements:?}");
    }
    let mut busy = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    busy.ask("BEGIN").await;
    // A statement that takes long is no idleness.
    busy.value("SELECT 1 FROM pg_sleep(0.6)").await;
    busy.ask("COMMIT").await;
    assert!(busy.silent_for(Duration::from_millis(600)).await);
}

#[tokio::test]
async fn client_idle_timeout_is_57p05() {
    let database = Postgres::shared().create_database();
    let sidecar = limited(&database, "LIMITS__CLIENT_IDLE_TIMEOUT", "400ms").await;
    let mut fresh = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    assert_eq!(fresh.until_closed().await[0].sqlstate(), "57P05");
    let mut served = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    served.ask("SELECT 1").await;
    assert_eq!(served.until_closed().await[0].sqlstate(), "57P05");
    let mut pinned = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    pinned.ask("SET idle_session_timeout = '7h'").await;
    assert_eq!(pinned.until_closed().await[0].sqlstate(), "57P05");
    let mut inside = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    inside.ask("BEGIN").await;
    assert!(
        inside.silent_for(Duration::from_millis(800)).await,
        "a transaction is no idle session"
    );
}

#[tokio::test]
async fn trap_89_the_limit_of_file_descriptors_is_raised_at_start() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::start(&database).await;
    let id = sidecar.process_id().expect("it runs");
    let limits = std::fs::read_to_string(format!("/proc/{id}/limits")).unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .expect("the kernel tells");
    let figures: Vec<_> = line.split_whitespace().rev().skip(1).take(2).collect();
    assert_eq!(figures[0], figures[1], "soft and hard: {line}");
}

#[tokio::test]
async fn beyond_max_unauthenticated_a_connection_is_refused_with_53300_and_clients_go_on() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("LIMITS__MAX_UNAUTHENTICATED", "2")
        .start_ready()
        .await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    let mut mute = Vec::new();
    eventually("a refusal", async || {
        // Half a length word: accepted, and waited for. On several threads one that comes later may be counted before it.
        let mut silent = RawClient::connect(sidecar.port).await;
        let _ = silent.try_send(&[0]).await;
        mute.push(silent);
        let mut one_more = RawClient::connect(sidecar.port).await;
        let refusal = one_more
            .log_in(USER, PASSWORD, &[("database", &database.name)])
            .await
            .err()?;
        (refusal.sqlstate == SqlState::TOO_MANY_CONNECTIONS).then_some(())
    })
    .await;
    assert_eq!(client.value("SELECT 1").await, "1", "who has logged in is not counted");
    mute.clear();
    eventually("a free place", async || {
        let mut next = RawClient::connect(sidecar.port).await;
        next.log_in(USER, PASSWORD, &[("database", &database.name)]).await.ok()
    })
    .await;
}

#[tokio::test]
async fn the_login_deadline_ends_the_authentication_in_postgresqls_words() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("LIMITS__CLIENT_LOGIN_TIMEOUT", "300ms")
        .start_ready()
        .await;
    let mut client = RawClient::connect(sidecar.port).await;
    client.startup(pgsidecar::wire::PROTOCOL_3_0, &[("user", USER)]).await;
    client.message().await;
    let report = client.message().await.report();
    assert_eq!(
        (report.sqlstate, report.message.as_ref()),
        (SqlState::QUERY_CANCELED, "canceling authentication due to timeout")
    );
    assert!(client.until_closed().await.is_empty());
}

/// Whoever has proved who it is waits for the database as long as `pool.acquire_timeout` says, and is told why.
#[tokio::test]
async fn the_login_deadline_is_not_the_databases() {
    let fake = FakeBackend::start(|session| async move {
        let _kept_waiting = session;
        std::future::pending().await
    })
    .await;
    let sidecar = fake
        .sidecar()
        .set("LIMITS__CLIENT_LOGIN_TIMEOUT", "1s")
        .set("POOL__ACQUIRE_TIMEOUT", "1500ms")
        .start()
        .await;
    let mut client = RawClient::connect(sidecar.port).await;
    let refusal = client.log_in(USER, PASSWORD, &[("database", "fake")]).await;
    let report = refusal.expect_err("no backend comes");
    assert_eq!(
        (report.severity.as_str(), report.sqlstate),
        ("FATAL", SqlState::TOO_MANY_CONNECTIONS)
    );
    assert!(report.detail.is_some(), "{report:?}");
}

#[tokio::test]
async fn trap_12_a_client_that_leaves_while_the_database_is_waited_for_is_forgotten() {
    let fake = FakeBackend::start(|session| async move {
        let _kept_waiting = session;
        std::future::pending().await
    })
    .await;
    let sidecar = fake.sidecar().set("LIMITS__MAX_CLIENTS", "1").start().await;
    for _ in 0..3 {
        eventually("a place", async || {
            let mut client = RawClient::connect(sidecar.port).await;
            client
                .startup(pgsidecar::wire::PROTOCOL_3_0, &[("user", USER), ("database", "fake")])
                .await;
            let first = client.message().await;
            (first.tag == b'R').then_some(())?;
            client.prove(PASSWORD, &first).await;
            Some(())
        })
        .await;
    }
}

#[tokio::test]
async fn trap_89_clients_are_refused_before_backends_have_no_descriptors() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MIN_IDLE", "0")
        .descriptors(120)
        .start()
        .await;
    sidecar.wait_for_log("too low for limits.max_clients").await;
    let mut mute = Vec::new();
    let refusal = loop {
        let mut client = RawClient::connect(sidecar.port).await;
        match client.log_in(USER, PASSWORD, &[("database", &database.name)]).await {
            Ok(()) => mute.push(client),
            Err(report) => break report,
        }
        assert!(mute.len() <= 60, "half of the descriptors is all that clients get");
    };
    assert_eq!(refusal.sqlstate, SqlState::TOO_MANY_CONNECTIONS);
    assert!(mute.len() >= 50);
    // Everything else still has descriptors: new backends, the endpoint, and whoever comes when there is room.
    for client in mute.iter_mut().take(10) {
        client.ask("BEGIN").await;
    }
    assert!(sidecar.http("/healthz").await.is_some());
    mute.truncate(10);
    eventually("room", async || {
        let mut client = RawClient::connect(sidecar.port).await;
        client
            .log_in(USER, PASSWORD, &[("database", &database.name)])
            .await
            .ok()
    })
    .await;
}
