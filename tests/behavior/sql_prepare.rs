//! SQL's PREPARE, EXECUTE and DEALLOCATE over backends on which others use the same names.

use bytes::BytesMut;

use crate::support::postgres::{Database, PASSWORD, Postgres, USER};
use crate::support::raw_client::{
    Message, RawClient, bind, close, describe, execute, parse, query, sync, tags, together,
};
use crate::support::sidecar::Sidecar;

async fn one_backend(database: &Database) -> Sidecar {
    Sidecar::builder(database)
        .set("POOL__MAX_SIZE", "1")
        .start_ready()
        .await
}

async fn login(sidecar: &Sidecar, database: &Database) -> RawClient {
    RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await
}

async fn never_pinned(sidecar: &Sidecar) {
    assert_eq!(
        sidecar.metric("pgsidecar_pins_total", &[("reason", "prepare")]).await,
        Some(0.0),
        "{}",
        sidecar.log()
    );
}

/// Bind, Execute and Sync of a statement.
fn run(statement: &str) -> BytesMut {
    together(&[bind("", statement, &[]), execute("", 0), sync()])
}

fn unnamed(sql: &str) -> BytesMut {
    together(&[parse("", sql), bind("", "", &[]), execute("", 0), sync()])
}

/// A message as it is compared: what we say ourselves of a name lacks the place in PostgreSQL's source.
fn essence(message: &Message) -> String {
    let body = String::from_utf8_lossy(&message.body);
    let body = body.split("\0Fprepare.c").next().unwrap_or_default();
    let body = body.split(" result type\0").next().unwrap_or_default();
    format!("{} {:?}", char::from(message.tag), body.trim_end_matches('\0'))
}

/// Another client of the same backend, with statements of its own under the same names.
async fn disturb(stranger: &mut RawClient) {
    for name in ["a", "b", "s"] {
        stranger.ask(&format!("DEALLOCATE {name}")).await;
        stranger.ask(&format!("PREPARE {name} AS SELECT 'a stranger''s'")).await;
        assert_eq!(stranger.value(&format!("EXECUTE {name}")).await, "a stranger's");
    }
}

/// Plays the steps directly and through the only backend, which a stranger uses in between. Every reply must be equal.
async fn plays_like_postgresql(setup: &str, steps: &[BytesMut]) {
    let cluster = Postgres::shared();
    let through = cluster.create_database();
    cluster.psql(&through.name, setup);
    // A copy has the same object identifiers, which descriptions of rows name.
    let direct = format!("{}_direct", through.name);
    cluster.psql(
        "postgres",
        &format!("CREATE DATABASE {direct} OWNER {USER} TEMPLATE {}", through.name),
    );
    let sidecar = one_backend(&through).await;
    let mut stranger = login(&sidecar, &through).await;
    let mut client = login(&sidecar, &through).await;
    let mut twin = RawClient::login(through.port, USER, PASSWORD, &direct).await;
    for (number, step) in steps.iter().enumerate() {
        twin.send(step).await;
        let expected = twin.until_ready().await;
        client.send(step).await;
        let got = client.until_ready().await;
        let essences = |replies: &[Message]| replies.iter().map(essence).collect::<Vec<_>>();
        assert_eq!(essences(&expected), essences(&got), "step {number}: {step:?}");
        if got.last().is_some_and(|ready| *ready.body == *b"I") {
            disturb(&mut stranger).await;
        }
    }
    never_pinned(&sidecar).await;
}

const TABLE: &str = "CREATE TABLE t (x int); INSERT INTO t VALUES (1), (2); GRANT ALL ON t TO PUBLIC";

#[tokio::test]
async fn trap_30_what_sql_prepared_follows_its_client() {
    plays_like_postgresql(
        TABLE,
        &[
            query("PREPARE a AS SELECT 'mine'"),
            query("EXECUTE a"),
            query("PREPARE b (int) AS SELECT x + $1 FROM t ORDER BY x;"),
            query("EXECUTE b(40)"),
            query("EXECUTE b('no number')"),
            query("EXECUTE b"),
            query("EXPLAIN (COSTS OFF) EXECUTE b(1)"),
            query("CREATE TABLE made AS EXECUTE b(1)"),
            query("SELECT 1; EXECUTE a; EXECUTE b(2)"),
            query("EXECUTE a; SELECT 1/0; EXECUTE b(2)"),
            query("BEGIN ISOLATION LEVEL SERIALIZABLE; EXECUTE b(3); COMMIT"),
            unnamed("EXECUTE a"),
            unnamed("EXECUTE b(5)"),
            query("DEALLOCATE a"),
            query("EXECUTE a"),
            unnamed("EXECUTE a"),
            query("EXECUTE b(6)"),
            query("DEALLOCATE PREPARE ALL"),
            query("EXECUTE b(7)"),
        ],
    )
    .await;
}

