//! The findings for people: two columns of steps, a row per series, the verdict.

use std::fmt::Write;

use super::findings::{Findings, Path, Steps};
use super::spread::Spread;

/// The width of a row's name, and of a number, in characters.
const NAME: usize = 30;
const NUMBER: usize = 11;

type StepOf = fn(&Steps) -> Option<f64>;

/// The rows of the first table.
const STEPS: [(&str, StepOf); 7] = [
    ("DNS", |it| it.dns),
    ("connecting (TCP or socket)", |it| it.connect),
    ("TLS", |it| it.tls),
    ("login", |it| it.login),
    ("a connection, in all", |it| Some(it.acquire)),
    ("first query", |it| Some(it.first_query)),
    ("round trip", |it| Some(it.round_trip)),
];

/// Ends with a newline.
pub(super) fn render(findings: &Findings) -> String {
    let mut out = String::new();
    // Writing to a String can't fail.
    let _ = steps(&mut out, findings)
        .and_then(|()| series(&mut out, findings))
        .and_then(|()| verdict(&mut out, findings));
    out
}

/// The ways that were measured, with their names.
fn ways(findings: &Findings) -> impl Iterator<Item = (&'static str, &Path)> {
    let through = findings.through.as_ref().map(|path| ("through", path));
    [("directly", &findings.direct)].into_iter().chain(through)
}

fn steps(out: &mut String, findings: &Findings) -> std::fmt::Result {
    for (name, path) in ways(findings) {
        writeln!(out, "{name:<9} {}", path.address)?;
    }
    write!(out, "\n{:<NAME$}", "median, ms")?;
    for (name, _) in ways(findings) {
        write!(out, "{name:>NUMBER$}")?;
    }
    writeln!(out)?;
    for (name, of) in STEPS {
        write!(out, "{name:<NAME$}")?;
        for (_, path) in ways(findings) {
            match of(&path.steps_ms) {
                Some(took) => write!(out, "{took:>NUMBER$.1}")?,
                None => write!(out, "{:>NUMBER$}", "-")?,
            }
        }
        writeln!(out)?;
    }
    Ok(())
}

fn series(out: &mut String, findings: &Findings) -> std::fmt::Result {
    write!(out, "\n{:<NAME$}", "acquiring a connection, ms")?;
    for name in ["first", "p50", "p99", "max"] {
        write!(out, "{name:>NUMBER$}")?;
    }
    writeln!(out)?;
    for (name, path) in ways(findings) {
        row(
            out,
            &format!("{name}, {} in a row", path.one_by_one_ms.count),
            &path.one_by_one_ms,
        )?;
        row(
            out,
            &format!("{name}, {} at once", path.at_once_ms.count),
            &path.at_once_ms,
        )?;
    }
    Ok(())
}

fn row(out: &mut String, name: &str, spread: &Spread) -> std::fmt::Result {
    if spread.count == 0 {
        return Ok(());
    }
    write!(out, "{name:<NAME$}")?;
    for number in [spread.first, spread.p50, spread.p99, spread.max] {
        write!(out, "{number:>NUMBER$.1}")?;
    }
    writeln!(out)
}

fn verdict(out: &mut String, findings: &Findings) -> std::fmt::Result {
    writeln!(out)?;
    for line in &findings.verdict.conclusions {
        writeln!(out, "{line}")?;
    }
    for line in &findings.verdict.changes {
        writeln!(out, "To change: {line}")?;
    }
    Ok(())
}
