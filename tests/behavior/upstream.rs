//! How pgsidecar reaches and logs in to PostgreSQL: libpq's URL and keywords, TLS, passwords that rotate, several hosts.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use pgsidecar::wire::{Report, SqlState};

use crate::support::certificates;
use crate::support::fake_backend::FakeBackend;
use crate::support::postgres::{Database, OTHER_PASSWORD, OTHER_USER, PASSWORD, Postgres, USER, Version};
use crate::support::process::psql;
use crate::support::raw_client::RawClient;
use crate::support::sidecar::{Builder, Sidecar};

const IS_TLS: &str = "SELECT ssl::text FROM pg_stat_ssl WHERE pid = pg_backend_pid()";

/// The password of clients whose upstream password is another matter.
const CLIENT_PASSWORD: &str = "client_password";

/// A URL of the cluster with these parameters instead of the usual.
fn url(user: &str, host: &str, database: &Database, parameters: &str) -> String {
    format!(
        "postgres://{user}@{host}:{}/{}?{parameters}",
        database.port, database.name
    )
}

/// A sidecar in front of this URL, whose clients log in with [`CLIENT_PASSWORD`].
fn in_front_of(url: &str, user: &str) -> Builder {
    Builder::default()
        .upstream(url)
        .set("USERS", format!("[{{name: {user}, password: {CLIENT_PASSWORD}}}]"))
}

async fn client_of(sidecar: &Sidecar, user: &str, database: &str) -> RawClient {
    RawClient::login(sidecar.port, user, CLIENT_PASSWORD, database).await
}

/// What a login through the sidecar is refused with.
async fn refusal(sidecar: &Sidecar, user: &str, database: &str) -> Report {
    RawClient::connect(sidecar.port)
        .await
        .log_in(user, CLIENT_PASSWORD, &[("database", database)])
        .await
        .expect_err("the upstream can't be logged in to")
}

fn new_name(prefix: &str) -> String {
    let mut bytes = [0; 6];
    getrandom::fill(&mut bytes).unwrap();
    bytes
        .iter()
        .fold(format!("{prefix}_"), |name, byte| format!("{name}{byte:02x}"))
}

// --- TLS ---

#[tokio::test]
async fn every_sslmode_does_what_libpq_does() {
    let database = Postgres::shared().create_database();
    let root = database.directory.join("server.crt");
    let root = root.display();
    for (parameters, tls) in [
        ("sslmode=disable".to_owned(), "false"),
        ("sslmode=allow".to_owned(), "false"),
        ("sslmode=prefer".to_owned(), "true"),
        ("sslmode=require".to_owned(), "true"),
        // The manual's self-signed certificate as its own root; it has a common name and no subjectAltName.
        (format!("sslmode=require&sslrootcert={root}"), "true"),
        (format!("sslmode=verify-ca&sslrootcert={root}"), "true"),
        (format!("sslmode=verify-full&sslrootcert={root}"), "true"),
    ] {
        let upstream = url(&format!("{USER}:{PASSWORD}"), "localhost", &database, &parameters);
        assert_eq!(psql(&upstream, &[IS_TLS]).await.ok(), tls, "psql with {parameters}");
        let sidecar = Builder::default().upstream(&upstream).start_ready().await;
        let mut client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
        assert_eq!(client.value(IS_TLS).await, tls, "{parameters}");
    }
}

#[tokio::test]
async fn a_certificate_that_libpq_refuses_is_refused() {
    let database = Postgres::shared().create_database();
    let place = database.directory.display();
    for (host, parameters, cause) in [
        // The certificate's name is localhost.
        (
            "127.0.0.1",
            format!("sslmode=verify-full&sslrootcert={place}/server.crt"),
            "localhost",
        ),
        (
            "localhost",
            format!("sslmode=verify-ca&sslrootcert={place}/authority.crt"),
            "TLS to localhost",
        ),
        (
            "localhost",
            format!("sslmode=require&sslrootcert={place}/authority.crt"),
            "TLS to localhost",
        ),
    ] {
        let upstream = url(&format!("{USER}:{PASSWORD}"), host, &database, &parameters);
        assert_ne!(
            psql(&upstream, &["SELECT 1"]).await.code,
            Some(0),
            "psql with {parameters}"
        );
        let sidecar = Builder::default().upstream(&upstream).start().await;
        let mut client = RawClient::connect(sidecar.port).await;
        let told = client
            .log_in(USER, PASSWORD, &[("database", &database.name)])
            .await
            .expect_err("the certificate is refused");
        assert_eq!(told.sqlstate, SqlState::CONNECTION_FAILURE);
        let shown = format!("{told:?}");
        assert!(
            !shown.contains("127.0.0.1") && !shown.contains("localhost"),
            "no address: {shown}"
        );
        let line = sidecar.wait_for_log("no backend could be opened").await;
        assert!(line.contains(cause), "{line}");
    }
}

