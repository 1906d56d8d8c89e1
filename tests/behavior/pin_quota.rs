//! `pool.max_pinned`: a statement that would keep one backend too many is refused before it runs, and its client goes on.

use crate::support::postgres::{Database, PASSWORD, Postgres, USER};
use crate::support::raw_client::{
    RawClient, bind, describe, execute, function_call, parse, query, shown, sync, tags, together,
};
use crate::support::sidecar::Sidecar;

async fn sidecar(database: &Database, max_size: &str, max_pinned: &str) -> Sidecar {
    Sidecar::builder(database)
        .set("POOL__MAX_SIZE", max_size)
        .set("POOL__MAX_PINNED", max_pinned)
        .set("LIMITS__STATEMENT_BYTES", "1000")
        .set("LIMITS__CLIENT_STATEMENT_BYTES", "2000")
        .start_ready()
        .await
}

async fn login(sidecar: &Sidecar, database: &Database) -> RawClient {
    RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await
}

/// What pins in each way that there is, as a request up to its ReadyForQuery.
fn pinning() -> Vec<(&'static str, bytes::BytesMut)> {
    let long = format!("SELECT 1 -- {}", "x".repeat(1200));
    let unnamed = |sql: &str| together(&[parse("", sql), bind("", "", &[]), execute("", 0), sync()]);
    vec![
        ("temporary_table", query("CREATE TEMP TABLE t (n int)")),
        (
            "advisory_lock",
            query("INSERT INTO kept VALUES (2); SELECT pg_advisory_lock(1)"),
        ),
        ("setting", query("SET idle_session_timeout = '7h'")),
        ("unknown", query("DO $$ BEGIN INSERT INTO kept VALUES (3); END $$")),
        ("listen", query("LISTEN \"kanäle\"")),
        ("prepare", query("PREPARE p AS SELECT 1; SELECT 1")),
        ("hold_cursor", query("DECLARE c CURSOR WITH HOLD FOR SELECT 1")),
        ("large_statement", query(&long)),
        ("advisory_lock", unnamed("SELECT pg_advisory_lock(1)")),
        ("large_statement", unnamed(&long)),
        ("listen", unnamed("LISTEN \"kanäle\"")),
        (
            "temporary_table",
            together(&[
                parse("s", "CREATE TEMP TABLE t (n int)"),
                describe('S', "s"),
                bind("", "s", &[]),
                execute("", 0),
                crate::support::raw_client::close('S', "s"),
                sync(),
            ]),
        ),
        ("routine", function_call(1397, &[])),
    ]
}

#[tokio::test]
async fn a_pin_too_many_is_refused_before_its_statement_runs_and_the_client_goes_on() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar(&database, "3", "1").await;
    let mut first = login(&sidecar, &database).await;
    first.ask("CREATE TABLE kept (n int)").await;
    assert_eq!(tags(&first.ask("SELECT pg_advisory_lock(7)").await), "TDCZ");
    let mut second = login(&sidecar, &database).await;
    for (reason, request) in pinning() {
        let labels = [("reason", reason)];
        let before = sidecar.metric("pgsidecar_pins_refused_total", &labels).await.unwrap();
        // Between transactions, with a request behind it.
        second.send(&together(&[request, query("SELECT 'behind'")])).await;
        let answer = second.until_ready().await;
        let refused = answer
            .iter()
            .find(|message| message.tag == b'E')
            .expect(reason)
            .report();
        assert_eq!(refused.sqlstate.as_str(), "53400", "{reason}: {}", shown(&answer));
        assert!(refused.detail.is_some_and(|detail| detail.contains(reason)));
        assert!(refused.hint.is_some_and(|hint| hint.contains("pool.max_pinned")));
        assert_eq!(answer.last().unwrap().body[..], b"I"[..], "{reason}");
        assert_eq!(
            second.until_ready().await[1].row(),
            [Some("behind".to_owned())],
            "{reason}"
        );
        sidecar
            .wait_metric("pgsidecar_pins_refused_total", &labels, |count| count == before + 1.0)
            .await;
    }
    sidecar.wait_for_log("beyond pool.max_pinned").await;
    assert_eq!(
        second.value("SELECT count(*) FROM kept").await,
        "0",
        "nothing of it was run"
    );
    assert_eq!(
        second
            .value("SELECT count(*) FROM pg_prepared_statements WHERE name = 'p'")
            .await,
        "0"
    );
    // The first goes on pinning as it likes, and when it is done others may.
    assert_eq!(tags(&first.ask("CREATE TEMP TABLE t (n int)").await), "CZ");
    drop(first);
    crate::support::eventually("the place is free", async || {
        (tags(&second.ask("CREATE TEMP TABLE t (n int)").await) == "CZ").then_some(())
    })
    .await;
    assert_eq!(tags(&second.ask("SELECT pg_advisory_lock(7)").await), "TDCZ");
}