#[tokio::test]
async fn trap_30_prepare_is_not_transactional_and_what_failed_does_not_exist() {
    plays_like_postgresql(
        TABLE,
        &[
            query("BEGIN"),
            query("PREPARE a AS SELECT 1"),
            query("ROLLBACK"),
            query("EXECUTE a"),
            query("BEGIN"),
            query("PREPARE b AS SELECT nosuch"),
            query("PREPARE b AS SELECT 2"),
            query("ROLLBACK"),
            query("EXECUTE b"),
            query("PREPARE b AS SELECT nosuch"),
            query("EXECUTE b"),
            query("BEGIN"),
            query("DEALLOCATE a"),
            query("ROLLBACK"),
            query("EXECUTE a"),
            unnamed("PREPARE a AS SELECT 3"),
            unnamed("EXECUTE a"),
            together(&[parse("", "PREPARE b AS SELECT 4"), bind("p", "", &[]), sync()]),
            query("EXECUTE b"),
            unnamed("DEALLOCATE a"),
            query("EXECUTE a"),
        ],
    )
    .await;
}

#[tokio::test]
async fn trap_30_sql_and_protocol_share_one_namespace() {
    plays_like_postgresql(
        TABLE,
        &[
            query("PREPARE a (int) AS SELECT x + $1 AS sum FROM t ORDER BY x"),
            together(&[parse("s", "SELECT 'by protocol' AS how"), sync()]),
            query("PREPARE a AS SELECT 1"),
            query("PREPARE s AS SELECT 1"),
            together(&[parse("a", "SELECT 1"), sync()]),
            together(&[parse("s", "SELECT 1"), sync()]),
            together(&[describe('S', "a"), describe('S', "s"), sync()]),
            together(&[
                bind("", "a", &["7"]),
                describe('P', ""),
                execute("", 1),
                execute("", 0),
                sync(),
            ]),
            query("EXECUTE s"),
            run("s"),
            unnamed("EXECUTE s"),
            query("EXPLAIN (COSTS OFF) EXECUTE s"),
            together(&[close('S', "a"), sync()]),
            query("EXECUTE a(1)"),
            run("a"),
            together(&[describe('S', "a"), sync()]),
            together(&[parse("a", "SELECT 'again'"), sync()]),
            query("EXECUTE a"),
            query("DEALLOCATE a"),
            query("DEALLOCATE a"),
            run("a"),
            query("EXECUTE s; DEALLOCATE s; SELECT 1"),
            query("EXECUTE s"),
            run("s"),
        ],
    )
    .await;
}

/// Found by the twins: what goes to the backend for good does not go with a group that fails.
#[tokio::test]
async fn trap_30_an_execute_amid_a_group_that_fails_costs_no_name() {
    plays_like_postgresql(
        TABLE,
        &[
            together(&[parse("a", "PREPARE z AS SELECT 1"), parse("s", "SELECT 'kept'"), sync()]),
            together(&[
                parse("", "SELECT 1 / $1::int"),
                bind("", "", &["0"]),
                execute("", 0),
                query("EXECUTE a"),
                sync(),
            ]),
            together(&[describe('S', "a"), sync()]),
            together(&[parse("a", "SELECT 1"), sync()]),
            together(&[bind("", "", &[]), bind("", "a", &[]), execute("", 0), sync()]),
            query("EXECUTE s"),
            run("s"),
        ],
    )
    .await;
}

