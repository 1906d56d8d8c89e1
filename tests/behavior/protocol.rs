//! The message flow of both protocols through backends that are shared: what PostgreSQL's manual promises a client that
//! is alone with its session.

use std::time::Duration;

use bytes::BytesMut;

use crate::support::postgres::{Database, PASSWORD, Postgres, USER};
use crate::support::raw_client::{
    Message, RawClient, bind, close, copy_data, copy_done, describe, execute, flush, function_call, parse, query, sync,
    tags, terminate, together,
};
use crate::support::sidecar::Sidecar;

async fn sidecar(database: &Database, size: u32) -> Sidecar {
    Sidecar::builder(database)
        .set("POOL__MAX_SIZE", size.to_string())
        .start_ready()
        .await
}

async fn client(sidecar: &Sidecar, database: &Database) -> RawClient {
    RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await
}

async fn client_with(sidecar: &Sidecar, database: &Database, settings: &[(&str, &str)]) -> RawClient {
    let mut client = RawClient::connect(sidecar.port).await;
    let settings = [&[("database", database.name.as_str())], settings].concat();
    client
        .log_in(USER, PASSWORD, &settings)
        .await
        .expect("the login succeeds");
    client
}

fn text(value: &str) -> Vec<Option<String>> {
    vec![Some(value.to_owned())]
}

#[tokio::test]
async fn trap_35_a_header_may_come_byte_by_byte() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar(&database, 1).await;
    let mut client = client(&sidecar, &database).await;
    let messages = together(&[
        parse("s", "SELECT $1::text"),
        bind("", "s", &["one"]),
        describe('P', ""),
        execute("", 0),
        close('S', "s"),
        sync(),
        query("SELECT 'two'"),
    ]);
    for byte in messages {
        client.send(&[byte]).await;
    }
    assert_eq!(client.expect("1 2 T D C 3 Z").await[3].row(), text("one"));
    assert_eq!(client.expect("T D C Z").await[1].row(), text("two"));
}

/// What was said, byte for byte but for where in PostgreSQL's sources an error comes from.
fn whole(messages: &[Message]) -> String {
    let show = |message: &Message| match message.tag {
        b'E' => format!("E {}\n", message.report()),
        // The table has another number each time.
        b'T' => format!("T {}\n", message.body.len()),
        tag => format!("{} {:?}\n", char::from(tag), message.body),
    };
    messages.iter().map(show).collect()
}

/// One client's groups with how many ReadyForQuery each is owed, said as often as it takes to be known, between what
/// changes what they would do.
fn groups_and_what_disturbs_them() -> Vec<(BytesMut, usize)> {
    let of_name = |value| together(&[bind("", "s", &[value]), describe('P', ""), execute("", 0), sync()]);
    let unnamed = |sql: &str, values: &[&str]| {
        let bound = bind("", "", values);
        together(&[parse("", sql), bound, describe('P', ""), execute("", 0), sync()])
    };
    let (read, count) = (
        "SELECT a, 12 / $1::int FROM t WHERE a < 3",
        "SELECT count(*) FROM t WHERE a > -7",
    );
    let plain = || {
        let groups = [
            query(count),
            query(&count.replace('7', "1")),
            query(&count.replace("-7", "b")),
            query("SELECT 1; SELECT 2"),
            query(""),
            unnamed(read, &["4"]),
            unnamed(read, &["0"]),
            unnamed(count, &[]),
            together(&[bind("", "", &[]), execute("", 0), sync()]),
            of_name("3"),
            of_name("0"),
            together(&[bind("", "s", &["2"]), execute("", 1), sync()]),
            query("INSERT INTO t VALUES (5)"),
            unnamed("DELETE FROM t WHERE a = 5", &[]),
        ];
        let mut groups = groups.map(|group| vec![(group, 1); 3]).concat();
        groups.push((together(&[of_name("2"), query(count)]), 2));
        groups
    };
    let prepared = together(&[parse("s", read), describe('S', "s"), sync()]);
    let disturbances = [
        query("CREATE TABLE t (a int)"),
        query("INSERT INTO t VALUES (1), (2)"),
        prepared,
        query("BEGIN"),
        query("SELECT 1 / 0"),
        query("ROLLBACK"),
        of_name("none"),
        query("SET bytea_output = 'escape'"),
        query("BEGIN; SET LOCAL work_mem = '1MB'"),
        query("COMMIT"),
        query("ALTER TABLE t ALTER a TYPE bigint"),
        query("PREPARE p AS SELECT a FROM t"),
        query("DEALLOCATE p"),
        query("LISTEN channel"),
        query("UNLISTEN *"),
        query("CREATE TEMP TABLE held (a int)"),
        query("DISCARD TEMP"),
        query("DROP TABLE t"),
    ];
    disturbances
        .into_iter()
        .flat_map(|disturbance| [vec![(disturbance, 1)], plain()].concat())
        .collect()
}

