//! Protocol-level prepared statements, named and unnamed, over backends that change.

use crate::support::postgres::{Database, PASSWORD, Postgres, USER};
use crate::support::raw_client::{
    RawClient, bind, close, describe, execute, flush, parse, query, sync, tags, together,
};
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

/// A client whose startup settings differ: used in turn with another, it makes every backend change its settings.
async fn client_with(sidecar: &Sidecar, database: &Database, settings: &[(&str, &str)]) -> RawClient {
    let mut client = RawClient::connect(sidecar.port).await;
    let settings = [&[("database", database.name.as_str())], settings].concat();
    client
        .log_in(USER, PASSWORD, &settings)
        .await
        .expect("the login succeeds");
    client
}

async fn one_backend(database: &Database) -> Sidecar {
    Sidecar::builder(database)
        .set("POOL__MAX_SIZE", "1")
        .start_ready()
        .await
}

fn run(statement: &str) -> [bytes::BytesMut; 3] {
    [bind("", statement, &[]), execute("", 0), sync()]
}

const LITERAL: &str = "SELECT (timestamptz '2024-03-01 12:00:00' AT TIME ZONE 'UTC')::text";

#[tokio::test]
async fn trap_28_a_literal_means_what_it_meant_when_it_was_parsed() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let mut utc = client_with(&sidecar, &database, &[("TimeZone", "UTC")]).await;
    let mut shanghai = client_with(&sidecar, &database, &[("TimeZone", "Asia/Shanghai")]).await;
    for (client, expected) in [
        (&mut utc, "2024-03-01 12:00:00"),
        (&mut shanghai, "2024-03-01 04:00:00"),
    ] {
        client
            .send(&together(&[&[parse("s", LITERAL)], &run("s")[..]].concat()))
            .await;
        assert_eq!(client.expect("1 2 D C Z").await[2].row(), [Some(expected.to_owned())]);
    }
    // The name still stands for what was parsed under UTC, on this backend and on one that must parse it again.
    utc.ask("SET TimeZone = 'Asia/Shanghai'").await;
    let backend = utc.value("SELECT pg_backend_pid()").await;
    utc.send(&together(&run("s"))).await;
    assert_eq!(
        utc.expect("2 D C Z").await[1].row(),
        [Some("2024-03-01 12:00:00".to_owned())]
    );
    let ended = utc.ask("SELECT pg_terminate_backend(pg_backend_pid())").await;
    assert!(tags(&ended).ends_with("EZ"));
    assert_ne!(utc.value("SELECT pg_backend_pid()").await, backend);
    utc.send(&together(&run("s"))).await;
    assert_eq!(
        utc.expect("2 D C Z").await[1].row(),
        [Some("2024-03-01 12:00:00".to_owned())]
    );
    assert_eq!(utc.value("SHOW TimeZone").await, "Asia/Shanghai");
    // And nobody else's statement was spoilt by that.
    let mut third = client_with(&sidecar, &database, &[("TimeZone", "Asia/Shanghai")]).await;
    third
        .send(&together(&[&[parse("t", LITERAL)], &run("t")[..]].concat()))
        .await;
    assert_eq!(
        third.expect("1 2 D C Z").await[2].row(),
        [Some("2024-03-01 04:00:00".to_owned())]
    );
}

/// PostgreSQL reads a text again where its path of schemas is another; what others share of it must not be read by the
/// settings of the one.
#[tokio::test]
async fn trap_28_a_constant_that_is_read_again_for_one_client_stays_for_others() {
    let database = Postgres::shared().create_database();
    Postgres::shared().psql(
        &database.name,
        "CREATE SCHEMA aside; GRANT USAGE ON SCHEMA aside TO PUBLIC",
    );
    let sidecar = one_backend(&database).await;
    let utc: &[(&str, &str)] = &[("TimeZone", "UTC")];
    let mut one = client_with(&sidecar, &database, utc).await;
    let mut other = client_with(&sidecar, &database, utc).await;
    for client in [&mut one, &mut other] {
        client.send(&together(&[parse("s", LITERAL), sync()])).await;
        client.expect("1 Z").await;
    }
    one.ask("SET search_path = aside, public").await;
    one.ask("SET TimeZone = 'Asia/Shanghai'").await;
    other.ask("SET TimeZone = 'America/New_York'").await;
    for (client, expected) in [(&mut one, "2024-03-01 04:00:00"), (&mut other, "2024-03-01 12:00:00")] {
        client.send(&together(&run("s"))).await;
        assert_eq!(client.expect("2 D C Z").await[1].row(), [Some(expected.to_owned())]);
    }
}