/// Found by the twins: what PostgreSQL is given to deallocate in place of a shared statement.
#[tokio::test]
async fn trap_30_a_deallocate_that_is_not_executed_leaves_nothing_behind() {
    plays_like_postgresql(
        TABLE,
        &[
            together(&[parse("a", "SELECT 1"), parse("d", "DEALLOCATE a"), sync()]),
            // There is such a portal already.
            together(&[bind("p", "a", &[]), bind("p", "d", &[]), execute("p", 0), sync()]),
            query(OWN),
            run("d"),
            query(OWN),
        ],
    )
    .await;
}

#[tokio::test]
async fn trap_30_several_deallocates_of_one_text_end_with_the_one_that_fails() {
    plays_like_postgresql(
        TABLE,
        &[
            query("PREPARE a AS SELECT 1"),
            query("PREPARE b AS SELECT 2"),
            together(&[parse("s", "SELECT 3"), sync()]),
            query("DEALLOCATE a; DEALLOCATE nosuch; DEALLOCATE b"),
            query("EXECUTE a"),
            query("EXECUTE b"),
            query("DEALLOCATE s; SELECT 1/0"),
            query("EXECUTE s"),
            query("BEGIN; DEALLOCATE b; ROLLBACK"),
            query("EXECUTE b"),
        ],
    )
    .await;
}

#[tokio::test]
async fn trap_30_in_a_failed_transaction_names_are_refused_and_kept() {
    plays_like_postgresql(
        TABLE,
        &[
            query("PREPARE a AS SELECT 1"),
            query("BEGIN"),
            query("SELECT 1/0"),
            query("EXECUTE a"),
            query("DEALLOCATE a"),
            query("PREPARE b AS SELECT 1"),
            unnamed("EXECUTE a"),
            query("ROLLBACK"),
            query("EXECUTE b"),
            query("EXECUTE a"),
            query("BEGIN"),
            query("EXECUTE a"),
            query("SELECT 1/0"),
            query("ROLLBACK; EXECUTE a"),
        ],
    )
    .await;
}

/// Literals are folded, and names looked up, under the settings of then.
#[tokio::test]
async fn trap_28_a_statement_keeps_the_settings_of_its_prepare() {
    let setup = "CREATE TABLE which (t text); INSERT INTO which VALUES ('public'); CREATE SCHEMA aside;
                 CREATE TABLE aside.which (t text); INSERT INTO aside.which VALUES ('aside');
                 GRANT ALL ON SCHEMA aside TO PUBLIC; GRANT ALL ON which, aside.which TO PUBLIC";
    plays_like_postgresql(
        setup,
        &[
            query("SET TimeZone = 'Asia/Shanghai'"),
            query("PREPARE a AS SELECT timestamptz '2024-03-01 12:00:00' AT TIME ZONE 'UTC'"),
            query("SET TimeZone = 'America/New_York'"),
            query("EXECUTE a"),
            query("SET search_path = aside, public"),
            query("PREPARE b AS SELECT t FROM which"),
            query("RESET search_path"),
            query("SELECT t FROM which"),
            query("EXECUTE b"),
            run("b"),
            query("RESET ALL"),
            query("EXECUTE a"),
        ],
    )
    .await;
}

/// What makes room for the statement that is executed leaves the name alone that it is about.
#[tokio::test]
async fn trap_26_a_name_that_a_bound_statement_is_about_is_not_evicted_for_it() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "1")
        .set("POOL__STATEMENT_CACHE_BYTES", "2000")
        .start_ready()
        .await;
    let mut client = login(&sidecar, &database).await;
    let padding = " ".repeat(600);
    for (text, error) in [("PREPARE a AS SELECT 1", "42P05"), ("DEALLOCATE a", "")] {
        client
            .send(&together(&[parse("s", &format!("{text}{padding}")), sync()]))
            .await;
        client.until_ready().await;
        let ended = client.ask("SELECT pg_terminate_backend(pg_backend_pid())").await;
        assert!(tags(&ended).ends_with("EZ"));
        for name in ["a", "b", "c", "d", "e"] {
            client.ask(&format!("PREPARE {name} AS SELECT 1")).await;
            assert_eq!(client.value(&format!("EXECUTE {name}")).await, "1");
        }
        client.send(&run("s")).await;
        let replies = client.until_ready().await;
        let refused = replies.iter().find(|reply| reply.tag == b'E');
        let sqlstate = refused.map(|reply| reply.report().sqlstate.to_string());
        assert_eq!(sqlstate.unwrap_or_default(), error, "{text}");
        client.send(&together(&[close('S', "s"), sync()])).await;
        client.until_ready().await;
    }
}