#[tokio::test]
async fn a_plain_group_is_answered_as_postgresql_answers_it_whatever_was_said_before() {
    let database = Postgres::shared().create_database();
    let mut told = Vec::new();
    for is_direct in [true, false, false] {
        // The same table once more.
        let sidecar = sidecar(&database, 1).await;
        let port = if is_direct { database.port } else { sidecar.port };
        let mut client = RawClient::login(port, USER, PASSWORD, &database.name).await;
        let is_cut = told.len() == 2;
        let mut conversation = Vec::new();
        for (group, readies) in groups_and_what_disturbs_them() {
            let cut = if is_cut { group.len() / 2 } else { 0 };
            client.send(&group[..cut]).await;
            client.send(&group[cut..]).await;
            let mut said = String::new();
            for _ in 0..readies {
                said += &whole(&client.until_ready().await);
            }
            conversation.push(said);
        }
        told.push(conversation);
    }
    for (at, (group, _)) in groups_and_what_disturbs_them().iter().enumerate() {
        let group = String::from_utf8_lossy(group);
        assert_eq!(told[1][at], told[0][at], "{at}: {group}");
        assert_eq!(told[2][at], told[0][at], "{at}, cut: {group}");
    }
}

#[tokio::test]
async fn trap_17_a_flushed_group_keeps_its_backend_until_its_sync() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar(&database, 1).await;
    let (mut first, mut second) = (client(&sidecar, &database).await, client(&sidecar, &database).await);
    first.ask("CREATE TABLE kept (x int)").await;
    first
        .send(&together(&[
            parse("", "INSERT INTO kept VALUES (1)"),
            describe('S', ""),
            flush(),
        ]))
        .await;
    first.expect("1 t n").await;
    second.query("SELECT count(*) FROM kept").await;
    first
        .send(&together(&[bind("", "", &[]), execute("", 0), flush()]))
        .await;
    first.expect("2 C").await;
    sidecar
        .wait_metric("pgsidecar_clients", &[("state", "waiting")], |waiting| waiting == 1.0)
        .await;
    first.send(&sync()).await;
    first.expect("Z").await;
    assert_eq!(
        second.expect("T D C Z").await[1].row(),
        text("1"),
        "what was acknowledged is committed"
    );
}

#[tokio::test]
async fn trap_18_a_sync_with_nothing_before_it_is_answered_with_the_clients_status() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar(&database, 1).await;
    let mut client = client(&sidecar, &database).await;
    for (sql, status) in [
        ("SELECT 1", b"I"),
        ("BEGIN", b"T"),
        ("SELECT 1/0", b"E"),
        ("ROLLBACK", b"I"),
    ] {
        client.ask(sql).await;
        client.send(&together(&[sync(), sync()])).await;
        for ready in client.expect("Z Z").await {
            assert_eq!(ready.body, status, "after {sql}");
        }
    }
}

