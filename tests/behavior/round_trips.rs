//! How often a client waits for the way to PostgreSQL and back, told by a link that makes this way long.

use std::time::{Duration, Instant};

use crate::support::postgres::{Database, OTHER_PASSWORD, OTHER_USER, PASSWORD, Postgres, USER};
use crate::support::raw_client::{RawClient, bind, execute, parse, query, sync, together};
use crate::support::sidecar::{Builder, Sidecar};
use crate::support::slow_link::SlowLink;

/// What the link adds to a round trip.
const ADDED: Duration = Duration::from_millis(20);
/// Times that each thing is measured at least; the shortest counts, which a busy machine disturbs least.
const ROUNDS: usize = 7;
/// Times at most, where all have been too long so far.
const ROUNDS_MAX: usize = 200;
/// What one round trip may take, in round trips.
const ONE: f64 = 1.1;

/// pgsidecar with these backends, far away from PostgreSQL.
struct Far {
    database: Database,
    link: SlowLink,
    sidecar: Sidecar,
    /// What a round trip takes without pgsidecar.
    round_trip: Duration,
}

impl Far {
    async fn with_backends(max_size: &str) -> Self {
        Self::with("disable", "auto", max_size, max_size).await
    }

    async fn with(sslmode: &str, early_login: &str, max_size: &str, min_idle: &str) -> Self {
        let database = Postgres::shared().create_database();
        let link = SlowLink::to(database.port).await;
        let upstream = format!(
            "postgres://{USER}:{PASSWORD}@127.0.0.1:{}/{}?sslmode={sslmode}",
            link.port, database.name
        );
        let sidecar = Builder::default()
            .upstream(upstream)
            .set("UPSTREAM__EARLY_LOGIN", early_login)
            .set("POOL__MAX_SIZE", max_size)
            .set("POOL__MIN_IDLE", min_idle)
            .start_ready()
            .await;
        let mut direct = RawClient::login(link.port, USER, PASSWORD, &database.name).await;
        direct.value("SELECT 1").await;
        link.add_to_round_trip(ADDED);
        let mut round_trip = Duration::MAX;
        for _ in 0..ROUNDS {
            let begin = Instant::now();
            direct.value("SELECT 1").await;
            round_trip = round_trip.min(begin.elapsed());
        }
        assert!(round_trip >= ADDED, "the link takes its time");
        Self {
            database,
            link,
            sidecar,
            round_trip,
        }
    }

    async fn client(&self) -> RawClient {
        RawClient::login(self.sidecar.port, USER, PASSWORD, &self.database.name).await
    }

    /// The fewest times that something was sent to PostgreSQL for this.
    async fn sends(&self, client: &mut RawClient, mut what: impl AsyncFnMut(&mut RawClient)) -> u64 {
        let mut fewest = u64::MAX;
        for _ in 0..ROUNDS {
            let sent = self.link.sent();
            what(client).await;
            fewest = fewest.min(self.link.sent() - sent);
        }
        fewest
    }

    /// The fewest round trips that something took, each time behind what the other client did.
    async fn trips(
        &self,
        (client, other): (&mut RawClient, &mut RawClient),
        before: impl AsyncFnMut(&mut RawClient),
        measured: impl AsyncFnMut(&mut RawClient),
    ) -> f64 {
        self.trips_until(ONE, (client, other), before, measured).await
    }

    /// The same, measured again and again until it has taken no more than this.
    async fn trips_until(
        &self,
        enough: f64,
        (client, other): (&mut RawClient, &mut RawClient),
        mut before: impl AsyncFnMut(&mut RawClient),
        mut measured: impl AsyncFnMut(&mut RawClient),
    ) -> f64 {
        let mut fewest = f64::MAX;
        for round in 0..ROUNDS_MAX {
            before(other).await;
            let begin = Instant::now();
            measured(client).await;
            fewest = fewest.min(begin.elapsed().as_secs_f64() / self.round_trip.as_secs_f64());
            if round >= ROUNDS && fewest <= enough {
                break;
            }
        }
        fewest
    }
}

async fn show(client: &mut RawClient, name: &str, expected: &str) {
    assert_eq!(
        client.value(&format!("SELECT current_setting('{name}', true)")).await,
        expected
    );
}

/// Settings that differ between two clients: what each of them says, and what is then in force.
const DIFFERENCES: [(&str, &str, [&str; 2]); 6] = [
    ("SET work_mem = '$'", "work_mem", ["7MB", "9MB"]),
    ("SET search_path = $", "search_path", ["one", "two"]),
    (
        "SELECT set_config('app.tenant_id', '$', false)",
        "app.tenant_id",
        ["1", "2"],
    ),
    ("SET TIME ZONE '$'", "TimeZone", ["Europe/Berlin", "Asia/Tokyo"]),
    ("SET ROLE $", "role", ["team_one", "team_two"]),
    ("SET statement_timeout = '$'", "statement_timeout", ["7s", "9s"]),
];

async fn two_clients(far: &Far) -> (RawClient, RawClient) {
    let roles = "DO $$BEGIN
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'team_one') THEN
            CREATE ROLE team_one; CREATE ROLE team_two; GRANT team_one, team_two TO app;
        END IF; END$$";
    Postgres::shared().psql("postgres", roles);
    let (mut one, mut two) = (far.client().await, far.client().await);
    for (set, _, values) in DIFFERENCES {
        one.ask(&set.replace('$', values[0])).await;
        two.ask(&set.replace('$', values[1])).await;
    }
    (one, two)
}

