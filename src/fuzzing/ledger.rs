//! Clients that share backends, beside a backend of its own for each: whatever statement of a client runs, it runs under the
//! settings that it would have there, it is answered as there, and the client is told the same of its settings.
//!
//! Real: the classifier, the ledgers ([`VirtualSession`], [`BackendState`]), the SQL that they make (preludes, what brings
//! startup settings back, questions about settings that are not reported) and the queue of what is owed ([`Pipeline`]).
//! PostgreSQL is [`server::Server`], which reads that SQL. What `relay` and `client::session` do between them is bound
//! to sockets and pools; the order in which they call the ledgers is done again here, in [`carrier`], for Query alone, and
//! each step says which one it stands for. The twins (`tests/behavior/twins.rs`) play the whole before real PostgreSQL.

mod carrier;
mod script;
mod server;
mod statement;

use std::sync::Arc;

use crate::virtual_session::parameters::Settings;
use crate::virtual_session::{BackendState, SharedLedger, VirtualSession};
use carrier::{Carrier, neutral_lexing};
use script::{Op, Script};
use server::Server;

/// Longer inputs find nothing that shorter ones don't.
const INPUT_LEN_MAX: usize = 1024;
const CLIENTS: usize = 3;
const BACKENDS: usize = 2;
/// What clients start with: nothing, or settings of each kind, one of them the server's own default.
const STARTUPS: [&[(&str, &str)]; 4] = [
    &[],
    &[("TimeZone", "Berlin"), ("work_mem", "5MB")],
    &[("app.a", "started"), ("role", "team"), ("application_name", "psql")],
    &[
        ("work_mem", "4MB"),
        ("standard_conforming_strings", "off"),
        ("app.b", ""),
    ],
];

/// A backend of the pool: what is known of it, and what it is.
#[derive(Debug)]
struct Backend {
    state: BackendState,
    server: Server,
}

impl Backend {
    fn new(tells_at_once: bool) -> Self {
        Self {
            state: BackendState::default(),
            server: Server::new(&[], tells_at_once),
        }
    }
}

/// The pool, and who uses it.
#[derive(Debug)]
struct World {
    shared: Arc<SharedLedger>,
    /// Those that nobody holds, the last used at the end.
    idle: Vec<Backend>,
    clients: Vec<Carrier>,
    /// Clients that there ever were.
    serial: u64,
    tells_at_once: bool,
}

/// Bit 0 of the first byte: the servers report settings at once. Behind it messages, see [`script`].
pub(super) fn run(data: &[u8]) {
    let Some((&selector, rest)) = data.split_first() else {
        return;
    };
    let tells_at_once = selector & 1 == 1;
    let mut world = World {
        shared: Arc::new(SharedLedger::new(7)),
        idle: (0..BACKENDS).map(|_| Backend::new(tells_at_once)).collect(),
        clients: Vec::new(),
        serial: 0,
        tells_at_once,
    };
    for number in 0..CLIENTS {
        let client = world.new_client(usize::from(selector >> 1) + number);
        world.clients.push(client);
    }
    let mut script = Script::new(rest.get(..INPUT_LEN_MAX).unwrap_or(rest));
    while let Some((client, op)) = script.next_op() {
        world.play(client % CLIENTS, op);
    }
    for client in 0..CLIENTS {
        world.drain(client);
    }
}

impl World {
    fn new_client(&mut self, startup: usize) -> Carrier {
        let startup = STARTUPS[startup % STARTUPS.len()];
        self.serial += 1;
        let settings = Settings::new(startup.iter().map(|(name, value)| ((*name).into(), (*value).into())));
        let session = VirtualSession::new(self.serial, Arc::clone(&self.shared), settings, neutral_lexing());
        Carrier::new(session, Server::new(startup, self.tells_at_once))
    }

