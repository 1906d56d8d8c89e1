//! `pgsidecar diagnose`, run for real: what it measures, what it concludes, and the line for each step that can fail.

use std::net::TcpListener;
use std::process::{Command, Output, Stdio};

use crate::support::ports::free_port;
use crate::support::postgres::{Database, PASSWORD, Postgres};
use crate::support::sidecar::Sidecar;

fn pgsidecar(variables: &[(&str, &str)], arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgsidecar"));
    command
        .args(arguments)
        .env_clear()
        .envs(variables.iter().copied())
        .stdin(Stdio::null());
    command.output().expect("the binary runs")
}

async fn diagnose(variables: &[(&'static str, &str)], arguments: &[&str]) -> (i32, String, String) {
    let variables: Vec<_> = variables
        .iter()
        .map(|(name, value)| (*name, (*value).to_owned()))
        .collect();
    let arguments: Vec<_> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    let running = tokio::task::spawn_blocking(move || {
        let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let arguments: Vec<_> = ["diagnose"]
            .into_iter()
            .chain(arguments.iter().map(String::as_str))
            .collect();
        pgsidecar(&variables, &arguments)
    });
    let output = running.await.expect("it ran");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code().unwrap_or(-1),
        text(&output.stdout),
        text(&output.stderr),
    )
}

/// The number behind a key of one line of JSON, the first from `section` on.
fn number(json: &str, section: &str, key: &str) -> f64 {
    let from = json.find(&format!("\"{section}\":")).expect("the section");
    let value = json[from..].split_once(&format!("\"{key}\":")).expect("the key").1;
    let end = value.find([',', '}']).expect("its end");
    value[..end].parse().expect("a number")
}

const PATIENT: &str = "--goal-ms=60000";

#[tokio::test]
async fn both_ways_are_measured_and_reuse_is_seen() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::start(&database).await;
    let through = sidecar.url(&database);
    let arguments = [
        &database.url(),
        "--through",
        &through,
        "--json",
        "--connections=6",
        "--at-once=3",
        PATIENT,
    ];
    let (code, json, errors) = diagnose(&[], &arguments).await;
    assert_eq!((code, errors.as_str()), (0, ""), "{json}");
    assert_eq!(json.lines().count(), 1, "{json}");
    assert_eq!(number(&json, "direct", "connections"), 9.0);
    assert_eq!(number(&json, "direct", "backends"), 9.0, "each its own: {json}");
    assert_eq!(number(&json, "through", "backends_one_by_one"), 1.0, "{json}");
    assert!(json.contains(r#""is_goal_met":true,"is_reused":true"#), "{json}");
    assert!(number(&json, "direct", "tls") > 0.0 && number(&json, "direct", "login") > 0.0);
    assert!(!json.contains(PASSWORD));

    let (code, table, _) = diagnose(
        &[],
        &[&database.url(), "--through", &through, "--connections=3", PATIENT],
    )
    .await;
    assert_eq!(code, 0);
    for part in [
        "directly",
        "through",
        "TLS",
        "round trip",
        "3 in a row",
        "16 at once",
        "Backends are reused",
        "Met",
    ] {
        assert!(table.contains(part), "{part} in\n{table}");
    }
}

#[tokio::test]
async fn the_configuration_is_enough_where_pgsidecar_itself_runs() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::start(&database).await;
    let listen = format!("127.0.0.1:{}", sidecar.port);
    let url = database.url();
    let variables = [
        ("PGSIDECAR_UPSTREAM", url.as_str()),
        ("PGSIDECAR_LISTEN", listen.as_str()),
    ];
    let (code, json, errors) = diagnose(&variables, &["--json", "--connections=4", "--at-once=0", PATIENT]).await;
    assert_eq!((code, errors.as_str()), (0, ""), "{json}");
    assert!(json.contains(&format!(r#""address":"{listen}""#)), "{json}");
    assert_eq!(number(&json, "through", "backends"), 1.0);
}

#[tokio::test]
async fn a_missed_goal_is_exit_1_and_says_what_to_change() {
    let database = Postgres::shared().create_database();
    let url = database.url();
    // A login over TLS with SCRAM, its keys derived, takes longer than this anywhere.
    let arguments = ["--connections=2", "--at-once=2", "--goal-ms=1"];
    let (code, table, _) = diagnose(&[("DATABASE_URL", &url)], &arguments).await;
    assert_eq!(code, 1, "{table}");
    assert!(
        table.contains("Missed") && table.contains("To change: Run pgsidecar beside the app"),
        "{table}"
    );
}

/// Something that accepts, says nothing that PostgreSQL would, and closes.
fn plain_service() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let _ = std::io::Write::write_all(&mut stream, b"220 mail.example ESMTP\r\n");
            // The request is read, so that the close is no reset that overtakes the greeting.
            let _ = std::io::Read::read(&mut stream, &mut [0; 512]);
        }
    });
    port
}