/// The bar of the prelude: it travels with the client's message, not before it.
#[tokio::test]
async fn the_first_query_on_a_backend_whose_state_differs_takes_one_round_trip() {
    let far = Far::with_backends("1").await;
    let (mut one, mut two) = two_clients(&far).await;
    for (_, name, values) in DIFFERENCES {
        let trips = far
            .trips(
                (&mut one, &mut two),
                async |two| show(two, name, values[1]).await,
                async |one| show(one, name, values[0]).await,
            )
            .await;
        assert!(trips <= ONE, "{name}: {trips:.2} round trips");
    }
}

#[tokio::test]
async fn so_does_the_first_execute_there_with_its_statement_taught_ahead() {
    let far = Far::with_backends("1").await;
    let (mut one, mut two) = two_clients(&far).await;
    let sql = "SELECT current_setting('app.tenant_id'), current_setting('work_mem')";
    let expected = [Some("1".to_owned()), Some("7MB".to_owned())];
    one.send(&together(&[parse("s", sql), sync()])).await;
    one.until_ready().await;
    let row = async |client: &mut RawClient, messages: &[bytes::BytesMut]| {
        client.send(&together(messages)).await;
        let answer = client.until_ready().await;
        let row = answer
            .iter()
            .find(|message| message.tag == b'D')
            .map(|message| message.row());
        assert_eq!(row.as_deref(), Some(&expected[..]));
    };
    let prepared = [bind("", "s", &[]), execute("", 0), sync()];
    let unnamed = [parse("", sql), bind("", "", &[]), execute("", 0), sync()];
    let taught = far
        .trips(
            (&mut one, &mut two),
            // The backend forgets every statement and setting.
            async |two| drop(two.ask("DISCARD ALL").await),
            async |one| row(one, &prepared).await,
        )
        .await;
    assert!(
        taught <= ONE,
        "a statement that must be taught: {taught:.2} round trips"
    );
    for (what, messages) in [("a statement that is there", &prepared[..]), ("a new one", &unnamed)] {
        let trips = far
            .trips(
                (&mut one, &mut two),
                async |two| drop(two.value("SELECT 1").await),
                async |one| row(one, messages).await,
            )
            .await;
        assert!(trips <= ONE, "{what}: {trips:.2} round trips");
    }
}

/// Each client's first query goes to a backend that stands ready.
#[tokio::test]
async fn a_new_client_and_its_transactions_wait_no_longer_than_on_a_connection_of_their_own() {
    let far = Far::with_backends("2").await;
    let mut client = far.client().await;
    client.value("SELECT 1").await;
    let (mut login, mut first) = (u64::MAX, f64::MAX);
    for round in 0..ROUNDS_MAX {
        let sent = far.link.sent();
        let mut new = far.client().await;
        // Checking a password takes longer than the way, so the way is counted.
        login = login.min(far.link.sent() - sent);
        let begin = Instant::now();
        new.value("SELECT 1").await;
        first = first.min(begin.elapsed().as_secs_f64() / far.round_trip.as_secs_f64());
        if round >= ROUNDS && login == 0 && first <= ONE {
            break;
        }
    }
    let one_by_one = async |client: &mut RawClient| {
        for sql in ["BEGIN", "SELECT 1", "COMMIT"] {
            client.ask(sql).await;
        }
    };
    let pipelined = async |client: &mut RawClient| {
        client
            .send(&together(&[query("BEGIN"), query("SELECT 1"), query("COMMIT")]))
            .await;
        for _ in 0..3 {
            client.until_ready().await;
        }
    };
    let (begin_commit, in_one) = (
        far.sends(&mut client, one_by_one).await,
        far.sends(&mut client, pipelined).await,
    );
    let mut number = 0;
    let listen = far
        .sends(&mut client, async |client| {
            number += 1;
            client.ask(&format!("LISTEN channel_{number}")).await;
        })
        .await;
    println!(
        "sent for a login {login}, BEGIN, SELECT and COMMIT {begin_commit}, pipelined {in_one}, LISTEN {listen}; a first query \
         takes {first:.2} round trips"
    );
    assert!(login == 0 && first <= ONE, "login {login}, first query {first:.2}");
    assert_eq!((begin_commit, in_one), (3, 1));
    // Two on the backend, two on the connection that hears for all: it is slower than one of the client's own, once.
    assert!(listen <= 4, "LISTEN {listen}");
}

/// Round trips of a query for which a backend must be opened, behind the TCP connection, which the link makes at once.
async fn opening(sslmode: &str, early_login: &str, enough: f64) -> f64 {
    let far = Far::with(sslmode, early_login, "1", "0").await;
    let mut client = far.client().await;
    let mut direct = RawClient::login(far.database.port, OTHER_USER, OTHER_PASSWORD, "postgres").await;
    let own = format!("datname = '{}' AND pid <> pg_backend_pid()", far.database.name);
    let end = format!("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE {own}");
    let pool = [("database", far.database.name.as_str()), ("state", "idle")];
    far.trips_until(
        enough,
        (&mut client, &mut direct),
        async |_| {
            Postgres::shared().psql("postgres", &end);
            far.sidecar
                .wait_metric("pgsidecar_backends", &pool, |idle| idle == 0.0)
                .await;
        },
        async |client| drop(client.value("SELECT 1").await),
    )
    .await
}

/// The StartupMessage with the beginning of SASL, its end, and the query; over TLS the SSLRequest and the handshake before
/// them. Some of the time is arithmetic.
#[tokio::test]
async fn a_server_that_is_known_is_logged_in_to_without_waiting_for_its_question() {
    for (sslmode, bar) in [("disable", 3.4), ("require", 5.7)] {
        let trips = opening(sslmode, "auto", bar).await;
        assert!(trips <= bar, "{sslmode}: {trips:.2} round trips");
    }
    let trips = opening("disable", "off", f64::INFINITY).await;
    assert!(trips >= 4.0, "switched off: {trips:.2} round trips");
}
