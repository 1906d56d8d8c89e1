//! Startup parameters: what PostgreSQL accepts takes effect and is greeted as PostgreSQL greets it; what it refuses is
//! refused in its words. No backend is touched for what is known.

use pgsidecar::wire::Report;

use crate::support::eventually;
use crate::support::fake_backend::FakeBackend;
use crate::support::postgres::{Database, PASSWORD, Postgres, USER, Version};
use crate::support::process::{client_program, psql, run};
use crate::support::raw_client::{RawClient, bind, execute, sync, together};
use crate::support::sidecar::Sidecar;

async fn log_in(port: u16, database: &str, parameters: &[(&str, &str)]) -> Result<RawClient, Report> {
    let mut client = RawClient::connect(port).await;
    let parameters = [&[("database", database)], parameters].concat();
    client.log_in(USER, PASSWORD, &parameters).await.map(|()| client)
}

/// The same login past pgsidecar and through it.
async fn both(database: &Database, sidecar: &Sidecar, parameters: &[(&str, &str)]) -> [Result<RawClient, Report>; 2] {
    [
        log_in(database.port, &database.name, parameters).await,
        log_in(sidecar.port, &database.name, parameters).await,
    ]
}

fn sorted(client: &RawClient) -> Vec<(String, String)> {
    let mut parameters = client.parameters.clone();
    parameters.sort();
    parameters
}

/// Settings that PostgreSQL accepts at a connection's start, and one to look at.
const ACCEPTED: &[(&[(&str, &str)], &str)] = &[
    (&[("datestyle", "iso")], "DateStyle"),
    (&[("DateStyle", "german")], "DateStyle"),
    (&[("client_encoding", "utf8")], "client_encoding"),
    (&[("client_encoding", "latin1")], "client_encoding"),
    (&[("timezone", "asia/tokyo")], "TimeZone"),
    (
        &[("TimeZone", "UTC"), ("options", "-c timezone=Europe/Berlin")],
        "TimeZone",
    ),
    (&[("intervalstyle", "iso_8601")], "IntervalStyle"),
    (&[("standard_conforming_strings", "off")], "standard_conforming_strings"),
    (&[("application_name", "A plain name")], "application_name"),
    (&[("application_name", "café\ttab")], "application_name"),
    (
        &[(
            "APPLICATION_NAME",
            "a name that is much longer than the sixty-three bytes that PostgreSQL keeps of it",
        )],
        "application_name",
    ),
    (&[("extra_float_digits", "3")], "extra_float_digits"),
    (&[("statement_timeout", "12345")], "statement_timeout"),
    (&[("search_path", "pg_catalog, \"$user\", \"a b\"")], "search_path"),
    (
        &[("options", "-c search_path=one,two -c statement_timeout=5s")],
        "search_path",
    ),
    (
        &[("options", "--statement-timeout=6s --lock_timeout=7s")],
        "lock_timeout",
    ),
    (
        &[("options", "-cwork_mem=5MB -c application_name=with\\ space")],
        "application_name",
    ),
    (
        &[("options", "-c app.tenant=42"), ("app.other", "it's \\ \"quoted\"")],
        "app.tenant",
    ),
    (&[("app.other", "it's \\ \"quoted\"")], "app.other"),
    (
        &[("plpgsql.variable_conflict", "use_column")],
        "plpgsql.variable_conflict",
    ),
    (
        &[("plpgsql.variable_conflict", "nonsense")],
        "plpgsql.variable_conflict",
    ),
    (
        &[("default_transaction_isolation", "serializable")],
        "transaction_isolation",
    ),
    (
        &[("default_transaction_read_only", "on")],
        "default_transaction_read_only",
    ),
    (&[("bytea_output", "escape"), ("lc_monetary", "C")], "bytea_output"),
    (&[("options", "-c geqo=off -c enable_seqscan=no")], "enable_seqscan"),
    (&[("role", "app")], "role"),
    (&[("options", "")], "search_path"),
    // Only PostgreSQL can follow these, on a backend of the client's own.
    (&[("options", "-c ignore_system_indexes=on")], "ignore_system_indexes"),
    (&[("options", "-P")], "ignore_system_indexes"),
    (&[("options", "-S 5120 -fs")], "work_mem"),
    (&[("options", "-e")], "DateStyle"),
    (&[("post_auth_delay", "0")], "post_auth_delay"),
];