#[tokio::test]
async fn a_client_certificate_logs_in_without_a_password() {
    let database = Postgres::shared().create_database();
    let place = database.directory.display();
    let parameters = format!("sslmode=require&sslcert={place}/client.crt&sslkey={place}/client.key");
    let upstream = url("certified", "127.0.0.1", &database, &parameters);
    let sidecar = in_front_of(&upstream, "certified").start_ready().await;
    let mut client = client_of(&sidecar, "certified", &database.name).await;
    assert_eq!(client.value("SELECT session_user").await, "certified");
    // Without one PostgreSQL says what it says.
    let bare = in_front_of(
        &url("certified", "127.0.0.1", &database, "sslmode=require"),
        "certified",
    );
    let told = refusal(&bare.start().await, "certified", &database.name).await;
    assert_eq!(told.sqlstate, SqlState::INVALID_AUTHORIZATION_SPECIFICATION);
    assert!(told.message.contains("certificate"), "{told}");
}

/// An authority that signs servers and can call them back.
struct Authority {
    directory: tempfile::TempDir,
    own: certificates::SelfSigned,
}

impl Authority {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let own = certificates::self_signed(directory.path(), "root", "root");
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        Self { directory, own }
    }

    fn openssl(&self, arguments: &str) {
        let output = std::process::Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(self.directory.path())
            .output()
            .expect("openssl is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// The list of what was called back: `revoked`, or nothing.
    fn revocation_list(&self, name: &str, revoked: Option<&Path>) -> PathBuf {
        let place = self.directory.path();
        let configuration = format!(
            "[ca]\ndefault_ca=d\n[d]\ndatabase={name}.index\ncrlnumber={name}.number\ndefault_md=sha256\n\
             default_crl_days=30\n"
        );
        std::fs::write(place.join(format!("{name}.conf")), configuration).unwrap();
        std::fs::write(place.join(format!("{name}.index")), "").unwrap();
        std::fs::write(place.join(format!("{name}.number")), "01\n").unwrap();
        let ca = format!("ca -config {name}.conf -keyfile root.key -cert root.crt");
        if let Some(revoked) = revoked {
            self.openssl(&format!("{ca} -revoke {}", revoked.display()));
        }
        self.openssl(&format!("{ca} -gencrl -out {name}.crl"));
        place.join(format!("{name}.crl"))
    }
}

#[tokio::test]
async fn a_certificate_that_was_called_back_is_refused_and_another_is_not() {
    let cluster = Postgres::private(Version::Installed);
    let database = cluster.create_database();
    let authority = Authority::new();
    let server = certificates::signed_by(authority.directory.path(), &authority.own, "server", "localhost");
    for (from, to) in [(&server.certificate, "server.crt"), (&server.key, "server.key")] {
        // Overwritten in place: the file stays PostgreSQL's own.
        std::fs::write(cluster.directory.join(to), std::fs::read(from).unwrap()).unwrap();
    }
    cluster.psql("postgres", "SELECT pg_reload_conf()");
    let root = authority.own.certificate.display().to_string();
    for (list, passes) in [
        (authority.revocation_list("empty", None), true),
        (authority.revocation_list("full", Some(&server.certificate)), false),
    ] {
        let parameters = format!("sslmode=verify-full&sslrootcert={root}&sslcrl={}", list.display());
        let upstream = url(&format!("{USER}:{PASSWORD}"), "localhost", &database, &parameters);
        // The server takes the new certificate up a moment after the signal.
        crate::support::eventually("psql agrees", async || {
            let done = psql(&upstream, &["SELECT 1"]).await;
            ((done.code == Some(0)) == passes).then_some(())
        })
        .await;
        let sidecar = Builder::default().upstream(&upstream).start().await;
        let logged_in = RawClient::connect(sidecar.port)
            .await
            .log_in(USER, PASSWORD, &[("database", &database.name)])
            .await;
        assert_eq!(logged_in.is_ok(), passes, "{}: {}", list.display(), sidecar.log());
    }
}

#[tokio::test]
async fn trap_84_scram_is_bound_to_the_channel_of_postgresql_15_and_18() {
    for cluster in [Postgres::shared(), Postgres::shared_18()] {
        let database = cluster.create_database();
        for binding in ["require", "prefer", "disable"] {
            let parameters = format!("sslmode=require&channel_binding={binding}");
            let upstream = url(&format!("{USER}:{PASSWORD}"), "127.0.0.1", &database, &parameters);
            let sidecar = Builder::default().upstream(upstream).start_ready().await;
            let mut client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
            assert_eq!(client.value(IS_TLS).await, "true");
        }
    }
}

#[tokio::test]
async fn channel_binding_that_is_required_and_cannot_be_had_is_refused() {
    let database = Postgres::shared().create_database();
    for (login, parameters) in [
        (format!("{USER}:{PASSWORD}"), "sslmode=disable&channel_binding=require"),
        (
            "hashed:hashed_password".to_owned(),
            "sslmode=require&channel_binding=require",
        ),
        ("trusted".to_owned(), "sslmode=require&channel_binding=require"),
    ] {
        let upstream = url(&login, "127.0.0.1", &database, parameters);
        assert_ne!(psql(&upstream, &["SELECT 1"]).await.code, Some(0), "psql as {login}");
        let user = login.split(':').next().unwrap();
        let sidecar = in_front_of(&upstream, user).start().await;
        let told = refusal(&sidecar, user, &database.name).await;
        assert!(told.message.contains("channel binding"), "{login}: {told}");
    }
}

// --- methods ---

#[tokio::test]
async fn trust_password_md5_and_scram_log_in() {
    let database = Postgres::shared().create_database();
    for (user, password) in [
        ("trusted", ""),
        ("plain", ":plain_password"),
        ("hashed", ":hashed_password"),
        (OTHER_USER, &format!(":{OTHER_PASSWORD}")),
    ] {
        let upstream = url(&format!("{user}{password}"), "127.0.0.1", &database, "sslmode=disable");
        let sidecar = in_front_of(&upstream, user).start_ready().await;
        let mut client = client_of(&sidecar, user, &database.name).await;
        assert_eq!(client.value("SELECT session_user").await, user);
    }
}

/// The rule `md5` asks for whatever the stored password is good for.
#[tokio::test]
async fn a_server_that_asks_otherwise_than_last_time_is_logged_in_to_the_plain_way() {
    let postgres = Postgres::private(Version::Installed);
    let database = postgres.create_database();
    let store = |encryption: &str| {
        let sql = format!("SET password_encryption = '{encryption}'; ALTER ROLE hashed PASSWORD 'hashed_password'");
        postgres.psql("postgres", &sql);
    };
    let end = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = 'hashed'";
    store("scram-sha-256");
    let upstream = url("hashed:hashed_password", "127.0.0.1", &database, "sslmode=disable");
    let sidecar = in_front_of(&upstream, "hashed").start_ready().await;
    for encryption in ["scram-sha-256", "md5", "md5", "scram-sha-256", "scram-sha-256"] {
        store(encryption);
        postgres.psql("postgres", end);
        let mut client = client_of(&sidecar, "hashed", &database.name).await;
        assert_eq!(client.value("SELECT session_user").await, "hashed", "{encryption}");
    }
}

#[tokio::test]
async fn a_unix_socket_leads_to_postgresql() {
    let database = Postgres::shared().create_database();
    let sidecar = Builder::default().upstream(database.unix_url()).start_ready().await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    assert_eq!(
        client.value("SELECT coalesce(inet_client_addr()::text, 'unix')").await,
        "unix"
    );
}

// --- libpq's other sources ---

fn private_file(directory: &Path, name: &str, text: &str) -> String {
    let path = directory.join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path.display().to_string()
}

#[tokio::test]
async fn libpqs_variables_password_file_and_service_supply_what_the_url_leaves_out() {
    let database = Postgres::shared().create_database();
    let directory = tempfile::tempdir().unwrap();
    let port = database.port.to_string();
    let line = format!("127.0.0.1:{port}:{}:{USER}:{PASSWORD}\n", database.name);
    let passfile = private_file(
        directory.path(),
        "pgpass",
        &format!("# none\nelsewhere:*:*:*:no\n{line}"),
    );
    let service = format!(
        "[here]\nhost=127.0.0.1\nport={port}\ndbname={}\nuser={USER}\npassword={PASSWORD}\n",
        database.name
    );
    let services = private_file(directory.path(), "services", &service);
    let variables = |builder: Builder| {
        builder
            .variable("PGHOST", "127.0.0.1")
            .variable("PGPORT", &port)
            .variable("PGUSER", USER)
            .variable("PGDATABASE", &database.name)
    };
    let builders = [
        variables(Builder::default()).variable("PGPASSWORD", PASSWORD),
        variables(Builder::default()).variable("PGPASSFILE", &passfile),
        variables(Builder::default()).upstream(format!("passfile={passfile}")),
        Builder::default()
            .upstream("service=here")
            .variable("PGSERVICEFILE", &services),
        Builder::default()
            .variable("PGSERVICE", "here")
            .variable("PGSERVICEFILE", &services),
        Builder::default().upstream(format!(
            "host=127.0.0.1 port={port} user={USER} password={PASSWORD} dbname={}",
            database.name
        )),
    ];
    for builder in builders {
        let sidecar = builder.start_ready().await;
        let mut client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
        assert_eq!(client.value("SELECT session_user").await, USER);
    }
}

// --- passwords that rotate ---

/// A role of the test's own, whose password it may change.
fn rotating_role(password: &str) -> String {
    let role = new_name("rotating");
    Postgres::shared().psql("postgres", &format!("CREATE ROLE {role} LOGIN PASSWORD '{password}'"));
    role
}

fn terminate(role: &str) {
    let sql = format!("SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity WHERE usename = '{role}'");
    Postgres::shared().psql("postgres", &sql);
}

#[tokio::test]
async fn trap_88_a_rotated_password_file_or_command_is_read_at_the_next_login() {
    let database = Postgres::shared().create_database();
    for key in ["UPSTREAM__PASSWORD_FILE", "UPSTREAM__PASSWORD_COMMAND"] {
        let role = rotating_role("first");
        let directory = tempfile::tempdir().unwrap();
        let file = private_file(directory.path(), "secret", "first\n");
        let source = if key.ends_with("FILE") {
            file.clone()
        } else {
            format!("cat {file}")
        };
        let sidecar = in_front_of(&url(&role, "127.0.0.1", &database, "sslmode=disable"), &role)
            .set(key, source)
            .start_ready()
            .await;
        let mut client = client_of(&sidecar, &role, &database.name).await;
        client.value("SELECT 1").await;
        Postgres::shared().psql("postgres", &format!("ALTER ROLE {role} PASSWORD 'second'"));
        private_file(directory.path(), "secret", "second\n");
        terminate(&role);
        assert_eq!(client.value("SELECT 2").await, "2", "{key}");
    }
}

#[tokio::test]
async fn trap_88_between_the_change_of_a_password_and_of_its_file_clients_wait_and_see_no_28p01() {
    let database = Postgres::shared().create_database();
    let role = rotating_role("first");
    let directory = tempfile::tempdir().unwrap();
    let file = private_file(directory.path(), "secret", "first\n");
    let sidecar = in_front_of(&url(&role, "127.0.0.1", &database, "sslmode=disable"), &role)
        .set("UPSTREAM__PASSWORD_FILE", &file)
        .set("POOL__MIN_IDLE", "0")
        .start()
        .await;
    let mut client = client_of(&sidecar, &role, &database.name).await;
    client.value("SELECT 1").await;
    // PostgreSQL first, the file later.
    Postgres::shared().psql("postgres", &format!("ALTER ROLE {role} PASSWORD 'second'"));
    terminate(&role);
    client.query("SELECT 2").await;
    sidecar.wait_for_log("password authentication failed").await;
    private_file(directory.path(), "secret", "second\n");
    assert_eq!(client.until_ready().await[1].row(), [Some("2".to_owned())]);
    // The file first, PostgreSQL later.
    private_file(directory.path(), "secret", "third\n");
    terminate(&role);
    assert_eq!(client.value("SELECT 3").await, "3");
    Postgres::shared().psql("postgres", &format!("ALTER ROLE {role} PASSWORD 'third'"));
    terminate(&role);
    assert_eq!(client.value("SELECT 4").await, "4");
}

#[tokio::test]
async fn trap_87_a_token_of_many_kilobytes_is_sent_whole() {
    // PostgreSQL's own limit for a password message is 65535 bytes; its verifier takes any length.
    let token = "t".repeat(20_000);
    let role = rotating_role("replaced");
    Postgres::shared().psql(
        "postgres",
        &format!("ALTER ROLE {role} PASSWORD 'x'; DO $$ BEGIN EXECUTE format('ALTER ROLE {role} PASSWORD %L', repeat('t', 20000)); END $$"),
    );
    let database = Postgres::shared().create_database();
    let directory = tempfile::tempdir().unwrap();
    let file = private_file(directory.path(), "secret", &format!("{token}\n"));
    let sidecar = in_front_of(&url(&role, "127.0.0.1", &database, "sslmode=disable"), &role)
        .set("UPSTREAM__PASSWORD_FILE", &file)
        .start_ready()
        .await;
    client_of(&sidecar, &role, &database.name).await.value("SELECT 1").await;
}

#[tokio::test]
async fn trap_85_the_key_that_a_client_passes_through_is_renewed_by_its_next_login() {
    let database = Postgres::shared().create_database();
    let role = rotating_role("first");
    let verifier = || {
        let sql = format!("SELECT rolpassword FROM pg_authid WHERE rolname = '{role}'");
        Postgres::shared().psql("postgres", &sql)
    };
    let yaml = |verifier: &str| {
        format!(
            "listen: 127.0.0.1:$PORT\nmetrics: {{listen: '127.0.0.1:$METRICS_PORT'}}\n\
             users: [{{name: {role}, verifier: '{verifier}'}}]\n"
        )
    };
    let sidecar = Sidecar::builder(&database)
        .config(yaml(&verifier()))
        .set("POOL__MIN_IDLE", "0")
        .start()
        .await;
    let mut client = RawClient::login(sidecar.port, &role, "first", &database.name).await;
    assert_eq!(client.value("SELECT session_user").await, role);
    Postgres::shared().psql("postgres", &format!("ALTER ROLE {role} PASSWORD 'second'"));
    let file = sidecar.socket_directory().join("config.yaml");
    let text = yaml(&verifier())
        .replace("$METRICS_PORT", &sidecar.metrics_port.to_string())
        .replace("$PORT", &sidecar.port.to_string());
    std::fs::write(file, text).unwrap();
    sidecar.signal(nix::sys::signal::Signal::SIGHUP);
    sidecar.wait_for_log("reloaded").await;
    terminate(&role);
    let mut next = RawClient::login(sidecar.port, &role, "second", &database.name).await;
    assert_eq!(next.value("SELECT session_user").await, role);
    assert_eq!(client.value("SELECT session_user").await, role);
}

// --- several hosts ---

/// A cluster in recovery, without a primary: what a standby is to its clients.
fn standby() -> Postgres {
    let cluster = Postgres::private(Version::Installed);
    cluster.stop("fast");
    std::fs::write(cluster.directory.join("data/standby.signal"), "").unwrap();
    cluster.start();
    cluster
}

/// One that nobody promotes.
fn shared_standby() -> &'static Postgres {
    static SHARED: std::sync::OnceLock<Postgres> = std::sync::OnceLock::new();
    SHARED.get_or_init(standby)
}

