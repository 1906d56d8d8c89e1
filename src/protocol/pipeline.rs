//! What the backend still owes: one entry per request, in the order in which the replies will come.
//!
//! Replies of ours (an answer without a round trip, a swallowed reply to a message that we injected) sit in the same
//! queue, so that they keep their place and vanish with the rest when an error makes PostgreSQL skip to Sync (manual:
//! protocol-flow-ext-query, protocol-flow-pipelining). Each entry carries a note `N` of the virtual session's: what to
//! confirm when the reply comes, and what to undo when it never will.

use std::collections::VecDeque;

use bytes::Bytes;

use super::Violation;
use crate::wire::backend_message::TransactionStatus;
use crate::wire::{BackendTag, HEADER_LEN, Malformed};

/// Which request a reply belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the variants are the manual's message names")]
pub enum Request {
    Parse,
    Bind,
    DescribeStatement,
    DescribePortal,
    Execute,
    Close,
    Sync,
    Query,
    FunctionCall,
}

impl Fate {
    const fn is_answer(&self) -> bool {
        matches!(self, Self::Answer(_) | Self::AnswerUnlessFailed(_))
    }

    const fn is_hidden(&self) -> bool {
        matches!(self, Self::Swallow | Self::Silence)
    }
}

impl Request {
    /// Messages of the extended protocol, which an error skips up to the next Sync.
    const fn is_extended(self) -> bool {
        !matches!(self, Self::Sync | Self::Query | Self::FunctionCall)
    }

    /// Requests whose reply ends with ReadyForQuery.
    const fn ends_with_ready(self) -> bool {
        matches!(self, Self::Sync | Self::Query | Self::FunctionCall)
    }
}

/// What becomes of a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It goes to the client.
    Forward,
    /// It answers a message of ours; the client never sees it. An error in it stands for the client's own request.
    Swallow,
    /// The request was not sent: these bytes are the reply, told in its turn.
    Answer(Bytes),
    /// The same for a request that a failed transaction refuses: there it gets 25P02 and what follows it in its group,
    /// though sent, stays unanswered up to Sync.
    AnswerUnlessFailed(Bytes),
    /// The client has had the group's error already; whatever comes for this request is dropped, an error included.
    Silence,
    /// It goes to the client, but an ErrorResponse with this SQLSTATE is replaced by these bytes.
    Substitute([u8; 5], Bytes),
}

#[derive(Debug, Clone)]
struct Entry<N> {
    request: Request,
    fate: Fate,
    note: N,
}

#[derive(Debug, Clone)]
enum Item<N> {
    Entry(Entry<N>),
    /// The client has ended a COPY whose CopyInResponse has not come yet.
    CopyEnd,
}

/// Requests that were sent together, as they are.
#[derive(Debug, Clone)]
struct Group<N> {
    requests: &'static [Request],
    /// The first one's; the others have none.
    note: N,
}

/// COPY FROM STDIN, as the backend sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum CopyIn {
    #[default]
    None,
    /// CopyInResponse came; the client is sending. A Sync in this state is ignored by PostgreSQL.
    Open { ignored_syncs: u32 },
    /// The client has sent CopyDone or CopyFail.
    Ended { ignored_syncs: u32 },
}

/// What a client is still waiting for when its backend is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abandoned {
    /// ReadyForQuery messages owed.
    pub readies: usize,
    /// The client is inside a group whose Sync is still to come.
    pub mid_group: bool,
}

/// A reply of ours that is due now.
#[derive(Debug, PartialEq, Eq)]
pub enum Due<N> {
    /// These bytes, for this request.
    Answer(Request, Bytes, N),
    /// ErrorResponse 25P02: the request is refused because the transaction is failed.
    Refusal(Request),
}

/// What to do with one frame from the backend.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Pass it on as the bytes it came in.
    Forward,
    /// The client never sees it.
    Swallow,
    /// Tell the client these bytes instead.
    Replace(Bytes),
}