const SCHEMAS: &str = "CREATE SCHEMA aside; GRANT USAGE ON SCHEMA aside TO PUBLIC";
const CONSTANT: &str = "SELECT timestamptz '2024-03-01 12:00:00' AT TIME ZONE 'UTC'";

/// Another path of schemas lets PostgreSQL read a statement's text again at its next use, by the settings of that.
#[tokio::test]
async fn trap_28_a_constant_is_read_again_at_the_first_use_under_another_path() {
    plays_like_postgresql(
        SCHEMAS,
        &[
            query("SET TimeZone = 'UTC'"),
            together(&[parse("b", CONSTANT), sync()]),
            query(&format!("PREPARE a AS {CONSTANT}")),
            query("SET search_path = aside, public"),
            run("b"),
            query("EXECUTE a"),
            query("SET TimeZone = 'Asia/Shanghai'"),
            query("EXECUTE b"),
            run("b"),
            run("a"),
            query("EXECUTE a"),
            query("SET search_path = public"),
            query("SET TimeZone = 'America/New_York'"),
            together(&[describe('S', "b"), sync()]),
            query("SET TimeZone = 'UTC'"),
            run("b"),
            query("EXECUTE b"),
            query("EXECUTE a"),
        ],
    )
    .await;
}

#[tokio::test]
async fn trap_28_a_constant_is_not_read_again_under_a_path_of_the_same_schemas() {
    plays_like_postgresql(
        SCHEMAS,
        &[
            query("SET TimeZone = 'UTC'"),
            together(&[parse("b", CONSTANT), sync()]),
            query(&format!("PREPARE a AS {CONSTANT}")),
            query("SET search_path TO public, \"no such\""),
            query("SET TimeZone = 'Asia/Shanghai'"),
            run("b"),
            query("EXECUTE a"),
            query("SET search_path TO \"$user\", PUBLIC"),
            query("EXECUTE b"),
            run("a"),
        ],
    )
    .await;
}

/// A use that PostgreSQL refuses before it comes to the text reads nothing.
#[tokio::test]
async fn trap_28_a_use_that_fails_does_not_read_a_constant_again() {
    plays_like_postgresql(
        SCHEMAS,
        &[
            query("SET TimeZone = 'UTC'"),
            together(&[parse("b", CONSTANT), sync()]),
            query("SET search_path = aside, public"),
            together(&[bind("", "unknown", &[]), bind("", "b", &[]), sync()]),
            query("BEGIN"),
            query("SELECT 1/0"),
            run("b"),
            query("ROLLBACK"),
            query("SET TimeZone = 'Asia/Shanghai'"),
            run("b"),
            query("SET TimeZone = 'America/New_York'"),
            run("b"),
        ],
    )
    .await;
}

/// What is read again under another path may have other columns there, which PostgreSQL refuses.
#[tokio::test]
async fn trap_31_a_statement_with_other_columns_under_another_path_is_refused() {
    let columns = "SELECT 'constant' AS c, * FROM other";
    let setup = "CREATE TABLE other (x int); CREATE TABLE aside.other (x int, y int); GRANT ALL ON other, aside.other TO PUBLIC";
    plays_like_postgresql(
        &format!("{SCHEMAS}; {setup}"),
        &[
            together(&[parse("b", columns), describe('S', "b"), sync()]),
            query(&format!("PREPARE a AS {columns}")),
            run("b"),
            query("EXECUTE a"),
            query("SET search_path = aside, public"),
            run("b"),
            query("EXECUTE a"),
            query("RESET search_path"),
            run("b"),
            query("EXECUTE a"),
        ],
    )
    .await;
}

#[tokio::test]
async fn trap_28_the_unnamed_statement_is_read_again_under_another_path_too() {
    let set = |name, sql: &str| together(&[parse(name, sql), sync()]);
    plays_like_postgresql(
        SCHEMAS,
        &[
            query("SET TimeZone = 'UTC'"),
            set("path", "SET search_path = aside, public"),
            set("zone", "SET TimeZone = 'Asia/Shanghai'"),
            set("", CONSTANT),
            run("path"),
            run(""),
            run("zone"),
            run(""),
        ],
    )
    .await;
}

