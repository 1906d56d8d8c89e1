//! Protocol-level prepared statements, named and unnamed, over backends that change.

use crate::support::postgres::{Database, PASSWORD, Postgres, USER};
use crate::support::raw_client::{RawClient, bind, close, describe, execute, parse, sync, tags, together};
use crate::support::sidecar::Sidecar;

/// Two backends, and a client that occupies the one that was used last: the next request goes to the other.
async fn two_backends(database: &Database) -> Sidecar {
    Sidecar::builder(database)
        .set("POOL__MAX_SIZE", "2")
        .start_ready()
        .await
}

#[tokio::test]
async fn a_named_statement_follows_its_client_to_another_backend() {
    let database = Postgres::shared().create_database();
    let sidecar = two_backends(&database).await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    client
        .send(&together(&[
            parse("s", "SELECT pg_backend_pid()::text"),
            bind("", "s", &[]),
            execute("", 0),
            sync(),
        ]))
        .await;
    let first = client.expect("1 2 D C Z").await[2].row();
    let mut occupier = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    occupier.ask("BEGIN").await;
    assert_eq!(
        Some(occupier.value("SELECT pg_backend_pid()").await),
        first[0],
        "the backend used last is hot"
    );
    client
        .send(&together(&[bind("", "s", &[]), execute("", 0), sync()]))
        .await;
    assert_ne!(client.expect("2 D C Z").await[1].row(), first);
}

#[tokio::test]
async fn trap_29_the_unnamed_statement_survives_a_sync() {
    let database = Postgres::shared().create_database();
    let sidecar = two_backends(&database).await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    client
        .send(&together(&[parse("", "SELECT $1::int + 1"), describe('S', ""), sync()]))
        .await;
    client.expect("1 t T Z").await;
    let mut occupier = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    occupier.ask("BEGIN").await;
    client
        .send(&together(&[bind("", "", &["41"]), execute("", 0), sync()]))
        .await;
    assert_eq!(client.expect("2 D C Z").await[1].row(), [Some("42".to_owned())]);
}

#[tokio::test]
async fn trap_24_unknown_and_duplicate_names_are_errors_that_the_connection_survives() {
    let database = Postgres::shared().create_database();
    let sidecar = two_backends(&database).await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    client
        .send(&together(&[bind("", "unknown", &[]), execute("", 0), sync()]))
        .await;
    assert_eq!(client.expect("E Z").await[0].sqlstate(), "26000");
    client
        .send(&together(&[
            parse("s", "SELECT 1"),
            sync(),
            parse("s", "SELECT 2"),
            sync(),
        ]))
        .await;
    assert_eq!(client.expect("1 Z E Z").await[2].sqlstate(), "42P05");
    client
        .send(&together(&[bind("", "s", &[]), execute("", 0), sync()]))
        .await;
    assert_eq!(client.expect("2 D C Z").await[1].row(), [Some("1".to_owned())]);
}

#[tokio::test]
async fn trap_23_closing_an_unknown_statement_succeeds() {
    let database = Postgres::shared().create_database();
    let sidecar = two_backends(&database).await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    client
        .send(&together(&[close('S', "unknown"), close('P', "unknown"), sync()]))
        .await;
    client.expect("3 3 Z").await;
}

#[tokio::test]
async fn two_clients_use_one_name_for_different_statements() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "1")
        .start_ready()
        .await;
    let mut first = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    let mut second = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    first.send(&together(&[parse("s", "SELECT 'first'"), sync()])).await;
    first.expect("1 Z").await;
    second.send(&together(&[parse("s", "SELECT 'second'"), sync()])).await;
    second.expect("1 Z").await;
    for (client, expected) in [(&mut first, "first"), (&mut second, "second")] {
        client
            .send(&together(&[bind("", "s", &[]), execute("", 0), sync()]))
            .await;
        assert_eq!(client.expect("2 D C Z").await[1].row(), [Some(expected.to_owned())]);
    }
}

#[tokio::test]
async fn trap_13_many_syncs_in_flight_are_answered_in_order() {
    let database = Postgres::shared().create_database();
    let sidecar = two_backends(&database).await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    let mut batch = Vec::new();
    for number in 0..50 {
        let sql = format!("SELECT {number}");
        batch.extend([parse("", &sql), bind("", "", &[]), execute("", 0), sync()]);
    }
    client.send(&together(&batch)).await;
    for number in 0..50 {
        let answer = client.until_ready().await;
        assert_eq!(tags(&answer), "12DCZ");
        assert_eq!(answer[2].row(), [Some(number.to_string())]);
    }
}

#[tokio::test]
async fn trap_14_an_error_skips_to_sync_and_the_next_batch_runs() {
    let database = Postgres::shared().create_database();
    let sidecar = two_backends(&database).await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    let failing = [
        parse("", "SELECT 1/0"),
        bind("", "", &[]),
        execute("", 0),
        parse("", "SELECT 1"),
        sync(),
    ];
    client.send(&together(&failing)).await;
    client
        .send(&together(&[
            parse("", "SELECT 2"),
            bind("", "", &[]),
            execute("", 0),
            sync(),
        ]))
        .await;
    client.expect("1").await;
    // PostgreSQL folds 1/0 while planning at Bind, so whether BindComplete comes first is its business.
    let rest = tags(&client.until_ready().await);
    assert!(rest == "EZ" || rest == "2EZ", "{rest}");
    client.expect("1 2 D C Z").await;
}

#[tokio::test]
async fn trap_31_a_text_prepared_anew_knows_the_changed_table() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "1")
        .start_ready()
        .await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    client.ask("CREATE TABLE changing (x int)").await;
    let prepare = |name: &str| together(&[parse(name, "SELECT * FROM changing"), sync()]);
    let run = |name: &str| together(&[bind("", name, &[]), execute("", 0), sync()]);
    client.send(&prepare("old")).await;
    client.expect("1 Z").await;
    client.send(&run("old")).await;
    client.expect("2 C Z").await;
    // Over a connection that pgsidecar knows nothing of.
    Postgres::shared().psql(&database.name, "ALTER TABLE changing ADD y int");
    client.send(&run("old")).await;
    assert_eq!(client.expect("E Z").await[0].sqlstate(), "0A000");
    let other = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    for mut client in [client, other] {
        client.send(&prepare("new")).await;
        client.expect("1 Z").await;
        client.send(&run("new")).await;
        client.expect("2 C Z").await;
    }
}
