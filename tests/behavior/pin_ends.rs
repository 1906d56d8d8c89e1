//! A pin is over when the catalogs show that nothing is left of what the client left, and the client stays.

use crate::support::eventually;
use crate::support::postgres::{Database, PASSWORD, Postgres, USER};
use crate::support::raw_client::{RawClient, bind, execute, parse, sync, tags, together};
use crate::support::sidecar::Sidecar;

/// A sidecar with so many backends.
async fn sidecar_of(database: &Database, max_size: &str) -> Sidecar {
    Sidecar::builder(database)
        .set("POOL__MAX_SIZE", max_size)
        .start_ready()
        .await
}

/// What a client leaves, what ends that again, and the pin's reason.
const ENDS: [(&str, &str, &str); 7] = [
    ("CREATE TEMP TABLE kept (n int)", "DROP TABLE kept", "temporary_table"),
    (
        "CREATE TEMP TABLE a (n int); CREATE TEMP VIEW v AS SELECT * FROM a",
        "DROP TABLE a CASCADE",
        "temporary_table",
    ),
    ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", "CLOSE c", "hold_cursor"),
    (
        "SELECT pg_advisory_lock(7)",
        "SELECT pg_advisory_unlock(7)",
        "advisory_lock",
    ),
    (
        "SELECT pg_try_advisory_lock_shared(7)",
        "SELECT pg_advisory_unlock_all()",
        "advisory_lock",
    ),
    ("PREPARE p AS SELECT 1; SELECT 1", "DEALLOCATE p", "prepare"),
    (
        "PREPARE p AS SELECT 1; DECLARE c CURSOR WITH HOLD FOR SELECT 1",
        "CLOSE ALL; DEALLOCATE p",
        "prepare",
    ),
];

/// The statement by which pgsidecar asks, as pg_stat_activity shows it.
async fn wait_asked(backend: &str) {
    let asked = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE pid = {backend} AND state = 'idle' AND query LIKE 'BEGIN%READ ONLY; SET LOCAL%'"
    );
    eventually("the backend is asked what pins it", async || {
        (Postgres::shared().psql("postgres", &asked).trim() == "1").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_pin_ends_when_nothing_holds_it_any_more() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar_of(&database, "1").await;
    let pinned = [("state", "pinned")];
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    for (leaves, ends, reason) in ENDS {
        let before = sidecar
            .metric("pgsidecar_pins_total", &[("reason", reason)])
            .await
            .unwrap();
        assert!(!tags(&client.ask(leaves).await).contains('E'), "{leaves}");
        sidecar
            .wait_metric("pgsidecar_pins_total", &[("reason", reason)], |count| {
                count == before + 1.0
            })
            .await;
        let backend = client.value("SELECT pg_backend_pid()").await;
        wait_asked(&backend).await;
        assert_eq!(
            sidecar.metric("pgsidecar_backends", &pinned).await,
            Some(1.0),
            "{leaves}: still held"
        );
        assert!(!tags(&client.ask(ends).await).contains('E'), "{ends}");
        sidecar
            .wait_metric("pgsidecar_backends", &pinned, |count| count == 0.0)
            .await;
        // The only backend is free for others, as it is, while the client stays.
        let mut other = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
        assert_eq!(other.value("SELECT pg_backend_pid()").await, backend, "{ends}");
        sidecar.wait_for_log("a client's pin is over").await;
    }
    assert_eq!(client.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn what_was_rolled_back_or_failed_pins_no_longer_than_until_it_is_asked_for() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar_of(&database, "1").await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    for leaves in [
        "BEGIN; CREATE TEMP TABLE t (n int); ROLLBACK",
        "CREATE TEMP TABLE t (n nosuch)",
        "PREPARE p AS SELECT nosuch; SELECT 1",
    ] {
        let before = sidecar.log().matches("a client's pin is over").count();
        client.ask(leaves).await;
        eventually("the pin is over", async || {
            (sidecar.log().matches("a client's pin is over").count() == before + 1).then_some(())
        })
        .await;
        let mut other = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
        assert_eq!(other.value("SELECT 1").await, "1", "{leaves}");
    }
}

/// In the extended protocol, the statements that a client prepared while it was pinned are its own still.
#[tokio::test]
async fn statements_prepared_while_pinned_are_there_when_the_pin_is_over() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar_of(&database, "1").await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    client.ask("CREATE TEMP TABLE t (n int)").await;
    let prepared = together(&[parse("s", "SELECT 41 + 1"), parse("", "SELECT 43"), sync()]);
    client.send(&prepared).await;
    client.until_ready().await;
    client
        .send(&together(&[
            parse("drop", "DROP TABLE t"),
            bind("", "drop", &[]),
            execute("", 0),
            sync(),
        ]))
        .await;
    client.until_ready().await;
    sidecar.wait_for_log("a client's pin is over").await;
    let mut other = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    other.ask("SET timezone = 'Asia/Shanghai'").await;
    client
        .send(&together(&[bind("", "s", &[]), execute("", 0), sync()]))
        .await;
    assert_eq!(client.until_ready().await[1].row(), [Some("42".to_owned())]);
    client
        .send(&together(&[bind("", "", &[]), execute("", 0), sync()]))
        .await;
    assert_eq!(client.until_ready().await[1].row(), [Some("43".to_owned())]);
}

#[tokio::test]
async fn a_proof_leaves_the_clients_settings_as_they_are() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar_of(&database, "1").await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    client
        .ask("SET timezone = 'Asia/Shanghai'; SELECT pg_advisory_lock(1)")
        .await;
    let backend = client.value("SELECT pg_backend_pid()").await;
    wait_asked(&backend).await;
    assert_eq!(client.value("SHOW timezone").await, "Asia/Shanghai");
    assert_eq!(client.value("SELECT current_user").await, USER);
    client.ask("SELECT pg_advisory_unlock(1)").await;
    sidecar.wait_for_log("a client's pin is over").await;
    assert_eq!(client.value("SHOW timezone").await, "Asia/Shanghai");
}

#[tokio::test]
async fn a_pin_ends_in_statement_mode_too() {
    let database = Postgres::shared().create_database();
    let sidecar = crate::support::sidecar::Builder::default()
        .upstream(database.url_as(USER, PASSWORD))
        .set("POOL__MODE", "statement")
        .start_ready()
        .await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    client.ask("CREATE TEMP TABLE t (n int)").await;
    client.ask("DROP TABLE t").await;
    sidecar.wait_for_log("a client's pin is over").await;
    assert_eq!(client.value("SELECT 1").await, "1");
}
