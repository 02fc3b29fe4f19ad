//! `system df` and `system prune`.

use std::io::{self, BufRead, IsTerminal};

use container_api::apiserver::{PrunedSystem, QUICK, Request, SLOW};
use container_api::types::DiskUsage;

use crate::args::Format;
use crate::args::system::{Formatted, Prune};
use crate::failure::{Failure, Outcome, print};
use crate::render::{self, usage as rows};
use crate::session::Session;

/// What everything takes.
pub async fn df(session: &Session, args: &Formatted) -> Outcome {
    let usage: DiskUsage = session.connect()?.call(&Request::DiskUsage, &[], Some(QUICK)).await?;
    match args.format {
        Format::Table => print(&rows::table(&usage))?,
        format => print(&render::data(format, "usage", &usage)?)?,
    }
    Ok(0)
}

/// Removes templates and spares. A person at a terminal is asked first.
pub async fn prune(session: &Session, args: &Prune) -> Outcome {
    let mut client = session.connect()?;
    if !args.force && io::stdin().is_terminal() && !confirmed()? {
        return Ok(0);
    }
    let pruned: PrunedSystem = client.call(&Request::PruneSystem, &[], Some(SLOW)).await?;
    print(&format!(
        "Removed {} and {}\nReclaimed {} in disk space\n",
        rows::count(pruned.templates, "template"),
        rows::count(pruned.spares, "spare"),
        render::size(pruned.reclaimed)
    ))?;
    Ok(0)
}

fn confirmed() -> Outcome<bool> {
    print(
        "This removes all templates and spares that no container uses; \
         starts are slower until they are made again.\nGo on? [y/N] ",
    )?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(|e| Failure::io("standard input", e))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
