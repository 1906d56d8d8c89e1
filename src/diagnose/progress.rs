//! A bar on a terminal; nothing anywhere else.

use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};

/// How wide the bar is, in characters.
const WIDTH: u32 = 24;

/// Where the measurement is. Drawn on stderr, so that stdout has the result alone.
#[derive(Debug)]
pub struct Progress {
    total: u32,
    is_drawn: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    done: u32,
    phase: String,
}

impl Progress {
    /// A bar of so many steps, if stderr is a terminal.
    pub fn on_terminal(total: u32) -> Self {
        Self {
            total,
            is_drawn: std::io::stderr().is_terminal(),
            state: Mutex::default(),
        }
    }

    pub(super) fn phase(&self, phase: &str) {
        self.change(|state| phase.clone_into(&mut state.phase));
    }

    pub(super) fn advance(&self) {
        self.change(|state| state.done += 1);
    }

    /// Takes the bar away.
    pub fn end(&self) {
        if self.is_drawn {
            write(b"\r\x1b[K");
        }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state);
        if self.is_drawn {
            write(format!("\r{}\x1b[K", bar(state.done, self.total, &state.phase)).as_bytes());
        }
    }
}

/// A terminal that is gone is no reason to end.
fn write(bytes: &[u8]) {
    let mut terminal = std::io::stderr();
    let _ = terminal.write_all(bytes).and_then(|()| terminal.flush());
}

fn bar(done: u32, total: u32, phase: &str) -> String {
    let filled = (done.min(total) * WIDTH).checked_div(total).unwrap_or(WIDTH);
    let filled = usize::try_from(filled).unwrap_or_default();
    let empty = usize::try_from(WIDTH).unwrap_or_default() - filled;
    format!("[{}{}] {done}/{total} {phase}", "#".repeat(filled), ".".repeat(empty))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_fills_up() {
        assert_eq!(bar(0, 4, "x"), format!("[{}] 0/4 x", ".".repeat(24)));
        assert_eq!(
            bar(2, 4, "directly"),
            format!("[{}{}] 2/4 directly", "#".repeat(12), ".".repeat(12))
        );
        assert_eq!(bar(9, 4, "x"), format!("[{}] 9/4 x", "#".repeat(24)));
        assert_eq!(bar(0, 0, "x"), format!("[{}] 0/0 x", "#".repeat(24)));
    }
}
