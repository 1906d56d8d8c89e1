//! When PostgreSQL reads a prepared statement's text again, for one client, on a backend that others use.
//!
//! Each client has a twin that is connected directly: whatever the others do, both get the same rows.

use bytes::BytesMut;

use crate::support::postgres::{Database, PASSWORD, Postgres, USER};
use crate::support::raw_client::{Message, RawClient, bind, describe, execute, parse, query, sync, together};
use crate::support::sidecar::Sidecar;

const SCHEMAS: &str = "CREATE SCHEMA aside; GRANT USAGE ON SCHEMA aside TO PUBLIC";
/// Read by the TimeZone of the moment in which it is parsed.
const CONSTANT: &str = "SELECT timestamptz '2024-03-01 12:00:00' AT TIME ZONE 'UTC'";

/// Clients of one backend, with their twins.
struct Scene {
    database: Database,
    direct: String,
    sidecar: Sidecar,
}

impl Scene {
    async fn new() -> Self {
        let cluster = Postgres::shared();
        let database = cluster.create_database();
        cluster.psql(&database.name, SCHEMAS);
        let direct = format!("{}_direct", database.name);
        cluster.psql(
            "postgres",
            &format!("CREATE DATABASE {direct} OWNER {USER} TEMPLATE {}", database.name),
        );
        let sidecar = Sidecar::builder(&database)
            .set("POOL__MAX_SIZE", "1")
            .start_ready()
            .await;
        Self {
            database,
            direct,
            sidecar,
        }
    }

    async fn client(&self) -> Twins {
        Twins {
            through: RawClient::login(self.sidecar.port, USER, PASSWORD, &self.database.name).await,
            direct: RawClient::login(self.database.port, USER, PASSWORD, &self.direct).await,
        }
    }
}

/// A client and its twin.
struct Twins {
    through: RawClient,
    direct: RawClient,
}

impl Twins {
    /// Both are sent the same, and get the same.
    async fn play(&mut self, steps: &[BytesMut]) {
        for step in steps {
            self.direct.send(step).await;
            self.through.send(step).await;
            let (expected, got) = (self.direct.until_ready().await, self.through.until_ready().await);
            let all = |replies: &[Message]| replies.iter().map(told).collect::<Vec<_>>();
            assert_eq!(all(&expected), all(&got), "{step:?}");
        }
    }
}

impl Twins {
    /// The backend that has the client's statements is gone, and its twin's is not.
    async fn lose_backend(&mut self) {
        let ended = self.through.ask("SELECT pg_terminate_backend(pg_backend_pid())").await;
        assert!(ended.iter().any(|reply| reply.tag == b'E'));
    }
}

fn told(message: &Message) -> String {
    format!(
        "{} {:?}",
        char::from(message.tag),
        String::from_utf8_lossy(&message.body)
    )
}

fn prepare(name: &str) -> BytesMut {
    together(&[parse(name, CONSTANT), sync()])
}

fn run(name: &str) -> BytesMut {
    together(&[bind("", name, &[]), execute("", 0), sync()])
}

fn zone(name: &str) -> BytesMut {
    query(&format!("SET TimeZone = '{name}'"))
}

/// What one client's transaction makes PostgreSQL read again, by the settings of that, is another client's no more.
async fn one_clients_path_leaves_others_alone(sets_path: &str, end: &str) {
    let scene = Scene::new().await;
    let (mut one, mut other) = (scene.client().await, scene.client().await);
    for client in [&mut one, &mut other] {
        client
            .play(&[
                zone("UTC"),
                prepare("s"),
                query(&format!("PREPARE q AS {CONSTANT}")),
                run("s"),
                query("EXECUTE q"),
            ])
            .await;
    }
    let block = [zone("Asia/Shanghai"), query("BEGIN"), query(sets_path)];
    one.play(&block).await;
    one.play(&[run("s"), query("EXECUTE q"), run("s"), query(end)]).await;
    other
        .play(&[zone("America/New_York"), run("s"), query("EXECUTE q")])
        .await;
    one.play(&[run("s"), query("EXECUTE q"), zone("UTC"), run("s"), query("EXECUTE q")])
        .await;
    other.play(&[zone("UTC"), run("s"), query("EXECUTE q")]).await;
}

#[tokio::test]
async fn trap_28_what_a_local_path_makes_of_a_constant_is_its_own_clients() {
    one_clients_path_leaves_others_alone("SET LOCAL search_path = aside", "COMMIT").await;
}

#[tokio::test]
async fn trap_28_what_a_path_amid_its_transaction_makes_of_a_constant_is_its_own_clients() {
    one_clients_path_leaves_others_alone("SET search_path = aside, public", "ROLLBACK").await;
}

#[tokio::test]
async fn trap_28_what_a_path_that_stays_makes_of_a_constant_is_its_own_clients() {
    one_clients_path_leaves_others_alone("SET search_path = aside, public", "COMMIT").await;
}

#[tokio::test]
async fn trap_28_a_role_without_a_schema_of_its_own_reads_nothing_again() {
    one_clients_path_leaves_others_alone("SET LOCAL ROLE NONE", "COMMIT").await;
}