#[tokio::test]
async fn trap_28_the_unnamed_statement_keeps_its_constant_behind_a_setting_of_its_own_group() {
    let set_zone = "SELECT set_config('TimeZone', 'Europe/Berlin', false)";
    let use_both = [
        bind("", "b", &[]),
        execute("", 0),
        bind("", "", &[]),
        execute("", 0),
        sync(),
    ];
    plays_like_postgresql(
        SCHEMAS,
        &[
            query("SET TimeZone = 'Asia/Shanghai'"),
            together(&[parse("b", set_zone), sync()]),
            together(&[parse("", CONSTANT), sync()]),
            run("b"),
            together(&use_both),
            run(""),
        ],
    )
    .await;
}

/// What can't be made again fails as it would have failed, and nothing else runs in its place.
#[tokio::test]
async fn what_can_not_be_prepared_again_fails_as_its_use_would() {
    let setup =
        "CREATE TABLE t (x int); CREATE TABLE log (y int); ALTER TABLE t OWNER TO app; GRANT ALL ON log TO PUBLIC";
    plays_like_postgresql(
        setup,
        &[
            query("PREPARE a AS SELECT * FROM t"),
            together(&[parse("", "SELECT 'unnamed'"), sync()]),
            query("DROP TABLE t"),
            query("EXECUTE a"),
            run(""),
            run("a"),
            query("INSERT INTO log VALUES (1)"),
            query("BEGIN"),
            query("EXECUTE a"),
            query("SELECT 1"),
            query("COMMIT"),
            query("DEALLOCATE a"),
            query("SELECT * FROM log"),
        ],
    )
    .await;
}

#[tokio::test]
async fn trap_13_what_names_statements_may_be_sent_in_one_burst() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let (mut client, mut stranger) = (login(&sidecar, &database).await, login(&sidecar, &database).await);
    disturb(&mut stranger).await;
    let burst = [
        query("PREPARE a AS SELECT 'mine'"),
        query("EXECUTE a"),
        query("EXECUTE b"),
        unnamed("EXECUTE a"),
        query("DEALLOCATE a"),
        query("EXECUTE a"),
        query("PREPARE a AS SELECT 'again'"),
        run("a"),
    ];
    client.send(&together(&burst)).await;
    let mut seen = String::new();
    for _ in 0..burst.len() {
        seen.push_str(&tags(&client.until_ready().await));
        seen.push(' ');
    }
    assert_eq!(seen, "CZ TDCZ EZ 12DCZ CZ EZ CZ 2DCZ ");
    never_pinned(&sidecar).await;
}

#[tokio::test]
async fn what_a_prepared_statement_holds_pins_when_it_is_executed() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let mut client = login(&sidecar, &database).await;
    client.ask("PREPARE a AS SELECT pg_advisory_lock(1)").await;
    client.ask("DISCARD PLANS").await;
    client.ask("EXECUTE a").await;
    let lock = [("reason", "advisory_lock")];
    assert!(sidecar.metric("pgsidecar_pins_total", &lock).await > Some(0.0));
    never_pinned(&sidecar).await;
}

/// What a client sees of its prepared statements, without what tells when they were made and how often they were used.
const OWN: &str = "SELECT name, statement, parameter_types, from_sql FROM pg_prepared_statements ORDER BY name";

#[tokio::test]
async fn pg_prepared_statements_tells_the_clients_own_and_nobody_elses() {
    plays_like_postgresql(
        TABLE,
        &[
            query(OWN),
            query("PREPARE a (int, text) AS SELECT x + $1, $2 FROM t;"),
            together(&[parse("s", "SELECT $1::date"), parse("", "SELECT 'unnamed'"), sync()]),
            query(OWN),
            query(OWN),
            unnamed(OWN),
            query("BEGIN"),
            query(OWN),
            query("PREPARE b AS SELECT 1"),
            query(OWN),
            query("ROLLBACK"),
            query(&format!("PREPARE list AS {OWN}")),
            query("EXECUTE list"),
            together(&[parse("listing", OWN), bind("", "listing", &[]), execute("", 0), sync()]),
            run("listing"),
            together(&[close('S', "listing"), sync()]),
            query("DEALLOCATE a"),
            query(OWN),
            query(&format!("SELECT 1; {OWN}; EXECUTE b")),
            query("SELECT name FROM pg_prepared_statement() ORDER BY name"),
            query("DEALLOCATE ALL"),
            query(OWN),
            // A name that is taken, and one that is taken away in a group.
            together(&[parse("s", OWN), sync()]),
            together(&[parse("s", OWN), sync()]),
            query(OWN),
            unnamed("DEALLOCATE s"),
            query(OWN),
            query("BEGIN"),
            query("SELECT 1/0"),
            query(OWN),
        ],
    )
    .await;
}

