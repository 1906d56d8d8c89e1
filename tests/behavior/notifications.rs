//! LISTEN in transaction mode: one connection hears for all, and each client is told as its own would have told it.

use std::time::Duration;

use pgsidecar::wire::Reader;

use crate::support::eventually;
use crate::support::postgres::{Database, PASSWORD, Postgres, SUPERUSER_PASSWORD, USER};
use crate::support::raw_client::{Message, RawClient, bind, execute, flush, parse, query, shown, sync, tags, together};
use crate::support::sidecar::Sidecar;

/// A channel, what was said on it, and by whom.
type Heard = (String, String, u32);

fn heard(message: &Message) -> Heard {
    assert_eq!(message.tag, b'A', "{message:?}");
    let mut reader = Reader::new(&message.body);
    let process_id = reader.u32().unwrap();
    let mut text = || String::from_utf8_lossy(reader.cstr().unwrap()).into_owned();
    let (channel, payload) = (text(), text());
    (channel, payload, process_id)
}

/// The next message, which has to be a notification: channel and payload.
async fn next(client: &mut RawClient) -> (String, String) {
    let (channel, payload, _) = heard(&client.message().await);
    (channel, payload)
}

fn said(channel: &str, payload: &str) -> (String, String) {
    (channel.to_owned(), payload.to_owned())
}

async fn through(sidecar: &Sidecar, database: &Database) -> RawClient {
    RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await
}

async fn direct(database: &Database) -> RawClient {
    RawClient::login(database.port, USER, PASSWORD, &database.name).await
}

fn process_id(client: &RawClient) -> u32 {
    client.cancel_key.as_ref().unwrap().process_id
}

async fn listening_backends(sidecar: &Sidecar, count: f64) {
    sidecar
        .wait_metric("pgsidecar_backends", &[("state", "listening")], |now| now == count)
        .await;
}

/// Nobody is tied to a backend.
async fn assert_unpinned(sidecar: &Sidecar) {
    let pins = sidecar.metric("pgsidecar_pins_total", &[]).await.unwrap_or(0.0);
    assert_eq!(pins, 0.0, "{}", sidecar.log());
}

/// Ends the listener's connection from inside PostgreSQL.
async fn kill_listener(database: &Database) {
    let mut superuser = RawClient::login(database.port, "postgres", SUPERUSER_PASSWORD, &database.name).await;
    let sql = format!(
        "SELECT count(pg_terminate_backend(pid))::text FROM pg_stat_activity WHERE datname = '{}' AND query LIKE '%-- pgsidecar listens%' AND pid <> pg_backend_pid()",
        database.name
    );
    assert_eq!(superuser.value(&sql).await, "1");
}

#[tokio::test]
async fn trap_64_a_listening_client_hears_while_it_is_idle_and_holds_no_backend() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "1")
        .start_ready()
        .await;
    let mut listener = through(&sidecar, &database).await;
    assert_eq!(tags(&listener.ask("LISTEN Events").await), "CZ");
    let (mut other, mut outsider) = (through(&sidecar, &database).await, direct(&database).await);
    for number in 0..3 {
        other.ask(&format!("NOTIFY events, 'pooled {number}'")).await;
        assert_eq!(next(&mut listener).await, said("events", &format!("pooled {number}")));
        outsider
            .ask(&format!("SELECT pg_notify('events', 'direct {number}')"))
            .await;
        assert_eq!(next(&mut listener).await, said("events", &format!("direct {number}")));
    }
    // The only backend of the pool serves both, and listens to nothing.
    assert_eq!(listener.value("SELECT 'served'").await, "served");
    assert_eq!(
        other.value("SELECT count(*)::text FROM pg_listening_channels()").await,
        "0"
    );
    assert_unpinned(&sidecar).await;
    listening_backends(&sidecar, 1.0).await;
    drop(listener);
    listening_backends(&sidecar, 0.0).await;
}

