//! Where clients connect: TCP and unix sockets, their names and modes, and who a unix socket's peer is.

use std::os::unix::fs::PermissionsExt;

use crate::support::ports::free_port;
use crate::support::postgres::{PASSWORD, Postgres, USER};
use crate::support::raw_client::RawClient;
use crate::support::sidecar::{Builder, Sidecar};

fn system_user() -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).unwrap();
    user.expect("the user that runs tests has a name").name
}

#[tokio::test]
async fn unix_sockets_are_named_as_libpq_names_them_and_as_open_as_their_method_allows() {
    let database = Postgres::shared().create_database();
    let config = "
listen:
  - {address: '127.0.0.1:$PORT'}
  - 'unix:$DIRECTORY'
  - {address: 'unix:$DIRECTORY:1', auth: trust}
  - {address: 'unix:$DIRECTORY:2', auth: peer}
  - {address: 'unix:$DIRECTORY:3', unix_socket_mode: '0770'}
";
    let mut sidecar = Sidecar::builder(&database)
        .config(config)
        .own_listen()
        .start_ready()
        .await;
    let path = |number: u16| sidecar.socket_directory().join(format!(".s.PGSQL.{number}"));
    for (number, mode) in [(6432, 0o777), (1, 0o700), (2, 0o700), (3, 0o770)] {
        let metadata = std::fs::metadata(path(number)).expect("the socket is there");
        assert_eq!(metadata.permissions().mode() & 0o7777, mode, "{number}");
    }
    for number in [6432, 1, 3] {
        let mut client = RawClient::connect_unix(&path(number)).await;
        client
            .log_in(USER, PASSWORD, &[("database", &database.name)])
            .await
            .expect("the login succeeds");
        assert_eq!(client.value("SELECT 1").await, "1");
    }
    let gone = path(6432);
    sidecar.signal(nix::sys::signal::Signal::SIGTERM);
    sidecar.wait_exit().await;
    assert!(!gone.exists(), "a stopped sidecar leaves no socket behind");
}

#[tokio::test]
async fn peer_is_the_system_user_or_whom_it_is_mapped_to() {
    let database = Postgres::shared().create_database();
    let config = format!(
        "
listen: [{{address: '127.0.0.1:$PORT'}}, {{address: 'unix:$DIRECTORY:1', auth: peer}}]
users: [{{name: {USER}, password: {PASSWORD}}}, {{name: other, password: other_password}}]
peer_users: {{{}: [{USER}], somebody: other}}
",
        system_user()
    );
    let sidecar = Sidecar::builder(&database)
        .config(config)
        .own_listen()
        .start_ready()
        .await;
    let path = sidecar.socket_directory().join(".s.PGSQL.1");
    let mut client = RawClient::connect_unix(&path).await;
    client
        .log_in(USER, "", &[("database", &database.name)])
        .await
        .expect("it is mapped");
    assert_eq!(client.value("SELECT session_user").await, USER);
    assert_eq!(client.authentication, [0]);
    let refusal = RawClient::connect_unix(&path)
        .await
        .log_in("other", "", &[("database", &database.name)])
        .await;
    let report = refusal.expect_err("it is not mapped to that one");
    assert_eq!(
        (report.sqlstate.as_str(), report.message.as_ref()),
        ("28000", "Peer authentication failed for user \"other\"")
    );
}

#[tokio::test]
async fn peer_without_a_map_is_the_user_of_the_same_name() {
    let database = Postgres::shared().create_database();
    let own = system_user();
    let config = format!(
        "
listen: [{{address: '127.0.0.1:$PORT'}}, {{address: 'unix:$DIRECTORY:1', auth: peer}}]
users: [{{name: {USER}, password: {PASSWORD}}}, {{name: {own}}}]
databases: {{named: {{dbname: {}, user: {USER}}}}}
",
        database.name
    );
    let sidecar = Sidecar::builder(&database).config(config).own_listen().start().await;
    let path = sidecar.socket_directory().join(".s.PGSQL.1");
    let mut client = RawClient::connect_unix(&path).await;
    client
        .log_in(&own, "", &[("database", "named")])
        .await
        .expect("it is the same name");
    assert_eq!(client.value("SELECT session_user").await, USER);
    RawClient::connect_unix(&path)
        .await
        .log_in(USER, PASSWORD, &[("database", "named")])
        .await
        .expect_err("it is another name");
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
    let database = Postgres::shared().create_database();
    let directory = tempfile::tempdir().unwrap();
    let address = format!("unix:{}:5", directory.path().display());
    let path = directory.path().join(".s.PGSQL.5");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let with_socket = || {
        let port = free_port();
        let builder = Sidecar::builder(&database).own_listen();
        (
            port,
            builder.variable("PGSIDECAR_LISTEN", format!("127.0.0.1:{port},{address}")),
        )
    };
    let (_, builder) = with_socket();
    let first = builder.spawn();
    first.wait_for_log("pgsidecar serves").await;
    let mut client = RawClient::connect_unix(&path).await;
    client
        .log_in(USER, PASSWORD, &[("database", &database.name)])
        .await
        .expect("the login succeeds");
    let (_, builder) = with_socket();
    let mut second = builder.spawn();
    assert_eq!(second.wait_exit().await.code(), Some(1));
    let line = second.wait_for_log("cannot listen on").await;
    assert!(line.contains(".s.PGSQL.5") && line.contains("taken"), "{line}");
    assert_eq!(client.value("SELECT 1").await, "1", "the first one serves on");
}

#[tokio::test]
async fn ways_to_log_in_that_an_address_does_not_protect_are_refused_at_start() {
    for listen in [
        "[{address: '0.0.0.0:1', auth: trust}]",
        "[{address: '0.0.0.0:1', auth: password}]",
        "[{address: '127.0.0.1:1', auth: peer}]",
        "[{address: 'unix:/tmp', auth: trust, unix_socket_mode: '0777'}]",
    ] {
        let mut sidecar = Builder::default()
            .upstream("postgres://app:secret@127.0.0.1:1/app")
            .config(format!("listen: {listen}"))
            .own_listen()
            .spawn();
        assert_eq!(sidecar.wait_exit().await.code(), Some(1), "{listen}: {}", sidecar.log());
        sidecar.wait_for_log("listen[0]").await;
    }
}