#[tokio::test]
async fn trap_19_a_refusal_of_ours_is_one_error_up_to_the_sync() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "1")
        .set("POOL__ACQUIRE_TIMEOUT", "200ms")
        .start_ready()
        .await;
    let (mut first, mut second) = (client(&sidecar, &database).await, client(&sidecar, &database).await);
    first.ask("CREATE TABLE kept (x int)").await;
    first.ask("BEGIN").await;
    let insert = |sql| [parse("", sql), bind("", "", &[]), execute("", 0)];
    second.send(&together(&insert("INSERT INTO kept VALUES (1)"))).await;
    second.send(&together(&insert("INSERT INTO kept VALUES (2)"))).await;
    assert_eq!(second.expect("E").await[0].sqlstate(), "53300");
    first.ask("COMMIT").await;
    second.send(&query("INSERT INTO kept VALUES (3)")).await;
    second
        .send(&together(&[sync(), query("SELECT count(*) FROM kept")]))
        .await;
    second.expect("Z").await;
    assert_eq!(
        second.expect("T D C Z").await[1].row(),
        text("0"),
        "nothing of the refused group was run"
    );
}

#[tokio::test]
async fn trap_20_queries_follow_one_another_and_stand_inside_a_group() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar(&database, 2).await;
    let mut client = client(&sidecar, &database).await;
    client
        .send(&together(&[
            query("SELECT 1"),
            query("SELECT 1/0"),
            query("SELECT 3; SELECT 4"),
        ]))
        .await;
    client.expect("T D C Z E Z T D C T D C Z").await;
    let group = [
        parse("", "SELECT 5"),
        bind("", "", &[]),
        execute("", 0),
        query("SELECT 6"),
        sync(),
    ];
    client.send(&together(&group)).await;
    client.expect("1 2 D C T D C Z Z").await;
    let failing = [
        parse("", "SELECT nothing"),
        query("SELECT 7"),
        sync(),
        query("SELECT 8"),
    ];
    client.send(&together(&failing)).await;
    assert_eq!(client.expect("E Z T D C Z").await[3].row(), text("8"));
}

#[tokio::test]
async fn trap_21_a_suspended_portal_lives_as_long_as_its_transaction() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar(&database, 2).await;
    let mut client = client(&sidecar, &database).await;
    let rows = "SELECT g FROM generate_series(1, 5) g";
    let opening = [
        parse("", rows),
        bind("p", "", &[]),
        execute("p", 2),
        sync(),
        execute("p", 2),
        sync(),
    ];
    client.send(&together(&opening)).await;
    assert_eq!(client.expect("1 2 D D s Z E Z").await[6].sqlstate(), "34000");
    client.ask("BEGIN").await;
    client.send(&together(&opening)).await;
    client.expect("1 2 D D s Z D D s Z").await;
    client
        .send(&together(&[execute("p", 2), close('P', "p"), sync()]))
        .await;
    client.expect("D C 3 Z").await;
    assert_eq!(tags(&client.ask("COMMIT").await), "CZ");
}

#[tokio::test]
async fn trap_22_a_statement_and_a_portal_of_one_name_are_two_things() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar(&database, 2).await;
    let mut client = client(&sidecar, &database).await;
    client.ask("BEGIN").await;
    let opening = [
        parse("same", "SELECT 1 UNION SELECT 2"),
        bind("same", "same", &[]),
        execute("same", 1),
        sync(),
    ];
    client.send(&together(&opening)).await;
    client.expect("1 2 D s Z").await;
    client
        .send(&together(&[close('S', "same"), execute("same", 1), sync()]))
        .await;
    client.expect("3 D s Z").await;
    client
        .send(&together(&[close('P', "same"), execute("same", 1), sync()]))
        .await;
    assert_eq!(client.expect("3 E Z").await[1].sqlstate(), "34000");
    client.ask("ROLLBACK").await;
    client.send(&together(&[bind("", "same", &[]), sync()])).await;
    assert_eq!(client.expect("E Z").await[0].sqlstate(), "26000");
}

#[tokio::test]
async fn trap_34_statements_without_rows_end_as_they_do() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar(&database, 1).await;
    let mut client = client(&sidecar, &database).await;
    client.ask("CREATE TABLE kept (x int)").await;
    for (sql, expected) in [("INSERT INTO kept VALUES (1)", "1 t n 2 C Z"), ("", "1 t n 2 I Z")] {
        let group = [
            parse("", sql),
            describe('S', ""),
            bind("", "", &[]),
            execute("", 0),
            sync(),
        ];
        client.send(&together(&group)).await;
        client.expect(expected).await;
    }
}