#[tokio::test]
async fn trap_64_notifications_wait_for_the_end_of_the_transaction_and_come_before_its_ready() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "2")
        .start_ready()
        .await;
    let mut listener = through(&sidecar, &database).await;
    let mut other = direct(&database).await;
    listener.ask("LISTEN a").await;
    listener.ask("BEGIN").await;
    for payload in ["1", "2", "3"] {
        other.ask(&format!("NOTIFY a, '{payload}'")).await;
    }
    assert_eq!(tags(&listener.ask("SELECT 1").await), "TDCZ");
    // A statement that may notify waits for all that was committed before it.
    let answer = listener.ask("INSERT INTO pg_temp.nosuch VALUES (1)").await;
    assert_eq!(tags(&answer), "EZ");
    let answer = listener.ask("ROLLBACK").await;
    assert_eq!(tags(&answer), "CAAAZ");
    let payloads: Vec<_> = answer[1..4].iter().map(|message| heard(message).1).collect();
    assert_eq!(payloads, ["1", "2", "3"]);
}

#[tokio::test]
async fn a_client_hears_itself_before_its_transaction_is_over_and_under_its_own_process_id() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "2")
        .start_ready()
        .await;
    let mut client = through(&sidecar, &database).await;
    let aside = Postgres::shared().create_database();
    let mut twin = direct(&aside).await;
    let table = "CREATE TABLE t (x int); CREATE FUNCTION told() RETURNS trigger LANGUAGE plpgsql AS \
                 $$ BEGIN PERFORM pg_notify('a', 'row ' || NEW.x); RETURN NEW; END $$; \
                 CREATE TRIGGER told AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION told()";
    for client in [&mut twin, &mut direct(&database).await] {
        assert!(!tags(&client.ask(table).await).contains('E'));
    }
    for sql in [
        "LISTEN a",
        "NOTIFY a, 'self'",
        "SELECT pg_notify('a', 'one'), pg_notify('a', 'two'), pg_notify('a', 'one')",
        "BEGIN; NOTIFY a, 'in a block'",
        "SELECT 1",
        "COMMIT",
        "BEGIN; NOTIFY a, 'undone'",
        "ROLLBACK",
        "LISTEN b; NOTIFY b, 'at once'; NOTIFY a",
        "BEGIN; LISTEN c; NOTIFY c; COMMIT; NOTIFY c, 'behind'",
        "INSERT INTO t VALUES (7)",
        "NOTIFY unheard",
        "NOTIFY a; SELECT 1/0",
        "UNLISTEN a; NOTIFY a; NOTIFY b",
        "UNLISTEN *",
        "NOTIFY b",
    ] {
        let (mine, real) = (client.ask(sql).await, twin.ask(sql).await);
        assert_eq!(tags(&mine), tags(&real), "{sql}: {}", shown(&mine));
        for (mine, real) in mine.iter().zip(&real).filter(|(mine, _)| mine.tag == b'A') {
            let (channel, payload, sender) = heard(real);
            assert_eq!(sender, process_id(&twin));
            assert_eq!(heard(mine), (channel, payload, process_id(&client)), "{sql}");
        }
    }
}

#[tokio::test]
async fn a_notification_names_its_sender_as_the_sender_knows_itself() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "1")
        .start_ready()
        .await;
    let mut listener = through(&sidecar, &database).await;
    let mut outsider = direct(&database).await;
    outsider
        .ask(
            "CREATE TABLE t (x int); CREATE FUNCTION told() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN PERFORM pg_notify('a', 'row'); RETURN NEW; END $$; \
             CREATE TRIGGER told AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION told()",
        )
        .await;
    listener.ask("LISTEN a").await;
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(through(&sidecar, &database).await);
    }
    // All of them on the one backend, in each other's wake.
    for round in 0..20 {
        for client in &mut clients {
            client.ask("NOTIFY a").await;
        }
        for client in &clients {
            assert_eq!(heard(&listener.message().await).2, process_id(client), "round {round}");
        }
        let answer = listener.ask("INSERT INTO t VALUES (1)").await;
        assert_eq!(tags(&answer), "CAZ");
        assert_eq!(heard(&answer[1]).2, process_id(&listener));
    }
    clients[0].ask("INSERT INTO t VALUES (2)").await;
    assert_eq!(heard(&listener.message().await).2, process_id(&clients[0]));
    outsider.ask("NOTIFY a").await;
    assert_eq!(heard(&listener.message().await).2, process_id(&outsider));
}