/// What one frame from the backend means.
#[derive(Debug, PartialEq, Eq)]
pub struct Verdict<N> {
    /// What to do with the frame.
    pub action: Action,
    /// The request that it completes, with its note.
    pub completed: Option<(Request, N)>,
    /// It is a ReadyForQuery with this status.
    pub ready: Option<TransactionStatus>,
    /// It is an ErrorResponse to a message of ours: nothing of the client's was reached.
    pub ours_failed: bool,
}

/// The queue of what the backend owes one lease.
#[derive(Debug, Clone)]
pub struct Pipeline<N> {
    items: VecDeque<Item<N>>,
    /// All that is owed, where that is one group of which nothing was answered yet: no item is there then.
    group: Option<Group<N>>,
    status: TransactionStatus,
    /// The client was told that its transaction has begun, and PostgreSQL has not said so yet: until then what it says of
    /// the status is not of the client's.
    begins: bool,
    /// An extended message was sent and its Sync was not: an implicit transaction may be open.
    unsynced: bool,
    /// PostgreSQL discards what comes until Sync.
    skipping: bool,
    /// The group at hand was refused by us: what the client still sends of it is sent in silence.
    refusing: bool,
    copy_in: CopyIn,
    copy_both: bool,
    /// An error ended a COPY into which the client had sent a Sync: whether that Sync counts can't be known.
    doubtful: bool,
    /// The parameter description of a statement's Describe has come; RowDescription or NoData is still owed.
    described: bool,
    /// A command completed since the last ReadyForQuery, so that a failed block may have ended.
    completed_since_ready: bool,
    dropped: Vec<N>,
    /// The oldest of the dropped was reached, and failed; the others never were.
    oldest_failed: bool,
}

impl<N> Default for Pipeline<N> {
    fn default() -> Self {
        Self {
            items: VecDeque::new(),
            group: None,
            status: TransactionStatus::Idle,
            begins: false,
            unsynced: false,
            skipping: false,
            refusing: false,
            copy_in: CopyIn::None,
            copy_both: false,
            doubtful: false,
            described: false,
            completed_since_ready: false,
            dropped: Vec::new(),
            oldest_failed: false,
        }
    }
}

impl<N: Default> Pipeline<N> {
    /// As new; the queue's memory is kept.
    pub fn recycle(&mut self) {
        self.items.clear();
        self.group = None;
        self.dropped.clear();
        self.status = TransactionStatus::Idle;
        self.begins = false;
        self.unsynced = false;
        self.skipping = false;
        self.refusing = false;
        self.copy_in = CopyIn::None;
        self.copy_both = false;
        self.doubtful = false;
        self.described = false;
        self.completed_since_ready = false;
        self.oldest_failed = false;
    }

    /// The status of the last ReadyForQuery.
    pub const fn status(&self) -> TransactionStatus {
        self.status
    }

    /// The client was told that its transaction has begun, of which PostgreSQL knows nothing yet.
    pub const fn begin_unsent(&mut self) {
        self.status = TransactionStatus::InTransaction;
        self.begins = true;
    }

    /// The messages that begin it are sent, as a group of ours without a Sync: the client owes it none.
    pub const fn begin_sent(&mut self) {
        self.unsynced = false;
    }

    /// PostgreSQL has begun it.
    pub const fn begun(&mut self) {
        self.begins = false;
    }

    /// Nothing is owed, no COPY is open, no implicit transaction waits for its Sync, and the status is idle: the only
    /// state in which a backend may be given back.
    pub fn is_settled(&self) -> bool {
        self.owes_nothing() && self.status == TransactionStatus::Idle
    }

    /// Nothing is owed and nothing is half said, whatever the transaction's status.
    pub fn owes_nothing(&self) -> bool {
        self.is_quiet()
            && !self.unsynced
            && !self.skipping
            && !self.refusing
            && self.copy_in == CopyIn::None
            && !self.copy_both
            && !self.doubtful
    }

    /// How many replies are owed can't be known any more: the backend must be closed, and its client with it.
    pub const fn is_doubtful(&self) -> bool {
        self.doubtful
    }

    /// No reply is outstanding (an implicit transaction may still be open).
    #[inline]
    pub fn is_quiet(&self) -> bool {
        self.group.is_none() && self.items.is_empty()
    }

