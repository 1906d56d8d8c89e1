//! What a client left behind → how the backend is made fit for the next one.

use super::pins::PinSet;

/// What is done to a backend whose client lets go of it, before anyone else may have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetPlan {
    /// Nothing was left.
    Nothing,
    /// DISCARD ALL brings it all back: settings, role, temporary tables, holdable cursors, session advisory locks,
    /// LISTEN, prepared statements, sequence state.
    DiscardAll,
    /// Something was left, or may have been, that no command takes back (a loaded library, the random seed, dblink's
    /// connections, an interpreter's variables, the placeholder of a custom setting, anything unknown).
    Close,
}

impl ResetPlan {
    /// The plan for a backend that was pinned, ever since its last reset, for these reasons.
    pub fn for_pins(pins: PinSet) -> Self {
        // Whose values a backend has, its state tells.
        let pins = pins.counted();
        if pins.is_empty() {
            Self::Nothing
        } else if pins.ends_with_discard_all() {
            Self::DiscardAll
        } else {
            Self::Close
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::pins::PinReason;
    use super::*;

    #[test]
    fn an_unpinned_backend_needs_nothing() {
        assert_eq!(ResetPlan::for_pins(PinSet::EMPTY), ResetPlan::Nothing);
        let of_sequence = PinSet::of(PinReason::Sequence);
        assert_eq!(ResetPlan::for_pins(of_sequence), ResetPlan::Nothing);
    }

    #[test]
    fn trap_59_discard_all_reaches_what_reset_all_does_not() {
        use PinReason::*;
        for reason in [Setting, Listen, Prepare, TemporaryTable, HoldCursor, AdvisoryLock] {
            assert_eq!(
                ResetPlan::for_pins(PinSet::of(reason)),
                ResetPlan::DiscardAll,
                "{reason:?}"
            );
        }
    }

    #[test]
    fn what_discard_all_does_not_reach_closes_the_backend() {
        use PinReason::*;
        for reason in [CustomSetting, Load, SetSeed, Dblink, ProceduralLanguage, Replication] {
            assert_eq!(ResetPlan::for_pins(PinSet::of(reason)), ResetPlan::Close, "{reason:?}");
        }
        for reason in [LargeStatement, Unlexable, Routine, Suspect, Unknown] {
            assert_eq!(
                ResetPlan::for_pins([Setting, reason].into_iter().collect()),
                ResetPlan::Close,
                "{reason:?}"
            );
        }
    }
}
