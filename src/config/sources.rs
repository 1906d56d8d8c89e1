//! Where settings come from: flags over environment over file over defaults.
//!
//! [`Sources`] is everything that a configuration is made of, as values, so that loading is a function of its argument
//! and files beneath a root: two configurations can be loaded side by side, and a reload is the same call again.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_yaml::{Mapping, Value};

use super::error::{ConfigError, Place, Problem};
use super::file::{File, Shape};
use super::keys;
use super::line::line_of;
use super::path::{KeyPath, Step};

/// The file that is read when no other is named.
pub const DEFAULT_FILE: &str = "/etc/pgsidecar/config.yaml";

/// The largest file that is read whole: configuration, password files, service files, certificates.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// What the command line said.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Flags {
    /// `--config`.
    pub config: Option<PathBuf>,
    /// `--upstream`. May hold a password.
    pub upstream: Option<String>,
    /// `--listen`, each time.
    pub listen: Vec<String>,
    /// `--metrics-listen`.
    pub metrics_listen: Option<String>,
}

/// Everything that a configuration is made of. `Debug` shows no values: there are passwords among them.
#[derive(Clone, Default)]
pub struct Sources {
    /// The command line.
    pub flags: Flags,
    /// The environment.
    pub environment: BTreeMap<String, String>,
    /// What absolute paths are read beneath: empty in the real process, a directory in tests.
    pub root: PathBuf,
    /// The home directory, for libpq's files.
    pub home: Option<PathBuf>,
    /// The operating system's name of the user, libpq's default for `user`.
    pub system_user: Option<String>,
}

