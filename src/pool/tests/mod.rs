//! A pool before a fake server, under a paused clock.

mod fake_server;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use bytes::BytesMut;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::*;
use crate::backend::{Connector, Owed};
use crate::config::{Config, Flags, Host, Sources, UpstreamConfig};
use crate::metrics::{BackendState, CancelOutcome, CloseReason, Metrics};
use crate::net::dial::Names;
use crate::virtual_session::parameters::Settings;
use crate::virtual_session::reset::ResetPlan;
use crate::virtual_session::sql_lexer::Lexing;
use crate::virtual_session::{SharedLedger, VirtualSession};
use crate::wire::{Report, SqlState, compose};
use fake_server::FakeServer;

const LIMIT: Duration = Duration::from_secs(5);

struct Stage {
    server: FakeServer,
    pools: Pools,
    metrics: Arc<Metrics>,
    keys: Arc<CancelKeys>,
}

fn config(port: u16, settings: &[(&str, &str)]) -> Arc<Config> {
    let url = format!("postgres://app:secret@127.0.0.1:{port}/app?sslmode=disable");
    let mut environment = BTreeMap::from([("PGSIDECAR_UPSTREAM".to_owned(), url)]);
    for (key, value) in settings {
        environment.insert(format!("PGSIDECAR__POOL__{key}"), (*value).to_owned());
    }
    let sources = Sources {
        flags: Flags::default(),
        environment,
        root: "/nonexistent".into(),
        home: None,
        system_user: Some("me".to_owned()),
    };
    Arc::new(Config::load(&sources).unwrap().config)
}

impl Stage {
    /// A pool without `min_idle`, so that tests count only what they ask for.
    async fn new(settings: &[(&str, &str)]) -> Self {
        let server = FakeServer::start().await;
        let mut all = vec![("MIN_IDLE", "0")];
        all.extend(settings);
        let metrics = Metrics::new();
        let pools = Pools::new(config(server.port(), &all), Arc::clone(&metrics)).unwrap();
        Self {
            server,
            pools,
            metrics,
            keys: CancelKeys::new(),
        }
    }

    fn pool(&self) -> Arc<Pool> {
        self.pools.pool(&self.pools.default_key()).unwrap()
    }

    fn other_pool(&self) -> Arc<Pool> {
        self.pools
            .pool(&PoolKey {
                database: "other".to_owned(),
                user: "app".to_owned(),
            })
            .unwrap()
    }

    fn reconfigure(&self, settings: &[(&str, &str)]) {
        let mut all = vec![("MIN_IDLE", "0")];
        all.extend(settings);
        let config = config(self.server.port(), &all);
        self.pools
            .reconfigure(Arc::clone(&config), LoadedTls::of(&config).unwrap());
    }

    fn closed(&self, reason: CloseReason) -> u64 {
        let text = self.metrics.render();
        let line = format!("pgsidecar_backend_closed_total{{reason=\"{reason}\"}} ");
        text.lines()
            .find_map(|text| text.strip_prefix(&line))
            .unwrap()
            .parse()
            .unwrap()
    }
}

fn client(number: u64) -> Arc<Holder> {
    Holder::new(number, "127.0.0.1:1", Arc::default())
}

fn asking(pool: &Arc<Pool>, number: u64) -> JoinHandle<Result<Lease, LeaseError>> {
    let pool = Arc::clone(pool);
    tokio::spawn(async move { pool.lease(&client(number), Wish::Any).await })
}

/// Lets everything that can happen without time passing happen.
async fn settle() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

/// Waits for something that only the clock and the sockets bring about.
async fn until(what: &str, condition: impl Fn() -> bool) {
    timeout(Duration::from_secs(60), async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("never: {what}"));
}

fn marked(lease: &mut Lease) -> usize {
    std::ptr::from_ref(lease.cancel_target().as_ref()) as usize
}

#[tokio::test(start_paused = true)]
async fn a_parked_backend_is_lent_again_without_waiting_the_most_recent_first() {
    let stage = Stage::new(&[]).await;
    let pool = stage.pool();
    assert!(pool.try_lease(&client(1), Wish::Any).is_none(), "nothing is open yet");
    let mut one = pool.lease(&client(1), Wish::Any).await.unwrap();
    let mut two = pool.lease(&client(2), Wish::Any).await.unwrap();
    let (first, second) = (marked(&mut one), marked(&mut two));
    two.park();
    one.park();
    let mut last = pool.try_lease(&client(2), Wish::Any).unwrap();
    assert_eq!(marked(&mut last), first);
    let mut other = pool.try_lease(&client(3), Wish::Any).unwrap();
    assert_eq!(marked(&mut other), second);
    assert!(pool.try_lease(&client(4), Wish::Any).is_none());
    assert_eq!(stage.server.logins(), 2);
}