#[tokio::test]
async fn trap_36_notifications_reach_a_listener_that_is_idle_or_busy() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar(&database, 3).await;
    let (mut listener, mut sender) = (client(&sidecar, &database).await, client(&sidecar, &database).await);
    listener.ask("LISTEN news").await;
    sender.ask("NOTIFY news, 'first'").await;
    listener.expect("A").await;
    listener
        .send(&together(&[
            parse("", "SELECT 1"),
            bind("", "", &[]),
            execute("", 0),
            flush(),
        ]))
        .await;
    listener.expect("1 2 D C").await;
    sender.ask("NOTIFY news, 'second'").await;
    listener.send(&sync()).await;
    let rest = listener.expect("A Z").await.len() + usize::from(listener.ask("SELECT 1").await.is_empty());
    assert_eq!(rest, 2);
    drop(listener);
    let mut next = client(&sidecar, &database).await;
    assert_eq!(next.value("SELECT count(*) FROM pg_listening_channels()").await, "0");
}

#[tokio::test]
async fn trap_38_a_failed_block_is_left_as_postgresql_leaves_it() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar(&database, 1).await;
    let mut client = client(&sidecar, &database).await;
    let mut ask = async |sql: &str| {
        let answer = client.ask(sql).await;
        let status = answer.last().unwrap().body[0];
        (answer[0].clone(), char::from(status))
    };
    ask("BEGIN").await;
    let (chained, status) = ask("COMMIT AND CHAIN").await;
    assert_eq!((chained.command().as_str(), status), ("COMMIT", 'T'));
    ask("SAVEPOINT s").await;
    assert_eq!(ask("SELECT 1/0").await.1, 'E');
    let (refused, status) = ask("SELECT 1").await;
    assert_eq!((refused.sqlstate().as_str(), status), ("25P02", 'E'));
    assert_eq!(ask("ROLLBACK TO s").await.1, 'T');
    assert_eq!(ask("SELECT 1/0").await.1, 'E');
    let (ended, status) = ask("COMMIT").await;
    assert_eq!((ended.command().as_str(), status), ("ROLLBACK", 'I'));
}

#[tokio::test]
async fn trap_16_a_parse_in_a_failed_block_is_refused_though_the_backend_knows_the_text() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar(&database, 1).await;
    let mut client = client(&sidecar, &database).await;
    client.send(&together(&[parse("a", "SELECT 1"), sync()])).await;
    client.expect("1 Z").await;
    client.send(&together(&[query("BEGIN"), query("SELECT 1/0")])).await;
    client.expect("C Z").await;
    client.until_ready().await;
    let again = [parse("b", "SELECT 1"), bind("", "b", &[]), execute("", 0), sync()];
    client.send(&together(&again)).await;
    assert_eq!(client.expect("E Z").await[0].sqlstate(), "25P02");
    client.send(&query("ROLLBACK")).await;
    client.send(&together(&again)).await;
    client.expect("C Z 1 2 D C Z").await;
}

/// In one burst, so that nobody knows of the refusal when the Query comes.
#[tokio::test]
async fn trap_16_a_query_behind_a_refused_parse_is_skipped_like_its_group() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar(&database, 1).await;
    for port in [database.port, sidecar.port] {
        let mut client = RawClient::login(port, USER, PASSWORD, &database.name).await;
        client.send(&together(&[parse("a", "SELECT 1"), sync()])).await;
        client.expect("1 Z").await;
        let burst = [
            query("BEGIN"),
            query("SELECT 1/0"),
            parse("b", "SELECT 1"),
            query("ROLLBACK"),
            sync(),
        ];
        client.send(&together(&burst)).await;
        client.expect("C Z E Z E Z").await;
        assert_eq!(
            client.ask("SELECT 2").await[0].sqlstate(),
            "25P02",
            "the block is open still"
        );
        client.ask("ROLLBACK").await;
        assert_eq!(client.value("SELECT 2").await, "2");
    }
}