#[tokio::test]
async fn several_hosts_are_tried_for_the_kind_of_server_that_is_wanted() {
    let standby = shared_standby();
    let primary = Postgres::shared();
    let nobody = crate::support::ports::free_port();
    let hosts = format!(
        "127.0.0.1:{nobody},127.0.0.1:{},127.0.0.1:{}",
        standby.port, primary.port
    );
    let is_standby = "SELECT pg_is_in_recovery()::text";
    for (wanted, expected) in [
        ("any", "true"),
        ("read-write", "false"),
        ("primary", "false"),
        ("read-only", "true"),
        ("standby", "true"),
        ("prefer-standby", "true"),
    ] {
        let upstream =
            format!("postgres://{USER}:{PASSWORD}@{hosts}/postgres?sslmode=disable&target_session_attrs={wanted}");
        assert_eq!(psql(&upstream, &[is_standby]).await.ok(), expected, "psql, {wanted}");
        let sidecar = Builder::default().upstream(&upstream).start_ready().await;
        let mut client = RawClient::login(sidecar.port, USER, PASSWORD, "postgres").await;
        assert_eq!(client.value(is_standby).await, expected, "{wanted}");
    }
}

#[tokio::test]
async fn trap_80_a_promoted_server_replaces_its_pools_backends_and_its_clients_notice_nothing() {
    let standby = standby();
    let upstream = format!(
        "postgres://{USER}:{PASSWORD}@127.0.0.1:{}/postgres?sslmode=disable",
        standby.port
    );
    let sidecar = Builder::default().upstream(&upstream).start_ready().await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, "postgres").await;
    assert_eq!(client.value("SHOW in_hot_standby").await, "on");
    standby.psql("postgres", "SELECT pg_promote()");
    crate::support::eventually("writes pass", async || {
        (client.value("SHOW in_hot_standby").await == "off").then_some(())
    })
    .await;
    assert_eq!(client.value("SHOW transaction_read_only").await, "off");
    crate::support::eventually("newcomers are greeted by a primary", async || {
        let fresh = RawClient::login(sidecar.port, USER, PASSWORD, "postgres").await;
        let off = ("in_hot_standby".to_owned(), "off".to_owned());
        fresh.parameters.contains(&off).then_some(())
    })
    .await;
}

