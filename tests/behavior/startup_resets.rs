//! What becomes of startup settings that SQL changes and takes back, step by step: every reply is that of PostgreSQL.

use std::fmt::Write as _;

use crate::support::postgres::{PASSWORD, Postgres, USER};
use crate::support::raw_client::{Message, RawClient};
use crate::support::sidecar::Sidecar;

/// A reply without what tells one server process from another.
fn essence(reply: &[Message]) -> Vec<String> {
    let say = |message: &Message| {
        let body = String::from_utf8_lossy(&message.body);
        match message.tag {
            b'E' => format!("E {}", message.sqlstate()),
            b'D' => format!("D {:?}", message.row()),
            b'T' => "T".to_owned(),
            tag => format!("{} {:?}", char::from(tag), body.trim_end_matches('\0')),
        }
    };
    reply.iter().map(say).collect()
}

/// Plays each script (messages apart by `|`) directly and over one backend that another client uses between transactions.
async fn play_like_postgresql(scripts: &[&str]) {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "1")
        .start_ready()
        .await;
    let started = [
        ("search_path", "mine"),
        ("TimeZone", "Asia/Tokyo"),
        ("DateStyle", "German"),
        ("database", &database.name),
    ];
    let mut stranger = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    let mut differences = String::new();
    for script in scripts {
        let mut direct = RawClient::connect(database.port).await;
        let mut through = RawClient::connect(sidecar.port).await;
        for client in [&mut direct, &mut through] {
            let login = client.log_in(USER, PASSWORD, &started).await;
            login.expect("the login succeeds");
        }
        let looks = ["SHOW search_path", "SHOW TimeZone", "SHOW DateStyle"];
        for sql in script.split('|').chain(looks).chain(["ROLLBACK"]).chain(looks) {
            let expected = essence(&direct.ask(sql).await);
            let got = through.ask(sql).await;
            if essence(&got) != expected {
                let _ = writeln!(differences, "{script}: {sql}:\n  {expected:?}\n  {:?}", essence(&got));
            }
            if got.last().is_some_and(|ready| *ready.body == *b"I") {
                assert_eq!(stranger.value("SHOW search_path").await, "\"$user\", public");
            }
        }
    }
    assert_eq!(differences, "");
    assert_eq!(sidecar.metric("pgsidecar_pins_total", &[]).await.unwrap_or(0.0), 0.0);
}

/// What the RESET made of it is undone with the block, and reported where PostgreSQL reports it.
#[tokio::test]
async fn trap_60_a_reset_in_a_block_that_fails_is_undone_and_reported_as_directly() {
    play_like_postgresql(&[
        "BEGIN|RESET ALL|SELECT 1/0|ROLLBACK",
        "BEGIN; RESET ALL; SELECT 1/0|ROLLBACK",
        "BEGIN|RESET ALL; SELECT 1/0|ROLLBACK",
        "BEGIN|SET DateStyle TO 'SQL'|RESET ALL|SELECT 1/0|ROLLBACK",
        "SET DateStyle TO 'SQL'|BEGIN|RESET ALL|SELECT 1/0|COMMIT",
        "SET DateStyle TO 'SQL'|BEGIN|RESET ALL; SELECT 1/0|COMMIT",
        "SET DateStyle TO 'SQL'|BEGIN|RESET ALL|SELECT 1|ROLLBACK",
        "SET DateStyle TO 'SQL'|RESET ALL; SELECT 1/0",
        "SET DateStyle TO 'SQL'|BEGIN|RESET DateStyle|SELECT 1/0|ROLLBACK",
        "SET DateStyle TO 'SQL'|BEGIN; RESET DateStyle; SELECT 1/0|ROLLBACK",
        "BEGIN; RESET ALL|SELECT 1/0|ROLLBACK AND CHAIN|SHOW DateStyle",
        "BEGIN|SAVEPOINT s|RESET ALL|SELECT 1/0|ROLLBACK TO s|SHOW DateStyle|COMMIT",
        "SET DateStyle TO 'SQL'|BEGIN|SAVEPOINT s|RESET ALL|SELECT 1/0|ROLLBACK TO s|SHOW DateStyle|COMMIT",
        "SET DateStyle TO 'ISO'|BEGIN|RESET ALL|SELECT 1/0|ROLLBACK",
        "SET DateStyle TO 'ISO'|BEGIN|SAVEPOINT s|RESET ALL|SELECT 1/0|ROLLBACK TO s|SHOW DateStyle|COMMIT",
    ])
    .await;
}

/// A RESET that is kept by a COMMIT is the base of the block behind it, and what is set there is undone alone.
#[tokio::test]
async fn trap_60_a_reset_that_a_chained_block_follows_is_kept_or_undone_as_directly() {
    play_like_postgresql(&[
        "BEGIN|RESET TimeZone|COMMIT AND CHAIN|SET TimeZone TO 'Etc/UTC'|ROLLBACK",
        "BEGIN; RESET TimeZone; COMMIT AND CHAIN; SET TimeZone TO 'Etc/UTC'; ROLLBACK",
        "BEGIN; RESET TimeZone|COMMIT AND CHAIN; SET TimeZone TO 'Etc/UTC'|ROLLBACK",
        "SET TimeZone TO 'Etc/GMT'|BEGIN|RESET TimeZone|COMMIT AND CHAIN|SET TimeZone TO 'Etc/UTC'|ROLLBACK",
        "SET TimeZone TO 'Etc/GMT'|BEGIN|RESET TimeZone|COMMIT AND CHAIN|SET TimeZone TO 'Etc/UTC'|ROLLBACK AND CHAIN|SHOW TimeZone",
        "SET TimeZone TO 'Etc/GMT'|BEGIN|RESET TimeZone|ROLLBACK AND CHAIN|SET TimeZone TO 'Etc/UTC'|ROLLBACK",
        "BEGIN|RESET search_path|COMMIT AND CHAIN|SET search_path TO a|ROLLBACK",
        "SET search_path TO b|BEGIN|RESET search_path|COMMIT AND CHAIN|SET search_path TO a|ROLLBACK",
        "SET search_path TO b|BEGIN|RESET search_path|ROLLBACK AND CHAIN|SET search_path TO a|ROLLBACK",
    ])
    .await;
}