    /// The group at hand has failed: what the client still says before its Sync has no effect and need not be sent.
    pub const fn is_skipping(&self) -> bool {
        self.skipping || self.refusing
    }

    /// A Sync can be answered without PostgreSQL: nothing was sent since the last one, and nothing is owed.
    pub fn is_answerable(&self) -> bool {
        self.is_quiet() && !self.unsynced && !self.skipping && self.copy_in == CopyIn::None
    }

    /// The transaction is failed, as far as replies told: a statement would get 25P02.
    pub const fn is_failed(&self) -> bool {
        matches!(self.status, TransactionStatus::Failed) && !self.completed_since_ready
    }

    /// A COPY FROM STDIN waits for the client's data.
    pub const fn awaits_copy_data(&self) -> bool {
        matches!(self.copy_in, CopyIn::Open { .. })
    }

    /// A replication stream: everything passes both ways until the connection ends.
    pub const fn is_streaming_both_ways(&self) -> bool {
        self.copy_both
    }

    /// A message of the extended protocol was sent, and its Sync was not.
    pub const fn is_unsynced(&self) -> bool {
        self.unsynced
    }

    /// Requests that wait for their reply.
    pub fn len(&self) -> usize {
        self.items.len() + self.group.as_ref().map_or(0, |group| group.requests.len())
    }

    /// No request waits for its reply.
    pub fn is_empty(&self) -> bool {
        self.is_quiet()
    }

    /// The request whose reply comes next.
    pub fn head(&self) -> Option<Request> {
        if let Some(group) = &self.group {
            return group.requests.first().copied();
        }
        match self.items.front()? {
            Item::Entry(entry) => Some(entry.request),
            Item::CopyEnd => None,
        }
    }

    /// The note of the request whose reply comes next.
    pub fn head_note(&self) -> Option<&N> {
        if let Some(group) = &self.group {
            return Some(&group.note);
        }
        match self.items.front()? {
            Item::Entry(entry) => Some(&entry.note),
            Item::CopyEnd => None,
        }
    }

    /// The reply that comes next is to a message of ours.
    pub fn head_is_ours(&self) -> bool {
        matches!(self.items.front(), Some(Item::Entry(entry)) if entry.fate.is_hidden())
    }

    /// If the request at the head fails, nothing of its group has run, and nothing was sent behind that. Says whether
    /// the group's Sync was sent.
    pub fn fails_alone(&self) -> Option<bool> {
        if let Some(group) = &self.group {
            return (group.requests.last() == Some(&Request::Sync)).then_some(true);
        }
        let (last, others) = match self.items.back()? {
            Item::Entry(entry) => (entry.request, self.items.len() - 1),
            Item::CopyEnd => return None,
        };
        let extended = |item: &Item<N>| matches!(item, Item::Entry(entry) if entry.request.is_extended());
        let synced = last == Request::Sync;
        ((synced || last.is_extended()) && self.items.iter().take(others).all(extended)).then_some(synced)
    }

    /// Records a request that was sent, or that is answered by us. While PostgreSQL skips to Sync the note is dropped
    /// at once and the request need not be sent: returns whether it must be.
    pub fn expect(&mut self, request: Request, fate: Fate, note: N) -> bool {
        self.unfold();
        if request == Request::Sync {
            return self.expect_sync(fate, note);
        }
        if self.skipping || self.refusing {
            self.dropped.push(note);
            return false;
        }
        let sent = !fate.is_answer();
        // A local answer opens no transaction, but the client's Sync is still to come and must be answered in turn. A
        // Query or FunctionCall ends the implicit transaction of the group that it stands in.
        self.unsynced = match request.is_extended() {
            true => self.unsynced || sent || !self.items.is_empty(),
            false => self.unsynced && !sent,
        };
        self.items.push_back(Item::Entry(Entry { request, fate, note }));
        sent
    }

    /// Records a whole group that goes to PostgreSQL as it is, while the pipeline is settled: the same as
    /// [`Self::expect`] for one after the other with [`Fate::Forward`], the first with the note. The last is a Sync, or it
    /// is the one Query.
    #[inline]
    pub fn expect_group(&mut self, requests: &'static [Request], note: N) {
        debug_assert!(self.is_settled());
        debug_assert!(requests.last().is_some_and(|last| last.ends_with_ready()));
        self.group = Some(Group { requests, note });
    }