#[tokio::test]
async fn trap_28_behind_a_text_that_pins_a_constant_is_read_again_too() {
    let database = Postgres::shared().create_database();
    Postgres::shared().psql(
        &database.name,
        "CREATE SCHEMA aside; GRANT USAGE ON SCHEMA aside TO PUBLIC",
    );
    let sidecar = one_backend(&database).await;
    let mut client = client_with(&sidecar, &database, &[("TimeZone", "UTC")]).await;
    client.send(&together(&[parse("s", LITERAL), sync()])).await;
    client.expect("1 Z").await;
    client.ask("SET search_path = aside, public").await;
    client.ask("SET TimeZone = 'Asia/Shanghai'").await;
    client.ask("SELEC").await;
    assert_eq!(client.value("EXECUTE s").await, "2024-03-01 04:00:00");
}

/// Ends the client's backend, so that the next request is another's.
async fn lose_backend(client: &mut RawClient) {
    let ended = client.ask("SELECT pg_terminate_backend(pg_backend_pid())").await;
    assert!(tags(&ended).ends_with("EZ"));
}

#[tokio::test]
async fn trap_28_a_statement_between_two_sets_of_one_burst_keeps_what_the_first_made_of_it() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let mut client = client_with(&sidecar, &database, &[("TimeZone", "UTC")]).await;
    let shanghai = || query("SET TimeZone = 'Asia/Shanghai'");
    let prepare = || together(&[parse("s", LITERAL), sync()]);
    client
        .send(&together(&[shanghai(), prepare(), query("SET TimeZone = 'UTC'")]))
        .await;
    client.expect("C S Z 1 Z C S Z").await;
    for _ in 0..2 {
        client.send(&together(&run("s"))).await;
        let row = client.expect("2 D C Z").await[1].row();
        assert_eq!(row, [Some("2024-03-01 04:00:00".to_owned())]);
        lose_backend(&mut client).await;
    }
}

#[tokio::test]
async fn trap_28_a_statement_that_is_taught_behind_a_set_keeps_its_own_meaning() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    for (name, prepared, behind) in [
        ("s", parse("s", LITERAL), vec![query("SET TimeZone = 'Asia/Shanghai'")]),
        (
            "",
            parse("", LITERAL),
            [&[parse("set", "SET TimeZone = 'Asia/Shanghai'")], &run("set")[..]].concat(),
        ),
    ] {
        let mut client = client_with(&sidecar, &database, &[("TimeZone", "UTC")]).await;
        client.send(&together(&[prepared, sync()])).await;
        client.expect("1 Z").await;
        // By protocol, because a Query would end the unnamed statement.
        let end = [
            parse("end", "SELECT pg_terminate_backend(pg_backend_pid())"),
            bind("", "end", &[]),
            execute("", 0),
            close('S', "end"),
            sync(),
        ];
        client.send(&together(&end)).await;
        client.until_ready().await;
        let used = [behind, run(name).to_vec()].concat();
        client.send(&together(&used)).await;
        client.until_ready().await;
        let row = client.expect("2 D C Z").await[1].row();
        assert_eq!(row, [Some("2024-03-01 12:00:00".to_owned())], "of {name:?}");
    }
}

/// What DEALLOCATE ALL has taken away does not come back when a Close behind it is never reached.
#[tokio::test]
async fn trap_30_a_skipped_close_brings_nothing_back_that_was_deallocated_before_it() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let mut client = client_with(&sidecar, &database, &[]).await;
    client.send(&together(&[parse("s", "SELECT 1"), sync()])).await;
    client.expect("1 Z").await;
    let group = [
        parse("", "DEALLOCATE ALL"),
        bind("", "", &[]),
        execute("", 0),
        execute("nosuch", 0),
        close('S', "s"),
        sync(),
    ];
    client.send(&together(&group)).await;
    client.expect("1 2 C E Z").await;
    client.send(&together(&run("s"))).await;
    assert_eq!(client.expect("E Z").await[0].sqlstate(), "26000");
}

/// What would stand ahead of it to make its old settings would make a pipeline of it, in which it refuses to run.
#[tokio::test]
async fn trap_28_a_command_that_must_stand_alone_is_taught_without_settings() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    for name in ["s", ""] {
        let mut client = client_with(&sidecar, &database, &[]).await;
        let change = "SET TimeZone = 'Asia/Shanghai'";
        client
            .send(&together(
                &[&[parse("set", change), parse(name, "DISCARD ALL")], &run("set")[..]].concat(),
            ))
            .await;
        client.expect("1 1 2 C S Z").await;
        // Another client replaces the unnamed statement, and DISCARD ALL drops the named ones.
        let mut other = client_with(&sidecar, &database, &[]).await;
        other.ask("DISCARD ALL").await;
        client.send(&together(&run(name))).await;
        assert_eq!(client.expect("2 C S Z").await[1].command(), "DISCARD ALL");
    }
}