/// `app:PASSWORD@…` with one part of it replaced.
fn wrong(database: &Database, from: &str, to: &str) -> String {
    let url = database.url();
    assert!(url.contains(from), "{from} in {url}");
    url.replacen(from, to, 1)
}

#[tokio::test]
async fn the_step_that_failed_is_one_line_and_what_to_try_another() {
    let database = Postgres::shared().create_database();
    let port = format!(":{}/", database.port);
    let nobody = format!(":{}/", free_port());
    let mail = format!(":{}/", plain_service());
    let cases = [
        (
            wrong(&database, "127.0.0.1", "nosuch.invalid"),
            "DNS failed",
            "getent hosts",
        ),
        (wrong(&database, &port, &nobody), "connecting failed", "check the port"),
        (
            wrong(&database, PASSWORD, "mistaken"),
            "login failed: password authentication failed",
            "%40",
        ),
        (
            wrong(&database, &database.name, "nosuch"),
            "login failed: database \"nosuch\" does not exist",
            "last /",
        ),
        (
            wrong(&database, &port, &mail),
            "TLS failed",
            "does not speak PostgreSQL's protocol",
        ),
        (
            wrong(&database, &port, &mail).replace("require", "disable"),
            "login failed",
            "may not be PostgreSQL",
        ),
    ];
    for (url, failed, advice) in cases {
        let (code, output, errors) = diagnose(&[], &[&url]).await;
        assert_eq!((code, output.as_str()), (1, ""), "{errors}");
        let lines: Vec<_> = errors.lines().collect();
        assert_eq!(lines.len(), 2, "{errors}");
        assert!(
            lines[0].starts_with("pgsidecar: directly to ") && lines[0].contains(failed),
            "{failed}: {errors}"
        );
        assert!(
            lines[1].starts_with("try: ") && lines[1].contains(advice),
            "{advice}: {errors}"
        );
        assert!(!errors.contains(PASSWORD) && !errors.contains("mistaken"), "{errors}");
    }
    let (code, json, _) = diagnose(&[], &[&wrong(&database, PASSWORD, "mistaken"), "--json"]).await;
    assert_eq!(code, 1);
    assert!(
        json.contains(r#""step":"login""#) && json.contains(r#""sqlstate":"28P01""#),
        "{json}"
    );
}

#[tokio::test]
async fn a_sidecar_that_does_not_run_is_told_from_a_database_that_does_not() {
    let database = Postgres::shared().create_database();
    let through = format!("postgres://app:x@127.0.0.1:{}/x", free_port());
    let (code, _, errors) = diagnose(
        &[],
        &[&database.url(), "--connections=1", "--at-once=0", "--through", &through],
    )
    .await;
    assert_eq!(code, 1);
    assert!(
        errors.starts_with("pgsidecar: through to ") && errors.contains("is pgsidecar running"),
        "{errors}"
    );
}
