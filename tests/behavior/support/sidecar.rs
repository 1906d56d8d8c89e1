//! The built pgsidecar as a child process: started, asked, signalled, and never left behind.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::Child;

use super::ports::free_port;
use super::postgres::{Database, PASSWORD, USER};
use super::process::mortal;
use super::{DEADLINE, eventually};

/// Where it is set, every sidecar that doesn't say otherwise has this many threads.
const THREADS: &str = "PGSIDECAR_TEST_THREADS";

/// How a sidecar is to be started.
#[derive(Debug, Clone, Default)]
pub struct Builder {
    upstream: Option<String>,
    config: Option<String>,
    environment: Vec<(String, String)>,
    arguments: Vec<String>,
    own_listen: bool,
    own_threads: bool,
    descriptors: Option<u32>,
    files: Vec<(String, String)>,
}

impl Builder {
    /// `PGSIDECAR_UPSTREAM`.
    pub fn upstream(mut self, url: impl Into<String>) -> Self {
        self.upstream = Some(url.into());
        self
    }

    /// One key of config.yaml through the environment: `set("POOL__MAX_SIZE", "2")`.
    pub fn set(mut self, key: &str, value: impl Into<String>) -> Self {
        self.environment.push((format!("PGSIDECAR__{key}"), value.into()));
        self
    }

    /// Any other variable.
    pub fn variable(mut self, name: &str, value: impl Into<String>) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    /// One more argument.
    pub fn argument(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// A configuration file with this text, in which `$PORT`, `$METRICS_PORT` and `$DIRECTORY` (the sidecar's own
    /// temporary directory, which is writable) are replaced.
    pub fn config(mut self, yaml: impl Into<String>) -> Self {
        self.config = Some(yaml.into());
        self
    }

    /// A file in the sidecar's own directory, which `$DIRECTORY` in [`Self::config`] names.
    pub fn file(mut self, name: &str, content: impl Into<String>) -> Self {
        self.files.push((name.to_owned(), content.into()));
        self
    }

    /// At most this many open files.
    pub fn descriptors(mut self, max: u32) -> Self {
        self.descriptors = Some(max);
        self
    }

    /// The file says where to listen for clients, so the environment doesn't.
    pub fn own_listen(mut self) -> Self {
        self.own_listen = true;
        self
    }

    /// The file says how many threads there are, so the environment doesn't.
    pub fn own_threads(mut self) -> Self {
        self.own_threads = true;
        self
    }

    /// Starts it and waits until it answers: bound, announced in the log, alive over HTTP.
    pub async fn start(self) -> Sidecar {
        let mut sidecar = self.spawn();
        let what = format!("pgsidecar on port {}", sidecar.port);
        eventually(&what, async || {
            if let Ok(Some(status)) = sidecar.child.try_wait() {
                panic!("{what} ended at once with {status:?}:\n{}", sidecar.log());
            }
            // The start line names every bound address, so the client port is open too.
            let announced = sidecar.log().contains(&sidecar.port.to_string());
            let alive = sidecar
                .http("/healthz")
                .await
                .is_some_and(|answer| answer.status == 200);
            (announced && alive).then_some(())
        })
        .await;
        sidecar
    }

    /// Starts it and waits until `/readyz` says yes: an upstream login has succeeded.
    pub async fn start_ready(self) -> Sidecar {
        let sidecar = self.start().await;
        sidecar.wait_ready().await;
        sidecar
    }

    /// Starts it without waiting for anything: for configurations that are refused.
    pub fn spawn(self) -> Sidecar {
        let (port, metrics_port) = (free_port(), free_port());
        let directory = tempfile::Builder::new().prefix("pgsidecar-run-").tempdir().unwrap();
        let mut command = match self.descriptors {
            None => mortal(env!("CARGO_BIN_EXE_pgsidecar")),
            Some(max) => {
                let mut command = mortal("prlimit");
                command.args([&format!("--nofile={max}:{max}"), "--", env!("CARGO_BIN_EXE_pgsidecar")]);
                command
            }
        };
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", directory.path())
            .env("RUST_BACKTRACE", "1");
        command.env("PGSIDECAR_METRICS_LISTEN", format!("127.0.0.1:{metrics_port}"));
        if !self.own_listen {
            command.env(
                "PGSIDECAR_LISTEN",
                format!("127.0.0.1:{port},unix:{}:{port}", directory.path().display()),
            );
        }
        if let Some(threads) = std::env::var_os(THREADS).filter(|_| !self.own_threads) {
            command.env("PGSIDECAR__RUNTIME__THREADS", threads);
        }
        if let Some(url) = &self.upstream {
            command.env("PGSIDECAR_UPSTREAM", url);
        }
        command.envs(self.environment).args(self.arguments);
        for (name, content) in &self.files {
            std::fs::write(directory.path().join(name), content).unwrap();
        }
        if let Some(yaml) = self.config {
            let path = directory.path().join("config.yaml");
            std::fs::write(&path, fill_in(&yaml, port, metrics_port, directory.path())).unwrap();
            command.env("PGSIDECAR_CONFIG", path);
        }
        let mut command = tokio::process::Command::from(command);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().expect("pgsidecar is built");
        let log = Log::default();
        log.collect(child.stdout.take().expect("stdout is piped"));
        log.collect(child.stderr.take().expect("stderr is piped"));
        Sidecar {
            port,
            metrics_port,
            directory,
            child,
            log,
        }
    }
}

fn fill_in(yaml: &str, port: u16, metrics_port: u16, directory: &Path) -> String {
    yaml.replace("$METRICS_PORT", &metrics_port.to_string())
        .replace("$PORT", &port.to_string())
        .replace("$DIRECTORY", &directory.display().to_string())
}

/// A running pgsidecar. Dropping it kills it.
#[derive(Debug)]
pub struct Sidecar {
    /// TCP on 127.0.0.1 for clients, and the number in the unix socket's name.
    pub port: u16,
    /// HTTP on 127.0.0.1.
    pub metrics_port: u16,
    directory: tempfile::TempDir,
    child: Child,
    log: Log,
}

impl Sidecar {
    /// One with the defaults in front of this database.
    pub async fn start(database: &Database) -> Self {
        Self::builder(database).start_ready().await
    }

