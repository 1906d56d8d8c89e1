//! What the session tells the client through its exchange: a loss, a refusal, last words.

use std::io;
use std::time::Instant;

use super::{Aftermath, Exchange, Parties, lost_transaction};
use crate::error::failed_transaction;
use crate::net::Stream;
use crate::protocol::pipeline::Abandoned;
use crate::wire::backend_message::TransactionStatus;
use crate::wire::{BackendTag, Report, Severity, compose};

impl Exchange {
    /// The backend is lost (its lease must be detached and discarded by now). Tells the client once, in the form of its
    /// protocol, and leaves it between transactions, or in a failed one if it was in a block.
    pub fn tell_loss(&mut self, report: &Report, parties: &mut Parties<'_>) -> Aftermath {
        if self.down.is_amid_message() {
            return Aftermath::Cut;
        }
        // COMMIT and ROLLBACK end their block whatever becomes of them.
        let in_block = self.pipeline.status() != TransactionStatus::Idle && !self.ends_block;
        let status = if in_block {
            TransactionStatus::Failed
        } else {
            TransactionStatus::Idle
        };
        let told = self.pipeline.is_skipping();
        let abandoned = self.abandon(parties);
        if in_block {
            self.lost = Some(lost_transaction::LostTransaction::default());
        } else {
            self.transaction_since = None;
        }
        let refusal = if in_block { failed_transaction() } else { report.clone() };
        for nth in 0..abandoned.readies {
            self.down
                .say(|out| compose::report(out, if nth == 0 { report } else { &refusal }));
            self.down.say(|out| compose::ready_for_query(out, status));
        }
        if told {
            // The group at hand has had its error, and gets no second one.
            self.pipeline.refuse_until_sync();
        } else if abandoned.mid_group {
            let report = if abandoned.readies == 0 { report } else { &refusal };
            self.down.say(|out| compose::report(out, report));
            self.pipeline.refuse_until_sync();
        } else if abandoned.readies == 0 && in_block {
            // Idle in a transaction: PostgreSQL's own clients get its FATAL at once; ours learns it from its next statement.
            if let Some(lost) = &mut self.lost {
                lost.first_refusal = Some(report.clone());
            }
        }
        Aftermath::GoesOn
    }

    /// Forgets whatever was under way with the backend, and undoes what the ledger says of it.
    fn abandon(&mut self, parties: &mut Parties<'_>) -> Abandoned {
        let abandoned = self.forget_requests(parties);
        self.forget_second_try();
        self.up.forget_pieces();
        self.down.forget_undecided();
        self.answered_at = Some(Instant::now());
        self.query_since = None;
        self.cancel_sent_at = None;
        self.vacancy = None;
        self.deferred = None;
        abandoned
    }

    /// Of what was asked for nothing will be answered.
    fn forget_requests(&mut self, parties: &mut Parties<'_>) -> Abandoned {
        let abandoned = self.pipeline.abandon();
        self.undo_dropped(parties);
        self.listening_lost(parties);
        self.roles_in_doubt(parties);
        self.commit_at_risk = false;
        self.ends_block = false;
        self.prelude_owed = false;
        self.forgetting = false;
        self.discarding = false;
        self.forget_names();
        self.restore_due = false;
        abandoned
    }

    /// The client's settings could not be made (the backend must be detached and discarded by now), but all that was sent
    /// behind them takes some back, which PostgreSQL does not refuse: it is answered. The ledger must be as before.
    pub fn take_back_instead(&mut self, parties: &mut Parties<'_>) -> bool {
        let is_alone = self.pipeline.len() == 2 && !self.pipeline.is_unsynced() && !self.down.is_amid_message();
        let Some(taken) = self.behind_prelude.take().filter(|_| is_alone) else {
            return false;
        };
        // PostgreSQL would report that a superuser is one again.
        let is_superuser = parties.neutral.get("is_superuser").is_none_or(|it| it == b"on");
        if is_superuser || !parties.session.take_back(taken) {
            return false;
        }
        self.abandon(parties);
        self.transaction_since = None;
        let neutral = &**parties.neutral;
        let find = |name: &str| neutral.iter().find(|(other, _)| other.eq_ignore_ascii_case(name));
        let news = parties.session.news(find);
        self.down.say(|out| {
            compose::frame(out, BackendTag::CommandComplete.byte(), &[taken.tag()]);
            for (name, value) in news {
                compose::parameter_status(out, &name, &value);
            }
            compose::ready_for_query(out, TransactionStatus::Idle);
        });
        true
    }

    /// The client's settings could not be made, so that nothing which was sent behind them has run: the ledger is as before.
    pub fn forget_behind_prelude(&mut self, parties: &mut Parties<'_>) {
        let before_begin = self.deferred.as_mut().and_then(|begin| begin.before.take());
        if let Some(before) = self.before_prelude.take().or(before_begin) {
            parties.session.return_to(before);
        }
    }

    /// The client's settings could not be made (the backend must be detached and discarded by now): whatever was sent
    /// behind them has failed with them; where nothing was, because it waited for them, the message that waits fails.
    pub fn tell_prelude_failure(&mut self, report: &Report, parties: &mut Parties<'_>) -> Aftermath {
        let only_prelude = self.pipeline.len() <= 1 && !self.pipeline.is_unsynced();
        let aftermath = self.tell_loss(report, parties);
        // In a transaction that is lost the message that waits finds out by itself.
        if only_prelude && aftermath == Aftermath::GoesOn && self.lost.is_none() {
            self.refuse_next(report, parties);
        }
        aftermath
    }

    /// No backend could be had for the client's next message: it is refused in the form of its protocol.
    pub fn refuse_next(&mut self, report: &Report, parties: &mut Parties<'_>) {
        self.is_unusual = true;
        let report = report.clone().with_severity(Severity::Error);
        if self.deferred.is_some() {
            return self.lose_deferred(report);
        }
        self.down.say(|out| compose::report(out, &report));
        if self.skip_refused() {
            self.down
                .say(|out| compose::ready_for_query(out, TransactionStatus::Idle));
        } else {
            self.pipeline.refuse_until_sync();
        }
        self.undo_dropped(parties);
    }

    /// Says a report to the client where the protocol allows one now; nothing amid a message.
    pub fn say(&mut self, report: &Report) {
        if !self.down.is_amid_message() {
            self.down.say(|out| compose::report(out, report));
        }
    }

    /// Writes what waits for the client, with nothing else to do.
    pub async fn flush(&mut self, client: &mut Stream) -> io::Result<()> {
        std::future::poll_fn(|cx| self.down.poll_write(cx, client)).await
    }

    /// A commit may have taken effect on a backend that died now.
    pub const fn commit_at_risk(&self) -> bool {
        self.commit_at_risk
    }

    /// The request must be sent again to another backend: nothing of it was taken by the kernel, and the exchange is as
    /// before it was scanned.
    pub fn rewind(&mut self, parties: &mut Parties<'_>) -> bool {
        let rewound = self.down.is_empty() && self.up.rewind();
        if rewound {
            self.forget_requests(parties);
            self.defer_again();
            if let Some(before) = self.before_effects.take() {
                parties.session.return_to(before);
            }
            self.new_pins = false;
            self.pinned_by = None;
        }
        rewound
    }
}