/// The same within one text.
#[tokio::test]
async fn trap_28_what_a_text_sets_before_it_executes_a_name_is_its_own_clients() {
    let scene = Scene::new().await;
    let (mut one, mut other) = (scene.client().await, scene.client().await);
    for client in [&mut one, &mut other] {
        let prepare = query(&format!("PREPARE q AS {CONSTANT}"));
        client.play(&[zone("UTC"), prepare, query("EXECUTE q")]).await;
    }
    one.play(&[
        zone("Asia/Shanghai"),
        query("BEGIN; SET LOCAL search_path = aside; EXECUTE q; COMMIT"),
    ])
    .await;
    other.play(&[zone("America/New_York"), query("EXECUTE q")]).await;
    one.play(&[query("EXECUTE q"), zone("UTC"), query("EXECUTE q")]).await;
}

/// A backend with temporary tables has another path than before, for everybody who comes after. (The first one of all
/// has PostgreSQL read everything again everywhere, which is why the other client comes later.)
#[tokio::test]
async fn trap_28_what_a_temporary_table_makes_of_a_constant_is_its_own_clients() {
    let scene = Scene::new().await;
    let (mut one, mut other) = (scene.client().await, scene.client().await);
    one.play(&[zone("UTC"), prepare("s"), prepare("t"), run("s"), run("t")])
        .await;
    one.play(&[
        zone("Asia/Shanghai"),
        query("CREATE TEMPORARY TABLE mine (x int)"),
        run("s"),
        query("DROP TABLE mine"),
    ])
    .await;
    // It waits for the backend until the pin is proven to be over.
    other.play(&[zone("UTC"), prepare("s"), prepare("t")]).await;
    other.play(&[zone("America/New_York"), run("s"), run("t")]).await;
}

/// What else a pinned client has in force nobody knows, but what PostgreSQL reports is known.
#[tokio::test]
async fn trap_28_a_constant_that_a_pinned_client_has_prepared_means_the_same_by_its_own_name() {
    let scene = Scene::new().await;
    let mut client = scene.client().await;
    let unnamed = |sql: &str| together(&[parse("", sql), bind("", "", &[]), execute("", 0), sync()]);
    client
        .play(&[
            zone("UTC"),
            query("CREATE TEMPORARY TABLE mine (x int)"),
            prepare("s"),
            together(&[
                parse("", "SET TimeZone = 'America/New_York'"),
                bind("", "", &[]),
                execute("", 0),
                prepare("t"),
            ]),
            zone("Asia/Shanghai"),
        ])
        .await;
    client
        .play(&[
            query("EXECUTE s; EXECUTE t"),
            unnamed("EXECUTE s"),
            run("s"),
            query("BEGIN; SET LOCAL TimeZone = 'UTC'"),
            prepare("u"),
            query("COMMIT"),
            query("EXECUTE u"),
            run("t"),
        ])
        .await;
}

/// What the settings at its Parse have come to is never told, because the transaction ended in the same group.
#[tokio::test]
async fn trap_28_a_statement_of_a_group_that_ends_the_block_is_taught_as_it_was_parsed() {
    let scene = Scene::new().await;
    let mut client = scene.client().await;
    let group = [
        parse("s", CONSTANT),
        parse("", "ROLLBACK"),
        bind("", "", &[]),
        execute("", 0),
        sync(),
    ];
    client
        .play(&[
            zone("UTC"),
            query("BEGIN; SET work_mem = '7MB'; COMMIT AND CHAIN"),
            together(&group),
        ])
        .await;
    client.lose_backend().await;
    client.play(&[zone("Asia/Shanghai"), run("s")]).await;
}

/// A path that was committed in a chained block is not known before that ends, but holds.
#[tokio::test]
async fn trap_28_a_statement_that_is_taught_amid_a_chained_block_is_read_under_its_path() {
    let scene = Scene::new().await;
    let mut client = scene.client().await;
    client
        .play(&[
            zone("Asia/Shanghai"),
            prepare("s"),
            query(&format!("PREPARE q AS {CONSTANT}")),
            run("s"),
        ])
        .await;
    // The backend that has them is gone.
    let ended = client
        .through
        .ask("SELECT pg_terminate_backend(pg_backend_pid())")
        .await;
    assert!(ended.iter().any(|reply| reply.tag == b'E'));
    client
        .play(&[
            query("BEGIN; SET search_path = aside, public; SAVEPOINT a; RESET search_path; ROLLBACK TO a; COMMIT AND CHAIN"),
            zone("UTC"),
            run("s"),
            query("EXECUTE q"),
            query("COMMIT"),
            zone("America/New_York"),
            run("s"),
            query("EXECUTE q"),
        ])
        .await;
}

