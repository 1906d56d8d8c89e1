//! Sources for tests: an environment and files beneath a directory of their own.

use std::os::unix::fs::PermissionsExt;

use super::{Config, Flags, Loaded, Sources};

/// A machine with nothing on it but what a test puts there.
pub(super) struct Fixture {
    root: tempfile::TempDir,
    pub(super) sources: Sources,
}

/// An upstream that needs no file.
pub(super) const URL: &str = "postgres://app:secret@db.example/app";

impl Fixture {
    /// No configuration at all.
    pub(super) fn empty() -> Self {
        let root = tempfile::tempdir().unwrap();
        let sources = Sources {
            flags: Flags::default(),
            environment: Default::default(),
            root: root.path().to_owned(),
            home: Some("/home/me".into()),
            system_user: Some("me".into()),
        };
        Self { root, sources }
    }

    /// The URL and nothing else.
    pub(super) fn new() -> Self {
        Self::empty().variable("PGSIDECAR_UPSTREAM", URL)
    }

    pub(super) fn variable(mut self, name: &str, value: &str) -> Self {
        self.sources.environment.insert(name.into(), value.into());
        self
    }

    pub(super) fn file(self, path: &str, content: &str) -> Self {
        self.file_with_mode(path, content, 0o600)
    }

    pub(super) fn file_with_mode(self, path: &str, content: &str, mode: u32) -> Self {
        let real = self.root.path().join(path.trim_start_matches('/'));
        std::fs::create_dir_all(real.parent().unwrap()).unwrap();
        std::fs::write(&real, content).unwrap();
        std::fs::set_permissions(&real, std::fs::Permissions::from_mode(mode)).unwrap();
        self
    }

    /// The configuration file, at its default place.
    pub(super) fn yaml(self, content: &str) -> Self {
        self.file(super::DEFAULT_FILE, content)
    }

    pub(super) fn load(&self) -> Result<Loaded, String> {
        Config::load(&self.sources).map_err(|error| error.to_string())
    }

    pub(super) fn config(&self) -> Config {
        self.load().unwrap().config
    }

    pub(super) fn error(&self) -> String {
        self.load().unwrap_err()
    }
}
