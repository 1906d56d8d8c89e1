//! SETs that are answered by us: what PostgreSQL has accepted once needs no round trip, and no backend.
//!
//! Only between transactions, with nothing under way and no backend held. What isn't known yet passes as ever, and is a
//! [`Trial`]: what PostgreSQL says to it is remembered.

use bytes::{BufMut, Bytes, BytesMut};

use super::to_backend::Next;
use super::{Exchange, Parties};
use crate::config::PoolMode;
use crate::protocol::pipeline::{Fate, Request};
use crate::virtual_session::pins::{PinReason, PinSet};
use crate::virtual_session::setting_text::{SettingText, setting_text};
use crate::virtual_session::statement_effects::{Action, Effects};
use crate::virtual_session::{Note, Question, SettingRequest};
use crate::wire::backend_message::TransactionStatus;
use crate::wire::frontend_message::{BindHead, Execute, Named, Parse, Query, Target, bound_values};
use crate::wire::{BackendTag, FrontendTag, Header, Reader, compose};

/// Before this version a change is reported amid the reply, as it happens.
const REPORTS_LAST_SINCE: u32 = 14;
/// Types of a parameter that set_config takes as it is: unknown, text, varchar.
const TEXT_TYPES: [u32; 3] = [0, 25, 1043];

/// A SET under way, of which PostgreSQL's word is to be remembered.
#[derive(Debug)]
pub(super) struct Trial {
    request: SettingRequest,
    /// Of the memory, when it was sent.
    age: u64,
    /// The number of the settings that it made, once it has succeeded.
    made: Option<u64>,
}

/// `Parse Bind [Describe] Execute Sync` of unnamed things.
pub(super) struct Group<'a, T> {
    pub(super) parse: Parse<'a>,
    /// What its text was recognised as.
    pub(super) text: T,
    pub(super) bound: Option<Vec<u8>>,
    pub(super) is_described: bool,
    /// Of the row; 0 is text.
    result_format: i16,
    row_limit: i32,
    /// Messages.
    pub(super) len: usize,
}

impl Exchange {
    /// Answers a Query, if it is a SET that can be.
    pub(super) fn answer_query(&mut self, header: Header, parties: &mut Parties<'_>) -> Option<Next> {
        let sql = Query::parse(self.up.whole_body(header)?).ok()?.sql;
        let text = setting_text(sql)?;
        let request = self.request_of(&text, None, parties)?;
        let (value, _) = self.answerable(sql, &request, parties)?;
        let mut words = BytesMut::new();
        if text.returns_row {
            row_description(&mut words, 0);
            data_row(&mut words, &value);
        }
        command_complete(&mut words, &text);
        self.settle(&request, &value, &mut words, parties);
        let ended = parties.session.forget_unnamed(None);
        self.expect(Request::Query, Fate::Answer(words.freeze()), ended);
        self.up.skip(header);
        self.say_due();
        Some(Next::Done)
    }

    /// Answers the Parse at hand and what follows it up to its Sync, if it is a SET that can be and all of it has arrived.
    pub(super) fn answer_group(&mut self, parties: &mut Parties<'_>) -> Option<Next> {
        let group = setting_group(self.up.undecided())?;
        let request = self.request_of(&group.text, group.bound.as_deref(), parties)?;
        let (value, effects) = self.answerable(group.parse.sql, &request, parties)?;
        let unnamed = parties.session.parse_unnamed_unsent(group.parse.definition, effects);
        let (text, len, is_described) = (group.text, group.len, group.is_described);
        let mut described = BytesMut::new();
        let mut row = BytesMut::new();
        if text.returns_row {
            row_description(&mut described, group.result_format);
            data_row(&mut row, &value);
        } else {
            compose::bare_backend(&mut described, BackendTag::NoData);
        }
        command_complete(&mut row, &text);
        let mut reports = BytesMut::new();
        self.settle(&request, &value, &mut reports, parties);
        let described = is_described.then(|| described.freeze());
        self.say_group(unnamed, described, row.freeze(), reports.freeze());
        self.skip_messages(len);
        Some(Next::Done)
    }