#[tokio::test]
async fn trap_64_a_listen_is_undone_with_its_transaction() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "2")
        .start_ready()
        .await;
    let mut other = direct(&database).await;
    let cases: [(&[&str], &[&str]); 12] = [
        (&["BEGIN", "LISTEN a", "ROLLBACK"], &[]),
        (&["BEGIN", "LISTEN a", "COMMIT"], &["a"]),
        (&["LISTEN a; SELECT 1/0"], &[]),
        (&["BEGIN", "LISTEN a", "SELECT 1/0", "COMMIT"], &[]),
        (
            &[
                "BEGIN",
                "SAVEPOINT s",
                "LISTEN a",
                "ROLLBACK TO s",
                "LISTEN b",
                "COMMIT",
            ],
            &["b"],
        ),
        (
            &[
                "BEGIN",
                "LISTEN a",
                "SAVEPOINT s",
                "LISTEN b",
                "SELECT 1/0",
                "ROLLBACK TO s",
                "COMMIT",
            ],
            &["a"],
        ),
        (&["BEGIN; LISTEN a; COMMIT; LISTEN b; SELECT 1/0"], &["a"]),
        (&["LISTEN a", "BEGIN", "UNLISTEN a", "ROLLBACK"], &["a"]),
        (
            &["LISTEN a", "LISTEN b", "BEGIN; UNLISTEN *; LISTEN b", "COMMIT"],
            &["b"],
        ),
        (&["LISTEN a", "DISCARD ALL", "LISTEN b"], &["b"]),
        (
            &["LISTEN a", "BEGIN; LISTEN b; COMMIT AND CHAIN; LISTEN c; ROLLBACK"],
            &["a", "b"],
        ),
        // What asyncpg says when it gives a connection back.
        (
            &[
                "LISTEN a",
                "SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; RESET ALL;",
            ],
            &[],
        ),
    ];
    for (statements, expected) in cases {
        let mut client = through(&sidecar, &database).await;
        for sql in statements {
            client.ask(sql).await;
        }
        for channel in ["a", "b", "c"] {
            other.ask(&format!("NOTIFY {channel}")).await;
        }
        // It may notify, so it waits for what was committed before it.
        client.query("NOTIFY nobody").await;
        let answer = client.until_ready().await;
        let channels: Vec<_> = answer
            .iter()
            .filter(|message| message.tag == b'A')
            .map(|it| heard(it).0)
            .collect();
        assert_eq!(channels, expected, "{statements:?}");
    }
    assert_unpinned(&sidecar).await;
}

#[tokio::test]
async fn a_listen_is_refused_where_postgresql_refuses_it() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "1")
        .start_ready()
        .await;
    let mut client = through(&sidecar, &database).await;
    client.ask("BEGIN").await;
    client.ask("SELECT 1/0").await;
    let answer = client.ask("LISTEN a").await;
    assert_eq!(answer[0].sqlstate(), "25P02");
    assert_eq!(tags(&client.ask("ROLLBACK").await), "CZ");
    assert_eq!(client.ask("LISTEN \"\"").await[0].sqlstate(), "42601");
    assert_eq!(tags(&client.ask("NOTIFY a").await), "CZ");
    assert_unpinned(&sidecar).await;
}

