//! `lastval` and `currval`: a client's own latest value or none, and for those who ask behind each INSERT never none.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::support::postgres::{Database, PASSWORD, Postgres, USER};
use crate::support::raw_client::{RawClient, bind, execute, parse, shown, sync, tags, together};
use crate::support::sidecar::Sidecar;

async fn sidecar_of(database: &Database, max_size: &str, sequence_pin_timeout: &str) -> Sidecar {
    Sidecar::builder(database)
        .set("POOL__MAX_SIZE", max_size)
        .set("POOL__SEQUENCE_PIN_TIMEOUT", sequence_pin_timeout)
        .start_ready()
        .await
}

async fn login(sidecar: &Sidecar, database: &str) -> RawClient {
    RawClient::login(sidecar.port, USER, PASSWORD, database).await
}

/// A table with a serial, in a pool in which somebody has asked for a last value.
async fn numbered(sidecar: &Sidecar, database: &Database) {
    let mut owner = login(sidecar, &database.name).await;
    owner.ask("CREATE TABLE numbered (id serial, who text)").await;
    let asked = owner.ask("SELECT lastval()").await;
    assert_eq!(asked[1].sqlstate(), "55000");
}

#[tokio::test]
async fn trap_68_the_last_value_of_a_sequence_is_the_clients_own_or_none() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar_of(&database, "1", "5s").await;
    let mut first = login(&sidecar, &database.name).await;
    let mut second = login(&sidecar, &database.name).await;
    first.ask("CREATE SEQUENCE numbers").await;
    first.ask("CREATE TABLE numbered (id serial, x int)").await;
    assert_eq!(first.value("SELECT nextval('numbers')").await, "1");
    // Another client on the same backend is told nothing of it, as in a session of its own.
    for sql in ["SELECT lastval()", "SELECT currval('numbers')"] {
        let answer = second.ask(sql).await;
        assert_eq!(
            (tags(&answer).as_str(), answer[1].sqlstate().as_str()),
            ("TEZ", "55000")
        );
        let asked = [parse("", sql), bind("", "", &[]), execute("", 0), sync()];
        second.send(&together(&asked)).await;
        second.expect("1 2 E Z").await;
    }
    second.ask("BEGIN").await;
    second.ask("INSERT INTO numbered (x) VALUES (1)").await;
    assert_eq!(second.value("SELECT lastval()").await, "1");
    second.ask("COMMIT").await;
    // Who asks once is expected to ask again: from now on its values stay with it.
    second.ask("INSERT INTO numbered (x) VALUES (2)").await;
    assert_eq!(second.value("SELECT lastval()").await, "2");
    assert_eq!(second.value("SELECT currval('numbered_id_seq')").await, "2");
}

#[tokio::test]
async fn a_sequence_pins_until_it_was_asked_for_or_for_sequence_pin_timeout() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar_of(&database, "1", "300ms").await;
    let pinned = [("state", "pinned")];
    let mut client = login(&sidecar, &database.name).await;
    client
        .ask("CREATE SEQUENCE s; SELECT nextval('s'); SELECT lastval()")
        .await;
    client.ask("SELECT nextval('s')").await;
    sidecar
        .wait_metric("pgsidecar_backends", &pinned, |count| count == 1.0)
        .await;
    assert_eq!(client.value("SELECT lastval()").await, "2");
    sidecar
        .wait_metric("pgsidecar_backends", &pinned, |count| count == 0.0)
        .await;
    client.ask("SELECT nextval('s')").await;
    sidecar
        .wait_metric("pgsidecar_pins_total", &[("reason", "sequence")], |count| count == 2.0)
        .await;
    sidecar
        .wait_metric("pgsidecar_backends", &pinned, |count| count == 0.0)
        .await;
    assert_eq!(client.value("SELECT lastval()").await, "3", "nobody drew meanwhile");
}

/// One of PHP's: each of its inserts is asked for in a request of its own. Yields the questions that were answered, and those
/// that were not; a number that is another's fails.
async fn inserts_and_asks(mut client: RawClient, who: String, times: usize) -> (usize, usize) {
    let mut counts = (0, 0);
    for nth in 0..times {
        let who = format!("{who}/{nth}");
        let inserted = client
            .ask(&format!("INSERT INTO numbered (who) VALUES ('{who}')"))
            .await;
        assert_eq!(tags(&inserted), "CZ", "{}", shown(&inserted));
        let answer = client.ask("SELECT LASTVAL()").await;
        if tags(&answer) == "TDCZ" {
            let id = answer[1].row()[0].clone().unwrap();
            let found = client.value(&format!("SELECT who FROM numbered WHERE id = {id}")).await;
            assert_eq!(found, who, "another's number");
            counts.0 += 1;
        } else {
            let refused = answer.iter().find(|message| message.tag == b'E').unwrap().report();
            assert_eq!(refused.sqlstate.as_str(), "55000", "{}", shown(&answer));
            assert!(refused.hint.is_some_and(|hint| hint.contains("sequence_pin_timeout")));
            counts.1 += 1;
        }
    }
    counts
}

