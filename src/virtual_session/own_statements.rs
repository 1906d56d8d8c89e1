//! Statements that one backend knows by clients' own names, because SQL made them or means them (trap 30).
//!
//! A client's name is another statement for every client. So each is kept with what it stands for here; before a text
//! that mentions a name, what a stranger left under it is closed, and the client's own is made. What is not known for
//! sure (a PREPARE that was never answered) is kept as such, and closed before its name is used.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::result_shape::ResultShape;
use super::statements::Statement;

/// What one backend knows by clients' own names.
#[derive(Debug, Default)]
pub struct OwnStatements {
    held: BTreeMap<Box<[u8]>, Own>,
    bytes: usize,
    tick: u64,
}

#[derive(Debug)]
struct Own {
    /// `None`: there may be one, nobody knows which.
    statement: Option<Arc<Statement>>,
    shape: Option<ResultShape>,
    used_at: u64,
}

impl Own {
    fn weight(&self, name: &[u8]) -> usize {
        name.len() + self.statement.as_ref().map_or(256, |statement| statement.weight())
    }
}

impl OwnStatements {
    /// Whether the name stands for this statement here; counts as a use.
    pub fn touch(&mut self, name: &[u8], id: u64) -> bool {
        self.tick += 1;
        let tick = self.tick;
        let own = self.held.get_mut(name).filter(|own| own.id() == Some(id));
        own.map(|own| own.used_at = tick).is_some()
    }

    /// Whether the name stands for something here, whatever that is; counts as a use.
    pub fn touch_some(&mut self, name: &[u8]) -> bool {
        self.tick += 1;
        let tick = self.tick;
        let own = self.held.get_mut(name).filter(|own| own.statement.is_some());
        own.map(|own| own.used_at = tick).is_some()
    }

    /// Whether the name may stand for something here.
    pub fn may_have(&self, name: &[u8]) -> bool {
        self.held.contains_key(name)
    }

    /// The backend is told to make a statement of this name. `None` where only its answer tells.
    pub fn insert(&mut self, name: &[u8], statement: Option<Arc<Statement>>) {
        self.tick += 1;
        self.remove(name);
        let own = Own {
            statement,
            shape: None,
            used_at: self.tick,
        };
        self.bytes += own.weight(name);
        self.held.insert(name.into(), own);
    }

    /// What the backend has of a shared statement by this name is one client's alone from here on.
    pub fn set_apart(&mut self, name: &[u8], shared: u64, apart: &Arc<Statement>) {
        if let Some(own) = self.held.get_mut(name).filter(|own| own.id() == Some(shared)) {
            own.statement = Some(Arc::clone(apart));
        }
    }

    /// What was told to the backend of this name may not have happened.
    pub fn doubt(&mut self, name: &[u8]) {
        self.insert(name, None);
    }

    /// The name stands for nothing here any more, or the backend is told to close it. False where it did not.
    pub fn remove(&mut self, name: &[u8]) -> bool {
        let removed = self.held.remove(name);
        self.bytes -= removed.as_ref().map_or(0, |own| own.weight(name));
        removed.is_some()
    }

    /// What the rows of the statement of this name look like here, where that is known.
    pub fn shape(&self, name: &[u8]) -> Option<ResultShape> {
        self.held.get(name)?.shape
    }

    /// PostgreSQL has described a statement.
    pub fn note_shape(&mut self, id: u64, shape: ResultShape) {
        for own in self.held.values_mut().filter(|own| own.id() == Some(id)) {
            own.shape = Some(shape);
        }
    }

    /// Every name, with the number of the statement that it stands for; 0 where that is not known.
    pub fn names(&self) -> impl Iterator<Item = (&[u8], u64)> {
        self.held.iter().map(|(name, own)| (&**name, own.id().unwrap_or(0)))
    }

    /// Takes out the name that was used least recently, while all of them weigh more than this. The one that was used
    /// last is never taken.
    pub fn evict(&mut self, bytes_max: usize) -> Option<Box<[u8]>> {
        if self.bytes <= bytes_max || self.held.len() < 2 {
            return None;
        }
        let oldest = self.held.iter().min_by_key(|(_, own)| own.used_at);
        let name = oldest.map(|(name, _)| name.clone())?;
        self.remove(&name);
        Some(name)
    }

    /// What they weigh.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// DISCARD ALL or DEALLOCATE ALL ran.
    pub fn clear(&mut self) {
        self.held.clear();
        self.bytes = 0;
    }
}

impl Own {
    fn id(&self) -> Option<u64> {
        self.statement.as_ref().map(|statement| statement.id)
    }
}

#[cfg(test)]
mod tests {
    use super::super::statement_effects::Effects;
    use super::super::statements::{ParseKey, SharedStatements};
    use super::*;

    fn statement(number: u64) -> Arc<Statement> {
        SharedStatements::new(7).share(b"PREPARE a AS SELECT 1\0", ParseKey::Private(number), || Effects::NONE)
    }

    #[test]
    fn trap_30_a_name_that_is_in_doubt_stands_for_nothing_and_may_stand_for_anything() {
        let mut own = OwnStatements::default();
        let made = statement(1);
        own.insert(b"a", Some(made.clone()));
        assert!(own.touch(b"a", made.id) && own.touch_some(b"a"));
        own.doubt(b"a");
        assert!(!own.touch(b"a", made.id) && !own.touch_some(b"a") && own.may_have(b"a"));
        assert_eq!(own.names().collect::<Vec<_>>(), [(&b"a"[..], 0)]);
        assert!(own.remove(b"a") && !own.remove(b"a") && !own.may_have(b"a"));
        assert_eq!(own.bytes(), 0);
    }

    #[test]
    fn trap_26_the_name_used_last_is_never_taken() {
        let mut own = OwnStatements::default();
        let made = statement(1);
        for name in [b"a", b"b", b"c"] {
            own.insert(name, Some(made.clone()));
        }
        assert!(own.touch(b"a", made.id));
        assert_eq!(own.evict(0).as_deref(), Some(&b"b"[..]));
        assert_eq!(own.evict(0).as_deref(), Some(&b"c"[..]));
        assert_eq!(own.evict(0), None);
        assert!(own.evict(usize::MAX).is_none() && own.touch(b"a", made.id));
    }

    #[test]
    fn trap_31_a_shape_belongs_to_what_is_held_now() {
        let mut own = OwnStatements::default();
        let made = statement(1);
        own.insert(b"a", Some(made.clone()));
        own.note_shape(made.id, ResultShape::NONE);
        assert_eq!(own.shape(b"a"), Some(ResultShape::NONE));
        own.insert(b"a", Some(made));
        assert_eq!(own.shape(b"a"), None);
    }
}