#[tokio::test]
async fn trap_08_every_accepted_parameter_takes_effect_and_is_greeted_as_postgresql_greets_it() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::start(&database).await;
    for (parameters, name) in ACCEPTED {
        // Twice through: tried on a backend the first time, remembered the second.
        for _ in 0..2 {
            let [direct, through] = both(&database, &sidecar, parameters).await;
            let mut direct = direct.unwrap_or_else(|report| panic!("{parameters:?} directly: {report}"));
            let mut through = through.unwrap_or_else(|report| panic!("{parameters:?}: {report}"));
            assert_eq!(sorted(&through), sorted(&direct), "{parameters:?}");
            let show = format!("SELECT current_setting('{name}')");
            assert_eq!(through.value(&show).await, direct.value(&show).await, "{parameters:?}");
            let later = format!("BEGIN; {show}; COMMIT");
            assert_eq!(
                through.value(&later).await,
                direct.value(&later).await,
                "{parameters:?}"
            );
        }
    }
    // None of it reaches a client that asked for nothing.
    let [direct, through] = both(&database, &sidecar, &[])
        .await
        .map(|login| login.expect("a plain login"));
    let (mut direct, mut through) = (direct, through);
    assert_eq!(sorted(&through), sorted(&direct));
    for name in [
        "statement_timeout",
        "work_mem",
        "search_path",
        "geqo",
        "role",
        "default_transaction_read_only",
    ] {
        let show = format!("SELECT current_setting('{name}')");
        assert_eq!(through.value(&show).await, direct.value(&show).await, "{name}");
    }
}

/// Logins that PostgreSQL refuses.
const REFUSED: &[&[(&str, &str)]] = &[
    &[("nosuch_setting", "1")],
    &[("options", "-c nosuch_setting=1")],
    &[("options", "--nosuch=1")],
    &[("options", "-c statement_timeout")],
    &[("options", "--statement_timeout")],
    &[("options", "junk")],
    &[("options", "-Z")],
    &[("options", "-c")],
    &[("extra_float_digits", "99")],
    &[("extra_float_digits", "many")],
    &[("statement_timeout", "5 parsecs")],
    &[("client_encoding", "klingon")],
    &[("timezone", "Nowhere/Never")],
    &[("datestyle", "nonsense")],
    &[("default_transaction_isolation", "none")],
    &[("search_path", "\"unbalanced")],
    &[("role", "no_such_role")],
    &[("role", "other")],
    &[("session_authorization", "other")],
    &[("shared_buffers", "1GB")],
    &[("server_version", "99")],
    &[("log_statement", "all")],
    &[("options", "-c log_connections=on")],
    &[("options", "-c session_preload_libraries=evil")],
    &[("app.1x", "1")],
    &[("app.", "1")],
    &[(".app", "1")],
    &[("replication", "maybe")],
    &[("User", "other")],
    &[("is_superuser", "on")],
];

#[tokio::test]
async fn trap_07_what_postgresql_refuses_is_refused_in_its_words() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::start(&database).await;
    for parameters in REFUSED {
        let [direct, through] = both(&database, &sidecar, parameters).await;
        match (direct, through) {
            (Err(direct), Err(through)) => {
                let told = |report: &Report| {
                    (
                        report.severity,
                        report.sqlstate,
                        report.message.clone(),
                        report.detail.clone(),
                        report.hint.clone(),
                    )
                };
                assert_eq!(told(&through), told(&direct), "{parameters:?}");
            }
            (direct, through) => panic!("{parameters:?}: directly {direct:?}, through {through:?}"),
        }
    }
    RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
}

#[tokio::test]
async fn trap_09_the_greeting_of_postgresql_18_is_the_same_through() {
    let database = Postgres::shared_18().create_database();
    let sidecar = Sidecar::start(&database).await;
    for parameters in [
        &[][..],
        &[("options", "-c search_path=one,two -c default_transaction_read_only=on")],
    ] {
        let [direct, through] = both(&database, &sidecar, parameters)
            .await
            .map(|login| login.expect("accepted"));
        assert_eq!(sorted(&through), sorted(&direct));
    }
}