#[tokio::test]
async fn the_extended_protocol_listens_as_the_simple_one_does() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "2")
        .start_ready()
        .await;
    let mut client = through(&sidecar, &database).await;
    let mut other = direct(&database).await;
    let run = |sql: &str| [parse("", sql), bind("", "", &[]), execute("", 0)];
    client
        .send(&together(&[run("LISTEN a").as_slice(), &[sync()]].concat()))
        .await;
    client.expect("1 2 C Z").await;
    other.ask("NOTIFY a, '1'").await;
    assert_eq!(next(&mut client).await, said("a", "1"));
    // Named, in a block, everything in one write; and a portal that is never executed.
    let mut burst = run("BEGIN").to_vec();
    burst.extend([parse("l", "LISTEN b"), bind("p", "l", &[]), execute("p", 0)]);
    burst.extend([parse("unused", "LISTEN c"), bind("q", "unused", &[])]);
    burst.extend([run("NOTIFY b, 'mine'"), run("COMMIT")].concat());
    burst.push(sync());
    client.send(&together(&burst)).await;
    let answer = client.until_ready().await;
    assert_eq!(tags(&answer), "12C12C1212C12CAZ");
    assert_eq!(heard(&answer[answer.len() - 2]).2, process_id(&client));
    other.ask("NOTIFY c").await;
    other.ask("NOTIFY b, '2'").await;
    assert_eq!(next(&mut client).await, said("b", "2"));
    // Undone by an error of its group, though its completion was seen.
    client
        .send(&together(&[run("LISTEN d").as_slice(), &[flush()]].concat()))
        .await;
    client.expect("1 2 C").await;
    client
        .send(&together(&[run("SELECT 1/0").as_slice(), &[sync()]].concat()))
        .await;
    assert!(tags(&client.until_ready().await).contains('E'));
    other.ask("NOTIFY d").await;
    other.ask("NOTIFY a, '3'").await;
    assert_eq!(next(&mut client).await, said("a", "3"));
    assert_unpinned(&sidecar).await;
}

#[tokio::test]
async fn pipelined_queries_hear_what_each_of_them_notified() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "2")
        .start_ready()
        .await;
    let mut client = through(&sidecar, &database).await;
    let burst = [
        "LISTEN a",
        "NOTIFY a, '1'",
        "SELECT 1",
        "NOTIFY a, '2'",
        "UNLISTEN a",
        "NOTIFY a, '3'",
        "LISTEN a",
    ];
    client.send(&together(&burst.map(query))).await;
    let mut all = String::new();
    for _ in burst {
        all += &tags(&client.until_ready().await);
        all.push(' ');
    }
    assert_eq!(all.trim_end(), "CZ CAZ TDCZ CAZ CZ CZ CZ");
    client.ask("NOTIFY a").await;
    assert_unpinned(&sidecar).await;
}

#[tokio::test]
async fn hundreds_of_listening_clients_share_one_listener() {
    const CLIENTS: usize = 300;
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "2")
        .start_ready()
        .await;
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let mut client = through(&sidecar, &database).await;
        client
            .ask(&format!("LISTEN everyone; LISTEN own_{}", number % 10))
            .await;
        clients.push(client);
    }
    listening_backends(&sidecar, 1.0).await;
    let open = sidecar.metric("pgsidecar_backends", &[]).await.unwrap();
    assert!(open <= 3.0, "{open}");
    let mut other = direct(&database).await;
    other.ask("NOTIFY own_3, 'yours'; NOTIFY everyone, 'all'").await;
    other.ask("NOTIFY everyone, 'again'").await;
    for (number, client) in clients.iter_mut().enumerate() {
        if number % 10 == 3 {
            assert_eq!(next(client).await, said("own_3", "yours"));
        }
        assert_eq!(next(client).await, said("everyone", "all"));
        assert_eq!(next(client).await, said("everyone", "again"));
    }
    assert_unpinned(&sidecar).await;
}

