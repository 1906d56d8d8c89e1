//! The queue of what a backend owes: under any messages, and before a PostgreSQL that keeps the rules.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Bytes, BytesMut};

use crate::protocol::pipeline::{Due, Fate, Pipeline, Request};
use crate::wire::{BackendTag, compose};

/// Longer inputs find nothing that shorter ones don't.
const INPUT_LEN_MAX: usize = 2048;
/// Requests under way at a time; the relay has a bound too.
const REQUESTS_MAX: usize = 64;

const REQUESTS: [Request; 9] = [
    Request::Parse,
    Request::Bind,
    Request::DescribeStatement,
    Request::DescribePortal,
    Request::Execute,
    Request::Close,
    Request::Sync,
    Request::Query,
    Request::FunctionCall,
];

/// Groups that are recorded as one.
const GROUPS: [&[Request]; 4] = [
    &[Request::Query],
    &[
        Request::Parse,
        Request::Bind,
        Request::DescribePortal,
        Request::Execute,
        Request::Sync,
    ],
    &[Request::Bind, Request::Execute, Request::Sync],
    &[Request::Close, Request::Sync],
];
/// The first choice of one of them.
const GROUPS_FROM: usize = 128 - GROUPS.len();

const FRAMES: [BackendTag; 22] = [
    BackendTag::ParseComplete,
    BackendTag::BindComplete,
    BackendTag::CloseComplete,
    BackendTag::ParameterDescription,
    BackendTag::RowDescription,
    BackendTag::NoData,
    BackendTag::DataRow,
    BackendTag::CommandComplete,
    BackendTag::EmptyQueryResponse,
    BackendTag::PortalSuspended,
    BackendTag::ErrorResponse,
    BackendTag::ReadyForQuery,
    BackendTag::CopyInResponse,
    BackendTag::CopyOutResponse,
    BackendTag::CopyBothResponse,
    BackendTag::CopyData,
    BackendTag::CopyDone,
    BackendTag::FunctionCallResponse,
    BackendTag::NoticeResponse,
    BackendTag::NotificationResponse,
    BackendTag::ParameterStatus,
    BackendTag::BackendKeyData,
];

/// A byte per message behind one that chooses the backend: 0 any messages whatever, else one that keeps the rules.
pub(super) fn run(data: &[u8]) {
    let Some((&selector, messages)) = data.split_first() else {
        return;
    };
    let messages = messages.get(..INPUT_LEN_MAX).unwrap_or(messages);
    if selector % 2 == 0 {
        before_anyone(messages);
    } else {
        before_postgresql(messages);
    }
}

/// The queue, and what was entrusted to it.
#[derive(Default)]
struct Account {
    line: Pipeline<u32>,
    notes: u32,
    /// Notes that have not come back, with their requests.
    out: BTreeMap<u32, Request>,
    /// ReadyForQuery messages that may still come.
    readies: usize,
    /// The client is in a group of which something may yet be refused by us.
    may_refuse: bool,
}

impl Account {
    fn expect(&mut self, request: Request, fate: Fate) -> bool {
        self.may_refuse &= request != Request::Sync;
        self.may_refuse |= matches!(fate, Fate::AnswerUnlessFailed(_));
        self.notes += 1;
        self.out.insert(self.notes, request);
        let sent = self.line.expect(request, fate, self.notes);
        self.readies += usize::from(sent && ends_with_ready(request));
        self.check();
        sent
    }

    /// False: the backend broke the protocol.
    fn on_frame(&mut self, tag: BackendTag, body: &[u8]) -> bool {
        let (head, mut settled) = (self.line.head(), None);
        let settles = |note: &u32| {
            settled = Some(*note);
            true
        };
        if self.line.passes(tag.byte(), settles) {
            if let Some(note) = settled {
                let request = self.came_back(note);
                assert!(
                    request.is_none() || request == head,
                    "what passes completes the request at the head"
                );
            }
            self.check();
            return true;
        }
        let Ok(verdict) = self.line.on_frame(tag, body) else {
            return false;
        };
        if let Some((request, note)) = verdict.completed {
            let own = self.came_back(note);
            assert_eq!(own.unwrap_or(request), request, "a reply completes its own request");
        }
        if verdict.ready.is_some() {
            assert!(self.readies > 0, "no more ReadyForQuery than requests for it");
            self.readies -= 1;
        }
        self.check();
        true
    }

