//! One section of the file: its keys are read with the path that an error names.

use std::path::PathBuf;

use super::error::Problem;
use super::path::KeyPath;
use super::scalar::Scalar;

/// A section and the way to it; reads its keys.
pub(super) struct Section {
    path: KeyPath,
}

impl Section {
    pub(super) fn top() -> Self {
        Self {
            path: KeyPath::default(),
        }
    }

    pub(super) fn at(path: KeyPath) -> Self {
        Self { path }
    }

    pub(super) fn named(name: &str) -> Self {
        Self {
            path: KeyPath::dotted(name),
        }
    }

    pub(super) fn problem(&self, key: &str, message: impl Into<String>) -> Problem {
        Problem::new(self.path.key(key), message)
    }

    /// The key's value, or `default` where the key isn't there.
    pub(super) fn read<T>(
        &self,
        key: &str,
        value: &Option<Scalar>,
        parse: impl Fn(&Scalar) -> Result<T, String>,
        default: T,
    ) -> Result<T, Problem> {
        self.read_if(key, value, parse).map(|read| read.unwrap_or(default))
    }

    /// The key's value, if it is there.
    pub(super) fn read_if<T>(
        &self,
        key: &str,
        value: &Option<Scalar>,
        parse: impl Fn(&Scalar) -> Result<T, String>,
    ) -> Result<Option<T>, Problem> {
        value
            .as_ref()
            .map(parse)
            .transpose()
            .map_err(|message| self.problem(key, message))
    }

    /// A path, if it is there.
    pub(super) fn path_if(&self, key: &str, value: &Option<Scalar>) -> Result<Option<PathBuf>, Problem> {
        self.read_if(key, value, Scalar::text)
            .map(|path| path.map(PathBuf::from))
    }
}