    /// The group that was recorded as one becomes the entries that it stands for, which is what all rules are about but
    /// those of [`Self::are_answered_by`].
    pub fn unfold(&mut self) {
        let Some(Group { requests, mut note }) = self.group.take() else {
            return;
        };
        for request in requests {
            self.items.push_back(Item::Entry(Entry {
                request: *request,
                fate: Fate::Forward,
                note: std::mem::take(&mut note),
            }));
        }
    }

    /// Whether these bytes are the replies to a group that was recorded as one, and nothing else, each whole, each a success,
    /// none of them COPY's, and the last one a ReadyForQuery with status idle, so that [`Self::settle`] may take them all for
    /// read. `is_plain_tag` tells of the body of each CommandComplete whether nobody else need look at it.
    #[inline]
    pub fn are_answered_by(&self, mut frames: &[u8], is_plain_tag: impl Fn(&[u8]) -> bool) -> bool {
        let Some(Group { requests, .. }) = &self.group else {
            return false;
        };
        let (Some(mut head), behind) = (requests.first().copied(), requests.get(1..).unwrap_or_default()) else {
            return false;
        };
        let mut owed = behind.iter();
        while let Some((tag, body, behind)) = split_frame(frames) {
            frames = behind;
            match (tag, head) {
                (b'D', Request::Query | Request::Execute) | (b'T', Request::Query) => continue,
                (b'C', Request::Query) if is_plain_tag(body) => continue,
                (b'1', Request::Parse) | (b'2', Request::Bind) | (b'3', Request::Close) => {}
                (b'T' | b'n', Request::DescribePortal) => {}
                (b'C', Request::Execute) if is_plain_tag(body) => {}
                (b'Z', Request::Query | Request::Sync) => return body == b"I" && owed.len() == 0 && frames.is_empty(),
                _ => return false,
            }
            match owed.next() {
                Some(next) => head = *next,
                None => return false,
            }
        }
        false
    }

    /// The group that was recorded as one has been answered, by what [`Self::are_answered_by`] has seen. Its note comes back.
    #[inline]
    pub fn settle(&mut self) -> Option<N> {
        self.group.take().map(|group| group.note)
    }

    fn expect_sync(&mut self, fate: Fate, note: N) -> bool {
        if let CopyIn::Open { ignored_syncs } = &mut self.copy_in {
            // PostgreSQL reads and forgets it (trap 50); it is passed on all the same. Nothing waits for a Sync, and
            // there is no end to how many may come: its note is not kept.
            *ignored_syncs = ignored_syncs.saturating_add(1);
            return true;
        }
        self.skipping = false;
        self.refusing = false;
        self.unsynced = false;
        let sent = !fate.is_answer();
        self.items.push_back(Item::Entry(Entry {
            request: Request::Sync,
            fate,
            note,
        }));
        sent
    }

    /// The client ended its COPY with CopyDone or CopyFail.
    pub fn copy_ended(&mut self) {
        self.unfold();
        match self.copy_in {
            CopyIn::Open { ignored_syncs } => self.copy_in = CopyIn::Ended { ignored_syncs },
            // In a group that has failed it is not sent.
            CopyIn::Ended { .. } | CopyIn::None if self.items.is_empty() || self.is_skipping() => {}
            // Sent ahead of a CopyInResponse, which may be another command's, or late after an error: in the second case
            // it reaches the head and goes.
            CopyIn::Ended { .. } | CopyIn::None => self.items.push_back(Item::CopyEnd),
        }
        self.pop_stale_copy_ends();
    }