#[tokio::test]
async fn trap_28_what_is_set_locally_stays_out_of_shared_statements() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let mut first = client_with(&sidecar, &database, &[]).await;
    let mut second = client_with(&sidecar, &database, &[]).await;
    first.ask("CREATE SCHEMA aside").await;
    first
        .ask("CREATE TABLE which AS SELECT 'public' AS it; CREATE TABLE aside.which AS SELECT 'aside' AS it")
        .await;
    first
        .send(&query(
            "BEGIN; SET LOCAL search_path = aside, public; SET LOCAL TimeZone = 'Asia/Shanghai'",
        ))
        .await;
    first.until_ready().await;
    let both = "SELECT it || (timestamptz '2024-03-01 12:00:00' AT TIME ZONE 'UTC')::text FROM which";
    first
        .send(&together(&[&[parse("s", both)], &run("s")[..]].concat()))
        .await;
    assert_eq!(
        first.expect("1 2 D C Z").await[2].row(),
        [Some("aside2024-03-01 04:00:00".to_owned())]
    );
    first.ask("COMMIT").await;
    second
        .send(&together(&[&[parse("s", both)], &run("s")[..]].concat()))
        .await;
    assert_eq!(
        second.expect("1 2 D C Z").await[2].row(),
        [Some("public2024-03-01 12:00:00".to_owned())]
    );
}

#[tokio::test]
async fn trap_29_another_clients_unnamed_statement_is_never_reached() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let mut owner = client_with(&sidecar, &database, &[]).await;
    let mut other = client_with(&sidecar, &database, &[]).await;
    let attempts: [&[bytes::BytesMut]; 5] = [
        &[],
        // Each of these would have replaced or ended the unnamed statement, had its group not failed before.
        &[bind("", "nosuch", &[]), parse("", "SELECT 'own'"), sync()],
        &[bind("", "nosuch", &[]), query("SELECT 1"), sync()],
        &[bind("", "nosuch", &[]), close('S', ""), sync()],
        &[parse("", "SELECT nonsense"), sync()],
    ];
    for before in attempts {
        owner.send(&together(&[parse("", "SELECT 'secret'"), sync()])).await;
        owner.expect("1 Z").await;
        // Sent as one, so that the second group is decided on before the first is answered.
        other.send(&together(&[before, &run("")[..]].concat())).await;
        for _ in 0..=usize::from(!before.is_empty()) {
            let answer = other.until_ready().await;
            let codes: Vec<_> = answer.iter().filter(|message| message.tag == b'E').collect();
            assert_eq!((tags(&answer).as_str(), codes.len()), ("EZ", 1));
        }
        other.send(&together(&[describe('S', ""), sync()])).await;
        assert_eq!(other.expect("E Z").await[0].sqlstate(), "26000");
        owner.send(&together(&run(""))).await;
        assert_eq!(owner.expect("2 D C Z").await[1].row(), [Some("secret".to_owned())]);
    }
}

#[tokio::test]
async fn trap_30_sql_and_protocol_share_the_names_of_statements() {
    let database = Postgres::shared().create_database();
    let sidecar = two_backends(&database).await;
    let mut client = client_with(&sidecar, &database, &[]).await;
    let prepare = |name: &str| together(&[parse(name, "SELECT 42"), sync()]);
    client.send(&prepare("s")).await;
    client.expect("1 Z").await;
    assert_eq!(client.ask("DEALLOCATE s").await[0].command(), "DEALLOCATE");
    client.send(&together(&run("s"))).await;
    assert_eq!(client.expect("E Z").await[0].sqlstate(), "26000");
    assert_eq!(client.ask("DEALLOCATE s").await[0].sqlstate(), "26000");
    client.send(&prepare("s")).await;
    client
        .send(&together(&[&[parse("", "DEALLOCATE s")], &run("")[..]].concat()))
        .await;
    client.send(&together(&run("s"))).await;
    assert_eq!(client.expect("1 Z 1 2 C Z E Z").await[6].sqlstate(), "26000");
    for all in ["DEALLOCATE ALL", "DISCARD ALL"] {
        client.send(&prepare("s")).await;
        client.expect("1 Z").await;
        assert_eq!(client.ask(all).await[0].command(), all);
        client.send(&prepare("s")).await;
        client
            .send(&together(&[&[parse("", all)], &run("")[..]].concat()))
            .await;
        client.send(&prepare("s")).await;
        client.send(&together(&run("s"))).await;
        client.expect("1 Z 1 2 C Z 1 Z 2 D C Z").await;
        client.ask("DEALLOCATE ALL").await;
    }
    client.send(&prepare("s")).await;
    client.expect("1 Z").await;
    assert_eq!(client.value("EXECUTE s").await, "42");
    assert_eq!(client.ask("PREPARE s AS SELECT 1").await[0].sqlstate(), "42P05");
    client.send(&together(&run("s"))).await;
    client.expect("2 D C Z").await;
}

