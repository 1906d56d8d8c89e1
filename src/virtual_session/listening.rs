//! The channels that a client listens to without a backend of its own, as PostgreSQL's commits and rollbacks leave them.
//!
//! LISTEN and UNLISTEN take effect when their transaction commits, in order, and are undone with their savepoint. A
//! [`ListenStep`] is what a statement does to them; it has happened when its CommandComplete came.

use std::collections::BTreeMap;

use super::statement_effects::{Action, Effects, Name, TransactionControl};

/// The longest identifier (NAMEDATALEN - 1); PostgreSQL cuts longer ones.
const NAME_LEN_MAX: usize = 63;

/// A channel's name as NotificationResponse says it.
pub type Channel = Box<[u8]>;

/// Appends a command about a channel (`LISTEN `, `UNLISTEN `) and a semicolon.
pub fn command(sql: &mut Vec<u8>, command: &[u8], channel: &[u8]) {
    sql.extend_from_slice(command);
    sql.push(b'"');
    for &byte in channel {
        if byte == b'"' {
            sql.push(b'"');
        }
        sql.push(byte);
    }
    sql.extend_from_slice(b"\"; ");
}

/// What one statement does to the channels, or to the transaction that decides on them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenStep {
    /// LISTEN.
    Listen(Channel),
    /// UNLISTEN of one channel.
    Unlisten(Channel),
    /// UNLISTEN *.
    UnlistenAll,
    /// DISCARD ALL.
    DiscardAll,
    /// SAVEPOINT.
    Savepoint(Channel),
    /// RELEASE.
    Release(Channel),
    /// ROLLBACK TO.
    RollbackTo(Channel),
    /// COMMIT, ROLLBACK and the like.
    End,
}

/// A text names a channel or savepoint in a way that can't be read (`U&"…"`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnreadableName;

impl ListenStep {
    /// What a text does to the channels and to the transaction around it, in order.
    ///
    /// # Errors
    /// A name can't be read.
    pub fn of(effects: &Effects) -> Result<Vec<Self>, UnreadableName> {
        let mut steps = Vec::new();
        if effects.transaction.ends_transaction() {
            steps.push(Self::End);
        }
        for step in &effects.steps {
            steps.push(match &step.action {
                Action::Listen(name) => Self::Listen(channel(name)?),
                Action::Unlisten(name) => Self::Unlisten(channel(name)?),
                Action::UnlistenAll => Self::UnlistenAll,
                Action::DiscardAll => Self::DiscardAll,
                Action::Transaction(TransactionControl::Savepoint, name) => Self::Savepoint(channel(name)?),
                Action::Transaction(TransactionControl::Release, name) => Self::Release(channel(name)?),
                Action::Transaction(TransactionControl::RollbackTo, name) => Self::RollbackTo(channel(name)?),
                Action::Transaction(control, _) if control.ends_transaction() => Self::End,
                _ => continue,
            });
        }
        Ok(steps)
    }

    /// Whether it changes the channels by itself.
    pub const fn is_of_channels(&self) -> bool {
        matches!(
            self,
            Self::Listen(_) | Self::Unlisten(_) | Self::UnlistenAll | Self::DiscardAll
        )
    }

    /// Whether a CommandComplete with this tag may be its own.
    pub fn has_tag(&self, tag: &[u8]) -> bool {
        match self {
            Self::Listen(_) => tag == b"LISTEN",
            Self::Unlisten(_) | Self::UnlistenAll => tag == b"UNLISTEN",
            Self::DiscardAll => tag == b"DISCARD ALL",
            Self::Savepoint(_) => tag == b"SAVEPOINT",
            Self::Release(_) => tag == b"RELEASE",
            Self::RollbackTo(_) => tag == b"ROLLBACK",
            Self::End => matches!(tag, b"COMMIT" | b"ROLLBACK" | b"PREPARE TRANSACTION"),
        }
    }
}

fn channel(name: &Name) -> Result<Channel, UnreadableName> {
    let name = name.as_deref().ok_or(UnreadableName)?;
    Ok(name.get(..NAME_LEN_MAX).unwrap_or(name).into())
}

/// What the transaction at hand will do when it commits.
#[derive(Debug)]
enum Pending {
    Listen(Channel),
    Unlisten(Channel),
    UnlistenAll,
    Savepoint(Channel),
}

/// The channels of one client.
#[derive(Debug, Default)]
pub struct Listening {
    /// With the number of the first notification that is for the client.
    channels: BTreeMap<Channel, u64>,
    pending: Vec<Pending>,
}

