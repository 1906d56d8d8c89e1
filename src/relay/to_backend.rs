//! The rules for the client's messages: which pass, which are rewritten, which are answered by us.

use bytes::Bytes;

use super::{Exchange, Parties};
use crate::protocol::pipeline::{Fate, Request};
use crate::virtual_session::Note;
use crate::virtual_session::pins::{PinReason, PinSet};
use crate::wire::backend_message::TransactionStatus;
use crate::wire::{FrontendTag, HEADER_LEN, Header, Malformed, Report, SqlState};

/// Where the walk over the client's messages stopped.
pub(super) enum Scan {
    /// More bytes are needed: a whole message of this length (0: any).
    Wants(usize),
    /// The next message needs a backend.
    NeedsBackend,
    /// The client said Terminate.
    Terminated,
    /// The next message may only be sent when the prelude has succeeded.
    Held,
}

/// What one message led to.
pub(super) enum Next {
    Done,
    Wants(usize),
    NeedsBackend,
    Terminated,
    Held,
}

/// Requests that may wait for their replies at a time. PostgreSQL writes out what it owes long before so many are owed, so
/// this bounds our memory and stops nobody.
const REQUESTS_MAX: usize = 8192;
/// Object identifiers of the large-object functions, which drivers call by FunctionCall and which leave nothing behind
/// in the session (their descriptors end with the transaction). The same in every PostgreSQL version.
const LARGE_OBJECT_FUNCTIONS: [u32; 13] = [715, 764, 765, 952, 953, 954, 955, 956, 957, 958, 964, 1004, 3170];
const LARGE_OBJECT_FUNCTIONS_64: [u32; 2] = [3171, 3172];

impl Exchange {
    /// Decides on every message of the client's that has arrived.
    pub(super) fn scan_client(&mut self, parties: &mut Parties<'_>) -> Result<Scan, Report> {
        if self.up.undecided().is_empty() && !self.up.is_amid_rest() {
            return Ok(Scan::Wants(0));
        }
        if !self.is_unusual {
            if let Some(scan) = self.pass_plain_group(parties) {
                return Ok(scan);
            }
            self.is_unusual = true;
        }
        loop {
            let Some(header) = self.up.next_header().map_err(invalid_length)? else {
                return Ok(Scan::Wants(0));
            };
            if self.pipeline.len() >= REQUESTS_MAX {
                return Ok(Scan::Held);
            }
            let tag = header.frontend().map_err(|cause| invalid_message(header, cause))?;
            let next = if self.lost.is_some() {
                self.on_message_after_loss(header, tag, parties)?
            } else if self.deferred.is_some() && self.lease.is_none() {
                self.on_message_behind_begin(header, tag, parties)?
            } else {
                self.on_message(header, tag, parties)?
            };
            match next {
                Next::Done => {}
                Next::Wants(whole) => return Ok(Scan::Wants(whole)),
                Next::NeedsBackend => return Ok(Scan::NeedsBackend),
                Next::Terminated => return Ok(Scan::Terminated),
                Next::Held => return Ok(Scan::Held),
            }
        }
    }

    pub(super) fn on_message(
        &mut self,
        header: Header,
        tag: FrontendTag,
        parties: &mut Parties<'_>,
    ) -> Result<Next, Report> {
        if self.pipeline.is_streaming_both_ways() && tag != FrontendTag::Terminate {
            self.up.pass(header);
            return Ok(Next::Done);
        }
        match tag {
            FrontendTag::Terminate => Ok(Next::Terminated),
            FrontendTag::CopyData | FrontendTag::CopyDone | FrontendTag::CopyFail => Ok(self.on_copy(header, tag)),
            _ if self.awaits_query() || self.awaits_listening(parties) || self.awaits_begin() => {
                Ok(self.await_replies())
            }
            FrontendTag::Sync => Ok(self.on_sync(header, parties)),
            FrontendTag::Authentication => Err(Report::fatal(
                SqlState::PROTOCOL_VIOLATION,
                format!("invalid frontend message type {}", header.tag),
            )),
            _ if self.pipeline.is_skipping() => {
                // The group has failed; PostgreSQL would throw these away, so they are not sent.
                self.up.skip(header);
                Ok(Next::Done)
            }
            FrontendTag::Flush => {
                if self.lease.is_some() {
                    self.up.pass(header)
                } else {
                    self.up.skip(header)
                }
                Ok(Next::Done)
            }
            // It would be run though its group is refused (trap 16).
            FrontendTag::Query | FrontendTag::FunctionCall if self.pipeline.may_refuse() => Ok(self.await_replies()),
            FrontendTag::Close => self.on_close(header, parties),
            FrontendTag::Query => self.on_query(header, parties),
            FrontendTag::Parse => self.on_parse(header, parties),
            FrontendTag::Bind => self.on_bind(header, parties),
            FrontendTag::Describe => self.on_describe(header, parties),
            FrontendTag::Execute => Ok(self.on_execute(header, parties)),
            FrontendTag::FunctionCall => Ok(self.on_function_call(header, parties)),
        }
    }