#[tokio::test]
async fn trap_30_a_deallocate_that_a_failed_block_refuses_takes_nothing_away() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let mut client = client_with(&sidecar, &database, &[]).await;
    client.send(&together(&[parse("s", "SELECT 1"), sync()])).await;
    client.expect("1 Z").await;
    client.ask("BEGIN").await;
    client.ask("SELECT 1/0").await;
    assert_eq!(client.ask("DEALLOCATE s").await[0].sqlstate(), "25P02");
    client.ask("ROLLBACK").await;
    client.send(&together(&[parse("s", "SELECT 2"), sync()])).await;
    assert_eq!(client.expect("E Z").await[0].sqlstate(), "42P05");
    client.send(&together(&run("s"))).await;
    client.expect("2 D C Z").await;
    // As long as its statement is on the backend under its own name, too.
    client.ask("BEGIN").await;
    client.ask("SELECT 1/0").await;
    client
        .send(&together(
            &[&[parse("", "ROLLBACK")], &run("")[..], &[query("DEALLOCATE s")]].concat(),
        ))
        .await;
    client.expect("1 2 C Z C Z").await;
    client.send(&together(&run("s"))).await;
    assert_eq!(client.expect("E Z").await[0].sqlstate(), "26000");
}

/// A name that the backend knows as the client says it, because SQL made or meant it, is taken for a Parse as well.
#[tokio::test]
async fn trap_30_a_name_that_sql_has_taken_is_taken() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let mut client = client_with(&sidecar, &database, &[]).await;
    client.ask("PREPARE s AS SELECT 1").await;
    client.send(&together(&[parse("s", "SELECT 2"), sync()])).await;
    assert_eq!(client.expect("E Z").await[0].sqlstate(), "42P05");
    client.send(&together(&run("s"))).await;
    assert_eq!(client.expect("2 D C Z").await[1].row(), [Some("1".to_owned())]);
    client.ask("DEALLOCATE s").await;
    client
        .send(&together(&[&[parse("s", "SELECT 2")], &run("s")[..]].concat()))
        .await;
    assert_eq!(client.expect("1 2 D C Z").await[2].row(), [Some("2".to_owned())]);
    // An empty statement is parsed even in a failed block, where the DEALLOCATE is refused.
    let mut other = client_with(&sidecar, &database, &[]).await;
    client.ask("DISCARD ALL").await;
    other.send(&together(&[parse("e", ""), sync()])).await;
    other.expect("1 Z").await;
    other.ask("BEGIN").await;
    other.ask("SELECT 1/0").await;
    assert_eq!(other.ask("DEALLOCATE e").await[0].sqlstate(), "25P02");
    other.ask("ROLLBACK").await;
    other.send(&together(&[parse("e", "SELECT 2"), sync()])).await;
    assert_eq!(other.expect("E Z").await[0].sqlstate(), "42P05");
}

/// What one client deallocates or discards is gone for it alone: other clients' statements are made again.
#[tokio::test]
async fn trap_30_nobody_else_misses_what_a_client_discards() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let mut first = client_with(&sidecar, &database, &[]).await;
    let mut second = client_with(&sidecar, &database, &[]).await;
    for client in [&mut first, &mut second] {
        client.send(&together(&[parse("s", "SELECT 42"), sync()])).await;
        client.expect("1 Z").await;
    }
    for (extended, all) in [
        (false, "DEALLOCATE ALL"),
        (true, "DEALLOCATE ALL"),
        (false, "DISCARD ALL"),
        (true, "DISCARD ALL"),
    ] {
        if extended {
            second
                .send(&together(&[&[parse("", all)], &run("")[..]].concat()))
                .await;
            second.expect("1 2 C Z").await;
        } else {
            second.ask(all).await;
        }
        first.send(&together(&run("s"))).await;
        first.expect("2 D C Z").await;
    }
}

/// A table that is changed past pgsidecar, so that only PostgreSQL's own words tell.
struct ChangingTable {
    database: Database,
    columns: u32,
}

impl ChangingTable {
    async fn new() -> Self {
        let database = Postgres::shared().create_database();
        let (psql, name) = (Postgres::shared(), &database.name);
        psql.psql(name, "CREATE TABLE changing (x int); GRANT ALL ON changing TO PUBLIC");
        Self { database, columns: 1 }
    }

    fn change(&mut self) {
        self.columns += 1;
        let sql = format!("ALTER TABLE changing ADD column_{} int", self.columns);
        Postgres::shared().psql(&self.database.name, &sql);
    }
}

const ALL_COLUMNS: &str = "SELECT * FROM changing";

/// How many columns a statement returns.
async fn columns(client: &mut RawClient, statement: &str) -> usize {
    client
        .send(&together(&[
            bind("", statement, &[]),
            describe('P', ""),
            execute("", 0),
            sync(),
        ]))
        .await;
    let answer = client.expect("2 T C Z").await;
    usize::from(u16::from_be_bytes([answer[1].body[0], answer[1].body[1]]))
}