    /// The reply of ours that is due now, if the next reply is one.
    pub fn next_due(&mut self) -> Option<Due<N>> {
        self.pop_stale_copy_ends();
        match self.items.front() {
            Some(Item::Entry(Entry {
                request,
                fate: Fate::AnswerUnlessFailed(_),
                ..
            })) if self.is_failed() => {
                let request = *request;
                self.refuse(request);
                return Some(Due::Refusal(request));
            }
            Some(Item::Entry(entry)) if entry.fate.is_answer() => {}
            _ => return None,
        }
        match self.items.pop_front() {
            Some(Item::Entry(Entry {
                request,
                fate: Fate::Answer(bytes) | Fate::AnswerUnlessFailed(bytes),
                note,
            })) => Some(Due::Answer(request, bytes, note)),
            _ => None,
        }
    }

    fn refuse(&mut self, request: Request) {
        if request.is_extended() {
            self.refuse_group();
        } else if let Some(Item::Entry(entry)) = self.items.pop_front() {
            self.dropped.push(entry.note);
        }
    }

    /// The head's group has its error: what was sent of it is awaited in silence, what was not is forgotten.
    fn refuse_group(&mut self) {
        let mut sent = VecDeque::new();
        while let Some(item) = self.items.pop_front() {
            match item {
                Item::Entry(Entry {
                    request: Request::Sync, ..
                }) => {
                    self.items.push_front(item);
                    break;
                }
                Item::Entry(entry) if entry.fate.is_answer() => self.dropped.insert(0, entry.note),
                Item::Entry(entry) => sent.push_back(Item::Entry(Entry {
                    fate: Fate::Silence,
                    ..entry
                })),
                Item::CopyEnd => sent.push_back(item),
            }
        }
        self.refusing = self.items.is_empty();
        while let Some(item) = sent.pop_back() {
            self.items.push_front(item);
        }
    }

    /// The group at hand may yet be refused by an answer of ours whose turn has not come. PostgreSQL, which knows nothing
    /// of that, would run what stands behind it and ends the group by itself.
    pub fn may_refuse(&self) -> bool {
        let group = self.items.iter().rev().map_while(|item| match item {
            Item::Entry(entry) => (!entry.request.ends_with_ready()).then_some(&entry.fate),
            Item::CopyEnd => None,
        });
        group
            .into_iter()
            .any(|fate| matches!(fate, Fate::AnswerUnlessFailed(_)))
    }

    /// What a client that is gone leaves owed: ReadyForQuery messages to come, whether a Sync of ours must end its last
    /// group, and whether a COPY waits for data.
    pub fn owed(&self) -> (usize, bool, bool) {
        let readies = self.items.iter().filter(
            |item| matches!(item, Item::Entry(entry) if entry.request.ends_with_ready() && !entry.fate.is_answer()),
        );
        (
            readies.count() + usize::from(self.group.is_some()),
            self.unsynced || self.skipping || self.has_open_group(),
            matches!(self.copy_in, CopyIn::Open { .. }),
        )
    }

    /// A message of the extended protocol is owed a reply, and no Sync behind it: if it fails, nothing behind it counts.
    fn has_open_group(&self) -> bool {
        let tail = self.items.iter().rev().map_while(|item| match item {
            Item::Entry(Entry {
                request: Request::Sync, ..
            }) => None,
            Item::Entry(entry) => Some(entry.request.is_extended()),
            Item::CopyEnd => Some(false),
        });
        tail.into_iter().any(|extended| extended)
    }

    /// The client's group was refused by us without a backend: what it still says before its Sync is thrown away.
    pub const fn refuse_until_sync(&mut self) {
        self.refusing = true;
    }

    /// The backend is lost: everything owed is forgotten. Returns how the client's outstanding groups end, oldest first,
    /// and leaves the notes to undo with [`Self::take_dropped`].
    pub fn abandon(&mut self) -> Abandoned {
        self.unfold();
        let mut abandoned = Abandoned {
            readies: 0,
            mid_group: self.unsynced || self.skipping,
        };
        let items = std::mem::take(&mut self.items);
        for item in items.into_iter().rev() {
            if let Item::Entry(entry) = item {
                abandoned.readies += usize::from(entry.request.ends_with_ready() && entry.fate != Fate::Swallow);
                self.dropped.push(entry.note);
            }
        }
        let dropped = std::mem::take(&mut self.dropped);
        *self = Self {
            dropped,
            ..Self::default()
        };
        abandoned
    }

