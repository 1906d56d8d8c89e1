//! The binary's command line, run for real.

use std::io::Write;
use std::process::{Command, Output, Stdio};

fn pgsidecar(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgsidecar"));
    command
        .args(arguments)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn run(arguments: &[&str]) -> Output {
    pgsidecar(arguments).output().expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn check_prints_what_is_in_effect_and_no_secret() {
    let output = run(&[
        "check",
        "--upstream",
        "postgres://app:hunter2@db.example/app",
        "--listen",
        "unix:/run/x",
    ]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let listing = text(&output.stdout);
    assert!(
        listing.contains("address: unix:/run/x") && listing.contains("app:***@db.example"),
        "{listing}"
    );
    assert!(!listing.contains("hunter2") && !text(&output.stderr).contains("hunter2"));
}

#[test]
fn a_bad_configuration_is_one_line_and_exit_1() {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.as_file().write_all(b"pool:\n  max_sise: 3\n").expect("written");
    let path = file.path().to_str().expect("a plain path");
    for arguments in [&["check", "--config", path][..], &["--config", path]] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(1));
        let expected = format!("pgsidecar: {path}:2: pool.max_sise: no such key; did you mean pool.max_size?\n");
        assert_eq!(text(&output.stderr), expected);
        assert!(output.stdout.is_empty());
    }
    assert_eq!(run(&["--nonsense"]).status.code(), Some(2));
    assert_eq!(
        text(&run(&["--version"]).stdout),
        format!("pgsidecar {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn wait_ends_by_itself_and_takes_no_nonsense() {
    let output = run(&["wait", "0"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(run(&["wait", "3601"]).status.code(), Some(2));
    assert_eq!(run(&["wait"]).status.code(), Some(2));
}

#[test]
fn a_password_in_the_command_line_is_blanked_there() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let pipe = directory.path().join("config");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    let upstream = "postgres://app:hunter2@db.example/app";
    let child = pgsidecar(&["check", "--upstream", upstream, "--listen", "localhost:1", "--config"])
        .arg(&pipe)
        .spawn();
    let child = child.expect("the binary runs");
    // The pipe opens once the process reads its configuration, which is after the blanking.
    let mut pipe = std::fs::OpenOptions::new()
        .write(true)
        .open(&pipe)
        .expect("the other end is read");
    let shown = text(&std::fs::read(format!("/proc/{}/cmdline", child.id())).expect("the process lives"));
    assert!(
        shown.contains("\0postgres://app:*******@db.example/app\0--listen\0localhost:1\0"),
        "{shown}"
    );
    pipe.write_all(b"pool: {max_size: 7}\n").expect("written");
    drop(pipe);
    let output = child.wait_with_output().expect("it ends");
    assert!(text(&output.stdout).contains("max_size: 7"), "{}", text(&output.stderr));
}