fn ledger(number: u64, shared: &Arc<SharedLedger>, settings: &[(&str, &str)]) -> VirtualSession {
    let settings = settings.iter().map(|(name, value)| ((*name).into(), (*value).into()));
    VirtualSession::new(number, Arc::clone(shared), Settings::new(settings), Lexing::default())
}

/// A prelude costs the server a transaction; between backends that need none, the warmest is best.
#[tokio::test(start_paused = true)]
async fn the_backend_that_agrees_goes_before_the_clients_own_and_that_before_the_most_recent() {
    let stage = Stage::new(&[]).await;
    let pool = stage.pool();
    let shared = Arc::new(SharedLedger::new(7));
    let mut in_utc = ledger(1, &shared, &[("TimeZone", "UTC")]);
    let plain = ledger(2, &shared, &[]);
    let elsewhere = ledger(3, &shared, &[("TimeZone", "Asia/Shanghai")]);
    let mut leases = Vec::new();
    for number in 1..=3 {
        leases.push(pool.lease(&client(number), Wish::Any).await.unwrap());
    }
    in_utc.prelude_for(&mut leases[0].state);
    let marks: Vec<_> = leases.iter_mut().map(marked).collect();
    leases.into_iter().for_each(Lease::park);
    let taken = |number, ledger: &VirtualSession| {
        let mut lease = pool.try_lease(&client(number), Wish::SuitedTo(ledger)).unwrap();
        let mark = marked(&mut lease);
        lease.park();
        mark
    };
    assert_eq!(taken(2, &plain), marks[2], "the most recent of those that agree");
    assert_eq!(
        taken(1, &in_utc),
        marks[0],
        "the one that agrees, though it is the oldest"
    );
    assert_eq!(
        taken(2, &plain),
        marks[2],
        "the most recent of those that agree, which is not the most recent"
    );
    assert_eq!(
        taken(3, &elsewhere),
        marks[2],
        "none agrees, and its own has gone to another: the most recent"
    );
    assert_eq!(taken(3, &elsewhere), marks[2], "none agrees: its own");
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_went_on_to_bb8_is_found_there() {
    let stage = Stage::new(&[]).await;
    let pool = stage.pool();
    pool.lease(&client(1), Wish::Any).await.unwrap().park();
    until("swept into bb8", || !pool.has_parked()).await;
    assert!(
        pool.try_lease(&client(1), Wish::Any).is_none(),
        "the fast path looks at parked ones only"
    );
    pool.lease(&client(1), Wish::Any).await.unwrap().park();
    assert_eq!(stage.server.logins(), 1);
}

#[tokio::test(start_paused = true)]
async fn leases_are_given_in_the_order_of_asking() {
    let stage = Stage::new(&[("MAX_SIZE", "1")]).await;
    let pool = stage.pool();
    let held = pool.lease(&client(0), Wish::Any).await.unwrap();
    let order = Arc::new(std::sync::Mutex::new(Vec::new()));
    let mut waiters = Vec::new();
    for number in 1..=5 {
        let (pool, order) = (Arc::clone(&pool), Arc::clone(&order));
        waiters.push(tokio::spawn(async move {
            let lease = pool.lease(&client(number), Wish::Any).await.unwrap();
            lock(&order).push(number);
            lease.park();
        }));
        settle().await;
    }
    assert_eq!(pool.status().waiting, 5);
    held.park();
    assert!(
        pool.try_lease(&client(9), Wish::Any).is_none(),
        "nobody overtakes the line"
    );
    for waiter in waiters {
        waiter.await.unwrap();
    }
    assert_eq!(*lock(&order), [1, 2, 3, 4, 5]);
    assert_eq!(stage.server.logins(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_is_too_long_ends_with_counts_and_a_hint_and_no_names() {
    let stage = Stage::new(&[("MAX_SIZE", "3"), ("ACQUIRE_TIMEOUT", "30s")]).await;
    let pool = stage.pool();
    let (active, idle, pinned) = (client(1), client(2), client(3));
    active.set_application_name("secret name");
    let _active = pool.lease(&active, Wish::Any).await.unwrap();
    let _idle = pool.lease(&idle, Wish::Any).await.unwrap();
    let mut lease = pool.lease(&pinned, Wish::Any).await.unwrap();
    idle.set_idle_in_transaction(true);
    lease.set_pin(Some(crate::virtual_session::pins::PinReason::Listen));
    assert_eq!(stage.metrics.pool("app", "app").backends_in(BackendState::Pinned), 1);
    let started = Instant::now();
    let Err(LeaseError::TimedOut(report)) = pool.lease(&client(4), Wish::Any).await else {
        panic!("a lease")
    };
    assert!(started.elapsed() >= Duration::from_secs(30) && started.elapsed() < Duration::from_secs(31));
    assert_eq!(report.sqlstate, SqlState::TOO_MANY_CONNECTIONS);
    let detail = report.detail.unwrap();
    assert!(
        detail.starts_with(
            "Pool size 3, open 3: 1 active, 1 idle in transaction, 1 pinned (listen: 1), 0 idle, 0 connecting"
        ),
        "{detail}"
    );
    assert!(detail.contains("the longest hold is 30."), "{detail}");
    assert!(!detail.contains("secret name"));
    assert!(report.hint.unwrap().contains("pool.max_size"));
    lease.park();
    assert_eq!(pinned.state(), HolderState::Active, "a pin ends with its lease");
}

#[tokio::test(start_paused = true)]
async fn trap_77_a_refused_login_reaches_everyone_who_waits_at_once() {
    let stage = Stage::new(&[("MAX_SIZE", "2")]).await;
    stage.server.delay_logins(Duration::from_millis(100));
    let refusal = Report::fatal(
        SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
        "role \"app\" is not permitted to log in",
    );
    stage.server.refuse(Some(refusal.clone()));
    let pool = stage.pool();
    let started = Instant::now();
    let waiters: Vec<_> = (0..10).map(|number| asking(&pool, number)).collect();
    for waiter in waiters {
        let Err(LeaseError::Refused(report)) = waiter.await.unwrap() else {
            panic!("not refused")
        };
        assert_eq!(
            (report.sqlstate, report.message),
            (refusal.sqlstate, refusal.message.clone())
        );
    }
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    assert!(stage.server.logins() <= 2, "{} logins", stage.server.logins());
    stage.server.refuse(None);
    tokio::time::sleep(Duration::from_secs(1)).await;
    pool.lease(&client(1), Wish::Any).await.unwrap().park();
}

#[tokio::test(start_paused = true)]
async fn a_missing_database_is_asked_for_once_in_five_seconds() {
    let stage = Stage::new(&[]).await;
    stage.server.refuse(Some(Report::fatal(
        SqlState::INVALID_CATALOG_NAME,
        "database \"app\" does not exist",
    )));
    let pool = stage.pool();
    for _ in 0..20 {
        assert!(matches!(
            pool.lease(&client(1), Wish::Any).await,
            Err(LeaseError::Refused(_))
        ));
    }
    assert_eq!(stage.server.logins(), 1);
    assert!(
        !stage.metrics.render().contains("database=\"app\""),
        "a refused name is no label"
    );
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(matches!(
        pool.lease(&client(1), Wish::Any).await,
        Err(LeaseError::Refused(_))
    ));
    assert_eq!(stage.server.logins(), 2);
}

#[tokio::test(start_paused = true)]
async fn trap_77_a_server_that_is_starting_is_waited_for_with_few_attempts() {
    let stage = Stage::new(&[("ACQUIRE_TIMEOUT", "30s")]).await;
    stage.server.refuse(Some(Report::fatal(
        SqlState::CANNOT_CONNECT_NOW,
        "the database system is starting up",
    )));
    let pool = stage.pool();
    let waiters: Vec<_> = (0..10).map(|number| asking(&pool, number)).collect();
    tokio::time::sleep(Duration::from_secs(10)).await;
    let attempts = stage.server.logins();
    assert!((15..80).contains(&attempts), "{attempts} attempts in 10 s");
    stage.server.refuse(None);
    for waiter in waiters {
        waiter.await.unwrap().unwrap().park();
    }
    stage.server.refuse(Some(Report::fatal(
        SqlState::CANNOT_CONNECT_NOW,
        "the database system is starting up",
    )));
    stage.server.say_to_all(b"");
    until("all gone", || stage.pool().status().open == 0).await;
    let Err(LeaseError::TimedOut(report)) = pool.lease(&client(1), Wish::Any).await else {
        panic!("a lease")
    };
    assert_eq!(report.sqlstate, SqlState::TOO_MANY_CONNECTIONS);
    assert!(
        report
            .detail
            .unwrap()
            .contains("the database system is starting up (57P03)")
    );
}

#[tokio::test(start_paused = true)]
async fn sixteen_clients_open_sixteen_backends_at_once() {
    let stage = Stage::new(&[]).await;
    stage.server.delay_logins(Duration::from_secs(1));
    let pool = stage.pool();
    let started = Instant::now();
    let waiters: Vec<_> = (0..16).map(|number| asking(&pool, number)).collect();
    let mut leases = Vec::new();
    for waiter in waiters {
        leases.push(waiter.await.unwrap().unwrap());
    }
    assert!(
        started.elapsed() < Duration::from_millis(1500),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(stage.server.logins(), 16);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_lease_closes_its_backend_and_cancels_what_it_runs() {
    let stage = Stage::new(&[("MAX_SIZE", "1")]).await;
    let pool = stage.pool();
    let mut lease = pool.lease(&client(1), Wish::Any).await.unwrap();
    let mut out = BytesMut::new();
    compose::query(&mut out, b"hang");
    lease.stream.write_all(&out).await.unwrap();
    drop(lease);
    stage.server.cancel_came().await;
    pool.lease(&client(2), Wish::Any).await.unwrap().park();
    assert_eq!(stage.server.logins(), 2);
    assert_eq!(stage.closed(CloseReason::ClientGone), 1);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_wait_leaves_the_line_and_loses_nothing() {
    let stage = Stage::new(&[("MAX_SIZE", "1")]).await;
    let pool = stage.pool();
    stage.server.delay_logins(Duration::from_millis(50));
    for step in 0..20 {
        let _ = timeout(Duration::from_millis(step * 5), pool.lease(&client(1), Wish::Any)).await;
    }
    let lease = pool.lease(&client(2), Wish::Any).await.unwrap();
    assert_eq!((pool.status().waiting, pool.status().open), (0, 1));
    lease.park();
}

#[tokio::test(start_paused = true)]
async fn trap_75_a_backend_that_died_idle_is_noticed_within_a_second_and_replaced() {
    let stage = Stage::new(&[("MIN_IDLE", "2")]).await;
    stage.pools.start();
    until("two are warm", || stage.pool().status().idle == 2).await;
    let mut farewell = BytesMut::new();
    compose::report(
        &mut farewell,
        &Report::fatal(SqlState::ADMIN_SHUTDOWN, "terminating connection"),
    );
    stage.server.say_to_all(&farewell);
    let before = Instant::now();
    until("both closed", || stage.closed(CloseReason::Broken) == 2).await;
    until("two are warm again", || {
        stage.pool().status().idle == 2 && stage.server.logins() == 4
    })
    .await;
    assert!(before.elapsed() < Duration::from_secs(1), "{:?}", before.elapsed());
}

#[tokio::test(start_paused = true)]
async fn trap_75_the_peek_at_hand_out_passes_over_a_dead_backend() {
    let stage = Stage::new(&[]).await;
    let pool = stage.pool();
    pool.lease(&client(1), Wish::Any).await.unwrap().park();
    stage.server.say_to_all(b"");
    until("closed by the server", || stage.server.sessions() == 0).await;
    let lease = pool.lease(&client(1), Wish::Any).await.unwrap();
    assert_eq!(stage.server.sessions(), 1);
    lease.park();
}

#[tokio::test(start_paused = true)]
async fn trap_63_a_setting_reported_while_idle_is_learned() {
    let stage = Stage::new(&[]).await;
    let pool = stage.pool();
    pool.lease(&client(1), Wish::Any).await.unwrap().park();
    assert_eq!(pool.learn().await.unwrap().text("server_version"), Some("15.7"));
    let mut status = BytesMut::new();
    compose::parameter_status(&mut status, "TimeZone", "Asia/Shanghai");
    stage.server.say_to_all(&status);
    until("learned", || {
        pool.parameters().is_some_and(|known| known.contains("TimeZone"))
    })
    .await;
    let lease = pool.lease(&client(1), Wish::Any).await.unwrap();
    assert_eq!(lease.parameters.text("TimeZone"), Some("Asia/Shanghai"));
    assert_eq!(stage.server.logins(), 1);
    lease.park();
}

#[tokio::test(start_paused = true)]
async fn trap_80_a_server_that_changes_its_role_is_left() {
    let stage = Stage::new(&[]).await;
    let pool = stage.pool();
    let (one, two) = (
        pool.lease(&client(1), Wish::Any).await.unwrap(),
        pool.lease(&client(2), Wish::Any).await.unwrap(),
    );
    one.park();
    let mut status = BytesMut::new();
    compose::parameter_status(&mut status, "in_hot_standby", "on");
    stage.server.say_to_all(&status);
    until("the idle one is closed", || pool.status().open == 1).await;
    two.park();
    until("the used one too", || pool.status().open == 0).await;
}

/// A stage with a second server beside it, on the same port of another address, and a name that leads to the first.
async fn failover() -> (Stage, FakeServer, Arc<Pool>, Arc<Mutex<Vec<IpAddr>>>) {
    let stage = Stage::new(&[]).await;
    let other = FakeServer::start_at(&format!("127.0.0.2:{}", stage.server.port())).await;
    let pool = stage.pool();
    let addresses = Arc::new(Mutex::new(vec![IpAddr::from([127, 0, 0, 1])]));
    let mut connector = Connector::clone(&pool.core.connector.load());
    let mut upstream = UpstreamConfig::clone(&connector.upstream);
    upstream.hosts = vec![Host::Tcp {
        host: "db.example".to_owned(),
        hostaddr: None,
        port: stage.server.port(),
    }];
    connector.upstream = Arc::new(upstream);
    connector.names = Names::Scripted(Arc::clone(&addresses));
    pool.core.connector.store(Arc::new(connector));
    (stage, other, pool, addresses)
}

#[tokio::test(start_paused = true)]
async fn trap_81_a_name_is_looked_up_at_each_connect_and_leads_new_backends_to_where_it_leads_now() {
    let (stage, other, pool, addresses) = failover().await;
    let one = pool.lease(&client(1), Wish::Any).await.unwrap();
    *lock(&addresses) = vec![IpAddr::from([127, 0, 0, 2])];
    let two = pool.lease(&client(2), Wish::Any).await.unwrap();
    assert_eq!((stage.server.logins(), other.logins()), (1, 1));
    *lock(&addresses) = Vec::new();
    let lost = asking(&pool, 3);
    until("an attempt without an address", || pool.core.failures.is_unreached()).await;
    *lock(&addresses) = vec![IpAddr::from([127, 0, 0, 1])];
    let three = lost.await.unwrap().unwrap();
    assert_eq!((stage.server.logins(), other.logins()), (2, 1));
    // The answer by itself closes nobody: a server that still serves is no reason.
    for lease in [one, two, three] {
        lease.park();
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(pool.status().idle, 3);
}

#[tokio::test(start_paused = true)]
async fn trap_80_after_a_failover_backends_of_the_demoted_server_retire_and_new_ones_follow_the_name() {
    let (stage, other, pool, addresses) = failover().await;
    let (idle, used) = (
        pool.lease(&client(1), Wish::Any).await.unwrap(),
        pool.lease(&client(2), Wish::Any).await.unwrap(),
    );
    idle.park();
    *lock(&addresses) = vec![IpAddr::from([127, 0, 0, 2])];
    let mut status = BytesMut::new();
    compose::parameter_status(&mut status, "in_hot_standby", "on");
    stage.server.say_to_all(&status);
    until("the idle one is closed", || pool.status().open == 1).await;
    let moved = pool.lease(&client(3), Wish::Any).await.unwrap();
    assert_eq!((stage.server.logins(), other.logins()), (2, 1));
    used.park();
    until("the used one too", || stage.server.sessions() == 0).await;
    moved.park();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(
        (pool.status().idle, other.sessions()),
        (1, 1),
        "those of the new server stay"
    );
}

#[tokio::test(start_paused = true)]
async fn trap_80_a_server_that_goes_away_is_followed_to_where_its_name_leads() {
    let (stage, other, pool, addresses) = failover().await;
    pool.lease(&client(1), Wish::Any).await.unwrap().park();
    *lock(&addresses) = vec![IpAddr::from([127, 0, 0, 2])];
    let mut farewell = BytesMut::new();
    let report = Report::fatal(
        SqlState::ADMIN_SHUTDOWN,
        "terminating connection due to administrator command",
    );
    compose::report(&mut farewell, &report);
    stage.server.say_to_all(&farewell);
    until("the idle one is closed", || pool.status().open == 0).await;
    pool.lease(&client(1), Wish::Any).await.unwrap().park();
    assert_eq!((stage.server.logins(), other.logins()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn trap_95_after_a_long_pause_idle_backends_are_closed_and_used_ones_stay() {
    let stage = Stage::new(&[]).await;
    let pool = stage.pool();
    let paused_for = Arc::new(AtomicU64::new(0));
    let (clock, began) = (Arc::clone(&paused_for), Instant::now());
    let clock = move || began.elapsed() + Duration::from_secs(clock.load(Ordering::Relaxed));
    let keeping = tokio::spawn(keeper::keep(Arc::downgrade(&pool), Weak::new(), clock));
    let (idle, used) = (
        pool.lease(&client(1), Wish::Any).await.unwrap(),
        pool.lease(&client(2), Wish::Any).await.unwrap(),
    );
    idle.park();
    paused_for.store(29, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(
        (pool.status().open, pool.status().idle),
        (2, 1),
        "a short pause is none"
    );
    paused_for.store(61, Ordering::Relaxed);
    until("the idle one is closed", || pool.status().open == 1).await;
    assert_eq!(stage.closed(CloseReason::Broken), 1);
    used.park();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(pool.status().idle, 1, "it has just shown that it lives");
    keeping.abort();
}

#[tokio::test(start_paused = true)]
async fn trap_95_the_clock_that_tells_a_pause_moves_with_time() {
    let before = keeper::since_boot();
    assert!(before > Duration::ZERO && keeper::since_boot() >= before);
}

#[tokio::test(start_paused = true)]
async fn min_idle_is_warm_before_any_client_and_after_a_lease() {
    let stage = Stage::new(&[("MIN_IDLE", "3"), ("MAX_SIZE", "5")]).await;
    stage.pools.start();
    until("three are warm", || stage.pool().status().idle == 3).await;
    let pool = stage.pool();
    let mut leases = Vec::new();
    for number in 0..4 {
        leases.push(pool.lease(&client(number), Wish::Any).await.unwrap());
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(
        pool.status(),
        PoolStatus {
            max_size: 5,
            open: 5,
            idle: 1,
            ..PoolStatus::default()
        }
    );
}

#[tokio::test(start_paused = true)]
async fn trap_47_idle_timeout_closes_down_to_min_idle_and_lifetime_closes_all() {
    let settings = [("MIN_IDLE", "1"), ("IDLE_TIMEOUT", "10m"), ("MAX_LIFETIME", "1h")];
    let stage = Stage::new(&settings).await;
    let pool = stage.pool();
    let leases = [
        pool.lease(&client(1), Wish::Any).await,
        pool.lease(&client(2), Wish::Any).await,
        pool.lease(&client(3), Wish::Any).await,
    ];
    leases.into_iter().for_each(|lease| lease.unwrap().park());
    tokio::time::sleep(Duration::from_secs(590)).await;
    assert_eq!(pool.status().open, 3);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(pool.status().open, 1);
    assert_eq!(stage.closed(CloseReason::IdleTimeout), 2);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(stage.closed(CloseReason::Lifetime) >= 1);
    assert_eq!(pool.status().open, 1);
}

#[tokio::test(start_paused = true)]
async fn trap_47_zero_is_never() {
    let stage = Stage::new(&[("IDLE_TIMEOUT", "off"), ("MAX_LIFETIME", "off")]).await;
    let pool = stage.pool();
    pool.lease(&client(1), Wish::Any).await.unwrap().park();
    tokio::time::sleep(Duration::from_secs(3 * 3600)).await;
    assert_eq!((pool.status().open, stage.server.logins()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn trap_48_a_reload_grows_and_shrinks_a_pool_without_dropping_anyone() {
    let stage = Stage::new(&[("MAX_SIZE", "1")]).await;
    let pool = stage.pool();
    let one = pool.lease(&client(1), Wish::Any).await.unwrap();
    let waiter = asking(&pool, 2);
    settle().await;
    assert!(!waiter.is_finished());
    stage.reconfigure(&[("MAX_SIZE", "3")]);
    let two = waiter.await.unwrap().unwrap();
    let three = pool.lease(&client(3), Wish::Any).await.unwrap();
    stage.reconfigure(&[("MAX_SIZE", "1")]);
    one.park();
    two.park();
    until("the surplus is closed", || pool.status().open == 1).await;
    assert!(
        pool.try_lease(&client(4), Wish::Any).is_none(),
        "the third still has the only place"
    );
    three.park();
    pool.lease(&client(4), Wish::Any).await.unwrap().park();
}

#[tokio::test(start_paused = true)]
async fn whoever_joins_the_line_of_a_closed_pool_is_turned_away_at_once() {
    let stage = Stage::new(&[("MAX_SIZE", "1")]).await;
    let pool = stage.pool();
    let held = pool.lease(&client(1), Wish::Any).await.unwrap();
    let before = asking(&pool, 2);
    settle().await;
    pool.close(CloseReason::Reload);
    let behind = asking(&pool, 3);
    for waiter in [before, behind] {
        // Nobody's clock rings in a closed pool, and the one who holds its backend may stay for ever.
        let told = tokio::time::timeout(Duration::from_secs(3600), waiter).await;
        assert!(matches!(told, Ok(Ok(Err(LeaseError::Unavailable(_))))), "{told:?}");
    }
    held.park();
}

#[tokio::test(start_paused = true)]
async fn a_reload_that_changes_the_login_replaces_backends_as_they_come_back() {
    let stage = Stage::new(&[]).await;
    let pool = stage.pool();
    let held = pool.lease(&client(1), Wish::Any).await.unwrap();
    pool.lease(&client(2), Wish::Any).await.unwrap().park();
    stage.reconfigure(&[("CONNECT_QUERY", "SELECT 1")]);
    assert_eq!(pool.status().open, 1, "the idle one is closed at once");
    held.park();
    assert_eq!(pool.status().open, 0);
    pool.lease(&client(1), Wish::Any).await.unwrap().park();
    assert_eq!(stage.server.queries(), ["SELECT 1"]);
    assert_eq!(stage.closed(CloseReason::Reload), 2);
}

#[tokio::test(start_paused = true)]
async fn max_total_is_kept_by_closing_another_pools_idle_backend() {
    let stage = Stage::new(&[("MAX_TOTAL", "2")]).await;
    let (pool, other) = (stage.pool(), stage.other_pool());
    let held = pool.lease(&client(1), Wish::Any).await.unwrap();
    pool.lease(&client(2), Wish::Any).await.unwrap().park();
    let mine = other.lease(&client(3), Wish::Any).await.unwrap();
    assert_eq!((pool.status().open, other.status().open), (1, 1));
    assert_eq!(stage.closed(CloseReason::Evicted), 1);
    let waiter = asking(&stage.other_pool(), 4);
    settle().await;
    assert!(!waiter.is_finished());
    held.park();
    waiter.await.unwrap().unwrap().park();
    assert_eq!(
        (pool.status().open, other.status().open),
        (0, 2),
        "released where another waits: surrendered"
    );
    mine.park();
}

#[tokio::test(start_paused = true)]
async fn pools_are_bounded_and_unused_ones_make_room() {
    let stage = Stage::new(&[("MAX_POOLS", "2")]).await;
    let pool = stage.pool();
    drop(stage.other_pool());
    let third = PoolKey {
        database: "third".to_owned(),
        user: "app".to_owned(),
    };
    let kept = stage.pools.pool(&third).unwrap();
    assert_eq!(stage.pools.all().len(), 2);
    let Err(error) = stage.pools.pool(&PoolKey {
        database: "fourth".to_owned(),
        user: "app".to_owned(),
    }) else {
        panic!("a pool")
    };
    assert_eq!(error.report().sqlstate, SqlState::TOO_MANY_CONNECTIONS);
    drop((pool, kept));
}

#[tokio::test(start_paused = true)]
async fn trap_42_a_reset_ends_the_transaction_and_runs_under_no_client_timeout() {
    let stage = Stage::new(&[]).await;
    let pool = stage.pool();
    let mut lease = pool.lease(&client(1), Wish::Any).await.unwrap();
    lease.query("BEGIN").await.unwrap();
    lease.release(ResetPlan::DiscardAll).await;
    assert_eq!(
        stage.server.queries(),
        [
            "BEGIN",
            "ROLLBACK",
            "SET statement_timeout = 0",
            "SET lock_timeout = 0",
            "DISCARD ALL"
        ]
    );
    pool.try_lease(&client(1), Wish::Any).unwrap().park();
    let mut lease = pool.lease(&client(1), Wish::Any).await.unwrap();
    lease.query("BEGIN").await.unwrap();
    lease.park();
    assert_eq!(pool.status().open, 0, "an open transaction is never given to anyone");
}

#[tokio::test(start_paused = true)]
async fn trap_43_what_a_vanished_client_left_running_is_cancelled_and_has_a_deadline() {
    let stage = Stage::new(&[]).await;
    let pool = stage.pool();
    let mut lease = pool.lease(&client(1), Wish::Any).await.unwrap();
    let mut out = BytesMut::new();
    compose::query(&mut out, b"hang");
    lease.stream.write_all(&out).await.unwrap();
    let owed = Owed {
        ready: 1,
        ..Owed::default()
    };
    lease.release_after_client_loss(owed, ResetPlan::Nothing).await;
    assert_eq!(stage.server.cancels(), 1);
    assert_eq!(pool.status().open, 0, "this server did not answer the cancel");
    let mut lease = pool.lease(&client(1), Wish::Any).await.unwrap();
    let mut out = BytesMut::new();
    compose::query(&mut out, b"BEGIN");
    lease.stream.write_all(&out).await.unwrap();
    lease.release_after_client_loss(owed, ResetPlan::Nothing).await;
    assert_eq!(stage.server.queries().last().map(String::as_str), Some("ROLLBACK"));
    assert_eq!(pool.status().idle, 1);
}

#[tokio::test(start_paused = true)]
async fn trap_71_a_backend_is_nobodys_until_the_cancel_for_it_has_landed() {
    let stage = Stage::new(&[("MAX_SIZE", "1")]).await;
    let pool = stage.pool();
    stage.server.hold_cancels();
    let cancel = stage.keys.register(SecretLength::Short).unwrap();
    let holder = Holder::new(1, "127.0.0.1:1", Arc::clone(&cancel.slot));
    let lease = pool.lease(&holder, Wish::Any).await.unwrap();
    let (keys, key) = (Arc::clone(&stage.keys), cancel.key.clone());
    let cancelling = tokio::spawn(async move { keys.cancel(&key, LIMIT).await });
    stage.server.cancel_came().await;
    lease.park();
    let waiter = asking(&pool, 2);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!waiter.is_finished(), "the cancel's connection is still open");
    assert_eq!(stage.keys.cancel(&cancel.key, LIMIT).await, CancelOutcome::Idle);
    stage.server.end_cancels();
    assert_eq!(cancelling.await.unwrap(), CancelOutcome::Forwarded);
    waiter.await.unwrap().unwrap().park();
    assert_eq!(stage.server.logins(), 1, "the same backend");
}

#[tokio::test(start_paused = true)]
async fn trap_73_a_cancel_that_does_not_land_in_time_costs_the_backend() {
    let stage = Stage::new(&[("MAX_SIZE", "1")]).await;
    let pool = stage.pool();
    stage.server.hold_cancels();
    let cancel = stage.keys.register(SecretLength::Long).unwrap();
    let holder = Holder::new(1, "127.0.0.1:1", Arc::clone(&cancel.slot));
    let lease = pool.lease(&holder, Wish::Any).await.unwrap();
    let (keys, key) = (Arc::clone(&stage.keys), cancel.key.clone());
    let cancelling = tokio::spawn(async move { keys.cancel(&key, LIMIT).await });
    stage.server.cancel_came().await;
    lease.park();
    assert_eq!(cancelling.await.unwrap(), CancelOutcome::TimedOut);
    pool.lease(&client(2), Wish::Any).await.unwrap().park();
    assert_eq!(stage.server.logins(), 2);
    assert_eq!(stage.closed(CloseReason::Cancelled), 1);
}

#[tokio::test(start_paused = true)]
async fn trap_72_a_cancel_takes_a_waiting_client_out_of_the_line() {
    let stage = Stage::new(&[("MAX_SIZE", "1")]).await;
    let pool = stage.pool();
    let held = pool.lease(&client(0), Wish::Any).await.unwrap();
    let cancel = stage.keys.register(SecretLength::Short).unwrap();
    let holder = Holder::new(1, "127.0.0.1:1", Arc::clone(&cancel.slot));
    let waiting = {
        let (pool, holder) = (Arc::clone(&pool), Arc::clone(&holder));
        tokio::spawn(async move { pool.lease(&holder, Wish::Any).await })
    };
    settle().await;
    assert_eq!(stage.keys.cancel(&cancel.key, LIMIT).await, CancelOutcome::Dequeued);
    let Err(error) = waiting.await.unwrap() else {
        panic!("a lease")
    };
    assert_eq!(error.report().sqlstate, SqlState::QUERY_CANCELED);
    assert_eq!(pool.status().waiting, 0);
    held.park();
    pool.lease(&holder, Wish::Any).await.unwrap().park();
    assert_eq!(stage.server.cancels(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_dedicated_backend_is_counted_and_never_lent() {
    let stage = Stage::new(&[("MAX_TOTAL", "1")]).await;
    let pool = stage.pool();
    let lease = pool
        .dedicated(&client(1), vec![("replication".to_owned(), "database".to_owned())])
        .await
        .unwrap();
    assert!(lease.is_dedicated());
    let waiter = asking(&pool, 2);
    settle().await;
    assert!(!waiter.is_finished());
    lease.park();
    waiter.await.unwrap().unwrap().park();
    assert_eq!((stage.server.logins(), stage.closed(CloseReason::SessionEnd)), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_closed_pool_tells_those_who_wait() {
    let stage = Stage::new(&[("MAX_SIZE", "1")]).await;
    let pool = stage.pool();
    let held = pool.lease(&client(1), Wish::Any).await.unwrap();
    let waiter = asking(&pool, 2);
    settle().await;
    stage.pools.close();
    assert!(matches!(waiter.await.unwrap(), Err(LeaseError::Unavailable(_))));
    held.park();
    until("all sessions are over", || stage.server.sessions() == 0).await;
}