/// Statements that a client prepared elsewhere stand in the order in which it prepared them.
#[tokio::test]
async fn pg_prepared_statements_tells_the_order_of_preparing() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let mut client = login(&sidecar, &database).await;
    for name in ["z", "b", "m", "a"] {
        client.send(&together(&[parse(name, "SELECT 1"), sync()])).await;
        assert_eq!(tags(&client.until_ready().await), "1Z");
    }
    let order = "SELECT string_agg(name, '' ORDER BY prepare_time) FROM pg_prepared_statements";
    assert_eq!(client.value(order).await, "zbma");
}

/// Whoever looks at its statements takes nobody else's away.
#[tokio::test]
async fn what_is_put_aside_for_one_who_looks_is_there_again_for_the_others() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let (mut one, mut two) = (login(&sidecar, &database).await, login(&sidecar, &database).await);
    one.send(&together(&[parse("s", "SELECT 'one'"), sync()])).await;
    one.expect("1 Z").await;
    one.ask("PREPARE a AS SELECT 'one, too'").await;
    for _ in 0..2 {
        assert_eq!(two.value("SELECT count(*) FROM pg_prepared_statements").await, "0");
        one.send(&run("s")).await;
        assert_eq!(one.expect("2 D C Z").await[1].row(), [Some("one".to_owned())]);
        assert_eq!(one.value("EXECUTE a").await, "one, too");
        assert_eq!(one.value("SELECT count(*) FROM pg_prepared_statements").await, "2");
    }
}

#[tokio::test]
async fn a_text_that_hides_what_it_executes_reaches_no_strangers_statement() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let (mut client, mut stranger) = (login(&sidecar, &database).await, login(&sidecar, &database).await);
    disturb(&mut stranger).await;
    let hidden = "DO $$ BEGIN EXECUTE 'EXECUTE a'; END $$";
    assert_eq!(client.ask(hidden).await[0].sqlstate(), "26000");
    // Its backend is its own from now on, and goes with it.
    drop(client);
    let mut client = login(&sidecar, &database).await;
    client.ask("PREPARE a AS SELECT 1").await;
    disturb(&mut stranger).await;
    assert_eq!(tags(&client.ask(hidden).await), "CZ");
    assert_eq!(client.ask("EXECUTE \"é\"").await[0].sqlstate(), "26000");
}

#[tokio::test]
async fn equal_statements_of_two_clients_are_prepared_once() {
    let database = Postgres::shared().create_database();
    Postgres::shared().psql(
        &database.name,
        "CREATE VIEW on_backend AS SELECT * FROM pg_prepared_statements; GRANT SELECT ON on_backend TO PUBLIC",
    );
    let sidecar = one_backend(&database).await;
    let (mut one, mut two) = (login(&sidecar, &database).await, login(&sidecar, &database).await);
    for client in [&mut one, &mut two] {
        client.ask("PREPARE a AS SELECT $1::int").await;
    }
    for _ in 0..4 {
        one.ask("EXECUTE a(1)").await;
        two.ask("EXECUTE a(1)").await;
    }
    let plans = one
        .value("SELECT custom_plans + generic_plans FROM on_backend WHERE name = 'a'")
        .await;
    assert_eq!(plans, "8", "as many as it was executed since the second PREPARE");
}

