//! Real PostgreSQL clusters in temporary directories: SCRAM, TLS, a free port, nothing left behind.
//!
//! Each cluster is held by a supervising shell that reads commands from a pipe and answers each with one line. When the
//! test process ends, however it ends, the pipe closes and the shell stops PostgreSQL and removes its files.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::certificates;
use super::ports::free_port;
use super::process;

/// The role that tests log in as, and its password.
pub const USER: &str = "app";
/// See [`USER`].
pub const PASSWORD: &str = "app_password";
/// A second role, for tests of what belongs to whom.
pub const OTHER_USER: &str = "other";
/// See [`OTHER_USER`].
pub const OTHER_PASSWORD: &str = "other_password";
/// The superuser's password; its name is `postgres`.
pub const SUPERUSER_PASSWORD: &str = "superuser_password";

/// Starts PostgreSQL, obeys `stop MODE`, `start` and `log-size`, and cleans up at the end of its input.
const SUPERVISOR: &str = r#"
directory=$1; bin=$2
start() {
    if "$bin/pg_ctl" -D "$directory/data" -w -t 60 -l "$directory/log" start </dev/null >/dev/null 2>&1
    then echo started
    else echo "failed: $(tail -n 5 "$directory/log" | tr '\n' ' ')"
    fi
}
start
while read -r command mode; do
    case $command in
        start) start ;;
        stop) "$bin/pg_ctl" -D "$directory/data" -w -m "$mode" stop </dev/null >/dev/null 2>&1; echo stopped ;;
    esac
done
"$bin/pg_ctl" -D "$directory/data" -w -m immediate stop </dev/null >/dev/null 2>&1
rm -rf "$directory"
"#;

/// Which PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// The newest that Debian's packages installed (15 on Debian 12).
    Installed,
    /// 18, which `./tests/run` fetches where the distribution has none.
    Eighteen,
}

impl Version {
    /// The directory of `postgres`, `initdb` and `pg_ctl`.
    fn binaries(self) -> PathBuf {
        match self {
            Self::Installed => installed_binaries(),
            Self::Eighteen => {
                let inside = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/postgresql-18/bin");
                // Where the sources lie in a home that user postgres can't enter.
                let outside = PathBuf::from("/var/cache/pgsidecar/postgresql-18/bin");
                let there = |directory: &PathBuf| directory.join("postgres").exists();
                [inside, outside]
                    .into_iter()
                    .find(there)
                    .expect("PostgreSQL 18 is there (./tests/run installs it)")
            }
        }
    }
}

/// The newest `/usr/lib/postgresql/*/bin`, where psql and pgbench are too.
pub fn installed_binaries() -> PathBuf {
    let directories = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    directories
        .filter_map(|entry| {
            Some((
                entry.file_name().to_str()?.parse::<u32>().ok()?,
                entry.path().join("bin"),
            ))
        })
        .filter(|(_, directory)| directory.join("postgres").exists())
        .max()
        .map(|(_, directory)| directory)
        .expect("PostgreSQL is installed under /usr/lib/postgresql (./tests/run installs it)")
}

/// A running cluster.
#[derive(Debug)]
pub struct Postgres {
    /// TCP on 127.0.0.1, and the number in the socket's name.
    pub port: u16,
    /// Data, log, certificates and the unix socket.
    pub directory: PathBuf,
    supervisor: Mutex<Supervisor>,
}

#[derive(Debug)]
struct Supervisor {
    child: Child,
    /// `None` once the cluster is being dropped.
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Postgres {
    /// The cluster of Debian's PostgreSQL that all tests of this process share. Never stop it: see [`Self::private`].
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Postgres> = OnceLock::new();
        SHARED.get_or_init(|| Self::private(Version::Installed))
    }