    /// Notes of requests that will never be answered, youngest first: undo them in this order.
    pub fn take_dropped(&mut self) -> Vec<N> {
        std::mem::take(&mut self.dropped)
    }

    /// Whether the last of [`Self::take_dropped`]'s notes is of a request that was reached and failed. Asked before it.
    pub const fn take_oldest_failed(&mut self) -> bool {
        std::mem::replace(&mut self.oldest_failed, false)
    }

    /// The notes of requests that wait for their replies, oldest first.
    pub fn pending_mut(&mut self) -> impl Iterator<Item = &mut N> {
        self.unfold();
        self.items.iter_mut().filter_map(|item| match item {
            Item::Entry(entry) => Some(&mut entry.note),
            Item::CopyEnd => None,
        })
    }

    /// Notes wait to be undone.
    pub fn has_dropped(&self) -> bool {
        !self.dropped.is_empty()
    }

    /// Whether a frame passes without anything but this queue being concerned: a row, or the reply to a request whose
    /// note `settles`. The request is completed then. Any other frame is for [`Self::on_frame`], which knows all rules.
    #[inline]
    pub fn passes(&mut self, tag: u8, settles: impl FnOnce(&N) -> bool) -> bool {
        self.unfold();
        let Some(Item::Entry(Entry {
            request,
            fate: Fate::Forward | Fate::Substitute(..),
            note,
        })) = self.items.front()
        else {
            return false;
        };
        let completes = match (tag, request) {
            (b'D' | b'd', Request::Query | Request::Execute) | (b'T', Request::Query) => return true,
            (b'1', Request::Parse) | (b'2', Request::Bind) | (b'3', Request::Close) => true,
            (b'T' | b'n', Request::DescribePortal) => true,
            (b'C', Request::Query) if !self.copies() => {
                self.completed_since_ready = true;
                return true;
            }
            (b'C', Request::Execute) => !self.copies(),
            _ => false,
        };
        // The next reply must be PostgreSQL's, too.
        let next_is_sent = matches!(self.items.get(1), Some(Item::Entry(next)) if !next.fate.is_answer());
        let passes = completes && next_is_sent && settles(note);
        if passes {
            self.completed_since_ready |= tag == b'C';
            self.items.pop_front();
        }
        passes
    }

    fn copies(&self) -> bool {
        self.copy_both || self.copy_in != CopyIn::None
    }

    /// A frame came from the backend. The body is looked at for ReadyForQuery and ErrorResponse only.
    pub fn on_frame(&mut self, tag: BackendTag, body: &[u8]) -> Result<Verdict<N>, Violation> {
        self.unfold();
        use BackendTag as B;
        match tag {
            // Whatever the backend is doing for us meanwhile: these are for the session.
            B::NotificationResponse | B::ParameterStatus => Ok(Verdict {
                action: Action::Forward,
                completed: None,
                ready: None,
                ours_failed: false,
            }),
            B::NoticeResponse => Ok(self.passing()),
            B::ReadyForQuery => self.on_ready(body),
            B::ErrorResponse => Ok(self.on_error(body)),
            B::ParseComplete => self.complete(tag, &[Request::Parse]),
            B::BindComplete => self.complete(tag, &[Request::Bind]),
            B::CloseComplete => self.complete(tag, &[Request::Close]),
            B::ParameterDescription => self.on_parameter_description(tag),
            B::RowDescription if matches!(self.head(), Some(Request::Query)) => Ok(self.passing()),
            B::RowDescription | B::NoData => {
                self.described = false;
                self.complete(tag, &[Request::DescribeStatement, Request::DescribePortal])
            }
            B::CommandComplete | B::EmptyQueryResponse | B::PortalSuspended => self.on_command_complete(tag),
            B::DataRow | B::CopyData | B::CopyDone | B::CopyOutResponse => self.of_running_command(tag),
            B::CopyBothResponse => {
                let verdict = self.of_running_command(tag)?;
                self.copy_both = true;
                Ok(verdict)
            }
            B::CopyInResponse => self.on_copy_in(tag),
            B::FunctionCallResponse if self.head() == Some(Request::FunctionCall) => Ok(self.passing()),
            B::FunctionCallResponse | B::Authentication | B::BackendKeyData | B::NegotiateProtocolVersion => {
                Err(self.unexpected(tag))
            }
        }
    }

