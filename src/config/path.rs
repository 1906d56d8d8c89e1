//! The way to a key: `users[0].pool.max_size`.

use std::fmt;

/// A path of keys and list indexes from the top of the configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct KeyPath(pub(super) Vec<Step>);

/// One step of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Into a mapping.
    Key(String),
    /// Into a list.
    Index(usize),
}

impl KeyPath {
    /// The path of a key that needs no quoting: `pool.max_size`.
    pub(super) fn dotted(text: &str) -> Self {
        Self(text.split('.').map(|key| Step::Key(key.to_owned())).collect())
    }

    /// This path and one more key.
    pub(super) fn key(&self, key: &str) -> Self {
        let mut steps = self.0.clone();
        steps.push(Step::Key(key.to_owned()));
        Self(steps)
    }

    /// This path and one more index.
    pub(super) fn index(&self, index: usize) -> Self {
        let mut steps = self.0.clone();
        steps.push(Step::Index(index));
        Self(steps)
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, step) in self.0.iter().enumerate() {
            match step {
                Step::Key(key) if position == 0 => f.write_str(key)?,
                Step::Key(key) => write!(f, ".{key}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_shown_as_an_operator_would_write_it() {
        assert_eq!(
            KeyPath::dotted("users")
                .index(0)
                .key("pool")
                .key("max_size")
                .to_string(),
            "users[0].pool.max_size"
        );
    }
}