#[tokio::test]
async fn trap_39_a_query_of_several_statements_is_one_transaction() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar(&database, 1).await;
    let mut client = client(&sidecar, &database).await;
    client.ask("CREATE TABLE kept (x int)").await;
    client
        .ask("SET TimeZone = 'Asia/Tokyo'; INSERT INTO kept VALUES (1); SELECT 1/0")
        .await;
    assert_eq!(client.value("SELECT count(*) FROM kept").await, "0");
    assert_ne!(client.value("SHOW TimeZone").await, "Asia/Tokyo");
    let answer = client.ask("BEGIN; INSERT INTO kept VALUES (2); COMMIT; BEGIN").await;
    assert_eq!(
        (tags(&answer).as_str(), answer[4].body.as_slice()),
        ("CCCCZ", &b"T"[..])
    );
    client.ask("ROLLBACK").await;
    assert_eq!(client.value("SELECT count(*) FROM kept").await, "1");
}

/// Traps 40 and 41: what must stand alone does so, even directly behind the statements that bring a client's settings.
#[tokio::test]
async fn trap_40_41_commands_that_must_stand_alone_work_behind_a_prelude() {
    let cluster = Postgres::shared();
    let database = cluster.create_database();
    cluster.psql("postgres", &format!("ALTER ROLE {USER} CREATEDB"));
    let sidecar = sidecar(&database, 1).await;
    let mut plain = client(&sidecar, &database).await;
    plain.ask("CREATE TABLE kept (x int)").await;
    plain
        .ask("CREATE PROCEDURE many() LANGUAGE plpgsql AS 'BEGIN INSERT INTO kept VALUES (1); COMMIT; END'")
        .await;
    let created = format!("CREATE DATABASE {}_more", database.name);
    for sql in ["VACUUM kept", "CALL many()", "DO 'BEGIN COMMIT; END'", created.as_str()] {
        for (zone, extended) in [("Asia/Tokyo", false), ("Europe/Berlin", true)] {
            assert_ne!(plain.value("SHOW TimeZone").await, zone);
            // A DO keeps its backend until its client leaves.
            let mut other = client_with(&sidecar, &database, &[("TimeZone", zone)]).await;
            if extended {
                let group = [
                    parse("", &sql.replace("_more", "_most")),
                    bind("", "", &[]),
                    execute("", 0),
                    sync(),
                ];
                other.send(&together(&group)).await;
                other.expect("1 2 C Z").await;
            } else {
                assert_eq!(tags(&other.ask(sql).await), "CZ", "{sql}");
            }
            other.send(&terminate()).await;
        }
    }
}

#[tokio::test]
async fn a_function_call_reads_and_writes_large_objects() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar(&database, 1).await;
    let mut client = client(&sidecar, &database).await;
    // lo_creat and lo_unlink.
    client
        .send(&function_call(957, &[&0x0006_0000_u32.to_be_bytes()]))
        .await;
    let created = client.expect("V Z").await[0].body[4..].to_vec();
    client.send(&query("BEGIN")).await;
    client.expect("C Z").await;
    // lo_open for reading and writing, lowrite, lo_close.
    client
        .send(&function_call(952, &[&created, &0x0006_0000_u32.to_be_bytes()]))
        .await;
    let descriptor = client.expect("V Z").await[0].body[4..].to_vec();
    client.send(&function_call(955, &[&descriptor, b"some bytes"])).await;
    client.expect("V Z").await;
    client.send(&query("COMMIT")).await;
    client.expect("C Z").await;
    assert_eq!(
        client
            .value("SELECT convert_from(lo_get(oid), 'UTF8') FROM pg_largeobject_metadata")
            .await,
        "some bytes"
    );
    client.send(&function_call(964, &[&created])).await;
    client.expect("V Z").await;
    client
        .send(&together(&[function_call(964, &[&created]), query("SELECT 1")]))
        .await;
    client.expect("E Z T D C Z").await;
}

