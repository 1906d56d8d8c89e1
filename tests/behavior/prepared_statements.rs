//! Protocol-level prepared statements, named and unnamed, over backends that change.

use crate::support::postgres::{Database, PASSWORD, Postgres, USER};
use crate::support::raw_client::{RawClient, bind, close, describe, execute, parse, query, sync, tags, together};
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

#[tokio::test]
async fn trap_31_a_statement_is_parsed_anew_once_its_table_has_changed() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let mut first = client_with(&sidecar, &database, &[]).await;
    let mut second = client_with(&sidecar, &database, &[]).await;
    first.ask("CREATE TABLE kept (x int)").await;
    let fresh = |name: &str| together(&[&[parse(name, "SELECT * FROM kept")], &run(name)[..]].concat());
    first.send(&fresh("s")).await;
    first.expect("1 2 C Z").await;
    // Past pgsidecar, so that only PostgreSQL's own words tell.
    Postgres::shared().psql(&database.name, "ALTER TABLE kept ADD y int");
    first.send(&together(&run("s"))).await;
    assert_eq!(first.expect("E Z").await[0].sqlstate(), "0A000", "as PostgreSQL has it");
    first.send(&fresh("s2")).await;
    first.expect("1 2 C Z").await;
    second.send(&fresh("s")).await;
    second.expect("1 2 C Z").await;
    // Through it: a text that somebody holds already is a new statement.
    second.ask("ALTER TABLE kept ADD z int").await;
    first.send(&fresh("s3")).await;
    first.expect("1 2 C Z").await;
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
            .value("SELECT count(*) FROM pg_prepared_statements")
            .await
            .parse::<usize>()
            .unwrap()
            < 20,
        "what was forgotten was closed"
    );
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