async fn is_refused(client: &mut RawClient, statement: &str) {
    client.send(&together(&run(statement))).await;
    let report = client.expect("E Z").await[0].report();
    assert_eq!(report.sqlstate.as_str(), "0A000");
    assert_eq!(report.message, "cached plan must not change result type");
}

#[tokio::test]
async fn trap_31_a_statement_that_sharing_made_stale_is_parsed_again_unseen() {
    let mut table = ChangingTable::new().await;
    let sidecar = one_backend(&table.database).await;
    let mut first = client_with(&sidecar, &table.database, &[]).await;
    first.send(&together(&[parse("s", ALL_COLUMNS), sync()])).await;
    first.expect("1 Z").await;
    first.send(&together(&run("s"))).await;
    first.expect("2 C Z").await;
    table.change();
    // Prepared after the change, of which the shared statement knows nothing; described or bound first.
    let mut second = client_with(&sidecar, &table.database, &[]).await;
    second
        .send(&together(&[parse("t", ALL_COLUMNS), describe('S', "t"), sync()]))
        .await;
    let answer = second.expect("1 t T Z").await;
    assert_eq!(answer[2].body[..2], [0, 2]);
    assert_eq!(columns(&mut second, "t").await, 2);
    table.change();
    let mut third = client_with(&sidecar, &table.database, &[]).await;
    third
        .send(&together(&[&[parse("u", ALL_COLUMNS)], &run("u")[..]].concat()))
        .await;
    third.expect("1 2 C Z").await;
    // Prepared before, but never told any columns.
    assert_eq!(columns(&mut first, "s").await, 3);
}

/// The Sync comes when the group has failed already: what was sent without it is begun again all the same.
#[tokio::test]
async fn trap_31_a_group_whose_sync_is_still_to_come_begins_again() {
    let mut table = ChangingTable::new().await;
    let sidecar = one_backend(&table.database).await;
    let mut client = client_with(&sidecar, &table.database, &[]).await;
    client.send(&together(&[parse("s", ALL_COLUMNS), sync()])).await;
    client.expect("1 Z").await;
    table.change();
    client.send(&together(&[bind("", "s", &[]), flush()])).await;
    client.expect("2").await;
    client.send(&together(&[execute("", 0), sync()])).await;
    client.expect("C Z").await;
}

#[tokio::test]
async fn trap_31_what_is_begun_again_runs_once() {
    let mut table = ChangingTable::new().await;
    let sidecar = one_backend(&table.database).await;
    let mut client = client_with(&sidecar, &table.database, &[("TimeZone", "Asia/Tokyo")]).await;
    let insert = "INSERT INTO changing VALUES (1) RETURNING *";
    client.send(&together(&[parse("s", insert), sync()])).await;
    client.expect("1 Z").await;
    table.change();
    // Other settings, so that a prelude stands before it.
    let mut other = client_with(&sidecar, &table.database, &[]).await;
    other.ask("SELECT 1").await;
    client.send(&together(&run("s"))).await;
    assert_eq!(
        client.expect("2 D C Z").await[1].row(),
        [Some("1".to_owned()), None],
        "as the table is now"
    );
    assert_eq!(client.value("SELECT count(*) FROM changing").await, "1");
    assert_eq!(client.value("SHOW TimeZone").await, "Asia/Tokyo");
}

/// The promise of PostgreSQL, on which drivers rely that ask once for a statement's columns.
#[tokio::test]
async fn trap_31_a_client_that_was_told_other_columns_is_refused_as_by_postgresql() {
    let mut table = ChangingTable::new().await;
    let sidecar = one_backend(&table.database).await;
    let mut by_statement = client_with(&sidecar, &table.database, &[]).await;
    let mut by_portal = client_with(&sidecar, &table.database, &[]).await;
    by_statement
        .send(&together(&[parse("s", ALL_COLUMNS), describe('S', "s"), sync()]))
        .await;
    by_statement.expect("1 t T Z").await;
    by_portal.send(&together(&[parse("p", ALL_COLUMNS), sync()])).await;
    by_portal.expect("1 Z").await;
    assert_eq!(columns(&mut by_portal, "p").await, 1);
    table.change();
    for (client, name) in [(&mut by_statement, "s"), (&mut by_portal, "p")] {
        is_refused(client, name).await;
        client.send(&together(&[describe('S', name), sync()])).await;
        assert_eq!(client.expect("E Z").await[0].sqlstate(), "0A000");
        // Whatever the backend: this one has never held the statement.
        lose_backend(client).await;
        is_refused(client, name).await;
        // In a block too, which fails.
        client.ask("BEGIN").await;
        is_refused(client, name).await;
        assert_eq!(client.ask("SELECT 1").await[0].sqlstate(), "25P02");
        client.ask("ROLLBACK").await;
        // What a driver does about it.
        client
            .send(&together(&[close('S', name), parse(name, ALL_COLUMNS), sync()]))
            .await;
        client.expect("3 1 Z").await;
        assert_eq!(columns(client, name).await, 2);
    }
}