/// Traps 26 and 32: names without end, of which a backend keeps few.
#[tokio::test]
async fn trap_26_32_a_small_cache_forgets_no_name() {
    let database = Postgres::shared().create_database();
    Postgres::shared().psql(
        &database.name,
        "CREATE VIEW on_backend AS SELECT * FROM pg_prepared_statements; GRANT SELECT ON on_backend TO PUBLIC",
    );
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "1")
        .set("POOL__STATEMENT_CACHE_BYTES", "2000")
        .start_ready()
        .await;
    let mut client = login(&sidecar, &database).await;
    for number in 0..100 {
        client.ask(&format!("PREPARE p{number} AS SELECT {number}")).await;
    }
    for number in 0..100 {
        assert_eq!(client.value(&format!("EXECUTE p{number}")).await, number.to_string());
    }
    let left = client.value("SELECT count(*) FROM on_backend").await;
    assert!(left.parse::<usize>().unwrap() < 12, "{left}");
    assert_eq!(client.value("SELECT count(*) FROM pg_prepared_statements").await, "100");
    never_pinned(&sidecar).await;
}

#[tokio::test]
async fn trap_32_what_is_too_much_for_a_client_pins() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("LIMITS__CLIENT_STATEMENT_BYTES", "2000")
        .start_ready()
        .await;
    let mut client = login(&sidecar, &database).await;
    let long = "x".repeat(3000);
    client.ask(&format!("PREPARE a AS SELECT '{long}'")).await;
    assert_eq!(client.value("EXECUTE a").await, long);
    let pins = sidecar.metric("pgsidecar_pins_total", &[("reason", "prepare")]).await;
    assert_eq!(pins, Some(1.0));
}

/// Trap 31: the columns are those of the PREPARE, on any backend, or PostgreSQL's 0A000.
#[tokio::test]
async fn trap_31_a_statement_whose_columns_have_changed_is_refused_on_every_backend() {
    let setup = "CREATE TABLE t (x int); INSERT INTO t VALUES (1); ALTER TABLE t OWNER TO app";
    let database = Postgres::shared().create_database();
    Postgres::shared().psql(&database.name, setup);
    let sidecar = one_backend(&database).await;
    let (mut client, mut stranger) = (login(&sidecar, &database).await, login(&sidecar, &database).await);
    client.ask("PREPARE a AS SELECT * FROM t").await;
    client.ask("PREPARE b AS SELECT x FROM t").await;
    disturb(&mut stranger).await;
    stranger.ask("ALTER TABLE t ADD y int").await;
    for _ in 0..2 {
        let refused = client.ask("EXECUTE a").await;
        assert_eq!(
            (refused[0].sqlstate().as_str(), tags(&refused).as_str()),
            ("0A000", "EZ")
        );
        client.send(&run("a")).await;
        assert_eq!(client.expect("E Z").await[0].sqlstate(), "0A000");
        assert_eq!(client.value("EXECUTE b").await, "1");
        client.send(&run("b")).await;
        client.expect("2 D C Z").await;
        disturb(&mut stranger).await;
    }
    client.ask("BEGIN").await;
    assert_eq!(client.ask("EXECUTE a").await[0].sqlstate(), "0A000");
    assert_eq!(client.ask("SELECT 1").await[0].sqlstate(), "25P02");
    client.ask("ROLLBACK").await;
    client.ask("DEALLOCATE a").await;
    client.ask("PREPARE a AS SELECT * FROM t").await;
    disturb(&mut stranger).await;
    assert_eq!(client.ask("EXECUTE a").await[1].row(), [Some("1".to_owned()), None]);
    // Changed in the transaction that prepared it.
    client.ask("DEALLOCATE a").await;
    client.ask("BEGIN").await;
    client.ask("PREPARE a AS SELECT * FROM t").await;
    client.ask("ALTER TABLE t ADD z int").await;
    client.ask("COMMIT").await;
    assert_eq!(client.ask("EXECUTE a").await[0].sqlstate(), "0A000");
    disturb(&mut stranger).await;
    assert_eq!(client.ask("EXECUTE a").await[0].sqlstate(), "0A000");
    never_pinned(&sidecar).await;
}