impl Listening {
    /// A statement was completed, with this tag. What it commits is heard from the notification `since` on.
    pub fn complete(&mut self, step: ListenStep, tag: &[u8], since: u64) {
        match step {
            ListenStep::Listen(channel) => self.pending.push(Pending::Listen(channel)),
            ListenStep::Unlisten(channel) => self.pending.push(Pending::Unlisten(channel)),
            ListenStep::UnlistenAll | ListenStep::DiscardAll => self.pending.push(Pending::UnlistenAll),
            ListenStep::Savepoint(name) => self.pending.push(Pending::Savepoint(name)),
            ListenStep::Release(name) => self.release(&name),
            // One that was set before anything was pending is not known here.
            ListenStep::RollbackTo(name) => self.pending.truncate(self.savepoint(&name).map_or(0, |at| at + 1)),
            ListenStep::End if tag == b"COMMIT" => self.commit(since),
            ListenStep::End => self.roll_back(),
        }
    }

    fn savepoint(&self, name: &[u8]) -> Option<usize> {
        let is_it = |pending: &Pending| matches!(pending, Pending::Savepoint(other) if **other == *name);
        self.pending.iter().rposition(is_it)
    }

    /// A savepoint goes with all that were set in it.
    fn release(&mut self, name: &[u8]) {
        let from = self.savepoint(name).unwrap_or(0);
        let inner = self.pending.split_off(from);
        let kept = inner
            .into_iter()
            .filter(|pending| !matches!(pending, Pending::Savepoint(_)));
        self.pending.extend(kept);
    }

    /// The transaction has taken effect.
    pub fn commit(&mut self, since: u64) {
        for pending in std::mem::take(&mut self.pending) {
            match pending {
                Pending::Listen(channel) => {
                    self.channels.entry(channel).or_insert(since);
                }
                Pending::Unlisten(channel) => {
                    self.channels.remove(&channel);
                }
                Pending::UnlistenAll => self.channels.clear(),
                Pending::Savepoint(_) => {}
            }
        }
    }

    /// The transaction has not, and never will.
    pub fn roll_back(&mut self) {
        self.pending.clear();
    }

    /// The LISTENs of the transaction at hand are for the backend alone.
    pub fn forget_pending_listens(&mut self) {
        self.pending.retain(|pending| !matches!(pending, Pending::Listen(_)));
    }

    /// Whether the client is to be told of a notification.
    pub fn hears(&self, channel: &[u8], number: u64) -> bool {
        self.channels.get(channel).is_some_and(|since| number >= *since)
    }

    /// Whether the channel is the client's, or will be when its transaction commits.
    pub fn has(&self, channel: &[u8]) -> bool {
        self.channels.contains_key(channel) || self.pending_listens().any(|pending| **pending == *channel)
    }

    /// The channels that the transaction at hand adds.
    pub fn pending_listens(&self) -> impl Iterator<Item = &Channel> {
        self.pending.iter().filter_map(|pending| match pending {
            Pending::Listen(channel) => Some(channel),
            _ => None,
        })
    }

    /// Whether the transaction at hand has done anything to the channels.
    pub fn is_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Channels, those of the transaction at hand included, and what else it has to remember.
    pub fn len(&self) -> usize {
        self.channels.len() + self.pending.len()
    }

    /// The client listens to nothing and is not about to.
    pub fn is_empty(&self) -> bool {
        self.channels.is_empty() && self.pending.is_empty()
    }

    /// Those that are in force.
    pub fn channels(&self) -> impl Iterator<Item = &Channel> {
        self.channels.keys()
    }
}

#[cfg(test)]
mod tests {
    use super::super::sql_lexer::Lexing;
    use super::super::statement_effects::classify;
    use super::super::suspects::Suspects;
    use super::*;

    fn steps(sql: &str) -> Vec<ListenStep> {
        let effects = classify(sql.as_bytes(), Lexing::default(), &Suspects::known([]));
        ListenStep::of(&effects).unwrap()
    }

    /// Runs statements of one block, each completed with this tag.
    fn run(listening: &mut Listening, statements: &[(&str, &str)]) {
        for (sql, tag) in statements {
            for step in steps(sql) {
                assert!(step.has_tag(tag.as_bytes()), "{step:?} {tag}");
                listening.complete(step, tag.as_bytes(), 7);
            }
        }
    }

    fn names(listening: &Listening) -> String {
        let names: Vec<_> = listening
            .channels()
            .map(|name| String::from_utf8_lossy(name).into_owned())
            .collect();
        names.join(" ")
    }

    #[test]
    fn trap_64_a_listen_takes_effect_at_commit_and_is_heard_from_there_on() {
        let mut listening = Listening::default();
        run(&mut listening, &[("LISTEN A", "LISTEN"), ("LISTEN \"B\"", "LISTEN")]);
        assert_eq!(names(&listening), "");
        assert!(listening.has(b"a") && !listening.hears(b"a", 9));
        run(&mut listening, &[("COMMIT", "COMMIT")]);
        assert_eq!(names(&listening), "B a");
        assert!(listening.hears(b"a", 7) && !listening.hears(b"a", 6) && !listening.hears(b"b", 7));
    }