    /// A whole group at once.
    fn expect_group(&mut self, requests: &'static [Request]) {
        self.notes += 1;
        self.out.insert(self.notes, requests[0]);
        self.line.expect_group(requests, self.notes);
        self.readies += 1;
        self.check();
    }

    /// Frames that were read at once. False: the backend broke the protocol. What is taken for read in one look comes to the
    /// same as frame by frame.
    fn on_frames(&mut self, frames: &[(BackendTag, &[u8])]) -> bool {
        let mut bytes = BytesMut::new();
        for (tag, body) in frames {
            compose::frame(&mut bytes, tag.byte(), &[body]);
        }
        let mut short = self.line.clone();
        let is_short = short.are_answered_by(&bytes, |_| true);
        let is_lawful = frames.iter().all(|(tag, body)| self.on_frame(*tag, body));
        if is_short {
            let note = short.settle();
            assert!(
                note.is_some_and(|note| !self.out.contains_key(&note)),
                "it came back the long way, too"
            );
            assert!(is_lawful && short.is_settled());
            assert_eq!(format!("{short:?}"), format!("{:?}", self.line));
        }
        is_lawful
    }

    fn copy_ended(&mut self) {
        self.line.copy_ended();
        self.check();
    }

    /// The request that the note is of. 0 is that of none: all but the first of a group.
    fn came_back(&mut self, note: u32) -> Option<Request> {
        (note != 0).then(|| self.out.remove(&note).expect("a note comes back once"))
    }

    fn take_dropped(&mut self) {
        self.line.take_oldest_failed();
        let dropped = self.line.take_dropped();
        for note in dropped {
            self.came_back(note);
        }
    }

    fn check(&mut self) {
        self.take_dropped();
        while let Some(due) = self.line.next_due() {
            if let Due::Answer(request, _, note) = due {
                assert_eq!(self.came_back(note), Some(request));
            }
            self.take_dropped();
        }
        let (ready, sync_missing, copy_in) = self.line.owed();
        assert!(ready <= self.readies, "no more is owed than was asked for");
        if self.line.is_settled() {
            assert_eq!((ready, sync_missing, copy_in), (0, false, false));
            assert!(self.line.is_quiet() && !self.line.is_skipping() && !self.line.is_unsynced());
            // A Sync inside a COPY is nobody's, and its note is not kept.
            assert!(
                self.out.values().all(|request| *request == Request::Sync),
                "every note was confirmed or undone"
            );
        }
    }

    /// The backend is lost: everything comes back, and nothing is owed.
    fn abandon(mut self) {
        self.line.abandon();
        self.check();
        assert!(self.line.is_settled());
    }
}

const fn ends_with_ready(request: Request) -> bool {
    matches!(request, Request::Sync | Request::Query | Request::FunctionCall)
}

fn fate_of(choice: u8) -> Fate {
    match choice % 6 {
        0 => Fate::Forward,
        1 => Fate::Swallow,
        2 => Fate::Answer(Bytes::new()),
        3 => Fate::AnswerUnlessFailed(Bytes::new()),
        4 => Fate::Silence,
        _ => Fate::Substitute(*b"42P05", Bytes::new()),
    }
}

const STATUSES: [&[u8]; 4] = [b"I", b"T", b"E", b"?"];
const ERRORS: [&[u8]; 2] = [b"SERROR\0C42P05\0\0", b"SERROR\0C42601\0\0"];

/// Requests and frames as they fall, up to the first that no PostgreSQL would have sent.
fn before_anyone(messages: &[u8]) {
    let mut account = Account::default();
    for &message in messages {
        let (is_frame, choice) = (message & 0x80 != 0, message & 0x7f);
        if is_frame {
            let at = usize::from(choice) % FRAMES.len();
            let variant = usize::from(choice) / FRAMES.len();
            let body = match FRAMES[at] {
                BackendTag::ReadyForQuery => STATUSES[variant % STATUSES.len()],
                BackendTag::ErrorResponse => ERRORS[variant % ERRORS.len()],
                _ => b"",
            };
            if !account.on_frame(FRAMES[at], body) {
                break;
            }
        } else if account.line.len() < REQUESTS_MAX {
            match REQUESTS.get(usize::from(choice) % (REQUESTS.len() + 2)) {
                Some(&request) => {
                    account.expect(request, fate_of(choice / 11));
                }
                None if choice % 11 == 9 => account.copy_ended(),
                None if account.line.is_settled() => account.line.refuse_until_sync(),
                None => {}
            }
        }
    }
    account.abandon();
}