#[tokio::test]
async fn trap_80_a_write_refused_by_a_standby_makes_the_upstream_be_looked_up_again() {
    let upstream = format!(
        "postgres://{USER}:{PASSWORD}@127.0.0.1:{}/postgres?sslmode=disable",
        shared_standby().port
    );
    let sidecar = Builder::default().upstream(&upstream).start_ready().await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, "postgres").await;
    let before = client.value("SELECT pg_backend_pid()").await;
    let answer = client.ask("CREATE TABLE refused (x int)").await;
    assert_eq!(answer[0].sqlstate(), "25006");
    sidecar.wait_for_log("the upstream is not what it was").await;
    assert_ne!(client.value("SELECT pg_backend_pid()").await, before);
}

#[tokio::test]
async fn trap_81_a_name_with_several_addresses_is_looked_up_at_each_connect_and_each_is_tried() {
    // Where localhost is ::1 and 127.0.0.1, only the second has PostgreSQL.
    let database = Postgres::shared().create_database();
    let upstream = url(&format!("{USER}:{PASSWORD}"), "localhost", &database, "sslmode=disable");
    let sidecar = Builder::default().upstream(upstream).start_ready().await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    client.value("SELECT 1").await;
}

// --- connect_query ---

#[tokio::test]
async fn connect_query_runs_on_each_new_backend() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set(
            "POOL__CONNECT_QUERY",
            "SET statement_timeout = '77s'; SET work_mem = '7MB'",
        )
        .start_ready()
        .await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    assert_eq!(client.value("SHOW statement_timeout").await, "77s");
    assert_eq!(client.value("SHOW work_mem").await, "7MB");
}