    fn on_ready(&mut self, body: &[u8]) -> Result<Verdict<N>, Violation> {
        let status = TransactionStatus::parse(body).map_err(|cause: Malformed| Violation::Malformed {
            message: "ReadyForQuery",
            cause,
        })?;
        self.copy_both = false;
        let mut verdict = match self.head() {
            Some(request) if request.ends_with_ready() => self.pop(),
            _ => return Err(self.unexpected(BackendTag::ReadyForQuery)),
        };
        if !self.begins {
            self.status = status;
        }
        self.copy_in = CopyIn::None;
        self.described = false;
        self.completed_since_ready = false;
        self.pop_stale_copy_ends();
        verdict.ready = Some(status);
        Ok(verdict)
    }

    fn on_error(&mut self, body: &[u8]) -> Verdict<N> {
        self.described = false;
        self.copy_both = false;
        let (swallowed, silenced, substitute) = match self.items.front() {
            Some(Item::Entry(Entry {
                fate: Fate::Swallow, ..
            })) => (true, false, None),
            Some(Item::Entry(Entry {
                fate: Fate::Silence, ..
            })) => (false, true, None),
            Some(Item::Entry(Entry {
                fate: Fate::Substitute(code, bytes),
                ..
            })) => {
                let same = sqlstate(body) == Some(&code[..]);
                (false, false, same.then(|| bytes.clone()))
            }
            _ => (false, false, None),
        };
        let head = self.head();
        let extended = head.is_some_and(Request::is_extended);
        if extended {
            self.drop_until_sync();
            self.oldest_failed = true;
        }
        if let CopyIn::Open { ignored_syncs } | CopyIn::Ended { ignored_syncs } = self.copy_in {
            self.copy_in = CopyIn::None;
            self.doubtful |= ignored_syncs > 0 && extended;
        }
        let action = match substitute {
            Some(bytes) => Action::Replace(bytes),
            None if silenced => Action::Swallow,
            // An injected Parse that fails stands for the client's Bind: the client must see why.
            None if swallowed && !extended => Action::Swallow,
            None => Action::Forward,
        };
        Verdict {
            ours_failed: swallowed && action == Action::Swallow,
            action,
            completed: None,
            ready: None,
        }
    }

    fn on_parameter_description(&mut self, tag: BackendTag) -> Result<Verdict<N>, Violation> {
        if self.head() != Some(Request::DescribeStatement) || self.described {
            return Err(self.unexpected(tag));
        }
        self.described = true;
        Ok(self.passing())
    }

    fn on_command_complete(&mut self, tag: BackendTag) -> Result<Verdict<N>, Violation> {
        self.completed_since_ready = true;
        if let CopyIn::Open { .. } | CopyIn::Ended { .. } = self.copy_in {
            self.copy_in = CopyIn::None;
        }
        self.copy_both = false;
        match self.head() {
            Some(Request::Query) => Ok(self.passing()),
            Some(Request::Execute) => Ok(self.pop()),
            _ => Err(self.unexpected(tag)),
        }
    }

    fn of_running_command(&self, tag: BackendTag) -> Result<Verdict<N>, Violation> {
        match self.head() {
            Some(Request::Query | Request::Execute) => Ok(self.passing()),
            _ if self.copy_both => Ok(self.passing()),
            _ => Err(self.unexpected(tag)),
        }
    }