    /// Answers the messages of a group: what its Describe is told, if it has one, its Execute, and its Sync ahead of the
    /// ReadyForQuery.
    pub(super) fn say_group(&mut self, unnamed: Note, described: Option<Bytes>, executed: Bytes, reports: Bytes) {
        self.expect(
            Request::Parse,
            Fate::Answer(Bytes::from_static(b"1\0\0\0\x04")),
            unnamed,
        );
        self.expect(
            Request::Bind,
            Fate::Answer(Bytes::from_static(b"2\0\0\0\x04")),
            Note::None,
        );
        if let Some(described) = described {
            self.expect(Request::DescribePortal, Fate::Answer(described), Note::None);
        }
        self.expect(Request::Execute, Fate::Answer(executed), Note::None);
        self.expect(Request::Sync, Fate::Answer(reports), Note::None);
        self.say_due();
    }

    /// The next messages, which have arrived, are answered.
    pub(super) fn skip_messages(&mut self, count: usize) {
        for _ in 0..count {
            if let Ok(Some(header)) = self.up.next_header() {
                self.up.skip(header);
            }
        }
    }

    /// What a text asks for, where this could be answered or learned.
    fn request_of(&self, text: &SettingText, bound: Option<&[u8]>, parties: &Parties<'_>) -> Option<SettingRequest> {
        let is_alone = self.pipeline.is_settled() && self.lost.is_none() && parties.subscription.is_none();
        let rules = parties.rules;
        let is_able = rules.setting_answers > 0
            && rules.mode != PoolMode::Session
            && parties.neutral.server_major_version() >= REPORTS_LAST_SINCE;
        if !is_alone || !is_able {
            return None;
        }
        let neutral = |name: &str| parties.neutral.get(name);
        parties.session.setting_request(text, bound, neutral)
    }

    /// The value that PostgreSQL would make of it, and the effects of the text, where that is known.
    fn answerable(&self, sql: &[u8], request: &SettingRequest, parties: &Parties<'_>) -> Option<(Box<str>, Effects)> {
        let value = parties
            .session
            .answers()
            .value(request)
            .filter(|_| self.lease.is_none())?;
        let effects = self.classify(sql, parties);
        // The catalog may know a routine of the name that does something else.
        is_one_setting(&effects).then_some((value, effects))
    }

    /// The ledger is as if PostgreSQL had answered, and `words` say what it would report.
    fn settle(&mut self, request: &SettingRequest, value: &str, words: &mut BytesMut, parties: &mut Parties<'_>) {
        let neutral = &**parties.neutral;
        let find = |name: &str| neutral.iter().find(|(other, _)| other.eq_ignore_ascii_case(name));
        parties.session.setting_answered(request, value, find(request.name()));
        for (name, value) in parties.session.news(find) {
            compose::parameter_status(words, &name, &value);
        }
        self.tally.queries += 1;
        self.tally.transactions += 1;
        self.tally.setting_answers += 1;
        self.answered_at = Some(std::time::Instant::now());
    }

    // --- learning ---

    /// What PostgreSQL is about to be asked by a Query of these effects, if that is worth remembering.
    pub(super) fn trial_of_query(&self, sql: &[u8], effects: &Effects, parties: &Parties<'_>) -> Option<Box<Trial>> {
        if !is_one_setting(effects) || self.lease.as_ref().is_none_or(|lease| lease.is_dedicated()) {
            return None;
        }
        let request = self.request_of(&setting_text(sql)?, None, parties)?;
        Some(Box::new(Trial::new(request, parties)))
    }