#[tokio::test]
async fn trap_64_a_lost_listener_closes_those_who_listen_and_nobody_else() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "2")
        .start_ready()
        .await;
    let (mut idle, mut busy, mut other) = (
        through(&sidecar, &database).await,
        through(&sidecar, &database).await,
        through(&sidecar, &database).await,
    );
    idle.ask("LISTEN a").await;
    busy.ask("LISTEN b").await;
    busy.ask("BEGIN").await;
    kill_listener(&database).await;
    for client in [&mut idle, &mut busy] {
        let words = client.until_closed().await;
        assert_eq!(words.last().unwrap().sqlstate(), "57P01");
        assert_eq!(words.last().unwrap().report().severity.as_str(), "FATAL");
    }
    assert_eq!(other.value("SELECT 'served'").await, "served");
    // The next LISTEN has a new one.
    other.ask("LISTEN a").await;
    assert_eq!(tags(&other.ask("NOTIFY a").await), "CAZ");
    assert_unpinned(&sidecar).await;
}

#[tokio::test]
async fn a_lost_listener_is_replaced_where_that_is_wanted() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "2")
        .set("POOL__LISTEN_ON_LOSS", "resume")
        .start_ready()
        .await;
    let mut client = through(&sidecar, &database).await;
    client.ask("LISTEN a").await;
    client.ask("LISTEN b").await;
    kill_listener(&database).await;
    sidecar.wait_for_log("the listener was lost").await;
    let mut other = direct(&database).await;
    let ready = async || {
        other.ask("NOTIFY b").await;
        let answer = client.ask("NOTIFY a").await;
        tags(&answer).contains('A').then_some(())
    };
    eventually("notifications", ready).await;
}

#[tokio::test]
async fn a_client_that_leaves_notifications_unread_is_told_to_go() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("LIMITS__CLIENT_NOTIFICATION_BYTES", "64KiB")
        .start_ready()
        .await;
    let (mut client, mut other) = (through(&sidecar, &database).await, direct(&database).await);
    client.ask("LISTEN a").await;
    client.ask("BEGIN").await;
    other
        .ask("SELECT pg_notify('a', number || repeat('x', 7000)) FROM generate_series(1, 20) number")
        .await;
    let words = client.until_closed().await;
    assert_eq!(words.last().unwrap().sqlstate(), "53400");
}

#[tokio::test]
async fn clients_that_keep_their_backend_listen_there() {
    let database = Postgres::shared().create_database();
    for (mode, pin, channels_max) in [
        ("session", "SELECT 1", "10"),
        ("transaction", "CREATE TEMP TABLE kept (x int)", "10"),
        ("transaction", "SELECT 1", "0"),
    ] {
        let sidecar = Sidecar::builder(&database)
            .set("POOL__MODE", mode)
            .set("LIMITS__CLIENT_CHANNELS", channels_max)
            .start_ready()
            .await;
        let (mut client, mut other) = (through(&sidecar, &database).await, direct(&database).await);
        client.ask(pin).await;
        client.ask("LISTEN a").await;
        sidecar
            .wait_metric("pgsidecar_backends", &[("state", "pinned")], |count| count == 1.0)
            .await;
        listening_backends(&sidecar, 0.0).await;
        other.ask("NOTIFY a, 'x'").await;
        assert_eq!(next(&mut client).await, said("a", "x"));
        let answer = client.ask("NOTIFY a").await;
        assert_eq!(tags(&answer), "CAZ");
        assert_eq!(heard(&answer[1]).2, process_id(&client));
        assert_eq!(client.value("SELECT pg_listening_channels()").await, "a");
    }
}

#[tokio::test]
async fn a_listening_client_that_is_pinned_later_hears_everything_once() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "3")
        .start_ready()
        .await;
    let (mut client, mut other) = (through(&sidecar, &database).await, direct(&database).await);
    client.ask("LISTEN a").await;
    client
        .ask("BEGIN; LISTEN b; CREATE TEMP TABLE kept (x int); COMMIT")
        .await;
    client.ask("LISTEN a").await;
    client.ask("LISTEN c").await;
    for channel in ["a", "b", "c"] {
        other.ask(&format!("NOTIFY {channel}")).await;
        assert_eq!(next(&mut client).await, said(channel, ""));
        let answer = client.ask(&format!("NOTIFY {channel}, 'self'")).await;
        assert_eq!(tags(&answer), "CAZ", "{channel}");
        assert_eq!(heard(&answer[1]).2, process_id(&client), "{channel}");
    }
    client.ask("UNLISTEN a; UNLISTEN c").await;
    client.ask("DISCARD ALL").await;
    for channel in ["a", "b", "c"] {
        assert_eq!(tags(&client.ask(&format!("NOTIFY {channel}")).await), "CZ");
    }
}

