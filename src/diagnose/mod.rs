//! `pgsidecar diagnose`: what a connection to PostgreSQL costs an app, step by step, directly and through pgsidecar.
//!
//! `target` is one end and measures one connection to it with the modules that the pools use; `survey` measures many, one
//! after another and at once; [`findings`] is what came out, `verdict` what it means and what to change, `failure` what is
//! said where a step fails; `table` is for people and [`findings::Findings`] for `--json`; `progress` passes the time.

mod failure;
pub mod findings;
mod progress;
mod spread;
mod survey;
mod table;
mod target;
mod verdict;

use std::time::Duration;

pub use failure::Failure;
pub use findings::Findings;
pub use progress::Progress;

use crate::config::UpstreamConfig;

/// What to measure.
#[derive(Debug)]
pub struct Plan {
    /// The database itself.
    pub direct: UpstreamConfig,
    /// pgsidecar in front of it, if there is one.
    pub through: Option<UpstreamConfig>,
    /// Connections one after another, at each end.
    pub connections: u32,
    /// Connections at the same time, at each end.
    pub at_once: u32,
    /// What acquiring a connection may take.
    pub goal: Duration,
}

/// Measures all of it.
///
/// # Errors
/// The first connection that fails ends the run: what it would have cost is not known.
pub async fn run(plan: Plan, progress: &Progress) -> Result<Findings, Failure> {
    let direct = survey::survey("directly", &plan.direct, &plan, progress).await?;
    let through = match &plan.through {
        Some(upstream) => Some(survey::survey("through", upstream, &plan, progress).await?),
        None => None,
    };
    Ok(Findings::new(plan.goal, direct, through))
}

/// How many connections a plan opens, for the bar.
pub fn connections_in(plan: &Plan) -> u32 {
    let each = plan.connections.saturating_add(plan.at_once);
    each.saturating_mul(if plan.through.is_some() { 2 } else { 1 })
}