#[tokio::test]
async fn phps_last_insert_id_is_right_from_a_fresh_connections_first_insert_on() {
    let database = Postgres::shared().create_database();
    // Whatever this machine does meanwhile: each is waited for for six seconds.
    let sidecar = sidecar_of(&database, "4", "60s").await;
    numbered(&sidecar, &database).await;
    let mut tasks = JoinSet::new();
    for task in 0..32 {
        let (port, name) = (sidecar.port, database.name.clone());
        tasks.spawn(async move {
            let mut answered = 0;
            for connection in 0..3 {
                let client = RawClient::login(port, USER, PASSWORD, &name).await;
                let (told, untold) = inserts_and_asks(client, format!("{task}/{connection}"), 4).await;
                assert_eq!(untold, 0);
                answered += told;
            }
            answered
        });
    }
    assert_eq!(tasks.join_all().await, [12; 32]);
    assert_eq!(
        sidecar.metric("pgsidecar_backends", &[("state", "pinned")]).await,
        Some(0.0)
    );
}

/// Clients that insert and never ask take nothing for long from those who do, nor from each other.
#[tokio::test]
async fn who_never_asks_starves_nobody_and_nobody_is_told_anothers_number() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar_of(&database, "4", "3s").await;
    numbered(&sidecar, &database).await;
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for task in 0..32 {
        let (port, name) = (sidecar.port, database.name.clone());
        tasks.spawn(async move {
            let mut client = RawClient::login(port, USER, PASSWORD, &name).await;
            if task % 2 == 0 {
                return inserts_and_asks(client, task.to_string(), 10).await;
            }
            for _ in 0..40 {
                let inserted = client.ask("INSERT INTO numbered (who) VALUES ('writer')").await;
                assert_eq!(tags(&inserted), "CZ", "{}", shown(&inserted));
                client.value("SELECT 1").await;
            }
            (0, 0)
        });
    }
    let (told, untold) = tasks
        .join_all()
        .await
        .into_iter()
        .fold((0, 0), |sum, counts| (sum.0 + counts.0, sum.1 + counts.1));
    assert_eq!(told + untold, 160);
    assert!(told > untold, "{told} told, {untold} not");
    // Sixteen writers, each waited for for six tenths of a second in all, over four backends.
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_client_that_is_told_what_it_drew_or_leaves_keeps_nothing() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar_of(&database, "1", "60s").await;
    numbered(&sidecar, &database).await;
    let mut other = login(&sidecar, &database.name).await;
    let backend = other.value("SELECT pg_backend_pid()").await;
    let mut client = login(&sidecar, &database.name).await;
    client
        .value("INSERT INTO numbered (who) VALUES ('told') RETURNING id")
        .await;
    other.value("SELECT 1").await;
    assert_eq!(
        sidecar.metric("pgsidecar_pins_total", &[("reason", "sequence")]).await,
        Some(0.0)
    );
    client.ask("INSERT INTO numbered (who) VALUES ('untold')").await;
    sidecar
        .wait_metric("pgsidecar_backends", &[("state", "pinned")], |count| count == 1.0)
        .await;
    drop(client);
    // It is neither reset nor closed, and tells nothing.
    assert_eq!(other.value("SELECT pg_backend_pid()").await, backend);
    assert_eq!(other.ask("SELECT lastval()").await[1].sqlstate(), "55000");
}

/// A value that was drawn before the latest, on another backend, is told no more.
#[tokio::test]
async fn an_older_value_of_ones_own_is_not_told_for_the_latest() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar_of(&database, "2", "5s").await;
    let mut client = login(&sidecar, &database.name).await;
    client.ask("CREATE SEQUENCE s").await;
    let mut other = login(&sidecar, &database.name).await;
    let mut third = login(&sidecar, &database.name).await;
    for sql in ["BEGIN", "COMMIT"] {
        // Both backends are open.
        other.ask(sql).await;
        third.ask(sql).await;
    }
    assert_eq!(client.value("SELECT nextval('s')").await, "1");
    let first = client.value("SELECT pg_backend_pid()").await;
    // Where there is another, others leave that one alone.
    third.ask("BEGIN").await;
    assert_ne!(third.value("SELECT pg_backend_pid()").await, first);
    other.ask("BEGIN").await;
    assert_eq!(other.value("SELECT pg_backend_pid()").await, first);
    third.ask("COMMIT").await;
    assert_eq!(client.value("SELECT nextval('s')").await, "2");
    other.ask("COMMIT").await;
    let second = client.value("SELECT pg_backend_pid()").await;
    assert_ne!(second, first, "it is where the latest is");
    third.ask("BEGIN").await;
    assert_eq!(third.value("SELECT pg_backend_pid()").await, second);
    let refused = client.ask("SELECT lastval()").await[1].report();
    assert_eq!(refused.sqlstate.as_str(), "55000");
    assert!(refused.hint.is_some_and(|hint| hint.contains("RETURNING")));
    third.ask("COMMIT").await;
}

