//! Names of prepared statements that a backend may know as the client says them: SQL has made or used them (trap 30).

use std::collections::HashSet;

/// Names are never taken out one by one: a name too many only means that PostgreSQL itself is asked about it.
#[derive(Debug, Default)]
pub struct OwnNames {
    names: HashSet<Box<[u8]>>,
    /// Any name may be one.
    any: bool,
}

impl OwnNames {
    /// Names that are remembered; with more of them any name counts.
    const NAMES_MAX: usize = 1000;

    /// The backend may know this name; `None` when a text does not tell which.
    pub fn insert(&mut self, name: Option<&[u8]>) {
        match name {
            Some(name) if self.names.len() < Self::NAMES_MAX => {
                self.names.insert(name.into());
            }
            _ => self.any = true,
        }
    }

    /// Any name may be one.
    pub const fn is_any(&self) -> bool {
        self.any
    }

    /// As it was before a message that was never sent.
    pub const fn return_to(&mut self, any: bool) {
        self.any = any;
    }

    /// Whether the backend may know it.
    pub fn contains(&self, name: &[u8]) -> bool {
        self.any || self.names.contains(name)
    }

    /// DEALLOCATE ALL ran.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trap_30_names_without_end_are_any_name() {
        let mut names = OwnNames::default();
        names.insert(Some(b"s"));
        assert!(names.contains(b"s") && !names.contains(b"t"));
        for number in 0..=OwnNames::NAMES_MAX {
            names.insert(Some(&number.to_be_bytes()));
        }
        assert!(names.contains(b"t") && names.names.len() <= OwnNames::NAMES_MAX);
        names.clear();
        assert!(!names.contains(b"s"));
        names.insert(None);
        assert!(names.contains(b"s"));
    }
}