    /// One in front of this database, to be set up further.
    pub fn builder(database: &Database) -> Builder {
        Builder::default().upstream(database.url())
    }

    /// The URL of `database` through the sidecar over TCP, as the tests' role.
    pub fn url(&self, database: &Database) -> String {
        self.url_as(USER, PASSWORD, &database.name)
    }

    /// The same as another role, or to any name.
    pub fn url_as(&self, user: &str, password: &str, database: &str) -> String {
        format!("postgres://{user}:{password}@127.0.0.1:{}/{database}", self.port)
    }

    /// The directory of the unix socket.
    pub fn socket_directory(&self) -> &Path {
        self.directory.path()
    }

    /// The unix socket itself.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join(format!(".s.PGSQL.{}", self.port))
    }

    /// The process id, while it runs.
    pub fn process_id(&self) -> Option<u32> {
        self.child.id()
    }

    /// The most memory that it has had resident so far, in KiB.
    pub fn peak_memory_kib(&self) -> u64 {
        let id = self.child.id().expect("pgsidecar runs");
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).expect("Linux tells");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let number = line.and_then(|rest| rest.split_whitespace().next());
        number.and_then(|kib| kib.parse().ok()).expect("a number of KiB")
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let id = self.child.id().expect("pgsidecar runs");
        kill(Pid::from_raw(i32::try_from(id).unwrap()), signal).expect("pgsidecar runs");
    }

    /// Waits for its end.
    pub async fn wait_exit(&mut self) -> ExitStatus {
        match tokio::time::timeout(2 * DEADLINE, self.child.wait()).await {
            Ok(status) => status.unwrap(),
            Err(_) => panic!("pgsidecar still runs:\n{}", self.log()),
        }
    }

    /// Everything that it wrote so far, to stderr (and stdout).
    pub fn log(&self) -> String {
        self.log.text()
    }

    /// Waits for a line that contains `part`, and returns it.
    pub async fn wait_for_log(&self, part: &str) -> String {
        let find = async || self.log().lines().find(|line| line.contains(part)).map(str::to_owned);
        eventually(&format!("a log line with {part:?}"), find).await
    }

    /// Waits for `/readyz`.
    pub async fn wait_ready(&self) {
        let ready = async || self.http("/readyz").await.filter(|answer| answer.status == 200);
        let _ = tokio::time::timeout(2 * DEADLINE, eventually("readiness", ready))
            .await
            .unwrap_or_else(|_| panic!("pgsidecar is not ready:\n{}", self.log()));
    }

    /// GETs a path of the metrics port; `None` where nobody answers.
    pub async fn http(&self, path: &str) -> Option<HttpAnswer> {
        http_get(self.metrics_port, path).await
    }

    /// The text of `/metrics`.
    pub async fn metrics(&self) -> String {
        let answer = self.http("/metrics").await.expect("the metrics port answers");
        assert_eq!(answer.status, 200);
        answer.body
    }

    /// The sum of the samples of `name` that carry all of these labels; `None` where there is no such sample.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        sum_samples(&self.metrics().await, name, labels)
    }

    /// Waits until that sum satisfies `condition`, and returns it. A metric that has no sample reads 0.
    pub async fn wait_metric(&self, name: &str, labels: &[(&str, &str)], condition: impl Fn(f64) -> bool) -> f64 {
        let read = async || Some(self.metric(name, labels).await.unwrap_or(0.0)).filter(|value| condition(*value));
        eventually(&format!("{name} {labels:?}"), read).await
    }
}