#[tokio::test]
async fn trap_31_a_client_that_was_told_these_columns_is_served_by_a_stale_backend() {
    let mut table = ChangingTable::new().await;
    let sidecar = two_backends(&table.database).await;
    let mut first = client_with(&sidecar, &table.database, &[]).await;
    first.send(&together(&[parse("s", ALL_COLUMNS), sync()])).await;
    first.expect("1 Z").await;
    let stale = first.value("SELECT pg_backend_pid()").await;
    table.change();
    // Told on another backend, which parses it anew.
    first.ask("BEGIN").await;
    assert_eq!(first.value("SELECT pg_backend_pid()").await, stale);
    let mut second = client_with(&sidecar, &table.database, &[]).await;
    second
        .send(&together(&[parse("t", ALL_COLUMNS), describe('S', "t"), sync()]))
        .await;
    second.expect("1 t T Z").await;
    let fresh = second.value("SELECT pg_backend_pid()").await;
    assert_ne!(fresh, stale);
    let mut third = client_with(&sidecar, &table.database, &[]).await;
    third.ask("BEGIN").await;
    assert_eq!(third.value("SELECT pg_backend_pid()").await, fresh);
    first.ask("COMMIT").await;
    second.send(&together(&run("t"))).await;
    second.expect("2 C Z").await;
    assert_eq!(second.value("SELECT pg_backend_pid()").await, stale);
}

/// A second try would repeat what has run, or overtake what stands behind.
#[tokio::test]
async fn trap_31_what_cannot_begin_again_fails_once_and_works_from_then_on() {
    let mut table = ChangingTable::new().await;
    let sidecar = one_backend(&table.database).await;
    let mut client = client_with(&sidecar, &table.database, &[]).await;
    let insert = "INSERT INTO changing VALUES (1)";
    client
        .send(&together(&[
            parse("s", ALL_COLUMNS),
            parse("insert", insert),
            parse("count", "SELECT count(*) FROM changing"),
            sync(),
        ]))
        .await;
    client.expect("1 1 1 Z").await;
    let insert_first = [bind("", "insert", &[]), execute("", 0)];
    let one_behind = run("insert");
    let cases: [(&[bytes::BytesMut], &[bytes::BytesMut], &str, &str); 2] = [
        (&insert_first, &[], "2 C E Z", "0"),
        (&[], &one_behind, "E Z 2 C Z", "1"),
    ];
    for (before, behind, expected, rows) in cases {
        table.change();
        client.send(&together(&[before, &run("s"), behind].concat())).await;
        let answer = client.expect(expected).await;
        let error = answer.iter().find(|message| message.tag == b'E').unwrap();
        assert_eq!(error.sqlstate(), "0A000");
        client.send(&together(&run("count"))).await;
        let count = client.expect("2 D C Z").await[1].row();
        assert_eq!(count, [Some(rows.to_owned())]);
        client.ask("DELETE FROM changing").await;
        client.send(&together(&run("s"))).await;
        client.expect("2 C Z").await;
    }
    table.change();
    client.ask("BEGIN").await;
    client.send(&together(&run("s"))).await;
    assert_eq!(client.expect("E Z").await[0].sqlstate(), "0A000");
    client.ask("ROLLBACK").await;
    client.ask("BEGIN").await;
    client.send(&together(&run("s"))).await;
    client.expect("2 C Z").await;
    client.ask("COMMIT").await;
}

/// A change that passes pgsidecar is known before PostgreSQL has to refuse anything, in a block too.
#[tokio::test]
async fn trap_31_after_a_change_that_passed_statements_are_parsed_again_before_their_use() {
    let table = ChangingTable::new().await;
    let sidecar = two_backends(&table.database).await;
    let mut first = client_with(&sidecar, &table.database, &[]).await;
    let mut second = client_with(&sidecar, &table.database, &[]).await;
    first.ask("CREATE TABLE own (x int)").await;
    first.send(&together(&[parse("s", "SELECT * FROM own"), sync()])).await;
    first.expect("1 Z").await;
    second.ask("ALTER TABLE own ADD y int").await;
    first.ask("BEGIN").await;
    assert_eq!(columns(&mut first, "s").await, 2);
    // By its own change as well.
    first.ask("COMMIT").await;
    first.ask("BEGIN").await;
    first.ask("ALTER TABLE own ADD z int").await;
    is_refused(&mut first, "s").await;
    first.ask("ROLLBACK").await;
    assert_eq!(columns(&mut first, "s").await, 2);
    second.send(&together(&[parse("t", "SELECT * FROM own"), sync()])).await;
    second.expect("1 Z").await;
    assert_eq!(columns(&mut second, "t").await, 2);
}