/// A savepoint from before the RESET brings back what was set, for the chained block too.
#[tokio::test]
async fn trap_60_a_reset_that_is_rolled_back_to_a_savepoint_leaves_what_was_set() {
    play_like_postgresql(&[
        "BEGIN|SET TimeZone TO 'Etc/GMT'|SAVEPOINT s|RESET TimeZone|ROLLBACK TO s|COMMIT AND CHAIN|SHOW TimeZone|COMMIT",
        "BEGIN; SET TimeZone TO 'Etc/GMT'; SAVEPOINT s; RESET TimeZone|ROLLBACK TO s|COMMIT AND CHAIN|SHOW TimeZone|COMMIT",
        "BEGIN|SET TimeZone TO 'Etc/GMT'|SAVEPOINT s|RESET TimeZone; ROLLBACK TO s; COMMIT AND CHAIN|SHOW TimeZone|COMMIT",
        "BEGIN|SET TimeZone TO 'Etc/GMT'|SAVEPOINT s|RESET TimeZone|ROLLBACK TO s; COMMIT AND CHAIN|SHOW TimeZone|COMMIT",
        "SET TimeZone TO 'Etc/GMT'|BEGIN|SAVEPOINT s|RESET TimeZone|ROLLBACK TO s|COMMIT AND CHAIN|SHOW TimeZone|COMMIT",
        "SET TimeZone TO 'Etc/GMT'|BEGIN|SAVEPOINT s|RESET TimeZone; ROLLBACK TO s; COMMIT AND CHAIN|SHOW TimeZone|COMMIT",
        "SET TimeZone TO 'Etc/GMT'|BEGIN|SAVEPOINT s|RESET TimeZone|ROLLBACK TO s; COMMIT AND CHAIN|SHOW TimeZone|COMMIT",
        "BEGIN|SET TimeZone TO 'Etc/GMT'|SAVEPOINT s|RESET ALL|ROLLBACK TO s|COMMIT AND CHAIN|SHOW TimeZone|COMMIT",
        "BEGIN|SET TimeZone TO 'Etc/GMT'|SAVEPOINT s|RESET ALL|ROLLBACK TO s|COMMIT",
        "BEGIN|SET TimeZone TO 'Etc/GMT'|SAVEPOINT s|RESET ALL|SELECT 1/0|ROLLBACK TO s|COMMIT AND CHAIN|SHOW TimeZone|COMMIT",
        "BEGIN|SAVEPOINT s|RESET TimeZone|ROLLBACK TO s|COMMIT AND CHAIN|SHOW TimeZone|COMMIT",
        "BEGIN|SET search_path TO a|SAVEPOINT s|RESET search_path|ROLLBACK TO s|COMMIT AND CHAIN|SHOW search_path|COMMIT",
        "BEGIN; SET search_path TO a; SAVEPOINT s; RESET search_path|ROLLBACK TO s|COMMIT AND CHAIN|SHOW search_path|COMMIT",
        "BEGIN|SET search_path TO a|SAVEPOINT s|RESET search_path; ROLLBACK TO s; COMMIT AND CHAIN|SHOW search_path|COMMIT",
        "BEGIN|SET search_path TO a|SAVEPOINT s|RESET search_path|ROLLBACK TO s; COMMIT AND CHAIN|SHOW search_path|COMMIT",
        "SET search_path TO a|BEGIN|SAVEPOINT s|RESET search_path|ROLLBACK TO s|COMMIT AND CHAIN|SHOW search_path|COMMIT",
        "SET search_path TO a|BEGIN|SAVEPOINT s|RESET search_path; ROLLBACK TO s; COMMIT AND CHAIN|SHOW search_path|COMMIT",
        "SET search_path TO a|BEGIN|SAVEPOINT s|RESET search_path|ROLLBACK TO s; COMMIT AND CHAIN|SHOW search_path|COMMIT",
        "BEGIN|SET search_path TO a|SAVEPOINT s|RESET ALL|ROLLBACK TO s|COMMIT AND CHAIN|SHOW search_path|COMMIT",
        "BEGIN|SET search_path TO a|SAVEPOINT s|RESET ALL|ROLLBACK TO s|COMMIT",
        "BEGIN|SET search_path TO a|SAVEPOINT s|RESET ALL|SELECT 1/0|ROLLBACK TO s|COMMIT AND CHAIN|SHOW search_path|COMMIT",
        "BEGIN|SAVEPOINT s|RESET search_path|ROLLBACK TO s|COMMIT AND CHAIN|SHOW search_path|COMMIT",
        "BEGIN|SAVEPOINT s|RESET TimeZone|ROLLBACK TO s|COMMIT AND CHAIN|SHOW TimeZone|COMMIT",
    ])
    .await;
}