#[tokio::test]
async fn a_client_that_goes_away_amid_its_listen_leaves_no_listening_backend() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "1")
        .start_ready()
        .await;
    for _ in 0..20 {
        let mut client = through(&sidecar, &database).await;
        client.query("LISTEN a").await;
        drop(client);
        let mut client = through(&sidecar, &database).await;
        client.ask("BEGIN; LISTEN a").await;
        drop(client);
    }
    let mut client = through(&sidecar, &database).await;
    assert_eq!(
        client.value("SELECT count(*)::text FROM pg_listening_channels()").await,
        "0"
    );
    listening_backends(&sidecar, 0.0).await;
}

#[tokio::test]
async fn what_was_committed_before_a_listen_is_not_heard() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "2")
        .start_ready()
        .await;
    let (mut first, mut other) = (through(&sidecar, &database).await, direct(&database).await);
    first.ask("LISTEN a").await;
    for number in 0..50 {
        // The shared listener listens already, and may not have told us of this yet.
        let mut client = through(&sidecar, &database).await;
        client.ask("BEGIN").await;
        client.ask("LISTEN a").await;
        other.ask(&format!("NOTIFY a, 'early {number}'")).await;
        client.ask("COMMIT").await;
        other.ask(&format!("NOTIFY a, 'late {number}'")).await;
        assert_eq!(next(&mut client).await, said("a", &format!("late {number}")));
    }
}

#[tokio::test]
async fn payloads_in_another_encoding_are_converted_by_postgresql() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "3")
        .start_ready()
        .await;
    let mut latin = RawClient::connect(sidecar.port).await;
    let startup = [("database", database.name.as_str()), ("client_encoding", "LATIN1")];
    latin.log_in(USER, PASSWORD, &startup).await.unwrap();
    latin.ask("LISTEN a").await;
    let mut late = through(&sidecar, &database).await;
    late.ask("LISTEN a").await;
    late.ask("SET client_encoding = 'LATIN1'").await;
    let mut other = direct(&database).await;
    other.ask("NOTIFY a, 'plain'").await;
    assert_eq!(next(&mut latin).await, said("a", "plain"));
    assert_eq!(next(&mut late).await, said("a", "plain"));
    other.ask("NOTIFY a, 'café'").await;
    assert_eq!(latin.message().await.body[4..], *b"a\0caf\xe9\0");
    // It can't be told, and is not left without.
    assert_eq!(late.until_closed().await.last().unwrap().sqlstate(), "0A000");
}

#[tokio::test]
async fn a_listening_client_is_woken_by_nothing_that_it_does_not_listen_to() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "2")
        .start_ready()
        .await;
    let (mut one, mut two) = (through(&sidecar, &database).await, through(&sidecar, &database).await);
    one.ask("LISTEN a").await;
    two.ask("LISTEN b").await;
    let mut other = direct(&database).await;
    other.ask("NOTIFY b").await;
    assert_eq!(next(&mut two).await, said("b", ""));
    assert!(one.silent_for(Duration::from_millis(50)).await);
}

#[tokio::test]
async fn a_client_that_asks_is_shown_its_channels_and_nobody_elses() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "1")
        .start_ready()
        .await;
    let (mut one, mut two) = (through(&sidecar, &database).await, through(&sidecar, &database).await);
    one.ask("LISTEN a; LISTEN \"B\"").await;
    two.ask("LISTEN c").await;
    const SHOWN: &str = "SELECT string_agg(name, ' ' ORDER BY name COLLATE \"C\") FROM pg_listening_channels() name";
    for _ in 0..2 {
        assert_eq!(one.value(SHOWN).await, "B a");
        let group = [parse("", SHOWN), bind("", "", &[]), execute("", 0), sync()];
        two.send(&together(&group)).await;
        assert_eq!(two.expect("1 2 D C Z").await[2].row(), [Some("c".to_owned())]);
    }
    // Its backend hears it as well, and the client hears it once.
    assert_eq!(
        tags(&one.ask("SELECT pg_listening_channels(), pg_notify('a', '')").await),
        "TDDCAZ"
    );
    one.ask("UNLISTEN *").await;
    assert_eq!(
        one.value("SELECT count(*)::text FROM pg_listening_channels()").await,
        "0"
    );
    assert_unpinned(&sidecar).await;
}