    /// The same by an unnamed Parse and what follows it.
    pub(super) fn trial_of_group(&self, effects: &Effects, parties: &Parties<'_>) -> Option<Box<Trial>> {
        let is_one = effects.steps.len() == 1 && effects.pins == PinSet::of(PinReason::Setting);
        if !is_one || self.lease.as_ref().is_none_or(|lease| lease.is_dedicated()) {
            return None;
        }
        let group = setting_group(self.up.undecided())?;
        let request = self.request_of(&group.text, group.bound.as_deref(), parties)?;
        Some(Box::new(Trial::new(request, parties)))
    }

    /// A ReadyForQuery of the client's: the trial's, if there is one that has not ended.
    pub(super) fn trial_at_ready(&mut self, status: TransactionStatus, parties: &Parties<'_>) {
        let Some(mut trial) = self.trial.take().filter(|trial| trial.made.is_none()) else {
            return;
        };
        // What is under way behind it may change the setting again.
        if status != TransactionStatus::Idle || !self.pipeline.is_quiet() {
            return;
        }
        let Some(lease) = &self.lease else {
            return;
        };
        let is_of_it = |(name, _): &(&str, &[u8])| name.eq_ignore_ascii_case(trial.request.name());
        match lease.parameters.iter().find(is_of_it) {
            Some((_, value)) => {
                if let Ok(value) = std::str::from_utf8(value) {
                    trial.succeeded(value, parties);
                }
            }
            None => {
                trial.made = Some(parties.session.unseen_settings());
                self.trial = Some(trial);
            }
        }
    }
}

impl Trial {
    fn new(request: SettingRequest, parties: &Parties<'_>) -> Self {
        Self {
            request,
            age: parties.session.answers().age(),
            made: None,
        }
    }

    /// PostgreSQL was asked for settings that it doesn't report, and has answered with this row: what it has made of it.
    pub(super) fn with_value_in(self: Box<Self>, question: &Question, row: &[u8]) -> Option<(Box<Self>, String)> {
        let value = question.value_of(self.request.name(), self.made?, row)?;
        Some((self, value))
    }

    /// PostgreSQL has made this of it.
    pub(super) fn succeeded(self, value: &str, parties: &Parties<'_>) {
        let count_max = parties.rules.setting_answers;
        parties
            .session
            .answers()
            .learn(self.request, value, self.age, count_max);
    }
}

/// A statement of these effects gives one setting a value, and nothing speaks against it.
fn is_one_setting(effects: &Effects) -> bool {
    matches!(effects.steps.as_slice(), [step] if matches!(step.action, Action::Setting(_)))
        && effects.statement_count == 1
        && effects.pins == PinSet::of(PinReason::Setting)
}

/// A group whose text gives a setting a value.
fn setting_group(bytes: &[u8]) -> Option<Group<'_, SettingText>> {
    // A row limit suspends the portal of a SELECT, and means nothing to a SET.
    Group::read(bytes, setting_text).filter(|group| !group.text.returns_row || group.row_limit == 0)
}

impl<'a, T> Group<'a, T> {
    /// Reads it off what has arrived; `None` where that is something else, or not all of it.
    pub(super) fn read(bytes: &'a [u8], recognise: impl FnOnce(&[u8]) -> Option<T>) -> Option<Self> {
        let mut frames = Frames(bytes);
        let parse = Parse::parse(frames.next_of(FrontendTag::Parse)?).ok()?;
        let text = recognise(parse.sql).filter(|_| parse.name.is_empty())?;
        let body = frames.next_of(FrontendTag::Bind)?;
        let (bound, result_format) = read_bind(body)?;
        let types = parse.definition.get(parse.sql.len() + 1..)?;
        if !types_are_text(types, usize::from(bound.is_some())) {
            return None;
        }
        let mut group = Self {
            is_described: false,
            bound,
            result_format,
            row_limit: 0,
            len: 4,
            parse,
            text,
        };
        if let Some(body) = frames.next_of(FrontendTag::Describe) {
            let named = Named::parse(body).ok()?;
            if named.target != Target::Portal || !named.name.is_empty() {
                return None;
            }
            (group.is_described, group.len) = (true, 5);
        }
        let execute = Execute::parse(frames.next_of(FrontendTag::Execute)?).ok()?;
        if !execute.portal.is_empty() {
            return None;
        }
        group.row_limit = execute.row_limit;
        frames.next_of(FrontendTag::Sync).map(|_| group)
    }
}

