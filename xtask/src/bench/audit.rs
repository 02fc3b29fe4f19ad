//! What a record of the audit trail adds to an operation.

use anyhow::{Context, Result};
use e2e::Installation;

use super::Bench;
use super::figure::{Figure, Promise};

/// From the request to the decision on disk, as the trail itself tells.
pub fn audit(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let it = Installation::with_busybox();
    for number in 0..bench.rounds * 20 {
        it.run(["image", "tag", "busybox", &format!("tag-{number}")]).ok();
    }
    let listed = it.run(["system", "audit", "list", "--format", "json"]).ok().json();
    let rows = listed.as_array().context("a list of operations")?;
    let ours = rows.iter().filter_map(|row| row["result"]["recordedUs"].as_f64());
    let ours: Vec<f64> = ours.map(|us| us / 1e3).collect();
    Ok(vec![Figure::new("a record of the audit trail", "ms", ours, Promise::AtMost(1.0))])
}