#[tokio::test]
async fn trap_53_a_copy_inside_a_pipelined_batch_keeps_its_place() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar(&database, 1).await;
    let mut client = client(&sidecar, &database).await;
    client.ask("CREATE TABLE numbers (x int PRIMARY KEY)").await;
    let copy = [parse("", "COPY numbers FROM STDIN"), bind("", "", &[]), execute("", 0)];
    let data = [copy_data(b"1\n"), copy_done(), sync()];
    let count = [
        parse("", "SELECT count(*) FROM numbers"),
        bind("", "", &[]),
        execute("", 0),
        sync(),
    ];
    client.send(&together(&[&copy[..], &data, &count].concat())).await;
    assert_eq!(client.expect("1 2 G C Z 1 2 D C Z").await[7].row(), text("1"));
    // The same again fails, and what follows it in its group is dropped; as libpq does it, with a Sync of its own.
    client.send(&together(&[&copy[..], &[sync()]].concat())).await;
    client.expect("1 2 G").await;
    client.send(&together(&[&data[..], &count].concat())).await;
    assert_eq!(client.expect("E Z 1 2 D C Z").await[0].sqlstate(), "23505");
}

#[tokio::test]
async fn trap_49_late_copy_data_reaches_no_backend() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar(&database, 1).await;
    let (mut first, mut second) = (client(&sidecar, &database).await, client(&sidecar, &database).await);
    first.ask("CREATE TABLE numbers (x int)").await;
    first.query("COPY numbers FROM STDIN").await;
    first.expect("G").await;
    first.send(&copy_data(b"none\n")).await;
    first.expect("E Z").await;
    second.ask("BEGIN").await;
    first.send(&together(&[copy_data(b"1\n"), copy_done()])).await;
    second.query("COPY numbers FROM STDIN").await;
    second.expect("G").await;
    first.send(&together(&[copy_data(b"2\n"), copy_done()])).await;
    second.send(&together(&[copy_data(b"3\n"), copy_done()])).await;
    second.expect("C Z").await;
    second.ask("COMMIT").await;
    assert_eq!(first.value("SELECT string_agg(x::text, ' ') FROM numbers").await, "3");
}

#[tokio::test]
async fn trap_13_a_hundred_thousand_requests_in_flight_are_answered() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar(&database, 1).await;
    let mut client = client(&sidecar, &database).await;
    client.ask("BEGIN").await;
    let batch = together(&vec![together(&[close('P', "none"), sync()]); 10_000]);
    for _ in 0..5 {
        client.send(&batch).await;
        for _ in 0..10_000 {
            client.expect("3 Z").await;
        }
    }
    client.ask("COMMIT").await;
    assert!(sidecar.peak_memory_kib() < 64 * 1024);
}

/// Trap 35: a row and a parameter of 256 MiB pass through buffers of fixed size, both sides being TLS or not.
#[tokio::test]
async fn trap_35_a_huge_row_passes_in_bounded_memory() {
    const LEN: usize = 256 << 20;
    let database = Postgres::shared().create_database();
    let sidecar = sidecar(&database, 1).await;
    let mut client = client(&sidecar, &database).await;
    client.query(&format!("SELECT repeat('x', {LEN})")).await;
    client.expect("T").await;
    assert_eq!(client.pass_over().await, (b'D', LEN + 6));
    client.expect("C Z").await;
    let mut value = bind("", "", &[""]);
    value.truncate(0);
    value.extend_from_slice(b"B");
    value.extend_from_slice(&u32::try_from(LEN + 16).unwrap().to_be_bytes());
    value.extend_from_slice(b"\0\0\0\0\0\x01");
    value.extend_from_slice(&u32::try_from(LEN).unwrap().to_be_bytes());
    client
        .send(&together(&[parse("", "SELECT length($1::text)"), value]))
        .await;
    let chunk = vec![b'y'; 1 << 20];
    for _ in 0..LEN / chunk.len() {
        client.send(&chunk).await;
    }
    client.send(&together(&[BytesEnd::end(), execute("", 0), sync()])).await;
    assert_eq!(client.expect("1 2 D C Z").await[2].row(), text(&LEN.to_string()));
    let peak = sidecar.peak_memory_kib();
    assert!(peak < 64 * 1024, "{peak} KiB resident");
}

/// The end of the Bind above: no result formats.
struct BytesEnd;

impl BytesEnd {
    fn end() -> bytes::BytesMut {
        bytes::BytesMut::from(&b"\0\0"[..])
    }
}