/// Trap 68: what a routine or a trigger draws is in no text.
#[tokio::test]
async fn trap_68_what_is_drawn_unseen_is_told_to_nobody_else() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar_of(&database, "1", "5s").await;
    let mut client = login(&sidecar, &database.name).await;
    for sql in [
        "CREATE TABLE orders (id serial, what text)",
        "CREATE TABLE audit (id serial, what text)",
        "CREATE FUNCTION audited() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN INSERT INTO audit (what) VALUES ('a'); RETURN new; END $$",
        "CREATE TRIGGER auditing AFTER UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION audited()",
        "CREATE FUNCTION order_made() RETURNS void LANGUAGE sql AS $$ INSERT INTO orders (what) VALUES ('o') $$",
        "SELECT order_made()",
    ] {
        let answer = client.ask(sql).await;
        assert!(!tags(&answer).contains('E'), "{sql}: {}", shown(&answer));
    }
    client.ask("DISCARD SEQUENCES").await;
    let mut other = login(&sidecar, &database.name).await;
    for draws in [
        "UPDATE orders SET what = 'p'",
        "SELECT order_made()",
        "UPDATE orders SET id = DEFAULT",
    ] {
        other.ask(draws).await;
        assert_eq!(client.ask("SELECT lastval()").await[1].sqlstate(), "55000", "{draws}");
        // Who drew is told.
        other.ask(draws).await;
        assert_eq!(tags(&other.ask("SELECT lastval()").await), "TDCZ", "{draws}");
        assert_eq!(client.ask("SELECT lastval()").await[1].sqlstate(), "55000", "{draws}");
        // Neither does an own value stay where another's may stand.
        client.ask("INSERT INTO orders (what) VALUES ('mine')").await;
        let mine = client.value("SELECT lastval()").await;
        other.ask(draws).await;
        let answer = client.ask("SELECT lastval()").await;
        assert!(
            tags(&answer) == "TEZ" || answer[1].row()[0].as_ref() == Some(&mine),
            "{draws}"
        );
    }
}

/// The value is gone with its backend, and the client is not.
#[tokio::test]
async fn a_backend_that_dies_takes_the_value_with_it_and_not_the_client() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar_of(&database, "1", "60s").await;
    numbered(&sidecar, &database).await;
    let mut client = login(&sidecar, &database.name).await;
    client.ask("INSERT INTO numbered (who) VALUES ('me')").await;
    let backend = client.value("SELECT pg_backend_pid()").await;
    let pinned = [("state", "pinned")];
    sidecar
        .wait_metric("pgsidecar_backends", &pinned, |count| count == 1.0)
        .await;
    Postgres::shared().psql("postgres", &format!("SELECT pg_terminate_backend({backend}, 5000)"));
    sidecar
        .wait_metric("pgsidecar_backends", &pinned, |count| count == 0.0)
        .await;
    let refused = client.ask("SELECT lastval()").await[1].report();
    assert_eq!(refused.sqlstate.as_str(), "55000");
    assert!(refused.hint.is_some_and(|hint| hint.contains("sequence_pin_timeout")));
}

#[tokio::test]
async fn discard_forgets_what_was_drawn_wherever_it_was() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar_of(&database, "2", "5s").await;
    let mut client = login(&sidecar, &database.name).await;
    client.ask("CREATE SEQUENCE s").await;
    let mut other = login(&sidecar, &database.name).await;
    for discard in ["DISCARD SEQUENCES", "DISCARD ALL"] {
        client.ask("SELECT nextval('s')").await;
        other.ask("BEGIN").await;
        other.ask("SELECT 1").await;
        client.ask(discard).await;
        other.ask("COMMIT").await;
        let refused = client.ask("SELECT lastval()").await[1].report();
        assert_eq!((refused.sqlstate.as_str(), refused.hint), ("55000", None), "{discard}");
    }
    // Nor is anything lost where its sequence is gone.
    client.ask("SELECT nextval('s')").await;
    client.ask("SELECT lastval()").await;
    client.ask("DROP SEQUENCE s").await;
    let refused = client.ask("SELECT lastval()").await[1].report();
    assert_eq!((refused.sqlstate.as_str(), refused.hint), ("55000", None));
}
