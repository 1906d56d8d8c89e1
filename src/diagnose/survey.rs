//! Many connections to one end: one after another, then all at once.

use tokio::task::JoinSet;

use super::failure::{Failure, Step};
use super::target::{Connection, Target};
use super::{Plan, Progress};
use crate::config::UpstreamConfig;

/// What the connections to one end cost.
#[derive(Debug)]
pub(super) struct Survey {
    pub(super) address: String,
    /// In the order in which they were opened.
    pub(super) one_by_one: Vec<Connection>,
    /// In the order in which they were done.
    pub(super) at_once: Vec<Connection>,
}

pub(super) async fn survey(
    name: &'static str,
    upstream: &UpstreamConfig,
    plan: &Plan,
    progress: &Progress,
) -> Result<Survey, Failure> {
    let target = Target::new(name, upstream)?;
    progress.phase(&format!("{name}, one after another"));
    let mut one_by_one = Vec::new();
    for _ in 0..plan.connections {
        one_by_one.push(target.measure().await?);
        progress.advance();
    }
    progress.phase(&format!("{name}, {} at once", plan.at_once));
    let mut running = JoinSet::new();
    for _ in 0..plan.at_once {
        let target = target.clone();
        running.spawn(async move { target.measure().await });
    }
    let mut at_once = Vec::new();
    while let Some(ended) = running.join_next().await {
        let measured = ended.map_err(|error| {
            Failure::new(
                name,
                &target.address,
                Step::Query,
                None,
                format!("the measurement ended: {error}"),
            )
        })?;
        at_once.push(measured.map_err(|failure| failure.among(plan.at_once))?);
        progress.advance();
    }
    Ok(Survey {
        address: target.address,
        one_by_one,
        at_once,
    })
}