    /// The same with PostgreSQL 18.
    pub fn shared_18() -> &'static Self {
        static SHARED: OnceLock<Postgres> = OnceLock::new();
        SHARED.get_or_init(|| Self::private(Version::Eighteen))
    }

    /// A cluster of the test's own, which it may stop, crash and restart.
    pub fn private(version: Version) -> Self {
        Self::with_settings(version, &[])
    }

    /// A cluster of the test's own with these settings in postgresql.conf.
    pub fn with_settings(version: Version, settings: &[(&str, &str)]) -> Self {
        let binaries = version.binaries();
        let directory = tempfile::Builder::new()
            .prefix("pgsidecar-test-")
            .tempdir()
            .unwrap()
            .keep();
        let port = free_port();
        std::fs::write(directory.join("superuser_password"), SUPERUSER_PASSWORD).unwrap();
        make_certificates(&directory);
        give_to_postgres(&directory);
        initialise(&binaries, &directory);
        configure(&directory, port, settings);
        give_to_postgres(&directory);
        let cluster = Self {
            port,
            directory: directory.clone(),
            supervisor: Mutex::new(supervise(&directory, &binaries)),
        };
        cluster.answer("started");
        cluster.psql(
            "postgres",
            &format!(
                "CREATE ROLE {USER} LOGIN PASSWORD '{PASSWORD}';
                 CREATE ROLE {OTHER_USER} LOGIN PASSWORD '{OTHER_PASSWORD}';
                 CREATE ROLE trusted LOGIN; CREATE ROLE certified LOGIN;
                 CREATE ROLE plain LOGIN PASSWORD 'plain_password';
                 SET password_encryption = md5; CREATE ROLE hashed LOGIN PASSWORD 'hashed_password';"
            ),
        );
        cluster
    }

    /// A new database that `app` owns. Its name is unique in the cluster.
    pub fn create_database(&self) -> Database {
        let mut bytes = [0; 6];
        getrandom::fill(&mut bytes).unwrap();
        let name = bytes.iter().fold("test_".to_owned(), |mut name, byte| {
            let _ = write!(name, "{byte:02x}");
            name
        });
        self.psql("postgres", &format!("CREATE DATABASE {name} OWNER {USER}"));
        Database {
            name,
            port: self.port,
            directory: self.directory.clone(),
        }
    }

    /// Runs SQL as the superuser, past pgsidecar, and returns what psql prints (`-At`).
    pub fn psql(&self, database: &str, sql: &str) -> String {
        let output = process::client_program("psql")
            .env("PGPASSWORD", SUPERUSER_PASSWORD)
            .args([
                "-X",
                "-At",
                "-v",
                "ON_ERROR_STOP=1",
                "-h",
                "127.0.0.1",
                "-p",
                &self.port.to_string(),
            ])
            .args(["-U", "postgres", "-d", database, "-c", sql])
            .stdin(Stdio::null())
            .output()
            .expect("psql starts");
        assert!(
            output.status.success(),
            "psql: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// Stops as `pg_ctl stop -m MODE` does: `smart`, `fast`, or `immediate` (as in a crash).
    pub fn stop(&self, mode: &str) {
        self.command(&format!("stop {mode}\n"));
        self.answer("stopped");
    }

    /// Starts again after [`Self::stop`], on the same port with the same data.
    pub fn start(&self) {
        self.command("start\n");
        self.answer("started");
    }

    /// The server's log so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    fn command(&self, line: &str) {
        let mut supervisor = self.supervisor.lock().unwrap_or_else(PoisonError::into_inner);
        let commands = supervisor.commands.as_mut().expect("only drop closes the pipe");
        commands
            .write_all(line.as_bytes())
            .expect("the supervising shell listens");
    }

    fn answer(&self, expected: &str) {
        let mut supervisor = self.supervisor.lock().unwrap_or_else(PoisonError::into_inner);
        let mut line = String::new();
        supervisor
            .answers
            .read_line(&mut line)
            .expect("the supervising shell answers");
        assert_eq!(line.trim_end(), expected, "PostgreSQL in {}", self.directory.display());
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let supervisor = self.supervisor.get_mut().unwrap_or_else(PoisonError::into_inner);
        supervisor.commands = None;
        let _ = supervisor.child.wait();
    }
}

/// A database of one test.
#[derive(Debug, Clone)]
pub struct Database {
    /// Its name.
    pub name: String,
    /// The cluster's port.
    pub port: u16,
    /// The cluster's directory, which holds the unix socket and `server.crt`.
    pub directory: PathBuf,
}

impl Database {
    /// The URL of this database past pgsidecar, as `app`, over TLS.
    pub fn url(&self) -> String {
        self.url_as(USER, PASSWORD)
    }

    /// The same as another role.
    pub fn url_as(&self, user: &str, password: &str) -> String {
        format!(
            "postgres://{user}:{password}@127.0.0.1:{}/{}?sslmode=require",
            self.port, self.name
        )
    }

