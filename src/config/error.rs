//! What is wrong with a configuration, in one line: where it was said, the key, and why.

use std::fmt;
use std::path::PathBuf;

use super::path::KeyPath;

/// A configuration that can't be used. The process exits with 1 at start; a reload changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// Where the value came from; `None` where it came from nowhere (a key that is missing).
    pub place: Option<Place>,
    /// The key as a dotted path, empty where none is at fault (a file that can't be read).
    pub key: String,
    /// What is wrong and what to do. Never holds a secret.
    pub message: String,
}

/// Where a value was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A line of the configuration file, counted from 1.
    File(PathBuf, Option<usize>),
    /// An environment variable.
    Variable(String),
    /// A command line option.
    Flag(&'static str),
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, Some(line)) => write!(f, "{}:{line}", path.display()),
            Self::File(path, None) => write!(f, "{}", path.display()),
            Self::Variable(name) => f.write_str(name),
            Self::Flag(name) => f.write_str(name),
        }
    }
}

/// An error before its place is known: the key and the words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) key: KeyPath,
    pub(super) message: String,
}

impl Problem {
    pub(super) fn new(key: KeyPath, message: impl Into<String>) -> Self {
        Self {
            key,
            message: message.into(),
        }
    }
}