#[tokio::test]
async fn where_no_listener_can_be_opened_a_client_listens_on_its_own_backend() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "1")
        .set("POOL__MAX_TOTAL", "1")
        .set("POOL__RESET_TIMEOUT", "300ms")
        .start_ready()
        .await;
    let (mut client, mut other) = (through(&sidecar, &database).await, direct(&database).await);
    client.ask("BEGIN").await;
    assert_eq!(tags(&client.ask("LISTEN a").await), "CZ");
    client.ask("COMMIT").await;
    other.ask("NOTIFY a, 'x'").await;
    assert_eq!(next(&mut client).await, said("a", "x"));
    let pins = sidecar.metric("pgsidecar_pins_total", &[("reason", "listen")]).await;
    assert_eq!(pins, Some(1.0));
    client.ask("DISCARD ALL").await;
    assert_eq!(through(&sidecar, &database).await.value("SELECT 'free'").await, "free");
}

#[tokio::test]
async fn a_reload_that_leads_elsewhere_closes_those_who_listen() {
    let (database, elsewhere) = (
        Postgres::shared().create_database(),
        Postgres::shared().create_database(),
    );
    let config = |database: &Database| {
        format!(
            "upstream: {{url: '{}'}}\ndatabases: {{app: {{dbname: {}}}}}\n",
            database.url(),
            database.name
        )
    };
    let sidecar = crate::support::sidecar::Builder::default()
        .config(config(&database))
        .start()
        .await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, "app").await;
    client.ask("LISTEN a").await;
    std::fs::write(sidecar.socket_directory().join("config.yaml"), config(&elsewhere)).unwrap();
    sidecar.signal(nix::sys::signal::Signal::SIGHUP);
    assert_eq!(client.until_closed().await.last().unwrap().sqlstate(), "57P01");
    listening_backends(&sidecar, 0.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everyone_hears_the_same_in_the_same_order_and_from_whom_it_was() {
    const SENDERS: u32 = 8;
    const EACH: u32 = 40;
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "3")
        .start_ready()
        .await;
    let mut own = direct(&database).await;
    own.ask("LISTEN a").await;
    let mut shared = Vec::new();
    for _ in 0..3 {
        let mut client = through(&sidecar, &database).await;
        client.ask("LISTEN a").await;
        shared.push(client);
    }
    let mut senders = tokio::task::JoinSet::new();
    for number in 0..SENDERS {
        let mut client = through(&sidecar, &database).await;
        senders.spawn(async move {
            for turn in 0..EACH {
                let sql = match turn % 3 {
                    0 => format!("NOTIFY a, '{number} {turn}'"),
                    1 => format!("SELECT pg_notify('a', '{number} {turn}')"),
                    _ => format!("BEGIN; NOTIFY a, '{number} {turn}'; COMMIT"),
                };
                client.ask(&sql).await;
            }
            (number, process_id(&client))
        });
    }
    let told: std::collections::HashMap<u32, u32> = senders.join_all().await.into_iter().collect();
    let mut expected = Vec::new();
    for _ in 0..SENDERS * EACH {
        expected.push(next(&mut own).await);
    }
    for client in &mut shared {
        for said in &expected {
            let (channel, payload, sender) = heard(&client.message().await);
            let number: u32 = payload.split(' ').next().unwrap().parse().unwrap();
            assert_eq!((channel, payload), *said);
            assert_eq!(sender, told[&number]);
        }
    }
    assert_unpinned(&sidecar).await;
}

