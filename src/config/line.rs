//! On which line of a YAML text does a key stand?
//!
//! serde_yaml tells positions only in errors, so the way to a key's line is to walk to it and fail there. This runs only
//! when an error is to be reported, so its price does not matter.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::path::{KeyPath, Step};

/// The line, from 1, of the key at `path`; `None` where it isn't there.
pub(super) fn line_of(text: &str, path: &KeyPath) -> Option<usize> {
    let seed = Walk { steps: &path.0 };
    let error = seed.deserialize(serde_yaml::Deserializer::from_str(text)).err()?;
    error
        .location()
        .map(|location| location.line())
        .filter(|_| !path.0.is_empty())
}

/// Goes down the steps, and fails at the last.
struct Walk<'a> {
    steps: &'a [Step],
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the value that is looked for")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((Step::Key(wanted), rest)) = self.steps.split_first() else {
            return Err(A::Error::custom("here"));
        };
        while let Some(found) = map.next_key_seed(Key {
            wanted,
            is_last: rest.is_empty(),
        })? {
            if found {
                map.next_value_seed(Walk { steps: rest })?;
                // Not there: read to the end, or stopping early would be an error with a position of its own.
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                return Ok(());
            }
            map.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let Some((Step::Index(wanted), rest)) = self.steps.split_first() else {
            return Err(A::Error::custom("here"));
        };
        for _ in 0..*wanted {
            if entries.next_element::<IgnoredAny>()?.is_none() {
                return Ok(());
            }
        }
        entries.next_element_seed(Walk { steps: rest })?;
        while entries.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
}

/// Compares one key; fails on it, so that the error carries its position, if it is the last step.
struct Key<'a> {
    wanted: &'a str,
    is_last: bool,
}

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = bool;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = bool;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }
    fn visit_str<E: Error>(self, key: &str) -> Result<bool, E> {
        match (key == self.wanted, self.is_last) {
            (true, true) => Err(E::custom("here")),
            (found, _) => Ok(found),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_on_its_line() {
        let text = "# a comment\npool:\n  mode: session\n\n  max_size: 0\nusers:\n  - name: a\n  - name: b\n    pool: {max_size: 9}\n";
        for (path, line) in [
            (KeyPath::dotted("pool"), Some(2)),
            (KeyPath::dotted("pool.max_size"), Some(5)),
            (KeyPath::dotted("users").index(0), Some(7)),
            (KeyPath::dotted("users").index(1).key("pool").key("max_size"), Some(9)),
            (KeyPath::dotted("pool.nothing"), None),
            (KeyPath::dotted("limits"), None),
            (KeyPath::default(), None),
        ] {
            assert_eq!(line_of(text, &path), line, "{path}");
        }
    }
}