#[tokio::test]
async fn a_connect_query_that_fails_reaches_the_client_in_postgresqls_words() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__CONNECT_QUERY", "SELECT no_such_function()")
        .start()
        .await;
    let told = RawClient::connect(sidecar.port)
        .await
        .log_in(USER, PASSWORD, &[("database", &database.name)])
        .await
        .expect_err("the backend can't be set up");
    assert_eq!(told.sqlstate.to_string(), "42883");
}

// --- refused, down, starting ---

#[tokio::test]
async fn trap_77_a_refused_login_reaches_the_client_at_once_in_postgresqls_words() {
    let database = Postgres::shared().create_database();
    let nologin = new_name("nologin");
    Postgres::shared().psql("postgres", &format!("CREATE ROLE {nologin} PASSWORD 'x'"));
    for (login, name, sqlstate, words) in [
        (
            format!("{USER}:wrong"),
            database.name.as_str(),
            "28P01",
            "password authentication failed for user",
        ),
        (
            format!("{nologin}:x"),
            &database.name,
            "28000",
            "is not permitted to log in",
        ),
        (
            format!("{USER}:{PASSWORD}"),
            "no_such_database",
            "3D000",
            "does not exist",
        ),
    ] {
        let user = login.split(':').next().unwrap().to_owned();
        let upstream = url(&login, "127.0.0.1", &database, "sslmode=disable");
        let sidecar = in_front_of(&upstream, &user)
            .set("POOL__ACQUIRE_TIMEOUT", "10m")
            .start()
            .await;
        let told = refusal(&sidecar, &user, name).await;
        assert_eq!(told.sqlstate.to_string(), sqlstate);
        assert!(told.message.contains(words), "{told}");
        // Remembered: PostgreSQL is not asked again for every client.
        let logged = Postgres::shared().log().matches(&format!("\"{user}\"")).count();
        for _ in 0..5 {
            assert_eq!(refusal(&sidecar, &user, name).await.sqlstate.to_string(), sqlstate);
        }
        let again = Postgres::shared().log().matches(&format!("\"{user}\"")).count() - logged;
        assert!(user == USER || again <= 3, "{user}: asked {again} times more");
    }
}