    #[test]
    fn a_failed_commit_and_a_rollback_undo() {
        for end in [("COMMIT", "ROLLBACK"), ("ROLLBACK", "ROLLBACK"), ("ABORT", "ROLLBACK")] {
            let mut listening = Listening::default();
            run(&mut listening, &[("LISTEN a", "LISTEN"), ("COMMIT", "COMMIT")]);
            run(
                &mut listening,
                &[("UNLISTEN *", "UNLISTEN"), ("LISTEN b", "LISTEN"), end],
            );
            assert_eq!(names(&listening), "a");
            assert!(!listening.is_pending());
        }
    }

    #[test]
    fn savepoints_undo_what_came_behind_them() {
        let cases: [(&[(&str, &str)], &str); 6] = [
            (
                &[
                    ("LISTEN a", "LISTEN"),
                    ("SAVEPOINT s", "SAVEPOINT"),
                    ("LISTEN b", "LISTEN"),
                    ("ROLLBACK TO s", "ROLLBACK"),
                    ("LISTEN c", "LISTEN"),
                ],
                "a c",
            ),
            (
                &[
                    ("LISTEN a", "LISTEN"),
                    ("SAVEPOINT s", "SAVEPOINT"),
                    ("LISTEN b", "LISTEN"),
                    ("ROLLBACK TO s", "ROLLBACK"),
                    ("LISTEN c", "LISTEN"),
                    ("ROLLBACK TO SAVEPOINT s", "ROLLBACK"),
                ],
                "a",
            ),
            // The savepoint is older than anything that is pending.
            (&[("LISTEN a", "LISTEN"), ("ROLLBACK TO old", "ROLLBACK")], ""),
            (
                &[
                    ("LISTEN a", "LISTEN"),
                    ("SAVEPOINT s", "SAVEPOINT"),
                    ("LISTEN b", "LISTEN"),
                    ("RELEASE s", "RELEASE"),
                    ("ROLLBACK TO s", "ROLLBACK"),
                ],
                "",
            ),
            (
                &[
                    ("LISTEN a", "LISTEN"),
                    ("SAVEPOINT s", "SAVEPOINT"),
                    ("LISTEN b", "LISTEN"),
                    ("RELEASE outer_one", "RELEASE"),
                    ("LISTEN c", "LISTEN"),
                ],
                "a b c",
            ),
            (
                &[
                    ("LISTEN a", "LISTEN"),
                    ("LISTEN b", "LISTEN"),
                    ("UNLISTEN a", "UNLISTEN"),
                ],
                "b",
            ),
        ];
        for (statements, expected) in cases {
            let mut listening = Listening::default();
            run(&mut listening, statements);
            listening.commit(0);
            assert_eq!(names(&listening), expected, "{statements:?}");
        }
    }

    #[test]
    fn discard_all_ends_every_channel() {
        let mut listening = Listening::default();
        run(&mut listening, &[("LISTEN a", "LISTEN"), ("COMMIT", "COMMIT")]);
        run(&mut listening, &[("DISCARD ALL", "DISCARD ALL")]);
        assert!(!listening.is_empty());
        listening.commit(0);
        assert!(listening.is_empty());
    }

    #[test]
    fn a_channel_that_is_heard_keeps_its_beginning() {
        let mut listening = Listening::default();
        run(&mut listening, &[("LISTEN a", "LISTEN")]);
        listening.commit(3);
        run(&mut listening, &[("LISTEN a", "LISTEN")]);
        listening.commit(9);
        assert!(listening.hears(b"a", 3));
    }

    #[test]
    fn names_are_quoted() {
        let mut sql = Vec::new();
        command(&mut sql, b"LISTEN ", b"a\"; DROP");
        assert_eq!(sql, b"LISTEN \"a\"\"; DROP\"; ");
    }

    #[test]
    fn texts_are_read_in_order_and_long_names_are_cut() {
        let long = "x".repeat(70);
        assert_eq!(
            steps(&format!("LISTEN {long}; COMMIT; UNLISTEN *")),
            [
                ListenStep::Listen("x".repeat(63).into_bytes().into()),
                ListenStep::End,
                ListenStep::UnlistenAll
            ]
        );
        assert_eq!(steps("ROLLBACK"), [ListenStep::End]);
        assert_eq!(steps("BEGIN; SELECT 1"), []);
        let effects = classify(b"UNLISTEN U&\"x\"", Lexing::default(), &Suspects::known([]));
        assert_eq!(ListenStep::of(&effects), Err(UnreadableName));
    }
}
