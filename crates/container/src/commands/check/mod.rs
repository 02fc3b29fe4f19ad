//! `system check`: rows of what was tried or compared, each with what came of it.

use serde::Serialize;

use crate::args::Format;
use crate::args::system::Check;
use crate::failure::{Outcome, print};
use crate::render::{self, table};
use crate::session::Session;

mod agent;
mod answers;
mod explain;
mod guest;
mod image;
mod jail;
mod limits;
mod security;
mod stage;
mod state;

/// The exit code when a row failed, or a layer is missing.
const FAILED: u8 = 1;

/// What came of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Verdict {
    /// It is as it should be.
    #[serde(rename = "pass")]
    Pass,
    /// It is not.
    #[serde(rename = "fail")]
    Fail,
    /// It is not, and the configuration says that it need not be: as red as a failure.
    #[serde(rename = "allowed missing")]
    AllowedMissing,
    /// It could not be tried here; the evidence says why.
    #[serde(rename = "not run")]
    NotRun,
}

impl Verdict {
    /// Whether it makes the exit code.
    fn is_red(self) -> bool {
        matches!(self, Verdict::Fail | Verdict::AllowedMissing)
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Verdict::Pass => "pass",
            Verdict::Fail => "fail",
            Verdict::AllowedMissing => "allowed missing",
            Verdict::NotRun => "not run",
        })
    }
}

/// One thing that was tried or compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// What of: `audit`, `guest`, `jail`, `state` and so on.
    pub area: &'static str,
    /// What should hold, in a few words.
    pub check: &'static str,
    /// Whether it does.
    pub result: Verdict,
    /// What was seen, or why it was not run: one line.
    pub evidence: String,
}

impl Row {
    /// A row from a check's outcome: evidence that it holds, or what is wrong.
    pub fn of(area: &'static str, check: &'static str, outcome: Result<String, String>) -> Row {
        let (result, evidence) = match outcome {
            Ok(evidence) => (Verdict::Pass, evidence),
            Err(evidence) => (Verdict::Fail, evidence),
        };
        Row { area, check, result, evidence }
    }

    /// A row that could not be tried here, and why.
    pub fn not_run(area: &'static str, check: &'static str, reason: String) -> Row {
        Row { area, check, result: Verdict::NotRun, evidence: reason }
    }
}

/// Runs the command: exit code 1 when a row failed.
pub async fn run(session: &Session, args: &Check) -> Outcome {
    if let Some(id) = &args.id {
        return explain::explain(session, id, args.format).await;
    }
    let mut rows = Vec::new();
    if args.state {
        rows.extend(state::rows(session, args.deep).await?);
    }
    if args.security || !args.state {
        rows.extend(security::rows(session).await?);
    }
    show(&rows, args.format)
}

fn show(rows: &[Row], format: Format) -> Outcome {
    match format {
        Format::Table => print(&rendered(rows))?,
        format => print(&render::data(format, "checks", &rows)?)?,
    }
    let failed = rows.iter().any(|row| row.result.is_red());
    Ok(if failed { FAILED } else { 0 })
}

fn rendered(rows: &[Row]) -> String {
    let cells: Vec<_> = rows
        .iter()
        .map(|row| {
            let [area, check] = [row.area, row.check].map(String::from);
            [area, check, row.result.to_string(), row.evidence.clone()]
        })
        .collect();
    table(["AREA", "CHECK", "RESULT", "EVIDENCE"], &cells)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_row_makes_the_exit_code() {
        let row = |outcome| Row::of("audit", "the trail is whole", outcome);
        let (pass, fail) = (row(Ok("a".into())), row(Err("b\u{1b}".into())));
        assert_eq!((pass.result, fail.result), (Verdict::Pass, Verdict::Fail));
        assert_eq!(
            rendered(&[pass.clone(), fail.clone()]),
            "AREA   CHECK               RESULT  EVIDENCE\n\
             audit  the trail is whole  pass    a\n\
             audit  the trail is whole  fail    b\\u{1b}\n"
        );
        assert_eq!(show(std::slice::from_ref(&pass), Format::Json).unwrap(), 0);
        let missing = Row { result: Verdict::AllowedMissing, ..pass.clone() };
        assert_eq!(show(&[missing], Format::Json).unwrap(), FAILED);
        let not_run = Row::not_run("audit", "the trail is whole", "none".into());
        assert_eq!(show(&[not_run], Format::Json).unwrap(), 0);
        assert_eq!(show(&[pass, fail], Format::Json).unwrap(), FAILED);
    }
}