    // --- messages that no ledger is needed for ---

    fn on_copy(&mut self, header: Header, tag: FrontendTag) -> Next {
        if tag != FrontendTag::CopyData {
            self.pipeline.copy_ended();
        }
        // Late data after an error is dropped by PostgreSQL; where nothing is owed, no backend may see it (trap 49).
        let awaited = self.lease.is_some() && !self.pipeline.is_skipping() && !self.pipeline.is_quiet();
        if awaited {
            self.up.pass(header)
        } else {
            self.up.skip(header)
        }
        Next::Done
    }

    fn on_sync(&mut self, header: Header, parties: &mut Parties<'_>) -> Next {
        if let Some(stop) = self.before_sync(parties) {
            return stop;
        }
        self.restore_due |= std::mem::take(&mut self.restore_bound);
        let needed = self.lease.is_some() && !self.pipeline.is_answerable();
        if needed {
            let note = Note::None.reporting(parties.session.unreported());
            self.begin_round(parties);
            self.expect(Request::Sync, Fate::Forward, note);
            self.up.pass(header);
        } else {
            self.expect(Request::Sync, Fate::Answer(Bytes::new()), Note::None);
            self.up.skip(header);
            self.say_due();
        }
        Next::Done
    }

    fn on_execute(&mut self, header: Header, parties: &mut Parties<'_>) -> Next {
        if let Some(stop) = self.before_backend(parties, None) {
            return stop;
        }
        if let Some(stop) = self.before_execute(header, parties) {
            return stop;
        }
        let names = match self.names_of_execute(header) {
            Ok(names) => names,
            Err(wanted) => return wanted,
        };
        self.listening_sent(parties);
        self.names_sent(&names);
        self.expect(Request::Execute, Fate::Forward, Note::None.naming(names));
        self.restore_due |= std::mem::take(&mut self.restore_bound);
        self.up.pass(header);
        self.tally.queries += 1;
        Next::Done
    }

    fn on_function_call(&mut self, header: Header, parties: &mut Parties<'_>) -> Next {
        let oid = match self.up.body_prefix(header).first_chunk::<4>() {
            Some(oid) => u32::from_be_bytes(*oid),
            None if header.body_len >= 4 => return Next::Wants(HEADER_LEN + 4),
            // Too short to name one: PostgreSQL says so.
            None => 0,
        };
        if let Some(stop) = self.before_backend(parties, None) {
            return stop;
        }
        let is_known = LARGE_OBJECT_FUNCTIONS.contains(&oid) || LARGE_OBJECT_FUNCTIONS_64.contains(&oid);
        if let Some(lease) = self.lease.as_ref().filter(|_| !is_known) {
            // It has no text.
            lease.note_statement(b"", parties.session.lexing());
            let pins = PinSet::of(PinReason::Routine);
            if let Some(refused) = self.before_pinning_for(header, Request::FunctionCall, pins, parties) {
                return refused;
            }
            self.pin(PinReason::Routine, parties);
        }
        self.commit_at_risk |= self.pipeline.status() == TransactionStatus::Idle;
        self.note_notifier(false, parties);
        self.expect(Request::FunctionCall, Fate::Forward, Note::None);
        self.up.pass(header);
        self.tally.queries += 1;
        Next::Done
    }
}

pub(super) fn invalid_length(_: Malformed) -> Report {
    Report::fatal(SqlState::PROTOCOL_VIOLATION, "invalid message length")
}

pub(super) fn invalid_message(header: Header, cause: Malformed) -> Report {
    match header.frontend() {
        Ok(tag) => Report::fatal(
            SqlState::PROTOCOL_VIOLATION,
            format!("invalid {tag:?} message: {cause}"),
        ),
        Err(Malformed::Length) => invalid_length(Malformed::Length),
        Err(_) => Report::fatal(
            SqlState::PROTOCOL_VIOLATION,
            format!("invalid frontend message type {}", header.tag),
        ),
    }
}