    fn play(&mut self, number: usize, op: Op) {
        match op {
            Op::Say(text) => {
                self.say(number, &text);
                self.drain(number);
            }
            Op::SayOn(text) => self.say(number, &text),
            Op::Step => self.step(number),
            Op::Drain => self.drain(number),
            Op::Hold => self.clients[number].is_slow ^= true,
            // Whether a startup setting was RESET or SET to the server's default is then not known (decision 0008).
            Op::QuestionFails => self.clients[number].question_fails = !self.clients[number].has_startup(),
            Op::PreludeFails => self.clients[number].prelude_fails = true,
            Op::BackendGone(text) => self.lose_backend(number, &text),
            Op::Leave(startup) => self.leave(number, startup),
        }
    }

    /// One message of the client's, as soon as it may be sent. Without an idle backend it is not said at all.
    fn say(&mut self, number: usize, text: &[u8]) {
        let client = &self.clients[number];
        if client.len() >= carrier::REQUESTS_MAX || client.is_beyond_us(text) {
            return;
        }
        if self.lend(number) {
            while !self.clients[number].send(text) {
                if !self.has_replied(number) {
                    return;
                }
            }
        }
    }

    /// `Parked::take`, and what `Session::serve_busy` does with a backend that its client can't be given.
    fn lend(&mut self, number: usize) -> bool {
        let client = &mut self.clients[number];
        if client.backend.is_some() {
            return true;
        }
        let session = &client.session;
        let agreeing = self.idle.iter().rposition(|idle| session.agrees_with(&idle.state));
        let accepted = || self.idle.iter().rposition(|idle| session.accepts(&idle.state));
        client.backend = match agreeing.or_else(accepted) {
            Some(at) => Some(self.idle.remove(at)),
            None => self.idle.pop().map(|_| Backend::new(self.tells_at_once)),
        };
        client.backend.is_some()
    }

    /// The backend's next reply has come. False: nothing is owed, or the client has lost the backend over it.
    fn has_replied(&mut self, number: usize) -> bool {
        let client = &mut self.clients[number];
        if !client.owes_reply() {
            return false;
        }
        let goes_on = client.reply();
        // Before the client's next message is looked at.
        client.asks_of_settings();
        if !goes_on {
            // `Session::on_prelude_failure`: who kept its backend is gone with it, others were told and go on.
            client.backend = None;
            if !client.session.pins().is_empty() {
                self.clients[number] = self.new_client(0);
            }
            self.idle.push(Backend::new(self.tells_at_once));
        }
        goes_on
    }

    fn step(&mut self, number: usize) {
        self.has_replied(number);
        self.rest(number);
    }

    fn drain(&mut self, number: usize) {
        while self.clients[number].owes_client_reply() && self.has_replied(number) {}
        if !self.clients[number].is_slow {
            while self.has_replied(number) {}
        }
        self.rest(number);
    }

    /// `Exchange::resting_place`: the backend is given back.
    fn rest(&mut self, number: usize) {
        let client = &mut self.clients[number];
        if client.can_part()
            && let Some(backend) = client.backend.take()
        {
            self.idle.push(backend);
        }
    }

    /// Nothing of the client's message was sent when the backend was lost (`Exchange::rewind`): it is said to another.
    fn lose_backend(&mut self, number: usize, text: &[u8]) {
        let is_fresh = self.clients[number].backend.is_none();
        if !is_fresh || !self.lend(number) {
            return;
        }
        self.clients[number].send_in_vain(text);
        self.clients[number].backend = None;
        self.idle.push(Backend::new(self.tells_at_once));
        self.say(number, text);
        self.drain(number);
    }

    /// `Session::clean_up`: its backend is made as new, or closed. Another client comes in its place.
    fn leave(&mut self, number: usize, startup: usize) {
        let next = self.new_client(startup);
        let gone = std::mem::replace(&mut self.clients[number], next);
        if let Some(backend) = gone.clean_up() {
            let backend = backend.unwrap_or_else(|| Backend::new(self.tells_at_once));
            self.idle.push(backend);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::fuzzing::tests::returns_for_random_inputs;

    #[test]
    fn every_statement_runs_under_its_clients_settings_whatever_was_said_before() {
        returns_for_random_inputs(super::run, 5_000, 20..100);
    }
}
