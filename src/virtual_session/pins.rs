//! Why a backend must stay with one client: [`PinReason`], and sets of them.

/// What a client's session holds, or may hold, that can't be made again on another backend now.
///
/// Each reason is one metric label and one bit; the order is the order of the labels in reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum PinReason {
    /// A session-level SET or set_config of a setting that does not follow its client.
    Setting,
    /// A session-level custom setting (`app.tenant_id`), or one whose name the text doesn't tell. RESET and DISCARD ALL
    /// leave `''` where a new session has NULL, so the backend can't be made as new.
    CustomSetting,
    /// LISTEN by a client that keeps its backend, or that nobody else can hear for.
    Listen,
    /// A statement prepared by SQL PREPARE, or EXECUTE of one: its name exists on this backend only.
    Prepare,
    /// A temporary table, view, sequence or function, or `pg_temp` as the schema to create in.
    TemporaryTable,
    /// DECLARE … WITH HOLD: the rows are kept by the backend after the transaction.
    HoldCursor,
    /// A session-level advisory lock, taken or tried.
    AdvisoryLock,
    /// LOAD: a library can't be unloaded.
    Load,
    /// setseed, or SET seed: random() goes on from it, and nothing resets it.
    SetSeed,
    /// dblink keeps named connections in the session.
    Dblink,
    /// A language other than SQL and PL/pgSQL keeps an interpreter with session variables (GD, %_SHARED).
    ProceduralLanguage,
    /// A sequence value that currval or lastval may still ask for.
    Sequence,
    /// Replication slots and origins, backups: state of a session that DISCARD ALL does not know.
    Replication,
    /// The text was too large to be read before it was forwarded.
    LargeStatement,
    /// The text does not lex, or its meaning depends on what is not known.
    Unlexable,
    /// A call of a routine that is not known to be harmless.
    Routine,
    /// The text names a routine, table, view, type or operator that may reach session state.
    Suspect,
    /// A statement whose effects can't be told from its text (DO, an unknown command).
    Unknown,
}

impl PinReason {
    /// Every reason, in order.
    pub const ALL: [Self; 18] = [
        Self::Setting,
        Self::CustomSetting,
        Self::Listen,
        Self::Prepare,
        Self::TemporaryTable,
        Self::HoldCursor,
        Self::AdvisoryLock,
        Self::Load,
        Self::SetSeed,
        Self::Dblink,
        Self::ProceduralLanguage,
        Self::Sequence,
        Self::Replication,
        Self::LargeStatement,
        Self::Unlexable,
        Self::Routine,
        Self::Suspect,
        Self::Unknown,
    ];

    /// The metric label and the word in the log; a closed set.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Setting => "setting",
            Self::CustomSetting => "custom_setting",
            Self::Listen => "listen",
            Self::Prepare => "prepare",
            Self::TemporaryTable => "temporary_table",
            Self::HoldCursor => "hold_cursor",
            Self::AdvisoryLock => "advisory_lock",
            Self::Load => "load",
            Self::SetSeed => "setseed",
            Self::Dblink => "dblink",
            Self::ProceduralLanguage => "procedural_language",
            Self::Sequence => "sequence",
            Self::Replication => "replication",
            Self::LargeStatement => "large_statement",
            Self::Unlexable => "unlexable",
            Self::Routine => "routine",
            Self::Suspect => "suspect",
            Self::Unknown => "unknown",
        }
    }

    /// Whether DISCARD ALL leaves nothing of it. Where it does not, the backend is closed.
    pub const fn ends_with_discard_all(self) -> bool {
        match self {
            Self::Setting
            | Self::Listen
            | Self::Prepare
            | Self::TemporaryTable
            | Self::HoldCursor
            | Self::AdvisoryLock
            | Self::Sequence => true,
            Self::CustomSetting
            | Self::Load
            | Self::SetSeed
            | Self::Dblink
            | Self::ProceduralLanguage
            | Self::Replication
            | Self::LargeStatement
            | Self::Unlexable
            | Self::Routine
            | Self::Suspect
            | Self::Unknown => false,
        }
    }

    const fn bit(self) -> u32 {
        1 << self as u8
    }
}

/// A set of reasons. One word; the empty set is what nearly every statement has.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct PinSet(u32);

impl PinSet {
    /// No reason: the backend is free.
    pub const EMPTY: Self = Self(0);

    /// The set of one reason.
    pub const fn of(reason: PinReason) -> Self {
        Self(reason.bit())
    }

    /// Adds a reason.
    pub fn insert(&mut self, reason: PinReason) {
        self.0 |= reason.bit();
    }

    /// Takes a reason out, because it follows its client after all or its end is proven.
    pub fn remove(&mut self, reason: PinReason) {
        self.0 &= !reason.bit();
    }

    /// Adds all reasons of another set.
    pub fn extend(&mut self, other: Self) {
        self.0 |= other.0;
    }

    /// Whether it holds this reason.
    pub const fn contains(self, reason: PinReason) -> bool {
        self.0 & reason.bit() != 0
    }

    /// The same without those of another set.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The same without the value of a sequence, whose pin is given up when others wait: what counts in the quota.
    #[must_use]
    pub const fn counted(self) -> Self {
        Self(self.0 & !PinReason::Sequence.bit())
    }

    /// Whether it holds none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Its reasons, in order.
    pub fn iter(self) -> impl Iterator<Item = PinReason> {
        PinReason::ALL.into_iter().filter(move |reason| self.contains(*reason))
    }

    /// Whether DISCARD ALL ends every one of them. True for the empty set.
    pub fn ends_with_discard_all(self) -> bool {
        self.iter().all(PinReason::ends_with_discard_all)
    }
}

impl FromIterator<PinReason> for PinSet {
    fn from_iter<I: IntoIterator<Item = PinReason>>(reasons: I) -> Self {
        let mut set = Self::EMPTY;
        reasons.into_iter().for_each(|reason| set.insert(reason));
        set
    }
}

impl std::fmt::Debug for PinSet {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_set()
            .entries(self.iter().map(PinReason::label))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_one_bit_and_one_label() {
        let all: PinSet = PinReason::ALL.into_iter().collect();
        assert_eq!(all.iter().count(), PinReason::ALL.len());
        let labels: std::collections::HashSet<_> = PinReason::ALL.map(PinReason::label).into();
        assert_eq!(labels.len(), PinReason::ALL.len());
        assert!(PinReason::ALL.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn a_set_gives_back_what_was_put_in() {
        let mut set = PinSet::EMPTY;
        assert!(set.is_empty() && set.ends_with_discard_all());
        set.insert(PinReason::Listen);
        set.insert(PinReason::Listen);
        set.extend(PinSet::of(PinReason::Load));
        assert_eq!(set.iter().collect::<Vec<_>>(), [PinReason::Listen, PinReason::Load]);
        assert!(!set.ends_with_discard_all());
        set.remove(PinReason::Load);
        assert!(set.ends_with_discard_all() && set.contains(PinReason::Listen) && !set.contains(PinReason::Load));
        assert_eq!(format!("{set:?}"), r#"{"listen"}"#);
    }
}