impl std::fmt::Debug for Sources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sources")
            .field("config", &self.flags.config)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Flags {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flags")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Sources {
    /// The sources of this process. Fails on a variable of ours or libpq's that is not UTF-8.
    pub fn of_process(flags: Flags) -> Result<Self, ConfigError> {
        let account = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten();
        let environment = readable_environment(std::env::vars_os())?;
        let home = environment
            .get("HOME")
            .filter(|home| !home.is_empty())
            .map(PathBuf::from);
        Ok(Self {
            flags,
            environment,
            root: PathBuf::new(),
            home: home.or_else(|| account.as_ref().map(|account| account.dir.clone())),
            system_user: account.map(|account| account.name),
        })
    }

    /// A variable that is set to something. An empty one counts as unset, as compose files and libpq have it.
    pub(super) fn variable(&self, name: &str) -> Option<&str> {
        self.environment
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    /// Where a path of the configuration is really read.
    pub(super) fn located(&self, path: &Path) -> PathBuf {
        if self.root.as_os_str().is_empty() {
            return path.to_owned();
        }
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The content of a file. The words of the error name the path as the operator wrote it.
    pub(super) fn read(&self, path: &Path) -> Result<Vec<u8>, String> {
        let failed = |cause: std::io::Error| format!("cannot read {}: {}", path.display(), plain_cause(&cause));
        let file = std::fs::File::open(self.located(path)).map_err(failed)?;
        let mut content = Vec::new();
        file.take(FILE_BYTES_MAX + 1)
            .read_to_end(&mut content)
            .map_err(failed)?;
        if content.len() as u64 > FILE_BYTES_MAX {
            return Err(format!("cannot read {}: it is larger than 16 MiB", path.display()));
        }
        Ok(content)
    }

    /// The text of a file, less one newline at its end.
    pub(super) fn read_line(&self, path: &Path) -> Result<String, String> {
        let text = String::from_utf8(self.read(path)?).map_err(|_| format!("{} is not UTF-8", path.display()))?;
        let text = text.strip_suffix('\n').unwrap_or(&text);
        Ok(text.strip_suffix('\r').unwrap_or(text).to_owned())
    }

    /// Whether there is a file.
    pub(super) fn is_file(&self, path: &Path) -> bool {
        self.located(path).is_file()
    }

    /// Whether there is a directory.
    pub(super) fn is_directory(&self, path: &Path) -> bool {
        self.located(path).is_dir()
    }
}

/// An I/O error in words, without "(os error 2)".
fn plain_cause(cause: &std::io::Error) -> String {
    let words = cause.to_string();
    words.split(" (os error").next().unwrap_or_default().to_owned()
}

fn readable_environment(
    variables: impl Iterator<Item = (OsString, OsString)>,
) -> Result<BTreeMap<String, String>, ConfigError> {
    let mut environment = BTreeMap::new();
    for (name, value) in variables {
        let Ok(name) = name.into_string() else { continue };
        match value.into_string() {
            Ok(value) => drop(environment.insert(name, value)),
            Err(_) if name.starts_with("PG") => {
                return Err(ConfigError {
                    place: Some(Place::Variable(name)),
                    key: String::new(),
                    message: "its value is not UTF-8".into(),
                });
            }
            // Someone else's variable.
            Err(_) => {}
        }
    }
    Ok(environment)
}

/// All that was said, lowest precedence first.
pub(super) struct Layers {
    layers: Vec<Layer>,
}

/// What one source said.
struct Layer {
    origin: Origin,
    tree: Value,
}

/// Which source.
enum Origin {
    File { path: PathBuf, text: String },
    Variable(String),
    Flag(&'static str),
}

impl Layers {
    /// Reads all sources and checks their keys.
    pub(super) fn read(sources: &Sources) -> Result<Self, ConfigError> {
        let mut layers = Self { layers: Vec::new() };
        layers.read_file(sources)?;
        layers.read_long_variables(sources)?;
        layers.read_short_variables(sources)?;
        layers.read_flags(&sources.flags);
        Ok(layers)
    }

    /// All layers merged: sections key by key; lists, maps and values whole.
    pub(super) fn merged(&self) -> Result<File, ConfigError> {
        let mut merged = Value::Mapping(Mapping::new());
        for layer in &self.layers {
            merge(&mut merged, &layer.tree, &<File as super::file::Mirror>::SHAPE);
        }
        // The shape was checked layer by layer, so this can't fail on anything that an operator wrote.
        serde_yaml::from_value(merged).map_err(|cause| ConfigError {
            place: None,
            key: String::new(),
            message: cause.to_string(),
        })
    }

    /// A problem with its place: the source of highest precedence that has the key, or the nearest section above it.
    pub(super) fn locate(&self, problem: Problem) -> ConfigError {
        let steps = &problem.key.0;
        let place = (1..=steps.len()).rev().find_map(|length| {
            let path = KeyPath(steps.iter().take(length).cloned().collect());
            self.layers
                .iter()
                .rev()
                .find(|layer| holds(&layer.tree, &path))
                .map(|layer| layer.place(&path))
        });
        ConfigError {
            place,
            key: problem.key.to_string(),
            message: problem.message,
        }
    }

    fn read_file(&mut self, sources: &Sources) -> Result<(), ConfigError> {
        let (path, named_by) = match (&sources.flags.config, sources.variable("PGSIDECAR_CONFIG")) {
            (Some(path), _) => (path.clone(), Place::Flag("--config")),
            (None, Some(path)) => (PathBuf::from(path), Place::Variable("PGSIDECAR_CONFIG".into())),
            (None, None) if sources.is_file(Path::new(DEFAULT_FILE)) => {
                (PathBuf::from(DEFAULT_FILE), Place::File(DEFAULT_FILE.into(), None))
            }
            (None, None) => return Ok(()),
        };
        let failed = |message| ConfigError {
            place: Some(named_by.clone()),
            key: String::new(),
            message,
        };
        let content = sources.read(&path).map_err(failed)?;
        let text = String::from_utf8(content).map_err(|_| failed(format!("{} is not UTF-8", path.display())))?;
        let tree = parse_yaml(&text).map_err(|(line, message)| ConfigError {
            place: Some(Place::File(path.clone(), line)),
            key: String::new(),
            message,
        })?;
        let checked = keys::check(&tree);
        self.layers.push(Layer {
            origin: Origin::File { path, text },
            tree,
        });
        checked.map_err(|problem| self.locate(problem))
    }

    fn read_long_variables(&mut self, sources: &Sources) -> Result<(), ConfigError> {
        for (name, value) in &sources.environment {
            if !name.starts_with(keys::PREFIX) {
                continue;
            }
            let wrong = |message| ConfigError {
                place: Some(Place::Variable(name.clone())),
                key: String::new(),
                message,
            };
            let (path, shape) = keys::shape_of_variable(name).map_err(wrong)?;
            if value.is_empty() {
                continue;
            }
            let value = variable_value(value, shape).map_err(wrong)?;
            self.push(Origin::Variable(name.clone()), &path, value)?;
        }
        Ok(())
    }

    fn read_short_variables(&mut self, sources: &Sources) -> Result<(), ConfigError> {
        let url = KeyPath::dotted("upstream.url");
        match (
            sources.variable("PGSIDECAR_UPSTREAM"),
            sources.variable("PGSIDECAR_UPSTREAM_FILE"),
        ) {
            (Some(_), Some(_)) => {
                return Err(ConfigError {
                    place: Some(Place::Variable("PGSIDECAR_UPSTREAM_FILE".into())),
                    key: String::new(),
                    message: "PGSIDECAR_UPSTREAM is set as well; set one of the two".into(),
                });
            }
            (Some(value), None) => self.push(Origin::Variable("PGSIDECAR_UPSTREAM".into()), &url, text(value))?,
            (None, Some(path)) => {
                let place = Place::Variable("PGSIDECAR_UPSTREAM_FILE".into());
                let value = sources.read_line(Path::new(path)).map_err(|message| ConfigError {
                    place: Some(place),
                    key: String::new(),
                    message,
                })?;
                self.push(
                    Origin::Variable("PGSIDECAR_UPSTREAM_FILE".into()),
                    &url,
                    text(value.trim()),
                )?;
            }
            (None, None) => {}
        }
        for (name, key) in [
            ("PGSIDECAR_LISTEN", "listen"),
            ("PGSIDECAR_METRICS_LISTEN", "metrics.listen"),
        ] {
            if let Some(value) = sources.variable(name) {
                self.push(Origin::Variable(name.into()), &KeyPath::dotted(key), text(value))?;
            }
        }
        Ok(())
    }

    fn read_flags(&mut self, flags: &Flags) {
        let mut push = |name, key, value| {
            let tree = nested(&KeyPath::dotted(key), value);
            self.layers.push(Layer {
                origin: Origin::Flag(name),
                tree,
            });
        };
        if let Some(upstream) = &flags.upstream {
            push("--upstream", "upstream.url", text(upstream));
        }
        if !flags.listen.is_empty() {
            push(
                "--listen",
                "listen",
                Value::Sequence(flags.listen.iter().map(|it| text(it)).collect()),
            );
        }
        if let Some(address) = &flags.metrics_listen {
            push("--metrics-listen", "metrics.listen", text(address));
        }
    }

    fn push(&mut self, origin: Origin, path: &KeyPath, value: Value) -> Result<(), ConfigError> {
        let tree = nested(path, value);
        let checked = keys::check(&tree);
        self.layers.push(Layer { origin, tree });
        checked.map_err(|problem| self.locate(problem))
    }
}

impl Layer {
    fn place(&self, path: &KeyPath) -> Place {
        match &self.origin {
            Origin::File { path: file, text } => Place::File(file.clone(), line_of(text, path)),
            Origin::Variable(name) => Place::Variable(name.clone()),
            Origin::Flag(name) => Place::Flag(name),
        }
    }
}

/// A variable's text as the YAML that its key takes: single values as they stand, everything else as a flow value.
fn variable_value(value: &str, shape: &Shape) -> Result<Value, String> {
    let looks_like_flow = value.trim_start().starts_with(['[', '{']);
    match shape {
        Shape::Scalar => Ok(text(value)),
        // `[::1]:6432` begins like a list.
        Shape::ScalarOr(_) if looks_like_flow => Ok(parse_yaml(value).unwrap_or_else(|_| text(value))),
        Shape::ScalarOr(_) => Ok(text(value)),
        _ => parse_yaml(value).map_err(|_| "is not a YAML value such as [a, b] or {a: b}".into()),
    }
}

fn text(value: &str) -> Value {
    Value::String(value.to_owned())
}

/// Parses one YAML document; an empty one is an empty mapping.
fn parse_yaml(text: &str) -> Result<Value, (Option<usize>, String)> {
    let wrong = |cause: serde_yaml::Error| {
        let line = cause.location().map(|location| location.line());
        // The position is told by the place already.
        let words = cause.to_string();
        (line, words.split(" at line ").next().unwrap_or_default().to_owned())
    };
    let mut tree: Value = serde_yaml::from_str(text).map_err(wrong)?;
    tree.apply_merge().map_err(wrong)?;
    Ok(if tree.is_null() {
        Value::Mapping(Mapping::new())
    } else {
        tree
    })
}

fn nested(path: &KeyPath, value: Value) -> Value {
    path.0.iter().rev().fold(value, |value, step| match step {
        Step::Key(key) => Value::Mapping(Mapping::from_iter([(text(key), value)])),
        Step::Index(_) => Value::Sequence(vec![value]),
    })
}

fn holds(tree: &Value, path: &KeyPath) -> bool {
    let found = path.0.iter().try_fold(tree, |tree, step| match step {
        Step::Key(key) => tree.get(key.as_str()),
        Step::Index(index) => tree.get(*index),
    });
    found.is_some()
}

/// Lays `over` on `under`. A null says nothing.
fn merge(under: &mut Value, over: &Value, shape: &Shape) {
    match (shape, under, over) {
        (_, _, Value::Null) => {}
        (
            Shape::Section(section) | Shape::ScalarOr(Shape::Section(section)),
            Value::Mapping(under),
            Value::Mapping(over),
        ) => {
            for (key, value) in over {
                let shape = section
                    .iter()
                    .find(|(name, _)| Some(*name) == key.as_str())
                    .map(|(_, shape)| *shape);
                let under = under.entry(key.clone()).or_insert(Value::Null);
                merge(under, value, shape.unwrap_or(&Shape::Scalar));
            }
        }
        (_, under, over) => *under = over.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Fixture, URL};
    use super::*;

    #[test]
    fn flags_beat_environment_beat_file_beat_defaults() {
        let mut fixture =
            Fixture::new().yaml("pool: {max_size: 5, min_idle: 2}\nlisten: 'a:1'\nmetrics: {listen: 127.0.0.1:1}");
        let config = fixture.config();
        assert_eq!(
            (config.pool.max_size, config.pool.min_idle, config.pool.max_total),
            (5, 2, 80)
        );
        assert_eq!(config.listen[0].address.to_string(), "a:1");
        fixture = fixture
            .variable("PGSIDECAR__POOL__MAX_SIZE", "7")
            .variable("PGSIDECAR_LISTEN", "b:1,unix:/run")
            .variable("PGSIDECAR_METRICS_LISTEN", "127.0.0.1:2");
        let config = fixture.config();
        assert_eq!((config.pool.max_size, config.pool.min_idle), (7, 2));
        assert_eq!(config.listen.len(), 2);
        fixture.sources.flags.listen = vec!["c:1".into()];
        fixture.sources.flags.metrics_listen = Some("127.0.0.1:3".into());
        fixture.sources.flags.upstream = Some("postgres://u:p@flag/d".into());
        let config = fixture.config();
        assert_eq!(
            (config.listen.len(), config.listen[0].address.to_string()),
            (1, "c:1".into())
        );
        assert_eq!(config.metrics.listen, Some("127.0.0.1:3".parse().unwrap()));
        assert_eq!(config.upstream.dbname, "d");
        let address = super::super::metrics_listen(&fixture.sources);
        assert_eq!(address, Ok(config.metrics.listen));
    }

    #[test]
    fn a_short_variable_beats_the_long_one() {
        let fixture = Fixture::new().variable("PGSIDECAR__UPSTREAM__URL", "postgres://x:y@other/o");
        assert_eq!(fixture.config().upstream.dbname, "app");
    }

    #[test]
    fn lists_and_maps_are_yaml_values_in_variables() {
        let config = Fixture::new()
            .variable("PGSIDECAR__USERS", "[{name: app, password_file: /run/secrets/app}]")
            .variable("PGSIDECAR__DATABASES", "{app: {pool: {mode: session}}, other: }")
            .variable("PGSIDECAR__POOL", "{max_size: 3}")
            .variable("PGSIDECAR__UPSTREAM__TCP_KEEPALIVE", "{idle: 5s}")
            .variable("PGSIDECAR__LISTEN", "[::1]:6432")
            .variable("PGSIDECAR__POOL__CONNECT_QUERY", "SET a.b = 'c: d' # e")
            .variable("PGSIDECAR__POOL__MIN_IDLE", "")
            .file("/run/secrets/app", "s3cret\n")
            .config();
        assert_eq!(config.users[0].name, "app");
        assert_eq!(config.databases.unwrap().len(), 2);
        assert_eq!((config.pool.max_size, config.pool.min_idle), (3, 1));
        assert_eq!(config.upstream.tcp_keepalive.unwrap().idle.as_secs(), 5);
        assert_eq!(config.listen[0].address.to_string(), "[::1]:6432");
        assert_eq!(config.pool.connect_query.as_deref(), Some("SET a.b = 'c: d' # e"));
        let error = Fixture::new().variable("PGSIDECAR__USERS", "[{").error();
        assert_eq!(error, "PGSIDECAR__USERS: is not a YAML value such as [a, b] or {a: b}");
    }

    #[test]
    fn only_long_variables_are_checked_for_misspelling() {
        let fixture = Fixture::new()
            .variable("PGSIDECAR_PORT", "tcp://10.0.0.1:6432")
            .variable("PGSIDECAR_SERVICE_HOST", "x");
        fixture.config();
        let error = fixture.variable("PGSIDECAR__POOL__MAX_SIZ", "3").error();
        assert_eq!(
            error,
            "PGSIDECAR__POOL__MAX_SIZ: no such key; did you mean PGSIDECAR__POOL__MAX_SIZE?"
        );
    }

    #[test]
    fn an_error_says_where() {
        let fixture = Fixture::new().yaml("# one\npool:\n  max_size: 3\n  max_sise: 4\n");
        let expected = "/etc/pgsidecar/config.yaml:4: pool.max_sise: no such key; did you mean pool.max_size?";
        assert_eq!(fixture.error(), expected);
        let fixture = Fixture::new().yaml("pool:\n  mode: transaction\n  max_size: none\n");
        assert!(
            fixture
                .error()
                .starts_with("/etc/pgsidecar/config.yaml:3: pool.max_size: must be a whole number")
        );
        let fixture = fixture.variable("PGSIDECAR__POOL__MAX_SIZE", "0");
        assert!(
            fixture
                .error()
                .starts_with("PGSIDECAR__POOL__MAX_SIZE: pool.max_size: must be a whole number")
        );
        let fixture = Fixture::new().yaml("users:\n- name: a\n  password: x\n- name: b\n  password: 12\n");
        assert_eq!(
            fixture.error(),
            "/etc/pgsidecar/config.yaml:5: users[1].password: must be text; put it in quotes"
        );
        let mut fixture = Fixture::empty();
        fixture.sources.flags.upstream = Some("postgres://app:hunter2@h/d?sslmod=x".into());
        let error = fixture.error();
        assert!(
            error.starts_with("--upstream: upstream.url: invalid connection option \"sslmod\""),
            "{error}"
        );
    }

    #[test]
    fn a_file_that_is_no_yaml_or_not_there_is_one_clear_line() {
        assert!(
            Fixture::new()
                .yaml("pool: {a: b")
                .error()
                .starts_with("/etc/pgsidecar/config.yaml:")
        );
        assert!(
            Fixture::new()
                .yaml("pool: {}\npool: {}")
                .error()
                .contains("duplicate entry")
        );
        let mut fixture = Fixture::new();
        fixture.sources.flags.config = Some("/nowhere.yaml".into());
        assert_eq!(
            fixture.error(),
            "--config: cannot read /nowhere.yaml: No such file or directory"
        );
        let fixture = Fixture::new().variable("PGSIDECAR_CONFIG", "/nowhere.yaml");
        assert_eq!(
            fixture.error(),
            "PGSIDECAR_CONFIG: cannot read /nowhere.yaml: No such file or directory"
        );
    }

    #[test]
    fn an_empty_file_and_empty_sections_are_the_defaults() {
        for yaml in ["", "# nothing\n", "pool:\nlimits: {}\nusers: []\nlisten: ~\n", "---\n"] {
            assert_eq!(Fixture::new().yaml(yaml).config(), Fixture::new().config(), "{yaml}");
        }
    }

    #[test]
    fn the_url_may_be_in_a_file() {
        let fixture = Fixture::empty().variable("PGSIDECAR_UPSTREAM_FILE", "/run/url");
        assert_eq!(
            fixture.error(),
            "PGSIDECAR_UPSTREAM_FILE: cannot read /run/url: No such file or directory"
        );
        let fixture = fixture.file("/run/url", &format!("{URL}\n"));
        assert_eq!(fixture.config().upstream, Fixture::new().config().upstream);
        let error = fixture.variable("PGSIDECAR_UPSTREAM", URL).error();
        assert!(error.contains("set one of the two"), "{error}");
    }

    #[test]
    fn a_variable_of_ours_that_is_not_text_is_refused() {
        use std::os::unix::ffi::OsStringExt;
        let pair = |name: &str| (OsString::from(name), OsString::from_vec(vec![0xff]));
        assert!(readable_environment([pair("OTHER")].into_iter()).unwrap().is_empty());
        let error = readable_environment([pair("PGPASSWORD")].into_iter()).unwrap_err();
        assert_eq!(error.to_string(), "PGPASSWORD: its value is not UTF-8");
    }

    #[test]
    fn debug_shows_no_value() {
        assert!(!format!("{:?}", Fixture::new().sources).contains("secret"));
    }
}