#[tokio::test]
async fn trap_11_logins_need_no_backend_once_the_server_is_known() {
    let cluster = Postgres::private(Version::Installed);
    let database = cluster.create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "1")
        .start_ready()
        .await;
    let parameters = [("client_encoding", "utf8"), ("datestyle", "iso")];
    let mut first = log_in(sidecar.port, &database.name, &parameters)
        .await
        .expect("the first login");
    // All backends are busy.
    first.ask("BEGIN").await;
    let named = |name: &'static str| [&parameters[..], &[("application_name", name)]].concat();
    let busy = log_in(sidecar.port, &database.name, &named("while all are busy"))
        .await
        .expect("no backend is needed");
    assert_eq!(sorted(&busy).len(), sorted(&first).len());
    first.ask("COMMIT").await;
    let label = [("database", database.name.as_str())];
    let opened = sidecar.metric("pgsidecar_backend_connections_total", &label).await;
    cluster.stop("fast");
    for _ in 0..3 {
        log_in(sidecar.port, &database.name, &named("while it is down"))
            .await
            .expect("no backend is needed");
    }
    assert_eq!(
        sidecar.metric("pgsidecar_backend_connections_total", &label).await,
        opened
    );
    cluster.start();
    let mut client = log_in(sidecar.port, &database.name, &named("up again"))
        .await
        .expect("no backend is needed");
    assert_eq!(client.value("SHOW application_name").await, "up again");
}

#[tokio::test]
async fn not_even_the_first_client_waits_for_what_a_new_backend_reports_by_itself() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "1")
        .start_ready()
        .await;
    let mut holder = log_in(sidecar.port, &database.name, &[]).await.expect("a login");
    holder.ask("BEGIN").await;
    let zone = holder.parameter("TimeZone").expect("it is reported").to_owned();
    // As libpq says client_encoding for Django, and one more in the server's own spelling. The backend is taken.
    let parameters = [("client_encoding", "UTF8"), ("timezone", zone.as_str())];
    let mut client = log_in(sidecar.port, &database.name, &parameters)
        .await
        .expect("no backend is needed");
    assert_eq!(client.parameter("client_encoding"), Some("UTF8"));
    holder.ask("COMMIT").await;
    assert_eq!(client.value("SHOW client_encoding").await, "UTF8");
    client.ask("SET client_encoding TO latin1").await;
    client.ask("RESET client_encoding").await;
    assert_eq!(client.value("SHOW client_encoding").await, "UTF8");
}

#[tokio::test]
async fn the_greeting_is_one_write() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::start(&database).await;
    RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    let mut client = RawClient::connect(sidecar.port).await;
    client
        .startup(
            pgsidecar::wire::PROTOCOL_3_0,
            &[("user", USER), ("database", &database.name)],
        )
        .await;
    // From the server's final SCRAM message to ReadyForQuery, everything is there with the first byte.
    let reads = client
        .authenticate_counting_reads(USER, PASSWORD)
        .await
        .expect("the login succeeds");
    assert_eq!(reads, 3, "AuthenticationSASL, its continuation, and all the rest");
}

#[tokio::test]
async fn trap_09_a_changed_configuration_of_the_server_shows_in_the_next_greeting() {
    let cluster = Postgres::private(Version::Installed);
    let database = cluster.create_database();
    let sidecar = Sidecar::start(&database).await;
    let zone = async || {
        let mut client = log_in(sidecar.port, &database.name, &[("datestyle", "iso")])
            .await
            .ok()?;
        // PostgreSQL takes a changed configuration over with the next statement only.
        let shown = client.value("SHOW DateStyle").await;
        assert_eq!(client.parameter("DateStyle"), Some(shown.as_str()));
        let value = |name: &str| client.parameter(name).map(str::to_owned);
        value("TimeZone").zip(value("DateStyle"))
    };
    let before = zone().await.expect("the login succeeds");
    assert_eq!(before.1, "ISO, MDY");
    cluster.psql("postgres", "ALTER SYSTEM SET timezone = 'Asia/Tokyo'");
    cluster.psql("postgres", "ALTER SYSTEM SET datestyle = 'German, DMY'");
    cluster.psql("postgres", "SELECT pg_reload_conf()");
    // What `iso` comes to depends on the server's own order of day and month.
    let after = ("Asia/Tokyo".to_owned(), "ISO, DMY".to_owned());
    eventually("the new zone", async || zone().await.filter(|seen| *seen == after)).await;
}