    fn on_copy_in(&mut self, tag: BackendTag) -> Result<Verdict<N>, Violation> {
        let verdict = self.of_running_command(tag)?;
        // Syncs sent ahead of the data are read by the COPY and ignored (libpq sends one with each Execute). Behind the
        // client's own CopyDone they count; another message there makes PostgreSQL end the COPY with an error.
        // What we answer ourselves PostgreSQL has never seen.
        let mut next = self.next_sent();
        while let Some(Item::Entry(Entry {
            request: Request::Sync, ..
        })) = self.items.get(next)
        {
            if let Some(Item::Entry(entry)) = self.items.remove(next) {
                self.dropped.push(entry.note);
            }
            next = self.next_sent();
        }
        self.copy_in = match self.items.get(next) {
            Some(Item::CopyEnd) => {
                self.items.remove(next);
                CopyIn::Ended { ignored_syncs: 0 }
            }
            _ => {
                // Those Syncs ended nothing: the client still owes one.
                self.unsynced |= self.head() == Some(Request::Execute);
                CopyIn::Open { ignored_syncs: 0 }
            }
        };
        Ok(verdict)
    }

    /// The index of what PostgreSQL was sent next behind the request at the head.
    fn next_sent(&self) -> usize {
        let is_sent = |item: &Item<N>| !matches!(item, Item::Entry(entry) if entry.fate.is_answer());
        let behind = self.items.iter().skip(1);
        behind.take_while(|item| !is_sent(item)).count() + 1
    }

    fn complete(&mut self, tag: BackendTag, allowed: &[Request]) -> Result<Verdict<N>, Violation> {
        match self.head() {
            Some(request) if allowed.contains(&request) => Ok(self.pop()),
            _ => Err(self.unexpected(tag)),
        }
    }

    fn pop(&mut self) -> Verdict<N> {
        let action = self.action_of_head();
        let completed = match self.items.pop_front() {
            Some(Item::Entry(entry)) => Some((entry.request, entry.note)),
            _ => None,
        };
        Verdict {
            action,
            completed,
            ready: None,
            ours_failed: false,
        }
    }

    fn passing(&self) -> Verdict<N> {
        Verdict {
            action: self.action_of_head(),
            completed: None,
            ready: None,
            ours_failed: false,
        }
    }

    fn action_of_head(&self) -> Action {
        match self.items.front() {
            Some(Item::Entry(entry)) if entry.fate.is_hidden() => Action::Swallow,
            _ => Action::Forward,
        }
    }

    fn drop_until_sync(&mut self) {
        let keep_from = self
            .items
            .iter()
            .position(|item| {
                matches!(
                    item,
                    Item::Entry(Entry {
                        request: Request::Sync,
                        ..
                    })
                )
            })
            .unwrap_or(self.items.len());
        self.skipping = keep_from == self.items.len();
        let tail = self.items.split_off(keep_from);
        let gone = std::mem::replace(&mut self.items, tail);
        for item in gone.into_iter().rev() {
            if let Item::Entry(entry) = item {
                self.dropped.push(entry.note);
            }
        }
    }

    fn pop_stale_copy_ends(&mut self) {
        while matches!(self.items.front(), Some(Item::CopyEnd)) {
            self.items.pop_front();
        }
    }

    fn unexpected(&self, tag: BackendTag) -> Violation {
        let expected = match self.head() {
            None => "nothing",
            Some(Request::Parse) => "ParseComplete",
            Some(Request::Bind) => "BindComplete",
            Some(Request::DescribeStatement | Request::DescribePortal) => "a description",
            Some(Request::Execute) => "the rows or the end of an Execute",
            Some(Request::Close) => "CloseComplete",
            Some(Request::Sync) => "ReadyForQuery",
            Some(Request::Query) => "the reply to a Query",
            Some(Request::FunctionCall) => "the reply to a FunctionCall",
        };
        Violation::Unexpected {
            expected,
            got: char::from(tag.byte()),
        }
    }
}

/// The first of these frames, its tag and its body, if all of it is there; and what stands behind it.
#[inline]
fn split_frame(frames: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, a, b, c, d], _) = frames.split_first_chunk::<HEADER_LEN>()?;
    let end = (u32::from_be_bytes([a, b, c, d]) as usize).checked_add(1)?;
    let (frame, behind) = frames.split_at_checked(end)?;
    Some((tag, frame.get(HEADER_LEN..)?, behind))
}

fn sqlstate(body: &[u8]) -> Option<&[u8]> {
    crate::wire::backend_message::ReportFields::parse(body)
        .ok()
        .map(|fields| fields.sqlstate)
}

#[cfg(test)]
mod tests;