/// Many backends, each of which held the statement before.
#[tokio::test]
async fn trap_31_one_refusal_renews_the_statement_on_every_backend() {
    let mut table = ChangingTable::new().await;
    let sidecar = two_backends(&table.database).await;
    let mut first = client_with(&sidecar, &table.database, &[]).await;
    let mut second = client_with(&sidecar, &table.database, &[]).await;
    for client in [&mut first, &mut second] {
        client.send(&together(&[parse("s", ALL_COLUMNS), sync()])).await;
        client.expect("1 Z").await;
        client.ask("BEGIN").await;
        client.send(&together(&run("s"))).await;
        client.expect("2 C Z").await;
    }
    for client in [&mut first, &mut second] {
        client.ask("COMMIT").await;
    }
    table.change();
    first.ask("BEGIN").await;
    first.send(&together(&run("s"))).await;
    assert_eq!(first.expect("E Z").await[0].sqlstate(), "0A000");
    // The other backend, inside a block, where nothing could be tried again.
    second.ask("BEGIN").await;
    assert_eq!(columns(&mut second, "s").await, 2);
}

#[tokio::test]
async fn trap_25_a_statement_that_was_not_parsed_exists_nowhere() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let mut client = client_with(&sidecar, &database, &[]).await;
    client.send(&together(&[parse("s", "SELECT nonsense"), sync()])).await;
    assert_eq!(client.expect("E Z").await[0].sqlstate(), "42703");
    client
        .send(&together(&[bind("", "nosuch", &[]), parse("t", "SELECT 1"), sync()]))
        .await;
    client.expect("E Z").await;
    for name in ["s", "t"] {
        client.send(&together(&run(name))).await;
        assert_eq!(client.expect("E Z").await[0].sqlstate(), "26000");
        client
            .send(&together(&[&[parse(name, "SELECT 1")], &run(name)[..]].concat()))
            .await;
        client.expect("1 2 D C Z").await;
    }
    // Gone before its Sync: whoever says the same text next gets a statement that works.
    let mut gone = client_with(&sidecar, &database, &[]).await;
    gone.send(&together(&[
        parse("u", "SELECT 'u'"),
        bind("", "nosuch", &[]),
        parse("v", "SELECT 'v'"),
    ]))
    .await;
    drop(gone);
    for text in ["u", "v"] {
        client
            .send(&together(
                &[&[parse(text, &format!("SELECT '{text}'"))], &run(text)[..]].concat(),
            ))
            .await;
        client.expect("1 2 D C Z").await;
    }
}

/// Traps 26, 27 and 32: thousands of statements, of which a backend keeps few.
#[tokio::test]
async fn trap_26_27_32_a_small_cache_forgets_no_statement() {
    const STATEMENTS: usize = 1500;
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "1")
        .set("POOL__STATEMENT_CACHE_BYTES", "2000")
        .start_ready()
        .await;
    let mut client = client_with(&sidecar, &database, &[]).await;
    show_backends_own(&database);
    let all = |make: fn(usize) -> Vec<bytes::BytesMut>| together(&(0..STATEMENTS).flat_map(make).collect::<Vec<_>>());
    client
        .send(&all(|n| vec![parse(&format!("s{n}"), &format!("SELECT {n}"))]))
        .await;
    client.send(&sync()).await;
    assert_eq!(client.until_ready().await.len(), STATEMENTS + 1);
    client
        .send(&all(|n| vec![bind("", &format!("s{n}"), &[]), execute("", 0)]))
        .await;
    client.send(&sync()).await;
    let answer = client.until_ready().await;
    let rows: Vec<_> = answer.iter().filter(|message| message.tag == b'D').collect();
    assert_eq!(rows.len(), STATEMENTS);
    for (n, row) in rows.iter().enumerate() {
        assert_eq!(row.row(), [Some(n.to_string())]);
    }
    assert!(
        client
            .value("SELECT count(*) FROM on_backend")
            .await
            .parse::<usize>()
            .unwrap()
            < 20,
        "what was forgotten was closed"
    );
}

/// What a backend holds, where a client that asks pg_prepared_statements itself is shown its own.
fn show_backends_own(database: &Database) {
    let sql = "CREATE VIEW on_backend AS SELECT * FROM pg_prepared_statements; GRANT SELECT ON on_backend TO PUBLIC";
    Postgres::shared().psql(&database.name, sql);
}