/// What was sent to the backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    Request(Request),
    /// CopyDone or CopyFail.
    CopyEnd,
}

/// The message flow of PostgreSQL (manual: protocol-flow), with outcomes by choice.
#[derive(Debug, Default)]
struct Server {
    inbox: VecDeque<Sent>,
    /// It discards what comes until Sync.
    is_skipping: bool,
    /// The request whose COPY FROM STDIN reads from the client.
    copying: Option<Request>,
    /// The transaction is failed: what is not a ROLLBACK fails.
    is_failed: bool,
    /// It has closed the connection.
    is_gone: bool,
}

type Frames = Vec<(BackendTag, &'static [u8])>;

impl Server {
    /// Reads one message and answers it.
    fn step(&mut self, choice: u8) -> Frames {
        let frames = self.answer(choice);
        for (tag, body) in &frames {
            match tag {
                BackendTag::ReadyForQuery => self.is_failed = *body == b"E",
                BackendTag::CommandComplete => self.is_failed = false,
                _ => {}
            }
        }
        frames
    }

    /// The same for one message; by the first choice for all that it was sent.
    fn answer_some(&mut self, choice: u8) -> Frames {
        let messages = if choice == 0 { self.inbox.len() } else { 1 };
        (0..messages).flat_map(|_| self.step(choice)).collect()
    }

    fn answer(&mut self, choice: u8) -> Frames {
        let status = STATUSES[usize::from(choice >> 5) % 3];
        let fails = choice % 4 == 3;
        if let Some(running) = self.copying {
            return self.step_of_copy(running, fails, status);
        }
        match self.inbox.pop_front() {
            None | Some(Sent::CopyEnd) => Frames::new(),
            Some(Sent::Request(Request::Sync)) => {
                self.is_skipping = false;
                vec![(BackendTag::ReadyForQuery, status)]
            }
            Some(Sent::Request(_)) if self.is_skipping => Frames::new(),
            Some(Sent::Request(request)) if fails => self.fail(request, status),
            Some(Sent::Request(request)) => self.succeed(request, choice / 4, status),
        }
    }

    fn step_of_copy(&mut self, running: Request, fails: bool, status: &'static [u8]) -> Frames {
        match self.inbox.front() {
            // An error in the data, whenever that is read.
            None if fails => {
                self.copying = None;
                self.fail(running, status)
            }
            None => Frames::new(),
            Some(Sent::CopyEnd) => {
                self.inbox.pop_front();
                self.copying = None;
                if fails {
                    return self.fail(running, status);
                }
                let mut frames = vec![(BackendTag::CommandComplete, &b""[..])];
                if ends_with_ready(running) {
                    frames.push((BackendTag::ReadyForQuery, status));
                }
                frames
            }
            // Read and forgotten.
            Some(Sent::Request(Request::Sync)) => {
                self.inbox.pop_front();
                Frames::new()
            }
            // It loses the synchronisation of the protocol over it.
            Some(Sent::Request(_)) => {
                self.is_gone = true;
                Frames::new()
            }
        }
    }

    fn fail(&mut self, request: Request, status: &'static [u8]) -> Frames {
        let mut frames = vec![(BackendTag::ErrorResponse, ERRORS[usize::from(status == b"T")])];
        if ends_with_ready(request) {
            frames.push((BackendTag::ReadyForQuery, status));
        } else {
            self.is_skipping = true;
        }
        frames
    }

    fn succeed(&mut self, request: Request, choice: u8, status: &'static [u8]) -> Frames {
        use BackendTag as B;
        let description = if choice.is_multiple_of(2) {
            B::RowDescription
        } else {
            B::NoData
        };
        let mut tags = match request {
            Request::Parse => vec![B::ParseComplete],
            Request::Bind => vec![B::BindComplete],
            Request::Close => vec![B::CloseComplete],
            Request::DescribeStatement => vec![B::ParameterDescription, description],
            Request::DescribePortal => vec![description],
            Request::FunctionCall => vec![B::FunctionCallResponse],
            Request::Execute | Request::Query if self.is_failed => vec![B::CommandComplete],
            Request::Execute | Request::Query if choice % 4 == 3 => {
                self.copying = Some(request);
                return vec![(B::CopyInResponse, b"")];
            }
            Request::Execute => match choice % 4 {
                0 => vec![B::DataRow, B::CommandComplete],
                1 => vec![B::DataRow, B::PortalSuspended],
                _ => vec![B::EmptyQueryResponse],
            },
            Request::Query => match choice % 4 {
                0 => vec![B::RowDescription, B::DataRow, B::CommandComplete],
                1 => vec![B::CopyOutResponse, B::CopyData, B::CopyDone, B::CommandComplete],
                _ => vec![B::NoticeResponse, B::EmptyQueryResponse],
            },
            Request::Sync => Vec::new(),
        };
        if ends_with_ready(request) {
            tags.push(B::ReadyForQuery);
        }
        let body = |tag| if tag == B::ReadyForQuery { status } else { b"" };
        tags.into_iter().map(|tag| (tag, body(tag))).collect()
    }

    /// It has answered all that it was sent. The end of a COPY that is over already is nothing to it.
    fn owes_nothing(&self) -> bool {
        !self.is_skipping && self.copying.is_none() && self.inbox.iter().all(|sent| *sent == Sent::CopyEnd)
    }
}

/// A client's messages by the relay's rules, and PostgreSQL's answers at any time: none of these is a violation, and what
/// is settled here is settled there.
fn before_postgresql(messages: &[u8]) {
    let (mut account, mut server) = (Account::default(), Server::default());
    for &message in messages {
        if message & 1 == 1 {
            let frames = server.answer_some(message >> 1);
            assert!(account.on_frames(&frames), "{frames:?} is PostgreSQL's own");
        } else {
            say(&mut account, &mut server, message >> 1);
        }
        if server.is_gone || account.line.is_doubtful() {
            break;
        }
        if account.line.is_settled() {
            assert!(server.owes_nothing(), "{server:?} has not answered all");
        }
    }
    account.abandon();
}

fn say(account: &mut Account, server: &mut Server, choice: u8) {
    if account.line.len() >= REQUESTS_MAX {
        return;
    }
    if let Some(group) = GROUPS.get(usize::from(choice).wrapping_sub(GROUPS_FROM)) {
        if account.line.is_settled() && !account.may_refuse {
            account.expect_group(group);
            server.inbox.extend(group.iter().map(|request| Sent::Request(*request)));
        }
        return;
    }
    let Some(&request) = REQUESTS.get(usize::from(choice) % 10) else {
        account.copy_ended();
        if !account.line.is_skipping() && !account.line.is_quiet() {
            server.inbox.push_back(Sent::CopyEnd);
        }
        return;
    };
    let fate = match (request, choice / 10 % 6) {
        (Request::Sync, _) if account.line.is_answerable() => Fate::Answer(Bytes::new()),
        (Request::Sync, _) => Fate::Forward,
        _ if account.line.is_skipping() => return,
        // Not tried: behind a refusal of ours PostgreSQL runs it, where behind one of its own it would not.
        (Request::Query | Request::FunctionCall, _) if account.may_refuse => return,
        (Request::Query, 1) if account.line.is_settled() => Fate::Swallow,
        (Request::Query | Request::FunctionCall, _) => Fate::Forward,
        // Only what is known to succeed is answered by us.
        (Request::Execute, _) => Fate::Forward,
        (_, 4) => Fate::Forward,
        (_, choice) => fate_of(choice),
    };
    if account.expect(request, fate) {
        server.inbox.push_back(Sent::Request(request));
    }
}

#[cfg(test)]
mod tests {
    use crate::fuzzing::tests::returns_for_random_inputs;

    #[test]
    fn what_is_settled_owes_nothing_whatever_was_said() {
        returns_for_random_inputs(super::run, 10_000, 40..100);
    }
}