#[tokio::test]
async fn trap_09_a_server_of_another_version_shows_in_the_next_greeting() {
    let fake = FakeBackend::start(|mut session| async move {
        let version = if session.number == 0 { "15.1" } else { "16.2" };
        session.login_with(&[("server_version", version)]).await?;
        match session.number {
            0 => session.until_query("leave").await.map(drop),
            _ => session.serve().await,
        }
    })
    .await;
    let sidecar = fake.sidecar().start().await;
    let first = log_in(sidecar.port, "fake", &[]).await.expect("the login succeeds");
    assert_eq!(first.parameter("server_version"), Some("15.1"));
    let mut first = first;
    let _ = first.try_send(&crate::support::raw_client::query("leave")).await;
    let _ = first.until_ready_or_end().await;
    let mut second = log_in(sidecar.port, "fake", &[]).await.expect("the login succeeds");
    second.ask("SELECT 1").await;
    let third = log_in(sidecar.port, "fake", &[]).await.expect("the login succeeds");
    assert_eq!(third.parameter("server_version"), Some("16.2"));
}

#[tokio::test]
async fn trap_58_a_custom_setting_leaves_no_trace_for_others() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "1")
        .start_ready()
        .await;
    let show = "SELECT coalesce(current_setting('app.tenant', true), 'unset')";
    for tenant in ["one", "two"] {
        let options = format!("-c app.tenant={tenant}");
        let mut with = log_in(sidecar.port, &database.name, &[("options", &options)])
            .await
            .expect("accepted");
        assert_eq!(with.value(show).await, tenant);
        let mut without = log_in(sidecar.port, &database.name, &[]).await.expect("accepted");
        assert_eq!(without.value(show).await, "unset");
        assert_eq!(with.value(show).await, tenant);
    }
}

/// DISCARD ALL leaves an empty value of a custom setting where a new session has none.
#[tokio::test]
async fn trap_58_a_custom_setting_leaves_no_trace_behind_a_reset_either() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "1")
        .start_ready()
        .await;
    let mut with = log_in(sidecar.port, &database.name, &[("options", "-c app.tenant=one")])
        .await
        .expect("accepted");
    with.ask("CREATE TEMPORARY TABLE held (x int)").await;
    drop(with);
    let mut without = log_in(sidecar.port, &database.name, &[]).await.expect("accepted");
    let show = "SELECT coalesce(current_setting('app.tenant', true), 'unset')";
    assert_eq!(without.value(show).await, "unset");
}

/// What pgsidecar asks on a backend leaves no statement that a client could run.
#[tokio::test]
async fn trap_29_a_trial_of_a_setting_leaves_no_unnamed_statement() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "1")
        .start_ready()
        .await;
    let mut client = log_in(sidecar.port, &database.name, &[]).await.expect("accepted");
    for (setting, accepted) in [("asia/tokyo", true), ("nowhere", false)] {
        let tried = log_in(sidecar.port, &database.name, &[("timezone", setting)]).await;
        assert_eq!(tried.is_ok(), accepted);
        client
            .send(&together(&[bind("", "", &[]), execute("", 0), sync()]))
            .await;
        assert_eq!(client.expect("E Z").await[0].sqlstate(), "26000", "{setting}");
    }
}

#[tokio::test]
async fn a_missing_database_is_refused_fast_and_remembered_and_becomes_no_label() {
    let cluster = Postgres::private(Version::Installed);
    let database = cluster.create_database();
    let sidecar = Sidecar::start(&database).await;
    let directly = log_in(cluster.port, "nowhere", &[]).await.expect_err("there is none");
    for _ in 0..4 {
        let through = log_in(sidecar.port, "nowhere", &[]).await.expect_err("there is none");
        assert_eq!(
            (through.severity, through.sqlstate, &through.message),
            (directly.severity, directly.sqlstate, &directly.message)
        );
    }
    let asked = cluster.log().matches("database \"nowhere\" does not exist").count();
    assert_eq!(asked, 2, "once directly, once through");
    assert!(!sidecar.metrics().await.contains("nowhere"));
}