/// A text that two clients prepare, and execute eight times between them. Returns how many custom and generic plans the
/// backend has made of each statement of that text so far, the oldest first.
async fn plans(sidecar: &Sidecar, database: &Database, settings: &[(&str, &str)]) -> String {
    let mut one = client_with(sidecar, database, settings).await;
    let mut two = client_with(sidecar, database, settings).await;
    for client in [&mut one, &mut two] {
        client.send(&together(&[parse("s", PLANNED), sync()])).await;
        client.expect("1 Z").await;
    }
    for _ in 0..4 {
        execute_planned(&mut one).await;
        execute_planned(&mut two).await;
    }
    plans_so_far(&mut one).await
}

const PLANNED: &str = "SELECT $1::int + 33";

async fn execute_planned(client: &mut RawClient) {
    client
        .send(&together(&[bind("", "s", &["1"]), execute("", 0), sync()]))
        .await;
    client.expect("2 D C Z").await;
}

async fn plans_so_far(client: &mut RawClient) -> String {
    let sql = format!(
        "SELECT string_agg(custom_plans || '+' || generic_plans, ', ' ORDER BY prepare_time) \
         FROM on_backend WHERE statement = '{PLANNED}'"
    );
    client.value(&sql).await
}

/// Five executions on one backend, whoever's, are what PostgreSQL waits for before it weighs a generic plan. Who wants
/// none, or wants it at once, says so in PostgreSQL's own word; that is of these clients alone.
#[tokio::test]
async fn trap_33_a_plan_cache_mode_is_honoured_for_shared_statements() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    show_backends_own(&database);
    let custom = [("options", "-c plan_cache_mode=force_custom_plan")];
    let generic = [("plan_cache_mode", "force_generic_plan")];
    assert_eq!(plans(&sidecar, &database, &[]).await, "5+3");
    assert_eq!(plans(&sidecar, &database, &custom).await, "5+3, 8+0");
    assert_eq!(plans(&sidecar, &database, &generic).await, "5+3, 8+0, 0+8");
    assert_eq!(plans(&sidecar, &database, &[]).await, "5+11, 8+0, 0+8");
    assert_eq!(plans(&sidecar, &database, &custom).await, "5+11, 16+0, 0+8");
}

#[tokio::test]
async fn trap_33_a_plan_cache_mode_that_is_set_holds_for_its_client() {
    let database = Postgres::shared().create_database();
    show_backends_own(&database);
    let sidecar = one_backend(&database).await;
    assert_eq!(plans(&sidecar, &database, &[]).await, "5+3");
    let mut client = client_with(&sidecar, &database, &[]).await;
    client.ask("SET plan_cache_mode = force_custom_plan").await;
    client.send(&together(&[parse("s", PLANNED), sync()])).await;
    client.expect("1 Z").await;
    for _ in 0..8 {
        execute_planned(&mut client).await;
    }
    assert_eq!(plans_so_far(&mut client).await, "5+3, 8+0");
    // One that was prepared before too.
    client.ask("SET plan_cache_mode = auto").await;
    for _ in 0..8 {
        execute_planned(&mut client).await;
    }
    assert_eq!(plans_so_far(&mut client).await, "5+3, 8+8");
}

#[tokio::test]
async fn trap_33_the_upstreams_options_set_it_for_all() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "1")
        .variable("PGOPTIONS", "-c plan_cache_mode=force_custom_plan")
        .start_ready()
        .await;
    show_backends_own(&database);
    assert_eq!(plans(&sidecar, &database, &[]).await, "8+0");
}

/// A pooler that had to ask a backend for it would keep a driver waiting that prepares before it runs anything.
#[tokio::test]
async fn a_parse_that_postgresql_has_proven_needs_no_backend() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let mut first = client_with(&sidecar, &database, &[]).await;
    let mut second = client_with(&sidecar, &database, &[]).await;
    first.send(&together(&[parse("s", "SELECT 1"), query("BEGIN")])).await;
    first.expect("1 C Z").await;
    second.send(&together(&[parse("t", "SELECT 1"), sync()])).await;
    second.expect("1 Z").await;
    first.send(&together(&[sync(), query("COMMIT")])).await;
    first.expect("Z C Z").await;
    second.send(&together(&run("t"))).await;
    second.expect("2 D C Z").await;
}

/// Found by the twins: settings that are changed for its Parse are statements, behind which DISCARD ALL refuses to run.
#[tokio::test]
async fn trap_28_a_statement_without_text_is_parsed_again_under_any_settings() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    client.send(&together(&[parse("p", ""), sync()])).await;
    client.expect("1 Z").await;
    client.ask("SET TimeZone TO 'Asia/Tokyo'").await;
    let mut other = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    other.ask("CREATE TABLE changes_the_catalog ()").await;
    let group = [
        bind("", "p", &[]),
        execute("", 0),
        parse("", "DISCARD ALL"),
        bind("", "", &[]),
        execute("", 0),
        sync(),
    ];
    client.send(&together(&group)).await;
    assert_eq!(tags(&client.until_ready().await).replace('S', ""), "2I12CZ");
}