#[tokio::test]
async fn what_a_client_listens_to_is_never_guessed() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "3")
        .set("LIMITS__STATEMENT_BYTES", "4KiB")
        .start_ready()
        .await;
    let long = format!("SELECT '{}'", "x".repeat(5000));
    for statements in [&["LISTEN a", "UNLISTEN U&\"a\""][..], &["BEGIN; LISTEN a", &long][..]] {
        let mut client = through(&sidecar, &database).await;
        client.ask(statements[0]).await;
        client.query(statements[1]).await;
        let words = client.until_closed().await;
        assert_eq!(words.last().unwrap().sqlstate(), "0A000", "{}", shown(&words));
    }
    // One that is decided on is not in doubt.
    let mut client = through(&sidecar, &database).await;
    client.ask("LISTEN a").await;
    assert_eq!(tags(&client.ask(&long).await), "TDCZ");
    assert_eq!(tags(&client.ask("NOTIFY a").await), "CAZ");
}

const LISTENING_ROUTINES: &str = "
    CREATE FUNCTION hear(c text) RETURNS void LANGUAGE plpgsql AS $$BEGIN EXECUTE 'LISTEN ' || quote_ident(c); END$$;
    CREATE FUNCTION hear_static() RETURNS void LANGUAGE plpgsql AS $$BEGIN LISTEN c; END$$;
    CREATE FUNCTION stop_hearing(c text) RETURNS void LANGUAGE plpgsql AS $$BEGIN EXECUTE 'UNLISTEN ' || quote_ident(c); END$$;
    CREATE FUNCTION stop_hearing_all() RETURNS void LANGUAGE plpgsql AS $$BEGIN UNLISTEN *; END$$";

/// Whether the client hears what is said on `c` behind these statements, as directly, and nobody else does. (An UNLISTEN of a
/// routine ends no LISTEN of the client's own text: that is with the shared listener.)
#[tokio::test]
async fn a_listen_or_unlisten_of_a_routine_is_its_clients_alone() {
    let database = Postgres::shared().create_database();
    Postgres::shared().psql(&database.name, LISTENING_ROUTINES);
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "3")
        .start_ready()
        .await;
    let mut speaker = direct(&database).await;
    let mut differences = String::new();
    for script in [
        &["SELECT hear('c')"][..],
        &["SELECT hear_static()"],
        &["DO $$BEGIN LISTEN c; END$$"],
        &["DO $$BEGIN EXECUTE 'LIS' || 'TEN c'; END$$"],
        &["LISTEN c", "SELECT stop_hearing('d')"],
        &["SELECT hear('c')", "UNLISTEN c"],
        &["SELECT hear('c')", "UNLISTEN *"],
        &["SELECT hear('c')", "SELECT stop_hearing('c')"],
        &["LISTEN c", "SELECT hear('c')"],
        &["LISTEN c", "SELECT stop_hearing('c')", "LISTEN c"],
        &["SELECT hear('c')", "DISCARD ALL"],
    ] {
        let mut seen = Vec::new();
        let mut stranger = through(&sidecar, &database).await;
        for mut client in [direct(&database).await, through(&sidecar, &database).await] {
            for sql in script {
                client.ask(sql).await;
            }
            // What it is shown is what its backend, or the ledger, knows.
            let shown = client.value("SELECT count(*) FROM pg_listening_channels()").await;
            assert_eq!(
                stranger.value("SELECT count(*) FROM pg_listening_channels()").await,
                "0"
            );
            speaker.ask("NOTIFY c, 'said'").await;
            let answer = client.ask("SELECT 1").await;
            // It comes before the answer or behind it.
            seen.push((shown, answer.iter().filter(|message| message.tag == b'A').count()));
            assert!(stranger.silent_for(Duration::ZERO).await);
        }
        if seen[0] != seen[1] {
            differences += &format!("{script:?}: {seen:?}\n");
        }
    }
    assert_eq!(differences, "");
}