/// Whole messages in a row.
struct Frames<'a>(&'a [u8]);

impl<'a> Frames<'a> {
    /// The body of the next, if it is one of this kind.
    fn next_of(&mut self, tag: FrontendTag) -> Option<&'a [u8]> {
        let header = Header::peek(self.0).ok()??;
        if header.frontend() != Ok(tag) {
            return None;
        }
        let (frame, rest) = self.0.split_at_checked(header.frame_len())?;
        self.0 = rest;
        frame.get(crate::wire::HEADER_LEN..)
    }
}

/// Whether a Parse prescribes no types (behind its text), or one that is text, of as many parameters as there are values.
fn types_are_text(types: &[u8], values: usize) -> bool {
    let mut reader = Reader::new(types);
    match reader.i16() {
        Ok(0) => true,
        Ok(1) if values == 1 => reader
            .i32()
            .is_ok_and(|oid| u32::try_from(oid).is_ok_and(|oid| TEXT_TYPES.contains(&oid))),
        _ => false,
    }
}

/// The one value of a Bind of unnamed things, if there is one, and the format of its results. Text is the same in both
/// formats.
fn read_bind(body: &[u8]) -> Option<(Option<Vec<u8>>, i16)> {
    let head = BindHead::parse(body).ok()?;
    let values = bound_values(body).ok()?;
    let bound = match values.as_slice() {
        [] => None,
        [Some(value)] => Some(value.to_vec()),
        _ => return None,
    };
    let mut reader = Reader::new(body.get(head.portal.len() + head.statement.len() + 2..)?);
    let formats = reader.i16().ok()?;
    let is_plain =
        head.portal.is_empty() && head.statement.is_empty() && usize::try_from(formats).ok()? <= values.len();
    for _ in 0..formats {
        reader.i16().ok().filter(|format| matches!(format, 0 | 1))?;
    }
    reader.i16().ok()?;
    for value in &values {
        reader.i32().ok()?;
        reader.bytes(value.map_or(0, <[u8]>::len)).ok()?;
    }
    let result_format = match reader.i16().ok()? {
        0 => 0,
        1 => reader.i16().ok().filter(|format| matches!(format, 0 | 1))?,
        _ => return None,
    };
    reader
        .finish()
        .ok()
        .filter(|()| is_plain)
        .map(|()| (bound, result_format))
}

/// RowDescription of `set_config(…)`: a text that comes from no table.
fn row_description(out: &mut BytesMut, format: i16) {
    let mut body = BytesMut::new();
    body.put_i16(1);
    body.put_slice(b"set_config\0");
    body.put_u32(0);
    body.put_i16(0);
    body.put_u32(25);
    body.put_i16(-1);
    body.put_i32(-1);
    body.put_i16(format);
    compose::frame(out, BackendTag::RowDescription.byte(), &[&body]);
}

fn data_row(out: &mut BytesMut, value: &str) {
    let len = u32::try_from(value.len()).unwrap_or(u32::MAX);
    compose::frame(
        out,
        BackendTag::DataRow.byte(),
        &[&1_i16.to_be_bytes(), &len.to_be_bytes(), value.as_bytes()],
    );
}