/// A change that nobody saw: PostgreSQL is the first to know, and one refusal renews what clients share.
#[tokio::test]
async fn trap_31_one_refusal_renews_what_another_client_prepared_before_the_change() {
    let database = Postgres::shared().create_database();
    Postgres::shared().psql(&database.name, "CREATE TABLE t (x int); GRANT ALL ON t TO PUBLIC");
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "2")
        .start_ready()
        .await;
    let (mut before, mut after) = (login(&sidecar, &database).await, login(&sidecar, &database).await);
    before.ask("PREPARE a AS SELECT * FROM t").await;
    Postgres::shared().psql(&database.name, "ALTER TABLE t ADD y int");
    // On the other backend.
    before.ask("BEGIN").await;
    after.ask("PREPARE a AS SELECT * FROM t").await;
    after.ask("BEGIN").await;
    before.ask("COMMIT").await;
    assert_eq!(before.ask("EXECUTE a").await[0].sqlstate(), "0A000");
    after.ask("COMMIT").await;
    for _ in 0..2 {
        assert_eq!(tags(&after.ask("EXECUTE a").await), "TCZ");
        assert_eq!(before.ask("EXECUTE a").await[0].sqlstate(), "0A000");
    }
}

/// What can't be made ahead of a Query fails that Query alone, whatever was sent before and behind it.
#[tokio::test]
async fn trap_14_a_query_that_fails_ahead_of_itself_is_answered_like_any_other() {
    let database = Postgres::shared().create_database();
    let setup = "CREATE TABLE t (x int); ALTER TABLE t OWNER TO app";
    Postgres::shared().psql(&database.name, setup);
    let sidecar = one_backend(&database).await;
    let (mut client, mut stranger) = (login(&sidecar, &database).await, login(&sidecar, &database).await);
    client.ask("PREPARE a AS DELETE FROM t").await;
    disturb(&mut stranger).await;
    stranger.ask("DROP TABLE t").await;
    for _ in 0..2 {
        let burst = [
            query("SELECT 1"),
            query("EXECUTE a"),
            query("SELECT 2"),
            query("EXECUTE a"),
            unnamed("SELECT 3"),
        ];
        client.send(&together(&burst)).await;
        let mut seen = String::new();
        for _ in 0..burst.len() {
            let replies = client.until_ready().await;
            seen.push_str(&tags(&replies));
            seen.push(' ');
        }
        assert_eq!(seen, "TDCZ EZ TDCZ EZ 12DCZ ");
    }
    disturb(&mut stranger).await;
    never_pinned(&sidecar).await;
}

/// SQL prepares no LISTEN, but executes one that the protocol prepared.
#[tokio::test]
async fn a_listen_that_sql_executes_is_heard() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::start(&database).await;
    let (mut client, mut other) = (login(&sidecar, &database).await, login(&sidecar, &database).await);
    client.send(&together(&[parse("s", "LISTEN channel"), sync()])).await;
    client.expect("1 Z").await;
    client.ask("EXECUTE s").await;
    other.ask("NOTIFY channel, 'said'").await;
    let heard = client.message().await;
    assert!(
        heard.tag == b'A' && heard.body.ends_with(b"channel\0said\0"),
        "{heard:?}"
    );
}

/// A statement that another backend can't prepare any more fails as it would directly: at Bind, with PostgreSQL's code.
#[tokio::test]
async fn trap_30_what_cant_be_prepared_again_is_told_at_its_bind() {
    plays_like_postgresql(
        "CREATE TABLE gone (x int); GRANT ALL ON gone TO PUBLIC; ALTER TABLE gone OWNER TO app",
        &[
            query("PREPARE a AS SELECT x FROM gone"),
            run("a"),
            query("DROP TABLE gone"),
            run("a"),
            query("SELECT 1"),
            query("BEGIN"),
            run("a"),
            query("ROLLBACK"),
            query("EXECUTE a"),
            query("CREATE TABLE gone (x int, y int)"),
            run("a"),
            query("DEALLOCATE a"),
            run("a"),
        ],
    )
    .await;
}

/// The isolation level of a block is chosen before its first EXECUTE, wherever the statement was prepared.
#[tokio::test]
async fn trap_30_an_execute_comes_behind_the_isolation_level_of_its_block() {
    let choose = "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE";
    plays_like_postgresql(
        "",
        &[
            query("PREPARE a AS SELECT current_setting('transaction_isolation')"),
            query("BEGIN"),
            query(choose),
            query("EXECUTE a"),
            query("COMMIT"),
            query(&format!("BEGIN; {choose}; EXECUTE a; COMMIT")),
            query(&format!("{choose}; EXECUTE a")),
            query("BEGIN"),
            query("EXECUTE a"),
            query(choose),
            query("ROLLBACK"),
        ],
    )
    .await;
}