/// A Describe has PostgreSQL read the text again too; not so where it is skipped.
#[tokio::test]
async fn trap_28_a_describe_that_is_skipped_reads_nothing_again() {
    let scene = Scene::new().await;
    let mut client = scene.client().await;
    client
        .play(&[
            zone("UTC"),
            prepare("s"),
            query(&format!("PREPARE q AS {CONSTANT}")),
            query("SET search_path = aside, public"),
            zone("Asia/Shanghai"),
        ])
        .await;
    let skipped = |name: &str| together(&[parse("", "SELEC"), describe('S', name), sync()]);
    client
        .play(&[
            skipped("s"),
            skipped("q"),
            zone("America/New_York"),
            run("s"),
            query("EXECUTE q"),
        ])
        .await;
}

/// What a failed group would have taught the backend is taught by the next.
#[tokio::test]
async fn trap_26_what_is_taught_behind_an_error_of_its_group_is_not_taken_for_known() {
    let scene = Scene::new().await;
    let mut client = scene.client().await;
    let set = "SET application_name = 'other'";
    let setup = [
        parse("a", set),
        parse("b", CONSTANT),
        describe('S', "b"),
        parse("c", "SELECT $1::int"),
        sync(),
    ];
    client.play(&[together(&setup)]).await;
    for taken in ["a", "b"] {
        let group = [
            parse(taken, "SELECT 1"),
            bind("", "a", &[]),
            execute("", 0),
            bind("p", "b", &[]),
            execute("p", 1),
            execute("p", 1),
            sync(),
        ];
        client.lose_backend().await;
        client
            .through
            .send(&together(&[together(&group), run("b"), run("b")]))
            .await;
        client.through.expect("E Z 2 D C Z 2 D C Z").await;
        client.lose_backend().await;
        client.through.send(&together(&group)).await;
        client.through.send(&run("b")).await;
        client.through.expect("E Z 2 D C Z").await;
    }
}

fn described(name: &str) -> BytesMut {
    together(&[parse(name, CONSTANT), describe('S', name), sync()])
}

/// Before a statement whose columns were told is used on another backend, that is asked for them: which is a use, too.
#[tokio::test]
async fn trap_28_a_question_about_columns_is_the_use_that_reads_again() {
    let scene = Scene::new().await;
    let mut client = scene.client().await;
    client
        .play(&[zone("UTC"), described("s"), query(&format!("PREPARE q AS {CONSTANT}"))])
        .await;
    client.lose_backend().await;
    client
        .play(&[
            zone("Asia/Shanghai"),
            query("BEGIN"),
            query("SET search_path = aside, public"),
            run("s"),
            run("q"),
            query("COMMIT"),
            zone("UTC"),
            run("s"),
            query("EXECUTE q"),
        ])
        .await;
}

/// The ledger has no statement on a backend that PostgreSQL has not parsed there.
#[tokio::test]
async fn trap_26_what_a_pinned_client_was_to_be_taught_behind_an_error_is_not_there() {
    let scene = Scene::new().await;
    let (mut client, mut other) = (scene.client().await, scene.client().await);
    let set = "SET application_name = 'other'";
    client
        .play(&[together(&[parse("a", set), sync()]), described("b")])
        .await;
    other.play(&[described("b")]).await;
    client.play(&[query("SET search_path = aside, public")]).await;
    client.lose_backend().await;
    let group = [
        parse("a", "SELECT 1"),
        bind("", "a", &[]),
        execute("", 0),
        bind("p", "b", &[]),
        execute("p", 1),
        sync(),
    ];
    client.play(&[query("SELECT pg_advisory_lock(1)")]).await;
    let burst = [together(&group), together(&[bind("", "b", &["3"]), sync()]), run("b")];
    client.through.send(&together(&burst)).await;
    let replies = client.through.expect("E Z E Z 2 D C Z").await;
    assert_eq!(replies[2].sqlstate(), "08P01");
    client.play(&[query("SELECT pg_advisory_unlock(1)")]).await;
    other.play(&[run("b")]).await;
}

/// The name's own copy and the shared one are one statement to PostgreSQL.
#[tokio::test]
async fn trap_28_a_name_means_the_same_in_sql_and_in_the_protocol_behind_a_local_path() {
    let scene = Scene::new().await;
    let mut client = scene.client().await;
    client
        .play(&[zone("UTC"), prepare("s"), query("EXECUTE s"), zone("Asia/Shanghai")])
        .await;
    client
        .play(&[
            query("BEGIN; SET LOCAL search_path = aside"),
            run("s"),
            zone("America/New_York"),
            query("EXECUTE s"),
            run("s"),
            query("COMMIT"),
            query("EXECUTE s"),
        ])
        .await;
}

#[tokio::test]
async fn trap_28_each_transaction_with_a_path_of_its_own_reads_again() {
    let scene = Scene::new().await;
    let mut client = scene.client().await;
    let block = || query("BEGIN; SET LOCAL search_path = aside");
    client.play(&[zone("UTC"), prepare("s")]).await;
    client.play(&[block(), run("s"), query("COMMIT"), run("s")]).await;
    client
        .play(&[zone("Asia/Shanghai"), block(), run("s"), query("COMMIT")])
        .await;
    client.lose_backend().await;
    client.play(&[run("s"), zone("UTC"), run("s")]).await;
}