#[tokio::test]
async fn trap_77_a_server_that_is_starting_or_full_is_waited_for() {
    let fake = FakeBackend::start(|mut session| async move {
        match session.number {
            0 => {
                let report = Report::fatal(SqlState::CANNOT_CONNECT_NOW, "the database system is starting up");
                session.report(&report).await
            }
            1 => {
                let report = Report::fatal(SqlState::TOO_MANY_CONNECTIONS, "sorry, too many clients already");
                session.report(&report).await
            }
            _ => {
                session.login().await?;
                session.serve().await
            }
        }
    })
    .await;
    let sidecar = fake.sidecar().start().await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, "fake").await;
    client.ask("SELECT 1").await;
    assert!(fake.sessions().len() >= 3);
}

#[tokio::test]
async fn trap_79_a_restart_of_postgresql_goes_unnoticed_by_idle_clients_and_is_waited_for_by_others() {
    let cluster = Postgres::private(Version::Installed);
    let database = cluster.create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MIN_IDLE", "3")
        .start_ready()
        .await;
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
        client.value("SELECT 1").await;
        clients.push(client);
    }
    cluster.stop("fast");
    sidecar.wait_metric("pgsidecar_upstream_up", &[], |up| up == 0.0).await;
    assert_eq!(
        sidecar.http("/readyz").await.expect("an answer").status,
        200,
        "ready through an outage"
    );
    clients[0].query("SELECT 'served'").await;
    // A login needs no database either.
    let mut newcomer = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    cluster.start();
    assert_eq!(clients[0].until_ready().await[1].row(), [Some("served".to_owned())]);
    for client in &mut clients {
        assert_eq!(client.value("SELECT 2").await, "2");
    }
    assert_eq!(newcomer.value("SELECT 3").await, "3");
    sidecar.wait_metric("pgsidecar_upstream_up", &[], |up| up == 1.0).await;
    sidecar.wait_for_log("backends can be opened again").await;
    let idle = [("state", "idle")];
    sidecar
        .wait_metric("pgsidecar_backends", &idle, |idle| idle >= 3.0)
        .await;
}

#[tokio::test]
async fn a_database_that_is_down_is_waited_for_until_acquire_timeout() {
    let nobody = crate::support::ports::free_port();
    let sidecar = Builder::default()
        .upstream(format!("postgres://{USER}:{PASSWORD}@127.0.0.1:{nobody}/app"))
        .set("POOL__ACQUIRE_TIMEOUT", "300ms")
        .start()
        .await;
    assert_eq!(sidecar.http("/readyz").await.expect("an answer").status, 503);
    let told = RawClient::connect(sidecar.port)
        .await
        .log_in(USER, PASSWORD, &[("database", "app")])
        .await
        .expect_err("nobody is there");
    assert_eq!(told.sqlstate, SqlState::TOO_MANY_CONNECTIONS);
    assert!(told.detail.is_some_and(|detail| detail.contains("could not connect")));
    assert!(told.hint.is_some_and(|hint| hint.contains("server is up")));
}