#[tokio::test]
async fn in_a_block_the_refusal_fails_the_block_as_any_error_would() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar(&database, "3", "0").await;
    let mut client = login(&sidecar, &database).await;
    client.ask("CREATE TABLE kept (n int)").await;
    for (reason, request) in pinning() {
        client.ask("BEGIN").await;
        client.ask("INSERT INTO kept VALUES (1)").await;
        client.send(&request).await;
        let answer = client.until_ready().await;
        assert_eq!(
            answer.last().unwrap().body[..],
            b"E"[..],
            "{reason}: {}",
            shown(&answer)
        );
        // Where the block is failed already, that is what the client hears.
        client.send(&request).await;
        let answer = client.until_ready().await;
        let refused = answer
            .iter()
            .find(|message| message.tag == b'E')
            .expect(reason)
            .report();
        assert_eq!(refused.sqlstate.as_str(), "25P02", "{reason}");
        assert_eq!(client.ask("COMMIT").await[0].command(), "ROLLBACK", "{reason}");
    }
    client.ask("BEGIN").await;
    client.ask("SAVEPOINT s").await;
    client.ask("CREATE TEMP TABLE t (n int)").await;
    client.ask("ROLLBACK TO s").await;
    client.ask("INSERT INTO kept VALUES (1)").await;
    assert_eq!(client.ask("COMMIT").await[0].command(), "COMMIT");
    assert_eq!(client.value("SELECT count(*) FROM kept").await, "1");
    assert_eq!(sidecar.metric("pgsidecar_pins_total", &[]).await, Some(0.0));
    // Behind a ROLLBACK on its way the status is awaited.
    client
        .send(&together(&[
            query("BEGIN"),
            query("SELECT 1/0"),
            query("ROLLBACK"),
            query("CREATE TEMP TABLE t (n int)"),
            query("SELECT 1"),
        ]))
        .await;
    client.expect("C Z E Z C Z").await;
    assert_eq!(client.until_ready().await[0].sqlstate(), "53400");
    client.expect("T D C Z").await;
}

#[tokio::test]
async fn nothing_is_refused_by_default_nor_in_session_mode() {
    let database = Postgres::shared().create_database();
    let defaults = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "1")
        .start_ready()
        .await;
    let of_sessions = Sidecar::builder(&database)
        .set("POOL__MODE", "session")
        .set("POOL__MAX_PINNED", "0")
        .start_ready()
        .await;
    for sidecar in [defaults, of_sessions] {
        let mut client = login(&sidecar, &database).await;
        assert_eq!(tags(&client.ask("CREATE TEMP TABLE t (n int)").await), "CZ");
        // One that waits for a backend to pin is served when there is one.
        let mut next = login(&sidecar, &database).await;
        next.query("SELECT pg_advisory_lock(9)").await;
        drop(client);
        assert_eq!(tags(&next.until_ready().await), "TDCZ");
    }
}

#[tokio::test]
async fn what_does_not_pin_is_no_concern_of_the_quota() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar(&database, "2", "0").await;
    let mut client = login(&sidecar, &database).await;
    for sql in [
        "SET work_mem = '7MB'",
        "SET app.tenant_id = 'mine'",
        "LISTEN channel",
        "CREATE SEQUENCE s; SELECT nextval('s'); SELECT lastval()",
        "SELECT nextval('s')",
        "SELECT lastval()",
        "DISCARD ALL",
    ] {
        let answer = client.ask(sql).await;
        assert!(!tags(&answer).contains('E'), "{sql}: {}", shown(&answer));
    }
}
