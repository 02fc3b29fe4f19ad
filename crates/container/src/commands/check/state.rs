//! `system check --state`: the service compares what is there with what is recorded.

use std::time::Duration;

use container_api::apiserver::{Request, SLOW};
use container_api::invariants::Checked;

use super::{Row, Verdict};
use crate::failure::Outcome;
use crate::session::Session;

/// Reading every blob of every image takes as long as it takes; Ctrl-C ends it.
const DEEP: Option<Duration> = None;

/// A row for each thing that holds, and one for each violation. With `deep` the blobs of images are
/// read.
pub async fn rows(session: &Session, deep: bool) -> Outcome<Vec<Row>> {
    let mut client = session.connect()?;
    let deadline = if deep { DEEP } else { Some(SLOW) };
    let all: Vec<Checked> = client.call(&Request::CheckState { deep }, &[], deadline).await?;
    Ok(all.into_iter().flat_map(rows_of).collect())
}

fn rows_of(checked: Checked) -> Vec<Row> {
    let check = checked.invariant.text();
    let row = |result, evidence| Row { area: "state", check, result, evidence };
    if let Some(why) = checked.not_run {
        return vec![row(Verdict::NotRun, why)];
    }
    let findings = checked.findings;
    if !findings.violations.is_empty() {
        return findings.violations.into_iter().map(|line| row(Verdict::Fail, line)).collect();
    }
    let looked_at = format!("{} looked at", findings.looked_at);
    let evidence = [looked_at].into_iter().chain(findings.remarks).collect::<Vec<_>>().join("; ");
    vec![row(Verdict::Pass, evidence)]
}

#[cfg(test)]
mod tests {
    use container_api::invariants::{Findings, Invariant};

    use super::*;

    fn shown(violations: &[&str], not_run: Option<&str>) -> Vec<(Verdict, String)> {
        let findings = Findings {
            looked_at: 3,
            violations: violations.iter().map(ToString::to_string).collect(),
            remarks: vec!["by the way".into()],
        };
        let not_run = not_run.map(String::from);
        let rows = rows_of(Checked { invariant: Invariant::Files, findings, not_run });
        rows.into_iter().map(|row| (row.result, row.evidence)).collect()
    }

    #[test]
    fn every_violation_has_a_line() {
        assert_eq!(shown(&[], None), [(Verdict::Pass, "3 looked at; by the way".into())]);
        let lines = [(Verdict::Fail, "a".into()), (Verdict::Fail, "b".into())];
        assert_eq!(shown(&["a", "b"], None), lines);
        assert_eq!(shown(&["a"], Some("no nft")), [(Verdict::NotRun, "no nft".into())]);
    }
}