#[tokio::test]
async fn statement_mode_refuses_transaction_blocks_and_runs_everything_else() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MODE", "statement")
        .set("POOL__MAX_SIZE", "1")
        .start_ready()
        .await;
    let mut first = client(&sidecar, &database).await;
    let mut second = client(&sidecar, &database).await;
    first.ask("CREATE TABLE kept (x int)").await;
    assert_eq!(
        tags(
            &first
                .ask("INSERT INTO kept VALUES (1); INSERT INTO kept VALUES (2)")
                .await
        ),
        "CCZ"
    );
    first
        .send(&together(&[
            parse("s", "SELECT count(*) FROM kept"),
            bind("", "s", &[]),
            execute("", 0),
            sync(),
        ]))
        .await;
    assert_eq!(first.expect("1 2 D C Z").await[2].row(), text("2"));
    second
        .send(&together(&[query("BEGIN"), query("INSERT INTO kept VALUES (3)")]))
        .await;
    let words = second.until_closed().await;
    assert_eq!(words.last().expect("a reason").sqlstate(), "0A000");
    let mut third = client(&sidecar, &database).await;
    assert_eq!(third.value("SELECT count(*) FROM kept").await, "2");
}

#[tokio::test]
async fn session_mode_gives_a_client_all_of_a_session_and_the_next_a_clean_one() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MODE", "session")
        .set("POOL__MAX_SIZE", "1")
        .start_ready()
        .await;
    let mut first = client(&sidecar, &database).await;
    for sql in [
        "CREATE TEMP TABLE mine (x int)",
        "LISTEN news",
        "SET work_mem = '7MB'",
        "PREPARE s AS SELECT 42",
        "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
        "SELECT pg_advisory_lock(1)",
    ] {
        first.ask(sql).await;
    }
    assert_eq!(first.value("SELECT count(*) FROM mine").await, "0");
    assert_eq!(first.value("EXECUTE s").await, "42");
    assert_eq!(first.value("FETCH c").await, "1");
    assert_eq!(first.value("SHOW work_mem").await, "7MB");
    first.ask("NOTIFY news").await;
    let backend = first.value("SELECT pg_backend_pid()").await;
    first.send(&terminate()).await;
    let mut next = client(&sidecar, &database).await;
    assert_eq!(
        next.value("SELECT pg_backend_pid()").await,
        backend,
        "it was cleaned, not closed"
    );
    assert_ne!(next.value("SHOW work_mem").await, "7MB");
    assert_eq!(
        next.value("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
            .await,
        "0"
    );
    assert_eq!(
        next.value("SELECT count(*) FROM pg_cursors WHERE is_holdable").await,
        "0"
    );
    assert_eq!(next.value("SELECT count(*) FROM pg_listening_channels()").await, "0");
    assert_eq!(next.ask("SELECT * FROM mine").await[0].sqlstate(), "42P01");
    assert_eq!(next.ask("EXECUTE s").await[0].sqlstate(), "26000");
}

/// Trap 82: the timer runs while a query does, and over the whole of its exchange.
#[tokio::test]
async fn trap_82_the_query_timeout_counts_queries_and_not_pauses() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("LIMITS__QUERY_TIMEOUT", "500ms")
        .set("POOL__MAX_SIZE", "2")
        .start_ready()
        .await;
    let mut client = client(&sidecar, &database).await;
    client.ask("BEGIN").await;
    assert!(
        client.silent_for(Duration::from_millis(1200)).await,
        "a pause is no query"
    );
    assert_eq!(client.value("SELECT 1").await, "1");
    let answer = client.ask("SELECT pg_sleep(30)").await;
    assert!(tags(&answer).ends_with("EZ"), "{answer:?}");
    assert_eq!(answer[answer.len() - 2].sqlstate(), "57014");
    client.ask("ROLLBACK").await;
    let slow = [parse("", "SELECT pg_sleep(0.2)"), bind("", "", &[]), execute("", 0)];
    let batch: Vec<_> = (0..20).flat_map(|_| slow.clone()).chain([sync()]).collect();
    client.send(&together(&batch)).await;
    let answer = client.until_ready().await;
    assert_eq!(
        answer[answer.len() - 2].sqlstate(),
        "57014",
        "the timer covers a whole pipeline"
    );
    assert_eq!(client.value("SELECT 2").await, "2");
}