    /// The URL over the unix socket.
    pub fn unix_url(&self) -> String {
        let directory = self.directory.display().to_string().replace('/', "%2F");
        format!("postgres://{USER}:{PASSWORD}@{directory}:{}/{}", self.port, self.name)
    }
}

/// `server` is the manual's self-signed certificate; `authority` signs `client`, whose common name is a role.
fn make_certificates(directory: &Path) {
    certificates::self_signed(directory, "server", "localhost");
    let authority = certificates::self_signed(directory, "authority", "authority");
    certificates::signed_by(directory, &authority, "client", "certified");
}

fn initialise(binaries: &Path, directory: &Path) {
    let mut command = Command::new(binaries.join("initdb"));
    command
        .args([
            "-U",
            "postgres",
            "-A",
            "scram-sha-256",
            "-E",
            "UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
        ])
        .arg("--pwfile")
        .arg(directory.join("superuser_password"))
        .arg("-D")
        .arg(directory.join("data"))
        .current_dir(directory)
        .stdin(Stdio::null());
    let output = as_postgres(&mut command).output().expect("initdb starts");
    assert!(
        output.status.success(),
        "initdb: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn configure(directory: &Path, port: u16, settings: &[(&str, &str)]) {
    let data = directory.join("data");
    let place = directory.display();
    let mut configuration = format!(
        "port = {port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = '{place}'\n\
         max_connections = 200\nshared_buffers = 32MB\nfsync = off\nmax_prepared_transactions = 10\n\
         wal_level = logical\nssl = on\nssl_cert_file = '{place}/server.crt'\nssl_key_file = '{place}/server.key'\n\
         ssl_ca_file = '{place}/authority.crt'\nlog_line_prefix = '%m [%p] %q%u@%d %a '\n"
    );
    for (name, value) in settings {
        let _ = writeln!(configuration, "{name} = '{value}'");
    }
    let mut existing = std::fs::read_to_string(data.join("postgresql.conf")).unwrap();
    existing.push_str(&configuration);
    std::fs::write(data.join("postgresql.conf"), existing).unwrap();
    let rules = "local all trusted trust\nhost all trusted 127.0.0.1/32 trust\n\
                 hostssl all certified 127.0.0.1/32 cert\n\
                 host all plain 127.0.0.1/32 password\nhost all hashed 127.0.0.1/32 md5\n\
                 local all all scram-sha-256\nhost all all 127.0.0.1/32 scram-sha-256\n\
                 host replication all 127.0.0.1/32 scram-sha-256\n";
    std::fs::write(data.join("pg_hba.conf"), rules).unwrap();
}

fn supervise(directory: &Path, binaries: &Path) -> Supervisor {
    let mut command = Command::new("sh");
    command
        .args(["-c", SUPERVISOR, "supervisor"])
        .arg(directory)
        .arg(binaries);
    // A group of its own: an interrupt at the keyboard ends the tests, and the closing pipe then ends this.
    command
        .process_group(0)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = as_postgres(&mut command).spawn().expect("sh starts");
    let (commands, answers) = (child.stdin.take(), child.stdout.take().expect("stdout is piped"));
    Supervisor {
        child,
        commands,
        answers: BufReader::new(answers),
    }
}

/// PostgreSQL refuses to run as root, so there it runs as the user that Debian's package made.
fn as_postgres(command: &mut Command) -> &mut Command {
    match unprivileged() {
        Some(user) => command.uid(user.uid.as_raw()).gid(user.gid.as_raw()),
        None => command,
    }
}

fn give_to_postgres(directory: &Path) {
    let Some(user) = unprivileged() else { return };
    nix::unistd::chown(directory, Some(user.uid), Some(user.gid)).expect("root may");
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        nix::unistd::chown(&entry.path(), Some(user.uid), Some(user.gid)).expect("root may");
    }
}

fn unprivileged() -> Option<nix::unistd::User> {
    if !nix::unistd::geteuid().is_root() {
        return None;
    }
    let user = |name| nix::unistd::User::from_name(name).ok().flatten();
    Some(
        user("postgres")
            .or_else(|| user("nobody"))
            .expect("root needs another user to run PostgreSQL as"),
    )
}