/// An HTTP answer.
#[derive(Debug)]
pub struct HttpAnswer {
    /// The status code.
    pub status: u16,
    /// Header lines, as they came.
    pub head: String,
    /// The body.
    pub body: String,
}

/// GETs a path of 127.0.0.1; `None` where nobody answers.
pub async fn http_get(port: u16, path: &str) -> Option<HttpAnswer> {
    let exchange = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some(HttpAnswer {
            status,
            head: head.to_owned(),
            body: body.to_owned(),
        })
    };
    tokio::time::timeout(DEADLINE, exchange).await.ok().flatten()
}

fn sum_samples(text: &str, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let wanted: Vec<String> = labels
        .iter()
        .map(|(label, value)| format!("{label}=\"{value}\""))
        .collect();
    text.lines()
        .filter_map(|line| line.strip_prefix(name))
        .filter(|rest| rest.starts_with(['{', ' ']))
        .filter(|rest| wanted.iter().all(|label| rest.contains(label.as_str())))
        .filter_map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok())
        .reduce(|sum, value| sum + value)
}

#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<String>>);

impl Log {
    fn collect(&self, pipe: impl tokio::io::AsyncRead + Send + Unpin + 'static) {
        let log = self.clone();
        tokio::spawn(async move {
            let mut lines = BufReader::new(pipe).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let mut text = log.0.lock().unwrap_or_else(PoisonError::into_inner);
                text.push_str(&line);
                text.push('\n');
            }
        });
    }

    fn text(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[test]
fn samples_are_summed_over_their_other_labels() {
    let text = "# TYPE clients gauge\nclients{state=\"idle\",user=\"a\"} 2\nclients{state=\"idle\",user=\"b\"} 3\nclients_total 7\n";
    assert_eq!(sum_samples(text, "clients", &[("state", "idle")]), Some(5.0));
    assert_eq!(sum_samples(text, "clients", &[("state", "active")]), None);
    assert_eq!(sum_samples(text, "clients_total", &[]), Some(7.0));
}