fn command_complete(out: &mut BytesMut, text: &SettingText) {
    let tag: &[u8] = if text.returns_row { b"SELECT 1\0" } else { b"SET\0" };
    compose::frame(out, BackendTag::CommandComplete.byte(), &[tag]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(values: &[&[u8]], formats: &[i16], results: &[i16]) -> Vec<u8> {
        let mut body = BytesMut::from(&b"\0\0"[..]);
        let formats_of = |body: &mut BytesMut, formats: &[i16]| {
            body.put_i16(i16::try_from(formats.len()).unwrap());
            formats.iter().for_each(|format| body.put_i16(*format));
        };
        formats_of(&mut body, formats);
        body.put_i16(i16::try_from(values.len()).unwrap());
        for value in values {
            body.put_i32(i32::try_from(value.len()).unwrap());
            body.put_slice(value);
        }
        formats_of(&mut body, results);
        body.to_vec()
    }

    fn group(sql: &[u8], types: &[u8], bind: &[u8], limit: i32, describe: Option<&[u8]>) -> Vec<u8> {
        let mut out = BytesMut::new();
        compose::parse(&mut out, b"", &[sql, b"\0", types].concat());
        compose::frame(&mut out, b'B', &[bind]);
        if let Some(target) = describe {
            compose::frame(&mut out, b'D', &[target]);
        }
        compose::frame(&mut out, b'E', &[b"\0", &limit.to_be_bytes()]);
        compose::bare_frontend(&mut out, FrontendTag::Sync);
        out.to_vec()
    }

    const CALL: &[u8] = b"SELECT set_config('TimeZone', $1, false)";
    const SET: &[u8] = b"SET TimeZone TO 'UTC'";

    #[test]
    fn the_groups_of_drivers_are_recognised() {
        let text = b"\0\x01\0\0\0\x19";
        for (bytes, len, format) in [
            (group(CALL, b"\0\0", &bind(&[b"UTC"], &[], &[]), 0, Some(b"P\0")), 5, 0),
            (group(CALL, text, &bind(&[b"UTC"], &[1], &[1]), 0, Some(b"P\0")), 5, 1),
            (group(CALL, text, &bind(&[b"UTC"], &[0], &[0]), 0, None), 4, 0),
            // pgjdbc limits what it throws away to one row.
            (group(SET, b"\0\0", &bind(&[], &[], &[]), 1, None), 4, 0),
        ] {
            let found = setting_group(&bytes).expect("a group");
            assert_eq!((found.len, found.result_format), (len, format));
            for cut in 0..bytes.len() {
                assert!(setting_group(&bytes[..cut]).is_none(), "{cut}");
            }
        }
    }

    #[test]
    fn a_group_that_may_be_refused_or_answered_otherwise_is_not_recognised() {
        let good = bind(&[b"UTC"], &[], &[]);
        for bytes in [
            group(CALL, b"\0\x01\0\0\0\x17", &good, 0, None),
            // One value too few.
            group(SET, b"\0\x01\0\0\0\x19", &bind(&[], &[], &[]), 0, None),
            group(CALL, b"\0\x02\0\0\0\0\0\0\0\0", &good, 0, None),
            group(CALL, b"\0\0", &good, 1, None),
            group(CALL, b"\0\0", &bind(&[b"UTC", b"UTC"], &[], &[]), 0, None),
            group(CALL, b"\0\0", &bind(&[b"UTC"], &[2], &[]), 0, None),
            group(CALL, b"\0\0", &bind(&[b"UTC"], &[0, 0], &[]), 0, None),
            group(CALL, b"\0\0", &bind(&[b"UTC"], &[], &[0, 0]), 0, None),
            group(CALL, b"\0\0", &bind(&[b"UTC"], &[], &[7]), 0, None),
            group(CALL, b"\0\0", &[bind(&[b"UTC"], &[], &[]), vec![0]].concat(), 0, None),
            group(CALL, b"\0\0", &good, 0, Some(b"S\0")),
            group(CALL, b"\0\0", &good, 0, Some(b"Px\0")),
            group(b"SELECT $1", b"\0\0", &good, 0, None),
        ] {
            assert!(setting_group(&bytes).is_none(), "{bytes:?}");
        }
    }
}
