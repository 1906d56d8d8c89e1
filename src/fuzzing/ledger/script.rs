//! What clients say and what befalls them, from bytes: one for who and what, then what that needs.

/// Statements that the model server knows, and a few that it does not.
const TEXTS: [&str; 76] = [
    "begin",
    "commit",
    "rollback",
    "select 1",
    "select 1/0",
    "savepoint s",
    "rollback to s",
    "release s",
    "savepoint r",
    "rollback to savepoint r",
    "commit and chain",
    "rollback and chain",
    "set work_mem = '7MB'",
    "set work_mem = '4MB'",
    "set work_mem to default",
    "set local work_mem = '8MB'",
    "reset work_mem",
    "set sort_mem = '9MB'",
    "set work_mem = 'bad'",
    "select set_config('work_mem', '6MB', false)",
    "select set_config('work_mem', '6MB', true)",
    "select set_config('work_mem', '5MB', false) where false",
    "set app.a = 'one'",
    "set app.a to two",
    "set local app.a = 'three'",
    "reset app.a",
    "set app.a to default",
    "select set_config('app.a', '', false)",
    "select set_config('app.b', 'x', false), set_config('work_mem', '3MB', false)",
    "set local app.b to 'y'",
    "select current_setting('app.a', true)",
    "select current_setting('app.b', true), current_setting('work_mem', true)",
    "set role team",
    "set role admin",
    "set role none",
    "reset role",
    "set local role admin",
    "set role nobody",
    "select set_config('role', 'team', false)",
    "set time zone 'Paris'",
    "set timezone to UTC",
    "set time zone default",
    "set local timezone = 'Rome'",
    "reset timezone",
    "set time zone 'not a zone'",
    "select set_config('TimeZone', 'Oslo', false)",
    "set application_name = 'one'",
    "set application_name to 'two'",
    "set local application_name = 'three'",
    "reset application_name",
    "set standard_conforming_strings = off",
    "set standard_conforming_strings to on",
    "set local standard_conforming_strings to off",
    "reset standard_conforming_strings",
    "set application_name = 'a\\'; set role admin; --'",
    "select set_config('app.a', 'a\\', false); set work_mem = '2MB'; --', false)",
    "reset all",
    "discard all",
    "reset session authorization",
    "set lock_timeout = '5s'",
    "set lock_timeout = '5ms'",
    "set local lock_timeout = '6s'",
    "reset lock_timeout",
    "set idle_session_timeout = '9s'",
    "reset idle_session_timeout",
    "do 'work_mem=2MB'",
    "do 'TimeZone=Hidden'",
    "do 'app.c=hidden'",
    "listen x",
    "select set_config('app.a', 'it''s', false); select current_setting('app.a', true)",
    "select f(1)",
    "/* a */ set -- b\n session \"work_mem\" to '1MB'",
    "set app.a = e'\\x41'",
    "",
    "set",
    "select 'a",
];

/// What happens next.
#[derive(Debug)]
pub(super) enum Op {
    /// The client says this, and waits for its answer.
    Say(Vec<u8>),
    /// It says this and does not wait.
    SayOn(Vec<u8>),
    /// One reply comes.
    Step,
    Drain,
    /// From now on questions of ours are not answered before the client speaks again; or they are.
    Hold,
    QuestionFails,
    PreludeFails,
    /// The client says this, and its backend is lost before a byte of it is sent.
    BackendGone(Vec<u8>),
    /// It goes, and another comes with other startup settings.
    Leave(usize),
}

pub(super) struct Script<'d>(&'d [u8]);

impl<'d> Script<'d> {
    pub(super) const fn new(data: &'d [u8]) -> Self {
        Self(data)
    }

    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// A client, and what it does.
    pub(super) fn next_op(&mut self) -> Option<(usize, Op)> {
        let byte = self.byte()?;
        let op = match byte >> 2 {
            0..=27 => Op::Say(self.text()),
            28..=45 => Op::SayOn(self.text()),
            46..=49 => Op::Step,
            50..=52 => Op::Drain,
            53 | 54 => Op::Hold,
            55 => Op::QuestionFails,
            56 => Op::PreludeFails,
            57..=59 => Op::BackendGone(self.text()),
            _ => Op::Leave(usize::from(byte >> 2)),
        };
        Some((usize::from(byte & 3), op))
    }

    /// One text or several in one, or bytes as they are.
    fn text(&mut self) -> Vec<u8> {
        let choice = self.byte().unwrap_or_default();
        let text = |choice: u8| {
            TEXTS
                .get(usize::from(choice))
                .map_or(&b"select 1"[..], |text| text.as_bytes())
        };
        match choice {
            0..=159 => text(choice % 80).to_vec(),
            160..=247 => {
                let count = 2 + choice % 4;
                let texts: Vec<_> = (0..count).map(|_| text(self.byte().unwrap_or_default() % 80)).collect();
                texts.join(&b"; "[..])
            }
            _ => {
                let len = usize::from(self.byte().unwrap_or_default() % 64).min(self.0.len());
                let (raw, rest) = self.0.split_at(len);
                self.0 = rest;
                // A Query's text ends at its first zero.
                raw.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
            }
        }
    }
}