#[tokio::test]
async fn replication_connections_get_a_backend_of_their_own() {
    let database = Postgres::shared().create_database();
    Postgres::shared().psql("postgres", "ALTER ROLE app REPLICATION");
    let sidecar = Sidecar::start(&database).await;
    for parameters in ["replication=database", "replication=true"] {
        let url = format!("{}?{parameters}", sidecar.url(&database));
        let row = psql(&url, &["IDENTIFY_SYSTEM"]).await.ok();
        let dbname = if parameters.ends_with("database") {
            database.name.as_str()
        } else {
            ""
        };
        assert_eq!(row.split('|').nth(3), Some(dbname), "{row}");
    }
    // Ordinary statements work on a logical one, and an ordinary client sees nothing of it.
    let mut walsender = log_in(sidecar.port, &database.name, &[("replication", "database")])
        .await
        .expect("accepted");
    walsender.ask("SET application_name = 'walsender'").await;
    assert_eq!(walsender.value("SHOW application_name").await, "walsender");
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    assert_eq!(client.value("SHOW application_name").await, "");
    let mut false_one = log_in(sidecar.port, &database.name, &[("replication", "off")])
        .await
        .expect("accepted");
    assert_eq!(false_one.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn pg_recvlogical_streams_through() {
    let database = Postgres::shared().create_database();
    Postgres::shared().psql("postgres", "ALTER ROLE app REPLICATION");
    let sidecar = Sidecar::start(&database).await;
    let url = sidecar.url(&database);
    assert_eq!(psql(&url, &["CREATE TABLE streamed (word text)"]).await.code, Some(0));
    let slot = format!("slot_{}", database.name);
    let recvlogical = async |arguments: &[&str]| {
        let mut command = client_program("pg_recvlogical");
        command.args(["-d", &url, "--slot", &slot]).args(arguments);
        run(command, std::time::Duration::from_secs(60)).await.ok()
    };
    recvlogical(&["--create-slot", "-P", "test_decoding"]).await;
    let end = psql(
        &url,
        &["INSERT INTO streamed VALUES ('through')", "SELECT pg_current_wal_lsn()"],
    )
    .await
    .ok();
    let end = end.lines().last().unwrap_or_default().to_owned();
    let changes = recvlogical(&["--start", "-f", "-", "--no-loop", "--endpos", &end]).await;
    assert!(
        changes.contains("table public.streamed: INSERT: word[text]:'through'"),
        "{changes}"
    );
    recvlogical(&["--drop-slot"]).await;
}

#[tokio::test]
async fn trap_12_who_leaves_while_queued_is_not_served() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "1")
        .start_ready()
        .await;
    let mut holder = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    holder.ask("CREATE TABLE seen (who text)").await;
    holder.ask("BEGIN").await;
    for says_goodbye in [false, true] {
        let mut queued = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
        queued.query("INSERT INTO seen VALUES ('queued')").await;
        sidecar
            .wait_metric("pgsidecar_clients", &[("state", "waiting")], |clients| clients == 1.0)
            .await;
        if says_goodbye {
            queued.send(&crate::support::raw_client::terminate()).await;
        }
        drop(queued);
        sidecar
            .wait_metric("pgsidecar_clients", &[("state", "waiting")], |clients| clients == 0.0)
            .await;
        sidecar
            .wait_metric("pgsidecar_clients", &[], |clients| clients == 1.0)
            .await;
    }
    holder.ask("COMMIT").await;
    assert_eq!(holder.value("SELECT count(*) FROM seen").await, "0");
}

#[tokio::test]
async fn trap_60_backends_log_in_with_the_upstreams_parameters_and_none_of_a_clients() {
    let neutral = [("database", "fake"), ("user", "app")];
    let configured = [("application_name", "sidecar"), ("options", "-c geqo=off")];
    for (url, mut expected) in [
        ("", neutral.to_vec()),
        (
            "&options=-c%20geqo%3Doff&application_name=sidecar",
            [neutral, configured].concat(),
        ),
    ] {
        expected.sort_unstable();
        let fake = FakeBackend::obliging().await;
        let upstream = format!("{}{url}", fake.url());
        let sidecar = fake.sidecar().upstream(upstream).start().await;
        let mut holders = Vec::new();
        for (name, value) in [
            ("application_name", "one"),
            ("TimeZone", "Asia/Tokyo"),
            ("options", "-c search_path=aside -c app.tenant=two"),
        ] {
            let mut client = log_in(sidecar.port, "fake", &[(name, value)]).await.expect("accepted");
            client.ask("BEGIN").await;
            holders.push(client);
        }
        for session in fake.wait_sessions(3).await {
            let asked = session.parameters.iter();
            let mut asked: Vec<_> = asked.map(|(name, value)| (&**name, &**value)).collect();
            asked.sort_unstable();
            assert_eq!(asked, expected);
        }
    }
}
